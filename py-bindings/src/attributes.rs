//! Python values as attribute values. Nothing here raises: what cannot be kept
//! as it is becomes text.

use std::borrow::Cow;

use arrayvec::ArrayVec;
use omnitrace::value::Array;
use omnitrace::{Attribute, KeyRef, Value, ValueRef};
use pyo3::prelude::*;
use pyo3::sync::critical_section::with_critical_section;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyList, PyMapping, PyString, PyTuple};

use crate::cpython::{self, utf8};
use crate::keys::key;

/// Most entries of a dictionary that are read without a copy.
const PLAIN: usize = 32;

/// A key with its value, as the recorder takes them.
pub(crate) type Pair<'a> = (KeyRef<'a>, ValueRef<'a>);

/// Text of any object: its own if it is a string, else `str(object)`.
pub(crate) fn text<'a>(object: &'a Bound<'_, PyAny>) -> Cow<'a, str> {
    if let Some(text) = utf8(object.as_borrowed()) {
        return Cow::Borrowed(text);
    }
    match object.cast::<PyString>() {
        // Lone surrogates become the replacement character.
        Ok(string) => string.to_string_lossy(),
        Err(_) => match object.str() {
            Ok(string) => Cow::Owned(string.to_string_lossy().into_owned()),
            Err(_) => Cow::Borrowed("?"),
        },
    }
}

/// A value of a type that is read without running Python code.
#[inline]
pub(crate) fn plain<'a>(object: Borrowed<'a, '_, PyAny>) -> Option<ValueRef<'a>> {
    if let Some(text) = utf8(object) {
        return Some(ValueRef::Str(text));
    }
    if let Some(n) = cpython::int(&object) {
        return Some(ValueRef::I64(n));
    }
    if let Some(n) = cpython::float(&object) {
        return Some(ValueRef::F64(n));
    }
    cpython::boolean(&object).map(ValueRef::Bool)
}

/// Any object as a value.
pub(crate) fn value(object: &Bound<'_, PyAny>) -> Value {
    if let Some(value) = plain(object.as_borrowed()) {
        return value.to_value();
    }
    match items(object) {
        Some(items) => array(&items).map_or_else(|| text(object).as_ref().into(), Value::Array),
        None => scalar(object),
    }
}

/// Any object that is no array as a value.
pub(crate) fn scalar(object: &Bound<'_, PyAny>) -> Value {
    if let Ok(b) = object.cast::<PyBool>() {
        return Value::Bool(b.is_true());
    }
    if object.is_instance_of::<PyInt>()
        && let Ok(n) = object.extract::<i64>()
    {
        return Value::I64(n);
    }
    if let Ok(n) = object.cast::<PyFloat>() {
        return Value::F64(n.value());
    }
    if !object.is_instance_of::<PyString>() && !object.is_instance_of::<PyInt>() {
        // Such as numpy's numbers.
        if let Ok(n) = object.extract::<i64>() {
            return Value::I64(n);
        }
        if let Ok(n) = object.extract::<f64>() {
            return Value::F64(n);
        }
    }
    Value::Str(text(object).into())
}

/// A sequence of texts, of integers, of floats or of truth values; none of any
/// other.
fn array(items: &[Bound<'_, PyAny>]) -> Option<Array> {
    let values: Vec<Value> = items.iter().map(scalar).collect();
    let kind = |value: &Value| std::mem::discriminant(value);
    let same = values.windows(2).all(|w| kind(&w[0]) == kind(&w[1]));
    // An object that only has a text is no text.
    let texts = items
        .iter()
        .zip(&values)
        .all(|(item, value)| !matches!(value, Value::Str(_)) || item.is_instance_of::<PyString>());
    (same && texts).then(|| values.into_iter().collect())
}

/// Hands the entries of `attributes` to `record`. A `None` value is left out, as
/// OpenTelemetry does; what is no mapping has no entries.
#[inline]
pub(crate) fn with_attributes<T>(
    attributes: Option<&Bound<'_, PyAny>>,
    record: impl FnOnce(&[Pair<'_>]) -> Option<T>,
) -> Option<T> {
    let Some(mapping) = attributes.filter(|m| !m.is_none()) else {
        return record(&[]);
    };
    if !cpython::is_dict(mapping) {
        return with_entries(mapping, record);
    }
    let mut record = Some(record);
    let done = with_critical_section(mapping, || {
        // Filled in its place: there is room for many, and to copy it takes its time.
        let mut pairs = ArrayVec::new();
        if plain_pairs(mapping, &[], &mut pairs) {
            return record.take().and_then(|record| record(&pairs));
        }
        let mut lists = ArrayVec::<Value, LISTS>::new();
        let all_read = cpython::each_entry(mapping, |_, v| {
            !is_list(v) || plain_list(v).is_some_and(|list| lists.try_push(list).is_ok())
        });
        let mut pairs = ArrayVec::new();
        if !all_read || !plain_pairs(mapping, &lists, &mut pairs) {
            return None;
        }
        record.take().and_then(|record| record(&pairs))
    });
    match record {
        Some(record) => with_entries(mapping, record),
        None => done,
    }
}

/// Most lists among them.
const LISTS: usize = 4;

/// Adds the entries of a dictionary, in which `lists` are, in their order. False: Python code
/// must run to read them, or they are too many.
#[inline]
fn plain_pairs<'a>(
    mapping: &'a Bound<'_, PyAny>,
    lists: &'a [Value],
    pairs: &mut ArrayVec<Pair<'a>, PLAIN>,
) -> bool {
    let mut lists = lists.iter();
    cpython::each_entry(mapping, |k, v| {
        if v.is_none() {
            return true;
        }
        let value = plain(v).or_else(|| lists.next().filter(|_| is_list(v)).map(Value::as_ref));
        let pair = key(k).zip(value);
        pair.is_some_and(|pair| pairs.try_push(pair).is_ok())
    })
}

#[inline]
fn is_list(object: Borrowed<'_, '_, PyAny>) -> bool {
    object.is_exact_instance_of::<PyList>() || object.is_exact_instance_of::<PyTuple>()
}

/// A list or a tuple of what is [`plain`], all of one type.
fn plain_list(object: Borrowed<'_, '_, PyAny>) -> Option<Value> {
    let items = items(&object)?;
    let all_plain = items.iter().all(|item| plain(item.as_borrowed()).is_some());
    // Only then is it read without running Python code.
    if all_plain {
        array(&items).map(Value::Array)
    } else {
        None
    }
}

/// The items of a list or a tuple.
fn items<'py>(object: &Bound<'py, PyAny>) -> Option<Vec<Bound<'py, PyAny>>> {
    match object.cast::<PyList>() {
        Ok(list) => Some(list.iter().collect()),
        Err(_) => object.cast::<PyTuple>().ok().map(|t| t.iter().collect()),
    }
}

/// The same for what needs Python code to be read.
#[cold]
fn with_entries<T>(mapping: &Bound<'_, PyAny>, record: impl FnOnce(&[Pair<'_>]) -> T) -> T {
    let entries = entries(mapping);
    let pairs: Vec<Pair<'_>> = entries.iter().map(pair).collect();
    record(&pairs)
}

/// An owned attribute as the recorder takes it.
pub(crate) fn pair(attribute: &Attribute) -> Pair<'_> {
    (KeyRef::Text(&attribute.key), attribute.value.as_ref())
}

/// The entries of a mapping, or nothing if it is none.
pub(crate) fn entries(mapping: &Bound<'_, PyAny>) -> Vec<Attribute> {
    let entry = |key: &Bound<'_, PyAny>, object: &Bound<'_, PyAny>| {
        (!object.is_none()).then(|| Attribute::new(text(key), value(object)))
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
    let pair = |item: Bound<'_, PyAny>| -> Option<Attribute> {
        entry(&item.get_item(0).ok()?, &item.get_item(1).ok()?)
    };
    items.iter().filter_map(pair).collect()
}
