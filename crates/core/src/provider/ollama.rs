//! Ollama's own API: `chat`, `generate`, the progress of `pull` and its like, whole bodies, error lines.
//!
//! Owns what a line of it means. Knows nothing of framing; its `/v1` speaks openai-chat.
//! Invariants: 1. a tool call comes whole, its arguments an object; 2. a plain stop with calls is a stop for calls;
//! 3. durations stay in the raw usage, as they came, in nanoseconds.
//!
//! Format: <https://docs.ollama.com/api>

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::lax::{Count, Flag, List, Word, object, text_of};
use super::wire::{Latest, Object, pass};
use super::{Assembler, Likeness, Malformed, Piece, Provider, UsageCounts, fault};
use crate::event::{File, FinishReason, Kind};
use crate::frame::Frame;

object! {
    Line<'a> {
        model: Word<'a> = "model",
        message: Message<'a> = "message",
        response: Word<'a> = "response",
        thinking: Word<'a> = "thinking",
        image: Word<'a> = "image",
        done: Flag = "done",
        reason: Word<'a> = "done_reason",
        error: Option<&'a RawValue> = "error",
        status: Word<'a> = "status",
    } skip { "created_at" "digest" }
}

object! {
    Message<'a> {
        content: Word<'a> = "content",
        thinking: Word<'a> = "thinking",
        calls: List<Call<'a>> = "tool_calls",
        images: List<Word<'a>> = "images",
    } skip { "role" "tool_name" }
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
        index: Count = "index",
    } skip { }
}

/// What the last line counts.
const USAGE: [&str; 6] =
    ["prompt_eval_count", "eval_count", "total_duration", "load_duration", "prompt_eval_duration", "eval_duration"];

/// Whether a frame is of this format.
pub(super) fn recognise(frame: &Frame<'_>) -> Likeness {
    let Ok(object) = Object::parse(frame.data) else { return Likeness::No };
    let has = |key: &str| object.raw(key).is_some();
    let answer = has("done") && (has("message") || has("response") || has("image"));
    let fetching = has("status") && has("digest") && has("total");
    match &*object.text("status") {
        _ if answer || fetching => Likeness::Yes,
        "pulling manifest" => Likeness::Maybe,
        _ => Likeness::No,
    }
}

/// The state machine.
#[derive(Default)]
pub(super) struct Ollama {
    next_call: u64,
    /// The answer is done: what follows is another's.
    done: bool,
    /// Who really answers: every line says it.
    latest: Latest,
}

impl Provider for Ollama {
    fn frame(&mut self, frame: &Frame<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        let line: Line<'_> = serde_json::from_slice(frame.data)?;
        if !line.here {
            return Err(Malformed("expected an object".into()));
        }
        if line.error.is_some() {
            fault::report(serde_json::from_slice(frame.data)?, "error", out);
            return Ok(());
        }
        if !line.message.here && line.response.0.is_none() && line.image.is_empty() && !line.done.0 {
            return progress(&line, frame, out);
        }
        if std::mem::take(&mut self.done) {
            out.round_end();
            out.round_start();
        }
        out.model(line.model.as_str());
        out.open(0, "", None);
        self.message(&line.message, out)?;
        out.reasoning(0, None, line.thinking.as_str());
        out.text(0, line.response.as_str());
        file(line.image.as_str(), out);
        for (name, raw) in &line.others {
            match &**name {
                name if USAGE.contains(&name) => {}
                "remote_model" | "remote_host" => self.latest.keep(name, raw, out),
                name => pass(name, raw, out)?,
            }
        }
        if line.done.0 {
            self.done = true;
            self.latest.say(out);
            end(&line, frame, out)?;
        } else if let Some((piece, text)) = only_piece(&line) {
            out.echo(piece, text);
        }
        Ok(())
    }

    fn noise(&self) -> &'static [&'static str] {
        &["created_at"]
    }

    fn finish(&mut self, out: &mut Assembler) {
        self.latest.say(out);
    }
}

impl Ollama {
    fn message(&mut self, message: &Message<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        out.reasoning(0, None, message.thinking.as_str());
        out.text(0, message.content.as_str());
        for call in &message.calls.items {
            self.next_call += 1;
            out.call(self.next_call, 0, call.id.as_str(), call.function.name.as_str(), Kind::Client);
            if let Some(arguments) = call.function.arguments {
                out.arguments_whole(self.next_call, &text_of(arguments));
            }
            out.call_end(self.next_call);
        }
        message.images.items.iter().for_each(|image| file(image.as_str(), out));
        message.others.iter().try_for_each(|(name, raw)| pass(name, raw, out))
    }
}

/// The one piece that a line holds, if it holds nothing else.
fn only_piece<'a>(line: &Line<'a>) -> Option<(Piece, &'a str)> {
    let Line { message, response, thinking, image, others, .. } = line;
    let of_the_stream = |name: &str| matches!(name, "remote_model" | "remote_host");
    if !others.iter().all(|(name, _)| of_the_stream(name))
        || !image.is_empty()
        || message.calls.here
        || message.images.here
        || !message.others.is_empty()
    {
        return None;
    }
    let pieces = [
        (Piece::Text(0), &message.content),
        (Piece::Text(0), response),
        (Piece::Reasoning(0, None), &message.thinking),
        (Piece::Reasoning(0, None), thinking),
    ];
    let mut said = pieces.into_iter().filter(|(_, word)| !word.is_empty());
    match (said.next(), said.next()) {
        (Some((piece, super::lax::Word(Some(Cow::Borrowed(text))))), None) => Some((piece, *text)),
        _ => None,
    }
}

/// The last line of an answer.
fn end(line: &Line<'_>, frame: &Frame<'_>, out: &mut Assembler) -> Result<(), Malformed> {
    let reason = match line.reason.as_str() {
        // Older versions say no reason.
        "" | "stop" | "load" | "unload" => FinishReason::Stop,
        "length" => FinishReason::Length,
        _ => FinishReason::Unknown,
    };
    out.finish_reason(0, reason, line.reason.as_str());
    let object = Object::parse(frame.data)?;
    if let Some(raw) = object.pick(&USAGE) {
        let (input, output) = (object.count(USAGE[0]), object.count(USAGE[1]));
        out.usage(UsageCounts { input, output, ..UsageCounts::default() }, &raw);
    }
    out.mark_ended();
    Ok(())
}

/// A line about a model that is being fetched or made, or one of another kind.
fn progress(line: &Line<'_>, frame: &Frame<'_>, out: &mut Assembler) -> Result<(), Malformed> {
    let object = Object::parse(frame.data)?;
    let status = line.status.as_str();
    if status.is_empty() {
        return super::wire::unknown("line", serde_json::from_slice(frame.data)?, out);
    }
    let digest = object.text("digest");
    let stage = if digest.is_empty() { status } else { &*digest };
    out.progress(stage, object.number("completed"), object.number("total"), Some(status));
    if status == "success" {
        out.mark_ended();
    }
    Ok(())
}

/// An image, in base64.
fn file(data: &str, out: &mut Assembler) {
    if !data.is_empty() {
        let message_id = out.message_id(0);
        out.file(File {
            media_type: "image/*".into(),
            name: None,
            url: None,
            file_id: None,
            data: Some(data.into()),
            message_id,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::testing::{all, call, message, passed, read_as, said, usage};

    fn chat(message: &str, beside: &str) -> String {
        format!(r#"{{"model":"m-1","created_at":"2026-01-01T00:00:00Z","message":{{"role":"assistant",{message}}},{beside}}}"#)
    }

    const END: &str = r#""done":true,"done_reason":"stop","total_duration":9,"prompt_eval_count":3,"eval_count":4"#;

    #[test]
    fn l1_a_call_is_whole_has_no_id_and_stops_for_calls() {
        let calls = r#""content":"","tool_calls":[{"function":{"name":"f","arguments":{"a":1}}},{"id":"c9","function":{"name":"g","arguments":{}}}]"#;
        let events = read_as("ollama", &[chat(calls, r#""done":false"#), chat(r#""content":"""#, END)]);
        let calls = all!(events, ToolCall);
        assert_eq!((said(calls[0]), said(calls[1])), (Some(r#"{"a":1}"#), Some("{}")));
        assert_eq!((calls[0].call_id.is_empty(), &*calls[1].call_id), (false, "c9"));
        assert_eq!(
            (message(&events).finish_reason, message(&events).finish_reason_raw.as_deref()),
            (FinishReason::ToolCalls, Some("stop"))
        );
    }

    #[test]
    fn l1_counts_and_durations_of_the_last_line_are_the_usage() {
        let events =
            read_as("ollama", &[chat(r#""content":"","thinking":"Hm.""#, r#""done":false"#), chat(r#""content":"Hi""#, END)]);
        assert_eq!((&*message(&events).text, &*message(&events).reasoning), ("Hi", "Hm."));
        let usage = usage(&events);
        assert_eq!((usage.input_tokens, usage.output_tokens, usage.total_tokens), (Some(3), Some(4), Some(7)));
        assert!(usage.raw.as_ref().unwrap().as_str().contains("\"total_duration\":9"));
    }

    #[test]
    fn l1_generate_ends_with_its_context() {
        let events = read_as(
            "ollama",
            &[r#"{"model":"m-1","response":"Hi","done":false}"#, r#"{"model":"m-1","response":"","done":true,"context":[1,2]}"#],
        );
        assert_eq!((&*message(&events).text, message(&events).finish_reason), ("Hi", FinishReason::Stop));
        assert_eq!(passed(&events, "context"), "[1,2]");
        assert_eq!(call_count(&events), 0);
    }

    fn call_count(events: &[crate::event::Payload]) -> usize {
        all!(events, ToolCall).len()
    }

    #[test]
    fn a_whole_body_is_one_line() {
        let events =
            read_as("ollama", &[chat(r#""content":"Hi","tool_calls":[{"function":{"name":"f","arguments":"{\"a\":1}"}}]"#, END)]);
        assert_eq!((&*message(&events).text, said(call(&events))), ("Hi", Some(r#"{"a":1}"#)));
    }

    #[test]
    fn an_error_line_ends_the_stream() {
        let events = read_as("ollama", &[chat(r#""content":"Ha""#, r#""done":false"#), r#"{"error":"model crashed"}"#.into()]);
        assert_eq!(&*all!(events, Error)[0].message, "model crashed");
        assert_eq!((all!(events, Error).len(), message(&events).finish_reason), (1, FinishReason::Error));
    }

    #[test]
    fn a_model_that_is_fetched_is_progress() {
        let lines = [
            r#"{"status":"pulling manifest"}"#,
            r#"{"status":"pulling a","digest":"sha256:a","total":8,"completed":2}"#,
            r#"{"status":"success"}"#,
        ];
        let events = read_as("ollama", &lines);
        let progress = all!(events, Progress);
        assert_eq!((&*progress[1].stage, progress[1].current, progress[1].total), ("sha256:a", Some(2.0), Some(8.0)));
        assert!(all!(events, Error).is_empty() && all!(events, RoundStart).is_empty());
    }

    #[test]
    fn two_answers_in_one_stream_are_two_rounds() {
        let answer = chat(r#""content":"Hi""#, END);
        let events = read_as("ollama", &[answer.clone(), answer]);
        assert_eq!((all!(events, RoundEnd).len(), all!(events, AssistantMessage).len()), (2, 2));
    }

    #[test]
    fn a_line_of_another_kind_passes() {
        let events = read_as("ollama", &[r#"{"weather":"fine"}"#.to_owned(), chat(r#""content":"Hi""#, END)]);
        assert_eq!(passed(&events, "line"), r#"{"weather":"fine"}"#);
    }
}
