//! `auth rotate user`: a new key for one holder of credentials. The old key is revoked only when the
//! broker has shown a connection of the new one.

use std::time::Duration;

use identity::{Domain, DomainLock, IdentityFiles, Registration, Succession, SuccessorError};
use runtime::accounts;
use runtime::{Failure, clock};
use schemas::hold::Reason;
use schemas::permission::Role;
use schemas::{Code, Millis, PublicKey, UnixMillis};
use serde::Serialize;
use tokio::time::Instant;

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
        let _lock = context.lock(COMMAND)?;
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
    if has_process(new.role) {
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
    }
    let lock = context.lock(COMMAND)?;
    // A process on another machine has copies of the files; then nobody has taken those that lie here.
    files(&domain, &new).take_successor()?;
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
        let _lock = context.lock(COMMAND)?;
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
    let lock = context.lock(COMMAND)?;
    void(context, domain, &lock, &old, &new).await
}

/// Revokes the old key of a holder that uses its new one.
async fn void(
    context: &Context,
    domain: &Domain,
    lock: &DomainLock,
    old: &Registration,
    new: &Registration,
) -> Result<(), Failure> {
    let url = context.accounts_url()?;
    let reason: Option<Reason> = format!("replaced by {}", new.public).parse().ok();
    let keys = [(old.account.clone(), old.public.clone())];
    accounts::revoke(domain, lock, &url, &keys, reason.as_ref(), clock::now()).await?;
    context
        .printer
        .rows(&[Key::of(new, "in use"), Key::of(old, "void")]);
    Ok(())
}

fn millis(span: Duration) -> Millis {
    Millis(u64::try_from(span.as_millis()).unwrap_or(u64::MAX))
}

/// True if a process holds the credentials of this role for as long as it runs. The others are read
/// by each command anew.
const fn has_process(role: Role) -> bool {
    match role {
        Role::Worker
        | Role::Coordinator
        | Role::LedgerWriter
        | Role::Auditor
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
