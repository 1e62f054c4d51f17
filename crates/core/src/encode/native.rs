//! The native stream: every event as it is, as server-sent events or as NDJSON, for a client that reads our vocabulary.
//!
//! Invariants: 1. the first frame is `stream_open`; 2. only events of the log carry an id; 3. a frame that several
//! readers need is encoded once.

use std::io::Write as _;
use std::sync::{Arc, LazyLock};

use bytes::Bytes;

use crate::event::json::write_u64;
use crate::event::{Class, Context, Event, Payload, StreamOpen, TYPES, Text};
use crate::reader::{Item, Poll, ReadError, ReadOptions, Reader, Status};
use crate::session::{Session, now_ms};

/// The wire form of the native stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `id`, `event`, `data`, LF.
    Sse,
    /// One JSON object a line; a heartbeat is an empty line.
    Ndjson,
}

/// How a stream is written.
#[derive(Debug, Clone)]
pub struct StreamOptions {
    /// Its form.
    pub format: Format,
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
    options: StreamOptions,
    opened: bool,
    /// The head of a snapshot that no event of the log has followed yet.
    snapshot: Option<u64>,
    left: u64,
    items: Vec<Item>,
}

/// How many events are taken from the log at a time: enough to fill a chunk, few enough to hold no memory of note.
const PAGE: usize = 256;

impl FrameStream {
    /// Opens a stream.
    pub fn open(session: &Arc<Session>, read: &ReadOptions, options: StreamOptions) -> Result<Self, ReadError> {
        let left = options.limit.unwrap_or(u64::MAX);
        Ok(Self { reader: Reader::open(session, read)?, options, opened: false, snapshot: None, left, items: Vec::new() })
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
            self.write_open(out);
        }
        let shared = self.reader.session().readers() > 1;
        loop {
            let page = PAGE.min(usize::try_from(self.left).unwrap_or(PAGE));
            if page == 0 {
                return if out.len() == before { Poll::End } else { Poll::Ready };
            }
            let poll = self.reader.poll(page, &mut self.items);
            for item in self.items.drain(..) {
                match &item.event().payload {
                    Payload::Snapshot(snapshot) => self.snapshot = Some(snapshot.head),
                    payload if payload.class() != Class::Control => {
                        self.left -= 1;
                        self.snapshot = None;
                    }
                    _ => {}
                }
                write_item(out, self.options.format, self.reader.session().epoch(), &item, shared);
            }
            if poll == Poll::End
                && self.options.format == Format::Sse
                && let Some(head) = self.snapshot.take()
            {
                // Nothing follows that could carry an id. Without this one the client would come back with the cursor
                // that the snapshot answered, for ever.
                let _ = write!(out, "id: {}.{head}\n\n", self.reader.session().epoch());
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

    /// Writes a heartbeat. On SSE a comment without a blank line: some clients take a blank line after an id for an
    /// empty event.
    pub fn write_heartbeat(&self, out: &mut Vec<u8>) {
        match self.options.format {
            Format::Sse => out.extend_from_slice(b": heartbeat\n"),
            Format::Ndjson => out.push(b'\n'),
        }
    }

    fn write_open(&self, out: &mut Vec<u8>) {
        let session = self.reader.session();
        let open = StreamOpen {
            status: Text::const_new(self.reader.status().as_str()),
            epoch: (&**session.epoch()).into(),
            earliest: session.earliest(),
            head: session.position().head,
            heartbeat_s: self.options.heartbeat_s,
            requested: None,
        };
        let context = Context::of_session(session.id());
        let event = Event { seq: 0, time: now_ms(), context: Arc::new(context), payload: open.into(), extra: None };
        if let (Format::Sse, Some(retry)) = (self.options.format, self.options.retry_ms) {
            out.extend_from_slice(b"retry: ");
            write_u64(out, retry);
            out.push(b'\n');
        }
        write_event(out, self.options.format, session.epoch(), &event);
    }
}

/// Writes one item; the frame of a logged event is kept for the other readers when there are any.
fn write_item(out: &mut Vec<u8>, format: Format, epoch: &str, item: &Item, shared: bool) {
    match item {
        Item::Logged(entry) if format == Format::Sse && (shared || entry.frame.get().is_some()) => {
            let frame = entry.frame.get_or_init(|| {
                let mut frame = Vec::with_capacity(256);
                write_event(&mut frame, format, epoch, &entry.event);
                Bytes::from(frame)
            });
            out.extend_from_slice(frame);
        }
        item => write_event(out, format, epoch, item.event()),
    }
}

/// Writes one event as a frame. The id is ours (letters, digits, a dot) and the name is a type's: neither needs a check.
pub fn write_event(out: &mut Vec<u8>, format: Format, epoch: &str, event: &Event) {
    if format == Format::Ndjson {
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
