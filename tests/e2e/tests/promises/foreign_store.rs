//! `diloctl store check` on stores that others wrote. Garage, which `cargo xtask deps --garage`
//! compiles, runs as in a small installation: one node, three buckets, keys with the rights that
//! ours need. moto, in the Python environment of `tests/attack`, verifies no signature.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use harness::{Cluster, Options, Output, PATIENCE, look};
use identity::AccessKey;
use schemas::{Code, Digest};
use serde_json::{Value, json};
use tokio::process::Child;

/// Rules without which a store takes what nobody signed.
const OPEN: [&str; 4] = [
    "wrong bytes are refused and absent",
    "a wrong upload leaves a good object",
    "the signed key binds",
    "a url to read cannot write",
];

/// The rules that Garage does not keep, and that a store need not keep: it has no `If-None-Match`
/// on uploads.
const BROKEN: [&str; 2] = [
    "an existing object is not created again",
    "of racing uploads one wins",
];

/// A Garage of its own in a folder. It ends with the value.
struct Garage {
    program: PathBuf,
    folder: PathBuf,
    url: String,
    _child: Child,
}

/// A new key as Garage wants it: `GK` and 24 hexadecimal digits, a secret of 64.
fn key() -> (String, String) {
    let digits = || Digest::of(AccessKey::generate().id().as_bytes()).hex();
    (format!("GK{}", &digits()[..24]), digits())
}

/// Something below `.deps`, if it is there.
fn dependency(path: &str) -> Option<PathBuf> {
    let deps = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.deps");
    Some(deps.join(path)).filter(|path| path.exists())
}

impl Garage {
    /// Starts it with a bucket `incoming` and the administrator's key.
    async fn start(program: PathBuf, folder: PathBuf, admin: &(String, String)) -> Self {
        fs::create_dir(&folder).unwrap();
        // Both are free until Garage takes them; nobody can be asked to choose ports for it.
        let free = [0; 2].map(|port| TcpListener::bind(("127.0.0.1", port)).unwrap());
        let [api, rpc] = free.each_ref().map(|port| port.local_addr().unwrap());
        drop(free);
        let secret = key().1;
        let at = folder.display();
        let config = format!(
            "metadata_dir = \"{at}/meta\"\ndata_dir = \"{at}/data\"\ndb_engine = \"sqlite\"\n\
             replication_factor = 1\nrpc_bind_addr = \"{rpc}\"\nrpc_public_addr = \"{rpc}\"\n\
             rpc_secret = \"{secret}\"\n\n[s3_api]\ns3_region = \"us-east-1\"\n\
             api_bind_addr = \"{api}\"\n"
        );
        // It refuses a file that others may read.
        identity::secret::write_private(&folder.join("garage.toml"), config.as_bytes()).unwrap();
        let log = fs::File::create(folder.join("log")).unwrap();
        let child = tokio::process::Command::new(&program)
            .args(["-c", "garage.toml", "server"])
            .args(["--single-node", "--default-bucket"])
            .env("GARAGE_DEFAULT_ACCESS_KEY", &admin.0)
            .env("GARAGE_DEFAULT_SECRET_KEY", &admin.1)
            .env("GARAGE_DEFAULT_BUCKET", "incoming")
            .current_dir(&folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let garage = Self {
            program,
            folder,
            url: format!("http://{api}"),
            _child: child,
        };
        let listens = |text: &str| {
            ["S3 API server listening on", "Listening on"]
                .iter()
                .all(|line| text.contains(line))
        };
        let started = look(PATIENCE, || Some(garage.log()).filter(|text| listens(text)));
        let started = started.await;
        assert!(started.is_some(), "garage has not begun:\n{}", garage.log());
        garage
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap()
    }

    /// Gives it an order; what is ordered goes through stdin, since there are secrets in it.
    fn order(&self, name: &str, payload: &Value) -> Value {
        let mut child = Command::new(&self.program)
            .args(["-c", "garage.toml", "json-api", name, "-"])
            .current_dir(&self.folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        (&stdin).write_all(payload.to_string().as_bytes()).unwrap();
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {said}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn import(&self, name: &str, (id, secret): &(String, String)) {
        let order = json!({"name": name, "accessKeyId": id, "secretAccessKey": secret});
        self.order("ImportKey", &order);
    }

    /// The identifier of a bucket, which is made if there is none.
    fn bucket(&self, name: &str) -> String {
        let made = match name {
            "incoming" => self.order("GetBucketInfo", &json!({"globalAlias": name})),
            name => self.order("CreateBucket", &json!({"globalAlias": name})),
        };
        made["id"].as_str().unwrap().to_owned()
    }

    fn allow(&self, bucket: &str, key: &(String, String), read: bool, write: bool) {
        let rights = json!({"read": read, "write": write, "owner": false});
        let order = json!({"bucketId": bucket, "accessKeyId": key.0, "permissions": rights});
        self.order("AllowBucketKey", &order);
    }
}

#[tokio::test]
async fn tl_20_a_store_of_others_is_tried_and_what_it_lacks_is_said() {
    let Some(program) = dependency("garage/bin/garage") else {
        e2e::skipped("no .deps/garage: `cargo xtask deps --garage` compiles it, in half an hour");
        return;
    };
    let cluster = Cluster::bare(Options::default()).await;
    let [admin, put, get] = [(); 3].map(|()| key());
    let garage = Garage::start(program, cluster.path("garage"), &admin).await;
    let [incoming, blobs, log] = ["incoming", "blobs", "log"].map(|name| garage.bucket(name));
    garage.import("put", &put);
    garage.import("get", &get);
    for bucket in [&incoming, &blobs, &log] {
        garage.allow(bucket, &admin, true, true);
    }
    garage.allow(&incoming, &put, false, true);
    garage.allow(&blobs, &get, true, false);
    let keys = [&admin, &put, &get];

    let told = check(&cluster, &garage.url, keys).await;
    assert!(told.status.success(), "{}{}", told.stdout, told.stderr);
    assert_eq!(broken(&told), BROKEN);

    // Somebody gives the key for uploads a right too many.
    garage.allow(&blobs, &put, false, true);
    let told = check(&cluster, &garage.url, keys).await;
    assert_eq!(told.status.code(), Some(1), "{}", told.stderr);
    let code = Code::StoreUnfit.to_string();
    assert!(told.stderr.contains(&code), "{}", told.stderr);
    let rule = "the put key cannot write blobs";
    assert!(told.stderr.contains(rule), "{}", told.stderr);
    assert!(broken(&told).contains(&rule.to_owned()));
    for (_, secret) in keys {
        assert!(!told.stdout.contains(secret) && !told.stderr.contains(secret));
    }
}

#[tokio::test]
async fn tl_20_a_store_that_verifies_no_signature_is_refused() {
    let Some(packages) = dependency("attack/moto") else {
        e2e::skipped("no moto in .deps/attack: `cargo xtask test` installs it");
        return;
    };
    let cluster = Cluster::bare(Options::default()).await;
    let path = cluster.path("moto.log");
    let log = fs::File::create(&path).unwrap();
    let _moto = tokio::process::Command::new("python3")
        .args(["-m", "moto.server", "--host", "127.0.0.1", "--port", "0"])
        .env("PYTHONPATH", packages.parent().unwrap())
        .current_dir(cluster.path(""))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let address = || {
        let text = fs::read_to_string(&path).unwrap();
        let (_, rest) = text.split_once("Running on http://")?;
        let (address, _) = rest.split_once('\n')?;
        Some(address.trim().to_owned())
    };
    let address = look(PATIENCE, address).await;
    let address = address.unwrap_or_else(|| panic!("{}", fs::read_to_string(&path).unwrap()));
    // It makes a bucket for anybody.
    for bucket in ["incoming", "blobs", "log"] {
        let mut asked = TcpStream::connect(&address).unwrap();
        let head = format!("PUT /{bucket} HTTP/1.1\r\nHost: {address}\r\n");
        let rest = "Content-Length: 0\r\nConnection: close\r\n\r\n";
        asked.write_all((head + rest).as_bytes()).unwrap();
        let mut answer = String::new();
        asked.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    let [admin, put, get] = [(); 3].map(|()| key());
    let url = format!("http://{address}");
    let told = check(&cluster, &url, [&admin, &put, &get]).await;
    assert_eq!(told.status.code(), Some(1), "{}", told.stderr);
    let code = Code::StoreUnfit.to_string();
    assert!(told.stderr.contains(&code), "{}", told.stderr);
    let broken = broken(&told);
    for rule in OPEN {
        assert!(broken.iter().any(|one| one == rule), "{rule}: {broken:?}");
        assert!(told.stderr.contains(rule), "{}", told.stderr);
    }
}

/// Tries a store with the keys of administrator, uploads and reading.
async fn check(cluster: &Cluster, url: &str, keys: [&(String, String); 3]) -> Output {
    let [admin, put, get] = keys.map(|(id, secret)| json!({"id": id, "secret": secret}));
    let keys = json!({"v": 1, "admin": admin, "put": put, "get": get});
    let file = cluster.path("foreign.json");
    identity::secret::write_private(&file, keys.to_string().as_bytes()).unwrap();
    let tried = ["--output", "json", "store", "check", "--url", url];
    let with = ["--keys", file.to_str().unwrap()];
    cluster.diloctl(&[&tried[..], &with].concat()).await
}

/// The rules that the check found broken.
fn broken(told: &Output) -> Vec<String> {
    let said: Value = serde_json::from_str(&told.stdout).unwrap();
    let rows = said["items"].as_array().unwrap();
    assert_eq!(rows.len(), 20, "{said}");
    let broken = rows.iter().filter(|row| row["holds"] == false);
    let names = broken.map(|row| row["rule"].as_str().unwrap().to_owned());
    names.collect()
}
