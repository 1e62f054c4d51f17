//! A running turn that says nothing: how long, and the warning that says so.
//!
//! Invariants: 1. only events of the log count as progress, so no heartbeat ever feeds this; 2. a stall is said once: the
//! warning itself is no progress, and the next one needs an event in between.

use std::time::Duration;

use super::Session;
use crate::clock::now_ms;
use crate::event::{Payload, Warning};

/// The code of the `warning` that a stall is.
pub const STALLED: &str = "stalled";

impl Session {
    /// How long the running turn has said nothing; none where no turn runs.
    pub fn progress_age(&self) -> Option<Duration> {
        let inner = self.inner.lock();
        let silent = now_ms().saturating_sub(inner.progressed);
        inner.state.running.then(|| Duration::from_millis(silent))
    }

    /// Logs a `warning` where the running turn has said nothing for `timeout_ms`; true when it did so now.
    pub fn check_stall(&self, timeout_ms: u64) -> bool {
        let over = |progressed: u64| now_ms().saturating_sub(progressed) >= timeout_ms;
        {
            let inner = self.inner.lock();
            if !inner.state.running || !inner.writes() || inner.stalled || !over(inner.progressed) {
                return false;
            }
        }
        self.change(|inner| {
            if !inner.state.running || !inner.writes() || inner.stalled || !over(inner.progressed) {
                return false;
            }
            let progressed = inner.progressed;
            #[allow(clippy::cast_precision_loss, reason = "below 2^53")]
            let silent = inner.now.saturating_sub(progressed) as f64 / 1000.0;
            let message = format!("no event for {silent:.1} s");
            let warning: Payload = Warning { code: STALLED.into(), message: message.into(), raw: None }.into();
            inner.push(warning, None, inner.state.turn);
            (inner.progressed, inner.stalled) = (progressed, true);
            inner.settle();
            true
        })
    }
}
