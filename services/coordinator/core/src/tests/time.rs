//! Time in the ledger.

use schemas::UnixMillis;

use crate::fixture::*;

#[test]
fn time_in_the_ledger_never_goes_back_with_the_clock() {
    let mut world = World::with_run(spec("demo"));
    world.join(1);
    world.wait(schemas::Millis::from_secs(10));
    let held = world.lease(1);
    let late = world.now;
    world.now = START;
    world.join(2);
    world.submit(1, held);
    world.answer_pending();
    world.lease(2);
    world.restart();
    let times: Vec<UnixMillis> = world.journal.iter().map(|body| body.time).collect();
    assert!(times.is_sorted(), "{times:?}");
    assert_eq!(
        world
            .journal
            .last()
            .map(|body| (body.event.kind(), body.time)),
        Some(("coordinator-started", late))
    );
}
