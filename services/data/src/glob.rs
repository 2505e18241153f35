//! Patterns that name files to leave out.

use std::path::Path;
use std::str::FromStr;

/// Longest pattern; a match takes a time proportional to its length times that of the path.
const PATTERN_CHARS_MAX: usize = 1024;

/// A pattern over paths: `*` stands for any characters within a name, `?` for one, and `**` for any
/// characters, including `/`. Without a `/` it is compared with every file's and folder's name,
/// otherwise with the whole path below the folder that is read. A pattern that matches a folder
/// leaves out everything in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    parts: Vec<Part>,
    whole_path: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    This(char),
    One,
    WithinName,
    Any,
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let pattern = text.trim_end_matches('/');
        let length = pattern.chars().count();
        if !(1..=PATTERN_CHARS_MAX).contains(&length) {
            return Err(format!(
                "a pattern of {length} characters, expected 1 to {PATTERN_CHARS_MAX}"
            ));
        }
        let whole_path = pattern.contains('/');
        let mut parts = Vec::with_capacity(length);
        for character in pattern.trim_start_matches('/').chars() {
            match (character, parts.last()) {
                ('*', Some(Part::WithinName)) => {
                    *parts.last_mut().expect("there is one") = Part::Any
                }
                ('*', Some(Part::Any)) => {}
                ('*', _) => parts.push(Part::WithinName),
                ('?', _) => parts.push(Part::One),
                (other, _) => parts.push(Part::This(other)),
            }
        }
        Ok(Self { parts, whole_path })
    }
}

impl Pattern {
    /// True when it names the file or folder at `relative`, a path below the folder that is read.
    pub fn matches(&self, relative: &Path) -> bool {
        if self.whole_path {
            return self.matches_text(&relative.to_string_lossy());
        }
        relative
            .file_name()
            .is_some_and(|name| self.matches_text(&name.to_string_lossy()))
    }

    /// Follows all ways through the pattern at once, character by character, so that no input makes
    /// the match slow.
    fn matches_text(&self, text: &str) -> bool {
        let mut places = vec![false; self.parts.len() + 1];
        places[0] = true;
        let mut starts_name = true;
        self.spread(&mut places, starts_name);
        for character in text.chars() {
            let mut next = vec![false; places.len()];
            for (at, part) in self.parts.iter().enumerate().filter(|(at, _)| places[*at]) {
                match part {
                    Part::This(wanted) => next[at + 1] |= *wanted == character,
                    Part::One => next[at + 1] |= character != '/',
                    Part::WithinName => next[at] |= character != '/',
                    Part::Any => next[at] = true,
                }
            }
            starts_name = character == '/';
            self.spread(&mut next, starts_name);
            places = next;
        }
        places[self.parts.len()]
    }

    /// Adds the places that are reached without a character: a star may stand for nothing, and
    /// `**/` for no folder.
    fn spread(&self, places: &mut [bool], starts_name: bool) {
        for at in 0..self.parts.len() {
            if !places[at] || !matches!(self.parts[at], Part::WithinName | Part::Any) {
                continue;
            }
            places[at + 1] = true;
            if starts_name
                && self.parts[at] == Part::Any
                && self.parts.get(at + 1) == Some(&Part::This('/'))
            {
                places[at + 2] = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_paths_and_stars() {
        let cases = [
            ("*.log", "a/b.log", true),
            ("*.log", "a/b.log.txt", false),
            ("target", "x/target", true),
            ("target/", "target", true),
            ("target", "x/targets", false),
            ("a/*.txt", "a/b.txt", true),
            ("a/*.txt", "a/b/c.txt", false),
            ("/a/*.txt", "a/b.txt", true),
            ("a/**", "a/b/c.txt", true),
            ("**/c.txt", "c.txt", true),
            ("**/c.txt", "a/b/c.txt", true),
            ("**/c.txt", "a/bc.txt", false),
            ("a/**/c.txt", "a/c.txt", true),
            ("?.txt", "ü.txt", true),
            ("?.txt", "üü.txt", false),
            ("***x", "x", true),
        ];
        for (pattern, path, expected) in cases {
            let parsed: Pattern = pattern.parse().expect("a pattern");
            assert_eq!(
                parsed.matches(Path::new(path)),
                expected,
                "{pattern} on {path}"
            );
        }
        assert!("".parse::<Pattern>().is_err() && "/".parse::<Pattern>().is_err());
        assert!(
            "x".repeat(PATTERN_CHARS_MAX + 1)
                .parse::<Pattern>()
                .is_err()
        );
        // A matcher that tried one way after the other would not end here.
        let stars: Pattern = "*a".repeat(100).parse().expect("a pattern");
        assert!(!stars.matches(Path::new(&"ab".repeat(1000))));
    }
}
