//! Power failures, played: a disk that notes what it was waited for. Everything else may be lost,
//! or may not: the system writes when it likes.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::AtomicUsize;

use super::*;
use crate::landing::AHEAD_MAX;

/// The things that were waited for.
#[derive(Debug, Default)]
struct Notes {
    /// The files whose bytes the disk has, by their number.
    bytes: BTreeSet<u64>,
    /// The entries that the disk has of each folder.
    names: BTreeMap<PathBuf, BTreeMap<PathBuf, u64>>,
}

/// A root on a disk that takes notes.
struct Scene {
    folder: tempfile::TempDir,
    root: Root,
    notes: Arc<Mutex<Notes>>,
    waits: Arc<AtomicUsize>,
}

impl Scene {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (notes, waits) = (
            Arc::<Mutex<Notes>>::default(),
            Arc::<AtomicUsize>::default(),
        );
        let blobs = folder.path().join("blobs");
        let disk = Disk {
            bytes: Box::new({
                let (notes, waits) = (notes.clone(), waits.clone());
                move |file| {
                    waits.fetch_add(1, Ordering::SeqCst);
                    notes.lock().unwrap().bytes.insert(file.metadata()?.ino());
                    Ok(())
                }
            }),
            names: Box::new({
                let (notes, waits) = (notes.clone(), waits.clone());
                move |folder| {
                    waits.fetch_add(1, Ordering::SeqCst);
                    let mut entries = BTreeMap::new();
                    for entry in fs::read_dir(folder)? {
                        let entry = entry?;
                        // Beside the root, other tests' folders come and go.
                        if let Ok(metadata) = entry.metadata() {
                            entries.insert(entry.path(), metadata.ino());
                        }
                    }
                    let mut notes = notes.lock().unwrap();
                    notes.assert_whole(&blobs);
                    notes.names.insert(folder.to_owned(), entries);
                    Ok(())
                }
            }),
        };
        let root = Root::open_on(disk, folder.path(), Durability::Always, 0).unwrap();
        Self {
            folder,
            root,
            notes,
            waits,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn publish(&self, name: &str) -> Option<Ahead> {
        let mut file = self.root.temporary().unwrap();
        file.write_all(b"bytes").unwrap();
        let how = Publish::Once;
        self.root.publish(file, &self.path(name), how).unwrap()
    }

    fn promote(&self, upload: &str, blob: &str) {
        self.root
            .link(&self.path(upload), &self.path(blob))
            .unwrap();
    }

    /// The number of waits for the disk that `work` makes.
    fn waits<T>(&self, work: impl FnOnce() -> T) -> usize {
        let before = self.waits.load(Ordering::SeqCst);
        work();
        self.waits.load(Ordering::SeqCst) - before
    }

    /// True if the file is there after a power failure in this moment, with all its bytes.
    fn survives(&self, name: &str) -> bool {
        let (path, notes) = (self.path(name), self.notes.lock().unwrap());
        let file = fs::metadata(&path).unwrap().ino();
        let named = path.ancestors().take_while(|at| *at != self.folder.path());
        let mut named = named.map(|at| Some(notes.names.get(at.parent()?)?.contains_key(at)));
        notes.bytes.contains(&file) && named.all(|named| named == Some(true))
    }
}

impl Notes {
    /// The system may write a name at any time, so nothing may have one in `blobs` before the disk
    /// has its bytes.
    fn assert_whole(&self, folder: &Path) {
        let entries = fs::read_dir(folder).into_iter().flatten();
        for entry in entries.map(Result::unwrap) {
            let metadata = entry.metadata().unwrap();
            if metadata.is_dir() {
                self.assert_whole(&entry.path());
            } else {
                let path = entry.path();
                assert!(self.bytes.contains(&metadata.ino()), "{}", path.display());
            }
        }
    }
}

#[test]
fn everything_that_is_answered_for_in_blobs_survives_with_its_folders() {
    for links in [true, false] {
        let mut scene = Scene::new();
        scene.root.links = links;
        scene.publish("blobs/sha256/00/direct");
        assert!(scene.survives("blobs/sha256/00/direct"));
        scene.publish("blobs/audit/tile/0");
        assert!(scene.survives("blobs/audit/tile/0"), "folders were made");
        let ahead = scene.publish("incoming/a").unwrap();
        assert!(!scene.survives("incoming/a"), "uploads are volatile");
        scene.promote("incoming/a", "blobs/sha256/00/a");
        assert!(scene.survives("blobs/sha256/00/a"));
        drop(ahead);
        // It finds the name that the first promotion gave.
        let again = scene
            .root
            .link(&scene.path("incoming/a"), &scene.path("blobs/sha256/00/a"));
        assert_eq!(again.unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert!(scene.survives("blobs/sha256/00/a"));
    }
}

/// The promotion that is answered relies on a name that another one has given, and whose folder is
/// not on the disk yet.
#[test]
fn a_promotion_that_finds_the_name_makes_it_durable() {
    let scene = Scene::new();
    scene.publish("incoming/a");
    let (source, name) = ("incoming/a", "blobs/sha256/00/a");
    scene.publish("blobs/sha256/00/makes the folder");
    let opened = File::open(scene.path(source)).unwrap();
    scene.root.land(&scene.path(source), &opened).unwrap();
    link_open(&opened, &scene.path(name)).unwrap();
    assert!(!scene.survives(name));
    let found = scene.root.link(&scene.path(source), &scene.path(name));
    assert_eq!(found.unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    assert!(scene.survives(name));
}

/// One sync of the folder above serves all folders that were made by then, and none that was not.
#[test]
fn folders_that_are_made_together_become_durable_together() {
    let scene = Scene::new();
    let name = |shard: usize| format!("blobs/sha256/{shard:02x}/object");
    (0..SHARDS_ALONE_MAX - 1).for_each(|shard| drop(scene.publish(&name(shard))));
    let publish = |shard| scene.waits(|| scene.publish(&name(shard)));
    let last = SHARDS_ALONE_MAX - 1;
    assert_eq!(publish(last), 3, "its bytes, its name, and all folders");
    for shard in last + 1..SHARDS {
        assert_eq!(publish(shard), 2, "{shard}");
        assert!(scene.survives(&name(shard)), "{shard}");
    }
}

/// The waits that a round pays for: each object waits once for its bytes and once for its name.
#[test]
fn an_object_waits_twice_and_an_upload_that_is_on_the_disk_once() {
    let scene = Scene::new();
    let publish = |name: &str| scene.waits(|| scene.publish(name));
    publish("blobs/sha256/00/makes the folder");
    assert_eq!(publish("blobs/sha256/00/direct"), 2);
    assert_eq!(publish("incoming/a"), 0);
    let promote = |upload: &str, blob: &str| scene.waits(|| scene.promote(upload, blob));
    assert_eq!(promote("incoming/a", "blobs/sha256/00/a"), 2);
    let ahead = scene.publish("incoming/b").unwrap();
    let land = || scene.root.land(&ahead.name, &ahead.file).unwrap();
    assert_eq!(scene.waits(land), 1);
    assert_eq!(promote("incoming/b", "blobs/sha256/00/b"), 1);
    assert!(scene.survives("blobs/sha256/00/b"));
}

/// A run whose urls were allowed again is not stopped by a power failure.
#[test]
fn tl_20_the_file_of_a_stopped_run_comes_and_goes_for_good() {
    let scene = Scene::new();
    let file = "blobs/stopped/demo";
    scene.publish(file);
    assert!(scene.survives(file));
    scene.root.remove(&scene.path(file)).unwrap();
    let known = |scene: &Scene| {
        let notes = scene.notes.lock().unwrap();
        notes.names[&scene.path("blobs/stopped")].contains_key(&scene.path(file))
    };
    assert!(!known(&scene), "the disk knows that it is gone");
    // The request before may have failed behind the removal.
    let again = scene.waits(|| scene.root.remove(&scene.path(file)).unwrap_err());
    assert_eq!(again, 1);
    // Nobody relies on the absence of an object.
    scene.publish("blobs/sha256/00/a");
    let removal = || scene.root.remove(&scene.path("blobs/sha256/00/a")).unwrap();
    assert_eq!(scene.waits(removal), 0);
}

/// Its name says nothing about an upload: another file may have it.
#[test]
fn an_upload_that_is_sent_again_is_synced_again() {
    let scene = Scene::new();
    scene.publish("blobs/sha256/00/makes the folder");
    for how in [Publish::Once, Publish::Replace] {
        let ahead = scene.publish("incoming/a").unwrap();
        scene.root.land(&ahead.name, &ahead.file).unwrap();
        drop(ahead);
        if how == Publish::Once {
            scene.root.remove(&scene.path("incoming/a")).unwrap();
            scene.publish("incoming/a");
        } else {
            let mut file = scene.root.temporary().unwrap();
            file.write_all(b"bytes").unwrap();
            scene
                .root
                .publish(file, &scene.path("incoming/a"), how)
                .unwrap();
        }
        let promote = || scene.promote("incoming/a", "blobs/sha256/00/a");
        assert_eq!(
            scene.waits(promote),
            2,
            "{how:?}: for its bytes and its name"
        );
        scene.root.remove(&scene.path("incoming/a")).unwrap();
        scene.root.remove(&scene.path("blobs/sha256/00/a")).unwrap();
    }
}

/// A disk that is slower than the uploads does not gather open files.
#[test]
fn so_many_uploads_are_synced_ahead_and_the_others_at_their_promotion() {
    let scene = Scene::new();
    let name = |nth: usize| format!("incoming/{nth}");
    let mut ahead: Vec<_> = (0..AHEAD_MAX)
        .map(|nth| scene.publish(&name(nth)))
        .collect();
    assert!(ahead.iter().all(Option::is_some));
    assert!(scene.publish("incoming/late").is_none());
    scene.promote("incoming/late", "blobs/sha256/00/late");
    assert!(scene.survives("blobs/sha256/00/late"));
    ahead.pop();
    assert!(scene.publish("incoming/next").is_some(), "a turn is free");
}

#[test]
fn a_root_that_promises_nothing_waits_for_nothing() {
    let mut scene = Scene::new();
    scene.root.durability = Durability::Kernel;
    let waits = scene.waits(|| {
        assert!(scene.publish("incoming/a").is_none());
        scene.promote("incoming/a", "blobs/sha256/00/a");
        scene.publish("blobs/sha256/00/direct");
    });
    assert_eq!(waits, 0);
}
