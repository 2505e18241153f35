//! The broker's log. Only there does it say that it refused a message or a subscription.

use super::{Happening, Sighting, cut, user};

/// Longest line that is looked at; the broker cuts none, and a subject may have 4 KiB.
pub const LINE_BYTES_MAX: usize = 16 << 10;

/// The lines in pieces of a file.
#[derive(Debug, Default)]
pub struct Lines {
    begun: Vec<u8>,
    /// True while the rest of a line that is too long is passed over.
    skipping: bool,
}

impl Lines {
    /// Takes the next piece, and passes each line that it completes to `each`. Lines that are too
    /// long are left out.
    pub fn feed(&mut self, piece: &[u8], each: &mut dyn FnMut(&[u8])) {
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            let (text, ends) = match part.split_last() {
                Some((b'\n', text)) => (text, true),
                _ => (part, false),
            };
            self.skipping |= self.begun.len() + text.len() > LINE_BYTES_MAX;
            if !self.skipping {
                self.begun.extend_from_slice(text);
            }
            if ends {
                if !self.skipping {
                    each(&self.begun);
                }
                self.begin_anew();
            }
        }
    }

    /// Forgets a line that was begun: the next piece is of another file.
    pub fn begin_anew(&mut self) {
        self.begun.clear();
        self.skipping = false;
    }
}

/// The sighting in a line of the broker's log; none if it says something else. Refused
/// authentication is left out here, since the broker also publishes it, with more particulars.
pub fn of_line(line: &[u8]) -> Option<Sighting> {
    let text = std::str::from_utf8(line).ok()?;
    // Number of the process, date and time come before the level, and nothing that a client says.
    let (before, told) = text.split_once("[ERR] ")?;
    if before.contains('"') || before.matches('[').count() > 1 {
        return None;
    }
    let (address, told) = told.split_once(" - cid:")?;
    let (number, mut told) = told.split_once(" - ")?;
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    // What the client says of itself, and who it is. A client may say anything, in quotes.
    let mut quotes = Vec::new();
    while told.starts_with('"') {
        let (quoted, rest) = unquoted(told)?;
        quotes.push(quoted);
        told = rest.strip_prefix(" - ")?;
    }
    let (host, _port) = address.rsplit_once(':')?;
    let identity = quotes.last().map_or("", String::as_str);
    let (account, holder) = identity.split_once('/').unwrap_or(("", ""));
    let denied = |reason: &str| {
        let (_, detail) = told.split_once(" - ")?;
        let quoted = detail
            .strip_prefix("Subject ")
            .or(detail.strip_prefix("Reply "))?;
        let (subject, _) = unquoted(quoted)?;
        Some(Sighting {
            happening: Happening::PermissionDenied,
            account: account.parse().ok(),
            user: holder.rsplit(':').next().and_then(user),
            name: String::new(),
            address: cut(host.trim_matches(['[', ']'])),
            subject: cut(&subject),
            reason: reason.to_owned(),
        })
    };
    if told.starts_with("Publish Violation") {
        denied("publish")
    } else if told.starts_with("Subscription Violation") {
        denied("subscribe")
    } else {
        let reason = told.strip_prefix("TLS handshake error: ")?;
        // The addresses before the reason have another port for each connection.
        let reason = match reason
            .split_once("->")
            .and_then(|(_, rest)| rest.rsplit_once(": "))
        {
            Some((_, reason)) => reason,
            None => reason,
        };
        Some(Sighting {
            happening: Happening::AuthenticationFailed,
            account: None,
            user: None,
            name: String::new(),
            address: cut(host.trim_matches(['[', ']'])),
            subject: String::new(),
            reason: cut(&format!("TLS: {reason}")),
        })
    }
}

/// A text in Go's quotes at the beginning of `text`, and what comes after them. Escapes stay as
/// they are, but for those of quotes.
fn unquoted(text: &str) -> Option<(String, &str)> {
    let inner = text.strip_prefix('"')?;
    let mut found = String::new();
    let mut characters = inner.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((found, &inner[at + 1..])),
            '\\' => match characters.next()?.1 {
                quote @ ('"' | '\\') => found.push(quote),
                other => found.extend(['\\', other]),
            },
            other => found.push(other),
        }
    }
    None
}
