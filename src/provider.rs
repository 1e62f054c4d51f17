//! Normalizers as Python sees them: bytes in, events out; or bytes straight into a turn.

use std::borrow::Cow;
use std::sync::Arc;

use atomic_refcell::AtomicRefCell;
use parking_lot::Mutex;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes};
use turnstream_core::clock::now_ms;
use turnstream_core::event::{Context, Payload};
use turnstream_core::fold::{Fold, fold_bytes};
use turnstream_core::provider::{self as core, Options};
use turnstream_core::session::{Session, SessionError};

use crate::bell::{check_fork, generation};
use crate::{convert, errors, event};

/// From here on a chunk is worked on with the interpreter released: 8 KiB take about 10 µs.
const DETACH_BYTES: usize = 8192;

fn options(strict: bool, text_tools: bool, id_prefix: String) -> Options {
    Options { strict, text_tools, id_prefix, ..Options::default() }
}

/// Bytes of a buffer; numbers in a list are none.
pub fn raw_bytes<'a>(data: &'a Bound<'_, PyAny>, expected: &str) -> PyResult<Cow<'a, [u8]>> {
    if let Ok(bytes) = data.cast::<PyBytes>() {
        return Ok(Cow::Borrowed(bytes.as_bytes()));
    }
    if let Ok(bytes) = data.cast::<PyByteArray>() {
        return Ok(Cow::Owned(bytes.to_vec()));
    }
    let name = data.get_type().name()?;
    if name == "memoryview" {
        return data.call_method0("tobytes")?.extract().map(Cow::Owned);
    }
    Err(PyTypeError::new_err(format!("data: expected {expected}, saw {name}")))
}

/// Bytes of a Python bytes object, or of the text of a str.
fn bytes_of<'a>(data: &'a Bound<'_, PyAny>) -> PyResult<Cow<'a, [u8]>> {
    if let Ok(text) = data.cast::<pyo3::types::PyString>() {
        return Ok(Cow::Owned(convert::text_of(text).into_owned().into_bytes()));
    }
    raw_bytes(data, "bytes or str")
}

/// To wait for the lock could stop both: its holder makes Python objects, and may come to wait for the interpreter.
fn busy() -> PyErr {
    errors::raise("ReaderBusy", "another thread is in this normalizer; each stream has its own")
}

/// One provider stream's bytes to events. Does no I/O; one thread at a time.
///
/// Events belong to no session: seq counts from 1, turn is 1. Lenient, a broken frame is a `warning` and the stream
/// goes on; strict, it raises ProtocolError, and the events before it are lost to `feed` but not to `finish`.
#[pyclass(frozen, module = "turnstream")]
pub struct Normalizer {
    inner: Mutex<Loose>,
}

struct Loose {
    normalizer: core::Normalizer,
    seq: u64,
    context: Arc<Context>,
    /// Whether the error that ended the stream has been raised: `finish` then gives what came before it.
    raised: bool,
}

impl Loose {
    fn take(&mut self, py: Python<'_>) -> PyResult<Vec<Py<PyAny>>> {
        let time = now_ms();
        let mut events = Vec::new();
        for payload in self.normalizer.drain() {
            if matches!(payload, Payload::RoundStart(_)) {
                self.context = Arc::new(Context::new(None, 1, self.context.round + 1, None));
            }
            self.seq += 1;
            events.push(event::wrap_loose(py, payload, self.seq, &self.context, time)?);
        }
        Ok(events)
    }
}

#[pymethods]
impl Normalizer {
    #[new]
    #[pyo3(signature = (provider = "auto", *, strict = false, text_tools = false))]
    fn new(provider: &str, strict: bool, text_tools: bool) -> PyResult<Self> {
        let options = options(strict, text_tools, String::new());
        let normalizer = core::Normalizer::new(provider, options).map_err(|error| errors::protocol(&error))?;
        let context = Arc::new(Context::new(None, 1, 0, None));
        Ok(Self { inner: Mutex::new(Loose { normalizer, seq: 0, context, raised: false }) })
    }

    /// Takes bytes, in any split; gives the events that they complete.
    fn feed(&self, py: Python<'_>, data: &Bound<'_, PyAny>) -> PyResult<Vec<Py<PyAny>>> {
        let bytes = bytes_of(data)?;
        let mut inner = self.inner.try_lock().ok_or_else(busy)?;
        let fed = inner.normalizer.feed(&bytes);
        inner.raised |= fed.is_err();
        fed.map_err(|error| errors::protocol(&error))?;
        inner.take(py)
    }

    /// The bytes have ended: closes everything that is open. A second call gives nothing. An error is raised once, here
    /// or by `feed`; the call after that gives the events that came before it.
    fn finish(&self, py: Python<'_>) -> PyResult<Vec<Py<PyAny>>> {
        let mut inner = self.inner.try_lock().ok_or_else(busy)?;
        match inner.normalizer.finish() {
            Err(error) if !inner.raised => {
                inner.raised = true;
                Err(errors::protocol(&error))
            }
            _ => inner.take(py),
        }
    }

    /// The provider's name; "auto" until it is recognised.
    #[getter]
    fn provider(&self) -> PyResult<&'static str> {
        Ok(self.inner.try_lock().ok_or_else(busy)?.normalizer.provider())
    }
}

/// A provider's bytes straight into a turn's log, without a Python object per event.
#[pyclass(frozen, module = "turnstream")]
pub struct TurnFeed {
    session: Arc<Session>,
    turn: u32,
    /// Not a mutex: giving that back costs a second atomic step, 10 ns of a small chunk's 230.
    inner: AtomicRefCell<(core::Normalizer, Fold)>,
    made: u32,
}

impl TurnFeed {
    pub fn new(session: Arc<Session>, turn: u32, provider: &str, strict: bool, text_tools: bool) -> PyResult<Self> {
        // The log's head makes the prefix unique: it never comes twice in a session.
        let prefix = format!("{}-", session.logged());
        let options = options(strict, text_tools, prefix);
        let normalizer = core::Normalizer::new(provider, options).map_err(|error| errors::protocol(&error))?;
        let fold = Fold::new(normalizer.provider());
        Ok(Self { session, turn, inner: AtomicRefCell::new((normalizer, fold)), made: generation() })
    }

    fn append(&self, inner: &mut (core::Normalizer, Fold)) -> Result<usize, SessionError> {
        let (normalizer, fold) = inner;
        let payloads = normalizer.pending();
        for payload in &*payloads {
            fold.push(payload);
        }
        self.session.emit_all(self.turn, payloads)
    }

    /// Acts on the normalizer with the interpreter released.
    fn detached<T: Send>(&self, py: Python<'_>, act: impl FnOnce(&mut (core::Normalizer, Fold)) -> T + Send) -> PyResult<T> {
        check_fork(self.made)?;
        py.detach(|| self.inner.try_borrow_mut().ok().map(|mut inner| act(&mut inner))).ok_or_else(busy)
    }
}

#[pymethods]
impl TurnFeed {
    /// Takes bytes, in any split; returns how many events they added. TurnEnded once the turn has its completion,
    /// ReaderBusy while another thread is in here.
    fn feed(&self, py: Python<'_>, data: &Bound<'_, PyAny>) -> PyResult<usize> {
        let bytes = bytes_of(data)?;
        let bytes = &*bytes;
        check_fork(self.made)?;
        let work = |inner: &mut (core::Normalizer, Fold)| {
            let fed = inner.0.feed(bytes);
            (fed, self.append(inner))
        };
        // Letting other threads run costs 80 ns, a third of a small chunk: only where there is something to gain.
        let (fed, appended) = if bytes.len() < DETACH_BYTES {
            work(&mut *self.inner.try_borrow_mut().map_err(|_| busy())?)
        } else {
            self.detached(py, work)?
        };
        fed.map_err(|error| errors::protocol(&error))?;
        appended.map_err(|error| errors::session(&error))
    }

    /// The bytes have ended: closes what is open. Returns the fold of this stream, as JSON text.
    fn finish(&self, py: Python<'_>) -> PyResult<String> {
        let (finished, appended, fold) = self.detached(py, |inner| {
            let finished = inner.0.finish();
            let appended = self.append(inner);
            inner.1.provider = inner.0.provider().into();
            (finished, appended, inner.1.to_json())
        })?;
        appended.map_err(|error| errors::session(&error))?;
        finished.map_err(|error| errors::protocol(&error))?;
        Ok(fold)
    }

    /// No more bytes will come: says why in an `error` event of these fields, and closes what is open. Does nothing after
    /// an error of `feed` that has said and closed all that.
    fn stop(&self, error: &Bound<'_, PyAny>) -> PyResult<()> {
        let object = convert::object_to_json(Some(error), None)?;
        let (Payload::Error(payload), _) = Payload::from_json("error", &object).map_err(|error| errors::payload(&error))? else {
            return Ok(());
        };
        let appended = self.detached(error.py(), |inner| {
            inner.0.stop(*payload);
            self.append(inner)
        })?;
        appended.map(drop).map_err(|error| errors::session(&error))
    }

    /// Whether the producer should wait: a pacing reader lags by its window.
    #[getter]
    fn should_wait(&self) -> PyResult<bool> {
        check_fork(self.made)?;
        Ok(!self.session.may_produce())
    }

    /// The provider's name; "auto" until it is recognised.
    #[getter]
    fn provider(&self, py: Python<'_>) -> PyResult<&'static str> {
        self.detached(py, |inner| inner.0.provider())
    }
}

/// The names of all wire formats that can be read, sorted.
#[pyfunction]
fn providers() -> Vec<&'static str> {
    core::providers().collect()
}

/// The fold of a whole stream, as the JSON text that `turnstream fold` prints. `split` feeds so many bytes at a time.
#[pyfunction]
#[pyo3(signature = (data, provider = "auto", *, split = 0, strict = false, text_tools = false))]
fn fold_json(
    py: Python<'_>,
    data: &Bound<'_, PyAny>,
    provider: &str,
    split: usize,
    strict: bool,
    text_tools: bool,
) -> PyResult<String> {
    let bytes = bytes_of(data)?;
    let bytes = &*bytes;
    let fold = py
        .detach(|| fold_bytes(bytes, provider, split, options(strict, text_tools, String::new())))
        .map_err(|error| errors::protocol(&error))?;
    Ok(fold.to_json())
}

/// What the beginning of a JSON text says so far.
#[pyfunction]
#[pyo3(signature = (text, /))]
fn partial_json<'py>(text: &Bound<'py, pyo3::types::PyString>) -> PyResult<Option<Bound<'py, PyAny>>> {
    let json = turnstream_core::event::partial_json(&convert::text_of(text));
    json.map(|json| convert::loads(text.py(), json.as_str())).transpose()
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Normalizer>()?;
    module.add_class::<TurnFeed>()?;
    module.add_function(wrap_pyfunction!(providers, module)?)?;
    module.add_function(wrap_pyfunction!(partial_json, module)?)?;
    module.add_function(wrap_pyfunction!(fold_json, module)?)
}
