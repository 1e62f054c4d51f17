//! Any bytes in any split, read as `openai-responses`: see `provider.rs`.

#![no_main]

#[macro_use]
#[path = "../provider.rs"]
mod provider;

target!("openai-responses");
