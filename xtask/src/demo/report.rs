//! The result of the demo, read back from the coordinator, the audit stream and the snapshot.
//! Nothing is remembered from the training.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::console;
use crate::diloctl::Diloctl;

/// Commands to try next.
const NEXT: [&str; 3] = [
    "  target/demo/diloctl up                       # start everything again, then",
    "  target/demo/diloctl audit replay --run demo  # every event, verified",
    "  target/demo/diloctl snapshot sample demo --prompt 'pub struct' --tokens 400",
];

/// Prints the table of rounds, the snapshot's digest, the audit's summary, a sample, and the
/// commands to try next.
pub(crate) fn show(diloctl: &Diloctl, run: &str, took: Duration) -> Result<()> {
    let rounds = diloctl.ask(&["round", "ls", run])?;
    let detail = diloctl.ask(&["run", "get", run])?;
    let data = diloctl.ask(&["data", "ls"])?;
    let entropy = data["items"]
        .as_array()
        .and_then(|sets| sets.last())
        .context("there is no data set")?;
    table(&rounds, &detail, entropy);
    console::say(format_args!(
        "\nwall time {} from step 3 to here",
        console::span(took)
    ));
    let view = &detail["view"];
    console::say(format_args!(
        "bytes     {} uploaded, {} downloaded by workers",
        console::megabytes(view["bytes_up"].as_u64().unwrap_or(0)),
        console::megabytes(view["bytes_down"].as_u64().unwrap_or(0)),
    ));
    diloctl.show(&["snapshot", "ls", run])?;
    diloctl.show(&["audit", "replay", "--run", run, "--summary"])?;
    diloctl.show(&["snapshot", "sample", run])?;
    let verdict = verdict(&detail, entropy);
    console::say("\nnext:");
    NEXT.iter().for_each(console::say);
    verdict
}

fn table(rounds: &Value, detail: &Value, entropy: &Value) {
    let (unigram, bigram) = (
        number(&entropy["unigram_nats"]),
        number(&entropy["bigram_nats"]),
    );
    console::say("\nround  held-out loss  train loss   tokens  seconds");
    let empty = Vec::new();
    for round in rounds["items"].as_array().unwrap_or(&empty) {
        let opened = round["opened_at"].as_u64().unwrap_or(0);
        let seconds = round["closed_at"]
            .as_u64()
            .map(|closed| closed.saturating_sub(opened) as f64 / 1000.0);
        console::say(format_args!(
            "{:>5}  {:>13}  {:>10}  {:>7}  {:>7}",
            round["round"],
            loss(&round["held_out_loss"]),
            loss(&round["train_loss"]),
            round["tokens"],
            seconds.map_or_else(|| "-".to_owned(), |seconds| format!("{seconds:.1}")),
        ));
    }
    let last = &detail["view"]["held_out_loss"];
    console::say(format_args!(
        "final  {:>13}   (nats a token)",
        loss(&last[1])
    ));
    console::say(format_args!(
        "entropy of the same text: unigram {unigram:.4}, bigram {bigram:.4}"
    ));
}

/// Checks the demo's claim: the held-out loss is below the bigram entropy of the text.
fn verdict(detail: &Value, entropy: &Value) -> Result<()> {
    let last = number(&detail["view"]["held_out_loss"][1]);
    let bigram = number(&entropy["bigram_nats"]);
    ensure!(last.is_finite(), "the run has no held-out loss");
    ensure!(
        last < bigram,
        "held-out loss {last:.4} is not below the bigram entropy {bigram:.4}: more rounds are needed"
    );
    console::say(format_args!(
        "\nverified: held-out loss {last:.4} is below the bigram entropy {bigram:.4}"
    ));
    Ok(())
}

fn loss(value: &Value) -> String {
    value
        .as_f64()
        .map_or_else(|| "-".to_owned(), |loss| format!("{loss:.4}"))
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN)
}
