//! What the encoders write, held against the rules of the protocols by verifiers that share nothing with them.
//!
//! Each recording becomes a session's turn; each stream is read from its beginning, from the state at every cursor, and by
//! a reader that falls behind a small log. What a client has at the end must be what the session says was said.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Map, Value, json};
use turnstream_core::encode::{Format, FrameStream, Opening, StreamOptions};
use turnstream_core::event::{Json, Payload, Status};
use turnstream_core::provider::{Normalizer, Options};
use turnstream_core::reader::{Cursor, Follow, Poll, ReadOptions, Reader};
use turnstream_core::session::{Ending, Limits, Session, TurnOptions};

/// What a client has at the end: text by message and kind, calls by id with their input and output, and how many citations,
/// files and users' own events.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    said: BTreeMap<(String, &'static str), String>,
    calls: BTreeMap<String, (bool, bool)>,
    attached: BTreeMap<&'static str, usize>,
}

impl Seen {
    fn say(&mut self, id: &str, kind: &'static str, text: &str) {
        if !text.is_empty() {
            self.said.entry((id.to_owned(), kind)).or_default().push_str(text);
        }
    }

    fn attach(&mut self, kind: &'static str) {
        *self.attached.entry(kind).or_default() += 1;
    }

    fn void(&mut self, id: &str) {
        self.said.retain(|(said, _), _| said != id);
    }
}

/// The frames' JSON; every frame is one `data` line of one object, LF.
fn frames(body: &[u8]) -> Vec<Value> {
    let body = std::str::from_utf8(body).expect("UTF-8");
    assert!(!body.contains('\r') && (body.is_empty() || body.ends_with("\n\n")), "{body:?}");
    let blocks = body.split("\n\n").filter(|block| !block.is_empty());
    let json = |block: &str| match block.strip_prefix("data: ") {
        Some("[DONE]") => Value::from("[DONE]"),
        Some(data) if !data.contains('\n') => serde_json::from_str(data).unwrap_or_else(|error| panic!("{error}: {data}")),
        _ => panic!("not a frame: {block:?}"),
    };
    blocks.map(json).collect()
}

fn text<'a>(frame: &'a Value, name: &str) -> &'a str {
    frame[name].as_str().unwrap_or_else(|| panic!("no {name}: {frame}"))
}

fn only(frame: &Value, required: &[&str], optional: &[&str]) {
    let object: &Map<String, Value> = frame.as_object().expect("an object");
    for name in required {
        assert!(object.contains_key(*name), "{name} is missing: {frame}");
    }
    for (name, value) in object {
        assert!(name == "type" || required.contains(&&**name) || optional.contains(&&**name), "{name} is foreign: {frame}");
        let may_be_null = ["input", "output", "data", "value", "event"].contains(&&**name);
        assert!(may_be_null || !value.is_null(), "{name} is null: {frame}");
    }
}

// --- the rules of the UI message stream -------------------------------------------------------------------------------

fn verify_ai_sdk(body: &[u8]) -> Seen {
    let mut seen = Seen::default();
    let (mut started, mut in_step, mut finished, mut done, mut failed) = (false, false, false, false, false);
    let mut open: BTreeMap<String, (String, &'static str)> = BTreeMap::new();
    let mut used = BTreeSet::new();
    let mut inputs: BTreeMap<String, String> = BTreeMap::new(); // those that are streaming, raw
    for frame in frames(body) {
        assert!(!done, "after the end: {frame}");
        if frame == "[DONE]" {
            assert!(finished, "[DONE] before finish");
            done = true;
            continue;
        }
        let kind = text(&frame, "type");
        assert!(started != (kind == "start"), "start comes first, once: {frame}");
        assert!(!finished, "after finish: {frame}");
        assert!(!failed || kind == "finish", "a client takes nothing after an error: {frame}");
        match kind {
            "start" => {
                only(&frame, &["messageId"], &["messageMetadata"]);
                started = true;
            }
            "start-step" => {
                only(&frame, &[], &[]);
                assert!(!in_step, "a step in a step");
                in_step = true;
            }
            "finish-step" => {
                only(&frame, &[], &[]);
                assert!(in_step && open.is_empty() && inputs.is_empty(), "a step ends with {open:?} {inputs:?} open");
                in_step = false;
            }
            "text-start" | "reasoning-start" => {
                only(&frame, &["id"], &["providerMetadata"]);
                assert!(in_step && used.insert(text(&frame, "id").to_owned()), "an id again: {frame}");
                let ours = &frame["providerMetadata"]["turnstream"];
                let kind = match kind {
                    "reasoning-start" => "reasoning",
                    _ if ours["refusal"] == true => "refusal",
                    _ => "text",
                };
                open.insert(text(&frame, "id").to_owned(), (text(ours, "message_id").to_owned(), kind));
            }
            "text-delta" | "reasoning-delta" => {
                only(&frame, &["id", "delta"], &["providerMetadata"]);
                let (id, of) = open.get(text(&frame, "id")).unwrap_or_else(|| panic!("not open: {frame}"));
                assert_eq!(kind == "reasoning-delta", *of == "reasoning");
                seen.say(id, of, text(&frame, "delta"));
            }
            "text-end" | "reasoning-end" => {
                only(&frame, &["id"], &["providerMetadata"]);
                assert!(open.remove(text(&frame, "id")).is_some(), "not open: {frame}");
            }
            "tool-input-start" => {
                only(&frame, &["toolCallId", "toolName"], &["providerExecuted", "dynamic"]);
                let id = text(&frame, "toolCallId").to_owned();
                assert!(in_step && !seen.calls.contains_key(&id) && inputs.insert(id, String::new()).is_none(), "again: {frame}");
                assert!(!text(&frame, "toolName").is_empty(), "a tool without a name");
            }
            "tool-input-delta" => {
                only(&frame, &["toolCallId", "inputTextDelta"], &[]);
                let input = inputs.get_mut(text(&frame, "toolCallId")).unwrap_or_else(|| panic!("not open: {frame}"));
                input.push_str(text(&frame, "inputTextDelta"));
            }
            "tool-input-available" | "tool-input-error" => {
                let error = if kind == "tool-input-error" { &["errorText"][..] } else { &[] };
                only(&frame, &[&["toolCallId", "toolName", "input"], error].concat(), &["providerExecuted", "dynamic"]);
                let raw = inputs.remove(text(&frame, "toolCallId")).unwrap_or_else(|| panic!("not open: {frame}"));
                if let (true, Ok(shown)) = (kind == "tool-input-available", serde_json::from_str::<Value>(&raw)) {
                    assert!(shown == frame["input"], "pieces and whole differ: {raw} {frame}");
                }
                seen.calls.insert(text(&frame, "toolCallId").to_owned(), (true, false));
            }
            "tool-output-available" | "tool-output-error" => {
                let what = if kind == "tool-output-error" { "errorText" } else { "output" };
                only(&frame, &["toolCallId", what], &["providerExecuted", "dynamic", "preliminary"]);
                let call = seen.calls.get_mut(text(&frame, "toolCallId")).unwrap_or_else(|| panic!("unknown call: {frame}"));
                assert!(!std::mem::replace(&mut call.1, true), "two outputs: {frame}");
            }
            "source-url" => {
                only(&frame, &["sourceId", "url"], &["title"]);
                seen.attach("citation");
            }
            "source-document" => {
                only(&frame, &["sourceId", "mediaType", "title"], &["filename"]);
                seen.attach("citation");
            }
            "file" => {
                only(&frame, &["url", "mediaType"], &[]);
                seen.attach("file");
            }
            "message-metadata" => only(&frame, &["messageMetadata"], &[]),
            "error" => {
                only(&frame, &["errorText"], &[]);
                failed = true;
            }
            "abort" => only(&frame, &[], &[]),
            "finish" => {
                only(&frame, &["finishReason"], &["messageMetadata"]);
                let known = ["stop", "length", "content-filter", "tool-calls", "error", "other"];
                assert!(known.contains(&text(&frame, "finishReason")), "{frame}");
                assert!(open.is_empty() && inputs.is_empty() && !in_step, "finished with {open:?} {inputs:?} open");
                finished = true;
            }
            _ if kind.starts_with("data-") => {
                only(&frame, &["data"], &["id", "transient"]);
                match kind {
                    "data-reset" => seen.void(text(&frame["data"], "message_id")),
                    "data-citation" => seen.attach("citation"),
                    "data-file" => seen.attach("file"),
                    "data-chart" => seen.attach("custom"),
                    _ => {}
                }
            }
            _ => panic!("clients throw on {frame}"),
        }
    }
    assert!(done, "cut");
    seen
}

// --- the rules of AG-UI -----------------------------------------------------------------------------------------------

fn verify_ag_ui(body: &[u8]) -> Seen {
    let mut seen = Seen::default();
    let (mut running, mut runs) = (false, 0);
    let mut texts = BTreeSet::new();
    let (mut spans, mut thoughts) = (BTreeSet::new(), BTreeSet::new());
    let (mut calls, mut steps) = (BTreeMap::<String, String>::new(), BTreeSet::new());
    let mut again = BTreeSet::new();
    for frame in frames(body) {
        let kind = text(&frame, "type").to_owned();
        assert!(running != (kind == "RUN_STARTED"), "outside a run: {frame}");
        let id = || text(&frame, "messageId").to_owned();
        let call = || text(&frame, "toolCallId").to_owned();
        match &*kind {
            "RUN_STARTED" => {
                only(&frame, &["threadId", "runId"], &[]);
                running = true;
                runs += 1;
            }
            "RUN_FINISHED" | "RUN_ERROR" => {
                if kind == "RUN_FINISHED" {
                    only(&frame, &["threadId", "runId", "outcome"], &["usage"]);
                    assert!(["success", "cancelled"].contains(&text(&frame["outcome"], "type")), "{frame}");
                } else {
                    only(&frame, &["message"], &["code", "usage"]);
                }
                let open = (&texts, &spans, &thoughts, &calls, &steps);
                let closed = texts.is_empty() && spans.is_empty() && thoughts.is_empty() && calls.is_empty() && steps.is_empty();
                assert!(closed, "ends with {open:?}");
                running = false;
            }
            "MESSAGES_SNAPSHOT" => {
                only(&frame, &["messages"], &[]);
                for message in frame["messages"].as_array().expect("a list") {
                    let id = text(message, "id").to_owned();
                    assert!(again.insert(id.clone()), "a message twice: {id}");
                    match text(message, "role") {
                        "assistant" => seen.say(ours(&id).0, ours(&id).1, text(message, "content")),
                        "reasoning" => seen.say(ours(&id).0, "reasoning", text(message, "content")),
                        "tool" => seen.calls.entry(text(message, "toolCallId").to_owned()).or_default().1 = true,
                        role => assert_eq!(role, "user"),
                    }
                    for call in message["toolCalls"].as_array().unwrap_or(&Vec::new()) {
                        assert_eq!(call["type"], "function");
                        text(&call["function"], "name");
                        text(&call["function"], "arguments");
                        seen.calls.entry(text(call, "id").to_owned()).or_default().0 = true;
                    }
                }
            }
            "TEXT_MESSAGE_START" => {
                only(&frame, &["messageId", "role"], &[]);
                assert!(texts.insert(id()), "open already: {frame}");
            }
            "TEXT_MESSAGE_CONTENT" => {
                only(&frame, &["messageId", "delta"], &[]);
                assert!(texts.contains(&id()) && !text(&frame, "delta").is_empty(), "not open: {frame}");
                seen.say(ours(&id()).0, ours(&id()).1, text(&frame, "delta"));
            }
            "TEXT_MESSAGE_END" => assert!(texts.remove(&id()), "not open: {frame}"),
            "REASONING_START" => assert!(spans.insert(id()), "open already: {frame}"),
            "REASONING_END" => assert!(spans.remove(&id()) && !thoughts.contains(&id()), "not open: {frame}"),
            "REASONING_MESSAGE_START" => {
                only(&frame, &["messageId", "role"], &[]);
                assert!(text(&frame, "role") == "reasoning" && thoughts.insert(id()), "open already: {frame}");
            }
            "REASONING_MESSAGE_CONTENT" => {
                only(&frame, &["messageId", "delta"], &[]);
                assert!(thoughts.contains(&id()), "not open: {frame}");
                seen.say(ours(&id()).0, "reasoning", text(&frame, "delta"));
            }
            "REASONING_MESSAGE_END" => assert!(thoughts.remove(&id()), "not open: {frame}"),
            "TOOL_CALL_START" => {
                only(&frame, &["toolCallId", "toolCallName"], &["parentMessageId"]);
                assert!(!seen.calls.contains_key(&call()), "a call again: {frame}");
                assert!(calls.insert(call(), String::new()).is_none(), "open already: {frame}");
            }
            "TOOL_CALL_ARGS" => {
                only(&frame, &["toolCallId", "delta"], &[]);
                calls.get_mut(&call()).unwrap_or_else(|| panic!("not open: {frame}")).push_str(text(&frame, "delta"));
            }
            "TOOL_CALL_END" => {
                assert!(calls.remove(&call()).is_some(), "not open: {frame}");
                seen.calls.insert(call(), (true, false));
            }
            "TOOL_CALL_RESULT" => {
                only(&frame, &["messageId", "toolCallId", "content", "role"], &["metadata"]);
                let known = seen.calls.get_mut(&call()).unwrap_or_else(|| panic!("unknown call: {frame}"));
                assert!(!std::mem::replace(&mut known.1, true), "two results: {frame}");
            }
            "STEP_STARTED" => assert!(steps.insert(text(&frame, "stepName").to_owned()), "open already: {frame}"),
            "STEP_FINISHED" => assert!(steps.remove(text(&frame, "stepName")), "not open: {frame}"),
            "ACTIVITY_SNAPSHOT" => {
                only(&frame, &["messageId", "activityType", "content"], &["replace"]);
                assert!(frame["content"].is_object(), "{frame}");
            }
            "RAW" => only(&frame, &["event"], &["source"]),
            "CUSTOM" => {
                only(&frame, &["name", "value"], &[]);
                match text(&frame, "name") {
                    "message_reset" => {
                        for id in frame["value"]["messageIds"].as_array().expect("a list") {
                            seen.void(ours(id.as_str().expect("an id")).0);
                        }
                    }
                    "citation" => seen.attach("citation"),
                    "file" => seen.attach("file"),
                    "chart" => seen.attach("custom"),
                    _ => {}
                }
            }
            _ => panic!("unknown: {frame}"),
        }
    }
    assert!(runs > 0 && !running, "cut");
    seen
}

/// Which of our messages a message of the thread belongs to, and as what; a reset's number is no part of its name.
fn ours(id: &str) -> (&str, &'static str) {
    let (id, kind) = match (id.strip_suffix(".refusal"), id.rsplit_once(".reasoning.")) {
        (Some(id), _) => (id, "refusal"),
        (_, Some((id, _))) => (id, "reasoning"),
        _ => (id, "text"),
    };
    let reset = id.rsplit_once('.').filter(|(_, number)| number.len() == 1 && number.bytes().all(|b| b.is_ascii_digit()));
    (reset.map_or(id, |(id, _)| id), kind)
}

// --- what the session says --------------------------------------------------------------------------------------------

fn truth(session: &Session) -> Seen {
    truth_of(session, |_| true)
}

fn truth_of(session: &Session, turn: impl Fn(u32) -> bool) -> Seen {
    session.look(|state| {
        let mut seen = Seen::default();
        let said = state.messages.iter().filter(|message| message.role != "user" && message.choice.unwrap_or(0) == 0);
        for message in said.filter(|message| turn(message.turn)) {
            // As a thread's id would be read back.
            let id = ours(&message.id).0;
            let refusal = message.refusal.as_deref().unwrap_or("");
            for (kind, text) in [("text", &*message.text), ("reasoning", &*message.reasoning), ("refusal", refusal)] {
                if !text.is_empty() {
                    seen.say(id, kind, text);
                }
            }
        }
        for call in state.calls.iter().filter(|call| turn(call.turn)) {
            let earlier = seen.calls.keys().filter(|id| **id == *call.id || id.starts_with(&format!("{}.", call.id))).count();
            let id = if earlier == 0 { call.id.to_string() } else { format!("{}.{earlier}", call.id) };
            seen.calls.insert(id, (true, call.status.is_some()));
        }
        for attached in state.attached.iter().filter(|attached| turn(attached.event.context.turn)) {
            match &attached.event.payload {
                Payload::Citation(_) => seen.attach("citation"),
                Payload::File(_) => seen.attach("file"),
                _ => seen.attach("custom"),
            }
        }
        seen
    })
}

type Verify = fn(&[u8]) -> Seen;
const FORMATS: [(Format, Verify); 2] = [(Format::AiSdk, verify_ai_sdk), (Format::AgUi, verify_ag_ui)];

fn options() -> StreamOptions {
    StreamOptions { heartbeat_s: 0.0, max_bytes: 4096, limit: None, retry_ms: None }
}

fn turn() -> TurnOptions {
    TurnOptions { input: Some(Json::parse(r#""go""#).expect("JSON")), ..TurnOptions::default() }
}

fn whole(session: &Arc<Session>, format: Format) -> Vec<u8> {
    let read = ReadOptions { merge: true, ..ReadOptions::default() };
    let mut stream = FrameStream::open(session, &read, options(), format.encoder()).expect("opened");
    let mut out = Vec::new();
    while stream.poll(&mut out) == Poll::Ready {}
    out
}

/// The body of a stream that begins with the state at `seq`.
fn from(session: &Arc<Session>, seq: u64, format: Format) -> Vec<u8> {
    let after = Some(Cursor::new(session.epoch(), seq));
    let read = ReadOptions { after, merge: true, state_first: true, follow: Follow::Turn, ..ReadOptions::default() };
    let mut reader = Reader::open(session, &read).expect("opened");
    let (mut encoder, mut out, mut items) = (format.encoder(), Vec::new(), Vec::new());
    let opening = Opening { session, status: reader.status(), heartbeat_s: 0.0, retry_ms: None };
    encoder.open(&opening, &mut out);
    while !encoder.finished() && reader.poll(64, &mut items) == Poll::Ready {
        for item in items.drain(..) {
            if !encoder.finished() {
                encoder.item(session, &item, &mut out);
            }
        }
    }
    encoder.end(session, &mut out);
    out
}

/// Reads as it is written, `behind` events at a time, from a log that keeps few: what leaves it comes as a snapshot.
fn lagging(payloads: &[Payload], behind: usize, format: Format, ending: u8) -> (Vec<u8>, Arc<Session>) {
    let session = Session::new("s", Limits { max_events: 6, ..Limits::default() });
    let number = session.start_turn(turn()).expect("started").turn;
    let read = ReadOptions { merge: true, ..ReadOptions::default() };
    let mut stream = FrameStream::open(&session, &read, options(), format.encoder()).expect("opened");
    let mut out = Vec::new();
    for piece in payloads.chunks(behind) {
        session.emit_all(number, &mut piece.to_vec()).expect("taken");
        while stream.poll(&mut out) == Poll::Ready {}
    }
    end(&session, number, ending);
    while stream.poll(&mut out) == Poll::Ready {}
    (out, session)
}

fn check(name: &str, payloads: &[Payload]) {
    let session = Session::new("s", Limits::default());
    let number = session.start_turn(turn()).expect("started").turn;
    session.emit_all(number, &mut payloads.to_vec()).expect("taken");
    session.end_turn(number, Ending::default());
    let truth = truth(&session);
    for (format, verify) in FORMATS {
        let whole = whole(&session, format);
        let verify = |what: &str, body: &[u8], truth: &Seen| {
            let seen = std::panic::catch_unwind(|| verify(body));
            let seen = seen.unwrap_or_else(|_| panic!("{name} {format:?} {what}\n{}", String::from_utf8_lossy(body)));
            assert_eq!(seen, *truth, "{name} {format:?} {what}\n{}", String::from_utf8_lossy(body));
        };
        verify("whole", &whole, &truth);
        let head = session.position().head;
        for seq in (1..head).step_by(usize::try_from(head / 48 + 1).expect("small")) {
            verify(&format!("after {seq}"), &from(&session, seq, format), &truth);
        }
        for behind in [1, 5, 40] {
            let (body, session) = lagging(payloads, behind, format, 2);
            verify(&format!("{behind} behind"), &body, &self::truth(&session));
        }
    }
}

#[test]
fn every_recording_is_read_whole_from_every_cursor_and_behind_a_small_log() {
    let Some(shared) = common::shared() else { return };
    let mut count = 0;
    let folders = std::fs::read_dir(shared.join("corpus")).expect("the corpus is there");
    for folder in folders.map(|entry| entry.expect("readable").path()).filter(|path| path.is_dir()) {
        for file in std::fs::read_dir(folder).expect("readable").map(|entry| entry.expect("readable").path()) {
            let name = file.file_name().and_then(|name| name.to_str()).expect("plain names").to_owned();
            if name.ends_with(".expected.json") {
                continue;
            }
            let Ok(mut normalizer) = Normalizer::new("auto", Options::default()) else { continue };
            let bytes = std::fs::read(&file).expect("readable");
            if normalizer.feed(&bytes).and_then(|()| normalizer.finish()).is_err() {
                continue; // nothing tells its format
            }
            let payloads: Vec<Payload> = normalizer.drain().collect();
            check(&name, &payloads);
            count += 1;
        }
    }
    assert!(count > 100, "only {count} recordings");
}

fn payloads(events: &[(&str, &str)]) -> Vec<Payload> {
    events.iter().map(|(kind, json)| Payload::from_json(kind, json).expect("a payload").0).collect()
}

#[test]
fn every_type_is_told_and_nothing_breaks_the_rules() {
    check(
        "all types",
        &payloads(&[
            ("round_start", r#"{"model":"x"}"#),
            ("stage_start", r#"{"stage":"plan","total":2}"#),
            ("progress", r#"{"stage":"plan","current":1}"#),
            ("message_start", r#"{"message_id":"m"}"#),
            ("reasoning_delta", r#"{"message_id":"m","text":"one","part":0}"#),
            ("reasoning_delta", r#"{"message_id":"m","text":"two","part":1}"#),
            ("text_delta", r#"{"message_id":"m","text":"Hel"}"#),
            ("tool_call_start", r#"{"call_id":"c","name":"look","message_id":"m"}"#),
            ("tool_call_delta", r#"{"call_id":"c","text":"{\"a\":"}"#),
            ("text_delta", r#"{"message_id":"n","text":"beside"}"#),
            ("tool_call_delta", r#"{"call_id":"c","text":"1}"}"#),
            ("tool_call", r#"{"call_id":"c","name":"look","arguments_raw":"{\"a\":1}","message_id":"m"}"#),
            ("tool_call", r#"{"call_id":"broken","name":"look","arguments_raw":"{\"a\"","message_id":"m"}"#),
            ("text_delta", r#"{"message_id":"m","text":"lo"}"#),
            ("refusal_delta", r#"{"message_id":"m","text":"no"}"#),
            ("citation", r#"{"url":"https://a.example","title":"A"}"#),
            ("citation", r#"{"title":"A"}"#),
            ("citation", r#"{"text":"A"}"#),
            ("file", r#"{"media_type":"image/png","data":"AAAA","message_id":"n"}"#),
            ("custom", r#"{"name":"chart","data":[1]}"#),
            ("file", r#"{"media_type":"image/png","file_id":"f"}"#),
            ("assistant_message", r#"{"message_id":"m","finish_reason":"tool_calls"}"#),
            ("usage", r#"{"input_tokens":3,"output_tokens":4}"#),
            ("round_end", "{}"),
            ("tool_output_delta", r#"{"call_id":"c","text":"…"}"#),
            ("tool_result", r#"{"call_id":"c","output":{"b":2}}"#),
            ("tool_result", r#"{"call_id":"broken","is_error":true,"output":"bad"}"#),
            ("round_start", "{}"),
            ("tool_call", r#"{"call_id":"c","name":"look","arguments_raw":"{}"}"#),
            ("tool_result", r#"{"call_id":"c","output":null}"#),
            ("tool_result", r#"{"call_id":"nobody's","output":1}"#),
            ("text_delta", r#"{"message_id":"o","text":"wrong"}"#),
            ("message_reset", r#"{"message_id":"o","reason":"retry"}"#),
            ("text_delta", r#"{"message_id":"o","text":"right"}"#),
            ("message_start", r#"{"message_id":"p","choice":1}"#),
            ("text_delta", r#"{"message_id":"p","text":"other"}"#),
            ("assistant_message", r#"{"message_id":"p","choice":1}"#),
            ("warning", r#"{"code":"w","message":"w"}"#),
            ("error", r#"{"code":"e","message":"e"}"#),
            ("provider_event", r#"{"name":"x","data":[1]}"#),
            ("custom", r#"{"name":"chart","data":{"k":null}}"#),
            ("stage_end", r#"{"stage":"plan"}"#),
            ("stage_start", r#"{"stage":"left open"}"#),
            ("assistant_message", r#"{"message_id":"o","text":"right, and more"}"#),
        ]),
    );
}

#[test]
fn each_ending_has_its_words() {
    let ended = |status, format| {
        let session = Session::new("s", Limits::default());
        let number = session.start_turn(turn()).expect("started").turn;
        session.emit_all(number, &mut payloads(&[("text_delta", r#"{"message_id":"m","text":"Half"}"#)])).expect("taken");
        match status {
            Status::Failed => assert!(session.fail_turn(number, "boom", "it broke")),
            Status::Cancelled => assert!(session.cancel("enough")),
            _ => assert!(session.end_turn(number, Ending { status: Some(status), ..Ending::default() })),
        }
        let body = whole(&session, format);
        FORMATS.iter().find(|(known, _)| *known == format).expect("known").1(&body);
        let frames = frames(&body);
        frames[frames.len().saturating_sub(3)..].to_vec()
    };
    let words = |frames: Vec<Value>| frames.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let end = |status, format| words(ended(status, format));
    assert!(end(Status::Completed, Format::AiSdk).ends_with(r#"{"finishReason":"other","type":"finish"} "[DONE]""#));
    let failed = r#"{"errorText":"it broke","type":"error"} {"finishReason":"error","type":"finish"} "[DONE]""#;
    assert_eq!(end(Status::Failed, Format::AiSdk), failed);
    assert!(end(Status::Cancelled, Format::AiSdk).starts_with(r#"{"type":"abort"} "#));
    assert!(end(Status::Completed, Format::AgUi).contains(r#""outcome":{"type":"success"}"#));
    assert!(end(Status::Cancelled, Format::AgUi).contains(r#""outcome":{"type":"cancelled"}"#));
    assert!(end(Status::Failed, Format::AgUi).ends_with(r#"{"code":"boom","message":"it broke","type":"RUN_ERROR"}"#));
}

#[test]
fn a_body_of_the_ai_sdk_is_the_newest_turn_and_one_of_ag_ui_may_hold_all() {
    let session = Session::new("s", Limits::default());
    for text in ["one", "two"] {
        let number = session.start_turn(turn()).expect("started").turn;
        let mut said = payloads(&[("text_delta", &format!(r#"{{"message_id":"m{number}","text":"{text}"}}"#))]);
        session.emit_all(number, &mut said).expect("taken");
        session.end_turn(number, Ending::default());
    }
    let ai_sdk = verify_ai_sdk(&whole(&session, Format::AiSdk));
    assert_eq!(ai_sdk.said.into_keys().map(|(id, _)| id).collect::<Vec<_>>(), ["m2"]);
    assert_eq!(verify_ag_ui(&whole(&session, Format::AgUi)).said.len(), 2);
}

/// All but the last event has left the log when the reader comes: what the turn was is told from the fold.
#[test]
fn a_turn_that_has_left_the_log_is_told_from_the_fold() {
    let session = Session::new("s", Limits { max_events: 1, ..Limits::default() });
    let number = session.start_turn(turn()).expect("started").turn;
    let mut said = payloads(&[
        ("stage_start", r#"{"stage":"plan"}"#),
        ("progress", r#"{"stage":"plan","current":1,"total":2}"#),
        ("text_delta", r#"{"message_id":"m","text":"Hello"}"#),
        ("citation", r#"{"url":"https://a.example"}"#),
        ("file", r#"{"media_type":"image/png","url":"https://a.example/a.png"}"#),
        ("custom", r#"{"name":"chart","data":1}"#),
        ("tool_call", r#"{"call_id":"c","name":"look"}"#),
        ("tool_result", r#"{"call_id":"c","output":1}"#),
    ]);
    session.emit_all(number, &mut said).expect("taken");
    for ended in [false, true] {
        if ended {
            session.end_turn(number, Ending::default());
            // An event of the session's own has pushed the completion out.
            session.emit(None, payloads(&[("custom", r#"{"name":"later"}"#)]).remove(0), None).expect("taken");
        }
        for (format, verify) in FORMATS {
            let mut body = whole(&session, format);
            let text = String::from_utf8_lossy(&body).into_owned();
            assert!(text.contains(r#""stage":"plan","current":1.0,"total":2.0"#), "{format:?}: {text}");
            if ended {
                let mut seen = verify(&body);
                seen.attached.remove("custom"); // the session's own is no part of a turn
                let mut truth = truth(&session);
                truth.attached.remove("custom");
                assert_eq!(seen, truth, "{format:?}: {text}");
            } else {
                assert!(!body.is_empty(), "{format:?}");
                body.clear();
            }
        }
    }
}

// --- made-up runs -----------------------------------------------------------------------------------------------------

/// One thing that an agent may say in its turn, in any order, sensible or not.
fn step() -> impl Strategy<Value = (&'static str, Value)> {
    let message = prop::sample::select(vec!["m1", "m:2\n", "m3"]);
    let call = prop::sample::select(vec!["c1", "c:2\r\n", "c3"]);
    let name = prop::sample::select(vec!["look", "data: x\n\n", ""]);
    let kind = prop::sample::select(vec!["client", "server", "mcp"]);
    let text = prop::sample::select(vec!["", "a", "é\u{2028}", "\0\"\\", "{\"a\":", "1}", "{\"a\":1}", "\r\ndata: x\n\n"]);
    let reason = prop::sample::select(vec!["retry", "contradicted"]);
    let finish = prop::sample::select(vec!["stop", "length", "tool_calls", "content_filter", "unknown", "refusal"]);
    (message, call, name, kind, text, reason, finish, 0_u8..28).prop_map(
        |(message, call, name, kind, text, reason, finish, which)| match which {
            0..=4 => ("text_delta", json!({ "message_id": message, "text": text })),
            5 | 6 => ("reasoning_delta", json!({ "message_id": message, "text": text, "part": text.len() })),
            7 => ("refusal_delta", json!({ "message_id": message, "text": text })),
            8 => ("tool_call_start", json!({ "call_id": call, "name": name, "kind": kind, "message_id": message })),
            9..=11 => ("tool_call_delta", json!({ "call_id": call, "text": text })),
            12 => ("tool_call", json!({ "call_id": call, "name": name, "kind": kind, "arguments_raw": text })),
            13 => ("tool_call", json!({ "call_id": call, "name": name, "kind": kind })),
            14 => ("tool_result", json!({ "call_id": call, "output": text, "is_error": text.is_empty() })),
            15 => ("tool_output_delta", json!({ "call_id": call, "text": text })),
            16 => ("message_reset", json!({ "message_id": message, "reason": reason })),
            17 => ("assistant_message", json!({ "message_id": message, "text": text, "finish_reason": finish })),
            18 => ("round_start", json!({ "model": text })),
            19 => ("round_end", json!({})),
            20 => ("citation", json!({ "message_id": message, "url": "https://example.com" })),
            21 => ("citation", json!({ "title": text })),
            22 => ("file", json!({ "media_type": "image/png", "data": "AAAA" })),
            23 => ("custom", json!({ "name": "chart", "data": { "text": text } })),
            24 => ("stage_start", json!({ "stage": name })),
            25 => ("stage_end", json!({ "stage": name })),
            26 => ("progress", json!({ "stage": name, "current": text.len(), "message": text })),
            _ => ("error", json!({ "code": "e", "message": text })),
        },
    )
}

fn end(session: &Session, number: u32, ending: u8) {
    match ending {
        0 => drop(session.cancel("enough")),
        1 => drop(session.fail_turn(number, "broken", "it broke")),
        _ => drop(session.end_turn(number, Ending::default())),
    }
}

/// The ids of a turn are its own: a conversation never says one twice.
fn of_turn(number: u32, steps: &[(&'static str, Value)]) -> Vec<Payload> {
    let mut payloads = Vec::new();
    for (kind, fields) in steps {
        let mut fields = fields.clone();
        for name in ["message_id", "call_id"] {
            if let Some(id) = fields.get(name).and_then(Value::as_str) {
                fields[name] = format!("t{number}{id}").into();
            }
        }
        payloads.push(Payload::from_json(kind, &fields.to_string()).expect("a payload").0);
    }
    payloads
}

/// What a body that begins after `seq` should come to.
fn expected(session: &Arc<Session>, format: Format, seq: u64) -> Option<Seen> {
    let (_, at) = session.snapshot_at(seq);
    let at = at.to_value();
    let (turn, running) = (at["turn"].as_u64().and_then(|turn| u32::try_from(turn).ok()).expect("a turn"), at["running"] == true);
    let newest = session.position().last_turn;
    let told = |of: u32| match format {
        Format::AiSdk => of == turn + u32::from(!running),
        _ => of > turn || running,
    };
    (running || turn < newest).then(|| {
        let mut seen = truth_of(session, told);
        seen.attached.clear();
        let mut reader = Reader::open(session, &ReadOptions { follow: Follow::None, ..ReadOptions::default() }).expect("opened");
        let mut items = Vec::new();
        while reader.poll(256, &mut items) == Poll::Ready {}
        for event in items.iter().map(turnstream_core::reader::Item::event) {
            // Of earlier runs a conversation that is stated says the messages alone.
            let anew = event.context.turn > turn || (running && event.context.turn == turn);
            match &event.payload {
                _ if !told(event.context.turn) || !anew => {}
                Payload::Citation(_) => seen.attach("citation"),
                Payload::File(_) => seen.attach("file"),
                Payload::Custom(_) => seen.attach("custom"),
                _ => {}
            }
        }
        seen
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 250, ..ProptestConfig::default() })]
    #[test]
    fn any_run_is_told_by_the_rules_from_every_cursor(
        turns in prop::collection::vec((prop::collection::vec(step(), 0..30), 0_u8..5), 1..4),
        behind in 1_usize..12,
    ) {
        let session = Session::new("s", Limits::default());
        for (steps, ending) in &turns {
            let number = session.start_turn(turn()).expect("started").turn;
            for payload in of_turn(number, steps) {
                session.emit(Some(number), payload, None).expect("taken");
            }
            end(&session, number, *ending);
        }
        for (format, verify) in FORMATS {
            let body = whole(&session, format);
            let newest = turns.len() as u32;
            let before = if format == Format::AiSdk { session.look(|state| state.turn_start) - 1 } else { 0 };
            prop_assert_eq!(Some(verify(&body)), expected(&session, format, before), "turn {} whole: {}", newest, String::from_utf8_lossy(&body));
            for seq in 1..session.position().head {
                let body = from(&session, seq, format);
                let Some(expected) = expected(&session, format, seq) else {
                    prop_assert!(body.is_empty(), "nothing runs at {}", seq);
                    continue;
                };
                prop_assert_eq!(verify(&body), expected, "{:?} after {}: {}", format, seq, String::from_utf8_lossy(&body));
            }
            let (steps, ending) = &turns[0];
            let (body, session) = lagging(&of_turn(1, steps), behind, format, *ending);
            let seen = verify(&body);
            let truth = truth(&session);
            prop_assert_eq!(seen, truth, "{:?} {} behind: {}", format, behind, String::from_utf8_lossy(&body));
        }
    }
}
