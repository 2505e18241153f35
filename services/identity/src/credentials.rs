//! Credentials files: a user token and the private key that it vouches for, in the text form that
//! NATS tools use.

use std::fmt;
use std::path::{Path, PathBuf};

use schemas::text::Time;
use schemas::{Code, PublicKey, UnixMillis};
use zeroize::Zeroizing;

use crate::claims::UserClaims;
use crate::jwt::{Jwt, JwtError, verify_signature, window};
use crate::key::KeyError;
use crate::purpose::ConnectionKey;
use crate::revocation::MARGIN;
use crate::secret::{FileError, Seed, read_secret, replace_private, write_private};

const JWT: Block = Block {
    begin: "-----BEGIN NATS USER JWT-----",
    end: "------END NATS USER JWT------",
};
const SEED: Block = Block {
    begin: "-----BEGIN USER NKEY SEED-----",
    end: "------END USER NKEY SEED------",
};

/// Credentials to connect with: a token and its key.
pub struct Credentials {
    jwt: String,
    token: Jwt<UserClaims>,
    key: ConnectionKey,
    /// The file that they were read from.
    file: Option<PathBuf>,
}

/// Reasons why credentials cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The text has other blocks than one token and one key.
    #[error("credentials: {0}")]
    Malformed(&'static str),
    /// One of the two is absent.
    #[error("credentials hold {present} but no {absent}")]
    Half {
        /// The part that is there.
        present: &'static str,
        /// The part that is missing.
        absent: &'static str,
    },
    /// The token.
    #[error("token in credentials: {0}")]
    Token(#[from] JwtError),
    /// The token has expired, or is not valid yet.
    #[error("the credential of {name} in {file} {}; it is {} now", window(*not_before, *expires, *now), Time(*now))]
    Outside {
        /// The file.
        file: String,
        /// The name that the token gives.
        name: String,
        /// Start.
        not_before: Option<UnixMillis>,
        /// End, exclusive.
        expires: Option<UnixMillis>,
        /// The clock.
        now: UnixMillis,
    },
    /// A new token gives something else than the old one.
    #[error("the new token of {name} {reason}")]
    Otherwise {
        /// The name that the old token gives.
        name: String,
        /// The difference.
        reason: &'static str,
    },
    /// The key.
    #[error("key in credentials: {0}")]
    Key(#[from] KeyError),
    /// Token and key do not belong together.
    #[error("credentials hold a token of {token} and a key of {key}")]
    Mismatch {
        /// The key that the token names.
        token: PublicKey,
        /// The public half of the key that is held.
        key: PublicKey,
    },
}

impl CredentialsError {
    /// The code of the page that says what to do.
    pub fn code(&self) -> Code {
        match self {
            Self::File(error) => error.code(),
            Self::Malformed(_) | Self::Mismatch { .. } | Self::Otherwise { .. } => {
                Code::CredentialMalformed
            }
            Self::Half { .. } => Code::CredentialHalf,
            Self::Outside { .. } => Code::CredentialExpired,
            Self::Token(error) => error.code(),
            Self::Key(error) => error.code(),
        }
    }
}

schemas::coded!(CredentialsError);

/// A part of the file between two marker lines.
#[derive(Clone, Copy)]
struct Block {
    begin: &'static str,
    end: &'static str,
}

impl Credentials {
    /// Combines a token and its key.
    ///
    /// # Errors
    /// The token does not verify, or vouches for another key.
    pub fn new(jwt: String, key: ConnectionKey) -> Result<Self, CredentialsError> {
        let token = verify_signature::<UserClaims>(&jwt)?;
        if token.subject != *key.public() {
            return Err(CredentialsError::Mismatch {
                token: token.subject,
                key: key.public().clone(),
            });
        }
        Ok(Self {
            jwt,
            token,
            key,
            file: None,
        })
    }

    /// Reads the text of a credentials file. [`Credentials::check`] checks the token's period of
    /// validity.
    ///
    /// # Errors
    /// A part is missing or doubled, does not parse, or the two do not belong together.
    pub fn parse(text: &str) -> Result<Self, CredentialsError> {
        let (jwt, seed) = split(text)?;
        let (token, key) = ("a token", "private key");
        let (jwt, seed) = match (jwt, seed) {
            (Some(jwt), Some(seed)) => (jwt, seed),
            (Some(_), None) => {
                return Err(CredentialsError::Half {
                    present: token,
                    absent: key,
                });
            }
            (None, Some(_)) => {
                return Err(CredentialsError::Half {
                    present: "a private key",
                    absent: "token",
                });
            }
            (None, None) => {
                return Err(CredentialsError::Malformed(
                    "neither a token nor a key found",
                ));
            }
        };
        Self::new(
            jwt.to_owned(),
            ConnectionKey::from_seed(&Seed::new(seed.to_owned()))?,
        )
    }

    /// Reads a credentials file.
    ///
    /// # Errors
    /// As [`Credentials::parse`]; or others than its owner may read the file.
    pub fn read(path: &Path) -> Result<Self, CredentialsError> {
        Ok(Self {
            file: Some(path.to_owned()),
            ..Self::parse(&read_secret(path)?)?
        })
    }

    /// Checks that the token is valid now.
    ///
    /// # Errors
    /// It has expired or has not begun.
    pub fn check(&self, now: UnixMillis) -> Result<(), CredentialsError> {
        if self.token.check_window(now).is_ok() {
            return Ok(());
        }
        let file = self
            .file
            .as_ref()
            .map_or_else(|| "memory".to_owned(), |file| file.display().to_string());
        let Jwt {
            name,
            not_before,
            expires,
            ..
        } = &self.token;
        Err(CredentialsError::Outside {
            file,
            name: name.clone(),
            not_before: *not_before,
            expires: *expires,
            now,
        })
    }

    /// The same credentials with a new token.
    ///
    /// # Errors
    /// The token does not verify, is for another key, name, account, run or kind of rights, or does
    /// not end later.
    pub fn renewed(&self, jwt: String) -> Result<Self, CredentialsError> {
        self.with_token(jwt, |old, token| {
            let later = token.expires.is_some() && token.expires > old.expires;
            (!later).then_some("does not end later")
        })
    }

    /// The same credentials with a token that was issued by hand. It may end sooner than the
    /// present one, which may be void.
    ///
    /// # Errors
    /// The token does not verify, is for another key, name, account, run or kind of rights, or was
    /// issued before the present one or in the future: no later token could replace that one.
    pub fn reissued(&self, jwt: String, now: UnixMillis) -> Result<Self, CredentialsError> {
        self.with_token(jwt, |old, token| {
            if token.issued > now.after(MARGIN) {
                return Some("was issued in the future; compare the clocks of both machines");
            }
            let earlier = token.issued < old.issued;
            earlier.then_some("was issued before the one that is there")
        })
    }

    /// The reason why `new` are not the credentials of the same holder with another key; none if
    /// they are.
    pub(crate) fn unlike(&self, new: &Self) -> Option<&'static str> {
        let (old, token) = (&self.token, &new.token);
        if new.public() == self.public() {
            Some("they have the same key")
        } else if token.name != old.name {
            Some("they have another name")
        } else if token.claims != old.claims {
            Some("they are for another account, run or rights")
        } else {
            None
        }
    }

    fn with_token(
        &self,
        jwt: String,
        fault: impl FnOnce(&Jwt<UserClaims>, &Jwt<UserClaims>) -> Option<&'static str>,
    ) -> Result<Self, CredentialsError> {
        let new = Self::new(jwt, self.key.clone())?;
        let (old, token) = (&self.token, &new.token);
        let reason = if token.name != old.name {
            Some("has another name")
        } else if token.claims != old.claims {
            Some("is for another account, run or rights")
        } else {
            fault(old, token)
        };
        match reason {
            None => Ok(Self {
                file: self.file.clone(),
                ..new
            }),
            Some(reason) => Err(CredentialsError::Otherwise {
                name: old.name.clone(),
                reason,
            }),
        }
    }

    /// Writes a credentials file for its owner alone.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), CredentialsError> {
        Ok(write_private(path, self.text().as_bytes())?)
    }

    /// Writes like [`Credentials::write`], but only into a folder that is there.
    pub(crate) fn replace(&self, path: &Path) -> Result<(), CredentialsError> {
        Ok(replace_private(path, self.text().as_bytes())?)
    }

    /// The text of its file.
    pub(crate) fn text(&self) -> Zeroizing<String> {
        let seed = self.key.seed();
        Zeroizing::new(format!(
            "{}\n{}\n{}\n\n{}\n{}\n{}\n",
            JWT.begin,
            self.jwt,
            JWT.end,
            SEED.begin,
            seed.expose(),
            SEED.end
        ))
    }

    /// The token.
    pub fn token(&self) -> &Jwt<UserClaims> {
        &self.token
    }

    /// The public key of the user who connects with them.
    pub fn public(&self) -> &PublicKey {
        self.key.public()
    }

    /// The token as it is sent to the server.
    pub(crate) fn jwt(&self) -> &str {
        &self.jwt
    }

    /// The key.
    pub(crate) fn key(&self) -> &ConnectionKey {
        &self.key
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let expires = self.token.expires;
        f.debug_struct("Credentials")
            .field("name", &self.token.name)
            .field("key", &self.key)
            .field("expires", &expires)
            .finish()
    }
}

/// The single line in each block. Text around the blocks, such as the warning of some tools, is
/// skipped, but other markers are refused.
fn split(text: &str) -> Result<(Option<&str>, Option<&str>), CredentialsError> {
    let malformed = |reason| Err(CredentialsError::Malformed(reason));
    let (mut jwt, mut seed) = (None, None);
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let (block, found) = match line {
            line if line == JWT.begin => (JWT, &mut jwt),
            line if line == SEED.begin => (SEED, &mut seed),
            line if line.starts_with('-') => {
                return malformed("a marker line is misplaced or misspelt");
            }
            _ => continue,
        };
        let content = lines.next().unwrap_or("");
        if lines.next() != Some(block.end) {
            return malformed("expected one line between two marker lines");
        }
        // An empty block is the same as none: half of a pair.
        if !content.is_empty() && found.replace(content).is_some() {
            return malformed("a block is there twice");
        }
    }
    Ok((jwt, seed))
}

#[cfg(test)]
mod tests {
    use schemas::AccountId;

    use super::*;
    use crate::jwt::{Subject, mint};
    use crate::key::{KeyKind, SigningKey};

    const NOW: UnixMillis = UnixMillis(1_700_000_000_000);

    fn token(key: &ConnectionKey) -> String {
        let role = SigningKey::generate(KeyKind::Account);
        let account: AccountId = SigningKey::generate(KeyKind::Account)
            .public()
            .as_str()
            .parse()
            .expect("an account");
        let expires = Some(UnixMillis(NOW.get() + 60_000));
        let subject = Subject {
            name: "w1",
            key: key.public(),
            not_before: None,
            expires,
        };
        mint(
            &subject,
            UserClaims::of_role(account, vec!["run:demo".into()]),
            &role,
            NOW,
        )
        .expect("good claims")
    }

    fn written(credentials: &Credentials) -> String {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let path = scratch.path().join("w1.creds");
        credentials.write(&path).expect("the folder takes files");
        assert!(Credentials::read(&path).is_ok(), "it is private");
        read_secret(&path)
            .expect("just written")
            .as_str()
            .to_owned()
    }

    #[test]
    fn files_round_trip() {
        let key = ConnectionKey::generate();
        let credentials = Credentials::new(token(&key), key.clone()).expect("they belong together");
        let text = written(&credentials);
        let again = Credentials::parse(&text).expect("just written");
        assert_eq!(
            (again.jwt(), again.public()),
            (credentials.jwt(), key.public())
        );
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let path = scratch.path().join("w1.creds");
        credentials.write(&path).expect("the folder takes files");
        let read = Credentials::read(&path).expect("just written");
        let error = read
            .check(UnixMillis(NOW.get() + 60_000))
            .expect_err("it is over");
        assert!(
            error.to_string().contains(&*path.display().to_string()),
            "{error} says which file"
        );
        let noted = text.replacen(
            "\n\n",
            "\n\n************* IMPORTANT *************\nKeep this secret.\n\n",
            1,
        );
        assert!(Credentials::parse(&noted).is_ok());
        assert!(again.check(NOW).is_ok());
        let error = again
            .check(UnixMillis(NOW.get() + 60_000))
            .expect_err("it is over");
        assert_eq!(error.code(), Code::CredentialExpired);
    }

    #[test]
    fn half_pairs_are_refused() {
        let key = ConnectionKey::generate();
        let text = written(&Credentials::new(token(&key), key).expect("they belong together"));
        let middle = text.find(SEED.begin).expect("it has both blocks");
        for half in [&text[..middle], &text[middle..]] {
            let error = Credentials::parse(half).expect_err("half of a pair");
            assert_eq!(error.code(), Code::CredentialHalf);
        }
        let blank = format!("{}\n\n{}\n{}", JWT.begin, JWT.end, &text[middle..]);
        assert_eq!(
            Credentials::parse(&blank)
                .expect_err("a blank token")
                .code(),
            Code::CredentialHalf
        );
    }

    #[test]
    fn odd_files_are_refused() {
        let key = ConnectionKey::generate();
        let text = written(&Credentials::new(token(&key), key).expect("they belong together"));
        let doubled = format!("{text}{text}");
        let unended = text.replace(SEED.end, "");
        let misspelt = text.replace("USER NKEY", "USER KEY");
        let spaced = text.replace(SEED.end, &format!(" {}", SEED.end));
        for odd in ["", "x", doubled.as_str(), &unended, &misspelt, &spaced] {
            assert_eq!(
                Credentials::parse(odd).expect_err("an odd file").code(),
                Code::CredentialMalformed,
                "{odd}"
            );
        }
    }

    #[test]
    fn a_token_of_one_with_the_key_of_another_is_refused() {
        let (a, b) = (ConnectionKey::generate(), ConnectionKey::generate());
        assert!(matches!(
            Credentials::new(token(&a), b),
            Err(CredentialsError::Mismatch { .. })
        ));
    }

    #[test]
    fn tl_06_a_new_token_must_be_the_old_one_with_a_later_end() {
        let signer = SigningKey::generate(KeyKind::Account);
        let (key, other) = (ConnectionKey::generate(), ConnectionKey::generate());
        let account = |kind| -> AccountId {
            let key = SigningKey::generate(kind);
            key.public().as_str().parse().expect("an account")
        };
        let (own, elsewhere) = (account(KeyKind::Account), account(KeyKind::Account));
        let made = |key: &ConnectionKey, name, account: &AccountId, run: &str, seconds: u64| {
            let subject = Subject {
                name,
                key: key.public(),
                not_before: None,
                expires: Some(UnixMillis(NOW.get() + seconds * 1000)),
            };
            let claims = UserClaims::of_role(account.clone(), vec![format!("run:{run}")]);
            mint(&subject, claims, &signer, NOW).expect("good claims")
        };
        let old = Credentials::new(made(&key, "w1", &own, "demo", 60), key.clone());
        let old = old.expect("they belong together");
        let new = old
            .renewed(made(&key, "w1", &own, "demo", 61))
            .expect("it ends later");
        assert_eq!(new.token().expires, Some(UnixMillis(NOW.get() + 61_000)));
        assert_eq!(new.public(), key.public());
        for token in [
            made(&key, "w1", &own, "demo", 60),
            made(&key, "w1", &own, "demo", 59),
            made(&key, "w2", &own, "demo", 61),
            made(&key, "w1", &elsewhere, "demo", 61),
            made(&key, "w1", &own, "other", 61),
            made(&other, "w1", &own, "demo", 61),
            "a.b.c".to_owned(),
        ] {
            assert!(old.renewed(token).is_err());
        }
    }

    #[test]
    fn credentials_print_neither_token_nor_key() {
        let key = ConnectionKey::generate();
        let credentials = Credentials::new(token(&key), key.clone()).expect("they belong together");
        let printed = format!("{credentials:?} {credentials:#?}");
        assert!(!printed.contains(key.seed().expose()) && !printed.contains(credentials.jwt()));
        assert!(printed.contains("w1") && printed.contains(key.public().as_str()));
    }
}
