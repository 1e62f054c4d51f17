//! The core of turnstream: pure Rust, no Python, and no I/O but that of [`store`].
//!
//! Data flows one way, and each layer knows the vocabulary and the layer before it:
//! [`frame`] (bytes to frames), [`provider`] (frames to events), [`session`] (the log and the turn's life),
//! [`reader`] (cursors, merging, wake-ups), [`encode`] (events to what one kind of client reads).
//! [`queue`] stands beside them: it holds anything, and knows none of them; so does [`batch`], events on their way between
//! processes.

pub mod batch;
pub mod bell;
pub mod clock;
pub mod encode;
pub mod event;
pub mod fold;
pub mod frame;
pub mod provider;
pub mod queue;
pub mod reader;
pub mod session;
pub mod store;
mod sync;
