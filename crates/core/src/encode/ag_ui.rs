//! AG-UI 1.0: runs of a thread, as its clients verify them.
//!
//! A turn is a run, a session a thread; one body may hold several runs. The protocol knows no resumption: a stream that
//! starts in the middle opens the run again, states in a `MESSAGES_SNAPSHOT` what is finished, and tells anew what is open.
//! Invariants: 1. a run begins with `RUN_STARTED` and ends with exactly one `RUN_FINISHED` or `RUN_ERROR`; a body that stops
//! before has been cut; 2. text, reasoning, calls and steps are closed before it; 3. LF alone, no id, no `[DONE]`.
//!
//! | vocabulary | event |
//! |---|---|
//! | `turn_start` | `RUN_STARTED`; the run's id is the request's own, or `<session>.<turn>` |
//! | `text_delta`, `refusal_delta` | `TEXT_MESSAGE_START`, `_CONTENT`, `_END` |
//! | `reasoning_delta` | `REASONING_START`, `REASONING_MESSAGE_START`, `_CONTENT`, `_END`, `REASONING_END` |
//! | `message_start`, `assistant_message` | the missing suffix; another choice: `CUSTOM` `choice` |
//! | `message_reset` | `CUSTOM` `message_reset` with the ids that are void; what follows comes as new messages |
//! | `tool_call_start`, `tool_call_delta`, `tool_call` | `TOOL_CALL_START`, `_ARGS`, `_END`; arguments that are no JSON, or others than the pieces: also `CUSTOM` `tool_call_error` |
//! | `tool_output_delta` | `CUSTOM` `tool_output_delta` |
//! | `tool_result` | `TOOL_CALL_RESULT`; an error is said in its metadata |
//! | `stage_start`, `stage_end` | `STEP_STARTED`, `STEP_FINISHED` |
//! | `progress` | `ACTIVITY_SNAPSHOT`, activity type `progress`, one activity per stage |
//! | `usage` | `RUN_FINISHED.usage`, `RUN_ERROR.usage` |
//! | `round_start`, `citation`, `file`, `warning`, `error`, `gap` | `CUSTOM` of that name |
//! | `provider_event` | `RAW` |
//! | `custom` | `CUSTOM` |
//! | `completion` | `RUN_FINISHED` with outcome success or cancelled, or `RUN_ERROR` |
//! | `round_end`, `session_end`, `stream_open` | nothing |
//! | `snapshot` | `MESSAGES_SNAPSHOT` and the events above |

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::Encoder;
use super::teller::{Call, Frame, Part, Past, PastCall, Speech, Teller, Turn, Voice, failure, result_text, write_usage};
use crate::event::json::{list, write_str};
use crate::event::{AssistantMessage, Completion, Event, Field, Id, Payload, RoundStart, Status, Text, ToolCall, ToolResult};

/// The words of AG-UI.
#[derive(Debug, Default)]
struct Runs {
    /// Steps that are open, and how many had begun before.
    steps: HashMap<Id, usize>,
    begun: usize,
    /// The messages that were begun since its last reset, by the message of ours that they belong to.
    shown: HashMap<Id, Vec<Text>>,
}

/// An encoder that has said nothing.
pub fn encoder() -> Box<dyn Encoder> {
    Box::new(Teller::new(Runs::default()))
}

fn run_id(turn: &Turn) -> Text {
    turn.client_id.clone().unwrap_or_else(|| format!("{}.{}", turn.session, turn.number).into())
}

fn result_id(call_id: &str) -> Text {
    format!("{call_id}.result").into()
}

fn custom(out: &mut Vec<u8>, name: &str, value: impl FnOnce(&mut Vec<u8>)) {
    Frame::new(out, "CUSTOM").text("name", name).with("value", value).send();
}

impl Runs {
    fn start_step(&mut self, stage: &Id, out: &mut Vec<u8>) {
        if !self.steps.contains_key(stage) {
            self.steps.insert(stage.clone(), self.begun);
            self.begun += 1;
            Frame::new(out, "STEP_STARTED").text("stepName", stage).send();
        }
    }
}

impl Voice for Runs {
    const ONE_TURN: bool = false;

    fn turn_start(&mut self, turn: &Turn, out: &mut Vec<u8>) {
        *self = Self::default();
        Frame::new(out, "RUN_STARTED").text("threadId", &turn.session).text("runId", &run_id(turn)).send();
    }

    fn turn_end(&mut self, turn: &Turn, completion: &Completion, out: &mut Vec<u8>) {
        let mut open: Vec<_> = std::mem::take(&mut self.steps).into_iter().collect();
        open.sort_unstable_by_key(|(_, begun)| *begun);
        for (step, _) in open {
            Frame::new(out, "STEP_FINISHED").text("stepName", &step).send();
        }
        let usage = |frame: Frame<'_>| match &turn.usage {
            Some(usage) => frame
                .with("usage", |out| {
                    out.push(b'[');
                    write_usage(out, usage);
                    out.push(b']');
                })
                .send(),
            None => frame.send(),
        };
        if matches!(completion.status, Status::Failed | Status::Incomplete) {
            let (message, code) = failure(completion);
            usage(Frame::new(out, "RUN_ERROR").text("message", &message).maybe("code", code.as_deref()));
            return;
        }
        let frame = Frame::new(out, "RUN_FINISHED").text("threadId", &turn.session).text("runId", &run_id(turn));
        usage(frame.with("outcome", |out| match completion.status {
            Status::Cancelled => out.extend_from_slice(b"{\"type\":\"cancelled\"}"),
            _ if turn.pending.is_empty() => out.extend_from_slice(b"{\"type\":\"success\"}"),
            _ => {
                out.extend_from_slice(b"{\"type\":\"success\",\"pendingToolCallIds\":");
                list(out, &turn.pending, |out, id| write_str(out, id));
                out.push(b'}');
            }
        }));
    }

    fn restate(&mut self, _: &Turn, past: &Past<'_>, out: &mut Vec<u8>) -> bool {
        Frame::new(out, "MESSAGES_SNAPSHOT").with("messages", |out| write_messages(out, past)).send();
        true
    }

    fn round_start(&mut self, _: &Turn, round: &RoundStart, out: &mut Vec<u8>) {
        let payload = Payload::from(round.clone());
        custom(out, "round_start", |out| payload.write_object(out));
    }

    /// A message's own id for its text, so that its calls find it; the others beside it.
    fn part_id(part: &Part) -> Text {
        let id = &part.message_id;
        let reset = if part.resets > 0 { format!(".{}", part.resets) } else { String::new() };
        match part.speech {
            Speech::Text => format!("{id}{reset}").into(),
            Speech::Refusal => format!("{id}{reset}.refusal").into(),
            Speech::Reasoning => format!("{id}{reset}.reasoning.{}", part.number).into(),
        }
    }

    fn part_start(&mut self, part: &Part, out: &mut Vec<u8>) {
        let id = part.wire_id.clone();
        if part.speech == Speech::Reasoning {
            Frame::new(out, "REASONING_START").text("messageId", &id).send();
            Frame::new(out, "REASONING_MESSAGE_START").text("messageId", &id).text("role", "reasoning").send();
        } else {
            Frame::new(out, "TEXT_MESSAGE_START").text("messageId", &id).text("role", "assistant").send();
        }
        // Text goes on under the id that it has begun with.
        if part.speech == Speech::Reasoning || part.number == 0 {
            self.shown.entry(part.message_id.clone()).or_default().push(id);
        }
    }

    fn part_delta(&mut self, part: &Part, text: &str, out: &mut Vec<u8>) {
        let kind = if part.speech == Speech::Reasoning { "REASONING_MESSAGE_CONTENT" } else { "TEXT_MESSAGE_CONTENT" };
        Frame::new(out, kind).text("messageId", &part.wire_id).text("delta", text).send();
    }

    fn part_end(&mut self, part: &Part, out: &mut Vec<u8>) {
        let id = part.wire_id.clone();
        if part.speech == Speech::Reasoning {
            Frame::new(out, "REASONING_MESSAGE_END").text("messageId", &id).send();
            Frame::new(out, "REASONING_END").text("messageId", &id).send();
        } else {
            Frame::new(out, "TEXT_MESSAGE_END").text("messageId", &id).send();
        }
    }

    fn reset(&mut self, message_id: &Id, reason: Option<&str>, out: &mut Vec<u8>) {
        let void = self.shown.remove(message_id).unwrap_or_default();
        custom(out, "message_reset", |out| {
            out.extend_from_slice(b"{\"messageIds\":");
            list(out, &void, |out, id| write_str(out, id));
            if let Some(reason) = reason {
                out.extend_from_slice(b",\"reason\":");
                write_str(out, reason);
            }
            out.push(b'}');
        });
    }

    fn call_start(&mut self, call: &Call, out: &mut Vec<u8>) {
        Frame::new(out, "TOOL_CALL_START")
            .text("toolCallId", &call.wire_id)
            .text("toolCallName", &call.name)
            .maybe("parentMessageId", call.message_id.as_deref())
            .send();
    }

    fn call_delta(&mut self, call: &Call, text: &str, out: &mut Vec<u8>) {
        Frame::new(out, "TOOL_CALL_ARGS").text("toolCallId", &call.wire_id).text("delta", text).send();
    }

    fn call_end(&mut self, call: &Call, whole: &ToolCall, contradicted: bool, out: &mut Vec<u8>) {
        Frame::new(out, "TOOL_CALL_END").text("toolCallId", &call.wire_id).send();
        let others = contradicted.then_some("the arguments are others than those that were shown");
        if let Some(error) = whole.arguments_error.as_deref().or(others) {
            custom(out, "tool_call_error", |out| {
                out.extend_from_slice(b"{\"toolCallId\":");
                write_str(out, &call.wire_id);
                out.extend_from_slice(b",\"error\":");
                write_str(out, error);
                if contradicted {
                    out.extend_from_slice(b",\"arguments\":");
                    write_str(out, &whole.arguments_raw);
                }
                out.push(b'}');
            });
        }
    }

    fn call_output(&mut self, call: &Call, text: &str, out: &mut Vec<u8>) {
        custom(out, "tool_output_delta", |out| {
            out.extend_from_slice(b"{\"toolCallId\":");
            write_str(out, &call.wire_id);
            out.extend_from_slice(b",\"text\":");
            write_str(out, text);
            out.push(b'}');
        });
    }

    fn call_result(&mut self, call: &Call, result: &ToolResult, out: &mut Vec<u8>) {
        let frame = Frame::new(out, "TOOL_CALL_RESULT").text("messageId", &result_id(&call.wire_id));
        let frame = frame.text("toolCallId", &call.wire_id).text("content", &result_text(result)).text("role", "tool");
        if result.is_error {
            frame
                .with("metadata", |out| {
                    out.extend_from_slice(b"{\"is_error\":true,\"status\":");
                    write_str(out, &result.status);
                    out.push(b'}');
                })
                .send();
        } else {
            frame.send();
        }
    }

    fn choice(&mut self, message: &AssistantMessage, out: &mut Vec<u8>) {
        let payload = Payload::from(message.clone());
        custom(out, "choice", |out| payload.write_object(out));
    }

    fn usage(&mut self, _: &Turn, _: &mut Vec<u8>) {}

    fn other(&mut self, _: &Turn, event: &Event, out: &mut Vec<u8>) {
        let fields = |out: &mut Vec<u8>| event.payload.write_object(out);
        match &event.payload {
            Payload::StageStart(it) => self.start_step(&it.stage, out),
            Payload::StageEnd(it) => {
                if self.steps.remove(&it.stage).is_some() {
                    Frame::new(out, "STEP_FINISHED").text("stepName", &it.stage).send();
                }
            }
            Payload::Progress(it) => {
                let id =
                    format!("{}.{}.progress.{}", event.context.session.as_deref().unwrap_or(""), event.context.turn, it.stage);
                let frame = Frame::new(out, "ACTIVITY_SNAPSHOT").text("messageId", &id);
                frame.text("activityType", "progress").with("content", fields).send();
            }
            Payload::ProviderEvent(it) => {
                Frame::new(out, "RAW").with("event", fields).text("source", &it.name).send();
            }
            Payload::Custom(it) => custom(out, &it.name, |out| it.data.write(out)),
            payload => custom(out, payload.kind(), fields),
        }
    }
}

/// The conversation as far as it is finished: the client keeps of its own messages those that it finds here again.
fn write_messages(out: &mut Vec<u8>, past: &Past<'_>) {
    let mut messages: Vec<Vec<u8>> = Vec::new();
    let mut others = past.other_calls.iter().peekable();
    let mut tell_others = |before: u32, messages: &mut Vec<Vec<u8>>| {
        while let Some(call) = others.next_if(|call| call.turn < before) {
            messages.push(spoken(&call.wire_id, "assistant", "", std::slice::from_ref(call)));
            messages.extend(told_result(call));
        }
    };
    for message in &past.messages {
        tell_others(message.turn, &mut messages);
        if let Some(input) = message.input {
            input_messages(&mut messages, &message.id(), input);
            continue;
        }
        if message.choice.unwrap_or(0) > 0 || (message.turn == past.turn && !message.done) {
            continue; // told apart, told anew
        }
        let id = match message.resets {
            0 => message.id(),
            resets => format!("{}.{resets}", message.id()).into(),
        };
        if !message.reasoning.is_empty() {
            messages.push(spoken(&format!("{id}.reasoning.0"), "reasoning", &message.reasoning, &[]));
        }
        if !message.text.is_empty() || message.tool_calls.iter().any(|call| call.done) {
            messages.push(spoken(&id, &message.role, &message.text, &message.tool_calls));
        }
        if let Some(refusal) = &message.refusal {
            messages.push(spoken(&format!("{id}.refusal"), "assistant", refusal, &[]));
        }
        messages.extend(message.tool_calls.iter().filter_map(told_result));
    }
    tell_others(u32::MAX, &mut messages);
    list(out, &messages, |out, message| out.extend_from_slice(message));
}

fn spoken(id: &str, role: &str, text: &str, calls: &[PastCall<'_>]) -> Vec<u8> {
    let mut out = b"{\"id\":".to_vec();
    write_str(&mut out, id);
    out.extend_from_slice(b",\"role\":");
    write_str(&mut out, role);
    out.extend_from_slice(b",\"content\":");
    write_str(&mut out, text);
    // One that is not whole is told anew.
    let calls: Vec<_> = calls.iter().filter(|call| call.done).collect();
    if !calls.is_empty() {
        out.extend_from_slice(b",\"toolCalls\":");
        list(&mut out, &calls, |out, call| {
            out.extend_from_slice(b"{\"id\":");
            write_str(out, &call.wire_id);
            out.extend_from_slice(b",\"type\":\"function\",\"function\":{\"name\":");
            write_str(out, &call.name);
            out.extend_from_slice(b",\"arguments\":");
            write_str(out, &call.arguments_raw);
            out.extend_from_slice(b"}}");
        });
    }
    out.push(b'}');
    out
}

fn told_result(call: &PastCall<'_>) -> Option<Vec<u8>> {
    let result = call.result()?;
    let mut out = b"{\"id\":".to_vec();
    write_str(&mut out, &result_id(&call.wire_id));
    out.extend_from_slice(b",\"role\":\"tool\",\"toolCallId\":");
    write_str(&mut out, &call.wire_id);
    out.extend_from_slice(b",\"content\":");
    write_str(&mut out, &result_text(&result));
    out.push(b'}');
    Some(out)
}

/// What the user said: the client's own messages where the input holds them, else the input as a text.
fn input_messages(messages: &mut Vec<Vec<u8>>, id: &str, input: &RawValue) {
    #[derive(Deserialize)]
    struct Input<'a> {
        #[serde(borrow)]
        messages: Vec<&'a RawValue>,
    }
    #[derive(Deserialize)]
    struct Message {
        id: Text,
        #[serde(rename = "role")]
        _role: Text,
    }
    if let Ok(input) = serde_json::from_str::<Input<'_>>(input.get()) {
        // A thread's input holds the whole thread: what came before it is in it.
        let ours = |raw: &RawValue| serde_json::from_str::<Message>(raw.get()).is_ok_and(|message| !message.id.is_empty());
        if input.messages.iter().all(|raw| ours(raw)) {
            *messages = input.messages.iter().map(|raw| raw.get().as_bytes().to_vec()).collect();
            return;
        }
    }
    let text = serde_json::from_str::<Text>(input.get()).unwrap_or_else(|_| input.get().into());
    messages.push(spoken(id, "user", &text, &[]));
}
