//! Invitations: one file that a person carries to a machine, with everything that the machine needs
//! to ask the registrar to enrol it. It holds a credential with one right, a join token, and the
//! public part of the trust domain.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use data_encoding::BASE32_NOPAD;
use schemas::account::Account;
use schemas::enrolment::{Admission, LISTED_MAX, Terms};
use schemas::permission::Role;
use schemas::{Digest, Hasher, Millis, PublicKey, RunId, Seat, UnixMillis, V};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::claims::UserClaims;
use crate::credentials::Credentials;
use crate::domain::{Domain, DomainError};
use crate::invitations::InvitationError;
use crate::jwt::{Subject, mint};
use crate::purpose::ConnectionKey;
use crate::revocation::check_name;
use crate::secret::{Secret, random, read_anchor, read_secret, write_private};
use crate::trust::TrustBundle;

/// Bytes of a join token before they are text: nobody guesses 32 random bytes.
const TOKEN_BYTES: usize = 32;
/// Shortest life of an invitation: somebody has to carry it.
pub const INVITATION_MIN: Millis = Millis::from_secs(10);
/// Longest life of an invitation.
pub const INVITATION_MAX: Millis = Millis::from_secs(24 * 3600);
/// Life of an invitation by default.
pub const INVITATION_DEFAULT: Millis = Millis::from_secs(15 * 60);

/// A secret that shows that its holder has the invitation.
pub struct JoinToken(Secret);

impl JoinToken {
    /// A new one from the operating system's generator.
    pub fn generate() -> Self {
        Self(Secret::new(
            BASE32_NOPAD.encode(random::<TOKEN_BYTES>().as_slice()),
        ))
    }

    /// Reads one. A text that the generator cannot have made, such as a blank or a sample, is none.
    fn parse(text: &str) -> Option<Self> {
        let bytes = BASE32_NOPAD
            .decode(text.as_bytes())
            .ok()
            .map(Zeroizing::new)?;
        (bytes.len() == TOKEN_BYTES).then(|| Self(Secret::new(text.to_owned())))
    }

    /// Its digest, which the domain keeps.
    pub fn digest(&self) -> Digest {
        token_digest(self.expose())
    }

    pub(crate) fn expose(&self) -> &str {
        self.0.expose()
    }
}

/// The digest under which a join token is known.
fn token_digest(text: &str) -> Digest {
    let mut hasher = Hasher::default();
    hasher.update(text.as_bytes());
    hasher.finish()
}

/// An invitation, as the invited machine reads it.
pub struct InvitationFile {
    /// The address of the bus.
    pub bus: String,
    /// The run.
    pub run: RunId,
    /// The time at which it was made; 0 if an earlier release made it.
    pub made: UnixMillis,
    /// The end of the credential in it.
    pub ends: UnixMillis,
    /// The join token.
    pub token: JoinToken,
    /// The credential that may ask the registrar.
    pub credentials: Credentials,
    /// In a domain with mutual TLS, the certificate for the key of that credential, PEM: without
    /// one the broker lets no machine ask. It ends with the credential.
    pub certificate: Option<String>,
    /// The public keys of the trust domain. The path of the authority is as [`TrustBundle::write`]
    /// writes it.
    pub trust: TrustBundle,
    /// The authority of bus and store, PEM.
    pub ca: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    v: V<1>,
    bus: String,
    run: RunId,
    #[serde(default)]
    made: UnixMillis,
    ends: UnixMillis,
    #[serde(with = "wiped")]
    token: Zeroizing<String>,
    #[serde(with = "wiped")]
    credentials: Zeroizing<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    certificate: Option<String>,
    trust: TrustBundle,
    ca: String,
}

/// Texts that are wiped when they are dropped.
mod wiped {
    use serde::{Deserialize as _, Deserializer, Serializer};
    use zeroize::Zeroizing;

    pub(super) fn serialize<S: Serializer>(
        text: &Zeroizing<String>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Zeroizing<String>, D::Error> {
        String::deserialize(deserializer).map(Zeroizing::new)
    }
}

impl InvitationFile {
    /// Reads an invitation.
    ///
    /// # Errors
    /// Others can read the file, it is no invitation, or a part of it is not sound.
    pub fn read(path: &Path) -> Result<Self, DomainError> {
        let invalid = |reason: String| InvitationError::Invalid {
            path: path.to_owned(),
            reason,
        };
        let text = read_secret(path)?;
        let written: Written =
            serde_json::from_str(&text).map_err(|error| invalid(error.to_string()))?;
        let token = JoinToken::parse(&written.token)
            .ok_or_else(|| invalid("its join token is none that was generated".to_owned()))?;
        let credentials = Credentials::parse(&written.credentials)?;
        written.trust.check()?;
        Ok(Self {
            bus: written.bus,
            run: written.run,
            made: written.made,
            ends: written.ends,
            token,
            credentials,
            certificate: written.certificate,
            trust: written.trust,
            ca: written.ca,
        })
    }

    /// Writes it for its owner alone.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), DomainError> {
        let written = Written {
            v: V,
            bus: self.bus.clone(),
            run: self.run.clone(),
            made: self.made,
            ends: self.ends,
            token: Zeroizing::new(self.token.expose().to_owned()),
            credentials: self.credentials.text(),
            certificate: self.certificate.clone(),
            trust: self.trust.clone(),
            ca: self.ca.clone(),
        };
        let text = Zeroizing::new(
            serde_json::to_string_pretty(&written).expect("texts, names and numbers are JSON"),
        );
        Ok(write_private(path, text.as_bytes())?)
    }

    /// The key by which it is known.
    pub fn id(&self) -> &PublicKey {
        self.credentials.public()
    }
}

impl fmt::Debug for InvitationFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InvitationFile")
            .field("id", self.id())
            .field("run", &self.run)
            .finish_non_exhaustive()
    }
}

/// The wishes of the operator who invites.
#[derive(Clone, Debug)]
pub struct Invite {
    /// The name of the new worker.
    pub name: String,
    /// Its run.
    pub run: RunId,
    /// Its seat.
    pub seat: Option<Seat>,
    /// The way in which it is admitted.
    pub admission: Admission,
    /// The life of the invitation.
    pub life: Millis,
    /// The address under which the machine reaches the bus.
    pub bus: String,
}

impl Domain {
    /// Makes an invitation and keeps its terms. The caller holds the [`crate::DomainLock`].
    ///
    /// # Errors
    /// A name or the life cannot be used, a name or the seat is taken, the list is no list of keys,
    /// or a file cannot be read or written.
    pub fn invite(&self, invite: Invite, now: UnixMillis) -> Result<InvitationFile, DomainError> {
        if !(INVITATION_MIN..=INVITATION_MAX).contains(&invite.life) {
            return Err(DomainError::Life(invite.life));
        }
        self.check_names(&invite, now)?;
        if let Some(seat) = &invite.seat {
            self.check_seat(&invite.run, seat)?;
        }
        let account = self.account_for(Role::Worker, Some(&invite.run))?;
        let ca = read_anchor(&self.layout().ca())?;
        let ends = UnixMillis((now.after(invite.life).get() / 1000) * 1000);
        let (key, token) = (ConnectionKey::generate(), JoinToken::generate());
        let subject = Subject {
            name: Role::Newcomer.name(),
            key: key.public(),
            not_before: None,
            expires: Some(ends),
        };
        let claims = UserClaims::of_role(self.account(Account::Enrolment)?, Vec::new());
        let jwt = mint(&subject, claims, &self.role_key(Role::Newcomer)?, now)?;
        let certificate = self.certificate_of(key.public(), Role::Newcomer, ends, now)?;
        let file = InvitationFile {
            bus: invite.bus,
            run: invite.run.clone(),
            made: now,
            ends,
            token,
            credentials: Credentials::new(jwt, key)?,
            certificate,
            trust: TrustBundle {
                ca: self.layout().ca_relative(),
                ..self.trust().clone()
            },
            ca,
        };
        self.layout().invitations().make(&Terms {
            v: V,
            invitation: file.id().clone(),
            name: invite.name,
            run: invite.run,
            account,
            seat: invite.seat,
            admission: invite.admission,
            token: file.token.digest(),
            made: now,
            ends,
        })?;
        Ok(file)
    }

    /// Refuses names that cannot be used, or that another holder has.
    fn check_names(&self, invite: &Invite, now: UnixMillis) -> Result<(), DomainError> {
        let listed = BTreeMap::new();
        let listed = match &invite.admission {
            Admission::Listed(listed) => listed,
            Admission::Token | Admission::Hand => &listed,
        };
        if listed.is_empty() && matches!(invite.admission, Admission::Listed(_)) {
            return Err(DomainError::List("is empty"));
        }
        if listed.len() > LISTED_MAX {
            return Err(DomainError::List("is longer than 1024 keys"));
        }
        if invite.seat.is_some() && listed.len() > 1 {
            return Err(DomainError::List("has several keys, and a seat is for one"));
        }
        let mut names: Vec<&String> = match listed.is_empty() {
            true => vec![&invite.name],
            false => listed.values().collect(),
        };
        let issued = self.layout().issued().all()?;
        let invited = self.layout().invitations().all()?;
        names.sort_unstable();
        if names.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(DomainError::List("names two keys alike"));
        }
        for name in names {
            check_name(name)?;
            let path = self.layout().credentials(name);
            let holder =
                |holder: &&crate::Registration| holder.name == *name && holder.blocked.is_none();
            if path.exists() || issued.iter().any(|one| holder(&one)) {
                return Err(DomainError::Taken(path));
            }
            let open = |terms: &Terms| terms.ends > now;
            let promised = |terms: &Terms| match &terms.admission {
                Admission::Listed(listed) => listed.values().any(|known| known == name),
                Admission::Token | Admission::Hand => terms.name == *name,
            };
            let mut open = invited
                .iter()
                .filter(|one| !one.withdrawn && open(&one.terms));
            if open.any(|one| promised(&one.terms)) {
                return Err(DomainError::Promised(name.clone()));
            }
        }
        Ok(())
    }

    /// Refuses a seat that another worker of the run has, or a group of another size.
    fn check_seat(&self, run: &RunId, seat: &Seat) -> Result<(), DomainError> {
        let issued = self.layout().issued().all()?;
        match schemas::renewal::in_the_way(&issued, run, seat, None) {
            None => Ok(()),
            Some((name, held)) => Err(DomainError::Seat {
                seat: seat.clone(),
                run: run.clone(),
                name,
                held,
            }),
        }
    }
}
