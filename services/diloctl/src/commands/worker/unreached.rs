//! `worker quarantine` while the coordinator or the broker does not answer: what can be done
//! without them is done, and the rest is named with the command that does it.

use runtime::Failure;
use schemas::hold::Reason;
use schemas::permission::Role;
use schemas::{Class, Code, RunId, WorkerId};
use serde::Serialize;

use super::SHORT_MIN;
use super::credential::Credential;
use crate::context::Context;
use crate::output::Record;

/// True if the order may have reached nobody, so that the coordinator has not refused it.
pub(super) fn is_unanswered(failure: &Failure) -> bool {
    matches!(failure.code().class(), Class::Away | Class::Busy)
}

/// Revokes the credential of a worker that the coordinator could not be told to shut out, and shows
/// what is done and what is not. This fails in any case.
///
/// # Errors
/// The reason why the order was not given, and that of the revocation, if that failed too.
pub(super) async fn revoke(
    context: &Context,
    run: RunId,
    named: &str,
    worker: Option<WorkerId>,
    reason: &Reason,
    failure: Failure,
) -> Result<(), Failure> {
    let worker = match worker {
        Some(worker) => worker,
        None => match recorded(context, named) {
            Ok(worker) => worker,
            Err(unknown) => return Err(failure.and(&unknown)),
        },
    };
    let (credential, done) = Credential::revoke(context, &worker, reason).await;
    let refusal = failure.refusal();
    context.printer.record(&Unreached {
        run,
        // The coordinator may have done it, and its answer may be lost.
        quarantined: (failure.code() != Code::NoAnswer).then_some(false),
        unanswered: refusal.to_string(),
        credential,
        reason: reason.clone(),
        worker,
    });
    match done {
        Ok(()) => Err(failure),
        Err(other) => Err(failure.and(&other)),
    }
}

/// The worker that a person means, by the domain's list of issued credentials: its name, or the
/// first letters of its key.
fn recorded(context: &Context, named: &str) -> Result<WorkerId, Failure> {
    let all = context.domain()?.layout().issued().all()?;
    let mut keys: Vec<String> = all
        .into_iter()
        .filter(|one| one.role == Role::Worker)
        .filter(|one| {
            let key = one.public.as_str();
            one.name == named || (named.len() >= SHORT_MIN && key.starts_with(named))
        })
        .map(|one| one.public.to_string())
        .collect();
    keys.sort();
    let unknown = |text: String| {
        let text = format!("nothing was revoked: {text}");
        Failure::new(Code::WorkerUnknown, text)
    };
    match &keys[..] {
        [one] => one
            .parse()
            .map_err(|_| unknown(format!("{one} is no worker's key"))),
        [] => Err(unknown(format!(
            "this folder has no record of a worker {named}; name the whole key"
        ))),
        several => Err(unknown(format!("{named} may be {}", several.join(" or ")))),
    }
}

/// A worker that is not shut out of its run, and what could be done about it.
#[derive(Serialize)]
struct Unreached {
    run: RunId,
    worker: WorkerId,
    /// `None` if nobody knows: the order was sent, and no answer came.
    quarantined: Option<bool>,
    /// The reason why nothing is known of the order, or why it was not given.
    unanswered: String,
    credential: Credential,
    reason: Reason,
}

impl Record for Unreached {
    fn lines(&self) -> Vec<(&'static str, String)> {
        let Self { run, worker, .. } = self;
        let reason = quoted(self.reason.as_str());
        let order = match self.quarantined {
            None => "not known to be shut out of the run",
            Some(_) => "NOT shut out of the run",
        };
        vec![
            ("run", run.to_string()),
            (
                "worker",
                format!("{worker}: {order}: {}", self.unanswered),
            ),
            ("credential", self.credential.text(worker, run)),
            (
                "not done",
                "as long as it is not shut out, what it contributed to the open round still counts, its lease ends only by itself, and its \
                 uploads stay"
                    .to_owned(),
            ),
            (
                "next",
                format!(
                    "when the coordinator answers, the same command does the rest: `diloctl worker \
                     quarantine {worker} --run {run} --reason {reason}`"
                ),
            ),
        ]
    }
}

/// A text as one argument of a shell, which finds nothing to expand in it.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tl_31_only_an_order_that_nobody_answered_is_carried_out_in_part() {
        let unanswered = |code| is_unanswered(&Failure::new(code, "x"));
        for code in [
            Code::NoAnswer,
            Code::BusUnreachable,
            Code::StreamNotStored,
            Code::CertificateUntrusted,
        ] {
            assert!(unanswered(code), "{code}");
        }
        for code in [Code::RunUnknown, Code::BusDenied, Code::QuarantineFull] {
            assert!(!unanswered(code), "{code}");
        }
    }

    #[test]
    fn tl_31_what_is_not_done_is_named_with_the_command_that_does_it() {
        let worker: WorkerId = format!("U{}", "A".repeat(55)).parse().expect("a key");
        let shown = Unreached {
            run: "demo".parse().expect("a name"),
            worker: worker.clone(),
            quarantined: Some(false),
            unanswered: "DL0204: nobody".to_owned(),
            credential: Credential::Pending {
                reason: "DL0123".to_owned(),
            },
            reason: "odd norms".parse().expect("a reason"),
        };
        let line = |name: &str| {
            let mut lines = shown.lines().into_iter();
            lines.find(|(own, _)| *own == name).expect("it is there").1
        };
        assert!(line("worker").contains("NOT shut out of the run: DL0204"));
        assert!(line("credential").starts_with("kept: "));
        assert!(line("not done").contains("still counts"));
        let command =
            format!("`diloctl worker quarantine {worker} --run demo --reason 'odd norms'`");
        assert!(line("next").ends_with(&command), "{}", line("next"));
        assert_eq!(quoted("it's $(x)"), r"'it'\''s $(x)'");
        let unknown = Unreached {
            quarantined: None,
            ..shown
        };
        let mut lines = unknown.lines().into_iter();
        let worker = lines
            .find(|(own, _)| *own == "worker")
            .expect("it is there");
        assert!(worker.1.contains("not known to be shut out"));
    }
}
