//! The one door to every job on this repository: set-up, checks, benches, the demo and the
//! generated pages.

mod bench;
mod console;
mod demo;
mod deps;
mod diloctl;
mod fuzz;
mod interrupt;
mod mutants;
mod pages;
mod picture;
mod process;
mod suite;
mod tools;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::deps::Overrides;
use crate::process::Workspace;

/// Jobs on this repository.
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    job: Job,
}

#[derive(Subcommand)]
enum Job {
    /// Put the pinned nats-server and libtorch under .deps/
    Deps {
        /// Use another folder than .deps/
        #[arg(long, value_name = "DIR", hide = true)]
        into: Option<PathBuf>,
        /// Also compile Garage 2.5.0, an S3 store for one test that is skipped without it: half an
        /// hour
        #[arg(long)]
        garage: bool,
    },
    /// Run everything that CI runs, in order
    Test(suite::Selection),
    /// Measure this build; the arguments are passed to the benches
    Bench {
        /// Arguments of the benches
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Set everything up, train, and verify the result
    Demo(demo::DemoOptions),
    /// Take guards out of the code one at a time and see whether a test fails
    Mutants(mutants::MutantOptions),
    /// Search for inputs that break what reads bytes of others
    Fuzz(fuzz::FuzzOptions),
    /// Draw the README's picture from a run in which a worker is killed and comes back
    Picture(picture::PictureOptions),
    /// Write the pages that are generated from the code
    Docs {
        /// Write nothing; fail if a page differs from what the code says
        #[arg(long)]
        check: bool,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().job) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            console::failure(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(job: Job) -> Result<()> {
    let workspace = Workspace::locate();
    let overrides = Overrides::from_environment(&workspace);
    match job {
        Job::Deps { into, garage } => {
            let folder = into.unwrap_or_else(|| workspace.deps());
            deps::ensure(&folder, &overrides).map(|found| console::say(found.report()))?;
            if garage {
                let program = deps::garage::ensure(&workspace, &folder)?;
                console::say(format_args!("{:<12} {}", "garage", program.display()));
            }
            Ok(())
        }
        Job::Test(selection) => suite::run(&workspace, &overrides, &selection),
        Job::Bench { arguments } => bench::run(&workspace, &overrides, &arguments),
        Job::Demo(options) => demo::run_demo(&workspace, &overrides, &options),
        Job::Mutants(options) => mutants::run_mutants(&workspace, &overrides, &options),
        Job::Fuzz(options) => fuzz::run_fuzz(&workspace, &options),
        Job::Picture(options) => picture::run_picture(&workspace, &overrides, &options),
        Job::Docs { check: true } => pages::check(&workspace),
        Job::Docs { check: false } => pages::write(&workspace),
    }
}
