//! Opening a session that a store has, or beginning it there.
//!
//! Refuses to know who writes it: what is opened follows.
//!
//! Invariants: 1. a history that is longer than the limits is folded as it is read, and never held whole; 2. one with a hole is
//! said as [`StoreError::Corrupt`].

use std::sync::Arc;

use super::lines::{decode, is_covered_delta, lines};
use super::{Link, Stored};
use crate::clock::now_ms;
use crate::event::Payload;
use crate::session::keeper::{Asked, Keeper, Shared};
use crate::session::{Session, SessionError, hub};
use crate::store::{Standing, StoreError};

/// Events are read from the store in pages of about this size.
pub(super) const PAGE_BYTES: usize = 4 << 20;

impl Session {
    /// Opens the session `id` of a store; with `create`, begins it where there is none.
    pub(in crate::session) fn open_stored(
        id: &str,
        hub: &Arc<hub::Shared>,
        keeper: &Arc<Keeper>,
        create: bool,
        asked: &Asked<Result<Arc<Self>, SessionError>>,
    ) -> Result<Arc<Self>, SessionError> {
        let standing = match keeper.store.standing(id) {
            Err(StoreError::Unknown) if create => {
                match keeper.store.claim(id, &keeper.owner, &hub::random_word(8), keeper.options.lease) {
                    Ok(claim) => {
                        let _ = keeper.store.release(id, claim.fence);
                        Ok(claim.standing)
                    }
                    Err(StoreError::Held { .. }) => keeper.store.standing(id), // somebody was first
                    Err(error) => Err(error),
                }
            }
            standing => standing,
        };
        let standing = standing.map_err(|error| match error {
            StoreError::Unknown => SessionError::Unknown,
            error => SessionError::Store(error),
        })?;
        let session =
            Self::make(id, hub, &standing.epoch, |weak| (Link::new(keeper), Stored::new(weak.clone(), keeper, standing.trimmed)));
        session.load(keeper, &standing, asked).map_err(SessionError::Store)?;
        Ok(session)
    }

    /// Reads the history: what the limits would not keep straight into the base's fold, and of turns that have ended not even
    /// their deltas, which their final events cover; the rest into the log.
    fn load(
        &self,
        keeper: &Shared,
        standing: &Standing,
        asked: &Asked<Result<Arc<Self>, SessionError>>,
    ) -> Result<(), StoreError> {
        let mut inner = self.inner.lock(); // nobody else knows the session yet
        let (head, ended) = (standing.head, standing.ended);
        let keep_from = head.saturating_sub(inner.limits.max_events as u64);
        let mut after = 0;
        let mut context = inner.context.clone();
        loop {
            let tail = keeper.store.read(self.id(), after, PAGE_BYTES)?;
            if after > 0 {
                asked.moves(); // a long history: the first answer alone has the caller's patience
            }
            for line in lines(&tail) {
                let seq = after + 1;
                after = seq;
                if seq <= keep_from {
                    if seq > ended || !is_covered_delta(line) {
                        let event = decode(line, &mut context)?;
                        if let (Payload::TurnStart(start), turn) = (&event.payload, event.context.turn)
                            && let Some(id) = &start.client_id
                        {
                            inner.remember(id, start.input.as_ref(), turn, seq - 1);
                        }
                        inner.log.base.apply(&event);
                    }
                    if seq == keep_from {
                        (inner.log.head, inner.log.trimmed) = (seq, seq);
                        inner.log.evicted = seq;
                        inner.state = inner.log.base.clone();
                    }
                    continue;
                }
                let event = decode(line, &mut context)?;
                if event.seq != inner.log.head + 1 {
                    return Err(StoreError::Corrupt(format!("event {} follows event {}", event.seq, inner.log.head)));
                }
                inner.receive(event);
                if seq.is_multiple_of(1024) {
                    inner.now = now_ms();
                    inner.settle();
                }
            }
            if tail.blocks.is_empty() || tail.last >= tail.standing.head {
                break;
            }
        }
        inner.now = now_ms();
        inner.settle();
        inner.closed |= inner.state.ended;
        let head = inner.log.head;
        inner.minted = head; // every minted id has cost an event: none comes twice
        if let Some(stored) = &mut inner.stored {
            stored.taken = head;
        }
        inner.tell_hub();
        Ok(())
    }
}
