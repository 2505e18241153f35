//! TLS material in real handshakes, in memory.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use identity::secret::write_private;
use identity::tls::{
    Authority, LEAF_DAYS, TlsError, check_authority, check_lifetime, client_config,
    client_config_reading, install_provider, lifetimes, server_config,
};
use identity::{CertificateRefused, ClientFile};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair,
};
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection,
    SupportedProtocolVersion,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use schemas::{Code, UnixMillis};

/// rustls compares with the machine's clock.
fn now() -> UnixMillis {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("the clock is past 1970");
    UnixMillis(since.as_millis().try_into().expect("it is not that late"))
}

fn put(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    write_private(&path, text.as_bytes()).expect("the folder takes files");
    path
}

/// Runs a handshake to its end; returns the protocol that both chose.
fn handshake(
    ca: &Path,
    certificate: &Path,
    key: &Path,
    host: &str,
) -> Result<Vec<u8>, rustls::Error> {
    let server = server_config(certificate, key).expect("a certificate and its key");
    let ca = std::fs::read(ca).expect("the authority's file");
    shake_hands(client_config(&ca).expect("a certificate"), server, host)
}

/// A client that trusts this authority and speaks this version alone.
pub(crate) fn client_of_version(
    ca: &[u8],
    version: &'static SupportedProtocolVersion,
) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(ca).expect("a certificate"))
        .expect("of an authority");
    let builder =
        ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    let builder = builder
        .with_protocol_versions(&[version])
        .expect("a version that ring speaks");
    builder.with_root_certificates(roots).with_no_client_auth()
}

fn shake_hands(
    client: ClientConfig,
    server: ServerConfig,
    host: &str,
) -> Result<Vec<u8>, rustls::Error> {
    let name = host.to_owned().try_into().expect("a host name");
    let mut client = ClientConnection::new(Arc::new(client), name)?;
    let mut server = ServerConnection::new(Arc::new(server))?;
    while client.is_handshaking() || server.is_handshaking() {
        let mut wire = Vec::new();
        client.write_tls(&mut wire).expect("memory takes bytes");
        server
            .read_tls(&mut wire.as_slice())
            .expect("memory gives bytes");
        server.process_new_packets()?;
        let mut wire = Vec::new();
        server.write_tls(&mut wire).expect("memory takes bytes");
        client
            .read_tls(&mut wire.as_slice())
            .expect("memory gives bytes");
        client.process_new_packets()?;
    }
    Ok(client.alpn_protocol().unwrap_or_default().to_vec())
}

/// A process that lives through a rotation of the authority asks for no restart.
#[test]
fn tl_28_a_client_reads_its_authorities_at_every_handshake() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let made = |name: &str| {
        let (authority, ca) = Authority::generate(now()).expect("randomness");
        let made = authority.certify(&[], now()).expect("no names");
        let certificate = put(scratch.path(), &format!("{name}.pem"), &made.certificate);
        let key = put(scratch.path(), &format!("{name}.key"), &made.key);
        (ca.certificate, certificate, key)
    };
    let (old, new) = (made("old"), made("new"));
    let trusts = |authorities: &str| put(scratch.path(), "ca.pem", authorities);
    let ca = trusts(&old.0);
    let none = ClientFile::beside(&scratch.path().join("none.creds"));
    let client = client_config_reading(&ca, &none).expect("a certificate");
    let taken = |(_, certificate, key): &(String, PathBuf, PathBuf)| {
        let server = server_config(certificate, key).expect("its own files");
        shake_hands(client.clone(), server, "localhost").map(drop)
    };
    assert!(taken(&old).is_ok());
    let refused = taken(&new).expect_err("not yet");
    let id = lifetimes(&new.1).expect("a certificate")[0]
        .authority
        .clone();
    let id = id.expect("it names its authority");
    assert!(refused.to_string().contains(&id), "{refused}");
    trusts(&format!("{}{}", old.0, new.0));
    assert!(taken(&old).is_ok() && taken(&new).is_ok(), "both");
    trusts(&new.0);
    assert!(taken(&new).is_ok());
    assert!(taken(&old).is_err(), "it was taken out");
    // Without a usable file nobody is trusted.
    trusts("nothing");
    assert!(taken(&new).is_err());
}

#[test]
fn certificates_serve_this_machine_and_the_named_hosts_only() {
    install_provider();
    install_provider();
    assert!(rustls::crypto::CryptoProvider::get_default().is_some());
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let (authority, ca) = Authority::generate(now()).expect("randomness");
    let ca = put(scratch.path(), "ca.pem", &ca.certificate);
    let names = [
        "nats.example".to_owned(),
        "10.0.0.7".to_owned(),
        "localhost".to_owned(),
    ];
    let made = authority
        .certify(&names, now())
        .expect("names that certificates carry");
    let (certificate, key) = (
        put(scratch.path(), "s.pem", &made.certificate),
        put(scratch.path(), "s.key", &made.key),
    );
    for host in ["localhost", "127.0.0.1", "::1", "nats.example", "10.0.0.7"] {
        assert_eq!(
            handshake(&ca, &certificate, &key, host).expect("a name of this server"),
            b"http/1.1",
            "{host}"
        );
    }
    assert!(handshake(&ca, &certificate, &key, "other.example").is_err());
    assert!(
        authority
            .certify(&["not a host\u{e9}".into()], now())
            .is_err()
    );
}

#[test]
fn an_authority_lives_on_in_its_key() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let (_, ca) = Authority::generate(now()).expect("randomness");
    let again = Authority::from_key(&ca.key, now()).expect("its own key");
    let ca = put(scratch.path(), "ca.pem", &ca.certificate);
    let made = again
        .certify(&[], now())
        .expect("names that certificates carry");
    let (certificate, key) = (
        put(scratch.path(), "s.pem", &made.certificate),
        put(scratch.path(), "s.key", &made.key),
    );
    assert!(handshake(&ca, &certificate, &key, "localhost").is_ok());
}

#[test]
fn strangers_and_old_certificates_are_refused() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let (authority, ca) = Authority::generate(now()).expect("randomness");
    let (_, stranger) = Authority::generate(now()).expect("randomness");
    let (ca, stranger) = (
        put(scratch.path(), "ca.pem", &ca.certificate),
        put(scratch.path(), "x.pem", &stranger.certificate),
    );
    let made = authority
        .certify(&[], now())
        .expect("names that certificates carry");
    let (certificate, key) = (
        put(scratch.path(), "s.pem", &made.certificate),
        put(scratch.path(), "s.key", &made.key),
    );
    let refused = handshake(&stranger, &certificate, &key, "localhost").expect_err("a stranger");
    assert_eq!(
        CertificateRefused::of(&refused).map(CertificateRefused::code),
        Some(Code::CertificateUntrusted)
    );
    let long_ago = UnixMillis(now().get() - (LEAF_DAYS as u64 + 1) * 24 * 3600 * 1000);
    let old = authority
        .certify(&[], long_ago)
        .expect("names that certificates carry");
    let (certificate, key) = (
        put(scratch.path(), "o.pem", &old.certificate),
        put(scratch.path(), "o.key", &old.key),
    );
    let refused = handshake(&ca, &certificate, &key, "localhost").expect_err("an old certificate");
    let refused = CertificateRefused::of(&refused).expect("it says why");
    assert_eq!(refused.code(), Code::ServerCertificateExpired);
    let ended = UnixMillis(long_ago.get() / 1000 * 1000 + LEAF_DAYS as u64 * 24 * 3600 * 1000);
    let text = refused.to_string();
    assert!(
        text.contains("issued to localhost, 127.0.0.1, ::1, ended at "),
        "{text}"
    );
    assert!(
        text.contains(&schemas::text::Time(ended).to_string()),
        "{text}"
    );
}

/// An authority, and a certificate for localhost that it made for clients alone, with its key.
fn certified_for_clients(folder: &Path) -> (PathBuf, PathBuf, PathBuf) {
    let (_, ca) = Authority::generate(now()).expect("randomness");
    let mut named = CertificateParams::default();
    named.distinguished_name = DistinguishedName::new();
    let name = "diloco private authority";
    named.distinguished_name.push(DnType::CommonName, name);
    let signer = Issuer::new(named, KeyPair::from_pem(&ca.key).expect("a key"));
    let mut wanted = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
    wanted.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let own = KeyPair::generate().expect("the generator works");
    let made = wanted.signed_by(&own, &signer).expect("a certificate");
    (
        put(folder, "for-clients-ca.pem", &ca.certificate),
        put(folder, "for-clients.pem", &made.pem()),
        put(folder, "for-clients.key", &own.serialize_pem()),
    )
}

/// However deep a refusal lies in the errors of clients, its words and its code are found.
#[test]
fn what_is_wrong_with_a_servers_certificate_is_told_apart() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let (authority, ca) = Authority::generate(now()).expect("randomness");
    let (_, stranger) = Authority::generate(now()).expect("randomness");
    let (ca, stranger) = (
        put(scratch.path(), "ca.pem", &ca.certificate),
        put(scratch.path(), "x.pem", &stranger.certificate),
    );
    let made = |at: UnixMillis, name: &str| {
        let made = authority
            .certify(&[], at)
            .expect("names that certificates carry");
        (
            put(scratch.path(), name, &made.certificate),
            put(scratch.path(), &format!("{name}.key"), &made.key),
        )
    };
    let (certificate, key) = made(now(), "now.pem");
    let (early, early_key) = made(UnixMillis(now().get() + 7_200_000), "early.pem");
    let (clients, of_a_client, of_a_client_key) = certified_for_clients(scratch.path());
    for (error, code, words) in [
        (
            handshake(&stranger, &certificate, &key, "localhost"),
            Code::CertificateUntrusted,
            "no authority that is trusted",
        ),
        (
            handshake(&ca, &certificate, &key, "elsewhere"),
            Code::CertificateUntrusted,
            "is not for elsewhere",
        ),
        (
            handshake(&ca, &early, &early_key, "localhost"),
            Code::ServerCertificateExpired,
            "is not valid before 2",
        ),
        (
            handshake(&clients, &of_a_client, &of_a_client_key, "localhost"),
            Code::CertificateUntrusted,
            "is not for servers",
        ),
    ] {
        let error = std::io::Error::other(std::io::Error::other(error.expect_err(words)));
        let refused = CertificateRefused::of(&error).expect("it says why");
        assert!(
            refused.code() == code && refused.to_string().contains(words),
            "{refused}"
        );
    }
    assert_eq!(
        CertificateRefused::of(&std::io::Error::other("something else")),
        None
    );
}

#[test]
fn a_file_whose_time_is_over_is_named_with_its_day() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let (authority, ca) = Authority::generate(now()).expect("randomness");
    let made = authority
        .certify(&[], now())
        .expect("names that certificates carry");
    let files = [
        put(scratch.path(), "ca.pem", &ca.certificate),
        put(scratch.path(), "s.pem", &made.certificate),
    ];
    for path in &files {
        let [facts] = &lifetimes(path).expect("a certificate")[..] else {
            panic!("one")
        };
        check_lifetime(path, now()).expect("it is new");
        for at in [facts.ends, UnixMillis(facts.begins.get() - 1)] {
            let error = check_lifetime(path, at).expect_err("outside of its time");
            let (text, day) = (error.to_string(), schemas::text::Time(at).to_string());
            assert_eq!(error.code(), Code::CertificateExpired);
            assert!(
                text.contains(path.to_str().expect("text")) && text.contains(&day[..10]),
                "{text}"
            );
        }
    }
}

#[test]
fn odd_files_are_refused() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let (authority, ca) = Authority::generate(now()).expect("randomness");
    let made = authority
        .certify(&[], now())
        .expect("names that certificates carry");
    let (certificate, key) = (
        put(scratch.path(), "s.pem", &made.certificate),
        put(scratch.path(), "s.key", &made.key),
    );
    let empty = put(scratch.path(), "empty.pem", "");
    let other = put(scratch.path(), "other.key", &ca.key);
    assert!(matches!(
        check_authority(&empty),
        Err(TlsError::Missing { .. })
    ));
    assert!(check_authority(&certificate).is_ok());
    assert!(matches!(
        server_config(&empty, &key),
        Err(TlsError::Missing { .. })
    ));
    assert!(matches!(
        server_config(&certificate, &empty),
        Err(TlsError::Missing { .. })
    ));
    let mixed = server_config(&certificate, &other).expect_err("the key of another certificate");
    assert_eq!(mixed.code(), Code::CertificateInvalid);
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).expect("it is ours");
    assert_eq!(
        server_config(&certificate, &key)
            .expect_err("others read it")
            .code(),
        Code::CredentialExposed
    );
    let printed = format!("{made:?} {authority:?}");
    assert_eq!(printed, "Certified(..) Authority(..)");
}

#[test]
fn tl_21_servers_speak_nothing_older_than_tls_1_3() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let (authority, ca) = Authority::generate(now()).expect("randomness");
    let made = authority
        .certify(&[], now())
        .expect("names that certificates carry");
    let (certificate, key) = (
        put(scratch.path(), "s.pem", &made.certificate),
        put(scratch.path(), "s.key", &made.key),
    );
    let answers = |version| {
        let client = client_of_version(ca.certificate.as_bytes(), version);
        shake_hands(
            client,
            server_config(&certificate, &key).expect("a certificate and its key"),
            "localhost",
        )
    };
    assert!(answers(&TLS13).is_ok());
    let refused = answers(&TLS12).expect_err("an old version");
    assert!(
        matches!(refused, rustls::Error::PeerIncompatible(_)),
        "{refused}"
    );
}
