//! Notes about the keys that were ended last: a command that finds nothing left to end says which
//! they were, and when.

use schemas::permission::Role;
use schemas::{PublicKey, UnixMillis, V};
use serde::{Deserialize, Serialize};

use crate::domain::{Domain, DomainError};
use crate::revocation::{read_entry, write_entry};

/// Keys that have successors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeysOf {
    /// The signing keys of a role.
    Role(Role),
    /// Those of leases and commands.
    Leases,
    /// Those of the coordinator's events.
    Events,
}

impl KeysOf {
    /// The name of their note.
    pub(crate) fn note(self) -> String {
        match self {
            Self::Role(role) => format!("role-{}", role.name()),
            Self::Leases => "leases".to_owned(),
            Self::Events => "events".to_owned(),
        }
    }
}

/// Keys that a command has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retired {
    v: V<1>,
    /// The time of their end.
    pub at: UnixMillis,
    /// Their public halves.
    pub keys: Vec<PublicKey>,
}

impl Domain {
    /// Notes that these keys were ended. Where there are none, the note of before stays. The caller
    /// holds the [`crate::DomainLock`].
    ///
    /// # Errors
    /// The folder takes no file.
    pub fn note_retired(
        &self,
        of: KeysOf,
        keys: &[PublicKey],
        now: UnixMillis,
    ) -> Result<(), DomainError> {
        if keys.is_empty() {
            return Ok(());
        }
        let note = Retired {
            v: V,
            at: now,
            keys: keys.to_vec(),
        };
        write_entry(&self.layout().retired(of), &note)
    }

    /// The keys that were ended last; none if no command of this release has ended any.
    ///
    /// # Errors
    /// The note cannot be read.
    pub fn last_retired(&self, of: KeysOf) -> Result<Option<Retired>, DomainError> {
        read_entry(&self.layout().retired(of))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{InitOptions, KeyKind, SigningKey};

    #[test]
    fn tl_30_the_keys_that_ended_last_are_known_until_others_end() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let folder = scratch.path().join(".diloco");
        let domain = Domain::init(&folder, &InitOptions::default(), UnixMillis(1));
        let domain = domain.expect("an empty folder");
        let key = || SigningKey::generate(KeyKind::Account).public().clone();
        let (first, second) = (key(), key());
        let all = [
            KeysOf::Role(Role::Worker),
            KeysOf::Role(Role::Operator),
            KeysOf::Leases,
            KeysOf::Events,
        ];
        let last = |of| domain.last_retired(of).expect("it reads");
        for (at, of) in (5..).zip(all) {
            assert_eq!(last(of), None, "{of:?}");
            let noted = domain.note_retired(of, std::slice::from_ref(&first), UnixMillis(at));
            noted.expect("the folder takes files");
        }
        for (at, of) in (5..).zip(all) {
            let known = last(of).expect("it was noted");
            assert_eq!(
                (known.at, &known.keys[..]),
                (UnixMillis(at), &[first.clone()][..])
            );
        }
        let nothing = domain.note_retired(KeysOf::Leases, &[], UnixMillis(20));
        nothing.expect("there is nothing to write");
        assert_eq!(last(KeysOf::Leases).expect("it stays").at, UnixMillis(7));
        let noted = domain.note_retired(
            KeysOf::Leases,
            std::slice::from_ref(&second),
            UnixMillis(21),
        );
        noted.expect("the folder takes files");
        assert_eq!(last(KeysOf::Leases).expect("it is new").keys, [second]);
    }
}
