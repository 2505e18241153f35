//! Tests of the follower of the log.

use kit::SignedLog;

use super::*;

const NOW: UnixMillis = UnixMillis(1_700_000_000_000);

fn worker() -> WorkerId {
    let text = format!("U{}", "B".repeat(55));
    text.parse().expect("the form of a key")
}

struct Scene {
    scratch: tempfile::TempDir,
    service: SignedLog,
}

impl Scene {
    fn new() -> Self {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let service = SignedLog::default();
        Self { scratch, service }
    }

    fn open(&self) -> Result<Option<Memory>, Failure> {
        let state = StateFolder::open(self.scratch.path()).expect("a folder");
        Memory::open(&state, &worker(), &self.service.trust)
    }

    fn memory(&self) -> Memory {
        self.open().expect("usable").expect("heads are signed")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }
}

fn size(memory: &Memory) -> u64 {
    memory.kept.as_ref().map_or(0, |head| head.size)
}

#[test]
fn tl_03_what_continues_the_kept_head_is_kept_and_cosigned_also_after_a_restart() {
    let mut scene = Scene::new();
    let mut memory = scene.memory();
    assert_eq!(memory.cosign(NOW, 0), None, "it has seen nothing");
    let witness = memory.key.witness(worker().as_str()).expect("a name");
    for (entries, end) in [(&["a", "b"][..], 2), (&["c"], 3), (&["d", "e"], 5)] {
        scene.service.sign(entries);
        let reply = scene.service.answer(size(&memory), &[]);
        assert_eq!(memory.see(&reply).expect("the disk has room"), Seen::Taken);
        assert_eq!(size(&memory), end);
        // On the disk before it is cosigned: another process continues from here.
        memory = scene.memory();
        assert_eq!(size(&memory), end);
        let cosigned = memory.cosign(NOW, end - 1).expect("it is newer");
        let (head, note) = scene.service.newest();
        let line = witness.line(NOW.get() / 1000, &cosigned.signature);
        let whole = format!("{note}{line}");
        let at = witness.cosigned_at(whole.as_bytes(), head);
        assert_eq!(at, Ok(Some(NOW.get() / 1000)), "with the key of before");
        assert_eq!(memory.cosign(NOW, end), None, "it is kept there already");
        let again = memory.see(&reply).expect("the disk has room");
        assert_eq!(again, Seen::Taken, "the same head");
    }
    assert!(!scene.file("log.refused").exists());
}

#[test]
fn tl_03_what_contradicts_the_kept_head_is_refused_once_and_kept_as_evidence() {
    let mut scene = Scene::new();
    let mut memory = scene.memory();
    scene.service.sign(["a", "b", "c"]);
    let honest = scene.service.answer(0, &[]);
    memory.see(&honest).expect("the disk has room");
    // The same key signs another history, of the same size, longer, and shorter.
    let mut first = None;
    for entries in [&["a", "b", "x"][..], &["a", "b", "x", "y"], &["a"]] {
        let code = Code::HeadContradicted;
        let mut fork = scene.service.fork();
        fork.sign(entries);
        let reply = fork.answer(3, &[]);
        for is_again in [first.is_some(), true] {
            let seen = memory.see(&reply).expect("the disk has room");
            let Seen::Refused { doubt, again, .. } = seen else {
                panic!("{entries:?} is taken");
            };
            assert_eq!((doubt_code(&doubt), again), (code, is_again), "{doubt}");
            // A restart says it no second time.
            memory = scene.memory();
        }
        assert_eq!(size(&memory), 3);
        let refused = std::fs::read(scene.file("log.refused"));
        let first = first.get_or_insert_with(|| reply.note.as_bytes().to_vec());
        assert_eq!(&refused.expect("it is kept"), first, "the first evidence");
        let kept = std::fs::read(scene.file("log.head"));
        assert_eq!(kept.expect("it is kept"), honest.note.as_bytes());
        let cosigned = memory.cosign(NOW, 0).expect("the kept head");
        assert_eq!(cosigned.size, 3, "no other is cosigned");
    }
    let mut stranger = scene.service.strangers();
    stranger.sign(["a", "b", "c", "d"]);
    let seen = memory
        .see(&stranger.answer(3, &[]))
        .expect("the disk has room");
    let Seen::Refused { doubt, .. } = seen else {
        panic!("a stranger's head is taken");
    };
    assert_eq!(doubt_code(&doubt), Code::HeadInvalid);
    // What continues it is taken all the same.
    scene.service.sign(["d"]);
    let reply = scene.service.answer(3, &[]);
    assert_eq!(memory.see(&reply).expect("the disk has room"), Seen::Taken);
    assert_eq!(size(&memory), 4);
    // What contradicts the newer head is news again; the first evidence lies beside it.
    let before = std::fs::read(scene.file("log.refused.before"));
    assert_eq!(before.ok(), first);
    let mut fork = scene.service.fork();
    fork.sign(["a", "b", "x", "z"]);
    let seen = memory.see(&fork.answer(4, &[])).expect("the disk has room");
    assert!(
        matches!(seen, Seen::Refused { again: false, .. }),
        "{seen:?}"
    );
}

/// Anybody who can answer could send such a text, before a fork is shown or after it.
#[test]
fn tl_03_an_answer_that_nobody_has_signed_hides_no_fork_and_each_fork_has_its_own_text() {
    let mut scene = Scene::new();
    let mut memory = scene.memory();
    scene.service.sign(["a", "b"]);
    let taken = memory.see(&scene.service.answer(0, &[]));
    assert_eq!(taken.expect("the disk has room"), Seen::Taken);
    let mut stranger = scene.service.strangers();
    stranger.sign(["a", "b", "c"]);
    let fork = |entries: &[&str]| {
        let mut fork = scene.service.fork();
        fork.sign(entries);
        fork.answer(0, &[])
    };
    let (first, second) = (fork(&["a", "x"]), fork(&["a", "b", "y"]));
    let again =
        |memory: &mut Memory, reply: &HeadReply| match memory.see(reply).expect("nothing is taken")
        {
            Seen::Refused {
                doubt,
                again,
                unkept,
            } => {
                assert_eq!(unkept, None);
                (doubt_code(&doubt), again)
            }
            Seen::Taken => panic!("it is taken"),
        };
    let unsigned = stranger.answer(2, &[]);
    assert_eq!(again(&mut memory, &unsigned), (Code::HeadInvalid, false));
    assert!(!scene.file("log.refused").exists());
    assert_eq!(again(&mut memory, &unsigned), (Code::HeadInvalid, true));
    assert_eq!(again(&mut memory, &first), (Code::HeadContradicted, false));
    assert_eq!(again(&mut memory, &unsigned), (Code::HeadInvalid, true));
    assert_eq!(again(&mut memory, &first), (Code::HeadContradicted, true));
    let text = |name: &str| std::fs::read_to_string(scene.file(name)).ok();
    assert_eq!(text("log.refused"), Some(first.note.clone()));
    let next = |memory: &mut Memory, entry: &str| {
        let known = size(memory);
        let mut service = scene.service.fork();
        let all = ["a", "b", "c", "d"];
        let end = all.iter().position(|one| *one == entry).expect("it is one");
        service.sign(&all[..=end]);
        let taken = memory.see(&service.answer(known, &[]));
        assert_eq!(taken.expect("the disk has room"), Seen::Taken);
    };
    next(&mut memory, "c");
    assert_eq!(again(&mut memory, &second), (Code::HeadContradicted, false));
    next(&mut memory, "d");
    assert_eq!(text("log.refused.before"), Some(first.note));
    assert_eq!(text("log.refused.before.2"), Some(second.note));
    assert_eq!(text("log.refused"), None);
}

#[test]
fn tl_03_a_fork_is_said_also_where_its_text_cannot_be_written() {
    let mut scene = Scene::new();
    let mut memory = scene.memory();
    scene.service.sign(["a", "b"]);
    memory
        .see(&scene.service.answer(0, &[]))
        .expect("there is room");
    let mut fork = scene.service.fork();
    fork.sign(["a", "x"]);
    std::fs::create_dir(scene.file("log.refused")).expect("in the way of the file");
    let seen = memory
        .see(&fork.answer(2, &[]))
        .expect("the doubt is the answer");
    let Seen::Refused {
        doubt,
        again,
        unkept,
    } = seen
    else {
        panic!("it is taken");
    };
    assert_eq!((doubt_code(&doubt), again), (Code::HeadContradicted, false));
    assert!(unkept.is_some());
    // As soon as there is room the text is there.
    std::fs::remove_dir(scene.file("log.refused")).expect("ours");
    memory
        .see(&fork.answer(2, &[]))
        .expect("the doubt is the answer");
    assert!(scene.file("log.refused").is_file());
}

#[test]
fn ls_04_an_event_is_covered_only_where_the_kept_head_leads_to_it() {
    let mut scene = Scene::new();
    let mut memory = scene.memory();
    scene.service.sign(["a", "b", "c"]);
    let reply = scene.service.answer(0, &[]);
    memory.see(&reply).expect("the disk has room");
    let shown = |sequence: u64, index: u64| {
        let event = (ChainSequence(sequence), index);
        let mut shown = scene.service.answer(3, &[event]).events;
        shown.pop().expect("it is there")
    };
    let entries: BTreeMap<ChainSequence, Vec<u8>> = [(4, "a"), (5, "b"), (6, "x")]
        .map(|(sequence, entry)| (ChainSequence(sequence), entry.into()))
        .into();
    let good = [shown(4, 0), shown(5, 1)];
    let covered = vec![ChainSequence(4), ChainSequence(5)];
    assert_eq!(memory.covered(&good, &entries), covered);
    for bad in [shown(4, 1), shown(6, 2), shown(7, 0)] {
        assert_eq!(
            memory.covered(std::slice::from_ref(&bad), &entries),
            [],
            "{bad:?}"
        );
    }
    memory.kept = None;
    assert_eq!(memory.covered(&good, &entries), []);
}

#[test]
fn a_head_that_cannot_be_kept_is_not_cosigned() {
    let mut scene = Scene::new();
    let mut memory = scene.memory();
    scene.service.sign(["a"]);
    std::fs::create_dir(scene.file("log.head")).expect("in the way of the file");
    let failure = memory.see(&scene.service.answer(0, &[]));
    assert_eq!(
        failure.expect_err("no room").code(),
        Code::WorkerStateInvalid
    );
    assert_eq!(memory.cosign(NOW, 0), None);
}

#[test]
fn damaged_files_are_said_and_no_second_key_is_made() {
    let scene = Scene::new();
    drop(scene.memory());
    let key = std::fs::read(scene.file("witness.nk")).expect("it was made");
    std::fs::write(scene.file("log.head"), b"no head").expect("written");
    let failure = scene.open().expect_err("it is no head");
    assert_eq!(failure.code(), Code::WorkerStateInvalid);
    std::fs::remove_file(scene.file("log.head")).expect("ours");
    std::fs::write(scene.file("witness.nk"), b"no key").expect("written");
    scene.open().expect_err("it is no key");
    let now = std::fs::read(scene.file("witness.nk")).expect("it is there");
    assert_ne!(now, key);
    assert_eq!(now, b"no key", "it is left as it is");
}

#[test]
fn a_domain_that_signs_no_heads_needs_no_witness() {
    let mut scene = Scene::new();
    scene.service.trust.head_keys.clear();
    assert!(scene.open().expect("usable").is_none());
    assert!(!scene.file("witness.nk").exists());
}
