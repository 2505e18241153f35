//! The project's benches: numbers with units, printed as a table beside what is to be reached.
//!
//! | file | measures |
//! | --- | --- |
//! | `merging` | the outer step beside memcpy in the same run |
//! | `codecs` | encode, decode and accumulate of every codec, beside memcpy in the same run |
//! | `sync` | the time between two units, over the real stack, by stage; processor time and memory with it |
//! | `rounds` | what a round costs besides its work |
//! | `timeline` | how the times of a sync are read out of the logs |
//! | `cluster_run` | a run on processes of this build |
//! | `tokens` | training speed, beside PyTorch where there is one |
//! | `leases` | claims to grants at a fixed rate |
//! | `crowd` | the grants of a round of 1,000 units, from its start to the last manifest |
//! | `appends` | events appended to the ledger, together and alone |
//! | `ledger_stream` | the ledger's stream and its readers' copy, in the accounts of a trust domain |
//! | `history` | a ledger read and folded at a start, and its copy replayed by an auditor |
//! | `starts` | a coordinator's start with a long ledger |
//! | `row`, `table`, `machine` | results, how they are shown and kept, and where they were measured |

mod appends;
mod cluster_run;
mod codecs;
mod crowd;
mod history;
mod leases;
mod ledger_stream;
mod machine;
mod merging;
mod rounds;
mod row;
mod starts;
mod sync;
mod table;
mod timeline;
mod tokens;

use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;

use crate::machine::Machine;
use crate::row::Row;

/// Measures this build on this machine. Run it with `cargo xtask bench`, which builds what it
/// needs.
#[derive(Debug, Parser)]
#[command(name = "benches")]
struct Arguments {
    /// Run only benches whose name contains this; may be repeated.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Print the names of the benches and end.
    #[arg(long)]
    list: bool,
    /// Write the results to benches/baseline.json; rows of benches that did not run stay as they
    /// are.
    #[arg(long)]
    save: bool,
    /// Use smaller sizes and fewer repetitions; this shows that the benches work, and gives no
    /// numbers to quote.
    #[arg(long)]
    quick: bool,
    /// Print the speed of the decoder as JSON and end: `tokens` measures in a process of its own.
    #[arg(long, hide = true)]
    tokens_here: bool,
}

/// The amount of measuring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effort {
    /// Enough for numbers that are quoted.
    Full,
    /// Few repetitions, enough to show that the bench works.
    Quick,
}

/// A bench by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bench {
    Merge,
    Codecs,
    Sync(sync::Size, usize),
    SyncTrained,
    SyncSecured,
    Round(usize),
    Tokens,
    Leases,
    Crowd,
    Appends,
    History,
    Starts,
}

/// The benches, in the order in which they run.
const BENCHES: [(&str, Bench); 16] = [
    ("merge", Bench::Merge),
    ("codecs", Bench::Codecs),
    ("sync-10m-2", Bench::Sync(sync::Size::M10, 2)),
    ("sync-10m-4", Bench::Sync(sync::Size::M10, 4)),
    ("sync-100m-2", Bench::Sync(sync::Size::M100, 2)),
    ("sync-100m-4", Bench::Sync(sync::Size::M100, 4)),
    ("sync-25m-2-trained", Bench::SyncTrained),
    ("sync-10m-2-secured", Bench::SyncSecured),
    ("round-2", Bench::Round(2)),
    ("round-4", Bench::Round(4)),
    ("tokens", Bench::Tokens),
    ("leases", Bench::Leases),
    ("crowd", Bench::Crowd),
    ("appends", Bench::Appends),
    ("history", Bench::History),
    ("starts", Bench::Starts),
];

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match start(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            table::say(&format!("bench failed: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn start(arguments: &Arguments) -> Result<()> {
    if arguments.tokens_here {
        return tokens::print_here();
    }
    if arguments.list {
        BENCHES.iter().for_each(|(name, _)| table::say(name));
        return Ok(());
    }
    let wanted = |name: &str| {
        arguments.only.is_empty()
            || arguments
                .only
                .iter()
                .any(|part| name.contains(part.as_str()))
    };
    let chosen: Vec<_> = BENCHES
        .into_iter()
        .filter(|(name, _)| wanted(name))
        .collect();
    ensure!(
        !chosen.is_empty(),
        "--only {} names no bench; `--list` shows them",
        arguments.only.join(", ")
    );
    identity::tls::install_provider();
    let machine = Machine::here();
    table::say(&machine.line());
    let effort = if arguments.quick {
        Effort::Quick
    } else {
        Effort::Full
    };
    let runtime = tokio::runtime::Runtime::new().context("no async runtime")?;
    let mut rows = Vec::new();
    for (name, bench) in chosen {
        table::say(&format!("{name} (load {:.1}) …", machine::load()));
        let measured = measure(bench, effort, &runtime).with_context(|| name.to_owned())?;
        table::print(&measured);
        rows.extend(measured);
    }
    if arguments.save {
        ensure!(
            effort == Effort::Full,
            "--quick results are not kept; run without it to --save"
        );
        table::save(&machine, &rows)?;
    }
    Ok(())
}

fn measure(bench: Bench, effort: Effort, runtime: &tokio::runtime::Runtime) -> Result<Vec<Row>> {
    match bench {
        Bench::Merge => merging::measure(effort),
        Bench::Codecs => codecs::measure(effort),
        Bench::Sync(size, workers) => {
            runtime.block_on(Box::pin(sync::measure(size, workers, effort)))
        }
        Bench::SyncTrained => runtime.block_on(Box::pin(sync::measure_trained(effort))),
        Bench::SyncSecured => runtime.block_on(Box::pin(sync::measure_secured(effort))),
        Bench::Round(workers) => runtime.block_on(Box::pin(rounds::measure(workers, effort))),
        Bench::Tokens => tokens::measure(effort),
        Bench::Leases => runtime.block_on(Box::pin(leases::measure(effort))),
        Bench::Crowd => runtime.block_on(Box::pin(crowd::measure(effort))),
        Bench::Appends => runtime.block_on(Box::pin(appends::measure(effort))),
        Bench::History => runtime.block_on(Box::pin(history::measure(effort))),
        Bench::Starts => runtime.block_on(Box::pin(starts::measure(effort))),
    }
}
