//! `doctor`: looks for what is wrong with a deployment, from the files of this machine to the runs,
//! and says what to do next. It changes nothing. A check that cannot be made, since what it rests
//! on failed, is skipped and says so.

mod bus;
mod log;
mod machine;
mod posture;
mod runs;
mod store;

use std::path::Path;

use runtime::Failure;
use schemas::Code;
use serde::Serialize;

use crate::cli::Declarations;
use crate::context::Context;
use crate::output::{Format, Row};
use posture::PostureRow;

/// What a check found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Ok,
    /// It works, and a person should look.
    Warn,
    /// It does not work, or is not safe.
    Fail,
    /// It was not looked at.
    Skipped,
}

impl State {
    const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
            Self::Skipped => "skipped",
        }
    }
}

/// The outcome of one check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    check: &'static str,
    state: State,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<Code>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<&'static str>,
}

impl Finding {
    fn ok(check: &'static str, found: impl ToString) -> Self {
        Self {
            check,
            state: State::Ok,
            found: found.to_string(),
            code: None,
            next: None,
        }
    }

    fn skipped(check: &'static str, reason: impl ToString) -> Self {
        Self {
            state: State::Skipped,
            ..Self::ok(check, reason)
        }
    }

    fn warn(check: &'static str, code: Code, found: impl ToString) -> Self {
        Self {
            state: State::Warn,
            code: Some(code),
            next: Some(code.next_step()),
            ..Self::ok(check, found)
        }
    }

    fn fail(check: &'static str, failure: &Failure) -> Self {
        let refusal = failure.refusal();
        Self {
            state: State::Fail,
            ..Self::warn(check, refusal.code, &refusal.detail)
        }
    }
}

impl Row for Finding {
    const TITLES: &'static [&'static str] = &["state", "check", "code", "found"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.state.name().to_owned(),
            self.check.to_owned(),
            self.code
                .map_or_else(|| "-".to_owned(), |code| code.to_string()),
            self.found.clone(),
        ]
    }
}

/// Everything that was found.
#[derive(Debug, Default, Serialize)]
struct Report {
    findings: Vec<Finding>,
    postures: Vec<PostureRow>,
}

impl Report {
    fn add(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    /// The failure of the command: the first check that failed.
    fn failure(&self) -> Option<Failure> {
        let mut failed = self
            .findings
            .iter()
            .filter(|finding| finding.state == State::Fail);
        let first = failed.next()?;
        let code = first.code.expect("a failed check has a code");
        let more = match failed.count() {
            0 => String::new(),
            count => format!(" ({} failed)", number(count, "more check")),
        };
        let detail = format!("{}: {}{more}", first.check, first.found);
        Some(Failure::new(code, detail))
    }

    fn print(&self, context: &Context) {
        let printer = context.printer;
        match printer.format() {
            Format::Json | Format::Jsonl => printer.document(self),
            Format::Table => {
                printer.rows(&self.findings);
                if !self.postures.is_empty() {
                    printer.talk("layers of authentication, by process:");
                    printer.rows(&self.postures);
                }
                // The failure's own next step is printed with it, below everything.
                let failure = self.failure().map(|failure| failure.code());
                let mut said: Vec<Code> = failure.into_iter().collect();
                for finding in &self.findings {
                    if let (Some(code), Some(next)) = (finding.code, finding.next)
                        && !said.contains(&code)
                    {
                        said.push(code);
                        printer.talk(&format!("{code} {}\n  next: {next}", code.title()));
                    }
                }
            }
        }
    }
}

/// `1 key`, `2 keys`.
fn number(count: usize, thing: &str) -> String {
    match count {
        1 => format!("1 {thing}"),
        count => format!("{count} {thing}s"),
    }
}

/// Makes all checks, prints what they found, and fails if one failed.
pub(crate) async fn run(context: &Context, nats_config: &Path) -> Result<(), Failure> {
    let mut report = Report::default();
    machine::look(context, &mut report)?;
    let declarations = Declarations {
        nats_config: nats_config.to_owned(),
        replicas: 1,
    };
    let operator = bus::look(context, &declarations, &mut report).await;
    store::look(context, &mut report).await;
    log::look(context, &mut report).await;
    if let Some(operator) = operator {
        runs::look(&operator, &mut report).await;
    }
    posture::look(context, &mut report)?;
    report.print(context);
    report.failure().map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failed_check_decides_how_the_command_ends() {
        let mut report = Report::default();
        report.add(Finding::ok("disk", "9 GiB free"));
        report.add(Finding::warn("ends", Code::EndsSoon, "soon"));
        report.add(Finding::skipped("store", "no keys"));
        assert!(report.failure().is_none(), "nothing failed");
        for (check, code) in [
            ("broker", Code::BusUnreachable),
            ("streams", Code::StreamMissing),
        ] {
            report.add(Finding::fail(check, &Failure::new(code, "gone")));
        }
        let failure = report.failure().expect("two checks failed");
        assert_eq!(failure.code(), Code::BusUnreachable);
        assert_eq!(
            failure.refusal().detail,
            "broker: gone (1 more check failed)"
        );
    }
}
