//! Signed documents as compact JWS (RFC 7515) with EdDSA (RFC 8037). The reader trusts nothing that
//! a token could lie about: the algorithm is fixed, the key must be a trusted one, and the type
//! must be the expected one.

use data_encoding::BASE64URL_NOPAD;
use schemas::limits::MESSAGE_BYTES_MAX;
use schemas::text::Time;
use schemas::{Code, Millis, PublicKey, UnixMillis};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::key::{KeyError, SIGNATURE_BYTES, SigningKey, verify_strict};
use crate::purpose::ManifestKey;
use crate::trust::TrustBundle;

/// Longest document that is read: it travels in a message, with space for other fields.
pub const COMPACT_BYTES_MAX: usize = MESSAGE_BYTES_MAX - 4096;

const ALGORITHM: &str = "EdDSA";

/// The header has exactly these fields; one with more, such as `crit` or an embedded key, is
/// refused.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: String,
    kid: String,
    typ: String,
}

/// Reasons to refuse a document. Nothing in a refused document was used.
#[derive(Debug, thiserror::Error)]
pub enum JwsError {
    /// It is longer than any honest document.
    #[error("signed document of {0} bytes, at most {COMPACT_BYTES_MAX} are accepted")]
    TooLong(usize),
    /// It does not have three parts of base64url, or its header or payload have another form.
    #[error("malformed signed document: {0}")]
    Malformed(&'static str),
    /// It names another algorithm; only one is supported.
    #[error("signed document names algorithm {0:?}, only {ALGORITHM} is accepted")]
    Algorithm(String),
    /// It is of another type, made for another purpose.
    #[error("signed document has type {found:?}, expected {expected:?}")]
    Type {
        /// The value in the document.
        found: String,
        /// The value that the reader wants.
        expected: String,
    },
    /// Its key is not in the trust bundle.
    #[error("signed document names key {0:?}, which the trust bundle does not list")]
    UnknownKey(String),
    /// The signature is wrong.
    #[error(transparent)]
    Signature(#[from] KeyError),
    /// The signature is right, the claims are not those of the expected type.
    #[error("claims of signed document: {0}")]
    Claims(serde_json::Error),
    /// Now is outside the window.
    #[error("signed document is valid from {} to {}, the clock says {}", Time(*from), Time(*until), Time(*now))]
    Window {
        /// Start.
        from: UnixMillis,
        /// End, exclusive.
        until: UnixMillis,
        /// The clock.
        now: UnixMillis,
    },
}

impl JwsError {
    /// The code of the page that says what to do.
    pub fn code(&self) -> Code {
        match self {
            Self::Signature(error) => error.code(),
            Self::UnknownKey(_) => Code::SignatureInvalid,
            Self::TooLong(_) | Self::Malformed(_) | Self::Algorithm(_) | Self::Type { .. } => {
                Code::ManifestInvalid
            }
            Self::Claims(_) | Self::Window { .. } => Code::ManifestInvalid,
        }
    }
}

schemas::coded!(JwsError);

impl ManifestKey {
    /// Signs `claims` as a document of type `typ`.
    ///
    /// # Errors
    /// The claims are no JSON, or make a document that is too long.
    pub fn sign_document<T: Serialize>(&self, typ: &str, claims: &T) -> Result<String, JwsError> {
        signed(self.public(), typ, claims, |input| self.sign(input))
    }
}

/// Signs `claims` as a document of type `typ` with a key of the vault.
pub(crate) fn sign<T: Serialize>(
    key: &SigningKey,
    typ: &str,
    claims: &T,
) -> Result<String, JwsError> {
    signed(key.public(), typ, claims, |input| key.sign(input))
}

fn signed<T: Serialize>(
    key: &PublicKey,
    typ: &str,
    claims: &T,
    sign: impl FnOnce(&[u8]) -> [u8; SIGNATURE_BYTES],
) -> Result<String, JwsError> {
    let header = Header {
        alg: ALGORITHM.into(),
        kid: key.to_string(),
        typ: typ.into(),
    };
    let header = serde_json::to_vec(&header).expect("three strings are JSON");
    let claims = serde_json::to_vec(claims).map_err(JwsError::Claims)?;
    let input = format!(
        "{}.{}",
        BASE64URL_NOPAD.encode(&header),
        BASE64URL_NOPAD.encode(&claims)
    );
    let signature = sign(input.as_bytes());
    let compact = format!("{input}.{}", BASE64URL_NOPAD.encode(&signature));
    if compact.len() > COMPACT_BYTES_MAX {
        Err(JwsError::TooLong(compact.len()))
    } else {
        Ok(compact)
    }
}

/// Checks a document of type `typ` and returns its claims. The caller checks the window, with
/// [`check_window`], and everything in the claims.
///
/// # Errors
/// In this order: length, form, algorithm, type, key, signature, claims.
pub fn verify<T: DeserializeOwned>(
    compact: &str,
    typ: &str,
    trust: &TrustBundle,
) -> Result<T, JwsError> {
    verify_by(compact, typ, |named| trust.manifest_key(named))
}

/// [`verify`], with the key that `trusted` gives for the one that the document names.
pub(crate) fn verify_by<'a, T: DeserializeOwned>(
    compact: &str,
    typ: &str,
    trusted: impl FnOnce(&str) -> Option<&'a PublicKey>,
) -> Result<T, JwsError> {
    if compact.len() > COMPACT_BYTES_MAX {
        return Err(JwsError::TooLong(compact.len()));
    }
    let malformed = JwsError::Malformed;
    let (input, signature) = compact
        .rsplit_once('.')
        .ok_or(malformed("expected three parts"))?;
    let (header, claims) = input
        .split_once('.')
        .ok_or(malformed("expected three parts"))?;
    let decode = |part: &str| BASE64URL_NOPAD.decode(part.as_bytes());
    let header = decode(header).map_err(|_| malformed("header is not base64url"))?;
    let signature = decode(signature).map_err(|_| malformed("signature is not base64url"))?;
    let header: Header =
        serde_json::from_slice(&header).map_err(|_| malformed("header has other fields"))?;
    let shown = |text: String| text.chars().take(64).collect::<String>();
    if header.alg != ALGORITHM {
        return Err(JwsError::Algorithm(shown(header.alg)));
    }
    if header.typ != typ {
        return Err(JwsError::Type {
            found: shown(header.typ),
            expected: typ.into(),
        });
    }
    let Some(key) = trusted(&header.kid) else {
        return Err(JwsError::UnknownKey(shown(header.kid)));
    };
    verify_strict(key, input.as_bytes(), &signature)?;
    // A full stop inside the middle part is no base64url, so there are exactly three parts.
    let claims = decode(claims).map_err(|_| malformed("claims are not base64url"))?;
    serde_json::from_slice(&claims).map_err(JwsError::Claims)
}

/// Checks that `now` lies in `[nbf, exp)`, both Unix seconds as in RFC 7519, widened by `skew` on
/// both sides for clocks that differ.
///
/// # Errors
/// It does not.
pub fn check_window(nbf: u64, exp: u64, now: UnixMillis, skew: Millis) -> Result<(), JwsError> {
    let from = UnixMillis(nbf.saturating_mul(1000));
    let until = UnixMillis(exp.saturating_mul(1000));
    if now.after(skew) >= from && now < until.after(skew) && from < until {
        return Ok(());
    }
    Err(JwsError::Window { from, until, now })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use schemas::V;
    use serde_json::{Value, json};

    use super::*;
    use crate::key::{KeyKind, SigningKey};
    use crate::purpose::AuditKey;

    const TYPE: &str = "test+jwt";

    fn trust(keys: &[&ManifestKey]) -> TrustBundle {
        TrustBundle {
            v: V,
            domain: SigningKey::generate(KeyKind::Operator).public().clone(),
            tenants: vec![
                SigningKey::generate(KeyKind::Account)
                    .public()
                    .as_str()
                    .parse()
                    .expect("an account's id"),
            ],
            manifest_keys: keys.iter().map(|key| key.public().clone()).collect(),
            audit_keys: vec![AuditKey::generate().public().clone()],
            ended_audit_keys: vec![],
            head_keys: vec![],
            sentry_keys: vec![],
            log_manifest: None,
            ca: "ca.pem".into(),
        }
    }

    /// A document with any header, signed by a trusted key: a careless reader would accept it.
    fn forge(key: &ManifestKey, header: &Value) -> String {
        let encode = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
        let input = format!("{}.{}", encode(header), encode(&json!({"a": 1})));
        format!(
            "{input}.{}",
            BASE64URL_NOPAD.encode(&key.sign(input.as_bytes()))
        )
    }

    #[test]
    fn documents_have_a_longest_length_when_made_and_when_read() {
        let key = ManifestKey::generate();
        let made = key.sign_document(TYPE, &json!({"a": "x".repeat(COMPACT_BYTES_MAX)}));
        assert!(matches!(made, Err(JwsError::TooLong(_))));
        let long = "x".repeat(COMPACT_BYTES_MAX + 1);
        let read = verify::<Value>(&long, TYPE, &trust(&[&key]));
        assert!(
            matches!(read, Err(JwsError::TooLong(length)) if length == COMPACT_BYTES_MAX + 1),
            "{read:?}"
        );
        assert!(matches!(
            verify::<Value>(&long[1..], TYPE, &trust(&[&key])),
            Err(JwsError::Malformed(_))
        ));
    }

    #[test]
    fn the_longest_document_is_made_and_read() {
        let key = ManifestKey::generate();
        let trust = trust(&[&key]);
        // Base64 has no text of every length: three types in turn reach each.
        let made = ["t", "ty", "typ"].iter().find_map(|typ| {
            let sign = |bytes: usize| key.sign_document(typ, &json!("x".repeat(bytes)));
            let empty = sign(0).expect("small claims").len();
            let room = (COMPACT_BYTES_MAX - empty) / 4 * 3;
            let fits = |bytes: usize| sign(bytes).ok().map(|compact| (*typ, compact));
            (room..room + 4)
                .filter_map(fits)
                .find(|(_, compact)| compact.len() == COMPACT_BYTES_MAX)
        });
        let (typ, compact) = made.expect("one of the types gives exactly this length");
        assert!(verify::<Value>(&compact, typ, &trust).is_ok());
    }

    #[test]
    fn tl_13_both_keys_of_a_rotation_verify() {
        let (old, new) = (ManifestKey::generate(), ManifestKey::generate());
        let trust = trust(&[&old, &new]);
        for key in [&old, &new] {
            let compact = key
                .sign_document(TYPE, &json!({"a": 1}))
                .expect("small claims");
            assert_eq!(
                verify::<Value>(&compact, TYPE, &trust).expect("a trusted key"),
                json!({"a": 1})
            );
        }
        let stranger = ManifestKey::generate()
            .sign_document(TYPE, &json!({"a": 1}))
            .expect("small claims");
        assert!(matches!(
            verify::<Value>(&stranger, TYPE, &trust),
            Err(JwsError::UnknownKey(_))
        ));
    }

    #[test]
    fn tl_24_the_header_decides_nothing() {
        let (key, other) = (ManifestKey::generate(), ManifestKey::generate());
        let trust = trust(&[&key, &other]);
        let kid = key.public().as_str();
        assert!(
            verify::<Value>(
                &forge(&key, &json!({"alg": "EdDSA", "kid": kid, "typ": TYPE})),
                TYPE,
                &trust
            )
            .is_ok()
        );
        for alg in [
            "none",
            "None",
            "HS256",
            "ES256",
            "ed25519-nkey",
            "eddsa",
            "",
        ] {
            let forged = forge(&key, &json!({"alg": alg, "kid": kid, "typ": TYPE}));
            assert!(
                matches!(
                    verify::<Value>(&forged, TYPE, &trust),
                    Err(JwsError::Algorithm(_))
                ),
                "{alg}"
            );
        }
        let typed = forge(&key, &json!({"alg": "EdDSA", "kid": kid, "typ": "JWT"}));
        assert!(matches!(
            verify::<Value>(&typed, TYPE, &trust),
            Err(JwsError::Type { .. })
        ));
        let swapped = forge(
            &key,
            &json!({"alg": "EdDSA", "kid": other.public().as_str(), "typ": TYPE}),
        );
        assert!(matches!(
            verify::<Value>(&swapped, TYPE, &trust),
            Err(JwsError::Signature(_))
        ));
        for extra in ["crit", "jwk", "jku", "x5c", "b64"] {
            let forged = forge(
                &key,
                &json!({"alg": "EdDSA", "kid": kid, "typ": TYPE, extra: []}),
            );
            assert!(
                matches!(
                    verify::<Value>(&forged, TYPE, &trust),
                    Err(JwsError::Malformed(_))
                ),
                "{extra}"
            );
        }
    }

    #[test]
    fn tl_09_odd_forms_are_refused() {
        let key = ManifestKey::generate();
        let trust = trust(&[&key]);
        let good = key
            .sign_document(TYPE, &json!({"a": 1}))
            .expect("small claims");
        let unsigned = format!("{}.", good.rsplit_once('.').expect("three parts").0);
        let long = "a".repeat(COMPACT_BYTES_MAX + 1);
        for bad in [
            "",
            ".",
            "..",
            "a.b",
            "é.é.é",
            &format!("{good}="),
            &format!("{good}."),
            &format!(" {good}"),
            &unsigned,
            &long,
        ] {
            assert!(
                verify::<Value>(bad, TYPE, &trust).is_err(),
                "{}",
                &bad[..bad.len().min(20)]
            );
        }
        #[derive(Debug, Deserialize)]
        struct Other {
            #[expect(dead_code, reason = "only its absence from the claims matters")]
            b: u8,
        }
        assert!(matches!(
            verify::<Other>(&good, TYPE, &trust),
            Err(JwsError::Claims(_))
        ));
    }

    #[test]
    fn windows_are_half_open_and_widened_by_skew() {
        let check = |now, skew| check_window(10, 20, UnixMillis(now), Millis(skew)).is_ok();
        assert!(check(10_000, 0) && check(19_999, 0));
        assert!(!check(9_999, 0) && !check(20_000, 0));
        assert!(check(9_000, 1_000) && check(20_999, 1_000));
        assert!(!check(8_999, 1_000) && !check(21_000, 1_000));
        assert!(
            check_window(20, 10, UnixMillis(15_000), Millis(60_000)).is_err(),
            "never a window that ends first"
        );
        assert!(
            check_window(10, 10, UnixMillis(10_000), Millis(1_000)).is_err(),
            "never one that ends as it begins, however clocks differ"
        );
        assert!(check_window(0, u64::MAX, UnixMillis(1), Millis(u64::MAX)).is_ok());
    }

    proptest! {
        #[test]
        fn any_changed_character_is_noticed(at in any::<prop::sample::Index>(), to in "[A-Za-z0-9_.-]") {
            let key = ManifestKey::generate();
            let trust = trust(&[&key]);
            let good = key.sign_document(TYPE, &json!({"run": "demo", "exp": 1234})).expect("small claims");
            let mut bytes = good.clone().into_bytes();
            let at = at.index(bytes.len());
            bytes[at] = to.as_bytes()[0];
            let changed = String::from_utf8(bytes).expect("still ASCII");
            prop_assume!(changed != good);
            prop_assert!(verify::<Value>(&changed, TYPE, &trust).is_err());
        }
    }
}
