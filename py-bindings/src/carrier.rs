//! `omnitrace.extract` and `omnitrace.inject`: context in and out of carriers.

use std::collections::HashMap;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

use crate::attributes::text;
use omnitrace::propagation::{DebugTraces, Propagated};

use crate::context::{SpanContext, current};
use crate::process::{with_propagators, with_recorder};

/// Keys that a carrier may hold for us beside those of the formats in use.
const OWN_KEYS: [&str; 2] = ["omnitrace-request-id", "omnitrace-starts"];

/// Also where nothing is recorded.
static DEBUG_TRACES: DebugTraces = DebugTraces::new();

/// Reads the context that came with a call.
#[pyfunction]
#[pyo3(signature = (carrier, request_id=None))]
pub(crate) fn extract(
    carrier: &Bound<'_, PyAny>,
    request_id: Option<&Bound<'_, PyAny>>,
) -> Option<SpanContext> {
    let mut keys = with_propagators(|propagators| propagators.fields().to_vec());
    keys.extend(OWN_KEYS);
    let found = read(carrier, &keys);
    let request_id = request_id.filter(|id| !id.is_none()).map(text);
    let get = |key: &str| found.get(key).map(String::as_str);
    let came = || with_propagators(|propagators| propagators.extract(get));
    if found.keys().any(|key| key.contains("b3")) {
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

/// Our keys in the carrier; a plain dict may spell them in any case.
fn read(carrier: &Bound<'_, PyAny>, keys: &[&'static str]) -> HashMap<&'static str, String> {
    let mut found = HashMap::new();
    if let Ok(dict) = carrier.cast::<PyDict>() {
        // All of it first: making text of a key may run code that changes it.
        let pairs: Vec<_> = dict.iter().collect();
        for (key, value) in &pairs {
            let key = text(key);
            let known = keys.iter().find(|k| key.eq_ignore_ascii_case(k));
            if let (Some(&known), Ok(value)) = (known, value.cast::<PyString>()) {
                found.insert(known, value.to_string_lossy().into_owned());
            }
        }
        return found;
    }
    for &key in keys {
        let Ok(value) = carrier.call_method1("get", (key,)) else {
            continue;
        };
        if let Ok(value) = value.cast::<PyString>() {
            found.insert(key, value.to_string_lossy().into_owned());
        }
    }
    found
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
