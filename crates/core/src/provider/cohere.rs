//! Cohere's chat: streamed events, whole bodies, error bodies; and the events of version 1.
//!
//! Owns what its events mean. Knows nothing of framing.
//! Invariants: 1. the plan of the tools to use is neither text nor reasoning; 2. a call without a piece of arguments takes
//! none.
//!
//! Format: <https://docs.cohere.com/reference/chat-stream>

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::lax::{Count, Word, object, text_of};
use super::wire::{Object, pass, unknown};
use super::{Assembler, Likeness, Malformed, Piece, Provider, UsageCounts, fault};
use crate::event::{Citation, FinishReason, Json, Kind, Text};
use crate::frame::Frame;

object! {
    /// What a delta needs.
    Event<'a> {
        kind: Word<'a> = "type",
        index: Count = "index",
        delta: Delta<'a> = "delta",
    } skip { "id" }
}

object! {
    Delta<'a> {
        message: Message<'a> = "message",
    } skip { "finish_reason" }
}

object! {
    Message<'a> {
        content: Content<'a> = "content",
        plan: Word<'a> = "tool_plan",
        call: Call<'a> = "tool_calls",
        citation: Option<&'a RawValue> = "citations",
    } skip { "role" }
}

object! {
    Content<'a> {
        text: Word<'a> = "text",
        thinking: Word<'a> = "thinking",
    } skip { "type" }
}

object! {
    Call<'a> {
        id: Word<'a> = "id",
        function: Function<'a> = "function",
    } skip { "type" }
}

object! {
    Function<'a> {
        name: Word<'a> = "name",
        arguments: Option<&'a RawValue> = "arguments",
    } skip { }
}

/// The one message of a response.
const MESSAGE: u64 = 0;

/// Members of a response of version 1 that are read, came before, or say the request again.
const VERSION_1: [&str; 12] = [
    "response_id",
    "generation_id",
    "text",
    "finish_reason",
    "meta",
    "tool_calls",
    "citations",
    "documents",
    "search_queries",
    "search_results",
    "chat_history",
    "prompt",
];

/// Whether a frame is of this format.
pub(super) fn recognise(frame: &Frame<'_>) -> Likeness {
    let Ok(object) = Object::parse(frame.data) else { return Likeness::No };
    match &*object.text("type") {
        "message-start" | "content-start" | "content-delta" | "tool-plan-delta" | "tool-call-start" | "message-end" => {
            Likeness::Yes
        }
        "" if object.raw("event_type").is_some() && object.raw("is_finished").is_some() => Likeness::Yes,
        "" if object.raw("generation_id").is_some() && object.raw("text").is_some() => Likeness::Yes,
        "" if object.raw("finish_reason").is_some() && object.object("message").raw("content").is_some() => Likeness::Yes,
        _ => Likeness::No,
    }
}

/// The state machine.
#[derive(Default)]
pub(super) struct Cohere {
    plan: String,
    /// Calls of version 1, which has no index for them.
    calls: u64,
}

impl Provider for Cohere {
    fn frame(&mut self, frame: &Frame<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        let event: Event<'_> = match serde_json::from_slice(frame.data) {
            Ok(event) => event,
            Err(_) if frame.data.trim_ascii() == b"[DONE]" => {
                out.mark_ended();
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        let message = &event.delta.message;
        let key = event.index.0.unwrap_or(0);
        let others = || event.others.iter().chain(&event.delta.others).chain(&message.others).chain(&message.content.others);
        match event.kind.as_str() {
            "content-delta" | "content-start" => {
                out.reasoning(MESSAGE, None, message.content.thinking.as_str());
                out.text(MESSAGE, message.content.text.as_str());
                match (&message.content.text.0, &message.content.thinking.0) {
                    _ if others().next().is_some() => {}
                    (Some(Cow::Borrowed(text)), None) => out.echo(Piece::Text(MESSAGE), text),
                    (None, Some(Cow::Borrowed(text))) => out.echo(Piece::Reasoning(MESSAGE, None), text),
                    _ => {}
                }
                // Probabilities, for one.
                others().try_for_each(|(name, raw)| pass(name, raw, out))
            }
            "tool-plan-delta" => {
                self.plan.push_str(message.plan.as_str());
                Ok(())
            }
            "tool-call-start" | "tool-call-delta" => {
                self.say_plan(out);
                if event.kind.as_str() == "tool-call-start" {
                    // An index in use means that the last call's end was lost.
                    out.call_end(key);
                    out.call(key, MESSAGE, message.call.id.as_str(), message.call.function.name.as_str(), Kind::Client);
                }
                if let Some(arguments) = message.call.function.arguments {
                    out.arguments(key, &text_of(arguments));
                }
                Ok(())
            }
            "tool-call-end" => {
                out.call_end(key);
                Ok(())
            }
            "content-end" | "citation-end" => Ok(()),
            "citation-start" => match message.citation {
                Some(raw) => cite(raw, out),
                None => Ok(()),
            },
            kind => self.seldom(kind, frame, out),
        }
    }

    fn finish(&mut self, out: &mut Assembler) {
        self.say_plan(out);
    }
}

impl Cohere {
    fn seldom(&mut self, kind: &str, frame: &Frame<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        let raw: &RawValue = serde_json::from_slice(frame.data)?;
        let object = Object::from_raw(raw)?;
        match kind {
            "message-start" => {
                if out.is_open(MESSAGE) {
                    self.end(out);
                }
                out.round_start();
                out.open(MESSAGE, &object.text("id"), None);
                Ok(())
            }
            "message-end" => {
                let delta = object.object("delta");
                finish(&delta, out)?;
                if let Some(error) = delta.raw("error") {
                    fault::report(error, "error", out);
                }
                let passed = delta.pass_others(&["finish_reason", "usage", "error"], out);
                self.end(out);
                passed
            }
            "" if object.raw("event_type").is_some() => self.version_1(&object, raw, out),
            "" if object.raw("generation_id").is_some() && object.raw("text").is_some() => self.body_1(&object, out),
            "" if object.raw("message").is_some_and(|raw| raw.get().starts_with('{')) => {
                out.open(MESSAGE, &object.text("id"), None);
                let read = self.body(&object.object("message"), out).and_then(|()| finish(&object, out));
                self.end(out);
                read?;
                object.pass_others(&["id", "message", "finish_reason", "usage"], out)
            }
            // Errors are bodies with a bare message.
            "" if object.raw("message").is_some() || object.raw("error").is_some() => {
                fault::report(raw, "error", out);
                Ok(())
            }
            "debug" => pass(kind, raw, out),
            kind => {
                unknown([kind, frame.event, "untyped"].into_iter().find(|name| !name.is_empty()).unwrap_or_default(), raw, out)
            }
        }
    }

    fn version_1(&mut self, event: &Object<'_>, raw: &RawValue, out: &mut Assembler) -> Result<(), Malformed> {
        match &*event.text("event_type") {
            "stream-start" => {
                out.round_start();
                out.open(MESSAGE, &event.text("generation_id"), None);
                Ok(())
            }
            "text-generation" => {
                out.text(MESSAGE, &event.text("text"));
                Ok(())
            }
            "citation-generation" => event.list("citations").into_iter().try_for_each(|raw| cite(raw, out)),
            "tool-calls-chunk" => {
                self.plan.push_str(&event.text("text"));
                let piece = event.object("tool_call_delta");
                if let Some(index) = piece.count("index") {
                    self.say_plan(out);
                    out.call(self.calls + index, MESSAGE, "", &piece.text("name"), Kind::Client);
                    out.arguments(self.calls + index, &piece.raw("parameters").map(text_of).unwrap_or_default());
                }
                Ok(())
            }
            "tool-calls-generation" => {
                self.plan = event.text("text").into_owned();
                self.say_plan(out);
                event.list("tool_calls").into_iter().try_for_each(|raw| self.whole_call(raw, out))
            }
            "stream-end" => {
                let response = event.object("response");
                let text = response.text("text");
                if !text.is_empty() {
                    out.text_whole(MESSAGE, &text);
                }
                out.finish_reason(MESSAGE, finish_reason(&event.text("finish_reason")), &event.text("finish_reason"));
                if let Some(error) = event.raw("error") {
                    fault::report(error, "error", out);
                }
                if let Some(meta) = response.raw("meta") {
                    count(meta, out)?;
                }
                // What came in events of its own, and the conversation before it.
                let passed = response.pass_others(&VERSION_1, out);
                self.end(out);
                passed
            }
            // Searches and their results.
            kind => pass(kind, raw, out),
        }
    }

    /// A call of version 1, which has no id; pieces of it may have come.
    fn whole_call(&mut self, raw: &RawValue, out: &mut Assembler) -> Result<(), Malformed> {
        let call = Object::from_raw(raw)?;
        out.call(self.calls, MESSAGE, "", &call.text("name"), Kind::Client);
        if Json::parse(out.arguments_so_far(self.calls)).is_err() {
            out.arguments_whole(self.calls, &call.raw("parameters").map(text_of).unwrap_or_default());
        }
        out.call_end(self.calls);
        self.calls += 1;
        Ok(())
    }

    /// A whole body of version 1.
    fn body_1(&mut self, body: &Object<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        out.open(MESSAGE, &body.text("generation_id"), None);
        out.text_block(MESSAGE, &body.text("text"));
        body.list("tool_calls").into_iter().try_for_each(|raw| self.whole_call(raw, out))?;
        body.list("citations").into_iter().try_for_each(|raw| cite(raw, out))?;
        let raw = body.text("finish_reason");
        out.finish_reason(MESSAGE, finish_reason(&raw), &raw);
        if let Some(meta) = body.raw("meta") {
            count(meta, out)?;
        }
        let passed = body.pass_others(&VERSION_1, out);
        self.end(out);
        passed
    }

    fn body(&mut self, message: &Object<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        for part in message.list("content") {
            let part = Object::from_raw(part)?;
            out.reasoning(MESSAGE, None, &part.text("thinking"));
            out.text_block(MESSAGE, &part.text("text"));
        }
        self.plan.push_str(&message.text("tool_plan"));
        self.say_plan(out);
        for (key, raw) in message.list("tool_calls").into_iter().enumerate() {
            let (key, call) = (key as u64, Object::from_raw(raw)?);
            let function = call.object("function");
            out.call(key, MESSAGE, &call.text("id"), &function.text("name"), Kind::Client);
            out.arguments_whole(key, &function.raw("arguments").map(text_of).unwrap_or_default());
            out.call_end(key);
        }
        message.list("citations").into_iter().try_for_each(|raw| cite(raw, out))
    }

    fn end(&mut self, out: &mut Assembler) {
        self.say_plan(out);
        out.mark_ended();
        out.round_end();
    }

    fn say_plan(&mut self, out: &mut Assembler) {
        if !self.plan.is_empty() {
            out.provider_event("tool_plan", Some(Json::string(&std::mem::take(&mut self.plan))));
        }
    }
}

fn finish(of: &Object<'_>, out: &mut Assembler) -> Result<(), Malformed> {
    let raw = of.text("finish_reason");
    if !raw.is_empty() {
        out.finish_reason(MESSAGE, finish_reason(&raw), &raw);
    }
    of.raw("usage").map_or(Ok(()), |raw| count(raw, out))
}

fn finish_reason(raw: &str) -> FinishReason {
    match raw {
        "COMPLETE" | "STOP_SEQUENCE" => FinishReason::Stop,
        "MAX_TOKENS" | "ERROR_LIMIT" => FinishReason::Length,
        "TOOL_CALL" => FinishReason::ToolCalls,
        "ERROR_TOXIC" => FinishReason::ContentFilter,
        "ERROR" | "TIMEOUT" => FinishReason::Error,
        "USER_CANCEL" => FinishReason::Cancelled,
        _ => FinishReason::Unknown,
    }
}

fn count(raw: &RawValue, out: &mut Assembler) -> Result<(), Malformed> {
    let usage = Object::from_raw(raw)?;
    // What the model read and wrote; what is billed for it can be less.
    let (tokens, billed) = (usage.object("tokens"), usage.object("billed_units"));
    let count = |key: &str| tokens.count(key).or_else(|| billed.count(key));
    let (input, output) = (count("input_tokens"), count("output_tokens"));
    out.usage(UsageCounts { input, output, cache_read: usage.count("cached_tokens"), ..UsageCounts::default() }, raw);
    Ok(())
}

/// A citation; each of its sources is one of ours.
fn cite(raw: &RawValue, out: &mut Assembler) -> Result<(), Malformed> {
    let citation = Object::from_raw(raw)?;
    let sources = citation.list("sources");
    let text = |text: &str| (!text.is_empty()).then(|| Text::from(text));
    for at in 0..sources.len().max(1) {
        let source = sources.get(at).map_or(Ok(Object::default()), |raw| Object::from_raw(raw))?;
        let document = [source.object("document"), source.object("tool_output")];
        let find = |key: &str| document.iter().find_map(|of| text(&of.text(key)));
        out.citation(Citation {
            message_id: out.message_id(MESSAGE),
            url: find("url"),
            title: find("title"),
            text: text(&citation.text("text")),
            start: citation.count("start"),
            end: citation.count("end"),
            raw: Some(Json::from_raw(raw)?),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::testing::{all, call, message, passed, read_as, said, usage};

    const START: &str = r#"{"id":"m1","type":"message-start","delta":{"message":{"role":"assistant","content":[],"tool_plan":"","tool_calls":[],"citations":[]}}}"#;

    fn event(kind: &str, message: &str) -> String {
        format!(r#"{{"type":"{kind}","index":0,"delta":{{"message":{message}}}}}"#)
    }

    fn end(reason: &str) -> String {
        format!(
            r#"{{"type":"message-end","delta":{{"finish_reason":"{reason}","usage":{{"billed_units":{{"input_tokens":2.0,"output_tokens":3.0}},"tokens":{{"input_tokens":20.0,"output_tokens":5.0}},"cached_tokens":16.0}}}}}}"#
        )
    }

    #[test]
    fn x7_the_plan_is_not_said_and_a_call_without_arguments_takes_none() {
        let events = read_as(
            "cohere",
            &[
                START.to_owned(),
                event("tool-plan-delta", r#"{"tool_plan":"I will "}"#),
                event("tool-plan-delta", r#"{"tool_plan":"look."}"#),
                event(
                    "tool-call-start",
                    r#"{"tool_calls":{"id":"c1","type":"function","function":{"name":"now","arguments":""}}}"#,
                ),
                r#"{"type":"tool-call-end","index":0}"#.to_owned(),
                end("TOOL_CALL"),
            ],
        );
        assert_eq!((&*message(&events).text, &*message(&events).reasoning), ("", ""));
        assert_eq!(passed(&events, "tool_plan"), r#""I will look.""#);
        assert_eq!((&*call(&events).call_id, said(call(&events))), ("c1", Some("{}")));
        assert_eq!(message(&events).finish_reason, FinishReason::ToolCalls);
    }

    #[test]
    fn text_thinking_arguments_and_counts() {
        let piece =
            |piece: &str| event("tool-call-delta", &format!(r#"{{"tool_calls":{{"function":{{"arguments":"{piece}"}}}}}}"#));
        let events = read_as(
            "cohere",
            &[
                START.to_owned(),
                event("content-start", r#"{"content":{"type":"thinking","thinking":""}}"#),
                event("content-delta", r#"{"content":{"thinking":"Hm."}}"#),
                event("content-delta", r#"{"content":{"text":"Hi"}}"#),
                event(
                    "citation-start",
                    r#"{"citations":{"start":0,"end":2,"text":"Hi","sources":[{"type":"document","document":{"title":"T","url":"https://a.example"}}]}}"#,
                ),
                event("tool-call-start", r#"{"tool_calls":{"id":"c1","function":{"name":"f","arguments":""}}}"#),
                piece(r#"{\"a\""#),
                piece(":1}"),
                r#"{"type":"tool-call-end","index":0}"#.to_owned(),
                end("COMPLETE"),
            ],
        );
        assert_eq!((&*message(&events).message_id, &*message(&events).text, &*message(&events).reasoning), ("m1", "Hi", "Hm."));
        assert_eq!(said(call(&events)), Some(r#"{"a":1}"#));
        assert_eq!((all!(events, Citation)[0].title.as_deref(), all!(events, Citation)[0].end), (Some("T"), Some(2)));
        let usage = usage(&events);
        assert_eq!((usage.input_tokens, usage.output_tokens, usage.cache_read_tokens), (Some(20), Some(5), Some(16)));
    }

    #[test]
    fn a_whole_body_is_read_like_its_stream() {
        let body = r#"{"id":"m1","finish_reason":"TOOL_CALL","message":{"role":"assistant","tool_plan":"P","content":[{"type":"text","text":"Hi"}],
            "tool_calls":[{"id":"c1","type":"function","function":{"name":"f","arguments":"{}"}}]},"usage":{"tokens":{"input_tokens":1,"output_tokens":2}}}"#;
        let events = read_as("cohere", &[body]);
        assert_eq!((&*message(&events).text, message(&events).streamed, said(call(&events))), ("Hi", false, Some("{}")));
        assert_eq!((passed(&events, "tool_plan"), usage(&events).total_tokens), (r#""P""#, Some(3)));
    }

    #[test]
    fn errors_of_both_kinds() {
        let body = read_as("cohere", &[r#"{"message":"invalid api token"}"#]);
        assert_eq!(&*all!(body, Error)[0].message, "invalid api token");
        let end = r#"{"type":"message-end","delta":{"finish_reason":"ERROR","error":"broke"}}"#;
        let events = read_as("cohere", &[START, end]);
        assert_eq!((&*all!(events, Error)[0].message, message(&events).finish_reason), ("broke", FinishReason::Error));
    }

    #[test]
    fn version_1_is_read_too() {
        let event = |kind: &str, rest: &str| format!(r#"{{"is_finished":false,"event_type":"{kind}",{rest}}}"#);
        let events = read_as(
            "cohere",
            &[
                event("stream-start", r#""generation_id":"g1""#),
                event("search-results", r#""documents":[1]"#),
                event("text-generation", r#""text":"Hi""#),
                event("citation-generation", r#""citations":[{"start":0,"end":2,"text":"Hi","document_ids":["d"]}]"#),
                event("tool-calls-generation", r#""text":"P","tool_calls":[{"name":"f","parameters":{"a":1}}]"#),
                event(
                    "stream-end",
                    r#""finish_reason":"COMPLETE","response":{"meta":{"tokens":{"input_tokens":1,"output_tokens":2}}}"#,
                ),
            ],
        );
        assert_eq!(
            (&*message(&events).message_id, &*message(&events).text, said(call(&events))),
            ("g1", "Hi", Some(r#"{"a":1}"#))
        );
        assert_eq!((all!(events, Citation)[0].end, usage(&events).total_tokens), (Some(2), Some(3)));
        assert!(passed(&events, "search-results").contains("documents"));
    }

    #[test]
    fn a_truncated_call_is_cut() {
        let start = event("tool-call-start", r#"{"tool_calls":{"id":"c1","function":{"name":"f","arguments":"{\"a"}}}"#);
        let events = read_as("cohere", &[START, &start]);
        assert!(call(&events).arguments_error.is_some());
        assert_eq!(all!(events, Error)[0].code, "stream_truncated");
    }
}
