//! `serde_parse FILE FORMAT owned|borrowed`: for every number on standard input, parses the stream in FILE into typed
//! chunks that often, then answers `{}`. No events, no state, no log, no checksums: the least that reading these bytes
//! with types costs. `owned` copies strings as most client crates do; `borrowed` (`openai-chat` alone) points into the
//! input.

mod formats;

use std::hint::black_box;
use std::io::{BufRead, Write};

use formats::{Anthropic, Chat, Codex, Cohere, Converse, Gemini, LmStudio, Ollama, Responses, Text};
use serde::Deserialize;

/// Bytes before the headers of an AWS message, and behind its payload.
const PRELUDE: usize = 12;
const TRAILER: usize = 4;

/// Server-sent events of one `data` line each, or JSON lines.
fn lines<'a, T: Deserialize<'a>>(stream: &'a [u8]) -> usize {
    let mut chunks = 0;
    let mut start = 0;
    for end in memchr::memchr_iter(b'\n', stream) {
        let line = &stream[start..end];
        start = end + 1;
        let data = line.strip_prefix(b"data: ").unwrap_or(line);
        if data.first() == Some(&b'{') {
            black_box(serde_json::from_slice::<T>(data).expect("a chunk"));
            chunks += 1;
        }
    }
    chunks
}

/// AWS event stream messages, by the lengths that they state.
fn messages<'a, T: Deserialize<'a>>(stream: &'a [u8]) -> usize {
    let mut chunks = 0;
    let mut rest = stream;
    while !rest.is_empty() {
        let length = |at: usize| u32::from_be_bytes(rest[at..at + 4].try_into().expect("four bytes")) as usize;
        let (total, headers) = (length(0), length(4));
        let payload = &rest[PRELUDE + headers..total - TRAILER];
        rest = &rest[total..];
        black_box(serde_json::from_slice::<T>(payload).expect("a chunk"));
        chunks += 1;
    }
    chunks
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let stream = std::fs::read(arguments.next().expect("FILE")).expect("a readable file");
    let (format, strings) = (arguments.next().expect("FORMAT"), arguments.next().expect("owned or borrowed"));
    let parse: fn(&[u8]) -> usize = match (format.as_str(), strings.as_str()) {
        ("openai-chat", "owned") => |stream| lines::<Chat<String>>(stream),
        ("openai-chat", "borrowed") => |stream| lines::<Chat<Text<'_>>>(stream),
        ("anthropic", "owned") => |stream| lines::<Anthropic>(stream),
        ("openai-responses", "owned") => |stream| lines::<Responses>(stream),
        ("gemini", "owned") => |stream| lines::<Gemini>(stream),
        ("ollama", "owned") => |stream| lines::<Ollama>(stream),
        ("cohere", "owned") => |stream| lines::<Cohere>(stream),
        ("bedrock", "owned") => |stream| messages::<Converse>(stream),
        ("lmstudio", "owned") => |stream| lines::<LmStudio>(stream),
        ("codex", "owned") => |stream| lines::<Codex>(stream),
        other => panic!("no structs for {other:?}"),
    };
    let mut out = std::io::stdout().lock();
    writeln!(out, "{{\"chunks\": {}}}", parse(&stream)).expect("standard output");
    for line in std::io::stdin().lock().lines() {
        for _ in 0..line.expect("standard input").parse().expect("how often") {
            black_box(parse(black_box(&stream)));
        }
        writeln!(out, "{{}}").and_then(|()| out.flush()).expect("standard output");
    }
}
