//! `diloco-registrar`: gives the holders of credentials new tokens before theirs end.

use std::process::ExitCode;

use diloco_registrar::program::{CommandLine, Program};

fn main() -> ExitCode {
    runtime::service::main::<Program, CommandLine>()
}
