//! A bounded tokio channel of Python objects: `put` from any thread, `await recv()` on the loop. Each `recv` is one
//! `pyo3_async_runtimes::tokio::future_into_py`, on the runtime that the crate starts by default.

use std::sync::Arc;

use pyo3::exceptions::PyStopAsyncIteration;
use pyo3::prelude::*;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Mutex, mpsc};

#[pyclass(frozen)]
struct Channel {
    sender: mpsc::Sender<Py<PyAny>>,
    receiver: Arc<Mutex<mpsc::Receiver<Py<PyAny>>>>,
}

#[pymethods]
impl Channel {
    #[new]
    fn new(maxsize: usize) -> Self {
        let (sender, receiver) = mpsc::channel(maxsize);
        Self { sender, receiver: Arc::new(Mutex::new(receiver)) }
    }

    /// Waits without the GIL where the channel is full.
    fn put(&self, py: Python<'_>, item: Py<PyAny>) {
        if let Err(TrySendError::Full(item)) = self.sender.try_send(item) {
            let _ = py.detach(|| self.sender.blocking_send(item));
        }
    }

    fn recv<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let receiver = Arc::clone(&self.receiver);
        pyo3_async_runtimes::tokio::future_into_py(py, async move {
            receiver.lock().await.recv().await.ok_or_else(|| PyStopAsyncIteration::new_err(()))
        })
    }
}

#[pymodule]
fn future_into_py(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Channel>()
}
