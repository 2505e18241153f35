//! The bytes that one presigned URL may serve. S3 lets the holder of a URL read its object as often
//! as the URL lasts. Here a URL serves as many bytes as its object has, in one request or in
//! several: a download that broke goes on, ranges in parallel add up, and bytes that were not
//! handed to the connection are given back. Then the URL counts as expired. So a URL that was found
//! in a log is worth nothing once its holder has read the object, and a client whose bytes were
//! lost on the way asks for another URL, which the process that grants URLs sees.
//!
//! Each URL that the coordinator grants has a parameter of its own under the signature
//! ([`objects::presign::GRANT`]), since two URLs that were signed in the same second would be one
//! otherwise. The parameter also tells the holders of URLs apart, of which none has more than a
//! part of the table: a holder that asks for URLs without end stops its own downloads and nobody
//! else's. What was served is in memory: after a restart of the store a URL that has not ended
//! serves its object once more.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use objects::key::HolderTag;
use objects::presign::GRANT;
use s3s::{S3Error, s3_error};
use schemas::{Digest, UnixMillis};
use tokio::time::Instant;

use crate::gate::query_value;

/// URLs that are known at once: some 20 MiB. Each was signed with a key, for a minute or so.
const URLS_MAX: usize = 1 << 17;
/// URLs of one holder that are known at once: more than it has chunks to read in two minutes.
const URLS_OF_ONE_MAX: usize = URLS_MAX / 16;
/// Least time between two searches for URLs that have ended.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
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
    /// The number of URLs of each holder.
    holders: HashMap<u64, usize>,
    sweep_at: usize,
    swept: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Budget {
    left: u64,
    until: Instant,
    holder: u64,
}

/// A presigned URL whose bytes are counted. It travels with its request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CountedUrl {
    /// The hash of its signature.
    name: Digest,
    /// It is refused after this time anyway.
    until: Instant,
    /// What stands for its holder in its grant.
    holder: u64,
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
            holders: HashMap::new(),
            sweep_at: URLS_FEW,
            swept: None,
        }
    }
}

impl CountedUrl {
    /// The URL with this query. Its signature and its date were verified before.
    ///
    /// # Errors
    /// The signature is not written as every signer writes it. In another spelling the same
    /// signature would be another URL, and in another spelling of its grant that of another holder.
    pub(crate) fn of(query: &str, now: UnixMillis) -> Result<Self, S3Error> {
        let signature = query_value(query, "X-Amz-Signature").unwrap_or_default();
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
        let grant = query_value(query, GRANT).unwrap_or_default();
        let holder = holder(grant).ok_or_else(|| {
            s3_error!(
                AuthorizationQueryParametersError,
                "a grant is written as small hexadecimal digits"
            )
        })?;
        Ok(Self {
            holder,
            name: Digest::of(signature.as_bytes()),
            until: Instant::now() + now.until(ends).as_duration() + REMEMBERED,
        })
    }
}

/// True for a digit of a signature or a grant as every signer writes it.
fn plain(byte: u8) -> bool {
    byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)
}

/// What stands for the holder in a grant; none for a grant in another spelling. URLs without a
/// holder are all of the same one.
fn holder(grant: &str) -> Option<u64> {
    match HolderTag::of_grant(grant) {
        Some(holder) => Some(holder.get()),
        None => grant.bytes().all(plain).then_some(0),
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
    /// The URL has served its object, or too many URLs are in use, all together or of its holder.
    pub(crate) fn charge(
        &self,
        url: CountedUrl,
        bytes: u64,
        wanted: u64,
    ) -> Result<Charge, S3Error> {
        let mut table = self.table();
        let budget = table.budget(url, bytes);
        let budget = budget.ok_or_else(|| s3_error!(SlowDown, "too many urls are in use"))?;
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
    /// The budget of a URL for an object of `bytes`, if the URL is known or one more may be.
    fn budget(&mut self, url: CountedUrl, bytes: u64) -> Option<&mut Budget> {
        if !self.urls.contains_key(&url.name) {
            if self.is_full_for(url) {
                self.sweep();
            }
            if self.urls.len() >= URLS_MAX || self.of(url.holder) >= URLS_OF_ONE_MAX {
                return None;
            }
            *self.holders.entry(url.holder).or_default() += 1;
        }
        let budget = self.urls.entry(url.name);
        Some(budget.or_insert(Budget {
            left: bytes,
            until: url.until,
            holder: url.holder,
        }))
    }

    /// True when it is time to forget URLs that have ended.
    fn is_full_for(&self, url: CountedUrl) -> bool {
        let lately = |swept: Instant| swept.elapsed() < SWEEP_EVERY;
        let full = self.urls.len() >= self.sweep_at.min(URLS_MAX);
        (full || self.of(url.holder) >= URLS_OF_ONE_MAX) && !self.swept.is_some_and(lately)
    }

    fn of(&self, holder: u64) -> usize {
        self.holders.get(&holder).copied().unwrap_or_default()
    }

    /// Forgets URLs that have ended.
    fn sweep(&mut self) {
        let now = Instant::now();
        self.swept = Some(now);
        self.urls.retain(|_, budget| budget.until > now);
        self.holders.clear();
        for budget in self.urls.values() {
            *self.holders.entry(budget.holder).or_default() += 1;
        }
        self.sweep_at = (2 * self.urls.len()).max(URLS_FEW);
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
            holder: name % 16,
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
    async fn a_holder_of_many_urls_stops_its_own_downloads_and_nobody_elses() {
        let budgets = Budgets::default();
        let of_one = |number: u64| url(16 * number);
        let most = URLS_OF_ONE_MAX as u64;
        let read = |url: CountedUrl| budgets.charge(url, BYTES, BYTES).map(|_| ());
        for number in 0..most {
            read(of_one(number)).unwrap();
        }
        let code = |url| read(url).unwrap_err().code().as_str().to_owned();
        assert_eq!(code(of_one(most)), "SlowDown");
        read(url(1)).expect("another holder's");
        read(of_one(0)).expect("it is known, and nothing of it was sent");
        // When its URLs have ended, it has room again.
        tokio::time::advance(LIFE).await;
        read(of_one(most)).unwrap();
        assert_eq!(budgets.table().urls.len(), 1);
        assert_eq!(budgets.table().holders, HashMap::from([(0, 1)]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_table_is_searched_once_a_second() {
        let budgets = Budgets::default();
        let ending = |name: u64, after: Duration| CountedUrl {
            until: Instant::now() + after,
            ..url(16 * name)
        };
        let read = |url: CountedUrl| budgets.charge(url, BYTES, BYTES).is_ok();
        let most = URLS_OF_ONE_MAX as u64;
        for name in 0..most {
            assert!(read(ending(name, SWEEP_EVERY / 2)));
        }
        tokio::time::advance(SWEEP_EVERY / 4).await;
        assert!(!read(ending(most, LIFE)), "none has ended");
        tokio::time::advance(SWEEP_EVERY / 2).await;
        assert!(
            !read(ending(most, LIFE)),
            "the last search was less than a second ago"
        );
        tokio::time::advance(SWEEP_EVERY / 2).await;
        assert!(read(ending(most, LIFE)));
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
        let holder = |grant: &str| {
            let granted = format!("{}&{GRANT}={grant}", query(&signature, date, "60"));
            let url = CountedUrl::of(&granted, now);
            url.map(|url| url.holder)
                .map_err(|error| error.code().clone())
        };
        let number = "0123456789abcdef";
        let tagged = |tag: &str| holder(&format!("{tag}{number}")).unwrap();
        assert_eq!(tagged("00000000000000ff"), 255);
        assert_eq!(tagged(number), 0x0123_4567_89ab_cdef);
        assert_eq!(known.holder, 0, "without a grant");
        assert_eq!(holder(number), Ok(0), "of an earlier coordinator");
        let other_spellings = ["0".repeat(31) + "A", "%30".to_owned() + &"0".repeat(29)];
        for grant in other_spellings.iter().map(String::as_str) {
            let found = holder(grant).unwrap_err();
            let expected = "AuthorizationQueryParametersError";
            assert_eq!(found.as_str(), expected, "{grant}");
        }
        for (date, expires) in [("2023-11-14", "60"), (date, "a minute"), (date, "")] {
            let found = code(&query(&signature, date, expires));
            let expected = "AuthorizationQueryParametersError";
            assert_eq!(found.unwrap_err().as_str(), expected, "{date} {expires}");
        }
    }
}
