//! What model calls consume: nothing said yet, and sums.

use super::Usage;

#[expect(clippy::derivable_impls, reason = "the vocabulary's table derives the same for all types")]
impl Default for Usage {
    fn default() -> Self {
        Self {
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
}

impl Usage {
    /// Every count, by its name.
    pub fn counts(&self) -> [(&'static str, Option<u64>); 8] {
        [
            ("input_tokens", self.input_tokens),
            ("output_tokens", self.output_tokens),
            ("total_tokens", self.total_tokens),
            ("cache_read_tokens", self.cache_read_tokens),
            ("cache_write_tokens", self.cache_write_tokens),
            ("reasoning_tokens", self.reasoning_tokens),
            ("audio_input_tokens", self.audio_input_tokens),
            ("audio_output_tokens", self.audio_output_tokens),
        ]
    }

    /// Adds another call's counts; what neither said stays unsaid. `raw` is left as it is.
    pub fn add(&mut self, more: &Self) {
        let sums = [
            &mut self.input_tokens,
            &mut self.output_tokens,
            &mut self.total_tokens,
            &mut self.cache_read_tokens,
            &mut self.cache_write_tokens,
            &mut self.reasoning_tokens,
            &mut self.audio_input_tokens,
            &mut self.audio_output_tokens,
        ];
        for (sum, (_, more)) in sums.into_iter().zip(more.counts()) {
            if let Some(more) = more {
                *sum = Some(sum.unwrap_or(0).saturating_add(more));
            }
        }
    }
}
