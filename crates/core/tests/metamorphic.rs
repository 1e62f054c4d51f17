//! Every recording told in another way says the same: other line ends, other JSON for the same values, members that nobody
//! knows, comments and keep-alives between, ends left out.
//!
//! Events are compared without what the other way may change: the spelling of JSON that passes as it came, byte offsets in
//! warnings, the order of `provider_event`s among themselves.

mod common;

use std::fmt::Write as _;

use base64::Engine as _;
use common::recordings::{Case, cases, each};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;
use turnstream_core::event::{Context, Event, Payload};
use turnstream_core::provider::{Normalizer, Options, READER_ERRORS};

/// Stands in every name and value that a variant makes up.
const MADE_UP: &str = "x_made_up";
/// Longest recording that is told in every way; of a longer one, as much.
const LONGEST: usize = 48 << 10;

// --- JSON as it is written ----------------------------------------------------------------------------------------------

/// A JSON value that remembers the order and the repetition of its members, and how its numbers are written.
#[derive(Debug, Clone)]
enum Tree {
    /// `null`, `true`, a number, a string with half a character in it.
    Plain(String),
    Text(String),
    List(Vec<Tree>),
    Object(Vec<(String, Tree)>),
}

struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Members<'de>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Reader)
    }
}

impl Tree {
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        Some(match text.as_bytes().first()? {
            b'{' => {
                let Members(members) = serde_json::from_str(text).ok()?;
                Self::Object(members.into_iter().map(|(key, raw)| Some((key, Self::parse(raw.get())?))).collect::<Option<_>>()?)
            }
            b'[' => {
                let items: Vec<&RawValue> = serde_json::from_str(text).ok()?;
                Self::List(items.into_iter().map(|raw| Self::parse(raw.get())).collect::<Option<_>>()?)
            }
            b'"' => serde_json::from_str(text).map_or_else(|_| Self::Plain(text.to_owned()), Self::Text),
            _ => Self::Plain(serde_json::from_str::<&RawValue>(text).ok()?.get().to_owned()),
        })
    }

    fn write(&self, how: How, out: &mut String) {
        let gap = if how == How::Spread { " \t" } else { "" };
        match self {
            Self::Plain(text) => out.push_str(text),
            Self::Text(text) => write_text(text, how, out),
            Self::List(items) => {
                out.push('[');
                for (at, item) in items.iter().enumerate() {
                    out.push_str(if at > 0 { "," } else { "" });
                    out.push_str(gap);
                    item.write(how, out);
                }
                out.push_str(gap);
                out.push(']');
            }
            Self::Object(members) => {
                out.push('{');
                for (at, (key, value)) in members.iter().enumerate() {
                    out.push_str(if at > 0 { "," } else { "" });
                    out.push_str(gap);
                    write_text(key, how, out);
                    out.push_str(gap);
                    out.push(':');
                    out.push_str(gap);
                    value.write(how, out);
                }
                out.push_str(gap);
                out.push('}');
            }
        }
    }

    fn to_text(&self, how: How) -> String {
        let mut out = String::new();
        self.write(how, &mut out);
        out
    }

    /// Changes every value, the outermost last. Strings that are JSON themselves are left alone.
    fn each(&mut self, change: &mut dyn FnMut(&mut Self)) {
        match self {
            Self::List(items) => items.iter_mut().for_each(|item| item.each(change)),
            Self::Object(members) => members.iter_mut().for_each(|(_, value)| value.each(change)),
            Self::Plain(_) | Self::Text(_) => {}
        }
        change(self);
    }
}

/// How values are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Plain,
    /// Blanks wherever they may stand.
    Spread,
    /// `\uXXXX` for every character that is not ASCII, and for every other one that is.
    Escaped,
}

fn write_text(text: &str, how: How, out: &mut String) {
    if how != How::Escaped {
        out.push_str(&serde_json::to_string(text).expect("a string"));
        return;
    }
    out.push('"');
    for (at, unit) in text.encode_utf16().enumerate() {
        match char::from_u32(unit.into()).filter(char::is_ascii_alphanumeric) {
            Some(plain) if at % 2 == 0 => out.push(plain),
            _ => write!(out, "\\u{unit:04X}").expect("a string"),
        }
    }
    out.push('"');
}

// --- streams as they are framed -------------------------------------------------------------------------------------------

/// A piece of a stream.
#[derive(Debug, Clone)]
enum Piece {
    /// A frame that holds JSON: its name, its value.
    Frame(Option<String>, Tree),
    /// Anything else, as it stands.
    Other(String),
}

#[derive(Debug, Clone)]
struct Stream {
    form: Form,
    pieces: Vec<Piece>,
    /// The headers of AWS messages.
    headers: Vec<Vec<u8>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Events,
    Lines,
    Array,
    Aws,
}

/// How a stream is framed.
#[derive(Debug, Clone, Copy)]
struct Framing {
    how: How,
    line_end: &'static str,
    before: &'static str,
    between: &'static str,
    names: bool,
    /// The last frame has its end.
    ended: bool,
}

const AS_IT_IS: Framing = Framing { how: How::Plain, line_end: "\n", before: "", between: "", names: true, ended: true };

impl Stream {
    fn parse(bytes: &[u8]) -> Self {
        if bytes.first() == Some(&0) {
            return Self::parse_aws(bytes);
        }
        let text = String::from_utf8_lossy(bytes);
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        let form = match text.trim_start().as_bytes().first() {
            Some(b'{') => Form::Lines,
            Some(b'[') => Form::Array,
            _ => Form::Events,
        };
        let frame = |text: &str| match Tree::parse(text) {
            Some(tree @ Tree::Object(_)) => Piece::Frame(None, tree),
            _ => Piece::Other(text.to_owned()),
        };
        let pieces = match form {
            Form::Array => match Tree::parse(text) {
                Some(Tree::List(items)) => items.into_iter().map(|item| Piece::Frame(None, item)).collect(),
                _ => vec![Piece::Other(text.to_owned())],
            },
            // One body over many lines is one frame.
            Form::Lines if Tree::parse(text).is_some() => vec![frame(text)],
            Form::Lines => text.lines().filter(|line| !line.trim().is_empty()).map(frame).collect(),
            _ => parse_events(text),
        };
        Self { form, pieces, headers: Vec::new() }
    }

    fn parse_aws(mut bytes: &[u8]) -> Self {
        let (mut pieces, mut headers) = (Vec::new(), Vec::new());
        let number = |at: &[u8]| u32::from_be_bytes(at[..4].try_into().expect("four bytes")) as usize;
        while bytes.len() > 16 {
            let (message, rest) = bytes.split_at(number(bytes));
            let (head, payload) = message[12..message.len() - 4].split_at(number(&message[4..]));
            headers.push(head.to_vec());
            let text = String::from_utf8_lossy(payload).into_owned();
            pieces.push(Tree::parse(&text).map_or(Piece::Other(text), |tree| Piece::Frame(None, tree)));
            bytes = rest;
        }
        Self { form: Form::Aws, pieces, headers }
    }

    fn write(&self, framing: Framing) -> Vec<u8> {
        let Framing { how, line_end, before, between, names, ended } = framing;
        if self.form == Form::Aws {
            return self.write_aws(how);
        }
        let mut out = before.to_owned();
        let last = self.pieces.len().saturating_sub(1);
        for (at, piece) in self.pieces.iter().enumerate() {
            match (self.form, piece) {
                (Form::Events, Piece::Frame(name, tree)) => {
                    if let (Some(name), true) = (name, names) {
                        write!(out, "event: {name}{line_end}").expect("a string");
                    }
                    write!(out, "data: {}{line_end}", tree.to_text(how)).expect("a string");
                    out.push_str(if ended || at < last { line_end } else { "" });
                }
                (_, Piece::Other(text)) => out.push_str(&text.replace('\n', line_end)),
                (Form::Array, Piece::Frame(_, tree)) => {
                    out.push_str(if at > 0 { "," } else { "[" });
                    out.push_str(&tree.to_text(how));
                }
                (_, Piece::Frame(_, tree)) => out.push_str(&tree.to_text(how)),
            }
            if matches!(self.form, Form::Lines | Form::Array) && (ended || at < last) {
                out.push_str(line_end);
            }
            if self.form == Form::Events {
                out.push_str(&between.replace('\n', line_end));
            }
        }
        out.push_str(if self.form == Form::Array { "]" } else { "" });
        out.into_bytes()
    }

    fn write_aws(&self, how: How) -> Vec<u8> {
        let mut out = Vec::new();
        for (piece, headers) in self.pieces.iter().zip(&self.headers) {
            let payload = match piece {
                Piece::Frame(_, tree) => tree.to_text(how),
                Piece::Other(text) => text.clone(),
            };
            let begin = out.len();
            out.extend(u32::try_from(16 + headers.len() + payload.len()).expect("small").to_be_bytes());
            out.extend(u32::try_from(headers.len()).expect("small").to_be_bytes());
            out.extend(crc32fast::hash(&out[begin..]).to_be_bytes());
            out.extend_from_slice(headers);
            out.extend_from_slice(payload.as_bytes());
            out.extend(crc32fast::hash(&out[begin..]).to_be_bytes());
        }
        out
    }

    /// Changes the value of every frame, and of what stands in one as base64.
    fn each(mut self, mut change: impl FnMut(&mut Tree)) -> Self {
        for piece in &mut self.pieces {
            let Piece::Frame(_, tree) = piece else { continue };
            inner(tree, &mut change);
            change(tree);
        }
        self
    }
}

/// A model's own JSON, which `InvokeModel` puts into its frames as base64.
fn inner(tree: &mut Tree, change: &mut dyn FnMut(&mut Tree)) {
    let Tree::Object(members) = tree else { return };
    for (key, value) in members {
        match value {
            Tree::Text(text) if key == "bytes" => {
                let engine = base64::engine::general_purpose::STANDARD;
                let decoded = engine.decode(&*text).ok().and_then(|bytes| String::from_utf8(bytes).ok());
                if let Some(mut within) = decoded.filter(|text| text.starts_with('{')).and_then(|text| Tree::parse(&text)) {
                    change(&mut within);
                    *text = engine.encode(within.to_text(How::Plain));
                }
            }
            Tree::Object(_) if key == "chunk" => inner(value, change),
            _ => {}
        }
    }
}

fn parse_events(text: &str) -> Vec<Piece> {
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let mut pieces = Vec::new();
    for block in text.split_inclusive("\n\n") {
        let (mut name, mut data, mut plain) = (None, Vec::new(), true);
        for line in block.lines().filter(|line| !line.is_empty()) {
            match line.split_once(':') {
                Some(("data", rest)) => data.push(rest.strip_prefix(' ').unwrap_or(rest)),
                Some(("event", rest)) => name = Some(rest.trim_start().to_owned()),
                _ => plain = false,
            }
        }
        pieces.push(match Tree::parse(&data.join("\n")).filter(|tree| plain && matches!(tree, Tree::Object(_))) {
            Some(tree) => Piece::Frame(name, tree),
            None => Piece::Other(block.to_owned()),
        });
    }
    pieces
}

// --- reading and comparing ------------------------------------------------------------------------------------------------

/// The events, the provider that read them, and the error that ended them.
fn read(provider: &str, bytes: &[u8]) -> (Vec<Payload>, Option<String>) {
    let mut normalizer = Normalizer::new(provider, Options::default()).expect("a known provider");
    let error = normalizer.feed(bytes).and_then(|()| normalizer.finish()).err().map(|error| error.to_string());
    (normalizer.drain().collect(), error)
}

/// What an event says, whoever spelled it: members sorted, numbers as numbers, JSON in strings as JSON, nothing made up.
fn meaning(payload: &Payload) -> Value {
    let event = Event { seq: 0, time: 0, context: Context::default().into(), payload: payload.clone(), extra: None };
    let mut value: Value = serde_json::from_str(&event.to_json()).expect("events are JSON");
    // Where a frame stood in the stream.
    if value["code"] == "malformed_frame" {
        value["message"] = Value::Null;
    }
    canonical(&mut value);
    value
}

fn canonical(value: &mut Value) {
    match value {
        Value::Number(number) => *value = number.as_f64().into(),
        Value::String(text) if text.starts_with(['{', '[']) => {
            if let Ok(mut inner) = serde_json::from_str::<Value>(text) {
                canonical(&mut inner);
                *value = inner;
            }
        }
        Value::Array(items) => items.iter_mut().for_each(canonical),
        Value::Object(members) => {
            members.retain(|key, value| !key.contains(MADE_UP) && !value.is_null());
            members.values_mut().for_each(canonical);
        }
        _ => {}
    }
}

/// The events of the vocabulary, in order, and the others, sorted.
fn meanings(payloads: &[Payload]) -> (Vec<String>, Vec<String>) {
    let (mut ours, mut passed) = (Vec::new(), Vec::new());
    for payload in payloads {
        let said = meaning(payload);
        // Made up, or with nothing in it that is not but the id of what it belongs to.
        let nothing = said["data"].as_object().is_some_and(|data| data.keys().all(|key| key.ends_with("id")));
        match payload {
            Payload::ProviderEvent(_) if nothing || said.to_string().contains(MADE_UP) => {}
            Payload::ProviderEvent(_) => passed.push(said.to_string()),
            _ => ours.push(said.to_string()),
        }
    }
    passed.sort();
    (ours, passed)
}

/// The first difference between two readings.
fn difference(got: &(Vec<String>, Vec<String>), wanted: &(Vec<String>, Vec<String>)) -> Option<String> {
    for (got, wanted) in [(&got.0, &wanted.0), (&got.1, &wanted.1)] {
        if got == wanted {
            continue;
        }
        let at = got.iter().zip(wanted).position(|(a, b)| a != b).unwrap_or(got.len().min(wanted.len()));
        let show = |events: &[String]| events.get(at).map_or("nothing".into(), |e| e.chars().take(400).collect::<String>());
        return Some(format!("event {at} of {}: got {}, wanted {}", wanted.len(), show(got), show(wanted)));
    }
    None
}

/// Compares each recording with what `tell` makes of it. `None`: there is nothing to tell.
fn says_the_same(tell: impl Fn(&Case, Stream) -> Option<Vec<u8>> + Sync) {
    let Some(cases) = cases() else { return };
    each(&cases, |case| {
        let stream = shortened(case);
        let (wanted, error) = read(case.provider, &stream.write(AS_IT_IS));
        let Some(bytes) = tell(case, stream) else { return vec![] };
        let (got, failed) = read(case.provider, &bytes);
        let mut faults: Vec<String> = difference(&meanings(&got), &meanings(&wanted)).into_iter().collect();
        if failed.is_some() != error.is_some() {
            faults.push(format!("failed with {failed:?}, wanted {error:?}"));
        }
        faults.extend(common::rule_faults(&got));
        faults
    });
}

/// The recording, or as many of its first frames as are not too long.
fn shortened(case: &Case) -> Stream {
    let mut stream = Stream::parse(&case.bytes);
    let mut room = LONGEST;
    let kept = stream.pieces.iter().position(|piece| {
        let length = match piece {
            Piece::Frame(_, tree) => tree.to_text(How::Plain).len(),
            Piece::Other(text) => text.len(),
        };
        let over = length > room;
        room = room.saturating_sub(length);
        over
    });
    if let Some(kept) = kept.filter(|kept| *kept > 0) {
        stream.pieces.truncate(kept);
    }
    stream
}

// --- the variants -----------------------------------------------------------------------------------------------------------

#[test]
fn written_anew_it_is_the_same_stream() {
    let Some(cases) = cases() else { return };
    each(&cases, |case| {
        let (wanted, _) = read(case.provider, &case.bytes);
        let (got, _) = read(case.provider, &Stream::parse(&case.bytes).write(AS_IT_IS));
        difference(&meanings(&got), &meanings(&wanted)).into_iter().collect()
    });
}

#[test]
fn other_line_ends_and_a_byte_order_mark() {
    says_the_same(|_, stream| Some(stream.write(Framing { line_end: "\r\n", before: "\u{feff}", ..AS_IT_IS })));
    says_the_same(|_, stream| (stream.form == Form::Events).then(|| stream.write(Framing { line_end: "\r", ..AS_IT_IS })));
}

#[test]
fn comments_and_fields_that_nobody_knows() {
    let between = ": ping - 2026\n\n:\n: x\nnobody: knows\nretry: 10\n\nretry\nid: 5\n\n\n";
    says_the_same(|_, stream| Some(stream.write(Framing { before: ": hi\n\n", between, ..AS_IT_IS })));
}

#[test]
fn no_end_of_the_last_frame() {
    says_the_same(|_, stream| Some(stream.write(Framing { ended: false, ..AS_IT_IS })));
}

#[test]
fn blanks_in_the_json() {
    says_the_same(|_, stream| Some(stream.write(Framing { how: How::Spread, ..AS_IT_IS })));
}

#[test]
fn every_character_escaped() {
    says_the_same(|_, stream| Some(stream.write(Framing { how: How::Escaped, ..AS_IT_IS })));
}

/// Changes every object of a stream, but for those whose members stand in the arguments of a call as they come.
fn each_object(stream: Stream, mut change: impl FnMut(&mut Vec<(String, Tree)>)) -> Stream {
    stream.each(|tree| {
        tree.each(&mut |value| match value {
            Tree::Object(members) if !members.iter().any(|(key, _)| key == "commands" || key == "numberValue") => change(members),
            _ => {}
        });
    })
}

#[test]
fn members_in_another_order() {
    says_the_same(|_, stream| {
        let turned = each_object(stream, |members| {
            // Of a repeated member the last counts.
            let mut seen = std::collections::HashSet::new();
            members.reverse();
            members.retain(|(key, _)| seen.insert(key.clone()));
        });
        Some(turned.write(AS_IT_IS))
    });
}

#[test]
fn nulls_left_out() {
    says_the_same(|_, stream| {
        let is_null = |value: &Tree| matches!(value, Tree::Plain(plain) if plain == "null");
        Some(each_object(stream, |members| members.retain(|(_, value)| !is_null(value))).write(AS_IT_IS))
    });
}

#[test]
fn whole_numbers_written_as_floats() {
    says_the_same(|_, stream| {
        let float = |value: &mut Tree| match value {
            Tree::Plain(plain) if plain.bytes().all(|byte| byte.is_ascii_digit()) && plain.len() < 16 => plain.push_str(".0"),
            _ => {}
        };
        let floats = each_object(stream, |members| {
            for (_, value) in members {
                match value {
                    Tree::List(items) => items.iter_mut().for_each(float),
                    value => float(value),
                }
            }
        });
        Some(floats.write(AS_IT_IS))
    });
}

/// Members of every kind, in front of and behind those of every object.
#[test]
fn members_that_nobody_knows() {
    let made_up = |number: usize| {
        let value = ["null", "true", "7", "-1.5e3", "\"x\"", "[]", "{}", "[{\"a\":[1]},null]", "{\"type\":\"x\",\"text\":\"x\"}"];
        let value = Tree::parse(value[number % value.len()]).expect("JSON");
        (format!("{MADE_UP}_{}", number % 9), value)
    };
    for front in [true, false] {
        says_the_same(|_, stream| {
            let mut number = 0;
            let more = each_object(stream, |members| {
                if !members.is_empty() {
                    number += 1;
                    members.insert(if front { 0 } else { members.len() }, made_up(number));
                }
            });
            Some(more.write(AS_IT_IS))
        });
    }
}

/// A body says what it is; the name of its frame says it again.
#[test]
fn frames_without_their_names() {
    says_the_same(|case, stream| {
        let typed = matches!(case.provider, "anthropic" | "openai-responses" | "cohere" | "lmstudio" | "interactions");
        (typed && stream.form == Form::Events).then(|| stream.write(Framing { names: false, ..AS_IT_IS }))
    });
}

/// A connection that breaks between any two frames: said as such unless the end had been said, and what came is kept.
#[test]
fn cut_between_any_two_frames() {
    let Some(cases) = cases() else { return };
    each(&cases, |case| {
        let whole = shortened(case);
        let text = |payloads: &[Payload]| -> String {
            let piece = |payload: &Payload| match payload {
                Payload::TextDelta(delta) => Some(delta.text.to_string()),
                _ => None,
            };
            payloads.iter().filter_map(piece).collect()
        };
        let (all, _) = read(case.provider, &whole.write(AS_IT_IS));
        let says = text(&all);
        let mut faults = Vec::new();
        let step = whole.pieces.len() / 24 + 1;
        for kept in (1..whole.pieces.len()).step_by(step) {
            let mut cut = whole.clone();
            cut.pieces.truncate(kept);
            let (got, _) = read(case.provider, &cut.write(AS_IT_IS));
            if !says.starts_with(&text(&got)) && !all.iter().any(|payload| matches!(payload, Payload::MessageReset(_))) {
                faults.push(format!("cut after {kept}: other text"));
            }
            let unfinished = |payload: &Payload| match payload {
                Payload::AssistantMessage(whole) => {
                    whole.finish_reason_raw.is_none() && whole.finish_reason.as_str() == "unknown"
                }
                _ => false,
            };
            let said = |payload: &Payload| match payload {
                Payload::Error(error) => READER_ERRORS.contains(&error.code.as_str()) || error.fatal,
                _ => false,
            };
            let withdrawn = got.iter().any(|payload| matches!(payload, Payload::MessageReset(_)));
            if got.iter().any(unfinished) && !got.iter().any(said) && !withdrawn {
                faults.push(format!("cut after {kept}: a message without a reason, and nobody says why"));
            }
            faults.extend(common::rule_faults(&got).into_iter().map(|fault| format!("cut after {kept}: {fault}")));
        }
        faults
    });
}

/// What is told in any of these ways is recognised as what it is.
#[test]
fn recognised_however_it_is_told() {
    let Some(cases) = cases() else { return };
    let before = "\u{feff}\r\n: OPENROUTER PROCESSING\n\n: ping\n\nretry: 5\n\n";
    let ways = [
        Framing { before: "\u{feff} \r\n", ..AS_IT_IS },
        Framing { how: How::Spread, ..AS_IT_IS },
        Framing { how: How::Escaped, ..AS_IT_IS },
        Framing { before, names: false, ..AS_IT_IS },
    ];
    each(&cases, |case| {
        let stream = shortened(case);
        let name = |bytes: &[u8], split: usize| {
            let mut normalizer = Normalizer::new("auto", Options::default()).expect("a known provider");
            let _ = bytes.chunks(split).try_for_each(|piece| normalizer.feed(piece)).and_then(|()| normalizer.finish());
            normalizer.provider()
        };
        let wanted = name(&stream.write(AS_IT_IS), usize::MAX);
        let mut faults = Vec::new();
        for way in ways {
            if !way.names && (stream.form != Form::Events || !way.before.is_empty() && stream.form == Form::Aws) {
                continue;
            }
            let bytes = stream.write(way);
            for split in [usize::MAX, 1] {
                let got = name(&bytes, split);
                if got != wanted {
                    faults.push(format!("read as {got}, not {wanted}: {way:?}"));
                }
            }
        }
        faults
    });
}
