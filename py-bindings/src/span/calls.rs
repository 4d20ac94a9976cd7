//! How CPython calls `omnitrace.span` and enters and leaves its blocks.

use std::ffi::CStr;

use pyo3::prelude::*;
use pyo3::types::PyBool;

use crate::context::SpanContext;
use crate::edge::{Arguments, EXIT, Function, Method, Parameters, add_function, add_method, none};

use super::Span;

/// Adds them to the module and to the class.
pub(crate) fn install(module: &Bound<'_, PyModule>) -> PyResult<()> {
    add_function::<SpanFunction>(module)?;
    add_method::<Enter>(module.py())?;
    add_method::<Exit>(module.py())
}

struct SpanFunction;

impl Function for SpanFunction {
    const NAME: &'static CStr = c"span";
    const DOC: &'static CStr = c"span(name, request_id=None, attributes=None, *, parent=None)\n--\n\nA span around a block, or around each call of a function.";

    #[inline]
    fn call<'py>(arguments: &Arguments<'_, 'py>) -> PyResult<Bound<'py, PyAny>> {
        static PARAMETERS: Parameters<4> =
            Parameters::new("span", ["name", "request_id", "attributes", "parent"], 3, 1);
        let [name, request_id, attributes, parent] = PARAMETERS.take(arguments)?;
        let parent = match parent.filter(|p| !p.is_none()) {
            Some(parent) => Some(*parent.cast::<SpanContext>()?.get()),
            None => None,
        };
        let owned = |object: Option<Borrowed<'_, '_, PyAny>>| {
            object
                .filter(|o| !o.is_none())
                .map(|o| o.to_owned().unbind())
        };
        let span = Span::new(
            name.map_or_else(|| none(arguments.py).unbind(), |n| n.to_owned().unbind()),
            owned(request_id),
            owned(attributes),
            parent,
        );
        Ok(Bound::new(arguments.py, span)?.into_any())
    }
}

struct Enter;

impl Method for Enter {
    type Class = Span;
    const NAME: &'static CStr = c"__enter__";
    const DOC: &'static CStr = c"__enter__($self)\n--\n\n";

    #[inline]
    fn call<'py>(span: &Bound<'py, Span>, _: &Arguments<'_, 'py>) -> PyResult<Bound<'py, PyAny>> {
        let object = span.clone().into_any();
        span.get().enter(&object)?;
        Ok(object)
    }
}

struct Exit;

impl Method for Exit {
    type Class = Span;
    const NAME: &'static CStr = c"__exit__";
    const DOC: &'static CStr = c"__exit__($self, exc_type, exc_value, traceback, /)\n--\n\n";

    #[inline]
    fn call<'py>(
        span: &Bound<'py, Span>,
        arguments: &Arguments<'_, 'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = arguments.py;
        let [kind, error, _traceback] = EXIT.take(arguments)?;
        if let (Some(kind), Some(error)) = (kind, error) {
            span.get().exit(&kind, &error);
        }
        Ok(PyBool::new(py, false).to_owned().into_any())
    }
}
