//! The life of a worker: its exporter starts with it and ends with it.

use std::ffi::CString;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;
use std::time::Duration;

use nginx_sys::{
    NGX_PROCESS_SINGLE, NGX_PROCESS_WORKER, SIG_SETMASK, SIGBUS, SIGFPE, SIGILL, SIGSEGV, W_OK,
    X_OK, access, ngx_cycle, ngx_cycle_t, ngx_int_t, ngx_process, pthread_sigmask, sigdelset,
    sigfillset, sigset_t,
};
use ngx::core::Status;
use ngx::http::HttpModuleMainConf;
use omnitrace::Stats;
use omnitrace::config::LegacyLogMode;
use tracing::Level;

use crate::HttpOmnitraceModule;
use crate::books::OwnBooks;
use crate::guard::guard;
use crate::omni_proxy;
use crate::recorder::Recorder;
use crate::shared::Zone;

/// Longest time for the last spans. After SIGTERM nginx's master waits some 3 s before it kills.
const EXIT_LIMIT: Duration = Duration::from_secs(2);

/// Starts the exporter of a worker.
pub(crate) unsafe extern "C" fn init(cycle: *mut ngx_cycle_t) -> ngx_int_t {
    guard("the start of a worker", (), || {
        // SAFETY: nginx calls this with its current cycle.
        if let Some(cycle) = unsafe { cycle.as_ref() } {
            start(cycle);
        }
    });
    Status::NGX_OK.0
}

/// Ends the exporter of a worker and says what became of its spans.
pub(crate) unsafe extern "C" fn exit(cycle: *mut ngx_cycle_t) {
    guard("the end of a worker", (), || {
        omni_proxy::stop();
        if let (Some(stats), Some(cycle)) = (
            Recorder::stop(EXIT_LIMIT),
            // SAFETY: nginx calls this with its current cycle.
            unsafe { cycle.as_ref() },
        ) {
            notice!(
                cycle.log,
                "omnitrace: created={} exported={} logged={} dropped={} in flight={}, events lost={}",
                stats.created,
                stats.exported,
                stats.logged,
                stats.dropped_total(),
                stats.in_flight,
                stats.events_lost
            );
        }
    });
}

fn start(cycle: &ngx_cycle_t) {
    // The cache manager and loader come here too.
    // SAFETY: set before any worker starts.
    let process = unsafe { ngx_process };
    if ![NGX_PROCESS_SINGLE, NGX_PROCESS_WORKER]
        .iter()
        .any(|kind| *kind as usize == process)
    {
        return;
    }
    let Some(conf) = HttpOmnitraceModule::main_conf(cycle) else {
        return;
    };
    let Some(core) = &conf.core else { return };
    omnitrace::diagnostics::route(log);
    if core.legacy_log != LegacyLogMode::Off
        && let Err(error) = check_writable(&core.legacy_log_directory)
    {
        let directory = core.legacy_log_directory.display();
        warn!(
            cycle.log,
            "omnitrace: the legacy log cannot be written to {directory}: {error}"
        );
    }
    let zone = Zone::of(cycle);
    let books = zone.and_then(OwnBooks::open);
    if books.is_none() {
        warn!(
            cycle.log,
            "omnitrace: there are too many workers: this one is not in omnitrace_status"
        );
    }
    let started = with_signals_blocked(|| Recorder::start(core.clone(), books.clone()));
    if let Err(error) = started {
        error!(cycle.log, "omnitrace: {error}; this worker traces nothing");
        if let Some(books) = books {
            books.close(&Stats::default());
        }
        return;
    }
    omni_proxy::start(zone.map(Zone::mailbox));
    // Modules that are initialised between the configuration and the workers have their own.
    if let Some(conf) = HttpOmnitraceModule::main_conf_mut(cycle) {
        conf.upstreams.wrap(cycle);
    }
}

/// Runs `body` so that threads it starts leave nginx's signals to nginx, as its own thread pools
/// do.
fn with_signals_blocked<T>(body: impl FnOnce() -> T) -> T {
    let mut blocked = MaybeUninit::<sigset_t>::uninit();
    let mut before = MaybeUninit::<sigset_t>::uninit();
    // SAFETY: each set is filled before it is read; SIG_SETMASK with the old set restores it.
    unsafe {
        sigfillset(blocked.as_mut_ptr());
        for fault in [SIGILL, SIGFPE, SIGSEGV, SIGBUS] {
            sigdelset(blocked.as_mut_ptr(), fault as i32);
        }
        pthread_sigmask(SIG_SETMASK as i32, blocked.as_ptr(), before.as_mut_ptr());
        let result = body();
        pthread_sigmask(SIG_SETMASK as i32, before.as_ptr(), ptr::null_mut());
        result
    }
}

/// Writes a message of the core's to the error log. It comes on the exporter's thread too.
fn log(level: Level, message: &str) {
    // SAFETY: nginx always has a current cycle, and in a worker it is always the same; at the
    // worker's end nginx puts one in its place that is static.
    let log = unsafe { (*ptr::addr_of!(ngx_cycle).read_volatile()).log };
    match level {
        Level::ERROR => error!(log, "omnitrace: {message}"),
        Level::WARN => warn!(log, "omnitrace: {message}"),
        _ => notice!(log, "omnitrace: {message}"),
    }
}

/// Whether files can be made in a directory, or the directory itself where there is none yet. Asked
/// at the start: the first span that needs it may come weeks later.
fn check_writable(directory: &Path) -> std::io::Result<()> {
    let existing = directory.ancestors().find(|path| path.exists());
    let path = CString::new(existing.unwrap_or(directory).as_os_str().as_bytes())?;
    // SAFETY: a string that ends with NUL.
    match unsafe { access(path.as_ptr(), (W_OK | X_OK) as i32) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}
