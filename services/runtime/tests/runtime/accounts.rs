//! Revocations at real brokers: what they cut, what they refuse, and who may bring them about.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use harness::{Cluster, NatsServer, Options, PATIENCE, RawConnection, Signal};
use identity::{Domain, DomainLock, InitOptions, Issued};
use runtime::accounts::{self, Revoked};
use runtime::{Bus, BusConfig, Failure, clock};
use schemas::account::Account;
use schemas::permission::Role;
use schemas::{AccountId, Code, Millis, PublicKey};

/// The subject under which the broker takes an account's token.
const UPDATE: &str = "$SYS.REQ.CLAIMS.UPDATE";
/// Time between two exchanges of tokens among the brokers of a cluster, which each begins when it
/// starts.
const INTERVAL: Duration = Duration::from_secs(5);

fn lock(domain: &Domain) -> DomainLock {
    let until = Instant::now() + PATIENCE;
    loop {
        match DomainLock::take(domain.layout().folder(), "a test") {
            Ok(lock) => return lock,
            // A child process of another test has every open file until its program starts.
            Err(_) if Instant::now() < until => std::thread::yield_now(),
            Err(error) => panic!("nobody else is here: {error}"),
        }
    }
}

async fn revoke(cluster: &Cluster, issued: &Issued) -> Result<Revoked, Failure> {
    let domain = cluster.domain();
    let keys = [(domain.tenant().expect("a key"), issued.public.clone())];
    let lock = lock(domain);
    let (url, now) = (cluster.bus_url(), clock::now());
    let revoking = accounts::revoke(domain, &lock, url, &keys, None, now);
    revoking.await.map(|mut revoked| revoked.remove(0))
}

/// Connects once, and gives the code of the refusal.
async fn connects(config: &BusConfig) -> Result<(), Code> {
    let connected = Bus::connect("tried", config, clock::now()).await;
    connected.map(drop).map_err(|error| error.code())
}

async fn is_served(cluster: &Cluster, issued: &Issued) -> bool {
    match connects(&cluster.bus_config(&issued.credentials)).await {
        Ok(()) => true,
        Err(code) => {
            assert_eq!(code, Code::BusRefused);
            false
        }
    }
}

fn token_of(auth: &Path, account: &AccountId) -> String {
    let text = fs::read_to_string(auth).expect("the broker reads it too");
    let line = text
        .lines()
        .find(|line| line.trim_start().starts_with(account.as_str()));
    let token = line.and_then(|line| line.split('"').nth(1));
    token.expect("the account has a token").to_owned()
}

#[tokio::test]
async fn tl_07_tl_23_a_revoked_key_is_cut_and_refused_and_others_stay() {
    let cluster = Cluster::bare(Options::default()).await;
    let victim = cluster.issue(Role::Worker, "worker-0");
    let other = cluster.issue(Role::Worker, "worker-1");
    let mut cut = Vec::new();
    for _ in 0..2 {
        cut.push(RawConnection::connect(&cluster, &victim.credentials).await);
    }
    // These connections do not come back when they are cut.
    let mut stay = vec![RawConnection::connect(&cluster, &other.credentials).await];
    for role in Role::ALL.into_iter().filter(|role| !role.is_tenant()) {
        let issued = cluster.issue(role, role.name());
        stay.push(RawConnection::connect(&cluster, &issued.credentials).await);
    }

    let revoked = revoke(&cluster, &victim)
        .await
        .expect("the broker is there");
    assert_eq!(revoked.connections, 2);
    for mut raw in cut {
        let said = raw.closed().await.join("\n");
        assert!(said.contains("User Authentication Revoked"), "{said}");
    }
    assert!(!is_served(&cluster, &victim).await);
    let again = revoke(&cluster, &victim)
        .await
        .expect("the broker is there");
    assert!(again.revocation.until >= revoked.revocation.until);
    assert_eq!(again.connections, 0);
    for raw in &mut stay {
        let said = raw.settled().await;
        let fault = said.iter().find(|line| line.starts_with("-ERR"));
        assert_eq!(fault, None);
    }
    assert!(is_served(&cluster, &other).await);

    // The same key with a token that was issued after the revocation.
    let domain = cluster.domain();
    let known = domain.holders_of("worker-0").expect("they can be read");
    let run = known[0].run.as_ref();
    let hour = Millis::from_secs(3600);
    let renewed = domain.readmit(Role::Worker, "worker-0", run, hour, clock::now());
    let renewed = renewed.expect("it was revoked");
    assert_eq!(renewed.public, victim.public);
    assert!(is_served(&cluster, &renewed).await);
    revoke(&cluster, &renewed)
        .await
        .expect("the broker is there");
    assert!(!is_served(&cluster, &renewed).await);
}

/// The broker takes an older token of an account, and then serves the keys that the newer one
/// revokes. So the right to give it one is nobody's; a push puts right what was done with stolen
/// keys.
#[tokio::test]
async fn tl_07_an_older_token_of_the_account_cannot_be_replayed_without_that_right() {
    let cluster = Cluster::bare(Options::default()).await;
    let domain = cluster.domain();
    let victim = cluster.issue(Role::Worker, "worker-0");
    let tenant = domain.tenant().expect("a key");
    let auth = domain.layout().broker_generated().join("auth.conf");
    let older = token_of(&auth, &tenant);
    revoke(&cluster, &victim)
        .await
        .expect("the broker is there");
    assert_ne!(token_of(&auth, &tenant), older);

    let wait = Duration::from_secs(30);
    let give = async |bus: &Bus| {
        let token = older.clone().into();
        bus.request_raw(UPDATE, HeaderMap::new(), token, wait).await
    };
    let holders = Role::ALL.into_iter().filter(|role| !role.is_momentary());
    for role in holders {
        let bus = cluster.connect(role, &format!("own-{}", role.name())).await;
        let refused = give(&bus).await.expect_err("it has no such right");
        assert_eq!(refused.code(), Code::BusDenied, "{role:?}");
        assert!(!is_served(&cluster, &victim).await, "{role:?}");
    }

    // With the key of the role, which lies in the trust domain alone.
    let own = domain
        .account_writer(clock::now())
        .expect("the role has a key");
    let config = cluster.bus_config(&own.credentials());
    let bus = Bus::connect("thief", &config, clock::now()).await;
    give(&bus.expect("it is the role's"))
        .await
        .expect("the broker takes it");
    assert!(
        is_served(&cluster, &victim).await,
        "the reason for all this"
    );
    let pushed = accounts::push(domain, &lock(domain), cluster.bus_url(), clock::now()).await;
    let pushed = pushed.expect("the broker is there");
    assert_eq!(pushed.changed, [tenant]);
    assert_eq!(pushed.brokers.len(), 1);
    assert!(!is_served(&cluster, &victim).await);
}

#[tokio::test]
async fn tl_07_what_is_revoked_while_the_broker_is_down_is_refused_from_its_start_on() {
    let mut cluster = Cluster::bare(Options::default()).await;
    let victim = cluster.issue(Role::Worker, "worker-0");
    let other = cluster.issue(Role::Worker, "worker-1");
    assert!(is_served(&cluster, &victim).await);
    cluster.kill9("broker");
    let kept = revoke(&cluster, &victim)
        .await
        .expect_err("nobody confirms it");
    assert_eq!(kept.code(), Code::RevocationKept);
    assert_eq!(kept.exit_status(), runtime::exit::EXIT_KEPT);
    assert!(
        kept.to_string().contains("DL0201"),
        "{kept} names the cause"
    );
    let again = revoke(&cluster, &victim).await.expect_err("still nobody");
    assert_eq!(again.code(), Code::RevocationKept);
    // The broker has the older token in its own folder.
    cluster.restart("broker").await;
    assert!(!is_served(&cluster, &victim).await);
    assert!(is_served(&cluster, &other).await);
    let revoked = revoke(&cluster, &victim).await.expect("the broker is back");
    assert_eq!(revoked.connections, 0);
}

/// A broker that only reads its configuration again keeps the new token, answers questions with it,
/// and goes on with the old one.
#[tokio::test]
async fn tl_07_a_push_is_in_effect_also_after_a_reload_that_was_not() {
    let mut cluster = Cluster::bare(Options::default()).await;
    let victim = cluster.issue(Role::Worker, "worker-0");
    let mut raw = RawConnection::connect(&cluster, &victim.credentials).await;
    let domain = cluster.domain();
    let tenant = domain.tenant().expect("a key");
    let kept = domain.revoke(&tenant, &victim.public, None, clock::now());
    kept.expect("the folder takes files");
    let generated = domain.layout().broker_generated();
    let written = domain.write_server_config(&generated, clock::now());
    written.expect("the folder takes files");
    let broker = cluster.process("broker");
    broker.signal(Signal::Hangup);
    let reloaded = |log: &str| log.contains("Reloaded server");
    broker.until_logged(PATIENCE, reloaded).await;
    assert!(is_served(&cluster, &victim).await, "a reload is not enough");

    let domain = cluster.domain();
    let pushed = accounts::push(domain, &lock(domain), cluster.bus_url(), clock::now()).await;
    assert_eq!(pushed.expect("the broker is there").changed, []);
    raw.closed().await;
    assert!(!is_served(&cluster, &victim).await);
}

#[tokio::test]
async fn tl_07_a_key_is_revoked_in_all_accounts_also_in_the_brokers_own() {
    let cluster = Cluster::bare(Options::default()).await;
    let domain = cluster.domain();
    let victim = cluster.issue(Role::Registrar, "leaked");
    let mut raw = RawConnection::connect(&cluster, &victim.credentials).await;
    let everywhere = domain.accounts().expect("names").all();
    let keys: Vec<_> = everywhere
        .into_iter()
        .map(|account| (account, victim.public.clone()))
        .collect();
    let (url, now) = (cluster.bus_url(), clock::now());
    let revoked = accounts::revoke(domain, &lock(domain), url, &keys, None, now).await;
    let revoked = revoked.expect("the broker is there");
    let cut: usize = revoked.iter().map(|one| one.connections).sum();
    assert_eq!(cut, 1);
    raw.closed().await;
    assert!(!is_served(&cluster, &victim).await);
}

/// The registrar signs with what lies in the issuer's folder, so a key that no broker knows may not
/// lie there.
#[tokio::test]
async fn tl_28_a_key_is_replaced_only_once_the_broker_knows_the_next_one() {
    let mut cluster = Cluster::bare(Options::default()).await;
    let issued = cluster.issue(Role::Worker, "worker-0");
    let layout = cluster.domain().layout().clone();
    let path = layout.issuer().join("role-worker.nk");
    let read = || [&path, &issued.credentials].map(|path| fs::read(path).expect("it is ours"));
    let before = read();
    let rotate = async |cluster: &Cluster| {
        let (domain, url) = (cluster.domain(), cluster.bus_url());
        let lock = lock(domain);
        let roles = [Role::Worker, Role::Operator];
        accounts::rotate(domain, &lock, url, &roles, true, clock::now()).await
    };
    cluster.kill9("broker");
    let refused = rotate(&cluster).await.expect_err("nobody confirms it");
    assert_eq!(refused.code(), Code::BusUnreachable);
    assert!(refused.to_string().contains("no key was made"), "{refused}");
    assert_eq!(read(), before);
    assert!(
        !path.with_extension("next").exists(),
        "not even a key that nothing is signed with"
    );
    cluster.restart("broker").await;
    assert!(is_served(&cluster, &issued).await);
    let rotated = rotate(&cluster).await.expect("the broker is back");
    rotated.in_effect.expect("it confirms");
    let roles = rotated.roles;
    let names: Vec<Role> = roles.iter().map(|one| one.role).collect();
    assert_eq!(names, [Role::Worker, Role::Operator]);
    for one in roles {
        assert_eq!(one.gone, [one.keys.old]);
        assert_eq!(one.standing, []);
    }
    assert!(
        read()
            .iter()
            .zip(&before)
            .all(|(now, before)| now != before)
    );
    assert!(is_served(&cluster, &issued).await);

    // Another that takes no tokens.
    let before = read();
    let writer = layout.folder().join("vault/role-account-writer.nk");
    fs::remove_file(writer).expect("it was made");
    let refused = rotate(&cluster).await.expect_err("it takes none");
    assert_eq!(refused.code(), Code::AccountsBehind);
    assert_eq!(read(), before);
}

/// A token that was signed with a clock far ahead outlives the revocation, and a push says so.
#[tokio::test]
async fn tl_07_a_push_confirms_nothing_while_a_revoked_key_is_served() {
    let cluster = Cluster::bare(Options::default()).await;
    let domain = cluster.domain();
    let run = "demo".parse().expect("a name");
    let ahead = clock::now().after(Millis::from_secs(3600));
    let life = Millis::from_secs(3600);
    let victim = domain.issue(Role::Worker, "ahead", Some(&run), life, ahead);
    let victim = victim.expect("a fresh name");
    let _raw = RawConnection::connect(&cluster, &victim.credentials).await;
    // Nothing here knows when it was issued.
    let elsewhere = cluster.path("ahead.creds");
    fs::rename(&victim.credentials, &elsewhere).expect("it is ours");
    let list = domain.layout().issued();
    let record = list.folder().join(format!("{}.json", victim.public));
    fs::remove_file(record).expect("it was made");
    let tenant = domain.tenant().expect("a key");
    let kept = domain.revoke(&tenant, &victim.public, None, clock::now());
    kept.expect("the folder takes files");
    let pushed = accounts::push(domain, &lock(domain), cluster.bus_url(), clock::now()).await;
    let refused = pushed.expect_err("it is still served");
    assert_eq!(refused.code(), Code::AccountNotTaken);
    // A time of revocation after it cuts it.
    let kept = domain.revoke(&tenant, &victim.public, None, ahead);
    kept.expect("the folder takes files");
    let pushed = accounts::push(domain, &lock(domain), cluster.bus_url(), clock::now()).await;
    pushed.expect("it is cut");
    let refused = connects(&cluster.bus_config(&elsewhere)).await;
    assert_eq!(refused, Err(Code::BusRefused));
}

#[tokio::test]
async fn tl_07_tokens_that_were_lost_here_are_made_again_later_than_the_brokers() {
    let cluster = Cluster::bare(Options::default()).await;
    let domain = cluster.domain();
    let victim = cluster.issue(Role::Worker, "worker-0");
    revoke(&cluster, &victim)
        .await
        .expect("the broker is there");
    let auth = domain.layout().broker_generated().join("auth.conf");
    // From a machine whose clock is ahead, and then from one whose clock is right.
    let ahead = clock::now().after(Millis::from_secs(3600));
    for now in [ahead, clock::now()] {
        fs::remove_file(&auth).expect("it was written");
        let pushed = accounts::push(domain, &lock(domain), cluster.bus_url(), now).await;
        let pushed = pushed.expect("the broker is there");
        assert_eq!(pushed.changed.len(), Account::ALL.len());
        assert!(!is_served(&cluster, &victim).await);
    }
    let pushed = accounts::push(domain, &lock(domain), cluster.bus_url(), clock::now()).await;
    assert_eq!(pushed.expect("the broker is there").changed, []);
}

/// A broker that was started by an earlier release, or for another domain, does not know the key.
#[tokio::test]
async fn tl_07_a_broker_that_takes_no_tokens_is_named() {
    let cluster = Cluster::bare(Options::default()).await;
    let victim = cluster.issue(Role::Worker, "worker-0");
    let keys = cluster.domain().layout().folder().join("vault");
    fs::remove_file(keys.join("role-account-writer.nk")).expect("it was made");
    let kept = revoke(&cluster, &victim)
        .await
        .expect_err("the broker is older");
    assert_eq!(kept.code(), Code::RevocationKept);
    assert!(kept.to_string().contains("DL0129"), "{kept}");
    let domain = cluster.domain();
    let pushed = accounts::push(domain, &lock(domain), cluster.bus_url(), clock::now()).await;
    assert_eq!(pushed.expect_err("as before").code(), Code::AccountsBehind);
}

/// Two brokers with folders of their own, as on two machines.
struct Nodes {
    domain: Domain,
    nodes: Vec<NatsServer>,
    _scratch: tempfile::TempDir,
}

impl Nodes {
    async fn start() -> Self {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let made = Domain::init(
            &scratch.path().join(".diloco"),
            &InitOptions::default(),
            clock::now(),
        );
        let domain = made.expect("an empty folder");
        let generated = domain.layout().broker_generated();
        let written = domain.write_server_config(&generated, clock::now());
        written.expect("the folder takes files");
        let routes: Vec<u16> = (0..2).map(|_| free_port()).collect();
        let mut nodes = Vec::new();
        for (index, own) in routes.iter().enumerate() {
            let folder = tempfile::tempdir().expect("a scratch folder");
            for file in ["auth.conf", "tls.conf"] {
                let copied = fs::copy(generated.join(file), folder.path().join(file));
                copied.expect("the folder takes files");
            }
            let config = format!(
                "server_name: n{index}\ninclude \"auth.conf\"\ninclude \"tls.conf\"\n\
                 resolver {{ type: full, dir: \"accounts\", allow_delete: false, interval: \"5s\", timeout: \"2s\" }}\n\
                 cluster {{ name: c, listen: \"127.0.0.1:{own}\", routes: [ {} ] }}\n",
                routes
                    .iter()
                    .map(|port| format!("\"nats://127.0.0.1:{port}\""))
                    .collect::<Vec<_>>()
                    .join(", ")
            );
            nodes.push(NatsServer::start(folder, &config).await);
        }
        Self {
            domain,
            nodes,
            _scratch: scratch,
        }
    }

    fn url(&self, node: usize) -> String {
        format!("tls://{}", self.nodes[node].address())
    }

    fn config(&self, node: usize, issued: &Issued) -> BusConfig {
        BusConfig {
            url: self.url(node),
            credentials: issued.credentials.clone(),
            ca: self.domain.layout().ca(),
        }
    }

    fn worker(&self, name: &str) -> Issued {
        let run = "demo".parse().expect("a name");
        let lifetime = Millis::from_secs(3600);
        let issued = self
            .domain
            .issue(Role::Worker, name, Some(&run), lifetime, clock::now());
        issued.expect("a fresh name")
    }

    async fn push(&self, node: usize) -> usize {
        let (domain, url) = (&self.domain, self.url(node));
        let pushed = accounts::push(domain, &lock(domain), &url, clock::now()).await;
        pushed.expect("the broker is there").brokers.len()
    }

    async fn revoke(&self, node: usize, key: &PublicKey) {
        let keys = [(self.domain.tenant().expect("a key"), key.clone())];
        let (domain, url) = (&self.domain, self.url(node));
        let revoked =
            accounts::revoke(domain, &lock(domain), &url, &keys, None, clock::now()).await;
        revoked.expect("the broker is there");
    }

    /// Waits until both are one cluster: then both confirm a push.
    async fn until_joined(&self) {
        let began = Instant::now();
        while self.push(0).await < 2 {
            assert!(
                began.elapsed() < PATIENCE,
                "the nodes do not find each other"
            );
        }
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    listener.local_addr().expect("it is bound").port()
}

#[tokio::test]
async fn tl_07_a_node_that_was_down_refuses_a_revoked_key_within_two_of_its_intervals() {
    let mut nodes = Nodes::start().await;
    nodes.until_joined().await;
    let (first, second, other) = (
        nodes.worker("worker-0"),
        nodes.worker("worker-1"),
        nodes.worker("worker-2"),
    );
    // Both nodes know the key as revoked when both are there.
    nodes.revoke(0, &first.public).await;
    for node in 0..2 {
        let refused = connects(&nodes.config(node, &first)).await;
        assert_eq!(refused, Err(Code::BusRefused), "node {node}");
        assert_eq!(connects(&nodes.config(node, &second)).await, Ok(()));
    }

    // One is down meanwhile, and starts from its own folder, and from its own older configuration.
    // If the nodes have not found each other at its first exchange, it learns of the key in its
    // second.
    nodes.nodes[1].kill9();
    nodes.revoke(0, &second.public).await;
    nodes.nodes[1].restart().await;
    let began = Instant::now();
    while connects(&nodes.config(1, &second)).await.is_ok() {
        assert!(
            began.elapsed() < 2 * INTERVAL,
            "the node serves a revoked key for longer than two of its intervals"
        );
    }
    assert_eq!(connects(&nodes.config(1, &other)).await, Ok(()));
    assert_eq!(
        connects(&nodes.config(1, &first)).await,
        Err(Code::BusRefused),
        "the older revocation lies in its folder"
    );
}
