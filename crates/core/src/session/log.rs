//! The log of one session: a dense sequence of events, bounded by count, bytes and age.
//!
//! Invariants: 1. `seq` rises by one per append, from 1, and is never given twice; 2. what leaves the front is folded
//! into `base` first, so that `base` plus the entries is always the whole history (an open message in `base` may lack deltas
//! that its whole, in the entries, covers); 3. deltas whose final event is in the log leave before anything else; a reader
//! meets the hole they leave as a gap; 4. an entry never changes.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use super::{Limits, State};
use crate::event::{Class, Event};

/// One event in the log, and a place for its encoded form: encoded once, shared by all readers.
#[derive(Debug)]
pub struct Entry {
    /// The event.
    pub event: Event,
    /// Its native SSE frame, once an encoder has made it.
    pub frame: OnceLock<Bytes>,
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
    pub(crate) fn new() -> Self {
        Self {
            entries: VecDeque::new(),
            head: 0,
            trimmed: 0,
            base: State::default(),
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

    /// Makes the log fit its limits; `is_spent` tells deltas that their final event covers.
    pub(crate) fn evict(&mut self, limits: &Limits, now: u64, is_spent: impl Fn(&Event) -> bool) {
        let over = |log: &Self| log.entries.len() > limits.max_events || log.bytes > limits.max_bytes;
        if over(self) && self.spent > 0 && self.spent >= self.entries.len() / 8 {
            self.spent = 0;
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
