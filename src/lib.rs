//! The Python face of `turnstream_core`: converts values, delegates, maps errors. No rule of the stream lives here.

use pyo3::prelude::*;

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("debug_build", cfg!(debug_assertions))?;
    Ok(())
}
