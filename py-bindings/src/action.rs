//! `omnitrace.action`.

use std::ffi::CStr;

use omnitrace::{Action, clock};
use pyo3::prelude::*;

use crate::attributes::{text, with_attributes};
use crate::edge::{Arguments, Function, none};
use crate::process::{count_late_action, is_off, with_recorder};

/// `action(name, request_id, attributes=None)`
pub(crate) struct ActionFunction;

impl Function for ActionFunction {
    const NAME: &'static CStr = c"action";
    const DOC: &'static CStr =
        c"action(name, request_id, attributes=None)\n--\n\nRecords a moment of a request.";

    #[inline]
    fn call<'py>(arguments: &Arguments<'_, 'py>) -> PyResult<Bound<'py, PyAny>> {
        let [name, request_id, attributes] =
            arguments.take("action", &["name", "request_id", "attributes"], 3, 2)?;
        if let (Some(name), Some(request_id)) = (name, request_id) {
            action(&name, &request_id, attributes.as_deref());
        }
        Ok(none(arguments.py))
    }
}

/// Records a moment of a request.
#[inline]
fn action(
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
    let recorded = with_attributes(attributes, |attributes| {
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
    if recorded.is_none() {
        count_late_action();
    }
}
