//! A log that begins with the manifest of its owner, and the keys that the manifest does not name.

use audit_core::StreamSequence;
use audit_core::log::{
    Differ, Difference, Events, LogFault, Named, Place, Trusted, Unnamed, check_known, check_named,
    origin, replay_events,
};
use schemas::event::{Event, LedgerEvent, WorkerEvent};
use schemas::log_manifest::{EmitterRole, LogManifest, NamedEmitter};
use schemas::security::SecurityEvent;
use schemas::subject::ledger_subject;
use schemas::{Code, PublicKey, UnixMillis, V};

use crate::log::{DOMAIN, Emitter, Log as Written, Member, PLAN, SENTRY, run};
use crate::tree::{
    Files, SERVICE, code, entries, event, open, published, read, trusted, verify, whole,
};

/// What the log of these tests begins with. Who has signed it is checked elsewhere.
const DOCUMENT: &str = "a.signed.document";

/// A run with a word of the sentry, and its entries behind a manifest.
struct Scene {
    written: Written,
    entries: Vec<Vec<u8>>,
    files: Files,
    trusted: Trusted,
}

fn behind_manifest(entries: &[Vec<u8>]) -> Vec<Vec<u8>> {
    [&[chain::manifest_leaf(DOCUMENT)], entries].concat()
}

impl Scene {
    fn new() -> Self {
        let mut written = Written::write(&PLAN);
        written.security(&mut Emitter::new(SENTRY), SecurityEvent::SentryStopped);
        Self::of(written)
    }

    fn of(written: Written) -> Self {
        let entries = behind_manifest(&entries(&written));
        let files = published(&entries, &[1, 20, entries.len()], SERVICE);
        let trusted = trusted(&written);
        Self {
            written,
            entries,
            files,
            trusted,
        }
    }

    /// A manifest that names everybody.
    fn manifest(&self) -> LogManifest {
        let emitter = |key: &PublicKey, role| NamedEmitter {
            key: key.clone(),
            role,
        };
        LogManifest {
            v: V,
            at: UnixMillis(1),
            origin: origin(DOMAIN),
            heads: vec![],
            emitters: vec![
                emitter(&self.written.coordinator.public, EmitterRole::Coordinator),
                emitter(&Emitter::new(SENTRY).public, EmitterRole::Sentry),
            ],
            enrolment: vec![self.written.coordinator.public.clone()],
            witnesses: None,
        }
    }

    fn named_by(&self, manifest: &LogManifest, heads: &[[u8; 32]]) -> Named {
        let log = open(&self.files, &self.trusted, None).expect("it is whole");
        check_named(&log, &read(&self.files), &self.trusted, manifest, heads).expect("it is whole")
    }

    fn named(&self, manifest: &LogManifest) -> Named {
        self.named_by(manifest, &self.trusted.heads)
    }
}

fn unnamed(index: u64, key: &PublicKey, kind: &'static str) -> Unnamed {
    let key = key.clone();
    Unnamed::Emitter { index, key, kind }
}

#[test]
fn tl_03_a_log_that_begins_with_a_manifest_verifies_like_one_without() {
    let scene = Scene::new();
    let (files, trusted) = (&scene.files, &scene.trusted);
    let log = open(files, trusted, None).expect("it is whole");
    assert_eq!(log.manifest(), Some(DOCUMENT));
    assert_eq!(log.before_events(), 1);
    let events = verify(files, trusted, None).map_err(|fault| fault.to_string());
    let Events { auditor, strangers } = events.expect("nothing is wrong");
    assert_eq!((auditor.evidence(), strangers), (None, 0));
    assert_eq!(auditor.findings(), []);
    let count = scene.entries.len() as u64 - 1;
    assert_eq!(
        auditor.summary().verified,
        count,
        "the manifest is no event"
    );
    assert_eq!(auditor.last(), StreamSequence(count + 1), "the last entry");
    let known = check_known(&log, &read(files), trusted).expect("it is whole");
    assert_eq!(known.contradicted, None);
    // A part of it, up to an entry.
    let until = |until| {
        let replayed = replay_events(
            &log,
            &read(files),
            trusted,
            trusted.auditor(),
            until,
            &mut |_| {},
        );
        replayed.map(|events| events.auditor.summary().verified)
    };
    assert_eq!(until(3), Ok(2));
    assert!(matches!(until(1), Err(LogFault::Unverified(_))));
    // One without is as it was.
    let (_, _, files, trusted) = whole();
    let log = open(&files, &trusted, None).expect("it is whole");
    assert_eq!((log.manifest(), log.before_events()), (None, 0));
}

#[test]
fn fg_07_a_manifest_stands_nowhere_but_at_the_beginning_of_a_log() {
    let scene = Scene::new();
    let plain = &scene.entries[1..];
    for at in [1, plain.len()] {
        for first in [&scene.entries[..1], &[]] {
            let mut moved = [first, plain].concat();
            moved.insert(first.len() + at, chain::manifest_leaf(DOCUMENT));
            let files = published(&moved, &[moved.len()], SERVICE);
            let found = verify(&files, &scene.trusted, None);
            assert_eq!(code(found), Code::LogAltered, "at {at}");
        }
    }
    // Nor is a log that holds nothing else a log of events.
    let files = published(&scene.entries, &[1], SERVICE);
    let fault = verify(&files, &scene.trusted, None).err();
    assert_eq!(fault, Some(LogFault::Empty));
}

#[test]
fn fg_07_the_stream_is_compared_with_the_events_behind_the_manifest() {
    let scene = Scene::new();
    let compared = |skip: &[usize]| {
        let mut differ = Differ::default();
        for (index, entry) in (0..).zip(&scene.entries) {
            differ.entry(index, entry);
        }
        for (place, record) in scene.written.records.iter().enumerate() {
            if !skip.contains(&place) {
                let place = Place::of(&event(record)).expect("it is an event");
                differ.stream(record.stream_sequence.0, place);
            }
        }
        differ.differences().expect("all are events")
    };
    let count = scene.written.records.len();
    assert_eq!(compared(&[]).same, count as u64);
    assert_eq!(compared(&[]).count, 0);
    // The numbers are those of entries.
    let first = &compared(&[0]).first;
    assert!(
        matches!(first[..], [Difference::Altered { index: 1, .. }]),
        "{first:?}"
    );
    let (from, to) = (count as u64, count as u64);
    let tail = [Difference::MissingTail { from, to }];
    assert_eq!(compared(&[count - 1]).first, tail);
    // Elsewhere it is no event.
    let mut differ = Differ::default();
    differ.entry(0, &scene.entries[1]);
    differ.entry(1, &scene.entries[0]);
    let fault = differ.differences().unwrap_err();
    assert!(matches!(fault, LogFault::Entry { index: 1, .. }), "{fault}");
}

#[test]
fn fg_07_the_keys_in_a_manifest_are_named_and_so_are_the_workers_that_they_enrolled() {
    let scene = Scene::new();
    let all = Named {
        services: 2,
        successors: 0,
        workers: 2,
        unnamed: vec![],
    };
    assert_eq!(scene.named(&scene.manifest()), all);
    // A worker that nobody has named is a stranger, as before; so is a service.
    let mut written = Written::write(&PLAN);
    let mut stranger = Member::new(150);
    let reason = "a test".to_owned();
    written.worker(&mut stranger, WorkerEvent::Stopped { reason });
    written.security(&mut Emitter::new(151), SecurityEvent::SentryStopped);
    let scene = Scene::of(written);
    assert_eq!(scene.named(&scene.manifest()).unnamed, []);
}

/// The owner has named the first key of the ledger, and each key names the next. What the first
/// signs after that names nobody.
#[test]
fn tl_28_a_key_that_the_ledger_has_named_is_vouched_for_by_the_one_before() {
    let mut written = Written::write(&PLAN);
    let mut old = written.succeed(90);
    let mut late = Member::new(152);
    written.ledger(Some(run()), late.joined());
    let reason = "a test".to_owned();
    written.worker(&mut late, WorkerEvent::Stopped { reason });
    let said = Event::Ledger(LedgerEvent::CheckpointTaken);
    let subject = ledger_subject(None, &old.public, said.kind());
    let forged = old.speak(DOMAIN, 1_700_000_000_000, None, said);
    written.push(subject, &forged);
    let mut scene = Scene::of(written);
    let (first, second) = (old.public, scene.written.coordinator.public.clone());
    let mut manifest = scene.manifest();
    for named in &mut manifest.emitters {
        if named.role == EmitterRole::Coordinator {
            named.key = first.clone();
        }
    }
    manifest.enrolment = vec![first.clone()];
    scene.trusted.coordinators = vec![first.clone(), second.clone()];
    let named = scene.named(&manifest);
    let counts = (named.services, named.successors, named.workers);
    assert_eq!((counts, named.unnamed), ((1, 1, 3), vec![]));
    // Not where the bundle has it first: then nobody has named it.
    scene.trusted.coordinators = vec![second.clone(), first];
    let unnamed = scene.named(&manifest).unnamed;
    let found = |one: &Unnamed| matches!(one, Unnamed::Emitter { key, .. } if *key == second);
    assert!(unnamed.iter().any(found), "{unnamed:?}");
}

/// A thief of the next key, or of one that was passed over, cannot make a log without a verdict.
#[test]
fn tl_28_a_key_whose_turn_it_never_was_speaks_for_nobody() {
    let mut written = Written::write(&PLAN);
    let mut next = Emitter::new(92);
    let stolen = Member::new(153);
    for said in [LedgerEvent::CheckpointTaken, stolen.joined()] {
        let (run, said) = (Some(run()), Event::Ledger(said));
        let subject = ledger_subject(run.as_ref(), &next.public, said.kind());
        let early = next.speak(DOMAIN, 1_700_000_000_000, run, said);
        written.push(subject, &early);
    }
    let mut scene = Scene::of(written);
    scene.trusted.coordinators.push(next.public);
    let named = scene.named(&scene.manifest());
    let counts = (named.services, named.successors, named.workers);
    assert_eq!((counts, named.unnamed), ((1, 0, 2), vec![]));
}

#[test]
fn fg_07_a_key_that_the_trust_bundle_counts_and_the_owner_does_not_is_found() {
    let scene = Scene::new();
    let (coordinator, sentry) = (
        &scene.written.coordinator.public,
        Emitter::new(SENTRY).public,
    );
    let last = scene.entries.len() as u64 - 1;
    let started = unnamed(1, coordinator, "coordinator-started");
    let stopped = unnamed(last, &sentry, "sentry-stopped");
    let whole = scene.manifest();
    let without = |role| {
        let mut manifest = whole.clone();
        manifest.emitters.retain(|named| named.role != role);
        scene.named(&manifest)
    };
    let found = without(EmitterRole::Coordinator);
    assert_eq!((found.services, found.unnamed), (1, vec![started.clone()]));
    let found = without(EmitterRole::Sentry);
    assert_eq!((found.services, found.unnamed), (1, vec![stopped.clone()]));
    // A key that may speak of something else does not count.
    let mut swapped = whole.clone();
    for named in &mut swapped.emitters {
        named.role = match named.role {
            EmitterRole::Coordinator => EmitterRole::Sentry,
            EmitterRole::Sentry => EmitterRole::Coordinator,
        };
    }
    assert_eq!(scene.named(&swapped).unnamed, [started, stopped]);
    // Nor do workers, if the owner lets no key vouch for them.
    let mut nobody = whole.clone();
    nobody.enrolment.clear();
    let found = scene.named(&nobody);
    assert_eq!((found.services, found.workers), (2, 0));
    let kinds = found.unnamed.iter().map(|unnamed| match unnamed {
        Unnamed::Emitter { kind, .. } => *kind,
        Unnamed::Head => "head",
    });
    assert_eq!(kinds.collect::<Vec<_>>(), ["joined", "joined"]);
    // The newest head is signed by a key that the owner does not name.
    let found = scene.named_by(&whole, &[[7; 32]]);
    assert_eq!(found.unnamed, [Unnamed::Head]);
    let shown = found.unnamed[0].to_string();
    assert!(shown.contains("the newest head"), "{shown}");
}
