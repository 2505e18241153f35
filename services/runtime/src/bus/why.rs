//! Why a connection failed, as an error.

use async_nats::{ConnectError, ConnectErrorKind};
use identity::TlsFault;
use schemas::Code;

use super::{BusConfig, BusError};
use crate::{clock, probe};

/// The reason why a connection failed.
pub(super) async fn why_not(config: &BusConfig, error: &ConnectError) -> BusError {
    let (url, reason) = (config.url.clone(), causes(error));
    match error.kind() {
        ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
            return BusError::Credential {
                url,
                reason,
                code: Code::BusRefused,
            };
        }
        _ => {}
    }
    if let Some(fault) = TlsFault::of(error, &config.own(), clock::now()) {
        return BusError::Tls { url, fault };
    }
    // The client reports some faults only as a connection that ended, so the servers are looked at.
    match error.kind() {
        ConnectErrorKind::Tls | ConnectErrorKind::Io => match probe::fault(config).await {
            Some((url, fault)) => BusError::Tls { url, fault },
            None => BusError::Unreachable { url, reason },
        },
        _ => BusError::Unreachable { url, reason },
    }
}

/// An error with its causes, in one line.
pub(crate) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}
