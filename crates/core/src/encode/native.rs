//! The native stream: every event as it is, as server-sent events or as NDJSON, for a client that reads our vocabulary.
//!
//! Invariants: 1. the first frame is `stream_open`; 2. only events of the log carry an id; 3. a frame that several
//! readers need is encoded once.

use std::io::Write as _;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use super::{Encoder, Opening, sse};
use crate::clock::now_ms;
use crate::event::{Class, Context, Event, Payload, StreamClose, StreamOpen, TYPES, Text};
use crate::reader::Item;
use crate::session::Session;

/// How the native stream is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// `id`, `event`, `data`, LF.
    Sse,
    /// One JSON object a line, a heartbeat too.
    Ndjson,
}

/// Writes the native stream.
#[derive(Debug)]
pub struct Native {
    framing: Framing,
    /// The head of a snapshot that no event of the log has followed yet.
    snapshot: Option<u64>,
}

impl Native {
    /// An encoder that has said nothing.
    pub fn new(framing: Framing) -> Self {
        Self { framing, snapshot: None }
    }
}

impl Encoder for Native {
    fn open(&mut self, opening: &Opening<'_>, out: &mut Vec<u8>) {
        let session = opening.session;
        let open = StreamOpen {
            status: Text::const_new(opening.status.as_str()),
            epoch: (&**session.epoch()).into(),
            earliest: session.earliest(),
            head: session.position().head,
            heartbeat_s: opening.heartbeat_s,
            requested: None,
        };
        if let (Framing::Sse, Some(retry)) = (self.framing, opening.retry_ms) {
            sse::write_retry(out, retry);
        }
        write_event(out, self.framing, session.epoch(), &control(session, open));
    }

    fn item(&mut self, session: &Session, item: &Item, out: &mut Vec<u8>) {
        match &item.event().payload {
            Payload::Snapshot(snapshot) => self.snapshot = Some(snapshot.head),
            payload if payload.class() != Class::Control => self.snapshot = None,
            _ => {}
        }
        match item {
            // The frame of a logged event is kept for the other readers when there are any.
            Item::Logged(entry) if self.framing == Framing::Sse && (session.readers() > 1 || entry.frame.get().is_some()) => {
                let frame = entry.frame.get_or_init(|| {
                    let mut frame = Vec::with_capacity(256);
                    write_event(&mut frame, self.framing, session.epoch(), &entry.event);
                    Box::new(frame.into_boxed_slice())
                });
                out.extend_from_slice(frame);
            }
            item => write_event(out, self.framing, session.epoch(), item.event()),
        }
    }

    /// On SSE a comment without a blank line: some clients take a blank line after an id for an empty event.
    fn heartbeat(&mut self, out: &mut Vec<u8>) {
        match self.framing {
            Framing::Sse => out.extend_from_slice(b": heartbeat\n"),
            Framing::Ndjson => out.extend_from_slice(b"{\"type\":\"heartbeat\"}\n"),
        }
    }

    fn heartbeat_of_turn(&mut self, silent: Duration, out: &mut Vec<u8>) {
        match self.framing {
            Framing::Sse => sse::write_heartbeat(out, silent),
            Framing::Ndjson => {
                let _ = writeln!(out, "{{\"type\":\"heartbeat\",\"progress_age_s\":{:.1}}}", silent.as_secs_f64());
            }
        }
    }

    fn close(&mut self, session: &Session, reason: &str, retry_ms: Option<u64>, out: &mut Vec<u8>) {
        let close = StreamClose { reason: reason.into(), retry_ms };
        if let (Framing::Sse, Some(retry)) = (self.framing, retry_ms) {
            sse::write_retry(out, retry);
        }
        write_event(out, self.framing, session.epoch(), &control(session, close));
    }

    fn end(&mut self, session: &Session, out: &mut Vec<u8>) {
        if self.framing == Framing::Sse
            && let Some(head) = self.snapshot.take()
        {
            // Nothing follows that could carry an id. Without this one the client would come back with the cursor that
            // the snapshot answered, for ever.
            let _ = write!(out, "id: {}.{head}\n\n", session.epoch());
        }
    }
}

fn control(session: &Session, payload: impl Into<Payload>) -> Event {
    let context = Context::of_session(session.id());
    Event { seq: 0, time: now_ms(), context: Arc::new(context), payload: payload.into(), extra: None }
}

/// Writes one event as a frame. The id is ours (letters, digits, a dot) and the name is a type's: neither needs a check.
pub fn write_event(out: &mut Vec<u8>, framing: Framing, epoch: &str, event: &Event) {
    if framing == Framing::Ndjson {
        event.write_json(out);
        out.push(b'\n');
        return;
    }
    if event.payload.class() == Class::Control {
        out.extend_from_slice(b"event: ");
        out.extend_from_slice(event.payload.kind().as_bytes());
        out.extend_from_slice(b"\ndata: ");
        event.write_json(out);
    } else {
        let mut number = itoa::Buffer::new();
        let seq = number.format(event.seq).as_bytes();
        out.extend_from_slice(b"id: ");
        out.extend_from_slice(epoch.as_bytes());
        out.push(b'.');
        out.extend_from_slice(seq);
        out.extend_from_slice(HEADS[event.payload.index()].as_bytes());
        out.extend_from_slice(seq);
        event.write_after_seq(out);
    }
    out.extend_from_slice(b"\n\n");
}

/// What stands between the two seqs of a frame, by type: written once, and copied in one step.
static HEADS: LazyLock<Vec<String>> =
    LazyLock::new(|| TYPES.iter().map(|kind| format!("\nevent: {kind}\ndata: {{\"type\":\"{kind}\",\"seq\":")).collect());
