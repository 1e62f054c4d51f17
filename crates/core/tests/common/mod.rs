//! What several test files need.

#![allow(dead_code, reason = "each test file uses its part")]

use std::path::{Path, PathBuf};

/// The folder of shared test data: `TURNSTREAM_SHARED`, or `shared` beside the checkout. `None` where there is none,
/// having said so; a panic under `TURNSTREAM_REQUIRE=all`.
pub(crate) fn shared() -> Option<PathBuf> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    let folder = std::env::var_os("TURNSTREAM_SHARED").map_or_else(beside, PathBuf::from);
    if folder.is_dir() {
        return Some(folder);
    }
    assert!(
        std::env::var_os("TURNSTREAM_REQUIRE").is_none_or(|value| value != "all"),
        "no shared test data at {}",
        folder.display()
    );
    eprintln!("skipped: no shared test data at {}", folder.display());
    None
}
