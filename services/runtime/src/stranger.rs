//! Before it starts, a service connects to each broker without credentials, and must be refused.
//! With credentials, an open broker looks like a closed one.

use std::path::Path;

use async_nats::{ConnectErrorKind, ConnectOptions};
use futures::future::join_all;
use identity::{Own, TlsFault};
use schemas::Code;
use schemas::member::{Layer, Posture};
use tracing::instrument::WithSubscriber as _;
use tracing::subscriber::NoSubscriber;

use crate::{BusConfig, Failure, Material, Materials, clock, probe};

/// The name under which the broker's log shows the try.
pub(crate) const NAME: &str = "diloco-stranger";

/// What a broker did with a client without credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It refused the client.
    Refused,
    /// It let the client in.
    LetIn,
    /// It could not be asked, for this reason.
    Unknown(String),
}

/// Connects to each configured broker without credentials, which must be refused. A broker that
/// cannot be reached has let nobody in; the service's own connection fails for the same reason, or
/// takes another broker.
///
/// # Errors
/// [`Code::StrangerServed`]: a broker lets strangers in, and the layer is not open on purpose.
pub(crate) async fn is_refused(materials: &Materials, posture: &Posture) -> Result<(), Failure> {
    if posture.is_open(Layer::Bus) {
        return Ok(());
    }
    let authority = materials.items.iter().find_map(|item| match item {
        Material::Authority {
            path,
            layer: Layer::Bus,
            ..
        } => Some(path.as_path()),
        _ => None,
    });
    let buses = materials.items.iter();
    let buses = buses.filter(|item| matches!(item, Material::BusAddress { .. }));
    let addresses: Vec<&str> = buses.flat_map(Material::addresses).collect();
    for (address, outcome) in tried(&addresses, authority).await {
        match outcome {
            Outcome::Refused => {
                tracing::info!(address, "the broker refuses clients without credentials")
            }
            Outcome::Unknown(reason) => tracing::warn!(
                address,
                reason,
                "nobody knows if this broker refuses clients without credentials: it could not be asked"
            ),
            Outcome::LetIn => return Err(served(address)),
        }
    }
    Ok(())
}

/// Connects to each of these brokers without credentials. `authority` is the file of the
/// certificate authority that signed their certificates.
pub async fn tried<'a>(addresses: &[&'a str], authority: Option<&Path>) -> Vec<(&'a str, Outcome)> {
    // The client reports a refusal as an error; here it is the aim.
    let tries = addresses.iter().map(|address| async move {
        let outcome = connect(address, authority);
        (
            *address,
            outcome.with_subscriber(NoSubscriber::default()).await,
        )
    });
    join_all(tries).await
}

/// The failure that a broker lets strangers in.
pub fn served(address: &str) -> Failure {
    let detail = format!("the broker {address} lets in clients without credentials");
    Failure::new(Code::StrangerServed, detail)
}

async fn connect(address: &str, authority: Option<&Path>) -> Outcome {
    let options = ConnectOptions::new().name(NAME);
    let options = match authority.filter(|_| !address.starts_with("nats://")) {
        Some(authority) => options
            .require_tls(true)
            .add_root_certificates(authority.to_owned()),
        None => options,
    };
    match options.connect(address).await {
        Ok(_) => Outcome::LetIn,
        Err(error) if error.kind() == ConnectErrorKind::AuthorizationViolation => Outcome::Refused,
        // A broker that asks for certificates does not get as far as credentials.
        Err(error) if wants_certificate(&error) => Outcome::Refused,
        Err(error) => match authority {
            Some(authority) if hears_alert(address, authority).await => Outcome::Refused,
            _ => Outcome::Unknown(error.to_string()),
        },
    }
}

fn wants_certificate(error: &(dyn std::error::Error + 'static)) -> bool {
    let fault = TlsFault::of(error, &Own::Never, clock::now());
    fault.is_some_and(|fault| fault.code() == Code::ClientCertificateMissing)
}

/// True if the broker refuses a client that shows no certificate. The client of the bus may see
/// only that the connection ended.
async fn hears_alert(address: &str, authority: &Path) -> bool {
    let config = BusConfig {
        url: address.to_owned(),
        ca: authority.to_owned(),
        ..BusConfig::default()
    };
    let fault = probe::fault(&config).await;
    fault.is_some_and(|(_, fault)| fault.code() == Code::ClientCertificateMissing)
}
