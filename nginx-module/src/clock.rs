//! Time stamps: nanoseconds since 1970, as spans have them.

use nginx_sys::{ngx_cached_time, ngx_http_request_t, ngx_msec_t, ngx_time_t, time_t};
pub(crate) use omnitrace::clock::now;

pub(crate) const NANOS_PER_MILLI: u64 = 1_000_000;
pub(crate) const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// When a request arrived.
///
/// nginx stamps a request with its cached clock, in milliseconds. As long as that
/// clock has not moved on, this is still the event that brought the request, and
/// the exact time is better than the stamp.
pub(crate) fn arrival(request: &ngx_http_request_t) -> u64 {
    // SAFETY: nginx sets the cached time at start and only its own thread, this one, moves it.
    let cached: ngx_time_t = unsafe { *ngx_cached_time };
    let now = now();
    if cached.sec == request.start_sec && cached.msec == request.start_msec {
        now
    } else {
        stamp(request.start_sec, request.start_msec).min(now)
    }
}

fn stamp(seconds: time_t, millis: ngx_msec_t) -> u64 {
    (seconds.max(0) as u64 * 1000 + millis as u64) * NANOS_PER_MILLI
}
