//! Python values to JSON text and back.
//!
//! What JSON cannot say becomes a typed placeholder, `{"$unserializable": "<type>"}`: a payload never stops a stream.

use std::borrow::Cow;
use std::cell::RefCell;

use pyo3::conversion::FromPyObjectOwned;
use pyo3::exceptions::PyOverflowError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyList, PyMapping, PyString, PyTuple};
use turnstream_core::event::json::{MAX_DEPTH, write_f64, write_str, write_u64};
use turnstream_core::event::{Json, Value};

use crate::errors;

/// Room for the event that the payload will stand in.
const DEEPEST: usize = MAX_DEPTH - 8;

/// How many of something: more than a machine has is as many as it has, and fewer than none is none, which whoever counts
/// from 1 refuses.
pub fn count(value: &Bound<'_, PyAny>) -> PyResult<usize> {
    match value.extract() {
        Err(error) if PyErr::is_instance_of::<PyOverflowError>(&error, value.py()) => {
            Ok(if value.lt(0)? { 0 } else { usize::MAX })
        }
        extracted => extracted,
    }
}

/// A string's text. Two halves of a character that stand side by side are it; a lone one, which has no UTF-8, is U+FFFD.
pub fn text_of<'a>(text: &'a Bound<'_, PyString>) -> Cow<'a, str> {
    if let Ok(text) = text.to_str() {
        return Cow::Borrowed(text);
    }
    let units = text.call_method1("encode", ("utf-16-le", "surrogatepass")).and_then(|bytes| bytes.extract::<Vec<u8>>());
    let units = units.unwrap_or_default();
    Cow::Owned(String::from_utf16_lossy(
        &units.chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]])).collect::<Vec<_>>(),
    ))
}

/// A whole number of an event's header.
pub fn whole<'py, T: FromPyObjectOwned<'py>>(value: &Bound<'py, PyAny>, name: &str) -> PyResult<T> {
    let py = value.py();
    value.extract::<T>().map_err(|error| {
        let error: PyErr = error.into();
        if error.is_instance_of::<PyOverflowError>(py) {
            return errors::raise("PayloadError", format!("{name}: expected a whole number, 0 or more"));
        }
        error
    })
}

/// `json.loads`, looked up once.
pub fn loads<'py>(py: Python<'py>, text: &str) -> PyResult<Bound<'py, PyAny>> {
    static LOADS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let loads = LOADS.get_or_try_init(py, || Ok::<_, PyErr>(py.import("json")?.getattr("loads")?.unbind()))?;
    loads.bind(py).call1((text,))
}

/// A field's value as a Python object.
pub fn value_to_python(py: Python<'_>, value: Value<'_>) -> PyResult<Py<PyAny>> {
    Ok(match value {
        Value::Null => py.None(),
        Value::Bool(truth) => PyBool::new(py, truth).to_owned().into_any().unbind(),
        Value::U64(number) => number.into_pyobject(py)?.into_any().unbind(),
        Value::F64(number) => PyFloat::new(py, number).into_any().unbind(),
        Value::Str(text) => PyString::new(py, text).into_any().unbind(),
        Value::Json(json) => loads(py, json.as_str())?.unbind(),
        Value::Calls(calls) => {
            let list = PyList::empty(py);
            for call in calls {
                let dict = PyDict::new(py);
                dict.set_item("call_id", &*call.call_id)?;
                dict.set_item("name", call.name.as_str())?;
                list.append(dict)?;
            }
            list.into_any().unbind()
        }
    })
}

/// Any Python value as JSON.
pub fn to_json(value: &Bound<'_, PyAny>) -> PyResult<Json> {
    let mut out = Vec::new();
    Writer { above: RefCell::default() }.write(&mut out, value, 0)?;
    Ok(Json::from_written(out))
}

/// A payload and the keyword arguments beside it, as the text of one JSON object.
pub fn object_to_json(payload: Option<&Bound<'_, PyAny>>, fields: Option<&Bound<'_, PyDict>>) -> PyResult<String> {
    let writer = Writer { above: RefCell::default() };
    let mut out = vec![b'{'];
    let mut write = |items: &Bound<'_, PyDict>| -> PyResult<()> {
        for (key, value) in items {
            writer.member(&mut out, &key, &value, 0)?;
        }
        Ok(())
    };
    if let Some(payload) = payload.filter(|payload| !payload.is_none()) {
        if let Ok(dict) = payload.cast::<PyDict>() {
            write(dict)?;
        } else if let Ok(mapping) = payload.cast::<PyMapping>() {
            let dict = PyDict::new(payload.py());
            dict.update(mapping)?;
            write(&dict)?;
        } else if let Some(plain) = plain(payload) {
            write(plain.cast::<PyDict>().map_err(|_| errors::raise("PayloadError", "payload: expected a mapping"))?)?;
        } else {
            return Err(errors::raise("PayloadError", format!("payload: expected a mapping, saw {}", type_name(payload))));
        }
    }
    if let Some(fields) = fields {
        write(fields)?;
    }
    out.push(b'}');
    Ok(String::from_utf8(out).expect("the writers copy whole strings"))
}

fn type_name(value: &Bound<'_, PyAny>) -> String {
    value.get_type().name().map_or_else(|_| "object".to_owned(), |name| name.to_string())
}

/// Models and dataclasses as plain values.
fn plain<'py>(value: &Bound<'py, PyAny>) -> Option<Bound<'py, PyAny>> {
    let py = value.py();
    if value.is_instance_of::<pyo3::types::PyType>() {
        return None;
    }
    if let Ok(dump) = value.getattr("model_dump") {
        let mode = PyDict::new(py);
        mode.set_item("mode", "json").ok()?;
        return dump.call((), Some(&mode)).ok();
    }
    if value.hasattr("__dataclass_fields__").ok()? {
        return py.import("dataclasses").ok()?.call_method1("asdict", (value,)).ok();
    }
    None
}

struct Writer {
    /// The containers above the value being written: one that comes again is a cycle.
    above: RefCell<Vec<usize>>,
}

impl Writer {
    fn write(&self, out: &mut Vec<u8>, value: &Bound<'_, PyAny>, depth: usize) -> PyResult<()> {
        if let Ok(text) = value.cast::<PyString>() {
            write_str(out, &text_of(text));
        } else if value.is_none() {
            out.extend_from_slice(b"null");
        } else if let Ok(truth) = value.cast::<PyBool>() {
            out.extend_from_slice(if truth.is_true() { b"true" } else { b"false" });
        } else if let Ok(number) = value.cast::<PyInt>() {
            match number.extract::<u64>() {
                Ok(small) => write_u64(out, small),
                Err(_) => self.integer(out, value),
            }
        } else if let Ok(number) = value.cast::<PyFloat>() {
            let number = number.value();
            if number.is_finite() { write_f64(out, number) } else { placeholder(out, &number.to_string()) }
        } else if let Ok(dict) = value.cast::<PyDict>() {
            self.nested(out, value, depth, |out| {
                out.push(b'{');
                for (key, value) in dict {
                    self.member(out, &key, &value, depth + 1)?;
                }
                out.push(b'}');
                Ok(())
            })?;
        } else if let Ok(list) = value.cast::<PyList>() {
            self.nested(out, value, depth, |out| self.items(out, list.iter(), depth))?;
        } else if let Ok(tuple) = value.cast::<PyTuple>() {
            self.nested(out, value, depth, |out| self.items(out, tuple.iter(), depth))?;
        } else {
            self.other(out, value, depth)?;
        }
        Ok(())
    }

    /// Integers beyond 64 bits keep their digits; a subclass of int (an enum) is written as its number.
    fn integer(&self, out: &mut Vec<u8>, value: &Bound<'_, PyAny>) {
        let plain = value.py().get_type::<PyInt>().call_method1("__repr__", (value,));
        match plain.and_then(|digits| digits.extract::<String>()) {
            Ok(digits) => out.extend_from_slice(digits.as_bytes()),
            Err(_) => placeholder(out, "int"), // beyond the interpreter's own limit on digits
        }
    }

    fn member(&self, out: &mut Vec<u8>, key: &Bound<'_, PyAny>, value: &Bound<'_, PyAny>, depth: usize) -> PyResult<()> {
        if out.last() != Some(&b'{') {
            out.push(b',');
        }
        if let Ok(text) = key.cast::<PyString>() {
            write_str(out, &text_of(text));
        } else if key.is_none() || key.is_instance_of::<PyInt>() || key.is_instance_of::<PyFloat>() {
            // As the standard library's json does: null, true, 1, 1.5 as text.
            let mut text = Vec::new();
            self.write(&mut text, key, depth)?;
            write_str(out, &String::from_utf8_lossy(&text));
        } else {
            write_str(out, &format!("$unserializable:{}", type_name(key)));
        }
        out.push(b':');
        self.write(out, value, depth)
    }

    fn items<'py>(&self, out: &mut Vec<u8>, items: impl Iterator<Item = Bound<'py, PyAny>>, depth: usize) -> PyResult<()> {
        out.push(b'[');
        for (i, item) in items.enumerate() {
            if i > 0 {
                out.push(b',');
            }
            self.write(out, &item, depth + 1)?;
        }
        out.push(b']');
        Ok(())
    }

    fn nested(
        &self,
        out: &mut Vec<u8>,
        value: &Bound<'_, PyAny>,
        depth: usize,
        write: impl FnOnce(&mut Vec<u8>) -> PyResult<()>,
    ) -> PyResult<()> {
        let identity = value.as_ptr() as usize;
        if self.above.borrow().contains(&identity) {
            placeholder(out, "cycle");
            return Ok(());
        }
        if depth >= DEEPEST {
            placeholder(out, "too_deep");
            return Ok(());
        }
        self.above.borrow_mut().push(identity);
        let written = write(out);
        self.above.borrow_mut().pop();
        written
    }

    fn other(&self, out: &mut Vec<u8>, value: &Bound<'_, PyAny>, depth: usize) -> PyResult<()> {
        if let Some(plain) = plain(value) {
            return self.nested(out, value, depth, |out| self.write(out, &plain, depth + 1));
        }
        if let Ok(mapping) = value.cast::<PyMapping>() {
            let dict = PyDict::new(value.py());
            if dict.update(mapping).is_ok() {
                return self.nested(out, value, depth, |out| self.write(out, &dict, depth + 1));
            }
        }
        let name = type_name(value);
        match name.as_str() {
            "datetime" | "date" | "time" => {
                if let Ok(text) = value.call_method0("isoformat").and_then(|text| text.extract::<String>()) {
                    write_str(out, &text);
                    return Ok(());
                }
            }
            "UUID" | "Decimal" | "PosixPath" | "WindowsPath" | "PurePosixPath" | "PureWindowsPath" => {
                if let Ok(text) = value.str() {
                    write_str(out, &text_of(&text));
                    return Ok(());
                }
            }
            _ => {}
        }
        let size = match name.as_str() {
            "bytes" | "bytearray" => value.len().ok(),
            "memoryview" => value.getattr("nbytes").and_then(|size| size.extract()).ok(),
            _ => None,
        };
        placeholder(out, &name);
        if let Some(size) = size {
            out.pop();
            out.extend_from_slice(b",\"size\":");
            write_u64(out, size as u64);
            out.push(b'}');
        }
        Ok(())
    }
}

fn placeholder(out: &mut Vec<u8>, kind: &str) {
    out.extend_from_slice(b"{\"$unserializable\":");
    write_str(out, kind);
    out.push(b'}');
}
