//! omnitrace for nginx: the root span of every request, and a CLIENT span for every upstream try.
//!
//! ```text
//!  rewrite ─► preaccess ─► upstream tries ─► filters ─► log     (rewrite, announce, upstream, tokens, finish)
//!     └───────────────── RequestContext ─────────────────┘       (context)
//!                               │ actions
//!                               ▼
//!                      Recorder ─► the core crate                (recorder, process)
//!                               ▲
//!  Omni Proxy's log lines ──────┘                                 (omni_proxy)
//! ```

#![allow(unsafe_code)]

use std::ffi::{c_char, c_void};
use std::ptr;

use nginx_sys::{
    NGX_HTTP_MODULE, ngx_array_push, ngx_conf_t, ngx_http_core_main_conf_t, ngx_http_core_module,
    ngx_http_handler_pt, ngx_http_module_t, ngx_http_phases_NGX_HTTP_LOG_PHASE,
    ngx_http_phases_NGX_HTTP_PREACCESS_PHASE, ngx_http_phases_NGX_HTTP_REWRITE_PHASE, ngx_int_t,
    ngx_module_t, ngx_uint_t,
};
use ngx::core::{NGX_CONF_ERROR, Status};
use ngx::http::{HttpModule, HttpModuleConfExt, HttpModuleLocationConf, HttpModuleMainConf, Merge};

use crate::conf::NGX_HTTP_OMNITRACE_COMMANDS;
use crate::conf::location::LocationConfig;
use crate::conf::main::MainConfig;
use crate::guard::guard;

#[macro_use]
mod log;
#[macro_use]
mod recorder;

mod actions;
mod announce;
mod books;
mod clock;
mod compatibility;
mod conf;
mod context;
mod finish;
mod guard;
mod headers;
mod live;
mod omni_proxy;
mod process;
mod request;
mod request_id;
mod rewrite;
mod shared;
mod status;
mod subrequest;
mod tokens;
mod upstream;
mod variables;

struct HttpOmnitraceModule;

static NGX_HTTP_OMNITRACE_MODULE_CTX: ngx_http_module_t = ngx_http_module_t {
    preconfiguration: Some(HttpOmnitraceModule::preconfiguration),
    postconfiguration: Some(HttpOmnitraceModule::postconfiguration),
    create_main_conf: Some(HttpOmnitraceModule::create_main_conf),
    init_main_conf: None,
    create_srv_conf: None,
    merge_srv_conf: None,
    create_loc_conf: Some(HttpOmnitraceModule::create_loc_conf),
    merge_loc_conf: Some(HttpOmnitraceModule::merge_loc_conf),
};

/// The tables by which nginx finds the module in the library.
mod exports {
    use super::ngx_http_omnitrace_module;

    ngx::ngx_modules!(ngx_http_omnitrace_module);
}

#[used]
#[allow(non_upper_case_globals)]
pub(crate) static mut ngx_http_omnitrace_module: ngx_module_t = ngx_module_t {
    ctx: (&raw const NGX_HTTP_OMNITRACE_MODULE_CTX).cast_mut().cast(),
    commands: (&raw mut NGX_HTTP_OMNITRACE_COMMANDS).cast(),
    type_: NGX_HTTP_MODULE as ngx_uint_t,
    init_process: Some(process::init),
    exit_process: Some(process::exit),
    ..ngx_module_t::default()
};

// SAFETY: `create_main_conf` makes this type.
unsafe impl HttpModuleMainConf for HttpOmnitraceModule {
    type MainConf = MainConfig;
}

// SAFETY: `create_loc_conf` makes this type.
unsafe impl HttpModuleLocationConf for HttpOmnitraceModule {
    type LocationConf = LocationConfig;
}

impl HttpModule for HttpOmnitraceModule {
    fn module() -> &'static ngx_module_t {
        let module = &raw const ngx_http_omnitrace_module;
        // SAFETY: nginx writes it only while it loads modules and reads its configuration.
        unsafe { &*module }
    }

    unsafe extern "C" fn preconfiguration(cf: *mut ngx_conf_t) -> ngx_int_t {
        guard("the configuration", Err(Status::NGX_ERROR), || {
            variables::add(cf)
        })
        .map_or_else(ngx_int_t::from, |()| Status::NGX_OK.0)
    }

    unsafe extern "C" fn postconfiguration(cf: *mut ngx_conf_t) -> ngx_int_t {
        guard("the configuration", Err(Status::NGX_ERROR), || {
            // SAFETY: nginx's state while it reads its configuration.
            complete(unsafe { &mut *cf })
        })
        .map_or_else(ngx_int_t::from, |()| Status::NGX_OK.0)
    }

    unsafe extern "C" fn merge_loc_conf(
        cf: *mut ngx_conf_t,
        outer: *mut c_void,
        conf: *mut c_void,
    ) -> *mut c_char {
        guard("the configuration", NGX_CONF_ERROR, || {
            // SAFETY: nginx's state while it merges two configurations of this module.
            let (state, outer, conf) = unsafe {
                (
                    &*cf,
                    &*outer.cast::<LocationConfig>(),
                    &mut *conf.cast::<LocationConfig>(),
                )
            };
            if conf.merge(outer).is_err() {
                return NGX_CONF_ERROR;
            }
            conf::answer(cf, conf::omni_proxy::complete(state, conf))
        })
    }
}

/// Hooks the module in, if any location is traced.
fn complete(cf: &mut ngx_conf_t) -> Result<(), Status> {
    let conf = HttpOmnitraceModule::main_conf_mut(cf).ok_or(Status::NGX_ERROR)?;
    conf.complete(cf)?;
    if conf.core.is_none() {
        return Ok(());
    }
    add_handler(cf, ngx_http_phases_NGX_HTTP_REWRITE_PHASE, rewrite::handler)?;
    add_handler(
        cf,
        ngx_http_phases_NGX_HTTP_PREACCESS_PHASE,
        announce::handler,
    )?;
    add_handler(cf, ngx_http_phases_NGX_HTTP_LOG_PHASE, finish::handler)?;
    tokens::insert_filters();
    Ok(())
}

type Handler = unsafe extern "C" fn(*mut nginx_sys::ngx_http_request_t) -> ngx_int_t;

fn add_handler(cf: &ngx_conf_t, phase: u32, handler: Handler) -> Result<(), Status> {
    // SAFETY: the core module's own main configuration, with an array of handlers for each phase.
    let slot = unsafe {
        let module: *const ngx_module_t = &raw const ngx_http_core_module;
        let conf = cf.http_main_conf_unchecked::<ngx_http_core_main_conf_t>(&*module);
        let conf = conf.ok_or(Status::NGX_ERROR)?.as_ptr();
        ngx_array_push(&raw mut (*conf).phases[phase as usize].handlers)
    };
    if slot.is_null() {
        return Err(Status::NGX_ERROR);
    }
    // SAFETY: the pushed slot is room for one handler.
    unsafe { ptr::write(slot.cast::<ngx_http_handler_pt>(), Some(handler)) };
    Ok(())
}
