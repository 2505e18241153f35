//! A deployment that the release before made is taken over by `diloctl up`: its run goes on, and
//! everything that it signed and stored still verifies.
//!
//! `releases/2026-11-27.tar.gz` is the folder of a trust domain as commit `b0bfcc3f` left it, in
//! the middle of a run, without its logs and caches. All tokens and certificates in it have ended,
//! as in a deployment that was off for a long time. Its keys were made for this test and open
//! nothing else.

use std::path::Path;
use std::process::Command;

use e2e::{Machine, nats_config};

/// Puts the deployment into the folder `d` of the machine.
fn unpack(machine: &Machine) {
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("releases/2026-11-27.tar.gz");
    let unpacked = Command::new("tar")
        .args(["-xzf".as_ref(), archive.as_os_str()])
        .args(["-C".as_ref(), machine.path("").as_os_str()])
        .status();
    assert!(unpacked.unwrap().success());
}

#[tokio::test]
async fn a_deployment_of_the_release_before_is_taken_over_in_the_middle_of_its_run() {
    let machine = Machine::new();
    unpack(&machine);
    let up = machine.up("d", "2").await;
    assert!(up.status.success(), "{}", up.text);
    let on = async |arguments: &[&str]| machine.ok(&[&["--domain", "d"], arguments].concat()).await;
    on(&["run", "wait", "demo", "--within", "50s"]).await;

    let replayed = on(&["audit", "replay", "--summary"]).await;
    // Coordinator, workers and the sentry, which the release before did not have.
    assert!(replayed.contains("4 of 4 chains whole"), "{replayed}");
    assert!(replayed.contains("3 of 3 rounds closed"), "{replayed}");
    let started = replayed.contains("2 coordinator-started");
    assert!(started, "one of each release: {replayed}");
    let recomputed = on(&["audit", "recompute", "--run", "demo", "--all"]).await;
    assert!(
        recomputed.contains("3 of 3 rounds verified"),
        "{recomputed}"
    );
    on(&["snapshot", "pull", "demo", "--to", "model"]).await;
    assert!(machine.path("model/model.safetensors").is_file());

    // What it needed and did not have is there now, and a second start finds nothing to do.
    machine.down("d").await;
    // The release before had no log with signed heads: it has the first event all the same.
    let verified = on(&["audit", "verify"]).await;
    assert!(verified.contains("entries 0 to"), "{verified}");
    // Nor had it a statement of the domain's owner with which the log begins.
    let owner = verified.contains("has signed entry 0");
    assert!(owner, "{verified}");
    let up = machine.up_again("d", "2").await;
    assert!(up.status.success(), "{}", up.text);
    let config = nats_config();
    on(&["doctor", "--nats-config", &config]).await;
}
