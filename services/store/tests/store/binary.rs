//! The program: its exit statuses, its lock, and what a kill leaves.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::Duration;

use identity::StoreKeys;
use objects::{Buckets, Endpoint, ObjectError, Signer, StoreClock, Stored, Transfer, Trust};
use runtime::ready::Ready;
use schemas::ObjectRef;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};
use tokio::time::timeout;

use crate::connections::tls;
use crate::support::{certificates, key_of, nobody, noise, now, quick, soon};

/// The output of a program until it listened.
pub(crate) struct Log {
    said: Vec<String>,
    /// Kept open, since a program without stderr cannot write its last line.
    _rest: Lines<BufReader<ChildStderr>>,
}

pub(crate) struct Setup {
    folder: TempDir,
    pub(crate) keys: StoreKeys,
    authority: Vec<u8>,
}

impl Setup {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (made, keys) = (certificates(), StoreKeys::generate());
        keys.write(&folder.path().join("keys.json")).unwrap();
        for (name, text) in [("cert.pem", &made.certificate), ("key.pem", &made.key)] {
            fs::write(folder.path().join(name), text).unwrap();
            fs::set_permissions(folder.path().join(name), fs::Permissions::from_mode(0o600))
                .unwrap();
        }
        Self {
            folder,
            keys,
            authority: made.authority,
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The program with its usual flags, except those in `left_out`.
    fn command(&self, left_out: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_diloco-store"));
        command.args(["--listen", "127.0.0.1:0"]);
        for (flag, name) in [
            ("--root", "root"),
            ("--keys", "keys.json"),
            ("--tls-cert", "cert.pem"),
            ("--tls-key", "key.pem"),
        ] {
            if !left_out.contains(&flag) {
                command.arg(flag).arg(self.path(name));
            }
        }
        command
            .arg("--ready-file")
            .arg(self.path("ready"))
            .args(["--set", "store_server.free_bytes_min=0"]);
        command
            .stderr(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    async fn start(&self) -> (Child, Endpoint, Log) {
        self.start_with(|command| command).await
    }

    pub(crate) async fn start_with(
        &self,
        change: impl Fn(&mut Command) -> &mut Command,
    ) -> (Child, Endpoint, Log) {
        let mut child = change(&mut self.command(&[])).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut said = Vec::new();
        while let Some(line) = timeout(Duration::from_secs(20), lines.next_line())
            .await
            .unwrap()
            .unwrap()
        {
            if line.contains("the service is ready") {
                let ready: Ready =
                    serde_json::from_slice(&fs::read(self.path("ready")).unwrap()).unwrap();
                let url = format!("https://{}", ready.addresses[0]);
                let trust = Trust::Authority(self.authority.clone());
                let log = Log { said, _rest: lines };
                return (child, Endpoint::new(&url, "us-east-1", trust).unwrap(), log);
            }
            said.push(line);
        }
        panic!("the store did not start: {said:?}");
    }

    /// Runs the program. Returns its exit status and everything that it printed.
    async fn ends(&self, left_out: &[&str], more: &[&str]) -> (Option<i32>, String) {
        let output = self.command(left_out).args(more).output();
        let Output {
            status,
            stderr,
            stdout,
        } = timeout(Duration::from_secs(20), output)
            .await
            .unwrap()
            .unwrap();
        (
            status.code(),
            String::from_utf8([stderr, stdout].concat()).unwrap(),
        )
    }
}

#[tokio::test]
async fn a_kill_in_mid_upload_leaves_nothing_that_matters() {
    let setup = Setup::new();
    let bytes = noise(3 << 20, 31);
    let object = ObjectRef::of(&bytes);
    let (mut child, endpoint, _log) = setup.start().await;
    let signer = Signer::new(&endpoint, &setup.keys, StoreClock::default()).unwrap();
    let action = signer
        .put(&key_of(object), object.bytes, now())
        .action
        .unwrap();
    let host = endpoint.url().socket_addrs(|| None).unwrap()[0];
    let mut stream = tls(host, &setup.authority).await;
    let path = &action.href[action.href.find("/incoming").unwrap()..];
    stream
        .write_all(format!("PUT {path} HTTP/1.1\r\nhost: {host}\r\n").as_bytes())
        .await
        .unwrap();
    for (name, value) in &action.headers {
        stream
            .write_all(format!("{name}: {value}\r\n").as_bytes())
            .await
            .unwrap();
    }
    stream.write_all(b"\r\n").await.unwrap();
    stream.write_all(&bytes[..2 << 20]).await.unwrap();
    child.kill().await.unwrap();

    let (mut child, endpoint, _log) = setup.start().await;
    assert_eq!(fs::read_dir(setup.path("root/tmp")).unwrap().count(), 0);
    let signer = Signer::new(&endpoint, &setup.keys, StoreClock::default()).unwrap();
    let transfer = Transfer::new(endpoint.trust(), quick()).unwrap();
    let grant = signer.put(&key_of(object), object.bytes, now());
    assert_eq!(
        transfer
            .put(&grant, bytes, &nobody(), soon())
            .await
            .unwrap(),
        Stored::Now
    );

    let pid = child.id().unwrap().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .await
            .unwrap()
            .success()
    );
    assert!(child.wait().await.unwrap().success());
    assert!(!setup.path("ready").exists());
}

#[tokio::test]
async fn a_second_process_on_the_root_ends_with_a_code() {
    let setup = Setup::new();
    let _running = setup.start().await;
    let (status, text) = setup.ends(&[], &[]).await;
    assert!(
        status == Some(4) && text.contains("DL0306"),
        "{status:?} {text}"
    );
}

/// A library that answers every call for a second name as a file system without hard links does.
const NO_LINKS: &str = "#include <errno.h>\n\
    int link(const char *from, const char *to) { (void)from; (void)to; errno = EPERM; return -1; }\n\
    int linkat(int a, const char *from, int b, const char *to, int flags)\n\
    { (void)a; (void)from; (void)b; (void)to; (void)flags; errno = EPERM; return -1; }\n";

/// A library that answers each call to sync a file as a disk that failed does.
const NO_SYNC: &str = "#include <errno.h>\n\
    int fsync(int file) { (void)file; errno = EIO; return -1; }\n";

/// A library of these calls; none without a C compiler.
async fn library(setup: &Setup, calls: &str) -> Option<PathBuf> {
    let (source, library) = (setup.path("calls.c"), setup.path("calls.so"));
    fs::write(&source, calls).unwrap();
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&library, &source])
        .status()
        .await;
    if compiled.is_ok_and(|status| status.success()) {
        return Some(library);
    }
    skipped("there is no C compiler to make such a file system with");
    None
}

#[tokio::test]
async fn a_file_system_without_hard_links_takes_uploads_and_promotions() {
    let setup = Setup::new();
    let Some(library) = library(&setup, NO_LINKS).await else {
        return;
    };
    let (_child, endpoint, log) = setup
        .start_with(|command| command.env("LD_PRELOAD", &library))
        .await;
    assert!(
        log.said.iter().any(|line| line.contains("no hard links")),
        "{:?}",
        log.said
    );
    let signer = Signer::new(&endpoint, &setup.keys, StoreClock::default()).unwrap();
    let transfer = Transfer::new(endpoint.trust(), quick()).unwrap();
    let buckets = crate::support::buckets(&endpoint, &setup.keys);
    for seed in 0..3 {
        let bytes = noise(100_000, seed);
        let object = ObjectRef::of(&bytes);
        let grant = signer.put(&key_of(object), object.bytes, now());
        assert_eq!(
            transfer
                .put(&grant, bytes.clone(), &nobody(), soon())
                .await
                .unwrap(),
            Stored::Now
        );
        assert_eq!(
            transfer
                .put(&grant, bytes.clone(), &nobody(), soon())
                .await
                .unwrap(),
            Stored::Before
        );
        assert_eq!(
            buckets.promote(&key_of(object), object).await.unwrap(),
            Stored::Now
        );
        assert_eq!(
            buckets.promote(&key_of(object), object).await.unwrap(),
            Stored::Now
        );
        assert_eq!(buckets.get(object.digest).await.unwrap(), bytes);
    }
    assert_eq!(fs::read_dir(setup.path("root/tmp")).unwrap().count(), 0);
}

/// A store that promises to survive a power failure tries its disk before it promises anything.
#[tokio::test]
async fn a_store_that_cannot_sync_starts_only_where_it_promises_less() {
    let setup = Setup::new();
    let Some(library) = library(&setup, NO_SYNC).await else {
        return;
    };
    let mut command = setup.command(&[]);
    let output = command.env("LD_PRELOAD", &library).output();
    let output = timeout(Duration::from_secs(20), output).await;
    let output = output.unwrap().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        !output.status.success() && text.contains("DL0313") && text.contains("sync a file"),
        "{:?} {text}",
        output.status
    );
    let kernel = ["--durability", "kernel"];
    let (_child, _, _log) = setup
        .start_with(|command| command.args(kernel).env("LD_PRELOAD", &library))
        .await;
}

/// A promotion is then a copy. Want of room is no missing upload: the coordinator may try again.
#[tokio::test]
async fn a_promotion_that_finds_no_room_is_no_missing_upload() {
    let setup = Setup::new();
    let Some(library) = library(&setup, NO_LINKS).await else {
        return;
    };
    let bytes = noise(1000, 1);
    let object = ObjectRef::of(&bytes);
    let (child, endpoint, _log) = setup.start().await;
    let signer = Signer::new(&endpoint, &setup.keys, StoreClock::default()).unwrap();
    let grant = signer.put(&key_of(object), object.bytes, now());
    let transfer = Transfer::new(endpoint.trust(), quick()).unwrap();
    transfer
        .put(&grant, bytes, &nobody(), soon())
        .await
        .unwrap();
    drop(child);
    fs::remove_file(setup.path("ready")).unwrap();
    let full = ["--set", "store_server.free_bytes_min=4194304TiB"];
    let (_child, endpoint, _log) = setup
        .start_with(|command| command.args(full).env("LD_PRELOAD", &library))
        .await;
    let (admin, patience) = (&setup.keys.admin, Duration::from_secs(1));
    let buckets = Buckets::new(&endpoint, admin, StoreClock::default(), quick(), patience);
    let refused = buckets.unwrap().promote(&key_of(object), object).await;
    let is_missing = matches!(refused, Err(ObjectError::Missing { .. }));
    assert!(refused.is_err() && !is_missing, "{refused:?}");
}

#[expect(
    clippy::print_stderr,
    reason = "the tests' output must show that this one did not run"
)]
fn skipped(why: &str) {
    eprintln!("SKIPPED: {why}");
}

/// Runs the program under a limit of open files, which it cannot raise.
fn limited<'a>(
    setup: &'a Setup,
    soft: u32,
    hard: u32,
) -> impl Fn(&mut Command) -> &mut Command + 'a {
    move |command| {
        let (soft, hard) = (u64::from(soft), u64::from(hard));
        // SAFETY: between fork and exec one system call is made, and nothing is allocated.
        unsafe {
            command.pre_exec(move || {
                let limit = libc::rlimit {
                    rlim_cur: soft,
                    rlim_max: hard,
                };
                match libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            })
        };
        let _folder = &setup.folder;
        command
    }
}

#[tokio::test]
async fn few_open_files_bound_the_connections_and_too_few_end_with_a_code() {
    let setup = Setup::new();
    let (mut child, _, log) = setup.start_with(limited(&setup, 64, 4096)).await;
    assert!(
        !log.said.iter().any(|line| line.contains("WARN")),
        "the limit was raised: {:?}",
        log.said
    );
    child.kill().await.unwrap();

    let (mut child, endpoint, log) = setup.start_with(limited(&setup, 64, 64)).await;
    assert!(
        log.said
            .iter()
            .any(|line| line.contains("fewer connections than configured")),
        "{:?}",
        log.said
    );
    let host = endpoint.url().socket_addrs(|| None).unwrap()[0];
    let mut held = Vec::new();
    for last in 2..=80 {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket
            .bind(std::net::SocketAddr::from(([127, 0, 0, last], 0)))
            .unwrap();
        held.push(socket.connect(host).await.unwrap());
    }
    let buckets = crate::support::buckets(&endpoint, &setup.keys);
    buckets
        .put_blob(noise(1000, 1))
        .await
        .expect("there are handles left for the work itself");
    child.kill().await.unwrap();

    let mut command = setup.command(&[]);
    limited(&setup, 40, 40)(&mut command);
    let output = timeout(Duration::from_secs(20), command.output())
        .await
        .unwrap()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.code() == Some(64) && text.contains("DL0314"),
        "{:?} {text}",
        output.status
    );
}

#[tokio::test]
async fn bad_configuration_ends_with_64() {
    let setup = Setup::new();
    for (left_out, more, expected) in [
        (&[][..], &["--set", "store_server.nonsense=1"][..], "DL0101"),
        (&[], &["--set", "store_server.connections_max=0"], "DL0101"),
        (
            &[],
            &["--set", "store_server.connections_peer_percent=101"],
            "DL0101",
        ),
        (
            &[],
            &["--set", "store_server.connections_peer_percent=0"],
            "DL0101",
        ),
        (&[], &["--set", "store_server.idle=0s"], "DL0101"),
        (&[], &["--set", "store_server.incoming_life=0s"], "DL0101"),
        (&[], &["--set", "store_server.sweep_every=0s"], "DL0101"),
        (&[], &["--durability", "sometimes"], "DL0101"),
        (&[], &["--no-such-flag"], "no-such-flag"),
        (&["--keys"], &[], "DL0102"),
        (&["--tls-cert"], &[], "DL0104"),
        (&["--tls-cert", "--tls-key"], &[], "DL0102"),
    ] {
        let (status, text) = setup.ends(left_out, more).await;
        assert!(
            status == Some(64) && text.contains(expected),
            "{left_out:?} {more:?}: {status:?} {text}"
        );
    }
    fs::set_permissions(setup.path("keys.json"), fs::Permissions::from_mode(0o644)).unwrap();
    let (status, text) = setup.ends(&[], &[]).await;
    assert!(
        status == Some(64) && text.contains("DL0105"),
        "{status:?} {text}"
    );
    assert!(!setup.path("root").exists(), "nothing was touched");
}

#[tokio::test]
async fn configuration_is_printed_and_checked() {
    let setup = Setup::new();
    let (status, text) = setup.ends(&[], &["--print-config"]).await;
    assert!(
        status == Some(0) && text.contains("durability = \"always\""),
        "{status:?} {text}"
    );
    assert!(!text.contains(setup.keys.admin.expose_secret()));
    assert_eq!(setup.ends(&[], &["--check-config"]).await.0, Some(0));
    let plain = [
        "--check-config",
        "--set",
        "auth.exceptions=[{layer=\"bulk\",reason=\"a test\"}]",
    ];
    let (status, text) = setup.ends(&["--tls-cert", "--tls-key"], &plain).await;
    assert!(
        status == Some(0) && text.contains("DL0110"),
        "{status:?} {text}"
    );
}
