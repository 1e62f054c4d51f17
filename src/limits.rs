//! How much is kept, as Python sees it.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use turnstream_core::session as core;

use crate::convert::count;

/// How much a session keeps, and how much all sessions of a hub keep together.
#[pyclass(frozen, eq, module = "turnstream")]
#[derive(PartialEq)]
pub struct Limits {
    pub limits: core::Limits,
}

#[pymethods]
impl Limits {
    #[new]
    #[pyo3(signature = (
        *, max_events = 100_000, max_bytes = 67_108_864, max_age_s = 3600.0, max_message_bytes = 16_777_216,
        max_state_bytes = 33_554_432, max_sessions = 100_000, hub_max_events = 10_000_000, hub_max_bytes = 1_073_741_824
    ))]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments")]
    fn new(
        #[pyo3(from_py_with = count)] max_events: usize,
        #[pyo3(from_py_with = count)] max_bytes: usize,
        max_age_s: f64,
        #[pyo3(from_py_with = count)] max_message_bytes: usize,
        #[pyo3(from_py_with = count)] max_state_bytes: usize,
        #[pyo3(from_py_with = count)] max_sessions: usize,
        #[pyo3(from_py_with = count)] hub_max_events: usize,
        #[pyo3(from_py_with = count)] hub_max_bytes: usize,
    ) -> PyResult<Self> {
        let counts = [max_events, max_bytes, max_message_bytes, max_state_bytes, max_sessions, hub_max_events, hub_max_bytes];
        if counts.contains(&0) || max_age_s.is_nan() || max_age_s <= 0.0 {
            return Err(PyValueError::new_err("limits: expected numbers above 0"));
        }
        let milliseconds = (max_age_s * 1000.0).min(1e15).ceil();
        #[allow(clippy::cast_sign_loss, reason = "checked above")]
        let milliseconds = milliseconds as u64;
        let limits = core::Limits {
            max_events,
            max_bytes,
            max_age_ms: milliseconds,
            max_message_bytes,
            max_state_bytes,
            max_sessions,
            hub_max_events,
            hub_max_bytes,
        };
        Ok(Self { limits })
    }

    /// Events in a session's log.
    #[getter]
    fn max_events(&self) -> usize {
        self.limits.max_events
    }

    /// Bytes in a session's log, about.
    #[getter]
    fn max_bytes(&self) -> usize {
        self.limits.max_bytes
    }

    /// Age of an event in seconds; also how long a finished session is kept.
    #[getter]
    #[allow(clippy::cast_precision_loss, reason = "below 2^53")]
    fn max_age_s(&self) -> f64 {
        self.limits.max_age_ms as f64 / 1000.0
    }

    /// Bytes of one message's text, and of its reasoning and its refusal.
    #[getter]
    fn max_message_bytes(&self) -> usize {
        self.limits.max_message_bytes
    }

    /// Bytes of a session's folded state, about: its messages, calls, citations and files.
    #[getter]
    fn max_state_bytes(&self) -> usize {
        self.limits.max_state_bytes
    }

    /// Sessions in a hub.
    #[getter]
    fn max_sessions(&self) -> usize {
        self.limits.max_sessions
    }

    /// Events in all logs of a hub.
    #[getter]
    fn hub_max_events(&self) -> usize {
        self.limits.hub_max_events
    }

    /// Bytes in all logs of a hub, about.
    #[getter]
    fn hub_max_bytes(&self) -> usize {
        self.limits.hub_max_bytes
    }

    /// For pickle and copy.
    fn __getnewargs_ex__<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyTuple>, Bound<'py, PyDict>)> {
        // By name, all of them: one that is forgotten here does not compile.
        let core::Limits {
            max_events,
            max_bytes,
            max_age_ms: _,
            max_message_bytes,
            max_state_bytes,
            max_sessions,
            hub_max_events,
            hub_max_bytes,
        } = self.limits;
        let keywords = PyDict::new(py);
        keywords.set_item("max_age_s", self.max_age_s())?;
        for (name, count) in [
            ("max_events", max_events),
            ("max_bytes", max_bytes),
            ("max_message_bytes", max_message_bytes),
            ("max_state_bytes", max_state_bytes),
            ("max_sessions", max_sessions),
            ("hub_max_events", hub_max_events),
            ("hub_max_bytes", hub_max_bytes),
        ] {
            keywords.set_item(name, count)?;
        }
        Ok((PyTuple::empty(py), keywords))
    }

    fn __repr__(&self) -> String {
        let limits = self.limits;
        let core::Limits { max_events, max_bytes, max_message_bytes, max_state_bytes, .. } = limits;
        let core::Limits { max_sessions, hub_max_events, hub_max_bytes, .. } = limits;
        let max_age_s = self.max_age_s();
        format!(
            "Limits(max_events={max_events}, max_bytes={max_bytes}, max_age_s={max_age_s}, max_message_bytes={max_message_bytes}, \
             max_state_bytes={max_state_bytes}, max_sessions={max_sessions}, hub_max_events={hub_max_events}, hub_max_bytes={hub_max_bytes})"
        )
    }
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Limits>()
}
