//! `Tracer`: starts spans of one instrumentation scope.

use std::ffi::CStr;
use std::sync::atomic::{AtomicU64, Ordering};

use omnitrace::Recorder;
use omnitrace::span::{InstrumentationScope, ScopeId};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;

use crate::attributes::pair;
use crate::edge::{Arguments, Method, Parameters, add_method};

use super::block::Block;
use super::packed::Room;
use super::provider::Provider;
use super::start::{Given, start};
use super::values::{mapping, read};

/// Starts spans, an `opentelemetry.trace.Tracer`.
#[pyclass(frozen, weakref, module = "omnitrace.opentelemetry", name = "Tracer")]
pub(crate) struct Tracer {
    provider: Py<Provider>,
    scope: InstrumentationScope,
    /// The scope's number in the recorder that was used last: the recorder's own
    /// number, then 16 bits of the scope's. 0: none yet.
    number: AtomicU64,
}

#[pymethods]
impl Tracer {
    #[new]
    fn new(
        provider: Py<Provider>,
        name: &str,
        version: &str,
        schema_url: &str,
        attributes: Option<Bound<'_, PyAny>>,
    ) -> Self {
        let attributes = attributes.map(|given| read(&given, Room::UNLIMITED).to_vec());
        Self {
            provider,
            scope: InstrumentationScope {
                name: name.into(),
                version: version.into(),
                schema_url: schema_url.into(),
                attributes: attributes.unwrap_or_default(),
            },
            number: AtomicU64::new(0),
        }
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.provider)
    }

    /// The scope of its spans.
    #[getter]
    fn instrumentation_scope<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.scope_view(py)
    }

    #[getter]
    fn resource<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.provider().resource(py)
    }

    fn __repr__(&self) -> String {
        format!("Tracer('{}')", self.scope.name)
    }
}

impl Tracer {
    #[inline]
    pub(crate) fn provider(&self) -> &Provider {
        self.provider.get()
    }

    /// The scope's number in this recorder.
    #[inline]
    pub(crate) fn scope_in(&self, recorder: &Recorder) -> ScopeId {
        let known = self.number.load(Ordering::Relaxed);
        if known >> 16 == recorder.number() {
            return ScopeId::from_number(known as u16);
        }
        let scope = recorder.scope(&self.scope);
        let number = recorder.number() << 16 | u64::from(scope.number());
        self.number.store(number, Ordering::Relaxed);
        scope
    }

    /// The scope as Python sees it.
    pub(crate) fn scope_view<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let class = py
            .import("omnitrace.opentelemetry")?
            .getattr("InstrumentationScope")?;
        let scope = &self.scope;
        let attributes = mapping(py, scope.attributes.iter().map(pair))?;
        let schema_url = Some(&*scope.schema_url).filter(|url| !url.is_empty());
        class.call1((&*scope.name, &*scope.version, schema_url, attributes))
    }
}

/// In the API's order.
const START_AS_CURRENT: [&str; 9] = [
    "name",
    "context",
    "kind",
    "attributes",
    "links",
    "start_time",
    "record_exception",
    "set_status_on_exception",
    "end_on_exit",
];
/// All but the last.
const START: [&str; 8] = match START_AS_CURRENT.first_chunk() {
    Some(first) => *first,
    None => unreachable!(),
};

/// Adds the methods to the class.
pub(crate) fn add_methods(py: Python<'_>) -> PyResult<()> {
    add_method::<StartSpan>(py)?;
    add_method::<StartAsCurrentSpan>(py)
}

struct StartSpan;

impl Method for StartSpan {
    type Class = Tracer;
    const NAME: &'static CStr = c"start_span";
    const DOC: &'static CStr = c"start_span($self, name, context=None, kind=SpanKind.INTERNAL, \
attributes=None, links=None, start_time=None, record_exception=True, \
set_status_on_exception=True)\n--\n\nStarts a span.";

    #[inline]
    fn call<'py>(
        tracer: &Bound<'py, Tracer>,
        arguments: &Arguments<'_, 'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        static PARAMETERS: Parameters<8> = Parameters::new("start_span", START, 8, 1);
        start(tracer, &Given::new(PARAMETERS.take(arguments)?))
    }
}

struct StartAsCurrentSpan;

impl Method for StartAsCurrentSpan {
    type Class = Tracer;
    const NAME: &'static CStr = c"start_as_current_span";
    const DOC: &'static CStr = c"start_as_current_span($self, name, context=None, \
kind=SpanKind.INTERNAL, attributes=None, links=None, start_time=None, record_exception=True, \
set_status_on_exception=True, end_on_exit=True)\n--\n\nA block with a span that is the current one.";

    #[inline]
    fn call<'py>(
        tracer: &Bound<'py, Tracer>,
        arguments: &Arguments<'_, 'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        static PARAMETERS: Parameters<9> =
            Parameters::new("start_as_current_span", START_AS_CURRENT, 9, 1);
        let [
            name,
            context,
            kind,
            attributes,
            links,
            time,
            record,
            status,
            end,
        ] = PARAMETERS.take(arguments)?;
        let given = [name, context, kind, attributes, links, time, record, status];
        Ok(Bound::new(arguments.py, Block::new(tracer, given, end))?.into_any())
    }
}
