//! Mutual TLS in real handshakes, in memory: each certificate that a server refuses, in the words
//! of both sides.

use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use identity::clients::{CERTIFICATE_LIFE_MAX, key_fingerprint};
use identity::secret::write_private;
use identity::tls::{client_config_showing, mutual_config};
use identity::{
    ClientAuthority, ClientFile, ConnectionKey, Credentials, Domain, Heir, Holder, IdentityFiles,
    InitOptions, Issuer as TokenIssuer, Own, TlsFault,
};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair,
};
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use schemas::permission::Role;
use schemas::renewal::RenewalReply;
use schemas::{Code, Millis, PublicKey, UnixMillis, V};

const HOUR: Millis = Millis::from_secs(3600);

thread_local! {
    /// What the server said about the clients of this test.
    static TOLD: RefCell<Vec<TlsFault>> = const { RefCell::new(Vec::new()) };
}

/// rustls compares with the machine's clock.
fn now() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("1970");
    UnixMillis(since.as_millis().try_into().expect("it is not that late"))
}

fn tell(fault: &TlsFault) {
    TOLD.with_borrow_mut(|told| told.push(fault.clone()));
}

fn domain(folder: &Path) -> Domain {
    let options = InitOptions {
        mutual_tls: true,
        ..InitOptions::default()
    };
    Domain::init(&folder.join("d"), &options, now()).expect("a new domain")
}

fn server(domain: &Domain) -> ServerConfig {
    let layout = domain.layout();
    let (certificate, key) = (layout.server_certificate(), layout.server_key());
    mutual_config(&certificate, &key, &layout.clients(), tell).expect("its own files")
}

fn client(domain: &Domain, shown: &ClientFile) -> ClientConfig {
    let ca = std::fs::read(domain.layout().ca()).expect("the domain has an authority");
    client_config_showing(&ca, shown).expect("it is one")
}

/// A handshake and, where it ends well, what the client hears after it.
fn meet(
    client: ClientConfig,
    server: ServerConfig,
) -> Result<ServerConnection, Box<(Option<rustls::Error>, rustls::Error)>> {
    let name = "127.0.0.1".try_into().expect("an address");
    let mut client = ClientConnection::new(Arc::new(client), name).expect("a client");
    let mut server = ServerConnection::new(Arc::new(server)).expect("a server");
    let mut refused = None;
    // More turns than a handshake has.
    for _ in 0..8 {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).expect("into memory");
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() && refused.is_none() {
            server.read_tls(&mut rest).expect("from memory");
            refused = server.process_new_packets().err();
        }
        let mut bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).expect("into memory");
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            client.read_tls(&mut rest).expect("from memory");
            if let Err(heard) = client.process_new_packets() {
                return Err(Box::new((refused, heard)));
            }
        }
    }
    match refused {
        None => Ok(server),
        Some(error) => panic!("the client heard nothing of {error}"),
    }
}

#[test]
fn fg_08_the_certificate_of_credentials_is_for_their_own_key_and_role() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = domain(scratch.path());
    let run = "demo".parse().expect("a name");
    let issued = domain
        .issue(
            Role::Worker,
            "w",
            Some(&run),
            Millis(720 * HOUR.get()),
            now(),
        )
        .expect("a fresh name");
    let file = ClientFile::beside(&issued.credentials);
    let server = meet(client(&domain, &file), server(&domain)).expect("they trust each other");
    let shown = server.peer_certificates().and_then(|all| all.first());
    let holder = Holder::of(shown.expect("it was demanded")).expect("a holder");
    assert_eq!((&holder.key, holder.role), (&issued.public, Role::Worker));
    // Token and certificate end together, in hours.
    assert!(holder.ends <= issued.expires);
    assert!(issued.expires <= now().after(CERTIFICATE_LIFE_MAX));
    assert!(now().until(holder.ends) > Millis(23 * HOUR.get()));
    // Nobody renews a provisioner's, and the registrar renews its own.
    for role in [Role::Provisioner, Role::Registrar] {
        let issued = domain
            .issue(role, role.name(), None, Millis(720 * HOUR.get()), now())
            .expect("a fresh name");
        assert!(issued.expires > now().after(CERTIFICATE_LIFE_MAX));
        let ends = ClientFile::beside(&issued.credentials).holder();
        assert!(ends.expect("it has one").ends <= now().after(CERTIFICATE_LIFE_MAX));
    }
    // The broker's list names keys by this.
    let one = key_fingerprint(&issued.public).expect("a key");
    let other = key_fingerprint(ConnectionKey::generate().public()).expect("a key");
    assert!(one.len() == 64 && one != other);
}

#[test]
fn fg_08_a_certificate_is_made_again_before_its_end_and_for_nobody_who_was_blocked() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = domain(scratch.path());
    let life = Millis(2 * HOUR.get());
    let issued = domain
        .issue(Role::Operator, "o", None, life, now())
        .expect("a fresh name");
    let path = &issued.credentials;
    let file = ClientFile::beside(path);
    let refresh = |left| {
        domain
            .refresh_certificate(path, left, now())
            .expect("its own files")
    };
    assert!(!refresh(HOUR), "most of its life is left");
    std::fs::remove_file(file.path()).expect("it was there");
    assert!(refresh(HOUR));
    assert_eq!(file.holder().expect("a new one").key, issued.public);
    let late = issued.expires.after(Millis(1));
    let again = domain.refresh_certificate(path, CERTIFICATE_LIFE_MAX, late);
    assert!(!again.expect("its own files"), "its token has ended");
    let account = domain.control().expect("it has one");
    let revoked = domain.revoke(&account, &issued.public, None, now());
    revoked.expect("the folder takes files");
    std::fs::remove_file(file.path()).expect("it was there");
    assert!(!refresh(HOUR));
}

/// Its time says nothing about the authority that signed it: that may have been replaced since.
#[test]
fn tl_28_fg_08_a_certificate_of_a_former_authority_is_made_again_however_long_it_lasts() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = domain(scratch.path());
    let issued = domain
        .issue(Role::Operator, "o", None, Millis(2 * HOUR.get()), now())
        .expect("a fresh name");
    let file = ClientFile::beside(&issued.credentials);
    let authority = || file.facts().expect("it is there").authority;
    let refresh = || {
        domain
            .refresh_certificate(&issued.credentials, HOUR, now())
            .expect("its own files")
    };
    let first = authority();
    let key = domain.layout().clients_key();
    let former = std::fs::read_to_string(&key).expect("the domain has it");
    let prepared = domain.prepare_authorities(now());
    prepared.expect("the vault is here");
    assert!(!refresh(), "the next one does not sign yet");
    domain.adopt_authorities(&[], now()).expect("prepared");
    assert!(refresh());
    let present = ClientAuthority::read(&domain.layout().clients_key()).expect("its key");
    assert_eq!(authority(), Some(present.id()));
    assert_ne!(authority(), first);
    assert!(!refresh(), "it is of the present one");

    // A copy of the issuer's folder from before makes no older certificate in its place.
    let newer = std::fs::read_to_string(&key).expect("the domain has it");
    let put_key = |text: &str| {
        write_private(&key, text.as_bytes()).expect("the folder takes files");
    };
    put_key(&former);
    assert!(!refresh(), "the key is the older one");
    put_key(&newer);
    domain.retire_authorities().expect("the vault is here");
    put_key(&former);
    assert!(!refresh(), "the key is one that nobody trusts");
    assert_eq!(authority(), Some(present.id()));
}

#[test]
fn fg_08_a_domain_without_mutual_tls_has_no_certificates_of_clients() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let made = Domain::init(&scratch.path().join("d"), &InitOptions::default(), now());
    let domain = made.expect("a new domain");
    let issued = domain
        .issue(Role::Auditor, "a", None, HOUR, now())
        .expect("a fresh name");
    assert!(!ClientFile::beside(&issued.credentials).exists() && !domain.is_mutual());
    let config = domain.server_config("", now()).expect("all keys are there");
    assert!(!config.tls.contains("verify") && !config.clients.contains("verify"));
    assert!(domain.make_mutual(now()).expect("the folder takes files"));
    assert!(!domain.make_mutual(now()).expect("nothing is written"));
    let config = domain.server_config("", now()).expect("all keys are there");
    assert!(config.tls.contains("verify: true") && config.tls.contains("tls/clients.pem"));
    assert!(
        config
            .clients
            .contains("ca_file: $NATS_CLIENTS_CA\n  verify: true")
    );
    let longer = domain
        .issue(Role::Auditor, "a", None, HOUR, now())
        .expect("the same name");
    assert!(ClientFile::beside(&longer.credentials).exists());
}

#[test]
fn fg_08_each_refusal_says_which_certificate_what_and_when() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = domain(scratch.path());
    let issued = domain
        .issue(Role::Auditor, "a", None, HOUR, now())
        .expect("a fresh name");
    let file = ClientFile::beside(&issued.credentials);
    let own = Credentials::read(&issued.credentials).expect("just issued");
    let authority = ClientAuthority::read(&domain.layout().clients_key()).expect("its key");
    let (stranger, _) = ClientAuthority::generate(now()).expect("the generator works");
    let of = |authority: &ClientAuthority, from: UnixMillis| {
        let made = authority.certify(&issued.public, Role::Auditor, from.after(HOUR), from);
        made.expect("a key")
    };
    let (earlier, later) = (
        UnixMillis(now().get() - 4 * HOUR.get()),
        now().after(Millis(4 * HOUR.get())),
    );
    let time = |at: UnixMillis| schemas::text::Time(at).to_string();
    let cases = [
        (
            of(&authority, earlier),
            Code::ClientCertificateExpired,
            format!("ended at {}", time(earlier.after(HOUR))),
        ),
        (
            of(&authority, later),
            Code::ClientCertificateExpired,
            format!(
                "is not valid before {}",
                time(UnixMillis(later.get() - HOUR.get()))
            ),
        ),
        (
            of(&stranger, now()),
            Code::ClientCertificateUntrusted,
            "is signed by an authority".to_owned(),
        ),
    ];
    let subject = format!("{} (auditor)", issued.public);
    for (certificate, code, words) in cases {
        file.write(&own, &certificate)
            .expect("the folder takes files");
        TOLD.take();
        let refused = meet(client(&domain, &file), server(&domain));
        let (_, heard) = *refused.expect_err("refused");
        let fault = TlsFault::of(&heard, &Own::look(Some(&file)), now()).expect("a fault of TLS");
        let [told] = &TOLD.take()[..] else {
            panic!("the server told something else");
        };
        for fault in [&fault, told] {
            let said = fault.to_string();
            assert_eq!(fault.code(), code, "{said}");
            assert!(said.contains(&words) && said.contains(&subject), "{said}");
        }
        assert!(
            fault
                .to_string()
                .contains(&file.path().display().to_string())
        );
    }
    std::fs::remove_file(file.path()).expect("it was there");
    let refused = meet(client(&domain, &file), server(&domain));
    let (refused, heard) = *refused.expect_err("refused");
    let told = TlsFault::at_server(&refused.expect("by the server")).expect("a fault of TLS");
    assert_eq!(told.code(), Code::ClientCertificateMissing);
    for (own, words) in [
        (Own::look(Some(&file)), "does not exist"),
        (Own::Never, "this connection has none"),
    ] {
        let fault = TlsFault::of(&heard, &own, now()).expect("a fault of TLS");
        assert_eq!(fault.code(), Code::ClientCertificateMissing);
        assert!(fault.to_string().contains(words), "{fault}");
    }
    write_private(file.path(), b"no certificate").expect("the folder takes files");
    let fault = TlsFault::of(&heard, &Own::look(Some(&file)), now()).expect("a fault of TLS");
    assert!(
        fault.to_string().contains("holds no certificate"),
        "{fault}"
    );
}

/// The registrar signs with that authority, so its key is on a machine that is online.
#[test]
fn fg_08_the_authority_of_clients_cannot_play_a_server() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = domain(scratch.path());
    let issued = domain
        .issue(Role::Auditor, "a", None, HOUR, now())
        .expect("a fresh name");
    let shown = ClientFile::beside(&issued.credentials);
    let layout = domain.layout();
    let stolen = std::fs::read_to_string(layout.clients_key()).expect("the domain has it");
    let stolen = KeyPair::from_pem(&stolen).expect("a key");
    let mut authority = CertificateParams::default();
    authority.distinguished_name = DistinguishedName::new();
    let name = "diloco authority of clients";
    authority.distinguished_name.push(DnType::CommonName, name);
    let stolen = Issuer::new(authority, stolen);
    let names = vec!["127.0.0.1".to_owned()];
    let mut wanted = CertificateParams::new(names).expect("an address");
    wanted.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let own = KeyPair::generate().expect("the generator works");
    let forged = wanted.signed_by(&own, &stolen).expect("a certificate");
    let (certificate, key) = (
        scratch.path().join("forged.pem"),
        scratch.path().join("key"),
    );
    write_private(&certificate, forged.pem().as_bytes()).expect("the folder takes files");
    write_private(&key, own.serialize_pem().as_bytes()).expect("the folder takes files");
    let forger = mutual_config(&certificate, &key, &layout.clients(), tell).expect("its files");
    let (_, heard) = *meet(client(&domain, &shown), forger).expect_err("refused");
    let fault = TlsFault::of(&heard, &Own::look(Some(&shown)), now()).expect("a fault of TLS");
    assert_eq!(fault.code(), Code::CertificateUntrusted, "{fault}");
    meet(client(&domain, &shown), server(&domain)).expect("its own server is trusted");
}

/// A server whose clock is wrong refuses what this machine takes for valid.
#[test]
fn fg_08_clocks_that_differ_are_named() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = domain(scratch.path());
    let issued = domain
        .issue(Role::Auditor, "a", None, HOUR, now())
        .expect("a fresh name");
    let own = Own::look(Some(&ClientFile::beside(&issued.credentials)));
    let alert = |alert| TlsFault::of_alert(alert, &own, now());
    let fault = alert(rustls::AlertDescription::CertificateExpired).expect("a fault of TLS");
    assert_eq!(fault.code(), Code::ClientCertificateExpired);
    assert!(
        fault.to_string().contains("by the server's clock"),
        "{fault}"
    );
    let fault = alert(rustls::AlertDescription::BadCertificate).expect("a fault of TLS");
    assert_eq!(
        fault.code(),
        Code::ClientCertificateUntrusted,
        "its purpose is right"
    );
    assert_eq!(alert(rustls::AlertDescription::InternalError), None);
    let never = TlsFault::of_alert(rustls::AlertDescription::DecryptError, &Own::Never, now());
    assert_eq!(never, None, "it has no certificate to be blamed");
}

#[test]
fn fg_08_a_certificate_of_another_holder_is_not_put_beside_credentials() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = domain(scratch.path());
    let issue = |name| {
        domain
            .issue(Role::Auditor, name, None, HOUR, now())
            .expect("a fresh name")
    };
    let (a, b) = (issue("a"), issue("b"));
    let authority = ClientAuthority::read(&domain.layout().clients_key()).expect("its key");
    let made = |key: &PublicKey| authority.certify(key, Role::Auditor, now().after(HOUR), now());
    let of_b = made(&b.public).expect("a key");
    let own = Credentials::read(&a.credentials).expect("just issued");
    let refused = ClientFile::beside(&a.credentials).write(&own, &of_b);
    let refused = refused.expect_err("it is of another");
    assert_eq!(refused.code(), Code::ClientCertificateOther);
    assert!(refused.to_string().contains(b.public.as_str()), "{refused}");
    // A server's certificate names no holder.
    let pem = std::fs::read(domain.layout().server_certificate()).expect("the domain has one");
    let der = CertificateDer::from_pem_slice(&pem).expect("a certificate");
    assert!(Holder::of(&der).is_err() && Holder::of(b"nothing").is_err());
}

/// On a machine that holds credentials and not the authority, somebody else renews certificates.
#[test]
fn fg_08_without_the_authority_of_clients_no_certificate_is_made_again() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = domain(scratch.path());
    let issued = domain
        .issue(Role::Operator, "o", None, HOUR, now())
        .expect("a fresh name");
    let file = ClientFile::beside(&issued.credentials);
    std::fs::remove_file(file.path()).expect("it was there");
    std::fs::remove_file(domain.layout().clients_key()).expect("it was there");
    let made = domain.refresh_certificate(&issued.credentials, HOUR, now());
    assert!(!made.expect("that is no error") && !file.exists());
}

#[test]
fn tl_28_fg_08_a_machine_takes_a_certificate_for_its_new_key_as_a_worker_alone() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = domain(scratch.path());
    let (layout, run) = (domain.layout(), "demo".parse().expect("a name"));
    domain
        .issue(Role::Worker, "w1", Some(&run), HOUR, now())
        .expect("a fresh name");
    let heir = Heir::prepare(layout, "w1").expect("it is a worker");
    let asked = heir.question(domain.trust().domain.as_str(), now());
    let asked = asked.successor.expect("it was asked for");
    let old = layout.issued().find(heir.held().public());
    let mut new = old.expect("it reads").expect("it was issued");
    new.public = asked.worker.clone();
    let issuer = TokenIssuer::open(&layout.issuer()).expect("its keys");
    let authority = ClientAuthority::read(&layout.clients_key()).expect("its key");
    let made = |key: &PublicKey, role| {
        let made = authority.certify(key, role, new.ends, now());
        made.expect("a key")
    };
    let accept = |certificate: String| {
        heir.accept(&RenewalReply {
            v: V,
            token: issuer.sign(&new, new.ends, now()).expect("a token"),
            ends: new.ends,
            certificate: Some(certificate),
        })
    };
    for foreign in [
        "none".to_owned(),
        made(heir.held().public(), Role::Worker),
        made(&new.public, Role::Operator),
    ] {
        let refused = accept(foreign).expect_err("it is not the new key's");
        assert_eq!(refused.code(), Code::SuccessorOther);
    }
    accept(made(&new.public, Role::Worker)).expect("it is ours");
    let files = IdentityFiles {
        credentials: layout.credentials("w1"),
        audit_key: Some(layout.audit_key("w1")),
    };
    let taken = files.take_successor(now()).expect("it is whole");
    assert_eq!(taken.as_ref(), Some(&new.public));
    let shown = ClientFile::beside(&files.credentials).holder();
    assert_eq!(shown.expect("it was taken too").key, new.public);
}
