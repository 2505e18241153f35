//! One try of rules, of which some may stay unknown: a store that is busy or away for a moment
//! breaks no rule.

use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::report::{Report, Rule};
use super::{PATIENCE, Probe};
use crate::error::ObjectError;

/// Tries of a part while the store's answers do not say how it keeps the rules.
const TRIES: u32 = 3;
/// The pause before another try.
const PAUSE: Duration = Duration::from_secs(1);

/// Rules that are tried together.
#[derive(Clone, Copy, Debug)]
pub(super) enum Part {
    Uploads,
    Bindings,
    Rights,
    Creation,
    Reading,
    Housekeeping,
}

/// The reason why the rules that are tried at present are not judged, if there is one.
#[derive(Debug, Default)]
pub(super) struct Unanswered(Mutex<Option<String>>);

/// The rows of a try.
pub(super) struct Tried<'a> {
    unanswered: &'a Unanswered,
    report: Report,
    /// Rules that the store must keep, and of which nothing is known.
    unknown: Vec<(Rule, String)>,
}

impl Probe {
    /// Tries parts, and adds their rows.
    ///
    /// # Errors
    /// Of some rule nothing is known, and nothing else shows that the store is unfit.
    pub(super) async fn tries(
        &self,
        parts: &[Part],
        report: &mut Report,
    ) -> Result<(), ObjectError> {
        for part in parts {
            let part = self.judged(*part, report.is_fit()).await?;
            report.rows.extend(part.rows);
        }
        Ok(())
    }

    /// Tries a part, again while nothing is known, unless the store did not answer for long.
    async fn judged(&self, part: Part, is_fit: bool) -> Result<Report, ObjectError> {
        let (begun, mut left) = (Instant::now(), TRIES);
        loop {
            let mut tried = Tried::new(&self.unanswered);
            self.number.fetch_add(1, Ordering::Relaxed);
            match part {
                Part::Uploads => self.uploads(&mut tried).await,
                Part::Bindings => self.bindings(&mut tried).await,
                Part::Rights => self.rights(&mut tried).await,
                Part::Creation => self.creation(&mut tried).await,
                Part::Reading => self.reading(&mut tried).await,
                Part::Housekeeping => self.housekeeping(&mut tried).await,
            }
            left -= 1;
            match tried.judged(is_fit) {
                Err(_) if left > 0 && begun.elapsed() < PATIENCE => sleep(PAUSE).await,
                judged => return judged,
            }
        }
    }
}

impl Unanswered {
    /// Notes a reason, if there is one.
    pub(super) fn note(&self, reason: Option<String>) {
        if reason.is_some() {
            *self.reason() = reason;
        }
    }

    /// The reason, if one was noted.
    pub(super) fn reason(&self) -> MutexGuard<'_, Option<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<'a> Tried<'a> {
    pub(super) fn new(unanswered: &'a Unanswered) -> Self {
        *unanswered.reason() = None;
        Self {
            unanswered,
            report: Report { rows: Vec::new() },
            unknown: Vec::new(),
        }
    }

    /// Notes how the store keeps a rule. It is not known to break one if any request before was not
    /// answered, since what it was to do is missing later.
    pub(super) fn note(&mut self, rule: Rule, holds: bool, seen: impl Into<String>) {
        let reason = self.unanswered.reason().clone();
        if let Some(reason) = reason.filter(|_| !holds && rule.is_required()) {
            self.unknown.push((rule, reason));
        }
        self.report.note(rule, holds, seen);
    }

    /// The rows, if all is known or the store is unfit anyway.
    ///
    /// # Errors
    /// [`ObjectError::Unreachable`] with the rules that are not known.
    fn judged(self, is_fit: bool) -> Result<Report, ObjectError> {
        let unknown = |rule| self.unknown.iter().any(|(unknown, _)| *unknown == rule);
        let mut rows = self.report.rows.iter();
        let is_fit = is_fit && rows.all(|row| row.holds || !row.required || unknown(row.rule));
        if self.unknown.is_empty() || !is_fit {
            return Ok(self.report);
        }
        let unknown = self.unknown.iter();
        let unknown: Vec<String> = unknown
            .map(|(rule, reason)| format!("{rule} ({reason})"))
            .collect();
        Err(ObjectError::Unreachable {
            during: "check of the store's rules".to_owned(),
            reason: format!("not known: {}", unknown.join("; ")),
        })
    }
}

#[cfg(test)]
mod tests {
    use schemas::Code;

    use super::*;

    const REQUIRED: Rule = Rule::KeyBinds;
    const OPTIONAL: Rule = Rule::OverwriteRefused;

    /// The number of rules that these leave broken, each with true if it holds and true if a
    /// request was not answered; none if the store cannot be judged.
    fn broken(is_fit: bool, rules: &[(Rule, bool, bool)]) -> Option<usize> {
        let unanswered = Unanswered::default();
        unanswered.note(Some("of a try before".to_owned()));
        let mut tried = Tried::new(&unanswered);
        for (rule, holds, silent) in rules {
            unanswered.note(silent.then(|| "503".to_owned()));
            tried.note(*rule, *holds, "seen");
        }
        match tried.judged(is_fit) {
            Ok(report) => Some(report.rows.iter().filter(|row| !row.holds).count()),
            Err(error) => {
                assert_eq!(error.code(), Code::StoreUnreachable);
                let said = error.to_string();
                assert!(said.contains("the signed key binds (503)"), "{said}");
                None
            }
        }
    }

    #[test]
    fn a_rule_is_not_broken_by_a_store_that_gave_no_answer() {
        assert_eq!(broken(true, &[(REQUIRED, false, true)]), None);
        assert_eq!(broken(false, &[(REQUIRED, false, true)]), Some(1));
        assert_eq!(broken(true, &[(REQUIRED, true, true)]), Some(0));
        assert_eq!(broken(true, &[(REQUIRED, false, false)]), Some(1));
        // A rule that it may break is no reason to try again.
        assert_eq!(broken(true, &[(OPTIONAL, false, true)]), Some(1));
        // What was not answered may be missing later.
        let later = [(OPTIONAL, false, true), (REQUIRED, false, false)];
        assert_eq!(broken(true, &later), None);
        let before = [(Rule::LengthBinds, false, false), (REQUIRED, false, true)];
        assert_eq!(broken(true, &before), Some(2));
    }
}
