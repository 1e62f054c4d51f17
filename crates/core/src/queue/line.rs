//! Who waits at one side of a queue, in the order in which they came.

use std::collections::VecDeque;

/// A waiter's place in a line; none before it waits. It keeps its place until it is served or leaves.
#[derive(Debug, Default)]
pub struct Place(Option<u64>);

impl Place {
    /// Whether this is a place in a line.
    pub fn is_taken(&self) -> bool {
        self.0.is_some()
    }
}

#[derive(Debug)]
pub(super) struct Line<W> {
    /// Tickets rise along the line. A waiter that has been called, and has not looked yet, has no `W`.
    places: VecDeque<(u64, Option<W>)>,
    called: usize,
    next: u64,
}

impl<W> Line<W> {
    pub fn new() -> Self {
        Self { places: VecDeque::new(), called: 0, next: 0 }
    }

    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Puts `who` in line, or back to sleep where it stood. Returns who slept there before, to drop without the lock.
    pub fn wait(&mut self, place: &mut Place, who: W) -> Option<W> {
        let known = place.0.and_then(|ticket| self.find(ticket));
        let Some(at) = known else {
            self.next += 1;
            place.0 = Some(self.next);
            self.places.push_back((self.next, Some(who)));
            return None;
        };
        let old = self.places[at].1.replace(who);
        if old.is_none() {
            self.called -= 1;
        }
        old
    }

    /// The next to be called if `available` things are there: never fewer called than could be served.
    pub fn due(&mut self, available: usize) -> Option<(u64, W)> {
        if self.called >= available.min(self.places.len()) {
            return None;
        }
        let (ticket, asleep) = self.places.iter_mut().find(|(_, who)| who.is_some())?;
        self.called += 1;
        asleep.take().map(|who| (*ticket, who))
    }

    /// Takes `place` out of the line. Returns who slept there, to drop without the lock.
    pub fn leave(&mut self, place: &mut Place) -> Option<W> {
        place.0.take().and_then(|ticket| self.remove(ticket))
    }

    pub fn remove(&mut self, ticket: u64) -> Option<W> {
        let at = self.find(ticket)?;
        let (_, who) = self.places.remove(at)?;
        if who.is_none() {
            self.called -= 1;
        }
        who
    }

    pub fn asleep(&self) -> impl Iterator<Item = &W> {
        self.places.iter().filter_map(|(_, who)| who.as_ref())
    }

    fn find(&self, ticket: u64) -> Option<usize> {
        self.places.binary_search_by_key(&ticket, |(known, _)| *known).ok()
    }
}
