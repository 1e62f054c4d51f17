//! Writes server-sent events: LF alone, one space after each colon, one blank line after each frame.
//!
//! Knows nothing of what it writes. Invariants: 1. [`crate::frame::sse::Decoder`] reads back what was written, line
//! breaks in data having become LF; 2. nothing that a caller passes can begin a field or a frame of its own; 3. what
//! is refused has written nothing.

use std::io::Write as _;
use std::time::Duration;

use memchr::{memchr2, memchr3};

/// Text that no field of the format can carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{field}: CR, LF and NUL cannot be sent")]
pub struct Unsendable {
    /// The field: `id` or `event`.
    pub field: &'static str,
}

/// Writes a frame: `id` and `event` where given, then `data` line by line. An empty `id` resets the reader's last id.
///
/// # Errors
/// A line break or NUL in `id` or `event`.
pub fn write_frame(out: &mut Vec<u8>, id: Option<&str>, event: Option<&str>, data: &[u8]) -> Result<(), Unsendable> {
    let fields = [("id", id), ("event", event)];
    if let Some((field, _)) =
        fields.iter().find(|(_, value)| value.is_some_and(|value| memchr3(b'\r', b'\n', 0, value.as_bytes()).is_some()))
    {
        return Err(Unsendable { field });
    }
    for (name, value) in fields {
        if let Some(value) = value {
            write_field(out, name, value.as_bytes());
        }
    }
    write_lines(out, "data", data);
    out.push(b'\n');
    Ok(())
}

/// Writes a comment, which readers skip, and a blank line, so that it stands apart for readers that split by those.
pub fn write_comment(out: &mut Vec<u8>, text: &str) {
    write_lines(out, "", text.as_bytes());
    out.push(b'\n');
}

/// Writes the comment by which a stream lives, and since when the turn has said nothing. No blank line: some clients take
/// one after an id for an empty event.
pub fn write_heartbeat(out: &mut Vec<u8>, silent: Duration) {
    let _ = writeln!(out, ": heartbeat progress_age_s={:.1}", silent.as_secs_f64());
}

/// Writes how long a reader waits before it reconnects. Belongs before a frame, and becomes part of it.
pub fn write_retry(out: &mut Vec<u8>, milliseconds: u64) {
    write_field(out, "retry", itoa::Buffer::new().format(milliseconds).as_bytes());
}

fn write_field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.push(b'\n');
}

/// One field per line of `text`.
fn write_lines(out: &mut Vec<u8>, name: &str, mut text: &[u8]) {
    while let Some(end) = memchr2(b'\n', b'\r', text) {
        write_field(out, name, &text[..end]);
        text = &text[end + if text[end..].starts_with(b"\r\n") { 2 } else { 1 }..];
    }
    write_field(out, name, text);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Limits;
    use crate::frame::sse::{Decoder, Item};

    #[test]
    fn the_bytes_of_a_frame() {
        let mut out = Vec::new();
        write_comment(&mut out, "ping");
        write_retry(&mut out, 1500);
        write_frame(&mut out, Some("e.7"), Some("text_delta"), b"{}").unwrap();
        write_frame(&mut out, None, None, b"a\r\nb\rc\n").unwrap();
        let expected = ": ping\n\nretry: 1500\nid: e.7\nevent: text_delta\ndata: {}\n\ndata: a\ndata: b\ndata: c\ndata: \n\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn line_breaks_and_nul_in_fields_are_refused_and_write_nothing() {
        let mut out = Vec::new();
        for bad in ["a\rb", "a\n", "\0"] {
            assert_eq!(write_frame(&mut out, Some(bad), None, b""), Err(Unsendable { field: "id" }));
            assert_eq!(write_frame(&mut out, Some("1"), Some(bad), b""), Err(Unsendable { field: "event" }));
        }
        assert_eq!(out, b"");
    }

    proptest::proptest! {
        #[test]
        fn the_decoder_reads_back_what_was_written(
            frames in proptest::collection::vec(("[^\r\n\0]{0,5}", "[^\r\n\0]{0,5}", "([^\r\n]|\r|\n|\r\n| |:){0,20}", 0_u64..3), 0..5),
            comment in "([^\r\n]|\r|\n){0,9}",
        ) {
            let mut wire = Vec::new();
            let mut expected = Vec::new();
            for (id, event, data, retry) in &frames {
                write_comment(&mut wire, &comment);
                let retry = (*retry > 0).then_some(*retry);
                if let Some(retry) = retry {
                    write_retry(&mut wire, retry);
                }
                write_frame(&mut wire, Some(id), Some(event), data.as_bytes()).unwrap();
                expected.push((id.clone(), event.clone(), data.replace("\r\n", "\n").replace('\r', "\n"), retry));
            }
            let mut read = Vec::new();
            let mut decoder = Decoder::new(Limits::default());
            decoder.feed(&wire, &mut |item| match item {
                Item::Event(event) => read.push((event.id.to_owned(), event.name.to_owned(), event.data.to_owned(), event.retry)),
                Item::Comment(_) => {}
                Item::Unknown(line, _) => panic!("{line:?}"),
            }).unwrap();
            proptest::prop_assert_eq!(read, expected);
        }
    }
}
