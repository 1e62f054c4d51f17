//! Where logs live beyond the memory of one session: one trait, and the stores behind it.
//!
//! Owns what a store promises and the words it refuses with. Knows nothing of events, readers or clients: a block is the
//! native JSON of events `first..=last`, one a line, each line ended by LF. Every call may block; whoever calls has a
//! thread for it.
//!
//! Invariants, held by `tests/store` against every store, also behind one that drops, repeats and forgets: 1. a
//! history is dense: a block is taken only if its `first` is the head plus one; 2. only the newest claim's fence
//! writes; 3. a block is there as a whole or not at all, and reads as it was written, or the read says
//! [`StoreError::Corrupt`]; 4. an append that is repeated adds nothing; 5. after the seal nothing is taken; 6. hints
//! are only hints: who reads on a timer alone sees the same.
//!
//! # What a remote store must do
//! - [`LogStore::append`] takes a batch: one round trip for all of it (a pipeline), each append decided on the server in one
//!   step (a script): fence, seal, `first == head + 1`, write, hint. A block may be one entry, or one entry per line.
//! - Where the answer is lost, [`StoreError::Unavailable`]: the caller repeats the same append. [`StoreError::NotNext`] where
//!   the server has less than the caller thinks (a failover, an empty restart): the caller sends again what is missing.
//!   A server that has lost the session, or the claim, says [`StoreError::Unknown`]; the caller claims anew under the epoch it
//!   has, which is refused with the same word where a session of that epoch has been deleted.
//! - Where the server is not the one that took the session's last claim (a restart, a replica that was promoted), something that
//!   readers have seen may be lost: a claim by the owner of that last claim, who knows, keeps the epoch; anybody else's gets a
//!   new one, so that a cursor never means another event than it did.
//! - Leases and ages are counted by the server's clock. Calls have a time limit of their own, and never wait on a condition.
//! - [`LogStore::listen`] starts at most one thread and connection per server. A hint that may have been lost (a reconnect)
//!   is announced as `None`: look everywhere.
//! - No error text holds a password or a payload.

mod memory;
mod redis;
mod sqlite;
mod url;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub use memory::MemoryStore;
pub use redis::{Keys, RedisOptions, RedisStore};
pub use sqlite::{SqliteOptions, SqliteStore};
pub use url::open;

/// When a hub calls an event stored, and lets readers see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// At once; the store has it a little later. A killed process loses what was under way.
    Memory,
    /// Once the store has taken it: it survives the process, not a power cut.
    #[default]
    Process,
    /// Once it is on the disk: it survives a power cut.
    Disk,
}

impl Durability {
    /// Reads the word.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "memory" => Some(Self::Memory),
            "process" => Some(Self::Process),
            "disk" => Some(Self::Disk),
            _ => None,
        }
    }
}

/// Why a store refuses. No text holds a credential or a payload.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// No such session.
    #[error("store: no such session")]
    Unknown,
    /// Somebody else's lease runs.
    #[error("store: another process writes this session, for {remaining_ms} ms at most unless it renews")]
    Held {
        /// How long the lease still runs.
        remaining_ms: u64,
    },
    /// A newer claim has been given: this writer is no longer one.
    #[error("store: another process has taken this session over")]
    Fenced,
    /// The block does not follow the head.
    #[error("store: the block does not follow seq {head}")]
    NotNext {
        /// The newest seq in the store.
        head: u64,
    },
    /// The history has its end.
    #[error("store: the session has ended")]
    Sealed,
    /// No room: the disk's, the store's own limit's or the server's.
    #[error("store: full: {0}")]
    Full(String),
    /// The store takes no writes.
    #[error("store: read-only: {0}")]
    ReadOnly(String),
    /// What is stored cannot be trusted.
    #[error("store: corrupt: {0}")]
    Corrupt(String),
    /// The device fails.
    #[error("store: input or output failed: {0}")]
    Io(String),
    /// Not now, and whether the call was carried out is not known: repeat it.
    #[error("store: unavailable: {0}")]
    Unavailable(String),
    /// Not a store this version can use.
    #[error("store: {0}")]
    Unusable(String),
    /// This process was forked from one that had the store's engine open.
    #[error("store: this process was forked from one that used a store; start it by spawn, or open the hub after the fork alone")]
    Forked,
}

impl StoreError {
    /// Whether the same call may succeed a moment later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }

    /// A word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unknown => "unknown_session",
            Self::Held { .. } => "held",
            Self::Fenced => "fenced",
            Self::Forked => "forked_process",
            Self::NotNext { .. } => "not_next",
            Self::Sealed => "sealed",
            Self::Full(_) => "store_full",
            Self::ReadOnly(_) => "store_read_only",
            Self::Corrupt(_) => "store_corrupt",
            Self::Io(_) => "store_io",
            Self::Unavailable(_) => "store_unavailable",
            Self::Unusable(_) => "store_unusable",
        }
    }
}

/// Where a history stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The history's life: cursors name it. Kept by claims, new when a deleted or lost session begins again.
    pub epoch: String,
    /// The newest seq.
    pub head: u64,
    /// Everything up to this seq is gone.
    pub trimmed: u64,
    /// The seq of the last `completion`: no turn before it runs. 0 without one.
    pub ended: u64,
    /// Whether the history has its end.
    pub sealed: bool,
    /// How long the writer's lease still runs; 0: it is free.
    pub leased_ms: u64,
    /// When it was last written or claimed, in Unix milliseconds.
    pub touched: u64,
}

/// The right to write, until the lease ends or somebody else claims.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Rises with every claim of the session; appends carry it.
    pub fence: u64,
    /// Where the history stands: who claims reads up to its head before writing.
    pub standing: Standing,
}

/// One block for one session.
#[derive(Debug, Clone, Copy)]
pub struct Append<'a> {
    /// The session.
    pub session: &'a str,
    /// The claim's.
    pub fence: u64,
    /// The seq of the first event.
    pub first: u64,
    /// The seq of the last event.
    pub last: u64,
    /// The seq of the last `completion` among them.
    pub ended: Option<u64>,
    /// The events' native JSON, each followed by LF.
    pub data: &'a [u8],
}

/// Blocks that follow a cursor, and where the history stood when they were read.
#[derive(Debug, Clone)]
pub struct Tail {
    /// Where the history stands.
    pub standing: Standing,
    /// Whole blocks in order; the first may begin at or before the cursor, and reaches beyond it.
    pub blocks: Vec<Arc<[u8]>>,
    /// The seq of the last event in `blocks`; the cursor where there are none.
    pub last: u64,
}

/// What [`LogStore::expire`] removes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Sessions that nobody has written for so long, unless they are leased.
    pub max_age_ms: u64,
    /// Beyond this size, the ones untouched for longest, unless they are leased.
    pub max_bytes: Option<u64>,
}

/// Called with a session that has news, or with none: look everywhere. Never blocks.
pub type Hint = Arc<dyn Fn(Option<&str>) + Send + Sync>;

/// A place where histories live, shared by processes or not. Safe from every thread; calls block.
pub trait LogStore: Send + Sync + 'static {
    /// Takes the right to write `session` for `lease`, and begins it under `epoch` if there is none. The same owner may claim
    /// again, and fences its earlier claim. While another's lease runs: [`StoreError::Held`].
    fn claim(&self, session: &str, owner: &str, epoch: &str, lease: Duration) -> Result<Claim, StoreError>;

    /// Lets the lease run for `lease` from now. Gives the reason if somebody has asked for a cancel since the claim.
    fn renew(&self, session: &str, fence: u64, lease: Duration) -> Result<Option<String>, StoreError>;

    /// Gives the right to write back. Of a claim that is no longer the newest: does nothing.
    fn release(&self, session: &str, fence: u64) -> Result<(), StoreError>;

    /// Appends each block that is next; answers in order, each with the session's new head. A block that is already there
    /// as a whole is taken as a repetition. One refusal does not stop the others.
    fn append(&self, batch: &[Append<'_>]) -> Vec<Result<u64, StoreError>>;

    /// Where `session` stands.
    fn standing(&self, session: &str) -> Result<Standing, StoreError>;

    /// Blocks after `after`, up to about `max_bytes` and at least one where there is one.
    fn read(&self, session: &str, after: u64, max_bytes: usize) -> Result<Tail, StoreError>;

    /// Ends the history: true for the call that did. Not next where `head` is not the newest seq.
    fn seal(&self, session: &str, fence: u64, head: u64) -> Result<bool, StoreError>;

    /// Asks whoever writes `session` to cancel its turn. The first reason stays until the next claim.
    fn ask_cancel(&self, session: &str, reason: &str) -> Result<(), StoreError>;

    /// Has `hint` called when something may have changed, by this process or another, until the store is dropped.
    fn listen(&self, hint: Hint);

    /// Removes what `retention` says, at most about `step` blocks; how many pieces went. 0: nothing is left to do.
    fn expire(&self, retention: &Retention, step: usize) -> Result<usize, StoreError>;

    /// Whether the server may come back empty after it had acknowledged: then [`StoreError::Unknown`] makes a writer claim and
    /// send again, and a deleted session is told by [`StoreError::Fenced`].
    fn forgets(&self) -> bool {
        false
    }

    /// What whoever runs the store should know: it works, and not as it should.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }

    /// Has the history go on under another epoch, by its writer: cursors of the old one name events that are lost. Asked of
    /// a store that [forgets](Self::forgets) alone.
    fn rename(&self, _session: &str, _fence: u64, _epoch: &str) -> Result<Standing, StoreError> {
        Err(StoreError::Unusable("this store loses nothing".into()))
    }

    /// Removes `session` whoever writes it, who is fenced by it; false where there is none.
    fn delete(&self, session: &str) -> Result<bool, StoreError>;
}

/// The fence of a history that begins: another than an earlier history of that id, since deleted, can have given.
pub fn first_fence() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    // The clock tells processes and lives apart, the counter the calls of one; below 2^53, as a script's numbers must be.
    let clock = crate::clock::now_ms() << 10 | u64::from(std::process::id() & 1023);
    // Relaxed: the number alone matters.
    let last = LAST.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(clock.max(last + 1)));
    last.map_or(clock, |last| clock.max(last + 1))
}

/// Whether `id` may be a key in a store: 1 to 128 of `A-Z a-z 0-9 . _ ~ - : @`, so that no store has to escape it.
pub fn is_key(id: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._~-:@".contains(&byte);
    (1..=128).contains(&id.len()) && id.bytes().all(plain)
}
