//! Backpressure as Python sees it: an awaitable that is done when no pacing reader lags by its window.

use std::sync::Arc;
use std::task::Waker;

use parking_lot::Mutex;
use pyo3::prelude::*;
use pyo3::{PyTraverseError, PyVisit};
use turnstream_core::session::{Session, Ticket};

use crate::bell::generation;
use crate::errors;
use crate::wait::{Source, Taken, Waiter, block, deadline};

struct Lag {
    session: Arc<Session>,
    ticket: Ticket,
    made: u32,
}

impl Source for Lag {
    fn take(&mut self, py: Python<'_>) -> PyResult<Taken> {
        Ok(if self.session.may_produce() { Taken::Item(py.None()) } else { Taken::Pending })
    }

    fn park(&mut self, waker: &Waker) -> bool {
        self.session.wait_to_produce(waker, &mut self.ticket)
    }

    fn unpark(&mut self) {
        self.session.leave_producing(&mut self.ticket);
    }

    fn would_block() -> PyErr {
        errors::raise("WouldBlock", "a pacing reader lags, and this thread runs an event loop: await ready() instead")
    }
}

impl Drop for Lag {
    fn drop(&mut self) {
        // In the child of a fork nobody opens the session's lock.
        if self.made == generation() {
            self.unpark();
        }
    }
}

/// Blocks until the producer may go on, with the interpreter released; false where `timeout` seconds were not enough.
pub fn wait_ready(py: Python<'_>, session: &Arc<Session>, timeout: Option<f64>) -> PyResult<bool> {
    let mut lag = Lag { session: session.clone(), ticket: Ticket::default(), made: generation() };
    let taken = block(py, deadline(timeout)?, |act| act(&mut lag))?;
    Ok(!matches!(taken, Taken::Pending))
}

/// Awaits to None once the producer may go on.
#[pyclass(frozen, module = "turnstream._native")]
pub struct Gate {
    inner: Mutex<(Lag, Waiter)>,
}

impl Gate {
    pub fn new(session: Arc<Session>) -> Self {
        Self { inner: Mutex::new((Lag { session, ticket: Ticket::default(), made: generation() }, Waiter::default())) }
    }
}

#[pymethods]
impl Gate {
    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    /// What `ensure_future` and `wait_for` iterate over.
    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let mut inner = self.inner.try_lock().ok_or_else(Lag::busy)?;
        let (lag, waiter) = &mut *inner;
        waiter.send(py, lag)?.into_next(py)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.inner.try_lock().map_or(Ok(()), |inner| inner.1.traverse(&visit))
    }

    fn __clear__(&self) {
        if let Some(mut inner) = self.inner.try_lock() {
            inner.1.clear();
        }
    }
}
