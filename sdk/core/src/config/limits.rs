//! How much of a span is kept.

use std::sync::Arc;

use crate::value::{Attribute, Value};

use super::env::Env;

/// Most of what one span may hold. What is beyond is left out and counted in the
/// span's `dropped_…_count`; text that is longer is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Attributes of a span.
    pub attributes: usize,
    /// Characters of the text of a span's attribute. None: all.
    pub attribute_length: Option<usize>,
    /// Events of a span.
    pub events: usize,
    /// Links of a span.
    pub links: usize,
    /// Attributes of an event.
    pub event_attributes: usize,
    /// Attributes of a link.
    pub link_attributes: usize,
    /// Characters of the text of an event's or a link's attribute. None: all.
    pub other_length: Option<usize>,
}

/// The first `length` characters of a text.
pub fn cut(text: &str, length: Option<usize>) -> &str {
    let Some(length) = length.filter(|length| *length < text.len()) else {
        return text;
    };
    match text.char_indices().nth(length) {
        Some((end, _)) => &text[..end],
        None => text,
    }
}

impl Limits {
    /// The attributes of an event or a link that are kept, `most` of them, and how
    /// many are not.
    pub(crate) fn cut_attributes(
        &self,
        attributes: &[Attribute],
        most: usize,
    ) -> (Vec<Attribute>, u32) {
        let kept = &attributes[..attributes.len().min(most)];
        let cut = |attribute: &Attribute| match &attribute.value {
            Value::Str(text) => Attribute {
                key: Arc::clone(&attribute.key),
                value: cut(text, self.other_length).into(),
            },
            _ => attribute.clone(),
        };
        let dropped = (attributes.len() - kept.len()) as u32;
        (kept.iter().map(cut).collect(), dropped)
    }
}

impl Default for Limits {
    /// OpenTelemetry's own.
    fn default() -> Self {
        Self {
            attributes: 128,
            attribute_length: None,
            events: 128,
            links: 128,
            event_attributes: 128,
            link_attributes: 128,
            other_length: None,
        }
    }
}

impl Limits {
    pub(super) fn read(env: &mut Env<'_>) -> Self {
        let default = Self::default();
        // One's own limit goes before the one for everything.
        let attributes = count(env, "OTEL_ATTRIBUTE_COUNT_LIMIT", default.attributes);
        let length = limit(env, "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", None);
        Self {
            attributes: count(env, "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", attributes),
            attribute_length: limit(env, "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", length),
            events: count(env, "OTEL_SPAN_EVENT_COUNT_LIMIT", default.events),
            links: count(env, "OTEL_SPAN_LINK_COUNT_LIMIT", default.links),
            event_attributes: count(env, "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT", attributes),
            link_attributes: count(env, "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT", attributes),
            other_length: length,
        }
    }
}

/// 0 is a limit like any other: none of them.
fn count(env: &mut Env<'_>, name: &str, default: usize) -> usize {
    env.parsed(name, "is not a whole number", default, |_| true)
}

fn limit(env: &mut Env<'_>, name: &str, default: Option<usize>) -> Option<usize> {
    let Some(value) = env.text(name) else {
        return default;
    };
    match value.parse() {
        Ok(length) => Some(length),
        Err(_) => {
            let instead = default.map_or("no limit".to_owned(), |n| n.to_string());
            env.wrong(name, &value, "is not a whole number", instead);
            default
        }
    }
}
