//! The registrar's decisions: which question for a new token or to be enrolled is heard, and what
//! its asker gets. The shell looks records up, checks proofs and signs; nothing here reads a file,
//! a clock or a key.

mod enrol;
mod rate;
mod succeed;

use std::collections::BTreeMap;

use schemas::enrolment::EnrolmentRequest;
use schemas::member::Posture;
use schemas::renewal::{Registration, RenewalRequest, Successor};
use schemas::subject::Incoming;
use schemas::{
    AccountId, Code, Message as _, Millis, PublicKey, Refusal, RunId, UnixMillis, is_answer,
};

pub use enrol::{AskedToEnrol, Enrolled, GUESTS_MAX, Known, PROOF_AGE_MAX, REPEATED_MAX};
use rate::Rate;
pub use rate::{QUESTION_EVERY, QUESTIONS_BURST};
pub use succeed::Heritage;

/// Holders whose rate is remembered. Above that, those that asked for nothing lately are forgotten,
/// which changes nothing for them; more of them than this cannot ask in so short a time.
const HOLDERS_MAX: usize = 65_536;

/// The registrar's state: the rates of those who asked lately.
#[derive(Debug)]
pub struct Registrar {
    lifetime: Millis,
    /// The layers that this registrar relaxed. A machine that relaxed others is not enrolled.
    posture: Posture,
    rates: BTreeMap<PublicKey, Rate>,
}

/// A question for a new token, under the subject to which the broker holds its asker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The asker's account.
    pub account: AccountId,
    /// The run that its token is for; none for roles that belong to no run.
    pub run: Option<RunId>,
    /// The key with which it is connected.
    pub holder: PublicKey,
}

/// The validity of a new token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// Its time of issue.
    pub issued: UnixMillis,
    /// Its end, exclusive.
    pub ends: UnixMillis,
}

/// The outcome of a message's first check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// An answer that its asker has sent here. It is nobody's question, and counts as nobody's.
    Answer,
    /// A message under a subject that no holder can use, or something else than a question. It
    /// counts as nobody's as well.
    Nobody,
    /// The holder asks too often; the message is dropped.
    TooOften(PublicKey),
    /// A question whose asker is to be looked up.
    Asked(Asked),
    /// A question for another key, whose asker is to be looked up.
    Heir(Asked, Box<Successor>),
    /// A question to be enrolled, whose invitation is to be looked up.
    Newcomer(Box<AskedToEnrol>),
}

impl Registrar {
    /// A registrar whose tokens live for `lifetime`, and which relaxed the layers of `posture`.
    pub const fn new(lifetime: Millis, posture: Posture) -> Self {
        Self {
            lifetime,
            posture,
            rates: BTreeMap::new(),
        }
    }

    /// Checks a message before anything is read for it.
    pub fn hear(&mut self, now: UnixMillis, subject: &str, payload: &[u8]) -> Heard {
        if is_answer(payload) {
            return Heard::Answer;
        }
        let (account, run, holder) = match subject.parse() {
            Ok(Incoming::Renewal {
                account,
                run,
                holder,
            }) => (account, run, holder),
            Ok(Incoming::Enrolment { invitation, .. }) => {
                return self.hear_newcomer(now, invitation, payload);
            }
            _ => return Heard::Nobody,
        };
        // An auditor can have answers to its own questions sent here, under the subject of another.
        // So a holder pays only for what is a question.
        let Ok(RenewalRequest { successor, .. }) = RenewalRequest::decode(payload) else {
            return Heard::Nobody;
        };
        if !self.admit(&holder, now) {
            return Heard::TooOften(holder);
        }
        let asked = Asked {
            account,
            run,
            holder,
        };
        match successor {
            None => Heard::Asked(asked),
            Some(wish) => Heard::Heir(asked, wish),
        }
    }

    /// Decides on a question, given the record of its asker's key. Returns the validity of the new
    /// token.
    ///
    /// # Errors
    /// The key has no record, is blocked, or asks for something else than was issued for it.
    pub fn decide(
        &self,
        now: UnixMillis,
        asked: &Asked,
        record: Option<&Registration>,
    ) -> Result<Validity, Refusal> {
        let refused =
            |code, why: String| Err(Refusal::new(code, format!("{} {why}", asked.holder)));
        let Some(record) = record.filter(|record| record.public == asked.holder) else {
            let why = "is in no record of issued credentials".to_owned();
            return refused(Code::HolderUnknown, why);
        };
        let name = &record.name;
        if record.blocked.is_some() {
            return refused(Code::HolderBlocked, format!("({name}) is blocked"));
        }
        if record.account != asked.account {
            let why = format!("({name}) asks in account {}", asked.account);
            return refused(Code::HolderMismatch, why);
        }
        if record.run != asked.run {
            let run = asked.run.as_ref().map_or("no run", RunId::as_str);
            return refused(Code::HolderMismatch, format!("({name}) asks for {run}"));
        }
        if !record.role.is_renewable() || record.role.is_tenant() != record.run.is_some() {
            let why = format!(
                "({name}) has role {}, which is not renewed",
                record.role.name()
            );
            return refused(Code::HolderMismatch, why);
        }
        Ok(self.validity(now, record.issued))
    }

    /// The validity of a new token for a key whose token on record was issued at `recorded`. A key
    /// that was revoked and issued anew has a token from after the revocation, which may be ahead
    /// of the clock. An earlier one would be void.
    fn validity(&self, now: UnixMillis, recorded: UnixMillis) -> Validity {
        let issued = now.max(recorded);
        // Tokens count whole seconds.
        let ends = UnixMillis((issued.after(self.lifetime).get() / 1000) * 1000);
        Validity { issued, ends }
    }

    fn hear_newcomer(&mut self, now: UnixMillis, invitation: PublicKey, payload: &[u8]) -> Heard {
        let Ok(request) = EnrolmentRequest::decode(payload) else {
            return Heard::Nobody;
        };
        if !self.admit(&invitation, now) {
            return Heard::TooOften(invitation);
        }
        Heard::Newcomer(Box::new(AskedToEnrol {
            invitation,
            request,
        }))
    }

    fn admit(&mut self, holder: &PublicKey, now: UnixMillis) -> bool {
        if self.rates.len() >= HOLDERS_MAX && !self.rates.contains_key(holder) {
            self.rates.retain(|_, rate| !rate.is_full(now));
            if self.rates.len() >= HOLDERS_MAX {
                return false;
            }
        }
        let rate = self.rates.entry(holder.clone());
        rate.or_insert_with(|| Rate::full(now)).take(now)
    }
}

#[cfg(test)]
mod tests;
