//! Questions about the log: of workers of the ledger, and of the coordinator.

use schemas::head::{ASKED_MAX, CosignRequest, HeadRequest};
use schemas::subject::{Incoming, LogVerb};
use schemas::{
    ChainSequence, Code, Message as _, PublicKey, Refusal, UnixMillis, WorkerId, is_answer,
};

use super::Intake;
use crate::places::Places;

/// The outcome of the checks of a question about the log.
#[derive(Clone, Debug, PartialEq)]
pub enum QuestionCheck {
    /// As [`super::MessageCheck::Answer`].
    Answer,
    /// As [`super::MessageCheck::Over`].
    Over(WorkerId),
    /// As [`super::MessageCheck::Nobody`].
    Nobody,
    /// The refusal to answer with.
    Refused(Refusal),
    /// A worker of the ledger asks, or the coordinator for a head, whose key then stands for a
    /// worker's.
    Question(WorkerId, Question),
}

/// A question about the log.
#[derive(Clone, Debug, PartialEq)]
pub enum Question {
    /// For the newest head.
    Head {
        /// The events under the head that the asker keeps.
        known: u64,
        /// Those events that were asked about and that are in the log, with their indices.
        events: Vec<(ChainSequence, u64)>,
    },
    /// To keep a cosignature.
    Cosign(Box<CosignRequest>),
}

impl Intake {
    /// Checks a question about the log under `subject`, into which the broker wrote the worker's
    /// name. It is counted like an event: its answer costs about as much.
    pub fn check_question(
        &mut self,
        now: UnixMillis,
        subject: &str,
        payload: &[u8],
    ) -> QuestionCheck {
        let (account, run, worker, verb) = match subject.parse::<Incoming>() {
            Ok(Incoming::Log {
                account,
                run,
                worker,
                verb,
            }) => (account, run, worker, verb),
            Ok(Incoming::LedgerHead { holder, .. }) => {
                return self.check_ledgers_question(now, &holder, payload);
            }
            _ => return QuestionCheck::Nobody,
        };
        if is_answer(payload) {
            return QuestionCheck::Answer;
        }
        if !self.rate(now, &worker).take(now, payload.len() as u64) {
            return QuestionCheck::Over(worker);
        }
        let sender = (account, run, worker);
        let asked = self.standing(&sender).and_then(|keys| {
            let malformed =
                |error: schemas::DecodeError| Refusal::new(Code::MessageInvalid, error.to_string());
            match verb {
                LogVerb::Head => {
                    let request = HeadRequest::decode(payload).map_err(malformed)?;
                    // Nobody else's events.
                    let is_own = keys.contains(&request.emitter);
                    Ok(located(request, is_own.then_some(&self.places)))
                }
                LogVerb::Cosign => {
                    let cosigned = CosignRequest::decode(payload).map_err(malformed)?;
                    Ok(Question::Cosign(Box::new(cosigned)))
                }
            }
        });
        match asked {
            Ok(question) => QuestionCheck::Question(sender.2, question),
            Err(refusal) => QuestionCheck::Refused(refusal),
        }
    }

    /// Checks a question of the coordinator, with the key of its credentials. The answer names
    /// indices and hashes of the ledger's events and nothing of what they say, so no more is asked
    /// of the sender than that the broker lets it ask.
    fn check_ledgers_question(
        &mut self,
        now: UnixMillis,
        holder: &PublicKey,
        payload: &[u8],
    ) -> QuestionCheck {
        // The key of a connection, as a worker's name is.
        let Ok(asker) = holder.as_str().parse::<WorkerId>() else {
            return QuestionCheck::Nobody;
        };
        if is_answer(payload) {
            return QuestionCheck::Answer;
        }
        if !self.rate(now, &asker).take(now, payload.len() as u64) {
            return QuestionCheck::Over(asker);
        }
        match HeadRequest::decode(payload) {
            Ok(request) => QuestionCheck::Question(asker, located(request, Some(&self.ledger))),
            Err(error) => {
                let refusal = Refusal::new(Code::MessageInvalid, error.to_string());
                QuestionCheck::Refused(refusal)
            }
        }
    }
}

/// The question for a head, with the events that are at one of these places: no more than an answer
/// has room for.
fn located(request: HeadRequest, places: Option<&Places>) -> Question {
    let HeadRequest {
        v: _,
        known,
        emitter,
        events,
    } = request;
    let place = |sequence| Some((sequence, places?.index(&emitter, sequence)?));
    let events = events.into_iter().take(ASKED_MAX).filter_map(place);
    Question::Head {
        known,
        events: events.collect(),
    }
}
