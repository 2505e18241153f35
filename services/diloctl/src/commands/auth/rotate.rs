//! `auth rotate role`, `auth rotate manifest`, `auth rotate events` and `auth retire`.

use identity::{Domain, ManifestKey, Registration};
use runtime::accounts;
use runtime::{Failure, clock};
use schemas::control::{Query, View};
use schemas::permission::Role;
use schemas::{Code, PublicKey, UnixMillis};
use serde::Serialize;

use super::super::audit::record;
use crate::context::{Context, unexpected};
use crate::output::Row;
use crate::table::{or_dash, time};

/// Gives a role a new signing key, and prints every key and holder that it touched.
pub(super) async fn role(context: &Context, role: Role, at_once: bool) -> Result<(), Failure> {
    let domain = context.domain()?;
    let lock = context.lock("diloctl auth rotate")?;
    let url = context.accounts_url()?;
    domain.take_over(clock::now())?;
    let rotated = accounts::rotate(&domain, &lock, &url, role, at_once, clock::now()).await?;
    let accounts::Rotated {
        keys,
        gone,
        resigned,
        in_effect,
    } = rotated;
    let mut rows = vec![Touched::key(role, &keys.new, "new")];
    match at_once {
        true => rows.extend(ended(role, &gone, in_effect.is_ok())),
        false => rows.push(Touched::key(role, &keys.old, "until retired")),
    }
    rows.extend(
        resigned
            .renewed
            .iter()
            .map(|one| Touched::holder(one, "new token")),
    );
    rows.extend(
        resigned
            .elsewhere
            .iter()
            .map(|one| Touched::holder(one, "issue again")),
    );
    context.printer.rows(&rows);
    in_effect.map(drop).map_err(|error| kept(&error))
}

/// Ends the earlier signing keys of a role.
pub(super) async fn retire(context: &Context, role: Role) -> Result<(), Failure> {
    let domain = context.domain()?;
    let lock = context.lock("diloctl auth retire")?;
    let url = context.accounts_url()?;
    let gone = domain.retire(role)?;
    let pushed = accounts::push(&domain, &lock, &url, clock::now()).await;
    let rows: Vec<Touched> = ended(role, &gone, pushed.is_ok()).collect();
    context.printer.rows(&rows);
    pushed.map(drop).map_err(|error| kept(&error))
}

/// A part of the rotation of a key that the trust bundle knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// The trust bundle knows the next key.
    Prepare,
    /// The coordinator signs with it.
    Adopt,
    /// The trust bundle knows earlier ones no more.
    Retire,
}

impl Part {
    pub(super) const fn of(prepare: bool, retire: bool) -> Self {
        match (prepare, retire) {
            (true, _) => Self::Prepare,
            (false, true) => Self::Retire,
            (false, false) => Self::Adopt,
        }
    }
}

/// Refuses to end the earlier keys of leases while the coordinator signs with one of them.
async fn check_unused(context: &Context, domain: &Domain) -> Result<(), Failure> {
    let present = ManifestKey::read(&domain.layout().manifest_key())?;
    let refused = |text: String| Err(Failure::new(Code::ManifestKeyInUse, text));
    let asked = async {
        let operator = context.operator().await?;
        operator.view(Query::Coordinator).await
    };
    match asked.await {
        Ok(View::Coordinator(view)) if view.manifest_key.as_ref() == Some(present.public()) => {
            Ok(())
        }
        Ok(View::Coordinator(view)) => {
            let signs = or_dash(view.manifest_key, |key| key.to_string());
            refused(format!(
                "it signs with {signs}, and {} is the present one",
                present.public()
            ))
        }
        Ok(other) => Err(unexpected(&other)),
        Err(failure) => refused(format!("the coordinator could not be asked: {failure}")),
    }
}

/// Gives the coordinator a new key for leases and commands, or ends the earlier ones, which needs the
/// coordinator's word unless that is to be done by `force`.
pub(super) async fn manifest(context: &Context, part: Part, force: bool) -> Result<(), Failure> {
    let domain = context.domain()?;
    let _lock = context.lock("diloctl auth rotate")?;
    if part == Part::Retire && !force {
        check_unused(context, &domain).await?;
    }
    let rows: Vec<Signer> = match part {
        Part::Prepare => vec![Signer::of(domain.prepare_manifest_key()?, "next")],
        Part::Adopt => {
            // Workers know it before anything is signed with it.
            domain.prepare_manifest_key()?;
            let keys = domain.adopt_manifest_key()?;
            vec![
                Signer::of(keys.new, "new"),
                Signer::of(keys.old, "until retired"),
            ]
        }
        Part::Retire => {
            let gone = domain.retire_manifest_keys()?;
            gone.into_iter()
                .map(|key| Signer::of(key, "void"))
                .collect()
        }
    };
    show(context, &domain, &rows)
}

/// Gives the coordinator a new key for its events, or ends the earlier ones, once the ledger shows that
/// the present one has succeeded them.
pub(super) async fn events(context: &Context, part: Part) -> Result<(), Failure> {
    let domain = context.domain()?;
    let rows: Vec<Signer> = match part {
        Part::Prepare => {
            let _lock = context.lock("diloctl auth rotate")?;
            let key = domain.prepare_event_key()?;
            match domain.offered_event_key()? {
                Some(_) => waits_already(context, key),
                None => vec![Signer::of(key, "next")],
            }
        }
        Part::Adopt => {
            let _lock = context.lock("diloctl auth rotate")?;
            let offered = domain.offered_event_key()?.is_some();
            // Readers know it before anything is signed with it.
            domain.prepare_event_key()?;
            let keys = domain.offer_event_key()?;
            let mut rows = match offered {
                true => waits_already(context, keys.new),
                false => vec![Signer::of(keys.new, "new")],
            };
            rows.push(Signer::of(keys.old, "until retired"));
            rows
        }
        Part::Retire => {
            let auditor = record::read(context, None, |auditor| auditor).await?;
            let _lock = context.lock("diloctl auth rotate")?;
            let in_use = |text: String| Err(Failure::new(Code::EventKeyInUse, text));
            let Some(present) = auditor.emitter() else {
                return in_use("the ledger has no key".to_owned());
            };
            let Some(ends) = auditor.vouched() else {
                return in_use(format!(
                    "the ledger names {present}, which has signed no event yet that follows"
                ));
            };
            if ends.is_empty() || !domain.settle_event_key(present)? {
                return in_use(format!("the ledger goes on with {present}"));
            }
            let gone = domain.end_event_keys(ends)?;
            gone.into_iter()
                .map(|key| Signer::of(key, "ended"))
                .collect()
        }
    };
    show(context, &domain, &rows)
}

/// The row of a key that an earlier command has made and offered: this one makes no other.
fn waits_already(context: &Context, key: PublicKey) -> Vec<Signer> {
    context.printer.talk(
        "no key was made: this one was offered before, and waits for the coordinator, or for --retire once a coordinator on \
         another machine has taken it; run --retire first if you want another key",
    );
    vec![Signer::of(key, "waits already")]
}

/// Signs the trust bundle as it is now, so that machines that are invited get it, and prints its keys.
pub(super) fn show<R: Row>(context: &Context, domain: &Domain, rows: &[R]) -> Result<(), Failure> {
    let signed = domain.endorse_trust(clock::now())?;
    context.printer.rows(rows);
    if !signed {
        context.printer.talk(
            "the vault is not here, so machines that were invited before this get the trust bundle of \
             their invitation; copy trust.json to them",
        );
    }
    Ok(())
}

/// A key that signs leases and commands, as a row.
#[derive(Debug, Serialize)]
struct Signer {
    state: &'static str,
    key: String,
}

impl Signer {
    fn of(key: PublicKey, state: &'static str) -> Self {
        let key = key.to_string();
        Self { state, key }
    }
}

impl Row for Signer {
    const TITLES: &'static [&'static str] = &["state", "key"];

    fn cells(&self) -> Vec<String> {
        vec![self.state.to_owned(), self.key.clone()]
    }
}

/// Keys that end: they are void only once the broker has said so.
fn ended(role: Role, gone: &[PublicKey], confirmed: bool) -> impl Iterator<Item = Touched> {
    let state = match confirmed {
        true => "void",
        false => "kept",
    };
    gone.iter().map(move |key| Touched::key(role, key, state))
}

fn kept(error: &Failure) -> Failure {
    Failure::new(Code::RotationKept, error)
}

/// A key or a holder, as a row.
#[derive(Debug, Serialize)]
struct Touched {
    role: &'static str,
    /// The holder; none for a signing key of the role.
    name: Option<String>,
    state: &'static str,
    /// The end of the holder's token.
    ends: Option<UnixMillis>,
    key: String,
}

impl Touched {
    fn key(role: Role, key: &PublicKey, state: &'static str) -> Self {
        Self {
            role: role.name(),
            name: None,
            state,
            ends: None,
            key: key.to_string(),
        }
    }

    fn holder(holder: &Registration, state: &'static str) -> Self {
        Self {
            role: holder.role.name(),
            name: Some(holder.name.clone()),
            state,
            ends: Some(holder.ends),
            key: holder.public.to_string(),
        }
    }
}

impl Row for Touched {
    const TITLES: &'static [&'static str] = &["role", "name", "state", "ends", "key"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.role.to_owned(),
            or_dash(self.name.clone(), |name| name),
            self.state.to_owned(),
            or_dash(self.ends, time),
            self.key.clone(),
        ]
    }
}
