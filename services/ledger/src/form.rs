//! The bytes of a checkpoint. A state has a form of its own there, so that a change of the state's
//! types cannot change the bytes unnoticed: `forms!` takes each type of this crate apart field by
//! field, and a new field does not compile until it has a line there. Types of messages keep their
//! wire form, which golden files fix.
//!
//! The same state gives the same bytes on every machine: maps are ordered, numbers have one form,
//! nothing is compressed (another release of a compressor would give other bytes). Whenever the
//! bytes of a state change, or the effect of an event on a state, [`FORMAT`] becomes the next
//! number: otherwise an auditor that folds the chain would call a good checkpoint false.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use privacy::RoundDisclosures;
use schemas::checkpoint::{CHECKPOINT_BYTES_MAX, Checkpoint};
use schemas::contribution::{Evaluation, Fate};
use schemas::hold::{Hold, Reason};
use schemas::lease::{LeaseRef, UnitId, Weights};
use schemas::masking::{CohortMember, Unmasking};
use schemas::member::{Posture, Session};
use schemas::promotion::PointerName;
use schemas::quarantine::MergedRounds;
use schemas::run::{RunSpec, TrainerKind};
use schemas::snapshot::{MergeInput, MergeRecord};
use schemas::tenant::Quota;
use schemas::view::LeftOutView;
use schemas::{
    AccountId, Bytes, ChainSequence, Code, Digest, Epoch, Fragment, ObjectRef, PublicKey, Round,
    RunId, Seat, SyncId, TenantName, Tokens, UnitIndex, UnixMillis, V, WorkerId,
};
use serde::{Deserialize, Serialize};

use crate::cohorts::CohortRecord;
use crate::given_up::GivenUp;
use crate::quarantine::QuarantineRecord;
use crate::screening::Measured;
use crate::spending::Spending;
use crate::state::{
    Accepted, Fates, HoldRecord, Leader, Member, OpenSync, PointerRecord, RefusedResult,
    RestoreRecord, RoundRecord, Run, SnapshotRecord, Standing, State, Unit,
};
use crate::tenants::{TenantRecord, is_zero};

/// The number of this form.
pub const FORMAT: u8 = 2;
/// Deepest nesting: state, runs, run, open syncs, open sync, inputs, input, chunks, chunk, and
/// room.
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
        let mut state: State = form.back();
        state.check().map_err(CheckpointError::Contradiction)?;
        state.take_checkpoint();
        Ok(state)
    }
}

/// The form of a `T`.
trait Form<'a, T>: Sized {
    /// Makes the form of a value.
    fn of(value: &'a T) -> Self;
    /// Makes the value again.
    fn back(self) -> T;
}

/// Declares forms, a line for each field of the type, in the order of the bytes. After `adds` stand
/// fields that only the form has; after `leaves`, fields that are not written, and their values in
/// a state that comes from a checkpoint.
macro_rules! forms {
    ($(
        $form:ident of $type:ident {
            $($(#[$attribute:meta])* $field:ident: $shape:ty,)+
        }
        $(adds { $added:ident: $added_shape:ty = $added_value:expr })?
        $(leaves { $($left:ident = $value:expr),+ })?
    ;)+) => { $(
        #[derive(Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct $form<'a> {
            $($added: $added_shape,)?
            $($(#[$attribute])* $field: $shape,)+
        }

        impl<'a> Form<'a, $type> for $form<'a> {
            fn of(value: &'a $type) -> Self {
                let $type { $($field,)+ $($($left: _,)+)? } = value;
                Self { $($added: $added_value,)? $($field: Form::of($field),)+ }
            }

            fn back(self) -> $type {
                let Self { $($field,)+ $($added: _,)? } = self;
                $(let $field = $field.back();)+
                $type { $($($left: $value,)+)? $($field,)+ }
            }
        }
    )+ };
}

forms! {
    StateForm of State {
        events: u64,
        time: UnixMillis,
        leading: bool,
        leader: Option<LeaderForm<'a>>,
        denied: u64,
        saved: Cow<'a, [Checkpoint]>,
        // Left out while there are none: states from before there were tenants keep their bytes.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        tenants: Vec<(Cow<'a, TenantName>, TenantForm<'a>)>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        revoked: Vec<(Cow<'a, PublicKey>, UnixMillis)>,
        runs: Vec<(Cow<'a, RunId>, RunForm<'a>)>,
    }
    adds { v: V<FORMAT> = V }
    leaves { taken = None, any_rule = false };

    TenantForm of TenantRecord {
        account: Cow<'a, AccountId>,
        quota: Quota,
        operator: Cow<'a, PublicKey>,
        since: UnixMillis,
        ended: Option<UnixMillis>,
    };

    LeaderForm of Leader {
        release: Cow<'a, str>,
        posture: Cow<'a, Posture>,
        since: UnixMillis,
    };

    RunForm of Run {
        spec: Cow<'a, RunSpec>,
        operator: Cow<'a, PublicKey>,
        // Left out of runs of the domain's own, like the objects.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        account: Option<Cow<'a, AccountId>>,
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
        #[serde(rename = "fates")]
        tokens: FatesForm,
        uploaded: Bytes,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        tenant_ended: bool,
        #[serde(default, skip_serializing_if = "is_zero")]
        objects: u64,
        // Left out while there are none, like the holds.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        measured: Vec<(UnitId, MeasuredForm)>,
        #[serde(default, skip_serializing_if = "<[LeftOutView]>::is_empty")]
        left_out: Cow<'a, [LeftOutView]>,
        // Left out of a run that is not private: states from before keep their bytes.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        spending: Option<SpendingForm<'a>>,
        // Left out while there are none, so that states from before there were holds keep their
        // bytes.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        holds: Vec<(Hold, HoldForm<'a>)>,
        quarantined: Vec<(Cow<'a, WorkerId>, QuarantineForm<'a>)>,
        // Left out while there are none, like the holds.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        statements: Vec<(Round, Cow<'a, ObjectRef>)>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pointers: Vec<(Cow<'a, PointerName>, PointerForm<'a>)>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        restores: Vec<RestoreForm<'a>>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        given_up: Vec<GivenUpForm<'a>>,
        // Left out while there are none, like the holds.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        cohorts: Vec<(Round, CohortForm<'a>)>,
    }
    leaves { spec_digest = digest(&spec), disclosures_max = disclosures(&spec), any_rule = false };

    SpendingForm of Spending {
        closed: u64,
        open: Vec<(Round, DisclosuresForm<'a>)>,
        over: bool,
    };

    CohortForm of CohortRecord {
        members: Cow<'a, [CohortMember]>,
        unmasking: Option<Cow<'a, Unmasking>>,
    };

    HoldForm of HoldRecord {
        operator: Cow<'a, PublicKey>,
        reason: Cow<'a, Reason>,
        since: UnixMillis,
    };

    PointerForm of PointerRecord {
        round: Round,
        manifest: Cow<'a, Digest>,
        operator: Cow<'a, PublicKey>,
        reason: Cow<'a, Reason>,
        since: UnixMillis,
    };

    QuarantineForm of QuarantineRecord {
        operator: Cow<'a, PublicKey>,
        reason: Cow<'a, Reason>,
        since: UnixMillis,
    };

    RestoreForm of RestoreRecord {
        snapshot: Round,
        manifest: ObjectRef,
        version: Round,
        operator: Cow<'a, PublicKey>,
        reason: Cow<'a, Reason>,
        since: UnixMillis,
        merged: Vec<(Cow<'a, WorkerId>, MergedRounds)>,
    };

    GivenUpForm of GivenUp {
        sequence: ChainSequence,
        since: UnixMillis,
        through: Round,
        snapshots: Cow<'a, [Digest]>,
        operator: Cow<'a, PublicKey>,
        reason: Cow<'a, Reason>,
    };

    MemberForm of Member {
        account: Cow<'a, AccountId>,
        audit_key: Cow<'a, PublicKey>,
        trainers: Cow<'a, [TrainerKind]>,
        device: Cow<'a, str>,
        release: Cow<'a, str>,
        posture: Cow<'a, Posture>,
        // Left out where there is none, so that states from before there were seats keep their
        // bytes.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        seat: Option<Cow<'a, Seat>>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        before: Option<Cow<'a, WorkerId>>,
        session: Session,
        fenced: Option<LeaseRef>,
        present: bool,
        removed: bool,
        since: UnixMillis,
        lease: Option<LeaseRef>,
        accepted: u64,
        rejected: u64,
        refused: Option<RefusedForm<'a>>,
        merged: Option<MergedRounds>,
    };

    UnitForm of Unit {
        epoch: Epoch,
        base: Round,
        standing: StandingForm<'a>,
        failed_by: Option<Cow<'a, WorkerId>>,
    };
}

fn disclosures(spec: &RunSpec) -> u64 {
    spec.privacy.as_ref().map_or(0, privacy::disclosures_within)
}

fn digest(spec: &RunSpec) -> Digest {
    spec.to_object().1
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
#[serde(rename_all = "snake_case")]
enum StandingForm<'a> {
    Open,
    Held(Cow<'a, WorkerId>, UnixMillis),
    Done,
}

/// Grants of each worker, then of each unit.
type DisclosuresForm<'a> = (Vec<(Cow<'a, WorkerId>, u64)>, Vec<(UnitIndex, u64)>);

/// Lease, code and detail.
type RefusedForm<'a> = (LeaseRef, Code, Cow<'a, str>);

/// Declares types of which a run has thousands: the fields of their forms have no names.
macro_rules! forms_without_names {
    ($($form:ident of $type:ident { $($field:ident: $shape:ty,)+ })+) => { $(
        type $form = ($($shape,)+);

        impl Form<'_, $type> for $form {
            fn of(value: &$type) -> Self {
                let $type { $($field,)+ } = value;
                ($(*$field,)+)
            }

            fn back(self) -> $type {
                let ($($field,)+) = self;
                $type { $($field,)+ }
            }
        }
    )+ };
}

forms_without_names! {
    AcceptedForm of Accepted {
        epoch: Epoch,
        statement: Digest,
        fate: Fate,
    }

    MeasuredForm of Measured {
        norm: f64,
        loss: f64,
        chunks: Digest,
        counts: bool,
    }

    RoundForm of RoundRecord {
        opened_at: UnixMillis,
        closed_at: Option<UnixMillis>,
        tokens: Tokens,
        loss_sum: f64,
        norm: Option<f64>,
    }

    SnapshotForm of SnapshotRecord {
        round: Round,
        manifest: ObjectRef,
        saved_at: UnixMillis,
    }

    FatesForm of Fates {
        issued: Tokens,
        merged: Tokens,
        late: Tokens,
        rejected: Tokens,
        abandoned: Tokens,
    }
}

impl<'a> Form<'a, Arc<Run>> for RunForm<'a> {
    fn of(run: &'a Arc<Run>) -> Self {
        Self::of(&**run)
    }

    fn back(self) -> Arc<Run> {
        let run: Run = self.back();
        Arc::new(run)
    }
}

impl<'a> Form<'a, OpenSync> for OpenForm<'a> {
    fn of(open: &'a OpenSync) -> Self {
        match open {
            OpenSync::Collecting(inputs) => Self::Collecting(Form::of(inputs)),
            OpenSync::Sealing { set, rest } => Self::Sealing {
                set: Form::of(set),
                rest: Form::of(rest),
            },
            OpenSync::Sealed(set) => Self::Sealed(Form::of(set)),
        }
    }

    fn back(self) -> OpenSync {
        match self {
            Self::Collecting(inputs) => OpenSync::Collecting(inputs.back()),
            Self::Sealing { set, rest } => OpenSync::Sealing {
                set: set.back(),
                rest: rest.back(),
            },
            Self::Sealed(set) => OpenSync::Sealed(set.back()),
        }
    }
}

impl<'a> Form<'a, BTreeMap<UnitIndex, MergeInput>> for InputsForm<'a> {
    fn of(inputs: &'a BTreeMap<UnitIndex, MergeInput>) -> Self {
        inputs.values().map(Cow::Borrowed).collect()
    }

    fn back(self) -> BTreeMap<UnitIndex, MergeInput> {
        let inputs = self.into_iter().map(Cow::into_owned);
        inputs
            .map(|input| (input.lease.unit.index, input))
            .collect()
    }
}

impl<'a> Form<'a, Standing> for StandingForm<'a> {
    fn of(standing: &'a Standing) -> Self {
        match standing {
            Standing::Open => Self::Open,
            Standing::Held { worker, since } => Self::Held(Cow::Borrowed(worker), *since),
            Standing::Done => Self::Done,
        }
    }

    fn back(self) -> Standing {
        match self {
            Self::Open => Standing::Open,
            Self::Held(worker, since) => Standing::Held {
                worker: worker.into_owned(),
                since,
            },
            Self::Done => Standing::Done,
        }
    }
}

impl<'a> Form<'a, RoundDisclosures> for DisclosuresForm<'a> {
    fn of(disclosures: &'a RoundDisclosures) -> Self {
        (
            Form::of(disclosures.by_worker()),
            Form::of(disclosures.by_unit()),
        )
    }

    fn back(self) -> RoundDisclosures {
        let (by_worker, by_unit) = self;
        RoundDisclosures::of(by_worker.back(), by_unit.back())
    }
}

impl<'a> Form<'a, RefusedResult> for RefusedForm<'a> {
    fn of(refused: &'a RefusedResult) -> Self {
        let RefusedResult {
            lease,
            code,
            detail,
        } = refused;
        (*lease, *code, Cow::Borrowed(detail))
    }

    fn back(self) -> RefusedResult {
        let (lease, code, detail) = self;
        RefusedResult {
            lease,
            code,
            detail: detail.into_owned(),
        }
    }
}

/// Declares types that are their own form.
macro_rules! own_forms {
    ($($type:ty),+) => { $(
        impl Form<'_, $type> for $type {
            fn of(value: &$type) -> Self {
                *value
            }

            fn back(self) -> $type {
                self
            }
        }
    )+ };
}

own_forms!(
    bool,
    u64,
    Bytes,
    ChainSequence,
    Epoch,
    Hold,
    LeaseRef,
    MergedRounds,
    ObjectRef,
    Quota,
    Round,
    Session,
    SyncId
);
own_forms!(UnitId, UnitIndex, UnixMillis, (Fragment, Round));

impl<'a, T: Clone> Form<'a, T> for Cow<'a, T> {
    fn of(value: &'a T) -> Self {
        Cow::Borrowed(value)
    }

    fn back(self) -> T {
        self.into_owned()
    }
}

impl<'a, T: Clone> Form<'a, Vec<T>> for Cow<'a, [T]> {
    fn of(values: &'a Vec<T>) -> Self {
        Cow::Borrowed(values)
    }

    fn back(self) -> Vec<T> {
        self.into_owned()
    }
}

impl<'a> Form<'a, String> for Cow<'a, str> {
    fn of(text: &'a String) -> Self {
        Cow::Borrowed(text)
    }

    fn back(self) -> String {
        self.into_owned()
    }
}

impl<'a, T, F: Form<'a, T>> Form<'a, Option<T>> for Option<F> {
    fn of(value: &'a Option<T>) -> Self {
        value.as_ref().map(F::of)
    }

    fn back(self) -> Option<T> {
        self.map(F::back)
    }
}

impl<'a, T: 'a, F: Form<'a, T>> Form<'a, Vec<T>> for Vec<F> {
    fn of(values: &'a Vec<T>) -> Self {
        values.iter().map(F::of).collect()
    }

    fn back(self) -> Vec<T> {
        self.into_iter().map(F::back).collect()
    }
}

impl<'a, K: Ord + 'a, V: 'a, A: Form<'a, K>, B: Form<'a, V>> Form<'a, BTreeMap<K, V>>
    for Vec<(A, B)>
{
    fn of(map: &'a BTreeMap<K, V>) -> Self {
        let pairs = map.iter();
        pairs
            .map(|(key, value)| (A::of(key), B::of(value)))
            .collect()
    }

    fn back(self) -> BTreeMap<K, V> {
        let pairs = self.into_iter();
        pairs
            .map(|(key, value)| (key.back(), value.back()))
            .collect()
    }
}
