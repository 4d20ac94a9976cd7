//! What describes the process, for `TracerProvider(resource=…)`.

use omnitrace::Attribute;
use pyo3::prelude::*;

use crate::attributes::pair;
use crate::process;

use super::values::{entries, mapping};

/// Describes this process with these attributes too.
#[pyfunction]
#[pyo3(name = "_describe_process")]
pub(crate) fn describe_process(py: Python<'_>, attributes: &Bound<'_, PyAny>) {
    let entries = entries(attributes).into_iter();
    let attributes = entries.map(|(key, value)| Attribute::new(key, value));
    process::describe(py, attributes.collect());
}

/// What it is described with.
#[pyfunction]
#[pyo3(name = "_process_description")]
pub(crate) fn process_description(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    mapping(py, process::description().iter().map(pair))
}
