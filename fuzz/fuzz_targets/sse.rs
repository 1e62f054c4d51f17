//! Any bytes in any split: the decoder gives what a naive second reading of the standard gives, and never panics.

#![no_main]

#[path = "../split.rs"]
mod split;

use libfuzzer_sys::fuzz_target;
use turnstream_core::frame::sse::{Decoder, Item};
use turnstream_core::frame::{FrameError, Limits};

#[derive(Debug, PartialEq)]
struct Event {
    name: String,
    data: String,
    id: String,
    retry: Option<u64>,
}

#[derive(Debug, Default, PartialEq)]
struct Said {
    events: Vec<Event>,
    comments: Vec<String>,
    last_event_id: String,
    retry: Option<u64>,
}

/// The standard's paragraphs one after another, on the whole text at once.
fn naive(input: &[u8]) -> Said {
    let text = String::from_utf8_lossy(input);
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text).replace("\r\n", "\n").replace('\r', "\n");
    let mut lines: Vec<&str> = text.split('\n').collect();
    lines.pop(); // what follows the last line end is no line
    let mut said = Said::default();
    let (mut name, mut data, mut id, mut retry) = (String::new(), String::new(), String::new(), None);
    for line in lines {
        if line.is_empty() {
            said.last_event_id.clone_from(&id);
            if !data.is_empty() {
                data.pop();
                said.events.push(Event { name, data, id: id.clone(), retry });
            }
            (name, data, retry) = (String::new(), String::new(), None);
            continue;
        }
        if let Some(comment) = line.strip_prefix(':') {
            said.comments.push(comment.to_owned());
            continue;
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => name = value.to_owned(),
            "data" => {
                data.push_str(value);
                data.push('\n');
            }
            "id" if !value.contains('\0') => id = value.to_owned(),
            "retry" if !value.is_empty() && value.chars().all(|c| c.is_ascii_digit()) => {
                retry = Some(value.parse().unwrap_or(u64::MAX));
                said.retry = retry;
            }
            _ => {}
        }
    }
    said
}

fn decode<'a>(limits: Limits, chunks: impl Iterator<Item = &'a [u8]>) -> (Said, Option<FrameError>) {
    let mut said = Said::default();
    let Said { events, comments, .. } = &mut said;
    let mut see = |item: Item<'_>| match item {
        Item::Event(event) => events.push(Event {
            name: event.name.to_owned(),
            data: event.data.to_owned(),
            id: event.id.to_owned(),
            retry: event.retry,
        }),
        Item::Comment(text) => comments.push(text.to_owned()),
        Item::Unknown(..) => {}
    };
    let mut decoder = Decoder::new(limits);
    let mut done = Ok(());
    for chunk in chunks {
        done = decoder.feed(chunk, &mut see);
    }
    let done = done.and(decoder.finish(&mut see));
    said.last_event_id = decoder.last_event_id().to_owned();
    said.retry = decoder.retry();
    (said, done.err())
}

fuzz_target!(|input: &[u8]| {
    let (seed, bytes) = split::seed(input);
    let whole = decode(Limits::default(), std::iter::once(bytes));
    assert_eq!(whole, (naive(bytes), None));
    assert_eq!(decode(Limits::default(), split::chunks(seed, bytes)), whole);
    let small = Limits { max_line_bytes: usize::from(seed[0] % 32), max_event_bytes: usize::from(seed[1] % 32) };
    assert_eq!(decode(small, split::chunks(seed, bytes)), decode(small, std::iter::once(bytes)));
});
