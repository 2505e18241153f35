use super::*;
use crate::endpoint::Trust;
use crate::stub::{self, answer};

/// A bucket of a store that gives these answers in turn.
async fn bucket(answers: &[(&str, &str)]) -> LogBucket {
    let text = |(status, code): &(&str, &str)| {
        let body = format!("<Error><Code>{code}</Code></Error>");
        answer(status, "connection: close\r\n", &body)
    };
    bucket_of(answers.iter().map(text).collect()).await
}

/// A bucket of a store that gives answers with these texts in turn.
async fn bucket_of(answers: Vec<String>) -> LogBucket {
    let address = stub::serve(answers).await;
    let url = format!("http://{address}");
    let endpoint = Endpoint::new(&url, "us-east-1", Trust::PlainLoopback).unwrap();
    let limits = TransferLimits {
        pause_first: Duration::from_millis(1),
        pause_max: Duration::from_millis(2),
        ..TransferLimits::default()
    };
    let patience = Duration::from_secs(2);
    LogBucket::new(&endpoint, &AccessKey::generate(), limits, patience).unwrap()
}

const CONFLICT: (&str, &str) = ("409 Conflict", "ConditionalRequestConflict");
const NO_KEY: (&str, &str) = ("404 Not Found", "NoSuchKey");
const NO_BUCKET: (&str, &str) = ("404 Not Found", "NoSuchBucket");

fn bytes() -> Bytes {
    Bytes::from_static(b"a file")
}

#[tokio::test]
async fn another_upload_of_the_name_makes_the_store_busy_and_says_nothing_about_the_file() {
    for (last, replaced) in [
        (("200 OK", ""), Replaced::Yes),
        (("412 Precondition Failed", ""), Replaced::No),
    ] {
        let answers = [CONFLICT, CONFLICT, last];
        let created = bucket(&answers).await.create("heads/1", &bytes()).await;
        assert_eq!(created.unwrap(), replaced);
        let over = bucket(&answers).await;
        let over = over.replace("checkpoint", &bytes(), "\"x\"").await;
        assert_eq!(over.unwrap(), replaced);
    }
    let mut bucket = bucket(&[CONFLICT; 2000]).await;
    bucket.link.patience = Duration::from_millis(50);
    for tried in [
        bucket.create("heads/1", &bytes()).await,
        bucket.replace("checkpoint", &bytes(), "\"x\"").await,
    ] {
        assert!(matches!(tried, Err(ObjectError::Unreachable { .. })));
    }
}

#[tokio::test]
async fn la_08_a_log_that_serves_a_stranger_is_found_out() {
    const REFUSED: (&str, &str) = ("403 Forbidden", "AccessDenied");
    let asked = |answers: [(&'static str, &'static str); 3]| async move {
        bucket(&answers).await.refuse_strangers("checkpoint").await
    };
    asked([REFUSED; 3]).await.unwrap();
    for (place, verb) in ["GET", "GET", "DELETE"].into_iter().enumerate() {
        for served in ["200 OK", "404 Not Found"] {
            let mut answers = [REFUSED; 3];
            answers[place] = (served, "");
            match asked(answers).await {
                Err(ObjectError::Stranger { request, .. }) => {
                    assert!(request.starts_with(verb), "{request}");
                    assert!(!request.contains('?'), "nothing is signed: {request}");
                }
                other => panic!("question {place}: {other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn a_store_without_the_bucket_is_not_one_without_the_file() {
    assert_eq!(
        bucket(&[NO_KEY]).await.get("checkpoint").await.unwrap(),
        None
    );
    bucket(&[NO_KEY])
        .await
        .delete("tile/0/000.p/1")
        .await
        .unwrap();
    let gone = bucket(&[NO_KEY]).await;
    let gone = gone.replace("checkpoint", &bytes(), "\"x\"").await;
    assert_eq!(gone.unwrap(), Replaced::No);
    let refused = |error: ObjectError| {
        assert!(
            matches!(error, ObjectError::Refused { status: 404, .. }),
            "{error:?}"
        );
    };
    for other in [NO_BUCKET, ("404 Not Found", "")] {
        refused(bucket(&[other]).await.get("checkpoint").await.unwrap_err());
        refused(
            bucket(&[other])
                .await
                .delete("tile/0/000.p/1")
                .await
                .unwrap_err(),
        );
        let bucket = bucket(&[other, other]).await;
        refused(bucket.create("heads/1", &bytes()).await.unwrap_err());
        let over = bucket.replace("checkpoint", &bytes(), "\"x\"").await;
        refused(over.unwrap_err());
    }
    // Only a condition on a version can find that version gone.
    let bucket = bucket(&[NO_KEY, NO_KEY]).await;
    refused(bucket.create("heads/1", &bytes()).await.unwrap_err());
    refused(bucket.overwrite("checkpoint", &bytes()).await.unwrap_err());
}

#[tokio::test]
async fn a_file_that_breaks_off_is_read_again_while_there_is_time() {
    let whole = answer("200 OK", "connection: close\r\netag: \"t\"\r\n", "a file");
    let cut = whole.replace("a file", "a f");
    let answers = vec![cut.clone(), cut.clone(), whole];
    let read = bucket_of(answers).await.get("checkpoint").await.unwrap();
    let (bytes, tag) = (bytes(), "\"t\"".to_owned());
    assert_eq!(read, Some(Tagged { bytes, tag }));
    // Without the time for a pause the reason is told.
    let mut bucket = bucket_of(vec![cut]).await;
    let pause = bucket.link.patience * 10;
    (bucket.link.limits.pause_first, bucket.link.limits.pause_max) = (pause, pause);
    match bucket.get("checkpoint").await {
        Err(ObjectError::Unreachable { reason, .. }) => {
            assert!(reason.contains("end of file"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_file_is_read_up_to_the_length_of_the_longest_of_a_log() {
    let read = async |bytes: usize| {
        let text = answer("200 OK", "connection: close\r\n", &"x".repeat(bytes));
        bucket_of(vec![text]).await.get("tile/entries/000").await
    };
    let longest = read(FILE_BYTES_MAX).await.unwrap();
    assert_eq!(longest.map(|file| file.bytes.len()), Some(FILE_BYTES_MAX));
    match read(FILE_BYTES_MAX + 1).await {
        Err(ObjectError::Unreachable { reason, .. }) => {
            assert_eq!(reason, "it is longer than any file of a log");
        }
        other => panic!("{other:?}"),
    }
}
