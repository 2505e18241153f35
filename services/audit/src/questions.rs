//! Workers' questions about the log, as they are heard. A broker that has older tokens of the
//! accounts denies them; then events are received all the same, and the questions are heard as soon
//! as it has the present ones.

use runtime::{BusConfig, BusError, Delivery, Listener, clock};
use schemas::subject::LOG_FILTER;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::hearing::{AGAIN, Again};

/// The questions, heard or not.
#[derive(Debug)]
pub(crate) struct Questions {
    settings: BusConfig,
    state: State,
    again: Again,
}

#[derive(Debug)]
enum State {
    Heard(Listener),
    Unheard { until: Instant },
    Asking(JoinHandle<Result<Listener, BusError>>),
}

impl Questions {
    /// Hears questions from then on, unless the broker denies that.
    ///
    /// # Errors
    /// The broker is away, or does not accept the credentials.
    pub(crate) async fn connect(settings: BusConfig) -> Result<Self, BusError> {
        Self::connect_pausing(settings, AGAIN).await
    }

    async fn connect_pausing(settings: BusConfig, again: Again) -> Result<Self, BusError> {
        let state = match connect(settings.clone()).await {
            Ok(listener) => State::Heard(listener),
            Err(error @ BusError::Denied { .. }) => unheard(&error, again),
            Err(error) => return Err(error),
        };
        Ok(Self {
            settings,
            state,
            again,
        })
    }

    /// Waits for the next question. If the caller stops waiting, nothing is lost.
    pub(crate) async fn next(&mut self) -> Delivery {
        loop {
            self.state = match &mut self.state {
                State::Heard(listener) => match listener.next().await {
                    Ok(delivery) => return delivery,
                    Err(error) => unheard(&error, self.again),
                },
                State::Unheard { until } => {
                    sleep_until(*until).await;
                    State::Asking(tokio::spawn(connect(self.settings.clone())))
                }
                State::Asking(asking) => match asking.await {
                    Ok(Ok(listener)) => {
                        tracing::info!("workers' questions about the log are heard");
                        State::Heard(listener)
                    }
                    Ok(Err(error)) => unheard(&error, self.again),
                    Err(_) => State::Unheard {
                        until: Instant::now() + self.again.failed,
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

fn unheard(error: &BusError, again: Again) -> State {
    let code = error.code();
    let next = match error {
        BusError::Denied { .. } => {
            "run `diloctl up`, or `diloctl auth config` and then `diloctl auth push`; workers' events are received meanwhile"
        }
        _ => code.next_step(),
    };
    tracing::warn!(%code, next, "workers' questions about the log are not heard: {error}");
    State::Unheard {
        until: Instant::now() + again.after(error),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::played::Played;

    const DENIED: &[u8] = b"-ERR 'Permissions Violation for Subscription to \"diloco.log.>\"'\r\n";

    #[tokio::test]
    async fn tl_29_denied_questions_fail_nothing_and_are_heard_once_the_broker_allows_them() {
        let broker = Played::start().await;
        let again = Again {
            failed: Duration::from_millis(1),
            denied: Duration::from_millis(1),
        };
        let connecting = Questions::connect_pausing(broker.config(), again);
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

    /// A connection that was allowed before, or a try that met another fault, is no denial.
    #[test]
    fn only_a_denial_makes_the_questions_wait_for_long() {
        let waits = |error: &BusError| {
            let before = Instant::now();
            match unheard(error, AGAIN) {
                State::Unheard { until } => until - before,
                state => panic!("{state:?}"),
            }
        };
        let subject = LOG_FILTER.to_owned();
        let lost = waits(&BusError::Lost {
            subject: subject.clone(),
        });
        assert!(lost >= AGAIN.failed && lost < AGAIN.denied);
        let direction = runtime::bus::Direction::Subscribe;
        let denied = waits(&BusError::Denied { direction, subject });
        assert!(denied >= AGAIN.denied);
    }

    #[tokio::test]
    async fn a_broker_that_is_away_at_the_start_is_an_error() {
        let broker = Played::start().await;
        let connecting = Questions::connect(broker.config());
        let (questions, ()) = tokio::join!(connecting, broker.turn_away());
        assert!(!matches!(questions, Ok(_) | Err(BusError::Denied { .. })));
    }
}
