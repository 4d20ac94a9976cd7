//! nginx's request, as the handlers use it.

use std::marker::PhantomData;
use std::ops::Deref;
use std::ptr::NonNull;

use nginx_sys::{
    ngx_http_complex_value, ngx_http_complex_value_t, ngx_http_core_loc_conf_t,
    ngx_http_core_module, ngx_http_request_t, ngx_module_t, ngx_pnalloc, ngx_str_t,
};
use ngx::core::Status;
use ngx::http::HttpModuleConfExt;

/// nginx could not allocate from the request's pool.
#[derive(Debug)]
pub(crate) struct OutOfMemory;

/// A request or subrequest during a call from nginx. It is a pointer and not a
/// reference: nginx's functions and other modules change the request meanwhile.
#[derive(Clone, Copy)]
pub(crate) struct Request<'r>(
    NonNull<ngx_http_request_t>,
    PhantomData<&'r ngx_http_request_t>,
);

impl<'r> Request<'r> {
    /// # Safety
    /// `request` is live for `'r`, and so is its pool.
    pub(crate) unsafe fn from_ptr(request: *mut ngx_http_request_t) -> Option<Self> {
        NonNull::new(request).map(|request| Self(request, PhantomData))
    }

    /// For nginx's functions.
    pub(crate) fn as_ptr(self) -> *mut ngx_http_request_t {
        self.0.as_ptr()
    }

    /// Whether this is the client's request and not a subrequest.
    pub(crate) fn is_main(self) -> bool {
        std::ptr::eq(self.as_ptr(), self.main)
    }

    /// The client's request.
    pub(crate) fn main(self) -> Self {
        // SAFETY: a subrequest lives no longer than its main request.
        unsafe { Self::from_ptr(self.main) }.unwrap_or(self)
    }

    /// Copies bytes to where they live as long as the request. A NUL follows them, as it follows
    /// a header's value that nginx has read: there are modules that print one as C's strings.
    pub(crate) fn copy(self, bytes: &[u8]) -> Result<ngx_str_t, OutOfMemory> {
        // SAFETY: the pool lives as long as the request, and gives room for so many bytes.
        unsafe {
            let data = ngx_pnalloc(self.pool, bytes.len() + 1).cast::<u8>();
            if data.is_null() {
                return Err(OutOfMemory);
            }
            data.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
            data.add(bytes.len()).write(0);
            Ok(ngx_str_t {
                len: bytes.len(),
                data,
            })
        }
    }

    /// The value of a directive with variables. It lives as long as the request.
    pub(crate) fn evaluate(self, value: *mut ngx_http_complex_value_t) -> Option<&'r [u8]> {
        let mut text = ngx_str_t::empty();
        // SAFETY: a compiled value of this cycle's configuration; the request is live.
        let rc = unsafe { ngx_http_complex_value(self.as_ptr(), value, &mut text) };
        // SAFETY: nginx puts the value into the pool or points into the request.
        (rc == Status::NGX_OK.0).then(|| unsafe { bytes(text) })
    }

    /// Bytes as text that lives as long as the request; what is not UTF-8 is replaced. Empty
    /// without memory.
    pub(crate) fn text(self, bytes: &'r [u8]) -> &'r str {
        if bytes.is_ascii() {
            // SAFETY: ASCII is UTF-8; most texts are, and this is seen much faster.
            return unsafe { std::str::from_utf8_unchecked(bytes) };
        }
        match std::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(_) => self
                .keep(&String::from_utf8_lossy(bytes))
                .unwrap_or_default(),
        }
    }

    /// Bytes that are text, as text that lives as long as the request.
    pub(crate) fn keep_bytes(self, text: &[u8]) -> Result<&'r str, OutOfMemory> {
        let copy = self.copy(text)?;
        // SAFETY: the copy is in the pool.
        Ok(self.text(unsafe { bytes(copy) }))
    }

    /// Text that lives as long as the request.
    pub(crate) fn keep(self, text: &str) -> Result<&'r str, OutOfMemory> {
        let copy = self.copy(text.as_bytes())?;
        // SAFETY: the copy is in the pool, and as good a text as the original.
        Ok(unsafe { std::str::from_utf8_unchecked(bytes(copy)) })
    }

    /// The method, as the HTTP semantic conventions want it of a broken request line.
    pub(crate) fn method(self) -> &'r str {
        // SAFETY: it is in the request's buffer or nginx's own text.
        match self.text(unsafe { bytes(self.method_name) }) {
            "" => "_OTHER",
            method => method,
        }
    }

    /// The `location` that handles the request, as written in the configuration.
    pub(crate) fn location(self) -> &'r [u8] {
        let module: *const ngx_module_t = &raw const ngx_http_core_module;
        // SAFETY: the core module's location configuration is always there, and outlives requests.
        let conf = unsafe {
            self.http_location_conf_unchecked::<ngx_http_core_loc_conf_t>(&*module)
                .map(|conf| bytes(conf.as_ref().name))
        };
        conf.unwrap_or_default()
    }
}

impl Deref for Request<'_> {
    type Target = ngx_http_request_t;

    fn deref(&self) -> &ngx_http_request_t {
        // SAFETY: live by construction; callers hold the reference for one reading only.
        unsafe { self.0.as_ref() }
    }
}

/// The bytes of a string of nginx's that outlives `'a`.
///
/// # Safety
/// The string's memory is valid and unchanged for `'a`.
pub(crate) unsafe fn bytes<'a>(text: ngx_str_t) -> &'a [u8] {
    if text.len == 0 || text.data.is_null() {
        return &[];
    }
    // SAFETY: nginx's strings have `len` bytes at `data`.
    unsafe { std::slice::from_raw_parts(text.data, text.len) }
}

/// Text that is there for good, as nginx's string.
pub(crate) fn borrow(text: &str) -> ngx_str_t {
    ngx_str_t {
        len: text.len(),
        data: text.as_ptr().cast_mut(),
    }
}
