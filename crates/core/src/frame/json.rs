//! JSON objects from bytes in any split: NDJSON, one whole body, objects one after another, arrays of objects.
//!
//! Owns where an object begins and ends, and where to go on after a broken one. Knows nothing of what an object says
//! and checks no grammar inside it: that is left to the parser of whoever reads the frame.
//! Invariants: 1. any split of the input gives the same frames and errors; 2. each byte is looked at once, nesting is a
//! counter; 3. an object inside one chunk is not copied; 4. a frame is always one object: arrays around objects are
//! only wrapping, anything else is malformed; 5. after an object that is too large nothing more is read.

use memchr::{memchr, memchr3};

use super::{Frame, FrameError, Limits, Sink, recycle, utf8};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Outside every object.
    Between,
    /// In an object, outside its strings.
    Object,
    Text,
    /// After a backslash.
    Escape,
    /// Past something that is no object: to the end of the line, or of the element in an array.
    Skip,
    /// Past an object of several lines that broke off: to a line that begins as a new element does.
    Resync,
    Dead,
}

/// The reader. Does no I/O; bytes in, frames out, through a callback.
#[derive(Debug, Clone)]
pub struct Reader {
    limit: usize,
    state: State,
    /// The start of an object whose end has not come.
    partial: Vec<u8>,
    /// Bytes taken before the present chunk.
    position: u64,
    /// Where the object under way begins.
    begin: u64,
    /// Brackets open inside the object under way.
    depth: u64,
    /// Lines with content that the object under way has behind it.
    lines: u64,
    /// The last byte of the object under way that is not white space.
    last: u8,
    /// Nothing but CR has come since the last LF.
    line_start: bool,
    /// Arrays open around the objects.
    wrappers: u64,
}

impl Reader {
    /// For bytes that stand at `position` in their stream; a BOM is not expected.
    pub fn new(limits: Limits, position: u64) -> Self {
        Self {
            limit: limits.max_event_bytes,
            state: State::Between,
            partial: Vec::new(),
            position,
            begin: position,
            depth: 0,
            lines: 0,
            last: 0,
            line_start: true,
            wrappers: 0,
        }
    }

    /// Whether no object and no array is open.
    pub fn is_idle(&self) -> bool {
        self.state == State::Between && self.wrappers == 0
    }

    /// Whether an object was too large.
    pub fn is_dead(&self) -> bool {
        self.state == State::Dead
    }

    /// Takes a chunk. An object that is too large is reported once, and is the last thing reported.
    pub fn feed(&mut self, chunk: &[u8], out: &mut Sink<'_>) {
        // Where the object under way begins in this chunk.
        let mut start = 0;
        let mut at = 0;
        while let Some(&byte) = chunk.get(at) {
            match self.state {
                State::Between => {
                    match byte {
                        b'{' => {
                            start = at;
                            self.open(at);
                        }
                        b'[' => self.wrappers += 1,
                        b']' if self.wrappers > 0 => self.wrappers -= 1,
                        b' ' | b'\t' | b'\r' | b'\n' | b',' => {}
                        _ => {
                            out(Err(malformed(self.position + at as u64, "expected an object")));
                            self.state = State::Skip;
                        }
                    }
                    self.line_start = byte == b'\n' || (byte == b'\r' && self.line_start);
                    at += 1;
                }
                State::Object => {
                    match byte {
                        b'"' => self.state = State::Text,
                        b'{' if self.line_start && !self.expects_value() => {
                            self.broke_off(&chunk[start..at], "an object begins inside another that broke off", out);
                            if self.state != State::Dead {
                                start = at;
                                self.open(at);
                            }
                        }
                        b'{' | b'[' => self.depth += 1,
                        b'}' | b']' => {
                            self.depth -= 1;
                            if self.depth == 0 {
                                self.close(&chunk[start..=at], out);
                            }
                        }
                        b'\n' => self.lines += u64::from(!self.line_start),
                        _ => {}
                    }
                    if !matches!(byte, b' ' | b'\t' | b'\r' | b'\n') {
                        self.last = byte;
                    }
                    self.line_start = byte == b'\n' || (byte == b'\r' && self.line_start);
                    at += 1;
                }
                State::Text => {
                    let Some(hit) = memchr3(b'"', b'\\', b'\n', &chunk[at..]) else { break };
                    at += hit;
                    match chunk[at] {
                        b'"' => self.state = State::Object,
                        b'\\' => self.state = State::Escape,
                        _ => self.broken_string(&chunk[start..at], out),
                    }
                    at += 1;
                }
                State::Escape => {
                    if byte == b'\n' {
                        self.broken_string(&chunk[start..at], out);
                    } else {
                        self.state = State::Text;
                    }
                    at += 1;
                }
                State::Skip => match byte {
                    b',' | b']' if self.wrappers > 0 => self.state = State::Between,
                    b'\n' => {
                        self.state = State::Between;
                        self.line_start = true;
                        at += 1;
                    }
                    _ => at += 1,
                },
                State::Resync => {
                    if std::mem::take(&mut self.line_start) && matches!(byte, b'{' | b'[' | b',' | b']') {
                        self.state = State::Between;
                        self.line_start = true;
                        continue;
                    }
                    let Some(hit) = memchr(b'\n', &chunk[at..]) else { break };
                    self.line_start = true;
                    at += hit + 1;
                }
                State::Dead => return,
            }
        }
        if matches!(self.state, State::Object | State::Text | State::Escape) {
            let piece = &chunk[start..];
            if self.fits(piece, out) {
                self.partial.extend_from_slice(piece);
            }
        }
        self.position += chunk.len() as u64;
    }

    /// The input has ended: says so where it ends inside something.
    pub fn finish(&mut self, out: &mut Sink<'_>) {
        match self.state {
            State::Object | State::Text | State::Escape => out(Err(malformed(self.begin, "the input ends inside an object"))),
            State::Dead => return,
            _ if self.wrappers > 0 => out(Err(malformed(self.position, "the input ends inside an array"))),
            _ => {}
        }
        *self = Self::new(Limits { max_event_bytes: self.limit, ..Limits::default() }, self.position);
    }

    fn open(&mut self, at: usize) {
        self.state = State::Object;
        self.begin = self.position + at as u64;
        self.depth = 1;
        self.lines = 0;
        self.last = b'{';
    }

    /// Whether a `{` at the start of a line may belong to the object under way. A line of NDJSON that was cut off after
    /// `:` looks the same; that it is the object's first line tells them apart.
    fn expects_value(&self) -> bool {
        self.lines > 1 && matches!(self.last, b':' | b',' | b'[')
    }

    /// Whether the object under way is within the limit with `piece`; if not, the reader is done.
    fn fits(&mut self, piece: &[u8], out: &mut Sink<'_>) -> bool {
        let fits = self.partial.len() + piece.len() <= self.limit;
        if !fits {
            out(Err(FrameError::EventTooLong { offset: self.begin, limit: self.limit }));
            self.state = State::Dead;
            self.partial = Vec::new();
        }
        fits
    }

    /// The object ends with `piece`.
    fn close(&mut self, piece: &[u8], out: &mut Sink<'_>) {
        if !self.fits(piece, out) {
            return;
        }
        self.state = State::Between;
        let mut joined = std::mem::take(&mut self.partial);
        let object = if joined.is_empty() {
            piece
        } else {
            joined.extend_from_slice(piece);
            &joined
        };
        out(Ok(Frame { event: "", data: utf8(object).as_bytes(), offset: self.begin }));
        recycle(&mut joined);
        self.partial = joined;
    }

    /// The object turned out to have broken off after `piece`.
    fn broke_off(&mut self, piece: &[u8], reason: &str, out: &mut Sink<'_>) {
        if self.fits(piece, out) {
            out(Err(malformed(self.begin, reason)));
            recycle(&mut self.partial);
            // What follows a broken line is a new line; what follows a broken part of many lines is the rest of it.
            self.state = if self.lines == 0 { State::Between } else { State::Resync };
        }
    }

    fn broken_string(&mut self, piece: &[u8], out: &mut Sink<'_>) {
        self.broke_off(piece, "a line ends inside a string", out);
        self.line_start = true;
    }
}

fn malformed(offset: u64, reason: &str) -> FrameError {
    FrameError::Malformed { format: "json", offset, reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Said = Vec<Result<String, FrameError>>;

    fn read(limit: usize, chunks: &[&[u8]]) -> Said {
        let mut said = Said::new();
        let mut out = |item: Result<Frame<'_>, FrameError>| {
            said.push(item.map(|frame| String::from_utf8(frame.data.to_vec()).unwrap()));
        };
        let mut reader = Reader::new(Limits { max_event_bytes: limit, ..Limits::default() }, 0);
        for chunk in chunks {
            reader.feed(chunk, &mut out);
        }
        reader.finish(&mut out);
        said
    }

    /// What is said of `text` whole, having checked that it is said of it byte by byte too.
    fn said(text: &str) -> Said {
        let whole = read(1000, &[text.as_bytes()]);
        assert_eq!(read(1000, &text.as_bytes().chunks(1).collect::<Vec<_>>()), whole, "{text}");
        whole
    }

    fn frames(text: &str) -> Vec<String> {
        said(text).into_iter().collect::<Result<_, _>>().unwrap()
    }

    /// Frames where there is one, `!offset` where there is an error.
    fn outline(text: &str) -> Vec<String> {
        let offset = |error| match error {
            FrameError::Malformed { offset, .. } => format!("!{offset}"),
            other => panic!("{other}"),
        };
        said(text).into_iter().map(|item| item.unwrap_or_else(offset)).collect()
    }

    #[test]
    fn all_four_layouts() {
        let expected = [r#"{"a":"}\"\\"}"#, r#"{"b":[{}]}"#];
        let [a, b] = &expected;
        for text in [
            format!("{a}\n{b}\n"),
            format!("{a}\r\n\r\n{b}"),
            format!("{a}{b}"),
            format!("[{a}\r\n,\r\n{b}]"),
            format!("[\n{a},{b}\n]\n"),
        ] {
            assert_eq!(frames(&text), expected, "{text}");
        }
        assert_eq!(frames("{\n \"a\": {\n }\n}\n"), ["{\n \"a\": {\n }\n}"]);
    }

    #[test]
    fn a_broken_line_costs_itself_alone() {
        for broken in [r#"{"a":"#, r#"{"a":1"#, r#"{"a":"cut"#, r#"{"a":"cut\"#, r#"{"a":1,"#, "nonsense", "}", "12 {}", "null"] {
            assert_eq!(outline(&format!("{{\"x\":1}}\n{broken}\n{{\"y\":2}}\n")), ["{\"x\":1}", "!8", "{\"y\":2}"], "{broken}");
        }
    }

    #[test]
    fn a_broken_element_costs_itself_alone() {
        let text = "[{\n \"a\": \"cut\n \",\n \"b\": 1\n}\n,\n{\n \"c\": 3\n}\n]";
        assert_eq!(outline(text), ["!1", "{\n \"c\": 3\n}"]);
        assert_eq!(outline("[1,{},x,{}]"), ["!1", "{}", "!6", "{}"]);
    }

    #[test]
    fn objects_without_indent_are_not_taken_for_broken() {
        let text = "{\n\"a\":\n{\n\"b\": [\n{\n}\n]\n}\n}";
        assert_eq!(frames(text), [text]);
    }

    #[test]
    fn the_end_inside_something_is_said() {
        assert_eq!(outline("{\"a\":1}{\"b\""), ["{\"a\":1}", "!7"]);
        assert_eq!(outline("[{},"), ["{}", "!4"]);
        assert_eq!(outline(" \r\n"), [""; 0]);
    }

    #[test]
    fn at_the_limit_and_one_past() {
        let object = br#"{"a":"12"}"#;
        assert_eq!(read(10, &[object]).len(), 1);
        let too_long = [Err(FrameError::EventTooLong { offset: 0, limit: 9 })];
        assert_eq!(read(9, &[object, b"{}"]), too_long);
        assert_eq!(read(9, &object.chunks(1).collect::<Vec<_>>()), too_long);
    }

    #[test]
    fn bad_utf8_is_replaced() {
        assert_eq!(read(99, &[b"{\"a\":\"\xff\"}"]), [Ok("{\"a\":\"\u{fffd}\"}".to_owned())]);
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(2000))]
        #[test]
        fn any_split_equals_the_whole(text in r#"([{}\[\],:"\\ \n\r]|a|\{"a":1\}\n|\[\{){0,60}"#, cuts in proptest::collection::vec(0_usize..60, 0..6), limit in 3_usize..40) {
            let bytes = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            proptest::prop_assert_eq!(read(limit, &chunks), read(limit, &[bytes]));
        }
    }
}
