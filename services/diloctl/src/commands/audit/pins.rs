//! The heads that this machine keeps as pins: the newest of all, and the newest of each place where
//! it read a log. A copy of the log follows its source, so a place may show fewer events than the
//! newest head covers. It may not show fewer than it showed before. And its events must be those
//! that every pinned head covers, as far as they go.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use audit_core::log::{Log, LogFault, Read, Trusted};
use identity::secret::write_private;
use runtime::Failure;
use schemas::{Code, V};
use serde::{Deserialize, Serialize};
use tlog::Head;

/// Tries to get the lock of the pinned heads, and the wait between two.
const LOCK_TRIES: u32 = 100;
const LOCK_WAIT: Duration = Duration::from_millis(100);
/// Most places whose heads are kept; one more takes the room of the one with the oldest head.
const PLACES_MAX: usize = 64;

/// The pinned heads while the log of one place is checked against them.
pub(super) struct Pins {
    /// The file of the newest head.
    file: PathBuf,
    /// The place that is read now, in words.
    place: String,
    pinned: PinnedHeads,
}

/// The heads in the two files.
#[derive(Debug, Default, PartialEq, Eq)]
struct PinnedHeads {
    /// The newest of all places.
    newest: Option<Head>,
    /// The newest head of each place, with its signed text; none if only the newest of all is
    /// known.
    places: Option<BTreeMap<String, (Head, String)>>,
}

/// The file of the places.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Places {
    v: V<1>,
    /// The signed text of the newest head of each place.
    places: BTreeMap<String, String>,
}

impl Pins {
    /// Reads what is pinned. `file` is that of the newest head; that of the places lies beside it.
    pub(super) fn open(file: PathBuf, place: String, trusted: &Trusted) -> Result<Self, Failure> {
        let pinned = PinnedHeads::read(&file, trusted)?;
        Ok(Self {
            file,
            place,
            pinned,
        })
    }

    /// The newest head that this machine has seen.
    pub(super) const fn newest(&self) -> Option<&Head> {
        self.pinned.newest.as_ref()
    }

    /// Opens the log of the place, and compares it with all pinned heads.
    ///
    /// # Errors
    /// Evidence: the log is not whole, it has fewer events than this place showed before, or it has
    /// other events than a pinned head covers. No verdict: it has fewer events than the newest head
    /// covers, which another place has shown.
    pub(super) fn log(
        &self,
        read: &Read<'_>,
        trusted: &Trusted,
        each: &mut dyn FnMut(u64, &[u8]),
    ) -> Result<Log, Failure> {
        let failed = |fault: LogFault| {
            let text = format!("{}: {fault}", self.place);
            Failure::new(fault.code(), text)
        };
        let log =
            Log::open(read, trusted, self.pinned.binding(&self.place), each).map_err(failed)?;
        let other = log.first_other(read, self.pinned.heads()).map_err(failed)?;
        if let Some(Head { size, .. }) = other {
            let fault = LogFault::Forked { size: *size };
            let whose = self.pinned.place_of(*size);
            let text = format!("{}: {fault}{}", self.place, at(whose));
            return Err(Failure::new(fault.code(), text));
        }
        let (found, newest) = (log.head().size, self.newest());
        if let Some(newest) = newest.filter(|newest| newest.size > found) {
            // The place has shown this head, so from now on it may not show an older one.
            self.keep(&log, trusted)?;
            let text = format!(
                "{}: its newest head covers {found} events, {} fewer than one over {} that this machine has seen{}; what is there \
                 is whole, and goes on from what was there before, and nothing is said of the rest",
                self.place,
                newest.size - found,
                newest.size,
                at(self.pinned.place_of(newest.size)),
            );
            return Err(Failure::new(Code::LogStoreBehind, text));
        }
        Ok(log)
    }

    /// Pins the head of the log, unless another command has pinned one over more events since this
    /// one read the files. So it reads them again under a lock, and compares the log with the
    /// newest head in them before it writes.
    ///
    /// Returns true if this head is the newest now.
    pub(super) fn pin(
        &self,
        log: &Log,
        read: &Read<'_>,
        trusted: &Trusted,
    ) -> Result<bool, Failure> {
        let _lock = lock(&self.file.with_extension("lock"))?;
        let mut now = PinnedHeads::read(&self.file, trusted)?;
        // The log was compared with this one when it was opened.
        let is_known = now.newest.is_some() && now.newest == self.pinned.newest;
        let is_newest = is_known || log.may_replace(read, now.newest.as_ref())?;
        if is_newest {
            // The newest head first: without the file of places it binds every place.
            write_private(&self.file, log.note().as_bytes())?;
            now.newest = Some(log.head().clone());
        }
        now.write(&self.file, &self.place, log)?;
        Ok(is_newest)
    }

    /// Keeps the head as the newest of its place alone.
    fn keep(&self, log: &Log, trusted: &Trusted) -> Result<(), Failure> {
        let _lock = lock(&self.file.with_extension("lock"))?;
        PinnedHeads::read(&self.file, trusted)?.write(&self.file, &self.place, log)
    }
}

impl PinnedHeads {
    fn read(file: &Path, trusted: &Trusted) -> Result<Self, Failure> {
        let Some(newest) = read_file(file)? else {
            // The keeper of this machine moved the pin aside, so that it begins anew.
            return Ok(Self::default());
        };
        let newest = opened(file, trusted, &newest)?;
        let own = places_file(file);
        let places = match read_file(&own)? {
            None => None,
            Some(json) => {
                let read: Result<Places, _> = serde_json::from_slice(&json);
                let Places { v: V, places } =
                    read.map_err(|error| unproven(&own, &error.to_string()))?;
                let places = places.into_iter().map(|(place, note)| {
                    let head = opened(&own, trusted, note.as_bytes())?;
                    Ok((place, (head, note)))
                });
                Some(places.collect::<Result<_, Failure>>()?)
            }
        };
        Ok(Self {
            newest: Some(newest),
            places,
        })
    }

    /// The head whose events the place must have: the one that it showed last. An earlier release
    /// kept only the newest head, without its place. That may be any place, so it binds every one.
    fn binding(&self, place: &str) -> Option<&Head> {
        match &self.places {
            None => self.newest.as_ref(),
            Some(places) => places.get(place).map(|(head, _)| head),
        }
    }

    /// All heads.
    fn heads(&self) -> impl Iterator<Item = &Head> {
        let places = self.places.iter().flat_map(BTreeMap::values);
        self.newest.iter().chain(places.map(|(head, _)| head))
    }

    /// A place whose newest head is over so many events.
    fn place_of(&self, size: u64) -> Option<&str> {
        let mut places = self.places.iter().flatten();
        let place = places.find(|(_, (head, _))| head.size == size);
        place.map(|(place, _)| place.as_str())
    }

    /// Writes the file of places with this head as that of `place`, unless the place has one over
    /// more events.
    fn write(self, file: &Path, place: &str, log: &Log) -> Result<(), Failure> {
        let mut places = self.places.unwrap_or_default();
        let before = places.get(place).map_or(0, |(head, _)| head.size);
        if before > log.head().size {
            return Ok(());
        }
        let oldest = places.iter().filter(|(name, _)| *name != place);
        let oldest = oldest.min_by_key(|(_, (head, _))| head.size);
        if let Some((oldest, _)) = oldest.filter(|_| places.len() >= PLACES_MAX) {
            let oldest = oldest.clone();
            places.remove(&oldest);
        }
        let own = (log.head().clone(), log.note().to_owned());
        places.insert(place.to_owned(), own);
        let places = places.into_iter().map(|(place, (_, note))| (place, note));
        let json = serde_json::to_vec(&Places {
            v: V,
            places: places.collect(),
        });
        let json = json.map_err(|error| Failure::new(Code::Internal, error))?;
        Ok(write_private(&places_file(file), &json)?)
    }
}

fn places_file(file: &Path) -> PathBuf {
    file.with_extension("places")
}

/// Says where a head was seen, if that is known.
fn at(place: Option<&str>) -> String {
    place.map_or_else(String::new, |place| format!(" at {place}"))
}

fn unproven(file: &Path, reason: &str) -> Failure {
    Failure::new(Code::LogUnproven, format!("{}: {reason}", file.display()))
}

fn read_file(file: &Path) -> Result<Option<Vec<u8>>, Failure> {
    match std::fs::read(file) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unproven(file, &error.to_string())),
    }
}

fn opened(file: &Path, trusted: &Trusted, note: &[u8]) -> Result<Head, Failure> {
    trusted.open("its text", note).map_err(|fault| {
        let text = format!("it is no pinned head of this domain: {fault}");
        unproven(file, &text)
    })
}

/// Locks a file until it is closed. Another command holds the lock while it reads a log at most.
fn lock(path: &Path) -> Result<File, Failure> {
    let mut options = OpenOptions::new();
    let opened = options.create(true).truncate(false).write(true).open(path);
    let file = opened.map_err(|error| unproven(path, &error.to_string()))?;
    for _ in 0..LOCK_TRIES {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_WAIT),
            Err(TryLockError::Error(error)) => return Err(unproven(path, &error.to_string())),
        }
    }
    Err(unproven(path, "another command is pinning a head"))
}

#[cfg(test)]
mod tests {
    use identity::HeadKey;
    use tlog::Writer;

    use super::*;

    type Files = BTreeMap<String, Vec<u8>>;

    /// A machine that reads copies of logs which one key signs.
    struct Machine {
        scratch: tempfile::TempDir,
        key: HeadKey,
        trusted: Trusted,
    }

    impl Machine {
        fn new() -> Self {
            let key = HeadKey::generate();
            let head = identity::key::public_bytes(key.public()).expect("a key");
            Self {
                scratch: tempfile::tempdir().expect("a scratch folder"),
                key,
                trusted: Trusted {
                    domain: "a-domain".to_owned(),
                    tenants: Vec::new(),
                    coordinators: Vec::new(),
                    ended: Default::default(),
                    sentries: Vec::new(),
                    heads: vec![head],
                },
            }
        }

        /// The log of so many entries, which begin with `word`.
        fn log(&self, word: &str, size: usize) -> Files {
            let origin = audit_core::log::origin(&self.trusted.domain);
            let mut writer = Writer::new(origin, None).expect("a new log");
            for at in 0..size {
                let entry = format!("{word} {at}");
                writer.push(entry.as_bytes(), 0).expect("it is short");
            }
            let batch = writer.batch(|head| self.key.sign_head(head)).expect("new");
            let writes = batch.writes.into_iter();
            writes.map(|write| (write.path, write.bytes)).collect()
        }

        fn file(&self) -> PathBuf {
            self.scratch.path().join("audit-head.pin")
        }

        /// A command that reads a place: the size that it has seen, or its code and words.
        fn see(&self, place: &str, files: &Files) -> Result<(u64, bool), (Code, String)> {
            let pins = Pins::open(self.file(), place.to_owned(), &self.trusted);
            let failed = |failure: Failure| (failure.code(), failure.to_string());
            let pins = pins.map_err(failed)?;
            let read = |path: &str| Ok(files.get(path).cloned());
            let log = pins
                .log(&read, &self.trusted, &mut |_, _| {})
                .map_err(failed)?;
            let pinned = pins.pin(&log, &read, &self.trusted).map_err(failed)?;
            Ok((log.head().size, pinned))
        }

        fn refused(&self, place: &str, files: &Files) -> (Code, String) {
            self.see(place, files).expect_err("it may not be taken")
        }
    }

    #[test]
    fn fg_07_a_place_that_is_behind_another_is_no_evidence_and_one_that_goes_back_is() {
        let machine = Machine::new();
        assert_eq!(machine.see("folder", &machine.log("a", 9)), Ok((9, true)));
        // The store follows, and catches up.
        let (code, text) = machine.refused("store", &machine.log("a", 4));
        assert_eq!(code, Code::LogStoreBehind, "{text}");
        for part in ["store: ", "4 events, 5 fewer", "over 9", "at folder"] {
            assert!(text.contains(part), "no {part:?} in {text}");
        }
        let (code, _) = machine.refused("store", &machine.log("a", 6));
        assert_eq!(code, Code::LogStoreBehind);
        // It has shown six, and that counts although the command got no verdict then.
        let (code, text) = machine.refused("store", &machine.log("a", 5));
        assert_eq!(code, Code::HeadRolledBack, "{text}");
        assert_eq!(machine.see("store", &machine.log("a", 9)), Ok((9, true)));
        let (code, _) = machine.refused("store", &machine.log("a", 8));
        assert_eq!(code, Code::HeadRolledBack);
        let (code, _) = machine.refused("folder", &machine.log("a", 8));
        assert_eq!(code, Code::HeadRolledBack);
        // Now the folder is behind.
        assert_eq!(machine.see("store", &machine.log("a", 12)), Ok((12, true)));
        let (code, text) = machine.refused("folder", &machine.log("a", 9));
        assert_eq!(code, Code::LogStoreBehind);
        assert!(text.contains("at store"), "{text}");
        assert_eq!(machine.see("folder", &machine.log("a", 12)), Ok((12, true)));
    }

    #[test]
    fn fg_07_no_place_has_another_history_than_any_that_was_seen() {
        let machine = Machine::new();
        assert_eq!(machine.see("folder", &machine.log("a", 9)), Ok((9, true)));
        // Longer, and as long.
        for size in [9, 12] {
            let (code, _) = machine.refused("store", &machine.log("b", size));
            assert_eq!(code, Code::HistoryForked, "{size}");
        }
        // Shorter: nothing here can tell it from one that is behind, until the first place goes on.
        let (code, _) = machine.refused("store", &machine.log("b", 4));
        assert_eq!(code, Code::LogStoreBehind);
        let (code, text) = machine.refused("folder", &machine.log("a", 9));
        assert_eq!(code, Code::HistoryForked, "{text}");
        assert!(text.contains("first 4 events"), "{text}");
        assert!(text.contains("at store"), "{text}");
        // A third place with fewer events than both is compared with the pinned head over 4.
        let (code, _) = machine.refused("third", &machine.log("a", 5));
        assert_eq!(code, Code::HistoryForked);
    }

    #[test]
    fn a_pin_whose_place_is_not_known_binds_every_place() {
        let machine = Machine::new();
        assert_eq!(machine.see("folder", &machine.log("a", 9)), Ok((9, true)));
        let places = places_file(&machine.file());
        std::fs::remove_file(&places).expect("it is there");
        for place in ["store", "folder"] {
            let (code, _) = machine.refused(place, &machine.log("a", 4));
            assert_eq!(code, Code::HeadRolledBack, "{place}");
        }
        std::fs::write(&places, b"no places").expect("ours");
        let (code, _) = machine.refused("folder", &machine.log("a", 9));
        assert_eq!(code, Code::LogUnproven, "a damaged file is not passed over");
        // A keeper who moves the pin aside begins anew, whatever stays beside it.
        std::fs::remove_file(machine.file()).expect("it is there");
        assert_eq!(machine.see("folder", &machine.log("b", 3)), Ok((3, true)));
        let (code, _) = machine.refused("folder", &machine.log("b", 2));
        assert_eq!(code, Code::HeadRolledBack);
    }

    #[test]
    fn the_newest_places_have_room() {
        let machine = Machine::new();
        let most = PLACES_MAX + 3;
        for at in 1..=most {
            let place = format!("copy {at}");
            let seen = machine.see(&place, &machine.log("a", at));
            assert_eq!(seen, Ok((at as u64, true)));
        }
        let pinned = PinnedHeads::read(&machine.file(), &machine.trusted).expect("it is whole");
        let places = pinned.places.expect("they were written");
        assert_eq!(places.len(), PLACES_MAX);
        assert!(places.contains_key(&format!("copy {most}")));
        assert!(!places.contains_key("copy 1"), "the oldest");
    }
}
