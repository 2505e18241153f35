//! Many questions to one subject, with all their answers on one subscription: a question costs a
//! line each way, and no task of its own.

use std::time::Duration;

use async_nats::StatusCode;
use bytes::Bytes;
use futures::StreamExt as _;
use tokio::time::timeout;

use super::{Bus, BusError, causes};

impl Bus {
    /// Sends all questions at once and returns the answers in the order of the questions. The
    /// server must answer each question with one message. Ask a peer of this project, which may
    /// refuse, with [`Bus::request`].
    ///
    /// # Errors
    /// As [`Bus::request_raw`]; the time-out is `silence` without any answer.
    pub async fn request_many(
        &self,
        subject: &str,
        questions: impl IntoIterator<Item = Bytes>,
        silence: Duration,
    ) -> Result<Vec<Bytes>, BusError> {
        let asked = self.ask_all(subject, questions, silence);
        self.until_hopeless(subject, asked).await?
    }

    async fn ask_all(
        &self,
        subject: &str,
        questions: impl IntoIterator<Item = Bytes>,
        silence: Duration,
    ) -> Result<Vec<Bytes>, BusError> {
        let timed_out = |_| BusError::TimedOut {
            subject: subject.to_owned(),
            after: silence,
        };
        let unsent = |error: &dyn std::error::Error| BusError::Send {
            subject: subject.to_owned(),
            reason: causes(error),
        };
        let inbox = self.client.new_inbox();
        // Without a server this waits once the client's queue is full.
        let heard = self.client.subscribe(format!("{inbox}.*"));
        let heard = timeout(silence, heard).await.map_err(timed_out)?;
        let mut heard = heard.map_err(|error| unsent(&error))?;
        let mut missing = 0;
        for question in questions {
            let reply = format!("{inbox}.{missing}");
            let sent = self
                .client
                .publish_with_reply(subject.to_owned(), reply, question);
            // Without a server sending ends once the client's queue is full.
            let sent = timeout(silence, sent).await.map_err(timed_out)?;
            sent.map_err(|error| unsent(&error))?;
            missing += 1;
        }
        let mut answers = vec![None; missing];
        while missing > 0 {
            let message = timeout(silence, heard.next()).await.map_err(timed_out)?;
            let Some(message) = message else {
                return Err(BusError::Lost {
                    subject: subject.to_owned(),
                });
            };
            if message.status == Some(StatusCode::NO_RESPONDERS) {
                return Err(BusError::NoResponders {
                    subject: subject.to_owned(),
                });
            }
            let number = message.subject.rsplit('.').next();
            let place = number.and_then(|number| number.parse::<usize>().ok());
            // An answer that comes twice counts once; only the server can write here.
            if let Some(place) = place.and_then(|place| answers.get_mut(place))
                && place.replace(message.payload).is_none()
            {
                missing -= 1;
            }
        }
        Ok(answers.into_iter().flatten().collect())
    }
}
