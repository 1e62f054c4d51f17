//! Bytes to frames: where one message of a provider's wire format ends and the next begins.
//!
//! Owns line ends, byte splits, limits and resynchronisation. Knows nothing of what a frame means.
//! Invariants: 1. any split of the input gives the same frames; 2. memory is bounded by the limits, whatever comes;
//! 3. no reader does I/O; 4. a frame's data is UTF-8: a bad sequence becomes U+FFFD.

mod auto;
pub mod aws;
pub mod json;
mod lines;
pub mod sse;

use std::borrow::Cow;

pub use auto::{Format, FrameReader};

/// One frame, borrowed from the reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The event's name where the format has one (`event:` of SSE, `:event-type` of AWS event streams); else empty.
    pub event: &'a str,
    /// The payload: for every format of today, JSON text or a bare word such as `[DONE]`.
    pub data: &'a [u8],
    /// Where the frame begins in the stream, in bytes.
    pub offset: u64,
}

/// How much a frame reader holds before it refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Longest line, in bytes, its end not counted.
    pub max_line_bytes: usize,
    /// Largest frame, in bytes of payload.
    pub max_event_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_line_bytes: 64 << 20, max_event_bytes: 64 << 20 }
    }
}

/// Why bytes are not frames. Offsets count from the start of the stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A line is longer than the limit.
    #[error("line at byte {offset} is longer than {limit} bytes")]
    LineTooLong {
        /// Where the line begins.
        offset: u64,
        /// The limit.
        limit: usize,
    },
    /// A frame is larger than the limit.
    #[error("event at byte {offset} is larger than {limit} bytes")]
    EventTooLong {
        /// Where the frame begins.
        offset: u64,
        /// The limit.
        limit: usize,
    },
    /// The bytes break the format; the reader goes on after them.
    #[error("malformed {format} at byte {offset}: {reason}")]
    Malformed {
        /// Which format.
        format: &'static str,
        /// Where.
        offset: u64,
        /// What was seen.
        reason: String,
    },
    /// The bytes break the format where it says how to go on: nothing after them can be read.
    #[error("lost in {format} at byte {offset}: {reason}")]
    Lost {
        /// Which format.
        format: &'static str,
        /// Where.
        offset: u64,
        /// What was seen.
        reason: String,
    },
}

/// What a frame reader says: a frame, or what is wrong with a piece of the input.
pub type Sink<'a> = dyn FnMut(Result<Frame<'_>, FrameError>) + 'a;

impl FrameError {
    /// Whether the reader stops here; else it goes on after the piece that is malformed.
    pub fn is_fatal(&self) -> bool {
        !matches!(self, Self::Malformed { .. })
    }
}

/// As a decoder of the Encoding standard. `from_utf8` first, because it is many times quicker than the lossy walk.
fn utf8(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Cow::Borrowed(text),
        Err(_) => String::from_utf8_lossy(bytes),
    }
}

/// Empties a buffer for the next piece; one that a rare huge piece has grown is let go.
fn recycle(buffer: &mut Vec<u8>) {
    buffer.clear();
    buffer.shrink_to(64 << 10);
}
