//! Tests of who evaluates: no worker that trains waits for an evaluation.

use std::collections::BTreeMap;

use schemas::event::{Event, LedgerEvent};
use schemas::lease::{ClaimOutcome, ClaimReply, LeaseRef, UnitKind};
use schemas::run::RunSpec;
use schemas::{Millis, Round, UnixMillis};

use crate::fixture::*;
use crate::{Answer, ReplyId};

/// A run of two units a round in which every snapshot is evaluated.
fn evaluated(rounds: u64) -> RunSpec {
    let mut spec = spec("demo");
    spec.schedule.rounds = rounds;
    spec.schedule.evaluation_every = 1;
    spec
}

/// A worker, and the time that it takes for a unit of each kind.
struct Hand {
    number: u32,
    training: Millis,
    evaluation: Millis,
    claim: Option<ReplyId>,
    busy: Option<(UnixMillis, LeaseRef)>,
}

fn hand(number: u32, training: u64, evaluation: u64) -> Hand {
    let (training, evaluation) = (Millis::from_secs(training), Millis::from_secs(evaluation));
    Hand {
        number,
        training,
        evaluation,
        claim: None,
        busy: None,
    }
}

impl Hand {
    /// Claims, takes a lease, and hands in a unit that is done. Returns true when the run is over.
    fn act(&mut self, world: &mut World) -> bool {
        if let Some((at, lease)) = self.busy
            && at <= world.now
        {
            self.busy = None;
            world.submit(self.number, lease);
            world.answer_pending();
        }
        if let Some(claim) = self.claim {
            if let Some(manifest) = world.manifests.get(&claim) {
                let span = if manifest.lease.unit.kind == UnitKind::Train {
                    self.training
                } else {
                    self.evaluation
                };
                self.busy = Some((world.now.after(span), manifest.lease));
                self.claim = None;
            } else if let Some(answer) = world.answers.get(&claim) {
                let outcome = match answer {
                    Ok(Answer::Claim(ClaimReply { outcome, .. })) => outcome,
                    other => panic!("a claim was answered {other:?}"),
                };
                self.claim = None;
                if *outcome == ClaimOutcome::Complete {
                    return true;
                }
            }
        }
        if self.busy.is_none() && self.claim.is_none() {
            self.claim = Some(world.claim(self.number));
        }
        false
    }
}

/// Lets these workers do the run to its end.
fn work(spec: RunSpec, mut hands: Vec<Hand>) -> World {
    let mut world = World::with_run(spec);
    for hand in &hands {
        world.join(hand.number);
    }
    for _ in 0..100_000 {
        let over = hands
            .iter_mut()
            .map(|hand| hand.act(&mut world))
            .filter(|over| *over)
            .count();
        if over == hands.len() {
            return world;
        }
        if over == 0 {
            world.wait(Millis(100));
        }
        if world.run().is_complete() {
            return world;
        }
    }
    panic!("the run does not end");
}

fn ledger(world: &World) -> impl Iterator<Item = (UnixMillis, &LedgerEvent)> {
    world.journal.iter().filter_map(|body| match &body.event {
        Event::Ledger(event) => Some((body.time, event)),
        Event::Worker(_) | Event::Security(_) => None,
    })
}

/// The time from the opening of each round until the last of its units got a holder.
fn delays(world: &World) -> BTreeMap<Round, Millis> {
    let mut opened = BTreeMap::new();
    let mut delays = BTreeMap::new();
    for (time, event) in ledger(world) {
        match event {
            LedgerEvent::RoundOpened { round } => {
                opened.insert(*round, time);
            }
            LedgerEvent::LeaseGranted { lease, .. } if lease.unit.kind == UnitKind::Train => {
                delays.insert(lease.unit.round, opened[&lease.unit.round].until(time));
            }
            _ => {}
        }
    }
    delays
}

/// The number of evaluations that were granted before the last round closed.
fn evaluations_on_the_way(world: &World) -> usize {
    let last = ledger(world)
        .filter(|(_, event)| matches!(event, LedgerEvent::RoundClosed { .. }))
        .last();
    let closed = last.expect("a run has rounds").0;
    let granted = ledger(world).filter(|(time, event)| {
        *time < closed
            && matches!(event, LedgerEvent::LeaseGranted { lease, .. } if lease.unit.kind == UnitKind::Evaluate)
    });
    granted.count()
}

/// Time within which this test repeats a claim.
const AT_ONCE: Millis = Millis(200);

/// The time from the run's creation until it was complete.
fn length(world: &World) -> Millis {
    let (first, last) = (
        world.journal.first().expect("it began"),
        world.journal.last().expect("it ended"),
    );
    first.time.until(last.time)
}

#[test]
fn with_as_many_workers_as_units_all_evaluate_together_and_nobody_is_idle() {
    let world = work(evaluated(6), vec![hand(1, 7, 3), hand(2, 7, 3)]);
    let late: Vec<Millis> = delays(&world)
        .into_values()
        .skip(1)
        .filter(|delay| *delay > AT_ONCE)
        .collect();
    assert!(
        late.len() <= 3 && late.iter().all(|delay| *delay <= Millis::from_secs(4)),
        "{late:?}"
    );
    assert!(
        evaluations_on_the_way(&world) >= 4,
        "{}",
        evaluations_on_the_way(&world)
    );
    assert_eq!(
        world.run().evaluations.len(),
        7,
        "every snapshot was evaluated in the end"
    );
    // Six rounds of seven seconds, seven evaluations of three seconds by two workers, and a tick
    // for each claim.
    assert!(
        length(&world) <= Millis::from_secs(6 * 7 + 4 * 3 + 4),
        "{}",
        length(&world)
    );
}

#[test]
fn a_worker_more_than_units_evaluates_beside_the_rounds() {
    let world = work(
        evaluated(6),
        vec![hand(1, 7, 3), hand(2, 7, 3), hand(3, 7, 3)],
    );
    assert!(
        delays(&world)
            .iter()
            .skip(1)
            .all(|(_, delay)| *delay <= AT_ONCE),
        "{:?}",
        delays(&world)
    );
    assert!(
        evaluations_on_the_way(&world) >= 5,
        "{}",
        evaluations_on_the_way(&world)
    );
}

#[test]
fn who_waits_for_a_slower_one_evaluates_meanwhile() {
    let world = work(evaluated(6), vec![hand(1, 6, 3), hand(2, 16, 3)]);
    assert!(
        delays(&world)
            .iter()
            .skip(1)
            .all(|(_, delay)| *delay <= AT_ONCE),
        "{:?}",
        delays(&world)
    );
    assert!(
        evaluations_on_the_way(&world) >= 4,
        "{}",
        evaluations_on_the_way(&world)
    );
    // If there is no idle time, both workers evaluate together, every other round.
    let world = work(evaluated(6), vec![hand(1, 6, 9), hand(2, 9, 9)]);
    let late: Vec<Millis> = delays(&world)
        .into_values()
        .skip(1)
        .filter(|delay| *delay > AT_ONCE)
        .collect();
    assert!(
        late.len() <= 3 && late.iter().all(|delay| *delay <= Millis::from_secs(10)),
        "{late:?}"
    );
}

#[test]
fn evaluations_do_not_pile_up_without_end_and_are_shared_when_they_are_made_up_for() {
    let mut spec = evaluated(20);
    spec.schedule.units = 12;
    let world = work(spec, (1..=12).map(|number| hand(number, 7, 3)).collect());
    let late: Vec<Millis> = delays(&world)
        .into_values()
        .skip(1)
        .filter(|delay| *delay > AT_ONCE)
        .collect();
    assert!(
        (1..=2).contains(&late.len()),
        "two of twenty rounds at most: {late:?}"
    );
    // There are as many workers as evaluations; one after the other they would take eight times as
    // long.
    assert!(
        late.iter().all(|delay| *delay <= Millis::from_secs(4)),
        "{late:?}"
    );
    assert_eq!(world.run().evaluations.len(), 21);
    assert!(
        world.run().weights.len() == 1,
        "copies that nobody reads are forgotten"
    );
}
