//! `omnitrace_legacy_log off|fallback|always [path]`

use std::ffi::CStr;
use std::path::Path;
use std::ptr;

use nginx_sys::{
    NGX_HTTP_MAIN_CONF_OFFSET, ngx_add_path, ngx_conf_full_name, ngx_path_t, ngx_pcalloc, ngx_str_t,
};
use ngx::core::Status;
use omnitrace::Config;
use omnitrace::config::LegacyLogMode;

use super::main::MainConfig;
use super::{Args, ConfError, Directive, fill};

/// When the legacy log is written, and where.
#[derive(Debug)]
pub(crate) struct LegacyLogConfig {
    mode: LegacyLogMode,
    /// None is what the environment says, or the default.
    directory: Option<String>,
}

impl LegacyLogConfig {
    pub(super) fn configure(&self, core: &mut Config) {
        core.legacy_log = self.mode;
        if let Some(directory) = &self.directory {
            core.legacy_log_directory = directory.into();
        }
    }
}

/// The directive.
pub(super) struct LegacyLog;

impl Directive for LegacyLog {
    const NAME: &'static CStr = c"omnitrace_legacy_log";
    const OFFSET: usize = NGX_HTTP_MAIN_CONF_OFFSET;
    type Conf = MainConfig;

    fn set(conf: &mut MainConfig, args: &Args<'_>) -> Result<(), ConfError> {
        let mode = args.choice(
            1,
            &[
                ("off", LegacyLogMode::Off),
                ("fallback", LegacyLogMode::Fallback),
                ("always", LegacyLogMode::Always),
            ],
        )?;
        if conf.legacy_log.is_some() {
            return Err(ConfError::Duplicate);
        }
        let directory = match args.count() {
            1 => None,
            _ if mode == LegacyLogMode::Off => {
                return Err(args.refuse(2, "a log that is off has no path"));
            }
            _ => Some(directory(args)?),
        };
        fill(&mut conf.legacy_log, LegacyLogConfig { mode, directory })
    }
}

/// The directory, taken from nginx's prefix if it is relative. One that does not exist is made by
/// nginx, for the user that its workers run as; one that exists is left as it is.
fn directory(args: &Args<'_>) -> Result<String, ConfError> {
    args.word(2)?;
    let cf = args.cf();
    let mut name = args.raw(2);
    // SAFETY: nginx's state of the directive at hand.
    let rc = unsafe { ngx_conf_full_name((*cf).cycle, &mut name, 0) };
    if rc != Status::NGX_OK.0 {
        return Err(ConfError::Logged);
    }
    let directory = name.to_string();
    match std::fs::metadata(Path::new(&directory)) {
        Ok(found) if !found.is_dir() => return Err(args.refuse(2, "it is not a directory")),
        Ok(_) => {}
        Err(_) => make_at_start(args, name)?,
    }
    Ok(directory)
}

/// Puts a directory on the list of those that nginx makes when it starts.
fn make_at_start(args: &Args<'_>, name: ngx_str_t) -> Result<(), ConfError> {
    let cf = args.cf();
    // SAFETY: nginx's state of the directive at hand; the path is in the cycle's pool, and
    // ngx_add_path may replace it by an equal one.
    let rc = unsafe {
        let path = ngx_pcalloc((*cf).pool, size_of::<ngx_path_t>()).cast::<ngx_path_t>();
        if path.is_null() {
            return Err(ConfError::Logged);
        }
        (*path).name = name;
        if let Some(file) = (*cf).conf_file.as_ref() {
            (*path).conf_file = file.file.name.data;
            (*path).line = file.line;
        }
        let mut slot = path;
        ngx_add_path(cf, ptr::from_mut(&mut slot))
    };
    if rc == Status::NGX_OK.0 {
        Ok(())
    } else {
        Err(ConfError::Logged)
    }
}
