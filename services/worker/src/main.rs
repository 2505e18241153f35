//! `diloco-worker`: trains for a run; `--help` shows its flags.

use std::process::ExitCode;

use diloco_worker::launch;
use diloco_worker::program::{self, CommandLine};
use runtime::exit;

fn main() -> ExitCode {
    launch::restart_with_settings();
    match exit::parse::<CommandLine>() {
        Ok(line) => exit::report_service(program::run(&line)),
        Err(status) => status,
    }
}
