//! Why a session, or its hub, refuses.

use std::sync::Arc;

use crate::event::PayloadError;
use crate::store::StoreError;

/// Why a session refuses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// The session takes no more events.
    #[error("session {0} is closed")]
    Closed(Arc<str>),
    /// A turn is running; a session runs one at a time.
    #[error("session {session}: turn {turn} is running")]
    TurnActive {
        /// The session.
        session: Arc<str>,
        /// The turn.
        turn: u32,
    },
    /// The turn has its completion.
    #[error("session {session}: turn {turn} has ended")]
    TurnEnded {
        /// The session.
        session: Arc<str>,
        /// The turn.
        turn: u32,
    },
    /// The turn has not started.
    #[error("session {session}: there is no turn {turn}")]
    NoTurn {
        /// The session.
        session: Arc<str>,
        /// The turn.
        turn: u32,
    },
    /// The same client id came before with another input.
    #[error("session {session}: client_id came before with another input, for turn {turn}")]
    Conflict {
        /// The session.
        session: Arc<str>,
        /// The turn it started.
        turn: u32,
    },
    /// No session of that id.
    #[error("unknown session")]
    Unknown,
    /// The hub holds as many sessions as it may, and all are in use.
    #[error("the hub holds {0} sessions, its limit, and all are in use")]
    Full(usize),
    /// The payload is not of the vocabulary.
    #[error(transparent)]
    Payload(#[from] PayloadError),
    /// Another process writes the session.
    #[error("another process writes this session")]
    NotWriter {
        /// How long its lease still runs, unless it renews it.
        remaining_ms: u64,
    },
    /// The id cannot be a key in a store.
    #[error("session id: expected 1 to 128 of A-Z a-z 0-9 . _ ~ - : @")]
    BadId,
    /// The store refuses.
    #[error(transparent)]
    Store(StoreError),
}
