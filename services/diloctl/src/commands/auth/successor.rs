//! `auth rotate user`: a new key for one holder of credentials. The old key is revoked only when
//! the broker has shown a connection of the new one.

use std::time::Duration;

use identity::{Domain, DomainLock, IdentityFiles, Registration, Succession, SuccessorError};
use runtime::accounts;
use runtime::{Failure, clock};
use schemas::hold::Reason;
use schemas::permission::Role;
use schemas::view::RunPhase;
use schemas::{Code, Millis, PublicKey, UnixMillis};
use serde::Serialize;
use tokio::time::Instant;

use crate::commands::revocation;
use crate::context::Context;
use crate::output::Row;
use crate::table::time;

const COMMAND: &str = "diloctl auth rotate";
/// Time between two looks for the record of a new key.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Gives the holder of this name a new key.
pub(super) async fn run(context: &Context, name: &str, wait: Duration) -> Result<(), Failure> {
    let domain = context.domain()?;
    let url = context.accounts_url()?;
    let begun = {
        let _lock = context.lock(COMMAND).await?;
        domain.take_over(clock::now())?;
        domain.begin_succession(name, clock::now())
    };
    let begun = match begun {
        Err(SuccessorError::Elsewhere {
            role: Role::Worker, ..
        }) => {
            return of_machine(context, &domain, name, wait).await;
        }
        begun => begun?,
    };
    let Succession { old, new, .. } = begun;
    if has_process(&new) {
        // Other commands may change the domain meanwhile.
        context.printer.talk(&format!(
            "waits until {name} connects with key {}, for at most {wait:?}",
            new.public
        ));
        let deadline = Instant::now() + wait;
        let connected =
            accounts::until_connected(&domain, &url, &new.account, &new.public, deadline).await?;
        if !connected {
            let text = format!("{name} still has key {}", old.public);
            return Err(Failure::new(Code::SuccessorWaiting, text));
        }
        until_joined(context, &old, &new, deadline).await?;
    }
    let lock = context.lock(COMMAND).await?;
    // A process on another machine has copies of the files; then nobody has taken those that lie
    // here.
    files(&domain, &new).take_successor(clock::now())?;
    void(context, &domain, &lock, &old, &new).await?;
    Ok(domain.end_succession(name)?)
}

/// Lets a worker whose keys lie on its own machine ask for another one, and waits for it.
async fn of_machine(
    context: &Context,
    domain: &Domain,
    name: &str,
    wait: Duration,
) -> Result<(), Failure> {
    let url = context.accounts_url()?;
    let deadline = Instant::now() + wait;
    let old = {
        let _lock = context.lock(COMMAND).await?;
        domain.allow_succession(name, clock::now().after(millis(wait)))?
    };
    context.printer.talk(&format!(
        "waits for `diloctl worker rekey {name}` on its machine, and until the worker connects with its \
         new key, for at most {wait:?}"
    ));
    let late = |key: &PublicKey| {
        let text = format!("{name} still has key {key}");
        Failure::new(Code::SuccessorWaiting, text)
    };
    let new = loop {
        if let Some(new) = domain.successor_of(&old.public)? {
            break new;
        }
        if Instant::now() >= deadline {
            return Err(late(&old.public));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    };
    if !accounts::until_connected(domain, &url, &new.account, &new.public, deadline).await? {
        return Err(late(&old.public));
    }
    until_joined(context, &old, &new, deadline).await?;
    let lock = context.lock(COMMAND).await?;
    void(context, domain, &lock, &old, &new).await
}

/// Waits until the run of a worker has had it with its new key, if it has had it with the old one.
/// A connection alone does not say so: a coordinator on another machine may lack the record of the
/// new key, and the worker with the old key would come back to nothing.
async fn until_joined(
    context: &Context,
    old: &Registration,
    new: &Registration,
    deadline: Instant,
) -> Result<(), Failure> {
    let (Role::Worker, Some(run)) = (new.role, &new.run) else {
        return Ok(());
    };
    loop {
        let workers = match context.operator().await?.run(run).await {
            Ok(detail) if detail.view.phase == RunPhase::Complete => return Ok(()),
            Ok(_) => context.operator().await?.workers(run).await?,
            Err(failure) if failure.code() == Code::RunUnknown => return Ok(()),
            Err(failure) => return Err(failure),
        };
        let keys: Vec<&str> = workers.iter().map(|one| one.worker.as_str()).collect();
        if goes_on(&keys, old, new) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let text = format!(
                "{} has connected with key {}, and run {run} has not taken it: the coordinator needs \
                 its record, issued/{}.json",
                new.name, new.public, new.public
            );
            return Err(Failure::new(Code::SuccessorWaiting, text));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// True if these keys, which have joined a run, have the new one of a worker, or neither.
fn goes_on(joined: &[&str], old: &Registration, new: &Registration) -> bool {
    let has = |one: &Registration| joined.contains(&one.public.as_str());
    has(new) || !has(old)
}

/// Revokes the old key of a holder that uses its new one.
async fn void(
    context: &Context,
    domain: &Domain,
    lock: &DomainLock,
    old: &Registration,
    new: &Registration,
) -> Result<(), Failure> {
    let reason: Option<Reason> = format!("replaced by {}", new.public).parse().ok();
    let keys = [(old.account.clone(), old.public.clone())];
    let carried = revocation::carry_out(context, domain, lock, &keys, reason.as_ref()).await?;
    context
        .printer
        .rows(&[Key::of(new, "in use"), Key::of(old, "void")]);
    // The key is replaced and void all the same; `auth push` has it recorded.
    if let Some(failure) = carried.unrecorded {
        context.printer.talk(&format!("warning {failure}"));
    }
    Ok(())
}

fn millis(span: Duration) -> Millis {
    Millis(u64::try_from(span.as_millis()).unwrap_or(u64::MAX))
}

/// True if a process holds these credentials for as long as it runs. The others are read by each
/// command anew.
fn has_process(holder: &Registration) -> bool {
    match holder.role {
        // The audit service's; others of the role are of people.
        Role::Auditor => holder.name == Role::Auditor.name(),
        Role::Worker
        | Role::Coordinator
        | Role::LedgerWriter
        | Role::Recorder
        | Role::Registrar => true,
        Role::Operator
        | Role::Provisioner
        | Role::LedgerProvisioner
        | Role::EventsProvisioner
        | Role::AuditProvisioner
        | Role::AccountWriter
        | Role::Newcomer => false,
    }
}

/// The files of a holder in the domain's folder.
fn files(domain: &Domain, holder: &Registration) -> IdentityFiles {
    let layout = domain.layout();
    IdentityFiles {
        credentials: layout.credentials(&holder.name),
        audit_key: (holder.role == Role::Worker).then(|| layout.audit_key(&holder.name)),
    }
}

/// A key of the holder, as a row.
#[derive(Debug, Serialize)]
struct Key {
    name: String,
    role: &'static str,
    state: &'static str,
    issued: UnixMillis,
    key: String,
}

impl Key {
    fn of(record: &Registration, state: &'static str) -> Self {
        Self {
            name: record.name.clone(),
            role: record.role.name(),
            state,
            issued: record.issued,
            key: record.public.to_string(),
        }
    }
}

impl Row for Key {
    const TITLES: &'static [&'static str] = &["name", "role", "state", "issued", "key"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            self.role.to_owned(),
            self.state.to_owned(),
            time(self.issued),
            self.key.clone(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use schemas::V;

    use super::*;

    fn record(role: Role, name: &str, letter: &str) -> Registration {
        let key = |kind: &str| format!("{kind}{}", letter.repeat(55));
        Registration {
            v: V,
            name: name.to_owned(),
            role,
            run: None,
            account: key("A").parse().expect("an account"),
            public: key("U").parse().expect("a key"),
            issued: UnixMillis(1),
            ends: UnixMillis(2),
            blocked: None,
            audit_key: None,
            seat: None,
            before: None,
            changes_until: None,
        }
    }

    #[test]
    fn tl_28_only_holders_with_a_process_are_waited_for() {
        let waits = |role, name| has_process(&record(role, name, "B"));
        assert!(waits(Role::Worker, "w1") && waits(Role::Auditor, "auditor"));
        assert!(!waits(Role::Auditor, "guest") && !waits(Role::Operator, "operator"));
    }

    #[test]
    fn tl_28_a_worker_that_its_run_knows_keeps_its_key_until_the_run_knows_the_new_one() {
        let (old, new) = (
            record(Role::Worker, "w1", "B"),
            record(Role::Worker, "w1", "C"),
        );
        let (before, after) = (old.public.as_str(), new.public.as_str());
        assert!(!goes_on(&[before], &old, &new));
        assert!(goes_on(&[before, after], &old, &new));
        assert!(goes_on(&[], &old, &new), "it never joined");
    }
}
