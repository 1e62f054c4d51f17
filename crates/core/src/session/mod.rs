//! One ordered, bounded log per session, and the life of its turns.
//!
//! Owns order, dedupe, repair, folding, retention and the ends. Knows nothing of bytes, providers' formats or clients.
//! Invariants: 1. `seq` is dense per session, whoever emits from whichever thread; 2. a turn has exactly one
//! `completion`, and nothing of that turn follows it; 3. every message that was shown is closed by exactly one
//! `assistant_message` of which its deltas are a prefix, every call by one `tool_call` and at most one `tool_result`;
//! 4. a second copy of a message or call, by id, adds nothing but what is new in it; 5. no lock is held while a waker
//! runs; 6. the end is an event in the log, never a flag beside it.

mod admit;
mod emit;
mod error;
mod history;
pub mod hub;
mod keeper;
mod limits;
mod log;
#[cfg(all(test, loom))]
mod models;
mod pace;
mod page;
mod produce;
pub mod redact;
pub mod stall;
mod state;
mod status;
mod stored;
mod turn;
mod waiters;

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::Waker;

pub use error::SessionError;
pub(crate) use history::History;
pub use hub::{Hub, HubStatistics};
pub use keeper::{BACKLOG_EVENTS, PATIENCE, StoreOptions};
pub use limits::Limits;
pub use log::Entry;
use log::Log;
pub(crate) use pace::Pace;
pub use page::{Absent, Page};
pub use produce::Taken;
pub(crate) use state::error_json;
pub use state::{Attached, CallState, Dropped, MessageState, Named, Outcome, StageState, State};
pub use status::Statistics;
pub use turn::{Cancelling, Ending, Started, TurnOptions};
pub use waiters::Ticket;
use waiters::Waiters;

use crate::clock::{TICK_MS, now_ms};
use crate::event::{Context, Json, Payload};
use crate::sync::Mutex;

pub(crate) struct Inner {
    pub(crate) log: Log,
    pub(crate) state: State,
    context: Arc<Context>,
    limits: Limits,
    closed: bool,
    cancelling: Option<Box<dyn FnOnce() + Send>>,
    /// The newest turns that were cancelled.
    cancelled: VecDeque<u32>,
    /// The newest requests that have an id of their own.
    requests: VecDeque<turn::Request>,
    producers: Vec<produce::Producer>,
    notes: Vec<(Box<str>, Json)>,
    statistics: Statistics,
    /// `subscriber_failures` when the running turn began.
    failures_before: u64,
    now: u64,
    /// When the newest event came that is no warning of a stall.
    progressed: u64,
    /// Whether the stall that lasts has been said.
    stalled: bool,
    /// Messages that have reached their limit.
    capped: Vec<crate::event::Id>,
    /// The seq of the running turn's newest `round_start`, or of its `turn_start`.
    began: u64,
    /// What the messages are called whose ids came again since then.
    renamed: Vec<(crate::event::Id, crate::event::Id)>,
    /// How often each of them has come: the next one is not looked for from the first.
    reused: HashMap<crate::event::Id, u64>,
    membership: Option<hub::Membership>,
    minted: u64,
    waiters: Waiters,
    paces: Vec<Arc<Pace>>,
    pace_waiters: Waiters,
    /// What a session in a store keeps besides.
    stored: Option<Box<stored::Stored>>,
}

/// One conversation: one log, and the state folded from it. Shared by `Arc`; every method is safe from every thread.
pub struct Session {
    id: Arc<str>,
    epoch: Arc<str>,
    born: u64,
    inner: Mutex<Inner>,
    readers: AtomicUsize,
    redact: Option<Arc<dyn redact::Redact>>,
    hub: Option<Weak<hub::Shared>>,
    redaction_failures: std::sync::atomic::AtomicU64,
    link: Option<stored::Link>,
}

impl Session {
    /// A new, empty session in memory.
    pub fn new(id: &str, limits: Limits) -> Arc<Self> {
        Arc::new(Self::bare(id, limits, None, None))
    }

    pub(crate) fn of_hub(id: &str, hub: &Arc<hub::Shared>) -> Arc<Self> {
        Arc::new(Self::bare(id, hub.limits(), None, Some(hub)))
    }

    /// A session of which `parts` makes what it needs to live in a store.
    fn make(
        id: &str,
        hub: &Arc<hub::Shared>,
        epoch: &str,
        parts: impl FnOnce(&std::sync::Weak<Self>) -> (stored::Link, stored::Stored),
    ) -> Arc<Self> {
        Arc::new_cyclic(|weak| {
            let mut session = Self::bare(id, hub.limits(), Some(epoch), Some(hub));
            let (link, stored) = parts(weak);
            session.link = Some(link);
            session.inner.lock().stored = Some(Box::new(stored));
            session
        })
    }

    fn bare(id: &str, limits: Limits, epoch: Option<&str>, hub: Option<&Arc<hub::Shared>>) -> Self {
        let id: Arc<str> = Arc::from(id);
        let context = Arc::new(Context::of_session(&id));
        Self {
            id,
            epoch: epoch.map_or_else(|| Arc::from(hub::random_word(8)), Arc::from),
            born: now_ms(),
            inner: Mutex::new(Inner {
                log: Log::new(limits.max_state_bytes),
                state: State::bounded(limits.max_state_bytes),
                context,
                limits,
                closed: false,
                cancelling: None,
                cancelled: VecDeque::new(),
                requests: VecDeque::new(),
                producers: Vec::new(),
                notes: Vec::new(),
                statistics: Statistics::default(),
                failures_before: 0,
                now: 0,
                progressed: 0,
                stalled: false,
                capped: Vec::new(),
                began: 0,
                renamed: Vec::new(),
                reused: HashMap::new(),
                membership: hub.map(|hub| hub::Membership::new(hub.totals())),
                minted: 0,
                waiters: Waiters::default(),
                paces: Vec::new(),
                pace_waiters: Waiters::default(),
                stored: None,
            }),
            readers: AtomicUsize::new(0),
            redact: hub.and_then(|hub| hub.redact()),
            hub: hub.map(Arc::downgrade),
            redaction_failures: std::sync::atomic::AtomicU64::new(0),
            link: None,
        }
    }

    /// The session's id.
    pub fn id(&self) -> &Arc<str> {
        &self.id
    }

    /// The log's life: cursors of another epoch belong to another log.
    pub fn epoch(&self) -> &Arc<str> {
        &self.epoch
    }

    /// Runs `change` under the lock and wakes whoever waited, after it.
    fn change<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        self.change_at(now_ms(), change)
    }

    fn change_at<T>(&self, now: u64, change: impl FnOnce(&mut Inner) -> T) -> T {
        let mut inner = self.inner.lock();
        let before = inner.log.head;
        // The tick may be behind an exact time that was taken before it. What is further behind, somebody has set.
        inner.now = if inner.now.wrapping_sub(now) <= TICK_MS { inner.now } else { now };
        let result = change(&mut inner);
        inner.hand_over(before);
        // What waits for a store wakes nobody yet.
        let changed = (inner.log.head != before || inner.closed) && inner.log.seen == u64::MAX;
        let waiters = (changed && inner.waiters.len() > 0).then(|| inner.waiters.take());
        let producers = inner.closed.then(|| inner.pace_waiters.take());
        let full = inner.tell_hub();
        drop(inner);
        // A waker may ring a descriptor or take another lock: never under ours.
        if let Some(waiters) = waiters {
            waiters.for_each(Waker::wake);
        }
        if let Some(producers) = producers {
            producers.for_each(Waker::wake);
        }
        if full && let Some(hub) = self.hub.as_ref().and_then(Weak::upgrade) {
            hub.make_room();
        }
        result
    }

    /// Ends the session: the running turn as cancelled, then `session_end`. A second call does nothing. Where another process
    /// writes the session, asks it to cancel its turn, and no more.
    pub fn close(&self, reason: Option<&str>) {
        let deadline = keeper::patience();
        let mut ended = false;
        while !ended {
            self.cancel_here("session_closed");
            // Only now: a claim that the running turn alone has held goes with it.
            let _hold = match self.hold_until(deadline) {
                Ok(hold) => hold,
                Err(SessionError::NotWriter { .. }) => {
                    if let Some(asked) = self.cancel_elsewhere("session_closed") {
                        asked.take(deadline);
                    }
                    return;
                }
                Err(_) => return,
            };
            ended = self.change(|inner| {
                let started = inner.state.running; // a turn, since
                if !inner.closed && !started && inner.writes() {
                    let end = crate::event::SessionEnd { reason: reason.map(Into::into) };
                    inner.push(Payload::SessionEnd(Box::new(end)), None, 0);
                    inner.closed = true;
                }
                !started || !inner.writes()
            });
        }
    }

    pub(crate) fn count_reader(&self, joined: bool) {
        // Relaxed: a count for people, it orders nothing.
        if joined {
            self.readers.fetch_add(1, Ordering::Relaxed)
        } else {
            self.readers.fetch_sub(1, Ordering::Relaxed)
        };
    }

    /// Readers open now.
    pub fn readers(&self) -> usize {
        self.readers.load(Ordering::Relaxed)
    }

    /// Whether a turn runs, a reader is open, or a store has not taken what it logged: then it is not forgotten to make room.
    pub fn in_use(&self) -> bool {
        let inner = self.inner.lock();
        self.readers() > 0 || inner.state.running || (self.link.is_some() && inner.writes())
    }

    /// Drops the deltas that their final event covers.
    pub(crate) fn compact(&self) {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        let state = &inner.state;
        inner.log.compact(|event| state.covers(event));
        inner.tell_hub();
    }

    /// The hub has forgotten it: it weighs nothing there any more.
    pub(crate) fn leave_hub(&self) {
        drop(self.inner.lock().membership.take());
    }

    /// When something last happened here, in Unix milliseconds.
    pub fn touched(&self) -> u64 {
        self.look(|state| state.updated).unwrap_or(self.born)
    }

    /// Looks at the folded state.
    pub fn look<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.inner.lock().state)
    }

    /// The number of the running turn.
    pub fn running(&self) -> Option<u32> {
        self.look(|state| state.running.then_some(state.turn))
    }

    /// Looks at the folded state as readers see it: without what a store has not taken yet.
    pub fn see<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(self.inner.lock().public())
    }
}

impl Inner {
    /// Tells the hub what the log holds. Whether room should be made.
    fn tell_hub(&mut self) -> bool {
        let (events, bytes, running) = (self.log.entries.len(), self.log.bytes(), self.state.running);
        self.membership.as_mut().is_some_and(|membership| membership.tell(events, bytes, running))
    }

    /// Makes the log fit its limits again.
    fn settle(&mut self) {
        let state = &self.state;
        self.log.evict(&self.limits, self.now, |event| state.covers(event));
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("id", &self.id).field("position", &self.position()).finish_non_exhaustive()
    }
}
