//! One question that several messages answer, on a subscription of its own.

use std::time::Duration;

use async_nats::header::NATS_SEQUENCE;
use async_nats::{HeaderMap, Message, StatusCode};
use bytes::Bytes;
use futures::StreamExt as _;
use tokio::time::timeout;

use super::{Bus, BusError, causes};

impl Bus {
    /// Sends a question and passes each message of its answer to `take`, until `take` returns
    /// false: the answer is complete.
    ///
    /// # Errors
    /// As [`Bus::request_raw`]; the time-out is `silence` without any message.
    pub async fn request_parts(
        &self,
        subject: &str,
        question: Bytes,
        silence: Duration,
        take: impl FnMut(Message) -> bool,
    ) -> Result<(), BusError> {
        let asked = self.ask_for_parts(subject, question, silence, take);
        self.until_hopeless(subject, asked).await?
    }

    async fn ask_for_parts(
        &self,
        subject: &str,
        question: Bytes,
        silence: Duration,
        mut take: impl FnMut(Message) -> bool,
    ) -> Result<(), BusError> {
        let timed_out = |_| BusError::TimedOut {
            subject: subject.to_owned(),
            after: silence,
        };
        let unsent = |error: &dyn std::error::Error| BusError::Send {
            subject: subject.to_owned(),
            reason: causes(error),
        };
        let inbox = self.client.new_inbox();
        // Without a server both wait once the client's queue is full.
        let heard = self.client.subscribe(inbox.clone());
        let heard = timeout(silence, heard).await.map_err(timed_out)?;
        let mut heard = heard.map_err(|error| unsent(&error))?;
        let sent = self
            .client
            .publish_with_reply(subject.to_owned(), inbox, question);
        let sent = timeout(silence, sent).await.map_err(timed_out)?;
        sent.map_err(|error| unsent(&error))?;
        loop {
            let message = timeout(silence, heard.next()).await.map_err(timed_out)?;
            let Some(message) = message else {
                return Err(BusError::Lost {
                    subject: subject.to_owned(),
                });
            };
            if is_unheard(&message) {
                return Err(BusError::NoResponders {
                    subject: subject.to_owned(),
                });
            }
            if !take(message) {
                return Ok(());
            }
        }
    }
}

/// True for the server's word that nobody listens. A message of a stream, which comes with the
/// headers that its sender gave it, can have the same status, but also has a position.
fn is_unheard(message: &Message) -> bool {
    let positioned = |all: &HeaderMap| all.get(NATS_SEQUENCE).is_some();
    message.status == Some(StatusCode::NO_RESPONDERS)
        && !message.headers.as_ref().is_some_and(positioned)
}

#[cfg(test)]
mod tests {
    use async_nats::header::NATS_SUBJECT;

    use super::*;

    fn status(code: u16, headers: Option<HeaderMap>) -> Message {
        Message {
            subject: "inbox".into(),
            reply: None,
            payload: Bytes::new(),
            headers,
            status: StatusCode::from_u16(code).ok(),
            description: None,
            length: 0,
        }
    }

    fn headers(name: async_nats::HeaderName, value: &str) -> Option<HeaderMap> {
        let mut headers = HeaderMap::new();
        headers.insert(name, value);
        Some(headers)
    }

    /// The server's word names the subject that was asked when the question crossed an import.
    #[test]
    fn only_a_message_without_a_position_is_the_servers_word_that_nobody_listens() {
        let asked = "$JS.API.DIRECT.GET.AUDIT";
        assert!(is_unheard(&status(503, None)));
        assert!(is_unheard(&status(503, Some(HeaderMap::new()))));
        assert!(is_unheard(&status(503, headers(NATS_SUBJECT, asked))));
        assert!(!is_unheard(&status(503, headers(NATS_SEQUENCE, "7"))));
        assert!(!is_unheard(&status(204, None)));
        assert!(!is_unheard(&Message {
            status: None,
            ..status(503, None)
        }));
    }
}
