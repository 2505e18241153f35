//! Tokens of a document, handed out passage by passage.
//!
//! A document is encoded as one text and then cut between tokens, never the other way round: a
//! tokenizer that puts something in front of every text, or joins across line ends, would see
//! beginnings that are not there. An encoding takes some hundred bytes a token while it is made, so
//! a long document is encoded in windows that overlap, and these are joined where both give the
//! same tokens.

use std::ops::Range;

use tokenizers::Tokenizer;

use crate::{DataError, TextTokenizer};

/// Bytes of a passage, the least text that is trained on or held out.
pub(crate) const PASSAGE_BYTES: usize = 4 << 10;
/// The windows in which a long document is encoded: 256 KiB at a time, which a processor's cache
/// holds together with the results.
const WINDOWS: Windows = Windows {
    bytes: 256 << 10,
    context: 4 << 10,
};
/// Number of window beginnings that are tried. A common vocabulary groups one repeated letter by up
/// to eight, so among eight adjacent beginnings one fits the groups of the window before.
const BEGINNINGS: usize = 8;

/// The sizes of windows.
#[derive(Clone, Copy, Debug)]
struct Windows {
    /// Text that is encoded together, besides the text that it shares with its neighbours.
    bytes: usize,
    /// Text that a window shares with the next one, on each side of their joint.
    context: usize,
}

/// A token and the text that it stands for, as places in the document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Token {
    id: u32,
    start: usize,
    end: usize,
}

/// A stretch of a document with its tokens.
struct Window {
    span: Range<usize>,
    tokens: Vec<Token>,
}

/// Hands out a document's passages in order, each with its tokens; together they are the document.
/// Returns the number of places at which the text itself had to be cut, because no joint was found
/// at which both windows have the same tokens.
///
/// # Errors
/// The tokenizer cannot represent the text.
pub(crate) fn passages(
    tokenizer: &TextTokenizer,
    text: &str,
    mut emit: impl FnMut(&str, &[u32]),
) -> Result<u64, DataError> {
    match tokenizer {
        TextTokenizer::Byte => {
            let mut rest = text;
            while !rest.is_empty() {
                let (piece, after) = rest.split_at(cut(rest, PASSAGE_BYTES));
                let ids: Vec<u32> = piece.bytes().map(u32::from).collect();
                emit(piece, &ids);
                rest = after;
            }
            Ok(0)
        }
        TextTokenizer::HuggingFace(tokenizer) => WINDOWS.hand_out(tokenizer, text, &mut emit),
    }
}

/// The place to cut a text so that at most `size` bytes come before: after the last line end there,
/// or otherwise at a character.
pub(crate) fn cut(text: &str, size: usize) -> usize {
    let room = floor_char(text, size.min(text.len()));
    let line = if room == text.len() {
        None
    } else {
        text[..room].rfind('\n')
    };
    // A character that is larger than the space is taken nevertheless, so that every cut makes
    // progress.
    let next = text.chars().next().map_or(0, char::len_utf8);
    line.map_or(room, |at| at + 1).max(next)
}

/// The last place at or before `at` where a character begins.
pub(crate) fn floor_char(text: &str, mut at: usize) -> usize {
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

impl Windows {
    fn hand_out(
        self,
        tokenizer: &Tokenizer,
        text: &str,
        emit: &mut impl FnMut(&str, &[u32]),
    ) -> Result<u64, DataError> {
        let mut cuts = 0;
        let mut window = self.window(tokenizer, text, 0, 0)?;
        // Progress so far, in bytes of the document and in tokens of the window.
        let (mut from, mut first) = (0, 0);
        while window.span.end < text.len() {
            let target = from
                + cut(
                    &text[from..floor_char(text, window.span.end - self.context)],
                    self.bytes,
                );
            match self.join(tokenizer, text, &window, target)? {
                Some(joint) if joint.left >= first => {
                    let at = joint.next.tokens[joint.right].start;
                    hand_out(text, from..at, &window.tokens[first..joint.left], emit);
                    (window, from, first) = (joint.next, at, joint.right);
                }
                _ => {
                    cuts += 1;
                    let left = encode(tokenizer, text, window.span.start..target)?;
                    let begin = left.partition_point(|token| token.start < from);
                    hand_out(text, from..target, &left[begin..], emit);
                    (window, from, first) =
                        (self.window(tokenizer, text, target, target)?, target, 0);
                }
            }
        }
        hand_out(text, from..text.len(), &window.tokens[first..], emit);
        Ok(cuts)
    }

    /// Encodes the next window so that it has the same tokens around `target` as the one before. A
    /// long run of one character is grouped from the window's beginning, so some adjacent
    /// beginnings are tried.
    fn join(
        self,
        tokenizer: &Tokenizer,
        text: &str,
        window: &Window,
        target: usize,
    ) -> Result<Option<Joint>, DataError> {
        for shift in 0..BEGINNINGS {
            let next = self.window(
                tokenizer,
                text,
                target.saturating_sub(self.context + shift),
                target,
            )?;
            if let Some((left, right)) = self.seam(&window.tokens, &next.tokens, target) {
                return Ok(Some(Joint { next, left, right }));
            }
        }
        Ok(None)
    }

    /// The tokens from `start` to a window's length and a context after `from`.
    fn window(
        self,
        tokenizer: &Tokenizer,
        text: &str,
        start: usize,
        from: usize,
    ) -> Result<Window, DataError> {
        let start = floor_char(text, start);
        let end = floor_char(text, (from + self.bytes + self.context).min(text.len()));
        // A rest that is shorter than a context would leave nothing to join in.
        let end = if text.len() - end <= 2 * self.context {
            text.len()
        } else {
            end
        };
        Ok(Window {
            span: start..end,
            tokens: encode(tokenizer, text, start..end)?,
        })
    }

    /// The seam of two windows: the numbers of the first token after the joint in each. Half a
    /// context before and after `target` both must have the same tokens, so that neither edge
    /// reaches the joint.
    fn seam(self, left: &[Token], right: &[Token], target: usize) -> Option<(usize, usize)> {
        let near = |tokens: &[Token]| {
            let place = |at: usize| tokens.partition_point(|token| token.start < at);
            place(target.saturating_sub(self.context / 2))..place(target + self.context / 2)
        };
        let (a, b) = (near(left), near(right));
        let (shared_left, shared_right) = (&left[a.clone()], &right[b.clone()]);
        if shared_left != shared_right {
            return None;
        }
        let joints = (1..shared_left.len()).filter(|at| is_boundary(shared_left, *at));
        let best = joints.min_by_key(|at| shared_left[*at].start.abs_diff(target))?;
        Some((a.start + best, b.start + best))
    }
}

/// The window after another, and the numbers of the first token after their joint in each.
struct Joint {
    next: Window,
    left: usize,
    right: usize,
}

fn encode(tokenizer: &Tokenizer, text: &str, span: Range<usize>) -> Result<Vec<Token>, DataError> {
    let part = &text[span.clone()];
    let encoding = tokenizer
        .encode(part, false)
        .map_err(|error| DataError::Tokenizer(error.to_string()))?;
    let pairs = encoding.get_ids().iter().zip(encoding.get_offsets());
    Ok(pairs
        .map(|(id, (start, end))| Token {
            id: *id,
            start: span.start + start,
            end: span.start + end,
        })
        .collect())
}

/// True if all text of the earlier tokens lies before that of the token: several tokens may stand
/// for one character.
fn is_boundary(tokens: &[Token], at: usize) -> bool {
    tokens[at - 1].end <= tokens[at].start
}

/// Cuts a stretch into passages: between tokens, and at line ends if there are any.
fn hand_out(text: &str, span: Range<usize>, tokens: &[Token], emit: &mut impl FnMut(&str, &[u32])) {
    let (mut from, mut first) = (span.start, 0);
    while from < span.end {
        let end = from + cut(&text[from..span.end], PASSAGE_BYTES);
        let may_end =
            |at: usize| is_boundary(tokens, at) && text.is_char_boundary(tokens[at].start);
        let wanted = tokens.partition_point(|token| token.start < end).max(first);
        let before = (first + 1..=wanted.min(tokens.len().saturating_sub(1)))
            .rev()
            .find(|at| may_end(*at));
        let last = match before {
            _ if end == span.end => tokens.len(),
            Some(at) => at,
            // A single token is longer than a passage.
            None => (wanted + 1..tokens.len())
                .find(|at| may_end(*at))
                .unwrap_or(tokens.len()),
        };
        let to = tokens
            .get(last)
            .map_or(span.end, |token| token.start)
            .max(from);
        let ids: Vec<u32> = tokens[first..last].iter().map(|token| token.id).collect();
        emit(&text[from..to], &ids);
        (from, first) = (to, last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    /// Small windows, so that little text has many of them.
    const SMALL: Windows = Windows {
        bytes: 8 << 10,
        context: 512,
    };

    /// Collects everything that is handed out, and the number of cuts.
    fn all(tokenizer: &TextTokenizer, text: &str) -> (Vec<(String, Vec<u32>)>, u64) {
        let mut handed = Vec::new();
        let mut emit = |piece: &str, ids: &[u32]| handed.push((piece.to_owned(), ids.to_vec()));
        let cuts = match tokenizer {
            TextTokenizer::Byte => passages(tokenizer, text, emit),
            TextTokenizer::HuggingFace(tokenizer) => SMALL.hand_out(tokenizer, text, &mut emit),
        };
        (handed, cuts.expect("encodes"))
    }

    fn lines(count: usize) -> String {
        (0..count)
            .map(|line| format!("line {line} of the text — with a dash, äöü\r\n"))
            .collect()
    }

    #[test]
    fn passages_are_the_document_and_their_tokens_those_of_the_document() {
        let long = lines(1000);
        let minified = long.replace(['\r', '\n'], " ");
        let dashes = "-".repeat(30_001);
        let spaces = format!("x{}y", " ".repeat(20_000));
        for text in [
            "short",
            &long,
            &minified,
            &dashes,
            &spaces,
            &"ü".repeat(5000),
        ] {
            for (name, json) in fixture::tokenizers() {
                let tokenizer = TextTokenizer::hugging_face(json.as_bytes()).expect("loads");
                let (handed, cuts) = all(&tokenizer, text);
                let shown = format!(
                    "{name} on {} bytes from {:?}",
                    text.len(),
                    text.chars().next()
                );
                assert_eq!(cuts, 0, "{shown}");
                let texts: String = handed.iter().map(|(piece, _)| piece.as_str()).collect();
                assert!(texts == *text, "{shown}");
                let ids: Vec<u32> = handed
                    .iter()
                    .flat_map(|(_, ids)| ids.iter().copied())
                    .collect();
                assert!(ids == tokenizer.encode(text).expect("encodes"), "{shown}");
                assert!(
                    handed
                        .iter()
                        .all(|(piece, _)| piece.len() <= 2 * PASSAGE_BYTES),
                    "{shown}"
                );
            }
        }
    }

    #[test]
    fn passages_end_at_lines_and_characters() {
        for (piece, _) in &all(&TextTokenizer::Byte, &lines(2000)).0 {
            assert!(piece.len() <= PASSAGE_BYTES && piece.ends_with('\n'));
        }
        let handed = all(&TextTokenizer::Byte, &"ä".repeat(9001)).0;
        assert!(handed.iter().all(|(piece, _)| piece.len() <= PASSAGE_BYTES));
        assert_eq!(
            handed.iter().map(|(_, ids)| ids.len()).sum::<usize>(),
            2 * 9001
        );
    }

    #[test]
    fn a_token_longer_than_all_windows_costs_a_cut_that_is_counted() {
        let words = TextTokenizer::hugging_face(fixture::WORDS.as_bytes()).expect("loads");
        let text = "x".repeat(SMALL.bytes * 3);
        let (handed, cuts) = all(&words, &text);
        assert_eq!(
            handed.iter().map(|(piece, _)| piece.len()).sum::<usize>(),
            text.len()
        );
        assert!(cuts > 0);
    }

    #[test]
    fn windows_that_disagree_are_not_joined() {
        let token = |start: usize| Token {
            id: 7,
            start,
            end: start + 2,
        };
        let even: Vec<Token> = (0..2000).map(|at| token(at * 2)).collect();
        let odd: Vec<Token> = (0..2000).map(|at| token(at * 2 + 1)).collect();
        assert_eq!(SMALL.seam(&even, &even[500..], 2000), Some((1000, 500)));
        assert_eq!(SMALL.seam(&even, &odd, 2000), None);
    }
}
