//! The Python classes of the vocabulary: one per type, derived from the core's table, around a shared event.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, OnceLock};

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyType};
use turnstream_core::event as core;
use turnstream_core::event::{Class, Field, Payload, Value};
use turnstream_core::reader::{self, Joined};
use turnstream_core::session::Entry;

use crate::convert::{self, whole};
use crate::errors;

/// One immutable fact: `type`, `seq`, `session`, `turn`, `round`, `time`, `backend`, and its own fields.
#[pyclass(subclass, frozen, module = "turnstream")]
pub struct Event {
    entry: Arc<Entry>,
}

impl Event {
    fn event(&self) -> &core::Event {
        &self.entry.event
    }

    /// What Python objects of one event share.
    pub fn entry(&self) -> &Arc<Entry> {
        &self.entry
    }

    fn logged(&self) -> bool {
        self.event().payload.class() != Class::Control
    }
}

#[pymethods]
impl Event {
    /// The type's name on the wire.
    #[getter(r#type)]
    fn kind(&self) -> &'static str {
        self.event().payload.kind()
    }

    /// Its place in the session's log, from 1; None for control frames.
    #[getter]
    fn seq(&self) -> Option<u64> {
        self.logged().then(|| self.event().seq)
    }

    /// The session's id; None for events that belong to none.
    #[getter]
    fn session(&self) -> Option<&str> {
        self.event().context.session.as_deref()
    }

    /// Counts from 1 within the session; 0 outside every turn.
    #[getter]
    fn turn(&self) -> u32 {
        self.event().context.turn
    }

    /// Counts from 1 within the turn; 0 before the first model call.
    #[getter]
    fn round(&self) -> u32 {
        self.event().context.round
    }

    /// Unix milliseconds.
    #[getter]
    fn time(&self) -> u64 {
        self.event().time
    }

    /// Which backend the turn runs on, if somebody said.
    #[getter]
    fn backend(&self) -> Option<&str> {
        self.event().context.backend.as_deref()
    }

    /// Fields that the vocabulary does not name.
    #[getter]
    fn extra<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        match &self.event().extra {
            Some(extra) => convert::loads(py, extra.as_str()),
            None => Ok(PyDict::new(py).into_any()),
        }
    }

    /// The wire form as a dict, made anew by each call.
    fn to_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        convert::loads(py, &self.event().to_json())
    }

    /// The wire form: one flat JSON object without a line break.
    fn json(&self) -> String {
        self.event().to_json()
    }

    /// Reads the wire form. PayloadError where it is not of the vocabulary.
    #[staticmethod]
    fn from_json(py: Python<'_>, text: &str) -> PyResult<Py<PyAny>> {
        let event = core::Event::from_json(text).map_err(|error| errors::payload(&error))?;
        wrap(py, Arc::new(Entry { event, frame: OnceLock::new() }))
    }

    fn __eq__(&self, other: &Bound<'_, PyAny>) -> bool {
        other.cast::<Event>().is_ok_and(|other| *other.get().event() == *self.event())
    }

    fn __hash__(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.event().to_json().hash(&mut hasher);
        hasher.finish()
    }

    fn __repr__(slf: &Bound<'_, Self>) -> PyResult<String> {
        let py = slf.py();
        let event = slf.get().event();
        let mut parts = Vec::new();
        if slf.get().logged() {
            parts.push(format!("seq={}", event.seq));
        }
        let mut shown = Ok(());
        event.payload.each_field(&mut |name, value| {
            if value != Value::Null && shown.is_ok() {
                match convert::value_to_python(py, value).and_then(|value| value.bind(py).repr().map(|text| text.to_string())) {
                    Ok(text) => parts.push(format!("{name}={text}")),
                    Err(error) => shown = Err(error),
                }
            }
        });
        shown?;
        Ok(format!("{}({})", slf.get_type().name()?, parts.join(", ")))
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, (String,))> {
        let py = slf.py();
        Ok((py.get_type::<Event>().getattr("from_json")?, (slf.get().event().to_json(),)))
    }

    fn __copy__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (_memo))]
    fn __deepcopy__(slf: Py<Self>, _memo: &Bound<'_, PyAny>) -> Py<Self> {
        slf
    }

    /// Events come from streams, or from the class of their type.
    #[new]
    #[classmethod]
    fn new(class: &Bound<'_, PyType>) -> PyResult<Self> {
        let name = class.name()?;
        Err(pyo3::exceptions::PyTypeError::new_err(format!("{name} is made by streams, or by the class of an event's type")))
    }
}

fn build(kind: &'static str, fields: Option<&Bound<'_, PyDict>>) -> PyResult<Event> {
    let object = convert::object_to_json(None, fields)?;
    let (payload, extra) = Payload::from_json(kind, &object).map_err(|error| errors::payload(&error))?;
    let mut event = core::Event { seq: 0, time: 0, context: Arc::default(), payload, extra: extra.map(Box::new) };
    if let Some(fields) = fields {
        let number =
            |name: &str| fields.get_item(name)?.filter(|value| !value.is_none()).map_or(Ok(0), |value| whole(&value, name));
        let text = |name: &str| -> PyResult<Option<Arc<str>>> {
            let value = fields.get_item(name)?.filter(|value| !value.is_none());
            value.map(|value| value.extract::<String>().map(Arc::from)).transpose()
        };
        (event.seq, event.time) = (number("seq")?, number("time")?);
        let small =
            |name: &str| fields.get_item(name)?.filter(|value| !value.is_none()).map_or(Ok(0), |value| whole(&value, name));
        event.context = Arc::new(core::Context::new(text("session")?, small("turn")?, small("round")?, text("backend")?));
    }
    Ok(Event { entry: Arc::new(Entry { event, frame: OnceLock::new() }) })
}

macro_rules! classes {
    ($( $(#[$meta:meta])* $name:ident $wire:literal $class:ident { $($field:ident $mark:tt $type:ty),* $(,)? } )*) => {
        $(
            $(#[$meta])*
            #[pyclass(extends = Event, frozen, module = "turnstream")]
            pub struct $name;

            #[pymethods]
            impl $name {
                #[new]
                #[pyo3(signature = (**fields))]
                fn new(fields: Option<&Bound<'_, PyDict>>) -> PyResult<PyClassInitializer<Self>> {
                    Ok(PyClassInitializer::from(build($wire, fields)?).add_subclass(Self))
                }

                #[classattr]
                fn __match_args__(py: Python<'_>) -> PyResult<Bound<'_, pyo3::types::PyTuple>> {
                    let names: &[&str] = &[$(stringify!($field)),*];
                    pyo3::types::PyTuple::new(py, names)
                }

                $(
                    #[getter]
                    fn $field(slf: PyRef<'_, Self>) -> PyResult<Py<PyAny>> {
                        let py = slf.py();
                        match &slf.as_super().entry.event.payload {
                            Payload::$name(it) => convert::value_to_python(py, it.$field.value()),
                            _ => Ok(py.None()),
                        }
                    }
                )*
            }
        )*

        /// A Python object of the event's own class.
        pub fn wrap(py: Python<'_>, entry: Arc<Entry>) -> PyResult<Py<PyAny>> {
            Ok(match entry.event.payload {
                $(Payload::$name(_) => Py::new(py, PyClassInitializer::from(Event { entry }).add_subclass($name))?.into_any()),*
            })
        }

        pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
            module.add_class::<Event>()?;
            module.add_function(wrap_pyfunction!(join_deltas, module)?)?;
            $(module.add_class::<$name>()?;)*
            let py = module.py();
            let types = PyDict::new(py);
            $(types.set_item(PyString::intern(py, $wire), py.get_type::<$name>())?;)*
            module.add("EVENT_TYPES", types)
        }
    };
}
turnstream_core::vocabulary!(classes);

/// Joins neighbouring deltas of one kind and one id, into pieces of at most `max_bytes` of text (0: without a bound).
#[pyfunction]
#[pyo3(signature = (events, max_bytes = 0))]
fn join_deltas(events: Vec<Bound<'_, Event>>, max_bytes: usize) -> PyResult<Vec<Bound<'_, PyAny>>> {
    let told: Vec<_> = events.iter().map(|event| event.get().event()).collect();
    let joined = reader::join(&told, max_bytes);
    let give = |joined| match joined {
        Joined::Same(index) => Ok(events[index].as_any().clone()),
        Joined::Made(event) => {
            let entry = Arc::new(Entry { event: *event, frame: OnceLock::new() });
            wrap(events[0].py(), entry).map(|event| event.into_bound(events[0].py()))
        }
    };
    joined.into_iter().map(give).collect()
}

/// A Python object of a payload that belongs to no session.
pub fn wrap_loose(py: Python<'_>, payload: Payload, seq: u64, context: &Arc<core::Context>, time: u64) -> PyResult<Py<PyAny>> {
    let event = core::Event { seq, time, context: context.clone(), payload, extra: None };
    wrap(py, Arc::new(Entry { event, frame: OnceLock::new() }))
}
