//! Lists of chunks that are false, or that name objects which their worker did not upload.

use runtime::BusError;
use schemas::contribution::{Fate, SubmitReply};
use schemas::lease::{Done, ReleaseRequest};
use schemas::subject::Verb;
use schemas::{Bytes, Chunks, Code, Listed, ObjectRef, V};

use crate::scene::{Scene, Worker};

fn code(reply: Result<SubmitReply, BusError>) -> Code {
    match reply {
        Err(BusError::Refused(refusal)) => refusal.code,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

/// Uploads bytes with the length of a list, and hands them in as one, with totals that fit the run.
/// Returns the code of the refusal.
async fn hand_in(worker: &Worker, bytes: Vec<u8>, total: Bytes) -> Code {
    let manifest = worker.claim().await.expect("the unit is issued again");
    let listed = Listed {
        list: ObjectRef::of(&bytes),
        chunks: u32::try_from(worker.spec.model.initial.count()).expect("few chunks"),
        total,
    };
    worker.scripted.upload(manifest.lease, bytes).await;
    code(worker.submit_named(&manifest, Chunks::Listed(listed)).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_false_list_is_refused_with_its_code_and_its_unit_issued_again() {
    let scene = Scene::start_listed(1).await;
    let worker = scene.worker("worker-0").await;
    let manifest = worker.claim().await.expect("work");
    let base = worker.fetch(&manifest.base).await;
    let chunks = worker.contribution(&manifest, &base);
    let objects: Vec<ObjectRef> = chunks.iter().map(|bytes| ObjectRef::of(bytes)).collect();
    let (sound, list) = Listed::of(&objects);
    // Neither the chunks nor the list were uploaded.
    let absent = worker.submit_named(&manifest, Chunks::Listed(sound)).await;
    assert_eq!(code(absent), Code::UploadMissing);
    let release = ReleaseRequest {
        v: V,
        lease: manifest.lease,
        reason: "another unit".into(),
    };
    let _: Done = worker.ask(Verb::Release, &release).await.expect("released");

    let total = sound.total;
    let changed = |place: usize, byte: u8| {
        let mut bytes = list.clone();
        bytes[place] = byte;
        bytes
    };
    let header = "diloco-chunks/1\n".len();
    let no_list = hand_in(&worker, vec![7; list.len()], total).await;
    assert_eq!(no_list, Code::ListInvalid);
    let another_version = hand_in(&worker, changed(header - 2, b'2'), total).await;
    assert_eq!(another_version, Code::ListInvalid);
    let longer = hand_in(&worker, changed(header, 0xff), total).await;
    assert_eq!(longer, Code::ListMismatch);
    let less = hand_in(&worker, list.clone(), Bytes(total.get() - 2)).await;
    assert_eq!(less, Code::ListMismatch);
    // The sum of the lengths is right, but two lengths are not.
    let mut other = objects.clone();
    other[0].bytes.0 -= 2;
    other[1].bytes.0 += 2;
    let other = hand_in(&worker, Listed::of(&other).1, total).await;
    assert_eq!(other, Code::SizeMismatch);
}

/// The digests of another worker's chunks give no right to them: objects under another lease do not
/// count under this one, and neither do objects in `blobs`.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_what_others_uploaded_does_not_count() {
    let scene = Scene::start_listed(1).await;
    let (maker, thief) = (
        scene.worker("worker-0").await,
        scene.worker("worker-1").await,
    );
    let manifest = maker.claim().await.expect("work");
    let base = maker.fetch(&manifest.base).await;
    let chunks = maker.contribution(&manifest, &base);
    let objects = maker.upload(&manifest, chunks).await;
    let stolen = thief.claim().await.expect("the other unit");
    let (listed, list) = Listed::of(&objects);
    thief.scripted.upload(stolen.lease, list.clone()).await;
    let reply = thief.submit_named(&stolen, Chunks::Listed(listed)).await;
    assert_eq!(code(reply), Code::UploadMissing);

    // Their maker hands them in. Then they are in `blobs`, and the thief still may not use them.
    maker.scripted.upload(manifest.lease, list).await;
    let reply = maker.submit_named(&manifest, Chunks::Listed(listed)).await;
    assert_eq!(reply.expect("accepted").fate, Fate::Merged);
    let reply = thief.submit_named(&stolen, Chunks::Listed(listed)).await;
    assert_eq!(code(reply), Code::UploadMissing);
    // The thief may not read them either: they are no weights.
    let get = schemas::blob::GetRequest {
        v: V,
        objects: vec![objects[0].digest, listed.list.digest],
    };
    match thief.ask::<_, schemas::blob::Grants>(Verb::Get, &get).await {
        Err(BusError::Refused(refusal)) => assert_eq!(refusal.code, Code::ObjectForbidden),
        other => panic!("expected a refusal, got {other:?}"),
    }
}
