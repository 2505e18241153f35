//! Answers to messages that crossed into this account.

use schemas::{Addressee, Answer, Message, Reply};

use super::protocol::Delivery;
use crate::Bus;

/// Begins every subject under which the broker brings an answer back to the account of the asker.
/// A reply subject that begins otherwise was chosen by the sender, who may have chosen anything.
const WAY_BACK: &str = "_R_.";

impl Delivery {
    /// Sends the answer to a sender in another account. The broker has replaced the sender's reply
    /// subject by its own; any other gets no answer. The answer names its asker and its question,
    /// see [`Answer`]. If it is lost, the asker asks again.
    pub async fn answer<M: Message>(&self, bus: &Bus, reply: Reply<M>) {
        let place = self
            .reply
            .as_ref()
            .filter(|reply| reply.starts_with(WAY_BACK));
        let addressee = Addressee::of(&self.subject, &self.payload);
        if let (Some(place), Some(addressee)) = (place, addressee) {
            let answer = Answer::new(&addressee, reply).encode();
            if let Err(error) = bus.publish(place, answer.into()).await {
                tracing::debug!(%error, "an answer was not sent");
            }
        }
    }
}
