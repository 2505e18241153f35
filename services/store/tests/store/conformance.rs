//! The conformance check: every row holds for the embedded store; other stores are checked if the
//! environment names them.

use std::path::Path;

use identity::{AccessKey, StoreKeys};
use objects::check::{Rule, check, check_briefly};
use objects::{Endpoint, Trust};

use crate::support::TestStore;

#[tokio::test]
async fn tl_20_tl_27_the_embedded_store_passes_every_row() {
    let store = TestStore::start().await;
    let report = check(&store.endpoint(), &store.keys).await.unwrap();
    for row in &report.rows {
        assert!(row.holds, "{}: {}", row.rule, row.seen);
    }
    assert_eq!(report.rows.len(), 20);
    // The check at a coordinator's start lists nothing, since the list of a large store is long.
    let briefly = check_briefly(&store.endpoint(), &store.keys).await.unwrap();
    assert!(briefly.is_fit() && briefly.unfit().is_empty());
    assert_eq!(briefly.rows.len(), 19);
    assert!(!briefly.holds(Rule::ListedAndDeleted));
    let seen = |rule: Rule| report.rows.iter().find(|row| row.rule == rule);
    let seen = [Rule::RightBytesStored, Rule::CopyBetweenBuckets].map(seen);
    let seen = seen.map(|row| row.map(|row| row.seen.as_str()));
    assert_eq!(seen, [Some("200"), Some("ok")], "the store's answers");
    assert!(
        report.is_fit()
            && report.holds(Rule::OverwriteRefused)
            && report.holds(Rule::ChecksumRecorded)
    );
    assert_eq!(store.uploads(), Vec::<String>::new(), "the check cleans up");
}

#[tokio::test]
async fn a_store_without_one_of_our_keys_is_not_checked() {
    let store = TestStore::start().await;
    let mut keys = store.keys.clone();
    keys.admin = AccessKey::generate();
    assert!(check(&store.endpoint(), &keys).await.is_err());
}

/// To run it set `DILOCO_TEST_S3_ENDPOINT`, `DILOCO_TEST_S3_KEYS` (key file) and, for https,
/// `DILOCO_TEST_S3_CA` (PEM file).
#[tokio::test]
async fn a_named_store_passes_the_required_rows() {
    let Ok(url) = std::env::var("DILOCO_TEST_S3_ENDPOINT") else {
        return;
    };
    let keys =
        std::env::var("DILOCO_TEST_S3_KEYS").expect("DILOCO_TEST_S3_KEYS names the key file");
    let keys = StoreKeys::read(Path::new(&keys)).unwrap();
    let trust = std::env::var("DILOCO_TEST_S3_CA").map_or(Trust::PlainLoopback, |path| {
        Trust::Authority(std::fs::read(path).unwrap())
    });
    let region = std::env::var("DILOCO_TEST_S3_REGION").unwrap_or_else(|_| "us-east-1".to_owned());
    let report = check(&Endpoint::new(&url, &region, trust).unwrap(), &keys)
        .await
        .unwrap();
    let failed: Vec<_> = report
        .rows
        .iter()
        .filter(|row| row.required && !row.holds)
        .collect();
    assert!(report.is_fit(), "{failed:#?}");
}
