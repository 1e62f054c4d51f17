//! What must hold of every provider, whatever the bytes: no panic; any split gives equal events; all that opens is closed; the
//! events are a small multiple of the input.

#[path = "split.rs"]
mod split;

use std::collections::{HashMap, HashSet};

use turnstream_core::event::Payload;
use turnstream_core::provider::{Normalizer, Options, ProtocolError};

/// Bytes of events that a byte of input may cost: a chat chunk of its shortest form is 60 bytes and makes six events.
const PER_BYTE: usize = 40;
/// And what an empty stream may cost.
const AT_LEAST: usize = 16 << 10;

fn read<'a>(provider: &str, how: &Options, chunks: impl Iterator<Item = &'a [u8]>) -> (Vec<Payload>, Result<(), ProtocolError>) {
    let mut normalizer = Normalizer::new(provider, how.clone()).expect("a known provider");
    let mut events = Vec::new();
    for chunk in chunks {
        let _ = normalizer.feed(chunk);
        events.extend(normalizer.drain());
    }
    let done = normalizer.finish();
    events.extend(normalizer.drain());
    (events, done)
}

/// Everything that opens is closed, once; results follow their calls; a message is what its deltas said.
fn check(events: &[Payload]) {
    let (mut rounds, mut texts, mut calls, mut called) = (0, HashMap::new(), HashSet::new(), HashSet::new());
    for event in events {
        match event {
            Payload::RoundStart(_) => rounds += 1,
            Payload::RoundEnd(_) => rounds -= 1,
            Payload::MessageStart(it) => {
                assert!(texts.insert(it.message_id.clone(), Some(String::new())).is_none(), "a message starts twice");
            }
            Payload::MessageReset(it) => *texts.get_mut(&it.message_id).expect("an open message") = Some(String::new()),
            Payload::TextDelta(it) => {
                texts.get_mut(&it.message_id).and_then(Option::as_mut).expect("an open message").push_str(&it.text);
            }
            Payload::AssistantMessage(it) => {
                let said = texts.insert(it.message_id.clone(), None).flatten().expect("an open message");
                assert_eq!(*said, *it.text);
            }
            Payload::ToolCallStart(it) => assert!(calls.insert(it.call_id.clone()), "a call starts twice"),
            Payload::ToolCallDelta(it) => assert!(calls.contains(&it.call_id), "arguments of no call"),
            Payload::ToolCall(it) => {
                assert!(calls.remove(&it.call_id), "a call ends that never began");
                called.insert(it.call_id.clone());
            }
            Payload::ToolResult(it) => assert!(called.remove(&it.call_id), "a result of no call, or a second one"),
            _ => {}
        }
        assert!((0..=1).contains(&rounds), "rounds overlap");
    }
    assert!(rounds == 0 && calls.is_empty() && texts.values().all(Option::is_none), "something is left open");
}

/// One input, read by `provider`.
pub fn run(provider: &str, input: &[u8]) {
    let (seed, bytes) = split::seed(input);
    let strict = Options { strict: true, ..Options::default() };
    let text_tools = Options { text_tools: true, ..Options::default() };
    for how in [Options::default(), strict, text_tools] {
        let whole = read(provider, &how, std::iter::once(bytes));
        assert_eq!(read(provider, &how, split::chunks(seed, bytes)), whole);
        check(&whole.0);
        let size: usize = whole.0.iter().map(|event| size_of::<Payload>() + event.heap()).sum();
        assert!(size <= AT_LEAST + PER_BYTE * bytes.len(), "{size} bytes of events from {} of input", bytes.len());
    }
}

/// A target of one provider, with a corpus of its own.
#[macro_export]
macro_rules! target {
    ($provider:literal) => {
        libfuzzer_sys::fuzz_target!(|input: &[u8]| provider::run($provider, input));
    };
}
