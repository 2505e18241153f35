//! What `up` renews where the domain's keys are: nothing that runs renews the certificate of broker
//! and store, or the tokens with which people and provisioners connect.

use schemas::role::Role;
use schemas::{Millis, UnixMillis};

use crate::credentials::Credentials;
use crate::domain::{Domain, DomainError};
use crate::tls::lifetimes;

/// A credential for less was given for a visit.
const DAY: Millis = Millis::from_secs(24 * 3600);

impl Domain {
    /// Makes a new certificate for broker and store, for the same names, if the one there has ended
    /// or is in the second half of its life. The caller starts both anew. Returns true if there is a
    /// new one.
    ///
    /// # Errors
    /// The certificate cannot be read; otherwise as [`Domain::renew_server_certificate`].
    pub fn refresh_server_certificate(&self, now: UnixMillis) -> Result<bool, DomainError> {
        let all = lifetimes(&self.layout().server_certificate())?;
        let facts = all
            .first()
            .expect("a file without a certificate is refused");
        if !is_due(facts.begins, facts.ends, now) {
            return Ok(false);
        }
        self.renew_server_certificate(&facts.names, now)?;
        Ok(true)
    }

    /// Gives operators, auditors and provisioners whose credentials lie in the domain's folder new
    /// tokens for the same keys, if the old ones have ended or are in the second half of their lives.
    /// A new token lives as long as the one before; what was given for less than a day stays ended
    /// once it has. A blocked key gets none, and the audit service's own token is renewed by the
    /// registrar.
    /// Returns the names. The caller holds the [`crate::DomainLock`].
    ///
    /// # Errors
    /// A record or a credentials file cannot be read; otherwise as [`Domain::issue`].
    pub fn refresh_tokens(&self, now: UnixMillis) -> Result<Vec<String>, DomainError> {
        let mut renewed = Vec::new();
        // A domain of an earlier release has no list until it is taken over.
        if self.layout().issued().is_absent()? {
            return Ok(renewed);
        }
        for known in self.layout().issued().all()? {
            let path = self.layout().credentials(&known.name);
            let of_service = known.role == Role::Auditor && known.name == Role::Auditor.name();
            if !is_renewed_here(known.role)
                || of_service
                || known.blocked.is_some()
                || !is_due(known.issued, known.ends, now)
                || !path.exists()
                || *Credentials::read(&path)?.public() != known.public
            {
                continue;
            }
            let life = known.issued.until(known.ends);
            if life < DAY && now >= known.ends {
                continue;
            }
            // Tokens end at whole seconds: without rounding up, each would live less than the last.
            let life = Millis(life.get().div_ceil(1000) * 1000);
            self.issue(known.role, &known.name, None, life, now)?;
            renewed.push(known.name);
        }
        Ok(renewed)
    }
}

/// True for roles whose holders run nothing that renews their tokens.
fn is_renewed_here(role: Role) -> bool {
    matches!(
        role,
        Role::Operator
            | Role::Auditor
            | Role::Provisioner
            | Role::LedgerProvisioner
            | Role::EventsProvisioner
            | Role::AuditProvisioner
    )
}

/// True in the second half of a life, and after it.
pub(crate) fn is_due(begins: UnixMillis, ends: UnixMillis, now: UnixMillis) -> bool {
    now.get() >= begins.get().midpoint(ends.get())
}
