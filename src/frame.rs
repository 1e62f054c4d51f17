//! `SSEDecoder` and its `Frame`: the core's decoder with lists in place of callbacks.

use std::collections::VecDeque;

use pyo3::prelude::*;
use turnstream_core::frame::sse::{Decoder, Item};
use turnstream_core::frame::{FrameError, Limits};

use crate::convert::count;
use crate::errors;
use crate::provider::raw_bytes;

/// What a kept comment costs beside its text; bounds the number of empty ones.
const COMMENT_BYTES: usize = 64;

/// One server-sent event: `event` is "message" when not named, `id` the last event id at dispatch.
#[pyclass(frozen, eq, get_all, module = "turnstream")]
#[derive(PartialEq)]
pub struct Frame {
    event: String,
    data: String,
    id: String,
    retry: Option<u64>,
}

#[pymethods]
impl Frame {
    fn __repr__(&self) -> String {
        let retry = self.retry.map_or_else(|| "None".to_owned(), |retry| retry.to_string());
        format!("Frame(event={:?}, data=<{} bytes>, id={:?}, retry={retry})", self.event, self.data.len(), self.id)
    }
}

/// Server-sent events by the WHATWG standard, from bytes in any split. Does no I/O.
#[pyclass(module = "turnstream")]
pub struct SSEDecoder {
    decoder: Decoder,
    comments: Comments,
    /// Came after frames of the same chunk: those first, then this.
    held: Option<FrameError>,
}

/// The newest comments, as many as `limit` bytes hold.
struct Comments {
    texts: VecDeque<String>,
    bytes: usize,
    limit: usize,
}

impl Comments {
    fn push(&mut self, text: &str) {
        self.bytes += text.len() + COMMENT_BYTES;
        self.texts.push_back(text.to_owned());
        while self.bytes > self.limit {
            let Some(oldest) = self.texts.pop_front() else { break };
            self.bytes -= oldest.len() + COMMENT_BYTES;
        }
    }
}

#[pymethods]
impl SSEDecoder {
    #[new]
    #[pyo3(signature = (*, lenient = false, max_line_bytes = 67_108_864, max_event_bytes = 67_108_864))]
    fn new(
        lenient: bool,
        #[pyo3(from_py_with = count)] max_line_bytes: usize,
        #[pyo3(from_py_with = count)] max_event_bytes: usize,
    ) -> Self {
        let decoder = Decoder::new(Limits { max_line_bytes, max_event_bytes }).lenient(lenient);
        let comments = Comments { texts: VecDeque::new(), bytes: 0, limit: max_line_bytes.saturating_add(COMMENT_BYTES) };
        Self { decoder, comments, held: None }
    }

    fn feed(&mut self, data: &Bound<'_, PyAny>) -> PyResult<Vec<Frame>> {
        let data = raw_bytes(data, "bytes")?;
        self.collect(|decoder, out| decoder.feed(&data, out))
    }

    fn finish(&mut self) -> PyResult<Vec<Frame>> {
        self.collect(|decoder, out| decoder.finish(out))
    }

    #[getter]
    fn last_event_id(&self) -> &str {
        self.decoder.last_event_id()
    }

    #[getter]
    fn retry(&self) -> Option<u64> {
        self.decoder.retry()
    }

    #[getter]
    fn comments(&self) -> Vec<&str> {
        self.comments.texts.iter().map(String::as_str).collect()
    }
}

impl SSEDecoder {
    fn collect(
        &mut self,
        run: impl FnOnce(&mut Decoder, &mut dyn FnMut(Item<'_>)) -> Result<(), FrameError>,
    ) -> PyResult<Vec<Frame>> {
        if let Some(error) = self.held.take() {
            return Err(errors::frame(&error));
        }
        let mut frames = Vec::new();
        let comments = &mut self.comments;
        let done = run(&mut self.decoder, &mut |item| match item {
            Item::Event(event) => frames.push(Frame {
                event: if event.name.is_empty() { "message" } else { event.name }.to_owned(),
                data: event.data.to_owned(),
                id: event.id.to_owned(),
                retry: event.retry,
            }),
            Item::Comment(text) => comments.push(text),
            Item::Unknown(..) => {}
        });
        match done {
            Err(error) if frames.is_empty() => Err(errors::frame(&error)),
            Err(error) => {
                self.held = Some(error);
                Ok(frames)
            }
            Ok(()) => Ok(frames),
        }
    }
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Frame>()?;
    module.add_class::<SSEDecoder>()
}
