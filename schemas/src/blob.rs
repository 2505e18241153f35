//! Grants of objects: git-LFS shaped actions, each for one object, one method and a short time.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::lease::LeaseRef;
use crate::limits::WORKER_MESSAGE_BYTES_MAX;
use crate::message::{V, message};
use crate::{Digest, ObjectRef, UnixMillis};

/// `blob.put`: URLs to upload objects of a leased unit into quarantine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PutRequest {
    /// Version.
    pub v: V<1>,
    /// The lease that they are for.
    pub lease: LeaseRef,
    /// The objects, at most `GRANTS_MAX`.
    pub objects: Vec<ObjectRef>,
}

/// `blob.get`: URLs to read objects that the run refers to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GetRequest {
    /// Version.
    pub v: V<1>,
    /// The objects, at most `GRANTS_MAX`.
    pub objects: Vec<Digest>,
}

/// The answer to both: one grant per object, in the order asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grants {
    /// Version.
    pub v: V<1>,
    /// The grants.
    pub grants: Vec<Grant>,
}

/// An instruction for one object: the request to send, or nothing to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// The object.
    pub digest: Digest,
    /// The request to send; none when an upload is not needed because the store has the object.
    pub action: Option<HttpAction>,
}

/// One HTTP request that the store will accept. The URL is a bearer secret: it is printed without
/// its query.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpAction {
    /// PUT or GET.
    pub method: Method,
    /// The URL.
    pub href: String,
    /// Headers to send with exactly these values; the signature covers them.
    pub headers: BTreeMap<String, String>,
    /// The end of the URL's validity, by the store's clock; it is checked when the request starts.
    pub expires_at: UnixMillis,
}

/// An HTTP method that a grant can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Method {
    /// Read.
    Get,
    /// Create.
    Put,
}

message!(PutRequest, "blob.put", WORKER_MESSAGE_BYTES_MAX);
message!(GetRequest, "blob.get", WORKER_MESSAGE_BYTES_MAX);
message!(Grants, "grants", 1 << 20);

impl fmt::Debug for HttpAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.href.split('?').next().unwrap_or_default();
        f.debug_struct("HttpAction")
            .field("method", &self.method)
            .field("href", &format_args!("{shown}?…"))
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_printed_without_its_signature() {
        let action = HttpAction {
            method: Method::Get,
            href: "https://store/blobs/x?X-Amz-Signature=secret".to_owned(),
            headers: BTreeMap::new(),
            expires_at: UnixMillis(1),
        };
        assert!(!format!("{action:?}").contains("secret"));
    }
}
