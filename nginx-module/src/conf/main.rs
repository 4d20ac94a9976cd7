//! Settings of the whole `http` block, and the core's configuration made of them.

use std::ffi::CStr;
use std::ptr;

use nginx_sys::{NGX_HTTP_MAIN_CONF_OFFSET, NGX_LOG_WARN, ngx_conf_t, ngx_shm_zone_t};
use ngx::core::Status;
use ngx::http::HttpModuleMainConf;
use ngx::ngx_conf_log_error;
use omnitrace::Config;
use tracing::Level;

use super::exporter::ExporterConfig;
use super::legacy_log::LegacyLogConfig;
use super::{Args, ConfError, Directive, fill};
use crate::HttpOmnitraceModule;
use crate::shared;
use crate::upstream::WrappedUpstreams;

/// Room for what a worker records until its exporter's thread gets the processor: a busy worker
/// fills some 10 MB a second.
const QUEUE_BYTES: usize = 8 << 20;

/// Settings of the `http` block.
#[derive(Default)]
pub(crate) struct MainConfig {
    /// Some location is traced.
    in_use: bool,
    pub(super) exporter: Option<ExporterConfig>,
    service_name: Option<String>,
    resource: Vec<(String, String)>,
    pub(super) legacy_log: Option<LegacyLogConfig>,
    /// What workers start with: made here, because nginx clears their environment. None: nothing
    /// is traced.
    pub(crate) core: Option<Config>,
    /// The workers' books are asked for.
    pub(super) shares: bool,
    /// What the workers share.
    pub(crate) zone: SharedZone,
    /// How upstreams worked before they were wrapped.
    pub(crate) upstreams: WrappedUpstreams,
}

impl MainConfig {
    /// Completes the settings when all directives have been read.
    pub(crate) fn complete(&mut self, cf: &mut ngx_conf_t) -> Result<(), Status> {
        if self.in_use {
            self.complete_core(cf);
        }
        if self.shares || self.core.is_some() {
            self.zone.0 = shared::add(cf)?;
        }
        Ok(())
    }

    fn complete_core(&mut self, cf: &mut ngx_conf_t) {
        let exporter = self.exporter.take().unwrap_or_default();
        let (mut core, warnings) = exporter.configure();
        for warning in warnings.iter().filter(|_| core.log_level >= Level::WARN) {
            ngx_conf_log_error!(NGX_LOG_WARN, &raw mut *cf, "omnitrace: {warning}");
        }
        "proxy".clone_into(&mut core.role);
        core.queue_bytes = QUEUE_BYTES;
        for (key, value) in &self.resource {
            core.set_resource(key, value);
        }
        if let Some(name) = &self.service_name {
            core.service_name.clone_from(name);
        }
        if let Some(legacy_log) = &self.legacy_log {
            legacy_log.configure(&mut core);
        }
        if core.disabled {
            return;
        }
        self.upstreams.wrap(cf);
        self.core = Some(core);
    }
}

/// nginx's shared memory; NULL without one.
pub(crate) struct SharedZone(pub(crate) *mut ngx_shm_zone_t);

impl Default for SharedZone {
    fn default() -> Self {
        Self(ptr::null_mut())
    }
}

/// Notes that a location is traced.
pub(super) fn note_use(args: &Args<'_>, used: bool) -> Result<(), ConfError> {
    // SAFETY: nginx's state of the directive at hand.
    let conf = HttpOmnitraceModule::main_conf_mut(unsafe { &*args.cf() });
    conf.ok_or(ConfError::Logged)?.in_use |= used;
    Ok(())
}

/// `omnitrace_service_name NAME`
pub(super) struct ServiceName;

impl Directive for ServiceName {
    const NAME: &'static CStr = c"omnitrace_service_name";
    const OFFSET: usize = NGX_HTTP_MAIN_CONF_OFFSET;
    type Conf = MainConfig;

    fn set(conf: &mut MainConfig, args: &Args<'_>) -> Result<(), ConfError> {
        fill(&mut conf.service_name, args.word(1)?.to_owned())
    }
}

/// `omnitrace_resource_attr NAME VALUE`
pub(super) struct ResourceAttr;

impl Directive for ResourceAttr {
    const NAME: &'static CStr = c"omnitrace_resource_attr";
    const OFFSET: usize = NGX_HTTP_MAIN_CONF_OFFSET;
    type Conf = MainConfig;

    fn set(conf: &mut MainConfig, args: &Args<'_>) -> Result<(), ConfError> {
        let name = args.word(1)?;
        if conf.resource.iter().any(|(known, _)| known == name) {
            return Err(args.refuse(1, "there is such an attribute already"));
        }
        conf.resource
            .push((name.to_owned(), args.text(2)?.to_owned()));
        Ok(())
    }
}
