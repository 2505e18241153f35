//! What the broker publishes of connections, and of requests to JetStream.

use data_encoding::BASE64URL_NOPAD;
use schemas::UnixMillis;
use serde::Deserialize;

use super::{Happening, Sighting, cut, user};

/// A report, as far as it is used. The broker's fields may become more, and a client's token is
/// among them.
#[derive(Deserialize)]
struct Report {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    client: Client,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    subject: String,
    #[serde(default)]
    response: String,
}

#[derive(Default, Deserialize)]
struct Client {
    #[serde(default)]
    acc: String,
    #[serde(default)]
    user: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    host: String,
    #[serde(default)]
    jwt: String,
}

/// The public claims of a token. Where the broker refused the connection, nobody has signed them.
#[derive(Deserialize)]
struct Claims {
    sub: String,
    #[serde(default)]
    name: String,
    /// In seconds; none for a token without an end.
    exp: Option<u64>,
    /// In seconds; none for a token that was valid at once.
    nbf: Option<u64>,
}

impl Client {
    /// The claims of the client's token, without its signature.
    fn claims(&self) -> Option<Claims> {
        let claims = self.jwt.split('.').nth(1)?;
        let claims = BASE64URL_NOPAD.decode(claims.as_bytes()).ok()?;
        serde_json::from_slice(&claims).ok()
    }
}

#[derive(Deserialize)]
struct Response {
    error: Option<Error>,
}

#[derive(Deserialize)]
struct Error {
    #[serde(default)]
    description: String,
}

const API: &str = "$JS.API.";

/// Requests that change nothing.
const READS: [&str; 10] = [
    "INFO",
    "STREAM.INFO.",
    "STREAM.NAMES",
    "STREAM.LIST",
    "STREAM.MSG.GET.",
    "DIRECT.GET.",
    "CONSUMER.INFO.",
    "CONSUMER.NAMES.",
    "CONSUMER.LIST.",
    "CONSUMER.MSG.NEXT.",
];

/// The sighting in a report that was heard under `subject`; none if it is no report, or tells of
/// nothing that is recorded.
pub fn of_report(now: UnixMillis, subject: &str, payload: &[u8]) -> Option<Sighting> {
    let report: Report = serde_json::from_slice(payload).ok()?;
    let happening = match (report.kind.as_str(), subject.rsplit('.').next()?) {
        ("io.nats.server.advisory.v1.client_disconnect", "ERR") => Happening::AuthenticationFailed,
        ("io.nats.server.advisory.v1.client_disconnect", "DISCONNECT") => {
            Happening::ClientDisconnected
        }
        ("io.nats.server.advisory.v1.client_connect", "CONNECT") => Happening::ClientConnected,
        ("io.nats.jetstream.advisory.v1.api_audit", _) => Happening::StreamChanged,
        _ => return None,
    };
    let client = report.client;
    let claims = client.claims();
    let mut sighting = Sighting {
        happening,
        account: client.acc.parse().ok(),
        user: user(&client.user),
        name: cut(claims.as_ref().map_or(&client.name, |claims| &claims.name)),
        address: cut(&client.host),
        subject: String::new(),
        reason: cut(&report.reason),
    };
    match happening {
        Happening::StreamChanged => {
            let request = report.subject.strip_prefix(API)?;
            let reads = |read: &&str| match read.ends_with('.') {
                true => request.starts_with(*read),
                false => request == *read,
            };
            if READS.iter().any(reads) {
                return None;
            }
            sighting.subject = cut(&report.subject);
            let response: Option<Response> = serde_json::from_str(&report.response).ok();
            sighting.reason = match response.and_then(|response| response.error) {
                Some(error) => cut(&format!("refused: {}", error.description)),
                None => "done".to_owned(),
            };
        }
        Happening::AuthenticationFailed => {
            let more = match &claims {
                None if client.jwt.is_empty() => ": no token",
                None => ": the token cannot be read",
                Some(Claims { exp: Some(exp), .. }) if exp.saturating_mul(1000) <= now.get() => {
                    ": the token has ended"
                }
                Some(Claims { nbf: Some(nbf), .. }) if nbf.saturating_mul(1000) > now.get() => {
                    ": the token begins later"
                }
                Some(_) => "",
            };
            sighting.reason = cut(&format!("{}{more}", report.reason));
            sighting.user = claims.and_then(|claims| user(&claims.sub));
        }
        // The connection was refused, and that is told by itself.
        Happening::ClientDisconnected if report.reason == "Authentication Failure" => return None,
        _ => {}
    }
    Some(sighting)
}
