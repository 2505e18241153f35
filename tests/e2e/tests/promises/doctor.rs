//! `diloctl doctor` on a machine where `up` was used: everything in order, then broken one thing
//! after the other.

use std::os::unix::fs::PermissionsExt as _;

use e2e::{Machine, nats_config};
use schemas::Code;
use serde_json::Value;

/// What the doctor printed as JSON, and its exit status.
struct Examined {
    report: Value,
    stderr: String,
    status: Option<i32>,
}

impl Examined {
    /// State, code and text of a check.
    fn of(&self, check: &str) -> (&str, Option<&str>, &str) {
        let findings = self.report["findings"].as_array().unwrap();
        let found = findings.iter().find(|finding| finding["check"] == check);
        let found = found.unwrap_or_else(|| panic!("no {check}: {}", self.report));
        (
            found["state"].as_str().unwrap(),
            found["code"].as_str(),
            found["found"].as_str().unwrap(),
        )
    }

    fn state(&self, check: &str) -> &str {
        self.of(check).0
    }

    /// The layers that a process has open.
    fn open(&self, process: &str) -> Vec<&str> {
        let rows = self.report["postures"].as_array().unwrap();
        let row = rows
            .iter()
            .find(|row| row["process"].as_str().unwrap().starts_with(process));
        let row = row.unwrap_or_else(|| panic!("no {process}: {}", self.report));
        let layers = row["posture"]["open"].as_array().unwrap().iter();
        layers.map(|open| open["layer"].as_str().unwrap()).collect()
    }
}

async fn doctor(machine: &Machine) -> Examined {
    doctor_at(machine, &[]).await
}

async fn doctor_at(machine: &Machine, flags: &[&str]) -> Examined {
    let arguments = ["--domain", "d", "-o", "json", "doctor", "--nats-config"];
    let config = nats_config();
    let mut command = machine.command(&[&arguments[..], &[&config], flags].concat());
    let output = command.output().await.unwrap();
    Examined {
        report: serde_json::from_slice(&output.stdout).unwrap_or(Value::Null),
        stderr: String::from_utf8(output.stderr).unwrap(),
        status: output.status.code(),
    }
}

/// The exit status that a service's command line has for a code.
fn failed_with(examined: &Examined, code: Code) -> bool {
    examined.status != Some(0) && examined.stderr.contains(&code.to_string())
}

#[tokio::test]
async fn la_10_the_doctor_shows_every_posture_and_names_what_is_broken() {
    let machine = Machine::new();
    let nothing = doctor(&machine).await;
    assert!(
        failed_with(&nothing, Code::DomainMissing),
        "{}",
        nothing.stderr
    );

    assert!(machine.init("d", "1").await.status.success());
    // Nothing listens on port 1.
    let before = doctor_at(&machine, &["--bus", "tls://127.0.0.1:1"]).await;
    assert!(
        failed_with(&before, Code::BusUnreachable),
        "{}",
        before.stderr
    );
    for check in [
        "streams",
        "coordinator",
        "broker's lock",
        "processes",
        "postures",
    ] {
        assert_eq!(before.state(check), "skipped", "{}", before.report);
    }

    let up = machine.up("d", "0").await;
    assert!(up.status.success(), "{}", up.text);
    let sound = doctor(&machine).await;
    assert_eq!(sound.status, Some(0), "{} {}", sound.report, sound.stderr);
    for check in [
        "secrets",
        "ends",
        "renewals",
        "revocations",
        "disk",
        "processes",
        "broker's lock",
        "broker",
        "streams",
        "coordinator",
        "store",
        "store's lock",
        "runs",
        "workers",
        "postures",
    ] {
        assert_eq!(sound.state(check), "ok", "{}", sound.report);
    }
    for process in ["coordinator", "store", "audit"] {
        assert_eq!(sound.open(process), [""; 0], "{}", sound.report);
    }

    // Started again with a layer open, each process says so.
    machine.ok(&["--domain", "d", "down"]).await;
    let config = nats_config();
    let mut up = machine.command(&[
        "--domain",
        "d",
        "up",
        "--workers",
        "0",
        "--nats-config",
        &config,
    ]);
    let exception = r#"[{ layer = "enrolment", reason = "a test bench" }]"#;
    let started = up
        .env("DILOCO_AUTH__EXCEPTIONS", exception)
        .output()
        .await
        .unwrap();
    assert!(
        started.status.success(),
        "{}",
        String::from_utf8_lossy(&started.stderr)
    );
    let open = doctor(&machine).await;
    assert_eq!(
        open.status,
        Some(0),
        "an open layer is a warning: {}",
        open.stderr
    );
    for process in ["coordinator", "store", "audit"] {
        assert_eq!(open.open(process), ["enrolment"], "{}", open.report);
    }
    let (state, code, _) = open.of("postures");
    assert_eq!((state, code), ("warn", Some(&*Code::LayerOpen.to_string())));

    let secret = identity::DomainLayout::new(&machine.path("d")).credentials("worker-0");
    let set = |mode| {
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    set(0o644);
    let exposed = doctor(&machine).await;
    assert!(
        failed_with(&exposed, Code::CredentialExposed),
        "{}",
        exposed.stderr
    );
    assert!(
        exposed.of("secrets").2.contains("worker-0.creds"),
        "{}",
        exposed.report
    );
    set(0o600);

    machine.signal("d", "store", "-KILL");
    let lost = doctor(&machine).await;
    assert!(
        failed_with(&lost, Code::StoreUnreachable),
        "{}",
        lost.stderr
    );
    assert_eq!(lost.state("store's lock"), "skipped");
    let (state, code, found) = lost.of("processes");
    assert_eq!(code, Some(&*Code::StoreUnreachable.to_string()));
    assert!(
        state == "warn" && found.starts_with("store does not run; its log is "),
        "{found}"
    );
    assert_eq!(
        lost.state("coordinator"),
        "ok",
        "the bus does not need the store"
    );
}
