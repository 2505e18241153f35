//! Received subjects: their parts, their senders, and the form in which the sender wrote them.

use std::borrow::Cow;
use std::str::FromStr;

use super::{ASK, ControlVerb, Lane, LogVerb, NEW_TOKEN, Verb};
use crate::account::ACCOUNT_TOKEN_POSITION;
use crate::id::CLUSTER;
use crate::security::Refuser;
use crate::{AccountId, PublicKey, Round, RunId, WorkerId};

/// A subject that the coordinator or the auditor receives, in its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "fields are the tokens that TABLE names")]
pub enum Incoming {
    Request {
        account: AccountId,
        run: RunId,
        worker: WorkerId,
        verb: Verb,
    },
    Heartbeat {
        account: AccountId,
        run: RunId,
        worker: WorkerId,
    },
    Control {
        operator: PublicKey,
        verb: ControlVerb,
    },
    WorkerEvent {
        account: AccountId,
        run: RunId,
        worker: WorkerId,
        kind: String,
    },
    Log {
        account: AccountId,
        run: RunId,
        worker: WorkerId,
        verb: LogVerb,
    },
    /// A question of the coordinator about the log, with the key of its credentials.
    LedgerHead {
        account: AccountId,
        holder: PublicKey,
    },
    Recorded {
        account: AccountId,
        run: RunId,
        worker: WorkerId,
        kind: String,
    },
    Ledger {
        run: Option<RunId>,
        emitter: PublicKey,
        kind: String,
    },
    Security {
        emitter: PublicKey,
        kind: String,
    },
    Refusal {
        account: AccountId,
        refuser: Refuser,
    },
    Renewal {
        account: AccountId,
        run: Option<RunId>,
        holder: PublicKey,
    },
    Enrolment {
        account: AccountId,
        invitation: PublicKey,
    },
    Offer {
        run: RunId,
        round: Round,
        unit: String,
    },
}

/// The worker under whose name an event was recorded. The event itself may claim any name.
pub fn recorded_worker(subject: &str) -> Option<(AccountId, RunId, WorkerId)> {
    let rest = subject
        .strip_prefix(Lane::Record.prefix())?
        .strip_prefix('.')?;
    sender(rest).map(|(account, run, worker, _)| (account, run, worker))
}

/// A subject as its sender wrote it: without the account that the broker adds when a message
/// crosses accounts.
pub fn as_sent(subject: &str) -> Cow<'_, str> {
    let lane = subject
        .match_indices('.')
        .nth(1)
        .map(|(end, _)| &subject[..end]);
    let crosses = Lane::ALL
        .iter()
        .any(|one| one.crosses_accounts() && lane == Some(one.prefix()));
    let tokens = || {
        subject
            .split('.')
            .enumerate()
            .filter(|(place, _)| *place + 1 != usize::from(ACCOUNT_TOKEN_POSITION))
    };
    match crosses {
        true => Cow::Owned(
            tokens()
                .map(|(_, token)| token)
                .collect::<Vec<_>>()
                .join("."),
        ),
        false => Cow::Borrowed(subject),
    }
}

/// The key of the sender of a message to a service, since the broker holds every sender to its own
/// key. None if the subject has no such place; the rest of the subject may be anything.
pub fn sender_key(subject: &str) -> Option<PublicKey> {
    let mut tokens = subject.splitn(3, '.');
    let (first, lane, rest) = (tokens.next()?, tokens.next()?, tokens.next()?);
    match (first, lane) {
        ("diloco", "renewal") => {
            let mut tokens = rest.splitn(4, '.');
            let (_account, _run) = (tokens.next()?, tokens.next()?);
            tokens.next()?.parse().ok()
        }
        ("diloco", "enrolment") => {
            let mut tokens = rest.splitn(3, '.');
            let _account = tokens.next()?;
            tokens.next()?.parse().ok()
        }
        ("diloco", "control") => rest.split('.').next()?.parse().ok(),
        ("diloco", "log") if of_cluster(rest).is_some() => {
            of_cluster(rest).map(|(_, holder, _)| holder)
        }
        ("diloco", "request" | "event" | "log" | "telemetry") => {
            let (_, _, worker, _) = sender(rest)?;
            worker.as_str().parse().ok()
        }
        _ => None,
    }
}

/// A text that is no subject of this project.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no such subject: {0:?}")]
pub struct SubjectError(String);

impl FromStr for Incoming {
    type Err = SubjectError;

    fn from_str(subject: &str) -> Result<Self, SubjectError> {
        parse(subject).ok_or_else(|| SubjectError(subject.chars().take(200).collect()))
    }
}

fn parse(subject: &str) -> Option<Incoming> {
    let mut tokens = subject.splitn(3, '.');
    let (first, lane, rest) = (tokens.next()?, tokens.next()?, tokens.next()?);
    if first != "diloco" {
        return None;
    }
    match lane {
        "request" => {
            let (account, run, worker, verb) = sender(rest)?;
            Some(Incoming::Request {
                account,
                run,
                worker,
                verb: Verb::from_token(verb)?,
            })
        }
        "telemetry" => {
            let (account, run, worker, kind) = sender(rest)?;
            (kind == "heartbeat").then_some(Incoming::Heartbeat {
                account,
                run,
                worker,
            })
        }
        "control" => {
            let (operator, verb) = rest.split_once('.')?;
            Some(Incoming::Control {
                operator: operator.parse().ok()?,
                verb: ControlVerb::from_token(verb)?,
            })
        }
        "renewal" => {
            let (account, run, holder) = renewal(rest)?;
            Some(Incoming::Renewal {
                account,
                run,
                holder,
            })
        }
        "enrolment" => {
            let (account, rest) = rest.split_once('.')?;
            let (invitation, verb) = rest.split_once('.')?;
            (verb == ASK).then_some(Incoming::Enrolment {
                account: account.parse().ok()?,
                invitation: invitation.parse().ok()?,
            })
        }
        "ledger" => ledger(rest),
        "security" => {
            let (emitter, kind) = rest.split_once('.')?;
            let emitter = emitter.parse().ok()?;
            token(kind).map(|kind| Incoming::Security { emitter, kind })
        }
        "refusal" => {
            let (account, refuser) = rest.split_once('.')?;
            let mut reporting = Refuser::REPORTING.into_iter();
            Some(Incoming::Refusal {
                account: account.parse().ok()?,
                refuser: reporting.find(|one| one.name() == refuser)?,
            })
        }
        "event" => {
            let (account, run, worker, kind) = sender(rest)?;
            token(kind).map(|kind| Incoming::WorkerEvent {
                account,
                run,
                worker,
                kind,
            })
        }
        "log" => {
            if let Some((account, holder, verb)) = of_cluster(rest) {
                let is_head = LogVerb::from_token(verb) == Some(LogVerb::Head);
                return is_head.then_some(Incoming::LedgerHead { account, holder });
            }
            let (account, run, worker, verb) = sender(rest)?;
            Some(Incoming::Log {
                account,
                run,
                worker,
                verb: LogVerb::from_token(verb)?,
            })
        }
        "record" => {
            let (account, run, worker, kind) = sender(rest)?;
            token(kind).map(|kind| Incoming::Recorded {
                account,
                run,
                worker,
                kind,
            })
        }
        "work" => {
            let mut tokens = rest.split('.');
            let (run, round, unit) = (tokens.next()?, tokens.next()?, tokens.next()?);
            let round = Round(round.parse().ok()?);
            let unit = token(unit).filter(|_| tokens.next().is_none())?;
            Some(Incoming::Offer {
                run: run.parse().ok()?,
                round,
                unit,
            })
        }
        _ => None,
    }
}

fn sender(rest: &str) -> Option<(AccountId, RunId, WorkerId, &str)> {
    let mut tokens = rest.splitn(4, '.');
    let account = tokens.next()?.parse().ok()?;
    let run = tokens.next()?.parse().ok()?;
    let worker = tokens.next()?.parse().ok()?;
    Some((account, run, worker, tokens.next()?))
}

/// The account, the key and the verb of a question that belongs to no run.
fn of_cluster(rest: &str) -> Option<(AccountId, PublicKey, &str)> {
    let mut tokens = rest.splitn(4, '.');
    let account = tokens.next()?.parse().ok()?;
    let holder = (tokens.next()? == CLUSTER).then(|| tokens.next())??;
    Some((account, holder.parse().ok()?, tokens.next()?))
}

fn renewal(rest: &str) -> Option<(AccountId, Option<RunId>, PublicKey)> {
    let mut tokens = rest.splitn(4, '.');
    let account = tokens.next()?.parse().ok()?;
    let run = match tokens.next()? {
        CLUSTER => None,
        run => Some(run.parse().ok()?),
    };
    let holder = tokens.next()?.parse().ok()?;
    (tokens.next()? == NEW_TOKEN).then_some((account, run, holder))
}

fn ledger(rest: &str) -> Option<Incoming> {
    let mut tokens = rest.splitn(3, '.');
    let run = match tokens.next()? {
        CLUSTER => None,
        run => Some(run.parse().ok()?),
    };
    let emitter = tokens.next()?.parse().ok()?;
    token(tokens.next()?).map(|kind| Incoming::Ledger { run, emitter, kind })
}

/// A last token of letters, digits and dashes.
fn token(text: &str) -> Option<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    (!text.is_empty() && text.len() <= 64 && text.chars().all(plain)).then(|| text.to_owned())
}
