//! Turns and emitters as Python sees them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use pyo3::{PyTraverseError, PyVisit};
use turnstream_core::event::{Payload, Status};
use turnstream_core::session::{self as core, Ending, Started};

use crate::away::{away, returns};
use crate::bell::{before_exit_or_never, check_fork, running_loop_if_any};
use crate::convert::{self, whole};
use crate::errors;
use crate::pace::{Gate, wait_ready};
use crate::session::Session;

fn emit(
    py: Python<'_>,
    session: &core::Session,
    turn: Option<u32>,
    kind: &str,
    payload: Option<&Bound<'_, PyAny>>,
    fields: Option<&Bound<'_, PyDict>>,
) -> PyResult<u64> {
    // A payload's own code may run in it, and a redaction hook.
    before_exit_or_never(py, || {
        let object = convert::object_to_json(payload, fields)?;
        let (payload, extra) = Payload::from_json(kind, &object).map_err(|error| errors::payload(&error))?;
        away(py, session, || session.emit(turn, payload, extra)).map_err(|error| errors::session(&error))
    })
}

/// `emit(type, payload=None, *, turn=None, **fields) -> seq`: appends one event to a session, from any thread.
///
/// Without `turn`, the running one is meant, or the session itself where none runs. PayloadError where type or fields
/// are not of the vocabulary, TurnEnded after the turn's completion, SessionClosed after the session's end.
#[pyclass(frozen, weakref, module = "turnstream")]
pub struct Emitter {
    pub session: Arc<core::Session>,
    pub made: u32,
}

#[pymethods]
impl Emitter {
    fn __reduce__(&self) -> PyResult<()> {
        Err(errors::stays("an emitter"))
    }

    fn __repr__(&self) -> String {
        format!("<Emitter of {:?}>", &**self.session.id())
    }

    #[pyo3(signature = (r#type, payload = None, *, turn = None, **fields))]
    fn __call__(
        &self,
        py: Python<'_>,
        r#type: &str,
        payload: Option<&Bound<'_, PyAny>>,
        turn: Option<&Bound<'_, PyAny>>,
        fields: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<u64> {
        check_fork(self.made)?;
        let turn = turn.map(|turn| whole(turn, "turn")).transpose()?;
        emit(py, &self.session, turn, r#type, payload, fields)
    }

    /// Awaits until no pacing reader lags by its window: how a producer on a loop takes part in backpressure.
    fn ready<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        check_fork(self.made)?;
        Ok(Bound::new(py, Gate::new(self.session.clone()))?.into_any())
    }

    /// Blocks until no pacing reader lags by its window; False where `timeout` seconds were not enough.
    #[pyo3(signature = (timeout = None))]
    fn wait_ready(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        check_fork(self.made)?;
        wait_ready(py, &self.session, timeout)
    }
}

/// One request and its answer. However it is left, it leaves exactly one `completion` behind.
#[pyclass(frozen, weakref, module = "turnstream")]
pub struct Turn {
    session: Session,
    /// Counts from 1 within the session.
    #[pyo3(get)]
    number: u32,
    /// Whether this call started it; false for one that an earlier request of the same client id started.
    #[pyo3(get)]
    started: bool,
    before: u64,
    input: Mutex<Option<Py<PyAny>>>,
    principal: Mutex<Option<Py<PyAny>>>,
    /// A turn that is forgotten without an end is ended as failed.
    owns: bool,
    left: AtomicBool,
}

impl Turn {
    pub fn new(session: Session, started: &Started, input: Option<Py<PyAny>>, principal: Option<Py<PyAny>>) -> Self {
        let Started { turn, before, new } = *started;
        let (input, principal) = (Mutex::new(input), Mutex::new(principal));
        Self { session, number: turn, started: new, before, input, principal, owns: new, left: AtomicBool::new(false) }
    }

    fn core(&self) -> PyResult<&Arc<core::Session>> {
        check_fork(self.session.made)?;
        Ok(&self.session.session)
    }

    /// Ends the turn by the exception that left its block.
    fn leave(&self, py: Python<'_>, error: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        self.left.store(true, Ordering::Relaxed); // as in `_left`
        let session = self.core()?;
        let Some(error) = error.filter(|error| !error.is_none()) else {
            away(py, session, || session.end_turn(self.number, Ending::default()));
            return Ok(());
        };
        let name = error.get_type().name()?.to_string();
        if matches!(name.as_str(), "CancelledError" | "GeneratorExit" | "KeyboardInterrupt") {
            let reason = if name == "KeyboardInterrupt" { "interrupted" } else { "cancelled" };
            away(py, session, || session.leave_turn(self.number, reason));
            return Ok(());
        }
        self.fail_with(&name, error)
    }

    fn fail_as(&self, py: Python<'_>, code: &str, message: &str) -> PyResult<()> {
        let session = self.core()?;
        away(py, session, || session.fail_turn(self.number, code, message));
        Ok(())
    }

    fn fail_with(&self, name: &str, error: &Bound<'_, PyAny>) -> PyResult<()> {
        let code =
            error.getattr("code").ok().and_then(|code| code.extract::<String>().ok()).unwrap_or_else(|| "agent_error".to_owned());
        let text = error.str().map_or_else(|_| String::new(), |text| convert::text_of(&text).into_owned());
        let message = if text.is_empty() { name.to_owned() } else { format!("{name}: {text}") };
        self.fail_as(error.py(), &code, &message)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if self.owns && self.session.made == crate::bell::generation() {
            let abandoned = "the turn was forgotten without an end";
            self.session.session.fail_turn(self.number, "abandoned", abandoned);
        }
    }
}

#[pymethods]
impl Turn {
    /// The session.
    #[getter]
    fn session(&self) -> Session {
        Session { session: self.session.session.clone(), made: self.session.made }
    }

    /// What the request brought, untouched.
    #[getter]
    fn input(&self, py: Python<'_>) -> Py<PyAny> {
        self.input.lock().as_ref().map_or_else(|| py.None(), |input| input.clone_ref(py))
    }

    /// Who asked for it, as the auth hook said. In no event.
    #[getter]
    fn principal(&self, py: Python<'_>) -> Py<PyAny> {
        self.principal.lock().as_ref().map_or_else(|| py.None(), |principal| principal.clone_ref(py))
    }

    /// The cursor before its `turn_start`: a reader from there sees all of it.
    #[getter]
    fn cursor(&self) -> String {
        format!("{}.{}", self.session.session.epoch(), self.before)
    }

    /// Whether it was cancelled.
    #[getter]
    fn cancelled(&self) -> PyResult<bool> {
        Ok(self.core()?.is_cancelled(self.number))
    }

    /// Whether it has its completion.
    #[getter]
    fn ended(&self) -> PyResult<bool> {
        Ok(!self.core()?.is_running(self.number))
    }

    /// Whether its block was left.
    #[getter]
    fn _left(&self) -> bool {
        // Relaxed: written and read on the thread of the block's loop.
        self.left.load(Ordering::Relaxed)
    }

    /// A block in a task is cancelled with its turn, as an `async with` is.
    fn __enter__(slf: Bound<'_, Self>) -> PyResult<Bound<'_, Self>> {
        if running_loop_if_any(slf.py())?.is_some() {
            slf.py().import("turnstream._glue")?.call_method1("bind_task", (&slf,))?;
        }
        Ok(slf)
    }

    /// Ends the turn: completed; failed, after an `error`, if an exception leaves the block; cancelled on cancellation.
    #[pyo3(signature = (_kind, error, _trace))]
    fn __exit__(&self, _kind: &Bound<'_, PyAny>, error: &Bound<'_, PyAny>, _trace: &Bound<'_, PyAny>) -> PyResult<()> {
        self.leave(error.py(), Some(error))
    }

    fn __aenter__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        slf.py().import("turnstream._glue")?.call_method1("enter_turn", (slf,))
    }

    #[pyo3(signature = (_kind, error, _trace))]
    fn __aexit__<'py>(
        &self,
        py: Python<'py>,
        _kind: &Bound<'py, PyAny>,
        error: &Bound<'py, PyAny>,
        _trace: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.leave(py, Some(error))?;
        returns(py, py.None())
    }

    /// Appends one event of this turn; returns its seq. TurnEnded after the completion.
    #[pyo3(signature = (r#type, payload = None, **fields))]
    fn emit(
        &self,
        py: Python<'_>,
        r#type: &str,
        payload: Option<&Bound<'_, PyAny>>,
        fields: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<u64> {
        emit(py, self.core()?, Some(self.number), r#type, payload, fields)
    }

    /// A feed: a provider's bytes straight into the log, without a Python object per event.
    #[pyo3(signature = (provider = "auto", *, strict = false, text_tools = false))]
    fn normalizer(&self, provider: &str, strict: bool, text_tools: bool) -> PyResult<crate::provider::TurnFeed> {
        crate::provider::TurnFeed::new(self.core()?.clone(), self.number, provider, strict, text_tools)
    }

    /// Reads a provider's answer from `source` into the log until its end, and awaits to the whole Message.
    #[pyo3(signature = (source, provider = "auto", *, strict = false, text_tools = false))]
    fn relay<'py>(
        slf: &Bound<'py, Self>,
        source: &Bound<'py, PyAny>,
        provider: &str,
        strict: bool,
        text_tools: bool,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        slf.get().core()?;
        py.import("turnstream.relay")?.call_method1("relay", (slf, source, provider, strict, text_tools))
    }

    /// Ends the turn. `result`, a text, is the message where no other said anything. A second call does nothing.
    #[pyo3(signature = (result = None, *, status = None, reason = None))]
    fn complete(&self, py: Python<'_>, result: Option<&str>, status: Option<&str>, reason: Option<&str>) -> PyResult<()> {
        let parse = |word| {
            Status::parse(word)
                .ok_or_else(|| PyValueError::new_err("status: expected completed, failed, cancelled or incomplete"))
        };
        let status = status.map(parse).transpose()?;
        let ending = Ending { status, reason: reason.map(Into::into), error: None, fallback: result.map(Into::into) };
        let session = self.core()?;
        away(py, session, || session.end_turn(self.number, ending));
        Ok(())
    }

    /// Logs a fatal `error` and ends the turn as failed. A second call does nothing.
    #[pyo3(signature = (error, *, code = None))]
    fn fail(&self, error: &Bound<'_, PyAny>, code: Option<&str>) -> PyResult<()> {
        match (error.extract::<String>(), code) {
            (Ok(text), code) => self.fail_as(error.py(), code.unwrap_or("agent_error"), &text),
            (Err(_), Some(code)) => {
                let text = convert::text_of(&error.str()?).into_owned();
                self.fail_as(error.py(), code, &text)
            }
            (Err(_), None) => self.fail_with(error.get_type().name()?.to_string().as_str(), error),
        }
    }

    /// What `session.cancel()` calls, once, on the thread that cancels, to stop the work.
    fn bind_task(&self, cancel: Py<PyAny>) -> PyResult<()> {
        let call = move |py: Python<'_>| {
            if let Err(error) = cancel.call0(py) {
                error.write_unraisable(py, Some(cancel.bind(py)));
            }
        };
        // A store's thread calls it too: when another process asks for it, or the store refuses the turn's events.
        let hook = move || {
            crate::bell::before_exit(|| Python::attach(call));
        };
        self.core()?.on_cancel(self.number, Box::new(hook));
        Ok(())
    }

    /// Awaits until no pacing reader lags by its window: how a producer on a loop takes part in backpressure.
    fn ready<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let gate = Gate::new(slf.get().core()?.clone());
        Ok(Bound::new(slf.py(), gate)?.into_any())
    }

    /// Blocks until no pacing reader lags by its window; False where `timeout` seconds were not enough.
    #[pyo3(signature = (timeout = None))]
    fn wait_ready(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        wait_ready(py, self.core()?, timeout)
    }

    fn __reduce__(&self) -> PyResult<()> {
        Err(errors::stays("a turn"))
    }

    fn __repr__(&self) -> String {
        format!(
            "<Turn {} of {:?}{}>",
            self.number,
            &**self.session.session.id(),
            if self.ended().unwrap_or(false) { " ended" } else { "" }
        )
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        for held in [&self.input, &self.principal] {
            if let Some(held) = held.try_lock()
                && let Some(held) = &*held
            {
                visit.call(held)?;
            }
        }
        Ok(())
    }

    fn __clear__(&self) {
        for held in [&self.input, &self.principal] {
            let held = held.try_lock().and_then(|mut held| held.take());
            drop(held);
        }
    }
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Emitter>()?;
    module.add_class::<Turn>()
}
