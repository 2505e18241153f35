//! Signed orders from the coordinator. Whatever does not verify is counted, reported and otherwise ignored.

use std::sync::Arc;

use identity::TrustBundle;
use runtime::{Bus, BusError, Subscription};
use schemas::subject::command_filters;
use schemas::{Code, RunId, WorkerId, is_answer};
use tokio::sync::mpsc;
use worker_core::Input;

use crate::verify::{self, Expected};

/// Whose orders are heard.
#[derive(Clone, Debug)]
pub(crate) struct Ears {
    pub(crate) trust: Arc<TrustBundle>,
    pub(crate) run: RunId,
    pub(crate) worker: WorkerId,
}

impl Ears {
    /// Listens on both subjects from now on and hands verified commands to the core.
    ///
    /// # Errors
    /// The server does not let this worker listen.
    pub(crate) async fn listen(self, bus: &Bus, inputs: mpsc::Sender<Input>) -> Result<(), BusError> {
        for subscription in bus.subscribe_all(&command_filters(&self.run, &self.worker)).await? {
            tokio::spawn(self.clone().hear(subscription, inputs.clone()));
        }
        Ok(())
    }

    async fn hear(self, mut subscription: Subscription, inputs: mpsc::Sender<Input>) {
        loop {
            let input = match subscription.next().await {
                // An answer that somebody had sent here is for nobody here, and no sign of anything at the coordinator.
                Ok(Some(message)) if is_answer(&message.payload) => {
                    tracing::debug!(code = %Code::AnswerForeign, "an answer where commands are heard");
                    continue;
                }
                Ok(Some(message)) => self.judge(&message.payload),
                Ok(None) => return,
                Err(error) => {
                    tracing::warn!(code = %error.code(), %error, "no longer hears commands");
                    return;
                }
            };
            if inputs.send(input).await.is_err() {
                return;
            }
        }
    }

    fn judge(&self, payload: &[u8]) -> Input {
        let now = runtime::clock::now();
        let expected = Expected { trust: &self.trust, worker: &self.worker, run: &self.run, now };
        match verify::command(payload, &expected) {
            Ok(verb) => {
                tracing::info!(verb = verb.token(), "command of the coordinator");
                Input::Command(verb)
            }
            Err(refusal) => {
                tracing::warn!(code = %refusal.code, detail = refusal.detail, "a command is ignored");
                Input::CommandRefused(refusal)
            }
        }
    }
}
