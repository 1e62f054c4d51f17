//! Handing over what was logged, and the store's answers.
//!
//! Refuses to know why a claim is held, and what a refusal means: [`super::loss`] does.
//!
//! Invariants: 1. events go out in order, under one claim a block; 2. a session is in the writer's queue at most once; 3. readers
//! see an event when it is acknowledged, once, however often it was sent; 4. what waits is counted from the moment it is handed
//! over to its acknowledgement or refusal.

use std::sync::Arc;
use std::time::Instant;

use crate::event::Payload;
use crate::session::keeper::{BATCH_BYTES, BATCH_EVENTS, Shared, patience};
use crate::session::{Entry, Inner, Session};
use crate::store::{Append, StoreError};

/// A block on its way.
pub(in crate::session) struct Batch {
    fence: u64,
    pub(super) first: u64,
    pub(super) last: u64,
    ended: Option<u64>,
    data: Vec<u8>,
}

impl Batch {
    /// Of neighbours, at least one.
    pub(super) fn of(fence: u64, entries: &[Arc<Entry>]) -> Self {
        let mut data = Vec::with_capacity(entries.iter().map(|entry| weight(entry)).sum::<usize>() + 64);
        let mut ended = None;
        for entry in entries {
            entry.event.write_json(&mut data);
            data.push(b'\n');
            if matches!(entry.event.payload, Payload::Completion(_)) {
                ended = Some(entry.event.seq);
            }
        }
        let seq = |entry: Option<&Arc<Entry>>| entry.map_or(0, |entry| entry.event.seq);
        Self { fence, first: seq(entries.first()), last: seq(entries.last()), ended, data }
    }

    pub(in crate::session) fn append<'a>(&'a self, session: &'a str) -> Append<'a> {
        Append { session, fence: self.fence, first: self.first, last: self.last, ended: self.ended, data: &self.data }
    }
}

/// Bytes that an entry counts for while it waits.
pub(super) fn weight(entry: &Entry) -> usize {
    entry.event.size()
}

impl Inner {
    /// Puts what was logged after `before` before the store's writer.
    #[inline]
    pub(in crate::session) fn hand_over(&mut self, before: u64) {
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
}

impl Session {
    /// What waits, as a block; none where nothing does, or where this process is no writer.
    pub(in crate::session) fn next_batch(&self) -> Option<Batch> {
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
        if entries.is_empty() { None } else { Some(Batch::of(fence, &entries)) }
    }

    /// The store has answered.
    pub(in crate::session) fn answered(&self, keeper: &Shared, batch: &Batch, answer: Result<u64, StoreError>) {
        let answer = match answer {
            // An earlier try had been carried out, whose answer was lost.
            Err(StoreError::NotNext { head }) if (batch.first..=batch.last).contains(&head) => Ok(head),
            // Sent under the claim before this one: `claim_again` has been quicker.
            Err(StoreError::Fenced) if self.claimed_after(batch.fence) => return self.queue_again(keeper),
            Err(StoreError::Unknown) if keeper.store.forgets() => self.claim_again(keeper),
            answer => answer,
        };
        match answer {
            Ok(head) => self.acknowledge(keeper, head),
            Err(StoreError::NotNext { head }) if self.inner.lock().rewind(keeper, head) => self.queue_again(keeper),
            Err(StoreError::NotNext { .. }) => self.lose(keeper),
            Err(error) if error.is_transient() => self.queue_again(keeper),
            Err(StoreError::Unknown) => self.break_off(),
            Err(error) => self.refuse(keeper, batch.fence, &error),
        }
    }

    pub(super) fn queue_again(&self, keeper: &Shared) {
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
            // What is sent again has been seen, and is kept.
            if entry.event.seq > stored.taken {
                stored.taken = entry.event.seq;
                if let Some(seen) = &mut stored.seen {
                    seen.apply(&entry.event);
                }
                if keeper.store.forgets() {
                    stored.keep_recent(entry);
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
        if let Some(fence) = fence {
            self.release(fence);
        }
        if more {
            self.queue_again(keeper);
        }
    }

    pub(super) fn claimed_after(&self, fence: u64) -> bool {
        self.inner.lock().stored.as_ref().is_some_and(|stored| stored.fence.is_some_and(|newest| newest > fence))
    }

    /// Waits until the store has what is logged now, at most [`super::PATIENCE`]: true if it has. At once for a session in
    /// memory.
    pub fn flush(&self) -> bool {
        self.link.is_none() || self.flush_until(patience())
    }

    /// The same, until `deadline`.
    pub(in crate::session) fn flush_until(&self, deadline: Instant) -> bool {
        let Some(link) = &self.link else { return true };
        let head = self.inner.lock().log.head;
        let done = || {
            let inner = self.inner.lock();
            let stored = inner.stored.as_ref();
            stored.is_none_or(|stored| (stored.taken >= head || stored.fence.is_none()) && stored.releasing == 0)
        };
        let _ = done() || link.keeper.wait(deadline, done);
        let inner = self.inner.lock();
        inner.log.head >= head && inner.stored.as_ref().is_none_or(|stored| stored.taken >= head || stored.fence.is_none())
    }
}
