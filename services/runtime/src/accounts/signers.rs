//! The keys that have signed the tokens of the clients that are connected. A signing key has ended
//! once no client is connected with its tokens.

use std::collections::BTreeMap;

use identity::Domain;
use schemas::{Code, PublicKey};
use tokio::time::{Instant, sleep};

use super::{AccountWriter, CUT_MAX, LOOK_EVERY};
use crate::Failure;

/// Connections by the key that signed their token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Signers(BTreeMap<String, usize>);

impl Signers {
    /// Counts clients; each has named the key that signed its token.
    fn count(keys: impl Iterator<Item = String>) -> Self {
        let mut counts = BTreeMap::new();
        for key in keys {
            *counts.entry(key).or_default() += 1;
        }
        Self(counts)
    }

    /// Connections with tokens of these keys.
    pub(super) fn of(&self, keys: &[PublicKey]) -> usize {
        let counts = keys.iter().filter_map(|key| self.0.get(key.as_str()));
        counts.sum()
    }
}

impl AccountWriter {
    /// The clients of all accounts, at all brokers that answer.
    pub(super) async fn signers(&self, domain: &Domain) -> Result<Signers, Failure> {
        let clients = self.clients(domain).await?;
        Ok(Signers::count(
            clients.into_iter().map(|client| client.issuer_key),
        ))
    }

    /// Waits until no broker that answers has a client with a token of these keys.
    pub(super) async fn until_none_of(
        &self,
        domain: &Domain,
        keys: &[PublicKey],
    ) -> Result<(), Failure> {
        let deadline = Instant::now() + CUT_MAX;
        loop {
            let left = self.signers(domain).await?.of(keys);
            if left == 0 {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let text =
                    format!("{left} connections with tokens of keys that ended are still served");
                return Err(Failure::new(Code::AccountNotTaken, text));
            }
            sleep(LOOK_EVERY).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use identity::{KeyKind, SigningKey};

    use super::*;

    #[test]
    fn tl_30_connections_are_counted_by_the_key_that_signed_their_token() {
        let keys = [(); 3].map(|()| SigningKey::generate(KeyKind::Account).public().clone());
        let named = [&keys[0], &keys[1], &keys[0]].map(|key| key.to_string());
        let counted = Signers::count(named.into_iter());
        assert_eq!(counted.of(&keys[..1]), 2);
        assert_eq!(counted.of(&keys[1..2]), 1);
        assert_eq!(counted.of(&keys[2..]), 0);
        assert_eq!(counted.of(&keys), 3);
        assert_eq!(counted.of(&[]), 0);
    }
}
