//! Cosignatures of witnesses (C2SP tlog-cosignature, `cosignature/v1`), and the policy that says
//! which of them are enough (C2SP tlog-policy).
//!
//! A witness cosigns a head after it has verified that the head continues the one that it cosigned
//! before. So the holder of the key for heads cannot show two histories to those who ask for
//! cosignatures of enough witnesses.

use std::collections::{BTreeMap, BTreeSet};

use data_encoding::{BASE64, HEXLOWER};

use crate::note::{
    HeadError, NOTE_BYTES_MAX, SIGNATURE_BYTES, SIGNATURE_LINE, key_id_of, signature, verifies,
};
use crate::{Hash, Head};

/// The kind of a signature in the identifier of a witness's key.
const COSIGNATURE: u8 = 4;
/// Longest policy that is read.
pub const POLICY_BYTES_MAX: usize = 64 << 10;
/// The quorum of a policy that asks for no witness.
const NONE: &str = "none";

/// A witness: its name, and the key with which it cosigns.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Witness {
    name: String,
    key: [u8; 32],
}

/// What makes a head one that enough witnesses have seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The keys of the log, with its name.
    logs: Vec<(String, [u8; 32])>,
    witnesses: BTreeMap<String, Witness>,
    groups: BTreeMap<String, Group>,
    quorum: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Group {
    least: usize,
    members: Vec<String>,
}

/// The reason why a text is no key of a witness, or no policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// The key has another form.
    #[error(
        "{0:?} is no key of a witness: NAME+HASH+KEY, as `diloctl audit witness-key` prints it"
    )]
    Key(String),
    /// The name cannot be used.
    #[error(
        "{0:?} is no name of a witness: printable characters without blank and `+`, at most 128"
    )]
    Name(String),
    /// A line has another form.
    #[error("line {line} of the policy: {reason}")]
    Line {
        /// Its number, from 1.
        line: usize,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// There is none, or more than one.
    #[error("the policy has no line `quorum`, so nothing says which witnesses are enough")]
    NoQuorum,
    /// The text is too long, or no text.
    #[error("it is no text of a policy")]
    NoText,
}

impl Witness {
    /// A witness of this name.
    ///
    /// # Errors
    /// The name cannot stand in a signature's line.
    pub fn new(name: &str, key: [u8; 32]) -> Result<Self, PolicyError> {
        let is_name = |c: char| c.is_ascii_graphic() && c != '+';
        match !name.is_empty() && name.len() <= 128 && name.chars().all(is_name) {
            true => Ok(Self {
                name: name.to_owned(),
                key,
            }),
            false => Err(PolicyError::Name(name.chars().take(128).collect())),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its key as others write it down: name, hash and key, joined by `+`.
    pub fn text(&self) -> String {
        let stated = [&[COSIGNATURE][..], &self.key].concat();
        let id = HEXLOWER.encode(&self.id());
        format!("{}+{id}+{}", self.name, BASE64.encode(&stated))
    }

    /// Reads what [`Witness::text`] writes.
    ///
    /// # Errors
    /// It has another form, or the hash does not belong to name and key.
    pub fn read(text: &str) -> Result<Self, PolicyError> {
        let read = || {
            let mut parts = text.splitn(3, '+');
            let (name, id, key) = (parts.next()?, parts.next()?, parts.next()?);
            let key = key_of(key, COSIGNATURE)?;
            let witness = Self::new(name, key).ok()?;
            (HEXLOWER.encode(&witness.id()) == id).then_some(witness)
        };
        read().ok_or_else(|| PolicyError::Key(text.chars().take(256).collect()))
    }

    /// The line of the cosignature, from the signature over [`cosigned`].
    pub fn line(&self, time: u64, signature: &[u8; SIGNATURE_BYTES]) -> String {
        let stated = [&self.id()[..], &time.to_be_bytes(), signature].concat();
        format!("{SIGNATURE_LINE}{} {}\n", self.name, BASE64.encode(&stated))
    }

    fn id(&self) -> [u8; 4] {
        key_id_of(&self.name, COSIGNATURE, &self.key)
    }

    /// The time of this witness's cosignature under the signed text of `head`, in seconds since
    /// 1970; none if it has not cosigned it.
    ///
    /// # Errors
    /// A line names this witness, and its key has not signed this head.
    pub fn cosigned_at(&self, note: &[u8], head: &Head) -> Result<Option<u64>, HeadError> {
        let malformed = HeadError::Malformed("it is no signed text");
        if note.len() > NOTE_BYTES_MAX {
            return Err(malformed);
        }
        let text = std::str::from_utf8(note).map_err(|_| malformed.clone())?;
        let (_, lines) = text.rsplit_once("\n\n").ok_or(malformed)?;
        let mut found = None;
        for line in lines.lines() {
            let Some((name, stated)) = signature(line) else {
                continue;
            };
            let (id, signed) = stated.split_at(4);
            if name != self.name || id != self.id() {
                continue;
            }
            let (time, signature) = signed.split_first_chunk().ok_or(HeadError::Forged)?;
            let time = u64::from_be_bytes(*time);
            if !verifies(&self.key, &cosigned(head, time), signature) {
                return Err(HeadError::Forged);
            }
            found = found.max(Some(time));
        }
        Ok(found)
    }
}

/// The text that a witness signs for a head at a time, in seconds since 1970.
pub fn cosigned(head: &Head, time: u64) -> String {
    format!("cosignature/v1\ntime {time}\n{}", head.text())
}

impl Policy {
    /// Reads a policy: lines `log`, `witness`, `group` and one `quorum`.
    ///
    /// # Errors
    /// The first line that has another form.
    pub fn read(text: &[u8]) -> Result<Self, PolicyError> {
        if text.len() > POLICY_BYTES_MAX {
            return Err(PolicyError::NoText);
        }
        let text = std::str::from_utf8(text).map_err(|_| PolicyError::NoText)?;
        let mut policy = Self {
            logs: Vec::new(),
            witnesses: BTreeMap::new(),
            groups: BTreeMap::new(),
            quorum: String::new(),
        };
        for (at, line) in text.split('\n').enumerate() {
            let words = line.split([' ', '\t']).filter(|word| !word.is_empty());
            let words: Vec<&str> = words.collect();
            policy.take(&words).map_err(|reason| PolicyError::Line {
                line: at + 1,
                reason,
            })?;
        }
        match policy.quorum.is_empty() {
            true => Err(PolicyError::NoQuorum),
            false => Ok(policy),
        }
    }

    fn take(&mut self, words: &[&str]) -> Result<(), &'static str> {
        match *words {
            [] => {}
            [first, ..] if first.starts_with('#') => {}
            ["log", key] | ["log", key, _] => {
                let mut parts = key.splitn(3, '+');
                let log = (|| {
                    let (name, id, key) = (parts.next()?, parts.next()?, parts.next()?);
                    let key = key_of(key, crate::note::ED25519)?;
                    let own = HEXLOWER.encode(&key_id_of(name, crate::note::ED25519, &key));
                    (own == id).then(|| (name.to_owned(), key))
                })();
                let log = log.ok_or("it names no key of a log")?;
                if self.logs.contains(&log) {
                    return Err("the log stands there already");
                }
                self.logs.push(log);
            }
            ["witness", name, key] | ["witness", name, key, _] => {
                self.check_new(name)?;
                let witness = Witness::read(key).map_err(|_| "it names no key of a witness")?;
                if self
                    .witnesses
                    .values()
                    .any(|known| known.key == witness.key)
                {
                    return Err("another witness has the same key");
                }
                self.witnesses.insert(name.to_owned(), witness);
            }
            ["group", name, least, ref members @ ..] if !members.is_empty() => {
                self.check_new(name)?;
                let unique: BTreeSet<_> = members.iter().collect();
                if unique.len() != members.len() {
                    return Err("a member stands there twice");
                }
                if !members.iter().all(|member| self.knows(member)) {
                    return Err("a member is no witness and no group of the lines above");
                }
                // One witness in two groups would count twice.
                if members.iter().any(|member| self.is_member(member)) {
                    return Err("a member is one of another group already");
                }
                let least = match least {
                    "any" => 1,
                    "all" => members.len(),
                    number => number.parse().map_err(|_| "its number is none")?,
                };
                if !(1..=members.len()).contains(&least) {
                    return Err("it asks for more members than it has, or for none");
                }
                let members = members.iter().map(|member| (*member).to_owned()).collect();
                self.groups
                    .insert(name.to_owned(), Group { least, members });
            }
            ["quorum", _] if !self.quorum.is_empty() => return Err("there is a quorum already"),
            ["quorum", name] if name == NONE || self.knows(name) => {
                name.clone_into(&mut self.quorum)
            }
            ["quorum", _] => return Err("it names no witness and no group of the lines above"),
            _ => return Err("it is no line `log`, `witness`, `group` or `quorum`"),
        }
        Ok(())
    }

    fn knows(&self, name: &str) -> bool {
        self.witnesses.contains_key(name) || self.groups.contains_key(name)
    }

    fn is_member(&self, name: &str) -> bool {
        let mut groups = self.groups.values();
        groups.any(|group| group.members.iter().any(|member| member == name))
    }

    fn check_new(&self, name: &str) -> Result<(), &'static str> {
        match name == NONE || self.knows(name) {
            true => Err("its name is taken"),
            false => Ok(()),
        }
    }

    /// The same policy with another quorum: any so many of its witnesses.
    ///
    /// # Errors
    /// It has fewer.
    pub fn asking(mut self, least: usize) -> Result<Self, PolicyError> {
        let members: Vec<String> = self.witnesses.keys().cloned().collect();
        if !(1..=members.len()).contains(&least) {
            let reason = "the command line asks for more witnesses than it has, or for none";
            return Err(PolicyError::Line { line: 0, reason });
        }
        // No word of a line is empty, so nothing has this name.
        self.groups.insert(String::new(), Group { least, members });
        self.quorum = String::new();
        Ok(self)
    }

    /// Its witnesses, each with the name that the policy gives it.
    pub fn witnesses(&self) -> impl Iterator<Item = (&str, &Witness)> {
        self.witnesses
            .iter()
            .map(|(name, one)| (name.as_str(), one))
    }

    /// True if the policy names this key for the log `origin`, or names no log.
    pub fn names_log(&self, origin: &str, keys: &[[u8; 32]]) -> bool {
        let named = |(name, key): &(String, [u8; 32])| name == origin && keys.contains(key);
        self.logs.is_empty() || self.logs.iter().any(named)
    }

    /// True if these witnesses are enough.
    pub fn is_met(&self, by: &BTreeSet<&str>) -> bool {
        self.quorum == NONE || self.counts(&self.quorum, by)
    }

    fn counts(&self, name: &str, by: &BTreeSet<&str>) -> bool {
        match self.groups.get(name) {
            None => by.contains(name),
            // Members stand above their group, so this ends.
            Some(Group { least, members }) => {
                let counted = members.iter().filter(|member| self.counts(member, by));
                counted.count() >= *least
            }
        }
    }
}

fn key_of(text: &str, kind: u8) -> Option<Hash> {
    let stated = crate::from_base64(text)?;
    let (first, key) = stated.split_first()?;
    (*first == kind).then(|| key.try_into().ok()).flatten()
}
