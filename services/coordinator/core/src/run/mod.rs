//! A run's room: what the ledger holds about one run, what is known only while this process lives,
//! and every decision about it, one conversation a file.
//!
//! | file | decides or holds |
//! | --- | --- |
//! | `members`, `heartbeat` | the workers of the run, and their reports about themselves |
//! | `leases` | who gets which unit, and until when |
//! | `results` | which results count |
//! | `reach` | how far the inner steps of a unit can lead |
//! | `rounds`, `closing` | when weights are restored, merged and saved; when a round can be sealed |
//! | `masking` | what workers agree on and reveal in a run with secure aggregation |
//! | `objects`, `lists` | who may read and write which objects; the chunks that lists hold |
//! | `offers` | which units are on the queue |
//! | `holds` | what an operator keeps the run from doing |
//! | `restore` | the end of everything that is under way, when an operator leads the run back |
//! | `quarantine` | the end of everything that a worker has, when an operator shuts it out |
//! | `failures` | when units that fail halt the run |
//! | `spare`, `spending` | who may evaluate; how many events a worker may cause |
//! | `privacy`, `provenance` | what a private run asks of a contribution; what it was made from |
//! | `closed` | the answers of a run that is over |
//! | `view` | the views for operators and watchers |
//! | `live` | state that is lost with the process |

pub(crate) mod closed;
mod closing;
mod ending;
mod failures;
pub(crate) mod groups;
mod heartbeat;
pub(crate) mod holds;
mod leases;
mod lists;
pub(crate) mod live;
pub(crate) mod masking;
pub(crate) mod members;
pub(crate) mod objects;
mod offers;
mod privacy;
mod provenance;
mod quarantine;
mod reach;
mod restore;
pub(crate) mod results;
mod rounds;
mod spare;
pub(crate) mod spending;
pub(crate) mod view;

use ledger::RunFold;
use schemas::UnixMillis;
use schemas::event::LedgerEvent;
use schemas::foundry::Order;

use crate::deadline::{RunTimer, Timer};
use crate::effect::Effect;
use crate::input::{Peer, Recorded, ReplyId, WorkerRequest};
use crate::quota::Share;
use crate::run::live::LiveRun;
use crate::turn::{Handled, Turn};

/// One open run.
#[derive(Debug)]
pub(crate) struct RunRoom<'a> {
    /// The run as the ledger holds it; only [`RunRoom::append`] changes it.
    pub(crate) run: RunFold<'a>,
    /// State that is lost with the process.
    pub(crate) live: &'a mut LiveRun,
    /// The part of its tenant's quota that is left to it; none where no quota limits it.
    pub(crate) share: Option<Share>,
}

impl RunRoom<'_> {
    /// Gives an order to the run's foundry.
    pub(crate) fn order(&self, turn: &mut Turn<'_>, order: Order) {
        let run = self.run.name().clone();
        turn.out.push(Effect::Foundry { run, order });
    }

    /// Decides on a worker's request.
    pub(crate) fn request(
        &mut self,
        turn: &mut Turn<'_>,
        peer: &Peer,
        recorded: Recorded,
        request: WorkerRequest,
        reply: ReplyId,
    ) -> Handled {
        self.heard(turn.now, &peer.worker);
        match request {
            WorkerRequest::Join(request) => self.join(turn, peer, recorded, request),
            WorkerRequest::Leave(request) => self.leave(turn, peer, &request),
            WorkerRequest::Claim(request) => self.claim(turn, peer, &request, reply),
            WorkerRequest::Renew(request) => self.renew(turn, peer, &request),
            WorkerRequest::Release(request) => self.release(turn, peer, &request),
            WorkerRequest::Mask(request) => self.mask(turn, peer, request),
            WorkerRequest::Keys(_) => turn.show_keys(reply),
            WorkerRequest::Put(request) => self.put(turn, peer, request, reply),
            WorkerRequest::Get(request) => self.get(turn, peer, request, reply),
            WorkerRequest::Stage(request) => self.stage(turn, peer, &request),
            WorkerRequest::Submit(submission) => self.submit(turn, peer, submission, reply),
        }
    }

    /// Looks at the part of the run that a timer names, which may turn out not to be due.
    pub(crate) fn timer(&mut self, turn: &mut Turn<'_>, timer: RunTimer) {
        match timer {
            RunTimer::Lease(unit) => self.lease_due(turn, unit),
            RunTimer::Silence(worker) => self.silence_due(turn, &worker),
            RunTimer::Claim(worker) => self.claim_due(turn, &worker),
            RunTimer::Offer(unit) => self.offer_due(turn, unit),
            RunTimer::Weights => self.advance(turn),
            RunTimer::Status => self.status_due(turn),
        }
    }

    /// Writes an event of this run.
    pub(crate) fn append(&mut self, turn: &mut Turn<'_>, event: LedgerEvent) {
        turn.append(&mut self.run, event);
        self.mark_changed(turn);
    }

    pub(crate) fn wake(&self, turn: &mut Turn<'_>, at: UnixMillis, timer: RunTimer) {
        let run = self.run.name().clone();
        turn.timers.set(at, Timer::Room(run, timer));
    }
}
