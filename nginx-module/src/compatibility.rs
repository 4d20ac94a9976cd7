//! Whether the library and the nginx that loads it fit each other.
//!
//! nginx's own refusal gives two version numbers or names no reason at all, so what to do about it
//! is said before, while the library is being loaded.

use std::ffi::{CStr, c_char};

use nginx_sys::{NGX_LOG_EMERG, nginx_version, ngx_core_module, ngx_cycle};

use crate::guard::guard;
use crate::ngx_http_omnitrace_module;

/// Runs when the library is loaded, before nginx looks at it.
#[used]
#[unsafe(link_section = ".init_array")]
static CHECK: extern "C" fn() = check;

extern "C" fn check() {
    guard("the load of the library", (), compare);
}

fn compare() {
    let ours = &raw const ngx_http_omnitrace_module;
    let theirs = &raw const ngx_core_module;
    // SAFETY: every nginx has its core module, and the beginning of a module's structure, up to the
    // signature, has been the same since modules can be loaded; nobody changes either meanwhile.
    let (running, signatures) = unsafe {
        let text = |text: *const c_char| (!text.is_null()).then(|| CStr::from_ptr(text));
        let signatures = (text((*ours).signature), text((*theirs).signature));
        ((*theirs).version as u32, signatures)
    };
    // SAFETY: nginx has a cycle with a log before it reads the directive that loads libraries.
    let Some(cycle) = (unsafe { ngx_cycle.as_ref() }) else {
        return;
    };
    let built = nginx_version;
    if running != built {
        crate::log::write(
            NGX_LOG_EMERG,
            cycle.log,
            format_args!(
                "omnitrace: this module is built for nginx {} and this is nginx {}: build it with \
                 \"make module NGINX=/path/to/its/source\"",
                Version(built),
                Version(running)
            ),
        );
    } else if signatures.0 != signatures.1 {
        crate::log::write(
            NGX_LOG_EMERG,
            cycle.log,
            format_args!(
                "omnitrace: this module is built for an nginx {} with other build options: build it \
                 from a source that is configured with the arguments that \"nginx -V\" shows",
                Version(built)
            ),
        );
    }
}

/// nginx's number of a version, as 1.22.1.
struct Version(u32);

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (major, minor, patch) = (self.0 / 1_000_000, self.0 / 1_000 % 1_000, self.0 % 1_000);
        write!(f, "{major}.{minor}.{patch}")
    }
}
