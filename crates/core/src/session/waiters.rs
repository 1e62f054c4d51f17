//! Who waits for a session, by ticket.
//!
//! Invariants: 1. a ticket is registered from `wait` until `leave` or `take`, once, however often it is renewed; 2. the waker
//! of the last `wait` counts; 3. what is replaced or removed comes back: a waker is dropped, or called, without the lock.

use std::collections::VecDeque;
use std::task::Waker;

/// A waiter's own, kept between its calls.
#[derive(Debug, Default)]
pub struct Ticket(u64);

impl Ticket {
    /// Whether it has ever been registered, and not left since.
    pub fn is_taken(&self) -> bool {
        self.0 != 0
    }
}

#[derive(Debug, Default)]
pub(super) struct Waiters {
    /// Tickets rise. A deque: those who leave in the order in which they came, or in the other, cost no move.
    asleep: VecDeque<(u64, Waker)>,
    sold: u64,
}

impl Waiters {
    pub(super) fn len(&self) -> usize {
        self.asleep.len()
    }

    /// Registers `waker`. Returns the one that it replaces.
    pub(super) fn wait(&mut self, ticket: &mut Ticket, waker: &Waker) -> Option<Waker> {
        let Some(at) = self.find(ticket) else {
            self.sold += 1;
            ticket.0 = self.sold;
            self.asleep.push_back((self.sold, waker.clone()));
            return None;
        };
        let known = &mut self.asleep[at].1;
        (!known.will_wake(waker)).then(|| std::mem::replace(known, waker.clone()))
    }

    pub(super) fn leave(&mut self, ticket: &mut Ticket) -> Option<Waker> {
        let at = self.find(&std::mem::take(ticket))?;
        self.asleep.remove(at).map(|(_, waker)| waker)
    }

    /// Everybody, to be called; those who wait again register anew.
    pub(super) fn take(&mut self) -> impl Iterator<Item = Waker> + use<> {
        std::mem::take(&mut self.asleep).into_iter().map(|(_, waker)| waker)
    }

    fn find(&self, ticket: &Ticket) -> Option<usize> {
        self.asleep.binary_search_by_key(&ticket.0, |(known, _)| *known).ok()
    }
}
