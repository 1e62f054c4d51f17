//! The Python face of `turnstream_core`: converts values, delegates, maps errors. No rule of the stream lives here.

mod bell;
mod convert;
mod errors;
mod event;
mod frame;
mod hub;
mod pace;
mod provider;
mod queue;
mod reader;
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
    hub::register(module)?;
    turn::register(module)?;
    queue::register(module)?;
    reader::register(module)
}
