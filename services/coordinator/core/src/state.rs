//! The durable state: the fold of the ledger, and nothing that the ledger does not hold.

use std::collections::BTreeMap;

use schemas::contribution::Evaluation;
use schemas::lease::{LeaseRef, UnitId, UnitKind, Weights};
use schemas::member::{Posture, Session};
use schemas::run::{RunSpec, TrainerKind};
use schemas::snapshot::{MergeInput, MergeRecord};
use schemas::{
    AccountId, Bytes, Digest, Epoch, ObjectRef, PublicKey, Round, RunId, Steps, Tokens, UnitIndex,
    UnixMillis, WorkerId,
};
use serde::{Serialize, Serializer};

/// How many closed rounds back the digests of accepted statements are kept, so that a repeated
/// submit is answered with what it came to. A worker repeats a request for minutes at most; a round
/// lasts seconds at least.
pub(crate) const ROUNDS_REMEMBERED: u64 = 16;

/// The coordinator's durable state: what [`State::apply`] made of the ledger so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct State {
    /// Whether a coordinator took the lead and did not give it up in order.
    pub(crate) leading: bool,
    /// The release and posture of the last that took it.
    pub(crate) leader: Option<Leader>,
    /// Every run, also those that are over.
    pub(crate) runs: BTreeMap<RunId, Run>,
    /// Requests that were refused, counting those too many to record one by one.
    pub(crate) denied: u64,
    /// Time of the last event.
    pub(crate) time: UnixMillis,
}

/// A coordinator that took the lead.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Leader {
    pub(crate) release: String,
    pub(crate) posture: Posture,
    pub(crate) since: UnixMillis,
}

/// One run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Run {
    pub(crate) spec: RunSpec,
    pub(crate) spec_digest: Digest,
    pub(crate) operator: PublicKey,
    pub(crate) created_at: UnixMillis,
    pub(crate) completed_at: Option<UnixMillis>,
    /// Everyone who ever joined.
    pub(crate) members: BTreeMap<WorkerId, Member>,
    /// By number; the last may be open.
    pub(crate) rounds: Vec<RoundRecord>,
    /// Training units of the open round, and evaluations that are not in.
    #[serde(serialize_with = "pairs")]
    pub(crate) units: BTreeMap<UnitId, Unit>,
    /// What the open round has to merge.
    pub(crate) inputs: BTreeMap<UnitIndex, MergeInput>,
    /// Digests of the statements accepted in the last [`ROUNDS_REMEMBERED`] rounds.
    #[serde(serialize_with = "pairs")]
    pub(crate) accepted: BTreeMap<UnitId, Accepted>,
    /// Copies of the global weights that are still read: the newest, and those of evaluations that
    /// are not in.
    pub(crate) weights: BTreeMap<Round, Weights>,
    /// Merges since the newest full snapshot, oldest first.
    pub(crate) merges: Vec<MergeRecord>,
    /// Full snapshots, oldest first.
    pub(crate) snapshots: Vec<SnapshotRecord>,
    /// Held-out losses by the snapshot's round.
    pub(crate) evaluations: BTreeMap<Round, Evaluation>,
    /// What became of issued tokens.
    pub(crate) tokens: Fates,
    /// Bytes of accepted contributions.
    pub(crate) uploaded: Bytes,
}

/// One worker of a run, present or past.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Member {
    pub(crate) account: AccountId,
    pub(crate) audit_key: PublicKey,
    pub(crate) trainers: Vec<TrainerKind>,
    pub(crate) device: String,
    pub(crate) release: String,
    pub(crate) posture: Posture,
    /// Which of its processes joined last: it is the worker.
    pub(crate) session: Session,
    /// The lease that an older process held when it was replaced.
    pub(crate) fenced: Option<LeaseRef>,
    /// Whether it is a member now.
    pub(crate) present: bool,
    /// Whether it was removed for good.
    pub(crate) removed: bool,
    /// When it last joined or left.
    pub(crate) since: UnixMillis,
    /// The lease it holds. A worker that left keeps it while its result is being checked.
    pub(crate) lease: Option<LeaseRef>,
    /// Results accepted.
    pub(crate) accepted: u64,
    /// Results refused: strikes.
    pub(crate) rejected: u64,
}

/// A unit that is on offer, held, or done in a round that is still open.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Unit {
    /// The last grant; 0 before the first.
    pub(crate) epoch: Epoch,
    pub(crate) standing: Standing,
    /// Who held it last without success.
    pub(crate) failed_by: Option<WorkerId>,
}

/// Where a unit stands.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Standing {
    /// Waiting for a holder.
    Open,
    /// Leased.
    Held {
        /// To whom.
        worker: WorkerId,
        /// Granted at.
        since: UnixMillis,
    },
    /// A result counts.
    Done,
}

/// A result that counts.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Accepted {
    pub(crate) epoch: Epoch,
    pub(crate) statement: Digest,
}

/// A round, open or closed.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct RoundRecord {
    pub(crate) opened_at: UnixMillis,
    pub(crate) closed_at: Option<UnixMillis>,
    /// Tokens of its accepted contributions.
    pub(crate) tokens: Tokens,
    /// Loss times tokens over its accepted contributions.
    pub(crate) loss_sum: f64,
    /// Of the merged contribution.
    pub(crate) norm: Option<f64>,
}

/// A full snapshot that stands.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct SnapshotRecord {
    pub(crate) round: Round,
    pub(crate) manifest: ObjectRef,
    pub(crate) saved_at: UnixMillis,
}

/// What became of the tokens that were issued with leases of training units. Those of the leases
/// held now are in flight.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Fates {
    /// Issued with leases.
    pub issued: Tokens,
    /// In a contribution that counts.
    pub merged: Tokens,
    /// In a result that came after its unit was complete. Such tokens were abandoned before, so
    /// this stays zero as long as a round waits for all its units.
    pub late: Tokens,
    /// In a result that was refused.
    pub rejected: Tokens,
    /// Of leases that ended without a result.
    pub abandoned: Tokens,
}

impl State {
    /// Time of the last event; 0 before the first.
    pub fn time(&self) -> UnixMillis {
        self.time
    }

    /// Every run, by name.
    pub fn runs(&self) -> impl Iterator<Item = (&RunId, &Run)> {
        self.runs.iter()
    }

    /// One run.
    pub fn run(&self, run: &RunId) -> Option<&Run> {
        self.runs.get(run)
    }

    /// Checks what must hold after every event: tokens issued equal the sum of their fates and
    /// those in flight, members and units agree on who holds what, at most one round is open.
    ///
    /// # Errors
    /// What does not hold, with names and values.
    pub fn check(&self) -> Result<(), String> {
        self.runs
            .iter()
            .try_for_each(|(name, run)| run.check().map_err(|what| format!("run {name}: {what}")))
    }
}

impl Run {
    /// Its settings.
    pub fn spec(&self) -> &RunSpec {
        &self.spec
    }

    /// The digest of its settings.
    pub fn spec_digest(&self) -> Digest {
        self.spec_digest
    }

    /// Whether it is over.
    pub fn is_complete(&self) -> bool {
        self.completed_at.is_some()
    }

    /// What became of issued tokens.
    pub fn tokens(&self) -> &Fates {
        &self.tokens
    }

    /// The round that is open; none before the first and after the last.
    pub fn open_round(&self) -> Option<Round> {
        let last = self.rounds.last()?;
        last.closed_at
            .is_none()
            .then(|| Round(self.rounds.len() as u64 - 1))
    }

    /// How many rounds are closed; also the round of the newest weights.
    pub fn rounds_closed(&self) -> Round {
        let open = u64::from(self.open_round().is_some());
        Round(self.rounds.len() as u64 - open)
    }

    /// Who holds `unit`, and under which epoch; none when it is not held.
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
    pub(crate) fn unit_tokens(&self, unit: &UnitId) -> Tokens {
        match unit.kind {
            UnitKind::Train => self.spec.unit_tokens(),
            UnitKind::Evaluate => Tokens(0),
        }
    }

    pub(crate) fn member(&self, worker: &WorkerId) -> Option<&Member> {
        self.members.get(worker).filter(|member| member.present)
    }

    /// Whether all training units of the open round are in.
    pub(crate) fn round_is_full(&self) -> bool {
        self.open_round().is_some()
            && self.inputs.len() as u64 == u64::from(self.spec.schedule.units)
    }

    pub(crate) fn all_rounds_closed(&self) -> bool {
        self.rounds_closed().get() >= self.spec.schedule.rounds
    }

    pub(crate) fn last_snapshot(&self) -> Option<&SnapshotRecord> {
        self.snapshots.last()
    }

    /// Mean training loss over a round's contributions so far, nats a token.
    pub(crate) fn train_loss(record: &RoundRecord) -> Option<f64> {
        (record.tokens.get() > 0).then(|| record.loss_sum / record.tokens.get() as f64)
    }

    pub(crate) fn held_out_loss(&self, round: Round) -> Option<f64> {
        self.evaluations
            .get(&round)
            .map(|found| found.loss_sum / found.tokens.get().max(1) as f64)
    }

    /// The steps before the units of `round`, for the learning-rate schedule.
    pub(crate) fn steps_before(&self, round: Round) -> Steps {
        Steps(
            round
                .get()
                .saturating_mul(self.spec.schedule.inner_steps.get()),
        )
    }

    pub(crate) fn check(&self) -> Result<(), String> {
        let fates = &self.tokens;
        let sum =
            fates.merged + fates.late + fates.rejected + fates.abandoned + self.tokens_in_flight();
        if sum != fates.issued {
            return Err(format!(
                "issued {} tokens, fates and flight are {sum}: {fates:?}",
                fates.issued
            ));
        }
        for (lease, worker, _) in self.leases() {
            if self.members.get(worker).and_then(|member| member.lease) != Some(lease) {
                return Err(format!(
                    "{lease} is held by {worker}, whose entry does not say so"
                ));
            }
        }
        let holding = self
            .members
            .values()
            .filter(|member| member.lease.is_some())
            .count();
        if holding != self.leases().count() {
            return Err(format!(
                "{holding} members hold {} leases",
                self.leases().count()
            ));
        }
        let open = self
            .rounds
            .iter()
            .filter(|round| round.closed_at.is_none())
            .count();
        if open > 1 || self.rounds.len() as u64 > self.spec.schedule.rounds {
            return Err(format!(
                "{open} of {} rounds are open, {} planned",
                self.rounds.len(),
                self.spec.schedule.rounds
            ));
        }
        let merged: u64 = self.rounds.iter().map(|round| round.tokens.get()).sum();
        if merged != fates.merged.get() {
            return Err(format!(
                "rounds merged {merged} tokens, fates say {}",
                fates.merged
            ));
        }
        if self.is_complete() && (open > 0 || !self.units.is_empty()) {
            return Err(format!(
                "complete with {open} open rounds and {} open units",
                self.units.len()
            ));
        }
        Ok(())
    }
}

/// A map whose keys are no texts, as a list of pairs, so that it can be written as JSON.
fn pairs<K: Serialize, V: Serialize, S: Serializer>(
    map: &BTreeMap<K, V>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(map)
}
