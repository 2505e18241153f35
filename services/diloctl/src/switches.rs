//! The switches of `require_auth`, as far as they decide how an operator reaches the bus. `diloctl`
//! has no configuration file, so it reads them from the environment variables that every service
//! reads.

use std::ffi::OsString;

use runtime::config::load_from;
use runtime::{
    AuthConfig, BusConfig, ConfigArgs, Failure, Loaded, Material, Materials, clock, validate,
};
use schemas::member::Layer;
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
    let posture = validate(&auth, &materials, &origins)
        .map_err(|refusals| Failure::all(refusals.into_iter().map(explained).collect()))?;
    if bus.is_encrypted() {
        return Ok(None);
    }
    let open = posture
        .open
        .into_iter()
        .find(|open| open.layer == Layer::Bus);
    Ok(open.map(|open| {
        let (code, title) = (Code::LayerOpen, Code::LayerOpen.title());
        format!(
            "warning {code} {title}: {} is used without encryption ({})",
            bus.url, open.reason
        )
    }))
}

/// Adds what an address must look like to the shared check's refusal, which says what is wrong.
fn explained(refusal: Refusal) -> Refusal {
    match refusal.code {
        Code::PlaintextRefused => {
            let detail = format!(
                "{}; each address must begin with `tls://` or `wss://`",
                refusal.detail
            );
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
}
