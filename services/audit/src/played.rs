//! A broker that a test plays, word by word.

use runtime::BusConfig;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// It listens, and says nothing by itself.
pub(crate) struct Played(TcpListener);

/// The broker's end of a connection that has presented itself.
pub(crate) struct Presented(BufReader<TcpStream>);

impl Played {
    pub(crate) async fn start() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").await.expect("a port"))
    }

    pub(crate) fn config(&self) -> BusConfig {
        BusConfig {
            url: format!("nats://{}", self.0.local_addr().expect("it is bound")),
            ..BusConfig::default()
        }
    }

    /// Accepts a connection and ends it.
    pub(crate) async fn turn_away(&self) {
        drop(self.0.accept().await.expect("somebody comes"));
    }

    /// Accepts a connection, and reads up to its first ping.
    pub(crate) async fn accept(&self) -> Presented {
        let (stream, _) = self.0.accept().await.expect("somebody comes");
        let mut peer = Presented(BufReader::new(stream));
        peer.say(b"INFO {}\r\n").await;
        let mut line = String::new();
        while line != "PING\r\n" {
            line.clear();
            let read = peer.0.read_line(&mut line).await.expect("it speaks");
            assert!(read > 0, "it presents itself");
        }
        peer
    }
}

impl Presented {
    pub(crate) async fn say(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.expect("it listens");
    }

    /// Delivers a message of a subscription.
    pub(crate) async fn deliver(&mut self, subscription: usize, subject: &str, payload: &[u8]) {
        let head = format!("MSG {subject} {subscription} {}\r\n", payload.len());
        self.say(&[head.as_bytes(), payload, b"\r\n"].concat())
            .await;
    }
}
