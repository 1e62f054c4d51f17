//! The Vercel AI SDK's UI message stream, header value `v1`: only parts that its majors 5, 6 and 7 all read.
//!
//! One body is one turn, and one turn is one UI message; a stream that starts in the middle tells the message from its
//! beginning, which is what a resuming client expects. Invariants: 1. `start` comes first, `finish` and `[DONE]` last, and
//! only at the turn's end: a body that stops before has been cut; 2. `error` comes right before `finish`: the client's chat
//! takes nothing more after it; 3. a step ends when the next begins or the turn does, so that a tool's result stands in the
//! step of its call.
//!
//! | vocabulary | part |
//! |---|---|
//! | `turn_start` | `start`; its message id is the request's, or `<session>.<turn>` |
//! | `round_start`, `round_end` | `start-step`, `finish-step` |
//! | `text_delta`, `refusal_delta` | `text-start`, `-delta`, `-end`; its `providerMetadata.turnstream` names message and kind |
//! | `reasoning_delta` | `reasoning-start`, `-delta`, `-end` |
//! | `message_start`, `assistant_message` | the missing suffix; another choice: `data-choice` |
//! | `message_reset` | `data-reset`: the SDK takes no text back; the parts of that message id are void |
//! | `tool_call_start`, `tool_call_delta` | `tool-input-start`, `tool-input-delta` |
//! | `tool_call` | `tool-input-available`, or `tool-input-error` where the arguments are no JSON |
//! | `tool_output_delta` | `data-tool-output`, transient |
//! | `tool_result` | `tool-output-available`, `tool-output-error` |
//! | `stage_start`, `stage_end`, `progress` | `data-stage`, `data-progress`, the latest per stage |
//! | `citation` | `source-url`; without an address `source-document`, or `data-citation` |
//! | `file` | `file`; without address and data `data-file` |
//! | `usage` | `message-metadata` |
//! | `warning`, `error`, `provider_event`, `gap` | `data-warning`, `data-error`, `data-provider-event`, `data-gap`, transient |
//! | `custom` | `data-<name>` |
//! | `completion` | `abort` or `error`, then `finish`, `[DONE]` |
//! | `session_end`, `stream_open`, `snapshot` | nothing; what a snapshot holds, in the parts above |

use serde::Deserialize;

use super::Encoder;
use super::teller::{Call, Frame, Part, Speech, Teller, Turn, Voice, failure, result_text, write_usage};
use crate::event::json::{write_str, write_u64};
use crate::event::{
    AssistantMessage, Completion, Event, Field, FinishReason, Id, Kind, Payload, RoundStart, Status, Text, ToolCall, ToolResult,
};

/// The words of the UI message stream.
#[derive(Debug, Default)]
struct Parts {
    in_step: bool,
    /// Calls of the step whose input is not whole: no step ends in the middle of one.
    open_calls: usize,
}

/// An encoder that has said nothing.
pub fn encoder() -> Box<dyn Encoder> {
    Box::new(Teller::new(Parts::default()))
}

/// What the route of the transport says of a turn.
#[derive(Default, Deserialize)]
struct Metadata {
    message_id: Option<Text>,
}

impl Parts {
    fn step(&mut self, out: &mut Vec<u8>) {
        if !self.in_step {
            self.in_step = true;
            Frame::new(out, "start-step").send();
        }
    }

    fn end_step(&mut self, out: &mut Vec<u8>) {
        if self.in_step {
            self.in_step = false;
            Frame::new(out, "finish-step").send();
        }
    }
}

fn part_type(part: &Part, text: &'static str, reasoning: &'static str) -> &'static str {
    if part.speech == Speech::Reasoning { reasoning } else { text }
}

impl Voice for Parts {
    const ONE_TURN: bool = true;

    fn turn_start(&mut self, turn: &Turn, out: &mut Vec<u8>) {
        *self = Self::default();
        let metadata = turn.metadata.as_ref().and_then(|json| serde_json::from_str::<Metadata>(json.as_str()).ok());
        let message_id = metadata.and_then(|metadata| metadata.message_id);
        let message_id = message_id.unwrap_or_else(|| format!("{}.{}", turn.session, turn.number).into());
        Frame::new(out, "start").text("messageId", &message_id).send();
    }

    fn turn_end(&mut self, turn: &Turn, completion: &Completion, out: &mut Vec<u8>) {
        self.end_step(out);
        let reason = match (completion.status, turn.finish_reason) {
            (Status::Failed | Status::Incomplete, _) => {
                Frame::new(out, "error").text("errorText", &failure(completion).0).send();
                "error"
            }
            (Status::Cancelled, _) => {
                Frame::new(out, "abort").send();
                "other"
            }
            (Status::Completed, Some(FinishReason::Length)) => "length",
            (Status::Completed, Some(FinishReason::ContentFilter | FinishReason::Refusal)) => "content-filter",
            (Status::Completed, Some(FinishReason::ToolCalls)) => "tool-calls",
            (Status::Completed, None | Some(FinishReason::Stop)) => "stop",
            (Status::Completed, Some(_)) => "other",
        };
        let mut frame = Frame::new(out, "finish").text("finishReason", reason);
        if let Some(usage) = &turn.usage {
            frame = frame.with("messageMetadata", |out| {
                out.extend_from_slice(b"{\"usage\":");
                write_usage(out, usage);
                out.push(b'}');
            });
        }
        frame.send();
        out.extend_from_slice(b"data: [DONE]\n\n");
    }

    fn round_start(&mut self, _: &Turn, _: &RoundStart, out: &mut Vec<u8>) {
        if self.open_calls == 0 {
            self.end_step(out);
        }
        self.step(out);
    }

    fn part_id(part: &Part) -> Text {
        let kind = match part.speech {
            Speech::Text => "text",
            Speech::Reasoning => "reasoning",
            Speech::Refusal => "refusal",
        };
        Text::from(format!("{}.{kind}.{}.{}", part.message_id, part.resets, part.number))
    }

    fn part_start(&mut self, part: &Part, out: &mut Vec<u8>) {
        self.step(out);
        Frame::new(out, part_type(part, "text-start", "reasoning-start"))
            .text("id", &part.wire_id)
            .with("providerMetadata", |out| {
                out.extend_from_slice(b"{\"turnstream\":{\"message_id\":");
                write_str(out, &part.message_id);
                if part.speech == Speech::Refusal {
                    out.extend_from_slice(b",\"refusal\":true");
                }
                out.extend_from_slice(b"}}");
            })
            .send();
    }

    fn part_delta(&mut self, part: &Part, text: &str, out: &mut Vec<u8>) {
        Frame::new(out, part_type(part, "text-delta", "reasoning-delta")).text("id", &part.wire_id).text("delta", text).send();
    }

    fn part_end(&mut self, part: &Part, out: &mut Vec<u8>) {
        Frame::new(out, part_type(part, "text-end", "reasoning-end")).text("id", &part.wire_id).send();
    }

    fn reset(&mut self, message_id: &Id, reason: Option<&str>, out: &mut Vec<u8>) {
        Frame::new(out, "data-reset")
            .with("data", |out| {
                out.extend_from_slice(b"{\"message_id\":");
                write_str(out, message_id);
                if let Some(reason) = reason {
                    out.extend_from_slice(b",\"reason\":");
                    write_str(out, reason);
                }
                out.push(b'}');
            })
            .send();
    }

    fn call_start(&mut self, call: &Call, out: &mut Vec<u8>) {
        self.step(out);
        self.open_calls += 1;
        let frame = Frame::new(out, "tool-input-start").text("toolCallId", &call.wire_id).text("toolName", &call.name);
        frame.flag("providerExecuted", call.kind != Kind::Client).flag("dynamic", call.kind == Kind::Mcp).send();
    }

    fn call_delta(&mut self, call: &Call, text: &str, out: &mut Vec<u8>) {
        Frame::new(out, "tool-input-delta").text("toolCallId", &call.wire_id).text("inputTextDelta", text).send();
    }

    fn call_end(&mut self, call: &Call, whole: &ToolCall, _: bool, out: &mut Vec<u8>) {
        self.open_calls = self.open_calls.saturating_sub(1);
        let kind = if whole.arguments.is_some() { "tool-input-available" } else { "tool-input-error" };
        let frame = Frame::new(out, kind).text("toolCallId", &call.wire_id).text("toolName", &call.name);
        let frame = frame.flag("providerExecuted", call.kind != Kind::Client).flag("dynamic", call.kind == Kind::Mcp);
        if let Some(arguments) = &whole.arguments {
            frame.with("input", |out| arguments.write(out)).send();
        } else {
            let error = whole.arguments_error.as_deref().unwrap_or("not JSON");
            frame.text("input", &whole.arguments_raw).text("errorText", error).send();
        }
    }

    fn call_output(&mut self, call: &Call, text: &str, out: &mut Vec<u8>) {
        Frame::new(out, "data-tool-output")
            .with("data", |out| {
                out.extend_from_slice(b"{\"tool_call_id\":");
                write_str(out, &call.wire_id);
                out.extend_from_slice(b",\"text\":");
                write_str(out, text);
                out.push(b'}');
            })
            .flag("transient", true)
            .send();
    }

    fn call_result(&mut self, call: &Call, result: &ToolResult, out: &mut Vec<u8>) {
        let kind = if result.is_error { "tool-output-error" } else { "tool-output-available" };
        let frame = Frame::new(out, kind).text("toolCallId", &call.wire_id);
        let frame = if result.is_error {
            frame.text("errorText", &result_text(result))
        } else {
            frame.with("output", |out| result.output.write(out))
        };
        frame.flag("providerExecuted", call.kind != Kind::Client).flag("dynamic", call.kind == Kind::Mcp).send();
    }

    fn choice(&mut self, message: &AssistantMessage, out: &mut Vec<u8>) {
        let payload = Payload::from(message.clone());
        Frame::new(out, "data-choice").text("id", &message.message_id).with("data", |out| payload.write_object(out)).send();
    }

    fn usage(&mut self, turn: &Turn, out: &mut Vec<u8>) {
        let Some(usage) = &turn.usage else { return };
        Frame::new(out, "message-metadata")
            .with("messageMetadata", |out| {
                out.extend_from_slice(b"{\"usage\":");
                write_usage(out, usage);
                out.push(b'}');
            })
            .send();
    }

    fn other(&mut self, _: &Turn, event: &Event, out: &mut Vec<u8>) {
        let fields = |out: &mut Vec<u8>| event.payload.write_object(out);
        let transient = |out: &mut Vec<u8>, kind| Frame::new(out, kind).with("data", fields).flag("transient", true).send();
        let source = |out: &mut Vec<u8>| {
            out.extend_from_slice(b"\"source-");
            write_u64(out, event.seq);
            out.push(b'"');
        };
        match &event.payload {
            Payload::StageStart(it) => Frame::new(out, "data-stage").text("id", &it.stage).with("data", fields).send(),
            Payload::StageEnd(it) => Frame::new(out, "data-stage").text("id", &it.stage).with("data", fields).send(),
            Payload::Progress(it) => Frame::new(out, "data-progress").text("id", &it.stage).with("data", fields).send(),
            Payload::Citation(it) => match (&it.url, &it.title) {
                (Some(url), title) => {
                    Frame::new(out, "source-url")
                        .with("sourceId", source)
                        .text("url", url)
                        .maybe("title", title.as_deref())
                        .send();
                }
                (None, Some(title)) => {
                    let frame = Frame::new(out, "source-document").with("sourceId", source);
                    frame.text("mediaType", "text/plain").text("title", title).send();
                }
                (None, None) => Frame::new(out, "data-citation").with("data", fields).send(),
            },
            Payload::File(it) => match (&it.url, &it.data) {
                (Some(url), _) => Frame::new(out, "file").text("url", url).text("mediaType", &it.media_type).send(),
                (None, Some(data)) => {
                    let url = format!("data:{};base64,{data}", it.media_type);
                    Frame::new(out, "file").text("url", &url).text("mediaType", &it.media_type).send();
                }
                (None, None) => Frame::new(out, "data-file").with("data", fields).send(),
            },
            Payload::Custom(it) => {
                let kind = format!("data-{}", it.name);
                Frame::new(out, &kind).with("data", |out| it.data.write(out)).send();
            }
            Payload::Warning(_) => transient(out, "data-warning"),
            Payload::Error(_) => transient(out, "data-error"),
            Payload::ProviderEvent(_) => transient(out, "data-provider-event"),
            Payload::Gap(_) => transient(out, "data-gap"),
            _ => {}
        }
    }
}
