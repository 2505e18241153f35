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

    /// A bug that answers is neither away nor busy: a unit that meets it everywhere must halt.
    #[test]
    fn a_broken_invariant_does_not_pass() {
        assert!(!Code::Internal.passes() && !Code::Internal.is_of_the_moment());
    }
}
