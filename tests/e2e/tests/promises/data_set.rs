//! Text as people have it becomes a data set. The import names the files that it leaves out, two
//! imports at the same time both stay in the list, and a data set that no worker could train on is
//! refused before a run is created.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;

use harness::{Cluster, Options, Output};
use serde_json::Value;

/// Lines that all differ, numbered from `first`.
fn lines(first: usize, count: usize) -> String {
    (first..first + count)
        .map(|line| format!("{line:06} a line of text\n"))
        .collect()
}

/// Makes a folder with text files and with every kind of file that is no text.
fn mixed(folder: &Path) {
    fs::create_dir_all(folder.join("more")).unwrap();
    let put = |name: &str, bytes: &[u8]| fs::write(folder.join(name), bytes).unwrap();
    put("a.txt", lines(0, 4000).as_bytes());
    put(
        "more/mark.txt",
        &["\u{feff}", &lines(10_000, 2000).replace('\n', "\r\n")]
            .concat()
            .into_bytes(),
    );
    put(
        "latin.txt",
        &[lines(20_000, 2000).as_bytes(), b"caf\xe9\n"].concat(),
    );
    put("nul.txt", b"text\0and not");
    put("utf16.txt", b"\xff\xfet\0e\0x\0t\0");
    put("empty.txt", b"");
    put("again.txt", lines(0, 4000).as_bytes());
    put("left.log", lines(30_000, 2000).as_bytes());
    put("moves\x1b[2J.txt", b"\xff");
    symlink("/etc/passwd", folder.join("out")).unwrap();
    symlink("nowhere", folder.join("broken")).unwrap();
    symlink("..", folder.join("more/loop")).unwrap();
    symlink("../a.txt", folder.join("more/inside")).unwrap();
    drop(UnixListener::bind(folder.join("socket")).unwrap());
}

fn refused(output: &Output, code: &str, parts: &[&str]) {
    let said = format!("{}{}", output.stdout, output.stderr);
    assert!(
        !output.status.success() && said.contains(code),
        "{code}: {said}"
    );
    for part in parts {
        assert!(said.contains(part), "{part}: {said}");
    }
}

#[tokio::test]
async fn an_import_says_what_it_skips_and_a_run_that_cannot_be_is_refused() {
    let cluster = Cluster::start(Options::default(), 0).await;
    mixed(&cluster.path("texts"));
    let import = [
        "--output",
        "json",
        "data",
        "import",
        "--text",
        "texts",
        "--exclude",
        "*.log",
    ];
    let made: Value = serde_json::from_str(&cluster.diloctl_ok(&import).await).unwrap();
    let told: Vec<String> = made["skipped"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| {
            format!(
                "{} {} {}",
                one["count"],
                one["reason"].as_str().unwrap(),
                one["first"].as_str().unwrap()
            )
        })
        .collect();
    let expected = [
        "1 nul nul.txt",
        "1 utf16 utf16.txt",
        "2 not_utf8 latin.txt",
        "1 link_outside out",
        "1 link_broken broken",
        "1 not_a_file socket",
        "1 excluded left.log",
        "1 empty empty.txt",
        "2 repeated again.txt",
    ];
    assert_eq!(told, expected);
    let text = lines(0, 4000).len() + lines(10_000, 2000).len() + 2000;
    assert_eq!(
        (&made["files"], &made["text_bytes"]),
        (&2.into(), &text.into())
    );
    let table = cluster
        .diloctl(&["data", "import", "--text", "texts"])
        .await;
    assert!(
        table
            .stdout
            .contains("2 not UTF-8: latin.txt (byte 0xe9 at 44003) and 1 more"),
        "{}",
        table.stdout
    );
    assert!(!table.stdout.contains('\u{1b}'), "no name moves a cursor");

    // A text whose second passage is short; the passage is for training or held out, as its digest
    // decides.
    fs::write(cluster.path("short.txt"), lines(0, 215)).unwrap();
    cluster
        .diloctl_ok(&["data", "import", "--text", "short.txt"])
        .await;
    let new = [
        "run",
        "new",
        "other",
        "--model",
        "reference",
        "--set",
        "schedule.sequence_tokens=1000",
    ];
    refused(
        &cluster.diloctl(&new).await,
        "DL0618",
        &["shard", "a sequence takes 1001"],
    );
    refused(
        &cluster
            .diloctl(&[&new[..], &["--check-config"]].concat())
            .await,
        "DL0618",
        &["takes 1001"],
    );
    let long = [
        "run",
        "new",
        "other",
        "--model",
        "tiny",
        "--set",
        "schedule.sequence_tokens=513",
    ];
    refused(
        &cluster
            .diloctl(&[&long[..], &["--check-config"]].concat())
            .await,
        "DL0620",
        &["513", "512"],
    );
    let fits = [
        "run",
        "new",
        "other",
        "--model",
        "reference",
        "--set",
        "schedule.sequence_tokens=64",
        "--check-config",
    ];
    assert!(
        cluster
            .diloctl_ok(&fits)
            .await
            .contains("fit data set sha256:")
    );
    let alone = cluster
        .diloctl(&["data", "import", "--text", "texts/latin.txt"])
        .await;
    refused(
        &alone,
        "DL0604",
        &["1 not UTF-8: ", "latin.txt (byte 0xe9 at 44003)"],
    );
}

#[tokio::test]
async fn imports_that_end_together_all_stay_in_the_list() {
    let cluster = Cluster::start(Options::default(), 0).await;
    let import = async |number: usize| {
        let name = format!("{number}.txt");
        fs::write(cluster.path(&name), lines(number * 1000, 1000)).unwrap();
        cluster
            .diloctl_ok(&["data", "import", "--text", &name])
            .await
    };
    tokio::join!(import(1), import(2), import(3), import(4));
    let list: Value = serde_json::from_str(
        &cluster
            .diloctl_ok(&["--output", "json", "data", "ls"])
            .await,
    )
    .unwrap();
    let mut sources: Vec<&str> = list["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["source"].as_str().unwrap())
        .collect();
    sources.sort_unstable();
    assert_eq!(sources, ["1.txt", "2.txt", "3.txt", "4.txt"]);
}

/// The coordinator answers, and the store does not: the command says which of the two it is.
#[tokio::test]
async fn an_import_without_a_store_blames_the_store_and_says_where_it_should_be() {
    let mut cluster = Cluster::start(Options::default(), 0).await;
    fs::write(cluster.path("text.txt"), lines(0, 4000)).unwrap();
    let address = cluster.store_url();
    let address = address.trim_start_matches("https://").to_owned();
    cluster.kill9("store");
    let import = ["--timeout", "3s", "data", "import", "--text", "text.txt"];
    let output = cluster.diloctl(&import).await;
    assert_eq!(output.status.code(), Some(5), "{}", output.stderr);
    refused(&output, "DL0301", &[&address]);
    cluster.diloctl_ok(&["run", "ls"]).await;
}
