//! `omnitrace_omni_proxy on|off`

use std::ffi::CStr;

use nginx_sys::{NGX_HTTP_LOC_CONF_OFFSET, ngx_conf_t};

use super::location::LocationConfig;
use super::{Args, ConfError, Directive, fill};
use crate::omni_proxy::writer;

/// `omnitrace_omni_proxy on|off`
pub(super) struct OmniProxy;

impl Directive for OmniProxy {
    const NAME: &'static CStr = c"omnitrace_omni_proxy";
    const OFFSET: usize = NGX_HTTP_LOC_CONF_OFFSET;
    type Conf = LocationConfig;

    fn set(conf: &mut LocationConfig, args: &Args<'_>) -> Result<(), ConfError> {
        fill(
            &mut conf.omni_proxy,
            args.choice(1, &[("on", true), ("off", false)])?,
        )
    }
}

/// Completes a location that reads Omni Proxy's lines, when its settings are merged.
pub(crate) fn complete(cf: &ngx_conf_t, conf: &LocationConfig) -> Result<(), ConfError> {
    if !conf.omni_proxy() {
        return Ok(());
    }
    if !conf.request_id() {
        return Err(ConfError::Reason(
            "\"omnitrace_omni_proxy on\" joins lines and requests by their ids, \
             \"omnitrace_request_id\" cannot be \"off\" there"
                .to_owned(),
        ));
    }
    writer::listen(cf).map_err(|_| ConfError::Logged)
}
