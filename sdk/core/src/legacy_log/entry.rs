//! What is written for an event or a span, before it becomes text.

use std::collections::HashMap;
use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::assembler::LooseEvent;
use crate::context::SpanContext;
use crate::event::Event;
use crate::span::{Moment, Span};
use crate::value::{Attribute, Value, set_attribute};
use crate::vocabulary::Vocabulary;

use super::profile;
use super::span_suffix::SpanSuffix;

/// The JSON object after the legacy line: what the line itself cannot hold.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Suffix {
    /// Exact action name where the line's had to be altered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// Exact request id where the line's had to be altered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// Exact role where the line's had to be altered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// The context that came with the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// Which try of the phase, from 0.
    #[serde(skip_serializing_if = "is_zero")]
    pub occurrence: u16,
    /// Attributes in their order.
    #[serde(skip_serializing_if = "AttributeMap::is_empty")]
    pub attributes: AttributeMap,
    /// Spans ending with this action that no Collector has taken; absent where
    /// the line was written without knowing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub undelivered: Option<Vec<String>>,
    /// Present on a free span's line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub span: Option<SpanSuffix>,
}

fn is_zero(n: &u16) -> bool {
    *n == 0
}

impl Suffix {
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Attributes as a JSON object that keeps their order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AttributeMap(pub Vec<Attribute>);

impl AttributeMap {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for AttributeMap {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for Attribute { key, value } in &self.0 {
            map.serialize_entry(&**key, value)?;
        }
        map.end()
    }
}

/// A value out of JSON; what no attribute can be becomes its text.
fn from_json(value: serde_json::Value) -> Value {
    match value {
        serde_json::Value::Bool(b) => Value::Bool(b),
        serde_json::Value::String(text) => Value::Str(text.into()),
        serde_json::Value::Number(n) => match n.as_i64() {
            Some(n) => Value::I64(n),
            None => Value::F64(n.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::Array(items) => Value::Array(items.into_iter().map(from_json).collect()),
        other => Value::Str(other.to_string().into()),
    }
}

impl<'de> Deserialize<'de> for AttributeMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = AttributeMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of attributes")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<AttributeMap, M::Error> {
                let mut attributes = Vec::new();
                while let Some((key, value)) = map.next_entry::<String, serde_json::Value>()? {
                    attributes.push(Attribute::new(key, from_json(value)));
                }
                Ok(AttributeMap(attributes))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// One line to be written.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry<'a> {
    pub(super) action: &'a str,
    pub(super) time: u64,
    pub(super) request_id: &'a str,
    pub(super) role: &'a str,
    pub(super) node: &'a str,
    pub(super) suffix: Suffix,
    /// Marker and fields of the old form that an engine's span has.
    pub(super) profile: Option<(&'static str, String)>,
}

fn suffix(context: Option<&SpanContext>, occurrence: u16, attributes: Vec<Attribute>) -> Suffix {
    Suffix {
        traceparent: context.map(SpanContext::traceparent),
        occurrence,
        attributes: AttributeMap(attributes),
        ..Suffix::default()
    }
}

/// The line of an event as it happens.
pub(crate) fn event_entry<'a>(
    event: &'a Event<'a>,
    name: &'a str,
    request_id: &'a str,
    context: Option<&SpanContext>,
) -> Entry<'a> {
    let attributes = event
        .attributes
        .iter()
        .map(|(k, v)| Attribute::new(k.text(), v.to_value()))
        .collect();
    Entry {
        action: name,
        time: event.time,
        request_id,
        role: &event.source.role,
        node: &event.source.node,
        suffix: suffix(context, event.occurrence, attributes),
        profile: None,
    }
}

/// The line of an event that no span holds.
pub(crate) fn loose_entry(event: &LooseEvent) -> Entry<'_> {
    Entry {
        action: &event.action,
        time: event.time,
        request_id: &event.request_id,
        role: &event.source.role,
        node: &event.source.node,
        suffix: Suffix {
            undelivered: Some(Vec::new()),
            ..suffix(
                event.context.as_ref(),
                event.occurrence,
                event.attributes.clone(),
            )
        },
        profile: None,
    }
}

/// Makes one line of all that speak of the same moment, in order of time.
pub(crate) fn merge(entries: Vec<Entry<'_>>) -> Vec<Entry<'_>> {
    let mut merged: Vec<Entry<'_>> = Vec::with_capacity(entries.len());
    let mut index = HashMap::new();
    for entry in entries {
        if entry.suffix.span.is_some() {
            merged.push(entry);
            continue;
        }
        let key = (
            entry.request_id,
            entry.action,
            entry.time,
            entry.suffix.occurrence,
        );
        let at = *index.entry(key).or_insert(merged.len());
        let Some(kept) = merged.get_mut(at) else {
            merged.push(entry);
            continue;
        };
        for Attribute { key, value } in entry.suffix.attributes.0 {
            set_attribute(&mut kept.suffix.attributes.0, &key, value);
        }
        if let (Some(kept), Some(more)) = (&mut kept.suffix.undelivered, entry.suffix.undelivered) {
            kept.extend(more);
        }
    }
    merged.sort_by_key(|entry| entry.time);
    merged
}

/// The lines from which a span that was not delivered can be made again.
pub(crate) fn span_entries<'a>(vocabulary: &'a Vocabulary, span: &'a Span) -> Vec<Entry<'a>> {
    let entry = |action, time, request_id, suffix| Entry {
        action,
        time,
        request_id,
        role: &span.source.role,
        node: &span.source.node,
        suffix,
        profile: None,
    };
    let Some(origin) = &span.origin else {
        let suffix = Suffix {
            attributes: AttributeMap(span.attributes.clone()),
            span: Some(SpanSuffix::new(span)),
            ..Suffix::default()
        };
        return vec![Entry {
            profile: profile::fields(span),
            ..entry(&*span.name, span.end, "", suffix)
        }];
    };
    let base = |attributes| Suffix {
        undelivered: Some(Vec::new()),
        ..suffix(origin.context.as_ref(), origin.occurrence, attributes)
    };
    let phase = vocabulary.phase(origin.phase);
    let mut entries = Vec::with_capacity(3 + origin.seen.len() + span.events.len());
    let bare = |moment: &Moment| {
        entry(
            &*vocabulary.action(moment.action).name,
            moment.time,
            &*origin.request_id,
            base(Vec::new()),
        )
    };
    if let Some(entered) = &origin.entered {
        // Without it the span's id could not be derived again. A try's number is
        // not the entry's.
        entries.push(bare(entered));
        entries[0].suffix.occurrence = 0;
    }
    entries.extend(origin.seen.iter().map(bare));
    entries.extend(origin.start.iter().map(bare));
    for event in &span.events {
        let suffix = base(event.attributes.clone());
        entries.push(entry(&*event.name, event.time, &*origin.request_id, suffix));
    }
    entries.extend(origin.end.iter().map(bare));
    // Attributes go on a line whose action describes this phase, and the mark on
    // the line that ends it, or starts it where no end was seen.
    let describes = |entry: &Entry<'_>| {
        vocabulary.action_named(entry.action).is_some_and(|id| {
            let action = vocabulary.action(id);
            action.span == origin.phase && !action.event
        })
    };
    let attributes = &span.attributes[..origin.recorded_attributes];
    if let Some(target) = entries.iter().rposition(describes) {
        entries[target].suffix.attributes = AttributeMap(attributes.to_vec());
    }
    let bound = origin.end.as_ref().or(origin.start.as_ref());
    let bounds = |entry: &Entry<'_>| {
        bound.is_some_and(|b| {
            *vocabulary.action(b.action).name == *entry.action && b.time == entry.time
        })
    };
    let marked = entries.iter().rposition(bounds);
    if let Some(at) = marked.or(entries.len().checked_sub(1)) {
        entries[at].suffix.undelivered = Some(vec![phase.name.to_string()]);
    }
    entries
}
