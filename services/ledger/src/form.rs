//! The bytes of a checkpoint. A state has a form of its own there, so that a change of the state's
//! types cannot change the bytes unnoticed: each type of this crate is taken apart field by field,
//! and a new field does not compile until it is written here. Types of messages keep their wire
//! form, which golden files fix.
//!
//! The same state gives the same bytes on every machine: maps are ordered, numbers have one form,
//! nothing is compressed (another release of a compressor would give other bytes). Whenever the
//! bytes of a state change, or the effect of an event on a state, [`FORMAT`] becomes the next
//! number: otherwise an auditor that folds the chain would call a good checkpoint false.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use schemas::checkpoint::{CHECKPOINT_BYTES_MAX, Checkpoint};
use schemas::contribution::{Evaluation, Fate};
use schemas::lease::{LeaseRef, UnitId, Weights};
use schemas::member::{Posture, Session};
use schemas::run::{RunSpec, TrainerKind};
use schemas::snapshot::{MergeInput, MergeRecord};
use schemas::{
    AccountId, Bytes, Code, Digest, Epoch, Fragment, ObjectRef, PublicKey, Round, RunId, SyncId,
    Tokens, UnitIndex, UnixMillis, V, WorkerId,
};
use serde::{Deserialize, Serialize};

use crate::state::{
    Accepted, Fates, Leader, Member, OpenSync, RefusedResult, RoundRecord, Run, SnapshotRecord,
    Standing, State, Unit,
};

/// The number of this form.
pub const FORMAT: u8 = 1;
/// Deepest nesting: state, runs, run, open syncs, open sync, inputs, input, chunks, chunk, and room.
const DEPTH_MAX: usize = 32;

/// The reason why bytes are not a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// It is longer than any checkpoint; nothing was parsed.
    #[error("{0} bytes, at most {CHECKPOINT_BYTES_MAX} are read")]
    TooLong(usize),
    /// It is not in this form.
    #[error("not a state in form {FORMAT}: {0}")]
    Malformed(#[from] rmp_serde::decode::Error),
    /// More bytes follow the state.
    #[error("{0} bytes follow the state")]
    Trailing(usize),
    /// An invariant of the state does not hold.
    #[error("the state contradicts itself: {0}")]
    Contradiction(String),
}

impl State {
    /// The bytes of a checkpoint of this state.
    pub fn to_checkpoint(&self) -> Vec<u8> {
        let bytes = rmp_serde::to_vec_named(&StateForm::of(self));
        bytes.expect("a form holds no map with keys that are no texts")
    }

    /// The state when the checkpoint was taken; the next event is the one after it.
    ///
    /// # Errors
    /// The bytes are not in this form, or the state is one that no ledger leads to.
    pub fn from_checkpoint(bytes: &[u8]) -> Result<Self, CheckpointError> {
        if bytes.len() as u64 > CHECKPOINT_BYTES_MAX.get() {
            return Err(CheckpointError::TooLong(bytes.len()));
        }
        let mut reader = rmp_serde::Deserializer::new(bytes);
        reader.set_max_depth(DEPTH_MAX);
        let form = StateForm::deserialize(&mut reader)?;
        match reader.get_ref().len() {
            0 => {}
            extra => return Err(CheckpointError::Trailing(extra)),
        }
        let mut state = form.state();
        state.check().map_err(CheckpointError::Contradiction)?;
        state.take_checkpoint();
        Ok(state)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StateForm<'a> {
    v: V<FORMAT>,
    events: u64,
    time: UnixMillis,
    leading: bool,
    leader: Option<LeaderForm<'a>>,
    denied: u64,
    saved: Cow<'a, [Checkpoint]>,
    runs: Vec<(Cow<'a, RunId>, RunForm<'a>)>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LeaderForm<'a> {
    release: Cow<'a, str>,
    posture: Cow<'a, Posture>,
    since: UnixMillis,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RunForm<'a> {
    spec: Cow<'a, RunSpec>,
    operator: Cow<'a, PublicKey>,
    created_at: UnixMillis,
    completed_at: Option<UnixMillis>,
    members: Vec<(Cow<'a, WorkerId>, MemberForm<'a>)>,
    rounds: Vec<RoundForm>,
    open: Vec<(SyncId, OpenForm<'a>)>,
    sealed: Cow<'a, [SyncId]>,
    seals: bool,
    units: Vec<(UnitId, UnitForm<'a>)>,
    accepted: Vec<(UnitId, AcceptedForm)>,
    weights: Vec<((Fragment, Round), Cow<'a, Weights>)>,
    merges: Cow<'a, [MergeRecord]>,
    snapshots: Vec<SnapshotForm>,
    evaluations: Vec<(Round, Cow<'a, Evaluation>)>,
    fates: FatesForm,
    uploaded: Bytes,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MemberForm<'a> {
    account: Cow<'a, AccountId>,
    audit_key: Cow<'a, PublicKey>,
    trainers: Cow<'a, [TrainerKind]>,
    device: Cow<'a, str>,
    release: Cow<'a, str>,
    posture: Cow<'a, Posture>,
    session: Session,
    fenced: Option<LeaseRef>,
    present: bool,
    removed: bool,
    since: UnixMillis,
    lease: Option<LeaseRef>,
    accepted: u64,
    rejected: u64,
    /// Lease, code and detail of the last refused result.
    refused: Option<(LeaseRef, Code, Cow<'a, str>)>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum OpenForm<'a> {
    Collecting(InputsForm<'a>),
    Sealing {
        set: Cow<'a, [MergeInput]>,
        rest: InputsForm<'a>,
    },
    Sealed(Cow<'a, [MergeInput]>),
}

/// Inputs by unit; each names its unit itself.
type InputsForm<'a> = Vec<Cow<'a, MergeInput>>;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct UnitForm<'a> {
    epoch: Epoch,
    base: Round,
    standing: StandingForm<'a>,
    failed_by: Option<Cow<'a, WorkerId>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StandingForm<'a> {
    Open,
    Held(Cow<'a, WorkerId>, UnixMillis),
    Done,
}

/// A run has thousands of these, so their fields have no names: epoch, statement, fate.
type AcceptedForm = (Epoch, Digest, Fate);
/// Opened at, closed at, tokens, sum of the loss, norm; without names for the same reason.
type RoundForm = (UnixMillis, Option<UnixMillis>, Tokens, f64, Option<f64>);
/// Round, manifest, saved at.
type SnapshotForm = (Round, ObjectRef, UnixMillis);
/// Issued, merged, late, rejected, abandoned.
type FatesForm = (Tokens, Tokens, Tokens, Tokens, Tokens);

impl<'a> StateForm<'a> {
    fn of(state: &'a State) -> Self {
        let State {
            leading,
            leader,
            runs,
            denied,
            time,
            events,
            saved,
            taken: _,
            any_rule: _,
        } = state;
        let leader = leader.as_ref().map(|leader| {
            let Leader {
                release,
                posture,
                since,
            } = leader;
            LeaderForm {
                release: Cow::Borrowed(release),
                posture: Cow::Borrowed(posture),
                since: *since,
            }
        });
        let runs = runs.iter();
        Self {
            v: V,
            events: *events,
            time: *time,
            leading: *leading,
            leader,
            denied: *denied,
            saved: Cow::Borrowed(saved),
            runs: runs
                .map(|(name, run)| (Cow::Borrowed(name), RunForm::of(run)))
                .collect(),
        }
    }

    fn state(self) -> State {
        let leader = self.leader.map(|leader| Leader {
            release: leader.release.into_owned(),
            posture: leader.posture.into_owned(),
            since: leader.since,
        });
        let runs = self.runs.into_iter();
        State {
            leading: self.leading,
            leader,
            runs: runs
                .map(|(name, run)| (name.into_owned(), Arc::new(run.run())))
                .collect(),
            denied: self.denied,
            time: self.time,
            events: self.events,
            saved: self.saved.into_owned(),
            taken: None,
            any_rule: false,
        }
    }
}

impl<'a> RunForm<'a> {
    fn of(run: &'a Run) -> Self {
        let Run {
            spec,
            spec_digest: _,
            operator,
            created_at,
            completed_at,
            members,
            rounds,
            open,
            sealed,
            seals,
            units,
            accepted,
            weights,
            merges,
            snapshots,
            evaluations,
            tokens,
            uploaded,
            any_rule: _,
        } = run;
        Self {
            spec: Cow::Borrowed(spec),
            operator: Cow::Borrowed(operator),
            created_at: *created_at,
            completed_at: *completed_at,
            members: members
                .iter()
                .map(|(worker, member)| (Cow::Borrowed(worker), MemberForm::of(member)))
                .collect(),
            rounds: rounds.iter().map(round_form).collect(),
            open: open
                .iter()
                .map(|(sync, open)| (*sync, OpenForm::of(open)))
                .collect(),
            sealed: Cow::Borrowed(sealed),
            seals: *seals,
            units: units
                .iter()
                .map(|(unit, state)| (*unit, UnitForm::of(state)))
                .collect(),
            accepted: accepted
                .iter()
                .map(|(unit, accepted)| (*unit, accepted_form(accepted)))
                .collect(),
            weights: weights
                .iter()
                .map(|(version, weights)| (*version, Cow::Borrowed(weights)))
                .collect(),
            merges: Cow::Borrowed(merges),
            snapshots: snapshots.iter().map(snapshot_form).collect(),
            evaluations: evaluations
                .iter()
                .map(|(round, evaluation)| (*round, Cow::Borrowed(evaluation)))
                .collect(),
            fates: fates_form(tokens),
            uploaded: *uploaded,
        }
    }

    fn run(self) -> Run {
        let spec = self.spec.into_owned();
        let members = self.members.into_iter();
        let rounds = self.rounds.into_iter();
        let snapshots = self.snapshots.into_iter();
        let (issued, merged, late, rejected, abandoned) = self.fates;
        Run {
            spec_digest: spec.to_object().1,
            spec,
            operator: self.operator.into_owned(),
            created_at: self.created_at,
            completed_at: self.completed_at,
            members: members
                .map(|(worker, member)| (worker.into_owned(), member.member()))
                .collect(),
            rounds: rounds.map(round).collect(),
            open: self
                .open
                .into_iter()
                .map(|(sync, open)| (sync, open.open()))
                .collect(),
            sealed: self.sealed.into_owned(),
            seals: self.seals,
            units: self
                .units
                .into_iter()
                .map(|(unit, state)| (unit, state.unit()))
                .collect(),
            accepted: self
                .accepted
                .into_iter()
                .map(|(unit, form)| (unit, accepted(form)))
                .collect(),
            weights: owned(self.weights),
            merges: self.merges.into_owned(),
            snapshots: snapshots.map(snapshot).collect(),
            evaluations: owned(self.evaluations),
            tokens: Fates {
                issued,
                merged,
                late,
                rejected,
                abandoned,
            },
            uploaded: self.uploaded,
            any_rule: false,
        }
    }
}

fn owned<K: Ord, V: Clone>(pairs: Vec<(K, Cow<'_, V>)>) -> BTreeMap<K, V> {
    let pairs = pairs.into_iter();
    pairs
        .map(|(key, value)| (key, value.into_owned()))
        .collect()
}

impl<'a> MemberForm<'a> {
    fn of(member: &'a Member) -> Self {
        let Member {
            account,
            audit_key,
            trainers,
            device,
            release,
            posture,
            session,
            fenced,
            present,
            removed,
            since,
            lease,
            accepted,
            rejected,
            refused,
        } = member;
        let refused = refused.as_ref();
        Self {
            account: Cow::Borrowed(account),
            audit_key: Cow::Borrowed(audit_key),
            trainers: Cow::Borrowed(trainers),
            device: Cow::Borrowed(device),
            release: Cow::Borrowed(release),
            posture: Cow::Borrowed(posture),
            session: *session,
            fenced: *fenced,
            present: *present,
            removed: *removed,
            since: *since,
            lease: *lease,
            accepted: *accepted,
            rejected: *rejected,
            refused: refused.map(
                |RefusedResult {
                     lease,
                     code,
                     detail,
                 }| (*lease, *code, Cow::Borrowed(&**detail)),
            ),
        }
    }

    fn member(self) -> Member {
        Member {
            account: self.account.into_owned(),
            audit_key: self.audit_key.into_owned(),
            trainers: self.trainers.into_owned(),
            device: self.device.into_owned(),
            release: self.release.into_owned(),
            posture: self.posture.into_owned(),
            session: self.session,
            fenced: self.fenced,
            present: self.present,
            removed: self.removed,
            since: self.since,
            lease: self.lease,
            accepted: self.accepted,
            rejected: self.rejected,
            refused: self.refused.map(|(lease, code, detail)| RefusedResult {
                lease,
                code,
                detail: detail.into_owned(),
            }),
        }
    }
}

impl<'a> OpenForm<'a> {
    fn of(open: &'a OpenSync) -> Self {
        match open {
            OpenSync::Collecting(inputs) => Self::Collecting(inputs_form(inputs)),
            OpenSync::Sealing { set, rest } => Self::Sealing {
                set: Cow::Borrowed(set),
                rest: inputs_form(rest),
            },
            OpenSync::Sealed(set) => Self::Sealed(Cow::Borrowed(set)),
        }
    }

    fn open(self) -> OpenSync {
        match self {
            Self::Collecting(inputs) => OpenSync::Collecting(by_unit(inputs)),
            Self::Sealing { set, rest } => OpenSync::Sealing {
                set: set.into_owned(),
                rest: by_unit(rest),
            },
            Self::Sealed(set) => OpenSync::Sealed(set.into_owned()),
        }
    }
}

fn inputs_form(inputs: &BTreeMap<UnitIndex, MergeInput>) -> InputsForm<'_> {
    inputs.values().map(Cow::Borrowed).collect()
}

fn by_unit(inputs: InputsForm<'_>) -> BTreeMap<UnitIndex, MergeInput> {
    let inputs = inputs.into_iter().map(Cow::into_owned);
    inputs
        .map(|input| (input.lease.unit.index, input))
        .collect()
}

impl<'a> UnitForm<'a> {
    fn of(unit: &'a Unit) -> Self {
        let Unit {
            epoch,
            base,
            standing,
            failed_by,
        } = unit;
        Self {
            epoch: *epoch,
            base: *base,
            standing: match standing {
                Standing::Open => StandingForm::Open,
                Standing::Held { worker, since } => {
                    StandingForm::Held(Cow::Borrowed(worker), *since)
                }
                Standing::Done => StandingForm::Done,
            },
            failed_by: failed_by.as_ref().map(Cow::Borrowed),
        }
    }

    fn unit(self) -> Unit {
        Unit {
            epoch: self.epoch,
            base: self.base,
            standing: match self.standing {
                StandingForm::Open => Standing::Open,
                StandingForm::Held(worker, since) => Standing::Held {
                    worker: worker.into_owned(),
                    since,
                },
                StandingForm::Done => Standing::Done,
            },
            failed_by: self.failed_by.map(Cow::into_owned),
        }
    }
}

fn accepted_form(accepted: &Accepted) -> AcceptedForm {
    let Accepted {
        epoch,
        statement,
        fate,
    } = accepted;
    (*epoch, *statement, *fate)
}

fn accepted((epoch, statement, fate): AcceptedForm) -> Accepted {
    Accepted {
        epoch,
        statement,
        fate,
    }
}

fn round_form(record: &RoundRecord) -> RoundForm {
    let RoundRecord {
        opened_at,
        closed_at,
        tokens,
        loss_sum,
        norm,
    } = record;
    (*opened_at, *closed_at, *tokens, *loss_sum, *norm)
}

fn round((opened_at, closed_at, tokens, loss_sum, norm): RoundForm) -> RoundRecord {
    RoundRecord {
        opened_at,
        closed_at,
        tokens,
        loss_sum,
        norm,
    }
}

fn snapshot_form(record: &SnapshotRecord) -> SnapshotForm {
    let SnapshotRecord {
        round,
        manifest,
        saved_at,
    } = record;
    (*round, *manifest, *saved_at)
}

fn snapshot((round, manifest, saved_at): SnapshotForm) -> SnapshotRecord {
    SnapshotRecord {
        round,
        manifest,
        saved_at,
    }
}

fn fates_form(fates: &Fates) -> FatesForm {
    let Fates {
        issued,
        merged,
        late,
        rejected,
        abandoned,
    } = fates;
    (*issued, *merged, *late, *rejected, *abandoned)
}
