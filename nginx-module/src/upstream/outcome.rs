//! Where an upstream try went and how it ended, as attributes of its span.

use nginx_sys::{ngx_http_upstream_t, ngx_msec_t, ngx_peer_connection_t};
use omnitrace::ValueRef;

use crate::recorder::Attributes;
use crate::request::Request;

/// nginx's mark for a time that never came.
const NEVER: ngx_msec_t = ngx_msec_t::MAX;

/// The address nginx gives a peer: `127.0.0.1:80`, `[::1]:80` or `unix:/run/app.sock`.
pub(super) fn describe_address<'r>(attributes: &mut Attributes<'r>, name: &'r str) {
    if let Some(path) = name.strip_prefix("unix:") {
        attributes.text(key!("server.address"), path);
        return;
    }
    let (host, port) = match name.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => (host, port.parse().ok()),
        _ => (name, None),
    };
    attributes.text(
        key!("server.address"),
        host.trim_start_matches('[').trim_end_matches(']'),
    );
    if let Some(port) = port {
        attributes.integer(key!("server.port"), port);
    }
}

/// What is known when nginx lets go of a peer. `failed` is nginx's own word for it.
pub(super) fn describe<'r>(
    attributes: &mut Attributes<'r>,
    request: Request<'r>,
    upstream: &ngx_http_upstream_t,
    peer: &ngx_peer_connection_t,
    failed: bool,
) {
    // SAFETY: nginx keeps the state of the current try in the request's pool.
    let Some(state) = (unsafe { upstream.state.as_ref() }) else {
        return;
    };
    let status = state.status as i64;
    describe_status(
        attributes,
        request,
        status,
        error(request, upstream, peer, failed),
    );
    describe_times(attributes, state.connect_time, state.header_time);
    attributes.integer(key!("omnitrace.upstream.bytes_sent"), state.bytes_sent);
    attributes.integer(
        key!("omnitrace.upstream.bytes_received"),
        state.bytes_received,
    );
}

/// The status of the answer, and what went wrong: `error`, else on a CLIENT span a status of 4xx
/// or 5xx (HTTP semantic conventions).
pub(super) fn describe_status<'r>(
    attributes: &mut Attributes<'r>,
    request: Request<'r>,
    status: i64,
    error: Option<&'static str>,
) {
    if status != 0 {
        attributes.integer(key!("http.response.status_code"), status);
    }
    match error {
        Some(error) => attributes.text(key!("error.type"), error),
        None if status >= 400 => attributes.text(
            key!("error.type"),
            request.keep(&status.to_string()).unwrap_or_default(),
        ),
        None => {}
    }
}

/// Seconds until the connection stood and until the answer's head was there.
pub(super) fn describe_times(
    attributes: &mut Attributes<'_>,
    connect: ngx_msec_t,
    header: ngx_msec_t,
) {
    for (key, time) in [
        (key!("omnitrace.upstream.connect_time"), connect),
        (key!("omnitrace.upstream.header_time"), header),
    ] {
        if time != NEVER {
            attributes.push(key, ValueRef::F64(time as f64 / 1000.0));
        }
    }
}

/// Why a try gave no whole answer, apart from what its status says.
fn error(
    request: Request<'_>,
    upstream: &ngx_http_upstream_t,
    peer: &ngx_peer_connection_t,
    failed: bool,
) -> Option<&'static str> {
    // SAFETY: the current try's state and connection, where there are any.
    let (state, connection) = unsafe { (upstream.state.as_ref()?, peer.connection.as_ref()) };
    // SAFETY: a connection has its two events, a request its connection.
    let timed_out = connection
        .is_some_and(|c| unsafe { (*c.read).timedout() != 0 || (*c.write).timedout() != 0 });
    let client = unsafe { &*request.connection };
    let client_gone = client.error() != 0 || client.timedout() != 0;

    if timed_out {
        Some("timeout")
    } else if failed && state.connect_time == NEVER {
        Some("connect_error")
    } else if state.status >= 400 || (!failed && state.status != 0 && is_whole(upstream)) {
        None
    } else if client_gone {
        Some("client_closed")
    } else if state.header_time == NEVER {
        Some("upstream_error")
    } else {
        Some("incomplete_response")
    }
}

/// Whether the answer's body was read to its end. Length 0 is that; a negative one was never known.
fn is_whole(upstream: &ngx_http_upstream_t) -> bool {
    // SAFETY: the pipe lives as long as the upstream.
    let pipe = unsafe { upstream.pipe.as_ref() };
    let rest = match pipe {
        Some(pipe) if upstream.buffering() != 0 => pipe.length,
        _ => upstream.length,
    };
    upstream.upgrade() != 0 || rest <= 0
}
