//! The work under a lease: fetch, train or evaluate, upload, hand in.

use std::sync::Arc;

use schemas::contribution::{Contribution, Evaluation, Fate, Outcome, Statement, SubmitReply};
use schemas::event::WorkerEvent;
use schemas::lease::Work;
use schemas::limits::LOSS_MAX;
use schemas::provenance::{HandedIn, MadeFrom, Provenance};
use schemas::run::Privacy;
use schemas::{Chunks, Code, Digest, Message as _, Millis, Refusal, Steps, UnixMillis, V};

use crate::effect::{Effect, Exit, HandIn, WorkId};
use crate::held::WorkStep;
use crate::input::{Agreed, Answer, Trained};
use crate::result::ResultEnd;
use crate::verdict::{Verdict, verdict};
use crate::worker::Worker;

impl Worker {
    pub(crate) fn fetched(
        &mut self,
        now: UnixMillis,
        work: WorkId,
        outcome: Result<Option<Box<Agreed>>, Refusal>,
        effects: &mut Vec<Effect>,
    ) {
        let agreed = match outcome {
            Ok(agreed) => agreed,
            Err(refusal) => return self.step_failed(now, refusal, effects),
        };
        let is_masked = self.member().spec.secure_aggregation.is_some();
        let held = self.present();
        let trains = matches!(held.manifest.work, Work::Train { .. });
        if agreed.is_some() != (is_masked && trains) {
            let detail = "a run with masks trains for a cohort, and no other work has one";
            return self.step_failed(now, Refusal::new(Code::CohortOther, detail), effects);
        }
        // The coordinator's word for the cohort is in the record before a contribution leaves this
        // worker: otherwise a coordinator that has the worker's events refused would show it any
        // cohort, and nobody would know.
        if let Some(Agreed { cohort, seal }) = agreed.map(|agreed| *agreed) {
            (held.cohort, held.unrecorded) = (Some(cohort), true);
            let lease = held.lease();
            let event = WorkerEvent::Masked {
                lease,
                cohort,
                seal,
            };
            effects.push(Effect::Record { work, event });
        }
        held.step = WorkStep::Training;
        match held.manifest.work {
            Work::Train { .. } => {
                self.unsaved = Some(work);
                effects.push(Effect::Train { work });
            }
            Work::Evaluate { .. } => effects.push(Effect::Evaluate { work }),
        }
    }

    pub(crate) fn progressed(&mut self, steps_done: Steps) {
        let held = self.present();
        held.steps_done = held.steps_done.max(steps_done);
    }

    pub(crate) fn trained(
        &mut self,
        now: UnixMillis,
        work: WorkId,
        outcome: Result<Trained, Refusal>,
        effects: &mut Vec<Effect>,
    ) {
        let trained = match outcome {
            Ok(trained) if (0.0..=LOSS_MAX).contains(&trained.loss) => trained,
            Ok(Trained { loss, .. }) => {
                let refusal =
                    Refusal::new(Code::TrainingFailed, format!("the mean loss is {loss}"));
                return self.training_failed(now, refusal, effects);
            }
            Err(refusal) => return self.training_failed(now, refusal, effects),
        };
        let held = self.present();
        held.steps_done = trained.steps;
        held.step = WorkStep::Uploading(trained);
        if held.unrecorded {
            let detail = "nothing is uploaded before the worker's event `masked` is recorded";
            let (refusal, pause) = (
                Refusal::new(Code::EventLater, detail),
                now.until(held.ends_at),
            );
            effects.push(Effect::Waiting { refusal, pause });
        } else {
            effects.push(Effect::Upload { work });
        }
    }

    /// The event about the cohort is recorded, so the contribution may leave this worker; or it
    /// will not be, and nothing leaves it.
    pub(crate) fn recorded(
        &mut self,
        now: UnixMillis,
        work: WorkId,
        outcome: Result<(), Refusal>,
        effects: &mut Vec<Effect>,
    ) {
        if let Err(refusal) = outcome {
            return self.step_failed(now, refusal, effects);
        }
        let held = self.present();
        held.unrecorded = false;
        if matches!(held.step, WorkStep::Uploading(_)) {
            effects.push(Effect::Upload { work });
        }
    }

    pub(crate) fn evaluated(
        &mut self,
        now: UnixMillis,
        outcome: Result<Evaluation, Refusal>,
        effects: &mut Vec<Effect>,
    ) {
        match outcome {
            Ok(evaluation)
                if (0.0..=LOSS_MAX * evaluation.tokens.get() as f64)
                    .contains(&evaluation.loss_sum) =>
            {
                self.submit(now, Outcome::Evaluation(evaluation))
            }
            Ok(Evaluation { loss_sum, .. }) => {
                let refusal = Refusal::new(
                    Code::TrainingFailed,
                    format!("the held-out loss is {loss_sum}"),
                );
                self.step_failed(now, refusal, effects);
            }
            Err(refusal) => self.step_failed(now, refusal, effects),
        }
    }

    pub(crate) fn uploaded(
        &mut self,
        now: UnixMillis,
        outcome: Result<Chunks, Refusal>,
        effects: &mut Vec<Effect>,
    ) {
        let chunks = match outcome {
            Ok(chunks) => chunks,
            Err(refusal) => return self.training_failed(now, refusal, effects),
        };
        let WorkStep::Uploading(trained) = self.present().step else {
            panic!("an upload was reported before the inner steps")
        };
        let Trained {
            tokens,
            steps,
            loss,
            train_ms,
        } = trained;
        let spec = &self.member().spec;
        let (layout, codec) = (spec.model.layout.digest, spec.upload);
        let privacy = spec.privacy.as_ref().map(Privacy::applied);
        // Neither noise nor a mask covers a loss.
        let covered = privacy.is_some() || spec.secure_aggregation.is_some();
        let loss = if covered { 0.0 } else { loss };
        let contribution = Contribution {
            layout,
            codec,
            chunks,
            tokens,
            steps,
            loss,
            train_ms,
            privacy,
            cohort: self.present().cohort,
        };
        self.submit(now, Outcome::Contribution(contribution));
    }

    /// Hands in the unit's result.
    fn submit(&mut self, now: UnixMillis, outcome: Outcome) {
        let spec = self.member().spec_digest;
        let (run, worker) = (self.settings.run.clone(), self.settings.worker.clone());
        let statement = Statement {
            v: V,
            run,
            spec,
            worker,
            lease: self.present().lease(),
            outcome,
        };
        let encoded = statement.encode();
        let provenance = self.provenance(&statement, Digest::of(&encoded));
        self.present().step = WorkStep::Submitting(HandIn {
            statement: encoded,
            provenance,
        });
        self.asked = None;
        self.ask_at = now;
        self.pauses.reset();
        self.patience.reset();
    }

    /// What a contribution was made from, by its lease; none for an evaluation.
    fn provenance(&mut self, statement: &Statement, digest: Digest) -> Option<Vec<u8>> {
        let manifest = Arc::clone(&self.present().manifest);
        let (Outcome::Contribution(contribution), Work::Train { shards, .. }) =
            (&statement.outcome, &manifest.work)
        else {
            return None;
        };
        let join = &self.settings.join;
        let from = MadeFrom {
            base: manifest.base.clone(),
            shards: shards.clone(),
            release: join.release.clone(),
        };
        let handed = HandedIn {
            spec: &self.member().spec,
            spec_digest: statement.spec,
            worker: &statement.worker,
            lease: statement.lease,
            contribution,
            statement: digest,
        };
        let (domain, key) = (&self.settings.domain, &join.audit_key);
        Some(Provenance::of_contribution(handed, &from, domain, key).to_json())
    }

    pub(crate) fn submit_answered(
        &mut self,
        now: UnixMillis,
        outcome: Result<Answer, Refusal>,
        effects: &mut Vec<Effect>,
    ) {
        match outcome {
            Ok(Answer::Submit(reply)) => self.submit_accepted(now, reply, effects),
            Ok(_) => self.answered_otherwise(now, effects),
            Err(refusal) => self.submit_refused(now, refusal, effects),
        }
    }

    fn submit_accepted(&mut self, now: UnixMillis, reply: SubmitReply, effects: &mut Vec<Effect>) {
        let held = self.present();
        let WorkStep::Submitting(result) = &held.step else {
            panic!("the answer to a result came before the result")
        };
        let (lease, statement) = (held.lease(), Digest::of(&result.statement));
        match reply.fate {
            Fate::Merged => {
                effects.push(Effect::Emit(WorkerEvent::Submitted { lease, statement }));
                self.faults.reset();
                self.elsewhere.reset();
                self.unit_over(now, effects);
            }
            Fate::Late | Fate::Abandoned => {
                let refusal = Refusal::new(Code::LeaseLost, "the result came too late to count");
                self.keep(ResultEnd::Refused(refusal.clone()), effects);
                self.lose(now, refusal, effects);
            }
            Fate::Rejected => {
                let refusal =
                    Refusal::new(Code::StatementInvalid, "the result was rejected earlier");
                self.keep(ResultEnd::Refused(refusal.clone()), effects);
                self.result_refused(now, refusal, effects);
            }
        }
    }

    fn submit_refused(&mut self, now: UnixMillis, refusal: Refusal, effects: &mut Vec<Effect>) {
        let verdict = verdict(refusal.code);
        if verdict != Verdict::Wait {
            let submits = self.pauses.tries() + 1;
            self.keep(ResultEnd::by_refusal(&refusal, submits), effects);
        }
        match verdict {
            Verdict::Wait => self.ask_again(now, refusal, effects),
            Verdict::Out => self.go(refusal, effects),
            Verdict::LeaseLost => self.lose(now, refusal, effects),
            Verdict::Rejoin => self.rejoin(now, refusal, effects),
            Verdict::RunOver => self.run_over(now, refusal, effects),
            Verdict::Fatal => self.give_up(now, refusal, effects),
            Verdict::Failed => self.result_refused(now, refusal, effects),
        }
    }

    /// Ends the unit after a refused result. The coordinator took the lease back, so there is
    /// nothing to release.
    fn result_refused(&mut self, now: UnixMillis, refusal: Refusal, effects: &mut Vec<Effect>) {
        self.drop_held(&refusal, effects);
        let (pause, hopeless) = self.fault(refusal.code);
        if hopeless {
            return self.leave(now, Exit::Failed(refusal), effects);
        }
        effects.push(Effect::Waiting { refusal, pause });
        self.claim(now, pause, effects);
    }

    /// Goes on to the next unit after a result that counts.
    fn unit_over(&mut self, now: UnixMillis, effects: &mut Vec<Effect>) {
        // An evaluation leaves no state to keep. The claim is sent first, and the shell copies the
        // inner state while it waits.
        let trained = self.unsaved.take();
        self.claim(now, Millis(0), effects);
        if let Some(work) = trained {
            let end = ResultEnd::Counted;
            effects.push(Effect::KeepInner { work, end });
        }
        self.beat_now(now);
    }

    /// The failure of what was computed from the data. A private run, and one with secure
    /// aggregation, tells the code alone: nothing covers the numbers that a text may name.
    fn training_failed(&mut self, now: UnixMillis, refusal: Refusal, effects: &mut Vec<Effect>) {
        let spec = &self.member().spec;
        let covered = spec.privacy.is_some() || spec.secure_aggregation.is_some();
        let told = match covered && !refusal.code.passes() {
            true => Refusal::new(refusal.code, "in a run that tells no more of it"),
            false => refusal,
        };
        self.step_failed(now, told, effects);
    }

    fn step_failed(&mut self, now: UnixMillis, refusal: Refusal, effects: &mut Vec<Effect>) {
        match verdict(refusal.code) {
            Verdict::LeaseLost => self.lose(now, refusal, effects),
            Verdict::Out => self.go(refusal, effects),
            Verdict::Fatal => self.give_up(now, refusal, effects),
            // For the causes behind the other verdicts, the coordinator answers a renewal or a
            // claim itself.
            Verdict::Wait | Verdict::Rejoin | Verdict::RunOver | Verdict::Failed => {
                self.fail(now, refusal, effects)
            }
        }
    }
}
