//! A store of a few lines, whose answers a test may change: what a real one answers under load, or
//! behind a proxy.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

type Objects = BTreeMap<String, Bytes>;
/// The answer to a method and a name, in place of the store's own: a status, and an S3 code.
type Instead = Box<dyn FnMut(&str, &str) -> Option<(u16, &'static str)> + Send>;

/// A store with one bucket.
#[derive(Clone)]
pub(crate) struct Stub {
    pub(crate) address: SocketAddr,
    state: Arc<Mutex<(Objects, Instead)>>,
}

impl Stub {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let stub = Self {
            address: listener.local_addr().expect("it is bound"),
            state: Arc::new(Mutex::new((Objects::new(), Box::new(|_, _| None)))),
        };
        let serving = stub.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let serving = serving.clone();
                tokio::spawn(async move { serving.answer(stream).await });
            }
        });
        stub
    }

    pub(crate) fn instead(
        &self,
        instead: impl FnMut(&str, &str) -> Option<(u16, &'static str)> + Send + 'static,
    ) {
        self.state.lock().expect("nobody panics").1 = Box::new(instead);
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        let state = self.state.lock().expect("nobody panics");
        state.0.contains_key(name)
    }

    /// One request on each connection.
    async fn answer(&self, mut stream: TcpStream) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let Ok(byte) = stream.read_u8().await else {
                return;
            };
            head.push(byte);
        }
        let head = String::from_utf8(head)
            .expect("a head is text")
            .to_lowercase();
        let length = head.split("content-length: ").nth(1);
        let length = length.and_then(|rest| rest.lines().next()?.parse().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        if stream.read_exact(&mut body).await.is_err() {
            return;
        }
        let mut words = head.split(' ');
        let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        let name = path.split('?').next().unwrap_or("");
        let name = name.trim_start_matches("/log/").to_owned();
        let (status, body) = self.apply(method, &name, body.into(), &head);
        let text = format!(
            "HTTP/1.1 {status} -\r\ncontent-length: {}\r\netag: \"x\"\r\nconnection: close\r\n\r\n",
            body.len()
        );
        let _gone = stream.write_all(&[text.as_bytes(), &body].concat()).await;
    }

    fn apply(&self, method: &str, name: &str, body: Bytes, head: &str) -> (u16, Bytes) {
        let mut state = self.state.lock().expect("nobody panics");
        let (objects, instead) = &mut *state;
        let refused = |status, code: &str| {
            let text = format!("<Error><Code>{code}</Code></Error>");
            (status, Bytes::from(text))
        };
        if let Some((status, code)) = instead(method, name) {
            return refused(status, code);
        }
        match (method, objects.get(name)) {
            ("get", Some(found)) => (200, found.clone()),
            ("get", None) => refused(404, "NoSuchKey"),
            ("put", Some(_)) if head.contains("if-none-match") => refused(412, ""),
            ("put", _) => {
                objects.insert(name.to_owned(), body);
                (200, Bytes::new())
            }
            _ => {
                objects.remove(name);
                (204, Bytes::new())
            }
        }
    }
}
