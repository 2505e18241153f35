//! The holder of a connection, with mutual TLS, and what it may do: a presigned URL is for the
//! holder that it names, and an access key is for the role that has it. Without mutual TLS nobody
//! is told apart.

use std::sync::Arc;

use identity::{Holder, TlsFault};
use objects::presign::HOLDER;
use s3s::{S3Error, S3Result, s3_error};
use schemas::permission::Role;
use tokio_rustls::rustls::ServerConnection;

use crate::gate::query_value;

/// The holder of the connection that a request came on. It travels with the request.
#[derive(Clone, Debug)]
pub(crate) enum Peer {
    /// This store asks for no certificates.
    Unasked,
    /// The holder that the certificate names.
    Holder(Arc<Holder>),
}

/// The access key that signed a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    /// The coordinator's.
    Admin,
    /// The auditors'.
    Audit,
    /// The audit service's.
    Log,
    /// One of those that sign URLs.
    Url,
}

impl Peer {
    /// The holder of a connection whose handshake is over. Its certificate was verified.
    ///
    /// # Errors
    /// The certificate names none.
    pub(crate) fn of(connection: &ServerConnection, asked: bool) -> Result<Self, TlsFault> {
        if !asked {
            return Ok(Self::Unasked);
        }
        let shown = connection.peer_certificates().and_then(|all| all.first());
        let unnamed = |why: String| {
            TlsFault::other(format!(
                "a client showed a certificate that names no holder: {why}"
            ))
        };
        let shown = shown.ok_or_else(|| unnamed("there is none".to_owned()))?;
        let holder = Holder::of(shown).map_err(|error| unnamed(error.to_string()))?;
        Ok(Self::Holder(Arc::new(holder)))
    }

    /// Checks that this holder may use a request that was signed with this key.
    ///
    /// # Errors
    /// The URL was given to another holder, or the key is another role's.
    pub(crate) fn check(&self, key: Key, query: &str) -> S3Result<()> {
        let Self::Holder(holder) = self else {
            return Ok(());
        };
        let role = match key {
            Key::Admin => Role::Coordinator,
            Key::Audit => Role::Auditor,
            Key::Log => Role::Recorder,
            Key::Url => return of_url(holder, query),
        };
        if holder.role == role {
            return Ok(());
        }
        let fault = TlsFault::other(format!(
            "{} ({}) used an access key that is for role {}",
            holder.key,
            holder.role.name(),
            role.name()
        ));
        tell(&fault);
        Err(s3_error!(
            AccessDenied,
            "this access key is for another role than the certificate names"
        ))
    }
}

/// Checks that a URL was given to this holder.
fn of_url(holder: &Holder, query: &str) -> S3Result<()> {
    match query_value(query, HOLDER) {
        Some(named) if named == holder.key.as_str() => Ok(()),
        Some(named) => {
            let fault = TlsFault::other(format!(
                "{} ({}) used a URL that was given to {}",
                holder.key,
                holder.role.name(),
                schemas::text::Shown(named)
            ));
            tell(&fault);
            Err(denied())
        }
        None => Err(s3_error!(
            AccessDenied,
            "this store takes urls that name their holder; the coordinator signs such with auth.mutual_tls"
        )),
    }
}

fn denied() -> S3Error {
    s3_error!(
        AccessDenied,
        "this url was given to another holder than the certificate names"
    )
}

/// Logs a fault of a client.
pub(crate) fn tell(fault: &TlsFault) {
    let code = fault.code();
    tracing::warn!(%code, cause = "client", next = code.next_step(), "a client is refused: {fault}");
}
