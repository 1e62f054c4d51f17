//! Following what others write, and the keeping thread's look at a session, followed or written.
//!
//! Refuses to know who writes: it reads what the store has, and asks there for cancels.
//!
//! Invariants: 1. a session that this process writes, or is about to, is not followed; 2. an event is taken only where it
//! follows the log's head; 3. a store that has less than is known here is given the rest by whoever wrote it, waited for as
//! long as a lease while a turn runs, and believed after that; 4. a lease is renewed four times in its length.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::Link;
use super::lines::{decode, lines, same};
use super::open::PAGE_BYTES;
use crate::clock::now_ms;
use crate::event::{Event, Payload};
use crate::session::keeper::{Asked, Shared, too_late};
use crate::session::stall::STALLED;
use crate::session::{Entry, Inner, Session, SessionError};
use crate::store::{Standing, StoreError};

/// A claim whose caller has left before it came is kept for so long, in milliseconds: the caller may come back.
const KEPT_MS: u64 = 1000;

impl Inner {
    /// Takes an event that the store has.
    pub(super) fn receive(&mut self, event: Event) {
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
        if let Some(stored) = &mut self.stored {
            stored.wrote = false;
        }
    }
}

impl Session {
    /// [`Self::follow`] for a caller that waits for it no longer than `deadline`.
    pub(in crate::session) fn follow_until(&self, deadline: Instant) -> Result<(), SessionError> {
        let (Some(link), false) = (&self.link, self.writes_or_will()) else { return Ok(()) };
        let Some(session) = self.shared() else { return Ok(()) };
        link.keeper.share(&link.following, deadline, move |_| session.follow()).unwrap_or_else(|| Err(too_late()))?;
        self.flush_until(deadline); // whoever looked it up finds a lost turn ended
        Ok(())
    }

    /// Reads what others wrote since; ends what they left open, and gives back to the store what it has lost.
    fn follow(&self) -> Result<(), SessionError> {
        let Some(link) = &self.link else { return Ok(()) };
        if self.writes_or_will() {
            return Ok(());
        }
        let role = link.role.lock();
        // Whoever had the role may have claimed: what is logged since is not stored, and not this call's to acknowledge.
        if self.writes_or_will() {
            return Ok(());
        }
        let caught = self.catch_up(&link.keeper);
        // While the role is held: a turn that starts after it may log what the answer cannot know.
        let (running, head, wrote) = {
            let inner = self.inner.lock();
            (inner.state.running, inner.log.head, inner.stored.as_ref().is_some_and(|stored| stored.wrote))
        };
        drop(role);
        match caught {
            Ok(standing) if standing.head >= head => {
                link.lacking.store(0, Ordering::Relaxed);
                if running && standing.leased_ms == 0 {
                    self.claim(link)?;
                    self.settle_claim();
                }
                Ok(())
            }
            Ok(standing) if standing.leased_ms > 0 => Ok(()), // whoever writes it knows the rest
            Ok(_) | Err(StoreError::Unknown) if wrote && link.keeper.store.forgets() => {
                self.claim(link)?;
                self.settle_claim();
                Ok(())
            }
            Ok(_) | Err(StoreError::Unknown) if running && link.may_come_back() => {
                Err(SessionError::Store(StoreError::Unavailable("it has lost events that its writer may bring back".into())))
            }
            Ok(_) | Err(StoreError::Unknown | StoreError::NotNext { .. }) => {
                self.break_off();
                Err(SessionError::Unknown)
            }
            Err(error) => Err(SessionError::Store(error)),
        }
    }

    /// Reads up to the store's head; where it stands. Not next where the store's history is another one. The role is locked.
    pub(super) fn catch_up(&self, keeper: &Shared) -> Result<Standing, StoreError> {
        loop {
            let inner = self.inner.lock();
            let at = inner.log.head;
            // A store that forgets may have gone on from an older event than ours: its line of our newest one tells.
            let known = if keeper.store.forgets() { inner.line(at) } else { None };
            let mut context = inner.context.clone();
            drop(inner);
            let tail = keeper.store.read(self.id(), at - u64::from(known.is_some()), PAGE_BYTES)?;
            let another = Err(StoreError::NotNext { head: tail.standing.head });
            if tail.standing.epoch != **self.epoch() {
                return another;
            }
            let mut events = Vec::new();
            let mut seq = tail.last - lines(&tail).count() as u64;
            for line in lines(&tail) {
                seq += 1;
                if seq > at {
                    events.push(decode(line, &mut context)?);
                } else if seq == at && known.as_ref().is_some_and(|known| !same(known, line)) {
                    return another;
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
                return Ok(tail.standing);
            }
        }
    }

    /// The keeping thread's look: renews the writer's lease, hears of cancels, follows other writers.
    /// `all`: the store may be another than it was.
    pub(in crate::session) fn tend(&self, keeper: &Shared, timer: bool, all: bool) {
        let Some(link) = &self.link else { return };
        if link.broken.load(Ordering::Acquire) {
            return;
        }
        let inner = self.inner.lock();
        let Some(stored) = &inner.stored else { return };
        let (fence, running) = (stored.fence, inner.state.running);
        let looks = !timer || running || self.readers() > 0 || (all && !stored.recent.is_empty());
        drop(inner);
        if timer {
            self.forget_recent();
            self.tell_wish(link);
        }
        let Some(fence) = fence else {
            if looks {
                let _ = self.follow(); // the next look tries again
            }
            return;
        };
        if timer
            && link.claimed.load(Ordering::Relaxed) + KEPT_MS < now_ms()
            && let Some(fence) = self.give_back()
        {
            return self.release(fence); // nobody has come for it
        }
        // Our own appends hint too: a cancel is looked for four times a second at most.
        if !timer {
            link.asked.store(true, Ordering::Relaxed);
        }
        let lease = keeper.options.lease.as_millis() as u64;
        let renewed = link.renewed.load(Ordering::Relaxed);
        let silent = now_ms().saturating_sub(renewed);
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
            // At the next look, and not when half of the lease is over: the store may be back for the rest of it alone.
            Err(error) if error.is_transient() => link.renewed.store(renewed, Ordering::Relaxed),
            Err(error) => {
                if self.inner.lock().stored.as_ref().is_some_and(|stored| stored.fence == Some(fence)) {
                    match error {
                        StoreError::Unknown if keeper.store.forgets() => self.go_on(keeper, fence),
                        StoreError::Unknown => self.break_off(),
                        error => self.refuse(keeper, fence, &error),
                    }
                }
            }
        }
    }

    /// Asks whoever writes this session to cancel its turn: the answer is whether a turn runs there. A store that is away is
    /// asked again.
    pub(in crate::session) fn cancel_elsewhere(&self, reason: &str) -> Option<Arc<Asked<bool>>> {
        let (link, session) = (self.link.as_ref()?, self.shared()?);
        let reason = reason.to_owned();
        let ask = move || {
            let _ = session.follow();
            let running = session.look(|state| state.running);
            if let (true, Some(link)) = (running, &session.link) {
                link.wish.lock().get_or_insert(reason);
                session.tell_wish(link);
            }
            running
        };
        Some(link.keeper.begin(None, |_| ask()))
    }

    fn tell_wish(&self, link: &Link) {
        let Some(reason) = link.wish.lock().clone() else { return };
        if !self.look(|state| state.running) || link.keeper.store.ask_cancel(self.id(), &reason).is_ok() {
            link.wish.lock().take();
        }
    }
}
