//! Events between processes as Python sees them: what an emitter checks, what a batch holds.

use std::sync::{Arc, OnceLock};

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use turnstream_core::batch::{Batch, BatchError, Header};
use turnstream_core::event::{Class, Context, Event as CoreEvent, Payload, PayloadError};
use turnstream_core::session::Entry;

use crate::event::{Event, wrap};
use crate::{convert, errors};

/// An event that is on its way to a session: checked as an emit there would be. `turn` 0: the one that runs there.
#[pyfunction]
#[pyo3(signature = (r#type, payload = None, turn = 0, fields = None))]
fn compose(
    py: Python<'_>,
    r#type: &str,
    payload: Option<&Bound<'_, PyAny>>,
    turn: u32,
    fields: Option<&Bound<'_, PyDict>>,
) -> PyResult<Py<PyAny>> {
    let object = convert::object_to_json(payload, fields)?;
    let (payload, extra) = Payload::from_json(r#type, &object).map_err(|error| errors::payload(&error))?;
    if payload.class() == Class::Control {
        return Err(errors::payload(&PayloadError::Control(payload.kind())));
    }
    let context = if turn == 0 { Arc::default() } else { Arc::new(Context::new(None, turn, 0, None)) };
    let event = CoreEvent { seq: 0, time: 0, context, payload, extra: extra.map(Box::new) };
    wrap(py, Arc::new(Entry { event, frame: OnceLock::new() }))
}

/// Events of one producer as one blob of about `max_bytes`, and how many of them it holds. `origin` and `end` are JSON, or
/// empty.
#[pyfunction]
#[pyo3(signature = (events, producer, first, *, max_bytes = 65_536, dropped = 0, waited = 0, origin = "", end = ""))]
#[allow(clippy::too_many_arguments, reason = "keyword arguments")]
fn write_batch<'py>(
    py: Python<'py>,
    events: Vec<Bound<'py, Event>>,
    producer: &str,
    first: u64,
    max_bytes: usize,
    dropped: u64,
    waited: u64,
    origin: &str,
    end: &str,
) -> (Bound<'py, PyBytes>, u64) {
    let header = Header {
        producer: producer.to_owned(),
        first,
        count: events.len() as u64,
        dropped,
        waited,
        origin: origin.to_owned(),
        end: end.to_owned(),
    };
    let (blob, count) = Batch::write(&header, events.iter().map(|event| &event.get().entry().event), max_bytes);
    (PyBytes::new(py, &blob), count)
}

pub fn read(blob: &[u8]) -> PyResult<Batch> {
    Batch::read(blob).map_err(|error: BatchError| errors::raise("PayloadError", error))
}

/// A blob's header and events; PayloadError where it is no batch.
#[pyfunction]
fn read_batch<'py>(py: Python<'py>, blob: &[u8]) -> PyResult<(Bound<'py, PyAny>, Vec<Py<PyAny>>)> {
    let Batch { header, events, .. } = read(blob)?;
    let events = events.into_iter().map(|event| wrap(py, Arc::new(Entry { event, frame: OnceLock::new() })));
    Ok((convert::loads(py, header.to_json().as_str())?, events.collect::<PyResult<_>>()?))
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(compose, module)?)?;
    module.add_function(wrap_pyfunction!(write_batch, module)?)?;
    module.add_function(wrap_pyfunction!(read_batch, module)?)
}
