//! Following a run by the status messages that the coordinator publishes. When they stay away, the
//! command asks for the status itself.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use runtime::{Failure, Subscription, clock};
use schemas::public::Status;
use schemas::subject::status_subject;
use schemas::text::Shown;
use schemas::view::{RunPhase, RunView};
use schemas::{Code, Message as _, Millis, RunId, UnixMillis};
use serde::Serialize;
use tokio::time::{Instant, sleep};

use crate::commands::run::{not_halted, phase};
use crate::context::{Context, Operator};
use crate::output::{Printer, Row};
use crate::table::{StreamedTable, bytes, count, or_dash};

/// Longest silence before the command asks for the status: a status message may be lost.
const SILENCE_MAX: Duration = Duration::from_secs(7);
/// Longest absence of a broker or coordinator that is being restarted.
const ABSENCE_MAX: Duration = Duration::from_secs(120);
/// Pause between two questions while nobody answers.
const PAUSE: Duration = Duration::from_secs(1);

/// Time after a run's creation during which it is not reported as held up: the second worker joins
/// a moment after the first.
const START_GRACE: Millis = Millis::from_secs(3);

/// The view to show: during a run's first moments, without the report that it is held up.
fn settled(mut view: RunView, now: UnixMillis) -> RunView {
    if now < view.created_at.after(START_GRACE) {
        view.trouble = None;
    }
    view
}

/// The statuses of one run.
struct Statuses {
    operator: Operator,
    run: RunId,
    subscription: Subscription,
    fresh: bool,
}

impl Statuses {
    async fn open(context: &Context, run: &RunId) -> Result<Self, Failure> {
        let operator = context.operator().await?;
        let subscription = operator.bus.subscribe(&status_subject(run)).await?;
        Ok(Self {
            operator,
            run: run.clone(),
            subscription,
            fresh: true,
        })
    }

    /// Returns the next view; the first one at once.
    async fn next(&mut self) -> Result<RunView, Failure> {
        if !std::mem::take(&mut self.fresh) {
            let waited = tokio::time::timeout(SILENCE_MAX, self.subscription.next()).await;
            if let Ok(message) = waited
                && let Some(message) = message?
                && let Ok(status) = Status::decode(&message.payload)
            {
                return Ok(status.view);
            }
        }
        self.look().await
    }

    /// Asks for the view; while nobody answers, tries again for some time.
    async fn look(&self) -> Result<RunView, Failure> {
        let deadline = Instant::now() + ABSENCE_MAX;
        loop {
            match self.operator.run(&self.run).await {
                Err(failure) if failure.code().passes() && Instant::now() < deadline => {
                    sleep(PAUSE).await
                }
                outcome => return Ok(outcome?.view),
            }
        }
    }
}

/// Follows a run until `reached` holds, and returns the view for which it holds. Fails with the
/// reason when it never will.
pub(crate) async fn until(
    context: &Context,
    run: &RunId,
    mut reached: impl FnMut(&RunView) -> Result<bool, Failure>,
) -> Result<RunView, Failure> {
    let mut statuses = Statuses::open(context, run).await?;
    loop {
        let view = statuses.next().await?;
        if reached(&view)? {
            return Ok(view);
        }
    }
}

/// Shows a run until it is complete or halted: one bar on a terminal, a line per change elsewhere.
pub(crate) async fn watch(context: &Context, run: &RunId) -> Result<(), Failure> {
    let mut statuses = Statuses::open(context, run).await?;
    let mut view = settled(statuses.next().await?, clock::now());
    let (bar, width) = rounds_bar(context.printer, &view);
    let mut table = StreamedTable::default();
    let mut shown: Option<RunView> = None;
    loop {
        bar.set_position(units(&view));
        bar.set_message(message(&view, width));
        let troubled = trouble(&view) != shown.as_ref().and_then(trouble);
        if let Some(why) = view
            .trouble
            .as_ref()
            .filter(|_| troubled && !context.printer.is_live())
        {
            context
                .printer
                .talk(&format!("run {} is held up: {why}", view.run));
        }
        if !context.printer.is_live() && shown.as_ref().is_none_or(|shown| differs(shown, &view)) {
            context.printer.follow(&mut table, &Change(&view));
            shown = Some(view.clone());
        }
        if matches!(view.phase, RunPhase::Complete | RunPhase::Halted) {
            bar.finish_and_clear();
            if context.printer.is_live() {
                context.printer.rows(&[Change(&view)]);
            }
            return not_halted(&view);
        }
        view = settled(statuses.next().await?, clock::now());
    }
}

fn trouble(view: &RunView) -> Option<Code> {
    view.trouble.as_ref().map(|why| why.code)
}

/// True when a line is worth printing; speeds change all the time.
fn differs(shown: &RunView, view: &RunView) -> bool {
    let marks = |view: &RunView| {
        (
            view.phase,
            trouble(view),
            view.round,
            view.units_done,
            view.workers,
            view.held_out_loss,
        )
    };
    marks(shown) != marks(view)
}

fn units(view: &RunView) -> u64 {
    view.round.get() * u64::from(view.units) + u64::from(view.units_done)
}

/// The line beside the bar: as many of its parts as fit into `width` characters, the most important
/// first. A line that wraps would be drawn twice a second below its last copy.
fn message(view: &RunView, width: usize) -> String {
    let loss = |loss: Option<f64>| loss.map_or_else(|| "-".to_owned(), |loss| format!("{loss:.3}"));
    let parts = [
        phase(view),
        format!("round {}/{}", view.round, view.rounds),
        format!("units {}/{}", view.units_done, view.units),
        format!("held-out {}", held_out(view, 3)),
        format!("{} tokens/s", count(view.tokens_per_second)),
        format!("{} workers", view.workers),
        format!("train {}", loss(view.train_loss)),
        format!("up {}", bytes(view.bytes_up.get())),
        format!("{} leases", view.leases),
    ];
    let mut shown = parts.iter().map(|part| Shown(part).to_string());
    let mut line: String = shown
        .next()
        .unwrap_or_default()
        .chars()
        .take(width)
        .collect();
    for part in shown {
        if line.chars().count() + SEPARATOR.chars().count() + part.chars().count() <= width {
            line.push_str(SEPARATOR);
            line.push_str(&part);
        }
    }
    line
}

/// The newest held-out loss, with the round of the weights that it belongs to: they may be a few
/// rounds old.
fn held_out(view: &RunView, digits: usize) -> String {
    or_dash(view.held_out_loss, |(round, loss)| {
        format!("{loss:.digits$} @{round}")
    })
}

/// Between two parts of the line beside the bar.
const SEPARATOR: &str = " · ";
/// Columns before the message: the time, the bar and the gaps.
const BEFORE_MESSAGE: usize = 8 + 1 + BAR + 1;
/// Characters of the bar.
const BAR: usize = 20;
/// The width that is assumed for a terminal that does not report its own.
const WIDTH_USUAL: usize = 80;

/// One line of a run that is followed. The field that may be long comes last.
#[derive(Serialize)]
#[serde(transparent)]
struct Change<'a>(&'a RunView);

impl Row for Change<'_> {
    const TITLES: &'static [&'static str] = &[
        "run",
        "round",
        "units",
        "workers",
        "leases",
        "tokens/s",
        "train loss",
        "held-out loss",
        "up",
        "down since start",
        "phase",
    ];
    const WIDTHS: &'static [usize] = &[8, 9, 7, 9, 6, 8, 10, 14, 9, 9];

    fn cells(&self) -> Vec<String> {
        let view = self.0;
        vec![
            view.run.to_string(),
            format!("{}/{}", view.round, view.rounds),
            format!("{}/{}", view.units_done, view.units),
            format!("{} (min {})", view.workers, view.workers_min),
            view.leases.to_string(),
            count(view.tokens_per_second),
            or_dash(view.train_loss, |loss| format!("{loss:.4}")),
            held_out(view, 4),
            bytes(view.bytes_up.get()),
            bytes(view.bytes_down.get()),
            phase(view),
        ]
    }
}

/// The bar, and the number of characters for the message beside it.
fn rounds_bar(printer: Printer, view: &RunView) -> (ProgressBar, usize) {
    let bar = ProgressBar::new(view.rounds * u64::from(view.units));
    let width = printer.width().unwrap_or(WIDTH_USUAL);
    bar.set_style(style(&format!("{{elapsed_precise}} {{bar:{BAR}}} {{msg}}")));
    bar.set_draw_target(target(printer));
    bar.enable_steady_tick(Duration::from_millis(500));
    (bar, width.saturating_sub(BEFORE_MESSAGE + 1))
}

/// A bar for bytes that are moved or read.
pub(crate) fn bytes_bar(printer: Printer, what: &str, total: u64) -> ProgressBar {
    let bar = ProgressBar::new(total);
    bar.set_style(style(
        "{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec}",
    ));
    bar.set_draw_target(target(printer));
    bar.set_message(Shown(what).to_string());
    bar
}

/// A bar that counts steps.
pub(crate) fn steps_bar(printer: Printer, what: &str, total: u64) -> ProgressBar {
    let bar = ProgressBar::new(total);
    bar.set_style(style("{msg} {bar:30} {pos}/{len} {eta}"));
    bar.set_draw_target(target(printer));
    bar.set_message(Shown(what).to_string());
    bar
}

fn target(printer: Printer) -> ProgressDrawTarget {
    if printer.is_live() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .expect("a constant template of this file")
        .progress_chars("=> ")
}

#[cfg(test)]
mod tests {
    use schemas::{Bytes, Refusal, Round, Tokens, UnixMillis};

    use super::*;

    fn view(phase: RunPhase) -> RunView {
        RunView {
            run: "demo".parse().expect("a name"),
            phase,
            halted: None,
            trouble: Some(Refusal::new(
                Code::TooFewWorkers,
                "1 of at least 2 workers are members",
            )),
            privacy: None,
            left_out: Vec::new(),
            holds: Vec::new(),
            round: Round(123),
            rounds: 4_000,
            units_done: 11,
            units: 128,
            workers: 130,
            workers_min: 128,
            leases: 117,
            tokens: vec![(schemas::contribution::Fate::Merged, Tokens(1))],
            tokens_per_second: 1_234_567.0,
            train_loss: Some(12.3456),
            held_out_loss: Some((Round(122), 12.3456)),
            bytes_up: Bytes(1023 << 30),
            bytes_down: Bytes(1023 << 40),
            snapshot: None,
            created_at: UnixMillis(0),
            completed_at: None,
        }
    }

    #[test]
    fn the_line_beside_the_bar_fits_the_terminal_and_says_why_a_run_waits() {
        for terminal in [40, 60, 80, 100, 130, 200] {
            let line = message(&view(RunPhase::Waiting), terminal - BEFORE_MESSAGE - 1);
            assert!(
                BEFORE_MESSAGE + line.chars().count() < terminal,
                "{terminal}: {line}"
            );
            assert!(
                line.starts_with("waiting: ")
                    && (terminal < 80 || line.contains("DL0610 too few workers")),
                "{line}"
            );
        }
        let whole = message(&view(RunPhase::Training), 200);
        assert!(
            whole.contains(" held-out 12.346 @122 ") && whole.ends_with("117 leases"),
            "{whole}"
        );
    }

    #[test]
    fn a_run_is_held_up_once_its_first_seconds_are_over() {
        let shown = |at: u64| trouble(&settled(view(RunPhase::Waiting), UnixMillis(at)));
        assert_eq!(shown(0), None);
        assert_eq!(shown(2_999), None);
        assert_eq!(shown(3_000), Some(Code::TooFewWorkers));
        assert_eq!(shown(3_600_000), Some(Code::TooFewWorkers));
    }

    #[test]
    fn lines_of_a_run_that_is_followed_line_up() {
        let mut table = StreamedTable::default();
        let lines: Vec<String> = [RunPhase::Waiting, RunPhase::Training, RunPhase::Finishing]
            .iter()
            .map(|phase| {
                let view = view(*phase);
                table.row(Change::TITLES, Change::WIDTHS, &Change(&view).cells())
            })
            .collect();
        let text = lines.join("\n");
        let titles = text.lines().next().expect("titles").to_owned();
        let columns: Vec<usize> = ["ROUND", "UNITS", "UP", "PHASE"]
            .iter()
            .filter_map(|title| titles.find(title))
            .collect();
        assert_eq!(columns.len(), 4, "{titles}");
        for line in text.lines().skip(1) {
            for column in &columns {
                assert!(
                    line[..*column].ends_with("  ") && !line[*column..].starts_with(' '),
                    "{text}"
                );
            }
        }
    }
}
