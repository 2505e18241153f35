//! Findings: everything that can be wrong with a record.

use schemas::lease::LeaseRef;
use schemas::{ChainSequence, Code, Digest, PublicKey, Round, UnitIndex, UnixMillis};
use serde::{Deserialize, Serialize};

use crate::record::StreamSequence;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Finding {
    /// Subject or payload are not ours, or contradict each other.
    #[error("malformed: {reason}")]
    Malformed {
        /// The part that does not parse or fit.
        reason: String,
    },
    /// The signer may not speak there: a worker in the ledger, or one in another's name or run.
    #[error("foreign: {reason}")]
    Foreign {
        /// The signer, and the place where it spoke.
        reason: String,
    },
    /// The coordinator's key signed something that cannot be read as an event.
    #[error("signed by the coordinator and not readable: {reason}")]
    Undecodable {
        /// The key.
        key: PublicKey,
        /// The part that does not parse.
        reason: String,
    },
    /// The coordinator's key signed a worker's event, so somebody else holds that key.
    #[error("the coordinator's key speaks for a worker")]
    Usurped {
        /// The key.
        key: PublicKey,
    },
    /// The signature was not made by the named key over this body in this domain.
    #[error("signature does not verify under {key}")]
    BadSignature {
        /// The named key.
        key: String,
    },
    /// The ledger did not enrol the key of a worker's event for anybody.
    #[error("no worker joined with the key {key}")]
    UnknownEmitter {
        /// The key.
        key: PublicKey,
    },
    /// Events of this emitter before this one are missing.
    #[error("events {from} to {to} of this emitter are missing")]
    Gap {
        /// The first that is missing.
        from: ChainSequence,
        /// The last that is missing.
        to: ChainSequence,
    },
    /// The emitter's chain has another event at this position.
    #[error(
        "the emitter's event {sequence} exists with other content, or is too old to be repeated"
    )]
    Reused {
        /// The position.
        sequence: ChainSequence,
    },
    /// The event comes after later events of its emitter.
    #[error("the emitter's event {sequence} comes after later ones")]
    Displaced {
        /// Its position in the chain.
        sequence: ChainSequence,
    },
    /// The event does not name the event before it.
    #[error("the emitter's event {sequence} does not name the one before it")]
    WrongHash {
        /// Its position in the chain.
        sequence: ChainSequence,
    },
    /// The event is in the ledger, but cannot follow the events before it.
    #[error("does not follow the ledger: {reason}")]
    OutOfPlace {
        /// The contradiction.
        reason: String,
    },
    /// An invariant of the ledger's state does not hold.
    #[error("the ledger contradicts itself: {reason}")]
    Contradiction {
        /// The numbers that do not add up.
        reason: String,
    },
    /// The stream lacks messages before this one.
    #[error("messages {from} to {to} of the stream are missing")]
    Hole {
        /// The first that is missing.
        from: StreamSequence,
        /// The last that is missing.
        to: StreamSequence,
    },
    /// The stream's position goes back.
    #[error("stream sequence {sequence} comes after {after}")]
    Rewound {
        /// The position.
        sequence: StreamSequence,
        /// The position before it.
        after: StreamSequence,
    },
    /// The stream holds other bytes at this position than were kept.
    #[error("stream sequence {sequence} has other bytes than were kept")]
    Altered {
        /// The position.
        sequence: StreamSequence,
    },
    /// The stream ends before the last message that was kept.
    #[error("the stream ends at {last}, but {kept} was kept")]
    Truncated {
        /// Its last position.
        last: StreamSequence,
        /// The last position that was kept.
        kept: StreamSequence,
    },
    /// The ledger names a checkpoint that is not the state after its events.
    #[error(
        "the checkpoint that covers event {covers} is {named}; the events up to there come to {recomputed}"
    )]
    FalseCheckpoint {
        /// The event that took it.
        covers: ChainSequence,
        /// The object that the ledger names, and the event that it covers.
        named: String,
        /// The object recomputed.
        recomputed: String,
    },
    /// The ledger has a cohort in which the keys of a unit are not signed by its worker.
    #[error("the keys of unit {unit} in the cohort of round {round} are not signed by its worker")]
    KeysUnsigned {
        /// The round.
        round: Round,
        /// The unit.
        unit: UnitIndex,
    },
    /// The ledger has a contribution to a masked round that its worker has not signed, or not for
    /// this cohort.
    #[error("the contribution under lease {lease} is not the one that its worker signed")]
    ContributionUnsigned {
        /// The lease.
        lease: LeaseRef,
    },
    /// The coordinator has signed a cohort for a worker, which the ledger does not have.
    #[error(
        "the coordinator has shown a worker the cohort {cohort} of round {round} (stream sequence {shown}), which the \
         ledger does not have"
    )]
    CohortHidden {
        /// The round.
        round: Round,
        /// The cohort.
        cohort: Digest,
        /// The worker's event.
        shown: StreamSequence,
    },
    /// A worker tells of a cohort without the coordinator's signature.
    #[error("it masks for the cohort {cohort} of round {round}, which no coordinator has signed")]
    CohortUnsigned {
        /// The round.
        round: Round,
        /// The cohort.
        cohort: Digest,
    },
    /// A worker tells of a cohort under a key of the ledger whose turn it was not: a former one, or
    /// one that is to follow. It is nobody's word, and the worker may have believed it.
    #[error(
        "it masks for the cohort {cohort} of round {round} under {key}, which is not the key that goes on with the ledger"
    )]
    CohortOutOfTurn {
        /// The round.
        round: Round,
        /// The cohort.
        cohort: Digest,
        /// The key.
        key: PublicKey,
    },
    /// The ledger goes on with a key that the trust bundle does not have: the bundle may be older.
    #[error(
        "the ledger goes on with {key}, which the trust bundle does not have; nothing is known of what follows"
    )]
    SuccessorUnknown {
        /// The key.
        key: PublicKey,
    },
    /// The emitter's time lies far after the broker's, or far before that of its own last event.
    /// This points to a clock, not to a forgery.
    #[error("the emitter's time {time} is far from {against}")]
    Clock {
        /// The emitter's time.
        time: UnixMillis,
        /// The broker's time, or that of the emitter's last event.
        against: UnixMillis,
    },
}

impl Finding {
    /// True if this is evidence that the record was tampered with, or that an emitter lied. A wrong
    /// clock is no evidence, and neither is a foreign message, nor what a newer trust bundle may
    /// explain.
    pub const fn is_evidence(&self) -> bool {
        !matches!(
            self,
            Self::Clock { .. } | Self::CohortOutOfTurn { .. } | Self::SuccessorUnknown { .. }
        ) && !self.is_foreign()
    }

    /// True if the message is in nobody's chain, since no key that could be in a chain there has
    /// signed it. It is skipped: chains show by themselves when something is missing, and one
    /// message must not put a whole record in doubt.
    pub const fn is_foreign(&self) -> bool {
        matches!(
            self,
            Self::Malformed { .. }
                | Self::Foreign { .. }
                | Self::BadSignature { .. }
                | Self::UnknownEmitter { .. }
        )
    }

    /// Its name as one word.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Malformed { .. } => "malformed",
            Self::Foreign { .. } => "foreign",
            Self::Undecodable { .. } => "undecodable",
            Self::Usurped { .. } => "usurped",
            Self::BadSignature { .. } => "bad-signature",
            Self::UnknownEmitter { .. } => "unknown-emitter",
            Self::Gap { .. } => "gap",
            Self::Reused { .. } => "reused",
            Self::Displaced { .. } => "displaced",
            Self::WrongHash { .. } => "wrong-hash",
            Self::OutOfPlace { .. } => "out-of-place",
            Self::Contradiction { .. } => "contradiction",
            Self::Hole { .. } => "hole",
            Self::Rewound { .. } => "rewound",
            Self::Altered { .. } => "altered",
            Self::Truncated { .. } => "truncated",
            Self::FalseCheckpoint { .. } => "false-checkpoint",
            Self::KeysUnsigned { .. } => "keys-unsigned",
            Self::ContributionUnsigned { .. } => "contribution-unsigned",
            Self::CohortHidden { .. } => "cohort-hidden",
            Self::CohortUnsigned { .. } => "cohort-unsigned",
            Self::CohortOutOfTurn { .. } => "cohort-out-of-turn",
            Self::SuccessorUnknown { .. } => "successor-unknown",
            Self::Clock { .. } => "clock",
        }
    }
}

/// A finding with the place where it was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacedFinding {
    /// The record.
    pub stream_sequence: StreamSequence,
    /// True if the finding concerns the ledger, and false if the subject is one that the broker
    /// keeps for a worker.
    pub ledger: bool,
    /// The finding.
    pub finding: Finding,
}

impl PlacedFinding {
    /// True if this is evidence against the ledger or the stream itself, on which a run's timeline
    /// rests and which no worker can shorten or alter. Other evidence is against one worker's own
    /// account.
    pub const fn is_evidence(&self) -> bool {
        self.finding.is_evidence() && self.is_of_the_record()
    }

    /// The code of the page that says what to do.
    pub const fn code(&self) -> Code {
        if self.finding.is_foreign() || matches!(self.finding, Finding::CohortOutOfTurn { .. }) {
            return Code::ForeignMessage;
        }
        if matches!(self.finding, Finding::SuccessorUnknown { .. }) {
            return Code::NoVerdict;
        }
        if matches!(self.finding, Finding::FalseCheckpoint { .. }) {
            Code::CheckpointFalse
        } else if matches!(
            self.finding,
            Finding::KeysUnsigned { .. }
                | Finding::ContributionUnsigned { .. }
                | Finding::CohortHidden { .. }
        ) {
            Code::CohortFalse
        } else if self.is_of_the_record() {
            Code::LedgerBroken
        } else {
            Code::AuditRejected
        }
    }

    const fn is_of_the_record(&self) -> bool {
        let stream = matches!(
            self.finding,
            Finding::Hole { .. }
                | Finding::Rewound { .. }
                | Finding::Altered { .. }
                | Finding::Truncated { .. }
        );
        self.ledger || stream
    }
}

impl std::fmt::Display for PlacedFinding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "at stream sequence {}: {}",
            self.stream_sequence, self.finding
        )
    }
}
