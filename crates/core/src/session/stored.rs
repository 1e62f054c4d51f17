//! A session whose log lives in a store: the writer's side, the follower's side, and the change between the two.
//!
//! A session writes while it holds a claim: its log runs ahead of the store, and readers see it up to what the store has
//! acknowledged ([`super::log::Log::seen`]). Otherwise it follows: its log is what the store has. A claim is taken by whoever
//! starts a turn or emits, and given back when nothing runs and everything is stored.
//!
//! Invariants: 1. above [`Durability::Memory`], nobody sees an event that the store has not taken; 2. what the store refuses for
//! good leaves the log again, its seqs are given anew, and the turn's next emit is refused with the reason; 3. a turn whose
//! writer is gone is ended as failed, `producer_lost`, by whoever claims after it, in the claim: once; 4. events are decoded and
//! encoded, and the store is called, without the session's lock; 5. a store that has lost what it acknowledged gets it again from
//! whoever wrote it, as far as its log and its recent tail reach; a log whose end is not in the store's history is broken off.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::history::Pages;
use super::keeper::{Asked, BATCH_BYTES, BATCH_EVENTS, Keeper, Shared, Slot, patience, too_late};
use super::stall::STALLED;
use super::{Entry, Inner, Session, SessionError, State, hub};
use crate::clock::now_ms;
use crate::event::{Class, Context, Event, Payload};
use crate::store::{Append, Durability, Standing, StoreError, Tail};

/// Events are read from the store in pages of about this size.
const PAGE_BYTES: usize = 4 << 20;
/// Acknowledged events that are kept for a store that loses them again, also where the log has let them go.
const RECENT_EVENTS: usize = 4096;
/// … as long as they weigh no more, about,
const RECENT_BYTES: usize = 1 << 20;
/// … and for so long, in milliseconds: a replica lags by less.
const RECENT_MS: u64 = 60_000;
/// A claim that nothing runs under is given back by its holder's next commit: for so long it is waited for.
const GIVEN_BACK: Duration = Duration::from_millis(200);
/// A claim whose caller has left before it came is kept for so long, in milliseconds: the caller may come back.
const KEPT_MS: u64 = 1000;

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
    session: std::sync::Weak<Session>,
    keeper: std::sync::Weak<Keeper>,
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

/// A block on its way.
pub(super) struct Batch {
    fence: u64,
    first: u64,
    last: u64,
    ended: Option<u64>,
    data: Vec<u8>,
}

impl Batch {
    /// Of neighbours, at least one.
    fn of(fence: u64, entries: &[Arc<Entry>]) -> Self {
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

    pub(super) fn append<'a>(&'a self, session: &'a str) -> Append<'a> {
        Append { session, fence: self.fence, first: self.first, last: self.last, ended: self.ended, data: &self.data }
    }
}

/// Keeps a claim from being given back between a check and the change that relies on it.
pub(super) struct Hold<'a>(Option<&'a Session>);

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
        let fence = stored.fence.take();
        stored.releasing += usize::from(fence.is_some());
        fence
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
        if let Some(stored) = &mut self.stored {
            stored.wrote = false;
        }
    }

    /// Why the events of this turn are refused, if they are.
    pub(super) fn refusal_of(&self, turn: u32) -> Option<&StoreError> {
        let (refused, error) = self.stored.as_ref()?.refusal.as_ref()?;
        (*refused == turn).then_some(error)
    }

    /// A turn that starts may have the number of one whose start was refused.
    pub(super) fn forget_refusal(&mut self) {
        if let Some(stored) = &mut self.stored {
            stored.refusal = None;
        }
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
        let fence = stored.fence.take();
        stored.releasing += usize::from(fence.is_some());
        fence
    }

    /// The store has gone back to `head`: what it lost waits once more. False where it is not there any more.
    fn rewind(&mut self, keeper: &Shared, head: u64) -> bool {
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
    fn line(&self, seq: u64) -> Option<Vec<u8>> {
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

impl Stored {
    /// Keeps what the store has acknowledged, for the case that it forgets.
    fn keep_recent(&mut self, entry: Arc<Entry>) {
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

impl Session {
    /// Opens the session `id` of a store; with `create`, begins it where there is none.
    pub(super) fn open_stored(
        id: &str,
        hub: &Arc<hub::Shared>,
        keeper: &Arc<Keeper>,
        create: bool,
        asked: &Asked<Result<Arc<Self>, SessionError>>,
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
                wrote: false,
                releasing: 0,
                pending: VecDeque::new(),
                queued: false,
                taken: 0,
                recent: VecDeque::new(),
                recent_bytes: 0,
                gone: standing.trimmed,
                seen: None,
                refusal: None,
            };
            let link = Link {
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
            };
            (link, stored)
        });
        session.load(keeper, &standing, asked).map_err(SessionError::Store)?;
        Ok(session)
    }

    /// Reads the history: what the limits would not keep straight into the base's fold, and of turns that have ended not even
    /// their deltas, which their final events cover; the rest into the log.
    fn load(
        &self,
        keeper: &Shared,
        standing: &Standing,
        asked: &Asked<Result<Arc<Self>, SessionError>>,
    ) -> Result<(), StoreError> {
        let mut inner = self.inner.lock(); // nobody else knows the session yet
        let (head, ended) = (standing.head, standing.ended);
        let keep_from = head.saturating_sub(inner.limits.max_events as u64);
        let mut after = 0;
        let mut context = inner.context.clone();
        loop {
            let tail = keeper.store.read(self.id(), after, PAGE_BYTES)?;
            if after > 0 {
                asked.moves(); // a long history: the first answer alone has the caller's patience
            }
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

    /// The session as whoever outlives this call holds it.
    fn shared(&self) -> Option<Arc<Self>> {
        self.inner.lock().stored.as_ref()?.session.upgrade()
    }

    /// [`Self::follow`] for a caller that waits for it no longer than `deadline`.
    pub(super) fn follow_until(&self, deadline: Instant) -> Result<(), SessionError> {
        let (Some(link), false) = (&self.link, self.writes_or_will()) else { return Ok(()) };
        let Some(session) = self.shared() else { return Ok(()) };
        link.keeper.share(&link.following, deadline, move |_| session.follow()).unwrap_or_else(|| Err(too_late()))?;
        self.flush_until(deadline); // whoever looked it up finds a lost turn ended
        Ok(())
    }

    fn writes_or_will(&self) -> bool {
        self.inner.lock().stored.as_ref().is_some_and(|stored| stored.fence.is_some() || stored.queued)
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
    fn catch_up(&self, keeper: &Shared) -> Result<Standing, StoreError> {
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

    /// Makes this process the writer, where it is not, and keeps it so until the hold is dropped. `turn`: the one that is meant.
    #[inline]
    pub(super) fn hold(&self, turn: Option<u32>) -> Result<Hold<'_>, SessionError> {
        self.link.as_ref().map_or(Ok(Hold(None)), |link| self.hold_stored(link, turn, None))
    }

    /// The same, for a caller that has waited already.
    pub(super) fn hold_until(&self, deadline: Instant) -> Result<Hold<'_>, SessionError> {
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

    /// Takes the claim, and ends what its last holder left open. Calls the store.
    fn claim(&self, link: &Link) -> Result<(), SessionError> {
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

    /// Stores the log anew, as far as it is whole.
    fn bring_back(&self, keeper: &Shared, fence: u64) {
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

    /// Whether the log goes on from the store's event `head`: whether that is ours too.
    fn extends(&self, keeper: &Shared, head: u64) -> Result<bool, StoreError> {
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

    /// Why the events of this turn are refused, if they are.
    pub(super) fn refusal_of(&self, turn: u32) -> Option<StoreError> {
        self.inner.lock().refusal_of(turn).cloned()
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

    /// Takes the fence of a claim that nothing needs any more.
    fn give_back(&self) -> Option<u64> {
        self.inner.lock().give_back()
    }

    /// Ends a claim that [`Inner::give_back`] took. Calls the store.
    fn release(&self, fence: u64) {
        let Some(link) = &self.link else { return };
        let _ = link.keeper.store.release(self.id(), fence); // what is lost here ends with the lease
        if let Some(stored) = &mut self.inner.lock().stored {
            stored.releasing -= 1;
        }
        link.keeper.tell_waiting();
    }

    /// Gives the claim back where nothing needs it. Calls the store.
    fn settle_claim(&self) {
        if let Some(fence) = self.give_back() {
            self.release(fence);
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
        if entries.is_empty() { None } else { Some(Batch::of(fence, &entries)) }
    }

    /// The store has answered.
    pub(super) fn answered(&self, keeper: &Shared, batch: &Batch, answer: Result<u64, StoreError>) {
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

    fn claimed_after(&self, fence: u64) -> bool {
        self.inner.lock().stored.as_ref().is_some_and(|stored| stored.fence.is_some_and(|newest| newest > fence))
    }

    /// Readers have seen what the store has lost, and nobody has it any more: what is left is another life.
    fn lose(&self, keeper: &Shared) {
        let fence = self.inner.lock().stored.as_ref().and_then(|stored| stored.fence);
        if let Some(fence) = fence {
            let _ = keeper.store.rename(self.id(), fence, &hub::random_word(8));
            let _ = keeper.store.release(self.id(), fence);
        }
        self.break_off();
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

    /// The store has come back without the claim, empty or not: this process takes it anew, if nobody else wrote since. Then the
    /// history goes on under its epoch, from where the store stands.
    fn claim_again(&self, keeper: &Shared) -> Result<u64, StoreError> {
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

    /// The store will not take what came under the claim `fence`: what was not stored has not happened, and the turn's work is
    /// told to stop.
    fn refuse(&self, keeper: &Shared, fence: u64, error: &StoreError) {
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

    /// The keeping thread's look: renews the writer's lease, hears of cancels, follows other writers.
    /// `all`: the store may be another than it was.
    pub(super) fn tend(&self, keeper: &Shared, timer: bool, all: bool) {
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

    /// The store knows nothing of the claim: as when an append hears of it.
    fn go_on(&self, keeper: &Shared, fence: u64) {
        match self.claim_again(keeper) {
            Err(StoreError::NotNext { head }) if self.inner.lock().rewind(keeper, head) => self.queue_again(keeper),
            Err(StoreError::NotNext { .. }) => self.lose(keeper),
            Err(error) if error.is_transient() => {} // the next look tries again
            Err(error) => self.refuse(keeper, fence, &error),
            Ok(_) => {}
        }
    }

    /// Lets go of what a replica has had time to hear of.
    fn forget_recent(&self) {
        let mut inner = self.inner.lock();
        let Some(stored) = &mut inner.stored else { return };
        let oldest = if stored.recent.is_empty() { 0 } else { now_ms() - RECENT_MS };
        while stored.recent.front().is_some_and(|entry| entry.event.time < oldest) {
            stored.drop_recent();
        }
    }

    /// Asks whoever writes this session to cancel its turn: the answer is whether a turn runs there. A store that is away is
    /// asked again.
    pub(super) fn cancel_elsewhere(&self, reason: &str) -> Option<Arc<Asked<bool>>> {
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

    /// Waits until the store has what is logged now, at most [`super::PATIENCE`]: true if it has. At once for a session in
    /// memory.
    pub fn flush(&self) -> bool {
        self.link.is_none() || self.flush_until(patience())
    }

    /// The same, until `deadline`.
    pub(super) fn flush_until(&self, deadline: Instant) -> bool {
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

/// A claim that was refused.
fn refused(error: StoreError) -> SessionError {
    match error {
        StoreError::Held { remaining_ms } => SessionError::NotWriter { remaining_ms },
        error => SessionError::Store(error),
    }
}

pub(super) fn lines(tail: &Tail) -> impl Iterator<Item = &[u8]> {
    tail.blocks.iter().flat_map(|block| block.split(|byte| *byte == b'\n')).filter(|line| !line.is_empty())
}

/// Whether a store's line says what ours does, however its writer's version put it.
fn same(ours: &[u8], theirs: &[u8]) -> bool {
    let read = |line: &[u8]| decode(line, &mut Arc::default()).map(|event| event.to_json());
    ours == theirs || matches!((read(ours), read(theirs)), (Ok(ours), Ok(theirs)) if ours == theirs)
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
pub(super) fn decode(line: &[u8], context: &mut Arc<Context>) -> Result<Event, StoreError> {
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
