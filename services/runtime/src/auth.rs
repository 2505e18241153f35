//! `require_auth`: one umbrella switch over four layers, on by default, and the one check that
//! every process makes before it connects or binds anything.

use schemas::member::{Layer, OpenLayer, Posture};
use schemas::{Code, Refusal};
use serde::{Deserialize, Serialize};

use crate::config::Origins;
use crate::expiry;
use crate::materials::{Material, Materials, Reach, parse};
use crate::switches::{self, EXCEPTIONS, MUTUAL, UMBRELLA};

/// The section `auth` of every configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuthConfig {
    /// The umbrella.
    pub require_auth: bool,
    /// Single layers.
    pub layers: LayerSwitches,
    /// Layers that are open on purpose.
    pub exceptions: Vec<Exception>,
    /// True in a domain with mutual TLS: clients show a certificate.
    pub mutual_tls: bool,
    /// True when this is a demonstration on one machine.
    pub demo: bool,
}

/// One switch for each layer; a layer without one follows the umbrella.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(
    missing_docs,
    reason = "fields are the layers of schemas::member::Layer"
)]
pub struct LayerSwitches {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bus: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bulk: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manifests: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enrolment: Option<bool>,
}

/// A layer that is open on purpose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exception {
    /// The layer.
    pub layer: Layer,
    /// The reason, in the operator's words.
    pub reason: String,
}

impl Default for AuthConfig {
    fn default() -> Self {
        Self {
            require_auth: true,
            layers: LayerSwitches::default(),
            exceptions: Vec::new(),
            mutual_tls: false,
            demo: false,
        }
    }
}

impl LayerSwitches {
    const fn of(&self, layer: Layer) -> Option<bool> {
        match layer {
            Layer::Bus => self.bus,
            Layer::Bulk => self.bulk,
            Layer::Manifests => self.manifests,
            Layer::Enrolment => self.enrolment,
        }
    }
}

/// The state of a layer's authentication.
enum LayerState {
    /// Required by this switch.
    Required(&'static str),
    /// Open for this reason; `excepted` is true when an exception says so.
    Open { reason: String, excepted: bool },
}

/// Checks a process's materials against its switches. Logs each open layer at WARN, with the
/// parties that can use it.
///
/// # Errors
/// Everything that is wrong. Each refusal names the switch that requires the missing material, and
/// the place where the switch was set.
pub fn validate(
    config: &AuthConfig,
    materials: &Materials,
    origins: &Origins,
) -> Result<Posture, Vec<Refusal>> {
    let mut refusals = contradictions(config, origins);
    let mut posture = Posture::default();
    for layer in Layer::ALL {
        let state = state(config, layer, origins);
        for item in materials.items.iter().filter(|item| item.layer() == layer) {
            refusals.extend(judge(item, &state, materials, origins));
            if config.mutual_tls && matches!(state, LayerState::Required(_)) {
                refusals.extend(item.uncertified(materials.now));
            }
        }
        if let LayerState::Open { reason, .. } = state {
            posture.open.push(OpenLayer { layer, reason });
        }
    }
    refusals.extend(samples(config, materials));
    if !refusals.is_empty() {
        return Err(refusals);
    }
    for OpenLayer { layer, reason } in &posture.open {
        let code = Code::LayerOpen;
        tracing::warn!(%code, layer = layer.name(), reason, "layer is open: {}", switches::open_to(*layer));
    }
    expiry::warn(materials, materials.now);
    Ok(posture)
}

/// The state of `layer`. An exception opens it; otherwise its own switch or the umbrella requires
/// it.
fn state(config: &AuthConfig, layer: Layer, origins: &Origins) -> LayerState {
    if let Some(exception) = config
        .exceptions
        .iter()
        .find(|exception| exception.layer == layer)
    {
        return LayerState::Open {
            reason: exception.reason.clone(),
            excepted: true,
        };
    }
    let switch = switches::of(layer);
    if config.layers.of(layer) == Some(true) {
        LayerState::Required(switch.key)
    } else if config.require_auth {
        LayerState::Required(UMBRELLA.key)
    } else {
        let reason = format!("{} is off ({})", UMBRELLA.key, origins.of(UMBRELLA.key));
        LayerState::Open {
            reason,
            excepted: false,
        }
    }
}

/// Refusals of switches that contradict each other.
fn contradictions(config: &AuthConfig, origins: &Origins) -> Vec<Refusal> {
    let mut found = Vec::new();
    if config.mutual_tls && !config.require_auth {
        found.push(format!(
            "{} ({}) demands certificates of clients while {} ({}) demands nothing",
            MUTUAL.key,
            origins.of(MUTUAL.key),
            UMBRELLA.key,
            origins.of(UMBRELLA.key)
        ));
    }
    for (place, exception) in config.exceptions.iter().enumerate() {
        let (name, origin) = (exception.layer.name(), origins.of(EXCEPTIONS.key));
        if exception.reason.trim().is_empty() {
            found.push(format!(
                "{} ({origin}) opens {name} without a reason; give one",
                EXCEPTIONS.key
            ));
        }
        if config.exceptions[..place]
            .iter()
            .any(|earlier| earlier.layer == exception.layer)
        {
            found.push(format!(
                "{} ({origin}) names {name} twice; keep one",
                EXCEPTIONS.key
            ));
        }
        let switch = switches::of(exception.layer);
        if config.layers.of(exception.layer) == Some(true) {
            let required = origins.of(switch.key);
            found.push(format!(
                "{} ({origin}) opens {name}, {} ({required}) requires it; keep one",
                EXCEPTIONS.key, switch.key
            ));
        }
    }
    for layer in Layer::ALL {
        let excepted = config
            .exceptions
            .iter()
            .any(|exception| exception.layer == layer);
        if config.require_auth && config.layers.of(layer) == Some(false) && !excepted {
            let switch = switches::of(layer);
            found.push(format!(
                "{} is false ({}), but {} ({}) covers it; add {} = [{{ layer = \"{}\", reason = \"…\" }}]",
                switch.key,
                origins.of(switch.key),
                UMBRELLA.key,
                origins.of(UMBRELLA.key),
                EXCEPTIONS.key,
                layer.name(),
            ));
        }
    }
    found
        .into_iter()
        .map(|detail| Refusal::new(Code::ConfigInvalid, detail))
        .collect()
}

/// Refusal of one material; none when it satisfies the switches.
fn judge(
    item: &Material,
    state: &LayerState,
    materials: &Materials,
    origins: &Origins,
) -> Option<Refusal> {
    if let Some(why) = item.missing() {
        let LayerState::Required(switch) = state else {
            return None;
        };
        let (key, origin) = (item.key(), origins.of(switch));
        return Some(Refusal::new(
            Code::CredentialMissing,
            format!("{key} {why}; {switch} ({origin}) demands it"),
        ));
    }
    // Material that is there must be valid, even if no switch requires it.
    item.check(materials.now)
        .err()
        .or_else(|| plaintext(item, state, origins))
}

fn plaintext(item: &Material, state: &LayerState, origins: &Origins) -> Option<Refusal> {
    let open = item.addresses().into_iter().find(|address| {
        parse(address).is_ok_and(|(url, reach)| match (item.is_encrypted(&url), state) {
            (true, _) | (_, LayerState::Open { excepted: true, .. }) => false,
            (false, LayerState::Required(_)) => true,
            (
                false,
                LayerState::Open {
                    excepted: false, ..
                },
            ) => reach == Reach::Network,
        })
    })?;
    let why = match state {
        LayerState::Required(switch) => format!("{switch} ({}) demands TLS", origins.of(switch)),
        LayerState::Open { .. } => {
            "plaintext off loopback needs an exception with a reason".to_owned()
        }
    };
    Some(Refusal::new(
        Code::PlaintextRefused,
        format!("{} is {open:?}; {why}", item.key()),
    ))
}

/// Refusals of sample secrets, unless this is a demonstration on loopback.
fn samples(config: &AuthConfig, materials: &Materials) -> Vec<Refusal> {
    let mut addresses = materials.items.iter().flat_map(Material::addresses);
    let loopback =
        addresses.all(|address| parse(address).is_ok_and(|(_, reach)| reach == Reach::Loopback));
    if config.demo && loopback || !config.require_auth {
        return Vec::new();
    }
    let samples = materials
        .items
        .iter()
        .filter_map(|item| Some((item.key(), item.sample()?)));
    samples
        .map(|(key, id)| {
            Refusal::new(
                Code::SampleSecret,
                format!("{key} holds the sample access key {id:?}"),
            )
        })
        .collect()
}
