//! Looks at what the embedded store refused. The store has no connection to the bus, so it keeps a
//! list, and gives it to the audit service's own key alone. A store of others has none.

use std::time::Duration;

use audit_core::sentry::StoreLooks;
use objects::LogBucket;
use schemas::Code;
use schemas::security::{STORE_REFUSALS, StoreRefusals};
use tokio::time::sleep;

use crate::hearing::Outlet;

/// Time between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// The same at a store that keeps no list: another may take its place.
const ABSENT_EVERY: Duration = Duration::from_secs(3600);
/// Longest list: each refusal has less than half a KiB.
const LIST_BYTES_MAX: usize = 512 << 10;

/// Looks for ever, with pauses.
pub(crate) async fn look(bucket: LogBucket, outlet: Outlet) {
    let mut looks = StoreLooks::default();
    let mut told = String::new();
    loop {
        let (pause, trouble) = match fetched(&bucket).await {
            Ok(Some(list)) => {
                let (sightings, more) = looks.take(list);
                outlet.miss(more);
                for (sighting, times) in sightings {
                    outlet.put(sighting, times);
                }
                (LOOK_EVERY, None)
            }
            Ok(None) => (ABSENT_EVERY, Some("it keeps no list".to_owned())),
            Err(reason) => (LOOK_EVERY, Some(reason)),
        };
        let trouble = trouble.unwrap_or_default();
        if trouble != told && !trouble.is_empty() {
            let code = Code::StoreRefusalsUnread;
            tracing::warn!(%code, next = code.next_step(), "{}: {trouble}", code.title());
        }
        told = trouble;
        sleep(pause).await;
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
