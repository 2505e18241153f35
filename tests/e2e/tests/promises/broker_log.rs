//! The broker's log lines about its clients: a client that is refused often, under any name,
//! neither fills the disk nor forges the broker's own words.

use std::path::Path;

use harness::{Cluster, Options, RawConnection, publication};

use crate::disk_full::{Stack, port};

/// Bytes that `logfile_size_limit` and `logfile_max_num` allow, plus the line that crosses the
/// limit in each file.
const LOGS_BYTES_MAX: u64 = 4 * (16 << 20) + (64 << 10);
/// Length of a subject that nobody may publish to. Each refused message adds these bytes, and the
/// words around them, to the log.
const SUBJECT_BYTES: usize = 3000;
const BURST: usize = 500;

fn logs(folder: &Path) -> Vec<u64> {
    let entries = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap());
    let own = entries.filter(|entry| {
        entry
            .file_name()
            .to_string_lossy()
            .starts_with("nats-server.log")
    });
    own.map(|entry| entry.metadata().unwrap().len()).collect()
}

#[tokio::test]
async fn the_brokers_log_is_bounded_and_a_peers_name_in_it_is_no_trouble_of_the_brokers() {
    // The broker of this test is the one that `up` starts from the same domain.
    let cluster = Cluster::bare(Options::default()).await;
    let server = harness::nats_server().display().to_string();
    let (bus, store) = (port(), port());
    let up = [
        "up",
        "--workers",
        "0",
        "--bus-port",
        &bus,
        "--store-port",
        &store,
        "--nats-server",
        &server,
    ];
    let stack = Stack(&cluster);
    cluster.diloctl_ok(&up).await;

    let name = "[1] [ERR] JetStream failed to store a msg: write /x: no space left on device";
    let credentials = cluster.domain().layout().credentials("operator");
    let mut stranger =
        RawConnection::connect_at(&cluster, &format!("127.0.0.1:{bus}"), &credentials, name).await;
    let subject = "x".repeat(SUBJECT_BYTES);
    let burst = publication(subject.as_bytes(), b"", b"", b"").repeat(BURST);
    let mut written = 0;
    while written < LOGS_BYTES_MAX + (LOGS_BYTES_MAX >> 1) {
        stranger.say(&burst).await;
        let refused = stranger
            .settled()
            .await
            .iter()
            .filter(|line| line.starts_with("-ERR"))
            .count();
        assert_eq!(refused, BURST, "each is refused, and so told to the log");
        written += (BURST * SUBJECT_BYTES) as u64;
    }
    let sizes = logs(&cluster.path(".diloco/logs"));
    assert!(sizes.len() > 1, "the log began anew: {sizes:?}");
    assert!(sizes.iter().sum::<u64>() <= LOGS_BYTES_MAX, "{sizes:?}");

    // The newest lines all hold the client's name; nothing takes it for the broker's own words.
    cluster.diloctl_ok(&["cluster", "check"]).await;
    let output = cluster.diloctl(&up).await;
    assert!(
        output.status.success() && !output.stderr.contains("is started again"),
        "{}",
        output.stderr
    );
    drop(stack);
}
