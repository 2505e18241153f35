//! The broker's own lock, tried as a stranger tries it: a broker that lets anybody in serves a
//! process with credentials just as well, so nothing else would show it.

use std::path::Path;
use std::time::Duration;

use async_nats::ConnectOptions;
use schemas::Code;
use schemas::member::{Layer, Posture};

use crate::{Failure, Material, Materials};

/// Longest try at one broker.
const TRY_MAX: Duration = Duration::from_secs(3);
/// The name under which the broker's log shows the try.
const NAME: &str = "diloco-stranger";

/// Connects to each broker without credentials, which must be refused. A broker that cannot be
/// reached has let nobody in; the service's own connection says why.
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
    for bus in buses.filter(|item| matches!(item, Material::BusAddress { .. })) {
        for address in bus.addresses() {
            if is_let_in(address, authority).await {
                let detail = format!("the broker {address} lets in who shows no credentials");
                return Err(Failure::new(Code::StrangerServed, detail));
            }
        }
    }
    Ok(())
}

async fn is_let_in(address: &str, authority: Option<&Path>) -> bool {
    let options = ConnectOptions::new().name(NAME).connection_timeout(TRY_MAX);
    let options = match authority.filter(|_| !address.starts_with("nats://")) {
        Some(authority) => options
            .require_tls(true)
            .add_root_certificates(authority.to_owned()),
        None => options,
    };
    matches!(
        tokio::time::timeout(TRY_MAX, options.connect(address)).await,
        Ok(Ok(_))
    )
}
