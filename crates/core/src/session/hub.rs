//! The sessions of one process, by id.
//!
//! Invariants: 1. ids that the hub makes cannot be guessed (160 random bits); 2. a session with a running turn or an
//! open reader is never forgotten to make room; 3. deleting ends the session first, so that its readers end too.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Limits, Session, SessionError, now_ms};

/// The sessions, and the store they live in. Safe from every thread.
pub struct Hub {
    limits: Limits,
    sessions: Mutex<Sessions>,
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
        Self { limits, sessions: Mutex::new(Sessions { by_id: HashMap::new(), swept: now_ms() }) }
    }

    /// What each session may keep.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The session `id`, made if it is new; without an id, a new one under an id nobody can guess.
    pub fn session(&self, id: Option<&str>) -> Arc<Session> {
        let mut sessions = self.sessions.lock();
        sessions.sweep(&self.limits);
        let id: Arc<str> = id.map_or_else(|| Arc::from(random_word(32)), Arc::from);
        sessions.by_id.entry(id).or_insert_with_key(|id| Session::new(id, self.limits)).clone()
    }

    /// The session `id`, if there is one.
    pub fn find(&self, id: &str) -> Result<Arc<Session>, SessionError> {
        self.sessions.lock().by_id.get(id).cloned().ok_or(SessionError::Unknown)
    }

    /// All sessions, newest activity first.
    pub fn sessions(&self) -> Vec<Arc<Session>> {
        let mut all: Vec<_> = self.sessions.lock().by_id.values().cloned().collect();
        all.sort_by_cached_key(|session| std::cmp::Reverse(session.touched()));
        all
    }

    /// Ends the session and forgets it; false when there was none.
    pub fn delete(&self, id: &str) -> bool {
        let session = self.sessions.lock().by_id.remove(id);
        session.is_some_and(|session| {
            session.close(Some("deleted"));
            true
        })
    }

    /// Ends all sessions and forgets them.
    pub fn close(&self) {
        let all: Vec<_> = self.sessions.lock().by_id.drain().map(|(_, session)| session).collect();
        for session in all {
            session.close(Some("hub_closed"));
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
