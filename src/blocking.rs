//! What `iter()` of an awaitable gives: the same items, to a thread that blocks for them.

use pyo3::prelude::*;
use pyo3::{PyClass, PyTraverseError, PyVisit};

/// A class whose items a thread can wait for.
pub trait Blocks: PyClass<Frozen = pyo3::pyclass::boolean_struct::True> + Sync {
    /// The next item; none at the end.
    fn next_blocking(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>>;
}

/// The blocking face of one object.
#[pyclass(frozen, module = "turnstream._native")]
pub struct Blocking {
    of: Py<PyAny>,
    next: fn(&Bound<'_, PyAny>) -> PyResult<Option<Py<PyAny>>>,
}

impl Blocking {
    pub fn of<T: Blocks>(of: Py<T>) -> Self {
        Self { of: of.into_any(), next: |of| of.cast::<T>()?.get().next_blocking(of.py()) }
    }
}

#[pymethods]
impl Blocking {
    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        (self.next)(self.of.bind(py))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.of)
    }
}
