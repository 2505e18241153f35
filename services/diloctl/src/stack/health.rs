//! Finds out whether a running broker can be used. After a failed write, most often on a full disk,
//! the broker goes on answering requests and stores nothing more until it is started again, even
//! when there is room again. Only its log gives the reason.

use std::ffi::CString;
use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use runtime::Failure;
use schemas::Code;

use super::process::Running;
use super::services::BROKER;
use crate::table::bytes;

/// Bytes read from the end of a log. A broker in trouble repeats itself with every write.
const TAIL_BYTES: u64 = 1 << 20;
/// Free space below which a restart of the broker does not help: two of the blocks that it writes
/// its streams in.
pub(crate) const ROOM_BYTES_MIN: u64 = 16 << 20;
/// Texts in the broker's log that say its store has failed for good.
const SIGNS: [&str; 3] = [
    "critical write error",
    "no space left on device",
    "JetStream out of resources",
];

/// The reason why the broker stores nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BrokerFault {
    /// The broker's own words.
    pub(crate) words: String,
    /// The file that it could not write.
    file: Option<PathBuf>,
}

impl BrokerFault {
    /// The trouble of the broker that `up` started from this domain, if it is in trouble.
    pub(crate) fn of_broker(domain: &Path) -> Option<Self> {
        Running::find(domain, BROKER)
            .ok()
            .flatten()
            .and_then(|running| Self::of(&running))
    }

    /// The trouble of a process that is a broker.
    pub(super) fn of(running: &Running) -> Option<Self> {
        let read = || -> std::io::Result<Vec<u8>> {
            let mut file = fs::File::open(&running.log)?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
            let mut tail = Vec::new();
            file.take(TAIL_BYTES).read_to_end(&mut tail)?;
            Ok(tail)
        };
        let trouble = Self::told(&String::from_utf8_lossy(&read().ok()?), running.pid)?;
        // The broker runs in the folder above the domain's, and its log lies below that:
        // `.diloco/logs/nats-server.log`.
        let home = running.log.ancestors().nth(3).unwrap_or(Path::new(""));
        Some(Self {
            file: trouble.file.map(|file| home.join(file)),
            ..trouble
        })
    }

    /// The last sign of trouble that the process with this number wrote: the log also holds the
    /// lines of all brokers before it.
    fn told(log: &str, pid: u32) -> Option<Self> {
        let mark = format!("[{pid}] ");
        let own = log
            .lines()
            .rev()
            .filter_map(|line| line.strip_prefix(&mark)?.split_once("[ERR] "));
        let own = own.filter(|(_, words)| !is_of_a_connection(words));
        let (_, words) = own
            .into_iter()
            .find(|(_, words)| SIGNS.iter().any(|sign| words.contains(sign)))?;
        let file = words
            .split_once(": write ")
            .and_then(|(_, rest)| rest.split_once(": "));
        Some(Self {
            words: words.to_owned(),
            file: file.map(|(path, _)| PathBuf::from(path)),
        })
    }

    /// The trouble as the failure of a command.
    pub(crate) fn failure(&self) -> Failure {
        Failure::new(
            Code::StreamNotStored,
            format!("the broker says: {}", self.words),
        )
    }

    /// Checks that a restart of the broker can help.
    ///
    /// # Errors
    /// The broker's disk is still full.
    pub(super) fn check_room(&self) -> Result<(), Failure> {
        let Some((folder, free)) = self.file.as_deref().and_then(room) else {
            return Ok(());
        };
        if free >= ROOM_BYTES_MIN {
            return Ok(());
        }
        let (folder, free, words) = (folder.display(), bytes(free), &self.words);
        Err(Failure::new(
            Code::StreamNotStored,
            format!("{free} are free at {folder}; the broker says: {words}"),
        ))
    }
}

/// True for a line that the broker writes about a peer: `127.0.0.1:4222 - cid:7 - "v1.0:go:name" -
/// …`. Such a line quotes the name that the peer chose, and a peer may choose the words of a full
/// disk.
fn is_of_a_connection(words: &str) -> bool {
    words.split(" - ").nth(1).is_some_and(|kind| {
        let name = kind.split_once(':').map_or("", |(name, _)| name);
        name.len() <= 4 && name.ends_with("id")
    })
}

/// The nearest existing folder above a file, and the free space on its disk.
pub(crate) fn room(file: &Path) -> Option<(&Path, u64)> {
    let folder = file.ancestors().skip(1).find(|folder| folder.is_dir())?;
    let path = CString::new(folder.as_os_str().as_bytes()).ok()?;
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: `path` is a C string that outlives the call, and `stat` is room for what the call
    // writes.
    let status = unsafe { libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) };
    if status != 0 {
        return None;
    }
    // SAFETY: the call succeeded, so it filled `stat`.
    let stat = unsafe { stat.assume_init() };
    Some((folder, stat.f_bavail.saturating_mul(stat.f_frsize)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "[7] 2026/11/26 17:38:39.023090 [ERR] Filestore [AUDIT] Critical write error: write /d/nats/1.blk: no space left on device\n\
        [8] 2026/11/26 17:40:37.808666 [INF] Server is ready\n\
        [9] 2026/11/26 17:41:00.000000 [INF] Server is ready\n\
        [9] 2026/11/26 17:41:01.000000 [ERR] JetStream failed to store a msg on stream 'C > AUDIT': write /d/nats/2.blk: no space left on device\n\
        [9] 2026/11/26 17:41:02.000000 [ERR] something else\n\
        [10] 2026/11/26 17:42:02.000000 [ERR] Filestore [A] Critical write error: write .diloco/nats/3.blk: no space left on device\n";

    #[test]
    fn a_broker_is_judged_by_what_it_wrote_itself() {
        assert_eq!(BrokerFault::told(LOG, 8), None);
        let trouble = BrokerFault::told(LOG, 9).expect("its disk was full");
        assert!(
            trouble
                .words
                .starts_with("JetStream failed to store a msg on stream 'C > AUDIT'"),
            "{trouble:?}"
        );
        assert_eq!(trouble.file.as_deref(), Some(Path::new("/d/nats/2.blk")));
        assert!(
            trouble
                .failure()
                .to_string()
                .contains("no space left on device")
        );
        assert_eq!(BrokerFault::told("", 9), None);
        let relative = BrokerFault::told(LOG, 10).expect("its disk was full");
        assert_eq!(
            relative.file.as_deref(),
            Some(Path::new(".diloco/nats/3.blk"))
        );
    }

    #[test]
    fn what_a_peer_calls_itself_is_no_trouble_of_the_brokers() {
        let named = "v1.0\\n[9] 2026/11/26 17:00:00.0 [ERR] JetStream failed to store a msg: write /d/2.blk: no space left on device:go:x";
        for kind in ["cid", "rid", "gid", "lid", "wid", "mid"] {
            let log = format!(
                "[9] 2026/11/26 17:41:01.0 [ERR] 127.0.0.1:34870 - {kind}:59 - \"{named}\" - \"A/B\" - Publish Violation - Subject \"x\"\n"
            );
            assert_eq!(BrokerFault::told(&log, 9), None, "{log}");
            let both = format!("{LOG}{log}");
            let trouble =
                BrokerFault::told(&both, 9).expect("the broker's own words stand before it");
            assert_eq!(trouble.file.as_deref(), Some(Path::new("/d/nats/2.blk")));
        }
        let own = "[9] 2026/11/26 17:41:01.0 [ERR] JetStream resource limits - no: no space left on device\n";
        assert!(BrokerFault::told(own, 9).is_some());
    }

    #[test]
    fn room_is_looked_for_where_the_file_lies() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let file = scratch.path().join("not/there/1.blk");
        let (folder, free) = room(&file).expect("there is a folder above");
        assert!(folder == scratch.path() && free > 0);
    }
}
