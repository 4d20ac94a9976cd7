//! What a converted file looks like.

use std::sync::Arc;

use omnitrace::Vocabulary;
use omnitrace::span::Span;

use super::{csv, otlp, perfetto};
use crate::jaeger;

/// What to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// JSON that the Jaeger UI takes.
    #[default]
    Jaeger,
    /// OTLP, a line of JSON for each trace.
    OtlpJson,
    /// OTLP, one `TracesData` message in protobuf.
    OtlpProtobuf,
    /// The Trace Event format of Perfetto and chrome://tracing.
    Perfetto,
    /// A row for each span.
    Csv,
}

/// How the spans of a request stand to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Layout {
    /// Each phase within the one that it is part of.
    #[default]
    Tree,
    /// The chain of the old converter.
    Legacy,
}

impl Format {
    /// All formats by name.
    pub const NAMES: [(&str, Self); 5] = [
        ("jaeger", Self::Jaeger),
        ("otlp", Self::OtlpJson),
        ("otlp-protobuf", Self::OtlpProtobuf),
        ("perfetto", Self::Perfetto),
        ("csv", Self::Csv),
    ];

    /// Whether the file begins with the four statistics traces: the other formats are for
    /// programs, which would count them as requests.
    pub(super) fn has_statistics(self) -> bool {
        self == Self::Jaeger
    }
}

/// Writes one file.
pub(super) struct Form<'a> {
    vocabulary: &'a Arc<Vocabulary>,
    format: Format,
    processes: perfetto::Processes,
}

impl<'a> Form<'a> {
    pub(super) fn new(vocabulary: &'a Arc<Vocabulary>, format: Format) -> Self {
        Self {
            vocabulary,
            format,
            processes: perfetto::Processes::default(),
        }
    }

    /// What stands in front of the first trace.
    pub(super) fn head(&self) -> &'static [u8] {
        match self.format {
            Format::Jaeger => b"{\"data\":[",
            Format::OtlpJson | Format::OtlpProtobuf => b"",
            Format::Perfetto => b"{\"displayTimeUnit\":\"ms\",\"traceEvents\":[",
            Format::Csv => csv::HEAD,
        }
    }

    /// Whether each trace begins with a comma, which the first one must not have.
    pub(super) fn has_commas(&self) -> bool {
        matches!(self.format, Format::Jaeger | Format::Perfetto)
    }

    /// Appends one trace.
    pub(super) fn trace(&self, spans: &[Span], out: &mut Vec<u8>) {
        match self.format {
            Format::Jaeger => {
                out.extend_from_slice(b",\n");
                jaeger::write::trace(self.vocabulary, spans, out);
            }
            Format::OtlpJson => otlp::json_line(self.vocabulary, spans, out),
            Format::OtlpProtobuf => otlp::protobuf(self.vocabulary, spans, out),
            Format::Perfetto => self.processes.trace(self.vocabulary, spans, out),
            Format::Csv => csv::rows(self.vocabulary, spans, out),
        }
    }

    /// What follows the last trace.
    pub(super) fn tail(&self) -> Vec<u8> {
        let mut tail = Vec::new();
        match self.format {
            Format::Jaeger => tail.extend_from_slice(b"\n]}\n"),
            Format::Perfetto => {
                self.processes.names(&mut tail);
                tail.extend_from_slice(b"\n]}\n");
            }
            Format::OtlpJson | Format::OtlpProtobuf | Format::Csv => {}
        }
        tail
    }
}
