//! Gemini's `generateContent` and its stream, of the Developer API and of Vertex AI: server-sent events, the array of
//! chunks, whole bodies, error bodies; and the Live API's messages.
//!
//! Owns what candidates, parts, finish reasons and token counts of this API mean, in either spelling of their names
//! (`usageMetadata`, and `usage_metadata` as its SDK writes it). Knows nothing of framing.
//! Invariants: 1. a candidate is a message, whatever number of chunks say that it is finished; 2. a thought's text is
//! reasoning, never text; 3. arguments that come by path are JSON text as they come, as long as they come in order;
//! 4. signatures and whatever else must be sent back pass as `provider_event`.
//!
//! Format: <https://ai.google.dev/api/generate-content>

mod live;

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use serde_json::value::RawValue;

use super::arguments::Arguments;
use super::lax::{Count, Flag, List, Word, object};
use super::wire::{Latest, Object, pass, pass_of, unknown};
use super::{Assembler, Likeness, Malformed, Provider, UsageCounts, fault};
use crate::event::{Citation, File, FinishReason, Id, Json, Kind, Text};
use crate::frame::Frame;

/// Most candidates of one request. The API's own limit is 8.
const MAX_CANDIDATES: u64 = 1024;

object! {
    Chunk<'a> {
        candidates: List<Candidate<'a>> = "candidates",
        usage: Option<&'a RawValue> = "usageMetadata" | "usage_metadata",
        model: Word<'a> = "modelVersion" | "model_version",
        id: Word<'a> = "responseId" | "response_id",
        feedback: Option<&'a RawValue> = "promptFeedback" | "prompt_feedback",
        error: Option<&'a RawValue> = "error",
        response: Option<&'a RawValue> = "response",
        // What the SDK's own models add.
    } skip { "createTime" "create_time" "sdkHttpResponse" "sdk_http_response" }
}

object! {
    Candidate<'a> {
        index: Count = "index",
        content: Content<'a> = "content",
        finish_reason: Word<'a> = "finishReason" | "finish_reason",
        grounding: Option<&'a RawValue> = "groundingMetadata" | "grounding_metadata",
        citations: Option<&'a RawValue> = "citationMetadata" | "citation_metadata",
        logprobs: Option<&'a RawValue> = "logprobsResult" | "logprobs_result",
    } skip { }
}

object! {
    Content<'a> {
        parts: List<Part<'a>> = "parts",
    } skip { "role" }
}

object! {
    Part<'a> {
        text: Word<'a> = "text",
        thought: Flag = "thought",
        signature: Option<&'a RawValue> = "thoughtSignature" | "thought_signature",
        call: Call<'a> = "functionCall" | "function_call",
    } skip { }
}

object! {
    Call<'a> {
        id: Word<'a> = "id",
        name: Word<'a> = "name",
        args: Option<&'a RawValue> = "args",
        partial: List<Piece<'a>> = "partialArgs" | "partial_args",
        will_continue: Flag = "willContinue" | "will_continue",
    } skip { }
}

object! {
    Piece<'a> {
        path: Word<'a> = "jsonPath" | "json_path",
        string: Word<'a> = "stringValue" | "string_value",
        number: Option<&'a RawValue> = "numberValue" | "number_value",
        boolean: Option<&'a RawValue> = "boolValue" | "bool_value",
        will_continue: Flag = "willContinue" | "will_continue",
    } skip { "nullValue" "null_value" }
}

object! {
    Tokens<'a> {
        prompt: Count = "promptTokenCount" | "prompt_token_count",
        tool_use: Count = "toolUsePromptTokenCount" | "tool_use_prompt_token_count",
        candidates: Count = "candidatesTokenCount" | "candidates_token_count" | "responseTokenCount" | "response_token_count",
        thoughts: Count = "thoughtsTokenCount" | "thoughts_token_count",
        cached: Count = "cachedContentTokenCount" | "cached_content_token_count",
        total: Count = "totalTokenCount" | "total_token_count",
        of_prompt: Option<&'a RawValue> = "promptTokensDetails" | "prompt_tokens_details",
        of_candidates: Option<&'a RawValue> = "candidatesTokensDetails" | "candidates_tokens_details" | "responseTokensDetails",
    } skip { }
}

object! {
    Blob<'a> {
        media_type: Word<'a> = "mimeType" | "mime_type",
        data: Word<'a> = "data",
        url: Word<'a> = "fileUri" | "file_uri",
        name: Word<'a> = "displayName" | "display_name",
    } skip { }
}

/// Whether a frame is of this format.
pub(super) fn recognise(frame: &Frame<'_>) -> Likeness {
    let Ok(object) = Object::parse(frame.data) else { return Likeness::No };
    let inner = object.object("response");
    let has = |keys: &[&str]| keys.iter().any(|key| object.raw(key).is_some() || inner.raw(key).is_some());
    if has(&["candidates", "promptFeedback", "prompt_feedback", "usageMetadata", "usage_metadata", "modelVersion"])
        || live::is_live(&object)
    {
        return Likeness::Yes;
    }
    // An error as all of Google's services write it: a number, and its name in capitals.
    let error = object.object("error");
    let status = error.text("status");
    let named = !status.is_empty() && status.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_');
    if named && error.count("code").is_some() { Likeness::Yes } else { Likeness::No }
}

/// What is remembered of one candidate.
#[derive(Default)]
struct Answer {
    /// The call whose arguments still come, and its key.
    open: Option<(u64, Arguments)>,
    /// The newest call of each name, for a result that has no id.
    called: HashMap<Box<str>, Id>,
    /// The newest run of the code that the model wrote.
    ran: Option<Id>,
    finished: bool,
    /// All text so far is ASCII, so that the API's byte offsets are offsets in text.
    not_ascii: bool,
    /// Sources that have been said: many streams repeat them.
    cited: HashSet<Box<str>>,
}

/// The state machine.
#[derive(Default)]
pub(super) struct Gemini {
    answers: Vec<Answer>,
    next_call: u64,
    id: Box<str>,
    called: bool,
    /// The Live API speaks; its turn is over, but for its counts.
    live: bool,
    turn_over: bool,
    latest: Latest,
}

impl Provider for Gemini {
    fn frame(&mut self, frame: &Frame<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        match serde_json::from_slice(frame.data) {
            Ok(chunk) => self.chunk(chunk, frame, out),
            Err(_) if frame.data.trim_ascii() == b"[DONE]" => {
                out.mark_ended();
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn finish(&mut self, out: &mut Assembler) {
        self.end(out);
    }
}

impl Gemini {
    fn chunk(&mut self, chunk: Chunk<'_>, frame: &Frame<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        if !chunk.here {
            return Err(Malformed("expected an object".into()));
        }
        let known = chunk.candidates.here || chunk.usage.is_some() || chunk.feedback.is_some();
        // Code Assist puts the chunk into a member of its own.
        if let (false, Some(inner)) = (known, chunk.response) {
            return self.chunk(serde_json::from_str(inner.get())?, frame, out);
        }
        let nothing = !known && chunk.error.is_none() && chunk.model.is_empty() && chunk.id.is_empty();
        let begins_live = || nothing || chunk.others.iter().any(|(name, _)| live::is_name(name));
        if self.live || (begins_live() && live::is_live(&Object::parse(frame.data)?)) {
            return self.live(frame, out);
        }
        self.response(chunk.id.as_str(), out);
        out.model(chunk.model.as_str());
        for candidate in chunk.candidates.items {
            self.candidate(candidate, out)?;
        }
        if let Some(raw) = chunk.feedback {
            self.feedback(raw, out)?;
        }
        if let Some(raw) = chunk.usage {
            Self::usage(raw, out)?;
        }
        match chunk.error {
            Some(error) => fault::report(error, "error", out),
            None if nothing => {
                let name = if frame.event.is_empty() { "chunk" } else { frame.event };
                return unknown(name, serde_json::from_slice(frame.data)?, out);
            }
            None => {}
        }
        self.latest.keep_all(&chunk.others, out);
        Ok(())
    }

    /// Another response's id after calls were made and ended: an SDK that runs the tools itself joins its streams.
    fn response(&mut self, id: &str, out: &mut Assembler) {
        if id.is_empty() || *self.id == *id {
            return;
        }
        if self.called && self.answers.iter().all(|answer| answer.finished) {
            self.end(out);
            out.round_end();
            *self = Self { next_call: self.next_call, ..Self::default() };
        }
        self.id = id.into();
    }

    /// Calls whose end never came are whole if the model said that it is done.
    fn end(&mut self, out: &mut Assembler) {
        for answer in &mut self.answers {
            if let Some((key, mut arguments)) = answer.open.take() {
                if answer.finished {
                    arguments.end(key, out);
                    out.call_end(key);
                } else {
                    out.call_cut(key);
                }
            }
        }
        self.latest.say(out);
    }

    fn candidate(&mut self, candidate: Candidate<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        let index = candidate.index.0.unwrap_or(0);
        if index >= MAX_CANDIDATES {
            return Err(Malformed(format!("candidate {index} is beyond {MAX_CANDIDATES}")));
        }
        self.open(index, out);
        for part in candidate.content.parts.items {
            self.part(index, &part, out)?;
        }
        let raw = candidate.finish_reason.as_str();
        if !matches!(raw, "" | "0" | "FINISH_REASON_UNSPECIFIED") {
            self.answers[index as usize].finished = true;
            out.finish_reason_so_far(index, finish_reason(raw), raw);
        }
        if let Some(raw) = candidate.grounding {
            self.grounding(index, &Object::from_raw(raw)?, out)?;
        }
        if let Some(raw) = candidate.citations {
            let metadata = Object::from_raw(raw)?;
            for source in ["citations", "citationSources", "citation_sources"].iter().flat_map(|key| metadata.list(key)) {
                self.cite(index, source, &Object::from_raw(source)?, None, out)?;
            }
        }
        if let Some(raw) = candidate.logprobs {
            pass("logprobsResult", raw, out)?;
        }
        for (name, raw) in &candidate.others {
            self.latest.keep(&of(index, name), raw, out);
        }
        Ok(())
    }

    fn open(&mut self, index: u64, out: &mut Assembler) {
        while self.answers.len() as u64 <= index {
            self.answers.push(Answer::default());
        }
        if !out.is_open(index) {
            if index == 0 || self.id.is_empty() {
                out.open(index, &self.id, (index > 0).then_some(index));
            } else {
                out.open(index, &format!("{}-{index}", self.id), Some(index));
            }
        }
    }

    fn part(&mut self, index: u64, part: &Part<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        let text = part.text.as_str();
        if part.thought.0 {
            out.reasoning(index, None, text);
        } else if !text.is_empty() {
            self.answers[index as usize].not_ascii |= !text.is_ascii();
            out.text(index, text);
        }
        let mut signs = None;
        if part.call.here {
            signs = self.call(index, &part.call, out);
        }
        for (name, raw) in &part.others {
            let made = self.made(index, name, raw, part.thought.0, out)?;
            signs = signs.or(made);
        }
        if let Some(signature) = part.signature {
            let of = match &signs {
                Some(call) => ("call_id", call.clone()),
                None => ("message_id", out.message_id(index).unwrap_or_else(|| "".into())),
            };
            pass_of((of.0, &of.1), "thoughtSignature", signature, out)?;
        }
        Ok(())
    }

    /// A call, whole or in pieces. Gives its id.
    fn call(&mut self, index: u64, call: &Call<'_>, out: &mut Assembler) -> Option<Id> {
        let answer = &mut self.answers[index as usize];
        if !call.name.is_empty() {
            // A new name ends a call whose end never came.
            if let Some((key, mut arguments)) = answer.open.take() {
                arguments.end(key, out);
                out.call_end(key);
            }
            self.next_call += 1;
            self.called = true;
            let key = self.next_call;
            out.call(key, index, call.id.as_str(), call.name.as_str(), Kind::Client);
            if call.partial.items.is_empty() && !call.will_continue.0 {
                if let Some(args) = call.args {
                    out.arguments_whole(key, args.get());
                }
                let id = out.call_end(key);
                answer.called.extend(id.clone().map(|id| (call.name.as_str().into(), id)));
                return id;
            }
            let arguments = Arguments::begin(key, out);
            answer.called.extend(out.call_id(key).map(|id| (call.name.as_str().into(), id)));
            answer.open = Some((key, arguments));
        }
        let Some((key, arguments)) = &mut answer.open else {
            if call.args.is_some() || call.partial.here {
                out.disorder("stray_arguments", "arguments for a call that is not open");
            }
            return None;
        };
        let (key, id) = (*key, out.call_id(*key));
        if let Some(args) = call.args {
            arguments.members(key, args, out);
        }
        for piece in &call.partial.items {
            let path = piece.path.as_str();
            let taken = match (&piece.string.0, piece.number.or(piece.boolean)) {
                (Some(text), _) => arguments.text(key, path, text, out),
                (None, Some(value)) => arguments.value(key, path, value.get(), out),
                // The last piece of a string may be nothing at all.
                (None, None) if piece.will_continue.0 || arguments.is_in(path) => true,
                (None, None) => arguments.value(key, path, "null", out),
            };
            if !taken {
                out.warning("malformed_path", "an argument under a path that is none was dropped");
            }
        }
        if !call.will_continue.0 {
            arguments.end(key, out);
            answer.open = None;
            out.call_end(key);
        }
        id
    }

    /// Everything a part may hold besides text and calls. Gives the id of the call that it is.
    fn made(
        &mut self,
        index: u64,
        name: &str,
        raw: &RawValue,
        thought: bool,
        out: &mut Assembler,
    ) -> Result<Option<Id>, Malformed> {
        let answer = &mut self.answers[index as usize];
        let mut server_call = |id: &str, name: &str, arguments: Option<&RawValue>, out: &mut Assembler| {
            self.next_call += 1;
            out.call(self.next_call, index, id, name, Kind::Server);
            out.arguments_whole(self.next_call, arguments.map_or("", RawValue::get));
            out.call_end(self.next_call)
        };
        match name {
            "executableCode" | "executable_code" => {
                answer.ran = server_call(&Object::from_raw(raw)?.text("id"), "code_execution", Some(raw), out);
                return Ok(answer.ran.clone());
            }
            "codeExecutionResult" | "code_execution_result" => {
                let result = Object::from_raw(raw)?;
                let failed = !matches!(&*result.text("outcome"), "OUTCOME_OK" | "1");
                let id = result.text("id");
                let id = if id.is_empty() { answer.ran.clone().unwrap_or_else(|| "".into()) } else { (*id).into() };
                let status = if failed { "failed" } else { "completed" };
                out.tool_result(&id, Some("code_execution"), Some(Json::from_raw(raw)?), failed, status);
            }
            "toolCall" | "tool_call" => {
                let call = Object::from_raw(raw)?;
                let kind = [call.text("toolType"), call.text("tool_type")].into_iter().find(|kind| !kind.is_empty());
                return Ok(server_call(&call.text("id"), &kind.unwrap_or("tool".into()), call.raw("args"), out));
            }
            "toolResponse" | "tool_response" => {
                let answered = Object::from_raw(raw)?;
                let output = answered.raw("response").map(Json::from_raw).transpose()?;
                out.tool_result(&answered.text("id"), Some(&answered.text("toolType")), output, false, "completed");
            }
            "functionResponse" | "function_response" => {
                let answered = Object::from_raw(raw)?;
                let (id, name) = (answered.text("id"), answered.text("name"));
                let id = if id.is_empty() { answer.called.get(&*name).cloned().unwrap_or_default() } else { (*id).into() };
                let response = answered.object("response");
                let failed = response.raw("error").is_some();
                let output = answered.raw("response").map(Json::from_raw).transpose()?;
                out.tool_result(&id, Some(&name), output, failed, if failed { "failed" } else { "completed" });
            }
            // A draft that the model thinks with is not its answer.
            "inlineData" | "inline_data" | "fileData" | "file_data" if !thought => {
                let blob: Blob<'_> = serde_json::from_str(raw.get())?;
                let text = |word: Word<'_>| word.0.filter(|text| !text.is_empty()).map(Text::from);
                let media_type = text(blob.media_type).unwrap_or_else(|| "application/octet-stream".into());
                let message_id = out.message_id(index);
                let (name, url, data) = (text(blob.name), text(blob.url), text(blob.data));
                out.file(File { media_type, name, url, file_id: None, data, message_id });
            }
            "inlineData" | "inline_data" | "fileData" | "file_data" => pass("thought", raw, out)?,
            "videoMetadata" | "video_metadata" | "partMetadata" | "part_metadata" => pass(name, raw, out)?,
            name => unknown(name, raw, out)?,
        }
        Ok(None)
    }

    fn feedback(&mut self, raw: &RawValue, out: &mut Assembler) -> Result<(), Malformed> {
        let feedback = Object::from_raw(raw)?;
        let reason = [feedback.text("blockReason"), feedback.text("block_reason")].concat();
        if matches!(&*reason, "" | "0" | "BLOCK_REASON_UNSPECIFIED" | "BLOCKED_REASON_UNSPECIFIED") {
            self.latest.keep("promptFeedback", raw, out);
            return Ok(());
        }
        // The prompt was blocked: there is no candidate, and so no finish reason of one.
        self.open(0, out);
        self.answers[0].finished = true;
        out.finish_reason_so_far(0, FinishReason::ContentFilter, "");
        pass("promptFeedback", raw, out)
    }

    /// Each chunk's counts are the whole so far, without what is zero; some chunks say something else beside them.
    fn usage(raw: &RawValue, out: &mut Assembler) -> Result<(), Malformed> {
        let tokens: Tokens<'_> = serde_json::from_str(raw.get())?;
        let (candidates, total) = (tokens.candidates.0, tokens.total.0);
        // What tools read counts apart.
        let input = sum(tokens.prompt.0, tokens.tool_use.0);
        // Some versions count thoughts among the candidates' tokens; the total gives it away.
        let among = total.is_some() && candidates.is_some() && sum(input, candidates) == total;
        let counts = UsageCounts {
            input,
            output: if among { candidates } else { sum(candidates, tokens.thoughts.0) },
            total,
            cache_read: tokens.cached.0,
            cache_write: None,
            reasoning: tokens.thoughts.0,
            audio_input: audio(tokens.of_prompt),
            audio_output: audio(tokens.of_candidates),
        };
        if tokens.prompt.0.is_some() || total.is_some() {
            out.usage_whole(counts, raw);
        } else {
            out.usage(counts, raw);
        }
        Ok(())
    }

    // --- sources --------------------------------------------------------------------------------------------------

    /// What the answer rests on: a citation for each passage and source, and for each source without a passage.
    fn grounding(&mut self, index: u64, metadata: &Object<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        let either = |camel: &str, snake: &str| {
            let list = metadata.list(camel);
            if list.is_empty() { metadata.list(snake) } else { list }
        };
        let chunks = either("groundingChunks", "grounding_chunks");
        let mut used = vec![false; chunks.len()];
        for raw in either("groundingSupports", "grounding_supports") {
            let support = Object::from_raw(raw)?;
            let mut of = support.list("groundingChunkIndices");
            of.extend(support.list("grounding_chunk_indices"));
            let indices = of.into_iter().filter_map(|at| serde_json::from_str::<Count>(at.get()).ok()?.0);
            for at in indices.filter_map(|at| usize::try_from(at).ok()).filter(|at| *at < chunks.len()) {
                used[at] = true;
                self.cite(index, raw, &source(chunks[at])?, Some(&support.object("segment")), out)?;
            }
        }
        for (raw, _) in chunks.iter().zip(&used).filter(|(_, used)| !**used) {
            self.cite(index, raw, &source(raw)?, None, out)?;
        }
        // The chunks too: a citation has the passage they are a source of, and of them no more than the address.
        for (name, raw) in metadata.others(&["groundingSupports", "grounding_supports"]) {
            self.latest.keep(&of(index, name), raw, out);
        }
        Ok(())
    }

    fn cite(
        &mut self,
        index: u64,
        raw: &RawValue,
        source: &Object<'_>,
        segment: Option<&Object<'_>>,
        out: &mut Assembler,
    ) -> Result<(), Malformed> {
        let answer = &mut self.answers[index as usize];
        let text = |of: &Object<'_>, key: &str| Some(of.text(key)).filter(|text| !text.is_empty()).map(|text| Text::from(&*text));
        let url = text(source, "uri");
        let place = segment.unwrap_or(source);
        let range = [("startIndex", "start_index"), ("endIndex", "end_index")]
            .map(|(camel, snake)| place.count(camel).or_else(|| place.count(snake)).unwrap_or(0));
        let whole = format!("{range:?} {} {} {}", url.as_deref().unwrap_or(""), source.text("title"), place.text("text"));
        if !answer.cited.insert(whole.into()) {
            return Ok(());
        }
        // The API counts bytes.
        let offset = |camel: &str, snake: &str| {
            let said = place.count(camel).or_else(|| place.count(snake));
            if answer.not_ascii { None } else { said }
        };
        let end = offset("endIndex", "end_index");
        out.citation(Citation {
            message_id: out.message_id(index),
            url,
            title: text(source, "title"),
            text: text(place, "text"),
            // What begins at the beginning says no beginning.
            start: offset("startIndex", "start_index").or(end.map(|_| 0)),
            end,
            raw: Some(Json::from_raw(raw)?),
        });
        Ok(())
    }
}

/// The name of a candidate's member: the first one's is its own.
fn of(index: u64, name: &str) -> Cow<'_, str> {
    if index == 0 { name.into() } else { format!("{name}[{index}]").into() }
}

/// The inside of a grounding chunk: `web`, `retrievedContext`, `maps`, …
fn source(raw: &RawValue) -> Result<Object<'_>, Malformed> {
    let chunk = Object::from_raw(raw)?;
    let inner = |keys: &[&str]| {
        let says = |source: &Object<'_>| keys.iter().any(|key| source.raw(key).is_some());
        chunk.others(&[]).filter_map(|(_, raw)| Object::from_raw(raw).ok()).find(says)
    };
    Ok(inner(&["uri", "title"]).or_else(|| inner(&["text"])).unwrap_or(chunk))
}

fn sum(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    [a, b].into_iter().flatten().reduce(u64::saturating_add)
}

/// The tokens of a list by modality that are audio.
fn audio(details: Option<&RawValue>) -> Option<u64> {
    // Nearly always there are none, and the list comes with every chunk.
    let details = details.filter(|raw| raw.get().contains("AUDIO") || raw.get().contains('4'))?;
    let details: List<&RawValue> = serde_json::from_str(details.get()).unwrap_or_default();
    let details = details.items.into_iter().filter_map(|raw| Object::from_raw(raw).ok());
    let audio = details.filter(|part| matches!(&*part.text("modality"), "AUDIO" | "4"));
    audio.filter_map(|part| part.count("tokenCount").or_else(|| part.count("token_count"))).reduce(u64::saturating_add)
}

/// Names, or the numbers that some clients write instead. Above 5 the two APIs number them differently.
fn finish_reason(raw: &str) -> FinishReason {
    match raw {
        "STOP" | "1" => FinishReason::Stop,
        "MAX_TOKENS" | "2" => FinishReason::Length,
        "SAFETY" | "RECITATION" | "LANGUAGE" | "BLOCKLIST" | "PROHIBITED_CONTENT" | "SPII" | "MODEL_ARMOR" | "3" | "4" => {
            FinishReason::ContentFilter
        }
        _ if raw.starts_with("IMAGE_") && raw != "IMAGE_OTHER" => FinishReason::ContentFilter,
        "MALFORMED_FUNCTION_CALL"
        | "MALFORMED_RESPONSE"
        | "UNEXPECTED_TOOL_CALL"
        | "TOO_MANY_TOOL_CALLS"
        | "MISSING_THOUGHT_SIGNATURE" => FinishReason::Error,
        _ => FinishReason::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Payload;
    use crate::provider::testing::{all, call, message, passed, read_as, said, usage};

    /// One chunk with one candidate: its parts, and what stands beside its content.
    fn chunk(parts: &str, beside: &str) -> String {
        format!(r#"{{"candidates":[{{"content":{{"parts":[{parts}],"role":"model"}}{beside}}}],"modelVersion":"m-1"}}"#)
    }

    fn text(text: &str) -> String {
        chunk(&format!(r#"{{"text":"{text}"}}"#), "")
    }

    fn function(call: &str) -> String {
        chunk(&format!(r#"{{"functionCall":{call}}}"#), "")
    }

    const STOP: &str = r#","finishReason":"STOP""#;

    fn read<S: AsRef<str>>(frames: &[S]) -> Vec<Payload> {
        read_as("gemini", frames)
    }

    /// The deltas of all calls, in a row.
    fn pieces(events: &[Payload]) -> Vec<&str> {
        all!(events, ToolCallDelta).iter().map(|delta| &*delta.text).collect()
    }

    #[test]
    fn g1_a_plain_stop_with_calls_is_a_stop_for_calls() {
        let call = r#"{"functionCall":{"name":"add","args":{"a":1}}},{"functionCall":{"name":"add","args":{"a":2}}}"#;
        let events = read(&[chunk(call, STOP)]);
        assert_eq!(message(&events).finish_reason, FinishReason::ToolCalls);
        assert_eq!(message(&events).finish_reason_raw.as_deref(), Some("STOP"));
        assert_eq!(
            all!(events, ToolCall).iter().map(|call| said(call)).collect::<Vec<_>>(),
            [Some(r#"{"a":1}"#), Some(r#"{"a":2}"#)]
        );
    }

    #[test]
    fn g2_an_id_is_minted_where_there_is_none() {
        let calls =
            r#"{"functionCall":{"name":"a"}},{"functionCall":{"name":"a"}},{"functionCall":{"id":"x7","name":"a","args":{}}}"#;
        let events = read(&[chunk(calls, STOP)]);
        let ids: Vec<_> = all!(events, ToolCall).iter().map(|call| call.call_id.to_string()).collect();
        assert_eq!(ids, ["call-2", "call-3", "x7"]);
    }

    #[test]
    fn g3_arguments_come_by_path_and_go_out_as_one_text() {
        let piece = |path: &str, value: &str, more: &str| {
            function(&format!(r#"{{"partialArgs":[{{"jsonPath":"{path}",{value}}}]{more}}}"#))
        };
        let more = r#","willContinue":true"#;
        let events = read(&[
            function(r#"{"name":"book","willContinue":true}"#),
            piece("$.to", r#""stringValue":"New \"","willContinue":true"#, more),
            piece("$.to", r#""stringValue":"York","willContinue":true"#, more),
            piece("$.to", r#""stringValue":"""#, more),
            piece("$.who[0].name", r#""stringValue":"A""#, more),
            piece("$.who[0].age", r#""numberValue":0.5"#, more),
            piece("$.who[1].name", r#""boolValue":true"#, more),
            piece("$['a b']", r#""nullValue":null"#, more),
            function("{}"),
            chunk(r#"{"text":""}"#, STOP),
        ]);
        let whole = r#"{"to":"New \"York","who":[{"name":"A","age":0.5},{"name":true}],"a b":null}"#;
        assert_eq!((said(call(&events)), &*call(&events).arguments_raw), (Some(whole), whole));
        assert_eq!(pieces(&events).concat(), whole);
        assert_eq!(pieces(&events)[..3], ["{", "\"to\":\"", "New \\\""]);
    }

    #[test]
    fn g3_arguments_out_of_order_are_said_whole_at_the_end() {
        let events = read(&[
            function(r#"{"name":"f","willContinue":true,"partialArgs":[{"jsonPath":"$.a[1]","numberValue":1}]}"#),
            function(
                r#"{"willContinue":true,"partialArgs":[{"jsonPath":"$.b","numberValue":2},{"jsonPath":"$.a[0]","numberValue":0}]}"#,
            ),
            function(r#"{"partialArgs":[{"jsonPath":"$.b","numberValue":3}]}"#),
            chunk("", STOP),
        ]);
        assert_eq!(said(call(&events)), Some(r#"{"a":[0,1],"b":3}"#));
        assert!(all!(events, Warning).is_empty());
    }

    #[test]
    fn g3_a_path_that_is_none_costs_itself_alone() {
        let deep = format!("${}", ".a".repeat(100_000));
        for bad in ["", "$", "a", "$.", "$[", "$[x]", "$['a", &deep] {
            let events = read(&[
                function(r#"{"name":"f","willContinue":true}"#),
                function(&format!(
                    r#"{{"partialArgs":[{{"jsonPath":"{bad}","numberValue":1}},{{"jsonPath":"$.b","numberValue":2}}]}}"#
                )),
                chunk("", STOP),
            ]);
            assert_eq!(said(call(&events)), Some(r#"{"b":2}"#));
            assert_eq!(all!(events, Warning)[0].code, "malformed_path");
        }
    }

    #[test]
    fn g3_an_index_far_away_makes_no_list_of_nulls() {
        let events =
            read(&[function(r#"{"name":"f","partialArgs":[{"jsonPath":"$.a[4000000000]","numberValue":1}]}"#), chunk("", STOP)]);
        assert_eq!(said(call(&events)), Some(r#"{"a":[1]}"#));
    }

    #[test]
    fn g4_a_call_whose_end_never_came_ends_with_the_answer() {
        let start = function(r#"{"name":"f","willContinue":true,"partialArgs":[{"jsonPath":"$.a","stringValue":"x"}]}"#);
        let events = read(&[start.clone(), start.clone(), chunk(r#"{"text":""}"#, STOP)]);
        assert_eq!(all!(events, ToolCall).iter().map(|call| said(call)).collect::<Vec<_>>(), [Some(r#"{"a":"x"}"#); 2]);
        let cut = read(&[start]);
        assert!(call(&cut).arguments_error.is_some(), "half a call must not run");
    }

    #[test]
    fn g5_a_whole_call_without_arguments_beside_one_in_pieces() {
        let events = read(&[
            function(r#"{"name":"now"}"#),
            function(r#"{"name":"read","willContinue":true}"#),
            function(r#"{"partialArgs":[{"jsonPath":"$.id","stringValue":"A","willContinue":true}],"willContinue":true}"#),
            function("{}"),
            chunk("", STOP),
        ]);
        let calls = all!(events, ToolCall);
        assert_eq!((said(calls[0]), said(calls[1])), (Some("{}"), Some(r#"{"id":"A"}"#)));
    }

    #[test]
    fn g6_signatures_pass_with_what_they_sign() {
        let events = read(&[
            chunk(r#"{"functionCall":{"name":"f","args":{}},"thoughtSignature":"c2ln"}"#, ""),
            chunk(r#"{"text":"","thoughtSignature":"bGFzdA=="}"#, STOP),
        ]);
        let signatures = all!(events, ProviderEvent);
        assert_eq!(signatures[0].data.as_ref().unwrap().as_str(), r#"{"call_id":"call-2","thoughtSignature":"c2ln"}"#);
        let id = &message(&events).message_id;
        assert_eq!(
            signatures[1].data.as_ref().unwrap().as_str(),
            format!(r#"{{"message_id":"{id}","thoughtSignature":"bGFzdA=="}}"#)
        );
        assert!(all!(events, TextDelta).is_empty());
    }

    #[test]
    fn g7_thoughts_are_reasoning() {
        let events = read(&[chunk(r#"{"text":"Hm.","thought":true},{"text":"Hi"}"#, STOP)]);
        assert_eq!((&*message(&events).reasoning, &*message(&events).text), ("Hm.", "Hi"));
    }

    #[test]
    fn g8_every_chunk_may_say_stop() {
        let piece = |text: &str| chunk(&format!(r#"{{"text":"{text}"}}"#), STOP);
        let events = read(&[piece("a"), piece("b"), piece("c")]);
        assert_eq!((&*message(&events).text, all!(events, RoundEnd).len()), ("abc", 1));
    }

    #[test]
    fn g9_enums_may_be_numbers() {
        let usage_of_audio = r#"{"usageMetadata":{"promptTokenCount":5,"promptTokensDetails":[{"modality":1,"tokenCount":2},{"modality":4,"tokenCount":3}]}}"#;
        let events =
            read(&[chunk(r#"{"text":"a"}"#, r#","finishReason":0"#), chunk("", r#","finishReason":2"#), usage_of_audio.into()]);
        assert_eq!(
            (message(&events).finish_reason, message(&events).finish_reason_raw.as_deref()),
            (FinishReason::Length, Some("2"))
        );
        assert_eq!(usage(&events).audio_input_tokens, Some(3));
    }

    #[test]
    fn g10_the_last_count_is_the_whole_count() {
        let count = |counts: &str| format!(r#"{{"usageMetadata":{{{counts}}}}}"#);
        let events = read(&[
            count(r#""promptTokenCount":8,"candidatesTokenCount":21,"totalTokenCount":29"#),
            text("a"),
            count(
                r#""promptTokenCount":9,"toolUsePromptTokenCount":2,"thoughtsTokenCount":4,"candidatesTokenCount":3,"cachedContentTokenCount":1,"totalTokenCount":18"#,
            ),
            count(r#""trafficType":"ON_DEMAND""#),
            chunk("", STOP),
        ]);
        let usage = usage(&events);
        assert_eq!((usage.input_tokens, usage.output_tokens, usage.total_tokens), (Some(11), Some(7), Some(18)));
        assert_eq!((usage.reasoning_tokens, usage.cache_read_tokens), (Some(4), Some(1)));
        assert!(usage.raw.as_ref().unwrap().as_str().contains("ON_DEMAND"));
    }

    #[test]
    fn g11_a_blocked_prompt_is_an_end_without_a_candidate() {
        let feedback = r#"{"blockReason":"SAFETY","blockReasonMessage":"no"}"#;
        let events = read(&[format!(r#"{{"promptFeedback":{feedback}}}"#)]);
        assert_eq!((message(&events).finish_reason, &message(&events).finish_reason_raw), (FinishReason::ContentFilter, &None));
        assert_eq!(passed(&events, "promptFeedback"), feedback);
        assert!(all!(events, Error).is_empty());
    }

    #[test]
    fn g11_a_candidate_may_have_no_content() {
        for reason in ["SAFETY", "RECITATION", "IMAGE_SAFETY"] {
            let events =
                read(&[format!(r#"{{"candidates":[{{"finishReason":"{reason}","safetyRatings":[{{"blocked":true}}]}}]}}"#)]);
            assert_eq!(message(&events).finish_reason, FinishReason::ContentFilter);
            assert_eq!(passed(&events, "safetyRatings"), r#"[{"blocked":true}]"#);
        }
    }

    #[test]
    fn g12_unknown_reasons_and_odd_chunks_stop_nothing() {
        let events = read(&[
            r#"{"this":[{"is":{}}]}"#,
            &text("a"),
            r#"{"candidates":[{"content":7}]}"#,
            &chunk("", r#","finishReason":"NEW""#),
        ]);
        assert_eq!((&*message(&events).text, message(&events).finish_reason), ("a", FinishReason::Unknown));
        assert_eq!(message(&events).finish_reason_raw.as_deref(), Some("NEW"));
        assert_eq!(passed(&events, "chunk"), r#"{"this":[{"is":{}}]}"#);
    }

    #[test]
    fn g13_code_that_the_model_runs_is_a_server_call_and_its_result() {
        let code = r#"{"language":"PYTHON","code":"1+1"}"#;
        let result = r#"{"outcome":"OUTCOME_FAILED","output":"no"}"#;
        let events = read(&[chunk(&format!(r#"{{"executableCode":{code}}},{{"codeExecutionResult":{result}}}"#), STOP)]);
        assert_eq!((call(&events).kind, said(call(&events))), (Kind::Server, Some(code)));
        let results = all!(events, ToolResult);
        assert_eq!((results[0].is_error, &results[0].call_id), (true, &call(&events).call_id));
        assert_eq!(message(&events).finish_reason, FinishReason::Stop);
    }

    #[test]
    fn g13_server_tools_and_files() {
        let parts = r#"{"toolCall":{"toolType":"SEARCH","id":"s1","args":{"q":1}}},{"toolResponse":{"toolType":"SEARCH","id":"s1","response":{"n":2}}},
            {"functionCall":{"name":"mcp","args":{}}},{"functionResponse":{"name":"mcp","response":{"error":"no"}}},
            {"inlineData":{"mimeType":"image/png","data":"aGk="}},{"inlineData":{"mimeType":"image/png","data":"aGk="},"thought":true},
            {"fileData":{"mimeType":"video/mp4","fileUri":"gs://a"}},{"hologram":{"x":1}}"#;
        let events = read(&[chunk(parts, STOP)]);
        let results = all!(events, ToolResult);
        assert_eq!(
            (&*results[0].call_id, results[0].is_error, &*results[1].call_id, results[1].is_error),
            ("s1", false, "call-2", true)
        );
        let files = all!(events, File);
        assert_eq!((files.len(), files[0].data.as_deref(), files[1].url.as_deref()), (2, Some("aGk="), Some("gs://a")));
        assert_eq!(passed(&events, "hologram"), r#"{"x":1}"#);
        assert_eq!(all!(events, ProviderEvent).len(), 2, "the draft too");
    }

    #[test]
    fn g13_grounding_is_citations() {
        let metadata = r#","groundingMetadata":{"webSearchQueries":["q"],"groundingChunks":[{"web":{"uri":"https://a.example","title":"A"}},{"web":{"uri":"https://b.example"}}],
            "groundingSupports":[{"segment":{"endIndex":2,"text":"It"},"groundingChunkIndices":[0,9]}]}"#;
        let events = read(&[text("It is"), chunk("", metadata), chunk("", &[metadata, STOP].concat())]);
        let citations = all!(events, Citation);
        assert_eq!(citations.len(), 2, "said again is said once");
        assert_eq!((citations[0].url.as_deref(), citations[0].text.as_deref()), (Some("https://a.example"), Some("It")));
        assert_eq!((citations[0].start, citations[0].end, citations[1].end), (Some(0), Some(2), None));
        assert_eq!(passed(&events, "webSearchQueries"), r#"["q"]"#);
        let bytes = read(&[text("Ä is"), chunk("", &[metadata, STOP].concat())]);
        assert_eq!(all!(bytes, Citation)[0].end, None, "the API counts bytes");
    }

    #[test]
    fn g14_chunks_after_the_end_still_count() {
        let events = read(&[chunk(r#"{"text":"a"}"#, STOP), text("b"), r#"{"usageMetadata":{"totalTokenCount":3}}"#.into()]);
        assert_eq!((&*message(&events).text, message(&events).finish_reason), ("ab", FinishReason::Stop));
        assert_eq!(usage(&events).total_tokens, Some(3));
    }

    #[test]
    fn candidates_are_choices() {
        let of = |index: u64, text: &str| {
            format!(r#"{{"index":{index},"content":{{"parts":[{{"text":"{text}"}}]}},"finishReason":"STOP"}}"#)
        };
        let events = read(&[format!(r#"{{"responseId":"r","candidates":[{},{}]}}"#, of(0, "a"), of(1, "b"))]);
        let messages = all!(events, AssistantMessage);
        assert_eq!((&*messages[0].message_id, &*messages[1].message_id, messages[1].choice), ("r", "r-1", Some(1)));
        assert_eq!((&*messages[0].text, &*messages[1].text), ("a", "b"));
    }

    #[test]
    fn names_may_be_written_as_the_sdk_writes_them() {
        let events = read(&[
            r#"{"candidates":[{"content":{"parts":[{"function_call":{"name":"f","args":null,"id":null,"partial_args":[{"json_path":"$.a","string_value":"x","number_value":null}]}}]},
            "finish_reason":"STOP","index":null}],"usage_metadata":{"prompt_token_count":1,"candidates_token_count":2,"total_token_count":3},"model_version":"m-1"}"#,
        ]);
        assert_eq!((said(call(&events)), usage(&events).output_tokens), (Some(r#"{"a":"x"}"#), Some(2)));
    }

    #[test]
    fn a_run_of_several_responses_is_several_rounds() {
        let id = |id: &str, chunk: String| chunk.replacen('{', &format!(r#"{{"responseId":"{id}","#), 1);
        let events = read(&[
            id("r1", chunk(r#"{"functionCall":{"name":"f","args":{}}}"#, STOP)),
            id("r2", chunk(r#"{"text":"done"}"#, STOP)),
        ]);
        assert_eq!((all!(events, RoundStart).len(), all!(events, AssistantMessage).len()), (2, 2));
    }

    #[test]
    fn f5_an_error_body_is_an_error_and_closes_the_message() {
        let events =
            read(&[text("Half"), r#"{"error":{"code":429,"message":"slow down","status":"RESOURCE_EXHAUSTED"}}"#.into()]);
        let error = all!(events, Error)[0];
        assert_eq!((&*error.code, &*error.message, error.retryable), ("429", "slow down", true));
        assert_eq!((&*message(&events).text, message(&events).finish_reason), ("Half", FinishReason::Error));
    }

    #[test]
    fn f1_f6_the_stream_and_the_array_give_equal_events() {
        let chunks = [text("a"), chunk(r#"{"text":"b"}"#, STOP)];
        let stream = format!("data: {}\r\n\r\ndata: {}\r\n\r\n", chunks[0], chunks[1]);
        let array = format!("[{}\r\n]", chunks.join("\r\n,\r\n"));
        let events = |bytes: &str| {
            let mut normalizer = crate::provider::Normalizer::new("auto", crate::provider::Options::default()).unwrap();
            normalizer.feed(bytes.as_bytes()).unwrap();
            normalizer.finish().unwrap();
            assert_eq!(normalizer.provider(), "gemini");
            normalizer.drain().collect::<Vec<_>>()
        };
        assert_eq!(events(&stream), events(&array));
        assert_eq!(message(&events(&stream)).text, "ab");
    }
}
