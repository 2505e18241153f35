//! Rounds: opening, merging, closing; and what keeps the weights in order: restoring and saving
//! them.

use std::sync::Arc;

use ledger::{Run, Standing};
use schemas::data::{DataManifest, Tokenizer};
use schemas::event::LedgerEvent;
use schemas::lease::{ClaimOutcome, UnitId, Weights};
use schemas::{Class, Code, ObjectRef, Refusal, Round, RunId};

use crate::coordinator::Coordinator;
use crate::deadline::Timer;
use crate::draw::Data;
use crate::effect::Effect;
use crate::input::{Merged, ReplyId};
use crate::live::{LiveRun, backoff};

/// What a run needs next, besides its workers' results.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Restore,
    Open(Round),
    Save(Round),
    Merge(Round),
    Complete,
}

impl Coordinator {
    /// Does whatever is next for a run, until it waits for the outside. May be called at any time.
    pub(crate) fn advance(&mut self, name: &RunId) {
        loop {
            let now = self.now;
            let Ok((run, live)) = self.open_run(name) else {
                return;
            };
            let Some(step) = next_step(run, live, now) else {
                return;
            };
            match step {
                Step::Restore => self.restore(name),
                Step::Open(round) => self.open_round(name, round),
                Step::Save(round) => self.save(name, round),
                Step::Merge(round) => self.merge(name, round),
                Step::Complete => self.complete(name),
            }
        }
    }

    /// Takes up a run that the ledger holds, at the start of this process.
    pub(crate) fn take_up(&mut self, name: &RunId) {
        let Some(run) = self.state.run(name) else {
            return;
        };
        let members: Vec<_> = run
            .members
            .iter()
            .filter(|(_, m)| m.present)
            .map(|(worker, _)| worker.clone())
            .collect();
        let leases: Vec<UnitId> = run.leases().map(|(lease, ..)| lease.unit).collect();
        let units: Vec<UnitId> = incomplete(run).collect();
        self.live.insert(name.clone(), LiveRun::new(&run.spec));
        for worker in &members {
            self.watch(name, worker);
        }
        for unit in leases {
            self.hold_lease(name, unit);
        }
        for unit in units {
            self.offer(name, unit);
        }
        self.mark_changed(name);
        self.advance(name);
    }

    fn restore(&mut self, name: &RunId) {
        let Ok((run, live)) = self.open_run(name) else {
            return;
        };
        live.executor.busy = true;
        let effect = Effect::Restore {
            spec: Box::new(run.spec.clone()),
            snapshot: run.last_snapshot().map(|snapshot| snapshot.manifest),
            merges: run.merges.clone(),
        };
        self.out.push(effect);
    }

    pub(crate) fn data_loaded(&mut self, name: &RunId, manifest: Arc<DataManifest>) {
        let Ok((run, live)) = self.open_run(name) else {
            return;
        };
        let shards = manifest.train.iter().chain(&manifest.held_out);
        live.readable
            .extend(shards.map(|shard| shard.object.digest));
        if let Tokenizer::HuggingFace(object) = &manifest.tokenizer {
            live.readable.insert(object.digest);
        }
        live.data = Some(Data::new(&run.spec, manifest));
        self.answer_reads(name);
        self.repeat_grants(name);
        self.serve(name);
    }

    pub(crate) fn restored(&mut self, name: &RunId, outcome: Result<(), Refusal>) {
        let Some(live) = self.live.get_mut(name) else {
            return;
        };
        if live.executor.restored {
            return;
        }
        live.executor.busy = false;
        match outcome {
            Ok(()) => {
                live.executor.restored = true;
                live.executor.failures = 0;
                live.executor.trouble = None;
            }
            Err(refusal) if is_final(refusal.code) => self.halt(name, &refusal),
            Err(refusal) => self.try_later(name, refusal),
        }
        self.advance(name);
        self.serve(name);
    }

    /// The run cannot go on; whoever asks about it hears why.
    pub(crate) fn halt(&mut self, name: &RunId, refusal: &Refusal) {
        let Some(live) = self.live.get_mut(name) else {
            return;
        };
        live.executor.halted = Some(refusal.clone());
        live.executor.trouble = None;
        let reads = std::mem::take(&mut live.reads)
            .into_values()
            .map(|read| read.reply);
        let waiting: Vec<ReplyId> = live.claims.drain().into_iter().chain(reads).collect();
        for reply in waiting {
            self.reply(reply, Err(refusal.clone()));
        }
        self.mark_changed(name);
    }

    fn open_round(&mut self, name: &RunId, round: Round) {
        self.append(Some(name), LedgerEvent::RoundOpened { round });
        self.offer_new(name, round);
    }

    /// Offers the units of `round`, which were not on offer before.
    fn offer_new(&mut self, name: &RunId, round: Round) {
        let Some(run) = self.state.run(name) else {
            return;
        };
        let units: Vec<UnitId> = incomplete(run).filter(|unit| unit.round == round).collect();
        for unit in units {
            self.offer(name, unit);
        }
    }

    fn merge(&mut self, name: &RunId, round: Round) {
        let Ok((run, live)) = self.open_run(name) else {
            return;
        };
        live.executor.busy = true;
        let inputs = run.inputs.values().cloned().collect();
        self.out.push(Effect::Merge {
            run: name.clone(),
            round,
            inputs,
        });
    }

    pub(crate) fn merged(&mut self, name: &RunId, round: Round, outcome: Result<Merged, Refusal>) {
        let Ok((run, live)) = self.open_run(name) else {
            return;
        };
        if !live.executor.restored || !live.executor.busy || run.open_round() != Some(round) {
            return;
        }
        live.executor.busy = false;
        let outcome = outcome
            .and_then(|merged| check_weights(run, round, &merged.broadcast).map(|()| merged));
        match outcome {
            Ok(merged) => {
                live.executor.failures = 0;
                live.executor.trouble = None;
                let tokens = run
                    .inputs
                    .values()
                    .fold(schemas::Tokens(0), |sum, input| sum + input.tokens);
                // `min` also turns NaN into a number: the ledger must read back as it was written.
                let norm = merged.norm.min(f64::MAX);
                let closed = LedgerEvent::RoundClosed {
                    round,
                    broadcast: merged.broadcast,
                    norm,
                    tokens,
                };
                self.append(Some(name), closed);
                // Only after the last round: the evaluation of the final weights.
                self.offer_new(name, round.next());
            }
            // Made again from the same contributions, the weights would be the same.
            Err(refusal) if refusal.code == Code::NotFinite => self.halt(name, &refusal),
            Err(refusal) => self.try_later(name, refusal),
        }
        self.advance(name);
    }

    fn try_later(&mut self, name: &RunId, refusal: Refusal) {
        let now = self.now;
        let Some(live) = self.live.get_mut(name) else {
            return;
        };
        live.executor.failures = live.executor.failures.saturating_add(1);
        let retry_at = now.after(backoff(live.executor.failures));
        live.executor.retry_at = retry_at;
        live.executor.trouble = Some(refusal);
        self.timers.set(retry_at, Timer::Weights(name.clone()));
    }

    fn save(&mut self, name: &RunId, round: Round) {
        let Ok((run, live)) = self.open_run(name) else {
            return;
        };
        live.executor.saving = true;
        let effect = Effect::Save {
            run: name.clone(),
            round,
            parent: run.last_snapshot().map(|snapshot| snapshot.manifest.digest),
            merges: run.merges.clone(),
        };
        self.out.push(effect);
    }

    pub(crate) fn saved(
        &mut self,
        name: &RunId,
        round: Round,
        outcome: Result<ObjectRef, Refusal>,
    ) {
        let now = self.now;
        let Ok((run, live)) = self.open_run(name) else {
            return;
        };
        if !live.executor.saving {
            return;
        }
        live.executor.saving = false;
        let newer = run.last_snapshot().is_none_or(|last| last.round < round)
            && round <= run.rounds_closed();
        match outcome {
            Ok(manifest) if newer => {
                live.executor.save_failures = 0;
                live.executor.save_trouble = None;
                self.append(Some(name), LedgerEvent::SnapshotSaved { round, manifest });
            }
            Ok(_) => {}
            Err(refusal) => {
                live.executor.save_failures = live.executor.save_failures.saturating_add(1);
                let save_at = now.after(backoff(live.executor.save_failures));
                live.executor.save_at = save_at;
                live.executor.save_trouble = Some(refusal);
                self.timers.set(save_at, Timer::Weights(name.clone()));
            }
        }
        self.advance(name);
    }

    fn complete(&mut self, name: &RunId) {
        self.append(Some(name), LedgerEvent::RunCompleted);
        let held = self
            .live
            .get_mut(name)
            .map(|live| live.claims.drain())
            .unwrap_or_default();
        for reply in held {
            self.answer_claim(reply, ClaimOutcome::Complete);
        }
        self.publish(name);
        self.live.remove(name);
        self.out.push(Effect::Forget { run: name.clone() });
    }
}

/// The order matters: a save must be asked for before the next merge changes the weights that it
/// saves.
fn next_step(run: &Run, live: &LiveRun, now: schemas::UnixMillis) -> Option<Step> {
    let executor = &live.executor;
    if executor.halted.is_some() || executor.busy {
        return None;
    }
    if !executor.restored {
        return (executor.retry_at <= now).then_some(Step::Restore);
    }
    let closed = run.rounds_closed();
    let started = !run.rounds.is_empty() || run.present() >= run.spec.policy.workers_min;
    if run.open_round().is_none() && !run.all_rounds_closed() && started {
        return Some(Step::Open(closed));
    }
    let due = run
        .merges
        .iter()
        .any(|merge| run.spec.saves(merge.round.next()));
    if due && !executor.saving && executor.save_at <= now {
        return Some(Step::Save(closed));
    }
    if run.round_is_full() && executor.retry_at <= now {
        return Some(Step::Merge(closed));
    }
    let saved = run
        .last_snapshot()
        .is_some_and(|snapshot| snapshot.round == closed);
    (run.all_rounds_closed() && run.units.is_empty() && saved).then_some(Step::Complete)
}

/// Units without a result.
fn incomplete(run: &Run) -> impl Iterator<Item = UnitId> {
    run.units
        .iter()
        .filter(|(_, unit)| unit.standing != Standing::Done)
        .map(|(unit, _)| *unit)
}

/// True for a failed restore that another try does not mend. What the coordinator or its
/// credentials do wrong can be mended while the run waits.
fn is_final(code: Code) -> bool {
    matches!(code.class(), Class::Final | Class::Evidence)
        && !matches!(code, Code::Internal | Code::ObjectForbidden)
}

/// Whether published weights are what the next round can start from.
fn check_weights(run: &Run, round: Round, weights: &Weights) -> Result<(), Refusal> {
    let expected = run.spec.model.initial.len();
    if weights.round == round.next()
        && weights.codec == run.spec.download
        && weights.chunks.len() == expected
    {
        return Ok(());
    }
    let (got, codec) = (weights.chunks.len(), weights.codec);
    let detail = format!(
        "merge of round {round} gave {got} chunks as {codec:?} for round {}",
        weights.round
    );
    Err(Refusal::new(Code::Internal, detail))
}
