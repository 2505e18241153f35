//! Mutual TLS: broker and store take only clients that show a certificate of the domain, which
//! names the holder of the credentials and lives for hours. Each refusal says which certificate,
//! what is wrong with it, and when it ended or begins. A run goes on while certificates are
//! renewed.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use e2e::{Machine, Recipe, nats_config};
use harness::{Cluster, Options, PATIENCE};
use identity::tls::client_config_showing;
use identity::{ClientAuthority, ClientFile, Credentials, Issued, StoreKeys, tls};
use objects::{BlobReader, Buckets, Endpoint, Signer, StoreClock, TransferLimits, Trust};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair,
    PKCS_ED25519, PublicKeyData, SignatureAlgorithm,
};
use runtime::{Bus, BusConfig, Listener, accounts, clock};
use schemas::event::LedgerEvent;
use schemas::permission::Role;
use schemas::{Bytes, Code, Digest, Millis, ObjectRef, PublicKey, UnixMillis};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

const HOUR: Millis = Millis::from_secs(3600);
/// Life of tokens and certificates in a run that renews them.
const LIFE: Millis = Millis::from_secs(12);

fn options() -> Options {
    Options {
        mutual_tls: true,
        ..Options::default()
    }
}

/// The key of credentials, as the maker of certificates asks for it.
struct Held([u8; 32]);

impl PublicKeyData for Held {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ED25519
    }
}

/// A holder's certificate for servers, from the authority of clients.
fn of_a_server(cluster: &Cluster, key: &PublicKey, role: Role) -> String {
    let layout = cluster.domain().layout();
    let authority = KeyPair::from_pem(&fs::read_to_string(layout.clients_key()).unwrap()).unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, "diloco authority of clients");
    let authority = Issuer::new(params, authority);
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, key.as_str());
    params
        .distinguished_name
        .push(DnType::OrganizationalUnitName, role.name());
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let raw = identity::key::public_bytes(key).unwrap();
    params.signed_by(&Held(raw), &authority).unwrap().pem()
}

/// A reader of the store with the auditor's key, that shows this certificate.
pub(crate) fn reader(cluster: &Cluster, shown: &ClientFile) -> BlobReader {
    let layout = cluster.domain().layout();
    let keys = StoreKeys::read(&layout.store_keys()).unwrap();
    let endpoint = endpoint(cluster, shown);
    let limits = TransferLimits::default();
    BlobReader::new(&endpoint, &keys.audit.unwrap(), limits, PATIENCE).unwrap()
}

fn endpoint(cluster: &Cluster, shown: &ClientFile) -> Endpoint {
    let ca = cluster.domain().layout().ca();
    Endpoint::new(
        &cluster.store_url(),
        "us-east-1",
        Trust::Shown(ca, shown.clone()),
    )
    .unwrap()
}

pub(crate) fn nothing() -> ObjectRef {
    ObjectRef {
        digest: Digest::of(b"nothing has this digest"),
        bytes: Bytes(1),
    }
}

/// A time as the words show it, up to the minute.
fn shown(at: UnixMillis) -> String {
    schemas::text::Time(at).to_string()[..16].to_owned()
}

#[tokio::test]
async fn fg_08_broker_and_store_say_which_certificate_they_refuse_and_why() {
    let mut cluster = Cluster::bare(options()).await;
    cluster.start_store().await;
    let now = clock::now();
    let Issued {
        credentials,
        public,
        ..
    } = cluster.issue(Role::Auditor, "auditor");
    let file = ClientFile::beside(&credentials);
    let own = Credentials::read(&credentials).unwrap();
    let authority = ClientAuthority::read(&cluster.domain().layout().clients_key()).unwrap();
    let of = |authority: &ClientAuthority, from: UnixMillis| {
        let ends = from.after(HOUR);
        let made = authority.certify(&public, Role::Auditor, ends, from);
        made.unwrap()
    };
    let good = of(&authority, now);
    let (earlier, later) = (
        UnixMillis(now.get() - 3 * HOUR.get()),
        now.after(Millis(3 * HOUR.get())),
    );
    let (stranger, _) = ClientAuthority::generate(now).unwrap();
    // It begins an hour before it is made, for slow clocks.
    let begins = UnixMillis(later.get() - HOUR.get());
    let cases = [
        (
            Some(of(&authority, earlier)),
            Code::ClientCertificateExpired,
            format!("ended at {}", shown(earlier.after(HOUR))),
        ),
        (
            Some(of(&authority, later)),
            Code::ClientCertificateExpired,
            format!("is not valid before {}", shown(begins)),
        ),
        (
            Some(of(&stranger, now)),
            Code::ClientCertificateUntrusted,
            "is signed by an authority".to_owned(),
        ),
        (
            Some(of_a_server(&cluster, &public, Role::Auditor)),
            Code::ClientCertificatePurpose,
            "is not for clients".to_owned(),
        ),
        (
            None,
            Code::ClientCertificateMissing,
            "does not exist".to_owned(),
        ),
    ];
    let path = file.path().display().to_string();
    for (certificate, code, words) in cases {
        match &certificate {
            Some(certificate) => file.write(&own, certificate).unwrap(),
            None => fs::remove_file(file.path()).unwrap(),
        }
        let named = |said: &str| {
            let subject = format!("{public} (auditor)");
            let whose = certificate.is_none() || said.contains(&subject);
            whose && said.contains(&path) && said.contains(&words)
        };
        let config = cluster.bus_config(&credentials);
        let refused = Bus::connect("test", &config, now).await.unwrap_err();
        let said = refused.to_string();
        assert_eq!(refused.code(), code, "broker: {said}");
        assert!(named(&said), "broker, {words}: {said}");
        let filters = ["diloco.request.*.*.*.*"];
        let refused = Listener::connect("test", &config, &filters, now).await;
        let refused = refused.err().unwrap();
        assert_eq!(refused.code(), code, "listener: {refused}");
        assert!(named(&refused.to_string()), "listener, {words}: {refused}");
        let refused = reader(&cluster, &file).get(nothing()).await.unwrap_err();
        let said = refused.to_string();
        assert_eq!(refused.code(), code, "store: {said}");
        assert!(named(&said), "store, {words}: {said}");
        // The store's own log names the certificate too. It does not know the client's files.
        let parts = match certificate {
            Some(_) => [code.to_string(), public.to_string(), words],
            None => [
                code.to_string(),
                "showed no certificate".to_owned(),
                String::new(),
            ],
        };
        let whole = |line: &str| parts.iter().all(|part| line.contains(part.as_str()));
        let logged = |log: &str| log.lines().any(whole);
        cluster
            .process("store")
            .until_logged(PATIENCE, logged)
            .await;
    }
    file.write(&own, &good).unwrap();
    let config = cluster.bus_config(&credentials);
    Bus::connect("test", &config, now).await.unwrap();
    let answer = reader(&cluster, &file).get(nothing()).await.unwrap_err();
    assert_eq!(answer.code(), Code::ObjectMissing, "{answer}");
    let outcomes = runtime::stranger::tried(&[cluster.bus_url()], Some(&config.ca)).await;
    assert_eq!(outcomes[0].1, runtime::stranger::Outcome::Refused);
}

/// Asks for a URL, and returns the answer as it comes.
pub(crate) async fn ask(cluster: &Cluster, url: &str, shown: &ClientFile) -> String {
    let ca = fs::read(cluster.domain().layout().ca()).unwrap();
    let config = client_config_showing(&ca, shown).unwrap();
    let (address, path) = url
        .strip_prefix("https://")
        .and_then(|rest| rest.split_once('/'))
        .unwrap();
    let stream = TcpStream::connect(address).await.unwrap();
    let server = ServerName::try_from("127.0.0.1").unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(server, stream);
    let mut stream = stream.await.unwrap();
    let request = format!("GET /{path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    read.unwrap().unwrap();
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn fg_08_a_url_serves_the_holder_that_it_names_and_a_key_its_role() {
    let mut cluster = Cluster::bare(options()).await;
    cluster.start_store().await;
    let (a, b) = (
        cluster.issue(Role::Worker, "a"),
        cluster.issue(Role::Worker, "b"),
    );
    let file = |issued: &Issued| ClientFile::beside(&issued.credentials);
    let keys = StoreKeys::read(&cluster.domain().layout().store_keys()).unwrap();
    let signer = Signer::new(&endpoint(&cluster, &file(&a)), &keys, StoreClock::default()).unwrap();
    let url = |signer: &Signer| {
        let grant = signer.get(nothing().digest, clock::now());
        grant.action.unwrap().href
    };
    let naming = signer.clone().naming_holders(true);
    let for_a = url(&naming.given_to(&a.public));
    let served = ask(&cluster, &for_a, &file(&a)).await;
    assert!(served.starts_with("HTTP/1.1 404"), "{served}");
    let refused = ask(&cluster, &for_a, &file(&b)).await;
    assert!(refused.starts_with("HTTP/1.1 403"), "{refused}");
    assert!(refused.contains("given to another holder"), "{refused}");
    let log = cluster.process("store").log();
    let line = log.lines().rfind(|line| line.contains("DL0138")).unwrap();
    for key in [&a.public, &b.public] {
        assert!(line.contains(key.as_str()), "{line}");
    }
    // The name is under the signature.
    let forged = for_a.replace(a.public.as_str(), b.public.as_str());
    let refused = ask(&cluster, &forged, &file(&b)).await;
    assert!(refused.contains("SignatureDoesNotMatch"), "{refused}");
    // Without mutual TLS at the coordinator, URLs name nobody.
    let for_anybody = url(&signer.naming_holders(false).given_to(&a.public));
    let refused = ask(&cluster, &for_anybody, &file(&a)).await;
    assert!(refused.contains("auth.mutual_tls"), "{refused}");
    // The coordinator's key is worth nothing to a worker that has stolen the key.
    let buckets = |shown: &ClientFile| {
        let endpoint = endpoint(&cluster, shown);
        let limits = TransferLimits::default();
        let patience = Duration::from_secs(1);
        let clock = StoreClock::default();
        Buckets::new(&endpoint, &keys.admin, clock, limits, patience).unwrap()
    };
    let refused = buckets(&file(&a)).ping().await.unwrap_err();
    assert_ne!(refused.code(), Code::StoreUnreachable, "{refused}");
    let coordinator = cluster.domain().layout().credentials("coordinator");
    let coordinator = ClientFile::beside(&coordinator);
    buckets(&coordinator).ping().await.unwrap();
    let refused = reader(&cluster, &coordinator).get(nothing()).await;
    let refused = refused.unwrap_err();
    assert_ne!(
        refused.code(),
        Code::ObjectMissing,
        "an auditor's key: {refused}"
    );
    let log = cluster.process("store").log();
    assert!(log.contains("that is for role coordinator"), "{log}");
    assert!(log.contains("that is for role auditor"), "{log}");
}

/// The broker takes any certificate of the domain beside any token. The doctor compares them.
#[tokio::test]
async fn fg_08_a_certificate_of_somebody_else_at_the_broker_is_found() {
    let cluster = Cluster::bare(options()).await;
    let (a, b) = (
        cluster.issue(Role::Worker, "a"),
        cluster.issue(Role::Worker, "b"),
    );
    let connect = async |issued: &Issued| {
        let config = cluster.bus_config(&issued.credentials);
        Bus::connect("test", &config, clock::now()).await.unwrap()
    };
    let look = async || {
        let seen = accounts::certificates(cluster.domain(), cluster.bus_url(), clock::now()).await;
        seen.unwrap()
    };
    let own = connect(&a).await;
    let seen = look().await;
    // The one that looks is a client too.
    assert_eq!((seen.bound, seen.strays.len()), (2, 0), "{seen:?}");
    let (file, other) = (
        ClientFile::beside(&a.credentials),
        ClientFile::beside(&b.credentials),
    );
    fs::copy(other.path(), file.path()).unwrap();
    let borrowed = connect(&a).await;
    let seen = look().await;
    assert_eq!((seen.bound, seen.strays.len()), (2, 1), "{seen:?}");
    let stray = &seen.strays[0];
    assert_eq!(stray.code(), Code::ClientCertificateOther);
    for key in [&a.public, &b.public] {
        assert!(stray.to_string().contains(key.as_str()), "{stray}");
    }
    drop((own, borrowed));
}

#[tokio::test]
async fn fg_08_plaintext_and_tls_are_told_apart() {
    let mut cluster = Cluster::bare(options()).await;
    cluster.start_store().await;
    let coordinator = cluster.domain().layout().credentials("coordinator");
    let file = ClientFile::beside(&coordinator);
    // The broker greets in plaintext, where a store is meant.
    let bus = cluster.bus_url().replace("tls://", "https://");
    let ca = cluster.domain().layout().ca();
    let endpoint = Endpoint::new(&bus, "us-east-1", Trust::Shown(ca, file)).unwrap();
    let keys = StoreKeys::read(&cluster.domain().layout().store_keys()).unwrap();
    let limits = TransferLimits::default();
    let clock = StoreClock::default();
    let buckets = Buckets::new(&endpoint, &keys.admin, clock, limits, PATIENCE).unwrap();
    let refused = buckets.ping().await.unwrap_err();
    assert_eq!(refused.code(), Code::TlsMismatch, "{refused}");
    // A broker without TLS, where TLS is meant; and the reverse.
    let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = plain.local_addr().unwrap();
    let greeting = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((mut stream, _)) = plain.accept().await {
            let info =
                b"INFO {\"server_id\":\"x\",\"nonce\":\"abcdefgh\",\"max_payload\":1024}\r\n";
            stream.write_all(info).await.unwrap();
            held.push(stream);
        }
    });
    let own = cluster.bus_config(&coordinator);
    let config = |url: String| BusConfig { url, ..own.clone() };
    let filters = ["diloco.request.*.*.*.*"];
    let wants = config(format!("tls://{address}"));
    let refused = Listener::connect("test", &wants, &filters, clock::now()).await;
    let refused = refused.err().unwrap();
    assert_eq!(refused.code(), Code::TlsMismatch, "{refused}");
    greeting.abort();
    let wants_not = config(cluster.bus_url().replace("tls://", "nats://"));
    let refused = Listener::connect("test", &wants_not, &filters, clock::now()).await;
    let refused = refused.err().unwrap();
    assert_eq!(refused.code(), Code::TlsMismatch, "{refused}");
    // Plaintext at the store's port.
    let store = cluster.store_url();
    let mut stream = TcpStream::connect(store.trim_start_matches("https://"))
        .await
        .unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    let told = |log: &str| log.contains("a client speaks plaintext at this port");
    cluster.process("store").until_logged(PATIENCE, told).await;
}

fn ends(path: &Path) -> UnixMillis {
    ClientFile::beside(path).holder().unwrap().ends
}

#[tokio::test]
async fn fg_08_a_run_goes_on_while_every_certificate_is_renewed() {
    let options = Options {
        token_lifetime: Some(LIFE),
        ..options()
    };
    let mut cluster = Cluster::start(options, 2).await;
    let run = cluster.run().clone();
    Recipe::reference(4000, 2, 40)
        .set("policy.lease=20s")
        .create(&cluster)
        .await;
    let layout = cluster.domain().layout().clone();
    let names = ["worker-0", "worker-1", "coordinator", "ledger-writer"];
    let files = names.map(|name| layout.credentials(name));
    let first = files.clone().map(|path| ends(&path));
    let renewed = |log: &str| log.matches("certified=true").count();
    for (name, times) in [("worker-0", 3), ("worker-1", 3), ("coordinator", 6)] {
        let process = cluster.process(name);
        // A machine that is busy has renewed some before the first were looked at.
        let before = renewed(&process.log());
        process
            .until_logged(PATIENCE, |log| renewed(log) >= before + times)
            .await;
    }
    for (path, first) in files.iter().zip(first) {
        let file = ClientFile::beside(path);
        assert!(ends(path) > first, "{}", path.display());
        // A certificate ends with its token, in hours at most.
        let token = Credentials::read(path).unwrap().token().expires.unwrap();
        assert!(ends(path) <= token, "{}", path.display());
        assert!(tls::lifetimes(file.path()).is_ok());
    }
    assert!(
        first.iter().all(|ended| *ended < clock::now()),
        "none of the first still holds"
    );
    let operator = cluster.operator().await;
    let round = operator.run(&run).await.unwrap().view.round;
    operator
        .until(&run, PATIENCE, |view| view.round > round)
        .await;
    for name in ["worker-0", "worker-1", "coordinator"] {
        assert!(cluster.process(name).ended().is_none(), "{name} ended");
        let log = cluster.process(name).log();
        assert!(!log.contains("connection to the bus lost"), "{name}");
    }
    let seen = accounts::certificates(cluster.domain(), cluster.bus_url(), clock::now()).await;
    let seen = seen.unwrap();
    assert!(seen.strays.is_empty() && seen.bound > 6, "{seen:?}");
    let recorded = cluster.evidence().await.everything().await;
    let events = recorded.iter().filter_map(|one| one.ledger());
    let ended = events.filter(|event| matches!(event, LedgerEvent::LeaseEnded { .. }));
    assert_eq!(ended.count(), 0, "a lease was lost");
    cluster.record_verifies().await;
}

/// The whole path of a person on one machine.
#[tokio::test]
async fn fg_08_a_domain_becomes_mutual_and_the_doctor_sees_it() {
    let machine = Machine::new();
    let config = nats_config();
    assert!(machine.init("d", "1").await.status.success());
    let up = machine.up("d", "1").await;
    assert!(up.status.success(), "{}", up.text);
    machine.ok(&["--domain", "d", "down"]).await;
    let begin = ["auth", "config", "--mutual-tls", "--nats-config", &config];
    let text = machine.ok(&[&["--domain", "d"][..], &begin].concat()).await;
    assert!(text.contains("new authority of clients"), "{text}");
    let up = machine.up_again("d", "1").await;
    assert!(up.status.success(), "{}", up.text);
    let text = machine
        .ok(&["--domain", "d", "doctor", "--nats-config", &config])
        .await;
    let line = text.lines().find(|line| line.contains("certificates"));
    let line = line.unwrap_or_else(|| panic!("{text}"));
    assert!(
        line.starts_with("ok") && line.contains("clients show their own"),
        "{line}"
    );
    // Certificates lie beside the credentials, and are no credentials.
    machine.ok(&["--domain", "d", "auth", "show"]).await;
    machine.ok(&["--domain", "d", "down"]).await;
}
