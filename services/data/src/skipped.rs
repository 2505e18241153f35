//! Files that an import leaves out, counted by reason, with the name of the first one for each.

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// The reason why a file or folder gave no text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// It is not text: it holds a NUL byte.
    Nul,
    /// It is text in UTF-16.
    Utf16,
    /// A byte of it is not UTF-8, as in a file of Latin-1.
    NotUtf8,
    /// It cannot be opened or read.
    Unreadable,
    /// A link that leads out of the folder that is read.
    LinkOutside,
    /// A link that leads nowhere.
    LinkBroken,
    /// A pipe, socket or device.
    NotAFile,
    /// Nested folders that are deeper than the walk goes.
    TooDeep,
    /// The name begins with a dot.
    Hidden,
    /// A pattern leaves it out.
    Excluded,
    /// It is empty.
    Empty,
    /// Another file had the same text.
    Repeated,
}

/// The files that were left out for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SkippedFiles {
    /// The reason.
    pub reason: Reason,
    /// Number of files; a folder that was left out as a whole counts as one.
    pub count: u64,
    /// The path of the first one below the folder that is read, in a form that is safe to print.
    pub first: String,
    /// Details of the first one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// Collects the files that are left out.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally(BTreeMap<Reason, SkippedFiles>);

impl Tally {
    /// Adds one.
    pub(crate) fn add(&mut self, reason: Reason, path: &Path, detail: Option<String>) {
        let entry = self.0.entry(reason);
        entry
            .or_insert_with(|| SkippedFiles {
                reason,
                count: 0,
                first: shown(path),
                detail,
            })
            .count += 1;
    }

    /// All of them, in the order of their reasons.
    pub(crate) fn finish(self) -> Vec<SkippedFiles> {
        self.0.into_values().collect()
    }
}

impl Reason {
    /// The reason in words that follow a number.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Nul => "not text (a NUL byte)",
            Self::Utf16 => "in UTF-16",
            Self::NotUtf8 => "not UTF-8",
            Self::Unreadable => "not readable",
            Self::LinkOutside => "behind links that leave the folder",
            Self::LinkBroken => "behind links that lead nowhere",
            Self::NotAFile => "no file (a pipe, socket or device)",
            Self::TooDeep => "in too many folders",
            Self::Hidden => "hidden",
            Self::Excluded => "excluded",
            Self::Empty => "empty",
            Self::Repeated => "the same as another file",
        }
    }
}

impl fmt::Display for SkippedFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.count, self.reason.words(), self.first)?;
        if let Some(detail) = &self.detail {
            write!(f, " ({detail})")?;
        }
        if self.count > 1 {
            write!(f, " and {} more", self.count - 1)
        } else {
            Ok(())
        }
    }
}

/// A path in a printable form: control characters and those that turn the direction of writing are
/// escaped, so that no name moves a cursor or forges a line; bytes that are not UTF-8 are shown as
/// `\xe9`.
pub fn shown(path: &Path) -> String {
    let mut out = String::new();
    for chunk in path.as_os_str().as_bytes().utf8_chunks() {
        for character in chunk.valid().chars() {
            let turns = matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
            if character.is_control() || turns || matches!(character, '\u{2028}' | '\u{2029}') {
                out.extend(character.escape_default());
            } else {
                out.push(character);
            }
        }
        chunk
            .invalid()
            .iter()
            .for_each(|byte| out.push_str(&format!("\\x{byte:02x}")));
    }
    out
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    #[test]
    fn the_first_is_named_and_the_others_counted() {
        let mut tally = Tally::default();
        tally.add(
            Reason::NotUtf8,
            Path::new("b/latin.txt"),
            Some("byte 0xe9 at 7".to_owned()),
        );
        tally.add(Reason::Hidden, Path::new(".git"), None);
        tally.add(
            Reason::NotUtf8,
            Path::new("c/latin.txt"),
            Some("byte 0xfc at 9".to_owned()),
        );
        let lines: Vec<String> = tally.finish().iter().map(SkippedFiles::to_string).collect();
        assert_eq!(
            lines,
            [
                "2 not UTF-8: b/latin.txt (byte 0xe9 at 7) and 1 more",
                "1 hidden: .git"
            ]
        );
    }

    #[test]
    fn no_name_moves_a_cursor() {
        let name = OsStr::from_bytes(b"a\x1b[2J\xe9\n\xe2\x80\xae\xc3\xbc.txt");
        assert_eq!(shown(Path::new(name)), "a\\u{1b}[2J\\xe9\\n\\u{202e}ü.txt");
    }
}
