//! The ring under every interleaving of its two threads and every value that a load
//! may see, by loom: the same file as the queue's, with loom's atomics. (Loom does not
//! model a load that sees a later store, so it cannot fault the order on `tail`.)

use std::sync::Arc;

use loom::thread;

mod sync {
    pub(crate) use loom::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

    pub(crate) fn zeroed(words: usize) -> Box<[AtomicU64]> {
        (0..words).map(|_| AtomicU64::new(0)).collect()
    }
}

#[allow(dead_code)]
#[path = "../src/queue/ring.rs"]
mod ring;

use ring::Ring;
use sync::{AtomicU64, Ordering};

/// A record of so many words, each of which names it.
fn push(ring: &Ring, name: u64, words: usize) -> bool {
    let write = |room: &[AtomicU64]| {
        let (first, rest) = room.get(..words)?.split_first()?;
        first.store(words as u64 | 1 << 16 | name << 24, Ordering::Relaxed);
        for word in rest {
            word.store(name, Ordering::Relaxed);
        }
        Some(words)
    };
    match write(ring.room()) {
        Some(words) => {
            ring.publish(words);
            true
        }
        None => ring.push_measured(words, write),
    }
}

/// The names of the records that are there, each of which must be whole.
fn drain(ring: &Ring, found: &mut Vec<u64>) {
    ring.drain(&mut Vec::new(), |record| {
        let name = record[0] >> 24;
        assert_eq!(record.len() as u64, record[0] & 0xffff);
        assert!(record[1..].iter().all(|word| *word == name));
        found.push(name);
    });
}

#[test]
fn every_record_arrives_whole_once_and_in_order_or_is_counted() {
    loom::model(|| {
        // Two records fit, the third one has to skip the end.
        let ring = Arc::new(Ring::new(8));
        let producer = Arc::clone(&ring);
        let pushed = thread::spawn(move || {
            let sizes = [(1, 3), (2, 3), (3, 3)];
            let kept = sizes.map(|(name, words)| push(&producer, name, words));
            producer.is_due();
            kept
        });
        let mut found = Vec::new();
        drain(&ring, &mut found);
        drain(&ring, &mut found);
        let pushed = pushed.join().unwrap();
        drain(&ring, &mut found);
        let expected: Vec<u64> = (1..=3)
            .zip(pushed)
            .filter_map(|(name, kept)| kept.then_some(name))
            .collect();
        assert_eq!(found, expected);
        assert_eq!(ring.lost(), 3 - found.len() as u64);
        assert!(ring.is_empty());
    });
}
