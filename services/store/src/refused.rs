//! Requests that the store refused, for the audit service to fetch: the store itself has no
//! connection to the bus. Equal refusals are counted together, memory is bounded, and nothing of a
//! request is kept that its sender could choose freely: no query, no header, no key of an object.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use http::{HeaderMap, Method, Response, StatusCode, Uri};
use identity::join::new_session;
use s3s::Body;
use schemas::member::Posture;
use schemas::security::{SEEN_BYTES_MAX, STORE_REFUSALS_MAX, StoreRefusal, StoreRefusals};
use schemas::{Millis, PublicKey, UnixMillis, V};

use crate::gate::query_value;
use crate::peer::Peer;
use crate::peers::site;
use crate::rights::Rights;

/// Most different refusals of one sender: one that varies what it asks leaves room for the others,
/// and its further ones are counted together.
const OF_SENDER_MAX: usize = 16;
/// The reason of a refusal that stands for further ones of its sender.
const OTHERS: &str = "further ones of this sender";
/// Time after which a refusal that was not repeated gives its place away. The audit service looks
/// far more often.
const KEPT: Millis = Millis::from_secs(600);

/// The refusals since the store's start. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Refusals {
    process: u64,
    table: Arc<Mutex<Table>>,
    /// The layers that the store runs with open, once that was said.
    posture: Arc<OnceLock<Posture>>,
}

#[derive(Debug, Default)]
struct Table {
    known: BTreeMap<StoreRefusal, Counted>,
    /// How many different ones of each sender are known.
    senders: BTreeMap<Sender, usize>,
    more: u64,
}

/// Who is refused: the holder of the certificate, or without one the network that counts as one
/// peer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Sender {
    Holder(PublicKey),
    Site(String),
}

impl Sender {
    fn of(refusal: &StoreRefusal) -> Self {
        match &refusal.holder {
            Some(holder) => Self::Holder(holder.clone()),
            None => Self::Site(network(&refusal.address)),
        }
    }
}

/// The network of an address, by which connections are counted too.
fn network(address: &str) -> String {
    let parsed = address.parse::<IpAddr>();
    parsed.map_or_else(|_| address.to_owned(), |address| site(address).to_string())
}

#[derive(Clone, Copy, Debug)]
struct Counted {
    count: u64,
    last: UnixMillis,
}

/// What is told of a request if it is refused.
#[derive(Debug)]
pub(crate) struct Asked {
    address: IpAddr,
    peer: Peer,
    key: &'static str,
    request: String,
}

impl Asked {
    pub(crate) fn of(
        rights: &Rights,
        address: IpAddr,
        peer: &Peer,
        (method, uri, headers): (&Method, &Uri, &HeaderMap),
    ) -> Self {
        let query = uri.query().unwrap_or_default();
        let presigned = query_value(query, "X-Amz-Credential");
        let header = headers.get(http::header::AUTHORIZATION);
        let header = header.and_then(|value| value.to_str().ok());
        let header = header.and_then(|text| text.split_once("Credential="));
        let credential = presigned.or(header.map(|(_, rest)| rest)).unwrap_or("");
        let id = credential.split(['/', '%']).next().unwrap_or_default();
        let bucket = uri.path().trim_start_matches('/').split('/').next();
        let bucket = bucket.and_then(|bucket| bucket.parse::<objects::BucketName>().ok());
        let bucket = bucket.map_or("", |bucket| bucket.as_str());
        let method = crate::server::label(method);
        Self {
            address,
            peer: peer.clone(),
            key: rights.name(id),
            request: format!("{method} {bucket}").trim_end().to_owned(),
        }
    }
}

impl Refusals {
    pub(crate) fn new() -> Self {
        Self {
            process: new_session().0,
            table: Arc::default(),
            posture: Arc::default(),
        }
    }

    /// Says which layers the store runs with open. The first word holds.
    pub(crate) fn state(&self, posture: Posture) {
        self.posture.get_or_init(|| posture);
    }

    /// Notes the answer to a request, if it is a refusal.
    pub(crate) fn note(&self, now: UnixMillis, asked: Asked, response: &Response<Body>) {
        if response.status() != StatusCode::FORBIDDEN {
            return;
        }
        let holder = match &asked.peer {
            Peer::Unasked => None,
            Peer::Holder(holder) => Some(holder.key.clone()),
        };
        let refusal = StoreRefusal {
            address: asked.address.to_canonical().to_string(),
            holder,
            key: asked.key.to_owned(),
            request: asked.request,
            reason: reason(response.body().bytes().as_ref()),
            count: 0,
        };
        self.lock().note(now, refusal);
    }

    /// All of them, as JSON.
    pub(crate) fn listed(&self) -> Bytes {
        let table = self.lock();
        let refusals = table.known.iter().map(|(one, counted)| StoreRefusal {
            count: counted.count,
            ..one.clone()
        });
        let list = StoreRefusals {
            v: V,
            process: self.process,
            refusals: refusals.collect(),
            more: table.more,
            posture: self.posture.get().cloned(),
        };
        drop(table);
        Bytes::from(serde_json::to_vec(&list).expect("it is data"))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Counts a refusal, whose own count is 0.
    fn note(&mut self, now: UnixMillis, refusal: StoreRefusal) {
        if self.repeats(now, &refusal) {
            return;
        }
        let sender = Sender::of(&refusal);
        if self.known.len() >= STORE_REFUSALS_MAX || self.of(&sender) >= OF_SENDER_MAX {
            self.forget(now);
        }
        let refusal = match self.of(&sender) < OF_SENDER_MAX {
            true => refusal,
            false => StoreRefusal {
                address: network(&refusal.address),
                key: String::new(),
                request: String::new(),
                reason: OTHERS.to_owned(),
                ..refusal
            },
        };
        if self.repeats(now, &refusal) {
            return;
        }
        // Of a holder with many addresses there is one such row for each of a few of them.
        if self.known.len() >= STORE_REFUSALS_MAX || self.of(&sender) >= 2 * OF_SENDER_MAX {
            self.more = self.more.saturating_add(1);
            return;
        }
        *self.senders.entry(sender).or_default() += 1;
        let first = Counted {
            count: 1,
            last: now,
        };
        self.known.insert(refusal, first);
    }

    /// Counts a refusal that is known. Returns false if it is not.
    fn repeats(&mut self, now: UnixMillis, refusal: &StoreRefusal) -> bool {
        let known = self.known.get_mut(refusal);
        known.is_some_and(|known| {
            known.count = known.count.saturating_add(1);
            known.last = now;
            true
        })
    }

    fn of(&self, sender: &Sender) -> usize {
        self.senders.get(sender).copied().unwrap_or_default()
    }

    /// Gives the places of those away that were not repeated lately.
    fn forget(&mut self, now: UnixMillis) {
        let senders = &mut self.senders;
        self.known.retain(|one, counted| {
            let stays = counted.last.until(now) < KEPT;
            if !stays {
                let sender = Sender::of(one);
                match senders.get_mut(&sender) {
                    Some(count) if *count > 1 => *count -= 1,
                    _ => drop(senders.remove(&sender)),
                }
            }
            stays
        });
    }
}

/// The reason in an answer: its code and message, which are fixed words of the store and its
/// protocol layer.
fn reason(body: Option<&Bytes>) -> String {
    let text = body.map(|body| String::from_utf8_lossy(body).into_owned());
    let text = text.unwrap_or_default();
    let part = |name: &str| {
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        let (part, _) = rest.split_once(&format!("</{name}>"))?;
        Some(part.to_owned())
    };
    let code = part("Code").unwrap_or_else(|| "refused".to_owned());
    let mut reason = match part("Message") {
        Some(message) => format!("{code}: {message}"),
        None => code,
    };
    let end = (0..=SEEN_BYTES_MAX.min(reason.len()))
        .rev()
        .find(|at| reason.is_char_boundary(*at));
    reason.truncate(end.unwrap_or(0));
    reason
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMillis = UnixMillis(1_700_000_000_000);

    fn refusal(address: usize, reason: usize) -> StoreRefusal {
        StoreRefusal {
            address: address.to_string(),
            holder: None,
            key: "get".to_owned(),
            request: "GET blobs".to_owned(),
            reason: reason.to_string(),
            count: 0,
        }
    }

    #[test]
    fn tl_29_equal_refusals_are_one_with_their_number() {
        let refusals = Refusals::new();
        for _ in 0..1000 {
            refusals.lock().note(NOW, refusal(1, 1));
        }
        refusals.lock().note(NOW, refusal(2, 1));
        let list: StoreRefusals = serde_json::from_slice(&refusals.listed()).expect("it is JSON");
        let counts: Vec<_> = list.refusals.iter().map(|one| one.count).collect();
        assert_eq!((counts, list.more), (vec![1000, 1], 0));
        assert_eq!(list.process, refusals.process);
        assert_eq!(list.posture, None, "nobody has said it");
        refusals.state(Posture::default());
        let list: StoreRefusals = serde_json::from_slice(&refusals.listed()).expect("it is JSON");
        assert_eq!(list.posture, Some(Posture::default()));
        let again = refusals.listed();
        assert_eq!(again, refusals.listed(), "nothing is taken by looking");
    }

    #[test]
    fn tl_29_what_is_kept_is_bounded_in_all_and_of_one_sender() {
        let mut table = Table::default();
        for reason in 0..OF_SENDER_MAX + 3 {
            table.note(NOW, refusal(0, reason));
        }
        assert_eq!((table.known.len(), table.more), (OF_SENDER_MAX + 1, 0));
        assert_eq!(others(&table), [("0", 3)], "the others are one");
        for address in 1..2 * STORE_REFUSALS_MAX {
            table.note(NOW, refusal(address, 0));
        }
        assert_eq!(table.known.len(), STORE_REFUSALS_MAX);
        let more = table.more;
        let nearly = NOW.after(Millis(KEPT.get() - 1));
        table.note(nearly, refusal(9999, 0));
        assert_eq!(table.more, more + 1, "nothing is forgotten yet");
        table.note(nearly, refusal(1, 0));
        let later = NOW.after(KEPT);
        table.note(later, refusal(9999, 0));
        assert_eq!(table.more, more + 1);
        assert_eq!(table.known.len(), 2, "the one that was repeated stays");
        assert_eq!(table.senders.len(), 2);
    }

    fn others(table: &Table) -> Vec<(&str, u64)> {
        let others = table.known.iter().filter(|(one, _)| one.reason == OTHERS);
        others
            .map(|(one, counted)| (one.address.as_str(), counted.count))
            .collect()
    }

    /// A host has 2^64 addresses of IPv6.
    #[test]
    fn tl_29_a_network_of_ipv6_is_one_sender() {
        let mut table = Table::default();
        for host in 0..STORE_REFUSALS_MAX {
            let one = StoreRefusal {
                address: format!("2001:db8::{host:x}"),
                ..refusal(0, 0)
            };
            table.note(NOW, one);
        }
        assert_eq!((table.known.len(), table.more), (OF_SENDER_MAX + 1, 0));
        let left = (STORE_REFUSALS_MAX - OF_SENDER_MAX) as u64;
        assert_eq!(others(&table), [("2001:db8::", left)]);
        let other = StoreRefusal {
            address: "2001:db8:0:1::1".to_owned(),
            ..refusal(0, 0)
        };
        table.note(NOW, other.clone());
        assert!(table.known.contains_key(&other));
    }

    #[test]
    fn tl_29_holders_behind_one_address_do_not_hide_each_other_and_one_with_many_is_one() {
        let holder = |letter: &str| format!("U{}", letter.repeat(55)).parse().ok();
        let mut table = Table::default();
        for number in 0..STORE_REFUSALS_MAX {
            let loud = StoreRefusal {
                holder: holder("A"),
                ..refusal(0, number)
            };
            table.note(NOW, loud);
            let moving = StoreRefusal {
                holder: holder("B"),
                address: format!("10.0.{}.{}", number / 256, number % 256),
                ..refusal(0, number)
            };
            table.note(NOW, moving);
        }
        let quiet = StoreRefusal {
            holder: holder("C"),
            ..refusal(0, 0)
        };
        table.note(NOW, quiet.clone());
        assert!(table.known.contains_key(&quiet));
        assert!(table.known.len() <= OF_SENDER_MAX + 1 + 2 * OF_SENDER_MAX + 1);
        let counts = table.known.values().map(|counted| counted.count);
        let all = counts.sum::<u64>() + table.more;
        assert_eq!(all, 2 * STORE_REFUSALS_MAX as u64 + 1, "each is counted");
    }

    #[test]
    fn tl_22_a_reason_is_the_stores_own_words_and_short() {
        let of = |text: &str| reason(Some(&Bytes::from(text.to_owned())));
        assert_eq!(
            of("<Error><Code>AccessDenied</Code><Message>no</Message></Error>"),
            "AccessDenied: no"
        );
        assert_eq!(of("<Error><Code>X</Code></Error>"), "X");
        assert_eq!(
            (of("nonsense"), reason(None)),
            ("refused".to_owned(), "refused".to_owned())
        );
        let long = format!("<Code>{}</Code>", "ä".repeat(SEEN_BYTES_MAX));
        assert!(of(&long).len() <= SEEN_BYTES_MAX);
    }
}
