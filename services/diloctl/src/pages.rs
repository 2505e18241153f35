//! Lists that are longer than one answer of the coordinator, put together from several.

use runtime::Failure;
use schemas::Code;
use schemas::control::{View, ViewReply};

use crate::context::unexpected;

/// Most answers to one question. Each has a thousand rows at least, so no run comes near; a
/// coordinator that goes on answering holds no command up.
const PAGES_MAX: u32 = 512;

/// The answers so far.
#[derive(Default)]
pub(crate) struct Pages {
    view: Option<View>,
    number: u32,
    /// Rows that were left out.
    rest: Option<u32>,
}

/// What comes after an answer.
pub(crate) enum Next {
    /// The question for so many rows that are missing.
    Rest(u32),
    /// The whole view.
    Whole(View),
}

impl Pages {
    /// Takes the next answer.
    ///
    /// # Errors
    /// It does not go on where the one before ended, or there are too many.
    pub(crate) fn take(&mut self, reply: ViewReply) -> Result<Next, Failure> {
        let rest = reply.left_out.map(|rest| rest.get());
        let endless = match (self.rest, rest) {
            (Some(before), Some(rest)) => rest >= before,
            _ => false,
        };
        self.number += 1;
        if endless || rest.is_some() && self.number >= PAGES_MAX {
            let rest = rest.unwrap_or_default();
            let text = format!(
                "the coordinator leaves {rest} rows out of a list, after {} answers",
                self.number
            );
            return Err(Failure::new(Code::MessageInvalid, text));
        }
        let view = match self.view.take() {
            None => reply.view,
            Some(before) => joined(before, reply.view)?,
        };
        Ok(match rest {
            None => Next::Whole(view),
            Some(rest) => {
                (self.view, self.rest) = (Some(view), Some(rest));
                Next::Rest(rest)
            }
        })
    }
}

/// A list and what was left out: older rounds and snapshots come first, others behind.
fn joined(shown: View, rest: View) -> Result<View, Failure> {
    fn behind<T>(mut one: Vec<T>, mut next: Vec<T>) -> Vec<T> {
        one.append(&mut next);
        one
    }
    Ok(match (shown, rest) {
        (View::Runs(shown), View::Runs(rest)) => View::Runs(behind(shown, rest)),
        (View::Workers(shown), View::Workers(rest)) => View::Workers(behind(shown, rest)),
        (View::Leases(shown), View::Leases(rest)) => View::Leases(behind(shown, rest)),
        (View::Rounds(shown), View::Rounds(rest)) => View::Rounds(behind(rest, shown)),
        (View::Snapshots(shown), View::Snapshots(rest)) => View::Snapshots(behind(rest, shown)),
        (_, other) => return Err(unexpected(&other)),
    })
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use schemas::lease::{LeaseRef, UnitId, UnitKind};
    use schemas::view::{LeaseView, SnapshotView};
    use schemas::{Epoch, ObjectRef, Round, Steps, UnitIndex, UnixMillis, V};

    use super::*;

    fn snapshots(rounds: &[u64]) -> View {
        let row = |round: &u64| SnapshotView {
            round: Round(*round),
            manifest: ObjectRef::of(b"manifest"),
            saved_at: UnixMillis(1),
            statement: None,
            pointers: Vec::new(),
            undone: false,
            given_up: None,
            quarantined: None,
        };
        View::Snapshots(rounds.iter().map(row).collect())
    }

    fn leases(epochs: &[u64]) -> View {
        let row = |epoch: &u64| LeaseView {
            run: "demo".parse().expect("a name"),
            lease: LeaseRef {
                unit: UnitId {
                    round: Round(0),
                    kind: UnitKind::Train,
                    index: UnitIndex(0),
                },
                epoch: Epoch(*epoch),
            },
            worker: format!("U{}", "A".repeat(55)).parse().expect("a key"),
            expires_at: UnixMillis(1),
            steps_done: Steps(0),
        };
        View::Leases(epochs.iter().map(row).collect())
    }

    fn reply(view: View, left_out: u32) -> ViewReply {
        ViewReply {
            v: V,
            view,
            left_out: NonZeroU32::new(left_out),
        }
    }

    /// What comes of these answers.
    fn whole(replies: impl IntoIterator<Item = ViewReply>) -> Result<Option<View>, Failure> {
        let mut pages = Pages::default();
        for reply in replies {
            if let Next::Whole(view) = pages.take(reply)? {
                return Ok(Some(view));
            }
        }
        Ok(None)
    }

    #[test]
    fn a_list_in_several_answers_is_whole_and_in_its_order() {
        let one = whole([reply(snapshots(&[1, 2]), 0)]).expect("they go on");
        assert_eq!(one, Some(snapshots(&[1, 2])));
        let pages = [
            reply(snapshots(&[5, 6]), 4),
            reply(snapshots(&[3, 4]), 2),
            reply(snapshots(&[1, 2]), 0),
        ];
        let all = whole(pages).expect("they go on");
        assert_eq!(all, Some(snapshots(&[1, 2, 3, 4, 5, 6])));
        let pages = [reply(leases(&[1, 2]), 1), reply(leases(&[3]), 0)];
        let all = whole(pages).expect("they go on");
        assert_eq!(all, Some(leases(&[1, 2, 3])));
        let begun = whole([reply(leases(&[1]), 1)]).expect("it goes on");
        assert_eq!(begun, None);
    }

    #[test]
    fn answers_that_do_not_go_on_are_refused() {
        let same = [reply(leases(&[1]), 2), reply(leases(&[]), 2)];
        let failure = whole(same).expect_err("nothing came");
        assert_eq!(failure.code(), Code::MessageInvalid);
        let other = [reply(leases(&[1]), 1), reply(snapshots(&[1]), 0)];
        whole(other).expect_err("another list");
        let number = |page| reply(leases(&[1]), PAGES_MAX - page);
        let pages = (0..PAGES_MAX - 1).map(number);
        assert!(whole(pages.clone()).expect("they go on").is_none());
        let failure = whole(pages.chain([number(PAGES_MAX - 1)])).expect_err("there is no end");
        assert!(failure.to_string().contains("512 answers"), "{failure}");
    }
}
