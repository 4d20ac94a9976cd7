//! The values that a span or an event is given.

use std::cell::Cell;
use std::error::Error;
use std::fmt::{self, Debug, Write as _};

use tracing::field::{Field, Visit};

use crate::config::Limits;
use crate::key::{Key, KeyRef};
use crate::queue::Limited;
use crate::span::SpanKind;
use crate::value::{Array, ValueRef};

use super::callsite::{Fields, Origin, Role};
use super::recording::{Code, Said};

static EXCEPTION_MESSAGE: Key = Key::new("exception.message");
/// What an error comes from, as tracing-opentelemetry has it: Rust knows no stack of
/// an error.
static EXCEPTION_STACKTRACE: Key = Key::new("exception.stacktrace");
/// Name of an event that is nothing but an error.
const EXCEPTION: &str = "exception";

/// Longest text buffer that a thread keeps, in bytes.
const KEPT: usize = 4096;

thread_local! {
    static TEXT: Cell<String> = const { Cell::new(String::new()) };
}

/// Writes text into memory of this thread. What is written may itself come here.
fn with_text<T>(write: impl FnOnce(&mut String), read: impl FnOnce(&str) -> T) -> T {
    let mut text = TEXT.try_with(Cell::take).unwrap_or_default();
    text.clear();
    write(&mut text);
    let result = read(&text);
    if text.capacity() <= KEPT {
        // A thread that is about to end keeps nothing.
        let _ = TEXT.try_with(|kept| kept.set(text));
    }
    result
}

/// What takes the values.
pub(super) trait Take {
    fn take(&mut self, field: &Field, role: Role, value: ValueRef<'_>);
    /// An error, and what it comes from.
    fn take_error(&mut self, field: &Field, message: &str, sources: &Array);
}

/// Hands the values of fields to `to`.
pub(super) struct Values<'a, T> {
    pub(super) fields: Fields,
    pub(super) to: &'a mut T,
}

impl<T: Take> Values<'_, T> {
    // So that what is known of the value here need not be found out there.
    #[inline(always)]
    fn take(&mut self, field: &Field, value: ValueRef<'_>) {
        self.to.take(field, self.fields.role(field), value);
    }
}

impl<T: Take> Visit for Values<'_, T> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.take(field, ValueRef::F64(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.take(field, ValueRef::I64(value));
    }

    /// OpenTelemetry has no unsigned integers: what is too large is text.
    fn record_u64(&mut self, field: &Field, value: u64) {
        match i64::try_from(value) {
            Ok(value) => self.record_i64(field, value),
            Err(_) => self.record_debug(field, &value),
        }
    }

    fn record_i128(&mut self, field: &Field, value: i128) {
        match i64::try_from(value) {
            Ok(value) => self.record_i64(field, value),
            Err(_) => self.record_debug(field, &value),
        }
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        match i64::try_from(value) {
            Ok(value) => self.record_i64(field, value),
            Err(_) => self.record_debug(field, &value),
        }
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.take(field, ValueRef::Bool(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.take(field, ValueRef::Str(value));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        let sources = std::iter::successors(value.source(), |error| (*error).source());
        let sources: Vec<String> = sources.map(ToString::to_string).collect();
        let sources = Array::new(sources.iter().map(|text| ValueRef::Str(text)));
        self.to.take_error(field, &value.to_string(), &sources);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        // Writing to a String cannot fail, only a Debug can: what it has written counts.
        with_text(
            |text| {
                let _ = write!(text, "{value:?}");
            },
            |text| self.take(field, ValueRef::Str(text)),
        );
    }
}

/// The attributes of an error.
fn take_error(attributes: &mut Limited, field: &Field, message: &str, sources: &Array) {
    let (text, chain) = (ValueRef::Str(message), ValueRef::Array(sources.as_ref()));
    attributes.set(EXCEPTION_MESSAGE.get(), text);
    attributes.set(EXCEPTION_STACKTRACE.get(), chain);
    attributes.set(KeyRef::Text(field.name()), text);
    attributes.set(KeyRef::Text(&format!("{}.chain", field.name())), chain);
}

/// A span's own fields.
impl Take for Said {
    #[inline(always)]
    fn take(&mut self, field: &Field, role: Role, value: ValueRef<'_>) {
        if let Role::Attribute(key) = role {
            self.attributes.push(KeyRef::Known(key), value);
        } else {
            self.take_special(field, role, value);
        }
    }

    fn take_error(&mut self, field: &Field, message: &str, sources: &Array) {
        take_error(&mut self.attributes, field, message, sources);
    }
}

impl Said {
    #[inline(never)]
    fn take_special(&mut self, field: &Field, role: Role, value: ValueRef<'_>) {
        match (role, value) {
            (Role::Name, ValueRef::Str(name)) => {
                self.name.clear();
                self.name.push_str(name);
            }
            (Role::Kind, ValueRef::Str(kind)) if kind_named(kind).is_some() => {
                self.kind = kind_named(kind);
            }
            (Role::StatusCode, ValueRef::Str(code)) if code.eq_ignore_ascii_case("ok") => {
                self.status = Code::Ok;
            }
            (Role::StatusCode, ValueRef::Str(code)) if code.eq_ignore_ascii_case("error") => {
                self.status = Code::Error;
            }
            (Role::StatusDescription, ValueRef::Str(description)) => self.describe(description),
            // What is none of these is shown as it is.
            _ => self.attributes.push(KeyRef::Text(field.name()), value),
        }
    }
}

/// A value as text.
struct Plain<'a>(ValueRef<'a>);

impl fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            ValueRef::Str(text) => f.write_str(text),
            ValueRef::I64(n) => write!(f, "{n}"),
            ValueRef::F64(n) => write!(f, "{n}"),
            ValueRef::Bool(b) => write!(f, "{b}"),
            // No field has one.
            ValueRef::Array(_) => Ok(()),
        }
    }
}

fn kind_named(name: &str) -> Option<SpanKind> {
    SpanKind::named(name).or_else(|| SpanKind::named(&name.to_ascii_lowercase()))
}

/// An event's fields.
#[derive(Debug, Default)]
pub(super) struct EventSaid {
    pub(super) name: String,
    pub(super) attributes: Limited,
    /// What it says of the span that it is in.
    pub(super) span: Said,
    /// Where a record of the `log` crate comes from.
    pub(super) target: Option<String>,
    pub(super) module: Option<String>,
    pub(super) file: Option<String>,
    pub(super) line: Option<i64>,
}

impl Take for EventSaid {
    fn take(&mut self, field: &Field, role: Role, value: ValueRef<'_>) {
        match (role, value) {
            (Role::Attribute(key), value) => self.attributes.push(KeyRef::Known(key), value),
            (Role::Message, ValueRef::Str(text)) => self.name.push_str(text),
            (Role::Message, value) => {
                // Writing to a String cannot fail.
                let _ = write!(self.name, "{}", Plain(value));
            }
            (Role::Error, ValueRef::Str(text)) if self.name.is_empty() => {
                self.span.describe(text);
                self.name.push_str(EXCEPTION);
                self.attributes.push(EXCEPTION_MESSAGE.get(), value);
            }
            (Role::Log(origin), value) => self.take_origin(origin, value),
            _ => self.attributes.push(KeyRef::Text(field.name()), value),
        }
    }

    fn take_error(&mut self, field: &Field, message: &str, sources: &Array) {
        take_error(&mut self.attributes, field, message, sources);
        let chain = ValueRef::Array(sources.as_ref());
        let of_span = &mut self.span.attributes;
        of_span.set(EXCEPTION_MESSAGE.get(), ValueRef::Str(message));
        of_span.set(EXCEPTION_STACKTRACE.get(), chain);
    }
}

impl EventSaid {
    fn take_origin(&mut self, origin: Origin, value: ValueRef<'_>) {
        match (origin, value) {
            (Origin::Target, ValueRef::Str(text)) => self.target = Some(text.to_owned()),
            (Origin::Module, ValueRef::Str(text)) => self.module = Some(text.to_owned()),
            (Origin::File, ValueRef::Str(text)) => self.file = Some(text.to_owned()),
            (Origin::Line, ValueRef::I64(line)) => self.line = Some(line),
            _ => {}
        }
    }

    pub(super) fn limit(&mut self, limits: &Limits) {
        self.attributes
            .limit(limits.event_attributes, limits.other_length);
        self.span
            .attributes
            .limit(limits.attributes, limits.attribute_length);
    }

    pub(super) fn clear(&mut self) {
        self.name.clear();
        self.attributes.clear(KEPT);
        self.span.clear();
        (self.target, self.module, self.file, self.line) = (None, None, None, None);
    }
}
