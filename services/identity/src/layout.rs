//! The paths of a trust domain's files.

use std::path::{Path, PathBuf};

use schemas::PublicKey;
use schemas::permission::Role;

use crate::invitations::InvitationList;
use crate::issued::IssuedList;
use crate::issuer::Issuer;
use crate::retired::KeysOf;
use crate::vault::{Vault, role_key_name};

/// The paths under a domain's folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainLayout {
    folder: PathBuf,
}

impl DomainLayout {
    /// The layout under `folder`; nothing is touched.
    pub fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
        }
    }

    /// The domain's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The trust bundle: the one file that every machine needs.
    pub fn trust(&self) -> PathBuf {
        self.folder.join("trust.json")
    }

    /// The credentials file of a name.
    pub fn credentials(&self, name: &str) -> PathBuf {
        self.credentials_folder().join(format!("{name}.creds"))
    }

    /// The seed file of the key that signs the events of a worker or an auditor.
    pub fn audit_key(&self, name: &str) -> PathBuf {
        self.audit_keys_folder().join(format!("{name}.nk"))
    }

    /// The seed file of the key that signs the coordinator's events.
    pub fn coordinator_audit_key(&self) -> PathBuf {
        self.key("coordinator-audit")
    }

    /// The seed file of the key that will sign the coordinator's events next.
    pub fn next_coordinator_audit_key(&self) -> PathBuf {
        self.key("coordinator-audit-next")
    }

    /// The seed file of the key with which the operator vouches for data sets.
    pub fn data_key(&self) -> PathBuf {
        self.key("data")
    }

    /// The seed file of the key that signs lease manifests.
    pub fn manifest_key(&self) -> PathBuf {
        self.key("manifest")
    }

    /// The seed file of the key that will sign lease manifests next.
    pub fn next_manifest_key(&self) -> PathBuf {
        self.key("manifest-next")
    }

    /// The seed file of the key that signs heads of the log.
    pub fn head_key(&self) -> PathBuf {
        self.key("audit-head")
    }

    /// The seed file of the key that signs security events.
    pub fn sentry_key(&self) -> PathBuf {
        self.key("sentry")
    }

    /// The owner's statement with which the log begins.
    pub fn log_manifest(&self) -> PathBuf {
        self.folder.join("log-manifest.jws")
    }

    /// The certificate of the private authority.
    pub fn ca(&self) -> PathBuf {
        self.folder.join(self.ca_relative())
    }

    /// The keys that everything else comes from; this folder may lie offline.
    pub fn vault(&self) -> Vault {
        Vault::at(&self.folder.join("vault"))
    }

    /// The folder of the signing keys that the registrar needs, see [`Issuer`].
    pub fn issuer(&self) -> PathBuf {
        self.folder.join("issuer")
    }

    /// The certificate of the authority of clients: servers take clients that it has certified. The
    /// domain has mutual TLS if, and only if, this file exists.
    pub fn clients(&self) -> PathBuf {
        self.folder.join("tls/clients.pem")
    }

    /// The private key of the authority of clients.
    pub fn clients_key(&self) -> PathBuf {
        Issuer::clients_key(&self.issuer())
    }

    /// The private key of the next authority of clients, which has signed nothing yet.
    pub fn next_clients_key(&self) -> PathBuf {
        self.clients_key().with_extension("next")
    }

    /// The file of a certificate with which servers are asked if they take the next authority of
    /// clients.
    pub(crate) fn trial(&self) -> PathBuf {
        self.folder.join("tls/trial.pem")
    }

    /// The note on the times of the authorities' last rotation.
    pub(crate) fn rotation(&self) -> PathBuf {
        self.folder.join("tls/rotation.json")
    }

    /// The public list of issued credentials.
    pub fn issued(&self) -> IssuedList {
        IssuedList::at(&self.folder.join("issued"))
    }

    /// The invitations, and what became of them.
    pub fn invitations(&self) -> InvitationList {
        InvitationList::at(&self.folder.join("invitations"))
    }

    /// The folder of the keys of a machine that is not enrolled yet.
    pub fn newcomer(&self) -> PathBuf {
        self.folder.join("newcomer")
    }

    /// The note on what this machine has become with an invitation.
    pub(crate) fn enrolled(&self, invitation: &PublicKey) -> PathBuf {
        self.folder
            .join("enrolled")
            .join(format!("{invitation}.json"))
    }

    /// The certificate of broker and store.
    pub fn server_certificate(&self) -> PathBuf {
        self.folder.join("tls/server.pem")
    }

    /// The private key of broker and store.
    pub fn server_key(&self) -> PathBuf {
        self.folder.join("tls/server.key")
    }

    /// The store's access keys, of all purposes: for the store alone.
    pub fn store_keys(&self) -> PathBuf {
        self.folder.join("store/keys.json")
    }

    /// The coordinator's access keys to the store: those that sign URLs, and the admin's.
    pub fn store_coordinator_keys(&self) -> PathBuf {
        self.folder.join("store/coordinator.json")
    }

    /// The file that a coordinator of this domain reads. Where an earlier release made the domain,
    /// and nothing has added the coordinator's own file yet, it is the store's.
    pub fn coordinators_store_keys(&self) -> PathBuf {
        let own = self.store_coordinator_keys();
        match !own.exists() && self.store_keys().exists() {
            true => self.store_keys(),
            false => own,
        }
    }

    /// The auditor's access key to the store.
    pub fn store_auditor_key(&self) -> PathBuf {
        self.folder.join("store/auditor.json")
    }

    /// The key with which this machine cosigns heads of the log, as a witness.
    pub fn witness_key(&self) -> PathBuf {
        self.folder.join("keys/witness.nk")
    }

    /// The audit service's access key to the log in the store.
    pub fn store_log_key(&self) -> PathBuf {
        self.folder.join("store/log.json")
    }

    /// The broker's configuration: [`DomainLayout::broker_config`] and what it includes.
    pub fn broker_folder(&self) -> PathBuf {
        self.folder.join("broker")
    }

    /// The configuration that a single broker of this domain is started with.
    pub fn broker_config(&self) -> PathBuf {
        self.broker_folder().join("nats.conf")
    }

    /// The parts of the broker's configuration that are made for this domain.
    pub fn broker_generated(&self) -> PathBuf {
        self.broker_folder().join("generated")
    }

    /// The folder of the broker's streams.
    pub fn broker_data(&self) -> PathBuf {
        self.folder.join("nats")
    }

    /// The folder in which a single broker keeps the tokens of accounts.
    pub fn broker_accounts(&self) -> PathBuf {
        self.folder.join("accounts")
    }

    /// The revocations, one file for each key.
    pub fn revoked_folder(&self) -> PathBuf {
        self.folder.join("revoked")
    }

    /// The public halves of a role's earlier signing keys that are still valid.
    pub(crate) fn retiring(&self, role: Role) -> PathBuf {
        self.folder
            .join("retiring")
            .join(format!("{}.json", role.name()))
    }

    /// The note about the keys of a kind that were ended last.
    pub(crate) fn retired(&self, of: KeysOf) -> PathBuf {
        self.folder
            .join("retired")
            .join(format!("{}.json", of.note()))
    }

    /// The note that keys were replaced after a leak, and leases are yet to be ended.
    pub(crate) fn leases_to_end(&self) -> PathBuf {
        self.folder.join("retired").join("leases-to-end.json")
    }

    /// The note that a holder gets another key.
    pub(crate) fn succession(&self, name: &str) -> PathBuf {
        self.folder.join("succession").join(format!("{name}.json"))
    }

    /// The folder of the keys with which workers of this machine want to go on.
    pub(crate) fn heirs(&self) -> PathBuf {
        self.folder.join("heirs")
    }

    /// The file of the mark, which holds the last known position of the ledger.
    pub fn ledger_mark(&self) -> PathBuf {
        self.folder.join("ledger.mark")
    }

    /// The append-only files of the audit service.
    pub fn audit_files(&self) -> PathBuf {
        self.folder.join("audit")
    }

    /// The log that the audit service writes.
    pub fn audit_log(&self) -> PathBuf {
        self.audit_files().join("log")
    }

    /// The newest head of the log that was verified on this machine.
    pub fn pinned_head(&self) -> PathBuf {
        self.folder.join("audit-head.pin")
    }

    /// The lock file; the command that changes the domain holds it.
    pub(crate) fn lock(&self) -> PathBuf {
        self.folder.join("lock")
    }

    /// The folder in which a domain is made before its files are moved into place. It exists until
    /// the whole domain does. So if it exists and there is no trust bundle, the files beside it
    /// come from an unfinished `init`.
    pub(crate) fn staging(&self) -> PathBuf {
        self.folder.join(".init")
    }

    pub(crate) fn key(&self, name: &str) -> PathBuf {
        self.folder.join("keys").join(format!("{name}.nk"))
    }

    pub(crate) fn role_key(&self, role: Role) -> PathBuf {
        if role.is_signed_online() {
            Issuer::key(&self.issuer(), role)
        } else {
            self.vault().key(&role_key_name(role))
        }
    }

    /// The seed file of a role's next key, which nothing is signed with yet.
    pub(crate) fn next_role_key(&self, role: Role) -> PathBuf {
        self.role_key(role).with_extension("next")
    }

    pub(crate) fn credentials_folder(&self) -> PathBuf {
        self.folder.join("credentials")
    }

    pub(crate) fn audit_keys_folder(&self) -> PathBuf {
        self.folder.join("audit-keys")
    }

    /// The path as the trust bundle names it, so that the folder can be moved.
    pub(crate) fn ca_relative(&self) -> PathBuf {
        PathBuf::from("tls/ca.pem")
    }

    /// The private key of the authority as an earlier release placed it.
    pub(crate) fn older_ca_key(&self) -> PathBuf {
        self.folder.join("tls/ca.key")
    }

    /// The parts of a domain, in the order in which they may appear: the trust bundle last.
    pub(crate) fn entries(&self) -> Vec<PathBuf> {
        let names = [
            "vault",
            "issuer",
            "issued",
            "keys",
            "tls",
            "store",
            "credentials",
            "audit-keys",
            "broker",
            "config",
            "log-manifest.jws",
            "trust.json",
        ];
        names.iter().map(|name| self.folder.join(name)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Operators back these paths up, mount them, and name them in unit files, so a path must not
    /// be renamed unnoticed.
    #[test]
    fn every_part_of_a_domain_has_its_place() {
        let layout = DomainLayout::new(Path::new("d"));
        for (path, place) in [
            (layout.server_certificate(), "d/tls/server.pem"),
            (layout.server_key(), "d/tls/server.key"),
            (layout.store_keys(), "d/store/keys.json"),
            (layout.store_coordinator_keys(), "d/store/coordinator.json"),
            (layout.coordinators_store_keys(), "d/store/coordinator.json"),
            (layout.store_auditor_key(), "d/store/auditor.json"),
            (layout.store_log_key(), "d/store/log.json"),
            (layout.broker_folder(), "d/broker"),
            (layout.broker_config(), "d/broker/nats.conf"),
            (layout.broker_generated(), "d/broker/generated"),
            (layout.broker_data(), "d/nats"),
            (layout.broker_accounts(), "d/accounts"),
            (layout.revoked_folder(), "d/revoked"),
            (layout.ledger_mark(), "d/ledger.mark"),
            (layout.audit_files(), "d/audit"),
            (layout.audit_log(), "d/audit/log"),
            (layout.head_key(), "d/keys/audit-head.nk"),
            (layout.sentry_key(), "d/keys/sentry.nk"),
            (layout.log_manifest(), "d/log-manifest.jws"),
            (layout.pinned_head(), "d/audit-head.pin"),
            (layout.lock(), "d/lock"),
            (layout.vault().authority_key(), "d/vault/ca.key"),
            (
                layout.role_key(Role::AuditProvisioner),
                "d/vault/role-audit-provisioner.nk",
            ),
            (layout.role_key(Role::Worker), "d/issuer/role-worker.nk"),
            (layout.issued().folder().to_owned(), "d/issued"),
            (layout.clients(), "d/tls/clients.pem"),
            (layout.clients_key(), "d/issuer/clients.key"),
            (layout.vault().next_authority_key(), "d/vault/ca.next"),
            (layout.next_clients_key(), "d/issuer/clients.next"),
        ] {
            assert_eq!(path, Path::new(place));
        }
    }
}
