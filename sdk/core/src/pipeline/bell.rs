//! What the exporter thread sleeps on: a lock and a condition, no descriptor, so
//! that a thread of the host never touches one of ours.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

#[derive(Default)]
pub(super) struct Bell {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    rung: bool,
    /// How many want the thread to be away.
    away: u32,
    /// It has seen that and is leaving or gone.
    has_left: bool,
}

impl Bell {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the exporter thread.
    pub(super) fn ring(&self) {
        self.state().rung = true;
        self.changed.notify_all();
    }

    /// Asks the exporter thread to leave its work behind.
    pub(super) fn send_away(&self) {
        self.state().away += 1;
        self.ring();
    }

    /// Asked by the exporter thread: whether it leaves now.
    pub(super) fn leaves(&self) -> bool {
        let mut state = self.state();
        state.has_left |= state.away > 0;
        state.has_left
    }

    /// Takes a [`Self::send_away`] back. True: nobody wants the thread to be away
    /// any more, and it has left.
    pub(super) fn call_back(&self) -> bool {
        let mut state = self.state();
        state.away = state.away.saturating_sub(1);
        state.away == 0 && std::mem::take(&mut state.has_left)
    }

    /// Whether it has rung since somebody last looked.
    pub(super) fn has_rung(&self) -> bool {
        std::mem::take(&mut self.state().rung)
    }

    /// Sleeps until it rings, at most so long.
    pub(super) fn sleep(&self, longest: Duration) {
        let until = Instant::now() + longest;
        let mut state = self.state();
        while !state.rung {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let woken = self.changed.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
