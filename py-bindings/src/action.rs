//! `omnitrace.action`.

use std::ffi::CStr;

use omnitrace::{Action, clock};
use pyo3::exceptions::PyOverflowError;
use pyo3::prelude::*;

use crate::attributes::{text, with_attributes};
use crate::edge::{Arguments, Function, Parameters, none};
use crate::process::{count_late_action, is_off, with_recorder};

/// `action(name, request_id, attributes=None, occurrence=0, timestamp=None)`
pub(crate) struct ActionFunction;

impl Function for ActionFunction {
    const NAME: &'static CStr = c"action";
    const DOC: &'static CStr =
        c"action(name, request_id, attributes=None, occurrence=0, timestamp=None)\n--\n\n\
Records a moment of a request.";

    #[inline]
    fn call<'py>(arguments: &Arguments<'_, 'py>) -> PyResult<Bound<'py, PyAny>> {
        static PARAMETERS: Parameters<5> = Parameters::new(
            "action",
            [
                "name",
                "request_id",
                "attributes",
                "occurrence",
                "timestamp",
            ],
            5,
            2,
        );
        let [name, request_id, attributes, occurrence, timestamp] = PARAMETERS.take(arguments)?;
        let occurrence = match occurrence {
            None => 0,
            Some(occurrence) => count(&occurrence)?,
        };
        let time = match timestamp {
            None => None,
            Some(timestamp) => earlier(&timestamp)?,
        };
        if let (Some(name), Some(request_id)) = (name, request_id) {
            action(&name, &request_id, attributes.as_deref(), occurrence, time);
        }
        Ok(none(arguments.py))
    }
}

/// A number that is not too large for a record.
#[cold]
fn count(number: &Bound<'_, PyAny>) -> PyResult<u16> {
    let number = match number.extract::<i64>() {
        Err(error) if error.is_instance_of::<PyOverflowError>(number.py()) => i64::MAX,
        number => number?,
    };
    Ok(u16::try_from(number.max(0)).unwrap_or(u16::MAX))
}

/// Nanoseconds since 1970, where they are given.
#[cold]
fn earlier(timestamp: &Bound<'_, PyAny>) -> PyResult<Option<u64>> {
    if timestamp.is_none() {
        return Ok(None);
    }
    timestamp.extract().map(Some)
}

/// Records a moment of a request; now, where no other is given.
#[inline]
fn action(
    name: &Bound<'_, PyAny>,
    request_id: &Bound<'_, PyAny>,
    attributes: Option<&Bound<'_, PyAny>>,
    occurrence: u16,
    time: Option<u64>,
) {
    if is_off() {
        return;
    }
    let time = time.unwrap_or_else(clock::now);
    // Python code may run here, so before the recorder is taken.
    let (name, request_id) = (text(name), text(request_id));
    let recorded = with_attributes(attributes, |attributes| {
        with_recorder(|recorder| {
            Some(recorder.action(&Action {
                name: &name,
                time,
                request_id: &request_id,
                occurrence,
                context: None,
                attributes,
            }))
        })
    });
    if recorded.is_none() {
        count_late_action();
    }
}
