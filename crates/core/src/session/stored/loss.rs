//! What the store refuses, and going on after one that forgot what it had acknowledged.
//!
//! Refuses to know how a store loses something: it sees a head behind its own, or a claim that is not known.
//!
//! Invariants: 1. what was not stored has not happened: it leaves the log, and the turn's work is told to stop; 2. what readers
//! have seen is sent again under the same seqs and the same epoch, or the epoch changes; 3. the tail that is kept for that is
//! bounded in events, bytes and time.

use std::collections::VecDeque;
use std::sync::Arc;

use super::Stored;
use super::append::{Batch, weight};
use super::lines::{lines, same};
use crate::clock::now_ms;
use crate::session::keeper::{BATCH_EVENTS, Shared};
use crate::session::{Entry, Inner, Session, hub};
use crate::store::StoreError;

/// Acknowledged events that are kept for a store that loses them again, also where the log has let them go.
const RECENT_EVENTS: usize = 4096;
/// … as long as they weigh no more, about,
const RECENT_BYTES: usize = 1 << 20;
/// … and for so long, in milliseconds: a replica lags by less.
const RECENT_MS: u64 = 60_000;

impl Stored {
    /// Keeps what the store has acknowledged, for the case that it forgets.
    pub(super) fn keep_recent(&mut self, entry: Arc<Entry>) {
        self.recent_bytes += weight(&entry);
        self.recent.push_back(entry);
        while self.recent.len() > RECENT_EVENTS || self.recent_bytes > RECENT_BYTES {
            self.drop_recent();
        }
    }

    fn drop_recent(&mut self) {
        if let Some(entry) = self.recent.pop_front() {
            self.recent_bytes -= weight(&entry);
        }
    }
}

impl Inner {
    /// Why the events of this turn are refused, if they are.
    pub(in crate::session) fn refusal_of(&self, turn: u32) -> Option<&StoreError> {
        let (refused, error) = self.stored.as_ref()?.refusal.as_ref()?;
        (*refused == turn).then_some(error)
    }

    /// A turn that starts may have the number of one whose start was refused.
    pub(in crate::session) fn forget_refusal(&mut self) {
        if let Some(stored) = &mut self.stored {
            stored.refusal = None;
        }
    }

    /// Forgets what the store has not taken, and follows from there.
    pub(super) fn roll_back(&mut self, keeper: &Shared) -> Option<u64> {
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
        let fence = stored.fence.take();
        stored.releasing += usize::from(fence.is_some());
        fence
    }

    /// The store has gone back to `head`: what it lost waits once more. False where it is not there any more.
    pub(super) fn rewind(&mut self, keeper: &Shared, head: u64) -> bool {
        let Some(stored) = &mut self.stored else { return false };
        let next = stored.pending.front().map_or(self.log.head + 1, |entry| entry.event.seq);
        if head > self.log.head {
            return false;
        }
        let seq = |entry: &Arc<Entry>| entry.event.seq;
        let logged = self.log.entries.range(self.log.after(head)..).take_while(|entry| seq(entry) < next);
        // The log lets go of what its own readers need no more; the tail does not.
        let start = stored.recent.partition_point(|entry| seq(entry) <= head);
        let mut lost: Vec<_> = logged.chain(stored.recent.range(start..)).filter(|entry| seq(entry) < next).cloned().collect();
        lost.sort_by_key(seq);
        lost.dedup_by_key(|entry| seq(entry));
        if lost.len() as u64 != next.saturating_sub(head + 1) {
            return false;
        }
        keeper.count(lost.len(), lost.iter().map(|entry| weight(entry)).sum());
        lost.into_iter().rev().for_each(|entry| stored.pending.push_front(entry));
        true
    }

    /// The event `seq`, as a store's line; none where this process has let go of it.
    pub(super) fn line(&self, seq: u64) -> Option<Vec<u8>> {
        let at = |entries: &VecDeque<Arc<Entry>>| {
            let at = entries.partition_point(|entry| entry.event.seq < seq);
            entries.get(at).filter(|entry| entry.event.seq == seq).cloned()
        };
        let entry = at(&self.log.entries).or_else(|| at(&self.stored.as_ref()?.recent))?;
        let mut line = Vec::new();
        entry.event.write_json(&mut line);
        Some(line)
    }
}

impl Session {
    /// Why the events of this turn are refused, if they are.
    pub(in crate::session) fn refusal_of(&self, turn: u32) -> Option<StoreError> {
        self.inner.lock().refusal_of(turn).cloned()
    }

    /// The store will not take what came under the claim `fence`: what was not stored has not happened, and the turn's work is
    /// told to stop.
    pub(super) fn refuse(&self, keeper: &Shared, fence: u64, error: &StoreError) {
        if self.claimed_after(fence) {
            return self.queue_again(keeper); // it is another claim's now, and asked for again
        }
        let mut inner = self.inner.lock();
        let turn = Some(inner.state.turn).filter(|turn| *turn != 0); // outside of turns nothing is told to stop
        let exposed = inner.stored.as_ref().is_some_and(|stored| stored.seen.is_none());
        let fence = inner.roll_back(keeper);
        if let (Some(stored), Some(turn)) = (&mut inner.stored, turn) {
            stored.refusal = Some((turn, error.clone()));
        }
        let hook = inner.cancelling.take();
        drop(inner);
        if let Some(fence) = fence {
            self.release(fence);
        }
        if exposed {
            self.break_off(); // readers have seen what is not so
        }
        if let Some(hook) = hook {
            hook();
        }
    }

    /// Whether the log goes on from the store's event `head`: whether that is ours too.
    pub(super) fn extends(&self, keeper: &Shared, head: u64) -> Result<bool, StoreError> {
        if !keeper.store.forgets() {
            return Ok(false); // a shorter history is another one, of the same id
        }
        if head == 0 {
            return Ok(true);
        }
        let Some(ours) = self.inner.lock().line(head) else { return Ok(false) };
        let tail = keeper.store.read(self.id(), head - 1, 1)?;
        let first = tail.last - lines(&tail).count() as u64;
        let at = usize::try_from(head - first - 1).unwrap_or(usize::MAX);
        Ok(lines(&tail).nth(at).is_some_and(|theirs| same(&ours, theirs)))
    }

    /// The store has come back without the claim, empty or not: this process takes it anew, if nobody else wrote since. Then the
    /// history goes on under its epoch, from where the store stands.
    pub(super) fn claim_again(&self, keeper: &Shared) -> Result<u64, StoreError> {
        let claim = match keeper.store.claim(self.id(), &keeper.owner, self.epoch(), keeper.options.lease) {
            Err(StoreError::Held { .. }) => return Err(StoreError::Fenced),
            claim => claim?,
        };
        let head = claim.standing.head;
        let same = claim.standing.epoch == **self.epoch();
        let extends = if same { self.extends(keeper, head) } else { Ok(false) };
        if !extends.as_ref().is_ok_and(|extends| *extends) {
            if same && extends.is_ok() {
                let _ = keeper.store.rename(self.id(), claim.fence, &hub::random_word(8));
            }
            let _ = keeper.store.release(self.id(), claim.fence);
            return Err(extends.err().unwrap_or(StoreError::Fenced));
        }
        let mut inner = self.inner.lock();
        if let Some(fence) = inner.stored.as_mut().and_then(|stored| stored.fence.as_mut()) {
            // The other thread may have claimed at the same time: the newest claim is the one that writes.
            *fence = claim.fence.max(*fence);
        } else {
            drop(inner);
            self.release(claim.fence);
        }
        Err(StoreError::NotNext { head })
    }

    /// The store knows nothing of the claim: as when an append hears of it.
    pub(super) fn go_on(&self, keeper: &Shared, fence: u64) {
        match self.claim_again(keeper) {
            Err(StoreError::NotNext { head }) if self.inner.lock().rewind(keeper, head) => self.queue_again(keeper),
            Err(StoreError::NotNext { .. }) => self.lose(keeper),
            Err(error) if error.is_transient() => {} // the next look tries again
            Err(error) => self.refuse(keeper, fence, &error),
            Ok(_) => {}
        }
    }

    /// Stores the log anew, as far as it is whole.
    pub(super) fn bring_back(&self, keeper: &Shared, fence: u64) {
        let entries: Vec<_> = self.inner.lock().log.entries.iter().cloned().collect();
        let mut next = 1;
        for entries in entries.chunks(16 * BATCH_EVENTS) {
            let batch = Batch::of(fence, entries);
            let (first, last) = (batch.first, batch.last);
            if first != next || last - first + 1 != entries.len() as u64 {
                return;
            }
            if keeper.store.append(&[batch.append(self.id())]) != [Ok(last)] {
                return;
            }
            next = last + 1;
        }
    }

    /// Readers have seen what the store has lost, and nobody has it any more: what is left is another life.
    pub(super) fn lose(&self, keeper: &Shared) {
        let fence = self.inner.lock().stored.as_ref().and_then(|stored| stored.fence);
        if let Some(fence) = fence {
            let _ = keeper.store.rename(self.id(), fence, &hub::random_word(8));
            let _ = keeper.store.release(self.id(), fence);
        }
        self.break_off();
    }

    /// Lets go of what a replica has had time to hear of.
    pub(super) fn forget_recent(&self) {
        let mut inner = self.inner.lock();
        let Some(stored) = &mut inner.stored else { return };
        let oldest = if stored.recent.is_empty() { 0 } else { now_ms() - RECENT_MS };
        while stored.recent.front().is_some_and(|entry| entry.event.time < oldest) {
            stored.drop_recent();
        }
    }
}
