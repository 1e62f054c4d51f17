//! What the SQLite store does with its file: modes, versions, damage, no room, other processes' connections.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use turnstream_core::store::{Append, Durability, LogStore, SqliteOptions, SqliteStore, StoreError};

use crate::suite::{Store, append, block, claim, read_all, text};

/// A folder of its own, gone with the test.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        Self::below(&std::env::temp_dir())
    }

    fn below(place: &Path) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("turnstream-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = place.join(name);
        let _ = fs::remove_dir_all(&path);
        Self(path)
    }

    /// One that costs no disk's time, where the system has such a place.
    pub fn in_memory() -> Self {
        let memory = Path::new("/dev/shm");
        if memory.is_dir() { Self::below(memory) } else { Self::new() }
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn file(&self) -> PathBuf {
        self.0.join("runs.db")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn open(folder: &Folder) -> Store {
    Arc::new(SqliteStore::open(&folder.file(), &SqliteOptions::default()).unwrap())
}

#[test]
fn nobody_else_reads_what_is_made() {
    let folder = Folder::new();
    let store = open(&folder);
    append(&store, "s", claim(&store, "s", "a").unwrap().fence, 1, 1).unwrap();
    let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(folder.0.clone()), 0o700);
    for name in ["runs.db", "runs.db-wal", "runs.db-shm"] {
        assert_eq!(mode(folder.0.join(name)), 0o600, "{name}");
    }
}

#[test]
fn what_was_written_is_there_again() {
    let folder = Folder::new();
    for durability in [Durability::Memory, Durability::Process, Durability::Disk] {
        let options = SqliteOptions { durability, max_bytes: None };
        let store: Store = Arc::new(SqliteStore::open(&folder.file(), &options).unwrap());
        let claim = claim(&store, "s", "a").unwrap();
        append(&store, "s", claim.fence, claim.standing.head + 1, claim.standing.head + 2).unwrap();
    }
    assert_eq!(read_all(&open(&folder), "s", 0, 1), text(1, 6));
}

#[test]
fn a_second_connection_is_hinted() {
    let folder = Folder::new();
    let (writer, reader) = (open(&folder), open(&folder));
    let (send, receive) = mpsc::channel();
    reader.listen(Arc::new(move |session: Option<&str>| send.send(session.map(str::to_owned)).unwrap()));
    append(&writer, "s", claim(&writer, "s", "a").unwrap().fence, 1, 1).unwrap();
    assert_eq!(receive.recv_timeout(Duration::from_secs(10)).unwrap().as_deref(), Some("s"));
    assert_eq!(read_all(&reader, "s", 0, 1), text(1, 1));
}

#[test]
fn other_files_are_refused_and_left_alone() {
    let folder = Folder::new();
    fs::create_dir(&folder.0).unwrap();
    let refused = |bytes: &[u8]| {
        fs::write(folder.file(), bytes).unwrap();
        let error = SqliteStore::open(&folder.file(), &SqliteOptions::default()).err().expect("refused");
        assert_eq!(fs::read(folder.file()).unwrap(), bytes);
        error
    };
    assert!(matches!(refused(&[7; 8192]), StoreError::Corrupt(_)));
    fs::remove_file(folder.file()).unwrap();
    let other = rusqlite::Connection::open(folder.file()).unwrap();
    other.execute_batch("CREATE TABLE t (x); PRAGMA user_version = 1").unwrap();
    drop(other);
    assert!(matches!(SqliteStore::open(&folder.file(), &SqliteOptions::default()), Err(StoreError::Unusable(_))));
    fs::remove_file(folder.file()).unwrap();
    drop(open(&folder));
    let newer = rusqlite::Connection::open(folder.file()).unwrap();
    newer.pragma_update(None, "user_version", 99).unwrap();
    drop(newer);
    assert!(matches!(SqliteStore::open(&folder.file(), &SqliteOptions::default()), Err(StoreError::Unusable(_))));
}

/// Invariant 3: damage is said, never shown.
#[test]
fn a_damaged_block_is_said() {
    let folder = Folder::new();
    let store = open(&folder);
    let fence = claim(&store, "s", "a").unwrap().fence;
    append(&store, "s", fence, 1, 3).unwrap();
    append(&store, "s", fence, 4, 6).unwrap();
    drop(store);
    let raw = rusqlite::Connection::open(folder.file()).unwrap();
    raw.execute("UPDATE blocks SET data = CAST(replace(data, 'piece 5', 'piece 8') AS BLOB) WHERE first = 4", ()).unwrap();
    drop(raw);
    let store = open(&folder);
    assert_eq!(store.read("s", 0, 1).unwrap().last, 3, "what is whole is read");
    assert!(matches!(store.read("s", 3, 1), Err(StoreError::Corrupt(_))));
    let raw = rusqlite::Connection::open(folder.file()).unwrap();
    raw.execute("DELETE FROM blocks WHERE first = 4", ()).unwrap();
    assert!(matches!(store.read("s", 3, 1), Err(StoreError::Corrupt(_))), "what is missing is missed");
}

#[test]
fn a_file_at_its_limit_takes_no_more_and_keeps_what_it_has() {
    let folder = Folder::new();
    let options = SqliteOptions { max_bytes: Some(256 << 10), ..SqliteOptions::default() };
    let store: Store = Arc::new(SqliteStore::open(&folder.file(), &options).unwrap());
    let fence = claim(&store, "s", "a").unwrap().fence;
    let mut head = 0;
    let error = loop {
        match append(&store, "s", fence, head + 1, head + 100) {
            Ok(new) => head = new,
            Err(error) => break error,
        }
        assert!(head < 100_000, "the limit is never reached");
    };
    assert!(matches!(error, StoreError::Full(_)), "{error}");
    assert!(head > 1000);
    assert_eq!(read_all(&store, "s", 0, 1 << 20), text(1, head));
}

#[test]
fn a_file_that_takes_no_writes_says_so() {
    let folder = Folder::new();
    let store = open(&folder);
    let fence = claim(&store, "s", "a").unwrap().fence;
    append(&store, "s", fence, 1, 1).unwrap();
    drop(store);
    let store = SqliteStore::open(&folder.file(), &SqliteOptions::default()).unwrap();
    store.make_read_only().unwrap();
    let data = block(2, 2);
    let refused = store.append(&[Append { session: "s", fence, first: 2, last: 2, ended: None, data: &data }]).remove(0);
    assert!(matches!(refused, Err(StoreError::ReadOnly(_))), "{refused:?}");
    assert_eq!(store.read("s", 0, 1).unwrap().last, 1);
}
