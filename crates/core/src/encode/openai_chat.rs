//! OpenAI Chat Completions: one turn as `chat.completion.chunk` frames, or as one `chat.completion`.
//!
//! The rounds of a turn are one message: their texts are parted by a blank line. Calls of the client's own tools are
//! shown; those that the agent runs itself are not, or the client would run them too. What the protocol has no word
//! for (progress, tool results, citations, files, warnings) is left out.
//!
//! Invariants: 1. id, created and model are equal on all chunks of a body; 2. exactly one `finish_reason` per choice,
//! then `[DONE]`; or an `error` and no `[DONE]`; 3. nothing that was shown is contradicted in silence: where a call is
//! withdrawn or turns out to be another, or history is missing, the stream ends with an error.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::Encoder;
use super::index::{Places, WireIds};
use super::openai::{Phase, Request, usage, whole_arguments, whole_name};
use crate::event::json::{write_str, write_u64};
use crate::event::{Completion, Event, FinishReason, Id, Json, Payload, Status, Text};
use crate::reader::Item;
use crate::session::Session;

/// A call as it has been shown.
#[derive(Debug)]
struct Call {
    round: u32,
    wire_id: Text,
    message_id: Option<Id>,
    name: Text,
    arguments: String,
    whole: bool,
    withdrawn: bool,
}

/// One of the answers that the client asked for.
#[derive(Debug)]
struct Choice {
    index: u64,
    begun: bool,
    /// The message whose text came last.
    speaking: Option<Id>,
    /// What was shown is followed by something else: a blank line parts the two.
    parted: bool,
    calls: Vec<Call>,
    wire_ids: WireIds,
    /// How its last message ended, and in the provider's word.
    finish: Option<(Id, FinishReason, Option<Text>)>,
    /// The whole texts, for a body.
    content: String,
    reasoning: String,
    refusal: String,
}

/// Encodes one turn.
#[derive(Debug, Default)]
pub struct Chat {
    /// Whether one answer is wanted, not chunks.
    whole: bool,
    request: Request,
    phase: Phase,
    id: String,
    created: u64,
    model: String,
    /// `data: {"id":…,"object":…,"created":…,"model":…`, the same for all chunks.
    head: Vec<u8>,
    /// Which choice each message is.
    messages: HashMap<Id, u64>,
    choices: Vec<Choice>,
    /// Where each choice stands.
    choice_index: HashMap<u64, usize>,
    /// Where the calls of each id stand: the choice, and the place there.
    call_index: Places<(usize, usize)>,
    usage: Option<Value>,
    error: Option<Value>,
}

impl Chat {
    /// An encoder that has said nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// One that makes a whole answer.
    pub(super) fn body() -> Self {
        Self { whole: true, ..Self::default() }
    }

    /// The whole answer, or `{"error"}`; none before the turn has ended.
    pub(super) fn answer(&self) -> Option<Json> {
        if let Some(error) = &self.error {
            return Some(Json::from_value(&json!({ "error": error })));
        }
        if self.phase != Phase::Over {
            return None;
        }
        let text = |text: &str| if text.is_empty() { Value::Null } else { text.into() };
        let choices = self.choices.iter().map(|choice| {
            let mut message = json!({ "role": "assistant", "content": text(&choice.content), "refusal": text(&choice.refusal) });
            if !choice.reasoning.is_empty() {
                message["reasoning_content"] = choice.reasoning.as_str().into();
            }
            if choice.calls.iter().any(|call| !call.withdrawn) {
                let calls = choice.calls.iter().filter(|call| !call.withdrawn).map(|call| {
                    let function = json!({ "name": call.name.as_str(), "arguments": call.arguments });
                    json!({ "id": call.wire_id.as_str(), "type": "function", "function": function })
                });
                message["tool_calls"] = calls.collect();
            }
            json!({ "index": choice.index, "message": message, "finish_reason": choice.reason(), "logprobs": null })
        });
        let mut answer = json!({
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "choices": choices.collect::<Vec<_>>(),
        });
        if let Some(usage) = &self.usage {
            answer["usage"] = usage.clone();
        }
        Some(Json::from_value(&answer))
    }

    /// Takes one event of the log, or a control frame.
    pub(super) fn event(&mut self, session: &Session, event: &Event, out: &mut Vec<u8>) {
        match &event.payload {
            _ if self.phase == Phase::Over => return,
            Payload::Snapshot(_) | Payload::Gap(_) => {
                if !self.whole || self.phase == Phase::Before {
                    self.phase = Phase::Hole;
                }
                return;
            }
            Payload::TurnStart(start) => {
                self.phase = Phase::Before;
                self.request = Request::of(start.input.as_ref());
            }
            _ if event.context.turn == 0 => return,
            _ => {}
        }
        if self.phase == Phase::Hole {
            self.fail(out, "history_trimmed", "the server no longer holds all of this answer");
            return;
        }
        if self.phase == Phase::Before {
            self.phase = Phase::Inside;
            self.id = format!("chatcmpl-{}{}", session.epoch(), event.context.turn);
            self.created = event.time / 1000;
        }
        match &event.payload {
            Payload::RoundStart(start) => self.learn_model(start.model.as_deref()),
            Payload::MessageStart(start) => {
                self.learn_model(start.model.as_deref());
                self.messages.insert(start.message_id.clone(), start.choice.unwrap_or(0));
                let at = self.choice(&start.message_id);
                self.begin(at, out);
            }
            Payload::TextDelta(delta) => self.say(&delta.message_id, "content", &delta.text, out),
            Payload::ReasoningDelta(delta) => self.say(&delta.message_id, "reasoning_content", &delta.text, out),
            Payload::RefusalDelta(delta) => self.say(&delta.message_id, "refusal", &delta.text, out),
            Payload::MessageReset(reset) => {
                let at = self.choice(&reset.message_id);
                let stands = reset.reason.as_deref() == Some("contradicted");
                let of_it = |call: &&mut Call| !stands && call.message_id.as_ref() == Some(&reset.message_id);
                let mut withdrawn = 0;
                for call in self.choices[at].calls.iter_mut().filter(of_it) {
                    call.withdrawn = true;
                    withdrawn += 1;
                }
                if withdrawn > 0 && !self.whole {
                    self.fail(out, "withdrawn", "a tool call that was shown has been withdrawn; it must not be run");
                } else {
                    self.choices[at].parted = self.choices[at].speaking.take().is_some();
                }
            }
            Payload::AssistantMessage(message) => {
                self.learn_model(message.model.as_deref());
                let at = self.choice(&message.message_id);
                let choice = &mut self.choices[at];
                choice.finish = Some((message.message_id.clone(), message.finish_reason, message.finish_reason_raw.clone()));
                for (all, text) in [
                    (&mut choice.content, &*message.text),
                    (&mut choice.reasoning, &*message.reasoning),
                    (&mut choice.refusal, message.refusal.as_deref().unwrap_or("")),
                ] {
                    if self.whole && !text.is_empty() {
                        all.push_str(if all.is_empty() { "" } else { "\n\n" });
                        all.push_str(text);
                    }
                }
            }
            // Without a name it cannot be announced: it waits for its whole.
            Payload::ToolCallStart(start) if !start.name.is_empty() && self.request.is_the_clients(start.kind, &start.name) => {
                self.call(event.context.round, &start.call_id, start.message_id.as_ref(), &start.name, out);
            }
            Payload::ToolCallDelta(delta) => self.arguments(event.context.round, &delta.call_id, &delta.text, out),
            Payload::ToolCall(call) if self.request.is_the_clients(call.kind, &call.name) => {
                let known = self.call(event.context.round, &call.call_id, call.message_id.as_ref(), &call.name, out);
                let Call { arguments: shown, whole: done, round, .. } = &mut self.choices[known.0].calls[known.1];
                (*done, *round) = (true, event.context.round);
                let whole = whole_arguments(&call.arguments_raw);
                match whole.strip_prefix(shown.as_str()).map(str::to_owned) {
                    Some(rest) => self.arguments(event.context.round, &call.call_id, &rest, out),
                    None if self.whole => whole.clone_into(shown),
                    None => {
                        self.fail(out, "contradicted", "a tool call's arguments are others than were shown; it must not be run");
                    }
                }
            }
            Payload::Completion(completion) => self.complete(completion, out),
            _ => {}
        }
    }

    /// The request's word, or else the first that is said.
    fn learn_model(&mut self, model: Option<&str>) {
        if self.model.is_empty() && self.head.is_empty() {
            self.model = self.request.model.as_deref().or(model).unwrap_or("").to_owned();
        }
    }

    fn choice(&mut self, message: &Id) -> usize {
        self.choice_at(self.messages.get(message).copied().unwrap_or(0))
    }

    fn choice_at(&mut self, index: u64) -> usize {
        *self.choice_index.entry(index).or_insert_with(|| {
            self.choices.push(Choice {
                index,
                begun: false,
                speaking: None,
                parted: false,
                calls: Vec::new(),
                wire_ids: WireIds::default(),
                finish: None,
                content: String::new(),
                reasoning: String::new(),
                refusal: String::new(),
            });
            self.choices.len() - 1
        })
    }

    /// The first delta of a choice says whose it is.
    fn begin(&mut self, at: usize, out: &mut Vec<u8>) {
        if !std::mem::replace(&mut self.choices[at].begun, true) {
            self.chunk(at, out, |out| out.extend_from_slice(br#""role":"assistant","content":"""#));
        }
    }

    fn say(&mut self, message: &Id, field: &str, text: &str, out: &mut Vec<u8>) {
        if self.whole || text.is_empty() {
            return;
        }
        let at = self.choice(message);
        self.begin(at, out);
        let choice = &mut self.choices[at];
        let mut parted = "";
        if field == "content" {
            if choice.parted || choice.speaking.as_ref().is_some_and(|speaking| speaking != message) {
                parted = "\n\n";
            }
            choice.parted = false;
            choice.speaking = Some(message.clone());
        }
        self.chunk(at, out, |out| {
            write_str(out, field);
            out.push(b':');
            if parted.is_empty() { write_str(out, text) } else { write_str(out, &format!("{parted}{text}")) }
        });
    }

    /// Opens a call, unless it is open; says where it is: its choice and its place there.
    fn call(&mut self, round: u32, id: &Id, message: Option<&Id>, name: &Text, out: &mut Vec<u8>) -> (usize, usize) {
        if let Some(known) = self.known(round, id) {
            return known;
        }
        let at = match message {
            Some(message) => self.choice(message),
            None => self.choice_at(0),
        };
        self.begin(at, out);
        let name = whole_name(name);
        let index = self.choices[at].calls.len();
        let wire_id = self.choices[at].wire_ids.take(id);
        self.call_index.put(id, (at, index));
        self.chunk(at, out, |out| {
            out.extend_from_slice(br#""tool_calls":[{"index":"#);
            write_u64(out, index as u64);
            out.extend_from_slice(br#","id":"#);
            write_str(out, &wire_id);
            out.extend_from_slice(br#","type":"function","function":{"name":"#);
            write_str(out, &name);
            out.extend_from_slice(br#","arguments":""}}]"#);
        });
        let message_id = message.cloned();
        self.choices[at].calls.push(Call {
            round,
            wire_id,
            message_id,
            name,
            arguments: String::new(),
            whole: false,
            withdrawn: false,
        });
        (at, index)
    }

    /// The call that is being written under that id: the round's own, or else the one that is not whole.
    fn known(&self, round: u32, id: &Id) -> Option<(usize, usize)> {
        let find = |meant: &dyn Fn(&Call) -> bool| {
            let known = self.call_index.of(id).iter().copied().filter(|(at, index)| meant(&self.choices[*at].calls[*index]));
            known.min_by_key(|(at, index)| (*at, std::cmp::Reverse(*index)))
        };
        find(&|call| call.round == round).or_else(|| find(&|call| !call.whole))
    }

    fn arguments(&mut self, round: u32, id: &Id, text: &str, out: &mut Vec<u8>) {
        let Some((at, index)) = self.known(round, id).filter(|_| !text.is_empty()) else { return };
        self.choices[at].calls[index].arguments.push_str(text);
        self.chunk(at, out, |out| {
            out.extend_from_slice(br#""tool_calls":[{"index":"#);
            write_u64(out, index as u64);
            out.extend_from_slice(br#","function":{"arguments":"#);
            write_str(out, text);
            out.extend_from_slice(b"}}]");
        });
    }

    fn complete(&mut self, completion: &Completion, out: &mut Vec<u8>) {
        match completion.status {
            Status::Completed => {}
            Status::Cancelled => return self.fail(out, "cancelled", "the run was cancelled"),
            Status::Failed | Status::Incomplete => {
                let error = completion.error.as_ref().map(Json::to_value).unwrap_or_default();
                let word = |name: &str| error.get(name).and_then(Value::as_str);
                let code = word("code").or(completion.reason.as_deref()).unwrap_or("error");
                return self.fail(out, code, word("message").unwrap_or("the run failed"));
            }
        }
        let first = self.choice_at(0);
        self.begin(first, out);
        self.usage = usage(
            completion.usage.as_ref(),
            ["prompt_tokens", "prompt_tokens_details", "completion_tokens", "completion_tokens_details"],
            false,
        );
        for at in 0..self.choices.len() {
            let reason = self.choices[at].reason();
            self.frame(out, |out| {
                out.extend_from_slice(br#""choices":[{"index":"#);
                write_u64(out, self.choices[at].index);
                out.extend_from_slice(br#","delta":{},"finish_reason":"#);
                write_str(out, reason);
                out.extend_from_slice(b"}]");
            });
        }
        if let Some(usage) = self.usage.as_ref().filter(|_| self.request.include_usage) {
            self.frame(out, |out| out.extend_from_slice(format!(r#""choices":[],"usage":{usage}"#).as_bytes()));
        }
        if !self.whole {
            out.extend_from_slice(b"data: [DONE]\n\n");
        }
        self.phase = Phase::Over;
    }

    fn fail(&mut self, out: &mut Vec<u8>, code: &str, message: &str) {
        let error = json!({ "message": message, "type": "server_error", "param": null, "code": code });
        if !self.whole {
            out.extend_from_slice(format!("data: {}\n\n", json!({ "error": error })).as_bytes());
        }
        self.error = Some(error);
        self.phase = Phase::Over;
    }

    /// A chunk with one delta, whose members `write` writes.
    fn chunk(&mut self, at: usize, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
        self.learn_model(Some("unknown"));
        if self.head.is_empty() && !self.whole {
            self.head.extend_from_slice(b"data: {\"id\":");
            write_str(&mut self.head, &self.id);
            self.head.extend_from_slice(br#","object":"chat.completion.chunk","created":"#);
            write_u64(&mut self.head, self.created);
            self.head.extend_from_slice(br#","model":"#);
            write_str(&mut self.head, &self.model);
            self.head.push(b',');
        }
        self.frame(out, |out| {
            out.extend_from_slice(br#""choices":[{"index":"#);
            write_u64(out, self.choices[at].index);
            out.extend_from_slice(br#","delta":{"#);
            write(out);
            out.extend_from_slice(br#"},"finish_reason":null}]"#);
        });
    }

    fn frame(&self, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
        if !self.whole {
            out.extend_from_slice(&self.head);
            write(out);
            out.extend_from_slice(b"}\n\n");
        }
    }
}

impl Choice {
    /// Why it ended, in the protocol's words.
    fn reason(&self) -> &'static str {
        let Some((message, reason, raw)) = &self.finish else { return "stop" };
        // Calls of earlier rounds have been answered, and those of the agent's own are not shown.
        let of_it = |call: &Call| !call.withdrawn && call.message_id.as_ref().is_none_or(|id| id == message);
        match reason {
            FinishReason::Length => "length",
            FinishReason::ContentFilter => "content_filter",
            FinishReason::ToolCalls | FinishReason::Unknown if self.calls.iter().any(of_it) => match raw.as_deref() {
                Some("function_call") => "function_call",
                _ => "tool_calls",
            },
            _ => "stop",
        }
    }
}

impl Encoder for Chat {
    fn one_turn(&self) -> bool {
        true
    }

    fn finished(&self) -> bool {
        self.phase == Phase::Over
    }

    fn item(&mut self, session: &Session, item: &Item, out: &mut Vec<u8>) {
        self.event(session, item.event(), out);
    }
}
