//! Holders of credentials, as operators name them: by a name, or by a key.

use schemas::permission::Role;

use crate::domain::{Domain, DomainError};
use crate::issued::Registration;

impl Domain {
    /// Refuses a second holder of a name: a machine that was enrolled, or to which credentials and
    /// audit key were moved. Where the audit key is here, an earlier issue may have broken off
    /// before it wrote the credentials.
    pub(crate) fn check_free(&self, name: &str) -> Result<(), DomainError> {
        for record in self.layout().issued().all()? {
            if record.name != name || record.blocked.is_some() || record.audit_key.is_none() {
                continue;
            }
            if record.audit_key != self.known_audit_key(record.role, name)? {
                let (name, key) = (record.name, record.public);
                return Err(DomainError::Elsewhere { name, key });
            }
        }
        Ok(())
    }

    /// The records with this name or key, with all keys and roles of the name. The domain's own
    /// coordinator and audit service each connect twice, so the credentials of their second
    /// connection are theirs as well.
    ///
    /// # Errors
    /// A record cannot be read.
    pub fn holders_of(&self, name_or_key: &str) -> Result<Vec<Registration>, DomainError> {
        let second = second_connection(name_or_key);
        let mut all = self.layout().issued().all()?;
        all.retain(|holder| {
            holder.public.as_str() == name_or_key
                || holder.name == name_or_key
                || second.is_some_and(|role| holder.name == role.name())
        });
        Ok(all)
    }
}

/// The role of the second connection of a service, by the name that `auth init` gives the
/// credentials of the first.
fn second_connection(name: &str) -> Option<Role> {
    if name == Role::Coordinator.name() {
        Some(Role::LedgerWriter)
    } else if name == Role::Auditor.name() {
        Some(Role::Recorder)
    } else {
        None
    }
}
