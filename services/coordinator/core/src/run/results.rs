//! Results: which may count, the outcome of their checks, and the fate of their tokens.

use std::collections::BTreeSet;

use ledger::Run;
use schemas::contribution::{
    Contribution, Evaluation, Fate, Outcome as Stated, Statement, SubmitReply,
};
use schemas::event::{Departure, LeaseEnd, LedgerEvent};
use schemas::foundry::Order;
use schemas::lease::{LeaseRef, UnitKind};
use schemas::limits::{LOSS_MAX, TRAIN_MAX};
use schemas::provenance::MadeFrom;
use schemas::run::{Comparison, RunSpec};
use schemas::{Code, Digest, Message as _, Millis, Refusal, Round, RunId, Tokens, V, WorkerId};
use serde_bytes::{ByteArray, ByteBuf};

use crate::deadline::RunTimer;
use crate::denial::cut_text;
use crate::effect::Answer;
use crate::input::{Peer, ReplyId, Screened, ScreeningId, Submission};
use crate::run::RunRoom;
use crate::run::leases::check_holder;
use crate::run::masking::check_masked;
use crate::run::members::check_member;
use crate::run::privacy::{check_noised, not_private};
use crate::run::provenance::signed;
use crate::run::reach::reach;
use crate::turn::{Handled, Outcome, Turn};

/// Most askers that wait for one check. A worker that asks again no longer listens for the answer
/// to its first question, so the oldest one is dropped.
const REPEATS_MAX: usize = 8;
/// Checks under one lease that may break off or miss an object before the result is refused.
const CHECKS_FAILED_MAX: u32 = 4;

/// A result that is being checked.
#[derive(Debug)]
pub(crate) struct Screening {
    worker: WorkerId,
    submission: Submission,
    /// The digest of the statement as it was signed.
    statement: Digest,
    /// What the contribution was made from, when its check began.
    from: Option<Box<MadeFrom>>,
    /// Requests that wait, and the statement of each.
    replies: Vec<(ReplyId, Digest)>,
}

impl Screening {
    /// Requests that wait for the verdict.
    pub(crate) fn replies(&self) -> impl Iterator<Item = ReplyId> {
        self.replies.iter().map(|(reply, _)| *reply)
    }

    fn lease(&self) -> LeaseRef {
        self.submission.statement.lease
    }
}

impl RunRoom<'_> {
    pub(crate) fn submit(
        &mut self,
        turn: &mut Turn<'_>,
        peer: &Peer,
        submission: Submission,
        reply: ReplyId,
    ) -> Handled {
        let member = check_member(&self.run, peer)?;
        let audit_key = member.audit_key.clone();
        let lease = submission.statement.lease;
        let statement = Digest::of(&submission.bytes);
        if let Some(counted) = counted_before(&self.run, &lease, statement) {
            return counted;
        }
        if let Some(refused) = &member.refused
            && refused.lease == lease
        {
            // The answer to the first submit was lost.
            let detail = refused.detail.clone();
            return Ok(Outcome::NotNow(Refusal::new(refused.code, detail)));
        }
        check_holder(&self.run, peer, &lease)?;
        if let Some(running) = self.live.lease(&lease.unit).screening {
            self.attach(turn, running, reply, statement);
            return Ok(Outcome::Later);
        }
        let tokens = self.evaluation_tokens(lease.unit.kind)?;
        let from = match self.made_from(&peer.worker, &lease.unit) {
            Ok(from) => from,
            Err(refusal) => return Ok(Outcome::NotNow(refusal)),
        };
        let stated = &submission.statement;
        let checked = check_statement(self.run.name(), &self.run, &peer.worker, stated, tokens);
        let checked = checked.and_then(|()| check_form(&self.run, &submission));
        let provenance = match checked.and_then(|()| signed(&submission, from.as_deref())) {
            Ok(provenance) => provenance,
            Err(refusal) => {
                // The event of the rejection names the reason, as for a result that a check refuses
                // later.
                self.reject(turn, lease, &peer.worker, &refusal);
                return Ok(Outcome::NotNow(refusal));
            }
        };
        let screening = turn.screenings.begin(self.run.name());
        let held = self.live.lease_mut(&lease.unit);
        held.screening = Some(screening);
        held.progress_at = turn.now;
        let worker = peer.worker.clone();
        let waiting = Screening {
            worker: worker.clone(),
            submission: submission.clone(),
            statement,
            from,
            replies: vec![(reply, statement)],
        };
        self.live.screenings.insert(screening, waiting);
        let order = Order::Screen {
            screening,
            worker,
            audit_key,
            statement: ByteBuf::from(submission.bytes),
            signature: ByteArray::new(submission.signature),
            provenance,
        };
        self.order(turn, order);
        Ok(Outcome::Later)
    }

    /// The tokens that an evaluation of the unit must have; none for a training unit. After a
    /// restart the number is unknown until the data manifest is here.
    fn evaluation_tokens(&self, kind: UnitKind) -> Result<Tokens, Refusal> {
        match (kind, &self.live.data) {
            (UnitKind::Train, _) => Ok(Tokens(0)),
            (UnitKind::Evaluate, Some(data)) => Ok(data.evaluation_tokens(&self.run.spec)),
            (UnitKind::Evaluate, None) => Err(Refusal::new(
                Code::NoAnswer,
                "the run's data is not loaded yet; submit again",
            )),
        }
    }

    /// Adds an asker to a running check. A worker that asks again gets the same answer; another
    /// result of the same lease waits too, and is told the fate of the first.
    fn attach(
        &mut self,
        turn: &mut Turn<'_>,
        running: ScreeningId,
        reply: ReplyId,
        statement: Digest,
    ) {
        let screening = self
            .live
            .screenings
            .get_mut(&running)
            .expect("a lease names only a check that runs");
        if screening.replies.len() >= REPEATS_MAX {
            let (oldest, _) = screening.replies.remove(0);
            let refusal = Refusal::new(Code::NoAnswer, "a newer request took its place");
            turn.reply(oldest, Err(refusal));
        }
        screening.replies.push((reply, statement));
    }

    /// Handles the end of a check of a result.
    pub(crate) fn screened(
        &mut self,
        turn: &mut Turn<'_>,
        screening: ScreeningId,
        verdict: Result<Screened, Refusal>,
    ) {
        let done = self.live.screenings.remove(&screening);
        let done = done.expect("a check that runs is in the room of its run");
        self.live.lease_mut(&done.lease().unit).screening = None;
        let unit = done.lease().unit;
        let found = verdict.and_then(|found| {
            let norm = check_norm(found.norm, &self.run.spec, self.run.progress(unit.round))?;
            check_noised(&done.submission.statement.outcome, norm, &self.run.spec)?;
            self.check_copied(&done, norm)?;
            self.check_made_from(&done.worker, &unit, done.from.as_deref())?;
            Ok((norm, found.listed))
        });
        match found {
            Ok((norm, listed)) => self.accept(turn, done, norm, listed),
            // The process that handed it in is no more, and so its lease ends, as that of a worker
            // that is replaced without a result.
            Err(refusal) if refusal.code == Code::Replaced => {
                turn.answer_all(&done, &refusal);
                self.end_lease(turn, done.lease(), LeaseEnd::Orphaned);
            }
            Err(refusal)
                if is_checked_again(refusal.code)
                    && !self.has_failed_enough(&done, refusal.code) =>
            {
                self.check_failed(turn, &done, &refusal);
            }
            Err(refusal) => {
                self.reject(turn, done.lease(), &done.worker, &refusal);
                turn.answer_all(&done, &refusal);
            }
        }
    }

    /// Refuses a contribution that consists of the chunks of another, in a run that compares. All
    /// that consist of zeros are equal, so they are no copies.
    fn check_copied(&self, done: &Screening, norm: f64) -> Result<(), Refusal> {
        let stated = &done.submission.statement;
        let Stated::Contribution(contribution) = &stated.outcome else {
            return Ok(());
        };
        let chunks = contribution.chunks.digest();
        match self.run.copied_from(&stated.lease.unit, chunks) {
            Some(other) if norm > 0.0 => {
                let detail = format!("its chunks are those of unit {other}");
                Err(Refusal::new(Code::ContributionCopied, detail))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn accept(&mut self, turn: &mut Turn<'_>, done: Screening, norm: f64, listed: Vec<Digest>) {
        let lease = done.lease();
        let Screening {
            worker,
            submission,
            statement,
            replies,
            ..
        } = done;
        let mut named = named_objects(&submission.statement.outcome);
        named.extend(listed);
        self.note_result(turn.now, &lease.unit);
        let event = accepted(worker.clone(), submission, statement, norm);
        self.append(turn, event);
        self.live.fruitless.remove(&worker);
        let uploads = self.live.end_lease(&lease.unit).uploads;
        if let Some(unused) = self.live.unused.get_mut(&worker) {
            // The other uploads of the lease stay counted as unused, like all uploads of a lease
            // without a result.
            let forgiven = match lease.unit.kind {
                UnitKind::Train => self.run.spec.uploads(),
                UnitKind::Evaluate => 0,
            };
            unused.counts(uploads.intersection(&named).count(), forgiven);
        }
        // After a restart only the result says what was uploaded.
        let uploads = uploads.union(&named).copied().collect();
        self.sweep(turn, lease, worker, uploads);
        self.settle(turn, &lease.unit);
        let fate = self.run.accepted.get(&lease.unit).expect("it counts").fate;
        for (reply, asked) in replies {
            let answer = if asked == statement {
                Ok(came_to(fate))
            } else {
                Err(already_counted(&lease))
            };
            turn.reply(reply, answer);
        }
        self.advance(turn);
        // The worker may have claimed while its result was being checked.
        self.serve(turn);
    }

    /// True when this check was the last one that a result gets. A store that is away is nobody's
    /// fault. A check that breaks off or misses an object again and again is the result's fault,
    /// and must not hold its unit for ever.
    fn has_failed_enough(&mut self, done: &Screening, code: Code) -> bool {
        let broke_off = is_checked_again_a_few_times(code);
        let held = self.live.lease_mut(&done.lease().unit);
        held.checks_failed += u32::from(broke_off);
        broke_off && held.checks_failed >= CHECKS_FAILED_MAX
    }

    /// Ends a check that could not be made through no fault of the result: the lease runs on, and
    /// the worker may submit again.
    fn check_failed(&mut self, turn: &mut Turn<'_>, done: &Screening, refusal: &Refusal) {
        let unit = done.lease().unit;
        // If the worker is gone, nobody is left to submit again.
        let expires_at = match self.run.member(&done.worker) {
            Some(_) => turn.now.after(self.run.spec.policy.lease),
            None => turn.now,
        };
        self.live.lease_mut(&unit).expires_at = expires_at;
        self.wake(turn, expires_at, RunTimer::Lease(unit));
        turn.answer_all(done, refusal);
        self.repeat_grants(turn);
    }

    /// Refuses a result: its tokens are rejected, its unit opens again, and its worker gets a
    /// strike.
    fn reject(
        &mut self,
        turn: &mut Turn<'_>,
        lease: LeaseRef,
        worker: &WorkerId,
        refusal: &Refusal,
    ) {
        let rejected = LedgerEvent::ContributionRejected {
            lease,
            worker: worker.clone(),
            code: refusal.code,
            detail: cut_text(&refusal.detail),
            tokens: self.run.unit_tokens(&lease.unit),
        };
        self.append(turn, rejected);
        self.judge_strikes(turn, worker);
        self.result_refused(turn, lease.unit, worker, refusal);
        self.free_unit(turn, lease, worker.clone());
    }

    /// Removes a worker that has too many strikes.
    pub(crate) fn judge_strikes(&mut self, turn: &mut Turn<'_>, worker: &WorkerId) {
        let strikes_max = u64::from(self.run.spec.policy.strikes_max);
        let struck = self.run.members.get(worker);
        if struck.is_some_and(|member| member.rejected >= strikes_max && !member.removed) {
            let detail = format!("{strikes_max} refused results");
            self.depart(turn, worker, Departure::Removed, &detail);
        }
    }
}

impl Turn<'_> {
    fn answer_all(&mut self, done: &Screening, refusal: &Refusal) {
        for reply in done.replies() {
            self.reply(reply, Err(refusal.clone()));
        }
    }
}

/// The event that a result counts.
fn accepted(worker: WorkerId, submission: Submission, statement: Digest, norm: f64) -> LedgerEvent {
    let lease = submission.statement.lease;
    let signature = ByteArray::new(submission.signature);
    match submission.statement.outcome {
        Stated::Contribution(contribution) => LedgerEvent::ContributionAccepted {
            lease,
            worker,
            contribution: Box::new(contribution),
            norm,
            statement,
            signature,
            provenance: submission.provenance.map(ByteArray::new),
        },
        Stated::Evaluation(evaluation) => LedgerEvent::EvaluationAccepted {
            lease,
            worker,
            evaluation,
            statement,
            signature,
        },
    }
}

/// The objects that a result names, each once: its chunks, or their list.
fn named_objects(outcome: &Stated) -> BTreeSet<Digest> {
    match outcome {
        Stated::Contribution(contribution) => contribution
            .chunks
            .objects()
            .iter()
            .map(|chunk| chunk.digest)
            .collect(),
        Stated::Evaluation(_) => BTreeSet::new(),
    }
}

/// True when the check is made again and the result is not refused: the store is away or full, it
/// refuses the coordinator itself, or the check broke off. A missing object can be uploaded again.
fn is_checked_again(code: Code) -> bool {
    code.passes() || code == Code::UrlInvalid || is_checked_again_a_few_times(code)
}

/// True when the result may be the cause, so that it gets only a few checks.
fn is_checked_again_a_few_times(code: Code) -> bool {
    matches!(
        code,
        Code::Internal | Code::ObjectMissing | Code::UploadMissing
    )
}

/// The answer to a result of a unit that has one: the same statement counts once, and another
/// statement does not count.
pub(crate) fn counted_before(run: &Run, lease: &LeaseRef, statement: Digest) -> Option<Handled> {
    let accepted = run.accepted.get(&lease.unit)?;
    Some(if accepted.statement == statement {
        Ok(Outcome::Now(came_to(accepted.fate)))
    } else {
        Err(already_counted(lease).into())
    })
}

fn came_to(fate: Fate) -> Answer {
    Answer::Submit(SubmitReply { v: V, fate })
}

fn already_counted(lease: &LeaseRef) -> Refusal {
    Refusal::new(
        Code::AlreadyCounted,
        format!("another result of unit {} counts", lease.unit),
    )
}

/// Refuses a contribution to `round` whose norm is above the run's bound (0 stands for none), or,
/// in a run that compares, above what the inner steps can reach. In a private run the noise decides
/// what is within reach.
///
/// # Errors
/// [`Code::NotFinite`] or [`Code::NormOutlier`].
pub fn check_norm(norm: f64, spec: &RunSpec, round: Round) -> Result<f64, Refusal> {
    if !norm.is_finite() {
        return Err(Refusal::new(
            Code::NotFinite,
            format!("the contribution's norm is {norm}"),
        ));
    }
    let norm_max = spec.policy.norm_max;
    if norm_max > 0.0 && norm > norm_max {
        return Err(Refusal::new(
            Code::NormOutlier,
            format!("norm {norm} exceeds {norm_max}"),
        ));
    }
    let farthest = match spec.policy.comparison {
        // The noise may lead farther than the inner steps.
        Comparison::Others { .. } if spec.privacy.is_none() => reach(spec, round),
        Comparison::None | Comparison::Others { .. } => f64::INFINITY,
    };
    if norm > farthest {
        let detail =
            format!("norm {norm} exceeds {farthest}, the farthest that the inner steps can lead");
        return Err(Refusal::new(Code::NormOutlier, detail));
    }
    Ok(norm)
}

/// Checks everything that needs no object: the statement fits its run, its worker and its unit.
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
        (Stated::Contribution(contribution), UnitKind::Train) => {
            check_masked(run, &statement.lease, contribution)?;
            check_contribution(run, contribution)
        }
        (Stated::Evaluation(evaluation), UnitKind::Evaluate) => {
            check_evaluation(evaluation, evaluation_tokens)
        }
        (_, kind) => unfit(format!("the result is not of a unit of kind {kind:?}")),
    }
}

/// Refuses a statement in a masked run that is not in the form in which every reader encodes it:
/// the ledger holds its content, and an auditor checks the signature over that.
fn check_form(run: &Run, submission: &Submission) -> Result<(), Refusal> {
    match !run.is_masked() || submission.statement.encode() == submission.bytes {
        true => Ok(()),
        false => Err(Refusal::new(
            Code::StatementInvalid,
            "it is encoded in another form",
        )),
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
    if let Some(refusal) = not_private(spec.privacy.as_ref(), contribution) {
        return Err(refusal);
    }
    if contribution.codec != spec.upload {
        let detail = format!(
            "chunks as {:?}, expected as {:?}",
            contribution.codec, spec.upload
        );
        return Err(Refusal::new(Code::SizeMismatch, detail));
    }
    spec.check_chunks(&contribution.chunks, spec.upload.kind)?;
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

#[cfg(test)]
mod tests {
    use schemas::run::TrainerKind;

    use super::*;

    #[test]
    fn a_norm_counts_up_to_the_bound_of_its_run_and_any_counts_where_there_is_none() {
        let code = |norm, norm_max| {
            let spec = kit::run_spec().norm_max(norm_max).build();
            let refused = check_norm(norm, &spec, Round(0)).err();
            refused.map(|found| found.code)
        };
        assert_eq!(code(10.0, 10.0), None);
        assert_eq!(code(10.001, 10.0), Some(Code::NormOutlier));
        assert_eq!(code(1e300, 0.0), None);
        for norm in [f64::NAN, f64::INFINITY] {
            assert_eq!(code(norm, 0.0), Some(Code::NotFinite));
        }
    }

    #[test]
    fn a_norm_counts_up_to_the_reach_of_the_inner_steps_in_a_run_that_compares() {
        let mut spec = kit::run_spec().norm_max(0.0).build();
        spec.model.trainer = TrainerKind::Reference;
        let farthest = reach(&spec, Round(0));
        assert!(farthest.is_finite());
        let accepted = |spec: &RunSpec, norm: f64| check_norm(norm, spec, Round(0)).is_ok();
        spec.policy.comparison = Comparison::of_norms(10.0);
        assert!(accepted(&spec, farthest) && !accepted(&spec, farthest.next_up()));
        spec.policy.comparison = Comparison::None;
        assert!(accepted(&spec, farthest.next_up()));
    }
}
