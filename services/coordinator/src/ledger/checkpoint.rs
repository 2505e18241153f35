//! The place where a start begins to read: the newest checkpoint that the ledger names. Earlier
//! events are read only when one of them is needed.

use chain::{End, Proof};
use runtime::{StoredMessage, StreamSpan};
use schemas::checkpoint::Checkpoint;
use schemas::event::{Event, LedgerEvent};
use schemas::subject::CHECKPOINT_FILTER;
use schemas::{ChainSequence, Digest, PublicKey};

use super::{Ledger, LedgerError};

/// Messages that are requested together: a few MB at most.
const READ_AT_ONCE: u64 = 512;

/// Messages that are skipped at the first look for an older checkpoint: it lies some 8,192
/// events before the newest.
const LOOK_BACK: u64 = 16_384;

/// An event of the chain, and where it lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) sequence: ChainSequence,
    pub(crate) digest: Digest,
    pub(crate) stream_sequence: u64,
}

/// The ledger's word on its newest checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub enum Named {
    /// No checkpoint was saved yet.
    None,
    /// This checkpoint was saved, and its event lies where it says, signed by this key.
    Checkpoint(Checkpoint, PublicKey),
    /// The checkpoint does not fit the stream; the reason in words.
    Unfit(String),
}

/// The place of a marked event in a ledger that is read from a checkpoint on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marked {
    /// It is read with the others, or is not there yet.
    Ahead,
    /// The checkpoint covers it, and this event lies there.
    Covered(Digest),
    /// The checkpoint covers it, and the stream has no such event: it is another ledger's.
    Nowhere,
}

impl Ledger {
    /// Finds the newest checkpoint that was saved. It counts if this process's key signed it and
    /// has named no other, the stream lacks no message, and the event that took it lies where it
    /// says.
    ///
    /// # Errors
    /// The stream cannot be read.
    pub async fn newest_checkpoint(&self) -> Result<Named, LedgerError> {
        match self.stream.last_under(CHECKPOINT_FILTER).await? {
            Some(stored) => self.judge(&stored).await,
            None => Ok(Named::None),
        }
    }

    /// Looks for the checkpoint that was saved before the newest one; it counts as that one does.
    ///
    /// # Errors
    /// The stream cannot be read.
    pub async fn older_checkpoint(&self) -> Result<Named, LedgerError> {
        let newest = self.stream.last_under(CHECKPOINT_FILTER).await?;
        let Some(newest) = newest.map(|stored| stored.sequence) else {
            return Ok(Named::None);
        };
        // The broker looks forward only: so from ever further back, and then from one to the next.
        let mut back = LOOK_BACK;
        let mut older = loop {
            let from = newest.saturating_sub(back).max(1);
            let found = self.named_within(from, newest).await?;
            if found.is_some() || from == 1 {
                break found;
            }
            back = back.saturating_mul(2);
        };
        while let Some(stored) = &older {
            match self.named_within(stored.sequence + 1, newest).await? {
                Some(next) => older = Some(next),
                None => return self.judge(stored).await,
            }
        }
        Ok(Named::None)
    }

    /// The first message in a range of the stream that names a checkpoint; the range ends before
    /// `end`.
    async fn named_within(
        &self,
        from: u64,
        end: u64,
    ) -> Result<Option<StoredMessage>, LedgerError> {
        let first = self.stream.first_under(CHECKPOINT_FILTER, from).await?;
        Ok(first.filter(|stored| stored.sequence < end))
    }

    /// Judges a message that names a checkpoint.
    async fn judge(&self, stored: &StoredMessage) -> Result<Named, LedgerError> {
        let unfit = |reason: String| Ok(Named::Unfit(reason));
        let StreamSpan {
            messages,
            first,
            last,
        } = self.stream.span().await?;
        if first != 1 || messages != last {
            return unfit(format!(
                "the stream begins at {first}, ends at {last} and has {messages} messages"
            ));
        }
        // Who has a former key signs what it would take for its own checkpoint.
        if self.is_former().await? {
            return unfit(format!("{} has named the next key", self.own()));
        }
        let at = stored.sequence;
        let (event, sequence) = match self.open(stored) {
            // Nobody but the present key's holder says where the ledger may be read from: an
            // earlier key may be in other hands.
            Ok(entry) if entry.body.emitter != *self.key.public() => {
                return unfit(format!("message {at} is of {}", entry.body.emitter));
            }
            Ok(entry) => (entry.body.event, entry.body.sequence),
            Err(reason) => return unfit(format!("message {at}: {reason}")),
        };
        let Event::Ledger(LedgerEvent::CheckpointSaved { checkpoint }) = event else {
            return unfit(format!("message {at} names no checkpoint"));
        };
        let place = checkpoint.stream_sequence;
        if checkpoint.covers >= sequence || place >= at {
            return unfit(format!("event {sequence} covers what comes after it"));
        }
        let taken = match self.stream.message(place).await? {
            Some(stored) => self.open(&stored),
            None => Err("it is not there".to_owned()),
        };
        let mut emitter = self.key.public().clone();
        let fits = taken.map(|entry| {
            emitter = entry.body.emitter.clone();
            let takes = matches!(
                entry.body.event,
                Event::Ledger(LedgerEvent::CheckpointTaken)
            );
            takes && (entry.body.sequence, entry.digest) == (checkpoint.covers, checkpoint.head)
        });
        match fits {
            Ok(true) => Ok(Named::Checkpoint(checkpoint, emitter)),
            Ok(false) => unfit(format!("message {place} is another one")),
            Err(reason) => unfit(format!("message {place}: {reason}")),
        }
    }

    /// Continues after the event that took a checkpoint, which `emitter` has signed, as if all
    /// events up to it had been read.
    pub fn continue_from(&mut self, checkpoint: &Checkpoint, emitter: &PublicKey) {
        let Checkpoint {
            covers,
            head,
            stream_sequence,
            ..
        } = *checkpoint;
        let end = End::after(covers, head);
        self.chain.continue_from(end, emitter.clone());
        self.stream_sequence = stream_sequence;
        self.base = Some(Place {
            sequence: covers,
            digest: head,
            stream_sequence,
        });
        self.taken = self.base;
    }

    /// Forgets the events that were read: the next [`Ledger::catch_up`] begins with the first
    /// event.
    pub fn begin_anew(&mut self) {
        self.chain.begin_anew();
        self.stream_sequence = 0;
        self.foreign = 0;
        self.base = None;
        self.taken = None;
    }

    /// Looks for the event that a mark names among those that a checkpoint covers, which are not
    /// read: without this the mark would be compared with nothing. When it is nowhere, the
    /// checkpoint is not one of the ledger that was marked, and reading begins anew with the first
    /// event.
    ///
    /// # Errors
    /// The stream cannot be read.
    pub async fn find_marked(
        &mut self,
        marked: Option<ChainSequence>,
    ) -> Result<Marked, LedgerError> {
        let covers =
            |marked: &ChainSequence| self.base.is_some_and(|base| *marked <= base.sequence);
        let Some(marked) = marked.filter(covers) else {
            return Ok(Marked::Ahead);
        };
        if let Some(digest) = self.digest_before(marked).await? {
            return Ok(Marked::Covered(digest));
        }
        self.begin_anew();
        Ok(Marked::Nowhere)
    }

    /// The digest of an event from before the place where this process began to read. None if the
    /// stream has no event at that position, or if this process has read everything.
    ///
    /// # Errors
    /// The stream cannot be read.
    pub async fn digest_before(
        &self,
        sequence: ChainSequence,
    ) -> Result<Option<Digest>, LedgerError> {
        let Some(base) = self.base.filter(|base| sequence <= base.sequence) else {
            return Ok(None);
        };
        if sequence == base.sequence {
            return Ok(Some(base.digest));
        }
        // Every event and every foreign message has a position, so at least this many lie before
        // the event, and this many after it.
        let mut from = sequence.get() + 1;
        let behind = base.sequence.get() - sequence.get();
        let last = base.stream_sequence.saturating_sub(behind);
        while from <= last {
            let to = last.min(from + READ_AT_ONCE - 1);
            for stored in self.stream.range(from, to).await? {
                let entry = self.open(&stored).ok();
                // A later message for the same number is a copy, or does not fit the chain up to
                // here.
                if let Some(entry) = entry.filter(|entry| entry.body.sequence == sequence) {
                    return Ok(Some(entry.digest));
                }
            }
            from = to + 1;
        }
        Ok(None)
    }

    /// True if this process began to read at a checkpoint.
    pub(crate) const fn has_base(&self) -> bool {
        self.base.is_some()
    }

    /// Number of events that this process has read or written.
    pub(crate) fn known(&self) -> u64 {
        let before = self.base.map_or(0, |base| base.sequence.get() + 1);
        self.len() - before
    }

    /// The event that took the last checkpoint.
    pub(crate) const fn taken(&self) -> Option<Place> {
        self.taken
    }

    /// True when the event at `sequence` is the one that lies there, byte for byte.
    pub(super) async fn is_copy(
        &self,
        sequence: ChainSequence,
        digest: Digest,
    ) -> Result<bool, LedgerError> {
        Ok(self.digest_before(sequence).await? == Some(digest))
    }

    fn open(&self, stored: &StoredMessage) -> Result<chain::Entry, String> {
        let writers = self.chain.writers();
        match writers.prove(&stored.subject, &stored.payload) {
            Proof::Event(entry) => Ok(*entry),
            Proof::Foreign(reason) | Proof::Broken(_, reason) => Err(reason),
        }
    }
}
