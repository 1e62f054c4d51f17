//! Events to frames for one kind of client.
//!
//! Owns the wire forms out. Knows the vocabulary and readers, nothing of providers. Invariants: 1. LF only; 2. no frame
//! is ever split over two chunks.

pub mod native;
