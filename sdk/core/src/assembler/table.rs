//! The requests under way: by id, by slot, and by how long they have been idle.

use std::hash::BuildHasher;
use std::sync::Arc;

use hashbrown::{DefaultHashBuilder, HashTable};

use crate::id::canonical_request_id;

use super::MAX_SPARE;
use super::request::Request;

/// Stands for no slot at the ends of the order.
const NONE: u32 = u32::MAX;

/// Place of a request for as long as it is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SlotId(u32);

pub(super) struct Table {
    slots: Vec<Slot>,
    free: Vec<SlotId>,
    index: HashTable<Key>,
    hashes: DefaultHashBuilder,
    /// The id asked for last, as it came: a request's events often come in a row.
    last_id: String,
    last_slot: Option<SlotId>,
    oldest: u32,
    newest: u32,
    // Boxed as in the slots: they go from one to the other.
    #[allow(clippy::vec_box)]
    spare: Vec<Box<Request>>,
}

/// Slots in use form a list in the order in which they were last used.
struct Slot {
    request: Option<Box<Request>>,
    used: u64,
    older: u32,
    newer: u32,
}

/// One of a request's ids.
struct Key {
    hash: u64,
    slot: SlotId,
    /// Which one, see [`Request::key`].
    number: u32,
}

impl Table {
    pub(super) fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            index: HashTable::new(),
            hashes: DefaultHashBuilder::default(),
            last_id: String::new(),
            last_slot: None,
            oldest: NONE,
            newest: NONE,
            spare: Vec::new(),
        }
    }

    /// Requests under way.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn get(&self, slot: SlotId) -> Option<&Request> {
        self.slots[slot.0 as usize].request.as_deref()
    }

    pub(super) fn get_mut(&mut self, slot: SlotId) -> Option<&mut Request> {
        self.slots[slot.0 as usize].request.as_deref_mut()
    }

    /// The request with this id, in any form.
    pub(super) fn find(&self, id: &str) -> Option<SlotId> {
        if self.last_id == id && self.last_slot.is_some() {
            return self.last_slot;
        }
        let canonical = canonical_request_id(id);
        self.find_hashed(self.hashes.hash_one(canonical), canonical)
    }

    /// The same, and remembers the answer.
    pub(super) fn look_up(&mut self, id: &str) -> Option<SlotId> {
        let slot = self.find(id)?;
        self.remember(id, slot);
        Some(slot)
    }

    fn find_hashed(&self, hash: u64, canonical: &str) -> Option<SlotId> {
        let same = |key: &Key| {
            let request = || self.get(key.slot);
            key.hash == hash && request().is_some_and(|r| r.key(key.number) == Some(canonical))
        };
        self.index.find(hash, same).map(|key| key.slot)
    }

    fn remember(&mut self, id: &str, slot: SlotId) {
        if self.last_slot != Some(slot) || self.last_id != id {
            self.last_id.clear();
            self.last_id.push_str(id);
            self.last_slot = Some(slot);
        }
    }

    /// The request with this id, in any form, made where there is none.
    pub(super) fn enter(&mut self, id: &str, now: u64) -> SlotId {
        if self.last_id == id
            && let Some(slot) = self.last_slot
        {
            return slot;
        }
        let canonical = canonical_request_id(id);
        let hash = self.hashes.hash_one(canonical);
        let slot = match self.find_hashed(hash, canonical) {
            Some(slot) => slot,
            None => {
                let slot = self.add(canonical, now);
                self.insert(hash, slot, 0);
                slot
            }
        };
        self.remember(id, slot);
        slot
    }

    /// Gives a request another id, unless that is taken.
    pub(super) fn alias(&mut self, id: &str, slot: SlotId) {
        let canonical = canonical_request_id(id);
        let hash = self.hashes.hash_one(canonical);
        if self.find_hashed(hash, canonical).is_none()
            && let Some(request) = self.get_mut(slot)
        {
            let number = request.add_key(canonical);
            self.insert(hash, slot, number);
        }
    }

    fn insert(&mut self, hash: u64, slot: SlotId, number: u32) {
        let key = Key { hash, slot, number };
        self.index.insert_unique(hash, key, |key| key.hash);
    }

    fn add(&mut self, canonical: &str, now: u64) -> SlotId {
        let request = match self.spare.pop() {
            Some(mut request) => {
                request.id = Arc::from(canonical);
                request
            }
            None => Box::new(Request::new(canonical)),
        };
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                request: None,
                used: 0,
                older: NONE,
                newer: NONE,
            });
            SlotId(self.slots.len() as u32 - 1)
        });
        self.slots[slot.0 as usize].request = Some(request);
        self.append(slot.0, now);
        slot
    }

    /// Takes a request out; its slot is another's from now on.
    pub(super) fn remove(&mut self, slot: SlotId) -> Option<Box<Request>> {
        let request = self.slots[slot.0 as usize].request.take()?;
        for (number, key) in request.keys() {
            let hash = self.hashes.hash_one(key);
            let same = |key: &Key| (key.slot, key.number) == (slot, number);
            if let Ok(entry) = self.index.find_entry(hash, same) {
                entry.remove();
            }
        }
        self.unlink(slot.0);
        self.free.push(slot);
        self.last_slot = None;
        Some(request)
    }

    /// Keeps the memory of a closed request for another one.
    pub(super) fn recycle(&mut self, mut request: Box<Request>) {
        if self.spare.len() < MAX_SPARE {
            request.clear();
            self.spare.push(request);
        }
    }

    /// Gives half of the memory back that closed requests have left.
    pub(super) fn release(&mut self) {
        self.spare.truncate(self.spare.len() / 2);
    }

    /// Notes that a request was used now; time does not go backwards.
    pub(super) fn touch(&mut self, slot: SlotId, now: u64) {
        if self.slots[slot.0 as usize].used != now {
            self.unlink(slot.0);
            self.append(slot.0, now);
        }
    }

    /// All slots there are, in use or not.
    pub(super) fn slots(&self) -> impl Iterator<Item = SlotId> + use<> {
        (0..self.slots.len() as u32).map(SlotId)
    }

    /// The request that has been idle for longest.
    pub(super) fn oldest(&self) -> Option<SlotId> {
        Some(SlotId(self.oldest)).filter(|slot| slot.0 != NONE)
    }

    /// The one that was used next after this one.
    pub(super) fn newer(&self, slot: SlotId) -> Option<SlotId> {
        Some(SlotId(self.slots[slot.0 as usize].newer)).filter(|slot| slot.0 != NONE)
    }

    /// When a request was last used.
    pub(super) fn used(&self, slot: SlotId) -> u64 {
        self.slots[slot.0 as usize].used
    }

    fn append(&mut self, slot: u32, now: u64) {
        let older = std::mem::replace(&mut self.newest, slot);
        let this = &mut self.slots[slot as usize];
        (this.used, this.older, this.newer) = (now, older, NONE);
        match self.slots.get_mut(older as usize) {
            Some(older) => older.newer = slot,
            None => self.oldest = slot,
        }
    }

    fn unlink(&mut self, slot: u32) {
        let Slot { older, newer, .. } = self.slots[slot as usize];
        match self.slots.get_mut(older as usize) {
            Some(older) => older.newer = newer,
            None => self.oldest = newer,
        }
        match self.slots.get_mut(newer as usize) {
            Some(newer) => newer.older = older,
            None => self.newest = older,
        }
    }
}
