//! The files of nats-config, tried on the real server: `nats-server -t` accepts both configurations
//! once the generated part is there, and refuses them without it; a node that is started from
//! either serves clients with credentials and nobody else. The declarations of streams agree with
//! `schemas`.

#![expect(
    clippy::unwrap_used,
    reason = "a test program: a failed step is a failed test"
)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Output, Stdio};

use identity::domain::LIFETIME_DEFAULT;
use identity::{BrokerFiles, Domain, DomainLayout, InitOptions};
use runtime::{Bus, BusConfig, clock};
use schemas::Code;
use schemas::limits::{MESSAGE_BYTES_MAX, WORKERS_MAX};
use schemas::permission::Role;
use schemas::subject::{
    AUDIT_STREAM, EVENTS_STREAM_PREFIX, LEDGER_STREAM, Lane, SECURITY_STREAM, WORK_CONSUMER,
    WORK_STREAM,
};
use serde_json::Value;

fn config_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../nats-config")
}

fn nats_server() -> PathBuf {
    let given = std::env::var_os("NATS_SERVER_BIN")
        .filter(|path| !path.is_empty())
        .map(PathBuf::from);
    let path = given
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../.deps/nats/nats-server"));
    assert!(
        path.is_file(),
        "{} is missing: run `cargo xtask deps`",
        path.display()
    );
    path
}

/// A trust domain with the broker's configuration below it.
struct Copy {
    folder: tempfile::TempDir,
}

/// Configuration files below the domain's folder: for a single node, and for a node of a cluster.
const SINGLE: &str = ".diloco/broker/nats.conf";
const CLUSTERED: &str = ".diloco/broker/prod.conf";

impl Copy {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// Generates the files of `diloctl auth init`; port -1 lets the system choose.
    fn generate(&self) -> Domain {
        let now = clock::now();
        let domain = Domain::init(
            &self.folder.path().join(".diloco"),
            &InitOptions::default(),
            now,
        )
        .unwrap();
        domain
            .write_broker(&BrokerFiles::read(&config_folder()).unwrap(), now)
            .unwrap();
        domain.write_listen("127.0.0.1:-1").unwrap();
        domain
    }

    fn check(&self, name: &str, environment: &BTreeMap<&str, String>) -> Output {
        let mut command = Command::new(nats_server());
        command
            .args(["-t", "-c", name])
            .current_dir(self.folder.path())
            .env_clear()
            .envs(environment);
        command.output().unwrap()
    }

    /// Starts a node and waits until it is ready. Monitoring gets any port: `dev.conf` has none,
    /// and the one in `prod.conf` may be taken on this machine.
    fn start(&self, name: &str, environment: &BTreeMap<&str, String>) -> Node {
        let mut command = Command::new(nats_server());
        command
            .args(["-c", name, "-m", "-1"])
            .current_dir(self.folder.path())
            .env_clear()
            .envs(environment);
        let mut process = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(process.stderr.take().unwrap());
        // The server's log ends when the server does, so this neither waits for ever nor sleeps.
        let lines = output.by_ref().lines().map(Result::unwrap);
        let log = lines
            .take_while(|line| !line.contains("Server is ready"))
            .collect();
        Node {
            process,
            log,
            _output: output,
        }
    }

    fn production(&self) -> BTreeMap<&'static str, String> {
        let layout = DomainLayout::new(&self.folder.path().join(".diloco"));
        let text = |path: PathBuf| path.to_str().unwrap().to_owned();
        BTreeMap::from([
            ("NATS_NODE", "n1".to_owned()),
            ("NATS_LISTEN", "127.0.0.1:4222".to_owned()),
            ("NATS_CERT", text(layout.server_certificate())),
            ("NATS_KEY", text(layout.server_key())),
            ("NATS_CA", text(layout.ca())),
            ("NATS_DATA", self.path("data")),
            ("NATS_DATA_MAX", "100G".to_owned()),
            ("NATS_SYNC", "always".to_owned()),
            ("NATS_ACCOUNTS_DIR", self.path("accounts")),
            ("NATS_CLUSTER_LISTEN", "127.0.0.1:6222".to_owned()),
            ("NATS_ROUTE1", "nats://127.0.0.1:6222".to_owned()),
            ("NATS_ROUTE2", "nats://127.0.0.1:6223".to_owned()),
            ("NATS_ROUTE3", "nats://127.0.0.1:6224".to_owned()),
        ])
    }
}

/// A node that runs until this is dropped.
struct Node {
    process: Child,
    /// The lines that the node logged until it was ready.
    log: Vec<String>,
    /// Kept open: a server that cannot write its log ends.
    _output: BufReader<ChildStderr>,
}

impl Node {
    /// The address that the node listens on, found by the text before it in the log.
    fn address(&self, said: &str) -> &str {
        let found = self
            .log
            .iter()
            .find_map(|line| Some(line.split_once(said)?.1.trim()));
        found.unwrap_or_else(|| panic!("no {said:?} in:\n{}", self.log.join("\n")))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // A node that has ended by itself cannot be killed, which is no error.
        let _ended = self.process.kill();
        let _status = self.process.wait();
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout)
}

/// The answer of the server's monitoring.
fn monitored(address: &str, path: &str) -> Value {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
}

fn declaration(name: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(config_folder().join(name)).unwrap()).unwrap()
}

#[test]
fn the_committed_file_alone_is_refused_and_the_domains_own_is_valid() {
    let copy = Copy::new();
    let committed = config_folder().join("dev.conf");
    let before = copy.check(committed.to_str().unwrap(), &BTreeMap::new());
    assert!(
        !before.status.success() && said(&before).contains("generated"),
        "{}",
        said(&before)
    );
    copy.generate();
    let after = copy.check(SINGLE, &BTreeMap::new());
    assert!(after.status.success(), "{}", said(&after));
}

/// The broker reads relative paths from its working folder, so the configuration holds absolute
/// ones, which lead nowhere once the domain was moved.
#[test]
fn a_renamed_domain_is_refused_until_its_configuration_is_written_again() {
    let copy = Copy::new();
    copy.generate();
    let renamed = copy.folder.path().join("prod");
    fs::rename(copy.folder.path().join(".diloco"), &renamed).unwrap();
    let stale = copy.check("prod/broker/nats.conf", &BTreeMap::new());
    assert!(
        !stale.status.success() && said(&stale).contains("/.diloco/tls/server.pem"),
        "{}",
        said(&stale)
    );
    let domain = Domain::open(&renamed).unwrap();
    domain
        .write_broker(&BrokerFiles::read(&config_folder()).unwrap(), clock::now())
        .unwrap();
    let node = copy.start("prod/broker/nats.conf", &BTreeMap::new());
    assert!(renamed.join("nats").is_dir(), "{}", node.log.join("\n"));
    // The refused configuration has only made the folder for accounts' tokens, which the broker
    // makes as it reads the configuration.
    let old = copy.folder.path().join(".diloco");
    let left: Vec<_> = fs::read_dir(&old).unwrap().collect();
    assert!(old.join("accounts").is_dir() && left.len() == 1, "{left:?}");
}

#[test]
fn dev_conf_starts_with_jetstream_and_tls() {
    let copy = Copy::new();
    copy.generate();
    let node = copy.start(SINGLE, &BTreeMap::new());
    let log = node.log.join("\n");
    for part in ["TLS required for client connections", "Trusted Operators"] {
        assert!(log.contains(part), "no {part:?} in:\n{log}");
    }
    let state = monitored(node.address("Starting http monitor on "), "/jsz");
    assert_eq!(state["config"]["sync_always"], true, "{state}");
    assert_eq!(state["config"]["strict"], true, "{state}");
    assert!(copy.folder.path().join(".diloco/nats").is_dir(), "{log}");
}

/// A valid configuration may still let anybody in, so clients try this one.
#[tokio::test]
async fn a_node_of_prod_conf_serves_clients_with_credentials_and_nobody_else() {
    identity::tls::install_provider();
    let copy = Copy::new();
    let domain = copy.generate();
    let mut environment = copy.production();
    for name in ["NATS_LISTEN", "NATS_CLUSTER_LISTEN"] {
        environment.insert(name, "127.0.0.1:-1".to_owned());
    }
    let node = copy.start(CLUSTERED, &environment);
    let url = format!(
        "tls://{}",
        node.address("Listening for client connections on ")
    );
    let connect = async |credentials: PathBuf| {
        let config = BusConfig {
            url: url.clone(),
            credentials,
            ca: domain.layout().ca(),
        };
        Bus::connect("test", &config, clock::now()).await
    };

    let issued = domain
        .issue(
            Role::Operator,
            "operator",
            None,
            LIFETIME_DEFAULT,
            clock::now(),
        )
        .unwrap();
    let bus = connect(issued.credentials).await.unwrap();
    bus.round_trip().await.unwrap();
    let refused = connect(PathBuf::new())
        .await
        .expect_err("nobody has no credentials");
    assert_eq!(refused.code(), Code::BusRefused, "{refused}");
}

#[test]
fn prod_conf_is_valid_with_its_environment_and_names_what_is_missing() {
    let copy = Copy::new();
    copy.generate();
    let whole = copy.production();
    let output = copy.check(CLUSTERED, &whole);
    assert!(output.status.success(), "{}", said(&output));
    for name in whole.keys() {
        let mut less = whole.clone();
        less.remove(name);
        let output = copy.check(CLUSTERED, &less);
        assert!(
            !output.status.success() && said(&output).contains(name),
            "{name}: {}",
            said(&output)
        );
    }
}

#[test]
fn the_readme_names_every_variable() {
    let readme = fs::read_to_string(config_folder().join("README.md")).unwrap();
    for name in Copy::new()
        .production()
        .keys()
        .filter(|name| **name != "NATS_ROUTE2")
    {
        assert!(readme.contains(&format!("`{name}`")), "{name}");
    }
}

#[test]
fn limits_agree_with_schemas() {
    let limits = fs::read_to_string(config_folder().join("include/limits.conf")).unwrap();
    let value = |key: &str| {
        let line = limits
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{key}: ")))
            .unwrap();
        line.parse::<usize>().unwrap()
    };
    assert_eq!(value("max_payload"), MESSAGE_BYTES_MAX);
    assert!(value("max_connections") > WORKERS_MAX);
}

#[test]
fn declarations_name_what_schemas_names() {
    let subjects = |prefix: &str, rest: &str| serde_json::json!([format!("{prefix}.{rest}")]);
    for (file, name, account, subjects) in [
        (
            "streams/LEDGER.json",
            LEDGER_STREAM,
            "ledger",
            subjects(Lane::Ledger.prefix(), ">"),
        ),
        (
            "streams/EVENTS.json",
            EVENTS_STREAM_PREFIX,
            "events",
            subjects(Lane::Record.prefix(), "{account}.>"),
        ),
        (
            "streams/SECURITY.json",
            SECURITY_STREAM,
            "events",
            subjects(Lane::Security.prefix(), ">"),
        ),
        (
            "streams/AUDIT.json",
            AUDIT_STREAM,
            "audit",
            serde_json::json!([]),
        ),
    ] {
        let stream = declaration(file);
        assert_eq!(
            (stream["name"].as_str(), stream["account"].as_str()),
            (Some(name.trim_end_matches('_')), Some(account))
        );
        assert_eq!(stream["subjects"], subjects, "{file}");
        assert_eq!(
            (&stream["deny_delete"], &stream["deny_purge"]),
            (&Value::Bool(true), &Value::Bool(true)),
            "{file}"
        );
        assert_eq!(
            (&stream["allow_rollup"], stream["discard"].as_str()),
            (&Value::Bool(false), Some("new")),
            "{file}"
        );
        // Only the coordinator stores several events together.
        assert_eq!(stream["allow_atomic"], name == LEDGER_STREAM, "{file}");
        assert!(stream["max_consumers"].as_u64().unwrap() > 0, "{file}");
    }
    assert_eq!(
        declaration("streams/AUDIT.json")["copies"],
        serde_json::json!(["ledger", "events"])
    );

    let work = declaration("streams/WORK.json");
    assert_eq!(work["name"], WORK_STREAM);
    assert_eq!(
        work["subjects"],
        serde_json::json!([format!("{}.>", Lane::Work.prefix())])
    );
    assert_eq!(work["retention"], "work_queue");
    // No other stream may acknowledge what its disk does not have.
    for file in ["AUDIT", "EVENTS", "LEDGER", "SECURITY"] {
        let stream = declaration(&format!("streams/{file}.json"));
        assert_eq!(stream.get("acknowledges"), None, "{file}");
    }
    assert_eq!(work["consumers"][0]["name"], WORK_CONSUMER);
    assert_eq!(work["consumers"][0]["filter"], work["subjects"][0]);
}

/// The bytes that a declared stream or bucket reserves when there are `tenants` tenants.
fn reserved(name: &str, tenants: u64) -> u64 {
    let declared = declaration(name);
    let number = |field: &str| {
        declared
            .get(field)
            .map_or(0, |value| value.as_u64().unwrap())
    };
    let streams = if declared["per_tenant"] == Value::Bool(true) {
        tenants
    } else {
        1
    };
    (number("max_bytes") + tenants * number("max_bytes_per_tenant")) * streams
}

#[test]
fn declarations_fit_into_the_dev_store() {
    let names = [
        "streams/AUDIT.json",
        "streams/LEDGER.json",
        "streams/EVENTS.json",
        "streams/SECURITY.json",
        "streams/WORK.json",
    ];
    let dev = fs::read_to_string(config_folder().join("dev.conf")).unwrap();
    let line = dev
        .lines()
        .find_map(|line| line.trim().strip_prefix("max_file: "))
        .unwrap();
    // nats-server's G is 10^9.
    let gigabytes: u64 = line.strip_suffix('G').unwrap().parse().unwrap();
    for tenants in 1..=4 {
        let bytes: u64 = names.iter().map(|name| reserved(name, tenants)).sum();
        assert!(
            bytes <= gigabytes * 1_000_000_000,
            "{bytes} bytes for {tenants} tenants, {gigabytes} GB are there"
        );
    }
    let one: u64 = names.iter().map(|name| reserved(name, 1)).sum();
    assert!(
        one < 8_000_000_000,
        "{one} bytes: a domain of one tenant fits on a laptop"
    );
}

/// A copied message names its origin, so it is longer than the original; a test of `e2e` measures
/// by how much at most.
#[test]
fn the_readers_copy_has_room_for_all_that_it_copies() {
    for tenants in 1..=64 {
        let copied = ["LEDGER", "EVENTS", "SECURITY"]
            .map(|name| reserved(&format!("streams/{name}.json"), tenants));
        let copied: u64 = copied.iter().sum();
        let room = reserved("streams/AUDIT.json", tenants);
        assert!(
            room * 4 >= copied * 5,
            "{tenants} tenants: {room} bytes for copies of {copied}"
        );
    }
}

#[test]
fn tl_21_every_port_of_a_production_node_pins_tls_1_3() {
    let read = |name: &str| fs::read_to_string(config_folder().join(name)).unwrap();
    let prod = read("prod.conf");
    let blocks: Vec<&str> = prod
        .split("tls {")
        .skip(1)
        .map(|rest| rest.split('}').next().unwrap())
        .collect();
    assert_eq!(blocks.len(), 2, "clients and routes");
    for block in blocks {
        let included = block
            .lines()
            .find_map(|line| line.trim().strip_prefix("include "))
            .unwrap();
        assert!(
            read(included)
                .lines()
                .any(|line| line == "min_version: \"1.3\""),
            "{included}"
        );
    }
}

#[test]
fn nodes_show_each_other_certificates() {
    let route = fs::read_to_string(config_folder().join("include/tls-route.conf")).unwrap();
    assert!(route.lines().any(|line| line == "verify: true"), "{route}");
}
