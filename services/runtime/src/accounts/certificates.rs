//! The certificates that clients of the brokers show. A broker takes any certificate of the domain
//! beside any token, so it is compared here whether both belong to the same holder.

use std::collections::{BTreeMap, BTreeSet};

use futures::future::try_join_all;
use identity::clients::key_fingerprint;
use identity::domain::DomainError;
use identity::{Domain, TlsFault};
use schemas::account::Account;
use schemas::text::Shown;
use schemas::{AccountId, PublicKey, UnixMillis};
use serde::Deserialize;

use super::{AccountWriter, CONNECTIONS_LISTED};
use crate::Failure;

/// Most pages of connections of one account that are asked for: more than a broker takes clients.
const PAGES_MAX: usize = 64;

/// A connection as a broker lists it.
#[derive(Debug, Deserialize)]
pub(super) struct Connection {
    cid: u64,
    /// The key of its token.
    #[serde(default)]
    authorized_user: String,
    /// The key that signed its token.
    #[serde(default)]
    pub(super) issuer_key: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    tls_peer_certs: Vec<Shows>,
}

/// A certificate as a broker lists it.
#[derive(Debug, Deserialize)]
struct Shows {
    #[serde(default)]
    subject: String,
    /// The sha256 of its public key.
    #[serde(default)]
    spki_sha256: String,
}

/// The certificates of the clients that are connected now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Clients whose certificate and token are of one holder.
    pub bound: usize,
    /// The others, each with its fault.
    pub strays: Vec<TlsFault>,
    /// The authorities that their certificates name, each with a client that shows such a
    /// certificate. Certificates of earlier releases name none.
    pub authorities: BTreeMap<Option<String>, String>,
    /// The keys of those whose certificate is their own, each with the authorities that the
    /// certificates of its connections name.
    pub holders: BTreeMap<PublicKey, BTreeSet<Option<String>>>,
}

impl Seen {
    /// Takes note of a connection whose certificate is of the holder of its token.
    fn take(&mut self, one: &Connection) {
        if let (Ok(key), Some(shown)) = (one.authorized_user.parse(), one.tls_peer_certs.first()) {
            let named = self.holders.entry(key).or_default();
            named.insert(shown.authority().map(str::to_owned));
        }
    }

    /// The keys of clients all of whose connections show a certificate of this authority.
    pub fn holders_of(&self, authority: &str) -> BTreeSet<PublicKey> {
        let only = |named: &BTreeSet<Option<String>>| {
            named
                .iter()
                .all(|named| named.as_deref() == Some(authority))
        };
        let found = self.holders.iter().filter(|(_, named)| only(named));
        found.map(|(key, _)| key.clone()).collect()
    }
}

/// Looks at the certificates of all clients of the brokers at `url`: each has to be for the key and
/// the role of the token with which its client connected.
///
/// # Errors
/// The broker is away, or the domain's folder cannot be used.
pub async fn certificates(domain: &Domain, url: &str, now: UnixMillis) -> Result<Seen, Failure> {
    let writer = AccountWriter::connect(domain, url, now).await?;
    let mut seen = Seen::default();
    for one in writer.clients(domain).await? {
        if let Some(shown) = one.tls_peer_certs.first() {
            let authority = shown.authority().map(str::to_owned);
            let client = format!("{} ({})", one.name, one.authorized_user);
            let client = Shown(&client).to_string();
            seen.authorities.entry(authority).or_insert(client);
        }
        match one.stray(domain)? {
            None => {
                seen.bound += 1;
                seen.take(&one);
            }
            Some(fault) => seen.strays.push(fault),
        }
    }
    Ok(seen)
}

impl AccountWriter {
    /// All clients of all accounts, at all brokers that answer.
    pub(super) async fn clients(&self, domain: &Domain) -> Result<Vec<Connection>, Failure> {
        let mut accounts: BTreeSet<_> = domain.trust().tenants.iter().cloned().collect();
        for account in Account::ALL {
            accounts.insert(domain.account(account)?);
        }
        let all = try_join_all(accounts.iter().map(|account| self.clients_of(account)));
        Ok(all.await?.into_iter().flatten().collect())
    }

    /// The clients of one account.
    async fn clients_of(&self, account: &AccountId) -> Result<Vec<Connection>, Failure> {
        let subject = format!("$SYS.REQ.ACCOUNT.{account}.CONNZ");
        let mut clients = Vec::new();
        for page in 0..PAGES_MAX {
            let offset = page * CONNECTIONS_LISTED;
            let question = serde_json::json!({
                "auth": true,
                "limit": CONNECTIONS_LISTED,
                "offset": offset,
            });
            let answers = self.ask_all(&subject, question.to_string().into()).await?;
            let mut more = false;
            for data in answers.into_iter().filter_map(|said| said.data) {
                more |= data.total > offset + CONNECTIONS_LISTED;
                clients.extend(data.connections);
            }
            if !more {
                break;
            }
        }
        Ok(clients)
    }
}

impl Connection {
    /// The fault of its certificate; none if it is of the holder of the token.
    fn stray(&self, domain: &Domain) -> Result<Option<TlsFault>, Failure> {
        let user: Option<PublicKey> = self.authorized_user.parse().ok();
        let record = match &user {
            Some(user) => domain
                .layout()
                .issued()
                .find(user)
                .map_err(DomainError::from)?,
            None => None,
        };
        let role = record.map(|record| record.role.name());
        let shown = self.tls_peer_certs.first();
        if let (Some(user), Some(shown)) = (&user, shown)
            && shown.is_of(user, role)
        {
            return Ok(None);
        }
        let subject = shown.map_or("nobody: it shows none", |shown| shown.subject.as_str());
        Ok(Some(TlsFault::other(format!(
            "connection {} ({}) of {} at the broker shows the certificate of {}",
            self.cid,
            Shown(&self.name),
            Shown(&self.authorized_user),
            Shown(subject)
        ))))
    }
}

impl Shows {
    /// The authority that its subject names.
    fn authority(&self) -> Option<&str> {
        let mut parts = self.subject.split([',', '+']);
        parts.find_map(|part| part.strip_prefix("O="))
    }

    /// True if it is for this key and role. Credentials that are made for a moment have no record
    /// of a role.
    fn is_of(&self, user: &PublicKey, role: Option<&str>) -> bool {
        let key = key_fingerprint(user);
        let same = key.is_some_and(|key| key.eq_ignore_ascii_case(&self.spki_sha256));
        let named = |role: &str| {
            let unit = format!("OU={role}");
            self.subject.split([',', '+']).any(|part| part == unit)
        };
        same && role.is_none_or(named)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tl_28_fg_08_who_still_shows_a_certificate_of_another_authority_is_not_done() {
        let shows = |key: &PublicKey, authority: &str| Connection {
            cid: 1,
            authorized_user: key.to_string(),
            issuer_key: String::new(),
            name: String::new(),
            tls_peer_certs: vec![Shows {
                subject: format!("CN={key},OU=worker,O={authority}"),
                spki_sha256: String::new(),
            }],
        };
        let key = || identity::ConnectionKey::generate().public().clone();
        let (new, old, both) = (key(), key(), key());
        let mut seen = Seen::default();
        for (key, authority) in [
            (&new, "b2"),
            (&new, "b2"),
            (&old, "a1"),
            (&both, "b2"),
            (&both, "a1"),
        ] {
            seen.take(&shows(key, authority));
        }
        assert_eq!(seen.holders_of("b2"), [new].into());
        assert_eq!(seen.holders_of("a1"), [old].into());
    }

    #[test]
    fn fg_08_a_certificate_is_of_one_key_and_one_role() {
        let (own, other) = (
            identity::ConnectionKey::generate(),
            identity::ConnectionKey::generate(),
        );
        let shown = Shows {
            subject: format!("CN={},OU=worker,O=3f2a", own.public()),
            spki_sha256: key_fingerprint(own.public()).expect("a key"),
        };
        assert!(shown.is_of(own.public(), Some("worker")));
        assert!(shown.is_of(own.public(), None));
        assert!(!shown.is_of(other.public(), Some("worker")));
        assert!(!shown.is_of(own.public(), Some("coordinator")));
        assert!(!shown.is_of(own.public(), Some("work")));
        assert_eq!(shown.authority(), Some("3f2a"));
        let older = Shows {
            subject: "OU=worker,CN=x".to_owned(),
            spki_sha256: String::new(),
        };
        assert_eq!(older.authority(), None);
    }
}
