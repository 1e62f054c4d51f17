//! Any text in any split over frames: the same text and the same calls; nothing is lost where no mark stands.

#![no_main]

#[path = "../split.rs"]
mod split;

use libfuzzer_sys::fuzz_target;
use turnstream_core::event::Payload;
use turnstream_core::provider::{Normalizer, Options};

/// The text, and each call where it stood; then how many warnings there were.
fn read<'a>(pieces: impl Iterator<Item = &'a str>) -> (String, Vec<(usize, String, String)>, usize) {
    let how = Options { text_tools: true, ..Options::default() };
    let mut normalizer = Normalizer::new("openai-chat", how).expect("a known provider");
    for piece in std::iter::once("").chain(pieces) {
        let frame = serde_json::json!({"choices": [{"index": 0, "delta": {"content": piece}}]});
        normalizer.feed(format!("data: {frame}\n\n").as_bytes()).expect("a frame of the format");
    }
    normalizer.feed(b"data: [DONE]\n\n").expect("the end");
    normalizer.finish().expect("a stream");
    let (mut text, mut calls, mut warnings) = (String::new(), Vec::new(), 0);
    for event in normalizer.drain() {
        match event {
            Payload::TextDelta(it) => text.push_str(&it.text),
            Payload::ToolCall(it) => calls.push((text.len(), it.name.to_string(), it.arguments_raw.to_string())),
            Payload::AssistantMessage(it) => assert_eq!(*it.text, text),
            Payload::Warning(_) => warnings += 1,
            _ => {}
        }
    }
    (text, calls, warnings)
}

fuzz_target!(|input: &[u8]| {
    let (seed, bytes) = split::seed(input);
    let text = String::from_utf8_lossy(bytes);
    let whole = read(std::iter::once(&*text));
    // Pieces end where characters do.
    let mut from = 0;
    let pieces = split::chunks(seed, text.as_bytes()).scan(0, |at, chunk| {
        *at += chunk.len();
        Some(*at)
    });
    let cuts: Vec<usize> = pieces.filter(|at| text.is_char_boundary(*at)).collect();
    let pieces = cuts.into_iter().map(|to| &text[std::mem::replace(&mut from, to)..to]);
    assert_eq!(read(pieces), whole);
    let silent = ["<|", "</s>", "<eos>", "<end_of_turn>", "[EOS]", "<｜"];
    if whole.1.is_empty() && !silent.iter().any(|mark| text.contains(mark)) {
        assert_eq!(whole.0, text);
    }
});
