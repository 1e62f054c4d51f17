//! Any bytes in any split, read as `assistants`: see `provider.rs`.

#![no_main]

#[macro_use]
#[path = "../provider.rs"]
mod provider;

target!("assistants");
