//! Why TLS failed, in words: which certificate, what is wrong with it, and when it ended or begins.
//! A server that refuses a client's certificate sends an alert with the kind of the fault, and
//! nothing else; so the client says what it has shown.

use std::error::Error;

use rustls::{AlertDescription, CertificateError, InvalidMessage};
use schemas::text::{Shown, Time};
use schemas::{Code, UnixMillis};

use crate::certificate::{CertificateRefused, Facts, cause};
use crate::clients::ClientFile;
use crate::tls::TlsError;

/// A fault of TLS, with its code.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct TlsFault {
    code: Code,
    text: String,
}

/// The certificate that a client has for servers that ask for one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Own {
    /// This connection shows none, whatever the server asks.
    Never,
    /// The file does not exist.
    Absent(String),
    /// The file cannot be used, for this reason.
    Unusable(String),
    /// The file, and the certificate in it.
    Held(String, Facts),
}

impl Own {
    /// Looks at the file that holds it, as it is now.
    pub fn look(file: Option<&ClientFile>) -> Self {
        let Some(file) = file else {
            return Self::Never;
        };
        let name = file.path().display().to_string();
        match file.facts() {
            Ok(facts) => Self::Held(name, facts),
            Err(_) if !file.exists() => Self::Absent(name),
            // It names the file.
            Err(TlsError::File(error)) => Self::Unusable(error.to_string()),
            Err(error) => Self::Unusable(error.to_string()),
        }
    }
}

impl TlsFault {
    /// The fault that caused the error of a client's connection, if TLS did. `own` is what the
    /// client shows.
    pub fn of(error: &(dyn Error + 'static), own: &Own, now: UnixMillis) -> Option<Self> {
        if let Some(known) = cause(error, |error| error.downcast_ref::<Self>()) {
            return Some(known.clone());
        }
        if let Some(refused) = CertificateRefused::of(error) {
            return Some(refused.clone().into());
        }
        match cause(error, |error| error.downcast_ref::<rustls::Error>())? {
            rustls::Error::AlertReceived(alert) => Self::of_alert(*alert, own, now),
            error if is_plaintext(error) => Some(Self::of_plaintext()),
            _ => None,
        }
    }

    /// The fault of an alert that the server sent.
    pub fn of_alert(alert: AlertDescription, own: &Own, now: UnixMillis) -> Option<Self> {
        use AlertDescription as Alert;
        let known = matches!(
            alert,
            Alert::CertificateRequired
                | Alert::CertificateExpired
                | Alert::UnknownCA
                | Alert::BadCertificate
                | Alert::UnsupportedCertificate
                | Alert::CertificateUnknown
                | Alert::CertificateRevoked
                | Alert::AccessDenied
        );
        // Authorities of two domains have the same name, so a certificate of the other one shows
        // as a wrong signature. Without a certificate the alert is about something else.
        let signature = alert == Alert::DecryptError && matches!(own, Own::Held(..));
        if !known && !signature {
            return None;
        }
        let (file, facts) = match own {
            Own::Held(file, facts) if alert != Alert::CertificateRequired => (file, facts),
            _ => return Some(Self::of_none(own)),
        };
        let subject = facts.shown_subject();
        let said = |code, why: String| {
            let text = format!(
                "the server refuses the certificate in {file}, issued to {subject}, which {why}"
            );
            Some(Self { code, text })
        };
        // The alert alone does not say which side's clock is wrong, so the certificate is looked
        // at first.
        if let Some(outside) = facts.outside(now) {
            let why = format!("{outside}; this machine's clock says {}", Time(now));
            return said(Code::ClientCertificateExpired, why);
        }
        match alert {
            Alert::CertificateExpired => {
                let why = format!(
                    "is valid from {} to {}: by the server's clock it is not, by this machine's it is {}",
                    Time(facts.begins),
                    Time(facts.ends),
                    Time(now)
                );
                said(Code::ClientCertificateExpired, why)
            }
            Alert::UnknownCA | Alert::DecryptError => said(
                Code::ClientCertificateUntrusted,
                format!(
                    "is signed by an authority that the server does not take for clients{}",
                    by(facts.authority.as_deref())
                ),
            ),
            _ if !facts.purposes.client => said(
                Code::ClientCertificatePurpose,
                "is not for clients (its purpose is another one)".to_owned(),
            ),
            _ => said(
                Code::ClientCertificateUntrusted,
                format!("it does not take (alert {alert:?})"),
            ),
        }
    }

    /// The server wants a certificate, and got none.
    fn of_none(own: &Own) -> Self {
        let why = match own {
            Own::Never => "this connection has none".to_owned(),
            Own::Absent(file) => format!("{file} does not exist"),
            Own::Unusable(reason) => reason.clone(),
            Own::Held(file, facts) => format!(
                "the one in {file}, issued to {}, was not shown",
                facts.shown_subject()
            ),
        };
        Self {
            code: Code::ClientCertificateMissing,
            text: format!("the server asks for a client's certificate, and {why}"),
        }
    }

    /// One side speaks TLS, and the other does not.
    fn of_plaintext() -> Self {
        Self {
            code: Code::TlsMismatch,
            text: "TLS was begun, and the other side answers in plaintext".to_owned(),
        }
    }

    /// A server that greets in plaintext and offers no TLS, to a client that wants it; or the
    /// reverse.
    pub fn of_greeting(client_wants_tls: bool) -> Self {
        let text = match client_wants_tls {
            true => "the address asks for TLS, and the server offers none",
            false => "the server demands TLS, and the address does not ask for it: use tls://",
        };
        Self {
            code: Code::TlsMismatch,
            text: text.to_owned(),
        }
    }

    /// The fault of a client's certificate that a server refuses.
    pub fn of_client(error: &rustls::Error, certificate: &[u8], now: UnixMillis) -> Self {
        let facts = Facts::of(certificate);
        let subject = facts.as_ref().map_or_else(
            || "nobody that can be read".to_owned(),
            Facts::shown_subject,
        );
        let said = |code, why: String| Self {
            code,
            text: format!("the certificate that a client shows, issued to {subject}, {why}"),
        };
        let rustls::Error::InvalidCertificate(error) = error else {
            let why = format!("is not taken: {}", Shown(&error.to_string()));
            return said(Code::ClientCertificateUntrusted, why);
        };
        let authority = facts.as_ref().and_then(|facts| facts.authority.clone());
        match (error, facts.and_then(|facts| facts.outside(now))) {
            (
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. },
                Some(outside),
            ) => {
                let why = format!("{outside}; this machine's clock says {}", Time(now));
                said(Code::ClientCertificateExpired, why)
            }
            (CertificateError::UnknownIssuer | CertificateError::BadSignature, _) => said(
                Code::ClientCertificateUntrusted,
                format!(
                    "is signed by an authority that is not taken for clients here{}",
                    by(authority.as_deref())
                ),
            ),
            (
                CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. },
                _,
            ) => said(
                Code::ClientCertificatePurpose,
                "is not for clients (its purpose is another one)".to_owned(),
            ),
            (error, _) => said(
                Code::ClientCertificateUntrusted,
                format!("is not taken: {}", Shown(&error.to_string())),
            ),
        }
    }

    /// The fault that ended a handshake at a server, if it is one that somebody can do something
    /// about. Refusals of a client's certificate are told where they are made.
    pub fn at_server(error: &(dyn Error + 'static)) -> Option<Self> {
        use AlertDescription as Alert;
        let said = |code, text: &str| {
            Some(Self {
                code,
                text: text.to_owned(),
            })
        };
        match cause(error, |error| error.downcast_ref::<rustls::Error>())? {
            rustls::Error::NoCertificatesPresented => said(
                Code::ClientCertificateMissing,
                "a client showed no certificate, and this server asks for one",
            ),
            rustls::Error::AlertReceived(
                Alert::UnknownCA | Alert::BadCertificate | Alert::CertificateUnknown,
            ) => said(
                Code::CertificateUntrusted,
                "a client does not take the certificate of this server; the client's own words say why",
            ),
            rustls::Error::AlertReceived(Alert::CertificateExpired) => said(
                Code::ServerCertificateExpired,
                "a client says that the certificate of this server is out of its time",
            ),
            error if is_plaintext(error) => said(
                Code::TlsMismatch,
                "a client speaks plaintext at this port, and TLS is spoken here",
            ),
            _ => None,
        }
    }

    /// A client's certificate that was verified, and does not belong to what it is used for.
    pub fn other(text: String) -> Self {
        Self {
            code: Code::ClientCertificateOther,
            text,
        }
    }

    /// The code of the page that says what to do.
    pub const fn code(&self) -> Code {
        self.code
    }
}

schemas::coded!(TlsFault);

impl From<CertificateRefused> for TlsFault {
    fn from(refused: CertificateRefused) -> Self {
        Self {
            code: refused.code(),
            text: refused.to_string(),
        }
    }
}

/// The end of a sentence that names an authority, where the certificate does.
fn by(authority: Option<&str>) -> String {
    authority.map_or_else(String::new, |authority| format!(": {authority}"))
}

/// True if the first bytes of the other side are no record of TLS.
const fn is_plaintext(error: &rustls::Error) -> bool {
    matches!(
        error,
        rustls::Error::InvalidMessage(
            InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion
        )
    )
}
