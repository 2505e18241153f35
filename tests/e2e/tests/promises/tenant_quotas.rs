//! The quotas of a tenant that the coordinator enforces: runs, workers, objects and bytes. That of
//! connections is the broker's, and is tried in `tenants`.

use e2e::Recipe;
use harness::{Cluster, Options, PATIENCE};
use schemas::{Code, RunId};

fn run(name: &str) -> RunId {
    name.parse().unwrap()
}

async fn quota(cluster: &Cluster, limit: &[&str]) {
    let command = [&["tenant", "quota", "acme"], limit].concat();
    cluster.diloctl_ok(&command).await;
}

#[tokio::test]
async fn tl_03_each_quota_of_a_tenant_holds_and_hurts_no_other() {
    let mut cluster = Cluster::start(Options::default(), 0).await;
    let recipe = Recipe::reference(2, 2, 10).set("policy.workers_min=1");
    for tenant in ["acme", "blue"] {
        cluster.diloctl_ok(&["tenant", "new", tenant]).await;
        let named = recipe.clone().named(&format!("{tenant}_demo"));
        named.create(&cluster).await;
    }
    let full = Code::TenantFull.to_string();

    quota(&cluster, &["--max-runs", "1"]).await;
    let more = recipe.clone().named("acme_more");
    let refused = more.try_to_create(&cluster).await;
    assert!(
        !refused.status.success() && refused.stderr.contains(&full),
        "{}{}",
        refused.stdout,
        refused.stderr
    );
    let of_two = recipe.clone().set("policy.workers_min=2");
    of_two.named("blue_more").create(&cluster).await;

    // The first worker of `acme` is a member and gets no unit: first for the number of objects,
    // then for their bytes. `blue` trains meanwhile.
    quota(&cluster, &["--max-workers", "1", "--max-objects", "0"]).await;
    let (acme, blue) = (run("acme_demo"), run("blue_demo"));
    cluster.start_worker_for("acme-w", &acme).await;
    let objects = |log: &str| log.contains(&full) && log.contains("objects, at most 0");
    let first = cluster.process("acme-w");
    first.until_logged(PATIENCE, objects).await;
    quota(&cluster, &["--max-objects", "none", "--max-bytes", "1KiB"]).await;
    let bytes = |log: &str| log.contains(&full) && log.contains("bytes, at most 1024");
    let first = cluster.process("acme-w");
    first.until_logged(PATIENCE, bytes).await;
    cluster.start_worker_for("blue-w", &blue).await;
    let operator = cluster.operator().await;
    operator.until_complete(&blue).await;
    assert!(operator.snapshots(&acme).await.is_empty(), "it is merged");
    assert!(!operator.snapshots(&blue).await.is_empty());

    // A second worker of `acme` does not become a member, and one of `blue` does.
    cluster.start_worker_for("acme-v", &acme).await;
    let workers = |log: &str| log.contains(&full) && log.contains("1 workers, at most 1");
    let second = cluster.process("acme-v");
    second.until_logged(PATIENCE, workers).await;
    assert_eq!(operator.workers(&acme).await.len(), 1);
    let more = run("blue_more");
    for name in ["blue-x", "blue-y"] {
        cluster.start_worker_for(name, &more).await;
    }
    operator.until_complete(&more).await;
    assert_eq!(operator.workers(&more).await.len(), 2);

    // Without the quota all goes on.
    let none = ["--max-workers", "none", "--max-bytes", "none"];
    quota(&cluster, &none).await;
    operator.until_complete(&acme).await;
}
