//! The frame reader that providers stand on: finds out what the bytes are, and forgives what servers get wrong.
//!
//! Owns telling formats apart and the leniencies that real servers need; the readers below it go by their standards.
//! Invariants: 1. any split of the input gives the same frames and errors; 2. one malformed piece is one error, and
//! reading goes on; 3. a fatal error is the last thing reported.
//! The leniencies, all on streams of server-sent events: the end of input ends the last event; a field `error`, which
//! the standard ignores, is a frame named "error"; a bare JSON object between events is a frame.

use super::lines::Bom;
use super::sse::{self, Item, split_field};
use super::{Frame, FrameError, Limits, Sink, aws, json};

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
    /// AWS event stream messages.
    Aws,
}

#[derive(Debug, Clone)]
enum Mode {
    Sniff(Format, Bom),
    Sse(Box<Events>),
    Json(json::Reader),
    Aws(aws::Reader),
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
            Mode::Aws(_) => Format::Aws,
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

    /// Takes the first event of a chunk, or all of it where the format is not server-sent events. Returns how many bytes
    /// it took.
    pub fn feed_event(&mut self, chunk: &[u8], out: &mut Sink<'_>) -> usize {
        if let Mode::Sse(events) = &mut self.mode {
            return events.feed_block(chunk, out);
        }
        self.feed(chunk, out);
        chunk.len()
    }

    /// Whether the next byte begins an event of server-sent ones, with nothing before it left; then, up to which length
    /// it can break no limit.
    #[inline]
    pub fn between_events(&self) -> Option<usize> {
        match &self.mode {
            Mode::Sse(events) if events.stray.json.is_none() && !events.stray.failed => events.decoder.between_blocks(),
            _ => None,
        }
    }

    /// Passes over an event that the caller has read himself: [`Self::between_events`] has to allow it.
    #[inline]
    pub fn skip(&mut self, length: usize) {
        debug_assert!(self.between_events().is_some_and(|limit| length <= limit));
        if let Mode::Sse(events) = &mut self.mode {
            events.decoder.skip(length);
        }
    }

    /// The input has ended.
    pub fn finish(&mut self, out: &mut Sink<'_>) {
        match std::mem::replace(&mut self.mode, Mode::Dead) {
            Mode::Sse(mut events) => events.finish(out),
            Mode::Json(mut reader) => reader.finish(out),
            Mode::Aws(mut reader) => reader.finish(out),
            Mode::Sniff(..) | Mode::Dead => {}
        }
    }

    fn start(&mut self, format: Format, first: u8) {
        let format = match (format, first) {
            (Format::Auto, b'{' | b'[') => Format::Json,
            // No text begins so; the first message's length does. Its prelude's checksum has the last word.
            (Format::Auto, 0) => Format::Aws,
            (format, _) => format,
        };
        self.mode = match format {
            Format::Json => Mode::Json(json::Reader::new(self.limits, self.position)),
            Format::Aws => Mode::Aws(aws::Reader::new(self.limits, self.position)),
            Format::Sse | Format::Auto => Mode::Sse(Box::new(Events::new(self.limits, self.position))),
        };
    }

    fn take(&mut self, chunk: &[u8], out: &mut Sink<'_>) {
        match &mut self.mode {
            Mode::Sse(events) => events.feed(chunk, out),
            Mode::Json(reader) => reader.feed(chunk, out),
            Mode::Aws(reader) => reader.feed(chunk, out),
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

    fn feed_block(&mut self, chunk: &[u8], out: &mut Sink<'_>) -> usize {
        let Self { decoder, stray } = self;
        if stray.failed {
            return chunk.len();
        }
        match decoder.feed_block(chunk, &mut |item| stray.item(item, out)) {
            Ok(taken) => taken,
            error => {
                stray.fail(error.map(drop), out);
                chunk.len()
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything said, as text: `name|data` of frames, `!offset reason` of errors.
    fn read(limits: Limits, chunks: &[&[u8]]) -> Vec<String> {
        let mut said = Vec::new();
        let mut out = |item: Result<Frame<'_>, FrameError>| {
            said.push(match item {
                Ok(frame) => format!("{}|{}", frame.event, std::str::from_utf8(frame.data).unwrap()),
                Err(FrameError::Malformed { format, offset, reason }) => format!("!{offset} {format}: {reason}"),
                Err(fatal) => format!("!!{fatal}"),
            });
        };
        let mut reader = FrameReader::new(Format::Auto, limits);
        for chunk in chunks {
            reader.feed(chunk, &mut out);
        }
        reader.finish(&mut out);
        reader.feed(b"data: after the end\n\n", &mut out);
        said
    }

    fn said(input: &str) -> Vec<String> {
        let whole = read(Limits::default(), &[input.as_bytes()]);
        assert_eq!(read(Limits::default(), &input.as_bytes().chunks(1).collect::<Vec<_>>()), whole, "{input:?}");
        whole
    }

    #[test]
    fn the_first_byte_tells_the_format() {
        for start in ["", "\u{feff}", "\r\n \t", "\u{feff}\n"] {
            assert_eq!(said(&format!("{start}data: a\n\n")), ["|a"]);
            assert_eq!(said(&format!("{start}: hi\nevent: e\ndata: a\n\n")), ["e|a"]);
            assert_eq!(said(&format!("{start}{{\"a\":1}}\n{{}}")), ["|{\"a\":1}", "|{}"]);
            assert_eq!(said(&format!("{start}[{{\"a\":1}}\r\n,\r\n{{}}]")), ["|{\"a\":1}", "|{}"]);
        }
        assert_eq!(said(""), [""; 0]);
        assert_eq!(said("\u{feff} \n"), [""; 0]);
    }

    #[test]
    fn a_message_of_aws_begins_with_zero() {
        let bytes = [aws::encode::event("chunk", "{}"), aws::encode::exception("throttlingException", "{}")].concat();
        let frames = ["chunk|{}", "throttlingException|{}"];
        assert_eq!(read(Limits::default(), &[&bytes]), frames);
        assert_eq!(read(Limits::default(), &bytes.chunks(1).collect::<Vec<_>>()), frames);
        let lost = "!!lost in aws event stream at byte 0: the prelude's checksum does not match";
        assert_eq!(read(Limits::default(), &[&[0; 40]]), [lost]);
    }

    #[test]
    fn offsets_count_from_the_first_byte() {
        let offsets = |input: &[u8]| {
            let mut offsets = Vec::new();
            let mut reader = FrameReader::new(Format::Auto, Limits::default());
            reader.feed(input, &mut |item| offsets.push(item.unwrap().offset));
            offsets
        };
        assert_eq!(offsets(b"\xEF\xBB\xBF\ndata: a\n\nid: 1\r\ndata: b\r\n\r\nerror: c\n{\n}\n"), [4, 13, 31, 40]);
        assert_eq!(offsets(b"\n[{},\n{}]"), [2, 6]);
    }

    #[test]
    fn the_end_of_input_ends_the_last_event() {
        assert_eq!(said("data: a\n\ndata: b"), ["|a", "|b"]);
        assert_eq!(said("data: a\n\ndata: b\r\n"), ["|a", "|b"]);
    }

    #[test]
    fn a_field_named_error_is_a_frame() {
        assert_eq!(said("data: a\n\nerror: {\"detail\":1}\n\n"), ["|a", "error|{\"detail\":1}"]);
        assert_eq!(said("error: cut off"), ["error|cut off"]);
    }

    #[test]
    fn a_bare_json_body_between_events_is_a_frame() {
        let error = "{\n  \"error\": {\n    \"code\": 499,\n    \"data\": [\n    ]\n  }\n}";
        assert_eq!(said(&format!("data: a\n\n{error}\n")), ["|a".to_owned(), format!("|{error}")]);
        assert_eq!(said(&format!("data: a\n\n{error}\n\ndata: b\n\n")), ["|a".to_owned(), format!("|{error}"), "|b".to_owned()]);
        assert_eq!(said("data: a\n\n[{\"error\":1}]"), ["|a", "|{\"error\":1}"]);
        assert_eq!(said("data: a\n\n[\n{}\n]\n"), ["|a", "|{}"]);
    }

    #[test]
    fn a_bare_body_that_breaks_off_is_said_and_costs_no_event() {
        assert_eq!(said("data: a\n\n{\"x\": [\ndata: b\n\n"), ["|a", "!9 json: the input ends inside an object", "|b"]);
    }

    #[test]
    fn unknown_fields_and_a_bare_done_are_no_frames() {
        assert_eq!(said("data: a\nx-status: 200\n\n[DONE]\n\n"), ["|a"]);
    }

    #[test]
    fn bytes_that_are_no_stream_are_said_to_be_none() {
        assert_eq!(said("<html>\n<body>busy</body>\n"), ["!0 sse: no event in the whole input"]);
        assert_eq!(said(": only a heartbeat\n\n"), [""; 0]);
    }

    #[test]
    fn a_fatal_error_is_the_last_thing_said() {
        let limits = Limits { max_line_bytes: 20, max_event_bytes: 5 };
        assert_eq!(
            read(limits, &[b"data: 12345\n\ndata: 123456\n\ndata: 1\n\n"]),
            ["|12345", "!!event at byte 13 is larger than 5 bytes"]
        );
        assert_eq!(
            read(limits, &[b"data: 1\n\n{\n 3456}\ndata: 2\n\n", b"data: 3\n\n"]),
            ["|1", "!!event at byte 9 is larger than 5 bytes"]
        );
        assert_eq!(read(limits, &[b"{}{\"a\":1}{}"]), ["|{}", "!!event at byte 2 is larger than 5 bytes"]);
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(2000))]
        #[test]
        fn any_split_equals_the_whole(
            pieces in proptest::collection::vec(proptest::sample::select(&PIECES[..]), 0..20),
            cuts in proptest::collection::vec(0_usize..120, 0..8),
            limit in 4_usize..40,
        ) {
            let input = pieces.concat();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(input.len())).collect();
            cuts.extend([0, input.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|pair| &input[pair[0]..pair[1]]).collect();
            let limits = Limits { max_line_bytes: limit, max_event_bytes: limit };
            proptest::prop_assert_eq!(read(limits, &chunks), read(limits, &[&input]));
        }
    }

    const PIECES: [&[u8]; 17] = [
        b"\n",
        b"\r\n",
        b" ",
        b"data: x\n\n",
        b"data: {}\n",
        b"error: e\n",
        b": c\n",
        b"{",
        b"}\n",
        b"{\"a\":[\n",
        b"]}\n",
        b"[",
        b"]\n",
        b"\xEF\xBB\xBF",
        b"\xEF\xBB",
        b"\"",
        b"event: e\n",
    ];
}
