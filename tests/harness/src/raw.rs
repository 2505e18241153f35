//! A client that writes any bytes that a test gives it, also those that a library would not let
//! through.

use std::path::Path;
use std::sync::Arc;

use data_encoding::BASE64URL_NOPAD;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::{Cluster, PATIENCE};

/// A connection with real credentials, and nothing between the test and the wire.
#[derive(Debug)]
pub struct RawConnection {
    stream: BufReader<TlsStream<TcpStream>>,
}

impl RawConnection {
    /// Connects to the cluster's broker.
    ///
    /// # Panics
    /// It does not take the credentials.
    pub async fn connect(cluster: &Cluster, credentials: &Path) -> Self {
        Self::connect_at(
            cluster,
            cluster.bus_url().trim_start_matches("tls://"),
            credentials,
            "raw",
        )
        .await
    }

    /// Connects to another broker of the cluster's domain, under any name.
    ///
    /// # Panics
    /// As [`RawConnection::connect`].
    pub async fn connect_at(
        cluster: &Cluster,
        address: &str,
        credentials: &Path,
        name: &str,
    ) -> Self {
        let mut tcp = TcpStream::connect(address)
            .await
            .unwrap_or_else(|error| panic!("{address}: {error}"));
        let mut greeting = Vec::new();
        while !greeting.ends_with(b"\r\n") {
            let byte = timeout(PATIENCE, tcp.read_u8())
                .await
                .expect("a greeting in time");
            greeting
                .push(byte.unwrap_or_else(|error| panic!("the greeting of {address}: {error}")));
        }
        let info = greeting.strip_prefix(b"INFO ").expect("a greeting");
        let info: serde_json::Value = serde_json::from_slice(info).expect("it is JSON");
        let nonce = info["nonce"].as_str().expect("the broker demands a proof");
        let proof = cluster.source(credentials).prove(nonce.as_bytes());
        let proof = proof.unwrap_or_else(|error| panic!("{}: {error}", credentials.display()));
        let pem =
            std::fs::read(cluster.domain().layout().ca()).expect("the domain has an authority");
        let config = identity::tls::client_config(&pem).expect("its certificate is one");
        let server = ServerName::try_from("127.0.0.1").expect("an address");
        let stream = TlsConnector::from(Arc::new(config))
            .connect(server, tcp)
            .await;
        let stream =
            BufReader::new(stream.unwrap_or_else(|error| panic!("TLS with {address}: {error}")));
        let mut raw = Self { stream };
        let signature = BASE64URL_NOPAD.encode(&proof.signature);
        raw.say(format!(
            "CONNECT {{\"verbose\":false,\"pedantic\":false,\"tls_required\":true,\"headers\":true,\
             \"no_responders\":true,\"name\":\"{name}\",\"jwt\":\"{}\",\"sig\":\"{signature}\"}}\r\n",
            proof.jwt
        ))
        .await;
        let said = raw.settled().await;
        assert!(
            !said.iter().any(|line| line.starts_with("-ERR")),
            "{said:?}"
        );
        raw
    }

    /// Writes bytes.
    ///
    /// # Panics
    /// The broker has closed the connection.
    pub async fn say(&mut self, bytes: impl AsRef<[u8]>) {
        let written = async {
            self.stream.write_all(bytes.as_ref()).await?;
            self.stream.flush().await
        };
        written
            .await
            .unwrap_or_else(|error| panic!("the broker has closed the connection: {error}"));
    }

    /// Publishes with headers: the block as it is, with nothing added.
    ///
    /// # Panics
    /// As [`RawConnection::say`].
    pub async fn publish(&mut self, subject: &[u8], reply: &[u8], headers: &[u8], payload: &[u8]) {
        self.say(publication(subject, reply, headers, payload))
            .await;
    }

    /// Waits until the broker has handled everything that was written, and returns the lines that
    /// came meanwhile.
    ///
    /// # Panics
    /// It does not answer, or has closed the connection.
    pub async fn settled(&mut self) -> Vec<String> {
        self.say("PING\r\n").await;
        let mut lines = Vec::new();
        loop {
            let line = self.line().await;
            match line.as_str() {
                "PONG" => return lines,
                "PING" => self.say("PONG\r\n").await,
                _ => lines.push(line),
            }
        }
    }

    /// The next line that the broker says; payloads are lines as well.
    ///
    /// # Panics
    /// As [`RawConnection::settled`].
    pub async fn line(&mut self) -> String {
        let line = self.next().await;
        line.expect("the broker has closed the connection")
    }

    /// Waits until the broker closes the connection, and returns the lines that came before.
    ///
    /// # Panics
    /// It says nothing more and does not close the connection.
    pub async fn closed(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        while let Some(line) = self.next().await {
            lines.push(line);
        }
        lines
    }

    /// The next line; none once the broker has closed the connection.
    async fn next(&mut self) -> Option<String> {
        let mut line = Vec::new();
        let read = timeout(PATIENCE, self.stream.read_until(b'\n', &mut line));
        // TLS reports a connection that ends without a farewell as an error.
        let bytes = read.await.expect("the broker answers").unwrap_or(0);
        (bytes > 0).then(|| String::from_utf8_lossy(&line).trim_end().to_owned())
    }
}

/// The bytes of a publication; without headers when there are none.
pub fn publication(subject: &[u8], reply: &[u8], headers: &[u8], payload: &[u8]) -> Vec<u8> {
    let space: &[u8] = if reply.is_empty() { b"" } else { b" " };
    let lengths = match headers.len() {
        0 => payload.len().to_string(),
        length => format!("{length} {}", length + payload.len()),
    };
    let word: &[u8] = if headers.is_empty() {
        b"PUB "
    } else {
        b"HPUB "
    };
    [
        word,
        subject,
        b" ",
        reply,
        space,
        lengths.as_bytes(),
        b"\r\n",
        headers,
        payload,
        b"\r\n",
    ]
    .concat()
}
