//! The materials of a process: addresses, credentials, keys, certificates. The role of a process
//! decides which of them it has, and each is checked in the same way in every process.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use identity::claims::UserClaims;
use identity::jwt::Jwt;
use identity::{
    AccessKey, AuditKey, ClientFile, Credentials, ManifestKey, TrustBundle, store_keys, tls,
};
use schemas::member::Layer;
use schemas::text::Time;
use schemas::{Code, Refusal, UnixMillis};
use url::Url;

use crate::expiry::{self, Ending};

/// Access keys and secrets that stand in everybody's examples.
const SAMPLES: [&str; 12] = [
    "changeme",
    "change-me",
    "minioadmin",
    "minio",
    "password",
    "secret",
    "example",
    "test",
    "admin",
    "wjalrxutnfemi/k7mdeng/bpxrficyexamplekey",
    "akiaiosfodnn7example",
    "placeholder",
];

/// The materials of a process, and the time by which they are judged.
#[derive(Clone, Debug)]
pub struct Materials {
    /// The materials, each once.
    pub items: Vec<Material>,
    /// The time now.
    pub now: UnixMillis,
}

/// One material, with the configuration key that names it. An empty path or address means "not
/// set".
#[derive(Clone, Debug)]
#[expect(
    missing_docs,
    reason = "fields are the configuration key and its value"
)]
pub enum Material {
    /// Address of the NATS servers, separated by commas.
    BusAddress { key: &'static str, url: String },
    /// Address of the store.
    StoreAddress { key: &'static str, url: String },
    /// Credentials file for the bus.
    Credentials { key: &'static str, path: PathBuf },
    /// Certificate authority of a layer's servers.
    Authority {
        key: &'static str,
        path: PathBuf,
        layer: Layer,
    },
    /// Trust bundle.
    Trust { key: &'static str, path: PathBuf },
    /// Seed file of the key that signs leases and commands.
    ManifestKey { key: &'static str, path: PathBuf },
    /// Seed file of the key that signs events and statements.
    AuditKey { key: &'static str, path: PathBuf },
    /// Folder of the records of issued credentials.
    Records { key: &'static str, path: PathBuf },
    /// The store's access keys.
    StoreKeys { key: &'static str, path: PathBuf },
    /// The audit service's access key to the log in the store.
    StoreLogKey { key: &'static str, path: PathBuf },
    /// Certificate of the authority that this process takes clients of, where it asks for
    /// certificates.
    Clients { key: &'static str, path: PathBuf },
    /// Certificate and private key with which this process serves a layer.
    Certificate {
        keys: [&'static str; 2],
        certificate: PathBuf,
        private_key: PathBuf,
        layer: Layer,
    },
}

/// The machines that can reach a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    Loopback,
    Network,
}

impl Materials {
    /// Ends of all certificates and credentials, each file once. A file that cannot be read is
    /// reported elsewhere.
    pub fn endings(&self) -> Vec<Ending> {
        let mut endings: Vec<Ending> = self.items.iter().flat_map(Material::endings).collect();
        endings.sort_by(|a, b| (a.at, &a.what).cmp(&(b.at, &b.what)));
        endings.dedup();
        endings
    }
}

impl Material {
    /// The layer that needs it.
    pub(crate) fn layer(&self) -> Layer {
        match self {
            Self::BusAddress { .. } | Self::Credentials { .. } => Layer::Bus,
            Self::StoreAddress { .. }
            | Self::StoreKeys { .. }
            | Self::StoreLogKey { .. }
            | Self::Clients { .. } => Layer::Bulk,
            Self::Trust { .. } | Self::ManifestKey { .. } | Self::AuditKey { .. } => {
                Layer::Manifests
            }
            Self::Records { .. } => Layer::Enrolment,
            Self::Authority { layer, .. } | Self::Certificate { layer, .. } => *layer,
        }
    }

    /// The key in the configuration.
    pub(crate) fn key(&self) -> &'static str {
        match self {
            Self::BusAddress { key, .. }
            | Self::StoreAddress { key, .. }
            | Self::Credentials { key, .. }
            | Self::Authority { key, .. }
            | Self::Trust { key, .. }
            | Self::ManifestKey { key, .. }
            | Self::AuditKey { key, .. }
            | Self::Records { key, .. }
            | Self::StoreKeys { key, .. }
            | Self::StoreLogKey { key, .. }
            | Self::Clients { key, .. } => key,
            Self::Certificate { keys: [key, _], .. } => key,
        }
    }

    /// The addresses it names.
    pub(crate) fn addresses(&self) -> Vec<&str> {
        match self {
            Self::BusAddress { url, .. } | Self::StoreAddress { url, .. } => url
                .split(',')
                .map(str::trim)
                .filter(|url| !url.is_empty())
                .collect(),
            _ => Vec::new(),
        }
    }

    /// True when the scheme encrypts.
    pub(crate) fn is_encrypted(&self, url: &Url) -> bool {
        match self {
            Self::StoreAddress { .. } => url.scheme() == "https",
            _ => matches!(url.scheme(), "tls" | "wss"),
        }
    }

    /// The reason why the material is absent; none when it is there. It is absent if it is not set,
    /// or if its file is missing, empty or blank.
    pub(crate) fn missing(&self) -> Option<String> {
        match self {
            Self::BusAddress { .. } | Self::StoreAddress { .. } => {
                self.addresses().is_empty().then(|| "is not set".to_owned())
            }
            Self::Certificate {
                certificate,
                private_key,
                ..
            } => {
                // Half a pair is a different error, which the check finds.
                let (certificate, private_key) = (absent(certificate), absent(private_key));
                private_key.and(certificate)
            }
            // Needed only where certificates of clients are: see `uncertified`.
            Self::Clients { .. } => None,
            Self::Credentials { path, .. }
            | Self::Authority { path, .. }
            | Self::Trust { path, .. }
            | Self::ManifestKey { path, .. }
            | Self::AuditKey { path, .. }
            | Self::Records { path, .. }
            | Self::StoreKeys { path, .. }
            | Self::StoreLogKey { path, .. } => absent(path),
        }
    }

    /// Checks that material that is there is well formed and usable now.
    pub(crate) fn check(&self, now: UnixMillis) -> Result<(), Refusal> {
        let refused = |code: Code, error: &dyn std::fmt::Display| {
            Refusal::new(code, format!("{}: {error}", self.key()))
        };
        match self {
            Self::BusAddress { .. } | Self::StoreAddress { .. } => {
                let parsed = self
                    .addresses()
                    .into_iter()
                    .try_for_each(|url| parse(url).map(|_| ()));
                parsed.map_err(|reason| refused(Code::ConfigInvalid, &reason))
            }
            Self::Credentials { path, .. } => Credentials::read(path)
                .and_then(|credentials| credentials.check(now))
                .map_err(|error| refused(error.code(), &error)),
            Self::Authority { path, .. } => tls::check_authority(path)
                .and_then(|()| tls::check_lifetime(path, now))
                .map_err(|error| refused(error.code(), &error)),
            Self::Clients { path, .. } if path.as_os_str().is_empty() => Ok(()),
            Self::Clients { path, .. } => tls::check_authority(path)
                .and_then(|()| tls::check_lifetime(path, now))
                .map_err(|error| refused(error.code(), &error)),
            Self::Trust { path, .. } => TrustBundle::read(path)
                .map(|_| ())
                .map_err(|error| refused(error.code(), &error)),
            Self::ManifestKey { path, .. } => ManifestKey::read(path)
                .map(|_| ())
                .map_err(|error| refused(error.code(), &error)),
            Self::AuditKey { path, .. } => AuditKey::read(path)
                .map(|_| ())
                .map_err(|error| refused(error.code(), &error)),
            Self::Records { path, .. } => std::fs::read_dir(path).map(|_| ()).map_err(|error| {
                let text = format!("{}: {error}", path.display());
                refused(Code::CredentialUnreadable, &text)
            }),
            Self::StoreKeys { path, .. } => store_keys::StoreKeys::read(path)
                .map(|_| ())
                .map_err(|error| refused(error.code(), &error)),
            Self::StoreLogKey { path, .. } => AccessKey::read_log(path)
                .map(|_| ())
                .map_err(|error| refused(error.code(), &error)),
            Self::Certificate {
                keys,
                certificate,
                private_key,
                ..
            } => {
                for (own, other, path) in [(0, 1, certificate), (1, 0, private_key)] {
                    if let Some(why) = absent(path) {
                        let text = format!("{} {why}, but {} is", keys[own], keys[other]);
                        return Err(Refusal::new(Code::CredentialHalf, text));
                    }
                }
                tls::server_config(certificate, private_key)
                    .and_then(|_| tls::check_lifetime(certificate, now))
                    .map_err(|error| refused(error.code(), &error))
            }
        }
    }

    /// Under `auth.mutual_tls`, what is wrong with the certificate that this process shows; nothing
    /// for materials that need none.
    pub(crate) fn uncertified(&self, now: UnixMillis) -> Option<Refusal> {
        let (key, path) = match self {
            Self::Credentials { key, path } => (key, path),
            Self::Clients { key, path } => {
                let why = absent(path)?;
                let text = format!("{key} {why}; auth.mutual_tls demands it");
                return Some(Refusal::new(Code::CredentialMissing, text));
            }
            _ => return None,
        };
        let credentials = Credentials::read(path).ok()?;
        let file = ClientFile::beside(path);
        let shown = file.path().display().to_string();
        let refused =
            |code, text: String| Some(Refusal::new(code, format!("beside {key}: {text}")));
        if let Some(why) = absent(file.path()) {
            let text = format!("the certificate {why}; auth.mutual_tls demands it");
            return refused(Code::ClientCertificateMissing, text);
        }
        let (facts, holder) = match (file.facts(), file.holder()) {
            (Ok(facts), Ok(holder)) => (facts, holder),
            (Err(error), _) | (_, Err(error)) => return refused(error.code(), error.to_string()),
        };
        let subject = facts.shown_subject();
        if let Some(outside) = facts.outside(now) {
            let now = Time(now);
            let text = format!("{shown}, issued to {subject}, {outside}; it is {now} now");
            return refused(Code::ClientCertificateExpired, text);
        }
        if holder.key != *credentials.public() {
            let own = credentials.public();
            let text = format!("{shown} is of {subject}, and the credentials are of {own}");
            return refused(Code::ClientCertificateOther, text);
        }
        None
    }

    /// Ends of its certificates or credentials.
    fn endings(&self) -> Vec<Ending> {
        match self {
            Self::Authority { path, .. }
            | Self::Certificate {
                certificate: path, ..
            } => expiry::certificates(path),
            Self::Credentials { path, .. } => {
                let token = Credentials::read(path)
                    .ok()
                    .map(|credentials| credentials.token().clone());
                // A shorter life is one that is renewed: a failure to do so is logged by itself.
                let long = |token: &Jwt<UserClaims>| {
                    let ends = token.expires.unwrap_or(UnixMillis(u64::MAX));
                    token.issued.until(ends) > expiry::NOTICE
                };
                let ending = token.filter(long).and_then(|token| {
                    let what = format!("the credential of {} in {}", token.name, path.display());
                    Some(Ending {
                        what,
                        at: token.expires?,
                    })
                });
                ending.into_iter().collect()
            }
            _ => Vec::new(),
        }
    }

    /// The id of an access key whose id or secret is a well-known sample.
    pub(crate) fn sample(&self) -> Option<String> {
        let pairs: Vec<AccessKey> = match self {
            Self::StoreKeys { path, .. } => {
                let keys = store_keys::StoreKeys::read(path).ok()?;
                let three = [keys.admin, keys.put, keys.get].into_iter();
                three.chain(keys.audit).chain(keys.log).collect()
            }
            Self::StoreLogKey { path, .. } => vec![AccessKey::read_log(path).ok()?],
            _ => return None,
        };
        let sample = |text: &str| SAMPLES.contains(&text.to_lowercase().as_str());
        pairs
            .iter()
            .find(|pair| sample(pair.expose_secret()) || sample(pair.id()))
            .map(|pair| pair.id().to_owned())
    }
}

/// Parses an address with scheme and host.
pub(crate) fn parse(text: &str) -> Result<(Url, Reach), String> {
    let refused = || format!("{text:?} is not an address such as tls://127.0.0.1:4222");
    let url = Url::parse(text).map_err(|_| refused())?;
    let host = url
        .host_str()
        .filter(|host| !host.is_empty())
        .ok_or_else(refused)?;
    if !matches!(
        url.scheme(),
        "tls" | "wss" | "https" | "nats" | "ws" | "http"
    ) {
        return Err(refused());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("an address must not hold credentials; use a credentials file".to_owned());
    }
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let loopback = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    Ok((
        url,
        if loopback {
            Reach::Loopback
        } else {
            Reach::Network
        },
    ))
}

/// The reason why a file counts as absent; none when it is there.
fn absent(path: &Path) -> Option<String> {
    let shown = path.to_str().unwrap_or("?");
    if shown.trim().is_empty() {
        return Some("is not set".to_owned());
    }
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Some(format!("names {shown}, which is not there"))
        }
        Ok(metadata) if metadata.is_file() && metadata.len() < identity::secret::FILE_BYTES_MAX => {
            let blank =
                std::fs::read(path).is_ok_and(|bytes| bytes.iter().all(u8::is_ascii_whitespace));
            blank.then(|| format!("names {shown}, which is empty"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_a_scheme_a_host_and_no_password() {
        for (text, reach) in [
            ("tls://127.0.0.1:4222", Reach::Loopback),
            ("nats://localhost:4222", Reach::Loopback),
            ("https://[::1]:9000", Reach::Loopback),
            ("tls://10.0.0.1:4222", Reach::Network),
            ("https://store.example:9000", Reach::Network),
        ] {
            assert_eq!(parse(text).map(|(_, reach)| reach), Ok(reach), "{text}");
        }
        for text in [
            "",
            "127.0.0.1:4222",
            "ftp://x",
            "tls://",
            "nats://user:word@host",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
