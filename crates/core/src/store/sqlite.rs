//! Histories in one SQLite file, for all processes of one machine.
//!
//! The file's own format is [`VERSION`] in `user_version`; a fixture of each version is read by `tests/store`. Write-ahead
//! log; one row and one index entry per block; a checksum per block, so that what a disk returns wrong is said and not
//! shown. Processes wake each other by datagrams between sockets in `<file>-hints`; where that fails, timers remain.
//!
//! Levels: below [`Durability::Disk`] a commit is a write into the log file, which outlives the process; a power cut may
//! take the last ones, and never damages the file. [`Durability::Disk`] syncs the log at each commit.
//!
//! Invariant: a cursor never means another event than it did. Where a power cut may have taken events that readers saw, the
//! sessions go on under other epochs ([`note_boot`]).

mod wake;

use std::fs;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{self, AtomicU32};
use std::time::Duration;

use parking_lot::Mutex;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OptionalExtension, Row, Transaction, TransactionBehavior, params};

use super::{Append, Claim, Durability, Hint, LogStore, Retention, Standing, StoreError, Tail, first_fence};
use crate::clock::now_ms;
use wake::Wake;

/// The file's format.
const VERSION: i64 = 1;
/// "tstr": what `file` shows, and what tells our file from another program's.
const APPLICATION: i64 = 0x7473_7472;
/// How long a call waits for another process's write.
const BUSY: Duration = Duration::from_secs(2);

/// A key never comes twice: the blocks of a deleted session stay a while, and are nobody's.
const SCHEMA: &str = "
    CREATE TABLE sessions (
        key INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, epoch TEXT NOT NULL, head INTEGER NOT NULL DEFAULT 0,
        trimmed INTEGER NOT NULL DEFAULT 0, ended INTEGER NOT NULL DEFAULT 0, sealed INTEGER NOT NULL DEFAULT 0,
        fence INTEGER NOT NULL, owner TEXT, lease INTEGER NOT NULL DEFAULT 0, cancel TEXT, touched INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX idle ON sessions (touched);
    CREATE TABLE blocks (
        session INTEGER NOT NULL, last INTEGER NOT NULL, first INTEGER NOT NULL, sum INTEGER NOT NULL, data BLOB NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX place ON blocks (session, last);
";

/// Beside the layout of [`VERSION`], which knows nothing of it: the boot of the machine in which the file was last open below
/// [`Durability::Disk`], or nothing since.
const BOOTS: &str = "CREATE TABLE IF NOT EXISTS boots (id TEXT NOT NULL) STRICT";

/// How a file is opened.
#[derive(Debug, Clone, Copy, Default)]
pub struct SqliteOptions {
    /// Whether each commit waits for the disk.
    pub durability: Durability,
    /// The file's largest size, in bytes; beyond it, [`StoreError::Full`].
    pub max_bytes: Option<u64>,
}

/// A store in one SQLite file.
pub struct SqliteStore {
    writer: Mutex<Connection>,
    reader: Mutex<Connection>,
    wake: Wake,
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        // SQLite's own texts name no values; a path may stand in them, a payload never.
        let text = error.to_string();
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full(text),
            Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => Self::ReadOnly(text),
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Corrupt(text),
            Some(ErrorCode::SystemIoFailure | ErrorCode::CannotOpen) => Self::Io(text),
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::OutOfMemory) => Self::Unavailable(text),
            _ => match error {
                rusqlite::Error::FromSqlConversionFailure(..)
                | rusqlite::Error::InvalidColumnType(..)
                | rusqlite::Error::IntegralValueOutOfRange(..) => Self::Corrupt(text),
                _ => Self::Unusable(text),
            },
        }
    }
}

fn io(error: &std::io::Error) -> StoreError {
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => StoreError::Full(error.to_string()),
        std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => StoreError::ReadOnly(error.to_string()),
        _ => StoreError::Io(error.to_string()),
    }
}

fn connect(path: &Path, options: &SqliteOptions) -> Result<Connection, StoreError> {
    let connection = Connection::open(path)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?; // until the boot is noted
    connection.busy_timeout(BUSY)?;
    connection.set_prepared_statement_cache_capacity(32);
    // Decides nothing in a file that has tables; in a new one it lets space be given back in small steps. Said again, it writes.
    if connection.query_row("PRAGMA auto_vacuum", (), |row| row.get::<_, i64>(0))? != 2 {
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    }
    let mode: String = connection.query_row("PRAGMA journal_mode = WAL", (), |row| row.get(0))?;
    if mode != "wal" {
        return Err(StoreError::Unusable(format!("the file system allows no write-ahead log, only {mode}")));
    }
    let disk = options.durability == Durability::Disk;
    connection.pragma_update(None, "synchronous", if disk { "FULL" } else { "NORMAL" })?;
    connection.pragma_update(None, "fullfsync", disk)?; // macOS: a plain sync leaves the drive's own memory out
    if let Some(max) = options.max_bytes {
        let page: u64 = connection.query_row("PRAGMA page_size", (), |row| row.get(0))?;
        connection.query_row(&format!("PRAGMA max_page_count = {}", (max / page).max(16)), (), |_| Ok(()))?;
    }
    Ok(connection)
}

fn prepare(connection: &mut Connection) -> Result<(), StoreError> {
    let version = |connection: &Connection| connection.query_row("PRAGMA user_version", (), |row| row.get::<_, i64>(0));
    let application: i64 = connection.query_row("PRAGMA application_id", (), |row| row.get(0))?;
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", (), |row| row.get(0))?;
    if tables > 0 && application != APPLICATION {
        return Err(StoreError::Unusable("the file belongs to another program".into()));
    }
    match version(connection)? {
        VERSION => Ok(()),
        0 => {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            // Another process may have been first while this one waited.
            if version(&transaction)? == 0 {
                transaction.execute_batch(SCHEMA)?;
                transaction.pragma_update(None, "application_id", APPLICATION)?;
                transaction.pragma_update(None, "user_version", VERSION)?;
            }
            Ok(transaction.commit()?)
        }
        newer => Err(StoreError::Unusable(format!("the file's version is {newer}, this program knows up to {VERSION}"))),
    }
}

/// Notes that the file is open in this boot of the machine, and has sessions go on under other epochs where an earlier boot may
/// have ended with a power cut: it had the file open below [`Durability::Disk`], and nobody closed it, for the log was `left`. False
/// where the file takes no writes: then its log must stay.
///
/// The note is synced at each open: so is, with it, that there is a log, which tells the next boot that it was left.
fn note_boot(connection: &mut Connection, boot: &str, left: bool, durability: Durability) -> Result<bool, StoreError> {
    connection.pragma_update(None, "synchronous", "FULL")?;
    let mut note = || -> Result<(), StoreError> {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute_batch(BOOTS)?;
        let known: Option<String> = transaction.query_row("SELECT id FROM boots", (), |row| row.get(0)).optional()?;
        let here = known.as_deref() == Some(boot);
        if left && !here && known.is_some() {
            transaction.execute("UPDATE sessions SET epoch = lower(hex(randomblob(8))) WHERE sealed = 0", ())?;
        }
        if durability != Durability::Disk || !here {
            transaction.execute("DELETE FROM boots", ())?;
        }
        if durability != Durability::Disk {
            transaction.execute("INSERT INTO boots (id) VALUES (?1)", [boot])?;
        }
        Ok(transaction.commit()?)
    };
    match note() {
        Err(StoreError::ReadOnly(_) | StoreError::Full(_)) => return Ok(false),
        noted => noted?,
    }
    if durability != Durability::Disk {
        connection.pragma_update(None, "synchronous", "NORMAL")?;
    }
    Ok(true)
}

/// The kernel's name for this run of the machine; none on other systems than Linux.
fn boot() -> Option<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|id| id.trim().to_owned())
}

impl SqliteStore {
    /// Opens the file, made with mode 0600 if it is new; a folder that is made for it has 0700.
    ///
    /// [`StoreError::Forked`] in the child of a process that had one open: SQLite keeps its locks on files in memory, and the
    /// child would take its parent's for its own. Rule: <https://www.sqlite.org/howtocorrupt.html#_carrying_an_open_database_connection_across_a_fork_>.
    pub fn open(path: &Path, options: &SqliteOptions) -> Result<Self, StoreError> {
        Self::open_in(boot().as_deref(), path, options)
    }

    /// The same, on a machine whose run is called `boot`: a power cut lies between two names.
    pub fn open_in(boot: Option<&str>, path: &Path, options: &SqliteOptions) -> Result<Self, StoreError> {
        static OPENED_BY: AtomicU32 = AtomicU32::new(0);
        let process = std::process::id();
        match OPENED_BY.compare_exchange(0, process, atomic::Ordering::Relaxed, atomic::Ordering::Relaxed) {
            Err(first) if first != process => return Err(StoreError::Forked),
            _ => {}
        }
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let made = folder.map_or(0, |folder| folder.ancestors().take_while(|folder| !folder.exists()).count());
        if let Some(folder) = folder.filter(|_| made > 0) {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|error| io(&error))?;
        }
        // SQLite would make the file with the process's umask, and gives its log and index files the mode of the file.
        match fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(io(&error)),
        }
        let path = fs::canonicalize(path).map_err(|error| io(&error))?;
        if options.durability == Durability::Disk {
            // SQLite syncs what is in its files; that there are such files, their folders know.
            for folder in path.ancestors().skip(1).take(1 + made) {
                fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(|error| io(&error))?;
            }
        }
        let beside = |ending: &str| {
            let mut name = path.clone().into_os_string();
            name.push(ending);
            PathBuf::from(name)
        };
        // Before SQLite looks at it: whoever closes the file last takes the log into it, and removes it.
        let left = fs::metadata(beside("-wal")).is_ok_and(|log| log.len() > 0);
        let mut writer = connect(&path, options)?;
        prepare(&mut writer)?;
        let noted = boot.map_or(Ok(true), |boot| note_boot(&mut writer, boot, left, options.durability))?;
        let reader = connect(&path, options)?;
        reader.pragma_update(None, "query_only", true)?;
        for connection in [&writer, &reader] {
            connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, !noted)?;
        }
        let hints = beside("-hints");
        Ok(Self { writer: Mutex::new(writer), reader: Mutex::new(reader), wake: Wake::open(hints) })
    }

    /// Takes no writes from now on: for a process that only looks.
    pub fn make_read_only(&self) -> Result<(), StoreError> {
        Ok(self.writer.lock().pragma_update(None, "query_only", true)?)
    }

    /// Runs `act` in a write transaction, and says so to whoever listens.
    fn write<T>(
        &self,
        session: Option<&str>,
        act: impl FnOnce(&Transaction<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut writer = self.writer.lock();
        let transaction = writer.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let result = act(&transaction)?;
        transaction.commit()?;
        drop(writer);
        if let Some(session) = session {
            self.wake.tell([session]);
        }
        Ok(result)
    }
}

/// A row of `sessions`.
struct Found {
    key: i64,
    fence: u64,
    owner: Option<String>,
    cancel: Option<String>,
    standing: Standing,
}

const FOUND: &str =
    "SELECT key, fence, owner, cancel, epoch, head, trimmed, ended, sealed, lease, touched FROM sessions WHERE id = ?1";

fn find(connection: &Connection, session: &str) -> Result<Found, StoreError> {
    let number = |row: &Row<'_>, at: usize| row.get::<_, u64>(at);
    let read = |row: &Row<'_>| {
        let owner: Option<String> = row.get(2)?;
        let leased_ms = if owner.is_some() { number(row, 9)?.saturating_sub(now_ms()) } else { 0 };
        let standing = Standing {
            epoch: row.get(4)?,
            head: number(row, 5)?,
            trimmed: number(row, 6)?,
            ended: number(row, 7)?,
            sealed: row.get(8)?,
            leased_ms,
            touched: number(row, 10)?,
        };
        Ok(Found { key: row.get(0)?, fence: number(row, 1)?, owner, cancel: row.get(3)?, standing })
    };
    connection.prepare_cached(FOUND)?.query_row([session], read).optional()?.ok_or(StoreError::Unknown)
}

/// The session, if `fence` may write it.
fn fenced(connection: &Connection, session: &str, fence: u64) -> Result<Found, StoreError> {
    let found = find(connection, session)?;
    if found.fence == fence && found.owner.is_some() { Ok(found) } else { Err(StoreError::Fenced) }
}

fn append_one(transaction: &Transaction<'_>, append: &Append<'_>) -> Result<u64, StoreError> {
    let found = fenced(transaction, append.session, append.fence)?;
    let Standing { head, ended, sealed, .. } = found.standing;
    if append.last <= head {
        return Ok(head);
    }
    if sealed {
        return Err(StoreError::Sealed);
    }
    if append.first != head + 1 {
        return Err(StoreError::NotNext { head });
    }
    let mut insert =
        transaction.prepare_cached("INSERT INTO blocks (session, last, first, sum, data) VALUES (?1, ?2, ?3, ?4, ?5)")?;
    insert.execute(params![found.key, append.last, append.first, crc32fast::hash(append.data), append.data])?;
    transaction.prepare_cached("UPDATE sessions SET head = ?2, ended = ?3, touched = ?4 WHERE key = ?1")?.execute(params![
        found.key,
        append.last,
        append.ended.unwrap_or(ended),
        now_ms()
    ])?;
    Ok(append.last)
}

impl LogStore for SqliteStore {
    fn claim(&self, session: &str, owner: &str, epoch: &str, lease: Duration) -> Result<Claim, StoreError> {
        self.write(None, |transaction| {
            let now = now_ms();
            let until = now + lease.as_millis() as u64;
            let fence = match find(transaction, session) {
                Ok(found) => {
                    let remaining_ms = found.standing.leased_ms;
                    if remaining_ms > 0 && found.owner.is_some_and(|holder| holder != owner) {
                        return Err(StoreError::Held { remaining_ms });
                    }
                    let update =
                        "UPDATE sessions SET fence = ?2, owner = ?3, lease = ?4, cancel = NULL, touched = ?5 WHERE key = ?1";
                    transaction.prepare_cached(update)?.execute(params![found.key, found.fence + 1, owner, until, now])?;
                    found.fence + 1
                }
                Err(StoreError::Unknown) => {
                    let insert = "INSERT INTO sessions (id, epoch, fence, owner, lease, touched) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
                    let fence = first_fence();
                    transaction.prepare_cached(insert)?.execute(params![session, epoch, fence, owner, until, now])?;
                    fence
                }
                Err(error) => return Err(error),
            };
            Ok(Claim { fence, standing: find(transaction, session)?.standing })
        })
    }

    fn renew(&self, session: &str, fence: u64, lease: Duration) -> Result<Option<String>, StoreError> {
        self.write(None, |transaction| {
            let found = fenced(transaction, session, fence)?;
            let until = now_ms() + lease.as_millis() as u64;
            transaction.prepare_cached("UPDATE sessions SET lease = ?2 WHERE key = ?1")?.execute(params![found.key, until])?;
            Ok(found.cancel)
        })
    }

    fn release(&self, session: &str, fence: u64) -> Result<(), StoreError> {
        let update = "UPDATE sessions SET owner = NULL, lease = 0 WHERE id = ?1 AND fence = ?2";
        self.write(Some(session), |transaction| {
            transaction.prepare_cached(update)?.execute(params![session, fence])?;
            Ok(())
        })
    }

    fn append(&self, batch: &[Append<'_>]) -> Vec<Result<u64, StoreError>> {
        let taken = self.write(None, |transaction| {
            let mut answers = Vec::with_capacity(batch.len());
            for append in batch {
                match append_one(transaction, append) {
                    // These refuse one session; whatever else fails, fails the transaction, and with it every block.
                    answer @ (Ok(_)
                    | Err(StoreError::Unknown | StoreError::Fenced | StoreError::Sealed | StoreError::NotNext { .. })) => {
                        answers.push(answer);
                    }
                    Err(error) => return Err(error),
                }
            }
            Ok(answers)
        });
        let answers = taken.unwrap_or_else(|error| vec![Err(error); batch.len()]);
        self.wake.tell(batch.iter().zip(&answers).filter(|(_, answer)| answer.is_ok()).map(|(append, _)| append.session));
        answers
    }

    fn standing(&self, session: &str) -> Result<Standing, StoreError> {
        Ok(find(&self.reader.lock(), session)?.standing)
    }

    fn read(&self, session: &str, after: u64, max_bytes: usize) -> Result<Tail, StoreError> {
        let mut reader = self.reader.lock();
        let transaction = reader.transaction()?; // one view of both tables
        let found = find(&transaction, session)?;
        let mut tail = Tail { standing: found.standing, blocks: Vec::new(), last: after };
        let mut select = transaction
            .prepare_cached("SELECT first, last, sum, data FROM blocks WHERE session = ?1 AND last > ?2 ORDER BY last")?;
        let mut rows = select.query(params![found.key, after])?;
        let mut bytes = 0;
        while let Some(row) = rows.next()? {
            let (first, last, sum): (u64, u64, u32) = (row.get(0)?, row.get(1)?, row.get(2)?);
            let data = row.get_ref(3)?.as_blob().map_err(|error| StoreError::Corrupt(error.to_string()))?;
            if bytes > 0 && bytes + data.len() > max_bytes {
                break;
            }
            // The first block may reach back behind the cursor.
            let follows =
                if tail.blocks.is_empty() { first <= after + 1 || after < tail.standing.trimmed } else { first == tail.last + 1 };
            if !follows || crc32fast::hash(data) != sum {
                return Err(StoreError::Corrupt(format!("the block of events {first} to {last} is not as it was written")));
            }
            bytes += data.len();
            tail.last = last;
            tail.blocks.push(Arc::from(data));
        }
        drop(rows);
        if tail.blocks.is_empty() && after < tail.standing.head {
            return Err(StoreError::Corrupt(format!("events {} to {} are missing", after + 1, tail.standing.head)));
        }
        Ok(tail)
    }

    fn seal(&self, session: &str, fence: u64, head: u64) -> Result<bool, StoreError> {
        self.write(Some(session), |transaction| {
            let found = fenced(transaction, session, fence)?;
            if found.standing.head != head {
                return Err(StoreError::NotNext { head: found.standing.head });
            }
            transaction.prepare_cached("UPDATE sessions SET sealed = 1 WHERE key = ?1")?.execute([found.key])?;
            Ok(!found.standing.sealed)
        })
    }

    fn ask_cancel(&self, session: &str, reason: &str) -> Result<(), StoreError> {
        let update = "UPDATE sessions SET cancel = ?2 WHERE id = ?1 AND cancel IS NULL";
        self.write(Some(session), |transaction| {
            find(transaction, session)?;
            transaction.prepare_cached(update)?.execute([session, reason])?;
            Ok(())
        })
    }

    fn listen(&self, hint: Hint) {
        self.wake.listen(hint);
    }

    fn expire(&self, retention: &Retention, step: usize) -> Result<usize, StoreError> {
        self.write(None, |transaction| {
            // Blocks of sessions that are gone leave first, a few at a time; their rows went in one small write.
            let orphans = "DELETE FROM blocks WHERE rowid IN
                (SELECT rowid FROM blocks WHERE session NOT IN (SELECT key FROM sessions) LIMIT ?1)";
            let gone = transaction.prepare_cached(orphans)?.execute([step])?;
            transaction.execute_batch("PRAGMA incremental_vacuum(256)")?;
            if gone > 0 {
                return Ok(gone);
            }
            let count = |pragma: &str| transaction.query_row(&format!("PRAGMA {pragma}"), (), |row| row.get::<_, u64>(0));
            let used = (count("page_count")? - count("freelist_count")?) * count("page_size")?;
            let over = retention.max_bytes.is_some_and(|max| used > max);
            let now = now_ms();
            let oldest = if over { now + 1 } else { now.saturating_sub(retention.max_age_ms) };
            // Over the size, one at a time: each may be enough.
            let idle = "DELETE FROM sessions WHERE key IN
                (SELECT key FROM sessions WHERE touched < ?1 AND (owner IS NULL OR lease <= ?2) ORDER BY touched LIMIT ?3)";
            Ok(transaction.prepare_cached(idle)?.execute(params![oldest, now, if over { 1 } else { step }])?)
        })
    }

    fn delete(&self, session: &str) -> Result<bool, StoreError> {
        self.write(Some(session), |transaction| {
            Ok(transaction.prepare_cached("DELETE FROM sessions WHERE id = ?1")?.execute([session])? > 0)
        })
    }
}
