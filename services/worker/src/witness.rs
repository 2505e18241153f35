//! The worker as a witness of the log of all events. It keeps the newest head that it has seen,
//! takes another only if that continues it, and cosigns it then, with a key that does nothing else.
//! So the holder of the key for heads who shows one history here and another there has signed two
//! that contradict each other, and a worker that saw both has them.
//!
//! Nothing here holds up training: without heads, or with heads that contradict each other, the
//! worker says so and trains on.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use backoff::spread;
use identity::{AuditKey, TrustBundle, WitnessKey};
use runtime::{Bus, BusError, Failure, clock};
use schemas::event::WorkerEvent;
use schemas::head::{CosignRequest, HeadReply, HeadRequest, Inclusion};
use schemas::lease::Done;
use schemas::subject::{LogVerb, log_subject};
use schemas::{ChainSequence, Code, RunId, UnixMillis, V, WorkerId};
use tlog::Head;
use tokio_util::sync::{CancellationToken, DropGuard};
use witness::{Doubt, Followed, Step, is_included};

use crate::events::{Events, Looked, Receipts};
use crate::state::StateFolder;

/// Longest pause between two questions; the half of it is the shortest. A head is signed ten seconds
/// after an event; four thousand workers then ask some 300 times a second.
const PAUSE: Duration = Duration::from_secs(15);
/// Longest wait for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(8);
/// Questions in vain, one after another, after which the log says so. Right after a join, or while
/// the audit service starts, a few are usual.
const UNHEARD_MAX: u32 = 8;

/// Follows the log while it is kept.
#[derive(Debug)]
pub(crate) struct Witnessing(#[expect(dead_code, reason = "dropping it ends the task")] DropGuard);

impl Witnessing {
    /// Begins to follow the log. If that cannot be, the log of this process says why, once.
    pub(crate) fn begin(asking: Asking, state: &StateFolder, trust: &TrustBundle) -> Self {
        let stop = CancellationToken::new();
        match Memory::open(state, &asking.worker, trust) {
            Ok(Some(memory)) => {
                memory.kept.iter().for_each(|head| asking.events.know(head));
                let stopped = stop.clone();
                let follower = Follower {
                    asking,
                    memory,
                    cosigned: 0,
                    unheard: 0,
                };
                tokio::spawn(async move {
                    // Dropped at once when it is told, with its hold on the chain of events.
                    tokio::select! {
                        () = stopped.cancelled() => {}
                        () = follower.run() => {}
                    }
                });
            }
            Ok(None) => tracing::info!(
                "the trust bundle names no key for tree heads, so this worker cosigns none"
            ),
            Err(failure) => {
                let (code, next) = (failure.code(), failure.code().next_step());
                tracing::warn!(%code, next, "this worker follows no log and cosigns no heads: {failure}");
            }
        }
        Self(stop.drop_guard())
    }
}

/// The one who asks.
#[derive(Debug)]
pub(crate) struct Asking {
    pub(crate) bus: Bus,
    pub(crate) run: RunId,
    pub(crate) worker: WorkerId,
    /// The audit key of its chain.
    pub(crate) key: Arc<AuditKey>,
    /// The trust domain in which it signs.
    pub(crate) domain: String,
    pub(crate) events: Events,
    pub(crate) receipts: Receipts,
}

/// The task that asks, keeps and cosigns.
#[derive(Debug)]
struct Follower {
    asking: Asking,
    memory: Memory,
    /// The events under the newest head whose cosignature the audit service keeps.
    cosigned: u64,
    /// Questions in vain, one after another.
    unheard: u32,
}

impl Follower {
    async fn run(mut self) {
        loop {
            match self.ask().await {
                Ok(()) => self.unheard = 0,
                Err(error) => self.say_unheard(&error),
            }
            tokio::time::sleep(spread(PAUSE, objects::random_fraction())).await;
        }
    }

    async fn ask(&mut self) -> Result<(), BusError> {
        let asked = self.asking.receipts.asked.borrow().clone();
        let question = HeadRequest {
            v: V,
            known: self.memory.kept.as_ref().map_or(0, |head| head.size),
            emitter: self.asking.key.public().clone(),
            events: asked.iter().map(|(sequence, _)| *sequence).collect(),
        };
        let reply: HeadReply = self.request(LogVerb::Head, &question).await?;
        match self.memory.see(&reply) {
            Ok(Seen::Taken) => {
                let kept = self.memory.kept.iter();
                kept.for_each(|head| self.asking.events.know(head));
                let entry = |body: Vec<u8>| {
                    chain::leaf(&self.asking.key.sign_event(&self.asking.domain, body))
                };
                let asked = asked.into_iter();
                let entries = asked.filter_map(|(sequence, body)| Some((sequence, entry(body)?)));
                let covered = self.memory.covered(&reply.events, &entries.collect());
                // If the publisher is busy, the next look says the same.
                let _told = self.asking.receipts.looked.try_send(Looked(covered));
                self.cosign().await
            }
            Ok(Seen::Refused { doubt, again }) => {
                self.raise(&doubt, again);
                Ok(())
            }
            Err(failure) => {
                // What is not on the disk is not cosigned.
                tracing::warn!(code = %failure.code(), next = failure.code().next_step(), "a head is not kept, and not cosigned: {failure}");
                Ok(())
            }
        }
    }

    /// Cosigns the kept head, unless the audit service has that already.
    async fn cosign(&mut self) -> Result<(), BusError> {
        let Some(request) = self.memory.cosign(clock::now(), self.cosigned) else {
            return Ok(());
        };
        let size = request.size;
        let done: Result<Done, BusError> = self.request(LogVerb::Cosign, &request).await;
        done?;
        tracing::debug!(size, "a head of the log is cosigned");
        self.cosigned = size;
        Ok(())
    }

    async fn request<Q: schemas::Message, A: schemas::Message>(
        &self,
        verb: LogVerb,
        question: &Q,
    ) -> Result<A, BusError> {
        let subject = log_subject(&self.asking.run, &self.asking.worker, verb);
        self.asking
            .bus
            .request(&subject, question, ANSWER_MAX)
            .await
    }

    /// Says that the log contradicts itself: here, and in the worker's own chain. It is said once for
    /// each head that the worker keeps.
    fn raise(&self, doubt: &Doubt, again: bool) {
        if again {
            return;
        }
        let code = doubt_code(doubt);
        tracing::error!(%code, next = code.next_step(), "the log of all events is not the one that this worker has seen, and \
                        is not cosigned: {doubt}");
        self.asking.events.emit(WorkerEvent::Refused {
            code,
            detail: doubt.to_string(),
        });
    }

    fn say_unheard(&mut self, error: &BusError) {
        self.unheard += 1;
        if self.unheard == UNHEARD_MAX {
            let (code, next) = (error.code(), error.code().next_step());
            tracing::warn!(%code, next, "this worker gets no heads of the log, or cannot give its cosignature: {error}");
        } else {
            tracing::debug!(%error, "no head of the log came");
        }
    }
}

const fn doubt_code(doubt: &Doubt) -> Code {
    match doubt {
        Doubt::Head(_) => Code::HeadInvalid,
        Doubt::WentBack { .. } | Doubt::Forked(_) | Doubt::Unproven { .. } => {
            Code::HeadContradicted
        }
    }
}

/// What this worker has seen of the log, on its disk, and its key as a witness.
#[derive(Debug)]
struct Memory {
    followed: Followed,
    key: WitnessKey,
    kept: Option<Head>,
    /// The file of the kept head.
    head: PathBuf,
    /// The file of the text that was refused last.
    refused: PathBuf,
}

/// What became of a head.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    /// It is the kept one now, on the disk.
    Taken,
    /// It is not taken.
    Refused {
        doubt: Doubt,
        /// True if the same text was refused before.
        again: bool,
    },
}

impl Memory {
    /// Reads what was kept, and makes a key if there is none. None if this domain signs no heads.
    fn open(
        state: &StateFolder,
        worker: &WorkerId,
        trust: &TrustBundle,
    ) -> Result<Option<Self>, Failure> {
        let origin = format!("diloco/{}", trust.domain);
        let followed = Followed::new(origin, trust.raw_head_keys());
        if followed.is_unsigned() {
            return Ok(None);
        }
        let unusable = |file: &std::path::Path, error: &dyn std::fmt::Display| {
            let text = format!("{}: {error}", file.display());
            Failure::new(Code::WorkerStateInvalid, text)
        };
        let file = state.witness_key();
        let key = match file.exists() {
            true => WitnessKey::read(&file)?,
            false => {
                let key = WitnessKey::generate();
                let written = key.seed().write(&file);
                written.map_err(|error| unusable(&file, &error))?;
                key
            }
        };
        let witness = key
            .witness(worker.as_str())
            .map_err(|error| unusable(&file, &error))?;
        let head = state.log_head();
        let kept = match std::fs::read(&head) {
            Ok(note) => {
                let kept = followed.open(&note);
                Some(kept.map_err(|error| unusable(&head, &error))?)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(unusable(&head, &error)),
        };
        tracing::info!(
            witness = witness.text(),
            "this worker cosigns heads of the log"
        );
        Ok(Some(Self {
            followed,
            key,
            kept,
            head,
            refused: state.log_refused(),
        }))
    }

    /// Compares a head with the kept one. What is taken is on the disk when this returns.
    ///
    /// # Errors
    /// It cannot be written; then the kept one stays.
    fn see(&mut self, reply: &HeadReply) -> Result<Seen, Failure> {
        let note = reply.note.as_bytes();
        let hashes: Vec<[u8; 32]> = reply.consistency.iter().map(|hash| **hash).collect();
        let write = |file: &std::path::Path| {
            identity::secret::replace_private(file, note).map_err(|error| {
                Failure::new(Code::WorkerStateInvalid, format!("worker.state: {error}"))
            })
        };
        match self.followed.follow(self.kept.as_ref(), note, &hashes) {
            Ok(Step::Same) => Ok(Seen::Taken),
            Ok(Step::Newer(head)) => {
                write(&self.head)?;
                self.kept = Some(head);
                // Evidence against an earlier head stays, and makes room for what contradicts this
                // one.
                if self.refused.exists() {
                    let aside = self.refused.with_extension("refused.before");
                    std::fs::rename(&self.refused, aside).map_err(|error| {
                        Failure::new(Code::WorkerStateInvalid, format!("worker.state: {error}"))
                    })?;
                }
                Ok(Seen::Taken)
            }
            Err(doubt) => {
                // The first text is the strongest evidence; the event about it makes the next head
                // another one, which is no news.
                let again = self.refused.exists();
                if !again {
                    write(&self.refused)?;
                }
                Ok(Seen::Refused { doubt, again })
            }
        }
    }

    /// The events that are under the kept head, of those whose entries are given.
    fn covered(
        &self,
        shown: &[Inclusion],
        entries: &BTreeMap<ChainSequence, Vec<u8>>,
    ) -> Vec<ChainSequence> {
        let Some(head) = &self.kept else {
            return Vec::new();
        };
        let holds = |one: &&Inclusion| {
            let hashes: Vec<[u8; 32]> = one.hashes.iter().map(|hash| **hash).collect();
            let entry = entries.get(&one.sequence);
            entry.is_some_and(|entry| is_included(head, one.index, entry, &hashes))
        };
        let shown = shown.iter().filter(holds);
        shown.map(|one| one.sequence).collect()
    }

    /// The cosignature of the kept head, if it covers more than `known` events.
    fn cosign(&self, now: UnixMillis, known: u64) -> Option<CosignRequest> {
        let head = self.kept.as_ref().filter(|head| head.size > known)?;
        let signature = self.key.cosign_raw(head, now.get() / 1000);
        Some(CosignRequest {
            v: V,
            key: self.key.public().clone(),
            size: head.size,
            time: now,
            signature: serde_bytes::ByteArray::new(signature),
        })
    }
}

#[cfg(test)]
mod tests {
    use identity::{HeadKey, ManifestKey};
    use serde_bytes::ByteArray;
    use tlog::Writer;
    use tlog::layout::Tile;
    use tlog::proof::Prover;

    use super::*;

    const NOW: UnixMillis = UnixMillis(1_700_000_000_000);

    /// An audit service of one process: a log in memory, and the key that signs its heads.
    struct Service {
        key: HeadKey,
        trust: TrustBundle,
        writer: Writer,
        files: std::collections::BTreeMap<String, Vec<u8>>,
        head: Option<(Head, String)>,
    }

    impl Service {
        fn new() -> Self {
            let (key, manifest, audit) = (
                HeadKey::generate(),
                ManifestKey::generate(),
                AuditKey::generate(),
            );
            let head_keys = vec![key.public().clone()];
            let trust = kit::trust(manifest.public(), audit.public());
            Self::of(key, TrustBundle { head_keys, ..trust })
        }

        fn of(key: HeadKey, trust: TrustBundle) -> Self {
            let origin = format!("diloco/{}", trust.domain);
            Self {
                key,
                trust,
                writer: Writer::new(origin, None).expect("a new log"),
                files: Default::default(),
                head: None,
            }
        }

        fn sign(&mut self, entries: &[&str]) {
            for entry in entries {
                self.writer.push(entry.as_bytes(), 0).expect("it is short");
            }
            let batch = self.writer.batch(|head| self.key.sign_head(head));
            let batch = batch.expect("an entry is new");
            let written = batch.writes.into_iter();
            self.files
                .extend(written.map(|write| (write.path, write.bytes)));
            self.writer.published(&batch.head);
            let note = self.key.sign_head(&batch.head);
            self.head = Some((batch.head, note));
        }

        fn answer(&self, known: u64) -> HeadReply {
            let (head, note) = self.head.as_ref().expect("it has signed one");
            let mut read = |tile: Tile| {
                Ok::<_, std::convert::Infallible>(self.files.get(&tile.path()).cloned())
            };
            let hashes = Prover::new(head.size, &mut read).consistency(known);
            let hashes = hashes.unwrap_or_default().unwrap_or_default();
            HeadReply {
                v: V,
                note: note.clone(),
                consistency: hashes.into_iter().map(ByteArray::new).collect(),
                events: Vec::new(),
            }
        }
    }

    fn worker() -> WorkerId {
        let text = format!("U{}", "B".repeat(55));
        text.parse().expect("the form of a key")
    }

    struct Scene {
        scratch: tempfile::TempDir,
        service: Service,
    }

    impl Scene {
        fn new() -> Self {
            let scratch = tempfile::tempdir().expect("a scratch folder");
            let service = Service::new();
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
            let reply = scene.service.answer(size(&memory));
            assert_eq!(memory.see(&reply).expect("the disk has room"), Seen::Taken);
            assert_eq!(size(&memory), end);
            // On the disk before it is cosigned: another process continues from here.
            memory = scene.memory();
            assert_eq!(size(&memory), end);
            let cosigned = memory.cosign(NOW, end - 1).expect("it is newer");
            let (head, note) = scene.service.head.as_ref().expect("it was signed");
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
        scene.service.sign(&["a", "b", "c"]);
        let honest = scene.service.answer(0);
        memory.see(&honest).expect("the disk has room");
        // The same key signs another history, of the same size, longer, and shorter.
        let key = scene.service.key.clone();
        let mut first = None;
        for entries in [&["a", "b", "x"][..], &["a", "b", "x", "y"], &["a"]] {
            let code = Code::HeadContradicted;
            let mut fork = Service::of(key.clone(), scene.service.trust.clone());
            fork.sign(entries);
            let reply = fork.answer(3);
            for is_again in [first.is_some(), true] {
                let seen = memory.see(&reply).expect("the disk has room");
                let Seen::Refused { doubt, again } = seen else {
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
        let mut stranger = Service::of(HeadKey::generate(), scene.service.trust.clone());
        stranger.sign(&["a", "b", "c", "d"]);
        let seen = memory.see(&stranger.answer(3)).expect("the disk has room");
        let Seen::Refused { doubt, .. } = seen else {
            panic!("a stranger's head is taken");
        };
        assert_eq!(doubt_code(&doubt), Code::HeadInvalid);
        // What continues it is taken all the same.
        scene.service.sign(&["d"]);
        let reply = scene.service.answer(3);
        assert_eq!(memory.see(&reply).expect("the disk has room"), Seen::Taken);
        assert_eq!(size(&memory), 4);
        // What contradicts the newer head is news again; the first evidence lies beside it.
        let before = std::fs::read(scene.file("log.refused.before"));
        assert_eq!(before.ok(), first);
        let mut fork = Service::of(key, scene.service.trust.clone());
        fork.sign(&["a", "b", "x", "z"]);
        let seen = memory.see(&fork.answer(4)).expect("the disk has room");
        assert!(
            matches!(seen, Seen::Refused { again: false, .. }),
            "{seen:?}"
        );
    }

    #[test]
    fn ls_04_an_event_is_covered_only_where_the_kept_head_leads_to_it() {
        let mut scene = Scene::new();
        let mut memory = scene.memory();
        scene.service.sign(&["a", "b", "c"]);
        let reply = scene.service.answer(0);
        memory.see(&reply).expect("the disk has room");
        let mut read = |tile: Tile| {
            Ok::<_, std::convert::Infallible>(scene.service.files.get(&tile.path()).cloned())
        };
        let mut prover = Prover::new(3, &mut read);
        let mut shown = |sequence: u64, index: u64| {
            let Ok(hashes) = prover.inclusion(index);
            Inclusion {
                sequence: ChainSequence(sequence),
                index,
                hashes: hashes
                    .expect("it is there")
                    .into_iter()
                    .map(ByteArray::new)
                    .collect(),
            }
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
        scene.service.sign(&["a"]);
        std::fs::create_dir(scene.file("log.head")).expect("in the way of the file");
        let failure = memory.see(&scene.service.answer(0));
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
}
