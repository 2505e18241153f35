//! Credentials of a cluster's processes.

use identity::{ConnectionKey, Issued};
use runtime::clock;
use schemas::permission::Role;
use schemas::{Millis, RunId};

use super::Cluster;

/// Lifetime of credentials; longer than any test.
const LIFETIME: Millis = Millis::from_secs(24 * 3600);

impl Cluster {
    /// Issues credentials, or renews them.
    ///
    /// # Panics
    /// The name is taken for something else.
    pub fn issue(&self, role: Role, name: &str) -> Issued {
        let lifetime = match role {
            Role::Worker
            | Role::Coordinator
            | Role::LedgerWriter
            | Role::Auditor
            | Role::Recorder => self.options.token_lifetime.unwrap_or(LIFETIME),
            _ => LIFETIME,
        };
        self.issue_for(role, name, role.is_tenant().then_some(self.run()), lifetime)
    }

    /// Issues credentials for any run and any time.
    ///
    /// # Panics
    /// The name is taken for something else.
    pub fn issue_for(
        &self,
        role: Role,
        name: &str,
        run: Option<&RunId>,
        lifetime: Millis,
    ) -> Issued {
        let issued = self.domain.issue(role, name, run, lifetime, clock::now());
        issued.unwrap_or_else(|error| panic!("credentials of {} {name}: {error}", role.name()))
    }

    /// Connects with a token that a test made, and its key. The broker may refuse it.
    ///
    /// # Errors
    /// The broker does not take it.
    pub async fn connect_by_hand(
        &self,
        token: &str,
        key: ConnectionKey,
    ) -> Result<async_nats::Client, async_nats::ConnectError> {
        let sign = move |nonce: Vec<u8>| {
            let signed = key.sign_nonce(&nonce).map(|signature| signature.to_vec());
            async move { signed.map_err(async_nats::AuthError::new) }
        };
        async_nats::ConnectOptions::with_jwt(token.to_owned(), sign)
            .require_tls(true)
            .add_root_certificates(self.domain.layout().ca())
            .connect(self.bus_url())
            .await
    }

    /// Starts a worker of another run than the cluster's.
    ///
    /// # Panics
    /// It does not become ready.
    pub async fn start_worker_for(&mut self, name: &str, run: &RunId) {
        self.issue_for(Role::Worker, name, Some(run), LIFETIME);
        let of = format!("worker.run={run}");
        let recipe = self.issued_recipe(name, &[&of]);
        self.launch(recipe).await;
    }

    /// Issues short-lived tokens again, just before they are used for the first time.
    pub(super) fn issue_anew(&self, roles: &[Role]) {
        if self.options.token_lifetime.is_some() {
            for role in roles {
                self.issue(*role, role.name());
            }
        }
    }
}
