//! A worker with real credentials sends wrong messages. Each is refused with a code, none of them
//! counts, and all other clients go on.

use std::time::Duration;

use async_nats::HeaderMap;
use e2e::scripted::refused_raw;
use e2e::{Recipe, Scripted};
use harness::{Cluster, Options};
use runtime::BusError;
use schemas::blob::{GetRequest, Grants, PutRequest};
use schemas::contribution::{Contribution, Fate, StageRequest, SubmitReply};
use schemas::control::{Query, ViewRequest};
use schemas::event::LedgerEvent;
use schemas::lease::{Done, LeaseRef, ReleaseRequest, RenewReply, RenewRequest, UnitId, UnitKind};
use schemas::limits::WORKER_MESSAGE_BYTES_MAX;
use schemas::member::{Layer, LeaveRequest, OpenLayer};
use schemas::run::{RunSpec, TrainerKind};
use schemas::subject::{
    ControlVerb, Verb, control_subject, heartbeat_subject, worker_event_subject,
};
use schemas::view::RunPhase;
use schemas::{
    Bytes, Code, Digest, Epoch, Message, Millis, ObjectRef, Round, Steps, Tokens, UnitIndex, V,
};

/// A cluster with store, coordinator and audit service, whose workers are all scripted; one unit a
/// round.
pub(crate) async fn stage() -> Cluster {
    let cluster = Cluster::start(Options::default(), 0).await;
    let recipe = Recipe::reference(2, 1, 5)
        .set("schedule.evaluation_every=0")
        .set("transfer.upload=fp32")
        .set("policy.strikes_max=100")
        .set("policy.lease=30s");
    recipe.create(&cluster).await;
    cluster
}

fn refusal<T: std::fmt::Debug>(outcome: Result<T, BusError>) -> Code {
    match outcome {
        Err(BusError::Refused(refusal)) => refusal.code,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

/// The bytes of a message with the next version's number.
fn with_next_version(message: &impl Message) -> Vec<u8> {
    let mut bytes = message.encode();
    let place = bytes
        .windows(2)
        .position(|window| window == [0xa1, b'v'])
        .expect("a message has a version");
    bytes[place + 2] += 1;
    bytes
}

/// A chunk of the run's size whose values are all `value`, except the last.
pub(crate) fn chunk(spec: &RunSpec, value: f32, last: f32) -> Vec<u8> {
    let count = (spec.model.initial.objects()[0].bytes.get() / 4) as usize;
    let values = std::iter::repeat_n(value, count - 1).chain([last]);
    values.flat_map(f32::to_le_bytes).collect()
}

#[tokio::test]
async fn fg_11_nothing_that_is_no_message_gets_through() {
    let mut cluster = stage().await;
    let scripted = Scripted::connect(&cluster, "worker-0").await;
    scripted.join().await;
    let lease = scripted.claim().await.lease;
    let bombs: [Vec<u8>; 6] = [
        Vec::new(),
        vec![0xc0],
        // Nesting without end, a map and a string that claim 4 GiB, and plain noise.
        vec![0x91; 100_000],
        vec![0xdf, 0xff, 0xff, 0xff, 0xff],
        vec![0xdb, 0xff, 0xff, 0xff, 0xff, b'x'],
        (0..1024_u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect(),
    ];
    for verb in Verb::ALL {
        for (place, bomb) in bombs.iter().enumerate() {
            let code = scripted.refused_raw(*verb, bomb.clone()).await;
            assert_eq!(code, Some(Code::MessageInvalid), "{verb}, bomb {place}");
        }
    }
    for (verb, message) in [
        (Verb::Join, with_next_version(&scripted.join_request())),
        (
            Verb::Claim,
            with_next_version(&scripted.claim_request(Millis(1))),
        ),
        (
            Verb::Renew,
            with_next_version(&RenewRequest {
                v: V,
                lease,
                steps_done: Steps(1),
                bytes_moved: Bytes(0),
            }),
        ),
        // A message of another type, and one with bytes behind its end.
        (Verb::Leave, scripted.claim_request(Millis(1)).encode()),
        (
            Verb::Claim,
            [scripted.claim_request(Millis(1)).encode(), vec![0]].concat(),
        ),
    ] {
        assert_eq!(
            scripted.refused_raw(verb, message).await,
            Some(Code::MessageInvalid),
            "{verb}"
        );
    }
    let renewed: Result<RenewReply, _> = scripted
        .ask(
            Verb::Renew,
            &RenewRequest {
                v: V,
                lease,
                steps_done: Steps(1),
                bytes_moved: Bytes(0),
            },
        )
        .await;
    assert!(renewed.is_ok(), "the lease is untouched: {renewed:?}");
    assert!(cluster.process("coordinator").ended().is_none());
}

#[tokio::test]
async fn an_operators_nonsense_and_oversized_messages_are_refused_and_the_coordinator_lives() {
    let mut cluster = stage().await;
    let operator = cluster.operator().await;
    let public = operator.bus().public().unwrap().clone();
    for verb in ControlVerb::ALL {
        let code = refused_raw(
            operator.bus(),
            &control_subject(&public, *verb),
            vec![0xc0; 64],
        )
        .await;
        assert_eq!(code, Some(Code::MessageInvalid), "{verb}");
    }
    // Longer than a question may be, so it is refused before it is parsed.
    let long = [ViewRequest::of(Query::Runs).encode(), vec![0; 8192]].concat();
    let code = refused_raw(
        operator.bus(),
        &control_subject(&public, ControlVerb::View),
        long,
    )
    .await;
    assert_eq!(code, Some(Code::MessageInvalid));

    let scripted = Scripted::connect(&cluster, "worker-0").await;
    scripted.join().await;
    // The broker cuts a connection that exceeds its token's limit, so the coordinator never sees
    // the message.
    let subject = scripted.subject(Verb::Claim);
    let oversized = vec![0; WORKER_MESSAGE_BYTES_MAX + 1].into();
    let outcome = scripted
        .bus
        .request_raw(
            &subject,
            HeaderMap::new(),
            oversized,
            Duration::from_secs(3),
        )
        .await;
    assert!(outcome.is_err(), "{outcome:?}");
    // Heartbeats are not answered, and nonsense in one does no harm either. An event that cannot be
    // decoded is refused.
    let subject = heartbeat_subject(cluster.run(), &scripted.worker);
    scripted
        .bus
        .publish(&subject, vec![0xc1; 64].into())
        .await
        .unwrap();
    let subject = worker_event_subject(cluster.run(), &scripted.worker, "joined");
    assert_eq!(
        refused_raw(&scripted.bus, &subject, b"nonsense".to_vec()).await,
        Some(Code::EventRefused)
    );
    assert_eq!(operator.workers(cluster.run()).await.len(), 1);
    for name in ["coordinator", "audit"] {
        assert!(cluster.process(name).ended().is_none(), "{name} ended");
    }
}

#[tokio::test]
async fn fg_16_a_bad_contribution_is_refused_alone_and_fg_17_a_repeated_one_counts_once() {
    let cluster = stage().await;
    let run = cluster.run().clone();
    let scripted = Scripted::connect(&cluster, "worker-0").await;
    let spec = scripted.join().await;
    type Change = fn(&mut Contribution);
    let broken: [(&str, Code, f32, Change); 9] = [
        ("NaN", Code::NotFinite, f32::NAN, |_| ()),
        ("infinity", Code::NotFinite, f32::INFINITY, |_| ()),
        ("another layout", Code::LayoutMismatch, 0.0, |one| {
            one.layout = Digest::of(b"another")
        }),
        ("no chunks", Code::SizeMismatch, 0.0, |one| {
            one.chunks = Vec::new().into()
        }),
        ("another length", Code::SizeMismatch, 0.0, |one| {
            let mut chunks = one.chunks.objects().to_vec();
            chunks[0].bytes.0 -= 4;
            one.chunks = chunks.into();
        }),
        ("more tokens", Code::TokensMismatch, 0.0, |one| {
            one.tokens = Tokens(one.tokens.0 + 1)
        }),
        ("a loss that is no number", Code::NotFinite, 0.0, |one| {
            one.loss = f64::NAN
        }),
        ("a loss below zero", Code::NumberImpossible, 0.0, |one| {
            one.loss = -1e6
        }),
        (
            "a time longer than any",
            Code::NumberImpossible,
            0.0,
            |one| one.train_ms = u64::MAX,
        ),
    ];
    let mut refused: Vec<LeaseRef> = Vec::new();
    for (what, expected, last, change) in broken {
        let lease = scripted.claim().await.lease;
        assert!(
            refused
                .last()
                .is_none_or(|before| before.unit == lease.unit && before.epoch < lease.epoch),
            "{what}: {lease}"
        );
        let bytes = chunk(&spec, 0.001, last);
        // Faults other than the chunk's numbers are found without an upload; uploads that come to
        // nothing are limited.
        let object = if last.is_finite() {
            ObjectRef::of(&bytes)
        } else {
            scripted.upload(lease, bytes).await
        };
        let mut contribution = Scripted::contribution(&spec, vec![object]);
        change(&mut contribution);
        assert_eq!(
            refusal(scripted.submit(&spec, lease, contribution).await),
            expected,
            "{what}"
        );
        refused.push(lease);
    }
    // The refusals left nothing behind: the round is open, and a late holder of an earlier epoch is
    // fenced off. Under the lease that was refused last, every result is refused again.
    let lease = scripted.claim().await.lease;
    let object = scripted.upload(lease, chunk(&spec, 0.001, 0.0)).await;
    let good = Scripted::contribution(&spec, vec![object]);
    let [.., late, last] = refused[..] else {
        panic!("too few were refused");
    };
    let late = scripted.submit(&spec, late, good.clone()).await;
    assert_eq!(refusal(late), Code::LeaseLost);
    let again = scripted.submit(&spec, last, good.clone()).await;
    assert_eq!(refusal(again), Code::NumberImpossible);

    for _ in 0..3 {
        let reply: SubmitReply = scripted
            .submit(&spec, lease, good.clone())
            .await
            .expect("it fits");
        assert_eq!(reply.fate, Fate::Merged);
    }
    let other = Contribution { loss: 0.5, ..good };
    assert_eq!(
        refusal(scripted.submit(&spec, lease, other).await),
        Code::AlreadyCounted
    );

    let mut evidence = cluster.evidence().await;
    let closed = |event: &LedgerEvent| matches!(event, LedgerEvent::RoundClosed { .. });
    let closed = evidence.until_ledger("end of round 0", &run, closed).await;
    let Some(LedgerEvent::RoundClosed { tokens, norm, .. }) = closed.ledger() else {
        unreachable!()
    };
    assert_eq!((*tokens, norm.is_finite()), (spec.unit_tokens(), true));
    let recorded = evidence.everything().await;
    let count = |wanted: fn(&LedgerEvent) -> bool| {
        recorded
            .iter()
            .filter(|one| one.ledger().is_some_and(wanted))
            .count()
    };
    assert_eq!(
        count(|event| matches!(event, LedgerEvent::ContributionRejected { .. })),
        broken.len()
    );
    assert_eq!(
        count(|event| matches!(event, LedgerEvent::ContributionAccepted { .. })),
        1
    );
    let view = cluster
        .operator()
        .await
        .until(&run, harness::PATIENCE, |view| view.round.get() == 1)
        .await;
    let fate = |wanted| {
        view.tokens
            .iter()
            .find(|(fate, _)| *fate == wanted)
            .map_or(0, |(_, tokens)| tokens.get())
    };
    assert_eq!(fate(Fate::Merged), spec.unit_tokens().get());
    assert_eq!(
        fate(Fate::Rejected),
        broken.len() as u64 * spec.unit_tokens().get()
    );
    assert_eq!(view.phase, RunPhase::Training);
}

#[tokio::test]
async fn ls_05_a_worker_gets_only_what_its_lease_and_its_run_give_it() {
    let cluster = stage().await;
    let (holder, other) = (
        Scripted::connect(&cluster, "worker-0").await,
        Scripted::connect(&cluster, "worker-1").await,
    );
    let objects = vec![ObjectRef::of(b"anything")];
    let unjoined: Result<Grants, _> = other
        .ask(
            Verb::Get,
            &GetRequest {
                v: V,
                objects: vec![objects[0].digest],
            },
        )
        .await;
    assert_eq!(refusal(unjoined), Code::NotJoined);
    let spec = holder.join().await;
    other.join().await;
    let lease = holder.claim().await.lease;

    // The other worker knows the lease's name, which is no secret.
    let puts: Result<Grants, _> = other
        .ask(
            Verb::Put,
            &PutRequest {
                v: V,
                lease,
                objects: objects.clone(),
            },
        )
        .await;
    assert_eq!(refusal(puts), Code::LeaseUnknown);
    let renews: Result<RenewReply, _> = other
        .ask(
            Verb::Renew,
            &RenewRequest {
                v: V,
                lease,
                steps_done: Steps(1),
                bytes_moved: Bytes(0),
            },
        )
        .await;
    assert_eq!(refusal(renews), Code::LeaseUnknown);
    let releases: Result<Done, _> = other
        .ask(
            Verb::Release,
            &ReleaseRequest {
                v: V,
                lease,
                reason: "mine".to_owned(),
            },
        )
        .await;
    assert_eq!(refusal(releases), Code::LeaseUnknown);
    let stage = StageRequest {
        v: V,
        lease,
        index: 0,
        object: objects[0],
    };
    let stages: Result<Done, _> = other.ask(Verb::Stage, &stage).await;
    assert_eq!(refusal(stages), Code::LeaseUnknown);
    let submits = other
        .submit(&spec, lease, Scripted::contribution(&spec, objects.clone()))
        .await;
    assert_eq!(refusal(submits), Code::LeaseUnknown);
    // To sign a statement under the holder's name, the other worker would need the holder's audit
    // key and subject.
    let invented = LeaseRef {
        epoch: Epoch(lease.epoch.0 + 1),
        ..lease
    };
    let puts: Result<Grants, _> = holder
        .ask(
            Verb::Put,
            &PutRequest {
                v: V,
                lease: invented,
                objects: objects.clone(),
            },
        )
        .await;
    assert_eq!(refusal(puts), Code::LeaseUnknown);

    let foreign: Result<Grants, _> = holder
        .ask(
            Verb::Get,
            &GetRequest {
                v: V,
                objects: vec![objects[0].digest],
            },
        )
        .await;
    assert_eq!(refusal(foreign), Code::ObjectForbidden);
    let own: Result<Grants, _> = holder
        .ask(
            Verb::Get,
            &GetRequest {
                v: V,
                objects: vec![spec.data.digest],
            },
        )
        .await;
    assert!(own.is_ok_and(|grants| grants.grants[0].action.is_some()));
    let done: Done = holder
        .ask(
            Verb::Leave,
            &LeaveRequest {
                v: V,
                session: holder.session(),
                reason: "enough".to_owned(),
            },
        )
        .await
        .unwrap();
    assert_eq!(done, Done::default());
    // The unit goes to a worker that waits for one.
    assert_eq!(other.claim().await.lease.unit, lease.unit);
}

/// A lease of a round that is not, in every message that names one. `tl_01`: a worker is not
/// believed what round it is.
#[tokio::test]
async fn tl_01_a_lease_of_another_round_is_nobodys_in_any_message() {
    let cluster = stage().await;
    let run = cluster.run().clone();
    let scripted = Scripted::connect(&cluster, "worker-0").await;
    let spec = scripted.join().await;
    let own = scripted.claim().await.lease;
    let object = ObjectRef::of(&chunk(&spec, 0.001, 0.0));
    let of = |round: u64, kind: UnitKind, index: u32, epoch: u64| LeaseRef {
        unit: UnitId {
            round: Round(round),
            kind,
            index: UnitIndex(index),
        },
        epoch: Epoch(epoch),
    };
    let train = UnitKind::Train;
    let spoofed = [
        of(1, train, 0, own.epoch.0),
        of(u64::MAX, train, 0, own.epoch.0),
        of(0, train, 1, own.epoch.0),
        of(0, train, u32::MAX, own.epoch.0),
        of(0, UnitKind::Evaluate, 0, own.epoch.0),
        of(0, train, 0, u64::MAX),
    ];
    let mut expected = Vec::new();
    for lease in spoofed {
        let renew = RenewRequest {
            v: V,
            lease,
            steps_done: Steps(1),
            bytes_moved: Bytes(0),
        };
        let release = ReleaseRequest {
            v: V,
            lease,
            reason: "mine".to_owned(),
        };
        let put = PutRequest {
            v: V,
            lease,
            objects: vec![object],
        };
        let stage = StageRequest {
            v: V,
            lease,
            index: 0,
            object,
        };
        let result = Scripted::contribution(&spec, vec![object]);
        let messages = [
            (Verb::Renew, renew.encode()),
            (Verb::Release, release.encode()),
            (Verb::Put, put.encode()),
            (Verb::Stage, stage.encode()),
            (Verb::Submit, scripted.result(&spec, lease, result).encode()),
        ];
        for (verb, message) in messages {
            let code = scripted.refused_raw(verb, message).await;
            assert_eq!(code, Some(Code::LeaseUnknown), "{verb} with {lease}");
            expected.push((verb.to_string(), Code::LeaseUnknown));
        }
    }
    // The own lease stands, and its result is the only one.
    let object = scripted.upload(own, chunk(&spec, 0.001, 0.0)).await;
    let result = Scripted::contribution(&spec, vec![object]);
    let told = scripted.submit(&spec, own, result).await;
    assert_eq!(told.expect("it fits").fate, Fate::Merged);
    cluster
        .operator()
        .await
        .until(&run, harness::PATIENCE, |view| view.round.get() == 1)
        .await;
    let ledger = cluster.evidence().await.ledger().await;
    let mut denied = Vec::new();
    let mut suppressed_later = 0;
    for event in &ledger {
        match event {
            LedgerEvent::RequestDenied {
                verb,
                code,
                suppressed,
                ..
            } => {
                denied.push((verb.clone(), *code));
                suppressed_later += suppressed;
            }
            LedgerEvent::LeaseGranted { lease, .. } => {
                assert!(!spoofed.contains(lease), "{lease} was granted");
            }
            LedgerEvent::ContributionAccepted { lease, .. } => assert_eq!(*lease, own),
            LedgerEvent::ContributionRejected { lease, .. } => panic!("{lease} was looked at"),
            _ => {}
        }
    }
    // The ledger takes a few refusals of one sender at once; these are the first ones.
    assert_eq!(suppressed_later, 0);
    assert!(denied.len() >= 16, "{denied:?}");
    assert_eq!(denied, expected[..denied.len()]);
}

#[tokio::test]
async fn fg_13_who_runs_otherwise_than_the_run_demands_cannot_join() {
    let cluster = stage().await;
    let scripted = Scripted::connect(&cluster, "worker-0").await;
    let mut open = scripted.join_request();
    open.posture.open.push(OpenLayer {
        layer: Layer::Bulk,
        reason: "easier".to_owned(),
    });
    let mut without = scripted.join_request();
    without.trainers = vec![TrainerKind::Synthetic];
    for (request, expected) in [(open, Code::LayerOpen), (without, Code::TrainerMissing)] {
        let joined: Result<schemas::member::JoinReply, _> =
            scripted.ask(Verb::Join, &request).await;
        assert_eq!(refusal(joined), expected);
    }
    let denied = cluster.evidence().await.everything().await;
    let codes: Vec<Code> = denied
        .iter()
        .filter_map(|one| match one.ledger() {
            Some(LedgerEvent::RequestDenied { code, worker, .. }) if *worker == scripted.worker => {
                Some(*code)
            }
            _ => None,
        })
        .collect();
    assert_eq!(
        codes,
        [Code::LayerOpen, Code::TrainerMissing],
        "TL-29: each denial leaves an event with its reason"
    );
}
