//! `omnitrace.action`.

use omnitrace::{Action, clock};
use pyo3::prelude::*;

use crate::attributes::{text, with_attributes};
use crate::process::{is_off, with_recorder};

/// Records a moment of a request.
#[inline]
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
    let (name, request_id) = (text(name), text(request_id));
    with_attributes(attributes, |attributes| {
        with_recorder(|recorder| {
            Some(recorder.action(&Action {
                name: &name,
                time,
                request_id: &request_id,
                occurrence: 0,
                context: None,
                attributes,
            }))
        })
    });
}
