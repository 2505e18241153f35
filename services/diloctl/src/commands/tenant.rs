//! `tenant`: parties that share the domain, each with an account, runs and a quota of its own.

use std::collections::BTreeMap;

use identity::tenants::TenantEntry;
use runtime::{Failure, accounts, clock};
use schemas::call::control as call;
use schemas::control::{Query, View};
use schemas::hold::Reason;
use schemas::tenant::{Quota, TenantEndReply, TenantEndRequest, TenantRequest, TenantView, Used};
use schemas::{AccountId, Code, RunId, TenantName, UnixMillis, V};
use serde::Serialize;

use crate::cli::{Declarations, QuotaArgs, Tenant};
use crate::commands::cluster;
use crate::commands::holds::{UrlsOf, at_store};
use crate::commands::revocation::{self, Carried};
use crate::context::{Context, Operator, unexpected};
use crate::output::{Record, Row};
use crate::table::{or_dash, time};

pub(crate) async fn run(context: &Context, command: Tenant) -> Result<(), Failure> {
    match command {
        Tenant::New {
            name,
            quota,
            declarations,
        } => make(context, &name, &quota, &declarations).await,
        Tenant::Ls => {
            let all = all_tenants(context).await?;
            context.printer.rows(&all);
            Ok(())
        }
        Tenant::Show { name } => show(context, &name).await,
        Tenant::Quota { name, quota } => set_quota(context, &name, &quota).await,
        Tenant::End { name, now, reason } => end(context, name, now, reason).await,
    }
}

/// Makes a tenant. Tells the coordinator before the broker knows the account, so that the
/// coordinator knows the tenant of every worker that the broker lets into it.
async fn make(
    context: &Context,
    name: &TenantName,
    quota: &QuotaArgs,
    declarations: &Declarations,
) -> Result<(), Failure> {
    let (domain, lock) = context.locked("diloctl tenant new").await?;
    let url = context.accounts_url()?;
    domain.take_over(clock::now())?;
    let quota = quota.over(Quota::default());
    let (domain, entry) = domain.make_tenant(name, quota, clock::now())?;
    tell(&context.operator().await?, &entry).await?;
    accounts::push(&domain, &lock, &url, clock::now()).await?;
    let rows = cluster::compare(context, declarations, true).await?;
    cluster::say_what_differs(context, &rows);
    show(context, name).await
}

async fn set_quota(context: &Context, name: &TenantName, quota: &QuotaArgs) -> Result<(), Failure> {
    let (domain, lock) = context.locked("diloctl tenant quota").await?;
    let url = context.accounts_url()?;
    let before = domain.tenants()?.remove(name).map(|entry| entry.quota);
    let entry = domain.set_quota(name, quota.over(before.unwrap_or_default()))?;
    tell(&context.operator().await?, &entry).await?;
    accounts::push(&domain, &lock, &url, clock::now()).await?;
    show(context, name).await
}

async fn tell(operator: &Operator, entry: &TenantEntry) -> Result<(), Failure> {
    let request = TenantRequest {
        v: V,
        tenant: entry.tenant.clone(),
        account: entry.account.clone(),
        quota: entry.quota,
    };
    let _changed = operator.ask::<call::TenantSet>(&request).await?;
    Ok(())
}

async fn show(context: &Context, name: &TenantName) -> Result<(), Failure> {
    let mut all = all_tenants(context).await?;
    all.retain(|one| one.tenant == *name);
    match all.first() {
        Some(one) => context.printer.record(one),
        None => return Err(Failure::new(Code::TenantUnknown, format!("tenant {name}"))),
    }
    Ok(())
}

/// All tenants: those that the coordinator knows, and those that only the issuer's folder has. The
/// latter exist if `tenant new` or `tenant end` broke off before the coordinator was told.
async fn all_tenants(context: &Context) -> Result<Vec<Listed>, Failure> {
    let view = context.operator().await?.view(Query::Tenants).await?;
    let View::Tenants(views) = view else {
        return Err(unexpected(&view));
    };
    Ok(listed(context.domain()?.tenants()?, views))
}

/// The tenants by name: the coordinator's view, completed from the entries in the issuer's folder.
fn listed(entries: BTreeMap<TenantName, TenantEntry>, views: Vec<TenantView>) -> Vec<Listed> {
    let mut all: BTreeMap<TenantName, Listed> = BTreeMap::new();
    for view in views {
        all.insert(view.tenant.clone(), Listed::from(view));
    }
    for (name, entry) in entries {
        match all.get_mut(&name) {
            Some(known) if known.ended.is_none() && entry.ended.is_some() => {
                (known.state, known.ended) = (ENDED_HERE, entry.ended);
            }
            Some(_) => {}
            None => {
                all.insert(name, Listed::only_here(entry));
            }
        }
    }
    all.into_values().collect()
}

/// Ends a tenant. Without `--now` the coordinator decides if it may end, since it knows the
/// tenant's runs. With `--now` this command ends the tenant in the issuer's folder first, and then
/// tells coordinator and broker. It fails if one of them could not be told.
async fn end(
    context: &Context,
    tenant: TenantName,
    now: bool,
    reason: Reason,
) -> Result<(), Failure> {
    let (domain, lock) = context.locked("diloctl tenant end").await?;
    domain.layout().vault().check()?;
    let request = TenantEndRequest {
        v: V,
        tenant: tenant.clone(),
        now,
        reason: reason.clone(),
    };
    if now {
        domain.end_tenant(&tenant, clock::now())?;
    }
    let told = async {
        let operator = context.operator().await?;
        operator.ask::<call::TenantEnd>(&request).await
    };
    let (reply, failed) = match told.await {
        Ok(reply) => (Some(reply), None),
        // `tenant new` broke off before it told the coordinator of this tenant.
        Err(failure) if failure.code() == Code::TenantUnknown => (None, None),
        Err(failure) if now && failure.code() != Code::TenantBusy => (None, Some(failure)),
        Err(failure) => return Err(failure),
    };
    if reply.is_some() {
        context.finished(format!("the coordinator has ended tenant {tenant}"));
    }
    let (entry, holders) = domain.end_tenant(&tenant, clock::now())?;
    let keys: Vec<_> = holders
        .into_iter()
        .map(|holder| (holder.account, holder.public))
        .collect();
    let cut = revocation::carry_out(context, &domain, &lock, &keys, Some(&reason)).await;
    let Carried {
        revoked: cut,
        unrecorded,
    } = match (cut, &failed) {
        (Ok(cut), _) => cut,
        (Err(kept), None) => return Err(kept),
        (Err(kept), Some(failed)) => return Err(kept.and(failed)),
    };
    // The tenant has ended by now, so the command does not fail if the coordinator does not list
    // its runs.
    let runs = match &reply {
        Some(_) => runs_of(context, &tenant).await.ok(),
        None => Some(Vec::new()),
    };
    context.printer.record(&Ended {
        tenant,
        runs,
        account: entry.account,
        coordinator: reply,
        credentials: keys.len(),
        connections: cut.iter().map(|one| one.connections).sum(),
    });
    failed.or(unrecorded).map_or(Ok(()), Err)
}

/// The runs of an ended tenant that are not complete.
async fn runs_of(context: &Context, tenant: &TenantName) -> Result<Vec<RunId>, Failure> {
    let runs = match context.operator().await?.view(Query::Runs).await? {
        View::Runs(runs) => runs,
        other => return Err(unexpected(&other)),
    };
    let open = runs.into_iter().filter(|run| run.completed_at.is_none());
    let names = open.map(|run| run.run);
    Ok(names
        .filter(|run| run.tenant().as_ref() == Some(tenant))
        .collect())
}

/// The state of a tenant that `tenant end --now` ended in the issuer's folder, and that the
/// coordinator still has as open.
const ENDED_HERE: &str = "ended; the coordinator does not know";

/// A tenant as it is now.
#[derive(Serialize)]
struct Listed {
    tenant: TenantName,
    account: AccountId,
    state: &'static str,
    quota: Quota,
    used: Used,
    since: UnixMillis,
    ended: Option<UnixMillis>,
}

impl Listed {
    /// A tenant that the coordinator does not know.
    fn only_here(entry: TenantEntry) -> Self {
        Self {
            tenant: entry.tenant,
            account: entry.account,
            state: match entry.ended {
                Some(_) => "ended",
                None => "unfinished",
            },
            quota: entry.quota,
            used: Used::default(),
            since: entry.since,
            ended: entry.ended,
        }
    }

    fn parts(&self) -> [(&'static str, String); 9] {
        let of = |used: u64, most: Option<u64>| match most {
            Some(most) => format!("{used} of {most}"),
            None => used.to_string(),
        };
        let (quota, used) = (&self.quota, &self.used);
        let most = |count: Option<u32>| count.map(u64::from);
        [
            ("tenant", self.tenant.to_string()),
            ("state", self.state.to_owned()),
            ("runs", of(used.runs.into(), most(quota.runs))),
            ("workers", of(used.workers.into(), most(quota.workers))),
            ("objects", of(used.objects, quota.objects)),
            (
                "bytes",
                of(used.bytes.get(), quota.bytes.map(schemas::Bytes::get)),
            ),
            (
                "connections",
                or_dash(quota.connections, |most| format!("at most {most}")),
            ),
            ("since", time(self.since)),
            ("account", self.account.to_string()),
        ]
    }
}

impl From<TenantView> for Listed {
    fn from(view: TenantView) -> Self {
        Self {
            tenant: view.tenant,
            account: view.account,
            state: if view.ended.is_some() {
                "ended"
            } else {
                "open"
            },
            quota: view.quota,
            used: view.used,
            since: view.since,
            ended: view.ended,
        }
    }
}

impl Row for Listed {
    const TITLES: &'static [&'static str] = &[
        "tenant",
        "state",
        "runs",
        "workers",
        "objects",
        "bytes",
        "connections",
        "since",
        "account",
    ];

    fn cells(&self) -> Vec<String> {
        self.parts().map(|(_, cell)| cell).to_vec()
    }
}

impl Record for Listed {
    fn lines(&self) -> Vec<(&'static str, String)> {
        let ended = self.ended.map(|ended| ("ended", time(ended)));
        self.parts().into_iter().chain(ended).collect()
    }
}

/// The outcome of `tenant end`.
#[derive(Serialize)]
struct Ended {
    tenant: TenantName,
    account: AccountId,
    /// The tenant's runs that are not complete, which are frozen for good. None if the coordinator
    /// ended the tenant and did not name them.
    runs: Option<Vec<RunId>>,
    /// None if the coordinator never knew the tenant. With `--now` also none if it refused or did
    /// not answer.
    coordinator: Option<TenantEndReply>,
    credentials: usize,
    connections: usize,
}

impl Record for Ended {
    fn lines(&self) -> Vec<(&'static str, String)> {
        let state = match &self.coordinator {
            Some(reply) if reply.changed => "ended; this is in the ledger",
            Some(_) => "had ended before",
            None => "ended in the issuer's folder; the coordinator has not confirmed it",
        };
        let mut lines = vec![
            ("tenant", format!("{}: {state}", self.tenant)),
            ("account", format!("{} lets nobody in", self.account)),
        ];
        if let Some(reply) = &self.coordinator {
            let names = match self.runs.as_deref() {
                None => format!("{}; the coordinator did not name them", reply.runs),
                Some([]) => "none".to_owned(),
                Some(runs) => {
                    let names: Vec<&str> = runs.iter().map(RunId::as_str).collect();
                    names.join(", ")
                }
            };
            lines.push(("runs frozen", names));
            // The reply of a repeated order counts nothing; only the ledger says what the first one
            // ended.
            if reply.changed {
                lines.extend([
                    ("workers shut out", reply.workers.to_string()),
                    ("leases ended", reply.leases.to_string()),
                ]);
            } else {
                let earlier = "by an earlier order; `diloctl audit replay` shows it";
                lines.push(("ended", earlier.to_owned()));
            }
            let store = reply.store;
            let store = store.map(|store| at_store(store, UrlsOf::Tenant, true));
            lines.extend(store.map(|says| ("urls", says.to_owned())));
        }
        lines.extend([
            ("credentials void", self.credentials.to_string()),
            ("connections cut", self.connections.to_string()),
        ]);
        lines
    }
}

#[cfg(test)]
mod tests {
    use identity::{KeyKind, SigningKey};

    use super::*;

    fn entry(name: &str, ended: Option<u64>) -> (TenantName, TenantEntry) {
        let tenant: TenantName = name.parse().expect("a name");
        let key = SigningKey::generate(KeyKind::Account);
        let entry = TenantEntry {
            v: V,
            tenant: tenant.clone(),
            account: key.public().as_str().parse().expect("an account's key"),
            quota: Quota::default(),
            since: UnixMillis(1),
            ended: ended.map(UnixMillis),
        };
        (tenant, entry)
    }

    #[test]
    fn tl_31_tenant_end_names_the_frozen_runs_and_says_if_it_is_repeated() {
        let (tenant, entry) = entry("acme", Some(5));
        let mut ended = Ended {
            tenant,
            account: entry.account,
            runs: Some(
                ["acme_a", "acme_b"]
                    .map(|run| run.parse().expect("a name"))
                    .to_vec(),
            ),
            coordinator: Some(TenantEndReply {
                v: V,
                changed: true,
                runs: 2,
                workers: 3,
                leases: 1,
                store: None,
            }),
            credentials: 3,
            connections: 3,
        };
        let line = |ended: &Ended, name: &str| {
            let mut lines = ended.lines().into_iter();
            lines.find(|(own, _)| *own == name).map(|(_, text)| text)
        };
        assert_eq!(
            line(&ended, "runs frozen").as_deref(),
            Some("acme_a, acme_b")
        );
        assert_eq!(line(&ended, "workers shut out").as_deref(), Some("3"));
        assert_eq!(line(&ended, "ended"), None);
        if let Some(reply) = &mut ended.coordinator {
            reply.changed = false;
        }
        assert_eq!(line(&ended, "workers shut out"), None);
        assert!(line(&ended, "ended").is_some_and(|text| text.starts_with("by an earlier")));
        ended.runs = Some(Vec::new());
        assert_eq!(line(&ended, "runs frozen").as_deref(), Some("none"));
        ended.runs = None;
        assert_eq!(
            line(&ended, "runs frozen").as_deref(),
            Some("2; the coordinator did not name them")
        );
    }

    #[test]
    fn a_tenant_that_was_ended_without_the_coordinator_is_not_shown_as_open() {
        let entries = [
            entry("both", Some(5)),
            entry("here", Some(5)),
            entry("new", None),
            entry("new-ended", Some(5)),
            entry("open", None),
        ];
        let view = |(tenant, entry): &(TenantName, TenantEntry)| TenantView {
            tenant: tenant.clone(),
            account: entry.account.clone(),
            quota: entry.quota,
            operator: SigningKey::generate(KeyKind::User).public().clone(),
            since: entry.since,
            ended: (tenant.as_str() == "both").then_some(UnixMillis(4)),
            used: Used::default(),
        };
        let known = [&entries[0], &entries[1], &entries[4]];
        let views = known.map(view).to_vec();
        let all = listed(entries.into(), views);
        let shown: Vec<_> = all
            .iter()
            .map(|one| (one.tenant.as_str(), one.state, one.ended))
            .collect();
        let ended = |at| Some(UnixMillis(at));
        assert_eq!(
            shown,
            [
                ("both", "ended", ended(4)),
                ("here", ENDED_HERE, ended(5)),
                ("new", "unfinished", None),
                ("new-ended", "ended", ended(5)),
                ("open", "open", None),
            ]
        );
    }
}
