//! The log phase: the request is over, and its root span gets what is known of it.

use nginx_sys::{
    NGX_HTTP_CLIENT_CLOSED_REQUEST, NGX_HTTP_VERSION_9, NGX_HTTP_VERSION_10, NGX_HTTP_VERSION_11,
    NGX_HTTP_VERSION_20, ngx_connection_local_sockaddr, ngx_http_core_module,
    ngx_http_core_srv_conf_t, ngx_http_request_t, ngx_inet_get_port, ngx_int_t, ngx_module_t,
};
use ngx::core::Status;
use ngx::http::HttpModuleConfExt;
use omnitrace::ValueRef;

use crate::actions;
use crate::clock;
use crate::conf::location::LocationConfig;
use crate::context::RequestContext;
use crate::guard::guard;
use crate::recorder::{Attributes, Recorder};
use crate::request::{Request, bytes};
use crate::subrequest;
use crate::tokens::Tokens;
use crate::upstream::states;

/// nginx's number for HTTP/3, which older ones do not have.
const HTTP_3: u32 = 3000;

/// Handler of the log phase.
pub(crate) unsafe extern "C" fn handler(request: *mut ngx_http_request_t) -> ngx_int_t {
    guard("the log phase", (), || {
        // SAFETY: nginx calls phase handlers with a live request.
        if let Some(request) = unsafe { Request::from_ptr(request) } {
            finish(request);
        }
    });
    Status::NGX_OK.0
}

fn finish(request: Request<'_>) {
    // Subrequests come here too where log_subrequest is on.
    if !request.is_main() {
        return;
    }
    let Some(recorder) = Recorder::get() else {
        return;
    };
    let conf = LocationConfig::of(request);
    // A request that died before the rewrite phase (400, 413, 414) has no context yet.
    let Some(context) = RequestContext::of_or_new(request, conf) else {
        return;
    };
    if !context.sampled.get() {
        return;
    }
    let now = clock::now();
    for peer in context.peers.take() {
        // SAFETY: it is in the pool of this request, which lives until after this phase.
        unsafe { (*peer).close(now) };
    }
    states::record_rest(context, recorder, now);
    subrequest::record(context, recorder, now);

    let tokens = context.tokens.take();
    let mut attributes = Attributes::default();
    describe(&mut attributes, request, context);
    tokens.describe(&mut attributes, context.arrived);
    let reads_count = !matches!(tokens, Tokens::Searched(_));
    if let Some(omni) = &context.omni {
        omni.finish(context, recorder, request, reads_count, &mut attributes);
    }
    if let Some(name) = conf.span_name().and_then(|name| request.evaluate(name)) {
        // Renames the span, by contract with the core's assembler.
        attributes.text(key!("omnitrace.span.name"), request.text(name));
    }
    for (key, value) in conf.span_attrs() {
        if let Some(value) = request.evaluate(*value) {
            attributes.text(key.as_str().into(), request.text(value));
        }
    }
    let attributes = attributes.as_slice();
    match recorder.known(context) {
        Some(known) if !context.has_begun() => recorder.root(known, context, now, attributes),
        _ => recorder.last_action(context, actions::RECEIVED_ALL_TOKENS, now, attributes),
    }
}

/// The attributes of the HTTP semantic conventions for a SERVER span.
fn describe<'r>(
    attributes: &mut Attributes<'r>,
    request: Request<'r>,
    context: &RequestContext<'r>,
) {
    // SAFETY: these are in the request's buffers or its connection's, which outlive this phase.
    let (target, client, agent) = unsafe {
        (
            bytes(request.unparsed_uri),
            bytes((*request.connection).addr_text),
            request
                .headers_in
                .user_agent
                .as_ref()
                .map(|header| bytes(header.value)),
        )
    };
    attributes.text(key!("http.request.method"), request.method());
    let path = target.split(|b| *b == b'?').next().unwrap_or_default();
    attributes.text(key!("url.path"), request.text(path));
    attributes.text(
        key!("url.scheme"),
        if is_tls(request) { "https" } else { "http" },
    );
    attributes.text(key!("http.route"), request.text(context.route));
    attributes.text(key!("network.protocol.version"), version(&request));
    describe_server(attributes, request);
    attributes.text(key!("client.address"), request.text(client));
    attributes.text(
        key!("user_agent.original"),
        request.text(agent.unwrap_or_default()),
    );

    if is_gone(request) {
        attributes.push(key!("omnitrace.client_closed"), ValueRef::Bool(true));
    }
    attributes.text(key!("omnitrace.cache.status"), cache_status(request));
    describe_status(attributes, request);
}

/// How the answer went.
pub(crate) fn describe_status<'r>(attributes: &mut Attributes<'r>, request: Request<'r>) {
    let status = status(request);
    if status != 0 {
        attributes.integer(key!("http.response.status_code"), status as i64);
    }
    // On a SERVER span 4xx is the caller's error, not ours (HTTP semantic conventions).
    if status >= 500 {
        attributes.text(
            key!("error.type"),
            request.keep(&status.to_string()).unwrap_or_default(),
        );
    }
}

/// 0 if there is none.
fn status(request: Request<'_>) -> usize {
    match request.err_status {
        0 => request.headers_out.status,
        status => status,
    }
}

/// Whether the client left before it had its answer.
fn is_gone(request: Request<'_>) -> bool {
    // SAFETY: a request has its connection.
    let connection = unsafe { &*request.connection };
    status(request) == NGX_HTTP_CLIENT_CLOSED_REQUEST as usize
        || connection.error() != 0
        || connection.timedout() != 0
}

/// Whether the answer came from a cache, in nginx's own words.
#[cfg(ngx_feature = "http_cache")]
pub(crate) fn cache_status(request: Request<'_>) -> &'static str {
    const WORDS: [&str; 8] = [
        "",
        "MISS",
        "BYPASS",
        "EXPIRED",
        "STALE",
        "UPDATING",
        "REVALIDATED",
        "HIT",
    ];
    // SAFETY: an upstream lives as long as its request.
    let status = unsafe { request.upstream.as_ref() }.map_or(0, |u| u.cache_status());
    WORDS.get(status as usize).copied().unwrap_or_default()
}

#[cfg(not(ngx_feature = "http_cache"))]
pub(crate) fn cache_status(_: Request<'_>) -> &'static str {
    ""
}

/// The HTTP version as the semantic conventions write it; nothing for a request line that could not
/// be read.
fn version(request: &ngx_http_request_t) -> &'static str {
    match request.http_version as u32 {
        NGX_HTTP_VERSION_9 => "0.9",
        _ if request.http_protocol.is_empty() => "",
        NGX_HTTP_VERSION_10 => "1.0",
        NGX_HTTP_VERSION_11 => "1.1",
        NGX_HTTP_VERSION_20 => "2",
        HTTP_3 => "3",
        _ => "",
    }
}

/// The host that the client asked for, else the server's first name, and the port it came to.
fn describe_server<'r>(attributes: &mut Attributes<'r>, request: Request<'r>) {
    // SAFETY: the core module's server configuration is always there and outlives requests.
    let configured = unsafe {
        let module: *const ngx_module_t = &raw const ngx_http_core_module;
        request
            .http_server_conf_unchecked::<ngx_http_core_srv_conf_t>(&*module)
            .map(|conf| bytes(conf.as_ref().server_name))
    };
    // SAFETY: in the request's buffers.
    let asked = unsafe { bytes(request.headers_in.server) };
    let name = if asked.is_empty() {
        configured.unwrap_or_default()
    } else {
        asked
    };
    attributes.text(key!("server.address"), request.text(name));

    // SAFETY: the connection is live; nginx looks its own address up and keeps it.
    let port = unsafe {
        let connection = request.connection;
        let rc = ngx_connection_local_sockaddr(connection, std::ptr::null_mut(), 0);
        if rc == Status::NGX_OK.0 {
            ngx_inet_get_port((*connection).local_sockaddr)
        } else {
            0
        }
    };
    if port != 0 {
        attributes.integer(key!("server.port"), port.into());
    }
}

#[cfg(any(ngx_feature = "ssl", ngx_feature = "compat"))]
fn is_tls(request: Request<'_>) -> bool {
    // SAFETY: a request has its connection.
    unsafe { !(*request.connection).ssl.is_null() }
}

#[cfg(not(any(ngx_feature = "ssl", ngx_feature = "compat")))]
fn is_tls(_: Request<'_>) -> bool {
    false
}
