//! Numbers that JSON has not: `NaN`, `Infinity` and `-Infinity`, which Python's servers write into log probabilities and
//! Python's clients read.
//!
//! Owns finding them in a frame that no JSON reader took. Knows no format. Invariant: 1. what stands in a string stays.

use memchr::memmem;

const WORDS: [&[u8]; 3] = [b"NaN", b"Infinity", b"-Infinity"];

/// `data` with `null` for each such number, if it has one.
pub(super) fn mend(data: &[u8]) -> Option<Vec<u8>> {
    if WORDS[..2].iter().all(|word| memmem::find(data, word).is_none()) {
        return None;
    }
    let mut mended = Vec::with_capacity(data.len());
    let (mut at, mut in_string, mut found) = (0, false, false);
    while let Some(&byte) = data.get(at) {
        let word = WORDS.iter().find(|word| !in_string && data[at..].starts_with(word));
        if let Some(word) = word {
            mended.extend_from_slice(b"null");
            at += word.len();
            found = true;
            continue;
        }
        if in_string && byte == b'\\' {
            mended.extend_from_slice(&data[at..data.len().min(at + 2)]);
            at += 2;
            continue;
        }
        in_string ^= byte == b'"';
        mended.push(byte);
        at += 1;
    }
    found.then_some(mended)
}

#[cfg(test)]
mod tests {
    use super::mend;

    #[test]
    fn only_a_number_is_mended() {
        for whole in ["", r#"{"a":1}"#, r#"{"a":"NaN"}"#, r#"{"a":"\"NaN, -Infinity\\"}"#, r#"{"NaN":1e9}"#, r#"{"a":"NaN\"#] {
            assert_eq!(mend(whole.as_bytes()), None, "{whole}");
        }
        let broken = r#"{"a":[NaN,Infinity,-Infinity],"NaN":NaN,"b":"\\"}"#;
        let mended = mend(broken.as_bytes()).map(String::from_utf8);
        assert_eq!(mended, Some(Ok(r#"{"a":[null,null,null],"NaN":null,"b":"\\"}"#.to_owned())));
    }
}
