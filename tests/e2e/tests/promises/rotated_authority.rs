//! The private authorities, and the certificate of broker and store, are replaced while a run goes
//! on under mutual TLS: nobody loses a lease, and what the old authorities signed is refused by
//! name.

use std::fs;

use e2e::Recipe;
use harness::{Cluster, Options, PATIENCE};
use identity::authority::{Known, Side, State};
use identity::{ClientFile, tls};
use runtime::handshake::Word;
use runtime::{Bus, clock, handshake};
use schemas::event::LedgerEvent;
use schemas::permission::Role;
use schemas::{Code, Millis};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::enrolment::invite;
use crate::mutual_tls::{nothing, reader};

/// Life of tokens and certificates, which the registrar renews all the time.
const LIFE: Millis = Millis::from_secs(12);
const ROTATE: [&str; 3] = ["auth", "rotate", "authority"];
/// The processes whose tokens are renewed within a life.
const RENEWED: [&str; 3] = ["worker-0", "worker-1", "coordinator"];

fn id(known: &[Known], side: Side, state: State) -> String {
    let found = known
        .iter()
        .find(|one| one.side == side && one.state == state);
    found.unwrap_or_else(|| panic!("{known:?}")).id.clone()
}

/// Broker and store as an operator starts them again.
async fn servers_anew(cluster: &mut Cluster) {
    for name in ["broker", "store"] {
        cluster.stop(name).await;
        cluster.restart(name).await;
    }
}

/// What broker and store say about a certificate of the next authority of clients.
async fn words(cluster: &Cluster) -> Vec<Word> {
    let layout = cluster.domain().layout();
    let trial = cluster.domain().write_trial(clock::now()).unwrap().unwrap();
    let endpoints = fs::read_to_string(layout.folder().join("endpoints.toml")).unwrap();
    let mut words = Vec::new();
    for address in endpoints.split('"').filter(|part| part.contains("://")) {
        let seen = handshake::look(address, &layout.ca(), Some(&trial)).await;
        words.push(seen.unwrap().word);
    }
    fs::remove_file(trial.path()).unwrap();
    words
}

/// A server of a thief who has the certificate and key in the cluster's folder `stolen`. It says
/// nothing to anybody.
async fn imitation(cluster: &Cluster, scheme: &'static str) -> String {
    let (certificate, key) = (
        cluster.path("stolen/server.pem"),
        cluster.path("stolen/server.key"),
    );
    let config = tls::server_config(&certificate, &key).unwrap();
    let acceptor = TlsAcceptor::from(std::sync::Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("{scheme}://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            if scheme == "tls" {
                let greeting = b"INFO {\"tls_required\":true}\r\n";
                stream.write_all(greeting).await.unwrap();
            }
            // A client that refuses it ends the handshake.
            let _ended = acceptor.accept(stream).await;
        }
    });
    address
}

async fn refused(cluster: &Cluster, arguments: &[&str], code: Code) -> String {
    let output = cluster.diloctl(arguments).await;
    let told = output.stderr.clone();
    assert!(
        !output.status.success() && told.contains(&code.to_string()),
        "{told}"
    );
    told
}

#[tokio::test]
async fn tl_28_fg_08_authorities_and_certificates_are_replaced_mid_run_and_no_lease_is_lost() {
    let options = Options {
        mutual_tls: true,
        token_lifetime: Some(LIFE),
        ..Options::default()
    };
    let mut cluster = Cluster::start(options, 2).await;
    let run = cluster.run().clone();
    Recipe::reference(4000, 2, 40)
        .set("policy.lease=120s")
        .create(&cluster)
        .await;
    let operator = cluster.operator().await;
    operator
        .until(&run, PATIENCE, |view| view.round.get() > 0)
        .await;
    let layout = cluster.domain().layout().clone();
    let first = cluster.domain().authorities().unwrap();
    let old = |side| id(&first, side, State::Present);
    // What a thief of the old authorities has: certificates that they signed.
    let stolen = cluster.path("stolen");
    fs::create_dir(&stolen).unwrap();
    let operators = layout.credentials("operator");
    for path in [
        layout.server_certificate(),
        layout.server_key(),
        operators.clone(),
        ClientFile::beside(&operators).path().to_owned(),
        layout.ca(),
    ] {
        fs::copy(&path, stolen.join(path.file_name().unwrap())).unwrap();
    }

    // A holder that is off, with its files on its own machine, and a machine that is yet to enrol.
    let hour = Millis::from_secs(3600);
    let absent = cluster
        .domain()
        .issue(Role::Auditor, "absent", None, hour, clock::now())
        .unwrap();
    fs::remove_file(ClientFile::beside(&absent.credentials).path()).unwrap();
    fs::remove_file(&absent.credentials).unwrap();
    invite(&cluster, "invited", &[]).await;

    // Nothing is signed with an authority that machines may not trust yet.
    let told = refused(&cluster, &ROTATE, Code::AuthorityOverlap).await;
    assert!(told.contains("--prepare"), "{told}");
    let told = cluster
        .diloctl_ok(&[&ROTATE[..], &["--prepare"]].concat())
        .await;
    let early = [&ROTATE[..], &["--retire", "--force"]].concat();
    let early = refused(&cluster, &early, Code::AuthorityOverlap).await;
    assert!(early.contains("does not sign yet"), "{early}");
    let early = refused(&cluster, &ROTATE, Code::AuthorityOverlap).await;
    assert!(
        early.contains("does not take the next authority"),
        "{early}"
    );
    let known = cluster.domain().authorities().unwrap();
    for side in [Side::Servers, Side::Clients] {
        assert_eq!(id(&known, side, State::Present), old(side));
    }
    let next = |side| id(&known, side, State::Next);
    assert!(told.contains(&next(Side::Servers)), "{told}");
    assert!(told.contains(&next(Side::Clients)), "{told}");
    for word in words(&cluster).await {
        assert!(matches!(word, Word::Refused(_)), "{word:?}");
    }
    servers_anew(&mut cluster).await;
    assert_eq!(words(&cluster).await, [Word::Taken, Word::Taken]);
    let silent = imitation(&cluster, "tls").await;
    let unknown = [&["--bus", &silent], &ROTATE[..]].concat();
    let unknown = refused(&cluster, &unknown, Code::AuthorityOverlap).await;
    assert!(unknown.contains("nobody knows if the broker"), "{unknown}");

    let told = cluster.diloctl_ok(&ROTATE).await;
    assert!(told.contains("until retired"), "{told}");
    assert!(!stolen.join("trial.pem").exists() && !layout.folder().join("tls/trial.pem").exists());
    // Again, as after a command that broke off.
    let told = cluster.diloctl_ok(&ROTATE).await;
    assert!(told.contains("until retired"), "{told}");
    let retire = [&ROTATE[..], &["--retire"]].concat();
    let told = refused(&cluster, &retire, Code::AuthorityInUse).await;
    let (broker, signer) = ("the broker at", old(Side::Servers));
    assert!(told.contains(broker) && told.contains(&signer), "{told}");
    servers_anew(&mut cluster).await;
    let renewed = |log: &str| log.matches("certified=true").count();
    for name in RENEWED {
        let process = cluster.process(name);
        let before = renewed(&process.log());
        process
            .until_logged(PATIENCE, |log| renewed(log) >= before + 2)
            .await;
    }
    let told = cluster.diloctl(&retire).await;
    assert!(told.status.success(), "{}", told.stderr);
    for side in [Side::Servers, Side::Clients] {
        let ended = told.stdout.contains(&old(side)) && told.stdout.contains("void");
        assert!(ended, "{}", told.stdout);
    }
    // Nobody has seen these, and they are told.
    let absent = format!("absent ({})", absent.public);
    for name in [absent.as_str(), "invited ("] {
        assert!(told.stderr.contains(name), "{}", told.stderr);
    }
    assert!(!told.stderr.contains("worker-0 ("), "{}", told.stderr);
    let again = cluster.diloctl(&retire).await;
    assert!(
        again.stderr.contains("nothing was ended"),
        "{}",
        again.stderr
    );
    // The certificate of broker and store alone, for the same restart.
    cluster.diloctl_ok(&["auth", "rotate", "certificate"]).await;
    servers_anew(&mut cluster).await;
    // The coordinator may not have found the broker again yet.
    let round = operator.until(&run, PATIENCE, |_| true).await.round;
    operator
        .until(&run, PATIENCE, |view| view.round > round)
        .await;

    // What the old authorities signed is refused, and the words name them.
    let seen = handshake::look(&imitation(&cluster, "https").await, &layout.ca(), None).await;
    let reason = seen.unwrap_err();
    assert!(reason.contains(&old(Side::Servers)), "{reason}");
    let before = handshake::look(
        &imitation(&cluster, "https").await,
        &stolen.join("ca.pem"),
        None,
    )
    .await;
    assert_eq!(
        before.unwrap().authority,
        Some(old(Side::Servers)),
        "it was taken before"
    );
    let copy = stolen.join("operator.creds");
    let own = ClientFile::beside(&copy);
    let answer = reader(&cluster, &own).get(nothing()).await.unwrap_err();
    assert_eq!(answer.code(), Code::ClientCertificateUntrusted, "{answer}");
    assert!(answer.to_string().contains(&old(Side::Clients)), "{answer}");
    let named = |log: &str| log.contains(&old(Side::Clients));
    cluster.process("store").until_logged(PATIENCE, named).await;
    let connected = Bus::connect("thief", &cluster.bus_config(&copy), clock::now()).await;
    let error = connected.err().unwrap();
    assert_eq!(error.code(), Code::ClientCertificateUntrusted, "{error}");
    assert!(error.to_string().contains(&old(Side::Clients)), "{error}");

    for name in RENEWED {
        assert!(cluster.process(name).ended().is_none(), "{name} ended");
    }
    let recorded = cluster.evidence().await.everything().await;
    let events = recorded.iter().filter_map(|one| one.ledger());
    let ended = events.filter(|event| matches!(event, LedgerEvent::LeaseEnded { .. }));
    assert_eq!(ended.count(), 0, "a lease was lost");
    cluster.record_verifies().await;
}
