//! The wall between C and Rust: a panic stops here.

use std::panic::{AssertUnwindSafe, catch_unwind};

use ngx::log::ngx_cycle_log;

/// Runs what an entry from C has to do. A panic costs the trace, never the
/// request: it is logged and nginx gets `fallback`.
#[inline]
pub(crate) fn guard<T>(entry: &str, fallback: T, body: impl FnOnce() -> T) -> T {
    // After a panic only the trace of this request can be incomplete: what the body changes in
    // nginx's own structures is written in single steps.
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(value) => value,
        Err(_) => {
            error!(
                ngx_cycle_log().as_ptr(),
                "omnitrace: internal error in {entry}, please report it"
            );
            fallback
        }
    }
}
