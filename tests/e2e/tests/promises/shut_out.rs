//! The drill of an incident: one command ends everything that a worker has while it trains, and
//! others do its work.

use std::time::{Duration, Instant};

use e2e::{Recipe, Scripted};
use harness::{Cluster, Operator, Options, PATIENCE, Recorded};
use objects::key::SHUT_OUT_WORDS;
use runtime::exit::EXIT_USAGE;
use runtime::{Bus, clock};
use schemas::event::{Event, LedgerEvent};
use schemas::lease::{LeaseRef, UnitId};
use schemas::run::RunSpec;
use schemas::security::{Refuser, SecurityEvent};
use schemas::{Code, Epoch, ObjectRef, RunId, WorkerId};

use crate::quarantine::{deleted, value, with_credential};
use crate::stopped_urls::{Thief, chunk, refused, to_read};

/// Workers: one is shut out while it trains, and two wait for work.
const WORKERS: usize = 3;
/// Units of a round: one more than workers, so that the first to finish trains a second one.
const UNITS: u32 = WORKERS as u32 + 1;
/// Bound of the time from the command to the last effect, in which nobody has to wait for any time
/// of ours: a bound for machines that do much else.
const LAST_EFFECT: Duration = Duration::from_secs(10);

/// The worker that trains while the others wait, with its lease and the unit that it has done.
struct Suspect {
    worker: WorkerId,
    name: String,
    held: LeaseRef,
    done: UnitId,
}

/// The worker that holds the last unit of the first round.
async fn suspect(cluster: &Cluster) -> Suspect {
    let all = cluster.evidence().await.everything().await;
    let ledger = || all.iter().filter_map(Recorded::ledger);
    let mut granted = ledger().filter_map(|event| match event {
        LedgerEvent::LeaseGranted { lease, worker, .. } => Some((*lease, worker.clone())),
        _ => None,
    });
    let (held, worker) = granted.next_back().expect("it trains");
    let accepted = ledger().find_map(|event| match event {
        LedgerEvent::ContributionAccepted {
            lease, worker: by, ..
        } if *by == worker => Some(lease.unit),
        _ => None,
    });
    Suspect {
        name: cluster.worker_named(&worker),
        done: accepted.expect("it was the first to finish a unit"),
        worker,
        held,
    }
}

/// A run whose first round lacks one unit, which somebody trains while the others wait.
async fn one_unit_left() -> (Cluster, Operator, RunSpec) {
    let options = Options {
        sentry: true,
        ..Options::default()
    };
    let cluster = Cluster::start(options, WORKERS).await;
    // The last unit lasts for longer than what the test does meanwhile, on a busy machine too.
    Recipe::reference(1, UNITS, 2000)
        .set("schedule.evaluation_every=0")
        .set("transfer.upload=fp32")
        .create(&cluster)
        .await;
    let (run, operator) = (cluster.run().clone(), cluster.operator().await);
    let one_left = operator.until(&run, 2 * PATIENCE, |view| {
        view.units_done == UNITS - 1 && view.leases == 1
    });
    one_left.await;
    let spec = operator.run(&run).await.expect("it is there").spec;
    (cluster, operator, spec)
}

#[expect(
    clippy::print_stderr,
    reason = "how long it takes is told, and depends on the machine"
)]
#[tokio::test]
async fn tl_30_tl_31_fg_04_one_command_ends_all_that_a_worker_has_and_gives_its_work_away() {
    let (mut cluster, operator, spec) = one_unit_left().await;
    let (run, thief) = (cluster.run().clone(), Thief::of(&cluster));
    let Suspect {
        worker,
        name,
        held,
        done,
    } = suspect(&cluster).await;
    // Somebody else has its credential too, and asks for URLs with it while it trains.
    let copy = Scripted::connect(&cluster, &name).await;
    assert_eq!(copy.worker, worker);
    let weights = spec.model.initial.objects()[0];
    let (bytes, more) = (chunk(&spec, 0.001), chunk(&spec, 0.002));
    let before = to_read(&copy, weights).await.expect("it is a member");
    thief.reads(&before).await.expect("the store serves it");
    let write = copy.grant(held, ObjectRef::of(&bytes)).await;
    let write = write.expect("it holds the lease");
    thief
        .writes(&write, &bytes)
        .await
        .expect("the store takes it");
    let read = to_read(&copy, weights).await.expect("it is a member");
    let write = copy.grant(held, ObjectRef::of(&more)).await;
    let write = write.expect("it holds the lease");

    let begun = Instant::now();
    let order = with_credential("quarantine", &name);
    let shown = cluster.diloctl_ok(&order).await;
    let answered = begun.elapsed();
    // Its URLs.
    assert!(refused(thief.reads(&read).await));
    assert!(refused(thief.writes(&write, &more).await));
    // Its connection.
    let credentials = cluster.domain().layout().credentials(&name);
    let config = cluster.bus_config(&credentials);
    let connected = Bus::connect("a worker", &config, clock::now()).await;
    let error = connected.expect_err("its key is revoked");
    assert_eq!(error.code(), Code::BusRefused, "{error}");
    let status = cluster.process(&name).exit(PATIENCE).await;
    // Its work: both waiting workers have it.
    let given = operator.until(&run, PATIENCE, |view| view.leases == 2);
    given.await;
    let took = begun.elapsed();
    eprintln!("the command was answered after {answered:?}, the last effect seen after {took:?}");
    assert!(took < LAST_EFFECT, "{took:?}");

    assert_eq!(status.code(), Some(EXIT_USAGE.into()), "{status}");
    let said = [
        ("lease ended", held.to_string()),
        ("contributions withdrawn", first(done).to_string()),
        ("units open again", "2".to_owned()),
    ];
    for (title, text) in said {
        assert_eq!(value(&shown, title), Some(text), "{shown}");
    }
    let urls = value(&shown, "urls").expect("it is printed");
    assert!(urls.starts_with("the store refuses them"), "{urls}");
    assert!(deleted(&shown).is_some_and(|count| count > 0), "{shown}");
    let credential = value(&shown, "credential").expect("it is printed");
    assert!(credential.starts_with("revoked; "), "{credential}");
    its_refusals_are_in_the_record(&cluster).await;
    operator.until_complete(&run).await;
    cluster.stop_well(&["audit"]).await;
    cluster.record_verifies().await;
    let all = cluster.evidence().await.everything().await;
    others_did_it(&all, &run, &worker, [held.unit, done]);
}

/// The lease under which a unit is trained that nobody has failed.
const fn first(unit: UnitId) -> LeaseRef {
    LeaseRef {
        unit,
        epoch: Epoch(1),
    }
}

/// The store answers such a URL with status 403, and that is an event.
async fn its_refusals_are_in_the_record(cluster: &Cluster) {
    for subject in ["GET blobs", "PUT incoming"] {
        let refused = |one: &Recorded| match &one.body.event {
            Event::Security(SecurityEvent::RequestRefused { by, seen }) => {
                let reason = seen.reason.contains(SHUT_OUT_WORDS);
                *by == Refuser::Store && reason && seen.subject == subject
            }
            _ => false,
        };
        let mut evidence = cluster.evidence().await;
        evidence.until(subject, refused).await;
    }
}

/// Nothing of the worker came after the order, and others handed in its two units.
fn others_did_it(all: &[Recorded], run: &RunId, worker: &WorkerId, units: [UnitId; 2]) {
    let of_run = all.iter().filter(|one| one.body.run.as_ref() == Some(run));
    let ledger: Vec<&LedgerEvent> = of_run.filter_map(Recorded::ledger).collect();
    let order = ledger.iter().position(|event| {
        matches!(event, LedgerEvent::WorkerQuarantined { worker: of, withdrawn: 1, lease: Some(_), .. } if of == worker)
    });
    let after = &ledger[order.expect("it is in the ledger")..];
    for event in after {
        let by = match event {
            LedgerEvent::WorkerJoined { worker, .. }
            | LedgerEvent::LeaseGranted { worker, .. }
            | LedgerEvent::ContributionAccepted { worker, .. } => Some(worker),
            _ => None,
        };
        assert_ne!(by, Some(worker), "{event:?}");
    }
    for unit in units {
        let handed_in = after.iter().any(|event| {
            matches!(event, LedgerEvent::ContributionAccepted { lease, .. } if lease.unit == unit && lease.epoch == Epoch(2))
        });
        assert!(handed_in, "{unit}");
    }
}
