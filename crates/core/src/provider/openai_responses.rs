//! The Responses API of OpenAI and those who speak it: streamed events, whole `response` bodies, error bodies.
//!
//! Owns what output items, their parts and a response's status mean. Knows nothing of framing.
//! Invariants: 1. items are told apart by `output_index` alone, since ids rotate; 2. each message item is a message of
//! its own, with the reasoning before it and the calls after it; 3. what only an item's end or the response's end says
//! is said then, and never twice; 4. an `error` and the `response.failed` after it are one error.
//!
//! Format: <https://platform.openai.com/docs/api-reference/responses-streaming>

use std::borrow::Cow;
use std::fmt::Write as _;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::lax::{Count, Word, text_of};
use super::wire::{Object, pass, unknown};
use super::{Assembler, Likeness, Malformed, Provider, UsageCounts, fault};
use crate::event::json::write_str;
use crate::event::{Citation, File, FinishReason, Json, Kind, Text};
use crate::frame::Frame;

/// What a delta needs, in one pass without a copy.
#[derive(Deserialize)]
struct Head<'a> {
    #[serde(rename = "type", borrow, default)]
    kind: Word<'a>,
    #[serde(default)]
    output_index: Count,
    #[serde(default)]
    summary_index: Count,
    #[serde(default)]
    content_index: Count,
    #[serde(borrow, default)]
    delta: Word<'a>,
}

impl Head<'_> {
    /// The part of an item that a piece of reasoning belongs to.
    fn part(&self, index: u64, summary: bool) -> Part {
        (index, summary, if summary { self.summary_index } else { self.content_index }.0.unwrap_or_default())
    }
}

/// Whether a frame is of this format.
pub(super) fn recognise(frame: &Frame<'_>) -> Likeness {
    let Ok(object) = Object::parse(frame.data) else { return Likeness::No };
    let kind = object.text("type");
    if kind.starts_with("response.") || &*object.text("object") == "response" {
        Likeness::Yes
    } else if kind == "error" && object.raw("sequence_number").is_some() {
        Likeness::Maybe
    } else {
        Likeness::No
    }
}

/// An output item that has been seen.
#[derive(Default)]
struct Item {
    index: u64,
    /// The assembler's key of the message it belongs to.
    message: u64,
    /// The id it had last.
    id: Box<str>,
    done: bool,
    /// Some of its reasoning, its refusal, its citations have gone out already.
    thought: bool,
    refused: bool,
    cited: bool,
}

/// Where a piece of reasoning belongs: item, whether it is a summary or raw, and which part.
type Part = (u64, bool, u64);

/// The state machine.
#[derive(Default)]
pub(super) struct OpenAiResponses {
    /// The response's id: that of its first message too, whose reasoning and calls may come before its item.
    id: Box<str>,
    /// The assembler's keys of the response's first and current message.
    first: u64,
    message: u64,
    /// The current message has its message item: the next one begins a new message.
    taken: bool,
    items: Vec<Item>,
    part: Option<Part>,
    parts: u64,
    /// The call that an output without an id answers.
    last_call: Box<str>,
}

impl Provider for OpenAiResponses {
    fn frame(&mut self, frame: &Frame<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        let head: Head<'_> = match serde_json::from_slice(frame.data) {
            Ok(head) => head,
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
        let index = head.output_index.0.or(self.items.last().map(|item| item.index)).unwrap_or_default();
        let kind = head.kind.as_str();
        let kind = kind.strip_prefix("response.").unwrap_or(kind);
        match kind {
            "output_text.delta" => {
                let message = self.open(index, out);
                out.text(message, head.delta.as_str());
                Ok(())
            }
            "reasoning_summary_text.delta" => {
                self.think(head.part(index, true), head.delta.as_str(), out);
                Ok(())
            }
            "reasoning_text.delta" => {
                self.think(head.part(index, false), head.delta.as_str(), out);
                Ok(())
            }
            "refusal.delta" => {
                let message = self.open(index, out);
                self.item(index).refused = true;
                out.refusal(message, head.delta.as_str());
                Ok(())
            }
            "function_call_arguments.delta" | "mcp_call_arguments.delta" | "custom_tool_call_input.delta" => {
                if !head.delta.is_empty() {
                    out.arguments(index, head.delta.as_str());
                }
                Ok(())
            }
            _ => self.seldom(kind, index, &head, frame, out),
        }
    }

    fn finish(&mut self, _: &mut Assembler) {}
}

impl OpenAiResponses {
    /// Every event that is not a delta of what everybody reads.
    fn seldom(
        &mut self,
        kind: &str,
        index: u64,
        head: &Head<'_>,
        frame: &Frame<'_>,
        out: &mut Assembler,
    ) -> Result<(), Malformed> {
        let raw: &RawValue = serde_json::from_slice(frame.data)?;
        let event = Object::from_raw(raw)?;
        match kind {
            "created" | "queued" | "in_progress" => {
                self.start(&event.object("response"), out);
                Ok(())
            }
            "completed" | "incomplete" | "failed" | "cancelled" => {
                // Members beside the response: what a gateway counts, for one.
                let passed = event.pass_others(&["type", "response", "sequence_number"], out);
                self.end(kind, &event.object("response"), out).and(passed)
            }
            "output_item.added" => self.item_added(index, &event.object("item"), out),
            "output_item.done" => match event.raw("item") {
                Some(item) => self.item_done(index, item, out),
                None => Err(Malformed("output_item.done without an item".into())),
            },
            "output_text.done" => {
                let message = self.open(index, out);
                if out.text_so_far(message).is_empty() {
                    out.text_whole(message, &event.text("text"));
                }
                Ok(())
            }
            "refusal.done" => {
                self.refuse(index, &event.text("refusal"), out);
                Ok(())
            }
            "reasoning_summary_text.done" => {
                self.think_whole(head.part(index, true), &event.text("text"), out);
                Ok(())
            }
            "reasoning_text.done" => {
                self.think_whole(head.part(index, false), &event.text("text"), out);
                Ok(())
            }
            "function_call_arguments.done" | "mcp_call_arguments.done" => {
                out.arguments_whole(index, &event.text("arguments"));
                Ok(())
            }
            "custom_tool_call_input.done" => {
                out.arguments_whole(index, &event.text("input"));
                Ok(())
            }
            "output_text.annotation.added" => match event.raw("annotation") {
                Some(annotation) => self.cite(index, annotation, out),
                None => Ok(()),
            },
            // Their content comes with the deltas and with the item's end.
            "content_part.added" | "content_part.done" | "reasoning_part.added" | "reasoning_part.done" => Ok(()),
            "reasoning_summary_part.added" | "reasoning_summary_part.done" => Ok(()),
            "keepalive" => Ok(()),
            "" if &*event.text("object") == "response" => {
                self.start(&event, out);
                let status = event.text("status");
                self.end(if status.is_empty() { "completed" } else { &status }, &event, out)
            }
            _ if kind == "error" || frame.event == "error" || (kind.is_empty() && event.raw("error").is_some()) => {
                fault::report(raw, "error", out);
                Ok(())
            }
            kind if KNOWN.iter().any(|known| kind.starts_with(known)) => pass(kind, raw, out),
            _ => unknown([kind, frame.event, "untyped"].into_iter().find(|name| !name.is_empty()).unwrap_or_default(), raw, out),
        }
    }

    fn start(&mut self, response: &Object<'_>, out: &mut Assembler) {
        if self.items.is_empty() {
            self.id = response.text("id").into();
        }
        out.model(&response.text("model"));
        out.round_start();
    }

    fn end(&mut self, status: &str, response: &Object<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        out.model(&response.text("model"));
        for (index, item) in response.list("output").into_iter().enumerate() {
            // By index, and by id: some leave items out of the whole that they have streamed.
            let id = Object::from_raw(item)?.text("id");
            let known = |seen: &Item| seen.done && (seen.index == index as u64 || (!id.is_empty() && *seen.id == *id));
            if !self.items.iter().any(known) {
                self.item_done(index as u64, item, out)?;
            }
        }
        if let Some(raw) = response.raw("usage") {
            out.usage(counts(&Object::from_raw(raw)?), raw);
        }
        if status == "failed" {
            if !out.has_error() {
                match response.raw("error") {
                    Some(error) => fault::report(error, "failed", out),
                    None => out.error("failed", "the response failed and the provider did not say why", false, None),
                }
            }
        } else {
            let details = response.object("incomplete_details");
            for key in self.first..=self.message {
                out.finish_reason(key, finish_reason(status, &details.text("reason")), status);
            }
            if let Some(raw) = response.raw("incomplete_details") {
                pass("incomplete_details", raw, out)?;
            }
        }
        out.mark_ended();
        out.round_end();
        self.message += 1;
        *self = Self { first: self.message, message: self.message, ..Self::default() };
        Ok(())
    }

    /// The item at `index`, put into the current message if it is new.
    fn item(&mut self, index: u64) -> &mut Item {
        let at = self.items.iter().rposition(|item| item.index == index).unwrap_or_else(|| {
            self.items.push(Item { index, message: self.message, ..Item::default() });
            self.items.len() - 1
        });
        &mut self.items[at]
    }

    /// Opens the message of the item at `index`: under the response's id the first, under an id of their own the others.
    fn open(&mut self, index: u64, out: &mut Assembler) -> u64 {
        let message = self.item(index).message;
        if !out.is_open(message) {
            out.open(message, if message == self.first { &self.id } else { "" }, None);
        }
        message
    }

    fn item_added(&mut self, index: u64, item: &Object<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        let kind = item.text("type");
        if self.items.iter().any(|seen| seen.index == index) {
            return Ok(());
        }
        if self.taken && matches!(&*kind, "message" | "reasoning") {
            self.message += 1;
            self.taken = false;
        }
        self.item(index);
        match &*kind {
            "message" => {
                self.taken = true;
                if self.message != self.first {
                    out.open(self.message, &item.text("id"), None);
                }
                self.open(index, out);
                match item.raw("phase") {
                    Some(phase) => pass("phase", phase, out),
                    None => Ok(()),
                }
            }
            kind => {
                if let Some((name, of)) = tool(kind, item) {
                    let message = self.open(index, out);
                    let id = call_id(item);
                    self.last_call = (*id).into();
                    out.call(index, message, &id, &name, of);
                    if kind == "custom_tool_call" {
                        out.arguments_are_text(index);
                    }
                }
                Ok(())
            }
        }
    }

    fn item_done(&mut self, index: u64, raw: &RawValue, out: &mut Assembler) -> Result<(), Malformed> {
        let item = Object::from_raw(raw)?;
        self.item_added(index, &item, out)?;
        let seen = self.item(index);
        if std::mem::replace(&mut seen.done, true) {
            return Ok(());
        }
        seen.id = item.text("id").into();
        let kind = item.text("type");
        match &*kind {
            "message" => self.message_done(index, &item, out),
            "reasoning" => self.reasoning_done(index, &item, out),
            "image_generation_call" => {
                self.call_done(index, &item, out)?;
                self.image(index, &item, out);
                Ok(())
            }
            kind if tool(kind, &item).is_some() => self.call_done(index, &item, out),
            kind if kind.ends_with("_output") => {
                let id = item.text("call_id");
                let call = if id.is_empty() { &*self.last_call } else { &*id };
                let output = ["output", "result", "tools"].iter().find_map(|key| item.raw(key));
                tool_result(call, output, &item, out)
            }
            kind => pass(if kind.is_empty() { "output_item" } else { kind }, raw, out),
        }
    }

    fn message_done(&mut self, index: u64, item: &Object<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        let message = self.open(index, out);
        let content = item.list("content");
        let (mut text, mut refusal) = (String::new(), String::new());
        let mut annotations = Vec::new();
        for part in &content {
            let part = Object::from_raw(part)?;
            text.push_str(&part.text("text"));
            refusal.push_str(&part.text("refusal"));
            annotations.extend(part.list("annotations"));
        }
        // An item that ends without content was cut short by whoever recorded or proxied it; the deltas stand.
        if !text.is_empty() {
            out.text_whole(message, &text);
        }
        self.refuse(index, &refusal, out);
        if !self.item(index).cited {
            for annotation in annotations {
                self.cite(index, annotation, out)?;
            }
        }
        Ok(())
    }

    fn reasoning_done(&mut self, index: u64, item: &Object<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        if !self.item(index).thought {
            for (summary, key) in [(true, "summary"), (false, "content")] {
                for (part, raw) in item.list(key).into_iter().enumerate() {
                    self.think((index, summary, part as u64), &Object::from_raw(raw)?.text("text"), out);
                }
            }
        }
        // Whoever keeps the conversation itself must send it back.
        match item.raw("encrypted_content") {
            Some(_) => {
                let known = ["type", "id", "summary", "content", "status"];
                item.pass_others_of(("item_id", &item.text("id")), &known, out)
            }
            None => Ok(()),
        }
    }

    fn call_done(&mut self, index: u64, item: &Object<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        let id = call_id(item);
        let arguments = arguments(item);
        if !arguments.is_empty() {
            out.arguments_whole(index, &arguments);
        }
        out.call_end(index);
        item.pass_others_of(("call_id", &id), &[CALL, ARGUMENTS, MORE_ARGUMENTS, RESULTS].concat(), out)?;
        if ANSWERED_ELSEWHERE.contains(&&*item.text("type")) {
            return Ok(());
        }
        let output = RESULTS.iter().filter(|key| **key != "result").find_map(|key| item.raw(key));
        if output.is_some() || !matches!(&*item.text("status"), "in_progress" | "incomplete" | "calling") {
            tool_result(&id, output, item, out)?;
        }
        Ok(())
    }

    fn image(&mut self, index: u64, item: &Object<'_>, out: &mut Assembler) {
        let data = item.text("result");
        if data.is_empty() {
            return;
        }
        let message = self.open(index, out);
        let format = item.text("output_format");
        let mut media_type = Text::from("image/");
        let _ = media_type.write_str(if format.is_empty() { "png" } else { &format });
        // Some servers answer with an address where others answer with the image.
        let is_url = data.starts_with("http");
        let said = Some(Text::from(&*data));
        let (url, data) = if is_url { (said, None) } else { (None, said) };
        out.file(File { media_type, name: None, url, file_id: None, data, message_id: out.message_id(message) });
    }

    fn refuse(&mut self, index: u64, whole: &str, out: &mut Assembler) {
        if !whole.is_empty() && !std::mem::replace(&mut self.item(index).refused, true) {
            let message = self.open(index, out);
            out.refusal(message, whole);
        }
    }

    fn think(&mut self, part: Part, piece: &str, out: &mut Assembler) {
        if piece.is_empty() {
            return;
        }
        let message = self.open(part.0, out);
        self.item(part.0).thought = true;
        if self.part != Some(part) {
            self.part = Some(part);
            self.parts += 1;
        }
        out.reasoning(message, Some(self.parts - 1), piece);
    }

    /// A part's whole text: news only where the part had no deltas.
    fn think_whole(&mut self, part: Part, whole: &str, out: &mut Assembler) {
        if self.part != Some(part) {
            self.think(part, whole, out);
        }
    }

    fn cite(&mut self, index: u64, raw: &RawValue, out: &mut Assembler) -> Result<(), Malformed> {
        let message = self.open(index, out);
        self.item(index).cited = true;
        let source = Object::from_raw(raw)?;
        // Sometimes the citation stands in a member that is named after its type.
        let inner = source.object(&source.text("type"));
        let text = |keys: &[&str]| {
            keys.iter()
                .flat_map(|key| [source.text(key), inner.text(key)])
                .find(|text| !text.is_empty())
                .map(|text| Text::from(&*text))
        };
        out.citation(Citation {
            message_id: out.message_id(message),
            url: text(&["url"]),
            title: text(&["title", "filename"]),
            text: text(&["quote"]),
            start: source.count("start_index").or(inner.count("start_index")),
            end: source.count("end_index").or(inner.count("end_index")),
            raw: Some(Json::from_raw(raw)?),
        });
        Ok(())
    }
}

/// Beginnings of the kinds that say how far the provider's own tools have come: known, and without a word of ours.
const KNOWN: &[&str] = &[
    "web_search_call.",
    "file_search_call.",
    "code_interpreter_call",
    "image_generation_call.",
    "mcp_",
    "shell_call_",
    "apply_patch_call_",
    "audio.",
    "rate_limits",
];
/// Members of an item that say which call it is.
const CALL: &[&str] = &["type", "id", "call_id", "name", "status"];
/// Members that hold a call's whole arguments.
const ARGUMENTS: &[&str] = &["arguments", "input", "action", "operation"];
/// Members that are arguments, one by one.
const MORE_ARGUMENTS: &[&str] = &["code", "queries", "prompt", "revised_prompt"];
/// Members that hold what a call gave.
const RESULTS: &[&str] = &["error", "output", "outputs", "results", "result"];
/// Calls that are answered by an item of their own, or by the agent.
const ANSWERED_ELSEWHERE: &[&str] = &[
    "function_call",
    "custom_tool_call",
    "shell_call",
    "local_shell_call",
    "apply_patch_call",
    "computer_call",
    "program",
    "tool_search_call",
];

/// The name and the kind of the call that an item is, if it is one.
fn tool<'a>(kind: &'a str, item: &Object<'a>) -> Option<(Cow<'a, str>, Kind)> {
    let (name, kind) = match kind {
        "function_call" | "custom_tool_call" => return Some((item.text("name"), Kind::Client)),
        "mcp_call" => return Some((item.text("name"), Kind::Mcp)),
        "shell_call" => ("shell", Kind::Command),
        "local_shell_call" => ("local_shell", Kind::Command),
        "apply_patch_call" => ("apply_patch", Kind::FileChange),
        "computer_call" => ("computer", Kind::Client),
        "program" => ("program", Kind::Server),
        // web_search_call, file_search_call, code_interpreter_call, … and those yet to come
        kind => (kind.strip_suffix("_call")?, Kind::Server),
    };
    Some((name.into(), kind))
}

fn call_id<'a>(item: &Object<'a>) -> Cow<'a, str> {
    let id = item.text("call_id");
    if id.is_empty() { item.text("id") } else { id }
}

/// A call's arguments as the item's end says them; empty where it says none.
fn arguments<'a>(item: &Object<'a>) -> Cow<'a, str> {
    if let Some(raw) = ARGUMENTS.iter().find_map(|key| item.raw(key)) {
        return text_of(raw);
    }
    let mut out = vec![b'{'];
    for key in MORE_ARGUMENTS {
        if let Some(raw) = item.raw(key) {
            if out.len() > 1 {
                out.push(b',');
            }
            write_str(&mut out, key);
            out.push(b':');
            out.extend_from_slice(raw.get().as_bytes());
        }
    }
    out.push(b'}');
    if out.len() == 2 { Cow::Borrowed("") } else { String::from_utf8(out).unwrap_or_default().into() }
}

fn tool_result(call: &str, output: Option<&RawValue>, item: &Object<'_>, out: &mut Assembler) -> Result<(), Malformed> {
    let failed = item.raw("error").is_some() || item.text("status") == "failed";
    let output = output.map(Json::from_raw).transpose()?;
    out.tool_result(call, None, output, failed, if failed { "failed" } else { "completed" });
    Ok(())
}

fn finish_reason(status: &str, detail: &str) -> FinishReason {
    match (status, detail) {
        ("completed", _) => FinishReason::Stop, // the assembler knows whether it waits for tools
        ("incomplete", "max_output_tokens" | "max_tokens") => FinishReason::Length,
        ("incomplete", "content_filter") => FinishReason::ContentFilter,
        ("cancelled", _) => FinishReason::Cancelled,
        _ => FinishReason::Unknown,
    }
}

fn counts(usage: &Object<'_>) -> UsageCounts {
    let (input, output) = (usage.object("input_tokens_details"), usage.object("output_tokens_details"));
    UsageCounts {
        input: usage.count("input_tokens"),
        output: usage.count("output_tokens"),
        total: usage.count("total_tokens"),
        cache_read: input.count("cached_tokens"),
        cache_write: input.count("cache_write_tokens"),
        reasoning: output.count("reasoning_tokens"),
        audio_input: input.count("audio_tokens"),
        audio_output: output.count("audio_tokens"),
    }
}
