//! Lists the targets, or writes the seeds of one into a folder, for `cargo xtask fuzz`.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for `cargo xtask`: this is its output"
)]

use std::path::PathBuf;
use std::process::ExitCode;

use fuzz::TARGETS;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, folder] = &arguments[..] else {
        for target in TARGETS {
            println!("{}\t{}", target.name, target.reads);
        }
        return ExitCode::SUCCESS;
    };
    let Some(target) = TARGETS.iter().find(|target| target.name == *name) else {
        eprintln!("no target is named {name:?}");
        return ExitCode::FAILURE;
    };
    let folder = PathBuf::from(folder);
    let written = std::fs::create_dir_all(&folder).and_then(|()| {
        let mut seeds = (target.seeds)().into_iter().enumerate();
        seeds.try_for_each(|(number, seed)| {
            std::fs::write(folder.join(format!("seed-{number:03}")), seed)
        })
    });
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error}", folder.display());
            ExitCode::FAILURE
        }
    }
}
