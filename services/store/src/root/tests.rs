//! Tests of the folder: names, rooms, claims.

use std::cell::Cell;
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc;

use super::*;

fn root(folder: &Path) -> Root {
    Root::open(folder, Durability::Always, 0).unwrap()
}

#[test]
fn a_second_process_is_refused_and_leftovers_are_removed() {
    let folder = tempfile::tempdir().unwrap();
    let first = root(folder.path());
    assert!(matches!(
        Root::open(folder.path(), Durability::Kernel, 0),
        Err(RootError::Busy)
    ));
    let leftover = folder.path().join("tmp/leftover");
    fs::write(&leftover, b"half").unwrap();
    drop(first);
    let _second = root(folder.path());
    assert!(!leftover.exists());
}

/// The system reports an error of the disk once, to the first sync after it.
#[test]
fn an_upload_that_the_disk_lost_is_gone_when_its_promotion_is_repeated() {
    for links in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let failing = Root {
            links,
            disk: failing_once(),
            ..root(folder.path())
        };
        let (source, name) = (
            folder.path().join("incoming/a"),
            folder.path().join("blobs/a"),
        );
        fs::write(&source, b"lost on the way to the disk").unwrap();
        // Another promotion has opened the upload by then, and looks for its name afterwards.
        let opened = File::open(&source).unwrap();
        assert!(failing.link(&source, &name).is_err());
        let repeated = failing.link(&source, &name).unwrap_err();
        assert_eq!(repeated.kind(), io::ErrorKind::NotFound);
        assert!(failing.land(&source, &opened).is_ok(), "no error is left");
        let named = link_open(&opened, &name).unwrap_err();
        assert_eq!(named.kind(), io::ErrorKind::NotFound);
        assert!(!name.exists());
    }
}

/// A disk that fails the first time that it is waited for, and reports nothing later: as the system
/// does.
fn failing_once() -> Disk {
    let failed = AtomicBool::new(false);
    Disk {
        bytes: Box::new(move |_| match failed.swap(true, Ordering::SeqCst) {
            false => Err(io::Error::other("played by the test")),
            true => Ok(()),
        }),
        ..Disk::system()
    }
}

/// The second promotion comes while the first waits for the disk, and must not find the error
/// spent.
#[test]
fn two_promotions_of_an_upload_that_the_disk_lost_share_the_error() {
    let folder = tempfile::tempdir().unwrap();
    let (source, name) = (
        folder.path().join("incoming/a"),
        folder.path().join("blobs/a"),
    );
    let (told, comes) = mpsc::sync_channel(1);
    let (opened, go) = mpsc::sync_channel::<()>(1);
    let (go, failing) = (Mutex::new(go), failing_once());
    let bytes = move |file: &File| {
        let _first = told.try_send(());
        let _second = go.lock().unwrap().recv();
        failing.sync_bytes(file)
    };
    let root = Root {
        disk: Disk {
            bytes: Box::new(bytes),
            ..Disk::system()
        },
        ..root(folder.path())
    };
    fs::write(&source, b"lost on the way to the disk").unwrap();
    std::thread::scope(|scope| {
        let first = scope.spawn(|| root.link(&source, &name));
        comes.recv().unwrap();
        let second = scope.spawn(|| {
            let file = File::open(&source).unwrap();
            drop(opened);
            root.land(&source, &file)
                .and_then(|()| link_open(&file, &name))
        });
        assert!(first.join().unwrap().is_err());
        assert!(second.join().unwrap().is_err());
    });
    assert!(!name.exists() && !source.exists());
}

/// An upload is deleted and sent again while its promotion waits for the disk. The new one is not
/// on the disk, although it has the same name.
#[test]
fn the_file_that_was_synced_gets_the_name_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let (source, name) = (
        folder.path().join("incoming/a"),
        folder.path().join("blobs/a"),
    );
    let sent_again = source.clone();
    let root = Root {
        disk: Disk {
            bytes: Box::new(move |_| {
                fs::remove_file(&sent_again)?;
                fs::write(&sent_again, b"bytes")
            }),
            ..Disk::system()
        },
        ..root(folder.path())
    };
    fs::write(&source, b"bytes").unwrap();
    let promoted = root.link(&source, &name).unwrap_err();
    assert_eq!(promoted.kind(), io::ErrorKind::NotFound);
    assert!(!name.exists() && source.exists());
}

/// A store that is used gets all folders of verified objects at once, and one sync for all.
#[test]
fn the_folders_of_verified_objects_are_made_together_once_there_are_some() {
    let folder = tempfile::tempdir().unwrap();
    let root = root(folder.path());
    let shards = folder.path().join("blobs/sha256");
    let count = || fs::read_dir(&shards).unwrap().count();
    let publish = |shard: usize| {
        let file = root.temporary().unwrap();
        let name = shards.join(format!("{shard:02x}")).join("object");
        root.publish(file, &name, Publish::Once).unwrap();
        assert!(root.fresh().is_empty(), "every folder was synced");
    };
    (1..SHARDS_ALONE_MAX).for_each(publish);
    assert_eq!(count(), SHARDS_ALONE_MAX - 1);
    publish(0);
    assert_eq!(count(), SHARDS);
}

/// On a file system with hard links and on one without.
#[test]
fn names_are_given_once_or_replaced() {
    for links in [true, false] {
        names_are_given(links);
    }
}

fn names_are_given(links: bool) {
    let folder = tempfile::tempdir().unwrap();
    let root = Root {
        links,
        ..root(folder.path())
    };
    let name = folder.path().join("blobs/a/b/c");
    let write = |text: &[u8], how| {
        let mut file = root.temporary().unwrap();
        file.write_all(text).unwrap();
        root.publish(file, &name, how).map(drop)
    };
    write(b"first", Publish::Once).unwrap();
    assert_eq!(
        write(b"second", Publish::Once).unwrap_err().kind(),
        io::ErrorKind::AlreadyExists
    );
    assert_eq!(fs::read(&name).unwrap(), b"first");
    write(b"third", Publish::Replace).unwrap();
    assert_eq!(fs::read(&name).unwrap(), b"third");
    assert_eq!(fs::read_dir(folder.path().join("tmp")).unwrap().count(), 0);
    assert!(root.fresh().is_empty(), "every folder above was synced");
}

/// The system then checks and gives a name at once, so no upload waits for another.
#[test]
fn uploads_get_their_names_beside_each_other_where_there_are_links() {
    let folder = tempfile::tempdir().unwrap();
    let root = root(folder.path());
    let another_is_named = root.naming.try_lock().unwrap();
    let name = folder.path().join("blobs/a");
    let file = root.temporary().unwrap();
    root.publish(file, &name, Publish::Once).unwrap();
    assert!(name.exists());
    drop(another_is_named);
}

#[test]
fn a_second_name_has_the_same_bytes_and_is_given_once() {
    for links in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let root = Root {
            links,
            ..root(folder.path())
        };
        let (source, name) = (
            folder.path().join("incoming/a"),
            folder.path().join("blobs/x/a"),
        );
        fs::write(&source, b"bytes").unwrap();
        File::options()
            .append(true)
            .open(&source)
            .unwrap()
            .set_modified(SystemTime::UNIX_EPOCH)
            .unwrap();
        root.link(&source, &name).unwrap();
        assert_eq!(fs::read(&name).unwrap(), b"bytes");
        let file = |path| fs::metadata(path).unwrap().ino();
        assert_eq!(file(&source) == file(&name), links, "a link costs no room");
        assert!(
            fs::metadata(&name).unwrap().modified().unwrap() > SystemTime::UNIX_EPOCH,
            "it is young here"
        );
        assert_eq!(
            root.link(&source, &name).unwrap_err().kind(),
            io::ErrorKind::AlreadyExists
        );
        let missing = root.link(
            &folder.path().join("incoming/b"),
            &folder.path().join("blobs/b"),
        );
        assert_eq!(missing.unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(fs::read_dir(folder.path().join("tmp")).unwrap().count(), 0);
    }
}

/// Checks a file system on which a promotion is a copy: it takes as much room as an upload.
/// A promotion has opened the upload before the disk has lost it.
#[test]
fn a_file_that_was_lost_is_not_copied() {
    let folder = tempfile::tempdir().unwrap();
    let root = Root {
        links: false,
        ..root(folder.path())
    };
    let source = root.path().join("incoming/upload");
    fs::write(&source, "bytes").unwrap();
    let file = File::open(&source).unwrap();
    let name = root.path().join("blobs/sha256/00/object");
    root.copy(&file, &name).unwrap();
    assert!(name.exists());
    fs::remove_file(&source).unwrap();
    let name = root.path().join("blobs/sha256/00/another");
    let refused = root.copy(&file, &name).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::NotFound);
    assert!(!name.exists());
}

#[test]
fn a_copy_is_refused_where_there_is_no_room_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let root = Root {
        links: false,
        free_bytes_min: u64::MAX / 2,
        ..root(folder.path())
    };
    let (source, name) = (
        folder.path().join("incoming/a"),
        folder.path().join("blobs/a"),
    );
    fs::write(&source, b"bytes").unwrap();
    assert_eq!(
        root.link(&source, &name).unwrap_err().kind(),
        io::ErrorKind::StorageFull
    );
    assert!(!name.exists());
    fs::write(&name, b"bytes").unwrap();
    assert_eq!(
        root.link(&source, &name).unwrap_err().kind(),
        io::ErrorKind::AlreadyExists,
        "what is there needs none"
    );
    assert_eq!(
        root.reserved.load(Ordering::Relaxed),
        0,
        "and none is kept for it"
    );
    assert!(
        free_bytes(&folder.path().join("absent")).is_err(),
        "what cannot be looked at is not taken for room"
    );
}

#[test]
fn the_ground_is_tried_and_nothing_is_left_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let root = root(folder.path());
    assert!(root.has_links(), "the folder of tests has hard links");
    let without = Root {
        links: false,
        ..self::root(tempfile::tempdir().unwrap().path())
    };
    assert!(!without.has_links());
    assert_eq!(fs::read_dir(folder.path().join("tmp")).unwrap().count(), 0);
}

#[test]
fn room_is_counted_with_uploads_in_progress() {
    let folder = tempfile::tempdir().unwrap();
    let free = free_bytes(folder.path()).unwrap();
    let root = Root::open(folder.path(), Durability::Kernel, free / 2).unwrap();
    let first = root.reserve(free / 3).unwrap();
    assert!(first.is_some());
    assert!(root.reserve(free / 3).unwrap().is_none());
    drop(first);
    assert!(root.reserve(free / 3).unwrap().is_some());
}

#[test]
fn what_has_landed_is_not_reserved_any_more() {
    let folder = tempfile::tempdir().unwrap();
    let root = Root::open(folder.path(), Durability::Kernel, 0).unwrap();
    let reserved = || root.reserved.load(Ordering::Relaxed);
    let mut room = root.reserve(100).unwrap().unwrap();
    room.landed(60);
    assert_eq!(reserved(), 40);
    room.landed(60);
    assert_eq!(reserved(), 0);
    drop(room);
    assert_eq!(reserved(), 0);
}

/// A store that ends waits for the threads that still write.
#[tokio::test]
async fn a_writing_thread_is_known_until_it_ends() {
    let folder = tempfile::tempdir().unwrap();
    let root = root(folder.path());
    let (go, wait) = mpsc::sync_channel::<()>(0);
    let writer = root.writers().spawn_blocking(move || wait.recv());
    assert_eq!(root.writers().len(), 1);
    drop(go);
    let _ended = writer.await.unwrap();
    root.writers().close();
    root.writers().wait().await;
    assert_eq!(root.writers().len(), 0);
}

#[test]
fn a_name_is_claimed_by_one_upload_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let root = root(folder.path());
    let claim = root.claim("a".into());
    assert!(
        claim.is_some() && root.claim("a".into()).is_none() && root.claim("b".into()).is_some()
    );
    drop(claim);
    assert!(root.claim("a".into()).is_some());
}

#[test]
fn a_folder_that_vanishes_is_made_again_and_not_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let root = root(folder.path());
    let name = folder.path().join("blobs/a/b");
    let tried = |put: &dyn Fn(usize) -> io::Result<()>| {
        let tries = Cell::new(0);
        let ended = root.in_folder_of(&name, || {
            tries.set(tries.get() + 1);
            put(tries.get())
        });
        (ended.map_err(|error| error.kind()), tries.get())
    };
    let swept = |nth| {
        if nth == 2 {
            fs::remove_dir(name.parent().unwrap())?;
        }
        fs::write(&name, b"x")
    };
    assert_eq!(tried(&swept), (Ok(()), 3));
    let gone = io::ErrorKind::NotFound;
    assert_eq!(tried(&|_| Err(gone.into())), (Err(gone), PUBLISH_TRIES_MAX));
    let full = io::ErrorKind::StorageFull;
    assert_eq!(
        tried(&|_| Err(full.into())),
        (Err(full), 1),
        "no folder's fault"
    );
}

/// A folder is noted until its own entry is durable; else a name that was answered for could be
/// gone after a power failure.
#[test]
fn each_folder_that_is_made_is_synced_before_an_answer_relies_on_it() {
    let folder = tempfile::tempdir().unwrap();
    let (inner, name) = (
        folder.path().join("blobs/a/b"),
        folder.path().join("blobs/a/b/c"),
    );
    let always = root(folder.path());
    always.make_folder(&inner).unwrap();
    let noted = || always.fresh().iter().cloned().collect::<Vec<_>>();
    let made = [inner.parent().unwrap().to_owned(), inner.clone()];
    assert_eq!(noted(), made, "none is durable yet");
    let refused = always.in_folder_of(&name, || Err(io::ErrorKind::StorageFull.into()));
    assert!(
        refused.is_err() && noted() == made,
        "nothing relies on them"
    );
    let taken = always.in_folder_of(&name, || Err(io::ErrorKind::AlreadyExists.into()));
    assert!(
        taken.is_err() && noted().is_empty(),
        "what is there is relied on"
    );
    drop(always);
    let kernel = Root::open(folder.path(), Durability::Kernel, 0).unwrap();
    kernel.make_folder(&folder.path().join("blobs/x")).unwrap();
    assert!(kernel.fresh().is_empty(), "nothing is promised");
    kernel.fresh().insert(inner.clone());
    kernel.in_folder_of(&name, || Ok(())).unwrap();
    assert!(kernel.fresh().contains(&inner));
}

#[test]
fn a_file_in_the_place_of_a_folder_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let root = root(folder.path());
    let blocked = folder.path().join("blobs/a");
    fs::write(&blocked, b"x").unwrap();
    assert!(root.make_folder(&blocked).is_err());
    assert!(root.make_folder(&blocked.join("b")).is_err());
}

/// The user of the store may have no right to the folder above the root; it has made the entry
/// there only if it has the right.
#[test]
fn a_folder_above_that_the_store_may_not_open_is_no_fault_of_the_disk() {
    for (kind, opens) in [
        (io::ErrorKind::PermissionDenied, true),
        (io::ErrorKind::StorageFull, false),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let above = fs::canonicalize(folder.path()).unwrap();
        let path = folder.path().join("root");
        fs::create_dir(&path).unwrap();
        let disk = Disk {
            names: Box::new(move |at| {
                if at == above {
                    Err(kind.into())
                } else {
                    Ok(())
                }
            }),
            ..Disk::system()
        };
        let opened = Root::open_on(disk, &path, Durability::Always, 0);
        assert_eq!(opened.is_ok(), opens, "{kind:?}");
    }
}
