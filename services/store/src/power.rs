//! Power failures. An upload in `incoming` is answered once its bytes are whole, while the system
//! still writes them to the disk. Its promotion waits for the disk, and no result counts before
//! that. So a power failure may leave names in `incoming` whose bytes never arrived; the units that
//! they belong to are trained again.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::Path;

use objects::BucketName;
use schemas::Hasher;

use crate::place::Place;

/// The file in which the system names the present boot of the machine.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// The file in the root that names the boot in which `incoming` was last checked.
const CHECKED: &str = "checked";
const READ_BYTES: usize = 1 << 20;

/// Removes the uploads in `incoming` whose bytes are not those of their key, if the machine was
/// booted since the last check. Returns how many were removed.
///
/// A system that does not name its boots is checked at each start.
pub(crate) fn remove_torn_uploads(root: &Path) -> io::Result<u64> {
    remove_unless_checked_in(root, fs::read(BOOT_ID).ok().as_deref())
}

fn remove_unless_checked_in(root: &Path, boot: Option<&[u8]>) -> io::Result<u64> {
    let checked = fs::read(root.join(CHECKED)).ok();
    if boot.is_some() && checked.as_deref() == boot {
        return Ok(0);
    }
    tracing::info!("the machine was booted since the last start: all uploads are read and checked");
    let incoming = root.join(BucketName::Incoming.as_str());
    let removed = remove_torn(&incoming)?;
    // Not synced: if the file is lost, or cannot be written, the next start checks once more.
    if let Some(boot) = boot
        && let Err(error) = fs::write(root.join(CHECKED), boot)
    {
        tracing::warn!(%error, "the next start checks all uploads again");
    }
    Ok(removed)
}

fn remove_torn(incoming: &Path) -> io::Result<u64> {
    let mut removed = 0;
    for entry in fs::read_dir(incoming)? {
        let name = entry?.file_name();
        let Some(place) = name.to_str().and_then(Place::of_upload) else {
            continue;
        };
        let path = incoming.join(&name);
        // An upload that cannot be read is lost as well, and must not keep the others away.
        let torn = is_torn(&path, &place);
        if !matches!(torn, Ok(false)) {
            tracing::warn!(
                path = %path.display(),
                error = torn.err().map(tracing::field::display),
                "an upload did not survive a power failure and is removed"
            );
            fs::remove_file(&path)?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// True for the file of an upload whose bytes are not those that its key names.
fn is_torn(path: &Path, upload: &Place) -> io::Result<bool> {
    let promised = upload
        .digest
        .expect("the key of an upload ends with a digest");
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

    #[test]
    fn a_store_that_starts_looks_for_torn_uploads() {
        let folder = tempfile::tempdir().unwrap();
        let torn = upload(folder.path(), b"torn", b"");
        let root = Root::open(folder.path(), Durability::Kernel, 0);
        assert!(root.is_ok() && !torn.exists());
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
        let check = |boot| remove_unless_checked_in(root.path(), boot).unwrap();
        assert_eq!(check(Some(b"one".as_slice())), 2);
        assert!(whole.exists() && !torn.exists() && foreign.exists());
        assert!(fs::symlink_metadata(&unreadable).is_err());
        let torn = upload(b"torn", b"to");
        assert_eq!(check(Some(b"one")), 0, "the machine has run on since");
        assert_eq!(check(Some(b"two")), 1);
        assert!(whole.exists() && !torn.exists());
        upload(b"torn", b"");
        assert_eq!(check(None), 1, "a system that names no boots");
    }
}
