//! What operators change: new runs, and the end of this coordinator.

use schemas::control::{RunNewReply, Shutdown, ShutdownReply};
use schemas::event::LedgerEvent;
use schemas::limits::{EVENT_BYTES_MAX, LEASE_MAX, RUNS_MAX};
use schemas::public::CommandVerb;
use schemas::run::RunSpec;
use schemas::{Code, Digest, Message, PublicKey, Refusal, UnixMillis, V};

use crate::coordinator::{Coordinator, draining};
use crate::deadline::Timer;
use crate::effect::{Answer, Effect};
use crate::input::ReplyId;
use crate::submit::Screening;

/// Most new runs whose objects are being checked at once; each reads a few objects.
const CHECKS_MAX: usize = 16;
/// Most of them of one operator, so that none keeps the others from theirs.
const CHECKS_EACH_MAX: usize = 4;
/// Room that an event needs beside the settings it holds.
const EVENT_FRAME_BYTES: usize = 512;

/// A run that an operator wants.
#[derive(Debug)]
pub(crate) struct Check {
    spec: Box<RunSpec>,
    operator: PublicKey,
}

/// The way to the end.
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
    ) -> Result<(), Refusal> {
        if self.drain.is_some() {
            return Err(draining());
        }
        spec.validate()?;
        let bytes = spec.encode().len();
        if bytes + EVENT_FRAME_BYTES > EVENT_BYTES_MAX {
            let most = EVENT_BYTES_MAX - EVENT_FRAME_BYTES;
            let detail = format!(
                "the settings have {bytes} bytes, at most {most} fit into an event: use larger chunks"
            );
            return Err(Refusal::new(Code::SpecInvalid, detail));
        }
        if self.answer_existing(&spec, reply)? {
            return Ok(());
        }
        if self.checks.len() >= CHECKS_MAX {
            return Err(Refusal::new(
                Code::NoAnswer,
                format!("{CHECKS_MAX} new runs are being checked; ask again"),
            ));
        }
        if self
            .checks
            .values()
            .filter(|check| check.operator == operator)
            .count()
            >= CHECKS_EACH_MAX
        {
            let detail =
                format!("{CHECKS_EACH_MAX} new runs of {operator} are being checked; ask again");
            return Err(Refusal::new(Code::AskedTooMuch, detail));
        }
        self.check_orders(&operator)?;
        let spec = Box::new(spec);
        self.checks.insert(
            reply,
            Check {
                spec: spec.clone(),
                operator,
            },
        );
        self.out.push(Effect::CheckRun { reply, spec });
        Ok(())
    }

    /// Whether the run exists already, and then the answer is given.
    fn answer_existing(&mut self, spec: &RunSpec, reply: ReplyId) -> Result<bool, Refusal> {
        let digest = spec.to_object().1;
        match self.state.run(&spec.run) {
            Some(run) if run.spec_digest == digest => {
                self.answer_run(reply, digest, false);
                Ok(true)
            }
            Some(_) => Err(Refusal::new(Code::RunExists, format!("run {}", spec.run))),
            None if self.state.runs().count() >= RUNS_MAX => Err(Refusal::new(
                Code::SpecInvalid,
                format!("the coordinator has its most runs, {RUNS_MAX}"),
            )),
            None => Ok(false),
        }
    }

    fn answer_run(&mut self, reply: ReplyId, spec_digest: Digest, created: bool) {
        self.reply(
            reply,
            Ok(Answer::RunNew(RunNewReply {
                v: V,
                spec_digest,
                created,
            })),
        );
    }

    pub(crate) fn run_checked(&mut self, reply: ReplyId, verdict: Result<(), Refusal>) {
        let Some(check) = self.checks.remove(&reply) else {
            return;
        };
        let allowed = verdict.and_then(|()| {
            if self.drain.is_some() {
                Err(draining())
            } else {
                Ok(())
            }
        });
        // Another request may have created it while this one was being checked.
        match allowed.and_then(|()| self.answer_existing(&check.spec, reply)) {
            Ok(true) => {}
            Ok(false) => {
                let Check { spec, operator } = check;
                let (name, digest) = (spec.run.clone(), spec.to_object().1);
                self.spend_order(&operator);
                self.append(Some(&name), LedgerEvent::RunCreated { spec, operator });
                self.answer_run(reply, digest, true);
                self.take_up(&name);
            }
            Err(refusal) => self.reply(reply, Err(refusal)),
        }
    }

    /// Begins to drain, or to end sooner than was asked before. Nothing new is granted; holders may
    /// finish what they hold. An order that changes nothing is answered like the first, and neither
    /// written nor passed on.
    pub(crate) fn shut_down(
        &mut self,
        operator: PublicKey,
        request: &Shutdown,
        reply: ReplyId,
    ) -> Result<(), Refusal> {
        let until = self.now.after(request.drain.min(LEASE_MAX));
        let begins = self.drain.is_none();
        let changes = self.drain.as_ref().is_none_or(|drain| until < drain.until);
        if changes {
            // The first is never refused: whatever an operator did before, it can end the
            // coordinator.
            if !begins {
                self.check_orders(&operator)?;
            }
            self.record_order(operator.clone(), "shutdown");
            self.drain = Some(Drain { until, operator });
            self.timers.set(until, Timer::Drain);
        }
        let leases = self
            .state
            .runs()
            .map(|(_, run)| run.leases().count())
            .sum::<usize>();
        let workers = self
            .live
            .keys()
            .filter_map(|name| self.state.run(name))
            .map(|run| run.present())
            .sum();
        self.reply(
            reply,
            Ok(Answer::Shutdown(ShutdownReply {
                v: V,
                leases: leases as u32,
                workers,
            })),
        );
        if begins {
            self.command_all(CommandVerb::Drain);
            let claims: Vec<ReplyId> = self
                .live
                .values_mut()
                .flat_map(|live| live.claims.drain())
                .collect();
            for claim in claims {
                self.reply(claim, Err(draining()));
            }
        }
        Ok(())
    }

    /// Ends a drain when nobody holds a lease and nothing is in the making, or its time is over.
    pub(crate) fn end_drain(&mut self) {
        let Some(drain) = &self.drain else { return };
        let executing = self
            .live
            .values()
            .any(|live| live.executor.busy || live.executor.saving);
        let busy = executing || !self.commits.is_empty();
        let held = self
            .state
            .runs()
            .any(|(_, run)| run.leases().next().is_some());
        if (busy || held) && self.now < drain.until {
            return;
        }
        let reason = format!("shutdown by {}", drain.operator);
        self.append(
            None,
            LedgerEvent::CoordinatorStopped {
                reason: reason.clone(),
            },
        );
        self.command_all(CommandVerb::Stop);
        let checks = std::mem::take(&mut self.checks)
            .into_keys()
            .chain(std::mem::take(&mut self.commits).into_keys());
        let reads: Vec<ReplyId> = self
            .live
            .values()
            .flat_map(|live| live.reads.values())
            .map(|read| read.reply)
            .collect();
        let results = std::mem::take(&mut self.screenings)
            .into_values()
            .flat_map(Screening::into_replies);
        for reply in checks.chain(reads).chain(results) {
            self.reply(reply, Err(draining()));
        }
        self.out.push(Effect::Stop { reason });
        self.stopped = true;
    }

    /// Tells every member that is present in an open run, each under its own name.
    fn command_all(&mut self, verb: CommandVerb) {
        for (name, run) in self
            .live
            .keys()
            .filter_map(|name| Some((name, self.state.run(name)?)))
        {
            let present = run.members.iter().filter(|(_, member)| member.present);
            self.out
                .extend(present.map(|(worker, member)| Effect::Command {
                    account: member.account.clone(),
                    run: name.clone(),
                    worker: worker.clone(),
                    verb,
                }));
        }
    }
}
