//! Bytes inside JSON: base64 to bytes, and bytes in pieces to text.
//!
//! Knows no format. Invariants: 1. a character cut between two pieces comes out whole; 2. at most three bytes are held
//! back; 3. bytes that are no UTF-8 become U+FFFD, as in the frames.

use base64::Engine as _;
use base64::engine::general_purpose::GeneralPurpose;
use base64::engine::{DecodePaddingMode, GeneralPurposeConfig};

use super::Malformed;

/// Standard base64, its padding there or not.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The bytes that `text` stands for.
pub(super) fn decode(text: &str) -> Result<Vec<u8>, Malformed> {
    BASE64.decode(text.trim_ascii()).map_err(|error| Malformed(format!("not base64: {error}")))
}

/// Joins pieces of UTF-8 that were cut anywhere.
#[derive(Debug, Default)]
pub(super) struct Joiner(Vec<u8>);

impl Joiner {
    /// The text up to the last character that is whole.
    pub(super) fn push(&mut self, piece: &[u8]) -> String {
        self.0.extend_from_slice(piece);
        let whole = self.0.len() - cut_tail(&self.0);
        let text = String::from_utf8_lossy(&self.0[..whole]).into_owned();
        self.0.drain(..whole);
        text
    }

    /// What is left: half a character, if anything.
    pub(super) fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.0)).into_owned()
    }
}

/// How many bytes at the end begin a character that more bytes may make whole.
fn cut_tail(bytes: &[u8]) -> usize {
    let last = &bytes[bytes.len().saturating_sub(4)..];
    match last.utf8_chunks().last() {
        // An invalid piece that the end cut short is the start of a character; any other was refused for a byte.
        Some(chunk)
            if !chunk.invalid().is_empty() && std::str::from_utf8(chunk.invalid()).is_err_and(|e| e.error_len().is_none()) =>
        {
            chunk.invalid().len()
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_with_and_without_padding() {
        assert_eq!(decode("aGk=").unwrap(), b"hi");
        assert_eq!(decode("aGk").unwrap(), b"hi");
        assert!(decode("a*").is_err());
    }

    #[test]
    fn a_character_cut_anywhere_comes_out_whole() {
        let text = "a\u{e9}\u{65e5}\u{1f30d}z";
        for cut in 0..=text.len() {
            let mut joiner = Joiner::default();
            let (first, second) = text.as_bytes().split_at(cut);
            let whole = joiner.push(first) + &joiner.push(second) + &joiner.finish();
            assert_eq!(whole, text, "{cut}");
        }
        let mut joiner = Joiner::default();
        let single: String = text.as_bytes().iter().map(|byte| joiner.push(&[*byte])).collect();
        assert_eq!(single, text);
    }

    #[test]
    fn what_is_no_utf8_is_replaced_and_never_held() {
        let mut joiner = Joiner::default();
        assert_eq!(joiner.push(b"a\xff"), "a\u{fffd}");
        assert_eq!(joiner.push(b"\xf0\x9f"), "");
        assert_eq!(joiner.push(b"b"), "\u{fffd}b");
        assert_eq!(joiner.push(b"\xe6"), "");
        assert_eq!(joiner.finish(), "\u{fffd}");
        assert_eq!(joiner.finish(), "");
    }
}
