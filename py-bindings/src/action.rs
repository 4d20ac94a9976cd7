//! `omnitrace.action`.

use omnitrace::{Action, clock};
use pyo3::prelude::*;

use crate::attributes::{entries, text};
use crate::process::with_recorder;

/// Records a moment of a request.
#[pyfunction]
#[pyo3(signature = (name, request_id, attributes=None))]
pub(crate) fn action(
    name: &Bound<'_, PyAny>,
    request_id: &Bound<'_, PyAny>,
    attributes: Option<&Bound<'_, PyAny>>,
) {
    let time = clock::now();
    with_recorder(|recorder| {
        let held = entries(attributes);
        let attributes: Vec<_> = held.iter().map(|(k, v)| (k.as_str(), v.as_ref())).collect();
        recorder.action(&Action {
            name: &text(name),
            time,
            request_id: &text(request_id),
            occurrence: 0,
            context: None,
            attributes: &attributes,
        });
    });
}
