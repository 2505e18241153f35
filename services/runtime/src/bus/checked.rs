//! Messages that nobody answers, and of which a denial is heard all the same.

use bytes::Bytes;

use super::{Bus, BusError, Direction, REFUSAL_GRACE};

impl Bus {
    /// Publishes a message that nobody answers, and waits until the server has handled it.
    ///
    /// # Errors
    /// As [`Bus::publish`]; or the server denies the subject, or does not answer.
    pub async fn publish_checked(&self, subject: &str, payload: Bytes) -> Result<(), BusError> {
        self.publish_all_checked(subject, vec![payload]).await
    }

    /// The same of several messages under one subject, in one wait.
    ///
    /// # Errors
    /// The same, of any: some of them may have been handled.
    pub async fn publish_all_checked(
        &self,
        subject: &str,
        payloads: Vec<Bytes>,
    ) -> Result<(), BusError> {
        let mut denied = self.denials.watch(Direction::Publish, subject);
        for payload in payloads {
            self.publish(subject, payload).await?;
        }
        self.round_trip().await?;
        // As in `subscribe`: the answer can overtake the refusal.
        tokio::time::sleep(REFUSAL_GRACE).await;
        match denied.was_heard() {
            true => Err(BusError::Denied {
                direction: Direction::Publish,
                subject: subject.to_owned(),
            }),
            false => Ok(()),
        }
    }
}
