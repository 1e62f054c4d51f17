//! What the protocols write alike: a frame of one JSON object, counts, a failure, a result.

use serde::Deserialize;

use crate::event::json::{member, object, write_str, write_u64};
use crate::event::{Completion, Text, ToolResult, Usage};

/// One frame: `data: {"type":…` and its members, each a name and what writes its value.
pub(in crate::encode) struct Frame<'a> {
    out: &'a mut Vec<u8>,
}

impl<'a> Frame<'a> {
    pub(in crate::encode) fn new(out: &'a mut Vec<u8>, kind: &str) -> Self {
        out.extend_from_slice(b"data: {\"type\":");
        write_str(out, kind);
        Self { out }
    }

    fn key(&mut self, name: &str) {
        self.out.extend_from_slice(b",\"");
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
    }

    pub(in crate::encode) fn text(mut self, name: &str, value: &str) -> Self {
        self.key(name);
        write_str(self.out, value);
        self
    }

    pub(in crate::encode) fn maybe(self, name: &str, value: Option<&str>) -> Self {
        match value {
            Some(value) => self.text(name, value),
            None => self,
        }
    }

    pub(in crate::encode) fn flag(mut self, name: &str, value: bool) -> Self {
        if value {
            self.key(name);
            self.out.extend_from_slice(b"true");
        }
        self
    }

    pub(in crate::encode) fn with(mut self, name: &str, write: impl FnOnce(&mut Vec<u8>)) -> Self {
        self.key(name);
        write(self.out);
        self
    }

    pub(in crate::encode) fn send(self) {
        self.out.extend_from_slice(b"}\n\n");
    }
}

/// Counts in the words of both protocols. What is not known is left out.
pub(in crate::encode) fn write_usage(out: &mut Vec<u8>, usage: &Usage) {
    let total = match (usage.input_tokens, usage.output_tokens) {
        (Some(input), Some(output)) => Some(input.saturating_add(output)),
        _ => usage.total_tokens,
    };
    let counts = [
        ("inputTokens", usage.input_tokens),
        ("outputTokens", usage.output_tokens),
        ("totalTokens", total),
        ("reasoningTokens", usage.reasoning_tokens),
        ("cachedInputTokens", usage.cache_read_tokens),
        ("cacheWriteInputTokens", usage.cache_write_tokens),
    ];
    object(out, |out| {
        for (name, count) in counts {
            if let Some(count) = count {
                member(out, name, |out| write_u64(out, count));
            }
        }
    });
}

/// What a failed turn says: its error's message and code.
pub(in crate::encode) fn failure(completion: &Completion) -> (Text, Option<Text>) {
    #[derive(Deserialize)]
    struct Said {
        code: Option<Text>,
        message: Option<Text>,
    }
    let said = completion.error.as_ref().and_then(|error| serde_json::from_str::<Said>(error.as_str()).ok());
    let (code, message) = said.map_or((None, None), |said| (said.code, said.message));
    let code = code.or_else(|| completion.reason.clone());
    let message = message.filter(|message| !message.is_empty()).or_else(|| code.clone());
    (message.unwrap_or_else(|| completion.status.as_str().into()), code)
}

/// A result as text: a JSON string's own text, else the JSON.
pub(in crate::encode) fn result_text(result: &ToolResult) -> Text {
    match &result.output {
        Some(json) => serde_json::from_str::<Text>(json.as_str()).unwrap_or_else(|_| json.as_str().into()),
        None if result.is_error => result.status.clone(),
        None => Text::default(),
    }
}
