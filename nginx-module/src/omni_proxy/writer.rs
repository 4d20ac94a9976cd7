//! Our place in nginx's logs: every line of level info or above comes by, whatever a log writes.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

use nginx_sys::{
    NGX_LOG_INFO, ngx_conf_t, ngx_http_core_loc_conf_t, ngx_http_core_module, ngx_log_t,
    ngx_module_t, ngx_palloc, ngx_uint_t, u_char,
};
use ngx::http::HttpModuleConfExt;
use omnitrace::legacy_log::parse_proxy_line;

use crate::request::OutOfMemory;

/// Listens to the log of the location that is being merged, and to the one that lines of no
/// request go to.
pub(crate) fn listen(cf: &ngx_conf_t) -> Result<(), OutOfMemory> {
    // SAFETY: nginx's state while it merges locations; the core module has merged its own by now.
    unsafe {
        let module: *const ngx_module_t = &raw const ngx_http_core_module;
        let location = cf.http_location_conf_unchecked::<ngx_http_core_loc_conf_t>(&*module);
        if let Some(location) = location {
            insert(cf, location.as_ref().error_log)?;
        }
        insert(cf, &raw mut (*cf.cycle).new_log)
    }
}

/// Inserts our writer into a list of logs, once.
///
/// # Safety
/// `head` is NULL or a list of the cycle that is being configured.
unsafe fn insert(cf: &ngx_conf_t, head: *mut ngx_log_t) -> Result<(), OutOfMemory> {
    // SAFETY: by contract; NULL ends a list.
    unsafe {
        let logs = || {
            let first = head.as_ref();
            std::iter::successors(first, |log| log.next.as_ref())
        };
        let is_ours = |log: &ngx_log_t| log.writer.is_some_and(|w| ptr::fn_addr_eq(w, WRITER));
        if head.is_null() || logs().any(is_ours) {
            return Ok(());
        }
        let ours = ngx_palloc(cf.pool, size_of::<ngx_log_t>()).cast::<ngx_log_t>();
        if ours.is_null() {
            return Err(OutOfMemory);
        }
        // All zero is a log without a file.
        let mut log: ngx_log_t = std::mem::zeroed();
        log.log_level = NGX_LOG_INFO as ngx_uint_t;
        log.writer = Some(WRITER);
        // nginx goes through a list until a log does not want the line, so the most talkative
        // ones are first; connections have copies of the first one, whose place is fixed.
        if (*head).log_level < log.log_level {
            log.next = ours;
            ours.write(ptr::replace(head, log));
            return Ok(());
        }
        let mut before = head;
        while (*before)
            .next
            .as_ref()
            .is_some_and(|next| next.log_level >= log.log_level)
        {
            before = (*before).next;
        }
        log.next = (*before).next;
        ours.write(log);
        (*before).next = ours;
    }
    Ok(())
}

const WRITER: unsafe extern "C" fn(*mut ngx_log_t, ngx_uint_t, *mut u_char, usize) = write;

/// Gets every line, on any thread, also in a handler of signals: what is no action is left before
/// anything is touched. It must not log.
unsafe extern "C" fn write(
    _log: *mut ngx_log_t,
    _level: ngx_uint_t,
    line: *mut u_char,
    length: usize,
) {
    // SAFETY: nginx's buffer on its stack, with the line in it.
    let line = unsafe { std::slice::from_raw_parts(line, length) };
    // A panic costs the line; to say so would be another one.
    let _ = catch_unwind(AssertUnwindSafe(|| {
        if let Some(line) = parse_proxy_line(line) {
            super::hear(line);
        }
    }));
}
