//! Where the files of a trust domain lie.

use std::path::{Path, PathBuf};

use schemas::permission::Role;

/// The paths under a domain's folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    folder: PathBuf,
}

impl Layout {
    /// The layout under `folder`; nothing is touched.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
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

    /// The seed file of the key that signs lease manifests.
    pub fn manifest_key(&self) -> PathBuf {
        self.key("manifest")
    }

    /// The certificate of the private authority.
    pub fn ca(&self) -> PathBuf {
        self.folder.join(self.ca_relative())
    }

    /// The authority's private key.
    pub fn ca_key(&self) -> PathBuf {
        self.folder.join("tls/ca.key")
    }

    /// The certificate of broker and store.
    pub fn server_certificate(&self) -> PathBuf {
        self.folder.join("tls/server.pem")
    }

    /// The private key of broker and store.
    pub fn server_key(&self) -> PathBuf {
        self.folder.join("tls/server.key")
    }

    /// The store's access keys.
    pub fn store_keys(&self) -> PathBuf {
        self.folder.join("store/keys.json")
    }

    pub(crate) fn key(&self, name: &str) -> PathBuf {
        self.folder.join("keys").join(format!("{name}.nk"))
    }

    pub(crate) fn role_key(&self, role: Role) -> PathBuf {
        self.key(&format!("role-{}", role.name()))
    }

    pub(crate) fn credentials_folder(&self) -> PathBuf {
        self.folder.join("credentials")
    }

    pub(crate) fn audit_keys_folder(&self) -> PathBuf {
        self.folder.join("audit-keys")
    }

    /// As the trust bundle names it, so that the folder can be moved.
    pub(crate) fn ca_relative(&self) -> PathBuf {
        PathBuf::from("tls/ca.pem")
    }

    /// What a domain consists of, in the order in which it may appear: the trust bundle last.
    pub(crate) fn entries(&self) -> Vec<PathBuf> {
        let names = ["keys", "tls", "store", "credentials", "audit-keys", "trust.json"];
        names.iter().map(|name| self.folder.join(name)).collect()
    }
}
