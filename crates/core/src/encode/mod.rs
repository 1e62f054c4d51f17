//! Events to what one kind of client reads.
//!
//! Owns the bytes that go out. Knows nothing of providers, nor of who reads.
//! Invariant: what a frame writer has written, the decoder of the same format reads back equal.

pub mod sse;
