//! Coordinator, store and audit service publish their state and their counts on loopback.

use std::net::SocketAddr;

use e2e::Recipe;
use harness::{Cluster, Options};
use runtime::ready::Ready;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Rounds of the run that is counted: more than a worker's requests for URLs at its start.
const ROUNDS: u64 = 8;

/// Requests one page; returns its status line and text.
async fn page(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

fn address(cluster: &Cluster, name: &str) -> SocketAddr {
    let file = std::fs::read(cluster.path("ready").join(name)).unwrap();
    let ready: Ready = serde_json::from_slice(&file).unwrap();
    ready.metrics.expect("it serves metrics").parse().unwrap()
}

/// The value behind the text `begins` at the beginning of a line.
fn value(text: &str, begins: &str) -> f64 {
    let line = text.lines().find(|line| line.starts_with(begins));
    let line = line.unwrap_or_else(|| panic!("{begins} is not in\n{text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

/// Metrics are a side door: a service whose port for them is taken says so, and works.
#[tokio::test]
async fn services_whose_metrics_port_is_taken_work_without_metrics() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let options = Options {
        metrics: taken.local_addr().unwrap().to_string(),
        ..Options::default()
    };
    let mut cluster = Cluster::start(options, 1).await;
    let run = cluster.run().clone();
    Recipe::reference(1, 1, 4).create(&cluster).await;
    cluster.operator().await.until_complete(&run).await;
    for name in ["coordinator", "store", "audit"] {
        let file = std::fs::read(cluster.path("ready").join(name)).unwrap();
        let ready: Ready = serde_json::from_slice(&file).unwrap();
        assert_eq!(ready.metrics, None, "{name}");
        let log = cluster.process(name).log();
        let said = log.lines().filter(|line| line.contains("DL0670")).count();
        assert_eq!(said, 1, "{name} says it once:\n{log}");
    }
}

#[tokio::test]
async fn services_give_their_metrics_on_loopback_and_those_of_workers() {
    let mut cluster = Cluster::start(Options::default(), 1).await;
    let run = cluster.run().clone();
    Recipe::reference(ROUNDS, 1, 4).create(&cluster).await;
    cluster.operator().await.until_complete(&run).await;
    // The worker's last events were answered, so everything below has been counted.
    cluster.end_well(&["worker-0"]).await;

    let of_worker = format!("{{run=\"{run}\",worker=\"");
    let tokens = format!("diloco_worker_tokens_total{of_worker}");
    let trained = format!("diloco_worker_tokens_per_second{of_worker}");
    let expected = [
        (
            "coordinator",
            vec![
                r#"diloco_requests_total{request="join",outcome="done"}"#,
                r#"diloco_requests_total{request="contribution.submit",outcome="done"}"#,
                r#"diloco_requests_total{request="run.new",outcome="done"}"#,
                r#"diloco_request_seconds_count{request="lease.claim"}"#,
                r#"diloco_effects_total{effect="append"}"#,
                r#"diloco_effects_total{effect="merge"}"#,
                r#"diloco_effect_seconds_count{effect="lease"}"#,
                r#"diloco_decision_seconds_count{input="request"}"#,
                "diloco_ledger_append_seconds_count",
                &tokens,
                &trained,
            ],
        ),
        (
            "store",
            vec![
                r#"diloco_store_requests_total{method="PUT",status="200"}"#,
                r#"diloco_store_request_seconds_count{method="GET"}"#,
            ],
        ),
        (
            "audit",
            vec![
                r#"diloco_audit_events_total{outcome="done"}"#,
                "diloco_audit_event_seconds_count",
            ],
        ),
    ];
    for (name, lines) in expected {
        let address = address(&cluster, name);
        assert!(address.ip().is_loopback(), "{address}");
        let ready = page(address, "/ready").await;
        assert!(ready.starts_with("HTTP/1.1 200 "), "{name}: {ready}");
        let text = page(address, "/metrics").await;
        for line in lines {
            assert!(value(&text, line) > 0.0, "{name}: {line}");
        }
        if name == "coordinator" {
            let asked = value(&text, r#"diloco_request_seconds_count{request="blob.get"}"#);
            assert!(
                asked < ROUNDS as f64,
                "URLs to read, asked for {asked} times: those of a base come with the lease"
            );
        }
        // Keys of workers and operators begin with U, those of accounts with A. Only the metrics of
        // a single worker have a key as a label.
        let key = |word: &str| word.len() == 56 && word.starts_with(['U', 'A']);
        let others = text
            .lines()
            .filter(|line| !line.starts_with("diloco_worker_"));
        let words = others.flat_map(|line| line.split(|c: char| !c.is_ascii_alphanumeric()));
        assert_eq!(words.filter(|word| key(word)).count(), 0, "{text}");
        let missing = page(address, "/").await;
        assert!(missing.starts_with("HTTP/1.1 404 "), "{missing}");
    }
}
