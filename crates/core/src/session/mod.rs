//! One ordered, bounded log per session, and the life of its turns.
//!
//! Owns order, dedupe, repair, folding, retention and the ends. Knows nothing of bytes, providers' formats or clients.
//! Invariants: 1. `seq` is dense per session, whoever emits from whichever thread; 2. a turn has exactly one
//! `completion`, and nothing of that turn follows it; 3. every message that was shown is closed by exactly one
//! `assistant_message` of which its deltas are a prefix, every call by one `tool_call` and at most one `tool_result`;
//! 4. a second copy of a message or call, by id, adds nothing but what is new in it; 5. no lock is held while a waker
//! runs; 6. the end is an event in the log, never a flag beside it.

mod admit;
pub mod fold;
mod history;
pub mod hub;
mod keeper;
mod log;
#[cfg(all(test, loom))]
mod models;
mod produce;
pub mod redact;
pub mod stall;
mod state;
mod stored;
mod turn;
mod waiters;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::Waker;
use std::time::{SystemTime, UNIX_EPOCH};

pub(crate) use history::History;
pub use hub::{Hub, HubStatistics};
pub use keeper::{BACKLOG_EVENTS, PATIENCE, StoreOptions};
pub use log::Entry;
use log::Log;
pub use produce::Taken;
pub use state::{Attached, CallState, Dropped, MessageState, Outcome, StageState, State};
pub(crate) use state::{add_usage, empty_usage, error_json};
pub use turn::{Cancelling, Ending, Started, TurnOptions};
pub use waiters::Ticket;
use waiters::Waiters;

use crate::event::{Class, Context, Json, Payload, PayloadError, Status};
use crate::store::StoreError;
use crate::sync::{AtomicU64, Mutex};

/// How much a session keeps, and how much all sessions of a hub keep together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Events in the log.
    pub max_events: usize,
    /// Bytes in the log, about.
    pub max_bytes: usize,
    /// Age of an event, in milliseconds; also how long a finished session is kept by its hub.
    pub max_age_ms: u64,
    /// Bytes of one message's text, and of its reasoning and its refusal; what is beyond is cut, and said so.
    pub max_message_bytes: usize,
    /// Bytes of a session's folded state, about: its messages, calls, citations and files. What is open and the newest answer
    /// stay; of the rest the oldest goes first, and is counted.
    pub max_state_bytes: usize,
    /// Sessions in a hub.
    pub max_sessions: usize,
    /// Events in all logs of a hub.
    pub hub_max_events: usize,
    /// Bytes in all logs of a hub, about.
    pub hub_max_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_events: 100_000,
            max_bytes: 64 << 20,
            max_age_ms: 3_600_000,
            max_message_bytes: 16 << 20,
            max_state_bytes: 32 << 20,
            max_sessions: 100_000,
            hub_max_events: 10_000_000,
            hub_max_bytes: 1 << 30,
        }
    }
}

/// Why a session refuses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// The session takes no more events.
    #[error("session {0} is closed")]
    Closed(Arc<str>),
    /// A turn is running; a session runs one at a time.
    #[error("session {session}: turn {turn} is running")]
    TurnActive {
        /// The session.
        session: Arc<str>,
        /// The turn.
        turn: u32,
    },
    /// The turn has its completion.
    #[error("session {session}: turn {turn} has ended")]
    TurnEnded {
        /// The session.
        session: Arc<str>,
        /// The turn.
        turn: u32,
    },
    /// The turn has not started.
    #[error("session {session}: there is no turn {turn}")]
    NoTurn {
        /// The session.
        session: Arc<str>,
        /// The turn.
        turn: u32,
    },
    /// The same client id came before with another input.
    #[error("session {session}: client_id came before with another input, for turn {turn}")]
    Conflict {
        /// The session.
        session: Arc<str>,
        /// The turn it started.
        turn: u32,
    },
    /// No session of that id.
    #[error("unknown session")]
    Unknown,
    /// The hub holds as many sessions as it may, and all are in use.
    #[error("the hub holds {0} sessions, its limit, and all are in use")]
    Full(usize),
    /// The payload is not of the vocabulary.
    #[error(transparent)]
    Payload(#[from] PayloadError),
    /// Another process writes the session.
    #[error("another process writes this session")]
    NotWriter {
        /// How long its lease still runs, unless it renews it.
        remaining_ms: u64,
    },
    /// The id cannot be a key in a store.
    #[error("session id: expected 1 to 128 of A-Z a-z 0-9 . _ ~ - : @")]
    BadId,
    /// The store refuses.
    #[error(transparent)]
    Store(StoreError),
}

/// Exact counts of what a session did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Events logged.
    pub appended: u64,
    /// Second copies that added nothing.
    pub duplicates: u64,
    /// Deltas that came after their final event.
    pub late: u64,
    /// Emits refused with an error.
    pub refused: u64,
    /// Messages cut at their limit.
    pub capped: u64,
    /// Events on which the redaction hook failed.
    pub redaction_failures: u64,
    /// Events that have left the log.
    pub evicted: u64,
    /// Events in the log.
    pub retained: u64,
    /// Bytes in the log, about.
    pub bytes: u64,
    /// Readers open now.
    pub readers: u64,
    /// Calls of subscribers that raised.
    pub subscriber_failures: u64,
}

/// Unix time in milliseconds.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_millis() as u64)
}

/// How old the kernel's last tick can be: 100 of them a second at the least.
const TICK_MS: u64 = 10;

/// Unix time in milliseconds as of the kernel's last tick: mostly up to 4 ms old, and a fifth of the price (21 ns; 4).
#[cfg(target_os = "linux")]
fn tick_ms() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
    time.tv_sec.cast_unsigned() * 1000 + time.tv_nsec.cast_unsigned() / 1_000_000
}

#[cfg(not(target_os = "linux"))]
fn tick_ms() -> u64 {
    now_ms()
}

/// How far a reader that paces the producer has come.
#[derive(Debug)]
pub(crate) struct Pace {
    pub(crate) seq: AtomicU64,
    pub(crate) window: u64,
}

impl Pace {
    pub(crate) fn new(seq: u64, window: u64) -> Self {
        Self { seq: AtomicU64::new(seq), window }
    }
}

pub(crate) struct Inner {
    pub(crate) log: Log,
    pub(crate) state: State,
    context: Arc<Context>,
    limits: Limits,
    closed: bool,
    cancelling: Option<Box<dyn FnOnce() + Send>>,
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
    /// Read without the lock by feeds that want to stop early.
    cancelled: AtomicBool,
    link: Option<stored::Link>,
}

/// What [`Session::page`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    /// The newest seq of the log.
    pub head: u64,
    /// Everything up to this seq has left the log.
    pub trimmed: u64,
    /// Whether the session takes no more events.
    pub closed: bool,
    /// The newest turn, and whether it runs.
    pub turn: u32,
    /// Whether the newest turn runs.
    pub running: bool,
    /// The seq of the last completion; 0 without one.
    pub last_end: u64,
    /// The turn of the last completion.
    pub last_turn: u32,
}

/// What has left the log right after a cursor.
#[derive(Debug)]
pub enum Absent {
    /// Its fold, and the seq up to which it goes.
    Folded(u64, Json),
    /// The store has it, up to this seq.
    Stored(u64),
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
                requests: VecDeque::new(),
                producers: Vec::new(),
                notes: Vec::new(),
                statistics: Statistics::default(),
                failures_before: 0,
                now: 0,
                progressed: 0,
                stalled: false,
                capped: Vec::new(),
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
            cancelled: AtomicBool::new(false),
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

    /// Appends one event; returns its seq, or the newest one where it adds nothing.
    ///
    /// `turn` `None` means the running turn, or, where none runs, the session itself (turn 0).
    pub fn emit(&self, turn: Option<u32>, payload: Payload, extra: Option<Json>) -> Result<u64, SessionError> {
        let Some((payload, extra)) = self.redacted(payload, extra) else { return Ok(self.position().head) };
        let _hold = self.hold(turn)?;
        self.change(|inner| {
            let emitted = inner.enter(&self.id, turn).and_then(|turn| inner.admit(&self.id, turn, payload, extra));
            inner.settle();
            emitted
        })
    }

    /// Appends many events of one turn under one lock; stops at the first error. Returns how many were taken; none is left.
    pub fn emit_all(&self, turn: u32, payloads: &mut Vec<Payload>) -> Result<usize, SessionError> {
        if self.redact.is_some() {
            return self.emit_redacted(turn, payloads);
        }
        let _hold = self.hold(Some(turn)).inspect_err(|_| payloads.clear())?;
        // A delta's time is the last tick's: nobody sets a watch by it.
        let deltas = payloads.iter().all(|payload| payload.class() == Class::Delta);
        let (mut count, mut failed) = (0, None);
        self.change_at(if deltas { tick_ms() } else { now_ms() }, |inner| {
            failed = inner.enter(&self.id, Some(turn)).err();
            // From the back, and a delta is looked at where it lies: it is copied once, to where it stays. A copy on the
            // way is read in other widths than it was written, and waits for that (20 ns of a delta's 240).
            payloads.reverse();
            while let (None, Some(last)) = (&failed, payloads.last_mut()) {
                let delta = last.class() == Class::Delta;
                let taken = !delta || inner.takes_delta(turn, last);
                let payload = payloads.swap_remove(payloads.len() - 1);
                if !taken {
                    drop(payload);
                } else if delta {
                    inner.push_delta(turn, payload, None);
                } else if let Err(error) = inner.admit(&self.id, turn, payload, None) {
                    failed = Some(error);
                    continue;
                }
                count += 1;
            }
            inner.settle();
        });
        payloads.clear();
        failed.map_or(Ok(count), Err)
    }

    /// [`Self::emit_all`] where a hook must see them first, which it does before the lock.
    fn emit_redacted(&self, turn: u32, payloads: &mut Vec<Payload>) -> Result<usize, SessionError> {
        let stored: Vec<_> = payloads.drain(..).filter_map(|payload| self.redacted(payload, None)).collect();
        let _hold = self.hold(Some(turn))?;
        self.change(|inner| {
            let emitted = inner.enter(&self.id, Some(turn)).and_then(|turn| {
                let count = stored.len();
                stored.into_iter().try_for_each(|(payload, extra)| inner.admit(&self.id, turn, payload, extra).map(drop))?;
                Ok(count)
            });
            inner.settle();
            emitted
        })
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

    /// Copies up to `max` entries after `seq` into `out`, and no more once they weigh `max_bytes`. Where some of them have left
    /// the log, says what is known of them: under the same lock, so that nothing can leave between the two. With `history`, what
    /// the store has is not missing, and entries end where it is to be asked.
    pub fn page(
        &self,
        seq: u64,
        max: usize,
        max_bytes: usize,
        history: bool,
        out: &mut Vec<Arc<Entry>>,
    ) -> (Page, Option<Absent>) {
        let inner = self.inner.lock();
        let history = history && self.link.is_some();
        if history && let Some(until) = inner.stored_after(seq) {
            return (inner.position(), Some(Absent::Stored(until)));
        }
        let base = (inner.log.trimmed > seq).then(|| Absent::Folded(inner.log.trimmed, inner.log.base.snapshot_json()));
        let start = inner.log.after(seq);
        let seen = inner.log.seen;
        let entries = inner.log.entries.iter().skip(start).take(max).take_while(|entry| entry.event.seq <= seen);
        if max_bytes == usize::MAX && !history {
            out.extend(entries.cloned());
        } else {
            let (mut weight, mut last) = (0, None);
            for entry in entries {
                if history && last.is_some_and(|last| entry.event.seq != last + 1) {
                    break;
                }
                last = Some(entry.event.seq);
                out.push(entry.clone());
                weight += entry.event.size();
                if weight >= max_bytes {
                    break;
                }
            }
        }
        (inner.position(), base)
    }

    /// Whether what comes after `seq` is all there: in the log, or in a store that can be asked for it.
    pub(crate) fn reaches(&self, seq: u64) -> bool {
        let inner = self.inner.lock();
        seq >= inner.log.trimmed || inner.stored.as_ref().is_some_and(|stored| seq >= stored.gone)
    }

    /// Where the log stands.
    pub fn position(&self) -> Page {
        self.inner.lock().position()
    }

    /// Has `waker` called when the log changes, unless it already holds something after `seq` or is closed: then false,
    /// and the caller looks again. Looking and registering under one lock is what makes a lost wake-up impossible.
    pub fn park(&self, seq: u64, waker: &Waker, ticket: &mut Ticket) -> bool {
        let mut inner = self.inner.lock();
        if inner.seen_head() > seq || inner.is_over() {
            return false;
        }
        let replaced = inner.waiters.wait(ticket, waker);
        drop(inner);
        drop(replaced);
        true
    }

    /// Takes [`Self::park`] back: nothing of the waiter's stays here.
    pub fn unpark(&self, ticket: &mut Ticket) {
        if ticket.is_taken() {
            let left = self.inner.lock().waiters.leave(ticket);
            drop(left);
        }
    }

    /// Whether the producer may go on: no pacing reader lags by its window.
    pub fn may_produce(&self) -> bool {
        self.inner.lock().may_produce()
    }

    /// Has `waker` called when the producer may go on, unless it may: then false.
    pub fn wait_to_produce(&self, waker: &Waker, ticket: &mut Ticket) -> bool {
        let mut inner = self.inner.lock();
        if inner.may_produce() {
            return false;
        }
        let replaced = inner.pace_waiters.wait(ticket, waker);
        drop(inner);
        drop(replaced);
        true
    }

    /// Takes [`Self::wait_to_produce`] back.
    pub fn leave_producing(&self, ticket: &mut Ticket) {
        if ticket.is_taken() {
            let left = self.inner.lock().pace_waiters.leave(ticket);
            drop(left);
        }
    }

    /// Readers and producers that are registered to be called.
    pub fn waiting(&self) -> (usize, usize) {
        let inner = self.inner.lock();
        (inner.waiters.len(), inner.pace_waiters.len())
    }

    /// Counts a call of a subscriber that raised: the running turn's completion says how many there were.
    pub fn count_failure(&self) {
        self.inner.lock().statistics.subscriber_failures += 1;
    }

    pub(crate) fn join_pace(&self, pace: Arc<Pace>) {
        self.inner.lock().paces.push(pace);
    }

    pub(crate) fn leave_pace(&self, pace: &Arc<Pace>) {
        let mut inner = self.inner.lock();
        inner.paces.retain(|known| !Arc::ptr_eq(known, pace));
        let waiters = inner.pace_waiters.take();
        drop(inner);
        waiters.for_each(Waker::wake);
    }

    /// A pacing reader has come as far as `seq`: producers that waited may look again.
    pub(crate) fn advance(&self, pace: &Pace, seq: u64) {
        // Under the lock, so that a producer cannot check before this and register after it.
        let mut inner = self.inner.lock();
        pace.seq.store(seq, Ordering::Release);
        let waiters = inner.pace_waiters.take();
        drop(inner);
        waiters.for_each(Waker::wake);
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

    /// The state where the log begins: what a reader needs whose history has been trimmed.
    pub fn base_snapshot(&self) -> (u64, Json) {
        let inner = self.inner.lock();
        (inner.log.trimmed, inner.log.base.snapshot_json())
    }

    /// The state after `seq`, or where the log begins if that is later: linear in the events from there to `seq`.
    pub fn snapshot_at(&self, seq: u64) -> (u64, Json) {
        let inner = self.inner.lock();
        let at = seq.clamp(inner.log.trimmed, inner.log.head);
        if at == inner.log.head {
            return (at, inner.state.snapshot_json());
        }
        let mut state = inner.log.base.clone();
        inner.log.entries.iter().take_while(|entry| entry.event.seq <= at).for_each(|entry| state.apply(&entry.event));
        (at, state.snapshot_json())
    }

    /// The seq before the turn that `seq` is inside of; `seq` itself where it is inside of none; none where the turn's beginning
    /// has left the log, unless it is the newest turn's and a store has it. Linear in the events back to there.
    pub(crate) fn turn_before(&self, seq: u64) -> Option<u64> {
        let inner = self.inner.lock();
        let state = inner.public();
        let newest = seq + 1 >= state.turn_start && (state.running || state.outcome.as_ref().is_some_and(|last| seq < last.seq));
        if newest && inner.stored.is_some() {
            return Some(state.turn_start.saturating_sub(1));
        }
        let until = inner.log.after(seq);
        for entry in inner.log.entries.range(..until).rev() {
            match entry.event.payload {
                Payload::TurnStart(_) => return Some(entry.event.seq - 1),
                Payload::Completion(_) => return Some(seq),
                _ => {}
            }
        }
        (inner.log.trimmed == 0).then_some(seq)
    }

    /// The state at the log's head.
    pub fn head_snapshot(&self) -> (u64, Json) {
        let inner = self.inner.lock();
        (inner.seen_head(), inner.public().snapshot_json())
    }

    /// What was said so far, the seq up to which, and what is not there any more: a reader from there sees exactly the rest.
    pub fn messages_snapshot(&self) -> (u64, Json, Option<Json>) {
        let inner = self.inner.lock();
        let state = inner.public();
        (inner.seen_head(), state.messages_json(), state.dropped_json())
    }

    /// The seq of the oldest event that a reader can have, from the log or the store.
    pub fn earliest(&self) -> Option<u64> {
        self.inner.lock().earliest()
    }

    /// Exact counts.
    pub fn statistics(&self) -> Statistics {
        let inner = self.inner.lock();
        Statistics {
            appended: inner.log.head,
            evicted: inner.log.evicted,
            retained: inner.log.entries.len() as u64,
            bytes: inner.log.bytes() as u64,
            readers: self.readers() as u64,
            redaction_failures: self.redaction_failures.load(Ordering::Relaxed),
            ..inner.statistics
        }
    }

    /// Puts `value` on the status page under `name`, in place of what stood there: what is known of a run beside its events.
    pub fn note(&self, name: &str, value: Json) {
        let notes = &mut self.inner.lock().notes;
        match notes.iter_mut().find(|(known, _)| **known == *name) {
            Some((_, old)) => *old = value,
            None => notes.push((name.into(), value)),
        }
    }

    /// The number of the running turn.
    pub fn running(&self) -> Option<u32> {
        self.look(|state| state.running.then_some(state.turn))
    }

    /// Looks at the folded state as readers see it: without what a store has not taken yet.
    pub fn see<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(self.inner.lock().public())
    }

    /// The last turn's completion; none while a turn runs or before the first has ended.
    pub fn result(&self) -> Option<Json> {
        self.see(|state| if state.running { None } else { state.outcome.as_ref().map(|outcome| outcome.completion.clone()) })
    }

    /// The session's state in one word.
    pub fn state_word(&self) -> &'static str {
        self.see(State::word)
    }

    /// The status page, as JSON.
    pub fn status_json(&self) -> Json {
        use state::{key, object};
        let readers = self.readers();
        let inner = self.inner.lock();
        let (state, head) = (inner.public(), inner.seen_head());
        let mut out = Vec::new();
        let text = |out: &mut Vec<u8>, name, value: &str| {
            key(out, name);
            crate::event::json::write_str(out, value);
        };
        let number = |out: &mut Vec<u8>, name, value: Option<u64>| {
            key(out, name);
            crate::event::Field::write(&value, out);
        };
        let json = |out: &mut Vec<u8>, name, value: Option<Json>| {
            key(out, name);
            crate::event::Field::write(&value, out);
        };
        text(&mut out, "session_id", &self.id);
        text(&mut out, "state", state.word());
        number(&mut out, "turn", Some(state.turn.into()));
        text(&mut out, "epoch", &self.epoch);
        number(&mut out, "head", Some(head));
        number(&mut out, "earliest", inner.earliest());
        text(&mut out, "cursor", &format!("{}.{}", self.epoch, head));
        let earliest = inner.earliest().map(|earliest| format!("{}.{}", self.epoch, inner.log.trimmed.min(earliest - 1)));
        json(&mut out, "earliest_cursor", earliest.map(|cursor| Json::string(&cursor)));
        json(&mut out, "progress", Some(state.progress_json(now_ms())));
        if state.running {
            key(&mut out, "progress_age_s");
            #[allow(clippy::cast_precision_loss, reason = "below 2^53")]
            crate::event::json::write_f64(&mut out, now_ms().saturating_sub(inner.progressed) as f64 / 1000.0);
            key(&mut out, "stalled");
            crate::event::Field::write(&inner.stalled, &mut out);
        }
        json(&mut out, "usage", state.usage_json());
        let failed = state.outcome.as_ref().filter(|_| !state.running);
        let error = failed.and_then(|outcome| {
            outcome.completion.to_value().get("error").filter(|error| !error.is_null()).map(Json::from_value)
        });
        json(&mut out, "error", error.or_else(|| state.error.as_ref().map(|(_, error)| error.clone())));
        number(&mut out, "readers", Some(readers as u64));
        number(&mut out, "subscriber_failures", Some(inner.statistics.subscriber_failures));
        number(&mut out, "started", state.started);
        number(&mut out, "updated", state.updated);
        for (name, value) in &inner.notes {
            json(&mut out, name, Some(value.clone()));
        }
        object(out)
    }
}

impl State {
    /// idle, running, completed, failed, cancelled, incomplete or ended.
    pub fn word(&self) -> &'static str {
        match &self.outcome {
            _ if self.running => "running",
            _ if self.ended => "ended",
            Some(outcome) => outcome.status.as_str(),
            None => "idle",
        }
    }
}

impl Inner {
    fn position(&self) -> Page {
        let state = self.public();
        Page {
            head: self.seen_head(),
            trimmed: self.log.trimmed,
            closed: self.is_over(),
            turn: state.turn,
            running: state.running,
            last_end: state.outcome.as_ref().map_or(0, |outcome| outcome.seq),
            last_turn: state.outcome.as_ref().map_or(0, |outcome| outcome.turn),
        }
    }

    /// Tells the hub what the log holds. Whether room should be made.
    fn tell_hub(&mut self) -> bool {
        let (events, bytes, running) = (self.log.entries.len(), self.log.bytes(), self.state.running);
        self.membership.as_mut().is_some_and(|membership| membership.tell(events, bytes, running))
    }

    fn earliest(&self) -> Option<u64> {
        let front = self.log.entries.front()?.event.seq;
        Some(self.stored.as_ref().map_or(front, |stored| front.min(stored.gone + 1)))
    }

    /// The newest seq that readers see.
    fn seen_head(&self) -> u64 {
        self.log.head.min(self.log.seen)
    }

    /// Whether nothing comes that readers have not seen.
    fn is_over(&self) -> bool {
        self.closed && self.log.head <= self.log.seen
    }

    fn may_produce(&self) -> bool {
        // Acquire pairs with the reader's release in `advance`.
        let lag = |pace: &Arc<Pace>| self.log.head.saturating_sub(pace.seq.load(Ordering::Acquire));
        self.closed || self.paces.iter().all(|pace| lag(pace) < pace.window)
    }

    /// Makes the log fit its limits again.
    fn settle(&mut self) {
        let state = &self.state;
        self.log.evict(&self.limits, self.now, |event| state.covers(event));
    }

    fn status_of(&self) -> Status {
        if self.state.error.is_some() {
            Status::Failed
        } else if self.state.truncated.is_some() {
            Status::Incomplete
        } else if self.state.interrupted.is_some() {
            Status::Cancelled
        } else {
            Status::Completed
        }
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("id", &self.id).field("position", &self.position()).finish_non_exhaustive()
    }
}
