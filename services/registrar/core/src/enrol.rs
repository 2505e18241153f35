//! Enrolment: which machine becomes the worker that an invitation promises. Every fact about the
//! new worker comes from the terms of the invitation. The machine's question gives its two keys,
//! and chooses nothing else.

use schemas::enrolment::{Admission, EnrolmentRequest, Guest, Invitation, Terms};
use schemas::limits::TEXT_BYTES_MAX;
use schemas::member::{Layer, Posture};
use schemas::permission::Role;
use schemas::renewal::Registration;
use schemas::{Code, Hasher, Millis, PublicKey, Refusal, Seat, UnixMillis, V};

use crate::{Registrar, Validity};

/// Most machines that wait for a person's approval of one invitation.
pub const GUESTS_MAX: usize = 16;
/// Greatest distance between the time of the signatures and the registrar's clock. A question is
/// for one invitation and one pair of keys, so repeating it gains nothing; the bound catches wrong
/// clocks, with which the new token would not be accepted either.
pub const PROOF_AGE_MAX: Millis = Millis::from_secs(300);
/// Time after an enrolment in which its answer is repeated, for a machine that has not got it. It
/// must be shorter than the time for which a revocation covers tokens to come (5 minutes), less
/// what the clocks of vault and registrar may differ. A key is revoked after it was enrolled, so
/// every token that is given here is then dated before the end of its revocation. The record that
/// says so may lie at the vault alone: without this bound the thief of an enrolled machine would
/// ask again, and get a token that is newer than its revocation.
pub const REPEATED_MAX: Millis = Millis::from_secs(120);

/// A question to be enrolled, under the subject to which the broker holds its asker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AskedToEnrol {
    /// The key of the invitation's credential.
    pub invitation: PublicKey,
    /// The question.
    pub request: EnrolmentRequest,
}

/// What the shell found about a question.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// The invitation; none if the domain has none under this key.
    pub invitation: Option<&'a Invitation>,
    /// The record of the key that wants to be enrolled.
    pub record: Option<&'a Registration>,
    /// Another worker that stands in the way of the invitation's seat: its name and seat.
    pub in_the_way: Option<&'a (String, Seat)>,
    /// True if both keys signed this question, for this invitation and domain.
    pub proven: bool,
}

/// A machine that is enrolled: the records to keep before it is told, and its token's validity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enrolled {
    /// The machine, if its record is not as it should be yet. It is written first: from then on the
    /// invitation is used.
    pub guest: Option<Guest>,
    /// The record of the new worker, and what its token says.
    pub record: Registration,
    /// True if the record is not on file yet.
    pub is_new: bool,
    /// The validity of its token.
    pub validity: Validity,
}

impl Registrar {
    /// Decides on a question to be enrolled. For [`REPEATED_MAX`] the same question has the same
    /// answer, however often it is asked, also if the registrar died in between: a token for the
    /// same key, name, run and seat. Afterwards the invitation is used.
    ///
    /// # Errors
    /// The machine is not enrolled. With [`Code::EnrolmentPending`] it has to be kept as a guest
    /// first, if the second part says so.
    pub fn enrol(
        &self,
        now: UnixMillis,
        asked: &AskedToEnrol,
        known: Known<'_>,
    ) -> Result<Enrolled, (Refusal, Option<Box<Guest>>)> {
        let found = self.check(now, asked, known);
        let (invitation, name) = found.map_err(|refusal| (refusal, None))?;
        let guest = invitation.guests.get(&asked.request.worker);
        if needs_approval(invitation, asked) {
            let waits = guest.is_none().then(|| Box::new(new_guest(now, asked)));
            let detail = format!(
                "key {} waits for `diloctl worker approve`",
                asked.request.worker
            );
            return Err((Refusal::new(Code::EnrolmentPending, detail), waits));
        }
        let enrolled = guest.and_then(|guest| guest.enrolled);
        if let Some(at) = enrolled.filter(|at| at.until(now) > REPEATED_MAX) {
            let ago = at.until(now);
            let why = format!("{} has used it itself, {ago} ms ago", asked.request.worker);
            return Err((Refusal::new(Code::InvitationUsed, why), None));
        }
        let noted = enrolled.is_none().then(|| Guest {
            enrolled: Some(now),
            ..guest.cloned().unwrap_or_else(|| new_guest(now, asked))
        });
        let Terms {
            run, account, seat, ..
        } = &invitation.terms;
        let since = enrolled.unwrap_or(now);
        let issued = known.record.map_or(since, |record| record.issued);
        let validity = self.validity(now, issued);
        let new = Registration {
            v: V,
            name,
            role: Role::Worker,
            run: Some(run.clone()),
            account: account.clone(),
            public: asked.request.worker.clone(),
            issued,
            ends: validity.ends,
            blocked: None,
            audit_key: Some(asked.request.audit_key.clone()),
            seat: seat.clone(),
            before: None,
            changes_until: None,
        };
        let record = match known.record {
            None => new,
            Some(record) => check_record(record, &new).map_err(|refusal| (refusal, None))?,
        };
        Ok(Enrolled {
            guest: noted,
            record,
            is_new: known.record.is_none(),
            validity,
        })
    }

    /// Refuses every question that no approval could help. Returns the invitation and the name that
    /// the machine will have.
    fn check<'a>(
        &self,
        now: UnixMillis,
        asked: &AskedToEnrol,
        known: Known<'a>,
    ) -> Result<(&'a Invitation, String), Refusal> {
        let AskedToEnrol {
            invitation: id,
            request,
        } = asked;
        let refused = |code, why: String| Err(Refusal::new(code, why));
        let Some(invitation) = known.invitation.filter(|one| one.terms.invitation == *id) else {
            return refused(Code::InvitationUnknown, format!("invitation {id}"));
        };
        let terms = &invitation.terms;
        check_proof(now, request, known.proven)?;
        check_token(terms, &request.token)?;
        if now >= terms.ends {
            return refused(Code::InvitationEnded, format!("invitation {id}"));
        }
        if invitation.withdrawn || invitation.denied.contains(&request.worker) {
            return refused(Code::EnrolmentDenied, format!("key {}", request.worker));
        }
        if request.run != terms.run {
            let why = format!("it is for run {}, not {}", terms.run, request.run);
            return refused(Code::InvitationMismatch, why);
        }
        check_posture(&request.posture, &self.posture)?;
        let name = check_admission(invitation, request)?;
        if let Some((other, seat)) = known.in_the_way {
            let wanted = terms.seat.as_ref().map(ToString::to_string);
            let wanted = wanted.unwrap_or_default();
            return refused(Code::SeatTaken, format!("{wanted}: {other} has {seat}"));
        }
        Ok((invitation, name))
    }
}

fn check_proof(now: UnixMillis, request: &EnrolmentRequest, proven: bool) -> Result<(), Refusal> {
    let refused = |why: String| Err(Refusal::new(Code::EnrolmentUnproven, why));
    let EnrolmentRequest {
        worker,
        audit_key,
        at,
        ..
    } = request;
    if worker == audit_key {
        return refused(format!("{worker} is to be both keys of the machine"));
    }
    if !proven {
        return refused(format!("{worker} and {audit_key} have not both signed it"));
    }
    let off = at.until(now).max(now.until(*at));
    match off <= PROOF_AGE_MAX {
        true => Ok(()),
        false => refused(format!(
            "it was signed at a time that is {off} ms from the registrar's"
        )),
    }
}

/// The domain keeps the digest of a token that its generator made. A blank or a sample has another.
fn check_token(terms: &Terms, token: &str) -> Result<(), Refusal> {
    let mut hasher = Hasher::default();
    hasher.update(token.as_bytes());
    match hasher.finish() == terms.token {
        true => Ok(()),
        false => {
            let why = match token.trim().is_empty() {
                true => "the join token is blank",
                false => "the join token is another",
            };
            Err(Refusal::new(Code::InvitationMismatch, why))
        }
    }
}

/// A worker may open no layer that the registrar does not open.
fn check_posture(worker: &Posture, own: &Posture) -> Result<(), Refusal> {
    let long = worker
        .open
        .iter()
        .any(|open| open.reason.len() > TEXT_BYTES_MAX);
    if worker.open.len() > Layer::ALL.len() || long {
        let detail = "the posture is longer than four layers with their reasons";
        return Err(Refusal::new(Code::MessageInvalid, detail));
    }
    match worker.open.iter().find(|open| !own.is_open(open.layer)) {
        None => Ok(()),
        Some(open) => {
            let detail = format!(
                "the machine has layer {} open, which this registrar does not allow",
                open.layer.name()
            );
            Err(Refusal::new(Code::LayerOpen, detail))
        }
    }
}

/// Refuses a machine that is not the one, or one of those, that the invitation admits. Returns the
/// name that it will have.
fn check_admission(invitation: &Invitation, request: &EnrolmentRequest) -> Result<String, Refusal> {
    let terms = &invitation.terms;
    let used = |why: String| Err(Refusal::new(Code::InvitationUsed, why));
    let own = invitation.guests.get(&request.worker);
    if let Some(known) = own.filter(|known| known.audit_key != request.audit_key) {
        let why = format!(
            "{} has asked with audit key {}",
            known.worker, known.audit_key
        );
        return used(why);
    }
    let others = || {
        invitation
            .guests
            .values()
            .filter(|one| one.worker != request.worker)
    };
    match &terms.admission {
        Admission::Listed(listed) => listed.get(&request.worker).cloned().ok_or_else(|| {
            let why = format!("{} is not among the keys that it lists", request.worker);
            Refusal::new(Code::InvitationMismatch, why)
        }),
        Admission::Token => match others().next() {
            None => Ok(terms.name.clone()),
            Some(other) => used(format!("{} has used it", other.worker)),
        },
        Admission::Hand => {
            let chosen = |key: &PublicKey| invitation.approved.contains(key);
            let taken = others().find(|one| one.enrolled.is_some() || chosen(&one.worker));
            if let Some(other) = taken {
                return used(format!("{} has used it", other.worker));
            }
            // An operator has answered those that were denied; they keep nobody else out.
            let denied = |key: &PublicKey| invitation.denied.contains(key);
            let waiting = others().filter(|one| !denied(&one.worker)).count();
            if own.is_none() && waiting >= GUESTS_MAX {
                return used(format!("{GUESTS_MAX} machines wait for an answer to it"));
            }
            Ok(terms.name.clone())
        }
    }
}

fn needs_approval(invitation: &Invitation, asked: &AskedToEnrol) -> bool {
    let by_hand = invitation.terms.admission == Admission::Hand;
    by_hand && !invitation.approved.contains(&asked.request.worker)
}

fn new_guest(now: UnixMillis, asked: &AskedToEnrol) -> Guest {
    let request = &asked.request;
    Guest {
        v: V,
        worker: request.worker.clone(),
        audit_key: request.audit_key.clone(),
        asked: now,
        posture: request.posture.clone(),
        enrolled: None,
    }
}

/// The record of a key that is on file must be the one that this invitation makes, with the time of
/// issue on file: otherwise a worker could change its name, run or seat with an invitation for
/// another.
fn check_record(record: &Registration, new: &Registration) -> Result<Registration, Refusal> {
    if record.blocked.is_some() {
        let why = format!("{} ({}) is blocked", record.public, record.name);
        return Err(Refusal::new(Code::HolderBlocked, why));
    }
    let same = Registration {
        ends: record.ends,
        ..new.clone()
    };
    match *record == same {
        true => Ok(record.clone()),
        false => {
            let why = format!("{} is enrolled as {}", record.public, record.name);
            Err(Refusal::new(Code::InvitationMismatch, why))
        }
    }
}

#[cfg(test)]
mod tests;
