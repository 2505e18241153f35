//! Keeps the token of a connection fresh. Before the token ends, the keeper asks the registrar for
//! another one, puts it into the credentials file, and connects again with it. The session at the
//! coordinator, leases and subscriptions stay: only the connection is a new one.

use std::sync::Arc;
use std::time::Duration;

use identity::Credentials;
use schemas::renewal::{RenewalReply, RenewalRequest};
use schemas::subject::renewal_subject;
use schemas::text::Time;
use schemas::{Code, Millis, Refusal, UnixMillis, V};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use super::{Bus, ROUND_TRIP_MAX};
use crate::clock;
use crate::renewal::{Freshness, Life};

/// Longest wait for requests that are in flight, before the connection is made anew. Those that
/// take longer are asked again by their callers, as after any loss of the connection.
const QUIET_MAX: Duration = Duration::from_millis(500);
/// Bounds of the wait for the registrar's answer; between them it is the pause between two tries.
const ANSWER: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// The keeper's task, as the connection holds it: it ends with the last clone of the connection.
#[derive(Debug)]
pub(super) struct Kept {
    task: AbortHandle,
    /// The reason why the token ended without another.
    pub(super) lapsed: watch::Receiver<Option<Refusal>>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The outcome of a renewal.
enum Outcome {
    /// The file holds a newer token.
    Newer,
    /// The registrar's tokens end no later than the one in use: ask again at this time.
    NotYet(UnixMillis),
    /// The token ended without another.
    Lapsed(Refusal),
}

/// The task itself.
struct Keeper {
    bus: Bus,
    fresh: Freshness,
    /// The time that was left when a failure was logged last.
    told: Option<Millis>,
}

/// Keeps the token of `bus` fresh for as long as the returned value lives. `bus` has no keeper yet.
pub(super) fn keep(bus: Bus, fresh: Freshness) -> Arc<Kept> {
    let (sender, lapsed) = watch::channel(None);
    let keeper = Keeper {
        bus,
        fresh,
        told: None,
    };
    let task = tokio::spawn(async move {
        if let Some(refusal) = keeper.keep().await {
            sender.send_replace(Some(refusal));
            // Nobody may miss the reason for want of a sender.
            sender.closed().await;
        }
    });
    Arc::new(Kept {
        task: task.abort_handle(),
        lapsed,
    })
}

impl Keeper {
    /// Renews until the token has ended without another; the reason. None for a token that does not
    /// end.
    async fn keep(mut self) -> Option<Refusal> {
        let mut connected = self.bus.connected.subscribe();
        let mut later = None;
        while let Some(life) = self.fresh.used() {
            let due = later.take().unwrap_or_else(|| life.renew_at());
            let due = sleep(clock::now().until(due).as_duration());
            tokio::select! {
                () = due => {}
                // The client connects by itself after a loss, with what the file holds then. That
                // may be a token that ends earlier than the one before.
                Ok(()) = connected.changed() => {
                    self.fresh.connected();
                    continue;
                }
            }
            match self.renew(life).await {
                Outcome::Newer => {}
                Outcome::NotYet(at) => {
                    later = Some(at);
                    continue;
                }
                Outcome::Lapsed(refusal) => return Some(refusal),
            }
            self.told = None;
            self.reconnect(life).await;
            self.fresh.connected();
        }
        None
    }

    /// Tries until the file holds a newer token, or the registrar has none yet, or the token has
    /// ended.
    async fn renew(&mut self, life: Life) -> Outcome {
        let mut reason = None;
        loop {
            if self.fresh.is_outdated() {
                return Outcome::Newer;
            }
            let now = clock::now();
            if now >= life.ends {
                return Outcome::Lapsed(self.lapsed(life, reason));
            }
            match self.ask(life).await {
                Ok(None) => return Outcome::Newer,
                Ok(Some(later)) => return Outcome::NotYet(later),
                Err(refusal) => {
                    self.warn(life, &refusal);
                    reason = Some(refusal);
                }
            }
            let left = clock::now().until(life.ends).as_duration();
            sleep(life.pause().min(left)).await;
        }
    }

    /// Asks the registrar once, and puts the new token into the file. Gives the time at which to
    /// ask again if the token in use ends later than the new one.
    async fn ask(&self, life: Life) -> Result<Option<UnixMillis>, Refusal> {
        let source = self.fresh.source();
        let coded = |error: &dyn std::fmt::Display, code| Refusal::new(code, error.to_string());
        let old = source.read().map_err(|error| coded(&error, error.code()))?;
        let subject = renewal_subject(old.token().claims.run().as_ref(), source.public());
        let question = RenewalRequest {
            v: V,
            ends: life.ends,
            successor: None,
        };
        let wait = life.pause().clamp(ANSWER.0, ANSWER.1);
        let answer = self.bus.request(&subject, &question, wait).await;
        let RenewalReply {
            token,
            ends,
            certificate,
            ..
        } = answer.map_err(super::BusError::into_refusal)?;
        if let Some(later) = life.not_yet(clock::now(), ends) {
            return Ok(Some(later));
        }
        let new = old.renewed(token);
        let new: Credentials = new.map_err(|error| coded(&error, error.code()))?;
        // First, so that the new token never lies beside a certificate that ends before it.
        if let Some(certificate) = &certificate {
            let certified = source.certify(certificate);
            certified.map_err(|error| coded(&error, error.code()))?;
        }
        let replaced = source.replace(&new);
        replaced.map_err(|error| coded(&error, error.code()))?;
        let name = &new.token().name;
        let ends = new.token().expires.map(|at| Time(at).to_string());
        let certified = certificate.is_some();
        tracing::info!(name, ends, certified, "the token is renewed");
        Ok(None)
    }

    /// Connects anew with what the file holds now. Messages that were published before are sent
    /// before, and those that are published meanwhile are sent afterwards.
    async fn reconnect(&self, life: Life) {
        let bus = &self.bus;
        let _requests = timeout(QUIET_MAX, bus.requests.write()).await;
        let _publishes = timeout(QUIET_MAX, bus.publishes.write()).await;
        let mut connected = bus.connected.subscribe();
        let _before = *connected.borrow_and_update();
        bus.planned
            .store(true, std::sync::atomic::Ordering::Relaxed);
        let again = async {
            // Without a connection there is nothing to flush, and the client connects by itself.
            let _sent = timeout(QUIET_MAX, bus.client.flush()).await;
            if bus.client.force_reconnect().await.is_ok() {
                let _connected = connected.changed().await;
            }
        };
        let patience = ROUND_TRIP_MAX.min(clock::now().until(life.ends).as_duration());
        if timeout(patience, again).await.is_err() {
            tracing::debug!("the connection with the new token takes its time");
        }
    }

    /// Logs a failure: the first, and then one whenever half of the time has passed.
    fn warn(&mut self, life: Life, refusal: &Refusal) {
        let left = clock::now().until(life.ends);
        if self.told.is_some_and(|told| left.get() * 2 > told.get()) {
            return;
        }
        self.told = Some(left);
        let file = self.fresh.source().path().display();
        let left = humantime::format_duration(Duration::from_secs(left.get() / 1000));
        let code = Code::RenewalDelayed;
        tracing::warn!(%code, %left, reason = %refusal, "the token in {file} could not be renewed, and ends at {}; asked again", Time(life.ends));
    }

    fn lapsed(&self, life: Life, reason: Option<Refusal>) -> Refusal {
        let file = self.fresh.source().path().display();
        let why = reason.map_or_else(String::new, |reason| format!(": {reason}"));
        let ends: UnixMillis = life.ends;
        Refusal::new(
            Code::CredentialLapsed,
            format!("the token in {file} ended at {}{why}", Time(ends)),
        )
    }
}
