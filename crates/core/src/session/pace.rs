//! Readers that pace the producer: it waits while one of them lags by its window.
//!
//! Invariant: a reader's advance and a producer's look are each one step under the session's lock, so that no wake-up is lost.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Waker;

use super::{Inner, Session, Ticket};
use crate::sync::AtomicU64;

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

impl Session {
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
}

impl Inner {
    pub(super) fn may_produce(&self) -> bool {
        // Acquire pairs with the reader's release in `advance`.
        let lag = |pace: &Arc<Pace>| self.log.head.saturating_sub(pace.seq.load(Ordering::Acquire));
        self.closed || self.paces.iter().all(|pace| lag(pace) < pace.window)
    }
}
