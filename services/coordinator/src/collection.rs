//! Collection of old objects: what the ledger names and nothing needs is found, and deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use ledger::{Kind, Mark, Named, Needed, Old, Plan, State};
use recompute::Objects as _;
use schemas::data::Tokenizer;
use schemas::event::EventBody;
use schemas::snapshot::SnapshotManifest;
use schemas::{Bytes, Chunks, Code, Digest, ObjectRef, Refusal, Round, RunId};
use tokio::sync::Notify;

use crate::check;
use crate::ledger::Ledger;
use crate::store::{Store, refusal};

/// Manifests and lists that are read at the same time.
const READS_MAX: usize = 8;
/// Deletions at a time: few, since other requests wait for the store.
const DELETIONS_MAX: usize = 8;

/// Keeps what is written while old objects are collected. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Keeper(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    objects: Mutex<Kept>,
    /// A deletion has ended.
    deleted: Notify,
}

#[derive(Debug, Default)]
struct Kept {
    /// Objects that were written since the collection began; none while there is none.
    written: Option<BTreeSet<Digest>>,
    deleting: BTreeSet<Digest>,
}

/// What happens where an object that names others is not in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gaps<'a> {
    /// Nobody can tell what is needed.
    Refused,
    /// What it names is not known, and the rest is. The store's list, which comes with this, lacks
    /// the object too: a store that denies for a moment what it has is no loss.
    Passed(&'a BTreeMap<Digest, Bytes>),
}

/// A deletion under way; dropping it ends it.
struct Deletion<'a> {
    keeper: &'a Keeper,
    object: Digest,
}

impl Keeper {
    /// Keeps from now on what is written, until [`Keeper::end`].
    pub(crate) fn begin(&self) {
        self.kept().written = Some(BTreeSet::new());
    }

    /// The collection is over.
    pub(crate) fn end(&self) {
        self.kept().written = None;
    }

    /// Says that an object is about to be written. Waits while it is being deleted, so that it is
    /// written afterwards.
    pub(crate) async fn writes(&self, object: Digest) {
        loop {
            let deleted = self.0.deleted.notified();
            tokio::pin!(deleted);
            deleted.as_mut().enable();
            {
                let mut kept = self.kept();
                if !kept.deleting.contains(&object) {
                    if let Some(written) = &mut kept.written {
                        written.insert(object);
                    }
                    return;
                }
            }
            deleted.await;
        }
    }

    /// Begins to delete an object; none if it was written since the collection began.
    fn delete(&self, object: Digest) -> Option<Deletion<'_>> {
        let mut kept = self.kept();
        let Kept { written, deleting } = &mut *kept;
        let free = written.as_ref().is_some_and(|all| !all.contains(&object));
        let begun = free && deleting.insert(object);
        // The end of a deletion takes the lock too, so none is made here that is not begun.
        drop(kept);
        begun.then(|| Deletion {
            keeper: self,
            object,
        })
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        let kept = self.0.objects.lock();
        kept.unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Deletion<'_> {
    fn drop(&mut self) {
        self.keeper.kept().deleting.remove(&self.object);
        self.keeper.0.deleted.notify_waiters();
    }
}

/// Finds the objects that go.
pub(crate) async fn look(
    store: &Store,
    mut history: Ledger,
    state: Arc<State>,
    run: &RunId,
    through: Round,
    needed: Vec<Needed>,
) -> Result<Plan, Refusal> {
    let mut mark = Mark::new(&state, run, through);
    mark.needed.extend(needed);
    let mut events = 0;
    let follow = |body: EventBody| {
        // Later events are of what was written since the collection began, which is kept.
        if body.sequence.get() < state.events() {
            events += 1;
            mark.note(&body);
        }
        Ok::<_, std::convert::Infallible>(())
    };
    let read = history.catch_up(follow).await;
    read.map_err(|error| Refusal::new(error.code(), error.to_string()))?;
    if events != state.events() {
        let known = state.events();
        let detail = format!("the ledger has {events} of the {known} events before the order");
        return Err(Refusal::new(Code::CollectionUnsure, detail));
    }
    let stored = stored(store).await?;
    let kin = mark.kin();
    let needed = all_needed(store, &kin, mark.needed, &stored).await?;
    let old = all_old(store, mark.old, &stored).await?;
    let swept = tokio::task::spawn_blocking(move || Mark::sweep(old, &needed, &stored));
    swept
        .await
        .map_err(|error| Refusal::new(Code::Internal, error.to_string()))
}

/// The objects in the store, with their lengths.
async fn stored(store: &Store) -> Result<BTreeMap<Digest, Bytes>, Refusal> {
    let listed = store.buckets.list();
    let listed = listed.map_ok(|listed| (listed.object.digest, listed.object.bytes));
    listed.try_collect().await.map_err(|error| refusal(&error))
}

/// Every object that is needed. If something that the run or one of its `kin` needs cannot be read,
/// it may name any old object of the run, so nothing is deleted. What is lost of another run is
/// that run's loss: its operator hears of it, and the rest of it is kept.
async fn all_needed(
    store: &Store,
    kin: &BTreeSet<RunId>,
    needed: Vec<Needed>,
    stored: &BTreeMap<Digest, Bytes>,
) -> Result<BTreeSet<Digest>, Refusal> {
    let mut reads = BTreeMap::new();
    for Needed { run: of, named } in needed {
        // Each base and each data set is named many times.
        let passed = (named, Gaps::Passed(stored));
        let (_, gaps) = reads.entry(identity_of(&passed.0)).or_insert(passed);
        if of.is_none_or(|of| kin.contains(&of)) {
            *gaps = Gaps::Refused;
        }
    }
    let reads = reads.into_values();
    let reads = reads.map(|(named, gaps)| objects(store, named, gaps));
    let reads: Vec<_> = reads.collect();
    let named = stream::iter(reads).buffer_unordered(READS_MAX);
    let named = named.try_fold(BTreeSet::new(), |mut all, some| async move {
        all.extend(some.into_iter().map(|(object, _)| object));
        Ok(all)
    });
    named.await.map_err(|found| match found.code {
        Code::ObjectMissing => Refusal::new(Code::CollectionUnsure, found.detail),
        _ => found,
    })
}

/// A digest for everything that is named: equal only if the same objects are named.
fn identity_of(named: &Named) -> (u8, Digest) {
    match named {
        Named::Plain(object) => (0, object.digest),
        Named::Chunks(chunks) => (1, chunks.digest()),
        Named::Snapshot(object) => (2, object.digest),
        Named::Data(object) => (3, object.digest),
    }
}

/// The objects of everything old. If an old object is lost, nobody can tell which objects it named:
/// those stay.
async fn all_old(
    store: &Store,
    old: Vec<Old>,
    stored: &BTreeMap<Digest, Bytes>,
) -> Result<Vec<(Kind, Round, Vec<(Digest, u8)>)>, Refusal> {
    let reads = old.into_iter().map(|old| async move {
        let found = match names_others(&old.objects) {
            Some(object) if !stored.contains_key(&object) => Vec::new(),
            Some(_) | None => match objects(store, old.objects, Gaps::Refused).await {
                Ok(found) => found,
                Err(missing) if missing.code == Code::ObjectMissing => Vec::new(),
                Err(refusal) => return Err(refusal),
            },
        };
        Ok::<_, Refusal>((old.kind, old.round, found))
    });
    let reads: Vec<_> = reads.collect();
    stream::iter(reads).buffered(READS_MAX).try_collect().await
}

/// The object that has to be read, if there is one.
fn names_others(named: &Named) -> Option<Digest> {
    match named {
        Named::Plain(_) | Named::Chunks(Chunks::Named(_)) => None,
        Named::Chunks(Chunks::Listed(listed)) => Some(listed.list.digest),
        Named::Snapshot(object) | Named::Data(object) => Some(object.digest),
    }
}

/// Everything that is named: the objects, and those that these name, each with the number of layers
/// that it names.
async fn objects(
    store: &Store,
    named: Named,
    gaps: Gaps<'_>,
) -> Result<Vec<(Digest, u8)>, Refusal> {
    let mut all = Vec::new();
    match named {
        Named::Plain(object) => all.push((object.digest, 0)),
        Named::Chunks(chunks) => chunk_names(store, &chunks, gaps, &mut all).await?,
        Named::Snapshot(object) => {
            all.push((object.digest, 2));
            let Some(manifest) = gaps.pass(object.digest, snapshot(store, object).await)? else {
                return Ok(all);
            };
            let copies = [&manifest.weights, &manifest.broadcast.chunks];
            for chunks in copies.into_iter().chain(manifest.slots.values()) {
                chunk_names(store, chunks, gaps, &mut all).await?;
            }
        }
        Named::Data(object) => {
            all.push((object.digest, 1));
            let Some(data) = gaps.pass(object.digest, check::data(store, object).await)? else {
                return Ok(all);
            };
            let shards = data.train.iter().chain(&data.held_out);
            all.extend(shards.map(|shard| (shard.object.digest, 0)));
            if let Tokenizer::HuggingFace(tokenizer) = data.tokenizer {
                all.push((tokenizer.digest, 0));
            }
        }
    }
    Ok(all)
}

async fn chunk_names(
    store: &Store,
    chunks: &Chunks,
    gaps: Gaps<'_>,
    all: &mut Vec<(Digest, u8)>,
) -> Result<(), Refusal> {
    let list = chunks.listed().map(|listed| listed.list.digest);
    all.extend(list.map(|list| (list, 1)));
    let read = store.chunks(chunks).await;
    let named = match list {
        Some(list) => gaps.pass(list, read)?,
        None => Some(read?),
    };
    let named = named.unwrap_or_default();
    all.extend(named.iter().map(|chunk| (chunk.digest, 0)));
    Ok(())
}

impl Gaps<'_> {
    /// What was read of an object; none if it is lost and may be.
    fn pass<T>(self, object: Digest, read: Result<T, Refusal>) -> Result<Option<T>, Refusal> {
        let lost = matches!(self, Self::Passed(stored) if !stored.contains_key(&object));
        match read {
            Err(missing) if missing.code == Code::ObjectMissing && lost => {
                let code = Code::ObjectMissing;
                tracing::warn!(%code, next = code.next_step(), "another run has lost an object, and what only that names is kept for nobody: {}", missing.detail);
                Ok(None)
            }
            read => read.map(Some),
        }
    }
}

async fn snapshot(store: &Store, object: ObjectRef) -> Result<SnapshotManifest, Refusal> {
    let bytes = store.fetch(object).await?;
    serde_json::from_slice(&bytes).map_err(|error| {
        let detail = format!("snapshot {}: {error}", object.digest);
        Refusal::new(Code::CollectionUnsure, detail)
    })
}

/// Deletes objects, group after group, and returns how many. After a failure no more deletion
/// begins; those that have begun are waited for, since nobody may write their objects meanwhile.
pub(crate) async fn delete(store: &Store, groups: Vec<Vec<Digest>>) -> Result<u64, Refusal> {
    let (deleted, failed) = (AtomicU64::new(0), AtomicBool::new(false));
    let mut ended = Vec::new();
    for group in groups {
        let deletions = stream::iter(group).map(|object| {
            let (deleted, failed) = (&deleted, &failed);
            async move {
                if failed.load(Ordering::Relaxed) {
                    return Ok(());
                }
                let one = delete_one(store, object).await;
                match &one {
                    Ok(gone) => _ = deleted.fetch_add(u64::from(*gone), Ordering::Relaxed),
                    Err(_) => failed.store(true, Ordering::Relaxed),
                }
                one.map(drop)
            }
        });
        let group: Vec<Result<(), Refusal>> =
            deletions.buffer_unordered(DELETIONS_MAX).collect().await;
        ended.extend(group.into_iter().find_map(Result::err));
    }
    let deleted = deleted.into_inner();
    match ended.into_iter().next() {
        None => Ok(deleted),
        Some(found) => {
            let detail = format!(
                "{deleted} objects were deleted, and the others are left: {}; repeat the command",
                found.detail
            );
            Err(Refusal::new(found.code, detail))
        }
    }
}

/// Deletes one object. False if it was written meanwhile, and stays.
async fn delete_one(store: &Store, object: Digest) -> Result<bool, Refusal> {
    let _permit = store.look().await;
    let Some(_deletion) = store.keeper.delete(object) else {
        return Ok(false);
    };
    let deleted = store.buckets.delete(object).await;
    deleted.map(|()| true).map_err(|error| refusal(&error))
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;
    use crate::store::tests::answering;

    #[tokio::test]
    async fn an_object_that_is_written_meanwhile_is_not_deleted() {
        let keeper = Keeper::default();
        let (old, new) = (Digest::of(b"old"), Digest::of(b"new"));
        // Written before: the ledger knows if it is needed.
        keeper.writes(old).await;
        assert!(keeper.delete(old).is_none(), "there is no collection");
        keeper.begin();
        keeper.writes(new).await;
        assert!(keeper.delete(new).is_none());
        drop(keeper.delete(old).expect("nobody has written it since"));
        keeper.end();
        assert!(keeper.delete(old).is_none(), "it is over");
        keeper.begin();
        assert!(keeper.delete(new).is_some(), "another collection");
    }

    #[test]
    fn only_a_lost_object_of_another_run_is_passed_over() {
        let (object, code) = (Digest::of(b"it"), Code::ObjectMissing);
        let lost = |code| Err::<(), _>(Refusal::new(code, "it"));
        let outcome = |gaps: Gaps<'_>, code| {
            let passed = gaps.pass(object, lost(code));
            passed.map_err(|refusal| refusal.code)
        };
        let (empty, lists_it) = (BTreeMap::new(), BTreeMap::from([(object, Bytes(2))]));
        assert_eq!(outcome(Gaps::Passed(&empty), code), Ok(None));
        let denied = outcome(Gaps::Passed(&lists_it), code);
        assert_eq!(denied, Err(code), "the store lists it");
        assert_eq!(outcome(Gaps::Refused, code), Err(code));
        let away = Code::StoreUnreachable;
        assert_eq!(outcome(Gaps::Passed(&empty), away), Err(away));
        assert_eq!(Gaps::Refused.pass(object, Ok(1)), Ok(Some(1)));
    }

    #[tokio::test]
    async fn what_is_lost_stops_the_collection_of_its_run_and_of_its_kin() {
        let (store, _serving) = answering("404 Not Found").await;
        let lost = ObjectRef::of(b"a manifest");
        let named = |run: Option<&str>| Needed {
            run: run.map(|run| run.parse().expect("a name")),
            named: Named::Snapshot(lost),
        };
        let kin = ["own", "twin"].map(|run| run.parse().expect("a name"));
        let kin = BTreeSet::from(kin);
        let listed = BTreeMap::from([(lost.digest, lost.bytes)]);
        let all = async |needed: &[Option<&str>], stored: &BTreeMap<Digest, Bytes>| {
            let needed = needed.iter().map(|run| named(*run)).collect();
            let found = all_needed(&store, &kin, needed, stored).await;
            found.map_err(|refusal| refusal.code)
        };
        let nothing = BTreeMap::new();
        let kept = Ok(BTreeSet::from([lost.digest]));
        assert_eq!(all(&[Some("other")], &nothing).await, kept);
        let unsure = Err(Code::CollectionUnsure);
        for needed in [
            &[Some("own")][..],
            &[Some("twin")],
            &[None],
            &[Some("other"), Some("own")],
            &[Some("own"), Some("other")],
        ] {
            assert_eq!(all(needed, &nothing).await, unsure, "{needed:?}");
        }
        assert_eq!(all(&[Some("other")], &listed).await, unsure, "it has it");
    }

    #[tokio::test]
    async fn a_writer_waits_for_the_deletion_of_its_object() {
        let keeper = Keeper::default();
        let (object, other) = (Digest::of(b"object"), Digest::of(b"other"));
        keeper.begin();
        let deletion = keeper.delete(object).expect("nobody has written it");
        keeper.writes(other).await;
        let mut writes = Box::pin(keeper.writes(object));
        assert!((&mut writes).now_or_never().is_none());
        drop(deletion);
        assert!((&mut writes).now_or_never().is_some());
        assert!(keeper.delete(object).is_none(), "it is kept from now on");
    }
}
