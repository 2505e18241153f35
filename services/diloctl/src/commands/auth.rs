//! `auth`: the trust domain. Works on files alone, and connects to nothing; the exception is what
//! concerns revocations.

mod authority;
mod jwks;
mod leaked;
mod mutual;
pub(crate) mod revoke;
mod rotate;
mod successor;

use std::collections::BTreeSet;
use std::path::Path;

use identity::BrokerFiles;
use identity::credentials::Credentials;
use identity::domain::{Domain, DomainError, InitOptions, Issued};
use runtime::{Failure, clock};
use schemas::permission::Role;
use schemas::{Code, Millis, RunId, UnixMillis};
use serde::Serialize;
use tlog::cosign::Policy;

use crate::cli::{Auth, Rotate};
use crate::context::{BUS_PORT, Context, is_credentials};
use crate::output::{Record, Row};
use crate::stack::services::{self, Choices};
use crate::table::time;

pub(crate) async fn run(context: &Context, command: &Auth) -> Result<(), Failure> {
    match command {
        Auth::Init {
            run,
            workers,
            server_name,
            mutual_tls,
            witness_policy,
            nats_config,
        } => {
            let witnesses = witness_policy.as_deref().map(policy).transpose()?;
            let options = InitOptions {
                server_names: server_name.clone(),
                mutual_tls: *mutual_tls,
                witnesses,
            };
            init(context, run, *workers, &options, nats_config).await
        }
        Auth::Issue {
            role,
            name,
            run,
            lifetime,
        } => {
            let (domain, _lock) = context.locked("diloctl auth issue").await?;
            // Who says this name knows that the holder was revoked, if it was.
            let issued =
                domain.readmit(*role, name, run.as_ref(), lifetime.millis(), clock::now())?;
            context
                .printer
                .record(&Credential::issued(*role, name, &issued));
            if *role == Role::Auditor {
                auditors_store_key(context, &domain)?;
            }
            Ok(())
        }
        Auth::Certificate { server_name } => certificate(context, server_name).await,
        Auth::Rotate(Rotate::Certificate { server_name }) => {
            certificate(context, server_name).await
        }
        Auth::Rotate(Rotate::Role {
            of,
            end_leases: true,
            reason: Some(reason),
            ..
        }) => leaked::run(context, &of.roles(), reason).await,
        Auth::Rotate(Rotate::Role { of, now, .. }) => {
            rotate::roles(context, &of.roles(), *now).await
        }
        Auth::Rotate(Rotate::Manifest {
            prepare,
            retire,
            force,
        }) => rotate::manifest(context, rotate::Part::of(*prepare, *retire), *force).await,
        Auth::Rotate(Rotate::Events { prepare, retire }) => {
            rotate::events(context, rotate::Part::of(*prepare, *retire)).await
        }
        Auth::Rotate(Rotate::Authority {
            prepare,
            retire,
            force,
            server_name,
        }) => {
            let part = rotate::Part::of(*prepare, *retire);
            authority::rotate(context, part, *force, server_name).await
        }
        Auth::Rotate(Rotate::User { name, wait }) => successor::run(context, name, wait.0).await,
        Auth::Retire { of } => rotate::retire(context, &of.roles()).await,
        Auth::Config {
            mutual_tls,
            nats_config,
        } => {
            let committed = BrokerFiles::read(nats_config).map_err(Failure::from)?;
            let (domain, _lock) = context.locked("diloctl auth config").await?;
            if *mutual_tls {
                mutual::begin(context, &domain)?;
            }
            domain
                .write_broker(&committed, clock::now())
                .map_err(Failure::from)?;
            if !domain
                .layout()
                .broker_generated()
                .join("listen.conf")
                .exists()
            {
                domain
                    .write_listen(&crate::stack::listen_address(BUS_PORT))
                    .map_err(Failure::from)?;
            }
            let folder = domain.layout().broker_folder();
            context.printer.talk(&format!(
                "{} is written again; `diloctl auth push` brings the accounts into effect at a broker \
                 that runs, and a broker that is started reads all of it",
                folder.display()
            ));
            Ok(())
        }
        Auth::Revoke { holders, reason } => revoke::revoke(context, holders, reason.as_ref()).await,
        Auth::Push => revoke::push(context).await,
        Auth::Ls => revoke::list(context),
        Auth::Show => show(context),
        Auth::Jwks {
            from_bus,
            trust,
            file,
        } => jwks::run(context, *from_bus, trust.as_deref(), file.as_deref()).await,
    }
}

/// Makes a new certificate for broker and store.
async fn certificate(context: &Context, server_name: &[String]) -> Result<(), Failure> {
    let (domain, _lock) = context.locked("diloctl auth certificate").await?;
    domain
        .renew_server_certificate(server_name, clock::now())
        .map_err(Failure::from)?;
    let file = domain.layout().server_certificate();
    context.printer.talk(&format!(
        "{} is new; restart broker and store",
        file.display()
    ));
    Ok(())
}

/// Gives auditors a key to the store, if this domain has the store's keys.
fn auditors_store_key(context: &Context, domain: &Domain) -> Result<(), Failure> {
    let layout = domain.layout();
    if !layout.store_keys().exists() {
        return Ok(());
    }
    let is_new = domain.give_auditors_store_key()?;
    let file = layout.store_auditor_key();
    let restart = match is_new {
        true => "; it is new, so restart the store",
        false => "",
    };
    let text = format!(
        "{} is an auditor's key to the store, for reading alone{restart}",
        file.display()
    );
    context.printer.talk(&text);
    Ok(())
}

/// Reads the policy of witnesses that the owner signs into the log's manifest. Each verifier will
/// read it, and nobody can change it.
fn policy(file: &Path) -> Result<String, Failure> {
    let failed =
        |reason: &str| Failure::new(Code::ConfigInvalid, format!("{}: {reason}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|error| failed(&error.to_string()))?;
    let policy = Policy::read(text.as_bytes()).map_err(|error| failed(&error.to_string()))?;
    if policy.is_met(&BTreeSet::new()) {
        return Err(failed("it asks for no witness"));
    }
    // The log has no name before the domain is made.
    match policy.names_log("", &[]) {
        true => Ok(text),
        false => Err(failed(
            "it names a log, and this domain's is yet to be made",
        )),
    }
}

async fn init(
    context: &Context,
    run: &RunId,
    workers: u32,
    options: &InitOptions,
    nats_config: &Path,
) -> Result<(), Failure> {
    // Finds every error that can be found before a file is written.
    let committed = BrokerFiles::read(nats_config).map_err(Failure::from)?;
    let checked = Domain::check_init(&context.folder, options);
    if matches!(checked, Err(DomainError::Exists(_))) {
        // Another command that holds the lock may be the `init` that is about to remove it itself.
        if let Ok(_lock) = context.try_lock("diloctl auth init") {
            Domain::clear_finished(&context.folder);
        }
    }
    checked.map_err(Failure::from)?;
    let _lock = context.lock("diloctl auth init").await?;
    let choices = Choices {
        endpoints: context.endpoints.clone(),
        run: run.clone(),
        workers,
        threads: 1,
        device: "auto".to_owned(),
        token_lifetime: runtime::ConfigDuration(identity::domain::LIFETIME_RENEWED.as_duration()),
    };
    let mut made = Vec::new();
    let domain = Domain::init_with(&context.folder, options, clock::now(), |staged| {
        made = fill(context, staged, &committed, &choices)?;
        Ok::<(), Unfilled>(())
    })?;
    context.printer.rows(&made);
    context.printer.talk(&format!(
        "trust domain {} is in {}; its secrets are readable by you alone",
        domain.trust().domain,
        context.folder.display()
    ));
    Ok(())
}

/// Puts credentials and configuration into a domain that is being made, and says what was issued.
fn fill(
    context: &Context,
    staged: &Domain,
    committed: &BrokerFiles,
    choices: &Choices,
) -> Result<Vec<Credential>, Failure> {
    let lifetime = identity::domain::LIFETIME_DEFAULT;
    let kept = |role: &Role| !role.is_tenant() && !role.is_momentary();
    let services = Role::ALL.into_iter().filter(kept);
    let services = services.map(|role| (role, role.name().to_owned(), None));
    let workers = (0..choices.workers).map(|index| {
        (
            Role::Worker,
            services::worker_name(index),
            Some(&choices.run),
        )
    });
    let mut made = Vec::new();
    for (role, name, run) in services.chain(workers) {
        let issued = issue(staged, role, &name, run, lifetime)?;
        made.push(
            Credential::issued(role, &name, &issued)
                .moved(staged.layout().folder(), &context.folder),
        );
    }
    staged
        .write_broker(committed, clock::now())
        .map_err(Failure::from)?;
    staged
        .write_listen(&crate::stack::listen_address(BUS_PORT))
        .map_err(Failure::from)?;
    services::write_configs(
        staged.layout().folder(),
        &services::absolute(&context.folder)?,
        choices,
    )?;
    Ok(made)
}

/// The failure to fill a new domain, with its code.
struct Unfilled(Failure);

impl From<DomainError> for Unfilled {
    fn from(error: DomainError) -> Self {
        Self(error.into())
    }
}

impl From<Failure> for Unfilled {
    fn from(failure: Failure) -> Self {
        Self(failure)
    }
}

impl From<Unfilled> for Failure {
    fn from(Unfilled(failure): Unfilled) -> Self {
        failure
    }
}

fn issue(
    domain: &Domain,
    role: Role,
    name: &str,
    run: Option<&RunId>,
    lifetime: Millis,
) -> Result<Issued, Failure> {
    domain
        .issue(role, name, run, lifetime, clock::now())
        .map_err(Failure::from)
}

fn show(context: &Context) -> Result<(), Failure> {
    let domain = context.domain()?;
    let folder = domain.layout().credentials("any");
    let folder = folder.parent().expect("credentials lie in a folder");
    let failed = |error: std::io::Error| {
        Failure::new(
            Code::CredentialMissing,
            format!("{}: {error}", folder.display()),
        )
    };
    let mut rows = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if !is_credentials(&path) {
            continue;
        }
        let Some(name) = path.file_stem().and_then(|name| name.to_str()) else {
            continue;
        };
        let read = Credentials::read(&path)?;
        let token = read.token();
        rows.push(Credential {
            name: name.to_owned(),
            role: token
                .claims
                .tags
                .first()
                .map_or_else(|| name.to_owned(), |tag| format!("worker ({tag})")),
            public: read.public().to_string(),
            expires: token.expires,
            file: path.display().to_string(),
            audit_key: Some(domain.layout().audit_key(name))
                .filter(|key| key.exists())
                .map(|key| key.display().to_string()),
        });
    }
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    context.printer.record(&Shown {
        domain: domain.trust().domain.to_string(),
        manifest_keys: domain
            .trust()
            .manifest_keys
            .iter()
            .map(ToString::to_string)
            .collect(),
        coordinator_audit_keys: domain
            .trust()
            .audit_keys
            .iter()
            .map(ToString::to_string)
            .collect(),
        head_keys: domain
            .trust()
            .head_keys
            .iter()
            .map(ToString::to_string)
            .collect(),
        sentry_keys: domain
            .trust()
            .sentry_keys
            .iter()
            .map(ToString::to_string)
            .collect(),
        log_manifest: domain.trust().log_manifest,
        credentials: rows,
    });
    Ok(())
}

#[derive(Serialize)]
struct Credential {
    name: String,
    role: String,
    public: String,
    expires: Option<UnixMillis>,
    file: String,
    /// The key that signs events; only roles that sign events have one.
    audit_key: Option<String>,
}

impl Credential {
    fn issued(role: Role, name: &str, issued: &Issued) -> Self {
        Self {
            name: name.to_owned(),
            role: role.name().to_owned(),
            public: issued.public.to_string(),
            expires: Some(issued.expires),
            file: issued.credentials.display().to_string(),
            audit_key: issued
                .audit_key
                .as_ref()
                .map(|path| path.display().to_string()),
        }
    }

    /// The same credentials, with the paths that the files have once the domain is in its place.
    fn moved(self, from: &Path, to: &Path) -> Self {
        let moved = |path: String| match Path::new(&path).strip_prefix(from) {
            Ok(below) => to.join(below).display().to_string(),
            Err(_) => path,
        };
        Self {
            file: moved(self.file),
            audit_key: self.audit_key.map(moved),
            ..self
        }
    }
}

impl Row for Credential {
    const TITLES: &'static [&'static str] = &["name", "role", "public key", "expires", "file"];

    fn cells(&self) -> Vec<String> {
        let expires = crate::table::or_dash(self.expires, time);
        vec![
            self.name.clone(),
            self.role.clone(),
            self.public.clone(),
            expires,
            self.file.clone(),
        ]
    }
}

impl Record for Credential {
    fn lines(&self) -> Vec<(&'static str, String)> {
        let key = self.audit_key.iter().map(|key| ("audit key", key.clone()));
        Self::TITLES
            .iter()
            .copied()
            .zip(self.cells())
            .chain(key)
            .collect()
    }
}

#[derive(Serialize)]
struct Shown {
    domain: String,
    manifest_keys: Vec<String>,
    coordinator_audit_keys: Vec<String>,
    head_keys: Vec<String>,
    sentry_keys: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    log_manifest: Option<schemas::Digest>,
    credentials: Vec<Credential>,
}

impl Record for Shown {
    fn lines(&self) -> Vec<(&'static str, String)> {
        let mut lines = vec![
            ("trust domain", self.domain.clone()),
            ("manifest keys", self.manifest_keys.join(" ")),
            (
                "coordinator's audit keys",
                self.coordinator_audit_keys.join(" "),
            ),
            ("keys of tree heads", self.head_keys.join(" ")),
            ("keys of security events", self.sentry_keys.join(" ")),
        ];
        let manifest = self.log_manifest.iter();
        lines.extend(manifest.map(|digest| ("log manifest", digest.to_string())));
        let line = |one: &Credential| {
            let until = crate::table::or_dash(one.expires, time);
            format!("{}  {}  {} until {until}", one.public, one.name, one.role)
        };
        lines.extend(
            self.credentials
                .iter()
                .map(|one| ("credentials", line(one))),
        );
        lines
    }
}

#[cfg(test)]
mod tests {
    use tlog::cosign::Witness;

    use super::*;

    #[test]
    fn a_policy_that_asks_for_nobody_or_names_a_log_is_not_signed_by_the_owner() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let file = scratch.path().join("policy");
        let witness = Witness::new("a", [7; 32]).expect("a name").text();
        let read = |lines: &str| {
            let text = format!("witness a {witness}\n{lines}");
            std::fs::write(&file, &text).expect("a file");
            let read = policy(&file).map_err(|failure| failure.code());
            read.map(|read| assert_eq!(read, text))
        };
        assert_eq!(read("quorum a\n"), Ok(()));
        let invalid = Err(Code::ConfigInvalid);
        for lines in ["", "quorum none\n", "quorum b\n"] {
            assert_eq!(read(lines), invalid, "{lines:?}");
        }
        assert_eq!(
            policy(scratch.path())
                .map_err(|failure| failure.code())
                .err(),
            Some(Code::ConfigInvalid)
        );
    }
}
