//! `start_as_current_span`: a span around a block or a function.

use std::ffi::CStr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use omnitrace::clock;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyBool;

use crate::edge::{Arguments, EXIT, Method, add_method};

use super::api::connected;
use super::span::{Span, is_failure};
use super::start::{Given, start};
use super::tracer::Tracer;

type Owned = Option<Py<PyAny>>;

/// Holds what `start_as_current_span` was called with: the span is started when the
/// block is entered.
#[pyclass(frozen, weakref, module = "omnitrace.opentelemetry", name = "_Block")]
pub(crate) struct Block {
    tracer: Py<Tracer>,
    name: Owned,
    attributes: Owned,
    /// The rest is seldom given: context, kind, links, start time, and whether to
    /// record an exception, to set the status on one, and to end the span.
    rest: Option<Box<[Owned; 7]>>,
    /// Never locked while Python code may run.
    open: Mutex<Option<Open>>,
}

struct Open {
    span: Py<PyAny>,
    token: Py<PyAny>,
}

fn owned(object: Option<Borrowed<'_, '_, PyAny>>) -> Owned {
    object.map(|object| object.to_owned().unbind())
}

impl Block {
    #[inline]
    pub(crate) fn new(
        tracer: &Bound<'_, Tracer>,
        given: [Option<Borrowed<'_, '_, PyAny>>; 8],
        end_on_exit: Option<Borrowed<'_, '_, PyAny>>,
    ) -> Self {
        let [name, context, kind, attributes, links, time, record, status] = given;
        let rest = [context, kind, links, time, record, status, end_on_exit];
        let any = rest.iter().any(Option::is_some);
        Self {
            tracer: tracer.clone().unbind(),
            name: owned(name),
            attributes: owned(attributes),
            rest: any.then(|| Box::new(rest.map(owned))),
            open: Mutex::new(None),
        }
    }

    fn open(&self) -> MutexGuard<'_, Option<Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[inline]
    fn given<'a, 'py>(&'a self, py: Python<'py>) -> Given<'a, 'py> {
        let borrowed = |object: &'a Owned| object.as_ref().map(|o| o.bind_borrowed(py));
        let rest = |at: usize| self.rest.as_ref().and_then(|rest| borrowed(&rest[at]));
        Given::new([
            borrowed(&self.name),
            rest(0),
            rest(1),
            borrowed(&self.attributes),
            rest(2),
            rest(3),
            rest(4),
            rest(5),
        ])
    }

    fn ends_span(&self, py: Python<'_>) -> bool {
        let end = self.rest.as_ref().and_then(|rest| rest[6].as_ref());
        end.is_none_or(|end| end.bind(py).is_truthy().unwrap_or(true))
    }

    #[inline]
    fn enter<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        if self.open().is_some() {
            let message = "this block is open: call start_as_current_span for another one";
            return Err(PyRuntimeError::new_err(message));
        }
        let api = connected(py)?;
        let span = start(self.tracer.bind(py), &self.given(py))?;
        let token = api.attach(&api.context_with(&span)?)?;
        *self.open() = Some(Open {
            span: span.clone().unbind(),
            token: token.unbind(),
        });
        Ok(span)
    }

    #[inline]
    fn exit(&self, error: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = error.py();
        let Some(Open { span, token }) = self.open().take() else {
            return Ok(());
        };
        connected(py)?.detach(&token.into_bound(py));
        // One that is not recorded has nothing to say at its end.
        let span = span.into_bound(py);
        if let Ok(span) = span.cast::<Span>() {
            if !error.is_none() && is_failure(error) {
                span.get().fail(error, self.given(py).on_exception, "False");
            }
            if self.ends_span(py) {
                Span::finish(span, clock::now());
            }
        }
        Ok(())
    }
}

#[pymethods]
impl Block {
    /// As a decorator: each call of `function` gets a span of its own.
    fn __call__<'py>(
        slf: &Bound<'py, Self>,
        function: Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let decorate = slf
            .py()
            .import("omnitrace.opentelemetry._decorate")?
            .getattr("decorate")?;
        decorate.call1((function, slf))
    }

    /// The same block, not yet open.
    fn _again(&self, py: Python<'_>) -> Self {
        let again = |object: &Owned| object.as_ref().map(|o| o.clone_ref(py));
        Self {
            tracer: self.tracer.clone_ref(py),
            name: again(&self.name),
            attributes: again(&self.attributes),
            rest: self
                .rest
                .as_ref()
                .map(|rest| Box::new(rest.each_ref().map(again))),
            open: Mutex::new(None),
        }
    }
}

/// Adds the methods to the class.
pub(crate) fn add_methods(py: Python<'_>) -> PyResult<()> {
    add_method::<Enter>(py)?;
    add_method::<Exit>(py)
}

struct Enter;

impl Method for Enter {
    type Class = Block;
    const NAME: &'static CStr = c"__enter__";
    const DOC: &'static CStr = c"__enter__($self)\n--\n\n";

    #[inline]
    fn call<'py>(
        block: &Bound<'py, Block>,
        arguments: &Arguments<'_, 'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        block.get().enter(arguments.py)
    }
}

struct Exit;

impl Method for Exit {
    type Class = Block;
    const NAME: &'static CStr = c"__exit__";
    const DOC: &'static CStr = c"__exit__($self, exc_type, exc_value, traceback, /)\n--\n\n";

    #[inline]
    fn call<'py>(
        block: &Bound<'py, Block>,
        arguments: &Arguments<'_, 'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = arguments.py;
        let [_, error, _] = EXIT.take(arguments)?;
        if let Some(error) = error {
            block.get().exit(&error)?;
        }
        Ok(PyBool::new(py, false).to_owned().into_any())
    }
}
