//! What the code itself says of a span or an event: its level, its target, its place.

use tracing::Metadata;

use crate::key::Key;
use crate::queue::Limited;
use crate::value::ValueRef;

static LEVEL: Key = Key::new("level");
static TARGET: Key = Key::new("target");
static FILE: Key = Key::new("code.file.path");
static MODULE: Key = Key::new("code.module.name");
static LINE: Key = Key::new("code.line.number");

/// Attributes beside those that are given.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Describe {
    pub(super) level: bool,
    pub(super) target: bool,
    pub(super) location: bool,
}

/// Where it is from.
#[derive(Debug, Default)]
pub(super) struct Origin<'a> {
    pub(super) target: &'a str,
    pub(super) module: Option<&'a str>,
    pub(super) file: Option<&'a str>,
    pub(super) line: Option<i64>,
}

impl<'a> Origin<'a> {
    pub(super) fn of(metadata: &Metadata<'a>) -> Self {
        Self {
            target: metadata.target(),
            module: metadata.module_path(),
            file: metadata.file(),
            line: metadata.line().map(i64::from),
        }
    }
}

impl Describe {
    /// Nothing is to be added.
    pub(super) fn is_nothing(self) -> bool {
        !(self.level || self.target || self.location)
    }

    /// Adds what is asked for, unless a field has that name.
    pub(super) fn add(self, to: &mut Limited, metadata: &Metadata<'_>, origin: &Origin<'_>) {
        let mut add = |asked: bool, key: &Key, value: Option<ValueRef<'_>>| {
            if let Some(value) = value.filter(|_| asked)
                && metadata.fields().field(key.get().text()).is_none()
            {
                to.push(key.get(), value);
            }
        };
        let text = ValueRef::Str;
        add(self.level, &LEVEL, Some(text(metadata.level().as_str())));
        add(self.target, &TARGET, Some(text(origin.target)));
        add(self.location, &FILE, origin.file.map(text));
        add(self.location, &MODULE, origin.module.map(text));
        add(self.location, &LINE, origin.line.map(ValueRef::I64));
    }
}
