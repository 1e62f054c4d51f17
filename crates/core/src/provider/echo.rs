//! The shortcut for frames that differ from the one before in one string: most of any stream.
//!
//! A provider's server serialises one object again and again and changes the piece of text in it. Once a frame has been
//! read in full and its provider has said that it held one piece and nothing else ([`Assembler::echo`]), the bytes
//! around that piece are remembered; a frame that has the same bytes around another string means the same with that
//! string. Comparing costs 40 ns where reading costs 600 (325-byte OpenAI chunks).
//!
//! Server-sent events are compared as they stand on the wire, before anybody has looked for a line's end: that saves the
//! frame reader's work too, a quarter of an event's whole cost. Where an event comes in two pieces, its frame is compared.
//!
//! Owns the comparison. Knows no provider: which members carry noise is told by it. Invariants: 1. a frame that
//! is taken here is valid JSON, as the remembered one was, and equal to it but for the piece and for the values of noise
//! members; 2. any frame that is not taken is read in full, and ends what was remembered; 3. memory is one frame.
//!
//! [`Assembler::echo`]: super::Assembler::echo

use std::borrow::Cow;

use memchr::memmem;

use crate::frame::Frame;

/// What a piece is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// Text of the message under this key.
    Text(u64),
    /// Reasoning of the message under this key, and its part.
    Reasoning(u64, Option<u64>),
    /// Arguments of the call under this key.
    Arguments(u64),
}

/// A piece, and where it stood in memory when its frame was read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heard {
    pub(super) piece: Piece,
    pub(super) address: usize,
    pub(super) length: usize,
}

/// What may differ at one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hole {
    Piece,
    String,
    Number,
}

/// A frame's bytes, with holes.
#[derive(Debug)]
pub(super) struct Echo {
    pub(super) piece: Piece,
    event: String,
    /// Each hole, and the bytes before it.
    parts: Vec<(Vec<u8>, Hole)>,
    /// The bytes after the last hole, up to the closing brackets.
    tail: Vec<u8>,
    /// How many brackets close the frame. Blanks may stand between them: some servers pad their frames there.
    brackets: usize,
    block: Block,
}

/// The frame as it stands on the wire, in an event of server-sent ones.
#[derive(Debug)]
enum Block {
    /// Not looked at yet: where the frame's data stood in memory, and its length.
    Unseen(usize, usize),
    /// Not in one piece, or with more in it than its data and its name.
    Other,
    /// The bytes up to the first hole, and those behind the data.
    Known(Vec<u8>, &'static [u8]),
}

impl Echo {
    /// Remembers `frame`, of which `heard` is a part; none where the piece was not copied from the frame as it stands.
    pub(super) fn learn(frame: &Frame<'_>, heard: Heard, noise: &[&str]) -> Option<Self> {
        let data = frame.data;
        let start = heard.address.checked_sub(data.as_ptr() as usize)?;
        let end = start.checked_add(heard.length)?;
        if start == 0 || data.get(end) != Some(&b'"') || data[start - 1] != b'"' {
            return None;
        }
        let mut holes = vec![(start, end, Hole::Piece)];
        for name in noise {
            // Inside a JSON string this text cannot stand: its quotes would be escaped.
            let key = format!("\"{name}\":");
            let Some(at) = memmem::find(data, key.as_bytes()) else { continue };
            let value = at + key.len();
            match data.get(value)? {
                b'"' => {
                    let (_, length) = string_at(&data[value + 1..])?;
                    holes.push((value + 1, value + 1 + length, Hole::String));
                }
                byte if byte.is_ascii_digit() => holes.push((value, value + digits(&data[value..]), Hole::Number)),
                _ => {}
            }
        }
        holes.sort_unstable_by_key(|hole| hole.0);
        if holes.windows(2).any(|pair| pair[0].1 > pair[1].0) {
            return None;
        }
        let mut from = 0;
        let mut parts = Vec::with_capacity(holes.len());
        for (start, end, hole) in holes {
            parts.push((data[from..start].to_vec(), hole));
            from = end;
        }
        let tail = &data[from..];
        let (tail, closing) = tail.split_at(tail.iter().rposition(|byte| !matches!(byte, b'}' | b' ')).map_or(0, |at| at + 1));
        let brackets = memchr::memchr_iter(b'}', closing).count();
        let block = Block::Unseen(data.as_ptr() as usize, data.len());
        Some(Self { piece: heard.piece, event: frame.event.to_owned(), parts, tail: tail.to_vec(), brackets, block })
    }

    /// Remembers the event on the wire in which the last frame stood, if `bytes` are that event and nothing else.
    pub(super) fn learn_block(&mut self, bytes: &[u8]) {
        if let Block::Unseen(address, length) = self.block {
            self.block = self.block_in(bytes, address, length).unwrap_or(Block::Other);
        }
    }

    fn block_in(&self, bytes: &[u8], address: usize, length: usize) -> Option<Block> {
        let start = address.checked_sub(bytes.as_ptr() as usize)?;
        let close: &[u8] = match bytes.get(start.checked_add(length)?..)? {
            b"\n\n" => b"\n\n",
            b"\r\n\r\n" => b"\r\n\r\n",
            _ => return None,
        };
        // Any other line might mean something: an id, a comment, an error that a server says in its own way.
        let head = &bytes[..start];
        let name = head.strip_suffix(b"data: ").or_else(|| head.strip_suffix(b"data:"))?;
        if !name.is_empty() {
            let name = name.strip_prefix(b"event:")?.strip_suffix(&close[..close.len() / 2])?;
            if memchr::memchr2(b'\n', b'\r', name).is_some() {
                return None;
            }
        }
        Some(Block::Known([head, &self.parts[0].0].concat(), close))
    }

    /// The piece of the event that `bytes` begin with, and how long that event is.
    #[inline]
    pub(super) fn hear_block<'a>(&self, bytes: &'a [u8]) -> Option<(Cow<'a, str>, usize)> {
        let Block::Known(head, close) = &self.block else { return None };
        let (piece, rest) = self.holes(bytes.strip_prefix(head.as_slice())?)?;
        let rest = rest.strip_prefix(*close)?;
        Some((piece, bytes.len() - rest.len()))
    }

    /// The piece that `frame` has where the remembered one had its own, if the rest is the same.
    pub(super) fn hear<'a>(&mut self, frame: &Frame<'a>) -> Option<Cow<'a, str>> {
        // Not `!=`: glibc's memcmp loads a whole vector, masked, which took 120 ns a frame where a short name stood at the
        // end of a page.
        if !frame.event.bytes().eq(self.event.bytes()) {
            return None;
        }
        let (piece, rest) = self.holes(frame.data.strip_prefix(self.parts[0].0.as_slice())?)?;
        if !rest.is_empty() {
            return None;
        }
        if !matches!(self.block, Block::Known(..)) {
            self.block = Block::Unseen(frame.data.as_ptr() as usize, frame.data.len());
        }
        Some(piece)
    }

    /// The piece in `rest`, which begins with the first hole, and what stands behind the closing brackets.
    #[inline]
    fn holes<'a>(&self, mut rest: &'a [u8]) -> Option<(Cow<'a, str>, &'a [u8])> {
        let mut piece = None;
        for (i, (before, hole)) in self.parts.iter().enumerate() {
            if i > 0 {
                rest = rest.strip_prefix(before.as_slice())?;
            }
            let length = match hole {
                Hole::Number => digits(rest),
                Hole::String => {
                    // Nobody looks at it, so it must need no look: no escape that could be a wrong one.
                    let (plain, length) = string_at(rest)?;
                    if !plain || !rest[..length].is_ascii() {
                        return None;
                    }
                    length
                }
                Hole::Piece => {
                    let (plain, length) = string_at(rest)?;
                    piece = Some((plain, &rest[..length]));
                    length
                }
            };
            if *hole == Hole::Number && (length == 0 || (length > 1 && rest[0] == b'0')) {
                return None;
            }
            rest = &rest[length..];
        }
        // The tail ends outside of strings: a string's own quote would stand behind its brackets and blanks.
        rest = rest.strip_prefix(self.tail.as_slice())?;
        let mut open = self.brackets;
        while let Some((byte, behind)) = rest.split_first() {
            match byte {
                b'}' if open > 0 => open -= 1,
                b' ' => {}
                _ => break,
            }
            rest = behind;
        }
        if open > 0 {
            return None;
        }
        let (plain, text) = piece?;
        let text = std::str::from_utf8(text).ok()?;
        if plain {
            return Some((Cow::Borrowed(text), rest));
        }
        let text = serde_json::from_str(&format!("\"{text}\"")).ok()?;
        Some((Cow::Owned(text), rest))
    }
}

/// How far the JSON string goes that `bytes` begin inside of, and whether it has no escape.
fn string_at(bytes: &[u8]) -> Option<(bool, usize)> {
    let mut plain = true;
    let mut at = 0;
    loop {
        match *bytes.get(at)? {
            b'"' => return Some((plain, at)),
            b'\\' => {
                plain = false;
                at += 2;
            }
            0..0x20 => return None,
            _ => at += 1,
        }
    }
}

fn digits(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|byte| byte.is_ascii_digit()).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(text: &str) -> Frame<'_> {
        Frame { event: "", data: text.as_bytes(), offset: 0 }
    }

    /// Learns from `model`, whose piece is `piece`, and hears `text`.
    fn hear(model: &str, piece: &str, noise: &[&str], text: &str) -> Option<String> {
        let at = model.find(&format!("\"{piece}\"")).unwrap() + 1;
        let heard = Heard { piece: Piece::Text(0), address: model.as_ptr() as usize + at, length: piece.len() };
        let mut echo = Echo::learn(&frame(model), heard, noise)?;
        let said = echo.hear(&frame(text)).map(Cow::into_owned);
        // On the wire it is the same, in every form of event, and with another event behind it.
        for (head, close) in [("data: ", "\n\n"), ("data:", "\r\n\r\n"), ("event: e\ndata: ", "\n\n")] {
            let wire = |data: &str| format!("{head}{data}{close}");
            let taught = wire(model);
            let at = taught.as_ptr() as usize + head.len();
            let heard = Heard { address: at + model.find(&format!("\"{piece}\"")).unwrap() + 1, ..heard };
            let learnt = Frame { event: "", data: &taught.as_bytes()[head.len()..head.len() + model.len()], offset: 0 };
            let mut echo = Echo::learn(&learnt, heard, noise)?;
            echo.learn_block(taught.as_bytes());
            let (next, behind) = (wire(text), "data: more\n\n");
            let both = format!("{next}{behind}");
            let told = echo.hear_block(both.as_bytes());
            assert_eq!(told.as_ref().map(|told| &*told.0), said.as_deref(), "{next:?}");
            assert!(told.is_none_or(|told| told.1 == next.len()));
            assert!((0..next.len()).all(|cut| echo.hear_block(&next.as_bytes()[..cut]).is_none()), "half an event");
        }
        said
    }

    #[test]
    fn one_string_may_differ_and_nothing_else() {
        let model = r#"{"id":"a","t":"one","u":null}"#;
        assert_eq!(hear(model, "one", &[], r#"{"id":"a","t":"two","u":null}"#).as_deref(), Some("two"));
        assert_eq!(hear(model, "one", &[], r#"{"id":"a","t":"","u":null}"#).as_deref(), Some(""));
        assert_eq!(hear(model, "one", &[], r#"{"id":"a","t":"a\n\"\u00e9","u":null}"#).as_deref(), Some("a\n\"é"));
        for other in [
            r#"{"id":"b","t":"two","u":null}"#,
            r#"{"id":"a","t":"two","u":1}"#,
            r#"{"id":"a","t":null,"u":null}"#,
            r#"{"id":"a","t":"two","u":null}}"#,
            r#"{"id":"a","t":"two","u":null"#,
            r#"{"id":"a","t":"two"#,
            r#"{"id":"a","t":"two\"#,
            r#"{"id":"a","t":"\x","u":null}"#,
            "{\"id\":\"a\",\"t\":\"a\nb\",\"u\":null}",
            r#"{"id":"a","t":"two","t":"three","u":null}"#,
            "",
        ] {
            assert_eq!(hear(model, "one", &[], other), None, "{other}");
        }
    }

    #[test]
    fn noise_members_may_differ_too() {
        let model = r#"{"n":12,"t":"one","o":"xyz"}"#;
        assert_eq!(hear(model, "one", &["n", "o"], r#"{"n":13456,"t":"two","o":"q"}"#).as_deref(), Some("two"));
        assert_eq!(hear(model, "one", &["n", "o"], r#"{"n":-1,"t":"two","o":"q"}"#), None);
        assert_eq!(hear(model, "one", &["n", "o"], r#"{"n":01,"t":"two","o":"q"}"#), None);
        assert_eq!(hear(model, "one", &["n", "o"], r#"{"n":1,"t":"two","o":null}"#), None);
        assert_eq!(hear(model, "one", &[], r#"{"n":13,"t":"two","o":"xyz"}"#), None);
    }

    #[test]
    fn padding_before_the_last_bracket_may_differ() {
        let model = r#"{"d":{"t":"one"}   }"#;
        assert_eq!(hear(model, "one", &[], r#"{"d":{"t":"two"}}"#).as_deref(), Some("two"));
        assert_eq!(hear(model, "one", &[], r#"{"d":{"t":"two"}         }"#).as_deref(), Some("two"));
        assert_eq!(hear(model, "one", &[], r#"{"d":{"t":"two"} "#), None);
        assert_eq!(hear(r#"{"t":"one","v":"} "}"#, "one", &[], r#"{"t":"two","v":"}"}"#), None);
    }

    proptest::proptest! {
        /// Whatever is heard, a parser reads too, and as the same.
        #[test]
        fn what_is_heard_is_what_a_parser_reads(piece in ".*", cut in 0..60_usize, junk in ".{0,3}") {
            let model = r#"{"id":"a","n":7,"t":"one","o":"xyz"}"#;
            let mut text = format!(r#"{{"id":"a","n":8,"t":{},"o":"q"}}"#, serde_json::to_string(&piece).unwrap());
            if let Some((at, _)) = text.char_indices().nth(cut) { text.insert_str(at, &junk); }
            if let Some(heard) = hear(model, "one", &["n", "o"], &text) {
                let value: serde_json::Value = serde_json::from_str(&text).unwrap();
                proptest::prop_assert_eq!(value["t"].as_str().unwrap(), heard);
                proptest::prop_assert_eq!(&value["id"], "a");
            }
        }
    }
}
