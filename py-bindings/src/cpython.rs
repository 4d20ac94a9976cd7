//! What CPython exports beyond its limited API, and the few calls that PyO3 would
//! make dearer than they are.
//!
//! One wheel serves every CPython from 3.9 on, so nothing may be linked that the
//! limited API of 3.9 lacks. These functions have had the same form in every
//! CPython since 3.7, and are looked up by name when the module is imported.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;
use std::sync::OnceLock;

use pyo3::exceptions::PyImportError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyString;

type AsUtf8 = unsafe extern "C" fn(*mut ffi::PyObject, *mut ffi::Py_ssize_t) -> *const c_char;
type ContextGet =
    unsafe extern "C" fn(*mut ffi::PyObject, *mut ffi::PyObject, *mut *mut ffi::PyObject) -> c_int;
type ContextSet =
    unsafe extern "C" fn(*mut ffi::PyObject, *mut ffi::PyObject) -> *mut ffi::PyObject;
type ContextReset = unsafe extern "C" fn(*mut ffi::PyObject, *mut ffi::PyObject) -> c_int;

struct Api {
    as_utf8: AsUtf8,
    /// The address of the empty string, of which there is one.
    empty: usize,
    context_get: ContextGet,
    context_set: ContextSet,
    context_reset: ContextReset,
}

static API: OnceLock<Api> = OnceLock::new();

/// Looks everything up; to be called before anything else here.
pub(crate) fn load(py: Python<'_>) -> PyResult<()> {
    let found = |name: &CStr| {
        // SAFETY: the name is a C string; looking it up has no other effect.
        let address: *mut c_void = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
        if address.is_null() {
            let name = name.to_string_lossy();
            let message = format!(
                "this interpreter does not export {name}: omnitrace needs CPython 3.9 or later"
            );
            return Err(PyImportError::new_err(message));
        }
        Ok(address)
    };
    // SAFETY: these are CPython's functions of that name, whose types are the ones
    // of its documentation (https://docs.python.org/3/c-api/contextvars.html and
    // unicode.html).
    let api = unsafe {
        Api {
            // It is kept for ever.
            empty: PyString::new(py, "").into_ptr() as usize,
            as_utf8: std::mem::transmute::<*mut c_void, AsUtf8>(found(c"PyUnicode_AsUTF8AndSize")?),
            context_get: std::mem::transmute::<*mut c_void, ContextGet>(found(
                c"PyContextVar_Get",
            )?),
            context_set: std::mem::transmute::<*mut c_void, ContextSet>(found(
                c"PyContextVar_Set",
            )?),
            context_reset: std::mem::transmute::<*mut c_void, ContextReset>(found(
                c"PyContextVar_Reset",
            )?),
        }
    };
    API.get_or_init(|| api);
    Ok(())
}

/// Whether the object is of exactly this type; of a subclass it may run any code.
macro_rules! is_exactly {
    ($object:expr, $type:ident) => {
        // SAFETY: the object is alive, and only the type's address is taken.
        unsafe { ffi::Py_TYPE($object.as_ptr()) == &raw mut ffi::$type }
    };
}

/// Whether the object is exactly a dictionary.
#[inline]
pub(crate) fn is_dict(object: &Bound<'_, PyAny>) -> bool {
    is_exactly!(object, PyDict_Type)
}

/// The text of an object that is exactly a string; none of any other, and none if
/// it holds a lone surrogate.
#[inline]
pub(crate) fn utf8<'a>(object: Borrowed<'a, '_, PyAny>) -> Option<&'a str> {
    if !is_exactly!(object, PyUnicode_Type) {
        return None;
    }
    let api = API.get()?;
    let mut len = 0;
    // SAFETY: the object is a string. What is returned belongs to it, is UTF-8 of
    // `len` bytes, and does not change: strings are immutable.
    unsafe {
        let text = (api.as_utf8)(object.as_ptr(), &mut len);
        if text.is_null() {
            ffi::PyErr_Clear();
            return None;
        }
        let bytes = std::slice::from_raw_parts(text.cast::<u8>(), len as usize);
        Some(std::str::from_utf8_unchecked(bytes))
    }
}

/// Whether the object is the empty string.
#[inline]
pub(crate) fn is_empty_text(object: Borrowed<'_, '_, PyAny>) -> bool {
    API.get()
        .is_some_and(|api| api.empty == object.as_ptr() as usize)
}

/// The integer of an object that is exactly an `int` within 64 bits.
#[inline]
pub(crate) fn int(object: &Bound<'_, PyAny>) -> Option<i64> {
    if !is_exactly!(object, PyLong_Type) {
        return None;
    }
    let mut overflow = 0;
    // SAFETY: the object is an integer; the call sets no exception for one.
    let n = unsafe { ffi::PyLong_AsLongLongAndOverflow(object.as_ptr(), &mut overflow) };
    (overflow == 0).then_some(n)
}

/// The number of an object that is exactly a `float`.
#[inline]
pub(crate) fn float(object: &Bound<'_, PyAny>) -> Option<f64> {
    // SAFETY: the object is a float; the call sets no exception for one.
    is_exactly!(object, PyFloat_Type).then(|| unsafe { ffi::PyFloat_AsDouble(object.as_ptr()) })
}

/// The truth value of `True` and `False`.
#[inline]
pub(crate) fn boolean(object: &Bound<'_, PyAny>) -> Option<bool> {
    // SAFETY: the object is alive.
    is_exactly!(object, PyBool_Type).then(|| unsafe { object.as_ptr() == ffi::Py_True() })
}

/// Calls `entry` with each key and value of a dictionary, until it says false.
///
/// `entry` must run no Python code, and the caller holds the dictionary's critical
/// section: nobody may change it meanwhile.
#[inline]
pub(crate) fn each_entry<'a, 'py>(
    dict: &'a Bound<'py, PyAny>,
    mut entry: impl FnMut(Borrowed<'a, 'py, PyAny>, Borrowed<'a, 'py, PyAny>) -> bool,
) -> bool {
    debug_assert!(is_dict(dict));
    let (mut at, mut key, mut value) = (0, ptr::null_mut(), ptr::null_mut());
    // SAFETY: it is a dictionary, which keeps its keys and values alive while nobody
    // changes it.
    unsafe {
        while ffi::PyDict_Next(dict.as_ptr(), &mut at, &mut key, &mut value) != 0 {
            let key = Borrowed::from_ptr(dict.py(), key);
            let value = Borrowed::from_ptr(dict.py(), value);
            if !entry(key, value) {
                return false;
            }
        }
    }
    true
}

/// The value of a `contextvars.ContextVar` that has a default.
#[inline]
pub(crate) fn context_get<'py>(variable: &Bound<'py, PyAny>) -> Option<Bound<'py, PyAny>> {
    let api = API.get()?;
    let mut value = ptr::null_mut();
    // SAFETY: the object is a ContextVar; a new reference is stored in `value`.
    unsafe {
        if (api.context_get)(variable.as_ptr(), ptr::null_mut(), &mut value) != 0 {
            ffi::PyErr_Clear();
            return None;
        }
        Bound::from_owned_ptr_or_opt(variable.py(), value)
    }
}

/// Sets a `ContextVar`; returns the token that [`context_reset`] takes.
#[inline]
pub(crate) fn context_set<'py>(
    variable: &Bound<'py, PyAny>,
    value: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    let Some(api) = API.get() else {
        return Err(PyImportError::new_err("omnitrace is not loaded"));
    };
    // SAFETY: the object is a ContextVar; the call returns a new reference.
    unsafe {
        let token = (api.context_set)(variable.as_ptr(), value.as_ptr());
        Bound::from_owned_ptr_or_err(variable.py(), token)
    }
}

/// Puts back what was there before [`context_set`]; in another context than that
/// one's there is nothing to put back.
#[inline]
pub(crate) fn context_reset(variable: &Bound<'_, PyAny>, token: &Bound<'_, PyAny>) {
    let Some(api) = API.get() else { return };
    // SAFETY: a ContextVar and one of its tokens.
    unsafe {
        if (api.context_reset)(variable.as_ptr(), token.as_ptr()) != 0 {
            ffi::PyErr_Clear();
        }
    }
}
