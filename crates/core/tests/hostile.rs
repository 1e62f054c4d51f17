//! Every format under what nobody sends in good faith: endless streams, deep nesting, numbers out of range, calls by the
//! thousand. Cost stays linear, a broken frame costs itself alone, and the rules of the vocabulary hold.

mod common;

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use turnstream_core::event::Payload;
use turnstream_core::provider::{Normalizer, Options};

/// A format, a frame with a piece of text where `@` stands, and one with a whole call whose arguments are `{"a":"@"}`.
const FORMATS: &[(&str, &str, &str)] = &[
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
];

fn read(provider: &str, body: &str) -> Vec<Payload> {
    let mut normalizer = Normalizer::new(provider, Options::default()).expect("a known provider");
    let mut payloads = Vec::new();
    for piece in body.as_bytes().chunks(64 << 10) {
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
    // The best of five: whatever else the machine does only adds.
    let run = || {
        let started = common::cpu_time();
        let mut normalizer = Normalizer::new(provider, Options::default()).expect("a known provider");
        for piece in body.as_bytes().chunks(4096) {
            normalizer.feed(piece).expect("a stream");
            normalizer.drain().for_each(drop);
        }
        common::cpu_time().saturating_sub(started)
    };
    (0..5).map(|_| run()).min().unwrap_or_default()
}

#[test]
fn cost_is_linear_in_the_deltas() {
    for (provider, delta, _) in FORMATS {
        let body = |count: usize| {
            (0..count).fold(String::new(), |mut body, number| {
                let _ = writeln!(body, "{}", delta.replace('@', &number.to_string()));
                body
            })
        };
        let (few, many) = (cost(provider, &body(5_000)), cost(provider, &body(50_000)));
        // Ten times as many; what is not linear costs a hundred times as much. Caches and other programs cost up to three.
        assert!(many < few * 40, "{provider}: 5,000 deltas {few:?}, 50,000 {many:?}");
    }
}

#[test]
fn twenty_megabytes_of_arguments_stream_through() {
    let long = "x".repeat(20 << 20);
    for (provider, _, call) in FORMATS.iter().filter(|format| !format.2.is_empty()) {
        let payloads = read(provider, &call.replacen("s@", "s", 1).replace('@', &long));
        assert!(calls(&payloads)[0].len() > long.len(), "{provider}");
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
    let (few, many) = (cost("gemini", &body(5_000)), cost("gemini", &body(50_000)));
    assert!(many < few * 40, "5,000 leaves {few:?}, 50,000 {many:?}");
    let whole: serde_json::Value = serde_json::from_str(calls(&read("gemini", &body(20_000)))[0]).expect("JSON");
    assert_eq!(whole["list"][19_999]["name"], "19999");
}

#[test]
fn ten_thousand_calls_cost_little() {
    for (provider, _, call) in FORMATS.iter().filter(|format| !format.2.is_empty()) {
        let mut body = String::new();
        for number in 0..10_000 {
            let _ = writeln!(body, "{}", call.replace('@', &number.to_string()));
        }
        let started = Instant::now();
        assert_eq!(calls(&read(provider, &body)).len(), 10_000, "{provider}");
        assert!(started.elapsed() < Duration::from_secs(5), "{provider}: {:?}", started.elapsed());
    }
}

#[test]
fn a_broken_frame_costs_itself_alone() {
    let brackets = "[".repeat(1_000_000);
    let closed = brackets.clone() + &"]".repeat(1_000_000);
    for (provider, delta, _) in FORMATS {
        let (good, string) = (format!("data: {}\n\n", delta.replace('@', "a")), "\"@\"");
        for hole in [brackets.as_str(), &closed, "tru", "\"\\ud800\"", "\"", "{\"a\":1,\"a\":2", "1e999", "-1", "{}", "[]"] {
            let bad = format!("data: {}\n\n", delta.replace(string, hole));
            assert_eq!(text(&read(provider, &format!("{good}{bad}{good}"))).replace("-1", ""), "aa", "{provider}: {hole:.20}");
        }
    }
}
