//! Quantities as people write them in configuration: `"30s"`, `"64MiB"`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemas::{Bytes, Millis};
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A span of time, written with units: `"30s"`, `"1m 30s"`, `"250ms"`. A number without a unit is
/// refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConfigDuration(pub Duration);

/// A number of bytes: `"64MiB"`, `"512KiB"`, `"2GiB"`, or a plain number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConfigBytes(pub u64);

/// A text that does not have this form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {wanted}")]
pub struct QuantityError {
    text: String,
    wanted: &'static str,
}

const DURATION: &str = "a span of time such as \"30s\" or \"250ms\"";
const BYTES: &str = "a size such as \"64MiB\" (KiB, MiB, GiB, TiB, or a number of bytes)";
/// Units from the largest, so that a size prints with the first that divides it.
const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];

impl ConfigDuration {
    /// `seconds` as a span.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// The span in whole milliseconds.
    pub fn millis(self) -> Millis {
        Millis(u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX))
    }
}

impl ConfigBytes {
    /// `count` mebibytes.
    pub const fn mebi(count: u64) -> Self {
        Self(count << 20)
    }

    /// The number in the type that the rest of the program uses.
    pub const fn bytes(self) -> Bytes {
        Bytes(self.0)
    }
}

impl FromStr for ConfigDuration {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let refused = |_| QuantityError {
            text: shortened(text),
            wanted: DURATION,
        };
        humantime::parse_duration(text).map(Self).map_err(refused)
    }
}

impl FromStr for ConfigBytes {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let refused = || QuantityError {
            text: shortened(text),
            wanted: BYTES,
        };
        let unit = UNITS
            .iter()
            .find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, *shift)));
        let (digits, shift) = unit.unwrap_or((text, 0));
        let number: u64 = digits.trim().parse().map_err(|_| refused())?;
        number.checked_mul(1 << shift).map(Self).ok_or_else(refused)
    }
}

impl fmt::Display for ConfigDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

impl fmt::Display for ConfigBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = UNITS
            .iter()
            .find(|(_, shift)| self.0 > 0 && self.0.trailing_zeros() >= *shift);
        match whole {
            Some((unit, shift)) => write!(f, "{}{unit}", self.0 >> shift),
            None => self.0.fmt(f),
        }
    }
}

impl Serialize for ConfigDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for ConfigBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ConfigDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for ConfigBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(BytesVisitor)
    }
}

struct BytesVisitor;

impl Visitor<'_> for BytesVisitor {
    type Value = ConfigBytes;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(BYTES)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<ConfigBytes, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<ConfigBytes, E> {
        Ok(ConfigBytes(number))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<ConfigBytes, E> {
        u64::try_from(number)
            .map(ConfigBytes)
            .map_err(|_| E::custom(format_args!("{number} is not {BYTES}")))
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_unit() {
        assert_eq!("1m 30s".parse(), Ok(ConfigDuration::from_secs(90)));
        assert_eq!(ConfigDuration::from_secs(90).to_string(), "1m 30s");
        for text in ["", "30", "-1s", "s", "1 fortnight"] {
            assert!(text.parse::<ConfigDuration>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_read_back_as_they_print() {
        for (text, bytes) in [
            ("64MiB", 64 << 20),
            ("1GiB", 1 << 30),
            ("0", 0),
            ("1500", 1500),
            ("3KiB", 3072),
        ] {
            assert_eq!(text.parse(), Ok(ConfigBytes(bytes)), "{text}");
            assert_eq!(ConfigBytes(bytes).to_string(), text);
        }
        for text in [
            "",
            "MiB",
            "1MB",
            "-1",
            "1.5GiB",
            "99999999999TiB",
            "18446744073709551616",
        ] {
            assert!(text.parse::<ConfigBytes>().is_err(), "{text}");
        }
    }
}
