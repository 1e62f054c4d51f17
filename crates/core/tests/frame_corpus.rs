//! The frame reader over every recorded text stream: nothing malformed, every split equal, JSON in the frames.

mod common;

use std::path::Path;

use turnstream_core::frame::{Format, FrameReader, Limits};

/// Each frame as `event`, data, offset; panics on an error.
fn frames(path: &Path, chunks: std::slice::Chunks<'_, u8>) -> Vec<(String, String, u64)> {
    let mut frames = Vec::new();
    let mut out = |item: Result<turnstream_core::frame::Frame<'_>, _>| {
        let frame = item.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        frames.push((frame.event.to_owned(), String::from_utf8(frame.data.to_vec()).unwrap(), frame.offset));
    };
    let mut reader = FrameReader::new(Format::Auto, Limits::default());
    for chunk in chunks {
        reader.feed(chunk, &mut out);
    }
    reader.finish(&mut out);
    frames
}

#[test]
fn every_recorded_text_stream() {
    let Some(shared) = common::shared() else { return };
    let (mut files, mut total, mut words) = (0, 0, 0);
    for folder in
        std::fs::read_dir(shared.join("corpus")).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir())
    {
        for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let kind = path.extension().unwrap_or_default();
            if name.ends_with(".expected.json") || !["sse", "ndjson", "jsonl", "json"].iter().any(|known| kind == *known) {
                continue;
            }
            let bytes = std::fs::read(&path).unwrap();
            let whole = frames(&path, bytes.chunks(bytes.len()));
            assert!(!whole.is_empty(), "{name}: no frame");
            for size in [1, 7, 1400] {
                assert_eq!(frames(&path, bytes.chunks(size)), whole, "{name} in chunks of {size}");
            }
            files += 1;
            total += whole.len();
            words += whole.iter().filter(|(_, data, _)| serde_json::from_str::<serde::de::IgnoredAny>(data).is_err()).count();
        }
    }
    println!("{files} files, {total} frames, {words} of them no JSON");
    assert!(files > 400, "{files} files");
}
