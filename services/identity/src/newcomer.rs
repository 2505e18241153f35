//! An invited machine, before it is a worker: it makes its two keys, which never leave it, and takes
//! what the registrar answers only if that is bound to them.

use std::fs;
use std::path::PathBuf;

use schemas::enrolment::{EnrolmentReply, EnrolmentRequest};
use schemas::member::Posture;
use schemas::{PublicKey, Seat, UnixMillis, V};
use serde::{Deserialize, Serialize};

use crate::credentials::Credentials;
use crate::domain::{DomainError, Issued};
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

/// What the machine of this folder has become with this invitation, if the credentials are here: then
/// it need not ask, and an answer may not be had any more.
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

    /// Puts the credentials of the invitation where a connection reads them.
    ///
    /// # Errors
    /// The folder is that of another trust domain, or a file cannot be written.
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
    /// last. The keys of the newcomer are then the worker's; [`finish`] removes their folder.
    ///
    /// # Errors
    /// The answer is bound to other keys, another run or another domain, another worker of this name
    /// lies here, or a file cannot be written.
    pub fn accept(
        &self,
        invitation: &InvitationFile,
        reply: &EnrolmentReply,
    ) -> Result<Issued, DomainError> {
        let credentials = self.check(invitation, reply)?;
        let path = self.layout.credentials(&reply.name);
        if path.exists() && Credentials::read(&path)?.public() != self.worker() {
            return Err(DomainError::Taken(path));
        }
        let audit_key = self.layout.audit_key(&reply.name);
        self.audit.seed().write(&audit_key)?;
        if !self.layout.trust().exists() {
            write_private(&self.layout.ca(), invitation.ca.as_bytes())?;
            invitation.trust.write(&self.layout.trust())?;
        }
        let note = Note {
            v: V,
            name: reply.name.clone(),
            seat: reply.seat.clone(),
            worker: self.worker().clone(),
        };
        write_entry(&self.layout.enrolled(invitation.id()), &note)?;
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
        Ok(credentials)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use schemas::enrolment::Admission;
    use schemas::permission::Role;
    use schemas::renewal::Registration;
    use schemas::{Code, Millis, RunId, V};

    use super::*;
    use crate::domain::{Domain, InitOptions};
    use crate::invitation::{INVITATION_DEFAULT, Invite};
    use crate::issuer::Issuer;

    const NOW: UnixMillis = UnixMillis(1_700_000_000_000);

    fn run() -> RunId {
        "demo".parse().expect("a name")
    }

    fn domain(scratch: &Path) -> Domain {
        let made = Domain::init(&scratch.join("domain"), &InitOptions::default(), NOW);
        made.expect("an empty folder")
    }

    fn invite(domain: &Domain) -> InvitationFile {
        let invite = Invite {
            name: "worker-7".to_owned(),
            run: run(),
            seat: None,
            admission: Admission::Token,
            life: INVITATION_DEFAULT,
            bus: "tls://127.0.0.1:4222".to_owned(),
        };
        domain.invite(invite, NOW).expect("a fresh name")
    }

    fn newcomer(scratch: &Path) -> Newcomer {
        let layout = DomainLayout::new(&scratch.join("machine"));
        Newcomer::prepare(&layout).expect("an empty folder")
    }

    /// The record that the registrar keeps of the machine.
    fn record_of(domain: &Domain, newcomer: &Newcomer) -> Registration {
        Registration {
            v: V,
            name: "worker-7".to_owned(),
            role: Role::Worker,
            run: Some(run()),
            account: domain.tenant().expect("an account"),
            public: newcomer.worker().clone(),
            issued: NOW,
            ends: NOW.after(Millis::from_secs(60)),
            blocked: None,
            audit_key: Some(newcomer.audit_key().clone()),
            seat: None,
        }
    }

    /// The answer that the registrar gives, for a record that `alter` may have changed.
    fn answer(
        domain: &Domain,
        newcomer: &Newcomer,
        alter: impl FnOnce(&mut Registration),
    ) -> EnrolmentReply {
        let mut record = record_of(domain, newcomer);
        alter(&mut record);
        let issuer = Issuer::open(&domain.layout().issuer()).expect("its keys");
        let token = issuer.sign(&record, record.ends, NOW).expect("a token");
        EnrolmentReply {
            v: V,
            name: record.name,
            run: run(),
            worker: newcomer.worker().clone(),
            audit_key: newcomer.audit_key().clone(),
            seat: None,
            token,
            ends: record.ends,
        }
    }

    #[test]
    fn fg_03_a_machine_keeps_its_keys_and_gets_what_a_worker_needs() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let (domain, first) = (domain(scratch.path()), newcomer(scratch.path()));
        let again = newcomer(scratch.path());
        assert_eq!(again.worker(), first.worker(), "a second try has its keys");
        assert_eq!(again.audit_key(), first.audit_key());
        let invitation = invite(&domain);
        let approach = again.approach(&invitation).expect("no other domain");
        let held = Credentials::read(&approach.credentials).expect("they were written");
        assert_eq!(held.public(), invitation.id());
        let reply = answer(&domain, &again, |_| ());
        let layout = DomainLayout::new(&scratch.path().join("machine"));
        let known = |invitation| became(&layout, invitation).expect("its notes can be read");
        assert_eq!(known(&invitation), None);
        let issued = again
            .accept(&invitation, &reply)
            .expect("it is bound to it");
        let expected = Became {
            name: "worker-7".to_owned(),
            seat: None,
            issued: issued.clone(),
        };
        assert_eq!(known(&invitation), Some(expected), "it need not ask again");
        assert!(layout.newcomer().exists(), "something may still fail");
        finish(&layout, invitation.id()).expect("nothing to do");
        assert!(layout.newcomer().exists(), "the keys are another's");
        for _ in 0..2 {
            finish(&layout, again.worker()).expect("it is ours");
        }
        assert_eq!(issued.credentials, layout.credentials("worker-7"));
        let credentials = Credentials::read(&issued.credentials).expect("they were written");
        assert_eq!(credentials.public(), first.worker());
        let audit = AuditKey::read(&layout.audit_key("worker-7")).expect("it was written");
        assert_eq!(audit.public(), first.audit_key());
        let trust = TrustBundle::read(&layout.trust()).expect("it was written");
        assert_eq!(trust.domain, domain.trust().domain);
        assert!(trust.ca.exists());
        assert!(!layout.newcomer().exists(), "the invitation is gone");
        let kept = fs::read(&issued.credentials).expect("they were written");
        fs::remove_file(&issued.credentials).expect("it is ours");
        assert_eq!(known(&invitation), None, "without credentials it is nobody");
        let name = invitation.id().to_string();
        let run = run();
        let others = domain.issue(
            Role::Worker,
            &name[..8],
            Some(&run),
            INVITATION_DEFAULT,
            NOW,
        );
        fs::copy(
            others.expect("a fresh name").credentials,
            &issued.credentials,
        )
        .expect("it is ours");
        assert_eq!(known(&invitation), None, "they are another's");
        write_private(&issued.credentials, &kept).expect("it is ours");
        assert!(known(&invitation).is_some());
    }

    #[test]
    fn fg_03_an_answer_that_is_bound_to_something_else_is_not_taken() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let (domain, machine) = (domain(scratch.path()), newcomer(scratch.path()));
        let invitation = invite(&domain);
        let other = ConnectionKey::generate().public().clone();
        let right = || answer(&domain, &machine, |_| ());
        let code = |reply: &EnrolmentReply| {
            let taken = machine.accept(&invitation, reply);
            taken.expect_err("it is bound to something else").code()
        };
        let theirs = |reply: &mut EnrolmentReply| reply.worker = other.clone();
        let audit = |reply: &mut EnrolmentReply| reply.audit_key = other.clone();
        let run = |reply: &mut EnrolmentReply| reply.run = "other".parse().expect("a name");
        let name = |reply: &mut EnrolmentReply| reply.name = "worker-8".to_owned();
        for alter in [&theirs as &dyn Fn(&mut EnrolmentReply), &audit, &run, &name] {
            let mut reply = right();
            alter(&mut reply);
            assert_eq!(code(&reply), Code::AnswerForeign, "{reply:?}");
        }
        let mut outside = right();
        outside.name = "../worker-7".to_owned();
        assert_eq!(code(&outside), Code::ConfigInvalid);
        let of_another = answer(&domain, &machine, |record| record.public = other.clone());
        assert_eq!(code(&of_another), Code::CredentialMalformed);
        let of_a_run = answer(&domain, &machine, |record| {
            record.run = Some("other".parse().expect("a name"));
        });
        assert_eq!(code(&of_a_run), Code::AnswerForeign);
        let operator = answer(&domain, &machine, |record| {
            record.role = Role::Operator;
            record.account = domain.control().expect("an account");
        });
        assert_eq!(code(&operator), Code::AnswerForeign);
        let layout = DomainLayout::new(&scratch.path().join("machine"));
        assert!(!layout.trust().exists() && layout.newcomer().exists());
    }

    /// The broker takes no machine without a certificate, and an invitation has none.
    #[test]
    fn a_domain_with_mutual_tls_invites_nobody() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let own = domain(scratch.path());
        own.make_mutual(NOW).expect("its folder takes files");
        let invite = Invite {
            name: "worker-7".to_owned(),
            run: run(),
            seat: None,
            admission: Admission::Token,
            life: INVITATION_DEFAULT,
            bus: "tls://127.0.0.1:4222".to_owned(),
        };
        let refused = own.invite(invite, NOW).expect_err("it could not connect");
        assert_eq!(refused.code(), Code::ClientCertificateMissing);
        assert!(refused.to_string().contains("auth issue"), "{refused}");
        let kept = own.layout().invitations().all().expect("it can be read");
        assert_eq!(kept, [], "nothing was promised");
    }

    #[test]
    fn fg_03_the_name_of_an_enrolled_machine_is_issued_to_nobody_else() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let (own, machine) = (domain(scratch.path()), newcomer(scratch.path()));
        let mut record = record_of(&own, &machine);
        let list = own.layout().issued();
        list.record(&record).expect("it takes files");
        let issue = || {
            own.issue(
                Role::Worker,
                "worker-7",
                Some(&run()),
                INVITATION_DEFAULT,
                NOW,
            )
        };
        let refused = issue().expect_err("a machine has the name");
        assert_eq!(refused.code(), Code::NameTaken);
        let text = refused.to_string();
        assert!(text.contains(machine.worker().as_str()), "{text}");
        assert!(!own.layout().audit_key("worker-7").exists());
        record.blocked = Some(NOW);
        list.record(&record).expect("it takes files");
        let issued = issue().expect("nobody has the name now");
        assert_ne!(issued.public, *machine.worker());
        // An issue that broke off before it wrote the credentials can be repeated.
        fs::remove_file(&issued.credentials).expect("it was made");
        issue().expect("its audit key is here");
    }

    #[test]
    fn a_folder_of_another_domain_and_a_name_of_another_worker_are_left_alone() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let own = domain(scratch.path());
        let invitation = invite(&own);
        let elsewhere = tempfile::tempdir().expect("a scratch folder");
        let foreign = domain(elsewhere.path());
        let machine = Newcomer::prepare(foreign.layout()).expect("it takes files");
        let refused = machine.approach(&invitation).expect_err("another domain");
        assert_eq!(refused.code(), Code::DomainExists);
        let machine = newcomer(scratch.path());
        let layout = DomainLayout::new(&scratch.path().join("machine"));
        let others = own.issue(Role::Worker, "other", Some(&run()), INVITATION_DEFAULT, NOW);
        let others = others.expect("a fresh name").credentials;
        let text = fs::read(&others).expect("it was written");
        write_private(&layout.credentials("worker-7"), &text).expect("it takes files");
        let reply = answer(&own, &machine, |_| ());
        let refused = machine
            .accept(&invitation, &reply)
            .expect_err("it is taken");
        assert_eq!(refused.code(), Code::NameTaken);
        assert_eq!(
            fs::read(layout.credentials("worker-7")).expect("it is there"),
            text
        );
    }
}
