//! The sessions of one process, by id.
//!
//! Invariants: 1. ids that the hub makes cannot be guessed (160 random bits); 2. a session with a running turn or an
//! open reader is never forgotten to make room; 3. deleting ends the session first, so that its readers end too.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::keeper::{Keeper, StoreOptions};
use super::{Limits, Session, SessionError, now_ms};
use crate::store::{LogStore, StoreError, is_key};

/// The sessions, and the store they live in. Safe from every thread.
pub struct Hub {
    limits: Limits,
    sessions: Mutex<Sessions>,
    /// None: in memory.
    keeper: Option<Arc<Keeper>>,
}

struct Sessions {
    by_id: HashMap<Arc<str>, Arc<Session>>,
    swept: u64,
}

/// `length` random characters of a-z and 2-7: five bits each, and nothing that an SSE id, a header or a URL minds.
pub fn random_word(length: usize) -> String {
    let mut bytes = vec![0_u8; length];
    getrandom::fill(&mut bytes).expect("the system has randomness");
    bytes.iter().map(|byte| char::from(b"abcdefghijklmnopqrstuvwxyz234567"[usize::from(byte & 31)])).collect()
}

impl Hub {
    /// A hub in memory.
    pub fn new(limits: Limits) -> Self {
        Self { limits, sessions: Mutex::new(Sessions { by_id: HashMap::new(), swept: now_ms() }), keeper: None }
    }

    /// A hub whose sessions live in `store`, which other hubs of other processes may share.
    pub fn with_store(limits: Limits, store: Arc<dyn LogStore>, options: StoreOptions) -> Result<Self, StoreError> {
        Ok(Self { keeper: Some(Keeper::start(store, options)?), ..Self::new(limits) })
    }

    /// What each session may keep.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The session `id` of a hub in memory, made if it is new; without an id, a new one under an id nobody can guess.
    ///
    /// # Panics
    /// On a hub with a store, where the store refuses: [`Self::open`] says why.
    pub fn session(&self, id: Option<&str>) -> Arc<Session> {
        self.open(id).expect("a hub in memory refuses nothing")
    }

    /// The session `id`, made if it is new; without an id, a new one under an id nobody can guess. What a store has of it is
    /// there when this returns; a turn whose writer is gone has been ended.
    pub fn open(&self, id: Option<&str>) -> Result<Arc<Session>, SessionError> {
        let id: Arc<str> = id.map_or_else(|| Arc::from(random_word(32)), Arc::from);
        if let Some(keeper) = &self.keeper {
            return self.open_stored(keeper, &id, true);
        }
        let mut sessions = self.sessions.lock();
        sessions.sweep(&self.limits);
        Ok(sessions.by_id.entry(id).or_insert_with_key(|id| Session::new(id, self.limits)).clone())
    }

    /// The session `id`, if there is one.
    pub fn find(&self, id: &str) -> Result<Arc<Session>, SessionError> {
        match &self.keeper {
            Some(keeper) => self.open_stored(keeper, id, false),
            None => self.sessions.lock().by_id.get(id).cloned().ok_or(SessionError::Unknown),
        }
    }

    fn open_stored(&self, keeper: &Arc<Keeper>, id: &str, create: bool) -> Result<Arc<Session>, SessionError> {
        if !is_key(id) {
            return Err(if create { SessionError::BadId } else { SessionError::Unknown });
        }
        for _ in 0..3 {
            let mut sessions = self.sessions.lock();
            sessions.sweep(&self.limits);
            let known = sessions.by_id.get(id).cloned();
            drop(sessions);
            let session = if let Some(session) = known.filter(|session| !session.is_broken()) {
                session
            } else {
                // Read without the map's lock; of two that read at once, one is kept.
                let opened = Session::open_stored(id, self.limits, keeper, create)?;
                let mut sessions = self.sessions.lock();
                let kept = sessions.by_id.entry(opened.id().clone()).or_insert_with(|| opened.clone());
                if kept.is_broken() {
                    *kept = opened;
                }
                kept.clone()
            };
            match session.follow() {
                // Gone, or begun anew, since it was read.
                Err(SessionError::Unknown) => {}
                // Somebody else ends the turn, or the store is away: what is known is given.
                _ => return Ok(session),
            }
        }
        Err(SessionError::Unknown)
    }

    /// Waits, a while, until the store has what was logged: true if it has.
    pub fn flush(&self) -> bool {
        let sessions: Vec<_> = self.sessions.lock().by_id.values().cloned().collect();
        sessions.iter().all(|session| session.flush())
    }

    /// All sessions, newest activity first.
    pub fn sessions(&self) -> Vec<Arc<Session>> {
        let mut all: Vec<_> = self.sessions.lock().by_id.values().cloned().collect();
        all.sort_by_cached_key(|session| std::cmp::Reverse(session.touched()));
        all
    }

    /// [`Self::remove`] for a hub in memory, which refuses nothing.
    pub fn delete(&self, id: &str) -> bool {
        self.remove(id).unwrap_or(false)
    }

    /// Ends the session and forgets it, in the store too; false when there was none.
    pub fn remove(&self, id: &str) -> Result<bool, SessionError> {
        let session = self.sessions.lock().by_id.remove(id);
        if let Some(keeper) = &self.keeper {
            if let Some(session) = session {
                session.close(Some("deleted"));
                session.break_off();
            }
            return if is_key(id) { keeper.store.delete(id).map_err(SessionError::Store) } else { Ok(false) };
        }
        Ok(session.is_some_and(|session| {
            session.close(Some("deleted"));
            true
        }))
    }

    /// Ends all sessions and forgets them. In a store they stay: only the turns that run here are ended.
    pub fn close(&self) {
        let all: Vec<_> = self.sessions.lock().by_id.drain().map(|(_, session)| session).collect();
        for session in all {
            if self.keeper.is_none() {
                session.close(Some("hub_closed"));
            } else if session.writes() {
                session.cancel("hub_closed");
            }
        }
    }
}

impl Sessions {
    /// Forgets what has been still for longer than the limit. At most once a second: it looks at every session.
    fn sweep(&mut self, limits: &Limits) {
        let now = now_ms();
        if now < self.swept + 1000 {
            return;
        }
        self.swept = now;
        let oldest = now.saturating_sub(limits.max_age_ms);
        self.by_id
            .retain(|_, session| session.readers() > 0 || session.touched() >= oldest || session.look(|state| state.running));
    }
}
