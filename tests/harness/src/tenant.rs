//! A second tenant, made as `diloctl tenant new` makes one; the coordinator does not know it. It
//! also plays the thief of a signing key, who makes credentials for any run.

use std::path::Path;

use identity::claims::UserClaims;
use identity::jwt::{Subject, mint};
use identity::{ConnectionKey, Credentials, Domain, KeyKind, SigningKey};
use runtime::clock;
use schemas::permission::Role;
use schemas::tenant::Quota;
use schemas::{AccountId, Millis, PublicKey, RunId};

/// Lifetime of its credentials; longer than any test.
const LIFETIME: Millis = Millis::from_secs(3600);

/// An account of another tenant.
#[derive(Debug)]
pub struct Tenant {
    account: AccountId,
    workers: SigningKey,
}

impl Tenant {
    /// Makes tenant `second` in the domain, and returns the domain with it.
    ///
    /// # Panics
    /// The domain's keys cannot be read or written.
    pub(crate) fn make(domain: &Domain) -> (Domain, Self) {
        let name = "second".parse().expect("a name");
        let made = domain.make_tenant(&name, Quota::default(), clock::now());
        let (domain, entry) = made.unwrap_or_else(|error| panic!("a second tenant: {error}"));
        let path = identity::Issuer::key(&domain.layout().issuer(), Role::Worker);
        let workers = SigningKey::read(KeyKind::Account, &path)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let account = entry.account;
        (domain, Self { account, workers })
    }

    /// Its account.
    pub const fn account(&self) -> &AccountId {
        &self.account
    }

    /// Writes a worker's credentials for `run`, of any tenant, to `path` and returns its key.
    ///
    /// # Panics
    /// The file cannot be written.
    pub fn issue(&self, name: &str, run: &RunId, path: &Path) -> PublicKey {
        let key = ConnectionKey::generate();
        let now = clock::now();
        let subject = Subject {
            name,
            key: key.public(),
            not_before: None,
            expires: Some(now.after(LIFETIME)),
        };
        let claims = UserClaims::of_role(self.account.clone(), vec![format!("run:{run}")]);
        let token =
            mint(&subject, claims, &self.workers, now).unwrap_or_else(|error| panic!("{error}"));
        let credentials = Credentials::new(token, key).unwrap_or_else(|error| panic!("{error}"));
        credentials
            .write(path)
            .unwrap_or_else(|error| panic!("{error}"));
        credentials.public().clone()
    }
}
