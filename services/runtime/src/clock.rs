//! The one clock: everything else gets the time as an argument.

use std::time::{SystemTime, UNIX_EPOCH};

use schemas::UnixMillis;

/// This machine's time. A clock before 1970 reads as 0.
pub fn now() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
