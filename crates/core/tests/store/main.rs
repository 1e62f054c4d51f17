//! What stores promise, held against every one of them. A store that is added adds one `suite!` line.

mod chaos;
mod cluster;
mod faults;
mod files;
mod power;
mod redis;
mod server;
mod suite;
mod vfs;

use std::sync::Arc;

use turnstream_core::store::{MemoryStore, RedisOptions, RedisStore, SqliteOptions, SqliteStore};

suite!(memory, (Arc::new(MemoryStore::new()) as crate::suite::Store, ()));
suite!(sqlite, {
    let folder = crate::files::Folder::new();
    let store = SqliteStore::open(&folder.file(), &SqliteOptions::default()).unwrap();
    (Arc::new(store) as crate::suite::Store, folder)
});
suite!(redis_server, {
    let Some(server) = crate::server::Server::start(&[]) else { return };
    let store = RedisStore::open(&server.url(), &RedisOptions::default()).unwrap();
    (Arc::new(store) as crate::suite::Store, server)
});
