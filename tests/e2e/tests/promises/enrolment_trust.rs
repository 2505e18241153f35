//! A machine that was invited before the trust bundle changed gets the present one with its
//! enrolment.

use e2e::Recipe;
use harness::{Cluster, Options};
use identity::{ManifestKey, TrustBundle};
use schemas::Millis;

use crate::enrolment::{enrol, invite, layout};

#[tokio::test]
async fn tl_28_fg_03_a_machine_invited_before_the_key_of_leases_changed_trains() {
    let options = Options {
        token_lifetime: Some(Millis::from_secs(3600)),
        ..Options::default()
    };
    let mut cluster = Cluster::start(options, 0).await;
    let run = cluster.run().clone();
    let file = invite(&cluster, "invited", &[]).await;
    let rotate = ["auth", "rotate", "manifest"];
    cluster.diloctl_ok(&rotate).await;
    cluster
        .diloctl_ok(&[&rotate[..], &["--retire"]].concat())
        .await;
    let key = ManifestKey::read(&cluster.domain().layout().manifest_key()).unwrap();
    enrol(&cluster, "machine", &file).await.unwrap();
    let trust = TrustBundle::read(&layout(&cluster, "machine").trust()).unwrap();
    assert_eq!(trust.manifest_keys, [key.public().clone()]);
    Recipe::reference(2, 1, 5).create(&cluster).await;
    let machine = cluster.path("machine");
    cluster.start_worker_of(&machine, "invited").await;
    cluster.operator().await.until_complete(&run).await;
    cluster.record_verifies().await;
}
