//! JSON as text: `Json` holds one valid, one-line JSON value as it came, and the writers that build the wire form.
//!
//! Invariants: 1. a `Json` is valid JSON, nested at most [`MAX_DEPTH`] deep; 2. it holds no line break, so that it can
//! stand in an SSE `data` line; 3. numbers, key order and duplicate keys are as sent: nothing is rounded or lost.

use std::fmt;

use serde::de::IgnoredAny;

/// How deep a value may nest: as `serde_json`'s own limit, and well inside what JavaScript and Python readers take.
pub const MAX_DEPTH: usize = 128;

/// One JSON value, as text.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Json(Box<str>);

/// Why a text is not taken as JSON.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// Not JSON: what the parser saw, and where.
    #[error("not JSON: {0}")]
    Invalid(String),
    /// Nested deeper than [`MAX_DEPTH`].
    #[error("nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
}

impl Json {
    /// Takes `text` if it is one valid JSON value; line breaks between tokens are removed.
    pub fn parse(text: &str) -> Result<Self, JsonError> {
        let text = text.trim_matches([' ', '\t', '\r', '\n']);
        if depth(text) > MAX_DEPTH {
            return Err(JsonError::TooDeep);
        }
        serde_json::from_str::<IgnoredAny>(text).map_err(|error| JsonError::Invalid(error.to_string()))?;
        Ok(Self::trusted(text))
    }

    /// Takes text that a JSON parser or writer has already vouched for.
    pub(crate) fn trusted(text: &str) -> Self {
        if memchr::memchr2(b'\n', b'\r', text.as_bytes()).is_some() { Self(compact(text).into()) } else { Self(text.into()) }
    }

    /// Takes a raw value out of a parsed document; a value nested too deep is an error.
    pub fn from_raw(raw: &serde_json::value::RawValue) -> Result<Self, JsonError> {
        let text = raw.get();
        if depth(text) > MAX_DEPTH { Err(JsonError::TooDeep) } else { Ok(Self::trusted(text)) }
    }

    /// A JSON string that holds `text`.
    pub fn string(text: &str) -> Self {
        let mut out = Vec::with_capacity(text.len() + 2);
        write_str(&mut out, text);
        Self::from_written(out)
    }

    /// What the writers of this module have built.
    pub fn from_written(out: Vec<u8>) -> Self {
        Self(String::from_utf8(out).expect("the writers copy whole strings").into())
    }

    /// An object of what `members` writes; see [`object`].
    pub(crate) fn object(members: impl FnOnce(&mut Vec<u8>)) -> Self {
        let mut out = Vec::new();
        object(&mut out, members);
        Self::from_written(out)
    }

    /// Serialises a value of serde's.
    pub fn from_value(value: &serde_json::Value) -> Self {
        Self(value.to_string().into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is `null`.
    pub fn is_null(&self) -> bool {
        &*self.0 == "null"
    }

    /// Parses into serde's tree. Numbers beyond 64 bits become floats here, not in the text.
    pub fn to_value(&self) -> serde_json::Value {
        serde_json::from_str(&self.0).unwrap_or(serde_json::Value::Null)
    }
}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How deep brackets nest in `text`, strings left out; stops counting past [`MAX_DEPTH`].
pub fn depth(text: &str) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0_usize, 0, false, false);
    for &byte in text.as_bytes() {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'[' | b'{' => {
                depth += 1;
                deepest = deepest.max(depth);
                if deepest > MAX_DEPTH {
                    return deepest;
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// Removes white space between tokens.
fn compact(text: &str) -> String {
    let (mut out, mut in_string, mut escaped) = (String::with_capacity(text.len()), false, false);
    for c in text.chars() {
        if in_string {
            match c {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                '"' => in_string = false,
                _ => {}
            }
        } else if matches!(c, ' ' | '\t' | '\r' | '\n') {
            continue;
        } else if c == '"' {
            in_string = true;
        }
        out.push(c);
    }
    out
}

/// For each byte: 0 = copied, `u` = written as \u00XX, else the letter after the backslash.
static ESCAPES: [u8; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 0x20 {
        table[i] = b'u';
        i += 1;
    }
    table[b'"' as usize] = b'"';
    table[b'\\' as usize] = b'\\';
    table[0x08] = b'b';
    table[0x09] = b't';
    table[0x0a] = b'n';
    table[0x0c] = b'f';
    table[0x0d] = b'r';
    table
};

/// How many bytes may be copied as they are before one that must be escaped.
///
/// Eight bytes a step: a byte below 0x20, a quote or a backslash sets its high bit. A third of the cost of an event's
/// frame was this scan, byte by byte (950 of 1,560 instructions; 240 so).
fn plain(bytes: &[u8]) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = ONES << 7;
    const QUOTES: u64 = ONES * 0x22;
    const BACKSLASHES: u64 = ONES * 0x5c;
    let (words, rest) = bytes.as_chunks::<8>();
    for (i, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let zero = |word: u64| word.wrapping_sub(ONES) & !word;
        let control = word.wrapping_sub(ONES * 0x20) & !word;
        let found = (control | zero(word ^ QUOTES) | zero(word ^ BACKSLASHES)) & HIGH;
        if found != 0 {
            // A borrow can set bits above a byte that was found, never below it.
            return i * 8 + found.trailing_zeros() as usize / 8;
        }
    }
    let start = bytes.len() - rest.len();
    start + rest.iter().position(|byte| ESCAPES[*byte as usize] != 0).unwrap_or(rest.len())
}

/// Whether the whole of it may be copied as it is; the last step overlaps the one before instead of going byte by byte.
fn all_plain(bytes: &[u8]) -> bool {
    match bytes.last_chunk::<8>() {
        Some(last) => plain(&bytes[..bytes.len() & !7]) == bytes.len() & !7 && plain(last) == 8,
        None => bytes.iter().all(|byte| ESCAPES[*byte as usize] == 0),
    }
}

/// Writes `text` as a JSON string.
pub fn write_str(out: &mut Vec<u8>, text: &str) {
    let mut bytes = text.as_bytes();
    out.reserve(bytes.len() + 2);
    out.push(b'"');
    if all_plain(bytes) {
        out.extend_from_slice(bytes);
        out.push(b'"');
        return;
    }
    loop {
        let length = plain(bytes);
        out.extend_from_slice(&bytes[..length]);
        let Some(&byte) = bytes.get(length) else { break };
        match ESCAPES[byte as usize] {
            b'u' => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                out.extend_from_slice(&[b'\\', b'u', b'0', b'0', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
            }
            letter => out.extend_from_slice(&[b'\\', letter]),
        }
        bytes = &bytes[length + 1..];
    }
    out.push(b'"');
}

/// Writes a whole number.
pub fn write_u64(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// Writes a float; what JSON cannot say (NaN, infinities) becomes null.
pub fn write_f64(out: &mut Vec<u8>, number: f64) {
    if number.is_finite() {
        serde_json::to_writer(out, &number).expect("a Vec takes every write");
    } else {
        out.extend_from_slice(b"null");
    }
}

/// Writes an object of what `members` writes, each with a comma before it: [`member`] does, and an event's fields do.
pub(crate) fn object(out: &mut Vec<u8>, members: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    members(out);
    match out.get_mut(start) {
        Some(comma) => *comma = b'{',
        None => out.push(b'{'),
    }
    out.push(b'}');
}

/// Writes a member of an [`object`].
pub(crate) fn member(out: &mut Vec<u8>, name: &str, value: impl FnOnce(&mut Vec<u8>)) {
    out.push(b',');
    write_str(out, name);
    out.push(b':');
    value(out);
}

/// Writes a list.
pub(crate) fn list<T>(out: &mut Vec<u8>, items: impl IntoIterator<Item = T>, mut write: impl FnMut(&mut Vec<u8>, T)) {
    out.push(b'[');
    for (at, item) in items.into_iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        write(out, item);
    }
    out.push(b']');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_and_lists_of_none_one_and_two() {
        let numbers = |count: u64| {
            let mut out = b"x".to_vec();
            list(&mut out, 0..count, |out, n| object(out, |out| (0..n).for_each(|n| member(out, "n", |out| write_u64(out, n)))));
            String::from_utf8(out).unwrap()
        };
        assert_eq!([numbers(0), numbers(1), numbers(3)], ["x[]", "x[{}]", r#"x[{},{"n":0},{"n":0,"n":1}]"#]);
    }

    #[test]
    fn line_breaks_between_tokens_are_removed_and_strings_kept() {
        assert_eq!(Json::parse("{\n \"a\" : [1,\r\n 2],\"b c\":\" \\\" \" }").unwrap().as_str(), r#"{"a":[1,2],"b c":" \" "}"#);
    }

    #[test]
    fn depth_is_bounded_and_brackets_in_strings_do_not_count() {
        let deep = |n: usize| "[".repeat(n) + &"]".repeat(n);
        assert!(Json::parse(&deep(MAX_DEPTH - 1)).is_ok());
        assert_eq!(Json::parse(&deep(1_000_000)), Err(JsonError::TooDeep));
        assert!(Json::parse(&format!("\"{}\"", "[".repeat(1000))).is_ok());
    }

    #[test]
    fn numbers_and_duplicate_keys_stay_as_sent() {
        let text = r#"{"seed":123456789012345678901234567890,"id":1,"id":2}"#;
        assert_eq!(Json::parse(text).unwrap().as_str(), text);
    }

    proptest::proptest! {
        #[test]
        fn strings_round_trip(text in ".*") {
            let mut out = Vec::new();
            write_str(&mut out, &text);
            proptest::prop_assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
        }
    }
}
