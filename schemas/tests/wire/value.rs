//! Any MessagePack value: to describe an example, and to find out which of its keys the type needs.

use std::fmt;

use data_encoding::HEXLOWER;
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value as Json, json};

/// A value.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Nil,
    Bool(bool),
    Integer(u64),
    Negative(i64),
    Float(f64),
    Text(String),
    Binary(Vec<u8>),
    List(Vec<Value>),
    Map(Vec<(String, Value)>),
}

impl Value {
    pub(crate) fn read(bytes: &[u8]) -> Self {
        rmp_serde::from_slice(bytes).expect("a golden message is MessagePack")
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        rmp_serde::to_vec_named(self).expect("every value has bytes")
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Map(entries) => entries
                .iter()
                .find(|(name, _)| name == key)
                .map(|(_, value)| value),
            _ => None,
        }
    }

    pub(crate) const fn integer(&self) -> Option<u64> {
        match self {
            Self::Integer(number) => Some(*number),
            _ => None,
        }
    }

    /// The value as JSON: byte strings in hexadecimal.
    pub(crate) fn shown(&self) -> Json {
        match self {
            Self::Nil => Json::Null,
            Self::Bool(value) => json!(value),
            Self::Integer(value) => json!(value),
            Self::Negative(value) => json!(value),
            Self::Float(value) => json!(value),
            Self::Text(value) => json!(value),
            Self::Binary(value) => json!(HEXLOWER.encode(value)),
            Self::List(values) => values.iter().map(Self::shown).collect(),
            Self::Map(entries) => entries
                .iter()
                .map(|(name, value)| (name.clone(), value.shown()))
                .collect::<Map<_, _>>()
                .into(),
        }
    }

    /// The JSON schema that the value fulfils. A key is required if `needed` says so of the value
    /// without that key.
    pub(crate) fn schema(&self, needed: &dyn Fn(&Self) -> bool) -> Json {
        match self {
            Self::Nil => json!({}),
            Self::Bool(_) => json!({ "type": "boolean" }),
            Self::Integer(_) => json!({ "type": "integer", "minimum": 0 }),
            Self::Negative(_) => json!({ "type": "integer" }),
            Self::Float(_) => json!({ "type": "number" }),
            Self::Text(_) => json!({ "type": "string" }),
            Self::Binary(_) => json!({ "type": "string", "format": "binary" }),
            Self::List(values) => match values.first() {
                None => json!({ "type": "array" }),
                Some(first) => {
                    let items = first.schema(&|changed| {
                        let mut all = values.clone();
                        all[0] = changed.clone();
                        needed(&Self::List(all))
                    });
                    json!({ "type": "array", "items": items })
                }
            },
            Self::Map(entries) => Self::object(entries, needed),
        }
    }

    fn object(entries: &[(String, Self)], needed: &dyn Fn(&Self) -> bool) -> Json {
        let (mut properties, mut required) = (Map::new(), Vec::new());
        for (at, (name, value)) in entries.iter().enumerate() {
            let mut without = entries.to_vec();
            without.remove(at);
            if needed(&Self::Map(without)) {
                required.push(name.clone());
            }
            let inner = value.schema(&|changed| {
                let mut all = entries.to_vec();
                all[at].1 = changed.clone();
                needed(&Self::Map(all))
            });
            let schema = match (name.as_str(), value) {
                ("v", Self::Integer(version)) => json!({ "const": version }),
                _ => inner,
            };
            properties.insert(name.clone(), schema);
        }
        json!({ "type": "object", "properties": properties, "required": required })
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Nil => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Integer(value) => serializer.serialize_u64(*value),
            Self::Negative(value) => serializer.serialize_i64(*value),
            Self::Float(value) => serializer.serialize_f64(*value),
            Self::Text(value) => serializer.serialize_str(value),
            Self::Binary(value) => serializer.serialize_bytes(value),
            Self::List(values) => serializer.collect_seq(values),
            Self::Map(entries) => {
                serializer.collect_map(entries.iter().map(|(name, value)| (name, value)))
            }
        }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Any)
    }
}

struct Any;

impl<'de> Visitor<'de> for Any {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Nil)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Nil)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Integer(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(u64::try_from(value).map_or(Value::Negative(value), Value::Integer))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_bytes<E>(self, value: &[u8]) -> Result<Value, E> {
        Ok(Value::Binary(value.to_vec()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = seq.next_element()? {
            values.push(value);
        }
        Ok(Value::List(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Value::Map(entries))
    }
}
