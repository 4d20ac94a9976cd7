//! `OTEL_TRACES_EXPORTER=console`: each span as one line of JSON on standard output.

use std::io;
use std::sync::Arc;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use crate::config::ConsoleMode;
use crate::span::{Span, Status};
use crate::value::{Attribute, Value};

/// Standard output, as far as it can be written to.
pub(super) struct Console {
    service: Arc<str>,
    alone: bool,
    failing: bool,
}

impl Console {
    /// For spans of the service that these resource attributes name. None: nobody wants
    /// it.
    pub(super) fn new(mode: ConsoleMode, resource: &[Attribute]) -> Option<Self> {
        if mode == ConsoleMode::Off {
            return None;
        }
        let name = resource.iter().find(|a| &*a.key == "service.name");
        Some(Self {
            service: match name.map(|a| &a.value) {
                Some(Value::Str(name)) => Arc::clone(name),
                _ => "".into(),
            },
            alone: mode == ConsoleMode::Alone,
            failing: false,
        })
    }

    /// Whether what it was last given needs to go nowhere else.
    pub(super) fn delivers(&self) -> bool {
        self.alone && !self.failing
    }

    /// Writes whole lines.
    pub(super) fn write(&mut self, spans: &[Span]) {
        let result = self.write_lines(spans);
        let failing = result.is_err();
        if let Err(error) = result
            && !self.failing
        {
            tracing::error!(
                "spans cannot be written to standard output: {error}; take \"console\" out of OTEL_TRACES_EXPORTER"
            );
        }
        self.failing = failing;
    }

    /// Forked processes share the output: what is written at once ends with a line, and
    /// stays whole in a pipe unless a line alone is longer than a pipe takes at once.
    fn write_lines(&self, spans: &[Span]) -> io::Result<()> {
        let mut lines = Vec::with_capacity(2 * PIPE_BUF);
        let mut whole = 0;
        for span in spans {
            // Writing to memory cannot fail.
            let _ = serde_json::to_writer(&mut lines, &Line::of(&self.service, span));
            lines.push(b'\n');
            if lines.len() > PIPE_BUF && whole > 0 {
                write_all(&lines[..whole])?;
                lines.drain(..whole);
            }
            whole = lines.len();
        }
        write_all(&lines)
    }
}

/// What POSIX writes to a pipe without another process's bytes between, in octets, on
/// Linux (`pipe(7)`).
const PIPE_BUF: usize = 4096;

/// Past the standard library's buffer: its lock would stay locked in a process that is
/// forked while we write.
fn write_all(mut bytes: &[u8]) -> io::Result<()> {
    let output = rustix::stdio::stdout();
    while !bytes.is_empty() {
        match rustix::io::write(output, bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// A span, the most telling first, so that a line is readable without any tool.
#[derive(Serialize)]
struct Line<'a> {
    time: String,
    service: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<&'a str>,
    name: &'a str,
    duration_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<String>,
    kind: &'static str,
    trace_id: String,
    span_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_span_id: Option<String>,
    #[serde(skip_serializing_if = "Attributes::is_empty")]
    attributes: Attributes<'a>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    events: Vec<Event<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    links: Vec<Link>,
}

#[derive(Serialize)]
struct Event<'a> {
    time: String,
    name: &'a str,
    #[serde(skip_serializing_if = "Attributes::is_empty")]
    attributes: Attributes<'a>,
}

#[derive(Serialize)]
struct Link {
    trace_id: String,
    span_id: String,
}

impl<'a> Line<'a> {
    fn of(service: &'a str, span: &'a Span) -> Self {
        Self {
            time: time(span.start),
            service,
            scope: span.scope.as_deref().map(|scope| &*scope.name),
            name: &span.name,
            duration_ms: span.end.saturating_sub(span.start) as f64 / 1e6,
            status: match &span.status {
                Status::Unset => None,
                Status::Ok => Some("ok".to_owned()),
                Status::Error(text) if text.is_empty() => Some("error".to_owned()),
                Status::Error(text) => Some(format!("error: {text}")),
            },
            kind: span.kind.name(),
            trace_id: span.trace_id.to_string(),
            span_id: span.span_id.to_string(),
            parent_span_id: span.parent_span_id.map(|id| id.to_string()),
            attributes: Attributes(&span.attributes),
            events: span
                .events
                .iter()
                .map(|event| Event {
                    time: time(event.time),
                    name: &event.name,
                    attributes: Attributes(&event.attributes),
                })
                .collect(),
            links: span
                .links
                .iter()
                .map(|link| Link {
                    trace_id: link.trace_id.to_string(),
                    span_id: link.span_id.to_string(),
                })
                .collect(),
        }
    }
}

fn time(nanos: u64) -> String {
    let time = DateTime::<Utc>::from_timestamp_nanos(i64::try_from(nanos).unwrap_or(i64::MAX));
    time.to_rfc3339_opts(SecondsFormat::Nanos, true)
}

/// As an object, in their order.
struct Attributes<'a>(&'a [Attribute]);

impl Attributes<'_> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for Attributes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for Attribute { key, value } in self.0 {
            map.serialize_entry(&**key, value)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{SpanId, TraceId};
    use crate::span::{self, Source, SpanEvent, SpanKind};

    #[test]
    fn a_span_is_one_line_with_the_most_telling_first() {
        let trace_id = TraceId::new(0xabc).unwrap();
        let span = Span {
            trace_id,
            span_id: SpanId::new(1).unwrap(),
            parent_span_id: SpanId::new(2),
            parent_is_remote: false,
            flags: 1,
            trace_state: Box::default(),
            name: "Prefill\n\"x\"".into(),
            kind: SpanKind::Server,
            start: 1_795_334_645_577_302_011,
            end: 1_795_334_645_579_802_011,
            status: Status::Error("too long".into()),
            attributes: vec![
                Attribute::new("z", "text"),
                Attribute::new("a", 7),
                Attribute::new("nan", f64::NAN),
                Attribute::new("ratio", 0.5),
                Attribute::new("on", true),
            ],
            events: vec![SpanEvent {
                time: 1_795_334_645_578_000_000,
                name: "token".into(),
                attributes: vec![],
                dropped_attributes: 0,
            }],
            links: vec![span::Link::new(trace_id, SpanId::new(3).unwrap())],
            dropped: span::Dropped::default(),
            scope: None,
            source: Source {
                role: "prefill".into(),
                node: "n".into(),
            }
            .into(),
            origin: None,
        };
        assert_eq!(
            serde_json::to_string(&Line::of("vllm-prefill", &span)).unwrap(),
            concat!(
                r#"{"time":"2026-11-22T08:04:05.577302011Z","service":"vllm-prefill","#,
                r#""name":"Prefill\n\"x\"","duration_ms":2.5,"status":"error: too long","#,
                r#""kind":"server","trace_id":"00000000000000000000000000000abc","#,
                r#""span_id":"0000000000000001","parent_span_id":"0000000000000002","#,
                r#""attributes":{"z":"text","a":7,"nan":"NaN","ratio":0.5,"on":true},"#,
                r#""events":[{"time":"2026-11-22T08:04:05.578000000Z","name":"token"}],"#,
                r#""links":[{"trace_id":"00000000000000000000000000000abc","span_id":"0000000000000003"}]}"#,
            )
        );
    }
}
