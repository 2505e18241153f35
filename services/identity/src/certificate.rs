//! The facts in a certificate: the names and purposes that it is for, its key, and its period of
//! validity. They are for people and for checks before a connection; rustls decides if a
//! certificate is trusted.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use data_encoding::HEXLOWER;
use schemas::text::{Shown, Time};
use schemas::{Code, UnixMillis};
use time::{Date, Month};

/// Most names of one certificate that are kept; more would not help a person.
const NAMES_MAX: usize = 8;

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT_ID: u8 = 0x06;
const BITS: u8 = 0x03;
const OCTETS: u8 = 0x04;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// `[0]`: the version. `[3]`: the extensions.
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
/// Kinds of names of a subject: `[2]` is a DNS name, `[7]` an address.
const DNS_NAME: u8 = 0x82;
const ADDRESS: u8 = 0x87;
const SUBJECT_ALT_NAME: [u8; 3] = [0x55, 0x1d, 0x11];
const EXTENDED_KEY_USAGE: [u8; 3] = [0x55, 0x1d, 0x25];
const SUBJECT_KEY: [u8; 3] = [0x55, 0x1d, 0x0e];
const AUTHORITY_KEY: [u8; 3] = [0x55, 0x1d, 0x23];
/// `[0]` in the name of an authority's key: its identifier.
const KEY_IDENTIFIER: u8 = 0x80;
/// Longest identifier of a key that is shown; RFC 7093 gives 20 bytes.
const IDENTIFIER_BYTES_MAX: usize = 32;
const COMMON_NAME: [u8; 3] = [0x55, 0x04, 0x03];
const UNIT: [u8; 3] = [0x55, 0x04, 0x0b];
const SERVER_AUTH: [u8; 8] = [0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01];
const CLIENT_AUTH: [u8; 8] = [0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x02];
const ED25519: [u8; 3] = [0x2b, 0x65, 0x70];

/// The names that a certificate is for, and its period of validity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The names and addresses of its subject; those of servers have some.
    pub names: Vec<String>,
    /// Start of its validity.
    pub begins: UnixMillis,
    /// End of its validity, exclusive.
    pub ends: UnixMillis,
    /// The subject's common name: of a client, its key in nkey form.
    pub(crate) common_name: Option<String>,
    /// The subject's organizational unit: of a client, its role.
    pub(crate) unit: Option<String>,
    /// The certificate's public key, if it is an Ed25519 key.
    pub(crate) key: Option<[u8; 32]>,
    /// The sides of a connection that may show it.
    pub(crate) purposes: Purposes,
    /// The identifier of the certificate's own key, in hex: an authority's certificate has it.
    pub id: Option<String>,
    /// The identifier of the key of the authority that has signed it, in hex, by its own word: two
    /// authorities of one domain have the same name.
    pub authority: Option<String>,
}

/// The sides of a connection that may show a certificate. One that names no purpose is for both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Purposes {
    /// Servers may.
    pub server: bool,
    /// Clients may.
    pub client: bool,
}

/// Reasons why a certificate cannot be used at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outside {
    /// It expired at this time.
    Ended(UnixMillis),
    /// It is valid only from this time.
    NotBegun(UnixMillis),
}

/// The reason to refuse a server's certificate.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("the certificate that the server shows, issued to {names}, {why}")]
pub struct CertificateRefused {
    pub(crate) names: String,
    pub(crate) why: Why,
}

/// The reasons that people can do something about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    Outside(Outside, UnixMillis),
    /// The authority, where the certificate names it.
    Stranger(Option<String>),
    OtherName(String),
    Purpose,
    Other(String),
}

impl Facts {
    /// Reads a certificate in DER; none if the bytes are not a certificate.
    pub fn of(der: &[u8]) -> Option<Self> {
        let mut signed = Der(Der(der).take(SEQUENCE)?);
        let mut body = Der(signed.take(SEQUENCE)?);
        if body.peek() == Some(VERSION) {
            body.next()?;
        }
        // Serial number, algorithm, issuer.
        for _ in 0..3 {
            body.next()?;
        }
        let mut validity = Der(body.take(SEQUENCE)?);
        let (begins, ends) = (instant(validity.next()?)?, instant(validity.next()?)?);
        let subject = body.take(SEQUENCE)?;
        let key = ed25519(body.take(SEQUENCE)?);
        let (mut names, mut purposes) = (Vec::new(), Purposes::ANY);
        let (mut id, mut authority) = (None, None);
        while let Some((tag, content)) = body.next() {
            if tag == EXTENSIONS {
                let found = extension(content, SUBJECT_ALT_NAME);
                names = found.and_then(alternative_names).unwrap_or_default();
                let found = extension(content, EXTENDED_KEY_USAGE);
                purposes = found.map_or(Purposes::ANY, Purposes::of);
                let found = extension(content, SUBJECT_KEY);
                id = found.and_then(|value| identifier(value, OCTETS));
                let found = extension(content, AUTHORITY_KEY);
                let found = found.and_then(|value| Der(value).take(SEQUENCE));
                authority = found.and_then(|value| identifier(value, KEY_IDENTIFIER));
            }
        }
        let common_name = part_of_name(subject, COMMON_NAME);
        if names.is_empty() {
            names.extend(common_name.clone());
        }
        Some(Self {
            names,
            begins,
            ends,
            common_name,
            unit: part_of_name(subject, UNIT),
            key,
            purposes,
            id,
            authority,
        })
    }

    /// The reason why the certificate is not valid at `now`; none if it is valid.
    pub fn outside(&self, now: UnixMillis) -> Option<Outside> {
        if now >= self.ends {
            Some(Outside::Ended(self.ends))
        } else if now < self.begins {
            Some(Outside::NotBegun(self.begins))
        } else {
            None
        }
    }

    /// The names as one text.
    pub fn shown_names(&self) -> String {
        if self.names.is_empty() {
            "nobody".to_owned()
        } else {
            self.names.join(", ")
        }
    }

    /// The subject as one text: the common name, and the organizational unit behind it.
    pub fn shown_subject(&self) -> String {
        match (&self.common_name, &self.unit) {
            (Some(name), Some(unit)) => format!("{name} ({unit})"),
            (Some(name), None) => name.clone(),
            (None, _) => self.shown_names(),
        }
    }
}

impl Purposes {
    const ANY: Self = Self {
        server: true,
        client: true,
    };

    /// The purposes in the content of the extension that names them.
    fn of(content: &[u8]) -> Self {
        let mut found = Self {
            server: false,
            client: false,
        };
        let mut list = Der(Der(content).take(SEQUENCE).unwrap_or_default());
        while let Some(purpose) = list.take(OBJECT_ID) {
            found.server |= purpose == SERVER_AUTH;
            found.client |= purpose == CLIENT_AUTH;
        }
        found
    }
}

impl fmt::Display for Outside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended(at) => write!(f, "ended at {}", Time(*at)),
            Self::NotBegun(at) => write!(f, "is not valid before {}", Time(*at)),
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Outside(outside, now) => {
                write!(f, "{outside}; this machine's clock says {}", Time(*now))
            }
            Self::Stranger(authority) => {
                f.write_str("is signed by no authority that is trusted here")?;
                match authority {
                    Some(authority) => write!(f, ", but by {authority}"),
                    None => Ok(()),
                }
            }
            Self::OtherName(wanted) => write!(f, "is not for {wanted}"),
            Self::Purpose => f.write_str("is not for servers (its purpose is another one)"),
            Self::Other(reason) => write!(f, "is not taken: {}", Shown(reason)),
        }
    }
}

/// The same words as for people: rustls shows the error of a verifier in this form, and clients
/// show what rustls shows.
impl fmt::Debug for CertificateRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl CertificateRefused {
    /// The code of the page that says what to do.
    pub const fn code(&self) -> Code {
        match self.why {
            Why::Outside(..) => Code::ServerCertificateExpired,
            Why::Stranger(_) | Why::OtherName(_) | Why::Purpose | Why::Other(_) => {
                Code::CertificateUntrusted
            }
        }
    }

    /// The refusal that caused `error`, if one did.
    pub fn of<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Self> {
        cause(error, |error| error.downcast_ref::<Self>())
    }
}

/// The first error in the chain of causes in which `wanted` finds something.
pub(crate) fn cause<'a, T>(
    error: &'a (dyn std::error::Error + 'static),
    wanted: impl Fn(&'a (dyn std::error::Error + 'static)) -> Option<T>,
) -> Option<T> {
    use rustls::{CertificateError, Error};
    /// More than any chain of causes.
    const DEPTH_MAX: usize = 16;
    let mut next = Some(error);
    for _ in 0..DEPTH_MAX {
        let error = next?;
        if let Some(found) = wanted(error) {
            return Some(found);
        }
        next = match (
            error.downcast_ref::<std::io::Error>(),
            error.downcast_ref::<Error>(),
        ) {
            // The `source` of an `io::Error` is that of the error inside it, and skips that error
            // itself.
            (Some(wrapper), _) => wrapper
                .get_ref()
                .map(|inner| inner as &(dyn std::error::Error + 'static)),
            (_, Some(Error::InvalidCertificate(CertificateError::Other(other)))) => {
                Some(other.0.as_ref() as &(dyn std::error::Error + 'static))
            }
            _ => error.source(),
        };
    }
    None
}

schemas::coded!(CertificateRefused);

/// The rest of a DER text.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    fn peek(&self) -> Option<u8> {
        self.0.first().copied()
    }

    /// The next element: its tag and its content.
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (tag, rest) = self.0.split_first()?;
        let (first, rest) = rest.split_first()?;
        let (length, rest) = match *first {
            short @ 0..=0x7f => (usize::from(short), rest),
            long @ 0x81..=0x84 => {
                let (digits, rest) = rest.split_at_checked(usize::from(long - 0x80))?;
                (
                    digits
                        .iter()
                        .fold(0, |length, digit| length << 8 | usize::from(*digit)),
                    rest,
                )
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((*tag, content))
    }

    /// The content of the next element, if it has this tag.
    fn take(&mut self, wanted: u8) -> Option<&'a [u8]> {
        self.next()
            .filter(|(tag, _)| *tag == wanted)
            .map(|(_, content)| content)
    }
}

/// The content of the extension with this name.
fn extension(extensions: &[u8], wanted: [u8; 3]) -> Option<&[u8]> {
    let mut list = Der(Der(extensions).take(SEQUENCE)?);
    while let Some((SEQUENCE, extension)) = list.next() {
        let mut extension = Der(extension);
        if extension.take(OBJECT_ID)? != wanted {
            continue;
        }
        let mut value = extension.next()?;
        if value.0 != OCTETS {
            // The flag `critical` stands in between.
            value = extension.next()?;
        }
        return Some(value.1);
    }
    None
}

/// The identifier of a key that stands under this tag.
fn identifier(content: &[u8], tag: u8) -> Option<String> {
    let found = Der(content).take(tag)?;
    (found.len() <= IDENTIFIER_BYTES_MAX).then(|| HEXLOWER.encode(found))
}

fn alternative_names(content: &[u8]) -> Option<Vec<String>> {
    let mut found = Der(Der(content).take(SEQUENCE)?);
    let mut names = Vec::new();
    while let Some((tag, name)) = found.next() {
        names.extend(alternative_name(tag, name));
        if names.len() == NAMES_MAX {
            break;
        }
    }
    Some(names)
}

/// The key of a `SubjectPublicKeyInfo`, if it is an Ed25519 key.
fn ed25519(info: &[u8]) -> Option<[u8; 32]> {
    let mut info = Der(info);
    let algorithm = Der(info.take(SEQUENCE)?).take(OBJECT_ID)?;
    // The first byte counts bits that are not used.
    let (0, key) = info
        .take(BITS)?
        .split_first()
        .map(|(unused, key)| (*unused, key))?
    else {
        return None;
    };
    (algorithm == ED25519).then(|| key.try_into().ok())?
}

fn alternative_name(tag: u8, name: &[u8]) -> Option<String> {
    match tag {
        DNS_NAME => Some(Shown(&String::from_utf8_lossy(name)).to_string()),
        ADDRESS if name.len() == 4 => <[u8; 4]>::try_from(name)
            .ok()
            .map(|octets| Ipv4Addr::from(octets).to_string()),
        ADDRESS => <[u8; 16]>::try_from(name)
            .ok()
            .map(|octets| Ipv6Addr::from(octets).to_string()),
        _ => None,
    }
}

/// The first part of a distinguished name that has this type.
fn part_of_name(subject: &[u8], wanted: [u8; 3]) -> Option<String> {
    let mut parts = Der(subject);
    while let Some(part) = parts.take(SET) {
        let mut pair = Der(Der(part).take(SEQUENCE)?);
        if pair.take(OBJECT_ID)? == wanted {
            return Some(Shown(&String::from_utf8_lossy(pair.next()?.1)).to_string());
        }
    }
    None
}

/// A time of X.509: always in UTC and with seconds; a year of two digits lies between 1950 and
/// 2049.
fn instant((tag, text): (u8, &[u8])) -> Option<UnixMillis> {
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let (year, rest) = text.split_at_checked(match tag {
        UTC_TIME => 2,
        GENERALIZED_TIME => 4,
        _ => return None,
    })?;
    if rest.len() != "MMDDhhmmss".len() {
        return None;
    }
    let year: i32 = year.parse().ok()?;
    let year = match tag {
        UTC_TIME if year < 50 => 2000 + year,
        UTC_TIME => 1900 + year,
        _ => year,
    };
    let mut pairs = rest
        .as_bytes()
        .chunks(2)
        .map(|pair| std::str::from_utf8(pair).ok()?.parse::<u8>().ok());
    let mut pair = || pairs.next().flatten();
    let (month, day) = (Month::try_from(pair()?).ok()?, pair()?);
    let at = Date::from_calendar_date(year, month, day)
        .ok()?
        .with_hms(pair()?, pair()?, pair()?)
        .ok()?;
    // A time before 1970 has long passed.
    Some(UnixMillis(
        u64::try_from(at.assume_utc().unix_timestamp())
            .unwrap_or(0)
            .saturating_mul(1000),
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rustls_pki_types::CertificateDer;
    use rustls_pki_types::pem::PemObject as _;

    use super::*;
    use crate::tls::{Authority, LEAF_DAYS};

    const NOW: UnixMillis = UnixMillis(1_700_000_000_000);

    fn der() -> CertificateDer<'static> {
        let (authority, _) = Authority::generate(NOW).expect("the generator works");
        let made = authority
            .certify(&["store.example".to_owned(), "10.1.2.3".to_owned()], NOW)
            .expect("good names");
        CertificateDer::from_pem_slice(made.certificate.as_bytes()).expect("a certificate")
    }

    #[test]
    fn a_certificate_says_whom_it_is_for_and_when() {
        let facts = Facts::of(&der()).expect("a certificate");
        assert_eq!(
            facts.names,
            ["localhost", "127.0.0.1", "::1", "store.example", "10.1.2.3"]
        );
        let days = |days: i64| UnixMillis(NOW.get() + days.unsigned_abs() * 86_400_000);
        assert_eq!(
            (facts.begins, facts.ends),
            (UnixMillis(NOW.get() - 3_600_000), days(LEAF_DAYS))
        );
        assert_eq!(facts.outside(NOW), None);
        assert_eq!(facts.outside(facts.begins), None, "from then on it holds");
        assert_eq!(facts.outside(facts.ends), Some(Outside::Ended(facts.ends)));
        assert_eq!(
            facts.outside(UnixMillis(0)),
            Some(Outside::NotBegun(facts.begins))
        );
        let (_, authority) = Authority::generate(NOW).expect("the generator works");
        let authority = CertificateDer::from_pem_slice(authority.certificate.as_bytes())
            .expect("a certificate");
        let facts = Facts::of(&authority).expect("a certificate");
        assert_eq!(facts.names, ["diloco private authority"]);
    }

    /// Clients of other crates show the error of a verifier in its debugging form.
    #[test]
    fn a_refusal_says_the_same_in_both_forms() {
        let refused = CertificateRefused {
            names: "store.example".to_owned(),
            why: Why::Stranger(Some("3f2a".to_owned())),
        };
        let said = "the certificate that the server shows, issued to store.example, is signed by \
                    no authority that is trusted here, but by 3f2a";
        assert_eq!(
            (refused.to_string(), format!("{refused:?}")),
            (said.to_owned(), said.to_owned())
        );
    }

    #[test]
    fn of_very_many_names_the_first_are_shown() {
        let (authority, _) = Authority::generate(NOW).expect("the generator works");
        let names: Vec<String> = (0..100)
            .map(|number| format!("host-{number}.example"))
            .collect();
        let made = authority.certify(&names, NOW).expect("good names");
        let der =
            CertificateDer::from_pem_slice(made.certificate.as_bytes()).expect("a certificate");
        let facts = Facts::of(&der).expect("a certificate");
        assert_eq!(facts.names.len(), NAMES_MAX, "{:?}", facts.names);
    }

    #[test]
    fn times_have_two_forms() {
        let at = |tag, text: &str| instant((tag, text.as_bytes())).map(|at| Time(at).to_string());
        assert_eq!(
            at(UTC_TIME, "231114221320Z").as_deref(),
            Some("2023-11-14T22:13:20Z")
        );
        assert_eq!(
            at(GENERALIZED_TIME, "20501231235959Z").as_deref(),
            Some("2050-12-31T23:59:59Z")
        );
        for odd in [
            "",
            "Z",
            "231314221320Z",
            "231114221320",
            "23111422132Z",
            "2311142213+0100",
            "231114+1+2+3Z",
        ] {
            assert_eq!(at(UTC_TIME, odd), None, "{odd}");
        }
        assert_eq!(at(OCTETS, "231114221320Z"), None);
        // Two digits: up to 2049, and from 1950 on.
        assert_eq!(
            at(UTC_TIME, "491231235959Z").as_deref(),
            Some("2049-12-31T23:59:59Z")
        );
        assert_eq!(
            at(UTC_TIME, "750102030405Z").as_deref(),
            Some("1975-01-02T03:04:05Z")
        );
        assert_ne!(
            at(UTC_TIME, "500101000000Z").as_deref(),
            Some("2050-01-01T00:00:00Z")
        );
    }

    #[test]
    fn fg_08_the_purposes_of_a_certificate_are_those_that_it_lists() {
        let other = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x03];
        let of = |listed: &[&[u8; 8]]| {
            let named = listed.iter();
            let names: Vec<u8> = named
                .flat_map(|name| [&[OBJECT_ID, 8], &name[..]].concat())
                .collect();
            let length = u8::try_from(names.len()).expect("it is short");
            let found = Purposes::of(&[&[SEQUENCE, length], &names[..]].concat());
            (found.server, found.client)
        };
        assert_eq!(of(&[]), (false, false));
        assert_eq!(of(&[other]), (false, false));
        assert_eq!(of(&[&SERVER_AUTH, other]), (true, false));
        assert_eq!(of(&[&CLIENT_AUTH, other]), (false, true));
        assert_eq!(of(&[&SERVER_AUTH, &CLIENT_AUTH]), (true, true));
        assert_eq!(of(&[&CLIENT_AUTH, &SERVER_AUTH]), (true, true));
    }

    proptest! {
        #[test]
        fn no_bytes_do_harm(bytes in prop::collection::vec(any::<u8>(), 0..200), at in 0_usize..600, with: u8) {
            let _nothing = Facts::of(&bytes);
            let mut der = der().to_vec();
            if let Some(byte) = der.get_mut(at) {
                *byte = with;
            }
            let _anything = Facts::of(&der);
            let _half = Facts::of(&der[..at.min(der.len())]);
        }
    }
}
