//! A session whose log lives in a store: what it keeps for that, in its lock and outside.
//!
//! A session writes while it holds a claim: its log runs ahead of the store, and readers see it up to what the store has
//! acknowledged ([`super::log::Log::seen`]). Otherwise it follows: its log is what the store has. A claim is taken by whoever
//! starts a turn or emits, and given back when nothing runs and everything is stored.
//!
//! Owns the two structures and the end of an object whose history is gone. Where to look: [`open`] a session of a store, [`lines`]
//! as a store has them, [`claim`]: taking, holding and giving back, [`follow`] what others write, [`append`]: handing over and
//! the store's answers, [`loss`]: refusals, and going on after a store that forgot. Knows nothing of what an event means to a
//! session, nor of any one store.
//!
//! Invariants, of all of them: 1. above [`Durability::Memory`](crate::store::Durability::Memory), nobody sees an event that the
//! store has not taken; 2. what the store refuses for good leaves the log again, its seqs are given anew, and the turn's next
//! emit is refused with the reason; 3. a turn whose writer is gone is ended as failed, `producer_lost`, by whoever claims after
//! it, in the claim: once; 4. events are decoded and encoded, and the store is called, without the session's lock; 5. a store
//! that has lost what it acknowledged gets it again from whoever wrote it, as far as its log and its recent tail reach; a log
//! whose end is not in the store's history is broken off.

mod append;
mod claim;
mod follow;
mod lines;
mod loss;
mod open;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

pub(super) use self::append::Batch;
pub(super) use self::lines::{decode, lines};
use super::history::Pages;
use super::keeper::{Keeper, Slot};
use super::{Entry, Inner, Session, SessionError, State};
use crate::clock::now_ms;
use crate::store::StoreError;

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
    /// When the claim was taken, in Unix milliseconds.
    claimed: AtomicU64,
    claiming: Slot<Result<(), SessionError>>,
    following: Slot<Result<(), SessionError>>,
    /// Since when the store lacks what is known here, in Unix milliseconds; 0: it does not.
    lacking: AtomicU64,
    /// Why whoever writes is to cancel its turn, until the store knows.
    wish: Mutex<Option<String>>,
    pub(super) pages: Pages,
}

impl Link {
    fn new(keeper: &Arc<Keeper>) -> Self {
        Self {
            keeper: keeper.clone(),
            role: Mutex::new(()),
            broken: AtomicBool::new(false),
            renewed: AtomicU64::new(0),
            asked: AtomicBool::new(false),
            claimed: AtomicU64::new(0),
            claiming: Slot::default(),
            following: Slot::default(),
            lacking: AtomicU64::new(0),
            wish: Mutex::new(None),
            pages: Pages::default(),
        }
    }

    /// Whether what a store has lost may still come from a writer that lives: for the length of a lease.
    fn may_come_back(&self) -> bool {
        let (now, lease) = (now_ms(), self.keeper.options.lease.as_millis() as u64);
        let since = self.lacking.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
        self.keeper.store.forgets() && now.saturating_sub(since.map_or_else(|since| since, |_| now)) < lease
    }
}

/// What it keeps under its lock.
pub(super) struct Stored {
    /// The session, for the writer's queue.
    session: Weak<Session>,
    keeper: Weak<Keeper>,
    /// The claim's; none while following.
    fence: Option<u64>,
    /// Calls that need the claim a little longer.
    holds: usize,
    /// Whether the log's end was written here.
    wrote: bool,
    /// Claims that are being given back.
    releasing: usize,
    /// Logged, and not acknowledged.
    pending: VecDeque<Arc<Entry>>,
    /// Whether the writer's queue has the session.
    queued: bool,
    /// The newest seq that the store has.
    taken: u64,
    /// The newest of what it has acknowledged, where it may forget.
    recent: VecDeque<Arc<Entry>>,
    recent_bytes: usize,
    /// Everything up to this seq has left the store.
    pub(super) gone: u64,
    /// The state that readers may see, while the log runs ahead of it.
    seen: Option<State>,
    /// Why a turn's events are refused: the newest turn that this happened to.
    refusal: Option<(u32, StoreError)>,
}

impl Stored {
    /// Of a session that follows; everything up to `gone` has left the store.
    fn new(session: Weak<Session>, keeper: &Arc<Keeper>, gone: u64) -> Self {
        Self {
            session,
            keeper: Arc::downgrade(keeper),
            fence: None,
            holds: 0,
            wrote: false,
            releasing: 0,
            pending: VecDeque::new(),
            queued: false,
            taken: 0,
            recent: VecDeque::new(),
            recent_bytes: 0,
            gone,
            seen: None,
            refusal: None,
        }
    }
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
}

impl Session {
    /// The session as whoever outlives this call holds it.
    fn shared(&self) -> Option<Arc<Self>> {
        self.inner.lock().stored.as_ref()?.session.upgrade()
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

    fn writes_or_will(&self) -> bool {
        self.inner.lock().stored.as_ref().is_some_and(|stored| stored.fence.is_some() || stored.queued)
    }

    /// Ends this object: readers end, and the hub makes another one for the history that there is, if there is one.
    pub(super) fn break_off(&self) {
        let Some(link) = &self.link else { return };
        link.broken.store(true, Ordering::Release);
        let mut inner = self.inner.lock();
        if inner.roll_back(&link.keeper).is_some()
            && let Some(stored) = &mut inner.stored
        {
            stored.releasing -= 1; // its history is gone, or another's
        }
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
}
