//! Core errors to the exceptions of `turnstream.errors`, which are plain Python and imported when first raised.

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyModule;
use turnstream_core::event::PayloadError;
use turnstream_core::frame::FrameError;
use turnstream_core::provider::ProtocolError;
use turnstream_core::reader::{CursorError, ReadError};
use turnstream_core::session::SessionError;
use turnstream_core::store::StoreError;

static MODULE: PyOnceLock<Py<PyModule>> = PyOnceLock::new();

/// The exception `name` of `turnstream.errors` with this text.
pub fn raise(name: &str, message: impl ToString) -> PyErr {
    Python::attach(|py| {
        let class = MODULE
            .get_or_try_init(py, || py.import("turnstream.errors").map(Bound::unbind))
            .and_then(|module| module.bind(py).getattr(name));
        match class.and_then(|class| class.call1((message.to_string(),))) {
            Ok(error) => PyErr::from_value(error),
            Err(error) => error,
        }
    })
}

/// What pickling an object that lives in this process is told: the likely next step is another process.
pub fn stays(what: &str) -> PyErr {
    PyTypeError::new_err(format!(
        "cannot pickle {what}: it belongs to this process; session.remote_emitter() goes to another one"
    ))
}

pub fn session(error: &SessionError) -> PyErr {
    let name = match error {
        SessionError::Closed(_) => "SessionClosed",
        SessionError::TurnActive { .. } => "TurnActive",
        SessionError::TurnEnded { .. } | SessionError::NoTurn { .. } => "TurnEnded",
        SessionError::Conflict { .. } => "Conflict",
        SessionError::Unknown => "UnknownSession",
        SessionError::Full(_) => "HubFull",
        SessionError::Payload(_) => "PayloadError",
        SessionError::NotWriter { .. } => "NotWriter",
        SessionError::BadId => return PyValueError::new_err(error.to_string()),
        SessionError::Store(StoreError::Unusable(_)) => "StoreError", // it was a store when the hub opened it
        SessionError::Store(error) => return store(error),
    };
    raise(name, error)
}

pub fn store(error: &StoreError) -> PyErr {
    let name = match error {
        StoreError::Full(_) => "StoreFull",
        StoreError::ReadOnly(_) => "StoreReadOnly",
        StoreError::Corrupt(_) => "StoreCorrupt",
        StoreError::Unavailable(_) => "StoreUnavailable",
        StoreError::Unusable(_) => "UnknownStore",
        StoreError::Fenced | StoreError::Held { .. } => "NotWriter",
        StoreError::Unknown => "UnknownSession",
        StoreError::Forked => "ForkedProcess",
        StoreError::Sealed => "SessionClosed",
        StoreError::Io(_) | StoreError::NotNext { .. } => "StoreError",
    };
    raise(name, error)
}

pub fn payload(error: &PayloadError) -> PyErr {
    raise("PayloadError", error)
}

pub fn cursor(error: CursorError) -> PyErr {
    raise("CursorError", error)
}

pub fn read(error: &ReadError) -> PyErr {
    match error {
        ReadError::Expired { .. } => raise("CursorExpired", error),
        ReadError::Session(error) => session(error),
    }
}

pub fn frame(error: &FrameError) -> PyErr {
    raise(
        if matches!(error, FrameError::Malformed { .. } | FrameError::Lost { .. }) { "ProtocolError" } else { "FrameTooLong" },
        error,
    )
}

pub fn protocol(error: &ProtocolError) -> PyErr {
    match error {
        ProtocolError::UnknownProvider { .. } | ProtocolError::Unrecognised { .. } => raise("UnknownProvider", error),
        ProtocolError::Frame { error: FrameError::LineTooLong { .. } | FrameError::EventTooLong { .. }, .. } => {
            raise("FrameTooLong", error)
        }
        _ => raise("ProtocolError", error),
    }
}
