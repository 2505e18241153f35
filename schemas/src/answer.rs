//! Answers, made so that they are harmless wherever they land. The asker chooses the subject of an
//! answer, and the broker publishes there without checking a permission. It can be another client's
//! inbox, the subject of commands, or a subject that the broker forwards, so that an answer looks
//! like a question of somebody else.
//!
//! So an answer begins with a byte with which no other message begins ([`ANSWER_MARK`]), and it
//! names its asker and its question: everybody else can tell that it is for another, and skips it.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::digest::Hasher;
use crate::limits::ENVELOPE_BYTES_MAX;
use crate::message::{self, DecodeError, Message, Reply, V};
use crate::subject::{as_sent, sender_key};
use crate::{Digest, PublicKey};

/// The first byte of every answer, and of nothing else: MessagePack never uses it, and neither
/// signed documents nor JSON begin with it.
pub const ANSWER_MARK: u8 = 0xc1;

/// An asker and its question: the digest of the subject, as the asker wrote it, and of the
/// request's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addressee {
    /// The asker's key.
    pub by: PublicKey,
    /// Digest of its question.
    pub question: Digest,
}

/// The answer to a request, addressed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer<T> {
    /// Version.
    pub v: V<1>,
    /// The asker's key.
    pub to: PublicKey,
    /// Digest of the question.
    pub question: Digest,
    /// The answer itself.
    pub reply: Reply<T>,
}

/// True for bytes that are an answer, to whatever question of whatever process.
pub fn is_answer(bytes: &[u8]) -> bool {
    bytes.first() == Some(&ANSWER_MARK)
}

/// Names a request by the subject on which its sender publishes it and by its bytes.
pub fn question(subject: &str, payload: &[u8]) -> Digest {
    let mut hasher = Hasher::default();
    hasher.update(subject.as_bytes());
    // No subject holds this byte.
    hasher.update(&[0]);
    hasher.update(payload);
    hasher.finish()
}

impl Addressee {
    /// Reads a request as it arrives in the control account; none if its subject names no sender.
    pub fn of(subject: &str, payload: &[u8]) -> Option<Self> {
        let by = sender_key(subject)?;
        let sent: Cow<'_, str> = as_sent(subject);
        Some(Self {
            by,
            question: question(&sent, payload),
        })
    }
}

impl<T> Answer<T> {
    /// Addresses a reply to the asker.
    pub fn new(addressee: &Addressee, reply: Reply<T>) -> Self {
        Self {
            v: V,
            to: addressee.by.clone(),
            question: addressee.question,
            reply,
        }
    }

    /// True if it answers this question of this asker. An asker that is connected without a name
    /// has none to compare.
    pub fn is_for(&self, by: Option<&PublicKey>, question: Digest) -> bool {
        self.question == question && by.is_none_or(|by| *by == self.to)
    }
}

impl<T: Message> Message for Answer<T> {
    const NAME: &'static str = T::NAME;
    const BYTES_MAX: usize = T::BYTES_MAX + ENVELOPE_BYTES_MAX;

    fn encode(&self) -> Vec<u8> {
        message::encode(self, vec![ANSWER_MARK])
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        message::check_length::<Self>(bytes)?;
        match bytes.split_first() {
            Some((&ANSWER_MARK, rest)) => message::decode(rest),
            _ => Err(DecodeError::NoAnswer { name: Self::NAME }),
        }
    }
}
