//! The lines of server-sent events that are no event's: LF alone, one space after each colon.

use std::io::Write as _;
use std::time::Duration;

/// Writes the comment by which a stream lives, and since when the turn has said nothing. No blank line: some clients take
/// one after an id for an empty event.
pub(super) fn write_heartbeat(out: &mut Vec<u8>, silent: Duration) {
    let _ = writeln!(out, ": heartbeat progress_age_s={:.1}", silent.as_secs_f64());
}

/// Writes how long a reader waits before it reconnects. Belongs before a frame, and becomes part of it.
pub(super) fn write_retry(out: &mut Vec<u8>, milliseconds: u64) {
    let _ = writeln!(out, "retry: {milliseconds}");
}
