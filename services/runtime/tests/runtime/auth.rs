//! The rows LA-01 to LA-06 and LA-09 of the requirements, against real files of a real trust
//! domain.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use identity::domain::{Domain, InitOptions, LIFETIME_DEFAULT};
use runtime::auth::{AuthConfig, Exception, LayerSwitches, validate};
use runtime::{Material, Materials, Origins, clock};
use schemas::member::Layer;
use schemas::permission::Role;
use schemas::{Code, Refusal, UnixMillis};

struct Scene {
    scratch: tempfile::TempDir,
    domain: Domain,
    credentials: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let now = clock::now();
        let domain = Domain::init(&scratch.path().join("domain"), &InitOptions::default(), now)
            .expect("a new domain");
        let issued = domain
            .issue(
                Role::Coordinator,
                "coordinator",
                None,
                LIFETIME_DEFAULT,
                now,
            )
            .expect("issued");
        Self {
            credentials: issued.credentials,
            scratch,
            domain,
        }
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.scratch.path().join(name);
        fs::write(&path, text).expect("the scratch folder takes files");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("it is ours");
        path
    }

    fn materials(&self, bus: &str, credentials: &Path) -> Materials {
        let layout = self.domain.layout();
        let items = vec![
            Material::BusAddress {
                key: "bus.url",
                url: bus.into(),
            },
            Material::Credentials {
                key: "bus.credentials",
                path: credentials.into(),
            },
            Material::Authority {
                key: "bus.ca",
                path: layout.ca(),
                layer: Layer::Bus,
            },
            Material::Trust {
                key: "keys.trust",
                path: layout.trust(),
            },
            Material::ManifestKey {
                key: "keys.manifest",
                path: layout.manifest_key(),
            },
            Material::StoreKeys {
                key: "store.keys",
                path: layout.store_keys(),
            },
        ];
        Materials {
            items,
            now: clock::now(),
        }
    }
}

fn check(config: &AuthConfig, materials: &Materials) -> Result<Vec<Layer>, Vec<Refusal>> {
    let posture = validate(config, materials, &Origins::default())?;
    Ok(posture.open.into_iter().map(|open| open.layer).collect())
}

fn codes(result: Result<Vec<Layer>, Vec<Refusal>>) -> Vec<Code> {
    result
        .expect_err("something is wrong")
        .into_iter()
        .map(|refusal| refusal.code)
        .collect()
}

const TLS: &str = "tls://127.0.0.1:4222";

fn exception(layer: Layer, reason: &str) -> AuthConfig {
    AuthConfig {
        exceptions: vec![Exception {
            layer,
            reason: reason.into(),
        }],
        ..AuthConfig::default()
    }
}

#[test]
fn la_01_the_umbrella_implies_all_layers_and_only_an_exception_relaxes_one() {
    let scene = Scene::new();
    let good = scene.materials(TLS, &scene.credentials);
    assert_eq!(check(&AuthConfig::default(), &good), Ok(vec![]));
    let none = scene.materials(TLS, Path::new(""));
    assert_eq!(
        codes(check(&AuthConfig::default(), &none)),
        [Code::CredentialMissing]
    );
    let off = LayerSwitches {
        bus: Some(false),
        ..LayerSwitches::default()
    };
    let switched = AuthConfig {
        layers: off.clone(),
        ..AuthConfig::default()
    };
    assert_eq!(codes(check(&switched, &good)), [Code::ConfigInvalid]);
    let explained = AuthConfig {
        layers: off,
        ..exception(Layer::Bus, "a test")
    };
    assert_eq!(check(&explained, &none), Ok(vec![Layer::Bus]));
    assert_eq!(
        codes(check(&exception(Layer::Bus, "  "), &good)),
        [Code::ConfigInvalid]
    );
    let both = LayerSwitches {
        bus: Some(true),
        ..LayerSwitches::default()
    };
    let contradiction = AuthConfig {
        layers: both,
        ..exception(Layer::Bus, "a test")
    };
    assert_eq!(codes(check(&contradiction, &good)), [Code::ConfigInvalid]);
}

#[test]
fn la_02_ls_09_missing_empty_and_blank_are_the_same() {
    let scene = Scene::new();
    let blank = scene.file("blank.creds", " \n\t\n");
    let empty = scene.file("empty.creds", "");
    let absent = scene.scratch.path().join("none.creds");
    for path in [Path::new(""), Path::new("  "), &blank, &empty, &absent] {
        let result = check(&AuthConfig::default(), &scene.materials(TLS, path));
        assert_eq!(
            codes(result),
            [Code::CredentialMissing],
            "{}",
            path.display()
        );
    }
    let no_address = scene.materials(" ", &scene.credentials);
    assert_eq!(
        codes(check(&AuthConfig::default(), &no_address)),
        [Code::CredentialMissing]
    );
}

#[test]
fn la_03_what_is_not_required_may_be_absent_and_shows_as_open() {
    let scene = Scene::new();
    let open = AuthConfig {
        require_auth: false,
        ..AuthConfig::default()
    };
    assert_eq!(
        check(
            &open,
            &scene.materials("nats://127.0.0.1:4222", Path::new(""))
        ),
        Ok(Layer::ALL.to_vec())
    );
    let one = LayerSwitches {
        bus: Some(true),
        ..LayerSwitches::default()
    };
    let only_bus = AuthConfig {
        layers: one,
        ..open
    };
    let result = check(&only_bus, &scene.materials(TLS, Path::new("")));
    assert_eq!(codes(result), [Code::CredentialMissing]);
    let result = check(&only_bus, &scene.materials(TLS, &scene.credentials));
    assert_eq!(
        result,
        Ok(vec![Layer::Bulk, Layer::Manifests, Layer::Enrolment])
    );
}

#[test]
fn la_04_half_a_pair_is_an_error_whether_required_or_not() {
    let scene = Scene::new();
    let text = fs::read_to_string(&scene.credentials).expect("just issued");
    let half = scene.file(
        "half.creds",
        &text[..text.find("-----BEGIN USER").expect("it has both blocks")],
    );
    let open = AuthConfig {
        require_auth: false,
        ..AuthConfig::default()
    };
    for config in [AuthConfig::default(), open] {
        assert_eq!(
            codes(check(&config, &scene.materials(TLS, &half))),
            [Code::CredentialHalf]
        );
        let layout = scene.domain.layout();
        let pair = Material::Certificate {
            keys: ["tls.certificate", "tls.key"],
            certificate: layout.server_certificate(),
            private_key: PathBuf::new(),
            layer: Layer::Bulk,
        };
        let materials = Materials {
            items: vec![pair],
            now: clock::now(),
        };
        assert_eq!(codes(check(&config, &materials)), [Code::CredentialHalf]);
    }
}

#[test]
fn la_05_malformed_is_found_at_start() {
    let scene = Scene::new();
    let odd = scene.file("odd.creds", "not a credential");
    let result = check(&AuthConfig::default(), &scene.materials(TLS, &odd));
    assert_eq!(codes(result), [Code::CredentialMalformed]);
    let mut materials = scene.materials(TLS, &scene.credentials);
    materials.items.push(Material::ManifestKey {
        key: "keys.manifest",
        path: odd,
    });
    assert_eq!(
        codes(check(&AuthConfig::default(), &materials)),
        [Code::CredentialMalformed]
    );
    let mut late = scene.materials(TLS, &scene.credentials);
    late.now = late.now.after(schemas::Millis::from_secs(40 * 24 * 3600));
    assert_eq!(
        codes(check(&AuthConfig::default(), &late)),
        [Code::CredentialExpired]
    );
}

/// A certificate that has expired, or is not valid yet, is found before anything is connected; one
/// that expires soon is announced.
#[test]
fn the_time_of_certificates_is_looked_at_when_the_configuration_is() {
    let scene = Scene::new();
    let layout = scene.domain.layout();
    let served = Material::Certificate {
        keys: ["tls.certificate", "tls.key"],
        certificate: layout.server_certificate(),
        private_key: layout.server_key(),
        layer: Layer::Bulk,
    };
    let authority = Material::Authority {
        key: "bus.ca",
        path: layout.ca(),
        layer: Layer::Bus,
    };
    let now = clock::now();
    let day = 24 * 3_600_000;
    let years = 11 * 365 * day;
    for (item, at) in [
        (served.clone(), now.get() + 31 * day),
        (served.clone(), now.get() - day),
        (authority.clone(), now.get() + years),
        (authority.clone(), now.get() - day),
    ] {
        let materials = Materials {
            items: vec![item],
            now: UnixMillis(at),
        };
        assert_eq!(
            codes(check(&AuthConfig::default(), &materials)),
            [Code::CertificateExpired],
            "{materials:?}"
        );
    }
    let materials = Materials {
        items: vec![served, authority],
        now,
    };
    assert_eq!(check(&AuthConfig::default(), &materials), Ok(vec![]));
    let notices = |at: u64| {
        let endings = materials.endings();
        endings
            .iter()
            .filter_map(|ending| ending.notice(UnixMillis(at)))
            .count()
    };
    assert_eq!((notices(now.get()), notices(now.get() + 25 * day)), (0, 1));
}

#[test]
fn la_06_sample_secrets_need_loopback_and_a_demo() {
    let scene = Scene::new();
    let pair = |name: &str, secret: &str| format!("{{\"id\":\"{name}\",\"secret\":\"{secret}\"}}");
    let text = format!(
        "{{\"v\":1,\"admin\":{},\"put\":{},\"get\":{}}}",
        pair("minioadmin", "minioadmin"),
        pair("put", "0123456789abcdef0"),
        pair("get", "0123456789abcdef1")
    );
    let sample = scene.file("keys.json", &text);
    let materials = |url: &str| Materials {
        items: vec![
            Material::StoreAddress {
                key: "store.url",
                url: url.into(),
            },
            Material::StoreKeys {
                key: "store.keys",
                path: sample.clone(),
            },
        ],
        now: clock::now(),
    };
    let demo = AuthConfig {
        demo: true,
        ..AuthConfig::default()
    };
    assert_eq!(
        codes(check(
            &AuthConfig::default(),
            &materials("https://127.0.0.1:9000")
        )),
        [Code::SampleSecret]
    );
    assert_eq!(
        codes(check(&demo, &materials("https://10.0.0.1:9000"))),
        [Code::SampleSecret]
    );
    assert_eq!(
        check(&demo, &materials("https://127.0.0.1:9000")),
        Ok(vec![])
    );
}

#[test]
fn la_07_tl_02_plaintext_is_refused() {
    let scene = Scene::new();
    let plain = |url| scene.materials(url, &scene.credentials);
    for url in [
        "nats://127.0.0.1:4222",
        "nats://10.0.0.1:4222",
        "tls://127.0.0.1:4222,nats://127.0.0.1:4223",
    ] {
        assert_eq!(
            codes(check(&AuthConfig::default(), &plain(url))),
            [Code::PlaintextRefused],
            "{url}"
        );
    }
    let open = AuthConfig {
        require_auth: false,
        ..AuthConfig::default()
    };
    assert!(check(&open, &plain("nats://127.0.0.1:4222")).is_ok());
    assert_eq!(
        codes(check(&open, &plain("nats://10.0.0.1:4222"))),
        [Code::PlaintextRefused]
    );
    assert!(
        check(
            &exception(Layer::Bus, "an isolated network"),
            &plain("nats://10.0.0.1:4222")
        )
        .is_ok()
    );
}

/// An exception for the store opens the store's plane and nothing else, and no other exception
/// opens it.
#[test]
fn fg_09_plaintext_can_be_allowed_for_the_store_alone() {
    let scene = Scene::new();
    let plain_store = |bus: &str, credentials: &Path| {
        let mut materials = scene.materials(bus, credentials);
        materials.items.push(Material::StoreAddress {
            key: "store.url",
            url: "http://127.0.0.1:9000".into(),
        });
        materials
    };
    let (bulk, good) = (
        exception(Layer::Bulk, "a sealed network"),
        plain_store(TLS, &scene.credentials),
    );
    assert_eq!(
        codes(check(&AuthConfig::default(), &good)),
        [Code::PlaintextRefused],
        "closed by default"
    );
    assert_eq!(check(&bulk, &good), Ok(vec![Layer::Bulk]));
    let plain_bus = "nats://127.0.0.1:4222";
    assert_eq!(
        codes(check(&bulk, &plain_store(plain_bus, &scene.credentials))),
        [Code::PlaintextRefused]
    );
    for layer in [Layer::Bus, Layer::Manifests, Layer::Enrolment] {
        assert_eq!(
            codes(check(&exception(layer, "a sealed network"), &good)),
            [Code::PlaintextRefused],
            "{layer:?}"
        );
    }
    // The credentials that vouch for digests are required as before.
    assert_eq!(
        codes(check(&bulk, &plain_store(TLS, Path::new("")))),
        [Code::CredentialMissing]
    );
    for (place, absent) in [
        (
            2,
            Material::Authority {
                key: "bus.ca",
                path: PathBuf::new(),
                layer: Layer::Bus,
            },
        ),
        (
            3,
            Material::Trust {
                key: "keys.trust",
                path: PathBuf::new(),
            },
        ),
        (
            4,
            Material::ManifestKey {
                key: "keys.manifest",
                path: PathBuf::new(),
            },
        ),
    ] {
        let mut materials = plain_store(TLS, &scene.credentials);
        materials.items[place] = absent;
        assert_eq!(
            codes(check(&bulk, &materials)),
            [Code::CredentialMissing],
            "{place}"
        );
    }
}

/// A token without TLS protects nothing: the layer counts as open, and every start logs that.
#[test]
fn ls_06_credentials_over_plaintext_show_as_an_open_layer() {
    let scene = Scene::new();
    let config = exception(Layer::Bus, "an isolated network");
    let plain = scene.materials("nats://10.0.0.1:4222", &scene.credentials);
    assert_eq!(check(&config, &plain), Ok(vec![Layer::Bus]));
}

#[test]
fn la_09_an_error_names_the_switch_and_where_it_was_set() {
    let scene = Scene::new();
    let set = vec!["auth.require_auth=true".to_owned()];
    let args = runtime::ConfigArgs {
        set,
        ..runtime::ConfigArgs::default()
    };
    #[derive(Default, serde::Serialize, serde::Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Config {
        auth: AuthConfig,
    }
    let loaded =
        runtime::config::load_from::<Config>(&args, &[], std::iter::empty()).expect("valid");
    let materials = scene.materials(TLS, Path::new(""));
    let refusals =
        validate(&loaded.value.auth, &materials, &loaded.origins).expect_err("no credentials");
    assert_eq!(
        refusals[0].detail,
        "bus.credentials is not set; auth.require_auth (flag --set auth.require_auth) demands it"
    );
    let refusals = validate(&AuthConfig::default(), &materials, &Origins::default())
        .expect_err("no credentials");
    assert!(
        refusals[0]
            .detail
            .ends_with("auth.require_auth (default) demands it"),
        "{}",
        refusals[0].detail
    );
}

#[test]
fn la_01_the_folder_of_records_is_demanded_unless_enrolment_is_open() {
    let scene = Scene::new();
    let with = |path: PathBuf| {
        let mut materials = scene.materials(TLS, &scene.credentials);
        let key = "keys.issued";
        materials.items.push(Material::Records { key, path });
        materials
    };
    let issued = scene.domain.layout().issued().folder().to_owned();
    let here = with(issued.clone());
    assert_eq!(check(&AuthConfig::default(), &here), Ok(vec![]));
    let nowhere = with(issued.join("nowhere"));
    for (materials, code) in [
        (&nowhere, Code::CredentialMissing),
        (&with(PathBuf::new()), Code::CredentialMissing),
        (&with(scene.file("a-file", "x")), Code::CredentialUnreadable),
    ] {
        assert_eq!(codes(check(&AuthConfig::default(), materials)), [code]);
        let other = exception(Layer::Bulk, "a test");
        assert_eq!(codes(check(&other, materials)), [code]);
    }
    let open = exception(Layer::Enrolment, "it lies elsewhere");
    assert_eq!(check(&open, &nowhere), Ok(vec![Layer::Enrolment]));
}
