//! A coordinator and a store that does what a test lets it do.

use std::future::{pending, ready};
use std::sync::atomic::{AtomicUsize, Ordering};

use objects::Trust;
use objects::key::{SHUT_OUT_WORDS, STOPPED_WORDS};
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
    /// It takes all URLs for those of a worker that is shut out.
    mistakes: bool,
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

/// These are stopped, and none of their runs is over.
fn wants<const N: usize>(names: [&str; N]) -> Wanted {
    runs(names).into_iter().map(|urls| (urls, None)).collect()
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
    let words = {
        let Kept { files, deaf, .. } = &*kept.borrow();
        let mistaken = kept.borrow().mistakes.then_some(SHUT_OUT_WORDS);
        match (
            deaf.contains(&urls),
            files.contains(&all),
            files.contains(&urls),
        ) {
            (true, ..) | (false, false, false) => mistaken,
            (false, true, _) => Some(mistaken.unwrap_or(STOPPED_WORDS)),
            (false, false, true) => Some(SHUT_OUT_WORDS),
        }
    };
    kept.send_modify(|kept| kept.tried.push(urls));
    let refused =
        |words| format!("<Error><Code>AccessDenied</Code><Message>{words}</Message></Error>");
    Some(match words {
        Some(words) => ("403 Forbidden", refused(words)),
        None => ("404 Not Found", String::new()),
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
        self.tell_if(concerned, ready(true)).await
    }

    /// The same by a coordinator that asks if it leads.
    async fn tell_if(
        &self,
        concerned: &str,
        leads: impl Future<Output = bool> + Send + 'static,
    ) -> AtStore {
        let (stopped, concerned) = (&self.store.stopped, runs([concerned]));
        stopped.tell_soon(&self.store, concerned, leads).await
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
    store.stopped.want(wants(["demo"]));
    let told = |store: Store| async move {
        let told = store.stopped.tell_soon(&store, runs(["demo"]), ready(true));
        told.await
    };
    let unable = told(store.clone()).await;
    assert_eq!(unable, AtStore::Unable, "it derives no pairs");
    store.signer = store.signer.deriving(true);
    let later = told(store).await;
    assert_eq!(later, AtStore::Later, "it refuses to be told");
}

#[tokio::test]
async fn tl_20_an_order_is_tried_with_the_runs_that_it_concerns_alone() {
    let fake = Fake::start(QUICK).await;
    fake.kept.send_modify(|kept| kept.deaf = runs(["other"]));
    fake.store.stopped.want(wants(["demo", "other"]));
    assert_eq!(fake.tell("demo").await, AtStore::Stopped);
    let kept = fake.kept.borrow().clone();
    assert_eq!(kept.files, runs(["demo", "other"]));
    assert_eq!(kept.tried, [run("demo")]);
    // It takes the urls of a run that it was told to refuse.
    assert_eq!(fake.tell("other").await, AtStore::Later);
    fake.store.stopped.want(wants([]));
    assert_eq!(fake.tell("demo").await, AtStore::Taken);
    assert!(fake.kept.borrow().files.is_empty());
    assert_eq!(fake.tell("other").await, AtStore::Taken);
}

const WORKER: &str = "demo.0123456789abcdef";

/// The store is tried with a URL that was given to the worker: it might refuse those of the run
/// alone.
#[tokio::test]
async fn tl_20_tl_31_an_order_about_a_worker_is_tried_with_a_url_of_that_worker() {
    let fake = Fake::start(QUICK).await;
    fake.store.stopped.want(wants([WORKER]));
    let concerned = || runs([WORKER]);
    let stopped = &fake.store.stopped;
    let told = stopped.tell_first(&fake.store, concerned(), ready(true));
    assert_eq!(told.await, AtStore::ShutOut);
    let kept = fake.kept.borrow().clone();
    assert_eq!((kept.files, kept.tried), (concerned(), vec![run(WORKER)]));
    // It knows runs, and no workers.
    fake.kept.send_modify(|kept| kept.deaf = runs([WORKER]));
    assert_eq!(fake.tell(WORKER).await, AtStore::Later);
    fake.kept.send_modify(|kept| kept.deaf = runs([]));
    // One that is let in while its run is stopped gets no URLs taken, and the answer says why.
    fake.store.stopped.want(wants(["demo"]));
    assert_eq!(fake.tell(WORKER).await, AtStore::Stopped);
    fake.store.stopped.want(wants([]));
    assert_eq!(fake.tell(WORKER).await, AtStore::Taken);
    assert!(fake.kept.borrow().files.is_empty());
}

/// A store that refuses them for another reason than that of the order does otherwise than it was
/// told.
#[tokio::test]
async fn tl_20_tl_31_what_the_store_says_is_the_answer_if_it_is_what_the_store_was_told() {
    let fake = Fake::start(QUICK).await;
    fake.kept.send_modify(|kept| kept.mistakes = true);
    for wanted in [&["demo"][..], &[]] {
        let wanted = wanted.iter().map(|name| (run(name), None)).collect();
        fake.store.stopped.want(wanted);
        for concerned in ["demo", WORKER] {
            assert_eq!(fake.tell(concerned).await, AtStore::Later, "{concerned}");
        }
    }
    fake.kept.send_modify(|kept| kept.mistakes = false);
    // Of several the weakest.
    fake.store.stopped.want(wants(["demo", WORKER, "third"]));
    for (concerned, answer) in [
        (&["demo", WORKER, "other"][..], AtStore::Taken),
        (&[WORKER, "third"], AtStore::Stopped),
    ] {
        let concerned = concerned.iter().map(|name| run(name)).collect();
        let stopped = &fake.store.stopped;
        let told = stopped.tell_soon(&fake.store, concerned, ready(true));
        assert_eq!(told.await, answer);
    }
}

/// It answers an order that changes nothing from what it knew, and would undo what the coordinator
/// did that followed it. It is asked when its turn comes.
#[tokio::test]
async fn tl_20_tl_31_a_coordinator_that_another_one_has_followed_tells_the_store_nothing() {
    let fake = Fake::start(QUICK).await;
    fake.kept.send_modify(|kept| kept.files = runs(["theirs"]));
    fake.store.stopped.want(wants(["demo"]));
    let earlier = fake.store.stopped.alone().await;
    let leads = watch::Sender::new(true);
    let asked = leads.subscribe();
    let telling = fake.tell_if("demo", async move { *asked.borrow() });
    let deposed = async {
        tokio::task::yield_now().await;
        leads.send_replace(false);
        drop(earlier);
    };
    let (told, ()) = tokio::join!(telling, deposed);
    assert_eq!(told, AtStore::Later);
    let kept = fake.kept.borrow().clone();
    assert_eq!((kept.files, kept.orders), (runs(["theirs"]), 0));
    assert!(kept.tried.is_empty());
    assert_eq!(fake.tell("demo").await, AtStore::Stopped);
    assert_eq!(fake.kept.borrow().files, runs(["demo"]));
}

#[tokio::test]
async fn tl_20_a_coordinator_asks_if_it_leads_when_its_turn_to_look_comes() {
    let fake = Fake::start(QUICK).await;
    fake.store.stopped.want(wants(["demo"]));
    let earlier = fake.store.stopped.alone().await;
    let (leads, asked) = (watch::Sender::new(true), watch::Sender::new(0));
    let answers = {
        let (leads, asked) = (leads.clone(), asked.clone());
        move || {
            asked.send_modify(|asked| *asked += 1);
            let leads = *leads.borrow();
            async move { leads }
        }
    };
    let (stopped, store) = (fake.store.stopped.clone(), fake.store.clone());
    let _keeping = AbortOnDropHandle::new(tokio::spawn(stopped.keep(store, answers)));
    tokio::task::yield_now().await;
    leads.send_replace(false);
    drop(earlier);
    let mut seen = asked.subscribe();
    seen.wait_for(|asked| *asked >= 2).await.expect("it looks");
    assert_eq!(fake.kept.borrow().orders, 0);
}

/// The store needs no file for URLs of which none is alive.
#[tokio::test]
async fn tl_20_tl_31_files_of_complete_runs_go_when_their_last_urls_have_ended() {
    let fake = Fake::start(QUICK).await;
    fake.kept.send_modify(|kept| kept.files = runs(["old"]));
    let stopped = fake.store.stopped.clone();
    let (past, future) = (UnixMillis(1), UnixMillis(u64::MAX));
    stopped.want(
        [
            (run("old"), Some(past)),
            (run("new"), Some(future)),
            (run(WORKER), None),
            (run("open"), None),
        ]
        .into(),
    );
    let store = fake.store.clone();
    let keeping = stopped.clone().keep(store, || ready(true));
    let _keeping = AbortOnDropHandle::new(tokio::spawn(keeping));
    fake.until(|kept| kept.files == runs(["new", "open", WORKER]))
        .await;
    // Runs complete.
    stopped.end(&"demo".parse().expect("a name"), past);
    fake.until(|kept| kept.files == runs(["new", "open"])).await;
    stopped.end(&"open".parse().expect("a name"), past);
    fake.until(|kept| kept.files == runs(["new"])).await;
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
    fake.store.stopped.want(wants([WORKER]));
    let stopped = &fake.store.stopped;
    let told = stopped.tell_first(&fake.store, runs([WORKER]), ready(true));
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
    let names = runs(["demo", name.as_str()]);
    assert_eq!(named(holders.clone().into()), names);
    let end = UnixMillis(7);
    let stopped = holders.map(|one| {
        let end = one.worker.is_some().then_some(end);
        (one, end)
    });
    let ends = wanted(stopped.into());
    assert!(ends.keys().eq(&names), "{ends:?}");
    assert_eq!(ends.into_values().collect::<Vec<_>>(), [None, Some(end)]);
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
    stopped.want(wants(["demo"]));
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
    fake.store.stopped.want(wants(["demo"]));
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
    begin(Box::pin(ready(AtStore::Taken)));
    assert_eq!(answered.recv().await, Some(AtStore::Taken));
    begin(Box::pin(pending()));
    waiting.end().await;
    assert_eq!(answered.try_recv(), Ok(AtStore::Later));
}
