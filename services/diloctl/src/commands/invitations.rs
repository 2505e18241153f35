//! The operator's side of an enrolment: invitations, and a word on the machines that wait. It works
//! on the files that the registrar reads, and connects to nothing.

use std::collections::BTreeMap;
use std::path::Path;

use identity::invitation::Invite;
use identity::join::new_session;
use identity::{InvitationList, IssuedList};
use runtime::{Failure, clock};
use schemas::enrolment::{Admission, Invitation, Word};
use schemas::{Code, PublicKey, Rank, RunId, Seat, UnixMillis};
use serde::Serialize;

use crate::cli::InviteArgs;
use crate::context::Context;
use crate::output::{Record, Row};
use crate::table::time;

/// Fewest letters of a key that name a machine.
const SHORT_MIN: usize = 8;

pub(super) async fn invite(context: &Context, args: InviteArgs) -> Result<(), Failure> {
    let (domain, _lock) = context.locked("diloctl worker invite").await?;
    if args.into.symlink_metadata().is_ok() {
        let text = format!(
            "{} exists; choose another file with --into, or remove it",
            args.into.display()
        );
        return Err(Failure::new(Code::ConfigInvalid, text));
    }
    let seat = seat(&args)?;
    let admission = match (&args.keys, args.by_hand) {
        (Some(file), _) => Admission::Listed(listed(file)?),
        (None, true) => Admission::Hand,
        (None, false) => Admission::Token,
    };
    // Random letters, so that nobody has the name.
    let own = || format!("worker-{}", &new_session().to_string()[..8]);
    let name = args.name.unwrap_or_else(own);
    let made = domain.invite(
        Invite {
            name: name.clone(),
            run: args.run.clone(),
            seat: seat.clone(),
            admission: admission.clone(),
            life: args.ends.millis(),
            bus: context.endpoints.bus.clone(),
        },
        clock::now(),
    )?;
    made.write(&args.into)?;
    let admits = match &admission {
        Admission::Token => format!("the first machine that has this file, as {name}"),
        Admission::Hand => format!("the machine that `worker approve` names, as {name}"),
        Admission::Listed(listed) => format!("the {} keys of the list", listed.len()),
    };
    context.printer.record(&Invited {
        file: args.into.display().to_string(),
        invitation: made.id().to_string(),
        run: args.run,
        seat,
        admits,
        bus: made.bus.clone(),
        ends: made.ends,
    });
    context.printer.talk(
        "carry the file to the machine over a channel that nobody else reads, and run \
         `diloctl worker enrol FILE` there",
    );
    if context.endpoints.is_loopback() {
        let text = format!(
            "{} reaches a broker on the same machine only; for another machine give the broker's \
             address with --bus",
            made.bus
        );
        context.printer.talk(&text);
    }
    Ok(())
}

fn seat(args: &InviteArgs) -> Result<Option<Seat>, Failure> {
    let (Some(group), Some(rank), Some(of)) = (&args.group, args.rank, args.of) else {
        return Ok(None);
    };
    let seat = Seat::new(group.clone(), Rank(rank), of);
    let invalid = |error| Failure::new(Code::ConfigInvalid, error);
    seat.map(Some).map_err(invalid)
}

/// The keys of a list, with the names of their workers: `name key` in each line.
fn listed(file: &Path) -> Result<BTreeMap<PublicKey, String>, Failure> {
    let invalid = |text: String| Failure::new(Code::ConfigInvalid, text);
    let text = std::fs::read_to_string(file)
        .map_err(|error| invalid(format!("{}: {error}", file.display())))?;
    let mut listed = BTreeMap::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong = |why: &str| invalid(format!("{}:{}: {why}", file.display(), index + 1));
        let Some((name, key)) = line.split_once(char::is_whitespace) else {
            return Err(wrong("expected a name and a key"));
        };
        let key = identity::key::parse_public(key.trim(), identity::KeyKind::User)?;
        if listed.insert(key, name.to_owned()).is_some() {
            return Err(wrong("the key is listed twice"));
        }
    }
    Ok(listed)
}

pub(super) fn pending(context: &Context) -> Result<(), Failure> {
    let list = context.domain()?.layout().invitations();
    let mut rows = Vec::new();
    for invitation in list.all()?.iter().filter(|one| is_open(one)) {
        let waits = invitation.guests.values().filter(|guest| {
            let said = invitation.denied.contains(&guest.worker)
                || invitation.approved.contains(&guest.worker);
            guest.enrolled.is_none() && !said
        });
        rows.extend(waits.map(|guest| Waiting {
            key: guest.worker.clone(),
            name: invitation.terms.name.clone(),
            run: invitation.terms.run.clone(),
            asked: guest.asked,
            ends: invitation.terms.ends,
        }));
    }
    context.printer.rows(&rows);
    Ok(())
}

pub(super) async fn approve(context: &Context, key: &str) -> Result<(), Failure> {
    let list = context.domain()?.layout().invitations();
    let _lock = context.lock("diloctl worker approve").await?;
    let (invitation, worker) = waiting(&list, key)?;
    let others = invitation
        .guests
        .values()
        .filter(|one| one.worker != worker);
    let chosen = |key: &PublicKey| invitation.approved.contains(key);
    let mut taken = others.filter(|one| one.enrolled.is_some() || chosen(&one.worker));
    if let Some(other) = taken.next() {
        let text = format!(
            "{} was approved for {}",
            other.worker, invitation.terms.name
        );
        return Err(Failure::new(Code::InvitationUsed, text));
    }
    say(context, &list, &invitation, worker, Word::Approved)
}

pub(super) async fn deny(context: &Context, what: &str) -> Result<(), Failure> {
    let layout = context.domain()?.layout().clone();
    let list = layout.invitations();
    let _lock = context.lock("diloctl worker deny").await?;
    let promised = |one: &Invitation| match &one.terms.admission {
        Admission::Listed(listed) => listed.values().any(|name| name == what),
        Admission::Token | Admission::Hand => one.terms.name == what,
    };
    let found = list
        .all()?
        .into_iter()
        .find(|one| is_open(one) && (promised(one) || one.terms.invitation.as_str() == what));
    match found {
        Some(invitation) => {
            list.withdraw(&invitation.terms.invitation)?;
            check_shut_out(&layout.issued(), &invitation)?;
            context.printer.record(&Said {
                name: invitation.terms.name,
                run: invitation.terms.run,
                worker: None,
                state: "withdrawn: the invitation is worth nothing",
            });
            Ok(())
        }
        None => {
            let (invitation, worker) = waiting(&list, what)?;
            say(context, &list, &invitation, worker, Word::Denied)
        }
    }
}

/// Fails if a machine that was enrolled with an invitation may still connect: that the invitation
/// is withdrawn takes nothing from it.
fn check_shut_out(issued: &IssuedList, invitation: &Invitation) -> Result<(), Failure> {
    let mut enrolled = Vec::new();
    for guest in invitation
        .guests
        .values()
        .filter(|one| one.enrolled.is_some())
    {
        let record = issued.find(&guest.worker)?;
        if record.is_none_or(|record| record.blocked.is_none()) {
            enrolled.push(guest.worker.as_str());
        }
    }
    match enrolled.is_empty() {
        true => Ok(()),
        false => {
            let text = format!(
                "the invitation is withdrawn, but enrolled with it is {}; `diloctl auth revoke KEY` \
                 shuts it out",
                enrolled.join(", ")
            );
            Err(Failure::new(Code::InvitationUsed, text))
        }
    }
}

fn say(
    context: &Context,
    list: &InvitationList,
    invitation: &Invitation,
    worker: PublicKey,
    word: Word,
) -> Result<(), Failure> {
    list.say(&invitation.terms.invitation, &worker, word)?;
    context.printer.record(&Said {
        name: invitation.terms.name.clone(),
        run: invitation.terms.run.clone(),
        worker: Some(worker),
        state: match word {
            Word::Approved => "approved: it is enrolled when it asks next",
            Word::Denied => "denied",
        },
    });
    Ok(())
}

/// True for an invitation that may still be used.
fn is_open(invitation: &Invitation) -> bool {
    !invitation.withdrawn && clock::now() < invitation.terms.ends
}

/// The machine that waits, by its key or the key's first letters.
fn waiting(list: &InvitationList, text: &str) -> Result<(Invitation, PublicKey), Failure> {
    let unknown = |detail: String| Failure::new(Code::WorkerUnknown, detail);
    let named = |key: &PublicKey| {
        key.as_str() == text || text.len() >= SHORT_MIN && key.as_str().starts_with(text)
    };
    let mut found = Vec::new();
    for invitation in list.all()?.into_iter().filter(is_open) {
        let guests = invitation
            .guests
            .values()
            .filter(|guest| named(&guest.worker));
        let keys: Vec<PublicKey> = guests.map(|guest| guest.worker.clone()).collect();
        found.extend(keys.into_iter().map(|key| (invitation.clone(), key)));
    }
    match (found.pop(), found.pop()) {
        (Some(one), None) => match one.0.guests[&one.1].enrolled {
            None => Ok(one),
            Some(_) => {
                let text = format!(
                    "{} is enrolled as {}; `diloctl auth revoke` shuts it out",
                    one.1, one.0.terms.name
                );
                Err(Failure::new(Code::InvitationUsed, text))
            }
        },
        (None, _) => Err(unknown(format!(
            "no machine with key {text} waits for approval"
        ))),
        (Some(_), Some(_)) => Err(unknown(format!(
            "{text} begins the keys of several machines"
        ))),
    }
}

#[derive(Serialize)]
struct Invited {
    file: String,
    invitation: String,
    run: RunId,
    seat: Option<Seat>,
    admits: String,
    bus: String,
    ends: UnixMillis,
}

impl Record for Invited {
    fn lines(&self) -> Vec<(&'static str, String)> {
        let mut lines = vec![("file", self.file.clone()), ("run", self.run.to_string())];
        lines.extend(self.seat.iter().map(|seat| ("seat", seat.to_string())));
        lines.extend([
            ("admits", self.admits.clone()),
            ("bus", self.bus.clone()),
            ("ends", time(self.ends)),
        ]);
        lines
    }
}

#[derive(Serialize)]
struct Waiting {
    key: PublicKey,
    name: String,
    run: RunId,
    asked: UnixMillis,
    ends: UnixMillis,
}

impl Row for Waiting {
    const TITLES: &'static [&'static str] = &["key", "name", "run", "asked", "ends"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.key.to_string(),
            self.name.clone(),
            self.run.to_string(),
            time(self.asked),
            time(self.ends),
        ]
    }
}

#[derive(Serialize)]
struct Said {
    name: String,
    run: RunId,
    worker: Option<PublicKey>,
    state: &'static str,
}

impl Record for Said {
    fn lines(&self) -> Vec<(&'static str, String)> {
        let mut lines = vec![("name", self.name.clone()), ("run", self.run.to_string())];
        let key = self.worker.iter().map(|key| ("key", key.to_string()));
        lines.extend(key);
        lines.push(("state", self.state.to_owned()));
        lines
    }
}
