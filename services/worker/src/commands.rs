//! Signed commands from the coordinator. A command that does not verify is counted, reported and
//! ignored.

use identity::TrustSource;
use runtime::{Bus, BusError, Subscription};
use schemas::member::Session;
use schemas::subject::command_filter;
use schemas::{Code, RunId, WorkerId, is_answer};
use tokio::sync::mpsc;
use worker_core::Input;

use crate::replays::Commands;
use crate::time::CoordinatorTime;
use crate::verify::{self, Expected};

/// Listens for the signed commands to one process of a worker.
#[derive(Clone, Debug)]
pub(crate) struct CommandListener {
    pub(crate) trust: TrustSource,
    pub(crate) run: RunId,
    pub(crate) worker: WorkerId,
    pub(crate) session: Session,
    pub(crate) time: CoordinatorTime,
}

impl CommandListener {
    /// Listens from now on, and passes verified commands to the core.
    ///
    /// # Errors
    /// The server does not let this worker listen.
    pub(crate) async fn listen(
        self,
        bus: &Bus,
        inputs: mpsc::Sender<Input>,
    ) -> Result<(), BusError> {
        let subscription = bus
            .subscribe(&command_filter(&self.run, &self.worker))
            .await?;
        tokio::spawn(self.hear(subscription, inputs));
        Ok(())
    }

    async fn hear(self, mut subscription: Subscription, inputs: mpsc::Sender<Input>) {
        let mut obeyed = Commands::default();
        loop {
            let input = match subscription.next().await {
                // A stranger can have the answer to its own question sent here. Such an answer is
                // dropped, and says nothing about the coordinator.
                Ok(Some(message)) if is_answer(&message.payload) => {
                    tracing::debug!(code = %Code::AnswerForeign, "an answer where commands are heard");
                    continue;
                }
                Ok(Some(message)) => self.judge(&message.payload, &mut obeyed),
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

    fn judge(&self, payload: &[u8], obeyed: &mut Commands) -> Input {
        let now = self.time.now();
        let checked = verify::trusted(&self.trust).and_then(|trust| {
            let expected = Expected {
                trust: &trust,
                worker: &self.worker,
                session: self.session,
                run: &self.run,
                now,
            };
            verify::command(payload, &expected, obeyed)
        });
        match checked {
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
