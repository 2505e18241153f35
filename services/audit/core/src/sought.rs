//! The object that somebody looks for, by its digest or by the first digits of one.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use schemas::{Chunks, Digest};

/// Fewest digits that begin a digest: as many as the lines for people show.
pub const DIGITS_MIN: usize = 8;
/// Most digests that are named when several begin in the same way.
const FOUND_MAX: usize = 8;

/// A digest, or the first digits of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DigestPrefix(String);

/// The error for a text that begins no digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{DIGITS_MIN} to 64 lower-case hex digits, with or without sha256: before them")]
pub struct DigestPrefixError;

impl DigestPrefix {
    fn begins(&self, digest: &Digest) -> bool {
        digest.hex().starts_with(&self.0)
    }
}

impl From<Digest> for DigestPrefix {
    fn from(digest: Digest) -> Self {
        Self(digest.hex())
    }
}

impl FromStr for DigestPrefix {
    type Err = DigestPrefixError;

    fn from_str(text: &str) -> Result<Self, DigestPrefixError> {
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        let is_hex = |byte: u8| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f');
        let fits = (DIGITS_MIN..=64).contains(&digits.len());
        match fits && digits.bytes().all(is_hex) {
            true => Ok(Self(digits.to_owned())),
            false => Err(DigestPrefixError),
        }
    }
}

impl fmt::Display for DigestPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.0)
    }
}

/// A digest that is looked for, with the digests that were seen and fit.
#[derive(Clone, Debug)]
pub(crate) struct Sought {
    prefix: DigestPrefix,
    found: BTreeSet<Digest>,
}

impl Sought {
    pub(crate) const fn new(prefix: DigestPrefix) -> Self {
        let found = BTreeSet::new();
        Self { prefix, found }
    }

    /// True for a digest that is looked for, which is kept in mind.
    pub(crate) fn is(&mut self, digest: Digest) -> bool {
        let fits = self.prefix.begins(&digest);
        if fits && self.found.len() < FOUND_MAX {
            self.found.insert(digest);
        }
        fits
    }

    /// True for the digest of chunks, of their list, or of one of them that is named here.
    pub(crate) fn is_of(&mut self, chunks: &Chunks) -> bool {
        let named = chunks.objects().iter().map(|object| object.digest);
        let all = std::iter::once(chunks.digest()).chain(named);
        // Each of them: two that fit are two candidates.
        all.filter(|digest| self.is(*digest)).count() > 0
    }

    /// The digests that fit, ascending; the first [`FOUND_MAX`] that were seen if there are more.
    pub(crate) const fn found(&self) -> &BTreeSet<Digest> {
        &self.found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_found_by_its_first_digits() {
        let digest = Digest::of(b"x");
        let hex = digest.hex();
        for text in [&hex[..DIGITS_MIN], &hex, &format!("sha256:{}", &hex[..9])] {
            let mut sought = Sought::new(text.parse().expect("it begins a digest"));
            assert!(!sought.is(Digest::of(b"y")) && sought.is(digest), "{text}");
            assert!(sought.found().iter().eq([&digest]));
        }
        let upper = hex.to_uppercase();
        for text in [
            &hex[..DIGITS_MIN - 1],
            "",
            "sha256:",
            &upper,
            &format!("{hex}0"),
        ] {
            assert_eq!(
                text.parse::<DigestPrefix>(),
                Err(DigestPrefixError),
                "{text}"
            );
        }
    }

    #[test]
    fn all_digests_that_fit_are_candidates_up_to_a_bound() {
        let of = |last: u8| {
            let mut bytes = [7; 32];
            bytes[31] = last;
            Digest::from_bytes(bytes)
        };
        let mut sought = Sought::new("07070707".parse().expect("it begins digests"));
        let chunks = Chunks::Named(
            (0..20)
                .map(|last| schemas::ObjectRef {
                    digest: of(last),
                    bytes: schemas::Bytes(1),
                })
                .collect(),
        );
        assert!(sought.is_of(&chunks));
        assert_eq!(sought.found().len(), FOUND_MAX);
        assert!(sought.found().contains(&of(0)));
    }
}
