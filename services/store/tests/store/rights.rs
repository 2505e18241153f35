//! The rights table, cell by cell: each key may do what it says, and nothing else.

use std::time::Duration;

use identity::{AccessKey, StoreKeys};
use objects::BlobKey;
use rusty_s3::Method;
use schemas::{Code, ObjectRef};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::connections::tls;
use crate::support::{TestStore, key_of, noise};

const PATIENCE: Duration = Duration::from_secs(10);

/// One request: the key and the operation that it signs, and the headers that the signature covers.
pub(crate) struct Ask<'a> {
    key: &'a AccessKey,
    method: Method,
    path: String,
    pub(crate) signed: Vec<(&'static str, String)>,
    pub(crate) unsigned: Vec<(&'static str, String)>,
    pub(crate) body: Vec<u8>,
    /// Seconds for which the signature is valid.
    life: u64,
}

impl<'a> Ask<'a> {
    pub(crate) fn new(key: &'a AccessKey, method: Method, path: String) -> Self {
        Self {
            key,
            method,
            path,
            signed: Vec::new(),
            unsigned: Vec::new(),
            body: Vec::new(),
            life: 60,
        }
    }

    /// An upload as the coordinator grants it; the signature covers all of `covered`.
    pub(crate) fn upload(key: &'a AccessKey, path: String, body: &[u8], covered: &[&str]) -> Self {
        let mut ask = Self {
            body: body.to_vec(),
            ..Self::new(key, Method::Put, path)
        };
        for (name, value) in [
            ("content-length", body.len().to_string()),
            ("if-none-match", "*".to_owned()),
            ("x-amz-checksum-sha256", checksum(body)),
        ] {
            let list = if covered.contains(&name) {
                &mut ask.signed
            } else {
                &mut ask.unsigned
            };
            list.push((name, value));
        }
        ask
    }

    /// Sends the request and returns the status.
    pub(crate) async fn status(self, store: &TestStore) -> u16 {
        let text = self.answer(store).await;
        text.split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .unwrap_or_else(|| panic!("{text}"))
    }

    pub(crate) async fn answer(self, store: &TestStore) -> String {
        let url: url::Url = format!("https://{}{}", store.address, self.path)
            .parse()
            .unwrap();
        let query: Vec<(String, String)> = url.query_pairs().into_owned().collect();
        let mut plain = url;
        plain.set_query(None);
        let signed = rusty_s3::signing::sign(
            &jiff::Timestamp::now(),
            self.method,
            plain,
            self.key.id(),
            self.key.expose_secret(),
            None,
            "us-east-1",
            self.life,
            query
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_str())),
            self.signed
                .iter()
                .map(|(name, value)| (*name, value.as_str())),
        );
        let path = signed
            .as_str()
            .strip_prefix(&format!("https://{}", store.address))
            .unwrap()
            .to_owned();
        let method = self.method.to_str();
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n",
            store.address
        );
        for (name, value) in self.signed.iter().chain(&self.unsigned) {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let mut stream = tls(store.address, &store.authority).await;
        stream
            .write_all(format!("{head}\r\n").as_bytes())
            .await
            .unwrap();
        // A refusal may come before the body is sent completely.
        let _closed = stream.write_all(&self.body).await;
        let mut answer = Vec::new();
        let _closed = timeout(PATIENCE, stream.read_to_end(&mut answer))
            .await
            .expect("an answer");
        String::from_utf8_lossy(&answer).into_owned()
    }
}

pub(crate) fn checksum(body: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(ObjectRef::of(body).digest.as_bytes())
}

/// Objects in a store, each as a path: an upload, a verified object, a named file.
struct Things {
    upload: String,
    blob: String,
    named: String,
}

async fn things(store: &TestStore) -> Things {
    let bytes = noise(40, 1);
    let object = store.buckets().put_blob(bytes.clone()).await.unwrap();
    let upload = format!("/incoming/{}", key_of(object));
    let put = Ask::upload(&store.keys.put, upload.clone(), &bytes, &ALL);
    assert_eq!(put.status(store).await, 200, "the put key puts");
    let named = "/blobs/notes/one".to_owned();
    let mut write = Ask {
        body: b"note".to_vec(),
        ..Ask::new(&store.keys.admin, Method::Put, named.clone())
    };
    write.unsigned.push(("content-length", "4".to_owned()));
    assert_eq!(
        write.status(store).await,
        200,
        "the admin key writes named files"
    );
    Things {
        upload,
        blob: format!("/blobs/{}", BlobKey(object.digest)),
        named,
    }
}

pub(crate) const ALL: [&str; 3] = ["content-length", "if-none-match", "x-amz-checksum-sha256"];

#[tokio::test]
async fn the_get_key_and_tl_04_the_auditors_key_read_verified_objects_and_nothing_else() {
    let keys: [fn(&StoreKeys) -> AccessKey; 2] = [
        |keys| keys.get.clone(),
        |keys| keys.audit.clone().expect("it was generated"),
    ];
    for key in keys {
        let store = TestStore::start().await;
        reads_verified_objects_alone(&store, &key(&store.keys)).await;
    }
}

/// An auditor holds its key, so no URL of anybody else is needed: the reader signs its own.
#[tokio::test]
async fn tl_04_an_auditor_reads_objects_with_its_own_key() {
    let store = TestStore::start().await;
    let bytes = noise(40, 1);
    let object = store.buckets().put_blob(bytes.clone()).await.unwrap();
    let auditors = store.keys.audit.clone().expect("it was generated");
    let reader = |key: &AccessKey| {
        let patience = Duration::from_millis(300);
        objects::BlobReader::new(&store.endpoint(), key, Default::default(), patience).unwrap()
    };
    assert_eq!(reader(&auditors).get(object).await.unwrap(), bytes);
    let longer = ObjectRef {
        bytes: schemas::Bytes(41),
        ..object
    };
    let code = |read: Result<_, objects::ObjectError>| read.map(drop).map_err(|e| e.code());
    let (mismatch, missing) = (Code::ObjectMismatch, Code::ObjectMissing);
    assert_eq!(code(reader(&auditors).get(longer).await), Err(mismatch));
    let absent = ObjectRef::of(b"absent");
    assert_eq!(code(reader(&auditors).get(absent).await), Err(missing));
    let stranger = AccessKey::generate();
    assert!(reader(&stranger).get(object).await.is_err());
}

async fn reads_verified_objects_alone(store: &TestStore, get: &AccessKey) {
    let Things {
        upload,
        blob,
        named,
    } = things(store).await;
    let ask = async |method, path: &str| Ask::new(get, method, path.to_owned()).status(store).await;
    assert_eq!(
        (
            ask(Method::Get, &blob).await,
            ask(Method::Head, &blob).await
        ),
        (200, 200)
    );
    for path in [&upload, &named] {
        assert_eq!(
            (ask(Method::Get, path).await, ask(Method::Head, path).await),
            (403, 403),
            "{path}"
        );
    }
    for path in [&blob, &upload, &named] {
        assert_eq!(ask(Method::Delete, path).await, 403, "{path}");
        assert_eq!(
            Ask::upload(get, path.clone(), b"x", &ALL)
                .status(store)
                .await,
            403,
            "{path}"
        );
    }
    for path in ["/blobs?list-type=2", "/incoming?list-type=2"] {
        assert_eq!(ask(Method::Get, path).await, 403, "{path}");
    }
    let stranger = Ask::new(&AccessKey::generate(), Method::Get, blob)
        .answer(store)
        .await;
    assert!(
        stranger.contains("InvalidAccessKeyId"),
        "a key that is none of ours has no rights at all: {stranger}"
    );
}

#[tokio::test]
async fn the_put_key_makes_uploads_whose_every_promise_is_signed_and_nothing_else() {
    let store = TestStore::start().await;
    let Things {
        upload,
        blob,
        named,
    } = things(&store).await;
    let put = &store.keys.put;
    let body = noise(50, 2);
    let fresh = format!("/incoming/{}", key_of(ObjectRef::of(&body)));
    for left_out in ALL {
        let covered: Vec<&str> = ALL.into_iter().filter(|name| *name != left_out).collect();
        let status = Ask::upload(put, fresh.clone(), &body, &covered)
            .status(&store)
            .await;
        assert_eq!(status, 403, "{left_out} is not signed");
    }
    let other = noise(60, 3);
    for path in [
        format!("/blobs/{}", BlobKey(ObjectRef::of(&other).digest)),
        named.clone(),
    ] {
        assert_eq!(
            Ask::upload(put, path.clone(), &other, &ALL)
                .status(&store)
                .await,
            403,
            "{path}"
        );
    }
    for path in [&upload, &blob, &named] {
        for method in [Method::Get, Method::Head, Method::Delete] {
            assert_eq!(
                Ask::new(put, method, path.clone()).status(&store).await,
                403,
                "{method:?} {path}"
            );
        }
    }
    // The same holds if the signature covers everything that an upload's must cover.
    for method in [Method::Get, Method::Head, Method::Delete] {
        let ask = Ask {
            method,
            ..Ask::upload(put, upload.clone(), b"", &ALL)
        };
        assert_eq!(ask.status(&store).await, 403, "{method:?} {upload}");
    }
    assert_eq!(store.uploads().len(), 1);
    assert_eq!(
        Ask::upload(put, fresh, &body, &ALL).status(&store).await,
        200
    );
}

/// A key names the digest of its bytes. The holder of a key that may sign uploads cannot store
/// other bytes there, whatever checksum it sends, or if it sends none.
#[tokio::test]
async fn bytes_that_are_not_those_of_the_digest_in_their_key_are_refused() {
    let store = TestStore::start().await;
    let (truth, lie) = (noise(50, 4), noise(50, 5));
    let object = ObjectRef::of(&truth);
    let (upload, blob) = (
        format!("/incoming/{}", key_of(object)),
        format!("/blobs/{}", BlobKey(object.digest)),
    );
    let StoreKeys { admin, put, .. } = &store.keys;
    assert_eq!(
        Ask::upload(put, upload.clone(), &lie, &ALL)
            .status(&store)
            .await,
        400
    );
    for path in [&upload, &blob] {
        assert_eq!(
            Ask::upload(admin, path.clone(), &lie, &ALL)
                .status(&store)
                .await,
            400,
            "{path}"
        );
        let mut bare = Ask {
            body: lie.to_vec(),
            ..Ask::new(admin, Method::Put, path.clone())
        };
        bare.unsigned
            .push(("content-length", lie.len().to_string()));
        assert_eq!(bare.status(&store).await, 400, "{path} without a checksum");
    }
    assert_eq!(
        (store.uploads(), store.unfinished()),
        (Vec::new(), Vec::new())
    );
    assert_eq!(store.buckets().exists(object.digest).await.unwrap(), None);
    assert_eq!(
        Ask::upload(put, upload, &truth, &ALL).status(&store).await,
        200,
        "the right bytes"
    );
}

/// Such a header changes what is done: the holder of a URL does not choose it.
#[tokio::test]
async fn a_header_of_the_protocol_is_covered_by_the_signature_or_refused() {
    let store = TestStore::start().await;
    let blob = things(&store).await.blob;
    let header = || ("x-amz-checksum-mode", "ENABLED".to_owned());
    let mut ask = Ask::new(&store.keys.get, Method::Get, blob.clone());
    ask.signed.push(header());
    assert_eq!(ask.status(&store).await, 200);
    let mut ask = Ask::new(&store.keys.get, Method::Get, blob);
    ask.signed.push(("x-amz-date", "x".to_owned()));
    ask.unsigned.push(header());
    assert_eq!(ask.status(&store).await, 403);
}

#[tokio::test]
async fn a_signature_is_good_for_a_second_to_a_week() {
    let store = TestStore::start().await;
    let blob = things(&store).await.blob;
    for (life, good) in [
        (0, false),
        (1, true),
        (604_800, true),
        (604_801, false),
        (u64::from(u32::MAX) + 2, false),
    ] {
        let status = Ask {
            life,
            ..Ask::new(&store.keys.get, Method::Get, blob.clone())
        }
        .status(&store)
        .await;
        assert!(
            if good {
                status == 200
            } else {
                matches!(status, 400 | 403)
            },
            "{life} s: {status}"
        );
    }
}

#[tokio::test]
async fn even_the_admin_key_has_only_what_this_store_does() {
    let store = TestStore::start().await;
    let Things {
        upload,
        blob,
        named,
    } = things(&store).await;
    let admin = &store.keys.admin;
    for path in [
        "/blobs?acl",
        "/blobs?versions",
        "/blobs?uploads",
        &format!("{named}?tagging"),
    ] {
        let answer = Ask::new(admin, Method::Get, path.to_owned())
            .answer(&store)
            .await;
        assert!(
            answer.starts_with("HTTP/1.1 501") && answer.contains("this store has no"),
            "{path}: {answer}"
        );
    }
    // Named files can be replaced, any number of times.
    for text in ["one", "two"] {
        let mut ask = Ask {
            body: text.into(),
            ..Ask::new(admin, Method::Put, named.clone())
        };
        ask.unsigned.push(("content-length", "3".to_owned()));
        assert_eq!(ask.status(&store).await, 200);
        let read = Ask::new(admin, Method::Get, named.clone())
            .answer(&store)
            .await;
        assert!(read.ends_with(text), "{read}");
    }
    for (name, value, status) in [
        ("if-match", "\"x\"", 501),
        ("if-none-match", "\"x\"", 501),
        ("if-none-match", "*", 412),
    ] {
        let mut ask = Ask {
            body: b"other".to_vec(),
            ..Ask::new(admin, Method::Put, named.clone())
        };
        ask.unsigned.push(("content-length", "5".to_owned()));
        ask.signed.push((name, value.to_owned()));
        assert_eq!(ask.status(&store).await, status, "{name}: {value}");
    }
    // A copy goes from `incoming` to `blobs`, and keeps the digest that both keys name.
    let stranger = format!("/blobs/{}", BlobKey(ObjectRef::of(b"another").digest));
    for (source, target, status) in [
        (&upload, &stranger, 400),
        (&named, &stranger, 501),
        (&upload, &upload, 501),
        (&upload, &named, 400),
        (&upload, &blob, 200),
        (&blob, &blob, 501),
    ] {
        let mut ask = Ask::new(admin, Method::Put, target.clone());
        ask.signed.push(("x-amz-copy-source", source.clone()));
        ask.unsigned.push(("content-length", "0".to_owned()));
        assert_eq!(ask.status(&store).await, status, "{source} to {target}");
    }
    // At most a thousand keys are deleted at a time.
    for (count, status) in [(1001, 400), (1000, 200)] {
        let keys: String = (0..count)
            .map(|n| format!("<Object><Key>n/{n}</Key></Object>"))
            .collect();
        let body = format!("<Delete>{keys}</Delete>").into_bytes();
        let length = body.len().to_string();
        let mut ask = Ask {
            body,
            ..Ask::new(admin, Method::Post, "/blobs?delete".to_owned())
        };
        ask.unsigned.extend([
            ("content-length", length),
            ("content-type", "application/xml".to_owned()),
        ]);
        assert_eq!(ask.status(&store).await, status, "{count} keys");
    }
}

#[tokio::test]
async fn a_listing_is_given_in_pages_and_a_folder_is_no_object() {
    let store = TestStore::start().await;
    let Things {
        upload,
        blob,
        named,
    } = things(&store).await;
    let admin = &store.keys.admin;
    // A signature covers the parameters in their sorted order.
    let list = async |query: &str| {
        Ask::new(admin, Method::Get, format!("/blobs?{query}"))
            .answer(&store)
            .await
    };
    let (first, second) = (
        named.strip_prefix("/blobs/").unwrap(),
        blob.strip_prefix("/blobs/").unwrap(),
    );
    let page = list("list-type=2&max-keys=1").await;
    assert!(page.contains(first) && !page.contains(second), "{page}");
    assert!(page.contains("<IsTruncated>true</IsTruncated>"), "{page}");
    let next = format!("<NextContinuationToken>{first}</NextContinuationToken>");
    assert!(page.contains(&next), "{page}");
    let page = list("list-type=2&max-keys=0").await;
    assert!(page.contains("<IsTruncated>false</IsTruncated>"), "{page}");
    // The next page begins after a key, even if no object has that key.
    let page = list("continuation-token=o&list-type=2&max-keys=1").await;
    assert!(page.contains(&format!("<Key>{second}</Key>")), "{page}");
    assert!(
        page.contains("<IsTruncated>false</IsTruncated>")
            && !page.contains("NextContinuationToken"),
        "{page}"
    );
    for asked in ["list-type=2", "list-type=2&max-keys=1000000"] {
        assert!(
            list(asked).await.contains("<MaxKeys>1000</MaxKeys>"),
            "a page has a thousand keys at most"
        );
    }
    assert!(
        list("delimiter=-&list-type=2")
            .await
            .starts_with("HTTP/1.1 501")
    );
    for folder in [named.rsplit_once('/').unwrap().0, "/blobs/sha256"] {
        for method in [Method::Get, Method::Head] {
            let status = Ask::new(admin, method, folder.to_owned())
                .status(&store)
                .await;
            assert!(matches!(status, 400 | 404), "{folder}: {status}");
        }
    }
    assert_eq!(
        Ask::new(admin, Method::Get, upload).status(&store).await,
        200
    );
}
