//! One client's stream: a reader, and the encoder of the format that the client reads.
//!
//! Owns where the stream begins and how much is written at a time. Knows no format. Invariants: 1. no event is taken
//! from the log before there is room for it; 2. an encoder that wants the state is told it before any event.

use std::sync::Arc;

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
