//! Minting and checking of NATS tokens (JWTs signed with nkeys): operator, account, user, and the
//! chain between them.

use data_encoding::{BASE32_NOPAD, BASE64URL_NOPAD};
use schemas::text::Time;
use schemas::{Code, PublicKey, UnixMillis};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha512_256};

use crate::claims::{AccountClaims, AccountKey, Claims, OperatorClaims, UserClaims};
use crate::key::{KeyError, KeyKind, SigningKey, parse_public, verify_strict};

/// Longest user token: it travels in CONNECT, which the server cuts at 4096 bytes together with the
/// rest of that line.
pub const USER_BYTES_MAX: usize = 3 << 10;
/// Longest token of any kind: accounts with long revocation lists stay below the server's largest
/// message.
pub const TOKEN_BYTES_MAX: usize = 1 << 20;
/// Longest name, tag key or tag value.
pub const LABEL_BYTES_MAX: usize = 64;

const ALGORITHM: &str = "ed25519-nkey";
const TYPE: &str = "JWT";
/// The version of the claims that servers since 2.2 read.
const VERSION: u8 = 2;

/// Describes a window to which a time does not belong.
pub(crate) fn window(
    not_before: Option<UnixMillis>,
    expires: Option<UnixMillis>,
    now: UnixMillis,
) -> String {
    match (expires, not_before) {
        (Some(end), _) if now >= end => format!("ended at {}", Time(end)),
        (_, Some(begin)) => format!("is not valid before {}", Time(begin)),
        (_, None) => "is valid".to_owned(),
    }
}

/// The identity that a token names, and its period of validity.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// A name: letters, digits, `_` and `-`.
    pub name: &'a str,
    /// The key that the token vouches for.
    pub key: &'a PublicKey,
    /// Start of its validity.
    pub not_before: Option<UnixMillis>,
    /// End of its validity, exclusive.
    pub expires: Option<UnixMillis>,
}

/// A token whose form and signature were checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Jwt<C> {
    /// The name it gives.
    pub name: String,
    /// The key that it vouches for.
    pub subject: PublicKey,
    /// The key that signed it.
    pub issuer: PublicKey,
    /// The time of issue.
    pub issued: UnixMillis,
    /// Start of its validity.
    pub not_before: Option<UnixMillis>,
    /// End of its validity, exclusive.
    pub expires: Option<UnixMillis>,
    /// The content.
    pub claims: C,
}

/// A user token with the keys that vouch for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Chain {
    /// The user.
    pub user: Jwt<UserClaims>,
    /// Its account's key.
    pub account: PublicKey,
    /// Its role, if a role's key signed it.
    pub role: Option<String>,
}

/// Reasons why a token is not minted, or is refused.
#[derive(Debug, thiserror::Error)]
pub enum JwtError {
    /// Longer than a server takes.
    #[error("token of {bytes} bytes, at most {max} are accepted")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// The bound.
        max: usize,
    },
    /// Not a token of the expected kind.
    #[error("not a token of kind {kind:?}: {reason}")]
    Malformed {
        /// The expected kind.
        kind: KeyKind,
        /// The fault.
        reason: String,
    },
    /// A name or tag with characters that would become wildcards in a role's template.
    #[error(
        "{text:?} cannot be a name or tag; use 1 to {LABEL_BYTES_MAX} of A-Z, a-z, 0-9, _ and - (tags: key:value)"
    )]
    Label {
        /// The given text, shortened.
        text: String,
    },
    /// The issuer may not sign this.
    #[error("token of {subject} is signed by {issuer}, which {reason}")]
    Issuer {
        /// The token's subject.
        subject: PublicKey,
        /// The key that signed it.
        issuer: PublicKey,
        /// The reason why this key may not sign it.
        reason: &'static str,
    },
    /// A key or the signature.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// It has expired, or is not valid yet.
    #[error("token of {subject} {}; it is {} now", window(*not_before, *expires, *now), Time(*now))]
    Window {
        /// The token's subject.
        subject: PublicKey,
        /// The clock.
        now: UnixMillis,
        /// Start.
        not_before: Option<UnixMillis>,
        /// End, exclusive.
        expires: Option<UnixMillis>,
    },
    /// Its account has revoked it.
    #[error("token of {0} was revoked")]
    Revoked(PublicKey),
}

#[derive(Serialize, Deserialize)]
struct Header {
    typ: String,
    alg: String,
}

#[derive(Serialize, Deserialize)]
struct Wire<C> {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    exp: Option<u64>,
    iat: u64,
    iss: PublicKey,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    jti: String,
    #[serde(default)]
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nbf: Option<u64>,
    sub: PublicKey,
    nats: Body<C>,
}

#[derive(Serialize, Deserialize)]
struct Body<C> {
    #[serde(flatten)]
    claims: C,
    #[serde(rename = "type")]
    kind: KeyKind,
    version: u8,
}

impl JwtError {
    /// The code of the page that says what to do.
    pub fn code(&self) -> Code {
        match self {
            Self::TooLong { .. } | Self::Malformed { .. } => Code::CredentialMalformed,
            Self::Label { .. } => Code::ConfigInvalid,
            Self::Issuer { .. } => Code::SignatureInvalid,
            Self::Key(error) => error.code(),
            Self::Window { .. } | Self::Revoked(_) => Code::CredentialExpired,
        }
    }
}

schemas::coded!(JwtError);

/// Mints a token.
///
/// # Errors
/// A name or tag that templates must not see, keys of the wrong kind, or a user token too long to
/// connect with.
pub fn mint<C: Claims>(
    subject: &Subject<'_>,
    claims: C,
    signer: &SigningKey,
    now: UnixMillis,
) -> Result<String, JwtError> {
    check_label(subject.name)?;
    parse_public(subject.key.as_str(), C::KIND)?;
    if signer.kind() != C::ISSUER {
        return Err(issuer_error(
            subject.key,
            signer.public(),
            "is of the wrong kind",
        ));
    }
    let mut wire = Wire {
        exp: subject.expires.map(seconds),
        iat: seconds(now),
        iss: signer.public().clone(),
        jti: String::new(),
        name: subject.name.to_owned(),
        nbf: subject.not_before.map(seconds),
        sub: subject.key.clone(),
        nats: Body {
            claims,
            kind: C::KIND,
            version: VERSION,
        },
    };
    check_labels(&wire)?;
    wire.jti = BASE32_NOPAD.encode(&Sha512_256::digest(json(&wire)));
    let body = json(&wire);
    let header = json(&Header {
        typ: TYPE.into(),
        alg: ALGORITHM.into(),
    });
    let input = format!(
        "{}.{}",
        BASE64URL_NOPAD.encode(&header),
        BASE64URL_NOPAD.encode(&body)
    );
    let token = format!(
        "{input}.{}",
        BASE64URL_NOPAD.encode(&signer.sign(input.as_bytes()))
    );
    check_length::<C>(&token)?;
    Ok(token)
}

/// Mints a token, unless `earlier` says exactly the same: then this is `earlier`, with the time of
/// its issue. A broker that reads its configuration again takes a token of other bytes for a
/// change, and a change of the operator's token for one that it cannot make while it runs.
///
/// A token that replaces another was issued later than that one, by at least a second and whatever
/// the clock says: a broker keeps the newer of two tokens when it starts. It was also issued later
/// than `above`.
///
/// # Errors
/// As [`mint`].
pub(crate) fn mint_or_keep<C: Claims + Clone>(
    earlier: Option<&str>,
    subject: &Subject<'_>,
    claims: C,
    signer: &SigningKey,
    above: Option<UnixMillis>,
    now: UnixMillis,
) -> Result<String, JwtError> {
    let mut issued = above.map_or(now, |above| now.max(next_second(above)));
    if let Some(earlier) = earlier
        && let Ok(old) = verify_signature::<C>(earlier)
    {
        // A signature depends on nothing but the key and the text. Every byte is compared, so that
        // a token with more in it than this release reads is not kept.
        let again = mint(subject, claims.clone(), signer, old.issued)?;
        if again == earlier && above.is_none_or(|above| old.issued > above) {
            return Ok(again);
        }
        issued = issued.max(next_second(old.issued));
    }
    mint(subject, claims, signer, issued)
}

/// The first moment that counts as later than `at`: tokens count whole seconds.
pub(crate) const fn next_second(at: UnixMillis) -> UnixMillis {
    UnixMillis(
        at.get()
            .saturating_div(1000)
            .saturating_add(1)
            .saturating_mul(1000),
    )
}

/// Checks a token's form, its signature by the key it names, and that `now` lies in its window.
/// [`verify_chain`] checks that this key may sign it.
///
/// # Errors
/// Any of these fails.
pub fn verify<C: Claims>(token: &str, now: UnixMillis) -> Result<Jwt<C>, JwtError> {
    let jwt = verify_signature::<C>(token)?;
    jwt.check_window(now)?;
    Ok(jwt)
}

/// Checks a user's token up to the operator that `domain` names.
///
/// # Errors
/// A token fails its own checks, is signed by a key that may not, or the user's is revoked.
pub fn verify_chain(
    user: &str,
    account: &str,
    operator: &str,
    domain: &PublicKey,
    now: UnixMillis,
) -> Result<Chain, JwtError> {
    let operator = verify::<OperatorClaims>(operator, now)?;
    if operator.subject != *domain || operator.issuer != *domain {
        return Err(issuer_error(
            &operator.subject,
            &operator.issuer,
            "is not the operator of this domain",
        ));
    }
    let account = verify::<AccountClaims>(account, now)?;
    let by_identity = account.issuer == *domain && !operator.claims.strict_signing_key_usage;
    if !by_identity && !operator.claims.signing_keys.contains(&account.issuer) {
        return Err(issuer_error(
            &account.subject,
            &account.issuer,
            "the operator does not sign accounts with",
        ));
    }
    let user = verify::<UserClaims>(user, now)?;
    let role = check_user(&user, &account, operator.claims.strict_signing_key_usage)?;
    Ok(Chain {
        user,
        account: account.subject,
        role,
    })
}

/// Checks that a text can be a user's name, a tag's key or a tag's value. Templates paste these
/// into subjects unchanged, and there `*`, `>` and `.` would widen a user's rights.
///
/// # Errors
/// The text has other characters, is empty, or is too long.
pub fn check_label(text: &str) -> Result<(), JwtError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if !text.is_empty() && text.len() <= LABEL_BYTES_MAX && text.chars().all(allowed) {
        return Ok(());
    }
    Err(JwtError::Label {
        text: text.chars().take(LABEL_BYTES_MAX).collect(),
    })
}

impl<C> Jwt<C> {
    /// Checks that `now` lies in the token's window.
    ///
    /// # Errors
    /// It does not.
    pub fn check_window(&self, now: UnixMillis) -> Result<(), JwtError> {
        let begun = self.not_before.is_none_or(|start| now >= start);
        let over = self.expires.is_some_and(|end| now >= end);
        if begun && !over {
            return Ok(());
        }
        let Self {
            not_before,
            expires,
            ..
        } = *self;
        Err(JwtError::Window {
            subject: self.subject.clone(),
            now,
            not_before,
            expires,
        })
    }
}

/// Like [`verify`], but without a check of the time, which the server is about to check itself.
pub(crate) fn verify_signature<C: Claims>(token: &str) -> Result<Jwt<C>, JwtError> {
    check_length::<C>(token)?;
    let malformed = |reason: &str| JwtError::Malformed {
        kind: C::KIND,
        reason: reason.to_owned(),
    };
    let parts: Vec<&str> = token.splitn(4, '.').collect();
    let [header, body, signature] = parts[..] else {
        return Err(malformed("expected three parts"));
    };
    let input = &token[..header.len() + 1 + body.len()];
    let decode = |part: &str| {
        BASE64URL_NOPAD
            .decode(part.as_bytes())
            .map_err(|_| malformed("not base64url"))
    };
    let (header, body, signature) = (decode(header)?, decode(body)?, decode(signature)?);
    let header: Header =
        serde_json::from_slice(&header).map_err(|error| malformed(&error.to_string()))?;
    if header.alg != ALGORITHM || header.typ != TYPE {
        return Err(malformed("its header names another type or algorithm"));
    }
    let wire: Wire<C> =
        serde_json::from_slice(&body).map_err(|error| malformed(&error.to_string()))?;
    if wire.nats.kind != C::KIND || wire.nats.version != VERSION {
        return Err(malformed("its claims are of another kind or version"));
    }
    parse_public(wire.iss.as_str(), C::ISSUER)?;
    parse_public(wire.sub.as_str(), C::KIND)?;
    verify_strict(&wire.iss, input.as_bytes(), &signature)?;
    check_labels(&wire)?;
    let millis = |seconds: u64| UnixMillis(seconds.saturating_mul(1000));
    Ok(Jwt {
        name: wire.name,
        subject: wire.sub,
        issuer: wire.iss,
        issued: millis(wire.iat),
        not_before: wire.nbf.filter(|at| *at > 0).map(millis),
        expires: wire.exp.filter(|at| *at > 0).map(millis),
        claims: wire.nats.claims,
    })
}

/// Checks that the signer may sign this user. Returns the role, if a role's key signed.
fn check_user(
    user: &Jwt<UserClaims>,
    account: &Jwt<AccountClaims>,
    strict: bool,
) -> Result<Option<String>, JwtError> {
    let refused = |reason| Err(issuer_error(&user.subject, &user.issuer, reason));
    let named = user
        .claims
        .issuer_account
        .as_ref()
        .map_or(user.issuer.as_str(), |account| account.as_str());
    if named != account.subject.as_str() {
        return refused("signs for another account");
    }
    let issued = user.issued;
    let revoked = [user.subject.as_str(), "*"]
        .into_iter()
        .filter_map(|key| account.claims.revocations.get(key));
    if revoked
        .into_iter()
        .any(|until| issued <= UnixMillis(until.saturating_mul(1000)))
    {
        return Err(JwtError::Revoked(user.subject.clone()));
    }
    if user.issuer == account.subject && !strict {
        return Ok(None);
    }
    match account
        .claims
        .signing_keys
        .iter()
        .find(|entry| *entry.key() == user.issuer)
    {
        None => refused("the account does not sign users with"),
        Some(AccountKey::Plain(_)) => Ok(None),
        Some(AccountKey::Scoped(_)) if user.claims.has_rights() => {
            refused("gives a role, beside rights of its own")
        }
        Some(AccountKey::Scoped(scope)) => Ok(Some(scope.role.clone())),
    }
}

/// Checks the names and tags of users, which templates paste.
fn check_labels<C: Claims>(wire: &Wire<C>) -> Result<(), JwtError> {
    let Some(user) = wire.nats.claims.as_user() else {
        return Ok(());
    };
    check_label(&wire.name)?;
    if user.bearer_token {
        return Err(JwtError::Malformed {
            kind: C::KIND,
            reason: "bearer tokens are not accepted".into(),
        });
    }
    for tag in &user.tags {
        let (key, value) = tag.split_once(':').ok_or_else(|| JwtError::Label {
            text: tag.chars().take(64).collect(),
        })?;
        check_label(key)?;
        check_label(value)?;
    }
    Ok(())
}

fn check_length<C: Claims>(token: &str) -> Result<(), JwtError> {
    let max = if C::KIND == KeyKind::User {
        USER_BYTES_MAX
    } else {
        TOKEN_BYTES_MAX
    };
    if token.len() > max {
        Err(JwtError::TooLong {
            bytes: token.len(),
            max,
        })
    } else {
        Ok(())
    }
}

fn issuer_error(subject: &PublicKey, issuer: &PublicKey, reason: &'static str) -> JwtError {
    JwtError::Issuer {
        subject: subject.clone(),
        issuer: issuer.clone(),
        reason,
    }
}

fn seconds(at: UnixMillis) -> u64 {
    at.get() / 1000
}

fn json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("claims are structs of text and numbers")
}
