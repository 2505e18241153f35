//! The bucket `log`: who may write there, and what nobody may change.

use std::time::Duration;

use bytes::Bytes;
use identity::AccessKey;
use objects::{LogBucket, ObjectError, Replaced};
use rusty_s3::Method;

use crate::rights::Ask;
use crate::support::TestStore;

fn log(store: &TestStore, key: &AccessKey) -> LogBucket {
    let patience = Duration::from_secs(2);
    LogBucket::new(&store.endpoint(), key, Default::default(), patience).unwrap()
}

fn own(store: &TestStore) -> AccessKey {
    store.keys.log.clone().expect("it was generated")
}

fn bytes(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

/// An upload without a condition.
fn plain<'a>(key: &'a AccessKey, path: &str, body: &[u8]) -> Ask<'a> {
    let mut ask = Ask::new(key, Method::Put, path.to_owned());
    ask.signed = vec![("content-length", body.len().to_string())];
    ask.body = body.to_vec();
    ask
}

/// The HTTP status of a refusal.
fn status<T: std::fmt::Debug>(refused: Result<T, ObjectError>) -> u16 {
    match refused {
        Err(ObjectError::Refused { status, .. }) => status,
        other => panic!("no refusal: {other:?}"),
    }
}

#[tokio::test]
async fn fg_07_a_head_a_full_tile_and_a_full_bundle_stay_as_they_were_written() {
    let store = TestStore::start().await;
    let log = log(&store, &own(&store));
    for name in ["heads/7", "tile/0/000", "tile/entries/x001/067"] {
        let first = log.create(name, &bytes("first")).await.unwrap();
        assert_eq!(first, Replaced::Yes, "{name}");
        let again = log.create(name, &bytes("second")).await.unwrap();
        assert_eq!(again, Replaced::No, "{name}");
        let found = log.get(name).await.unwrap().expect("it is there");
        assert_eq!(found.bytes, bytes("first"), "{name}");
        let over = log.replace(name, &bytes("second"), &found.tag).await;
        assert_eq!(status(over), 403, "{name}");
        assert_eq!(status(log.delete(name).await), 403, "{name}");
        // Nor without a condition, with this key or the coordinator's.
        for key in [own(&store), store.keys.admin.clone()] {
            let path = format!("/log/{name}");
            let refused = plain(&key, &path, b"second").status(&store).await;
            assert!([403, 412].contains(&refused), "{name}: {refused}");
            let deleted = Ask::new(&key, Method::Delete, path).status(&store).await;
            assert_eq!(deleted, 403, "{name}");
        }
        let found = log.get(name).await.unwrap().expect("it is there");
        assert_eq!(found.bytes, bytes("first"), "{name}");
    }
}

#[tokio::test]
async fn a_partial_file_of_the_log_goes_when_the_full_one_is_there() {
    let store = TestStore::start().await;
    let log = log(&store, &own(&store));
    let (part, full) = ("tile/0/000.p/3", "tile/0/000");
    log.create(part, &bytes("part")).await.unwrap();
    assert_eq!(
        log.create(part, &bytes("other")).await.unwrap(),
        Replaced::No
    );
    assert_eq!(status(log.delete(part).await), 403, "there is no full one");
    log.create(full, &bytes("full")).await.unwrap();
    log.delete(part).await.unwrap();
    assert_eq!(log.get(part).await.unwrap(), None);
    log.delete(part).await.unwrap();
}

/// The newest head of each witness takes the place of the one before, and nothing else does.
#[tokio::test]
async fn fg_07_a_cosigned_head_is_replaced_by_the_logs_own_key_alone() {
    let store = TestStore::start().await;
    let log_of = log(&store, &own(&store));
    let name = format!("cosigned/U{}", "A".repeat(55));
    for text in ["first", "second"] {
        log_of.overwrite(&name, &bytes(text)).await.unwrap();
        let found = log_of.get(&name).await.unwrap().expect("it is there");
        assert_eq!(found.bytes, bytes(text));
    }
    let again = log_of.create(&name, &bytes("third")).await.unwrap();
    assert_eq!(again, Replaced::No);
    let over = log_of.replace(&name, &bytes("third"), "\"0\"").await;
    assert_eq!(status(over), 403);
    assert_eq!(status(log_of.delete(&name).await), 403);
    let long = Bytes::from(vec![b'x'; 1 + tlog::note::NOTE_BYTES_MAX]);
    assert_eq!(status(log_of.overwrite(&name, &long).await), 400);
    for other in [
        &store.keys.admin,
        store.keys.audit.as_ref().expect("it was generated"),
    ] {
        let written = log(&store, other).overwrite(&name, &bytes("x")).await;
        assert_eq!(status(written), 403, "{other:?}");
    }
    let found = log_of.get(&name).await.unwrap().expect("it is there");
    assert_eq!(found.bytes, bytes("second"));
    // What may not be written over is not, by the log's own key either.
    log_of.create("heads/3", &bytes("head")).await.unwrap();
    assert_eq!(
        status(log_of.overwrite("checkpoint", &bytes("x")).await),
        403
    );
    let head = log_of.get("heads/3").await.unwrap();
    assert_eq!(head.map(|file| file.bytes), Some(bytes("head")));
}

#[tokio::test]
async fn fg_07_of_two_writers_of_the_checkpoint_the_one_that_knows_an_older_one_loses() {
    let store = TestStore::start().await;
    let log = log(&store, &own(&store));
    let name = "checkpoint";
    assert_eq!(log.get(name).await.unwrap(), None);
    let nothing = log.replace(name, &bytes("one"), "\"0\"").await.unwrap();
    assert_eq!(nothing, Replaced::No, "there is none to replace");
    assert_eq!(
        log.create(name, &bytes("one")).await.unwrap(),
        Replaced::Yes
    );
    assert_eq!(log.create(name, &bytes("two")).await.unwrap(), Replaced::No);
    let first = log.get(name).await.unwrap().expect("it is there");
    // Two with the same length, at the same moment: the tag tells them apart.
    let both = [bytes("two"), bytes("six")];
    let replaced = tokio::join!(
        log.replace(name, &both[0], &first.tag),
        log.replace(name, &both[1], &first.tag)
    );
    let replaced = [replaced.0.unwrap(), replaced.1.unwrap()];
    let won = replaced.iter().filter(|it| **it == Replaced::Yes).count();
    assert_eq!(won, 1, "{replaced:?}");
    let winner = usize::from(replaced[1] == Replaced::Yes);
    let now = log.get(name).await.unwrap().expect("it is there");
    assert_eq!(now.bytes, both[winner]);
    assert_ne!(now.tag, first.tag);
    assert_eq!(status(log.delete(name).await), 403);
    let key = own(&store);
    let without = plain(&key, "/log/checkpoint", b"x").status(&store).await;
    assert_eq!(without, 403, "without a condition");
}

#[tokio::test]
async fn fg_07_nobody_else_writes_the_log_and_its_key_writes_nothing_else() {
    let store = TestStore::start().await;
    let (keys, key) = (&store.keys, own(&store));
    let log_of = log(&store, &key);
    log_of.create("heads/1", &bytes("head")).await.unwrap();
    let audit = keys.audit.clone().expect("it was generated");
    let others = [&keys.admin, &keys.put, &keys.get, &audit];
    for other in others {
        let created = log(&store, other).create("heads/2", &bytes("x")).await;
        assert_eq!(status(created), 403, "{other:?}");
        let created = log(&store, other).create("checkpoint", &bytes("x")).await;
        assert_eq!(status(created), 403, "{other:?}");
        assert_eq!(
            status(log(&store, other).delete("heads/1").await),
            403,
            "{other:?}"
        );
    }
    // The auditor reads it, and URLs of the coordinator do not.
    let read = log(&store, &audit).get("heads/1").await.unwrap();
    assert_eq!(read.map(|file| file.bytes), Some(bytes("head")));
    for other in [&keys.put, &keys.get] {
        assert_eq!(status(log(&store, other).get("heads/1").await), 403);
    }
    let headers = ["content-length", "if-none-match", "x-amz-checksum-sha256"];
    for path in ["/blobs/named", "/incoming/named", "/log/named"] {
        let put = Ask::upload(&key, path.into(), b"x", &headers)
            .status(&store)
            .await;
        let refused = if path.starts_with("/log") { 400 } else { 403 };
        assert_eq!(put, refused, "{path}");
    }
    for path in ["/log?list-type=2", "/blobs?list-type=2"] {
        let listed = Ask::new(&key, Method::Get, path.into())
            .status(&store)
            .await;
        assert_eq!(listed, 403, "{path}");
    }
}

#[tokio::test]
async fn fg_07_the_checkpoint_goes_on_and_never_back() {
    let store = TestStore::start().await;
    let log = log(&store, &own(&store));
    let text = |size: u64, root: &str, rest: &str| -> Bytes {
        format!("diloco/x\n{size}\n{root}\n\n{rest}\n").into()
    };
    let name = "checkpoint";
    log.create(name, &text(20, "a", "")).await.unwrap();
    let replace = async |bytes: Bytes| {
        let known = log.get(name).await.unwrap().expect("it is there");
        log.replace(name, &bytes, &known.tag).await
    };
    for back in [
        text(19, "a", ""),
        text(20, "b", ""),
        text(3, "a", ""),
        bytes("x"),
    ] {
        assert_eq!(status(replace(back).await), 403);
        let now = log.get(name).await.unwrap().expect("it is there");
        assert_eq!(now.bytes, text(20, "a", ""));
    }
    for on in [
        text(20, "a", "signed again"),
        text(21, "b", ""),
        text(100, "c", ""),
    ] {
        assert_eq!(replace(on.clone()).await.unwrap(), Replaced::Yes);
        let now = log.get(name).await.unwrap().expect("it is there");
        assert_eq!(now.bytes, on);
    }
}
