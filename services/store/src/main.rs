//! `diloco-store`: the embedded S3 store as a program.

use std::process::ExitCode;

use diloco_store::program::{CommandLine, Program};

fn main() -> ExitCode {
    runtime::service::main::<Program, CommandLine>()
}
