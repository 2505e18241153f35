//! The switches of `require_auth`, as far as they decide how an operator reaches bus and store.
//! There is no configuration file here: they are read from the environment variables that every
//! service reads.

use std::ffi::OsString;

use runtime::config::load_from;
use runtime::{
    AuthConfig, BusConfig, ConfigArgs, Failure, Loaded, Material, Materials, clock, validate,
};
use schemas::member::{Layer, Posture};
use schemas::{Code, Refusal};
use serde::{Deserialize, Serialize};

/// Switches from the environment: `DILOCO_AUTH__EXCEPTIONS` and its siblings.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Switches {
    auth: AuthConfig,
}

/// Checks the addresses of the bus by the switches, with the check that every service makes.
/// Returns a warning to print if an address asks for plaintext and the switches allow it.
///
/// # Errors
/// [`Code::PlaintextRefused`] unless the layer was opened on purpose; a wrong switch or address.
pub(crate) fn check_bus(
    bus: &BusConfig,
    environment: impl Iterator<Item = (OsString, OsString)>,
) -> Result<Option<String>, Failure> {
    let address = Material::BusAddress {
        key: "bus.url",
        url: bus.url.clone(),
    };
    let warning = check(address, &bus.url, Layer::Bus, environment)?;
    Ok(warning.filter(|_| !bus.is_encrypted()))
}

/// The layers of protection that the switches relax for a machine that reaches the bus there.
///
/// # Errors
/// As [`check_bus`].
pub(crate) fn posture(
    bus: &BusConfig,
    environment: impl Iterator<Item = (OsString, OsString)>,
) -> Result<Posture, Failure> {
    let Loaded {
        value: Switches { auth },
        origins,
    } = load_from(&ConfigArgs::default(), &[], environment)?;
    let address = Material::BusAddress {
        key: "bus.url",
        url: bus.url.clone(),
    };
    let materials = Materials {
        items: vec![address],
        now: clock::now(),
    };
    validate(&auth, &materials, &origins).map_err(Failure::all)
}

/// The same for the address of the store.
///
/// # Errors
/// As [`check_bus`].
pub(crate) fn check_store(
    url: &str,
    environment: impl Iterator<Item = (OsString, OsString)>,
) -> Result<Option<String>, Failure> {
    let address = Material::StoreAddress {
        key: "store.url",
        url: url.to_owned(),
    };
    let warning = check(address, url, Layer::Bulk, environment)?;
    Ok(warning.filter(|_| !url.starts_with("https://")))
}

/// Checks an address; returns the warning for one without encryption when its layer is open.
fn check(
    address: Material,
    url: &str,
    layer: Layer,
    environment: impl Iterator<Item = (OsString, OsString)>,
) -> Result<Option<String>, Failure> {
    let Loaded {
        value: Switches { auth },
        origins,
    } = load_from(&ConfigArgs::default(), &[], environment)?;
    let materials = Materials {
        items: vec![address],
        now: clock::now(),
    };
    let explained = |refusal| explained(refusal, layer);
    let posture = validate(&auth, &materials, &origins)
        .map_err(|refusals| Failure::all(refusals.into_iter().map(explained).collect()))?;
    let open = posture.open.into_iter().find(|open| open.layer == layer);
    Ok(open.map(|open| {
        let (code, title) = (Code::LayerOpen, Code::LayerOpen.title());
        format!(
            "warning {code} {title}: {url} is used without encryption ({})",
            open.reason
        )
    }))
}

/// Says what an address must look like, where the shared check says what is wrong with it.
fn explained(refusal: Refusal, layer: Layer) -> Refusal {
    match refusal.code {
        Code::PlaintextRefused => {
            let schemes = match layer {
                Layer::Bulk => "it must begin with `https://`",
                _ => "each address must begin with `tls://` or `wss://`",
            };
            let detail = format!("{}; {schemes}", refusal.detail);
            Refusal::new(refusal.code, detail)
        }
        _ => refusal,
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    const EXCEPTION: (&str, &str) = (
        "DILOCO_AUTH__EXCEPTIONS",
        r#"[{ layer = "bus", reason = "a sealed network" }]"#,
    );

    fn check(url: &str, variables: &[(&str, &str)]) -> Result<Option<String>, Failure> {
        let bus = BusConfig {
            url: url.to_owned(),
            credentials: PathBuf::new(),
            ca: PathBuf::new(),
        };
        check_bus(
            &bus,
            variables
                .iter()
                .map(|(name, value)| ((*name).into(), (*value).into())),
        )
    }

    #[test]
    fn a_bus_without_encryption_is_refused_by_default() {
        for url in [
            "nats://127.0.0.1:4222",
            "nats://10.0.0.1:4222",
            "ws://h:1",
            "tls://a:1,nats://b:1",
        ] {
            let failure = check(url, &[]).expect_err("closed by default");
            assert_eq!(failure.code(), Code::PlaintextRefused, "{url}");
            let text = failure.to_string();
            assert!(
                text.contains("each address must begin with `tls://` or `wss://`"),
                "{text}"
            );
        }
        for url in ["tls://127.0.0.1:4222", "wss://h:1", "tls://a:1, tls://b:1"] {
            assert_eq!(check(url, &[]), Ok(None), "{url}");
        }
    }

    #[test]
    fn the_switches_of_the_services_open_it_and_each_use_is_warned_of() {
        let warning = check("nats://10.0.0.1:4222", &[EXCEPTION])
            .expect("opened on purpose")
            .expect("a warning");
        assert!(
            warning.contains("nats://10.0.0.1:4222") && warning.contains("a sealed network"),
            "{warning}"
        );
        assert_eq!(
            check("tls://10.0.0.1:4222", &[EXCEPTION]),
            Ok(None),
            "what is encrypted needs no warning"
        );
        let off = ("DILOCO_AUTH__REQUIRE_AUTH", "false");
        assert!(
            check("nats://127.0.0.1:4222", &[off])
                .expect("the umbrella is off")
                .is_some()
        );
        let beyond =
            check("nats://10.0.0.1:4222", &[off]).expect_err("off loopback an exception is needed");
        assert_eq!(beyond.code(), Code::PlaintextRefused);
    }

    #[test]
    fn another_layers_exception_and_switches_that_are_wrong_open_nothing() {
        for (value, code) in [
            (
                r#"[{ layer = "bulk", reason = "a sealed network" }]"#,
                Code::PlaintextRefused,
            ),
            (r#"[{ layer = "bus", reason = " " }]"#, Code::ConfigInvalid),
            (r#"[{ layer = "bus" }]"#, Code::ConfigInvalid),
        ] {
            let failure = check(
                "nats://127.0.0.1:4222",
                &[("DILOCO_AUTH__EXCEPTIONS", value)],
            )
            .expect_err(value);
            assert_eq!(failure.code(), code, "{value}: {failure}");
        }
    }

    #[test]
    fn the_store_is_reached_without_tls_only_where_its_layer_is_open() {
        let check = |url: &str, variables: &[(&str, &str)]| {
            let variables = variables.iter();
            let variables = variables.map(|(name, value)| ((*name).into(), (*value).into()));
            check_store(url, variables)
        };
        let (plain, own) = ("http://127.0.0.1:9000", "https://127.0.0.1:9000");
        for variables in [&[][..], &[EXCEPTION]] {
            let failure = check(plain, variables).expect_err("its layer is closed");
            assert_eq!(failure.code(), Code::PlaintextRefused);
            assert!(
                failure.to_string().contains("begin with `https://`"),
                "{failure}"
            );
            assert_eq!(check(own, variables), Ok(None));
        }
        let opened = (
            "DILOCO_AUTH__EXCEPTIONS",
            r#"[{ layer = "bulk", reason = "a sealed network" }]"#,
        );
        let warning = check(plain, &[opened]).expect("opened on purpose");
        let warning = warning.expect("a warning");
        assert!(
            warning.contains(plain) && warning.contains("a sealed network"),
            "{warning}"
        );
        assert_eq!(check(own, &[opened]), Ok(None));
    }
}
