//! A disk that fails: every call that SQLite makes of its file layer fails once, and from then on until it is mended.
//!
//! Whatever fails, the store says so in its own words or carries on, never gives a wrong answer, loses nothing that it
//! acknowledged, and works again without being opened anew once the disk does.

use std::os::raw::c_int;
use std::time::Duration;

use rusqlite::ffi;
use turnstream_core::store::{Append, Durability, LogStore, Retention, SqliteOptions, SqliteStore, StoreError};

use crate::files::Folder;
use crate::power::{Random, lines};
use crate::suite::LEASE;
use crate::vfs::{Call, Disk, Fault};

type Words = fn(&StoreError) -> bool;

/// What can go wrong, and the store's words for it.
const FAULTS: [(Call, c_int, Words); 11] = [
    (Call::Write, ffi::SQLITE_FULL, is_full),
    (Call::Write, ffi::SQLITE_IOERR_WRITE, is_io),
    (Call::Read, ffi::SQLITE_IOERR_READ, is_io),
    (Call::Sync, ffi::SQLITE_IOERR_FSYNC, is_io),
    (Call::Sync, ffi::SQLITE_FULL, is_full),
    (Call::Truncate, ffi::SQLITE_IOERR_TRUNCATE, is_io),
    (Call::Open, ffi::SQLITE_CANTOPEN, is_io),
    (Call::Size, ffi::SQLITE_IOERR_FSTAT, is_io),
    (Call::Delete, ffi::SQLITE_IOERR_DELETE, is_io),
    (Call::Lock, ffi::SQLITE_IOERR_LOCK, is_io),
    (Call::Shared, ffi::SQLITE_IOERR_SHMSIZE, is_io),
];

fn is_full(error: &StoreError) -> bool {
    matches!(error, StoreError::Full(_))
}

fn is_io(error: &StoreError) -> bool {
    matches!(error, StoreError::Io(_))
}

/// A store's life while its disk may fail.
struct Life {
    store: Option<SqliteStore>,
    folder: Folder,
    durability: Durability,
    asked: u64,
    said: u64,
    errors: Vec<StoreError>,
}

impl Life {
    fn note<T>(&mut self, answer: Result<T, StoreError>) -> Option<T> {
        answer.map_err(|error| self.errors.push(error)).ok()
    }

    fn store(&mut self) -> Option<&SqliteStore> {
        if self.store.is_none() {
            let opened = SqliteStore::open(&self.folder.file(), &SqliteOptions { durability: self.durability, max_bytes: None });
            self.store = self.note(opened);
        }
        self.store.as_ref()
    }

    fn append(&mut self, events: u64) {
        let Some(claim) = self.store().map(|store| store.claim("s", "me", "epoch", LEASE)) else { return };
        let Some(claim) = self.note(claim) else { return };
        let head = claim.standing.head;
        assert!((self.said..=self.asked).contains(&head), "{head} of {}..={}", self.said, self.asked);
        let (first, last) = (head + 1, head + events);
        self.asked = self.asked.max(last);
        let data = lines("s", first, last);
        let append = Append { session: "s", fence: claim.fence, first, last, ended: None, data: &data };
        let Some(answer) = self.store().map(|store| store.append(&[append]).remove(0)) else { return };
        if self.note(answer).is_some() {
            self.said = last;
        }
    }

    /// What is read is what was written, as far as it is read.
    fn read(&mut self) {
        let mut after = 0;
        loop {
            let Some(tail) = self.store().map(|store| store.read("s", after, 1 << 16)) else { return };
            let Some(tail) = self.note(tail) else { return };
            assert!((self.said..=self.asked).contains(&tail.standing.head));
            if tail.blocks.is_empty() {
                assert_eq!(after, tail.standing.head);
                return;
            }
            assert!(tail.blocks.concat() == lines("s", after + 1, tail.last), "events {after} to {}", tail.last);
            after = tail.last;
        }
    }

    fn other_calls(&mut self) {
        let keep = Retention { max_age_ms: 3_600_000, max_bytes: None };
        for call in 0..4 {
            let Some(store) = self.store() else { continue };
            let answer = match call {
                0 => store.claim("t", "me", "epoch", LEASE).and_then(|claim| store.release("t", claim.fence)),
                1 => store.delete("t").map(|_| ()),
                2 => store.expire(&keep, 8).map(|_| ()),
                _ => store.ask_cancel("s", "user"),
            };
            self.note(answer);
        }
    }

    /// Everything that a store does; `wide`: with a block after which SQLite takes its log into the file at once.
    fn go(&mut self, wide: bool) {
        for round in 0..3 {
            self.append(10);
            self.read();
            self.other_calls();
            self.append(if wide && round == 1 { 6000 } else { 3 });
            self.append(1);
            if round > 0 {
                self.store = None;
            }
        }
    }
}

/// One life with one fault in it; how many calls of its kind there were, and whether anybody was told.
fn live(fault: Fault, durability: Durability, wide: bool, words: Words) -> (usize, bool) {
    let folder = Folder::in_memory();
    let disk = Disk::watch(folder.path());
    let mut life = Life { store: None, folder, durability, asked: 0, said: 0, errors: Vec::new() };
    life.append(1);
    disk.fail(fault);
    life.go(wide);
    let (calls, failed) = disk.mend();
    let told = !life.errors.is_empty();
    for error in std::mem::take(&mut life.errors) {
        assert!(failed > 0 && words(&error), "{fault:?}: {error:?}");
    }
    // The same store works again; and so does one that is opened on what the other left.
    for _ in 0..2 {
        let said = life.said;
        life.append(2);
        life.read();
        assert_eq!(life.errors, [], "{fault:?}");
        assert!(life.said > said);
        life.store = None;
    }
    let raw = rusqlite::Connection::open(life.folder.file()).unwrap();
    let verdict: String = raw.query_row("PRAGMA integrity_check", (), |row| row.get(0)).unwrap();
    assert_eq!(verdict, "ok", "{fault:?}");
    (calls, told)
}

/// Every kind of call fails at its first few places, its last few, and some between.
fn fail_everywhere(durability: Durability, wide: bool, few: usize) {
    let mut random = Random(9);
    for (call, code, words) in FAULTS {
        let (calls, _) = live(Fault { call, code, after: usize::MAX, times: 0 }, durability, wide, words);
        assert!(calls > 0, "{call:?} never happens");
        let mut places: Vec<_> = (0..few.min(calls)).chain(calls.saturating_sub(few / 3)..calls).collect();
        places.extend((0..few.min(calls)).map(|_| random.below(calls)));
        places.sort_unstable();
        places.dedup();
        for after in places {
            for times in [1, usize::MAX] {
                let (_, told) = live(Fault { call, code, after, times }, durability, wide, words);
                // A log that is not shortened or removed now is so another time, and nobody need know.
                let tidying = matches!(call, Call::Truncate | Call::Delete);
                assert!(told != tidying || after > 0 || times == 1, "{call:?} at once: told {told}");
            }
        }
    }
}

#[test]
fn a_call_that_fails_is_told_and_mended() {
    fail_everywhere(Durability::Process, false, 12);
}

#[test]
fn a_call_that_fails_is_told_and_mended_at_level_disk() {
    fail_everywhere(Durability::Disk, false, 12);
}

#[test]
fn a_call_that_fails_while_the_log_is_taken_into_the_file() {
    fail_everywhere(Durability::Disk, true, 2);
}

/// A disk without room, by itself: what fits is kept, what does not is refused, and room that is made is used.
#[test]
fn a_disk_without_room_refuses_and_takes_again() {
    let folder = Folder::in_memory();
    let disk = Disk::watch(folder.path());
    let store = SqliteStore::open(&folder.file(), &SqliteOptions::default()).unwrap();
    let fence = store.claim("s", "me", "epoch", Duration::from_secs(60)).unwrap().fence;
    let append = |first: u64| {
        let data = lines("s", first, first);
        store.append(&[Append { session: "s", fence, first, last: first, ended: None, data: &data }]).remove(0)
    };
    assert_eq!(append(1), Ok(1));
    disk.fail(Fault { call: Call::Write, code: ffi::SQLITE_FULL, after: 40, times: usize::MAX });
    let mut head = 1;
    while append(head + 1).is_ok() {
        head += 1;
    }
    for _ in 0..3 {
        assert!(matches!(append(head + 1), Err(StoreError::Full(_))));
        assert_eq!(store.standing("s").unwrap().head, head, "reading needs no room");
        assert_eq!(store.read("s", head - 1, 1).unwrap().last, head);
    }
    disk.mend();
    assert_eq!(append(head + 1), Ok(head + 1));
}
