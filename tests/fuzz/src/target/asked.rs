//! Questions about the log of all events, as the audit service hears them: under any subject, with
//! any payload. What passes is answered out of a folder of a log, and the answer must prove what it
//! says.

use std::fs;
use std::sync::LazyLock;

use audit_core::{Enrolment, Intake, Logged, Notice, Question, QuestionCheck};
use diloco_audit::heads::Heads;
use identity::KeyKind;
use kit::SignedLog;
use schemas::head::{HeadReply, HeadRequest};
use schemas::subject::{LogVerb, ledger_head_subject, log_subject};
use schemas::{ChainSequence, Digest, Message as _, PublicKey, UnixMillis, V};
use tempfile::TempDir;
use witness::Followed;

const NOW: UnixMillis = UnixMillis(1_700_000_000_000);
/// Entries of the log: a full tile and a part of one.
const ENTRIES: u64 = 300;
/// Events of each emitter whose place is known. The last one is not under the head.
const PLACES: u64 = 8;

/// A log in a folder, as the audit service has it.
struct Kept {
    log: SignedLog,
    heads: Heads,
    /// It lasts as long as the process.
    _folder: TempDir,
}

static KEPT: LazyLock<Kept> = LazyLock::new(|| {
    let mut log = SignedLog::default();
    log.sign((0..ENTRIES).map(entry));
    let folder = tempfile::tempdir().expect("a scratch folder");
    for (name, bytes) in log.files() {
        let path = folder.path().join(name);
        let parent = path.parent().expect("it lies in the folder");
        fs::create_dir_all(parent).expect("a scratch folder");
        fs::write(path, bytes).expect("a scratch file");
    }
    let checkpoint = folder.path().join(tlog::layout::CHECKPOINT);
    fs::write(checkpoint, log.newest().1).expect("a scratch file");
    let heads = Heads::new(folder.path().to_owned(), &log.trust);
    Kept {
        log,
        heads,
        _folder: folder,
    }
});

fn entry(index: u64) -> Vec<u8> {
    format!("entry {index}").into_bytes()
}

/// The index of an event in the log.
const fn index(sequence: u64) -> u64 {
    match sequence + 1 < PLACES {
        true => sequence * 41,
        false => ENTRIES,
    }
}

fn intake(key: &PublicKey) -> Intake {
    let mut intake = Intake::new("OAAA");
    intake.enrol(Enrolment {
        account: kit::account(1),
        run: kit::run_id(),
        worker: kit::worker(1),
        key: key.clone(),
    });
    for sequence in 0..PLACES {
        let logged = Logged {
            sequence: ChainSequence(sequence),
            digest: Digest::of(&sequence.to_le_bytes()),
            index: index(sequence),
        };
        let key = || key.clone();
        intake.learn(Notice::Logged { key: key(), logged });
        intake.learn(Notice::LedgerLogged { key: key(), logged });
    }
    intake
}

/// A question: its subject, a line end, its payload.
pub(super) fn question(bytes: &[u8]) {
    let end = bytes.iter().position(|byte| *byte == b'\n');
    let (subject, payload) = bytes.split_at(end.unwrap_or(bytes.len()));
    let subject = String::from_utf8_lossy(subject);
    let payload = payload.get(1..).unwrap_or_default();
    let key = super::keys::public(KeyKind::User);
    let checked = intake(&key).check_question(NOW, &subject, payload);
    let QuestionCheck::Question(asker, question) = checked else {
        return;
    };
    match question {
        Question::Head { known, events } => {
            let reply = KEPT.heads.newest(known, &events);
            proves(known, &events, &reply.expect("its files are there"));
        }
        Question::Cosign(cosigned) => {
            let kept = KEPT.heads.keep(&asker, &cosigned);
            assert!(kept.is_err(), "nobody here has a key of a witness");
        }
    }
}

/// The head continues the one that the asker keeps, and covers the events that it can cover.
fn proves(known: u64, events: &[(ChainSequence, u64)], reply: &HeadReply) {
    let log = &KEPT.log;
    let origin = audit_core::log::origin(log.trust.domain.as_str());
    let followed = Followed::new(origin, log.trust.raw_head_keys());
    let hashes = |all: &[serde_bytes::ByteArray<32>]| -> Vec<[u8; 32]> {
        all.iter().map(|hash| **hash).collect()
    };
    let led = hashes(&reply.consistency);
    if (1..=ENTRIES).contains(&known) {
        let mut before = log.fork();
        before.sign((0..known).map(entry));
        let step = followed.follow(Some(before.newest().0), reply.note.as_bytes(), &led);
        assert!(step.is_ok(), "{step:?} from {known}");
    } else {
        assert_eq!(led, [[0; 32]; 0], "there is nothing to prove");
    }
    let head = followed.open(reply.note.as_bytes());
    let head = head.expect("the log's own head");
    let covered = events.iter().filter(|(_, index)| *index < ENTRIES);
    assert_eq!(reply.events.len(), covered.count());
    for proven in &reply.events {
        let entry = entry(proven.index);
        let hashes = hashes(&proven.hashes);
        assert!(witness::is_included(&head, proven.index, &entry, &hashes));
    }
}

pub(super) fn questions() -> Vec<Vec<u8>> {
    let key = super::keys::public(KeyKind::User);
    let (run, worker, account) = (kit::run_id(), kit::worker(1), kit::account(1).to_string());
    // As the broker hands it on, the account stands third.
    let crossed = |subject: String| {
        let mut tokens: Vec<&str> = subject.split('.').collect();
        tokens.insert(2, &account);
        tokens.join(".")
    };
    let asked = |subject: String, payload: Vec<u8>| {
        [crossed(subject).as_bytes(), b"\n", &payload[..]].concat()
    };
    let request = |known: u64, events: &[u64]| {
        let request = HeadRequest {
            v: V,
            known,
            emitter: key.clone(),
            events: events.iter().copied().map(ChainSequence).collect(),
        };
        request.encode()
    };
    let all: Vec<u64> = (0..PLACES + 1).collect();
    let golden = super::wire::golden();
    let cosigned = golden
        .into_iter()
        .find(|(file, _)| file.starts_with("cosign-request."));
    let mut seeds = vec![asked(
        log_subject(&run, &worker, LogVerb::Cosign),
        cosigned.expect("an example").1,
    )];
    for (known, events) in [
        (0, &all[..]),
        (1, &[]),
        (255, &all[..2]),
        (256, &[3]),
        (ENTRIES, &all),
        (ENTRIES + 1, &all),
        (u64::MAX, &[u64::MAX]),
    ] {
        let of_worker = log_subject(&run, &worker, LogVerb::Head);
        seeds.push(asked(of_worker, request(known, events)));
        seeds.push(asked(ledger_head_subject(&key), request(known, events)));
    }
    seeds
}
