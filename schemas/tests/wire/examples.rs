//! One example of every type that crosses the bus, in one list: more than 600 lines.

use std::collections::BTreeMap;

use schemas::blob::{GetRequest, Grant, Grants, HttpAction, Method, PutRequest};
use schemas::checkpoint::Checkpoint;
use schemas::contribution::{
    Contribution, Evaluation, Fate, Outcome, StageRequest, Statement, SubmitReply, SubmitRequest,
};
use schemas::control::{OperatorObjects, Query, RunNew, RunNewReply, View, ViewReply, ViewRequest};
use schemas::event::{Event, EventBody, LedgerEvent, SignedEvent, WorkerEvent};
use schemas::foundry::{self, FoundryAnswer, FoundryOrder, Merged, ScreeningId};
use schemas::head::KnownHead;
use schemas::hold::{AtStore, Hold, HoldReply, HoldRequest};
use schemas::layout::{Layout, TensorSpec};
use schemas::lease::{
    ClaimOutcome, ClaimReply, ClaimRequest, Done, LeaseRef, Offer, ReleaseRequest, RenewReply,
    RenewRequest, UnitId, UnitKind, Weights,
};
use schemas::member::{JoinReply, JoinRequest, Layer, LeaveRequest, OpenLayer, Posture, Session};
use schemas::public::Status;
use schemas::renewal::{RenewalReply, RenewalRequest};
use schemas::run::{Codec, CodecKind, InnerOptimizer, Precision, Rounding, RunSpec, TrainerKind};
use schemas::telemetry::{Heartbeat, Phase, WorkerMetrics};
use schemas::view::{RunPhase, RunView};
use schemas::{
    Addressee, Answer, Bytes, ChainSequence, Chunks, Code, DecodeError, Digest, Epoch, Fragment,
    Listed, Message, Millis, ObjectRef, PublicKey, Refusal, Reply, Round, RunId, Steps, SyncId,
    Tokens, UnitIndex, UnixMillis, V, WorkerId,
};
use serde_bytes::{ByteArray, ByteBuf};

mod collection;
pub(crate) mod comparison;
mod ending;
mod enrolment;
mod head;
mod keys;
mod masks;
mod promotion;
mod provenance;
mod quarantine;
mod restore;
mod revocation;
mod security;
mod tenant;

/// An encoded example and a decoder of its type.
pub(crate) struct Example {
    pub(crate) name: &'static str,
    /// The type's name in the table of subjects.
    pub(crate) type_name: &'static str,
    pub(crate) bytes_max: usize,
    pub(crate) bytes: Vec<u8>,
    pub(crate) decode: fn(&[u8]) -> Result<Vec<u8>, DecodeError>,
}

fn example<T: Message>(message: &T) -> Example {
    Example {
        name: T::NAME,
        type_name: short(std::any::type_name::<T>()),
        bytes_max: T::BYTES_MAX,
        bytes: message.encode(),
        decode: |bytes| T::decode(bytes).map(|message| message.encode()),
    }
}

/// A type's name without the path to it, and without its parameters.
fn short(path: &'static str) -> &'static str {
    let plain = path.split('<').next().unwrap_or(path);
    plain.rsplit("::").next().unwrap_or(plain)
}

fn key(kind: char) -> String {
    format!("{kind}{}", "A".repeat(55))
}

fn worker() -> WorkerId {
    key('U').parse().expect("a key")
}

fn public() -> PublicKey {
    key('U').parse().expect("a key")
}

fn run() -> RunId {
    "demo".parse().expect("a name")
}

fn object() -> ObjectRef {
    ObjectRef::of(b"object")
}

fn lease() -> LeaseRef {
    let unit = UnitId {
        round: Round(3),
        kind: UnitKind::Train,
        index: UnitIndex(1),
    };
    LeaseRef {
        unit,
        epoch: Epoch(2),
    }
}

fn codec() -> Codec {
    Codec {
        kind: CodecKind::Bf16,
        rounding: Rounding::Nearest,
    }
}

/// Valid settings of a run; what they say is part of the golden messages.
pub(crate) fn spec() -> RunSpec {
    kit::run_spec()
        .trainer(TrainerKind::Torch)
        .config(object())
        .layout(object())
        .chunk_elements(1 << 22)
        .initial(vec![object()])
        .precision(Precision::Bf16)
        .data(object())
        .rounds(10)
        .inner_steps(Steps(50))
        .batch_sequences(8)
        .accumulation(2)
        .sequence_tokens(256)
        .evaluation_every(1)
        .evaluation_sequences(64)
        .inner(InnerOptimizer {
            warmup_steps: Steps(100),
            final_ratio: 0.1,
            ..InnerOptimizer::adamw(4e-4)
        })
        .workers_min(2)
        .lease(Millis::from_secs(60))
        .silence_max(Millis::from_secs(30))
        .norm_max(0.0)
        .build()
}

/// A worker's question.
pub(crate) fn asked() -> Addressee {
    Addressee {
        by: public(),
        question: Digest::of(b"question"),
    }
}

fn posture() -> Posture {
    let (layer, reason) = (Layer::Bulk, "a test".to_owned());
    let open = vec![OpenLayer { layer, reason }];
    Posture { open }
}

fn contribution() -> Contribution {
    Contribution {
        layout: object().digest,
        codec: codec(),
        chunks: vec![object()].into(),
        tokens: Tokens(102_400),
        steps: Steps(50),
        loss: 2.5,
        train_ms: 1234,
        privacy: None,
        cohort: None,
    }
}

fn view() -> RunView {
    RunView {
        privacy: None,
        left_out: Vec::new(),
        run: run(),
        phase: RunPhase::Training,
        halted: None,
        trouble: None,
        holds: Vec::new(),
        round: Round(3),
        rounds: 10,
        units_done: 1,
        units: 2,
        workers: 2,
        workers_min: 2,
        leases: 1,
        tokens: vec![(Fate::Merged, Tokens(5)), (Fate::Abandoned, Tokens(1))],
        tokens_per_second: 1000.5,
        train_loss: Some(2.5),
        held_out_loss: Some((Round(2), 2.75)),
        bytes_up: Bytes(1),
        bytes_down: Bytes(2),
        snapshot: Some((Round(3), object())),
        created_at: UnixMillis(1),
        completed_at: None,
    }
}

fn statement() -> Statement {
    Statement {
        v: V,
        run: run(),
        spec: object().digest,
        worker: worker(),
        lease: lease(),
        outcome: Outcome::Contribution(contribution()),
    }
}

/// Bodies of events: the largest kind, and one of each emitter.
pub(crate) fn event(event: Event) -> EventBody {
    EventBody {
        v: V,
        known: None,
        emitter: public(),
        sequence: ChainSequence(9),
        previous: Some(Digest::of(b"previous")),
        time: UnixMillis(1_700_000_000_000),
        run: Some(run()),
        event,
    }
}

/// A closed round with as many named chunks as there may be.
pub(crate) fn largest_event() -> EventBody {
    let object = ObjectRef {
        digest: Digest::of(b"x"),
        bytes: Bytes(256 << 20),
    };
    let broadcast = Weights {
        round: Round(u64::MAX),
        codec: codec(),
        chunks: vec![object; schemas::limits::NAMED_CHUNKS_MAX].into(),
    };
    event(Event::Ledger(LedgerEvent::RoundClosed {
        round: Round(u64::MAX),
        fragment: Fragment::FIRST,
        broadcast,
        norm: 1.0,
        tokens: Tokens(u64::MAX),
    }))
}

pub(crate) fn accepted() -> LedgerEvent {
    LedgerEvent::ContributionAccepted {
        lease: lease(),
        worker: worker(),
        contribution: Box::new(contribution()),
        norm: 1.5,
        statement: Digest::of(b"statement"),
        signature: ByteArray::new([7; 64]),
        provenance: None,
    }
}

fn grants() -> Grants {
    let action = HttpAction {
        method: Method::Put,
        href: "https://store.example/incoming/key?X-Amz-Signature=00".to_owned(),
        headers: BTreeMap::from([("content-length".to_owned(), "6".to_owned())]),
        expires_at: UnixMillis(2),
    };
    Grants {
        v: V,
        grants: vec![Grant {
            digest: object().digest,
            action: Some(action),
        }],
    }
}

/// Every type, once; answers also in their refused form.
pub(crate) fn all() -> Vec<Example> {
    let refusal = Refusal::new(Code::LeaseLost, "3/train-1@2 is held by another");
    let evaluation = Evaluation {
        loss_sum: 10.0,
        tokens: Tokens(4),
    };
    let layout = Layout {
        v: V,
        tensors: vec![TensorSpec {
            name: "lm_head.weight".to_owned(),
            shape: vec![256, 64],
            fragment: 0,
        }],
    };
    let mut all = vec![
        example(&JoinRequest {
            v: V,
            session: Session(7),
            audit_key: public(),
            proof: ByteArray::new([5; 64]),
            trainers: vec![TrainerKind::Torch, TrainerKind::Reference],
            device: "cpu x1".to_owned(),
            release: "0.1.0".to_owned(),
            posture: posture(),
        }),
        example(&JoinReply {
            v: V,
            spec: spec(),
            spec_digest: object().digest,
            now: UnixMillis(1),
            heartbeat: Millis(5000),
        }),
        example(&LeaveRequest {
            v: V,
            session: Session(7),
            reason: "done".to_owned(),
        }),
        example(&ClaimRequest {
            v: V,
            session: Session(7),
            wait: Millis(20_000),
        }),
        example(&ClaimReply {
            v: V,
            outcome: ClaimOutcome::Lease("a.b.c".to_owned()),
            base: grants().grants,
        }),
        example(&RenewRequest {
            v: V,
            lease: lease(),
            steps_done: Steps(5),
            bytes_moved: Bytes(4096),
        }),
        example(&RenewReply {
            v: V,
            expires_at: UnixMillis(5),
            remaining: Millis(4),
        }),
        example(&ReleaseRequest {
            v: V,
            lease: lease(),
            reason: "stopping".to_owned(),
        }),
        example(&Done::default()),
        example(&Offer {
            v: V,
            run: run(),
            unit: lease().unit,
        }),
        example(&PutRequest {
            v: V,
            lease: lease(),
            objects: vec![object()],
        }),
        example(&GetRequest {
            v: V,
            objects: vec![object().digest],
        }),
        example(&grants()),
        example(&StageRequest {
            v: V,
            lease: lease(),
            index: 0,
            object: object(),
        }),
        example(&SubmitRequest {
            v: V,
            statement: ByteBuf::from([1, 2]),
            signature: ByteArray::new([3; 64]),
            provenance: Some(ByteArray::new([4; 64])),
        }),
        example(&statement()),
        example(&SubmitReply {
            v: V,
            fate: Fate::Merged,
        }),
        example(&Heartbeat {
            v: V,
            session: Session(7),
            phase: Phase::Training,
            lease: Some(lease()),
            steps_done: Steps(5),
            tokens: Tokens(10),
            tokens_per_second: 12.5,
            loss: Some(3.0),
            bytes_up: Bytes(1),
            bytes_down: Bytes(2),
            metrics: WorkerMetrics {
                fetch: Millis(3),
                train: Millis(4),
                encode: Millis(5),
                upload: Millis(6),
                transfer_failures: 7,
                device_memory: Some(Bytes(8)),
            },
        }),
        example(&RenewalRequest {
            v: V,
            ends: UnixMillis(1_700_000_000_000),
            successor: None,
        }),
        example(&RenewalReply {
            v: V,
            token: "eyJ0eXAi.eyJuYXRz.c2lnbmF0".to_owned(),
            ends: UnixMillis(1_700_003_600_000),
            certificate: None,
        }),
        example(&RunNew { v: V, spec: spec() }),
        example(&RunNewReply {
            v: V,
            spec_digest: object().digest,
            created: true,
        }),
        example(&HoldRequest {
            v: V,
            run: run(),
            hold: Hold::Merges,
            held: true,
            reason: "a contribution looks wrong".parse().expect("a reason"),
        }),
        example(&HoldReply {
            v: V,
            changed: true,
            weights: Round(3),
            contributions: 1,
            leases: 2,
            shut_out: 3,
            store: Some(AtStore::Taken),
        }),
        example(&ViewRequest::of(Query::Run(run()))),
        example(&ViewReply::of(View::Runs(vec![view()]))),
        example(&OperatorObjects {
            v: V,
            objects: vec![object()],
        }),
        example(&Status {
            v: V,
            now: UnixMillis(3),
            view: view(),
        }),
        example(&spec()),
        example(&layout),
        example(&refusal),
        example(&event(Event::Ledger(accepted()))),
        example(&SignedEvent {
            v: V,
            key: event(Event::Ledger(accepted())).emitter,
            signature: ByteArray::new([3; 64]),
            body: ByteBuf::from(event(Event::Ledger(accepted())).encode()),
        }),
        example(&FoundryOrder {
            v: V,
            run: run(),
            session: Session(7),
            order: foundry::Order::Screen {
                screening: ScreeningId(7),
                worker: worker(),
                audit_key: public(),
                statement: ByteBuf::from(statement().encode()),
                signature: ByteArray::new([3; 64]),
                provenance: Some(provenance::signed()),
            },
        }),
        example(&FoundryAnswer {
            v: V,
            run: run(),
            session: Session(7),
            answer: foundry::Answer::Merged {
                sync: SyncId {
                    round: Round(3),
                    fragment: Fragment(0),
                },
                outcome: Ok(Merged {
                    broadcast: Weights {
                        round: Round(4),
                        codec: codec(),
                        chunks: vec![object()].into(),
                    },
                    norm: 0.5,
                }),
            },
        }),
        Example {
            name: "answer",
            ..example(&Answer::new(&asked(), Reply::Ok(Done::default())))
        },
        Example {
            name: "answer that refuses",
            ..example(&Answer::<Done>::new(&asked(), Reply::Refused(refusal)))
        },
        Example {
            name: "event of a worker",
            ..example(&event(Event::Worker(WorkerEvent::Started {
                lease: lease(),
            })))
        },
        Example {
            name: "event that names a head",
            ..example(&EventBody {
                known: Some(KnownHead {
                    size: 70_000,
                    root: ByteArray::new([9; 32]),
                }),
                ..event(Event::Worker(WorkerEvent::Started { lease: lease() }))
            })
        },
        Example {
            name: "event of listed chunks",
            ..example(&event(Event::Ledger(LedgerEvent::RoundClosed {
                round: Round(3),
                fragment: Fragment::FIRST,
                broadcast: Weights {
                    round: Round(4),
                    codec: codec(),
                    chunks: Chunks::Listed(Listed::of(&[object(), object()]).0),
                },
                norm: 1.5,
                tokens: Tokens(9),
            })))
        },
        Example {
            name: "statement of listed chunks",
            ..example(&Statement {
                outcome: Outcome::Contribution(Contribution {
                    chunks: Chunks::Listed(Listed::of(&[object(), object()]).0),
                    ..contribution()
                }),
                ..statement()
            })
        },
        Example {
            name: "foundry order to read a list",
            ..example(&FoundryOrder {
                v: V,
                run: run(),
                session: Session(7),
                order: foundry::Order::ReadList {
                    listed: Listed::of(&[object(), object()]).0,
                },
            })
        },
        Example {
            name: "foundry answer of a list",
            ..example(&FoundryAnswer {
                v: V,
                run: run(),
                session: Session(7),
                answer: foundry::Answer::ListRead {
                    list: object().digest,
                    outcome: Ok(vec![object().digest]),
                },
            })
        },
        Example {
            name: "event of a seal",
            ..example(&event(Event::Ledger(comparison::sealed(3))))
        },
        Example {
            name: "event of a hold",
            ..example(&event(Event::Ledger(LedgerEvent::HoldPlaced {
                hold: Hold::Merges,
                operator: public(),
                reason: "a contribution looks wrong".parse().expect("a reason"),
            })))
        },
        Example {
            name: "event of a checkpoint",
            ..example(&event(Event::Ledger(LedgerEvent::CheckpointSaved {
                checkpoint: Checkpoint {
                    covers: ChainSequence(u64::MAX),
                    head: Digest::of(b"head"),
                    stream_sequence: u64::MAX,
                    format: u16::MAX,
                    object: object(),
                },
            })))
        },
        Example {
            name: "event that takes a checkpoint",
            ..example(&event(Event::Ledger(LedgerEvent::CheckpointTaken)))
        },
        Example {
            name: "statement of an evaluation",
            ..example(&Statement {
                outcome: Outcome::Evaluation(evaluation),
                ..statement()
            })
        },
    ];
    all.extend(comparison::all());
    all.extend(enrolment::all().into_iter().chain(head::all()));
    all.extend(keys::all());
    all.extend(masks::all());
    all.extend(quarantine::all().into_iter().chain(ending::all()));
    all.extend(promotion::all());
    all.extend(provenance::all());
    all.extend(security::all());
    all.extend(tenant::all());
    all.extend(restore::all());
    all.extend(revocation::all());
    all.extend(collection::all());
    all
}
