//! What a session says of itself: the status page, the last result, exact counts.

use std::sync::atomic::Ordering;

use super::{Session, State};
use crate::clock::now_ms;
use crate::event::json::{member, write_f64, write_str, write_u64};
use crate::event::{Field, Json};

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
        let cursor = |seq: u64| Json::string(&format!("{}.{seq}", self.epoch));
        let earliest = inner.earliest();
        let failed = state.outcome.as_ref().filter(|_| !state.running);
        let error = failed.and_then(|outcome| {
            outcome.completion.to_value().get("error").filter(|error| !error.is_null()).map(Json::from_value)
        });
        Json::object(|out| {
            let mut say = |name: &str, value: &dyn Fn(&mut Vec<u8>)| member(out, name, value);
            say("session_id", &|out| self.id.write(out));
            say("state", &|out| write_str(out, state.word()));
            say("turn", &|out| write_u64(out, state.turn.into()));
            say("epoch", &|out| self.epoch.write(out));
            say("head", &|out| write_u64(out, head));
            say("earliest", &|out| earliest.write(out));
            say("cursor", &|out| cursor(head).write(out));
            say("earliest_cursor", &|out| earliest.map(|earliest| cursor(inner.log.trimmed.min(earliest - 1))).write(out));
            say("progress", &|out| state.progress_json(now_ms()).write(out));
            if state.running {
                #[allow(clippy::cast_precision_loss, reason = "below 2^53")]
                let age = now_ms().saturating_sub(inner.progressed) as f64 / 1000.0;
                say("progress_age_s", &|out| write_f64(out, age));
                say("stalled", &|out| inner.stalled.write(out));
            }
            say("usage", &|out| state.usage_json().write(out));
            say("error", &|out| error.clone().or_else(|| state.error.as_ref().map(|(_, error)| error.clone())).write(out));
            say("readers", &|out| write_u64(out, readers as u64));
            say("subscriber_failures", &|out| write_u64(out, inner.statistics.subscriber_failures));
            say("started", &|out| state.started.write(out));
            say("updated", &|out| state.updated.write(out));
            inner.notes.iter().for_each(|(name, value)| say(name, &|out| value.write(out)));
        })
    }
}
