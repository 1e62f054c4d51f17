//! The claim: taken by whoever starts a turn or emits, held while a call relies on it, given back when nothing needs it.
//!
//! Refuses to know how events reach the store, and what becomes of those that do not.
//!
//! Invariants: 1. who claims has read everything up to the store's head before it writes; 2. what the last holder left open is
//! ended in the claim, once; 3. a claim is not given back while its turn runs, while somebody holds it, or while events wait;
//! 4. a claim that finds another history than this object's is given up, and the object broken off.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Link;
use crate::clock::now_ms;
use crate::session::keeper::{Asked, patience, too_late};
use crate::session::{Inner, Session, SessionError, hub};
use crate::store::{Durability, StoreError};

/// A claim that nothing runs under is given back by its holder's next commit: for so long it is waited for.
const GIVEN_BACK: Duration = Duration::from_millis(200);

/// Keeps a claim from being given back between a check and the change that relies on it.
pub(in crate::session) struct Hold<'a>(Option<&'a Session>);

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        let Some(session) = self.0 else { return };
        if let Some(stored) = &mut session.inner.lock().stored {
            stored.holds -= 1;
        }
        if let (Some(fence), Some(link), Some(session)) = (session.give_back(), &session.link, session.shared()) {
            link.keeper.later(move || session.release(fence));
        }
    }
}

impl Inner {
    /// Ends the claim where nothing needs it; the fence to release.
    pub(super) fn give_back(&mut self) -> Option<u64> {
        let idle = !self.state.running;
        let stored = self.stored.as_mut()?;
        if !idle || stored.holds > 0 || !stored.pending.is_empty() {
            return None;
        }
        stored.seen = None;
        self.log.seen = u64::MAX;
        let fence = stored.fence.take();
        stored.releasing += usize::from(fence.is_some());
        fence
    }
}

impl Session {
    /// Makes this process the writer, where it is not, and keeps it so until the hold is dropped. `turn`: the one that is meant.
    #[inline]
    pub(in crate::session) fn hold(&self, turn: Option<u32>) -> Result<Hold<'_>, SessionError> {
        self.link.as_ref().map_or(Ok(Hold(None)), |link| self.hold_stored(link, turn, None))
    }

    /// The same, for a caller that has waited already.
    pub(in crate::session) fn hold_until(&self, deadline: Instant) -> Result<Hold<'_>, SessionError> {
        self.link.as_ref().map_or(Ok(Hold(None)), |link| self.hold_stored(link, None, Some(deadline)))
    }

    fn hold_stored(&self, link: &Link, turn: Option<u32>, deadline: Option<Instant>) -> Result<Hold<'_>, SessionError> {
        link.keeper.make_room(deadline)?;
        if let Some(hold) = self.try_hold(turn)? {
            return Ok(hold);
        }
        let deadline = deadline.unwrap_or_else(patience);
        loop {
            let Some(session) = self.shared() else { return Err(SessionError::Unknown) };
            let claim = move |_: &Asked<_>| session.link.as_ref().map_or(Ok(()), |link| session.claim(link));
            link.keeper.share(&link.claiming, deadline, claim).unwrap_or_else(|| Err(too_late()))?;
            if let Some(hold) = self.try_hold(turn)? {
                return Ok(hold);
            }
            // What the claim itself had to say is stored, and the claim given back, before we came to it.
            if Instant::now() > deadline {
                return Err(too_late());
            }
        }
    }

    /// A hold without a claim of its own.
    fn try_hold(&self, turn: Option<u32>) -> Result<Option<Hold<'_>>, SessionError> {
        let mut inner = self.inner.lock();
        if let Some(error) = turn.and_then(|turn| inner.refusal_of(turn)) {
            return Err(SessionError::Store(error.clone()));
        }
        if inner.closed {
            return Err(SessionError::Closed(self.id.clone()));
        }
        let runs = inner.state.running && turn == Some(inner.state.turn);
        let Some(stored) = &mut inner.stored else { return Ok(Some(Hold(None))) };
        if stored.fence.is_some() {
            if runs {
                return Ok(Some(Hold(None))); // a claim is not given back while its turn runs
            }
            stored.holds += 1;
            return Ok(Some(Hold(Some(self))));
        }
        Ok(None)
    }

    /// Takes the claim, and ends what its last holder left open. Calls the store.
    pub(super) fn claim(&self, link: &Link) -> Result<(), SessionError> {
        let keeper = &link.keeper;
        let role = link.role.lock();
        if self.inner.lock().stored.as_ref().is_none_or(|stored| stored.fence.is_some()) {
            return Ok(());
        }
        let known = self.position().head;
        // Nothing is known here of a history that a claim would begin under an epoch that may have been used.
        if keeper.store.forgets() && known == 0 && keeper.store.standing(self.id()) == Err(StoreError::Unknown) {
            self.break_off();
            return Err(SessionError::Unknown);
        }
        let patience = Instant::now() + GIVEN_BACK;
        let claim = loop {
            match keeper.store.claim(self.id(), &keeper.owner, self.epoch(), keeper.options.lease) {
                Err(error @ StoreError::Held { .. }) => {
                    let idle = self.catch_up(keeper).is_ok() && !self.look(|state| state.running);
                    if !idle || Instant::now() > patience {
                        return Err(refused(error));
                    }
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(StoreError::Unknown) => {
                    self.break_off(); // it has been deleted
                    return Err(SessionError::Unknown);
                }
                claim => break claim.map_err(refused)?,
            }
        };
        let give_up = |error: SessionError| {
            // A session that was deleted meanwhile: the claim has begun it anew.
            let deleted = claim.standing.head == 0 && claim.standing.epoch == **self.epoch() && !keeper.store.forgets();
            let _ = match &error {
                SessionError::Unknown if deleted => keeper.store.delete(self.id()).map(drop),
                _ => keeper.store.release(self.id(), claim.fence),
            };
            if error == SessionError::Unknown {
                self.break_off();
            }
            Err(error)
        };
        let standing = match self.catch_up(keeper) {
            _ if claim.standing.epoch != **self.epoch() => return give_up(SessionError::Unknown),
            Ok(standing) => standing,
            Err(StoreError::Unknown | StoreError::NotNext { .. }) => return give_up(SessionError::Unknown),
            Err(error) => return give_up(SessionError::Store(error)),
        };
        let lost = || {
            let _ = keeper.store.rename(self.id(), claim.fence, &hub::random_word(8));
            if standing.head == 0 {
                self.bring_back(keeper, claim.fence);
            }
            give_up(SessionError::Unknown)
        };
        // Nothing is left, and others may have written after us: what is known here is told under another epoch.
        if keeper.store.forgets() && standing.head == 0 && known > 0 {
            return lost();
        }
        if standing.head < self.position().head {
            match self.extends(keeper, standing.head) {
                Ok(true) => {}
                Ok(false) => return lost(),
                Err(error) => return give_up(SessionError::Store(error)),
            }
        }
        link.renewed.store(now_ms(), Ordering::Relaxed);
        link.claimed.store(now_ms(), Ordering::Relaxed);
        let whole = self.change(|inner| {
            if standing.head < inner.log.head && !inner.rewind(keeper, standing.head) {
                return false;
            }
            let seen = (keeper.options.durability != Durability::Memory).then(|| inner.state.clone());
            inner.log.seen = if seen.is_some() { inner.log.head } else { u64::MAX };
            if let Some(stored) = &mut inner.stored {
                stored.fence = Some(claim.fence);
                stored.seen = seen;
                stored.wrote = true;
            }
            if inner.state.running {
                let turn = inner.state.turn;
                match inner.refusal_of(turn).cloned() {
                    Some(error) => inner.fail(turn, error.code(), &error.to_string()),
                    None => inner.fail(turn, "producer_lost", "the process that ran this turn is gone"),
                }
                inner.settle();
            }
            true
        });
        if !whole {
            return lost();
        }
        drop(role);
        self.queue_again(keeper); // what the store had lost
        Ok(())
    }

    /// Takes the fence of a claim that nothing needs any more.
    pub(super) fn give_back(&self) -> Option<u64> {
        self.inner.lock().give_back()
    }

    /// Ends a claim that [`Inner::give_back`] took. Calls the store.
    pub(super) fn release(&self, fence: u64) {
        let Some(link) = &self.link else { return };
        let _ = link.keeper.store.release(self.id(), fence); // what is lost here ends with the lease
        if let Some(stored) = &mut self.inner.lock().stored {
            stored.releasing -= 1;
        }
        link.keeper.tell_waiting();
    }

    /// Gives the claim back where nothing needs it. Calls the store.
    pub(super) fn settle_claim(&self) {
        if let Some(fence) = self.give_back() {
            self.release(fence);
        }
    }
}

/// A claim that was refused.
fn refused(error: StoreError) -> SessionError {
    match error {
        StoreError::Held { remaining_ms } => SessionError::NotWriter { remaining_ms },
        error => SessionError::Store(error),
    }
}
