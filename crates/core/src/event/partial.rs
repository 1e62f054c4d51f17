//! JSON that is not whole yet: a tool call's arguments while they stream.
//!
//! Owns what a broken-off text means. Invariants: 1. it never fails: what makes no sense is `None`; 2. every beginning of
//! a JSON object or list gives an object or list, but for the blanks before it; 3. a member whose value has not begun is
//! left out, a string or a number goes as far as it has come; 4. what follows a whole value is ignored.

use jiter::{JsonValue, PartialMode};

use super::json::{Json, MAX_DEPTH, depth, list, member, object, write_f64, write_str};

/// What `raw`, the beginning of a JSON text, says so far; `None` where that is nothing, or no JSON. Costs the text's own length:
/// for now and then, not for every piece of a long stream.
///
/// ```
/// # use turnstream_core::event::partial_json;
/// let so_far = partial_json(r#"{"city": "Zür"#).unwrap();
/// assert_eq!(so_far.as_str(), r#"{"city":"Zür"}"#);
/// ```
pub fn partial_json(raw: &str) -> Option<Json> {
    if depth(raw) > MAX_DEPTH {
        return None;
    }
    // A whole value is taken as it was sent.
    if let Ok(whole) = Json::parse(raw) {
        return Some(whole);
    }
    let value = JsonValue::parse_with_config(raw.as_bytes(), false, PartialMode::TrailingStrings).ok()?;
    let mut out = Vec::with_capacity(raw.len() + 8);
    write(&value, &mut out);
    Some(Json::from_written(out))
}

fn write(value: &JsonValue<'_>, out: &mut Vec<u8>) {
    match value {
        JsonValue::Null => out.extend_from_slice(b"null"),
        JsonValue::Bool(truth) => out.extend_from_slice(if *truth { b"true" } else { b"false" }),
        JsonValue::Int(number) => out.extend_from_slice(itoa::Buffer::new().format(*number).as_bytes()),
        JsonValue::BigInt(number) => out.extend_from_slice(number.to_string().as_bytes()),
        JsonValue::Float(number) => write_f64(out, *number),
        JsonValue::Str(text) => write_str(out, text),
        JsonValue::Array(items) => list(out, items.iter(), |out, item| write(item, out)),
        JsonValue::Object(members) => object(out, |out| {
            members.iter().for_each(|(name, value)| member(out, name, |out| write(value, out)));
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn so_far(raw: &str) -> Option<String> {
        partial_json(raw).map(|json| json.as_str().to_owned())
    }

    #[test]
    fn what_has_come_counts() {
        for (raw, said) in [
            ("{", "{}"),
            (r#"{"a"#, "{}"),
            (r#"{"a":"#, "{}"),
            (r#"{"a":1"#, r#"{"a":1}"#),
            (r#"{"a":1}}"#, r#"{"a":1}"#),
            (r#"{"a":1,"#, r#"{"a":1}"#),
            (r#"{"a":"x"#, r#"{"a":"x"}"#),
            (r#"{"a":"x\"#, r#"{"a":"x"}"#),
            (r#"{"a":[true,{"b":nul"#, r#"{"a":[true,{}]}"#),
            (r#"{"a":123456789012345678901234567890,"b":["#, r#"{"a":123456789012345678901234567890,"b":[]}"#),
            (" [1.50, 2", "[1.5,2]"),
            (r#"{"n": 1.50}"#, r#"{"n": 1.50}"#),
        ] {
            assert_eq!(so_far(raw).as_deref(), Some(said), "{raw}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_none() {
        let deep = "[".repeat(1_000_000);
        for raw in ["", "  ", "}", "hello", r#"{"a" 1}"#, "{1:", &deep] {
            assert_eq!(so_far(raw), None, "{}", &raw[..raw.len().min(9)]);
        }
    }

    proptest::proptest! {
        /// Any text, any cut: never a panic, and always JSON.
        #[test]
        fn any_text_is_json_or_none(raw in r#"[\[\]{}",:0-9eE.+\-tfn\\u a\u{e9}]{0,40}"#) {
            if let Some(json) = partial_json(&raw) {
                proptest::prop_assert!(Json::parse(json.as_str()).is_ok(), "{raw} -> {json:?}");
            }
        }

        /// Every beginning of an object is an object.
        #[test]
        fn every_beginning_of_an_object_is_one(key in ".{0,5}", text in ".{0,9}", number in proptest::num::f64::NORMAL) {
            let whole = serde_json::json!({ "a": {&key: [text, number, null, true]}, "z": key }).to_string();
            for at in (1..=whole.len()).filter(|at| whole.is_char_boundary(*at)) {
                let json = partial_json(&whole[..at]);
                proptest::prop_assert!(json.as_ref().is_some_and(|json| json.to_value().is_object()), "{}", &whole[..at]);
            }
        }
    }
}
