//! The methods of a span that instrumentation calls most.

use std::ffi::CStr;

use omnitrace::{KeyRef, clock};
use pyo3::prelude::*;

use crate::edge::{Arguments, Method, Parameters, add_method, none};
use crate::opentelemetry::mistakes::Mistake;
use crate::opentelemetry::packed::Room;
use crate::opentelemetry::values;

use super::Span;

/// Adds them to the class.
pub(crate) fn add_methods(py: Python<'_>) -> PyResult<()> {
    add_method::<End>(py)?;
    add_method::<SetAttribute>(py)?;
    add_method::<SetAttributes>(py)?;
    add_method::<AddEvent>(py)?;
    add_method::<IsRecording>(py)
}

/// Nanoseconds since 1970; now, where nothing or nothing usable is given.
#[inline]
pub(crate) fn time(given: Option<Borrowed<'_, '_, PyAny>>) -> u64 {
    match given.filter(|given| !given.is_none()) {
        None => clock::now(),
        Some(given) => explicit_time(&given),
    }
}

fn explicit_time(given: &Bound<'_, PyAny>) -> u64 {
    if let Ok(time) = given.extract::<u64>() {
        return time;
    }
    if let Ok(time) = given.extract::<f64>()
        && time >= 0.0
    {
        return time as u64;
    }
    let what = "a time is not a number of nanoseconds since 1970: now";
    Mistake::Time.say(given.py(), what);
    clock::now()
}

struct End;

impl Method for End {
    type Class = Span;
    const NAME: &'static CStr = c"end";
    const DOC: &'static CStr = c"end($self, end_time=None)\n--\n\nEnds the span.";

    #[inline]
    fn call<'py>(
        span: &Bound<'py, Span>,
        arguments: &Arguments<'_, 'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        static PARAMETERS: Parameters<1> = Parameters::new("end", ["end_time"], 1, 0);
        let [end] = PARAMETERS.take(arguments)?;
        Span::finish(span, time(end));
        Ok(none(arguments.py))
    }
}

struct SetAttribute;

impl Method for SetAttribute {
    type Class = Span;
    const NAME: &'static CStr = c"set_attribute";
    const DOC: &'static CStr = c"set_attribute($self, key, value)\n--\n\nSets one attribute.";

    fn call<'py>(
        span: &Bound<'py, Span>,
        arguments: &Arguments<'_, 'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        static PARAMETERS: Parameters<2> = Parameters::new("set_attribute", ["key", "value"], 2, 2);
        let [key, value] = PARAMETERS.take(arguments)?;
        if let (Some(key), Some(value)) = (key, value) {
            span.get().set(arguments.py, key, value);
        }
        Ok(none(arguments.py))
    }
}

impl Span {
    fn set(&self, py: Python<'_>, key: Borrowed<'_, '_, PyAny>, value: Borrowed<'_, '_, PyAny>) {
        let room = Room::of_span(self.tracer.get().provider().limits());
        if let Some((key, value)) = values::plain_pair(key, value) {
            self.change(py, "set_attribute", |state| {
                state.attributes.set(key, value, room);
            });
        } else if let Some((key, value)) = values::entry(&key, &value) {
            self.change(py, "set_attribute", |state| {
                let (key, value) = (KeyRef::Text(&key), value.as_ref());
                state.attributes.set(key, value, room);
            });
        }
    }
}

struct SetAttributes;

impl Method for SetAttributes {
    type Class = Span;
    const NAME: &'static CStr = c"set_attributes";
    const DOC: &'static CStr =
        c"set_attributes($self, attributes)\n--\n\nSets each attribute of a mapping.";

    fn call<'py>(
        span: &Bound<'py, Span>,
        arguments: &Arguments<'_, 'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        static PARAMETERS: Parameters<1> = Parameters::new("set_attributes", ["attributes"], 1, 1);
        let [attributes] = PARAMETERS.take(arguments)?;
        if let Some(attributes) = attributes {
            let span = span.get();
            let room = Room::of_span(span.tracer.get().provider().limits());
            let packed = values::read(&attributes, room);
            span.change(arguments.py, "set_attributes", |state| {
                state.attributes.set_all(packed, room);
            });
        }
        Ok(none(arguments.py))
    }
}

struct AddEvent;

impl Method for AddEvent {
    type Class = Span;
    const NAME: &'static CStr = c"add_event";
    const DOC: &'static CStr =
        c"add_event($self, name, attributes=None, timestamp=None)\n--\n\nAdds an event.";

    fn call<'py>(
        span: &Bound<'py, Span>,
        arguments: &Arguments<'_, 'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        static PARAMETERS: Parameters<3> =
            Parameters::new("add_event", ["name", "attributes", "timestamp"], 3, 1);
        let [name, attributes, timestamp] = PARAMETERS.take(arguments)?;
        if let Some(name) = name {
            let time = time(timestamp);
            span.get()
                .event(arguments.py, &name, attributes.as_deref(), time);
        }
        Ok(none(arguments.py))
    }
}

struct IsRecording;

impl Method for IsRecording {
    type Class = Span;
    const NAME: &'static CStr = c"is_recording";
    const DOC: &'static CStr = c"is_recording($self)\n--\n\nWhether it can still be changed.";

    fn call<'py>(
        span: &Bound<'py, Span>,
        arguments: &Arguments<'_, 'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        static PARAMETERS: Parameters<0> = Parameters::new("is_recording", [], 0, 0);
        let [] = PARAMETERS.take(arguments)?;
        let is_open = span.get().is_open();
        Ok(is_open.into_pyobject(arguments.py)?.to_owned().into_any())
    }
}
