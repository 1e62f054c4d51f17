//! Any bytes in any split, read as `conversations`: see `provider.rs`.

#![no_main]

#[macro_use]
#[path = "../provider.rs"]
mod provider;

target!("conversations");
