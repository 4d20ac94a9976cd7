//! Upstream tries: one CLIENT span each.
//!
//! Every upstream block has a function that prepares a request's choice of peers.
//! Wrapping it in all of them (implicit ones of `proxy_pass` included) shows each
//! try when it starts and when it ends, whatever the protocol, the balancer or the
//! location. What is chosen by a variable without any block is read from nginx's
//! own notes at the end ([`states`]).

use std::ptr;

use nginx_sys::{
    ngx_http_request_t, ngx_http_upstream_main_conf_t, ngx_http_upstream_module,
    ngx_http_upstream_srv_conf_t, ngx_int_t, ngx_module_t,
};
use ngx::core::Status;
use ngx::http::{HttpModuleConfExt, HttpModuleMainConf};

use crate::HttpOmnitraceModule;
use crate::guard::guard;
use crate::request::Request;

mod outcome;
pub(crate) mod peer;
pub(crate) mod states;

/// nginx's type of the function that prepares a request's choice of peers.
type InitPeer =
    unsafe extern "C" fn(*mut ngx_http_request_t, *mut ngx_http_upstream_srv_conf_t) -> ngx_int_t;

/// The original functions of the wrapped upstream blocks, by the block's address.
#[derive(Default)]
pub(crate) struct WrappedUpstreams(Vec<(usize, InitPeer)>);

impl WrappedUpstreams {
    /// Wraps all upstream blocks of a configuration that are not wrapped. nginx has initialised
    /// them by then; a module may put its own function there later, as Omni Proxy does.
    pub(crate) fn wrap(&mut self, conf: &impl HttpModuleConfExt) {
        let wrapped = &mut self.0;
        // SAFETY: the upstream module's own main configuration.
        let conf = unsafe {
            let module: *const ngx_module_t = &raw const ngx_http_upstream_module;
            conf.http_main_conf_unchecked::<ngx_http_upstream_main_conf_t>(&*module)
        };
        if let Some(conf) = conf {
            // SAFETY: its array holds pointers to upstream configurations.
            let blocks = unsafe {
                conf.as_ref()
                    .upstreams
                    .as_slice::<*mut ngx_http_upstream_srv_conf_t>()
            };
            for block in blocks {
                // SAFETY: nginx put a valid pointer there.
                let init = unsafe { &mut (**block).peer.init };
                if init.is_some_and(|init| ptr::fn_addr_eq(init, INIT_PEER)) {
                    continue;
                }
                if let Some(original) = init.replace(INIT_PEER) {
                    wrapped.retain(|(known, _)| *known != *block as usize);
                    wrapped.push((*block as usize, original));
                }
            }
        }
        wrapped.sort_unstable_by_key(|(block, _)| *block);
    }

    fn original(&self, block: *mut ngx_http_upstream_srv_conf_t) -> Option<InitPeer> {
        let found = self
            .0
            .binary_search_by_key(&(block as usize), |(block, _)| *block)
            .ok()?;
        Some(self.0[found].1)
    }
}

const INIT_PEER: InitPeer = init_peer;

unsafe extern "C" fn init_peer(
    request: *mut ngx_http_request_t,
    block: *mut ngx_http_upstream_srv_conf_t,
) -> ngx_int_t {
    let original = guard("the choice of an upstream", None, || {
        // SAFETY: nginx calls this with a live request.
        let request = unsafe { &*request };
        HttpOmnitraceModule::main_conf(request)?
            .upstreams
            .original(block)
    });
    let Some(original) = original else {
        return Status::NGX_ERROR.0;
    };
    // SAFETY: the function that nginx would have called, with what it was given.
    let rc = unsafe { original(request, block) };
    if rc == Status::NGX_OK.0 {
        guard("the choice of an upstream", (), || {
            // SAFETY: as above.
            if let Some(request) = unsafe { Request::from_ptr(request) } {
                peer::trace(request);
            }
        });
    }
    rc
}
