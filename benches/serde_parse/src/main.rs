//! `serde_parse FILE owned|borrowed`: for every number on standard input, parses the `OpenAI` chat stream in FILE into
//! typed chunks that often, then answers `{}`. No events, no state, no log: the least that reading these bytes with
//! types costs. `owned` copies strings as most client crates do; `borrowed` points into the input.

use std::borrow::Cow;
use std::hint::black_box;
use std::io::{BufRead, Write};

use serde::Deserialize;

/// One event of the stream, all fields that api.openai.com sends.
#[derive(Deserialize)]
#[allow(dead_code)] // the fields are there to be parsed
struct Chunk<S> {
    id: S,
    object: S,
    created: u64,
    model: S,
    service_tier: Option<S>,
    system_fingerprint: Option<S>,
    choices: Vec<Choice<S>>,
    usage: Option<Usage>,
}

#[derive(Deserialize)]
#[allow(dead_code)]
struct Choice<S> {
    index: u32,
    delta: Delta<S>,
    finish_reason: Option<S>,
}

#[derive(Deserialize)]
#[allow(dead_code)]
struct Delta<S> {
    role: Option<S>,
    content: Option<S>,
    refusal: Option<S>,
    tool_calls: Option<Vec<ToolCall<S>>>,
}

#[derive(Deserialize)]
#[allow(dead_code)]
struct ToolCall<S> {
    index: u32,
    id: Option<S>,
    r#type: Option<S>,
    function: Option<Function<S>>,
}

#[derive(Deserialize)]
#[allow(dead_code)]
struct Function<S> {
    name: Option<S>,
    arguments: Option<S>,
}

#[derive(Deserialize)]
#[allow(dead_code, clippy::struct_field_names)] // the wire's names
struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
}

/// A string that stays in the input where it has no escapes.
#[derive(Deserialize)]
#[serde(transparent)]
#[allow(dead_code)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

fn parse<'a, S: Deserialize<'a>>(stream: &'a [u8]) -> usize {
    let mut chunks = 0;
    let mut rest = stream;
    while let Some(end) = memchr::memmem::find(rest, b"\n\n") {
        let data = rest[..end].strip_prefix(b"data: ").expect("one data line an event");
        rest = &rest[end + 2..];
        if data != b"[DONE]" {
            black_box(serde_json::from_slice::<Chunk<S>>(data).expect("a chunk"));
            chunks += 1;
        }
    }
    chunks
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let stream = std::fs::read(arguments.next().expect("FILE")).expect("a readable file");
    let parse: fn(&[u8]) -> usize = match arguments.next().as_deref() {
        Some("owned") => |stream| parse::<String>(stream),
        Some("borrowed") => |stream| parse::<Text<'_>>(stream),
        other => panic!("owned or borrowed, not {other:?}"),
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
