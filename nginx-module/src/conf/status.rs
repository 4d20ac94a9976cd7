//! `omnitrace_status [json|prometheus]`

use std::ffi::CStr;

use nginx_sys::{
    NGX_HTTP_LOC_CONF_OFFSET, ngx_http_core_loc_conf_t, ngx_http_core_module, ngx_module_t,
};
use ngx::http::{HttpModuleConfExt, HttpModuleMainConf};

use super::location::LocationConfig;
use super::{Args, ConfError, Directive, fill};
use crate::HttpOmnitraceModule;
use crate::status::{self, Format};

/// `omnitrace_status [json|prometheus]`
pub(super) struct Status;

impl Directive for Status {
    const NAME: &'static CStr = c"omnitrace_status";
    const OFFSET: usize = NGX_HTTP_LOC_CONF_OFFSET;
    type Conf = LocationConfig;

    fn set(conf: &mut LocationConfig, args: &Args<'_>) -> Result<(), ConfError> {
        let formats = [
            ("json", Some(Format::Json)),
            ("prometheus", Some(Format::Prometheus)),
        ];
        let format = match args.count() {
            0 => None,
            _ => args.choice(1, &formats)?,
        };
        fill(&mut conf.status, format)?;
        // SAFETY: nginx's state of the directive at hand, and the core module's own configuration
        // of the location that it stands in.
        unsafe {
            let cf = &*args.cf();
            let main = HttpOmnitraceModule::main_conf_mut(cf).ok_or(ConfError::Logged)?;
            main.shares = true;
            let module: *const ngx_module_t = &raw const ngx_http_core_module;
            let location = cf.http_location_conf_unchecked::<ngx_http_core_loc_conf_t>(&*module);
            (*location.ok_or(ConfError::Logged)?.as_ptr()).handler = Some(status::handler);
        }
        Ok(())
    }
}
