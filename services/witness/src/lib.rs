//! How a witness follows the log of all events: it keeps the newest head that it has seen, and
//! takes another only if that continues it. So each witness notices a log that is cut or forked
//! below what it has seen. No I/O, no clock, no private key.
//!
//! The tree is that of `ct-merkle`, and not the one of the log's writer: a mistake there does not
//! hide itself.

use ct_merkle::{ConsistencyProof, InclusionProof, RootHash, digest};
use sha2::Sha256;
use tlog::{Hash, Head, HeadError};

/// A log, as its readers know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Followed {
    origin: String,
    /// The raw keys that may sign its heads.
    keys: Vec<[u8; 32]>,
}

/// A head that may be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// It is the kept one.
    Same,
    /// It continues the kept one, or is the first that this witness sees.
    Newer(Head),
}

/// The reason why a head is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Doubt {
    /// The text is no signed head of this log.
    #[error("{0}")]
    Head(#[from] HeadError),
    /// The log has fewer events than before.
    #[error("a head over {found} events, and one over {kept} was seen before")]
    WentBack {
        /// The events under the head.
        found: u64,
        /// The events under the kept one.
        kept: u64,
    },
    /// The same events have two roots.
    #[error("two heads over {0} events with two roots are signed")]
    Forked(u64),
    /// Nothing shows that the head continues the kept one.
    #[error(
        "nothing shows that the head over {found} events continues the one over {kept} that was seen before"
    )]
    Unproven {
        /// The events under the head.
        found: u64,
        /// The events under the kept one.
        kept: u64,
    },
}

impl Followed {
    /// The log of this name, whose heads these raw keys may sign.
    pub const fn new(origin: String, keys: Vec<[u8; 32]>) -> Self {
        Self { origin, keys }
    }

    /// True if no key is known that may sign heads, as in a domain of an earlier release.
    pub const fn is_unsigned(&self) -> bool {
        self.keys.is_empty()
    }

    /// Reads a signed head.
    ///
    /// # Errors
    /// It is none of this log.
    pub fn open(&self, note: &[u8]) -> Result<Head, HeadError> {
        Head::open(note, &self.origin, &self.keys)
    }

    /// Compares a signed head with the kept one. `hashes` lead from that to this one.
    ///
    /// # Errors
    /// It must not take the place of the kept one.
    pub fn follow(&self, kept: Option<&Head>, note: &[u8], hashes: &[Hash]) -> Result<Step, Doubt> {
        let head = self.open(note)?;
        let Some(kept) = kept.filter(|kept| kept.size > 0) else {
            return Ok(Step::Newer(head));
        };
        if head.size < kept.size {
            let (found, kept) = (head.size, kept.size);
            return Err(Doubt::WentBack { found, kept });
        }
        if head.size == kept.size {
            return match head.root == kept.root {
                true => Ok(Step::Same),
                false => Err(Doubt::Forked(kept.size)),
            };
        }
        let proof = ConsistencyProof::<Sha256>::try_from_bytes(hashes.concat());
        let leads = proof.is_ok_and(|proof| {
            let kept = root(kept);
            root(&head).verify_consistency(&kept, &proof).is_ok()
        });
        match leads {
            true => Ok(Step::Newer(head)),
            false => Err(Doubt::Unproven {
                found: head.size,
                kept: kept.size,
            }),
        }
    }
}

/// True if the hashes lead from `entry` at `index` to the root of `head`.
pub fn is_included(head: &Head, index: u64, entry: &[u8], hashes: &[Hash]) -> bool {
    let Ok(proof) = InclusionProof::<Sha256>::try_from_bytes(hashes.concat()) else {
        return false;
    };
    root(head).verify_inclusion(&entry, index, &proof).is_ok()
}

fn root(head: &Head) -> RootHash<Sha256> {
    RootHash::new(digest::Output::<Sha256>::from(head.root), head.size)
}
