//! `omnitrace.opentelemetry`: OpenTelemetry's tracing API in front of our recorder.
//!
//! ```text
//!  start_span ─► parent (the API's context) ─► sampler ─► Span ──end──► Recorder
//! ```
//! Starting and ending a span runs no Python code unless the program has put some
//! there: a sampler, an id generator or a span processor of its own.

pub(crate) mod api;
mod block;
mod mistakes;
mod packed;
pub(crate) mod parent;
mod provider;
mod resource;
mod seen;
mod span;
mod start;
mod tracer;
mod unsampled;
mod values;

use pyo3::prelude::*;

pub(crate) use api::connect;
pub(crate) use resource::{describe_process, process_description};
pub(crate) use seen::Seen;
pub(crate) use span::Said;

/// Adds the classes to the module, under names that only our own package uses.
pub(crate) fn install(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    module.add(
        "_OpenTelemetryProvider",
        py.get_type::<provider::Provider>(),
    )?;
    module.add("_OpenTelemetryTracer", py.get_type::<tracer::Tracer>())?;
    module.add("_OpenTelemetrySpan", py.get_type::<span::Span>())?;
    module.add(
        "_OpenTelemetryNonRecordingSpan",
        py.get_type::<unsampled::Unsampled>(),
    )?;
    module.add("_OpenTelemetryBlock", py.get_type::<block::Block>())?;
    tracer::add_methods(py)?;
    span::add_methods(py)?;
    block::add_methods(py)
}
