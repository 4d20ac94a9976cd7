//! `omnitrace.span` blocks as OpenTelemetry sees them: its current span within the
//! block, to which instrumentation may add what it likes.

use omnitrace::SpanContext;
use omnitrace::span::SpanKind;
use pyo3::prelude::*;

use super::api::Api;
use super::packed::Packed;
use super::parent::Parent;
use super::span::{New, OnException, Owner, Said, Span, clean_name};
use super::unsampled::Unsampled;

/// The span of a block.
pub(crate) struct Seen {
    /// None: the block is not recorded.
    span: Option<Py<Span>>,
}

impl Seen {
    /// The span of a block, and the context in which it is the current one.
    pub(crate) fn new<'py>(
        api: &Api,
        name: &Bound<'py, PyAny>,
        context: SpanContext,
        above: Option<&Parent>,
        start: u64,
    ) -> PyResult<(Self, Bound<'py, PyAny>)> {
        let py = name.py();
        let trace_state = above.and_then(|above| above.trace_state.clone());
        if !context.is_sampled() {
            let span = Bound::new(py, Unsampled::new(context, trace_state))?;
            return Ok((Self { span: None }, api.context_with(span.as_any())?));
        }
        let span = Span::new(New {
            tracer: api.block_tracer.clone_ref(py),
            context,
            parent: above.map(Into::into),
            trace_state,
            kind: SpanKind::Internal,
            start,
            owner: Owner::Block,
            // Its block sees to that.
            on_exception: OnException {
                record: false,
                set_status: false,
            },
            name: clean_name(name),
            attributes: Packed::default(),
        });
        let span = Bound::new(py, span)?;
        let within = api.context_with(span.as_any())?;
        let span = Some(span.unbind());
        Ok((Self { span }, within))
    }

    /// A context in which the current span is this one of a caller's.
    pub(crate) fn passed<'py>(
        api: &Api,
        py: Python<'py>,
        context: SpanContext,
    ) -> PyResult<Bound<'py, PyAny>> {
        api.context_with(Bound::new(py, Unsampled::new(context, None))?.as_any())
    }

    /// What OpenTelemetry code has said of it, if anything: its block has ended.
    pub(crate) fn close(&self, py: Python<'_>, end: u64) -> Option<Said> {
        self.span.as_ref()?.get().close(py, end)
    }
}
