//! A ledger that existed and is gone: no process begins a new one by itself. A domain can be
//! renamed, and a copy of a domain does not touch its original.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use async_nats::jetstream::{self, stream};
use e2e::machine::{CommandOutcome, nats_config};
use e2e::{Machine, Recipe};
use harness::{Cluster, Options, PATIENCE};
use identity::DomainLayout;
use runtime::exit::EXIT_TAMPERED;
use schemas::Code;
use schemas::event::Event;
use schemas::permission::Role;
use schemas::subject::{AUDIT_STREAM, LEDGER_STREAM, events_stream};

/// A domain with a complete run, stopped.
async fn trained() -> Machine {
    let machine = Machine::new();
    assert!(machine.init("d", "1").await.status.success());
    let up = machine.up("d", "1").await;
    assert!(up.status.success(), "{}", up.text);
    machine.train("d").await;
    machine.down("d").await;
    machine
}

fn is_refused(said: &CommandOutcome) {
    is_refused_with(Code::LedgerLost, said);
}

fn is_refused_with(code: Code, said: &CommandOutcome) {
    assert!(!said.status.success(), "{}", said.text);
    assert!(said.text.contains(&code.to_string()), "{}", said.text);
}

/// The folder of a stream, in whichever account it lies.
fn stream_folder(domain: &Path, stream: &str) -> PathBuf {
    let accounts = fs::read_dir(domain.join("nats/jetstream")).unwrap();
    let mut folders = accounts.map(|account| account.unwrap().path().join("streams").join(stream));
    folders
        .find(|folder| folder.is_dir())
        .unwrap_or_else(|| panic!("no stream {stream}"))
}

fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let all = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut found: Vec<PathBuf> = all
        .filter(|path| path.extension().is_some_and(|own| own == ending))
        .collect();
    found.sort();
    found
}

#[tokio::test]
async fn a_stream_that_is_gone_is_not_created_anew_and_comes_back_from_a_backup() {
    let machine = trained().await;
    let folder = stream_folder(&machine.path("d"), LEDGER_STREAM);
    let aside = machine.path("backup");
    fs::rename(&folder, &aside).unwrap();
    let failed = machine.up_again("d", "1").await;
    is_refused(&failed);
    // It leaves nothing running, and says so.
    let row = |name: &str| failed.text.lines().find(|line| line.starts_with(name));
    let broker = row("nats-server ").expect("it was started");
    assert!(broker.contains(" stopped again "), "{}", failed.text);
    assert_eq!(row("coordinator "), None, "{}", failed.text);
    assert!(machine.down("d").await.contains("nothing runs"));
    // Following the advice for a missing stream changes nothing.
    let broker = machine.broker_alone("d").await;
    is_refused(&cluster(&machine, "init").await);
    is_refused(&cluster(&machine, "check").await);
    end(broker).await;
    assert!(!folder.exists(), "nothing was created in its place");

    // The broker has removed the empty folders above the stream's.
    fs::create_dir_all(folder.parent().unwrap()).unwrap();
    fs::rename(&aside, &folder).unwrap();
    let up = machine.up_again("d", "1").await;
    assert!(up.status.success(), "{}", up.text);
    assert!(
        machine
            .ok(&["--domain", "d", "run", "ls"])
            .await
            .contains("demo")
    );
    machine
        .ok(&["--domain", "d", "audit", "replay", "--summary"])
        .await;
}

/// `cluster init` or `cluster check` of the domain `d`, by this repository's declarations.
async fn cluster(machine: &Machine, verb: &str) -> CommandOutcome {
    let declarations = nats_config();
    let domain = ["--domain", "d", "cluster", verb];
    let arguments = [&domain[..], &["--nats-config", &declarations]].concat();
    machine.diloctl(&arguments).await
}

/// Cuts off the last messages of a stream.
fn cut(domain: &Path, stream: &str) {
    let newest = files(&stream_folder(domain, stream).join("msgs"), "blk")
        .pop()
        .expect("the stream has messages");
    let length = fs::metadata(&newest).unwrap().len();
    fs::OpenOptions::new()
        .write(true)
        .open(&newest)
        .unwrap()
        .set_len(length - 300)
        .unwrap();
}

#[tokio::test]
async fn a_ledger_whose_end_was_cut_off_is_not_led_on() {
    let machine = trained().await;
    cut(&machine.path("d"), LEDGER_STREAM);
    is_refused(&machine.up_again("d", "1").await);
    let broker = machine.broker_alone("d").await;
    is_refused(&cluster(&machine, "check").await);
    end(broker).await;
}

async fn end(mut broker: tokio::process::Child) {
    broker.kill().await.unwrap();
}

/// Everybody's evidence rests on the readers' copy; the audit service's files reach further.
#[tokio::test]
async fn a_copy_whose_end_was_cut_off_is_told_by_who_kept_it() {
    let machine = trained().await;
    cut(&machine.path("d"), AUDIT_STREAM);
    is_refused_with(Code::CopyLost, &machine.up_again("d", "1").await);
}

/// The ledger is whole: it stays as it is, and the copy is made anew once nobody keeps the old one.
#[tokio::test]
async fn a_copy_that_is_gone_is_made_anew_when_the_audit_files_are_put_aside() {
    let machine = trained().await;
    let domain = machine.path("d");
    fs::remove_dir_all(stream_folder(&domain, AUDIT_STREAM)).unwrap();
    is_refused_with(Code::CopyLost, &machine.up_again("d", "1").await);
    let broker = machine.broker_alone("d").await;
    is_refused_with(Code::CopyLost, &cluster(&machine, "check").await);
    end(broker).await;
    let files = DomainLayout::new(&domain).audit_files();
    fs::rename(&files, machine.path("audit files")).unwrap();
    // The new copy may have another order than the log that the store keeps.
    fs::rename(domain.join("objects/log"), machine.path("log of before")).unwrap();
    let up = machine.up_again("d", "1").await;
    assert!(up.status.success(), "{}", up.text);
    let runs = machine.ok(&["--domain", "d", "run", "ls"]).await;
    assert!(runs.contains("demo"), "{runs}");
    machine
        .ok(&["--domain", "d", "audit", "replay", "--summary"])
        .await;
}

/// The lines of the audit files that are records.
fn kept(cluster: &Cluster) -> usize {
    let logs = files(&cluster.path(".diloco/audit"), "log");
    let text: String = logs
        .iter()
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    text.lines()
        .filter(|line| line.starts_with("{\"line\":\"record\""))
        .count()
}

/// The audit service ends when the stream is another one, both while it runs and when it starts,
/// and keeps none of the later messages.
#[tokio::test]
async fn the_audit_service_records_no_second_history_behind_the_first() {
    let log = "info,diloco_audit=debug".to_owned();
    let mut cluster = Cluster::start(
        Options {
            log,
            ..Options::default()
        },
        1,
    )
    .await;
    Recipe::reference(1, 1, 10).create(&cluster).await;
    cluster.operator().await.until_complete(cluster.run()).await;
    cluster.end_well(&["worker-0"]).await;
    let events = cluster.evidence().await.everything().await.len();
    let all = format!("kept={events} ");
    cluster
        .process("audit")
        .until_logged(PATIENCE, |log| log.contains(&all))
        .await;
    assert_eq!(kept(&cluster), events);

    let provisioner = cluster
        .connect(Role::AuditProvisioner, Role::AuditProvisioner.name())
        .await;
    let jetstream = jetstream::new(provisioner.client().clone());
    let config = jetstream
        .get_stream(AUDIT_STREAM)
        .await
        .unwrap()
        .cached_info()
        .config
        .clone();
    jetstream.delete_stream(AUDIT_STREAM).await.unwrap();
    // The ledger alone is copied, so it is shorter than both together, and in another order.
    let ledger = config
        .sources
        .iter()
        .flatten()
        .filter(|source| source.name == LEDGER_STREAM)
        .cloned()
        .collect();
    jetstream
        .create_stream(stream::Config {
            sources: Some(ledger),
            ..config
        })
        .await
        .unwrap();
    let status = cluster.process("audit").exit(PATIENCE).await;
    let log = cluster.process("audit").log();
    assert!(
        status.code() == Some(i32::from(EXIT_TAMPERED)) && contradicted(&log),
        "{status} {log}"
    );

    // The second history grows longer than the first, and the service starts on it.
    let arguments = cluster.audit_arguments();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    for longer in [false, true] {
        if longer {
            while cluster.evidence().await.length().await <= events as u64 {
                // Each start of the coordinator begins with an event.
                cluster.stop_well(&["coordinator"]).await;
                cluster.restart("coordinator").await;
            }
        }
        let again = cluster
            .run_program("diloco-audit", &arguments, PATIENCE)
            .await;
        let status = again.status.code();
        assert!(
            status == Some(i32::from(EXIT_TAMPERED)) && contradicted(&again.stderr),
            "{status:?} {}",
            again.stderr
        );
        assert!(again.stderr.contains(".diloco/audit"), "{}", again.stderr);
    }
    assert_eq!(kept(&cluster), events, "not one more");
}

fn contradicted(text: &str) -> bool {
    text.contains(&format!("error {}", Code::RecordContradicted))
}

/// A copy of whole streams has lost its end. The broker copies the missing messages again, and the
/// service continues if they are byte for byte those that it kept.
#[tokio::test]
async fn a_copy_that_the_broker_makes_whole_again_is_gone_on_with() {
    let log = "info,diloco_audit=debug".to_owned();
    let mut cluster = Cluster::broker(Options {
        log,
        ..Options::default()
    })
    .await;
    cluster.start_store().await;
    cluster.start_coordinator("coordinator").await;
    cluster.start_audit().await;
    cluster.stop_well(&["coordinator"]).await;
    cluster.restart("coordinator").await;
    let events = cluster.evidence().await.everything().await.len();
    let all = format!("kept={events} ");
    cluster
        .process("audit")
        .until_logged(PATIENCE, |log| log.contains(&all))
        .await;
    cluster.stop_well(&["audit", "coordinator"]).await;
    cluster.kill9("broker");
    cut(&cluster.path(".diloco"), AUDIT_STREAM);
    cluster.restart("broker").await;
    cluster.copied().await;
    cluster.restart("audit").await;
    cluster.restart("coordinator").await;
    let more = format!("kept={} ", events + 1);
    let log = cluster
        .process("audit")
        .until_logged(PATIENCE, |log| log.contains(&more))
        .await;
    assert!(
        log.contains("stored messages again, byte for byte"),
        "{log}"
    );
    assert!(
        !log.contains("tampering") && !log.contains("ERROR"),
        "{log}"
    );
}

/// A worker continues a chain whose beginning the stream has lost. The process that kept the
/// beginning reports that, and blames nobody.
#[tokio::test]
async fn a_tenants_events_that_were_lost_are_told_by_who_records_them() {
    let mut cluster = Cluster::start(Options::default(), 1).await;
    Recipe::reference(400, 1, 10).create(&cluster).await;
    let mut evidence = cluster.evidence().await;
    for _ in 0..4 {
        evidence
            .until("event of the worker", |one| {
                matches!(one.body.event, Event::Worker(_))
            })
            .await;
    }
    let provisioner = cluster
        .connect(Role::EventsProvisioner, Role::EventsProvisioner.name())
        .await;
    let jetstream = jetstream::new(provisioner.client().clone());
    let name = events_stream(&cluster.domain().tenant().unwrap());
    let config = jetstream
        .get_stream(&name)
        .await
        .unwrap()
        .cached_info()
        .config
        .clone();
    jetstream.delete_stream(&name).await.unwrap();
    let told = |log: &str| {
        log.lines().any(|line| {
            line.contains("WARN")
                && line.contains(&Code::EventsLost.to_string())
                && line.contains(&name)
        })
    };
    cluster.process("audit").until_logged(PATIENCE, told).await;
    // A new stream in its place that begins anew is no better.
    jetstream.create_stream(config).await.unwrap();
    let before = cluster.process("audit").log().len();
    cluster
        .process("audit")
        .until_logged(PATIENCE, |log| told(&log[before..]))
        .await;
    assert_eq!(
        jetstream
            .get_stream(&name)
            .await
            .unwrap()
            .cached_info()
            .state
            .messages,
        0
    );
    assert!(
        !cluster
            .process("worker-0")
            .log()
            .contains(&Code::ChainForked.to_string()),
        "it is not the worker's fault"
    );
    let check = cluster.diloctl(&["cluster", "check"]).await;
    let told = check.stderr.contains(&Code::LedgerLost.to_string()) && check.stderr.contains(&name);
    assert!(
        check.status.code() == Some(i32::from(EXIT_TAMPERED)) && told,
        "{}",
        check.stderr
    );
}

/// Keys and store are there; the broker's data, the mark and the audit files are gone, or on
/// another machine.
#[tokio::test]
async fn a_ledger_of_which_the_store_alone_knows_is_not_begun_anew() {
    let mut cluster = Cluster::broker(Options::default()).await;
    cluster.start_store().await;
    cluster.start_coordinator("coordinator").await;
    cluster.stop_well(&["coordinator"]).await;
    let (data, mark) = (
        cluster.path(".diloco/nats"),
        cluster.path(".diloco/ledger.mark"),
    );
    let backup = cluster.path("backup");
    cluster.kill9("broker");
    fs::rename(&data, &backup).unwrap();
    fs::remove_file(&mark).unwrap();
    cluster.restart("broker").await;
    cluster.diloctl_ok(&["cluster", "init"]).await;
    for name in ["second", "third"] {
        cluster.spawn_coordinator(name);
        let status = cluster.process(name).exit(PATIENCE).await;
        let (log, store) = (cluster.process(name).log(), cluster.store_url());
        assert_eq!(status.code(), Some(i32::from(EXIT_TAMPERED)), "{log}");
        assert!(
            log.contains(&format!("error {}", Code::LedgerLost)) && log.contains(&store),
            "{log}"
        );
    }
    // The steps are those on the page of the code.
    cluster.kill9("broker");
    fs::remove_dir_all(&data).unwrap();
    fs::rename(&backup, &data).unwrap();
    cluster.restart("broker").await;
    cluster.start_coordinator("restored").await;
}

/// There is neither mark nor audit files: the readers' copy in the same broker knows more than the
/// ledger.
#[tokio::test]
async fn a_ledger_that_is_shorter_than_its_copy_is_told() {
    let mut cluster = Cluster::broker(Options::default()).await;
    cluster.start_store().await;
    cluster.start_coordinator("coordinator").await;
    cluster.copied().await;
    cluster.stop_well(&["coordinator"]).await;
    fs::remove_file(cluster.path(".diloco/ledger.mark")).unwrap();
    cluster.diloctl_ok(&["cluster", "check"]).await;
    let provisioner = cluster
        .connect(Role::LedgerProvisioner, Role::LedgerProvisioner.name())
        .await;
    let jetstream = jetstream::new(provisioner.client().clone());
    let config = jetstream
        .get_stream(LEDGER_STREAM)
        .await
        .unwrap()
        .cached_info()
        .config
        .clone();
    jetstream.delete_stream(LEDGER_STREAM).await.unwrap();
    jetstream.create_stream(config).await.unwrap();
    for command in ["check", "init"] {
        let said = cluster.diloctl(&["cluster", command]).await;
        let told = said.stderr.contains(&Code::LedgerLost.to_string())
            && said.stderr.contains("its copy in stream AUDIT");
        assert!(
            said.status.code() == Some(i32::from(EXIT_TAMPERED)) && told,
            "{command}: {}",
            said.stderr
        );
    }
}

/// Begins a ledger anew on purpose, by the steps on the page of the code, with the same store.
#[tokio::test]
async fn another_domain_begins_its_ledger_in_a_store_that_was_used() {
    let machine = trained().await;
    assert!(machine.init("new", "1").await.status.success());
    fs::rename(machine.path("d/objects"), machine.path("new/objects")).unwrap();
    let up = machine.up("new", "0").await;
    assert!(up.status.success(), "{}", up.text);
    let log = fs::read_to_string(machine.path("new/logs/coordinator.log")).unwrap();
    assert!(log.contains(&Code::StoreUsedBefore.to_string()), "{log}");
    assert!(
        !machine
            .ok(&["--domain", "new", "run", "ls"])
            .await
            .contains("demo")
    );
}

#[tokio::test]
async fn a_mark_that_is_damaged_is_named() {
    let machine = trained().await;
    let mark = fs::OpenOptions::new()
        .write(true)
        .open(machine.path("d/ledger.mark"))
        .unwrap();
    mark.write_all_at(&[0; 1024], 0).unwrap();
    let up = machine.up_again("d", "1").await;
    assert!(
        !up.status.success() && up.text.contains(&Code::LedgerMarkInvalid.to_string()),
        "{}",
        up.text
    );
    assert!(up.text.contains("ledger.mark"), "{}", up.text);
}

#[tokio::test]
async fn a_renamed_domain_goes_on_and_a_copied_one_is_kept_apart() {
    let machine = trained().await;
    fs::rename(machine.path("d"), machine.path("prod")).unwrap();
    let up = machine.up_again("prod", "1").await;
    assert!(up.status.success(), "{}", up.text);
    assert!(
        machine
            .ok(&["--domain", "prod", "run", "ls"])
            .await
            .contains("demo")
    );
    machine
        .ok(&["--domain", "prod", "audit", "replay", "--summary"])
        .await;
    assert!(
        !machine.path("d").exists(),
        "nothing is written to the old place"
    );

    // The copy has the notes of the original's processes, and its ports.
    let copied = std::process::Command::new("cp")
        .arg("-r")
        .args([machine.path("prod"), machine.path("copy")])
        .status();
    assert!(copied.unwrap().success());
    let up = machine.up_again("copy", "1").await;
    assert!(
        !up.status.success() && up.text.contains(&Code::PortTaken.to_string()),
        "{}",
        up.text
    );
    let down = machine.ok(&["--domain", "copy", "down"]).await;
    assert!(down.contains("nothing runs"), "{down}");
    assert!(
        machine
            .ok(&["--domain", "prod", "run", "ls"])
            .await
            .contains("demo"),
        "the original goes on"
    );

    // The domain is moved while it runs: its services have the old paths.
    fs::rename(machine.path("prod"), machine.path("moved")).unwrap();
    let up = machine.up_again("moved", "1").await;
    assert!(
        !up.status.success() && up.text.contains(&Code::DomainMoved.to_string()),
        "{}",
        up.text
    );
    machine.down("moved").await;
    let up = machine.up_again("moved", "1").await;
    assert!(up.status.success(), "{}", up.text);
    assert!(
        machine
            .ok(&["--domain", "moved", "run", "ls"])
            .await
            .contains("demo")
    );
}
