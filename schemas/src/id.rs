//! Names: public keys in the text form of nkeys, and the names of runs. All can be one token of a
//! subject.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::limits::RUN_ID_BYTES_MAX;

/// The error for a text that is not an identifier.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Not the text form of a public key of the wanted kind.
    #[error("not a public key of kind {kind}: {text:?}")]
    Key {
        /// The wanted first letter.
        kind: char,
        /// The text that was given, shortened.
        text: String,
    },
    /// Not the name of a run.
    #[error(
        "not a run name: {0:?}; use 1 to 32 of a-z, 0-9 and -, starting with a letter or digit, and not `cluster`"
    )]
    Run(String),
}

/// A public key in the text form of nkeys: a kind letter (`U` user, `A` account, `O` operator) and
/// base32.
///
/// Only the form is checked here; crate `identity` checks the checksum in the text when a key
/// verifies something.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey(String);

/// A worker: the user nkey with which it connects to the bus.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WorkerId(String);

/// A tenant's NATS account.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AccountId(String);

/// The name of a run: one subject token, one path segment.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RunId(String);

const KEY_CHARACTERS: usize = 56;

/// The token in subjects of events that concern no single run.
pub const CLUSTER: &str = "cluster";
/// A token in the keys of operators' uploads; keys of workers' uploads have the run there.
pub const OPERATOR: &str = "operator";
/// Names that no run may have.
const RESERVED: [&str; 2] = [CLUSTER, OPERATOR];

fn check_key(text: &str, kinds: &[char]) -> Result<(), IdError> {
    let base32 = |c: char| c.is_ascii_uppercase() || ('2'..='7').contains(&c);
    let right = text.len() == KEY_CHARACTERS
        && text.chars().all(base32)
        && kinds.iter().any(|kind| text.starts_with(*kind));
    if right {
        Ok(())
    } else {
        Err(IdError::Key {
            kind: kinds[0],
            text: text.chars().take(64).collect(),
        })
    }
}

fn check_run(text: &str) -> Result<(), IdError> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let formed = !text.is_empty() && text.len() <= RUN_ID_BYTES_MAX && text.chars().all(allowed);
    let right = formed && !text.starts_with('-') && !RESERVED.contains(&text);
    if right {
        Ok(())
    } else {
        Err(IdError::Run(text.chars().take(64).collect()))
    }
}

macro_rules! text_id {
    ($name:ident, $check:expr) => {
        impl $name {
            /// The text form.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                $check(text)?;
                Ok(Self(text.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                $check(&text)?;
                Ok(Self(text))
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

text_id!(PublicKey, |text: &str| check_key(text, &['U', 'A', 'O']));
text_id!(WorkerId, |text: &str| check_key(text, &['U']));
text_id!(AccountId, |text: &str| check_key(text, &['A']));
text_id!(RunId, check_run);

impl WorkerId {
    /// The first 8 characters, for people.
    pub fn short(&self) -> &str {
        &self.0[..8]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_names_are_one_safe_token() {
        for good in ["demo", "run-7", "0a"] {
            assert!(good.parse::<RunId>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "cluster",
            "-a",
            "a.b",
            "*",
            ">",
            "A",
            "a b",
            "a/b",
            &"a".repeat(33),
        ] {
            assert!(bad.parse::<RunId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn keys_have_kind_and_length() {
        let key = format!("U{}", "A".repeat(55));
        assert!(key.parse::<WorkerId>().is_ok());
        assert!(key.parse::<AccountId>().is_err());
        assert!(key[..55].parse::<WorkerId>().is_err());
        assert!(format!("U{}", "a".repeat(55)).parse::<WorkerId>().is_err());
    }
}
