//! OpenAI chat completions and all who speak a dialect of it (Azure, Groq, Mistral, Perplexity, xAI, vLLM, llama.cpp and
//! many more): chunks, whole bodies, and the older `text_completion`.
//!
//! Owns what the members of a `chat.completion.chunk` mean, in every place where a dialect puts them. Knows no event's
//! order: that is the assembler's. Invariants: 1. an answer's text, reasoning and calls are each taken from one place per
//! chunk, never doubled; 2. a plain text chunk allocates nothing but its one-element list and its event; 3. state is
//! bounded by what the stream holds, and each chunk costs its own size.
//! Reference: <https://platform.openai.com/docs/api-reference/chat-streaming>.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use serde_json::value::RawValue;

use super::assemble::{Assembler, UsageCounts};
use super::fault;
use super::lax::{Content, Count, List, Others, Word, is_nothing, object, text_of};
use super::wire::{Latest, Object};
use super::{Malformed, Piece, Provider};
use crate::event::{Citation, File, FinishReason, Id, Json, Kind};
use crate::frame::Frame;

/// Most answers to one request. The API's own limit is 128.
const MAX_CHOICES: u64 = 1024;

// A text chunk is moved through several returns on its way up: what is rare has no field here, and comes in `others`.
/// Members of chunks and choices that come in `others` and have their own reading.
const READ_ELSEWHERE: [&str; 10] = [
    "x_groq",
    "citations",
    "search_results",
    "message",
    "text",
    "usage",
    "error",
    "logprobs",
    "content_filter_results",
    "content_filter_result",
];

/// Members of deltas that do likewise.
const CONTENT_ELSEWHERE: [&str; 6] = ["reasoning_details", "function_call", "annotations", "images", "executed_tools", "audio"];

object! {
    Chunk<'a> {
        id: Word<'a> = "id",
        model: Word<'a> = "model",
        choices: List<Choice<'a>> = "choices",
        usage: Option<&'a RawValue> = "usage",
        error: Option<&'a RawValue> = "error",
    } skip { "object" "created" "obfuscation" "p" }
}

object! {
    Choice<'a> {
        index: Count = "index",
        delta: Delta<'a> = "delta",
        finish_reason: Word<'a> = "finish_reason",
    } skip { }
}

object! {
    Delta<'a> {
        content: Content<'a> = "content",
        refusal: Word<'a> = "refusal",
        reasoning: Word<'a> = "reasoning",
        reasoning_content: Word<'a> = "reasoning_content" | "reasoning_text" | "thinking",
        tool_calls: List<Call<'a>> = "tool_calls",
    // A token's number beside its text says nothing new.
    } skip { "role" "index" "token_id" }
}

object! {
    /// A chunk without choices, looked at again.
    Odd<'a> {
        kind: Word<'a> = "type",
        object: Word<'a> = "object",
        code: Word<'a> = "code",
        message: Option<&'a RawValue> = "message" | "Message",
        detail: Option<&'a RawValue> = "detail",
        errors: List<&'a RawValue> = "errors",
    } skip { }
}

object! {
    Call<'a> {
        index: Count = "index",
        id: Word<'a> = "id",
        function: Function<'a> = "function",
        custom: Function<'a> = "custom",
    } skip { "type" }
}

object! {
    Function<'a> {
        name: Word<'a> = "name",
        arguments: Option<&'a RawValue> = "arguments" | "input",
    } skip { }
}

object! {
    Groq<'a> {
        usage: Option<&'a RawValue> = "usage",
        error: Option<&'a RawValue> = "error",
    } skip { }
}

object! {
    Tokens<'a> {
        input: Count = "prompt_tokens" | "input_tokens",
        output: Count = "completion_tokens" | "output_tokens",
        total: Count = "total_tokens",
        cached: Count = "cached_tokens" | "prompt_cache_hit_tokens" | "cache_read_input_tokens",
        written: Count = "cache_creation_input_tokens" | "cache_write_tokens",
        reasoning: Count = "reasoning_tokens",
        of_input: TokenParts<'a> = "prompt_tokens_details" | "input_tokens_details",
        of_output: TokenParts<'a> = "completion_tokens_details" | "output_tokens_details",
    } skip { }
}

object! {
    TokenParts<'a> {
        cached: Count = "cached_tokens",
        written: Count = "cache_write_tokens" | "cache_creation_tokens",
        reasoning: Count = "reasoning_tokens",
        audio: Count = "audio_tokens",
    } skip { }
}

object! {
    Detail<'a> {
        text: Word<'a> = "text",
        summary: Word<'a> = "summary",
        data: Word<'a> = "data",
        signature: Word<'a> = "signature",
    } skip { }
}

object! {
    Part<'a> {
        kind: Word<'a> = "type",
        text: Content<'a> = "text" | "output_text",
        thinking: Content<'a> = "thinking" | "reasoning" | "summary",
        refusal: Word<'a> = "refusal",
    // Whether it is the last of its kind.
    } skip { "closed" }
}

object! {
    Source<'a> {
        nested: Option<&'a RawValue> = "url_citation" | "file_citation",
        url: Word<'a> = "url",
        title: Word<'a> = "title" | "filename",
        text: Word<'a> = "content" | "snippet" | "quote" | "cited_text",
        start: Count = "start_index",
        end: Count = "end_index",
    } skip { }
}

object! {
    Image<'a> {
        nested: Option<&'a RawValue> = "image_url" | "image",
        url: Word<'a> = "url",
        base64: Word<'a> = "b64_json" | "data",
        media_type: Word<'a> = "media_type" | "mime_type",
    } skip { }
}

object! {
    ExecutedTool<'a> {
        index: Count = "index",
        kind: Word<'a> = "name" | "type",
        arguments: Option<&'a RawValue> = "arguments",
        output: Option<&'a RawValue> = "output",
    } skip { }
}

object! {
    Probe<'a> {
        choices: List<serde::de::IgnoredAny> = "choices",
        object: Word<'a> = "object",
        error: Option<&'a RawValue> = "error",
        candidates: Option<&'a RawValue> = "candidates",
        kind: Word<'a> = "type",
    } skip { }
}

/// How surely a frame is of this format.
pub(super) fn recognise(frame: &Frame<'_>) -> super::Likeness {
    let Ok(text) = std::str::from_utf8(frame.data) else { return super::Likeness::No };
    let Ok(probe) = serde_json::from_str::<Probe<'_>>(text) else { return super::Likeness::No };
    if probe.choices.here || probe.object.as_str().starts_with("chat.completion") {
        super::Likeness::Yes
    } else if probe.error.is_some() && probe.kind.is_empty() && probe.candidates.is_none() {
        super::Likeness::Maybe
    } else {
        super::Likeness::No
    }
}

/// What is remembered of one answer.
#[derive(Default)]
struct Answer {
    /// The call that each `index` stands for now.
    calls: HashMap<u64, Slot>,
    /// The call that each id stands for, where calls have no index.
    call_ids: HashMap<Box<str>, u64>,
    last_call: Option<u64>,
    legacy_call: Option<u64>,
    /// Reasoning has come as plain text: its copy in `reasoning_details` is left alone.
    plain_reasoning: bool,
    executed: HashMap<u64, Executed>,
}

struct Slot {
    key: u64,
    id: Box<str>,
    name: Box<str>,
}

struct Executed {
    key: u64,
    arguments: Box<str>,
    done: bool,
}

/// The state machine.
#[derive(Default)]
pub(super) struct OpenAiChat {
    answers: Vec<Answer>,
    next_call: u64,
    /// Lists of sources that some dialects repeat in every chunk.
    last_sources: [Box<str>; 2],
    urls: HashSet<Box<str>>,
    last_usage: Box<str>,
    /// The newest value of members without a name here.
    metadata: Latest,
    /// The last value of such members of a delta.
    last_other: HashMap<Box<str>, Box<str>>,
}

impl OpenAiChat {
    /// Ready for the first frame.
    pub(super) fn new() -> Self {
        Self::default()
    }
}

impl Provider for OpenAiChat {
    fn frame(&mut self, frame: &Frame<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        // The check first: the lossy walk costs many times more.
        let text = std::str::from_utf8(frame.data).map_or_else(|_| String::from_utf8_lossy(frame.data), Cow::Borrowed);
        let text = text.trim_ascii();
        match self.data(frame.event, text, out) {
            // Servers that end their events with one line break instead of two: several chunks in one event.
            Err(_) if text.lines().nth(1).is_some_and(|second| second.starts_with(['{', '['])) => {
                let taken = text.lines().try_for_each(|line| self.data(frame.event, line.trim_ascii(), out));
                out.take_heard(); // one line's piece; the frame holds the others too
                taken
            }
            done => done,
        }
    }

    fn noise(&self) -> &'static [&'static str] {
        &["created", "obfuscation", "p"]
    }

    fn finish(&mut self, out: &mut Assembler) {
        self.metadata.say(out);
    }
}

/// The one piece that a chunk holds, if it holds nothing else.
fn only_piece<'a>(chunk: &Chunk<'a>) -> Option<(Piece, &'a str)> {
    let [choice] = chunk.choices.items.as_slice() else { return None };
    let delta = &choice.delta;
    // What is said of the stream is not said again by saying the same.
    let of_the_stream = |others: &Others<'_>| others.iter().all(|(name, _)| !READ_ELSEWHERE.contains(&&**name));
    let alone = chunk.usage.is_none()
        && chunk.error.is_none()
        && of_the_stream(&chunk.others)
        && choice.finish_reason.is_empty()
        && of_the_stream(&choice.others)
        && delta.here
        && delta.refusal.is_empty()
        && delta.others.iter().all(|(name, _)| !CONTENT_ELSEWHERE.contains(&&**name));
    let key = choice.index.0.unwrap_or(0);
    match (&delta.content, &delta.reasoning.0, &delta.reasoning_content.0) {
        _ if !alone => None,
        (Content::Absent, None, None) if !delta.tool_calls.items.is_empty() => {
            let [call] = delta.tool_calls.items.as_slice() else { return None };
            let alone = call.id.is_empty() && call.function.name.is_empty() && call.others.is_empty();
            let text = call.function.arguments?.get().strip_prefix('"')?.strip_suffix('"')?;
            // The call is known once the chunk has been read.
            (alone && !text.contains('\\')).then_some((Piece::Arguments(key), text))
        }
        _ if !delta.tool_calls.items.is_empty() => None,
        (Content::Text(Cow::Borrowed(text)), None, None) if !text.is_empty() => Some((Piece::Text(key), text)),
        (Content::Absent, Some(Cow::Borrowed(text)), None) | (Content::Absent, None, Some(Cow::Borrowed(text)))
            if !text.is_empty() =>
        {
            Some((Piece::Reasoning(key, None), text))
        }
        _ => None,
    }
}

impl OpenAiChat {
    fn data(&mut self, event: &str, text: &str, out: &mut Assembler) -> Result<(), Malformed> {
        if text.is_empty() {
            return Ok(());
        }
        if text == "[DONE]" {
            self.metadata.say(out);
            *self = Self { next_call: self.next_call, ..Self::default() };
            // Proxies in a row each say it.
            if !out.is_over() {
                out.mark_ended();
                out.round_end();
            }
            return Ok(());
        }
        if event == "error" && !text.starts_with('{') {
            let quoted = || RawValue::from_string(Json::string(text).as_str().to_owned());
            fault::report(&RawValue::from_string(text.to_owned()).or_else(|_| quoted())?, "error", out);
            return Ok(());
        }
        let chunk: Chunk<'_> = serde_json::from_str(text)?;
        if !chunk.here {
            return Err(Malformed("expected an object".to_owned()));
        }
        let piece = only_piece(&chunk);
        self.chunk(chunk, event, text, out)?;
        let call = |index: u64| self.answers.get(index as usize).and_then(|answer| answer.last_call);
        let piece = match piece {
            Some((Piece::Arguments(index), text)) => call(index).map(|key| (Piece::Arguments(key), text)),
            piece => piece,
        };
        if let Some((piece, text)) = piece {
            out.echo(piece, text);
        }
        Ok(())
    }

    fn chunk(&mut self, chunk: Chunk<'_>, event: &str, text: &str, out: &mut Assembler) -> Result<(), Malformed> {
        out.model(chunk.model.as_str());
        let mut known = chunk.choices.here || chunk.usage.is_some();
        for choice in chunk.choices.items {
            self.choice(chunk.id.as_str(), choice, out)?;
        }
        let mut error = chunk.error;
        for (name, raw) in &chunk.others {
            match &**name {
                "x_groq" => {
                    let groq: Groq<'_> = serde_json::from_str(raw.get()).unwrap_or_default();
                    if let Some(usage) = groq.usage {
                        self.usage(usage, out);
                    }
                    error = error.or(groq.error);
                    self.remember("x_groq.", &groq.others, out);
                }
                // Before the bare addresses, which it repeats with more.
                "search_results" => self.sources(0, raw, out),
                _ => continue,
            }
            known = true;
        }
        if let Some(usage) = chunk.usage {
            self.usage(usage, out);
        }
        if let Some((_, raw)) = chunk.others.iter().find(|(name, _)| name == "citations") {
            self.sources(1, raw, out);
            known = true;
        }
        let nothing = |raw: &RawValue| matches!(raw.get(), "false" | "\"\"" | "{}" | "[]");
        match error.filter(|raw| !known || !nothing(raw)) {
            // A bare text has its code beside it.
            Some(error) if error.get().starts_with('"') && !known => {
                fault::report(serde_json::from_str(text)?, "error", out);
                return Ok(());
            }
            Some(error) => fault::report(error, "error", out),
            None if !known => return odd(event, text, out),
            None => {}
        }
        self.remember("", &chunk.others, out);
        Ok(())
    }

    fn choice(&mut self, id: &str, choice: Choice<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        let index = choice.index.0.unwrap_or(0);
        if index >= MAX_CHOICES {
            return Err(Malformed(format!("choice index {index} is beyond {MAX_CHOICES}")));
        }
        if !out.is_open(index) {
            self.open(index, id, out);
        }
        let finished = !choice.finish_reason.is_empty();
        let member = |wanted: &str| choice.others.iter().find(|(name, _)| name == wanted).map(|(_, raw)| *raw);
        let message = || member("message").and_then(|raw| serde_json::from_str::<Delta<'_>>(raw.get()).ok());
        if choice.delta.here {
            self.delta(index, choice.delta, false, out);
            // Beside a delta, `message` is its copy or the whole so far; only what the deltas left out counts.
            if let (true, Some(Delta { content: Content::Text(whole), .. })) = (finished, finished.then(message).flatten()) {
                let missing = whole.strip_prefix(out.text_so_far(index)).unwrap_or("").to_owned();
                out.text(index, &missing);
            }
        } else if let Some(message) = message() {
            self.delta(index, message, true, out);
        } else if let Some(text) = member("text") {
            out.text(index, &text_of(text));
        }
        if finished {
            let raw = choice.finish_reason.as_str();
            // Azure's filter may look at the text when it has gone out, and its finding comes after the end.
            if member("content_filter_offsets").is_some() {
                out.finish_reason_so_far(index, finish_reason(raw), raw);
            } else {
                out.finish_reason(index, finish_reason(raw), raw);
            }
        }
        for (name, raw) in &choice.others {
            match &**name {
                "usage" => self.usage(raw, out),
                "error" => fault::report(raw, "error", out),
                "logprobs" if !only_nulls(raw) => out.provider_event("logprobs", Json::from_raw(raw).ok()),
                "content_filter_results" | "content_filter_result" if stepped_in(raw) => {
                    out.provider_event("content_filter_results", Json::from_raw(raw).ok());
                }
                "content_filter_results" | "content_filter_result" => self.metadata.keep("content_filter_results", raw, out),
                _ => {}
            }
        }
        let place = if index == 0 { Cow::Borrowed("choice.") } else { format!("choice[{index}].").into() };
        self.remember(&place, &choice.others, out);
        Ok(())
    }

    fn open(&mut self, index: u64, id: &str, out: &mut Assembler) {
        if index == 0 || id.is_empty() {
            out.open(index, id, (index > 0).then_some(index));
        } else {
            out.open(index, &format!("{id}-{index}"), Some(index));
        }
        while self.answers.len() as u64 <= index {
            self.answers.push(Answer::default());
        }
    }

    /// What a delta or, where `whole`, a message so far says.
    fn delta(&mut self, index: u64, delta: Delta<'_>, whole: bool, out: &mut Assembler) {
        let Delta { content, refusal, reasoning, reasoning_content, tool_calls, others, .. } = delta;
        let answer = &mut self.answers[index as usize];
        let plain = if reasoning.is_empty() { &reasoning_content } else { &reasoning };
        if !plain.is_empty() {
            answer.plain_reasoning = true;
            out.reasoning(index, None, plain.as_str());
        }
        for (_, details) in others.iter().filter(|(name, _)| name == "reasoning_details") {
            reasoning_details(index, details, answer.plain_reasoning, out);
        }
        match content {
            Content::Absent => {}
            Content::Text(text) if whole && text.starts_with(out.text_so_far(index)) => out.text_whole(index, &text),
            Content::Text(text) => out.text(index, &text),
            Content::Parts(parts) => {
                for part in parts {
                    content_part(index, part, out);
                }
            }
        }
        out.refusal(index, refusal.as_str());
        for call in tool_calls.items {
            self.call(index, call, out);
        }
        for (name, raw) in others {
            match &*name {
                "reasoning_details" => {}
                "function_call" => self.legacy_call(index, raw, out),
                "annotations" => each(raw, |raw| out.citation(citation(raw, out.message_id(index)))),
                "images" => each(raw, |raw| image(index, raw, out)),
                "executed_tools" => each(raw, |raw| self.executed_tool(index, raw, out)),
                // Silence is like silence, and each piece of it counts.
                "audio" => out.provider_event("audio", Json::from_raw(raw).ok()),
                name => self.delta_member(name, raw, out),
            }
        }
    }

    /// The only call of an answer, as it was before calls were many.
    fn legacy_call(&mut self, index: u64, raw: &RawValue, out: &mut Assembler) {
        let function: Function<'_> = serde_json::from_str(raw.get()).unwrap_or_default();
        let key = *self.answers[index as usize].legacy_call.get_or_insert_with(|| {
            self.next_call += 1;
            self.next_call
        });
        out.call_in_pieces(key, index, "", function.name.as_str(), Kind::Client);
        if let Some(arguments) = function.arguments.map(text_of).filter(|arguments| !arguments.is_empty()) {
            out.arguments(key, &arguments);
        }
    }

    fn call(&mut self, index: u64, call: Call<'_>, out: &mut Assembler) {
        let free_text = call.custom.here;
        let function = if free_text { call.custom } else { call.function };
        let (id, name) = (call.id.as_str(), function.name.as_str());
        let arguments = function.arguments.map(text_of).unwrap_or_default();
        let Some(key) = self.call_key(index, call.index, (id, name, &arguments), out) else {
            out.disorder("stray_arguments", "arguments for a call that never began");
            return;
        };
        self.answers[index as usize].last_call = Some(key);
        if !out.call_is_open(key) || !id.is_empty() || !name.is_empty() {
            out.call_in_pieces(key, index, id, name, Kind::Client);
        }
        if free_text {
            out.arguments_are_text(key);
        }
        if !arguments.is_empty() {
            out.arguments(key, &arguments);
        }
        for (name, raw) in call.others.into_iter().chain(function.others) {
            self.delta_member(&format!("tool_call.{name}"), raw, out);
        }
    }

    /// Which call a piece belongs to: by index, else by id, else a named piece begins one and a nameless one goes on.
    fn call_key(&mut self, index: u64, slot: Count, (id, name, piece): (&str, &str, &str), out: &Assembler) -> Option<u64> {
        let answer = &mut self.answers[index as usize];
        let known = match slot.0 {
            Some(slot) => match answer.calls.get_mut(&slot) {
                Some(slot) if !begins_another(slot, (id, name, piece), out.arguments_so_far(slot.key)) => {
                    for (mine, theirs) in [(&mut slot.id, id), (&mut slot.name, name)] {
                        if mine.is_empty() && !theirs.is_empty() {
                            *mine = theirs.into();
                        }
                    }
                    Some(slot.key)
                }
                _ => None,
            },
            None if !id.is_empty() => answer.call_ids.get(id).copied(),
            None if !name.is_empty() => None,
            None => return answer.last_call,
        };
        Some(known.unwrap_or_else(|| {
            self.next_call += 1;
            let key = self.next_call;
            if let Some(slot) = slot.0 {
                answer.calls.insert(slot, Slot { key, id: id.into(), name: name.into() });
            } else if !id.is_empty() {
                answer.call_ids.insert(id.into(), key);
            }
            key
        }))
    }

    /// Groq's compound systems: a tool that the provider ran, said once when it starts and again with its output.
    fn executed_tool(&mut self, index: u64, raw: &RawValue, out: &mut Assembler) {
        let tool: ExecutedTool<'_> = serde_json::from_str(raw.get()).unwrap_or_default();
        let arguments = tool.arguments.map(text_of).unwrap_or_default();
        let executed = &mut self.answers[index as usize].executed;
        let slot = tool.index.0.unwrap_or(executed.len() as u64);
        if executed.get(&slot).is_none_or(|known| known.done && *known.arguments != *arguments) {
            self.next_call += 1;
            let name = if tool.kind.is_empty() { "tool" } else { tool.kind.as_str() };
            out.call(self.next_call, index, "", name, Kind::Server);
            executed.insert(slot, Executed { key: self.next_call, arguments: arguments.as_ref().into(), done: false });
        }
        let Some(known) = executed.get_mut(&slot).filter(|known| !known.done) else { return };
        out.arguments_whole(known.key, &arguments);
        if let Some(output) = tool.output {
            known.done = true;
            let Some(id) = out.call_end(known.key) else { return };
            out.tool_result(&id, Some(tool.kind.as_str()), Json::from_raw(output).ok(), false, "completed");
            out.provider_event("executed_tools", Json::from_raw(raw).ok());
        }
    }

    fn usage(&mut self, raw: &RawValue, out: &mut Assembler) {
        if raw.get() == &*self.last_usage {
            return;
        }
        let tokens: Tokens<'_> = serde_json::from_str(raw.get()).unwrap_or_default();
        if !tokens.here {
            return;
        }
        self.last_usage = raw.get().into();
        let reasoning = tokens.of_output.reasoning.0.or(tokens.reasoning.0);
        let mut output = tokens.output.0;
        // xAI counts reasoning beside the completion; its total gives it away.
        if let (Some(input), Some(said), Some(total), Some(reasoning @ 1..)) = (tokens.input.0, output, tokens.total.0, reasoning)
            && input.checked_add(said).and_then(|sum| sum.checked_add(reasoning)) == Some(total)
        {
            output = Some(said + reasoning);
        }
        let counts = UsageCounts {
            input: tokens.input.0,
            output,
            total: tokens.total.0,
            cache_read: tokens.of_input.cached.0.or(tokens.cached.0),
            cache_write: tokens.of_input.written.0.or(tokens.written.0),
            reasoning,
            audio_input: tokens.of_input.audio.0,
            audio_output: tokens.of_output.audio.0,
        };
        out.usage(counts, raw);
    }

    /// A list of addresses or of objects with one; repeated in every chunk by some, so each address counts once.
    fn sources(&mut self, which: usize, raw: &RawValue, out: &mut Assembler) {
        if raw.get() == &*self.last_sources[which] {
            return;
        }
        self.last_sources[which] = raw.get().into();
        each(raw, |raw| {
            let source = citation(raw, out.message_id(0));
            if source.url.as_deref().is_none_or(|url| self.urls.insert(url.into())) {
                out.citation(source);
            }
        });
    }

    /// A delta's member without a name here may be content: it passes at once, unless it says again what it said last.
    fn delta_member(&mut self, name: &str, raw: &RawValue, out: &mut Assembler) {
        if only_nulls(raw) || self.last_other.get(name).is_some_and(|last| **last == *raw.get()) {
            return;
        }
        self.last_other.insert(name.into(), raw.get().into());
        out.provider_event(name, Json::from_raw(raw).ok());
    }

    /// Such members elsewhere are about the stream: the newest value passes at the round's end.
    fn remember(&mut self, place: &str, others: &Others<'_>, out: &mut Assembler) {
        for (name, raw) in others {
            if READ_ELSEWHERE.contains(&&**name) || only_nulls(raw) {
                continue;
            }
            self.metadata.keep(&format!("{place}{name}"), raw, out);
        }
    }
}

/// Whether a piece under a call's index begins another call. Gemini's endpoint numbers all of them 0, one whole call after
/// the other; others repeat the start of one call, or change its id as they go.
fn begins_another(open: &Slot, (id, name, piece): (&str, &str, &str), arguments: &str) -> bool {
    if name.is_empty() || open.name.is_empty() {
        return false;
    }
    let other_id = !id.is_empty() && !open.id.is_empty() && *open.id != *id;
    let other_name = *open.name != *name;
    if arguments.is_empty() {
        return other_id && other_name;
    }
    // Only the end is looked at, so that a thousand such pieces cost a thousand looks.
    let end = arguments.as_bytes().iter().rev().take(64).find(|byte| !byte.is_ascii_whitespace());
    // The same name again, and an object after a whole one: where nothing has an id, that is the only sign.
    let again = || id.is_empty() && piece.starts_with('{') && arguments.len() < 16 << 10 && Json::parse(arguments).is_ok();
    end == Some(&b'}') && (other_id || other_name || again())
}

/// A chunk that has nothing of one: an error in another form, or a kind of its own.
fn odd(event: &str, text: &str, out: &mut Assembler) -> Result<(), Malformed> {
    let odd: Odd<'_> = serde_json::from_str(text)?;
    let raw: &RawValue = serde_json::from_str(text)?;
    let (kind, object) = (odd.kind.as_str(), odd.object.as_str());
    let is_error = [event, object, kind].contains(&"error")
        || odd.detail.is_some()
        || (odd.message.is_some() && (!odd.code.is_empty() || kind.contains("error") || (kind.is_empty() && object.is_empty())));
    if is_error || !odd.errors.items.is_empty() {
        fault::report(odd.errors.items.first().copied().unwrap_or(raw), "error", out);
    } else if !object.starts_with("chat.completion") && !is_nothing(raw) {
        let name = [event, kind, object].into_iter().find(|name| !name.is_empty());
        out.unknown(name.unwrap_or("chunk"), Json::from_raw(raw).ok());
    }
    Ok(())
}

/// Sees each item of a list; what is no list has none.
fn each<'a>(raw: &'a RawValue, see: impl FnMut(&'a RawValue)) {
    serde_json::from_str::<List<&RawValue>>(raw.get()).unwrap_or_default().items.into_iter().for_each(see);
}

/// OpenRouter's list: the reasoning's text again, and what has to be sent back with the next request.
fn reasoning_details(index: u64, raw: &RawValue, only_signatures: bool, out: &mut Assembler) {
    each(raw, |raw| {
        let detail: Detail<'_> = serde_json::from_str(raw.get()).unwrap_or_default();
        if !only_signatures {
            out.reasoning(index, None, if detail.text.is_empty() { detail.summary.as_str() } else { detail.text.as_str() });
        }
        if !detail.data.is_empty() || !detail.signature.is_empty() {
            out.provider_event("reasoning_details", Json::from_raw(raw).ok());
        }
    });
}

/// One part of a `content` list: Mistral's thinking, and what gateways pass through from elsewhere.
fn content_part(index: u64, raw: &RawValue, out: &mut Assembler) {
    let part: Part<'_> = serde_json::from_str(raw.get()).unwrap_or_default();
    match part.kind.as_str() {
        "thinking" | "reasoning" => {
            let source = if matches!(part.thinking, Content::Absent) { part.text } else { part.thinking };
            each_text(source, out, &mut |text, out| out.reasoning(index, None, text));
        }
        "refusal" => out.refusal(index, part.refusal.as_str()),
        "image_url" | "image" | "output_image" => image(index, raw, out),
        _ if raw.get().starts_with('"') => out.text(index, &text_of(raw)),
        _ if !matches!(part.text, Content::Absent) => each_text(part.text, out, &mut |text, out| out.text(index, text)),
        kind => return pass_part(kind, raw, out),
    }
    // A signature, for one.
    for (name, raw) in part.others {
        out.provider_event(&format!("content.{name}"), Json::from_raw(raw).ok());
    }
}

fn pass_part(kind: &str, raw: &RawValue, out: &mut Assembler) {
    out.provider_event(&format!("content.{}", if kind.is_empty() { "part" } else { kind }), Json::from_raw(raw).ok());
}

/// The texts in a text or a list of `{"text"}`; what else is in the list passes.
fn each_text(content: Content<'_>, out: &mut Assembler, see: &mut dyn FnMut(&str, &mut Assembler)) {
    match content {
        Content::Absent => {}
        Content::Text(text) => see(&text, out),
        Content::Parts(parts) => {
            for raw in parts {
                match serde_json::from_str::<Part<'_>>(raw.get()) {
                    Ok(Part { text: Content::Text(text), others, .. }) => {
                        see(&text, out);
                        for (name, raw) in others {
                            out.provider_event(&format!("content.{name}"), Json::from_raw(raw).ok());
                        }
                    }
                    Ok(Part { here: false, .. }) if raw.get().starts_with('"') => see(&text_of(raw), out),
                    Ok(part) => pass_part(part.kind.as_str(), raw, out),
                    Err(_) => {}
                }
            }
        }
    }
}

fn citation(raw: &RawValue, message_id: Option<Id>) -> Citation {
    let outer: Source<'_> = serde_json::from_str(raw.get()).unwrap_or_default();
    let source = match outer.nested {
        Some(nested) => serde_json::from_str(nested.get()).unwrap_or_default(),
        None => outer,
    };
    let text = |word: Word<'_>| word.0.filter(|text| !text.is_empty()).map(Into::into);
    let url = if source.here { text(source.url) } else { text(Word(Some(text_of(raw)))) };
    let (start, end) = (source.start.0, source.end.0);
    Citation { message_id, url, title: text(source.title), text: text(source.text), start, end, raw: Json::from_raw(raw).ok() }
}

/// An image: an address, a `data:` address, or bare base64.
fn image(index: u64, raw: &RawValue, out: &mut Assembler) {
    let outer: Image<'_> = serde_json::from_str(raw.get()).unwrap_or_default();
    let image = match outer.nested.map(|nested| (nested, serde_json::from_str::<Image<'_>>(nested.get()))) {
        Some((_, Ok(inner))) if inner.here => inner,
        Some((nested, _)) => Image { url: Word(Some(text_of(nested))), ..outer },
        None => outer,
    };
    let mut media_type: Cow<'_, str> =
        if image.media_type.is_empty() { "image/*".into() } else { image.media_type.as_str().into() };
    let (mut url, mut data) = (None, None);
    if let Some((kind, payload)) = image.url.as_str().strip_prefix("data:").and_then(|rest| rest.split_once(";base64,")) {
        media_type = kind.into();
        data = Some(payload.into());
    } else if !image.url.is_empty() {
        url = Some(image.url.as_str().into());
    } else if !image.base64.is_empty() {
        data = Some(image.base64.as_str().into());
    } else {
        return out.provider_event("image", Json::from_raw(raw).ok());
    }
    let message_id = out.message_id(index);
    out.file(File { media_type: media_type.as_ref().into(), name: None, url, file_id: None, data, message_id });
}

/// Whether a filter found something: of each kind that it looks for, it says so.
fn stepped_in(raw: &RawValue) -> bool {
    let results = Object::from_raw(raw).unwrap_or_default();
    results
        .others(&[])
        .any(|(_, raw)| Object::from_raw(raw).is_ok_and(|result| ["filtered", "detected"].iter().any(|key| result.is_true(key))))
}

/// Whether an object or a list holds nothing but nulls.
fn only_nulls(raw: &RawValue) -> bool {
    let bytes = raw.get().as_bytes();
    match bytes[0] {
        b'{' => serde_json::from_str::<HashMap<Cow<'_, str>, &RawValue>>(raw.get())
            .is_ok_and(|members| members.values().all(|value| value.get() == "null")),
        b'[' => {
            serde_json::from_str::<Vec<&RawValue>>(raw.get()).is_ok_and(|items| items.iter().all(|item| item.get() == "null"))
        }
        _ => false,
    }
}

/// The words of all dialects, whatever their case.
fn finish_reason(raw: &str) -> FinishReason {
    match raw.to_ascii_lowercase().as_str() {
        "stop" | "end_turn" | "stop_sequence" | "eos" | "eos_token" | "end" | "complete" | "completed" | "done" => {
            FinishReason::Stop
        }
        "length"
        | "max_tokens"
        | "max_output_tokens"
        | "max_completion_tokens"
        | "model_length"
        | "model_context_window_exceeded" => FinishReason::Length,
        "tool_calls" | "tool_call" | "tool_use" | "function_call" => FinishReason::ToolCalls,
        "content_filter" | "content_filtered" | "safety" | "sensitive" | "guardrail_intervened" => FinishReason::ContentFilter,
        "refusal" => FinishReason::Refusal,
        "pause" | "pause_turn" => FinishReason::Pause,
        "error" | "network_error" | "engine_error" | "insufficient_system_resource" => FinishReason::Error,
        "cancelled" | "canceled" | "abort" | "aborted" => FinishReason::Cancelled,
        _ => FinishReason::Unknown,
    }
}
