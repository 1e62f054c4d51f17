//! Any bytes in any split, read as `watsonx`: see `provider.rs`.

#![no_main]

#[macro_use]
#[path = "../provider.rs"]
mod provider;

target!("watsonx");
