//! The Live API's messages: what its server sends of text, transcripts, calls and counts over its connection.
//!
//! Owns what stands around the parts. Invariants: 1. what the model says aloud is its text, by its transcript, and the sound
//! passes as `provider_event`; 2. a turn is a round, and its counts, which may follow its end, are its own; 3. a session has no
//! end of its own: once a turn's end or its counts have come, no more is missing.
//!
//! Format: <https://ai.google.dev/api/live>

use super::{Content, Gemini, Part};
use crate::event::FinishReason;
use crate::frame::Frame;
use crate::provider::wire::{Object, pass};
use crate::provider::{Assembler, Malformed, fault};

/// Members that no other of Google's streams has.
const NAMES: [&str; 8] = [
    "setupComplete",
    "setup_complete",
    "serverContent",
    "server_content",
    "toolCall",
    "toolCallCancellation",
    "sessionResumptionUpdate",
    "goAway",
];

/// Whether a message is of this API.
pub(super) fn is_live(message: &Object<'_>) -> bool {
    message.members().any(|(name, _)| is_name(name))
}

/// Whether a member is of this API alone.
pub(super) fn is_name(name: &str) -> bool {
    NAMES.contains(&name)
}

impl Gemini {
    /// Takes a message of the server's.
    pub(super) fn live(&mut self, frame: &Frame<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        let message = Object::parse(frame.data)?;
        self.live = true;
        if let Some(error) = message.raw("error") {
            fault::report(error, "error", out);
            return Ok(());
        }
        let content = message.object(if message.raw("serverContent").is_some() { "serverContent" } else { "server_content" });
        let said = content.object("outputTranscription").text("text").into_owned();
        if let Some(turn) = content.raw("modelTurn") {
            let turn: Content<'_> = serde_json::from_str(turn.get())?;
            for part in turn.parts.items {
                self.live_part(&part, out)?;
            }
        }
        if !said.is_empty() {
            self.live_open(out);
            out.text(0, &said);
        }
        for raw in message.object("toolCall").list("functionCalls") {
            self.live_open(out);
            self.call(0, &serde_json::from_str(raw.get())?, out);
        }
        if let Some(raw) = content.raw("groundingMetadata") {
            self.live_open(out);
            self.grounding(0, &Object::from_raw(raw)?, out)?;
        }
        if let Some(raw) = message.raw("usageMetadata").or_else(|| message.raw("usage_metadata")) {
            Self::usage(raw, out)?;
            out.mark_ended();
        }
        let interrupted = content.is_true("interrupted");
        if (interrupted || content.is_true("turnComplete")) && out.is_open(0) {
            let (reason, raw) = if interrupted { (FinishReason::Cancelled, "interrupted") } else { (FinishReason::Stop, "") };
            if !self.turn_over {
                out.finish_reason_so_far(0, reason, raw);
            }
            self.answers[0].finished = true;
            self.turn_over = true;
            out.mark_ended();
        }
        content.pass_others(
            &["modelTurn", "outputTranscription", "groundingMetadata", "generationComplete", "turnComplete", "interrupted"],
            out,
        )?;
        let known = ["setupComplete", "setup_complete", "serverContent", "server_content", "toolCall"];
        message.pass_others(&[&known[..], &["usageMetadata", "usage_metadata"]].concat(), out)
    }

    fn live_part(&mut self, part: &Part<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        let is_sound = |raw: &str| raw.contains("audio/");
        if let Some((_, raw)) = part.others.iter().find(|(name, raw)| name == "inlineData" && is_sound(raw.get())) {
            return pass("audio", raw, out);
        }
        self.live_open(out);
        self.part(0, part, out)
    }

    /// Something of the answer comes: a turn's, whose predecessor is over.
    fn live_open(&mut self, out: &mut Assembler) {
        if self.turn_over {
            self.end(out);
            out.round_end();
            out.round_start();
            *self = Self { next_call: self.next_call, live: true, ..Self::default() };
        }
        self.open(0, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::testing::{all, call, message, passed, read_as, said};

    #[test]
    fn what_is_said_aloud_is_text_and_its_sound_passes() {
        let events = read_as(
            "gemini",
            &[
                r#"{"setupComplete":{}}"#,
                r#"{"serverContent":{"inputTranscription":{"text":"Hi","languageCode":"en"}}}"#,
                r#"{"serverContent":{"outputTranscription":{"text":"Ho","languageCode":"es"}}}"#,
                r#"{"serverContent":{"modelTurn":{"parts":[{"inlineData":{"mimeType":"audio/pcm;rate=24000","data":"AQID"}}]}}}"#,
                r#"{"serverContent":{"outputTranscription":{"text":"la"}}}"#,
                r#"{"serverContent":{},"usageMetadata":{"promptTokenCount":25,"responseTokenCount":20,"totalTokenCount":45}}"#,
                r#"{"sessionResumptionUpdate":{"newHandle":"h","resumable":true}}"#,
            ],
        );
        assert_eq!((&*message(&events).text, all!(events, Error).len()), ("Hola", 0));
        assert!(passed(&events, "inputTranscription").contains("Hi"));
        assert!(passed(&events, "audio").contains("AQID"));
        assert_eq!((all!(events, Usage)[0].output_tokens, all!(events, File).len()), (Some(20), 0));
    }

    #[test]
    fn turns_are_rounds_and_their_counts_may_follow_their_end() {
        let events = read_as(
            "gemini",
            &[
                r#"{"serverContent":{"modelTurn":{"parts":[{"text":"Hm","thought":true},{"text":"Hi"}]}}}"#,
                r#"{"toolCall":{"functionCalls":[{"id":"f1","name":"f","args":{"a":1}}]}}"#,
                r#"{"serverContent":{"generationComplete":true}}"#,
                r#"{"serverContent":{"turnComplete":true}}"#,
                r#"{"usageMetadata":{"promptTokenCount":2,"responseTokenCount":3,"totalTokenCount":5},"serverContent":{}}"#,
                r#"{"serverContent":{"modelTurn":{"parts":[{"text":"Bye"}]}}}"#,
                r#"{"serverContent":{"interrupted":true}}"#,
                r#"{"serverContent":{"turnComplete":true}}"#,
            ],
        );
        let messages = all!(events, AssistantMessage);
        assert_eq!((&*messages[0].text, &*messages[0].reasoning, &*messages[1].text), ("Hi", "Hm", "Bye"));
        assert_eq!((&*call(&events).call_id, said(call(&events))), ("f1", Some(r#"{"a":1}"#)));
        assert_eq!((messages[0].finish_reason, messages[1].finish_reason), (FinishReason::ToolCalls, FinishReason::Cancelled));
        assert_eq!((all!(events, Usage).len(), all!(events, RoundEnd).len(), all!(events, Error).len()), (1, 2, 0));
    }
}
