//! The broker's disk fills up in the middle of a run. From then on the broker answers requests and
//! stores nothing, even when there is room again: every process reports that in its own words, and
//! `up` mends it.

use std::path::{Path, PathBuf};
use std::process::Command;

use harness::{Cluster, Options, PATIENCE};
use schemas::Code;

/// Room for the broker's streams and little else.
const DISK: &str = "size=48m";

/// A small disk that is mounted at a folder; dropping it unmounts the disk.
struct Disk(PathBuf);

impl Disk {
    /// Mounts a disk; none where this process may not mount.
    fn mount(folder: &Path) -> Option<Self> {
        std::fs::create_dir_all(folder).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", DISK, "tmpfs"])
            .arg(folder)
            .output();
        mounted
            .is_ok_and(|output| output.status.success())
            .then(|| Self(folder.to_owned()))
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }

    /// Fills the disk.
    fn fill(&self) {
        let mut file = std::fs::File::create(self.filler()).unwrap();
        let full = std::io::copy(&mut std::io::repeat(1), &mut file).unwrap_err();
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    }

    fn empty(&self) {
        std::fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Unmounted lazily: processes that still use the disk end with the test.
        let _gone = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// A port that was free a moment ago.
pub(crate) fn port() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port().to_string()
}

#[tokio::test]
async fn a_full_disk_of_the_broker_is_told_in_its_words_and_mended_by_up() {
    // The broker of this test is the one that `up` starts from the same domain, with all other
    // services.
    let cluster = Cluster::bare(Options::default()).await;
    let Some(disk) = Disk::mount(&cluster.path(".diloco/nats")) else {
        e2e::skipped("this process may not mount a small disk");
        return;
    };
    let server = harness::nats_server().display().to_string();
    let (bus, store) = (port(), port());
    let up = [
        "up",
        "--workers",
        "0",
        "--bus-port",
        &bus,
        "--store-port",
        &store,
        "--nats-server",
        &server,
    ];
    let stack = Stack(&cluster);
    cluster.diloctl_ok(&up).await;
    cluster.diloctl_ok(&["run", "ls"]).await;

    let text = cluster.path("text.txt");
    let words =
        (0_u32..30_000).map(|n| format!("{} and {}\n", n.wrapping_mul(7919) % 10_007, n % 613));
    std::fs::write(&text, words.collect::<String>()).unwrap();
    let data = [
        "--timeout",
        "20s",
        "data",
        "import",
        "--text",
        "text.txt",
        "--limit",
        "128KiB",
    ];
    cluster.diloctl_ok(&data).await;

    disk.fill();
    // A request that makes the coordinator append; there is no answer, or a refusal.
    let new = [
        "--timeout",
        "12s",
        "run",
        "new",
        "demo",
        "--model",
        "reference",
        "--rounds",
        "1",
        "--units",
        "1",
    ];
    let output = cluster.diloctl(&new).await;
    let told = |text: &str| {
        text.contains(&Code::StreamNotStored.to_string())
            && text.contains("no space left on device")
    };
    assert!(
        !output.status.success() && told(&output.stderr),
        "{} {}",
        output.status,
        output.stderr
    );
    let output = cluster.diloctl(&["cluster", "check"]).await;
    assert!(
        !output.status.success() && told(&output.stderr),
        "{} {}",
        output.status,
        output.stderr
    );
    let output = cluster.diloctl(&up).await;
    assert!(
        !output.status.success() && told(&output.stderr),
        "the disk is still full: {}",
        output.stderr
    );

    disk.empty();
    let output = cluster.diloctl(&up).await;
    assert!(
        output.status.success() && output.stderr.contains("is started again"),
        "{}",
        output.stderr
    );
    let answered = tokio::time::timeout(3 * PATIENCE, async {
        while !cluster
            .diloctl(&["--timeout", "5s", "run", "ls"])
            .await
            .status
            .success()
        {}
    });
    answered.await.expect("the coordinator answers again");
    drop(stack);
}

/// The processes that `up` started; dropping it stops them.
pub(crate) struct Stack<'a>(pub(crate) &'a Cluster);

impl Drop for Stack<'_> {
    fn drop(&mut self) {
        let mut down = Command::new(harness::program("diloctl"));
        let _ended = down
            .args(["down", "--drain", "1s"])
            .current_dir(self.0.path(""))
            .output();
    }
}
