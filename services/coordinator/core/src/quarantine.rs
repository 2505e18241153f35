//! Quarantine: an operator shuts a worker out of one run, or lets it in again.

use std::collections::BTreeSet;

use ledger::{Run, UrlHolders};
use schemas::event::LedgerEvent;
use schemas::hold::AtStore;
use schemas::lease::LeaseRef;
use schemas::member::Session;
use schemas::public::CommandVerb;
use schemas::quarantine::{
    OTHER_KEYS_NAMED_MAX, QUARANTINED_MAX, QuarantineReply, QuarantineRequest, WITHDRAWN_NAMED_MAX,
};
use schemas::text::Time;
use schemas::{Code, PublicKey, Refusal, V, WorkerId};

use crate::control::ControlOutcome;
use crate::coordinator::{Coordinator, run_unknown};
use crate::effect::{Effect, Purging, Stopping, Uploads};
use crate::input::{Peer, ReplyId};
use crate::turn::Outcome;

/// The parts of a worker's membership that an order ends.
#[derive(Debug, Default)]
pub(crate) struct Ended {
    pub(crate) lease: Option<LeaseRef>,
    pub(crate) withdrawn: Vec<LeaseRef>,
}

impl Ended {
    /// Everything that ends when this worker is shut out now.
    pub(crate) fn of(run: &Run, worker: &WorkerId) -> Self {
        Self {
            lease: run.members.get(worker).and_then(|member| member.lease),
            withdrawn: run.withdrawable(worker),
        }
    }

    /// The event that ends it.
    pub(crate) fn event(&self, operator: PublicKey, request: &QuarantineRequest) -> LedgerEvent {
        LedgerEvent::WorkerQuarantined {
            worker: request.worker.clone(),
            operator,
            reason: request.reason.clone(),
            lease: self.lease,
            withdrawn: self.withdrawn.len() as u32,
        }
    }
}

impl Coordinator {
    /// The refusal of everything that a worker in quarantine asks for. The reason is not in it: it
    /// is for operators, and this may be the attacker.
    pub(crate) fn shut_out(&self, peer: &Peer) -> Option<Refusal> {
        let run = self.state.run(&peer.run)?;
        let record = run.quarantined.get(&peer.worker)?;
        Some(refusal(&peer.worker, Time(record.since)))
    }

    /// Tells this process of a worker in quarantine to end, unless the worker was told within the
    /// time between two heartbeats: each command is signed, and a worker that does not obey may
    /// send without end. Returns false if it was not told.
    pub(crate) fn send_away_again(&mut self, peer: &Peer, session: Session) -> bool {
        let of = (peer.run.clone(), peer.worker.clone());
        let told = self.sent_away.get(&of);
        let due = told.is_none_or(|told| told.after(self.settings.heartbeat) <= self.now);
        if due {
            self.send_away(peer, session);
        }
        due
    }

    /// Tells this process of a worker in quarantine to end.
    fn send_away(&mut self, peer: &Peer, session: Session) {
        let of = (peer.run.clone(), peer.worker.clone());
        self.sent_away.insert(of, self.now);
        self.out.push(Effect::Command {
            account: peer.account.clone(),
            run: peer.run.clone(),
            worker: peer.worker.clone(),
            session,
            verb: CommandVerb::Quarantine,
        });
    }

    /// Shuts a worker out of a run, or lets it in again. An order that changes nothing is answered
    /// and not written. Each has the store know which URLs are stopped, since it may not have been
    /// told, and one to shut out deletes what is left of the worker's uploads each time: a transfer
    /// that began before goes on, and a store that cannot tell whose a URL is takes it until it
    /// ends.
    pub(crate) fn quarantine(
        &mut self,
        operator: PublicKey,
        request: QuarantineRequest,
        reply: ReplyId,
    ) -> ControlOutcome {
        let name = request.run.clone();
        let run = self.state.run(&name).ok_or_else(|| run_unknown(&name))?;
        let changed = run.is_quarantined(&request.worker) != request.quarantined;
        if changed && request.quarantined && run.quarantined.len() >= QUARANTINED_MAX {
            let detail = format!("run {name} has {QUARANTINED_MAX} workers in quarantine");
            return Err(Refusal::new(Code::QuarantineFull, detail));
        }
        let mut ended = Ended::default();
        if changed {
            self.check_orders(&operator)?;
            self.spend_order(&operator);
            if request.quarantined {
                ended = self.shut(operator, &request);
            } else {
                let readmitted = LedgerEvent::WorkerReadmitted {
                    worker: request.worker.clone(),
                    operator,
                    reason: request.reason.clone(),
                };
                self.append(Some(&name), readmitted);
                self.sent_away
                    .remove(&(name.clone(), request.worker.clone()));
            }
        }
        let run = self.state.run(&name).expect("runs are kept");
        let mut told = told(run, &request.worker, changed, ended);
        let concerned = match run.may_have_urls(self.now) {
            true => concerned(run, &request),
            false => BTreeSet::new(),
        };
        if !request.quarantined {
            return Ok(self.stop_urls(reply, concerned, Stopping::Readmit(Box::new(told))));
        }
        told.store = concerned.is_empty().then_some(AtStore::NoUrls);
        let stop = (!concerned.is_empty()).then(|| self.stop_of(concerned));
        self.out.push(Effect::Purge {
            reply,
            run: name,
            uploads: Uploads::Of(request.worker),
            stop,
            told: Box::new(Purging::Quarantine(told)),
        });
        Ok(Outcome::Later)
    }

    /// Ends everything that the worker has in the run. A run that is over has no room, and there is
    /// nothing to end.
    fn shut(&mut self, operator: PublicKey, request: &QuarantineRequest) -> Ended {
        let (name, worker) = (&request.run, &request.worker);
        let run = self.state.run(name).expect("it was looked up");
        let member = run.members.get(worker);
        let joined = member.map(|member| (member.account.clone(), member.session));
        let since = Time(self.now);
        let refusal = refusal(worker, since);
        let in_room = self.enter(name, |room, turn| {
            room.quarantine(turn, operator.clone(), request, &refusal)
        });
        let ended = in_room.unwrap_or_else(|| {
            let ended = Ended::default();
            self.append(Some(name), ended.event(operator, request));
            ended
        });
        // Its process may run though it is no member at this moment.
        if let Some((account, session)) = joined {
            let peer = Peer {
                account,
                run: name.clone(),
                worker: worker.clone(),
            };
            self.send_away(&peer, session);
        }
        ended
    }
}

fn refusal(worker: &WorkerId, since: Time) -> Refusal {
    let detail = format!("{worker} was shut out by an operator at {since}");
    Refusal::new(Code::WorkerQuarantined, detail)
}

/// The holders of the URLs that an order is about, as far as they have any. The store is to refuse
/// those of all keys that are shut out with this one; let in again is this one alone, and another
/// may keep it out still.
fn concerned(run: &Run, request: &QuarantineRequest) -> BTreeSet<UrlHolders> {
    let keys_max = match request.quarantined {
        true => OTHER_KEYS_NAMED_MAX,
        false => 1,
    };
    let keys = run.url_keys(&request.worker).take(keys_max);
    let of = |key: &WorkerId| UrlHolders::of_worker(request.run.clone(), key.clone());
    keys.map(of).collect()
}

fn told(run: &Run, worker: &WorkerId, changed: bool, ended: Ended) -> QuarantineReply {
    let Ended {
        lease,
        mut withdrawn,
    } = ended;
    let withdrawn_more = withdrawn.len().saturating_sub(WITHDRAWN_NAMED_MAX) as u32;
    withdrawn.truncate(WITHDRAWN_NAMED_MAX);
    let record = run.quarantined.get(worker);
    let member = run.members.get(worker);
    let merged = run.merged_into(worker, run.rounds_closed());
    let own = std::iter::once(worker);
    let clean = merged.and_then(|_| run.last_snapshot_without(own));
    QuarantineReply {
        v: V,
        changed,
        since: record.map(|record| record.since),
        joined: member.is_some(),
        lease,
        withdrawn,
        withdrawn_more,
        uploads: None,
        sealed: run.sealed_with(worker).into_iter().collect(),
        merged,
        clean: clean.map(|snapshot| run.snapshot_view(snapshot)),
        other_keys: run
            .other_keys_shut_out(worker)
            .take(OTHER_KEYS_NAMED_MAX)
            .cloned()
            .collect(),
        store: None,
    }
}
