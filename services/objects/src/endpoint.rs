//! The address of the store, and the authority that its certificate needs. System roots are not
//! used: the authority is always named.

use std::net::IpAddr;
use std::path::PathBuf;

use identity::ClientFile;
use identity::tls::{AuthorityError, TlsError, client_config, client_config_reading};
use rustls::ClientConfig;
use schemas::PublicKey;
use url::{Host, Url};

/// The protection of the connection to a store.
#[derive(Clone)]
pub enum Trust {
    /// TLS, with the PEM certificates of the authorities that may have signed the store's
    /// certificate.
    Authority(Vec<u8>),
    /// TLS, with the file of these certificates, and a client that shows the certificate in the
    /// other file to a store that asks for one. Both are read at every handshake.
    Shown(PathBuf, ClientFile),
    /// No TLS; accepted for loopback addresses only.
    PlainLoopback,
}

/// An S3 store: its address, the region it signs as, the authority of its certificate.
#[derive(Clone, Debug)]
pub struct Endpoint {
    url: Url,
    region: String,
    trust: Trust,
}

/// Reasons to refuse an endpoint.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The text is not a URL with a host and nothing after it.
    #[error("store endpoint {0:?} is not of the form https://host:port")]
    Url(String),
    /// Plaintext to another machine, or TLS settings that contradict the scheme.
    #[error(
        "store endpoint {0} needs https and a CA file; plain http is for loopback addresses, when asked for"
    )]
    Plaintext(String),
    /// The CA file holds no usable certificate.
    #[error("no usable CA certificate for the store: {0}")]
    Authority(#[from] AuthorityError),
}

impl Endpoint {
    /// The holder of the certificate that is shown to the store; none where no certificate is
    /// shown.
    ///
    /// # Errors
    /// There is a certificate, and it cannot be read or names no holder.
    pub fn holder(&self) -> Result<Option<PublicKey>, TlsError> {
        match self.trust.shown().filter(|file| file.exists()) {
            Some(file) => Ok(Some(file.holder()?.key)),
            None => Ok(None),
        }
    }

    /// An endpoint such as `https://127.0.0.1:9000`. The embedded store accepts any region name;
    /// `us-east-1` is usual.
    ///
    /// # Errors
    /// The URL has another form, or scheme, host and trust do not fit together.
    pub fn new(url: &str, region: &str, trust: Trust) -> Result<Self, EndpointError> {
        let refused = || {
            EndpointError::Url(
                url.split('?')
                    .next()
                    .unwrap_or_default()
                    .chars()
                    .take(120)
                    .collect(),
            )
        };
        let parsed = Url::parse(url).map_err(|_| refused())?;
        let bare = parsed.path() == "/" && parsed.query().is_none() && parsed.username().is_empty();
        // Some hosts are valid in a URL but not in a request, for example `{store}`.
        let is_uri = parsed.as_str().parse::<http::Uri>().is_ok();
        if parsed.host().is_none() || !bare || parsed.password().is_some() || !is_uri {
            return Err(refused());
        }
        trust.permits(&parsed)?;
        Ok(Self {
            url: parsed,
            region: region.to_owned(),
            trust,
        })
    }

    /// The base URL.
    pub const fn url(&self) -> &Url {
        &self.url
    }

    /// The region that signatures name.
    pub fn region(&self) -> &str {
        &self.region
    }

    /// The authority that the store's certificate needs.
    pub const fn trust(&self) -> &Trust {
        &self.trust
    }
}

impl Trust {
    /// Checks that a request to `url` is protected as this trust demands.
    ///
    /// # Errors
    /// Plaintext where TLS is required or beyond loopback, or TLS without an authority.
    pub(crate) fn permits(&self, url: &Url) -> Result<(), EndpointError> {
        let right = match self {
            Self::Authority(_) | Self::Shown(..) => url.scheme() == "https",
            Self::PlainLoopback => url.scheme() == "http" && is_loopback(url),
        };
        if right {
            Ok(())
        } else {
            Err(EndpointError::Plaintext(url.origin().ascii_serialization()))
        }
    }

    /// The file with the certificate that is shown to the store.
    pub(crate) fn shown(&self) -> Option<&ClientFile> {
        match self {
            Self::Shown(_, file) => Some(file),
            Self::Authority(_) | Self::PlainLoopback => None,
        }
    }

    /// The configuration of TLS connections; none where plaintext is meant.
    ///
    /// # Errors
    /// The PEM text or the file holds no usable certificate.
    pub(crate) fn tls(&self) -> Result<Option<ClientConfig>, EndpointError> {
        match self {
            Self::Authority(pem) => Ok(Some(client_config(pem)?)),
            Self::Shown(authorities, file) => Ok(Some(client_config_reading(authorities, file)?)),
            Self::PlainLoopback => Ok(None),
        }
    }
}

impl std::fmt::Debug for Trust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Authority(_) => "Authority",
            Self::Shown(..) => "Shown",
            Self::PlainLoopback => "PlainLoopback",
        })
    }
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(ip)) => IpAddr::V4(ip).is_loopback(),
        Some(Host::Ipv6(ip)) => IpAddr::V6(ip).is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tl_02_plaintext_is_for_loopback_when_asked_for() {
        for url in ["http://127.0.0.1:9", "http://[::1]:9", "http://localhost:9"] {
            let endpoint = Endpoint::new(url, "r", Trust::PlainLoopback);
            assert_eq!(endpoint.unwrap().region(), "r", "{url}");
        }
        for (url, trust) in [
            ("http://10.0.0.1:9000", Trust::PlainLoopback),
            ("http://[2001:db8::1]:9000", Trust::PlainLoopback),
            ("http://store.example:9000", Trust::PlainLoopback),
            ("http://127.0.0.1:9000", Trust::Authority(Vec::new())),
            ("https://127.0.0.1:9000", Trust::PlainLoopback),
        ] {
            assert!(
                matches!(
                    Endpoint::new(url, "r", trust),
                    Err(EndpointError::Plaintext(_))
                ),
                "{url}"
            );
        }
    }

    #[test]
    fn only_a_bare_origin_is_an_endpoint() {
        for url in [
            "",
            "store",
            "https://h/path",
            "https://h/?q=1",
            "https://user:secret@h",
            "https://:secret@h",
            "https://{store}:9000",
        ] {
            assert!(
                matches!(
                    Endpoint::new(url, "r", Trust::Authority(Vec::new())),
                    Err(EndpointError::Url(_))
                ),
                "{url}"
            );
        }
    }

    #[test]
    fn logs_name_the_kind_of_trust_alone() {
        let kinds = [Trust::Authority(b"PEM".to_vec()), Trust::PlainLoopback];
        let said = kinds.map(|trust| format!("{trust:?}"));
        assert_eq!(said, ["Authority", "PlainLoopback"]);
    }

    #[test]
    fn tl_20_a_certificate_that_names_no_holder_is_no_missing_one() {
        let scratch = tempfile::tempdir().unwrap();
        let file = ClientFile::beside(&scratch.path().join("own.creds"));
        let trust = Trust::Shown(PathBuf::new(), file.clone());
        let endpoint = Endpoint::new("https://127.0.0.1:9000", "r", trust).unwrap();
        assert_eq!(endpoint.holder().unwrap(), None, "none is shown");
        identity::secret::write_private(file.path(), b"no certificate").unwrap();
        let refused = endpoint.holder();
        assert!(
            matches!(refused, Err(TlsError::Missing { .. })),
            "{refused:?}"
        );
    }

    #[test]
    fn an_empty_ca_file_is_refused() {
        assert!(matches!(
            Trust::Authority(b"nothing".to_vec()).tls(),
            Err(EndpointError::Authority(_))
        ));
    }
}
