//! A provider's error object in our words, whichever shape it has.
//!
//! Owns the reading of `{"error": …}` bodies and what makes an error worth a retry. Knows no provider's stream.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::assemble::Assembler;
use super::lax::{Word, object, text_of};
use crate::event::Json;

object! {
    Body<'a> {
        message: Option<&'a RawValue> = "message" | "Message" | "msg" | "error_message" | "detail",
        error: Option<&'a RawValue> = "error",
        code: Word<'a> = "code" | "error_code",
        kind: Word<'a> = "type" | "error_type" | "__type",
        status: Word<'a> = "status" | "status_code" | "statusCode",
    } skip { "request_id" "failed_generation" "param" "metadata" }
}

/// Says the error that `raw` holds: a string, an object, or an object around one of them. `fallback` is its code where it has none.
pub(super) fn report(raw: &RawValue, fallback: &str, out: &mut Assembler) {
    let body = read(raw);
    let inner = body.error.map(|inner| (read(inner), inner));
    let (body, object) = match &inner {
        Some((inner, raw)) if inner.here => (inner, *raw),
        _ => (&body, raw),
    };
    let said = body.message.or(body.error).or((!body.here).then_some(raw)).map(text_of).filter(|text| !text.is_empty());
    let message = said.unwrap_or(Cow::Borrowed("the provider reported an error without a message"));
    let words = [body.code.as_str(), body.kind.as_str(), body.status.as_str()];
    let code = words.iter().find(|word| !word.is_empty() && **word != "error").copied().unwrap_or(fallback);
    out.error(code, &message, words.iter().any(|word| is_retryable(word)), Json::from_raw(object).ok());
}

fn read(raw: &RawValue) -> Body<'_> {
    serde_json::from_str(raw.get()).unwrap_or_default()
}

/// Whether an error's code, type or HTTP status says that the same request may succeed later.
pub(super) fn is_retryable(word: &str) -> bool {
    if let Ok(status) = word.parse::<u16>() {
        return matches!(status, 408 | 409 | 425 | 429 | 500..=599);
    }
    let word = word.to_ascii_lowercase();
    [
        "rate_limit",
        "ratelimit",
        "too_many_requests",
        "overloaded",
        "server_error",
        "api_error",
        "timeout",
        "unavailable",
        "resource_exhausted",
    ]
    .iter()
    .any(|sign| word.contains(sign))
}
