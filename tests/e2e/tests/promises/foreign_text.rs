//! Text of strangers reaches a terminal as plain text: no table, JSON document or log contains a
//! control character, and no line begins with a stranger's words.

use e2e::{Recipe, Scripted};
use harness::{Cluster, Options};
use runtime::BusError;
use schemas::lease::Done;
use schemas::member::{JoinReply, LeaveRequest};
use schemas::subject::Verb;
use schemas::text::is_plain;
use schemas::{Code, V};

/// Text that clears a screen, begins a row, turns the direction of reading, hides a mark, and sets
/// a title by an 8-bit control.
const HOSTILE: &str =
    "cpu\u{1b}[2J\u{1b}[H\nUFORGED  yes  training\r\u{202e}abc\u{200b}\u{9d}0;title\u{7}";

#[tokio::test]
async fn no_command_shows_what_a_terminal_would_obey() {
    let mut cluster = Cluster::start(Options::default(), 0).await;
    Recipe::reference(2, 1, 5).create(&cluster).await;
    let scripted = Scripted::connect(&cluster, "worker-0").await;

    // A name that would stand in tables for good is refused at the join.
    let own = scripted.join_request();
    let mut device = own.clone();
    device.device = HOSTILE.to_owned();
    let mut release = own;
    release.release = HOSTILE.to_owned();
    for request in [device, release] {
        let refused: Result<JoinReply, BusError> = scripted.ask(Verb::Join, &request).await;
        assert!(
            matches!(&refused, Err(BusError::Refused(why)) if why.code == Code::MessageInvalid),
            "{refused:?}"
        );
    }
    scripted.join().await;
    let leave = LeaveRequest {
        v: V,
        session: scripted.session(),
        reason: HOSTILE.to_owned(),
    };
    let _left: Result<Done, BusError> = scripted.ask(Verb::Leave, &leave).await;

    let views = [
        "run ls",
        "run get demo",
        "worker ls",
        "lease ls",
        "round ls",
        "snapshot ls",
        "audit replay",
    ];
    for view in views {
        for format in ["table", "json", "jsonl"] {
            let arguments: Vec<&str> = ["--output", format]
                .into_iter()
                .chain(view.split(' '))
                .collect();
            let output = cluster.diloctl(&arguments).await;
            for line in output.stdout.lines().chain(output.stderr.lines()) {
                assert!(is_plain(line), "{view} as {format}: {line:?}");
                assert!(!line.starts_with("UFORGED"), "{view} as {format}: {line:?}");
            }
        }
    }
    let workers = cluster.diloctl_ok(&["worker", "ls"]).await;
    assert_eq!(
        workers.lines().count(),
        2,
        "titles and one worker:\n{workers}"
    );
    let replayed = cluster.diloctl(&["audit", "replay"]).await.stdout;
    assert!(
        replayed.contains("\\u{202e}abc\\u{200b}"),
        "the reason is shown, with its escapes:\n{replayed}"
    );
    for service in ["coordinator", "audit"] {
        let log = cluster.process(service).log();
        let odd = log
            .lines()
            .find(|line| !is_plain(line) || line.starts_with("UFORGED"));
        assert_eq!(odd, None, "in the log of {service}");
    }
}
