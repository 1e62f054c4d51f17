//! A power cut: what the disk may hold when its power goes, at any moment of a recorded life of a file, and what the store makes
//! of it.
//!
//! The disk here is as bad as a disk may be. What has not been synced is there, or not, in any mixture of its sectors; a file
//! that grew may be long and empty; the folder may know a file that was removed, or not yet know one that was made. What has
//! been synced is there. Invariants of `store/mod.rs` are held against each such disk; and a disk that lies about its syncs
//! shows that the test can see a loss.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::ffi;
use turnstream_core::store::{Append, Claim, Durability, LogStore, Retention, SqliteOptions, SqliteStore, StoreError};

use crate::files::Folder;
use crate::suite::LEASE;
use crate::vfs::{Call, Disk, Fault, Op};

const SECTOR: usize = 512;
const SESSIONS: [&str; 3] = ["a", "b", "gone"];

/// How many moments are tried of each life; `make soak-stores` asks for more.
fn cuts() -> usize {
    std::env::var("TURNSTREAM_CUTS").map_or(40, |count| count.parse().expect("a number"))
}

pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }
}

/// Lines of a session: none is another's, and their lengths differ.
pub fn lines(session: &str, first: u64, last: u64) -> Vec<u8> {
    let line = |seq: u64| {
        let length = (seq * 7919 % 1800) as usize;
        format!("{{\"session\":\"{session}\",\"seq\":{seq},\"text\":\"{}\"}}\n", format!("{seq} ").repeat(length / 6))
    };
    (first..=last).flat_map(|seq| line(seq).into_bytes()).collect()
}

/// What has been asked for and what has been said, at a mark in the trace.
#[derive(Debug, Clone, Default)]
struct Known {
    /// Asked for, a mark later acknowledged.
    asked: [u64; SESSIONS.len()],
    said: [u64; SESSIONS.len()],
    /// A session's removal has been asked for, and acknowledged.
    removing: bool,
    removed: bool,
}

/// A life of one file: two programs write it in turns, one of them starts anew now and then, a session is removed. The trace, and
/// what was known at each mark.
fn live(durability: Durability, seed: u64, failing: bool) -> (Vec<Op>, Vec<Known>) {
    let folder = Folder::in_memory();
    let disk = Disk::watch(folder.path());
    let open = || SqliteStore::open_in(Some("before"), &folder.file(), &SqliteOptions { durability, max_bytes: None }).unwrap();
    let mut random = Random(seed);
    let mut stores = [open(), open()];
    let mut marks = vec![Known::default()];
    let mut known = Known::default();
    disk.mark(0);
    let mark = |known: &Known, marks: &mut Vec<Known>| {
        disk.mark(marks.len());
        marks.push(known.clone());
    };
    for block in 0..BLOCKS {
        let at = random.below(SESSIONS.len());
        if at == 2 && known.removing {
            continue;
        }
        let store = &stores[random.below(2)];
        let Claim { fence, standing } = store.claim(SESSIONS[at], "me", "epoch", LEASE).unwrap();
        let first = standing.head + 1;
        let last = first + random.below(40) as u64;
        known.asked[at] = known.asked[at].max(last);
        mark(&known, &mut marks);
        let data = lines(SESSIONS[at], first, last);
        let append = Append { session: SESSIONS[at], fence, first, last, ended: None, data: &data };
        if failing && random.below(4) == 0 {
            disk.fail(Fault { call: Call::Sync, code: ffi::SQLITE_IOERR_FSYNC, after: random.below(4), times: 1 });
        }
        match store.append(&[append]).remove(0) {
            Ok(head) => {
                assert_eq!(head, last);
                known.said[at] = last;
                mark(&known, &mut marks);
            }
            Err(error) => assert!(failing && matches!(error, StoreError::Io(_)), "{error}"),
        }
        disk.mend();
        if block == BLOCKS / 2 {
            known.removing = true;
            mark(&known, &mut marks);
            assert!(store.delete("gone").unwrap());
            known.removed = true;
            mark(&known, &mut marks);
        }
        if block % 16 == 0 {
            let keep = Retention { max_age_ms: 3_600_000, max_bytes: None };
            store.expire(&keep, 8).unwrap();
        }
        match random.below(60) {
            0 => stores[random.below(2)] = open(),
            1 => {
                // Everybody leaves: the log is taken into the file and removed.
                let [one, two] = stores;
                drop((one, two));
                stores = [open(), open()];
            }
            _ => {}
        }
    }
    drop(stores);
    (disk.take_trace(), marks)
}

#[derive(Debug, Clone, Default)]
struct File {
    durable: Vec<u8>,
    /// Writes and truncations since the last sync.
    pending: Vec<Op>,
    /// Whether the folder's entry is on the disk.
    named: bool,
}

/// A disk, as it goes through a trace.
#[derive(Debug, Clone, Default)]
struct Model {
    files: HashMap<Arc<str>, File>,
    /// Removed, and the folder's entry may come back.
    ghosts: HashMap<Arc<str>, File>,
    mark: usize,
}

fn apply(data: &mut Vec<u8>, op: &Op) {
    match op {
        Op::Write { at, data: new, .. } => {
            data.resize(data.len().max(at + new.len()), 0);
            data[*at..at + new.len()].copy_from_slice(new);
        }
        Op::Truncate { size, .. } => data.resize(*size, 0),
        _ => unreachable!("not a change of content"),
    }
}

impl Model {
    fn take(&mut self, op: &Op, lies: bool, random: &mut Random) {
        match op {
            Op::Create { file } => {
                self.files.insert(file.clone(), File::default());
            }
            Op::Write { file, .. } | Op::Truncate { file, .. } => {
                // The store makes the file itself, and syncs its folder.
                let known = self.files.entry(file.clone()).or_insert_with(|| File { named: true, ..File::default() });
                known.pending.push(op.clone());
            }
            Op::Sync { file } if !lies => {
                let Some(known) = self.files.get_mut(file) else { return };
                for op in std::mem::take(&mut known.pending) {
                    apply(&mut known.durable, &op);
                }
                if !std::mem::replace(&mut known.named, true) {
                    self.ghosts.clear();
                }
            }
            Op::Sync { .. } => {}
            Op::FailedSync { file } => {
                let Some(known) = self.files.get_mut(file) else { return };
                known.durable = content(known, Mode::Sectors, random);
                known.pending.clear();
            }
            Op::Delete { file, synced } => {
                let Some(gone) = self.files.remove(file) else { return };
                if !synced && gone.named {
                    self.ghosts.insert(file.clone(), gone);
                }
            }
            Op::Mark(mark) => self.mark = *mark,
        }
    }

    /// What stands in the folder when power comes back.
    fn after_the_cut(&self, mode: Mode, random: &mut Random) -> HashMap<Arc<str>, Vec<u8>> {
        let mut found = HashMap::new();
        for (name, file) in &self.ghosts {
            if mode == Mode::Nothing || (mode != Mode::Everything && random.below(2) == 0) {
                found.insert(name.clone(), content(file, mode, random));
            }
        }
        for (name, file) in &self.files {
            if file.named || mode == Mode::Everything || (mode != Mode::Nothing && random.below(2) == 0) {
                found.insert(name.clone(), content(file, mode, random));
            }
        }
        found
    }
}

/// What of the unsynced is on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Nothing,
    Everything,
    /// The first of it, then nothing.
    Beginning,
    /// Each write, or not.
    Writes,
    /// Each sector of each write: written, not written, or made and empty.
    Sectors,
}

const MODES: [Mode; 5] = [Mode::Nothing, Mode::Everything, Mode::Beginning, Mode::Writes, Mode::Sectors];

fn content(file: &File, mode: Mode, random: &mut Random) -> Vec<u8> {
    let mut data = file.durable.clone();
    let first = random.below(file.pending.len() + 1);
    for (number, op) in file.pending.iter().enumerate() {
        let there = match mode {
            Mode::Nothing => false,
            Mode::Everything => true,
            Mode::Beginning => number < first,
            Mode::Writes | Mode::Sectors => random.below(2) == 0,
        };
        match op {
            Op::Write { file: name, at, data: new } if mode == Mode::Sectors => {
                let mut from = 0;
                while from < new.len() {
                    let to = new.len().min(from + SECTOR - (at + from) % SECTOR);
                    let sector = at + from..at + to;
                    match random.below(4) {
                        0 => {}
                        1 if sector.end > data.len() => data.resize(sector.end, 0),
                        _ => apply(&mut data, &Op::Write { file: name.clone(), at: sector.start, data: new[from..to].to_vec() }),
                    }
                    from = to;
                }
            }
            op if there => apply(&mut data, op),
            _ => {}
        }
    }
    data
}

/// What a program finds that starts after the cut.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// All that was said is there, and nothing that was not asked for.
    Whole,
    /// A beginning of it, under another epoch.
    Less(String),
    /// A beginning of it, and a cursor at its end will mean another event.
    Untold(String),
    /// The store says that it cannot be trusted.
    Said(StoreError),
    /// Not what was written: never.
    Wrong(String),
}

fn open_after(folder: &Path) -> Result<SqliteStore, StoreError> {
    SqliteStore::open_in(Some("after"), &folder.join("runs.db"), &SqliteOptions::default())
}

fn look(folder: &Path, known: &Known) -> Found {
    match examine(folder, known) {
        Ok(found) | Err(found) => found,
    }
}

fn examine(folder: &Path, known: &Known) -> Result<Found, Found> {
    let store = open_after(folder).map_err(Found::Said)?;
    let (mut less, mut untold) = (None, false);
    for (at, session) in SESSIONS.into_iter().enumerate() {
        let (head, epoch) = match store.standing(session) {
            Err(StoreError::Unknown) => (0, String::new()),
            standing => standing.map(|standing| (standing.head, standing.epoch)).map_err(Found::Said)?,
        };
        let (said, asked) =
            if session == "gone" && known.removing { (0, known.asked[at]) } else { (known.said[at], known.asked[at]) };
        if head > asked {
            return Err(Found::Wrong(format!("{session} has {head} events of {asked}")));
        }
        if session == "gone" && known.removed && head > 0 {
            less = Some(format!("{session} is back"));
        }
        if head < said {
            if epoch == "epoch" {
                untold = true;
            }
            less = Some(format!("{session} has {head} of {said} events"));
        }
        let (mut after, mut data) = (0, Vec::new());
        while after < head {
            let tail = store.read(session, after, 1 << 16).map_err(Found::Said)?;
            data.extend(tail.blocks.iter().flat_map(|block| block.iter().copied()));
            after = tail.last;
        }
        if data != lines(session, 1, head) {
            return Err(Found::Wrong(format!("{session}'s {head} events are not what was written")));
        }
    }
    let raw = rusqlite::Connection::open(folder.join("runs.db")).unwrap();
    let verdict: String =
        raw.query_row("PRAGMA integrity_check", (), |row| row.get(0)).map_err(|error| Found::Said(error.into()))?;
    if verdict != "ok" {
        return Err(Found::Said(StoreError::Corrupt(verdict)));
    }
    // And it goes on.
    let claim = store.claim("a", "next", "epoch", Duration::from_secs(60)).or_else(|error| match error {
        StoreError::Held { .. } => store.claim("a", "me", "epoch", Duration::from_secs(60)), // the lease outlived the cut
        error => Err(error),
    });
    let claim = claim.map_err(Found::Said)?;
    let seq = claim.standing.head + 1;
    let data = lines("a", seq, seq);
    let append = Append { session: "a", fence: claim.fence, first: seq, last: seq, ended: None, data: &data };
    store.append(&[append]).remove(0).map_err(Found::Said)?;
    Ok(less.map_or(Found::Whole, if untold { Found::Untold } else { Found::Less }))
}

/// Cuts the power in a life at many moments, each in every mode; what was found, and where.
fn cut(trace: &[Op], marks: &[Known], seed: u64, lies: bool, count: usize) -> Vec<(String, Found)> {
    let mut random = Random(seed);
    // Right before a sync, right after it, and anywhere.
    let syncs: Vec<_> = (0..trace.len()).filter(|at| matches!(trace[*at], Op::Sync { .. })).collect();
    let mut moments: Vec<_> = (0..count)
        .map(|number| match number % 3 {
            0 if !syncs.is_empty() => syncs[random.below(syncs.len())],
            1 if !syncs.is_empty() => syncs[random.below(syncs.len())] + 1,
            _ => random.below(trace.len()),
        })
        .collect();
    moments.push(trace.len());
    moments.sort_unstable();
    moments.dedup();
    let mut model = Model::default();
    let (mut done, mut found) = (0, Vec::new());
    for moment in moments {
        for op in &trace[done..moment] {
            model.take(op, lies, &mut random);
        }
        done = moment;
        for mode in MODES {
            let folder = Folder::in_memory();
            fs::create_dir(folder.path()).unwrap();
            for (name, data) in model.after_the_cut(mode, &mut random) {
                fs::write(folder.path().join(&*name), data).unwrap();
            }
            found.push((
                format!("cut {moment} of {}, {mode:?}, seed {seed}", trace.len()),
                look(folder.path(), &marks[model.mark]),
            ));
        }
    }
    found
}

fn bad(found: &[(String, Found)], is_bad: impl Fn(&Found) -> bool) -> Vec<&(String, Found)> {
    found.iter().filter(|(_, found)| is_bad(found)).collect()
}

/// Long enough for the log to be taken into the file a few times, which SQLite does every 4 MiB.
const BLOCKS: usize = 600;

#[test]
fn at_level_disk_a_power_cut_loses_nothing_that_was_acknowledged() {
    let (trace, marks) = live(Durability::Disk, 1, false);
    assert!(trace.iter().filter(|op| matches!(op, Op::Sync { file } if &**file == "runs.db")).count() > 2, "no checkpoint");
    let found = cut(&trace, &marks, 2, false, cuts());
    let bad = bad(&found, |found| *found != Found::Whole);
    assert!(bad.is_empty(), "{} of {}: {bad:#?}", bad.len(), found.len());
}

/// Linux forgets what it could not write, and says "synced" the next time. Rule: <https://lwn.net/Articles/752063/>.
#[test]
fn at_level_disk_a_sync_that_fails_costs_what_it_was_for_alone() {
    let (trace, marks) = live(Durability::Disk, 7, true);
    assert!(trace.iter().filter(|op| matches!(op, Op::FailedSync { .. })).count() > 20);
    let found = cut(&trace, &marks, 8, false, cuts());
    let bad = bad(&found, |found| *found != Found::Whole);
    assert!(bad.is_empty(), "{} of {}: {bad:#?}", bad.len(), found.len());
}

/// What the level is for: the same cuts, seen with the eyes of level disk, lose events here, and old cursors are told.
#[test]
fn at_level_process_a_power_cut_takes_the_end_and_damages_nothing() {
    for durability in [Durability::Process, Durability::Memory] {
        let (trace, marks) = live(durability, 3, false);
        let found = cut(&trace, &marks, 4, false, cuts() / 2);
        let bad = bad(&found, |found| !matches!(found, Found::Whole | Found::Less(_)));
        assert!(bad.is_empty(), "{} of {}: {bad:#?}", bad.len(), found.len());
        assert!(found.iter().any(|(_, found)| matches!(found, Found::Less(_))), "the cuts are too gentle to show a loss");
    }
}

/// A disk that says "synced" and is not: nobody can keep what was acknowledged, and some of it is seen to be missing; but what is
/// read is what was written, or the store says that it is not.
#[test]
fn a_disk_that_lies_about_its_syncs_is_never_believed() {
    let (trace, marks) = live(Durability::Disk, 5, false);
    let found = cut(&trace, &marks, 6, true, cuts() / 2);
    let wrong = bad(&found, |found| matches!(found, Found::Wrong(_)));
    assert!(wrong.is_empty(), "{} of {}: {wrong:#?}", wrong.len(), found.len());
    assert!(found.iter().any(|(_, found)| matches!(found, Found::Less(_) | Found::Untold(_) | Found::Said(_))));
}

/// A file that was left and takes no note is not tidied away: whoever opens it next still sees that it was left.
#[test]
fn a_cut_is_told_by_whoever_can_first() {
    let folder = Folder::in_memory();
    let disk = Disk::watch(folder.path());
    let options = SqliteOptions::default();
    let store = SqliteStore::open_in(Some("before"), &folder.file(), &options).unwrap();
    let claim = store.claim("a", "me", "epoch", LEASE).unwrap();
    let data = lines("a", 1, 3);
    let append = Append { session: "a", fence: claim.fence, first: 1, last: 3, ended: None, data: &data };
    assert_eq!(store.append(&[append]), [Ok(3)]);
    let left = Folder::in_memory();
    fs::create_dir(left.path()).unwrap();
    for name in ["runs.db", "runs.db-wal"] {
        fs::copy(folder.path().join(name), left.path().join(name)).unwrap();
    }
    drop((store, disk));
    let disk = Disk::watch(left.path());
    for code in [ffi::SQLITE_FULL, ffi::SQLITE_IOERR_WRITE] {
        disk.fail(Fault { call: Call::Write, code, after: 0, times: usize::MAX });
        let opened = SqliteStore::open_in(Some("after"), &left.file(), &options);
        disk.mend();
        match code {
            ffi::SQLITE_FULL => assert_eq!(opened.unwrap().standing("a").unwrap().epoch, "epoch", "it can be read"),
            _ => assert!(matches!(opened, Err(StoreError::Io(_)))),
        }
    }
    let standing = SqliteStore::open_in(Some("after"), &left.file(), &options).unwrap().standing("a").unwrap();
    assert_eq!(standing.head, 3);
    assert_ne!(standing.epoch, "epoch");
}
