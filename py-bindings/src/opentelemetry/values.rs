//! Attribute values by OpenTelemetry's rules, from Python and back.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use omnitrace::{KeyRef, Value, ValueRef};
use pyo3::prelude::*;
use pyo3::sync::critical_section::with_critical_section;
use pyo3::types::{
    PyByteArray, PyBytes, PyDict, PyFloat, PyList, PyMapping, PySequence, PyString, PyTuple,
};

use crate::attributes::{Pair, plain, scalar, text};
use crate::cpython;
use crate::keys::key;

use super::mistakes::Mistake;
use super::packed::{Packed, Room};

/// Copies the entries of a mapping of attributes; what is none has none.
#[inline]
pub(crate) fn read(attributes: &Bound<'_, PyAny>, room: Room) -> Packed {
    if attributes.is_none() {
        return Packed::default();
    }
    if cpython::is_dict(attributes) {
        let packed = with_critical_section(attributes, || {
            let mut packed = Packed::usual();
            let all_plain = cpython::each_entry(attributes, |k, v| {
                plain_pair(k, v).is_some_and(|(key, value)| packed.push(key, value, room))
            });
            all_plain.then_some(packed)
        });
        if let Some(packed) = packed {
            return packed;
        }
    }
    let mut packed = Packed::default();
    add(&mut packed, attributes, room);
    packed
}

/// A key that is exactly a string and not empty.
#[inline]
fn named<'a>(object: Borrowed<'a, '_, PyAny>) -> Option<KeyRef<'a>> {
    (!cpython::is_empty_text(object)).then(|| key(object))?
}

/// A key and a value that are read without running Python code.
#[inline]
pub(crate) fn plain_pair<'a>(
    key: Borrowed<'a, '_, PyAny>,
    value: Borrowed<'a, '_, PyAny>,
) -> Option<Pair<'a>> {
    named(key).zip(plain(value))
}

/// Sets each of a mapping's entries. Python code may run.
#[cold]
pub(crate) fn add(packed: &mut Packed, attributes: &Bound<'_, PyAny>, room: Room) {
    for (key, value) in entries(attributes) {
        packed.set(KeyRef::Text(&key), value.as_ref(), room);
    }
}

/// The entries of a mapping; Python code may run, so no lock may be held.
pub(crate) fn entries(attributes: &Bound<'_, PyAny>) -> Vec<(String, Value)> {
    let py = attributes.py();
    let items: Option<Vec<(Bound<'_, PyAny>, Bound<'_, PyAny>)>> = match attributes.cast::<PyDict>()
    {
        // All of it first: making text of a value may run code that changes it.
        Ok(dict) => Some(dict.iter().collect()),
        Err(_) => attributes
            .cast::<PyMapping>()
            .ok()
            .and_then(|mapping| mapping.items().ok())
            .and_then(|items| items.iter().map(|item| item.extract().ok()).collect()),
    };
    let Some(items) = items else {
        if !attributes.is_none() {
            let kind = text(attributes.get_type().as_any()).into_owned();
            Mistake::Attributes.say(py, &format!("attributes of {kind} are no mapping: ignored"));
        }
        return Vec::new();
    };
    let entry = |(key, object): &(Bound<'_, PyAny>, Bound<'_, PyAny>)| entry(key, object);
    items.iter().filter_map(entry).collect()
}

/// One attribute; none where it is `None` or has no key.
pub(crate) fn entry(key: &Bound<'_, PyAny>, object: &Bound<'_, PyAny>) -> Option<(String, Value)> {
    let key_text = if key.is_none() {
        String::new()
    } else {
        text(key).into_owned()
    };
    if key_text.is_empty() {
        Mistake::AttributeKey.say(key.py(), "an attribute without a key is left out");
        return None;
    }
    Some((key_text, value(object)?))
}

/// Any object as a value; none of `None`.
pub(crate) fn value(object: &Bound<'_, PyAny>) -> Option<Value> {
    if object.is_none() {
        return None;
    }
    if let Some(value) = plain(object.as_borrowed()) {
        return Some(value.to_value());
    }
    if let Some(bytes) = bytes(object) {
        return Some(bytes.as_str().into());
    }
    if object.is_instance_of::<PyString>() {
        return Some(text(object).as_ref().into());
    }
    if let Ok(sequence) = object.cast::<PySequence>()
        && let Ok(items) = sequence.try_iter().and_then(Iterator::collect)
    {
        return Some(array(object, items));
    }
    if object.cast::<PyMapping>().is_ok() {
        return Some(json(object));
    }
    Some(scalar(object))
}

/// Bytes as text: what they say if that is UTF-8, else in base64.
fn bytes(object: &Bound<'_, PyAny>) -> Option<String> {
    let bytes = match object.cast::<PyBytes>() {
        Ok(bytes) => bytes.as_bytes().to_vec(),
        Err(_) => object.cast::<PyByteArray>().ok()?.to_vec(),
    };
    Some(String::from_utf8(bytes).unwrap_or_else(|bytes| STANDARD.encode(bytes.as_bytes())))
}

/// An array of one type, as OTLP's readers expect it.
fn array(object: &Bound<'_, PyAny>, items: Vec<Bound<'_, PyAny>>) -> Value {
    let mut values = Vec::with_capacity(items.len());
    for item in &items {
        match value(item) {
            // An array within an array.
            Some(Value::Array(_)) => return json(object),
            None => values.push(None),
            Some(_) if item.cast::<PyMapping>().is_ok() => return json(object),
            some => values.push(some),
        }
    }
    let all = |is: fn(&Value) -> bool| values.iter().flatten().all(is);
    // For `None`, which OTLP's array has no word for, the specification allows this.
    let empty: Value = if values.iter().all(Option::is_none) {
        "".into()
    } else if all(|v| matches!(v, Value::Bool(_))) {
        false.into()
    } else if all(|v| matches!(v, Value::I64(_))) {
        0.into()
    } else if all(|v| matches!(v, Value::I64(_) | Value::F64(_))) {
        values.iter_mut().flatten().for_each(|v| {
            if let Value::I64(n) = *v {
                *v = Value::F64(n as f64);
            }
        });
        0.0.into()
    } else {
        for (value, item) in values.iter_mut().zip(&items) {
            if matches!(value, Some(v) if !matches!(v, Value::Str(_))) {
                *value = Some(text(item).as_ref().into());
            }
        }
        "".into()
    };
    let values = values.into_iter();
    Value::Array(values.map(|v| v.unwrap_or_else(|| empty.clone())).collect())
}

/// What OpenTelemetry's attributes have no type for, as the specification writes it
/// where there is only text.
fn json(object: &Bound<'_, PyAny>) -> Value {
    let py = object.py();
    let written = || -> PyResult<String> {
        let options = PyDict::new(py);
        options.set_item("default", py.get_type::<PyString>())?;
        options.set_item("ensure_ascii", false)?;
        let json = py.import("json")?;
        // A tuple, a mapping of any class, become what JSON has.
        let object = match object.cast::<PyMapping>() {
            Ok(mapping) => {
                let dict = PyDict::new(py);
                dict.update(mapping)?;
                dict.into_any()
            }
            Err(_) => {
                PyList::new(py, object.try_iter()?.collect::<PyResult<Vec<_>>>()?)?.into_any()
            }
        };
        json.call_method("dumps", (object,), Some(&options))?
            .extract()
    };
    match written() {
        Ok(written) => Value::Str(written.into()),
        Err(_) => text(object).as_ref().into(),
    }
}

/// A value as Python has it; arrays become tuples.
pub(crate) fn to_python<'py>(py: Python<'py>, value: ValueRef<'_>) -> PyResult<Bound<'py, PyAny>> {
    Ok(match value {
        ValueRef::Str(text) => PyString::new(py, text).into_any(),
        ValueRef::I64(n) => n.into_pyobject(py)?.into_any(),
        ValueRef::F64(n) => PyFloat::new(py, n).into_any(),
        ValueRef::Bool(b) => b.into_pyobject(py)?.to_owned().into_any(),
        ValueRef::Array(_) => {
            let Value::Array(array) = value.to_value() else {
                return Ok(py.None().into_bound(py));
            };
            let items = array.items();
            let items: PyResult<Vec<_>> = items
                .iter()
                .map(|item| to_python(py, item.as_ref()))
                .collect();
            PyTuple::new(py, items?)?.into_any()
        }
    })
}

/// Attributes as a mapping that cannot be changed.
pub(crate) fn mapping<'a, 'py>(
    py: Python<'py>,
    pairs: impl Iterator<Item = Pair<'a>>,
) -> PyResult<Bound<'py, PyAny>> {
    let dict = PyDict::new(py);
    for (key, value) in pairs {
        dict.set_item(key.text(), to_python(py, value)?)?;
    }
    py.import("types")?
        .getattr("MappingProxyType")?
        .call1((dict,))
}
