//! What `up` renews where the domain's keys are: nothing that runs renews the certificate of broker
//! and store, or the tokens with which people and provisioners connect.

use schemas::role::Role;
use schemas::{Millis, UnixMillis};

use crate::credentials::Credentials;
use crate::domain::{Domain, DomainError, LIFETIME_DEFAULT};
use crate::issued::Registration;
use crate::tls::lifetimes;

impl Domain {
    /// Makes a new certificate for broker and store, for the same names, if the one there has ended
    /// or is in the second half of its life. The caller starts both anew. Returns true if there is
    /// a new one.
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
    /// tokens for the same keys, if the old ones have ended or are in the second half of their
    /// lives. The domain's own, which have the name of their role, get one in any case. Others do
    /// if the old one had the usual life: where a person chose another, it ends when it ends. A
    /// blocked key gets none, and the audit service's own token is renewed by the registrar.
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
            let is_own = known.name == known.role.name();
            let is_usual = life(&known) == self.life_of(known.role, LIFETIME_DEFAULT);
            if !is_renewed_here(known.role)
                || (is_own && known.role == Role::Auditor)
                || !(is_own || is_usual)
                || known.blocked.is_some()
                || !is_due(known.issued, known.ends, now)
                || !path.exists()
                || *Credentials::read(&path)?.public() != known.public
            {
                continue;
            }
            self.issue(known.role, &known.name, None, LIFETIME_DEFAULT, now)?;
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

/// The time for which a token was issued. It ends at a whole second, and may have been issued
/// behind one.
fn life(known: &Registration) -> Millis {
    let life = known.issued.until(known.ends);
    Millis(life.get().div_ceil(1000) * 1000)
}

/// True in the second half of a life, and after it.
pub(crate) fn is_due(begins: UnixMillis, ends: UnixMillis, now: UnixMillis) -> bool {
    now.get() >= begins.get().midpoint(ends.get())
}
