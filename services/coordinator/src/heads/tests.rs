//! Tests of the follower of the log, with a log in memory.

use std::collections::BTreeMap;

use identity::AuditKey;
use kit::SignedLog;
use schemas::event::{Event, LedgerEvent};

use super::*;

const NOW: UnixMillis = UnixMillis(1_700_000_000_000);
const WITHIN: Millis = Millis::from_secs(600);

/// An audit service: its log, and the places of the ledger's events in it.
struct Service {
    log: SignedLog,
    places: BTreeMap<ChainSequence, u64>,
}

impl Service {
    fn of(log: SignedLog) -> Self {
        let places = BTreeMap::new();
        Self { log, places }
    }

    /// Signs a head over these events of the ledger behind those before it, and something else.
    fn sign<'a>(&mut self, events: impl IntoIterator<Item = &'a Sent>) {
        let mut entries = Vec::new();
        for (index, sent) in (self.log.size()..).zip(events) {
            let event = SignedEvent::decode(&sent.message).expect("it is one");
            entries.push(chain::leaf(&event).expect("its key is one"));
            self.places.insert(sent.sequence, index);
        }
        entries.push(b"of somebody else".to_vec());
        self.log.sign(entries);
    }

    fn answer(&self, question: &HeadRequest) -> HeadReply {
        let place = |sequence: &ChainSequence| Some((*sequence, *self.places.get(sequence)?));
        let known: Vec<_> = question.events.iter().filter_map(place).collect();
        self.log.answer(question.known, &known)
    }
}

struct Scene {
    scratch: tempfile::TempDir,
    service: Service,
    key: AuditKey,
    end: chain::End,
}

impl Scene {
    fn new() -> Self {
        Self {
            scratch: tempfile::tempdir().expect("a scratch folder"),
            service: Service::of(SignedLog::default()),
            key: AuditKey::generate(),
            end: chain::End::default(),
        }
    }

    fn mark(&self) -> PathBuf {
        self.scratch.path().join("ledger.mark")
    }

    /// The coordinator is started.
    fn begin(&self) -> (LedgerHeads, Follower) {
        let (mark, own) = (self.mark(), self.key.public().clone());
        let (heads, follower) = LedgerHeads::open(&mark, &self.service.log.trust, own, WITHIN);
        (heads, follower.expect("heads are signed"))
    }

    /// The next event of the ledger.
    fn event(&mut self) -> Sent {
        let event = Event::Ledger(LedgerEvent::CheckpointTaken);
        let draft = self.end.write(self.key.public(), NOW, None, event);
        self.end = draft.end();
        let domain = self.service.log.trust.domain.as_str();
        Sent {
            sequence: draft.sequence,
            message: self.key.sign_event(domain, draft.body).encode(),
        }
    }

    /// The coordinator asks, and takes the answer of this service.
    fn ask(follower: &mut Follower, service: &Service) {
        let (question, entries) = follower.question();
        follower.take(NOW, &service.answer(&question), &entries);
    }

    fn file(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }
}

fn uncovered(heads: &LedgerHeads) -> (u64, Option<Code>) {
    let view = heads.view(NOW).expect("the log is followed");
    (view.uncovered, view.code)
}

#[test]
fn ls_04_events_of_the_ledger_wait_until_a_verified_head_covers_them_also_after_a_restart() {
    let mut scene = Scene::new();
    let (heads, mut follower) = scene.begin();
    assert_eq!(heads.known(), None);
    let events: Vec<Sent> = (0..3).map(|_| scene.event()).collect();
    heads.appended(NOW, events[0].clone());
    scene.service.sign([]);
    Scene::ask(&mut follower, &scene.service);
    assert_eq!(uncovered(&heads), (1, None), "the head does not cover it");
    events[1..]
        .iter()
        .for_each(|sent| heads.appended(NOW, sent.clone()));
    assert_eq!(uncovered(&heads), (3, None));
    scene.service.sign(&events[..2]);
    Scene::ask(&mut follower, &scene.service);
    // The proof is of the first, since the last one of the second span is not there yet.
    assert_eq!(uncovered(&heads), (2, None));
    scene.service.sign(&events[2..]);
    Scene::ask(&mut follower, &scene.service);
    assert_eq!(uncovered(&heads), (0, None));
    let (newest, _) = scene.service.log.newest();
    let known = heads.known().expect("it was verified");
    assert_eq!((known.size, *known.root), (newest.size, newest.root));
    // Another process continues from here, and knows which events are covered; it names no head
    // that only its predecessor has verified.
    let (heads, mut follower) = scene.begin();
    assert_eq!(heads.known(), None);
    let next = scene.event();
    heads.appended(NOW, next.clone());
    assert_eq!(uncovered(&heads), (1, None));
    assert_eq!(
        heads.view(NOW.after(WITHIN)).and_then(|view| view.code),
        Some(Code::LedgerUncovered)
    );
    scene.service.sign([&next]);
    Scene::ask(&mut follower, &scene.service);
    assert_eq!(uncovered(&heads), (0, None));
    assert!(heads.known().is_some());
}

/// The service says where an event should be, and has another one there, or shows too little.
#[test]
fn ls_04_what_the_service_says_of_an_event_counts_only_with_its_proof() {
    let mut scene = Scene::new();
    let (heads, mut follower) = scene.begin();
    let event = scene.event();
    heads.appended(NOW, event.clone());
    let other = {
        let mut other = Scene::new();
        other.event()
    };
    scene.service.sign([&other, &other]);
    Scene::ask(&mut follower, &scene.service);
    assert_eq!(uncovered(&heads).0, 1, "another event lies there");
    scene.service.sign([&event]);
    let (question, entries) = follower.question();
    let honest = scene.service.answer(&question);
    let mut cut = honest.clone();
    cut.events
        .iter_mut()
        .for_each(|one| one.hashes.truncate(one.hashes.len() - 1));
    let mut moved = honest.clone();
    moved.events.iter_mut().for_each(|one| one.index -= 1);
    for reply in [cut, moved] {
        follower.take(NOW, &reply, &entries);
        assert_eq!(uncovered(&heads).0, 1, "{reply:?}");
    }
    follower.take(NOW, &honest, &entries);
    assert_eq!(uncovered(&heads).0, 0);
}

#[test]
fn tl_03_a_head_that_goes_back_or_forks_is_kept_as_evidence_and_not_named() {
    let mut scene = Scene::new();
    let (heads, mut follower) = scene.begin();
    let events: Vec<Sent> = (0..4).map(|_| scene.event()).collect();
    heads.appended(NOW, events[1].clone());
    scene.service.sign(&events[..2]);
    Scene::ask(&mut follower, &scene.service);
    let known = heads.known().expect("it was verified");
    let mut shorter = Service::of(scene.service.log.fork());
    shorter.sign(&events[..1]);
    let mut forked = Service::of(scene.service.log.fork());
    forked.sign([&events[1], &events[0]]);
    let mut longer = Service::of(scene.service.log.fork());
    longer.sign([&events[1], &events[0], &events[2], &events[3]]);
    let mut first = None;
    for service in [&shorter, &forked, &longer] {
        heads.appended(NOW, events[3].clone());
        Scene::ask(&mut follower, service);
        assert_eq!(uncovered(&heads).1, Some(Code::HeadContradicted));
        assert_eq!(heads.known(), Some(known));
        let text = std::fs::read(scene.file("ledger.mark.head-refused")).expect("it is kept");
        let first = first.get_or_insert_with(|| text.clone());
        assert_eq!(*first, text, "the first one is");
    }
    assert_eq!(uncovered(&heads).0, 2, "a refused head covers nothing");
    // A restart forgets nothing, and says it again.
    let (heads, mut follower) = scene.begin();
    assert!(!follower.said.contains(&Code::HeadContradicted));
    Scene::ask(&mut follower, &longer);
    assert_eq!(uncovered(&heads).1, Some(Code::HeadContradicted));
    assert!(follower.said.contains(&Code::HeadContradicted));
    // What continues the kept head is taken, and the evidence stays.
    scene.service.sign(&events[2..]);
    Scene::ask(&mut follower, &scene.service);
    assert_eq!(uncovered(&heads).1, None);
    assert!(!scene.file("ledger.mark.head-refused").exists());
    assert!(scene.file("ledger.mark.head-refused.before").exists());
    assert!(
        !follower.said.contains(&Code::HeadContradicted),
        "it is news"
    );
    // A head of a key that the bundle does not name is none.
    let mut stranger = Service::of(scene.service.log.strangers());
    stranger.sign(&events);
    Scene::ask(&mut follower, &stranger);
    assert_eq!(uncovered(&heads).1, Some(Code::HeadInvalid));
}

#[test]
fn a_coordinator_that_cannot_read_its_head_follows_no_log() {
    let scene = Scene::new();
    std::fs::write(scene.file("ledger.mark.head"), "{}").expect("a file");
    let (mark, own) = (scene.mark(), scene.key.public().clone());
    let (heads, follower) = LedgerHeads::open(&mark, &scene.service.log.trust, own.clone(), WITHIN);
    assert!(follower.is_none());
    // It says so as long as it runs, whatever it appends.
    assert_eq!(uncovered(&heads), (0, Some(Code::HeadUnkept)));
    let event = Scene::new().event();
    heads.appended(NOW, event);
    assert_eq!(uncovered(&heads), (1, Some(Code::HeadUnkept)));
    assert_eq!(heads.known(), None);
    let failure = Memory::open(&mark, &scene.service.log.trust).expect_err("it is damaged");
    assert_eq!(failure.code(), Code::HeadUnkept);
    // Without a key for heads there is nothing to follow.
    let trust = TrustBundle {
        head_keys: Vec::new(),
        ..scene.service.log.trust.clone()
    };
    let (heads, follower) = LedgerHeads::open(&scene.file("other"), &trust, own, WITHIN);
    assert!(follower.is_none() && heads.view(NOW).is_none());
}

/// Anybody who can answer could send such a text, before a fork is shown or after it.
#[test]
fn tl_03_an_answer_that_nobody_has_signed_neither_hides_a_fork_nor_takes_the_place_of_its_text() {
    let mut scene = Scene::new();
    let (heads, mut follower) = scene.begin();
    let events: Vec<Sent> = (0..3).map(|_| scene.event()).collect();
    scene.service.sign(&events[..2]);
    Scene::ask(&mut follower, &scene.service);
    let mut stranger = Service::of(scene.service.log.strangers());
    stranger.sign(&events);
    Scene::ask(&mut follower, &stranger);
    assert_eq!(uncovered(&heads).1, Some(Code::HeadInvalid));
    assert!(!scene.file("ledger.mark.head-refused").exists());
    assert!(follower.said.contains(&Code::HeadInvalid));
    let mut forked = Service::of(scene.service.log.fork());
    forked.sign([&events[1], &events[0]]);
    Scene::ask(&mut follower, &forked);
    Scene::ask(&mut follower, &stranger);
    assert_eq!(uncovered(&heads).1, Some(Code::HeadContradicted));
    assert!(follower.said.contains(&Code::HeadContradicted));
    let text = |name: &str| std::fs::read(scene.file(name)).ok();
    let signed = |service: &Service| {
        let (_, note) = service.log.newest();
        Some(note.as_bytes().to_vec())
    };
    assert_eq!(text("ledger.mark.head-refused"), signed(&forked));
    // A second fork, of a newer head, does not take the place of the first one's text.
    let mut honest = scene.service;
    honest.sign(&events[2..]);
    Scene::ask(&mut follower, &honest);
    let mut second = Service::of(honest.log.fork());
    second.sign([&events[2]]);
    Scene::ask(&mut follower, &second);
    honest.sign([]);
    Scene::ask(&mut follower, &honest);
    let scratch = scene.scratch.path();
    let text = |name: &str| std::fs::read(scratch.join(name)).ok();
    assert_eq!(text("ledger.mark.head-refused.before"), signed(&forked));
    assert_eq!(text("ledger.mark.head-refused.before.2"), signed(&second));
    assert_eq!(text("ledger.mark.head-refused"), None);
}

#[test]
fn tl_03_a_fork_is_said_and_shown_also_where_its_text_cannot_be_written() {
    let mut scene = Scene::new();
    let (heads, mut follower) = scene.begin();
    let events: Vec<Sent> = (0..2).map(|_| scene.event()).collect();
    scene.service.sign(&events);
    Scene::ask(&mut follower, &scene.service);
    let mut forked = Service::of(scene.service.log.fork());
    forked.sign([&events[1], &events[0]]);
    let (folder, away) = (
        scene.scratch.path(),
        scene.scratch.path().with_extension("away"),
    );
    std::fs::rename(folder, &away).expect("ours");
    for _ in 0..2 {
        Scene::ask(&mut follower, &forked);
        assert_eq!(uncovered(&heads).1, Some(Code::HeadContradicted));
        let said = [Code::HeadContradicted, Code::HeadUnkept];
        assert_eq!(follower.said, BTreeSet::from(said));
        // Nothing is to be written here, so nothing has succeeded.
        follower.remember(NOW);
    }
    std::fs::rename(&away, folder).expect("ours");
    Scene::ask(&mut follower, &forked);
    assert!(scene.file("ledger.mark.head-refused").is_file());
    assert_eq!(follower.said, BTreeSet::from([Code::HeadContradicted]));
}

/// Each of these lives ends before it has had a minute to see a head.
#[test]
fn ls_04_a_coordinator_that_ends_soon_again_and_again_says_that_events_wait() {
    let mut scene = Scene::new();
    let (heads, mut follower) = scene.begin();
    let events: Vec<Sent> = (0..12).map(|_| scene.event()).collect();
    heads.appended(NOW, events[0].clone());
    scene.service.sign(&events[..1]);
    Scene::ask(&mut follower, &scene.service);
    heads.appended(NOW, events[1].clone());
    follower.remember(NOW);
    let mut now = NOW.after(WITHIN);
    let mut silent = 0;
    for event in &events[2..] {
        let (heads, mut follower) = scene.begin();
        heads.appended(now, event.clone());
        let view = heads.view(now).expect("the log is followed");
        if view.code.is_some() {
            assert_eq!(view.code, Some(Code::LedgerUncovered));
            break;
        }
        follower.remember(now);
        silent += 1;
        now = now.after(Millis::from_secs(20));
    }
    assert_eq!(silent, 6);
    // A head over the oldest event ends that count.
    let (heads, mut follower) = scene.begin();
    heads.appended(now, events[2].clone());
    scene.service.sign(&events[1..3]);
    Scene::ask(&mut follower, &scene.service);
    let kept = std::fs::read_to_string(scene.file("ledger.mark.head")).expect("it is there");
    assert!(!kept.contains("\"had\":"), "{kept}");
}

#[test]
fn ls_04_a_restart_gives_events_that_wait_no_whole_time_again() {
    let mut scene = Scene::new();
    let (heads, mut follower) = scene.begin();
    let events: Vec<Sent> = (0..3).map(|_| scene.event()).collect();
    heads.appended(NOW, events[0].clone());
    scene.service.sign(&events[..1]);
    Scene::ask(&mut follower, &scene.service);
    assert_eq!(uncovered(&heads), (0, None));
    // The next one waits, and its time is on the disk before anybody is asked about it.
    heads.appended(NOW, events[1].clone());
    follower.remember(NOW);
    for minutes in 1..=3 {
        let (heads, mut follower) = scene.begin();
        let now = NOW.after(Millis::from_secs(60 * minutes));
        follower.remember(now);
        Scene::ask(&mut follower, &scene.service);
        heads.appended(now, events[2].clone());
        follower.remember(now);
        let view = heads.view(NOW.after(WITHIN)).expect("the log is followed");
        assert_eq!(view.since, Some(NOW));
        assert_eq!(view.code, Some(Code::LedgerUncovered));
    }
    let (heads, mut follower) = scene.begin();
    heads.appended(NOW, events[2].clone());
    scene.service.sign(&events[1..]);
    Scene::ask(&mut follower, &scene.service);
    // Nothing waits any more, and a later event has its own time.
    let next = scene.event();
    let (heads, _) = scene.begin();
    let late = NOW.after(WITHIN);
    heads.appended(late, next);
    assert_eq!(heads.view(late).and_then(|view| view.since), Some(late));
}

#[test]
fn a_question_that_the_broker_denies_is_said_once_until_one_is_answered() {
    let (_, mut follower) = Scene::new().begin();
    let subject = || ledger_head_subject(AuditKey::generate().public());
    let direction = runtime::bus::Direction::Publish;
    let denied = BusError::Denied {
        direction,
        subject: subject(),
    };
    let lost = BusError::Lost { subject: subject() };
    follower.heard(Some(&lost));
    assert!(follower.said.is_empty(), "others are told by their effects");
    follower.heard(Some(&denied));
    assert_eq!(follower.said, BTreeSet::from([denied.code()]));
    follower.heard(Some(&lost));
    assert!(!follower.said.is_empty(), "nothing was answered");
    follower.heard(None);
    assert!(follower.said.is_empty(), "the next one is news");
}

/// Each denied question is in the record as one.
#[test]
fn a_question_that_the_broker_denies_is_asked_again_much_later() {
    let subject = || ledger_head_subject(AuditKey::generate().public());
    let direction = runtime::bus::Direction::Publish;
    let denied = Err(BusError::Denied {
        direction,
        subject: subject(),
    });
    let lost = Err(BusError::Lost { subject: subject() });
    assert_eq!(longest_pause(&denied), DENIED_AGAIN);
    assert_eq!(
        (longest_pause(&lost), longest_pause(&Ok(()))),
        (PAUSE, PAUSE)
    );
    assert!(DENIED_AGAIN > 60 * PAUSE);
}
