//! A second tenant: an account of its own beside the domain's, with the same imports and exports.
//! `identity::Domain` makes one tenant only; tests of the walls between tenants need two.

use std::path::Path;

use identity::accounts::tenant_account;
use identity::claims::UserClaims;
use identity::jwt::{Subject, mint};
use identity::{ConnectionKey, Credentials, Domain, KeyKind, SigningKey};
use runtime::clock;
use schemas::{AccountId, Millis, PublicKey, RunId};

/// Lifetime of its credentials; longer than any test.
const LIFETIME: Millis = Millis::from_secs(3600);

/// An account of another tenant.
#[derive(Debug)]
pub struct Tenant {
    account: AccountId,
    workers: SigningKey,
    token: String,
}

impl Tenant {
    /// A new account, signed by `domain`'s operator.
    ///
    /// # Panics
    /// The domain's keys cannot be read.
    pub fn new(domain: &Domain) -> Self {
        let key = SigningKey::generate(KeyKind::Account);
        let workers = SigningKey::generate(KeyKind::Account);
        let account: AccountId = key
            .public()
            .as_str()
            .parse()
            .expect("a key of kind account is an account's id");
        let accounts = domain
            .accounts()
            .unwrap_or_else(|error| panic!("the domain's accounts: {error}"));
        let path = domain.layout().folder().join("vault/operator-signing.nk");
        let signer =
            SigningKey::read(KeyKind::Operator, &path).unwrap_or_else(|error| panic!("{error}"));
        let claims = tenant_account(&account, &accounts, |_| workers.public().clone());
        let subject = Subject {
            name: "second",
            key: key.public(),
            not_before: None,
            expires: None,
        };
        let token =
            mint(&subject, claims, &signer, clock::now()).unwrap_or_else(|error| panic!("{error}"));
        Self {
            account,
            workers,
            token,
        }
    }

    /// Names the account in the domain's trust bundle, so that its workers' events have a stream.
    pub(crate) fn enter(&self, domain: &Domain) -> Domain {
        let mut trust = domain.trust().clone();
        trust.tenants.push(self.account.clone());
        let layout = domain.layout();
        trust
            .write(&layout.trust())
            .unwrap_or_else(|error| panic!("{}: {error}", layout.trust().display()));
        Domain::open(layout.folder())
            .unwrap_or_else(|error| panic!("{}: {error}", layout.folder().display()))
    }

    /// Its account.
    pub const fn account(&self) -> &AccountId {
        &self.account
    }

    /// Writes a worker's credentials for `run` to `path` and returns its key.
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

    /// Adds the account to the broker's configuration.
    pub(crate) fn preload(&self, auth: &Path) {
        let text = std::fs::read_to_string(auth)
            .unwrap_or_else(|error| panic!("{}: {error}", auth.display()));
        let end = text
            .rfind('}')
            .unwrap_or_else(|| panic!("{} preloads nothing", auth.display()));
        let text = format!(
            "{}  {}: \"{}\"\n{}",
            &text[..end],
            self.account,
            self.token,
            &text[end..]
        );
        crate::broker::write(auth, &text);
    }
}
