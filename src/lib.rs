//! The Python face of `turnstream_core`: converts values, delegates, maps errors. No rule of the stream lives here.

#![allow(clippy::doc_markdown, reason = "the comments of Python classes are their docstrings")]
#![allow(clippy::needless_pass_by_value, reason = "PyO3 hands arguments over by value")]
#![allow(clippy::needless_pass_by_ref_mut, clippy::unused_self, reason = "the shape of a method is Python's")]
#![allow(missing_docs, reason = "nothing here is seen from Rust")]

mod away;
mod bell;
mod blocking;
mod convert;
mod errors;
mod event;
mod frame;
mod hub;
mod limits;
mod pace;
mod provider;
mod queue;
mod reader;
mod redact;
mod remote;
mod session;
mod slots;
mod turn;
mod wait;

use pyo3::prelude::*;

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("debug_build", cfg!(debug_assertions))?;
    bell::register(module)?;
    event::register(module)?;
    frame::register(module)?;
    provider::register(module)?;
    limits::register(module)?;
    hub::register(module)?;
    session::register(module)?;
    turn::register(module)?;
    queue::register(module)?;
    reader::register(module)?;
    remote::register(module)?;
    // The package says what is public; PyO3's own list would name every helper too.
    module.delattr("__all__")
}
