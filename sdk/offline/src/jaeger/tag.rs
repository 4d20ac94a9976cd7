//! A typed key and value, and how JavaScript can hold it without loss.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::ser::SerializeStruct;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A tag of a span or process, or a field of a log.
#[derive(Debug, Clone, PartialEq)]
pub struct KeyValue {
    /// The attribute's name.
    pub key: String,
    /// The attribute's value.
    pub value: Value,
}

/// The value of a [`KeyValue`]; its variant is the JSON field `type`.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `string`
    String(String),
    /// `bool`
    Bool(bool),
    /// `int64`
    Int64(i64),
    /// `float64`
    Float64(f64),
    /// `binary`, base64 in JSON
    Binary(Vec<u8>),
}

/// The largest whole number a JavaScript number holds exactly; beyond it
/// Jaeger sends the digits as text, and so do we.
pub(super) const MAX_SAFE_INTEGER: i64 = (1 << 53) - 1;

impl KeyValue {
    /// A tag of type `string`.
    pub fn string(key: impl Into<String>, value: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            value: Value::String(value.into()),
        }
    }

    /// A tag of type `bool`.
    pub fn bool(key: impl Into<String>, value: bool) -> Self {
        Self {
            key: key.into(),
            value: Value::Bool(value),
        }
    }

    /// A tag of type `int64`.
    pub fn int64(key: impl Into<String>, value: i64) -> Self {
        Self {
            key: key.into(),
            value: Value::Int64(value),
        }
    }

    /// A tag of type `float64`.
    pub fn float64(key: impl Into<String>, value: f64) -> Self {
        Self {
            key: key.into(),
            value: Value::Float64(value),
        }
    }
}

impl Value {
    /// The value as a search for `key=value` compares it.
    pub fn text(&self) -> Cow<'_, str> {
        match self {
            Self::String(text) => Cow::Borrowed(text),
            Self::Bool(flag) => Cow::Borrowed(if *flag { "true" } else { "false" }),
            Self::Int64(number) => Cow::Owned(number.to_string()),
            Self::Float64(number) => float_text(*number),
            Self::Binary(bytes) => Cow::Owned(STANDARD.encode(bytes)),
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::String(_) => "string",
            Self::Bool(_) => "bool",
            Self::Int64(_) => "int64",
            Self::Float64(_) => "float64",
            Self::Binary(_) => "binary",
        }
    }

    /// Takes a value that does not fit its declared type as what it is.
    fn from_json(kind: &str, value: serde_json::Value) -> Self {
        use serde_json::Value as Json;
        match (kind, value) {
            ("bool", Json::String(text)) if text == "true" || text == "false" => {
                Self::Bool(text == "true")
            }
            ("int64", Json::String(text)) => text.parse().map_or(Self::String(text), Self::Int64),
            ("float64", Json::String(text)) => {
                text.parse().map_or(Self::String(text), Self::Float64)
            }
            ("float64", Json::Number(number)) => Self::Float64(number.as_f64().unwrap_or(f64::NAN)),
            ("binary", Json::String(text)) => STANDARD
                .decode(&text)
                .map_or(Self::String(text), Self::Binary),
            (_, Json::String(text)) => Self::String(text),
            ("string", Json::Null) => Self::String(String::new()),
            ("string", other) => Self::String(other.to_string()),
            (_, Json::Bool(flag)) => Self::Bool(flag),
            (_, Json::Number(number)) => match number.as_i64() {
                Some(whole) => Self::Int64(whole),
                None => Self::Float64(number.as_f64().unwrap_or(f64::NAN)),
            },
            (_, other) => Self::String(other.to_string()),
        }
    }
}

/// JSON has no number for the special ones; OTLP/JSON spells them like this.
pub(super) fn float_text(number: f64) -> Cow<'static, str> {
    if number.is_nan() {
        Cow::Borrowed("NaN")
    } else if number == f64::INFINITY {
        Cow::Borrowed("Infinity")
    } else if number == f64::NEG_INFINITY {
        Cow::Borrowed("-Infinity")
    } else {
        Cow::Owned(number.to_string())
    }
}

impl Serialize for KeyValue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut tag = serializer.serialize_struct("KeyValue", 3)?;
        tag.serialize_field("key", &self.key)?;
        tag.serialize_field("type", self.value.kind())?;
        match &self.value {
            Value::Bool(flag) => tag.serialize_field("value", flag)?,
            Value::Int64(number) if (-MAX_SAFE_INTEGER..=MAX_SAFE_INTEGER).contains(number) => {
                tag.serialize_field("value", number)?;
            }
            Value::Float64(number) if number.is_finite() => {
                tag.serialize_field("value", number)?;
            }
            as_text => tag.serialize_field("value", &as_text.text())?,
        }
        tag.end()
    }
}

impl<'de> Deserialize<'de> for KeyValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Raw {
            key: String,
            #[serde(rename = "type", default)]
            kind: String,
            #[serde(default)]
            value: serde_json::Value,
        }
        let raw = Raw::deserialize(deserializer)?;
        Ok(Self {
            value: Value::from_json(&raw.kind.to_ascii_lowercase(), raw.value),
            key: raw.key,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn tag(value: Value) -> KeyValue {
        KeyValue {
            key: "k".into(),
            value,
        }
    }

    #[test]
    fn every_type_is_written_as_jaeger_writes_it_and_read_back() {
        let cases = [
            (Value::String("a".into()), "string", json!("a")),
            (Value::Bool(true), "bool", json!(true)),
            (Value::Int64(-3), "int64", json!(-3)),
            (Value::Int64(1 << 53), "int64", json!("9007199254740992")),
            (
                Value::Int64(i64::MIN),
                "int64",
                json!("-9223372036854775808"),
            ),
            (Value::Float64(72.5), "float64", json!(72.5)),
            (
                Value::Float64(f64::NEG_INFINITY),
                "float64",
                json!("-Infinity"),
            ),
            (
                Value::Binary(vec![0, 0, 48, 57]),
                "binary",
                json!("AAAwOQ=="),
            ),
        ];
        for (value, kind, written) in cases {
            let json = json!({"key": "k", "type": kind, "value": written});
            assert_eq!(serde_json::to_value(tag(value.clone())).unwrap(), json);
            assert_eq!(
                serde_json::from_value::<KeyValue>(json).unwrap(),
                tag(value)
            );
        }
    }

    #[test]
    fn a_tag_without_or_against_its_type_is_still_read() {
        let cases = [
            (json!({"key": "k", "value": 4}), Value::Int64(4)),
            (json!({"key": "k", "value": 0.5}), Value::Float64(0.5)),
            (
                json!({"key": "k", "type": "STRING", "value": 4}),
                Value::String("4".into()),
            ),
            (
                json!({"key": "k", "type": "string"}),
                Value::String(String::new()),
            ),
            (
                json!({"key": "k", "type": "int64", "value": "many"}),
                Value::String("many".into()),
            ),
            (
                json!({"key": "k", "type": "float64", "value": 2}),
                Value::Float64(2.0),
            ),
            (
                json!({"key": "k", "type": "binary", "value": "?"}),
                Value::String("?".into()),
            ),
            (
                json!({"key": "k", "type": "bool", "value": "true"}),
                Value::Bool(true),
            ),
        ];
        for (json, value) in cases {
            assert_eq!(
                serde_json::from_value::<KeyValue>(json).unwrap(),
                tag(value)
            );
        }
    }
}
