//! The program: killed and started again, with a broker that crashes too.

use std::process::Stdio;

use diloco_audit::{PlacedFinding, Recorder, StreamSequence};
use harness::PATIENCE;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};

use crate::broker::Broker;

struct Program {
    child: Child,
    log: Lines<BufReader<ChildStderr>>,
}

impl Program {
    fn start(broker: &Broker) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_diloco-audit"));
        command.arg("--domain").arg(broker.domain.layout().folder());
        command.arg("--ready-file").arg(broker.path("audit.ready"));
        command.args(["--set", &format!("bus.url={}", broker.url)]);
        // It counts what the stream holds, so nothing is to come by itself.
        command.args(["--set", "audit.sentry_key=no-sentry.nk"]);
        command.args(["--log", "diloco_audit=debug", "--log-format", "json"]);
        let mut child = command
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("it was built");
        let log = BufReader::new(child.stderr.take().expect("it is piped")).lines();
        Self { child, log }
    }

    /// Reads its log until a line that holds all of `parts`.
    async fn until(&mut self, parts: &[&str]) {
        let mut seen = String::new();
        let found = async {
            while let Some(line) = self.log.next_line().await.expect("it logs text") {
                if parts.iter().all(|part| line.contains(part)) {
                    return true;
                }
                seen.push_str(&line);
                seen.push('\n');
            }
            false
        };
        let found = tokio::time::timeout(PATIENCE, found).await;
        assert!(matches!(found, Ok(true)), "no {parts:?} in:\n{seen}");
    }

    async fn kill(mut self) {
        self.child.kill().await.expect("it is ours");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kept_across_kills_of_the_service_and_of_the_broker() {
    let mut broker = Broker::start().await;
    broker.create_streams().await;
    let mut cast = broker.cast().await;
    for _ in 0..5 {
        cast.remark().await;
    }
    let mut program = Program::start(&broker);
    program.until(&["a batch is kept", "\"kept\":5"]).await;
    assert!(broker.path("audit.ready").exists());
    program.kill().await;
    // Nobody listens during this time.
    for _ in 0..5 {
        cast.remark().await;
    }
    let mut program = Program::start(&broker);
    program.until(&["\"auditing\"", "\"kept\":5"]).await;
    program.until(&["a batch is kept", "\"kept\":10"]).await;
    // The broker dies under the program; both recover by themselves.
    broker.crash().await;
    cast.remark().await;
    program.until(&["a batch is kept", "\"kept\":11"]).await;
    program.kill().await;
    let recorder = Recorder::open(
        &broker.domain.layout().folder().join("audit"),
        broker.domain.trust(),
    )
    .expect("whole files");
    assert_eq!(
        (recorder.files().last(), recorder.files().len()),
        (StreamSequence(11), 11)
    );
    assert_eq!(recorder.auditor().findings(), &[] as &[PlacedFinding]);
    assert_eq!(recorder.auditor().summary().verified, 11);
}

#[tokio::test(flavor = "multi_thread")]
async fn findings_are_logged_with_their_code_and_kept() {
    let broker = Broker::start().await;
    broker.create_streams().await;
    let mut cast = broker.cast().await;
    cast.remark().await;
    let _swallowed = cast.ledger.remark();
    cast.remark().await;
    let mut program = Program::start(&broker);
    program
        .until(&["\"ERROR\"", "DL0702", "\"finding\":\"gap\""])
        .await;
    program.kill().await;
    let mut program = Program::start(&broker);
    program
        .until(&["the audit files show evidence of tampering"])
        .await;
}
