//! Those that the end of an overlap may cut off though nobody sees them: holders that are off and
//! have a certificate of the former authority of clients, and machines that were invited before.

use std::collections::BTreeSet;

use schemas::enrolment::{Admission, Invitation, Terms};
use schemas::renewal::Registration;
use schemas::{PublicKey, UnixMillis, V};
use serde::{Deserialize, Serialize};

use super::{Side, State};
use crate::clients::{CERTIFICATE_LIFE_MAX, ClientFile};
use crate::domain::{Domain, DomainError};
use crate::revocation::{read_entry, write_entry};
use crate::secret::FileError;

/// The note on the rotation of the authorities that was begun last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rotation {
    v: V<1>,
    /// The time from which on the next authorities are among those that are trusted; none if an
    /// earlier build put them there.
    prepared: Option<UnixMillis>,
    /// The time from which on they sign; none while they do not.
    adopted: Option<UnixMillis>,
}

/// Those who may be cut off when the overlap ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeftBehind {
    /// The end of the last certificate of the former authority of clients; none if they have all
    /// ended, or there is none.
    pub until: Option<Until>,
    /// Holders that may have such a certificate and none of the present authority.
    pub holders: Vec<Registration>,
    /// Invitations that can still be used, and were made before the present authorities were known
    /// to their machines, or before they signed what those machines show.
    pub invitations: Vec<Terms>,
}

/// The end of certificates that end by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// At this time.
    Time(UnixMillis),
    /// At an unknown time, [`CERTIFICATE_LIFE_MAX`] from now at the latest.
    Unknown,
}

impl Domain {
    /// Those who may be cut off when the overlap ends now. `seen` are the keys of clients that show
    /// a certificate of the present authority. Nobody is, where no former authority is trusted.
    ///
    /// # Errors
    /// The vault is not here, or a file cannot be used.
    pub fn left_behind(
        &self,
        seen: &BTreeSet<PublicKey>,
        now: UnixMillis,
    ) -> Result<LeftBehind, DomainError> {
        let known = self.authorities()?;
        let mut behind = LeftBehind::default();
        if !known.iter().any(|one| one.state == State::Former) {
            return Ok(behind);
        }
        let noted: Option<Rotation> = read_entry(&self.layout().rotation())?;
        let (prepared, adopted) = noted.map_or((None, None), |one| (one.prepared, one.adopted));
        let is_before = |made: UnixMillis, at: Option<UnixMillis>| at.is_none_or(|at| made < at);
        for invitation in self.layout().invitations().all()? {
            let made = invitation.terms.made;
            let unaware = is_before(made, prepared) || self.is_mutual() && is_before(made, adopted);
            if unaware && can_be_used(&invitation, now) {
                behind.invitations.push(invitation.terms);
            }
        }
        let present = known
            .iter()
            .find(|one| one.side == Side::Clients && one.state == State::Present);
        let until = adopted.map(|adopted| adopted.after(CERTIFICATE_LIFE_MAX));
        let Some(present) = present.filter(|_| until.is_none_or(|until| now < until)) else {
            return Ok(behind);
        };
        behind.until = Some(until.map_or(Until::Unknown, Until::Time));
        for record in self.layout().issued().all()? {
            let ended = !record.role.is_renewable() && record.ends <= now;
            if record.blocked.is_some() || ended || seen.contains(&record.public) {
                continue;
            }
            // The time of issue of a key that was revoked lies ahead of the clock.
            let is_dated = self.revocation(&record.account, &record.public)?.is_none();
            if is_dated && !is_before(record.issued, adopted) {
                continue;
            }
            if !self.has_certificate_of(&present.id, &record) {
                behind.holders.push(record);
            }
        }
        Ok(behind)
    }

    /// True if the holder's certificate lies here, and this authority has signed it.
    fn has_certificate_of(&self, authority: &str, record: &Registration) -> bool {
        let file = ClientFile::beside(&self.layout().credentials(&record.name));
        let own = file
            .holder()
            .is_ok_and(|holder| holder.key == record.public);
        own && file.is_signed_by(authority)
    }

    /// Notes that everybody who reads the files of authorities from now on knows the next ones. The
    /// caller holds the [`crate::DomainLock`].
    pub(super) fn note_prepared(&self, now: UnixMillis) -> Result<(), DomainError> {
        self.note(Some(now), None)
    }

    /// Notes that the next authorities sign from now on. `now` is a time after
    /// [`Domain::adopt_authorities`], since the registrar signs with the former one until then. The
    /// caller holds the [`crate::DomainLock`].
    ///
    /// # Errors
    /// The note cannot be read or written.
    pub fn note_adopted(&self, now: UnixMillis) -> Result<(), DomainError> {
        let noted: Option<Rotation> = read_entry(&self.layout().rotation())?;
        self.note(noted.and_then(|one| one.prepared), Some(now))
    }

    /// Removes the note.
    pub(super) fn forget_rotation(&self) -> Result<(), DomainError> {
        let path = self.layout().rotation();
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(FileError::Write { path, source }.into())
            }
            _ => Ok(()),
        }
    }

    fn note(
        &self,
        prepared: Option<UnixMillis>,
        adopted: Option<UnixMillis>,
    ) -> Result<(), DomainError> {
        let note = Rotation {
            v: V,
            prepared,
            adopted,
        };
        write_entry(&self.layout().rotation(), &note)
    }
}

fn can_be_used(invitation: &Invitation, now: UnixMillis) -> bool {
    let has_enrolled = |key: &PublicKey| {
        let guest = invitation.guests.get(key);
        guest.is_some_and(|guest| guest.enrolled.is_some())
    };
    let is_used = match &invitation.terms.admission {
        Admission::Listed(listed) => listed.keys().all(has_enrolled),
        Admission::Token | Admission::Hand => invitation.guests.keys().any(has_enrolled),
    };
    !invitation.withdrawn && now < invitation.terms.ends && !is_used
}
