//! Attribute values, owned and borrowed.

use std::sync::Arc;

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
}

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
        }
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
