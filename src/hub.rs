//! Hub, limits and sessions as Python sees them.

use std::sync::Arc;
use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use turnstream_core::encode::{Format, FrameStream, StreamOptions};
use turnstream_core::event::Text;
use turnstream_core::reader::{self as core_reader, Cursor, Follow, ReadOptions};
use turnstream_core::session::redact::Redact;
use turnstream_core::session::{self as core, TurnOptions};

use crate::bell::{check_fork, generation};
use crate::reader::{FrameReader, Reader};
use crate::redact::Hook;
use crate::turn::{Emitter, Turn};
use crate::{convert, errors, slots};

/// Events by which a pacing reader may lag before the producer waits.
const PACE_WINDOW: u64 = 256;

/// How much a session keeps, and how much all sessions of a hub keep together.
#[pyclass(frozen, eq, module = "turnstream")]
#[derive(PartialEq)]
pub struct Limits {
    limits: core::Limits,
}

#[pymethods]
impl Limits {
    #[new]
    #[pyo3(signature = (
        *, max_events = 100_000, max_bytes = 67_108_864, max_age_s = 3600.0, max_message_bytes = 16_777_216,
        max_sessions = 100_000, hub_max_events = 10_000_000, hub_max_bytes = 1_073_741_824
    ))]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments")]
    fn new(
        max_events: usize,
        max_bytes: usize,
        max_age_s: f64,
        max_message_bytes: usize,
        max_sessions: usize,
        hub_max_events: usize,
        hub_max_bytes: usize,
    ) -> PyResult<Self> {
        let counts = [max_events, max_bytes, max_message_bytes, max_sessions, hub_max_events, hub_max_bytes];
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

    fn __repr__(&self) -> String {
        let core::Limits { max_events, max_bytes, max_message_bytes, max_sessions, hub_max_events, hub_max_bytes, .. } =
            self.limits;
        let max_age_s = self.max_age_s();
        format!(
            "Limits(max_events={max_events}, max_bytes={max_bytes}, max_age_s={max_age_s}, max_message_bytes={max_message_bytes}, \
             max_sessions={max_sessions}, hub_max_events={hub_max_events}, hub_max_bytes={hub_max_bytes})"
        )
    }
}

/// The sessions, and the store they live in. Safe from every thread.
#[pyclass(frozen, weakref, module = "turnstream")]
pub struct Hub {
    hub: core::Hub,
    made: u32,
}

#[pymethods]
impl Hub {
    #[new]
    #[pyo3(signature = (store = "memory", limits = None, *, redact = None))]
    fn new(store: &str, limits: Option<&Limits>, redact: Option<Py<PyAny>>) -> PyResult<Self> {
        if store != "memory" {
            let scheme: String = store.chars().take_while(|c| *c != ':').take(32).collect();
            return Err(errors::raise("UnknownStore", format!("unknown store {scheme:?}; known: memory")));
        }
        let limits = limits.map(|limits| limits.limits).unwrap_or_default();
        let redact = redact.map(|hook| Arc::new(Hook { hook }) as Arc<dyn Redact>);
        Ok(Self { hub: core::Hub::with_redaction(limits, redact), made: generation() })
    }

    /// The session `id`, made if it is new; without an id, a new one under an id nobody can guess.
    #[pyo3(signature = (id = None))]
    fn session(&self, id: Option<&str>) -> PyResult<Session> {
        check_fork(self.made)?;
        if id.is_some_and(|id| id.is_empty() || id.len() > 256 || id.chars().any(char::is_control)) {
            return Err(PyValueError::new_err("session id: expected 1 to 256 bytes without control characters"));
        }
        let session = self.hub.session(id).map_err(|error| errors::session(&error))?;
        Ok(Session { session, made: self.made })
    }

    /// The session `id`, or UnknownSession; never makes one.
    fn find(&self, id: &str) -> PyResult<Session> {
        check_fork(self.made)?;
        let session = self.hub.find(id).map_err(|error| errors::session(&error))?;
        Ok(Session { session, made: self.made })
    }

    /// All sessions, newest activity first.
    fn sessions(&self) -> PyResult<Vec<Session>> {
        check_fork(self.made)?;
        Ok(self.hub.sessions().into_iter().map(|session| Session { session, made: self.made }).collect())
    }

    /// Ends the session (its running turn as cancelled) and forgets it. False when there was none.
    fn delete(&self, id: &str) -> PyResult<bool> {
        check_fork(self.made)?;
        Ok(self.hub.delete(id))
    }

    /// The sessions whose running turn has now said nothing for `timeout_s`. Each gets a `warning` with the code
    /// `stalled`, once per stall.
    fn check_stalls(&self, timeout_s: f64) -> PyResult<Vec<Session>> {
        check_fork(self.made)?;
        let timeout = Duration::try_from_secs_f64(timeout_s).map_err(|_| PyValueError::new_err("timeout_s: expected seconds"))?;
        let stalled = self.hub.check_stalls(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
        Ok(stalled.into_iter().map(|session| Session { session, made: self.made }).collect())
    }

    /// Exact counts: sessions, events, bytes, forgotten.
    fn statistics<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        check_fork(self.made)?;
        let counts = self.hub.statistics();
        let dict = PyDict::new(py);
        for (name, count) in
            [("sessions", counts.sessions), ("events", counts.events), ("bytes", counts.bytes), ("forgotten", counts.forgotten)]
        {
            dict.set_item(name, count)?;
        }
        Ok(dict)
    }

    /// Ends all sessions and forgets them.
    fn close(&self) -> PyResult<()> {
        check_fork(self.made)?;
        self.hub.close();
        Ok(())
    }
}

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
        let started = this.session.start_turn(options).map_err(|error| errors::session(&error))?;
        let session = Self { session: this.session.clone(), made: this.made };
        Ok(Turn::new(session, &started, input.map(|input| input.clone().unbind()), principal))
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
        backlog: usize,
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
        let format = Format::parse(format).ok_or_else(|| {
            let known: Vec<_> = Format::ALL.iter().map(|(name, _)| *name).collect();
            PyValueError::new_err(format!("format: expected one of {}", known.join(", ")))
        })?;
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
        let json = self.core()?.look(turnstream_core::session::State::messages_json);
        convert::loads(py, json.as_str())
    }

    /// The last turn's `completion`; None while a turn runs or before the first has ended.
    fn result<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        self.core()?.result().map(|json| convert::loads(py, json.as_str())).transpose()
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

    /// Stops the running turn: ends it as cancelled, with its partial text and usage, and cancels its task. Awaits to
    /// False when none was running.
    #[pyo3(signature = (reason = "cancelled"))]
    fn cancel<'py>(&self, py: Python<'py>, reason: &str) -> PyResult<Bound<'py, PyAny>> {
        let ran = self.core()?.cancel(reason);
        py.import("turnstream._glue")?.call_method1("returns", (ran,))
    }

    /// Ends the session: the running turn as cancelled, then `session_end`. A second call does nothing.
    #[pyo3(signature = (reason = None))]
    fn close(&self, reason: Option<&str>) -> PyResult<()> {
        self.core()?.close(reason);
        Ok(())
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
    module.add_class::<Limits>()?;
    module.add_class::<Hub>()?;
    module.add_class::<Session>()
}
