//! The switches of `require_auth`, declared once: the check names them in its errors, and the
//! reference page is made from them.

use schemas::member::Layer;

/// A switch of the section `auth`.
pub(crate) struct Switch {
    pub(crate) key: &'static str,
    pub(crate) default: &'static str,
    pub(crate) effect: &'static str,
}

/// The umbrella.
pub(crate) const UMBRELLA: Switch = Switch {
    key: "auth.require_auth",
    default: "true",
    effect: "covers every layer below: credentials, signatures and TLS must be there, and nothing is taken from strangers",
};

/// The list of exceptions.
pub(crate) const EXCEPTIONS: Switch = Switch {
    key: "auth.exceptions",
    default: "[]",
    effect: "opens single layers under the umbrella: `[{ layer = \"bulk\", reason = \"why\" }]`; each is logged at every \
             start and shown to peers",
};

/// Certificates of clients.
pub(crate) const MUTUAL: Switch = Switch {
    key: "auth.mutual_tls",
    default: "false",
    effect: "under the umbrella, in a domain with mutual TLS: each connection to NATS and the store needs a certificate of the \
             domain's authority of clients, the store takes no client without one, and a presigned URL is for its holder alone",
};

/// The mark of a demonstration.
pub(crate) const DEMO: Switch = Switch {
    key: "auth.demo",
    default: "false",
    effect: "admits sample secrets, on loopback addresses only",
};

/// The switch of one layer, and who can use the layer without it.
pub(crate) const fn of(layer: Layer) -> Switch {
    let (key, effect) = match layer {
        Layer::Bus => (
            "auth.layers.bus",
            "connections to NATS need a token, a key and TLS",
        ),
        Layer::Bulk => (
            "auth.layers.bulk",
            "transfers to and from the store are signed and use TLS",
        ),
        Layer::Manifests => (
            "auth.layers.manifests",
            "leases, commands, results and events are signed and verified",
        ),
        Layer::Enrolment => (
            "auth.layers.enrolment",
            "only workers with a credential for the run may join it, and the list of issued credentials binds their audit keys and seats",
        ),
    };
    Switch {
        key,
        default: "as the umbrella",
        effect,
    }
}

/// The parties that can use a layer whose authentication is not required, in words.
pub(crate) const fn open_to(layer: Layer) -> &'static str {
    match layer {
        Layer::Bus => "anyone who reaches the NATS port may read and publish",
        Layer::Bulk => {
            "anyone who reaches the store's port may read and replace objects in transit"
        }
        Layer::Manifests => "anyone who may publish on the bus can forge leases and commands",
        Layer::Enrolment => {
            "without a list of issued credentials any worker whose token the bus takes may join its run, with any audit key"
        }
    }
}

/// The table of switches, as Markdown.
pub fn switches_reference() -> String {
    let mut page = String::from(
        "# Authentication switches\n\nGenerated from `services/runtime/src/switches.rs` by `cargo xtask docs`. The same check runs in every\n\
         process, before it connects or binds anything. `diloctl` has no configuration file: for the address of the bus it takes\n\
         these switches from the environment variables.\n\n\
         | key | environment variable | default | effect |\n| --- | --- | --- | --- |\n",
    );
    let layers = Layer::ALL.map(of);
    for Switch {
        key,
        default,
        effect,
    } in [&UMBRELLA]
        .into_iter()
        .chain(&layers)
        .chain([&EXCEPTIONS, &MUTUAL, &DEMO])
    {
        let variable = format!("DILOCO_{}", key.to_uppercase().replace('.', "__"));
        page.push_str(&format!(
            "| `{key}` | `{variable}` | `{default}` | {effect} |\n"
        ));
    }
    page.push_str(
        "\nA layer that is not required is open:\n\n| layer | without it |\n| --- | --- |\n",
    );
    for layer in Layer::ALL {
        page.push_str(&format!("| {} | {} |\n", layer.name(), open_to(layer)));
    }
    page.push_str(
        "\nUnder the umbrella a layer can be relaxed only by an exception with a reason; setting its switch to `false` is an\n\
         error. With the umbrella off, a layer's switch set to `true` requires that layer alone. Plaintext addresses are\n\
         refused for a required layer, on loopback too; for a layer that is not required they are refused off loopback\n\
         unless an exception names it.\n",
    );
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::AuthConfig;

    #[test]
    fn la_11_every_switch_of_the_configuration_is_in_the_table() {
        let page = switches_reference();
        let config = AuthConfig {
            layers: crate::auth::LayerSwitches {
                bus: Some(true),
                bulk: Some(true),
                manifests: Some(true),
                enrolment: Some(true),
            },
            ..AuthConfig::default()
        };
        let table = toml::Table::try_from(&config).expect("it is TOML");
        let mut keys = Vec::new();
        for (name, value) in &table {
            match value {
                toml::Value::Table(inner) => {
                    keys.extend(inner.keys().map(|key| format!("auth.{name}.{key}")))
                }
                _ => keys.push(format!("auth.{name}")),
            }
        }
        assert_eq!(keys.len(), 8);
        for key in keys {
            assert!(page.contains(&format!("| `{key}` |")), "{key}");
        }
    }
}
