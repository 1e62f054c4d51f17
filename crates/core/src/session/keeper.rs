//! The threads of a hub whose sessions live in a store: one writes, one keeps, a few ask.
//!
//! The writing thread appends what all sessions logged, many sessions a commit: at once after silence, then at most every
//! [`GATHER`], earlier where [`BATCH_EVENTS`] or [`BATCH_BYTES`] wait. The keeping thread renews leases, follows sessions
//! that others write, and has the store expire what is old, in small steps. The asking threads call the store for whoever
//! waits for its answer.
//!
//! Invariants: 1. what waits for the store is bounded by [`BACKLOG_EVENTS`] and [`BACKLOG_BYTES`] a hub: beyond, an emit waits,
//! at most [`PATIENCE`], and is refused; 2. an append whose answer was lost is repeated until the store answers; 3. the
//! threads end when hub and sessions are gone, and nothing waits unwritten; 4. no session's lock is held during a store's call;
//! 5. no caller's thread calls the store: it waits for one that does, at most [`PATIENCE`] beyond the store's last answer.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::history::Desk;
use super::stored::Batch;
use super::{Session, SessionError, hub};
use crate::store::{Append, Durability, LogStore, Retention, StoreError};

/// Commits are so far apart, unless a batch is full or somebody waits.
pub const GATHER: Duration = Duration::from_millis(5);
/// A commit does not wait for more events than this.
pub const BATCH_EVENTS: usize = 256;
/// Nor for more bytes than this, about.
pub const BATCH_BYTES: usize = 256 << 10;
/// Events that may wait for the store.
pub const BACKLOG_EVENTS: usize = 65_536;
/// Bytes that may wait for the store, about.
pub const BACKLOG_BYTES: usize = 32 << 20;
/// The longest that an emit, or the end of a turn, waits for the store.
pub const PATIENCE: Duration = Duration::from_millis(500);
/// How often sessions of others are looked at where no hint comes; a fifth of it is jitter.
const LOOK: Duration = Duration::from_millis(250);
/// A commit that failed for a while is tried again this often at least.
const RETRY: Duration = Duration::from_millis(500);
/// Threads that may wait for the store's answers at one time; what is asked beyond that waits for one of them.
const ASKERS: usize = 8;
/// An asking thread without work ends after so long.
const IDLE: Duration = Duration::from_secs(2);

/// How a hub uses its store.
#[derive(Debug, Clone, Copy)]
pub struct StoreOptions {
    /// When an event counts as stored, and readers see it.
    pub durability: Durability,
    /// How long a process may be silent before another one ends its turns.
    pub lease: Duration,
    /// What the store lets go of.
    pub retention: Retention,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            durability: Durability::Process,
            lease: Duration::from_secs(10),
            retention: Retention { max_age_ms: 30 * 24 * 3_600_000, max_bytes: None },
        }
    }
}

/// Until when a call that begins now waits for the store.
pub(super) fn patience() -> Instant {
    Instant::now() + PATIENCE
}

/// The store has not answered by then.
pub(super) fn too_late() -> SessionError {
    SessionError::Store(StoreError::Unavailable(format!("no answer within {} ms", PATIENCE.as_millis())))
}

/// What hub, sessions and the threads share.
pub(crate) struct Shared {
    pub(super) store: Arc<dyn LogStore>,
    pub(super) options: StoreOptions,
    pub(super) owner: String,
    queue: Mutex<Vec<Arc<Session>>>,
    queued: Condvar,
    events: AtomicUsize,
    bytes: AtomicUsize,
    /// Somebody waits for a commit: it does not gather.
    urgent: AtomicBool,
    answered: Mutex<()>,
    answers: Condvar,
    hinted: Mutex<Hinted>,
    hints: Condvar,
    /// The store is full: what it may let go of is to go now.
    full: AtomicBool,
    /// What this process follows or writes: hints of other sessions wake nobody.
    known: Mutex<HashMap<Arc<str>, Weak<Session>>>,
    pub(super) desk: Mutex<Desk>,
    stopped: AtomicBool,
    askers: Arc<Askers>,
}

#[derive(Default)]
struct Hinted {
    sessions: HashSet<Box<str>>,
    all: bool,
}

/// The asking threads, made when they are needed.
#[derive(Default)]
struct Askers {
    jobs: Mutex<Jobs>,
    wanted: Condvar,
}

#[derive(Default)]
struct Jobs {
    waiting: VecDeque<Box<dyn FnOnce() + Send>>,
    threads: usize,
    idle: usize,
}

impl Askers {
    fn run(&self) {
        let mut jobs = self.jobs.lock();
        loop {
            if let Some(job) = jobs.waiting.pop_front() {
                MutexGuard::unlocked(&mut jobs, job);
                continue;
            }
            jobs.idle += 1;
            let over = self.wanted.wait_for(&mut jobs, IDLE).timed_out();
            jobs.idle -= 1;
            if over && jobs.waiting.is_empty() {
                jobs.threads -= 1;
                return;
            }
        }
    }
}

/// A question to the store that is under way; whoever wants to know the same waits for the same answer.
pub(super) struct Asked<T> {
    known: Mutex<Known<T>>,
    changed: Condvar,
}

struct Known<T> {
    answer: Option<T>,
    /// When the store last answered a part of it.
    moved: Option<Instant>,
}

/// Where a question is found while it is under way.
pub(super) type Slot<T> = Arc<Mutex<Option<Arc<Asked<T>>>>>;

impl<T> Asked<T> {
    fn new() -> Arc<Self> {
        Arc::new(Self { known: Mutex::new(Known { answer: None, moved: None }), changed: Condvar::new() })
    }

    /// A part of the answer is there: the next may take as long again.
    pub(super) fn moves(&self) {
        self.known.lock().moved = Some(Instant::now());
    }

    /// The answer, for the only one who waits for it.
    pub(super) fn take(&self, deadline: Instant) -> Option<T> {
        self.wait(deadline, Option::take)
    }

    /// The answer, once it is there; `take` copies it, or takes it out.
    fn wait<A>(&self, deadline: Instant, take: impl Fn(&mut Option<T>) -> Option<A>) -> Option<A> {
        let mut known = self.known.lock();
        loop {
            if known.answer.is_some() {
                return take(&mut known.answer);
            }
            let until = known.moved.map_or(deadline, |moved| deadline.max(moved + PATIENCE));
            if self.changed.wait_until(&mut known, until).timed_out() && known.moved.is_none_or(|moved| moved + PATIENCE <= until)
            {
                return take(&mut known.answer);
            }
        }
    }
}

/// A hub's hold on its store; the threads end with it.
pub(crate) struct Keeper(Arc<Shared>);

impl std::ops::Deref for Keeper {
    type Target = Shared;
    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // Not joined: this may run on one of the two.
        self.stopped.store(true, Ordering::Release);
        // Under each lock: who has looked before this waits by now, and is called.
        drop((self.queue.lock(), self.hinted.lock()));
        self.queued.notify_all();
        self.hints.notify_all();
    }
}

impl Keeper {
    pub(super) fn start(store: Arc<dyn LogStore>, options: StoreOptions) -> Result<Arc<Self>, StoreError> {
        let shared = Arc::new(Shared {
            store,
            options,
            owner: hub::random_word(16),
            queue: Mutex::default(),
            queued: Condvar::new(),
            events: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            urgent: AtomicBool::new(false),
            answered: Mutex::default(),
            answers: Condvar::new(),
            hinted: Mutex::default(),
            hints: Condvar::new(),
            full: AtomicBool::new(false),
            known: Mutex::default(),
            desk: Mutex::default(),
            stopped: AtomicBool::new(false),
            askers: Arc::default(),
        });
        let listener = Arc::downgrade(&shared);
        shared.store.listen(Arc::new(move |session| {
            if let Some(shared) = listener.upgrade() {
                shared.hint(session);
            }
        }));
        for (name, run) in [("turnstream-write", Shared::write as fn(&Shared)), ("turnstream-keep", Shared::keep)] {
            let shared = shared.clone();
            let spawned = std::thread::Builder::new().name(name.into()).spawn(move || run(&shared));
            spawned.map_err(|error| StoreError::Unusable(format!("no thread: {error}")))?;
        }
        Ok(Arc::new(Self(shared)))
    }

    /// A session that is to be followed and renewed.
    pub(super) fn know(&self, session: &Arc<Session>) {
        self.known.lock().insert(session.id().clone(), Arc::downgrade(session));
    }
}

impl Shared {
    /// Calls `job`, which calls the store, on a thread that has time for it.
    pub(super) fn later(&self, job: impl FnOnce() + Send + 'static) {
        let mut jobs = self.askers.jobs.lock();
        jobs.waiting.push_back(Box::new(job));
        if jobs.idle < jobs.waiting.len() && jobs.threads < ASKERS {
            let askers = self.askers.clone();
            let spawned = std::thread::Builder::new().name("turnstream-ask".into()).spawn(move || askers.run());
            jobs.threads += usize::from(spawned.is_ok()); // otherwise the others get to it
        }
        drop(jobs);
        self.askers.wanted.notify_one();
    }

    /// Asks what `slot` is for, unless somebody has and waits; the answer, if it is there by `deadline`.
    pub(super) fn share<T: Clone + Send + 'static>(
        &self,
        slot: &Slot<T>,
        deadline: Instant,
        ask: impl FnOnce(&Asked<T>) -> T + Send + 'static,
    ) -> Option<T> {
        let asked = slot.lock().get_or_insert_with(|| self.begin(Some(slot.clone()), ask)).clone();
        asked.wait(deadline, |answer| answer.clone())
    }

    /// Asks; the answer, if it is there by `deadline`.
    pub(super) fn ask<T: Send + 'static>(&self, deadline: Instant, ask: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        self.begin(None, |_| ask()).take(deadline)
    }

    /// Begins to ask.
    pub(super) fn begin<T: Send + 'static>(
        &self,
        slot: Option<Slot<T>>,
        ask: impl FnOnce(&Asked<T>) -> T + Send + 'static,
    ) -> Arc<Asked<T>> {
        let asked = Asked::new();
        let asking = asked.clone();
        self.later(move || {
            let answer = ask(&asking);
            if let Some(slot) = slot {
                slot.lock().take(); // first: whoever asks from now on wants a newer answer
            }
            asking.known.lock().answer = Some(answer);
            asking.changed.notify_all();
        });
        asked
    }

    /// Something that was waited for may have come.
    pub(super) fn tell_waiting(&self) {
        drop(self.answered.lock()); // whoever looked before waits by now
        self.answers.notify_all();
    }

    /// Has `session`'s pending events written.
    pub(super) fn queue(&self, session: Arc<Session>) {
        self.queue.lock().push(session);
        self.queued.notify_one();
    }

    /// Counts events that began to wait; wakes the writer where they fill a batch.
    pub(super) fn count(&self, events: usize, bytes: usize) {
        // Relaxed: a bound, not an order.
        let waiting = self.events.fetch_add(events, Ordering::Relaxed) + events;
        let weight = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if waiting >= BATCH_EVENTS || weight >= BATCH_BYTES {
            self.queued.notify_one();
        }
    }

    /// Counts events that wait no more, and tells those who waited for it.
    pub(super) fn uncount(&self, events: usize, bytes: usize) {
        self.events.fetch_sub(events, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn full(&self) -> bool {
        self.events.load(Ordering::Relaxed) >= BACKLOG_EVENTS || self.bytes.load(Ordering::Relaxed) >= BACKLOG_BYTES
    }

    /// Waits, at most [`PATIENCE`], until the store has caught up enough to take more.
    pub(super) fn make_room(&self, deadline: Option<Instant>) -> Result<(), SessionError> {
        if !self.full() || self.wait(deadline.unwrap_or_else(patience), || !self.full()) {
            return Ok(());
        }
        let waiting = self.events.load(Ordering::Relaxed);
        Err(SessionError::Store(StoreError::Unavailable(format!("{waiting} events wait for it already"))))
    }

    /// Waits until `done` says so, looking after each commit; false once `deadline` is over.
    pub(super) fn wait(&self, deadline: Instant, done: impl Fn() -> bool) -> bool {
        let mut answered = self.answered.lock();
        loop {
            if done() {
                return true;
            }
            self.urgent.store(true, Ordering::Release);
            self.queued.notify_one();
            if self.answers.wait_until(&mut answered, deadline).timed_out() {
                return done();
            }
        }
    }

    fn gathering(&self) -> bool {
        !self.stopped.load(Ordering::Acquire)
            && !self.urgent.load(Ordering::Acquire)
            && self.events.load(Ordering::Relaxed) < BATCH_EVENTS
            && self.bytes.load(Ordering::Relaxed) < BATCH_BYTES
    }

    /// The writing thread.
    fn write(&self) {
        let mut committed = Instant::now();
        let mut failures = 0_u32;
        loop {
            let mut queue = self.queue.lock();
            while queue.is_empty() {
                if self.stopped.load(Ordering::Acquire) {
                    return;
                }
                self.queued.wait(&mut queue);
            }
            let gap = if failures == 0 { GATHER } else { RETRY.min(GATHER * 2_u32.pow(failures.min(8))) };
            let due = committed + gap;
            while (failures > 0 || self.gathering()) && !self.queued.wait_until(&mut queue, due).timed_out() {}
            // Before the queue is taken: whoever says so later is not in it.
            self.urgent.store(false, Ordering::Release);
            let sessions = std::mem::take(&mut *queue);
            drop(queue);
            let unsure = self.commit(sessions);
            committed = Instant::now();
            failures = if unsure { failures.saturating_add(1) } else { 0 };
            self.tell_waiting();
        }
    }

    /// Appends what waits in `sessions`; whether the store could not be reached.
    fn commit(&self, sessions: Vec<Arc<Session>>) -> bool {
        let batches: Vec<(Arc<Session>, Batch)> =
            sessions.into_iter().filter_map(|session| session.next_batch().map(|batch| (session, batch))).collect();
        let appends: Vec<Append<'_>> = batches.iter().map(|(session, batch)| batch.append(session.id())).collect();
        let answers = if appends.is_empty() { Vec::new() } else { self.store.append(&appends) };
        let mut unsure = false;
        for ((session, batch), answer) in batches.iter().zip(answers) {
            unsure |= matches!(&answer, Err(error) if error.is_transient());
            if matches!(answer, Err(StoreError::Full(_))) {
                self.full.store(true, Ordering::Relaxed);
                self.hints.notify_one(); // who is not waiting looks within LOOK
            }
            session.answered(self, batch, answer);
        }
        unsure
    }

    /// Something may have changed.
    fn hint(&self, session: Option<&str>) {
        if session.is_some_and(|session| !self.known.lock().contains_key(session)) {
            return;
        }
        let mut hinted = self.hinted.lock();
        match session {
            Some(session) if hinted.sessions.len() < 1024 => {
                if !hinted.sessions.contains(session) {
                    hinted.sessions.insert(session.into());
                }
            }
            _ => hinted.all = true,
        }
        drop(hinted);
        self.hints.notify_one();
    }

    /// The sessions to look at: all, or those that were hinted.
    fn due(&self, all: bool, hinted: &HashSet<Box<str>>) -> Vec<Arc<Session>> {
        let mut known = self.known.lock();
        if all {
            known.retain(|_, session| session.strong_count() > 0);
            return known.values().filter_map(Weak::upgrade).collect();
        }
        hinted.iter().filter_map(|id| known.get(&**id)?.upgrade()).collect()
    }

    /// The keeping thread.
    fn keep(&self) {
        let mut looked = Instant::now();
        let mut expire = Instant::now();
        // A lease is renewed a few times within its length, also where the machine is busy.
        let look = LOOK.min(self.options.lease / 5);
        let jitter = look / 5 * u32::from(self.owner.as_bytes()[0] % 8) / 8; // so that processes do not look in step
        while !self.stopped.load(Ordering::Acquire) {
            let mut hinted = self.hinted.lock();
            if hinted.sessions.is_empty() && !hinted.all {
                self.hints.wait_until(&mut hinted, looked + look + jitter);
            }
            let Hinted { sessions, all } = std::mem::take(&mut *hinted);
            drop(hinted);
            let timer = all || looked.elapsed() >= look;
            if timer {
                looked = Instant::now();
            }
            let mut due = self.due(timer, &sessions);
            // Where the store is slow, no lease runs out for what others write.
            due.sort_by_cached_key(|session| !session.writes());
            for session in due {
                session.tend(self, timer, all);
            }
            let full = self.full.swap(false, Ordering::Relaxed);
            if (full || expire <= Instant::now()) && !self.stopped.load(Ordering::Acquire) {
                // In steps, so that nobody waits long for the writer's turn; then not for a minute.
                // Of a full store nobody has that turn.
                let steps = if full { 16 } else { 1 };
                let more = (0..steps).all(|_| self.store.expire(&self.options.retention, 64).is_ok_and(|gone| gone > 0));
                expire = Instant::now() + if more { look } else { Duration::from_secs(60) };
            }
        }
    }
}
