//! The proof that one event is under a head, as a text of its own (C2SP tlog-proof). The event
//! itself stands in the text's place for data of the application, so that the text needs no log.

use data_encoding::BASE64;
use schemas::Message as _;
use schemas::event::{Event, EventBody, SignedEvent};
use tlog::{Hash, Head, from_base64};
use witness::is_included;

use super::fault::LogFault;
use super::open::{Log, Trusted};

const FIRST_LINE: &str = "c2sp.org/tlog-proof@v1";
/// Longest text that is read: an entry in base64, 64 hashes, and a head.
const PROOF_BYTES_MAX: usize = 128 << 10;
/// More hashes than any tree needs.
const HASHES_MAX: usize = 64;

/// A proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// The event, as an entry of the log.
    pub entry: Vec<u8>,
    /// Its index.
    pub index: u64,
    /// The hashes that lead from it to the root.
    pub hashes: Vec<Hash>,
    /// The signed head.
    pub note: String,
}

impl Proof {
    /// Its text.
    pub fn text(&self) -> String {
        let mut text = format!(
            "{FIRST_LINE}\nextra {}\nindex {}\n",
            BASE64.encode(&self.entry),
            self.index
        );
        for hash in &self.hashes {
            text.push_str(&BASE64.encode(hash));
            text.push('\n');
        }
        text.push('\n');
        text.push_str(&self.note);
        text
    }

    /// Reads the text of a proof that [`Proof::text`] wrote; nothing in it is checked.
    ///
    /// # Errors
    /// It has another form.
    pub fn read(text: &[u8]) -> Result<Self, LogFault> {
        Self::parse(text).ok_or(LogFault::NoProof)
    }

    fn parse(text: &[u8]) -> Option<Self> {
        if text.len() > PROOF_BYTES_MAX {
            return None;
        }
        let text = std::str::from_utf8(text).ok()?;
        let (lines, note) = text.split_once("\n\n")?;
        let mut lines = lines.split('\n');
        if lines.next()? != FIRST_LINE {
            return None;
        }
        let entry = lines.next()?.strip_prefix("extra ")?;
        let index = lines.next()?.strip_prefix("index ")?;
        let number: u64 = index.parse().ok()?;
        let hash = |line: &str| from_base64(line)?.try_into().ok();
        let hashes: Vec<Hash> = lines.map(hash).collect::<Option<_>>()?;
        let is_plain = number.to_string() == index && hashes.len() <= HASHES_MAX;
        is_plain.then_some(Self {
            entry: from_base64(entry)?,
            index: number,
            hashes,
            note: note.to_owned(),
        })
    }

    /// Compares the proof's head, once it was checked, with the pinned one. True if they are the
    /// same; without a log nothing can be said about heads of different sizes.
    ///
    /// # Errors
    /// They have one size and two roots: two histories.
    pub fn is_pinned(head: &Head, pinned: Option<&Head>) -> Result<bool, LogFault> {
        let size = head.size;
        let Some(pinned) = pinned.filter(|pinned| pinned.size == size) else {
            return Ok(false);
        };
        match pinned.root == head.root {
            true => Ok(true),
            false => Err(LogFault::Forked { size }),
        }
    }

    /// True if the hashes lead from the event to the root of `head`.
    pub fn leads_to(&self, head: &Head) -> bool {
        is_included(head, self.index, &self.entry, &self.hashes)
    }

    /// Checks the proof without the log: as [`Proof::open`], and that by the trust bundle it was
    /// the turn of a key of the ledger. The bundle says where a key has ended, so the next one
    /// counts from the bundle on that says so.
    ///
    /// # Errors
    /// The first that does not hold.
    pub fn verify(&self, trusted: &Trusted) -> Result<(Head, SignedEvent, EventBody), LogFault> {
        let opened = self.open(trusted)?;
        let (_, event, body) = &opened;
        if matches!(body.event, Event::Ledger(_)) {
            if chain::is_over(&trusted.ended, body) {
                return Err(LogFault::Stranger(event.key.clone()));
            }
            if !has_begun(trusted, body) {
                return Err(LogFault::OutOfTurn(event.key.clone()));
            }
        }
        Ok(opened)
    }

    /// Says if it was the turn of the key of the ledger that has signed `event`, by the log that
    /// holds it at the proof's index.
    ///
    /// # Errors
    /// [`LogFault::OutOfTurn`].
    pub fn is_in_turn(
        &self,
        log: &Log,
        event: &SignedEvent,
        body: &EventBody,
    ) -> Result<(), LogFault> {
        let ledger = matches!(body.event, Event::Ledger(_));
        match ledger && !log.course().goes_on(&event.key, self.index) {
            true => Err(LogFault::OutOfTurn(event.key.clone())),
            false => Ok(()),
        }
    }

    /// Checks the head's signature, the way to its root, the event's own signature, and that its
    /// signer is known. Nothing is said of its turn: the log has that. A worker's key is not
    /// checked: only a join in the ledger, which the proof does not have, says whose key it is.
    ///
    /// # Errors
    /// The first that does not hold.
    pub fn open(&self, trusted: &Trusted) -> Result<(Head, SignedEvent, EventBody), LogFault> {
        let fault = |reason: &str| LogFault::Proof(reason.to_owned());
        let head = trusted.open("the proof's head", self.note.as_bytes())?;
        if !self.leads_to(&head) {
            return Err(fault(
                "its hashes do not lead from the event to the signed root",
            ));
        }
        let event = chain::of_leaf(&self.entry).ok_or_else(|| fault("it holds no event"))?;
        let domain = &trusted.domain;
        let SignedEvent {
            key,
            signature,
            body,
            ..
        } = &event;
        if !chain::is_signed_event(domain, key.as_str(), &**signature, body) {
            return Err(fault("the event's signature does not verify"));
        }
        let body = EventBody::decode(body).map_err(|error| LogFault::Undecodable {
            index: self.index,
            reason: error.to_string(),
        })?;
        if body.emitter != *key {
            return Err(fault("the event's emitter is not its signer"));
        }
        let writers = match body.event {
            Event::Ledger(_) => Some(&trusted.coordinators),
            Event::Security(_) => Some(&trusted.sentries),
            Event::Worker(_) => None,
        };
        if writers.is_some_and(|writers| !writers.contains(key)) {
            return Err(LogFault::Stranger(key.clone()));
        }
        Ok((head, event, body))
    }
}

/// True for an event of the first key of the ledger, or of a later one behind the last event of
/// each that has ended before it, of which there is one.
fn has_begun(trusted: &Trusted, body: &EventBody) -> bool {
    let keys = &trusted.coordinators;
    let Some(place) = keys.iter().position(|key| *key == body.emitter) else {
        return false;
    };
    let ended = keys[..place]
        .iter()
        .filter_map(|key| trusted.ended.get(key));
    place == 0 || ended.max().is_some_and(|last| body.sequence > *last)
}
