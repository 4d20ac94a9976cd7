//! The old converter's JSON, without what strict readers refuse in it.

use std::io::Write as _;

use omnitrace::Vocabulary;
use omnitrace::id::{SpanId, TraceId};
use xxhash_rust::xxh3::xxh3_64;

use super::chain::{BIG, Kind, SLOTS, parents, slot};
use super::request::{Legacy, seconds};
use crate::jaeger::write::text;

/// What the old converter calls an operation without a name.
const NO_NAME: &str = " ";

/// A statistic instead of a request.
pub(super) struct Statistic<'a> {
    pub(super) title: &'a str,
    /// What its log says.
    pub(super) label: &'a str,
    /// Microseconds of each span, where any request has it.
    pub(super) durations: &'a [Option<f64>; SLOTS],
}

/// Appends the trace of a request, or that of a statistic with the request's times.
/// The answer is the number of its spans.
pub(super) fn trace(
    vocabulary: &Vocabulary,
    request: &Legacy,
    statistic: Option<&Statistic<'_>>,
    out: &mut Vec<u8>,
) -> usize {
    let mut is_there = request.is_there();
    if let Some(statistic) = statistic {
        let counted = statistic.durations.iter();
        is_there
            .iter_mut()
            .zip(counted)
            .for_each(|(there, d)| *there &= d.is_some());
    }
    let parents = parents(&is_there);
    let trace_id = match statistic {
        Some(statistic) => TraceId::of_request(statistic.title),
        None => request.trace_id,
    };
    // Writing to memory cannot fail.
    let _ = write!(out, "{{\"traceID\":\"{trace_id}\",\"spans\":[");
    let mut names = Vec::new();
    let mut spans = 0;
    for at in (0..SLOTS).filter(|at| is_there[*at]) {
        let Some((start, end)) = request.ends(at) else {
            continue;
        };
        if spans > 0 {
            out.push(b',');
        }
        spans += 1;
        let (from, to, _) = slot(at);
        let action = |number: usize| &*vocabulary.actions()[number].name;
        let name = match statistic {
            Some(statistic) if at == 0 => statistic.title,
            _ => BIG
                .get(at)
                .map_or_else(|| action(to), |(_, _, name, _)| *name),
        };
        names.push(name);
        let span_id = span_id(trace_id, at);
        let _ = write!(
            out,
            "{{\"traceID\":\"{trace_id}\",\"spanID\":\"{span_id}\",\"operationName\":"
        );
        let request_id = if statistic.is_some() {
            NO_NAME
        } else {
            &*request.id
        };
        text(operation(at, request_id), out);
        out.extend_from_slice(b",\"references\":[");
        if let Some(parent) = parents[at] {
            let parent = self::span_id(trace_id, parent);
            let _ = write!(
                out,
                "{{\"refType\":\"CHILD_OF\",\"traceID\":\"{trace_id}\",\"spanID\":\"{parent}\"}}"
            );
        }
        let (first, last) = (seconds(start.time), seconds(end.time));
        let micros = (first * 1e6) as u64;
        let duration = match statistic {
            Some(statistic) => statistic.durations[at]
                .unwrap_or_default()
                .round_ties_even() as u64,
            None => request.duration(at).unwrap_or_default(),
        };
        let _ = write!(
            out,
            "],\"startTime\":{micros},\"duration\":{duration},\"tags\":["
        );
        let id = match statistic {
            Some(_) => "average_all_requests",
            None => &*request.id,
        };
        tag("RequestID", id, out);
        out.push(b',');
        tag("role", &end.role, out);
        out.push(b',');
        if statistic.is_none() {
            tag("ip", &end.ip, out);
            out.push(b',');
        }
        tag("start_action", action(from), out);
        out.push(b',');
        tag("end_action", action(to), out);
        match statistic {
            Some(statistic) => {
                let duration = statistic.durations[at].unwrap_or_default();
                number("average time duration", duration, out);
            }
            None => {
                number("start_time", first, out);
                number("end_time", last, out);
            }
        }
        out.extend_from_slice(b"],\"processID\":");
        text(name, out);
        let _ = write!(out, ",\"logs\":[{{\"timestamp\":{micros},\"fields\":[");
        if let Some(statistic) = statistic {
            tag("event", statistic.label, out);
        }
        out.extend_from_slice(b"]}]}");
    }
    processes(&names, out);
    spans
}

/// What follows a trace's last span: a process for each name.
pub(super) fn processes(names: &[&str], out: &mut Vec<u8>) {
    out.extend_from_slice(b"],\"processes\":{");
    for (number, name) in names.iter().enumerate() {
        if number > 0 {
            out.push(b',');
        }
        text(name, out);
        out.extend_from_slice(b":{\"serviceName\":");
        text(name, out);
        out.extend_from_slice(b",\"tags\":[");
        tag("service", name, out);
        out.extend_from_slice(b"]}");
    }
    out.extend_from_slice(b"}}");
}

fn operation(at: usize, request_id: &str) -> &str {
    match slot(at) {
        (0, 36, _) => request_id,
        (6, 7, Kind::Small) => "Send from Omni proxy to P nodes",
        (16, 17, _) => "Send from P node to Omni proxy",
        (20, 21, Kind::Small) => "Send from Omni proxy to D node",
        _ => NO_NAME,
    }
}

/// The id of the span that is known by `at` in its trace.
pub(super) fn span_id(trace_id: TraceId, at: impl std::fmt::Display) -> SpanId {
    let key = format!("legacy\0{trace_id}\0{at}");
    SpanId::new(xxh3_64(key.as_bytes())).unwrap_or_else(SpanId::random)
}

pub(super) fn tag(key: &str, value: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"key\":");
    text(key, out);
    out.extend_from_slice(b",\"type\":\"string\",\"value\":");
    text(value, out);
    out.push(b'}');
}

/// Appends a tag and the comma before it.
pub(super) fn number(key: &str, value: f64, out: &mut Vec<u8>) {
    out.extend_from_slice(b",{\"key\":");
    text(key, out);
    out.extend_from_slice(b",\"type\":\"float64\",\"value\":");
    // Writing to memory cannot fail.
    let _ = serde_json::to_writer(&mut *out, &value);
    out.push(b'}');
}
