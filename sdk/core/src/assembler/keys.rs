//! Attribute keys: there are few, so each is kept once.

use std::sync::{Arc, LazyLock};

use hashbrown::HashSet;

/// Keys remembered; what comes beyond is kept with each attribute.
const MAX_KEYS: usize = 1_024;

/// Keys that come with the events.
#[derive(Default)]
pub(super) struct Keys(HashSet<Arc<str>>);

impl Keys {
    pub(super) fn get(&mut self, key: &str) -> Arc<str> {
        if let Some(known) = self.0.get(key) {
            return Arc::clone(known);
        }
        let new: Arc<str> = key.into();
        if self.0.len() < MAX_KEYS {
            self.0.insert(Arc::clone(&new));
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
