//! LM Studio's own REST API: the named events of a chat, whole bodies, error bodies. Its `/v1` speaks OpenAI's formats.
//!
//! Owns what its events mean. Knows nothing of framing.
//! Invariants: 1. each time that the model reads its prompt again, a new round begins; 2. loading a model and reading a
//! prompt are `progress`, from 0 to 1; 3. calls have no ids, and one is open at a time; the server runs them.
//!
//! Format: <https://lmstudio.ai/docs/developer/rest/streaming-events>

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::lax::{Word, text_of};
use super::wire::{Object, pass_of, unknown};
use super::{Assembler, Likeness, Malformed, Piece, Provider, UsageCounts, fault};
use crate::event::{FinishReason, Id, Json, Kind};
use crate::frame::Frame;

/// What a delta needs.
#[derive(Deserialize)]
struct Head<'a> {
    #[serde(rename = "type", borrow, default)]
    kind: Word<'a>,
    #[serde(borrow, default)]
    content: Word<'a>,
}

/// The one message of a round, and its one open call.
const MESSAGE: u64 = 0;
const CALL: u64 = 0;

/// Whether a frame is of this format.
pub(super) fn recognise(frame: &Frame<'_>) -> Likeness {
    let Ok(object) = Object::parse(frame.data) else { return Likeness::No };
    let kind = object.text("type");
    let own = ["chat.", "model_load.", "prompt_processing."].iter().any(|begin| kind.starts_with(begin));
    let body = object.raw("model_instance_id").is_some() && object.raw("output").is_some();
    let part = match kind.split_once('.') {
        Some(("message" | "reasoning", step)) => matches!(step, "start" | "delta" | "end"),
        Some(("tool_call", step)) => matches!(step, "start" | "arguments" | "success" | "failure"),
        _ => false,
    };
    match (own || body, part) {
        (true, _) => Likeness::Yes,
        (_, true) => Likeness::Maybe,
        _ => Likeness::No,
    }
}

/// The state machine.
#[derive(Default)]
pub(super) struct LmStudio {
    /// Something has been said, in this round, and at all.
    said: bool,
    streamed: bool,
    /// A tool has answered in this round.
    answered: bool,
    thoughts: u64,
}

impl Provider for LmStudio {
    fn frame(&mut self, frame: &Frame<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        let head: Head<'_> = match serde_json::from_slice(frame.data) {
            Ok(head) => head,
            Err(_) if frame.data.trim_ascii() == b"[DONE]" => {
                out.mark_ended();
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        let kind = if head.kind.is_empty() { frame.event } else { head.kind.as_str() };
        match kind {
            "message.delta" => {
                self.speak(out);
                out.text(MESSAGE, head.content.as_str());
                if let Some(Cow::Borrowed(text)) = head.content.0 {
                    out.echo(Piece::Text(MESSAGE), text);
                }
                Ok(())
            }
            "reasoning.delta" => {
                self.speak(out);
                let part = Some(self.thoughts.saturating_sub(1));
                out.reasoning(MESSAGE, part, head.content.as_str());
                if let Some(Cow::Borrowed(text)) = head.content.0 {
                    out.echo(Piece::Reasoning(MESSAGE, part), text);
                }
                Ok(())
            }
            kind => self.seldom(kind, frame, out),
        }
    }

    fn finish(&mut self, _: &mut Assembler) {}
}

impl LmStudio {
    fn seldom(&mut self, kind: &str, frame: &Frame<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        let raw: &RawValue = serde_json::from_slice(frame.data)?;
        let event = Object::from_raw(raw)?;
        match kind {
            "chat.start" => {
                out.model(&event.text("model_instance_id"));
                out.round_start();
                Ok(())
            }
            "model_load.start" | "model_load.progress" | "model_load.end" => {
                far("model_load", kind, &event, Some(&event.text("model_instance_id")), out);
                Ok(())
            }
            "prompt_processing.start" | "prompt_processing.progress" | "prompt_processing.end" => {
                if kind == "prompt_processing.start" && self.said {
                    self.next_round(out);
                }
                far("prompt_processing", kind, &event, None, out);
                Ok(())
            }
            "reasoning.start" => {
                self.speak(out);
                self.thoughts += 1;
                Ok(())
            }
            "message.start" => {
                self.speak(out);
                Ok(())
            }
            "reasoning.end" | "message.end" => Ok(()),
            "tool_call.start" => {
                self.said = true;
                self.streamed = true;
                out.call_end(CALL);
                call(&event, &event.text("tool"), out).map(drop)
            }
            "tool_call.arguments" => {
                out.arguments_whole(CALL, &event.raw("arguments").map(text_of).unwrap_or_default());
                Ok(())
            }
            "tool_call.success" => self.result(&event, &event, false, out),
            "tool_call.failure" => self.result(&event, &event.object("metadata"), true, out),
            "chat.end" => self.end(&event.object("result"), out),
            "error" => {
                fault::report(raw, "error", out);
                Ok(())
            }
            "" if event.raw("output").is_some() => {
                out.model(&event.text("model_instance_id"));
                self.end(&event, out)
            }
            "" if event.raw("error").is_some() => {
                fault::report(raw, "error", out);
                Ok(())
            }
            kind => unknown(if kind.is_empty() { "untyped" } else { kind }, raw, out),
        }
    }

    /// The model speaks. What it says after a tool's answer is another round, whether its prompt was announced or not.
    fn speak(&mut self, out: &mut Assembler) {
        if self.answered {
            self.next_round(out);
        }
        self.said = true;
        self.streamed = true;
        out.open(MESSAGE, "", None);
    }

    fn next_round(&mut self, out: &mut Assembler) {
        out.call_end(CALL);
        let reason = if self.answered { FinishReason::ToolCalls } else { FinishReason::Stop };
        if out.is_open(MESSAGE) {
            out.finish_reason(MESSAGE, reason, "");
        }
        out.round_end();
        out.round_start();
        self.said = false;
        self.answered = false;
        self.thoughts = 0;
    }

    /// What a tool gave, or why it could not be called. `of` says which one.
    fn result(&mut self, event: &Object<'_>, of: &Object<'_>, failed: bool, out: &mut Assembler) -> Result<(), Malformed> {
        self.said = true;
        self.streamed = true;
        self.answered = true;
        let name = [of.text("tool"), of.text("tool_name")].concat();
        let id = match out.call_id(CALL).filter(|id| !id.is_empty()) {
            Some(id) => id,
            None => call(of, &name, out)?,
        };
        if let Some(arguments) = of.raw("arguments") {
            out.arguments_whole(CALL, &text_of(arguments));
        }
        out.call_end(CALL);
        let output = event.raw(if failed { "reason" } else { "output" }).map(Json::from_raw).transpose()?;
        out.tool_result(&id, Some(&name), output, failed, if failed { "failed" } else { "completed" });
        Ok(())
    }

    fn end(&mut self, result: &Object<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        if self.streamed {
            self.whole_text(result, out)?;
        } else {
            for raw in result.list("output") {
                self.item(&Object::from_raw(raw)?, out)?;
            }
        }
        if let Some(raw) = result.raw("stats") {
            let stats = Object::from_raw(raw)?;
            let counts = UsageCounts {
                input: stats.count("input_tokens"),
                output: stats.count("total_output_tokens"),
                reasoning: stats.count("reasoning_output_tokens"),
                ..UsageCounts::default()
            };
            out.usage(counts, raw);
        }
        if out.is_open(MESSAGE) {
            out.finish_reason(MESSAGE, FinishReason::Stop, "");
        }
        // The id goes on with the conversation.
        let passed = result.pass_others(&["model_instance_id", "output", "stats"], out);
        out.mark_ended();
        out.round_end();
        *self = Self::default();
        passed
    }

    /// The text of the last round, said again at the end: what its pieces left out.
    fn whole_text(&self, result: &Object<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        let mut whole = String::new();
        for raw in result.list("output") {
            let item = Object::from_raw(raw)?;
            match &*item.text("type") {
                "message" => whole.push_str(&item.text("content")),
                kind if kind.ends_with("tool_call") => whole.clear(),
                _ => {}
            }
        }
        // A round that a tool has ended says nothing more.
        if !whole.is_empty() && !self.answered {
            out.text_whole(MESSAGE, &whole);
        }
        Ok(())
    }

    /// One item of a body.
    fn item(&mut self, item: &Object<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        match &*item.text("type") {
            "message" | "reasoning" => {
                if self.answered {
                    self.next_round(out);
                }
                if item.text("type") == "message" {
                    out.text_block(MESSAGE, &item.text("content"));
                } else {
                    self.thoughts += 1;
                    out.reasoning(MESSAGE, Some(self.thoughts - 1), &item.text("content"));
                }
                Ok(())
            }
            "tool_call" => self.result(item, item, false, out),
            "invalid_tool_call" => self.result(item, &item.object("metadata"), true, out),
            kind => item.pass_others_of(("type", kind), &["type"], out),
        }
    }
}

/// Opens the call that `of` tells of, and gives its id.
fn call(of: &Object<'_>, name: &str, out: &mut Assembler) -> Result<Id, Malformed> {
    let provider = of.object("provider_info");
    let kind = if provider.text("type") == "ephemeral_mcp" { Kind::Mcp } else { Kind::Server };
    out.open(MESSAGE, "", None);
    out.call(CALL, MESSAGE, "", name, kind);
    // An id is minted with the first arguments, even when there are none yet.
    out.arguments(CALL, "");
    let id = out.call_id(CALL).unwrap_or_default();
    if let Some(raw) = of.raw("provider_info") {
        pass_of(("call_id", &id), "provider_info", raw, out)?;
    }
    Ok(id)
}

/// How far a stage has come.
fn far(stage: &str, kind: &str, event: &Object<'_>, of: Option<&str>, out: &mut Assembler) {
    let ended = kind.strip_prefix(stage) == Some(".end");
    let current = if ended { 1.0 } else { event.number("progress").unwrap_or(0.0) };
    out.progress(stage, Some(current), Some(1.0), of);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::testing::{all, message, passed, read_as, said, usage};

    const END: &str = r#"{"type":"chat.end","result":{"model_instance_id":"m-1","output":[{"type":"message","content":"Hi"}],"stats":{"input_tokens":3,"total_output_tokens":4,"reasoning_output_tokens":1,"tokens_per_second":9.5},"response_id":"r1"}}"#;
    const TOOL: &str =
        r#"{"type":"tool_call.start","tool":"find","provider_info":{"type":"ephemeral_mcp","server_label":"hub"}}"#;

    #[test]
    fn loading_and_reading_are_progress() {
        let events = read_as(
            "lmstudio",
            &[
                r#"{"type":"chat.start","model_instance_id":"m-1"}"#,
                r#"{"type":"model_load.start","model_instance_id":"m-1"}"#,
                r#"{"type":"model_load.progress","model_instance_id":"m-1","progress":0.65}"#,
                r#"{"type":"model_load.end","model_instance_id":"m-1","load_time_seconds":1.5}"#,
                r#"{"type":"prompt_processing.start"}"#,
                r#"{"type":"prompt_processing.progress","progress":0.5}"#,
                r#"{"type":"prompt_processing.end"}"#,
                r#"{"type":"reasoning.start"}"#,
                r#"{"type":"reasoning.delta","content":"Hm."}"#,
                r#"{"type":"reasoning.end"}"#,
                r#"{"type":"message.start"}"#,
                r#"{"type":"message.delta","content":"Hi"}"#,
                r#"{"type":"message.end"}"#,
                END,
            ],
        );
        let far: Vec<_> = all!(events, Progress).iter().map(|at| (&*at.stage, at.current)).collect();
        assert_eq!(far[1..4], [("model_load", Some(0.65)), ("model_load", Some(1.0)), ("prompt_processing", Some(0.0))]);
        assert_eq!((&*message(&events).text, &*message(&events).reasoning), ("Hi", "Hm."));
        assert_eq!((all!(events, RoundStart).len(), all!(events, RoundEnd).len()), (1, 1));
        let usage = usage(&events);
        assert_eq!((usage.input_tokens, usage.output_tokens, usage.reasoning_tokens), (Some(3), Some(4), Some(1)));
        assert_eq!(passed(&events, "response_id"), r#""r1""#);
    }

    #[test]
    fn each_prompt_is_a_round_and_none_is_doubled() {
        let prompt = [r#"{"type":"prompt_processing.start"}"#, r#"{"type":"prompt_processing.end"}"#];
        let call = [
            TOOL,
            r#"{"type":"tool_call.arguments","tool":"find","arguments":{"n":1}}"#,
            r#"{"type":"tool_call.success","tool":"find","arguments":{"n":1},"output":"one"}"#,
        ];
        let answer = [r#"{"type":"message.start"}"#, r#"{"type":"message.delta","content":"Hi"}"#];
        for again in [&prompt[..], &[]] {
            let events = read_as("lmstudio", &[&prompt[..], &call, &call, again, &answer, &[END]].concat());
            assert_eq!((all!(events, RoundStart).len(), all!(events, RoundEnd).len()), (2, 2));
            assert_eq!(all!(events, RoundEnd)[0].finish_reason, Some(FinishReason::ToolCalls));
            let calls = all!(events, ToolCall);
            assert_eq!((calls.len(), calls[0].kind, said(calls[0])), (2, Kind::Mcp, Some(r#"{"n":1}"#)));
            let results = all!(events, ToolResult);
            assert_eq!((&results[1].call_id, results[1].is_error), (&calls[1].call_id, false));
            assert_eq!(&*all!(events, AssistantMessage)[1].text, "Hi");
        }
    }

    #[test]
    fn a_call_that_failed_has_an_answer_too() {
        let failure =
            r#"{"type":"tool_call.failure","reason":"no such tool","metadata":{"type":"invalid_name","tool_name":"open"}}"#;
        let events = read_as("lmstudio", &[failure, END]);
        let (calls, results) = (all!(events, ToolCall), all!(events, ToolResult));
        assert_eq!((&*calls[0].name, results[0].is_error, &results[0].call_id), ("open", true, &calls[0].call_id));
        assert_eq!(results[0].output.as_ref().unwrap().as_str(), r#""no such tool""#);
    }

    #[test]
    fn a_whole_body_is_read_like_its_stream() {
        let body = r#"{"model_instance_id":"m-1","output":[{"type":"reasoning","content":"Hm."},{"type":"tool_call","tool":"find","arguments":{"n":1},"output":"one"},
            {"type":"message","content":"Hi"}],"stats":{"input_tokens":3,"total_output_tokens":4},"response_id":"r1"}"#;
        let events = read_as("lmstudio", &[body]);
        let messages = all!(events, AssistantMessage);
        assert_eq!((&*messages[0].reasoning, &*messages[1].text, messages[1].streamed), ("Hm.", "Hi", false));
        assert_eq!((said(all!(events, ToolCall)[0]), usage(&events).total_tokens), (Some(r#"{"n":1}"#), Some(7)));
    }

    #[test]
    fn rounds_are_closed_on_an_error_and_the_unknown_passes() {
        let error = r#"{"type":"error","error":{"type":"internal_error","message":"broke"}}"#;
        let events =
            read_as("lmstudio", &[r#"{"type":"message.delta","content":"Ha"}"#, r#"{"type":"weather.report"}"#, TOOL, error]);
        assert_eq!((&*all!(events, Error)[0].code, all!(events, RoundEnd).len()), ("internal_error", 1));
        assert_eq!((&*message(&events).text, message(&events).finish_reason), ("Ha", FinishReason::Error));
        assert_eq!(passed(&events, "weather.report"), r#"{"type":"weather.report"}"#);
    }
}
