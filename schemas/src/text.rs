//! Text that somebody else wrote, on its way to a person. A name, a reason or a file name may hold
//! anything: line ends that forge rows, sequences that move a terminal's cursor or colour its text,
//! marks that turn the direction of reading, invisible marks. Here each of them becomes visible and
//! harmless. Programs get the text unchanged, in JSON.

use std::fmt::{self, Write as _};

use crate::UnixMillis;

/// Most characters of text on one line; more is cut. It is above every limit that a text has on the
/// bus.
const SHOWN_CHARACTERS_MAX: usize = 2048;
/// The beginning of each further line of a text with several lines, so that none of them looks like
/// a line of the program.
const CONTINUED: &str = "\n  | ";

/// A text on one line. Invisible characters, and those that a terminal would obey, are written in
/// the form `\u{1b}`.
#[derive(Clone, Copy, Debug)]
pub struct Shown<'a>(pub &'a str);

/// A text that may have several lines, such as the end of a log: each line is [`Shown`], and those
/// after the first are set apart.
#[derive(Clone, Copy, Debug)]
pub struct ShownLines<'a>(pub &'a str);

/// A text of several lines that the user asked for, such as a model's output: line ends and tabs
/// stay, and other control characters are escaped.
#[derive(Clone, Copy, Debug)]
pub struct ShownText<'a>(pub &'a str);

/// A JSON document on one line that a terminal can show: characters that [`Shown`] escapes are
/// written in the form `\u001b`. They can occur only in JSON strings, where that means the same.
#[derive(Clone, Copy, Debug)]
pub struct ShownJson<'a>(pub &'a str);

/// A time as people read it: RFC 3339, UTC, whole seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time(pub UnixMillis);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, character) in self.0.chars().enumerate() {
            if place == SHOWN_CHARACTERS_MAX {
                return f.write_char('…');
            }
            write(f, character)?;
        }
        Ok(())
    }
}

impl fmt::Display for ShownLines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, line) in self.0.trim_end_matches('\n').split('\n').enumerate() {
            if place > 0 {
                f.write_str(CONTINUED)?;
            }
            Shown(line.strip_suffix('\r').unwrap_or(line)).fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for ShownText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                '\n' | '\t' => f.write_char(character)?,
                _ => write(f, character)?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for ShownJson<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut units = [0; 2];
        for character in self.0.chars() {
            if is_harmless(character) {
                f.write_char(character)?;
            } else {
                for unit in character.encode_utf16(&mut units) {
                    write!(f, "\\u{unit:04x}")?;
                }
            }
        }
        Ok(())
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.get() / 1000;
        let (days, second) = (seconds / 86_400, seconds % 86_400);
        let (year, month, day) = civil(days);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z"
        )
    }
}

/// True if a text can be shown unchanged in a table, a log and a terminal.
pub fn is_plain(text: &str) -> bool {
    text.chars().all(is_harmless)
}

fn write(f: &mut fmt::Formatter<'_>, character: char) -> fmt::Result {
    if is_harmless(character) {
        f.write_char(character)
    } else {
        write!(f, "{}", character.escape_unicode())
    }
}

/// True if a character is visible and has no other effect.
const fn is_harmless(character: char) -> bool {
    !matches!(character,
        // Control characters of both sets; escape sequences begin with one of them.
        '\u{0}'..='\u{1f}' | '\u{7f}'..='\u{9f}'
        // Invisible characters: soft hyphen, marks of Arabic and Mongolian, fillers of Hangul.
        | '\u{ad}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{180e}' | '\u{3164}' | '\u{ffa0}'
        // Zero-width marks, the direction of reading, separators of lines and paragraphs, invisible
        // operators.
        | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        // Byte order mark, interlinear marks, tags.
        | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

/// Year, month and day of a day since 1970, in the Gregorian calendar. The years begin in March, so
/// that leap days are at their end.
const fn civil(days: u64) -> (u64, u64, u64) {
    /// Days from 0000-03-01 to 1970-01-01.
    const TO_1970: u64 = 719_468;
    const DAYS_OF_400_YEARS: u64 = 146_097;
    let days = days + TO_1970;
    let (era, day) = (days / DAYS_OF_400_YEARS, days % DAYS_OF_400_YEARS);
    let year = (day - day / 1460 + day / 36_524 - day / (DAYS_OF_400_YEARS - 1)) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    // Months of 31 and 30 days in turn, from March on: five of them have 153.
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400;
    (if month <= 2 { year + 1 } else { year }, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One character of every kind that must not reach a terminal.
    const HOSTILE: &str = "a\u{1b}[2J\u{1b}]0;x\u{7}\n\r\t\u{7f}\u{9b}31m\u{202e}b\u{2066}\u{200b}\u{feff}\u{2028}\u{e0041}z";

    #[test]
    fn nothing_that_a_terminal_obeys_is_left() {
        for shown in [Shown(HOSTILE).to_string(), ShownJson(HOSTILE).to_string()] {
            assert!(
                is_plain(&shown) && shown.starts_with('a') && shown.ends_with('z'),
                "{shown}"
            );
        }
        assert!(
            Shown(HOSTILE)
                .to_string()
                .starts_with("a\\u{1b}[2J\\u{1b}]0;x\\u{7}\\u{a}")
        );
        assert!(!is_plain(HOSTILE));
        for text in [
            "",
            "cuda:0 NVIDIA H100 80GB HBM3",
            "größer ✓ 日本語",
            "\"quoted\" \\ back",
        ] {
            assert!(is_plain(text));
            assert_eq!(Shown(text).to_string(), text);
        }
    }

    #[test]
    fn a_line_of_others_cannot_pass_for_one_of_ours() {
        assert_eq!(
            ShownLines("one\nerror DL0000\r\n\u{1b}x\n").to_string(),
            "one\n  | error DL0000\n  | \\u{1b}x"
        );
        assert_eq!(
            ShownText("fn a() {\n\tb\u{1b}\n}\n").to_string(),
            "fn a() {\n\tb\\u{1b}\n}\n"
        );
    }

    #[test]
    fn what_is_too_long_is_cut() {
        let shown = Shown(&"ä".repeat(SHOWN_CHARACTERS_MAX + 1)).to_string();
        assert_eq!(shown.chars().count(), SHOWN_CHARACTERS_MAX + 1);
        assert!(shown.ends_with("ä…"));
    }

    #[test]
    fn json_means_the_same_afterwards() {
        assert_eq!(
            ShownJson("{\"a\":\"\u{9b}\u{e0041}\"}").to_string(),
            "{\"a\":\"\\u009b\\udb40\\udc41\"}"
        );
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, shown) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_799, "2000-02-29T23:59:59Z"),
            (1_709_251_200, "2024-03-01T00:00:00Z"),
            (1_798_675_199, "2026-12-30T23:59:59Z"),
            (4_102_444_800, "2100-01-01T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (253_402_300_799, "9999-12-31T23:59:59Z"),
        ] {
            assert_eq!(Time(UnixMillis(seconds * 1000 + 999)).to_string(), shown);
        }
        // A number that is no valid time is shown nevertheless.
        assert!(Time(UnixMillis(u64::MAX)).to_string().ends_with('Z'));
    }
}
