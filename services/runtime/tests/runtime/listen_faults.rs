//! A listener meets a peer that is no server, the wrong server, and a server that falls silent.

use std::path::PathBuf;
use std::time::Duration;

use harness::PATIENCE;
use runtime::{BusConfig, BusError, Listener, clock};
use schemas::Code;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

/// The greeting of a server that requires nothing.
const GREETING: &str = "INFO {}\r\n";

/// A server of one connection, played by the test.
struct Server {
    listener: TcpListener,
}

/// The server's end of the connection.
struct Peer {
    lines: BufReader<OwnedReadHalf>,
    to: OwnedWriteHalf,
}

impl Server {
    async fn start() -> Self {
        Self {
            listener: TcpListener::bind("127.0.0.1:0").await.expect("a port"),
        }
    }

    fn config(&self, scheme: &str) -> BusConfig {
        let address = self.listener.local_addr().expect("it is bound");
        let ca = if scheme == "tls" {
            PathBuf::from("/nowhere/ca.pem")
        } else {
            PathBuf::new()
        };
        BusConfig {
            url: format!("{scheme}://{address}"),
            credentials: PathBuf::new(),
            ca,
        }
    }

    /// Accepts the connection and writes a greeting.
    async fn greet(&self, with: &str) -> Peer {
        let (stream, _): (TcpStream, _) = self.listener.accept().await.expect("somebody comes");
        let (from, to) = stream.into_split();
        let mut peer = Peer {
            lines: BufReader::new(from),
            to,
        };
        peer.say(with).await;
        peer
    }
}

impl Peer {
    async fn say(&mut self, words: &str) {
        self.to
            .write_all(words.as_bytes())
            .await
            .expect("it listens");
    }

    /// The next line; empty when the other end has gone.
    async fn line(&mut self) -> String {
        let mut line = String::new();
        let read = timeout(PATIENCE, self.lines.read_line(&mut line))
            .await
            .expect("a line");
        read.map(|_| line.trim_end().to_owned()).unwrap_or_default()
    }

    /// Reads the client's introduction and its subscriptions, up to its first ping.
    async fn presented(&mut self) -> Vec<String> {
        let mut said = Vec::new();
        loop {
            match self.line().await {
                line if line == "PING" => return said,
                line => said.push(line),
            }
        }
    }
}

async fn connect(config: &BusConfig) -> Result<Vec<Listener>, BusError> {
    Listener::connect("test", config, &["a.>"], clock::now()).await
}

/// The error of a connection with this greeting.
async fn refused(scheme: &str, greeting: &str) -> BusError {
    let server = Server::start().await;
    let config = server.config(scheme);
    let (tried, _peer) = tokio::join!(connect(&config), server.greet(greeting));
    tried.map(|_| ()).expect_err("it is no server of ours")
}

#[tokio::test]
async fn what_greets_in_another_way_is_no_server() {
    for (scheme, greeting, reason) in [
        ("nats", "PING\r\n", "not a NATS server"),
        (
            "nats",
            "HTTP/1.1 400 Bad Request\r\n\r\n",
            "not a word of the NATS protocol",
        ),
        ("tls", "PING\r\n", "not a NATS server"),
        // A machine in between could send words in the server's name.
        (
            "tls",
            "INFO {\"tls_required\":true}\r\nPING\r\n",
            "before TLS begins",
        ),
        (
            "tls",
            "INFO {\"tls_required\":true}\r\nM",
            "before TLS begins",
        ),
    ] {
        let error = refused(scheme, greeting).await;
        assert!(
            error.to_string().contains(reason),
            "{scheme} {greeting:?}: {error}"
        );
        assert_eq!(error.code(), Code::BusUnreachable, "{scheme} {greeting:?}");
    }
}

#[tokio::test]
async fn fg_08_a_greeting_says_whether_tls_is_spoken() {
    for (scheme, greeting, reason) in [
        ("nats", "INFO {\"tls_required\":true}\r\n", "use tls://"),
        ("tls", "INFO {\"nonce\":\"abc\"}\r\n", "offers none"),
    ] {
        let error = refused(scheme, greeting).await;
        assert_eq!(error.code(), Code::TlsMismatch, "{scheme}: {error}");
        assert!(error.to_string().contains(reason), "{scheme}: {error}");
    }
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up() {
    let (silent, forgetful) = (Server::start().await, Server::start().await);
    let (to_silent, to_forgetful) = (silent.config("nats"), forgetful.config("nats"));
    let tries = async { tokio::join!(connect(&to_silent), connect(&to_forgetful)) };
    // One server does not greet, the other never answers.
    let peers = async { tokio::join!(silent.greet(""), forgetful.greet(GREETING)) };
    let ((one, other), _peers) = timeout(Duration::from_secs(30), async {
        tokio::join!(tries, peers)
    })
    .await
    .expect("it ends by itself");
    for (tried, reason) in [(one, "no greeting within"), (other, "no answer within")] {
        let error = tried.map(|_| ()).expect_err("nothing came");
        assert!(
            error.code() == Code::BusUnreachable && error.to_string().contains(reason),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_refusal_is_told_by_its_kind() {
    for (words, code) in [
        ("-ERR 'Authorization Violation'", Code::BusRefused),
        (
            "-ERR 'Permissions Violation for Subscription to \"a.>\"'",
            Code::BusDenied,
        ),
        ("-ERR 'maximum connections exceeded'", Code::BusUnreachable),
    ] {
        let server = Server::start().await;
        let config = server.config("nats");
        let serving = async {
            let mut peer = server.greet(GREETING).await;
            let said = peer.presented().await;
            assert!(
                said[0].starts_with("CONNECT ") && said[1].starts_with("SUB a.> "),
                "{said:?}"
            );
            peer.say(&format!("{words}\r\n")).await;
            peer
        };
        let (tried, _peer) = tokio::join!(connect(&config), serving);
        assert_eq!(tried.map(|_| ()).expect_err(words).code(), code, "{words}");
    }
}

/// Other messages of a server: pings, messages for nobody, its own end.
#[tokio::test]
async fn a_connection_answers_questions_passes_over_what_is_for_nobody_and_ends_with_the_right() {
    let server = Server::start().await;
    let config = server.config("nats");
    let serving = async {
        let mut peer = server.greet(GREETING).await;
        peer.presented().await;
        // A ping before the answer.
        peer.say("PING\r\nPONG\r\n").await;
        assert_eq!(peer.line().await, "PONG");
        peer
    };
    let (listeners, mut peer) = tokio::join!(connect(&config), serving);
    let mut listener = listeners.expect("it is as a server should be").remove(0);
    peer.say("MSG a.b 7 2\r\nno\r\nMSG a.b 0 3\r\nyes\r\nPING\r\n")
        .await;
    let heard = timeout(PATIENCE, listener.next())
        .await
        .expect("it comes")
        .expect("it may listen");
    assert_eq!(
        (heard.subject.as_str(), &heard.payload[..]),
        ("a.b", &b"yes"[..])
    );
    assert_eq!(peer.line().await, "PONG");
    peer.say("-ERR 'some other trouble'\r\nMSG a.c 0 2\r\non\r\n")
        .await;
    let heard = timeout(PATIENCE, listener.next())
        .await
        .expect("it comes")
        .expect("that was no end");
    assert_eq!(&heard.payload[..], b"on");
    peer.say("-ERR 'Permissions Violation for Subscription to \"a.>\"'\r\n")
        .await;
    let ended = timeout(PATIENCE, listener.next())
        .await
        .expect("it is told");
    assert_eq!(
        ended.map(|_| ()).expect_err("the right is gone").code(),
        Code::BusDenied
    );
    assert_eq!(peer.line().await, "", "and the connection with it");
}
