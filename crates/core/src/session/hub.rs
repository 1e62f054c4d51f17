//! The sessions of one process, by id, and what they keep together.
//!
//! Invariants: 1. ids that the hub makes cannot be guessed (160 random bits); 2. a session with a running turn or an
//! open reader is never forgotten to make room; 3. deleting ends the session first, so that its readers end too; 4. what
//! all sessions keep is known without looking at any: a session says by how much it grew, once per batch; 5. room is made
//! in this order: deltas that their final event covers, then whole sessions that nobody uses, the longest still first.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::{Mutex, MutexGuard};

use super::keeper::{Asked, Keeper, Slot, StoreOptions, patience, too_late};
use super::redact::Redact;
use super::{Limits, Session, SessionError};
use crate::clock::now_ms;
use crate::store::{LogStore, StoreError, is_key};

/// The sessions, and the store they live in. Safe from every thread.
pub struct Hub {
    shared: Arc<Shared>,
}

/// How the sessions of a hub reach what they share with each other.
pub(crate) struct Shared {
    limits: Limits,
    redact: Option<Arc<dyn Redact>>,
    sessions: Mutex<Sessions>,
    /// None: in memory.
    keeper: Option<Arc<Keeper>>,
    /// Sessions that are being read, by id and whether they are made where there is none.
    opening: Mutex<Opening>,
    totals: Arc<Totals>,
    forgotten: AtomicU64,
    making_room: Mutex<()>,
}

/// What all logs hold. Relaxed everywhere: sums, which order nothing.
#[derive(Debug)]
pub(crate) struct Totals {
    events: AtomicU64,
    bytes: AtomicU64,
    /// Making room is tried again beyond these: what is in use cannot be let go, and looking at it costs.
    events_wall: AtomicU64,
    bytes_wall: AtomicU64,
}

type Opened = Result<Arc<Session>, SessionError>;
type Opening = HashMap<(Arc<str>, bool), Slot<Opened>>;

struct Sessions {
    by_id: HashMap<Arc<str>, Arc<Session>>,
    swept: u64,
}

/// Exact counts of what a hub holds and did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HubStatistics {
    /// Sessions.
    pub sessions: u64,
    /// Events in all logs.
    pub events: u64,
    /// Bytes in all logs, about.
    pub bytes: u64,
    /// Sessions that were forgotten: their time was over, or room was needed.
    pub forgotten: u64,
}

/// A session without an event is kept for so long, so that whoever made it can start a turn.
const FRESH_MS: u64 = 10_000;

/// `length` random characters of a-z and 2-7: five bits each, and nothing that an SSE id, a header or a URL minds.
pub fn random_word(length: usize) -> String {
    let mut bytes = vec![0_u8; length];
    getrandom::fill(&mut bytes).expect("the system has randomness");
    bytes.iter().map(|byte| char::from(b"abcdefghijklmnopqrstuvwxyz234567"[usize::from(byte & 31)])).collect()
}

impl Hub {
    /// A hub in memory.
    pub fn new(limits: Limits) -> Self {
        Self::make(limits, None, None)
    }

    /// A hub whose sessions live in `store`, which other hubs of other processes may share.
    pub fn with_store(
        limits: Limits,
        store: Arc<dyn LogStore>,
        options: StoreOptions,
        redact: Option<Arc<dyn Redact>>,
    ) -> Result<Self, StoreError> {
        Ok(Self::make(limits, redact, Some(Keeper::start(store, options)?)))
    }

    /// A hub in memory whose events pass `redact` before anything is stored.
    pub fn with_redaction(limits: Limits, redact: Option<Arc<dyn Redact>>) -> Self {
        Self::make(limits, redact, None)
    }

    fn make(limits: Limits, redact: Option<Arc<dyn Redact>>, keeper: Option<Arc<Keeper>>) -> Self {
        let shared = Shared {
            redact,
            keeper,
            opening: Mutex::default(),
            sessions: Mutex::new(Sessions { by_id: HashMap::new(), swept: now_ms() }),
            totals: Arc::new(Totals {
                events: AtomicU64::new(0),
                bytes: AtomicU64::new(0),
                events_wall: AtomicU64::new(limits.hub_max_events as u64),
                bytes_wall: AtomicU64::new(limits.hub_max_bytes as u64),
            }),
            forgotten: AtomicU64::new(0),
            making_room: Mutex::new(()),
            limits,
        };
        Self { shared: Arc::new(shared) }
    }

    /// What each session may keep, and all together.
    pub fn limits(&self) -> &Limits {
        &self.shared.limits
    }

    /// The session `id`, made if it is new; without an id, a new one under an id nobody can guess. What a store has of it is
    /// there when this returns; a turn whose writer is gone has been ended. A store that does not answer is waited for no
    /// longer than [`super::PATIENCE`]; one that reads a long history, until it has. Of a session that is known, what is known
    /// is given then.
    ///
    /// # Errors
    /// [`SessionError::Full`] for a new one where `max_sessions` are in use; what the store says, of a hub with one.
    pub fn session(&self, id: Option<&str>) -> Result<Arc<Session>, SessionError> {
        let shared = &self.shared;
        shared.sweep();
        if let Some(keeper) = &shared.keeper {
            let id: Arc<str> = id.map_or_else(|| Arc::from(random_word(32)), Arc::from);
            return shared.open_stored(keeper, &id, true);
        }
        let mut sessions = shared.sessions.lock();
        if let Some(known) = id.and_then(|id| sessions.by_id.get(id)) {
            return Ok(known.clone());
        }
        if sessions.by_id.len() >= shared.limits.max_sessions {
            drop(sessions);
            sessions = shared.make_place()?;
        }
        let id: Arc<str> = id.map_or_else(|| Arc::from(random_word(32)), Arc::from);
        let make = |id: &Arc<str>| Session::of_hub(id, shared);
        Ok(sessions.by_id.entry(id).or_insert_with_key(make).clone())
    }

    /// The session `id`, if there is one. To the millisecond: one whose time is over is gone.
    pub fn find(&self, id: &str) -> Result<Arc<Session>, SessionError> {
        self.shared.sweep();
        if let Some(keeper) = &self.shared.keeper {
            return self.shared.open_stored(keeper, id, false);
        }
        let mut sessions = self.shared.sessions.lock();
        let session = sessions.by_id.get(id).cloned().ok_or(SessionError::Unknown)?;
        if self.shared.is_over(&session, now_ms()) {
            sessions.by_id.remove(id);
            drop(sessions);
            self.shared.left(&session);
            return Err(SessionError::Unknown);
        }
        Ok(session)
    }

    /// Whether its sessions live in a store: calls may wait for it.
    pub fn is_stored(&self) -> bool {
        self.shared.keeper.is_some()
    }

    /// The session `id`, where no store has to be asked: in memory, or written by this process now.
    pub fn known(&self, id: &str) -> Option<Arc<Session>> {
        if self.shared.keeper.is_none() {
            return self.find(id).ok();
        }
        let known = self.shared.sessions.lock().by_id.get(id).cloned();
        known.filter(|session| !session.is_broken() && session.writes())
    }

    /// Waits, a while, until the store has what was logged: true if it has.
    pub fn flush(&self) -> bool {
        self.shared.all().iter().all(|session| session.flush())
    }

    /// All sessions, newest activity first.
    pub fn sessions(&self) -> Vec<Arc<Session>> {
        let mut all = self.shared.all();
        all.sort_by_cached_key(|session| std::cmp::Reverse(session.touched()));
        all
    }

    /// [`Self::remove`] for a hub in memory, which refuses nothing.
    pub fn delete(&self, id: &str) -> bool {
        self.remove(id).unwrap_or(false)
    }

    /// Ends the session and forgets it, in the store too; false when there was none.
    pub fn remove(&self, id: &str) -> Result<bool, SessionError> {
        let session = self.shared.sessions.lock().by_id.remove(id);
        if let Some(keeper) = &self.shared.keeper {
            let deadline = patience();
            if let Some(session) = session {
                session.close(Some("deleted"));
                // Its readers are told: above `Durability::Memory` they see what the store has.
                session.flush_until(Instant::now() + super::PATIENCE / 2); // the rest is for the store
                session.break_off();
                session.leave_hub();
            }
            if !is_key(id) {
                return Ok(false);
            }
            let (store, id) = (keeper.store.clone(), id.to_owned());
            let deleted = keeper.ask(deadline, move || store.delete(&id));
            return deleted.ok_or_else(too_late)?.map_err(SessionError::Store);
        }
        Ok(session.is_some_and(|session| {
            session.close(Some("deleted"));
            session.leave_hub();
            true
        }))
    }

    /// Ends all sessions and forgets them. In a store they stay: only the turns that run here are ended.
    pub fn close(&self) {
        let all: Vec<_> = self.shared.sessions.lock().by_id.drain().map(|(_, session)| session).collect();
        for session in &all {
            if self.shared.keeper.is_none() {
                session.close(Some("hub_closed"));
            } else if session.writes() {
                session.cancel_here("hub_closed");
            }
        }
        let deadline = patience(); // one for all
        for session in all {
            session.flush_until(deadline);
            session.leave_hub();
        }
    }

    /// The sessions whose running turn has now said nothing for `timeout_ms`; each is told so by a `warning`, once per stall.
    pub fn check_stalls(&self, timeout_ms: u64) -> Vec<Arc<Session>> {
        let mut all = self.shared.all();
        all.retain(|session| session.check_stall(timeout_ms));
        all
    }

    /// Exact counts.
    pub fn statistics(&self) -> HubStatistics {
        let shared = &self.shared;
        HubStatistics {
            sessions: shared.sessions.lock().by_id.len() as u64,
            events: shared.totals.events.load(Ordering::Relaxed),
            bytes: shared.totals.bytes.load(Ordering::Relaxed),
            forgotten: shared.forgotten.load(Ordering::Relaxed),
        }
    }
}

impl Shared {
    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    pub(crate) fn redact(&self) -> Option<Arc<dyn Redact>> {
        self.redact.clone()
    }

    pub(crate) fn totals(&self) -> Arc<Totals> {
        self.totals.clone()
    }

    fn open_stored(self: &Arc<Self>, keeper: &Arc<Keeper>, id: &str, create: bool) -> Result<Arc<Session>, SessionError> {
        if !is_key(id) {
            return Err(if create { SessionError::BadId } else { SessionError::Unknown });
        }
        let deadline = patience();
        for _ in 0..3 {
            let known = self.sessions.lock().by_id.get(id).cloned();
            let session = match known.filter(|session| !session.is_broken()) {
                Some(session) => session,
                None => self.opened(keeper, id, create, deadline)?,
            };
            match session.follow_until(deadline) {
                // Gone, or begun anew, since it was read.
                Err(SessionError::Unknown) => {}
                // Somebody else ends the turn, or the store is away: what is known is given.
                _ => return Ok(session),
            }
        }
        Err(SessionError::Unknown)
    }

    /// The session as the store has it, read by one of those who want it, for all of them.
    fn opened(self: &Arc<Self>, keeper: &Arc<Keeper>, id: &str, create: bool, deadline: Instant) -> Opened {
        let key = (Arc::from(id), create);
        let slot = self.opening.lock().entry(key.clone()).or_default().clone();
        let (hub, keeping) = (self.clone(), keeper.clone());
        let open = move |asked: &Asked<Opened>| {
            let (id, create) = &key;
            let opened = Session::open_stored(id, &hub, &keeping, *create, asked).and_then(|opened| hub.keep(&keeping, opened));
            hub.opening.lock().remove(&key);
            opened
        };
        keeper.share(&slot, deadline, open).ok_or_else(too_late)?
    }

    /// Puts a session that was read into the map, unless one is there.
    fn keep(&self, keeper: &Keeper, opened: Arc<Session>) -> Opened {
        let mut sessions = self.make_place()?;
        let kept = sessions.by_id.entry(opened.id().clone()).or_insert_with(|| opened.clone());
        if kept.is_broken() {
            kept.leave_hub();
            *kept = opened;
        }
        keeper.know(kept); // while nobody puts another one into its place
        Ok(kept.clone())
    }

    /// The map, with room for one more.
    fn make_place(&self) -> Result<MutexGuard<'_, Sessions>, SessionError> {
        let sessions = self.sessions.lock();
        if sessions.by_id.len() < self.limits.max_sessions {
            return Ok(sessions);
        }
        drop(sessions);
        // Some at a time: finding the longest still means looking at all.
        self.forget_idle((self.limits.max_sessions / 16).max(1));
        let sessions = self.sessions.lock();
        if sessions.by_id.len() >= self.limits.max_sessions {
            return Err(SessionError::Full(self.limits.max_sessions));
        }
        Ok(sessions)
    }

    fn all(&self) -> Vec<Arc<Session>> {
        self.sessions.lock().by_id.values().cloned().collect()
    }

    /// Makes all logs fit, and a sixteenth more, so that it is not done again at once.
    pub(crate) fn make_room(&self) {
        let Some(_alone) = self.making_room.try_lock() else { return };
        let (max_events, max_bytes) = (self.limits.hub_max_events as u64, self.limits.hub_max_bytes as u64);
        let (events, bytes) = (max_events - max_events / 16, max_bytes - max_bytes / 16);
        let totals = &self.totals;
        let fits = || totals.events.load(Ordering::Relaxed) <= events && totals.bytes.load(Ordering::Relaxed) <= bytes;
        let mut all = self.all();
        all.sort_by_cached_key(|session| session.touched());
        for session in &all {
            if fits() {
                break;
            }
            session.compact();
        }
        for session in &all {
            if fits() {
                break;
            }
            self.forget(session);
        }
        let wall = |sum: &AtomicU64, max: u64| max.max(sum.load(Ordering::Relaxed) + max / 16);
        totals.events_wall.store(wall(&totals.events, max_events), Ordering::Relaxed);
        totals.bytes_wall.store(wall(&totals.bytes, max_bytes), Ordering::Relaxed);
    }

    /// Forgets up to `count` sessions that nobody uses, the longest still first.
    fn forget_idle(&self, count: usize) {
        let mut all = self.all();
        all.sort_by_cached_key(|session| session.touched());
        let mut left = count;
        for session in &all {
            if left == 0 {
                break;
            }
            left -= usize::from(self.forget(session));
        }
    }

    /// Forgets a session that nobody uses; true if it did.
    fn forget(&self, session: &Arc<Session>) -> bool {
        let mut sessions = self.sessions.lock();
        let fresh = session.position().head == 0 && session.touched() + FRESH_MS > now_ms();
        if fresh || session.in_use() || sessions.by_id.remove(session.id()).is_none() {
            return false;
        }
        drop(sessions);
        self.left(session);
        true
    }

    fn left(&self, session: &Session) {
        session.leave_hub();
        self.forgotten.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether the session has been still for longer than it is kept: exactly that long is not over.
    fn is_over(&self, session: &Session, now: u64) -> bool {
        session.touched() < now.saturating_sub(self.limits.max_age_ms) && !session.in_use()
    }

    /// Forgets what has been still for longer than the limit. At most once a second: it looks at every session.
    fn sweep(&self) {
        let now = now_ms();
        let mut sessions = self.sessions.lock();
        if now < sessions.swept + 1000 {
            return;
        }
        sessions.swept = now;
        self.totals.events_wall.store(self.limits.hub_max_events as u64, Ordering::Relaxed);
        self.totals.bytes_wall.store(self.limits.hub_max_bytes as u64, Ordering::Relaxed);
        let over: Vec<_> = sessions.by_id.values().filter(|session| self.is_over(session, now)).cloned().collect();
        for session in &over {
            sessions.by_id.remove(session.id());
        }
        drop(sessions);
        for session in &over {
            self.left(session);
        }
    }
}

/// A session's place in its hub: what it has told of its log so far.
#[derive(Debug)]
pub(crate) struct Membership {
    totals: Arc<Totals>,
    events: usize,
    bytes: usize,
}

impl Membership {
    pub(crate) fn new(totals: Arc<Totals>) -> Self {
        Self { totals, events: 0, bytes: 0 }
    }

    /// Tells the hub what the log holds now. Whether room should be made.
    ///
    /// While a turn runs, a thousandth of what the hub may hold, and no more than 32 events or 16 KiB, may wait: two atomic steps
    /// for each delta are a tenth of its cost.
    pub(crate) fn tell(&mut self, events: usize, bytes: usize, running: bool) -> bool {
        let waits = |now: usize, told: usize, wall: &AtomicU64, most: u64| {
            now.abs_diff(told) as u64 <= (wall.load(Ordering::Relaxed) >> 10).min(most)
        };
        let (events_wall, bytes_wall) = (&self.totals.events_wall, &self.totals.bytes_wall);
        if (events, bytes) == (self.events, self.bytes)
            || (running && waits(events, self.events, events_wall, 32) && waits(bytes, self.bytes, bytes_wall, 16 << 10))
        {
            return false;
        }
        let add = |sum: &AtomicU64, now: usize, before: usize| {
            let by = (now as u64).wrapping_sub(before as u64);
            sum.fetch_add(by, Ordering::Relaxed).wrapping_add(by)
        };
        let totals = &*self.totals;
        let (all_events, all_bytes) = (add(&totals.events, events, self.events), add(&totals.bytes, bytes, self.bytes));
        (self.events, self.bytes) = (events, bytes);
        all_events > totals.events_wall.load(Ordering::Relaxed) || all_bytes > totals.bytes_wall.load(Ordering::Relaxed)
    }
}

/// A session that is dropped weighs nothing any more, also one that its hub never had: of two that read a store at once.
impl Drop for Membership {
    fn drop(&mut self) {
        self.tell(0, 0, false);
    }
}
