//! The rest of a span's methods, and what can be read of it.

use omnitrace::SpanContext;
use omnitrace::span::Status;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::attributes::{pair, text};
use crate::opentelemetry::api::connected;
use crate::opentelemetry::mistakes::Mistake;
use crate::opentelemetry::parent::{self, TraceState};
use crate::opentelemetry::values::mapping;

use super::calls::time;
use super::{Span, clean_name};

#[pymethods]
impl Span {
    fn get_span_context<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        if let Some(seen) = self.seen.get() {
            return Ok(seen.bind(py).clone());
        }
        let state = self.trace_state.as_ref();
        let context = parent::to_python(py, connected(py)?, &self.context, false, state)?;
        // Another thread may have been faster: its object is as good.
        Ok(self.seen.get_or_init(|| context.unbind()).bind(py).clone())
    }

    fn update_name(&self, py: Python<'_>, name: &Bound<'_, PyAny>) {
        let mut name = clean_name(name);
        self.change(py, "update_name", |state| {
            // The old name is dropped when the lock is free.
            std::mem::swap(&mut state.name, &mut name);
            state.more().renamed = true;
        });
    }

    #[pyo3(signature = (status, description=None))]
    fn set_status(
        &self,
        py: Python<'_>,
        status: &Bound<'_, PyAny>,
        description: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let codes = &connected(py)?.status_codes;
        let (code, description) = match status.getattr("status_code") {
            Ok(code) => {
                if description.is_some_and(|d| !d.is_none()) {
                    let what = "set_status of a Status takes no description: ignored";
                    Mistake::Description.say(py, what);
                }
                (code, Some(status.getattr("description")?))
            }
            Err(_) => (status.clone(), description.cloned()),
        };
        let is = |at: usize| code.is(codes[at].bind(py));
        let status = if is(2) {
            let words = description.filter(|d| !d.is_none());
            Status::Error(words.map_or("".into(), |d| text(&d).as_ref().into()))
        } else if is(1) {
            Status::Ok
        } else if is(0) {
            Status::Unset
        } else {
            Mistake::Status.say(py, "set_status needs a Status or a StatusCode: ignored");
            return Ok(());
        };
        self.change_status(py, status);
        Ok(())
    }

    #[pyo3(signature = (context, attributes=None))]
    fn add_link(
        &self,
        py: Python<'_>,
        context: &Bound<'_, PyAny>,
        attributes: Option<&Bound<'_, PyAny>>,
    ) {
        self.link(py, context, attributes);
    }

    #[pyo3(
        signature = (exception, attributes=None, timestamp=None, escaped=None),
        text_signature = "($self, exception, attributes=None, timestamp=None, escaped=False)"
    )]
    fn record_exception(
        &self,
        exception: &Bound<'_, PyAny>,
        attributes: Option<&Bound<'_, PyAny>>,
        timestamp: Option<&Bound<'_, PyAny>>,
        escaped: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let time = time(timestamp.map(|time| time.as_borrowed()));
        let escaped = escaped.map_or("False".into(), text);
        self.exception(exception, attributes, time, &escaped)
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __exit__(
        slf: &Bound<'_, Self>,
        exc_type: &Bound<'_, PyAny>,
        exc_val: &Bound<'_, PyAny>,
        exc_tb: &Bound<'_, PyAny>,
    ) {
        let _ = (exc_type, exc_tb);
        let span = slf.get();
        span.fail(exc_val, span.on_exception, "True");
        Self::finish(slf, omnitrace::clock::now());
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        let name = self.state().name.clone_ref(py);
        format!(
            "Span({}, '{}')",
            text(name.bind(py)),
            self.context.traceparent()
        )
    }

    #[getter]
    fn name(&self, py: Python<'_>) -> Py<PyAny> {
        self.state().name.clone_ref(py)
    }

    #[getter]
    fn context<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.get_span_context(py)
    }

    #[getter]
    fn parent<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let Some(above) = &self.parent else {
            return Ok(None);
        };
        let state = self.trace_state.as_ref();
        let context = SpanContext {
            span_id: above.span_id,
            flags: above.flags,
            ..self.context
        };
        parent::to_python(py, connected(py)?, &context, above.remote, state).map(Some)
    }

    #[getter]
    fn kind(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        Ok(connected(py)?.kinds[self.kind as usize].clone_ref(py))
    }

    #[getter]
    fn start_time(&self) -> u64 {
        self.start
    }

    #[getter]
    fn end_time(&self) -> Option<u64> {
        self.state().end
    }

    #[getter]
    fn status<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let api = connected(py)?;
        let status = self.state().status.clone();
        let (code, description) = match &status {
            Status::Unset => (0, None),
            Status::Ok => (1, None),
            Status::Error(text) => (2, Some(&**text).filter(|text| !text.is_empty())),
        };
        let code = api.status_codes[code].bind(py);
        api.status.bind(py).call1((code, description))
    }

    #[getter]
    fn attributes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let owned = self.state().attributes.to_vec();
        mapping(py, owned.iter().map(pair))
    }

    /// `omnitrace.opentelemetry.Event` objects.
    #[getter]
    fn events<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        let events = self.state().more.as_ref().map(|more| more.events.clone());
        let class = py.import("omnitrace.opentelemetry")?.getattr("Event")?;
        let seen = events.unwrap_or_default().into_iter().map(|event| {
            let attributes = mapping(py, event.attributes.iter().map(pair))?;
            class.call1((
                &*event.name,
                attributes,
                event.time,
                event.dropped_attributes,
            ))
        });
        PyTuple::new(py, seen.collect::<PyResult<Vec<_>>>()?)
    }

    /// `opentelemetry.trace.Link` objects.
    #[getter]
    fn links<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        let api = connected(py)?;
        let links = self.state().more.as_ref().map(|more| more.links.clone());
        let seen = links.unwrap_or_default().into_iter().map(|link| {
            let context = SpanContext {
                trace_id: link.trace_id,
                span_id: link.span_id,
                flags: 0,
            };
            let headers = (vec![&*link.trace_state],);
            let object = api
                .trace_state
                .bind(py)
                .call_method1("from_header", headers)?;
            let state = TraceState::read(&object);
            let context = parent::to_python(py, api, &context, false, state.as_ref())?;
            let attributes = mapping(py, link.attributes.iter().map(pair))?;
            api.link.bind(py).call1((context, attributes))
        });
        PyTuple::new(py, seen.collect::<PyResult<Vec<_>>>()?)
    }

    #[getter]
    fn dropped_attributes(&self) -> u32 {
        self.state().dropped().attributes
    }

    #[getter]
    fn dropped_events(&self) -> u32 {
        self.state().dropped().events
    }

    #[getter]
    fn dropped_links(&self) -> u32 {
        self.state().dropped().links
    }

    #[getter]
    fn resource<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.tracer.get().provider().resource(py)
    }

    #[getter]
    fn instrumentation_scope<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.tracer.get().scope_view(py)
    }
}
