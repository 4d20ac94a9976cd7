//! Omni Proxy's time stamps: most count from the machine's start, some from 1970.

use std::mem::MaybeUninit;

use nginx_sys::{CLOCK_MONOTONIC, clock_gettime};

use crate::clock;

/// Two readings so close, in nanoseconds, are one moment.
const CLOSE: u64 = 2_000;

/// A stamp as nanoseconds since 1970, by both clocks as they stand now; never later than now.
pub(super) fn to_time(stamp: u64) -> u64 {
    let (boot, now) = clocks();
    let age = if stamp.abs_diff(now) < stamp.abs_diff(boot) {
        now.saturating_sub(stamp)
    } else {
        boot.saturating_sub(stamp)
    };
    now.saturating_sub(age)
}

/// Nanoseconds since the machine's start and since 1970, at one moment. The thread may lose its
/// processor between two readings, so the closest of a few count.
fn clocks() -> (u64, u64) {
    let mut best = (u64::MAX, 0, 0);
    for _ in 0..4 {
        let before = since_boot();
        let now = clock::now();
        let after = since_boot();
        let width = after.saturating_sub(before);
        if width < best.0 {
            best = (width, before + width / 2, now);
        }
        if width < CLOSE {
            break;
        }
    }
    (best.1, best.2)
}

fn since_boot() -> u64 {
    let mut time = MaybeUninit::uninit();
    // SAFETY: room for the answer, which this clock always gives.
    let time = unsafe {
        clock_gettime(CLOCK_MONOTONIC as i32, time.as_mut_ptr());
        time.assume_init()
    };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
