//! What arrives on the bus: who says it, by the broker's word; what it is, by its subject; whether it has the right form.
//! A message's own fields are never asked who sent it.

use async_nats::{HeaderMap, Message as BusMessage};
use coordinator_core::{ControlRequest, Peer, Submission, WorkerRequest};
use schemas::contribution::{Statement, SubmitRequest};
use schemas::subject::{ControlVerb, Incoming, REQUEST_INFO_HEADER, Verb};
use schemas::telemetry::Heartbeat;
use schemas::{Code, DecodeError, Message, PublicKey, Refusal};
use serde::Deserialize;

/// A message that may be decided about.
#[derive(Debug)]
pub(crate) enum Heard {
    Worker { peer: Peer, request: WorkerRequest },
    Heartbeat { peer: Peer, heartbeat: Heartbeat },
    Operator { operator: PublicKey, request: ControlRequest },
}

/// A message that was refused before anything was decided about it.
#[derive(Debug)]
pub(crate) struct Rejected {
    /// The sender by its subject, for the record; none for operators and for subjects that are none of ours.
    pub(crate) peer: Option<Peer>,
    pub(crate) verb: String,
    pub(crate) refusal: Refusal,
}

/// What the broker must have said about a sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Identity {
    /// Senders come from accounts of their own, and the broker names them.
    ByBroker,
    /// The bus was opened on purpose; subjects are all there is.
    BySubject,
}

/// The part of the broker's note about a sender that matters here.
#[derive(Deserialize)]
struct RequestInfo {
    #[serde(default)]
    acc: String,
    #[serde(default)]
    user: String,
}

/// Reads one message.
pub(crate) fn read(message: &BusMessage, identity: Identity) -> Result<Heard, Box<Rejected>> {
    let rejected = |peer: Option<&Peer>, verb: &str, refusal| {
        Box::new(Rejected { peer: peer.cloned(), verb: verb.to_owned(), refusal })
    };
    let subject = message.subject.as_str();
    let incoming = subject.parse::<Incoming>();
    let incoming =
        incoming.map_err(|error| rejected(None, subject, Refusal::new(Code::MessageInvalid, error.to_string())))?;
    let headers = message.headers.as_ref();
    let reply = message.reply.as_ref().map(|subject| subject.as_str());
    match incoming {
        Incoming::Request { account, run, worker, verb } => {
            let peer = Peer { account, run, worker };
            let request = named_by_broker(&peer, headers, identity)
                .and_then(|()| answerable(reply, "_R_.", identity))
                .and_then(|()| worker_request(verb, &message.payload));
            match request {
                Ok(request) => Ok(Heard::Worker { peer, request }),
                Err(refusal) => Err(rejected(Some(&peer), verb.token(), refusal)),
            }
        }
        Incoming::Heartbeat { account, run, worker } => {
            let peer = Peer { account, run, worker };
            let heartbeat =
                named_by_broker(&peer, headers, identity).and_then(|()| decode::<Heartbeat>(&message.payload));
            match heartbeat {
                Ok(heartbeat) => Ok(Heard::Heartbeat { peer, heartbeat }),
                Err(refusal) => Err(rejected(Some(&peer), "heartbeat", refusal)),
            }
        }
        Incoming::Control { operator, verb } => {
            let inbox = format!("_INBOX.{operator}.");
            let request = answerable(reply, &inbox, identity).and_then(|()| control_request(verb, &message.payload));
            match request {
                Ok(request) => Ok(Heard::Operator { operator, request }),
                Err(refusal) => Err(rejected(None, verb.token(), refusal)),
            }
        }
        Incoming::WorkerEvent { .. } | Incoming::Recorded { .. } | Incoming::Ledger { .. } | Incoming::Offer { .. } => {
            Err(rejected(None, subject, Refusal::new(Code::MessageInvalid, "not a request")))
        }
    }
}

/// Compares the subject's sender with the one that the broker wrote into the header.
fn named_by_broker(peer: &Peer, headers: Option<&HeaderMap>, identity: Identity) -> Result<(), Refusal> {
    if identity == Identity::BySubject {
        return Ok(());
    }
    let mismatch = |detail: String| Refusal::new(Code::IdentityMismatch, detail);
    let note = headers.and_then(|headers| headers.get(REQUEST_INFO_HEADER));
    let note = note.ok_or_else(|| mismatch(format!("the broker says nothing about the sender of {}", peer.worker)))?;
    let info: RequestInfo = serde_json::from_str(note.as_str())
        .map_err(|_| mismatch("the broker's note about the sender is not one".to_owned()))?;
    if info.acc == peer.account.as_str() && info.user == peer.worker.as_str() {
        return Ok(());
    }
    let said = format!("{} of {}", peer.worker, peer.account);
    Err(mismatch(format!("the subject says {said}, the broker says {} of {}", shown(&info.user), shown(&info.acc))))
}

/// An answer goes only where the asker itself hears it: else a request could make the coordinator speak to others in its
/// own name.
fn answerable(reply: Option<&str>, prefix: &str, identity: Identity) -> Result<(), Refusal> {
    match reply {
        None => Err(Refusal::new(Code::MessageInvalid, "a request without a subject for the answer")),
        Some(reply) if reply.starts_with(prefix) || identity == Identity::BySubject => Ok(()),
        Some(reply) => {
            let detail = format!("the answer is wanted at {}, which is not under {prefix}", shown(reply));
            Err(Refusal::new(Code::IdentityMismatch, detail))
        }
    }
}

fn worker_request(verb: Verb, payload: &[u8]) -> Result<WorkerRequest, Refusal> {
    Ok(match verb {
        Verb::Join => WorkerRequest::Join(decode(payload)?),
        Verb::Leave => WorkerRequest::Leave(decode(payload)?),
        Verb::LeaseClaim => WorkerRequest::Claim(decode(payload)?),
        Verb::LeaseRenew => WorkerRequest::Renew(decode(payload)?),
        Verb::LeaseRelease => WorkerRequest::Release(decode(payload)?),
        Verb::BlobPut => WorkerRequest::Put(decode(payload)?),
        Verb::BlobGet => WorkerRequest::Get(decode(payload)?),
        Verb::ContributionStage => WorkerRequest::Stage(decode(payload)?),
        Verb::ContributionSubmit => {
            let request: SubmitRequest = decode(payload)?;
            let bytes = request.statement.into_vec();
            let statement: Statement = decode(&bytes)?;
            WorkerRequest::Submit(Submission { statement, bytes, signature: request.signature.into_array() })
        }
    })
}

fn control_request(verb: ControlVerb, payload: &[u8]) -> Result<ControlRequest, Refusal> {
    Ok(match verb {
        ControlVerb::RunNew => ControlRequest::RunNew(Box::new(decode(payload)?)),
        ControlVerb::View => ControlRequest::View(decode(payload)?),
        ControlVerb::BlobPut => ControlRequest::BlobPut(decode(payload)?),
        ControlVerb::BlobCommit => ControlRequest::BlobCommit(decode(payload)?),
        ControlVerb::BlobGet => ControlRequest::BlobGet(decode(payload)?),
        ControlVerb::Shutdown => ControlRequest::Shutdown(decode(payload)?),
    })
}

fn decode<T: Message>(payload: &[u8]) -> Result<T, Refusal> {
    T::decode(payload).map_err(|error: DecodeError| Refusal::new(Code::MessageInvalid, error.to_string()))
}

fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use schemas::lease::ClaimRequest;
    use schemas::{Millis, V, WorkerId};

    use super::*;

    fn worker() -> WorkerId {
        format!("U{}", "A".repeat(55)).parse().expect("a key")
    }

    fn account() -> String {
        format!("A{}", "B".repeat(55))
    }

    fn claim(acc: &str, user: &str, reply: Option<&str>) -> BusMessage {
        let mut headers = HeaderMap::new();
        headers.insert(REQUEST_INFO_HEADER, format!(r#"{{"acc":"{acc}","user":"{user}","rtt":3}}"#));
        BusMessage {
            subject: format!("diloco.request.{}.demo.{}.lease.claim", account(), worker()).into(),
            reply: reply.map(Into::into),
            payload: ClaimRequest { v: V, wait: Millis(5) }.encode().into(),
            headers: Some(headers),
            status: None,
            description: None,
            length: 0,
        }
    }

    fn code(message: &BusMessage) -> Code {
        read(message, Identity::ByBroker).expect_err("refused").refusal.code
    }

    #[test]
    fn tl_01_ls_07_the_broker_and_the_subject_must_name_the_same_sender() {
        let good = claim(&account(), worker().as_str(), Some("_R_.x"));
        assert!(matches!(read(&good, Identity::ByBroker), Ok(Heard::Worker { request: WorkerRequest::Claim(_), .. })));
        let other = format!("U{}", "C".repeat(55));
        assert_eq!(code(&claim(&account(), &other, Some("_R_.x"))), Code::IdentityMismatch);
        assert_eq!(code(&claim("ABC", worker().as_str(), Some("_R_.x"))), Code::IdentityMismatch);
        let bare = BusMessage { headers: None, ..claim(&account(), worker().as_str(), Some("_R_.x")) };
        assert_eq!(code(&bare), Code::IdentityMismatch);
        assert!(read(&bare, Identity::BySubject).is_ok());
    }

    #[test]
    fn ls_05_answers_go_only_where_the_asker_hears_them() {
        for reply in ["_INBOX.x.1", "$JS.API.STREAM.DELETE.AUDIT", "diloco.command.x", "_R_"] {
            assert_eq!(code(&claim(&account(), worker().as_str(), Some(reply))), Code::IdentityMismatch, "{reply}");
        }
        assert_eq!(code(&claim(&account(), worker().as_str(), None)), Code::MessageInvalid);
        let operator = worker();
        let view = |reply: &str| BusMessage {
            subject: format!("diloco.control.{operator}.shutdown").into(),
            reply: Some(reply.into()),
            headers: None,
            payload: schemas::control::Shutdown { v: V, drain: Millis(1) }.encode().into(),
            ..claim("", "", None)
        };
        assert!(read(&view(&format!("_INBOX.{operator}.7")), Identity::ByBroker).is_ok());
        assert_eq!(code(&view(&format!("_INBOX.U{}.7", "C".repeat(55)))), Code::IdentityMismatch);
        assert_eq!(code(&view(&format!("_INBOX.{operator}"))), Code::IdentityMismatch);
    }

    #[test]
    fn a_bad_body_is_refused_and_its_sender_recorded() {
        let bad = BusMessage { payload: "x".into(), ..claim(&account(), worker().as_str(), Some("_R_.x")) };
        let rejected = read(&bad, Identity::ByBroker).expect_err("refused");
        assert_eq!((rejected.refusal.code, rejected.verb.as_str()), (Code::MessageInvalid, "lease.claim"));
        assert_eq!(rejected.peer.expect("known").worker, worker());
    }
}
