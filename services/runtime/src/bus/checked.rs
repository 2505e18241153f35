//! Messages that nobody answers, and of which a denial is heard all the same.

use bytes::Bytes;

use super::{Bus, BusError, Direction, REFUSAL_GRACE};

impl Bus {
    /// Publishes a message that nobody answers, and waits until the server has handled it.
    ///
    /// # Errors
    /// As [`Bus::publish`]; or the server denies the subject, or does not answer.
    pub async fn publish_checked(&self, subject: &str, payload: Bytes) -> Result<(), BusError> {
        let mut denied = self.denials.watch(Direction::Publish, subject);
        self.publish(subject, payload).await?;
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
