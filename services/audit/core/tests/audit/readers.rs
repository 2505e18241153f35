//! What a reader of a log is told: who spoke, when nothing can be said, and that a pinned head
//! never goes back.

use audit_core::log::{Log, LogFault, Proof, Trusted};
use schemas::Code;
use schemas::event::LedgerEvent;
use tlog::Head;
use tlog::layout::CHECKPOINT;

use crate::log::{DOMAIN, Log as Written, PLAN};
use crate::tree::{
    Files, SERVICE, code, entries, event, open, published, read, trusted, verify, whole,
};

/// The holder of the key for heads can log anything, and sign it with a key of its own.
#[test]
fn tl_03_a_proof_shows_who_spoke_and_not_who_is_named() {
    let written = Written::write(&PLAN);
    let trusted = trusted(&written);
    let attacker = Written::new(DOMAIN, 200).coordinator;
    let body = event(&written.records[0]).body;
    let theirs = attacker.sign(DOMAIN, body.to_vec());
    let mut stranger = Written::new(DOMAIN, 200);
    stranger.ledger(None, LedgerEvent::CheckpointTaken);
    let mut entries = entries(&written);
    entries[0] = chain::leaf(&theirs).unwrap();
    entries[1] = chain::leaf(&event(&stranger.records[0])).unwrap();
    let files = published(&entries, &[entries.len()], SERVICE);
    let log = open(&files, &trusted, None).unwrap();
    let fault = |index: u64| {
        let proof = log.prove(index, &entries[index as usize]).unwrap();
        proof.verify(&trusted).err()
    };
    assert_eq!(fault(0).map(|fault| fault.code()), Some(Code::ProofInvalid));
    let key = stranger.coordinator.public;
    assert_eq!(fault(1), Some(LogFault::Stranger(key)));
    assert_eq!(fault(2), None);
}

/// A key of nobody, and a signature that it never made.
#[test]
fn tl_03_what_a_stranger_did_not_sign_is_no_strangers_event() {
    let written = Written::write(&PLAN);
    let trusted = trusted(&written);
    let mut stranger = Written::new(DOMAIN, 200);
    stranger.ledger(None, LedgerEvent::CheckpointTaken);
    let mut entries = entries(&written);
    entries.push(chain::leaf(&event(&stranger.records[0])).unwrap());
    let files = published(&entries, &[entries.len()], SERVICE);
    assert_eq!(verify(&files, &trusted, None).unwrap().strangers, 1);
    // Bytes of the signature: behind the form and the key.
    entries.last_mut().unwrap()[40] ^= 1;
    let files = published(&entries, &[entries.len()], SERVICE);
    let fault = verify(&files, &trusted, None).err().unwrap();
    let index = entries.len() as u64 - 1;
    assert!(
        matches!(&fault, LogFault::Entry { index: at, .. } if *at == index),
        "{fault}"
    );
}

/// Where the trust bundle names none of the keys, nothing was checked.
#[test]
fn tl_03_a_log_of_strangers_alone_gives_no_verdict() {
    let mut written = Written::new(DOMAIN, 200);
    written.ledger(None, LedgerEvent::CheckpointTaken);
    let entries = entries(&written);
    let files = published(&entries, &[1], SERVICE);
    let known = trusted(&written);
    assert!(verify(&files, &known, None).is_ok());
    let unknown = Trusted {
        coordinators: vec![],
        ..known
    };
    let fault = verify(&files, &unknown, None).err().unwrap();
    assert_eq!(fault, LogFault::Unverified(1));
    assert_eq!(fault.code(), Code::LogUnproven);
}

/// A part of a copy, or another file, is no evidence against anybody.
#[test]
fn tl_03_what_is_no_head_or_no_proof_gives_no_verdict() {
    let (_, entries, files, trusted) = whole();
    let whole = &files[CHECKPOINT];
    for cut in [0, 10, whole.len() / 2, whole.len() - 1] {
        let mut part = files.clone();
        part.insert(CHECKPOINT.to_owned(), whole[..cut].to_vec());
        let fault = open(&part, &trusted, None).err().unwrap();
        assert_eq!(fault.code(), Code::LogUnproven, "cut at {cut}: {fault}");
    }
    let log = open(&files, &trusted, None).unwrap();
    let text = log.prove(7, &entries[7]).unwrap().text();
    for other in ["", "some text", &text[..text.len() / 3]] {
        let fault = Proof::read(other.as_bytes()).unwrap_err();
        assert_eq!(fault, LogFault::NoProof);
        assert_eq!(fault.code(), Code::LogUnproven);
    }
}

/// Two commands can check two copies of a log at the same time.
#[test]
fn fg_07_a_pinned_head_never_goes_back_and_never_onto_another_history() {
    let (_, entries, files, trusted) = whole();
    let all = entries.len();
    let log = open(&files, &trusted, None).unwrap();
    let older = published(&entries, &[20], SERVICE);
    let older = open(&older, &trusted, None).unwrap();
    let may =
        |log: &Log, files: &Files, pinned: Option<&Head>| log.may_replace(&read(files), pinned);
    assert_eq!(may(&log, &files, None), Ok(true));
    assert_eq!(may(&log, &files, Some(older.head())), Ok(true));
    assert_eq!(may(&log, &files, Some(log.head())), Ok(true));
    let before = published(&entries, &[20], SERVICE);
    assert_eq!(may(&older, &before, Some(log.head())), Ok(false));
    let mut other = entries;
    other.swap(5, 6);
    for size in [20, all] {
        let fork = published(&other, &[size], SERVICE);
        let fork = open(&fork, &trusted, None).unwrap();
        let size = size as u64;
        let forked = Err(LogFault::Forked { size });
        assert_eq!(may(&log, &files, Some(fork.head())), forked);
        let same = size == log.head().size;
        let alone = Proof::is_pinned(log.head(), Some(fork.head()));
        let expected = if same {
            Err(LogFault::Forked { size })
        } else {
            Ok(false)
        };
        assert_eq!(alone, expected, "beside a proof alone");
    }
    assert_eq!(Proof::is_pinned(log.head(), None), Ok(false));
    assert_eq!(Proof::is_pinned(log.head(), Some(log.head())), Ok(true));
}

/// Two full bundles and a part; full tiles, and a tile above them.
#[test]
fn tl_03_a_log_of_several_bundles_verifies_and_no_full_tile_can_be_gone_or_altered() {
    let mut written = Written::new(DOMAIN, 1);
    (0..600).for_each(|_| written.ledger(None, LedgerEvent::CheckpointTaken));
    let entries = entries(&written);
    let files = published(&entries, &[100, 300, 511, 600], SERVICE);
    let trusted = trusted(&written);
    let events = verify(&files, &trusted, None).map_err(|fault| fault.to_string());
    let events = events.expect("nothing is wrong");
    assert_eq!(events.auditor.evidence(), None);
    assert_eq!(events.auditor.summary().verified, 600);
    let full = [
        "tile/0/000",
        "tile/0/001",
        "tile/entries/000",
        "tile/entries/001",
    ];
    for path in full.iter().chain(&["tile/1/000.p/2"]) {
        let mut gone = files.clone();
        gone.remove(*path);
        let fault = verify(&gone, &trusted, None).err();
        assert_eq!(fault, Some(LogFault::Missing((*path).to_owned())));
        let mut altered = files.clone();
        *altered.get_mut(*path).unwrap().last_mut().unwrap() ^= 1;
        let found = code(verify(&altered, &trusted, None));
        assert_eq!(found, Code::LogAltered, "{path}");
    }
    // An event in the second bundle, and its proof.
    let log = open(&files, &trusted, None).unwrap();
    let proof = log.prove(400, &entries[400]).expect("it is there");
    assert!(proof.verify(&trusted).is_ok());
}

/// Of a newer release, perhaps: it is no evidence, and no success.
#[test]
fn tl_03_a_signed_event_that_this_build_cannot_read_gives_no_verdict() {
    let written = Written::write(&PLAN);
    let trusted = trusted(&written);
    let newer = written.coordinator.sign(DOMAIN, b"newer".to_vec());
    let mut entries = entries(&written);
    entries.push(chain::leaf(&newer).unwrap());
    let index = entries.len() as u64 - 1;
    let verdict = |entries: &[Vec<u8>]| {
        let files = published(entries, &[entries.len()], SERVICE);
        let log = open(&files, &trusted, None).unwrap();
        let proof = log.prove(index, &entries[index as usize]).unwrap();
        let codes = (proof.verify(&trusted), verify(&files, &trusted, None));
        (codes.0.unwrap_err().code(), codes.1.err().unwrap().code())
    };
    let unproven = Code::LogUnproven;
    assert_eq!(verdict(&entries), (unproven, unproven));
    // Nobody signed it.
    *entries.last_mut().unwrap().last_mut().unwrap() ^= 1;
    assert_eq!(verdict(&entries), (Code::ProofInvalid, Code::LogAltered));
}
