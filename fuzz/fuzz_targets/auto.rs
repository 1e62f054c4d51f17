//! Any bytes in any split, provider recognised: see `provider.rs`.

#![no_main]

#[macro_use]
#[path = "../provider.rs"]
mod provider;

target!("auto");
