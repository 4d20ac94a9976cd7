//! Request headers: reading, adding, replacing and removing them as nginx stores them.

use std::slice;

use nginx_sys::{
    ngx_list_init, ngx_list_part_t, ngx_list_push, ngx_list_t, ngx_str_t, ngx_table_elt_t,
    ngx_uint_t,
};
use ngx::core::Status;

use crate::request::{OutOfMemory, Request, borrow};

/// A header's name with what nginx keeps beside it.
pub(crate) struct HeaderName {
    key: &'static str,
    lowcase: &'static str,
    hash: ngx_uint_t,
}

/// The headers that context may come and go in.
static CONTEXT: [HeaderName; 8] = [
    HeaderName::same("traceparent"),
    HeaderName::same("tracestate"),
    HeaderName::same("baggage"),
    HeaderName::same("b3"),
    HeaderName::new("X-B3-TraceId", "x-b3-traceid"),
    HeaderName::new("X-B3-SpanId", "x-b3-spanid"),
    HeaderName::new("X-B3-Sampled", "x-b3-sampled"),
    HeaderName::new("X-B3-Flags", "x-b3-flags"),
];

pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::new("X-Request-Id", "x-request-id");

/// Under which context OmniInfer's own tracing ends the time to the first token.
pub(crate) static TTFT_TRACEPARENT: HeaderName =
    HeaderName::new("TTFT_traceparent", "ttft_traceparent");

pub(crate) static CONTENT_TYPE: HeaderName = HeaderName::new("Content-Type", "content-type");

pub(crate) const ACCEPT: HeaderName = HeaderName::new("Accept", "accept");

impl HeaderName {
    /// The header of that name in lower case, of those that context may come and go in.
    pub(crate) fn of_context(lowcase: &str) -> Option<&'static Self> {
        CONTEXT.iter().find(|header| header.lowcase == lowcase)
    }

    const fn same(name: &'static str) -> Self {
        Self::new(name, name)
    }

    const fn new(key: &'static str, lowcase: &'static str) -> Self {
        // ngx_hash_key, at compile time.
        let mut hash: ngx_uint_t = 0;
        let mut i = 0;
        while i < lowcase.len() {
            hash = hash
                .wrapping_mul(31)
                .wrapping_add(lowcase.as_bytes()[i] as ngx_uint_t);
            i += 1;
        }
        Self { key, lowcase, hash }
    }

    fn is(&self, header: &ngx_table_elt_t) -> bool {
        // Hash 0 marks a header that some module has taken away; others set no true hash at all.
        header.key.len == self.key.len()
            && header.hash != 0
            && header
                .key
                .as_bytes()
                .eq_ignore_ascii_case(self.lowcase.as_bytes())
    }
}

/// The headers of a name, in their order.
pub(crate) fn find<'r>(
    request: Request<'r>,
    name: &'r HeaderName,
) -> impl Iterator<Item = &'r ngx_table_elt_t> {
    // SAFETY: the request's list lives as long as the request.
    unsafe { iter(list(request)) }.filter(move |header| name.is(header))
}

/// The value of a header that a module has put into the answer's list.
pub(crate) fn answered<'r>(request: Request<'r>, name: &HeaderName) -> Option<&'r [u8]> {
    // SAFETY: only the address of a field is taken; the list lives as long as the request.
    let mut sent = unsafe { iter::<'r>(&raw const (*request.as_ptr()).headers_out.headers) };
    let header = sent.find(|header| name.is(header))?;
    Some(header.value.as_bytes())
}

/// Gives a header its only value: the first of that name gets it, or a new one is added. `value`
/// must live as long as the request.
pub(crate) fn set(
    request: Request<'_>,
    name: &'static HeaderName,
    value: ngx_str_t,
) -> Result<(), OutOfMemory> {
    let mut present = find(request, name);
    let header = match (present.next(), present.next()) {
        (Some(header), None) => std::ptr::from_ref(header).cast_mut(),
        (None, _) => push(request, new_header(name))?,
        (Some(_), Some(_)) => {
            remove(request, name)?;
            push(request, new_header(name))?
        }
    };
    // SAFETY: an element of the request's list; no reference to it is left.
    unsafe { (*header).value = value };
    Ok(())
}

/// Takes all headers of a name away.
pub(crate) fn remove(request: Request<'_>, name: &HeaderName) -> Result<(), OutOfMemory> {
    // SAFETY: as in `find`.
    if unsafe { iter(list(request)) }.any(|header| name.is(header)) {
        rebuild(request, |header| !name.is(header))?;
    }
    Ok(())
}

/// Gives a subrequest a header list of its own: nginx lets it share its parent's elements, so a
/// change would reach both.
pub(crate) fn unshare(subrequest: Request<'_>) -> Result<(), OutOfMemory> {
    rebuild(subrequest, |_| true)
}

/// Copies the headers that `keep` chooses into a new list. What nginx has parsed from the old
/// elements goes on pointing there; they live as long as the pool.
fn rebuild(
    request: Request<'_>,
    keep: impl Fn(&ngx_table_elt_t) -> bool,
) -> Result<(), OutOfMemory> {
    // SAFETY: as in `find`; the copies are made before the list changes.
    let kept: Vec<_> = unsafe { iter(list(request)) }
        .filter(|h| keep(h))
        .copied()
        .collect();
    // Room for the header that is about to be added.
    init(request, kept.len() + 1)?;
    for header in kept {
        push(request, header)?;
    }
    Ok(())
}

fn new_header(name: &'static HeaderName) -> ngx_table_elt_t {
    // SAFETY: all zero is an empty header in every version's layout.
    let mut header: ngx_table_elt_t = unsafe { std::mem::zeroed() };
    header.hash = name.hash;
    header.key = borrow(name.key);
    header.lowcase_key = name.lowcase.as_ptr().cast_mut();
    header
}

fn push(
    request: Request<'_>,
    header: ngx_table_elt_t,
) -> Result<*mut ngx_table_elt_t, OutOfMemory> {
    // HTTP/0.9 has no headers, and nginx then makes no list.
    if request.headers_in.headers.pool.is_null() {
        init(request, 2)?;
    }
    // SAFETY: the list is initialised and holds headers.
    let slot = unsafe { ngx_list_push(list(request)) }.cast::<ngx_table_elt_t>();
    if slot.is_null() {
        return Err(OutOfMemory);
    }
    // SAFETY: a pushed slot is room for one header.
    unsafe { slot.write(header) };
    Ok(slot)
}

fn init(request: Request<'_>, room: usize) -> Result<(), OutOfMemory> {
    let size = size_of::<ngx_table_elt_t>();
    // SAFETY: the request and its pool are live.
    let rc = unsafe { ngx_list_init(list(request), request.pool, room, size) };
    if rc == Status::NGX_OK.0 {
        Ok(())
    } else {
        Err(OutOfMemory)
    }
}

fn list(request: Request<'_>) -> *mut ngx_list_t {
    // SAFETY: only the address of a field is taken.
    unsafe { &raw mut (*request.as_ptr()).headers_in.headers }
}

/// # Safety
/// The list and its elements live, and none is changed, for `'r`.
unsafe fn iter<'r>(list: *const ngx_list_t) -> impl Iterator<Item = &'r ngx_table_elt_t> {
    // SAFETY: by contract.
    let first: &'r ngx_list_part_t = unsafe { &(*list).part };
    // SAFETY: nginx ends its chain of parts with NULL.
    std::iter::successors(Some(first), |part| unsafe { part.next.as_ref() }).flat_map(|part| {
        if part.nelts == 0 {
            return Default::default();
        }
        // SAFETY: a header list's part has `nelts` headers at `elts`.
        unsafe { slice::from_raw_parts(part.elts.cast::<ngx_table_elt_t>(), part.nelts) }
    })
}
