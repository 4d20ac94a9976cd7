//! `omnitrace._omnitrace`: the SDK for Python.

mod action;
mod attributes;
mod carrier;
mod context;
mod cpython;
mod edge;
mod keys;
mod lifecycle;
mod opentelemetry;
mod process;
mod span;
mod steps;

use pyo3::prelude::*;

/// What `import omnitrace` shows; the stubs have the documentation.
#[pymodule(gil_used = false)]
mod _omnitrace {
    #[pymodule_export]
    use super::context::{SpanContext, request_span};
    #[pymodule_export]
    use super::lifecycle::{after_fork_in_child, after_fork_in_parent, before_fork};
    #[pymodule_export]
    use super::lifecycle::{flush, init, shutdown, stats};
    #[pymodule_export]
    use super::opentelemetry::{connect, describe_process, process_description};
    #[pymodule_export]
    use super::span::Span;
    #[pymodule_export]
    use super::steps::{record_model, record_step, step_context};

    use super::{Bound, PyModule, PyModuleMethods, PyResult};

    #[pymodule_init]
    fn init_module(module: &Bound<'_, PyModule>) -> PyResult<()> {
        super::cpython::load(module.py())?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        super::context::create_context_variable(module.py())?;
        super::edge::add_function::<super::action::ActionFunction>(module)?;
        super::carrier::install(module)?;
        super::span::install(module)?;
        super::opentelemetry::install(module)
    }
}
