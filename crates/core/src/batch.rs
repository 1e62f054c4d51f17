//! Batches: events of one producer in another process as one blob, and back.
//!
//! Owns the blob's form: one line of header, then one line of JSON per event. Knows nothing of sessions, transports or
//! what an event means. Invariants: 1. reading what was written gives an equal batch; 2. the events of a producer are
//! numbered from 1 without holes, so that whoever reads two batches sees a repeat or a gap; 3. a line that is no event
//! costs itself, not its neighbours.

use crate::event::json::{member, object, write_str, write_u64};
use crate::event::{Event, Field, Json};

/// What every blob begins with; the digit is the form's version.
const MAGIC: &[u8] = b"turnstream-batch/1 ";

/// What stands beside the events of a batch.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(default)]
pub struct Header {
    /// Who made the events; unique per producing process and emitter.
    pub producer: String,
    /// The producer's own number of the first event.
    pub first: u64,
    /// How many events follow.
    pub count: u64,
    /// How many events the producer's queue has dropped so far.
    pub dropped: u64,
    /// How many emits have waited for room so far.
    pub waited: u64,
    /// Where the producer runs, once, as JSON; empty for nothing.
    pub origin: String,
    /// Why nothing follows, as JSON; empty while something may.
    pub end: String,
}

/// Events of one producer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// What stands beside the events.
    pub header: Header,
    /// The events; `seq` is the producer's own number.
    pub events: Vec<Event>,
    /// Lines that are no event of the vocabulary.
    pub malformed: u64,
}

/// Why a blob is no batch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// It begins with something else.
    #[error("not a batch")]
    Foreign,
    /// The header is not what a writer of this version writes.
    #[error("the header of a batch is malformed")]
    Header,
    /// It has fewer or more lines than its header says.
    #[error("a batch of {said} events has {seen} lines")]
    Count {
        /// What the header says.
        said: u64,
        /// How many lines there are.
        seen: u64,
    },
}

impl Batch {
    /// Writes `events` under `header`, up to about `max_bytes` of them and at least one. Returns how many were written.
    pub fn write<'a>(header: &Header, events: impl Iterator<Item = &'a Event>, max_bytes: usize) -> (Vec<u8>, u64) {
        let (mut body, mut count) = (Vec::new(), 0);
        for event in events {
            body.push(b'\n');
            event.write_json(&mut body);
            count += 1;
            if body.len() >= max_bytes {
                break;
            }
        }
        let mut out = Vec::with_capacity(160 + body.len());
        out.extend_from_slice(MAGIC);
        let texts = [("origin", header.origin.as_str()), ("end", header.end.as_str())];
        header.write(&mut out, count, |out, name| {
            let text = texts.iter().find(|(known, _)| *known == name).map_or("", |(_, text)| text);
            write_str(out, text);
        });
        out.extend_from_slice(&body);
        (out, count)
    }

    /// Reads a blob.
    pub fn read(blob: &[u8]) -> Result<Self, BatchError> {
        let text = blob.strip_prefix(MAGIC).ok_or(BatchError::Foreign)?;
        let mut lines = text.split(|byte| *byte == b'\n');
        let header: Header = serde_json::from_slice(lines.next().unwrap_or_default()).map_err(|_| BatchError::Header)?;
        let (mut events, mut malformed, mut seen) = (Vec::new(), 0, 0);
        for line in lines {
            match std::str::from_utf8(line).ok().and_then(|line| Event::from_json(line).ok()) {
                Some(mut event) => {
                    event.seq = header.first + seen;
                    events.push(event);
                }
                None => malformed += 1,
            }
            seen += 1;
        }
        if seen != header.count {
            return Err(BatchError::Count { said: header.count, seen });
        }
        Ok(Self { header, events, malformed })
    }
}

impl Header {
    /// The header as a JSON object, `origin` and `end` as what they hold.
    pub fn to_json(&self) -> Json {
        let mut out = Vec::new();
        self.write(&mut out, self.count, |out, name| {
            Json::parse(if name == "end" { &self.end } else { &self.origin }).ok().write(out);
        });
        Json::from_written(out)
    }

    fn write(&self, out: &mut Vec<u8>, count: u64, text: impl Fn(&mut Vec<u8>, &str)) {
        let numbers = [("first", self.first), ("count", count), ("dropped", self.dropped), ("waited", self.waited)];
        object(out, |out| {
            member(out, "producer", |out| write_str(out, &self.producer));
            for (name, number) in numbers {
                member(out, name, |out| write_u64(out, number));
            }
            for name in ["origin", "end"] {
                member(out, name, |out| text(out, name));
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Payload, TextDelta};

    fn delta(seq: u64, text: &str) -> Event {
        let payload = Payload::from(TextDelta { message_id: "m".into(), text: text.into() });
        Event { seq, time: 0, context: std::sync::Arc::default(), payload, extra: None }
    }

    fn header(first: u64, count: u64) -> Header {
        Header { producer: "p".into(), first, count, end: r#"{"reason":"closed"}"#.into(), ..Header::default() }
    }

    proptest::proptest! {
        #[test]
        fn reading_what_was_written_gives_an_equal_batch(first in 1_u64..1_000_000, texts in proptest::collection::vec(".*", 0..20)) {
            let events: Vec<_> = texts.iter().zip(first..).map(|(text, seq)| delta(seq, text)).collect();
            let header = header(first, events.len() as u64);
            let (blob, count) = Batch::write(&header, events.iter(), usize::MAX);
            proptest::prop_assert_eq!(count, header.count);
            let read = Batch::read(&blob).unwrap();
            proptest::prop_assert_eq!(read, Batch { header, events, malformed: 0 });
        }

        #[test]
        fn no_bytes_are_too_broken_to_be_refused(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let mut blob = MAGIC.to_vec();
            blob.extend_from_slice(&bytes);
            let _ = Batch::read(&blob);
            let _ = Batch::read(&bytes);
        }
    }

    #[test]
    fn a_line_that_is_no_event_costs_itself() {
        let blob = Batch::write(&header(5, 3), [delta(5, "a"), delta(6, "b"), delta(7, "c")].iter(), usize::MAX).0;
        let text = String::from_utf8(blob).unwrap().replace("\"b\"", "7");
        let batch = Batch::read(text.as_bytes()).unwrap();
        assert_eq!((batch.malformed, batch.events.iter().map(|event| event.seq).collect::<Vec<_>>()), (1, vec![5, 7]));
    }

    #[test]
    fn a_batch_is_as_long_as_it_may_be_and_never_empty_for_it() {
        let events: Vec<_> = (1..=10).map(|seq| delta(seq, "some text")).collect();
        let (blob, count) = Batch::write(&header(1, 10), events.iter(), 200);
        assert_eq!(Batch::read(&blob).unwrap().events, events[..usize::try_from(count).unwrap()]);
        assert!((1..10).contains(&count), "{count}");
        assert_eq!(Batch::write(&header(1, 10), events.iter(), 1).1, 1);
    }

    #[test]
    fn a_cut_batch_and_a_foreign_blob_are_refused() {
        let blob = Batch::write(&header(1, 2), [delta(1, "a"), delta(2, "b")].iter(), usize::MAX).0;
        let cut = blob.iter().rposition(|byte| *byte == b'\n').unwrap();
        assert_eq!(Batch::read(&blob[..cut]), Err(BatchError::Count { said: 2, seen: 1 }));
        assert_eq!(Batch::read(b"{}"), Err(BatchError::Foreign));
        assert_eq!(Batch::read(b"turnstream-batch/1 x"), Err(BatchError::Header));
    }
}
