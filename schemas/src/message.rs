//! Encoding: MessagePack with named fields, a version first, and a limit of length that is checked
//! before anything is parsed.

use std::convert::Infallible;

use serde::de::{self, DeserializeOwned};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::Refusal;

/// The version of a message, as a type: it is written as the number `N`, and any other number is
/// refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct V<const N: u8>;

impl<const N: u8> Serialize for V<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u8(N)
    }
}

impl<'de, const N: u8> Deserialize<'de> for V<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let got = u64::deserialize(deserializer)?;
        if got == u64::from(N) {
            Ok(Self)
        } else {
            Err(de::Error::custom(format_args!(
                "unknown version {got}, this build speaks version {N}"
            )))
        }
    }
}

/// The reason why bytes are not a message.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Longer than the type allows; nothing was parsed.
    #[error("{name} of {bytes} bytes, at most {max} are accepted")]
    TooLong {
        /// The type's name.
        name: &'static str,
        /// The length that came.
        bytes: usize,
        /// The bound.
        max: usize,
    },
    /// Not MessagePack of this type and version.
    #[error("not a {name}: {source}")]
    Malformed {
        /// The type's name.
        name: &'static str,
        /// The parser's error.
        source: rmp_serde::decode::Error,
    },
    /// It is not an answer.
    #[error("bytes that are no answer, where a {name} is expected")]
    NoAnswer {
        /// The type's name.
        name: &'static str,
    },
    /// More bytes follow a whole message.
    #[error("{extra} bytes follow a {name}")]
    Trailing {
        /// The type's name.
        name: &'static str,
        /// The number of bytes that are left over.
        extra: usize,
    },
}

/// For a request that the coordinator takes as it was sent, without further decoding.
impl From<Infallible> for DecodeError {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

/// A type that crosses the bus.
pub trait Message: Serialize + DeserializeOwned {
    /// The name under which golden files, documentation and errors know it.
    const NAME: &'static str;
    /// The longest encoding that is accepted.
    const BYTES_MAX: usize;

    /// The bytes to send.
    fn encode(&self) -> Vec<u8> {
        encode(self, Vec::new())
    }

    /// Reads a message from untrusted bytes.
    ///
    /// # Errors
    /// The bytes are too long, are not this type in this version, or are followed by others.
    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        check_length::<Self>(bytes)?;
        decode(bytes)
    }
}

/// Deepest nesting in a message; ours need less than ten, and each level costs stack.
const DEPTH_MAX: usize = 32;

/// Encodes a message after the bytes in `before`.
pub(crate) fn encode<M: Message>(message: &M, mut before: Vec<u8>) -> Vec<u8> {
    let mut serializer = rmp_serde::Serializer::new(&mut before).with_struct_map();
    message
        .serialize(&mut serializer)
        .expect("messages hold no map with non-string keys and no failing serializer");
    before
}

/// Refuses bytes that are longer than the type allows, before they are parsed.
pub(crate) fn check_length<M: Message>(bytes: &[u8]) -> Result<(), DecodeError> {
    match bytes.len() <= M::BYTES_MAX {
        true => Ok(()),
        false => Err(DecodeError::TooLong {
            name: M::NAME,
            bytes: bytes.len(),
            max: M::BYTES_MAX,
        }),
    }
}

/// Reads a message whose length was checked.
pub(crate) fn decode<M: Message>(bytes: &[u8]) -> Result<M, DecodeError> {
    let name = M::NAME;
    let mut reader = rmp_serde::Deserializer::new(bytes);
    reader.set_max_depth(DEPTH_MAX);
    let message =
        M::deserialize(&mut reader).map_err(|source| DecodeError::Malformed { name, source })?;
    match reader.get_ref().len() {
        0 => Ok(message),
        extra => Err(DecodeError::Trailing { name, extra }),
    }
}

/// The outcome of a request: its answer, or a refusal with a code. It crosses the bus in an
/// [`crate::Answer`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply<T> {
    /// The request was done.
    Ok(T),
    /// The request was not done, and nothing changed.
    Refused(Refusal),
}

impl<T> Reply<T> {
    /// The answer as a result.
    ///
    /// # Errors
    /// The refusal.
    pub fn into_result(self) -> Result<T, Refusal> {
        match self {
            Self::Ok(value) => Ok(value),
            Self::Refused(refusal) => Err(refusal),
        }
    }
}

/// Declares message types: `message!(Type, "name", bytes_max)`.
macro_rules! message {
    ($type:ty, $name:literal, $max:expr) => {
        impl $crate::Message for $type {
            const NAME: &'static str = $name;
            const BYTES_MAX: usize = $max;
        }
    };
}
pub(crate) use message;
