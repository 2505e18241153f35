//! Views for operators: the answers to `diloctl`'s questions and the status that watchers follow.

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

use crate::contribution::Fate;
use crate::hold::{Hold, Reason};
use crate::lease::{LeaseRef, UnitId};
use crate::member::Posture;
use crate::promotion::PointerName;
use crate::run::RunSpec;
use crate::telemetry::Phase;
use crate::{
    AccountId, Bytes, ChainSequence, Code, Digest, ObjectRef, PublicKey, Refusal, Round, RunId,
    Tokens, UnixMillis, WorkerId,
};

/// The phase that a run is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunPhase {
    /// It waits for its minimum of workers.
    Waiting,
    /// Units are on offer or held.
    Training,
    /// All units of the round are in; the outer step is being made.
    Merging,
    /// All rounds are closed; the last evaluation or snapshot is outstanding.
    Finishing,
    /// It gives out no work, for a reason that another try does not mend; a restarted coordinator
    /// tries again.
    Halted,
    /// It is over.
    Complete,
}

/// The coordinator that leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CoordinatorView {
    /// Its release.
    pub release: String,
    /// The layers of protection that it relaxed.
    pub posture: Posture,
    /// Its clock.
    pub now: UnixMillis,
    /// The key with which it signs leases and commands; none if it signs none, or is of a release
    /// that does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest_key: Option<PublicKey>,
    /// How far the log of all events covers its ledger; none if it follows no log, or is of a
    /// release that does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<LedgerCover>,
}

/// How far heads of the log of all events, which the coordinator has verified, cover its ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LedgerCover {
    /// Events of the ledger.
    pub events: u64,
    /// Those at its end that no verified head covers.
    pub uncovered: u64,
    /// The time since which the oldest of these waits, by the coordinator's process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<UnixMillis>,
    /// The events of the log under the newest head that was verified; none if there was no head
    /// yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<u64>,
    /// What is wrong: events wait for too long, or the log contradicts what was seen before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<Code>,
}

/// A summary of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunView {
    /// Its name.
    pub run: RunId,
    /// The phase it is in.
    pub phase: RunPhase,
    /// The reason why it is halted; present only in phase [`RunPhase::Halted`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub halted: Option<Refusal>,
    /// A problem that holds the run up at present, and passes by itself or is tried again: missing
    /// workers, a merge or save that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<Refusal>,
    /// What operators keep the run from. Left out of the message while there is nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub holds: Vec<HoldView>,
    /// The privacy that a private run has spent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub privacy: Option<PrivacyView>,
    /// The newest contributions that seals left out of their merges, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<LeftOutView>,
    /// The open round; equal to `rounds` when all are closed.
    pub round: Round,
    /// Rounds of the run.
    pub rounds: u64,
    /// Training units of the open round that are in.
    pub units_done: u32,
    /// Training units of a round.
    pub units: u32,
    /// Members.
    pub workers: u32,
    /// The minimum of members.
    pub workers_min: u32,
    /// Leases held.
    pub leases: u32,
    /// Tokens by their fate.
    pub tokens: Vec<(Fate, Tokens)>,
    /// Speed of all members together, by their heartbeats.
    pub tokens_per_second: f64,
    /// Mean over the last closed round's contributions, nats a token.
    pub train_loss: Option<f64>,
    /// The newest held-out loss, in nats a token, with the round of its snapshot.
    pub held_out_loss: Option<(Round, f64)>,
    /// Bytes of the accepted contributions since the run began, by the ledger.
    pub bytes_up: Bytes,
    /// Downloaded by workers since the coordinator was started, by their heartbeats.
    pub bytes_down: Bytes,
    /// The newest full snapshot.
    pub snapshot: Option<(Round, ObjectRef)>,
    /// Created at.
    pub created_at: UnixMillis,
    /// Completed at.
    pub completed_at: Option<UnixMillis>,
}

/// A contribution that was left out of its merge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeftOutView {
    /// Its unit.
    pub unit: UnitId,
    /// Its maker.
    pub worker: WorkerId,
    /// The reason.
    pub code: Code,
}

/// The privacy that a private run has spent.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrivacyView {
    /// The budget.
    pub epsilon: f64,
    /// The part of the budget that is spent, at the run's `delta`.
    pub epsilon_spent: f64,
    /// The run's `delta`.
    pub delta: f64,
    /// Contributions of one protected part that the budget lasts for.
    pub disclosures_max: u64,
    /// Contributions that are spent.
    pub disclosures: u64,
    /// True once the budget has ended the run's rounds.
    pub over: bool,
}

/// A hold that stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HoldView {
    /// The hold.
    pub hold: Hold,
    /// The operator who placed it.
    pub operator: PublicKey,
    /// The operator's reason.
    pub reason: Reason,
    /// The time at which it was placed.
    pub since: UnixMillis,
}

/// A run in full.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunDetail {
    /// The summary of the run.
    pub view: RunView,
    /// Its settings.
    pub spec: RunSpec,
    /// Their digest.
    pub spec_digest: Digest,
}

/// A worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerView {
    /// Its key.
    pub worker: WorkerId,
    /// The tenant it belongs to; none for one in quarantine that never joined.
    pub account: Option<AccountId>,
    /// The run it joined.
    pub run: RunId,
    /// True when it is a member now.
    pub member: bool,
    /// True while an operator shuts it out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub quarantined: bool,
    /// The device that it computes on.
    pub device: String,
    /// Its release.
    pub release: String,
    /// The layers of protection that it relaxed.
    pub posture: Posture,
    /// The phase that it is in, by its last heartbeat.
    pub phase: Option<Phase>,
    /// The lease it holds, by the ledger.
    pub lease: Option<LeaseRef>,
    /// Speed by its last heartbeat.
    pub tokens_per_second: f64,
    /// Contributions accepted.
    pub accepted: u64,
    /// Results refused.
    pub rejected: u64,
    /// Time of its last sign of life; for one that never joined, of its quarantine.
    pub heard_at: UnixMillis,
}

/// A lease.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaseView {
    /// The run.
    pub run: RunId,
    /// The grant.
    pub lease: LeaseRef,
    /// Its holder.
    pub worker: WorkerId,
    /// Its end unless it is renewed.
    pub expires_at: UnixMillis,
    /// Steps done by the last renewal.
    pub steps_done: crate::Steps,
}

/// A round.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoundView {
    /// The round.
    pub round: Round,
    /// Opened at.
    pub opened_at: UnixMillis,
    /// Closed at.
    pub closed_at: Option<UnixMillis>,
    /// Units that are in.
    pub done: Vec<UnitId>,
    /// Tokens merged.
    pub tokens: Tokens,
    /// Mean training loss over its contributions, nats a token.
    pub train_loss: Option<f64>,
    /// Held-out loss of the snapshot it started from, nats a token.
    pub held_out_loss: Option<f64>,
    /// Euclidean norm of the merged contribution.
    pub norm: Option<f64>,
    /// True if a restore has undone it: the present weights do not descend from it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub undone: bool,
}

/// A full snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotView {
    /// The round that starts from it.
    pub round: Round,
    /// Its manifest.
    pub manifest: ObjectRef,
    /// Saved at, or restored at.
    pub saved_at: UnixMillis,
    /// The signed statement of its provenance; none for a snapshot of an earlier release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statement: Option<ObjectRef>,
    /// The pointers that lead to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pointers: Vec<PointerName>,
    /// True if a restore has undone it: the present weights do not descend from it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub undone: bool,
    /// The event by which a collection gave its objects up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub given_up: Option<ChainSequence>,
    /// The number of workers that are in quarantine now and have contributions in it; none if there
    /// are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantined: Option<NonZeroU32>,
}
