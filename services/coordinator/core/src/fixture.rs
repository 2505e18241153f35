//! A small run, its messages, and a world that carries effects out, shared by the tests.

mod world;

use schemas::contribution::{Outcome, Statement};
use schemas::data::DataManifest;
use schemas::event::LedgerEvent;
use schemas::foundry::Saved;
use schemas::lease::{ClaimRequest, LeaseRef, UnitKind, Weights};
use schemas::member::{LeaveRequest, Posture, Session};
use schemas::run::RunSpec;
use schemas::snapshot::MergeInput;
use schemas::sync::ComparedInput;
use schemas::{
    Chunks, Digest, Fragment, Listed, Message, Millis, ObjectRef, Round, SyncId, UnixMillis, V,
    WorkerId,
};

use crate::{Merged, Peer, Screened, Settings, Submission};

pub(crate) use kit::{
    account, evaluate, join_request, lease, object, public_key, run_id, session, sized, train,
    worker,
};
pub(crate) use world::World;

pub(crate) const LEASE: Millis = Millis::from_secs(30);
pub(crate) const SILENCE: Millis = Millis::from_secs(90);
pub(crate) const START: UnixMillis = UnixMillis(1_700_000_000_000);

/// The pattern of an effect that gives this order to a foundry.
macro_rules! order {
    ($order:ident) => {
        $crate::effect::Effect::Foundry {
            order: schemas::foundry::Order::$order { .. },
            ..
        }
    };
}
pub(crate) use order;

/// A chunk of a contribution: 8 elements in bf16.
pub(crate) fn upload(name: &str) -> ObjectRef {
    sized(name, 16)
}

/// The answer to a comparison: a cosine of 0.5 for each contribution, and another for those of
/// `against`.
pub(crate) fn compared(inputs: &[MergeInput], against: &[(WorkerId, f32)]) -> Vec<ComparedInput> {
    let cosine = |input: &MergeInput| {
        let found = against.iter().find(|(worker, _)| *worker == input.worker);
        found.map_or(0.5, |(_, cosine)| *cosine)
    };
    let compared = inputs.iter().map(|input| ComparedInput {
        unit: input.lease.unit.index,
        epoch: input.lease.epoch,
        cosine: cosine(input),
    });
    compared.collect()
}

/// The settings of [`kit::run_spec`] under the name `run`.
pub(crate) fn spec(run: &str) -> RunSpec {
    kit::run_spec()
        .run(run.parse().unwrap())
        .lease(LEASE)
        .silence_max(SILENCE)
        .build()
}

/// A data set of words: `shards` to train on, one to evaluate on.
pub(crate) fn data(shards: usize, shard_tokens: u64) -> DataManifest {
    kit::data()
        .named(shards, shard_tokens)
        .words(object("tokenizer"), 256)
        .build()
}

pub(crate) fn peer(number: u32) -> Peer {
    Peer {
        account: account(1),
        run: run_id(),
        worker: worker(number),
    }
}

pub(crate) fn settings() -> Settings {
    let audit_key = public_key(1);
    Settings {
        release: "1".to_owned(),
        home: account(1),
        audit_keys: vec![audit_key],
        posture: Posture::default(),
        heartbeat: Millis::from_secs(5),
        session: Session(99),
        checkpoint_every: u64::MAX,
    }
}

pub(crate) fn claim_request(number: u32, wait: Millis) -> ClaimRequest {
    ClaimRequest {
        v: V,
        session: session(number),
        wait,
    }
}

pub(crate) fn leave_request(number: u32, reason: &str) -> LeaveRequest {
    LeaveRequest {
        v: V,
        session: session(number),
        reason: reason.to_owned(),
    }
}

/// The ledger event for the join of worker `number`.
pub(crate) fn joined(number: u32) -> LedgerEvent {
    kit::joined(worker(number), account(1), join_request(number))
}

pub(crate) fn sync(round: u64) -> SyncId {
    SyncId {
        round: Round(round),
        fragment: Fragment::FIRST,
    }
}

/// A result as worker `number` would state it; another `salt` makes another result.
pub(crate) fn submission(spec: &RunSpec, number: u32, lease: LeaseRef, salt: u32) -> Submission {
    let chunks = || {
        (0..spec.model.initial.count())
            .map(|n| chunk(spec, &format!("{number} {lease} {salt} {n}")))
            .collect::<Vec<_>>()
    };
    let outcome = match lease.unit.kind {
        UnitKind::Train => {
            let (chunks, _) = spec.name_chunks(chunks());
            Outcome::Contribution(kit::contribution(spec, chunks))
        }
        UnitKind::Evaluate => Outcome::Evaluation(kit::evaluation()),
    };
    stated(kit::statement(spec, worker(number), lease, outcome))
}

/// The same result, under the masks of a cohort.
pub(crate) fn masked_for(result: Submission, cohort: Option<Digest>) -> Submission {
    let mut statement = result.statement;
    if let Outcome::Contribution(contribution) = &mut statement.outcome {
        contribution.cohort = cohort;
    }
    stated(statement)
}

pub(crate) fn stated(statement: impl Into<Box<Statement>>) -> Submission {
    let statement = statement.into();
    let provenance = match statement.outcome {
        Outcome::Contribution(_) => Some([8; 64]),
        Outcome::Evaluation(_) => None,
    };
    Submission {
        bytes: statement.encode(),
        statement,
        signature: [7; 64],
        provenance,
    }
}

pub(crate) fn merged(spec: &RunSpec, round: Round) -> Merged {
    let next = round.next();
    let chunks = (0..spec.model.initial.count())
        .map(|n| chunk(spec, &format!("weights {next} {n}")))
        .collect();
    Merged {
        broadcast: kit::weights(next.get(), spec.download, spec.name_chunks(chunks).0),
        norm: 1.0,
    }
}

/// The weights in the manifest of the snapshot of a round.
pub(crate) fn snapshot_weights(spec: &RunSpec, round: Round) -> Weights {
    let before = Round(round.get() - 1);
    merged(spec, before).broadcast
}

/// A chunk of a run. The totals of a list must be those of its chunks.
fn chunk(spec: &RunSpec, name: &str) -> ObjectRef {
    match spec.model.initial {
        Chunks::Named(_) => object(name),
        Chunks::Listed(_) => upload(name),
    }
}

/// The settings of [`spec`] with chunks that are listed.
pub(crate) fn listed_spec(run: &str) -> RunSpec {
    let mut spec = spec(run);
    let Chunks::Named(initial) = &spec.model.initial else {
        panic!("settings without lists")
    };
    spec.model.initial = Chunks::Listed(Listed::of(initial).0);
    spec
}

/// The chunks in the list of a version of the weights of [`listed_spec`].
pub(crate) fn weights_chunks(version: u64) -> Vec<ObjectRef> {
    match version {
        0 => vec![sized("initial 0", 4 * 8), sized("initial 1", 4 * 5)],
        _ => ["0", "1"]
            .map(|n| upload(&format!("weights {version} {n}")))
            .to_vec(),
    }
}

/// The outcome of a check that passed, for a result that names its chunks itself.
/// The outcome of the save that `round` starts from.
pub(crate) fn saved(round: Round) -> Saved {
    Saved {
        manifest: object(&format!("snapshot {round}")),
        statement: object(&format!("statement {round}")),
    }
}

pub(crate) fn screened(norm: f64) -> Screened {
    Screened {
        norm,
        listed: Vec::new(),
    }
}
