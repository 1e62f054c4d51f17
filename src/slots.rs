//! Four type slots of an awaitable, on a subtype of its class: `am_aiter`, `am_anext`, `am_await`, and `am_send`, which PyO3 has
//! no words for.
//!
//! Through methods, a ready item of `async for` costs three trampolines and a `StopIteration` (225 ns, measured with an
//! event made each time); through the slots the interpreter is handed the value itself (see DESIGN.md for the figure).
//! A tracing interpreter does not ask `am_send`; it finds the `__next__` of the base class and behaves the same.
//!
//! Invariants: 1. a slot is called with the interpreter attached, on an instance of the type it was put on; 2. no panic
//! leaves a slot.
#![allow(unsafe_code, reason = "a slot is a C function pointer; each block says why it holds")]

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

use pyo3::PyClass;
use pyo3::exceptions::PyRuntimeError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;
use pyo3::{PyTraverseError, PyVisit};

/// What one `send(None)` gave.
pub enum Sent {
    /// The awaited value.
    Return(Py<PyAny>),
    /// What the event loop is to wait for.
    Yield(Py<PyAny>),
}

/// A class whose instances are awaited, each time for the next item. An error with no type set means the end.
pub trait Awaited: PyClass + Send + 'static {
    /// One step.
    fn send(slf: &Bound<'_, Self>) -> PyResult<Sent>;
    /// The type of its instances.
    fn subtype() -> &'static Subtype;
}

/// A subtype that bears the slots: its full name, and where it is kept once it is made.
pub struct Subtype {
    name: &'static CStr,
    made: PyOnceLock<Py<PyType>>,
}

impl Subtype {
    pub const fn new(name: &'static CStr) -> Self {
        Self { name, made: PyOnceLock::new() }
    }
}

unsafe extern "C" fn itself(slf: *mut ffi::PyObject) -> *mut ffi::PyObject {
    // SAFETY: the interpreter passes a live object and takes a new reference.
    unsafe { ffi::Py_NewRef(slf) }
}

/// What `__await__` gives to those who call it by name and delegate to the result, as `asyncio.ensure_future` and so
/// `wait_for` do with `yield from`: that asks for `iter()` of it, and `iter(reader)` is the blocking iterator.
#[pyclass(frozen, name = "_Steps", module = "turnstream._native")]
pub struct Steps {
    of: Py<PyAny>,
}

#[pymethods]
impl Steps {
    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.of.call_method0(py, pyo3::intern!(py, "__next__"))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.of)
    }
}

unsafe extern "C" fn steps(slf: *mut ffi::PyObject, _: *mut ffi::PyObject) -> *mut ffi::PyObject {
    // SAFETY: the interpreter calls its methods attached.
    let py = unsafe { Python::assume_attached() };
    // SAFETY: and keeps the object alive over the call.
    let of = unsafe { Bound::from_borrowed_ptr(py, slf) }.unbind();
    match catch_unwind(AssertUnwindSafe(|| Bound::new(py, Steps { of }))) {
        Ok(Ok(steps)) => steps.into_ptr(),
        Ok(Err(error)) => {
            error.restore(py);
            ptr::null_mut()
        }
        Err(_) => ptr::null_mut(),
    }
}

unsafe extern "C" fn send<T: Awaited>(
    slf: *mut ffi::PyObject,
    _value: *mut ffi::PyObject,
    result: *mut *mut ffi::PyObject,
) -> ffi::PySendResult {
    // SAFETY: the interpreter calls its slots attached. (A full `attach` would cost 30 of the 100 ns; what PyO3 cannot
    // see of this thread's state only makes it defer a reference that is dropped here to the next call.)
    let py = unsafe { Python::assume_attached() };
    // SAFETY: the interpreter keeps the object alive over the call.
    let this = unsafe { Bound::from_borrowed_ptr(py, slf) };
    // SAFETY: the slot stands on a subtype of T alone.
    let this = unsafe { this.cast_into_unchecked::<T>() };
    let sent = catch_unwind(AssertUnwindSafe(|| T::send(&this)))
        .unwrap_or_else(|_| Err(PyRuntimeError::new_err("a defect in turnstream: see the message on standard error")));
    let (status, value) = match sent {
        Ok(Sent::Return(value)) => (ffi::PySendResult::PYGEN_RETURN, value.into_ptr()),
        Ok(Sent::Yield(value)) => (ffi::PySendResult::PYGEN_NEXT, value.into_ptr()),
        Err(error) => {
            error.restore(py);
            (ffi::PySendResult::PYGEN_ERROR, ptr::null_mut())
        }
    };
    // SAFETY: the interpreter passes the place for the result.
    unsafe { *result = value };
    status
}

fn subtype<T: Awaited>(py: Python<'_>) -> PyResult<&Py<PyType>> {
    let Subtype { name, made } = T::subtype();
    made.get_or_try_init(py, || {
        let base = T::type_object(py);
        // A type does not inherit its base's docstring. (The call below copies it.)
        let doc = CString::new(base.getattr("__doc__")?.extract::<Option<String>>()?.unwrap_or_default())?;
        let slot = |slot, function: *mut c_void| ffi::PyType_Slot { slot, pfunc: function };
        let itself = itself as unsafe extern "C" fn(*mut ffi::PyObject) -> *mut ffi::PyObject;
        let send = send::<T>
            as unsafe extern "C" fn(*mut ffi::PyObject, *mut ffi::PyObject, *mut *mut ffi::PyObject) -> ffi::PySendResult;
        // `METH_COEXIST`: the method stands in the type's dict in the place of the slot's wrapper; `await` itself asks the
        // slot. The type points to it for good, and is made once.
        let methods = Box::leak(Box::new([
            ffi::PyMethodDef {
                ml_name: c"__await__".as_ptr(),
                ml_meth: ffi::PyMethodDefPointer { PyCFunction: steps },
                ml_flags: ffi::METH_NOARGS | ffi::METH_COEXIST,
                ml_doc: ptr::null(),
            },
            ffi::PyMethodDef::zeroed(),
        ]));
        let mut slots = [
            slot(ffi::Py_am_aiter, itself as *mut c_void),
            slot(ffi::Py_am_anext, itself as *mut c_void),
            slot(ffi::Py_am_await, itself as *mut c_void),
            slot(ffi::Py_am_send, send as *mut c_void),
            slot(ffi::Py_tp_methods, methods.as_mut_ptr().cast()),
            slot(ffi::Py_tp_doc, doc.as_ptr().cast_mut().cast()),
            slot(0, ptr::null_mut()),
        ];
        let flags = u32::try_from(ffi::Py_TPFLAGS_DEFAULT).unwrap_or_default();
        let mut spec = ffi::PyType_Spec { name: name.as_ptr(), basicsize: 0, itemsize: 0, flags, slots: slots.as_mut_ptr() };
        // SAFETY: spec and slots live over the call, which copies them; the name is static. A basicsize of 0 inherits
        // the base's layout, and the collector's functions come with it.
        let made = unsafe { ffi::PyType_FromSpecWithBases(&raw mut spec, base.as_ptr()) };
        // SAFETY: a new reference, or null with an exception set.
        let made = unsafe { Bound::from_owned_ptr_or_err(py, made) }?;
        Ok(made.cast_into::<PyType>()?.unbind())
    })
}

thread_local! {
    /// The value on its way through the type's constructor, which takes only Python objects.
    static PENDING: RefCell<Option<Box<dyn Any>>> = const { RefCell::new(None) };
}

/// An instance of the subtype around `value`.
pub fn make<T: Awaited>(py: Python<'_>, value: T) -> PyResult<Py<PyAny>> {
    PENDING.set(Some(Box::new(value)));
    let made = subtype::<T>(py)?.call0(py);
    PENDING.set(None);
    made
}

/// For the class's `#[new]`: the value that [`make`] sends. A call from Python finds none.
pub fn pending<T: Awaited>() -> PyResult<T> {
    let value = PENDING.take().and_then(|value| value.downcast::<T>().ok());
    let name = || T::subtype().name.to_string_lossy().into_owned();
    value.map(|value| *value).ok_or_else(|| pyo3::exceptions::PyTypeError::new_err(format!("{} is not made by hand", name())))
}

/// Puts the subtype on the module.
pub fn register<T: Awaited>(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let made = subtype::<T>(module.py())?.bind(module.py());
    module.add(made.name()?, made)
}
