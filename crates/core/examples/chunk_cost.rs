//! What one chat-completions text chunk costs: a bare typed `serde_json` parse of the same bytes against the way through
//! frame reader, state machine and assembler to payloads. Run: `cargo run -p turnstream-core --profile fast --example chunk_cost`.
//! With `parse` or `normalise` it does only that, for a tool that counts instructions.

use std::borrow::Cow;
use std::hint::black_box;
use std::time::Instant;

use serde::Deserialize;
use turnstream_core::provider::{Normalizer, Options};

const CHUNKS: u32 = 20_000;
const ROUNDS: usize = 30;

#[derive(Deserialize)]
#[allow(dead_code, reason = "what a reader of chunks has to name")]
struct Chunk<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    model: Cow<'a, str>,
    #[serde(borrow)]
    choices: Vec<Choice<'a>>,
}

#[derive(Deserialize)]
#[allow(dead_code, reason = "as above")]
struct Choice<'a> {
    index: u64,
    #[serde(borrow)]
    delta: Delta<'a>,
    #[serde(borrow)]
    finish_reason: Option<Text<'a>>,
}

#[derive(Deserialize)]
#[allow(dead_code, reason = "as above")]
struct Delta<'a> {
    #[serde(borrow)]
    content: Option<Text<'a>>,
}

/// Borrowed where it has no escapes; a bare `Option<Cow<str>>` would always copy.
#[derive(Deserialize)]
#[allow(dead_code, reason = "as above")]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// Nanoseconds a chunk.
fn once(mut work: impl FnMut()) -> f64 {
    let started = Instant::now();
    work();
    started.elapsed().as_secs_f64() * 1e9 / f64::from(CHUNKS)
}

fn main() {
    let words = ["The", " quick", " brown", " fox", ",", " jumps", " over", " the", " lazy", " dog", ".\\n"];
    let payloads: Vec<String> = (0..CHUNKS)
        .map(|index| {
            let word = words[index as usize % words.len()];
            format!(
                r#"{{"id":"chatcmpl-B9MHDbslfkBeAs8l4bebGdFOJ6PeG","object":"chat.completion.chunk","created":1741569952,"model":"gpt-4o-2024-08-06","service_tier":"default","system_fingerprint":"fp_eb9dce56a8","choices":[{{"index":0,"delta":{{"content":"{word}"}},"logprobs":null,"finish_reason":null}}],"usage":null,"obfuscation":"Xq3vJ8s"}}"#
            )
        })
        .collect();
    let stream = format!("data: {}\n\n", payloads.join("\n\ndata: "));

    let parse = || {
        for payload in &payloads {
            black_box(serde_json::from_slice::<Chunk<'_>>(black_box(payload.as_bytes())).expect("JSON"));
        }
    };
    let normalise = |size: usize| {
        let mut normalizer = Normalizer::new("openai-chat", Options::default()).expect("a known provider");
        for piece in stream.as_bytes().chunks(size) {
            normalizer.feed(piece).expect("a stream");
            normalizer.drain().for_each(|payload| drop(black_box(payload)));
        }
    };
    match std::env::args().nth(1).as_deref() {
        Some("parse") => return parse(),
        Some("normalise") => return normalise(16 << 10),
        _ => {}
    }
    println!("chunks of {} bytes", payloads[0].len());
    for size in [64, 1024, 16 << 10, 64 << 10] {
        // Turn by turn, and the best of many: what else the machine does only adds.
        let (mut bare, mut whole) = (f64::MAX, f64::MAX);
        for _ in 0..ROUNDS {
            bare = bare.min(once(parse));
            whole = whole.min(once(|| normalise(size)));
        }
        let ratio = whole / bare;
        println!("{size:5} bytes at once: parse {bare:4.0} ns, normalise {whole:4.0} ns per chunk, {ratio:.2} times");
    }
}
