//! A worker's machine that asks for another key: it makes the new keys, which never leave it, and
//! proves that it has them and those from before.

use std::fs;
use std::path::PathBuf;

use schemas::permission::Role;
use schemas::renewal::{RenewalReply, RenewalRequest, Successor};
use schemas::{Message as _, PublicKey, UnixMillis, V};
use serde_bytes::ByteArray;

use crate::clients::{ClientFile, Holder};
use crate::credentials::Credentials;
use crate::domain::DomainError;
use crate::event::prefixed;
use crate::jwt::check_label;
use crate::key::{KeyError, KeyKind, parse_public, verify_strict};
use crate::layout::DomainLayout;
use crate::purpose::{AuditKey, ConnectionKey};
use crate::secret::FileError;
use crate::successor::{SuccessorError, waiting};

/// Each key has a prefix of its own, so that one key cannot pass for another.
const BY_PRESENT: &[u8] = b"diloco/succession/v1";
const BY_WORKER: &[u8] = b"diloco/succession-worker/v1";
const BY_AUDIT_KEY: &[u8] = b"diloco/succession-audit/v1";

/// The keys of a worker that wants others, old and new.
#[derive(Debug)]
pub struct Heir {
    layout: DomainLayout,
    name: String,
    held: Credentials,
    present: AuditKey,
    worker: ConnectionKey,
    audit: AuditKey,
}

impl Heir {
    /// The keys of the worker of this name, with new ones, or those that an earlier try made.
    ///
    /// # Errors
    /// A key cannot be read or written.
    pub fn prepare(layout: &DomainLayout, name: &str) -> Result<Self, SuccessorError> {
        check_label(name).map_err(DomainError::from)?;
        let held = Credentials::read(&layout.credentials(name))?;
        let present = AuditKey::read(&layout.audit_key(name))?;
        let [worker, audit] = made(layout, name);
        // A process that died after it put them in their places left them here.
        if worker.exists() && ConnectionKey::read(&worker)?.public() == held.public() {
            remove(worker.clone())?;
        }
        if audit.exists() && AuditKey::read(&audit)?.public() == present.public() {
            remove(audit.clone())?;
        }
        if !worker.exists() {
            ConnectionKey::generate().seed().write(&worker)?;
        }
        if !audit.exists() {
            AuditKey::generate().seed().write(&audit)?;
        }
        Ok(Self {
            layout: layout.clone(),
            name: name.to_owned(),
            held,
            present,
            worker: ConnectionKey::read(&worker)?,
            audit: AuditKey::read(&audit)?,
        })
    }

    /// The credentials with which it asks.
    pub const fn held(&self) -> &Credentials {
        &self.held
    }

    /// The question for the new key, signed by all keys but the one that it is asked with.
    pub fn question(&self, domain: &str, at: UnixMillis) -> RenewalRequest {
        let none = || ByteArray::new([0; 64]);
        let mut successor = Successor {
            worker: self.worker.public().clone(),
            audit_key: self.audit.public().clone(),
            at,
            by_present: none(),
            by_worker: none(),
            by_audit_key: none(),
        };
        let body = body(self.held.public(), &successor);
        let signed = |purpose| prefixed(purpose, domain, &body);
        successor.by_present = ByteArray::new(self.present.sign(&signed(BY_PRESENT)));
        successor.by_worker = ByteArray::new(self.worker.sign(&signed(BY_WORKER)));
        successor.by_audit_key = ByteArray::new(self.audit.sign(&signed(BY_AUDIT_KEY)));
        RenewalRequest {
            v: V,
            ends: self.held.token().expires.unwrap_or(at),
            successor: Some(Box::new(successor)),
        }
    }

    /// Puts the new credentials, with the new key for events, where the worker takes them.
    ///
    /// # Errors
    /// The token or the certificate is for another holder, or a file cannot be written.
    pub fn accept(&self, reply: &RenewalReply) -> Result<PublicKey, SuccessorError> {
        let path = waiting(&self.layout.credentials(&self.name));
        let new = Credentials::new(reply.token.clone(), self.worker.clone())?;
        if let Some(reason) = self.held.unlike(&new) {
            return Err(SuccessorError::Other { path, reason });
        }
        let shown = ClientFile::beside(&path);
        if let Some(certificate) = &reply.certificate {
            let holder = Holder::of_pem(certificate).ok();
            let own = |holder: &Holder| holder.key == *new.public() && holder.role == Role::Worker;
            if !holder.is_some_and(|holder| own(&holder)) {
                let reason = "the certificate is another key's";
                return Err(SuccessorError::Other { path, reason });
            }
            let written = shown.write(&new, certificate);
            written.map_err(DomainError::from)?;
        }
        self.audit
            .seed()
            .write(&waiting(&self.layout.audit_key(&self.name)))?;
        new.write(&path)?;
        for file in made(&self.layout, &self.name) {
            remove(file)?;
        }
        Ok(new.public().clone())
    }
}

/// Checks that the asker holds the keys that the question names, and the one that signs its events
/// now.
///
/// # Errors
/// A key is no user's key, or its signature is not over this question, asked with this key, and
/// this domain.
pub fn verify_succession(
    domain: &str,
    holder: &PublicKey,
    present: &PublicKey,
    successor: &Successor,
) -> Result<(), KeyError> {
    let body = body(holder, successor);
    for (purpose, key, signature) in [
        (BY_PRESENT, present, &successor.by_present),
        (BY_WORKER, &successor.worker, &successor.by_worker),
        (BY_AUDIT_KEY, &successor.audit_key, &successor.by_audit_key),
    ] {
        parse_public(key.as_str(), KeyKind::User)?;
        verify_strict(key, &prefixed(purpose, domain, &body), signature.as_slice())?;
    }
    Ok(())
}

/// The key from before, whose text has a fixed length, and the question without its signatures.
fn body(holder: &PublicKey, successor: &Successor) -> Vec<u8> {
    let none = || ByteArray::new([0; 64]);
    let unsigned = RenewalRequest {
        v: V,
        ends: UnixMillis(0),
        successor: Some(Box::new(Successor {
            by_present: none(),
            by_worker: none(),
            by_audit_key: none(),
            ..successor.clone()
        })),
    };
    let mut bytes = holder.as_str().as_bytes().to_vec();
    bytes.extend(unsigned.encode());
    bytes
}

fn remove(path: PathBuf) -> Result<(), FileError> {
    fs::remove_file(&path).map_err(|source| FileError::Write { path, source })
}

/// The seed files of new keys that no token was given for yet.
fn made(layout: &DomainLayout, name: &str) -> [PathBuf; 2] {
    let folder = layout.heirs();
    ["worker", "audit"].map(|key| folder.join(format!("{name}.{key}.nk")))
}

#[cfg(test)]
mod tests {
    use schemas::{Millis, RunId};

    use super::*;
    use crate::domain::{Domain, InitOptions};
    use crate::issuer::Issuer;
    use crate::successor::IdentityFiles;

    const NOW: UnixMillis = UnixMillis(1_700_000_000_000);

    #[test]
    fn tl_28_a_machine_proves_old_and_new_keys_and_takes_a_token_for_the_new_one_alone() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let made = |name: &str| {
            let made = Domain::init(&scratch.path().join(name), &InitOptions::default(), NOW);
            made.expect("an empty folder")
        };
        let (domain, run) = (made("domain"), "demo".parse::<RunId>().expect("a name"));
        let hour = Millis::from_secs(3600);
        domain
            .issue(Role::Worker, "w1", Some(&run), hour, NOW)
            .expect("the name is free");
        let layout = domain.layout();
        let heir = Heir::prepare(layout, "w1").expect("it is a worker");
        let root = domain.trust().domain.as_str();
        let question = heir.question(root, NOW);
        let asked = question.successor.clone().expect("it was asked for");
        let again = Heir::prepare(layout, "w1").expect("it is a worker");
        assert_eq!(again.question(root, NOW), question, "a try makes no others");
        let list = layout.issued();
        let old = list.find(heir.held().public()).expect("it reads");
        let old = old.expect("it was issued");
        let present = old.audit_key.clone().expect("a worker");
        let proven = |domain: &str, holder: &PublicKey, present: &PublicKey, asked: &Successor| {
            verify_succession(domain, holder, present, asked).is_ok()
        };
        assert!(proven(root, &old.public, &present, &asked));
        assert!(!proven("other", &old.public, &present, &asked));
        assert!(!proven(root, &present, &present, &asked));
        assert!(!proven(root, &old.public, &asked.audit_key, &asked));
        let altered: [fn(&mut Successor); 6] = [
            |asked| asked.worker = asked.audit_key.clone(),
            |asked| asked.audit_key = asked.worker.clone(),
            |asked| asked.at = UnixMillis(1),
            |asked| asked.by_present = asked.by_worker,
            |asked| asked.by_worker = asked.by_audit_key,
            |asked| asked.by_audit_key = asked.by_present,
        ];
        for (index, alter) in altered.into_iter().enumerate() {
            let mut other = (*asked).clone();
            alter(&mut other);
            assert!(!proven(root, &old.public, &present, &other), "{index}");
        }

        let issuer = Issuer::open(&layout.issuer()).expect("its keys");
        let reply = |holder: &crate::Registration| RenewalReply {
            v: V,
            token: issuer.sign(holder, holder.ends, NOW).expect("a token"),
            ends: holder.ends,
            certificate: None,
        };
        let files = IdentityFiles {
            credentials: layout.credentials("w1"),
            audit_key: Some(layout.audit_key("w1")),
        };
        assert!(heir.accept(&reply(&old)).is_err(), "it is the old key's");
        let mut new = old;
        new.public = asked.worker.clone();
        new.name = "w2".to_owned();
        assert!(heir.accept(&reply(&new)).is_err(), "it is another's");
        assert!(!files.has_successor(NOW));
        new.name = "w1".to_owned();
        let left = super::made(layout, "w1").map(|file| {
            let seed = fs::read(&file).expect("it was made");
            (file, seed)
        });
        let key = heir.accept(&reply(&new)).expect("it is ours");
        assert_eq!(key, asked.worker);
        // It died before it removed them.
        for (file, seed) in left {
            crate::secret::write_private(&file, &seed).expect("the folder is ours");
        }
        assert_eq!(files.take_successor(NOW).expect("it is whole"), Some(key));
        let signs = AuditKey::read(&layout.audit_key("w1")).expect("it reads");
        assert_eq!(*signs.public(), asked.audit_key);
        let next = Heir::prepare(layout, "w1").expect("it is a worker");
        let next = next.question(root, NOW).successor.expect("it asks");
        assert_ne!(next.worker, asked.worker, "a key is used once");
        assert_ne!(next.audit_key, asked.audit_key, "a key is used once");
    }
}
