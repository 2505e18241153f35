//! Changes that operators make: new runs, holds on runs, and the end of this coordinator.

use std::collections::BTreeSet;

use ledger::{Run, UrlHolders};
use schemas::call::ControlVerb;
use schemas::control::{RunNewReply, Shutdown, ShutdownReply};
use schemas::event::LedgerEvent;
use schemas::hold::{AtStore, Hold, HoldReply, HoldRequest};
use schemas::limits::{LEASE_MAX, RUNS_MAX};
use schemas::public::CommandVerb;
use schemas::run::RunSpec;
use schemas::{Code, Digest, PublicKey, Refusal, RunId, UnixMillis, V};

use crate::coordinator::{Coordinator, draining, run_closed, run_unknown};
use crate::deadline::Timer;
use crate::effect::{Answer, Effect, Stop, Stopping};
use crate::input::ReplyId;
use crate::run::holds;
use crate::run::results::Screening;
use crate::tenant;
use crate::turn::Outcome;

/// Most new runs whose objects are being checked at once; each reads a few objects.
const CHECKS_MAX: usize = 16;
/// Most of these checks for one operator, so that the others get their turn.
const CHECKS_EACH_MAX: usize = 4;

/// The outcome of an operator's request. A refusal is answered and not recorded.
pub(crate) type ControlOutcome = Result<Outcome, Refusal>;

/// A run that an operator wants to create.
#[derive(Debug)]
pub(crate) struct NewRun {
    spec: Box<RunSpec>,
    operator: PublicKey,
}

/// A drain under way.
#[derive(Debug)]
pub(crate) struct Drain {
    /// The coordinator stops at this time at the latest.
    until: UnixMillis,
    operator: PublicKey,
}

impl Coordinator {
    pub(crate) fn run_new(
        &mut self,
        operator: PublicKey,
        spec: RunSpec,
        reply: ReplyId,
    ) -> ControlOutcome {
        if self.drain.is_some() {
            return Err(draining());
        }
        spec.validate()?;
        if let Some(privacy) = &spec.privacy {
            privacy::check_budget(privacy)?;
        }
        if let Some(answer) = self.existing(&spec)? {
            return Ok(Outcome::Now(answer));
        }
        self.check_new_run(&spec.run)?;
        if self.checks.len() >= CHECKS_MAX {
            return Err(Refusal::new(
                Code::NoAnswer,
                format!("{CHECKS_MAX} new runs are being checked; ask again"),
            ));
        }
        let own = self.checks.values();
        if own.filter(|check| check.operator == operator).count() >= CHECKS_EACH_MAX {
            let detail =
                format!("{CHECKS_EACH_MAX} new runs of {operator} are being checked; ask again");
            return Err(Refusal::new(Code::AskedTooMuch, detail));
        }
        self.no_collection()?;
        self.check_orders(&operator)?;
        let spec = Box::new(spec);
        self.checks.insert(
            reply,
            NewRun {
                spec: spec.clone(),
                operator,
            },
        );
        self.out.push(Effect::CheckRun { reply, spec });
        Ok(Outcome::Later)
    }

    /// The answer when the run exists already, and has these settings.
    fn existing(&self, spec: &RunSpec) -> Result<Option<Answer>, Refusal> {
        let digest = spec.to_object().1;
        match self.state.run(&spec.run) {
            Some(run) if run.spec_digest == digest => Ok(Some(run_new(digest, false))),
            Some(_) => Err(Refusal::new(Code::RunExists, format!("run {}", spec.run))),
            None if self.state.runs().count() >= RUNS_MAX => Err(Refusal::new(
                Code::SpecInvalid,
                format!("the coordinator has its most runs, {RUNS_MAX}"),
            )),
            None => Ok(None),
        }
    }

    pub(crate) fn run_checked(&mut self, reply: ReplyId, verdict: Result<(), Refusal>) {
        // A verdict that was not asked for changes nothing.
        if let Some(check) = self.checks.remove(&reply) {
            let created = self.create(check, verdict);
            self.reply(reply, created);
        }
    }

    /// Creates a run whose objects are all there, and takes it up.
    fn create(&mut self, check: NewRun, verdict: Result<(), Refusal>) -> Result<Answer, Refusal> {
        verdict?;
        if self.drain.is_some() {
            return Err(draining());
        }
        let NewRun { spec, operator } = check;
        // Another request may have created it while this one was being checked.
        if let Some(answer) = self.existing(&spec)? {
            return Ok(answer);
        }
        self.check_new_run(&spec.run)?;
        let (name, digest) = (spec.run.clone(), spec.to_object().1);
        self.spend_order(&operator);
        self.append(Some(&name), LedgerEvent::RunCreated { spec, operator });
        self.take_up(&name);
        Ok(run_new(digest, true))
    }

    /// Places a hold on a run, or lifts it. A request that changes nothing is answered and not
    /// written. A complete run has nothing to hold but the URLs that its workers got last.
    pub(crate) fn hold(
        &mut self,
        operator: PublicKey,
        request: HoldRequest,
        id: ReplyId,
    ) -> ControlOutcome {
        let (name, hold) = (request.run.clone(), request.hold);
        let run = self.state.run(&name).ok_or_else(|| run_unknown(&name))?;
        let is_complete = run.is_complete();
        if is_complete && hold != Hold::Urls {
            return Err(run_closed(&name));
        }
        if let Some(tenant) = name.tenant().filter(|tenant| self.state.has_ended(tenant)) {
            return Err(tenant::ended(&tenant));
        }
        if holds::changes(run, &request) {
            self.check_orders(&operator)?;
            self.spend_order(&operator);
        }
        let reply = match is_complete {
            true => self.hold_complete(operator, request),
            false => {
                let reply = self.enter(&name, |room, turn| room.hold(turn, operator, request));
                reply.expect("a run that is not complete has a room")
            }
        };
        if hold == Hold::Urls {
            // Also when nothing changed: the store may not have been told.
            let run = self.state.run(&name).expect("it was found");
            let shut_out = run.keys_shut_out();
            let concerned = self.urls_of(&name).into_iter().collect();
            let reply = HoldReply { shut_out, ..reply };
            return Ok(self.stop_urls(id, concerned, Stopping::Hold(reply)));
        }
        Ok(Outcome::Now(Answer::Hold(reply)))
    }

    /// Places a hold on a complete run or lifts it, where that changes the run.
    fn hold_complete(&mut self, operator: PublicKey, request: HoldRequest) -> HoldReply {
        let name = request.run.clone();
        let run = self.state.run(&name).expect("it was found");
        let changed = holds::changes(run, &request);
        if changed {
            self.append(Some(&name), holds::event(operator, request));
        }
        let run = self.state.run(&name).expect("it was found");
        holds::reply(run, changed)
    }

    /// The holders of the URLs of a run, while one of these may be alive.
    pub(crate) fn urls_of(&self, name: &RunId) -> Option<UrlHolders> {
        let run = self.state.run(name)?;
        let may = run.may_have_urls(self.now);
        may.then(|| UrlHolders::of_run(name.clone()))
    }

    /// Has the store know which URLs are stopped, and answers when that was tried with those that
    /// the order concerns. Where these have no URLs, that is the answer.
    pub(crate) fn stop_urls(
        &mut self,
        reply: ReplyId,
        concerned: BTreeSet<UrlHolders>,
        told: Stopping,
    ) -> Outcome {
        if concerned.is_empty() {
            return Outcome::Now(told.with(AtStore::NoUrls));
        }
        let (stop, told) = (self.stop_of(concerned), Box::new(told));
        self.out.push(Effect::StopUrls { reply, stop, told });
        Outcome::Later
    }

    /// The URLs that are stopped now, with those that an order concerns.
    pub(crate) fn stop_of(&self, concerned: BTreeSet<UrlHolders>) -> Stop {
        Stop {
            holders: self.state.stopped_urls(),
            concerned,
        }
    }

    /// Begins to drain, or moves an earlier drain's end forward. Nothing new is granted, and
    /// holders may finish what they hold. An order that changes nothing is answered like the first
    /// one, and neither written nor passed on.
    pub(crate) fn shut_down(&mut self, operator: PublicKey, request: &Shutdown) -> ControlOutcome {
        let until = self.now.after(request.drain.min(LEASE_MAX));
        let begins = self.drain.is_none();
        let changes = self.drain.as_ref().is_none_or(|drain| until < drain.until);
        if changes {
            // The first order is never refused: an operator can always end the coordinator.
            if !begins {
                self.check_orders(&operator)?;
            }
            self.record_order(operator.clone(), ControlVerb::Shutdown);
            self.drain = Some(Drain { until, operator });
            self.timers.set(until, Timer::Drain);
        }
        let leases = self.state.runs().map(|(_, run)| run.leases().count());
        let answer = ShutdownReply {
            v: V,
            leases: leases.sum::<usize>() as u32,
            workers: self.open_runs().map(|(_, run)| run.present()).sum(),
        };
        if begins {
            self.command_all(CommandVerb::Drain);
            let live = self.live.values_mut();
            let claims: Vec<ReplyId> = live.flat_map(|live| live.claims.drain()).collect();
            for claim in claims {
                self.reply(claim, Err(draining()));
            }
        }
        Ok(Outcome::Now(Answer::Shutdown(answer)))
    }

    /// Ends a drain when no lease is held and no work is under way, or when its time is over.
    pub(crate) fn end_drain(&mut self) {
        if let Some(drain) = &self.drain
            && (drain.until <= self.now || !self.is_busy())
        {
            let reason = format!("shutdown by {}", drain.operator);
            self.stop(reason);
        }
    }

    fn is_busy(&self) -> bool {
        let mut rooms = self.live.values();
        let mut runs = self.state.runs();
        !self.commits.is_empty()
            || self.collection.is_some()
            || !self.restores.is_empty()
            || rooms.any(|live| {
                let foundry = &live.foundry;
                // A comparison is the first step of the merge of a round that is all in.
                let works = foundry.task.is_some()
                    || foundry.saving.is_some()
                    || foundry.comparing.is_some();
                // Shares of a sealed set are waited for: without them it was trained in vain.
                works || live.agreement.ends_at.is_some()
            })
            || runs.any(|(_, run)| run.leases().next().is_some())
    }

    fn stop(&mut self, reason: String) {
        let stopped = LedgerEvent::CoordinatorStopped {
            reason: reason.clone(),
        };
        self.append(None, stopped);
        self.command_all(CommandVerb::Stop);
        let checks = std::mem::take(&mut self.checks).into_keys();
        let commits = std::mem::take(&mut self.commits).into_keys();
        let restores = std::mem::take(&mut self.restores).into_values();
        let collection = self.collection.take().into_iter();
        let reads = self.live.values().flat_map(|live| live.reads.values());
        let results = self.live.values().flat_map(|live| live.screenings.values());
        let waiting: Vec<ReplyId> = checks
            .chain(commits)
            .chain(restores.flat_map(|restore| restore.replies))
            .chain(collection.flat_map(|collection| collection.replies))
            .chain(reads.map(|read| read.reply))
            .chain(results.flat_map(Screening::replies))
            .collect();
        for reply in waiting {
            self.reply(reply, Err(draining()));
        }
        self.out.push(Effect::Stop { reason });
        self.stopped = true;
    }

    fn open_runs(&self) -> impl Iterator<Item = (&RunId, &Run)> {
        self.state.runs().filter(|(_, run)| !run.is_complete())
    }

    /// Tells every member that is present in an open run, each under its own name.
    fn command_all(&mut self, verb: CommandVerb) {
        let mut commands = Vec::new();
        for (name, run) in self.open_runs() {
            let present = run.members.iter().filter(|(_, member)| member.present);
            commands.extend(present.map(|(worker, member)| Effect::Command {
                account: member.account.clone(),
                run: name.clone(),
                worker: worker.clone(),
                session: member.session,
                verb,
            }));
        }
        self.out.append(&mut commands);
    }
}

fn run_new(spec_digest: Digest, created: bool) -> Answer {
    Answer::RunNew(RunNewReply {
        v: V,
        spec_digest,
        created,
    })
}
