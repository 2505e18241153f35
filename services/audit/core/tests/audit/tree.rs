//! The log of all events as a reader checks it: written by the writer, altered in every way, and
//! checked with code that the writer does not have.

use std::collections::BTreeMap;

use audit_core::log::{
    Events, Log, LogFault, Proof, Rebuilt, Trusted, check_events, is_included, origin,
};
use audit_core::{Payload, Record};
use ed25519_dalek::{Signer as _, SigningKey};
use proptest::prelude::*;
use schemas::event::{Event, LedgerEvent, SignedEvent};
use schemas::{Code, Message as _};
use tlog::layout::{CHECKPOINT, add_entry, entries_of};
use tlog::{Head, Write, Writer};

use crate::log::{DOMAIN, Emitter, Log as Written, Member, PLAN, Plan, SENTRY, nkey, run};

pub(crate) type Files = BTreeMap<String, Vec<u8>>;

fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

fn sign(seed: u8) -> impl Fn(&Head) -> String {
    move |head| {
        let (key, text) = (key(seed), head.text());
        head.signed(
            &key.verifying_key().to_bytes(),
            &key.sign(text.as_bytes()).to_bytes(),
        )
    }
}

/// The seed of the audit service's key.
pub(crate) const SERVICE: u8 = 77;

pub(crate) fn trusted(written: &Written) -> Trusted {
    Trusted {
        domain: DOMAIN.to_owned(),
        tenants: vec![nkey(0, &[9; 32]).parse().expect("a key")],
        coordinators: vec![written.coordinator.public.clone()],
        ended: Default::default(),
        sentries: vec![Emitter::new(SENTRY).public],
        heads: vec![key(SERVICE).verifying_key().to_bytes()],
    }
}

/// The event in a record.
pub(crate) fn event(record: &Record) -> SignedEvent {
    let Payload::Whole(payload) = &record.payload else {
        panic!("no event is that long");
    };
    SignedEvent::decode(payload).expect("it was written as one")
}

/// The entries of the log, as the audit service takes them from what it keeps.
pub(crate) fn entries(written: &Written) -> Vec<Vec<u8>> {
    let auditor = written.auditor();
    let examiner = auditor.examiner();
    let is_event = |record: &&Record| examiner.is_entry(record, &examiner.examine(record));
    let events = written.records.iter().filter(is_event);
    events
        .map(|record| chain::leaf(&event(record)).expect("it has a key"))
        .collect()
}

/// Publishes a head after each of `sizes`.
pub(crate) fn published(entries: &[Vec<u8>], sizes: &[usize], seed: u8) -> Files {
    let mut files = Files::new();
    let mut writer = Writer::new(origin(DOMAIN), None).expect("a new log");
    let mut at = 0;
    for size in sizes {
        for entry in &entries[at..*size] {
            writer.push(entry, 0).expect("it is short");
        }
        at = *size;
        let batch = writer.batch(sign(seed)).expect("something is new");
        for Write { path, bytes } in batch.writes {
            files.insert(path, bytes);
        }
        for path in batch.removals {
            files.remove(&path);
        }
        writer.published(&batch.head);
    }
    files
}

pub(crate) fn read(files: &Files) -> impl Fn(&str) -> Result<Option<Vec<u8>>, String> {
    |path| Ok(files.get(path).cloned())
}

pub(crate) fn open(
    files: &Files,
    trusted: &Trusted,
    pinned: Option<&Head>,
) -> Result<Log, LogFault> {
    Log::open(&read(files), trusted, pinned, &mut |_, _| {})
}

/// Everything that `audit verify` checks.
pub(crate) fn verify(
    files: &Files,
    trusted: &Trusted,
    pinned: Option<&Head>,
) -> Result<Events, LogFault> {
    let log = open(files, trusted, pinned)?;
    check_events(&log, &read(files), trusted)
}

pub(crate) fn code(result: Result<Events, LogFault>) -> Code {
    match result {
        Err(fault) => fault.code(),
        Ok(events) => events
            .auditor
            .evidence()
            .expect("something is wrong")
            .code(),
    }
}

/// A run, its entries, and their log with several heads.
pub(crate) fn whole() -> (Written, Vec<Vec<u8>>, Files, Trusted) {
    let written = Written::write(&Plan {
        early: true,
        ..PLAN
    });
    let entries = entries(&written);
    let files = published(&entries, &[3, 20, entries.len()], SERVICE);
    let trusted = trusted(&written);
    (written, entries, files, trusted)
}

#[test]
fn tl_03_a_log_of_a_run_verifies_with_every_event_in_it() {
    let (written, entries, files, trusted) = whole();
    assert_eq!(entries.len(), written.records.len(), "all are events");
    let events = verify(&files, &trusted, None).map_err(|fault| fault.to_string());
    let events = events.expect("nothing is wrong");
    assert_eq!(events.auditor.evidence(), None);
    assert_eq!(events.auditor.faulty_workers(), []);
    assert_eq!(
        events.strangers, 0,
        "workers that spoke before they joined are known"
    );
    let mut auditor = written.auditor();
    written
        .records
        .iter()
        .for_each(|record| drop(auditor.observe(record)));
    let (there, here) = (auditor.summary(), events.auditor.summary());
    assert_eq!(there.verified, here.verified);
    assert_eq!(there.runs, here.runs, "the same ledger");
}

#[test]
fn tl_03_no_byte_of_a_log_can_be_altered() {
    let (_, _, files, trusted) = whole();
    let newest = open(&files, &trusted, None).unwrap().head().size;
    for (path, bytes) in &files {
        let is_read = path == CHECKPOINT || path.ends_with(&format!(".p/{newest}"));
        if !is_read {
            continue;
        }
        let step = 1 + bytes.len() / 200;
        for at in (0..bytes.len()).step_by(step) {
            let mut altered = files.clone();
            altered.get_mut(path).unwrap()[at] ^= 1;
            let code = open(&altered, &trusted, None)
                .err()
                .map(|fault| fault.code());
            let note = &altered[path];
            let is_head = || match Head::open(note, &origin(DOMAIN), &trusted.heads) {
                Err(tlog::HeadError::Malformed(_)) => Code::LogUnproven,
                _ => Code::HeadInvalid,
            };
            let expected = match path == CHECKPOINT {
                true => is_head(),
                false => Code::LogAltered,
            };
            assert_eq!(code, Some(expected), "{path} byte {at}");
        }
        for cut in [0, bytes.len() / 2, bytes.len() - 1] {
            let mut altered = files.clone();
            altered.get_mut(path).unwrap().truncate(cut);
            assert!(
                open(&altered, &trusted, None).is_err(),
                "{path} cut at {cut}"
            );
        }
        let mut altered = files.clone();
        altered.get_mut(path).unwrap().push(0);
        assert!(
            open(&altered, &trusted, None).is_err(),
            "{path} with a byte more"
        );
    }
}

#[test]
fn tl_03_a_file_that_is_gone_gives_no_verdict() {
    let (_, _, files, trusted) = whole();
    let newest = open(&files, &trusted, None).unwrap().head().size;
    let needed = files
        .keys()
        .filter(|path| *path == CHECKPOINT || path.ends_with(&format!(".p/{newest}")));
    let needed: Vec<_> = needed.cloned().collect();
    assert_eq!(needed.len(), 3, "{needed:?}");
    for path in needed {
        let mut cut = files.clone();
        cut.remove(&path);
        let fault = open(&cut, &trusted, None).err();
        assert_eq!(fault, Some(LogFault::Missing(path)));
    }
    let nobody = Trusted {
        heads: vec![],
        ..trusted.clone()
    };
    assert_eq!(open(&files, &nobody, None).err(), Some(LogFault::NoKey));
    let unreadable = |_: &str| Err("no".to_owned());
    let fault = Log::open(&unreadable, &trusted, None, &mut |_, _| {}).err();
    assert_eq!(fault.map(|fault| fault.code()), Some(Code::LogUnproven));
    let mut empty = Files::new();
    let head = Head {
        origin: origin(DOMAIN),
        size: 0,
        root: Rebuilt::default().root(),
    };
    empty.insert(CHECKPOINT.to_owned(), sign(SERVICE)(&head).into_bytes());
    assert_eq!(open(&empty, &trusted, None).err(), Some(LogFault::Empty));
}

#[test]
fn fg_07_heads_of_another_key_or_log_older_heads_and_forks_are_found() {
    let (_, entries, files, trusted) = whole();
    let all = entries.len();
    let pinned = open(&files, &trusted, None).unwrap().head().clone();
    let refused = |files: &Files, pinned: Option<&Head>| {
        open(files, &trusted, pinned)
            .err()
            .map(|fault| fault.code())
    };
    assert_eq!(refused(&files, Some(&pinned)), None, "the same head");
    let strangers = published(&entries, &[all], SERVICE + 1);
    assert_eq!(refused(&strangers, None), Some(Code::HeadInvalid));
    let older = published(&entries, &[20], SERVICE);
    assert_eq!(refused(&older, None), None, "nothing newer was seen");
    assert_eq!(refused(&older, Some(&pinned)), Some(Code::HeadRolledBack));
    let early = open(&older, &trusted, None).unwrap().head().clone();
    assert_eq!(refused(&files, Some(&early)), None, "the log has grown");
    // Signed by the service's own key, and whole in itself.
    let mut other = entries.clone();
    other.swap(5, 6);
    let fork = published(&other, &[all], SERVICE);
    assert_eq!(refused(&fork, None), None);
    assert_eq!(refused(&fork, Some(&pinned)), Some(Code::HistoryForked));
    assert_eq!(refused(&fork, Some(&early)), Some(Code::HistoryForked));
    let mut longer = other;
    longer.push(entries[0].clone());
    let fork = published(&longer, &[all + 1], SERVICE);
    assert_eq!(refused(&fork, Some(&pinned)), Some(Code::HistoryForked));
}

/// The service's own key signs it, and nobody has pinned a head: then the chains show it.
#[test]
fn fg_07_a_service_that_leaves_out_or_moves_events_is_found_by_their_chains() {
    let (_, entries, _, trusted) = whole();
    let all = entries.len();
    let is_ledger = |entry: &Vec<u8>| {
        let event = chain::of_leaf(entry).unwrap();
        trusted.coordinators.contains(&event.key)
    };
    let ledger: Vec<usize> = (0..all).filter(|at| is_ledger(&entries[*at])).collect();
    let (third, fourth) = (ledger[3], ledger[4]);
    let mut cut = entries.clone();
    cut.remove(third);
    let files = published(&cut, &[all - 1], SERVICE);
    assert_eq!(code(verify(&files, &trusted, None)), Code::LedgerBroken);
    let mut moved = entries.clone();
    moved.swap(third, fourth);
    let files = published(&moved, &[all], SERVICE);
    assert_eq!(code(verify(&files, &trusted, None)), Code::LedgerBroken);
    // A cut end is a shorter history, which only a pinned head shows.
    let files = published(&entries[..all - 3], &[all - 3], SERVICE);
    assert!(verify(&files, &trusted, None).is_ok());
}

#[test]
fn fg_07_a_service_that_adds_what_is_no_event_is_found() {
    let (_, entries, _, trusted) = whole();
    let with = |entry: Vec<u8>| {
        let mut all = entries.clone();
        all.push(entry);
        let files = published(&all, &[all.len()], SERVICE);
        code(verify(&files, &trusted, None))
    };
    let mut forged = entries[2].clone();
    *forged.last_mut().unwrap() ^= 1;
    assert_eq!(
        with(forged),
        Code::LogAltered,
        "the signature is another body's"
    );
    assert_eq!(with(b"text".to_vec()), Code::LogAltered);
    let mut elsewhere = Written::new("another-domain", PLAN.seed);
    elsewhere.ledger(None, LedgerEvent::CheckpointTaken);
    let other = chain::leaf(&event(&elsewhere.records[0])).unwrap();
    assert_eq!(with(other), Code::LogAltered, "of another domain");
}

/// A worker's events can be stored before its join, and the join may never come.
#[test]
fn events_of_workers_that_never_join_are_counted_and_no_evidence() {
    let mut written = Written::write(&PLAN);
    let mut stranger = Member::new(150);
    let left = schemas::event::WorkerEvent::Joined {
        release: "0.1.0".to_owned(),
        device: "cpu".to_owned(),
    };
    written.worker(&mut stranger, left);
    let entries = entries(&written);
    assert_eq!(entries.len(), written.records.len());
    let files = published(&entries, &[entries.len()], SERVICE);
    let events = verify(&files, &trusted(&written), None).map_err(|fault| fault.to_string());
    let events = events.expect("nothing is wrong");
    assert_eq!(events.strangers, 1);
    assert_eq!(events.auditor.evidence(), None);
}

#[test]
fn what_nobody_signed_is_no_entry() {
    let mut written = Written::write(&PLAN);
    let before = entries(&written).len();
    let said = event(&written.records[4]);
    let mut forged = said.clone();
    forged.body.push(0);
    let subject = written.records[4].subject.clone();
    written.push(subject.clone(), &forged);
    written.push("diloco.ledger.demo.nobody.kind".to_owned(), &said);
    let key = &written.coordinator.public;
    written.push(format!("diloco.ledger.cluster.{key}.run-completed"), &said);
    let unreadable = written.coordinator.sign(DOMAIN, b"no event".to_vec());
    written.push(subject.clone(), &unreadable);
    assert_eq!(entries(&written).len(), before);
    written.push(subject, &said);
    assert_eq!(entries(&written).len(), before + 1, "a copy is an event");
}

/// The trust bundle may name more keys later. The log is the same with every bundle, and a ledger
/// of strangers in it is no evidence.
#[test]
fn fg_07_the_log_does_not_depend_on_the_keys_that_are_trusted() {
    let mut written = Written::write(&PLAN);
    let mut stranger = Written::new(DOMAIN, 200);
    stranger.ledger(None, LedgerEvent::CheckpointTaken);
    let (subject, said) = (&stranger.records[0].subject, event(&stranger.records[0]));
    written.push(subject.clone(), &said);
    let subject = schemas::subject::record_subject(
        &Member::new(150).account,
        &run(),
        &Member::new(150).worker,
        "joined",
    );
    let joined = schemas::event::WorkerEvent::Joined {
        release: "0.1.0".to_owned(),
        device: "cpu".to_owned(),
    };
    let said = stranger
        .coordinator
        .speak(DOMAIN, 1, Some(run()), Event::Worker(joined));
    written.push(subject, &said);
    let all = entries(&written);
    assert_eq!(all.len(), written.records.len());
    for coordinators in [
        vec![],
        vec![stranger.coordinator.public.clone()],
        vec![
            stranger.coordinator.public.clone(),
            written.coordinator.public.clone(),
        ],
    ] {
        let auditor = audit_core::Auditor::new(DOMAIN, coordinators);
        let examiner = auditor.examiner();
        let is_entry = |record: &Record| examiner.is_entry(record, &examiner.examine(record));
        assert!(written.records.iter().all(is_entry));
    }
    let files = published(&all, &[all.len()], SERVICE);
    let events = verify(&files, &trusted(&written), None).map_err(|fault| fault.to_string());
    let events = events.expect("nothing is wrong");
    assert_eq!((events.strangers, events.auditor.evidence()), (2, None));
}

/// The log that is read may be written meanwhile; then its partial files become full ones.
#[test]
fn an_older_head_is_verified_from_the_files_of_a_log_that_has_grown() {
    let entries: Vec<Vec<u8>> = (0..700u64).map(|at| at.to_be_bytes().to_vec()).collect();
    let files = published(&entries, &[300, 400, 500, 700], SERVICE);
    let trusted = trusted(&Written::new(DOMAIN, 1));
    assert!(!files.contains_key("tile/0/001.p/44"));
    let mut older = files.clone();
    older.insert(CHECKPOINT.to_owned(), files["heads/300"].clone());
    let log = open(&older, &trusted, None).map_err(|fault| fault.to_string());
    assert_eq!(log.expect("full files have it").head().size, 300);
    // Even there nothing can be altered.
    older.get_mut("tile/entries/001").unwrap()[3] ^= 1;
    assert_eq!(
        open(&older, &trusted, None).err().unwrap().code(),
        Code::LogAltered
    );
}

/// The writer is given to this code at every size, and every proof is tried.
#[test]
fn tl_03_writer_and_verifier_agree_at_every_size() {
    let entries: Vec<Vec<u8>> = (0..300u64).map(|at| at.to_be_bytes().to_vec()).collect();
    let mut writer = Writer::new(origin(DOMAIN), None).unwrap();
    let mut rebuilt = Rebuilt::of_size(300);
    for (index, entry) in (0u64..).zip(&entries) {
        writer.push(entry, 0).unwrap();
        rebuilt.push(entry);
        let batch = writer.batch(sign(SERVICE)).unwrap();
        let head = batch.head;
        assert_eq!(rebuilt.root(), head.root, "size {}", head.size);
        for (tile, bytes) in rebuilt.partial() {
            let written = batch.writes.iter().find(|one| one.path == tile.path());
            assert_eq!(written.map(|one| &one.bytes), Some(&bytes), "{tile:?}");
        }
        let places = if index < 70 {
            0..=index
        } else {
            index - 3..=index
        };
        for at in places {
            let hashes = rebuilt.prove(at).unwrap();
            let entry = &entries[at as usize];
            assert!(
                is_included(&head, at, entry, &hashes),
                "{at} of {}",
                head.size
            );
        }
        assert_eq!(rebuilt.prove(index + 1), None);
        writer.published(&head);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn tl_03_no_mutation_of_a_proof_is_accepted(
        size in 1u64..200, at in any::<prop::sample::Index>(), what in 0u8..8,
        place in any::<prop::sample::Index>(), bit in 0u8..8
    ) {
        let entries: Vec<Vec<u8>> = (0..size).map(|at| at.to_be_bytes().to_vec()).collect();
        let mut rebuilt = Rebuilt::of_size(size);
        entries.iter().for_each(|entry| drop(rebuilt.push(entry)));
        let mut index = at.index(entries.len()) as u64;
        let mut head = Head { origin: origin(DOMAIN), size, root: rebuilt.root() };
        let mut hashes = rebuilt.prove(index).unwrap();
        let mut entry = entries[index as usize].clone();
        prop_assert!(is_included(&head, index, &entry, &hashes));
        match what {
            0 if !hashes.is_empty() => {
                let one = place.index(hashes.len());
                hashes[one][usize::from(bit) * 4] ^= 1 << bit;
            }
            1 if !hashes.is_empty() => drop(hashes.pop()),
            2 => hashes.push([bit; 32]),
            3 => entry[usize::from(bit)] ^= 1 << bit,
            4 if size > 1 => index = (index + 1 + place.index(entries.len() - 1) as u64) % size,
            5 => head.root[usize::from(bit) * 4] ^= 1 << bit,
            6 => index += size,
            7 if hashes.len() > 1 => {
                let one = place.index(hashes.len() - 1);
                hashes.swap(one, one + 1);
            }
            _ => return Ok(()),
        }
        prop_assert!(!is_included(&head, index, &entry, &hashes), "mutation {}", what);
    }
}

#[test]
fn tl_03_a_proof_is_a_text_that_proves_itself() {
    let (_, entries, files, trusted) = whole();
    let log = open(&files, &trusted, None).unwrap();
    for (index, entry) in (0u64..).zip(&entries) {
        let proof = log.prove(index, entry).expect("it is there");
        let read = Proof::read(proof.text().as_bytes()).unwrap();
        assert_eq!(read, proof);
        let (head, event, body) = read.verify(&trusted).unwrap();
        assert_eq!(&head, log.head());
        assert_eq!(chain::leaf(&event).as_ref(), Some(entry));
        assert_eq!(body.emitter, event.key);
        let other = (index + 1) % entries.len() as u64;
        assert_eq!(log.prove(other, entry), None, "under another index");
    }
    let text = log.prove(7, &entries[7]).unwrap().text();
    assert!(text.starts_with("c2sp.org/tlog-proof@v1\nextra "));
    for at in 0..text.len() {
        let mut altered = text.clone().into_bytes();
        altered[at] ^= 1;
        let verdict = Proof::read(&altered).and_then(|proof| proof.verify(&trusted));
        assert!(verdict.is_err(), "byte {at} of\n{text}");
        let cut = Proof::read(&text.as_bytes()[..at]).and_then(|proof| proof.verify(&trusted));
        assert!(cut.is_err(), "cut at {at}");
    }
    // Its head is one that somebody else signed.
    let strangers = published(&entries, &[entries.len()], SERVICE + 1);
    let note = String::from_utf8(strangers[CHECKPOINT].clone()).unwrap();
    let forged = Proof {
        note,
        ..log.prove(7, &entries[7]).unwrap()
    };
    let fault = forged.verify(&trusted).unwrap_err();
    assert_eq!(fault.code(), Code::HeadInvalid);
}

/// A proof whose event nobody signed, under a head that the service's key signed.
#[test]
fn tl_03_a_proof_of_what_is_no_event_does_not_hold() {
    let (_, mut entries, _, trusted) = whole();
    *entries[3].last_mut().unwrap() ^= 1;
    entries[4] = b"text".to_vec();
    let files = published(&entries, &[entries.len()], SERVICE);
    let log = open(&files, &trusted, None).unwrap();
    for index in [3, 4] {
        let proof = log.prove(index, &entries[index as usize]).unwrap();
        let fault = proof.verify(&trusted).unwrap_err();
        assert_eq!(fault.code(), Code::ProofInvalid, "{fault}");
    }
}

/// A text has one form, and is bounded before it is used.
#[test]
fn other_texts_of_a_proof_are_refused() {
    let (_, entries, files, trusted) = whole();
    let log = open(&files, &trusted, None).unwrap();
    let proof = log.prove(7, &entries[7]).unwrap();
    let text = proof.text();
    let second = text.replace("index 7\n", "index 07\n");
    assert!(second != text && Proof::read(second.as_bytes()).is_err());
    let with = |count| {
        let hashes = vec![[0; 32]; count];
        Proof::read(
            Proof {
                hashes,
                ..proof.clone()
            }
            .text()
            .as_bytes(),
        )
    };
    assert!(with(64).is_ok() && with(65).is_err());
}

/// A stranger can have its own "ledger" recorded, in which other workers join with somebody's key.
#[test]
fn fg_07_a_join_that_no_coordinator_signed_makes_nobody_a_member() {
    let honest = Written::write(&PLAN);
    let mut stranger = Written::new(DOMAIN, 200);
    for seed in PLAN.seed + 1..=PLAN.seed + PLAN.workers {
        let member = Member {
            worker: Member::new(150).worker,
            ..Member::new(seed)
        };
        stranger.ledger(Some(run()), member.joined());
    }
    let mut all = entries(&stranger);
    all.extend(entries(&honest));
    let files = published(&all, &[all.len()], SERVICE);
    let events = verify(&files, &trusted(&honest), None).map_err(|fault| fault.to_string());
    let events = events.expect("nothing is wrong");
    assert_eq!(
        events.strangers,
        u64::from(PLAN.workers),
        "the joins themselves"
    );
    let verified = events.auditor.summary().verified;
    assert_eq!(verified, honest.records.len() as u64);
}

#[test]
fn a_log_that_changes_while_it_is_read_gives_no_verdict() {
    let (_, entries, files, trusted) = whole();
    let log = open(&files, &trusted, None).unwrap();
    let mut other = entries;
    other.swap(1, 2);
    let changed = published(&other, &[other.len()], SERVICE);
    let fault = check_events(&log, &read(&changed), &trusted).err().unwrap();
    assert!(matches!(fault, LogFault::Changed(_)), "{fault}");
    let bundle = format!("tile/entries/000.p/{}", other.len());
    let found = entries_of(&changed[&bundle], other.len()).unwrap();
    let mut again = Vec::new();
    found.iter().for_each(|entry| add_entry(&mut again, entry));
    assert_eq!(again, changed[&bundle]);
}
