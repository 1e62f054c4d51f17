//! How much is kept: by a session, and by all sessions of a hub.

/// How much a session keeps, and how much all sessions of a hub keep together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Events in the log.
    pub max_events: usize,
    /// Bytes in the log, about.
    pub max_bytes: usize,
    /// Age of an event, in milliseconds; also how long a finished session is kept by its hub.
    pub max_age_ms: u64,
    /// Bytes of one message's text, and of its reasoning and its refusal; what is beyond is cut, and said so.
    pub max_message_bytes: usize,
    /// Bytes of a session's folded state, about: its messages, calls, citations and files. What is open and the newest answer
    /// stay; of the rest the oldest goes first, and is counted.
    pub max_state_bytes: usize,
    /// Sessions in a hub.
    pub max_sessions: usize,
    /// Events in all logs of a hub.
    pub hub_max_events: usize,
    /// Bytes in all logs of a hub, about.
    pub hub_max_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_events: 100_000,
            max_bytes: 64 << 20,
            max_age_ms: 3_600_000,
            max_message_bytes: 16 << 20,
            max_state_bytes: 32 << 20,
            max_sessions: 100_000,
            hub_max_events: 10_000_000,
            hub_max_bytes: 1 << 30,
        }
    }
}
