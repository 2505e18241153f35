//! What the store refused is listed for the audit service's key, and for nobody else.

use identity::AccessKey;
use rusty_s3::Method;
use schemas::security::{STORE_REFUSALS, StoreRefusal, StoreRefusals};

use crate::rights::Ask;
use crate::support::{TestStore, noise};

fn list() -> String {
    format!("/log/{STORE_REFUSALS}")
}

async fn listed(store: &TestStore) -> StoreRefusals {
    let key = store.keys.log.clone().expect("it was generated");
    let answer = Ask::new(&key, Method::Get, list()).answer(store).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let body = answer.split("\r\n\r\n").nth(1).expect("a body");
    serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {body}"))
}

fn reasons(list: &StoreRefusals) -> Vec<(&str, &str, &str, u64)> {
    let of = |one: &'_ StoreRefusal| one.count;
    let refusals = list.refusals.iter();
    let mut all: Vec<_> = refusals
        .map(|one| {
            let reason = one.reason.as_str();
            (one.key.as_str(), one.request.as_str(), reason, of(one))
        })
        .collect();
    all.sort_unstable();
    all
}

#[tokio::test]
async fn tl_29_refused_requests_are_listed_with_their_reason_and_tl_22_without_their_secrets() {
    let store = TestStore::start().await;
    assert_eq!(listed(&store).await.refusals, []);
    let bytes = noise(40, 1);
    let object = store.buckets().put_blob(bytes).await.unwrap();
    let blob = format!("/blobs/{}", objects::BlobKey(object.digest));
    // A key that the store does not have, and one that may not do this, twice.
    let stranger = AccessKey::generate();
    let ask = |key, path: &str| Ask::new(key, Method::Get, path.to_owned());
    assert_eq!(ask(&stranger, &blob).status(&store).await, 403);
    for _ in 0..2 {
        let note = ask(&store.keys.get, "/blobs/notes/one");
        assert_eq!(note.status(&store).await, 403);
    }
    // A false signature under the name of a true key.
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("forged.json");
    stranger.write_log(&file).unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace(stranger.id(), store.keys.admin.id())).unwrap();
    let forged = AccessKey::read_log(&file).unwrap();
    assert_eq!(ask(&forged, &blob).status(&store).await, 403);
    // What is there and what is not there is no refusal.
    let good = ask(&store.keys.get, &blob);
    assert_eq!(good.status(&store).await, 200);
    let absent = objects::BlobKey(schemas::Digest::of(b"absent"));
    let absent = ask(&store.keys.get, &format!("/blobs/{absent}"))
        .status(&store)
        .await;
    assert_eq!(absent, 404);

    let list = listed(&store).await;
    let found = reasons(&list);
    assert_eq!(found.len(), 3, "{found:?}");
    let [unknown, false_one, other] = found[..] else {
        panic!("{found:?}");
    };
    assert_eq!((unknown.0, unknown.1, unknown.3), ("", "GET blobs", 1));
    assert!(unknown.2.starts_with("InvalidAccessKeyId"), "{found:?}");
    assert_eq!((false_one.0, false_one.3), ("admin", 1));
    assert!(
        false_one.2.starts_with("SignatureDoesNotMatch"),
        "{found:?}"
    );
    assert_eq!((other.0, other.3), ("get", 2));
    assert_eq!(other.2, "AccessDenied: not a right of this key");
    assert!(list.refusals.iter().all(|one| one.address == "127.0.0.1"));
    let text = serde_json::to_string(&list).expect("it is data");
    for secret in [
        stranger.expose_secret(),
        stranger.id(),
        store.keys.get.expose_secret(),
        store.keys.get.id(),
        &object.digest.hex(),
        "Signature=",
    ] {
        assert!(!text.contains(secret), "{text}");
    }
}

/// What a requester writes stands in no row, also where the store refuses the request for it.
#[tokio::test]
async fn tl_22_no_text_of_a_requester_is_listed() {
    let store = TestStore::start().await;
    let bytes = noise(40, 1);
    let object = store.buckets().put_blob(bytes).await.unwrap();
    let blob = format!("/blobs/{}", objects::BlobKey(object.digest));
    let mut asked = Ask::new(&store.keys.get, Method::Get, blob);
    let header = ("x-amz-chosen-by-me", "chosen".to_owned());
    asked.unsigned.push(header);
    assert_eq!(asked.status(&store).await, 403);
    let list = listed(&store).await;
    let [one] = &list.refusals[..] else {
        panic!("{list:?}");
    };
    assert_eq!(
        one.reason,
        "AccessDenied: a header that begins with x-amz- is not signed"
    );
    let text = serde_json::to_string(&list).expect("it is data");
    assert!(!text.contains("chosen"), "{text}");
}

#[tokio::test]
async fn tl_29_only_the_audit_services_key_reads_the_list_and_no_key_changes_it() {
    let store = TestStore::start().await;
    let keys = &store.keys;
    let (audit, log) = (keys.audit.clone().unwrap(), keys.log.clone().unwrap());
    for key in [&keys.admin, &keys.put, &keys.get, &audit] {
        let asked = Ask::new(key, Method::Get, list());
        assert_eq!(asked.status(&store).await, 403, "{}", key.id());
    }
    for key in [&keys.admin, &log] {
        for method in [Method::Put, Method::Delete, Method::Head] {
            let mut asked = Ask::new(key, method, list());
            if method == Method::Put {
                asked.body = b"note".to_vec();
                asked.unsigned.push(("content-length", "4".to_owned()));
            }
            assert_eq!(asked.status(&store).await, 403, "{method:?} {}", key.id());
        }
    }
    assert!(!listed(&store).await.refusals.is_empty());
}
