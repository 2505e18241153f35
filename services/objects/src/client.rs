//! The HTTP client that this crate uses: HTTP/1.1 over pooled connections. It trusts one authority,
//! follows no redirect, decodes no content and uses no proxy. Its answers are read here too.

#[cfg(test)]
mod tests;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use http::uri::Scheme;
use http::{Extensions, HeaderMap, Method, Request, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Incoming};
use hyper::rt::ReadBufCursor;
use hyper_util::client::legacy::connect::{
    CaptureConnection, Connected, Connection, HttpConnector, capture_connection,
};
use hyper_util::client::legacy::{self, Error};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use identity::{ClientFile, Own, TlsFault};
use object_store::client::{
    HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, BufReader};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tower_service::Service;

use crate::buckets::local_now;
use crate::endpoint::{EndpointError, Trust};
use crate::limits::TransferLimits;
use crate::line::{Counted, Line};
use crate::refusal::is_for_good;

/// Longest error document that is read; S3's have a few hundred bytes.
const ERROR_BYTES_MAX: usize = 8 << 10;
/// Time for which an idle connection is kept for reuse: below the store's own idle limit, so that
/// the client closes first.
const POOL_IDLE: Duration = Duration::from_secs(25);
/// Silence after which a vanished peer is noticed, by [`KEEPALIVE_PROBES`] probes with this time
/// between them.
const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 3;
/// The kernel gives a connection up after this many times the longest silence. It counts from the
/// first of several losses in a row, even if bytes move between them, so it is meant only for
/// connections that nobody watches here.
const USER_TIMEOUT_IDLES: u32 = 3;
/// Longest wait for the answer to a request of `object_store`, which has no limit of its own.
const LISTING_PATIENCE: Duration = Duration::from_secs(60);
/// Bytes read from a socket at a time. rustls alone asks for 4 KiB, which is four calls for each
/// record of a download.
const SOCKET_READ_BYTES: usize = 128 << 10;

/// An answer whose body has not been read.
pub(crate) type Response = http::Response<Incoming>;
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The client. Cheap to clone; clones share connections.
#[derive(Clone, Debug)]
pub(crate) struct Client(legacy::Client<Connector, Full<Bytes>>);

/// Makes connections: TCP, and TLS over it if the URL asks for TLS. `hyper-rustls` would only
/// replace the handshake, and does not limit its time; the connector below, with its counted line
/// and large reads, would stay.
#[derive(Clone, Debug)]
struct Connector {
    tcp: HttpConnector,
    /// None if plaintext is intended; with TLS, plaintext is refused, whatever a URL says.
    tls: Option<Arc<ClientConfig>>,
    /// The file with the certificate that is shown to the store.
    shown: Option<ClientFile>,
    patience: Duration,
}

/// A connection, with or without TLS, and the count of bytes that have moved over it.
struct Stream {
    io: TokioIo<Pin<Box<dyn Socket>>>,
    line: Line,
    shown: Option<ClientFile>,
}

/// Shows the connection that a request uses.
pub(crate) struct Watch(CaptureConnection);

trait Socket: AsyncRead + AsyncWrite + Send {}

impl<S: AsyncRead + AsyncWrite + Send> Socket for S {}

impl Client {
    /// A client that trusts `trust` alone.
    pub(crate) fn new(trust: &Trust, limits: &TransferLimits) -> Result<Self, EndpointError> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(limits.connect));
        tcp.set_tcp_user_timeout(Some(limits.idle * USER_TIMEOUT_IDLES));
        tcp.set_keepalive(Some(KEEPALIVE));
        tcp.set_keepalive_interval(Some(KEEPALIVE));
        tcp.set_keepalive_retries(Some(KEEPALIVE_PROBES));
        let tls = trust.tls()?.map(Arc::new);
        let client = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(POOL_IDLE)
            .pool_max_idle_per_host(limits.connections_max)
            .build(Connector {
                tcp,
                tls,
                shown: trust.shown().cloned(),
                patience: limits.connect,
            });
        Ok(Self(client))
    }

    /// Sends a request. The caller has checked that the URL may be used, and bounds the wait.
    pub(crate) async fn send(
        &self,
        method: Method,
        uri: Uri,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Response, Error> {
        self.start(method, uri, headers, body).0.await
    }

    /// Like [`Client::send`], with a view of the connection for callers that watch its progress.
    pub(crate) fn start(
        &self,
        method: Method,
        uri: Uri,
        headers: HeaderMap,
        body: Bytes,
    ) -> (impl Future<Output = Result<Response, Error>> + use<>, Watch) {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        let watch = Watch(capture_connection(&mut request));
        (self.0.request(request), watch)
    }
}

/// The method of a signed request.
pub(crate) const fn method(method: rusty_s3::Method) -> Method {
    match method {
        rusty_s3::Method::Head => Method::HEAD,
        rusty_s3::Method::Get => Method::GET,
        rusty_s3::Method::Post => Method::POST,
        rusty_s3::Method::Put => Method::PUT,
        rusty_s3::Method::Delete => Method::DELETE,
    }
}

impl Watch {
    /// The connection, once the request has one.
    pub(crate) fn line(&self) -> Option<Line> {
        let mut extras = Extensions::new();
        self.0
            .connection_metadata()
            .as_ref()?
            .get_extras(&mut extras);
        extras.remove()
    }
}

/// For `object_store`, whose requests use the same connections.
#[async_trait]
impl HttpService for Client {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let sending = self.send(parts.method, parts.uri, parts.headers, body);
        let sent = timeout(LISTING_PATIENCE, sending)
            .await
            .map_err(|late| HttpError::new(HttpErrorKind::Timeout, late))?;
        let kind = |error: &Error| {
            if error.is_connect() {
                HttpErrorKind::Connect
            } else {
                HttpErrorKind::Request
            }
        };
        let response = sent.map_err(|error| HttpError::new(kind(&error), error))?;
        let (parts, body) = response.into_parts();
        let body = body.map_err(|error| HttpError::new(HttpErrorKind::Interrupted, error));
        Ok(HttpResponse::from_parts(parts, HttpResponseBody::new(body)))
    }
}

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Stream, BoxError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.tcp.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let secure = uri.scheme() == Some(&Scheme::HTTPS);
        if secure != self.tls.is_some() {
            return Box::pin(async { Err("plaintext where TLS is meant, or the reverse".into()) });
        }
        let connecting = self.tcp.call(uri.clone());
        let (tls, patience) = (self.tls.clone().map(TlsConnector::from), self.patience);
        let shown = self.shown.clone();
        Box::pin(async move {
            let counted = Counted::new(connecting.await?.into_inner());
            let line = counted.line().clone();
            let socket = BufReader::with_capacity(SOCKET_READ_BYTES, counted);
            let Some(tls) = tls else {
                return Ok(Stream {
                    io: TokioIo::new(Box::pin(socket)),
                    line,
                    shown,
                });
            };
            let host = uri
                .host()
                .unwrap_or_default()
                .trim_start_matches('[')
                .trim_end_matches(']');
            let name = ServerName::try_from(host.to_owned())?;
            let secured = timeout(patience, tls.connect(name, socket)).await?;
            let secured = secured.map_err(|error| in_words(error, shown.as_ref()))?;
            Ok(Stream {
                io: TokioIo::new(Box::pin(secured)),
                line,
                shown,
            })
        })
    }
}

/// An error of a connection, with a fault of TLS in words: which certificate, and what is wrong.
fn in_words(error: std::io::Error, shown: Option<&ClientFile>) -> std::io::Error {
    // Looking at the file is for faults alone.
    if error.get_ref().is_none() {
        return error;
    }
    match TlsFault::of(&error, &Own::look(shown), local_now()) {
        Some(fault) => std::io::Error::new(error.kind(), fault),
        None => error,
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new().extra(self.line.clone())
    }
}

impl hyper::rt::Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        let this = &mut *self;
        let read = Pin::new(&mut this.io).poll_read(context, buffer);
        // A store that does not take the client's certificate says so after the handshake.
        read.map_err(|error| in_words(error, this.shown.as_ref()))
    }
}

impl hyper::rt::Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, slices)
    }

    /// TCP and TLS both take several slices at a time.
    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

/// The next piece of a body; none at its end.
pub(crate) async fn piece(response: &mut Response) -> Result<Option<Bytes>, hyper::Error> {
    while let Some(frame) = response.frame().await {
        // Trailers are ignored.
        if let Ok(piece) = frame?.into_data() {
            return Ok(Some(piece));
        }
    }
    Ok(None)
}

/// The body's length, where the answer states it.
pub(crate) fn length(response: &Response) -> Option<u64> {
    response.body().size_hint().exact()
}

/// The chain of causes. No cause names the URL, which may carry a signature.
pub(crate) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

/// The fields of an S3 document that are read; a field is empty if the document does not have it.
pub(crate) struct S3Answer {
    /// `<Code>`: not empty if the document is an error.
    pub(crate) code: String,
    /// `<Message>`.
    pub(crate) message: String,
    /// True if the error will hold for another URL too.
    pub(crate) for_good: bool,
    /// `<ChecksumSHA256>`: base64, of the object that a copy made.
    pub(crate) checksum: String,
}

/// Reads an S3 document to its end, so that the connection can be reused. Gives up after a silence
/// of `idle`.
pub(crate) async fn s3_answer(mut response: Response, idle: Duration) -> S3Answer {
    let mut text = Vec::new();
    while let Ok(Ok(Some(piece))) = timeout(idle, piece(&mut response)).await {
        text.extend_from_slice(&piece);
        if text.len() > ERROR_BYTES_MAX {
            break;
        }
    }
    let text = String::from_utf8_lossy(&text);
    let element = |name: &str| {
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        rest.split_once('<').map(|(content, _)| content)
    };
    let code: String = element("Code")
        .unwrap_or("")
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .take(64)
        .collect();
    let message = element("Message").unwrap_or_default().to_owned();
    let for_good = is_for_good(&code, &message);
    let checksum = element("ChecksumSHA256").unwrap_or("").trim().to_owned();
    S3Answer {
        code,
        message,
        for_good,
        checksum,
    }
}

/// `Retry-After` in whole seconds; the form with a date is rare and ignored.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers
        .get("retry-after")?
        .to_str()
        .ok()?
        .trim()
        .parse()
        .ok()
        .map(Duration::from_secs)
}
