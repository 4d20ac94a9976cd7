//! Work spread over all cores whose results come in order.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::ingest::threads;

/// Results that may wait for an earlier one, for each thread.
const AHEAD: usize = 2;

struct State<T> {
    /// The next piece of work to be begun.
    next: usize,
    /// Results given out.
    taken: usize,
    ready: BTreeMap<usize, T>,
    stopped: bool,
}

/// Does `work` on 0 to `count` and gives `take` the results in this order. `begin` is
/// called once in each thread and makes what it works with. The first error ends it all.
pub(crate) fn ordered<S, T: Send, E: Send>(
    count: usize,
    begin: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, usize) -> Result<T, E> + Sync,
    mut take: impl FnMut(T) -> Result<(), E>,
) -> Result<(), E> {
    let state = Mutex::new(State {
        next: 0,
        taken: 0,
        ready: BTreeMap::new(),
        stopped: false,
    });
    let lock = || state.lock().unwrap_or_else(PoisonError::into_inner);
    let (room, result) = (Condvar::new(), Condvar::new());
    let ahead = threads() * AHEAD;
    let stop = |mut state: MutexGuard<'_, State<Result<T, E>>>| {
        state.stopped = true;
        drop(state);
        room.notify_all();
    };
    std::thread::scope(|scope| {
        for _ in 0..threads().min(count) {
            scope.spawn(|| {
                // A thread that panics must not keep the others waiting.
                let _guard = OnPanic(|| {
                    stop(lock());
                    result.notify_all();
                });
                let mut own = begin();
                loop {
                    let mut state = lock();
                    while !state.stopped && state.next >= state.taken + ahead {
                        state = room.wait(state).unwrap_or_else(PoisonError::into_inner);
                    }
                    if state.stopped || state.next == count {
                        return;
                    }
                    let number = state.next;
                    state.next += 1;
                    drop(state);
                    let done = work(&mut own, number);
                    lock().ready.insert(number, done);
                    result.notify_one();
                }
            });
        }
        for number in 0..count {
            let mut state = lock();
            let done = loop {
                if let Some(done) = state.ready.remove(&number) {
                    break done;
                }
                if state.stopped {
                    // Another thread's panic; leaving the scope passes it on.
                    return Ok(());
                }
                state = result.wait(state).unwrap_or_else(PoisonError::into_inner);
            };
            state.taken += 1;
            drop(state);
            room.notify_all();
            if let Err(error) = done.and_then(&mut take) {
                stop(lock());
                return Err(error);
            }
        }
        Ok(())
    })
}

struct OnPanic<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnPanic<F> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            (self.0)();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_and_the_first_error_ends_the_work() {
        let run = |fails_at: usize| {
            let mut seen = Vec::new();
            let work = |_: &mut (), n: usize| {
                if n == fails_at { Err(n) } else { Ok(n * n) }
            };
            let result = ordered(
                1000,
                || (),
                work,
                |n| {
                    seen.push(n);
                    Ok(())
                },
            );
            (result, seen)
        };
        let squares: Vec<usize> = (0..1000).map(|n| n * n).collect();
        assert_eq!(run(usize::MAX), (Ok(()), squares.clone()));
        assert_eq!(run(123), (Err(123), squares[..123].to_vec()));
        let none = ordered(0, || (), |(), _| Ok::<_, ()>(0), |_| Err(()));
        assert_eq!(none, Ok(()));
    }
}
