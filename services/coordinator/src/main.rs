//! `diloco-coordinator`: leads runs.

use std::process::ExitCode;

use diloco_coordinator::program::{CommandLine, Program};

fn main() -> ExitCode {
    runtime::service::main::<Program, CommandLine>()
}
