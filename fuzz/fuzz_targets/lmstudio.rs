//! Any bytes in any split, read as `lmstudio`: see `provider.rs`.

#![no_main]

#[macro_use]
#[path = "../provider.rs"]
mod provider;

target!("lmstudio");
