//! Looks at what the embedded store refused. The store has no connection to the bus, so it keeps a
//! list, and gives it to the audit service's own key alone. A store of others has none. A time in
//! which no list was read is told as what was not heard.

use std::time::Duration;

use audit_core::sentry::StoreLooks;
use objects::LogBucket;
use runtime::{Silence, clock};
use schemas::security::{Refuser, STORE_REFUSALS, StoreRefusals};
use schemas::{Code, UnixMillis};
use tokio::time::{sleep, timeout};

use crate::hearing::Outlet;

/// Time between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// The same at a store that keeps no list: another may take its place.
const ABSENT_EVERY: Duration = Duration::from_secs(3600);
/// Longest wait of the service's start for the first look.
const FIRST_MAX: Duration = Duration::from_secs(5);
/// Longest list: each refusal has less than half a KiB.
const LIST_BYTES_MAX: usize = 512 << 10;

/// What is heard by looking, for people.
pub(crate) const STORE: &str = "refusals by the store";

/// The looks at one store.
pub(crate) struct Look {
    bucket: LogBucket,
    pause: Duration,
    found: Found,
}

/// What was found so far.
struct Found {
    outlet: Outlet,
    looks: StoreLooks,
    silence: Silence,
    /// The trouble of the last look, so that it is told once.
    told: String,
}

impl Look {
    /// Looks once, or begins a silence. Further looks are made by [`Look::keep`].
    pub(crate) async fn open(bucket: LogBucket, outlet: Outlet, silence: Silence) -> Self {
        let mut found = Found::nothing(outlet, silence);
        let list = timeout(FIRST_MAX, fetched(&bucket)).await;
        let list = list.unwrap_or_else(|_| Err("it did not answer in time".to_owned()));
        let pause = found.take(clock::now(), list);
        Self {
            bucket,
            pause,
            found,
        }
    }

    /// True if the list was read in the last look.
    pub(crate) fn is_read(&self) -> bool {
        self.found.told.is_empty()
    }

    /// Looks for ever, with pauses.
    pub(crate) async fn keep(mut self) {
        loop {
            sleep(self.pause).await;
            let list = fetched(&self.bucket).await;
            self.pause = self.found.take(clock::now(), list);
        }
    }
}

impl Found {
    fn nothing(outlet: Outlet, silence: Silence) -> Self {
        Self {
            outlet,
            looks: StoreLooks::default(),
            silence,
            told: String::new(),
        }
    }

    /// Takes what a look brought: a list, none, or the reason why not. Returns the pause before the
    /// next look.
    fn take(&mut self, now: UnixMillis, list: Result<Option<StoreRefusals>, String>) -> Duration {
        let (pause, trouble) = match list {
            Ok(Some(mut list)) => {
                if let Some(posture) = list.posture.take() {
                    self.outlet.state(Refuser::Store, posture);
                }
                let (sightings, more) = self.looks.take(list);
                self.outlet.miss(more);
                for (sighting, times) in sightings {
                    self.outlet.put(sighting, times);
                }
                (LOOK_EVERY, String::new())
            }
            Ok(None) => (ABSENT_EVERY, "it keeps no list".to_owned()),
            Err(reason) => (LOOK_EVERY, reason),
        };
        match trouble.is_empty() {
            true => self.silence.end(now),
            false => self.silence.begin(now),
        }
        if trouble != self.told && !trouble.is_empty() {
            let code = Code::StoreRefusalsUnread;
            tracing::warn!(%code, next = code.next_step(), "{}: {trouble}", code.title());
        }
        self.told = trouble;
        pause
    }
}

/// The store's list; none if it keeps none.
async fn fetched(bucket: &LogBucket) -> Result<Option<StoreRefusals>, String> {
    let file = bucket.get(STORE_REFUSALS).await;
    let Some(file) = file.map_err(|error| error.to_string())? else {
        return Ok(None);
    };
    if file.bytes.len() > LIST_BYTES_MAX {
        return Err(format!("the list has {} bytes", file.bytes.len()));
    }
    let list = serde_json::from_slice(&file.bytes);
    list.map(Some).map_err(|error| format!("the list: {error}"))
}

#[cfg(test)]
mod tests {
    use objects::{Endpoint, TransferLimits, Trust};
    use schemas::V;

    use super::*;
    use crate::hearing::Ear;

    fn list() -> StoreRefusals {
        StoreRefusals {
            v: V,
            process: 1,
            refusals: Vec::new(),
            more: 0,
            posture: None,
        }
    }

    #[test]
    fn tl_29_a_time_in_which_the_stores_list_was_not_read_is_told() {
        let (silence, at) = (Silence::default(), UnixMillis);
        let mut ear = Ear::of(STORE, silence.clone());
        let mut found = Found::nothing(Outlet::new(8).0, silence);
        assert_eq!(found.take(at(1), Ok(Some(list()))), LOOK_EVERY);
        assert_eq!(ear.gap(), None, "it is read");
        assert_eq!(found.take(at(2), Err("away".to_owned())), LOOK_EVERY);
        assert_eq!(found.take(at(3), Ok(None)), ABSENT_EVERY);
        assert_eq!(ear.gap(), None, "it is not over");
        found.take(at(4), Ok(Some(list())));
        let gap = ear.gap().expect("it is over");
        assert_eq!((ear.name(), gap.from, gap.until), (STORE, at(2), at(4)));
        // A store that keeps none until the end.
        found.take(at(5), Ok(None));
        assert_eq!(ear.last_gap().map(|gap| gap.from), Some(at(5)));
    }

    #[tokio::test]
    async fn tl_29_a_store_that_is_away_at_the_start_is_not_heard_from_then_on() {
        let endpoint = Endpoint::new("http://127.0.0.1:1", "us-east-1", Trust::PlainLoopback);
        let key = identity::AccessKey::generate();
        let (limits, patience) = (TransferLimits::default(), Duration::from_millis(50));
        let bucket = LogBucket::new(&endpoint.unwrap(), &key, limits, patience).unwrap();
        let silence = Silence::default();
        let ear = Ear::of(STORE, silence.clone());
        let look = Look::open(bucket, Outlet::new(8).0, silence).await;
        assert!(!look.is_read());
        assert_eq!(ear.last_gap().map(|gap| gap.times), Some(1));
    }
}
