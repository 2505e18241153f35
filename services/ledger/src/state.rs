//! The durable state: the fold of the ledger, and nothing that the ledger does not hold.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemas::checkpoint::Checkpoint;
use schemas::contribution::{Evaluation, Fate};
use schemas::hold::{Hold, Reason};
use schemas::lease::{LeaseRef, UnitId, UnitKind, Weights};
use schemas::member::{Posture, Session};
use schemas::promotion::PointerName;
use schemas::quarantine::MergedRounds;
use schemas::run::{RunSpec, TrainerKind};
use schemas::snapshot::{MergeInput, MergeRecord};
use schemas::view::LeftOutView;
use schemas::{
    AccountId, Bytes, Code, Digest, Epoch, Fragment, ObjectRef, PublicKey, Round, RunId, Seat,
    Steps, SyncId, TenantName, Tokens, UnitIndex, UnixMillis, WorkerId,
};
use serde::{Serialize, Serializer};

use crate::cohorts::CohortRecord;
use crate::quarantine::QuarantineRecord;
use crate::screening::Measured;
use crate::spending::Spending;
use crate::tenants::{TenantRecord, is_zero};

/// Closed rounds for which the digests of accepted statements are kept, so that a repeated submit
/// gets the same answer. A worker repeats a request for minutes at most; a round lasts seconds at
/// least.
pub(crate) const ROUNDS_REMEMBERED: u64 = 16;

/// The coordinator's durable state: the result of [`State::apply`] on the events so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct State {
    /// True if a coordinator took the lead and has not given it up in order.
    pub(crate) leading: bool,
    /// The release and posture of the last leader.
    pub(crate) leader: Option<Leader>,
    /// Every run, including those that are over. A state that is kept for a checkpoint shares them
    /// until an event changes them.
    #[serde(serialize_with = "shared")]
    pub(crate) runs: BTreeMap<RunId, Arc<Run>>,
    /// The tenants beside the domain's own, also those that ended.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) tenants: BTreeMap<TenantName, TenantRecord>,
    /// The revoked keys, each with the time up to which its tokens are void, until it is issued
    /// anew.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) revoked: BTreeMap<PublicKey, UnixMillis>,
    /// Requests that were refused, counting those too many to record one by one.
    pub(crate) denied: u64,
    /// Time of the last event.
    pub(crate) time: UnixMillis,
    /// Events folded so far.
    pub(crate) events: u64,
    /// The newest checkpoints that were saved, oldest first.
    pub(crate) saved: Vec<Checkpoint>,
    /// The state of the last checkpoint that was taken, until that one is saved.
    #[serde(skip)]
    pub(crate) taken: Option<Arc<State>>,
    /// True if runs need not keep the limits of their closing rules ([`State::under_any_rule`]).
    #[serde(skip)]
    pub(crate) any_rule: bool,
}

/// A coordinator that took the lead.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Leader {
    pub(crate) release: String,
    pub(crate) posture: Posture,
    pub(crate) since: UnixMillis,
}

/// One run. Its fields may be read: a [`State`] gives out shared references only, so only an event
/// changes a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Run {
    /// Its settings.
    pub spec: RunSpec,
    /// The digest of its settings.
    pub spec_digest: Digest,
    /// The operator who created it.
    pub operator: PublicKey,
    /// The account of its tenant, which all its workers are of; none for a run of the domain's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountId>,
    /// The time of its creation.
    pub created_at: UnixMillis,
    /// The time of its completion; none while it is open.
    pub completed_at: Option<UnixMillis>,
    /// Every worker that ever joined.
    pub members: BTreeMap<WorkerId, Member>,
    /// Every round that was opened, by number.
    pub rounds: Vec<RoundRecord>,
    /// Sets that are not merged yet: one entry for each fragment of a round that is open.
    #[serde(serialize_with = "pairs")]
    pub open: BTreeMap<SyncId, OpenSync>,
    /// Sealed sets that are not merged yet, in the order of their seals, in which they will be
    /// merged.
    pub sealed: Vec<SyncId>,
    /// True after the first seal. A ledger of an earlier release names no sets.
    pub seals: bool,
    /// Training units of open rounds, units of late holders, and evaluations without a result.
    #[serde(serialize_with = "pairs")]
    pub units: BTreeMap<UnitId, Unit>,
    /// The newest contributions that seals left out of their merges, oldest first.
    pub left_out: Vec<LeftOutView>,
    /// Digests of the statements accepted in the last `ROUNDS_REMEMBERED` rounds.
    #[serde(serialize_with = "pairs")]
    pub accepted: BTreeMap<UnitId, Accepted>,
    /// Copies of the global weights that are still read, by fragment and version: the newest, and
    /// those that unfinished units start from.
    #[serde(serialize_with = "pairs")]
    pub weights: BTreeMap<(Fragment, Round), Weights>,
    /// Merges since the newest full snapshot, oldest first.
    pub merges: Vec<MergeRecord>,
    /// Full snapshots, oldest first. A restore adds the restored one again, under the version that
    /// its weights have from then on.
    pub snapshots: Vec<SnapshotRecord>,
    /// The signed statements about full snapshots, by round. Snapshots of an earlier release have
    /// none.
    #[serde(serialize_with = "pairs")]
    pub statements: BTreeMap<Round, ObjectRef>,
    /// The pointers that operators moved, each with the snapshot to which it leads now.
    pub pointers: BTreeMap<PointerName, PointerRecord>,
    /// Held-out losses by the snapshot's round.
    pub evaluations: BTreeMap<Round, Evaluation>,
    /// The fates of issued tokens.
    pub tokens: Fates,
    /// Bytes of accepted contributions.
    pub uploaded: Bytes,
    /// True once the run's tenant was ended before the run was complete: it stays frozen.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub tenant_ended: bool,
    /// Objects of accepted contributions, in a tenant's run; they are counted for its quota alone.
    #[serde(skip_serializing_if = "is_zero")]
    pub objects: u64,
    /// Contributions that later ones are compared with, in a run that compares: those to open
    /// rounds and to the last one that was closed, and some older ones.
    #[serde(serialize_with = "pairs")]
    pub measured: BTreeMap<UnitId, Measured>,
    /// The privacy that a private run has spent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spending: Option<Spending>,
    /// Disclosures that the run's budget lasts for; 0 in a run that is not private.
    #[serde(skip)]
    pub disclosures_max: u64,
    /// The cohorts of open rounds, in a run with secure aggregation.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub cohorts: BTreeMap<Round, CohortRecord>,
    /// Everything that an operator keeps the run from doing.
    pub holds: BTreeMap<Hold, HoldRecord>,
    /// Workers that operators shut out. They need not have joined.
    pub quarantined: BTreeMap<WorkerId, QuarantineRecord>,
    /// Restores, oldest first.
    pub restores: Vec<RestoreRecord>,
    /// Collections of old objects, oldest first.
    pub given_up: Vec<crate::given_up::GivenUp>,
    /// True if the run need not keep the limits of its closing rule.
    #[serde(skip)]
    pub(crate) any_rule: bool,
}

/// A hold that stands.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HoldRecord {
    /// The operator who placed it.
    pub operator: PublicKey,
    /// The operator's reason.
    pub reason: Reason,
    /// The time at which it was placed.
    pub since: UnixMillis,
}

/// A pointer to a full snapshot.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PointerRecord {
    /// The round that starts from the snapshot.
    pub round: Round,
    /// The digest of the snapshot's manifest.
    pub manifest: Digest,
    /// The operator who moved the pointer there.
    pub operator: PublicKey,
    /// The operator's reason.
    pub reason: Reason,
    /// The time at which it was moved.
    pub since: UnixMillis,
}

/// A restore of a full snapshot.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RestoreRecord {
    /// The round that first started from the snapshot.
    pub snapshot: Round,
    /// Its manifest.
    pub manifest: ObjectRef,
    /// The version that its weights have since the restore. Rounds from `snapshot` on that came
    /// before this version are undone, where no later restore leads back to one of them.
    pub version: Round,
    /// The operator who ordered it.
    pub operator: PublicKey,
    /// The operator's reason.
    pub reason: Reason,
    /// The time of the order.
    pub since: UnixMillis,
    /// Workers with contributions in rounds that were merged between the restore before and this
    /// one.
    pub merged: BTreeMap<WorkerId, MergedRounds>,
}

/// One worker of a run, present or past.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Member {
    /// The account it joined from.
    pub account: AccountId,
    /// The key that signs its results and events.
    pub audit_key: PublicKey,
    /// Trainers it has.
    pub trainers: Vec<TrainerKind>,
    /// The device it trains on, in its own words.
    pub device: String,
    /// Its release.
    pub release: String,
    /// The layers of protection that it relaxed.
    pub posture: Posture,
    /// Its seat in a group; none if it works alone. It never changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seat: Option<Seat>,
    /// The key that it had before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<WorkerId>,
    /// The process that joined last: it is the worker.
    pub session: Session,
    /// The lease that an older process held when it was replaced.
    pub fenced: Option<LeaseRef>,
    /// True while it is a member.
    pub present: bool,
    /// True if it was removed for good.
    pub removed: bool,
    /// The time at which it last joined or left.
    pub since: UnixMillis,
    /// The lease it holds. A worker that left keeps it while its result is being checked.
    pub lease: Option<LeaseRef>,
    /// Results accepted.
    pub accepted: u64,
    /// Results refused: strikes.
    pub rejected: u64,
    /// Its last refused result, which is refused again if it is handed in again.
    pub refused: Option<RefusedResult>,
    /// The merged rounds since the last restore that its contributions are part of.
    pub merged: Option<MergedRounds>,
}

/// A result that was refused.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RefusedResult {
    /// Its lease, which ended with the refusal; no other result under it was accepted.
    pub lease: LeaseRef,
    /// The code of the reason.
    pub code: Code,
    /// The reason in words.
    pub detail: String,
}

/// A unit that is on offer, held, or done in a round that is still open.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Unit {
    /// The last grant; 0 before the first.
    pub epoch: Epoch,
    /// The version of the weights that it starts from.
    pub base: Round,
    /// The state that it is in.
    pub standing: Standing,
    /// The worker that held it last without success.
    pub failed_by: Option<WorkerId>,
}

/// The state of a unit.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// Waiting for a holder.
    Open,
    /// A worker holds its lease.
    Held {
        /// Its holder.
        worker: WorkerId,
        /// The time of the grant.
        since: UnixMillis,
    },
    /// It has a result that counts.
    Done,
}

/// One fragment of an open round. Each input has the tokens that it was trained on as its weight,
/// until a seal gives it another.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OpenSync {
    /// Contributions count; these have arrived.
    Collecting(#[serde(serialize_with = "pairs")] BTreeMap<UnitIndex, MergeInput>),
    /// The first part of the set is named, and no further contribution counts.
    Sealing {
        /// The inputs that are named, with the weights that the seal gives.
        set: Vec<MergeInput>,
        /// The inputs that were accepted and are not named yet.
        #[serde(serialize_with = "pairs")]
        rest: BTreeMap<UnitIndex, MergeInput>,
    },
    /// This set is merged, each input with the weight that the seal gave it.
    Sealed(Vec<MergeInput>),
}

impl OpenSync {
    /// All accepted inputs.
    pub fn inputs(&self) -> impl Iterator<Item = &MergeInput> {
        let (set, rest) = match self {
            Self::Collecting(inputs) => (&[][..], Some(inputs)),
            Self::Sealing { set, rest } => (&set[..], Some(rest)),
            Self::Sealed(set) => (&set[..], None),
        };
        set.iter()
            .chain(rest.into_iter().flat_map(BTreeMap::values))
    }

    /// True when a contribution of this unit was accepted.
    pub(crate) fn holds(&self, unit: UnitIndex) -> bool {
        let (set, rest) = match self {
            Self::Collecting(inputs) => (&[][..], Some(inputs)),
            Self::Sealing { set, rest } => (&set[..], Some(rest)),
            Self::Sealed(set) => (&set[..], None),
        };
        rest.is_some_and(|rest| rest.contains_key(&unit))
            || set
                .binary_search_by_key(&unit, |input| input.lease.unit.index)
                .is_ok()
    }

    /// The inputs that a seal can still name, ascending by unit; none when all are named.
    pub fn unnamed(&self) -> Option<impl Iterator<Item = &MergeInput>> {
        match self {
            Self::Collecting(rest) | Self::Sealing { rest, .. } => Some(rest.values()),
            Self::Sealed(_) => None,
        }
    }

    /// True while a contribution may count.
    pub const fn collects(&self) -> bool {
        matches!(self, Self::Collecting(_))
    }
}

/// A result that was accepted.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Accepted {
    /// The epoch of its lease.
    pub epoch: Epoch,
    /// The digest of the signed statement.
    pub statement: Digest,
    /// The fate of its tokens.
    pub fate: Fate,
}

/// A round, open or closed.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RoundRecord {
    /// The time at which its units went on offer.
    pub opened_at: UnixMillis,
    /// The time at which it was merged; none while it is open.
    pub closed_at: Option<UnixMillis>,
    /// Tokens of its accepted contributions.
    pub tokens: Tokens,
    /// Loss times tokens over its accepted contributions.
    pub loss_sum: f64,
    /// The norm of the merged contribution.
    pub norm: Option<f64>,
}

/// A full snapshot that was saved.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SnapshotRecord {
    /// The round that starts from it.
    pub round: Round,
    /// Its manifest.
    pub manifest: ObjectRef,
    /// The time at which it was saved.
    pub saved_at: UnixMillis,
}

/// The fates of the tokens that were issued with leases of training units. Tokens of leases that
/// are held now are in flight.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Fates {
    /// Tokens that were issued with leases.
    pub issued: Tokens,
    /// Tokens in a contribution that counts.
    pub merged: Tokens,
    /// Tokens in a result that came after its round was sealed. There are none while rounds wait
    /// for all their units.
    pub late: Tokens,
    /// Tokens in a result that was refused.
    pub rejected: Tokens,
    /// Tokens of leases that ended without a result, and of contributions to a round that a restore
    /// ended before its merge.
    pub abandoned: Tokens,
}

impl State {
    /// An empty state in which runs need not keep the limits of their closing rules: several rounds
    /// may be open, and a part of the accepted inputs may be sealed, with any weights. It is for
    /// tests of the fold, which must support later rules; programs begin with [`State::default`].
    pub fn under_any_rule() -> Self {
        Self {
            any_rule: true,
            ..Self::default()
        }
    }

    /// Time of the last event; 0 before the first.
    pub fn time(&self) -> UnixMillis {
        self.time
    }

    /// Every run, by name.
    pub fn runs(&self) -> impl Iterator<Item = (&RunId, &Run)> {
        self.runs.iter().map(|(name, run)| (name, &**run))
    }

    /// One run.
    pub fn run(&self, run: &RunId) -> Option<&Run> {
        self.runs.get(run).map(|run| &**run)
    }
}

impl Run {
    /// True when it is over.
    pub fn is_complete(&self) -> bool {
        self.completed_at.is_some()
    }

    /// The rounds that are open, oldest first.
    pub fn open_rounds(&self) -> impl Iterator<Item = Round> {
        let mut last = None;
        let of_each = self.open.keys().map(|sync| sync.round);
        of_each.filter(move |round| last.replace(*round) != Some(*round))
    }

    /// The number of closed rounds.
    pub fn rounds_closed(&self) -> Round {
        Round((self.rounds.len() - self.open_rounds().count()) as u64)
    }

    /// The newest version of a fragment, which is the number of rounds merged into it.
    pub fn version(&self, fragment: Fragment) -> Round {
        let open = self.open.keys().filter(|sync| sync.fragment == fragment);
        Round((self.rounds.len() - open.count()) as u64)
    }

    /// The sealed set that is merged next into a fragment.
    pub fn next_merge(&self, fragment: Fragment) -> Option<(SyncId, &[MergeInput])> {
        let mut sealed = self.sealed.iter();
        let sync = *sealed.find(|sync| sync.fragment == fragment)?;
        match self.open.get(&sync)? {
            OpenSync::Sealed(inputs) => Some((sync, inputs)),
            OpenSync::Collecting(_) | OpenSync::Sealing { .. } => None,
        }
    }

    /// The weights that `unit` starts from, one entry a fragment.
    pub fn base(&self, unit: &UnitId) -> impl Iterator<Item = &Weights> {
        let version = self.units.get(unit).map(|found| found.base);
        let fragments = self.spec.fragments();
        fragments.filter_map(move |fragment| self.weights.get(&(fragment, version?)))
    }

    /// The holder of `unit` and its epoch; none when it is not held.
    pub fn holder(&self, unit: &UnitId) -> Option<(&WorkerId, Epoch)> {
        match self.units.get(unit) {
            Some(Unit {
                epoch,
                standing: Standing::Held { worker, .. },
                ..
            }) => Some((worker, *epoch)),
            _ => None,
        }
    }

    /// The leases held now.
    pub fn leases(&self) -> impl Iterator<Item = (LeaseRef, &WorkerId, UnixMillis)> {
        self.units
            .iter()
            .filter_map(|(unit, state)| match &state.standing {
                Standing::Held { worker, since } => Some((
                    LeaseRef {
                        unit: *unit,
                        epoch: state.epoch,
                    },
                    worker,
                    *since,
                )),
                Standing::Open | Standing::Done => None,
            })
    }

    /// Members present now.
    pub fn present(&self) -> u32 {
        self.members
            .values()
            .filter(|member| member.present)
            .count() as u32
    }

    /// Tokens in flight: those of the training leases held now.
    pub fn tokens_in_flight(&self) -> Tokens {
        let held = self
            .leases()
            .filter(|(lease, ..)| lease.unit.kind == UnitKind::Train)
            .count();
        Tokens(self.spec.unit_tokens().get().saturating_mul(held as u64))
    }

    /// The tokens that a grant of `unit` issues; none for an evaluation.
    pub fn unit_tokens(&self, unit: &UnitId) -> Tokens {
        match unit.kind {
            UnitKind::Train => self.spec.unit_tokens(),
            UnitKind::Evaluate => Tokens(0),
        }
    }

    /// The worker's entry while it is a member.
    pub fn member(&self, worker: &WorkerId) -> Option<&Member> {
        self.members.get(worker).filter(|member| member.present)
    }

    /// True when no round is left to close: all that were planned are closed, or the privacy budget
    /// has ended them.
    pub fn all_rounds_closed(&self) -> bool {
        self.ended_early()
            || self.progress(self.rounds_closed()) >= Round(self.spec.schedule.rounds)
    }

    /// True once the privacy budget has ended the run's rounds.
    pub fn ended_early(&self) -> bool {
        self.spending.as_ref().is_some_and(|spending| spending.over)
    }

    /// The versions of the weights, complete in all fragments, that no full snapshot holds.
    pub fn unsaved(&self) -> impl Iterator<Item = Round> + use<> {
        let (saved, newest) = (self.saved_version().get(), self.rounds_closed().get());
        (saved..newest).map(|before| Round(before + 1))
    }

    /// The version of the newest full snapshot; 0, that of the initial weights, before the first.
    pub(crate) fn saved_version(&self) -> Round {
        self.last_snapshot().map_or(Round(0), |last| last.round)
    }

    /// The newest full snapshot.
    pub fn last_snapshot(&self) -> Option<&SnapshotRecord> {
        self.snapshots.last()
    }

    /// Held-out loss of the snapshot that `round` starts from, nats a token.
    pub fn held_out_loss(&self, round: Round) -> Option<f64> {
        self.evaluations
            .get(&round)
            .map(|found| found.loss_sum / found.tokens.get().max(1) as f64)
    }

    /// The steps before the units of `round`, for the learning-rate schedule. Undone rounds do not
    /// count.
    pub fn steps_before(&self, round: Round) -> Steps {
        Steps(
            self.progress(round)
                .get()
                .saturating_mul(self.spec.schedule.inner_steps.get()),
        )
    }
}

/// Writes a map whose keys are not texts as a list of pairs, so that it can be JSON.
fn pairs<K: Serialize, V: Serialize, S: Serializer>(
    map: &BTreeMap<K, V>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(map)
}

/// Writes the runs, shared or not.
fn shared<S: Serializer>(
    runs: &BTreeMap<RunId, Arc<Run>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(runs.iter().map(|(name, run)| (name, &**run)))
}
