//! The small servers' own text generation: Hugging Face's TGI (`/generate_stream`), llama.cpp's `/completion` and
//! Cloudflare's Workers AI; streams, whole bodies, error bodies. Their `/v1` speaks openai-chat.
//!
//! Owns what a piece and the end of each of the three mean. Knows nothing of framing. Invariants: 1. which of them speaks is
//! told by each frame's own members; 2. a special token is no text; 3. what only repeats the request never passes.
//!
//! Formats: <https://huggingface.github.io/text-generation-inference>,
//! <https://github.com/ggml-org/llama.cpp/tree/master/tools/server>, <https://developers.cloudflare.com/workers-ai>

use serde_json::value::RawValue;

use super::lax::text_of;
use super::wire::{Latest, Object, unknown};
use super::{Assembler, Likeness, Malformed, Provider, UsageCounts, fault};
use crate::event::{FinishReason, Kind};
use crate::frame::Frame;

/// Most prompts of one request to llama.cpp.
const MAX_ANSWERS: u64 = 1024;

/// Members of llama.cpp's chunks that are read, or say again what was asked for.
const LLAMA_CPP: [&str; 20] = [
    "index",
    "content",
    "stop",
    "model",
    "tokens",
    "tokens_predicted",
    "tokens_evaluated",
    "tokens_cached",
    "id_slot",
    "slot_id",
    "multimodal",
    "generation_settings",
    "prompt",
    "has_new_line",
    "stop_type",
    "stopping_word",
    "stopped_eos",
    "stopped_limit",
    "stopped_word",
    "completion_probabilities",
];

/// Who speaks.
#[derive(Clone, Copy)]
enum Server {
    Tgi,
    LlamaCpp,
    WorkersAi,
}

/// Who says this, if anybody does.
fn server(object: &Object<'_>) -> Option<Server> {
    let has = |key: &str| object.raw(key).is_some();
    let token = object.object("token");
    if has("choices") || has("type") || has("done") {
        None
    } else if has("generated_text") || (token.raw("text").is_some() && token.raw("id").is_some()) {
        Some(Server::Tgi)
    } else if object.raw("stop").is_some_and(|stop| matches!(stop.get(), "true" | "false")) && has("content") {
        Some(Server::LlamaCpp)
    } else if object.is_true("success") && object.raw("result").is_some_and(|result| result.get().starts_with('{')) {
        Some(Server::WorkersAi)
    } else {
        let alone =
            object.others(&["response", "p", "usage", "tool_calls", "thread_id", "run_id", "events_queue"]).next().is_none();
        let says = object.raw("response").is_some_and(|text| text.get().starts_with('"'));
        (alone && (says || (has("tool_calls") && (has("p") || has("response"))))).then_some(Server::WorkersAi)
    }
}

/// Whether a frame is of this format.
pub(super) fn recognise(frame: &Frame<'_>) -> Likeness {
    let object = Object::parse(frame.data).unwrap_or_default();
    if server(&object).is_some() { Likeness::Yes } else { Likeness::No }
}

/// The state machine.
#[derive(Default)]
pub(super) struct Generate {
    next_call: u64,
    latest: Latest,
}

impl Provider for Generate {
    fn frame(&mut self, frame: &Frame<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        if frame.data.trim_ascii() == b"[DONE]" {
            self.latest.say(out);
            out.mark_ended();
            out.round_end();
            return Ok(());
        }
        let raw: &RawValue = serde_json::from_slice(frame.data)?;
        let object = Object::from_raw(raw)?;
        if let Some(error) = object.list("errors").first() {
            fault::report(error, "error", out);
            return Ok(());
        }
        if object.raw("error").is_some() {
            fault::report(raw, "error", out);
            return Ok(());
        }
        match server(&object) {
            Some(Server::Tgi) => {
                self.tgi(&object, out);
                Ok(())
            }
            Some(Server::LlamaCpp) => self.llama_cpp(&object, out),
            Some(Server::WorkersAi) if object.is_true("success") => self.workers_ai(&object.object("result"), out),
            Some(Server::WorkersAi) => self.workers_ai(&object, out),
            None => unknown(if frame.event.is_empty() { "chunk" } else { frame.event }, raw, out),
        }
    }

    fn finish(&mut self, out: &mut Assembler) {
        self.latest.say(out);
    }
}

impl Generate {
    fn keep(&mut self, object: &Object<'_>, known: &[&str], out: &mut Assembler) {
        for (name, raw) in object.others(known) {
            self.latest.keep(name, raw, out);
        }
    }

    fn tgi(&mut self, chunk: &Object<'_>, out: &mut Assembler) {
        out.open(0, "", None);
        let token = chunk.object("token");
        if !token.is_true("special") {
            out.text(0, &token.text("text"));
        }
        let details = chunk.object("details");
        if let Some(whole) = chunk.raw("generated_text") {
            let whole = text_of(whole);
            // A whole body has no tokens; the whole may want the text that a stop sequence ended with.
            match whole.strip_prefix(out.text_so_far(0)).map(str::to_owned) {
                Some(rest) if chunk.raw("token").is_none() => out.text_block(0, &rest),
                _ => out.text_whole(0, &whole),
            }
            let raw = details.text("finish_reason");
            out.finish_reason(0, finish_reason(&raw), &raw);
            let (input, output) = (details.count("input_length"), details.count("generated_tokens"));
            if let Some(raw) = details.pick(&["input_length", "generated_tokens"]) {
                out.usage(UsageCounts { input, output, ..UsageCounts::default() }, &raw);
            }
        }
        self.keep(&details, &["finish_reason", "input_length", "generated_tokens", "prefill", "tokens"], out);
        self.keep(chunk, &["index", "token", "generated_text", "details"], out);
    }

    fn llama_cpp(&mut self, chunk: &Object<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        let index = chunk.count("index").unwrap_or(0);
        if index >= MAX_ANSWERS {
            return Err(Malformed(format!("answer {index} is beyond {MAX_ANSWERS}")));
        }
        out.model(&chunk.text("model"));
        out.open(index, "", (index > 0).then_some(index));
        out.text(index, &chunk.text("content"));
        if let Some(probabilities) = chunk.raw("completion_probabilities") {
            super::wire::pass("completion_probabilities", probabilities, out)?;
        }
        if chunk.is_true("stop") {
            let older = ["stopped_eos", "stopped_limit", "stopped_word"].into_iter().find(|key| chunk.is_true(key));
            let raw = match chunk.text("stop_type") {
                newer if newer.is_empty() => older.map_or("", |key| &key["stopped_".len()..]).into(),
                newer => newer,
            };
            out.finish_reason(index, finish_reason(&raw), &raw);
            let (input, output) = (chunk.count("tokens_evaluated"), chunk.count("tokens_predicted"));
            if let Some(raw) = chunk.pick(&["tokens_evaluated", "tokens_predicted", "tokens_cached"]) {
                out.usage(UsageCounts { input, output, ..UsageCounts::default() }, &raw);
            }
        }
        for (name, raw) in chunk.others(&LLAMA_CPP).filter(|(name, raw)| (*name, raw.get()) != ("truncated", "false")) {
            self.latest.keep(name, raw, out);
        }
        Ok(())
    }

    fn workers_ai(&mut self, chunk: &Object<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        out.open(0, "", None);
        if let Some(text) = chunk.raw("response") {
            out.text(0, &text_of(text));
        }
        for raw in chunk.list("tool_calls") {
            let call = Object::from_raw(raw)?;
            self.next_call += 1;
            out.call(self.next_call, 0, &call.text("id"), &call.text("name"), Kind::Client);
            out.arguments_whole(self.next_call, &call.raw("arguments").map(text_of).unwrap_or_default());
            out.call_end(self.next_call);
        }
        if let Some(raw) = chunk.raw("usage") {
            let usage = Object::from_raw(raw)?;
            let counts = UsageCounts {
                input: usage.count("prompt_tokens"),
                output: usage.count("completion_tokens"),
                total: usage.count("total_tokens"),
                ..UsageCounts::default()
            };
            out.usage(counts, raw);
            // The counts come with the end; a body has no other.
            out.mark_ended();
        }
        self.keep(chunk, &["response", "p", "usage", "tool_calls"], out);
        Ok(())
    }
}

fn finish_reason(raw: &str) -> FinishReason {
    match raw {
        "eos_token" | "stop_sequence" | "eos" | "word" => FinishReason::Stop,
        "length" | "limit" => FinishReason::Length,
        _ => FinishReason::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::testing::{all, call, message, passed, read_as, said, usage};

    #[test]
    fn tgi_tokens_and_the_end() {
        let events = read_as(
            "generate",
            &[
                r#"{"index":1,"token":{"id":5,"text":" Hi","logprob":-0.1,"special":false},"generated_text":null,"details":null}"#,
                r#"{"index":2,"token":{"id":2,"text":"</s>","logprob":-0.1,"special":true},"generated_text":" Hi","details":{"finish_reason":"eos_token","generated_tokens":2,"input_length":7,"seed":9}}"#,
            ],
        );
        assert_eq!((&*message(&events).text, message(&events).finish_reason), (" Hi", FinishReason::Stop));
        assert_eq!((usage(&events).input_tokens, usage(&events).total_tokens), (Some(7), Some(9)));
        assert_eq!((passed(&events, "seed"), all!(events, Error).len()), ("9", 0));
        let body = read_as("generate", &[r#"{"generated_text":"Hi","details":{"finish_reason":"length"}}"#]);
        assert_eq!((&*message(&body).text, message(&body).streamed), ("Hi", false));
        let failed = read_as(
            "generate",
            &[
                r#"{"token":{"id":5,"text":"Hi","special":false}}"#,
                r#"{"error":"Request failed during generation","error_type":"generation"}"#,
            ],
        );
        assert_eq!((&*all!(failed, Error)[0].code, &*message(&failed).text), ("generation", "Hi"));
    }

    #[test]
    fn llama_cpp_in_its_older_and_newer_words() {
        for (end, word, reason) in [
            (r#""stop_type":"limit""#, "limit", FinishReason::Length),
            (r#""stopped_eos":false,"stopped_limit":true,"stopped_word":false"#, "limit", FinishReason::Length),
            (r#""stop_type":"word","stopping_word":"x""#, "word", FinishReason::Stop),
        ] {
            let end = format!(
                r#"{{"index":0,"content":"!","stop":true,"model":"m","tokens_predicted":2,"tokens_evaluated":4,"prompt":"p","generation_settings":{{"n":1}},"timings":{{"n":4}},{end}}}"#
            );
            let events = read_as("generate", &[r#"{"index":0,"content":"Hi","tokens":[1],"stop":false}"#, &end]);
            assert_eq!((&*message(&events).text, message(&events).model.as_deref()), ("Hi!", Some("m")));
            assert_eq!((message(&events).finish_reason, message(&events).finish_reason_raw.as_deref()), (reason, Some(word)));
            assert_eq!((usage(&events).total_tokens, passed(&events, "timings")), (Some(6), r#"{"n":4}"#));
            assert_eq!(all!(events, ProviderEvent).len(), 1, "nothing of the request");
        }
    }

    #[test]
    fn workers_ai_text_calls_and_a_whole_body() {
        let tokens = r#"{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}"#;
        let events = read_as(
            "generate",
            &[
                r#"{"response":"Hi","p":"abc"}"#.to_owned(),
                r#"{"tool_calls":[{"name":"f","arguments":{"a":1}}],"p":"a"}"#.to_owned(),
                format!(r#"{{"response":"","usage":{tokens}}}"#),
                "[DONE]".to_owned(),
            ],
        );
        assert_eq!((&*message(&events).text, said(call(&events))), ("Hi", Some(r#"{"a":1}"#)));
        assert_eq!((usage(&events).total_tokens, all!(events, Error).len()), (Some(5), 0));
        let body = format!(r#"{{"result":{{"response":"Hi","usage":{tokens}}},"success":true,"errors":[],"messages":[]}}"#);
        let events = read_as("generate", &[body]);
        assert_eq!((&*message(&events).text, all!(events, Error).len()), ("Hi", 0));
    }
}
