//! A ledger that was there and is not: nothing begins anew by itself. A domain can be renamed, and a copy does not meddle
//! with its original.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use e2e::Machine;
use e2e::machine::{Said, nats_config};
use schemas::Code;
use schemas::subject::{AUDIT_STREAM, LEDGER_STREAM};

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

fn is_refused(said: &Said) {
    assert!(!said.status.success(), "{}", said.text);
    assert!(said.text.contains(&Code::LedgerLost.to_string()), "{}", said.text);
}

/// The folder of a stream, in whichever account it lies.
fn stream_folder(machine: &Machine, stream: &str) -> PathBuf {
    let accounts = fs::read_dir(machine.path("d/nats/jetstream")).unwrap();
    let mut folders = accounts.map(|account| account.unwrap().path().join("streams").join(stream));
    folders.find(|folder| folder.is_dir()).unwrap_or_else(|| panic!("no stream {stream}"))
}

fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let all = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<PathBuf> = all.filter(|path| path.extension().is_some_and(|own| own == ending)).collect();
    found.sort();
    found
}

#[tokio::test]
async fn a_stream_that_is_gone_is_not_created_anew_and_comes_back_from_a_backup() {
    let machine = trained().await;
    let folder = stream_folder(&machine, LEDGER_STREAM);
    let aside = machine.path("backup");
    fs::rename(&folder, &aside).unwrap();
    is_refused(&machine.up_again("d", "1").await);
    // The broker runs; the advice for a missing stream leads no further.
    is_refused(&machine.diloctl(&["--domain", "d", "cluster", "init", "--nats-config", &nats_config()]).await);
    is_refused(&machine.diloctl(&["--domain", "d", "cluster", "check", "--nats-config", &nats_config()]).await);
    machine.down("d").await;
    assert!(!folder.exists(), "nothing was created in its place");

    // The broker has tidied up the folders above it.
    fs::create_dir_all(folder.parent().unwrap()).unwrap();
    fs::rename(&aside, &folder).unwrap();
    let up = machine.up_again("d", "1").await;
    assert!(up.status.success(), "{}", up.text);
    assert!(machine.ok(&["--domain", "d", "run", "ls"]).await.contains("demo"));
    machine.ok(&["--domain", "d", "audit", "replay", "--summary"]).await;
}

/// Cuts off the last messages of a stream.
fn cut(machine: &Machine, stream: &str) {
    let newest = files(&stream_folder(machine, stream).join("msgs"), "blk").pop().expect("the stream has messages");
    let length = fs::metadata(&newest).unwrap().len();
    fs::OpenOptions::new().write(true).open(&newest).unwrap().set_len(length - 300).unwrap();
}

#[tokio::test]
async fn a_ledger_whose_end_was_cut_off_is_not_led_on() {
    let machine = trained().await;
    cut(&machine, LEDGER_STREAM);
    is_refused(&machine.up_again("d", "1").await);
    is_refused(&machine.diloctl(&["--domain", "d", "cluster", "check", "--nats-config", &nats_config()]).await);
}

/// The readers' copy is what everybody's evidence rests on; the audit service's files know more than it.
#[tokio::test]
async fn a_copy_whose_end_was_cut_off_is_told_by_who_kept_it() {
    let machine = trained().await;
    cut(&machine, AUDIT_STREAM);
    is_refused(&machine.up_again("d", "1").await);
}

#[tokio::test]
async fn a_mark_that_is_damaged_is_named() {
    let machine = trained().await;
    let mark = fs::OpenOptions::new().write(true).open(machine.path("d/ledger.mark")).unwrap();
    mark.write_all_at(&[0; 1024], 0).unwrap();
    let up = machine.up_again("d", "1").await;
    assert!(!up.status.success() && up.text.contains(&Code::LedgerMarkInvalid.to_string()), "{}", up.text);
    assert!(up.text.contains("ledger.mark"), "{}", up.text);
}

#[tokio::test]
async fn a_renamed_domain_goes_on_and_a_copied_one_is_kept_apart() {
    let machine = trained().await;
    fs::rename(machine.path("d"), machine.path("prod")).unwrap();
    let up = machine.up_again("prod", "1").await;
    assert!(up.status.success(), "{}", up.text);
    assert!(machine.ok(&["--domain", "prod", "run", "ls"]).await.contains("demo"));
    machine.ok(&["--domain", "prod", "audit", "replay", "--summary"]).await;
    assert!(!machine.path("d").exists(), "nothing is written to the old place");

    // The copy has the notes of the original's processes, and its ports.
    let copied = std::process::Command::new("cp").arg("-r").args([machine.path("prod"), machine.path("copy")]).status();
    assert!(copied.unwrap().success());
    let up = machine.up_again("copy", "1").await;
    assert!(!up.status.success() && up.text.contains(&Code::PortTaken.to_string()), "{}", up.text);
    let down = machine.ok(&["--domain", "copy", "down"]).await;
    assert!(down.contains("nothing runs"), "{down}");
    assert!(machine.ok(&["--domain", "prod", "run", "ls"]).await.contains("demo"), "the original goes on");

    // Moved while it runs: its services have the old paths.
    fs::rename(machine.path("prod"), machine.path("moved")).unwrap();
    let up = machine.up_again("moved", "1").await;
    assert!(!up.status.success() && up.text.contains(&Code::DomainMoved.to_string()), "{}", up.text);
    machine.down("moved").await;
    let up = machine.up_again("moved", "1").await;
    assert!(up.status.success(), "{}", up.text);
    assert!(machine.ok(&["--domain", "moved", "run", "ls"]).await.contains("demo"));
}
