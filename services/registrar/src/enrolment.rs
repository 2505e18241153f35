//! The desk at which invited machines are enrolled: it reads what the domain knows about an
//! invitation, and keeps what was decided before anybody is told.

use std::path::{Path, PathBuf};

use identity::endorsed::read_endorsed;
use identity::enrolment::verify_question;
use identity::revocation::MARGIN;
use identity::{InvitationList, IssuedList, Issuer};
use registrar_core::{AskedToEnrol, Enrolled, Known, REPEATED_MAX, Registrar};
use runtime::clock;
use schemas::enrolment::EnrolmentReply;
use schemas::permission::Role;
use schemas::renewal::in_the_way;
use schemas::text::Time;
use schemas::{Coded, Millis, Refusal, V};

use crate::config::RegistrarSection;

/// Most that the registrar's clock may be ahead of the vault's: then too a revocation covers every
/// token that an enrolment has given its key.
const AHEAD_MAX: Millis = Millis::from_secs(150);
const _: () = assert!(
    REPEATED_MAX.get() + AHEAD_MAX.get() < MARGIN.get(),
    "a machine that was revoked right after its enrolment could enrol itself again"
);

/// The lists that an enrolment reads and writes.
pub(crate) struct Desk {
    issued: IssuedList,
    invitations: InvitationList,
    /// The trust bundle, beside which its signed form lies.
    trust: PathBuf,
}

impl Desk {
    pub(crate) fn new(section: &RegistrarSection, issued: IssuedList) -> Self {
        Self {
            issued,
            invitations: InvitationList::at(&section.invitations),
            trust: section.trust.clone(),
        }
    }

    /// The answer to a question to be enrolled. Everything is on the disk before it is given, and
    /// the machine's own record first: if this process dies in between, the machine asks again and
    /// gets the same answer, and no other machine does.
    pub(crate) fn enrol(
        &self,
        core: &Registrar,
        issuer: &Path,
        asked: &AskedToEnrol,
    ) -> Result<EnrolmentReply, Refusal> {
        let request = &asked.request;
        let invitation = self.invitations.find(&asked.invitation).map_err(refusal)?;
        let record = self.issued.find(&request.worker).map_err(refusal)?;
        let issuer = Issuer::open(issuer).map_err(refusal)?;
        let terms = invitation.as_ref().map(|invitation| &invitation.terms);
        let seat = terms.and_then(|terms| Some((&terms.run, terms.seat.as_ref()?)));
        let taken = match seat {
            None => None,
            Some((run, seat)) => {
                let all = self.issued.all().map_err(refusal)?;
                in_the_way(&all, run, seat, Some(&request.worker))
            }
        };
        let domain = issuer.domain().as_str();
        let known = Known {
            invitation: invitation.as_ref(),
            record: record.as_ref(),
            in_the_way: taken.as_ref(),
            proven: verify_question(domain, &asked.invitation, request).is_ok(),
        };
        let decided = core.enrol(clock::now(), asked, known);
        if let (Some(terms), Ok(_) | Err((_, Some(_)))) = (terms, &decided) {
            // Nothing is written for a tenant that ended after it had invited.
            let account = issuer.account_for(Role::Worker, Some(&terms.run));
            account.map_err(refusal)?;
        }
        let Enrolled {
            guest,
            record,
            is_new,
            validity,
        } = match decided {
            Ok(enrolled) => enrolled,
            Err((refused, guest)) => {
                if let Some(guest) = guest {
                    if let Some(invitation) = &invitation {
                        self.invitations
                            .forget_denied(invitation)
                            .map_err(refusal)?;
                    }
                    let noted = self.invitations.note(&asked.invitation, &guest);
                    noted.map_err(refusal)?;
                    tracing::info!(code = %refused.code, worker = %guest.worker, "a machine waits for approval");
                }
                return Err(refused);
            }
        };
        if let Some(guest) = guest {
            let noted = self.invitations.note(&asked.invitation, &guest);
            noted.map_err(refusal)?;
        }
        if is_new {
            self.issued.record(&record).map_err(refusal)?;
        }
        let token = issuer.sign(&record, validity.ends, validity.issued);
        let token = token.map_err(refusal)?;
        let certificate = issuer.certify(&record, validity.ends, clock::now());
        let certificate = certificate.map_err(refusal)?;
        let trust = read_endorsed(&self.trust).map_err(refusal)?;
        let (name, seat) = (&record.name, record.seat.as_ref().map(ToString::to_string));
        tracing::info!(
            name, worker = %record.public, invitation = %asked.invitation, seat,
            until = %Time(validity.ends), "a machine is enrolled"
        );
        Ok(EnrolmentReply {
            v: V,
            name: record.name,
            run: request.run.clone(),
            worker: record.public,
            audit_key: request.audit_key.clone(),
            seat: record.seat,
            token,
            ends: validity.ends,
            certificate,
            trust,
        })
    }
}

fn refusal(error: impl Coded) -> Refusal {
    Refusal::new(error.code(), error.detail())
}

#[cfg(test)]
mod tests {
    use identity::invitation::{INVITATION_DEFAULT, Invite};
    use identity::{Domain, InitOptions, Newcomer};
    use schemas::Code;
    use schemas::enrolment::{Admission, Word};
    use schemas::member::Posture;
    use schemas::tenant::Quota;

    use super::*;

    const LIFETIME: Millis = Millis::from_secs(3600);

    /// With a token the machine would be entered; one that waits for approval would be noted.
    #[test]
    fn tl_31_an_invitation_of_a_tenant_that_ended_writes_nothing() {
        for (admission, code) in [
            (Admission::Token, None),
            (Admission::Hand, Some(Code::EnrolmentPending)),
        ] {
            let scratch = tempfile::tempdir().expect("a scratch folder");
            let now = clock::now();
            let made = Domain::init(&scratch.path().join("domain"), &InitOptions::default(), now);
            let acme = "acme".parse().expect("a name");
            let made = made
                .expect("an empty folder")
                .make_tenant(&acme, Quota::default(), now);
            let (domain, _) = made.expect("a new name");
            let invite = Invite {
                name: "worker-7".to_owned(),
                run: "acme_demo".parse().expect("a name"),
                seat: None,
                admission,
                life: INVITATION_DEFAULT,
                bus: "tls://127.0.0.1:4222".to_owned(),
            };
            let file = domain.invite(invite, now).expect("a fresh name");
            let layout = domain.layout();
            let desk = Desk {
                issued: layout.issued(),
                invitations: layout.invitations(),
                trust: layout.trust(),
            };
            let core = Registrar::new(LIFETIME, Posture::default());
            let enrol = |machine: &str| {
                let own = identity::DomainLayout::new(&scratch.path().join(machine));
                let newcomer = Newcomer::prepare(&own).expect("an empty folder");
                let asked = AskedToEnrol {
                    invitation: file.id().clone(),
                    request: newcomer.question(&file, Posture::default(), now),
                };
                desk.enrol(&core, &layout.issuer(), &asked)
            };
            let guests = || {
                let found = desk.invitations.find(file.id()).expect("it reads");
                found.expect("it was made").guests.len()
            };
            let records = || desk.issued.all().expect("it reads").len();
            let before = records();
            domain.end_tenant(&acme, now).expect("it is there");
            let refused = enrol("late").expect_err("its tenant ended");
            assert_eq!(refused.code, Code::TenantEnded);
            assert_eq!(guests(), 0);
            assert_eq!(records(), before);
            // As if it had not ended.
            let entry = layout.issuer().join("tenants/acme.json");
            let text = std::fs::read_to_string(&entry).expect("it is there");
            let since = format!("\"ended\":{}", now.get());
            assert!(text.contains(&since), "{text}");
            let lasts = text.replace(&since, "\"ended\":null");
            std::fs::write(&entry, lasts).expect("the folder takes files");
            assert_eq!(enrol("early").err().map(|refused| refused.code), code);
            assert_eq!(
                (guests(), records()),
                (1, before + usize::from(code.is_none()))
            );
        }
    }

    /// Somebody who has an invitation can make keys without end; a person answers each.
    #[test]
    fn machines_that_were_denied_take_no_room() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let now = clock::now();
        let made = Domain::init(&scratch.path().join("domain"), &InitOptions::default(), now);
        let domain = made.expect("an empty folder");
        let invite = Invite {
            name: "worker-7".to_owned(),
            run: "demo".parse().expect("a name"),
            seat: None,
            admission: Admission::Hand,
            life: INVITATION_DEFAULT,
            bus: "tls://127.0.0.1:4222".to_owned(),
        };
        let file = domain.invite(invite, now).expect("a fresh name");
        let layout = domain.layout();
        let desk = Desk {
            issued: layout.issued(),
            invitations: layout.invitations(),
            trust: layout.trust(),
        };
        let core = Registrar::new(LIFETIME, Posture::default());
        let enrol = |machine: &str| {
            let own = identity::DomainLayout::new(&scratch.path().join(machine));
            let newcomer = Newcomer::prepare(&own).expect("an empty folder");
            let asked = AskedToEnrol {
                invitation: file.id().clone(),
                request: newcomer.question(&file, Posture::default(), now),
            };
            let refused = desk.enrol(&core, &layout.issuer(), &asked);
            (
                newcomer.worker().clone(),
                refused.expect_err("a person decides").code,
            )
        };
        let guests = || {
            let found = desk.invitations.find(file.id()).expect("it reads");
            found
                .expect("it was made")
                .guests
                .into_keys()
                .collect::<Vec<_>>()
        };
        let say = |key: &schemas::PublicKey, word| {
            let said = desk.invitations.say(file.id(), key, word);
            said.expect("the folder is ours");
        };
        let mut last = None;
        for machine in ["a", "b", "c"] {
            let (key, code) = enrol(machine);
            assert_eq!(code, Code::EnrolmentPending);
            assert_eq!(
                guests(),
                std::slice::from_ref(&key),
                "the one before was denied"
            );
            say(&key, Word::Denied);
            last = Some(key);
        }
        assert_eq!(enrol("a").1, Code::EnrolmentDenied, "its word stays");
        assert_eq!(guests(), [last.expect("three have asked")]);
    }
}
