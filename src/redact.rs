//! The redaction hook: a Python callable that sees each event, as a dict, before it is stored.
//!
//! It runs on the thread that emits, which has asked for it, with no lock of ours held: a feed that works with the
//! interpreter released takes it back for the call.

use pyo3::prelude::*;
use turnstream_core::event::{Event, Json, Payload};
use turnstream_core::session::redact::{Redact, Redacted};

use crate::bell::before_exit;
use crate::convert;

pub struct Hook {
    pub hook: Py<PyAny>,
}

impl Hook {
    fn call(&self, py: Python<'_>, payload: Payload, extra: Option<Json>) -> PyResult<Option<(Payload, Option<Json>)>> {
        let kind = payload.kind();
        let event = Event { seq: 0, time: 0, context: std::sync::Arc::default(), payload, extra: extra.map(Box::new) };
        let fields = convert::loads(py, &event.to_json())?;
        for header in ["seq", "session", "turn", "round", "time", "backend"] {
            let _ = fields.del_item(header); // one that the event has not
        }
        let kept = self.hook.call1(py, (fields,))?;
        let kept = kept.bind(py);
        if kept.is_none() {
            return Ok(None);
        }
        let object = convert::object_to_json(Some(kept), None)?;
        Payload::from_json(kind, &object).map(Some).map_err(|error| crate::errors::payload(&error))
    }
}

impl Redact for Hook {
    fn redact(&self, payload: Payload, extra: Option<Json>) -> Redacted {
        let asked = before_exit(|| Python::attach(|py| self.ask(py, payload, extra)));
        asked.unwrap_or(Redacted::Failed) // nobody can be asked any more
    }
}

impl Hook {
    fn ask(&self, py: Python<'_>, payload: Payload, extra: Option<Json>) -> Redacted {
        let kind = payload.kind();
        match self.call(py, payload, extra) {
            Ok(Some((payload, extra))) => Redacted::Kept(payload, extra),
            Ok(None) => Redacted::Withheld,
            Err(error) => {
                // Its name alone: its text may be what was to be withheld.
                let name = error.get_type(py).name().map_or_else(|_| "an error".to_owned(), |name| name.to_string());
                let _ = log_failure(py, kind, &name);
                Redacted::Failed
            }
        }
    }
}

fn log_failure(py: Python<'_>, kind: &str, name: &str) -> PyResult<()> {
    let log = py.import("logging")?.call_method1("getLogger", ("turnstream",))?;
    log.call_method1("error", ("the redaction hook failed with %s; the %s event is withheld", name, kind))?;
    Ok(())
}
