//! OpenAI's and Mistral's streamed transcriptions: what was said in a recording, as text.
//!
//! Owns what its events mean. Knows nothing of framing. Invariant: 1. the end's text is the whole; segments, which say who
//! spoke and when, pass as `provider_event`.
//!
//! Formats: <https://platform.openai.com/docs/api-reference/audio/transcript-text-delta-event>,
//! <https://docs.mistral.ai/capabilities/audio_transcription>

use serde_json::value::RawValue;

use super::wire::{Object, pass, unknown};
use super::{Assembler, Likeness, Malformed, Provider, UsageCounts, fault};
use crate::event::FinishReason;
use crate::frame::Frame;

/// The one message of a transcription.
const MESSAGE: u64 = 0;

/// Whether a frame is of this format.
pub(super) fn recognise(frame: &Frame<'_>) -> Likeness {
    let Ok(object) = Object::parse(frame.data) else { return Likeness::No };
    let kind = object.text("type");
    let named = ["transcript.text.", "transcription."].iter().any(|known| kind.starts_with(known));
    if named { Likeness::Yes } else { Likeness::No }
}

/// The state machine.
#[derive(Default)]
pub(super) struct Transcription;

impl Provider for Transcription {
    fn frame(&mut self, frame: &Frame<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        if frame.data.trim_ascii() == b"[DONE]" {
            out.mark_ended();
            return Ok(());
        }
        let raw: &RawValue = serde_json::from_slice(frame.data)?;
        let event = Object::from_raw(raw)?;
        match &*event.text("type") {
            "transcript.text.delta" => {
                out.text(MESSAGE, &event.text("delta"));
                // Probabilities, and of which segment it is.
                event.pass_others(&["type", "delta", "obfuscation"], out)
            }
            "transcription.text.delta" => {
                out.text(MESSAGE, &event.text("text"));
                event.pass_others(&["type", "text"], out)
            }
            kind @ ("transcript.text.segment" | "transcription.segment" | "transcription.language") => pass(kind, raw, out),
            "transcript.text.done" | "transcription.done" => {
                out.model(&event.text("model"));
                out.text_whole(MESSAGE, &event.text("text"));
                out.finish_reason(MESSAGE, FinishReason::Stop, "");
                if let Some(raw) = event.raw("usage") {
                    let usage = Object::from_raw(raw)?;
                    let counts = UsageCounts {
                        input: usage.count("input_tokens").or_else(|| usage.count("prompt_tokens")),
                        output: usage.count("output_tokens").or_else(|| usage.count("completion_tokens")),
                        total: usage.count("total_tokens"),
                        audio_input: usage.object("input_token_details").count("audio_tokens"),
                        ..UsageCounts::default()
                    };
                    out.usage(counts, raw);
                }
                event.pass_others(&["type", "text", "usage", "model"], out)
            }
            kind if kind == "error" || frame.event == "error" || event.raw("error").is_some() => {
                fault::report(raw, "error", out);
                Ok(())
            }
            kind => unknown(if kind.is_empty() { "untyped" } else { kind }, raw, out),
        }
    }

    fn finish(&mut self, _: &mut Assembler) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::testing::{message, passed, read_as, usage};

    #[test]
    fn deltas_segments_and_the_whole() {
        let done = r#"{"type":"transcript.text.done","text":"Hi there.","usage":{"total_tokens":9,"input_tokens":4,"input_token_details":{"audio_tokens":4},"output_tokens":5}}"#;
        let segment = r#"{"type":"transcript.text.segment","text":" Hi there.","speaker":"A","start":0.0,"end":1.5,"id":"s"}"#;
        let events = read_as("transcription", &[r#"{"type":"transcript.text.delta","delta":"Hi"}"#, segment, done, "[DONE]"]);
        assert_eq!((&*message(&events).text, message(&events).finish_reason), ("Hi there.", FinishReason::Stop));
        assert_eq!(passed(&events, "transcript.text.segment"), segment);
        assert_eq!(usage(&events).audio_input_tokens, Some(4));
    }
    #[test]
    fn mistrals_words_for_it() {
        let events = read_as(
            "transcription",
            &[
                r#"{"type":"transcription.language","audio_language":"en"}"#,
                r#"{"type":"transcription.text.delta","text":"Hi"}"#,
                r#"{"type":"transcription.done","text":"Hi there.","model":"v","usage":{"prompt_tokens":4,"completion_tokens":5,"total_tokens":9,"prompt_audio_seconds":2}}"#,
            ],
        );
        assert_eq!((&*message(&events).text, message(&events).model.as_deref()), ("Hi there.", Some("v")));
        assert_eq!((usage(&events).input_tokens, usage(&events).total_tokens), (Some(4), Some(9)));
    }
}
