//! Any bytes in any split, read as `openai-chat`: see `provider.rs`.

#![no_main]

#[macro_use]
#[path = "../provider.rs"]
mod provider;

target!("openai-chat");
