//! Readers as Python sees them: events one by one or in batches, or frames as bytes.

use std::ffi::CStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Waker;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyList, PyType};
use pyo3::{PyTraverseError, PyVisit};
use turnstream_core::encode::FrameStream;
use turnstream_core::reader::{self as core, Item, Poll};

use crate::bell::{check_fork, generation};
use crate::slots::{self, Awaited, Sent};
use crate::wait::{Source, Taken, Waiter, block, deadline};
use crate::{errors, event};

/// How many events are fetched under one lock; they wait here, shared with the log.
const FETCH: usize = 128;

pub struct EventSource {
    reader: core::Reader,
    /// The next one last.
    fetched: Vec<Item>,
    /// The seq of the last event that was handed out.
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
        // Control frames have none.
        if item.event().seq != 0 {
            self.consumed = item.event().seq;
        }
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

/// A source that reads a session.
trait Reads: Source {
    fn reader(&mut self) -> &mut core::Reader;
    /// Ends it early.
    fn close(&mut self);
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

struct Both<S> {
    source: S,
    waiter: Waiter,
}

/// A source and its waiter, for one thread at a time. Nobody waits for the lock: its holder may be in Python code, and wait
/// for the interpreter that the other has.
struct Shared<S: Reads> {
    both: Mutex<Both<S>>,
    closing: AtomicBool,
    made: u32,
}

impl<S: Reads> Shared<S> {
    fn new(source: S) -> Self {
        let both = Mutex::new(Both { source, waiter: Waiter::default() });
        Self { both, closing: AtomicBool::new(false), made: generation() }
    }

    fn act<T>(&self, act: impl FnOnce(&mut Both<S>) -> PyResult<T>) -> PyResult<T> {
        check_fork(self.made)?;
        let mut both = self.both.try_lock().ok_or_else(busy)?;
        let result = act(&mut both);
        drop(both);
        self.close_if_asked();
        result
    }

    fn send(&self, py: Python<'_>) -> PyResult<Sent> {
        self.act(|both| both.waiter.send(py, &mut both.source))
    }

    fn step(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        self.act(|both| both.waiter.step(py, &mut both.source))
    }

    fn wait(&self, py: Python<'_>, until: Option<Instant>) -> PyResult<Taken> {
        block::<S>(py, until, |act| self.act(|both| act(&mut both.source)))
    }

    fn step_blocking(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        Ok(match self.wait(py, None)? {
            Taken::Item(item) => Some(item),
            Taken::Pending | Taken::End => None,
        })
    }

    fn close(&self) {
        // SeqCst, here and below: of the closer, which asks and then tries the lock, and its holder, which lets it go and then
        // looks, one sees the other.
        self.closing.store(true, Ordering::SeqCst);
        self.close_if_asked();
    }

    fn close_if_asked(&self) {
        if self.closing.load(Ordering::SeqCst) {
            self.change(|source| {
                self.closing.store(false, Ordering::SeqCst);
                source.close();
            });
        }
    }

    /// Changes the source and wakes whoever is parked; not while somebody is in it.
    fn change(&self, change: impl FnOnce(&mut S)) {
        let Some(mut both) = self.both.try_lock() else { return };
        change(&mut both.source);
        let waker = both.waiter.parked_waker();
        drop(both);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.both.try_lock().map_or(Ok(()), |both| both.waiter.traverse(visit))
    }

    fn clear(&self) {
        if let Some(mut both) = self.both.try_lock() {
            both.waiter.clear();
        }
    }
}

impl<S: Reads> Drop for Shared<S> {
    fn drop(&mut self) {
        if self.made != generation() {
            self.both.get_mut().source.reader().abandon();
        }
    }
}

fn busy() -> PyErr {
    errors::raise("ReaderBusy", "another thread is reading; open a second reader instead")
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

    fn subtype() -> &'static PyOnceLock<Py<PyType>> {
        static SUBTYPE: PyOnceLock<Py<PyType>> = PyOnceLock::new();
        &SUBTYPE
    }

    const FULL_NAME: &'static CStr = c"turnstream.Reader";
}

#[pymethods]
impl Reader {
    #[new]
    fn made() -> PyResult<Self> {
        slots::pending()
    }

    fn __aiter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __anext__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        self.shared.step(py)
    }

    fn __iter__(slf: Py<Self>) -> BlockingReader {
        BlockingReader { reader: slf }
    }

    /// Lists of up to `max_events` events, all that are ready, at least one. The reader itself then yields nothing until
    /// the batches are left.
    #[pyo3(signature = (max_events = 64))]
    fn batches(slf: &Bound<'_, Self>, max_events: usize) -> PyResult<Py<PyAny>> {
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
        py.import("turnstream._glue")?.call_method1("returns", (slf,))
    }

    #[pyo3(signature = (*_error))]
    fn __aexit__<'py>(&self, py: Python<'py>, _error: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        self.close();
        py.import("turnstream._glue")?.call_method1("returns", (py.None(),))
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

/// The blocking face of a reader.
#[pyclass(frozen, module = "turnstream._native")]
pub struct BlockingReader {
    reader: Py<Reader>,
}

#[pymethods]
impl BlockingReader {
    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        self.reader.get().shared.step_blocking(py)
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

    fn subtype() -> &'static PyOnceLock<Py<PyType>> {
        static SUBTYPE: PyOnceLock<Py<PyType>> = PyOnceLock::new();
        &SUBTYPE
    }

    const FULL_NAME: &'static CStr = c"turnstream.Batches";
}

#[pymethods]
impl Batches {
    #[new]
    fn made() -> PyResult<Self> {
        slots::pending()
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.reader)
    }

    fn __aiter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __anext__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        self.batched(|shared| shared.step(py))
    }

    fn __iter__(slf: Py<Self>) -> BlockingBatches {
        BlockingBatches { batches: slf }
    }
}

/// The blocking face of batches.
#[pyclass(frozen, module = "turnstream._native")]
pub struct BlockingBatches {
    batches: Py<Batches>,
}

#[pymethods]
impl BlockingBatches {
    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        self.batches.get().batched(|shared| shared.step_blocking(py))
    }
}

pub struct ChunkSource {
    stream: FrameStream,
    scratch: Vec<u8>,
    heartbeat_due: bool,
    /// Why the server ends the stream, and when the client may come back: said in its last frame.
    closing: Option<(String, Option<u64>)>,
    ended: bool,
}

impl Source for ChunkSource {
    fn take(&mut self, py: Python<'_>) -> PyResult<Taken> {
        self.scratch.clear();
        let poll = match self.closing.take() {
            _ if self.ended => Poll::End,
            None => self.stream.poll(&mut self.scratch),
            Some((reason, retry_ms)) => {
                self.stream.write_close(&reason, retry_ms, &mut self.scratch);
                self.ended = true;
                Poll::End
            }
        };
        if poll == Poll::Pending && std::mem::take(&mut self.heartbeat_due) {
            self.stream.write_heartbeat(&mut self.scratch);
        }
        self.heartbeat_due = false;
        if !self.scratch.is_empty() {
            let chunk = PyBytes::new(py, &self.scratch).into_any().unbind();
            self.scratch.clear();
            return Ok(Taken::Item(chunk));
        }
        self.scratch = Vec::new();
        Ok(if poll == Poll::End { Taken::End } else { Taken::Pending })
    }

    fn park(&mut self, waker: &Waker) -> bool {
        !self.ended && self.closing.is_none() && self.stream.reader().park(waker)
    }

    fn unpark(&mut self) {
        self.stream.reader().unpark();
    }
}

impl Reads for ChunkSource {
    fn reader(&mut self) -> &mut core::Reader {
        self.stream.reader()
    }

    fn close(&mut self) {
        self.ended = true;
        self.stream.reader().close();
    }
}

/// Encoded frames of a session's log: each item is all frames that are ready, as bytes.
#[pyclass(frozen, subclass, weakref, name = "_FrameReader", module = "turnstream._native")]
pub struct FrameReader {
    shared: Shared<ChunkSource>,
    /// How the cursor was taken, as in `stream_open`.
    #[pyo3(get)]
    status: &'static str,
    session: Arc<turnstream_core::session::Session>,
    heartbeat: Duration,
    silence: Mutex<Silence>,
}

/// The heartbeat's clock: one timer a connection, set again only when it fires, so that it costs nothing per event.
#[derive(Default)]
struct Silence {
    since: Option<Instant>,
    timer: Option<Py<PyAny>>,
}

impl FrameReader {
    pub fn new(mut stream: FrameStream, heartbeat: Duration) -> Self {
        let status = stream.status().as_str();
        let session = stream.reader().session().clone();
        let source = ChunkSource { stream, scratch: Vec::new(), heartbeat_due: false, closing: None, ended: false };
        Self { shared: Shared::new(source), status, session, heartbeat, silence: Mutex::default() }
    }

    fn set_timer(slf: &Bound<'_, Self>, delay: Duration) -> PyResult<()> {
        let py = slf.py();
        let event_loop = crate::bell::running_loop(py)?;
        let timer = event_loop.call_method1(pyo3::intern!(py, "call_later"), (delay.as_secs_f64(), slf.getattr("_tick")?))?;
        let old = slf.get().silence.lock().timer.replace(timer.unbind());
        drop(old);
        Ok(())
    }

    fn stop_timer(&self, py: Python<'_>) -> PyResult<()> {
        let timer = self.silence.lock().timer.take();
        timer.map_or(Ok(()), |timer| timer.call_method0(py, "cancel").map(drop))
    }
}

impl Awaited for FrameReader {
    fn send(slf: &Bound<'_, Self>) -> PyResult<Sent> {
        let (py, this) = (slf.py(), slf.get());
        let stepped = this.shared.send(py);
        match &stepped {
            Ok(Sent::Yield(parked)) if !parked.is_none(py) && !this.heartbeat.is_zero() => {
                let mut silence = this.silence.lock();
                silence.since = Some(Instant::now());
                let running = silence.timer.is_some();
                drop(silence);
                if !running {
                    Self::set_timer(slf, this.heartbeat)?;
                }
            }
            Err(end) if end.is_instance_of::<pyo3::exceptions::PyStopAsyncIteration>(py) => this.stop_timer(py)?,
            _ => {}
        }
        stepped
    }

    fn subtype() -> &'static PyOnceLock<Py<PyType>> {
        static SUBTYPE: PyOnceLock<Py<PyType>> = PyOnceLock::new();
        &SUBTYPE
    }

    const FULL_NAME: &'static CStr = c"turnstream.FrameReader";
}

#[pymethods]
impl FrameReader {
    #[new]
    fn made() -> PyResult<Self> {
        slots::pending()
    }

    fn __aiter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __anext__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(slf: &Bound<'_, Self>) -> PyResult<Option<Py<PyAny>>> {
        match Self::send(slf)? {
            Sent::Return(item) => Err(crate::wait::done(slf.py(), item)),
            Sent::Yield(future) => Ok(Some(future)),
        }
    }

    /// The timer's callback, on the loop's thread.
    fn _tick(slf: &Bound<'_, Self>) -> PyResult<()> {
        let this = slf.get();
        let mut silence = this.silence.lock();
        let fired = silence.timer.take();
        let silent = silence.since.map_or(Duration::ZERO, |since| since.elapsed());
        drop(silence);
        drop(fired);
        if this.shared.both.try_lock().is_none_or(|both| both.waiter.parked_waker().is_none()) {
            return Ok(()); // not silent: the next wait sets the timer again
        }
        // A timer may fire a little early by the other clock.
        if silent + Duration::from_millis(5) >= this.heartbeat {
            this.shared.change(|source| source.heartbeat_due = true);
            return Ok(());
        }
        Self::set_timer(slf, this.heartbeat.saturating_sub(silent))
    }

    /// Where a new reader would go on: `<epoch>.<seq>` of the last event that was handed out.
    #[getter]
    fn cursor(&self) -> PyResult<String> {
        self.shared.act(|both| Ok(both.source.stream.reader().cursor().to_string()))
    }

    fn __iter__(slf: Py<Self>) -> BlockingFrameReader {
        BlockingFrameReader { reader: slf }
    }

    /// The session that it reads.
    #[getter]
    fn session(&self) -> crate::hub::Session {
        crate::hub::Session { session: self.session.clone(), made: self.shared.made }
    }

    /// Ends the iteration, also of a task that is parked in it: at once, or, with a reason, after a last frame that says it.
    /// A second call does nothing.
    #[pyo3(signature = (reason = None, *, retry_ms = None))]
    fn close(&self, py: Python<'_>, reason: Option<String>, retry_ms: Option<u64>) -> PyResult<()> {
        match reason {
            Some(reason) => self.shared.change(|source| source.closing = Some((reason, retry_ms))),
            None => self.shared.close(),
        }
        self.stop_timer(py)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        if let Some(silence) = self.silence.try_lock()
            && let Some(timer) = &silence.timer
        {
            visit.call(timer)?;
        }
        self.shared.traverse(&visit)
    }

    fn __clear__(&self) {
        self.shared.clear();
    }
}

/// The blocking face of a frame reader; it has no heartbeats.
#[pyclass(frozen, module = "turnstream._native")]
pub struct BlockingFrameReader {
    reader: Py<FrameReader>,
}

#[pymethods]
impl BlockingFrameReader {
    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        self.reader.get().shared.step_blocking(py)
    }
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    slots::register::<Reader>(module)?;
    slots::register::<Batches>(module)?;
    slots::register::<FrameReader>(module)
}
