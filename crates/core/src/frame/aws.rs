//! AWS event stream messages: a binary prelude, headers of ten types, a payload, two CRC32 checksums.
//!
//! Owns lengths, checksums, headers and what a message is called. Knows nothing of what a payload says.
//! Invariants: 1. any split of the input gives the same frames; 2. no length is believed before the prelude's checksum
//! has vouched for it, and no byte of a message before the message's own; 3. a message that is broken inside costs itself
//! alone, because its prelude says where the next begins; 4. after a bad prelude nothing says where anything begins: the
//! error is fatal, there is no way back into step; 5. a message inside one chunk is not copied.
//!
//! Format: <https://smithy.io/2.0/aws/amazon-eventstream.html>

use super::{Frame, FrameError, Limits, Sink, recycle, utf8};
use crate::event::json::write_str;

/// Total length, headers' length, checksum of those two; four bytes each.
const PRELUDE: usize = 12;
/// The checksum at the end of every message.
const TRAILER: usize = 4;
/// The standard's own limit on a message's headers.
const MAX_HEADER_BYTES: usize = 128 << 10;
/// How the errors name the format.
const FORMAT: &str = "aws event stream";

/// Reads messages. Bytes in, frames out, through a callback.
///
/// A message of `:message-type` "event" is a frame under its `:event-type`; an "exception" is one under its
/// `:exception-type` (all of which end in "Exception"); an "error", whose words stand in its headers, is a frame named
/// "error" with `{"code", "message"}` as its data.
#[derive(Debug, Clone)]
pub struct Reader {
    limits: Limits,
    /// The start of a message whose end has not come.
    partial: Vec<u8>,
    /// Where the message under way begins.
    begin: u64,
    dead: bool,
}

/// A message's length and its headers', vouched for by the prelude's checksum.
struct Prelude {
    total: usize,
    headers: usize,
}

impl Reader {
    /// For bytes that begin at `position` of the stream.
    pub fn new(limits: Limits, position: u64) -> Self {
        Self { limits, partial: Vec::new(), begin: position, dead: false }
    }

    /// Takes a chunk.
    pub fn feed(&mut self, chunk: &[u8], out: &mut Sink<'_>) {
        let mut rest = chunk;
        while !self.dead && !rest.is_empty() {
            if self.partial.is_empty() {
                match self.length(rest) {
                    Ok(Some(total)) if total <= rest.len() => {
                        self.message(&rest[..total], out);
                        rest = &rest[total..];
                    }
                    Ok(_) => {
                        self.partial.extend_from_slice(rest);
                        return;
                    }
                    Err(error) => return self.fail(error, out),
                }
                continue;
            }
            // The prelude first, then the rest of the message: never a byte of the next one.
            let wanted = match self.length(&self.partial) {
                Ok(total) => total.unwrap_or(PRELUDE),
                Err(error) => return self.fail(error, out),
            };
            let taken = rest.len().min(wanted - self.partial.len());
            self.partial.extend_from_slice(&rest[..taken]);
            rest = &rest[taken..];
            match self.length(&self.partial) {
                Ok(Some(total)) if total == self.partial.len() => {
                    let mut whole = std::mem::take(&mut self.partial);
                    self.message(&whole, out);
                    recycle(&mut whole);
                    self.partial = whole;
                }
                Ok(_) => {}
                Err(error) => return self.fail(error, out),
            }
        }
    }

    /// The input has ended.
    pub fn finish(&mut self, out: &mut Sink<'_>) {
        if !self.dead && !self.partial.is_empty() {
            out(Err(self.malformed("the input ends inside a message")));
        }
        self.dead = true;
    }

    fn fail(&mut self, error: FrameError, out: &mut Sink<'_>) {
        self.dead = true;
        out(Err(error));
    }

    fn malformed(&self, reason: &str) -> FrameError {
        FrameError::Malformed { format: FORMAT, offset: self.begin, reason: reason.to_owned() }
    }

    /// How long the message at the start of `bytes` is, once its prelude is there.
    fn length(&self, bytes: &[u8]) -> Result<Option<usize>, FrameError> {
        let Some(prelude) = bytes.first_chunk::<PRELUDE>() else { return Ok(None) };
        let lost = |reason: &str| FrameError::Lost { format: FORMAT, offset: self.begin, reason: reason.to_owned() };
        if crc32fast::hash(&prelude[..8]) != u32_at(prelude, 8) {
            return Err(lost("the prelude's checksum does not match"));
        }
        let Prelude { total, headers } = lengths(prelude);
        let Some(payload) = total.checked_sub(PRELUDE + headers + TRAILER) else {
            return Err(lost("the headers do not fit into the message"));
        };
        if headers > MAX_HEADER_BYTES {
            return Err(FrameError::EventTooLong { offset: self.begin, limit: MAX_HEADER_BYTES });
        }
        if payload > self.limits.max_event_bytes {
            return Err(FrameError::EventTooLong { offset: self.begin, limit: self.limits.max_event_bytes });
        }
        Ok(Some(total))
    }

    /// One whole message, its prelude checked.
    fn message(&mut self, bytes: &[u8], out: &mut Sink<'_>) {
        let offset = self.begin;
        let (body, trailer) = bytes.split_at(bytes.len() - TRAILER);
        if crc32fast::hash(body) == u32_at(trailer, 0) {
            let (headers, payload) = body[PRELUDE..].split_at(lengths(bytes).headers);
            match Headers::read(headers) {
                Ok(headers) => headers.deliver(payload, offset, out),
                Err(reason) => out(Err(self.malformed(reason))),
            }
        } else {
            out(Err(self.malformed("the message's checksum does not match")));
        }
        self.begin += bytes.len() as u64;
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |four| u32::from_be_bytes(*four))
}

fn lengths(bytes: &[u8]) -> Prelude {
    // A length beyond the address space is beyond every limit too.
    let length = |at| usize::try_from(u32_at(bytes, at)).unwrap_or(usize::MAX);
    Prelude { total: length(0), headers: length(4).min(usize::MAX / 2) }
}

/// The headers that say what a message is.
#[derive(Default)]
struct Headers<'a> {
    message: &'a str,
    event: &'a str,
    exception: &'a str,
    code: &'a str,
    text: &'a str,
}

impl<'a> Headers<'a> {
    fn read(mut bytes: &'a [u8]) -> Result<Self, &'static str> {
        let mut headers = Self::default();
        while let Some((&length, rest)) = bytes.split_first() {
            let (name, rest) = rest.split_at_checked(length.into()).ok_or("a header's name is cut")?;
            let (&kind, rest) = rest.split_first().ok_or("a header has no type")?;
            let (prefix, length) = match kind {
                0 | 1 => (0, 0), // true, false
                2 => (0, 1),
                3 => (0, 2),
                4 => (0, 4),
                5 | 8 => (0, 8), // a long, a timestamp
                6 | 7 => {
                    let length = rest.first_chunk().ok_or("a header's value is cut")?;
                    (2, u16::from_be_bytes(*length).into())
                }
                9 => (0, 16), // a UUID
                _ => return Err("a header of an unknown type"),
            };
            let (value, rest) = rest[prefix..].split_at_checked(length).ok_or("a header's value is cut")?;
            if kind == 7 {
                headers.keep(name, std::str::from_utf8(value).map_err(|_| "a header's text is not UTF-8")?);
            }
            bytes = rest;
        }
        Ok(headers)
    }

    fn keep(&mut self, name: &[u8], value: &'a str) {
        match name {
            b":message-type" => self.message = value,
            b":event-type" => self.event = value,
            b":exception-type" => self.exception = value,
            b":error-code" => self.code = value,
            b":error-message" => self.text = value,
            _ => {}
        }
    }

    fn deliver(&self, payload: &[u8], offset: u64, out: &mut Sink<'_>) {
        if self.message == "error" {
            let mut data = b"{\"code\":".to_vec();
            write_str(&mut data, self.code);
            data.extend_from_slice(b",\"message\":");
            write_str(&mut data, self.text);
            data.push(b'}');
            return out(Ok(Frame { event: "error", data: &data, offset }));
        }
        let event = match (self.message, self.exception) {
            ("exception", "") => "Exception",
            ("exception", name) => name,
            _ => self.event,
        };
        out(Ok(Frame { event, data: utf8(payload).as_bytes(), offset }));
    }
}

/// Builds messages, for tests.
#[cfg(test)]
pub(crate) mod encode {
    /// A header of type string.
    pub(crate) fn text(name: &str, value: &str) -> Vec<u8> {
        let mut value_bytes = u16::try_from(value.len()).unwrap().to_be_bytes().to_vec();
        value_bytes.extend_from_slice(value.as_bytes());
        header(name, 7, &value_bytes)
    }

    /// A header of any type, its value as it stands on the wire.
    pub(crate) fn header(name: &str, kind: u8, value: &[u8]) -> Vec<u8> {
        let mut out = vec![u8::try_from(name.len()).unwrap()];
        out.extend_from_slice(name.as_bytes());
        out.push(kind);
        out.extend_from_slice(value);
        out
    }

    /// A message of these headers.
    pub(crate) fn message(headers: &[Vec<u8>], payload: &[u8]) -> Vec<u8> {
        let headers = headers.concat();
        let total = u32::try_from(headers.len() + payload.len() + 16).unwrap();
        let mut out = total.to_be_bytes().to_vec();
        out.extend_from_slice(&u32::try_from(headers.len()).unwrap().to_be_bytes());
        out.extend_from_slice(&crc32fast::hash(&out).to_be_bytes());
        out.extend_from_slice(&headers);
        out.extend_from_slice(payload);
        out.extend_from_slice(&crc32fast::hash(&out).to_be_bytes());
        out
    }

    /// An event of this name.
    pub(crate) fn event(name: &str, payload: &str) -> Vec<u8> {
        message(&[text(":event-type", name), text(":message-type", "event")], payload.as_bytes())
    }

    /// An exception of this name.
    pub(crate) fn exception(name: &str, payload: &str) -> Vec<u8> {
        message(&[text(":exception-type", name), text(":message-type", "exception")], payload.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::encode::{event, exception, header, message, text};
    use super::*;

    fn read(limit: usize, chunks: &[&[u8]]) -> Vec<String> {
        let mut said = Vec::new();
        let mut out = |item: Result<Frame<'_>, FrameError>| {
            said.push(match item {
                Ok(frame) => format!("{} {}|{}", frame.offset, frame.event, std::str::from_utf8(frame.data).unwrap()),
                Err(error) if error.is_fatal() => format!("!!{error}"),
                Err(error) => format!("!{error}"),
            });
        };
        let mut reader = Reader::new(Limits { max_event_bytes: limit, ..Limits::default() }, 0);
        for chunk in chunks {
            reader.feed(chunk, &mut out);
        }
        reader.finish(&mut out);
        reader.feed(&event("late", "{}"), &mut out);
        said
    }

    fn said(bytes: &[u8]) -> Vec<String> {
        let whole = read(1 << 20, &[bytes]);
        assert_eq!(read(1 << 20, &bytes.chunks(1).collect::<Vec<_>>()), whole);
        whole
    }

    #[test]
    fn messages_are_frames_under_their_names() {
        let first = event("chunk", r#"{"a":1}"#);
        let bytes = [first.clone(), event("metadata", ""), exception("throttlingException", "{}")].concat();
        let second = first.len();
        let third = second + event("metadata", "").len();
        assert_eq!(
            said(&bytes),
            [r#"0 chunk|{"a":1}"#.to_owned(), format!("{second} metadata|"), format!("{third} throttlingException|{{}}")]
        );
        assert_eq!(said(b""), [""; 0]);
    }

    #[test]
    fn an_error_message_speaks_in_its_headers() {
        let headers = [text(":error-message", "try \"later\""), text(":message-type", "error"), text(":error-code", "Busy")];
        assert_eq!(said(&message(&headers, b"")), [r#"0 error|{"code":"Busy","message":"try \"later\""}"#]);
    }

    #[test]
    fn headers_of_every_type_are_passed_over() {
        let headers = [
            header("t", 0, b""),
            header("f", 1, b""),
            header("byte", 2, &[1]),
            header("short", 3, &[0; 2]),
            header("int", 4, &[0; 4]),
            header("long", 5, &[0; 8]),
            header("bytes", 6, b"\x00\x03abc"),
            text(":message-type", "event"),
            header("time", 8, &[0; 8]),
            header("uuid", 9, &[7; 16]),
            text(":event-type", "last"),
        ];
        assert_eq!(said(&message(&headers, b"{}")), ["0 last|{}"]);
        assert_eq!(said(&message(&[], b"{}")), ["0 |{}"]);
    }

    #[test]
    fn broken_headers_cost_their_message_alone() {
        for (broken, reason) in [
            (vec![9], "a header's name is cut"),
            (b"\x01a".to_vec(), "a header has no type"),
            (header("a", 7, &[0]), "a header's value is cut"),
            (header("a", 7, b"\x00\x09abc"), "a header's value is cut"),
            (header("a", 9, &[0; 15]), "a header's value is cut"),
            (header("a", 10, b""), "a header of an unknown type"),
            (header("a", 7, b"\x00\x01\xff"), "a header's text is not UTF-8"),
        ] {
            let bytes = [message(&[broken], b"{}"), event("next", "{}")].concat();
            let said = said(&bytes);
            assert_eq!(said[0], format!("!malformed aws event stream at byte 0: {reason}"));
            assert!(said[1].ends_with("next|{}"), "{reason}");
        }
    }

    #[test]
    fn a_wrong_checksum_of_a_message_costs_it_alone() {
        let (first, mut second, third) = (event("a", "{}"), event("b", "{}"), event("c", "{}"));
        let at = second.len() - 5;
        second[at] ^= 1;
        let bytes = [first.clone(), second.clone(), third].concat();
        assert_eq!(
            said(&bytes),
            [
                "0 a|{}".to_owned(),
                format!("!malformed aws event stream at byte {}: the message's checksum does not match", first.len()),
                format!("{} c|{{}}", first.len() + second.len()),
            ]
        );
    }

    #[test]
    fn a_bad_prelude_is_the_last_thing_said() {
        for at in 0..12 {
            let mut second = event("b", "{}");
            second[at] ^= 0x10;
            let bytes = [event("a", "{}"), second, event("c", "{}")].concat();
            let said = said(&bytes);
            assert_eq!(said.len(), 2);
            assert!(said[1].starts_with("!!lost in aws event stream at byte "), "{}", said[1]);
        }
        // Vouched for, and impossible all the same.
        let mut lie = 20_u32.to_be_bytes().to_vec();
        lie.extend_from_slice(&5_u32.to_be_bytes());
        lie.extend_from_slice(&crc32fast::hash(&lie).to_be_bytes());
        assert_eq!(said(&lie), ["!!lost in aws event stream at byte 0: the headers do not fit into the message"]);
    }

    #[test]
    fn the_end_inside_a_message_is_said() {
        let bytes = event("a", "{}");
        for cut in 1..bytes.len() {
            assert_eq!(said(&bytes[..cut]), ["!malformed aws event stream at byte 0: the input ends inside a message"], "{cut}");
        }
    }

    #[test]
    fn at_the_limit_and_one_past() {
        let bytes = event("a", "123456");
        assert_eq!(read(6, &[&bytes]), ["0 a|123456"]);
        let one_past = ["!!event at byte 0 is larger than 5 bytes"];
        assert_eq!(read(5, &[&bytes]), one_past);
        // Refused before a byte of the payload has come.
        assert_eq!(read(5, &[&bytes[..12]]), one_past);
        let headers = message(&vec![header("a", 6, b"\xff\xff").into_iter().chain(vec![0; 0xffff]).collect(); 3], b"");
        assert_eq!(said(&headers), ["!!event at byte 0 is larger than 131072 bytes"]);
    }

    #[test]
    fn bad_utf8_is_replaced() {
        let bytes = message(&[text(":event-type", "a")], b"\"\xff\"");
        assert_eq!(said(&bytes), ["0 a|\"\u{fffd}\""]);
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(1000))]
        #[test]
        fn any_split_equals_the_whole(
            payloads in proptest::collection::vec("[a-zé]{0,40}", 0..6),
            flips in proptest::collection::vec((0_usize..400, 0_u8..8), 0..3),
            cuts in proptest::collection::vec(0_usize..400, 0..8),
            limit in 8_usize..60,
        ) {
            let mut bytes: Vec<u8> = payloads.iter().flat_map(|payload| event("e", payload)).collect();
            for (at, bit) in flips {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << bit;
                }
            }
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            proptest::prop_assert_eq!(read(limit, &chunks), read(limit, &[&bytes]));
        }

        #[test]
        fn any_bytes_do_not_panic(bytes in proptest::collection::vec(0_u8..=255, 0..200)) {
            read(64, &[&bytes]);
            read(64, &[&message(std::slice::from_ref(&bytes), &bytes)]);
        }
    }
}
