//! A node of a cluster that was down while a worker was shut out accepts its key until it has heard
//! of that from another node. The coordinator takes nothing from the worker meanwhile.

use std::fs;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use e2e::{Recipe, Scripted};
use harness::{Cluster, NatsServer, Options, PATIENCE};
use runtime::{Bus, BusConfig, BusError, clock};
use schemas::lease::ClaimReply;
use schemas::member::JoinReply;
use schemas::subject::Verb;
use schemas::{Code, Millis};

use crate::quarantine::with_credential;

/// Time between two exchanges of tokens among the nodes, which each begins when it starts.
const INTERVAL: Duration = Duration::from_secs(5);
/// Longest wait for an answer at a node that may cut the connection.
const ANSWER: Duration = Duration::from_secs(5);

/// Three nodes: the cluster's own, another that JetStream needs for its majority, and one that is
/// down for a time and has no streams.
struct Nodes {
    cluster: Cluster,
    lagging: NatsServer,
    _second: NatsServer,
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    listener.local_addr().expect("it is bound").port()
}

/// The part of a node's configuration that makes it one of the three.
fn cluster_part(own: u16, ports: &[u16]) -> String {
    let routes = ports
        .iter()
        .map(|port| format!("\"nats://127.0.0.1:{port}\""));
    let routes = routes.collect::<Vec<_>>().join(", ");
    format!("\ncluster {{ name: c, listen: \"127.0.0.1:{own}\", routes: [ {routes} ] }}\n")
}

/// A node with its own copy of the accounts' tokens.
async fn node(cluster: &Cluster, name: &str, part: &str) -> NatsServer {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let generated = cluster.domain().layout().broker_generated();
    for file in ["auth.conf", "tls.conf"] {
        let copied = fs::copy(generated.join(file), folder.path().join(file));
        copied.expect("the folder takes files");
    }
    let config = format!(
        "server_name: {name}\ninclude \"auth.conf\"\ninclude \"tls.conf\"\n\
         resolver {{ type: full, dir: \"accounts\", allow_delete: false, interval: \"5s\", timeout: \"2s\" }}\n\
         {part}"
    );
    NatsServer::start(folder, &config).await
}

impl Nodes {
    async fn start() -> Self {
        let mut cluster = Cluster::bare(Options::default()).await;
        let ports: Vec<u16> = (0..3).map(|_| free_port()).collect();
        let config = cluster.domain().layout().broker_config();
        let text = fs::read_to_string(&config).expect("the broker reads it too");
        let text = text + &cluster_part(ports[0], &ports);
        fs::write(&config, text).expect("the folder is ours");
        cluster.kill9("broker");
        cluster.restart("broker").await;
        let streams = "jetstream { store_dir: \"streams\", max_file: 12G, max_mem: 64M }";
        let part = format!("{streams}{}", cluster_part(ports[1], &ports));
        let second = node(&cluster, "n1", &part).await;
        let lagging = node(&cluster, "n2", &cluster_part(ports[2], &ports)).await;
        // The nodes find each other, and those with streams choose one to lead.
        let began = Instant::now();
        let made = async || cluster.diloctl(&["cluster", "init"]).await;
        loop {
            let made = made().await;
            if made.status.success() {
                break;
            }
            assert!(began.elapsed() < PATIENCE, "{}", made.stderr);
        }
        cluster.start_store().await;
        cluster.start_coordinator("coordinator").await;
        Self {
            cluster,
            lagging,
            _second: second,
        }
    }
}

/// A copy of a member's credentials asks the coordinator at the node that was down, for as long as
/// that serves it, after an order that revoked the member's key. Each answer is a refusal with one
/// of these codes. Returns how many joins and claims were refused.
async fn refused_at_the_lagging_node(order: &[&str], restarts: bool, codes: &[Code]) -> (u32, u32) {
    let mut nodes = Nodes::start().await;
    Recipe::reference(3, 1, 5).create(&nodes.cluster).await;
    let worker = Scripted::connect(&nodes.cluster, "worker-0").await;
    worker.join().await;
    worker.claim().await;
    let file = nodes.cluster.domain().layout().credentials("worker-0");
    let at_lagging = BusConfig {
        url: format!("tls://{}", nodes.lagging.address()),
        ..nodes.cluster.bus_config(&file)
    };
    let connect = || Bus::connect("a copy", &at_lagging, clock::now());
    drop(connect().await.expect("it is a worker yet"));

    nodes.lagging.kill9();
    let shown = nodes.cluster.diloctl_ok(order).await;
    assert!(shown.contains("revoked"), "{shown}");
    if restarts {
        nodes.cluster.kill9("coordinator");
        nodes.cluster.restart("coordinator").await;
    }
    nodes.lagging.restart().await;
    let began = Instant::now();
    let (mut joins, mut claims) = (0, 0);
    let refused = |error: BusError| match error {
        BusError::Refused(refusal) => {
            assert!(codes.contains(&refusal.code), "{refusal}");
            1
        }
        // The node has not found the others yet, or has heard of the order meanwhile.
        _ => 0,
    };
    let error = loop {
        let bus = match connect().await {
            Ok(bus) => bus,
            Err(error) => break error,
        };
        let (join, claim) = (worker.subject(Verb::Join), worker.subject(Verb::Claim));
        let asked = worker.claim_request(Millis(0));
        let claimed: Result<ClaimReply, BusError> = bus.request(&claim, &asked, ANSWER).await;
        claims += refused(claimed.expect_err("it is served nothing"));
        let asked = worker.join_request();
        let joined: Result<JoinReply, BusError> = bus.request(&join, &asked, ANSWER).await;
        joins += refused(joined.expect_err("it is shut out"));
        let took = began.elapsed();
        assert!(took < 2 * INTERVAL + ANSWER, "it is served after {took:?}");
    };
    assert_eq!(error.code(), Code::BusRefused, "{error}");
    (joins, claims)
}

#[tokio::test]
async fn tl_07_tl_31_a_node_that_was_down_serves_a_worker_in_quarantine_nothing_but_refusals() {
    let order = with_credential("quarantine", "worker-0");
    // Its record is blocked as well, since its credential is revoked.
    let codes = [Code::WorkerQuarantined, Code::HolderBlocked];
    let (joins, claims) = refused_at_the_lagging_node(&order, false, &codes).await;
    assert!(joins > 0 && claims > 0, "{joins} {claims}");
}

/// Nobody has shut it out of its run: the coordinator has the revocation in its ledger, and finds
/// it there when it is started again.
#[tokio::test]
async fn tl_07_fg_05_a_node_that_was_down_serves_a_revoked_worker_nothing_but_refusals() {
    let order = ["auth", "revoke", "worker-0", "--reason", "it was stolen"];
    let codes = [Code::HolderBlocked];
    let (joins, claims) = refused_at_the_lagging_node(&order, true, &codes).await;
    assert!(joins > 0 && claims > 0, "{joins} {claims}");
}
