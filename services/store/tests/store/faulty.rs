//! Stores that do all that one must but for one thing: the check finds that one.

use std::net::SocketAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use objects::check::{Rule, check, check_briefly};
use schemas::{Code, Digest};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};

use crate::altered::message;
use crate::support::{TestStore, answer};

/// A request to a store.
struct Request {
    head: String,
    body: Vec<u8>,
}

impl Request {
    fn is(&self, method: &str) -> bool {
        self.head.starts_with(method)
    }

    /// True for an upload of this object of the check.
    fn uploads(&self, name: &str) -> bool {
        let begin = format!("store check, {name},");
        self.is("PUT ") && self.body.starts_with(begin.as_bytes())
    }

    /// True for an upload of other bytes in the place of this object: their first one differs.
    fn alters(&self, name: &str) -> bool {
        let begin = format!("tore check, {name},");
        let rest = self.body.strip_prefix(b"r");
        self.is("PUT ") && rest.is_some_and(|rest| rest.starts_with(begin.as_bytes()))
    }

    /// True for an object of this try of the check.
    fn is_of_try(&self, number: u32) -> bool {
        String::from_utf8_lossy(&self.body).contains(&format!(", {number}, "))
    }

    fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines();
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    /// True when the checksum in its head is that of its body; none where it has none.
    fn states_its_bytes(&self) -> Option<bool> {
        let own = BASE64.encode(Digest::of(&self.body).as_bytes());
        Some(self.header("x-amz-checksum-sha256")? == own)
    }
}

/// The fault of a store: the answer that it gives instead of the right one.
enum Fault {
    /// And it does nothing.
    Instead(Vec<u8>),
    /// It has done what it was asked for.
    After(Vec<u8>),
}

type Faults = fn(&Request) -> Option<Fault>;

/// Stands before a store and has its faults.
async fn stand_before(store: SocketAddr, faults: Faults) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(serve(client, store, faults));
        }
    });
    address
}

async fn serve(mut client: TcpStream, store: SocketAddr, faults: Faults) -> Option<()> {
    let mut store = TcpStream::connect(store).await.ok()?;
    while let Some(request) = message(&mut client, true).await {
        let end = request.windows(4).position(|end| end == b"\r\n\r\n")? + 4;
        let asked = Request {
            head: String::from_utf8_lossy(&request[..end]).into_owned(),
            body: request[end..].to_vec(),
        };
        let fault = faults(&asked);
        if let Some(Fault::Instead(answer)) = fault {
            client.write_all(&answer).await.ok()?;
            return client.shutdown().await.ok();
        }
        store.write_all(&request).await.ok()?;
        let right = message(&mut store, !asked.is("HEAD ")).await?;
        if let Some(Fault::After(answer)) = fault {
            client.write_all(&answer).await.ok()?;
            return client.shutdown().await.ok();
        }
        client.write_all(&right).await.ok()?;
    }
    None
}

async fn broken(faults: Faults) -> Vec<Rule> {
    let store = TestStore::plain().await;
    let address = stand_before(store.address, faults).await;
    let report = check(&store.endpoint_at(address), &store.keys)
        .await
        .unwrap();
    let broken = report.rows.iter().filter(|row| !row.holds);
    broken.map(|row| row.rule).collect()
}

fn taken() -> Vec<u8> {
    answer("200 OK", "", b"")
}

fn refused() -> Vec<u8> {
    let body = b"<Error><Code>BadDigest</Code></Error>";
    answer("400 Bad Request", "", body)
}

#[tokio::test]
async fn a_store_without_a_fault_breaks_no_rule() {
    assert_eq!(broken(|_| None).await, []);
}

fn busy() -> Vec<u8> {
    answer("503 Slow Down", "", b"")
}

/// The objects of a check have the number of the try in them: uploads are tried first, bindings
/// second.
#[tokio::test]
async fn a_store_that_is_busy_for_a_moment_is_tried_again() {
    let cases: [(&str, Faults); 5] = [
        ("an upload", |asked| {
            (asked.uploads("good") && asked.is_of_try(1)).then(|| Fault::Instead(busy()))
        }),
        ("a wrong upload", |asked| {
            (asked.alters("wrong") && asked.is_of_try(1)).then(|| Fault::After(busy()))
        }),
        ("another url", |asked| {
            (asked.uploads("bindings") && asked.is_of_try(2)).then(|| Fault::Instead(busy()))
        }),
        ("rights", |asked| {
            (asked.uploads("rights") && asked.is_of_try(3)).then(|| Fault::Instead(Vec::new()))
        }),
        ("an object to read", |asked| {
            (asked.uploads("reading") && asked.is_of_try(5)).then(|| Fault::Instead(busy()))
        }),
    ];
    for (what, faults) in cases {
        assert_eq!(broken(faults).await, [], "{what}");
    }
}

/// Nothing is known of it, so nobody may say that it is unfit: a coordinator starts again.
#[tokio::test]
async fn a_store_that_stays_busy_is_away_and_one_that_breaks_a_rule_too_is_unfit() {
    let checked = async |faults: Faults| {
        let store = TestStore::plain().await;
        let address = stand_before(store.address, faults).await;
        let report = check_briefly(&store.endpoint_at(address), &store.keys).await;
        report.map(|report| report.unfit())
    };
    let away = checked(|asked| asked.uploads("bindings").then(|| Fault::Instead(busy()))).await;
    let away = away.unwrap_err();
    assert_eq!(away.code(), Code::StoreUnreachable);
    let said = away.to_string();
    assert!(said.contains("signed headers bind (503)"), "{said}");
    let unfit = checked(|asked| {
        let answer = match asked.alters("wrong") {
            true => taken(),
            false => busy(),
        };
        let tried = asked.alters("wrong") || asked.uploads("bindings");
        tried.then_some(Fault::Instead(answer))
    });
    let unfit = unfit.await.unwrap();
    assert!(unfit.contains("wrong bytes are refused"), "{unfit}");
}

#[tokio::test]
async fn a_store_with_one_fault_is_found_out_by_the_rule_that_it_breaks() {
    let cases: [(&str, Faults, Rule); 9] = [
        (
            "says that it has what it threw away",
            |asked| asked.uploads("good").then(|| Fault::Instead(taken())),
            Rule::RightBytesStored,
        ),
        (
            "says that it refused what it has",
            |asked| asked.uploads("good").then(|| Fault::After(refused())),
            Rule::RightBytesStored,
        ),
        (
            "takes an upload without a header that was signed",
            |asked| {
                let without = asked.uploads("bindings")
                    && asked.states_its_bytes().is_none()
                    && asked.header("content-type").is_some();
                without.then(|| Fault::Instead(taken()))
            },
            Rule::SignedHeadersBind,
        ),
        (
            "takes a signed header with another value",
            |asked| {
                let other = asked.uploads("bindings") && asked.states_its_bytes() == Some(false);
                other.then(|| Fault::Instead(taken()))
            },
            Rule::SignedHeadersBind,
        ),
        (
            "says that it did not copy what it copied",
            |asked| {
                let copies = asked.header("x-amz-copy-source").is_some();
                copies.then(|| Fault::After(refused()))
            },
            Rule::CopyBetweenBuckets,
        ),
        (
            "says that it refused what it copies then",
            |asked| asked.uploads("reading").then(|| Fault::After(refused())),
            Rule::CopyBetweenBuckets,
        ),
        (
            "answers a range with other bytes",
            |asked| {
                let other = || answer("206 Partial Content", "", b"ten bytes.");
                (asked.header("range").is_some()).then(|| Fault::Instead(other()))
            },
            Rule::RangeServed,
        ),
        (
            "does not say that its answer is a range",
            |asked| {
                // The check asks for these of its object `reading`.
                let part = || answer("200 OK", "", b" check, re");
                (asked.header("range").is_some()).then(|| Fault::Instead(part()))
            },
            Rule::RangeServed,
        ),
        (
            "says that it refused what it lists",
            |asked| {
                asked
                    .uploads("housekeeping")
                    .then(|| Fault::After(refused()))
            },
            Rule::ListedAndDeleted,
        ),
    ];
    for (what, faults, rule) in cases {
        let broken = broken(faults).await;
        assert!(broken.contains(&rule), "it {what}: {broken:?}");
    }
}
