//! Results: which may count, what their checks came to, and what becomes of the tokens.

use std::collections::BTreeSet;

use ledger::Run;
use schemas::contribution::{Contribution, Evaluation, Fate, Outcome, Statement, SubmitReply};
use schemas::event::{Departure, LedgerEvent};
use schemas::lease::{LeaseRef, UnitKind};
use schemas::limits::{LOSS_MAX, TRAIN_MAX};
use schemas::{Code, Digest, Millis, Refusal, RunId, Tokens, V, WorkerId};
use serde_bytes::ByteArray;

use crate::coordinator::{Coordinator, run_unknown};
use crate::deadline::Timer;
use crate::denial::cut_text;
use crate::effect::{Answer, Effect};
use crate::input::{Peer, ReplyId, Screened, ScreeningId, Submission};
use crate::lease::check_holder;
use crate::membership::check_member;

/// Most askers that wait for one check. A worker that asks again no longer hears the answer to its
/// first question, so the oldest gives way.
const REPEATS_MAX: usize = 8;
/// Checks under one lease that may break off or miss an object before the result is refused.
const CHECKS_FAILED_MAX: u32 = 4;

/// A result that is being checked.
#[derive(Debug)]
pub(crate) struct Screening {
    run: RunId,
    worker: WorkerId,
    submission: Submission,
    /// The digest of the statement as it was signed.
    statement: Digest,
    /// Who waits, and for which statement.
    replies: Vec<(ReplyId, Digest)>,
}

impl Screening {
    /// Who waits for the verdict.
    pub(crate) fn into_replies(self) -> impl Iterator<Item = ReplyId> {
        self.replies.into_iter().map(|(reply, _)| reply)
    }
}

impl Coordinator {
    pub(crate) fn submit(
        &mut self,
        peer: &Peer,
        submission: Submission,
        reply: ReplyId,
    ) -> Result<(), Refusal> {
        let run = self
            .state
            .run(&peer.run)
            .ok_or_else(|| run_unknown(&peer.run))?;
        let audit_key = check_member(run, peer)?.audit_key.clone();
        let lease = submission.statement.lease;
        let statement = Digest::of(&submission.bytes);
        if let Some(accepted) = run.accepted.get(&lease.unit) {
            return if accepted.statement == statement {
                self.answer_merged(reply);
                Ok(())
            } else {
                Err(already_counted(&lease))
            };
        }
        let (screening, now) = (ScreeningId(self.screened + 1), self.now);
        let (run, live) = self.open_run(&peer.run)?;
        if let Some((_, _, refusal)) = live
            .refused
            .get(&peer.worker)
            .filter(|(of, stated, _)| (*of, *stated) == (lease, statement))
        {
            // The answer to the first one was lost.
            let refusal = refusal.clone();
            self.reply(reply, Err(refusal));
            return Ok(());
        }
        check_holder(run, peer, &lease)?;
        let held = live
            .leases
            .get_mut(&lease.unit)
            .expect("every lease that is held is watched");
        if let Some(running) = held.screening {
            return self.attach(running, reply, statement);
        }
        let evaluation_tokens = live
            .data
            .as_ref()
            .map(|data| data.evaluation_tokens(&run.spec));
        if lease.unit.kind == UnitKind::Evaluate && evaluation_tokens.is_none() {
            // After a restart: without the data nobody can say what the unit holds.
            return Err(Refusal::new(
                Code::NoAnswer,
                "the run's data is not loaded yet; submit again",
            ));
        }
        let tokens = evaluation_tokens.unwrap_or_default();
        if let Err(refusal) =
            check_statement(&peer.run, run, &peer.worker, &submission.statement, tokens)
        {
            // The event of the rejection says it, as for a result that the check refuses later.
            self.reject(&peer.run, (lease, statement), &peer.worker, &refusal);
            self.reply(reply, Err(refusal));
            return Ok(());
        }
        let spec = Box::new(run.spec.clone());
        held.screening = Some(screening);
        held.progress_at = now;
        let waiting = Screening {
            run: peer.run.clone(),
            worker: peer.worker.clone(),
            submission: submission.clone(),
            statement,
            replies: vec![(reply, statement)],
        };
        self.screened += 1;
        self.screenings.insert(screening, waiting);
        let (worker, submission) = (peer.worker.clone(), Box::new(submission));
        self.out.push(Effect::Screen {
            screening,
            spec,
            worker,
            audit_key,
            submission,
        });
        Ok(())
    }

    /// A worker asks again while its result is being checked: both get the answer. Another result
    /// of the same lease waits too, and is told what became of the first.
    fn attach(
        &mut self,
        running: ScreeningId,
        reply: ReplyId,
        statement: Digest,
    ) -> Result<(), Refusal> {
        let screening = self
            .screenings
            .get_mut(&running)
            .expect("a lease names only a check that runs");
        let crowded = screening.replies.len() >= REPEATS_MAX;
        let oldest = crowded.then(|| screening.replies.remove(0).0);
        screening.replies.push((reply, statement));
        if let Some(oldest) = oldest {
            self.reply(
                oldest,
                Err(Refusal::new(
                    Code::NoAnswer,
                    "a newer request took its place",
                )),
            );
        }
        Ok(())
    }

    pub(crate) fn screened(&mut self, screening: ScreeningId, verdict: Result<Screened, Refusal>) {
        let Some(done) = self.screenings.remove(&screening) else {
            return;
        };
        let lease = done.submission.statement.lease;
        if let Some(held) = self
            .live
            .get_mut(&done.run)
            .and_then(|live| live.leases.get_mut(&lease.unit))
        {
            held.screening = None;
        }
        let norm_max = self
            .state
            .run(&done.run)
            .map_or(0.0, |run| run.spec.policy.norm_max);
        match verdict.and_then(|found| check_norm(found.norm, norm_max)) {
            Ok(norm) => self.accept(done, norm),
            Err(refusal)
                if is_checked_again(refusal.code)
                    && !self.has_failed_enough(&done, refusal.code) =>
            {
                self.check_failed(done, &refusal);
            }
            Err(refusal) => {
                self.reject(&done.run, (lease, done.statement), &done.worker, &refusal);
                self.answer_others(&done, &refusal);
            }
        }
    }

    fn accept(&mut self, done: Screening, norm: f64) {
        let Screening {
            run: name,
            worker,
            submission,
            statement,
            replies,
        } = done;
        let lease = submission.statement.lease;
        let signature = ByteArray::new(submission.signature);
        let named = named_chunks(&submission.statement.outcome);
        let holder = worker.clone();
        let event = match submission.statement.outcome {
            Outcome::Contribution(contribution) => {
                let contribution = Box::new(contribution);
                LedgerEvent::ContributionAccepted {
                    lease,
                    worker,
                    contribution,
                    norm,
                    statement,
                    signature,
                }
            }
            Outcome::Evaluation(evaluation) => LedgerEvent::EvaluationAccepted {
                lease,
                worker,
                evaluation,
                statement,
                signature,
            },
        };
        self.note_result(&name, &lease.unit);
        self.append(Some(&name), event);
        if let Some(live) = self.live.get_mut(&name) {
            live.fruitless.remove(&holder);
            let uploads = live
                .leases
                .remove(&lease.unit)
                .map(|held| held.uploads)
                .unwrap_or_default();
            if let Some(unused) = live.unused.get_mut(&holder) {
                // Other uploads of the lease came to nothing, like those of a lease without a
                // result.
                unused.used(uploads.intersection(&named).count());
            }
            // After a restart only the result tells what was uploaded.
            self.sweep(
                &name,
                lease,
                holder,
                uploads.union(&named).copied().collect(),
            );
        }
        self.settle(&name, &lease.unit);
        for (reply, asked) in replies {
            if asked == statement {
                self.answer_merged(reply);
            } else {
                self.reply(reply, Err(already_counted(&lease)));
            }
        }
        self.advance(&name);
        // The worker may have claimed while its result was being checked.
        self.serve(&name);
    }

    /// Whether this check ends the patience with a result. A store that is away is nobody's fault;
    /// a check that breaks off, or that finds no object, again and again is the result's, and must
    /// not hold its unit for ever.
    fn has_failed_enough(&mut self, done: &Screening, code: Code) -> bool {
        if !is_checked_again_a_few_times(code) {
            return false;
        }
        let unit = &done.submission.statement.lease.unit;
        let Some(held) = self
            .live
            .get_mut(&done.run)
            .and_then(|live| live.leases.get_mut(unit))
        else {
            return false;
        };
        held.checks_failed += 1;
        held.checks_failed >= CHECKS_FAILED_MAX
    }

    /// The check could not be made, through no fault of the result: the lease runs on and the
    /// worker may submit again.
    fn check_failed(&mut self, done: Screening, refusal: &Refusal) {
        let now = self.now;
        let lease = done.submission.statement.lease;
        if let Ok((run, live)) = self.open_run(&done.run) {
            let expires_at = now.after(run.spec.policy.lease);
            let gone = run.member(&done.worker).is_none();
            if let Some(held) = live.leases.get_mut(&lease.unit) {
                // Nobody is left to submit again.
                let expires_at = if gone { now } else { expires_at };
                held.expires_at = expires_at;
                self.timers
                    .set(expires_at, Timer::Lease(done.run.clone(), lease.unit));
            }
        }
        self.answer_others(&done, refusal);
        self.repeat_grants(&done.run);
    }

    fn answer_others(&mut self, done: &Screening, refusal: &Refusal) {
        for (reply, _) in &done.replies {
            self.reply(*reply, Err(refusal.clone()));
        }
    }

    fn answer_merged(&mut self, reply: ReplyId) {
        self.reply(
            reply,
            Ok(Answer::Submit(SubmitReply {
                v: V,
                fate: Fate::Merged,
            })),
        );
    }

    /// Refuses a result: its tokens are rejected, its unit is open again, and its worker has one
    /// more strike.
    fn reject(
        &mut self,
        name: &RunId,
        (lease, statement): (LeaseRef, Digest),
        worker: &WorkerId,
        refusal: &Refusal,
    ) {
        if let Some(live) = self.live.get_mut(name) {
            live.refused
                .insert(worker.clone(), (lease, statement, refusal.clone()));
        }
        let Some(run) = self.state.run(name) else {
            return;
        };
        let (tokens, strikes_max) = (
            run.unit_tokens(&lease.unit),
            u64::from(run.spec.policy.strikes_max),
        );
        let rejected = LedgerEvent::ContributionRejected {
            lease,
            worker: worker.clone(),
            code: refusal.code,
            detail: cut_text(&refusal.detail),
            tokens,
        };
        self.append(Some(name), rejected);
        let struck = self.state.run(name).and_then(|run| run.members.get(worker));
        if struck.is_some_and(|member| member.rejected >= strikes_max && !member.removed) {
            self.depart(
                name,
                worker,
                Departure::Removed,
                &format!("{strikes_max} refused results"),
            );
        }
        self.result_refused(name, lease.unit, worker, refusal);
        self.free_unit(name, lease, worker.clone());
    }
}

/// The chunks that a result names, each once.
fn named_chunks(outcome: &Outcome) -> BTreeSet<Digest> {
    match outcome {
        Outcome::Contribution(contribution) => contribution
            .chunks
            .iter()
            .map(|chunk| chunk.digest)
            .collect(),
        Outcome::Evaluation(_) => BTreeSet::new(),
    }
}

/// True when the check is made again instead of the result being refused: the store is away or
/// full, or the check broke off. An object that is missing can be uploaded again.
fn is_checked_again(code: Code) -> bool {
    code.passes() || is_checked_again_a_few_times(code)
}

/// True when the result itself can be the cause, so that the patience with it ends.
fn is_checked_again_a_few_times(code: Code) -> bool {
    matches!(
        code,
        Code::Internal | Code::ObjectMissing | Code::UploadMissing
    )
}

fn already_counted(lease: &LeaseRef) -> Refusal {
    Refusal::new(
        Code::AlreadyCounted,
        format!("another result of unit {} counts", lease.unit),
    )
}

/// Whether a contribution of this norm may count in a run with this bound; 0 is none.
///
/// # Errors
/// [`Code::NotFinite`] or [`Code::NormOutlier`].
pub fn check_norm(norm: f64, norm_max: f64) -> Result<f64, Refusal> {
    if !norm.is_finite() {
        return Err(Refusal::new(
            Code::NotFinite,
            format!("the contribution's norm is {norm}"),
        ));
    }
    if norm_max > 0.0 && norm > norm_max {
        return Err(Refusal::new(
            Code::NormOutlier,
            format!("norm {norm} exceeds {norm_max}"),
        ));
    }
    Ok(norm)
}

/// What can be checked without the objects: that the statement fits its run, its worker and its
/// unit.
fn check_statement(
    name: &RunId,
    run: &Run,
    worker: &WorkerId,
    statement: &Statement,
    evaluation_tokens: Tokens,
) -> Result<(), Refusal> {
    let unfit = |detail: String| Err(Refusal::new(Code::StatementInvalid, detail));
    if statement.run != *name || statement.worker != *worker {
        return unfit(format!(
            "stated by {} for run {}, sent by {worker} for {name}",
            statement.worker, statement.run
        ));
    }
    if statement.spec != run.spec_digest {
        return unfit(format!(
            "settings {} are not the run's, {}",
            statement.spec, run.spec_digest
        ));
    }
    match (&statement.outcome, statement.lease.unit.kind) {
        (Outcome::Contribution(contribution), UnitKind::Train) => {
            check_contribution(run, contribution)
        }
        (Outcome::Evaluation(evaluation), UnitKind::Evaluate) => {
            check_evaluation(evaluation, evaluation_tokens)
        }
        (_, kind) => unfit(format!("the result is not of a unit of kind {kind:?}")),
    }
}

fn check_contribution(run: &Run, contribution: &Contribution) -> Result<(), Refusal> {
    let spec = &run.spec;
    if contribution.layout != spec.model.layout.digest {
        let detail = format!(
            "layout {} is not the run's, {}",
            contribution.layout, spec.model.layout.digest
        );
        return Err(Refusal::new(Code::LayoutMismatch, detail));
    }
    let (steps, tokens) = (spec.schedule.inner_steps, spec.unit_tokens());
    if contribution.steps != steps || contribution.tokens != tokens {
        let (got_steps, got_tokens) = (contribution.steps, contribution.tokens);
        let detail =
            format!("{got_steps} steps and {got_tokens} tokens, the unit has {steps} and {tokens}");
        return Err(Refusal::new(Code::TokensMismatch, detail));
    }
    let (chunks, expected) = (contribution.chunks.len(), spec.model.initial.len());
    if contribution.codec != spec.upload || chunks != expected {
        let detail = format!(
            "{chunks} chunks as {:?}, expected {expected} as {:?}",
            contribution.codec, spec.upload
        );
        return Err(Refusal::new(Code::SizeMismatch, detail));
    }
    if Millis(contribution.train_ms) > TRAIN_MAX {
        let detail = format!(
            "the inner steps took {} ms, at most {TRAIN_MAX} are believed",
            contribution.train_ms
        );
        return Err(Refusal::new(Code::NumberImpossible, detail));
    }
    check_loss("training", contribution.loss)
}

fn check_evaluation(evaluation: &Evaluation, expected: Tokens) -> Result<(), Refusal> {
    if evaluation.tokens != expected || expected == Tokens(0) {
        let detail = format!(
            "evaluated {} tokens, the unit has {expected}",
            evaluation.tokens
        );
        return Err(Refusal::new(Code::TokensMismatch, detail));
    }
    check_loss("held-out", evaluation.loss_sum / expected.get() as f64)
}

/// A mean of negative logarithms of probabilities is never below zero.
pub(crate) fn check_loss(which: &str, loss: f64) -> Result<(), Refusal> {
    if (0.0..=LOSS_MAX).contains(&loss) {
        return Ok(());
    }
    let code = if loss.is_finite() {
        Code::NumberImpossible
    } else {
        Code::NotFinite
    };
    Err(Refusal::new(
        code,
        format!("the {which} loss is {loss} nats a token, expected 0 to {LOSS_MAX}"),
    ))
}
