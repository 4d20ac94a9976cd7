//! The calls that CPython makes without a tuple or a dictionary in between
//! (METH_FASTCALL), which the limited API of 3.9 lacks only by name: what each
//! request or span pays for goes this way.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;
use std::{ptr, slice};

use pyo3::PyTypeInfo;
use pyo3::exceptions::PyTypeError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyString, PyTuple};

use crate::cpython::utf8;

/// `METH_FASTCALL` of CPython's `methodobject.h`, the same since 3.7.
const METH_FASTCALL: c_int = 0x0080;

type Args = *const *mut ffi::PyObject;

/// Arguments as CPython hands them over: by position, then by name.
pub(crate) struct Arguments<'a, 'py> {
    all: &'a [*mut ffi::PyObject],
    positional: usize,
    names: Option<Borrowed<'a, 'py, PyTuple>>,
    pub(crate) py: Python<'py>,
}

impl<'a, 'py> Arguments<'a, 'py> {
    #[inline]
    fn object(&self, object: *mut ffi::PyObject) -> Borrowed<'a, 'py, PyAny> {
        // SAFETY: the caller keeps its arguments alive during the call.
        unsafe { Borrowed::from_ptr(self.py, object) }
    }
}

/// The parameters of a function.
pub(crate) struct Parameters<const N: usize> {
    function: &'static str,
    names: [&'static str; N],
    /// How many of the first may be given by position.
    by_position: usize,
    /// How many of the first must be given.
    required: usize,
    /// The addresses of the names as CPython's code has them, where each text is one object.
    interned: OnceLock<[usize; N]>,
}

impl<const N: usize> Parameters<N> {
    pub(crate) const fn new(
        function: &'static str,
        names: [&'static str; N],
        by_position: usize,
        required: usize,
    ) -> Self {
        Self {
            function,
            names,
            by_position,
            required,
            interned: OnceLock::new(),
        }
    }

    /// One for each of them, as given.
    #[inline]
    pub(crate) fn take<'a, 'py>(
        &self,
        arguments: &Arguments<'a, 'py>,
    ) -> PyResult<[Option<Borrowed<'a, 'py, PyAny>>; N]> {
        let mut taken = [None; N];
        if arguments.positional > self.by_position {
            let message = format!(
                "{}() takes {} positional arguments but {} were given",
                self.function, self.by_position, arguments.positional
            );
            return Err(PyTypeError::new_err(message));
        }
        for (place, object) in taken.iter_mut().zip(&arguments.all[..arguments.positional]) {
            *place = Some(arguments.object(*object));
        }
        if let Some(names) = arguments.names {
            let values = &arguments.all[arguments.positional..];
            for (name, value) in names.iter_borrowed().zip(values) {
                match self.place(name).map(|at| &mut taken[at]) {
                    Some(place @ None) => *place = Some(arguments.object(*value)),
                    Some(Some(_)) => return Err(self.wrong("multiple values for", name)),
                    None => return Err(self.wrong("an unexpected keyword", name)),
                }
            }
        }
        if let Some(at) = taken[..self.required].iter().position(Option::is_none) {
            let message = format!(
                "{}() missing required argument '{}'",
                self.function, self.names[at]
            );
            return Err(PyTypeError::new_err(message));
        }
        Ok(taken)
    }

    #[inline]
    fn place(&self, name: Borrowed<'_, '_, PyAny>) -> Option<usize> {
        // Each is kept for ever.
        let intern = |text| PyString::intern(name.py(), text).into_ptr() as usize;
        let interned = self.interned.get_or_init(|| self.names.map(intern));
        let address = name.as_ptr() as usize;
        let place = interned.iter().position(|known| *known == address);
        place.or_else(|| self.place_of_text(name))
    }

    /// A name that was made at run time.
    #[cold]
    fn place_of_text(&self, name: Borrowed<'_, '_, PyAny>) -> Option<usize> {
        let name = utf8(name)?;
        self.names.iter().position(|known| *known == name)
    }

    #[cold]
    fn wrong(&self, what: &str, name: Borrowed<'_, '_, PyAny>) -> PyErr {
        let name = utf8(name).unwrap_or_default();
        PyTypeError::new_err(format!("{}() got {what} argument '{name}'", self.function))
    }
}

/// Those of a block's `__exit__`.
pub(crate) static EXIT: Parameters<3> =
    Parameters::new("__exit__", ["exc_type", "exc_value", "traceback"], 3, 3);

/// Calls `f` for CPython: an error or a panic becomes a Python exception.
#[inline]
fn guarded<'py>(
    py: Python<'py>,
    f: impl FnOnce() -> PyResult<Bound<'py, PyAny>>,
) -> *mut ffi::PyObject {
    let result = catch_unwind(AssertUnwindSafe(f));
    match result {
        Ok(Ok(object)) => object.into_ptr(),
        Ok(Err(error)) => {
            error.restore(py);
            ptr::null_mut()
        }
        Err(_) => {
            pyo3::exceptions::PyRuntimeError::new_err("omnitrace: a bug, see stderr").restore(py);
            ptr::null_mut()
        }
    }
}

/// The arguments of a call from CPython.
///
/// # Safety
/// `args` holds `positional` objects, and as many more as `names` (a tuple, or null)
/// has items; all of them are alive for `'a`.
#[inline]
unsafe fn arguments<'a, 'py>(
    py: Python<'py>,
    args: Args,
    positional: ffi::Py_ssize_t,
    names: *mut ffi::PyObject,
) -> Arguments<'a, 'py> {
    let positional = positional as usize;
    // SAFETY: as promised by the caller; `names` is a tuple where it is not null.
    unsafe {
        let names: Option<Borrowed<'a, 'py, PyTuple>> =
            Borrowed::from_ptr_or_opt(py, names).map(|names| names.cast_unchecked());
        let named = names.map_or(0, |names| names.len());
        let all = if positional + named == 0 {
            &[]
        } else {
            slice::from_raw_parts(args, positional + named)
        };
        Arguments {
            all,
            positional,
            names,
            py,
        }
    }
}

/// A function of the module.
pub(crate) trait Function {
    const NAME: &'static CStr;
    const DOC: &'static CStr;
    fn call<'py>(arguments: &Arguments<'_, 'py>) -> PyResult<Bound<'py, PyAny>>;
}

/// A method of a class of ours.
pub(crate) trait Method {
    type Class: PyTypeInfo;
    const NAME: &'static CStr;
    const DOC: &'static CStr;
    fn call<'py>(
        object: &Bound<'py, Self::Class>,
        arguments: &Arguments<'_, 'py>,
    ) -> PyResult<Bound<'py, PyAny>>;
}

unsafe extern "C" fn function_entry<F: Function>(
    _module: *mut ffi::PyObject,
    args: Args,
    positional: ffi::Py_ssize_t,
    names: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    // SAFETY: CPython calls with the interpreter attached, and keeps what it hands
    // over alive until we return.
    let (py, arguments) = unsafe {
        let py = Python::assume_attached();
        (py, arguments(py, args, positional, names))
    };
    guarded(py, || F::call(&arguments))
}

unsafe extern "C" fn method_entry<M: Method>(
    object: *mut ffi::PyObject,
    args: Args,
    positional: ffi::Py_ssize_t,
    names: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    // SAFETY: as above; the descriptor that leads here ([`add_method`]) has checked
    // that the object is of the class.
    let (py, object, arguments) = unsafe {
        let py = Python::assume_attached();
        let object: Borrowed<'_, '_, PyAny> = Borrowed::from_ptr(py, object);
        let object: Borrowed<'_, '_, M::Class> = object.cast_unchecked();
        (py, object, arguments(py, args, positional, names))
    };
    guarded(py, || M::call(&object, &arguments))
}

/// Python's `None`.
pub(crate) fn none(py: Python<'_>) -> Bound<'_, PyAny> {
    py.None().into_bound(py)
}

type Entry = unsafe extern "C" fn(
    *mut ffi::PyObject,
    Args,
    ffi::Py_ssize_t,
    *mut ffi::PyObject,
) -> *mut ffi::PyObject;

/// CPython keeps a pointer to what it is given here: there is one for ever.
fn definition(name: &'static CStr, doc: &'static CStr, entry: Entry) -> *mut ffi::PyMethodDef {
    Box::into_raw(Box::new(ffi::PyMethodDef {
        ml_name: name.as_ptr(),
        ml_meth: ffi::PyMethodDefPointer {
            // SAFETY: the flags below say how it is really called.
            PyCFunctionWithKeywords: unsafe {
                std::mem::transmute::<Entry, ffi::PyCFunctionWithKeywords>(entry)
            },
        },
        ml_flags: METH_FASTCALL | ffi::METH_KEYWORDS,
        ml_doc: doc.as_ptr(),
    }))
}

/// Adds a function to the module.
pub(crate) fn add_function<F: Function>(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let definition = definition(F::NAME, F::DOC, function_entry::<F>);
    let module_name = module.name()?;
    // SAFETY: the definition is there for ever; a new reference is returned.
    let function = unsafe {
        let function = ffi::PyCFunction_NewEx(definition, ptr::null_mut(), module_name.as_ptr());
        Bound::from_owned_ptr_or_err(module.py(), function)?
    };
    module.add(&*F::NAME.to_string_lossy(), function)
}

/// Adds a method to its class.
pub(crate) fn add_method<M: Method>(py: Python<'_>) -> PyResult<()> {
    let class = py.get_type::<M::Class>();
    let definition = definition(M::NAME, M::DOC, method_entry::<M>);
    // SAFETY: the definition is there for ever; a new reference is returned, which
    // binds the method to objects of this class only.
    let method = unsafe {
        let method = ffi::PyDescr_NewMethod(class.as_type_ptr(), definition);
        Bound::from_owned_ptr_or_err(class.py(), method)?
    };
    class.setattr(&*M::NAME.to_string_lossy(), method)
}
