//! Replaces the tokens of accounts at the brokers that run, and so brings revocations into effect.
//! Nothing counts as done before the broker has shown the new token, and that it serves no revoked
//! key.
//!
//! The broker takes any token of an account that it is given, also an older one. So the right to
//! give it one belongs to credentials that a command makes for itself and that end within minutes,
//! and a token that replaces another is always issued later.

mod certificates;
mod said;
mod signers;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use futures::future::try_join_all;
use futures::{StreamExt as _, TryStreamExt as _};
use identity::claims::AccountClaims;
use identity::retired::KeysOf;
use identity::rotation::{NewKey, Resigned};
use identity::{Domain, DomainLock, Momentary, Revocation, jwt};
use schemas::hold::Reason;
use schemas::permission::Role;
use schemas::{AccountId, Code, PublicKey, UnixMillis};
use tokio::time::{Instant, sleep, timeout};

pub use certificates::{Seen, certificates};

use self::said::{Fault, Said, counted, silent};
use self::signers::Signers;
use crate::{Bus, BusConfig, BusError, Failure, clock};

/// Longest wait for the first answer to a question.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Silence after which no other broker of a cluster is expected to answer.
const QUIET: Duration = Duration::from_millis(250);
/// Longest wait until a broker has cut the connections of a revoked key.
const CUT_MAX: Duration = Duration::from_secs(5);
/// Pause between two looks at the connections of a revoked key.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Pause between two looks for the first connection of a key.
const ARRIVAL_EVERY: Duration = Duration::from_secs(1);
/// Keys whose connections are looked for at the same time.
const LOOKS_MAX: usize = 64;
/// Connections that a broker lists of one key; each entry holds its token.
const CONNECTIONS_LISTED: usize = 256;
/// Subject under which brokers take a new token.
const UPDATE: &str = "$SYS.REQ.CLAIMS.UPDATE";

/// The outcome of a push.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// The names of the brokers that have confirmed.
    pub brokers: BTreeSet<String>,
    /// Accounts whose token the brokers did not have before.
    pub changed: Vec<AccountId>,
}

/// A revoked key, once the broker has shown that it refuses it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revoked {
    /// The revocation as it is kept.
    pub revocation: Revocation,
    /// Connections of the key that there were before, at all brokers; at least so many if it is
    /// [`Revoked::counted_to`].
    pub connections: usize,
}

impl Revoked {
    /// The number to which a broker counts connections of one key.
    pub const fn counted_to() -> usize {
        CONNECTIONS_LISTED
    }
}

/// Brings the tokens of all accounts that follow from the domain's keys, permissions and
/// revocations into effect at the broker at `url`, and writes them into the broker's configuration.
/// Waits until no connection of a revoked key is left, except of keys that were issued anew.
///
/// # Errors
/// [`Code::AccountsBehind`], [`Code::AccountNotTaken`]; the broker is away, or the domain's folder
/// cannot be used.
pub async fn push(
    domain: &Domain,
    lock: &DomainLock,
    url: &str,
    now: UnixMillis,
) -> Result<Pushed, Failure> {
    domain.write_server_config(&domain.layout().broker_generated(), now)?;
    let writer = AccountWriter::connect(domain, url, now).await?;
    let pushed = writer.push(domain, lock, now).await?;
    let mut void = Vec::new();
    for one in domain.revocations()? {
        let record = domain.layout().issued().find(&one.key);
        let record = record.map_err(identity::domain::DomainError::from)?;
        if now < one.ends && record.is_none_or(|record| record.blocked.is_some()) {
            void.push(one);
        }
    }
    let cut = futures::stream::iter(&void).map(|one| writer.until_cut(one, &pushed.brokers));
    cut.buffer_unordered(LOOKS_MAX).try_collect::<()>().await?;
    for one in domain.revocations()?.iter().filter(|one| one.pending) {
        domain.confirm(one)?;
    }
    Ok(pushed)
}

/// Revokes keys: keeps the revocations, brings them into effect at the broker at `url`, and waits
/// until no connection of the keys is left. A key that was revoked before stays so.
///
/// # Errors
/// [`Code::RevocationKept`] if the revocations are kept, and the broker has not confirmed them. Any
/// other error says that not all of them are kept.
pub async fn revoke(
    domain: &Domain,
    lock: &DomainLock,
    url: &str,
    keys: &[(AccountId, PublicKey)],
    reason: Option<&Reason>,
    now: UnixMillis,
) -> Result<Vec<Revoked>, Failure> {
    let kept = keep(domain, lock, keys, reason, now)?;
    enforce(domain, lock, url, kept, now).await
}

/// Keeps revocations of keys in the domain's folder, without a word to anybody: no token of the
/// keys is renewed from then on. [`enforce`] brings them into effect.
///
/// # Errors
/// Not all of them are kept.
pub fn keep(
    domain: &Domain,
    _lock: &DomainLock,
    keys: &[(AccountId, PublicKey)],
    reason: Option<&Reason>,
    now: UnixMillis,
) -> Result<Vec<Revocation>, Failure> {
    let kept = keys
        .iter()
        .map(|(account, key)| domain.revoke(account, key, reason, now));
    Ok(kept.collect::<Result<_, _>>()?)
}

/// Brings revocations that are kept into effect at the broker at `url`, and waits until no
/// connection of the keys is left.
///
/// # Errors
/// [`Code::RevocationKept`]: the broker has not confirmed them.
pub async fn enforce(
    domain: &Domain,
    lock: &DomainLock,
    url: &str,
    kept: Vec<Revocation>,
    now: UnixMillis,
) -> Result<Vec<Revoked>, Failure> {
    // From here on a broker that is started refuses the keys.
    let written = domain.write_server_config(&domain.layout().broker_generated(), now);
    let in_effect = async {
        written?;
        let writer = AccountWriter::connect(domain, url, now).await?;
        writer.bring_into_effect(domain, lock, kept, now).await
    };
    in_effect.await.map_err(|failure: Failure| {
        let folder = domain.layout().revoked_folder();
        let text = format!("kept in {}: {failure}", folder.display());
        Failure::new(Code::RevocationKept, text)
    })
}

/// Waits until a broker has a connection of this key, at most until `deadline`. Returns false if
/// none has.
///
/// # Errors
/// The broker at `url` is away, or does not answer to credentials of this domain.
pub async fn until_connected(
    domain: &Domain,
    url: &str,
    account: &AccountId,
    key: &PublicKey,
    deadline: Instant,
) -> Result<bool, Failure> {
    // The credentials of one connection end within minutes, so each look has its own.
    loop {
        let writer = AccountWriter::connect(domain, url, clock::now()).await?;
        if counted(&writer.look(account, key).await?) > 0 {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        sleep(ARRIVAL_EVERY).await;
    }
}

/// A rotated role. The broker knew its new key before anything was signed with it.
#[derive(Debug)]
pub struct RotatedRole {
    /// The role.
    pub role: Role,
    /// The keys.
    pub keys: NewKey,
    /// Earlier keys that stay valid; none if they end at once.
    pub standing: Vec<PublicKey>,
    /// Earlier keys that end; none if the overlap stays.
    pub gone: Vec<PublicKey>,
    /// Connections with tokens of those that there were before, at all brokers.
    pub cut: usize,
    /// Its holders.
    pub resigned: Resigned,
}

/// The outcome of a rotation.
#[derive(Debug)]
pub struct Rotated {
    /// The roles that have a new key, in the order in which they were named.
    pub roles: Vec<RotatedRole>,
    /// The reason why a role, and all that were named after it, was not rotated.
    pub broken: Option<Failure>,
    /// An error if no broker has confirmed what was done.
    pub in_effect: Result<Pushed, Failure>,
}

/// Gives roles new signing keys: brings the keys into effect at the broker at `url`, then signs
/// with them, and ends the earlier keys if that is to be `at_once`: then it waits until nobody is
/// connected with a token of theirs.
///
/// # Errors
/// The vault or the broker is away, or the broker does not take tokens: then nothing is signed with
/// a new key, and no key ends. Or the domain's folder cannot be used.
pub async fn rotate(
    domain: &Domain,
    lock: &DomainLock,
    url: &str,
    roles: &[Role],
    at_once: bool,
    now: UnixMillis,
) -> Result<Rotated, Failure> {
    domain.layout().vault().check()?;
    // A domain of an earlier release gets the key of the writer by this.
    domain.write_server_config(&domain.layout().broker_generated(), now)?;
    // Nothing is made where no broker takes it.
    let before = async {
        let writer = AccountWriter::connect(domain, url, now).await?;
        match at_once {
            true => writer.signers(domain).await,
            false => Ok(Signers::default()),
        }
    };
    let before = before.await.map_err(|failure: Failure| {
        failure.with_more(
            "no key was made: the broker must know a new signing key before anything is signed with it",
        )
    })?;
    for role in roles {
        domain.make_role_key(*role)?;
    }
    push(domain, lock, url, now).await?;
    let (mut rotated, mut broken) = (Vec::new(), None);
    for role in roles {
        match adopt(domain, *role, at_once, now) {
            Ok(one) => rotated.push(RotatedRole {
                cut: before.of(&one.gone),
                ..one
            }),
            Err(failure) => {
                let text = format!(
                    "the rotation of role {} broke off, so its earlier keys and those of the roles after it may still be \
                     valid: repeat the command",
                    role.name()
                );
                broken = Some(failure.with_more(text));
                break;
            }
        }
    }
    // This writes the broker's configuration also where no broker answers any more.
    let in_effect = async {
        let pushed = push(domain, lock, url, now).await?;
        let gone: Vec<PublicKey> = rotated.iter().flat_map(|one| one.gone.clone()).collect();
        if !gone.is_empty() {
            let writer = AccountWriter::connect(domain, url, clock::now()).await?;
            writer.until_none_of(domain, &gone).await?;
        }
        Ok::<_, Failure>(pushed)
    };
    let in_effect = in_effect.await;
    Ok(Rotated {
        roles: rotated,
        broken,
        in_effect,
    })
}

/// Signs with a role's next key from here on.
fn adopt(
    domain: &Domain,
    role: Role,
    at_once: bool,
    now: UnixMillis,
) -> Result<RotatedRole, Failure> {
    let keys = domain.adopt_role_key(role)?;
    let resigned = domain.resign_holders(role, now)?;
    let (standing, gone) = match at_once {
        true => (Vec::new(), domain.retire(role)?),
        false => (domain.retiring(role)?, Vec::new()),
    };
    if let Err(error) = domain.note_retired(KeysOf::Role(role), &gone, now) {
        // The note is for people: it decides nothing.
        tracing::warn!(%error, role = role.name(), "the time of a retirement is not noted");
    }
    Ok(RotatedRole {
        role,
        keys,
        standing,
        gone,
        cut: 0,
        resigned,
    })
}

/// A connection with the right to replace accounts' tokens.
struct AccountWriter {
    bus: Bus,
    url: String,
    // Kept for reconnects.
    _credentials: Momentary,
}

impl AccountWriter {
    async fn connect(domain: &Domain, url: &str, now: UnixMillis) -> Result<Self, Failure> {
        let credentials = domain.account_writer(now)?;
        let config = BusConfig {
            url: url.to_owned(),
            credentials: credentials.credentials(),
            ca: domain.layout().ca(),
        };
        let bus = match Bus::connect("diloctl-accounts", &config, now).await {
            Ok(bus) => bus,
            Err(error) if error.code() == Code::BusRefused => {
                return Err(Failure::new(Code::AccountsBehind, error));
            }
            Err(error) => return Err(error.into()),
        };
        Ok(Self {
            bus,
            url: url.to_owned(),
            _credentials: credentials,
        })
    }

    async fn bring_into_effect(
        &self,
        domain: &Domain,
        lock: &DomainLock,
        kept: Vec<Revocation>,
        now: UnixMillis,
    ) -> Result<Vec<Revoked>, Failure> {
        let before = try_join_all(kept.iter().map(|one| self.connections(one))).await?;
        let pushed = self.push(domain, lock, now).await?;
        // A new token of this connection's own account may have cut it.
        let again = match pushed.changed.contains(&domain.accounts()?.system) {
            true => Some(Self::connect(domain, &self.url, now).await?),
            false => None,
        };
        let looks = again.as_ref().unwrap_or(self);
        try_join_all(kept.iter().map(|one| looks.until_cut(one, &pushed.brokers))).await?;
        let revoked = kept.iter().zip(before).map(|(kept, connections)| {
            Ok::<_, Failure>(Revoked {
                revocation: domain.confirm(kept)?,
                connections,
            })
        });
        revoked.collect()
    }

    /// Gives the brokers the tokens of all accounts. A token that a broker has already in its
    /// folder may not be in effect yet, if the broker has only read its configuration again since.
    async fn push(
        &self,
        domain: &Domain,
        _lock: &DomainLock,
        now: UnixMillis,
    ) -> Result<Pushed, Failure> {
        let generated = domain.layout().broker_generated();
        let mut config = domain.write_server_config(&generated, now)?;
        let mut standing = BTreeMap::new();
        let mut above = BTreeMap::new();
        for (account, token) in &config.accounts {
            let stands = self.lookup(account).await?;
            let other = stands.as_ref().filter(|stands| *stands != token);
            if let Some(at) = other.and_then(|other| issued(other, now))
                && issued(token, now).is_none_or(|own| own <= at)
            {
                above.insert(account.clone(), at);
            }
            standing.insert(account.clone(), stands);
        }
        if !above.is_empty() {
            config = domain.write_server_config_above(&generated, &above, now)?;
        }
        let system = domain.accounts()?.system;
        let mut pushed = Pushed {
            brokers: BTreeSet::new(),
            changed: Vec::new(),
        };
        // The token of this connection's own account comes last, since it may cut the connection.
        let (own, others): (Vec<_>, Vec<_>) = config
            .accounts
            .into_iter()
            .partition(|(account, _)| *account == system);
        let updates = others.iter().map(|(account, token)| async move {
            let brokers = self.update(token).await?;
            self.shows(account, token).await?;
            Ok::<_, Failure>(brokers)
        });
        for brokers in try_join_all(updates).await? {
            pushed.brokers.extend(brokers);
        }
        let lacked = others.into_iter().filter(|(account, token)| {
            let stood = standing.get(account);
            stood.is_none_or(|stood| stood.as_ref() != Some(token))
        });
        pushed.changed.extend(lacked.map(|(account, _)| account));
        for (account, token) in own {
            if standing.get(&account).cloned().flatten().as_ref() != Some(&token) {
                self.bus.publish(UPDATE, token.clone().into()).await?;
                self.bus.round_trip().await?;
                let again = Self::connect(domain, &self.url, now).await?;
                again.shows(&account, &token).await?;
                pushed.changed.push(account);
            }
        }
        Ok(pushed)
    }

    /// Gives all brokers a token, and returns the names of those that have taken it.
    async fn update(&self, token: &str) -> Result<BTreeSet<String>, Failure> {
        let answers = self.ask_all(UPDATE, token.to_owned().into()).await?;
        let mut brokers = BTreeSet::new();
        for Said { server, error, .. } in answers {
            if let Some(Fault { description }) = error {
                let text = format!("{} says: {description}", server.name);
                return Err(Failure::new(Code::AccountNotTaken, text));
            }
            brokers.insert(server.name);
        }
        Ok(brokers)
    }

    /// Checks that the broker has this token of the account.
    async fn shows(&self, account: &AccountId, token: &str) -> Result<(), Failure> {
        let deadline = Instant::now() + ANSWER_MAX;
        while self.lookup(account).await?.as_deref() != Some(token) {
            if Instant::now() >= deadline {
                let text = format!("the broker has another token of {account} than it was given");
                return Err(Failure::new(Code::AccountNotTaken, text));
            }
            sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// The token of an account that the broker has; none if it does not know the account.
    async fn lookup(&self, account: &AccountId) -> Result<Option<String>, Failure> {
        let subject = format!("$SYS.REQ.ACCOUNT.{account}.CLAIMS.LOOKUP");
        let answers = self.bus.request_many(&subject, [Bytes::new()], ANSWER_MAX);
        let answer = answers.await?.into_iter().next().unwrap_or_default();
        let token = String::from_utf8_lossy(&answer).into_owned();
        Ok(Some(token).filter(|token| !token.is_empty()))
    }

    /// Waits until none of these brokers, and no other that answers, has a connection of the key.
    async fn until_cut(
        &self,
        revoked: &Revocation,
        brokers: &BTreeSet<String>,
    ) -> Result<(), Failure> {
        let deadline = Instant::now() + CUT_MAX;
        loop {
            let answers = self.look(&revoked.account, &revoked.key).await?;
            let (left, silent) = (counted(&answers), silent(&answers, brokers));
            if left == 0 && silent.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let silent = match silent.is_empty() {
                    true => String::new(),
                    false => format!(", and {} did not answer", silent.join(", ")),
                };
                let text = format!(
                    "{left} connections of {} are still served{silent}",
                    revoked.key
                );
                return Err(Failure::new(Code::AccountNotTaken, text));
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Connections of a revoked key at all brokers that answer.
    async fn connections(&self, revoked: &Revocation) -> Result<usize, Failure> {
        Ok(counted(&self.look(&revoked.account, &revoked.key).await?))
    }

    async fn look(&self, account: &AccountId, key: &PublicKey) -> Result<Vec<Said>, Failure> {
        let subject = format!("$SYS.REQ.ACCOUNT.{account}.CONNZ");
        let question = serde_json::json!({
            "auth": true,
            "user": key,
            "limit": CONNECTIONS_LISTED,
        });
        self.ask_all(&subject, question.to_string().into()).await
    }

    /// Asks all brokers, and returns the answers of those that answer.
    async fn ask_all(&self, subject: &str, payload: Bytes) -> Result<Vec<Said>, Failure> {
        let client = self.bus.client();
        let inbox = client.new_inbox();
        let unsent = |error: String| BusError::Send {
            subject: subject.to_owned(),
            reason: error,
        };
        let mut heard = client
            .subscribe(inbox.clone())
            .await
            .map_err(|error| unsent(error.to_string()))?;
        client
            .publish_with_reply(subject.to_owned(), inbox, payload)
            .await
            .map_err(|error| unsent(error.to_string()))?;
        let (mut answers, mut wait) = (Vec::new(), ANSWER_MAX);
        while let Ok(Some(message)) = timeout(wait, heard.next()).await {
            let said = serde_json::from_slice(&message.payload).map_err(|error| {
                let text = format!("an answer under {subject} cannot be read: {error}");
                Failure::new(Code::AccountNotTaken, text)
            })?;
            answers.push(said);
            wait = QUIET;
        }
        match answers.is_empty() {
            true => Err(BusError::TimedOut {
                subject: subject.to_owned(),
                after: ANSWER_MAX,
            }
            .into()),
            false => Ok(answers),
        }
    }
}

/// The time of issue of an account's token.
fn issued(token: &str, now: UnixMillis) -> Option<UnixMillis> {
    jwt::verify::<AccountClaims>(token, now)
        .ok()
        .map(|token| token.issued)
}
