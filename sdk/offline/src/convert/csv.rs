//! Spans as a table: a row for each (RFC 4180).

use std::io::Write as _;

use omnitrace::Vocabulary;
use omnitrace::legacy_log::AttributeMap;
use omnitrace::span::{Span, Status};
use omnitrace::value::Value;

use crate::jaeger::span::service_name;

pub(super) const HEAD: &[u8] =
    b"trace_id,span_id,parent_span_id,request_id,service,node,name,kind,\
start_unix_ns,end_unix_ns,duration_ns,status,status_message,attributes\r\n";

/// Appends the rows of one trace.
pub(super) fn rows(vocabulary: &Vocabulary, spans: &[Span], out: &mut Vec<u8>) {
    for span in spans {
        // Writing to memory cannot fail.
        let _ = write!(out, "{},{},", span.trace_id, span.span_id);
        if let Some(parent) = span.parent_span_id {
            let _ = write!(out, "{parent}");
        }
        out.push(b',');
        field(request_id(span), out);
        out.push(b',');
        field(&service_name(vocabulary, &span.source.role), out);
        out.push(b',');
        field(&span.source.node, out);
        out.push(b',');
        field(&span.name, out);
        let length = span.end - span.start;
        let (start, end, kind) = (span.start, span.end, span.kind.name());
        let _ = write!(out, ",{kind},{start},{end},{length},");
        let (status, message) = match &span.status {
            Status::Unset => ("", ""),
            Status::Ok => ("ok", ""),
            Status::Error(reason) => ("error", &**reason),
        };
        out.extend_from_slice(status.as_bytes());
        out.push(b',');
        field(message, out);
        out.push(b',');
        let attributes = AttributeMap(span.attributes.clone());
        field(&serde_json::to_string(&attributes).unwrap_or_default(), out);
        out.extend_from_slice(b"\r\n");
    }
}

pub(super) fn request_id(span: &Span) -> &str {
    let attribute = span
        .attributes
        .iter()
        .find(|a| &*a.key == "gen_ai.request.id");
    match attribute.map(|a| &a.value) {
        Some(Value::Str(id)) => id,
        _ => "",
    }
}

fn field(text: &str, out: &mut Vec<u8>) {
    if !text.contains(['"', ',', '\r', '\n']) {
        out.extend_from_slice(text.as_bytes());
        return;
    }
    out.push(b'"');
    out.extend_from_slice(text.replace('"', "\"\"").as_bytes());
    out.push(b'"');
}
