//! Attribute values, owned and borrowed.

use std::fmt;
use std::sync::Arc;

use opentelemetry_proto::tonic::common::v1::ArrayValue;
use prost::Message;
use serde::{Serialize, Serializer};

use crate::decode;
use crate::encode::{self, Raw};

/// An attribute value that owns its text.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// UTF-8 text.
    Str(Arc<str>),
    /// Signed integer.
    I64(i64),
    /// Double.
    F64(f64),
    /// Truth value.
    Bool(bool),
    /// Values of one type.
    Array(Array),
}

/// Values of one type, as the bytes of an OTLP `ArrayValue`: they are rare, and
/// so is looking at them before they are sent.
#[derive(Clone, PartialEq, Eq)]
pub struct Array(Arc<[u8]>);

/// An [`Array`] as the caller holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArrayRef<'a>(pub(crate) &'a [u8]);

/// An attribute value as the caller holds it; nothing is copied until it is in
/// the queue.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ValueRef<'a> {
    /// UTF-8 text.
    Str(&'a str),
    /// Signed integer.
    I64(i64),
    /// Double.
    F64(f64),
    /// Truth value.
    Bool(bool),
    /// Values of one type.
    Array(ArrayRef<'a>),
}

/// A key with its value.
#[derive(Debug, Clone, PartialEq)]
pub struct Attribute {
    /// Attribute key, `gen_ai.request.model`.
    pub key: Arc<str>,
    /// Its value.
    pub value: Value,
}

impl Attribute {
    /// Makes an attribute of anything that is text or a value.
    pub fn new(key: impl Into<Arc<str>>, value: impl Into<Value>) -> Self {
        Self {
            key: key.into(),
            value: value.into(),
        }
    }
}

/// Sets a key: the last value wins and keeps the first one's place.
pub fn set_attribute(attributes: &mut Vec<Attribute>, key: &str, value: Value) {
    match attributes.iter_mut().find(|a| &*a.key == key) {
        Some(attribute) => attribute.value = value,
        None => attributes.push(Attribute::new(key, value)),
    }
}

impl Value {
    /// The same value, borrowed.
    pub fn as_ref(&self) -> ValueRef<'_> {
        match self {
            Self::Str(text) => ValueRef::Str(text),
            Self::I64(n) => ValueRef::I64(*n),
            Self::F64(n) => ValueRef::F64(*n),
            Self::Bool(b) => ValueRef::Bool(*b),
            Self::Array(array) => ValueRef::Array(array.as_ref()),
        }
    }
}

impl ValueRef<'_> {
    /// The same value, owned.
    pub fn to_value(self) -> Value {
        match self {
            Self::Str(text) => Value::Str(text.into()),
            Self::I64(n) => Value::I64(n),
            Self::F64(n) => Value::F64(n),
            Self::Bool(b) => Value::Bool(b),
            Self::Array(ArrayRef(bytes)) => Value::Array(Array(bytes.into())),
        }
    }
}

/// As JSON.
impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Str(text) => serializer.serialize_str(text),
            Self::I64(n) => serializer.serialize_i64(*n),
            // JSON has no NaN; its name as text is the nearest thing.
            Self::F64(n) if !n.is_finite() => serializer.collect_str(n),
            Self::F64(n) => serializer.serialize_f64(*n),
            Self::Bool(b) => serializer.serialize_bool(*b),
            Self::Array(array) => serializer.collect_seq(array.items()),
        }
    }
}

impl Array {
    /// Arrays within `items` are left out: OpenTelemetry has none.
    pub fn new<'a>(items: impl Iterator<Item = ValueRef<'a>> + Clone) -> Self {
        let items = items.filter(|item| !matches!(item, ValueRef::Array(_)));
        Self(encode::array(items.map(Raw::from)).into())
    }

    /// The values one by one.
    pub fn items(&self) -> Vec<Value> {
        // The bytes are our own: what cannot be read was never written.
        let array = ArrayValue::decode(&*self.0).unwrap_or_default();
        array.values.into_iter().map(decode::value).collect()
    }

    /// The same array, borrowed.
    pub fn as_ref(&self) -> ArrayRef<'_> {
        ArrayRef(&self.0)
    }
}

impl FromIterator<Value> for Array {
    fn from_iter<I: IntoIterator<Item = Value>>(items: I) -> Self {
        let items: Vec<Value> = items.into_iter().collect();
        Self::new(items.iter().map(Value::as_ref))
    }
}

impl fmt::Debug for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.items()).finish()
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Str(text.into())
    }
}

impl From<Arc<str>> for Value {
    fn from(text: Arc<str>) -> Self {
        Self::Str(text)
    }
}

impl From<i64> for Value {
    fn from(n: i64) -> Self {
        Self::I64(n)
    }
}

impl From<f64> for Value {
    fn from(n: f64) -> Self {
        Self::F64(n)
    }
}

impl From<bool> for Value {
    fn from(b: bool) -> Self {
        Self::Bool(b)
    }
}
