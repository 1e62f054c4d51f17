use pyo3::prelude::*;
use std::sync::Arc;
#[pyclass(frozen)]
pub struct TurnFeed {}
impl TurnFeed {
    pub fn new(_s: Arc<turnstream_core::session::Session>, _t: u32, _p: &str, _x: bool) -> PyResult<Self> {
        Ok(Self {})
    }
}
pub fn register(_m: &Bound<'_, PyModule>) -> PyResult<()> {
    Ok(())
}
