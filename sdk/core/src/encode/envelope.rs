//! What stands around the spans of a request.

use crate::span::InstrumentationScope;
use crate::value::{Attribute, ValueRef};

use super::{LENGTH, Out, Raw, varint_len};

/// The `resource` field of `ResourceSpans`.
#[derive(Debug, Clone)]
pub(crate) struct Envelope {
    resource: Vec<u8>,
}

/// What stands around the spans of one instrumentation scope.
#[derive(Debug, Clone)]
pub(crate) struct ScopeEnvelope {
    /// The `scope` field of `ScopeSpans`.
    scope: Vec<u8>,
    /// Its `schema_url` field, which comes after the spans.
    schema_url: Vec<u8>,
}

fn attributes(list: &[Attribute]) -> impl Iterator<Item = (&[u8], Raw<'_>)> {
    list.iter()
        .map(|a| (a.key.as_bytes(), ValueRef::into(a.value.as_ref())))
}

impl ScopeEnvelope {
    pub(crate) fn new(scope: &InstrumentationScope) -> Self {
        let (mut field, mut schema_url) = (Out::default(), Out::default());
        field.message(1, 1, |out| {
            out.text(1, scope.name.as_bytes());
            out.text(2, scope.version.as_bytes());
            for (key, value) in attributes(&scope.attributes) {
                out.attribute(3, key, value);
            }
        });
        schema_url.text(3, scope.schema_url.as_bytes());
        Self {
            scope: field.finish(),
            schema_url: schema_url.finish(),
        }
    }

    fn len(&self, spans: usize) -> usize {
        self.scope.len() + spans + self.schema_url.len()
    }

    /// Opens a `ScopeSpans` whose spans take `spans` bytes.
    fn open(&self, spans: usize, out: &mut Out) {
        out.tag(2, LENGTH);
        out.varint(self.len(spans) as u64);
        out.copy(&self.scope);
    }
}

impl Envelope {
    pub(crate) fn new(resource: &[Attribute]) -> Self {
        let mut field = Out::default();
        field.message(1, 2, |out| {
            for (key, value) in attributes(resource) {
                out.attribute(1, key, value);
            }
        });
        Self {
            resource: field.finish(),
        }
    }

    /// The bytes that make an `ExportTraceServiceRequest` of one scope's spans,
    /// `spans` bytes long: what stands in front of them, and behind.
    pub(crate) fn around<'a>(&self, scope: &'a ScopeEnvelope, spans: usize) -> (Vec<u8>, &'a [u8]) {
        let mut head = self.head(delimited_len(scope.len(spans)));
        scope.open(spans, &mut head);
        (head.finish(), &scope.schema_url)
    }

    /// A whole `ExportTraceServiceRequest` of several scopes' spans.
    pub(crate) fn whole(&self, scopes: &[(&ScopeEnvelope, Vec<&[u8]>)]) -> Vec<u8> {
        let spans = |runs: &[&[u8]]| runs.iter().map(|run| run.len()).sum::<usize>();
        let len = scopes
            .iter()
            .map(|(scope, runs)| delimited_len(scope.len(spans(runs))))
            .sum();
        let mut body = self.head(len);
        for (scope, runs) in scopes {
            scope.open(spans(runs), &mut body);
            runs.iter().for_each(|run| body.copy(run));
            body.copy(&scope.schema_url);
        }
        body.finish()
    }

    /// Opens the one `ResourceSpans`; its `ScopeSpans` fields take `len` bytes.
    fn head(&self, len: usize) -> Out {
        let mut out = Out::default();
        out.tag(1, LENGTH);
        out.varint((self.resource.len() + len) as u64);
        out.copy(&self.resource);
        out
    }
}

/// Length of a message of `len` bytes with its tag and its length.
fn delimited_len(len: usize) -> usize {
    1 + varint_len(len as u64) + len
}
