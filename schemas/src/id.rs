//! Names: public keys in the text form of nkeys, and the names of runs. All can be one token of a
//! subject.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::limits::{RUN_ID_BYTES_MAX, TENANT_NAME_BYTES_MAX};

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
        "not a run name: {0:?}; use 1 to 32 of a-z, 0-9 and -, starting with a letter or digit, and not `cluster`; the name of a tenant and `_` may stand before it"
    )]
    Run(String),
    /// Not the name of a tenant.
    #[error(
        "not a tenant's name: {0:?}; use 1 to {TENANT_NAME_BYTES_MAX} of a-z, 0-9 and -, starting with a letter or digit, and not `default`"
    )]
    Tenant(String),
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

/// The name of a run: one subject token, one path segment. The name of a tenant's run begins with
/// the tenant, as in `acme_demo`; any other run is of the domain's own tenant. So runs of two
/// tenants never have one name, wherever a name is a key.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RunId(String);

/// The name of a tenant beside the domain's own.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TenantName(String);

const KEY_CHARACTERS: usize = 56;

/// The domain's own tenant, where a table needs a name for it. No other tenant may have this name.
pub const OWN_TENANT: &str = "default";
/// Stands between the tenant and the rest in the name of a run.
const TENANT_END: char = '_';

/// The token in subjects of events that concern no single run.
pub const CLUSTER: &str = "cluster";
/// A token in the keys of operators' uploads; keys of workers' uploads have the run there.
pub const OPERATOR: &str = "operator";
/// Names that no run may have.
const RESERVED: [&str; 2] = [CLUSTER, OPERATOR];

fn is_plain_name(text: &str, bytes_max: usize) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let formed = !text.is_empty() && text.len() <= bytes_max && text.chars().all(allowed);
    formed && !text.starts_with('-') && !RESERVED.contains(&text)
}

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
    let (tenant, name) = match text.split_once(TENANT_END) {
        Some((tenant, name)) => (Some(tenant), name),
        None => (None, text),
    };
    let right = text.len() <= RUN_ID_BYTES_MAX
        && tenant.is_none_or(|tenant| check_tenant(tenant).is_ok())
        && is_plain_name(name, RUN_ID_BYTES_MAX);
    if right {
        Ok(())
    } else {
        Err(IdError::Run(text.chars().take(64).collect()))
    }
}

fn check_tenant(text: &str) -> Result<(), IdError> {
    if is_plain_name(text, TENANT_NAME_BYTES_MAX) && text != OWN_TENANT {
        Ok(())
    } else {
        Err(IdError::Tenant(text.chars().take(64).collect()))
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
text_id!(TenantName, check_tenant);

impl RunId {
    /// The tenant that the run is of; none for the domain's own.
    pub fn tenant(&self) -> Option<TenantName> {
        let (tenant, _) = self.0.split_once(TENANT_END)?;
        Some(TenantName(tenant.to_owned()))
    }
}

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

    /// A run of the domain's own can have no name that a tenant's run has, whatever the tenant is
    /// called.
    #[test]
    fn a_run_of_a_tenant_begins_with_the_tenant_and_no_other_name_does() {
        let run = |text: &str| text.parse::<RunId>();
        let tenant = |text: &str| run(text).expect("a name").tenant();
        assert_eq!(tenant("demo"), None);
        assert_eq!(tenant("acme-demo"), None);
        assert_eq!(tenant("acme_demo"), Some("acme".parse().expect("a name")));
        let long = "t".repeat(TENANT_NAME_BYTES_MAX);
        assert!(run(&format!("{long}_demo")).is_ok());
        for bad in [
            "_demo",
            "acme_",
            "a_b_c",
            "default_demo",
            "cluster_demo",
            "acme_cluster",
            "-a_demo",
            "acme_-b",
            "A_demo",
            &format!("{long}t_demo"),
            &format!("a_{}", "b".repeat(RUN_ID_BYTES_MAX - 1)),
        ] {
            assert!(run(bad).is_err(), "{bad}");
        }
        for bad in ["", "default", "operator", "a_b", &format!("{long}t")] {
            assert!(bad.parse::<TenantName>().is_err(), "{bad}");
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
