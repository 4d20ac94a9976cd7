//! Exceptions as events and as a status.

use omnitrace::span::Status;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyMapping};

use crate::attributes::text;
use crate::opentelemetry::mistakes::Mistake;

use super::{OnException, Span};

/// `Type: message`, as a status says it.
pub(crate) fn describe(error: &Bound<'_, PyAny>) -> String {
    let kind = error.get_type().name();
    let kind = kind.map_or_else(|_| "error".into(), |name| text(name.as_any()).into_owned());
    format!("{kind}: {}", text(error))
}

impl Span {
    /// The event of the semantic conventions for exceptions.
    pub(super) fn exception(
        &self,
        error: &Bound<'_, PyAny>,
        given: Option<&Bound<'_, PyAny>>,
        time: u64,
        escaped: &str,
    ) -> PyResult<()> {
        let py = error.py();
        let attributes = PyDict::new(py);
        attributes.set_item("exception.type", type_name(error))?;
        attributes.set_item("exception.message", text(error))?;
        attributes.set_item("exception.stacktrace", stacktrace(error))?;
        attributes.set_item("exception.escaped", escaped)?;
        if let Some(given) = given.filter(|given| !given.is_none()) {
            match given.cast::<PyMapping>() {
                Ok(given) => attributes.update(given)?,
                Err(_) => Mistake::Attributes.say(py, "attributes are no mapping: ignored"),
            }
        }
        let name = pyo3::intern!(py, "exception");
        self.event(py, name.as_any(), Some(attributes.as_any()), time);
        Ok(())
    }

    /// What an exception that leaves a block does to the block's span.
    pub(crate) fn fail(&self, error: &Bound<'_, PyAny>, on: OnException, escaped: &str) {
        if error.is_none() || !self.is_open() {
            return;
        }
        if on.record {
            // Nothing of it goes to the caller, whose own exception is on its way.
            let _ = self.exception(error, None, omnitrace::clock::now(), escaped);
        }
        if on.set_status {
            let description = describe(error);
            self.change_status(error.py(), Status::Error(description.into()));
        }
    }

    /// The rules of `Span.set_status`: what is OK stays so, and nothing is unset.
    pub(super) fn change_status(&self, py: Python<'_>, status: Status) {
        self.change(py, "set_status", |state| {
            if state.status != Status::Ok && status != Status::Unset {
                state.status = status;
            }
        });
    }
}

/// Whether it is a failure: what is no `Exception`, such as `GeneratorExit`, is not.
pub(crate) fn is_failure(error: &Bound<'_, PyAny>) -> bool {
    error.is_instance_of::<PyException>()
}

/// The qualified name of its class, with the module unless that is built in.
fn type_name(error: &Bound<'_, PyAny>) -> String {
    let class = error.get_type();
    let name = class.getattr("__qualname__");
    let name = name.map_or_else(|_| "error".into(), |name| text(&name).into_owned());
    match class
        .getattr("__module__")
        .map(|module| text(&module).into_owned())
    {
        Ok(module) if !module.is_empty() && module != "builtins" => format!("{module}.{name}"),
        _ => name,
    }
}

fn stacktrace(error: &Bound<'_, PyAny>) -> String {
    let lines = || -> PyResult<Vec<String>> {
        let traceback = error.getattr("__traceback__")?;
        error
            .py()
            .import("traceback")?
            .call_method1("format_exception", (error.get_type(), error, traceback))?
            .extract()
    };
    // An exception whose text cannot be had must not raise another.
    lines().map_or_else(|_| type_name(error), |lines| lines.concat())
}
