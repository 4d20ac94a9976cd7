//! `omnitrace.extract` and `omnitrace.inject`: context in and out of carriers.

use std::ffi::CStr;

use arrayvec::ArrayVec;
use omnitrace::propagation::{DebugTraces, Propagated};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::sync::critical_section::with_critical_section;
use pyo3::types::{PyBytes, PyDict, PyList, PyString, PyTuple};

use crate::attributes::text;
use crate::context::{SpanContext, current};
use crate::cpython::{self, utf8};
use crate::edge::{Arguments, Function, Parameters, add_function, none};
use crate::process::{with_propagators, with_recorder};

/// Keys that a carrier may hold for us beside those of the formats in use.
const OWN_KEYS: [&str; 2] = ["omnitrace-request-id", "omnitrace-starts"];

/// Headers that may come in several parts.
const LISTS: [&str; 2] = ["tracestate", "baggage"];

/// Also where nothing is recorded.
static DEBUG_TRACES: DebugTraces = DebugTraces::new();

/// Adds both to the module.
pub(crate) fn install(module: &Bound<'_, PyModule>) -> PyResult<()> {
    add_function::<ExtractFunction>(module)?;
    add_function::<InjectFunction>(module)
}

struct ExtractFunction;

impl Function for ExtractFunction {
    const NAME: &'static CStr = c"extract";
    const DOC: &'static CStr =
        c"extract(carrier, request_id=None)\n--\n\nReads the context that came with a call.";

    fn call<'py>(arguments: &Arguments<'_, 'py>) -> PyResult<Bound<'py, PyAny>> {
        static PARAMETERS: Parameters<2> =
            Parameters::new("extract", ["carrier", "request_id"], 2, 1);
        let [carrier, request_id] = PARAMETERS.take(arguments)?;
        let context = carrier.and_then(|carrier| extract(&carrier, request_id.as_deref()));
        Ok(match context {
            Some(context) => Bound::new(arguments.py, SpanContext(context))?.into_any(),
            None => none(arguments.py),
        })
    }
}

struct InjectFunction;

impl Function for InjectFunction {
    const NAME: &'static CStr = c"inject";
    const DOC: &'static CStr = c"inject(carrier, request_id=None)\n--\n\n\
Writes the context that the receiver of a call needs.";

    fn call<'py>(arguments: &Arguments<'_, 'py>) -> PyResult<Bound<'py, PyAny>> {
        static PARAMETERS: Parameters<2> =
            Parameters::new("inject", ["carrier", "request_id"], 2, 1);
        let [carrier, request_id] = PARAMETERS.take(arguments)?;
        if let Some(carrier) = carrier {
            inject(&carrier, request_id.as_deref())?;
        }
        Ok(none(arguments.py))
    }
}

fn extract(
    carrier: &Bound<'_, PyAny>,
    request_id: Option<&Bound<'_, PyAny>>,
) -> Option<omnitrace::SpanContext> {
    // Python code may run here, so before the recorder is taken.
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
struct Found<'py>(ArrayVec<(&'static str, Value<'py>), MOST_KEYS>);

/// A value that was found.
enum Value<'py> {
    /// Exactly a string, and UTF-8.
    String(Bound<'py, PyAny>),
    /// Latin-1 that is ASCII too.
    Ascii(Bound<'py, PyBytes>),
    Text(String),
}

impl Value<'_> {
    fn text(&self) -> &str {
        match self {
            Self::String(string) => utf8(string.as_borrowed()).unwrap_or_default(),
            Self::Ascii(bytes) => str::from_utf8(bytes.as_bytes()).unwrap_or_default(),
            Self::Text(text) => text,
        }
    }
}

impl<'py> Found<'py> {
    fn get(&self, key: &str) -> Option<&str> {
        let (_, value) = self.0.iter().find(|(known, _)| *known == key)?;
        Some(value.text())
    }

    /// A mapping has a key once, but in one case or another: the first counts.
    fn add(&mut self, key: &'static str, value: &Bound<'py, PyAny>) {
        let value = match utf8(value.as_borrowed()) {
            Some(_) => Value::String(value.clone()),
            None => match value.cast::<PyString>() {
                Ok(value) => Value::Text(value.to_string_lossy().into_owned()),
                Err(_) => return,
            },
        };
        if self.0.iter().all(|(known, _)| *known != key) {
            self.0.push((key, value));
        }
    }
}

fn read<'py>(carrier: &Bound<'py, PyAny>) -> Found<'py> {
    let keys = Keys::in_use();
    let mut found = Found(ArrayVec::new());
    if cpython::is_dict(carrier) && read_plain(&keys, carrier, &mut found) {
        return found;
    }
    found.0.clear();
    if let Ok(dict) = carrier.cast::<PyDict>() {
        // All of it first: making text of a key may run code that changes it.
        let pairs: Vec<_> = dict.iter().collect();
        for (key, value) in &pairs {
            if let Some(known) = keys.find(text(key).as_bytes()) {
                found.add(known, value);
            }
        }
    } else if let Ok(headers) = carrier.cast::<PyList>() {
        read_asgi(&keys, headers, &mut found);
    } else {
        for &key in &keys.0 {
            if let Ok(value) = carrier.call_method1("get", (key,)) {
                found.add(key, &value);
            }
        }
    }
    found
}

/// Reads a dictionary all of whose keys are strings. False: there are others.
fn read_plain<'py>(keys: &Keys, dict: &Bound<'py, PyAny>, found: &mut Found<'py>) -> bool {
    with_critical_section(dict, || {
        cpython::each_entry(dict, |key, value| {
            let key = utf8(key);
            if let Some(known) = key.and_then(|key| keys.find(key.as_bytes())) {
                found.add(known, &value);
            }
            key.is_some()
        })
    })
}

/// Headers as ASGI has them: names and values in bytes. Of what came more than once
/// only lists have a value, as the specifications of each say.
fn read_asgi<'py>(keys: &Keys, headers: &Bound<'py, PyList>, found: &mut Found<'py>) {
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
        let characters = value.as_bytes().iter().copied().map(char::from);
        match found.0.iter_mut().find(|(known, _)| *known == key) {
            None if value.as_bytes().is_ascii() => {
                found.0.push((key, Value::Ascii(value.clone())));
            }
            None => found.0.push((key, Value::Text(characters.collect()))),
            Some((_, list)) if LISTS.contains(&key) => {
                let so_far = list.text().chars().chain([',']);
                *list = Value::Text(so_far.chain(characters).collect());
            }
            Some(_) if repeated.contains(&key) => {}
            Some(_) => repeated.push(key),
        }
    }
    found.0.retain(|(key, _)| !repeated.contains(key));
}

/// Our keys as Python has them, made once.
static INTERNED: PyOnceLock<[Py<PyString>; USUAL_KEYS.len()]> = PyOnceLock::new();
const USUAL_KEYS: [&str; 4] = ["traceparent", "tracestate", OWN_KEYS[0], OWN_KEYS[1]];

fn set(carrier: &Bound<'_, PyAny>, key: &'static str, value: &str) -> PyResult<()> {
    let py = carrier.py();
    let keys = INTERNED.get_or_init(py, || {
        USUAL_KEYS.map(|key| PyString::intern(py, key).unbind())
    });
    match USUAL_KEYS.iter().position(|usual| *usual == key) {
        Some(at) => carrier.set_item(&keys[at], value),
        None => carrier.set_item(key, value),
    }
}

fn inject(carrier: &Bound<'_, PyAny>, request_id: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
    let mut failed = Ok(());
    let set = |key: &'static str, value: &str| {
        if failed.is_ok() {
            failed = set(carrier, key, value);
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
            if let Some(parent) = current(carrier.py()) {
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
