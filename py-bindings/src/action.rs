//! `omnitrace.action`.

use omnitrace::{Action, clock};
use pyo3::prelude::*;

use crate::attributes::{entries, text};
use crate::process::{is_off, with_recorder};

/// Records a moment of a request.
#[pyfunction]
#[pyo3(signature = (name, request_id, attributes=None))]
pub(crate) fn action(
    name: &Bound<'_, PyAny>,
    request_id: &Bound<'_, PyAny>,
    attributes: Option<&Bound<'_, PyAny>>,
) {
    if is_off() {
        return;
    }
    let time = clock::now();
    // Python code may run here, so before the recorder is taken.
    let (name, request_id, held) = (text(name), text(request_id), entries(attributes));
    let attributes: Vec<_> = held.iter().map(|(k, v)| (k.as_str(), v.as_ref())).collect();
    with_recorder(|recorder| {
        recorder.action(&Action {
            name: &name,
            time,
            request_id: &request_id,
            occurrence: 0,
            context: None,
            attributes: &attributes,
        });
    });
}
