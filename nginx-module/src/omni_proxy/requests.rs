//! The requests that a worker has, by what Omni Proxy's lines say of them.

use std::collections::HashMap;
use std::ptr::NonNull;

use omnitrace::id::TraceId;
use omnitrace::legacy_log::MAX_PROXY_ID;

use crate::context::RequestContext;

/// Stands for a request id as Omni Proxy writes it.
pub(super) type Key = u128;

/// The key of an id, whole or cut.
pub(super) fn key(id: &[u8]) -> Key {
    let cut = &id[..id.len().min(MAX_PROXY_ID)];
    TraceId::of_request(&String::from_utf8_lossy(cut)).value()
}

/// A request's context, which lives until it is taken out again.
pub(super) type Live = NonNull<RequestContext<'static>>;

/// The requests of one worker.
#[derive(Default)]
pub(super) struct Requests {
    /// Seldom more than one of an id.
    by_key: HashMap<Key, Vec<(u64, Live)>>,
    /// The one that was found last, and its connection.
    last: Option<(u64, Live)>,
}

impl Requests {
    pub(super) fn insert(&mut self, key: Key, connection: u64, context: Live) {
        self.by_key
            .entry(key)
            .or_default()
            .push((connection, context));
    }

    pub(super) fn remove(&mut self, key: Key, context: Live) {
        self.last.take_if(|(_, last)| *last == context);
        let Some(same) = self.by_key.get_mut(&key) else {
            return;
        };
        same.retain(|(_, other)| *other != context);
        if same.is_empty() {
            self.by_key.remove(&key);
        }
    }

    /// The latest request with this id; of a connection, if one is known.
    pub(super) fn find(&mut self, key: Key, connection: Option<u64>) -> Option<Live> {
        let of_it = |(number, _): &&(u64, Live)| connection.is_none_or(|c| c == *number);
        let found = *self.by_key.get(&key)?.iter().rev().find(of_it)?;
        self.last = connection.map(|_| found);
        Some(found.1)
    }

    /// The request that was found last, if it came over this connection.
    pub(super) fn last(&self, connection: u64) -> Option<Live> {
        self.last
            .filter(|(number, _)| *number == connection)
            .map(|(_, context)| context)
    }
}
