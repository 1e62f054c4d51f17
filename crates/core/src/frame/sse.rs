//! Server-sent events by the WHATWG standard, from bytes in any split.
//!
//! Owns the meaning of a line: field, value, dispatch, last event id, retry. Line ends belong to [`super::lines`].
//! Knows nothing of what an event's data says, nor of reconnecting.
//! Rule: <https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation>.
//! Invariants: 1. any split of the input gives the same items; 2. an event with one data line inside one chunk is not
//! copied; 3. a block that the input breaks off gives nothing, unless the decoder is lenient; 4. data, names and ids
//! are UTF-8: a bad sequence becomes U+FFFD, as in the standard's decoder; 5. after an error nothing more is decoded.

use std::borrow::Cow;

use super::lines::{Bom, Line, Lines};
use super::{FrameError, Limits, recycle, utf8};

/// One dispatched event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event<'a> {
    /// The `event` field; empty when not named, which a browser calls "message".
    pub name: &'a str,
    /// The data lines, joined by LF.
    pub data: &'a str,
    /// The last event id at dispatch: it persists over events, "" = none.
    pub id: &'a str,
    /// A valid `retry` of this event's own block, in milliseconds.
    pub retry: Option<u64>,
    /// Where the block's first field begins, in bytes from the start of the stream.
    pub offset: u64,
}

/// What a stream holds. Most readers look at events and ignore the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Item<'a> {
    /// A block with data.
    Event(Event<'a>),
    /// What follows the colon of a comment line.
    Comment(&'a str),
    /// A line with a field that the standard does not name, and where it begins.
    Unknown(&'a [u8], u64),
}

/// A line, taken apart. Nothing is checked or copied.
enum Field<'a> {
    Blank,
    Comment(&'a [u8]),
    Data(&'a [u8]),
    Event(&'a [u8]),
    Id(&'a [u8]),
    Retry(&'a [u8]),
    Unknown,
}

/// The name before the first colon and the value after it, less one space.
pub(super) fn split_field(line: &[u8]) -> (&[u8], &[u8]) {
    match memchr::memchr(b':', line) {
        None => (line, b""),
        Some(colon) => (&line[..colon], value(&line[colon + 1..])),
    }
}

fn value(after_colon: &[u8]) -> &[u8] {
    after_colon.strip_prefix(b" ").unwrap_or(after_colon)
}

impl<'a> Field<'a> {
    #[inline]
    fn of(line: &'a [u8]) -> Self {
        // Nearly every line is one of these three.
        if let Some(rest) = line.strip_prefix(b"data:") {
            return Self::Data(value(rest));
        }
        match line.first() {
            None => return Self::Blank,
            Some(b':') => return Self::Comment(&line[1..]),
            Some(_) => {}
        }
        match split_field(line) {
            (b"data", value) => Self::Data(value),
            (b"event", value) => Self::Event(value),
            (b"id", value) => Self::Id(value),
            (b"retry", value) => Self::Retry(value),
            _ => Self::Unknown,
        }
    }
}

/// The block under way: what the fields since the last blank line have set.
#[derive(Debug, Clone, Default)]
struct Block {
    name: String,
    data: Vec<u8>,
    has_data: bool,
    /// A new value for the last event id, committed by the blank line.
    id: String,
    has_id: bool,
    retry: Option<u64>,
    begin: Option<u64>,
}

/// The decoder. Does no I/O; bytes in, items out, through a callback.
#[derive(Debug, Clone)]
pub struct Decoder {
    limits: Limits,
    lenient: bool,
    bom: Bom,
    lines: Lines,
    block: Block,
    last_event_id: String,
    retry: Option<u64>,
    failed: Option<FrameError>,
}

impl Decoder {
    /// For the start of a stream.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            lenient: false,
            bom: Bom::default(),
            lines: Lines::new(limits.max_line_bytes, 0),
            block: Block::default(),
            last_event_id: String::new(),
            retry: None,
            failed: None,
        }
    }

    /// For a stream whose first `position` bytes, a BOM among them or not, somebody else has taken.
    pub(super) fn resume(limits: Limits, position: u64) -> Self {
        Self { bom: Bom::passed(), lines: Lines::new(limits.max_line_bytes, position), ..Self::new(limits) }
    }

    /// Whether the end of input ends the last line and the last block too: some servers leave out the last blank line.
    /// The standard says no, since the connection may have been lost in the middle.
    #[must_use]
    pub fn lenient(mut self, lenient: bool) -> Self {
        self.lenient = lenient;
        self
    }

    /// Takes a chunk. `out` sees each item once, in order.
    ///
    /// # Errors
    /// A line or an event is longer than the limits. The items before it have been given; the same error comes again
    /// for every later call.
    pub fn feed(&mut self, chunk: &[u8], out: &mut (impl FnMut(Item<'_>) + ?Sized)) -> Result<(), FrameError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let mut rest = chunk;
        if self.bom.pending() {
            let (no_bom, tail) = self.bom.strip(chunk);
            self.lines.begin_at(self.bom.len());
            let done = self.take(no_bom, false, out);
            self.remember(done.map(drop))?;
            rest = tail;
        }
        let done = self.take(rest, false, out);
        self.remember(done.map(drop))
    }

    /// As [`Self::feed`], but stops behind the first blank line. Returns how many bytes it took.
    ///
    /// # Errors
    /// As [`Self::feed`].
    pub(super) fn feed_block(&mut self, chunk: &[u8], out: &mut (impl FnMut(Item<'_>) + ?Sized)) -> Result<usize, FrameError> {
        if self.bom.pending() || self.failed.is_some() {
            return self.feed(chunk, out).map(|()| chunk.len());
        }
        let done = self.take(chunk, true, out);
        self.remember(done.as_ref().map(drop).map_err(Clone::clone))?;
        done
    }

    /// Whether the next byte begins a block, with nothing of an earlier one left; then, how long a block may be whatever
    /// its lines.
    pub(super) fn between_blocks(&self) -> Option<usize> {
        let between = self.block.begin.is_none() && self.lines.is_clear() && !self.bom.pending() && self.failed.is_none();
        between.then(|| self.limits.max_line_bytes.min(self.limits.max_event_bytes))
    }

    /// Passes over a block that somebody else has read, between two others.
    pub(super) fn skip(&mut self, length: usize) {
        self.lines.skip(length);
    }

    /// The input has ended. Gives an event only where the decoder is lenient.
    ///
    /// # Errors
    /// As [`Self::feed`].
    pub fn finish(&mut self, out: &mut (impl FnMut(Item<'_>) + ?Sized)) -> Result<(), FrameError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let line = self.lines.take_joined();
        let mut done = Ok(());
        if self.lenient {
            if !line.is_empty() {
                done = self.joined(&line, out).map(drop);
            }
            if done.is_ok() {
                self.dispatch(None, out);
            }
        }
        self.block = Block::default();
        self.remember(done)
    }

    /// The last event id that a reconnect would send. "" = none.
    pub fn last_event_id(&self) -> &str {
        &self.last_event_id
    }

    /// The reconnection time the stream has set last, in milliseconds.
    pub fn retry(&self) -> Option<u64> {
        self.retry
    }

    fn remember(&mut self, done: Result<(), FrameError>) -> Result<(), FrameError> {
        self.failed = done.as_ref().err().cloned();
        done
    }

    /// Takes `chunk`, or its first block alone; returns how many bytes it took.
    fn take(&mut self, chunk: &[u8], one_block: bool, out: &mut (impl FnMut(Item<'_>) + ?Sized)) -> Result<usize, FrameError> {
        let mut rest = chunk;
        let mut first = None;
        let done = loop {
            let line = match self.lines.next(&mut rest) {
                Ok(Some(Line::Inside(line))) => self.line(line, &mut first, out),
                Ok(Some(Line::Joined)) => {
                    let line = self.lines.take_joined();
                    let done = self.joined(&line, out);
                    self.lines.give_back(line);
                    done
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            };
            match line {
                Ok(blank) if blank && one_block => break Ok(()),
                Ok(_) => {}
                Err(error) => break Err(error),
            }
        };
        self.keep(first);
        done.map(|()| chunk.len() - rest.len())
    }

    /// A line that does not outlive the call.
    fn joined(&mut self, line: &[u8], out: &mut (impl FnMut(Item<'_>) + ?Sized)) -> Result<bool, FrameError> {
        let mut first = None;
        let done = self.line(line, &mut first, out);
        self.keep(first);
        done
    }

    /// Takes one line; says whether it was a blank one. `first` is the block's only data line so far, as long as it can
    /// stay where it is.
    #[inline]
    fn line<'a>(
        &mut self,
        line: &'a [u8],
        first: &mut Option<&'a [u8]>,
        out: &mut (impl FnMut(Item<'_>) + ?Sized),
    ) -> Result<bool, FrameError> {
        let field = Field::of(line);
        match field {
            Field::Blank => {
                self.dispatch(first.take(), out);
                return Ok(true);
            }
            Field::Comment(text) => {
                out(Item::Comment(&utf8(text)));
                return Ok(false);
            }
            Field::Unknown => {
                out(Item::Unknown(line, self.lines.start()));
                return Ok(false);
            }
            _ => {}
        }
        let begin = *self.block.begin.get_or_insert(self.lines.start());
        match field {
            Field::Data(value) => {
                let before = if self.block.has_data { first.map_or(self.block.data.len(), <[u8]>::len) + 1 } else { 0 };
                if before + value.len() > self.limits.max_event_bytes {
                    return Err(FrameError::EventTooLong { offset: begin, limit: self.limits.max_event_bytes });
                }
                if self.block.has_data {
                    self.keep(first.take());
                    self.block.data.push(b'\n');
                    self.block.data.extend_from_slice(value);
                } else {
                    self.block.has_data = true;
                    *first = Some(value);
                }
            }
            Field::Event(value) => set(&mut self.block.name, value),
            Field::Id(value) if !value.contains(&0) => {
                set(&mut self.block.id, value);
                self.block.has_id = true;
            }
            Field::Retry(value) => {
                if let Some(milliseconds) = digits(value) {
                    self.block.retry = Some(milliseconds);
                    self.retry = Some(milliseconds);
                }
            }
            _ => {}
        }
        Ok(false)
    }

    /// Copies a data line that its chunk will not outlast.
    fn keep(&mut self, first: Option<&[u8]>) {
        if let Some(value) = first {
            self.block.data.extend_from_slice(value);
        }
    }

    /// The blank line: commits the id, gives the event if there is data, starts a new block.
    #[inline]
    fn dispatch(&mut self, first: Option<&[u8]>, out: &mut (impl FnMut(Item<'_>) + ?Sized)) {
        let Some(offset) = self.block.begin.take() else { return };
        if std::mem::take(&mut self.block.has_id) {
            std::mem::swap(&mut self.last_event_id, &mut self.block.id);
        }
        let retry = self.block.retry.take();
        if std::mem::take(&mut self.block.has_data) {
            let data: Cow<'_, str> = utf8(first.unwrap_or(&self.block.data));
            out(Item::Event(Event { name: &self.block.name, data: &data, id: &self.last_event_id, retry, offset }));
        }
        self.block.name.clear();
        recycle(&mut self.block.data);
    }
}

fn set(field: &mut String, value: &[u8]) {
    field.clear();
    field.push_str(&utf8(value));
}

/// A `retry` value: ASCII digits alone. More milliseconds than 64 bits hold are as good as never.
fn digits(value: &[u8]) -> Option<u64> {
    if value.is_empty() {
        return None;
    }
    value.iter().try_fold(0_u64, |number, byte| {
        byte.is_ascii_digit().then(|| number.saturating_mul(10).saturating_add(u64::from(byte - b'0')))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_LIMITS: Limits = Limits { max_line_bytes: usize::MAX, max_event_bytes: usize::MAX };

    /// Everything a decoder says, as text.
    fn said(limits: Limits, lenient: bool, chunks: &[&[u8]]) -> Vec<String> {
        let mut said = Vec::new();
        let mut out = |item: Item<'_>| said.push(format!("{item:?}"));
        let mut decoder = Decoder::new(limits).lenient(lenient);
        let mut done = Ok(());
        for chunk in chunks {
            done = decoder.feed(chunk, &mut out);
        }
        done = done.and(decoder.finish(&mut out));
        said.extend(done.err().map(|error| error.to_string()));
        said.push(format!("{:?} {:?}", decoder.last_event_id(), decoder.retry()));
        said
    }

    fn data(lenient: bool, input: &[u8]) -> Vec<String> {
        let mut data = Vec::new();
        let mut out = |item: Item<'_>| {
            if let Item::Event(event) = item {
                data.push(event.data.to_owned());
            }
        };
        let mut decoder = Decoder::new(NO_LIMITS).lenient(lenient);
        decoder.feed(input, &mut out).unwrap();
        decoder.finish(&mut out).unwrap();
        data
    }

    #[test]
    fn an_unterminated_event_comes_only_when_lenient() {
        for input in ["data: a\n\ndata: b", "data: a\n\ndata: b\n", "data: a\r\rdata: b\r"] {
            assert_eq!(data(false, input.as_bytes()), ["a"]);
            assert_eq!(data(true, input.as_bytes()), ["a", "b"]);
        }
        assert_eq!(data(true, b"data: a\n\n"), ["a"], "and only once");
    }

    #[test]
    fn at_the_limits_and_one_past() {
        let limits = Limits { max_line_bytes: 10, max_event_bytes: 7 };
        let fails = |input: &[u8]| {
            let chunks: Vec<&[u8]> = input.chunks(1).collect();
            let whole = said(limits, false, &[input]);
            assert_eq!(said(limits, false, &chunks), whole);
            whole.into_iter().find(|line| line.contains(" longer ") || line.contains(" larger "))
        };
        assert_eq!(fails(b"data: 1234\ndata: 67\n\n"), None);
        assert_eq!(fails(b"data: 1\n\ndata: 1234\ndata: 678\n\n").unwrap(), "event at byte 9 is larger than 7 bytes");
        assert_eq!(fails(b"data:1\r\ndata: 12345\n").unwrap(), "line at byte 8 is longer than 10 bytes");
        assert_eq!(fails(b":123456789\n"), None);
        assert_eq!(fails(b":1234567890\n").unwrap(), "line at byte 0 is longer than 10 bytes");
    }

    #[test]
    fn an_error_ends_the_stream_and_keeps_what_came_before() {
        let limits = Limits { max_line_bytes: 9, ..NO_LIMITS };
        let mut decoder = Decoder::new(limits);
        let mut events = 0;
        let mut out = |_: Item<'_>| events += 1;
        let error = decoder.feed(b"data: a\n\ndata: 1234567\n\n", &mut out).unwrap_err();
        assert_eq!(error, FrameError::LineTooLong { offset: 9, limit: 9 });
        assert_eq!(decoder.feed(b"data: b\n\n", &mut out), Err(error.clone()));
        assert_eq!(decoder.finish(&mut out), Err(error));
        assert_eq!(events, 1);
    }

    #[test]
    fn fields_that_the_standard_does_not_name_are_given_as_they_stand() {
        let input = b"\xEF\xBB\xBFdata: a\nerror: {}\n\n";
        assert_eq!(said(NO_LIMITS, false, &[input])[0], format!("{:?}", Item::Unknown(b"error: {}", 11)));
    }

    #[test]
    fn a_long_line_byte_by_byte_is_linear() {
        // What this thread has had of a processor: whoever else is on the machine does not count.
        let cpu_time = || {
            let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
            std::time::Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
        };
        let time = |length: usize| {
            let mut decoder = Decoder::new(NO_LIMITS);
            let begin = cpu_time();
            for _ in 0..length {
                decoder.feed(b"x", &mut |_| {}).unwrap();
            }
            cpu_time().saturating_sub(begin)
        };
        time(1 << 20);
        let (small, large) = (time(1 << 20), time(8 << 20));
        // 8 times the bytes; quadratic would be 64 times.
        assert!(large < small * 32, "{small:?} {large:?}");
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(2000))]
        #[test]
        fn any_split_equals_the_whole(
            pieces in proptest::collection::vec(proptest::sample::select(&PIECES[..]), 0..24),
            cuts in proptest::collection::vec(0_usize..120, 0..8),
            limit in 4_usize..40,
            lenient: bool,
        ) {
            let input = pieces.concat();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(input.len())).collect();
            cuts.extend([0, input.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|pair| &input[pair[0]..pair[1]]).collect();
            for limits in [NO_LIMITS, Limits { max_line_bytes: limit, max_event_bytes: limit }] {
                proptest::prop_assert_eq!(said(limits, lenient, &chunks), said(limits, lenient, &[&input]));
            }
        }
    }

    const PIECES: [&[u8]; 21] = [
        b"\n",
        b"\r",
        b"\r\n",
        b"\n\n",
        b":",
        b" ",
        b"data",
        b"data: ",
        b"data:x\n",
        b"event: e\n",
        b"id: 1\n",
        b"id\n",
        b"id: a\0b\n",
        b"retry: 9\n",
        b"retry: 9x\n",
        b"\xEF\xBB\xBF",
        b"\xEF",
        b"\xE2\x82",
        b"\xAC",
        b"\xFF",
        b"error: {}\n",
    ];
}
