//! Encoded frames of a session's log, all that are ready at a time, and the heartbeat of silence.

use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use pyo3::{PyTraverseError, PyVisit};
use turnstream_core::encode::FrameStream;
use turnstream_core::reader::{self as core, Poll};

use super::{Reads, Shared};
use crate::blocking::{Blocking, Blocks};
use crate::session::Session;
use crate::slots::{self, Awaited, Sent, Subtype};
use crate::wait::{Source, Taken};

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

    fn subtype() -> &'static Subtype {
        static SUBTYPE: Subtype = Subtype::new(c"turnstream.FrameReader");
        &SUBTYPE
    }
}

/// Without heartbeats.
impl Blocks for FrameReader {
    fn next_blocking(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        self.shared.next_blocking(py)
    }
}

#[pymethods]
impl FrameReader {
    #[new]
    fn made() -> PyResult<Self> {
        slots::pending()
    }

    fn __next__(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        Self::send(slf)?.into_next(slf.py())
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

    fn __iter__(slf: Py<Self>) -> Blocking {
        Blocking::of(slf)
    }

    /// The session that it reads.
    #[getter]
    fn session(&self) -> Session {
        Session { session: self.session.clone(), made: self.shared.made }
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
