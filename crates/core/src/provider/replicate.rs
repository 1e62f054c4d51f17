//! Replicate: the named events of a prediction's stream, whose data is text, and the whole prediction.
//!
//! Owns what the events' names mean. Knows nothing of framing. Invariant: 1. the data of `output` is text as it stands,
//! whatever it looks like.
//!
//! Format: <https://replicate.com/docs/topics/predictions/streaming>

use super::wire::{Object, unknown};
use super::{Assembler, Likeness, Malformed, Provider, UsageCounts, fault};
use crate::event::{FinishReason, Json};
use crate::frame::Frame;

/// The one message of a prediction.
const MESSAGE: u64 = 0;

/// Whether a frame is of this format.
pub(super) fn recognise(frame: &Frame<'_>) -> Likeness {
    if frame.event == "output" {
        return Likeness::Yes;
    }
    let Ok(object) = Object::parse(frame.data) else { return Likeness::No };
    let body = object.raw("urls").is_some() && object.raw("status").is_some() && object.raw("version").is_some();
    match frame.event {
        "done" => Likeness::Maybe,
        _ if body => Likeness::Yes,
        _ => Likeness::No,
    }
}

/// The state machine.
#[derive(Default)]
pub(super) struct Replicate;

impl Provider for Replicate {
    fn frame(&mut self, frame: &Frame<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        let data = std::str::from_utf8(frame.data)?;
        match frame.event {
            "output" => out.text(MESSAGE, data),
            "logs" => out.provider_event("logs", Some(Json::string(data))),
            "error" => match serde_json::from_slice(frame.data) {
                Ok(raw) => fault::report(raw, "error", out),
                Err(_) => out.error("error", data, false, Some(Json::string(data))),
            },
            "done" => {
                let why = Object::parse(frame.data).unwrap_or_default().text("reason").into_owned();
                end(&why, "done", out);
            }
            "" if data.starts_with('{') => return body(&Object::parse(frame.data)?, out),
            name => out.unknown(name, Some(Json::string(data))),
        }
        Ok(())
    }

    fn finish(&mut self, _: &mut Assembler) {}
}

/// `why` is blank where all went well; `word` is the provider's own for that.
fn end(why: &str, word: &str, out: &mut Assembler) {
    let reason = match why {
        "" | "succeeded" => FinishReason::Stop,
        "canceled" | "aborted" => FinishReason::Cancelled,
        "error" | "failed" => {
            if !out.has_error() {
                out.error(why, "the prediction failed and the provider did not say why", false, None);
            }
            FinishReason::Error
        }
        _ => FinishReason::Unknown,
    };
    out.finish_reason(MESSAGE, reason, if why.is_empty() { word } else { why });
    out.mark_ended();
}

fn body(prediction: &Object<'_>, out: &mut Assembler) -> Result<(), Malformed> {
    let status = prediction.text("status");
    if status.is_empty() {
        return unknown("body", prediction.pick(&["id"]).as_deref().unwrap_or(serde_json::value::RawValue::NULL), out);
    }
    out.model(&prediction.text("model"));
    out.open(MESSAGE, &prediction.text("id"), None);
    out.text_block(MESSAGE, &prediction.text("output"));
    for piece in prediction.list("output") {
        out.text_block(MESSAGE, &super::lax::text_of(piece));
    }
    if let Some(raw) = prediction.raw("metrics") {
        let metrics = Object::from_raw(raw)?;
        let (input, output) = (metrics.count("input_token_count"), metrics.count("output_token_count"));
        out.usage(UsageCounts { input, output, ..UsageCounts::default() }, raw);
    }
    if let Some(error) = prediction.raw("error") {
        fault::report(error, "failed", out);
    }
    end(&status, &status, out);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::testing::{all, message, passed, read_as, read_events};

    #[test]
    fn f3_the_data_is_text_whatever_it_looks_like() {
        let events = read_events(
            "replicate",
            &[("output", ""), ("output", "{\"a\":"), ("output", "1}\n\n[DONE]"), ("logs", "x"), ("done", "{}")],
        );
        assert_eq!(message(&events).text, "{\"a\":1}\n\n[DONE]");
        assert_eq!(
            (message(&events).finish_reason, message(&events).finish_reason_raw.as_deref()),
            (FinishReason::Stop, Some("done"))
        );
        assert_eq!(passed(&events, "logs"), "\"x\"");
    }

    #[test]
    fn the_end_says_how_it_went() {
        let cancelled = read_events("replicate", &[("output", "a"), ("done", r#"{"reason":"canceled"}"#)]);
        assert_eq!(message(&cancelled).finish_reason, FinishReason::Cancelled);
        let failed = read_events("replicate", &[("output", "a"), ("error", "out of memory"), ("done", r#"{"reason":"error"}"#)]);
        assert_eq!((all!(failed, Error).len(), &*all!(failed, Error)[0].message), (1, "out of memory"));
    }

    #[test]
    fn a_whole_prediction() {
        let body = r#"{"id":"p1","version":"v","model":"m","urls":{},"status":"succeeded","output":["a","b"],"error":null,"metrics":{"input_token_count":1,"output_token_count":2}}"#;
        let events = read_as("replicate", &[body]);
        assert_eq!((&*message(&events).text, all!(events, Usage)[0].total_tokens), ("ab", Some(3)));
    }
}
