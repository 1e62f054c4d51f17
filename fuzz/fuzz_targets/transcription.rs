//! Any bytes in any split, read as `transcription`: see `provider.rs`.

#![no_main]

#[macro_use]
#[path = "../provider.rs"]
mod provider;

target!("transcription");
