//! What has left a session's log and is still in its store: read a page at a time, by the hub's asking threads.
//!
//! Owns the pages that readers wait for. Knows no cursor and no client. Invariants: 1. nobody but such a thread waits for the
//! store, and it holds no session's lock while it does; 2. a page has at most [`PAGE_EVENTS`] events and about [`PAGE_BYTES`], and
//! readers at one place share it; 3. whoever asks is answered, with the store's error where there is no page; 4. a page is dense,
//! and never empty.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::task::Waker;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::keeper::{Keeper, Shared};
use super::log::Entry;
use super::stored::{decode, lines};
use super::waiters::{Ticket, Waiters};
use super::{Inner, Session};
use crate::store::StoreError;

/// The events of a page, at most: a millisecond or two of decoding.
pub const PAGE_EVENTS: usize = 1024;
/// Their JSON's bytes, about; one event is a page however large it is.
pub const PAGE_BYTES: usize = 256 << 10;
/// Pages that a hub keeps for whoever comes to the same place next.
const RECENT: usize = 16;
/// Threads of a hub that read pages at one time.
const AT_ONCE: usize = 2;
/// Between two tries to read a page.
const PAUSE: Duration = Duration::from_millis(50);
/// How long a store may be away until readers are told that they miss something.
const AWAY: Duration = Duration::from_secs(10);

/// A page that somebody reads or waits for.
#[derive(Debug)]
pub(crate) struct History {
    after: u64,
    until: u64,
    asked: Instant,
    answer: Mutex<Answer>,
}

#[derive(Debug, Default)]
struct Answer {
    page: Option<Result<Vec<Arc<Entry>>, StoreError>>,
    waiters: Waiters,
}

impl History {
    /// Has `waker` called when the page is there, unless it is: then false.
    pub(crate) fn park(&self, waker: &Waker, ticket: &mut Ticket) -> bool {
        let mut answer = self.answer.lock();
        if answer.page.is_some() {
            return false;
        }
        let replaced = answer.waiters.wait(ticket, waker);
        drop(answer);
        drop(replaced);
        true
    }

    /// Takes [`Self::park`] back.
    pub(crate) fn unpark(&self, ticket: &mut Ticket) {
        if ticket.is_taken() {
            let left = self.answer.lock().waiters.leave(ticket);
            drop(left);
        }
    }

    /// Copies up to `max` entries after `seq` into `out`, and no more once they weigh `max_bytes`; none where the page has been
    /// read. None while it is on its way.
    pub(crate) fn take(
        &self,
        seq: u64,
        max: usize,
        max_bytes: usize,
        out: &mut Vec<Arc<Entry>>,
    ) -> Option<Result<(), StoreError>> {
        let answer = self.answer.lock();
        let entries = match answer.page.as_ref()? {
            Ok(entries) => entries,
            Err(error) => return Some(Err(error.clone())),
        };
        let start = entries.partition_point(|entry| entry.event.seq <= seq);
        let mut weight = 0;
        for entry in entries[start..].iter().take(max) {
            out.push(entry.clone());
            weight += entry.event.size();
            if weight >= max_bytes {
                break;
            }
        }
        Some(Ok(()))
    }

    /// Whether it says what comes right after `seq`, or will.
    fn serves(&self, seq: u64) -> bool {
        match &self.answer.lock().page {
            None => self.after == seq,
            Some(Ok(entries)) => self.after <= seq && entries.last().is_some_and(|last| seq < last.event.seq),
            Some(Err(_)) => false,
        }
    }

    fn answer(&self, page: Result<Vec<Arc<Entry>>, StoreError>) {
        let mut answer = self.answer.lock();
        answer.page = Some(page);
        let waiters = answer.waiters.take();
        drop(answer);
        waiters.for_each(Waker::wake);
    }
}

/// The pages that a session's readers have.
#[derive(Debug, Default)]
pub(super) struct Pages(Mutex<Vec<Weak<History>>>);

/// The pages that a hub is asked for, and those that it read last.
#[derive(Default)]
pub(super) struct Desk {
    wanted: VecDeque<(Arc<Session>, Weak<History>)>,
    recent: VecDeque<Arc<History>>,
    /// Threads that read.
    reading: usize,
}

impl Inner {
    /// Where what comes right after `seq` is not in the log but in the store: up to which seq that is so.
    pub(super) fn stored_after(&self, seq: u64) -> Option<u64> {
        let stored = self.stored.as_ref()?;
        if seq < stored.gone || seq >= self.seen_head() {
            return None;
        }
        let next = self.log.entries.get(self.log.after(seq)).map_or(self.log.head + 1, |entry| entry.event.seq);
        (next > seq + 1).then(|| next - 1)
    }
}

impl Session {
    /// The page after `after`, of events up to `until`: here, or on its way.
    pub(crate) fn history(self: &Arc<Self>, after: u64, until: u64) -> Option<Arc<History>> {
        let link = self.link.as_ref()?;
        let mut pages = link.pages.0.lock();
        pages.retain(|page| page.strong_count() > 0);
        if let Some(known) = pages.iter().filter_map(Weak::upgrade).find(|page| page.serves(after)) {
            return Some(known);
        }
        let page = Arc::new(History { after, until, asked: Instant::now(), answer: Mutex::default() });
        pages.push(Arc::downgrade(&page));
        drop(pages);
        link.keeper.want(self.clone(), &page);
        Some(page)
    }

    fn read_history(&self, keeper: &Shared, page: &History) -> Result<Vec<Arc<Entry>>, StoreError> {
        let tail = keeper.store.read(self.id(), page.after, PAGE_BYTES)?;
        if tail.standing.epoch != **self.epoch() {
            return Err(StoreError::Unknown);
        }
        if tail.standing.trimmed > page.after {
            if let Some(stored) = &mut self.inner.lock().stored {
                stored.gone = tail.standing.trimmed;
            }
            return Err(StoreError::Unknown);
        }
        let corrupt = |seq: u64| StoreError::Corrupt(format!("event {seq} is not where it should be"));
        let count = lines(&tail).count() as u64;
        let mut seq = tail.last.checked_sub(count).ok_or_else(|| corrupt(tail.last))?;
        let mut context = Arc::default();
        let (mut entries, mut bytes) = (Vec::new(), 0);
        for line in lines(&tail) {
            seq += 1;
            if seq <= page.after {
                continue;
            }
            if seq > page.until || entries.len() == PAGE_EVENTS || bytes >= PAGE_BYTES {
                break;
            }
            let event = decode(line, &mut context)?;
            if event.seq != seq || (entries.is_empty() && seq != page.after + 1) {
                return Err(corrupt(seq));
            }
            bytes += line.len();
            entries.push(Entry::new(event));
        }
        if entries.is_empty() {
            // At level memory an event may leave the log before it is written.
            return Err(StoreError::Unavailable(format!("event {} has not been written", page.after + 1)));
        }
        Ok(entries)
    }
}

impl Keeper {
    /// Has a page read, by the threads that ask; no more than [`AT_ONCE`] of them at a time, so that claims get their turn.
    fn want(self: &Arc<Self>, session: Arc<Session>, page: &Arc<History>) {
        let mut desk = self.desk.lock();
        desk.wanted.push_back((session, Arc::downgrade(page)));
        if desk.reading < AT_ONCE {
            desk.reading += 1;
            drop(desk);
            self.read_later();
        }
    }

    fn read_later(self: &Arc<Self>) {
        let keeper = self.clone();
        self.later(move || {
            if keeper.read_one() {
                keeper.read_later();
            }
        });
    }

    /// Reads the next page that is wanted; false where there is none, and this reads no more.
    fn read_one(&self) -> bool {
        let mut desk = self.desk.lock();
        let Some((session, page)) = desk.wanted.pop_front() else {
            desk.reading -= 1;
            return false;
        };
        drop(desk);
        // A page whose readers have left is nobody's.
        let Some(page) = page.upgrade() else { return true };
        let mut read = session.read_history(self, &page);
        if page.asked.elapsed() < AWAY && read.as_ref().is_err_and(StoreError::is_transient) {
            // The store is away, or has yet to be written to.
            session.flush();
            std::thread::sleep(PAUSE);
            read = session.read_history(self, &page);
            if read.as_ref().is_err_and(StoreError::is_transient) {
                self.desk.lock().wanted.push_back((session, Arc::downgrade(&page)));
                return true;
            }
        }
        page.answer(read);
        let mut desk = self.desk.lock();
        desk.recent.push_back(page);
        let oldest = if desk.recent.len() > RECENT { desk.recent.pop_front() } else { None };
        drop(desk);
        drop(oldest);
        true
    }
}
