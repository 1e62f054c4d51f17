//! Any bytes in any split, read as `ollama`: see `provider.rs`.

#![no_main]

#[macro_use]
#[path = "../provider.rs"]
mod provider;

target!("ollama");
