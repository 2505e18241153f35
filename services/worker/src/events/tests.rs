//! The chain of a worker's events on its disk.

use chain::{Claimed, Signatures};
use schemas::Message as _;
use schemas::event::EventBody;

use super::*;

fn open(path: &Path, key: &Arc<AuditKey>) -> Chain {
    let worker = format!("U{}", "B".repeat(55))
        .parse()
        .expect("the form of a user key");
    Chain::open(
        path,
        Arc::clone(key),
        "demo".parse().expect("a run name"),
        worker,
    )
    .expect("usable")
}

fn event() -> WorkerEvent {
    WorkerEvent::Stopped {
        reason: "test".to_owned(),
    }
}

fn body(pending: &Pending) -> (Vec<u8>, EventBody) {
    let bytes = HEXLOWER.decode(pending.body.as_bytes()).expect("hex");
    let body = EventBody::decode(&bytes).expect("an event");
    (bytes, body)
}

#[test]
fn the_chain_goes_on_over_restarts_without_gap_or_fork() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let path = scratch.path().join("events.json");
    let key = Arc::new(AuditKey::generate());
    let mut previous = None;
    for sequence in 0..6 {
        // Opened anew each time, as by a restart between any two events.
        let mut chain = open(&path, &key);
        assert_eq!(chain.unacknowledged(), None);
        let pending = chain
            .append(UnixMillis(sequence), None, event())
            .expect("written");
        let (bytes, body) = body(&pending);
        assert_eq!(
            (body.sequence, body.previous),
            (ChainSequence(sequence), previous)
        );
        previous = Some(Digest::of(&bytes));
        // After a crash before the acknowledgement, the very same bytes are sent again.
        let mut chain = open(&path, &key);
        assert_eq!(chain.unacknowledged(), Some(pending));
        chain.acknowledged().expect("written");
    }
}

/// The folder of a running worker is renamed, and another worker is started in the old place: a
/// second end of the chain there would fork the chain for good.
#[test]
fn a_folder_that_was_moved_away_is_not_made_again() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let (old, new) = (scratch.path().join("old"), scratch.path().join("new"));
    std::fs::create_dir(&old).expect("made");
    let key = Arc::new(AuditKey::generate());
    let mut running = open(&old.join("events.json"), &key);
    running
        .append(UnixMillis(1), None, event())
        .expect("written");
    std::fs::rename(&old, &new).expect("moved");
    let failure = running
        .append(UnixMillis(2), None, event())
        .expect_err("the folder is gone");
    assert_eq!(failure.code(), Code::WorkerChainInvalid);
    assert!(failure.to_string().contains("moved away"), "{failure}");
    assert!(!old.exists());
    drop(running);
    let pending = open(&new.join("events.json"), &key)
        .append(UnixMillis(3), None, event())
        .expect("written");
    assert_eq!(
        body(&pending).1.sequence,
        ChainSequence(1),
        "what was not written is not part of the chain"
    );
}

/// A broker that acknowledged an event may lose it: until a head covers it, it is kept.
#[test]
fn ls_04_a_recorded_event_is_kept_over_restarts_until_a_head_covers_it() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let path = scratch.path().join("events.json");
    let key = Arc::new(AuditKey::generate());
    let mut bodies = Vec::new();
    for at in 0..3 {
        let mut chain = open(&path, &key);
        let pending = chain
            .append(UnixMillis(at), None, event())
            .expect("written");
        bodies.push(pending.body.clone());
        chain.recorded(UnixMillis(at)).expect("written");
        assert_eq!(chain.unacknowledged(), None, "it is not sent again");
    }
    let kept = |chain: &Chain| -> Vec<(u64, String)> {
        let asked = chain.end.uncovered.asked();
        asked
            .map(|one| (one.sequence.get(), one.body.clone()))
            .collect()
    };
    let mut chain = open(&path, &key);
    let all: Vec<_> = (0..).zip(bodies.clone()).collect();
    assert_eq!(kept(&chain), all);
    let covered = [ChainSequence(0), ChainSequence(2)];
    let taken = chain.change(|outbox| outbox.cover(&covered));
    taken.expect("written");
    assert_eq!(kept(&open(&path, &key)), [(1, bodies[1].clone())]);
    // An event that is refused for good is nobody's to cover.
    chain.append(UnixMillis(9), None, event()).expect("written");
    chain.acknowledged().expect("written");
    assert_eq!(kept(&open(&path, &key)).len(), 1);
}

/// A file of an earlier build has no outbox.
#[test]
fn the_end_of_a_chain_of_an_earlier_build_is_read() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let path = scratch.path().join("events.json");
    let key = Arc::new(AuditKey::generate());
    let mut chain = open(&path, &key);
    chain.append(UnixMillis(1), None, event()).expect("written");
    let text = std::fs::read_to_string(&path).expect("ours");
    assert!(!text.contains("uncovered"), "{text}");
    assert!(open(&path, &key).end.uncovered.is_empty());
}

#[test]
fn another_key_has_a_chain_of_its_own() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let path = scratch.path().join("events.json");
    let first = Arc::new(AuditKey::generate());
    open(&path, &first)
        .append(UnixMillis(1), None, event())
        .expect("written");
    let mut chain = open(&path, &Arc::new(AuditKey::generate()));
    assert_eq!(chain.unacknowledged(), None);
    let pending = chain.append(UnixMillis(2), None, event()).expect("written");
    let (_, body) = body(&pending);
    assert_eq!((body.sequence, body.previous), (ChainSequence(0), None));
}

/// Only the former key could send its events again, so the file that has them is put aside.
#[test]
fn what_no_head_covers_of_a_former_key_is_put_aside() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let path = scratch.path().join("events.json");
    let aside = scratch.path().join("events.former.json");
    let first = Arc::new(AuditKey::generate());
    let mut chain = open(&path, &first);
    chain.append(UnixMillis(1), None, event()).expect("written");
    chain.acknowledged().expect("written");
    let second = Arc::new(AuditKey::generate());
    open(&path, &second);
    assert!(!aside.exists(), "nothing waits");
    chain.append(UnixMillis(1), None, event()).expect("written");
    chain.recorded(UnixMillis(1)).expect("written");
    let before = std::fs::read(&path).expect("ours");
    let next = open(&path, &second);
    assert_eq!(std::fs::read(&aside).expect("put aside"), before);
    assert!(next.end.uncovered.is_empty(), "it cannot sign these");
}

#[test]
fn a_damaged_end_is_not_skipped() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let path = scratch.path().join("events.json");
    std::fs::write(&path, b"{\"v\":1}").expect("written");
    let worker = format!("U{}", "B".repeat(55))
        .parse()
        .expect("the form of a user key");
    let opened = Chain::open(
        &path,
        Arc::new(AuditKey::generate()),
        "demo".parse().expect("a name"),
        worker,
    );
    assert_eq!(
        opened.expect_err("damaged").code(),
        Code::WorkerChainInvalid
    );
}

#[test]
fn ls_04_only_what_is_refused_for_good_is_given_up() {
    assert!(is_final(Code::ChainForked) && is_final(Code::EventRefused));
    for again in [
        Code::EventLater,
        Code::NoAnswer,
        Code::BusDenied,
        Code::MessageInvalid,
    ] {
        assert!(!is_final(again) && !is_shut_out(again), "{again}");
    }
    let kept = Code::WorkerQuarantined;
    assert!(is_shut_out(kept) && !is_final(kept));
    assert!(!is_shut_out(Code::EventRefused) && !is_shut_out(Code::ChainForked));
}

#[test]
fn what_is_sent_verifies_from_its_own_bytes() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let key = Arc::new(AuditKey::generate());
    let pending = open(&scratch.path().join("events.json"), &key)
        .append(UnixMillis(1), None, event())
        .expect("written");
    let (bytes, body) = body(&pending);
    let sent = key.sign_event("domain", bytes).encode();
    let entry = Claimed::read(&sent)
        .expect("it reads back")
        .open(&Signatures::new("domain", []))
        .expect("it verifies");
    assert_eq!(entry.body, body);
}

#[test]
fn tl_03_an_event_names_the_head_that_was_known_when_it_was_written() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let mut chain = open(
        &scratch.path().join("events.json"),
        &Arc::new(AuditKey::generate()),
    );
    let head = |size| KnownHead {
        size,
        root: ByteArray::new([3; 32]),
    };
    for known in [None, Some(head(7)), Some(head(9)), None] {
        let pending = chain.append(UnixMillis(1), known, event());
        let (_, body) = body(&pending.expect("written"));
        assert_eq!(body.known, known);
    }
}

#[tokio::test]
async fn tl_17_an_event_that_is_left_out_of_the_chain_is_not_told_as_recorded() {
    let (sender, mut queue) = mpsc::channel(2);
    let known = Arc::new(watch::channel(None).0);
    let events = Events { sender, known };
    let (first, second) = (events.record(event()), events.record(event()));
    // There is no room for a third one.
    let left_out = events.record(event()).await;
    assert_eq!(
        left_out.map_err(|refusal| refusal.code),
        Err(Code::EventLater)
    );
    let (queued, told) = queue.try_recv().expect("it waits");
    assert_eq!(queued, event());
    told.expect("somebody waits for it")
        .send(Ok(()))
        .expect("still");
    assert_eq!(first.await, Ok(()));
    // The publisher is gone.
    drop(queue);
    assert_eq!(
        second.await.map_err(|refusal| refusal.code),
        Err(Code::EventLater)
    );
}
