//! Every format under what nobody sends in good faith: endless streams, deep nesting, numbers out of range, calls by the
//! thousand. Cost stays linear, a broken frame costs itself alone, and the rules of the vocabulary hold.

mod common;

use std::fmt::Write as _;
use std::time::Duration;

use turnstream_core::event::Payload;
use turnstream_core::frame::{FrameError, Limits};
use turnstream_core::provider::{Normalizer, Options, ProtocolError};

/// A format, a frame with a piece of text where `@` stands, and one with a whole call whose arguments are `{"a":"@"}`; `#`
/// is a number of its own.
const FORMATS: &[(&str, &str, &str)] = &[
    (
        "openai-chat",
        r#"{"choices":[{"index":0,"delta":{"content":"@"}}]}"#,
        r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"s@","function":{"name":"f","arguments":"{\"a\":\"@\"}"}}]}}]}"#,
    ),
    (
        "anthropic",
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"@"}}"#,
        r#"{"type":"content_block_start","index":1,"content_block":{"type":"tool_use","id":"","name":"f","input":{"a":"@"}}}
{"type":"content_block_stop","index":1}"#,
    ),
    (
        "openai-responses",
        r#"{"type":"response.output_text.delta","output_index":0,"delta":"@"}"#,
        r#"{"type":"response.output_item.added","output_index":#,"item":{"id":"s@","type":"function_call","name":"f","arguments":""}}
{"type":"response.output_item.done","output_index":#,"item":{"id":"s@","type":"function_call","name":"f","arguments":"{\"a\":\"@\"}"}}"#,
    ),
    (
        "bedrock",
        r#"{"contentBlockDelta":{"contentBlockIndex":0,"delta":{"text":"@"}}}"#,
        r#"{"contentBlockStart":{"contentBlockIndex":1,"start":{"toolUse":{"toolUseId":"","name":"f"}}}}
{"contentBlockDelta":{"contentBlockIndex":1,"delta":{"toolUse":{"input":"{\"a\":\"@\"}"}}}}
{"contentBlockStop":{"contentBlockIndex":1}}"#,
    ),
    (
        "codex",
        r#"{"method":"item/agentMessage/delta","params":{"threadId":"T","turnId":"1","itemId":"m","delta":"@"}}"#,
        r#"{"method":"item/completed","params":{"threadId":"T","turnId":"1","item":{"type":"mcpToolCall","id":"s@","tool":"f","arguments":{"a":"@"},"status":"completed"}}}"#,
    ),
    (
        "gemini",
        r#"{"candidates":[{"content":{"parts":[{"text":"@"}]}}],"usageMetadata":{"promptTokenCount":1,"totalTokenCount":2}}"#,
        r#"{"candidates":[{"content":{"parts":[{"functionCall":{"name":"f","args":{"a":"@"}}}]}}]}"#,
    ),
    (
        "ollama",
        r#"{"model":"m","created_at":"t","message":{"content":"@"},"done":false}"#,
        r#"{"model":"m","message":{"content":"","tool_calls":[{"function":{"name":"f","arguments":{"a":"@"}}}]},"done":false}"#,
    ),
    (
        "cohere",
        r#"{"type":"content-delta","index":0,"delta":{"message":{"content":{"text":"@"}}}}"#,
        r#"{"is_finished":false,"event_type":"tool-calls-generation","tool_calls":[{"name":"f","parameters":{"a":"@"}}]}"#,
    ),
    (
        "interactions",
        r#"{"event_type":"step.delta","index":0,"delta":{"type":"text","text":"@"}}"#,
        r#"{"event_type":"step.start","index":1,"step":{"type":"function_call","name":"f","arguments":{"a":"@"}}}"#,
    ),
    (
        "lmstudio",
        r#"{"type":"message.delta","content":"@"}"#,
        r#"{"type":"tool_call.success","tool":"f","arguments":{"a":"@"},"output":"o"}"#,
    ),
    (
        "realtime",
        r#"{"type":"response.output_text.delta","output_index":0,"delta":"@"}"#,
        r#"{"type":"response.output_item.added","output_index":1,"item":{"type":"function_call","name":"f"}}
{"type":"response.output_item.done","output_index":1,"item":{"type":"function_call","name":"f","arguments":"{\"a\":\"@\"}"}}"#,
    ),
    (
        "assistants",
        r#"{"id":"m","object":"thread.message.delta","delta":{"content":[{"type":"text","text":{"value":"@"}}]}}"#,
        r#"{"id":"s@","object":"thread.run.step","status":"completed","step_details":{"tool_calls":[{"id":"","type":"function","function":{"name":"f","arguments":"{\"a\":\"@\"}"}}]}}"#,
    ),
    ("watsonx", r#"{"model_id":"m","results":[{"generated_text":"@","stop_reason":"not_finished"}]}"#, ""),
    ("transcription", r#"{"type":"transcript.text.delta","delta":"@"}"#, ""),
    ("generate", r#"{"response":"@","p":"x"}"#, r#"{"tool_calls":[{"name":"f","arguments":{"a":"@"}}],"p":"x"}"#),
    (
        "conversations",
        r#"{"type":"message.output.delta","created_at":"t","id":"m","content":"@"}"#,
        r#"{"type":"function.call.delta","created_at":"t","id":"e@","name":"f","tool_call_id":"c@","arguments":"{\"a\":\"@\"}"}"#,
    ),
];

fn read(provider: &str, body: &str) -> Vec<Payload> {
    read_bytes(provider, body.as_bytes(), 64 << 10)
}

fn read_bytes(provider: &str, body: &[u8], split: usize) -> Vec<Payload> {
    let mut normalizer = Normalizer::new(provider, Options::default()).expect("a known provider");
    let mut payloads = Vec::new();
    for piece in body.chunks(split) {
        normalizer.feed(piece).unwrap_or_else(|error| panic!("{provider}: {error}"));
        payloads.extend(normalizer.drain());
    }
    normalizer.finish().unwrap_or_else(|error| panic!("{provider}: {error}"));
    payloads.extend(normalizer.drain());
    assert_eq!(common::rule_faults(&payloads), [""; 0], "{provider}");
    payloads
}

fn text(payloads: &[Payload]) -> String {
    payloads.iter().filter_map(|payload| if let Payload::TextDelta(it) = payload { Some(&*it.text) } else { None }).collect()
}

fn calls(payloads: &[Payload]) -> Vec<&str> {
    payloads
        .iter()
        .filter_map(|payload| if let Payload::ToolCall(it) = payload { Some(&*it.arguments_raw) } else { None })
        .collect()
}

fn cost(provider: &str, body: &str) -> Duration {
    let started = common::cpu_time();
    let mut normalizer = Normalizer::new(provider, Options::default()).expect("a known provider");
    for piece in body.as_bytes().chunks(4096) {
        normalizer.feed(piece).expect("a stream");
        normalizer.drain().for_each(drop);
    }
    common::cpu_time().saturating_sub(started)
}

/// Ten times as many frames cost at most so many times as much, in the best of some tries: whatever else the machine does only adds.
fn assert_linear(provider: &str, frame: &str, few: usize, at_most: u32) {
    let body = |count: usize| {
        (0..count).fold(String::new(), |mut body, number| {
            let _ = writeln!(body, "{}", frame.replace(['@', '#'], &number.to_string()));
            body
        })
    };
    let (short, long) = (body(few), body(10 * few));
    let (mut least, mut most) = (Duration::MAX, Duration::MAX);
    let linear = (0..10).any(|_| {
        (least, most) = (least.min(cost(provider, &short)), most.min(cost(provider, &long)));
        most <= least * at_most
    });
    assert!(linear, "{provider}: {few} {least:?}, ten times as many {most:?}: {frame}");
}

#[test]
fn cost_is_linear_in_the_deltas() {
    for (provider, delta, _) in FORMATS {
        assert_linear(provider, delta, 10_000, 11);
    }
}

/// Indexes leave the processor's caches on the way: what is not linear costs a hundred times as much.
#[test]
fn cost_is_linear_in_the_calls() {
    for (provider, _, call) in FORMATS.iter().filter(|format| !format.2.is_empty()) {
        assert_linear(provider, call, 1_000, 25);
    }
}

#[test]
fn twenty_megabytes_of_arguments_stream_through() {
    let long = "x".repeat(20 << 20);
    for (provider, _, call) in FORMATS.iter().filter(|format| !format.2.is_empty()) {
        let payloads = read(provider, &call.replace("s@", "s").replace('#', "1").replace('@', &long));
        assert!(calls(&payloads)[0].len() > long.len(), "{provider}");
    }
}

#[test]
fn twenty_megabytes_of_arguments_in_pieces_are_one_call() {
    let formats = [
        (
            "openai-chat",
            r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"c","function":{"name":"f","arguments":"@"}}]}}]}"#,
            r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"@"}}]}}]}"#,
        ),
        (
            "anthropic",
            r#"{"type":"content_block_start","index":1,"content_block":{"type":"tool_use","id":"c","name":"f","input":{}}}"#,
            r#"{"type":"content_block_delta","index":1,"delta":{"type":"input_json_delta","partial_json":"@"}}"#,
        ),
        (
            "openai-responses",
            r#"{"type":"response.output_item.added","output_index":1,"item":{"id":"i","type":"function_call","call_id":"c","name":"f","arguments":""}}"#,
            r#"{"type":"response.function_call_arguments.delta","output_index":1,"delta":"@"}"#,
        ),
        (
            "bedrock",
            r#"{"contentBlockStart":{"contentBlockIndex":1,"start":{"toolUse":{"toolUseId":"c","name":"f"}}}}"#,
            r#"{"contentBlockDelta":{"contentBlockIndex":1,"delta":{"toolUse":{"input":"@"}}}}"#,
        ),
    ];
    for (provider, start, piece) in formats {
        let mut body = format!("{}\n{}\n", start.replace('@', ""), piece.replace('@', r#"{\"a\":\""#));
        let middle = piece.replace('@', &"x".repeat(4 << 10)) + "\n";
        body.extend((0..5 << 10).map(|_| middle.as_str()));
        let _ = writeln!(body, "{}", piece.replace('@', r#"\"}"#));
        let started = common::cpu_time();
        let payloads = read(provider, &body);
        assert_eq!(calls(&payloads)[0].len(), (20 << 20) + r#"{"a":""}"#.len(), "{provider}");
        let took = common::cpu_time().saturating_sub(started);
        assert!(took < Duration::from_secs(20), "{provider}: {took:?}");
    }
}

#[test]
fn arguments_by_path_cost_their_own_size() {
    let body = |count: usize| {
        let mut body = r#"{"candidates":[{"content":{"parts":[{"functionCall":{"name":"f","willContinue":true}}]}}]}"#.to_owned();
        for number in 0..count {
            let place = format!(r#""jsonPath":"$.list[{number}].name","stringValue":"{number}""#);
            let _ = write!(
                body,
                "\n{{\"candidates\":[{{\"content\":{{\"parts\":[{{\"functionCall\":{{\"partialArgs\":[{{{place}}}],\"willContinue\":true}}}}]}}}}]}}"
            );
        }
        body + "\n{\"candidates\":[{\"finishReason\":\"STOP\"}]}"
    };
    let least = |count: usize| (0..5).map(|_| cost("gemini", &body(count))).min().unwrap_or_default();
    let (few, many) = (least(5_000), least(50_000));
    // What is not linear costs a hundred times as much.
    assert!(many < few * 40, "5,000 leaves {few:?}, 50,000 {many:?}");
    let whole: serde_json::Value = serde_json::from_str(calls(&read("gemini", &body(20_000)))[0]).expect("JSON");
    assert_eq!(whole["list"][19_999]["name"], "19999");
}

#[test]
fn ten_thousand_calls_cost_little() {
    for (provider, _, call) in FORMATS.iter().filter(|format| !format.2.is_empty()) {
        let mut body = String::new();
        for number in 0..10_000 {
            let _ = writeln!(body, "{}", call.replace(['@', '#'], &number.to_string()));
        }
        let started = common::cpu_time();
        assert_eq!(calls(&read(provider, &body)).len(), 10_000, "{provider}");
        let took = common::cpu_time().saturating_sub(started);
        assert!(took < Duration::from_secs(5), "{provider}: {took:?}");
    }
}

#[test]
fn a_broken_frame_costs_itself_alone() {
    let brackets = "[".repeat(1_000_000);
    let closed = brackets.clone() + &"]".repeat(1_000_000);
    for (provider, delta, _) in FORMATS {
        let (good, string) = (format!("data: {}\n\n", delta.replace('@', "a")), "\"@\"");
        for hole in [brackets.as_str(), &closed, "tru", "\"\\ud8zz\"", "\"", "{\"a\":1,\"a\":2", "1e999", "-1", "{}", "[]"] {
            let bad = format!("data: {}\n\n", delta.replace(string, hole));
            assert_eq!(text(&read(provider, &format!("{good}{bad}{good}"))).replace("-1", ""), "aa", "{provider}: {hole:.20}");
        }
    }
}

/// What a frame says twice, and numbers that no counter holds, wherever a format has them.
#[test]
fn duplicate_keys_and_numbers_out_of_range_break_nothing() {
    for (provider, delta, _) in FORMATS {
        let good = delta.replace('@', "a");
        let last = good.len() - 1;
        for more in [
            r#""usage":{"prompt_tokens":1e400,"input_tokens":-1,"output_tokens":99999999999999999999,"total_tokens":"x"}"#,
            r#""index":-1"#,
            r#""index":18446744073709551616"#,
            r#""output_index":1e999"#,
            r#""eval_count":1.5,"prompt_eval_count":-0"#,
            r#""usageMetadata":{"promptTokenCount":1e19,"totalTokenCount":-5}"#,
            r#""x":1,"x":2,"x":{"x":3,"x":4}"#,
        ] {
            let odd = format!("{},{more}{}", &good[..last], &good[last..]);
            let said = text(&read(provider, &format!("{good}\n{odd}\n{good}\n")));
            assert!(said.starts_with('a') && said.ends_with('a') && said.len() >= 2, "{provider}: {more}: {said}");
        }
    }
}

#[test]
fn bytes_that_are_no_utf8_cost_their_frame_at_most() {
    for (provider, delta, _) in FORMATS {
        let good = format!("data: {}\n\n", delta.replace('@', "a"));
        for bad in [&b"\xff"[..], b"\xed\xa0\x80", b"\xe2\x82", b"\xf8\x88\x80\x80\x80", b"\xc0\x80"] {
            let (before, after) = delta.split_once('@').expect("a hole");
            let odd = [b"data: ", before.as_bytes(), bad, after.as_bytes(), b"\n\n"].concat();
            let stream = [good.as_bytes(), &odd, good.as_bytes()].concat();
            let whole = read_bytes(provider, &stream, stream.len());
            assert_eq!(text(&whole).replace('\u{fffd}', ""), "aa", "{provider}: {bad:x?}");
            assert_eq!(read_bytes(provider, &stream, 1), whole, "{provider}: {bad:x?}");
        }
    }
}

#[test]
fn an_endless_line_and_an_endless_event_end_with_a_typed_error() {
    let limits = Limits { max_line_bytes: 4096, max_event_bytes: 8192 };
    for (provider, delta, _) in FORMATS {
        let good = delta.replace('@', "a");
        let open = &delta[..delta.find('@').expect("a hole")];
        let line = format!("{open}{}", "x".repeat(1000));
        let (sse_line, sse_lines) = (format!("data: {good}\n\ndata: {line}"), format!("data: {good}\n\n"));
        let spread = format!("{good}\n{open}x\",\n");
        let streams = [
            (sse_line, "x".repeat(100)),
            (sse_lines, "data: [\n".to_owned()),
            (format!("{good}\n{line}"), "x".repeat(100)),
            (spread, "[[\n".to_owned()),
        ];
        for (begin, more) in streams {
            let mut normalizer = Normalizer::new(provider, Options { limits, ..Options::default() }).expect("a known provider");
            normalizer.feed(begin.as_bytes()).expect("within the limits");
            let error = (0..5000).find_map(|_| normalizer.feed(more.as_bytes()).err());
            let Some(ProtocolError::Frame { error, .. }) = error else { panic!("{provider}: {more:.20}: {error:?}") };
            assert!(matches!(error, FrameError::LineTooLong { .. } | FrameError::EventTooLong { .. }), "{provider}: {error}");
            assert!(normalizer.feed(good.as_bytes()).is_err() && normalizer.finish().is_err(), "{provider}: it stays so");
            let events: Vec<Payload> = normalizer.drain().collect();
            assert_eq!(common::rule_faults(&events), [""; 0], "{provider}");
            assert_eq!(text(&events), "a", "{provider}: what came before counts");
            let codes: Vec<&str> =
                events.iter().filter_map(|event| if let Payload::Error(it) = event { Some(&*it.code) } else { None }).collect();
            assert_eq!(codes, ["frame_too_long"], "{provider}: {more:.20}");
        }
    }
}
