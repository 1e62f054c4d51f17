//! What stores promise, held against every one of them. A store that is added adds one `suite!` line.

mod chaos;
mod files;
mod suite;

use std::sync::Arc;

use turnstream_core::store::{MemoryStore, SqliteOptions, SqliteStore};

suite!(memory, (Arc::new(MemoryStore::new()) as crate::suite::Store, ()));
suite!(sqlite, {
    let folder = crate::files::Folder::new();
    let store = SqliteStore::open(&folder.file(), &SqliteOptions::default()).unwrap();
    (Arc::new(store) as crate::suite::Store, folder)
});
