//! Attribute keys: there are few, so each is kept once. And texts of values, which often come again
//! with the next request.

use std::sync::{Arc, LazyLock};

use hashbrown::HashSet;
use xxhash_rust::xxh3::xxh3_64;

use crate::key::KeyRef;
use crate::value::{Value, ValueRef};

/// Keys remembered; what comes beyond is kept with each attribute.
const MAX_KEYS: usize = 1_024;

/// Longest text of a value that is remembered.
const MAX_TEXT: usize = 64;
/// Texts of values remembered, each in the one place that its hash names.
const TEXTS: usize = 512;

/// Keys that come with the events.
#[derive(Default)]
pub(super) struct Keys {
    by_text: HashSet<Arc<str>>,
    /// Those that have a number in this process, by that.
    by_number: Vec<Option<Arc<str>>>,
    texts: Vec<Option<Arc<str>>>,
}

impl Keys {
    pub(super) fn get(&mut self, key: KeyRef<'_>) -> Arc<str> {
        let KeyRef::Known(id) = key else {
            return self.of_text(key.text());
        };
        let at = usize::from(id.number());
        if let Some(Some(known)) = self.by_number.get(at) {
            return Arc::clone(known);
        }
        let text = self.of_text(id.text());
        if self.by_number.len() <= at {
            self.by_number.resize(at + 1, None);
        }
        self.by_number[at] = Some(Arc::clone(&text));
        text
    }

    /// The value, owned; the text of the last such one is not copied again.
    pub(super) fn value(&mut self, value: ValueRef<'_>) -> Value {
        let ValueRef::Str(text) = value else {
            return value.to_value();
        };
        if text.len() > MAX_TEXT {
            return value.to_value();
        }
        if self.texts.is_empty() {
            self.texts.resize(TEXTS, None);
        }
        let place = &mut self.texts[xxh3_64(text.as_bytes()) as usize % TEXTS];
        match place {
            Some(known) if **known == *text => Value::Str(Arc::clone(known)),
            _ => {
                let new: Arc<str> = text.into();
                *place = Some(Arc::clone(&new));
                Value::Str(new)
            }
        }
    }

    fn of_text(&mut self, key: &str) -> Arc<str> {
        if let Some(known) = self.by_text.get(key) {
            return Arc::clone(known);
        }
        let new: Arc<str> = key.into();
        if self.by_text.len() < MAX_KEYS {
            self.by_text.insert(Arc::clone(&new));
        }
        new
    }
}

/// Keys that the assembler adds itself.
pub(super) struct Own {
    pub(super) request_id: Arc<str>,
    pub(super) role: Arc<str>,
    pub(super) occurrence: Arc<str>,
    pub(super) incomplete: Arc<str>,
}

pub(super) static OWN: LazyLock<Own> = LazyLock::new(|| Own {
    request_id: "gen_ai.request.id".into(),
    role: "omnitrace.role".into(),
    occurrence: "omnitrace.occurrence".into(),
    incomplete: "omnitrace.incomplete".into(),
});
