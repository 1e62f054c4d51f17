//! Hubs as Python sees them.

use std::ffi::CString;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use pyo3::exceptions::{PyRuntimeWarning, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use turnstream_core::session as core;
use turnstream_core::session::redact::Redact;
use turnstream_core::store::Durability;

use crate::away::{in_thread, returns};
use crate::bell::{check_fork, generation};
use crate::errors;
use crate::limits::Limits;
use crate::redact::Hook;
use crate::session::Session;

/// The sessions, and the store they live in. Safe from every thread.
#[pyclass(frozen, weakref, module = "turnstream")]
pub struct Hub {
    core: Arc<core::Hub>,
    /// Where its sessions live: "memory", or the scheme of the store's URL.
    #[pyo3(get)]
    store: String,
    made: u32,
}

/// Hubs with a store: at exit, what they logged is written before the process ends.
static STORED: Mutex<Vec<(Weak<core::Hub>, u32)>> = Mutex::new(Vec::new());

/// Writes what still waits, within each session's patience. In the child of a fork nothing does: its hubs are the parent's.
pub fn flush_all() {
    let Some(mut stored) = STORED.try_lock() else { return };
    let hubs: Vec<_> = stored.drain(..).filter(|(_, made)| *made == generation()).filter_map(|(hub, _)| hub.upgrade()).collect();
    drop(stored);
    for hub in hubs {
        hub.flush();
    }
}

#[pymethods]
impl Hub {
    #[new]
    #[pyo3(signature = (store = "memory", limits = None, *, redact = None, durability = "process"))]
    fn new(py: Python<'_>, store: &str, limits: Option<&Limits>, redact: Option<Py<PyAny>>, durability: &str) -> PyResult<Self> {
        let limits = limits.map(|limits| limits.limits).unwrap_or_default();
        let durability =
            Durability::parse(durability).ok_or_else(|| PyValueError::new_err("durability: expected memory, process or disk"))?;
        let redact = redact.map(|hook| Arc::new(Hook { hook }) as Arc<dyn Redact>);
        if store == "memory" {
            return Ok(Self {
                core: Arc::new(core::Hub::with_redaction(limits, redact)),
                store: store.into(),
                made: generation(),
            });
        }
        let opened = py.detach(|| {
            let (opened, options) = turnstream_core::store::open(store, durability)?;
            let warnings = opened.warnings();
            Ok((core::Hub::with_store(limits, opened, options, redact)?, warnings))
        });
        let (hub, warnings) = opened.map_err(|error| errors::store(&error))?;
        for warning in warnings {
            PyErr::warn(py, &py.get_type::<PyRuntimeWarning>(), &CString::new(warning)?, 1)?;
        }
        let hub = Arc::new(hub);
        STORED.lock().push((Arc::downgrade(&hub), generation()));
        let scheme = store.split(':').next().unwrap_or_default();
        Ok(Self { core: hub, store: scheme.into(), made: generation() })
    }

    /// The session `id`, made if it is new; without an id, a new one under an id nobody can guess.
    #[pyo3(signature = (id = None))]
    fn session(&self, py: Python<'_>, id: Option<&str>) -> PyResult<Session> {
        check_fork(self.made)?;
        if id.is_some_and(|id| id.is_empty() || id.len() > 256 || id.chars().any(char::is_control)) {
            return Err(PyValueError::new_err("session id: expected 1 to 256 bytes without control characters"));
        }
        let session = py.detach(|| self.core.session(id)).map_err(|error| errors::session(&error))?;
        Ok(Session { session, made: self.made })
    }

    /// The session `id`, or UnknownSession; never makes one.
    fn find(&self, py: Python<'_>, id: &str) -> PyResult<Session> {
        check_fork(self.made)?;
        let session = py.detach(|| self.core.find(id)).map_err(|error| errors::session(&error))?;
        Ok(Session { session, made: self.made })
    }

    /// `session`, awaited: a store is read in a thread, and the loop runs on.
    #[pyo3(signature = (id = None))]
    fn asession<'py>(slf: &Bound<'py, Self>, id: Option<&str>) -> PyResult<Bound<'py, PyAny>> {
        let this = slf.get();
        let known = id.and_then(|id| this.core.known(id)).map(|session| Session { session, made: this.made });
        if this.core.is_stored() && known.is_none() {
            return in_thread(&slf.getattr("session")?, (id,).into_pyobject(slf.py())?);
        }
        check_fork(this.made)?;
        returns(slf.py(), known.map_or_else(|| this.session(slf.py(), id), Ok)?)
    }

    /// `find`, awaited: a store is read in a thread, and the loop runs on.
    fn afind<'py>(slf: &Bound<'py, Self>, id: &str) -> PyResult<Bound<'py, PyAny>> {
        let this = slf.get();
        let known = this.core.known(id).map(|session| Session { session, made: this.made });
        if this.core.is_stored() && known.is_none() {
            return in_thread(&slf.getattr("find")?, (id,).into_pyobject(slf.py())?);
        }
        check_fork(this.made)?;
        returns(slf.py(), known.map_or_else(|| this.find(slf.py(), id), Ok)?)
    }

    /// `delete`, awaited: a store is told in a thread, and the loop runs on.
    fn adelete<'py>(slf: &Bound<'py, Self>, id: &str) -> PyResult<Bound<'py, PyAny>> {
        let this = slf.get();
        if this.core.is_stored() {
            return in_thread(&slf.getattr("delete")?, (id,).into_pyobject(slf.py())?);
        }
        returns(slf.py(), this.delete(slf.py(), id)?)
    }

    /// The sessions that this process has open, newest activity first: all of them in memory, of a store's those it has used.
    fn sessions(&self) -> PyResult<Vec<Session>> {
        check_fork(self.made)?;
        Ok(self.core.sessions().into_iter().map(|session| Session { session, made: self.made }).collect())
    }

    /// Ends the session (its running turn as cancelled) and forgets it. False when there was none.
    fn delete(&self, py: Python<'_>, id: &str) -> PyResult<bool> {
        check_fork(self.made)?;
        py.detach(|| self.core.remove(id)).map_err(|error| errors::session(&error))
    }

    /// The sessions whose running turn has now said nothing for `timeout_s`. Each gets a `warning` with the code
    /// `stalled`, once per stall.
    fn check_stalls(&self, timeout_s: f64) -> PyResult<Vec<Session>> {
        check_fork(self.made)?;
        let timeout = Duration::try_from_secs_f64(timeout_s).map_err(|_| PyValueError::new_err("timeout_s: expected seconds"))?;
        let stalled = self.core.check_stalls(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
        Ok(stalled.into_iter().map(|session| Session { session, made: self.made }).collect())
    }

    /// Exact counts: sessions, events, bytes, forgotten.
    fn statistics<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        check_fork(self.made)?;
        let counts = self.core.statistics();
        let dict = PyDict::new(py);
        for (name, count) in
            [("sessions", counts.sessions), ("events", counts.events), ("bytes", counts.bytes), ("forgotten", counts.forgotten)]
        {
            dict.set_item(name, count)?;
        }
        Ok(dict)
    }

    /// Waits, at most half a second a session, until the store has what was logged: True if it has. At once in memory.
    fn flush(&self, py: Python<'_>) -> PyResult<bool> {
        check_fork(self.made)?;
        Ok(py.detach(|| self.core.flush()))
    }

    /// Ends all sessions and forgets them. In a store they stay: only the turns that run in this process are ended.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        check_fork(self.made)?;
        py.detach(|| self.core.close());
        Ok(())
    }

    fn __repr__(&self) -> String {
        if self.made != generation() {
            return format!("<Hub {:?} of the parent process>", self.store);
        }
        format!("<Hub {:?} sessions={}>", self.store, self.core.statistics().sessions)
    }
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Hub>()
}
