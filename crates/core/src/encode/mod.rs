//! Events to what one kind of client reads.
//!
//! Owns the bytes that go out. Knows the vocabulary and readers, nothing of providers. Invariants: 1. LF only; 2. no
//! frame is ever split over two chunks; 3. what a frame writer has written, the decoder of the same format reads back
//! equal.

pub mod native;
pub mod sse;
