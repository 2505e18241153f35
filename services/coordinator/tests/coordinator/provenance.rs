//! The provenance of contributions: the coordinator counts none whose worker has not signed what it
//! was made from.

use identity::AuditKey;
use runtime::{BusError, StreamReader};
use schemas::contribution::{Fate, SubmitReply, SubmitRequest};
use schemas::event::{Event, EventBody, LedgerEvent, SignedEvent};
use schemas::permission::Role;
use schemas::subject::{LEDGER_STREAM, Verb};
use schemas::{Code, Message as _, ObjectRef};
use serde_bytes::ByteArray;

use crate::scene::{Scene, Worker};

/// Hands in what is made of an honest result of a new lease. Returns the code of the refusal.
async fn hand_in(worker: &Worker, change: &dyn Fn(&mut SubmitRequest)) -> Result<Fate, Code> {
    let manifest = worker.claim().await.expect("work");
    let base = worker.fetch(&manifest.base).await;
    let chunks: Vec<ObjectRef> = worker
        .upload(&manifest, worker.contribution(&manifest, &base))
        .await;
    let contribution = kit::contribution(&worker.spec, chunks);
    let lease = manifest.lease;
    let mut request = worker.scripted.result(&worker.spec, lease, contribution);
    change(&mut request);
    match worker.ask::<_, SubmitReply>(Verb::Submit, &request).await {
        Ok(reply) => Ok(reply.fate),
        Err(BusError::Refused(refusal)) => Err(refusal.code),
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tl_19_a_contribution_counts_only_with_a_provenance_that_its_worker_signed() {
    let scene = Scene::start(1).await;
    let worker = scene.worker("worker-0").await;
    let stranger = AuditKey::generate();
    type Change<'a> = &'a dyn Fn(&mut SubmitRequest);
    let refused: [(&str, Change<'_>); 3] = [
        ("none", &|request| request.provenance = None),
        ("a stranger's", &|request| {
            let signature = stranger.sign_provenance(b"{}");
            request.provenance = Some(ByteArray::new(signature));
        }),
        ("the one over the worker's statement", &|request| {
            request.provenance = Some(request.signature);
        }),
    ];
    for (what, change) in refused {
        let code = hand_in(&worker, change).await;
        assert_eq!(code, Err(Code::ProvenanceInvalid), "{what}");
    }
    let signed = std::cell::RefCell::new(Vec::new());
    for _ in 0..2 {
        let keep = |request: &mut SubmitRequest| {
            let signature = request.provenance.as_deref().copied();
            signed.borrow_mut().push(signature);
        };
        assert_eq!(hand_in(&worker, &keep).await, Ok(Fate::Merged));
    }
    // The ledger has the signatures of those that count, and no others count.
    assert_eq!(recorded(&scene).await, signed.into_inner());
}

/// The signatures of the accepted contributions, in the order of the ledger.
async fn recorded(scene: &Scene) -> Vec<Option<[u8; 64]>> {
    let role = Role::LedgerWriter;
    let bus = scene.cluster.connect(role, role.name()).await;
    let stream = StreamReader::new(bus, LEDGER_STREAM);
    let (mut next, mut all) = (1, Vec::new());
    while let Some(message) = stream.next(next).await.expect("the broker answers") {
        next = message.sequence + 1;
        let signed = SignedEvent::decode(&message.payload).expect("an event");
        let body = EventBody::decode(&signed.body).expect("an event");
        if let Event::Ledger(LedgerEvent::ContributionAccepted { provenance, .. }) = body.event {
            all.push(provenance.as_deref().copied());
        }
    }
    all
}
