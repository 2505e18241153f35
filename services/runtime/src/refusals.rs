//! Refusals for reasons of security, on their way to the audit service's sentry. [`Tally`] is the
//! rule: bounded, no clock, no output. [`Refusals`] is its shell, which a service notes refusals in
//! and which publishes a short report now and then. Nobody waits for it, and no answer depends on
//! it.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use schemas::member::Posture;
use schemas::security::{REFUSALS_MAX, RefusalReport, Refused, Refuser};
use schemas::subject::refusal_subject;
use schemas::{AccountId, Code, Message as _, PublicKey, V};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::bus::{Bus, BusError};

/// Time between two reports.
pub const REPORT_EVERY: Duration = Duration::from_secs(1);
/// Most different refusals that wait for a report. One has half a KiB.
pub const WAITING_MAX: usize = 256;
/// Most of one sender: one that varies what it asks leaves room for the others. When all places are
/// taken, accounts share them evenly, and so do the senders of an account.
pub const WAITING_OF_SENDER_MAX: usize = 16;
/// Pause after the broker has refused a report. It does so until it has the present tokens of the
/// accounts, and each try leaves a line in its log.
pub const DENIED_AGAIN: Duration = Duration::from_secs(3600);
/// Time between two statements of a service's posture. The audit service records the first, and
/// those that differ.
pub const STATE_EVERY: Duration = Duration::from_secs(30);
/// Longest time for the last report before a service ends.
const LAST_MAX: Duration = Duration::from_millis(500);

/// What tells refusals apart.
type Key = (Option<PublicKey>, Option<AccountId>, String, Code);
/// Who is refused.
type Sender = (Option<PublicKey>, Option<AccountId>);

/// Refusals that wait for a report.
#[derive(Debug, Default)]
pub struct Tally {
    waiting: BTreeMap<Key, u64>,
    /// How many different ones of each sender wait.
    senders: BTreeMap<Sender, usize>,
    more: u64,
    /// The one that was reported last: the next report begins behind it, so that each has its turn.
    last: Option<Key>,
}

impl Tally {
    /// Counts a refusal.
    pub fn note(&mut self, refused: Refused) {
        let Refused {
            account,
            user,
            subject,
            code,
            count,
        } = refused;
        let sender = (user, account);
        let of_sender = self.senders.get(&sender).copied().unwrap_or_default();
        let (user, account) = sender.clone();
        let key = (user, account, subject, code);
        if let Some(waiting) = self.waiting.get_mut(&key) {
            *waiting = waiting.saturating_add(count);
        } else if of_sender < WAITING_OF_SENDER_MAX && self.has_room(&sender, of_sender) {
            self.senders.insert(sender, of_sender + 1);
            self.waiting.insert(key, count);
        } else {
            self.more = self.more.saturating_add(count);
        }
    }

    /// True if a further refusal of this sender, of which `of_sender` wait, has a place, or another
    /// one gave its place to it: of the account with the most, the sender with the most. What that
    /// one was is not told apart any more.
    fn has_room(&mut self, sender: &Sender, of_sender: usize) -> bool {
        if self.waiting.len() < WAITING_MAX {
            return true;
        }
        let mut accounts: BTreeMap<&Option<AccountId>, usize> = BTreeMap::new();
        for ((_, account), count) in &self.senders {
            *accounts.entry(account).or_default() += count;
        }
        let own = accounts.get(&sender.1).copied().unwrap_or_default();
        let fullest = accounts.iter().max_by_key(|(_, count)| **count);
        let other = fullest.filter(|(_, count)| **count > own + 1);
        let account = other.map_or(&sender.1, |(account, _)| *account);
        let senders = self.senders.iter().filter(|(one, _)| one.1 == *account);
        let most = senders.max_by_key(|(_, count)| **count);
        let most = most.filter(|(_, count)| *account != sender.1 || **count > of_sender + 1);
        let gives = most.map(|(one, _)| one);
        let key = gives.and_then(|gives| {
            let is_its = |key: &&Key| (&key.0, &key.1) == (&gives.0, &gives.1);
            self.waiting.keys().find(is_its).cloned()
        });
        let Some(gone) = key.and_then(|key| self.remove(key)) else {
            return false;
        };
        self.more = self.more.saturating_add(gone.count);
        true
    }

    /// The next report; none if nothing waits. What does not fit waits for the one after.
    pub fn take(&mut self) -> Option<RefusalReport> {
        if self.waiting.is_empty() && self.more == 0 {
            return None;
        }
        let behind = match &self.last {
            Some(last) => Bound::Excluded(last.clone()),
            None => Bound::Unbounded,
        };
        let after = self.waiting.range((behind, Bound::Unbounded));
        // Those before the last one come around at the end; a report has none twice.
        let around = self.waiting.iter();
        let count = REFUSALS_MAX.min(self.waiting.len());
        let keys: Vec<Key> = after
            .chain(around)
            .take(count)
            .map(|(key, _)| key.clone())
            .collect();
        self.last = keys.last().cloned();
        let refusals = keys
            .into_iter()
            .filter_map(|key| self.remove(key))
            .collect();
        Some(RefusalReport {
            v: V,
            refusals,
            more: std::mem::take(&mut self.more),
            posture: None,
        })
    }

    /// Takes a report back of which it is not known that the broker has it. Its refusals are not
    /// told apart any more; if it was heard after all, they are counted twice.
    pub fn unreported(&mut self, report: &RefusalReport) {
        let counts = report.refusals.iter().map(|one| one.count);
        let all = counts.fold(report.more, u64::saturating_add);
        self.more = self.more.saturating_add(all);
    }

    fn remove(&mut self, key: Key) -> Option<Refused> {
        let count = self.waiting.remove(&key)?;
        let (user, account, subject, code) = key;
        let sender = (user, account);
        match self.senders.get_mut(&sender) {
            Some(of_sender) if *of_sender > 1 => *of_sender -= 1,
            _ => drop(self.senders.remove(&sender)),
        }
        let (user, account) = sender;
        Some(Refused {
            account,
            user,
            subject,
            code,
            count,
        })
    }
}

/// Where a service notes what it refused. Clones share it.
#[derive(Clone, Debug)]
pub struct Refusals {
    refuser: Refuser,
    tally: Arc<Mutex<Tally>>,
    /// What it states of its own protection, if that is in no other record.
    posture: Option<Posture>,
}

impl Refusals {
    /// Those of a service, of which there are none yet.
    pub fn of(refuser: Refuser) -> Self {
        Self {
            refuser,
            tally: Arc::default(),
            posture: None,
        }
    }

    /// The same, with a statement of the layers that the service runs with open. It is repeated:
    /// the audit service may not have heard it.
    pub fn stating(self, posture: Posture) -> Self {
        Self {
            posture: Some(posture.shortened()),
            ..self
        }
    }

    /// Notes the refusal of a request that was received under `subject`, if its code is about
    /// security.
    pub fn note(&self, subject: &str, code: Code) {
        if let Some(refused) = Refused::of(subject, code) {
            self.tally().note(refused);
        }
    }

    /// Publishes reports, at most one each [`REPORT_EVERY`], for as long as it is polled.
    pub async fn report(self, bus: Bus) {
        let mut reports = interval(REPORT_EVERY);
        reports.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut again = Instant::now();
        let mut stated = None;
        loop {
            reports.tick().await;
            if Instant::now() < again {
                continue;
            }
            // What is noted without a connection is counted until there is one.
            if !bus.is_connected() {
                continue;
            }
            let is_due = |at: Instant| at.elapsed() >= STATE_EVERY;
            let states = self.posture.is_some() && stated.is_none_or(is_due);
            // A statement is a report of its own, so that both fit.
            let report = match states {
                true => {
                    stated = Some(Instant::now());
                    Some(self.statement())
                }
                false => self.take(),
            };
            let Some(report) = report else { continue };
            if let Err(error) = self.publish(&bus, std::slice::from_ref(&report)).await {
                again = Instant::now() + self.failed(&report, &error);
            }
        }
    }

    fn statement(&self) -> RefusalReport {
        RefusalReport {
            posture: self.posture.clone(),
            ..RefusalReport::default()
        }
    }

    /// Counts what was not reported, says so, and returns the pause before the next report.
    fn failed(&self, report: &RefusalReport, error: &BusError) -> Duration {
        self.tally().unreported(report);
        let code = Code::RefusalsUnreported;
        tracing::warn!(%code, next = code.next_step(), "{}: {error}", code.title());
        match error {
            BusError::Denied { .. } => DENIED_AGAIN,
            _ => Duration::ZERO,
        }
    }

    /// Publishes what waits, before the service ends: all of it, and one wait for the broker.
    pub async fn last(&self, bus: &Bus) {
        let reports: Vec<RefusalReport> = std::iter::from_fn(|| self.take()).collect();
        if reports.is_empty() {
            return;
        }
        // The audit service is not told of what a lost connection does not take; the log is.
        let reason = match timeout(LAST_MAX, self.publish(bus, &reports)).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the broker did not answer in time".to_owned(),
        };
        let code = Code::RefusalsUnreported;
        tracing::warn!(%code, next = code.next_step(), "{}: {reason}", code.title());
    }

    /// Publishes reports and waits until the broker has read them. Otherwise a refusal of the
    /// broker would go unnoticed, since it comes apart from the message.
    async fn publish(&self, bus: &Bus, reports: &[RefusalReport]) -> Result<(), BusError> {
        let subject = refusal_subject(self.refuser);
        let payloads = reports.iter().map(|report| report.encode().into());
        bus.publish_all_checked(&subject, payloads.collect()).await
    }

    fn take(&self) -> Option<RefusalReport> {
        self.tally().take()
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(user: usize, subject: &str) -> Refused {
        let letters: String = (0..3)
            .map(|at| char::from(b'A' + u8::try_from(user >> (4 * at) & 15).expect("four bits")))
            .collect();
        Refused {
            account: None,
            user: format!("U{}{letters}", "A".repeat(52)).parse().ok(),
            subject: subject.to_owned(),
            code: Code::IdentityMismatch,
            count: 1,
        }
    }

    fn counts(report: &RefusalReport) -> Vec<(&str, u64)> {
        let of = |one: &'_ Refused| one.count;
        let refusals = report.refusals.iter();
        refusals
            .map(|one| (one.subject.as_str(), of(one)))
            .collect()
    }

    #[test]
    fn tl_29_the_same_refusals_are_one_with_their_number() {
        let mut tally = Tally::default();
        assert_eq!(tally.take(), None);
        for _ in 0..1000 {
            tally.note(refused(1, "x"));
        }
        let other = Refused {
            code: Code::MessageInvalid,
            ..refused(1, "x")
        };
        tally.note(other);
        let report = tally.take().expect("two wait");
        assert_eq!(counts(&report), [("x", 1), ("x", 1000)]);
        assert_eq!(report.more, 0);
        assert_eq!(tally.take(), None);
        assert!(tally.senders.is_empty() && tally.waiting.is_empty());
    }

    #[test]
    fn tl_29_a_report_is_short_and_each_refusal_has_its_turn() {
        let mut tally = Tally::default();
        tally.note(refused(200, "quiet"));
        // Eight senders, each with as many as may wait, again and again.
        let mut told = 0;
        for _ in 0..5 {
            for user in 0..8 {
                for number in 0..WAITING_OF_SENDER_MAX {
                    tally.note(refused(user, &number.to_string()));
                }
            }
            let report = tally.take().expect("many wait");
            assert_eq!(report.refusals.len(), REFUSALS_MAX);
            let keys: std::collections::BTreeSet<_> = report
                .refusals
                .iter()
                .map(|one| (&one.user, &one.subject))
                .collect();
            assert_eq!(keys.len(), REFUSALS_MAX, "none twice");
            told += usize::from(counts(&report).contains(&("quiet", 1)));
        }
        assert_eq!(told, 1, "after all others had one turn");
    }

    #[test]
    fn tl_29_what_waits_is_bounded_in_all_and_of_one_sender() {
        let mut tally = Tally::default();
        for number in 0..WAITING_OF_SENDER_MAX + 7 {
            tally.note(refused(1, &number.to_string()));
        }
        assert_eq!(
            (tally.waiting.len(), tally.more),
            (WAITING_OF_SENDER_MAX, 7)
        );
        tally.note(refused(2, "x"));
        assert_eq!(tally.more, 7, "another sender has room");
        for user in 3..1000 {
            tally.note(refused(user, "x"));
        }
        assert_eq!(tally.waiting.len(), WAITING_MAX);
        let mut all = tally.more;
        let mut reports = 0;
        while let Some(report) = tally.take() {
            assert_eq!(report.more, if reports == 0 { all } else { 0 });
            reports += 1;
        }
        all += WAITING_MAX as u64;
        assert_eq!(all, WAITING_OF_SENDER_MAX as u64 + 7 + 1 + 997);
        assert_eq!(reports, WAITING_MAX / REFUSALS_MAX);
        assert!(tally.senders.is_empty());
    }

    #[test]
    fn tl_29_a_report_that_nobody_heard_is_counted() {
        let mut tally = Tally::default();
        tally.note(refused(1, "x"));
        tally.note(refused(1, "x"));
        let report = tally.take().expect("one waits");
        tally.unreported(&report);
        let again = tally.take().expect("their number waits");
        assert_eq!((again.refusals.len(), again.more), (0, 2));
    }

    /// A connection that was lost while the broker should have read a report.
    #[test]
    fn tl_29_a_report_of_whatever_failure_is_counted_and_only_a_denial_pauses() {
        let denied = BusError::Denied {
            direction: crate::bus::Direction::Publish,
            subject: String::new(),
        };
        let lost = BusError::Lost {
            subject: String::new(),
        };
        for (error, pause) in [(denied, DENIED_AGAIN), (lost, Duration::ZERO)] {
            let refusals = Refusals::of(Refuser::Coordinator);
            refusals.note("diloco.control.x.view", Code::IdentityMismatch);
            let report = refusals.take().expect("one waits");
            assert_eq!(refusals.take(), None);
            assert_eq!(refusals.failed(&report, &error), pause, "{error}");
            let again = refusals.take().expect("its number waits");
            assert_eq!((again.refusals.len(), again.more), (0, 1), "{error}");
        }
    }

    fn of_account(letter: char, user: usize, subject: &str) -> Refused {
        Refused {
            account: format!("A{}", letter.to_string().repeat(55)).parse().ok(),
            ..refused(user, subject)
        }
    }

    /// All senders of the reports that wait, with the number of their refusals.
    fn told(tally: &mut Tally) -> BTreeMap<Sender, usize> {
        let mut senders = BTreeMap::new();
        let reports = std::iter::from_fn(|| tally.take());
        for one in reports.flat_map(|report| report.refusals) {
            *senders.entry((one.user, one.account)).or_default() += 1;
        }
        senders
    }

    #[test]
    fn tl_29_full_senders_leave_a_place_to_a_late_one() {
        let mut tally = Tally::default();
        let full = WAITING_MAX / WAITING_OF_SENDER_MAX;
        for user in 0..full {
            for number in 0..WAITING_OF_SENDER_MAX {
                tally.note(of_account('B', user, &number.to_string()));
            }
        }
        assert_eq!((tally.waiting.len(), tally.more), (WAITING_MAX, 0));
        let late = of_account('B', 999, "late");
        let other = of_account('C', 998, "late");
        tally.note(late.clone());
        tally.note(other.clone());
        assert_eq!((tally.waiting.len(), tally.more), (WAITING_MAX, 2));
        let told = told(&mut tally);
        assert_eq!(told.get(&(late.user, late.account)), Some(&1));
        assert_eq!(told.get(&(other.user, other.account)), Some(&1));
        assert!(tally.senders.is_empty());
    }

    /// More workers of one tenant than there are places.
    #[test]
    fn tl_29_no_number_of_senders_of_one_account_takes_the_places_of_another() {
        let mut tally = Tally::default();
        for user in 0..2 * WAITING_MAX {
            tally.note(of_account('B', user, "x"));
        }
        assert_eq!(tally.more, WAITING_MAX as u64, "none gives its only place");
        for number in 0..WAITING_OF_SENDER_MAX {
            tally.note(of_account('C', 0, &number.to_string()));
        }
        tally.note(of_account('B', 1000, "x"));
        let mine = of_account('C', 0, "");
        let told = told(&mut tally);
        let of_mine = told.get(&(mine.user, mine.account));
        assert_eq!(of_mine, Some(&WAITING_OF_SENDER_MAX));
        assert_eq!(told.len(), WAITING_MAX - WAITING_OF_SENDER_MAX + 1);
    }

    /// What is counted by others must not overflow.
    #[test]
    fn counts_stop_at_their_end() {
        let mut tally = Tally::default();
        for _ in 0..2 {
            tally.note(Refused {
                count: u64::MAX,
                ..refused(1, "x")
            });
        }
        let report = tally.take().expect("one waits");
        assert_eq!(counts(&report), [("x", u64::MAX)]);
    }

    #[test]
    fn tl_29_what_is_ordinary_is_not_noted() {
        let refusals = Refusals::of(Refuser::Coordinator);
        refusals.note("diloco.control.x.view", Code::Draining);
        refusals.note("diloco.control.x.view", Code::RunUnknown);
        assert_eq!(refusals.take(), None);
        refusals.note("diloco.control.x.view", Code::IdentityMismatch);
        assert_eq!(refusals.take().expect("one waits").refusals.len(), 1);
    }
}
