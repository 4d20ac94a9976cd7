//! Configuration: the table of directives, and what they have in common.

use std::ffi::{CStr, c_char, c_void};
use std::ptr;

use nginx_sys::{
    NGX_CONF_BLOCK, NGX_CONF_NOARGS, NGX_CONF_TAKE1, NGX_CONF_TAKE2, NGX_CONF_TAKE12,
    NGX_HTTP_LOC_CONF, NGX_HTTP_MAIN_CONF, NGX_HTTP_SRV_CONF, NGX_LOG_EMERG, ngx_command_t,
    ngx_conf_t, ngx_str_t, ngx_uint_t,
};
use ngx::core::{NGX_CONF_ERROR, NGX_CONF_OK};
use ngx::ngx_conf_log_error;

use crate::guard::guard;
use crate::request::bytes;

pub(crate) mod exporter;
pub(crate) mod legacy_log;
pub(crate) mod location;
pub(crate) mod main;
pub(crate) mod omni_proxy;
pub(crate) mod status;

const MAIN: u32 = NGX_HTTP_MAIN_CONF;
const SERVER: u32 = NGX_HTTP_SRV_CONF | NGX_HTTP_LOC_CONF;
const ANYWHERE: u32 = NGX_HTTP_MAIN_CONF | NGX_HTTP_SRV_CONF | NGX_HTTP_LOC_CONF;

/// All directives of the module.
pub(crate) static mut NGX_HTTP_OMNITRACE_COMMANDS: [ngx_command_t; 14] = [
    command::<exporter::Exporter>(MAIN | NGX_CONF_BLOCK | NGX_CONF_NOARGS),
    command::<main::ServiceName>(MAIN | NGX_CONF_TAKE1),
    command::<main::ResourceAttr>(MAIN | NGX_CONF_TAKE2),
    command::<legacy_log::LegacyLog>(MAIN | NGX_CONF_TAKE12),
    command::<location::Omnitrace>(ANYWHERE | NGX_CONF_TAKE1),
    command::<location::Context>(ANYWHERE | NGX_CONF_TAKE1),
    command::<location::SpanName>(ANYWHERE | NGX_CONF_TAKE1),
    command::<location::SpanAttr>(ANYWHERE | NGX_CONF_TAKE2),
    command::<location::RequestId>(ANYWHERE | NGX_CONF_TAKE1),
    command::<location::Tokens>(ANYWHERE | NGX_CONF_TAKE1),
    command::<location::UpstreamRole>(ANYWHERE | NGX_CONF_TAKE1),
    command::<omni_proxy::OmniProxy>(ANYWHERE | NGX_CONF_TAKE1),
    command::<status::Status>(SERVER | NGX_CONF_NOARGS | NGX_CONF_TAKE1),
    ngx_command_t::empty(),
];

/// A directive.
pub(crate) trait Directive {
    /// Its name.
    const NAME: &'static CStr;
    /// Which of the module's configurations it belongs to, in nginx's terms.
    const OFFSET: usize;
    /// That configuration.
    type Conf;

    /// Takes its arguments in.
    fn set(conf: &mut Self::Conf, args: &Args<'_>) -> Result<(), ConfError>;
}

/// Why a directive is refused.
#[derive(Debug)]
pub(crate) enum ConfError {
    /// It stands twice in the same block.
    Duplicate,
    /// For this reason.
    Reason(String),
    /// nginx itself has said why.
    Logged,
}

/// A directive's name and arguments.
pub(crate) struct Args<'c> {
    cf: *mut ngx_conf_t,
    values: &'c [ngx_str_t],
}

impl<'c> Args<'c> {
    /// # Safety
    /// nginx is handling a directive with this configuration state, all through `'c`.
    unsafe fn new(cf: *mut ngx_conf_t) -> Self {
        // SAFETY: by contract; the arguments are in the cycle's pool.
        let values = unsafe { (*cf).args.as_ref().map(|args| args.as_slice()) };
        Self {
            cf,
            values: values.unwrap_or_default(),
        }
    }

    /// nginx's state, for its own functions.
    pub(crate) fn cf(&self) -> *mut ngx_conf_t {
        self.cf
    }

    /// How many arguments there are, without the name.
    pub(crate) fn count(&self) -> usize {
        self.values.len().saturating_sub(1)
    }

    /// An argument as nginx has it; the name is the 0th.
    pub(crate) fn raw(&self, index: usize) -> ngx_str_t {
        self.values.get(index).copied().unwrap_or_default()
    }

    /// An argument as text; the name is the 0th.
    pub(crate) fn text(&self, index: usize) -> Result<&'c str, ConfError> {
        // SAFETY: arguments are in the cycle's pool.
        std::str::from_utf8(unsafe { bytes(self.raw(index)) })
            .map_err(|_| self.refuse(index, "it must be UTF-8 text"))
    }

    /// An argument that must not be empty.
    pub(crate) fn word(&self, index: usize) -> Result<&'c str, ConfError> {
        let text = self.text(index)?;
        if text.is_empty() {
            Err(self.refuse(index, "it must not be empty"))
        } else {
            Ok(text)
        }
    }

    /// An argument that must be one of a few words.
    pub(crate) fn choice<T: Copy>(
        &self,
        index: usize,
        choices: &[(&str, T)],
    ) -> Result<T, ConfError> {
        let text = self.text(index)?;
        if let Some((_, value)) = choices.iter().find(|(word, _)| *word == text) {
            return Ok(*value);
        }
        let words: Vec<_> = choices
            .iter()
            .map(|(word, _)| format!("\"{word}\""))
            .collect();
        let words = match words.split_last() {
            Some((last, [])) => last.clone(),
            Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
            None => String::new(),
        };
        Err(self.refuse(index, &format!("it must be {words}")))
    }

    /// Says what is wrong with an argument, in nginx's manner.
    pub(crate) fn refuse(&self, index: usize, reason: &str) -> ConfError {
        ConfError::Reason(format!(
            "invalid value \"{}\" in \"{}\" directive, {reason}",
            self.raw(index),
            self.raw(0)
        ))
    }
}

/// Fills a setting, once.
pub(crate) fn fill<T>(setting: &mut Option<T>, value: T) -> Result<(), ConfError> {
    if setting.is_some() {
        return Err(ConfError::Duplicate);
    }
    *setting = Some(value);
    Ok(())
}

const fn command<D: Directive>(places: u32) -> ngx_command_t {
    ngx_command_t {
        name: ngx_str_t {
            len: D::NAME.to_bytes().len(),
            data: D::NAME.as_ptr().cast_mut().cast(),
        },
        type_: places as ngx_uint_t,
        set: Some(set::<D>),
        conf: D::OFFSET,
        offset: 0,
        post: ptr::null_mut(),
    }
}

unsafe extern "C" fn set<D: Directive>(
    cf: *mut ngx_conf_t,
    _command: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    guard("a directive", NGX_CONF_ERROR, || {
        // SAFETY: nginx passes its state and, by the command's offset, the directive's own
        // configuration.
        let (args, conf) = unsafe { (Args::new(cf), &mut *conf.cast::<D::Conf>()) };
        answer(cf, D::set(conf, &args))
    })
}

/// nginx's way to say how a directive, or a block, went.
pub(crate) fn answer(cf: *mut ngx_conf_t, result: Result<(), ConfError>) -> *mut c_char {
    match result {
        Ok(()) => NGX_CONF_OK,
        Err(ConfError::Duplicate) => c"is duplicate".as_ptr().cast_mut(),
        Err(ConfError::Logged) => NGX_CONF_ERROR,
        Err(ConfError::Reason(reason)) => {
            ngx_conf_log_error!(NGX_LOG_EMERG, cf, "{reason}");
            NGX_CONF_ERROR
        }
    }
}
