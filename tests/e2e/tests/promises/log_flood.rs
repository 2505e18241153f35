//! A message that is repeated a thousand times becomes a few lines in a log, and a count.

use harness::{Cluster, Options, PATIENCE};
use identity::ManifestKey;
use runtime::throttle::FULL_MAX;
use schemas::Code;
use schemas::permission::Role;
use schemas::public::{COMMAND_TYPE, CommandVerb};
use schemas::subject::command_subject;

const FORGED: u64 = 1000;

#[tokio::test]
async fn a_thousand_forged_commands_are_a_few_lines_in_a_workers_log_and_their_number() {
    let mut cluster = Cluster::broker(Options::default()).await;
    cluster.start_worker("worker-0", &[]).await;
    // A thief of the coordinator's bus credentials has no key that workers trust.
    let thief = cluster
        .connect(Role::Coordinator, Role::Coordinator.name())
        .await;
    let tenant = cluster.domain().tenant().unwrap();
    let victim = cluster
        .source(&cluster.domain().layout().credentials("worker-0"))
        .public()
        .as_str()
        .parse()
        .unwrap();
    let subject = command_subject(&tenant, cluster.run(), &victim, CommandVerb::Drain);
    for number in 0..FORGED {
        let document = format!("eyJhbGciOiJFZERTQSJ9.{number}.c2lnbmF0dXJl");
        thief
            .publish(&subject, document.into_bytes().into())
            .await
            .unwrap();
    }
    // Messages arrive in their order: the refusal of another kind says that all these were heard.
    let stranger = ManifestKey::generate();
    let last = stranger.sign_document(COMMAND_TYPE, &serde_json::json!({}));
    thief
        .publish(&subject, last.unwrap().into_bytes().into())
        .await
        .unwrap();
    let marker = Code::SignatureInvalid.to_string();
    let heard = |log: &str| log.contains(&marker);
    cluster
        .process("worker-0")
        .until_logged(PATIENCE, heard)
        .await;
    // The number of lines held back is logged from time to time, and at the end.
    let status = cluster.stop("worker-0").await;
    assert!(status.success(), "{status}");
    let log = cluster.process("worker-0").log();
    let full = log
        .lines()
        .filter(|line| line.contains("a command is ignored") && !line.contains("held_back="))
        .filter(|line| !line.contains(&marker))
        .count();
    assert_eq!(full as u32, FULL_MAX, "{log}");
    let sums = log
        .lines()
        .filter(|line| line.contains("a command is ignored"))
        .filter_map(|line| {
            let (_, rest) = line.split_once("held_back=")?;
            rest.split_whitespace().next()?.parse::<u64>().ok()
        });
    let held_back: u64 = sums.sum();
    assert_eq!(held_back, FORGED - u64::from(FULL_MAX), "held back: {log}");
}
