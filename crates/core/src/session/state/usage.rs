//! What a turn's model calls consumed together.

use super::State;
use super::json::{key, object};
use crate::event::json::write_u64;
use crate::event::{Json, Usage};

impl State {
    /// The usage of the newest turn, as JSON.
    pub fn usage_json(&self) -> Option<Json> {
        let usage = self.usage.as_ref()?;
        let mut out = Vec::new();
        for (name, count) in [
            ("input_tokens", usage.input_tokens),
            ("output_tokens", usage.output_tokens),
            ("total_tokens", usage.total_tokens),
            ("cache_read_tokens", usage.cache_read_tokens),
            ("cache_write_tokens", usage.cache_write_tokens),
            ("reasoning_tokens", usage.reasoning_tokens),
            ("audio_input_tokens", usage.audio_input_tokens),
            ("audio_output_tokens", usage.audio_output_tokens),
        ] {
            if let Some(count) = count {
                key(&mut out, name);
                write_u64(&mut out, count);
            }
        }
        Some(object(out))
    }
}

/// Nothing said yet.
pub(crate) fn empty_usage() -> Usage {
    Usage {
        input_tokens: None,
        output_tokens: None,
        total_tokens: None,
        cache_read_tokens: None,
        cache_write_tokens: None,
        reasoning_tokens: None,
        audio_input_tokens: None,
        audio_output_tokens: None,
        raw: None,
    }
}

/// Sums across responses; what nobody said stays unsaid.
pub(crate) fn add_usage(sum: &mut Usage, usage: &Usage) {
    for (sum, more) in [
        (&mut sum.input_tokens, usage.input_tokens),
        (&mut sum.output_tokens, usage.output_tokens),
        (&mut sum.total_tokens, usage.total_tokens),
        (&mut sum.cache_read_tokens, usage.cache_read_tokens),
        (&mut sum.cache_write_tokens, usage.cache_write_tokens),
        (&mut sum.reasoning_tokens, usage.reasoning_tokens),
        (&mut sum.audio_input_tokens, usage.audio_input_tokens),
        (&mut sum.audio_output_tokens, usage.audio_output_tokens),
    ] {
        if let Some(more) = more {
            *sum = Some(sum.unwrap_or(0).saturating_add(more));
        }
    }
}
