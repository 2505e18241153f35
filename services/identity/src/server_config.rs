//! The parts of the broker's configuration that a trust domain makes: its tokens, its TLS, and the
//! place where a single broker keeps the tokens of accounts.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use schemas::account::Account;
use schemas::permission::Role;
use schemas::{AccountId, PublicKey, UnixMillis};

use crate::accounts::{ended_account, service_account, tenant_account};
use crate::claims::OperatorClaims;
use crate::domain::{Domain, DomainError, HEADER};
use crate::init::quotable;
use crate::jwt::{Subject, mint_or_keep};
use crate::secret::write_private;

/// The texts that the broker's configuration includes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerConfig {
    /// `auth.conf`: the operator, the accounts and their permissions.
    pub auth: String,
    /// `tls.conf`: a `tls` block.
    pub tls: String,
    /// `clients.conf`: what a `tls` block asks of clients; empty without mutual TLS.
    pub clients: String,
    /// `resolver.conf`: where a single broker keeps the tokens of accounts.
    pub resolver: String,
    /// The accounts, each with its token.
    pub accounts: Vec<(AccountId, String)>,
}

impl Domain {
    /// The texts that the broker's configuration includes. Their tokens follow from the keys and
    /// from the permission table of this build. A token in `earlier`, the text of `auth.conf` that
    /// these replace, stays as it is if it says the same, so that a broker that reads its
    /// configuration again changes nothing but what has changed.
    ///
    /// # Errors
    /// A key cannot be read, or the folder's path cannot be quoted.
    pub fn server_config(
        &self,
        earlier: &str,
        now: UnixMillis,
    ) -> Result<ServerConfig, DomainError> {
        self.server_config_above(earlier, &BTreeMap::new(), now)
    }

    /// As [`Domain::server_config`], with the tokens of these accounts issued later than the given
    /// times.
    fn server_config_above(
        &self,
        earlier: &str,
        above: &BTreeMap<AccountId, UnixMillis>,
        now: UnixMillis,
    ) -> Result<ServerConfig, DomainError> {
        let vault = self.layout.vault();
        let (operator, signer) = (vault.operator()?, vault.operator_signing()?);
        let (accounts, tenant) = (self.accounts()?, self.tenant()?);
        let mut roles = Vec::new();
        for role in Role::ALL {
            roles.push((role, self.role_key(role)?.public().clone()));
        }
        let key = |role: Role| {
            let found = roles.iter().find(|(known, _)| *known == role);
            found.expect("the list above has every role").1.clone()
        };
        fn subject<'a>(name: &'a str, key: &'a PublicKey) -> Subject<'a> {
            Subject {
                name,
                key,
                not_before: None,
                expires: None,
            }
        }
        let claims = OperatorClaims {
            signing_keys: vec![signer.public().clone()],
            strict_signing_key_usage: true,
            system_account: accounts.system.clone(),
        };
        let operator = mint_or_keep(
            token(earlier, "operator"),
            &subject("diloco", operator.public()),
            claims,
            &operator,
            None,
            now,
        )?;
        let mut preload = String::new();
        let tenants = self.tenants()?;
        let ended = tenants.values().filter(|entry| entry.ended.is_some());
        let last = accounts.tenants.len().saturating_sub(ended.count());
        let own = tenant_account(&tenant, &accounts, last, None, key);
        let mut all = vec![("default", Account::Tenant, &tenant, own)];
        for entry in tenants.values() {
            let claims = match entry.ended {
                None => {
                    let connections = entry.quota.connections;
                    tenant_account(&entry.account, &accounts, last, connections, key)
                }
                Some(_) => ended_account(),
            };
            let name = entry.tenant.as_str();
            all.push((name, Account::Tenant, &entry.account, claims));
        }
        for account in Account::ALL {
            if let Some(id) = accounts.one(account) {
                let claims = service_account(account, &accounts, key);
                all.push((account.name(), account, id, claims));
            }
        }
        let mut tokens = Vec::new();
        for (name, account, id, mut claims) in all {
            if !claims.signing_keys.is_empty() {
                claims.revocations = self.revocations_of(id, now)?;
                self.add_retiring(account, &mut claims)?;
            }
            let public: PublicKey = id
                .as_str()
                .parse()
                .expect("an account's id is a public key");
            let old = token(earlier, id.as_str());
            let (subject, above) = (subject(name, &public), above.get(id).copied());
            let jwt = mint_or_keep(old, &subject, claims, &signer, above, now)?;
            preload.push_str(&format!("  {id}: \"{jwt}\"\n"));
            tokens.push((id.clone(), jwt));
        }
        let auth = format!(
            "{HEADER}operator: \"{operator}\"\nsystem_account: {}\nresolver_preload {{\n{preload}}}\n",
            accounts.system
        );
        Ok(ServerConfig {
            auth,
            tls: self.tls_config()?,
            clients: self.clients_config(),
            resolver: self.resolver_config()?,
            accounts: tokens,
        })
    }

    /// Writes `auth.conf`, `tls.conf`, `clients.conf` and `resolver.conf` into `folder`, for the
    /// owner alone. Tokens in `auth.conf` that say what they should stay as they are. A domain of
    /// an earlier release gets what it lacks first.
    ///
    /// # Errors
    /// As [`Domain::server_config`]; or the folder cannot be written.
    pub fn write_server_config(
        &self,
        folder: &Path,
        now: UnixMillis,
    ) -> Result<ServerConfig, DomainError> {
        self.write_server_config_above(folder, &BTreeMap::new(), now)
    }

    /// As [`Domain::write_server_config`], with the tokens of these accounts issued later than the
    /// given times: a broker may have tokens that are newer than those in `folder`.
    ///
    /// # Errors
    /// As [`Domain::write_server_config`].
    pub fn write_server_config_above(
        &self,
        folder: &Path,
        above: &BTreeMap<AccountId, UnixMillis>,
        now: UnixMillis,
    ) -> Result<ServerConfig, DomainError> {
        self.take_over(now)?;
        let path = folder.join("auth.conf");
        // Without an earlier file, or with one that cannot be read, all tokens are new.
        let earlier = fs::read_to_string(&path).unwrap_or_default();
        let config = self.server_config_above(&earlier, above, now)?;
        write_private(&path, config.auth.as_bytes())?;
        write_private(&folder.join("tls.conf"), config.tls.as_bytes())?;
        write_private(&folder.join("clients.conf"), config.clients.as_bytes())?;
        write_private(&folder.join("resolver.conf"), config.resolver.as_bytes())?;
        Ok(config)
    }

    fn tls_config(&self) -> Result<String, DomainError> {
        let layout = self.absolute()?;
        let quoted = |path: PathBuf| quotable(&path).map(|text| format!("\"{text}\""));
        let (certificate, key) = (
            quoted(layout.server_certificate())?,
            quoted(layout.server_key())?,
        );
        let clients = match self.is_mutual() {
            true => verify_clients(&quoted(layout.clients())?),
            false => format!("  ca_file: {}\n", quoted(layout.ca())?),
        };
        Ok(format!(
            "{HEADER}tls {{\n  cert_file: {certificate}\n  key_file: {key}\n{clients}  min_version: \"1.3\"\n  timeout: 3\n}}\n"
        ))
    }

    /// The same for the nodes of a cluster, which lie on other machines.
    fn clients_config(&self) -> String {
        let settings = match self.is_mutual() {
            true => verify_clients("$NATS_CLIENTS_CA"),
            false => "# Clients show no certificate in this domain.\n".to_owned(),
        };
        format!("{HEADER}{settings}")
    }

    /// A node that was down takes the tokens of the others over once in an interval, and its own
    /// configuration's when it starts, if they are newer. An account is deleted by nobody's
    /// message.
    fn resolver_config(&self) -> Result<String, DomainError> {
        let folder = quotable(&self.absolute()?.broker_accounts())?;
        Ok(format!(
            "{HEADER}resolver {{\n  type: full\n  dir: \"{folder}\"\n  allow_delete: false\n  interval: \"5s\"\n  timeout: \"2s\"\n}}\n"
        ))
    }
}

/// The settings with which a broker takes only clients that the domain has certified.
fn verify_clients(file: &str) -> String {
    format!("  ca_file: {file}\n  verify: true\n")
}

/// The token of this name in the text of an `auth.conf`.
fn token<'a>(config: &'a str, name: &str) -> Option<&'a str> {
    let value = |line: &'a str| {
        let value = line.trim_start().strip_prefix(name)?.strip_prefix(": \"")?;
        value.strip_suffix('"')
    };
    config.lines().find_map(value)
}
