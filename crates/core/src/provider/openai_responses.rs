//! The Responses API of OpenAI and those who speak it: streamed events, whole `response` bodies, error bodies.
//!
//! Owns what output items, their parts and a response's status mean. Knows nothing of framing.
//! Invariants: 1. items are told apart by `output_index` alone, since ids rotate; 2. each message item is a message of
//! its own, with the reasoning before it and the calls after it; 3. what only an item's end or the response's end says
//! is said then, and never twice; 4. an `error` and the `response.failed` after it are one error.
//!
//! Format: <https://platform.openai.com/docs/api-reference/responses-streaming>

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write as _;

use serde_json::value::RawValue;

use super::lax::{Count, Word, object, text_of};
use super::wire::{Object, pass, unknown};
use super::{Assembler, Likeness, Malformed, Piece, Provider, UsageCounts, fault};
use crate::event::json::write_str;
use crate::event::{Citation, File, FinishReason, Id, Json, Kind, Text};
use crate::frame::Frame;

object! {
    /// What a delta needs, in one pass without a copy.
    Head<'a> {
        kind: Word<'a> = "type",
        output_index: Count = "output_index",
        summary_index: Count = "summary_index",
        content_index: Count = "content_index",
        delta: Word<'a> = "delta",
    } skip { "item_id" "sequence_number" "obfuscation" }
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
    let kind = if kind.is_empty() { frame.event } else { &*kind };
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
#[allow(clippy::struct_excessive_bools, reason = "four facts that do not depend on each other")]
struct Item {
    /// The assembler's key of the message it belongs to.
    message: u64,
    /// The call whose output it is.
    answers: Option<Id>,
    done: bool,
    /// The content part whose text comes, and where in the message's text it begins.
    part: Option<(u64, usize)>,
    /// Some of its reasoning, its refusal, its citations have gone out already.
    thought: bool,
    refused: bool,
    cited: bool,
    /// The arguments that its call began with.
    input: Box<str>,
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
    items: BTreeMap<u64, Item>,
    /// The item that the last event was about: what an event without an index belongs to.
    last: u64,
    /// The ids of the items that are done.
    done: HashSet<Box<str>>,
    /// The parts of reasoning that have been said, numbered; the one that is being said, and where it begins.
    parts: HashMap<Part, u64>,
    part: Option<(Part, usize)>,
    /// The call that an output without an id answers.
    last_call: Box<str>,
    /// Calls that the agent has to run, and that nobody has answered.
    waiting: HashSet<Box<str>>,
    /// The types of the tools that the request offered, where the response says them.
    offered: HashSet<Box<str>>,
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
        let index = head.output_index.0.unwrap_or(self.last);
        self.last = index;
        // A body without a type has its name before it, if anywhere.
        let kind = if head.kind.is_empty() { frame.event } else { head.kind.as_str() };
        let kind = kind.strip_prefix("response.").unwrap_or(kind);
        let piece = match kind {
            "output_text.delta" => {
                let message = self.open(index, out);
                self.part_begins(index, head.content_index.0.unwrap_or(0), out);
                out.text(message, head.delta.as_str());
                Some(Piece::Text(message))
            }
            "reasoning_summary_text.delta" => {
                self.think(head.part(index, true), head.delta.as_str(), out);
                None
            }
            "reasoning_text.delta" => {
                self.think(head.part(index, false), head.delta.as_str(), out);
                None
            }
            "refusal.delta" => {
                let message = self.open(index, out);
                self.item(index).refused = true;
                out.refusal(message, head.delta.as_str());
                None
            }
            "function_call_arguments.delta" | "mcp_call_arguments.delta" | "custom_tool_call_input.delta" => {
                if !head.delta.is_empty() {
                    out.arguments(index, head.delta.as_str());
                }
                Some(Piece::Arguments(index))
            }
            _ => return self.seldom(kind, index, &head, frame, out),
        };
        if let (Some(piece), Some(Cow::Borrowed(text)), true) = (piece, &head.delta.0, head.others.is_empty()) {
            out.echo(piece, text);
        }
        // Probabilities, for one.
        head.others.iter().try_for_each(|(name, raw)| pass(name, raw, out))
    }

    fn noise(&self) -> &'static [&'static str] {
        &["sequence_number", "obfuscation"]
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
            "completed" | "incomplete" | "failed" | "cancelled" | "done" => {
                // Members beside the response: what a gateway counts, for one.
                let passed = event.pass_others(&["type", "response", "sequence_number"], out);
                let response = event.object("response");
                let status = if kind == "done" { response.text("status") } else { kind.into() };
                self.end(&status, &response, out).and(passed)
            }
            "output_item.added" => {
                let item = event.object("item");
                // Some servers number all their items alike: one after another that is done is another.
                if self.items.get(&index).is_some_and(|known| known.done) && !self.done.contains(&*item.text("id")) {
                    self.items.remove(&index);
                }
                self.item_added(index, &item, out)
            }
            "output_item.done" => match event.raw("item") {
                Some(item) => self.item_done(index, item, out),
                None => Err(Malformed("output_item.done without an item".into())),
            },
            "output_text.done" => {
                let message = self.open(index, out);
                let start = self.part_begins(index, head.content_index.0.unwrap_or(0), out);
                // Where it contradicts the pieces, the item's end will say so too.
                if let Some(missing) = event.text("text").strip_prefix(out.text_so_far(message).get(start..).unwrap_or_default())
                {
                    out.text(message, missing);
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
            // Code is shown while it is written, as the one argument of its call.
            "code_interpreter_call_code.delta" => {
                let start = if out.arguments_so_far(index).is_empty() { "{\"code\":\"" } else { "" };
                out.arguments(index, &format!("{start}{}", escaped(head.delta.as_str())));
                Ok(())
            }
            // Commands likewise, as the first argument of theirs; the item's end says the rest.
            "shell_call_command.added" => {
                let start = if out.arguments_so_far(index).is_empty() { "{\"commands\":[\"" } else { ",\"" };
                out.arguments(index, &format!("{start}{}", escaped(&event.text("command"))));
                Ok(())
            }
            "shell_call_command.delta" => {
                out.arguments(index, &escaped(head.delta.as_str()));
                Ok(())
            }
            "shell_call_command.done" => {
                out.arguments(index, "\"");
                Ok(())
            }
            "shell_call_output_content.delta" => {
                let printed = event.object("delta");
                if let Some(call) = self.item(index).answers.clone() {
                    out.tool_output(&call, &printed.text("stdout"));
                    out.tool_output(&call, &printed.text("stderr"));
                }
                Ok(())
            }
            "code_interpreter_call_code.done" => {
                out.arguments_whole(index, &arguments(&event));
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
            "content_part.added"
            | "content_part.done"
            | "reasoning_part.added"
            | "reasoning_part.done"
            | "reasoning_summary_part.added"
            | "reasoning_summary_part.done"
            | "shell_call_output_content.done"
            | "keepalive" => Ok(()),
            _ if head.kind.is_empty() && &*event.text("object") == "response" => {
                self.start(&event, out);
                let status = event.text("status");
                self.end(if status.is_empty() { "completed" } else { &status }, &event, out)
            }
            _ if kind == "error" || frame.event == "error" || (head.kind.is_empty() && event.raw("error").is_some()) => {
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
        let tools = response.list("tools").into_iter().filter_map(|raw| Object::from_raw(raw).ok());
        self.offered.extend(tools.map(|tool| tool.text("type").into()));
        out.model(&response.text("model"));
        out.round_start();
    }

    /// Whether the server runs a tool itself that looks like the client's: the client offered none of its kind. So are xAI's
    /// searches of X and Perplexity's of the web.
    fn runs(&self, kind: &str) -> bool {
        let own: &[&str] = match kind {
            "function_call" => &["function", "custom", "namespace", "tool_search"],
            "custom_tool_call" => &["custom", "namespace", "tool_search"],
            _ => return false,
        };
        !self.offered.is_empty() && !own.iter().any(|kind| self.offered.contains(*kind))
    }

    fn end(&mut self, status: &str, response: &Object<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        out.model(&response.text("model"));
        for (index, item) in response.list("output").into_iter().enumerate() {
            // By index, and by id: some leave items out of the whole that they have streamed.
            let id = Object::from_raw(item)?.text("id");
            let known = self.items.get(&(index as u64)).is_some_and(|seen| seen.done) || self.done.contains(&*id);
            if !known {
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
            let reason = finish_reason(status, &response.object("incomplete_details").text("reason"));
            for key in self.first..=self.message {
                let waits = key == self.message && reason == FinishReason::Stop && !self.waiting.is_empty();
                out.finish_reason(key, if waits { FinishReason::ToolCalls } else { reason }, status);
            }
        }
        let passed = response.pass_others(&[RESPONSE, REQUEST].concat(), out);
        out.mark_ended();
        out.round_end();
        self.message += 1;
        *self = Self { first: self.message, message: self.message, ..Self::default() };
        passed
    }

    /// The item at `index`, put into the current message if it is new.
    fn item(&mut self, index: u64) -> &mut Item {
        self.items.entry(index).or_insert_with(|| Item { message: self.message, ..Item::default() })
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
        if self.items.contains_key(&index) {
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
                if let Some((name, mut of)) = tool(kind, item) {
                    if self.runs(kind) {
                        of = Kind::Server;
                    }
                    let message = self.open(index, out);
                    let id = call_id(item);
                    self.last_call = (*id).into();
                    out.call(index, message, &id, &name, of);
                    if let Some(input) = item.raw("arguments") {
                        self.item(index).input = text_of(input).into();
                    }
                    if kind == "custom_tool_call" && of == Kind::Client {
                        out.arguments_are_text(index);
                    }
                } else if kind.ends_with("_output") {
                    self.item(index).answers = Some((*item.text("call_id")).into());
                }
                Ok(())
            }
        }
    }

    fn item_done(&mut self, index: u64, raw: &RawValue, out: &mut Assembler) -> Result<(), Malformed> {
        let item = Object::from_raw(raw)?;
        self.item_added(index, &item, out)?;
        if std::mem::replace(&mut self.item(index).done, true) {
            return Ok(());
        }
        let id = item.text("id");
        if !id.is_empty() {
            self.done.insert(id.into());
        }
        let kind = item.text("type");
        match &*kind {
            "message" => self.message_done(index, &item, out),
            "reasoning" => self.reasoning_done(index, &item, out),
            "image_generation_call" => {
                call_done(index, &item, out)?;
                self.image(index, &item, out);
                Ok(())
            }
            kind if tool(kind, &item).is_some() => {
                if WAITING.contains(&kind) {
                    self.waiting.insert(call_id(&item).into());
                }
                call_done(index, &item, out)?;
                if self.runs(kind) { tool_result(&call_id(&item), None, &item, out) } else { Ok(()) }
            }
            kind if kind.ends_with("_output") => {
                let id = item.text("call_id");
                let call = if id.is_empty() { &*self.last_call } else { &*id };
                self.waiting.remove(call);
                let output = ["output", "result", "tools"].iter().find_map(|key| item.raw(key));
                tool_result(call, output, &item, out)
            }
            // What a call found takes the call's place.
            kind => {
                if out.arguments_so_far(index).is_empty() {
                    let input = std::mem::take(&mut self.item(index).input);
                    out.arguments_whole(index, &input);
                }
                match out.call_end(index) {
                    Some(call) => tool_result(&call, Some(raw), &item, out),
                    None => pass(if kind.is_empty() { "output_item" } else { kind }, raw, out),
                }
            }
        }
    }

    fn message_done(&mut self, index: u64, item: &Object<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        let message = self.open(index, out);
        let content = item.list("content");
        let (mut text, mut refusal) = (String::new(), String::new());
        let mut annotations = Vec::new();
        for raw in &content {
            let part = Object::from_raw(raw)?;
            if part.raw("text").is_none() && part.raw("refusal").is_none() {
                pass("content_part", raw, out)?;
            }
            text.push_str(&part.text("text"));
            refusal.push_str(&part.text("refusal"));
            annotations.extend(part.list("annotations"));
        }
        // An item that ends without content was cut short by whoever recorded or proxied it; the deltas stand.
        if !text.is_empty() {
            out.text_whole(message, &text);
        }
        self.refuse(index, &refusal, out);
        out.seal(message);
        if !self.item(index).cited {
            for annotation in annotations {
                self.cite(index, annotation, out)?;
            }
        }
        item.pass_others_of(("item_id", &item.text("id")), &["type", "id", "role", "status", "content", "phase"], out)
    }

    fn reasoning_done(&mut self, index: u64, item: &Object<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        if !self.item(index).thought {
            for (summary, key) in [(true, "summary"), (false, "content")] {
                for (part, raw) in item.list(key).into_iter().enumerate() {
                    self.think((index, summary, part as u64), &Object::from_raw(raw)?.text("text"), out);
                }
            }
        }
        // Whoever keeps the conversation itself must send back what is encrypted.
        item.pass_others_of(("item_id", &item.text("id")), &["type", "id", "summary", "content", "status"], out)
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
        let number = self.parts.len() as u64;
        let number = *self.parts.entry(part).or_insert(number);
        if self.part.is_none_or(|(current, _)| current != part) {
            out.reasoning_part(message, number);
            self.part = Some((part, out.reasoning_so_far(message).len()));
        }
        out.reasoning(message, Some(number), piece);
    }

    /// A part's whole text: news only what its pieces left out.
    fn think_whole(&mut self, part: Part, whole: &str, out: &mut Assembler) {
        match self.part {
            Some((current, start)) if current == part => {
                let so_far = out.reasoning_so_far(self.item(part.0).message).get(start..).unwrap_or_default();
                let missing = whole.strip_prefix(so_far).unwrap_or_default();
                self.think(part, missing, out);
            }
            _ if self.parts.contains_key(&part) => {}
            _ => self.think(part, whole, out),
        }
    }

    /// Where the text of a content part begins in its message's text.
    fn part_begins(&mut self, index: u64, part: u64, out: &Assembler) -> usize {
        let item = self.item(index);
        match item.part {
            Some((current, start)) if current == part => start,
            _ => {
                let start = out.text_so_far(item.message).len();
                item.part = Some((part, start));
                start
            }
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
    "code_interpreter_call.",
    "image_generation_call.",
    "mcp_",
    "shell_call_",
    "apply_patch_call_",
    "audio.",
    "rate_limits",
    // What Perplexity's agents look for, and find.
    "reasoning.",
];
/// Members of a response that are read.
const RESPONSE: &[&str] =
    &["id", "object", "created_at", "completed_at", "status", "model", "output", "output_text", "error", "usage"];
/// Members of a response that say the request again: no answer, and not for everybody who reads the answer.
const REQUEST: &[&str] = &[
    "background",
    "conversation",
    "frequency_penalty",
    "include",
    "input",
    "instructions",
    "max_output_tokens",
    "max_tool_calls",
    "metadata",
    "modalities",
    "parallel_tool_calls",
    "presence_penalty",
    "previous_response_id",
    "prompt",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "reasoning",
    "safety_identifier",
    "store",
    "stream",
    "stream_options",
    "temperature",
    "text",
    "tool_choice",
    "tools",
    "top_k",
    "top_logprobs",
    "top_p",
    "truncation",
    "user",
    "verbosity",
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

/// Those among them that wait for the agent and are no client's calls by their kind, unless their output follows.
const WAITING: &[&str] = &["shell_call", "local_shell_call", "apply_patch_call", "tool_search_call"];

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

/// `text` as it stands inside a JSON string.
fn escaped(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len() + 16);
    write_str(&mut out, text);
    out.pop();
    String::from_utf8(out.split_off(1)).unwrap_or_default()
}

fn call_id<'a>(item: &Object<'a>) -> Cow<'a, str> {
    let id = item.text("call_id");
    if id.is_empty() { item.text("id") } else { id }
}

/// A call's item is whole.
fn call_done(index: u64, item: &Object<'_>, out: &mut Assembler) -> Result<(), Malformed> {
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

/// A call's arguments as the item's end says them; empty where it says none.
fn arguments<'a>(item: &Object<'a>) -> Cow<'a, str> {
    if let Some(raw) = ARGUMENTS.iter().find_map(|key| item.raw(key)) {
        return if &*item.text("type") == "shell_call" { commands(raw).into() } else { text_of(raw) };
    }
    let mut out = vec![b'{'];
    for key in MORE_ARGUMENTS {
        if let Some(raw) = item.raw(key) {
            if out.len() > 1 {
                out.push(b',');
            }
            write_str(&mut out, key);
            out.push(b':');
            // Written anew: equal to what the deltas made of it, however the provider escapes.
            if raw.get().starts_with('"') {
                write_str(&mut out, &text_of(raw));
            } else {
                out.extend_from_slice(raw.get().as_bytes());
            }
        }
    }
    out.push(b'}');
    if out.len() == 2 { Cow::Borrowed("") } else { String::from_utf8(out).unwrap_or_default().into() }
}

/// The arguments of a shell call as its deltas begin them, however the provider spells them: first the commands.
fn commands(raw: &RawValue) -> String {
    let Ok(action) = Object::from_raw(raw) else { return text_of(raw).into_owned() };
    let mut out = b"{\"commands\":[".to_vec();
    for (at, command) in action.list("commands").into_iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        write_str(&mut out, &text_of(command));
    }
    out.push(b']');
    for (key, raw) in action.members().filter(|(key, _)| *key != "commands") {
        out.push(b',');
        write_str(&mut out, key);
        out.push(b':');
        out.extend_from_slice(raw.get().as_bytes());
    }
    out.push(b'}');
    String::from_utf8(out).unwrap_or_default()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Payload;
    use crate::provider::testing::{all, call, message, read_as, said as arguments_of};

    const CREATED: &str =
        r#"{"type":"response.created","response":{"id":"resp_1","model":"m-1","status":"in_progress","output":[]}}"#;

    fn event(kind: &str, rest: &str) -> String {
        format!(r#"{{"type":"response.{kind}",{rest}}}"#)
    }

    fn added(index: u64, item: &str) -> String {
        event("output_item.added", &format!(r#""output_index":{index},"item":{item}"#))
    }

    fn done(index: u64, item: &str) -> String {
        event("output_item.done", &format!(r#""output_index":{index},"item":{item}"#))
    }

    fn text(index: u64, delta: &str) -> String {
        event("output_text.delta", &format!(r#""output_index":{index},"content_index":0,"delta":"{delta}""#))
    }

    fn completed(output: &str) -> String {
        event(
            "completed",
            &format!(
                r#""response":{{"id":"resp_1","status":"completed","output":[{output}],"usage":{{"input_tokens":10,"input_tokens_details":{{"cached_tokens":4}},"output_tokens":6,"output_tokens_details":{{"reasoning_tokens":2}},"total_tokens":16}}}}"#
            ),
        )
    }

    const MESSAGE: &str = r#"{"id":"msg_1","type":"message","role":"assistant","content":[]}"#;

    fn said(text: &str) -> String {
        format!(
            r#"{{"id":"msg_1","type":"message","role":"assistant","content":[{{"type":"output_text","text":"{text}","annotations":[]}}]}}"#
        )
    }

    const CALL: &str = r#"{"id":"fc_1","type":"function_call","call_id":"call_1","name":"add","arguments":""}"#;

    fn called(arguments: &str) -> String {
        format!(
            r#"{{"id":"fc_1","type":"function_call","call_id":"call_1","name":"add","arguments":{:?}}}"#,
            Json::string(arguments)
        )
    }

    fn read<S: AsRef<str>>(frames: &[S]) -> Vec<Payload> {
        read_as("openai-responses", frames)
    }

    #[test]
    fn text_and_usage() {
        let events = read(&[
            CREATED,
            &added(0, MESSAGE),
            &text(0, "Hel"),
            &text(0, "lo"),
            &done(0, &said("Hello")),
            &completed(&said("Hello")),
        ]);
        assert_eq!((&*message(&events).text, &*message(&events).message_id), ("Hello", "resp_1"));
        assert_eq!(
            (message(&events).finish_reason, message(&events).finish_reason_raw.as_deref()),
            (FinishReason::Stop, Some("completed"))
        );
        assert_eq!(all!(events, TextDelta).len(), 2);
        let usage = all!(events, Usage)[0];
        assert_eq!((usage.input_tokens, usage.cache_read_tokens, usage.output_tokens), (Some(10), Some(4), Some(6)));
        assert_eq!((usage.reasoning_tokens, usage.total_tokens), (Some(2), Some(16)));
        assert!(all!(events, Error).is_empty());
    }

    #[test]
    fn r1_an_error_and_the_failure_after_it_are_one_error() {
        let error =
            r#"{"type":"error","sequence_number":2,"error":{"type":"server_error","code":"server_error","message":"Down."}}"#;
        let failed =
            event("failed", r#""response":{"id":"resp_1","status":"failed","error":{"code":"server_error","message":"Down."}}"#);
        for frames in [vec![CREATED, error, &failed], vec![CREATED, &failed]] {
            let events = read(&frames);
            let errors = all!(events, Error);
            assert_eq!(
                (errors.len(), &*errors[0].code, &*errors[0].message, errors[0].retryable),
                (1, "server_error", "Down.", true)
            );
            assert_eq!(all!(events, RoundEnd)[0].finish_reason, Some(FinishReason::Error));
        }
        let flat = r#"{"type":"error","code":"rate_limit_exceeded","message":"Slow down.","param":null,"sequence_number":1}"#;
        assert_eq!(&*all!(read(&[CREATED, flat]), Error)[0].code, "rate_limit_exceeded");
    }

    #[test]
    fn r2_incomplete_says_why() {
        for (reason, word) in [("max_output_tokens", FinishReason::Length), ("content_filter", FinishReason::ContentFilter)] {
            let end = event(
                "incomplete",
                &format!(r#""response":{{"id":"resp_1","status":"incomplete","incomplete_details":{{"reason":"{reason}"}}}}"#),
            );
            let events = read(&[CREATED, &added(0, MESSAGE), &text(0, "Half"), &end]);
            assert_eq!(
                (message(&events).finish_reason, message(&events).finish_reason_raw.as_deref()),
                (word, Some("incomplete"))
            );
            assert!(all!(events, Error).is_empty());
        }
    }

    #[test]
    fn r3_ids_that_change_on_every_event_do_not_matter() {
        let rotated = MESSAGE.replace("msg_1", "msg_2");
        let delta = |id: &str| text(0, "a").replace(r#""delta""#, &format!(r#""item_id":"{id}","delta""#));
        let last = said("aa").replace("msg_1", "msg_3");
        let whole = said("aa").replace("msg_1", "msg_4");
        let events = read(&[CREATED, &added(0, &rotated), &delta("x"), &delta("y"), &done(0, &last), &completed(&whole)]);
        assert_eq!(message(&events).text, "aa");
    }

    #[test]
    fn r4_a_resumed_stream_has_no_created() {
        let queued = CREATED.replace("created", "queued");
        let events = read(&[&*queued, &added(0, MESSAGE), &text(0, "a"), &completed("")]);
        assert_eq!(&*message(&events).message_id, "resp_1");
        let torn = read(&[text(0, "b"), completed("")]);
        assert_eq!(message(&torn).text, "b");
    }

    #[test]
    fn r5_items_overlap_and_some_never_end() {
        let list = r#"{"id":"mcpl_1","type":"mcp_list_tools","server_label":"s","tools":[]}"#;
        let events =
            read(&[CREATED, &added(0, list), &added(1, CALL), &added(2, MESSAGE), &text(2, "a"), &done(0, list), &completed("")]);
        assert_eq!(message(&events).text, "a");
        assert_eq!(arguments_of(call(&events)), Some("{}"));
        assert_eq!(all!(events, ProviderEvent)[0].name, "mcp_list_tools");
    }

    #[test]
    fn r6_arguments_only_at_the_end() {
        let whole = event("function_call_arguments.done", r#""output_index":0,"arguments":"{\"a\":1}""#);
        for frames in [vec![added(0, CALL), whole], vec![added(0, CALL), done(0, &called(r#"{"a":1}"#))], vec![]] {
            let mut frames = [vec![CREATED.to_owned()], frames].concat();
            frames.push(completed(&called(r#"{"a":1}"#)));
            let events = read(&frames);
            assert_eq!(arguments_of(call(&events)), Some(r#"{"a":1}"#));
            assert_eq!(all!(events, ToolCallDelta).len(), 1);
            assert_eq!(message(&events).finish_reason, FinishReason::ToolCalls);
        }
    }

    #[test]
    fn edge_01_02_03_text_only_at_the_end_longer_or_other() {
        for (deltas, whole, sent, resets) in [(vec![], "Hello", 1, 0), (vec!["Hel"], "Hello", 2, 0), (vec!["Bye"], "Hello", 2, 1)]
        {
            let mut frames = vec![CREATED.to_owned(), added(0, MESSAGE)];
            frames.extend(deltas.iter().map(|delta| text(0, delta)));
            frames.extend([done(0, &said(whole)), completed(&said(whole))]);
            let events = read(&frames);
            assert_eq!(message(&events).text, "Hello");
            assert_eq!((all!(events, TextDelta).len(), all!(events, MessageReset).len()), (sent, resets));
        }
    }

    #[test]
    fn r8_encrypted_reasoning_passes_and_is_not_shown() {
        let item = r#"{"id":"rs_1","type":"reasoning","summary":[],"encrypted_content":"xyz"}"#;
        let events = read(&[CREATED, &done(0, item), &added(1, MESSAGE), &text(1, "a"), &completed("")]);
        assert_eq!((&*message(&events).reasoning, &*message(&events).text), ("", "a"));
        assert_eq!(
            all!(events, ProviderEvent)[0].data.as_ref().unwrap().as_str(),
            r#"{"item_id":"rs_1","encrypted_content":"xyz"}"#
        );
    }

    #[test]
    fn r9_summary_parts_are_separated_and_not_said_twice() {
        let item = r#"{"id":"rs_1","type":"reasoning","summary":[{"type":"summary_text","text":"One."},{"type":"summary_text","text":"Two."}]}"#;
        let piece = |part: u64, text: &str| {
            event("reasoning_summary_text.delta", &format!(r#""output_index":0,"summary_index":{part},"delta":"{text}""#))
        };
        let finished = event("reasoning_summary_text.done", r#""output_index":0,"summary_index":1,"text":"Two.""#);
        let streamed = vec![piece(0, "On"), piece(0, "e."), piece(1, "Two."), finished, done(0, item)];
        for frames in [streamed, vec![done(0, item)]] {
            let frames = [vec![CREATED.to_owned()], frames, vec![completed(item)]].concat();
            assert_eq!(message(&read(&frames)).reasoning, "One.\n\nTwo.");
        }
    }

    #[test]
    fn r9_raw_reasoning_is_reasoning() {
        let piece = event("reasoning_text.delta", r#""output_index":0,"content_index":0,"delta":"Hm.""#);
        let item = r#"{"id":"rs_1","type":"reasoning","summary":[],"content":[{"type":"reasoning_text","text":"Hm."}]}"#;
        assert_eq!(message(&read(&[CREATED, &piece, &done(0, item), &completed(item)])).reasoning, "Hm.");
    }

    #[test]
    fn r10_each_message_item_is_a_message() {
        let commentary = r#"{"id":"msg_1","type":"message","phase":"commentary","content":[]}"#;
        let last = r#"{"id":"msg_2","type":"message","phase":"final_answer","content":[]}"#;
        let events = read(&[
            CREATED,
            &added(0, commentary),
            &text(0, "Let me see."),
            &added(1, CALL),
            &added(2, last),
            &text(2, "Four."),
            &completed(""),
        ]);
        let messages = all!(events, AssistantMessage);
        assert_eq!(
            messages.iter().map(|message| (&*message.message_id, &*message.text)).collect::<Vec<_>>(),
            [("resp_1", "Let me see."), ("msg_2", "Four.")]
        );
        assert_eq!((messages[0].tool_calls.len(), messages[1].tool_calls.len()), (1, 0));
        assert_eq!(all!(events, ProviderEvent).iter().filter(|event| event.name == "phase").count(), 2);
    }

    #[test]
    fn r11_a_content_index_may_begin_anywhere() {
        let delta = text(0, "a").replace(r#""content_index":0"#, r#""content_index":1"#);
        assert_eq!(message(&read(&[CREATED, &added(0, MESSAGE), &delta, &completed("")])).text, "a");
    }

    #[test]
    fn r13_a_server_tool_is_a_call_and_its_result() {
        let start = r#"{"id":"ws_1","type":"web_search_call","status":"in_progress"}"#;
        let end = r#"{"id":"ws_1","type":"web_search_call","status":"completed","action":{"type":"search","query":"q"}}"#;
        let searching = event("web_search_call.searching", r#""output_index":0,"item_id":"ws_1""#);
        let events =
            read(&[CREATED, &added(0, start), &searching, &done(0, end), &added(1, MESSAGE), &text(1, "a"), &completed("")]);
        let call = call(&events);
        assert_eq!((call.kind, &*call.name, &*call.call_id), (Kind::Server, "web_search", "ws_1"));
        assert_eq!(arguments_of(call), Some(r#"{"type":"search","query":"q"}"#));
        assert_eq!((&*all!(events, ToolResult)[0].call_id, all!(events, ToolResult)[0].is_error), ("ws_1", false));
        assert!(message(&events).tool_calls.is_empty());
        assert_eq!(message(&events).finish_reason, FinishReason::Stop);
    }

    #[test]
    fn r13_an_mcp_call_that_failed() {
        let item = r#"{"id":"mcp_1","type":"mcp_call","name":"ask","server_label":"wiki","arguments":"{\"q\":1}","output":null,"error":{"message":"no"},"status":"failed"}"#;
        let events = read(&[CREATED, &done(0, item), &completed("")]);
        assert_eq!((call(&events).kind, arguments_of(call(&events))), (Kind::Mcp, Some(r#"{"q":1}"#)));
        assert!(all!(events, ToolResult)[0].is_error);
    }

    #[test]
    fn r13_code_is_shown_while_it_is_written() {
        let start = r#"{"id":"ci_1","type":"code_interpreter_call","status":"in_progress","code":"","outputs":null}"#;
        let end = r#"{"id":"ci_1","type":"code_interpreter_call","status":"completed","code":"print(\"\u00e9\")","outputs":[{"type":"logs","logs":"é"}]}"#;
        let code = |delta: &str| event("code_interpreter_call_code.delta", &format!(r#""output_index":0,"delta":{delta}"#));
        let events =
            read(&[CREATED, &added(0, start), &code(r#""print(""#), &code(r#""\"é\")""#), &done(0, end), &completed("")]);
        assert_eq!(arguments_of(call(&events)), Some(r#"{"code":"print(\"é\")"}"#));
        let deltas: String = all!(events, ToolCallDelta).iter().map(|delta| &*delta.text).collect();
        assert_eq!(deltas, call(&events).arguments_raw);
        assert_eq!(all!(events, ToolResult)[0].output.as_ref().unwrap().as_str(), r#"[{"type":"logs","logs":"é"}]"#);
    }

    #[test]
    fn r13_a_shell_call_is_answered_by_its_own_item() {
        let shell = r#"{"id":"sh_1","type":"shell_call","call_id":"call_1","status":"completed","action":{"commands":["ls"]}}"#;
        let output =
            r#"{"id":"sho_1","type":"shell_call_output","call_id":"call_1","status":"completed","output":[{"stdout":"a"}]}"#;
        let events = read(&[CREATED, &done(0, shell), &done(1, output), &completed("")]);
        assert_eq!((call(&events).kind, &*call(&events).name), (Kind::Command, "shell"));
        assert_eq!(all!(events, ToolResult).len(), 1);
        assert_eq!(all!(events, ToolResult)[0].output.as_ref().unwrap().as_str(), r#"[{"stdout":"a"}]"#);
    }

    #[test]
    fn r13_a_shell_command_is_shown_while_it_is_written_and_what_it_prints_too() {
        let shell = |action: &str| {
            format!(r#"{{"id":"sh_1","type":"shell_call","call_id":"call_1","status":"completed","action":{action}}}"#)
        };
        let output =
            |printed: &str| format!(r#"{{"id":"o_1","type":"shell_call_output","call_id":"call_1","output":[{printed}]}}"#);
        let command =
            |kind: &str, rest: &str| event(&format!("shell_call_command.{kind}"), &format!(r#""output_index":0,{rest}"#));
        let printed = event("shell_call_output_content.delta", r#""output_index":1,"delta":{"stdout":"hi\n"}"#);
        let events = read(&[
            CREATED,
            &added(0, &shell(r#"{"commands":[]}"#)),
            &command("added", r#""command_index":0,"command":"""#),
            &command("delta", r#""command_index":0,"delta":"echo \"hi\"""#),
            &command("done", r#""command_index":0,"command":"echo \"hi\"""#),
            &command("added", r#""command_index":1,"command":"""#),
            &command("delta", r#""command_index":1,"delta":"ls""#),
            &command("done", r#""command_index":1,"command":"ls""#),
            &done(0, &shell(r#"{"commands":["echo \"hi\"","ls"],"timeout_ms":null}"#)),
            &added(1, &output("")),
            &printed,
            &done(1, &output(r#"{"stdout":"hi\n"}"#)),
            &completed(""),
        ]);
        assert_eq!(arguments_of(call(&events)), Some(r#"{"commands":["echo \"hi\"","ls"],"timeout_ms":null}"#));
        let deltas: String = all!(events, ToolCallDelta).iter().map(|delta| &*delta.text).collect();
        assert_eq!(deltas, call(&events).arguments_raw);
        assert_eq!((&*all!(events, ToolOutputDelta)[0].call_id, &*all!(events, ToolOutputDelta)[0].text), ("call_1", "hi\n"));
        assert_eq!(all!(events, ToolResult).len(), 1);
    }

    #[test]
    fn r13_the_input_of_a_custom_tool_is_text() {
        let start = r#"{"id":"ctc_1","type":"custom_tool_call","call_id":"call_1","name":"sql","input":""}"#;
        let input = event("custom_tool_call_input.delta", r#""output_index":0,"delta":"SELECT \"a\"""#);
        let end = start.replace(r#""input":"""#, r#""input":"SELECT \"a\"""#);
        let events = read(&[CREATED, &added(0, start), &input, &done(0, &end), &completed("")]);
        assert_eq!((arguments_of(call(&events)), &*call(&events).arguments_raw), (Some(r#""SELECT \"a\"""#), r#"SELECT "a""#));
        assert_eq!(call(&events).arguments_error, None);
    }

    #[test]
    fn a_tool_of_a_kind_that_nobody_offered_is_the_servers() {
        let custom = r#"{"id":"ctc_1","type":"custom_tool_call","call_id":"xs_1","name":"x_search","input":"{\"q\":1}","status":"completed"}"#;
        let function = r#"{"id":"fc_1","type":"function_call","call_id":"c_1","name":"parallel","arguments":"{}"}"#;
        let of = |item: &str, tools: &str| {
            let created = CREATED.replace(r#""output":[]"#, &format!(r#""output":[],"tools":[{tools}]"#));
            let events = read(&[&*created, &done(0, item), &completed("")]);
            (call(&events).kind, all!(events, ToolResult).len(), message(&events).finish_reason)
        };
        let client = (Kind::Client, 0, FinishReason::ToolCalls);
        assert_eq!(of(custom, r#"{"type":"x_search"},{"type":"function","name":"f"}"#), (Kind::Server, 1, FinishReason::Stop));
        for tools in [r#"{"type":"custom","name":"other"}"#, r#"{"type":"tool_search"}"#, ""] {
            assert_eq!(of(custom, tools), client, "{tools}");
        }
        // A model may call what nobody offered, where somebody offered anything.
        assert_eq!(of(function, r#"{"type":"function","name":"f"}"#), client);
    }

    #[test]
    fn what_a_call_found_may_take_its_place() {
        let created = CREATED.replace(r#""output":[]"#, r#""output":[],"tools":[{"type":"web_search"}]"#);
        let start = r#"{"id":"fc_1","type":"function_call","call_id":"c_1","name":"search_web","arguments":"{\"q\":1}","status":"completed"}"#;
        let found = r#"{"type":"search_results","queries":["q"],"results":[{"url":"http://u"}]}"#;
        let queries = event("reasoning.search_queries", r#""call_id":"c_1","queries":["q"]"#);
        let events = read(&[&*created, &added(0, start), &queries, &done(0, found), &text(1, "Hi"), &completed("")]);
        assert_eq!((call(&events).kind, arguments_of(call(&events))), (Kind::Server, Some(r#"{"q":1}"#)));
        assert_eq!(all!(events, ToolResult)[0].output.as_ref().map(Json::as_str), Some(found));
        assert_eq!((message(&events).finish_reason, &*message(&events).text), (FinishReason::Stop, "Hi"));
        assert!(all!(events, ProviderEvent).iter().any(|event| event.name == "reasoning.search_queries"));
    }

    #[test]
    fn r13_an_image_is_a_file() {
        let item = r#"{"id":"ig_1","type":"image_generation_call","status":"completed","output_format":"webp","result":"aGk=","revised_prompt":"a cat"}"#;
        let events = read(&[CREATED, &done(0, item), &completed("")]);
        let file = all!(events, File)[0];
        assert_eq!((&*file.media_type, file.data.as_deref()), ("image/webp", Some("aGk=")));
        assert_eq!(arguments_of(call(&events)), Some(r#"{"revised_prompt":"a cat"}"#));
        assert_eq!(all!(events, ToolResult)[0].output, None);
    }

    #[test]
    fn a_refusal_streams_or_comes_whole() {
        let piece = event("refusal.delta", r#""output_index":0,"delta":"No.""#);
        let item = r#"{"id":"msg_1","type":"message","content":[{"type":"refusal","refusal":"No."}]}"#;
        for frames in [vec![added(0, MESSAGE), piece, done(0, item)], vec![done(0, item)]] {
            let frames = [vec![CREATED.to_owned()], frames, vec![completed(item)]].concat();
            let events = read(&frames);
            assert_eq!(
                (message(&events).refusal.as_deref(), message(&events).finish_reason),
                (Some("No."), FinishReason::Refusal)
            );
        }
    }

    #[test]
    fn citations_come_once() {
        let note = r#"{"type":"url_citation","url":"https://a.example","title":"A","start_index":1,"end_index":3}"#;
        let item = format!(
            r#"{{"id":"msg_1","type":"message","content":[{{"type":"output_text","text":"abcd","annotations":[{note}]}}]}}"#
        );
        let live = event("output_text.annotation.added", &format!(r#""output_index":0,"annotation":{note}"#));
        for frames in [vec![added(0, MESSAGE), text(0, "abcd"), live], vec![]] {
            let frames = [vec![CREATED.to_owned()], frames, vec![done(0, &item), completed(&item)]].concat();
            let events = read(&frames);
            let citations = all!(events, Citation);
            assert_eq!(
                (citations.len(), citations[0].url.as_deref(), citations[0].start),
                (1, Some("https://a.example"), Some(1))
            );
        }
    }

    #[test]
    fn a_whole_body_is_read_like_its_stream() {
        let body = format!(
            r#"{{"id":"resp_1","object":"response","status":"completed","model":"m-1","error":null,"output":[{},{}],"usage":{{"input_tokens":1,"output_tokens":2}}}}"#,
            said("Hello"),
            called("{}")
        );
        let events = read(&[body]);
        assert_eq!(
            (&*message(&events).text, message(&events).model.as_deref(), message(&events).streamed),
            ("Hello", Some("m-1"), false)
        );
        assert_eq!((arguments_of(call(&events)), all!(events, Usage)[0].total_tokens), (Some("{}"), Some(3)));
        assert!(all!(events, Error).is_empty());
    }

    #[test]
    fn f8_done_is_an_end_and_truncation_is_none() {
        let truncated = read(&[CREATED, &added(0, MESSAGE), &text(0, "a")]);
        assert_eq!(&*all!(truncated, Error)[0].code, "stream_truncated");
        assert_eq!(message(&truncated).text, "a");
        assert!(all!(read(&[CREATED, &text(0, "a"), &completed(""), "[DONE]"]), Error).is_empty());
    }

    #[test]
    fn what_is_not_known_passes() {
        let events = read(&[
            CREATED,
            &event("hologram.delta", r#""output_index":0,"delta":{"x":1}"#),
            &done(0, r#"{"type":"compaction","id":"c"}"#),
            &completed(""),
        ]);
        let names: Vec<_> = all!(events, ProviderEvent).iter().map(|event| &*event.name).collect();
        assert_eq!(names, ["hologram.delta", "compaction"]);
    }
}
