//! The bytes that one presigned URL may serve. S3 lets the holder of a URL read its object as often
//! as the URL lasts. Here a URL serves as many bytes as its object has, in one request or in
//! several: a download that broke goes on, ranges in parallel add up, and bytes that were not handed
//! to the connection are given back. Then the URL counts as expired. So a URL that was found in a
//! log is worth nothing once its holder has read the object, and a client whose bytes were lost on
//! the way asks for another URL, which the process that grants URLs sees.
//!
//! Each URL that the coordinator grants has a parameter of its own under the signature
//! ([`objects::presign::GRANT`]), since two URLs that were signed in the same second would be one
//! otherwise. What was served is in memory: after a restart of the store a URL that has not ended
//! serves its object once more.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use s3s::{S3Error, s3_error};
use schemas::{Digest, UnixMillis};
use tokio::time::Instant;

use crate::gate::query_value;

/// URLs that are known at once: some 20 MiB. Each was signed with a key, for a minute or so.
const URLS_MAX: usize = 1 << 17;
/// URLs at which those that have ended are forgotten; from then on at twice as many as are left.
const URLS_FEW: usize = 1 << 10;
/// Time for which a URL is remembered after its end, in case the clock is set back.
const REMEMBERED: Duration = Duration::from_secs(60);

/// What each URL may still serve. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Budgets(Arc<Mutex<Table>>);

#[derive(Debug)]
struct Table {
    urls: HashMap<Digest, Budget>,
    sweep_at: usize,
}

#[derive(Clone, Copy, Debug)]
struct Budget {
    left: u64,
    until: Instant,
}

/// A presigned URL whose bytes are counted. It travels with its request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CountedUrl {
    /// The hash of its signature.
    name: Digest,
    /// It is refused after this time anyway.
    until: Instant,
}

/// Bytes that an answer was promised; those that are not sent are given back.
#[derive(Debug)]
pub(crate) struct Charge {
    budgets: Budgets,
    url: Digest,
    unsent: u64,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            urls: HashMap::new(),
            sweep_at: URLS_FEW,
        }
    }
}

impl CountedUrl {
    /// The URL with this query. Its signature and its date were verified before.
    ///
    /// # Errors
    /// The signature is not written as every signer writes it. In another spelling the same
    /// signature would be another URL.
    pub(crate) fn of(query: &str, now: UnixMillis) -> Result<Self, S3Error> {
        let signature = query_value(query, "X-Amz-Signature").unwrap_or_default();
        let plain = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if signature.len() != 64 || !signature.bytes().all(plain) {
            return Err(s3_error!(
                SignatureDoesNotMatch,
                "a signature in a url is written as 64 small hexadecimal digits"
            ));
        }
        let ends = ends(query).ok_or_else(|| {
            s3_error!(
                AuthorizationQueryParametersError,
                "X-Amz-Date and X-Amz-Expires are written plainly"
            )
        })?;
        Ok(Self {
            name: Digest::of(signature.as_bytes()),
            until: Instant::now() + now.until(ends).as_duration() + REMEMBERED,
        })
    }
}

/// The end of a presigned URL.
fn ends(query: &str) -> Option<UnixMillis> {
    let date = query_value(query, "X-Amz-Date")?;
    let date = DateTime::strptime("%Y%m%dT%H%M%SZ", date).ok()?;
    let date = date.to_zoned(TimeZone::UTC).ok()?.timestamp();
    let life: u64 = query_value(query, "X-Amz-Expires")?.parse().ok()?;
    let seconds = u64::try_from(date.as_second()).ok()?.checked_add(life)?;
    Some(UnixMillis(seconds.checked_mul(1000)?))
}

impl Budgets {
    /// Charges `wanted` bytes of an object of `bytes` to a URL.
    ///
    /// # Errors
    /// The URL has served its object, or too many URLs are in use.
    pub(crate) fn charge(
        &self,
        url: CountedUrl,
        bytes: u64,
        wanted: u64,
    ) -> Result<Charge, S3Error> {
        let mut table = self.table();
        if !table.has_room_for(url) {
            return Err(s3_error!(SlowDown, "too many urls are in use"));
        }
        let budget = table.urls.entry(url.name).or_insert(Budget {
            left: bytes,
            until: url.until,
        });
        budget.left = budget.left.checked_sub(wanted).ok_or_else(|| {
            s3_error!(
                AccessDenied,
                "the url has expired: its object was read with it; ask for another"
            )
        })?;
        Ok(Charge {
            budgets: self.clone(),
            url: url.name,
            unsent: wanted,
        })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// True if the URL is known, or one more may be. Forgets those that have ended.
    fn has_room_for(&mut self, url: CountedUrl) -> bool {
        if self.urls.contains_key(&url.name) {
            return true;
        }
        if self.urls.len() >= self.sweep_at.min(URLS_MAX) {
            let now = Instant::now();
            self.urls.retain(|_, budget| budget.until > now);
            self.sweep_at = (2 * self.urls.len()).max(URLS_FEW);
        }
        self.urls.len() < URLS_MAX
    }
}

impl Charge {
    /// Some of the bytes were handed to the connection.
    pub(crate) fn sent(&mut self, bytes: u64) {
        self.unsent = self.unsent.saturating_sub(bytes);
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if let Some(budget) = self.budgets.table().urls.get_mut(&self.url) {
            budget.left = budget.left.saturating_add(self.unsent);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: u64 = 100;
    const LIFE: Duration = Duration::from_secs(60);
    const SPENT: &str = "AccessDenied";

    fn url(name: u64) -> CountedUrl {
        CountedUrl {
            name: Digest::of(&name.to_le_bytes()),
            until: Instant::now() + LIFE,
        }
    }

    fn read(budgets: &Budgets, name: u64, wanted: u64) -> Result<(), String> {
        let charge = budgets.charge(url(name), BYTES, wanted);
        let sent = charge.map(|mut charge| charge.sent(wanted));
        sent.map_err(|error| error.code().as_str().to_owned())
    }

    #[tokio::test]
    async fn tl_27_a_url_serves_as_many_bytes_as_its_object_has() {
        let budgets = Budgets::default();
        assert_eq!(read(&budgets, 1, BYTES), Ok(()));
        assert_eq!(read(&budgets, 1, 1), Err(SPENT.to_owned()));
        assert_eq!(read(&budgets, 2, 40), Ok(()), "another URL has its own");
        assert_eq!(read(&budgets, 2, 60), Ok(()));
        assert_eq!(read(&budgets, 2, 1), Err(SPENT.to_owned()));
        assert_eq!(read(&budgets, 3, BYTES + 1), Err(SPENT.to_owned()));
        assert_eq!(read(&budgets, 3, BYTES), Ok(()), "what is refused is free");
    }

    #[tokio::test]
    async fn what_was_not_sent_is_given_back_and_what_is_under_way_is_not() {
        let budgets = Budgets::default();
        let mut broken = budgets.charge(url(1), BYTES, BYTES).unwrap();
        broken.sent(30);
        assert_eq!(read(&budgets, 1, 70), Err(SPENT.to_owned()));
        drop(broken);
        assert_eq!(read(&budgets, 1, 71), Err(SPENT.to_owned()));
        assert_eq!(read(&budgets, 1, 70), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn urls_that_have_ended_are_forgotten_and_too_many_are_not_served() {
        let budgets = Budgets::default();
        let first = url(0);
        for name in 0..URLS_MAX as u64 {
            assert_eq!(read(&budgets, name, BYTES), Ok(()));
        }
        let more = URLS_MAX as u64;
        assert_eq!(read(&budgets, more, 1), Err("SlowDown".to_owned()));
        assert_eq!(read(&budgets, 0, 1), Err(SPENT.to_owned()), "it is known");
        tokio::time::advance(LIFE).await;
        assert_eq!(read(&budgets, more, 1), Ok(()));
        assert_eq!(budgets.table().urls.len(), 1);
        assert_eq!(budgets.table().sweep_at, URLS_FEW);
        drop(budgets.charge(first, BYTES, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_url_is_remembered_until_after_its_end() {
        let query = |signature: &str, date: &str, expires: &str| {
            format!("X-Amz-Date={date}&X-Amz-Expires={expires}&x-w=U&X-Amz-Signature={signature}")
        };
        let (signature, date) = ("0a".repeat(32), "20231114T221320Z");
        // 1_700_000_000 s.
        let now = UnixMillis(1_700_000_010_000);
        let known = CountedUrl::of(&query(&signature, date, "60"), now).unwrap();
        let left = Duration::from_secs(50);
        assert_eq!(known.until, Instant::now() + left + REMEMBERED);
        let again = CountedUrl::of(&query(&signature, date, "60"), now).unwrap();
        assert_eq!(known.name, again.name);
        let code = |query: &str| {
            let url = CountedUrl::of(query, now);
            url.map(|_| ()).map_err(|error| error.code().clone())
        };
        for other in ["0A".repeat(32), "%30a".repeat(16), "0a".repeat(31)] {
            let found = code(&query(&other, date, "60"));
            assert_eq!(
                found.unwrap_err().as_str(),
                "SignatureDoesNotMatch",
                "{other}"
            );
        }
        for (date, expires) in [("2023-11-14", "60"), (date, "a minute"), (date, "")] {
            let found = code(&query(&signature, date, expires));
            let expected = "AuthorizationQueryParametersError";
            assert_eq!(found.unwrap_err().as_str(), expected, "{date} {expires}");
        }
    }
}
