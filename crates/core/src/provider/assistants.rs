//! OpenAI's assistants: the streamed events of a run and its thread.
//!
//! Owns what runs, steps and messages mean. Knows nothing of framing.
//! Invariants: 1. a frame is told by its object, not by its event's name; 2. each message of the thread is a message, each
//! step's tools are calls; 3. a run that asks for tools has ended for now.
//!
//! Format: <https://platform.openai.com/docs/api-reference/assistants-streaming/events>

use std::collections::HashMap;

use serde_json::value::RawValue;

use super::lax::text_of;
use super::wire::{Object, pass, unknown};
use super::{Assembler, Likeness, Malformed, Provider, UsageCounts, fault};
use crate::event::json::write_str;
use crate::event::{Citation, File, FinishReason, Json, Kind, Text};
use crate::frame::Frame;

/// Whether a frame is of this format.
pub(super) fn recognise(frame: &Frame<'_>) -> Likeness {
    let Ok(object) = Object::parse(frame.data) else { return Likeness::No };
    if object.text("object").starts_with("thread.") { Likeness::Yes } else { Likeness::No }
}

/// The state machine.
#[derive(Default)]
pub(super) struct Assistants {
    /// The key of each message and of each step's call.
    messages: HashMap<Box<str>, u64>,
    calls: HashMap<(Box<str>, u64), u64>,
    /// The message that was opened last: what calls belong to.
    last: u64,
}

impl Provider for Assistants {
    fn frame(&mut self, frame: &Frame<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        if frame.data.trim_ascii() == b"[DONE]" {
            out.mark_ended();
            return Ok(());
        }
        let raw: &RawValue = serde_json::from_slice(frame.data)?;
        let object = Object::from_raw(raw)?;
        let id = object.text("id");
        match &*object.text("object") {
            "thread.message.delta" => {
                let key = self.open(&id, out);
                object.object("delta").list("content").into_iter().try_for_each(|part| content(key, part, true, out))
            }
            "thread.message" => self.message(&id, &object, out),
            "thread.run.step.delta" => self.step(&id, &object.object("delta"), false, out),
            "thread.run.step" => match &*object.text("status") {
                "in_progress" => Ok(()),
                _ => self.step(&id, &object, true, out),
            },
            "thread.run" => self.run(&object, out),
            "thread" => pass("thread", raw, out),
            _ if frame.event == "error" || object.raw("error").is_some() => {
                fault::report(raw, "error", out);
                Ok(())
            }
            kind => {
                unknown([kind, frame.event, "untyped"].into_iter().find(|name| !name.is_empty()).unwrap_or_default(), raw, out)
            }
        }
    }

    fn finish(&mut self, _: &mut Assembler) {}
}

impl Assistants {
    fn open(&mut self, id: &str, out: &mut Assembler) -> u64 {
        let next = self.messages.len() as u64;
        let key = *self.messages.entry(id.into()).or_insert(next);
        out.open(key, id, None);
        self.last = key;
        key
    }

    fn message(&mut self, id: &str, message: &Object<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        if message.text("role") == "user" {
            return Ok(());
        }
        let key = self.open(id, out);
        // A message that was streamed says nothing new when it is whole.
        if out.text_so_far(key).is_empty() {
            for part in message.list("content") {
                content(key, part, false, out)?;
            }
        }
        Ok(())
    }

    /// A step's tools: pieces of them, or all where `whole`.
    fn step(&mut self, step: &str, of: &Object<'_>, whole: bool, out: &mut Assembler) -> Result<(), Malformed> {
        for (at, raw) in of.object("step_details").list("tool_calls").into_iter().enumerate() {
            let call = Object::from_raw(raw)?;
            self.tool((step, call.count("index").unwrap_or(at as u64)), &call, whole, out)?;
        }
        Ok(())
    }

    fn tool(&mut self, at: (&str, u64), call: &Object<'_>, whole: bool, out: &mut Assembler) -> Result<(), Malformed> {
        let kind = call.text("type");
        let next = self.calls.len() as u64;
        let mut first = false;
        let key = *self.calls.entry((at.0.into(), at.1)).or_insert_with(|| {
            first = true;
            next
        });
        let inner = call.object(&kind);
        let (name, of) = match &*kind {
            "function" => (inner.text("name"), Kind::Client),
            kind => (kind.to_owned().into(), Kind::Server),
        };
        if first {
            let message = self.last;
            out.call(key, message, &call.text("id"), &name, of);
        }
        if of == Kind::Client {
            let arguments = inner.text("arguments");
            if whole {
                out.arguments_whole(key, &arguments);
            } else if !arguments.is_empty() {
                out.arguments(key, &arguments);
            }
        } else if whole {
            out.arguments_whole(key, &code(&inner.text("input"), true, true));
        } else if !inner.text("input").is_empty() {
            let piece = code(&inner.text("input"), out.arguments_so_far(key).is_empty(), false);
            out.arguments(key, &piece);
        }
        let output = ["outputs", "output", "results"].iter().find_map(|name| inner.raw(name));
        let ended = if whole { out.call_end(key) } else { None };
        if let (Some(id), Some(output)) = (ended, output) {
            out.tool_result(&id, Some(&name), Some(Json::from_raw(output)?), false, "completed");
        }
        Ok(())
    }

    fn run(&mut self, run: &Object<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        out.model(&run.text("model"));
        let status = run.text("status");
        let reason = match &*status {
            "queued" | "in_progress" | "cancelling" => {
                out.round_start();
                return Ok(());
            }
            "completed" => FinishReason::Stop,
            "requires_action" => FinishReason::ToolCalls,
            "incomplete" if run.object("incomplete_details").text("reason") == "content_filter" => FinishReason::ContentFilter,
            "incomplete" => FinishReason::Length,
            "cancelled" => FinishReason::Cancelled,
            "failed" | "expired" => FinishReason::Error,
            _ => FinishReason::Unknown,
        };
        let asked = run.object("required_action").object("submit_tool_outputs").list("tool_calls");
        for raw in asked {
            // What its step has not streamed.
            let call = Object::from_raw(raw)?;
            let key = self.calls.values().copied().find(|key| out.call_id(*key).as_deref() == Some(&*call.text("id")));
            if let Some(key) = key {
                out.arguments_whole(key, &call.object("function").raw("arguments").map(text_of).unwrap_or_default());
                out.call_end(key);
            } else {
                let at = self.calls.len() as u64;
                self.tool(("", at), &call, true, out)?;
            }
        }
        if reason == FinishReason::Error {
            match run.raw("last_error") {
                Some(error) => fault::report(error, &status, out),
                None => out.error(&status, "the run ended and the provider did not say why", false, None),
            }
        }
        out.finish_reason(self.last, reason, &status);
        if let Some(raw) = run.raw("usage") {
            let usage = Object::from_raw(raw)?;
            let counts = UsageCounts {
                input: usage.count("prompt_tokens"),
                output: usage.count("completion_tokens"),
                total: usage.count("total_tokens"),
                cache_read: usage.object("prompt_token_details").count("cached_tokens"),
                reasoning: usage.object("completion_tokens_details").count("reasoning_tokens"),
                ..UsageCounts::default()
            };
            out.usage(counts, raw);
        }
        out.mark_ended();
        out.round_end();
        *self = Self::default();
        Ok(())
    }
}

/// Code as the one argument of its call: a piece of it, with the beginning where it is the first and the end where it is whole.
fn code(text: &str, first: bool, whole: bool) -> String {
    let mut written = Vec::with_capacity(text.len() + 16);
    write_str(&mut written, text);
    let text = std::str::from_utf8(&written[1..written.len() - 1]).unwrap_or_default();
    [if first { "{\"code\":\"" } else { "" }, text, if whole { "\"}" } else { "" }].concat()
}

/// A part of a message.
fn content(key: u64, raw: &RawValue, streamed: bool, out: &mut Assembler) -> Result<(), Malformed> {
    let part = Object::from_raw(raw)?;
    match &*part.text("type") {
        "text" => {
            let text = part.object("text");
            if streamed {
                out.text(key, &text.text("value"));
            } else {
                out.text_block(key, &text.text("value"));
            }
            for raw in text.list("annotations") {
                let annotation = Object::from_raw(raw)?;
                let file = annotation.object(&annotation.text("type")).text("file_id");
                out.citation(Citation {
                    message_id: out.message_id(key),
                    url: None,
                    title: (!file.is_empty()).then(|| Text::from(&*file)),
                    text: Some(annotation.text("text")).filter(|text| !text.is_empty()).map(|text| Text::from(&*text)),
                    start: annotation.count("start_index"),
                    end: annotation.count("end_index"),
                    raw: Some(Json::from_raw(raw)?),
                });
            }
        }
        "refusal" => out.refusal(key, &part.text("refusal")),
        "image_file" => {
            let file_id = Some(Text::from(&*part.object("image_file").text("file_id")));
            let message_id = out.message_id(key);
            out.file(File { media_type: "image/*".into(), name: None, url: None, file_id, data: None, message_id });
        }
        kind => pass(&format!("content.{kind}"), raw, out)?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::testing::{all, call, message, read_as, said, usage};

    fn run(status: &str, beside: &str) -> String {
        format!(r#"{{"id":"run_1","object":"thread.run","status":"{status}","model":"m-1"{beside}}}"#)
    }

    fn step(kind: &str, call: &str) -> String {
        format!(
            r#"{{"id":"step_1","object":"thread.run.step.delta","delta":{{"step_details":{{"tool_calls":[{{"index":0,"type":"{kind}",{call}}}]}}}}}}"#
        )
    }

    fn text(value: &str) -> String {
        format!(
            r#"{{"id":"msg_1","object":"thread.message.delta","delta":{{"content":[{{"index":0,"type":"text","text":{{"value":"{value}"}}}}]}}}}"#
        )
    }

    #[test]
    fn code_text_and_counts() {
        let whole = r#"{"id":"step_1","object":"thread.run.step","status":"completed","step_details":{"tool_calls":[{"id":"c1","type":"code_interpreter","code_interpreter":{"input":"1+\"1\"","outputs":[{"logs":"2"}]}}]}}"#;
        let events = read_as(
            "assistants",
            &[
                run("queued", ""),
                step("code_interpreter", r#""id":"c1","code_interpreter":{"input":"","outputs":[]}"#),
                step("code_interpreter", r#""code_interpreter":{"input":"1+"}"#),
                whole.to_owned(),
                text("The answer"),
                text(" is 2."),
                run("completed", r#","usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}"#),
                "[DONE]".to_owned(),
            ],
        );
        assert_eq!((call(&events).kind, said(call(&events))), (Kind::Server, Some(r#"{"code":"1+\"1\""}"#)));
        assert_eq!(&*all!(events, ToolResult)[0].call_id, "c1");
        assert_eq!(all!(events, AssistantMessage).last().unwrap().text, "The answer is 2.");
        assert_eq!(usage(&events).total_tokens, Some(7));
        assert_eq!(all!(events, RoundEnd)[0].finish_reason, Some(FinishReason::Stop));
    }

    #[test]
    fn a_run_that_asks_for_tools_says_each_call_once() {
        let asked = r#","required_action":{"submit_tool_outputs":{"tool_calls":[{"id":"c1","type":"function","function":{"name":"f","arguments":"{\"a\":1}"}}]}}"#;
        let streamed = step("function", r#""id":"c1","function":{"name":"f","arguments":"{\"a\":"}"#);
        for frames in [vec![streamed, run("requires_action", asked)], vec![run("requires_action", asked)]] {
            let events = read_as("assistants", &frames);
            assert_eq!((&*call(&events).call_id, said(call(&events))), ("c1", Some(r#"{"a":1}"#)));
            assert_eq!(message(&events).finish_reason, FinishReason::ToolCalls);
        }
    }

    #[test]
    fn a_run_that_failed_is_an_error() {
        let error = r#","last_error":{"code":"rate_limit_exceeded","message":"slow down"}"#;
        let events = read_as("assistants", &[text("Half"), run("failed", error)]);
        assert_eq!((&*all!(events, Error)[0].message, all!(events, Error)[0].retryable), ("slow down", true));
        assert_eq!((&*message(&events).text, message(&events).finish_reason), ("Half", FinishReason::Error));
    }
}
