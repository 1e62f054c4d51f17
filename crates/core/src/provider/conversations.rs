//! Mistral's conversations (`/v1/conversations`): agents whose tools Mistral runs, handoffs between them, and calls for the
//! caller to run; the stream's named events and whole bodies. Its chat speaks openai-chat.
//!
//! Owns what entries and their events mean. Knows nothing of framing. Invariants: 1. the answer is one message, whichever
//! entries and agents it is made of; 2. a call is told by its entry's id; 3. what Mistral's own tool found is its result.
//!
//! Format: <https://docs.mistral.ai/agents/agents_basics>

use std::collections::HashMap;

use serde_json::value::RawValue;

use super::lax::text_of;
use super::wire::{Object, pass, unknown};
use super::{Assembler, Likeness, Malformed, Provider, UsageCounts, fault};
use crate::event::{Citation, File, FinishReason, Json, Kind};
use crate::frame::Frame;

/// The one message of an answer.
const MESSAGE: u64 = 0;

/// Beginnings of the kinds of its events.
const KINDS: [&str; 5] = ["conversation.response.", "message.output.", "tool.execution.", "function.call.", "agent.handoff."];

/// Members that every event has.
const HEAD: [&str; 9] =
    ["type", "id", "created_at", "completed_at", "output_index", "content_index", "model", "agent_id", "role"];

/// Whether a frame is of this format.
pub(super) fn recognise(frame: &Frame<'_>) -> Likeness {
    let Ok(object) = Object::parse(frame.data) else { return Likeness::No };
    let kind = object.text("type");
    let named = KINDS.iter().any(|known| kind.starts_with(known)) && (object.raw("created_at").is_some() || frame.event == kind);
    if named || &*object.text("object") == "conversation.response" { Likeness::Yes } else { Likeness::No }
}

/// The state machine.
#[derive(Default)]
pub(super) struct Conversations {
    /// The call that each entry is.
    calls: HashMap<Box<str>, u64>,
    next_call: u64,
}

impl Provider for Conversations {
    fn frame(&mut self, frame: &Frame<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        if frame.data.trim_ascii() == b"[DONE]" {
            out.mark_ended();
            return Ok(());
        }
        let raw: &RawValue = serde_json::from_slice(frame.data)?;
        let event = Object::from_raw(raw)?;
        let kind = match event.text("type") {
            kind if kind.is_empty() => frame.event.into(),
            kind => kind,
        };
        out.model(&event.text("model"));
        match &*kind {
            "conversation.response.started" => {
                out.round_start();
                event.pass_others(&HEAD, out)
            }
            "message.output.delta" => {
                Self::content(&event, true, out)?;
                event.pass_others(&[&HEAD[..], &["content"]].concat(), out)
            }
            "tool.execution.started" | "tool.execution.delta" => {
                self.call(&event, Kind::Server, out);
                Ok(())
            }
            "tool.execution.done" => self.tool_done(&event, out),
            "function.call.delta" => {
                self.call(&event, Kind::Client, out);
                Ok(())
            }
            "conversation.response.done" => {
                self.end(&event, out)?;
                event.pass_others(&[&HEAD[..], &["usage"]].concat(), out)
            }
            "conversation.response.error" => {
                fault::report(raw, "error", out);
                Ok(())
            }
            "agent.handoff.started" | "agent.handoff.done" => pass(&kind, raw, out),
            _ if &*event.text("object") == "conversation.response" => self.body(&event, out),
            _ if kind == "error" || event.raw("error").is_some() || event.raw("detail").is_some() => {
                fault::report(raw, "error", out);
                Ok(())
            }
            kind => unknown(if kind.is_empty() { "untyped" } else { kind }, raw, out),
        }
    }

    fn finish(&mut self, _: &mut Assembler) {}
}

impl Conversations {
    /// What an entry of text says: a text, a part, or a list of parts.
    fn content(entry: &Object<'_>, streamed: bool, out: &mut Assembler) -> Result<(), Malformed> {
        out.open(MESSAGE, &entry.text("id"), None);
        let parts = entry.list("content");
        for raw in parts.into_iter().chain(entry.raw("content").filter(|raw| !raw.get().starts_with('['))) {
            let part = Object::from_raw(raw).unwrap_or_default();
            let text = |key: &str| Some(part.text(key)).filter(|text| !text.is_empty()).map(|text| text.as_ref().into());
            let message_id = out.message_id(MESSAGE);
            match &*part.text("type") {
                _ if raw.get().starts_with('"') && streamed => out.text(MESSAGE, &text_of(raw)),
                _ if raw.get().starts_with('"') => out.text_block(MESSAGE, &text_of(raw)),
                "text" if streamed => out.text(MESSAGE, &part.text("text")),
                "text" => out.text_block(MESSAGE, &part.text("text")),
                "thinking" => {
                    out.reasoning(MESSAGE, None, &part.text("thinking"));
                    for raw in part.list("thinking") {
                        out.reasoning(MESSAGE, None, &Object::from_raw(raw)?.text("text"));
                    }
                }
                "tool_reference" => out.citation(Citation {
                    message_id,
                    url: text("url"),
                    title: text("title"),
                    text: text("description"),
                    start: None,
                    end: None,
                    raw: Some(Json::from_raw(raw)?),
                }),
                "tool_file" => out.file(File {
                    media_type: text("file_type").unwrap_or_else(|| "application/octet-stream".into()),
                    name: text("file_name"),
                    url: None,
                    file_id: text("file_id"),
                    data: None,
                    message_id,
                }),
                kind => pass(&format!("content.{}", if kind.is_empty() { "part" } else { kind }), raw, out)?,
            }
        }
        Ok(())
    }

    /// A piece of a call, or its beginning. Gives its key.
    fn call(&mut self, entry: &Object<'_>, kind: Kind, out: &mut Assembler) -> u64 {
        let id = entry.text("id");
        let key = *self.calls.entry(id.as_ref().into()).or_insert_with(|| {
            self.next_call += 1;
            self.next_call
        });
        let own = entry.text("tool_call_id");
        out.call(key, MESSAGE, if own.is_empty() { &id } else { &own }, &entry.text("name"), kind);
        if let Some(arguments) = entry.raw("arguments") {
            out.arguments(key, &text_of(arguments));
        }
        key
    }

    fn tool_done(&mut self, entry: &Object<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        let key = match self.calls.get(&*entry.text("id")) {
            Some(key) => *key,
            None => self.call(entry, Kind::Server, out),
        };
        let Some(id) = out.call_end(key) else { return Ok(()) };
        out.tool_result(&id, Some(&entry.text("name")), entry.raw("info").map(Json::from_raw).transpose()?, false, "completed");
        Ok(())
    }

    fn end(&mut self, response: &Object<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        if let Some(raw) = response.raw("usage") {
            let usage = Object::from_raw(raw)?;
            let counts = UsageCounts {
                input: usage.count("prompt_tokens"),
                output: usage.count("completion_tokens"),
                total: usage.count("total_tokens"),
                ..UsageCounts::default()
            };
            out.usage(counts, raw);
        }
        out.finish_reason(MESSAGE, FinishReason::Stop, "");
        self.calls.clear();
        out.mark_ended();
        out.round_end();
        Ok(())
    }

    fn body(&mut self, response: &Object<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        for raw in response.list("outputs") {
            let entry = Object::from_raw(raw)?;
            out.model(&entry.text("model"));
            match &*entry.text("type") {
                "message.output" => Self::content(&entry, false, out)?,
                "tool.execution" => {
                    self.call(&entry, Kind::Server, out);
                    self.tool_done(&entry, out)?;
                }
                "function.call" => {
                    self.call(&entry, Kind::Client, out);
                }
                kind => pass(if kind.is_empty() { "entry" } else { kind }, raw, out)?,
            }
        }
        response.pass_others(&["object", "outputs", "usage"], out)?;
        self.end(response, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::testing::{all, call, message, passed, read_as, said, usage};

    fn event(kind: &str, rest: &str) -> String {
        format!(r#"{{"type":"{kind}","created_at":"2026-01-01T00:00:00Z",{rest}}}"#)
    }

    #[test]
    fn text_sources_and_a_tool_that_the_server_ran() {
        let events = read_as(
            "conversations",
            &[
                event("conversation.response.started", r#""conversation_id":"c-1""#),
                event("tool.execution.started", r#""output_index":0,"id":"t-1","name":"web_search","arguments":"""#),
                event("tool.execution.delta", r#""output_index":0,"id":"t-1","name":"web_search","arguments":"{\"q\":1}""#),
                event("tool.execution.done", r#""output_index":0,"id":"t-1","name":"web_search","info":{"found":2}"#),
                event("message.output.delta", r#""id":"m-1","model":"mm","role":"assistant","content":"Hi""#),
                event(
                    "message.output.delta",
                    r#""id":"m-1","content":{"type":"tool_reference","tool":"web_search","title":"T","url":"http://u"}"#,
                ),
                event("message.output.delta", r#""id":"m-1","content":{"type":"text","text":"!"}"#),
                event("conversation.response.done", r#""usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}"#),
            ],
        );
        assert_eq!((&*message(&events).text, message(&events).model.as_deref()), ("Hi!", Some("mm")));
        assert_eq!((call(&events).kind, said(call(&events))), (Kind::Server, Some(r#"{"q":1}"#)));
        assert_eq!(all!(events, ToolResult)[0].output.as_ref().map(Json::as_str), Some(r#"{"found":2}"#));
        assert_eq!(all!(events, Citation)[0].url.as_deref(), Some("http://u"));
        assert_eq!((usage(&events).total_tokens, passed(&events, "conversation_id")), (Some(3), r#""c-1""#));
        assert_eq!(all!(events, Error).len(), 0);
    }

    #[test]
    fn calls_for_the_caller_in_pieces_and_in_a_body() {
        let piece = |piece: &str| {
            event("function.call.delta", &format!(r#""id":"e-1","name":"f","tool_call_id":"tc","arguments":"{piece}""#))
        };
        let done = event("conversation.response.done", r#""usage":{"prompt_tokens":1}"#);
        let events = read_as("conversations", &[piece(r#"{\"a\":"#), piece("1}"), done]);
        assert_eq!((&*call(&events).call_id, said(call(&events))), ("tc", Some(r#"{"a":1}"#)));
        assert_eq!(message(&events).finish_reason, FinishReason::ToolCalls);
        let body = r#"{"object":"conversation.response","conversation_id":"c","outputs":[
            {"type":"message.output","id":"m","content":[{"type":"thinking","thinking":[{"type":"text","text":"Hm"}]},{"type":"text","text":"Hi"}]},
            {"type":"function.call","id":"e","tool_call_id":"tc","name":"f","arguments":{"a":1}}],"usage":{"prompt_tokens":1}}"#;
        let events = read_as("conversations", &[body]);
        assert_eq!((&*message(&events).text, &*message(&events).reasoning), ("Hi", "Hm"));
        assert_eq!((said(call(&events)), message(&events).streamed), (Some(r#"{"a":1}"#), false));
    }

    #[test]
    fn an_error_in_the_stream() {
        let events = read_as("conversations", &[event("conversation.response.error", r#""message":"broke","code":500"#)]);
        assert_eq!((&*all!(events, Error)[0].message, all!(events, Error)[0].retryable), ("broke", true));
    }
}
