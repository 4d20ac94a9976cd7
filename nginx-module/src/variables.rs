//! `$omnitrace_trace_id`, `$omnitrace_span_id`, `$omnitrace_parent_id`, `$omnitrace_sampled`

use nginx_sys::{
    NGX_HTTP_VAR_NOCACHEABLE, ngx_conf_t, ngx_http_add_variable, ngx_http_request_t, ngx_int_t,
    ngx_str_t, ngx_uint_t, ngx_variable_value_t,
};
use ngx::core::Status;
use ngx::ngx_string;

use crate::actions;
use crate::conf::location::LocationConfig;
use crate::context::RequestContext;
use crate::guard::guard;
use crate::recorder::Recorder;
use crate::request::Request;

/// The value of a variable for a request; None is "not found", which nginx shows as nothing.
type Value = fn(&RequestContext, &Recorder) -> Option<String>;

const VARIABLES: [(ngx_str_t, Value); 4] = [
    (ngx_string!("omnitrace_trace_id"), |context, _| {
        Some(context.trace_id.to_string())
    }),
    (ngx_string!("omnitrace_span_id"), |context, recorder| {
        Some(recorder.span_id(context, actions::ROOT, 0).to_string())
    }),
    (ngx_string!("omnitrace_parent_id"), |context, _| {
        context.remote_span().map(|span| span.to_string())
    }),
    (ngx_string!("omnitrace_sampled"), |context, _| {
        Some(if context.sampled.get() { "1" } else { "0" }.to_owned())
    }),
];

/// Makes the variables known to nginx.
pub(crate) fn add(cf: *mut ngx_conf_t) -> Result<(), Status> {
    for (index, (name, _)) in VARIABLES.iter().enumerate() {
        let mut name = *name;
        // `omnitrace` itself may change whether a request is sampled.
        let flags = NGX_HTTP_VAR_NOCACHEABLE as ngx_uint_t;
        // SAFETY: nginx's state while it reads its configuration.
        let variable = unsafe { ngx_http_add_variable(cf, &mut name, flags).as_mut() };
        let variable = variable.ok_or(Status::NGX_ERROR)?;
        variable.get_handler = Some(get);
        variable.data = index;
    }
    Ok(())
}

unsafe extern "C" fn get(
    request: *mut ngx_http_request_t,
    value: *mut ngx_variable_value_t,
    index: usize,
) -> ngx_int_t {
    let text = guard("a variable", None, || {
        // SAFETY: nginx evaluates variables of live requests.
        let request = unsafe { Request::from_ptr(request) }?;
        let context = RequestContext::of_or_new(request, LocationConfig::of(request))?;
        let (_, value) = VARIABLES.get(index)?;
        request
            .copy(value(context, Recorder::get()?)?.as_bytes())
            .ok()
    });
    // SAFETY: nginx's own room for the value.
    let value = unsafe { &mut *value };
    match text {
        Some(text) => {
            value.set_len(text.len as u32);
            value.data = text.data;
            value.set_valid(1);
            value.set_no_cacheable(1);
            value.set_not_found(0);
        }
        None => value.set_not_found(1),
    }
    Status::NGX_OK.0
}
