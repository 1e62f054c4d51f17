//! Tool calls and end marks in the text, found where the reader is asked to: across frames, in every provider.

mod common;

use std::fmt::Write as _;

use serde_json::json;
use turnstream_core::event::{FinishReason, Payload, Text};
use turnstream_core::provider::{Normalizer, Options};

const CALL: &str = r#"<tool_call>{"name":"f","arguments":{"q":"</tool_call> </s>"}}</tool_call>"#;
const ARGUMENTS: &str = r#"{"q":"</tool_call> </s>"}"#;

fn read(provider: &str, stream: &str, text_tools: bool) -> Vec<Payload> {
    let mut normalizer = Normalizer::new(provider, Options { text_tools, ..Options::default() }).expect("a known provider");
    normalizer.feed(stream.as_bytes()).expect("a stream");
    normalizer.finish().expect("a stream");
    let events: Vec<Payload> = normalizer.drain().collect();
    assert_eq!(common::rule_faults(&events), [""; 0], "{stream}");
    events
}

/// The events with neighbouring pieces of text made one: where the pieces end is the one thing that the split decides.
fn merged(events: Vec<Payload>) -> Vec<Payload> {
    let mut merged: Vec<Payload> = Vec::new();
    for event in events {
        match (merged.last_mut(), event) {
            (Some(Payload::TextDelta(last)), Payload::TextDelta(next)) if last.message_id == next.message_id => {
                last.text = Text::from([&*last.text, &*next.text].concat());
            }
            (_, event) => merged.push(event),
        }
    }
    merged
}

fn chat(pieces: &[&str]) -> String {
    let mut stream = String::new();
    for piece in pieces {
        let _ = write!(stream, "data: {}\n\n", json!({"id": "m", "choices": [{"index": 0, "delta": {"content": piece}}]}));
    }
    let end = json!({"id": "m", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]});
    let _ = write!(stream, "data: {end}\n\ndata: [DONE]\n\n");
    stream
}

/// The chat stream of `text`, cut between frames at every place: always the same events, which are given.
fn every_split(text: &str) -> Vec<Payload> {
    let whole = merged(read("openai-chat", &chat(&[text]), true));
    for at in (1..text.len()).filter(|at| text.is_char_boundary(*at)) {
        assert_eq!(merged(read("openai-chat", &chat(&[&text[..at], &text[at..]]), true)), whole, "cut at {at}");
    }
    let characters: Vec<String> = text.chars().map(String::from).collect();
    let pieces: Vec<&str> = characters.iter().map(String::as_str).collect();
    assert_eq!(merged(read("openai-chat", &chat(&pieces), true)), whole);
    whole
}

fn text(events: &[Payload]) -> String {
    events.iter().filter_map(|event| if let Payload::AssistantMessage(it) = event { Some(&*it.text) } else { None }).collect()
}

fn calls(events: &[Payload]) -> Vec<(&str, &str)> {
    events
        .iter()
        .filter_map(|event| if let Payload::ToolCall(it) = event { Some((&*it.name, &*it.arguments_raw)) } else { None })
        .collect()
}

fn warnings(events: &[Payload]) -> Vec<&str> {
    events.iter().filter_map(|event| if let Payload::Warning(it) = event { Some(&*it.code) } else { None }).collect()
}

#[test]
fn edge_25_a_marker_split_anywhere_is_the_same_call_and_one_without_an_end_is_text() {
    for (mark, name, arguments) in [
        (CALL, "f", ARGUMENTS),
        (r#"[TOOL_CALLS][{"name":"f","arguments":{"a":1}}]"#, "f", r#"{"a":1}"#),
        (r#"<|python_tag|>{"name":"f","parameters":{"a":1}}"#, "f", r#"{"a":1}"#),
        (r#"<function=f>{"a":1}</function>"#, "f", r#"{"a":1}"#),
        (r#"<｜tool▁call▁begin｜>f<｜tool▁sep｜>{"a":1}<｜tool▁call▁end｜>"#, "f", r#"{"a":1}"#),
    ] {
        let events = every_split(&format!("Let me see. {mark}\n{mark} Done."));
        assert_eq!(text(&events), "Let me see.  Done.");
        assert_eq!(calls(&events), [(name, arguments); 2]);
        assert_eq!(warnings(&events), [""; 0]);
        let whole = events
            .iter()
            .find_map(|event| if let Payload::AssistantMessage(it) = event { Some(it) } else { None })
            .expect("a message");
        assert_eq!((whole.finish_reason, whole.finish_reason_raw.as_deref()), (FinishReason::ToolCalls, Some("stop")));
        assert_eq!(whole.tool_calls.len(), 2);

        let cut = &mark[..mark.len() - 1];
        let events = every_split(&format!("Let me see. {cut}"));
        assert_eq!((text(&events), calls(&events).len()), (format!("Let me see. {cut}"), 0));
        assert_eq!(warnings(&events), ["no_text_call"]);
    }
}

#[test]
fn edge_26_end_marks_at_the_end_of_the_text_go_and_those_in_arguments_stay() {
    for mark in ["<|im_end|>", "<|eot_id|>", "</s>", "<|endoftext|>", "<end_of_turn>", "<｜end▁of▁sentence｜>"] {
        let events = every_split(&format!("All done.{mark}"));
        assert_eq!((text(&events), warnings(&events)), ("All done.".to_owned(), vec![]));
        let arguments = format!(r#"{{"q":"{mark}"}}"#);
        let events = every_split(&format!(r#"a {mark} b <tool_call>{{"name":"f","arguments":{arguments}}}</tool_call>{mark}"#));
        assert_eq!(text(&events), format!("a {mark} b "), "in the middle it is what the model said");
        assert_eq!(calls(&events), [("f", arguments.as_str())]);
        // A call of the provider's own.
        let call = json!([{"index": 0, "id": "c", "function": {"name": "f", "arguments": arguments}}]);
        let frame = json!({"id": "m", "choices": [{"index": 0, "delta": {"tool_calls": call}}]});
        let stream = format!("data: {frame}\n\n{}", chat(&["a", mark]));
        let events = read("openai-chat", &stream, true);
        assert_eq!((text(&events), calls(&events)), ("a".to_owned(), vec![("f", arguments.as_str())]));
        assert_eq!(text(&read("openai-chat", &stream, false)), format!("a{mark}"), "off, text is text");
    }
}

#[test]
fn off_the_text_is_what_it_was() {
    let events = read("openai-chat", &chat(&["a ", CALL, "</s>"]), false);
    assert_eq!((text(&events), calls(&events).len()), (format!("a {CALL}</s>"), 0));
}

#[test]
fn bad_arguments_behind_a_name_are_flagged() {
    let events = every_split("<function=f>{\"a\":}</function>");
    let call = events.iter().find_map(|event| if let Payload::ToolCall(it) = event { Some(it) } else { None }).expect("a call");
    assert_eq!((call.arguments.is_none(), call.arguments_error.is_some(), &*call.arguments_raw), (true, true, "{\"a\":}"));
}

#[test]
fn a_whole_text_at_the_end_is_compared_as_it_was_said() {
    let done = |whole: &str| {
        [
            json!({"type": "response.created", "response": {"id": "r", "model": "m"}}),
            json!({"type": "response.output_text.delta", "output_index": 0, "delta": format!("a {CALL}")}),
            json!({"type": "response.output_item.done", "output_index": 0, "item": {"id": "i", "type": "message",
                "content": [{"type": "output_text", "text": whole}]}}),
            json!({"type": "response.completed", "response": {"id": "r", "status": "completed", "output": []}}),
        ]
        .map(|frame| frame.to_string())
        .join("\n")
    };
    let resets = |events: &[Payload]| events.iter().filter(|event| matches!(event, Payload::MessageReset(_))).count();
    let events = read("openai-responses", &done(&format!("a {CALL}</s>")), true);
    assert_eq!((text(&events), calls(&events).len(), resets(&events)), ("a ".to_owned(), 1, 0));
    let events = read("openai-responses", &done(&format!("b {CALL} {CALL}")), true);
    assert_eq!((text(&events), calls(&events).len(), resets(&events)), ("b ".to_owned(), 2, 1), "what ran is not said again");
}

#[test]
fn any_provider_any_body() {
    let whole = json!({"id": "m", "object": "chat.completion", "choices": [{"index": 0, "finish_reason": "stop",
        "message": {"role": "assistant", "content": format!("a {CALL}")}}]});
    let ollama = json!({"model": "m", "message": {"content": format!("a {CALL}")}, "done": true, "done_reason": "stop"});
    let anthropic = json!({"type": "message", "id": "m", "content": [{"type": "text", "text": format!("a {CALL}")}], "stop_reason": "end_turn"});
    for (provider, body) in [("openai-chat", whole), ("ollama", ollama), ("anthropic", anthropic)] {
        let events = read(provider, &body.to_string(), true);
        assert_eq!((text(&events), calls(&events)), ("a ".to_owned(), vec![("f", ARGUMENTS)]), "{provider}");
    }
}

#[test]
fn cost_is_linear_in_the_text_whatever_it_holds() {
    let cost = |unit: &str, times: usize, pieces: usize| {
        let text = unit.repeat(times);
        let chunks: Vec<&str> = text.as_bytes().chunks(text.len() / pieces).map(|it| std::str::from_utf8(it).unwrap()).collect();
        let stream = chat(&chunks);
        (0..3)
            .map(|_| {
                let started = common::cpu_time();
                let options = Options { text_tools: true, ..Options::default() };
                let mut normalizer = Normalizer::new("openai-chat", options).expect("a known provider");
                normalizer.feed(stream.as_bytes()).expect("a stream");
                normalizer.finish().expect("a stream");
                normalizer.drain().for_each(drop);
                common::cpu_time().saturating_sub(started)
            })
            .min()
            .unwrap_or_default()
    };
    let list = "<tool_call>[[\"";
    for unit in ["word ", "<", "</s>", "<tool_call>", "<function=", "[TOOL_CALLS]{", list, r#"<function=f>{"a":1}</function>"#] {
        for pieces in [1, 1000] {
            let (few, many) = (cost(unit, 2_000, pieces), cost(unit, 20_000, pieces));
            // Ten times as much; what is not linear costs a hundred times as much.
            assert!(many < few * 40, "{unit} in {pieces}: {few:?}, {many:?}");
        }
    }
}
