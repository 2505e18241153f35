//! The parts of an answer that clients of S3 go by: lengths, times, tags, checksums, pages.

use objects::BlobKey;
use rusty_s3::Method;
use schemas::ObjectRef;

use crate::rights::{ALL, Ask, checksum};
use crate::support::{TestStore, key_of, noise};

/// The value of a header.
fn header<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    let head = answer.split("\r\n\r\n").next().unwrap();
    let lines = head.lines().filter_map(|line| line.split_once(": "));
    let mut values = lines.filter(|(own, _)| own.eq_ignore_ascii_case(name));
    values.next().map(|(_, value)| value)
}

/// The text of an element.
fn element<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = answer.split_once(&format!("<{name}>"))?;
    rest.split_once(&format!("</{name}>")).map(|(text, _)| text)
}

/// Tags stand in quotes, which XML may write in words.
fn tag(text: Option<&str>) -> Option<String> {
    text.map(|text| text.replace("&quot;", "\"").trim_matches('"').to_owned())
}

#[tokio::test]
async fn an_answer_names_length_time_and_digest_of_its_object() {
    let store = TestStore::start().await;
    let bytes = noise(40, 1);
    let object = store.buckets().put_blob(bytes.clone()).await.unwrap();
    let path = format!("/blobs/{}", BlobKey(object.digest));
    let ask = async |method, asks: &[(&'static str, &str)]| {
        let mut ask = Ask::new(&store.keys.admin, method, path.clone());
        for (name, value) in asks {
            ask.signed.push((name, (*value).to_owned()));
        }
        ask.answer(&store).await
    };
    let mode = ("x-amz-checksum-mode", "ENABLED");
    for method in [Method::Get, Method::Head] {
        let answer = ask(method, &[mode]).await;
        let of = |name| header(&answer, name);
        assert_eq!(of("content-length"), Some("40"), "{answer}");
        assert_eq!(of("accept-ranges"), Some("bytes"), "{answer}");
        assert_eq!(of("content-type"), Some("application/octet-stream"));
        assert_eq!(tag(of("etag")), Some(object.digest.hex()), "{answer}");
        assert!(of("last-modified").is_some(), "{answer}");
        assert_eq!(of("x-amz-checksum-sha256"), Some(&*checksum(&bytes)));
        let unasked = ask(method, &[]).await;
        assert_eq!(header(&unasked, "x-amz-checksum-sha256"), None);
    }
    let part = ask(Method::Get, &[mode, ("range", "bytes=2-4")]).await;
    assert_eq!(header(&part, "content-range"), Some("bytes 2-4/40"));
    assert_eq!(header(&part, "content-length"), Some("3"));
    let whole = header(&part, "x-amz-checksum-sha256");
    assert_eq!(whole, None, "the checksum is not that of the part");
}

#[tokio::test]
async fn the_answer_to_an_upload_and_to_a_promotion_names_what_was_stored() {
    let store = TestStore::start().await;
    let bytes = noise(40, 1);
    let object = ObjectRef::of(&bytes);
    let upload = format!("/incoming/{}", key_of(object));
    let put = Ask::upload(&store.keys.put, upload.clone(), &bytes, &ALL);
    let stored = put.answer(&store).await;
    assert_eq!(tag(header(&stored, "etag")), Some(object.digest.hex()));
    let sum = checksum(&bytes);
    assert_eq!(header(&stored, "x-amz-checksum-sha256"), Some(&*sum));
    let target = format!("/blobs/{}", BlobKey(object.digest));
    let mut copy = Ask::new(&store.keys.admin, Method::Put, target);
    copy.signed.push(("x-amz-copy-source", upload));
    copy.unsigned.push(("content-length", "0".to_owned()));
    let copied = copy.answer(&store).await;
    assert_eq!(tag(element(&copied, "ETag")), Some(object.digest.hex()));
    assert_eq!(element(&copied, "ChecksumSHA256"), Some(&*sum));
    assert!(element(&copied, "LastModified").is_some(), "{copied}");
}

#[tokio::test]
async fn a_page_of_a_listing_says_what_it_is_of_and_what_it_has() {
    let store = TestStore::start().await;
    let object = store.buckets().put_blob(noise(40, 1)).await.unwrap();
    let query = "continuation-token=s&list-type=2&prefix=sha256%2F";
    let list = Ask::new(&store.keys.admin, Method::Get, format!("/blobs?{query}"));
    let page = list.answer(&store).await;
    let of = |name| element(&page, name);
    assert_eq!((of("Name"), of("Prefix")), (Some("blobs"), Some("sha256/")));
    assert_eq!(
        (of("KeyCount"), of("ContinuationToken")),
        (Some("1"), Some("s"))
    );
    assert_eq!(of("Key"), Some(&*BlobKey(object.digest).to_string()));
    assert_eq!(of("Size"), Some("40"), "{page}");
    assert_eq!(tag(of("ETag")), Some(object.digest.hex()), "{page}");
    assert!(of("LastModified").is_some(), "{page}");
}

/// The tag of a file that is replaced changes with it: a cache asks by it.
#[tokio::test]
async fn a_named_file_has_another_tag_once_it_is_another() {
    let store = TestStore::start().await;
    let mut tags = Vec::new();
    for text in ["one", "three"] {
        let path = "/blobs/notes/one".to_owned();
        let mut write = Ask::new(&store.keys.admin, Method::Put, path.clone());
        write.body = text.into();
        let length = text.len().to_string();
        write.unsigned.push(("content-length", length));
        assert_eq!(write.status(&store).await, 200);
        let read = Ask::new(&store.keys.admin, Method::Get, path);
        let read = read.answer(&store).await;
        tags.push(tag(header(&read, "etag")).expect("it has one"));
    }
    assert!(
        tags[0].ends_with("-3") && tags[1].ends_with("-5"),
        "{tags:?}"
    );
}

/// A key that only names a folder has no object, so there is nothing to delete and no fault.
#[tokio::test]
async fn the_answer_to_deletions_names_each_key_and_an_absent_one_is_no_fault() {
    let store = TestStore::start().await;
    let object = store.buckets().put_blob(noise(40, 1)).await.unwrap();
    let key = BlobKey(object.digest).to_string();
    for absent in ["sha256", "audit/tile", "audit"] {
        let path = format!("/blobs/{absent}");
        let status = Ask::new(&store.keys.admin, Method::Delete, path).status(&store);
        assert_eq!(status.await, 204, "{absent}");
    }
    assert!(
        store
            .buckets()
            .exists(object.digest)
            .await
            .unwrap()
            .is_some()
    );
    let listed = [&*key, "audit/tile"].map(|key| format!("<Object><Key>{key}</Key></Object>"));
    let body = format!("<Delete>{}</Delete>", listed.concat());
    let mut ask = Ask::new(&store.keys.admin, Method::Post, "/blobs?delete".to_owned());
    ask.unsigned.extend([
        ("content-length", body.len().to_string()),
        ("content-type", "application/xml".to_owned()),
    ]);
    ask.body = body.into_bytes();
    let answer = ask.answer(&store).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    for key in [&*key, "audit/tile"] {
        let deleted = format!("<Deleted><Key>{key}</Key></Deleted>");
        assert!(answer.contains(&deleted), "{answer}");
    }
    assert_eq!(store.buckets().exists(object.digest).await.unwrap(), None);
}
