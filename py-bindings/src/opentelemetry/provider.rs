//! What the tracers of one provider share.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use omnitrace::config::Limits;
use omnitrace::id::{SpanId, TraceId, random_root};
use omnitrace::{Sampler, SpanContext};
use pyo3::exceptions::PyValueError;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::PyString;

use crate::process::{decisions, is_off};

use super::mistakes::Mistake;
use super::span::Span;

/// The native half of `TracerProvider`.
#[pyclass(frozen, module = "omnitrace.opentelemetry", name = "_Provider")]
pub(crate) struct Provider {
    /// None: the process's.
    sampler: Option<Sampling>,
    /// None: the process's.
    limits: Option<Limits>,
    /// What the process has, as of the first span.
    of_process: OnceLock<(Sampling, Limits)>,
    /// An object with `generate_trace_id` and `generate_span_id`.
    id_generator: Option<Py<PyAny>>,
    /// The Python half's `_processor`, `_resource_view` and `_readable`.
    front: Py<PyAny>,
    has_processor: AtomicBool,
    ended: AtomicBool,
}

/// Who decides whether a span is recorded.
pub(crate) enum Sampling {
    Ours(Sampler),
    /// An object with `should_sample`.
    Theirs(Py<PyAny>),
}

#[pymethods]
impl Provider {
    /// `sampler`: None for the process's, a name with the ratio as argument, or an
    /// object. `limits`: None for the process's, or seven numbers, None for no limit.
    #[new]
    fn new(
        front: Py<PyAny>,
        sampler: Option<Bound<'_, PyAny>>,
        ratio: f64,
        limits: Option<[Option<usize>; 7]>,
        id_generator: Option<Py<PyAny>>,
    ) -> PyResult<Self> {
        let sampler = match sampler {
            None => None,
            Some(sampler) => Some(match sampler.cast::<PyString>() {
                Err(_) => Sampling::Theirs(sampler.unbind()),
                Ok(name) => {
                    let name = name.to_string_lossy();
                    let named = Sampler::named(&name, ratio).ok_or_else(|| {
                        PyValueError::new_err(format!("there is no sampler {name} of {ratio}"))
                    })?;
                    Sampling::Ours(named)
                }
            }),
        };
        let limits = limits.map(|given| {
            let [attributes, length, events, links, of_event, of_link, other] = given;
            let count = |limit: Option<usize>| limit.unwrap_or(usize::MAX);
            Limits {
                attributes: count(attributes),
                attribute_length: length,
                events: count(events),
                links: count(links),
                event_attributes: count(of_event),
                link_attributes: count(of_link),
                other_length: other,
            }
        });
        Ok(Self {
            sampler,
            limits,
            of_process: OnceLock::new(),
            id_generator,
            front,
            has_processor: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        })
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.front)?;
        visit.call(&self.id_generator)?;
        match &self.sampler {
            Some(Sampling::Theirs(sampler)) => visit.call(sampler),
            _ => Ok(()),
        }
    }

    /// From now on spans are shown to the Python half's processor.
    fn show_spans(&self) {
        self.has_processor.store(true, Ordering::Relaxed);
    }

    /// From now on nothing is recorded.
    fn shut_down(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    /// The name of the sampler; none of an object's.
    fn sampler_name(&self) -> Option<String> {
        match self.sampling() {
            Sampling::Ours(sampler) => Some(sampler.to_string()),
            Sampling::Theirs(_) => None,
        }
    }
}

impl Provider {
    #[inline]
    pub(crate) fn sampling(&self) -> &Sampling {
        self.sampler
            .as_ref()
            .unwrap_or_else(|| &self.of_process().0)
    }

    #[inline]
    pub(crate) fn limits(&self) -> &Limits {
        self.limits.as_ref().unwrap_or_else(|| &self.of_process().1)
    }

    #[inline]
    fn of_process(&self) -> &(Sampling, Limits) {
        self.of_process.get_or_init(|| {
            let (sampler, limits) = decisions();
            (Sampling::Ours(sampler), limits)
        })
    }

    /// Whether spans are recorded. The first one starts the recorder of the process.
    #[inline]
    pub(crate) fn records(&self) -> bool {
        self.of_process();
        !is_off() && !self.has_ended()
    }

    #[inline]
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn has_processor(&self) -> bool {
        self.has_processor.load(Ordering::Relaxed)
    }

    /// A context of a new span of the trace, or of a new trace.
    #[inline]
    pub(crate) fn new_context(&self, py: Python<'_>, parent: Option<&SpanContext>) -> SpanContext {
        let (trace_id, span_id) = match (&self.id_generator, parent) {
            (None, None) => random_root(),
            (None, Some(parent)) => (parent.trace_id, SpanId::random()),
            (Some(generator), parent) => {
                let (trace_id, span_id) = generated(generator.bind(py), parent);
                (
                    trace_id.unwrap_or_else(TraceId::random),
                    span_id.unwrap_or_else(SpanId::random),
                )
            }
        };
        SpanContext {
            trace_id,
            span_id,
            flags: 0,
        }
    }

    /// Shows a span that has just been started.
    #[cold]
    pub(crate) fn on_start(&self, span: &Bound<'_, Span>, context: Option<&Bound<'_, PyAny>>) {
        self.show(span.py(), "_on_start", (span, context));
    }

    /// Shows a span that has just ended.
    #[cold]
    pub(crate) fn on_end(&self, span: &Bound<'_, Span>) {
        self.show(span.py(), "_on_end", (span,));
    }

    fn show<'py>(
        &self,
        py: Python<'py>,
        method: &str,
        arguments: impl pyo3::call::PyCallArgs<'py>,
    ) {
        if let Err(error) = self.front.bind(py).call_method1(method, arguments) {
            let what = format!("a span processor fails ({error}): spans are recorded all the same");
            Mistake::Processor.say(py, &what);
        }
    }

    /// The provider's resource as Python sees it.
    pub(crate) fn resource<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.front.bind(py).getattr("resource")
    }
}

/// Ids by an object of the user's; none where it gives none that is valid.
#[cold]
fn generated(
    generator: &Bound<'_, PyAny>,
    parent: Option<&SpanContext>,
) -> (Option<TraceId>, Option<SpanId>) {
    let trace_id = || -> PyResult<Option<TraceId>> {
        let number: u128 = generator.call_method0("generate_trace_id")?.extract()?;
        Ok(TraceId::new(number))
    };
    let span_id = || -> PyResult<Option<SpanId>> {
        let number: u64 = generator.call_method0("generate_span_id")?.extract()?;
        Ok(SpanId::new(number))
    };
    let ids = || {
        let trace_id = match parent {
            Some(parent) => Some(parent.trace_id),
            None => trace_id()?,
        };
        Ok((trace_id, span_id()?))
    };
    let ids = ids().unwrap_or_else(|error: PyErr| {
        let what = format!("the id generator fails ({error}): random ids");
        Mistake::Generator.say(generator.py(), &what);
        (parent.map(|parent| parent.trace_id), None)
    });
    if ids.0.is_none() || ids.1.is_none() {
        let what = "the id generator gives an invalid id: a random one instead";
        Mistake::Generator.say(generator.py(), what);
    }
    ids
}
