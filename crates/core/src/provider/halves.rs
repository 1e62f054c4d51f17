//! Characters that a server has cut in two: one that counts in UTF-16 ends a piece with the first half of a character, and
//! writes it as an escape that no JSON reader takes; the next piece begins with the second half.
//!
//! Owns finding such halves in a frame, what stands for them while it is read, and joining them again. Knows no format.
//! Invariants: 1. a frame without a half is not copied; 2. two halves of one text, however many pieces lie between them
//! that are empty, are their character; 3. a half that stays alone is U+FFFD.

use std::borrow::Cow;
use std::collections::HashMap;

use memchr::memmem;

/// What stands for the halves U+D800 to U+DFFF: the last of the characters that mean nothing by themselves.
const STAND_INS: std::ops::RangeInclusive<u32> = 0x10_f800..=0x10_ffff;
const HALVES: std::ops::RangeInclusive<u32> = 0xd800..=0xdfff;

/// `data` with something that JSON readers take for each half of a character, if it has one.
pub(super) fn mend(data: &[u8]) -> Option<Vec<u8>> {
    let mut mended: Option<Vec<u8>> = None;
    let (mut copied, mut from) = (0, 0);
    while let Some(at) = memmem::find(&data[from..], b"\\u").map(|at| from + at) {
        from = at + 2;
        // Behind an odd number of backslashes it is one that is escaped, and a letter.
        let slashes = data[..at].iter().rev().take_while(|byte| **byte == b'\\').count();
        let Some(half) = half_at(data, at).filter(|_| slashes % 2 == 0) else { continue };
        from = at + 6;
        if is_first(half) && half_at(data, from).is_some_and(|next| !is_first(next)) {
            from += 6; // a whole character
            continue;
        }
        let mended = mended.get_or_insert_with(|| Vec::with_capacity(data.len()));
        mended.extend_from_slice(&data[copied..at]);
        let stand_in = char::from_u32(half - HALVES.start() + STAND_INS.start()).unwrap_or(char::REPLACEMENT_CHARACTER);
        mended.extend_from_slice(stand_in.encode_utf8(&mut [0; 4]).as_bytes());
        copied = from;
    }
    let mut mended = mended?;
    mended.extend_from_slice(&data[copied..]);
    Some(mended)
}

/// The half that is escaped at this place, if one is.
fn half_at(data: &[u8], at: usize) -> Option<u32> {
    let digits = data.get(at..at + 6)?.strip_prefix(b"\\u")?;
    let unit = u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    HALVES.contains(&unit).then_some(unit)
}

fn is_first(half: u32) -> bool {
    half < 0xdc00
}

/// Which text a piece is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Of {
    Text(u64),
    Reasoning(u64),
    Refusal(u64),
    Arguments(u64),
}

/// The first halves whose second ones have not come.
#[derive(Debug, Default)]
pub(super) struct Halves(HashMap<Of, u32>);

impl Halves {
    /// The next piece of a text, its halves joined; a first half at its end waits for the next one.
    pub(super) fn join<'a>(&mut self, of: Of, piece: &'a str) -> Cow<'a, str> {
        if piece.is_empty() || (!self.0.contains_key(&of) && !piece.chars().any(|letter| STAND_INS.contains(&u32::from(letter))))
        {
            return Cow::Borrowed(piece);
        }
        let mut waiting = self.0.remove(&of);
        let mut joined = String::with_capacity(piece.len() + 4);
        for letter in piece.chars() {
            let half = STAND_INS.contains(&u32::from(letter)).then(|| u32::from(letter) - STAND_INS.start() + HALVES.start());
            match (waiting.take(), half) {
                (Some(first), Some(second)) if !is_first(second) => {
                    let whole = 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00);
                    joined.push(char::from_u32(whole).unwrap_or(char::REPLACEMENT_CHARACTER));
                    continue;
                }
                (Some(_), _) => joined.push(char::REPLACEMENT_CHARACTER),
                (None, _) => {}
            }
            match half {
                Some(first) if is_first(first) => waiting = Some(first),
                Some(_) => joined.push(char::REPLACEMENT_CHARACTER),
                None => joined.push(letter),
            }
        }
        if let Some(first) = waiting {
            self.0.insert(of, first);
        }
        Cow::Owned(joined)
    }

    /// The text is said whole, or has ended: whether a half of it was still waiting.
    pub(super) fn end(&mut self, of: Of) -> bool {
        self.0.remove(&of).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_half_is_mended() {
        for whole in [r#"{"a":"\ud83d\ude00"}"#, r#"{"a":"\\ud83d"}"#, r#"{"a":"\u00e9"}"#, r#"{"a":"\ud8"}"#, ""] {
            assert_eq!(mend(whole.as_bytes()), None, "{whole}");
        }
        for (half, letters) in [(r#"["\ud83d"]"#, 1), (r#"["\uDE00\ud83d"]"#, 2), (r#"["a\\\ud83db\ud83d\ud83d\ude00"]"#, 6)] {
            let mended = mend(half.as_bytes()).unwrap();
            let [text]: [String; 1] = serde_json::from_slice(&mended).unwrap();
            assert_eq!(text.chars().count(), letters, "{half}");
        }
    }

    #[test]
    fn halves_meet_across_pieces_and_never_across_texts() {
        let first = String::from_utf8(mend(br"\ud83d").unwrap()).unwrap();
        let second = String::from_utf8(mend(br"\ude00").unwrap()).unwrap();
        let mut halves = Halves::default();
        assert_eq!(halves.join(Of::Text(0), &format!("a{first}")), "a");
        assert_eq!(halves.join(Of::Text(1), &second), "\u{fffd}");
        assert_eq!(halves.join(Of::Text(0), ""), "");
        assert_eq!(halves.join(Of::Text(0), &format!("{second}b")), "😀b");
        assert_eq!(halves.join(Of::Text(0), &format!("{first}{first}{second}{first}")), "\u{fffd}😀");
        assert!(halves.end(Of::Text(0)) && !halves.end(Of::Text(0)));
    }
}
