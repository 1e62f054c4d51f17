//! A session whose log lives in a store: the writer's side, the follower's side, and the change between the two.
//!
//! A session writes while it holds a claim: its log runs ahead of the store, and readers see it up to what the store has
//! acknowledged ([`super::log::Log::seen`]). Otherwise it follows: its log is what the store has. A claim is taken by whoever
//! starts a turn or emits, and given back when nothing runs and everything is stored.
//!
//! Invariants: 1. above [`Durability::Memory`], nobody sees an event that the store has not taken; 2. what the store refuses for
//! good leaves the log again, its seqs are given anew, and the turn's next emit is refused with the reason; 3. a turn whose
//! writer is gone is ended as failed, `producer_lost`, by whoever claims after it, in the claim: once; 4. events are decoded and
//! encoded, and the store is called, without the session's lock.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::keeper::{BATCH_BYTES, BATCH_EVENTS, Keeper, PATIENCE, Shared};
use super::stall::STALLED;
use super::{Entry, Inner, Session, SessionError, State, hub, now_ms};
use crate::event::{Class, Context, Event, Payload};
use crate::store::{Append, Durability, Standing, StoreError, Tail};

/// Events are read from the store in pages of about this size.
const PAGE_BYTES: usize = 4 << 20;

/// What a session in a store keeps outside its lock.
pub(super) struct Link {
    pub(super) keeper: Arc<Keeper>,
    /// Taken for claims and for following, which read the store: never while the session's lock is held.
    role: Mutex<()>,
    /// The object stands for a history that is gone: its hub makes another.
    pub(super) broken: AtomicBool,
    /// When the lease was last renewed, in Unix milliseconds, and whether somebody may have asked for a cancel since.
    renewed: AtomicU64,
    asked: AtomicBool,
}

/// What it keeps under its lock.
pub(super) struct Stored {
    /// The session, for the writer's queue.
    session: std::sync::Weak<Session>,
    keeper: std::sync::Weak<Keeper>,
    /// The claim's; none while following.
    fence: Option<u64>,
    /// Calls that need the claim a little longer.
    holds: usize,
    /// Logged, and not acknowledged.
    pending: VecDeque<Arc<Entry>>,
    /// Whether the writer's queue has the session.
    queued: bool,
    /// The newest seq that the store has.
    taken: u64,
    /// The state that readers may see, while the log runs ahead of it.
    seen: Option<State>,
    /// Why a turn's events are refused: the newest turn that this happened to.
    refusal: Option<(u32, StoreError)>,
}

/// A block on its way.
pub(super) struct Batch {
    fence: u64,
    first: u64,
    last: u64,
    ended: Option<u64>,
    data: Vec<u8>,
}

impl Batch {
    pub(super) fn append<'a>(&'a self, session: &'a str) -> Append<'a> {
        Append { session, fence: self.fence, first: self.first, last: self.last, ended: self.ended, data: &self.data }
    }
}

/// Keeps a claim from being given back between a check and the change that relies on it.
pub(super) struct Hold<'a>(Option<&'a Session>);

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        let Some(session) = self.0 else { return };
        let mut inner = session.inner.lock();
        if let Some(stored) = &mut inner.stored {
            stored.holds -= 1;
        }
        let fence = inner.give_back();
        drop(inner);
        session.release(fence);
    }
}

/// Bytes that an entry counts for while it waits.
fn weight(entry: &Entry) -> usize {
    entry.event.size()
}

impl Inner {
    /// The state that readers may see.
    pub(super) fn public(&self) -> &State {
        self.stored.as_ref().and_then(|stored| stored.seen.as_ref()).unwrap_or(&self.state)
    }

    /// Whether this process may write.
    pub(super) fn writes(&self) -> bool {
        self.stored.as_ref().is_none_or(|stored| stored.fence.is_some())
    }

    /// Puts what was logged after `before` before the store's writer.
    #[inline]
    pub(super) fn hand_over(&mut self, before: u64) {
        if self.stored.is_some() && self.log.head != before {
            self.hand_over_stored(before);
        }
    }

    fn hand_over_stored(&mut self, before: u64) {
        let Some(stored) = self.stored.as_mut().filter(|stored| stored.fence.is_some()) else { return };
        let start = self.log.after(before);
        let waiting = stored.pending.len();
        stored.pending.extend(self.log.entries.range(start..).cloned());
        let Some(keeper) = stored.keeper.upgrade() else { return };
        let events = stored.pending.len() - waiting;
        keeper.count(events, stored.pending.range(waiting..).map(|entry| weight(entry)).sum());
        if !std::mem::replace(&mut stored.queued, true)
            && let Some(session) = stored.session.upgrade()
        {
            keeper.queue(session);
        }
    }

    /// Ends the claim where nothing needs it; the fence to release.
    fn give_back(&mut self) -> Option<u64> {
        let idle = !self.state.running;
        let stored = self.stored.as_mut()?;
        if !idle || stored.holds > 0 || !stored.pending.is_empty() {
            return None;
        }
        stored.seen = None;
        self.log.seen = u64::MAX;
        stored.fence.take()
    }

    /// Takes an event that the store has.
    fn receive(&mut self, event: Event) {
        if let (Payload::TurnStart(start), turn) = (&event.payload, event.context.turn)
            && let Some(id) = &start.client_id
        {
            self.remember(id, start.input.as_ref(), turn, event.seq - 1);
        }
        self.context = event.context.clone();
        self.closed |= matches!(event.payload, Payload::SessionEnd(_));
        self.state.apply(&event);
        // As where it was written: a stall's warning is no progress.
        self.stalled = matches!(&event.payload, Payload::Warning(warning) if warning.code == STALLED);
        if !self.stalled {
            self.progressed = event.time;
        }
        self.log.append(Entry::new(event));
    }

    /// Forgets what the store has not taken, and follows from there.
    fn roll_back(&mut self, keeper: &Shared) -> Option<u64> {
        let stored = self.stored.as_mut()?;
        let weight = stored.pending.iter().map(|entry| weight(entry)).sum();
        keeper.uncount(stored.pending.len(), weight);
        stored.pending.clear();
        if let Some(seen) = stored.seen.take() {
            self.state = seen;
            self.log.truncate(stored.taken);
            let head = self.log.head;
            self.requests.retain(|request| request.before < head);
            self.closed = self.state.ended;
        }
        self.log.seen = u64::MAX;
        stored.fence.take()
    }
}

impl Session {
    /// Opens the session `id` of a store; with `create`, begins it where there is none.
    pub(super) fn open_stored(
        id: &str,
        hub: &Arc<hub::Shared>,
        keeper: &Arc<Keeper>,
        create: bool,
    ) -> Result<Arc<Self>, SessionError> {
        let standing = match keeper.store.standing(id) {
            Err(StoreError::Unknown) if create => {
                match keeper.store.claim(id, &keeper.owner, &hub::random_word(8), keeper.options.lease) {
                    Ok(claim) => {
                        let _ = keeper.store.release(id, claim.fence);
                        Ok(claim.standing)
                    }
                    Err(StoreError::Held { .. }) => keeper.store.standing(id), // somebody was first
                    Err(error) => Err(error),
                }
            }
            standing => standing,
        };
        let standing = standing.map_err(|error| match error {
            StoreError::Unknown => SessionError::Unknown,
            error => SessionError::Store(error),
        })?;
        let session = Self::make(id, hub, &standing.epoch, |weak| {
            let stored = Stored {
                session: weak.clone(),
                keeper: Arc::downgrade(keeper),
                fence: None,
                holds: 0,
                pending: VecDeque::new(),
                queued: false,
                taken: 0,
                seen: None,
                refusal: None,
            };
            let link = Link {
                keeper: keeper.clone(),
                role: Mutex::new(()),
                broken: AtomicBool::new(false),
                renewed: AtomicU64::new(0),
                asked: AtomicBool::new(false),
            };
            (link, stored)
        });
        session.load(keeper, &standing).map_err(SessionError::Store)?;
        keeper.know(&session);
        Ok(session)
    }

    /// Reads the history: what the limits would not keep straight into the base's fold, and of turns that have ended not even
    /// their deltas, which their final events cover; the rest into the log.
    fn load(&self, keeper: &Shared, standing: &Standing) -> Result<(), StoreError> {
        let mut inner = self.inner.lock(); // nobody else knows the session yet
        let (head, ended) = (standing.head, standing.ended);
        let keep_from = head.saturating_sub(inner.limits.max_events as u64);
        let mut after = 0;
        let mut context = inner.context.clone();
        loop {
            let tail = keeper.store.read(self.id(), after, PAGE_BYTES)?;
            for line in lines(&tail) {
                let seq = after + 1;
                after = seq;
                if seq <= keep_from {
                    if seq > ended || !is_covered_delta(line) {
                        let event = decode(line, &mut context)?;
                        if let (Payload::TurnStart(start), turn) = (&event.payload, event.context.turn)
                            && let Some(id) = &start.client_id
                        {
                            inner.remember(id, start.input.as_ref(), turn, seq - 1);
                        }
                        inner.log.base.apply(&event);
                    }
                    if seq == keep_from {
                        (inner.log.head, inner.log.trimmed) = (seq, seq);
                        inner.log.evicted = seq;
                        inner.state = inner.log.base.clone();
                    }
                    continue;
                }
                let event = decode(line, &mut context)?;
                if event.seq != inner.log.head + 1 {
                    return Err(StoreError::Corrupt(format!("event {} follows event {}", event.seq, inner.log.head)));
                }
                inner.receive(event);
                if seq.is_multiple_of(1024) {
                    inner.now = now_ms();
                    inner.settle();
                }
            }
            if tail.blocks.is_empty() || tail.last >= tail.standing.head {
                break;
            }
        }
        inner.now = now_ms();
        inner.settle();
        inner.closed |= inner.state.ended;
        let head = inner.log.head;
        inner.minted = head; // every minted id has cost an event: none comes twice
        if let Some(stored) = &mut inner.stored {
            stored.taken = head;
        }
        inner.tell_hub();
        Ok(())
    }

    /// Reads what others wrote since; ends what they left open. The keeping thread's, and every lookup's.
    pub(super) fn follow(&self) -> Result<(), SessionError> {
        let Some(link) = &self.link else { return Ok(()) };
        if self.inner.lock().stored.as_ref().is_some_and(|stored| stored.fence.is_some() || stored.queued) {
            return Ok(());
        }
        let role = link.role.lock();
        let caught = self.catch_up(&link.keeper);
        drop(role);
        match caught {
            Ok(leased) if !leased && self.look(|state| state.running) => {
                drop(self.hold(None)?);
                self.flush(); // whoever looked it up finds the turn ended
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(StoreError::Unknown) => {
                self.break_off();
                Err(SessionError::Unknown)
            }
            Err(error) => Err(SessionError::Store(error)),
        }
    }

    /// Reads up to the store's head; whether somebody's lease runs. The role is locked.
    fn catch_up(&self, keeper: &Shared) -> Result<bool, StoreError> {
        loop {
            let at = self.inner.lock().log.head;
            let tail = keeper.store.read(self.id(), at, PAGE_BYTES)?;
            if tail.standing.epoch != **self.epoch() {
                return Err(StoreError::Unknown);
            }
            let mut context = self.inner.lock().context.clone();
            let mut events = Vec::new();
            for line in lines(&tail) {
                let event = decode(line, &mut context)?;
                if event.seq > at {
                    events.push(event);
                }
            }
            let empty = events.is_empty();
            self.change(|inner| {
                for event in events {
                    if event.seq != inner.log.head + 1 {
                        return Err(StoreError::Corrupt(format!("event {} follows event {}", event.seq, inner.log.head)));
                    }
                    inner.receive(event);
                }
                inner.settle();
                let head = inner.log.head;
                if let Some(stored) = &mut inner.stored {
                    stored.taken = head;
                }
                Ok(())
            })?;
            if empty || tail.last >= tail.standing.head {
                return Ok(tail.standing.leased_ms > 0);
            }
        }
    }

    /// Makes this process the writer, where it is not, and keeps it so until the hold is dropped. `turn`: the one that is meant.
    #[inline]
    pub(super) fn hold(&self, turn: Option<u32>) -> Result<Hold<'_>, SessionError> {
        self.link.as_ref().map_or(Ok(Hold(None)), |link| self.hold_stored(link, turn))
    }

    fn hold_stored(&self, link: &Link, turn: Option<u32>) -> Result<Hold<'_>, SessionError> {
        link.keeper.make_room()?;
        if let Some(hold) = self.try_hold(turn)? {
            return Ok(hold);
        }
        let role = link.role.lock();
        if let Some(hold) = self.try_hold(turn)? {
            return Ok(hold);
        }
        let keeper = &link.keeper;
        let claim = keeper.store.claim(self.id(), &keeper.owner, self.epoch(), keeper.options.lease).map_err(refused)?;
        link.renewed.store(now_ms(), Ordering::Relaxed);
        if claim.standing.epoch != **self.epoch() {
            let _ = keeper.store.release(self.id(), claim.fence);
            drop(role);
            self.break_off();
            return Err(SessionError::Unknown);
        }
        if let Err(error) = self.catch_up(keeper) {
            let _ = keeper.store.release(self.id(), claim.fence);
            return Err(SessionError::Store(error));
        }
        self.change(|inner| {
            let seen = (keeper.options.durability != Durability::Memory).then(|| inner.state.clone());
            inner.log.seen = if seen.is_some() { inner.log.head } else { u64::MAX };
            if let Some(stored) = &mut inner.stored {
                stored.fence = Some(claim.fence);
                stored.seen = seen;
                stored.holds += 1;
            }
            if inner.state.running {
                let turn = inner.state.turn;
                let refusal = inner.stored.as_ref().and_then(|stored| stored.refusal.clone());
                match refusal.filter(|(refused, _)| *refused == turn) {
                    Some((_, error)) => inner.fail(turn, error.code(), &error.to_string()),
                    None => inner.fail(turn, "producer_lost", "the process that ran this turn is gone"),
                }
                inner.settle();
            }
        });
        Ok(Hold(Some(self)))
    }

    /// A hold without a claim of its own.
    fn try_hold(&self, turn: Option<u32>) -> Result<Option<Hold<'_>>, SessionError> {
        let mut inner = self.inner.lock();
        if inner.closed {
            return Err(SessionError::Closed(self.id.clone()));
        }
        let running = inner.state.running;
        let Some(stored) = &mut inner.stored else { return Ok(Some(Hold(None))) };
        if let Some((refused, error)) = &stored.refusal
            && turn.is_some_and(|turn| turn == *refused)
        {
            return Err(SessionError::Store(error.clone()));
        }
        if stored.fence.is_some() {
            if running {
                return Ok(Some(Hold(None))); // a claim is not given back while a turn runs
            }
            stored.holds += 1;
            return Ok(Some(Hold(Some(self))));
        }
        Ok(None)
    }

    fn release(&self, fence: Option<u64>) {
        if let (Some(fence), Some(link)) = (fence, &self.link) {
            let _ = link.keeper.store.release(self.id(), fence); // what is lost here ends with the lease
        }
    }

    /// What waits, as a block; none where nothing does, or where this process is no writer.
    pub(super) fn next_batch(&self) -> Option<Batch> {
        let mut inner = self.inner.lock();
        let stored = inner.stored.as_mut()?;
        stored.queued = false;
        let fence = stored.fence?;
        let mut bytes = 0;
        let fits = |entry: &&Arc<Entry>| {
            bytes += weight(entry);
            bytes <= 4 * BATCH_BYTES
        };
        let entries: Vec<_> = stored.pending.iter().take(16 * BATCH_EVENTS).take_while(fits).cloned().collect();
        let entries = if entries.is_empty() { stored.pending.front().cloned().into_iter().collect() } else { entries };
        drop(inner);
        let (first, last) = (entries.first()?.event.seq, entries.last()?.event.seq);
        let mut data = Vec::with_capacity(bytes + 64);
        let mut ended = None;
        for entry in &entries {
            entry.event.write_json(&mut data);
            data.push(b'\n');
            if matches!(entry.event.payload, Payload::Completion(_)) {
                ended = Some(entry.event.seq);
            }
        }
        Some(Batch { fence, first, last, ended, data })
    }

    /// The store has answered.
    pub(super) fn answered(&self, keeper: &Shared, batch: &Batch, answer: Result<u64, StoreError>) {
        let answer = match answer {
            // An earlier try had been carried out, whose answer was lost.
            Err(StoreError::NotNext { head }) if (batch.first..=batch.last).contains(&head) => Ok(head),
            // Sent under the claim before this one: `begin_again` has been quicker.
            Err(StoreError::Fenced) if self.claimed_after(batch.fence) => return self.queue_again(keeper),
            answer => answer,
        };
        self.settle_answer(keeper, answer);
    }

    fn settle_answer(&self, keeper: &Shared, answer: Result<u64, StoreError>) {
        let answer = match answer {
            Err(StoreError::Unknown) if keeper.store.forgets() => self.begin_again(keeper),
            answer => answer,
        };
        match answer {
            Ok(head) => self.acknowledge(keeper, head),
            Err(StoreError::NotNext { head }) if self.rewind(keeper, head) => self.queue_again(keeper),
            Err(error) if error.is_transient() => self.queue_again(keeper),
            Err(StoreError::Unknown) => self.break_off(),
            Err(error) => self.refuse(keeper, &error),
        }
    }

    fn claimed_after(&self, fence: u64) -> bool {
        self.inner.lock().stored.as_ref().is_some_and(|stored| stored.fence.is_some_and(|newest| newest > fence))
    }

    fn queue_again(&self, keeper: &Shared) {
        let mut inner = self.inner.lock();
        let Some(stored) = &mut inner.stored else { return };
        if std::mem::replace(&mut stored.queued, true) {
            return;
        }
        let session = stored.session.upgrade();
        drop(inner);
        if let Some(session) = session {
            keeper.queue(session);
        }
    }

    fn acknowledge(&self, keeper: &Shared, head: u64) {
        let mut inner = self.inner.lock();
        let inner_mut = &mut *inner;
        let Some(stored) = &mut inner_mut.stored else { return };
        let (mut events, mut bytes) = (0, 0);
        while stored.pending.front().is_some_and(|entry| entry.event.seq <= head) {
            let Some(entry) = stored.pending.pop_front() else { break };
            events += 1;
            bytes += weight(&entry);
            // What is sent again has been seen.
            if entry.event.seq > stored.taken {
                stored.taken = entry.event.seq;
                if let Some(seen) = &mut stored.seen {
                    seen.apply(&entry.event);
                }
            }
        }
        if stored.seen.is_some() {
            inner_mut.log.seen = stored.taken;
        }
        keeper.uncount(events, bytes);
        let more = !stored.pending.is_empty();
        let sealed = (inner_mut.closed && !more).then_some((stored.fence, stored.taken));
        let waiters = inner_mut.waiters.take();
        let fence = inner_mut.give_back();
        drop(inner);
        waiters.for_each(std::task::Waker::wake);
        if let Some((Some(fence), head)) = sealed {
            let _ = keeper.store.seal(self.id(), fence, head); // `session_end` says the same: a seal that is lost loses nothing
        }
        self.release(fence);
        if more {
            self.queue_again(keeper);
        }
    }

    /// The store has gone back to `head`: what it lost waits once more. False where the log no longer has it.
    fn rewind(&self, keeper: &Shared, head: u64) -> bool {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        let Some(stored) = &mut inner.stored else { return false };
        let next = stored.pending.front().map_or(inner.log.head + 1, |entry| entry.event.seq);
        let lost: Vec<_> =
            inner.log.entries.range(inner.log.after(head)..).take_while(|entry| entry.event.seq < next).cloned().collect();
        if lost.len() as u64 != next.saturating_sub(head + 1) {
            return false;
        }
        keeper.count(lost.len(), lost.iter().map(|entry| weight(entry)).sum());
        lost.into_iter().rev().for_each(|entry| stored.pending.push_front(entry));
        true
    }

    /// The store has come back empty: the history goes on under its epoch, from its start.
    fn begin_again(&self, keeper: &Shared) -> Result<u64, StoreError> {
        let claim = keeper.store.claim(self.id(), &keeper.owner, self.epoch(), keeper.options.lease)?;
        if claim.standing.epoch != **self.epoch() {
            return Err(StoreError::Fenced);
        }
        let mut inner = self.inner.lock();
        if let Some(fence) = inner.stored.as_mut().and_then(|stored| stored.fence.as_mut()) {
            // The other thread may have claimed at the same time: the newest claim is the one that writes.
            *fence = claim.fence.max(*fence);
        } else {
            drop(inner);
            self.release(Some(claim.fence));
        }
        Err(StoreError::NotNext { head: claim.standing.head })
    }

    /// The store will not take it: what was not stored has not happened, and the turn's work is told to stop.
    fn refuse(&self, keeper: &Shared, error: &StoreError) {
        let mut inner = self.inner.lock();
        let turn = inner.state.turn;
        let exposed = inner.stored.as_ref().is_some_and(|stored| stored.seen.is_none());
        let fence = inner.roll_back(keeper);
        if let Some(stored) = &mut inner.stored {
            stored.refusal = Some((turn, error.clone()));
        }
        let hook = inner.cancelling.take();
        drop(inner);
        self.release(fence);
        if exposed {
            self.break_off(); // readers have seen what is not so
        }
        if let Some(hook) = hook {
            hook();
        }
    }

    /// Whether this object stands for a history that is gone.
    pub(super) fn is_broken(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.broken.load(Ordering::Acquire))
    }

    /// Whether it lives in a store: its calls may wait for it.
    pub fn is_stored(&self) -> bool {
        self.link.is_some()
    }

    /// The newest seq that was given, stored or not: it rises with every event, and an id made of it is new.
    pub fn logged(&self) -> u64 {
        self.inner.lock().log.head
    }

    /// Whether this process writes it now.
    pub fn writes(&self) -> bool {
        self.inner.lock().writes()
    }

    /// Ends this object: readers end, and the hub makes another one for the history that there is, if there is one.
    pub(super) fn break_off(&self) {
        let Some(link) = &self.link else { return };
        link.broken.store(true, Ordering::Release);
        let mut inner = self.inner.lock();
        inner.roll_back(&link.keeper);
        inner.closed = true;
        let waiters = inner.waiters.take();
        let producers = inner.pace_waiters.take();
        let hook = inner.cancelling.take();
        drop(inner);
        waiters.chain(producers).for_each(std::task::Waker::wake);
        if let Some(hook) = hook {
            hook();
        }
    }

    /// The keeping thread's look: renews the writer's lease, hears of cancels, follows other writers.
    pub(super) fn tend(&self, keeper: &Shared, timer: bool) {
        let Some(link) = &self.link else { return };
        if link.broken.load(Ordering::Acquire) {
            return;
        }
        let inner = self.inner.lock();
        let Some(stored) = &inner.stored else { return };
        let (fence, running) = (stored.fence, inner.state.running);
        drop(inner);
        let Some(fence) = fence else {
            if !timer || running || self.readers() > 0 {
                let _ = self.follow(); // the next look tries again
            }
            return;
        };
        // Our own appends hint too: a cancel is looked for four times a second at most.
        if !timer {
            link.asked.store(true, Ordering::Relaxed);
        }
        let lease = keeper.options.lease.as_millis() as u64;
        let silent = now_ms().saturating_sub(link.renewed.load(Ordering::Relaxed));
        let due = if link.asked.load(Ordering::Relaxed) { 250.min(lease / 4) } else { lease / 4 };
        if silent < due {
            return;
        }
        link.asked.store(false, Ordering::Relaxed);
        link.renewed.store(now_ms(), Ordering::Relaxed);
        match keeper.store.renew(self.id(), fence, keeper.options.lease) {
            Ok(None) => {}
            Ok(Some(reason)) => {
                self.cancel(&reason);
            }
            Err(error) if error.is_transient() => {}
            Err(error) => {
                if self.inner.lock().stored.as_ref().is_some_and(|stored| stored.fence == Some(fence)) {
                    self.settle_answer(keeper, Err(error));
                }
            }
        }
    }

    /// Asks whoever writes this session to cancel its turn; whether a turn runs there.
    pub(super) fn cancel_elsewhere(&self, reason: &str) -> bool {
        let Some(link) = &self.link else { return false };
        let _ = self.follow();
        self.look(|state| state.running) && link.keeper.store.ask_cancel(self.id(), reason).is_ok()
    }

    /// Waits until the store has what is logged now, at most [`PATIENCE`]: true if it has. At once for a session in memory.
    pub fn flush(&self) -> bool {
        let Some(link) = &self.link else { return true };
        let head = self.inner.lock().log.head;
        let done = || {
            let inner = self.inner.lock();
            inner.stored.as_ref().is_none_or(|stored| stored.taken >= head || stored.fence.is_none())
        };
        (done() || link.keeper.wait(PATIENCE, done)) && self.inner.lock().log.head >= head
    }
}

/// A claim that was refused.
fn refused(error: StoreError) -> SessionError {
    match error {
        StoreError::Held { remaining_ms } => SessionError::NotWriter { remaining_ms },
        error => SessionError::Store(error),
    }
}

fn lines(tail: &Tail) -> impl Iterator<Item = &[u8]> {
    tail.blocks.iter().flat_map(|block| block.split(|byte| *byte == b'\n')).filter(|line| !line.is_empty())
}

/// A delta that the final event of its message or call covers, once its turn has ended; told by the wire form's beginning.
fn is_covered_delta(line: &[u8]) -> bool {
    line.strip_prefix(b"{\"type\":\"").is_some_and(|kind| {
        ["text_delta\"", "reasoning_delta\"", "refusal_delta\"", "tool_call_delta\""]
            .iter()
            .any(|name| kind.starts_with(name.as_bytes()))
    })
}

/// Reads one line; neighbours of one turn and round share their context.
fn decode(line: &[u8], context: &mut Arc<Context>) -> Result<Event, StoreError> {
    let corrupt = |what: &dyn std::fmt::Display| StoreError::Corrupt(format!("an event cannot be read: {what}"));
    let text = std::str::from_utf8(line).map_err(|error| corrupt(&error))?;
    let mut event = Event::from_json(text).map_err(|error| corrupt(&error))?;
    if event.payload.class() == Class::Control {
        return Err(corrupt(&"a control frame"));
    }
    if **context == *event.context {
        event.context = context.clone();
    } else {
        *context = event.context.clone();
    }
    Ok(event)
}
