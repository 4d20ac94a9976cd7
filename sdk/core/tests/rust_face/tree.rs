//! Spans as text: what they are, what hangs under what.

use std::collections::HashMap;
use std::fmt::Write as _;

use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::{Span, status};

use crate::sink::Received;

/// The flag that says that the parent is in another process.
const IS_REMOTE: u32 = 0x200;

/// All spans, children under their parents in the order in which they began. A parent
/// and a link are shown by name, or by id if that span is not there.
pub(crate) fn of(received: &Received) -> String {
    let spans: HashMap<&[u8], &Span> = received
        .spans()
        .map(|span| (&*span.span_id, span))
        .collect();
    let mut children: HashMap<&[u8], Vec<&Span>> = HashMap::new();
    for span in received.spans() {
        assert!(span.start_time_unix_nano <= span.end_time_unix_nano);
        let parent = spans.get(&*span.parent_span_id);
        assert!(parent.is_none_or(|parent| parent.trace_id == span.trace_id));
        let above = parent.map_or(&[][..], |parent| &parent.span_id);
        children.entry(above).or_default().push(span);
    }
    for list in children.values_mut() {
        list.sort_by_key(|span| span.start_time_unix_nano);
    }
    let mut text = String::new();
    let mut open: Vec<(usize, &Span)> = Vec::new();
    let below = |span: &[u8], depth| {
        let list = children.get(span).into_iter().flatten().rev();
        list.map(move |span| (depth, *span)).collect::<Vec<_>>()
    };
    open.extend(below(&[], 0));
    while let Some((depth, span)) = open.pop() {
        write_span(&mut text, depth, span, &spans);
        open.extend(below(&span.span_id, depth + 1));
    }
    text
}

fn write_span(text: &mut String, depth: usize, span: &Span, spans: &HashMap<&[u8], &Span>) {
    let indent = "  ".repeat(depth);
    write!(text, "{indent}{}", span.name).unwrap();
    match span.kind().as_str_name().trim_start_matches("SPAN_KIND_") {
        "INTERNAL" => {}
        kind => write!(text, " {kind}").unwrap(),
    }
    let status = span.status.clone().unwrap_or_default();
    match status.code() {
        status::StatusCode::Unset => {}
        code => {
            let code = code.as_str_name().trim_start_matches("STATUS_CODE_");
            write!(text, " {code} {:?}", status.message).unwrap();
        }
    }
    if !span.parent_span_id.is_empty() && !spans.contains_key(&*span.parent_span_id) {
        let remote = if span.flags & IS_REMOTE != 0 {
            "remote "
        } else {
            ""
        };
        write!(text, " under {remote}{}", hex(&span.parent_span_id)).unwrap();
    }
    if !span.trace_state.is_empty() {
        write!(text, " tracestate {}", span.trace_state).unwrap();
    }
    text.push('\n');
    write_attributes(text, &indent, &span.attributes);
    for event in &span.events {
        let in_span = span.start_time_unix_nano..=span.end_time_unix_nano;
        assert!(in_span.contains(&event.time_unix_nano));
        writeln!(text, "{indent}  * {}", without_line(&event.name)).unwrap();
        write_attributes(text, &format!("{indent}  "), &event.attributes);
        write_dropped(
            text,
            &indent,
            "of the event's attributes",
            event.dropped_attributes_count,
        );
    }
    for link in &span.links {
        let to = match spans.get(&*link.span_id) {
            Some(to) => {
                assert_eq!(to.trace_id, link.trace_id);
                to.name.clone()
            }
            None => format!("{}-{}", hex(&link.trace_id), hex(&link.span_id)),
        };
        write!(text, "{indent}  -> {to}").unwrap();
        if !link.trace_state.is_empty() {
            write!(text, " tracestate {}", link.trace_state).unwrap();
        }
        text.push('\n');
        write_attributes(text, &format!("{indent}  "), &link.attributes);
        write_dropped(
            text,
            &indent,
            "of the link's attributes",
            link.dropped_attributes_count,
        );
    }
    write_dropped(text, &indent, "attributes", span.dropped_attributes_count);
    write_dropped(text, &indent, "events", span.dropped_events_count);
    write_dropped(text, &indent, "links", span.dropped_links_count);
}

/// `tracing` names an event without a message after its place in the code.
fn without_line(name: &str) -> String {
    let line = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    match name.rsplit_once(':') {
        Some((place, number)) if place.starts_with("event ") && line(number) => {
            format!("{place}:LINE")
        }
        _ => name.to_owned(),
    }
}

fn write_dropped(text: &mut String, indent: &str, what: &str, count: u32) {
    if count > 0 {
        writeln!(text, "{indent}  {count} {what} dropped").unwrap();
    }
}

/// By key; a key may be there once.
fn write_attributes(text: &mut String, indent: &str, attributes: &[KeyValue]) {
    for (key, value) in pairs(attributes) {
        let value = if key == "code.line.number" {
            "LINE"
        } else {
            &value
        };
        writeln!(text, "{indent}  {key} = {value}").unwrap();
    }
}

/// By key.
pub(crate) fn pairs(attributes: &[KeyValue]) -> Vec<(String, String)> {
    let pair = |kv: &KeyValue| (kv.key.clone(), value(kv.value.as_ref().unwrap()));
    let mut pairs: Vec<(String, String)> = attributes.iter().map(pair).collect();
    pairs.sort();
    let twice = pairs.windows(2).find(|two| two[0].0 == two[1].0);
    assert_eq!(twice, None);
    pairs
}

/// As Rust would write it, so that its type shows.
fn value(value: &AnyValue) -> String {
    match value.value.as_ref().unwrap() {
        any_value::Value::StringValue(text) => format!("{text:?}"),
        any_value::Value::BoolValue(b) => format!("{b:?}"),
        any_value::Value::IntValue(n) => format!("{n:?}"),
        any_value::Value::DoubleValue(n) => format!("{n:?}"),
        any_value::Value::ArrayValue(array) => {
            let items: Vec<String> = array.values.iter().map(self::value).collect();
            format!("[{}]", items.join(", "))
        }
        other => panic!("no attribute of OpenTelemetry is {other:?}"),
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
