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

/// The files as a process that is killed leaves them, or a machine.
fn left_behind(folder: &Folder) -> Folder {
    let copy = Folder::new();
    fs::create_dir(copy.path()).unwrap();
    for name in ["runs.db", "runs.db-wal"] {
        fs::copy(folder.path().join(name), copy.path().join(name)).unwrap();
    }
    copy
}

/// Of a machine that started anew nobody knows what its disk had not yet: below level disk, cursors end there; and nowhere else.
#[test]
fn cursors_end_where_a_power_cut_may_have_taken_what_they_name() {
    for durability in [Durability::Memory, Durability::Process, Durability::Disk] {
        let options = SqliteOptions { durability, max_bytes: None };
        let open = |boot: &str, folder: &Folder| -> Store {
            Arc::new(SqliteStore::open_in(Some(boot), &folder.file(), &options).unwrap())
        };
        let epochs = |store: &Store| ["s", "sealed"].map(|session| store.standing(session).unwrap().epoch);
        let folder = Folder::new();
        let store = open("first", &folder);
        for session in ["s", "sealed"] {
            let fence = claim(&store, session, "a").unwrap().fence;
            append(&store, session, fence, 1, 3).unwrap();
            assert_eq!(store.seal(session, fence, if session == "s" { 0 } else { 3 }).is_ok(), session == "sealed");
        }
        let kept = epochs(&store);
        let killed = left_behind(&folder);
        let again = open("first", &killed);
        assert_eq!(epochs(&again), kept, "a process that is killed takes nothing with it");
        let cut = left_behind(&killed);
        let anew = [open("second", &cut), open("second", &cut)];
        let found = epochs(&anew[0]);
        assert_eq!(found[0] == kept[0], durability == Durability::Disk, "{durability:?}");
        assert_eq!(found[1], kept[1], "nothing follows a seal");
        assert_eq!(epochs(&anew[1]), found, "once");
        assert_eq!(read_all(&anew[1], "s", 0, 1), text(1, 3));
        // Closed by all, the file has everything, and its disk too.
        drop((store, again, anew));
        assert_eq!(epochs(&open("third", &folder)), kept, "closed and started anew");
        assert_eq!(epochs(&open("third", &cut)), found);
        drop(open("fourth", &folder));
        assert_eq!(epochs(&open("fifth", &folder)), kept);
    }
}
