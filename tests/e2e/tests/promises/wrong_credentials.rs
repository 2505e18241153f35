//! Wrong credentials of every kind stop a process with a code, and before it connects where the
//! fault can be known.

mod of_the_store;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::future::join_all;
use harness::{Cluster, NatsServer, Options, PATIENCE};
use identity::claims::UserClaims;
use identity::jwt::{Subject, mint};
use identity::{ConnectionKey, Credentials, KeyKind, SigningKey};
use runtime::clock;
use runtime::exit::{EXIT_DENIED, EXIT_USAGE};
use schemas::permission::Role;
use schemas::{AccountId, Code, Millis, UnixMillis};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// A cluster whose services are tried one by one, with arguments that would make each of them work.
struct Trials {
    cluster: Cluster,
}

/// A service, and the configuration key that names its credentials.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Service {
    Worker,
    Coordinator,
    Audit,
    Registrar,
    Store,
}

impl Service {
    /// Those that connect to the broker.
    const ON_BUS: [Self; 4] = [
        Self::Worker,
        Self::Coordinator,
        Self::Audit,
        Self::Registrar,
    ];

    const fn program(self) -> &'static str {
        match self {
            Self::Worker => "diloco-worker",
            Self::Coordinator => "diloco-coordinator",
            Self::Audit => "diloco-audit",
            Self::Registrar => "diloco-registrar",
            Self::Store => "diloco-store",
        }
    }
}

impl Trials {
    async fn new() -> Self {
        let mut cluster = Cluster::bare(Options::default()).await;
        cluster.start_store().await;
        Self { cluster }
    }

    fn arguments(&self, service: Service) -> Vec<String> {
        match service {
            Service::Worker => self.cluster.worker_arguments("worker-0"),
            Service::Coordinator => self.cluster.coordinator_arguments("tried"),
            Service::Audit => self.cluster.audit_arguments(),
            Service::Registrar => self.cluster.registrar_arguments(),
            Service::Store => self.cluster.store_arguments(),
        }
    }

    /// Runs a service with some settings changed. Returns its exit status and everything that it
    /// printed.
    async fn ends(
        &self,
        service: Service,
        changes: &[(&str, &str)],
        more: &[&str],
    ) -> (Option<i32>, String) {
        let mut arguments = self.arguments(service);
        for (key, value) in changes {
            // If a key is set twice, the last value counts.
            arguments.extend(["--set".to_owned(), format!("{key}={value}")]);
        }
        arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let output = self
            .cluster
            .run_program(service.program(), &arguments, PATIENCE)
            .await;
        (output.status.code(), output.stderr + &output.stdout)
    }

    async fn assert_ends(
        &self,
        service: Service,
        changes: &[(&str, &str)],
        status: u8,
        code: Code,
    ) -> String {
        let (ended, text) = self.ends(service, changes, &[]).await;
        let as_expected = ended == Some(i32::from(status)) && text.contains(&code.to_string());
        assert!(
            as_expected,
            "{service:?} with {changes:?}: expected {status} and {code}, ended {ended:?} with\n{text}"
        );
        text
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.cluster.path(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    fn key(&self, kind: KeyKind, name: &str) -> SigningKey {
        let path = self
            .cluster
            .domain()
            .layout()
            .folder()
            .join(format!("issuer/{name}.nk"));
        SigningKey::read(kind, &path).unwrap()
    }

    /// Makes a worker's token by hand.
    fn mint(
        &self,
        account: AccountId,
        signer: &SigningKey,
        begins: Option<UnixMillis>,
        name: &str,
    ) -> PathBuf {
        let key = ConnectionKey::generate();
        let now = clock::now();
        let expires = Some(now.after(Millis::from_secs(7200)));
        let subject = Subject {
            name: "worker-0",
            key: key.public(),
            not_before: begins,
            expires,
        };
        let token = mint(
            &subject,
            UserClaims::of_role(account, vec!["run:demo".to_owned()]),
            signer,
            now,
        )
        .unwrap();
        let path = self.cluster.path(name);
        Credentials::new(token, key).unwrap().write(&path).unwrap();
        path
    }
}

fn shown(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The token and the seed of a credentials file, each with its frame.
fn halves(path: &Path) -> (String, String) {
    let text = fs::read_to_string(path).unwrap();
    let (token, seed) = text.split_once("\n\n").expect("the two parts are apart");
    (format!("{token}\n"), seed.to_owned())
}

#[tokio::test]
async fn la_02_a_missing_credential_stops_every_process_before_it_connects() {
    let trials = Trials::new().await;
    let blank = trials.write("blank.creds", " \n\t\n");
    let empty = trials.write("empty.creds", "");
    for service in Service::ON_BUS {
        for path in [Path::new("nowhere.creds"), &blank, &empty] {
            let text = trials
                .assert_ends(
                    service,
                    &[("bus.credentials", shown(path))],
                    EXIT_USAGE,
                    Code::CredentialMissing,
                )
                .await;
            // LA-09: the message says what required it, and where that was set.
            assert!(
                text.contains("auth.require_auth (default) demands it"),
                "{text}"
            );
            assert!(!text.contains("connected"), "{text}");
        }
        let changes = [
            ("bus.credentials", "nowhere.creds"),
            ("auth.layers.bus", "true"),
        ];
        let text = trials
            .assert_ends(service, &changes, EXIT_USAGE, Code::CredentialMissing)
            .await;
        assert!(
            text.contains("auth.layers.bus (flag --set auth.layers.bus) demands it"),
            "{text}"
        );
    }
    trials
        .assert_ends(
            Service::Worker,
            &[("bus.credentials", "")],
            EXIT_USAGE,
            Code::CredentialMissing,
        )
        .await;
    trials
        .assert_ends(
            Service::Coordinator,
            &[("store.keys", "nowhere")],
            EXIT_USAGE,
            Code::CredentialMissing,
        )
        .await;
    trials
        .assert_ends(
            Service::Worker,
            &[("worker.trust", "nowhere")],
            EXIT_USAGE,
            Code::CredentialMissing,
        )
        .await;
}

#[tokio::test]
async fn la_01_a_coordinator_without_the_list_of_credentials_needs_an_exception() {
    let trials = Trials::new().await;
    let nowhere = ("keys.issued", "nowhere");
    let service = Service::Coordinator;
    let text = trials
        .assert_ends(service, &[nowhere], EXIT_USAGE, Code::CredentialMissing)
        .await;
    assert!(text.contains(nowhere.0), "{text}");
    let file = trials.write("a-file", "x").display().to_string();
    let other = [(nowhere.0, file.as_str())];
    trials
        .assert_ends(service, &other, EXIT_USAGE, Code::CredentialUnreadable)
        .await;
    let open = "[{layer=\"enrolment\",reason=\"it lies elsewhere\"}]";
    let excepted = [nowhere, ("auth.exceptions", open)];
    let (status, text) = trials.ends(service, &excepted, &["--check-config"]).await;
    assert!(
        status == Some(0) && text.contains("it lies elsewhere"),
        "{status:?} {text}"
    );
}

#[tokio::test]
async fn la_03_what_is_not_required_is_absent_loudly_and_la_01_an_exception_has_a_reason() {
    let trials = Trials::new().await;
    for service in Service::ON_BUS {
        let open = [
            ("auth.require_auth", "false"),
            ("bus.credentials", "nowhere.creds"),
        ];
        let (status, text) = trials.ends(service, &open, &["--check-config"]).await;
        assert_eq!(status, Some(0), "{service:?}: {text}");
        assert!(
            text.contains(&Code::LayerOpen.to_string()) && text.contains("WARN"),
            "{service:?}: {text}"
        );
        assert!(
            text.contains("anyone who reaches the NATS port may read and publish"),
            "{service:?}: {text}"
        );

        let excepted = [
            ("auth.exceptions", "[{layer=\"bus\",reason=\"a test\"}]"),
            ("bus.credentials", "nowhere.creds"),
        ];
        let (status, text) = trials.ends(service, &excepted, &["--check-config"]).await;
        assert!(
            status == Some(0) && text.contains("a test"),
            "{service:?}: {status:?} {text}"
        );
        trials
            .assert_ends(
                service,
                &[("auth.layers.bus", "false")],
                EXIT_USAGE,
                Code::ConfigInvalid,
            )
            .await;
        let silent = [("auth.exceptions", "[{layer=\"bus\",reason=\" \"}]")];
        trials
            .assert_ends(service, &silent, EXIT_USAGE, Code::ConfigInvalid)
            .await;
    }
}

#[tokio::test]
async fn la_04_half_a_credential_is_an_error_whether_required_or_not() {
    let trials = Trials::new().await;
    let whole = trials.cluster.issue(Role::Worker, "worker-0").credentials;
    let (token, seed) = halves(&whole);
    let halves = [
        trials.write("token.creds", &token),
        trials.write("seed.creds", &seed),
    ];
    for service in Service::ON_BUS {
        for half in &halves {
            for required in ["true", "false"] {
                let changes = [
                    ("bus.credentials", shown(half)),
                    ("auth.require_auth", required),
                ];
                trials
                    .assert_ends(service, &changes, EXIT_USAGE, Code::CredentialHalf)
                    .await;
            }
        }
    }
}

#[tokio::test]
async fn la_05_a_malformed_or_exposed_credential_is_an_error_at_start() {
    let trials = Trials::new().await;
    let (a, b) = (
        trials.cluster.issue(Role::Worker, "a").credentials,
        trials.cluster.issue(Role::Worker, "b").credentials,
    );
    let mixed = format!("{}\n{}", halves(&a).0, halves(&b).1);
    let cut: String = fs::read_to_string(&a)
        .unwrap()
        .chars()
        .map(|c| if c == '.' { '-' } else { c })
        .collect();
    let files = [
        trials.write("mixed.creds", &mixed),
        trials.write("noise.creds", "no credentials"),
        trials.write("cut.creds", &cut),
    ];
    for service in Service::ON_BUS {
        for path in &files {
            let changes = [("bus.credentials", shown(path))];
            let text = trials
                .assert_ends(service, &changes, EXIT_USAGE, Code::CredentialMalformed)
                .await;
            assert!(
                !text.contains("eyJ") && !text.contains("no credentials"),
                "it shows what it read: {text}"
            );
        }
    }
    fs::set_permissions(&a, fs::Permissions::from_mode(0o644)).unwrap();
    let text = trials
        .assert_ends(
            Service::Worker,
            &[("bus.credentials", shown(&a))],
            EXIT_USAGE,
            Code::CredentialExposed,
        )
        .await;
    assert!(text.contains("chmod 600"), "{text}");
    let noise = shown(&files[1]).to_owned();
    for key in ["keys.trust", "keys.manifest", "keys.audit", "store.keys"] {
        trials
            .assert_ends(
                Service::Coordinator,
                &[(key, &noise)],
                EXIT_USAGE,
                Code::CredentialMalformed,
            )
            .await;
    }
    for key in ["worker.trust", "worker.audit_key"] {
        trials
            .assert_ends(
                Service::Worker,
                &[(key, &noise)],
                EXIT_USAGE,
                Code::CredentialMalformed,
            )
            .await;
    }
}

/// With good credentials nothing else would show that these doors stand open.
#[tokio::test]
async fn la_08_a_broker_or_a_store_that_serves_strangers_stops_every_process_that_needs_it() {
    let trials = Trials::new().await;
    let layout = trials.cluster.domain().layout();
    let (certificate, key) = (layout.server_certificate(), layout.server_key());
    let config = format!(
        "tls {{ cert_file: {certificate:?}, key_file: {key:?} }}\njetstream {{ store_dir: js }}\n"
    );
    let open = NatsServer::start(tempfile::tempdir().unwrap(), &config).await;
    let url = format!("tls://{}", open.address());
    for service in Service::ON_BUS {
        let text = trials
            .assert_ends(
                service,
                &[("bus.url", &url)],
                EXIT_USAGE,
                Code::StrangerServed,
            )
            .await;
        assert!(text.contains(&url), "{text}");
    }
    // A layer that is open on purpose is not tried.
    let changes = [
        ("bus.url", url.as_str()),
        ("auth.exceptions", "[{layer=\"bus\",reason=\"a trial\"}]"),
    ];
    let (_, text) = trials.ends(Service::Audit, &changes, &[]).await;
    assert!(!text.contains("DL0121"), "{text}");

    let store = public_store(&certificate, &key).await;
    for service in [Service::Coordinator, Service::Audit] {
        let served = Code::StrangerServed;
        let changes = [("store.url", store.as_str())];
        let text = trials
            .assert_ends(service, &changes, EXIT_USAGE, served)
            .await;
        assert!(text.contains(&store), "{text}");
    }
}

/// A store that answers every request with success, signed or not. Returns its address.
async fn public_store(certificate: &Path, key: &Path) -> String {
    let config = identity::tls::server_config(certificate, key).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut stream = BufReader::new(acceptor.accept(stream).await.unwrap());
                let mut line = String::new();
                while stream.read_line(&mut line).await.is_ok_and(|read| read > 0) {
                    if line == "\r\n" {
                        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                        stream.write_all(answer).await.unwrap();
                    }
                    line.clear();
                }
            });
        }
    });
    format!("https://127.0.0.1:{port}")
}

#[tokio::test]
async fn la_06_sample_secrets_and_la_07_tl_02_plaintext_addresses_are_refused() {
    let trials = Trials::new().await;
    let keys = fs::read_to_string(trials.cluster.domain().layout().store_keys()).unwrap();
    let mut keys: serde_json::Value = serde_json::from_str(&keys).unwrap();
    keys["admin"]["secret"] = "minioadmin".into();
    let sample = trials.write("sample-keys.json", &keys.to_string());
    let text = trials
        .assert_ends(
            Service::Coordinator,
            &[("store.keys", shown(&sample))],
            EXIT_USAGE,
            Code::SampleSecret,
        )
        .await;
    assert!(!text.contains("minioadmin"), "{text}");
    let plain = trials.cluster.bus_url().replace("tls://", "nats://");
    for service in Service::ON_BUS {
        trials
            .assert_ends(
                service,
                &[("bus.url", &plain)],
                EXIT_USAGE,
                Code::PlaintextRefused,
            )
            .await;
    }
    let output = trials
        .cluster
        .diloctl(&["--bus", &plain, "run", "ls"])
        .await;
    let told = output.stderr.contains(&Code::PlaintextRefused.to_string());
    assert!(
        !output.status.success() && told,
        "{} {}",
        output.status,
        output.stderr
    );
    let plain = trials.cluster.store_url().replace("https://", "http://");
    trials
        .assert_ends(
            Service::Coordinator,
            &[("store.url", &plain)],
            EXIT_USAGE,
            Code::PlaintextRefused,
        )
        .await;
}

#[tokio::test]
async fn tl_23_ls_01_wrong_signer_window_account_role_and_nobody_are_refused() {
    let trials = Trials::new().await;
    let strangers = Cluster::bare(Options::default()).await;
    let foreign = strangers.issue(Role::Worker, "worker-0").credentials;
    let domain = trials.cluster.domain();
    let past = UnixMillis(clock::now().get() - 60_000);
    let run = trials.cluster.run();
    let expired = domain
        .issue(
            Role::Worker,
            "expired",
            Some(run),
            Millis::from_secs(10),
            past,
        )
        .unwrap()
        .credentials;
    let signer = trials.key(KeyKind::Account, "role-worker");
    let tomorrow = Some(clock::now().after(Millis::from_secs(3600)));
    let early = trials.mint(domain.tenant().unwrap(), &signer, tomorrow, "early.creds");
    // A key that may sign workers of the tenant signed this token for the control account.
    let elsewhere = trials.mint(domain.control().unwrap(), &signer, None, "elsewhere.creds");
    // A key that no account names signed this token.
    let unknown = trials.mint(
        domain.tenant().unwrap(),
        &SigningKey::generate(KeyKind::Account),
        None,
        "unknown.creds",
    );
    let operator = trials.cluster.issue(Role::Operator, "operator").credentials;
    let tries = [
        (&foreign, EXIT_DENIED, Code::BusRefused),
        (&expired, EXIT_USAGE, Code::CredentialExpired),
        (&early, EXIT_USAGE, Code::CredentialExpired),
        (&elsewhere, EXIT_DENIED, Code::BusRefused),
        (&unknown, EXIT_DENIED, Code::BusRefused),
        (&operator, EXIT_DENIED, Code::BusDenied),
    ];
    // The tries run in parallel: the broker takes two seconds to refuse a credential that it does
    // not know.
    join_all(tries.map(async |(credentials, status, code)| {
        let state = trials
            .cluster
            .path("work")
            .join(credentials.file_stem().unwrap());
        let changes = [
            ("bus.credentials", shown(credentials)),
            ("worker.state", shown(&state)),
        ];
        trials
            .assert_ends(Service::Worker, &changes, status, code)
            .await;
    }))
    .await;
    let worker = trials.cluster.issue(Role::Worker, "worker-0").credentials;
    let changes = [("bus.credentials", shown(&worker))];
    for service in [Service::Coordinator, Service::Audit, Service::Registrar] {
        trials
            .assert_ends(service, &changes, EXIT_DENIED, Code::BusDenied)
            .await;
    }
    // A credential with the right role and run works, so each of those above is refused for its own
    // fault.
    let good = trials.mint(domain.tenant().unwrap(), &signer, None, "good.creds");
    trials.cluster.source(&good);
    let options =
        identity::source::connect_options(&trials.cluster.source(&good), &trials.cluster.tls());
    options
        .connect(trials.cluster.bus_url())
        .await
        .expect("the broker takes a token that is right in every part");
    let nobody = async_nats::ConnectOptions::new()
        .require_tls(true)
        .add_root_certificates(domain.layout().ca());
    let refused = nobody
        .connect(trials.cluster.bus_url())
        .await
        .expect_err("nobody is let in");
    assert_eq!(
        refused.kind(),
        async_nats::ConnectErrorKind::AuthorizationViolation
    );
}
