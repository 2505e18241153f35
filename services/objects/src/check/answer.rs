//! The answer of a store to one request of a check.

use std::fmt;

/// An HTTP status, or the failure in its place.
pub(super) struct Answer(pub(super) Result<u16, String>);

impl Answer {
    pub(super) const fn accepted(&self) -> bool {
        matches!(self.0, Ok(200..=299))
    }

    pub(super) const fn refused(&self) -> bool {
        matches!(self.0, Ok(400..=499)) && !self.says_nothing()
    }

    /// True for an answer that says nothing about the store's rules: none came, or the store had no
    /// time. One that cannot do what it is asked for (501) says so.
    pub(super) const fn says_nothing(&self) -> bool {
        !matches!(self.0, Ok(..=428 | 430..=499 | 501 | 600..))
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Ok(status) => status.fmt(f),
            Err(text) => f.write_str(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_a_store_that_has_no_time_says_nothing_about_its_rules() {
        let silent = Answer(Err("no answer".to_owned()));
        let busy = [429, 500, 502, 503, 504, 507, 599].map(|status| Answer(Ok(status)));
        for answer in busy.iter().chain([&silent]) {
            let judged = answer.accepted() || answer.refused();
            assert!(answer.says_nothing() && !judged, "{answer}");
        }
        for status in [200, 206, 400, 403, 404, 412, 428, 430, 499, 501] {
            assert!(!Answer(Ok(status)).says_nothing(), "{status}");
        }
        let refused = [400, 499, 399, 500].map(|status| Answer(Ok(status)).refused());
        assert_eq!(refused, [true, true, false, false]);
    }
}
