//! Checks `docs/asyncapi.json`: it has what AsyncAPI 3 requires of the parts that it uses, and
//! every reference leads somewhere.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use schemas::subject::TABLE;
use serde_json::Value;

const PAGE: &str = "docs/asyncapi.json";

/// Checks the document; the error lists everything that is wrong.
pub(super) fn check(root: &Path) -> Result<()> {
    let text =
        fs::read_to_string(root.join(PAGE)).with_context(|| format!("cannot read {PAGE}"))?;
    let document = serde_json::from_str(&text).with_context(|| format!("{PAGE} is not JSON"))?;
    let faults = faults(&document);
    if faults.is_empty() {
        return Ok(());
    }
    bail!("{PAGE}: {}", faults.join("; "))
}

fn faults(document: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    if document["asyncapi"] != "3.0.0" {
        faults.push("asyncapi is not 3.0.0".to_owned());
    }
    for key in ["title", "version"] {
        if !document["info"][key].is_string() {
            faults.push(format!("info.{key} is missing"));
        }
    }
    for (name, server) in entries(&document["servers"]) {
        for key in ["host", "protocol"] {
            if !server[key].is_string() {
                faults.push(format!("servers.{name}.{key} is missing"));
            }
        }
    }
    for (name, channel) in entries(&document["channels"]) {
        faults.extend(channel_faults(name, channel));
    }
    for (name, operation) in entries(&document["operations"]) {
        faults.extend(operation_faults(name, operation));
    }
    faults.extend(addresses(document));
    references(document, document, &mut faults);
    faults
}

fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

/// Checks that the address names each parameter, and that every parameter stands in the address.
fn channel_faults(name: &str, channel: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if !name.chars().all(plain) {
        faults.push(format!("channels.{name} is no name"));
    }
    let address = channel["address"].as_str().unwrap_or_default();
    let in_address: BTreeSet<&str> = address
        .split('.')
        .filter_map(|token| token.strip_prefix('{')?.strip_suffix('}'))
        .collect();
    let described: BTreeSet<&str> = entries(&channel["parameters"])
        .map(|(name, _)| name.as_str())
        .collect();
    if in_address != described {
        faults.push(format!(
            "channels.{name}: {address} and its parameters differ"
        ));
    }
    if entries(&channel["messages"]).next().is_none() {
        faults.push(format!("channels.{name} carries no message"));
    }
    faults
}

/// Checks that the messages of an operation are messages of its channel.
fn operation_faults(name: &str, operation: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    if !["send", "receive"]
        .iter()
        .any(|action| operation["action"] == **action)
    {
        faults.push(format!("operations.{name} has no action"));
    }
    let Some(channel) = operation["channel"]["$ref"].as_str() else {
        return vec![format!("operations.{name} has no channel")];
    };
    let of_channel = format!("{channel}/messages/");
    let lists = [&operation["messages"], &operation["reply"]["messages"]];
    for message in lists.into_iter().filter_map(Value::as_array).flatten() {
        let inside = message["$ref"]
            .as_str()
            .is_some_and(|path| path.starts_with(&of_channel));
        if !inside {
            faults.push(format!(
                "operations.{name}: {message} is not of its channel"
            ));
        }
    }
    faults
}

/// Checks that the channels are exactly the subjects of the bus.
fn addresses(document: &Value) -> Option<String> {
    let there: BTreeSet<String> = entries(&document["channels"])
        .filter_map(|(_, channel)| Some(channel["address"].as_str()?.to_owned()))
        .collect();
    let declared: BTreeSet<String> = TABLE
        .iter()
        .map(|row| format!("{}.{}", row.lane.prefix(), row.pattern))
        .collect();
    let odd: Vec<&String> = there.symmetric_difference(&declared).collect();
    (!odd.is_empty()).then(|| format!("channels and subjects differ in {odd:?}"))
}

fn references(document: &Value, part: &Value, faults: &mut Vec<String>) {
    if let Some(path) = part["$ref"].as_str() {
        let pointer = path.strip_prefix('#').unwrap_or(path);
        let leads = document.pointer(pointer).is_some();
        if !leads {
            faults.push(format!("{path} leads nowhere"));
        }
    }
    match part {
        Value::Object(entries) => entries
            .values()
            .for_each(|part| references(document, part, faults)),
        Value::Array(parts) => parts
            .iter()
            .for_each(|part| references(document, part, faults)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> Value {
        serde_json::from_str(include_str!("../../../docs/asyncapi.json")).expect("JSON")
    }

    #[test]
    fn the_page_is_sound_and_faults_are_found() {
        assert_eq!(faults(&page()), Vec::<String>::new());
        let changed = |pointer: &str, value: Value| {
            let mut page = page();
            *page.pointer_mut(pointer).expect("it is there") = value;
            faults(&page).join("; ")
        };
        let operation = "/operations/worker-send-request-join";
        for (pointer, value, said) in [
            ("/asyncapi", "2.6.0", "asyncapi is not"),
            ("/channels/request-join/address", "diloco.{run}", "differ"),
            (&format!("{operation}/action"), "publish", "no action"),
            (
                &format!("{operation}/channel/$ref"),
                "#/channels/request-leave",
                "not of its channel",
            ),
            (
                "/channels/request-join/messages/JoinRequest/$ref",
                "#/components/messages/Nobody",
                "leads nowhere",
            ),
        ] {
            let faults = changed(pointer, value.into());
            assert!(faults.contains(said), "{pointer}: {faults}");
        }
    }
}
