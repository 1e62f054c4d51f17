//! The log of one session: a dense sequence of events, bounded by count, bytes and age.
//!
//! Invariants: 1. `seq` rises by one per append, from 1, and is never given twice; 2. what leaves the front is folded
//! into `base` first, so that `base` plus the entries is always the whole history (an open message in `base` may lack deltas
//! that its whole, in the entries, covers); 3. deltas whose final event is in the log leave before anything else; a reader
//! meets the hole they leave as a gap; 4. an entry never changes.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};

use super::{Limits, State};
use crate::event::{Class, Event};

/// One event in the log, and a place for its encoded form: encoded once, shared by all readers.
#[derive(Debug)]
pub struct Entry {
    /// The event.
    pub event: Event,
    /// Its native SSE frame, once an encoder has made it for several readers. A pointer and its state: with them an entry fills
    /// 128 bytes of the heap (160 with the frame's length beside them, and the page faults of a log a quarter more).
    pub frame: OnceLock<Box<Box<[u8]>>>,
}

impl Entry {
    /// Puts an event where it stays: from here on nothing copies it.
    #[inline]
    pub(crate) fn new(event: Event) -> Arc<Self> {
        Arc::new(Self { event, frame: OnceLock::new() })
    }
}

#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) entries: VecDeque<Arc<Entry>>,
    pub(crate) head: u64,
    /// Everything up to this seq has left the front.
    pub(crate) trimmed: u64,
    /// The fold of what has left the front.
    pub(crate) base: State,
    bytes: usize,
    /// Deltas in `entries` whose message or call is done: a compaction pass pays off once they are an eighth.
    spent: usize,
    pub(crate) evicted: u64,
    /// Events after this seq wait for a store: no reader sees them, and they stay.
    pub(crate) seen: u64,
}

impl Log {
    /// Nothing yet; the fold of what will have left weighs at most `max_state_bytes`, about.
    pub(crate) fn new(max_state_bytes: usize) -> Self {
        Self {
            entries: VecDeque::new(),
            head: 0,
            trimmed: 0,
            base: State::bounded(max_state_bytes),
            bytes: 0,
            spent: 0,
            evicted: 0,
            seen: u64::MAX,
        }
    }

    /// Returns the entry's seq.
    pub(crate) fn append(&mut self, entry: Arc<Entry>) -> u64 {
        debug_assert_eq!(entry.event.seq, self.head + 1, "seq is dense");
        self.head = entry.event.seq;
        self.bytes += entry.event.size() + size_of::<Entry>();
        self.entries.push_back(entry);
        self.head
    }

    /// Takes back what came after `seq`.
    pub(crate) fn truncate(&mut self, seq: u64) {
        while self.entries.back().is_some_and(|entry| entry.event.seq > seq) {
            let Some(entry) = self.entries.pop_back() else { break };
            self.bytes -= entry.event.size() + size_of::<Entry>();
        }
        self.head = seq;
    }

    /// `count` more deltas are covered by their final event.
    pub(crate) fn spend(&mut self, count: usize) {
        self.spent += count;
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Where the entry after `seq` stands.
    pub(crate) fn after(&self, seq: u64) -> usize {
        // Without compaction the log is dense and the index is a subtraction.
        let guess = usize::try_from(seq.saturating_sub(self.trimmed)).unwrap_or(usize::MAX);
        match self.entries.get(guess) {
            Some(entry) if entry.event.seq == seq + 1 => guess,
            _ => self.entries.partition_point(|entry| entry.event.seq <= seq),
        }
    }

    /// Drops the deltas that their final event covers, if there are any.
    pub(crate) fn compact(&mut self, is_spent: impl Fn(&Event) -> bool) {
        if std::mem::take(&mut self.spent) == 0 {
            return;
        }
        let before = self.entries.len();
        let mut freed = 0;
        let seen = self.seen;
        self.entries.retain(|entry| {
            let keep = entry.event.payload.class() != Class::Delta || entry.event.seq > seen || !is_spent(&entry.event);
            if !keep {
                freed += entry.event.size() + size_of::<Entry>();
            }
            keep
        });
        self.bytes -= freed;
        self.evicted += (before - self.entries.len()) as u64;
    }

    /// Makes the log fit its limits; `is_spent` tells deltas that their final event covers.
    pub(crate) fn evict(&mut self, limits: &Limits, now: u64, is_spent: impl Fn(&Event) -> bool) {
        let over = |log: &Self| log.entries.len() > limits.max_events || log.bytes > limits.max_bytes;
        if over(self) && self.spent > 0 && self.spent >= self.entries.len() / 8 {
            self.compact(is_spent);
        }
        let oldest = now.saturating_sub(limits.max_age_ms);
        while self.entries.len() > 1 && (over(self) || self.entries[0].event.time < oldest) {
            if self.entries[0].event.seq > self.seen {
                break;
            }
            let Some(entry) = self.entries.pop_front() else { break };
            self.base.apply(&entry.event);
            // A hole right behind the front has left with it.
            self.trimmed = self.entries.front().map_or(self.head, |next| next.event.seq - 1);
            self.bytes -= entry.event.size() + size_of::<Entry>();
            self.evicted += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Context, Payload};

    /// To the millisecond: what is exactly as old as the limit stays, one past it leaves.
    #[test]
    fn edge_53_exactly_at_the_age_an_event_stays_and_one_past_it_leaves() {
        let limits = Limits { max_age_ms: 100, ..Limits::default() };
        let mut log = Log::new(usize::MAX);
        assert!(log.entries.front().is_none(), "an empty log has no bounds");
        for (seq, time) in [(1, 1000), (2, 1050), (3, 1100)] {
            let (payload, _) = Payload::from_json("progress", r#"{"stage":"s"}"#).unwrap();
            log.append(Entry::new(Event { seq, time, context: Arc::new(Context::default()), payload, extra: None }));
        }
        log.evict(&limits, 1100, |_| false);
        assert_eq!((log.entries.len(), log.trimmed), (3, 0));
        log.evict(&limits, 1101, |_| false);
        assert_eq!((log.entries.len(), log.trimmed), (2, 1));
        log.evict(&limits, 9999, |_| false);
        assert_eq!((log.entries.len(), log.trimmed), (1, 2), "the newest stays, and with it the place where the log stands");
    }
}
