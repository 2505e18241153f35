//! The credential of a worker: `worker quarantine` revokes it in the same command, once the
//! quarantine is in the ledger, which is the sooner of the two.

use identity::{Credentials, Domain, Registration, Revocation};
use runtime::{Failure, clock};
use schemas::hold::Reason;
use schemas::permission::Role;
use schemas::{Code, PublicKey, RunId, WorkerId};
use serde::Serialize;

use crate::commands::auth::revoke::found;
use crate::commands::revocation::{self, Carried};
use crate::context::Context;

/// What became of a worker's credential, or what it is.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub(super) enum Credential {
    /// The broker refuses it, and has cut these connections.
    Revoked {
        /// False if it was revoked before this command.
        changed: bool,
        connections: usize,
    },
    /// The caller wants it to stay valid.
    Kept,
    /// The vault is on another machine.
    Elsewhere,
    /// The key is not a worker's.
    OfAnother { role: String, name: String },
    /// It is revoked here, and no broker has confirmed that yet.
    Pending { reason: String },
    /// The revocation failed.
    Failed { reason: String },
    /// It was revoked, and no token was issued since.
    Void {
        name: Option<String>,
        /// The key that its holder has now, if that is another one.
        now: Option<PublicKey>,
    },
    /// Nothing says that it is revoked.
    Unrevoked,
    /// This machine cannot say if it is revoked.
    Unknown { reason: String },
}

impl Credential {
    /// Revokes the key of a worker. An error comes with what is to be printed all the same: the
    /// quarantine stands in any case.
    pub(super) async fn revoke(
        context: &Context,
        worker: &WorkerId,
        reason: &Reason,
    ) -> (Self, Result<(), Failure>) {
        match Self::try_revoke(context, worker, reason).await {
            Ok((credential, unrecorded)) => {
                if matches!(credential, Self::Revoked { .. }) {
                    context.finished(format!("the credential of {worker} is revoked"));
                }
                (credential, unrecorded.map_or(Ok(()), Err))
            }
            Err(failure) => {
                let reason = failure.refusal().to_string();
                let credential = match failure.code() {
                    Code::RevocationKept => Self::Pending { reason },
                    _ => Self::Failed { reason },
                };
                (credential, Err(failure))
            }
        }
    }

    async fn try_revoke(
        context: &Context,
        worker: &WorkerId,
        reason: &Reason,
    ) -> Result<(Self, Option<Failure>), Failure> {
        if !context.domain()?.has_vault() {
            return Ok((Self::Elsewhere, None));
        }
        // Another command may have changed the records while this one waited.
        let (domain, lock) = context.locked("diloctl worker quarantine").await?;
        let holders = domain.holders_of(worker.as_str())?;
        if let Some(other) = holders.iter().find(|holder| holder.role != Role::Worker) {
            let other = Self::OfAnother {
                role: other.role.name().to_owned(),
                name: other.name.clone(),
            };
            return Ok((other, None));
        }
        domain.take_over(clock::now())?;
        let changed = !is_void(&domain, worker, &holders)?;
        let targets = found(&domain, worker.as_str())?;
        let keys: Vec<_> = targets
            .into_iter()
            .map(|one| one.account_and_key())
            .collect();
        let Carried {
            revoked,
            unrecorded,
        } = revocation::carry_out(context, &domain, &lock, &keys, Some(reason)).await?;
        let connections = revoked.iter().map(|one| one.connections).sum();
        let revoked = Self::Revoked {
            changed,
            connections,
        };
        Ok((revoked, unrecorded))
    }

    /// What this machine knows of the credential of a worker that may join again. An error comes
    /// with what is to be printed all the same: the worker may join.
    pub(super) fn of(context: &Context, worker: &WorkerId) -> (Self, Result<(), Failure>) {
        match Self::try_of(context, worker) {
            Ok(credential) => (credential, Ok(())),
            Err(failure) => {
                let reason = failure.refusal().to_string();
                (Self::Unknown { reason }, Err(failure))
            }
        }
    }

    fn try_of(context: &Context, worker: &WorkerId) -> Result<Self, Failure> {
        let domain = context.domain()?;
        let holders = domain.holders_of(worker.as_str())?;
        if !is_void(&domain, worker, &holders)? {
            return Ok(Self::Unrevoked);
        }
        let own = |key: &PublicKey| key.as_str() == worker.as_str();
        let key = holders
            .iter()
            .map(|holder| &holder.public)
            .find(|key| own(key));
        let issued = domain.layout().issued();
        let heir = key
            .map(|key| issued.successor_of(key))
            .transpose()?
            .flatten();
        let holder = holders.first().or(heir.as_ref());
        let name = holder.map(|holder| holder.name.clone());
        // `auth issue` takes the key from this file.
        let file = name.as_ref().map(|name| domain.layout().credentials(name));
        let here = file.and_then(|file| Credentials::read(&file).ok());
        let here = here.map(|here| here.public().clone());
        let now = heir
            .map(|heir| heir.public)
            .or(here)
            .filter(|key| !own(key));
        Ok(Self::Void { name, now })
    }

    /// The line of it, with the next step.
    pub(super) fn text(&self, worker: &WorkerId, run: &RunId) -> String {
        let issue = |name: Option<&String>| {
            let name = name.map_or("NAME", String::as_str);
            format!("`diloctl auth issue worker {name} --run {run}`")
        };
        match self {
            Self::Revoked {
                changed,
                connections,
            } => {
                let done = if *changed {
                    "revoked"
                } else {
                    "was revoked already"
                };
                format!(
                    "{done}; {connections} connections were cut, and nobody connects with this key"
                )
            }
            Self::Kept => {
                "kept: still connects to the bus, where nobody answers it but with DL0412, until \
                 `diloctl auth revoke`"
                    .to_owned()
            }
            Self::Elsewhere => format!(
                "not revoked: the vault is not on this machine. Where it is, run `diloctl auth revoke \
                 {worker}`; until then it connects, and nobody answers it but with DL0412"
            ),
            Self::OfAnother { role, name } => format!(
                "not revoked: this is the key of {name}, role {role}. If you mean it, run `diloctl \
                 auth revoke {name}`"
            ),
            Self::Pending { reason } => format!(
                "kept: {reason}. A broker that is started with this domain's configuration refuses the key; \
                 `diloctl auth push` tells one that runs, and so does this command when it is repeated"
            ),
            Self::Failed { reason } => format!(
                "not revoked: {reason}. Repeat the command, or run `diloctl auth revoke {worker}`"
            ),
            Self::Void {
                name,
                now: Some(now),
            } => format!(
                "revoked for good: {} has key {now} now, and {} makes a token for that key, none for \
                 this one",
                name.as_deref().unwrap_or("its holder"),
                issue(name.as_ref())
            ),
            Self::Void { name, now: None } => format!(
                "revoked: {} makes a new token for the same key; copy the file to its machine before \
                 you start its process",
                issue(name.as_ref())
            ),
            Self::Unknown { reason } => format!(
                "not known: {reason}. `diloctl auth ls` says if it is revoked, once that is mended"
            ),
            Self::Unrevoked => format!(
                "not revoked, as far as this machine knows; if the broker refuses it, {} where the \
                 vault is makes a new token",
                issue(None)
            ),
        }
    }
}

/// True if no token of the worker is valid: its key was revoked, and nothing was issued since.
fn is_void(domain: &Domain, worker: &WorkerId, holders: &[Registration]) -> Result<bool, Failure> {
    let mut revocations = domain.revocations()?;
    revocations.retain(|one| !one.pending);
    if holders.is_empty() {
        let mut keys = revocations.iter().map(|one| one.key.as_str());
        return Ok(keys.any(|key| key == worker.as_str()));
    }
    let void = |holder: &Registration| {
        let of = |one: &&Revocation| (&one.account, &one.key) == (&holder.account, &holder.public);
        let revocation = revocations.iter().find(of);
        revocation.is_some_and(|one| one.covers(holder.issued))
    };
    Ok(holders.iter().all(void))
}

#[cfg(test)]
mod tests {
    use identity::{InitOptions, KeyKind, SigningKey};
    use schemas::UnixMillis;

    use super::*;

    fn worker() -> WorkerId {
        format!("U{}", "A".repeat(55)).parse().expect("a key")
    }

    #[test]
    fn tl_31_the_line_of_a_credential_names_the_next_step() {
        let run: RunId = "demo".parse().expect("a name");
        let text = |credential: &Credential| credential.text(&worker(), &run);
        let revoke = format!("`diloctl auth revoke {}`", worker());
        let now = SigningKey::generate(KeyKind::User).public().clone();
        for (credential, begin, next) in [
            (
                Credential::Kept,
                "kept: still connects",
                "`diloctl auth revoke`",
            ),
            (
                Credential::Elsewhere,
                "not revoked: the vault is not",
                revoke.as_str(),
            ),
            (
                Credential::Failed {
                    reason: "DL0119".to_owned(),
                },
                "not revoked: DL0119",
                revoke.as_str(),
            ),
            (
                Credential::Pending {
                    reason: "DL0123".to_owned(),
                },
                "kept: DL0123",
                "`diloctl auth push`",
            ),
            (
                Credential::OfAnother {
                    role: "operator".to_owned(),
                    name: "op".to_owned(),
                },
                "not revoked: this is the key of op, role operator",
                "`diloctl auth revoke op`",
            ),
            (
                Credential::Void {
                    name: Some("w1".to_owned()),
                    now: None,
                },
                "revoked: ",
                "`diloctl auth issue worker w1 --run demo` makes a new token for the same key",
            ),
            (
                Credential::Void {
                    name: Some("w1".to_owned()),
                    now: Some(now),
                },
                "revoked for good: w1 has key",
                "`diloctl auth issue worker w1 --run demo` makes a token for that key, none for this",
            ),
            (
                Credential::Unrevoked,
                "not revoked, as far as",
                "`diloctl auth issue worker NAME --run demo`",
            ),
        ] {
            let said = text(&credential);
            assert!(said.starts_with(begin) && said.contains(next), "{said}");
        }
        let cut = |changed| {
            text(&Credential::Revoked {
                changed,
                connections: 2,
            })
        };
        assert!(cut(true).starts_with("revoked; 2 connections were cut"));
        assert!(cut(false).starts_with("was revoked already; 2 connections"));
    }

    #[test]
    fn tl_31_a_credential_is_void_until_a_token_is_issued_after_its_revocation() {
        let key = SigningKey::generate(KeyKind::User).public().clone();
        let worker: WorkerId = key.as_str().parse().expect("a key");
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let folder = scratch.path().join(".diloco");
        let begin = clock::now();
        let domain = Domain::init(&folder, &InitOptions::default(), begin);
        let domain = domain.expect("an empty folder");
        let tenant = domain.account(schemas::account::Account::Tenant);
        let account = tenant.expect("a name");
        let holder = |issued: u64| Registration {
            audit_key: None,
            seat: None,
            before: None,
            changes_until: None,
            v: schemas::V,
            name: "w1".to_owned(),
            role: Role::Worker,
            run: Some("demo".parse().expect("a name")),
            account: account.clone(),
            public: key.clone(),
            issued: UnixMillis(issued),
            ends: UnixMillis(u64::MAX),
            blocked: None,
        };
        let void = |holders: &[Registration]| is_void(&domain, &worker, holders).expect("it reads");
        let before = [holder(begin.get())];
        assert!(!void(&before) && !void(&[]), "nothing is revoked");
        let kept = domain
            .revoke(&account, &key, None, begin)
            .expect("there is room");
        assert!(!void(&before) && !void(&[]), "no broker has confirmed it");
        domain.confirm(&kept).expect("the folder takes files");
        assert!(void(&before) && void(&[]));
        let after = holder(kept.until.get() + 1000);
        assert!(!void(std::slice::from_ref(&after)), "it was issued anew");
        assert!(!void(&[before[0].clone(), after]));
    }
}
