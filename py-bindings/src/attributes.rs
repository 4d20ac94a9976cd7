//! Python values as attribute values. Nothing here raises: what cannot be kept
//! as it is becomes text.

use std::borrow::Cow;

use omnitrace::ValueRef;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyMapping, PyString};

/// A value that owns what Python's may not outlive.
pub(crate) enum Held<'py> {
    Str(Cow<'py, str>),
    I64(i64),
    F64(f64),
    Bool(bool),
}

impl Held<'_> {
    pub(crate) fn as_ref(&self) -> ValueRef<'_> {
        match self {
            Held::Str(text) => ValueRef::Str(text),
            Held::I64(n) => ValueRef::I64(*n),
            Held::F64(n) => ValueRef::F64(*n),
            Held::Bool(b) => ValueRef::Bool(*b),
        }
    }
}

/// Text of any object: its own if it is a string, else `str(object)`.
pub(crate) fn text<'a>(object: &'a Bound<'_, PyAny>) -> Cow<'a, str> {
    match object.cast::<PyString>() {
        // Lone surrogates become the replacement character.
        Ok(string) => string.to_string_lossy(),
        Err(_) => match object.str() {
            Ok(string) => Cow::Owned(string.to_string_lossy().into_owned()),
            Err(_) => Cow::Borrowed("?"),
        },
    }
}

pub(crate) fn held(object: &Bound<'_, PyAny>) -> Held<'static> {
    if let Ok(b) = object.cast::<PyBool>() {
        return Held::Bool(b.is_true());
    }
    if object.is_instance_of::<PyInt>()
        && let Ok(n) = object.extract::<i64>()
    {
        return Held::I64(n);
    }
    if let Ok(n) = object.cast::<PyFloat>() {
        return Held::F64(n.value());
    }
    if !object.is_instance_of::<PyString>() && !object.is_instance_of::<PyInt>() {
        // Such as numpy's numbers.
        if let Ok(n) = object.extract::<i64>() {
            return Held::I64(n);
        }
        if let Ok(n) = object.extract::<f64>() {
            return Held::F64(n);
        }
    }
    Held::Str(Cow::Owned(text(object).into_owned()))
}

/// The entries of a mapping, or nothing if it is none. A `None` value is left
/// out, as OpenTelemetry does.
pub(crate) fn entries<'py>(mapping: Option<&Bound<'py, PyAny>>) -> Vec<(String, Held<'py>)> {
    let Some(mapping) = mapping.filter(|m| !m.is_none()) else {
        return Vec::new();
    };
    let entry = |key: &Bound<'py, PyAny>, value: &Bound<'py, PyAny>| {
        (!value.is_none()).then(|| (text(key).into_owned(), held(value)))
    };
    if let Ok(dict) = mapping.cast::<PyDict>() {
        // All of it first: making text of a value may run code that changes it.
        let pairs: Vec<_> = dict.iter().collect();
        return pairs.iter().filter_map(|(k, v)| entry(k, v)).collect();
    }
    let Some(items) = mapping
        .cast::<PyMapping>()
        .ok()
        .and_then(|m| m.items().ok())
    else {
        return Vec::new();
    };
    let pair = |item: Bound<'py, PyAny>| -> Option<(String, Held<'py>)> {
        entry(&item.get_item(0).ok()?, &item.get_item(1).ok()?)
    };
    items.iter().filter_map(pair).collect()
}
