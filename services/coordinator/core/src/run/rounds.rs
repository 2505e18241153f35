//! Rounds: opening, merging and closing them; and the weights: restoring and saving them.

use std::sync::Arc;

use ledger::{BudgetEnd, Draw, Run, Standing};
use schemas::data::{DataManifest, Tokenizer};
use schemas::event::LedgerEvent;
use schemas::foundry::{Order, Saved};
use schemas::hold::Hold;
use schemas::lease::{ClaimOutcome, UnitId, Weights};
use schemas::limits::{COMPARED_MAX, SEALED_MAX};
use schemas::snapshot::MergeInput;
use schemas::sync::{ComparedInput, SealedInput};
use schemas::view::PrivacyView;
use schemas::{Class, Code, Refusal, Round, SyncId, Tokens, UnixMillis, Weight, WorkerId};

use crate::deadline::RunTimer;
use crate::effect::Effect;
use crate::input::{Merged, ReplyId};
use crate::run::RunRoom;
use crate::run::closing::{due, to_compare};
use crate::run::live::{Foundry, LiveRun, WeightsTask, backoff};
use crate::run::objects::RefusedRead;
use crate::turn::Turn;

const ASKED: &str = "the set that the foundry was asked to merge is the next";

/// The next step that a run needs, besides its workers' results.
#[derive(Debug, PartialEq)]
enum NextStep {
    Restore,
    Compare(Round, Vec<MergeInput>),
    Seal(SyncId, Vec<SealedInput>),
    Open(Round),
    Spend(PrivacyView),
    Dissolve(Round),
    Save(Round),
    Merge(SyncId, Vec<MergeInput>),
    Close(SyncId),
    Complete,
}

impl RunRoom<'_> {
    /// Takes the run's next steps, until it waits for something outside. May be called at any time.
    pub(crate) fn advance(&mut self, turn: &mut Turn<'_>) {
        self.watch_budget(turn);
        while let Some(step) = next_step(&self.run, self.live, turn.now) {
            match step {
                NextStep::Restore => self.restore(turn),
                NextStep::Compare(round, inputs) => self.compare(turn, round, inputs),
                NextStep::Seal(sync, inputs) => self.seal(turn, sync, &inputs),
                NextStep::Open(round) => self.open_round(turn, round),
                NextStep::Spend(spent) => self.spend_out(turn, spent),
                NextStep::Dissolve(round) => self.dissolve(turn, round),
                NextStep::Save(round) => self.save(turn, round),
                NextStep::Merge(sync, inputs) => self.merge(turn, sync, inputs),
                NextStep::Close(sync) => self.close(turn, sync),
                NextStep::Complete => return self.complete(turn),
            }
        }
        // A step may have sealed the set whose sum is waited for.
        self.watch_unmasking(turn);
    }

    /// Starts the work of this process on a run that the ledger holds.
    pub(crate) fn take_up(&mut self, turn: &mut Turn<'_>) {
        let present = self.run.members.iter().filter(|(_, m)| m.present);
        let members: Vec<WorkerId> = present.map(|(worker, _)| worker.clone()).collect();
        let leases: Vec<UnitId> = self.run.leases().map(|(lease, ..)| lease.unit).collect();
        let units: Vec<UnitId> = incomplete(&self.run).collect();
        for worker in &members {
            self.watch(turn, worker);
        }
        for unit in leases {
            self.hold_lease(turn, unit);
        }
        for unit in units {
            self.offer(turn, unit);
        }
        self.evict_broken(turn);
        self.mark_changed(turn);
        self.advance(turn);
    }

    fn restore(&mut self, turn: &mut Turn<'_>) {
        self.live.foundry.task = Some(WeightsTask::Restore);
        let snapshot = self.run.last_snapshot();
        let order = Order::Restore {
            spec: Box::new(self.run.spec.clone()),
            snapshot: snapshot.map(|snapshot| snapshot.manifest),
            version: snapshot.map_or(Round(0), |snapshot| snapshot.round),
            merges: self.run.merges.clone(),
        };
        self.order(turn, order);
    }

    /// Takes the data manifest. Returns the reads that waited for it and are refused now.
    pub(crate) fn data_loaded(
        &mut self,
        turn: &mut Turn<'_>,
        manifest: Arc<DataManifest>,
    ) -> Vec<RefusedRead> {
        let shards = manifest.train.iter().chain(&manifest.held_out);
        let readable = &mut self.live.readable;
        readable.extend(shards.map(|shard| shard.object.digest));
        if let Tokenizer::HuggingFace(object) = &manifest.tokenizer {
            readable.insert(object.digest);
        }
        self.live.data = Some(Draw::new(&self.run.spec, manifest));
        let refused = self.answer_reads(turn);
        self.repeat_grants(turn);
        self.serve(turn);
        refused
    }

    pub(crate) fn restored(&mut self, turn: &mut Turn<'_>, outcome: Result<(), Refusal>) {
        if self.live.foundry.finishes(WeightsTask::Restore) {
            match outcome {
                // An operator has led the run to other weights meanwhile.
                _ if std::mem::take(&mut self.live.foundry.outdated) => {}
                Ok(()) => {
                    self.live.foundry.restored = true;
                    self.live.foundry.succeeded();
                }
                Err(refusal) if is_final(refusal.code) => self.halt(turn, &refusal),
                Err(refusal) => self.try_later(turn, refusal),
            }
            self.advance(turn);
            self.serve(turn);
        }
    }

    /// Halts the run, and tells the reason to each request that waits.
    pub(crate) fn halt(&mut self, turn: &mut Turn<'_>, refusal: &Refusal) {
        self.live.foundry.halted = Some(refusal.clone());
        self.live.foundry.trouble = None;
        let reads = std::mem::take(&mut self.live.reads)
            .into_values()
            .map(|read| read.reply);
        let waiting: Vec<ReplyId> = self.live.claims.drain().into_iter().chain(reads).collect();
        for reply in waiting {
            turn.reply(reply, Err(refusal.clone()));
        }
        self.mark_changed(turn);
    }

    fn open_round(&mut self, turn: &mut Turn<'_>, round: Round) {
        self.append(turn, LedgerEvent::RoundOpened { round });
        self.offer_open(turn);
    }

    /// Takes the run's next steps after a lease or a membership ended, which the budget of a
    /// private run may not survive.
    pub(crate) fn look_at_budget(&mut self, turn: &mut Turn<'_>) {
        if self.run.budget_end().is_some() {
            self.advance(turn);
        }
    }

    /// Waits for other workers for as long as a silent one may take to come back, when those that
    /// are here have spent their part of the budget.
    fn watch_budget(&mut self, turn: &mut Turn<'_>) {
        let waits = self.run.budget_end() == Some(BudgetEnd::WithTheseMembers);
        match self.live.budget_ends_at {
            None if waits => {
                let ends_at = turn.now.after(self.run.spec.policy.silence_max);
                self.live.budget_ends_at = Some(ends_at);
                self.wake(turn, ends_at, RunTimer::Weights);
            }
            Some(_) if !waits => self.live.budget_ends_at = None,
            Some(_) | None => {}
        }
    }

    /// Ends the rounds of a run whose privacy budget does not last for another contribution.
    fn spend_out(&mut self, turn: &mut Turn<'_>, spent: PrivacyView) {
        let event = LedgerEvent::PrivacySpent {
            disclosures: spent.disclosures,
            epsilon: spent.epsilon_spent,
        };
        self.append(turn, event);
        let offers = self.live.offers.keys();
        let gone = offers.filter(|unit| !self.run.units.contains_key(unit));
        let gone: Vec<UnitId> = gone.copied().collect();
        for unit in gone {
            self.settle(turn, &unit);
        }
        // Only the evaluation of the final weights is left.
        self.offer_open(turn);
    }

    /// Grants the units that are open now, and offers those that are not on the queue.
    pub(crate) fn offer_open(&mut self, turn: &mut Turn<'_>) {
        let units: Vec<UnitId> = incomplete(&self.run).collect();
        self.serve(turn);
        for unit in units {
            self.offer(turn, unit);
        }
    }

    /// Has the directions of a round's contributions compared.
    fn compare(&mut self, turn: &mut Turn<'_>, round: Round, inputs: Vec<MergeInput>) {
        self.live.foundry.comparing = Some(round);
        self.order(turn, Order::Compare { round, inputs });
    }

    /// Takes the cosines of a round's contributions, in as many events as that takes. Contributions
    /// that were withdrawn meanwhile make them worth nothing: the rest is compared anew.
    pub(crate) fn compared(
        &mut self,
        turn: &mut Turn<'_>,
        round: Round,
        outcome: Result<Vec<ComparedInput>, Refusal>,
    ) {
        // An answer that was not asked for changes nothing.
        if self.live.foundry.comparing != Some(round) {
            return;
        }
        self.live.foundry.comparing = None;
        match outcome {
            Ok(cosines) if is_complete_answer(&self.run, round, &cosines) => {
                self.live.foundry.compare_failures = 0;
                self.live.foundry.compare_trouble = None;
                for part in cosines.chunks(COMPARED_MAX) {
                    let cosines = part.to_vec();
                    self.append(turn, LedgerEvent::RoundCompared { round, cosines });
                }
            }
            // The set has changed meanwhile, and is compared anew.
            Ok(cosines) if !is_of_these(&self.run, round, &cosines) && !cosines.is_empty() => {}
            // The same question again at once would get the same answer, for ever.
            Ok(_) => {
                let detail = format!("the comparison of round {round} gave no cosines");
                self.compare_later(turn, Refusal::new(Code::Internal, detail));
            }
            Err(refusal) => self.compare_later(turn, refusal),
        }
        self.advance(turn);
    }

    fn compare_later(&mut self, turn: &mut Turn<'_>, refusal: Refusal) {
        let foundry = &mut self.live.foundry;
        foundry.compare_failures = foundry.compare_failures.saturating_add(1);
        foundry.compare_at = turn.now.after(backoff(foundry.compare_failures));
        foundry.compare_trouble = Some(refusal);
        let compare_at = foundry.compare_at;
        self.wake(turn, compare_at, RunTimer::Weights);
    }

    /// Names the inputs of a merge before the merge, in as many events as that takes.
    fn seal(&mut self, turn: &mut Turn<'_>, sync: SyncId, inputs: &[SealedInput]) {
        let mut rest = inputs.len();
        let outliers = self.run.outliers(sync.round);
        for part in inputs.chunks(SEALED_MAX) {
            rest -= part.len();
            let units = part.iter().map(|input| input.unit);
            let reason = |unit| Some((unit, *outliers.get(&unit)?));
            let sealed = LedgerEvent::RoundSealed {
                round: sync.round,
                fragment: sync.fragment,
                inputs: part.to_vec(),
                left_out: units.filter_map(reason).collect(),
                rest: rest as u32,
            };
            self.append(turn, sealed);
        }
        let of_round = self
            .live
            .offers
            .keys()
            .filter(|unit| unit.round == sync.round);
        let gone = of_round.filter(|unit| !self.run.units.contains_key(unit));
        let gone: Vec<UnitId> = gone.copied().collect();
        for unit in gone {
            self.settle(turn, &unit);
        }
    }

    fn merge(&mut self, turn: &mut Turn<'_>, sync: SyncId, inputs: Vec<MergeInput>) {
        self.live.foundry.task = Some(WeightsTask::Merge(sync));
        let base = self.run.version(sync.fragment);
        let unmasking = self.run.unmasking(sync.round).cloned().map(Box::new);
        let order = Order::Merge {
            sync,
            base,
            inputs,
            unmasking,
        };
        self.order(turn, order);
        self.offer_ahead(turn);
    }

    pub(crate) fn merged(
        &mut self,
        turn: &mut Turn<'_>,
        sync: SyncId,
        outcome: Result<Merged, Refusal>,
    ) {
        if self.live.foundry.finishes(WeightsTask::Merge(sync)) {
            let outcome = outcome.and_then(|merged| {
                check_weights(&self.run, sync, &merged.broadcast).map(|()| merged)
            });
            match outcome {
                Ok(merged) => self.live.foundry.merged = Some((sync, merged)),
                // Another merge of the same contributions would give the same weights.
                Err(refusal) if matches!(refusal.code, Code::NotFinite | Code::MaskRange) => {
                    self.halt(turn, &refusal);
                }
                Err(refusal) => self.try_later(turn, refusal),
            }
            self.advance(turn);
        }
    }

    fn close(&mut self, turn: &mut Turn<'_>, sync: SyncId) {
        let merged = self.live.foundry.merged.take();
        let (_, merged) = merged.expect("a round is closed when its merge has ended");
        self.live.foundry.succeeded();
        let (_, inputs) = self.run.next_merge(sync.fragment).expect(ASKED);
        let counting = inputs.iter().filter(|input| input.weight > Weight(0));
        let tokens = counting.map(|input| input.tokens);
        let closed = LedgerEvent::RoundClosed {
            round: sync.round,
            fragment: sync.fragment,
            broadcast: merged.broadcast,
            // `min` also turns NaN into a number: the ledger must read back as it was written.
            norm: merged.norm.min(f64::MAX),
            tokens: tokens.fold(Tokens(0), |sum, tokens| sum + tokens),
        };
        self.append(turn, closed);
        if self.run.all_rounds_closed() {
            // Only the evaluation of the final weights is left.
            self.offer_open(turn);
        }
    }

    fn try_later(&mut self, turn: &mut Turn<'_>, refusal: Refusal) {
        let foundry = &mut self.live.foundry;
        foundry.failures = foundry.failures.saturating_add(1);
        foundry.retry_at = turn.now.after(backoff(foundry.failures));
        foundry.trouble = Some(refusal);
        let retry_at = foundry.retry_at;
        self.wake(turn, retry_at, RunTimer::Weights);
    }

    fn save(&mut self, turn: &mut Turn<'_>, round: Round) {
        self.live.foundry.saving = Some(round);
        let last = self.run.last_snapshot();
        let order = Order::Save {
            round,
            parent: last.map(|snapshot| snapshot.manifest.digest),
            merges: self.run.merges.clone(),
        };
        self.order(turn, order);
    }

    pub(crate) fn saved(
        &mut self,
        turn: &mut Turn<'_>,
        round: Round,
        outcome: Result<Saved, Refusal>,
    ) {
        // An answer that was not asked for changes nothing.
        if self.live.foundry.saving == Some(round) {
            self.live.foundry.saving = None;
            match outcome {
                Ok(saved) => {
                    self.live.foundry.save_failures = 0;
                    self.live.foundry.save_trouble = None;
                    let event = LedgerEvent::SnapshotSaved {
                        round,
                        manifest: saved.manifest,
                        statement: Some(saved.statement),
                    };
                    self.append(turn, event);
                }
                Err(refusal) => self.save_later(turn, refusal),
            }
            self.advance(turn);
        }
    }

    fn save_later(&mut self, turn: &mut Turn<'_>, refusal: Refusal) {
        let foundry = &mut self.live.foundry;
        foundry.save_failures = foundry.save_failures.saturating_add(1);
        foundry.save_at = turn.now.after(backoff(foundry.save_failures));
        foundry.save_trouble = Some(refusal);
        let save_at = foundry.save_at;
        self.wake(turn, save_at, RunTimer::Weights);
    }

    /// Completes the run. This is the last call in its room, which the coordinator then removes.
    fn complete(&mut self, turn: &mut Turn<'_>) {
        self.append(turn, LedgerEvent::RunCompleted);
        for reply in self.live.claims.drain() {
            turn.answer_claim(reply, ClaimOutcome::Complete);
        }
        if let Some(at) = self.run.urls_end() {
            let run = self.run.name().clone();
            turn.out.push(Effect::UrlsEnd { run, at });
        }
        self.publish(turn);
        self.order(turn, Order::Forget);
    }
}

/// The next step of the run. The order matters: a save must be asked for before the next merge
/// changes the weights that it saves.
fn next_step(run: &Run, live: &LiveRun, now: UnixMillis) -> Option<NextStep> {
    let foundry = &live.foundry;
    let held = run.is_held(Hold::Merges);
    // The foundry holds the next round's weights, so it gets no order before the round is closed.
    if let Some((sync, _)) = foundry.merged {
        return (!held).then_some(NextStep::Close(sync));
    }
    if foundry.halted.is_some() {
        return None;
    }
    if let Some(compare) = next_comparison(run, foundry, now) {
        return Some(compare);
    }
    if let Some(seal) = next_seal(run).filter(|_| !held) {
        return Some(seal);
    }
    if let Some(round) = next_dissolution(run, live, now).filter(|_| !held) {
        return Some(NextStep::Dissolve(round));
    }
    if foundry.task.is_some() {
        return None;
    }
    if !foundry.restored {
        return (foundry.retry_at <= now).then_some(NextStep::Restore);
    }
    let closed = run.rounds_closed();
    let started = !run.rounds.is_empty() || run.ready() >= run.spec.policy.workers_min;
    let ends = match run.budget_end() {
        None => false,
        Some(BudgetEnd::Certain) => true,
        Some(BudgetEnd::WithTheseMembers) => live.budget_ends_at.is_some_and(|at| at <= now),
    };
    if let Some(spent) = run.privacy_view().filter(|_| ends) {
        return Some(NextStep::Spend(spent));
    }
    if run.open.is_empty() && !run.all_rounds_closed() && started {
        return Some(NextStep::Open(closed));
    }
    let due = run
        .unsaved()
        .any(|version| run.saves(version) || run.ended_early());
    if due && foundry.saving.is_none() && foundry.save_at <= now {
        return Some(NextStep::Save(closed));
    }
    let mut sealed = run
        .spec
        .fragments()
        .filter_map(|fragment| run.next_merge(fragment));
    if held {
        return None;
    }
    let unmasked = run.sealed_masked().is_none();
    if let Some((sync, inputs)) = sealed
        .next()
        .filter(|_| foundry.retry_at <= now && unmasked)
    {
        return Some(NextStep::Merge(sync, inputs.to_vec()));
    }
    // The initial weights are named by the settings.
    let saved = closed == Round(0)
        || run
            .last_snapshot()
            .is_some_and(|snapshot| snapshot.round == closed);
    (run.all_rounds_closed() && run.units.is_empty() && saved).then_some(NextStep::Complete)
}

/// The seal of the first open round, fragment by fragment, whose closing rule is met.
fn next_seal(run: &Run) -> Option<NextStep> {
    let mut open = run.open.iter();
    open.find_map(|(sync, open)| Some(NextStep::Seal(*sync, due(run, *sync, open)?)))
}

/// The comparison of the first open round that waits for one. If an earlier process wrote a part of
/// it, the same numbers are written again.
fn next_comparison(run: &Run, foundry: &Foundry, now: UnixMillis) -> Option<NextStep> {
    if foundry.comparing.is_some() || foundry.compare_at > now {
        return None;
    }
    run.open.iter().find_map(|(sync, open)| {
        let inputs = to_compare(run, *sync, open);
        (!inputs.is_empty()).then_some(NextStep::Compare(sync.round, inputs))
    })
}

/// True if an answer has a cosine for each contribution that is to be compared now, and no other.
fn is_complete_answer(run: &Run, round: Round, cosines: &[ComparedInput]) -> bool {
    let mut numbers = cosines.iter().map(|one| one.cosine);
    let are_cosines = numbers.all(|one| (-1.0..=1.0).contains(&one));
    !cosines.is_empty() && is_of_these(run, round, cosines) && are_cosines
}

/// True for an answer about each contribution that is to be compared now, and about no other.
fn is_of_these(run: &Run, round: Round, cosines: &[ComparedInput]) -> bool {
    let open = run.open.iter().find(|(sync, _)| sync.round == round);
    let due = open.map_or_else(Vec::new, |(sync, open)| to_compare(run, *sync, open));
    let asked = due
        .iter()
        .map(|input| (input.lease.unit.index, input.lease.epoch));
    let told = cosines.iter().map(|one| (one.unit, one.epoch));
    asked.eq(told)
}

/// A masked round whose sum cannot be had: too few contributions are in, and no other can come, or
/// too few workers reveal shares.
fn next_dissolution(run: &Run, live: &LiveRun, now: UnixMillis) -> Option<Round> {
    if let Some((round, _)) = run.sealed_masked() {
        let ended = live.agreement.ends_at.is_some_and(|at| at <= now);
        return ended.then_some(round);
    }
    let threshold = run.spec.secure_aggregation?.threshold as usize;
    let open = run.open.iter().find(|(sync, open)| {
        open.collects() && run.is_settled(sync.round) && open.inputs().count() < threshold
    });
    open.map(|(sync, _)| sync.round)
}

/// Units without a result.
fn incomplete(run: &Run) -> impl Iterator<Item = UnitId> {
    run.units
        .iter()
        .filter(|(_, unit)| unit.standing != Standing::Done)
        .map(|(unit, _)| *unit)
}

/// True for a failed restore that another try does not mend. A fault of the coordinator or of its
/// credentials can be mended while the run waits.
fn is_final(code: Code) -> bool {
    matches!(code.class(), Class::Final | Class::Evidence)
        && !matches!(code, Code::Internal | Code::ObjectForbidden)
}

/// Refuses weights that the next round cannot start from.
fn check_weights(run: &Run, sync: SyncId, weights: &Weights) -> Result<(), Refusal> {
    let form = run
        .spec
        .check_chunks(&weights.chunks, run.spec.download.kind);
    if weights.round == run.version(sync.fragment).next()
        && weights.codec == run.spec.download
        && form.is_ok()
    {
        return Ok(());
    }
    let (got, codec) = (weights.chunks.count(), weights.codec);
    let form = form.map_or_else(
        |refusal| refusal.detail,
        |()| "as many as there are".to_owned(),
    );
    let detail = format!(
        "merge of {sync} gave {got} chunks ({form}) as {codec:?} for round {}",
        weights.round
    );
    Err(Refusal::new(Code::Internal, detail))
}
