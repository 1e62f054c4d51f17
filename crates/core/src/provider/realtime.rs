//! OpenAI's realtime API: what its server sends of text, transcripts, calls and results, one event a frame.
//!
//! Owns what its events mean; what is audio alone passes as `provider_event`. Knows nothing of the connection.
//! Invariants: 1. each response is a round and a message; 2. what the model says aloud is its text, by its transcript;
//! 3. an item is told by its `output_index`; the conversation's copies of it say nothing new.
//!
//! Format: <https://platform.openai.com/docs/api-reference/realtime-server-events>

use std::borrow::Cow;
use std::collections::HashSet;

use serde_json::value::RawValue;

use super::lax::{Count, Word, object};
use super::wire::{Object, pass, unknown};
use super::{Assembler, Likeness, Malformed, Piece, Provider, UsageCounts, fault};
use crate::event::{FinishReason, Json, Kind};
use crate::frame::Frame;

object! {
    /// What a delta needs.
    Head<'a> {
        kind: Word<'a> = "type",
        output_index: Count = "output_index",
        content_index: Count = "content_index",
        delta: Word<'a> = "delta",
    } skip { "event_id" "response_id" "item_id" "obfuscation" }
}

/// The one message of a response.
const MESSAGE: u64 = 0;

/// Beginnings of the kinds that tell of the session and its audio: known, and without a word of ours.
const KNOWN: &[&str] = &[
    "session.",
    "transcription_session.",
    "conversation.",
    "input_audio_buffer.",
    "output_audio_buffer.",
    "response.output_audio",
    "response.audio",
    "response.mcp_call",
    // What the model behind a live one does.
    "response.event",
    "mcp_list_tools",
    "rate_limits",
];

/// Whether a frame is of this format. Its events have the names of the Responses API's; an id of their own tells them.
pub(super) fn recognise(frame: &Frame<'_>) -> Likeness {
    let Ok(object) = Object::parse(frame.data) else { return Likeness::No };
    let kind = object.text("type");
    let known = kind.starts_with("response.") || KNOWN.iter().any(|known| kind.starts_with(known));
    let answer = &*object.object("response").text("object") == "realtime.response";
    let own_id = object.raw("event_id").is_some() && object.raw("sequence_number").is_none();
    if known && (own_id || answer) { Likeness::Yes } else { Likeness::No }
}

/// A part: its item and its own number.
type Place = (u64, u64);

/// The state machine.
#[derive(Default)]
pub(super) struct Realtime {
    /// The part whose text comes, and where in the message's text it begins.
    part: Option<(Place, usize)>,
    /// What came of other parts before its end, in their order, and whether each has ended: their text follows its own.
    waiting: Vec<(Place, String, bool)>,
    /// The items whose call has begun.
    called: HashSet<u64>,
}

impl Provider for Realtime {
    fn frame(&mut self, frame: &Frame<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        let head: Head<'_> = serde_json::from_slice(frame.data)?;
        let index = head.output_index.0.unwrap_or(0);
        match head.kind.as_str() {
            "response.output_text.delta"
            | "response.text.delta"
            | "response.output_audio_transcript.delta"
            | "response.audio_transcript.delta" => {
                let place = (index, head.content_index.0.unwrap_or(0));
                if !self.is_next(place, out) {
                    self.wait(place).1.push_str(head.delta.as_str());
                    return Ok(());
                }
                out.text(MESSAGE, head.delta.as_str());
                if let (Some(Cow::Borrowed(text)), true) = (&head.delta.0, head.others.is_empty()) {
                    out.echo(Piece::Text(MESSAGE), text);
                }
            }
            // A translation has no responses: it goes on as long as its session.
            "session.output_transcript.delta" => out.text(MESSAGE, head.delta.as_str()),
            "response.function_call_arguments.delta" if !head.delta.is_empty() => out.arguments(index, head.delta.as_str()),
            kind => return self.seldom(kind, (index, head.content_index.0.unwrap_or(0)), frame, out),
        }
        head.others.iter().try_for_each(|(name, raw)| pass(name, raw, out))
    }

    fn noise(&self) -> &'static [&'static str] {
        &["event_id", "obfuscation"]
    }

    fn finish(&mut self, out: &mut Assembler) {
        for (_, text, _) in self.waiting.drain(..) {
            out.text(MESSAGE, &text);
        }
    }
}

impl Realtime {
    /// Every event that is not a delta of what everybody reads.
    fn seldom(&mut self, kind: &str, part: (u64, u64), frame: &Frame<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        let index = part.0;
        let raw: &RawValue = serde_json::from_slice(frame.data)?;
        let event = Object::from_raw(raw)?;
        match kind {
            "session.created" | "session.started" => {
                out.model(&event.object("session").text("model"));
                pass(kind, raw, out)
            }
            "session.closed" if out.is_open(MESSAGE) => {
                out.finish_reason(MESSAGE, FinishReason::Stop, "");
                out.mark_ended();
                out.round_end();
                event.pass_others(&["type", "event_id", "session"], out)
            }
            "response.created" => {
                out.round_start();
                out.open(MESSAGE, &event.object("response").text("id"), None);
                Ok(())
            }
            "response.output_item.added" | "response.output_item.done" => {
                let item = event.object("item");
                if &*item.text("type") == "function_call" && (kind.ends_with("added") || out.call_is_open(index)) {
                    self.called.insert(index);
                    out.call(index, MESSAGE, &item.text("call_id"), &item.text("name"), Kind::Client);
                    if kind.ends_with("done") {
                        out.arguments_whole(index, &item.text("arguments"));
                        out.call_end(index);
                    }
                }
                Ok(())
            }
            "response.function_call_arguments.done" => {
                out.arguments_whole(index, &event.text("arguments"));
                Ok(())
            }
            "response.output_text.done"
            | "response.text.done"
            | "response.output_audio_transcript.done"
            | "response.audio_transcript.done" => {
                self.part_ends(part, &[event.text("text"), event.text("transcript")].concat(), out);
                Ok(())
            }
            "response.done" => {
                let response = event.object("response");
                for (_, text, _) in self.waiting.drain(..) {
                    out.text(MESSAGE, &text);
                }
                self.unsaid(&response, out)?;
                *self = Self::default();
                end(&response, out)
            }
            // Their content comes with the deltas and with the item's end.
            "response.content_part.added"
            | "response.content_part.done"
            | "response.output_audio.done"
            | "response.audio.done"
            | "response.function_call_arguments.delta" => Ok(()),
            "conversation.item.added" | "conversation.item.created" | "conversation.item.done" => {
                let item = event.object("item");
                match (&*item.text("type"), &*item.text("role")) {
                    ("function_call_output", _) if !kind.ends_with("done") => {
                        let output = item.raw("output").map(Json::from_raw).transpose()?;
                        out.tool_result(&item.text("call_id"), None, output, false, "completed");
                        Ok(())
                    }
                    ("function_call_output" | "function_call", _) | ("message", "assistant") => Ok(()),
                    _ => pass(kind, raw, out),
                }
            }
            _ if kind == "error" || frame.event == "error" || (kind.is_empty() && event.raw("error").is_some()) => {
                fault::report(raw, "error", out);
                Ok(())
            }
            kind if KNOWN.iter().any(|known| kind.starts_with(known)) => pass(kind, raw, out),
            kind => unknown(if kind.is_empty() { "untyped" } else { kind }, raw, out),
        }
    }

    /// Whether a part's text goes out as it comes: no other is under way.
    fn is_next(&mut self, place: Place, out: &Assembler) -> bool {
        self.part.get_or_insert_with(|| (place, out.text_so_far(MESSAGE).len())).0 == place
    }

    /// A part that waits for another's end.
    fn wait(&mut self, place: Place) -> &mut (Place, String, bool) {
        let at = self.waiting.iter().position(|(waits, ..)| *waits == place).unwrap_or_else(|| {
            self.waiting.push((place, String::new(), false));
            self.waiting.len() - 1
        });
        &mut self.waiting[at]
    }

    /// A part's text is whole: what is missing of it, then what has waited for it.
    fn part_ends(&mut self, place: Place, whole: &str, out: &mut Assembler) {
        if !self.is_next(place, out) {
            let (_, text, ended) = self.wait(place);
            *ended = true;
            if whole.starts_with(text.as_str()) {
                whole.clone_into(text);
            }
            return;
        }
        let start = self.part.take().map_or(0, |(_, start)| start);
        if let Some(missing) = whole.strip_prefix(out.text_so_far(MESSAGE).get(start..).unwrap_or_default()) {
            out.text(MESSAGE, missing);
        }
        while self.part.is_none() && !self.waiting.is_empty() {
            let (place, text, ended) = self.waiting.remove(0);
            self.part = (!ended).then(|| (place, out.text_so_far(MESSAGE).len()));
            out.text(MESSAGE, &text);
        }
    }

    /// What only the response's end says.
    fn unsaid(&self, response: &Object<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        let silent = out.text_so_far(MESSAGE).is_empty();
        for (index, raw) in response.list("output").into_iter().enumerate() {
            let (index, item) = (index as u64, Object::from_raw(raw)?);
            match &*item.text("type") {
                "function_call" if !self.called.contains(&index) => {
                    out.call(index, MESSAGE, &item.text("call_id"), &item.text("name"), Kind::Client);
                    out.arguments_whole(index, &item.text("arguments"));
                    out.call_end(index);
                }
                "message" if silent => {
                    for raw in item.list("content") {
                        let part = Object::from_raw(raw)?;
                        out.text(MESSAGE, &[part.text("text"), part.text("transcript")].concat());
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn end(response: &Object<'_>, out: &mut Assembler) -> Result<(), Malformed> {
    let status = response.text("status");
    let details = response.object("status_details");
    if status == "failed" {
        match details.raw("error") {
            Some(error) => fault::report(error, "failed", out),
            None => out.error("failed", "the response failed and the provider did not say why", false, None),
        }
    }
    let reason = match (&*status, &*details.text("reason")) {
        ("completed", _) => FinishReason::Stop,
        ("incomplete", "max_output_tokens") => FinishReason::Length,
        ("incomplete", "content_filter") => FinishReason::ContentFilter,
        ("cancelled", _) => FinishReason::Cancelled,
        ("failed", _) => FinishReason::Error,
        _ => FinishReason::Unknown,
    };
    out.finish_reason(MESSAGE, reason, &status);
    if let Some(raw) = response.raw("usage") {
        let usage = Object::from_raw(raw)?;
        let (input, output) = (usage.object("input_token_details"), usage.object("output_token_details"));
        let counts = UsageCounts {
            input: usage.count("input_tokens"),
            output: usage.count("output_tokens"),
            total: usage.count("total_tokens"),
            cache_read: input.count("cached_tokens"),
            audio_input: input.count("audio_tokens"),
            audio_output: output.count("audio_tokens"),
            ..UsageCounts::default()
        };
        out.usage(counts, raw);
    }
    if let Some(raw) = response.raw("status_details") {
        pass("status_details", raw, out)?;
    }
    out.mark_ended();
    out.round_end();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::testing::{all, call, message, passed, read_as, said, usage};

    fn created(id: &str) -> String {
        format!(r#"{{"type":"response.created","event_id":"e","response":{{"object":"realtime.response","id":"{id}"}}}}"#)
    }

    fn done(status: &str) -> String {
        format!(
            r#"{{"type":"response.done","event_id":"e","response":{{"status":"{status}","status_details":null,"output":[],"usage":{{"total_tokens":7,"input_tokens":3,"output_tokens":4,"output_token_details":{{"audio_tokens":2}}}}}}}}"#
        )
    }

    #[test]
    fn a_transcript_is_text_and_audio_passes() {
        let events = read_as(
            "realtime",
            &[
                r#"{"type":"session.created","event_id":"e","session":{"model":"m-1"}}"#.to_owned(),
                created("r1"),
                r#"{"type":"response.output_audio_transcript.delta","output_index":0,"delta":"Hi"}"#.to_owned(),
                r#"{"type":"response.output_audio.delta","output_index":0,"delta":"AAAA"}"#.to_owned(),
                r#"{"type":"response.output_audio_transcript.done","output_index":0,"transcript":"Hi"}"#.to_owned(),
                done("completed"),
            ],
        );
        assert_eq!((&*message(&events).text, message(&events).model.as_deref()), ("Hi", Some("m-1")));
        assert!(passed(&events, "response.output_audio.delta").contains("AAAA"));
        assert_eq!((usage(&events).total_tokens, usage(&events).audio_output_tokens), (Some(7), Some(2)));
    }

    #[test]
    fn parts_that_come_interleaved_are_put_one_after_the_other() {
        let piece = |item: u64, text: &str| {
            format!(
                r#"{{"type":"response.output_audio_transcript.delta","event_id":"e","output_index":{item},"delta":"{text}"}}"#
            )
        };
        let whole = |item: u64, text: &str| {
            format!(r#"{{"type":"response.output_audio_transcript.done","output_index":{item},"transcript":"{text}"}}"#)
        };
        let pieces = [created("r1"), piece(0, "Hel"), piece(1, "Sal"), piece(2, "Ho"), piece(1, "ut. "), piece(0, "lo")];
        let mut events = pieces.to_vec();
        events.extend([whole(0, "Hello. "), whole(2, "Hola."), whole(1, "Salut. "), done("completed")]);
        let said = read_as("realtime", &events);
        assert_eq!(message(&said).text, "Hello. Salut. Hola.");
        assert_eq!(message(&read_as("realtime", &pieces)).text, "HelloSalut. Ho");
    }

    #[test]
    fn a_translation_is_text_until_its_session_closes() {
        let event = |kind: &str, rest: &str| format!(r#"{{"type":"session.{kind}","event_id":"e"{rest}}}"#);
        let events = read_as(
            "realtime",
            &[
                event("created", r#","session":{"model":"m-1","type":"translation"}"#),
                event("input_transcript.delta", r#","delta":" The","elapsed_ms":600"#),
                event("output_transcript.delta", r#","delta":"La","elapsed_ms":700"#),
                event("output_audio.delta", r#","delta":"AQID""#),
                event("output_transcript.delta", r#","delta":" zorra""#),
                event("closed", ""),
            ],
        );
        assert_eq!((&*message(&events).text, message(&events).finish_reason), ("La zorra", FinishReason::Stop));
        assert!(passed(&events, "session.input_transcript.delta").contains(" The"));
        assert_eq!(all!(events, Error).len(), 0);
    }

    #[test]
    fn a_call_its_result_and_the_next_response() {
        let item = |rest: &str| format!(r#"{{"type":"function_call","name":"f","call_id":"c1","arguments":{rest}}}"#);
        let events = read_as(
            "realtime",
            &[
                created("r1"),
                format!(r#"{{"type":"response.output_item.added","output_index":0,"item":{}}}"#, item("\"\"")),
                format!(r#"{{"type":"conversation.item.added","event_id":"e","item":{}}}"#, item("\"\"")),
                r#"{"type":"response.function_call_arguments.delta","output_index":0,"delta":"{\"a\":"}"#.to_owned(),
                format!(r#"{{"type":"response.output_item.done","output_index":0,"item":{}}}"#, item(r#""{\"a\":1}""#)),
                done("completed"),
                r#"{"type":"conversation.item.added","item":{"type":"function_call_output","call_id":"c1","output":"fog"}}"#
                    .to_owned(),
                created("r2"),
                r#"{"type":"response.output_text.done","output_index":0,"text":"Fog."}"#.to_owned(),
                done("completed"),
            ],
        );
        assert_eq!((&*call(&events).call_id, said(call(&events))), ("c1", Some(r#"{"a":1}"#)));
        assert_eq!(&*all!(events, ToolResult)[0].call_id, "c1");
        let messages = all!(events, AssistantMessage);
        assert_eq!((messages[0].finish_reason, &*messages[1].text), (FinishReason::ToolCalls, "Fog."));
        assert_eq!(all!(events, Usage).len(), 2);
    }

    #[test]
    fn failures_and_what_is_unknown() {
        let failed = r#"{"type":"response.done","response":{"status":"failed","status_details":{"error":{"type":"server_error","message":"broke"}}}}"#;
        let events = read_as("realtime", &[created("r1"), r#"{"type":"weather","event_id":"e"}"#.to_owned(), failed.to_owned()]);
        assert_eq!((&*all!(events, Error)[0].message, all!(events, Error)[0].retryable), ("broke", true));
        assert!(passed(&events, "weather").contains("weather"));
        let error = read_as("realtime", &[r#"{"type":"error","error":{"type":"invalid_request_error","message":"no"}}"#]);
        assert_eq!(all!(error, Error).len(), 1);
    }
}
