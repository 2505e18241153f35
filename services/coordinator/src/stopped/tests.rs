//! A coordinator and a store that does what a test lets it do.

use std::future::pending;
use std::sync::atomic::{AtomicUsize, Ordering};

use objects::Trust;
use objects::key::STOPPED_WORDS;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::*;
use crate::store::tests::{answering, at};

const QUICK: Waits = Waits {
    tell: Duration::from_secs(60),
    first: Duration::from_secs(60),
    look: Duration::from_millis(5),
    again: Duration::from_millis(5),
};

/// What the store has and was asked.
#[derive(Clone, Debug, Default)]
struct Kept {
    files: BTreeSet<StoppedUrls>,
    /// The runs and workers whose URLs were tried, in their order.
    tried: Vec<StoppedUrls>,
    /// Those of which it takes all URLs, whatever it was told.
    deaf: BTreeSet<StoppedUrls>,
    /// It gives no answer to orders.
    holds_back: bool,
    /// Orders that came.
    orders: usize,
}

/// A store; dropping it ends it.
struct Fake {
    kept: watch::Sender<Kept>,
    store: Store,
    _serving: AbortOnDropHandle<()>,
}

/// That of a run, or of a worker: `demo.0123456789abcdef`.
fn run(name: &str) -> StoppedUrls {
    name.parse().expect("a name")
}

fn runs<const N: usize>(names: [&str; N]) -> BTreeSet<StoppedUrls> {
    names.map(run).into()
}

/// Reads a request, does it, and answers.
async fn serve(mut stream: TcpStream, kept: watch::Sender<Kept>) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let length = |line: &str| {
        let line = line.to_lowercase();
        line.strip_prefix("content-length: ")?.parse().ok()
    };
    let mut body = vec![0; head.lines().find_map(length).unwrap_or(0)];
    stream.read_exact(&mut body).await.ok()?;
    let (method, rest) = head.split_once(' ')?;
    let path = rest.split(' ').next()?;
    let file = path.strip_prefix("/blobs/stopped/");
    let file = file.and_then(|name| name.split('?').next()?.parse().ok());
    let (status, text) = match (method, file) {
        ("PUT", Some(run)) => {
            kept.send_modify(|kept| {
                kept.orders += 1;
                kept.files.insert(run);
            });
            ("200 OK", String::new())
        }
        ("DELETE", Some(run)) => {
            kept.send_modify(|kept| {
                kept.orders += 1;
                kept.files.remove(&run);
            });
            ("204 No Content", String::new())
        }
        ("GET", _) if path.contains("list-type") => ("200 OK", listing(&kept.borrow().files)),
        _ => tried(path, &kept)?,
    };
    if matches!(method, "PUT" | "DELETE") {
        let mut seen = kept.subscribe();
        seen.wait_for(|kept| !kept.holds_back).await.ok()?;
    }
    let length = text.len();
    let answer =
        format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{text}");
    stream.write_all(answer.as_bytes()).await.ok()?;
    stream.shutdown().await.ok()
}

fn listing(files: &BTreeSet<StoppedUrls>) -> String {
    let entry = |run: &StoppedUrls| {
        format!(
            "<Contents><Key>stopped/{run}</Key><LastModified>2026-01-01T00:00:00.000Z\
             </LastModified><ETag>\"a\"</ETag><Size>40</Size></Contents>"
        )
    };
    let entries: String = files.iter().map(entry).collect();
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><ListBucketResult><Name>blobs</Name>\
         <KeyCount>{}</KeyCount><MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated>\
         {entries}</ListBucketResult>",
        files.len()
    )
}

/// The answer to a URL of a run, or of its worker.
fn tried(path: &str, kept: &watch::Sender<Kept>) -> Option<(&'static str, String)> {
    let (_, credential) = path.split_once("X-Amz-Credential=")?;
    let (_, name) = credential.split("%2F").next()?.split_once('.')?;
    let run = name.parse().ok()?;
    let grant = path.split_once("x-diloco-grant=");
    let grant = grant.map(|(_, rest)| rest.split('&').next().unwrap_or_default());
    let worker = grant.and_then(HolderTag::of_grant);
    let urls = StoppedUrls { run, worker };
    let all = StoppedUrls::of_run(urls.run.clone());
    let told = |kept: &Kept| kept.files.contains(&urls) || kept.files.contains(&all);
    let stopped = told(&kept.borrow()) && !kept.borrow().deaf.contains(&urls);
    kept.send_modify(|kept| kept.tried.push(urls));
    let refused =
        || format!("<Error><Code>AccessDenied</Code><Message>{STOPPED_WORDS}</Message></Error>");
    Some(match stopped {
        true => ("403 Forbidden", refused()),
        false => ("404 Not Found", String::new()),
    })
}

impl Fake {
    async fn start(waits: Waits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("a port is free");
        let address = listener.local_addr().expect("it listens");
        let kept = watch::Sender::new(Kept::default());
        let sender = kept.clone();
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, sender.clone()));
            }
        });
        let mut store = at(address);
        let url = format!("http://{address}");
        let endpoint = Endpoint::new(&url, "us-east-1", Trust::PlainLoopback);
        let endpoint = endpoint.expect("a loopback address");
        store.stopped = Stopped::with(AccessKey::generate(), endpoint, waits);
        store.signer = store.signer.deriving(true);
        Self {
            kept,
            store,
            _serving: AbortOnDropHandle::new(serving),
        }
    }

    async fn tell(&self, concerned: &str) -> AtStore {
        let concerned = runs([concerned]);
        self.store.stopped.tell_soon(&self.store, concerned).await
    }

    /// Waits until the store is so.
    async fn until(&self, wanted: impl FnMut(&Kept) -> bool) -> Kept {
        let mut seen = self.kept.subscribe();
        let seen = seen.wait_for(wanted).await;
        seen.expect("the store serves").clone()
    }
}

#[tokio::test]
async fn tl_20_an_order_hears_what_the_store_does_and_success_only_when_it_was_tried() {
    let (mut store, _serving) = answering("403 Forbidden").await;
    store.stopped.want(runs(["demo"]));
    let told = store.stopped.tell_soon(&store, runs(["demo"])).await;
    assert_eq!(told, AtStore::Unable, "it derives no pairs");
    store.signer = store.signer.deriving(true);
    let told = store.stopped.tell_soon(&store, runs(["demo"])).await;
    assert_eq!(told, AtStore::Later, "it refuses to be told");
}

#[tokio::test]
async fn tl_20_an_order_is_tried_with_the_runs_that_it_concerns_alone() {
    let fake = Fake::start(QUICK).await;
    fake.kept.send_modify(|kept| kept.deaf = runs(["other"]));
    fake.store.stopped.want(runs(["demo", "other"]));
    assert_eq!(fake.tell("demo").await, AtStore::Done);
    let kept = fake.kept.borrow().clone();
    assert_eq!(kept.files, runs(["demo", "other"]));
    assert_eq!(kept.tried, [run("demo")]);
    // It takes the urls of a run that it was told to refuse.
    assert_eq!(fake.tell("other").await, AtStore::Later);
    fake.store.stopped.want(BTreeSet::new());
    assert_eq!(fake.tell("demo").await, AtStore::Done);
    assert!(fake.kept.borrow().files.is_empty());
    assert_eq!(fake.tell("other").await, AtStore::Done);
}

const WORKER: &str = "demo.0123456789abcdef";

/// The store is tried with a URL that was given to the worker: it might refuse those of the run
/// alone.
#[tokio::test]
async fn tl_20_tl_31_an_order_about_a_worker_is_tried_with_a_url_of_that_worker() {
    let fake = Fake::start(QUICK).await;
    fake.store.stopped.want(runs([WORKER]));
    let concerned = || runs([WORKER]);
    let told = fake.store.stopped.tell_first(&fake.store, concerned());
    assert_eq!(told.await, AtStore::Done);
    let kept = fake.kept.borrow().clone();
    assert_eq!((kept.files, kept.tried), (concerned(), vec![run(WORKER)]));
    // It knows runs, and no workers.
    fake.kept.send_modify(|kept| kept.deaf = runs([WORKER]));
    assert_eq!(fake.tell(WORKER).await, AtStore::Later);
    fake.kept.send_modify(|kept| kept.deaf = runs([]));
    // One that is let in while its run is stopped gets no URLs taken, and that is no fault.
    fake.store.stopped.want(runs(["demo"]));
    assert_eq!(fake.tell(WORKER).await, AtStore::Done);
    fake.store.stopped.want(runs([]));
    assert_eq!(fake.tell(WORKER).await, AtStore::Done);
    assert!(fake.kept.borrow().files.is_empty());
}

/// An order to shut a worker out has uploads deleted afterwards, and its operator waits for both.
#[tokio::test]
async fn tl_20_tl_31_an_order_that_goes_on_at_the_store_waits_less_for_it() {
    let waits = Waits {
        first: Duration::from_millis(50),
        ..QUICK
    };
    let fake = Fake::start(waits).await;
    fake.kept.send_modify(|kept| kept.holds_back = true);
    fake.store.stopped.want(runs([WORKER]));
    let told = fake.store.stopped.tell_first(&fake.store, runs([WORKER]));
    assert_eq!(told.await, AtStore::Later);
    fake.until(|kept| kept.orders == 1).await;
    fake.kept.send_modify(|kept| kept.holds_back = false);
    fake.until(|kept| kept.tried == [run(WORKER)]).await;
}

#[test]
fn the_store_names_a_worker_by_the_tag_of_its_urls() {
    let worker: schemas::WorkerId = format!("U{}", "A".repeat(55)).parse().expect("a key");
    let demo = || "demo".parse().expect("a name");
    let tag = HolderTag::of_worker(&worker);
    let holders = [
        UrlHolders::of_run(demo()),
        UrlHolders::of_worker(demo(), worker),
    ];
    let name = format!("demo.{tag}");
    assert_eq!(named(holders.into()), runs(["demo", name.as_str()]));
}

#[tokio::test]
async fn tl_20_what_the_store_forgets_is_told_again_while_the_coordinator_leads() {
    let fake = Fake::start(QUICK).await;
    let (leads, asked) = (watch::Sender::new(true), Arc::new(AtomicUsize::new(0)));
    let (stopped, store) = (fake.store.stopped.clone(), fake.store.clone());
    let answers = {
        let (leads, asked) = (leads.clone(), Arc::clone(&asked));
        move || {
            asked.fetch_add(1, Ordering::SeqCst);
            let leads = *leads.borrow();
            async move { leads }
        }
    };
    stopped.want(runs(["demo"]));
    let _keeping = AbortOnDropHandle::new(tokio::spawn(stopped.clone().keep(store, answers)));
    fake.until(|kept| kept.files == runs(["demo"]) && kept.tried == [run("demo")])
        .await;
    // The store is that of a backup.
    fake.kept.send_modify(|kept| kept.files = runs(["old"]));
    fake.until(|kept| kept.files == runs(["demo"])).await;
    // Another coordinator leads.
    leads.send_replace(false);
    let before = asked.load(Ordering::SeqCst);
    while asked.load(Ordering::SeqCst) < before + 2 {
        tokio::task::yield_now().await;
    }
    let orders = fake.kept.borrow().orders;
    fake.kept.send_modify(|kept| kept.files = runs(["theirs"]));
    let before = asked.load(Ordering::SeqCst);
    while asked.load(Ordering::SeqCst) < before + 3 {
        tokio::task::yield_now().await;
    }
    let kept = fake.kept.borrow().clone();
    assert_eq!((kept.files, kept.orders), (runs(["theirs"]), orders));
}

/// The answer of a request that was cut off could come behind a later order.
#[tokio::test]
async fn tl_20_what_takes_longer_than_an_operator_waits_is_brought_to_its_end() {
    let waits = Waits {
        tell: Duration::from_millis(50),
        ..QUICK
    };
    let fake = Fake::start(waits).await;
    fake.kept.send_modify(|kept| kept.holds_back = true);
    fake.store.stopped.want(runs(["demo"]));
    assert_eq!(fake.tell("demo").await, AtStore::Later);
    fake.until(|kept| kept.orders == 1).await;
    fake.kept.send_modify(|kept| kept.holds_back = false);
    fake.until(|kept| kept.tried == [run("demo")]).await;
    let untried = fake.store.stopped.alone().await;
    assert!(untried.is_empty(), "it was tried: {untried:?}");
    assert_eq!(fake.kept.borrow().orders, 1, "it was sent once");
}

#[tokio::test]
async fn an_operator_that_waits_for_the_store_is_answered_when_the_coordinator_ends() {
    let (sender, mut answered) = tokio::sync::mpsc::channel(2);
    let waiting = Waiting::default();
    let begin = |telling: std::pin::Pin<Box<dyn Future<Output = AtStore> + Send>>| {
        let sender = sender.clone();
        waiting.begin(telling, move |at_store| async move {
            sender.send(at_store).await.expect("the test listens");
        });
    };
    begin(Box::pin(async { AtStore::Done }));
    assert_eq!(answered.recv().await, Some(AtStore::Done));
    begin(Box::pin(pending()));
    waiting.end().await;
    assert_eq!(answered.try_recv(), Ok(AtStore::Later));
}
