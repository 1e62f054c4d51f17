//! A bounded queue of anything, with any number of waiters on both sides; it knows neither events nor Python.
//!
//! Owns: order, bound, what happens on full, the end, who is called when, the counts. Refuses to know how anybody waits: a
//! waiter is a [`Sleeper`], on an event loop, on a thread or in a model, and it looks again after each call.
//!
//! Invariants: 1. a call carries nothing: wake, then take, so a waiter that is cancelled loses nothing; 2. looking and lying
//! down happen under one lock; 3. at each side as many waiters are called as could be served, and a call that is not
//! answered (the waiter left, or its loop is closed) goes to the next; 4. waiters are called in the order in which they came,
//! and keep their places until they are served; 5. the end is a flag beside the items: no full queue can lose it;
//! 6. nothing of a caller's is dropped, and nobody is called, under the lock;
//! 7. `put = taken + dropped + merged + discarded + size`, always; 8. with gaps, what is handed out and what the gaps name is
//! every number from 1 to that of the last offer, once and in order, but for what was discarded.
//!
//! On full: see [`Overflow`]. On close: items are still taken, then [`Pop::End`]; offers give the item back. On cancel:
//! [`Queue::leave_put`] and [`Queue::leave_take`]; an item is taken by the one call that returns it, and by no wait.

mod line;
#[cfg(all(test, loom))]
mod models;
#[cfg(all(test, not(loom)))]
mod tests;

use std::collections::VecDeque;

use line::Line;
pub use line::Place;

use crate::sync::Mutex;

/// What happens to an offer when the queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overflow {
    /// The producer waits.
    Block,
    /// The oldest item goes.
    DropOldest,
    /// The offered item goes.
    DropNewest,
    /// Neighbours are joined; where none can be, the producer waits.
    Merge,
    /// The offer is refused.
    Fail,
}

/// Something that waits, and can be called once.
pub trait Sleeper {
    /// Calls it. False: it will never look (its loop is closed), so somebody else is to be called.
    fn wake(self) -> bool;
}

/// Items that may know how to become one, and how to say that some are missing.
pub trait Join: Sized {
    /// Takes `next` into itself, which follows it directly; false and unchanged where the two do not belong together.
    fn join(&mut self, next: &Self) -> bool;
    /// What stands in the place of the offers `first` to `last`, counted from 1, that an overflow dropped.
    fn gap(first: u64, last: u64) -> Self;
}

/// What became of an offer. What comes back is for the caller to drop.
#[derive(Debug, PartialEq, Eq)]
pub enum Offer<T> {
    /// It is in the queue.
    Queued,
    /// It is in the queue, for the price of the oldest item.
    Displaced(T),
    /// It is in the queue, and some items were joined; what is left of them comes back.
    Merged(Vec<T>),
    /// Dropped: the queue is full.
    Dropped(T),
    /// Not taken: the queue is full.
    Full(T),
    /// Not taken: the queue is closed.
    Closed(T),
}

/// What a look into the queue found.
#[derive(Debug, PartialEq, Eq)]
pub enum Pop<T> {
    /// One item.
    Item(T),
    /// Nothing now.
    Empty,
    /// Nothing any more.
    End,
}

/// Exact counts since the queue was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Offers that were not refused.
    pub put: u64,
    /// Items that were handed out.
    pub taken: u64,
    /// Items that an overflow dropped.
    pub dropped: u64,
    /// Items that became part of the one before.
    pub merged: u64,
    /// Items that were thrown away by a close or by [`Queue::clear`].
    pub discarded: u64,
    /// Offers that came back: full and `Fail` or nobody to wait, or closed.
    pub refused: u64,
    /// The most that were in the queue at a time.
    pub peak: usize,
    /// Gaps that were handed out, which count as no items.
    pub gaps: u64,
}

struct State<T, W> {
    items: VecDeque<T>,
    closed: bool,
    /// So many items from the front are known not to join their neighbours.
    settled: usize,
    takers: Line<W>,
    putters: Line<W>,
    counts: Counts,
    /// Runs of dropped offers that have yet to be told, by their first and last number.
    missing: VecDeque<(u64, u64)>,
    /// The number of whatever comes out next.
    next: u64,
}

/// See the module.
pub struct Queue<T, W> {
    capacity: usize,
    overflow: Overflow,
    /// Whether drops leave gaps.
    gaps: bool,
    state: Mutex<State<T, W>>,
}

#[derive(Clone, Copy)]
enum Side {
    Put,
    Take,
}

impl<T, W> State<T, W> {
    fn due(&mut self, side: Side, capacity: usize) -> Option<(u64, W)> {
        // At the end everybody has something to learn.
        let available = |there| if self.closed { usize::MAX } else { there };
        match side {
            Side::Take => self.takers.due(available(self.items.len() + self.missing.len())),
            Side::Put => self.putters.due(available(capacity.saturating_sub(self.items.len()))),
        }
    }

    fn line(&mut self, side: Side) -> &mut Line<W> {
        match side {
            Side::Take => &mut self.takers,
            Side::Put => &mut self.putters,
        }
    }

    fn append(&mut self, item: T) {
        self.items.push_back(item);
        self.counts.put += 1;
        self.counts.peak = self.counts.peak.max(self.items.len());
    }

    fn remove_first(&mut self) -> Option<T> {
        let item = self.items.pop_front()?;
        self.settled = self.settled.saturating_sub(1);
        self.next += 1;
        Some(item)
    }

    /// Notes that offer `number` was dropped.
    fn miss(&mut self, number: u64) {
        self.counts.dropped += 1;
        match self.missing.back_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => self.missing.push_back((number, number)),
        }
    }
}

impl<T: Join, W> State<T, W> {
    /// The gap that comes out next, if one does.
    fn take_gap(&mut self) -> Option<T> {
        let (first, last) = *self.missing.front().filter(|(first, _)| *first == self.next)?;
        self.missing.pop_front();
        self.next = last + 1;
        self.counts.gaps += 1;
        Some(T::gap(first, last))
    }

    /// Joins what can be joined. Each item is looked at once, however often the queue is full.
    fn compact(&mut self) -> Vec<T> {
        let mut left = Vec::new();
        let start = self.settled.min(self.items.len());
        let tail = self.items.split_off(start);
        for item in tail {
            if self.items.back_mut().is_some_and(|last| last.join(&item)) {
                left.push(item);
            } else {
                self.items.push_back(item);
            }
        }
        self.settled = self.items.len();
        self.counts.merged += left.len() as u64;
        left
    }
}

impl<T: Join, W: Sleeper> Queue<T, W> {
    /// An open, empty queue for `capacity` items, at least one.
    pub fn new(capacity: usize, overflow: Overflow) -> Self {
        let state = State {
            items: VecDeque::new(),
            closed: false,
            settled: 0,
            takers: Line::new(),
            putters: Line::new(),
            counts: Counts::default(),
            missing: VecDeque::new(),
            next: 1,
        };
        Self { capacity: capacity.max(1), overflow, gaps: false, state: Mutex::new(state) }
    }

    /// The same, where each run of dropped items leaves one gap in its place, which takes no room.
    #[must_use]
    pub fn with_gaps(mut self) -> Self {
        self.gaps = matches!(self.overflow, Overflow::DropOldest | Overflow::DropNewest);
        self
    }

    /// How many items it holds at most.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// What happens on full.
    pub fn overflow(&self) -> Overflow {
        self.overflow
    }

    /// Offers `item`; `place` is the caller's place among the producers that wait, if it has one.
    pub fn put(&self, item: T, place: &mut Place) -> Offer<T> {
        let mut state = self.state.lock();
        if state.closed {
            state.counts.refused += 1;
            let asleep = state.putters.leave(place);
            drop(state);
            drop(asleep);
            return Offer::Closed(item);
        }
        let offer = if state.items.len() < self.capacity {
            state.append(item);
            Offer::Queued
        } else {
            match self.overflow {
                Overflow::Block | Overflow::Fail => return Offer::Full(item),
                Overflow::DropNewest => {
                    state.counts.put += 1;
                    let takers = if self.gaps {
                        let number = state.counts.put;
                        state.miss(number);
                        state.due(Side::Take, self.capacity)
                    } else {
                        state.counts.dropped += 1;
                        None
                    };
                    drop(state);
                    self.call(Side::Take, takers);
                    return Offer::Dropped(item);
                }
                Overflow::DropOldest => {
                    // Of the numbers that stand before the oldest item all were dropped: they are one run with it.
                    let number = state.missing.front().map_or(state.next, |(_, last)| last + 1);
                    let next = state.next;
                    let oldest = state.remove_first();
                    if self.gaps {
                        state.next = next;
                        state.miss(number);
                    } else {
                        state.counts.dropped += 1;
                    }
                    state.append(item);
                    oldest.map_or(Offer::Queued, Offer::Displaced)
                }
                Overflow::Merge => {
                    if state.items.back_mut().is_some_and(|last| last.join(&item)) {
                        state.counts.put += 1;
                        state.counts.merged += 1;
                        Offer::Merged(vec![item])
                    } else {
                        let left = state.compact();
                        if left.is_empty() {
                            return Offer::Full(item);
                        }
                        state.append(item);
                        Offer::Merged(left)
                    }
                }
            }
        };
        let asleep = state.putters.leave(place);
        let takers = state.due(Side::Take, self.capacity);
        // Joining makes more room than one offer takes.
        let putters = state.due(Side::Put, self.capacity);
        drop(state);
        drop(asleep);
        self.call(Side::Take, takers);
        self.call(Side::Put, putters);
        offer
    }

    /// Takes the oldest item; `place` is the caller's place among the consumers that wait, if it has one.
    pub fn take(&self, place: &mut Place) -> Pop<T> {
        let mut state = self.state.lock();
        if let Some(gap) = state.take_gap() {
            let asleep = state.takers.leave(place);
            drop(state);
            drop(asleep);
            return Pop::Item(gap);
        }
        let Some(item) = state.remove_first() else {
            if !state.closed {
                return Pop::Empty;
            }
            let asleep = state.takers.leave(place);
            drop(state);
            drop(asleep);
            return Pop::End;
        };
        state.counts.taken += 1;
        let asleep = state.takers.leave(place);
        let putters = state.due(Side::Put, self.capacity);
        drop(state);
        drop(asleep);
        self.call(Side::Put, putters);
        Pop::Item(item)
    }

    /// Takes up to `max` items, at least one, into `out`, under one lock. True: there is nothing, and there will be nothing.
    pub fn take_many(&self, max: usize, out: &mut Vec<T>, place: &mut Place) -> bool {
        let mut state = self.state.lock();
        let before = out.len();
        while out.len() - before < max {
            if let Some(gap) = state.take_gap() {
                out.push(gap);
                continue;
            }
            // Up to the next gap in one go.
            let whole = state.missing.front().map_or(usize::MAX, |(first, _)| (*first - state.next) as usize);
            let count = (max - (out.len() - before)).min(state.items.len()).min(whole);
            if count == 0 {
                break;
            }
            let mut front = state.items.drain(..count);
            // Not `extend`, which asks for room before each item: 8 instructions an item so, 28 so far.
            out.resize_with(out.len() + count, || front.next().unwrap_or_else(|| unreachable!("counted above")));
            drop(front);
            state.settled = state.settled.saturating_sub(count);
            state.next += count as u64;
            state.counts.taken += count as u64;
        }
        let count = out.len() - before;
        if count == 0 && !state.closed {
            return false;
        }
        let asleep = state.takers.leave(place);
        if count == 0 {
            drop(state);
            drop(asleep);
            return true;
        }
        let putters = state.due(Side::Put, self.capacity);
        drop(state);
        drop(asleep);
        self.call(Side::Put, putters);
        false
    }

    /// Has `who` called when there is room. False: there already is, or the queue is closed; look again.
    pub fn wait_put(&self, place: &mut Place, who: W) -> bool {
        let mut state = self.state.lock();
        if state.closed || state.items.len() < self.capacity {
            return false;
        }
        let asleep = state.putters.wait(place, who);
        drop(state);
        drop(asleep);
        true
    }

    /// Has `who` called when there is an item or the end. False: there already is; look again.
    pub fn wait_take(&self, place: &mut Place, who: W) -> bool {
        let mut state = self.state.lock();
        if state.closed || !state.items.is_empty() || !state.missing.is_empty() {
            return false;
        }
        let asleep = state.takers.wait(place, who);
        drop(state);
        drop(asleep);
        true
    }

    /// A producer stops waiting. If it had been called, the next one is.
    pub fn leave_put(&self, place: &mut Place) {
        self.leave(Side::Put, place);
    }

    /// A consumer stops waiting. If it had been called, the next one is.
    pub fn leave_take(&self, place: &mut Place) {
        self.leave(Side::Take, place);
    }

    fn leave(&self, side: Side, place: &mut Place) {
        if !place.is_taken() {
            return;
        }
        let mut state = self.state.lock();
        let asleep = state.line(side).leave(place);
        let due = state.due(side, self.capacity);
        drop(state);
        drop(asleep);
        self.call(side, due);
    }

    /// Ends the queue. False if it had ended already.
    pub fn close(&self) -> bool {
        let mut state = self.state.lock();
        if std::mem::replace(&mut state.closed, true) {
            return false;
        }
        let takers = state.due(Side::Take, self.capacity);
        let putters = state.due(Side::Put, self.capacity);
        drop(state);
        self.call(Side::Take, takers);
        self.call(Side::Put, putters);
        true
    }

    /// Throws the items away, into the caller's hands.
    pub fn clear(&self) -> VecDeque<T> {
        let mut state = self.state.lock();
        let items = std::mem::take(&mut state.items);
        state.settled = 0;
        // Whoever throws the items away knows that they are gone: that is no gap.
        state.missing.clear();
        state.next = state.counts.put + 1;
        state.counts.discarded += items.len() as u64;
        let putters = state.due(Side::Put, self.capacity);
        drop(state);
        self.call(Side::Put, putters);
        items
    }

    /// Counts an offer that was given up because its producer may not wait.
    pub fn refuse(&self) {
        self.state.lock().counts.refused += 1;
    }

    /// Items, producers that wait, consumers that wait.
    pub fn sizes(&self) -> (usize, usize, usize) {
        let state = self.state.lock();
        (state.items.len(), state.putters.len(), state.takers.len())
    }

    /// Whether it has been closed; there may still be items.
    pub fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// See [`Counts`].
    pub fn counts(&self) -> Counts {
        self.state.lock().counts
    }

    /// Shows every item and every waiter, under the lock.
    pub fn visit<E>(&self, mut item: impl FnMut(&T) -> Result<(), E>, who: impl FnMut(&W) -> Result<(), E>) -> Result<(), E> {
        let state = self.state.lock();
        state.items.iter().try_for_each(&mut item)?;
        state.takers.asleep().chain(state.putters.asleep()).try_for_each(who)
    }

    /// Calls who is due, and who is due after that.
    fn call(&self, side: Side, mut due: Option<(u64, W)>) {
        while let Some((ticket, who)) = due {
            let alive = who.wake();
            let mut state = self.state.lock();
            let asleep = if alive { None } else { state.line(side).remove(ticket) };
            due = state.due(side, self.capacity);
            drop(state);
            drop(asleep);
        }
    }
}
