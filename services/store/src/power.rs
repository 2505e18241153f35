//! Power failures. An upload in `incoming` is answered once its bytes are whole, while the system
//! still writes them to the disk. Its promotion waits for the disk, and no result counts before
//! that. So a power failure may leave names in `incoming` whose bytes never arrived; the units that
//! they belong to are trained again.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use objects::BucketName;
use schemas::Hasher;

use crate::landing::Shared;
use crate::place::Place;

/// The file in which the system names the present boot of the machine.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// The file in the root that names the boot in which `incoming` was last checked.
const CHECKED: &str = "checked";
const READ_BYTES: usize = 1 << 20;

/// The uploads in `incoming` that a power failure may have torn: those that were there at the
/// start, if the machine was booted since the last check. They are checked while the store serves,
/// since there may be many, and an upload that somebody asks for meanwhile is checked at once.
///
/// A system that does not name its boots is checked at each start.
#[derive(Debug, Default)]
pub(crate) struct Suspects {
    unchecked: Mutex<BTreeMap<PathBuf, Arc<Shared>>>,
    /// The file that is written once all are checked, and the present boot.
    note: Option<(PathBuf, Vec<u8>)>,
}

impl Suspects {
    /// Finds them, and reads none.
    pub(crate) fn of(root: &Path) -> io::Result<Self> {
        Self::unless_checked_in(root, fs::read(BOOT_ID).ok())
    }

    fn unless_checked_in(root: &Path, boot: Option<Vec<u8>>) -> io::Result<Self> {
        let note = root.join(CHECKED);
        if boot.is_some() && fs::read(&note).ok() == boot {
            return Ok(Self::default());
        }
        let incoming = root.join(BucketName::Incoming.as_str());
        let mut unchecked = BTreeMap::new();
        for entry in fs::read_dir(&incoming)? {
            let name = entry?.file_name();
            if name.to_str().and_then(Place::of_upload).is_some() {
                unchecked.insert(incoming.join(name), Arc::default());
            }
        }
        Ok(Self {
            unchecked: Mutex::new(unchecked),
            note: boot.map(|boot| (note, boot)),
        })
    }

    /// Checks the file with this name if it is a suspect, and removes it if it is torn. To be
    /// called before anything is done with an upload. Who asks while another one checks waits for
    /// the end, so that no file is removed that was sent again meanwhile.
    ///
    /// # Errors
    /// It is torn and cannot be removed; it stays a suspect.
    pub(crate) fn check(&self, name: &Path) -> io::Result<()> {
        let Some(check) = self.unchecked().get(name).cloned() else {
            return Ok(());
        };
        check.done(|| remove_if_torn(name))?;
        self.unchecked().remove(name);
        Ok(())
    }

    /// True while there are suspects.
    pub(crate) fn are_left(&self) -> bool {
        !self.unchecked().is_empty()
    }

    /// Checks one after another until `stop`. When all are checked, the next start of this boot has
    /// nothing to check.
    pub(crate) fn check_all(&self, stop: impl Fn() -> bool) {
        let names: Vec<PathBuf> = self.unchecked().keys().cloned().collect();
        if !names.is_empty() {
            let uploads = names.len();
            tracing::info!(
                uploads,
                "the machine was booted since the last check: all uploads are read and checked"
            );
        }
        for name in &names {
            if stop() {
                return;
            }
            if let Err(error) = self.check(name) {
                tracing::error!(%error, name = %name.display(), "a torn upload cannot be removed");
            }
        }
        let note = self.note.as_ref().filter(|_| !self.are_left());
        // Not synced: if the file is lost, or cannot be written, the next start checks once more.
        if let Some((note, boot)) = note
            && let Err(error) = fs::write(note, boot)
        {
            tracing::warn!(%error, "the next start checks all uploads again");
        }
    }

    fn unchecked(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Arc<Shared>>> {
        self.unchecked.lock().expect("no holder panics")
    }
}

/// Removes an upload whose bytes are not those of its key. One that cannot be read is lost as well.
fn remove_if_torn(path: &Path) -> io::Result<()> {
    let torn = is_torn(path);
    if matches!(torn, Ok(false)) {
        return Ok(());
    }
    match fs::remove_file(path) {
        // It was deleted meanwhile.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        removed => removed?,
    }
    tracing::warn!(
        path = %path.display(),
        error = torn.err().map(tracing::field::display),
        "an upload did not survive a power failure and is removed"
    );
    Ok(())
}

/// True for the file of an upload whose bytes are not those that its key names.
fn is_torn(path: &Path) -> io::Result<bool> {
    let name = path.file_name().and_then(OsStr::to_str);
    let upload = name.and_then(Place::of_upload);
    let promised = upload.and_then(|upload| upload.digest);
    let promised = promised.expect("a suspect has the name of an upload, which ends with a digest");
    let mut file = File::open(path)?;
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finish() != promised),
            read => hasher.update(&buffer[..read]),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::fd::AsRawFd as _;

    use objects::IncomingKey;
    use schemas::Digest;

    use super::*;
    use crate::config::Durability;
    use crate::root::{Publish, Root};

    const PUBLIC: &str = "UDKTV7HZVYJFJN64LLMYQBUR6MTNNYCDC3LAZH4VHURW3GZLL3FULBXV";

    /// The pages of a file in memory, by `cachestat(2)`.
    #[derive(Debug)]
    struct Pages {
        cached: u64,
        /// The system has not begun to write these.
        dirty: u64,
        being_written: u64,
    }

    /// None where the system cannot tell.
    fn pages(path: &Path) -> Option<Pages> {
        /// The same number on every architecture.
        const CACHESTAT: libc::c_long = 451;
        let file = File::open(path).unwrap();
        let (whole, mut pages) = ([0_u64; 2], [0_u64; 5]);
        // SAFETY: the kernel reads two numbers and writes five, and both arrays outlive the call.
        let status = unsafe {
            libc::syscall(
                CACHESTAT,
                file.as_raw_fd(),
                whole.as_ptr(),
                pages.as_mut_ptr(),
                0,
            )
        };
        let [cached, dirty, being_written, ..] = pages;
        (status == 0).then_some(Pages {
            cached,
            dirty,
            being_written,
        })
    }

    /// The pages whose bytes are in memory only.
    fn unwritten(path: &Path) -> Option<u64> {
        pages(path).map(|pages| pages.dirty + pages.being_written)
    }

    /// A store on a disk, where the system's temporary folder may be memory.
    fn on_a_disk(durability: Durability) -> (tempfile::TempDir, Root) {
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let root = Root::open(folder.path(), durability, 0).unwrap();
        (folder, root)
    }

    fn publish(root: &Root, name: &Path) {
        let mut file = root.temporary().unwrap();
        file.write_all(&[7; 100_000]).unwrap();
        root.publish(file, name, Publish::Once).unwrap();
    }

    #[expect(
        clippy::print_stderr,
        reason = "the output must show that a test did not run"
    )]
    fn skipped() {
        eprintln!("skipped: this system does not say what is on the disk");
    }

    #[test]
    fn a_promotion_waits_for_the_disk_and_an_upload_does_not() {
        let (folder, root) = on_a_disk(Durability::Always);
        let (upload, promoted) = (
            folder.path().join("incoming/run/upload"),
            folder.path().join("blobs/promoted"),
        );
        let direct = folder.path().join("blobs/direct");
        publish(&root, &direct);
        publish(&root, &upload);
        fs::write(&upload, [8; 100_000]).unwrap();
        let Some(before) = unwritten(&upload) else {
            return skipped();
        };
        assert!(before > 0, "the system writes a new file later");
        root.link(&upload, &promoted).unwrap();
        assert_eq!(unwritten(&promoted), Some(0));
        assert_eq!(unwritten(&direct), Some(0), "what lands in blobs waits");
        let cached = pages(&promoted).map(|pages| pages.cached);
        assert_eq!(cached, Some(0), "its memory is free for the next upload");
    }

    /// So that less is left to wait for when an upload is promoted. Where nothing is promised, the
    /// system writes when it likes.
    #[test]
    fn an_upload_is_on_its_way_to_the_disk_when_it_is_answered() {
        for (durability, begun) in [(Durability::Always, true), (Durability::Kernel, false)] {
            let (folder, root) = on_a_disk(durability);
            let upload = folder.path().join("incoming/run/upload");
            publish(&root, &upload);
            let Some(pages) = pages(&upload) else {
                return skipped();
            };
            assert_eq!(pages.dirty == 0, begun, "{durability:?}: {pages:?}");
        }
    }

    /// A damaged upload is never promoted, nor in the way of a good one, whatever the check has
    /// come to.
    #[test]
    fn an_upload_is_checked_before_it_is_promoted_and_the_start_waits_for_no_check() {
        let folder = tempfile::tempdir().unwrap();
        let (torn, whole, other) = (
            upload(folder.path(), b"torn", b"to"),
            upload(folder.path(), b"whole", b"whole"),
            upload(folder.path(), b"other", b""),
        );
        let root = Root::open(folder.path(), Durability::Always, 0).unwrap();
        assert!(torn.exists() && other.exists(), "none was read yet");
        let name = folder.path().join("blobs/object");
        let refused = root.link(&torn, &name).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::NotFound);
        assert!(!torn.exists() && !name.exists());
        root.link(&whole, &name).unwrap();
        assert_eq!(fs::read(&name).unwrap(), b"whole");
        // It is sent again, whole or not: what was answered in this boot is none of the suspects.
        upload(folder.path(), b"torn", b"sent again");
        root.check_suspects();
        assert!(torn.exists() && whole.exists() && !other.exists());
        assert!(!root.suspects().are_left());
    }

    /// Two look at a torn upload; it is sent again as soon as one of them has removed it.
    #[test]
    fn nobody_removes_what_was_sent_again_during_the_check() {
        let folder = tempfile::tempdir().unwrap();
        let incoming = folder.path().join("incoming");
        fs::create_dir(&incoming).unwrap();
        let torn = upload(folder.path(), b"torn", b"");
        let suspects = Suspects::unless_checked_in(folder.path(), None).unwrap();
        let check = suspects.unchecked().get(&torn).cloned().unwrap();
        std::thread::scope(|scope| {
            let second = check.done(|| {
                let second = scope.spawn(|| suspects.check(&torn));
                fs::remove_file(&torn)?;
                fs::write(&torn, b"sent again")?;
                assert!(suspects.are_left() && !second.is_finished());
                Ok(())
            });
            second.unwrap();
        });
        assert_eq!(fs::read(&torn).unwrap(), b"sent again");
        assert!(!suspects.are_left());
    }

    /// The store ends when it is told to; the next start begins anew.
    #[test]
    fn a_check_that_is_stopped_is_repeated_at_the_next_start() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("incoming")).unwrap();
        let torn = upload(folder.path(), b"torn", b"");
        let find = || Suspects::unless_checked_in(folder.path(), Some(b"boot".to_vec())).unwrap();
        find().check_all(|| true);
        assert!(torn.exists() && find().are_left());
        find().check_all(|| false);
        assert!(!torn.exists());
        upload(folder.path(), b"torn", b"");
        assert!(!find().are_left(), "this boot is noted");
    }

    /// An upload whose key names the digest of `promised`.
    fn upload(root: &Path, promised: &[u8], bytes: &[u8]) -> std::path::PathBuf {
        let operator = PUBLIC.parse().unwrap();
        let key = IncomingKey::operator(&operator, Digest::of(promised));
        let place = Place::parse("incoming", &key.to_string()).unwrap();
        let path = place.path(root);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    #[test]
    fn uploads_that_a_power_failure_tore_are_gone_and_whole_ones_stay() {
        let root = tempfile::tempdir().unwrap();
        let upload = |promised: &[u8], bytes: &[u8]| upload(root.path(), promised, bytes);
        let (whole, torn) = (upload(b"whole", b"whole"), upload(b"torn", b""));
        let foreign = root.path().join("incoming/not a key");
        fs::write(&foreign, b"").unwrap();
        // No system reads through a link that leads to itself.
        let unreadable = upload(b"unreadable", b"unreadable");
        fs::remove_file(&unreadable).unwrap();
        std::os::unix::fs::symlink(&unreadable, &unreadable).unwrap();
        let check = |boot: Option<&[u8]>| {
            let boot = boot.map(<[u8]>::to_vec);
            let suspects = Suspects::unless_checked_in(root.path(), boot).unwrap();
            suspects.check_all(|| false);
        };
        check(Some(b"one"));
        assert!(whole.exists() && !torn.exists() && foreign.exists());
        assert!(fs::symlink_metadata(&unreadable).is_err());
        let torn = upload(b"torn", b"to");
        check(Some(b"one"));
        assert!(torn.exists(), "the machine has run on since");
        check(Some(b"two"));
        assert!(whole.exists() && !torn.exists());
        upload(b"torn", b"");
        check(None);
        assert!(!torn.exists(), "a system that names no boots");
    }
}
