//! The page of the bus for clients in other languages: an AsyncAPI 3 document made from the
//! permission table and the golden messages. `DILOCO_WRITE_PAGES=1` writes it.

use std::collections::BTreeMap;
use std::path::Path;

use schemas::permission::Role;
use schemas::subject::{Kind, Row, TABLE};
use serde_json::{Map, Value as Json, json};

use crate::examples::{self, Example};
use crate::value::Value;

/// Facts that a client needs in addition to the messages.
const DESCRIPTION: &str = "\
The subjects of a trust domain, as their sender writes them. What workers send reaches the other account with the \
tenant's account as third token, written by the broker.\n\n\
Connect by TLS with the user JWT and the seed of a credentials file; the inbox prefix is `_INBOX.` and the own public key. \
Each message is one MessagePack map with string keys, whose `v` is the version. Unknown keys and other versions are \
refused. Byte strings (`format: binary`) are MessagePack `bin`; examples show them in hexadecimal. A variant of an \
enumeration without content is a string; one with content is a map with the variant's name as its one key, and an \
example shows one variant.\n\n\
A reply is the byte 0xc1 and then the map `Answer`: the asker's key `to`, the sha256 `question` over subject, a zero byte and \
request, and `reply`, which is a map with the one key `ok` (the message of the operation) or `refused` (the message `Refusal`). \
Drop every answer with another `to` or `question`. `SubmitRequest.statement` holds a `Statement`, `SignedEvent.body` an `EventBody`.";

/// The meaning of each variable token of a subject.
const PARAMETERS: &[(&str, &str)] = &[
    ("account", "public nkey of a tenant's account"),
    ("emitter", "public nkey that signed the event"),
    ("holder", "public nkey of the holder, as in its JWT"),
    ("kind", "kind of the event"),
    ("operator", "public nkey of the operator, as in its JWT"),
    ("round", "number of the round"),
    ("run", "name of the run"),
    ("unit", "the unit: its kind and its index"),
    ("verb", "drain or stop"),
    ("worker", "public nkey of the worker, as in its JWT"),
];

#[test]
fn the_bus_is_documented_for_other_languages() {
    let text = serde_json::to_string_pretty(&document()).expect("it is JSON") + "\n";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/asyncapi.json");
    if std::env::var_os("DILOCO_WRITE_PAGES").is_some() {
        std::fs::write(&path, &text).expect("the folder docs can be written");
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        there == text,
        "docs/asyncapi.json is stale; run `cargo xtask docs`"
    );
}

fn document() -> Json {
    // Some types have several examples; the first one is the plain one.
    let mut examples: BTreeMap<&str, Example> = BTreeMap::new();
    for example in examples::all() {
        examples.entry(example.type_name).or_insert(example);
    }
    let (mut channels, mut operations, mut messages) = (Map::new(), Map::new(), Map::new());
    for row in TABLE {
        let id = id(row);
        for name in [Some(row.message), row.reply].into_iter().flatten() {
            messages
                .entry(name)
                .or_insert_with(|| message(name, examples.get(name)));
        }
        for role in row.publishers {
            operations.insert(
                operation_id(*role, &id, "send"),
                operation(row, *role, true),
            );
        }
        for role in row.subscribers {
            operations.insert(
                operation_id(*role, &id, "receive"),
                operation(row, *role, false),
            );
        }
        channels.insert(id, channel(row));
    }
    for name in ["Refusal", "Answer", "Statement", "EventBody"] {
        messages.insert(name.to_owned(), message(name, examples.get(name)));
    }
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "The bus of a diloco trust domain",
            "version": "1",
            "description": DESCRIPTION,
        },
        "defaultContentType": "application/msgpack",
        "servers": { "broker": {
            "host": "localhost:4222",
            "protocol": "nats",
            "description": "TLS with the domain's own authority; a JWT and a signed nonce.",
        } },
        "channels": channels,
        "operations": operations,
        "components": { "messages": messages },
    })
}

/// A channel's name: its lane and the fixed tokens of its subject.
fn id(row: &Row) -> String {
    let lane = row.lane.prefix().trim_start_matches("diloco.");
    let fixed = row
        .pattern
        .split('.')
        .filter(|token| !token.starts_with('{'));
    let tokens: Vec<&str> = std::iter::once(lane).chain(fixed).collect();
    tokens.join("-")
}

fn operation_id(role: Role, channel: &str, action: &str) -> String {
    format!("{}-{action}-{channel}", role.name())
}

fn channel(row: &Row) -> Json {
    let parameters: Map<String, Json> = PARAMETERS
        .iter()
        .filter(|(name, _)| row.pattern.contains(&format!("{{{name}}}")))
        .map(|(name, text)| ((*name).to_owned(), json!({ "description": text })))
        .collect();
    let named = |name: &str| {
        (
            name.to_owned(),
            json!({ "$ref": format!("#/components/messages/{name}") }),
        )
    };
    let messages: Map<String, Json> = std::iter::once(row.message)
        .chain(row.reply)
        .map(named)
        .collect();
    json!({
        "address": format!("{}.{}", row.lane.prefix(), row.pattern),
        "description": row.purpose,
        "parameters": parameters,
        "messages": messages,
        "x-kind": match row.kind {
            Kind::Request => "request",
            Kind::Stream => "stream",
            Kind::Publish => "publish",
        },
    })
}

fn operation(row: &Row, role: Role, sends: bool) -> Json {
    let channel = format!("#/channels/{}", id(row));
    let message = |name: &str| json!([{ "$ref": format!("{channel}/messages/{name}") }]);
    let mut operation = json!({
        "action": if sends { "send" } else { "receive" },
        "channel": { "$ref": channel },
        "summary": row.purpose,
        "messages": message(row.message),
        "x-role": role.name(),
    });
    if let Some(reply) = row.reply {
        operation["reply"] = json!({
            "address": { "location": "$message.header#/reply-to" },
            "messages": message(reply),
        });
    }
    operation
}

/// A message as its golden example shows it.
fn message(name: &str, example: Option<&Example>) -> Json {
    let Some(example) = example else {
        return json!({
            "name": name,
            "contentType": "application/jose",
            "payload": { "type": "string", "description": "a signed document: a JWS in compact form" },
        });
    };
    let marked = schemas::answer::is_answer(&example.bytes);
    let value = Value::read(&example.bytes[usize::from(marked)..]);
    let version = value.get("v").and_then(Value::integer);
    let needed = |without: &Value| {
        let mut bytes = example.bytes[..usize::from(marked)].to_vec();
        bytes.extend(without.bytes());
        (example.decode)(&bytes).is_err()
    };
    json!({
        "name": name,
        "title": example.name,
        "payload": value.schema(&needed),
        "examples": [{ "payload": value.shown() }],
        "x-version": version,
        "x-bytes-max": example.bytes_max,
    })
}
