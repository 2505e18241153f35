//! What a contribution was made from: no contribution counts without a signature over it, and
//! what the ledger gives afterwards is what was signed.

use ledger::Draw;
use schemas::event::{LeaseEnd, LedgerEvent};
use schemas::foundry::{self, Order, SignedProvenance};
use schemas::lease::{LeaseRef, UnitKind, Work};
use schemas::member::{JoinRequest, Session};
use schemas::{Code, WorkerId};

use crate::fixture::*;
use crate::{Effect, ReplyId, ScreeningId, Submission, WorkerRequest};

/// The order to check a result.
fn ordered(world: &mut World) -> (ScreeningId, Option<SignedProvenance>) {
    match world.take_pending(|effect| matches!(effect, order!(Screen))) {
        Effect::Foundry {
            order:
                Order::Screen {
                    screening,
                    provenance,
                    ..
                },
            ..
        } => (screening, provenance.map(|provenance| *provenance)),
        _ => unreachable!("it was picked as one"),
    }
}

fn passes(world: &mut World, screening: ScreeningId) {
    let verdict = Ok(screened(1.0));
    world.foundry(foundry::Answer::Screened { screening, verdict });
}

fn submit(world: &mut World, result: Submission) -> ReplyId {
    world.ask(peer(1), WorkerRequest::Submit(result))
}

fn is_accepted(event: &LedgerEvent) -> bool {
    matches!(event, LedgerEvent::ContributionAccepted { .. })
}

fn second_process(release: &str) -> JoinRequest {
    JoinRequest {
        session: Session(99),
        release: release.to_owned(),
        ..join_request(1)
    }
}

#[test]
fn tl_19_a_contribution_without_a_signed_provenance_and_an_evaluation_with_one_are_refused() {
    let mut settings = spec("demo");
    (settings.schedule.rounds, settings.schedule.evaluation_every) = (1, 1);
    let mut world = World::with_run(settings);
    world.join(1);
    let held = world.lease(1);
    let mut bare = submission(&world.run().spec, 1, held, 0);
    bare.provenance = None;
    let reply = submit(&mut world, bare);
    assert_eq!(world.refusal(reply), Code::ProvenanceInvalid);
    let rejected = |event: &LedgerEvent| matches!(event, LedgerEvent::ContributionRejected { code, .. } if *code == Code::ProvenanceInvalid);
    assert_eq!((world.count(rejected), world.count(is_accepted)), (1, 0));
    for _ in 0..2 {
        let held = world.lease(1);
        assert_eq!(held.unit.kind, UnitKind::Train);
        world.submit(1, held);
        world.answer_pending();
    }
    let held = world.lease(1);
    assert_eq!(held.unit.kind, UnitKind::Evaluate);
    let mut with = submission(&world.run().spec, 1, held, 0);
    assert_eq!(with.provenance, None);
    with.provenance = Some([8; 64]);
    let reply = submit(&mut world, with);
    assert_eq!(world.refusal(reply), Code::ProvenanceInvalid);
    let held = world.lease(1);
    assert_eq!(held.unit.kind, UnitKind::Evaluate);
    let reply = world.submit(1, held);
    assert_eq!(ordered(&mut world).1, None);
    assert!(!world.answers.contains_key(&reply), "it is checked");
}

#[test]
fn tl_19_the_check_of_a_contribution_is_about_what_its_lease_said() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let claim = world.claim(1);
    let manifest = world.manifests[&claim].clone();
    // A restart changes none of it, once the run's data is here again.
    world.restart();
    let held = manifest.lease;
    let early = world.submit(1, held);
    assert_eq!(world.refusal(early), Code::NoAnswer);
    world.answer_pending();
    world.submit(1, held);
    let (screening, provenance) = ordered(&mut world);
    let Some(SignedProvenance { from, signature }) = provenance else {
        panic!("a contribution has one")
    };
    let Work::Train { shards, .. } = manifest.work else {
        panic!("a training unit")
    };
    assert_eq!(*signature, [8; 64]);
    assert_eq!(
        (from.base.clone(), from.shards.clone()),
        (manifest.base, shards)
    );
    assert_eq!(from.release, join_request(1).release);
    passes(&mut world, screening);
    let signed = |event: &LedgerEvent| matches!(event, LedgerEvent::ContributionAccepted { provenance: Some(signature), .. } if **signature == [8; 64]);
    assert_eq!(world.count(signed), 1);
    // A reader of the ledger comes to the same.
    let draw = Draw::new(&world.run().spec, std::sync::Arc::new(data(5, 20)));
    let told = world.run().made_from(&worker(1), &held.unit, &draw);
    assert_eq!(told, Some(from));
}

/// Has a second process join while the result of the first one is checked.
fn replaced_while_checked(release: &str) -> (World, LeaseRef, ReplyId) {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    let held = world.lease(1);
    let reply = world.submit(1, held);
    let (screening, _) = ordered(&mut world);
    world.ask(peer(1), WorkerRequest::Join(second_process(release)));
    passes(&mut world, screening);
    (world, held, reply)
}

#[test]
fn tl_19_a_result_whose_worker_became_another_release_meanwhile_does_not_count() {
    let (mut world, held, reply) = replaced_while_checked("2");
    assert_eq!(world.refusal(reply), Code::Replaced);
    assert_eq!(world.count(is_accepted), 0);
    let orphaned = |event: &LedgerEvent| {
        matches!(event, LedgerEvent::LeaseEnded { lease, worker: of, cause: LeaseEnd::Orphaned, .. }
            if *lease == held && *of == worker(1))
    };
    assert_eq!(world.count(orphaned), 1);
    let strikes = |world: &World, of: &WorkerId| world.run().members[of].rejected;
    assert_eq!(strikes(&world, &worker(1)), 0);
    // A repeat that was under way does not count against the worker either.
    let late = world.submit(1, held);
    assert_eq!(world.refusal(late), Code::Replaced);
    assert_eq!(strikes(&world, &worker(1)), 0);
    // Of the same release it counts, as before.
    let (world, _, reply) = replaced_while_checked(&join_request(1).release);
    assert!(matches!(world.answers.get(&reply), Some(Ok(_))));
    assert_eq!(world.count(is_accepted), 1);
}
