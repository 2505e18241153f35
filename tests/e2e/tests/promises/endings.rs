//! Certificates and credentials expire. A process that meets an expired one is told which one it
//! is, in which file or at which address, and when it ended. A process that can go on after a
//! renewal waits for the renewal.

use std::time::Duration;

use e2e::Recipe;
use harness::{Cluster, Options, PATIENCE, Recorded};
use runtime::clock;
use runtime::exit::{EXIT_DENIED, EXIT_USAGE};
use schemas::event::Event;
use schemas::permission::Role;
use schemas::text::Time;
use schemas::view::RunPhase;
use schemas::{Code, Millis, UnixMillis};

const DAY_MS: u64 = 24 * 3_600_000;
/// The processes, each with the name and role of its credentials.
const CREDENTIALS: [(&str, Role, &str); 4] = [
    ("worker-0", Role::Worker, "worker-0"),
    ("audit", Role::Auditor, "auditor"),
    ("audit", Role::Recorder, "recorder"),
    ("coordinator", Role::Coordinator, "coordinator"),
];

/// Replaces the domain's certificate by one that ended yesterday, and returns its last day as
/// people read it.
fn expire(cluster: &Cluster) -> String {
    let made = UnixMillis(clock::now().get() - 31 * DAY_MS);
    cluster
        .domain()
        .renew_server_certificate(&[], made)
        .unwrap();
    Time(made.after(Millis(30 * DAY_MS))).to_string()[..10].to_owned()
}

#[tokio::test]
async fn a_certificate_that_has_ended_is_named_with_file_and_day() {
    let mut cluster = Cluster::broker(Options::default()).await;
    cluster.start_store().await;
    let (coordinator, audit) = (
        cluster.coordinator_arguments("tried"),
        cluster.audit_arguments(),
    );
    let programs = [
        ("diloco-coordinator", &coordinator),
        ("diloco-audit", &audit),
    ];
    let check = async |cluster: &Cluster, program: &str, arguments: &[String]| {
        let arguments = arguments
            .iter()
            .map(String::as_str)
            .chain(["--check-config"])
            .collect::<Vec<_>>();
        let output = cluster.run_program(program, &arguments, PATIENCE).await;
        (output.status.code(), output.stderr)
    };
    for (program, arguments) in programs {
        let (status, text) = check(&cluster, program, arguments).await;
        assert_eq!(status, Some(0), "{program}: {text}");
    }
    let day = expire(&cluster);
    let file = cluster
        .domain()
        .layout()
        .server_certificate()
        .display()
        .to_string();
    for (program, arguments) in programs {
        let (status, text) = check(&cluster, program, arguments).await;
        let told = text.contains(&Code::CertificateExpired.to_string())
            && text.contains(&file)
            && text.contains(&day);
        assert!(
            status == Some(i32::from(EXIT_USAGE)) && told,
            "{program}: {status:?} {text}"
        );
    }

    // The store does not start with the expired certificate. The broker does, and its clients
    // report the certificate that it shows.
    cluster.kill9("broker");
    cluster.restart("broker").await;
    let output = cluster.diloctl(&["run", "ls"]).await;
    let told = |text: &str| {
        text.contains(&Code::ServerCertificateExpired.to_string())
            && text.contains("issued to localhost")
            && text.contains(&day)
            && text.contains(cluster.bus_url())
    };
    assert!(
        output.status.code() == Some(6) && told(&output.stderr),
        "{} {}",
        output.status,
        output.stderr
    );
    let arguments: Vec<&str> = coordinator.iter().map(String::as_str).collect();
    let output = cluster
        .run_program("diloco-coordinator", &arguments, PATIENCE)
        .await;
    let status = output.status.code();
    assert!(
        status == Some(i32::from(EXIT_DENIED)) && told(&output.stderr),
        "{status:?} {}",
        output.stderr
    );

    // A new certificate mends this, and one that ends soon is reported before it ends.
    cluster
        .domain()
        .renew_server_certificate(&[], UnixMillis(clock::now().get() - 25 * DAY_MS))
        .unwrap();
    cluster.kill9("broker");
    cluster.restart("broker").await;
    let output = cluster.diloctl(&["cluster", "check"]).await;
    let soon = output.stderr.contains(&Code::EndsSoon.to_string())
        && output.stderr.contains("tls/server.pem ends at 2");
    assert!(
        output.status.success() && soon,
        "{} {}",
        output.status,
        output.stderr
    );
}

/// The broker cuts off clients whose credentials have ended. Without a registrar each process names
/// the file in time, takes up the one that an operator issues, and goes on. Coordinator and audit
/// service have two connections each, with a file for each.
#[tokio::test]
async fn a_credential_that_is_issued_again_before_its_end_is_taken_up_by_everybody() {
    const LIFE: Millis = Millis::from_secs(24);
    const PROCESSES: [&str; 3] = ["worker-0", "audit", "coordinator"];
    let log = "info,diloco_audit=debug".to_owned();
    let mut cluster = Cluster::broker(Options {
        log,
        ..Options::default()
    })
    .await;
    let run = cluster.run().clone();
    cluster.start_store().await;
    cluster.start_coordinator("coordinator").await;
    cluster.start_audit().await;
    cluster.start_worker("worker-0", &[]).await;
    Recipe::reference(400, 1, 40).create(&cluster).await;
    for name in PROCESSES {
        for (_, role, file) in CREDENTIALS.iter().filter(|(process, ..)| *process == name) {
            cluster.issue_for(*role, file, role.is_tenant().then_some(&run), LIFE);
        }
        cluster.kill9(name);
        cluster.restart(name).await;
    }
    for (name, _, file) in CREDENTIALS {
        let file = cluster
            .domain()
            .layout()
            .credentials(file)
            .display()
            .to_string();
        let delayed = schemas::Code::RenewalDelayed.to_string();
        let told = |text: &str| text.contains(&delayed);
        let named = |log: &str| log.lines().any(|line| line.contains(&file) && told(line));
        let log = cluster
            .process(name)
            .until_logged(3 * PATIENCE, named)
            .await;
        let line = log
            .lines()
            .find(|line| line.contains(&file) && told(line))
            .expect("one line has both");
        assert!(line.contains(" ends at 2"), "{line}");
        assert!(
            cluster.process(name).ended().is_none(),
            "{name} ended before its token"
        );
    }
    let (renewed, told) = (clock::now(), cluster.process("audit").log().len());
    for (_, role, file) in CREDENTIALS {
        cluster.issue(role, file);
    }
    let operator = cluster.operator().await;
    let before = operator
        .run(&run)
        .await
        .map(|detail| detail.view.round.get())
        .unwrap_or(0);
    let wanted = |view: &schemas::view::RunView| {
        let lapsed = clock::now() > renewed.after(LIFE);
        lapsed && (view.round.get() > before + 1 || view.phase == RunPhase::Complete)
    };
    operator.until(&run, Duration::from_secs(60), wanted).await;
    let of_worker = |recorded: &Recorded| {
        matches!(recorded.body.event, Event::Worker(_)) && recorded.body.time > renewed
    };
    cluster
        .evidence()
        .await
        .until("event of the worker after the renewal", of_worker)
        .await;
    cluster
        .process("audit")
        .until_logged(PATIENCE, |log| log[told..].contains("a batch is kept"))
        .await;
    for name in PROCESSES {
        assert!(
            cluster.process(name).ended().is_none(),
            "{name} goes on without a restart"
        );
    }
}
