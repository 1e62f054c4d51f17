//! Any bytes in any split, read as `anthropic`: see `provider.rs`.

#![no_main]

#[macro_use]
#[path = "../provider.rs"]
mod provider;

target!("anthropic");
