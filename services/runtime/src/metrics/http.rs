//! The pages `/metrics` and `/ready`.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::samples;

/// Most connections at a time: a collector, a person, and some that were left open.
const CONNECTIONS_MAX: usize = 8;
/// Time that a connection may take for one request, or stand idle.
const IDLE: Duration = Duration::from_secs(10);
/// Pause after a connection that could not be accepted: the system has no handle to spare.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves as long as the process lives.
pub(super) async fn serve(listener: TcpListener, handle: PrometheusHandle, ready: Arc<AtomicBool>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = Arc::clone(&places)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, _)) => {
                let (handle, ready) = (handle.clone(), Arc::clone(&ready));
                tokio::spawn(async move {
                    speak(stream, &handle, &ready).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "cannot accept a connection for metrics");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn speak(stream: TcpStream, handle: &PrometheusHandle, ready: &AtomicBool) {
    let answer = service_fn(async |request: Request<Incoming>| {
        Ok::<_, Infallible>(page(&request, handle, ready))
    });
    let spoken = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .serve_connection(TokioIo::new(stream), answer)
        .await;
    if let Err(error) = spoken {
        tracing::debug!(%error, "a connection for metrics ended early");
    }
}

fn page(
    request: &Request<Incoming>,
    handle: &PrometheusHandle,
    ready: &AtomicBool,
) -> Response<Full<Bytes>> {
    let (status, text) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => (StatusCode::OK, handle.render() + &samples::page()),
        (&Method::GET, "/ready") if ready.load(Ordering::Relaxed) => {
            (StatusCode::OK, "ready\n".to_owned())
        }
        (&Method::GET, "/ready") => (StatusCode::SERVICE_UNAVAILABLE, "not ready\n".to_owned()),
        (&Method::GET, _) => (StatusCode::NOT_FOUND, "/metrics or /ready\n".to_owned()),
        _ => (StatusCode::METHOD_NOT_ALLOWED, "GET only\n".to_owned()),
    };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"),
    );
    response
}
