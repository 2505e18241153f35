//! The rights that each role should have, read from the rows of `schemas` and from nothing that
//! makes the tokens.

use schemas::PublicKey;
use schemas::account::REPORTS;
use schemas::permission::{LEDGER_WRITER_DENIED, PLUMBING, Role};
use schemas::subject::{Row, TABLE};

/// A client that connects.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub(crate) role: Role,
    pub(crate) key: PublicKey,
    pub(crate) run: String,
}

impl Client {
    pub(crate) fn may_publish(&self, subject: &str) -> bool {
        let rows = TABLE
            .iter()
            .filter(|row| row.publishers.contains(&self.role))
            .map(|row| self.own(row));
        let plumbing = PLUMBING
            .iter()
            .filter(|row| row.role == self.role)
            .map(|row| row.subject.to_owned());
        let denied = self.role == Role::LedgerWriter && LEDGER_WRITER_DENIED.contains(&subject);
        let inbox = format!("_INBOX.{}.>", self.key);
        !denied
            && rows
                .chain(plumbing)
                .chain([inbox])
                .any(|pattern| covers(&pattern, subject))
    }

    pub(crate) fn may_subscribe(&self, subject: &str) -> bool {
        let rows = TABLE
            .iter()
            .filter(|row| row.subscribers.contains(&self.role))
            .map(|row| match self.role.is_tenant() {
                true => self.own(row),
                // The server of a lane listens to the whole lane.
                false => format!("{}.>", row.lane.prefix()),
            });
        let hears = self.role == Role::Recorder;
        let reports = REPORTS.iter().filter(|_| hears);
        rows.chain([format!("_INBOX.{}.>", self.key)])
            .chain(reports.map(|report| report.local.to_owned()))
            .any(|pattern| admits(&pattern, subject))
    }

    /// The row's subjects in the form that this client may use.
    fn own(&self, row: &Row) -> String {
        let tokens = row.pattern.split('.').map(|token| match token {
            "{operator}" | "{holder}" => self.key.as_str(),
            "{worker}" if self.role.is_tenant() => self.key.as_str(),
            "{run}" if self.role.is_tenant() => self.run.as_str(),
            token if token.starts_with('{') => "*",
            token => token,
        });
        let mut parts = vec![row.lane.prefix()];
        // Commands go to the tenant that their sender names.
        if row.lane == schemas::subject::Lane::Command && !self.role.is_tenant() {
            parts.push("*");
        }
        parts.extend(tokens);
        parts.join(".")
    }
}

/// True when the broker lets someone with `pattern` subscribe to `subject`. It looks a `>` up as if
/// it were a plain token, so `a.*` admits `a.>`, which is wider: it also hears `a.b.c`. That no row
/// lies so deep is a test below.
fn admits(pattern: &str, subject: &str) -> bool {
    covers(pattern, subject)
        || subject
            .strip_suffix(".>")
            .is_some_and(|start| covers(pattern, &format!("{start}.*")))
}

/// True when everything that `subject` stands for is covered by `pattern`, as NATS understands
/// both.
fn covers(pattern: &str, subject: &str) -> bool {
    let (mut pattern, mut subject) = (pattern.split('.'), subject.split('.'));
    loop {
        match (pattern.next(), subject.next()) {
            (None, None) | (Some(">"), Some(_)) => return true,
            (Some("*"), Some(token)) if token != ">" => {}
            (Some(wanted), Some(token)) if wanted == token => {}
            _ => return false,
        }
    }
}

#[test]
fn covering_is_that_of_nats() {
    for (pattern, subject) in [
        ("a.*", "a.b"),
        ("a.>", "a.b.c"),
        ("a.*", "a.*"),
        ("a.>", "a.>"),
        ("a.>", "a.*"),
        ("a", "a"),
    ] {
        assert!(covers(pattern, subject), "{pattern} {subject}");
    }
    for (pattern, subject) in [
        ("a.*", "a"),
        ("a.>", "a"),
        ("a.*", "a.>"),
        ("a.b", "a.*"),
        ("a.b", "a.b.c"),
        ("a.*", "a.b.c"),
    ] {
        assert!(!covers(pattern, subject), "{pattern} {subject}");
    }
}

#[test]
fn nothing_is_said_deeper_than_a_last_star() {
    let heard = TABLE
        .iter()
        .filter(|row| row.subscribers.iter().any(|role| role.is_tenant()));
    let mut stars = 0;
    for row in heard.filter(|row| row.pattern.ends_with('}')) {
        let depth = row.pattern.split('.').count();
        let deeper =
            |other: &&Row| other.lane == row.lane && other.pattern.split('.').count() > depth;
        assert_eq!(
            TABLE.iter().filter(deeper).count(),
            0,
            "deeper than {}",
            row.pattern
        );
        stars += 1;
    }
    assert!(stars > 0);
}
