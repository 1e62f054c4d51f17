//! The frame reader that providers stand on: finds out what the bytes are, and forgives what servers get wrong.
//!
//! Owns telling formats apart and the leniencies that real servers need; the readers below it go by their standards.
//! Invariants: 1. any split of the input gives the same frames and errors; 2. one malformed piece is one error, and
//! reading goes on; 3. a fatal error is the last thing reported.
//! The leniencies, all on streams of server-sent events: the end of input ends the last event; a field `error`, which
//! the standard ignores, is a frame named "error"; a bare JSON object between events is a frame.

use super::lines::Bom;
use super::sse::{self, Item, split_field};
use super::{Frame, FrameError, Limits, Sink, json};

/// How frames are laid out in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Format {
    /// Told by the first byte that is not blank.
    #[default]
    Auto,
    /// Server-sent events.
    Sse,
    /// NDJSON, a JSON body, a JSON array of frames.
    Json,
}

#[derive(Debug, Clone)]
enum Mode {
    Sniff(Format, Bom),
    Sse(Box<Events>),
    Json(json::Reader),
    Dead,
}

/// Reads frames. Does no I/O; bytes in, frames out, through a callback.
#[derive(Debug, Clone)]
pub struct FrameReader {
    limits: Limits,
    mode: Mode,
    /// Bytes taken before the format was known.
    position: u64,
}

impl FrameReader {
    /// For the start of a stream.
    pub fn new(format: Format, limits: Limits) -> Self {
        Self { limits, mode: Mode::Sniff(format, Bom::default()), position: 0 }
    }

    /// What the bytes are; `Auto` as long as that is not known.
    pub fn format(&self) -> Format {
        match &self.mode {
            Mode::Sniff(format, _) => *format,
            Mode::Sse(_) => Format::Sse,
            Mode::Json(_) => Format::Json,
            Mode::Dead => Format::Auto,
        }
    }

    /// Takes a chunk.
    pub fn feed(&mut self, chunk: &[u8], out: &mut Sink<'_>) {
        let mut rest = chunk;
        if let Mode::Sniff(format, bom) = &mut self.mode {
            let (no_bom, tail) = bom.strip(rest);
            let format = *format;
            if no_bom.is_empty() {
                rest = tail.trim_ascii_start();
                self.position += (chunk.len() - rest.len()) as u64;
                let Some(first) = rest.first() else { return };
                self.start(format, *first);
            } else {
                self.position = 0;
                self.start(format, no_bom[0]);
                self.take(no_bom, out);
                rest = tail;
            }
        }
        self.take(rest, out);
    }

    /// The input has ended.
    pub fn finish(&mut self, out: &mut Sink<'_>) {
        match std::mem::replace(&mut self.mode, Mode::Dead) {
            Mode::Sse(mut events) => events.finish(out),
            Mode::Json(mut reader) => reader.finish(out),
            Mode::Sniff(..) | Mode::Dead => {}
        }
    }

    fn start(&mut self, format: Format, first: u8) {
        let json = format == Format::Json || (format == Format::Auto && matches!(first, b'{' | b'['));
        self.mode = if json {
            Mode::Json(json::Reader::new(self.limits, self.position))
        } else {
            Mode::Sse(Box::new(Events::new(self.limits, self.position)))
        };
    }

    fn take(&mut self, chunk: &[u8], out: &mut Sink<'_>) {
        match &mut self.mode {
            Mode::Sse(events) => events.feed(chunk, out),
            Mode::Json(reader) => reader.feed(chunk, out),
            Mode::Sniff(..) | Mode::Dead => {}
        }
    }
}

/// Server-sent events with the leniencies.
#[derive(Debug, Clone)]
struct Events {
    decoder: sse::Decoder,
    stray: Stray,
}

/// What comes beside the events.
#[derive(Debug, Clone)]
struct Stray {
    limits: Limits,
    begin: u64,
    /// A bare JSON value under way.
    json: Option<json::Reader>,
    /// Whether anything at all was recognised.
    recognised: bool,
    /// A fatal error has been reported.
    failed: bool,
}

impl Events {
    fn new(limits: Limits, position: u64) -> Self {
        Self {
            decoder: sse::Decoder::resume(limits, position).lenient(true),
            stray: Stray { limits, begin: position, json: None, recognised: false, failed: false },
        }
    }

    fn feed(&mut self, chunk: &[u8], out: &mut Sink<'_>) {
        let Self { decoder, stray } = self;
        if !stray.failed {
            let done = decoder.feed(chunk, &mut |item| stray.item(item, out));
            stray.fail(done, out);
        }
    }

    fn finish(&mut self, out: &mut Sink<'_>) {
        let Self { decoder, stray } = self;
        if !stray.failed {
            let done = decoder.finish(&mut |item| stray.item(item, out));
            stray.fail(done, out);
        }
        if stray.failed {
            return;
        }
        stray.break_off(out);
        if !stray.recognised {
            let reason = "no event in the whole input".to_owned();
            out(Err(FrameError::Malformed { format: "sse", offset: stray.begin, reason }));
        }
    }
}

impl Stray {
    #[inline]
    fn item(&mut self, item: Item<'_>, out: &mut Sink<'_>) {
        if self.failed {
            return;
        }
        match item {
            Item::Event(event) => {
                self.break_off(out);
                self.recognised = true;
                out(Ok(Frame { event: event.name, data: event.data.as_bytes(), offset: event.offset }));
            }
            Item::Comment(_) => self.recognised = true,
            Item::Unknown(line, offset) => self.unknown(line, offset, out),
        }
    }

    fn unknown(&mut self, line: &[u8], offset: u64, out: &mut Sink<'_>) {
        if self.json.is_none() {
            if let (b"error", data) = split_field(line) {
                self.recognised = true;
                return out(Ok(Frame { event: "error", data: super::utf8(data).as_bytes(), offset }));
            }
            if !begins_json(line) {
                return;
            }
        }
        let reader = self.json.get_or_insert_with(|| json::Reader::new(self.limits, offset));
        self.recognised = true;
        reader.feed(line, out);
        reader.feed(b"\n", out);
        self.failed = reader.is_dead();
        if reader.is_idle() || self.failed {
            self.json = None;
        }
    }

    fn fail(&mut self, done: Result<(), FrameError>, out: &mut Sink<'_>) {
        if let (Err(error), false) = (done, self.failed) {
            self.failed = true;
            out(Err(error));
        }
    }

    /// A JSON value under way ends here, whole or not.
    fn break_off(&mut self, out: &mut Sink<'_>) {
        if let Some(mut reader) = self.json.take() {
            reader.finish(out);
        }
    }
}

/// An object, or an array that may hold one: not a bare `[DONE]`.
fn begins_json(line: &[u8]) -> bool {
    let line = line.trim_ascii_start();
    match line.strip_prefix(b"[") {
        Some(inner) => matches!(inner.trim_ascii_start().first(), None | Some(b'{')),
        None => line.first() == Some(&b'{'),
    }
}
