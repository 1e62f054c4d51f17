//! What the OpenAI encoders write, our own readers of OpenAI's formats read back: every recorded stream, of whichever
//! provider, through a session and out again, has the same texts, calls, ends and counts.

mod common;

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use turnstream_core::encode::{Format, FrameStream, StreamOptions, openai};
use turnstream_core::event::{FinishReason, Kind, Payload, Status};
use turnstream_core::provider::{Normalizer, Options};
use turnstream_core::reader::{Cursor, Poll, ReadOptions};
use turnstream_core::session::{Ending, Limits, Session, TurnOptions};

/// Folders of the corpus and who reads them.
const FOLDERS: &[(&str, &str)] = &[
    ("openai-chat", "openai-chat"),
    ("deepseek", "openai-chat"),
    ("groq", "openai-chat"),
    ("openai-responses", "openai-responses"),
    ("anthropic", "anthropic"),
    ("gemini", "gemini"),
];

/// Every server-sent recording below the folders, as events.
fn recordings() -> Option<Vec<(String, Vec<Payload>)>> {
    let corpus = common::shared()?.join("corpus");
    let mut found = Vec::new();
    for (folder, provider) in FOLDERS {
        let Ok(entries) = std::fs::read_dir(corpus.join(folder)) else { continue };
        for entry in entries {
            let path = entry.expect("readable").path();
            if path.extension().is_some_and(|ending| ending == "sse") {
                found.push((name(&path), normalized(provider, &std::fs::read(&path).expect("readable"))));
            }
        }
    }
    assert!(found.len() > 100, "only {} recordings", found.len());
    Some(found)
}

fn name(path: &Path) -> String {
    path.iter().rev().take(2).map(|part| part.to_string_lossy()).collect::<Vec<_>>().join(" of ")
}

fn normalized(provider: &str, bytes: &[u8]) -> Vec<Payload> {
    let mut normalizer = Normalizer::new(provider, Options::default()).expect("a known provider");
    normalizer.feed(bytes).expect("not strict");
    normalizer.finish().expect("not strict");
    normalizer.drain().collect()
}

fn session_of(payloads: &[Payload], input: Option<&Value>) -> Arc<Session> {
    let session = Session::new("s", Limits::default());
    let input = input.map(turnstream_core::event::Json::from_value);
    let turn = session.start_turn(TurnOptions { input, ..TurnOptions::default() }).unwrap().turn;
    session.emit_all(turn, &mut payloads.to_vec()).unwrap();
    session.end_turn(turn, Ending::default());
    session
}

fn encoded(session: &Arc<Session>, format: Format, merge: bool) -> Vec<u8> {
    let options = StreamOptions { heartbeat_s: 10.0, max_bytes: 1000, limit: None, retry_ms: None };
    let read = ReadOptions { merge, ..ReadOptions::default() };
    let mut stream = FrameStream::open(session, &read, options, format.encoder()).unwrap();
    let mut out = Vec::new();
    while stream.poll(&mut out) == Poll::Ready {}
    out
}

/// What a stream said, by choice: text, reasoning, refusal, the client's calls, the end.
#[derive(Debug, Default, PartialEq)]
struct Said {
    choice: u64,
    text: String,
    reasoning: String,
    refusal: String,
    calls: Vec<(String, String, String)>,
    finish: Option<FinishReason>,
}

fn said(payloads: &[Payload], parted: &str) -> Vec<Said> {
    let mut all: Vec<Said> = Vec::new();
    let mut of_message = std::collections::HashMap::new();
    let at = |all: &mut Vec<Said>, choice: u64| {
        all.iter().position(|said| said.choice == choice).unwrap_or_else(|| {
            all.push(Said { choice, ..Said::default() });
            all.len() - 1
        })
    };
    for payload in payloads {
        match payload {
            Payload::MessageStart(start) => {
                of_message.insert(start.message_id.clone(), start.choice.unwrap_or(0));
            }
            Payload::AssistantMessage(whole) => {
                let index = at(&mut all, of_message.get(&whole.message_id).copied().unwrap_or(0));
                let said = &mut all[index];
                if !(said.text.is_empty() || whole.text.is_empty()) {
                    said.text.push_str(parted);
                }
                said.text.push_str(&whole.text);
                said.reasoning.push_str(&whole.reasoning);
                said.refusal.push_str(whole.refusal.as_deref().unwrap_or(""));
                said.finish = Some(whole.finish_reason);
            }
            Payload::ToolCall(call) if call.kind == Kind::Client => {
                let choice = call.message_id.as_ref().and_then(|id| of_message.get(id)).copied().unwrap_or(0);
                let index = at(&mut all, choice);
                let call = (call.call_id.to_string(), call.name.to_string(), call.arguments_raw.to_string());
                all[index].calls.push(call);
            }
            _ => {}
        }
    }
    all.sort_by_key(|said| said.choice);
    all
}

/// The same, as the protocol can say it.
fn expected(mut said: Vec<Said>, format: Format) -> Vec<Said> {
    if format == Format::OpenAiResponses {
        said.retain(|said| said.choice == 0);
    }
    if said.is_empty() {
        said.push(Said { finish: Some(FinishReason::Stop), ..Said::default() });
    }
    for said in &mut said {
        said.calls.iter_mut().filter(|(_, _, raw)| raw.is_empty()).for_each(|(_, _, raw)| "{}".clone_into(raw));
        said.finish = Some(match said.finish {
            Some(FinishReason::Length) => FinishReason::Length,
            Some(FinishReason::ContentFilter) => FinishReason::ContentFilter,
            // Refusals and calls are seen, whatever word stands beside them.
            Some(FinishReason::Stop | FinishReason::Refusal) if !said.refusal.is_empty() => FinishReason::Refusal,
            Some(FinishReason::Stop | FinishReason::ToolCalls | FinishReason::Unknown) if !said.calls.is_empty() => {
                FinishReason::ToolCalls
            }
            _ if format == Format::OpenAiResponses && !said.calls.is_empty() => FinishReason::ToolCalls,
            _ if format == Format::OpenAiResponses && !said.refusal.is_empty() => FinishReason::Refusal,
            _ => FinishReason::Stop,
        });
    }
    said
}

/// Equal, but for the blank lines between pieces of reasoning that something else stood between.
fn same(got: &[Said], wanted: &[Said]) -> bool {
    let plain = |said: &Said| Said {
        choice: said.choice,
        text: said.text.clone(),
        reasoning: said.reasoning.split_whitespace().collect(),
        refusal: said.refusal.clone(),
        calls: said.calls.clone(),
        finish: said.finish,
    };
    got.iter().map(plain).eq(wanted.iter().map(plain))
}

fn completion(session: &Session) -> Value {
    session.result().expect("the turn has ended").to_value()
}

fn counts(payloads: &[Payload]) -> Option<(u64, u64)> {
    payloads.iter().rev().find_map(|payload| match payload {
        Payload::Usage(usage) => Some((usage.input_tokens?, usage.output_tokens?)),
        _ => None,
    })
}

fn round_trip(format: Format, provider: &str, parted: &str) {
    let Some(recordings) = recordings() else { return };
    let (mut faults, mut completed) = (Vec::new(), 0);
    for (name, payloads) in &recordings {
        let session = session_of(payloads, None);
        let result = completion(&session);
        // What a reset has withdrawn from a body that is out cannot be taken back: it is said again.
        let reset = payloads.iter().any(|payload| matches!(payload, Payload::MessageReset(_)));
        let wire = encoded(&session, format, false);
        let again = normalized(provider, &wire);
        let mut fault = |what: &str, got: &dyn std::fmt::Debug, wanted: &dyn std::fmt::Debug| {
            faults.push(format!("{name}: {what}: got {got:?}, wanted {wanted:?}"));
        };
        if result["status"] != Status::Completed.as_str() {
            let error = again.iter().find_map(|payload| match payload {
                Payload::Error(error) => Some(error.message.to_string()),
                _ => None,
            });
            let wanted = result["error"]["message"].as_str().unwrap_or("the run failed");
            if result["status"] != "cancelled" && !error.as_deref().is_some_and(|error| error.contains(wanted)) {
                fault("error", &error, &wanted);
            }
            continue;
        }
        completed += 1;
        let got = said(&again, parted);
        let wanted = expected(said(payloads, parted), format);
        if !reset && !same(&got, &wanted) {
            fault("said", &got, &wanted);
        }
        let usage = &result["usage"];
        let wanted = usage["input_tokens"].as_u64().zip(usage["output_tokens"].as_u64());
        if wanted.is_some() && counts(&again) != wanted {
            fault("usage", &counts(&again), &wanted);
        }
        let warned: Vec<_> = again.iter().filter(|payload| matches!(payload, Payload::Warning(_) | Payload::Error(_))).collect();
        if !warned.is_empty() {
            fault("warnings", &warned, &"none");
        }
        let merged = said(&normalized(provider, &encoded(&session, format, true)), parted);
        if merged != got {
            fault("merged", &merged, &got);
        }
        let body = openai::body(&session, Cursor::new(session.epoch(), 0), format).unwrap().unwrap();
        let whole = said(&normalized(provider, body.as_str().as_bytes()), parted);
        if !reset && whole != got {
            fault("body", &whole, &got);
        }
    }
    assert!(completed > 100, "only {completed} recordings completed");
    assert!(faults.is_empty(), "{} faults in {} recordings\n{}", faults.len(), recordings.len(), faults.join("\n"));
}

#[test]
fn chat_completions_read_back_equal() {
    round_trip(Format::OpenAiChat, "openai-chat", "\n\n");
}

#[test]
fn responses_read_back_equal() {
    round_trip(Format::OpenAiResponses, "openai-responses", "");
}

/// Each frame's number, and whether it is the terminal event.
fn numbers(wire: &[u8]) -> Vec<u64> {
    let text = std::str::from_utf8(wire).unwrap();
    let data = text.split("\n\n").filter(|frame| !frame.is_empty()).map(|frame| frame.split_once("\ndata: ").unwrap().1);
    data.map(|data| serde_json::from_str::<Value>(data).unwrap()["sequence_number"].as_u64().unwrap()).collect()
}

#[test]
fn numbers_are_dense_and_the_same_for_every_reader() {
    let Some(recordings) = recordings() else { return };
    for (name, payloads) in recordings.iter().step_by(3) {
        let session = session_of(payloads, None);
        let wire = encoded(&session, Format::OpenAiResponses, false);
        let numbers = numbers(&wire);
        assert_eq!(numbers, (0..numbers.len() as u64).collect::<Vec<_>>(), "{name}");
        // Asking for merged deltas, or with a cursor from inside the turn, changes nothing.
        assert!(encoded(&session, Format::OpenAiResponses, true) == wire, "{name}");
        let inside = ReadOptions { after: Some(Cursor::new(session.epoch(), 2)), ..ReadOptions::default() };
        let options = StreamOptions { heartbeat_s: 10.0, max_bytes: 1, limit: None, retry_ms: None };
        let mut stream = FrameStream::open(&session, &inside, options, Format::OpenAiResponses.encoder()).unwrap();
        let mut out = Vec::new();
        while session.position().head > 2 && stream.poll(&mut out) == Poll::Ready {}
        assert!(out == wire, "{name}");
    }
}

fn payload(kind: &str, fields: &Value) -> Payload {
    Payload::from_json(kind, &fields.to_string()).unwrap().0
}

#[test]
fn a_withdrawn_answer_is_not_in_the_response_and_its_calls_are_not_run() {
    let withdrawn = [
        payload("text_delta", &json!({ "message_id": "m", "text": "Wrong" })),
        payload("tool_call_start", &json!({ "message_id": "m", "call_id": "c", "name": "f" })),
        payload("message_reset", &json!({ "message_id": "m", "reason": "retry" })),
        payload("text_delta", &json!({ "message_id": "m", "text": "Right" })),
    ];
    let session = session_of(&withdrawn, None);
    let chat = String::from_utf8(encoded(&session, Format::OpenAiChat, false)).unwrap();
    assert!(chat.contains(r#""code":"withdrawn""#) && !chat.contains("[DONE]"), "{chat}");
    let responses = String::from_utf8(encoded(&session, Format::OpenAiResponses, false)).unwrap();
    let last = responses.trim_end().rsplit("\ndata: ").next().unwrap();
    let response = &serde_json::from_str::<Value>(last).unwrap()["response"];
    assert_eq!(response["status"], "completed");
    assert_eq!(response["output"].as_array().map(Vec::len), Some(1), "{response}");
    assert_eq!(response["output"][0]["content"][0]["text"], "Right");
}

#[test]
fn the_clients_tools_are_told_from_the_agents() {
    let called = [
        payload("tool_call", &json!({ "call_id": "c1", "name": "mine", "arguments": {}, "arguments_raw": "{}" })),
        payload("tool_call", &json!({ "call_id": "c2", "name": "own", "arguments": {}, "arguments_raw": "{}" })),
        payload("tool_result", &json!({ "call_id": "c2", "output": "done" })),
    ];
    let input = json!({ "model": "m", "messages": [], "tools": [{ "type": "function", "function": { "name": "mine" } }] });
    let session = session_of(&called, Some(&input));
    let chat = String::from_utf8(encoded(&session, Format::OpenAiChat, false)).unwrap();
    assert!(chat.contains(r#""name":"mine""#) && !chat.contains(r#""name":"own""#), "{chat}");
    let input = json!({ "model": "m", "input": "x", "tools": [{ "type": "function", "name": "mine" }] });
    let session = session_of(&called, Some(&input));
    let body = openai::body(&session, Cursor::new(session.epoch(), 0), Format::OpenAiResponses).unwrap().unwrap().to_value();
    let kinds: Vec<_> = body["output"].as_array().unwrap().iter().map(|item| (&item["type"], &item["name"])).collect();
    assert_eq!(kinds, [(&json!("function_call"), &json!("mine")), (&json!("mcp_call"), &json!("own"))]);
    assert_eq!(body["output"][1]["output"], "done");
    assert_eq!(body["tools"], input["tools"]);
}

#[test]
fn arguments_that_turn_out_to_be_others_are_never_run_as_they_were_shown() {
    let contradicted = [
        ("tool_call_start", r#"{"call_id":"c","name":"look"}"#),
        ("tool_call_delta", r#"{"call_id":"c","text":"{\"a\":1}"}"#),
        ("tool_call", r#"{"call_id":"c","name":"look","arguments_raw":"{\"a\":2}"}"#),
    ];
    let payloads: Vec<_> = contradicted.iter().map(|(kind, json)| Payload::from_json(kind, json).unwrap().0).collect();
    let session = session_of(&payloads, None);
    let chat = String::from_utf8(encoded(&session, Format::OpenAiChat, false)).unwrap();
    assert!(chat.contains(r#""code":"contradicted""#) && !chat.contains("[DONE]"), "{chat}");
    let chat = openai::body(&session, Cursor::new(session.epoch(), 0), Format::OpenAiChat).unwrap().unwrap().to_value();
    assert_eq!(chat["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"], r#"{"a":2}"#);
    let response = openai::body(&session, Cursor::new(session.epoch(), 0), Format::OpenAiResponses).unwrap().unwrap().to_value();
    let output = response["output"].as_array().unwrap();
    assert_eq!((output.len(), &output[0]["arguments"]), (1, &json!(r#"{"a":2}"#)));
}
