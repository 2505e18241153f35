//! The origins of configuration values, so that an error can name the place to change.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// The layer that set a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Default,
    File(PathBuf),
    Environment(String),
    Flag(String),
}

/// The origin of every key; a key that no layer sets has its default.
#[derive(Clone, Debug, Default)]
pub struct Origins(BTreeMap<String, Origin>);

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::Flag(flag) => write!(f, "flag {flag}"),
        }
    }
}

impl Origins {
    pub(crate) fn set(&mut self, key: &str, origin: Origin) {
        self.0.insert(key.to_owned(), origin);
    }

    /// The origin of `key` (such as `bus.url`), in words. A key inside a value that was set as a
    /// whole, such as an entry of a list, has the origin of that value.
    pub fn of(&self, key: &str) -> String {
        let mut whole = key;
        loop {
            if let Some(origin) = self.0.get(whole) {
                return origin.to_string();
            }
            match whole.rsplit_once('.') {
                Some((parent, _)) => whole = parent,
                None => return Origin::Default.to_string(),
            }
        }
    }

    /// The key with this last part that some layer set; the first one if there are several.
    pub(crate) fn named(&self, field: &str) -> Option<&str> {
        let key = |key: &&String| {
            key.rsplit('.').next() == Some(field) || key.split('.').any(|part| part == field)
        };
        self.0.keys().find(key).map(String::as_str)
    }
}
