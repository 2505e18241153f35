//! `diloctl`: the operator's command line.

use std::process::ExitCode;

use clap::Parser as _;
use diloctl::{Cli, run};

fn main() -> ExitCode {
    run(Cli::parse())
}
