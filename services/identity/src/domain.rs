//! A trust domain on disk: every private key of a deployment, the credentials that are issued with
//! them, and the broker's configuration. `diloctl auth` is a thin layer over this file.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use schemas::account::Account;
use schemas::permission::Role;
use schemas::{AccountId, Code, Millis, PublicKey, RunId, Seat, UnixMillis, V};

use crate::accounts::Accounts;
use crate::credentials::{Credentials, CredentialsError};
use crate::invitation::{INVITATION_MAX, INVITATION_MIN};
use crate::invitations::InvitationError;
use crate::issued::{Registration, RegistrationError};
use crate::issuer::{AccountNames, IssuerError, sign};
use crate::jws::JwsError;
use crate::jwt::JwtError;
use crate::key::{KeyError, KeyKind, SigningKey};
use crate::layout::DomainLayout;
use crate::purpose::{AuditKey, ConnectionKey};
use crate::secret::{FileError, read_secret, write_private};
use crate::store_keys::StoreKeysError;
use crate::tenants::TenantFault;
use crate::tls::{Authority, TlsError};
use crate::trust::{TrustBundle, TrustError};

/// Life of a user token by default, for processes that no registrar serves.
pub const LIFETIME_DEFAULT: Millis = Millis::from_secs(30 * 24 * 3600);
/// Life of the tokens that `diloctl up` issues: the registrar renews them.
pub const LIFETIME_RENEWED: Millis = Millis::from_secs(3600);
/// Longest life of a user token: a longer one would outlive every rotation of keys.
pub const LIFETIME_MAX: Millis = Millis::from_secs(366 * 24 * 3600);

/// A complete trust domain.
#[derive(Clone, Debug)]
pub struct Domain {
    pub(crate) layout: DomainLayout,
    pub(crate) trust: TrustBundle,
    /// The folder in which the domain will lie when it is complete. Paths in the domain's own files
    /// are paths in this folder.
    pub(crate) home: PathBuf,
}

/// The options of a new domain.
#[derive(Clone, Debug, Default)]
pub struct InitOptions {
    /// Host names and addresses of broker and store, besides this machine's own.
    pub server_names: Vec<String>,
    /// True if broker and store are to take only clients that show a certificate.
    pub mutual_tls: bool,
    /// The policy of witnesses that the owner signs into the log's manifest (C2SP tlog-policy).
    pub witnesses: Option<String>,
}

/// Issued credentials and their files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// The credentials file.
    pub credentials: PathBuf,
    /// The seed file of the key that signs this process's events, for roles that emit some.
    pub audit_key: Option<PathBuf>,
    /// The public key of the user who connects with the credentials.
    pub public: PublicKey,
    /// The end of their validity.
    pub expires: UnixMillis,
}

/// The holders that credentials are issued to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holders {
    /// Those whose key was not revoked.
    NotRevoked,
    /// Those whose key was revoked as well: it may come back.
    All,
}

/// Reasons why a domain cannot be made, opened or issued from.
#[derive(Debug, thiserror::Error)]
pub enum DomainError {
    /// A domain exists already.
    #[error("{} holds a trust domain; use it, or move it away", .0.display())]
    Exists(PathBuf),
    /// The place holds files that no `init` has left.
    #[error("{} exists but no trust.json beside it, and no `auth init` that broke off has left it; move it away, then run `diloctl auth init` again", .0.display())]
    Unfinished(PathBuf),
    /// There is no domain.
    #[error("{} {}", .0.display(), match .0.exists() { true => "holds no trust domain", false => "does not exist" })]
    Missing(PathBuf),
    /// The name is in use for something else.
    #[error("{} was issued for another role or run; choose another name", .0.display())]
    Taken(PathBuf),
    /// The name is not for holders.
    #[error("the name {0} is that of credentials which commands make for themselves")]
    Reserved(String),
    /// The holder of the name has keys that lie elsewhere.
    #[error(
        "{name} has key {key}, whose credentials and audit key lie on its own machine; `diloctl worker reissue {name}` makes a new token for it; for other keys revoke it first with `diloctl auth revoke {key}`, or choose another name"
    )]
    Elsewhere {
        /// The name.
        name: String,
        /// The key that has it.
        key: PublicKey,
    },
    /// An earlier release made the domain, and this one has not taken it over yet.
    #[error("{} does not exist: an earlier release made the domain; `diloctl up`, or `diloctl auth config`, takes it over", .0.display())]
    Before(PathBuf),
    /// The key of this name may not come back, unless somebody says so.
    #[error(
        "{0} was revoked or blocked; `diloctl auth issue` lets a holder in again that was revoked, a blocked one needs another name"
    )]
    Blocked(String),
    /// The vault lies elsewhere.
    #[error("{} is not here", .0.display())]
    NoVault(PathBuf),
    /// A record of what was issued or revoked.
    #[error("{} is no record of this release: {reason}", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// The fault.
        reason: String,
    },
    /// The token of an account has no room for another revocation.
    #[error("account {0} has {max} revocations, and no room for more; rotate the keys of its roles instead", max = crate::revocation::REVOKED_MAX)]
    Revocations(AccountId),
    /// The trust bundle has no room for another key of events.
    #[error("trust.json names {max} keys for the ledger, and has no room for more", max = crate::trust::KEYS_MAX)]
    EventKeys,
    /// An authority that was replaced is still trusted.
    #[error(
        "the authority {0} is still trusted beside the present one; end it with `diloctl auth rotate authority --retire` first"
    )]
    AuthorityOverlap(String),
    /// No next authority was made.
    #[error(
        "no next authority was prepared: run `diloctl auth rotate authority --prepare` first, and copy tls/ca.pem to every machine"
    )]
    AuthorityUnprepared,
    /// Workers are issued for one run, others for none.
    #[error("a credential of role {} {}", role.name(), if role.is_tenant() { "needs a run" } else { "takes no run" })]
    Run {
        /// The role.
        role: Role,
    },
    /// Another worker of the run has the seat, or counts the group's seats otherwise.
    #[error("{seat} of run {run} cannot be given: {name} has {held}")]
    Seat {
        /// The seat that was asked for.
        seat: Seat,
        /// The run.
        run: RunId,
        /// The name of the worker that is in the way.
        name: String,
        /// The seat of that worker.
        held: Seat,
    },
    /// Too short or too long.
    #[error(
        "an invitation that lives for {0} ms, expected from {INVITATION_MIN} to {INVITATION_MAX}"
    )]
    Life(Millis),
    /// An invitation that has not ended promises the name.
    #[error(
        "the name {0} is promised by an invitation that has not ended; withdraw it with `diloctl worker deny`, or choose another name"
    )]
    Promised(String),
    /// The registrar's answer to a question to be enrolled is about something else.
    #[error("the registrar's answer {0}")]
    Answer(&'static str),
    /// The list of keys of an invitation is empty, too long, or names a key or name twice.
    #[error("the list of keys {0}")]
    List(&'static str),
    /// The invitation, or a record about one.
    #[error(transparent)]
    Invitation(#[from] InvitationError),
    /// Too short or too long.
    #[error("lifetime of {0} ms, expected from 1000 to {LIFETIME_MAX}")]
    Lifetime(Millis),
    /// The folder's path cannot be written into the broker's configuration.
    #[error("{:?} has a character that the broker's configuration cannot quote: a double quote, a backslash, a dollar sign or one that is not printed; use another folder", .0)]
    Unquotable(PathBuf),
    /// The committed part of the broker's configuration is missing.
    #[error("{}: {source}; run this from the repository's root, or name the folder with --nats-config", path.display())]
    Template {
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A file or folder.
    #[error(transparent)]
    File(#[from] FileError),
    /// A key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A token.
    #[error(transparent)]
    Jwt(#[from] JwtError),
    /// A credentials file.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// TLS material.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The trust bundle.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The signed form of the trust bundle.
    #[error("signed trust bundle: {0}")]
    Endorsement(#[from] JwsError),
    /// The issuer's keys.
    #[error(transparent)]
    Issuer(#[from] IssuerError),
    /// The list of issued credentials.
    #[error(transparent)]
    Registration(#[from] RegistrationError),
    /// A tenant.
    #[error(transparent)]
    Tenant(#[from] TenantFault),
    /// The store's keys.
    #[error(transparent)]
    StoreKeys(#[from] StoreKeysError),
}

impl DomainError {
    /// The code of the page that says what to do.
    pub fn code(&self) -> Code {
        match self {
            Self::Exists(_) | Self::Unfinished(_) => Code::DomainExists,
            Self::Missing(_) => Code::DomainMissing,
            Self::Taken(_) | Self::Promised(_) | Self::Elsewhere { .. } => Code::NameTaken,
            Self::Reserved(_) => Code::NameReserved,
            Self::Blocked(_) => Code::HolderBlocked,
            Self::NoVault(_) => Code::VaultMissing,
            Self::Before(_) => Code::ReadersBehind,
            Self::Record { .. } => Code::CredentialMalformed,
            Self::Revocations(_) => Code::RevocationsFull,
            Self::EventKeys => Code::EventKeysFull,
            Self::AuthorityOverlap(_) | Self::AuthorityUnprepared => Code::AuthorityOverlap,
            Self::Seat { .. } => Code::SeatTaken,
            Self::Answer(_) => Code::AnswerForeign,
            Self::Invitation(error) => error.code(),
            Self::Run { .. }
            | Self::List(_)
            | Self::Life(_)
            | Self::Lifetime(_)
            | Self::Unquotable(_)
            | Self::Template { .. } => Code::ConfigInvalid,
            Self::File(error) => error.code(),
            Self::Key(error) => error.code(),
            Self::Jwt(error) => error.code(),
            Self::Credentials(error) => error.code(),
            Self::Tls(error) => error.code(),
            Self::Trust(error) => error.code(),
            Self::Endorsement(error) => error.code(),
            Self::Issuer(error) => error.code(),
            Self::Registration(error) => error.code(),
            Self::StoreKeys(error) => error.code(),
            Self::Tenant(error) => error.code(),
        }
    }
}

schemas::coded!(DomainError);

impl Domain {
    /// Opens a complete domain.
    ///
    /// # Errors
    /// There is none, or its trust bundle cannot be used.
    pub fn open(folder: &Path) -> Result<Self, DomainError> {
        let layout = DomainLayout::new(folder);
        if !layout.trust().exists() {
            return Err(DomainError::Missing(folder.to_owned()));
        }
        let trust = TrustBundle::read(&layout.trust())?;
        Ok(Self {
            layout,
            trust,
            home: folder.to_owned(),
        })
    }

    /// Issues credentials, and an audit key to roles that emit events. Issuing a name again for the
    /// same role and run renews its token and keeps its keys.
    ///
    /// # Errors
    /// The name cannot be used in a subject or is taken, a worker's run is missing or another role
    /// has one, or a file cannot be used.
    pub fn issue(
        &self,
        role: Role,
        name: &str,
        run: Option<&RunId>,
        lifetime: Millis,
        now: UnixMillis,
    ) -> Result<Issued, DomainError> {
        self.issue_to(Holders::NotRevoked, role, name, run, lifetime, now)
    }

    /// Issues like [`Domain::issue`], also if the key in the credentials file was revoked: it may
    /// come back, and is renewed again. Tokens from before the revocation stay void. A key that was
    /// blocked without being revoked stays so, and so does any other key of the name.
    ///
    /// # Errors
    /// As [`Domain::issue`]; then the key stays revoked.
    pub fn readmit(
        &self,
        role: Role,
        name: &str,
        run: Option<&RunId>,
        lifetime: Millis,
        now: UnixMillis,
    ) -> Result<Issued, DomainError> {
        self.issue_to(Holders::All, role, name, run, lifetime, now)
    }

    fn issue_to(
        &self,
        holders: Holders,
        role: Role,
        name: &str,
        run: Option<&RunId>,
        lifetime: Millis,
        now: UnixMillis,
    ) -> Result<Issued, DomainError> {
        crate::revocation::check_name(name)?;
        if role.is_tenant() != run.is_some() {
            return Err(DomainError::Run { role });
        }
        if lifetime < Millis::from_secs(1) || lifetime > LIFETIME_MAX {
            return Err(DomainError::Lifetime(lifetime));
        }
        let account = self.account_for(role, run)?;
        let signer = self.role_key(role)?;
        let tags: Vec<String> = run.map(|run| format!("run:{run}")).into_iter().collect();
        let list = self.layout.issued();
        let path = self.layout.credentials(name);
        let key = match path.exists() {
            false => {
                self.check_free(name)?;
                ConnectionKey::generate()
            }
            true => {
                let old = Credentials::read(&path)?;
                // The role's key may have been replaced since.
                let same = match list.find(old.public())? {
                    Some(known) => known.role == role && known.run.as_ref() == run,
                    None => {
                        old.token().issuer == *signer.public() && old.token().claims.tags == tags
                    }
                };
                if !same {
                    return Err(DomainError::Taken(path));
                }
                old.key().clone()
            }
        };
        let lifetime = self.life_of(role, lifetime);
        let issued = self.issue_time(&account, key.public(), now)?;
        // Tokens count whole seconds. One that is dated ahead lives as long as another.
        let expires = UnixMillis((issued.after(lifetime).get() / 1000) * 1000);
        let known = list.find(key.public())?;
        let seat = known.as_ref().and_then(|known| known.seat.clone());
        let before = known.as_ref().and_then(|known| known.before.clone());
        if let Some(known) = known.filter(|known| known.blocked.is_some()) {
            let revoked = self.revocation(&known.account, &known.public)?;
            if holders == Holders::NotRevoked || revoked.is_none() {
                return Err(DomainError::Blocked(known.name));
            }
        }
        // The audit key is made first: credentials without it would look complete.
        let audit_file = self.audit_key(role, name)?;
        let audit_key = self.known_audit_key(role, name)?;
        let holder = Registration {
            v: V,
            name: name.to_owned(),
            role,
            run: run.cloned(),
            account,
            public: key.public().clone(),
            issued,
            ends: expires,
            blocked: None,
            audit_key,
            seat,
            before,
            changes_until: None,
        };
        let credentials = Credentials::new(sign(&signer, &holder, expires, issued)?, key)?;
        // Then the record: credentials without one would not be renewed, and could not be revoked
        // by name. With it a revoked key may come back, so nothing is checked after it.
        list.record(&holder)?;
        self.certify(&credentials, &path, role, expires, now)?;
        credentials.write(&path)?;
        Ok(Issued {
            credentials: path,
            audit_key: audit_file,
            public: credentials.public().clone(),
            expires,
        })
    }

    /// Makes a new certificate for broker and store; the old one ends after
    /// [`crate::tls::LEAF_DAYS`].
    ///
    /// # Errors
    /// The authority's key cannot be read, a name cannot be certified, or a file cannot be written.
    pub fn renew_server_certificate(
        &self,
        names: &[String],
        now: UnixMillis,
    ) -> Result<(), DomainError> {
        let authority = Authority::from_key(&read_secret(&self.authority_key()?)?, now)?;
        write_server_certificate(&self.layout, &authority, names, now)
    }

    /// True if the keys are on this machine with which the broker's configuration is written.
    pub fn has_vault(&self) -> bool {
        self.layout.vault().is_here() || self.is_older()
    }

    /// The public keys against which everything is checked.
    pub fn trust(&self) -> &TrustBundle {
        &self.trust
    }

    /// The paths of its files.
    pub fn layout(&self) -> &DomainLayout {
        &self.layout
    }

    /// The control account.
    ///
    /// # Errors
    /// The names of the accounts cannot be read.
    pub fn control(&self) -> Result<AccountId, DomainError> {
        self.account(Account::Control)
    }

    /// Every account; the tenants are those that the trust bundle names.
    ///
    /// # Errors
    /// As [`Domain::control`].
    pub fn accounts(&self) -> Result<Accounts, DomainError> {
        let names = self.names()?;
        let account = |account| names.account(account).clone();
        Ok(Accounts {
            control: account(Account::Control),
            ledger: account(Account::Ledger),
            events: account(Account::Events),
            audit: account(Account::Audit),
            readers: account(Account::Readers),
            registrar: account(Account::Registrar),
            enrolment: account(Account::Enrolment),
            tenants: self.trust.tenants.clone(),
            system: account(Account::System),
        })
    }

    /// An account of this kind; for tenants the domain's own.
    ///
    /// # Errors
    /// As [`Domain::control`].
    pub fn account(&self, account: Account) -> Result<AccountId, DomainError> {
        Ok(self.names()?.account(account).clone())
    }

    /// The names of the accounts.
    fn names(&self) -> Result<AccountNames, DomainError> {
        let folder = self.layout.issuer();
        self.check_place(&AccountNames::file(&folder))?;
        Ok(AccountNames::read(&folder)?)
    }

    /// The signing key of a role: in the issuer's folder if [`Role::is_signed_online`], otherwise
    /// in the vault.
    pub(crate) fn role_key(&self, role: Role) -> Result<SigningKey, DomainError> {
        let path = self.layout.role_key(role);
        self.check_place(&path)?;
        if !role.is_signed_online() {
            return self.layout.vault().role(role);
        }
        SigningKey::read(KeyKind::Account, &path)
            .map_err(|source| IssuerError::Key { role, source }.into())
    }

    /// The file of the authority's private key.
    pub(crate) fn authority_key(&self) -> Result<PathBuf, DomainError> {
        let vault = self.layout.vault();
        self.check_place(&vault.authority_key())?;
        vault.check()?;
        Ok(vault.authority_key())
    }

    /// Tells the domain of an earlier release, whose keys lie elsewhere, from one that lacks a
    /// file.
    fn check_place(&self, path: &Path) -> Result<(), DomainError> {
        match !path.exists() && self.is_older() {
            true => Err(DomainError::Before(path.to_owned())),
            false => Ok(()),
        }
    }

    /// The audit key of a process: coordinators share the one that the trust bundle names.
    fn audit_key(&self, role: Role, name: &str) -> Result<Option<PathBuf>, DomainError> {
        match role {
            Role::Coordinator => return Ok(Some(self.layout.coordinator_audit_key())),
            Role::LedgerWriter
            | Role::Operator
            | Role::Recorder
            | Role::Registrar
            | Role::Provisioner
            | Role::LedgerProvisioner
            | Role::EventsProvisioner
            | Role::AuditProvisioner
            | Role::AccountWriter
            | Role::Newcomer => return Ok(None),
            Role::Worker | Role::Auditor => {}
        }
        let path = self.layout.audit_key(name);
        if path.exists() {
            AuditKey::read(&path)?;
        } else {
            AuditKey::generate().seed().write(&path)?;
        }
        Ok(Some(path))
    }

    /// The public half of a process's own audit key, if it has one and it lies here. The
    /// coordinator's stands in the trust bundle.
    pub(crate) fn known_audit_key(
        &self,
        role: Role,
        name: &str,
    ) -> Result<Option<PublicKey>, DomainError> {
        let path = self.layout.audit_key(name);
        match role {
            Role::Worker | Role::Auditor if path.exists() => {
                Ok(Some(AuditKey::read(&path)?.public().clone()))
            }
            _ => Ok(None),
        }
    }

    /// The domain's paths as its configuration names them. They are absolute, since the broker
    /// reads relative paths from whatever folder it is started in.
    pub(crate) fn absolute(&self) -> Result<DomainLayout, DomainError> {
        let failed = |source| FileError::Read {
            path: self.home.clone(),
            source,
        };
        Ok(DomainLayout::new(
            &fs::canonicalize(&self.home).map_err(failed)?,
        ))
    }
}

/// The file, without its ending, of an account's key.
pub(crate) const fn account_key_name(account: Account) -> &'static str {
    match account {
        Account::Control => "account-control",
        Account::Ledger => "account-ledger",
        Account::Events => "account-events",
        Account::Audit => "account-audit",
        Account::Readers => "account-readers",
        Account::Registrar => "account-registrar",
        Account::Enrolment => "account-enrolment",
        Account::Tenant => "account-default",
        Account::System => "account-system",
    }
}

pub(crate) const HEADER: &str = "# Written by `diloctl auth`; changes are lost.\n";

/// The account that a key is the identity of.
pub(crate) fn account_id(key: &SigningKey) -> AccountId {
    key.public()
        .as_str()
        .parse()
        .expect("a key of kind account is an account's id")
}

/// Makes the certificate of broker and store, and its key.
pub(crate) fn write_server_certificate(
    layout: &DomainLayout,
    authority: &Authority,
    names: &[String],
    now: UnixMillis,
) -> Result<(), DomainError> {
    let certified = authority.certify(names, now)?;
    write_private(&layout.server_key(), certified.key.as_bytes())?;
    Ok(write_private(
        &layout.server_certificate(),
        certified.certificate.as_bytes(),
    )?)
}
