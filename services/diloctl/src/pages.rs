//! Lists that are longer than one answer of the coordinator, put together from several.

use runtime::Failure;
use schemas::Code;
use schemas::control::{Query, View, ViewReply, ViewRequest};

use crate::context::unexpected;

/// Most answers to one question. Each has hundreds of rows, so no list comes near; a coordinator
/// that goes on answering holds no command up.
const PAGES_MAX: u32 = 512;

/// Asks for a view, again for what an answer leaves out.
///
/// # Errors
/// Those of `ask`; or an answer does not go on where the one before ended.
pub(crate) async fn whole(
    query: Query,
    ask: impl AsyncFn(ViewRequest) -> Result<ViewReply, Failure>,
) -> Result<View, Failure> {
    let mut request = ViewRequest::of(query);
    let mut pages = Pages::default();
    loop {
        match pages.take(ask(request.clone()).await?)? {
            Next::Rest(rest) => request.rest = Some(rest),
            Next::Whole(view) => return Ok(view),
        }
    }
}

/// The answers so far.
#[derive(Default)]
struct Pages {
    view: Option<View>,
    number: u32,
    /// Rows that were left out.
    rest: Option<u32>,
}

/// What comes after an answer.
enum Next {
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
    fn take(&mut self, reply: ViewReply) -> Result<Next, Failure> {
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
    fn put_together(replies: impl IntoIterator<Item = ViewReply>) -> Result<Option<View>, Failure> {
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
        let one = put_together([reply(snapshots(&[1, 2]), 0)]).expect("they go on");
        assert_eq!(one, Some(snapshots(&[1, 2])));
        let pages = [
            reply(snapshots(&[5, 6]), 4),
            reply(snapshots(&[3, 4]), 2),
            reply(snapshots(&[1, 2]), 0),
        ];
        let all = put_together(pages).expect("they go on");
        assert_eq!(all, Some(snapshots(&[1, 2, 3, 4, 5, 6])));
        let pages = [reply(leases(&[1, 2]), 1), reply(leases(&[3]), 0)];
        let all = put_together(pages).expect("they go on");
        assert_eq!(all, Some(leases(&[1, 2, 3])));
        let begun = put_together([reply(leases(&[1]), 1)]).expect("it goes on");
        assert_eq!(begun, None);
    }

    #[tokio::test]
    async fn each_question_is_for_what_is_missing() {
        let asked = std::cell::RefCell::new(Vec::new());
        let view = whole(Query::Runs, async |request| {
            asked.borrow_mut().push(request.rest);
            Ok(match request.rest {
                None => reply(snapshots(&[4, 5]), 3),
                Some(3) => reply(snapshots(&[2, 3]), 1),
                _ => reply(snapshots(&[1]), 0),
            })
        });
        let view = view.await.expect("they go on");
        assert_eq!(view, snapshots(&[1, 2, 3, 4, 5]));
        assert_eq!(asked.into_inner(), [None, Some(3), Some(1)]);
    }

    #[test]
    fn answers_that_do_not_go_on_are_refused() {
        let same = [reply(leases(&[1]), 2), reply(leases(&[]), 2)];
        let failure = put_together(same).expect_err("nothing came");
        assert_eq!(failure.code(), Code::MessageInvalid);
        let other = [reply(leases(&[1]), 1), reply(snapshots(&[1]), 0)];
        put_together(other).expect_err("another list");
        let number = |page| reply(leases(&[1]), PAGES_MAX - page);
        let pages = (0..PAGES_MAX - 1).map(number);
        assert!(put_together(pages.clone()).expect("they go on").is_none());
        let failure =
            put_together(pages.chain([number(PAGES_MAX - 1)])).expect_err("there is no end");
        assert!(failure.to_string().contains("512 answers"), "{failure}");
    }
}
