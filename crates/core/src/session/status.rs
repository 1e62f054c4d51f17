//! What a session says of itself: the status page, the last result, exact counts.

use std::sync::atomic::Ordering;

use super::state::{key, object};
use super::{Session, State};
use crate::clock::now_ms;
use crate::event::Json;

/// Exact counts of what a session did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Events logged.
    pub appended: u64,
    /// Second copies that added nothing.
    pub duplicates: u64,
    /// Deltas that came after their final event.
    pub late: u64,
    /// Emits refused with an error.
    pub refused: u64,
    /// Messages cut at their limit.
    pub capped: u64,
    /// Events on which the redaction hook failed.
    pub redaction_failures: u64,
    /// Events that have left the log.
    pub evicted: u64,
    /// Events in the log.
    pub retained: u64,
    /// Bytes in the log, about.
    pub bytes: u64,
    /// Readers open now.
    pub readers: u64,
    /// Calls of subscribers that raised.
    pub subscriber_failures: u64,
}

impl Session {
    /// Exact counts.
    pub fn statistics(&self) -> Statistics {
        let inner = self.inner.lock();
        Statistics {
            appended: inner.log.head,
            evicted: inner.log.evicted,
            retained: inner.log.entries.len() as u64,
            bytes: inner.log.bytes() as u64,
            readers: self.readers() as u64,
            redaction_failures: self.redaction_failures.load(Ordering::Relaxed),
            ..inner.statistics
        }
    }

    /// Readers and producers that are registered to be called.
    pub fn waiting(&self) -> (usize, usize) {
        let inner = self.inner.lock();
        (inner.waiters.len(), inner.pace_waiters.len())
    }

    /// Counts a call of a subscriber that raised: the running turn's completion says how many there were.
    pub fn count_failure(&self) {
        self.inner.lock().statistics.subscriber_failures += 1;
    }

    /// Puts `value` on the status page under `name`, in place of what stood there: what is known of a run beside its events.
    pub fn note(&self, name: &str, value: Json) {
        let notes = &mut self.inner.lock().notes;
        match notes.iter_mut().find(|(known, _)| **known == *name) {
            Some((_, old)) => *old = value,
            None => notes.push((name.into(), value)),
        }
    }

    /// The last turn's completion; none while a turn runs or before the first has ended.
    pub fn result(&self) -> Option<Json> {
        self.see(|state| if state.running { None } else { state.outcome.as_ref().map(|outcome| outcome.completion.clone()) })
    }

    /// The session's state in one word.
    pub fn state_word(&self) -> &'static str {
        self.see(State::word)
    }

    /// The status page, as JSON.
    pub fn status_json(&self) -> Json {
        let readers = self.readers();
        let inner = self.inner.lock();
        let (state, head) = (inner.public(), inner.seen_head());
        let mut out = Vec::new();
        let text = |out: &mut Vec<u8>, name, value: &str| {
            key(out, name);
            crate::event::json::write_str(out, value);
        };
        let number = |out: &mut Vec<u8>, name, value: Option<u64>| {
            key(out, name);
            crate::event::Field::write(&value, out);
        };
        let json = |out: &mut Vec<u8>, name, value: Option<Json>| {
            key(out, name);
            crate::event::Field::write(&value, out);
        };
        text(&mut out, "session_id", &self.id);
        text(&mut out, "state", state.word());
        number(&mut out, "turn", Some(state.turn.into()));
        text(&mut out, "epoch", &self.epoch);
        number(&mut out, "head", Some(head));
        number(&mut out, "earliest", inner.earliest());
        text(&mut out, "cursor", &format!("{}.{}", self.epoch, head));
        let earliest = inner.earliest().map(|earliest| format!("{}.{}", self.epoch, inner.log.trimmed.min(earliest - 1)));
        json(&mut out, "earliest_cursor", earliest.map(|cursor| Json::string(&cursor)));
        json(&mut out, "progress", Some(state.progress_json(now_ms())));
        if state.running {
            key(&mut out, "progress_age_s");
            #[allow(clippy::cast_precision_loss, reason = "below 2^53")]
            crate::event::json::write_f64(&mut out, now_ms().saturating_sub(inner.progressed) as f64 / 1000.0);
            key(&mut out, "stalled");
            crate::event::Field::write(&inner.stalled, &mut out);
        }
        json(&mut out, "usage", state.usage_json());
        let failed = state.outcome.as_ref().filter(|_| !state.running);
        let error = failed.and_then(|outcome| {
            outcome.completion.to_value().get("error").filter(|error| !error.is_null()).map(Json::from_value)
        });
        json(&mut out, "error", error.or_else(|| state.error.as_ref().map(|(_, error)| error.clone())));
        number(&mut out, "readers", Some(readers as u64));
        number(&mut out, "subscriber_failures", Some(inner.statistics.subscriber_failures));
        number(&mut out, "started", state.started);
        number(&mut out, "updated", state.updated);
        for (name, value) in &inner.notes {
            json(&mut out, name, Some(value.clone()));
        }
        object(out)
    }
}
