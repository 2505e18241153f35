//! Requested output arrives whole, or the command fails and says so.

use std::fs::File;
use std::process::{Command, Stdio};

fn completions() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_diloctl"));
    command.args(["completions", "bash"]).stderr(Stdio::piped());
    command
}

/// A script that writes an answer to a full disk must not take the part that was written for the
/// whole.
#[test]
fn an_answer_that_finds_no_room_is_a_failure() {
    let full = File::options()
        .write(true)
        .open("/dev/full")
        .expect("this system has one");
    let output = completions().stdout(full).output().expect("it starts");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(
        told.contains("DL0910") && told.contains("No space left"),
        "{told}"
    );
}

/// The reader in `diloctl … | head` has seen enough.
#[test]
fn a_reader_that_has_gone_is_none() {
    let mut child = completions()
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{output:?}"
    );
}
