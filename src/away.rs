//! Calls that may wait for a store: never with the interpreter held, never on an event loop's thread.

use pyo3::prelude::*;
use pyo3::types::PyTuple;
use turnstream_core::session::Session;

/// A coroutine that is done at once.
pub fn returns<'py>(py: Python<'py>, value: impl IntoPyObject<'py>) -> PyResult<Bound<'py, PyAny>> {
    py.import("turnstream._glue")?.call_method1("returns", (value,))
}

/// The answer, by a coroutine function of `_glue`, of a call that has acted already.
pub fn acted<'py>(
    py: Python<'py>,
    answer: &str,
    arguments: impl IntoPyObject<'py, Target = PyTuple, Output = Bound<'py, PyTuple>, Error = PyErr>,
) -> PyResult<Bound<'py, PyAny>> {
    let glue = py.import("turnstream._glue")?;
    let all = (glue.getattr(answer)?,).into_pyobject(py)?.add(arguments.into_pyobject(py)?)?;
    glue.getattr("Acted")?.call1(all.cast::<PyTuple>()?)
}

/// A coroutine that calls `function` in a thread: it may wait for a store.
pub fn in_thread<'py>(function: &Bound<'py, PyAny>, arguments: Bound<'py, PyTuple>) -> PyResult<Bound<'py, PyAny>> {
    function.py().import("turnstream._glue")?.call_method1("in_thread", (function, arguments))
}

/// Acts on a session with the interpreter released, if it may wait for a store; at once, if it lives in memory.
pub fn away<T: Send>(py: Python<'_>, session: &Session, act: impl FnOnce() -> T + Send) -> T {
    if session.is_stored() { py.detach(act) } else { act() }
}
