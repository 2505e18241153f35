//! A trust domain begins whole or not at all, and one command at a time changes it.

use std::process::Stdio;
use std::time::Duration;

use e2e::Machine;
use e2e::machine::nats_config;
use schemas::Code;
use tokio::io::{AsyncBufReadExt as _, BufReader};

/// None of these faults may leave a trace.
#[tokio::test]
async fn what_auth_init_can_know_is_refused_before_anything_is_written() {
    let machine = Machine::new();
    let config = nats_config();
    let refused: [&[&str]; 4] = [
        &[
            "--domain",
            "d",
            "auth",
            "init",
            "--nats-config",
            &config,
            "--server-name",
            "not a name",
        ],
        &[
            "--domain",
            "do$llar",
            "auth",
            "init",
            "--nats-config",
            &config,
        ],
        &["--domain", "d", "auth", "init", "--nats-config", "nowhere"],
        &[
            "--domain",
            "quo\"te/d",
            "auth",
            "init",
            "--nats-config",
            &config,
        ],
    ];
    for arguments in refused {
        let said = machine.diloctl(arguments).await;
        assert!(
            !said.status.success() && said.text.contains("DL0101"),
            "{arguments:?}: {}",
            said.text
        );
    }
    let left = std::fs::read_dir(machine.path("")).unwrap().count();
    assert_eq!(left, 0, "something was written");
}

/// The init is killed at moments all over its life. The next init makes a whole domain, or reports
/// that there is one.
#[tokio::test]
async fn an_init_that_is_killed_at_any_moment_is_finished_by_the_next() {
    let machine = Machine::new();
    let config = nats_config();
    let begun = std::time::Instant::now();
    assert!(machine.init("whole", "1").await.status.success());
    let life = begun.elapsed();
    let (mut finished, mut complete) = (0, 0);
    const MOMENTS: u32 = 24;
    for moment in 0..MOMENTS {
        let domain = format!("d{moment}");
        let arguments = [
            "--domain",
            &domain,
            "auth",
            "init",
            "--workers",
            "1",
            "--nats-config",
            &config,
        ];
        let mut init = machine.command(&arguments);
        let mut child = init
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let after: Duration = life * moment / MOMENTS;
        let _ended_first = tokio::time::timeout(after, child.wait()).await;
        child.kill().await.unwrap();
        let again = machine.init(&domain, "1").await;
        match again.status.success() {
            true => finished += 1,
            false => {
                assert!(
                    again.text.contains(&Code::DomainExists.to_string()),
                    "after {after:?}: {}",
                    again.text
                );
                complete += 1;
            }
        }
        let shown = machine.ok(&["--domain", &domain, "auth", "show"]).await;
        for name in [
            "coordinator",
            "operator",
            "auditor",
            "provisioner",
            "worker-0",
        ] {
            assert!(shown.contains(name), "after {after:?} no {name} in {shown}");
        }
        for file in [
            "broker/nats.conf",
            "broker/generated/listen.conf",
            "config/worker-0.toml",
            "trust.json",
        ] {
            assert!(
                machine.path(&domain).join(file).is_file(),
                "after {after:?} no {file}"
            );
        }
        assert!(
            !machine.path(&domain).join(".init").exists(),
            "after {after:?}"
        );
    }
    assert_eq!(finished + complete, MOMENTS);
    assert!(finished > 0, "no moment lay within the life of an init");
}

/// The last two steps of an init lie so close together that the kills of the test above seldom fall
/// between them.
#[tokio::test]
async fn what_an_init_left_beside_a_whole_domain_is_removed_by_the_next() {
    let machine = Machine::new();
    assert!(machine.init("d", "1").await.status.success());
    let left = machine.path("d").join(".init");
    std::fs::create_dir(&left).unwrap();
    std::fs::write(left.join("half"), "of something").unwrap();
    let again = machine.init("d", "1").await;
    assert!(
        !again.status.success() && again.text.contains(&Code::DomainExists.to_string()),
        "{}",
        again.text
    );
    assert!(!left.exists(), "the remainder is still there");
    machine.ok(&["--domain", "d", "auth", "show"]).await;
}

/// Without a lock, each of the two would start services, and one's notes would be lost.
#[tokio::test]
async fn of_two_ups_at_once_one_wins_and_down_finds_everything() {
    let machine = Machine::new();
    assert!(machine.init("d", "0").await.status.success());
    let (one, other) = tokio::join!(machine.up("d", "0"), machine.up("d", "0"));
    let (won, second) = match one.text.contains(" started ") {
        true => (one, other),
        false => (other, one),
    };
    assert!(won.status.success(), "{}\n{}", won.text, second.text);
    // The second waited for the first, and found everything running.
    let second_found_all = second.status.success() && second.text.matches(" runs ").count() == 5;
    assert!(second_found_all, "{}", second.text);
    let down = machine.down("d").await;
    assert_eq!(
        down.matches(" stopped ").count() + down.matches(" ended ").count(),
        5,
        "{down}"
    );
}

/// Scripts tell a person's Ctrl-C from a failure.
#[tokio::test]
async fn a_command_that_waits_for_another_says_for_whom_and_is_ended_by_ctrl_c() {
    let machine = Machine::new();
    assert!(machine.init("d", "0").await.status.success());
    let lock = identity::DomainLock::take(&machine.path("d"), "diloctl up").unwrap();
    let mut waits = machine.command(&["--domain", "d", "auth", "push"]);
    let mut waits = waits.stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(waits.stderr.take().unwrap()).lines();
    let first = said.next_line().await.unwrap().unwrap();
    let holder = "is being changed by `diloctl up`, process ";
    assert!(
        first.contains(holder) && first.ends_with("and is waited for"),
        "{first}"
    );
    let id = waits.id().unwrap().to_string();
    let sent = std::process::Command::new("kill")
        .args(["-INT", &id])
        .status();
    assert!(sent.unwrap().success());
    let second = said.next_line().await.unwrap().unwrap();
    let interrupted = format!("error {} interrupted: stopped by SIGINT", Code::Interrupted);
    assert_eq!(second, interrupted);
    assert_eq!(waits.wait().await.unwrap().code(), Some(130));
    drop(lock);
}
