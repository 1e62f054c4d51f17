//! Events enter the log: one, or a chunk's worth under one lock.
//!
//! Knows the order of the steps (redaction before the lock, then which turn is meant, then admission, then the limits), and no
//! rule of what may enter: that is `admit`'s.

use super::{Session, SessionError};
use crate::clock::{now_ms, tick_ms};
use crate::event::{Class, Json, Payload};

impl Session {
    /// Appends one event; returns its seq, or the newest one where it adds nothing.
    ///
    /// `turn` `None` means the running turn, or, where none runs, the session itself (turn 0).
    pub fn emit(&self, turn: Option<u32>, payload: Payload, extra: Option<Json>) -> Result<u64, SessionError> {
        let Some(event) = self.redacted(payload, extra) else { return Ok(self.position().head) };
        self.admit_each(turn, [event])
    }

    /// Appends many events of one turn under one lock; stops at the first error. Returns how many were taken; none is left.
    pub fn emit_all(&self, turn: u32, payloads: &mut Vec<Payload>) -> Result<usize, SessionError> {
        if self.redact.is_some() {
            return self.emit_redacted(turn, payloads);
        }
        let _hold = self.hold(Some(turn)).inspect_err(|_| payloads.clear())?;
        // A delta's time is the last tick's: nobody sets a watch by it.
        let deltas = payloads.iter().all(|payload| payload.class() == Class::Delta);
        let (mut count, mut failed) = (0, None);
        self.change_at(if deltas { tick_ms() } else { now_ms() }, |inner| {
            failed = inner.enter(&self.id, Some(turn)).err();
            // From the back, and a delta is looked at where it lies: it is copied once, to where it stays. A copy on the
            // way is read in other widths than it was written, and waits for that (20 ns of a delta's 240).
            payloads.reverse();
            while let (None, Some(last)) = (&failed, payloads.last_mut()) {
                let delta = last.class() == Class::Delta;
                let taken = !delta || inner.takes_delta(turn, last);
                let payload = payloads.swap_remove(payloads.len() - 1);
                if !taken {
                    drop(payload);
                } else if delta {
                    inner.push_delta(turn, payload, None);
                } else if let Err(error) = inner.admit(&self.id, turn, payload, None) {
                    failed = Some(error);
                    continue;
                }
                count += 1;
            }
            inner.settle();
        });
        payloads.clear();
        failed.map_or(Ok(count), Err)
    }

    /// [`Self::emit_all`] where a hook must see them first, which it does before the lock.
    fn emit_redacted(&self, turn: u32, payloads: &mut Vec<Payload>) -> Result<usize, SessionError> {
        let kept: Vec<_> = payloads.drain(..).filter_map(|payload| self.redacted(payload, None)).collect();
        let count = kept.len();
        self.admit_each(Some(turn), kept).map(|_| count)
    }

    /// Appends what a hook has seen, under one lock; stops at the first error. Returns the last one's seq.
    fn admit_each(
        &self,
        turn: Option<u32>,
        events: impl IntoIterator<Item = (Payload, Option<Json>)>,
    ) -> Result<u64, SessionError> {
        let _hold = self.hold(turn)?;
        self.change(|inner| {
            let emitted = inner.enter(&self.id, turn).and_then(|turn| {
                let mut events = events.into_iter();
                events.try_fold(0, |_, (payload, extra)| inner.admit(&self.id, turn, payload, extra))
            });
            inner.settle();
            emitted
        })
    }
}
