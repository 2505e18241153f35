//! The heads that events name, beside a log that has them and beside logs that do not.

use audit_core::log::{Contradiction, Known, Rebuilt, Trusted, check_known};
use schemas::event::{LedgerEvent, WorkerEvent};
use schemas::head::KnownHead;
use serde_bytes::ByteArray;

use crate::log::{DOMAIN, Log as Written, Member, run};
use crate::tree::{SERVICE, entries, open, published, read, trusted};

/// A ledger in which one worker has joined.
struct Scene {
    written: Written,
    member: Member,
}

impl Scene {
    fn new() -> Self {
        let (mut written, member) = (Written::new(DOMAIN, 10), Member::new(11));
        written.ledger(Some(run()), member.joined());
        let mut scene = Self { written, member };
        scene.fill(3);
        scene
    }

    fn fill(&mut self, count: usize) {
        (0..count).for_each(|_| self.written.ledger(None, LedgerEvent::CheckpointTaken));
    }

    /// The worker speaks, and names this head.
    fn speak(&mut self, known: Option<KnownHead>) {
        self.member.emitter.known = known;
        let reason = "a test".to_owned();
        self.written
            .worker(&mut self.member, WorkerEvent::Stopped { reason });
    }

    /// The worker speaks, and names the head over so many events.
    fn name(&mut self, size: usize) {
        let head = head(&entries(&self.written), size);
        self.speak(Some(head));
    }

    fn entries(&self) -> Vec<Vec<u8>> {
        entries(&self.written)
    }

    fn check(&self, entries: &[Vec<u8>]) -> Known {
        check(entries, &trusted(&self.written))
    }
}

/// The head of the log over the first so many entries.
fn head(entries: &[Vec<u8>], size: usize) -> KnownHead {
    let mut tree = Rebuilt::default();
    entries[..size]
        .iter()
        .for_each(|entry| drop(tree.push(entry)));
    KnownHead {
        size: size as u64,
        root: ByteArray::new(tree.root()),
    }
}

/// What the events of a whole log say, whose service has signed it as it is.
fn check(entries: &[Vec<u8>], trusted: &Trusted) -> Known {
    let files = published(entries, &[entries.len()], SERVICE);
    let log = open(&files, trusted, None).expect("it is whole");
    check_known(&log, &read(&files), trusted).expect("it is whole")
}

/// The index of the first event that contradicts the log, and how.
fn contradicted(known: &Known) -> Option<(u64, Contradiction)> {
    let found = known.contradicted.as_ref();
    found.map(|found| (found.index, found.by))
}

#[test]
fn tl_03_heads_that_a_worker_had_seen_are_heads_of_the_log() {
    let mut scene = Scene::new();
    scene.speak(None);
    // None before it; the empty log; right behind the head; the same once more; and a newer one.
    for size in [0, 4, 4, 7] {
        scene.name(size);
        scene.fill(1);
    }
    scene.speak(None);
    let known = scene.check(&scene.entries());
    assert_eq!(contradicted(&known), None);
    assert_eq!(known.named, 4);
    let nothing = Scene::new();
    assert_eq!(nothing.check(&nothing.entries()), Known::default());
}

#[test]
fn fg_07_an_event_that_is_put_before_the_head_that_it_names_is_found() {
    let mut scene = Scene::new();
    scene.name(4);
    let whole = scene.entries();
    assert_eq!(contradicted(&scene.check(&whole)), None, "right behind it");
    for to in [0, 1, 3] {
        let mut moved = whole.clone();
        let event = moved.remove(4);
        moved.insert(to, event);
        let known = scene.check(&moved);
        let expected = Some((to as u64, Contradiction::Covered));
        assert_eq!(contradicted(&known), expected);
        assert_eq!(known.named, 0);
    }
}

#[test]
fn fg_07_a_log_with_more_or_other_events_under_a_named_head_is_found() {
    let mut scene = Scene::new();
    scene.name(4);
    scene.fill(2);
    scene.name(6);
    let whole = scene.entries();
    // Another event stands where the first head was; the order is another; an event is left out.
    let mut inserted = whole.clone();
    inserted.insert(1, whole[3].clone());
    let mut swapped = whole.clone();
    swapped.swap(1, 2);
    for (entries, at) in [(inserted, 5), (swapped, 4)] {
        let known = scene.check(&entries);
        let expected = Some((at, Contradiction::OtherRoot));
        assert_eq!(contradicted(&known), expected, "the first one");
        let text = known.contradicted.expect("it is found").to_string();
        assert!(
            text.contains(scene.member.emitter.public.as_str()),
            "{text}"
        );
        assert!(text.contains("over 4 events"), "{text}");
        assert_eq!(known.named, 0);
    }
    // Behind the first head and before the second.
    let mut later = whole;
    later.swap(4, 5);
    let known = scene.check(&later);
    assert_eq!(contradicted(&known), Some((7, Contradiction::OtherRoot)));
    assert_eq!(known.named, 1);
}

#[test]
fn fg_07_the_heads_of_one_emitter_never_go_back() {
    let mut scene = Scene::new();
    scene.fill(4);
    scene.name(6);
    scene.speak(None);
    scene.name(5);
    let known = scene.check(&scene.entries());
    let back = Some((10, Contradiction::WentBack(6)));
    assert_eq!(contradicted(&known), back);
    // Another emitter may know an older one.
    let mut other = Member::new(12);
    let mut scene = Scene::new();
    scene.written.ledger(Some(run()), other.joined());
    scene.name(4);
    other.emitter.known = Some(head(&scene.entries(), 2));
    let reason = "a test".to_owned();
    scene
        .written
        .worker(&mut other, WorkerEvent::Stopped { reason });
    let known = scene.check(&scene.entries());
    assert_eq!(contradicted(&known), None);
    assert_eq!(known.named, 2);
}

/// The broker may store a message again, and anybody may send it again.
#[test]
fn a_copy_of_an_earlier_event_says_what_it_said() {
    let mut scene = Scene::new();
    scene.name(3);
    scene.name(5);
    let mut entries = scene.entries();
    entries.push(entries[4].clone());
    let known = scene.check(&entries);
    assert_eq!(contradicted(&known), None);
    assert_eq!(known.named, 3);
}

#[test]
fn what_a_stranger_names_is_no_evidence() {
    let mut scene = Scene::new();
    let mut stranger = Member::new(12);
    let root = ByteArray::new([1; 32]);
    stranger.emitter.known = Some(KnownHead { size: 2, root });
    let reason = "a test".to_owned();
    scene
        .written
        .worker(&mut stranger, WorkerEvent::Stopped { reason });
    let entries = scene.entries();
    assert_eq!(scene.check(&entries), Known::default());
    // Once it has joined, what it said counts.
    scene.written.ledger(Some(run()), stranger.joined());
    let known = scene.check(&scene.entries());
    assert_eq!(contradicted(&known), Some((4, Contradiction::OtherRoot)));
    // And so does what a coordinator signs.
    let mut scene = Scene::new();
    scene.written.coordinator.known = Some(KnownHead { size: 2, root });
    scene.fill(1);
    let known = scene.check(&scene.entries());
    assert_eq!(contradicted(&known), Some((4, Contradiction::OtherRoot)));
}
