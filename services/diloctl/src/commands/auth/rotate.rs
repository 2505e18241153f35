//! `auth rotate role`, `auth rotate manifest`, `auth rotate events` and `auth retire`.

use identity::retired::{KeysOf, Retired};
use identity::{Domain, ManifestKey, Registration, TrustBundle};
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

/// Gives roles new signing keys, and prints every key and holder that it touched.
pub(super) async fn roles(context: &Context, roles: &[Role], at_once: bool) -> Result<(), Failure> {
    let (domain, lock) = context.locked("diloctl auth rotate").await?;
    let url = context.accounts_url()?;
    domain.take_over(clock::now())?;
    let rotated = accounts::rotate(&domain, &lock, &url, roles, at_once, clock::now()).await?;
    let accounts::Rotated {
        roles,
        broken,
        in_effect,
    } = rotated;
    let touched = roles.iter().flat_map(|one| of_role(one, in_effect.is_ok()));
    context.printer.rows(&touched.collect::<Vec<_>>());
    let waiting: Vec<&str> = roles
        .iter()
        .filter(|one| one.standing.len() > 1)
        .map(|one| one.role.name())
        .collect();
    if !waiting.is_empty() {
        context.printer.talk(&format!(
            "earlier keys stand of more than one rotation ({}): all of them are valid until `diloctl auth retire`",
            waiting.join(", ")
        ));
    }
    let in_effect = in_effect.map(drop).map_err(|error| kept(&error));
    match (broken, in_effect) {
        (None, in_effect) => in_effect,
        (Some(broken), Ok(())) => Err(broken),
        (Some(broken), Err(kept)) => Err(broken.and(&kept)),
    }
}

/// The keys and holders of a rotated role.
fn of_role(rotated: &accounts::RotatedRole, confirmed: bool) -> Vec<Touched> {
    let role = rotated.role;
    let mut rows = vec![Touched::key(role, &rotated.keys.new, "new")];
    rows.extend(ended(role, &rotated.gone, confirmed));
    let standing = rotated.standing.iter();
    rows.extend(standing.map(|key| Touched::key(role, key, "until retired")));
    let renewed = rotated.resigned.renewed.iter();
    rows.extend(renewed.map(|one| Touched::holder(one, "new token")));
    let elsewhere = rotated.resigned.elsewhere.iter();
    rows.extend(elsewhere.map(|one| Touched::holder(one, "issue again")));
    rows
}

/// Ends the earlier signing keys of roles.
pub(super) async fn retire(context: &Context, roles: &[Role]) -> Result<(), Failure> {
    let (domain, lock) = context.locked("diloctl auth retire").await?;
    let url = context.accounts_url()?;
    let now = clock::now();
    let (mut gone, mut broken) = (Vec::new(), None);
    for role in roles {
        match domain.retire(*role) {
            Ok(keys) => gone.push((*role, keys)),
            Err(error) => {
                let text = format!("the keys of role {} are not ended", role.name());
                broken = Some(Failure::from(error).with_more(text));
                break;
            }
        }
    }
    // Also if a role failed: what was ended before it is void at the broker only from here on.
    let pushed = accounts::push(&domain, &lock, &url, now).await;
    for (role, keys) in &gone {
        // The note is for people: it decides nothing.
        if let Err(error) = domain.note_retired(KeysOf::Role(*role), keys, now) {
            let text = format!("warning the time of this retirement is not noted: {error}");
            context.printer.talk(&text);
        }
    }
    let mut rows: Vec<Touched> = Vec::new();
    for (role, keys) in &gone {
        rows.extend(ended(*role, keys, pushed.is_ok()));
        if keys.is_empty() {
            let last = domain.last_retired(KeysOf::Role(*role))?;
            say_nothing_left(context, &format!("role {}", role.name()), last.as_ref());
            let state = match pushed {
                Ok(_) => "void already",
                Err(_) => "kept",
            };
            let void = last.iter().flat_map(|last| {
                let row = |key| Touched::key(*role, key, state);
                last.keys.iter().map(row)
            });
            rows.extend(void);
        }
    }
    if !rows.is_empty() {
        context.printer.rows(&rows);
    }
    let pushed = pushed.map(drop).map_err(|error| kept(&error));
    match (broken, pushed) {
        (None, pushed) => pushed,
        (Some(broken), Ok(())) => Err(broken),
        (Some(broken), Err(kept)) => Err(broken.and(&kept)),
    }
}

/// Says that a command has found no key to end, and when the last ones were ended.
fn say_nothing_left(context: &Context, of: &str, last: Option<&Retired>) {
    let before = match last {
        Some(last) => format!(
            "the keys before the present one were retired at {}",
            time(last.at)
        ),
        None => "no command has noted here that a key was".to_owned(),
    };
    let text = format!("nothing is left to retire of {of}: {before}");
    context.printer.talk(&text);
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

/// Gives the coordinator a new key for leases and commands, or ends the earlier ones, which needs
/// the coordinator's word unless that is to be done by `force`.
pub(super) async fn manifest(context: &Context, part: Part, force: bool) -> Result<(), Failure> {
    let (domain, _lock) = context.locked("diloctl auth rotate").await?;
    if part == Part::Retire && !force {
        check_unused(context, &domain).await?;
    }
    let rows: Vec<Signer> = match part {
        Part::Prepare => vec![Signer::of(domain.prepare_manifest_key()?, "next")],
        Part::Adopt => {
            // Workers know it before anything is signed with it.
            domain.prepare_manifest_key()?;
            let keys = domain.adopt_manifest_key()?;
            // Also those of earlier rotations that nobody has retired.
            let known = TrustBundle::read(&domain.layout().trust())?.manifest_keys;
            let standing = known.into_iter().filter(|key| *key != keys.new);
            let standing = standing.map(|key| Signer::of(key, "until retired"));
            std::iter::once(Signer::of(keys.new.clone(), "new"))
                .chain(standing)
                .collect()
        }
        Part::Retire => {
            let gone = domain.retire_manifest_keys()?;
            retired(
                context,
                &domain,
                KeysOf::Leases,
                gone,
                ["void", "void already"],
            )?
        }
    };
    show(context, &domain, &rows)
}

/// Gives the coordinator a new key for its events, or ends the earlier ones, once the ledger shows
/// that the present one has succeeded them.
pub(super) async fn events(context: &Context, part: Part) -> Result<(), Failure> {
    let domain = context.domain()?;
    let rows: Vec<Signer> = match part {
        Part::Prepare => {
            let _lock = context.lock("diloctl auth rotate").await?;
            let key = domain.prepare_event_key()?;
            match domain.offered_event_key()? {
                Some(_) => waits_already(context, key),
                None => vec![Signer::of(key, "next")],
            }
        }
        Part::Adopt => {
            let _lock = context.lock("diloctl auth rotate").await?;
            let offered = domain.offered_event_key()?.is_some();
            // Readers know it before anything is signed with it.
            domain.prepare_event_key()?;
            let keys = domain.offer_event_key()?;
            let mut rows = match offered {
                true => waits_already(context, keys.new.clone()),
                false => vec![Signer::of(keys.new.clone(), "new")],
            };
            let bundle = TrustBundle::read(&domain.layout().trust())?;
            let stands = |key: &&PublicKey| **key != keys.new && bundle.ended(key).is_none();
            let standing = bundle.audit_keys.iter().filter(stands);
            rows.extend(standing.map(|key| Signer::of(key.clone(), "until retired")));
            rows
        }
        Part::Retire => {
            let auditor = record::read(context, None, |auditor| auditor).await?;
            let _lock = context.lock("diloctl auth rotate").await?;
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
            let passed = domain.forget_passed_event_keys(present)?;
            let mut rows = retired(
                context,
                &domain,
                KeysOf::Events,
                gone,
                ["ended", "ended already"],
            )?;
            let passed = passed.into_iter();
            rows.extend(passed.map(|key| Signer::of(key, "passed over")));
            rows
        }
    };
    show(context, &domain, &rows)
}

/// The rows of keys that a command has ended. If there are none, those that ended last, which it
/// says.
fn retired(
    context: &Context,
    domain: &Domain,
    of: KeysOf,
    gone: Vec<PublicKey>,
    [now, already]: [&'static str; 2],
) -> Result<Vec<Signer>, Failure> {
    domain.note_retired(of, &gone, clock::now())?;
    if !gone.is_empty() {
        return Ok(gone.into_iter().map(|key| Signer::of(key, now)).collect());
    }
    let last = domain.last_retired(of)?;
    let name = match of {
        KeysOf::Leases => "leases",
        KeysOf::Events | KeysOf::Role(_) => "events",
    };
    say_nothing_left(context, name, last.as_ref());
    let keys = last.map(|last| last.keys).unwrap_or_default();
    let rows = keys.into_iter().map(|key| Signer::of(key, already));
    Ok(rows.collect())
}

/// The row of a key that an earlier command has made and offered: this one makes no other.
fn waits_already(context: &Context, key: PublicKey) -> Vec<Signer> {
    context.printer.talk(
        "no key was made: this one was offered before, and waits for the coordinator, or for --retire once a coordinator on \
         another machine has taken it; run --retire first if you want another key",
    );
    vec![Signer::of(key, "waits already")]
}

/// Signs the trust bundle as it is now, so that machines that are invited get it, and prints its
/// keys.
pub(super) fn show<R: Row>(context: &Context, domain: &Domain, rows: &[R]) -> Result<(), Failure> {
    let signed = domain.endorse_trust(clock::now())?;
    if !rows.is_empty() {
        context.printer.rows(rows);
    }
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

pub(super) fn kept(error: &Failure) -> Failure {
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
