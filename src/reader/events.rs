//! Events of a session's log, one by one or in batches.

use std::task::Waker;

use pyo3::prelude::*;
use pyo3::types::PyList;
use pyo3::{PyTraverseError, PyVisit};
use turnstream_core::event::Payload;
use turnstream_core::reader::{self as core, Item, Poll};

use super::{Reads, Shared};
use crate::away::returns;
use crate::blocking::{Blocking, Blocks};
use crate::convert::count;
use crate::slots::{self, Awaited, Sent, Subtype};
use crate::wait::{Source, Taken, deadline};
use crate::{errors, event};

/// How many events are fetched under one lock; they wait here, shared with the log.
const FETCH: usize = 128;

pub struct EventSource {
    reader: core::Reader,
    /// The next one last.
    fetched: Vec<Item>,
    /// How far what was handed out reaches.
    consumed: u64,
    batch: Option<usize>,
}

impl EventSource {
    fn next(&mut self) -> Result<Option<Item>, Poll> {
        if let Some(item) = self.fetched.pop() {
            return Ok(Some(item));
        }
        match self.reader.poll(FETCH, &mut self.fetched) {
            Poll::Ready => {
                self.fetched.reverse();
                Ok(self.fetched.pop())
            }
            other => {
                // An idle reader is a cursor: its buffers go.
                self.fetched = Vec::new();
                Err(other)
            }
        }
    }

    fn hand_out(&mut self, py: Python<'_>, item: Item) -> PyResult<Py<PyAny>> {
        self.consumed = match &item.event().payload {
            // Where history has left the log, the snapshot that follows stands for it: who has the gap alone has not come so far.
            Payload::Gap(gap) if &*gap.reason == core::EVICTED => gap.last,
            Payload::Snapshot(snapshot) => snapshot.head,
            _ if item.event().seq == 0 => self.consumed,
            _ => item.event().seq,
        };
        event::wrap(py, item.into_entry())
    }
}

impl Source for EventSource {
    fn take(&mut self, py: Python<'_>) -> PyResult<Taken> {
        let item = match self.next() {
            Ok(Some(item)) => item,
            Ok(None) | Err(Poll::Pending | Poll::Ready) => return Ok(Taken::Pending),
            Err(Poll::End) => return Ok(Taken::End),
        };
        let Some(max) = self.batch else { return Ok(Taken::Item(self.hand_out(py, item)?)) };
        let mut batch = Vec::with_capacity(max.min(FETCH));
        batch.push(self.hand_out(py, item)?);
        while batch.len() < max {
            // The first item decides whether there is a batch; an end found here is found again by the next take.
            let Ok(Some(item)) = self.next() else { break };
            batch.push(self.hand_out(py, item)?);
        }
        Ok(Taken::Item(PyList::new(py, batch)?.into_any().unbind()))
    }

    fn park(&mut self, waker: &Waker) -> bool {
        self.reader.park(waker)
    }

    fn unpark(&mut self) {
        self.reader.unpark();
    }
}

impl Reads for EventSource {
    fn reader(&mut self) -> &mut core::Reader {
        &mut self.reader
    }

    fn close(&mut self) {
        self.reader.close();
        self.fetched = Vec::new();
    }
}

/// A cursor into a session's log: an async iterator of events, and (`iter(reader)`) a blocking one.
#[pyclass(frozen, subclass, weakref, name = "_Reader", module = "turnstream._native")]
pub struct Reader {
    shared: Shared<EventSource>,
}

impl Reader {
    pub fn new(reader: core::Reader) -> Self {
        let consumed = reader.cursor().seq();
        let source = EventSource { reader, fetched: Vec::new(), consumed, batch: None };
        Self { shared: Shared::new(source) }
    }
}

impl Awaited for Reader {
    fn send(slf: &Bound<'_, Self>) -> PyResult<Sent> {
        slf.get().shared.send(slf.py())
    }

    fn subtype() -> &'static Subtype {
        static SUBTYPE: Subtype = Subtype::new(c"turnstream.Reader");
        &SUBTYPE
    }
}

impl Blocks for Reader {
    fn next_blocking(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        self.shared.next_blocking(py)
    }
}

#[pymethods]
impl Reader {
    #[new]
    fn made() -> PyResult<Self> {
        slots::pending()
    }

    fn __next__(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        Self::send(slf)?.into_next(slf.py())
    }

    fn __iter__(slf: Py<Self>) -> Blocking {
        Blocking::of(slf)
    }

    /// Lists of up to `max_events` events, all that are ready, at least one. The reader itself then yields nothing until
    /// the batches are left.
    #[pyo3(signature = (max_events = 64))]
    fn batches(slf: &Bound<'_, Self>, #[pyo3(from_py_with = count)] max_events: usize) -> PyResult<Py<PyAny>> {
        if max_events == 0 {
            return Err(pyo3::exceptions::PyValueError::new_err("max_events: expected at least 1"));
        }
        slots::make(slf.py(), Batches { reader: slf.clone().unbind(), max_events })
    }

    /// Takes the next event; blocks while there is none, `timeout` seconds at most. None at the end.
    #[pyo3(signature = (timeout = None))]
    fn get(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Py<PyAny>> {
        match self.shared.wait(py, deadline(timeout)?)? {
            Taken::Item(event) => Ok(event),
            Taken::End => Ok(py.None()),
            Taken::Pending => Err(errors::raise("StreamTimeout", "no event came in time")),
        }
    }

    /// Where a new reader would go on: `<epoch>.<seq>` of the last event that was handed out.
    #[getter]
    fn cursor(&self) -> PyResult<String> {
        self.shared.act(|both| Ok(format!("{}.{}", both.source.reader.session().epoch(), both.source.consumed)))
    }

    /// How the cursor was taken: live, resumed, caught_up, trimmed, other_epoch, ahead, finished.
    #[getter]
    fn status(&self) -> PyResult<&'static str> {
        self.shared.act(|both| Ok(both.source.reader.status().as_str()))
    }

    /// Ends the iteration, also of a task that is parked in it. A second call does nothing.
    fn close(&self) {
        self.shared.close();
    }

    fn __aenter__<'py>(slf: Bound<'py, Self>, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        returns(py, slf)
    }

    #[pyo3(signature = (*_error))]
    fn __aexit__<'py>(&self, py: Python<'py>, _error: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        self.close();
        returns(py, py.None())
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_error))]
    fn __exit__(&self, _error: &Bound<'_, PyAny>) {
        self.close();
    }

    fn __repr__(&self) -> String {
        // Another thread may be reading, or this may be the child of a fork.
        let shown = self.shared.act(|both| {
            let (reader, consumed) = (&both.source.reader, both.source.consumed);
            Ok(format!("<Reader of {:?} after {consumed}, {}>", &**reader.session().id(), reader.status().as_str()))
        });
        shown.unwrap_or_else(|_| "<Reader>".to_owned())
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.shared.traverse(&visit)
    }

    fn __clear__(&self) {
        self.shared.clear();
    }
}

/// The batches of a reader; see `Reader.batches`.
#[pyclass(frozen, subclass, name = "_Batches", module = "turnstream._native")]
pub struct Batches {
    reader: Py<Reader>,
    max_events: usize,
}

impl Batches {
    /// Acts while the reader gives lists.
    fn batched<T>(&self, act: impl FnOnce(&Shared<EventSource>) -> PyResult<T>) -> PyResult<T> {
        let shared = &self.reader.get().shared;
        let set = |batch| {
            shared.act(|both| {
                both.source.batch = batch;
                Ok(())
            })
        };
        set(Some(self.max_events))?;
        let result = act(shared);
        let _ = set(None); // somebody else is in it, and sets it for itself
        result
    }
}

impl Awaited for Batches {
    fn send(slf: &Bound<'_, Self>) -> PyResult<Sent> {
        slf.get().batched(|shared| shared.send(slf.py()))
    }

    fn subtype() -> &'static Subtype {
        static SUBTYPE: Subtype = Subtype::new(c"turnstream.Batches");
        &SUBTYPE
    }
}

impl Blocks for Batches {
    fn next_blocking(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        self.batched(|shared| shared.next_blocking(py))
    }
}

#[pymethods]
impl Batches {
    #[new]
    fn made() -> PyResult<Self> {
        slots::pending()
    }

    fn __next__(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        Self::send(slf)?.into_next(slf.py())
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.reader)
    }

    fn __iter__(slf: Py<Self>) -> Blocking {
        Blocking::of(slf)
    }
}
