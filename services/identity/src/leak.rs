//! The note of a command that replaces leaked signing keys and ends leases: it stays until both are
//! done, so that a repeat does what is left and replaces no key again.

use std::fs;

use schemas::hold::Reason;
use schemas::permission::Role;
use schemas::{UnixMillis, V};
use serde::{Deserialize, Serialize};

use crate::domain::{Domain, DomainError};
use crate::revocation::{read_entry, write_entry};
use crate::secret::FileError;

/// Roles whose keys were replaced, and leases that are yet to be ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeasesToEnd {
    v: V<1>,
    /// The time at which the keys were replaced.
    pub at: UnixMillis,
    /// The names of the roles.
    roles: Vec<String>,
    /// The reason of the command.
    pub reason: Reason,
}

impl LeasesToEnd {
    /// True if the keys of this role were replaced.
    pub fn is_of(&self, role: Role) -> bool {
        self.roles.iter().any(|name| name == role.name())
    }
}

impl Domain {
    /// Notes that the keys of these roles were replaced, and that leases are to be ended. What an
    /// earlier note says of other roles stays. The caller holds the [`crate::DomainLock`].
    ///
    /// # Errors
    /// The folder takes no file.
    pub fn note_leases_to_end(
        &self,
        roles: &[Role],
        reason: &Reason,
        now: UnixMillis,
    ) -> Result<(), DomainError> {
        let earlier = self.leases_to_end()?;
        let replaced = |role: &Role| {
            let before = earlier.as_ref().is_some_and(|note| note.is_of(*role));
            before || roles.contains(role)
        };
        let roles = Role::ALL.into_iter().filter(replaced);
        let note = LeasesToEnd {
            v: V,
            at: now,
            roles: roles.map(|role| role.name().to_owned()).collect(),
            reason: reason.clone(),
        };
        write_entry(&self.layout().leases_to_end(), &note)
    }

    /// What a command of before has left; none if it did everything.
    ///
    /// # Errors
    /// The note cannot be read.
    pub fn leases_to_end(&self) -> Result<Option<LeasesToEnd>, DomainError> {
        read_entry(&self.layout().leases_to_end())
    }

    /// Notes that the leases are ended. The caller holds the [`crate::DomainLock`].
    ///
    /// # Errors
    /// The note cannot be deleted.
    pub fn leases_are_ended(&self) -> Result<(), DomainError> {
        let path = self.layout().leases_to_end();
        match fs::remove_file(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(FileError::Write { path, source }.into())
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::InitOptions;

    #[test]
    fn tl_30_what_a_command_has_left_is_known_until_it_is_done() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let folder = scratch.path().join(".diloco");
        let domain = Domain::init(&folder, &InitOptions::default(), UnixMillis(1));
        let domain = domain.expect("an empty folder");
        let left = || domain.leases_to_end().expect("it reads");
        let reason: Reason = "keys leaked".parse().expect("a reason");
        assert_eq!(left(), None);
        domain.leases_are_ended().expect("nothing is there");
        for (at, role) in [(5, Role::Worker), (6, Role::Operator)] {
            let noted = domain.note_leases_to_end(&[role], &reason, UnixMillis(at));
            noted.expect("the folder takes files");
        }
        let note = left().expect("it was noted");
        assert_eq!((note.at, &note.reason), (UnixMillis(6), &reason));
        let of = Role::ALL.into_iter().filter(|role| note.is_of(*role));
        assert_eq!(of.count(), 2);
        assert!(note.is_of(Role::Worker) && note.is_of(Role::Operator));
        domain.leases_are_ended().expect("it is there");
        assert_eq!(left(), None);
    }
}
