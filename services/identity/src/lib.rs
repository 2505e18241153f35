//! Identities: keys, NATS tokens, credentials files, signed documents and events, TLS material, and
//! the trust domain on disk that all of them come from. Nothing here opens a connection; nothing
//! here can print a secret.

pub mod accounts;
pub mod broker;
pub mod certificate;
pub mod claims;
pub mod clients;
pub mod credentials;
pub mod domain;
pub mod dsse;
pub mod event;
pub mod fault;
mod holders;
mod init;
pub mod issued;
pub mod issuer;
pub mod join;
pub mod jws;
pub mod jwt;
pub mod key;
pub mod layout;
pub mod lock;
pub mod mark;
mod mutual;
mod older;
pub mod purpose;
pub mod release;
pub mod revocation;
pub mod rotation;
pub mod secret;
pub mod server_config;
pub mod source;
pub mod store_keys;
pub mod tls;
pub mod trust;
pub mod vault;

pub use broker::BrokerFiles;
pub use certificate::CertificateRefused;
pub use clients::{ClientAuthority, ClientFile, Holder};
pub use credentials::Credentials;
pub use domain::{Domain, InitOptions, Issued};
pub use fault::{Own, TlsFault};
pub use issued::{IssuedList, Registration};
pub use issuer::Issuer;
pub use key::{KeyKind, SigningKey};
pub use layout::DomainLayout;
pub use lock::DomainLock;
pub use mark::{Mark, MarkFile};
pub use purpose::{AuditKey, ConnectionKey, HeadKey, ManifestKey};
pub use revocation::{Momentary, Revocation};
pub use secret::Seed;
pub use source::{BusTls, CredentialSource};
pub use store_keys::{AccessKey, StoreKeys};
pub use trust::TrustBundle;
pub use vault::Vault;
