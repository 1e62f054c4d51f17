//! Amazon Bedrock: the Converse API, `InvokeModel` with the formats of its model families, and agents; streamed (as AWS
//! events or as their parsed payloads) and whole.
//!
//! Owns what Converse events mean, which family a model's own JSON is of, and what Bedrock adds around it (padding,
//! guardrails, metrics, exceptions). Knows nothing of messages' bytes: that is the frame reader's. Families that are a
//! provider of their own (Anthropic, OpenAI's chat) are read by that provider's state machine.
//! Invariants: 1. a block may begin with any of its events: only tools announce themselves; 2. usage counts after the stop
//! too; 3. what the model must not say aloud (redacted reasoning, signatures) never becomes text; 4. a guardrail that
//! stepped in is said once, and is the reason why the answer ended.
//!
//! Format: <https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_ConverseStream.html>

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::anthropic::{self, Anthropic, sign};
use super::bytes::{Joiner, decode};
use super::lax::{Word, text_of};
use super::openai_chat::OpenAiChat;
use super::wire::{Object, pass, unknown};
use super::{Assembler, Likeness, Malformed, Piece, Provider, UsageCounts, fault, halves};
use crate::event::{Citation, File, FinishReason, Id, Json, Kind, Text};
use crate::frame::Frame;

/// The events of a Converse stream.
const CONVERSE: [&str; 6] =
    ["messageStart", "contentBlockStart", "contentBlockDelta", "contentBlockStop", "messageStop", "metadata"];
/// What the model consumed, as Bedrock itself counted.
const METRICS: &str = "amazon-bedrock-invocationMetrics";
/// Whether a guardrail stepped in.
const GUARDRAIL: &str = "amazon-bedrock-guardrailAction";
/// What the guardrail saw.
const TRACE: &str = "amazon-bedrock-trace";
/// Members of the families' chunks that are read elsewhere, count, or say the request again.
const FAMILY: [&str; 21] = [
    "message",
    "data",
    "finishReason",
    "index",
    "is_finished",
    "event_type",
    "tool_calls",
    "type",
    "id",
    "model",
    "role",
    "prompt",
    "p",
    "chat_history",
    "generation_id",
    "response_id",
    "tokenCount",
    "inputTextTokenCount",
    "totalOutputTextTokenCount",
    "prompt_token_count",
    "generation_token_count",
];
/// What is read of every chunk, whichever family it is of.
const AROUND: [&str; 3] = [METRICS, GUARDRAIL, TRACE];

/// A piece of text and nothing else, as nearly every frame is, in one pass without a copy.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "named, so that another member is not taken for one of them")]
struct Piecewise<'a> {
    #[serde(rename = "contentBlockIndex")]
    index: IgnoredAny,
    #[serde(borrow)]
    delta: TextDelta<'a>,
    #[serde(default)]
    p: IgnoredAny,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TextDelta<'a> {
    #[serde(borrow)]
    text: Word<'a>,
}

/// Whether a frame is of this format.
pub(super) fn recognise(frame: &Frame<'_>) -> Likeness {
    let event = frame.event;
    if event.ends_with("Exception") || CONVERSE[..5].contains(&event) || event == "initial-response" {
        return Likeness::Yes;
    }
    let Ok(object) = Object::parse(frame.data) else { return Likeness::No };
    let has = |key: &str| object.raw(key).is_some();
    let yes = match event {
        "chunk" => has("bytes"),
        "trace" => has("agentId") || has("trace"),
        "metadata" => has("usage") || has("metrics"),
        _ => {
            CONVERSE[..5].iter().any(|name| has(name))
                || AROUND.iter().any(|name| has(name) && !has("type"))
                || (has("output") && has("stopReason"))
                || (has("outputText") && has("index"))
                || (has("results") && has("inputTextTokenCount"))
                || (has("generation") && has("generation_token_count"))
                || (has("completion") && has("stop_reason"))
                || (has("generations") && has("prompt"))
                || (has("completions") && has("prompt"))
                || object
                    .list("outputs")
                    .first()
                    .is_some_and(|raw| Object::from_raw(raw).is_ok_and(|it| it.raw("text").is_some()))
                || object.object("chunk").raw("bytes").is_some()
                || object.object("trace").raw("agentId").is_some()
        }
    };
    if yes {
        return Likeness::Yes;
    }
    let refused = has("__type") || object.object("Output").raw("__type").is_some();
    let maybe = refused || object.object("metadata").raw("usage").is_some() || exception(&object).is_some();
    if maybe { Likeness::Maybe } else { Likeness::No }
}

/// What a tool that the provider runs has given back so far.
struct ServerResult {
    call_id: Box<str>,
    failed: bool,
    pieces: Vec<Json>,
}

/// The state machine.
#[derive(Default)]
pub(super) struct Bedrock {
    /// The assembler's key of the current message.
    message: u64,
    /// Its stop reason, once said.
    stop: Option<FinishReason>,
    /// Reasoning blocks seen, and the index of the last.
    thoughts: u64,
    thinking: Option<u64>,
    /// The tools' blocks that have not stopped.
    calls: BTreeSet<u64>,
    results: BTreeMap<u64, ServerResult>,
    intervened: bool,
    /// An agent answers, who says no end; its text may be cut inside a character.
    agent: Option<Joiner>,
    anthropic: Option<Anthropic>,
    chat: Option<OpenAiChat>,
}

impl Provider for Bedrock {
    fn frame(&mut self, frame: &Frame<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        let event = frame.event;
        if event == "error" || event.ends_with("Exception") {
            report(event, frame.data, out);
            return Ok(());
        }
        if event == "contentBlockDelta"
            && let Ok(Piecewise { delta: TextDelta { text: Word(Some(text)) }, .. }) = serde_json::from_slice(frame.data)
        {
            out.text(self.message, &text);
            if let Cow::Borrowed(text) = text {
                out.echo(Piece::Text(self.message), text);
            }
            return Ok(());
        }
        let object = Object::parse(frame.data)?;
        match event {
            "initial-response" => Ok(()),
            _ if CONVERSE.contains(&event) => self.converse(event, &object, out),
            "chunk" => self.chunk(&object, frame, out),
            "trace" => {
                self.agent.get_or_insert_default();
                pass("trace", serde_json::from_slice(frame.data)?, out)
            }
            "files" => object.list("files").into_iter().try_for_each(|file| agent_file(&Object::from_raw(file)?, out)),
            "returnControl" => {
                self.agent.get_or_insert_default();
                pass("returnControl", serde_json::from_slice(frame.data)?, out)
            }
            // No frame around it: a parsed event under its name, a model's own JSON, or a whole body.
            _ => self.model(&object, frame, out),
        }
    }

    fn noise(&self) -> &'static [&'static str] {
        &["p"]
    }

    fn finish(&mut self, out: &mut Assembler) {
        if let Some(anthropic) = &mut self.anthropic {
            anthropic.finish(out);
        }
        if let Some(chat) = &mut self.chat {
            chat.finish(out);
        }
        if let Some(mut text) = self.agent.take() {
            out.text(self.message, &text.finish());
            out.mark_ended();
        }
        if self.intervened && !out.has_ended() {
            self.end("", FinishReason::ContentFilter, out);
        }
        for index in self.results.keys().copied().collect::<Vec<_>>() {
            self.result_end(index, out);
        }
    }
}

impl Bedrock {
    // --- Converse -------------------------------------------------------------------------------------------------

    fn converse(&mut self, event: &str, body: &Object<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        let index = body.count("contentBlockIndex").unwrap_or(0);
        match event {
            "messageStart" => {
                if self.stop.take().is_some() {
                    out.round_end();
                    self.message += 1;
                    self.thinking = None;
                    self.thoughts = 0;
                }
                out.round_start();
                out.open(self.message, "", None);
                Ok(())
            }
            "contentBlockStart" => self.block_start(index, &body.object("start"), out),
            "contentBlockDelta" => self.delta(index, &body.object("delta"), out),
            "contentBlockStop" => {
                self.block_stop(index, out);
                Ok(())
            }
            "messageStop" => {
                let raw = body.text("stopReason");
                self.end(&raw, finish_reason(&raw), out);
                body.pass_others(&["stopReason", "p"], out)
            }
            _ => Self::metadata(body, out),
        }
    }

    fn block_start(&mut self, index: u64, start: &Object<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        if let Some(raw) = start.raw("toolUse") {
            self.call_start(index, &Object::from_raw(raw)?, out)?;
        }
        if let Some(raw) = start.raw("toolResult") {
            self.result_end(index, out);
            self.results.insert(index, server_result(&Object::from_raw(raw)?));
        }
        start.pass_others(&["toolUse", "toolResult"], out)
    }

    fn call_start(&mut self, index: u64, tool: &Object<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        // An index in use means that the last block's stop was lost.
        self.block_stop(index, out);
        let kind = if tool.text("type").starts_with("server") { Kind::Server } else { Kind::Client };
        let id = tool.text("toolUseId");
        out.call(index, self.message, &id, &tool.text("name"), kind);
        self.calls.insert(index);
        tool.pass_others_of(("call_id", &id), &["toolUseId", "name", "type", "input"], out)
    }

    fn delta(&mut self, index: u64, delta: &Object<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        out.text(self.message, &delta.text("text"));
        if let Some(input) = delta.object("toolUse").raw("input") {
            let piece = text_of(input);
            if !piece.is_empty() {
                out.arguments(index, &piece);
            }
        }
        if let Some(raw) = delta.raw("reasoningContent") {
            self.reasoning(index, &Object::from_raw(raw)?, out)?;
        }
        if let Some(raw) = delta.raw("citation") {
            self.citation(raw, out)?;
        }
        if delta.raw("toolResult").is_some() {
            let result = self.results.entry(index).or_insert_with(|| server_result(&Object::default()));
            for piece in delta.list("toolResult") {
                result.pieces.push(Json::from_raw(piece)?);
            }
        }
        delta.pass_others(&["text", "toolUse", "reasoningContent", "citation", "toolResult"], out)
    }

    fn reasoning(&mut self, index: u64, content: &Object<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        let piece = content.text("text");
        if !piece.is_empty() {
            if self.thinking.replace(index) != Some(index) {
                self.thoughts += 1;
            }
            out.reasoning(self.message, Some(self.thoughts - 1), &piece);
        }
        sign(index, &content.text("signature"), out);
        content.pass_others(&["text", "signature"], out)
    }

    fn citation(&self, raw: &RawValue, out: &mut Assembler) -> Result<(), Malformed> {
        let source = Object::from_raw(raw)?;
        let some = |text: Cow<'_, str>| (!text.is_empty()).then(|| Text::from(&*text));
        let cited: String = source
            .list("sourceContent")
            .into_iter()
            .filter_map(|part| Some(Object::from_raw(part).ok()?.text("text").into_owned()))
            .collect();
        out.citation(Citation {
            message_id: out.message_id(self.message),
            url: some(source.object("location").object("web").text("url")),
            title: some(source.text("title")),
            text: some(cited.into()),
            // The offsets count within the source: they stay in `raw`.
            start: None,
            end: None,
            raw: Some(Json::from_raw(raw)?),
        });
        Ok(())
    }

    fn block_stop(&mut self, index: u64, out: &mut Assembler) {
        if self.calls.remove(&index) {
            out.call_end(index);
        }
        self.result_end(index, out);
    }

    fn result_end(&mut self, index: u64, out: &mut Assembler) {
        let Some(ServerResult { call_id, failed, pieces }) = self.results.remove(&index) else { return };
        let mut output = vec![b'['];
        for piece in &pieces {
            if output.len() > 1 {
                output.push(b',');
            }
            output.extend_from_slice(piece.as_str().as_bytes());
        }
        output.push(b']');
        let status = if failed { "failed" } else { "completed" };
        out.tool_result(&call_id, None, Some(Json::from_written(output)), failed, status);
    }

    fn metadata(body: &Object<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        if let Some(raw) = body.raw("usage") {
            out.usage(counts(&Object::from_raw(raw)?), raw);
        }
        body.pass_others(&["usage", "p"], out)
    }

    /// The message's end, its usage aside. A block without a stop was forgotten where calls may stand, else cut.
    fn end(&mut self, raw: &str, reason: FinishReason, out: &mut Assembler) {
        let reason = if self.intervened { FinishReason::ContentFilter } else { reason };
        let forgotten = matches!(reason, FinishReason::ToolCalls | FinishReason::Stop);
        for index in std::mem::take(&mut self.calls) {
            if forgotten {
                out.call_end(index);
            } else {
                out.call_cut(index);
            }
        }
        self.stop = Some(reason);
        out.finish_reason(self.message, reason, raw);
    }

    /// `{"output": {"message": …}, "stopReason", "usage", …}`: an answer of Converse that was not streamed.
    fn whole(&mut self, body: &Object<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        let message = body.object("output").object("message");
        out.open(self.message, "", None);
        for (index, block) in message.list("content").into_iter().enumerate() {
            self.whole_block(index as u64, &Object::from_raw(block)?, out)?;
        }
        let raw = body.text("stopReason");
        self.end(&raw, finish_reason(&raw), out);
        if let Some(raw) = body.raw("usage") {
            out.usage(counts(&Object::from_raw(raw)?), raw);
        }
        body.pass_others(&[&["output", "stopReason", "usage"][..], &AROUND].concat(), out)
    }

    fn whole_block(&mut self, index: u64, block: &Object<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        out.text_block(self.message, &block.text("text"));
        if let Some(raw) = block.raw("toolUse") {
            let tool = Object::from_raw(raw)?;
            self.call_start(index, &tool, out)?;
            if let Some(input) = tool.raw("input") {
                out.arguments_whole(index, &text_of(input));
            }
            self.block_stop(index, out);
        }
        if let Some(raw) = block.raw("toolResult") {
            let result = Object::from_raw(raw)?;
            let mut whole = server_result(&result);
            for piece in result.list("content") {
                whole.pieces.push(Json::from_raw(piece)?);
            }
            self.results.insert(index, whole);
            self.result_end(index, out);
        }
        if let Some(raw) = block.raw("reasoningContent") {
            let content = Object::from_raw(raw)?;
            self.reasoning(index, &content.object("reasoningText"), out)?;
            content.pass_others(&["reasoningText"], out)?;
        }
        if let Some(raw) = block.raw("image") {
            image(&Object::from_raw(raw)?, raw, out.message_id(self.message), out)?;
        }
        let cited = block.object("citationsContent");
        for part in cited.list("content") {
            out.text_block(self.message, &Object::from_raw(part)?.text("text"));
        }
        cited.list("citations").into_iter().try_for_each(|raw| self.citation(raw, out))?;
        block.pass_others(&["text", "toolUse", "toolResult", "reasoningContent", "image", "citationsContent"], out)
    }

    // --- InvokeModel and InvokeAgent ------------------------------------------------------------------------------

    /// `{"bytes": <base64>, "p": <padding>}`: a model's own JSON, or an agent's text.
    fn chunk(&mut self, chunk: &Object<'_>, frame: &Frame<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        let mut bytes = decode(&chunk.text("bytes"))?;
        if let Some(mended) = halves::mend(&bytes) {
            out.expect_halves();
            bytes = mended;
        }
        let inner = Frame { event: "", data: &bytes, offset: frame.offset };
        let read = match Object::parse(&bytes) {
            Ok(object) if self.agent.is_none() => self.model(&object, &inner, out),
            _ => {
                let text = self.agent.get_or_insert_default().push(&bytes);
                out.text(self.message, &text);
                Ok(())
            }
        };
        // What was heard stands in the inner frame, which is no more.
        out.take_heard();
        read?;
        chunk.pass_others(&["bytes", "p"], out)
    }

    fn model(&mut self, object: &Object<'_>, frame: &Frame<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        let has = |key: &str| object.raw(key).is_some();
        let kind = object.text("type");
        if self.anthropic.is_some() || has("type") && anthropic::recognise(frame) != Likeness::No {
            if !matches!(&*kind, "message_delta" | "message_stop" | "message") {
                self.guardrail(object, out)?;
            }
            return self.anthropic.get_or_insert_default().frame(frame, out);
        }
        if let Some((name, raw)) = exception(object) {
            report(name, raw.get().as_bytes(), out);
            return Ok(());
        }
        self.guardrail(object, out)?;
        if let Some(name) = CONVERSE.iter().find(|name| has(name)) {
            self.converse(name, &object.object(name), out)?;
            return object.pass_others(&[&[*name, "p"][..], &[GUARDRAIL, TRACE]].concat(), out);
        }
        // An SDK's dicts: the event under its name.
        if let Some(raw) = object.raw("chunk") {
            return self.chunk(&Object::from_raw(raw)?, frame, out);
        }
        if let Some((name, raw)) = ["trace", "returnControl"].iter().find_map(|name| Some((*name, object.raw(name)?))) {
            self.agent.get_or_insert_default();
            return pass(name, raw, out);
        }
        if has("output") {
            return self.whole(object, out);
        }
        // What the service in front of the models says to a request that it does not know.
        if let Some(raw) = object.raw("Output").filter(|raw| raw.get().contains("__type")) {
            report(&object.object("Output").text("__type"), raw.get().as_bytes(), out);
            return Ok(());
        }
        if self.chat.is_some() || speaks_chat(object) {
            return self.chat.get_or_insert_with(OpenAiChat::new).frame(frame, out);
        }
        let known = self.family(object, out)?;
        if let Some(raw) = object.raw(METRICS) {
            let metrics = Object::from_raw(raw)?;
            out.usage(counts(&metrics), raw);
        }
        if known || has(METRICS) || has(GUARDRAIL) {
            Ok(())
        } else if has("__type") || has("message") || has("Message") {
            report(&object.text("__type"), frame.data, out);
            Ok(())
        } else {
            unknown("chunk", serde_json::from_slice(frame.data)?, out)
        }
    }

    /// The families whose chunks and bodies are a text, a reason and counts. False where it is none of them.
    fn family(&mut self, object: &Object<'_>, out: &mut Assembler) -> Result<bool, Malformed> {
        // Titan: whole bodies hold a list of results. Cohere and Mistral do so under names of their own.
        for list in ["results", "generations", "outputs", "choices", "completions"] {
            if object.raw(list).is_none() {
                continue;
            }
            for (index, item) in object.list(list).into_iter().enumerate() {
                self.piece(&Object::from_raw(item)?, index as u64, out)?;
            }
            Self::own_counts(object, out);
            return Ok(true);
        }
        let known = self.piece(object, 0, out)?;
        if known && self.stop.is_some() {
            Self::own_counts(object, out);
        }
        Ok(known)
    }

    /// One text and its end, under the names that the families have for them.
    fn piece(&mut self, object: &Object<'_>, index: u64, out: &mut Assembler) -> Result<bool, Malformed> {
        const TEXTS: [&str; 4] = ["outputText", "generation", "completion", "text"];
        const REASONS: [&str; 3] = ["completionReason", "stop_reason", "finish_reason"];
        let message = object.object("message");
        // AI21's Jurassic has each of them one deeper.
        let (data, finish) = (object.object("data"), object.object("finishReason").text("reason"));
        let deeper = || if data.raw("text").is_some() { data.text("text") } else { message.text("content") };
        let text = TEXTS.iter().map(|key| object.text(key)).find(|text| !text.is_empty()).unwrap_or_else(deeper);
        let reason = REASONS.iter().map(|key| object.text(key)).chain([finish]).find(|text| !text.is_empty());
        let ends_with_all = object.text("event_type") == "stream-end";
        let known = TEXTS.iter().chain(&REASONS).any(|key| object.raw(key).is_some())
            || object.raw("message").is_some_and(|raw| raw.get().starts_with('{'))
            || data.raw("text").is_some()
            || object.raw("is_finished").is_some();
        if !known {
            return Ok(false);
        }
        // Several answers at once are numbered.
        let index = object.count("index").unwrap_or(index);
        let key = self.message + index;
        if index > 0 || (object.raw("index").is_some() && object.raw("is_finished").is_some()) {
            out.open(key, "", Some(index));
        }
        if !ends_with_all {
            out.text(key, &text);
        }
        for (at, call) in object.list("tool_calls").into_iter().enumerate() {
            let call = Object::from_raw(call)?;
            out.call(at as u64, key, &call.text("id"), &call.text("name"), Kind::Client);
            if let Some(parameters) = call.raw("parameters") {
                out.arguments_whole(at as u64, &text_of(parameters));
            }
            out.call_end(at as u64);
        }
        if let Some(raw) = reason {
            let reason = if self.intervened { FinishReason::ContentFilter } else { finish_reason(&raw) };
            self.stop = Some(reason);
            out.finish_reason(key, reason, &raw);
        }
        object.pass_others(&[&TEXTS[..], &REASONS, &AROUND, &FAMILY].concat(), out)?;
        Ok(true)
    }

    /// What a body without metrics counts by itself. Bedrock's own word comes after it and wins.
    fn own_counts(object: &Object<'_>, out: &mut Assembler) {
        let first = |keys: [&str; 2]| keys.iter().find_map(|key| object.count(key));
        let input = first(["inputTextTokenCount", "prompt_token_count"]);
        let of_results = || {
            let tokens = object.list("results").into_iter().filter_map(|raw| Object::from_raw(raw).ok()?.count("tokenCount"));
            tokens.reduce(u64::saturating_add)
        };
        let output = first(["totalOutputTextTokenCount", "generation_token_count"]).or_else(of_results);
        if object.raw(METRICS).is_some() || (input.is_none() && output.is_none()) {
            return;
        }
        let raw = format!(
            r#"{{"inputTokenCount":{},"outputTokenCount":{}}}"#,
            input.map_or("null".to_owned(), |count| count.to_string()),
            output.map_or("null".to_owned(), |count| count.to_string())
        );
        if let Ok(raw) = RawValue::from_string(raw) {
            out.usage(UsageCounts { input, output, ..UsageCounts::default() }, &raw);
        }
    }

    /// A guardrail that stepped in says so in every chunk.
    fn guardrail(&mut self, object: &Object<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        if object.text(GUARDRAIL) == "INTERVENED" && !std::mem::replace(&mut self.intervened, true) {
            out.provider_event(GUARDRAIL, Some(Json::string("INTERVENED")));
        }
        object.raw(TRACE).map_or(Ok(()), |raw| pass(TRACE, raw, out))
    }
}

/// Whether a model answers as OpenAI's chat does; others have `choices` too, and their own words in them.
fn speaks_chat(object: &Object<'_>) -> bool {
    let first = object.list("choices").first().and_then(|raw| Object::from_raw(raw).ok()).unwrap_or_default();
    first.raw("delta").is_some() || first.raw("finish_reason").is_some()
}

fn server_result(result: &Object<'_>) -> ServerResult {
    let failed = result.text("status") == "error";
    ServerResult { call_id: (*result.text("toolUseId")).into(), failed, pieces: Vec::new() }
}

/// An image among the blocks: its bytes, or where they are.
fn image(image: &Object<'_>, raw: &RawValue, message_id: Option<Id>, out: &mut Assembler) -> Result<(), Malformed> {
    let some = |text: Cow<'_, str>| (!text.is_empty()).then(|| Text::from(&*text));
    let source = image.object("source");
    let (data, url) = (some(source.text("bytes")), some(source.object("s3Location").text("uri")));
    if data.is_none() && url.is_none() {
        return pass("image", raw, out);
    }
    let media_type = format!("image/{}", image.text("format")).into();
    out.file(File { media_type, name: None, url, file_id: None, data, message_id });
    Ok(())
}

/// A file that an agent made.
fn agent_file(file: &Object<'_>, out: &mut Assembler) -> Result<(), Malformed> {
    let some = |text: Cow<'_, str>| (!text.is_empty()).then(|| Text::from(&*text));
    let (name, data) = (some(file.text("name")), some(file.text("bytes")));
    out.file(File { media_type: (*file.text("type")).into(), name, url: None, file_id: None, data, message_id: None });
    file.pass_others(&["name", "bytes", "type"], out)
}

/// Counts under Converse's names and under those of the metrics. Input read from a cache, or written to one, is counted
/// apart from the rest.
fn counts(usage: &Object<'_>) -> UsageCounts {
    let first = |keys: &[&str]| keys.iter().find_map(|key| usage.count(key));
    let cache_read = first(&["cacheReadInputTokens", "cacheReadInputTokenCount"]);
    let cache_write = first(&["cacheWriteInputTokens", "cacheWriteInputTokenCount"]);
    let fresh = first(&["inputTokens", "inputTokenCount"]);
    let input = [fresh, cache_read, cache_write].into_iter().flatten().reduce(u64::saturating_add);
    let output = first(&["outputTokens", "outputTokenCount"]);
    UsageCounts { input, output, total: usage.count("totalTokens"), cache_read, cache_write, ..UsageCounts::default() }
}

/// The words of Converse and of all families.
fn finish_reason(raw: &str) -> FinishReason {
    match raw {
        "end_turn" | "stop_sequence" | "stop" | "endoftext" | "FINISH" | "FINISHED" | "STOP_CRITERIA_MET" | "COMPLETE"
        | "STOP_SEQUENCE" => FinishReason::Stop,
        "tool_use" | "tool_calls" | "TOOL_CALL" => FinishReason::ToolCalls,
        "max_tokens" | "model_context_window_exceeded" | "length" | "LENGTH" | "MAX_TOKENS" => FinishReason::Length,
        "guardrail_intervened" | "content_filtered" | "CONTENT_FILTERED" | "ERROR_TOXIC" => FinishReason::ContentFilter,
        "refusal" => FinishReason::Refusal,
        "ERROR" | "malformed_model_output" | "malformed_tool_use" => FinishReason::Error,
        _ => FinishReason::Unknown,
    }
}

/// The exception that stands, parsed, under its name.
fn exception<'a>(object: &Object<'a>) -> Option<(&'static str, &'a RawValue)> {
    const NAMES: [&str; 12] = [
        "throttlingException",
        "internalServerException",
        "modelStreamErrorException",
        "modelTimeoutException",
        "modelErrorException",
        "modelNotReadyException",
        "serviceUnavailableException",
        "serviceQuotaExceededException",
        "badGatewayException",
        "dependencyFailedException",
        "accessDeniedException",
        "validationException",
    ];
    NAMES.iter().find_map(|name| Some((*name, object.raw(name)?)))
}

/// Says an exception. `name` may carry a namespace before a `#`.
fn report(name: &str, data: &[u8], out: &mut Assembler) {
    let name = name.rsplit('#').next().unwrap_or(name);
    // Some exceptions are a bare text, or nothing.
    let raw = serde_json::from_slice::<&RawValue>(data).ok();
    let object = raw.and_then(|raw| Object::from_raw(raw).ok()).unwrap_or_default();
    let raw = raw.map_or_else(|| Some(Json::string(&String::from_utf8_lossy(data))), |raw| Json::from_raw(raw).ok());
    // An error without an exception's name has its code inside.
    let code = if matches!(name, "error" | "") { object.text("code") } else { name.into() };
    let code = if code.is_empty() { "error" } else { &*code };
    let message = ["message", "Message", "originalMessage"].iter().map(|key| object.text(key)).find(|text| !text.is_empty());
    let message = message.unwrap_or("Bedrock reported an error without a message".into());
    out.error(code, &message, is_retryable(code), raw);
}

/// What the API's reference says to try again.
fn is_retryable(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    ["throttl", "internalserver", "internalfailure", "modelstreamerror", "modelnotready", "badgateway"]
        .iter()
        .any(|sign| lower.contains(sign))
        || fault::is_retryable(name)
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;

    use super::*;
    use crate::event::Payload;
    use crate::frame::aws::encode;
    use crate::provider::testing::{all, message, passed, said};
    use crate::provider::{Normalizer, Options};

    fn normalized(provider: &str, bytes: &[u8]) -> Vec<Payload> {
        let mut normalizer = Normalizer::new(provider, Options::default()).unwrap();
        normalizer.feed(bytes).and_then(|()| normalizer.finish()).unwrap();
        normalizer.drain().collect()
    }

    /// Converse events as AWS messages.
    fn converse(events: &[(&str, &str)]) -> Vec<Payload> {
        let bytes: Vec<u8> = events.iter().flat_map(|(name, payload)| encode::event(name, payload)).collect();
        let payloads = normalized("bedrock", &bytes);
        // The same events, parsed and under their names, as other tools keep them.
        let lines = events.iter().map(|(name, payload)| format!("{{\"{name}\":{payload}}}")).collect::<Vec<_>>().join("\n");
        assert_eq!(normalized("bedrock", lines.as_bytes()), payloads);
        assert_eq!(normalized("auto", &bytes), payloads);
        payloads
    }

    fn chunk(inner: &str) -> Vec<u8> {
        let bytes = base64::engine::general_purpose::STANDARD.encode(inner);
        encode::event("chunk", &format!(r#"{{"bytes":"{bytes}","p":"abcd"}}"#))
    }

    /// A model's own chunks.
    fn invoke(chunks: &[&str]) -> Vec<Payload> {
        normalized("auto", &chunks.iter().flat_map(|inner| chunk(inner)).collect::<Vec<_>>())
    }

    const START: (&str, &str) = ("messageStart", r#"{"role":"assistant","p":"abc"}"#);
    const USAGE: (&str, &str) =
        ("metadata", r#"{"usage":{"inputTokens":3,"outputTokens":4,"totalTokens":7},"metrics":{"latencyMs":5},"p":"a"}"#);

    fn text(index: u64, text: &str) -> (&'static str, String) {
        ("contentBlockDelta", format!(r#"{{"contentBlockIndex":{index},"delta":{{"text":"{text}"}},"p":"abcdef"}}"#))
    }

    fn stop(reason: &str) -> (&'static str, String) {
        ("messageStop", format!(r#"{{"stopReason":"{reason}","p":"x"}}"#))
    }

    fn borrow(events: &[(&'static str, String)]) -> Vec<Payload> {
        converse(&events.iter().map(|(name, payload)| (*name, payload.as_str())).collect::<Vec<_>>())
    }

    fn owned((name, payload): (&'static str, &str)) -> (&'static str, String) {
        (name, payload.to_owned())
    }

    #[test]
    fn b1_a_block_of_text_or_reasoning_begins_with_its_first_delta() {
        let think = |index, piece: &str| {
            let delta = format!(r#"{{"reasoningContent":{{"text":"{piece}"}}}}"#);
            ("contentBlockDelta", format!(r#"{{"contentBlockIndex":{index},"delta":{delta}}}"#))
        };
        let events = borrow(&[
            owned(START),
            think(0, "One"),
            think(0, "."),
            think(1, "Two."),
            text(2, "Hi "),
            text(2, "there"),
            stop("end_turn"),
            owned(USAGE),
        ]);
        assert_eq!((&*message(&events).text, &*message(&events).reasoning), ("Hi there", "One.\n\nTwo."));
        assert_eq!(
            (message(&events).finish_reason, message(&events).finish_reason_raw.as_deref()),
            (FinishReason::Stop, Some("end_turn"))
        );
        assert!(all!(events, Error).is_empty() && all!(events, Warning).is_empty());
    }

    #[test]
    fn b2_usage_comes_after_the_stop_and_before_it_too() {
        for order in [[stop("end_turn"), owned(USAGE)], [owned(USAGE), stop("end_turn")]] {
            let [a, b] = order;
            let events = borrow(&[owned(START), text(0, "Hi"), a, b]);
            let usage = all!(events, Usage);
            assert_eq!((usage.len(), usage[0].input_tokens, usage[0].total_tokens), (1, Some(3), Some(7)));
            assert_eq!(passed(&events, "metrics"), r#"{"latencyMs":5}"#);
        }
    }

    #[test]
    fn b2_cached_input_is_part_of_the_input() {
        let usage = r#"{"usage":{"inputTokens":12,"cacheReadInputTokens":1000,"cacheReadInputTokenCount":1000,
            "cacheWriteInputTokens":100,"outputTokens":8,"totalTokens":1120}}"#;
        let events = borrow(&[owned(START), text(0, "Hi"), stop("end_turn"), ("metadata", usage.replace('\n', ""))]);
        let usage = all!(events, Usage)[0];
        assert_eq!((usage.input_tokens, usage.output_tokens, usage.total_tokens), (Some(1112), Some(8), Some(1120)));
        assert_eq!((usage.cache_read_tokens, usage.cache_write_tokens), (Some(1000), Some(100)));
    }

    #[test]
    fn b3_an_empty_block_of_text_before_the_reasoning_says_nothing() {
        let think = ("contentBlockDelta", r#"{"contentBlockIndex":1,"delta":{"reasoningContent":{"text":"Hm."}}}"#.to_owned());
        let empty_stop = ("contentBlockStop", r#"{"contentBlockIndex":0}"#.to_owned());
        let events = borrow(&[owned(START), text(0, ""), empty_stop, think, text(2, "Hi"), stop("end_turn")]);
        assert_eq!((&*message(&events).text, &*message(&events).reasoning), ("Hi", "Hm."));
        assert_eq!(all!(events, TextDelta).len(), 1);
    }

    const TOOL: (&str, &str) =
        ("contentBlockStart", r#"{"contentBlockIndex":1,"start":{"toolUse":{"toolUseId":"t_1","name":"add"}}}"#);

    fn input(piece: &str) -> (&'static str, String) {
        let piece = Json::string(piece);
        ("contentBlockDelta", format!(r#"{{"contentBlockIndex":1,"delta":{{"toolUse":{{"input":{piece:?}}}}}}}"#))
    }

    const BLOCK_STOP: (&str, &str) = ("contentBlockStop", r#"{"contentBlockIndex":1}"#);

    #[test]
    fn b4_a_tool_of_the_server_is_not_the_clients() {
        let server = r#"{"contentBlockIndex":0,"start":{"toolUse":{"toolUseId":"s_1","name":"run","type":"server_tool_use"}}}"#;
        let ran = r#"{"contentBlockIndex":0,"delta":{"toolUse":{"input":"{\"code\":\"1+1\"}"}}}"#;
        let result =
            r#"{"contentBlockIndex":2,"start":{"toolResult":{"toolUseId":"s_1","type":"run_result","status":"success"}}}"#;
        let output = r#"{"contentBlockIndex":2,"delta":{"toolResult":[{"json":{"stdOut":"2"}}]}}"#;
        let events = converse(&[
            START,
            ("contentBlockStart", server),
            ("contentBlockDelta", ran),
            ("contentBlockStop", r#"{"contentBlockIndex":0}"#),
            ("contentBlockStart", result),
            ("contentBlockDelta", output),
            ("contentBlockStop", r#"{"contentBlockIndex":2}"#),
            TOOL,
            (input("{}").0, &input("{}").1),
            BLOCK_STOP,
            ("messageStop", r#"{"stopReason":"tool_use"}"#),
        ]);
        let calls = all!(events, ToolCall);
        assert_eq!(
            calls.iter().map(|call| (&*call.call_id, call.kind)).collect::<Vec<_>>(),
            [("s_1", Kind::Server), ("t_1", Kind::Client)]
        );
        let result = all!(events, ToolResult)[0];
        assert_eq!((&*result.call_id, result.is_error, &*result.status), ("s_1", false, "completed"));
        assert_eq!(result.output.as_ref().unwrap().as_str(), r#"[{"json":{"stdOut":"2"}}]"#);
        assert_eq!(message(&events).tool_calls.len(), 1, "the message waits for the client's tool alone");
    }

    #[test]
    fn edge_24_b5_signatures_and_redacted_reasoning_pass_and_are_not_shown() {
        let delta = |content: &str| {
            let delta = format!(r#"{{"contentBlockIndex":0,"delta":{{"reasoningContent":{content}}}}}"#);
            ("contentBlockDelta", delta)
        };
        let redacted = delta(r#"{"redactedContent":"c2VjcmV0"}"#);
        let events = borrow(&[owned(START), redacted, delta(r#"{"signature":"c2ln"}"#), text(1, "Hi"), stop("end_turn")]);
        assert_eq!((&*message(&events).text, &*message(&events).reasoning), ("Hi", ""));
        assert_eq!(passed(&events, "redactedContent"), r#""c2VjcmV0""#);
        assert_eq!(passed(&events, "signature"), r#"{"index":0,"signature":"c2ln"}"#);
    }

    #[test]
    fn b6_a_guardrail_that_steps_in_is_the_reason() {
        let trace = ("metadata", r#"{"usage":{"inputTokens":1},"trace":{"guardrail":{"action":"masked"}}}"#.to_owned());
        let events = borrow(&[owned(START), text(0, "{NAME}"), stop("guardrail_intervened"), trace]);
        assert_eq!(message(&events).finish_reason, FinishReason::ContentFilter);
        assert_eq!(passed(&events, "trace"), r#"{"guardrail":{"action":"masked"}}"#);
    }

    #[test]
    fn b6_a_models_chunks_each_name_the_guardrail_and_it_is_said_once() {
        let events = invoke(&[
            r#"{"outputText":"Input ","index":0.0,"amazon-bedrock-guardrailAction":"INTERVENED"}"#,
            r#"{"outputText":"blocked","index":0.0,"amazon-bedrock-guardrailAction":"INTERVENED","amazon-bedrock-trace":{"g":1}}"#,
        ]);
        assert_eq!((&*message(&events).text, message(&events).finish_reason), ("Input blocked", FinishReason::ContentFilter));
        assert_eq!(message(&events).finish_reason_raw, None);
        assert_eq!(passed(&events, GUARDRAIL), r#""INTERVENED""#);
        assert_eq!(passed(&events, TRACE), r#"{"g":1}"#);
        assert!(all!(events, Error).is_empty(), "no reason was said, and nothing was cut");
    }

    const METERED: &str = r#""amazon-bedrock-invocationMetrics":{"inputTokenCount":5,"outputTokenCount":2,"firstByteLatency":9}"#;

    #[test]
    fn b7_families_of_text_and_reason() {
        let with_metrics = |chunk: &str| format!("{},{METERED}}}", chunk.strip_suffix('}').unwrap());
        for (first, last, reason, raw) in [
            (
                r#"{"outputText":"Hel","index":0,"completionReason":null}"#,
                r#"{"outputText":"lo","index":0,"completionReason":"FINISH"}"#,
                FinishReason::Stop,
                "FINISH",
            ),
            (
                r#"{"generation":"Hel","prompt_token_count":5,"generation_token_count":1,"stop_reason":null}"#,
                r#"{"generation":"lo","prompt_token_count":null,"generation_token_count":2,"stop_reason":"length"}"#,
                FinishReason::Length,
                "length",
            ),
            (
                r#"{"is_finished":false,"text":"Hel"}"#,
                r#"{"text":"lo","is_finished":true,"finish_reason":"COMPLETE"}"#,
                FinishReason::Stop,
                "COMPLETE",
            ),
            (
                r#"{"completion":"Hel","stop_reason":null,"stop":null}"#,
                r#"{"completion":"lo","stop_reason":"stop_sequence","stop":"\n\nHuman:"}"#,
                FinishReason::Stop,
                "stop_sequence",
            ),
            (
                r#"{"outputs":[{"text":"Hel","stop_reason":null}]}"#,
                r#"{"outputs":[{"text":"lo","stop_reason":"stop"}]}"#,
                FinishReason::Stop,
                "stop",
            ),
            (
                r#"{"choices":[{"index":0,"message":{"role":"assistant","content":"Hel"},"stop_reason":null}]}"#,
                r#"{"choices":[{"index":0,"message":{"content":"lo"},"stop_reason":"length"}]}"#,
                FinishReason::Length,
                "length",
            ),
            (
                r#"{"id":"c","choices":[{"index":0,"delta":{"content":"Hel"}}]}"#,
                r#"{"id":"c","choices":[{"index":0,"delta":{"content":"lo"},"finish_reason":"stop"}],"usage":{"prompt_tokens":5,"completion_tokens":2}}"#,
                FinishReason::Stop,
                "stop",
            ),
        ] {
            let events = invoke(&[first, &with_metrics(last)]);
            let message = message(&events);
            assert_eq!(
                (&*message.text, message.finish_reason, message.finish_reason_raw.as_deref()),
                ("Hello", reason, Some(raw))
            );
            let usage = all!(events, Usage)[0];
            assert_eq!((usage.input_tokens, usage.output_tokens, usage.total_tokens), (Some(5), Some(2), Some(7)), "{first}");
            assert!(all!(events, Error).is_empty() && all!(events, Warning).is_empty(), "{first}");
        }
    }

    #[test]
    fn b7_cohere_numbers_several_answers() {
        let events = invoke(&[
            r#"{"index":0,"is_finished":false,"text":"A"}"#,
            r#"{"index":1,"is_finished":false,"text":"B"}"#,
            r#"{"index":0,"is_finished":true,"finish_reason":"COMPLETE"}"#,
            r#"{"index":1,"is_finished":true,"finish_reason":"MAX_TOKENS"}"#,
        ]);
        let messages = all!(events, AssistantMessage);
        assert_eq!(
            messages.iter().map(|message| (message.choice, &*message.text)).collect::<Vec<_>>(),
            [(Some(0), "A"), (Some(1), "B")]
        );
    }

    #[test]
    fn b7_novas_chunks_are_converse_events() {
        let events = invoke(&[
            r#"{"messageStart":{"role":"assistant"}}"#,
            r#"{"contentBlockDelta":{"delta":{"text":"Hi"},"contentBlockIndex":0}}"#,
            r#"{"contentBlockStop":{"contentBlockIndex":0}}"#,
            r#"{"contentBlockStart":{"start":{"toolUse":{"toolUseId":"t_1","name":"add"}},"contentBlockIndex":1}}"#,
            r#"{"contentBlockDelta":{"delta":{"toolUse":{"input":"{\"a\":1}"}},"contentBlockIndex":1}}"#,
            r#"{"contentBlockStop":{"contentBlockIndex":1}}"#,
            r#"{"messageStop":{"stopReason":"tool_use"}}"#,
            &format!(r#"{{"metadata":{{"usage":{{"inputTokens":3,"outputTokens":4}}}},{METERED}}}"#),
        ]);
        assert_eq!((&*message(&events).text, message(&events).finish_reason), ("Hi", FinishReason::ToolCalls));
        assert_eq!(said(all!(events, ToolCall)[0]), Some(r#"{"a":1}"#));
        assert_eq!(all!(events, Usage)[0].total_tokens, Some(7), "the model's own count, not the metrics'");
        assert!(passed(&events, METRICS).contains("firstByteLatency"));
    }

    #[test]
    fn b7_f10_anthropics_events_are_read_as_anthropics() {
        let events = invoke(&[
            r#"{"type":"message_start","message":{"id":"msg_a","content":[],"model":"m-1","usage":{"input_tokens":3}}}"#,
            r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hel"}}"#,
            r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"lo"}}"#,
            r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":4}}"#,
            &format!(r#"{{"type":"message_stop",{METERED}}}"#),
        ]);
        assert_eq!((&*message(&events).message_id, &*message(&events).text), ("msg_a", "Hello"));
        assert_eq!(all!(events, Usage)[0].total_tokens, Some(7));
        assert!(passed(&events, METRICS).contains("firstByteLatency"));
    }

    #[test]
    fn an_agents_text_may_be_cut_inside_a_character_and_has_no_end() {
        let text = "Zürich 🌍";
        let whole = base64::engine::general_purpose::STANDARD;
        for cut in 0..text.len() {
            let (first, second) = text.as_bytes().split_at(cut);
            let bytes: Vec<u8> = [("trace", r#"{"agentId":"A","trace":{"x":1}}"#.to_owned())]
                .into_iter()
                .chain([first, second].map(|piece| ("chunk", format!(r#"{{"bytes":"{}"}}"#, whole.encode(piece)))))
                .flat_map(|(name, payload)| encode::event(name, &payload))
                .collect();
            let events = normalized("auto", &bytes);
            assert_eq!(message(&events).text, text);
            assert!(all!(events, Error).is_empty());
            assert_eq!(passed(&events, "trace"), r#"{"agentId":"A","trace":{"x":1}}"#);
        }
    }

    #[test]
    fn an_sdks_dicts_are_read_like_the_messages_they_came_from() {
        let engine = base64::engine::general_purpose::STANDARD;
        let inner = r#"{"outputText":"Hi","index":0,"completionReason":"FINISH"}"#;
        let dict = format!(r#"{{"chunk":{{"bytes":"{}"}}}}"#, engine.encode(inner));
        assert_eq!(normalized("auto", dict.as_bytes()), invoke(&[inner]));
        let trace = r#"{"trace":{"agentId":"A","trace":{"x":1}}}"#;
        let text = format!(r#"{{"chunk":{{"bytes":"{}"}}}}"#, engine.encode("Zürich"));
        let events = normalized("auto", format!("{trace}\n{text}").as_bytes());
        assert_eq!((&*message(&events).text, passed(&events, "trace")), ("Zürich", r#"{"agentId":"A","trace":{"x":1}}"#));
    }

    #[test]
    fn exceptions_are_errors_and_say_whether_to_try_again() {
        for (name, retryable) in [
            ("throttlingException", true),
            ("serviceUnavailableException", true),
            ("internalServerException", true),
            ("modelStreamErrorException", true),
            ("modelTimeoutException", true),
            ("modelNotReadyException", true),
            ("validationException", false),
            ("accessDeniedException", false),
            ("modelErrorException", false),
        ] {
            let start = encode::event(START.0, START.1);
            let delta = encode::event("contentBlockDelta", &text(0, "Half").1);
            let payload = r#"{"message":"Too many"}"#;
            let events = normalized("auto", &[start, delta, encode::exception(name, payload)].concat());
            let error = all!(events, Error)[0];
            assert_eq!((&*error.code, &*error.message, error.retryable), (name, "Too many", retryable));
            assert_eq!((&*message(&events).text, message(&events).finish_reason), ("Half", FinishReason::Error));
            // Parsed, the exception stands under its name.
            let events = normalized("auto", format!(r#"{{"{name}":{payload}}}"#).as_bytes());
            assert_eq!((&*all!(events, Error)[0].code, all!(events, Error)[0].retryable), (name, retryable));
        }
        let header = |name, value| encode::text(name, value);
        let failed = encode::message(
            &[header(":message-type", "error"), header(":error-code", "InternalFailure"), header(":error-message", "oops")],
            b"",
        );
        let events = normalized("bedrock", &failed);
        assert_eq!((&*all!(events, Error)[0].code, &*all!(events, Error)[0].message), ("InternalFailure", "oops"));
        let refused =
            normalized("auto", br#"{"Output":{"__type":"com.amazon.coral.service#UnknownOperationException"},"Version":"1.0"}"#);
        assert_eq!(&*all!(refused, Error)[0].code, "UnknownOperationException");
        let body = r#"{"__type":"com.amazon.coral.service#ThrottlingException","message":"slow down"}"#;
        let events = normalized("bedrock", body.as_bytes());
        assert_eq!((&*all!(events, Error)[0].code, all!(events, Error)[0].retryable), ("ThrottlingException", true));
    }

    #[test]
    fn a_whole_answer_is_read_like_its_stream() {
        let body = r#"{"output":{"message":{"role":"assistant","content":[
            {"reasoningContent":{"reasoningText":{"text":"Hm.","signature":"c2ln"}}},
            {"text":"Hi"},
            {"citationsContent":{"content":[{"text":" there"}],"citations":[{"title":"facts","location":{"web":{"url":"https://a.example"}}}]}},
            {"toolUse":{"toolUseId":"t_1","name":"add","input":{"a":1}}}]}},
            "stopReason":"tool_use","usage":{"inputTokens":3,"outputTokens":4,"totalTokens":7},"metrics":{"latencyMs":5}}"#;
        let events = normalized("auto", body.as_bytes());
        let message = message(&events);
        assert_eq!((&*message.text, &*message.reasoning, message.streamed), ("Hi there", "Hm.", false));
        assert_eq!(message.finish_reason, FinishReason::ToolCalls);
        assert_eq!(said(all!(events, ToolCall)[0]), Some(r#"{"a":1}"#));
        assert_eq!(
            (all!(events, Usage)[0].total_tokens, all!(events, Citation)[0].url.as_deref()),
            (Some(7), Some("https://a.example"))
        );
        for body in [
            r#"{"inputTextTokenCount":5,"results":[{"tokenCount":2,"outputText":"Hi","completionReason":"FINISH"}]}"#,
            r#"{"generation":"Hi","prompt_token_count":5,"generation_token_count":2,"stop_reason":"stop"}"#,
        ] {
            let events = normalized("auto", body.as_bytes());
            assert_eq!((&*all!(events, AssistantMessage)[0].text, all!(events, Usage)[0].total_tokens), ("Hi", Some(7)));
            assert!(all!(events, Error).is_empty());
        }
    }

    #[test]
    fn a_citation_says_its_source_and_what_it_cites() {
        let citation =
            r#"{"title":"facts","sourceContent":[{"text":"It "},{"text":"is."}],"location":{"documentChar":{"start":0}}}"#;
        let delta = format!(r#"{{"contentBlockIndex":0,"delta":{{"citation":{citation}}}}}"#);
        let events = borrow(&[owned(START), ("contentBlockDelta", delta), text(0, "So."), stop("end_turn")]);
        let cited = all!(events, Citation)[0];
        assert_eq!((cited.title.as_deref(), cited.text.as_deref(), cited.url.as_deref()), (Some("facts"), Some("It is."), None));
        assert_eq!(cited.raw.as_ref().unwrap().as_str(), citation);
    }

    #[test]
    fn a_tool_without_arguments_is_an_empty_object_and_a_cut_one_is_not() {
        let events = borrow(&[owned(START), owned(TOOL), input(""), owned(BLOCK_STOP), stop("tool_use")]);
        assert_eq!(said(all!(events, ToolCall)[0]), Some("{}"));
        let events = borrow(&[owned(START), owned(TOOL), stop("tool_use")]);
        assert_eq!(said(all!(events, ToolCall)[0]), Some("{}"), "its stop was forgotten");
        let events = borrow(&[owned(START), owned(TOOL), input(r#"{"a":"#), stop("max_tokens")]);
        let cut = all!(events, ToolCall)[0];
        assert_eq!((said(cut), &*cut.arguments_raw), (None, r#"{"a":"#));
        let events = borrow(&[owned(START), owned(TOOL)]);
        assert!(all!(events, ToolCall)[0].arguments_error.is_some());
        assert_eq!(all!(events, Error)[0].code, "stream_truncated");
    }

    #[test]
    fn two_answers_in_a_row_are_two_rounds() {
        let one = [owned(START), text(0, "A"), stop("end_turn"), owned(USAGE)];
        let events = borrow(&[one.clone(), one].concat());
        assert_eq!((all!(events, AssistantMessage).len(), all!(events, RoundEnd).len(), all!(events, Usage).len()), (2, 2, 2));
    }

    #[test]
    fn what_has_no_word_passes() {
        let image = ("contentBlockDelta", r#"{"contentBlockIndex":0,"delta":{"hologram":{"x":1}}}"#.to_owned());
        let end = ("messageStop", r#"{"stopReason":"end_turn","additionalModelResponseFields":{"k":1}}"#.to_owned());
        let events = borrow(&[owned(START), image, text(1, "Hi"), end]);
        assert_eq!(passed(&events, "hologram"), r#"{"x":1}"#);
        assert_eq!(passed(&events, "additionalModelResponseFields"), r#"{"k":1}"#);
        let events = normalized("bedrock", &chunk(r#"{"weather":"blue"}"#));
        assert_eq!(passed(&events, "chunk"), r#"{"weather":"blue"}"#);
    }

    #[test]
    fn a_checksum_that_does_not_match_is_a_warning_and_a_bad_prelude_the_end() {
        let mut bytes = encode::event(START.0, START.1);
        let mut lost = encode::event("contentBlockDelta", &text(0, "lost").1);
        let at = lost.len() - 20;
        lost[at] ^= 1;
        bytes.extend(lost);
        bytes.extend(encode::event("contentBlockDelta", &text(0, "kept").1));
        bytes.extend(encode::event("messageStop", &stop("end_turn").1));
        let events = normalized("bedrock", &bytes);
        assert_eq!((&*message(&events).text, &*all!(events, Warning)[0].code), ("kept", "malformed_frame"));
        bytes.extend([0, 0, 1, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5]);
        let mut normalizer = Normalizer::new("bedrock", Options::default()).unwrap();
        let failed = normalizer.feed(&bytes).unwrap_err();
        assert!(failed.to_string().contains("lost in aws event stream at byte"), "{failed}");
        let events: Vec<_> = normalizer.drain().collect();
        assert_eq!((&*message(&events).text, &*all!(events, Error)[0].code), ("kept", "protocol_error"));
    }
}
