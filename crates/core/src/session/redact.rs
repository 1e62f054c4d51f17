//! What must not be stored is taken out before anything is stored.
//!
//! Owns what becomes of an event that the hook withholds or fails on. Invariants: 1. the hook runs on the thread that
//! emits, with no lock held; 2. what it fails on is never stored: a placeholder that names only the type stands for it,
//! and is counted; 3. a turn starts and ends whatever the hook does.

use std::sync::atomic::Ordering;

use super::Session;
use crate::event::{AssistantMessage, Custom, Error, FinishReason, Json, Origin, Payload, Text, TurnStart};

/// What the hook makes of an event.
pub enum Redacted {
    /// This is to be stored.
    Kept(Payload, Option<Json>),
    /// Nothing is.
    Withheld,
    /// The hook failed.
    Failed,
}

/// A hook that sees each payload, with the fields that its type does not name, before it is stored.
pub trait Redact: Send + Sync {
    /// What is to be stored instead. Called on the emitting thread, with no lock held.
    fn redact(&self, payload: Payload, extra: Option<Json>) -> Redacted;
}

/// The name of the `custom` event that stands for one on which the hook failed.
pub const PLACEHOLDER: &str = "redaction_failed";

impl Session {
    /// The payload as it may be stored; none where it is withheld.
    pub(super) fn redacted(&self, payload: Payload, extra: Option<Json>) -> Option<(Payload, Option<Json>)> {
        let Some(hook) = &self.redact else { return Some((payload, extra)) };
        let end = if let Payload::Completion(completion) = &payload { Some(completion.clone()) } else { None };
        let kind = payload.kind();
        let redacted = hook.redact(payload, extra);
        if matches!(redacted, Redacted::Failed) {
            self.redaction_failures.fetch_add(1, Ordering::Relaxed);
        }
        match (redacted, end) {
            (Redacted::Kept(payload, extra), _) => Some((payload, extra)),
            // An end is one without what it says.
            (_, Some(mut end)) => {
                (end.text, end.error) = (Text::default(), None);
                Some((Payload::Completion(end), None))
            }
            (Redacted::Withheld, None) => None,
            (Redacted::Failed, None) => {
                let data = Json::from_value(&serde_json::json!({ "type": kind }));
                Some((Custom { name: PLACEHOLDER.into(), data: Some(data) }.into(), None))
            }
        }
    }

    /// A turn's start, without what may not be stored.
    pub(super) fn redacted_start(&self, start: TurnStart) -> TurnStart {
        let client_id = start.client_id.clone();
        if self.redact.is_none() {
            return start;
        }
        match self.redacted(start.into(), None) {
            Some((Payload::TurnStart(start), _)) => TurnStart { client_id, ..*start },
            _ => TurnStart { input: None, client_id, metadata: None },
        }
    }

    /// The text of a run's own result, as it may be stored.
    pub(super) fn redacted_text(&self, text: Text) -> Option<Text> {
        if self.redact.is_none() {
            return Some(text);
        }
        let whole = AssistantMessage {
            message_id: "".into(),
            text,
            reasoning: Text::default(),
            refusal: None,
            tool_calls: Vec::new(),
            finish_reason: FinishReason::Stop,
            finish_reason_raw: None,
            model: None,
            streamed: false,
            origin: Origin::Fallback,
            choice: None,
        };
        match self.redacted(whole.into(), None) {
            Some((Payload::AssistantMessage(whole), _)) => Some(whole.text),
            _ => None,
        }
    }

    /// The message of a turn's fatal error, as it may be stored.
    pub(super) fn redacted_error(&self, code: &str, message: &str) -> Text {
        if self.redact.is_none() {
            return message.into();
        }
        let error = Error { code: code.into(), message: message.into(), retryable: false, fatal: true, raw: None };
        match self.redacted(error.into(), None) {
            Some((Payload::Error(error), _)) => error.message,
            _ => "withheld".into(),
        }
    }
}
