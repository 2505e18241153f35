//! The end of the process: waits after the core has ended, and their limits.

use std::thread::JoinHandle;
use std::time::Duration;

/// Longest wait for the last events to be delivered. Without the bus they are not delivered at all.
const EVENTS_MAX: Duration = Duration::from_secs(8);
/// Time that the training thread gets to finish its step and write the inner state: tens of GB for
/// a large model. Together with the time for an orderly end it stays below the service manager's
/// limit (`TimeoutStopSec`).
const SAVE_MAX: Duration = Duration::from_secs(60);
/// A save that takes longer is logged.
const SAVE_SHOWN: Duration = Duration::from_secs(1);

/// Time that work under way still gets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EndingLimits {
    events: Duration,
    save: Duration,
}

impl Default for EndingLimits {
    fn default() -> Self {
        Self {
            events: EVENTS_MAX,
            save: SAVE_MAX,
        }
    }
}

impl EndingLimits {
    /// Waits for the training thread, which ends after the last inner state is written, and for the
    /// delivery of the last events. Neither shortens the other's time. Returns true if the training
    /// thread has ended.
    pub(crate) async fn wait(
        self,
        training: JoinHandle<()>,
        delivered: impl Future<Output = bool>,
    ) -> bool {
        tokio::join!(self.saved(training), self.told(delivered)).0
    }

    async fn saved(self, training: JoinHandle<()>) -> bool {
        let mut ended = tokio::task::spawn_blocking(move || training.join());
        let mut joined = tokio::time::timeout(SAVE_SHOWN.min(self.save), &mut ended).await;
        if joined.is_err() {
            let limit_s = self.save.as_secs();
            tracing::info!(
                limit_s,
                "waiting for the training thread: it finishes its step and saves the inner state"
            );
            joined = tokio::time::timeout(self.save.saturating_sub(SAVE_SHOWN), ended).await;
        }
        let ended = matches!(joined, Ok(Ok(Ok(()))));
        if !ended {
            tracing::warn!(
                "ends before the training thread did; an inner state that was not saved is lost"
            );
        }
        ended
    }

    async fn told(self, delivered: impl Future<Output = bool>) {
        if tokio::time::timeout(self.events, delivered).await != Ok(true) {
            tracing::warn!(
                "ends before the bus had everything; the oldest event that waits is kept, others are lost"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn a_save_goes_on_when_the_time_of_the_last_events_is_over() {
        let (over, waits) = mpsc::sync_channel::<()>(1);
        // The thread ends when the sender is dropped, as with events that are given up.
        let training = std::thread::spawn(move || assert!(waits.recv().is_err()));
        let never = async move {
            let _over = over;
            std::future::pending().await
        };
        let limits = EndingLimits {
            events: Duration::from_millis(1),
            save: Duration::from_secs(600),
        };
        assert!(limits.wait(training, never).await);
    }

    #[tokio::test]
    async fn what_does_not_end_is_given_up() {
        let (release, waits) = mpsc::sync_channel::<()>(1);
        let training = std::thread::spawn(move || assert!(waits.recv().is_err()));
        let limits = EndingLimits {
            events: Duration::from_millis(1),
            save: Duration::from_millis(1),
        };
        assert!(!limits.wait(training, std::future::pending()).await);
        drop(release);
    }

    #[test]
    fn the_service_manager_waits_longer() {
        let unit = include_str!("../../../deploy/systemd/diloco-worker@.service");
        let limit = unit
            .lines()
            .find_map(|line| line.strip_prefix("TimeoutStopSec="))
            .expect("a limit");
        let limit = Duration::from_secs(limit.parse().expect("seconds"));
        let EndingLimits { events, save } = EndingLimits::default();
        let longest = crate::service::STOP_PATIENCE.as_duration() + save.max(events);
        assert!(
            longest + Duration::from_secs(10) <= limit,
            "{longest:?} of {limit:?}"
        );
        assert!(save > events);
    }
}
