//! Answers on the wire.

use async_nats::Subject;
use bytes::Bytes;
use coordinator_core::Answer;
use runtime::{Bus, Delivery, Refusals};
use schemas::answer::{self, Addressee};
use schemas::lease::Done;
use schemas::limits::MESSAGE_BYTES_MAX;
use schemas::subject::Incoming;
use schemas::{Code, Message, PublicKey, Refusal, Reply};
use tokio::time::Instant;

use crate::telemetry;

/// The address of an answer, and the request that it answers. The asker chooses the subject, so the
/// answer names the asker.
#[derive(Clone, Debug)]
pub(crate) struct ReplyTo {
    subject: Subject,
    addressee: Addressee,
    /// The name of the request, for the metrics.
    request: &'static str,
    /// The subject of the request.
    asked: String,
    refusals: Refusals,
    since: Instant,
}

impl ReplyTo {
    /// Reads the address for the answer to a message; none if the message wants no answer, or its
    /// subject names no asker.
    pub(crate) fn read(message: &Delivery, refusals: &Refusals) -> Option<Self> {
        let subject = Subject::from(message.reply.as_deref()?);
        let request = match message.subject.parse() {
            Ok(Incoming::Request { verb, .. }) => verb.token(),
            Ok(Incoming::Control { verb, .. }) => telemetry::control_label(verb),
            _ => "none of ours",
        };
        Some(Self {
            subject,
            addressee: Addressee::of(&message.subject, &message.payload)?,
            request,
            asked: message.subject.clone(),
            refusals: refusals.clone(),
            since: Instant::now(),
        })
    }

    /// The key of the asker, which the broker holds it to.
    pub(crate) const fn asker(&self) -> &PublicKey {
        &self.addressee.by
    }

    /// Sends the answer. If it does not arrive, the asker asks again.
    pub(crate) async fn send(&self, bus: &Bus, answer: Result<Answer, Refusal>) {
        if let Err(refusal) = &answer {
            self.refusals.note(&self.asked, refusal.code);
        }
        telemetry::answered(self.request, self.since.elapsed(), answer.as_ref().err());
        if let Err(error) = bus
            .publish(&self.subject, encode(&self.addressee, answer))
            .await
        {
            tracing::warn!(code = %error.code(), %error, "answer not sent");
        }
    }
}

/// The bytes of an answer. An answer that is too long for the bus becomes a refusal that says so.
fn encode(addressee: &Addressee, answer: Result<Answer, Refusal>) -> Bytes {
    let bytes = match answer {
        Err(refusal) => refused(addressee, refusal),
        Ok(Answer::Join(reply)) => to(addressee, *reply),
        Ok(Answer::Claim(reply)) => to(addressee, reply),
        Ok(Answer::Renew(reply)) => to(addressee, reply),
        Ok(Answer::Done(reply)) => to(addressee, reply),
        Ok(Answer::Submit(reply)) => to(addressee, reply),
        Ok(Answer::Mask { reply, .. }) => to(addressee, *reply),
        Ok(Answer::Grants(reply)) => to(addressee, reply),
        Ok(Answer::RunNew(reply)) => to(addressee, reply),
        Ok(Answer::Hold(reply)) => to(addressee, reply),
        Ok(Answer::Collect(reply)) => to(addressee, *reply),
        Ok(Answer::Quarantine(reply)) => to(addressee, *reply),
        Ok(Answer::LeasesEnd(reply)) => to(addressee, reply),
        Ok(Answer::Promote(reply)) => to(addressee, *reply),
        Ok(Answer::Restore(reply)) => to(addressee, reply),
        Ok(Answer::Tenant(reply)) => to(addressee, reply),
        Ok(Answer::TenantEnd(reply)) => to(addressee, reply),
        Ok(Answer::Revoke(reply)) => to(addressee, reply),
        Ok(Answer::View(reply)) => to(addressee, *reply),
        Ok(Answer::Keys(reply)) => to(addressee, *reply),
        Ok(Answer::Shutdown(reply)) => to(addressee, reply),
    };
    if bytes.len() <= MESSAGE_BYTES_MAX {
        return bytes;
    }
    let detail = format!(
        "the answer has {} bytes, a message holds {MESSAGE_BYTES_MAX}",
        bytes.len()
    );
    refused(addressee, Refusal::new(Code::MessageInvalid, detail))
}

fn to<T: Message>(addressee: &Addressee, reply: T) -> Bytes {
    answer::Answer::new(addressee, Reply::Ok(reply))
        .encode()
        .into()
}

/// A refusal has the same bytes whatever was asked for.
fn refused(addressee: &Addressee, refusal: Refusal) -> Bytes {
    answer::Answer::<Done>::new(addressee, Reply::Refused(refusal))
        .encode()
        .into()
}

#[cfg(test)]
mod tests {
    use schemas::control::RunNewReply;
    use schemas::security::Refuser;
    use schemas::{Digest, V};

    use super::*;

    fn addressee() -> Addressee {
        let by = format!("U{}", "A".repeat(55)).parse().expect("a key");
        Addressee {
            by,
            question: Digest::of(b"question"),
        }
    }

    #[test]
    fn a_refusal_reads_as_the_answer_to_anything() {
        let refusal = Refusal::new(Code::Draining, "x");
        let bytes = encode(&addressee(), Err(refusal.clone()));
        let read = answer::Answer::<RunNewReply>::decode(&bytes).expect("it reads");
        assert!(read.is_for(Some(&addressee().by), addressee().question));
        assert_eq!(read.reply.into_result(), Err(refusal));
    }

    #[test]
    fn an_answer_reads_back() {
        let bytes = encode(&addressee(), Ok(Answer::Done(Done { v: V })));
        let read = answer::Answer::<Done>::decode(&bytes).expect("it reads");
        assert_eq!(read.reply.into_result(), Ok(Done { v: V }));
    }

    #[test]
    fn what_wants_no_answer_or_names_nobody_gets_none() {
        let message = |subject: &str, reply: Option<&str>| Delivery {
            subject: subject.to_owned(),
            reply: reply.map(str::to_owned),
            payload: Bytes::new(),
        };
        let refusals = Refusals::of(Refuser::Coordinator);
        let read = |message: Delivery| ReplyTo::read(&message, &refusals);
        let view = format!("diloco.control.{}.view", addressee().by);
        assert_eq!(
            read(message(&view, Some("_INBOX.x"))).map(|reply| reply.addressee.by),
            Some(addressee().by)
        );
        assert!(read(message(&view, None)).is_none());
        assert!(read(message("diloco.control.x.view", Some("_INBOX.x"))).is_none());
    }
}
