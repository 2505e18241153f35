//! `auth rotate role ROLE --now --end-leases`: leaked keys, in one command. It replaces the signing
//! keys, which ends every token of the old ones and cuts their connections, and then has the
//! coordinator end all leases, since a thief may hold some in the name of a worker.

use std::time::Duration;

use identity::Domain;
use identity::leak::LeasesToEnd;
use identity::retired::KeysOf;
use runtime::accounts::{self, RotatedRole};
use runtime::{Failure, clock};
use schemas::call::control as call;
use schemas::control::{Query, View};
use schemas::ending::{LEASES_ENDED_MAX, LeasesEndRequest};
use schemas::hold::Reason;
use schemas::lease::LeaseRef;
use schemas::permission::Role;
use schemas::view::LeaseView;
use schemas::{Class, Code, PublicKey, RunId, UnixMillis, V};
use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::rotate::kept;
use crate::context::{Context, Operator, unexpected};
use crate::output::Row;
use crate::table::{or_dash, time};

/// Pause before a coordinator that connects with its new token is asked again.
const AGAIN_AFTER: Duration = Duration::from_millis(250);

/// Replaces the signing keys of roles and ends all leases, or does what an earlier command has left
/// of that, and prints everything that it touched.
///
/// # Errors
/// Something is not done; the rows say what, and a repeat does it.
pub(super) async fn run(context: &Context, roles: &[Role], reason: &Reason) -> Result<(), Failure> {
    if !roles.contains(&Role::Worker) {
        let text = "--end-leases: only workers hold leases; name role worker, or --all";
        return Err(Failure::new(Code::ConfigInvalid, text));
    }
    let (domain, lock) = context.locked("diloctl auth rotate").await?;
    let url = context.accounts_url()?;
    domain.take_over(clock::now())?;
    let earlier = domain.leases_to_end()?;
    let replaced = |role: &Role| earlier.as_ref().is_some_and(|note| note.is_of(*role));
    let (done, left): (Vec<Role>, Vec<Role>) = roles.iter().copied().partition(replaced);
    let mut rows = Vec::new();
    let keys = match left.is_empty() {
        true => {
            let pushed = accounts::push(&domain, &lock, &url, clock::now()).await;
            pushed.map(drop).map_err(|error| kept(&error))
        }
        false => {
            let now = clock::now();
            let rotated = accounts::rotate(&domain, &lock, &url, &left, true, now).await?;
            let new: Vec<Role> = rotated.roles.iter().map(|one| one.role).collect();
            let confirmed = rotated.in_effect.is_ok();
            rows.extend(rotated.roles.iter().flat_map(|one| of_role(one, confirmed)));
            // Without the note a repeat would replace the keys again, and do no other harm.
            if let Err(error) = domain.note_leases_to_end(&new, reason, now) {
                let text = format!("warning what is left to do is not noted: {error}");
                context.printer.talk(&text);
            }
            context.finished("the keys are replaced");
            let in_effect = rotated.in_effect.map(drop).map_err(|error| kept(&error));
            match (rotated.broken, in_effect) {
                (None, in_effect) => in_effect,
                (Some(broken), Ok(())) => Err(broken),
                (Some(broken), Err(kept)) => Err(broken.and(&kept)),
            }
        }
    };
    if let Some(note) = earlier.as_ref().filter(|_| !done.is_empty()) {
        rows.extend(before(context, &domain, note, &done, keys.is_ok()));
    }
    let ended = match keys {
        // A thief that is connected still could claim again.
        Err(failure) => Err(failure),
        Ok(()) => end_all(context, &domain, roles, reason, &mut rows).await,
    };
    let ended = match ended {
        Ok(()) => domain.leases_are_ended().map_err(Failure::from),
        Err(failure) => {
            rows.push(Touched::not_ended(&failure));
            Err(failure.with_more(
                "not all leases are ended; the same command does the rest, and replaces no key again",
            ))
        }
    };
    context.printer.rows(&rows);
    ended
}

/// The keys that an earlier command replaced.
fn before(
    context: &Context,
    domain: &Domain,
    note: &LeasesToEnd,
    roles: &[Role],
    confirmed: bool,
) -> Vec<Touched> {
    context.printer.talk(&format!(
        "an earlier command has replaced keys at {} ({}), and not ended all leases; this one replaces none of them again",
        time(note.at),
        note.reason
    ));
    let state = match confirmed {
        true => "void already",
        false => "kept",
    };
    let mut rows = Vec::new();
    for role in roles {
        let last = domain.last_retired(KeysOf::Role(*role)).ok().flatten();
        let keys = last.into_iter().flat_map(|last| last.keys);
        rows.extend(keys.map(|key| Touched::key(*role, &key, state)));
    }
    rows
}

/// Ends all leases. A coordinator whose own token was replaced connects anew, and is waited for.
async fn end_all(
    context: &Context,
    domain: &Domain,
    roles: &[Role],
    reason: &Reason,
    rows: &mut Vec<Touched>,
) -> Result<(), Failure> {
    let deadline = Instant::now() + context.timeout;
    loop {
        let tried = end_held(context, domain, reason, rows).await;
        match tried {
            Err(failure)
                if roles.contains(&Role::Coordinator)
                    && matches!(failure.code().class(), Class::Away | Class::Busy)
                    && Instant::now() < deadline =>
            {
                sleep(AGAIN_AFTER).await;
            }
            tried => return tried,
        }
    }
}

/// Ends the leases that are held now. Each is named with its epoch, so none that is granted
/// meanwhile ends.
async fn end_held(
    context: &Context,
    domain: &Domain,
    reason: &Reason,
    rows: &mut Vec<Touched>,
) -> Result<(), Failure> {
    let operator = context.operator().await?;
    let runs = match operator.view(Query::Runs).await? {
        View::Runs(runs) => runs,
        other => return Err(unexpected(&other)),
    };
    for run in runs.into_iter().filter(|run| run.leases > 0) {
        let held = match operator.view(Query::Leases(run.run.clone())).await? {
            View::Leases(held) => held,
            other => return Err(unexpected(&other)),
        };
        for part in held.chunks(LEASES_ENDED_MAX) {
            let ended = end(&operator, &run.run, part, reason).await?;
            context.finished(format!("{} leases of run {} ended", ended.len(), run.run));
            let here = part.iter().filter(|one| ended.contains(&one.lease));
            rows.extend(here.map(|one| Touched::lease(domain, one)));
        }
    }
    Ok(())
}

async fn end(
    operator: &Operator,
    run: &RunId,
    held: &[LeaseView],
    reason: &Reason,
) -> Result<Vec<LeaseRef>, Failure> {
    let request = LeasesEndRequest {
        v: V,
        run: run.clone(),
        leases: held.iter().map(|one| one.lease).collect(),
        reason: reason.clone(),
    };
    let reply = operator.ask::<call::LeasesEnd>(&request).await?;
    Ok(reply.ended)
}

/// The keys, holders and connections of a rotated role.
fn of_role(rotated: &RotatedRole, confirmed: bool) -> Vec<Touched> {
    let role = rotated.role;
    let (void, cut) = match confirmed {
        true => ("void", "cut"),
        false => ("kept", "not known to be cut"),
    };
    let mut rows = vec![Touched::key(role, &rotated.keys.new, "new")];
    rows.extend(rotated.gone.iter().map(|key| Touched::key(role, key, void)));
    rows.push(Touched {
        connections: Some(rotated.cut),
        ..Touched::new("connections", cut, Some(role))
    });
    let resigned = &rotated.resigned;
    let renewed = resigned.renewed.iter().map(|one| (one, "new token"));
    let elsewhere = resigned.elsewhere.iter().map(|one| (one, "issue again"));
    rows.extend(renewed.chain(elsewhere).map(|(one, state)| Touched {
        name: Some(one.name.clone()),
        key: Some(one.public.to_string()),
        ends: Some(one.ends),
        ..Touched::new("credential", state, Some(role))
    }));
    rows
}

/// Something that the command touched, as a row.
#[derive(Debug, Serialize)]
struct Touched {
    what: &'static str,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    /// The holder's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    run: Option<RunId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lease: Option<LeaseRef>,
    /// A signing key, or the key of a holder.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    /// The end of a holder's token.
    #[serde(skip_serializing_if = "Option::is_none")]
    ends: Option<UnixMillis>,
    /// Connections with tokens of keys that ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    connections: Option<usize>,
    /// The reason why something is not done.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl Touched {
    fn new(what: &'static str, state: &'static str, role: Option<Role>) -> Self {
        Self {
            what,
            state,
            role: role.map(Role::name),
            name: None,
            run: None,
            lease: None,
            key: None,
            ends: None,
            connections: None,
            reason: None,
        }
    }

    fn key(role: Role, key: &PublicKey, state: &'static str) -> Self {
        Self {
            key: Some(key.to_string()),
            ..Self::new("signing key", state, Some(role))
        }
    }

    fn lease(domain: &Domain, held: &LeaseView) -> Self {
        let key = held.worker.as_str();
        let holders = domain.holders_of(key).unwrap_or_default();
        Self {
            name: holders.into_iter().next().map(|holder| holder.name),
            run: Some(held.run.clone()),
            lease: Some(held.lease),
            key: Some(key.to_owned()),
            ..Self::new("lease", "ended", None)
        }
    }

    fn not_ended(failure: &Failure) -> Self {
        Self {
            reason: Some(failure.refusal().to_string()),
            ..Self::new("leases", "NOT ended", None)
        }
    }
}

impl Row for Touched {
    const TITLES: &'static [&'static str] = &["what", "of", "state", "which"];

    fn cells(&self) -> Vec<String> {
        let of = match (&self.name, &self.role) {
            (Some(name), _) => name.clone(),
            (None, role) => or_dash(*role, str::to_owned),
        };
        let mut which = Vec::new();
        if let (Some(run), Some(lease)) = (&self.run, &self.lease) {
            which.push(format!("{lease} of run {run}"));
        }
        which.extend(self.connections.map(|count| count.to_string()));
        which.extend(self.key.clone());
        which.extend(self.ends.map(|ends| format!("until {}", time(ends))));
        which.extend(self.reason.clone());
        vec![
            self.what.to_owned(),
            of,
            self.state.to_owned(),
            which.join(", "),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tl_30_each_thing_that_was_touched_says_what_it_is_and_which() {
        let public: PublicKey = format!("A{}", "B".repeat(55)).parse().expect("a key");
        let key = Touched::key(Role::Worker, &public, "void");
        assert_eq!(
            key.cells(),
            ["signing key", "worker", "void", public.as_str()]
        );
        let cut = Touched {
            connections: Some(3),
            ..Touched::new("connections", "cut", Some(Role::Worker))
        };
        assert_eq!(cut.cells(), ["connections", "worker", "cut", "3"]);
        let failure = Failure::new(Code::NoAnswer, "nobody");
        let cells = Touched::not_ended(&failure).cells();
        assert_eq!(cells[..3], ["leases", "-", "NOT ended"]);
        assert!(cells[3].starts_with("DL0204"), "{cells:?}");
    }
}
