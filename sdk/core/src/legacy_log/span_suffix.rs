//! A free span in the JSON object after its line, and back.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::id::{SpanId, TraceId};
use crate::span::{Dropped, InstrumentationScope, Link, Source, Span, SpanEvent, SpanKind, Status};

use super::entry::AttributeMap;

/// A free span: the line's time is its end, the line's action its name.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SpanSuffix {
    /// Nanoseconds since 1970.
    pub start: u64,
    /// 32 hexadecimal digits.
    pub trace_id: String,
    /// 16 hexadecimal digits.
    pub span_id: String,
    /// 16 hexadecimal digits; absent for a root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent_span_id: Option<String>,
    /// The parent is in another process.
    #[serde(skip_serializing_if = "is_default")]
    pub parent_is_remote: bool,
    /// Span kind, lower case.
    pub kind: String,
    /// W3C trace flags.
    pub flags: u8,
    /// W3C `tracestate`.
    #[serde(skip_serializing_if = "is_default")]
    pub trace_state: String,
    /// It was said to be fine.
    #[serde(skip_serializing_if = "is_default")]
    pub ok: bool,
    /// Description of the failure, if it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Its events.
    #[serde(skip_serializing_if = "is_default")]
    pub events: Vec<EventSuffix>,
    /// Its links.
    #[serde(skip_serializing_if = "is_default")]
    pub links: Vec<LinkSuffix>,
    /// What limits have kept out.
    #[serde(skip_serializing_if = "is_default")]
    pub dropped: Dropped,
    /// The library that made it; absent for omnitrace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<ScopeSuffix>,
}

/// An event of a free span.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EventSuffix {
    /// Nanoseconds since 1970.
    pub time: u64,
    /// Event name.
    pub name: String,
    /// Event attributes.
    #[serde(skip_serializing_if = "is_default")]
    pub attributes: AttributeMap,
    /// Attributes left out because of a limit.
    #[serde(skip_serializing_if = "is_default")]
    pub dropped_attributes: u32,
}

/// A link of a free span.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LinkSuffix {
    /// 32 hexadecimal digits.
    pub trace_id: String,
    /// 16 hexadecimal digits.
    pub span_id: String,
    /// W3C `tracestate` of the other span.
    #[serde(skip_serializing_if = "is_default")]
    pub trace_state: String,
    /// What is known of the link.
    #[serde(skip_serializing_if = "is_default")]
    pub attributes: AttributeMap,
    /// Attributes left out because of a limit.
    #[serde(skip_serializing_if = "is_default")]
    pub dropped_attributes: u32,
}

/// An instrumentation scope.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ScopeSuffix {
    /// Its name.
    pub name: String,
    /// Its version.
    #[serde(skip_serializing_if = "is_default")]
    pub version: String,
    /// URL of the schema of its attributes.
    #[serde(skip_serializing_if = "is_default")]
    pub schema_url: String,
    /// What else is known of it.
    #[serde(skip_serializing_if = "is_default")]
    pub attributes: AttributeMap,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl SpanSuffix {
    /// What the line itself does not say of a free span.
    pub fn new(span: &Span) -> Self {
        Self {
            start: span.start,
            trace_id: span.trace_id.to_string(),
            span_id: span.span_id.to_string(),
            parent_span_id: span.parent_span_id.map(|id| id.to_string()),
            parent_is_remote: span.parent_is_remote,
            kind: span.kind.name().to_owned(),
            flags: span.flags,
            trace_state: span.trace_state.to_string(),
            ok: span.status == Status::Ok,
            error: match &span.status {
                Status::Error(text) => Some(text.to_string()),
                _ => None,
            },
            events: span.events.iter().map(EventSuffix::new).collect(),
            links: span.links.iter().map(LinkSuffix::new).collect(),
            dropped: span.dropped,
            scope: span.scope.as_deref().map(ScopeSuffix::new),
        }
    }

    /// The span again; none if its ids are damaged. The line says its `name` and
    /// `end` (nanoseconds since 1970), the rest of the object its attributes.
    pub fn span(
        &self,
        name: &str,
        end: u64,
        attributes: &AttributeMap,
        source: Arc<Source>,
    ) -> Option<Span> {
        let parent_span_id = match &self.parent_span_id {
            Some(id) => Some(SpanId::parse(id.as_bytes())?),
            None => None,
        };
        Some(Span {
            trace_id: TraceId::parse(self.trace_id.as_bytes())?,
            span_id: SpanId::parse(self.span_id.as_bytes())?,
            parent_span_id,
            parent_is_remote: self.parent_is_remote,
            flags: self.flags,
            trace_state: self.trace_state.as_str().into(),
            name: name.into(),
            kind: SpanKind::named(&self.kind).unwrap_or_default(),
            start: self.start.min(end),
            end,
            status: match &self.error {
                Some(text) => Status::Error(text.as_str().into()),
                None if self.ok => Status::Ok,
                None => Status::Unset,
            },
            attributes: attributes.0.clone(),
            events: self.events.iter().map(EventSuffix::event).collect(),
            links: self.links.iter().filter_map(LinkSuffix::link).collect(),
            dropped: self.dropped,
            scope: self.scope.as_ref().map(|scope| Arc::new(scope.scope())),
            source,
            origin: None,
        })
    }
}

impl EventSuffix {
    fn new(event: &SpanEvent) -> Self {
        Self {
            time: event.time,
            name: event.name.to_string(),
            attributes: AttributeMap(event.attributes.clone()),
            dropped_attributes: event.dropped_attributes,
        }
    }

    fn event(&self) -> SpanEvent {
        SpanEvent {
            time: self.time,
            name: self.name.as_str().into(),
            attributes: self.attributes.0.clone(),
            dropped_attributes: self.dropped_attributes,
        }
    }
}

impl LinkSuffix {
    pub(super) fn new(link: &Link) -> Self {
        Self {
            trace_id: link.trace_id.to_string(),
            span_id: link.span_id.to_string(),
            trace_state: link.trace_state.to_string(),
            attributes: AttributeMap(link.attributes.clone()),
            dropped_attributes: link.dropped_attributes,
        }
    }

    fn link(&self) -> Option<Link> {
        Some(Link {
            trace_id: TraceId::parse(self.trace_id.as_bytes())?,
            span_id: SpanId::parse(self.span_id.as_bytes())?,
            trace_state: self.trace_state.as_str().into(),
            attributes: self.attributes.0.clone(),
            dropped_attributes: self.dropped_attributes,
        })
    }
}

impl ScopeSuffix {
    fn new(scope: &InstrumentationScope) -> Self {
        Self {
            name: scope.name.to_string(),
            version: scope.version.to_string(),
            schema_url: scope.schema_url.to_string(),
            attributes: AttributeMap(scope.attributes.clone()),
        }
    }

    fn scope(&self) -> InstrumentationScope {
        InstrumentationScope {
            name: self.name.as_str().into(),
            version: self.version.as_str().into(),
            schema_url: self.schema_url.as_str().into(),
            attributes: self.attributes.0.clone(),
        }
    }
}
