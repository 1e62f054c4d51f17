//! One client's stream: a reader, and the encoder of the format that the client reads.
//!
//! Owns where the stream begins and how much is written at a time. Knows no format. Invariants: 1. no event is taken
//! from the log before there is room for it; 2. an encoder that wants the state is told it before any event; 3. LF alone
//! ends a line, whatever a reader takes for an end.

use std::sync::Arc;

use memchr::memchr2_iter;

use super::{Encoder, Opening};
use crate::event::Class;
use crate::reader::{Cursor, Item, Poll, ReadError, ReadOptions, Reader, Status};
use crate::session::Session;

/// How a stream is written.
#[derive(Debug, Clone)]
pub struct StreamOptions {
    /// A heartbeat after so much silence; said in `stream_open`.
    pub heartbeat_s: f64,
    /// A chunk is handed over once it is this large.
    pub max_bytes: usize,
    /// Ends after so many events.
    pub limit: Option<u64>,
    /// What `retry:` the client is told.
    pub retry_ms: Option<u64>,
}

/// One client's stream: a reader, and what it still has to say.
#[derive(Debug)]
pub struct FrameStream {
    reader: Reader,
    encoder: Box<dyn Encoder>,
    options: StreamOptions,
    opened: bool,
    ended: bool,
    left: u64,
    items: Vec<Item>,
}

/// How many events are taken from the log at a time: enough to fill a chunk, few enough to hold no memory of note.
const PAGE: usize = 256;

impl FrameStream {
    /// Opens a stream.
    pub fn open(
        session: &Arc<Session>,
        read: &ReadOptions,
        options: StreamOptions,
        encoder: Box<dyn Encoder>,
    ) -> Result<Self, ReadError> {
        let before = session.see(|state| state.turn_start.saturating_sub(1));
        // Nothing of the newest turn comes before its beginning: there is no state to tell.
        let at_beginning = read.after.as_ref().is_some_and(|cursor| cursor.seq() == before);
        let mut read = ReadOptions { state_first: encoder.wants_state() && !at_beginning, ..read.clone() };
        if encoder.numbered() {
            read.merge = false;
            if let Some(cursor) = read.after.take_if(|cursor| cursor.epoch().is_none_or(|epoch| *epoch == **session.epoch())) {
                let start = session.turn_before(cursor.seq());
                // Its numbers would begin in the middle: rather a snapshot than those.
                read.history = start.is_some();
                read.after = Some(Cursor::new(session.epoch(), start.unwrap_or(cursor.seq())));
            }
        }
        let mut reader = Reader::open(session, &read)?;
        let inside = read.after.is_none() || reader.cursor().seq() > before;
        if encoder.one_turn() && inside && reader.status() != Status::Finished {
            // From the turn's beginning, wherever in it the cursor is: a client of such a format wants the whole of it.
            (read.after, read.state_first) = (Some(Cursor::new(session.epoch(), before)), false);
            reader = Reader::open(session, &read)?;
        }
        let left = options.limit.unwrap_or(u64::MAX);
        reader.limit_page(options.max_bytes);
        Ok(Self { reader, encoder, options, opened: false, ended: false, left, items: Vec::new() })
    }

    /// The reader.
    pub fn reader(&mut self) -> &mut Reader {
        &mut self.reader
    }

    /// How the cursor was taken.
    pub fn status(&self) -> Status {
        self.reader.status()
    }

    /// Appends all frames that are ready to `out`, up to about `max_bytes`.
    pub fn poll(&mut self, out: &mut Vec<u8>) -> Poll {
        let before = out.len();
        let poll = self.fill(out);
        escape_separators(out, before);
        poll
    }

    fn fill(&mut self, out: &mut Vec<u8>) -> Poll {
        let before = out.len();
        if !self.opened {
            self.opened = true;
            let (status, options) = (self.reader.status(), &self.options);
            let opening =
                Opening { session: self.reader.session(), status, heartbeat_s: options.heartbeat_s, retry_ms: options.retry_ms };
            self.encoder.open(&opening, out);
        }
        loop {
            let page = PAGE.min(usize::try_from(self.left).unwrap_or(PAGE));
            if page == 0 || self.encoder.finished() {
                return if out.len() == before { Poll::End } else { Poll::Ready };
            }
            let poll = self.reader.poll(page, &mut self.items);
            for item in self.items.drain(..) {
                if item.event().payload.class() != Class::Control {
                    self.left -= 1;
                }
                self.encoder.item(self.reader.session(), &item, out);
                if self.encoder.finished() {
                    break;
                }
            }
            if poll == Poll::End && !std::mem::replace(&mut self.ended, true) {
                self.encoder.end(self.reader.session(), out);
            }
            match poll {
                Poll::Ready if out.len() - before < self.options.max_bytes => {}
                _ if out.len() > before => return Poll::Ready,
                other => {
                    self.items.shrink_to(16);
                    return other;
                }
            }
        }
    }

    /// Writes a heartbeat.
    pub fn write_heartbeat(&mut self, out: &mut Vec<u8>) {
        match self.reader.session().progress_age() {
            Some(silent) => self.encoder.heartbeat_of_turn(silent, out),
            None => self.encoder.heartbeat(out),
        }
    }

    /// Ends the stream before its end: what is ready, and then why.
    pub fn write_close(&mut self, reason: &str, retry_ms: Option<u64>, out: &mut Vec<u8>) {
        if self.ended {
            return;
        }
        let poll = self.poll(out);
        if poll == Poll::End || self.ended {
            return; // it has ended by itself
        }
        self.encoder.close(self.reader.session(), reason, retry_ms, out);
        self.ended = true;
        self.reader.close();
    }
}

/// Escapes the line ends of Unicode (U+0085, U+2028, U+2029) in `out[from..]`, where they can only stand in JSON strings.
///
/// JSON allows them as they are, and neither server-sent events nor NDJSON end a line there; but Python's `splitlines`
/// does, and with it every client that reads lines with httpx.
fn escape_separators(out: &mut Vec<u8>, from: usize) {
    let next = |bytes: &[u8]| {
        memchr2_iter(0xC2, 0xE2, bytes).find_map(|at| match bytes[at..] {
            [0xC2, 0x85, ..] => Some((at, 2, "\\u0085")),
            [0xE2, 0x80, 0xA8, ..] => Some((at, 3, "\\u2028")),
            [0xE2, 0x80, 0xA9, ..] => Some((at, 3, "\\u2029")),
            _ => None,
        })
    };
    let Some((first, ..)) = next(&out[from..]) else { return };
    let tail = out.split_off(from + first);
    let mut left = &tail[..];
    while let Some((at, length, escape)) = next(left) {
        out.extend_from_slice(&left[..at]);
        out.extend_from_slice(escape.as_bytes());
        left = &left[at + length..];
    }
    out.extend_from_slice(left);
}

#[cfg(test)]
mod tests {
    use super::escape_separators;

    proptest::proptest! {
        #[test]
        fn separators_are_escaped_and_mean_the_same(
            text in "([\u{85}\u{2028}\u{2029}]|[\u{80}-\u{100}]|[\u{2000}-\u{2040}]|a|\"|\\\\|\u{10000}){0,40}",
            kept in "[\u{85}x]{0,3}",
        ) {
            let json = serde_json::to_string(&text).unwrap();
            let mut out = format!("{kept}{json}").into_bytes();
            escape_separators(&mut out, kept.len());
            let escaped = String::from_utf8(out).unwrap();
            let escaped = escaped.strip_prefix(&kept).expect("what came before stays");
            proptest::prop_assert_eq!(serde_json::from_str::<String>(escaped).unwrap(), text);
            let has_any = |text: &str| text.contains(['\u{85}', '\u{2028}', '\u{2029}']);
            proptest::prop_assert_eq!((has_any(escaped), escaped == json), (false, !has_any(&json)));
        }
    }
}
