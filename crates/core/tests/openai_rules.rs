//! The OpenAI encoders hold their protocols' rules for whatever a session logs: made-up runs, not recordings.

use std::collections::HashMap;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};
use turnstream_core::encode::{Format, FrameStream, StreamOptions, openai};
use turnstream_core::event::{Json, Payload};
use turnstream_core::reader::{Cursor, Follow, Poll, ReadOptions};
use turnstream_core::session::{CallState, Ending, Limits, Session, TurnOptions};

/// One thing that an agent may say, in any order, sensible or not.
fn step() -> impl Strategy<Value = (&'static str, Value)> {
    let message = prop::sample::select(vec!["m1", "m2", "m3"]);
    let call = prop::sample::select(vec!["c1", "c2", "c3"]);
    let kind = prop::sample::select(vec!["client", "server", "mcp"]);
    let text = prop::sample::select(vec!["", "a", "é\u{2028}", "\"\\\n", "{\"a\":1}"]);
    let reason = prop::sample::select(vec!["retry", "contradicted"]);
    let finish = prop::sample::select(vec!["stop", "length", "tool_calls", "content_filter", "unknown", "refusal"]);
    let step = (message, call, kind, text, reason, finish, 0_u8..16);
    step.prop_map(|(message, call, kind, text, reason, finish, which)| {
        let name = if call == "c2" { "own" } else { "mine" };
        match which {
            0..=3 => ("text_delta", json!({ "message_id": message, "text": text })),
            4 => ("reasoning_delta", json!({ "message_id": message, "text": text, "part": text.len() })),
            5 => ("refusal_delta", json!({ "message_id": message, "text": text })),
            6 => ("tool_call_start", json!({ "call_id": call, "name": name, "kind": kind, "message_id": message })),
            7 | 8 => ("tool_call_delta", json!({ "call_id": call, "text": text })),
            9 => ("tool_call", json!({ "call_id": call, "name": name, "kind": kind, "arguments_raw": text })),
            10 => ("tool_result", json!({ "call_id": call, "output": text, "is_error": text.is_empty() })),
            11 => ("message_reset", json!({ "message_id": message, "reason": reason })),
            12 => ("assistant_message", json!({ "message_id": message, "text": text, "finish_reason": finish })),
            13 => ("round_start", json!({ "model": text })),
            14 => ("round_end", json!({})),
            _ => ("citation", json!({ "message_id": message, "url": "https://example.com" })),
        }
    })
}

fn run(steps: &[(&str, Value)], input: &Value, ending: u8, limits: Limits) -> Arc<Session> {
    let session = Session::new("s", limits);
    let input = Some(Json::from_value(input));
    let turn = session.start_turn(TurnOptions { input, ..TurnOptions::default() }).unwrap().turn;
    for (kind, fields) in steps {
        let (payload, extra) = Payload::from_json(kind, &fields.to_string()).unwrap();
        let _ = session.emit(Some(turn), payload, extra); // a session may refuse what makes no sense
    }
    match ending {
        0 => drop(session.cancel("enough")),
        1 => drop(session.fail_turn(turn, "broken", "it broke")),
        2 => {}
        _ => drop(session.end_turn(turn, Ending::default())),
    }
    session
}

fn frames(session: &Arc<Session>, format: Format, merge: bool, max_bytes: usize) -> Vec<String> {
    let options = StreamOptions { heartbeat_s: 10.0, max_bytes, limit: None, retry_ms: None };
    let read = ReadOptions { follow: Follow::None, merge, ..ReadOptions::default() };
    let mut stream = FrameStream::open(session, &read, options, format.encoder()).unwrap();
    let mut frames = Vec::new();
    let mut out = Vec::new();
    while stream.poll(&mut out) == Poll::Ready {
        let text = String::from_utf8(std::mem::take(&mut out)).unwrap();
        assert!(text.ends_with("\n\n"), "a frame is cut: {text}");
        frames.extend(text.split_terminator("\n\n").map(str::to_owned));
    }
    frames
}

fn data(frame: &str) -> Value {
    let data = frame.lines().last().and_then(|line| line.strip_prefix("data: ")).expect("each frame ends with its data");
    serde_json::from_str(data).unwrap()
}

/// The rules of the stream of a response; returns its terminal response, if it has come to one.
fn check_responses(frames: &[String]) -> Option<Value> {
    let mut items: HashMap<u64, (Value, bool)> = HashMap::new();
    let mut parts: HashMap<(u64, u64), (String, bool)> = HashMap::new();
    let mut last = None;
    for (number, frame) in frames.iter().enumerate() {
        let event = data(frame);
        let kind = event["type"].as_str().unwrap();
        assert_eq!(frame.lines().next(), Some(format!("event: {kind}").as_str()));
        assert_eq!(event["sequence_number"], number);
        assert!(last.is_none(), "{kind} after the end");
        let index = event["output_index"].as_u64();
        if let Some(index) = index
            && kind != "response.output_item.added"
        {
            let (item, done) = items.get_mut(&index).expect("an item is added first");
            assert!(!*done, "{kind} after its item is done");
            assert!(event["item_id"].is_null() || event["item_id"] == item["id"]);
        }
        let part = index.zip(event["content_index"].as_u64().or(event["summary_index"].as_u64()));
        match kind {
            "response.created" => assert_eq!(number, 0),
            "response.in_progress" => assert_eq!(number, 1),
            "response.output_item.added" => {
                assert_eq!(index, Some(items.len() as u64));
                assert!(items.insert(index.unwrap(), (event["item"].clone(), false)).is_none());
            }
            "response.output_item.done" => {
                let (item, done) = items.get_mut(&index.unwrap()).unwrap();
                assert_eq!(event["item"]["id"], item["id"]);
                assert_ne!(event["item"]["status"], "in_progress");
                (*item, *done) = (event["item"].clone(), true);
            }
            "response.content_part.added" | "response.reasoning_summary_part.added" => {
                assert!(parts.insert(part.unwrap(), (String::new(), false)).is_none());
            }
            "response.output_text.delta" | "response.refusal.delta" | "response.reasoning_summary_text.delta" => {
                let (text, done) = parts.get_mut(&part.unwrap()).expect("a part is added first");
                assert!(!*done);
                text.push_str(event["delta"].as_str().unwrap());
            }
            "response.output_text.done" | "response.refusal.done" | "response.reasoning_summary_text.done" => {
                let whole = event["text"].as_str().or(event["refusal"].as_str()).unwrap();
                assert_eq!(parts[&part.unwrap()].0, whole);
            }
            "response.content_part.done" | "response.reasoning_summary_part.done" => {
                assert!(!std::mem::replace(&mut parts.get_mut(&part.unwrap()).unwrap().1, true));
            }
            "response.function_call_arguments.delta" | "response.mcp_call_arguments.delta" => {
                let (text, _) = parts.entry((index.unwrap(), 0)).or_default();
                text.push_str(event["delta"].as_str().unwrap());
            }
            "response.function_call_arguments.done" | "response.mcp_call_arguments.done" => {
                let (text, done) = parts.entry((index.unwrap(), 0)).or_default();
                assert_eq!(event["arguments"], **text);
                assert!(!std::mem::replace(done, true));
            }
            "response.completed" | "response.failed" | "response.incomplete" => {
                assert!(items.values().all(|(_, done)| *done), "an item is open at the end");
                for item in event["response"]["output"].as_array().unwrap() {
                    assert!(items.values().any(|(known, _)| known == item), "{item} was not said");
                }
                last = Some(event["response"].clone());
            }
            "error" => last = Some(Value::Null),
            _ => assert!(kind.starts_with("response.mcp_call.") || kind == "response.output_text.annotation.added", "{kind}"),
        }
    }
    last
}

/// What a client has of a choice at the end: its text, its calls with their arguments.
type Heard = (String, Vec<(String, String)>);

/// The rules of the chunks; returns what was heard of the first choice, if they came to their end.
fn check_chat(frames: &[String], usage_asked: bool) -> Option<Result<Heard, Value>> {
    let (last, chunks) = frames.split_last()?;
    let ended = last == "data: [DONE]";
    let (mut finished, mut begun, mut start, mut usages) = (Vec::new(), Vec::new(), None, 0);
    let mut heard = Heard::default();
    let mut counts: HashMap<u64, u64> = HashMap::new();
    for chunk in if ended { chunks } else { frames } {
        let chunk = data(chunk);
        if !chunk["error"].is_null() {
            return Some(Err(chunk["error"].clone()));
        }
        assert_eq!(usages, 0, "a chunk after the usage");
        let of_chunk = ["id", "object", "created", "model"].map(|name| chunk[name].clone());
        assert_eq!(start.get_or_insert_with(|| of_chunk.clone()), &of_chunk);
        if chunk["choices"].as_array().unwrap().is_empty() {
            assert!(chunk["usage"]["total_tokens"].is_u64(), "{chunk}");
            usages += 1;
        }
        for choice in chunk["choices"].as_array().unwrap() {
            let (index, delta) = (choice["index"].as_u64().unwrap(), &choice["delta"]);
            assert!(!finished.contains(&index), "a delta after the finish");
            assert_eq!(delta["role"] == "assistant", !begun.contains(&index), "the role comes first, once");
            begun.push(index);
            if !choice["finish_reason"].is_null() {
                finished.push(index);
            }
            for call in delta["tool_calls"].as_array().unwrap_or(&Vec::new()) {
                let (count, at) = (counts.entry(index).or_default(), call["index"].as_u64().unwrap());
                if call["id"].is_string() {
                    assert_eq!((at, &call["type"]), (*count, &json!("function")), "calls are counted from 0");
                    *count += 1;
                    if index == 0 {
                        heard.1.push((call["id"].as_str().unwrap().to_owned(), String::new()));
                    }
                }
                assert!(at < *count, "a call is begun first");
                if index == 0 {
                    heard.1[usize::try_from(at).unwrap()].1.push_str(call["function"]["arguments"].as_str().unwrap());
                }
            }
            if index == 0 {
                heard.0.push_str(delta["content"].as_str().unwrap_or(""));
            }
        }
    }
    begun.sort_unstable();
    begun.dedup();
    finished.sort_unstable();
    assert!(usages == 0 || usage_asked);
    assert_eq!(finished, if ended { begun } else { Vec::new() }, "each choice ends once");
    ended.then_some(Ok(heard))
}

/// The characters of a response's texts, whichever item they stand in, and its calls' arguments.
fn said_in(response: &Value) -> (Vec<char>, Vec<(String, String)>) {
    let (mut chars, mut calls) = (Vec::new(), Vec::new());
    for item in response["output"].as_array().unwrap() {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        for part in item["content"].as_array().into_iter().chain(item["summary"].as_array()).flatten() {
            chars.extend(part["text"].as_str().or(part["refusal"].as_str()).unwrap().chars());
        }
        if item["arguments"].is_string() {
            calls.push((text(&item["name"]), text(&item["arguments"])));
        }
    }
    chars.sort_unstable();
    calls.sort();
    (chars, calls)
}

/// The same of what the session says was said.
fn said_by(session: &Session) -> (Vec<char>, Vec<(String, String)>) {
    session.look(|state| {
        let said = state.messages.iter().filter(|message| message.role != "user");
        let texts = said.flat_map(|message| [&*message.text, &*message.reasoning, message.refusal.as_deref().unwrap_or("")]);
        let mut chars: Vec<char> = texts.flat_map(str::chars).collect();
        let or = |said: &str, nothing: &str| if said.is_empty() { nothing } else { said }.to_owned();
        let call = |call: &CallState| (or(&call.name, "tool"), or(&call.arguments_raw, "{}"));
        let mut calls: Vec<_> = state.calls.iter().map(call).collect();
        chars.sort_unstable();
        calls.sort();
        (chars, calls)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]
    #[test]
    fn the_protocols_rules_hold_for_any_run(
        steps in prop::collection::vec(step(), 0..40),
        ending in 0_u8..6,
        asked in any::<bool>(),
        small in any::<bool>(),
    ) {
        let tool = json!({ "type": "function", "name": "mine", "function": { "name": "mine" } });
        let input = if asked { json!({ "model": "m", "input": "x", "tools": [tool] }) } else { json!("x") };
        let limits = if small { Limits { max_events: 12, ..Limits::default() } } else { Limits::default() };
        let session = run(&steps, &input, ending, limits);
        let exact = frames(&session, Format::OpenAiResponses, false, 65_536);
        let last = check_responses(&exact);
        // However it is read, it is the same.
        prop_assert_eq!(&frames(&session, Format::OpenAiResponses, true, 1), &exact);
        let body = openai::body(&session, Cursor::new(session.epoch(), 0), Format::OpenAiResponses).unwrap();
        if let (Some(last), Some(body), false) = (&last, &body, small) {
            prop_assert_eq!(&body.to_value(), last);
        }
        let chat = check_chat(&frames(&session, Format::OpenAiChat, false, 65_536), !asked);
        prop_assert_eq!(&check_chat(&frames(&session, Format::OpenAiChat, true, 1), !asked), &chat);
        if small {
            return Ok(());
        }
        prop_assert_eq!(last.is_some(), ending != 2);
        prop_assert_eq!(chat.is_some(), ending != 2 || matches!(chat, Some(Err(_))));
        prop_assert!(body.is_some());
        // What a client has at the end is what the session says was said; withdrawn calls are another matter.
        let reset = steps.iter().any(|(kind, _)| *kind == "message_reset");
        if let (Some(last), false) = (&last, reset) {
            prop_assert_eq!(said_in(last), said_by(&session));
        }
        if let Some(Ok((text, calls))) = &chat {
            let body = openai::body(&session, Cursor::new(session.epoch(), 0), Format::OpenAiChat).unwrap().unwrap().to_value();
            let message = &body["choices"][0]["message"];
            let of_body = message["tool_calls"].as_array().into_iter().flatten().map(|call| {
                (call["id"].as_str().unwrap().to_owned(), call["function"]["arguments"].as_str().unwrap().to_owned())
            });
            prop_assert_eq!(calls, &of_body.collect::<Vec<_>>());
            if !session.look(|state| state.messages.iter().any(|message| message.resets > 0)) {
                let chars = |text: &str| {
                    let mut chars: Vec<char> = text.chars().filter(|char| *char != '\n').collect(); // they part texts
                    chars.sort_unstable();
                    chars
                };
                prop_assert_eq!(chars(text), chars(message["content"].as_str().unwrap_or("")));
            }
        }
    }
}
