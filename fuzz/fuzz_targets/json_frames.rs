//! Any bytes in any split: the JSON reader and the forgiving reader give equal frames and errors, and never panic.

#![no_main]

#[path = "../split.rs"]
mod split;

use libfuzzer_sys::fuzz_target;
use turnstream_core::frame::{Format, Frame, FrameError, FrameReader, Limits};

type Object = serde_json::Map<String, serde_json::Value>;

#[derive(Debug, PartialEq)]
struct Said(Vec<Result<(String, Vec<u8>, u64), FrameError>>);

fn read<'a>(format: Format, limits: Limits, chunks: impl Iterator<Item = &'a [u8]>) -> Said {
    let mut said = Vec::new();
    let mut out = |item: Result<Frame<'_>, FrameError>| {
        said.push(item.map(|frame| (frame.event.to_owned(), frame.data.to_vec(), frame.offset)));
    };
    let mut reader = FrameReader::new(format, limits);
    for chunk in chunks {
        reader.feed(chunk, &mut out);
    }
    reader.finish(&mut out);
    Said(said)
}

fuzz_target!(|input: &[u8]| {
    let (seed, bytes) = split::seed(input);
    let small = Limits { max_line_bytes: usize::from(seed[0] % 64), max_event_bytes: usize::from(seed[1] % 64) };
    for format in [Format::Json, Format::Auto] {
        for limits in [Limits::default(), small] {
            let whole = read(format, limits, std::iter::once(bytes));
            assert_eq!(read(format, limits, split::chunks(seed, bytes)), whole);
            let fatal = whole.0.iter().position(|item| item.as_ref().is_err_and(FrameError::is_fatal));
            assert!(fatal.is_none_or(|at| at + 1 == whole.0.len()), "something follows a fatal error");
            for (_, data, offset) in whole.0.iter().flatten() {
                assert!(std::str::from_utf8(data).is_ok() && *offset <= bytes.len() as u64);
                assert!(format != Format::Json || (data.starts_with(b"{") && matches!(data.last(), Some(b'}' | b']'))));
            }
        }
    }
    // Line breaks are hints where an object broke off; without them the reader must find what a parser of the whole finds.
    let line: Vec<u8> = bytes.iter().map(|&byte| if byte == b'\n' { b' ' } else { byte }).collect();
    let objects: Result<Vec<Object>, _> = serde_json::Deserializer::from_slice(&line).into_iter().collect();
    if let Ok(objects) = objects {
        let said = read(Format::Json, Limits::default(), split::chunks(seed, &line)).0;
        let found: Vec<Object> = said.iter().map(|item| serde_json::from_slice(&item.as_ref().unwrap().1).unwrap()).collect();
        assert_eq!(found, objects);
    }
});
