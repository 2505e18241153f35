//! Answers of a run that is over. They say so, and still serve workers that asked before they heard
//! of the end.

use ledger::RunFold;
use schemas::Digest;
use schemas::event::Departure;
use schemas::lease::{ClaimOutcome, ClaimReply};

use crate::coordinator::run_closed;
use crate::effect::Answer;
use crate::input::{Peer, ReplyId, WorkerRequest};
use crate::run::members::{check_member, check_session, has_left, left};
use crate::run::results::counted_before;
use crate::turn::{Handled, Outcome, Turn};

/// Decides on a request to a run that is over.
pub(crate) fn request(
    run: &mut RunFold<'_>,
    turn: &mut Turn<'_>,
    peer: &Peer,
    request: &WorkerRequest,
    reply: ReplyId,
) -> Handled {
    match request {
        WorkerRequest::Claim(_) => {
            let outcome = ClaimOutcome::Complete;
            Ok(Outcome::Now(Answer::Claim(ClaimReply::of(outcome))))
        }
        WorkerRequest::Leave(request) => {
            if !has_left(run, peer, request.session) {
                check_session(check_member(run, peer)?, request.session)?;
                let event = left(&peer.worker, Departure::Left, &request.reason);
                turn.append(run, event);
            }
            Ok(Outcome::done())
        }
        WorkerRequest::Submit(submission) => {
            check_member(run, peer)?;
            let statement = Digest::of(&submission.bytes);
            counted_before(run, &submission.statement.lease, statement)
                .unwrap_or_else(|| Err(run_closed(run.name()).into()))
        }
        // They also sign what a worker still has from the time of the run.
        WorkerRequest::Keys(_) => turn.show_keys(reply),
        WorkerRequest::Join(_)
        | WorkerRequest::Renew(_)
        | WorkerRequest::Release(_)
        | WorkerRequest::Mask(_)
        | WorkerRequest::Put(_)
        | WorkerRequest::Get(_)
        | WorkerRequest::Stage(_) => Err(run_closed(run.name()).into()),
    }
}
