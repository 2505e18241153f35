//! `diloco-audit`: reads and checks every event, and keeps what it saw.

use std::process::ExitCode;

use diloco_audit::program::{CommandLine, Program};

fn main() -> ExitCode {
    runtime::service::main::<Program, CommandLine>()
}
