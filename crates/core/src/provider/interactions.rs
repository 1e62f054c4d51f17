//! Gemini's interactions: streamed steps, the older streamed contents, whole bodies, error bodies.
//!
//! Owns what steps and their deltas mean. Knows nothing of framing.
//! Invariants: 1. all steps of one interaction are one message; 2. a step whose type ends in `_call` is a call, one in
//! `_result` its result; 3. signatures pass as `provider_event`.
//!
//! Format: <https://ai.google.dev/gemini-api/docs/interactions/streaming>

use std::borrow::Cow;
use std::collections::HashMap;

use serde_json::value::RawValue;

use super::lax::{Count, Word, is_nothing, object, text_of};
use super::wire::{Object, pass, unknown};
use super::{Assembler, Likeness, Malformed, Piece, Provider, UsageCounts, fault};
use crate::event::{Citation, File, FinishReason, Json, Kind, Text};
use crate::frame::Frame;

object! {
    /// What a delta of text needs.
    Event<'a> {
        kind: Word<'a> = "event_type",
        index: Count = "index",
        delta: Delta<'a> = "delta",
    } skip { "event_id" }
}

object! {
    Delta<'a> {
        kind: Word<'a> = "type",
        text: Word<'a> = "text",
    } skip { }
}

/// The one message of an interaction.
const MESSAGE: u64 = 0;

/// Whether a frame is of this format.
pub(super) fn recognise(frame: &Frame<'_>) -> Likeness {
    let Ok(object) = Object::parse(frame.data) else { return Likeness::No };
    let kind = object.text("event_type");
    let streamed = ["interaction.", "step.", "content."].iter().any(|begin| kind.starts_with(begin));
    let body = &*object.text("object") == "interaction" || (object.raw("steps").is_some() && object.raw("status").is_some());
    if streamed || body { Likeness::Yes } else { Likeness::No }
}

/// The state machine.
#[derive(Default)]
pub(super) struct Interactions {
    /// The type of each step that has not stopped, and the call that it answers.
    steps: HashMap<u64, (Box<str>, Box<str>)>,
    said: bool,
}

impl Provider for Interactions {
    fn frame(&mut self, frame: &Frame<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        let event: Event<'_> = match serde_json::from_slice(frame.data) {
            Ok(event) => event,
            Err(_) if frame.data.trim_ascii() == b"[DONE]" => {
                out.mark_ended();
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        let index = event.index.0.unwrap_or(0);
        match event.kind.as_str() {
            "step.delta" | "content.delta" if event.delta.kind.as_str() == "text" => {
                self.said = true;
                out.text(MESSAGE, event.delta.text.as_str());
                if let (true, Some(Cow::Borrowed(text))) = (event.delta.others.is_empty(), &event.delta.text.0) {
                    out.echo(Piece::Text(MESSAGE), text);
                }
                event.delta.others.iter().try_for_each(|(name, raw)| beside(name, raw, out))
            }
            kind => self.seldom(kind, index, frame, out),
        }
    }

    fn noise(&self) -> &'static [&'static str] {
        &["event_id"]
    }

    fn finish(&mut self, _: &mut Assembler) {}
}

impl Interactions {
    fn seldom(&mut self, kind: &str, index: u64, frame: &Frame<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        let raw: &RawValue = serde_json::from_slice(frame.data)?;
        let event = Object::from_raw(raw)?;
        match kind {
            "interaction.created" | "interaction.start" | "interaction.started" => {
                start(&event.object("interaction"), out);
                Ok(())
            }
            "interaction.status_update" => match &*event.text("status") {
                "failed" => {
                    fault::report(raw, "failed", out);
                    Ok(())
                }
                _ => Ok(()),
            },
            "step.start" | "content.start" => {
                let step = if kind == "step.start" { event.object("step") } else { event.object("content") };
                self.step_start(index, &step, out)
            }
            "step.delta" | "content.delta" => match event.raw("delta") {
                Some(delta) => self.delta(index, delta, out),
                None => Err(Malformed("a delta without a delta".into())),
            },
            "step.stop" | "content.stop" => {
                self.steps.remove(&index);
                out.call_end(index);
                Ok(())
            }
            "interaction.completed" | "interaction.complete" => self.end(&event.object("interaction"), out),
            "" if event.raw("status").is_some() || &*event.text("object") == "interaction" => {
                start(&event, out);
                self.end(&event, out)
            }
            _ if kind == "error" || event.raw("error").is_some() => {
                fault::report(raw, "error", out);
                Ok(())
            }
            kind => {
                unknown([kind, frame.event, "untyped"].into_iter().find(|name| !name.is_empty()).unwrap_or_default(), raw, out)
            }
        }
    }

    fn step_start(&mut self, index: u64, step: &Object<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        let kind = step.text("type");
        // An index in use means that the last step's stop was lost.
        out.call_end(index);
        self.steps.insert(index, ((*kind).into(), (*step.text("call_id")).into()));
        if let Some((name, of)) = tool(&kind, step) {
            out.call(index, MESSAGE, &step.text("id"), &name, of);
            if let Some(arguments) = step.raw("arguments").filter(|raw| !is_nothing(raw)) {
                out.arguments(index, &text_of(arguments));
            }
        }
        // A step may start with what it has already.
        for content in step.list("content").into_iter().chain(step.list("summary")) {
            self.delta(index, content, out)?;
        }
        out.text(MESSAGE, &step.text("text"));
        if step.raw("result").is_some() {
            self.result(index, step, out)?;
        }
        sign(step, out)
    }

    fn delta(&mut self, index: u64, raw: &RawValue, out: &mut Assembler) -> Result<(), Malformed> {
        self.said = true;
        let delta = Object::from_raw(raw)?;
        let kind = delta.text("type");
        match &*kind {
            "text" if self.steps.get(&index).is_some_and(|step| &*step.0 == "thought") => {
                out.reasoning(MESSAGE, Some(index), &delta.text("text"));
            }
            "text" => {
                out.text(MESSAGE, &delta.text("text"));
                return delta.list("annotations").into_iter().try_for_each(|raw| cite(raw, out));
            }
            "thought_summary" | "thought" => {
                let inner = delta.object("content");
                let text = [inner.text("text"), delta.text("text"), delta.text("thought")];
                out.reasoning(MESSAGE, Some(index), text.iter().find(|text| !text.is_empty()).map_or("", |text| text));
                return sign(&delta, out);
            }
            "thought_signature" => return sign(&delta, out),
            "text_annotation_delta" | "text_annotation" => {
                return delta.list("annotations").into_iter().try_for_each(|raw| cite(raw, out));
            }
            "image" | "audio" | "video" | "document" => {
                let text = |key: &str| Some(delta.text(key)).filter(|text| !text.is_empty()).map(|text| Text::from(&*text));
                let media_type = text("mime_type").unwrap_or_else(|| format!("{kind}/*").into());
                let message_id = out.message_id(MESSAGE);
                out.file(File { media_type, name: None, url: text("uri"), file_id: None, data: text("data"), message_id });
            }
            kind if kind.ends_with("_result") => return self.result(index, &delta, out),
            kind if delta.raw("arguments").is_some() || delta.raw("partial_arguments").is_some() => {
                // The older contents say the name here, and not at the start.
                if let Some((name, of)) = tool(kind, &delta) {
                    out.call(index, MESSAGE, &delta.text("id"), &name, of);
                }
                let arguments = delta.raw("partial_arguments").or_else(|| delta.raw("arguments"));
                out.arguments(index, &arguments.map(text_of).unwrap_or_default());
            }
            kind => return unknown(if kind.is_empty() { "delta" } else { kind }, raw, out),
        }
        Ok(())
    }

    /// What a tool gave, whole.
    fn result(&self, index: u64, of: &Object<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        let (own, started) = (of.text("call_id"), self.steps.get(&index).map(|step| &*step.1));
        let call = if own.is_empty() { started.unwrap_or_default() } else { &own };
        let failed = of.is_true("is_error");
        let output = of.raw("result").map(Json::from_raw).transpose()?;
        out.tool_result(call, None, output, failed, if failed { "failed" } else { "completed" });
        sign(of, out)
    }

    fn end(&mut self, interaction: &Object<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        out.open(MESSAGE, &interaction.text("id"), None);
        if !self.said {
            let steps = interaction.list("steps").into_iter().chain(interaction.list("outputs"));
            for (index, raw) in steps.enumerate() {
                let (index, step) = (index as u64, Object::from_raw(raw)?);
                // The older form lists contents, not steps.
                if tool(&step.text("type"), &step).is_none() && step.raw("content").is_none() && step.raw("summary").is_none() {
                    self.delta(index, raw, out)?;
                } else {
                    self.step_start(index, &step, out)?;
                    out.call_end(index);
                }
            }
        }
        let status = interaction.text("status");
        if let Some(error) = interaction.raw("error") {
            fault::report(error, "failed", out);
        } else if status == "failed" {
            out.error("failed", "the interaction failed and the provider did not say why", false, None);
        }
        if !status.is_empty() {
            out.finish_reason(MESSAGE, finish_reason(&status), &status);
        }
        if let Some(raw) = interaction.raw("usage") {
            out.usage(counts(&Object::from_raw(raw)?), raw);
        }
        out.mark_ended();
        out.round_end();
        *self = Self::default();
        Ok(())
    }
}

fn start(interaction: &Object<'_>, out: &mut Assembler) {
    out.model(&interaction.text("model"));
    out.open(MESSAGE, &interaction.text("id"), None);
}

/// Whoever sends a step back must send its signature along.
fn sign(of: &Object<'_>, out: &mut Assembler) -> Result<(), Malformed> {
    match of.raw("signature").filter(|raw| raw.get() != "\"\"") {
        Some(raw) => pass("signature", raw, out),
        None => Ok(()),
    }
}

/// A member of a text delta.
fn beside(name: &str, raw: &RawValue, out: &mut Assembler) -> Result<(), Malformed> {
    match name {
        "annotations" => {
            let list: super::lax::List<&RawValue> = serde_json::from_str(raw.get())?;
            list.items.into_iter().try_for_each(|raw| cite(raw, out))
        }
        name => pass(name, raw, out),
    }
}

/// The name and the kind of the call that a step is, if it is one.
fn tool<'a>(kind: &'a str, step: &Object<'a>) -> Option<(Cow<'a, str>, Kind)> {
    match kind {
        "function_call" => Some((step.text("name"), Kind::Client)),
        "mcp_server_tool_call" => Some((step.text("name"), Kind::Mcp)),
        kind => Some((kind.strip_suffix("_call")?.into(), Kind::Server)),
    }
}

fn finish_reason(status: &str) -> FinishReason {
    match status {
        "completed" => FinishReason::Stop,
        "requires_action" => FinishReason::ToolCalls,
        "incomplete" | "budget_exceeded" => FinishReason::Length,
        "cancelled" => FinishReason::Cancelled,
        "failed" => FinishReason::Error,
        _ => FinishReason::Unknown,
    }
}

fn counts(usage: &Object<'_>) -> UsageCounts {
    let sum = |a: &str, b: &str| [a, b].iter().filter_map(|key| usage.count(key)).reduce(u64::saturating_add);
    UsageCounts {
        // What tools read, and thoughts, count apart.
        input: sum("total_input_tokens", "total_tool_use_tokens"),
        output: sum("total_output_tokens", "total_thought_tokens"),
        total: usage.count("total_tokens"),
        cache_read: usage.count("total_cached_tokens"),
        reasoning: usage.count("total_thought_tokens"),
        ..UsageCounts::default()
    }
}

fn cite(raw: &RawValue, out: &mut Assembler) -> Result<(), Malformed> {
    let source = Object::from_raw(raw)?;
    let text =
        |keys: &[&str]| keys.iter().map(|key| source.text(key)).find(|text| !text.is_empty()).map(|text| Text::from(&*text));
    out.citation(Citation {
        message_id: out.message_id(MESSAGE),
        url: text(&["url", "source", "document_uri"]),
        title: text(&["title", "file_name"]),
        text: None,
        // The API counts bytes: they stay in `raw`, since an answer is seldom ASCII to its end.
        start: None,
        end: None,
        raw: Some(Json::from_raw(raw)?),
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::testing::{all, call, message, passed, read_as, said, usage};

    const START: &str = r#"{"interaction":{"id":"i1","status":"in_progress","model":"m-1"},"event_type":"interaction.created"}"#;

    fn step(index: u64, step: &str) -> String {
        format!(r#"{{"index":{index},"step":{step},"event_type":"step.start"}}"#)
    }

    fn delta(index: u64, delta: &str) -> String {
        format!(r#"{{"index":{index},"delta":{delta},"event_type":"step.delta"}}"#)
    }

    fn stop(index: u64) -> String {
        format!(r#"{{"index":{index},"event_type":"step.stop"}}"#)
    }

    fn end(status: &str) -> String {
        format!(
            r#"{{"interaction":{{"id":"i1","status":"{status}","usage":{{"total_tokens":17,"total_input_tokens":3,"total_tool_use_tokens":2,"total_output_tokens":5,"total_thought_tokens":7}}}},"event_type":"interaction.completed"}}"#
        )
    }

    #[test]
    fn thoughts_text_sources_and_counts() {
        let events = read_as(
            "interactions",
            &[
                START.to_owned(),
                step(0, r#"{"type":"thought"}"#),
                delta(0, r#"{"type":"thought_summary","content":{"type":"text","text":"Hm."}}"#),
                delta(0, r#"{"type":"thought_signature","signature":"c2ln"}"#),
                stop(0),
                step(1, r#"{"type":"model_output"}"#),
                delta(1, r#"{"type":"text","text":"Hi"}"#),
                delta(
                    1,
                    r#"{"type":"text_annotation_delta","annotations":[{"url":"https://a.example","title":"A","start_index":0}]}"#,
                ),
                stop(1),
                end("completed"),
            ],
        );
        assert_eq!((&*message(&events).message_id, &*message(&events).text, &*message(&events).reasoning), ("i1", "Hi", "Hm."));
        assert_eq!(all!(events, Citation)[0].url.as_deref(), Some("https://a.example"));
        assert_eq!(passed(&events, "signature"), r#""c2ln""#);
        let usage = usage(&events);
        assert_eq!((usage.input_tokens, usage.output_tokens, usage.reasoning_tokens), (Some(5), Some(12), Some(7)));
    }

    #[test]
    fn calls_of_both_kinds_and_a_result() {
        let events = read_as(
            "interactions",
            &[
                START.to_owned(),
                step(0, r#"{"type":"google_search_call","id":"s1"}"#),
                delta(0, r#"{"type":"google_search_call","arguments":{"queries":["q"]}}"#),
                stop(0),
                step(1, r#"{"type":"google_search_result","call_id":"s1"}"#),
                delta(1, r#"{"type":"google_search_result","result":[1],"is_error":false}"#),
                stop(1),
                step(2, r#"{"type":"function_call","id":"f1","name":"add"}"#),
                delta(2, r#"{"type":"arguments_delta","arguments":"{\"a\""}"#),
                delta(2, r#"{"type":"arguments_delta","arguments":":1}"}"#),
                stop(2),
                end("requires_action"),
            ],
        );
        let calls = all!(events, ToolCall);
        assert_eq!(
            (calls[0].kind, &*calls[0].name, said(calls[0])),
            (Kind::Server, "google_search", Some(r#"{"queries":["q"]}"#))
        );
        assert_eq!((calls[1].kind, &*calls[1].call_id, said(calls[1])), (Kind::Client, "f1", Some(r#"{"a":1}"#)));
        assert_eq!(&*all!(events, ToolResult)[0].call_id, "s1");
        assert_eq!(message(&events).finish_reason, FinishReason::ToolCalls);
    }

    #[test]
    fn a_whole_body_and_the_older_contents() {
        let body = r#"{"id":"i1","object":"interaction","model":"m-1","status":"completed","outputs":[{"type":"thought","signature":"c2ln"},{"type":"text","text":"Hi"},
            {"type":"function_call","id":"f1","name":"add","arguments":{"a":1}}],"usage":{"total_tokens":2}}"#;
        let events = read_as("interactions", &[body]);
        assert_eq!((&*message(&events).text, said(call(&events))), ("Hi", Some(r#"{"a":1}"#)));
        let older = [
            r#"{"event_type":"content.start","index":0,"content":{"type":"text"}}"#,
            r#"{"event_type":"content.delta","index":0,"delta":{"type":"text","text":"Hi"}}"#,
            r#"{"event_type":"interaction.complete","interaction":{"id":"i1","status":"completed"}}"#,
        ];
        assert_eq!(message(&read_as("interactions", &older)).text, "Hi");
    }

    #[test]
    fn an_error_ends_it_and_the_unknown_passes() {
        let error = r#"{"event_type":"error","error":{"code":"server_error","message":"broke"}}"#;
        let events = read_as("interactions", &[START, r#"{"event_type":"weather.report","sky":"blue"}"#, error, "[DONE]"]);
        assert_eq!((&*all!(events, Error)[0].message, all!(events, Error).len()), ("broke", 1));
        assert!(passed(&events, "weather.report").contains("blue"));
    }
}
