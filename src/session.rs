//! Sessions as Python sees them.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyCFunction, PyDict, PyTuple};
use turnstream_core::encode::{Format, FrameStream, StreamOptions, openai};
use turnstream_core::event::Text;
use turnstream_core::reader::{self as core_reader, Cursor, Follow, ReadOptions};
use turnstream_core::session::{self as core, TurnOptions};

use crate::away::{acted, away, in_thread, returns};
use crate::bell::check_fork;
use crate::convert::{self, count};
use crate::reader::{FrameReader, Reader};
use crate::turn::{Emitter, Turn};
use crate::{errors, slots};

/// Events by which a pacing reader may lag before the producer waits.
const PACE_WINDOW: u64 = 256;

/// One conversation: one ordered log of events, and the state folded from them. Safe from every thread.
#[pyclass(frozen, weakref, module = "turnstream")]
pub struct Session {
    pub session: Arc<core::Session>,
    pub made: u32,
}

fn follow_of(word: &str) -> PyResult<Follow> {
    match word {
        "turn" => Ok(Follow::Turn),
        "session" => Ok(Follow::Session),
        "none" => Ok(Follow::None),
        _ => Err(PyValueError::new_err("follow: expected turn, session or none")),
    }
}

fn flag(name: &str, word: &str, off: &str, on: &str) -> PyResult<bool> {
    match word {
        word if word == off => Ok(false),
        word if word == on => Ok(true),
        _ => Err(PyValueError::new_err(format!("{name}: expected {off} or {on}"))),
    }
}

fn read_options(after: Option<&str>, follow: &str, deltas: &str, on_trim: &str, pace: bool) -> PyResult<ReadOptions> {
    Ok(ReadOptions {
        after: after.map(Cursor::parse).transpose().map_err(errors::cursor)?,
        follow: follow_of(follow)?,
        merge: flag("deltas", deltas, "exact", "merged")?,
        pace_window: if pace { PACE_WINDOW } else { 0 },
        fail_on_trim: flag("on_trim", on_trim, "snapshot", "fail")?,
        state_first: false,
        history: true,
    })
}

fn parse_format(name: &str) -> PyResult<Format> {
    Format::parse(name).ok_or_else(|| {
        let known: Vec<_> = Format::ALL.iter().map(|(name, _)| *name).collect();
        PyValueError::new_err(format!("format: expected one of {}", known.join(", ")))
    })
}

impl Session {
    /// The session, in the process that made it: a thread of the parent's may have held its lock when the child was forked.
    fn core(&self) -> PyResult<&Arc<core::Session>> {
        check_fork(self.made)?;
        Ok(&self.session)
    }
}

#[pymethods]
impl Session {
    /// Its id.
    #[getter]
    fn id(&self) -> &str {
        self.session.id()
    }

    /// The log's life: cursors of another epoch belong to another log.
    #[getter]
    fn epoch(&self) -> &str {
        self.session.epoch()
    }

    /// seq of the newest event; 0 when there is none.
    #[getter]
    fn head(&self) -> PyResult<u64> {
        Ok(self.core()?.position().head)
    }

    /// seq of the oldest event in the log.
    #[getter]
    fn earliest(&self) -> PyResult<Option<u64>> {
        Ok(self.core()?.earliest())
    }

    /// `<epoch>.<head>`.
    #[getter]
    fn cursor(&self) -> PyResult<String> {
        Ok(format!("{}.{}", self.session.epoch(), self.head()?))
    }

    /// Starts a turn (logs `turn_start`). TurnActive while one runs; SessionClosed after the session's end.
    ///
    /// With a `client_id` that came before and an equal input, the turn that was started then, running or ended;
    /// with another input, Conflict.
    #[pyo3(signature = (input = None, *, backend = None, client_id = None, metadata = None, principal = None))]
    fn turn(
        slf: &Bound<'_, Self>,
        input: Option<&Bound<'_, PyAny>>,
        backend: Option<&str>,
        client_id: Option<&str>,
        metadata: Option<&Bound<'_, PyAny>>,
        principal: Option<Py<PyAny>>,
    ) -> PyResult<Turn> {
        let this = slf.get();
        check_fork(this.made)?;
        let json = |value: Option<&Bound<'_, PyAny>>| value.map(convert::to_json).transpose();
        let options = TurnOptions {
            input: json(input)?,
            client_id: client_id.map(Text::from),
            backend: backend.map(Text::from),
            metadata: json(metadata)?,
        };
        let started =
            away(slf.py(), &this.session, || this.session.start_turn(options)).map_err(|error| errors::session(&error))?;
        let session = Self { session: this.session.clone(), made: this.made };
        Ok(Turn::new(session, &started, input.map(|input| input.clone().unbind()), principal))
    }

    /// `turn`, awaited: a store is asked in a thread, and the loop runs on.
    #[pyo3(signature = (input = None, **options))]
    fn aturn<'py>(
        slf: &Bound<'py, Self>,
        input: Option<&Bound<'py, PyAny>>,
        options: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let turn = slf.getattr("turn")?;
        if !slf.get().core()?.is_stored() {
            return returns(py, turn.call((input,), options)?);
        }
        let start = py.import("functools")?.getattr("partial")?.call((turn, input), options)?;
        in_thread(&start, PyTuple::empty(py))
    }

    /// A callable `emit(type, payload=None, *, turn=None, **fields) -> seq`, safe from every thread.
    fn emitter(&self) -> Emitter {
        Emitter { session: self.session.clone(), made: self.made }
    }

    /// A reader: an async iterator of events, and a blocking one. Malformed cursors raise CursorError.
    #[pyo3(signature = (after = None, follow = "turn", *, pace = false, deltas = "exact", on_trim = "snapshot"))]
    fn read(
        &self,
        py: Python<'_>,
        after: Option<&str>,
        follow: &str,
        pace: bool,
        deltas: &str,
        on_trim: &str,
    ) -> PyResult<Py<PyAny>> {
        check_fork(self.made)?;
        let options = read_options(after, follow, deltas, on_trim, pace)?;
        let reader = core_reader::Reader::open(&self.session, &options).map_err(|error| errors::read(&error))?;
        slots::make(py, Reader::new(reader))
    }

    /// Calls `callback` with each event, in order, one at a time; see turnstream.subscription.
    #[pyo3(signature = (callback, *, types = None, follow = "session", after = None, backlog = 1000, deltas = "exact"))]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments")]
    fn subscribe<'py>(
        slf: &Bound<'py, Self>,
        callback: &Bound<'py, PyAny>,
        types: Option<&Bound<'py, PyAny>>,
        follow: &str,
        after: Option<&str>,
        #[pyo3(from_py_with = count)] backlog: usize,
        deltas: &str,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        check_fork(slf.get().made)?;
        let class = py.import("turnstream.subscription")?.getattr("Subscription")?;
        let options = PyDict::new(py);
        options.set_item("types", types)?;
        options.set_item("follow", follow)?;
        options.set_item("after", after)?;
        options.set_item("backlog", backlog)?;
        options.set_item("deltas", deltas)?;
        class.call((slf, callback), Some(&options))
    }

    /// Counts a call of a subscriber that raised.
    fn _count_failure(&self) -> PyResult<()> {
        self.core()?.count_failure();
        Ok(())
    }

    /// The same log as encoded frames: each item is all frames that are ready, up to about `max_bytes`; `stream_open`
    /// first, a heartbeat after each `heartbeat_s` of silence (0: none); ends after what it follows, or `limit` events.
    #[pyo3(signature = (
        after = None, follow = "turn", *, format = "sse", deltas = "merged", on_trim = "snapshot", heartbeat_s = 10.0,
        max_bytes = 65_536, limit = None, retry_ms = None
    ))]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments")]
    fn frames(
        &self,
        py: Python<'_>,
        after: Option<&str>,
        follow: &str,
        format: &str,
        deltas: &str,
        on_trim: &str,
        heartbeat_s: f64,
        max_bytes: usize,
        limit: Option<u64>,
        retry_ms: Option<u64>,
    ) -> PyResult<Py<PyAny>> {
        check_fork(self.made)?;
        let read = read_options(after, follow, deltas, on_trim, false)?;
        let format = parse_format(format)?;
        let heartbeat = Duration::try_from_secs_f64(heartbeat_s)
            .map_err(|_| PyValueError::new_err("heartbeat_s: expected seconds, 0 for none"))?;
        let options = StreamOptions { heartbeat_s, max_bytes, limit, retry_ms };
        let stream = FrameStream::open(&self.session, &read, options, format.encoder()).map_err(|error| errors::read(&error))?;
        slots::make(py, FrameReader::new(stream, heartbeat))
    }

    /// The status page: state, turn, epoch, head, earliest, cursor, progress, usage, error, readers,
    /// subscriber_failures, started, updated.
    fn status<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        convert::loads(py, self.core()?.status_json().as_str())
    }

    /// What was said so far, user inputs and partial answers included.
    fn messages<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let json = self.core()?.see(turnstream_core::session::State::messages_json);
        convert::loads(py, json.as_str())
    }

    /// `{"messages", "cursor"}`: what was said so far, and the cursor from which a reader sees exactly the rest; `dropped`, how
    /// much of it has left the state, where something has.
    fn snapshot<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let (head, messages, dropped) = self.core()?.messages_snapshot();
        let dict = PyDict::new(py);
        dict.set_item("messages", convert::loads(py, messages.as_str())?)?;
        dict.set_item("cursor", format!("{}.{head}", self.session.epoch()))?;
        if let Some(dropped) = dropped {
            dict.set_item("dropped", convert::loads(py, dropped.as_str())?)?;
        }
        Ok(dict)
    }

    /// The last turn's `completion`; None while a turn runs or before the first has ended.
    fn result<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        self.core()?.result().map(|json| convert::loads(py, json.as_str())).transpose()
    }

    /// The turn that begins after the cursor `after`, as the format's answer to a request that does not stream: JSON.
    /// None where no turn begins there, or the format knows no partial answer and the turn runs.
    fn answer(&self, after: &str, format: &str) -> PyResult<Option<String>> {
        let format = parse_format(format)?;
        let cursor = Cursor::parse(after).map_err(errors::cursor)?;
        let body = openai::body(self.core()?, cursor, format).map_err(|error| errors::read(&error))?;
        Ok(body.map(|json| json.as_str().to_owned()))
    }

    /// Exact counts of what the session did.
    fn statistics<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let counts = self.core()?.statistics();
        let dict = PyDict::new(py);
        for (name, count) in [
            ("appended", counts.appended),
            ("duplicates", counts.duplicates),
            ("late", counts.late),
            ("refused", counts.refused),
            ("capped", counts.capped),
            ("redaction_failures", counts.redaction_failures),
            ("evicted", counts.evicted),
            ("retained", counts.retained),
            ("bytes", counts.bytes),
            ("readers", counts.readers),
            ("subscriber_failures", counts.subscriber_failures),
        ] {
            dict.set_item(name, count)?;
        }
        Ok(dict)
    }

    /// The number of the running turn; None while none runs.
    #[getter]
    fn running(&self) -> PyResult<Option<u32>> {
        Ok(self.core()?.running())
    }

    /// Awaits until no pacing reader lags by its window, as `Turn.ready`.
    fn ready<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let gate = crate::pace::Gate::new(slf.get().core()?.clone());
        Ok(Bound::new(slf.py(), gate)?.into_any())
    }

    /// Puts `value` on the status page under `name`, in place of what stood there.
    fn note(&self, name: &str, value: &Bound<'_, PyAny>) -> PyResult<()> {
        let value = convert::to_json(value)?;
        self.core()?.note(name, value);
        Ok(())
    }

    /// Appends a producer's batch. PayloadError where the blob is none. Returns the batch's header and what became of it.
    fn emit_batch<'py>(&self, py: Python<'py>, blob: &[u8]) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyDict>)> {
        let session = self.core()?;
        let batch = crate::remote::read(blob)?;
        let header = convert::loads(py, batch.header.to_json().as_str())?;
        let taken = session.emit_batch(batch);
        let counts = PyDict::new(py);
        for (name, count) in [
            ("published", taken.published),
            ("accepted", taken.accepted),
            ("duplicates", taken.duplicates),
            ("late", taken.late),
            ("malformed", taken.malformed),
            ("lost", taken.lost),
            ("dropped", taken.dropped),
            ("waited", taken.waited),
        ] {
            counts.set_item(name, count)?;
        }
        counts.set_item("skipped", taken.skipped)?;
        Ok((header, counts))
    }

    /// An emitter to send to another process: the same callable there. See `turnstream.remote`.
    #[pyo3(signature = (**options))]
    fn remote_emitter<'py>(slf: &Bound<'py, Self>, options: Option<&Bound<'py, PyDict>>) -> PyResult<Bound<'py, PyAny>> {
        slf.get().core()?;
        slf.py().import("turnstream.remote")?.getattr("remote_emitter")?.call((slf,), options)
    }

    /// Drains what remote producers send into this session, to the turn's end. See `turnstream.remote`.
    #[pyo3(signature = (source, **options))]
    fn pump<'py>(
        slf: &Bound<'py, Self>,
        source: &Bound<'py, PyAny>,
        options: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        slf.get().core()?;
        slf.py().import("turnstream.remote")?.getattr("pump")?.call((slf, source), options)
    }

    /// Stops the running turn: ends it as cancelled, with its partial text and usage, and cancels its task. Awaits to
    /// False when none was running.
    #[pyo3(signature = (reason = "cancelled"))]
    fn cancel<'py>(&self, py: Python<'py>, reason: &str) -> PyResult<Bound<'py, PyAny>> {
        let session = self.core()?;
        let begun = away(py, session, || session.begin_cancel(reason));
        if !session.is_stored() {
            return acted(py, "returns", (begun.wait(session),));
        }
        let (session, begun) = (session.clone(), Mutex::new(Some(begun)));
        let wait = move |arguments: &Bound<'_, PyTuple>, _: Option<&Bound<'_, PyDict>>| -> bool {
            let begun = begun.lock().take();
            arguments.py().detach(|| begun.is_some_and(|begun| begun.wait(&session)))
        };
        acted(py, "in_thread", (PyCFunction::new_closure(py, None, None, wait)?, PyTuple::empty(py)))
    }

    /// Ends the session: the running turn as cancelled, then `session_end`. A second call does nothing.
    #[pyo3(signature = (reason = None))]
    fn close(&self, py: Python<'_>, reason: Option<&str>) -> PyResult<()> {
        let session = self.core()?;
        away(py, session, || session.close(reason));
        Ok(())
    }

    fn __reduce__(&self) -> PyResult<()> {
        Err(errors::stays("a session"))
    }

    fn __repr__(&self) -> String {
        match self.head() {
            Ok(head) => format!("<Session {:?} {} head={head}>", self.id(), self.session.state_word()),
            Err(_) => format!("<Session {:?} of the parent process>", self.id()),
        }
    }

    fn __eq__(&self, other: &Bound<'_, PyAny>) -> bool {
        other.cast::<Self>().is_ok_and(|other| Arc::ptr_eq(&other.get().session, &self.session))
    }

    fn __hash__(&self) -> usize {
        Arc::as_ptr(&self.session) as usize
    }
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Session>()
}
