//! IBM watsonx.ai's text generation: streamed results, whole bodies, error bodies. Its chat speaks openai-chat.
//!
//! Owns what a result means. Knows nothing of framing. Invariant: 1. counts are of the whole answer so far; the input's
//! stands in one frame alone, and the zeros after it erase nothing.
//!
//! Format: <https://cloud.ibm.com/apidocs/watsonx-ai#text-generation-stream>

use serde_json::value::RawValue;

use super::lax::{Count, List, Word, object};
use super::wire::{Latest, unknown};
use super::{Assembler, Likeness, Malformed, Provider, UsageCounts, fault};
use crate::event::FinishReason;
use crate::frame::Frame;

object! {
    Chunk<'a> {
        model: Word<'a> = "model_id",
        results: List<Generated<'a>> = "results",
        errors: List<&'a RawValue> = "errors",
    } skip { "created_at" "model_version" }
}

object! {
    Generated<'a> {
        text: Word<'a> = "generated_text",
        output: Count = "generated_token_count",
        input: Count = "input_token_count",
        reason: Word<'a> = "stop_reason",
    } skip { }
}

/// The one message of an answer.
const MESSAGE: u64 = 0;

/// Whether a frame is of this format.
pub(super) fn recognise(frame: &Frame<'_>) -> Likeness {
    let chunk: Chunk<'_> = serde_json::from_slice(frame.data).unwrap_or_default();
    let generated = chunk.results.items.iter().any(|result| result.text.0.is_some());
    if generated { Likeness::Yes } else { Likeness::No }
}

/// The state machine.
#[derive(Default)]
pub(super) struct Watsonx {
    input: u64,
    output: u64,
    latest: Latest,
}

impl Provider for Watsonx {
    fn frame(&mut self, frame: &Frame<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        let chunk: Chunk<'_> = serde_json::from_slice(frame.data)?;
        if let Some(error) = chunk.errors.items.first() {
            fault::report(error, "error", out);
            return Ok(());
        }
        if chunk.here && !chunk.results.here && chunk.model.is_empty() && chunk.others.is_empty() {
            return Ok(()); // it begins with one that is empty
        }
        if !chunk.results.here && chunk.model.is_empty() {
            let name = if frame.event.is_empty() || frame.event == "message" { "chunk" } else { frame.event };
            return unknown(name, serde_json::from_slice(frame.data)?, out);
        }
        out.model(chunk.model.as_str());
        for result in &chunk.results.items {
            out.open(MESSAGE, "", None);
            out.text(MESSAGE, result.text.as_str());
            self.input = self.input.max(result.input.0.unwrap_or(0));
            self.output = self.output.max(result.output.0.unwrap_or(0));
            let raw = result.reason.as_str();
            if !matches!(raw, "" | "not_finished" | "NOT_FINISHED") {
                out.finish_reason(MESSAGE, finish_reason(raw), raw);
                self.count(out)?;
            }
            self.latest.keep_all(&result.others, out);
        }
        self.latest.keep_all(&chunk.others, out);
        Ok(())
    }

    fn finish(&mut self, out: &mut Assembler) {
        self.latest.say(out);
    }
}

impl Watsonx {
    fn count(&self, out: &mut Assembler) -> Result<(), Malformed> {
        let (input, output) = (self.input, self.output);
        let raw = RawValue::from_string(format!(r#"{{"input_token_count":{input},"generated_token_count":{output}}}"#))?;
        out.usage(UsageCounts { input: Some(input), output: Some(output), ..UsageCounts::default() }, &raw);
        Ok(())
    }
}

fn finish_reason(raw: &str) -> FinishReason {
    match raw.to_ascii_lowercase().as_str() {
        "eos_token" | "stop_sequence" => FinishReason::Stop,
        "max_tokens" | "token_limit" | "time_limit" => FinishReason::Length,
        "cancelled" => FinishReason::Cancelled,
        "error" => FinishReason::Error,
        _ => FinishReason::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::testing::{all, message, passed, read_as, usage};

    fn chunk(text: &str, output: u64, input: u64, reason: &str) -> String {
        format!(
            r#"{{"model_id":"m-1","results":[{{"generated_text":"{text}","generated_token_count":{output},"input_token_count":{input},"stop_reason":"{reason}"}}],"system":{{"warnings":[1]}}}}"#
        )
    }

    #[test]
    fn text_counts_and_warnings() {
        let events = read_as(
            "watsonx",
            &[chunk("", 0, 8, "not_finished"), chunk("the", 1, 0, "not_finished"), chunk(" sun", 2, 0, "eos_token")],
        );
        assert_eq!((&*message(&events).text, message(&events).finish_reason), ("the sun", FinishReason::Stop));
        assert_eq!((usage(&events).input_tokens, usage(&events).output_tokens), (Some(8), Some(2)));
        assert_eq!(passed(&events, "system"), r#"{"warnings":[1]}"#);
        assert_eq!(all!(events, ProviderEvent).len(), 1, "said in every chunk, passed once");
    }

    #[test]
    fn an_error_body() {
        let events = read_as("watsonx", &[r#"{"errors":[{"code":"model_not_supported","message":"no"}],"status_code":404}"#]);
        assert_eq!((&*all!(events, Error)[0].code, &*all!(events, Error)[0].message), ("model_not_supported", "no"));
    }
}
