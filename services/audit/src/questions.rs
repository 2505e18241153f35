//! Workers' questions about the log, as they are heard. A broker that has older tokens of the
//! accounts denies them; then events are received all the same, and the questions are heard as soon
//! as it has the present ones.

use std::time::Duration;

use runtime::{BusConfig, BusError, Delivery, Listener, clock};
use schemas::subject::LOG_FILTER;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

/// Pause before a denied connection is tried again: each try leaves a line in the broker's log.
const AGAIN_AFTER: Duration = Duration::from_secs(3600);

/// The questions, heard or not.
#[derive(Debug)]
pub(crate) struct Questions {
    settings: BusConfig,
    state: State,
    pause: Duration,
}

#[derive(Debug)]
enum State {
    Heard(Listener),
    Denied { again: Instant },
    Asking(JoinHandle<Result<Listener, BusError>>),
}

impl Questions {
    /// Hears questions from then on, unless the broker denies that.
    ///
    /// # Errors
    /// The broker is away, or does not accept the credentials.
    pub(crate) async fn connect(settings: BusConfig) -> Result<Self, BusError> {
        Self::connect_pausing(settings, AGAIN_AFTER).await
    }

    async fn connect_pausing(settings: BusConfig, pause: Duration) -> Result<Self, BusError> {
        let state = match connect(settings.clone()).await {
            Ok(listener) => State::Heard(listener),
            Err(error @ BusError::Denied { .. }) => denied(&error, pause),
            Err(error) => return Err(error),
        };
        Ok(Self {
            settings,
            state,
            pause,
        })
    }

    /// Waits for the next question. If the caller stops waiting, nothing is lost.
    pub(crate) async fn next(&mut self) -> Delivery {
        loop {
            self.state = match &mut self.state {
                State::Heard(listener) => match listener.next().await {
                    Ok(delivery) => return delivery,
                    Err(error) => denied(&error, self.pause),
                },
                State::Denied { again } => {
                    sleep_until(*again).await;
                    State::Asking(tokio::spawn(connect(self.settings.clone())))
                }
                State::Asking(asking) => match asking.await {
                    Ok(Ok(listener)) => {
                        tracing::info!("workers' questions about the log are heard");
                        State::Heard(listener)
                    }
                    Ok(Err(error)) => denied(&error, self.pause),
                    Err(_) => State::Denied {
                        again: Instant::now() + self.pause,
                    },
                },
            };
        }
    }
}

async fn connect(settings: BusConfig) -> Result<Listener, BusError> {
    let name = "diloco-audit-questions";
    let heard = Listener::connect(name, &settings, &[LOG_FILTER], clock::now()).await?;
    let mut heard = heard.into_iter();
    Ok(heard.next().expect("one for each filter"))
}

fn denied(error: &BusError, pause: Duration) -> State {
    let code = error.code();
    let next = "run `diloctl up`, or `diloctl auth config` and then `diloctl auth push`; workers' events are received meanwhile";
    tracing::warn!(%code, next, "workers' questions about the log are not heard: {error}");
    State::Denied {
        again: Instant::now() + pause,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::played::Played;

    const DENIED: &[u8] = b"-ERR 'Permissions Violation for Subscription to \"diloco.log.>\"'\r\n";

    #[tokio::test]
    async fn tl_29_denied_questions_fail_nothing_and_are_heard_once_the_broker_allows_them() {
        let broker = Played::start().await;
        let pause = Duration::from_millis(1);
        let connecting = Questions::connect_pausing(broker.config(), pause);
        let denying = async { broker.accept().await.say(DENIED).await };
        let (questions, ()) = tokio::join!(connecting, denying);
        let mut questions = questions.expect("a denial is no failure");
        let serving = async {
            // Another fault is tried again too.
            broker.turn_away().await;
            let mut peer = broker.accept().await;
            peer.say(b"PONG\r\n").await;
            peer.deliver(0, "diloco.log.x", b"first").await;
            peer
        };
        let (first, mut peer) = tokio::join!(questions.next(), serving);
        assert_eq!(&first.payload[..], b"first");
        // The right is taken away, and given again.
        peer.say(DENIED).await;
        let serving = async {
            let mut peer = broker.accept().await;
            peer.say(b"PONG\r\n").await;
            peer.deliver(0, "diloco.log.x", b"second").await;
            peer
        };
        let (second, _peer) = tokio::join!(questions.next(), serving);
        assert_eq!(&second.payload[..], b"second");
    }

    #[tokio::test]
    async fn a_broker_that_is_away_at_the_start_is_an_error() {
        let broker = Played::start().await;
        let connecting = Questions::connect(broker.config());
        let (questions, ()) = tokio::join!(connecting, broker.turn_away());
        assert!(!matches!(questions, Ok(_) | Err(BusError::Denied { .. })));
    }
}
