//! `omnitrace_status`: the books of all workers, for programs and for people.

use std::fmt::Write as _;

use nginx_sys::{
    NGX_HTTP_GET, NGX_HTTP_HEAD, NGX_HTTP_NOT_ALLOWED, NGX_HTTP_OK, ngx_buf_t, ngx_chain_t,
    ngx_http_discard_request_body, ngx_http_output_filter, ngx_http_request_t,
    ngx_http_send_header, ngx_int_t, ngx_pcalloc, off_t,
};
use ngx::core::Status;

use crate::books::{Count, Numbers};
use crate::conf::location::LocationConfig;
use crate::guard::guard;
use crate::headers::{self, ACCEPT};
use crate::request::{Request, borrow};
use crate::shared::Zone;

/// How the books are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// One object.
    Json,
    /// Prometheus' text format, version 0.0.4.
    Prometheus,
}

impl Format {
    fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// How much a media range asks for it: 0 is not at all, more is more exactly.
    fn matched_by(self, range: &str) -> u8 {
        let (exact, group): (&[&str], _) = match self {
            Self::Json => (&["application/json"], "application/*"),
            Self::Prometheus => (&["text/plain", "application/openmetrics-text"], "text/*"),
        };
        if exact.iter().any(|exact| range.eq_ignore_ascii_case(exact)) {
            3
        } else if range.eq_ignore_ascii_case(group) {
            2
        } else {
            u8::from(range == "*/*")
        }
    }

    /// The one that a client would rather have (RFC 9110, section 12.5.1); JSON if it does not
    /// care.
    fn accepted(accept: &str) -> Self {
        let wish = |format: Self| {
            let ranges = accept.split(',').filter_map(|range| {
                let mut parts = range.split(';').map(str::trim);
                let matched = format.matched_by(parts.next()?);
                let quality = parts.find_map(|part| part.strip_prefix("q="));
                let quality = quality.and_then(|q| q.parse().ok()).unwrap_or(1.0f32);
                (matched > 0).then_some((matched, quality))
            });
            // The most exact range says how welcome it is.
            ranges.fold((0, 0.0), |best, next| {
                match next.0 > best.0 || next.0 == best.0 && next.1 > best.1 {
                    true => next,
                    false => best,
                }
            })
        };
        let rank = |format| {
            let (exactness, quality) = wish(format);
            (quality, exactness)
        };
        match rank(Self::Prometheus) > rank(Self::Json) {
            true => Self::Prometheus,
            false => Self::Json,
        }
    }
}

/// Content handler of a location with `omnitrace_status`.
pub(crate) unsafe extern "C" fn handler(request: *mut ngx_http_request_t) -> ngx_int_t {
    guard("the status page", Status::NGX_ERROR.0, || {
        // SAFETY: nginx calls handlers with a live request.
        match unsafe { Request::from_ptr(request) } {
            Some(request) => answer(request),
            None => Status::NGX_ERROR.0,
        }
    })
}

fn answer(request: Request<'_>) -> ngx_int_t {
    if request.method & (NGX_HTTP_GET | NGX_HTTP_HEAD) as usize == 0 {
        return NGX_HTTP_NOT_ALLOWED as ngx_int_t;
    }
    // SAFETY: nginx's own functions, with the request that it handles.
    let rc = unsafe { ngx_http_discard_request_body(request.as_ptr()) };
    if rc != Status::NGX_OK.0 {
        return rc;
    }
    let Some(zone) = Zone::of(&*request) else {
        return Status::NGX_ERROR.0;
    };
    let (numbers, workers) = zone.with_books(|books| books.total());
    let format = LocationConfig::of(request).status().unwrap_or_else(|| {
        let accept = headers::find(request, &ACCEPT).next();
        let accept = accept.map(|header| String::from_utf8_lossy(header.value.as_bytes()));
        Format::accepted(&accept.unwrap_or_default())
    });
    let text = match format {
        Format::Json => json(&numbers, workers),
        Format::Prometheus => prometheus(&numbers, workers),
    };
    send(request, format, &text).unwrap_or(Status::NGX_ERROR.0)
}

/// Sends the answer. None: there is no memory.
fn send(request: Request<'_>, format: Format, text: &str) -> Option<ngx_int_t> {
    let body = request.copy(text.as_bytes()).ok()?;
    let r = request.as_ptr();
    // SAFETY: the request is live, and so is what is allocated from its pool.
    unsafe {
        let head = &mut (*r).headers_out;
        head.status = NGX_HTTP_OK as usize;
        head.content_length_n = body.len as off_t;
        head.content_type = borrow(format.content_type());
        head.content_type_len = head.content_type.len;
        let rc = ngx_http_send_header(r);
        if rc == Status::NGX_ERROR.0 || rc > Status::NGX_OK.0 || (*r).header_only() != 0 {
            return Some(rc);
        }
        let buffer = ngx_pcalloc(request.pool, size_of::<ngx_buf_t>())
            .cast::<ngx_buf_t>()
            .as_mut()?;
        buffer.pos = body.data;
        buffer.last = body.data.add(body.len);
        buffer.set_memory(1);
        buffer.set_last_in_chain(1);
        buffer.set_last_buf(u32::from(request.is_main()));
        let mut chain = ngx_chain_t {
            buf: buffer,
            next: std::ptr::null_mut(),
        };
        Some(ngx_http_output_filter(r, &mut chain))
    }
}

fn json(numbers: &Numbers, workers: usize) -> String {
    let dropped: Vec<_> = numbers
        .dropped()
        .map(|(reason, number)| format!("\"{reason}\":{number}"))
        .collect();
    format!(
        "{{\"spans\":{{\"created\":{},\"exported\":{},\"in_flight\":{},\"logged\":{},\
         \"dropped\":{{{}}},\"unsampled\":{},\"contradictory\":{}}},\
         \"events\":{{\"recorded\":{},\"lost\":{},\"loose\":{}}},\
         \"open_requests\":{},\"workers\":{workers}}}\n",
        numbers.get(Count::Created),
        numbers.get(Count::Exported),
        numbers.get(Count::InFlight),
        numbers.get(Count::Logged),
        dropped.join(","),
        numbers.get(Count::Unsampled),
        numbers.get(Count::Contradictory),
        numbers.get(Count::Events),
        numbers.get(Count::EventsLost),
        numbers.get(Count::EventsLoose),
        numbers.get(Count::OpenRequests),
    )
}

fn prometheus(numbers: &Numbers, workers: usize) -> String {
    let mut text = String::with_capacity(4096);
    let mut metric = |name: &str, kind: &str, help: &str, samples: &[(String, u64)]| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in samples {
            let _ = writeln!(text, "{name}{labels} {value}");
        }
    };
    let one = |count| vec![(String::new(), numbers.get(count))];
    let dropped: Vec<_> = numbers
        .dropped()
        .map(|(reason, number)| (format!("{{reason=\"{reason}\"}}"), number))
        .collect();
    let (counter, gauge) = ("counter", "gauge");
    metric(
        "omnitrace_spans_created_total",
        counter,
        "Spans made.",
        &one(Count::Created),
    );
    metric(
        "omnitrace_spans_exported_total",
        counter,
        "Spans that a Collector has taken.",
        &one(Count::Exported),
    );
    metric(
        "omnitrace_spans_in_flight",
        gauge,
        "Spans that wait or are on the wire.",
        &one(Count::InFlight),
    );
    metric(
        "omnitrace_spans_logged_total",
        counter,
        "Spans that are in the legacy log and that no Collector has taken.",
        &one(Count::Logged),
    );
    metric(
        "omnitrace_spans_dropped_total",
        counter,
        "Spans lost.",
        &dropped,
    );
    metric(
        "omnitrace_spans_unsampled_total",
        counter,
        "Spans not made because their trace is not sampled.",
        &one(Count::Unsampled),
    );
    metric(
        "omnitrace_spans_contradictory_total",
        counter,
        "Spans not made because they would end before they start.",
        &one(Count::Contradictory),
    );
    metric(
        "omnitrace_events_total",
        counter,
        "Events recorded.",
        &one(Count::Events),
    );
    metric(
        "omnitrace_events_lost_total",
        counter,
        "Events lost to a full queue.",
        &one(Count::EventsLost),
    );
    metric(
        "omnitrace_events_loose_total",
        counter,
        "Events that are part of no span.",
        &one(Count::EventsLoose),
    );
    metric(
        "omnitrace_open_requests",
        gauge,
        "Requests that may still get events.",
        &one(Count::OpenRequests),
    );
    metric(
        "omnitrace_workers",
        gauge,
        "Workers that trace, those that are about to end included.",
        &[(String::new(), workers as u64)],
    );
    text
}
