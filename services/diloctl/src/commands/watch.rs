//! Following a run: the status messages that the coordinator publishes, with a look of our own when they stay away.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use runtime::{Failure, Subscription};
use schemas::public::Status;
use schemas::subject::status_subject;
use schemas::view::{RunPhase, RunView};
use schemas::{Code, Message as _, RunId};
use tokio::time::{Instant, sleep};

use crate::commands::run::{not_halted, phase};
use crate::context::{Context, Operator};
use crate::output::Printer;
use crate::table::{bytes, count};

/// Longest silence before the run is asked for: statuses are lossy.
const SILENCE_MAX: Duration = Duration::from_secs(7);
/// How long a broker or coordinator that is started again may be away.
const ABSENCE_MAX: Duration = Duration::from_secs(120);
/// Between two questions to somebody who is away.
const PAUSE: Duration = Duration::from_secs(1);

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
        let subscription =
            operator.bus.subscribe(&status_subject(run)).await.map_err(|error| Failure::from(error.into_refusal()))?;
        Ok(Self { operator, run: run.clone(), subscription, fresh: true })
    }

    /// The next view; the first one at once.
    async fn next(&mut self) -> Result<RunView, Failure> {
        if !std::mem::take(&mut self.fresh) {
            let waited = tokio::time::timeout(SILENCE_MAX, self.subscription.next()).await;
            if let Ok(message) = waited
                && let Some(message) = message.map_err(|error| Failure::from(error.into_refusal()))?
                && let Ok(status) = Status::decode(&message.payload)
            {
                return Ok(status.view);
            }
        }
        self.look().await
    }

    /// Asks, for a while also somebody who is away.
    async fn look(&self) -> Result<RunView, Failure> {
        let deadline = Instant::now() + ABSENCE_MAX;
        loop {
            match self.operator.run(&self.run).await {
                Err(failure) if is_absence(failure.code()) && Instant::now() < deadline => sleep(PAUSE).await,
                outcome => return Ok(outcome?.view),
            }
        }
    }
}

/// Whether the coordinator may answer later.
const fn is_absence(code: Code) -> bool {
    matches!(code, Code::NoAnswer | Code::BusUnreachable | Code::Draining)
}

/// Follows a run until `reached`, and gives the view that reached it; or why it never will.
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
    let mut view = statuses.next().await?;
    let bar = rounds_bar(context.printer, &view);
    let mut shown: Option<RunView> = None;
    loop {
        bar.set_position(units(&view));
        bar.set_message(message(&view));
        let troubled = trouble(&view) != shown.as_ref().and_then(trouble);
        if let Some(why) = view.trouble.as_ref().filter(|_| troubled && !context.printer.is_live()) {
            context.printer.talk(&format!("run {} is held up: {why}", view.run));
        }
        if !context.printer.is_live() && shown.as_ref().is_none_or(|shown| differs(shown, &view)) {
            context.printer.follow(&view, shown.is_none());
            shown = Some(view.clone());
        }
        if matches!(view.phase, RunPhase::Complete | RunPhase::Halted) {
            bar.finish_and_clear();
            if context.printer.is_live() {
                context.printer.rows(std::slice::from_ref(&view));
            }
            return not_halted(&view);
        }
        view = statuses.next().await?;
    }
}

fn trouble(view: &RunView) -> Option<Code> {
    view.trouble.as_ref().map(|why| why.code)
}

/// Whether a line is worth printing; speeds change all the time.
fn differs(shown: &RunView, view: &RunView) -> bool {
    let marks =
        |view: &RunView| (view.phase, trouble(view), view.round, view.units_done, view.workers, view.held_out_loss);
    marks(shown) != marks(view)
}

fn units(view: &RunView) -> u64 {
    view.round.get() * u64::from(view.units) + u64::from(view.units_done)
}

fn message(view: &RunView) -> String {
    let loss = |loss: Option<f64>| loss.map_or_else(|| "-".to_owned(), |loss| format!("{loss:.3}"));
    format!(
        "{} · round {}/{} · units {}/{} · {} workers, {} leases · {} tokens/s · train {} · held-out {} · up {} · down {}",
        phase(view),
        view.round,
        view.rounds,
        view.units_done,
        view.units,
        view.workers,
        view.leases,
        count(view.tokens_per_second),
        loss(view.train_loss),
        loss(view.held_out_loss.map(|(_, loss)| loss)),
        bytes(view.bytes_up.get()),
        bytes(view.bytes_down.get()),
    )
}

fn rounds_bar(printer: Printer, view: &RunView) -> ProgressBar {
    let bar = ProgressBar::new(view.rounds * u64::from(view.units));
    bar.set_style(style("{elapsed_precise} {bar:30} {msg}"));
    bar.set_draw_target(target(printer));
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}

/// A bar for bytes that are moved or read.
pub(crate) fn bytes_bar(printer: Printer, what: &str, total: u64) -> ProgressBar {
    let bar = ProgressBar::new(total);
    bar.set_style(style("{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec}"));
    bar.set_draw_target(target(printer));
    bar.set_message(what.to_owned());
    bar
}

fn target(printer: Printer) -> ProgressDrawTarget {
    if printer.is_live() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("a constant template of this file").progress_chars("=> ")
}
