//! An invited machine, before it is a worker: it makes its two keys, which never leave it, and
//! takes what the registrar answers only if that is bound to them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use schemas::enrolment::{EnrolmentReply, EnrolmentRequest};
use schemas::member::Posture;
use schemas::permission::Role;
use schemas::{PublicKey, Seat, UnixMillis, V};
use serde::{Deserialize, Serialize};

use crate::clients::{ClientFile, Holder};
use crate::credentials::Credentials;
use crate::domain::{DomainError, Issued};
use crate::endorsed::{News, newer};
use crate::enrolment;
use crate::invitation::InvitationFile;
use crate::jwt::check_label;
use crate::layout::DomainLayout;
use crate::purpose::{AuditKey, ConnectionKey};
use crate::revocation::{read_entry, write_entry};
use crate::secret::{FileError, write_private};
use crate::trust::TrustBundle;

/// The keys of a machine that is not enrolled yet, in the folder `newcomer` of the domain's folder.
#[derive(Debug)]
pub struct Newcomer {
    layout: DomainLayout,
    worker: ConnectionKey,
    audit: AuditKey,
}

/// The files with which an invited machine connects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Approach {
    /// The credentials of the invitation.
    pub credentials: PathBuf,
    /// The authority of the bus.
    pub ca: PathBuf,
}

/// What a machine has become with an invitation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Became {
    /// The name of the worker.
    pub name: String,
    /// Its seat.
    pub seat: Option<Seat>,
    /// Its files.
    pub issued: Issued,
}

/// [`Became`] as it is kept beside the credentials.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Note {
    v: V<1>,
    name: String,
    seat: Option<Seat>,
    worker: PublicKey,
}

/// What the machine of this folder has become with this invitation, if the credentials are here:
/// then it need not ask, and an answer may not be had any more.
///
/// # Errors
/// A file cannot be used.
pub fn became(
    layout: &DomainLayout,
    invitation: &InvitationFile,
) -> Result<Option<Became>, DomainError> {
    let Some(note) = read_entry::<Note>(&layout.enrolled(invitation.id()))? else {
        return Ok(None);
    };
    // The name becomes a part of paths.
    check_label(&note.name)?;
    let path = layout.credentials(&note.name);
    if !path.exists() {
        return Ok(None);
    }
    let credentials = Credentials::read(&path)?;
    if *credentials.public() != note.worker {
        return Ok(None);
    }
    Ok(Some(Became {
        issued: Issued {
            credentials: path,
            audit_key: Some(layout.audit_key(&note.name)),
            public: note.worker,
            expires: credentials.token().expires.unwrap_or(invitation.ends),
        },
        name: note.name,
        seat: note.seat,
    }))
}

/// Removes the folder of the newcomer, if its keys have become those of this worker. It goes last:
/// everything that the worker needs is written by then.
///
/// # Errors
/// A key cannot be read, or the folder cannot be removed.
pub fn finish(layout: &DomainLayout, worker: &PublicKey) -> Result<(), DomainError> {
    let folder = layout.newcomer();
    let key = folder.join("worker.nk");
    if !key.exists() || ConnectionKey::read(&key)?.public() != worker {
        return Ok(());
    }
    fs::remove_dir_all(&folder).map_err(|source| FileError::Write {
        path: folder,
        source,
    })?;
    Ok(())
}

impl Newcomer {
    /// The keys that lie in the domain's folder from an earlier try, or new ones.
    ///
    /// # Errors
    /// A key cannot be read or written.
    pub fn prepare(layout: &DomainLayout) -> Result<Self, DomainError> {
        let (worker, audit) = (
            layout.newcomer().join("worker.nk"),
            layout.newcomer().join("audit.nk"),
        );
        if !worker.exists() {
            ConnectionKey::generate().seed().write(&worker)?;
        }
        if !audit.exists() {
            AuditKey::generate().seed().write(&audit)?;
        }
        Ok(Self {
            layout: layout.clone(),
            worker: ConnectionKey::read(&worker)?,
            audit: AuditKey::read(&audit)?,
        })
    }

    /// The public half of the key with which it will connect.
    pub fn worker(&self) -> &PublicKey {
        self.worker.public()
    }

    /// The public half of the key that will sign its events.
    pub fn audit_key(&self) -> &PublicKey {
        self.audit.public()
    }

    /// Puts the credentials of the invitation, and its certificate, where a connection reads them.
    ///
    /// # Errors
    /// The folder is that of another trust domain, the certificate is another key's, or a file
    /// cannot be written.
    pub fn approach(&self, invitation: &InvitationFile) -> Result<Approach, DomainError> {
        let trust = self.layout.trust();
        if trust.exists() && TrustBundle::read(&trust)?.domain != invitation.trust.domain {
            return Err(DomainError::Exists(self.layout.folder().to_owned()));
        }
        let folder = self.layout.newcomer();
        let approach = Approach {
            credentials: folder.join("invitation.creds"),
            ca: folder.join("ca.pem"),
        };
        let shown = ClientFile::beside(&approach.credentials);
        match &invitation.certificate {
            Some(certificate) => shown.write(&invitation.credentials, certificate)?,
            None => remove(shown.path())?,
        }
        invitation.credentials.write(&approach.credentials)?;
        write_private(&approach.ca, invitation.ca.as_bytes())?;
        Ok(approach)
    }

    /// The question to be enrolled, signed by both keys.
    pub fn question(
        &self,
        invitation: &InvitationFile,
        posture: Posture,
        at: UnixMillis,
    ) -> EnrolmentRequest {
        enrolment::question(
            invitation.trust.domain.as_str(),
            invitation.id(),
            &invitation.token,
            &invitation.run,
            posture,
            &self.worker,
            &self.audit,
            at,
        )
    }

    /// Checks the registrar's answer, and writes what a worker of this name needs, the credentials
    /// last. The trust bundle is the one that the answer brings, if the domain's root signed it
    /// since the invitation was made; a bundle that is here already stays. The keys of the newcomer
    /// are then the worker's; [`finish`] removes their folder.
    ///
    /// # Errors
    /// The answer is bound to other keys, another run or another domain, another worker of this
    /// name lies here, or a file cannot be written.
    pub fn accept(
        &self,
        invitation: &InvitationFile,
        reply: &EnrolmentReply,
    ) -> Result<Issued, DomainError> {
        let credentials = self.check(invitation, reply)?;
        let news = match &reply.trust {
            Some(document) => newer(&invitation.trust, invitation.made, document)?,
            None => News {
                trust: invitation.trust.clone(),
                ca: None,
            },
        };
        let path = self.layout.credentials(&reply.name);
        if path.exists() && Credentials::read(&path)?.public() != self.worker() {
            return Err(DomainError::Taken(path));
        }
        let audit_key = self.layout.audit_key(&reply.name);
        self.audit.seed().write(&audit_key)?;
        if !self.layout.trust().exists() {
            let ca = news.ca.as_deref().unwrap_or(&invitation.ca);
            write_private(&self.layout.ca(), ca.as_bytes())?;
            news.trust.write(&self.layout.trust())?;
        }
        let note = Note {
            v: V,
            name: reply.name.clone(),
            seat: reply.seat.clone(),
            worker: self.worker().clone(),
        };
        write_entry(&self.layout.enrolled(invitation.id()), &note)?;
        if let Some(certificate) = &reply.certificate {
            ClientFile::beside(&path).write(&credentials, certificate)?;
        }
        credentials.write(&path)?;
        Ok(Issued {
            credentials: path,
            audit_key: Some(audit_key),
            public: self.worker().clone(),
            expires: reply.ends,
        })
    }

    fn check(
        &self,
        invitation: &InvitationFile,
        reply: &EnrolmentReply,
    ) -> Result<Credentials, DomainError> {
        let refused = |reason| Err(DomainError::Answer(reason));
        // The name becomes a part of paths.
        check_label(&reply.name)?;
        if reply.worker != *self.worker() || reply.audit_key != *self.audit_key() {
            return refused("names other keys than this machine's");
        }
        if reply.run != invitation.run {
            return refused("is for another run than the invitation");
        }
        let credentials = Credentials::new(reply.token.clone(), self.worker.clone())?;
        let token = credentials.token();
        let tenants = &invitation.trust.tenants;
        let account = token.claims.issuer_account.as_ref();
        if !account.is_some_and(|account| tenants.contains(account)) {
            return refused("is a token for no tenant of the domain");
        }
        if token.claims.run().as_ref() != Some(&reply.run) || token.name != reply.name {
            return refused("says another name or run than its token");
        }
        if token.claims.has_rights() {
            return refused("is a token with rights of its own");
        }
        match &reply.certificate {
            Some(certificate) => {
                let named = Holder::of_pem(certificate).ok();
                let own =
                    |holder: &Holder| holder.key == *self.worker() && holder.role == Role::Worker;
                if !named.is_some_and(|holder| own(&holder)) {
                    return refused(
                        "has a certificate that is not for this machine's key as a worker",
                    );
                }
            }
            None if invitation.certificate.is_some() => {
                return refused("has no certificate, and the domain has mutual TLS");
            }
            None => {}
        }
        Ok(credentials)
    }
}

/// Removes a file, if it is there.
fn remove(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(FileError::Write {
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
