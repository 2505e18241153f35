//! The times at which a token is renewed, and the look whether the credentials file holds a newer
//! one than the connection uses. The file is what all connections of a process share, and what a
//! restarted process begins with; a file that an operator replaces is taken up in the same way.

use std::time::Duration;

use identity::{CredentialSource, Credentials};
use schemas::{Millis, PublicKey, UnixMillis};
use tokio::time::{Instant, sleep_until};

use crate::clock;

/// Longest time before the end at which renewal begins: a registrar or an operator has a day.
const LEAD_MAX: Millis = Millis::from_secs(24 * 3600);
/// The share of the lead over which the processes of a domain spread their first tries, so that
/// those that were issued together do not ask together.
const SPREAD: u64 = 5;
/// Bounds of the pause between two tries; between them it is a twentieth of the token's life.
const PAUSE: (Millis, Millis) = (Millis(200), Millis::from_secs(600));
/// The same for looks into the file, a fortieth of the life: a look reads one small file.
const LOOK: (Millis, Millis) = (Millis(100), Millis::from_secs(30));

/// The period of validity of a token that has an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Life {
    issued: UnixMillis,
    /// Its end, exclusive.
    pub(crate) ends: UnixMillis,
    /// Milliseconds by which this process begins later than another could.
    later: u64,
}

impl Life {
    /// The life of these credentials' token; none if it does not end.
    pub(crate) fn of(credentials: &Credentials) -> Option<Self> {
        let token = credentials.token();
        Some(Self::new(token.issued, token.expires?, &token.subject))
    }

    fn new(issued: UnixMillis, ends: UnixMillis, key: &PublicKey) -> Self {
        let life = Self {
            issued,
            ends,
            later: 0,
        };
        let drawn = key.as_str().bytes().map(u64::from).sum::<u64>() % 64;
        let later = life.lead().get() / SPREAD * drawn / 64;
        Self { later, ..life }
    }

    fn span(self) -> Millis {
        self.issued.until(self.ends)
    }

    fn lead(self) -> Millis {
        Millis(self.span().get() / 2).min(LEAD_MAX)
    }

    /// The time from which on the token is renewed: before half of its life is left.
    pub(crate) fn renew_at(self) -> UnixMillis {
        UnixMillis((self.ends.get() - self.lead().get()) + self.later)
    }

    /// The time at which to ask again for a token, if the one that is offered now ends no later
    /// than this one: when half of the offered life is left. None if it ends later, and for one
    /// that has ended already, which is a fault.
    pub(crate) fn not_yet(self, now: UnixMillis, offered: UnixMillis) -> Option<UnixMillis> {
        let half = Millis(now.until(offered).get() / 2);
        let is_longer = offered <= self.ends && now < offered;
        is_longer.then(|| UnixMillis(self.ends.get() - half.get()))
    }

    /// The pause between two tries.
    pub(crate) fn pause(self) -> Duration {
        Millis(self.span().get() / 20)
            .clamp(PAUSE.0, PAUSE.1)
            .as_duration()
    }

    fn look_every(self) -> Duration {
        Millis(self.span().get() / 40)
            .clamp(LOOK.0, LOOK.1)
            .as_duration()
    }
}

/// The token that a connection uses, beside the file that it came from.
#[derive(Debug)]
pub(crate) struct Freshness {
    source: CredentialSource,
    used: Option<Life>,
    /// The next look into the file; none for a token without end.
    next: Option<Instant>,
}

impl Freshness {
    /// The freshness of a connection that has just been made with what the file holds.
    pub(crate) fn new(source: CredentialSource) -> Self {
        let mut new = Self {
            source,
            used: None,
            next: None,
        };
        new.connected();
        new
    }

    /// The credentials file.
    pub(crate) const fn source(&self) -> &CredentialSource {
        &self.source
    }

    /// The life of the token in use; none if it does not end.
    pub(crate) const fn used(&self) -> Option<Life> {
        self.used
    }

    /// Notes that the connection was made anew, with what the file holds. If the file cannot be
    /// read at this moment, the connection has a token that was in it before.
    pub(crate) fn connected(&mut self) {
        if let Ok(found) = self.source.read() {
            self.used = Life::of(&found);
        }
        let until = |life: Life| clock::now().until(life.renew_at()).as_duration();
        self.next = self.used.map(|life| Instant::now() + until(life));
    }

    /// True if the file holds a token of the same key that ends later than the one in use.
    pub(crate) fn is_outdated(&self) -> bool {
        let same = |found: &Credentials| found.public() == self.source.public();
        let found = self.source.read().ok().filter(same);
        match (found.map(|found| Life::of(&found)), self.used) {
            (Some(Some(found)), Some(used)) => found.ends > used.ends,
            (Some(None), Some(_)) => true,
            (None, _) | (_, None) => false,
        }
    }

    /// Resolves once the file holds a newer token. If the caller stops waiting, nothing is lost.
    pub(crate) async fn outdated(&mut self) {
        loop {
            let (Some(next), Some(life)) = (self.next, self.used) else {
                return std::future::pending().await;
            };
            sleep_until(next).await;
            self.next = Some(Instant::now() + life.look_every());
            if self.is_outdated() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ISSUED: UnixMillis = UnixMillis(1_700_000_000_000);

    fn life(span: Millis) -> Life {
        Life {
            issued: ISSUED,
            ends: ISSUED.after(span),
            later: 0,
        }
    }

    #[test]
    fn tl_06_a_token_is_renewed_at_half_of_its_life_or_on_its_last_day() {
        let hour = Millis::from_secs(3600);
        for (span, lead) in [
            (Millis::from_secs(6), Millis::from_secs(3)),
            (hour, Millis(hour.get() / 2)),
            (Millis(hour.get() * 48), Millis(hour.get() * 24)),
            (Millis(hour.get() * 720), Millis(hour.get() * 24)),
        ] {
            let life = life(span);
            assert_eq!(life.renew_at().until(life.ends), lead);
            let tries = lead.as_duration().as_millis() / life.pause().as_millis();
            assert!(tries >= 10, "{tries} tries before the end");
            assert!(life.look_every() < life.pause() || life.pause() <= Duration::from_secs(600));
        }
    }

    /// A token that was issued for weeks beside a registrar that gives one hour.
    #[test]
    fn tl_06_a_token_that_ends_later_than_those_of_the_registrar_is_kept_for_now() {
        let day = life(Millis::from_secs(24 * 3600));
        let now = day.renew_at();
        let hour = Millis::from_secs(3600);
        let again = day.not_yet(now, now.after(hour));
        let again = again.expect("it ends in half a day");
        assert_eq!(again.until(day.ends), Millis(hour.get() / 2));
        assert_eq!(day.not_yet(again, again.after(hour)), None);
        let same = day.not_yet(now, day.ends);
        assert_eq!(same, Some(now.after(Millis(now.until(day.ends).get() / 2))));
        assert_eq!(
            day.not_yet(now, now),
            None,
            "one that has ended is no offer"
        );
    }

    /// All workers of a run are issued at once, and a registrar answers one after another.
    #[test]
    fn processes_spread_their_first_tries() {
        let ends = ISSUED.after(Millis::from_secs(3600));
        let keys = ["A", "B", "C", "D", "E"].map(|letter| format!("U{}", letter.repeat(55)));
        let mut at: Vec<u64> = keys
            .iter()
            .map(|key| Life::new(ISSUED, ends, &key.parse().expect("the form of a key")))
            .map(|life| life.renew_at().get())
            .collect();
        let half = ends.get() - 1_800_000;
        assert!(
            at.iter().all(|at| (half..half + 360_000).contains(at)),
            "{at:?}"
        );
        at.sort_unstable();
        at.dedup();
        assert!(at.len() > 3, "{at:?}");
    }
}
