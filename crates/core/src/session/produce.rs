//! Batches of producers in other processes: each event enters once, whatever a transport repeats, and a gap is told.

use super::{Session, SessionError};
use crate::batch::Batch;

/// Producers that a session remembers: a repeat of an older one's batch could no longer be told from news.
const PRODUCERS: usize = 1024;

/// How far a producer has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Producer {
    name: Box<str>,
    /// The number of the event that comes next.
    next: u64,
    dropped: u64,
    waited: u64,
}

/// What became of a batch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Taken {
    /// Events that entered the log, those that repair added included.
    pub published: u64,
    /// Events of the batch that the session took.
    pub accepted: u64,
    /// Events that an earlier batch had brought.
    pub duplicates: u64,
    /// Events of a turn that has ended.
    pub late: u64,
    /// Events that the session refused, and lines that are none.
    pub malformed: u64,
    /// Events between the last batch and this one that never came.
    pub lost: u64,
    /// Events that the producer's queue has dropped since its last batch.
    pub dropped: u64,
    /// Emits that have waited for room since its last batch.
    pub waited: u64,
    /// Which of the batch's events were not accepted, counted from 0.
    pub skipped: Vec<usize>,
}

impl Session {
    /// Appends a producer's batch under one lock: what came before is skipped, and what did not come is counted.
    ///
    /// An event without a turn (0) means the running one. A refused event costs itself, not the batch.
    pub fn emit_batch(&self, batch: Batch) -> Taken {
        let mut taken = Taken { malformed: batch.malformed, ..Taken::default() };
        let header = batch.header;
        // Before the lock: a hook may be asked what may be stored.
        let events: Vec<_> = batch
            .events
            .into_iter()
            .map(|event| (event.seq, event.context.turn, self.redacted(event.payload, event.extra.map(|extra| *extra))))
            .collect();
        // Where another process writes, or the store does not keep up, each event is refused below.
        let _hold = self.hold(None);
        self.change(|inner| {
            let at = inner.producers.iter().rposition(|known| *known.name == *header.producer).unwrap_or_else(|| {
                if inner.producers.len() == PRODUCERS {
                    inner.producers.remove(0);
                }
                inner.producers.push(Producer { name: header.producer.as_str().into(), next: 1, dropped: 0, waited: 0 });
                inner.producers.len() - 1
            });
            let producer = &mut inner.producers[at];
            let next = producer.next;
            taken.lost = header.first.saturating_sub(next);
            taken.dropped = header.dropped.saturating_sub(producer.dropped);
            taken.waited = header.waited.saturating_sub(producer.waited);
            producer.next = next.max(header.first.saturating_add(header.count));
            producer.dropped = producer.dropped.max(header.dropped);
            producer.waited = producer.waited.max(header.waited);
            let before = inner.log.head;
            for (at, (seq, turn, redacted)) in events.into_iter().enumerate() {
                if seq < next {
                    taken.duplicates += 1;
                    taken.skipped.push(at);
                    continue;
                }
                let entered = inner.enter(&self.id, Some(turn).filter(|turn| *turn != 0));
                let admitted = entered.and_then(|turn| match redacted {
                    Some((payload, extra)) => inner.admit(&self.id, turn, payload, extra),
                    None => Ok(inner.log.head), // withheld
                });
                if admitted.is_err() {
                    taken.skipped.push(at);
                }
                match admitted {
                    Ok(_) => taken.accepted += 1,
                    Err(SessionError::TurnEnded { .. } | SessionError::Closed(_)) => taken.late += 1,
                    Err(_) => taken.malformed += 1,
                }
            }
            taken.published = inner.log.head - before;
            inner.settle();
        });
        taken
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::batch::Header;
    use crate::event::{Event, Payload};
    use crate::session::{Ending, Limits, TurnOptions};

    fn batch(producer: &str, first: u64, texts: &[&str]) -> Batch {
        let event = |text: &&str| Event {
            seq: 0,
            time: 0,
            context: Arc::default(),
            payload: Payload::from_json("custom", &format!("{{\"name\":{text:?}}}")).unwrap().0,
            extra: None,
        };
        let events: Vec<_> = texts.iter().map(event).collect();
        let header = Header { producer: producer.into(), first, ..Header::default() };
        Batch::read(&Batch::write(&header, events.iter(), usize::MAX).0).unwrap()
    }

    fn session() -> Arc<Session> {
        let session = Session::new("s", Limits::default());
        session.start_turn(TurnOptions::default()).unwrap();
        session
    }

    #[test]
    fn a_repeated_batch_is_not_doubled_and_an_overlap_brings_only_news() {
        let session = session();
        assert_eq!(session.emit_batch(batch("p", 1, &["a", "b"])).accepted, 2);
        let again = session.emit_batch(batch("p", 1, &["a", "b"]));
        assert_eq!((again.accepted, again.duplicates, again.published), (0, 2, 0));
        let overlap = session.emit_batch(batch("p", 2, &["b", "c"]));
        assert_eq!((overlap.accepted, overlap.duplicates, overlap.lost, overlap.skipped), (1, 1, 0, vec![0]));
    }

    #[test]
    fn a_gap_is_counted_and_producers_do_not_mix() {
        let session = session();
        session.emit_batch(batch("p", 1, &["a"]));
        assert_eq!(session.emit_batch(batch("q", 1, &["x"])).lost, 0);
        assert_eq!(session.emit_batch(batch("p", 5, &["e"])).lost, 3);
        assert_eq!(session.emit_batch(batch("p", 6, &["f"])).lost, 0);
    }

    #[test]
    fn what_comes_after_the_end_is_late() {
        let session = session();
        session.end_turn(1, Ending::default());
        let mut late = batch("p", 1, &["a"]);
        late.events[0].context = Arc::new(crate::event::Context::new(None, 1, 0, None));
        assert_eq!(session.emit_batch(late).late, 1);
    }
}
