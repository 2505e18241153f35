//! `auth.mutual_tls`: what each process checks about its certificate before it connects.

use std::fs;
use std::path::PathBuf;

use identity::domain::{Domain, InitOptions, Issued};
use identity::{ClientAuthority, ClientFile, Credentials};
use runtime::auth::{AuthConfig, Exception, validate};
use runtime::{Material, Materials, Origins, clock};
use schemas::member::Layer;
use schemas::permission::Role;
use schemas::{Code, Millis, UnixMillis};

const HOUR: Millis = Millis::from_secs(3600);

fn mutual() -> AuthConfig {
    AuthConfig {
        mutual_tls: true,
        ..AuthConfig::default()
    }
}

fn refusals(config: &AuthConfig, items: Vec<Material>) -> Vec<(Code, String)> {
    let materials = Materials {
        items,
        now: clock::now(),
    };
    let checked = validate(config, &materials, &Origins::default());
    let refusals = checked.err().unwrap_or_default().into_iter();
    refusals
        .map(|refusal| (refusal.code, refusal.detail))
        .collect()
}

fn credentials(issued: &Issued) -> Vec<Material> {
    vec![Material::Credentials {
        key: "bus.credentials",
        path: issued.credentials.clone(),
    }]
}

fn only(found: Vec<(Code, String)>) -> (Code, String) {
    let [one] = &found[..] else {
        panic!("one refusal, not {found:?}");
    };
    one.clone()
}

#[test]
fn fg_08_a_process_needs_a_certificate_of_its_own_that_holds_now() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let options = InitOptions {
        mutual_tls: true,
        ..InitOptions::default()
    };
    let now = clock::now();
    let domain = Domain::init(&scratch.path().join("d"), &options, now).expect("a new domain");
    let issue = |name| {
        let issued = domain.issue(Role::Auditor, name, None, HOUR, now);
        issued.expect("a fresh name")
    };
    let (a, b) = (issue("a"), issue("b"));
    let file = ClientFile::beside(&a.credentials);
    let looked = |config: &AuthConfig| refusals(config, credentials(&a));
    assert_eq!(looked(&mutual()), []);

    let authority = ClientAuthority::read(&domain.layout().clients_key()).expect("its key");
    let own = Credentials::read(&a.credentials).expect("just issued");
    for (from, words) in [
        (UnixMillis(now.get() - 4 * HOUR.get()), "ended at"),
        (now.after(Millis(4 * HOUR.get())), "is not valid before"),
    ] {
        let made = authority.certify(&a.public, Role::Auditor, from.after(HOUR), from);
        let made = made.expect("a key");
        file.write(&own, &made).expect("the folder takes files");
        let (code, said) = only(looked(&mutual()));
        assert_eq!(code, Code::ClientCertificateExpired, "{said}");
        assert!(
            said.contains(words) && said.contains(a.public.as_str()),
            "{said}"
        );
    }
    fs::copy(ClientFile::beside(&b.credentials).path(), file.path()).expect("it is there");
    let (code, said) = only(looked(&mutual()));
    assert_eq!(code, Code::ClientCertificateOther, "{said}");
    assert!(said.contains(b.public.as_str()), "{said}");
    fs::write(file.path(), "x").expect("it is ours");
    assert_eq!(only(looked(&mutual())).0, Code::CertificateInvalid);
    fs::remove_file(file.path()).expect("it was there");
    let (code, said) = only(looked(&mutual()));
    assert_eq!(code, Code::ClientCertificateMissing, "{said}");
    assert!(said.contains("auth.mutual_tls"), "{said}");

    // Nothing of this is asked for otherwise, or on a layer that is open.
    assert_eq!(looked(&AuthConfig::default()), []);
    let open = AuthConfig {
        exceptions: vec![Exception {
            layer: Layer::Bus,
            reason: "a test".to_owned(),
        }],
        ..mutual()
    };
    assert_eq!(looked(&open), []);
    let contradiction = AuthConfig {
        require_auth: false,
        ..mutual()
    };
    assert_eq!(only(looked(&contradiction)).0, Code::ConfigInvalid);

    let clients = |path: PathBuf| {
        let key = "store_server.tls_clients";
        vec![Material::Clients { key, path }]
    };
    let (code, said) = only(refusals(&mutual(), clients(PathBuf::new())));
    assert_eq!(code, Code::CredentialMissing, "{said}");
    assert!(said.contains("store_server.tls_clients"), "{said}");
    assert_eq!(refusals(&mutual(), clients(domain.layout().clients())), []);
    assert_eq!(
        refusals(&AuthConfig::default(), clients(PathBuf::new())),
        []
    );
    let key = domain.layout().clients_key();
    let (code, _) = only(refusals(&AuthConfig::default(), clients(key)));
    assert_eq!(
        code,
        Code::CertificateInvalid,
        "what is there must be usable"
    );
}
