//! What the fields of a span or event mean, looked up once for each place in the code.

use std::sync::OnceLock;

use tracing::Metadata;
use tracing::field::Field;

use crate::key::KeyId;

/// Places in the code that are remembered; what the others' fields mean is looked up
/// each time.
const CAPACITY: usize = 2048;
/// How far from where its address points a place may be found.
const PROBES: usize = 16;

static CALLSITES: [OnceLock<Callsite>; CAPACITY] = [const { OnceLock::new() }; CAPACITY];

/// What a field means; the names are tracing-opentelemetry's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// An attribute with this key.
    Attribute(KeyId),
    /// An attribute whose key has no number: the field's name.
    Unnumbered,
    /// `otel.name`: the span's name, where the code knows it only when it runs.
    Name,
    /// `otel.kind`.
    Kind,
    /// `otel.status_code`.
    StatusCode,
    /// `otel.status_description`.
    StatusDescription,
    /// The message of an event, its name.
    Message,
    /// The `error` of an event.
    Error,
    /// Where a record of the `log` crate comes from, which its own metadata does not
    /// say.
    Log(Origin),
}

/// Parts of a `log` record's origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    Target,
    Module,
    File,
    Line,
}

impl Role {
    fn of(name: &'static str, is_span: bool) -> Self {
        match (is_span, name) {
            (true, "otel.name") => Self::Name,
            (true, "otel.kind") => Self::Kind,
            (true, "otel.status_code") => Self::StatusCode,
            (true, "otel.status_description") => Self::StatusDescription,
            (false, "message") => Self::Message,
            (false, "error") => Self::Error,
            (false, "log.target") => Self::Log(Origin::Target),
            (false, "log.module_path") => Self::Log(Origin::Module),
            (false, "log.file") => Self::Log(Origin::File),
            (false, "log.line") => Self::Log(Origin::Line),
            _ => KeyId::of(name).map_or(Self::Unnumbered, Self::Attribute),
        }
    }
}

/// One place in the code.
#[derive(Debug)]
pub(super) struct Callsite {
    metadata: &'static Metadata<'static>,
    /// By [`Field::index`].
    roles: Box<[Role]>,
}

/// The fields of one place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fields {
    callsite: Option<&'static Callsite>,
    is_span: bool,
}

impl Fields {
    #[inline]
    pub(super) fn of(metadata: &'static Metadata<'static>) -> Self {
        Self {
            callsite: Callsite::of(metadata),
            is_span: metadata.is_span(),
        }
    }

    /// What this field means.
    #[inline]
    pub(super) fn role(&self, field: &Field) -> Role {
        match self.callsite.and_then(|c| c.roles.get(field.index())) {
            Some(role) => *role,
            None => Role::of(field.name(), self.is_span),
        }
    }
}

impl Callsite {
    /// None: there are too many of them.
    #[inline]
    fn of(metadata: &'static Metadata<'static>) -> Option<&'static Self> {
        let address = std::ptr::from_ref(metadata).addr() as u64;
        // The golden ratio spreads what differs only in a few bits.
        let hash = address.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let at = hash as usize;
        (at..at + PROBES)
            .filter_map(|at| CALLSITES.get(at % CAPACITY))
            .map(|place| place.get_or_init(|| Self::new(metadata)))
            .find(|callsite| std::ptr::eq(callsite.metadata, metadata))
    }

    #[cold]
    fn new(metadata: &'static Metadata<'static>) -> Self {
        let is_span = metadata.is_span();
        let fields = metadata.fields().iter();
        Self {
            metadata,
            roles: fields.map(|f| Role::of(f.name(), is_span)).collect(),
        }
    }
}
