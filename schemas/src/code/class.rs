//! Classes of codes: the actions that programs take on them. The table of codes has a column for
//! the class, and every decision about a code reads that column, so that the class of a new code is
//! chosen once and holds everywhere.

use super::Code;

/// The action that a program takes on a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// A peer is absent, or cannot be reached with the present credentials. It may be back at any
    /// moment.
    Away,
    /// A peer is there, but has no space or no time for this now. It may have some later.
    Busy,
    /// Nothing is wrong: there is nothing to do at this time.
    NotNow,
    /// The lease is another's, or nobody's.
    LostLease,
    /// The coordinator does not know the asker as a member.
    NotMember,
    /// The program cannot work as it is set up; an operator must change something.
    Operator,
    /// A record or a signature is not what it should be.
    Evidence,
    /// This request, object or unit is no good, and another try changes nothing. Others may be
    /// good.
    Final,
}

impl Class {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Away,
        Self::Busy,
        Self::NotNow,
        Self::LostLease,
        Self::NotMember,
        Self::Operator,
        Self::Evidence,
        Self::Final,
    ];

    /// Its name as a label of metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Away => "away",
            Self::Busy => "busy",
            Self::NotNow => "not_now",
            Self::LostLease => "lost_lease",
            Self::NotMember => "not_member",
            Self::Operator => "operator",
            Self::Evidence => "evidence",
            Self::Final => "final",
        }
    }

    /// The text about it on the pages of the codes.
    pub const fn what_programs_do(self) -> &'static str {
        match self {
            Self::Away => {
                "Running programs ask again soon and keep their state: the cause may end at any moment. Nobody's unit or \
                 result is blamed. A program that is still starting, and a command, end with the code."
            }
            Self::Busy => {
                "Running programs ask again, each time after a longer pause, and keep their state. Nobody's unit or \
                 result is blamed. A program that is still starting, and a command, end with the code."
            }
            Self::NotNow => {
                "Nothing is wrong and nothing is recorded against anybody. Workers wait or end in order; a command prints \
                 the code and ends."
            }
            Self::LostLease => {
                "The worker stops the unit at once, releases nothing, and claims another."
            }
            Self::NotMember => "The worker drops the unit, joins again, and goes on.",
            Self::Operator => {
                "The program ends, or does not start: trying again changes nothing until a person has changed something."
            }
            Self::Evidence => {
                "The finding is recorded and reported. The message or document that it concerns is not used, and the \
                 request is not repeated; a run or a service that depends on it stops."
            }
            Self::Final => {
                "The request, the object or the unit counts as failed and is not repeated as it is. Other work goes on; \
                 a worker that fails again and again ends, and a unit that fails with every worker halts its run."
            }
        }
    }
}

impl Code {
    /// True if the same request may succeed later without a change by anybody: a peer is away, or
    /// has no space or time.
    pub const fn passes(self) -> bool {
        matches!(self.class(), Class::Away | Class::Busy)
    }

    /// True for a code that says nothing about the unit, the result or the object: a peer was away
    /// or busy, or the lease or the membership had ended.
    pub const fn is_of_the_moment(self) -> bool {
        match self.class() {
            Class::Away | Class::Busy | Class::NotNow | Class::LostLease | Class::NotMember => true,
            Class::Operator | Class::Evidence | Class::Final => false,
        }
    }

    /// True if a refusal with this code is a security event: it is about who asks, its right to
    /// ask, or its proof. A peer that is away or busy, a lease that is over and a request with
    /// impossible settings are not; what is wrong with a contribution itself, its fate in the
    /// ledger says.
    pub const fn is_of_security(self) -> bool {
        match self.class() {
            Class::Evidence => true,
            Class::Away | Class::Busy | Class::NotNow | Class::NotMember => false,
            // A lease that the asker never had; one that is over is lost in the usual way.
            Class::LostLease => matches!(self, Self::LeaseUnknown),
            Class::Operator => matches!(
                self,
                Self::CredentialMalformed
                    | Self::CredentialExpired
                    | Self::LayerOpen
                    | Self::RoleMismatch
                    | Self::StrangerServed
                    | Self::CredentialRevoked
                    | Self::ClientCertificateMissing
                    | Self::ClientCertificateExpired
                    | Self::ClientCertificateUntrusted
                    | Self::ClientCertificatePurpose
                    | Self::ClientCertificateOther
                    | Self::BusRefused
                    | Self::BusDenied
                    | Self::IdentityMismatch
                    | Self::CredentialLapsed
                    | Self::HolderUnknown
                    | Self::HolderBlocked
                    | Self::HolderMismatch
                    | Self::InvitationUnknown
                    | Self::InvitationEnded
                    | Self::InvitationUsed
                    | Self::InvitationMismatch
                    | Self::EnrolmentDenied
                    | Self::RecordMissing
                    | Self::SuccessionUnasked
                    | Self::SuccessionUnproven
                    | Self::TenantEnded
                    | Self::Replaced
                    | Self::AuditKeyRefused
                    | Self::WorkerQuarantined
                    | Self::SeatTaken
                    | Self::WorkerRemoved
            ),
            Class::Final => matches!(
                self,
                Self::MessageInvalid
                    | Self::ObjectForbidden
                    | Self::ManifestInvalid
                    | Self::StatementInvalid
                    | Self::ProvenanceInvalid
                    | Self::UploadMissing
                    | Self::MaskKeysRefused
                    | Self::CohortOther
                    | Self::CosignatureRefused
                    | Self::ProcessOther
            ),
        }
    }

    /// True if training led to bad numbers. The cause may be the unit, its data or the state that
    /// it started from, and not only the worker.
    pub const fn is_about_numbers(self) -> bool {
        matches!(self, Self::NotFinite | Self::NormOutlier)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_has_codes_and_says_what_is_done() {
        for class in Class::ALL {
            assert!(
                Code::ALL.iter().any(|code| code.class() == class),
                "{class:?} has no code"
            );
            assert!(class.what_programs_do().ends_with('.'));
        }
    }

    /// Store and coordinator may be away in any of these ways, and all of them pass.
    #[test]
    fn what_is_away_or_full_passes_and_blames_nobody() {
        for code in [
            Code::NoAnswer,
            Code::BusUnreachable,
            Code::StoreUnreachable,
            Code::CertificateUntrusted,
            Code::ServerCertificateExpired,
            Code::Draining,
            Code::LedgerFenced,
            Code::LedgerUnwritable,
            Code::StoreFull,
            Code::StreamNotStored,
            Code::UrlRefused,
            Code::AskedTooMuch,
            Code::TenantFull,
        ] {
            assert!(code.passes() && code.is_of_the_moment(), "{code}");
        }
    }

    /// Each code is sorted by hand, here and in the function: a code that is new fails this test
    /// until somebody has said if its refusal is a security event.
    #[test]
    fn tl_29_each_code_is_a_security_event_or_is_not() {
        /// Of classes `Operator` and `Final`.
        const OF_SECURITY: &[u16] = &[
            103, 106, 110, 112, 121, 122, 134, 135, 136, 137, 138, 155, 202, 203, 207, 208, 214,
            215, 216, 217, 222, 223, 224, 225, 228, 230, 233, 234, 241, 309, 406, 410, 411, 412,
            420, 506, 509, 517, 519, 748, 795, 808,
        ];
        const ORDINARY: &[u16] = &[
            101, 102, 104, 105, 107, 108, 109, 111, 115, 117, 118, 119, 120, 124, 126, 129, 130,
            131, 132, 139, 140, 141, 143, 145, 146, 147, 148, 153, 154, 156, 205, 206, 210, 211,
            219, 220, 221, 229, 231, 232, 240, 242, 244, 302, 303, 306, 308, 310, 313, 314, 413,
            415, 423, 424, 501, 502, 503, 504, 507, 508, 510, 511, 512, 515, 516, 518, 521, 602,
            603, 604, 605, 606, 608, 609, 616, 618, 619, 620, 621, 622, 623, 640, 641, 645, 655,
            660, 661, 663, 664, 666, 668, 669, 670, 671, 699, 706, 707, 708, 713, 718, 720, 725,
            726, 732, 739, 741, 743, 745, 756, 757, 766, 770, 801, 802, 803, 804, 805, 806, 809,
            810, 811, 901, 903, 904, 905, 906, 908, 909, 910, 999,
        ];
        for code in Code::ALL {
            let number = code.number();
            let (security, ordinary) = (OF_SECURITY.contains(&number), ORDINARY.contains(&number));
            let expected = match code.class() {
                Class::Evidence => true,
                Class::Away | Class::Busy | Class::NotNow | Class::NotMember => false,
                Class::LostLease => *code == Code::LeaseUnknown,
                Class::Operator | Class::Final => {
                    assert!(security != ordinary, "{code} is in one of the two lists");
                    security
                }
            };
            assert_eq!(code.is_of_security(), expected, "{code} {}", code.title());
            if !matches!(code.class(), Class::Operator | Class::Final) {
                assert!(!security && !ordinary, "{code} is sorted by its class");
            }
        }
    }

    /// A bug that answers is neither away nor busy: a unit that meets it everywhere must halt.
    #[test]
    fn a_broken_invariant_does_not_pass() {
        assert!(!Code::Internal.passes() && !Code::Internal.is_of_the_moment());
    }
}
