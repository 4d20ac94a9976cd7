//! Signals that end the command: they do so as they would end any other, but leave no half
//! of a file behind.

use std::io;

use omnitrace_offline::convert;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};
use signal_hook::low_level::emulate_default_handler;

/// Watches until it is dropped.
pub(crate) struct Watch(Handle);

impl Watch {
    pub(crate) fn begin() -> io::Result<Self> {
        let ignored = ignored();
        // What a shell has told us to ignore, as of a job in the background, stays so.
        let is_watched = |signal: &i32| ignored & (1 << (signal - 1)) == 0;
        let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM].iter().filter(|s| is_watched(s)))?;
        let handle = signals.handle();
        std::thread::Builder::new()
            .name("omnitrace-signals".into())
            .spawn(move || {
                for signal in signals.forever() {
                    convert::remove_unfinished();
                    // It ends the process, whose status tells the signal.
                    let _ = emulate_default_handler(signal);
                }
            })?;
        Ok(Self(handle))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// The signals that this process was started to ignore, as bits; none where the system does
/// not tell.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or_default()
}
