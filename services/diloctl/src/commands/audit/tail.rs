//! `audit tail`: events as they come, and the verdict on them.

use std::collections::VecDeque;

use diloco_audit::{Auditor, Checked, LedgerKeys, Replay, StreamSequence, TimelineRow};
use runtime::{Failure, shutdown};
use schemas::{Code, RunId};
use tokio::signal::unix::{SignalKind, signal};

use super::{Wanted, judge, open, say_if_slow};
use crate::context::Context;
use crate::table::StreamedTable;

/// Number of earlier events that `tail` prints first.
const TAIL_ROWS: usize = 10;

/// Follows the events until it is interrupted; then its status is the verdict on what it read.
/// Evidence against the ledger ends it at once. A reader that closes the pipe ends it with success.
/// When the trust bundle names another key of the ledger, the stream is read again with that: its
/// events would be taken for a stranger's.
pub(super) async fn tail(context: &Context, wanted: Wanted<'_>) -> Result<(), Failure> {
    let mut table = StreamedTable::default();
    // Made once, so that no signal is lost between two waits.
    let mut interrupt = signal(SignalKind::interrupt()).ok();
    let (mut seen, mut most) = (StreamSequence(0), TAIL_ROWS);
    loop {
        let domain = context.domain()?;
        let keys = LedgerKeys::of(&domain.layout().trust(), domain.trust());
        let mut replay = open(context).await?;
        let mut rows = tokio::select! {
            rows = earlier(context, &mut replay, wanted, (seen, most)) => rows?,
            () = shutdown::heard(&mut interrupt) => return Err(context.interrupted("SIGINT")),
        };
        replay.check_end();
        loop {
            for row in rows.drain(..) {
                context.printer.follow(&mut table, &row);
            }
            seen = replay.auditor().last();
            if keys.are_others() {
                most = usize::MAX;
                break;
            }
            if replay.auditor().evidence().is_some() {
                return judge(replay.auditor(), wanted.run);
            }
            let more = tokio::select! {
                biased;
                () = shutdown::heard(&mut interrupt) => {
                    return end_of_tail(context, replay, wanted, table).await;
                }
                more = replay.follow() => more,
            };
            let more = more.into_iter().map(|checked| checked.row);
            rows.extend(more.filter(|row| wanted.has(row)));
        }
    }
}

/// Reads what the stream has by now, and judges all that was read.
async fn end_of_tail(
    context: &Context,
    mut replay: Replay,
    wanted: Wanted<'_>,
    mut table: StreamedTable,
) -> Result<(), Failure> {
    let mut show = |checked: Checked| {
        if wanted.has(&checked.row) {
            context.printer.follow(&mut table, &checked.row);
        }
    };
    replay.end(context.timeout, &mut show).await?;
    judge_read(replay.auditor(), wanted.run)
}

/// The verdict on the events that were read, if there were any.
fn judge_read(auditor: &Auditor, run: Option<&RunId>) -> Result<(), Failure> {
    if auditor.last() == StreamSequence(0) {
        return Err(Failure::new(Code::NoVerdict, "there was no event to read"));
    }
    judge(auditor, run)
}

/// Reads the stream to its end, and returns the last wanted rows behind a position, at most so
/// many.
async fn earlier(
    context: &Context,
    replay: &mut Replay,
    wanted: Wanted<'_>,
    (behind, most): (StreamSequence, usize),
) -> Result<VecDeque<TimelineRow>, Failure> {
    let mut rows = VecDeque::new();
    let end = replay.span().last;
    if end == StreamSequence(0) {
        return Ok(rows);
    }
    let mut keep = |checked: Checked| {
        if wanted.has(&checked.row) && checked.row.stream_sequence > behind {
            rows.push_back(checked.row);
        }
        if rows.len() > most {
            rows.pop_front();
        }
    };
    let caught_up = replay.catch_up(end, context.timeout, &mut keep).await;
    say_if_slow(context, replay);
    caught_up?;
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_read_is_no_verdict() {
        let auditor = Auditor::new("demo", []);
        let failure = judge_read(&auditor, None).expect_err("there is no event");
        assert_eq!(failure.code(), Code::NoVerdict);
        assert_eq!(
            judge(&auditor, None).err(),
            None,
            "nothing speaks against it"
        );
    }
}
