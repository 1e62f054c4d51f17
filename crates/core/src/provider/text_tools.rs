//! Tool calls and end marks that stand in a message's text: what models write by their chat templates.
//!
//! Servers of open models (vLLM, llama.cpp, LM Studio, Ollama) turn a template's marks into fields of their API when told
//! which template it is. Where they are not, the marks stand in the text, and this finds them there.
//!
//! Owns the marks and the scanner. Knows nothing of events. Invariants: 1. any split of the text gives the same text and
//! the same calls; 2. only what could still become a mark, or is inside of one, is held back; 3. what is not a whole call,
//! to the letter, is text: every byte of it, in its place; 4. a mark inside a call's arguments is theirs; 5. each byte is
//! looked at a bounded number of times.
//!
//! | mark | what follows | models |
//! |---|---|---|
//! | `<tool_call>` | `{"name", "arguments"}`, or a list of them, and `</tool_call>` | Hermes, Qwen |
//! | `[TOOL_CALLS]` | `[{"name", "arguments"}, …]`, or `name{…}`, or `name[CALL_ID]id[ARGS]{…}` | Mistral |
//! | `<\|python_tag\|>` | `{"name", "parameters"}` | Llama 3 |
//! | `<function=name>` | `{…}</function>` | Llama 3, Functionary |
//! | `<\|tool_call\|>` | `[{"name", "arguments"}, …]` | Granite |
//! | `<｜tool▁call▁begin｜>` | `name<｜tool▁sep｜>{…}` or `function<｜tool▁sep｜>name`, fenced JSON; `<｜tool▁call▁end｜>` | `DeepSeek` |
//! | `<\|tool_call_begin\|>` | `functions.name:0<\|tool_call_argument_begin\|>{…}<\|tool_call_end\|>` | Kimi |

use std::borrow::Cow;
use std::collections::HashMap;

use memchr::memchr2;
use serde_json::value::RawValue;

use super::lax::text_of;

/// How long a name may be, with the marks and the blanks around it.
const MAX_HEAD_BYTES: usize = 160;

/// One way of writing calls.
struct Form {
    open: &'static str,
    /// What stands between the mark and the JSON, read; none where only blanks may.
    head: Option<fn(&str) -> Option<Head>>,
    /// The mark behind the JSON; blank where there is none.
    close: &'static str,
}

/// What is known of a call before its JSON; a blank name stands in the JSON itself.
#[derive(Debug, Default)]
struct Head {
    name: String,
    id: String,
}

const FORMS: [Form; 7] = [
    Form { open: "<tool_call>", head: None, close: "</tool_call>" },
    Form { open: "[TOOL_CALLS]", head: Some(mistral), close: "" },
    Form { open: "<|python_tag|>", head: None, close: "" },
    Form { open: "<function=", head: Some(function), close: "</function>" },
    Form { open: "<|tool_call|>", head: None, close: "" },
    Form { open: "<｜tool▁call▁begin｜>", head: Some(deepseek), close: "<｜tool▁call▁end｜>" },
    Form { open: "<|tool_call_begin|>", head: Some(kimi), close: "<|tool_call_end|>" },
];

/// Marks that say nothing: the ends of turns, and the brackets around several calls. They are dropped beside a call and at
/// the end, and are text where text stands on both sides.
const SILENT: [&str; 20] = [
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|eot|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|EOT|>",
    "<|END_OF_TURN_TOKEN|>",
    "</s>",
    "<eos>",
    "<end_of_turn>",
    "[EOS]",
    "<｜end▁of▁sentence｜>",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "<|tool_calls_section_begin|>",
    "<|tool_calls_section_end|>",
];

/// A call that stood in the text.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TextCall {
    /// Blank where the text says none.
    pub(super) id: String,
    pub(super) name: String,
    /// As the model wrote them; blank where it wrote none.
    pub(super) arguments: String,
}

/// What a piece of text turned out to say.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said {
    Text(String),
    Call(TextCall),
    /// The text before this began as a call does, and is none.
    NoCall,
}

/// What comes next at `held[at..]`. Numbers are places in `held`.
#[derive(Debug, Clone, Copy)]
enum Place {
    /// Text. `held[plain..at]` says nothing: marks, and the blanks behind a mark or a call, where `silent`. `called` where
    /// nothing else stands between the last call and it.
    Text { silent: bool, called: bool },
    /// What stands between a form's mark and its JSON, from `head` on.
    Head { form: usize, head: usize },
    /// Its JSON, from `json` on.
    Json { form: usize, head: usize, json: usize, depth: usize, string: bool, escape: bool },
    /// What stands behind its JSON, which goes to `end`.
    Close { form: usize, head: usize, json: usize, end: usize },
}

/// Plain text.
const TEXT: Place = Place::Text { silent: false, called: false };

/// Reads one message's text, piece by piece.
#[derive(Debug)]
pub(super) struct TextTools {
    /// All that came, as it came.
    raw: String,
    /// Its end: all that is not yet said, and what has been said since the last piece.
    held: String,
    /// How much of `held` has been said; how much is known to be text; how much has been looked at.
    told: usize,
    plain: usize,
    at: usize,
    place: Place,
    /// How many calls have been said, and how many of them come again in a second reading.
    calls: usize,
    repeated: usize,
    said: Vec<Said>,
}

impl TextTools {
    pub(super) fn new() -> Self {
        Self {
            raw: String::new(),
            held: String::new(),
            told: 0,
            plain: 0,
            at: 0,
            place: TEXT,
            calls: 0,
            repeated: 0,
            said: Vec::new(),
        }
    }

    /// All text that came, marks and all.
    pub(super) fn raw(&self) -> &str {
        &self.raw
    }

    /// Begins anew with another text: calls that were said stay said, and so many are not said again.
    pub(super) fn restart(&mut self) {
        *self = Self { calls: self.calls, repeated: self.calls, ..Self::new() };
    }

    /// Takes a piece; gives what is certain now.
    pub(super) fn feed(&mut self, piece: &str) -> Vec<Said> {
        self.raw.push_str(piece);
        self.held.push_str(piece);
        while self.step() {}
        self.tell();
        self.forget();
        std::mem::take(&mut self.said)
    }

    /// The text has ended: gives the rest of it.
    pub(super) fn finish(&mut self) -> Vec<Said> {
        let unread = matches!(self.place, Place::Json { .. } | Place::Close { .. });
        let silent = matches!(self.place, Place::Text { .. }) && self.at == self.held.len();
        let mut rest = self.held.as_str();
        if !silent {
            while let Some(shorter) = without_mark(rest) {
                rest = shorter;
            }
        } else if !self.strikes_out() {
            rest = &rest[..self.plain];
        }
        self.plain = rest.len();
        self.tell();
        if unread {
            self.said.push(Said::NoCall);
        }
        self.held.clear();
        (self.told, self.plain, self.at, self.place) = (0, 0, 0, TEXT);
        std::mem::take(&mut self.said)
    }

    /// Whether a `</s>` at the end closes an `<s>`: struck-out text in HTML.
    fn strikes_out(&self) -> bool {
        self.held[self.plain..].starts_with("</s>") && self.raw.contains("<s>")
    }

    /// Says what is known to be text.
    fn tell(&mut self) {
        if self.told < self.plain {
            self.said.push(Said::Text(self.held[self.told..self.plain].to_owned()));
            self.told = self.plain;
        }
    }

    /// Drops what has been said, once a piece: each time costs what is left.
    fn forget(&mut self) {
        let told = std::mem::take(&mut self.told);
        self.held.drain(..told);
        self.plain -= told;
        self.at -= told;
        match &mut self.place {
            Place::Text { .. } => {}
            Place::Head { head, .. } => *head -= told,
            Place::Json { head, json, .. } => {
                *head -= told;
                *json -= told;
            }
            Place::Close { head, json, end, .. } => {
                *head -= told;
                *json -= told;
                *end -= told;
            }
        }
    }

    /// Goes on as far as one place reaches; false where more must come first.
    fn step(&mut self) -> bool {
        match self.place {
            Place::Text { silent, called } => self.text(silent, called),
            Place::Head { form, head } => self.head(form, head),
            Place::Json { .. } => self.json(),
            Place::Close { form, head, json, end } => self.close(form, head, json, end),
        }
    }

    fn text(&mut self, silent: bool, called: bool) -> bool {
        if silent {
            self.skip(|byte| byte.is_ascii_whitespace());
        }
        let rest = &self.held[self.at..];
        match rest.bytes().next() {
            None => return false,
            Some(b'<' | b'[') => {
                if let Some(mark) = SILENT.iter().find(|mark| rest.starts_with(**mark)) {
                    self.at += mark.len();
                    if called {
                        (self.told, self.plain) = (self.at, self.at);
                    }
                    self.place = Place::Text { silent: true, called };
                    return true;
                }
                if let Some(form) = FORMS.iter().position(|form| rest.starts_with(form.open)) {
                    self.at += FORMS[form].open.len();
                    self.place = Place::Head { form, head: self.at };
                    return true;
                }
                if SILENT.iter().chain(FORMS.iter().map(|form| &form.open)).any(|mark| mark.starts_with(rest)) {
                    return false;
                }
                self.at += 1;
            }
            Some(_) => {}
        }
        let rest = &self.held.as_bytes()[self.at..];
        self.text_to(self.at + memchr2(b'<', b'[', rest).unwrap_or(rest.len()));
        true
    }

    /// All before `at` is text.
    fn text_to(&mut self, at: usize) {
        (self.plain, self.at, self.place) = (at, at, TEXT);
    }

    fn skip(&mut self, what: impl Fn(u8) -> bool) {
        self.at += self.held.as_bytes()[self.at..].iter().take_while(|byte| what(**byte)).count();
    }

    fn head(&mut self, form: usize, head: usize) -> bool {
        while let Some(&byte) = self.held.as_bytes().get(self.at) {
            let list = || self.held[head..self.at].trim_ascii().is_empty();
            if byte == b'{' || (byte == b'[' && list()) {
                if read_head(form, &self.held[head..self.at]).is_none() {
                    break;
                }
                self.place = Place::Json { form, head, json: self.at, depth: 0, string: false, escape: false };
                return true;
            }
            let bare = FORMS[form].head.is_none();
            if self.at - head >= MAX_HEAD_BYTES || (bare && !byte.is_ascii_whitespace()) {
                break;
            }
            self.at += 1;
        }
        if self.at == self.held.len() {
            return false;
        }
        // Another mark may stand in what was no head.
        self.text_to(head);
        true
    }

    fn json(&mut self) -> bool {
        let Place::Json { form, head, json, mut depth, mut string, mut escape } = self.place else { return false };
        while let Some(&byte) = self.held.as_bytes().get(self.at) {
            match byte {
                _ if escape => escape = false,
                b'\\' if string => escape = true,
                b'"' => string = !string,
                _ if string => {}
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth -= 1,
                b',' | b':' | b'+' | b'-' | b'.' => {}
                byte if byte.is_ascii_alphanumeric() || byte.is_ascii_whitespace() => {}
                _ => return self.no_call(),
            }
            self.at += 1;
            if depth == 0 {
                self.place = Place::Close { form, head, json, end: self.at };
                return true;
            }
        }
        self.place = Place::Json { form, head, json, depth, string, escape };
        false
    }

    fn close(&mut self, form: usize, head: usize, json: usize, end: usize) -> bool {
        let close = FORMS[form].close;
        if !close.is_empty() {
            self.skip(|byte| byte.is_ascii_whitespace() || byte == b'`');
            let rest = &self.held[self.at..];
            if !rest.starts_with(close) {
                return if close.starts_with(rest) { false } else { self.no_call() };
            }
            self.at += close.len();
        }
        let calls = read_head(form, &self.held[head..json]).and_then(|head| read_calls(head, &self.held[json..end]));
        let Some(calls) = calls else { return self.no_call() };
        self.tell();
        // What was silent before the call goes with it.
        (self.told, self.plain, self.place) = (self.at, self.at, Place::Text { silent: true, called: true });
        let known = self.repeated.min(calls.len());
        self.repeated -= known;
        self.calls += calls.len() - known;
        self.said.extend(calls.into_iter().skip(known).map(Said::Call));
        true
    }

    /// What began as a call is none: text, up to here.
    fn no_call(&mut self) -> bool {
        self.text_to(self.at);
        self.tell();
        self.said.push(Said::NoCall);
        true
    }
}

/// `text` without the silent mark that it ends with, and the blanks behind that.
fn without_mark(text: &str) -> Option<&str> {
    let trimmed = text.trim_ascii_end();
    SILENT.iter().find_map(|mark| trimmed.strip_suffix(mark))
}

// --- what stands between the marks ---------------------------------------------------------------------------------------

fn read_head(form: usize, head: &str) -> Option<Head> {
    match FORMS[form].head {
        Some(read) => read(head),
        None => Some(Head::default()),
    }
}

fn named(name: &str) -> Option<Head> {
    let name = name.trim();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-./:".contains(&byte);
    (!name.is_empty() && name.bytes().all(plain)).then(|| Head { name: name.to_owned(), id: String::new() })
}

fn mistral(head: &str) -> Option<Head> {
    let head = head.trim();
    if head.is_empty() {
        return Some(Head::default());
    }
    let head = head.strip_suffix("[ARGS]").unwrap_or(head);
    let (name, id) = head.split_once("[CALL_ID]").unwrap_or((head, ""));
    named(name).map(|head| Head { id: id.trim().to_owned(), ..head })
}

fn function(head: &str) -> Option<Head> {
    named(head.trim_end().strip_suffix('>')?)
}

fn deepseek(head: &str) -> Option<Head> {
    let (first, second) = head.split_once("<｜tool▁sep｜>")?;
    let second = second.trim_end().trim_end_matches("```json").trim();
    if second.is_empty() { named(first) } else { named(second) }
}

/// The id counts within one conversation as the model saw it: it is no id among several.
fn kimi(head: &str) -> Option<Head> {
    let name = head.trim_end().strip_suffix("<|tool_call_argument_begin|>")?.trim();
    let name = name.strip_prefix("functions.").unwrap_or(name);
    named(name.rsplit_once(':').map_or(name, |(name, _)| name))
}

/// The calls that a head and its JSON make, at least one.
fn read_calls(head: Head, json: &str) -> Option<Vec<TextCall>> {
    if !head.name.is_empty() {
        return Some(vec![TextCall { id: head.id, name: head.name, arguments: json.to_owned() }]);
    }
    let calls: Vec<&RawValue> =
        if json.starts_with('[') { serde_json::from_str(json).ok()? } else { vec![serde_json::from_str(json).ok()?] };
    let calls: Option<Vec<TextCall>> = calls.into_iter().map(|call| read_call(call.get())).collect();
    calls.filter(|calls| !calls.is_empty())
}

fn read_call(json: &str) -> Option<TextCall> {
    let members = |json| serde_json::from_str::<HashMap<Cow<'_, str>, &RawValue>>(json).ok();
    let outer = members(json)?;
    let text = |value: &&RawValue| serde_json::from_str::<String>(value.get()).ok();
    let id = outer.get("id").and_then(text).unwrap_or_default();
    // As the chat API writes it.
    let inner = outer.get("function").and_then(|function| members(function.get()));
    let call = inner.as_ref().unwrap_or(&outer);
    let name = call.get("name").and_then(text).filter(|name| !name.trim().is_empty())?;
    let arguments = call.get("arguments").or_else(|| call.get("parameters"));
    let arguments = arguments.filter(|raw| raw.get() != "null").map(|raw| text_of(raw).into_owned());
    Some(TextCall { id, name, arguments: arguments.unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text, with `call(arguments)` in braces of our own where a call stood.
    fn read<'a>(pieces: impl IntoIterator<Item = &'a str>) -> (String, usize) {
        let mut tools = TextTools::new();
        let mut said: Vec<Said> = pieces.into_iter().flat_map(|piece| tools.feed(piece)).collect();
        said.extend(tools.finish());
        let (mut text, mut unread) = (String::new(), 0);
        for said in said {
            match said {
                Said::Text(piece) => text += &piece,
                Said::Call(call) => text.extend(["«", &call.id, &call.name, &call.arguments, "»"]),
                Said::NoCall => unread += 1,
            }
        }
        (text, unread)
    }

    /// The same, and any split in two and every character alone give it too.
    fn all_splits(text: &str) -> (String, usize) {
        let whole = read([text]);
        for at in (1..text.len()).filter(|at| text.is_char_boundary(*at)) {
            assert_eq!(read([&text[..at], &text[at..]]), whole, "split at {at}: {text}");
        }
        let characters: Vec<String> = text.chars().map(String::from).collect();
        assert_eq!(read(characters.iter().map(String::as_str)), whole, "{text}");
        whole
    }

    const CALLS: &[(&str, &str)] = &[
        ("<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>", "«f{\"a\": 1}»"),
        (r#"<tool_call>[{"name":"f","arguments":{}},{"name":"g"}]</tool_call>"#, "«f{}»«g»"),
        (r#"<tool_call>{"name":"f","arguments":"{\"a\":1}"}</tool_call>"#, r#"«f{"a":1}»"#),
        (r#"<tool_call>{"id":"c","type":"function","function":{"name":"f","arguments":null}}</tool_call>"#, "«cf»"),
        (
            r#"<tool_call>{"name":"f","arguments":{"a":"</tool_call>\"}<|im_end|>"}}</tool_call>"#,
            r#"«f{"a":"</tool_call>\"}<|im_end|>"}»"#,
        ),
        (r#"[TOOL_CALLS] [{"name":"f","arguments":{"a":1},"id":"abc"}]"#, r#"«abcf{"a":1}»"#),
        (r#"[TOOL_CALLS]f{"a":1}[TOOL_CALLS]g[ARGS]{}"#, r#"«f{"a":1}»«g{}»"#),
        (r#"[TOOL_CALLS]f[CALL_ID]abc[ARGS]{"a":[1]}"#, r#"«abcf{"a":[1]}»"#),
        (r#"<|python_tag|>{"type":"function","name":"f","parameters":{"a":1}}"#, r#"«f{"a":1}»"#),
        (r#"<function=f>{"a":1}</function>"#, r#"«f{"a":1}»"#),
        (r#"<|tool_call|>[{"name":"f","arguments":{"a":"é"}}]"#, r#"«f{"a":"é"}»"#),
        (
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{\"a\":1}\n```<｜tool▁call▁end｜>\n\
             <｜tool▁call▁begin｜>g<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
            r#"«f{"a":1}»«g{}»"#,
        ),
        (
            "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{\"a\":1}\
             <|tool_call_end|><|tool_calls_section_end|>",
            r#"«f{"a":1}»"#,
        ),
        // Bad JSON behind a name of its own: the call is known, and its arguments are said to be bad later on.
        ("<function=f>{\"a\":,}</function>", "«f{\"a\":,}»"),
    ];

    #[test]
    fn every_form_is_read_in_any_split() {
        for (text, calls) in CALLS {
            assert_eq!(all_splits(text), ((*calls).to_owned(), 0));
            assert_eq!(all_splits(&format!("before {text}\n\n{text}\n")), (format!("before {calls}{calls}"), 0));
            assert_eq!(all_splits(&format!("{text}\nafter")), (format!("{calls}\nafter"), 0));
            assert_eq!(all_splits(&format!("a <b> [c]{text}<|im_end|>")), (format!("a <b> [c]{calls}"), 0));
        }
    }

    #[test]
    fn a_call_that_is_cut_is_text() {
        for (text, calls) in CALLS {
            for at in (1..text.len()).filter(|at| text.is_char_boundary(*at)) {
                let (cut, _) = read([&text[..at]]);
                let Some(first) = cut.find('«') else {
                    let plain = SILENT.iter().fold(&text[..at], |text, mark| text.strip_suffix(mark).unwrap_or(text));
                    assert_eq!(cut.trim_ascii_end(), plain.trim_ascii_end());
                    continue;
                };
                assert_eq!(first, 0, "{cut}");
                assert!(calls.starts_with(&cut[..cut.find('»').expect("an end") + '»'.len_utf8()]), "{cut}");
            }
        }
    }

    #[test]
    fn what_is_no_call_stays_as_it_is() {
        for (text, unread) in [
            ("a < b, a[0], <b>, <tool, [TOOL_", 0),
            ("the tag `<tool_call>` and `[TOOL_CALLS]` and <function=", 0),
            ("<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>", 0), // types unknown
            ("<|python_tag|>search.call(query=\"x\")", 0),
            ("<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}</tool_call> x", 1),
            ("<tool_call>{\"name\": \"f\"} and more", 1),
            ("<tool_call>{'name': 'f'}</tool_call>", 1),
            ("<tool_call>{\"arguments\": {}}</tool_call>", 1),
            ("<tool_call>{\"name\": \"f\",}</tool_call>", 1),
            ("<tool_call>[]</tool_call>", 1),
            ("<tool_call>[1]</tool_call>", 1),
            ("[TOOL_CALLS]two words{}", 0),
            ("<tool_call>{\"name\": \"", 1),
            ("<tool_call>{\"name\": \"f\"}</tool_", 1),
        ] {
            assert_eq!(all_splits(text), (text.to_owned(), unread));
        }
        let (head, call) = ("[TOOL_CALLS] is followed by ", CALLS[0]);
        assert_eq!(all_splits(&format!("{head}{}", call.0)), (format!("{head}{}", call.1), 0));
        let broken = "<tool_call>{\"name\": ";
        assert_eq!(all_splits(&format!("{broken}{}", call.0)), (format!("{broken}{}", call.1), 1));
    }

    #[test]
    fn marks_at_the_end_go_and_others_stay() {
        for mark in SILENT {
            assert_eq!(all_splits(&format!("a{mark}")), ("a".to_owned(), 0));
            assert_eq!(all_splits(&format!("a\n{mark}\n{mark}\n")), ("a\n".to_owned(), 0));
            for text in [format!("a {mark} b"), format!("a{mark}<"), format!("{mark}b")] {
                assert_eq!(all_splits(&text), (text, 0));
            }
        }
        assert_eq!(all_splits("<tool_call>{\"name\":<|im_end|>"), ("<tool_call>{\"name\":".to_owned(), 1));
        assert_eq!(all_splits("<s>old</s>"), ("<s>old</s>".to_owned(), 0));
    }

    #[test]
    fn text_is_held_back_only_where_it_could_be_a_mark() {
        let mut tools = TextTools::new();
        for (piece, said) in
            [("a <", "a "), ("b", "<b"), (" [TOOL", " "), ("x", "[TOOLx"), ("<tool_call> ", ""), ("is", "<tool_call> is")]
        {
            let text: String = tools.feed(piece).iter().map(|said| if let Said::Text(text) = said { text } else { "" }).collect();
            assert_eq!(text, said, "after {piece}");
        }
    }

    #[test]
    fn a_second_reading_says_no_call_twice() {
        let mut tools = TextTools::new();
        let call = CALLS[0].0;
        assert_eq!(tools.feed(&format!("x{call}")).len(), 2);
        tools.restart();
        let said = tools.feed(&format!("y{call}{call}"));
        assert!(matches!(&said[..], [Said::Text(text), Said::Call(_)] if text == "y"), "{said:?}");
    }

    proptest::proptest! {
        #[test]
        fn any_split_of_anything_says_the_same(
            parts in proptest::collection::vec((0..40_usize, ".{0,3}"), 0..12),
            cuts in proptest::collection::vec(0..400_usize, 0..8),
        ) {
            let marks: Vec<&str> = SILENT.iter().copied()
                .chain(FORMS.iter().flat_map(|form| [form.open, form.close]))
                .chain(["{\"name\":\"f\"}", "[", "{", "\"", "}", "]"])
                .collect();
            let text: String = parts.iter().flat_map(|(mark, junk)| [marks[mark % marks.len()], junk]).collect();
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|at| *at <= text.len() && text.is_char_boundary(*at)).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&str> = cuts.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
            let whole = read([text.as_str()]);
            proptest::prop_assert_eq!(&read(pieces), &whole);
            // Nothing is lost but marks and blanks.
            if !whole.0.contains('«') && !SILENT.iter().any(|mark| text.contains(mark)) {
                proptest::prop_assert_eq!(&whole.0, &text);
            }
        }
    }
}
