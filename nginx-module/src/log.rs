//! Log lines, by nginx's levels. The first argument is a `*mut ngx_log_t`.

macro_rules! error {
    ( $log:expr, $($arg:tt)+ ) => ( log_at!(nginx_sys::NGX_LOG_ERR, $log, $($arg)+) );
}

macro_rules! warn {
    ( $log:expr, $($arg:tt)+ ) => ( log_at!(nginx_sys::NGX_LOG_WARN, $log, $($arg)+) );
}

macro_rules! notice {
    ( $log:expr, $($arg:tt)+ ) => ( log_at!(nginx_sys::NGX_LOG_NOTICE, $log, $($arg)+) );
}

macro_rules! log_at {
    ( $level:expr, $log:expr, $($arg:tt)+ ) => {
        $crate::log::write($level, $log, format_args!($($arg)+))
    };
}

use std::fmt;
use std::mem::MaybeUninit;

use nginx_sys::{ngx_log_t, ngx_uint_t};
use ngx::log::{LOG_BUFFER_SIZE, log_error, write_fmt};

/// Formats and writes one line, if the log's level lets it through.
pub(crate) fn write(level: u32, log: *mut ngx_log_t, line: fmt::Arguments<'_>) {
    // SAFETY: nginx's logs are valid as long as the cycle, connection or conf they come from.
    let wanted = unsafe { log.as_ref() }.is_some_and(|log| log.log_level >= level as ngx_uint_t);
    if wanted {
        let mut buffer = [const { MaybeUninit::uninit() }; LOG_BUFFER_SIZE];
        // SAFETY: as above.
        unsafe { log_error(level as ngx_uint_t, log, 0, write_fmt(&mut buffer, line)) };
    }
}
