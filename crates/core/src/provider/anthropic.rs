//! The Messages API of Anthropic: streamed events, whole `message` bodies, error bodies.
//!
//! Owns what content blocks, stop reasons and token counts of this API mean. Knows nothing of framing; whoever wraps the
//! same events in another frame (Bedrock, Vertex) hands the inner JSON in.
//! Invariants: 1. all text blocks of one message are one message's text, all thinking blocks its reasoning, one part
//! each; 2. what the model must not say aloud (redacted thinking, compaction summaries) never becomes text; 3. the
//! pieces of a tool's input count before the input its start carries; 4. signatures and whatever else must be sent back
//! to go on pass as `provider_event`.
//!
//! Format: <https://docs.claude.com/en/docs/build-with-claude/streaming>

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::value::RawValue;

use super::lax::{Count, Word, is_nothing, object, text_of};
use super::wire::{Object, pass, unknown};
use super::{Assembler, Likeness, Malformed, Piece, Provider, UsageCounts, fault};
use crate::event::json::{write_str, write_u64};
use crate::event::{Citation, FinishReason, Json, Kind, Text};
use crate::frame::Frame;

object! {
    /// The frame's outer shape, in one pass without a copy; enough for a delta, which nearly every frame is.
    Head<'a> {
        kind: Word<'a> = "type",
        index: Count = "index",
        delta: Delta<'a> = "delta",
    } skip { }
}

object! {
    Delta<'a> {
        kind: Word<'a> = "type",
        text: Word<'a> = "text",
        thinking: Word<'a> = "thinking",
        signature: Word<'a> = "signature",
        partial_json: Word<'a> = "partial_json",
        citation: Option<&'a RawValue> = "citation",
    } skip { }
}

/// Whether a frame is of this format.
pub(super) fn recognise(frame: &Frame<'_>) -> Likeness {
    let Ok(object) = Object::parse(frame.data) else { return Likeness::No };
    let kind = object.text("type");
    match if kind.is_empty() { frame.event } else { &*kind } {
        "message_start"
        | "message_delta"
        | "message_stop"
        | "ping"
        | "content_block_start"
        | "content_block_delta"
        | "content_block_stop" => Likeness::Yes,
        "message" if object.raw("content").is_some() => Likeness::Yes,
        "completion" if object.raw("completion").is_some() && object.raw("model").is_some() => Likeness::Yes,
        // The Responses API's errors are numbered.
        "error" if object.raw("error").is_some() && object.raw("sequence_number").is_none() => Likeness::Maybe,
        _ => Likeness::No,
    }
}

/// Token counts as the API splits them: three disjoint kinds of input.
#[derive(Default)]
struct Counts {
    uncached: Option<u64>,
    cache_read: Option<u64>,
    cache_write: Option<u64>,
}

/// The state machine.
#[derive(Default)]
pub(super) struct Anthropic {
    /// The assembler's key of the current message; each `message_start` takes a new one.
    message: u64,
    /// The current message's own id, from its start to its stop.
    id: Option<Box<str>>,
    /// The current message's stop reason, once said.
    stop: Option<FinishReason>,
    /// The tools' blocks that have not stopped, and the input that their start carried, for when no pieces follow.
    calls: BTreeMap<u64, Option<Box<RawValue>>>,
    /// Thinking blocks seen in this message, the current one included.
    thoughts: u64,
    counts: Counts,
}

impl Provider for Anthropic {
    fn frame(&mut self, frame: &Frame<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        let head: Head<'_> = match serde_json::from_slice(frame.data) {
            Ok(head) => head,
            // Not of this format, but gateways that speak several end every stream so.
            Err(_) if frame.data.trim_ascii() == b"[DONE]" => {
                out.mark_ended();
                return Ok(());
            }
            Err(_) if frame.event == "error" => {
                out.error("error", "the provider sent an error that is not JSON", false, None);
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        let index = head.index.0.unwrap_or(0);
        // A body without a type has its name before it, if anywhere.
        match if head.kind.is_empty() { frame.event } else { head.kind.as_str() } {
            "content_block_delta" if head.delta.here => self.delta(index, &head, frame, out)?,
            "content_block_start" => match Object::parse(frame.data)?.raw("content_block") {
                Some(block) => self.block_start(index, block, true, out)?,
                None => return Err(Malformed("content_block_start without a content_block".into())),
            },
            "content_block_stop" => self.block_stop(index, out),
            "message_delta" => return self.message_delta(&Object::parse(frame.data)?, out),
            "message_start" => match Object::parse(frame.data)?.raw("message") {
                Some(message) => self.message_start(&Object::from_raw(message)?, true, out)?,
                None => return Err(Malformed("message_start without a message".into())),
            },
            "message_stop" => {
                let passed = Object::parse(frame.data)?.pass_others(&["type"], out);
                self.message_stop(out);
                return passed;
            }
            "ping" => {}
            // The API before Messages.
            "completion" => return self.completion(&Object::parse(frame.data)?, out),
            "message" => {
                let started = self.message_start(&Object::parse(frame.data)?, false, out);
                self.message_stop(out);
                return started;
            }
            _ => return other(head.kind.as_str(), frame, out),
        }
        let mut beside = head.others.iter().filter(|(name, _)| !matches!(&**name, "message" | "content_block"));
        beside.try_for_each(|(name, raw)| pass(name, raw, out))
    }

    fn finish(&mut self, out: &mut Assembler) {
        self.stop_blocks(out);
    }
}

impl Anthropic {
    fn message_start(&mut self, message: &Object<'_>, streamed: bool, out: &mut Assembler) -> Result<(), Malformed> {
        let id = message.text("id");
        if let Some(open) = &self.id {
            if **open == *id {
                // Said twice by a retrying proxy: nothing of it is new.
                return self.usage(message, out);
            }
            if self.stop.is_some() {
                self.message_stop(out);
            } else {
                // Another message in the middle of this one: an upstream connection broke and somebody asked the model
                // again, whose answer begins from the start. Keeping both would say everything twice and run a tool
                // on half its input; so the first is taken back, in the open.
                out.warning("message_restarted", "a new message began before the last one was done; the last one is withdrawn");
                self.calls.clear();
                out.withdraw(self.message, "restarted");
                self.message += 1;
            }
        }
        self.id = Some((*id).into());
        self.stop = None;
        self.thoughts = 0;
        self.counts = Counts::default();
        out.model(&message.text("model"));
        out.round_start();
        out.open(self.message, &id, None);
        self.usage(message, out)?;
        for (index, block) in message.list("content").into_iter().enumerate() {
            self.block_start(index as u64, block, streamed, out)?;
            self.block_stop(index as u64, out);
        }
        self.stop_reason(message, out);
        message.pass_others(&["type", "id", "role", "model", "content", "stop_reason", "usage"], out)
    }

    fn message_delta(&mut self, event: &Object<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        self.usage(event, out)?;
        let delta = event.object("delta");
        self.stop_reason(&delta, out);
        delta.pass_others(&["stop_reason"], out)?;
        event.pass_others(&["type", "delta", "usage"], out)
    }

    fn message_stop(&mut self, out: &mut Assembler) {
        self.stop_blocks(out);
        out.mark_ended();
        out.round_end();
        self.message += 1;
        self.id = None;
        self.stop = None;
    }

    fn completion(&mut self, event: &Object<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        out.model(&event.text("model"));
        out.text(self.message, &event.text("completion"));
        self.stop_reason(event, out);
        if self.stop.is_some() {
            out.mark_ended();
        }
        event.pass_others(&["type", "id", "model", "completion", "stop_reason", "log_id"], out)
    }

    fn stop_reason(&mut self, of: &Object<'_>, out: &mut Assembler) {
        let raw = of.text("stop_reason");
        if raw.is_empty() {
            return;
        }
        let reason = finish_reason(&raw);
        self.stop = Some(reason);
        if reason == FinishReason::Refusal {
            out.refusal(self.message, &of.object("stop_details").text("explanation"));
        }
        out.finish_reason(self.message, reason, &raw);
    }

    /// Counts are cumulative: `message_start` holds a first guess, `message_delta` the last word on what it repeats.
    fn usage(&mut self, of: &Object<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        let Some(raw) = of.raw("usage") else { return Ok(()) };
        let usage = Object::from_raw(raw)?;
        let counts = &mut self.counts;
        counts.uncached = usage.count("input_tokens").or(counts.uncached);
        counts.cache_read = usage.count("cache_read_input_tokens").or(counts.cache_read);
        counts.cache_write = usage.count("cache_creation_input_tokens").or(counts.cache_write);
        let parts = [counts.uncached, counts.cache_read, counts.cache_write];
        let input = parts.into_iter().flatten().reduce(u64::saturating_add);
        let normalised = UsageCounts {
            input,
            output: usage.count("output_tokens"),
            cache_read: counts.cache_read,
            cache_write: counts.cache_write,
            reasoning: usage.object("output_tokens_details").count("thinking_tokens"),
            ..UsageCounts::default()
        };
        out.usage(normalised, raw);
        Ok(())
    }

    fn block_start(&mut self, index: u64, raw: &RawValue, streamed: bool, out: &mut Assembler) -> Result<(), Malformed> {
        let block = Object::from_raw(raw)?;
        let kind = block.text("type");
        match &*kind {
            "text" => {
                let text = block.text("text");
                if streamed {
                    out.text(self.message, &text);
                } else {
                    out.text_block(self.message, &text);
                }
                for citation in block.list("citations") {
                    self.citation(citation, out)?;
                }
                block.pass_others(&["type", "text", "citations"], out)
            }
            "thinking" => {
                self.thoughts += 1;
                self.think(&block.text("thinking"), out);
                sign(index, &block.text("signature"), out);
                block.pass_others(&["type", "thinking", "signature"], out)
            }
            "tool_use" => self.call_start(index, &block, Kind::Client, out),
            "server_tool_use" => self.call_start(index, &block, Kind::Server, out),
            "mcp_tool_use" => self.call_start(index, &block, Kind::Mcp, out),
            kind if kind.ends_with("tool_result") => result(&block, out),
            // The summary comes with its delta.
            "compaction" if block.raw("content").is_none() && block.raw("encrypted_content").is_none() => Ok(()),
            "fallback" => {
                out.model(&block.object("to").text("model"));
                pass("fallback", raw, out)
            }
            "redacted_thinking" | "compaction" | "container_upload" => pass(&kind, raw, out),
            kind => unknown(if kind.is_empty() { "content_block" } else { kind }, raw, out),
        }
    }

    fn delta(&mut self, index: u64, head: &Head<'_>, frame: &Frame<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        let delta = &head.delta;
        let echo = |piece, text: &Word<'_>, out: &mut Assembler| {
            if let (Some(Cow::Borrowed(text)), true, true) = (&text.0, head.others.is_empty(), delta.others.is_empty()) {
                out.echo(piece, text);
            }
        };
        match delta.kind.as_str() {
            "text_delta" => {
                out.text(self.message, delta.text.as_str());
                echo(Piece::Text(self.message), &delta.text, out);
            }
            "input_json_delta" => {
                // The first piece is always empty; to look for its call would be in vain where the start was lost.
                if !delta.partial_json.is_empty() {
                    out.arguments(index, delta.partial_json.as_str());
                }
                echo(Piece::Arguments(index), &delta.partial_json, out);
            }
            "thinking_delta" => {
                self.think(delta.thinking.as_str(), out);
                echo(Piece::Reasoning(self.message, Some(self.thought())), &delta.thinking, out);
            }
            "signature_delta" => sign(index, delta.signature.as_str(), out),
            "citations_delta" => {
                if let Some(citation) = delta.citation {
                    self.citation(citation, out)?;
                }
            }
            kind => {
                // All of it at once, its own members too.
                let Some(raw) = Object::parse(frame.data)?.raw("delta") else { return Ok(()) };
                return match kind {
                    "compaction_delta" => pass("compaction", raw, out),
                    "" => unknown("content_block_delta", raw, out),
                    kind => unknown(kind, raw, out),
                };
            }
        }
        delta.others.iter().try_for_each(|(name, raw)| pass(name, raw, out))
    }

    fn block_stop(&mut self, index: u64, out: &mut Assembler) {
        if let Some(input) = self.calls.remove(&index) {
            settle_input(index, input.as_deref(), out);
            out.call_end(index);
        }
    }

    /// Ends the blocks that never stopped. A stop reason that lets a call stand says that their stop was forgotten;
    /// any other, or none, that the model was cut in the middle.
    fn stop_blocks(&mut self, out: &mut Assembler) {
        let forgotten = matches!(self.stop, Some(FinishReason::ToolCalls | FinishReason::Stop | FinishReason::Pause));
        for (index, input) in std::mem::take(&mut self.calls) {
            settle_input(index, input.as_deref(), out);
            if forgotten {
                out.call_end(index);
            } else {
                out.call_cut(index);
            }
        }
    }

    fn think(&self, piece: &str, out: &mut Assembler) {
        out.reasoning(self.message, Some(self.thought()), piece);
    }

    /// The part of the reasoning that is being said.
    fn thought(&self) -> u64 {
        self.thoughts.saturating_sub(1)
    }

    fn call_start(&mut self, index: u64, block: &Object<'_>, kind: Kind, out: &mut Assembler) -> Result<(), Malformed> {
        // An index in use means that the last block's stop was lost.
        self.block_stop(index, out);
        let input = block.raw("input").filter(|raw| !is_nothing(raw));
        out.call(index, self.message, &block.text("id"), &block.text("name"), kind);
        self.calls.insert(index, input.map(ToOwned::to_owned));
        block.pass_others_of(("call_id", &block.text("id")), &["type", "id", "name", "input"], out)
    }

    fn citation(&self, raw: &RawValue, out: &mut Assembler) -> Result<(), Malformed> {
        let source = Object::from_raw(raw)?;
        let text =
            |keys: &[&str]| keys.iter().map(|key| source.text(key)).find(|text| !text.is_empty()).map(|text| Text::from(&*text));
        out.citation(Citation {
            message_id: out.message_id(self.message),
            url: text(&["url", "source"]),
            title: text(&["title", "document_title"]),
            text: text(&["cited_text"]),
            // The API's offsets count within the source, not within the answer: they stay in `raw`.
            start: None,
            end: None,
            raw: Some(Json::from_raw(raw)?),
        });
        Ok(())
    }
}

fn finish_reason(raw: &str) -> FinishReason {
    match raw {
        "end_turn" | "stop_sequence" => FinishReason::Stop,
        "tool_use" => FinishReason::ToolCalls,
        "max_tokens" | "model_context_window_exceeded" => FinishReason::Length,
        "pause_turn" | "compaction" => FinishReason::Pause,
        "refusal" => FinishReason::Refusal,
        _ => FinishReason::Unknown,
    }
}

/// Where no pieces came, the input of the start is the arguments. Some gateways write it as a string of JSON. Pieces that
/// are nothing but its continuation are neither.
fn settle_input(index: u64, input: Option<&RawValue>, out: &mut Assembler) {
    let Some(input) = input else { return };
    let (input, pieces) = (text_of(input), out.arguments_so_far(index));
    if pieces.is_empty() {
        out.arguments_whole(index, &input);
    } else if Json::parse(pieces).is_err() {
        let open = input.strip_suffix('}').unwrap_or(&input);
        if [&*input, open].iter().any(|start| Json::parse(&[start, pieces].concat()).is_ok()) {
            out.call_continued(index);
        }
    }
}

/// A tool that the provider ran has answered; the block comes whole and knows its call by id alone.
fn result(block: &Object<'_>, out: &mut Assembler) -> Result<(), Malformed> {
    let call_id = block.text("tool_use_id");
    let failed = block.is_true("is_error") || block.object("content").text("type").ends_with("_error");
    let output = block.raw("content").map(Json::from_raw).transpose()?;
    out.tool_result(&call_id, None, output, failed, if failed { "failed" } else { "completed" });
    block.pass_others_of(("call_id", &call_id), &["type", "tool_use_id", "content", "is_error"], out)
}

/// A thinking block's signature: whoever sends the block back must send it along.
pub(super) fn sign(index: u64, signature: &str, out: &mut Assembler) {
    if signature.is_empty() {
        return;
    }
    let mut data = Vec::with_capacity(signature.len() + 32);
    data.extend_from_slice(b"{\"index\":");
    write_u64(&mut data, index);
    data.extend_from_slice(b",\"signature\":");
    write_str(&mut data, signature);
    data.push(b'}');
    out.provider_event("signature", Some(Json::from_written(data)));
}

/// An error, or an event that is not known yet.
fn other(kind: &str, frame: &Frame<'_>, out: &mut Assembler) -> Result<(), Malformed> {
    let raw: &RawValue = serde_json::from_slice(frame.data)?;
    let object = Object::from_raw(raw)?;
    if kind == "error" || frame.event == "error" || (kind.is_empty() && object.raw("error").is_some()) {
        fault::report(raw, "error", out);
        // The request's id stands beside the error.
        return object.pass_others(&["type", "error", "message", "code"], out);
    }
    let name = [kind, frame.event, "untyped"].into_iter().find(|name| !name.is_empty()).unwrap_or_default();
    unknown(name, raw, out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Payload;
    use crate::provider::testing::{all, call, message, passed, read_as, said, usage};

    const START: &str = r#"{"type":"message_start","message":{"id":"msg_a","role":"assistant","content":[],"model":"m-1","stop_reason":null,"usage":{"input_tokens":10,"output_tokens":1}}}"#;
    const STOP: &str = r#"{"type":"message_stop"}"#;

    fn start(index: u64, block: &str) -> String {
        format!(r#"{{"type":"content_block_start","index":{index},"content_block":{block}}}"#)
    }

    fn delta(index: u64, delta: &str) -> String {
        format!(r#"{{"type":"content_block_delta","index":{index},"delta":{delta}}}"#)
    }

    fn text(index: u64, text: &str) -> String {
        delta(index, &format!(r#"{{"type":"text_delta","text":"{text}"}}"#))
    }

    fn json(index: u64, piece: &str) -> String {
        let piece = Json::string(piece);
        delta(index, &format!(r#"{{"type":"input_json_delta","partial_json":{piece:?}}}"#))
    }

    fn stop(index: u64) -> String {
        format!(r#"{{"type":"content_block_stop","index":{index}}}"#)
    }

    fn end(reason: &str) -> String {
        format!(
            r#"{{"type":"message_delta","delta":{{"stop_reason":"{reason}","stop_sequence":null}},"usage":{{"output_tokens":7}}}}"#
        )
    }

    const TOOL: &str = r#"{"type":"tool_use","id":"toolu_1","name":"add","input":{}}"#;

    fn read<S: AsRef<str>>(frames: &[S]) -> Vec<Payload> {
        read_as("anthropic", frames)
    }

    #[test]
    fn a1_content_and_stop_reason_inside_message_start() {
        let start = r#"{"type":"message_start","message":{"id":"msg_a","model":"m-1","content":[
            {"type":"text","text":"Rolling."},
            {"type":"tool_use","id":"toolu_1","name":"roll","input":{"n":2},"caller":{"type":"code_execution","tool_id":"s_1"}}],
            "container":{"id":"c_1"},"stop_reason":"tool_use","usage":{"input_tokens":0,"output_tokens":0}}}"#;
        let events = read(&[start, STOP]);
        assert_eq!(message(&events).text, "Rolling.");
        assert_eq!(message(&events).finish_reason, FinishReason::ToolCalls);
        assert_eq!(message(&events).tool_calls.len(), 1);
        assert_eq!(said(call(&events)), Some(r#"{"n":2}"#));
        assert_eq!(passed(&events, "caller"), r#"{"call_id":"toolu_1","caller":{"type":"code_execution","tool_id":"s_1"}}"#);
        assert_eq!(passed(&events, "container"), r#"{"id":"c_1"}"#);
        assert!(all!(events, Error).is_empty());
    }

    #[test]
    fn a2_the_output_count_is_the_last_and_what_is_not_repeated_stays() {
        let start = r#"{"type":"message_start","message":{"id":"a","content":[],"usage":{"input_tokens":10,
            "cache_read_input_tokens":100,"cache_creation_input_tokens":1000,"output_tokens":1,"service_tier":"standard"}}}"#;
        let events = read(&[start, &end("end_turn"), STOP]);
        let usage = usage(&events);
        assert_eq!((usage.input_tokens, usage.output_tokens, usage.total_tokens), (Some(1110), Some(7), Some(1117)));
        assert_eq!((usage.cache_read_tokens, usage.cache_write_tokens), (Some(100), Some(1000)));
        let raw = usage.raw.as_ref().unwrap().to_value();
        assert_eq!((&raw["input_tokens"], &raw["output_tokens"]), (&10.into(), &7.into()));
        assert_eq!(raw["service_tier"], "standard");
    }

    #[test]
    fn a2_counts_repeated_at_the_end_win_and_thinking_is_named() {
        let start = r#"{"type":"message_start","message":{"id":"a","content":[],"usage":{"input_tokens":10,"cache_read_input_tokens":5,"output_tokens":1}}}"#;
        let end = r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"input_tokens":20,"cache_read_input_tokens":0,
            "cache_creation_input_tokens":null,"output_tokens":9,"output_tokens_details":{"thinking_tokens":4}}}"#;
        let events = read(&[start, end, STOP]);
        let usage = usage(&events);
        assert_eq!((usage.input_tokens, usage.cache_read_tokens, usage.cache_write_tokens), (Some(20), Some(0), None));
        assert_eq!((usage.output_tokens, usage.reasoning_tokens), (Some(9), Some(4)));
    }

    #[test]
    fn a3_iterations_stay_in_the_raw_usage_and_out_of_the_totals() {
        let end = r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"input_tokens":20,"output_tokens":9,
            "iterations":[{"type":"compaction","input_tokens":5000,"output_tokens":80},{"type":"message","input_tokens":20,"output_tokens":9}]}}"#;
        let events = read(&[START, end, STOP]);
        assert_eq!((usage(&events).input_tokens, usage(&events).output_tokens), (Some(20), Some(9)));
        assert_eq!(usage(&events).raw.as_ref().unwrap().to_value()["iterations"][0]["input_tokens"], 5000);
    }

    #[test]
    fn a4_compaction_is_not_answer_text() {
        let summary = r#"{"type":"compaction_delta","content":"Earlier: a long talk.","encrypted_content":"xyz"}"#;
        let events = read(&[
            START,
            &start(0, r#"{"type":"compaction","content":null}"#),
            &delta(0, summary),
            &stop(0),
            &start(1, r#"{"type":"text","text":""}"#),
            &text(1, "Hello"),
            &stop(1),
            &end("end_turn"),
            STOP,
        ]);
        assert_eq!(message(&events).text, "Hello");
        assert_eq!(message(&events).reasoning, "");
        assert_eq!(passed(&events, "compaction"), summary);
    }

    #[test]
    fn a5_tool_without_arguments_is_an_empty_object() {
        let frames = [START, &start(0, TOOL), &json(0, ""), &stop(0), &end("tool_use"), STOP].map(str::to_owned);
        let events = read(&frames);
        assert_eq!(said(call(&events)), Some("{}"));
        assert_eq!(call(&events).arguments_error, None);
        let without_delta: Vec<_> = frames.iter().filter(|frame| !frame.contains("input_json_delta")).collect();
        assert_eq!(said(call(&read(&without_delta))), Some("{}"));
    }

    #[test]
    fn a6_arguments_split_anywhere_are_joined() {
        let whole = r#"{"city":"Zürich","n":[1,2]}"#;
        let pieces: Vec<String> = whole.chars().map(|piece| json(0, &piece.to_string())).collect();
        let mut frames = vec![START.to_owned(), start(0, TOOL), json(0, "")];
        frames.extend(pieces);
        frames.extend([stop(0), end("tool_use"), STOP.to_owned()]);
        let events = read(&frames);
        assert_eq!(call(&events).arguments_raw, whole);
        assert_eq!(said(call(&events)), Some(whole));
        let deltas: String = all!(events, ToolCallDelta).iter().map(|delta| &*delta.text).collect();
        assert_eq!(deltas, whole);
    }

    #[test]
    fn a7_a_call_cut_by_the_limit_keeps_its_raw_text_and_says_the_error() {
        let events = read(&[START, &start(0, TOOL), &json(0, r#"{"text":"half a se"#), &end("max_tokens"), STOP]);
        let cut = call(&events);
        assert_eq!((said(cut), &*cut.arguments_raw), (None, r#"{"text":"half a se"#));
        assert!(cut.arguments_error.is_some());
        assert_eq!(message(&events).finish_reason, FinishReason::Length);
        assert!(all!(events, Error).is_empty());
    }

    #[test]
    fn a7_a_call_cut_before_its_arguments_is_not_a_call_without_arguments() {
        for tail in [vec![end("max_tokens"), STOP.to_owned()], vec![]] {
            let mut frames = vec![START.to_owned(), start(0, TOOL), json(0, "")];
            frames.extend(tail);
            let events = read(&frames);
            assert_eq!(said(call(&events)), None);
            assert!(call(&events).arguments_error.is_some());
        }
    }

    #[test]
    fn a_stop_that_a_gateway_forgot_does_not_cost_the_call() {
        let events = read(&[START, &start(0, TOOL), &start(1, r#"{"type":"text","text":""}"#), &end("tool_use"), STOP]);
        assert_eq!(said(call(&events)), Some("{}"));
    }

    #[test]
    fn edge_07_pieces_beat_the_input_of_the_start() {
        let cases = [
            ("{}", r#"{"a":2}"#, Some(r#"{"a":2}"#)),
            (r#"{"a":1}"#, "", Some(r#"{"a":1}"#)),
            (r#"{"a":1}"#, r#"{"a":2}"#, Some(r#"{"a":2}"#)),
            ("null", r#"{"a":2}"#, Some(r#"{"a":2}"#)),
            ("null", "", Some("{}")),
            (r#""""#, "", Some("{}")),
            (r#""{\"a\":1}""#, "", Some(r#"{"a":1}"#)),
            (r#"{"a":1}"#, r#"{"a":"#, None), // cut, not continued
        ];
        for (input, pieces, expected) in cases {
            let block = format!(r#"{{"type":"tool_use","id":"toolu_1","name":"add","input":{input}}}"#);
            let events = read(&[START, &start(0, &block), &json(0, ""), &json(0, pieces), &stop(0), &end("tool_use"), STOP]);
            assert_eq!(said(call(&events)), expected, "{input} then {pieces}");
            assert_eq!(call(&events).arguments_error.is_some(), expected.is_none());
            assert!(all!(events, Warning).is_empty() || expected.is_none());
        }
        let only_deltas = r#"{"type":"tool_use","id":"toolu_1","name":"add"}"#;
        let events = read(&[START, &start(0, only_deltas), &json(0, r#"{"a":3}"#), &stop(0), &end("tool_use"), STOP]);
        assert_eq!(said(call(&events)), Some(r#"{"a":3}"#));
    }

    #[test]
    fn stop_reasons_have_words() {
        for (raw, word) in [
            ("end_turn", FinishReason::Stop),
            ("stop_sequence", FinishReason::Stop),
            ("max_tokens", FinishReason::Length),
            ("model_context_window_exceeded", FinishReason::Length),
            ("pause_turn", FinishReason::Pause), // A8
            ("something_new", FinishReason::Unknown),
        ] {
            let events = read(&[START, &text(0, "x"), &end(raw), STOP]);
            assert_eq!((message(&events).finish_reason, message(&events).finish_reason_raw.as_deref()), (word, Some(raw)));
        }
    }

    #[test]
    fn a8_a_server_call_may_be_left_without_its_result() {
        let block = r#"{"type":"server_tool_use","id":"srv_1","name":"web_search","input":{}}"#;
        let events = read(&[START, &start(0, block), &json(0, r#"{"query":"q"}"#), &stop(0), &end("pause_turn"), STOP]);
        assert_eq!((call(&events).kind, said(call(&events))), (Kind::Server, Some(r#"{"query":"q"}"#)));
        assert!(message(&events).tool_calls.is_empty());
        assert!(all!(events, ToolResult).is_empty());
    }

    #[test]
    fn a9_a_refusal_without_content_says_why() {
        let details = r#"{"type":"refusal","category":"cyber","explanation":"Not allowed."}"#;
        let end = format!(
            r#"{{"type":"message_delta","delta":{{"stop_reason":"refusal","stop_details":{details}}},"usage":{{"output_tokens":5}}}}"#
        );
        let events = read(&[START, r#"{"type":"ping"}"#, &end, STOP]);
        let message = message(&events);
        assert_eq!((&*message.text, message.refusal.as_deref()), ("", Some("Not allowed.")));
        assert_eq!(message.finish_reason, FinishReason::Refusal);
        assert_eq!(passed(&events, "stop_details"), details);
    }

    #[test]
    fn a10_redacted_thinking_is_flagged_and_not_shown() {
        let block = r#"{"type":"redacted_thinking","data":"secret"}"#;
        let events = read(&[START, &start(0, block), &stop(0), &text(1, "Hi"), &end("end_turn"), STOP]);
        assert_eq!((&*message(&events).text, &*message(&events).reasoning), ("Hi", ""));
        assert_eq!(passed(&events, "redacted_thinking"), block);
    }

    #[test]
    fn a11_a_thinking_block_may_hold_nothing_but_its_signature() {
        let events = read(&[
            START,
            &start(0, r#"{"type":"thinking","thinking":"","signature":""}"#),
            &delta(0, r#"{"type":"signature_delta","signature":"c2ln"}"#),
            &stop(0),
            &end("end_turn"),
            STOP,
        ]);
        assert_eq!(message(&events).reasoning, "");
        assert_eq!(passed(&events, "signature"), r#"{"index":0,"signature":"c2ln"}"#);
    }

    #[test]
    fn thinking_blocks_are_parts_of_one_reasoning() {
        let think = |index, text: &str| delta(index, &format!(r#"{{"type":"thinking_delta","thinking":"{text}"}}"#));
        let block = r#"{"type":"thinking","thinking":""}"#;
        let events = read(&[
            START,
            &start(0, block),
            &think(0, "One"),
            &think(0, "."),
            &stop(0),
            &start(1, block),
            &think(1, "Two."),
            &stop(1),
            &end("end_turn"),
            STOP,
        ]);
        assert_eq!(message(&events).reasoning, "One.\n\nTwo.");
        assert_eq!(
            all!(events, ReasoningDelta).iter().map(|delta| delta.part).collect::<Vec<_>>(),
            [Some(0), Some(0), Some(1), Some(1)]
        );
    }

    #[test]
    fn a12_server_results_come_whole_and_know_their_call() {
        let block =
            |id, body| format!(r#"{{"type":"bash_code_execution_tool_result","tool_use_id":"srv_{id}","content":{body}}}"#);
        let error = r#"{"type":"bash_code_execution_tool_result_error","error_code":"unavailable"}"#;
        let mcp = r#"{"type":"mcp_tool_result","tool_use_id":"mcp_1","is_error":true,"content":[{"type":"text","text":"no"}]}"#;
        let first = start(0, &block(1, r#"{"stdout":"4"}"#));
        let events = read(&[START, &first, &stop(0), &start(1, &block(2, error)), &start(2, mcp), &first, STOP]);
        let results = all!(events, ToolResult);
        assert_eq!(results.iter().map(|result| result.is_error).collect::<Vec<_>>(), [false, true, true]);
        assert_eq!((&*results[0].call_id, &*results[2].call_id), ("srv_1", "mcp_1"));
        assert_eq!(results[0].output.as_ref().unwrap().as_str(), r#"{"stdout":"4"}"#);
        assert_eq!(all!(events, Warning).last().unwrap().code, "second_result");
        assert_eq!(message(&events).text, "");
    }

    #[test]
    fn a12_an_mcp_call_has_its_own_kind() {
        let block = r#"{"type":"mcp_tool_use","id":"mcp_1","name":"ask","server_name":"wiki","input":{}}"#;
        let events = read(&[START, &start(0, block), &json(0, r#"{"q":1}"#), &stop(0), &end("end_turn"), STOP]);
        assert_eq!((call(&events).kind, said(call(&events))), (Kind::Mcp, Some(r#"{"q":1}"#)));
        assert_eq!(passed(&events, "server_name"), r#"{"call_id":"mcp_1","server_name":"wiki"}"#);
    }

    #[test]
    fn a13_many_short_blocks_are_one_text_and_citations_stand_between() {
        let web = r#"{"type":"citations_delta","citation":{"type":"web_search_result_location","url":"https://a.example","title":"A","cited_text":"so"}}"#;
        let file = r#"{"type":"citations_delta","citation":{"type":"char_location","document_title":"facts.txt","cited_text":"it is","start_char_index":3,"end_char_index":8}}"#;
        let block = r#"{"type":"text","text":"","citations":[]}"#;
        let events = read(&[
            START,
            &start(0, block),
            &text(0, "It is "),
            &stop(0),
            &start(1, block),
            &delta(1, web),
            &text(1, "so"),
            &delta(1, file),
            &stop(1),
            &start(2, block),
            &text(2, "."),
            &stop(2),
            &end("end_turn"),
            STOP,
        ]);
        assert_eq!(message(&events).text, "It is so.");
        let citations = all!(events, Citation);
        assert_eq!((citations[0].url.as_deref(), citations[0].title.as_deref()), (Some("https://a.example"), Some("A")));
        assert_eq!((citations[1].title.as_deref(), citations[1].text.as_deref()), (Some("facts.txt"), Some("it is")));
        assert_eq!(citations[0].message_id.as_deref(), Some("msg_a"));
        assert_eq!(citations[1].start, None);
    }

    #[test]
    fn a14_a_message_start_said_twice_counts_once() {
        let events = read(&[START, START, &text(0, "Hello"), &end("end_turn"), STOP]);
        assert_eq!(all!(events, MessageStart).len(), 1);
        assert_eq!(message(&events).text, "Hello");
        assert!(all!(events, Warning).is_empty());
    }

    #[test]
    fn a14_a_message_spliced_into_another_withdraws_it() {
        let second = START.replace("msg_a", "msg_b");
        let other_tool = TOOL.replace("toolu_1", "toolu_2");
        let events = read(&[
            START,
            &text(0, "I will"),
            &start(1, TOOL),
            &json(1, r#"{"a":1}"#),
            &second,
            &text(0, "Let me"),
            &start(1, &other_tool),
            &json(1, r#"{"a":2}"#),
            &stop(1),
            &end("tool_use"),
            STOP,
        ]);
        let messages = all!(events, AssistantMessage);
        assert_eq!(
            messages.iter().map(|message| (&*message.message_id, &*message.text)).collect::<Vec<_>>(),
            [("msg_a", ""), ("msg_b", "Let me")]
        );
        assert!(messages[0].tool_calls.is_empty());
        assert_eq!(&*messages[1].tool_calls[0].call_id, "toolu_2");
        assert_eq!(&*all!(events, MessageReset)[0].message_id, "msg_a");
        let calls = all!(events, ToolCall);
        assert_eq!((said(calls[0]), said(calls[1])), (None, Some(r#"{"a":2}"#)));
        assert!(calls[0].arguments_error.is_some(), "whole JSON or not: nobody may run it");
        assert_eq!(all!(events, Warning)[0].code, "message_restarted");
        assert_eq!((all!(events, RoundStart).len(), all!(events, RoundEnd).len()), (1, 1));
        assert_eq!(all!(events, RoundEnd)[0].finish_reason, Some(FinishReason::ToolCalls));
    }

    #[test]
    fn two_messages_in_a_row_are_two_rounds() {
        let second = START.replace("msg_a", "msg_b");
        for stop in [Some(STOP), None] {
            let (first_end, last_end) = (end("end_turn"), end("end_turn"));
            let mut frames = vec![START, "{\"type\":\"ping\"}", &first_end];
            frames.extend(stop);
            let last = text(0, "B");
            frames.extend([&*second, &last, &last_end, STOP]);
            let events = read(&frames);
            assert_eq!(all!(events, AssistantMessage).len(), 2);
            assert!(all!(events, MessageReset).is_empty());
            assert_eq!((all!(events, RoundStart).len(), all!(events, RoundEnd).len(), all!(events, Usage).len()), (2, 2, 2));
        }
    }

    #[test]
    fn a_whole_message_said_twice_is_two_messages_with_two_ids() {
        let frames = [START, &text(0, "Hi"), &end("end_turn"), STOP].map(str::to_owned);
        let events = read(&[frames.clone(), frames].concat());
        let ids: Vec<_> = all!(events, MessageStart).iter().map(|start| &*start.message_id).collect();
        assert_eq!(ids, ["msg_a", "msg-1"]);
    }

    #[test]
    fn a15_a_fallback_names_the_model_that_answers() {
        let block = r#"{"type":"fallback","from":{"model":"m-1"},"to":{"model":"m-2"}}"#;
        let events = read(&[START, &start(0, block), &stop(0), &text(1, "Hi"), &end("end_turn"), STOP]);
        assert_eq!((&*message(&events).text, message(&events).model.as_deref()), ("Hi", Some("m-2")));
        assert_eq!(all!(events, MessageStart)[0].model.as_deref(), Some("m-1"));
        assert_eq!(passed(&events, "fallback"), block);
    }

    #[test]
    fn a16_pings_say_nothing() {
        let ping = r#"{"type": "ping"}"#;
        let events = read(&[ping, START, ping, &text(0, "a"), ping, &text(0, "b"), ping, &end("end_turn"), ping, STOP, ping]);
        assert_eq!(message(&events).text, "ab");
        assert!(all!(events, ProviderEvent).is_empty());
    }

    #[test]
    fn f9_padding_after_the_object_is_nothing() {
        let events =
            read(&[START.to_owned() + "     ", text(0, "a") + "  ", end("end_turn") + " ", STOP.to_owned() + "        "]);
        assert_eq!(message(&events).text, "a");
    }

    #[test]
    fn f8_a_done_of_another_format_is_an_end() {
        let events = read(&[START, &text(0, "a"), "[DONE]"]);
        assert!(all!(events, Error).is_empty());
        assert_eq!(message(&events).finish_reason, FinishReason::Unknown);
    }

    #[test]
    fn an_error_in_the_stream_beats_everything_and_closes_everything() {
        let error = r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"},"request_id":"req_1"}"#;
        let events = read(&[START, &text(0, "Half"), &start(1, TOOL), error]);
        let errors = all!(events, Error);
        assert_eq!(errors.len(), 1);
        assert_eq!((&*errors[0].code, &*errors[0].message, errors[0].retryable), ("overloaded_error", "Overloaded", true));
        assert_eq!(passed(&events, "request_id"), r#""req_1""#);
        assert_eq!((&*message(&events).text, message(&events).finish_reason), ("Half", FinishReason::Error));
        assert_eq!(said(call(&events)), None);
        assert_eq!(all!(events, RoundEnd)[0].finish_reason, Some(FinishReason::Error));
    }

    #[test]
    fn an_error_body_is_one_error() {
        for (kind, retryable) in [("invalid_request_error", false), ("rate_limit_error", true), ("api_error", true)] {
            let body = format!(r#"{{"type":"error","error":{{"type":"{kind}","message":"why"}}}}"#);
            let events = read(&[body]);
            let errors = all!(events, Error);
            assert_eq!((errors.len(), &*errors[0].code, errors[0].retryable), (1, kind, retryable));
            assert!(all!(events, AssistantMessage).is_empty());
        }
        for body in [r#"{"type":"error"}"#, r#"{"error":"busy"}"#, r#"{"error":{"message":"busy"}}"#] {
            let events = read(&[body]);
            assert_eq!(all!(events, Error).len(), 1, "{body}");
        }
    }

    #[test]
    fn a_whole_message_is_read_like_its_stream() {
        let body = r#"{"id":"msg_a","type":"message","role":"assistant","model":"m-1","content":[
            {"type":"thinking","thinking":"Hm.","signature":"c2ln"},
            {"type":"text","text":"It is ","citations":null},
            {"type":"text","text":"so.","citations":[{"type":"web_search_result_location","url":"https://a.example"}]},
            {"type":"tool_use","id":"toolu_1","name":"add","input":{"a":1}},
            {"type":"tool_use","id":"toolu_2","name":"now","input":{}}],
            "stop_reason":"tool_use","stop_sequence":null,"usage":{"input_tokens":3,"output_tokens":4}}"#;
        let events = read(&[body]);
        let message = message(&events);
        assert_eq!((&*message.text, &*message.reasoning, message.streamed), ("It is so.", "Hm.", false));
        assert_eq!(message.finish_reason, FinishReason::ToolCalls);
        assert_eq!(all!(events, ToolCall).iter().map(|call| said(call)).collect::<Vec<_>>(), [Some(r#"{"a":1}"#), Some("{}")]);
        assert_eq!(all!(events, TextDelta).iter().map(|delta| &*delta.text).collect::<String>(), "It is so.");
        assert_eq!((all!(events, Citation).len(), usage(&events).total_tokens), (1, Some(7)));
        assert!(all!(events, Error).is_empty());
    }

    #[test]
    fn what_has_no_word_passes() {
        let end = r#"{"type":"message_delta","delta":{"stop_reason":"stop_sequence","stop_sequence":"```"},"usage":{"output_tokens":1},
            "context_management":{"applied_edits":[]}}"#;
        let block = r#"{"type":"container_upload","file_id":"f_1"}"#;
        let events = read(&[
            START,
            &start(0, block),
            &stop(0),
            &start(1, r#"{"type":"hologram","data":1}"#),
            &delta(1, r#"{"type":"hologram_delta","data":2}"#),
            r#"{"type":"weather_report","sky":"blue"}"#,
            end,
            r#"{"type":"message_stop","amazon-bedrock-invocationMetrics":{"inputTokenCount":1}}"#,
        ]);
        assert_eq!(passed(&events, "container_upload"), block);
        assert_eq!(passed(&events, "context_management"), r#"{"applied_edits":[]}"#);
        assert_eq!(passed(&events, "stop_sequence"), r#""```""#);
        assert_eq!(passed(&events, "amazon-bedrock-invocationMetrics"), r#"{"inputTokenCount":1}"#);
        assert_eq!(passed(&events, "weather_report"), r#"{"type":"weather_report","sky":"blue"}"#);
        assert_eq!(all!(events, ProviderEvent).iter().filter(|event| event.name.starts_with("hologram")).count(), 2);
    }

    #[test]
    fn a_truncated_stream_says_so_and_leaves_nothing_open() {
        let events = read(&[START, &text(0, "Half"), &start(1, TOOL), &json(1, r#"{"a":"#)]);
        assert_eq!(all!(events, Error)[0].code, "stream_truncated");
        assert_eq!(message(&events).text, "Half");
        assert!(call(&events).arguments_error.is_some());
        assert_eq!(all!(events, RoundEnd).len(), 1);
        let second = read(&[START, &end("end_turn"), STOP, &START.replace("msg_a", "msg_b"), &text(0, "Half")]);
        assert_eq!(all!(second, Error).len(), 1, "the end of one message is not the end of the next");
    }

    #[test]
    fn pieces_without_a_start_are_kept() {
        let events = read(&[text(0, "Hi"), json(1, "{}"), end("end_turn"), STOP.to_owned()]);
        assert_eq!(message(&events).text, "Hi");
        assert_eq!(all!(events, Warning)[0].code, "stray_arguments");
    }

    #[test]
    fn a_malformed_frame_costs_itself_alone() {
        let (mut provider, mut out) = (Anthropic::default(), Assembler::new("anthropic", ""));
        let mut feed = |data: &str| provider.frame(&Frame { event: "", data: data.as_bytes(), offset: 0 }, &mut out).is_ok();
        assert!(feed(START));
        for bad in ["", "{", "7", r#"{"type":"content_block_start","index":0}"#, r#"{"type":"message_start"}"#] {
            assert!(!feed(bad), "{bad}");
        }
        assert!(feed(&text(0, "Hi")) && feed(&end("end_turn")) && feed(STOP));
        let events: Vec<_> = out.drain().collect();
        assert_eq!(message(&events).text, "Hi");
    }
}
