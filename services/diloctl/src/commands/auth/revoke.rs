//! Revocations: `auth revoke`, `auth push` and `auth ls`.

use std::collections::BTreeSet;

use identity::{Domain, Registration, Revocation};
use runtime::accounts::{self, Revoked};
use runtime::{Failure, clock};
use schemas::hold::Reason;
use schemas::{AccountId, Code, PublicKey, UnixMillis};
use serde::Serialize;

use crate::commands::revocation;
use crate::context::Context;
use crate::output::Row;
use crate::table::{or_dash, time};

/// Revokes the named holders, and prints each key that it touched.
pub(super) async fn revoke(
    context: &Context,
    named: &[String],
    reason: Option<&Reason>,
) -> Result<(), Failure> {
    let (domain, lock) = context.locked("diloctl auth revoke").await?;
    domain.take_over(clock::now())?;
    let mut targets = BTreeSet::new();
    for text in named {
        targets.extend(found(&domain, text)?);
    }
    let keys: Vec<_> = targets
        .iter()
        .map(|target| (target.account.clone(), target.key.clone()))
        .collect();
    let void = targets.iter().map(|target| target.is_void(&domain));
    let void = void.collect::<Result<Vec<bool>, _>>()?;
    let carried = revocation::carry_out(context, &domain, &lock, &keys, reason).await;
    let rows: Vec<Touched> = match &carried {
        Ok(carried) => carried
            .revoked
            .iter()
            .zip(targets.iter().zip(void))
            .map(|(one, (target, void))| Touched::in_effect(target, one, void))
            .collect(),
        Err(failure) if failure.code() == Code::RevocationKept => targets
            .iter()
            .map(|target| target.kept(&domain))
            .collect::<Result<_, _>>()?,
        Err(_) => Vec::new(),
    };
    if !rows.is_empty() {
        context.printer.rows(&rows);
    }
    match carried?.unrecorded {
        Some(failure) => Err(failure),
        None => Ok(()),
    }
}

/// Gives the broker the tokens of all accounts, and the coordinator the revocations that the ledger
/// does not have.
pub(super) async fn push(context: &Context) -> Result<(), Failure> {
    let (domain, lock) = context.locked("diloctl auth push").await?;
    let url = context.accounts_url()?;
    let pushed = accounts::push(&domain, &lock, &url, clock::now()).await?;
    let brokers: Vec<String> = pushed.brokers.into_iter().collect();
    context.printer.talk(&format!(
        "the accounts' tokens are in effect at {}; {} of them are new to it",
        brokers.join(", "),
        pushed.changed.len()
    ));
    match revocation::tell_rest(context, &domain, &lock).await? {
        0 => {}
        told => context.printer.talk(&format!(
            "revocations that are recorded in the ledger now: {told}"
        )),
    }
    Ok(())
}

/// Lists every key that a token was issued for, and every revoked key.
pub(super) fn list(context: &Context) -> Result<(), Failure> {
    let (domain, now) = (context.domain()?, clock::now());
    // A domain of an earlier release has no records yet. Nobody changes it meanwhile.
    if let Ok(_lock) = context.try_lock("diloctl auth ls") {
        domain.take_over(now)?;
    }
    let mut revocations = domain.revocations()?;
    let mut rows = Vec::new();
    for holder in domain.layout().issued().all()? {
        let own = |one: &Revocation| (&one.account, &one.key) == (&holder.account, &holder.public);
        let place = revocations.iter().position(own);
        let revocation = place.map(|place| revocations.remove(place));
        rows.push(Listed::holder(&holder, revocation.as_ref(), now));
    }
    let strangers = revocations.iter().filter(|one| now < one.ends);
    rows.extend(strangers.map(Listed::stranger));
    context.printer.rows(&rows);
    Ok(())
}

/// A key to revoke.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Target {
    name: String,
    role: String,
    account: AccountId,
    key: PublicKey,
}

/// The keys of a holder; or a key that nobody recorded, in every account where somebody may connect
/// with it.
pub(crate) fn found(domain: &Domain, text: &str) -> Result<Vec<Target>, Failure> {
    let holders = domain.holders_of(text)?;
    let recorded = holders.into_iter().map(|holder| Target {
        name: holder.name,
        role: holder.role.name().to_owned(),
        account: holder.account,
        key: holder.public,
    });
    let recorded: Vec<Target> = recorded.collect();
    if !recorded.is_empty() {
        return Ok(recorded);
    }
    let key = text.parse::<PublicKey>().ok();
    let Some(key) = key.filter(|key| key.as_str().starts_with('U')) else {
        return Err(Failure::new(Code::HolderMissing, format!("{text:?}")));
    };
    let everywhere = domain.accounts()?.all();
    Ok(everywhere
        .into_iter()
        .map(|account| Target {
            name: "-".to_owned(),
            role: "-".to_owned(),
            account,
            key: key.clone(),
        })
        .collect())
}

impl Target {
    /// The key, with the account in which it connects.
    pub(crate) fn account_and_key(self) -> (AccountId, PublicKey) {
        (self.account, self.key)
    }

    /// True if a broker has confirmed that it refuses every token of the key, and none was issued
    /// since.
    fn is_void(&self, domain: &Domain) -> Result<bool, Failure> {
        let revocation = domain.revocation(&self.account, &self.key)?;
        let record = domain.layout().issued().find(&self.key)?;
        Ok(revocation.is_some_and(|one| {
            let issued = record.as_ref().map(|record| record.issued);
            !one.pending && issued.is_none_or(|issued| one.covers(issued))
        }))
    }

    fn kept(&self, domain: &Domain) -> Result<Touched, Failure> {
        let revocation = domain.revocation(&self.account, &self.key)?;
        Ok(self.touched(revocation.map(|kept| kept.until), None, "kept"))
    }

    fn touched(
        &self,
        until: Option<UnixMillis>,
        connections: Option<usize>,
        state: &'static str,
    ) -> Touched {
        Touched {
            name: self.name.clone(),
            role: self.role.clone(),
            key: self.key.to_string(),
            account: self.account.to_string(),
            until,
            connections,
            state,
        }
    }
}

/// A revoked key, as a row.
#[derive(Debug, Serialize)]
struct Touched {
    name: String,
    role: String,
    state: &'static str,
    /// Connections that were cut; none if no broker was asked.
    connections: Option<usize>,
    /// Tokens issued up to this time are void.
    until: Option<UnixMillis>,
    key: String,
    account: String,
}

impl Touched {
    fn in_effect(target: &Target, revoked: &Revoked, before: bool) -> Self {
        let until = Some(revoked.revocation.until);
        let state = match before {
            true => "revoked already",
            false => "revoked",
        };
        target.touched(until, Some(revoked.connections), state)
    }
}

impl Row for Touched {
    const TITLES: &'static [&'static str] = &[
        "name",
        "role",
        "state",
        "cut",
        "void up to",
        "key",
        "account",
    ];

    fn cells(&self) -> Vec<String> {
        let cut = |count: usize| match count >= Revoked::counted_to() {
            true => format!("{count}+"),
            false => count.to_string(),
        };
        vec![
            self.name.clone(),
            self.role.clone(),
            self.state.to_owned(),
            or_dash(self.connections, cut),
            or_dash(self.until, time),
            self.key.clone(),
            self.account.clone(),
        ]
    }
}

/// A key and what is known of it, as a row.
#[derive(Debug, Serialize)]
struct Listed {
    name: String,
    role: String,
    run: Option<String>,
    /// Its seat in a group of workers.
    seat: Option<String>,
    state: &'static str,
    issued: Option<UnixMillis>,
    ends: Option<UnixMillis>,
    /// Tokens issued up to this time are void.
    revoked: Option<UnixMillis>,
    reason: Option<String>,
    key: String,
    account: String,
}

impl Listed {
    fn holder(holder: &Registration, revocation: Option<&Revocation>, now: UnixMillis) -> Self {
        let void = |one: &&Revocation| one.covers(holder.issued);
        let state = match revocation.filter(void) {
            Some(one) => state(one),
            None if holder.blocked.is_some() => "blocked",
            // Its newest token is the registrar's, of which the record knows nothing.
            None if holder.ends <= now && holder.role.is_renewable() => "renewable",
            None if holder.ends <= now => "ended",
            None => "valid",
        };
        Self {
            name: holder.name.clone(),
            role: holder.role.name().to_owned(),
            run: holder.run.as_ref().map(ToString::to_string),
            seat: holder.seat.as_ref().map(ToString::to_string),
            state,
            issued: Some(holder.issued),
            ends: Some(holder.ends),
            revoked: revocation.map(|one| one.until),
            reason: reason(revocation),
            key: holder.public.to_string(),
            account: holder.account.to_string(),
        }
    }

    fn stranger(revocation: &Revocation) -> Self {
        Self {
            name: "-".to_owned(),
            role: "-".to_owned(),
            run: None,
            seat: None,
            state: state(revocation),
            issued: None,
            ends: None,
            revoked: Some(revocation.until),
            reason: reason(Some(revocation)),
            key: revocation.key.to_string(),
            account: revocation.account.to_string(),
        }
    }
}

/// A revocation that no broker has confirmed is no end of the key yet.
const fn state(revocation: &Revocation) -> &'static str {
    match revocation.pending {
        true => "kept",
        false => "revoked",
    }
}

fn reason(revocation: Option<&Revocation>) -> Option<String> {
    let reason = revocation?.reason.as_ref()?;
    Some(reason.as_str().to_owned())
}

impl Row for Listed {
    const TITLES: &'static [&'static str] = &[
        "name",
        "role",
        "run",
        "state",
        "dated",
        "ends",
        "void up to",
        "key",
        "reason",
    ];

    fn cells(&self) -> Vec<String> {
        let text = |text: Option<&String>| or_dash(text, |text| text.clone());
        vec![
            self.name.clone(),
            self.role.clone(),
            match &self.seat {
                None => text(self.run.as_ref()),
                Some(seat) => format!("{}, {seat}", text(self.run.as_ref())),
            },
            self.state.to_owned(),
            or_dash(self.issued, time),
            or_dash(self.ends, time),
            or_dash(self.revoked, time),
            self.key.clone(),
            text(self.reason.as_ref()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use identity::InitOptions;
    use schemas::account::Account;
    use schemas::permission::Role;

    use super::*;

    #[test]
    fn tl_07_a_key_without_a_record_is_revoked_in_every_account() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let folder = scratch.path().join(".diloco");
        let domain = Domain::init(&folder, &InitOptions::default(), clock::now());
        let domain = domain.expect("an empty folder");
        let key = format!("U{}", "A".repeat(55));
        let accounts: BTreeSet<AccountId> = found(&domain, &key)
            .expect("it is a user's key")
            .into_iter()
            .map(|target| target.account)
            .collect();
        let expected = Account::ALL.map(|account| domain.account(account).expect("a name"));
        assert_eq!(accounts, expected.into_iter().collect());
    }

    #[test]
    fn tl_06_a_holder_that_the_registrar_renews_has_not_ended() {
        let now = clock::now();
        let key = format!("U{}", "A".repeat(55));
        let account = format!("A{}", "A".repeat(55));
        let mut holder = Registration {
            v: schemas::V,
            name: "w1".to_owned(),
            role: Role::Worker,
            run: Some("demo".parse().expect("a name")),
            account: account.parse().expect("the form of an account's key"),
            public: key.parse().expect("the form of a user's key"),
            issued: UnixMillis(0),
            ends: UnixMillis(now.get() + 1),
            blocked: None,
            audit_key: None,
            seat: None,
            before: None,
            changes_until: None,
        };
        let state = |holder: &Registration| Listed::holder(holder, None, now).state;
        assert_eq!(state(&holder), "valid");
        holder.ends = now;
        assert_eq!(state(&holder), "renewable");
        holder.blocked = Some(now);
        assert_eq!(state(&holder), "blocked");
        (holder.role, holder.blocked) = (Role::Provisioner, None);
        assert_eq!(state(&holder), "ended");
    }
}
