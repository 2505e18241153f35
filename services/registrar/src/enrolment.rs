//! The desk at which invited machines are enrolled: it reads what the domain knows about an
//! invitation, and keeps what was decided before anybody is told.

use std::path::Path;

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
}

impl Desk {
    pub(crate) fn new(section: &RegistrarSection, issued: IssuedList) -> Self {
        Self {
            issued,
            invitations: InvitationList::at(&section.invitations),
        }
    }

    /// The answer to a question to be enrolled. Everything is on the disk before it is given, and the
    /// machine's own record first: if this process dies in between, the machine asks again and gets
    /// the same answer, and no other machine does.
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
        })
    }
}

fn refusal(error: impl Coded) -> Refusal {
    Refusal::new(error.code(), error.detail())
}
