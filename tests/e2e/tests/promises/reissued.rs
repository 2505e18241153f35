//! A machine whose token was voided, or ended while it was off, goes on with the keys that it has:
//! an operator makes a token for its recorded key, and the file that is carried holds no secret.

use std::fs;
use std::path::Path;

use e2e::Recipe;
use harness::{Cluster, Options};
use identity::{ConnectionKey, Credentials};
use runtime::{Bus, clock};
use schemas::{Code, Millis};

use crate::enrolment::{enrol, invite, layout, record};

fn options(mutual_tls: bool) -> Options {
    Options {
        token_lifetime: Some(Millis::from_secs(3600)),
        mutual_tls,
        ..Options::default()
    }
}

async fn refused(cluster: &Cluster, credentials: &Path) -> Option<Code> {
    let config = cluster.bus_config(credentials);
    let connected = Bus::connect("tried", &config, clock::now()).await;
    connected.err().map(|error| error.code())
}

#[tokio::test]
async fn tl_06_tl_28_an_enrolled_machine_whose_token_is_void_goes_on_with_its_own_keys() {
    let mut cluster = Cluster::start(options(false), 0).await;
    let run = cluster.run().clone();
    let file = invite(&cluster, "invited", &[]).await;
    enrol(&cluster, "machine", &file).await.unwrap();
    let (folder, own) = (cluster.path("machine"), layout(&cluster, "machine"));
    let path = own.credentials("invited");
    let key = Credentials::read(&path).unwrap().public().clone();
    let known = record(&cluster, &key).unwrap();
    let rotate = ["auth", "rotate", "role", "worker", "--now"];
    let told = cluster.diloctl_ok(&rotate).await;
    let line = told.lines().find(|line| line.contains(key.as_str()));
    assert!(line.unwrap().contains("issue again"), "{told}");
    assert_eq!(refused(&cluster, &path).await, Some(Code::BusRefused));
    // The command that serves everybody else says which one serves this worker.
    let issue = ["auth", "issue", "worker", "invited", "--run", "demo"];
    let output = cluster.diloctl(&issue).await;
    assert!(
        output.stderr.contains("worker reissue"),
        "{}",
        output.stderr
    );

    let token = cluster.path("token.json").display().to_string();
    let reissue = ["worker", "reissue", "invited", "--into", &token];
    cluster.diloctl_ok(&reissue).await;
    let carried = fs::read_to_string(&token).unwrap();
    for file in [&path, &own.audit_key("invited")] {
        let text = fs::read_to_string(file).unwrap();
        let seed = text.lines().find(|line| line.starts_with("SU")).unwrap();
        assert!(!carried.contains(seed), "{}", file.display());
    }
    let twice = cluster.diloctl(&reissue).await;
    let exists = Code::ConfigInvalid.to_string();
    assert!(twice.stderr.contains(&exists), "{}", twice.stderr);
    // To somebody with another key the file is worth nothing.
    let thief = layout(&cluster, "thief");
    let stolen: identity::TokenFile = serde_json::from_str(&carried).unwrap();
    assert!(Credentials::new(stolen.token, ConnectionKey::generate()).is_err());
    let shown = folder.display().to_string();
    let accept = async |folder: &str| {
        cluster
            .diloctl(&["--domain", folder, "worker", "accept", &token])
            .await
    };
    let theirs = accept(&thief.folder().display().to_string()).await;
    assert!(!theirs.status.success() && !thief.credentials("invited").exists());
    let accepted = accept(&shown).await;
    assert!(accepted.status.success(), "{}", accepted.stderr);
    let held = Credentials::read(&path).unwrap();
    assert_eq!(held.public(), &key);
    let now = record(&cluster, &key).unwrap();
    assert_eq!((&now.audit_key, &now.seat), (&known.audit_key, &known.seat));

    Recipe::reference(2, 1, 5).create(&cluster).await;
    cluster.start_worker_of(&folder, "invited").await;
    let operator = cluster.operator().await;
    operator.until_complete(&run).await;
    cluster.end_well(&["invited"]).await;
    cluster.record_verifies().await;

    // A revoked key gets no other token, and the one that it has is void.
    cluster.diloctl_ok(&["auth", "revoke", key.as_str()]).await;
    fs::remove_file(&token).unwrap();
    for what in ["invited", key.as_str()] {
        let output = cluster
            .diloctl(&["worker", "reissue", what, "--into", &token])
            .await;
        let blocked = Code::HolderBlocked.to_string();
        assert!(output.stderr.contains(&blocked), "{}", output.stderr);
        assert!(!Path::new(&token).exists());
    }
    assert_eq!(refused(&cluster, &path).await, Some(Code::BusRefused));
}

#[tokio::test]
async fn tl_06_fg_08_a_new_token_brings_a_certificate_under_mutual_tls() {
    let mut cluster = Cluster::bare(options(true)).await;
    cluster.start_registrar().await;
    let file = invite(&cluster, "invited", &[]).await;
    enrol(&cluster, "machine", &file).await.unwrap();
    let (folder, own) = (cluster.path("machine"), layout(&cluster, "machine"));
    let path = own.credentials("invited");
    // As after a day without power.
    let pem = fs::read(path.with_extension("pem")).unwrap();
    fs::write(path.with_extension("pem"), "").unwrap();
    assert!(refused(&cluster, &path).await.is_some());
    let token = cluster.path("token.json").display().to_string();
    let reissue = ["worker", "reissue", "invited", "--into", &token];
    cluster.diloctl_ok(&reissue).await;
    let shown = folder.display().to_string();
    let accept = ["--domain", &shown, "worker", "accept", &token];
    cluster.diloctl_ok(&accept).await;
    assert_ne!(fs::read(path.with_extension("pem")).unwrap(), pem);
    assert_eq!(refused(&cluster, &path).await, None);
}
