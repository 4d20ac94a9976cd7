//! `omnitrace.extract` and `omnitrace.inject`: context in and out of carriers.

use arrayvec::ArrayVec;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyString, PyTuple};

use crate::attributes::text;
use omnitrace::propagation::{DebugTraces, Propagated};

use crate::context::{SpanContext, current};
use crate::process::{with_propagators, with_recorder};

/// Keys that a carrier may hold for us beside those of the formats in use.
const OWN_KEYS: [&str; 2] = ["omnitrace-request-id", "omnitrace-starts"];

/// Headers that may come in several parts.
const LISTS: [&str; 2] = ["tracestate", "baggage"];

/// Also where nothing is recorded.
static DEBUG_TRACES: DebugTraces = DebugTraces::new();

/// Reads the context that came with a call.
#[pyfunction]
#[pyo3(signature = (carrier, request_id=None))]
pub(crate) fn extract(
    carrier: &Bound<'_, PyAny>,
    request_id: Option<&Bound<'_, PyAny>>,
) -> Option<SpanContext> {
    let found = read(carrier);
    let request_id = request_id.filter(|id| !id.is_none()).map(text);
    let get = |key: &str| found.get(key);
    let came = || with_propagators(|propagators| propagators.extract(get));
    if found.0.iter().any(|(key, _)| key.contains("b3")) {
        let propagated = came();
        if let (true, Some(context)) = (propagated.debug, propagated.context) {
            DEBUG_TRACES.insert(context.trace_id);
        }
    }
    with_recorder(|recorder| Some(recorder.extract(get, request_id.as_deref())))
        // Where nothing is recorded the caller's context still passes through.
        .unwrap_or_else(|| came().context)
        .map(SpanContext)
}

/// More than the formats have together.
const MOST_KEYS: usize = 16;

/// The keys that are looked for.
struct Keys(ArrayVec<&'static str, MOST_KEYS>);

impl Keys {
    fn in_use() -> Self {
        let fields = |fields: &[&'static str]| fields.iter().copied().take(MOST_KEYS).collect();
        let mut keys: ArrayVec<_, MOST_KEYS> = with_propagators(|used| fields(used.fields()));
        keys.extend(OWN_KEYS.into_iter().take(keys.remaining_capacity()));
        Self(keys)
    }

    /// Ours for a name in any case.
    fn find(&self, name: &[u8]) -> Option<&'static str> {
        let mut keys = self.0.iter().copied();
        keys.find(|key| name.eq_ignore_ascii_case(key.as_bytes()))
    }
}

/// What a carrier holds for us.
struct Found(Vec<(&'static str, String)>);

impl Found {
    fn get(&self, key: &str) -> Option<&str> {
        let (_, value) = self.0.iter().find(|(known, _)| *known == key)?;
        Some(value)
    }
}

fn read(carrier: &Bound<'_, PyAny>) -> Found {
    let keys = Keys::in_use();
    let mut found = Found(Vec::with_capacity(4));
    if let Ok(dict) = carrier.cast::<PyDict>() {
        // All of it first: making text of a key may run code that changes it.
        let pairs: Vec<_> = dict.iter().collect();
        for (key, value) in &pairs {
            let known = keys.find(text(key).as_bytes());
            if let (Some(known), Ok(value)) = (known, value.cast::<PyString>()) {
                found.0.push((known, value.to_string_lossy().into_owned()));
            }
        }
    } else if let Ok(headers) = carrier.cast::<PyList>() {
        read_asgi(&keys, headers, &mut found);
    } else {
        for &key in &keys.0 {
            let Ok(value) = carrier.call_method1("get", (key,)) else {
                continue;
            };
            if let Ok(value) = value.cast::<PyString>() {
                found.0.push((key, value.to_string_lossy().into_owned()));
            }
        }
    }
    found
}

/// Headers as ASGI has them: names and values in bytes. Of what came more than once
/// only lists have a value, as the specifications of each say.
fn read_asgi(keys: &Keys, headers: &Bound<'_, PyList>, found: &mut Found) {
    let mut repeated = ArrayVec::<&'static str, MOST_KEYS>::new();
    for header in headers {
        let Ok(header) = header.cast_into_exact::<PyTuple>() else {
            continue;
        };
        let (Ok(name), Ok(value)) = (header.get_item(0), header.get_item(1)) else {
            continue;
        };
        let (Ok(name), Ok(value)) = (name.cast::<PyBytes>(), value.cast::<PyBytes>()) else {
            continue;
        };
        let Some(key) = keys.find(name.as_bytes()) else {
            continue;
        };
        // HTTP's headers are Latin-1, all of which is in Unicode.
        let value = value.as_bytes().iter().copied().map(char::from);
        match found.0.iter_mut().find(|(known, _)| *known == key) {
            None => found.0.push((key, value.collect())),
            Some((_, list)) if LISTS.contains(&key) => {
                list.push(',');
                list.extend(value);
            }
            Some(_) if repeated.contains(&key) => {}
            Some(_) => repeated.push(key),
        }
    }
    found.0.retain(|(key, _)| !repeated.contains(key));
}

/// Writes the context that the receiver of a call needs.
#[pyfunction]
#[pyo3(signature = (carrier, request_id=None))]
pub(crate) fn inject(
    py: Python<'_>,
    carrier: &Bound<'_, PyAny>,
    request_id: Option<&Bound<'_, PyAny>>,
) -> PyResult<()> {
    let mut failed = Ok(());
    let set = |key: &'static str, value: &str| {
        if failed.is_ok() {
            failed = carrier.set_item(key, value);
        }
    };
    match request_id.filter(|id| !id.is_none()).map(text) {
        Some(request_id) => {
            with_recorder(|recorder| {
                recorder.inject_request(&request_id, set);
                Some(())
            });
        }
        None => {
            if let Some(parent) = current(py) {
                let propagated = Propagated {
                    context: Some(parent.context),
                    debug: DEBUG_TRACES.contains(parent.context.trace_id),
                    ..Propagated::default()
                };
                with_propagators(|propagators| propagators.inject(&propagated, set));
            }
        }
    }
    // A carrier that cannot be written to is a mistake in the calling code.
    failed
}
