//! A new key for the coordinator's events, while runs go on. The ledger stays one chain: its last
//! event of the old key names the new one, and the next event is signed by that. So the new key
//! lies beside the old one until the coordinator has written that event, and takes it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use schemas::{ChainSequence, PublicKey};

use crate::domain::{Domain, DomainError};
use crate::purpose::AuditKey;
use crate::rotation::NewKey;
use crate::secret::FileError;
use crate::successor::{beside, waiting};
use crate::trust::{EndedKey, KEYS_MAX, TrustBundle};

/// The coordinator's key for events, and the trust bundle, as files on its machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventKeyFiles {
    /// The seed file of the present key.
    pub key: PathBuf,
    /// The trust bundle.
    pub trust: PathBuf,
}

/// The key that waits beside the coordinator's present one.
#[derive(Clone, Debug)]
pub enum NextEventKey {
    /// There is none.
    None,
    /// It can be taken.
    Ready(Box<AuditKey>),
    /// It cannot be taken; the reason in words.
    Unfit(String),
}

impl EventKeyFiles {
    /// The key that waits, if the trust bundle names it after the present one.
    pub fn next(&self) -> NextEventKey {
        let path = waiting(&self.key);
        if !path.exists() {
            return NextEventKey::None;
        }
        let read = || -> Result<_, DomainError> {
            let (present, next) = (AuditKey::read(&self.key)?, AuditKey::read(&path)?);
            Ok((present, next, TrustBundle::read(&self.trust)?))
        };
        let (present, next, trust) = match read() {
            Ok(read) => read,
            Err(error) => return NextEventKey::Unfit(error.to_string()),
        };
        let place = |key: &AuditKey| trust.audit_keys.iter().position(|one| one == key.public());
        match (place(&present), place(&next)) {
            (Some(now), Some(then)) if now < then => {}
            _ => {
                return NextEventKey::Unfit(format!(
                    "{} does not name {} after {}",
                    self.trust.display(),
                    next.public(),
                    present.public()
                ));
            }
        }
        // Nobody takes the name of the next key back from the ledger, so it is tried before whether
        // the file can be moved.
        match self.try_folder() {
            Ok(()) => NextEventKey::Ready(Box::new(next)),
            Err(error) => NextEventKey::Unfit(error.to_string()),
        }
    }

    /// Puts this key, which the ledger names, in the place of the present one. It may have been put
    /// there meanwhile: [`Domain::settle_event_key`] reads the ledger too.
    ///
    /// # Errors
    /// The file cannot be moved.
    pub fn take(&self, next: &PublicKey) -> Result<(), FileError> {
        let taken = || AuditKey::read(&self.key).is_ok_and(|key| key.public() == next);
        if taken() {
            return Ok(());
        }
        match put(&waiting(&self.key), &self.key) {
            Err(_) if taken() => Ok(()),
            moved => moved,
        }
    }

    /// Makes a file beside the key, and removes it.
    fn try_folder(&self) -> Result<(), FileError> {
        let path = beside(&self.key, ".try");
        let tried = File::create(&path).and_then(|_file| fs::remove_file(&path));
        match tried {
            // Another process has tried it at the same time.
            Err(source) if source.kind() == ErrorKind::NotFound && self.key.exists() => Ok(()),
            Err(source) => Err(FileError::Write { path, source }),
            Ok(()) => Ok(()),
        }
    }
}

impl Domain {
    /// Makes the next key for the coordinator's events and lets the trust bundle know it, after the
    /// present one. Nothing is signed with it before the coordinator has taken it. One that was
    /// made before and not taken stays. The caller holds the [`crate::DomainLock`].
    ///
    /// # Errors
    /// The bundle has as many keys as it can, or a file cannot be read or written.
    pub fn prepare_event_key(&self) -> Result<PublicKey, DomainError> {
        let offered = waiting(&self.layout().coordinator_audit_key());
        let made = self.layout().next_coordinator_audit_key();
        let there = [&offered, &made].into_iter().find(|path| path.exists());
        let known = TrustBundle::read(&self.layout().trust())?.audit_keys;
        let room = || match known.len() < KEYS_MAX {
            true => Ok(()),
            false => Err(DomainError::EventKeys),
        };
        let next = match there {
            Some(path) => AuditKey::read(path)?,
            None => {
                room()?;
                let next = AuditKey::generate();
                // The seed is written first, and a command that is repeated takes it up. The bundle
                // names no key that nobody has: it has room for few.
                next.seed().write(&made)?;
                next
            }
        };
        if !known.contains(next.public()) {
            room()?;
            self.change_trust(|bundle| bundle.audit_keys.push(next.public().clone()))?;
        }
        Ok(next.public().clone())
    }

    /// The key that was offered, and that no coordinator has taken from here yet.
    ///
    /// # Errors
    /// Its file cannot be read.
    pub fn offered_event_key(&self) -> Result<Option<PublicKey>, DomainError> {
        let offered = waiting(&self.layout().coordinator_audit_key());
        let read = || AuditKey::read(&offered).map(|key| key.public().clone());
        Ok(offered.exists().then(read).transpose()?)
    }

    /// Lays the next key beside the present one, where the coordinator takes it. The caller holds
    /// the [`crate::DomainLock`].
    ///
    /// # Errors
    /// There is no next key, or a file cannot be read or written.
    pub fn offer_event_key(&self) -> Result<NewKey, DomainError> {
        let present = self.layout().coordinator_audit_key();
        let offered = waiting(&present);
        let old = AuditKey::read(&present)?.public().clone();
        if !offered.exists() {
            let next = self.layout().next_coordinator_audit_key();
            // What cannot be read is not offered.
            AuditKey::read(&next)?;
            put(&next, &offered)?;
        }
        let new = AuditKey::read(&offered)?.public().clone();
        Ok(NewKey { old, new })
    }

    /// Puts the key that goes on with the ledger in the place of the present one, if it still waits
    /// here: a coordinator on another machine has taken its copy. Returns false if the domain's key
    /// is another one. The caller holds the [`crate::DomainLock`], and has verified the ledger.
    ///
    /// # Errors
    /// A file cannot be read or moved.
    pub fn settle_event_key(&self, goes_on: &PublicKey) -> Result<bool, DomainError> {
        let files = EventKeyFiles {
            key: self.layout().coordinator_audit_key(),
            trust: self.layout().trust(),
        };
        if let NextEventKey::Ready(next) = files.next()
            && next.public() == goes_on
        {
            files.take(goes_on)?;
        }
        Ok(AuditKey::read(&files.key)?.public() == goes_on)
    }

    /// Notes in the trust bundle where each earlier key has ended: the number of its last event in
    /// the ledger. What it signed up to there stays valid for ever. Returns the keys that were not
    /// noted before. The caller holds the [`crate::DomainLock`], and has verified the ledger.
    ///
    /// # Errors
    /// A file cannot be read or written.
    pub fn end_event_keys(
        &self,
        ended: &BTreeMap<PublicKey, ChainSequence>,
    ) -> Result<Vec<PublicKey>, DomainError> {
        let mut gone = Vec::new();
        self.change_trust(|bundle| {
            for (key, last) in ended {
                if bundle.audit_keys.contains(key) && bundle.ended(key).is_none() {
                    bundle.ended_audit_keys.push(EndedKey {
                        key: key.clone(),
                        last: *last,
                    });
                    gone.push(key.clone());
                }
            }
        })?;
        Ok(gone)
    }

    /// Takes the keys that were passed over out of the trust bundle: those before `present`, the
    /// key that goes on with the ledger, that have not ended. Each key of the ledger stands behind
    /// the one that has named it, so their turn never was, and never comes. Nothing that they
    /// signed was valid. Returns them. To be called behind [`Domain::end_event_keys`]; the caller
    /// holds the [`crate::DomainLock`].
    ///
    /// # Errors
    /// A file cannot be read or written.
    pub fn forget_passed_event_keys(
        &self,
        present: &PublicKey,
    ) -> Result<Vec<PublicKey>, DomainError> {
        let mut gone = Vec::new();
        self.change_trust(|bundle| {
            let mut keys = bundle.audit_keys.iter();
            let Some(place) = keys.position(|key| key == present) else {
                return;
            };
            let (before, others) = bundle.audit_keys.split_at(place);
            let (ended, passed) = before
                .iter()
                .cloned()
                .partition::<Vec<_>, _>(|key| bundle.ended(key).is_some());
            bundle.audit_keys = [ended.as_slice(), others].concat();
            gone = passed;
        })?;
        Ok(gone)
    }

    /// Writes the trust bundle with a change.
    pub(crate) fn change_trust(
        &self,
        change: impl FnOnce(&mut TrustBundle),
    ) -> Result<(), DomainError> {
        let path = self.layout().trust();
        let mut bundle = TrustBundle {
            ca: self.layout().ca_relative(),
            ..TrustBundle::read(&path)?
        };
        change(&mut bundle);
        Ok(bundle.write(&path)?)
    }
}

/// Moves a file to another name in its folder. The new name survives a power failure.
fn put(from: &Path, to: &Path) -> Result<(), FileError> {
    let synced = || File::open(to.parent().unwrap_or(to))?.sync_all();
    let moved = fs::rename(from, to).and_then(|()| synced());
    moved.map_err(|source| FileError::Write {
        path: to.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use schemas::{Code, UnixMillis};

    use super::*;
    use crate::domain::InitOptions;
    use crate::trust::KEYS_MAX;

    fn domain(folder: &Path) -> Domain {
        Domain::init(folder, &InitOptions::default(), UnixMillis(1)).expect("an empty folder")
    }

    fn files(domain: &Domain) -> EventKeyFiles {
        EventKeyFiles {
            key: domain.layout().coordinator_audit_key(),
            trust: domain.layout().trust(),
        }
    }

    fn bundle(domain: &Domain) -> TrustBundle {
        TrustBundle::read(&domain.layout().trust()).expect("it is ours")
    }

    /// A worker that has no ledger believes each key of the bundle that has not ended.
    #[test]
    fn tl_28_a_key_that_was_passed_over_is_no_key_of_the_domain_any_more() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let domain = domain(&scratch.path().join("domain"));
        let first = bundle(&domain).audit_keys[0].clone();
        let keys = [(); 3].map(|()| AuditKey::generate().public().clone());
        let [passed, present, next] = &keys;
        let change = |bundle: &mut TrustBundle| bundle.audit_keys.extend(keys.iter().cloned());
        domain.change_trust(change).expect("it is ours");
        let ended = BTreeMap::from([(first.clone(), ChainSequence(9))]);
        domain.end_event_keys(&ended).expect("it is ours");
        let stranger = AuditKey::generate().public().clone();
        let forget = |key| domain.forget_passed_event_keys(key).expect("it is ours");
        assert_eq!(forget(&stranger), []);
        assert_eq!(forget(present), std::slice::from_ref(passed));
        let left = [first, present.clone(), next.clone()];
        assert_eq!(
            bundle(&domain).audit_keys,
            left,
            "what ended stays, and what is to come"
        );
        assert!(!bundle(&domain).signs_events(passed) && bundle(&domain).signs_events(next));
        assert_eq!(forget(present), [], "it is done");
    }

    #[test]
    fn tl_28_the_next_event_key_waits_until_the_coordinator_takes_it() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let domain = domain(&scratch.path().join("domain"));
        let files = files(&domain);
        let present = || AuditKey::read(&files.key).expect("it is there");
        let old = present().public().clone();
        assert!(domain.offer_event_key().is_err(), "there is no next one");
        let next = domain.prepare_event_key().expect("it has room");
        assert_eq!(domain.prepare_event_key().expect("again"), next);
        assert!(matches!(files.next(), NextEventKey::None), "not offered");
        let offered = domain.offer_event_key().expect("it was prepared");
        assert_eq!((&offered.old, &offered.new), (&old, &next));
        // A command that is repeated offers the same key, and makes no other. A bundle of before
        // gets it again.
        domain
            .change_trust(|bundle| bundle.audit_keys.truncate(1))
            .expect("ours");
        assert_eq!(domain.prepare_event_key().expect("again"), next);
        assert_eq!(domain.offer_event_key().expect("again"), offered);
        assert_eq!(bundle(&domain).audit_keys, [old.clone(), next.clone()]);
        assert_eq!(*present().public(), old);
        let waits = files.next();
        assert!(matches!(&waits, NextEventKey::Ready(key) if *key.public() == next));
        assert_eq!(
            domain.offered_event_key().expect("ours").as_ref(),
            Some(&next)
        );
        files.take(&next).expect("it waits");
        assert_eq!(*present().public(), next);
        assert!(matches!(files.next(), NextEventKey::None));
        assert_eq!(domain.offered_event_key().expect("ours"), None);
    }

    /// `--retire` puts the key in its place as soon as the ledger names it.
    #[test]
    fn tl_28_a_key_that_another_process_has_put_in_its_place_is_taken() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let domain = domain(&scratch.path().join("domain"));
        let files = files(&domain);
        let next = domain.prepare_event_key().expect("it has room");
        domain.offer_event_key().expect("it was prepared");
        let NextEventKey::Ready(waits) = files.next() else {
            panic!("it does not wait");
        };
        assert!(domain.settle_event_key(&next).expect("ours"));
        files.take(waits.public()).expect("it is there");
        // The key after it waits by then, and stays there.
        let later = domain.prepare_event_key().expect("it has room");
        domain.offer_event_key().expect("it was prepared");
        files.take(waits.public()).expect("it is there");
        let present = AuditKey::read(&files.key).expect("it is there");
        assert_eq!(*present.public(), next);
        assert_eq!(
            domain.offered_event_key().expect("ours").as_ref(),
            Some(&later)
        );
        let stranger = AuditKey::generate();
        fs::remove_file(waiting(&files.key)).expect("ours");
        assert!(files.take(stranger.public()).is_err(), "it is nowhere");
    }

    #[test]
    fn tl_28_a_key_that_could_not_be_put_in_its_place_is_not_named() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let domain = domain(&scratch.path().join("domain"));
        let files = files(&domain);
        domain.prepare_event_key().expect("it has room");
        domain.offer_event_key().expect("it was prepared");
        assert!(matches!(files.next(), NextEventKey::Ready(_)));
        let tried = beside(&files.key, ".try");
        assert!(!tried.exists(), "nothing stays behind");
        // In the way of the file, as a folder that takes none.
        fs::create_dir(&tried).expect("ours");
        let NextEventKey::Unfit(reason) = files.next() else {
            panic!("it cannot be moved");
        };
        assert!(reason.contains("cannot write"), "{reason}");
    }

    #[test]
    fn a_command_that_died_behind_the_seed_uses_up_no_place_in_the_bundle() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let domain = domain(&scratch.path().join("domain"));
        let before = bundle(&domain).audit_keys;
        // The seed cannot be written.
        let keys = domain.layout().next_coordinator_audit_key();
        let keys = keys.parent().expect("it has a folder").to_owned();
        let aside = scratch.path().join("aside");
        fs::rename(&keys, &aside).expect("ours");
        fs::write(&keys, "in the way").expect("ours");
        domain.prepare_event_key().expect_err("it has no folder");
        assert_eq!(bundle(&domain).audit_keys, before);
        fs::remove_file(&keys).expect("ours");
        fs::rename(&aside, &keys).expect("ours");
        // It was written, and the bundle was not.
        let made = AuditKey::generate();
        let path = domain.layout().next_coordinator_audit_key();
        made.seed().write(&path).expect("ours");
        let next = domain.prepare_event_key().expect("it has room");
        assert_eq!(next, *made.public());
        assert_eq!(bundle(&domain).audit_keys, [before[0].clone(), next]);
    }

    #[test]
    fn a_key_that_the_bundle_does_not_name_after_the_present_one_is_not_taken() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let domain = domain(&scratch.path().join("domain"));
        let files = files(&domain);
        let old = AuditKey::read(&files.key).expect("it is there");
        let path = waiting(&files.key);
        let unfit = || matches!(files.next(), NextEventKey::Unfit(_));
        AuditKey::generate().seed().write(&path).expect("ours");
        assert!(unfit(), "nobody knows it");
        old.seed().write(&path).expect("ours");
        assert!(unfit(), "it is the present one");
        fs::remove_file(&path).expect("ours");
        domain.prepare_event_key().expect("it has room");
        domain.offer_event_key().expect("it was prepared");
        domain
            .change_trust(|bundle| bundle.audit_keys.reverse())
            .expect("ours");
        assert!(unfit(), "an earlier one");
        domain
            .change_trust(|bundle| bundle.audit_keys.reverse())
            .expect("ours");
        assert!(!unfit());
        fs::write(&path, "nonsense").expect("ours");
        assert!(unfit(), "it is no key");
    }

    #[test]
    fn an_earlier_event_key_ends_where_the_ledger_says_and_stays_in_the_bundle() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let domain = domain(&scratch.path().join("domain"));
        let old = bundle(&domain).audit_keys[0].clone();
        let new = domain.prepare_event_key().expect("it has room");
        let stranger = AuditKey::generate().public().clone();
        let ended = BTreeMap::from([
            (old.clone(), ChainSequence(7)),
            (stranger, ChainSequence(1)),
        ]);
        let gone = domain.end_event_keys(&ended).expect("it is ours");
        assert_eq!(gone, std::slice::from_ref(&old));
        let bundle = bundle(&domain);
        assert_eq!(bundle.audit_keys, [old.clone(), new.clone()]);
        assert_eq!(bundle.ended(&old), Some(ChainSequence(7)));
        assert!(bundle.signs_events(&new) && !bundle.signs_events(&old));
        let later = BTreeMap::from([(old.clone(), ChainSequence(9))]);
        assert_eq!(domain.end_event_keys(&later).expect("it is ours"), []);
        let kept = TrustBundle::read(&domain.layout().trust()).expect("it is ours");
        assert_eq!(kept.ended(&old), Some(ChainSequence(7)), "it ends once");
    }

    #[test]
    fn the_key_that_goes_on_elsewhere_is_the_domains_too() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let domain = domain(&scratch.path().join("domain"));
        let old = bundle(&domain).audit_keys[0].clone();
        let next = domain.prepare_event_key().expect("it has room");
        assert!(domain.settle_event_key(&old).expect("ours"));
        assert!(
            !domain.settle_event_key(&next).expect("ours"),
            "not offered"
        );
        domain.offer_event_key().expect("it was prepared");
        assert!(
            domain.settle_event_key(&old).expect("ours"),
            "not taken yet"
        );
        assert!(domain.settle_event_key(&next).expect("ours"));
        assert!(
            !domain.settle_event_key(&old).expect("ours"),
            "it has ended"
        );
    }

    #[test]
    fn a_full_bundle_gets_no_event_key() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let domain = domain(&scratch.path().join("domain"));
        for _ in 1..KEYS_MAX {
            domain.prepare_event_key().expect("it has room");
            domain.offer_event_key().expect("it was prepared");
            let next = domain.offered_event_key().expect("ours");
            let next = next.expect("it was offered");
            files(&domain).take(&next).expect("it waits");
        }
        let refused = domain.prepare_event_key().expect_err("it is full");
        assert_eq!(refused.code(), Code::EventKeysFull);
        let made = domain.layout().next_coordinator_audit_key();
        assert!(!made.exists());
        // Nor is there room for one that was made elsewhere.
        AuditKey::generate().seed().write(&made).expect("ours");
        let refused = domain.prepare_event_key().expect_err("it is full");
        assert_eq!(refused.code(), Code::EventKeysFull);
    }
}
