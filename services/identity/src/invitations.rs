//! The invitations of a trust domain, and what became of them. Each file has one writer: the
//! command `diloctl worker` writes terms and an operator's word, the registrar writes the machines
//! that asked. So neither can undo what the other wrote.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use schemas::enrolment::{Guest, Invitation, Terms, Word};
use schemas::{Code, PublicKey};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::secret::{FileError, read_anchor, write_private};

const ENDING: &str = "json";
const TERMS: &str = "terms.json";
const WITHDRAWN: &str = "withdrawn.json";
const GUESTS: &str = "guests";
const WORDS: &str = "words";

/// The invitations, in their folder: a folder for each.
#[derive(Clone, Debug)]
pub struct InvitationList {
    folder: PathBuf,
}

/// Reasons why an invitation, or a record about one, cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InvitationError {
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file holds something else.
    #[error("{}: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The fault.
        reason: String,
    },
}

impl InvitationError {
    /// The code of the page that says what to do.
    pub fn code(&self) -> Code {
        match self {
            Self::File(error) => error.code(),
            Self::Invalid { .. } => Code::InvitationInvalid,
        }
    }
}

schemas::coded!(InvitationError);

impl InvitationList {
    /// The invitations in `folder`; nothing is touched.
    pub fn at(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
        }
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Keeps the terms of a new invitation.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn make(&self, terms: &Terms) -> Result<(), InvitationError> {
        write(&self.of(&terms.invitation).join(TERMS), terms)
    }

    /// Keeps a machine that asked, as it is now.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn note(&self, invitation: &PublicKey, guest: &Guest) -> Result<(), InvitationError> {
        let folder = self.of(invitation).join(GUESTS);
        write(&folder.join(format!("{}.{ENDING}", guest.worker)), guest)
    }

    /// Forgets the machines that asked, were denied, and were not enrolled. The operator's words on
    /// their keys stay, and refuse them before anything is kept for them again. So what an
    /// invitation keeps grows with an operator's words, and not with the keys that somebody makes.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn forget_denied(&self, invitation: &Invitation) -> Result<(), InvitationError> {
        let folder = self.of(&invitation.terms.invitation).join(GUESTS);
        let guests = invitation.guests.values();
        for guest in guests
            .filter(|guest| guest.enrolled.is_none() && invitation.denied.contains(&guest.worker))
        {
            let path = folder.join(format!("{}.{ENDING}", guest.worker));
            match fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(FileError::Write { path, source }.into());
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Keeps an operator's word on a key.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn say(
        &self,
        invitation: &PublicKey,
        worker: &PublicKey,
        word: Word,
    ) -> Result<(), InvitationError> {
        let folder = self.of(invitation).join(WORDS);
        write(&folder.join(format!("{worker}.{ENDING}")), &word)
    }

    /// Withdraws an invitation.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn withdraw(&self, invitation: &PublicKey) -> Result<(), InvitationError> {
        write(&self.of(invitation).join(WITHDRAWN), &true)
    }

    /// An invitation with everything that became of it; none if it is not known.
    ///
    /// # Errors
    /// A file cannot be used.
    pub fn find(&self, invitation: &PublicKey) -> Result<Option<Invitation>, InvitationError> {
        let folder = self.of(invitation);
        let Some(terms) = read::<Terms>(&folder.join(TERMS))? else {
            return Ok(None);
        };
        if terms.invitation != *invitation {
            return Err(InvitationError::Invalid {
                path: folder.join(TERMS),
                reason: format!("it is about {}", terms.invitation),
            });
        }
        // A mark that cannot be read still is one.
        let withdrawn = folder.join(WITHDRAWN).exists();
        let mut found = Invitation {
            terms,
            withdrawn,
            guests: BTreeMap::new(),
            approved: BTreeSet::new(),
            denied: BTreeSet::new(),
        };
        for key in keys(&folder.join(GUESTS))? {
            let path = folder.join(GUESTS).join(format!("{key}.{ENDING}"));
            let Some(guest) = read::<Guest>(&path)? else {
                continue;
            };
            if guest.worker != key {
                let reason = format!("it is about {}", guest.worker);
                return Err(InvitationError::Invalid { path, reason });
            }
            found.guests.insert(key, guest);
        }
        for key in keys(&folder.join(WORDS))? {
            let path = folder.join(WORDS).join(format!("{key}.{ENDING}"));
            match read(&path)? {
                Some(Word::Approved) => found.approved.insert(key),
                Some(Word::Denied) => found.denied.insert(key),
                None => false,
            };
        }
        Ok(Some(found))
    }

    /// All invitations, the newest first.
    ///
    /// # Errors
    /// One of them cannot be used.
    pub fn all(&self) -> Result<Vec<Invitation>, InvitationError> {
        let mut all = Vec::new();
        for name in names(&self.folder)? {
            let Ok(key) = name.parse() else { continue };
            all.extend(self.find(&key)?);
        }
        all.sort_by_key(|one: &Invitation| std::cmp::Reverse(one.terms.made));
        Ok(all)
    }

    fn of(&self, invitation: &PublicKey) -> PathBuf {
        self.folder.join(invitation.as_str())
    }
}

fn write(path: &Path, content: &impl Serialize) -> Result<(), InvitationError> {
    let text = serde_json::to_string_pretty(content).expect("it is names and numbers");
    Ok(write_private(path, format!("{text}\n").as_bytes())?)
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, InvitationError> {
    let text = match read_anchor(path) {
        Err(FileError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(None);
        }
        text => text?,
    };
    serde_json::from_str(&text).map_err(|error| InvitationError::Invalid {
        path: path.to_owned(),
        reason: error.to_string(),
    })
}

/// The names of what lies in a folder; none if there is no folder.
fn names(folder: &Path) -> Result<Vec<String>, InvitationError> {
    let failed = |source| FileError::Read {
        path: folder.to_owned(),
        source,
    };
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        names.extend(name.into_string().ok());
    }
    names.sort_unstable();
    Ok(names)
}

/// The keys after which files in a folder are named. Others are temporary files.
fn keys(folder: &Path) -> Result<Vec<PublicKey>, InvitationError> {
    let names = names(folder)?.into_iter();
    let key = |name: String| name.strip_suffix(&format!(".{ENDING}"))?.parse().ok();
    Ok(names.filter_map(key).collect())
}
