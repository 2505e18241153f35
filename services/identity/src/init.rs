//! Makes a trust domain: as a whole or not at all, even if `init` breaks off.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use schemas::account::Account;
use schemas::permission::Role;
use schemas::{AccountId, UnixMillis, V};

use crate::domain::{
    Domain, DomainError, InitOptions, account_id, account_key_name, write_server_certificate,
};
use crate::issuer::AccountNames;
use crate::key::{KeyKind, SigningKey};
use crate::layout::DomainLayout;
use crate::log_manifest;
use crate::mutual::write_client_authority;
use crate::purpose::{AuditKey, HeadKey, ManifestKey};
use crate::secret::{FileError, create_private_folder, write_private};
use crate::store_keys::StoreKeys;
use crate::tls::{Authority, check_server_name};
use crate::trust::TrustBundle;

impl Domain {
    /// Makes a new domain in `folder`, with no credentials and no configuration yet.
    ///
    /// # Errors
    /// As [`Domain::init_with`].
    pub fn init(
        folder: &Path,
        options: &InitOptions,
        now: UnixMillis,
    ) -> Result<Self, DomainError> {
        Self::init_with(folder, options, now, |_| Ok(()))
    }

    /// Makes a new domain in `folder` and lets `fill` put credentials and configuration into it.
    /// Everything that can be checked is checked first. Then all files are made in a folder aside
    /// and moved in, the trust bundle last: without the bundle the folder is no domain. Files that
    /// an unfinished `init` left are removed, since nobody can have used them. The caller holds the
    /// [`crate::DomainLock`] if other commands may run at the same time.
    ///
    /// # Errors
    /// There is a domain, or something in its place; a name cannot be certified; the folder cannot
    /// be written; or the error of `fill`.
    pub fn init_with<E: From<DomainError>>(
        folder: &Path,
        options: &InitOptions,
        now: UnixMillis,
        fill: impl FnOnce(&Self) -> Result<(), E>,
    ) -> Result<Self, E> {
        let layout = DomainLayout::new(folder);
        let staging = layout.staging();
        Self::clear_finished(folder);
        Self::check_init(folder, options)?;
        clear(&layout)?;
        create_private_folder(&staging).map_err(DomainError::from)?;
        let home = fs::canonicalize(folder).map_err(|source| {
            DomainError::from(FileError::Read {
                path: folder.to_owned(),
                source,
            })
        })?;
        let staged = DomainLayout::new(&staging);
        let made = make(&staged, options, now)
            .and_then(|()| Ok(TrustBundle::read(&staged.trust())?))
            .map_err(E::from)
            .and_then(|trust| {
                fill(&Self {
                    layout: staged.clone(),
                    trust,
                    home,
                })
            });
        if let Err(error) = made {
            // The reason matters more than a folder that the next `init` removes.
            let _left = fs::remove_dir_all(&staging);
            return Err(error);
        }
        move_in(&staged, &layout)?;
        Ok(Self::open(folder)?)
    }

    /// Removes the folder in which `init` made the files, if `init` ended before its last step.
    /// That folder has no use beside a whole domain. If there is no domain, nothing is removed. The
    /// caller holds the [`crate::DomainLock`] if other commands may run at the same time.
    pub fn clear_finished(folder: &Path) {
        let layout = DomainLayout::new(folder);
        if layout.trust().exists() {
            let _absent = fs::remove_dir_all(layout.staging());
        }
    }

    /// Checks everything that can be checked before a file is written.
    ///
    /// # Errors
    /// As [`Domain::init_with`].
    pub fn check_init(folder: &Path, options: &InitOptions) -> Result<(), DomainError> {
        options
            .server_names
            .iter()
            .try_for_each(|name| check_server_name(name))?;
        quotable(&resolved(folder)?)?;
        let layout = DomainLayout::new(folder);
        if layout.trust().exists() {
            return Err(DomainError::Exists(folder.to_owned()));
        }
        let stands = |entry: &PathBuf| entry.symlink_metadata().is_ok();
        if stands(&layout.staging()) {
            return Ok(());
        }
        match layout.entries().into_iter().find(stands) {
            Some(entry) => Err(DomainError::Unfinished(entry)),
            None => Ok(()),
        }
    }
}

/// A path as a text that can stand between quotes in the broker's configuration.
pub(crate) fn quotable(path: &Path) -> Result<String, DomainError> {
    let plain =
        |text: &&str| !text.contains(['"', '\\', '$']) && !text.chars().any(char::is_control);
    path.to_str()
        .filter(plain)
        .map(str::to_owned)
        .ok_or_else(|| DomainError::Unquotable(path.to_owned()))
}

/// The path that a folder has or will have, with the links on the way to it followed.
fn resolved(folder: &Path) -> Result<PathBuf, DomainError> {
    let failed = |source| FileError::Read {
        path: folder.to_owned(),
        source,
    };
    let absolute = std::path::absolute(folder).map_err(failed)?;
    for above in absolute.ancestors() {
        if let Ok(known) = fs::canonicalize(above) {
            let rest = absolute
                .strip_prefix(above)
                .expect("an ancestor is a prefix");
            return Ok(if rest == Path::new("") {
                known
            } else {
                known.join(rest)
            });
        }
    }
    Ok(absolute)
}

/// Removes the files that an unfinished `init` left. The folder in which it made them goes last,
/// since it identifies the other files.
fn clear(layout: &DomainLayout) -> Result<(), DomainError> {
    let staging = layout.staging();
    if staging.symlink_metadata().is_err() {
        return Ok(());
    }
    for path in layout.entries().into_iter().chain([staging]) {
        let removed = if path.is_dir() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        match removed {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(FileError::Write { path, source }.into());
            }
            _ => {}
        }
    }
    Ok(())
}

/// Moves a whole domain to its place, the trust bundle last.
fn move_in(staged: &DomainLayout, layout: &DomainLayout) -> Result<(), DomainError> {
    let sync = || fs::File::open(layout.folder()).and_then(|folder| folder.sync_all());
    for (from, to) in staged.entries().iter().zip(layout.entries()) {
        let last = to == layout.trust();
        let moved = if last {
            sync().and_then(|()| fs::rename(from, &to))
        } else {
            fs::rename(from, &to)
        };
        match moved {
            // A domain may have no configuration.
            Err(source) if source.kind() == io::ErrorKind::NotFound && !last => {}
            Err(source) => return Err(FileError::Write { path: to, source }.into()),
            Ok(()) => {}
        }
    }
    let failed = |source| FileError::Write {
        path: layout.folder().to_owned(),
        source,
    };
    sync()
        .and_then(|()| fs::remove_dir_all(staged.folder()))
        .and_then(|()| sync())
        .map_err(failed)?;
    Ok(())
}

/// Writes a whole domain into a folder that nobody reads yet.
fn make(layout: &DomainLayout, options: &InitOptions, now: UnixMillis) -> Result<(), DomainError> {
    let vault = layout.vault();
    let operator = SigningKey::generate(KeyKind::Operator);
    operator.seed().write(&vault.key("operator"))?;
    let account = |name: &str| -> Result<AccountId, DomainError> {
        let key = SigningKey::generate(KeyKind::Account);
        key.seed().write(&vault.key(name))?;
        Ok(account_id(&key))
    };
    SigningKey::generate(KeyKind::Operator)
        .seed()
        .write(&vault.key("operator-signing"))?;
    let mut names = AccountNames {
        v: V,
        domain: operator.public().clone(),
        accounts: BTreeMap::new(),
    };
    for one in Account::ALL {
        let id = account(account_key_name(one))?;
        names.accounts.insert(one.name().to_owned(), id);
    }
    names.write(&layout.issuer())?;
    for role in Role::ALL {
        SigningKey::generate(KeyKind::Account)
            .seed()
            .write(&layout.role_key(role))?;
    }
    let (manifest, audit) = (ManifestKey::generate(), AuditKey::generate());
    let head = HeadKey::generate();
    head.seed().write(&layout.head_key())?;
    let sentry = AuditKey::generate();
    sentry.seed().write(&layout.sentry_key())?;
    manifest.seed().write(&layout.manifest_key())?;
    audit.seed().write(&layout.coordinator_audit_key())?;
    let (authority, certified) = Authority::generate(now)?;
    write_private(&layout.ca(), certified.certificate.as_bytes())?;
    write_private(&vault.authority_key(), certified.key.as_bytes())?;
    write_server_certificate(layout, &authority, &options.server_names, now)?;
    if options.mutual_tls {
        write_client_authority(layout, now)?;
    }
    let keys = StoreKeys::generate();
    keys.write(&layout.store_keys())?;
    keys.of_coordinator()
        .write(&layout.store_coordinator_keys())?;
    let auditors = keys.audit.expect("all pairs are generated");
    auditors.write_auditors(&layout.store_auditor_key())?;
    let log = keys.log.expect("all pairs are generated");
    log.write_log(&layout.store_log_key())?;
    create_private_folder(layout.issued().folder())?;
    create_private_folder(&layout.credentials_folder())?;
    create_private_folder(&layout.audit_keys_folder())?;
    let mut trust = TrustBundle {
        v: V,
        domain: operator.public().clone(),
        tenants: vec![names.account(Account::Tenant).clone()],
        manifest_keys: vec![manifest.public().clone()],
        audit_keys: vec![audit.public().clone()],
        ended_audit_keys: vec![],
        head_keys: vec![head.public().clone()],
        sentry_keys: vec![sentry.public().clone()],
        log_manifest: None,
        ca: layout.ca_relative(),
    };
    let witnesses = options.witnesses.clone();
    let manifest = log_manifest::make(layout, &operator, &trust, witnesses, now)?;
    trust.log_manifest = Some(manifest);
    Ok(trust.write(&layout.trust())?)
}
