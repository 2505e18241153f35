//! `diloctl`: the operator's command line.

use std::process::ExitCode;

use clap::Parser as _;
use diloctl::{Cli, run};

#[tokio::main]
async fn main() -> ExitCode {
    identity::tls::install_provider();
    run(Cli::parse()).await
}
