//! The HTTP client under everything here, and how its answers are read.

use std::time::Duration;

use reqwest::header::HeaderMap;
use reqwest::redirect::Policy;
use reqwest::{Client, Response};

use crate::endpoint::{EndpointError, Trust};
use crate::transfer::TransferLimits;

/// Longest error document that is read; S3's have a few hundred bytes.
const ERROR_BYTES_MAX: usize = 8 << 10;
/// Connections kept for reuse; below the store's own idle limit, so that it is the client who lets go first.
const POOL_IDLE: Duration = Duration::from_secs(25);

/// A client that trusts `trust` alone, follows nothing, decodes nothing, uses no proxy and never retries by itself.
pub(crate) fn build(trust: &Trust, limits: &TransferLimits) -> Result<Client, EndpointError> {
    Client::builder()
        .tls_backend_preconfigured(trust.tls()?)
        .https_only(matches!(trust, Trust::Authority(_)))
        .no_proxy()
        .redirect(Policy::none())
        .referer(false)
        .http1_only()
        .tcp_nodelay(true)
        .connect_timeout(limits.connect)
        .tcp_user_timeout(limits.idle)
        .pool_idle_timeout(POOL_IDLE)
        .pool_max_idle_per_host(limits.connections_max)
        .build()
        .map_err(|error| EndpointError::Client(describe(error)))
}

/// The chain of causes without the URL, which may carry a signature.
pub(crate) fn describe(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

/// What an S3 document says; a field is empty when the document does not have it.
pub(crate) struct S3Answer {
    /// `<Code>`: it is an error.
    pub(crate) code: String,
    /// `<ChecksumSHA256>`: base64, of the object that a copy made.
    pub(crate) checksum: String,
}

/// The `<Code>` of an S3 error document; empty when there is none. Consumes the body, so the connection is reusable.
pub(crate) async fn s3_code(response: Response) -> String {
    s3_answer(response).await.code
}

/// As [`s3_code`], with all that is read from a document.
pub(crate) async fn s3_answer(mut response: Response) -> S3Answer {
    let mut text = Vec::new();
    while let Ok(Some(piece)) = response.chunk().await {
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
    let code = element("Code").unwrap_or("").chars().filter(char::is_ascii_alphanumeric).take(64).collect();
    let checksum = element("ChecksumSHA256").unwrap_or("").trim().to_owned();
    S3Answer { code, checksum }
}

/// `Retry-After` in whole seconds; the form with a date is rare and ignored.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get("retry-after")?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}
