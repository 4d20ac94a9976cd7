//! A request as the logs have it.

use std::sync::Arc;

use omnitrace::SpanContext;
use omnitrace::span::Source;
use omnitrace::value::Attribute;

/// One request's events, as logged.
#[derive(Debug)]
pub struct Request {
    /// Canonical id.
    pub id: Box<str>,
    /// Its events.
    pub events: Vec<LoggedEvent>,
}

/// One action line.
#[derive(Debug, Clone, PartialEq)]
pub struct LoggedEvent {
    /// Action name.
    pub action: Arc<str>,
    /// Nanoseconds since 1970.
    pub time: u64,
    /// Who recorded it.
    pub source: Arc<Source>,
    /// Which try, from 0.
    pub occurrence: u16,
    /// What only our own lines have.
    pub extra: Option<Box<Extra>>,
}

/// What the JSON object at a line's end says of an event.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Extra {
    /// The context that came with the request.
    pub context: Option<SpanContext>,
    /// Attributes.
    pub attributes: Vec<Attribute>,
    /// Names of the spans ending here that no Collector has taken; none where
    /// the line was written without knowing.
    pub undelivered: Option<Vec<String>>,
    /// The host that the client asked for; of a proxy's line, if it was wanted.
    pub host: Option<Arc<str>>,
}

impl Request {
    /// Time of its first event.
    pub fn first(&self) -> u64 {
        self.events.first().map_or(0, |e| e.time)
    }
}
