//! What a server of the Model Context Protocol streams while a tool runs: messages of JSON-RPC, no model among them.
//!
//! Owns which of them are progress, errors and ends. Knows nothing of framing, and not which call a request stands for: a
//! result passes as `provider_event`, for whoever sent the request.
//!
//! Format: <https://modelcontextprotocol.io/specification/2025-06-18/basic/transports>

use serde_json::value::RawValue;

use super::wire::{Object, pass};
use super::{Assembler, Likeness, Malformed, Provider, fault};
use crate::frame::Frame;

/// Whether a frame is of this format.
pub(super) fn recognise(frame: &Frame<'_>) -> Likeness {
    let Ok(object) = Object::parse(frame.data) else { return Likeness::No };
    let message = ["method", "result", "error"].iter().any(|key| object.raw(key).is_some());
    if &*object.text("jsonrpc") == "2.0" && message { Likeness::Yes } else { Likeness::No }
}

/// The state machine.
#[derive(Default)]
pub(super) struct Mcp;

impl Provider for Mcp {
    fn frame(&mut self, frame: &Frame<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        let raw: &RawValue = serde_json::from_slice(frame.data)?;
        let message = Object::from_raw(raw)?;
        match &*message.text("method") {
            "notifications/progress" => {
                let params = message.object("params");
                let (current, total) = (params.number("progress"), params.number("total"));
                let text = params.text("message");
                out.progress(&params.text("progressToken"), current, total, (!text.is_empty()).then_some(&*text));
                Ok(())
            }
            "" => {
                // The stream of a request ends with its response.
                out.mark_ended();
                match message.raw("error") {
                    Some(error) => fault::report(error, "error", out),
                    None => pass("result", raw, out)?,
                }
                Ok(())
            }
            method => pass(method, raw, out),
        }
    }

    fn finish(&mut self, _: &mut Assembler) {}
}

#[cfg(test)]
mod tests {
    use crate::provider::testing::{all, passed, read_as};

    #[test]
    fn progress_notices_and_results() {
        let result = r#"{"jsonrpc":"2.0","id":1,"result":{"content":[]}}"#;
        let events = read_as(
            "mcp",
            &[
                r#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":"t","progress":1,"total":4,"message":"half"}}"#,
                r#"{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info"}}"#,
                result,
            ],
        );
        let progress = all!(events, Progress)[0];
        assert_eq!((&*progress.stage, progress.current, progress.total), ("t", Some(1.0), Some(4.0)));
        assert!(passed(&events, "notifications/message").contains("info"));
        assert_eq!(passed(&events, "result"), result);
        assert!(all!(events, Error).is_empty());
    }

    #[test]
    fn an_error_is_an_error() {
        let events = read_as("mcp", &[r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"no such tool"}}"#]);
        assert_eq!((&*all!(events, Error)[0].message, all!(events, Error).len()), ("no such tool", 1));
    }
}
