//! What a reader finds: pages of the log, where it stands, the state beside a cursor, and a call when there is more.
//!
//! Knows no reader: it is asked with a seq. Invariant: looking for news and registering a waker are one step under the lock.

use std::sync::Arc;
use std::task::Waker;

use super::{Entry, Inner, Session, Ticket};
use crate::event::{Json, Payload};

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

    /// The seq of the oldest event that a reader can have, from the log or the store.
    pub fn earliest(&self) -> Option<u64> {
        self.inner.lock().earliest()
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
}

impl Inner {
    pub(super) fn position(&self) -> Page {
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

    pub(super) fn earliest(&self) -> Option<u64> {
        let front = self.log.entries.front()?.event.seq;
        Some(self.stored.as_ref().map_or(front, |stored| front.min(stored.gone + 1)))
    }

    /// The newest seq that readers see.
    pub(super) fn seen_head(&self) -> u64 {
        self.log.head.min(self.log.seen)
    }

    /// Whether nothing comes that readers have not seen.
    pub(super) fn is_over(&self) -> bool {
        self.closed && self.log.head <= self.log.seen
    }
}
