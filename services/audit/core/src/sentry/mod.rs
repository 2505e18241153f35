//! The sentry: sightings of refused and ended connections, denied permissions, refused requests and
//! changed streams become security events. The first of a kind is one at once; further ones of the
//! same sender are counted, and told together when a while has passed. However many come, from
//! however many senders, memory and number of events are bounded, and what was left out is counted.

mod line;
mod postures;
mod refusals;
mod report;
mod store;

use std::collections::BTreeMap;

use schemas::member::Posture;
use schemas::security::{Refuser, SEEN_BYTES_MAX, SecurityEvent, Seen};
use schemas::{AccountId, Millis, PublicKey, UnixMillis};

use self::postures::Postures;
pub use line::{LINE_BYTES_MAX, Lines, of_line};
pub use postures::STATEMENTS_EVERY;
pub use refusals::{Reported, of_refusals, of_refused};
pub use report::of_report;
pub use store::StoreLooks;

/// Most different refusals or changes of one happening that are remembered at a time. One has half
/// a KiB.
pub const SIGHTINGS_MAX: usize = 1024;
/// Most clients that come or go, remembered at a time.
pub const SESSIONS_MAX: usize = 16 * 1024;
/// Most different ones of one sender. A sender that tries one subject after another is told once
/// for each of these, and then with all further ones together.
pub const SIGHTINGS_OF_SENDER_MAX: usize = 16;
/// Time between two events about the same refusal.
pub const REFUSALS_EVERY: Millis = Millis::from_secs(60);
/// The same of a client that connects or leaves for the same reason: each renewal of a token is a
/// new connection, and says nothing new.
pub const SESSIONS_EVERY: Millis = Millis::from_secs(24 * 3600);
/// Events in quick succession, of each happening.
pub const SECURITY_BURST: u64 = 256;
/// Time for one more event of a happening, in the long run. Nine happenings have a budget each, so
/// this is what lets the stream last (`tl_29_a_flood_of_everything_leaves_days`).
pub const SECURITY_EVERY: Millis = Millis::from_secs(20);
/// The reason of a sighting that stands for several different ones.
const OTHERS: &str = "further ones of this sender";

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Happening {
    /// A connection was refused.
    AuthenticationFailed,
    /// A message or a subscription was refused.
    PermissionDenied,
    /// A stream or consumer was changed, or somebody tried.
    StreamChanged,
    /// A service refused a request.
    RequestRefused(Refuser),
    /// A client connected.
    ClientConnected,
    /// A connection ended.
    ClientDisconnected,
}

/// Something that was seen once. All but the account says what it is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "fields are those of `schemas::security::Seen`")]
pub struct Sighting {
    pub happening: Happening,
    pub account: Option<AccountId>,
    pub user: Option<PublicKey>,
    pub name: String,
    pub address: String,
    pub subject: String,
    pub reason: String,
}

/// Those that are told one by one only up to a number, and then together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Sender {
    happening: Happening,
    user: Option<PublicKey>,
    address: String,
    sort: String,
}

/// How often something was seen since its last event.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    count: u64,
    first: UnixMillis,
    /// When the next event about it may come.
    due: UnixMillis,
}

/// Events that may still be written now, in thousandths.
#[derive(Clone, Copy, Debug)]
struct Budget {
    left: u64,
    at: UnixMillis,
}

/// Sightings that wait.
#[derive(Debug, Default)]
struct Table {
    waiting: BTreeMap<Sighting, Waiting>,
    /// How many different ones of each sender wait.
    senders: BTreeMap<Sender, usize>,
}

/// The sightings that wait. Each happening has a table and a budget of its own, and clients that
/// come and go have one table together: however many come of one happening, there is room for the
/// others. Of the same happening, enough different senders keep a further one from being told
/// apart.
#[derive(Debug)]
pub struct Sentry {
    refusals: BTreeMap<Happening, Table>,
    sessions: Table,
    budgets: BTreeMap<Happening, Budget>,
    dropped: u64,
    log_bytes: u64,
    dropped_due: UnixMillis,
    postures: Postures,
}

impl Happening {
    const fn is_session(self) -> bool {
        matches!(self, Self::ClientConnected | Self::ClientDisconnected)
    }

    const fn every(self) -> Millis {
        match self.is_session() {
            true => SESSIONS_EVERY,
            false => REFUSALS_EVERY,
        }
    }
}

impl Sighting {
    /// Whose it is, and of which sort. Whose connection was refused may have claimed any key, so
    /// there the address alone counts.
    fn sender(&self) -> Sender {
        let claimed = self.happening == Happening::AuthenticationFailed;
        Sender {
            happening: self.happening,
            user: self.user.clone().filter(|_| !claimed),
            address: self.address.clone(),
            sort: self.sort().to_owned(),
        }
    }

    /// The reason without its particulars.
    fn sort(&self) -> &str {
        self.reason.split(':').next().unwrap_or_default()
    }

    /// The sighting that stands for all further ones of its sender.
    fn others(self) -> Self {
        let claimed = self.happening == Happening::AuthenticationFailed;
        let reason = cut(&format!("{}: {OTHERS}", self.sort()));
        Self {
            account: self.account.filter(|_| !claimed),
            user: self.user.filter(|_| !claimed),
            name: String::new(),
            subject: String::new(),
            reason,
            ..self
        }
    }

    fn event(self, waiting: Waiting) -> SecurityEvent {
        let seen = Seen {
            count: waiting.count,
            first: waiting.first,
            account: self.account,
            user: self.user,
            name: self.name,
            address: self.address,
            subject: self.subject,
            reason: self.reason,
        };
        match self.happening {
            Happening::AuthenticationFailed => SecurityEvent::AuthenticationFailed { seen },
            Happening::PermissionDenied => SecurityEvent::PermissionDenied { seen },
            Happening::StreamChanged => SecurityEvent::StreamChanged { seen },
            Happening::RequestRefused(by) => SecurityEvent::RequestRefused { by, seen },
            Happening::ClientConnected => SecurityEvent::ClientConnected { seen },
            Happening::ClientDisconnected => SecurityEvent::ClientDisconnected { seen },
        }
    }
}

impl Budget {
    const fn full(at: UnixMillis) -> Self {
        Self {
            left: SECURITY_BURST * SECURITY_EVERY.get(),
            at,
        }
    }

    fn take(&mut self, now: UnixMillis) -> bool {
        // A clock that goes back adds nothing.
        let passed = self.at.until(now).get();
        self.left = (self.left.saturating_add(passed)).min(SECURITY_BURST * SECURITY_EVERY.get());
        self.at = now;
        let fits = self.left >= SECURITY_EVERY.get();
        if fits {
            self.left -= SECURITY_EVERY.get();
        }
        fits
    }
}

impl Table {
    /// Takes a sighting of what happened `times` times. Returns false if there is no room for it.
    fn note(&mut self, now: UnixMillis, sighting: Sighting, times: u64, max: usize) -> bool {
        let mut sighting = sighting;
        let sender = sighting.sender();
        let of_sender = self.senders.get(&sender).copied().unwrap_or_default();
        if of_sender >= SIGHTINGS_OF_SENDER_MAX && !self.waiting.contains_key(&sighting) {
            sighting = sighting.others();
        }
        if let Some(waiting) = self.waiting.get_mut(&sighting) {
            if waiting.count == 0 {
                waiting.first = now;
            }
            waiting.count = waiting.count.saturating_add(times);
            return true;
        }
        let fits = self.waiting.len() < max;
        if fits {
            let waiting = Waiting {
                count: times,
                first: now,
                due: now,
            };
            self.waiting.insert(sighting, waiting);
            self.senders.insert(sender, of_sender + 1);
        }
        fits
    }

    /// Forgets those of which nothing more came for a whole while: the next one is told at once
    /// again.
    fn forget(&mut self, now: UnixMillis) {
        let senders = &mut self.senders;
        self.waiting.retain(|sighting, waiting| {
            let stays = waiting.count > 0 || waiting.due > now;
            if !stays {
                let sender = sighting.sender();
                if let Some(count) = senders.get_mut(&sender).filter(|count| **count > 1) {
                    *count -= 1;
                } else {
                    senders.remove(&sender);
                }
            }
            stays
        });
    }

    /// Those that are due, as events, as far as the budgets allow. The one that waits longest comes
    /// first, so that no sender keeps the others from being told.
    fn take_if(
        &mut self,
        now: UnixMillis,
        budgets: &mut BTreeMap<Happening, Budget>,
        is_due: impl Fn(UnixMillis) -> bool,
    ) -> Vec<SecurityEvent> {
        let waits =
            |(_, waiting): &(&Sighting, &mut Waiting)| waiting.count > 0 && is_due(waiting.due);
        let mut due: Vec<_> = self.waiting.iter_mut().filter(waits).collect();
        due.sort_by_key(|(_, waiting)| waiting.due);
        let mut events = Vec::new();
        for (sighting, waiting) in due {
            let happening = sighting.happening;
            let budget = budgets.entry(happening).or_insert(Budget::full(now));
            if budget.take(now) {
                events.push(sighting.clone().event(*waiting));
                waiting.count = 0;
                waiting.due = now.after(happening.every());
            }
        }
        events
    }
}

impl Sentry {
    /// A sentry that has seen nothing.
    pub fn new(now: UnixMillis) -> Self {
        Self {
            refusals: BTreeMap::new(),
            sessions: Table::default(),
            budgets: BTreeMap::new(),
            dropped: 0,
            log_bytes: 0,
            dropped_due: now,
            postures: Postures::default(),
        }
    }

    /// Takes what a service says of the layers that it runs with open.
    pub fn note_posture(&mut self, by: Refuser, posture: Posture) {
        self.postures.note(by, posture);
    }

    /// Takes a sighting of what happened once.
    pub fn note(&mut self, now: UnixMillis, sighting: Sighting) {
        self.note_times(now, sighting, 1);
    }

    /// Takes a sighting of what happened `times` times, as a service counted it.
    pub fn note_times(&mut self, now: UnixMillis, sighting: Sighting, times: u64) {
        if times == 0 {
            return;
        }
        let (table, max) = match sighting.happening.is_session() {
            true => (&mut self.sessions, SESSIONS_MAX),
            false => (
                self.refusals.entry(sighting.happening).or_default(),
                SIGHTINGS_MAX,
            ),
        };
        if !table.note(now, sighting, times, max) {
            self.note_dropped(times, 0);
        }
    }

    /// Counts what came faster than it could be taken: sightings, and bytes of the broker's log.
    pub const fn note_dropped(&mut self, sightings: u64, log_bytes: u64) {
        self.dropped = self.dropped.saturating_add(sightings);
        self.log_bytes = self.log_bytes.saturating_add(log_bytes);
    }

    /// The events that are due.
    pub fn take(&mut self, now: UnixMillis) -> Vec<SecurityEvent> {
        for table in self.tables() {
            table.forget(now);
        }
        self.take_if(now, |due| due <= now)
    }

    /// The events of everything that waits, as far as their number allows, and the number of what
    /// is left: the last ones before an end.
    pub fn take_last(&mut self, now: UnixMillis) -> Vec<SecurityEvent> {
        let mut events = self.take_if(now, |_| true);
        let mut left = 0_u64;
        for table in self.tables() {
            for waiting in std::mem::take(table).waiting.into_values() {
                left = left.saturating_add(waiting.count);
            }
        }
        self.note_dropped(left, 0);
        events.extend(self.take_dropped(now));
        events
    }

    fn take_if(
        &mut self,
        now: UnixMillis,
        is_due: impl Fn(UnixMillis) -> bool,
    ) -> Vec<SecurityEvent> {
        let mut events = Vec::new();
        let sessions = std::iter::once(&mut self.sessions);
        for table in self.refusals.values_mut().chain(sessions) {
            events.extend(table.take_if(now, &mut self.budgets, &is_due));
        }
        events.extend(self.postures.take_if(now, &is_due));
        if is_due(self.dropped_due) {
            events.extend(self.take_dropped(now));
        }
        events
    }

    fn tables(&mut self) -> impl Iterator<Item = &mut Table> {
        let sessions = std::iter::once(&mut self.sessions);
        self.refusals.values_mut().chain(sessions)
    }

    fn take_dropped(&mut self, now: UnixMillis) -> Option<SecurityEvent> {
        if self.dropped == 0 && self.log_bytes == 0 {
            return None;
        }
        self.dropped_due = now.after(REFUSALS_EVERY);
        Some(SecurityEvent::SightingsDropped {
            count: std::mem::take(&mut self.dropped),
            log_bytes: std::mem::take(&mut self.log_bytes),
        })
    }
}

/// A text of others, short and on one line.
fn cut(text: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    let mut short = String::new();
    for character in text.chars().map(plain) {
        if short.len() + character.len_utf8() > SEEN_BYTES_MAX {
            break;
        }
        short.push(character);
    }
    short
}

/// A user's public key. Whatever else stands in its place was written by a stranger, or by somebody
/// who mistook one field for another, and may be a secret.
fn user(text: &str) -> Option<PublicKey> {
    text.parse().ok().filter(|_| text.starts_with('U'))
}

#[cfg(test)]
mod tests;
