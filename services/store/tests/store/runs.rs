//! The pairs of runs, which the store derives from those in its file: each is for one run, and
//! those of stopped runs are refused, also after a restart.

use identity::{AccessKey, StoreKeys, UrlsOf};
use objects::key::{HolderTag, StoppedUrls};
use objects::presign::GRANT;
use objects::{BlobKey, IncomingKey, ObjectError, Taken};
use rusty_s3::Method;
use schemas::lease::{LeaseRef, UnitId, UnitKind};
use schemas::{Code, Epoch, ObjectRef, Round, RunId, UnitIndex, WorkerId};

use crate::rights::{ALL, Ask};
use crate::support::{TestStore, noise};

fn run(name: &str) -> RunId {
    name.parse().unwrap()
}

fn pairs(keys: &StoreKeys, urls: &UrlsOf) -> (AccessKey, AccessKey) {
    (keys.put.derived(urls), keys.get.derived(urls))
}

fn stopped(name: &str) -> StoppedUrls {
    name.parse().unwrap()
}

fn worker(letter: char) -> WorkerId {
    format!("U{}", String::from(letter).repeat(55))
        .parse()
        .unwrap()
}

/// The path of an upload to a run.
fn upload(name: &str, bytes: &[u8]) -> String {
    upload_of(name, &worker('B'), bytes)
}

/// The path of an upload of this worker.
fn upload_of(name: &str, worker: &WorkerId, bytes: &[u8]) -> String {
    let unit = UnitId {
        round: Round(3),
        kind: UnitKind::Train,
        index: UnitIndex(1),
    };
    let lease = LeaseRef {
        unit,
        epoch: Epoch(2),
    };
    let digest = ObjectRef::of(bytes).digest;
    let key = IncomingKey::worker(&run(name), lease, worker, digest);
    format!("/incoming/{key}")
}

fn operators(bytes: &[u8]) -> String {
    let operator = format!("U{}", "C".repeat(55)).parse().unwrap();
    let key = IncomingKey::operator(&operator, ObjectRef::of(bytes).digest);
    format!("/incoming/{key}")
}

async fn put(store: &TestStore, key: &AccessKey, path: String, bytes: &[u8]) -> u16 {
    Ask::upload(key, path, bytes, &ALL).status(store).await
}

async fn get(store: &TestStore, key: &AccessKey, blob: &str) -> u16 {
    Ask::new(key, Method::Get, blob.to_owned())
        .status(store)
        .await
}

async fn blob(store: &TestStore, bytes: &[u8]) -> String {
    let object = store.buckets().put_blob(bytes.to_vec().into()).await;
    format!("/blobs/{}", BlobKey(object.unwrap().digest))
}

#[tokio::test]
async fn tl_20_the_pair_of_a_run_uploads_for_that_run_alone() {
    let store = TestStore::start().await;
    let [demo, other, none] = [
        UrlsOf::Run(run("demo")),
        UrlsOf::Run(run("demo2")),
        UrlsOf::Operators,
    ];
    let body = noise(50, 2);
    let place = |urls: &UrlsOf| match urls {
        UrlsOf::Run(run) => upload(run.as_str(), &body),
        UrlsOf::Operators => operators(&body),
    };
    let all = [&demo, &other, &none];
    for signer in all {
        let (uploads, reads) = pairs(&store.keys, signer);
        for target in all.into_iter().filter(|target| *target != signer) {
            let status = put(&store, &uploads, place(target), &body).await;
            assert_eq!(status, 403, "{signer} for {target}");
        }
        assert_eq!(put(&store, &reads, place(signer), &body).await, 403);
    }
    assert_eq!(store.uploads().len(), 0);
    let verified = blob(&store, &body).await;
    for signer in all {
        let (uploads, reads) = pairs(&store.keys, signer);
        let status = put(&store, &uploads, place(signer), &body).await;
        assert_eq!(status, 200, "{signer}");
        assert_eq!(get(&store, &reads, &verified).await, 200, "{signer}");
        assert_eq!(get(&store, &uploads, &verified).await, 403, "{signer}");
    }
    assert_eq!(store.uploads().len(), 3);
    // The domain's own pair is that of a coordinator that derives none.
    let more = noise(50, 3);
    for path in [upload("demo", &more), operators(&more)] {
        assert_eq!(put(&store, &store.keys.put, path, &more).await, 200);
    }
    // Nobody derives pairs from the others, and none is derived from a derived one.
    let admin = store.keys.admin.derived(&demo);
    let twice = store.keys.get.derived(&demo).derived(&demo);
    for key in [admin, twice, AccessKey::generate().derived(&demo)] {
        assert_eq!(get(&store, &key, &verified).await, 403, "{key:?}");
    }
}

#[tokio::test]
async fn tl_20_the_urls_of_a_stopped_run_are_refused_at_once_and_after_a_restart_and_others_are_not()
 {
    let mut store = TestStore::start().await;
    let [demo, other] = ["demo", "demo2"].map(|name| UrlsOf::Run(run(name)));
    let verified = blob(&store, &noise(40, 1)).await;
    let takes = async |store: &TestStore, urls: &UrlsOf| {
        let urls = (urls, None);
        let takes = store.buckets().takes(urls, &store.keys.get, None).await;
        takes.unwrap()
    };
    assert_eq!(takes(&store, &demo).await, Taken::Taken);
    assert_eq!(takes(&store, &UrlsOf::Operators).await, Taken::Taken);
    store.buckets().stop_urls(&stopped("demo")).await.unwrap();
    store
        .buckets()
        .stop_urls(&stopped("demo"))
        .await
        .expect("again");
    for restarted in [false, true] {
        let body = noise(50, 2 + u64::from(restarted));
        let (uploads, reads) = pairs(&store.keys, &demo);
        for key in [&uploads, &store.keys.put] {
            let status = put(&store, key, upload("demo", &body), &body).await;
            assert_eq!(status, 403, "{restarted}");
        }
        let answer = Ask::new(&reads, Method::Get, verified.clone());
        let answer = answer.answer(&store).await;
        assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
        // Clients ask for another URL when one has expired, and hear from the coordinator why.
        assert!(answer.contains("the url has expired"), "{answer}");
        assert_eq!(takes(&store, &demo).await, Taken::Stopped);
        let (uploads, reads) = pairs(&store.keys, &other);
        assert_eq!(get(&store, &reads, &verified).await, 200);
        let status = put(&store, &uploads, upload("demo2", &body), &body).await;
        assert_eq!(status, 200);
        let none = pairs(&store.keys, &UrlsOf::Operators);
        assert_eq!(put(&store, &none.0, operators(&body), &body).await, 200);
        assert_eq!(get(&store, &none.1, &verified).await, 200);
        let known = store.buckets().stopped_urls().await.unwrap();
        assert_eq!(known, [stopped("demo")].into());
        if !restarted {
            store = store.again().await;
        }
    }
    // No other key says which runs are stopped.
    let file = "/blobs/stopped/demo".to_owned();
    let keys = [&store.keys.put, &store.keys.get].map(Clone::clone);
    let held = [store.keys.audit.clone(), store.keys.log.clone()];
    let derived = pairs(&store.keys, &demo);
    let all = keys.into_iter().chain(held.into_iter().flatten());
    for key in all.chain([derived.0, derived.1]) {
        let delete = Ask::new(&key, Method::Delete, file.clone());
        assert_eq!(delete.status(&store).await, 403, "{key:?}");
    }
    store.buckets().allow_urls(&stopped("demo")).await.unwrap();
    store
        .buckets()
        .allow_urls(&stopped("demo"))
        .await
        .expect("again");
    assert_eq!(takes(&store, &demo).await, Taken::Taken);
    assert!(store.buckets().stopped_urls().await.unwrap().is_empty());
    let body = noise(50, 9);
    let (uploads, _) = pairs(&store.keys, &demo);
    assert_eq!(
        put(&store, &uploads, upload("demo", &body), &body).await,
        200
    );
}

/// A URL to read that was given to this worker.
fn given(blob: &str, worker: &WorkerId, number: u64) -> String {
    format!(
        "{blob}?{GRANT}={}",
        HolderTag::of_worker(worker).grant(number)
    )
}

/// The other workers of the run go on, and so does the same key in another run.
#[tokio::test]
async fn tl_20_tl_31_the_urls_of_a_worker_that_is_shut_out_are_refused_at_once_and_after_a_restart()
{
    let mut store = TestStore::start().await;
    let [demo, other] = ["demo", "demo2"].map(|name| UrlsOf::Run(run(name)));
    let (out, stays) = (worker('B'), worker('C'));
    let tag = HolderTag::of_worker(&out);
    let verified = blob(&store, &noise(40, 1)).await;
    let takes = async |store: &TestStore, of: &UrlsOf, worker: &WorkerId| {
        let urls = (of, Some(HolderTag::of_worker(worker)));
        let takes = store.buckets().takes(urls, &store.keys.get, None).await;
        takes.unwrap()
    };
    assert_eq!(takes(&store, &demo, &out).await, Taken::Taken);
    let name = stopped(&format!("demo.{tag}"));
    store.buckets().stop_urls(&name).await.unwrap();
    for restarted in [false, true] {
        let body = noise(50, 2 + u64::from(restarted));
        let number = 2 * u64::from(restarted);
        let (uploads, reads) = pairs(&store.keys, &demo);
        // Whichever pair of the domain has signed the upload.
        for key in [&uploads, &store.keys.put] {
            let ask = Ask::upload(key, upload_of("demo", &out, &body), &body, &ALL);
            let answer = ask.answer(&store).await;
            assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
            let code = Code::WorkerQuarantined.to_string();
            assert!(answer.contains(&code), "{answer}");
        }
        let answer = Ask::new(&reads, Method::Get, given(&verified, &out, number));
        let answer = answer.answer(&store).await;
        assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
        assert!(
            answer.contains("the url has expired: an operator shut"),
            "{answer}"
        );
        let head = Ask::new(&reads, Method::Head, given(&verified, &out, number));
        assert_eq!(head.status(&store).await, 403);
        assert_eq!(takes(&store, &demo, &out).await, Taken::ShutOut);
        // Nobody else is touched.
        assert_eq!(takes(&store, &demo, &stays).await, Taken::Taken);
        let path = given(&verified, &stays, number);
        assert_eq!(get(&store, &reads, &path).await, 200);
        let path = upload_of("demo", &stays, &body);
        assert_eq!(put(&store, &uploads, path, &body).await, 200);
        let (uploads, reads) = pairs(&store.keys, &other);
        assert_eq!(takes(&store, &other, &out).await, Taken::Taken);
        let path = given(&verified, &out, number + 1);
        assert_eq!(get(&store, &reads, &path).await, 200);
        let path = upload_of("demo2", &out, &body);
        assert_eq!(put(&store, &uploads, path, &body).await, 200);
        let known = store.buckets().stopped_urls().await.unwrap();
        assert_eq!(known, [name.clone()].into());
        if !restarted {
            store = store.again().await;
        }
    }
    store.buckets().allow_urls(&name).await.unwrap();
    assert_eq!(takes(&store, &demo, &out).await, Taken::Taken);
    let body = noise(50, 9);
    let (uploads, _) = pairs(&store.keys, &demo);
    let path = upload_of("demo", &out, &body);
    assert_eq!(put(&store, &uploads, path, &body).await, 200);
}

/// A store that does not derive pairs, as those of others, knows no such access key.
#[tokio::test]
async fn tl_20_a_store_that_derives_no_pairs_is_told_from_one_that_does() {
    let store = TestStore::start().await;
    let (buckets, strange) = (store.buckets(), AccessKey::generate());
    let takes = async |get: &AccessKey| buckets.takes((&UrlsOf::Operators, None), get, None).await;
    assert_eq!(takes(&store.keys.get).await.unwrap(), Taken::Taken);
    let none = Taken::NoPair("InvalidAccessKeyId".to_owned());
    assert_eq!(takes(&strange).await.unwrap(), none);
    // A pair that signs uploads may read nothing. That says nothing about what the store derives.
    let refused = takes(&store.keys.put).await;
    assert!(
        matches!(refused, Err(ObjectError::Refused { status: 403, .. })),
        "{refused:?}"
    );
}
