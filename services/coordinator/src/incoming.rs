//! Messages from the bus. The subject names the sender and the kind of message: the broker writes
//! the account into it, and holds the sender to its key. The form is checked here; no field of the
//! payload is ever read for the sender's identity.

use coordinator_core::{ControlRequest, Peer, WorkerRequest};
use runtime::Delivery;
use schemas::subject::Incoming;
use schemas::telemetry::Heartbeat;
use schemas::{Code, DecodeError, Message, PublicKey, Refusal};

/// A message that was read and may be decided on.
#[derive(Debug)]
pub(crate) enum ValidMessage {
    Worker {
        peer: Peer,
        request: WorkerRequest,
    },
    Heartbeat {
        peer: Peer,
        heartbeat: Heartbeat,
    },
    Operator {
        operator: PublicKey,
        request: ControlRequest,
    },
}

/// A message that is refused before the core sees it.
#[derive(Debug)]
pub(crate) struct Rejected {
    /// The sender by its subject, for the record; none for operators, and for subjects that are not
    /// ours.
    pub(crate) peer: Option<Peer>,
    pub(crate) verb: String,
    pub(crate) refusal: Refusal,
}

/// The source of a sender's identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Identity {
    /// Workers are in accounts of their own, and the broker names the account. A message that
    /// crosses accounts is recognised by its reply subject.
    ByBroker,
    /// The bus was opened on purpose, so only the subject names the sender.
    BySubject,
}

/// Longest subject for an answer: several times as long as clients make them, and far below the
/// broker's longest line.
const REPLY_BYTES_MAX: usize = 512;

/// Reads one message.
pub(crate) fn read(message: &Delivery, identity: Identity) -> Result<ValidMessage, Box<Rejected>> {
    let rejected = |peer: Option<&Peer>, verb: &str, refusal| {
        Box::new(Rejected {
            peer: peer.cloned(),
            verb: verb.to_owned(),
            refusal,
        })
    };
    let subject = message.subject.as_str();
    let incoming = subject.parse::<Incoming>();
    let incoming = incoming.map_err(|error| {
        rejected(
            None,
            subject,
            Refusal::new(Code::MessageInvalid, error.to_string()),
        )
    })?;
    let reply = message.reply.as_deref();
    match incoming {
        Incoming::Request {
            account,
            run,
            worker,
            verb,
        } => {
            let peer = Peer {
                account,
                run,
                worker,
            };
            let request = answerable(reply, "_R_.", identity)
                .and_then(|()| WorkerRequest::decode(verb, &message.payload).map_err(invalid));
            match request {
                Ok(request) => Ok(ValidMessage::Worker { peer, request }),
                Err(refusal) => Err(rejected(Some(&peer), verb.token(), refusal)),
            }
        }
        Incoming::Heartbeat {
            account,
            run,
            worker,
        } => {
            let peer = Peer {
                account,
                run,
                worker,
            };
            match Heartbeat::decode(&message.payload).map_err(invalid) {
                Ok(heartbeat) => Ok(ValidMessage::Heartbeat { peer, heartbeat }),
                Err(refusal) => Err(rejected(Some(&peer), "heartbeat", refusal)),
            }
        }
        Incoming::Control { operator, verb } => {
            let inbox = format!("_INBOX.{operator}.");
            let request = answerable(reply, &inbox, identity)
                .and_then(|()| ControlRequest::decode(verb, &message.payload).map_err(invalid));
            match request {
                Ok(request) => Ok(ValidMessage::Operator { operator, request }),
                Err(refusal) => Err(rejected(None, verb.token(), refusal)),
            }
        }
        Incoming::WorkerEvent { .. }
        | Incoming::Log { .. }
        | Incoming::LedgerHead { .. }
        | Incoming::Recorded { .. }
        | Incoming::Ledger { .. }
        | Incoming::Security { .. }
        | Incoming::Refusal { .. }
        | Incoming::Renewal { .. }
        | Incoming::Enrolment { .. }
        | Incoming::Offer { .. } => Err(rejected(
            None,
            subject,
            Refusal::new(Code::MessageInvalid, "not a request"),
        )),
    }
}

/// False if the answer to a question would go to another than its asker.
pub(crate) fn is_for_asker(message: &Delivery, identity: Identity) -> bool {
    let reply = message.reply.as_deref();
    match message.subject.parse::<Incoming>() {
        Ok(Incoming::Request { .. }) => answerable(reply, "_R_.", identity).is_ok(),
        Ok(Incoming::Control { operator, .. }) => {
            answerable(reply, &format!("_INBOX.{operator}."), identity).is_ok()
        }
        _ => true,
    }
}

/// Accepts only a subject that the asker itself listens on. Otherwise a request could make the
/// coordinator send a message to others in its own name.
fn answerable(reply: Option<&str>, prefix: &str, identity: Identity) -> Result<(), Refusal> {
    match reply {
        None => Err(Refusal::new(
            Code::MessageInvalid,
            "a request without a subject for the answer",
        )),
        Some(reply) if reply.len() > REPLY_BYTES_MAX || !is_literal(reply) => {
            let detail = format!(
                "the answer is wanted at {} ({} bytes), which is no subject",
                shown(reply),
                reply.len()
            );
            Err(Refusal::new(Code::IdentityMismatch, detail))
        }
        Some(reply) if reply.starts_with(prefix) || identity == Identity::BySubject => Ok(()),
        Some(reply) => {
            let detail = format!(
                "the answer is wanted at {}, which is not under {prefix}",
                shown(reply)
            );
            Err(Refusal::new(Code::IdentityMismatch, detail))
        }
    }
}

/// True when a message can be published there: no wildcards, no empty tokens, no unprintable
/// characters.
fn is_literal(subject: &str) -> bool {
    subject.split('.').all(|token| {
        !token.is_empty()
            && token != "*"
            && token != ">"
            && token.bytes().all(|byte| byte.is_ascii_graphic())
    })
}

fn invalid(error: DecodeError) -> Refusal {
    Refusal::new(Code::MessageInvalid, error.to_string())
}

fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use schemas::lease::ClaimRequest;
    use schemas::member::Session;
    use schemas::{Millis, V, WorkerId};

    use super::*;

    fn worker() -> WorkerId {
        format!("U{}", "A".repeat(55)).parse().expect("a key")
    }

    fn account() -> String {
        format!("A{}", "B".repeat(55))
    }

    fn claim(reply: Option<&str>) -> Delivery {
        Delivery {
            subject: format!("diloco.request.{}.demo.{}.lease.claim", account(), worker()),
            reply: reply.map(str::to_owned),
            payload: ClaimRequest {
                v: V,
                session: Session(1),
                wait: Millis(5),
            }
            .encode()
            .into(),
        }
    }

    fn code(message: &Delivery) -> Code {
        read(message, Identity::ByBroker)
            .expect_err("refused")
            .refusal
            .code
    }

    #[test]
    fn tl_01_ls_07_the_sender_is_the_one_in_the_subject() {
        match read(&claim(Some("_R_.x")), Identity::ByBroker) {
            Ok(ValidMessage::Worker {
                peer,
                request: WorkerRequest::Claim(_),
            }) => {
                assert_eq!(
                    (peer.account.as_str(), peer.worker),
                    (account().as_str(), worker())
                );
            }
            other => panic!("{other:?}"),
        }
        // Subjects without an account or without a key belong to nobody.
        for subject in [
            format!("diloco.request.demo.{}.join", worker()),
            format!("diloco.request.{}.demo.x.join", account()),
        ] {
            let rejected = read(
                &Delivery {
                    subject,
                    ..claim(Some("_R_.x"))
                },
                Identity::ByBroker,
            )
            .expect_err("refused");
            assert_eq!(
                (rejected.refusal.code, rejected.peer),
                (Code::MessageInvalid, None)
            );
        }
    }

    #[test]
    fn ls_05_answers_go_only_where_the_asker_hears_them() {
        let long = format!("_R_.{}", "x".repeat(4000));
        for reply in [
            "_INBOX.x.1",
            "$JS.API.STREAM.DELETE.AUDIT",
            "diloco.command.x",
            "_R_",
            &long,
            "_R_.*",
            "_R_.>",
            "_R_.x.>",
            "_R_..x",
            "_R_.",
            "_R_.a b",
            "_R_.\u{1b}[2J",
            "_R_.\u{fffd}",
        ] {
            assert_eq!(code(&claim(Some(reply))), Code::IdentityMismatch, "{reply}");
        }
        assert_eq!(code(&claim(None)), Code::MessageInvalid);
        let operator = worker();
        let view = |reply: &str| Delivery {
            subject: format!("diloco.control.{operator}.shutdown"),
            reply: Some(reply.to_owned()),
            payload: schemas::control::Shutdown {
                v: V,
                drain: Millis(1),
            }
            .encode()
            .into(),
        };
        assert!(read(&view(&format!("_INBOX.{operator}.7")), Identity::ByBroker).is_ok());
        for other in [
            format!("_INBOX.U{}.7", "C".repeat(55)),
            format!("_INBOX.{operator}"),
            format!("_INBOX.{operator}.*"),
        ] {
            assert_eq!(code(&view(&other)), Code::IdentityMismatch, "{other}");
        }
    }

    #[test]
    fn a_bad_body_is_refused_and_its_sender_recorded() {
        let bad = Delivery {
            payload: "x".into(),
            ..claim(Some("_R_.x"))
        };
        let rejected = read(&bad, Identity::ByBroker).expect_err("refused");
        assert_eq!(
            (rejected.refusal.code, rejected.verb.as_str()),
            (Code::MessageInvalid, "lease.claim")
        );
        assert_eq!(rejected.peer.expect("known").worker, worker());
    }
}
