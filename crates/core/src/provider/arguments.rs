//! A call's arguments that come leaf by leaf, each under a JSON path, put together to JSON text.
//!
//! Owns the paths and the text. Knows no provider. Invariants: 1. as long as the leaves come in the order of a document,
//! each goes out at once as a piece of one JSON text; 2. once they do not, nothing more goes out until the end, and the
//! whole says them all, the last value of a path winning; 3. pieces of a string append; 4. memory and cost are linear in
//! what came: a list's gaps are closed, depth is bounded.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::value::RawValue;

use super::Assembler;
use super::wire::Object;
use crate::event::json::write_str;

/// Deepest path: what the JSON readers of this crate allow.
const MAX_DEPTH: usize = 120;

/// One step of a path.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Step {
    Key(Box<str>),
    Index(u64),
}

/// A value without members.
enum Leaf {
    Text(String),
    /// A number, a truth value, null, or a whole value, as it was written.
    Raw(Box<str>),
}

/// What has come of one call's arguments.
#[derive(Default)]
pub(super) struct Arguments {
    leaves: Vec<(Vec<Step>, Leaf)>,
    /// Where each path's leaf stands.
    by_path: HashMap<Vec<Step>, usize>,
    /// The path as it was written last, and its leaf.
    last: Option<(Box<str>, usize)>,
    /// The containers that the text has open, the outermost first: how to step on, and which members have been.
    open: Vec<(Step, HashSet<Step>)>,
    /// The text stands inside the string of the last leaf.
    in_string: bool,
    /// A leaf came out of order.
    disordered: bool,
}

impl Arguments {
    /// Begins the text.
    pub(super) fn begin(key: u64, out: &mut Assembler) -> Self {
        out.arguments(key, "{");
        Self::default()
    }

    /// Whether the last leaf is a string under `path`.
    pub(super) fn is_in(&self, path: &str) -> bool {
        self.last.as_ref().is_some_and(|(last, at)| **last == *path && matches!(self.leaves[*at].1, Leaf::Text(_)))
    }

    /// A piece of the string under `path`. `false` where that is no path.
    pub(super) fn text(&mut self, key: u64, path: &str, piece: &str, out: &mut Assembler) -> bool {
        if !self.is_in(path) {
            let Some(steps) = parse(path) else { return false };
            let known = self.by_path.get(&steps).copied().filter(|at| matches!(self.leaves[*at].1, Leaf::Text(_)));
            if let Some(at) = known {
                self.disordered = true;
                self.last = Some((path.into(), at));
            } else {
                self.leaf(key, path, steps, Leaf::Text(String::new()), out);
            }
        }
        let Some((_, at)) = self.last else { return true };
        if let Leaf::Text(text) = &mut self.leaves[at].1 {
            text.push_str(piece);
        }
        if !self.disordered && !piece.is_empty() {
            let mut written = Vec::with_capacity(piece.len() + 16);
            write_str(&mut written, piece);
            out.arguments(key, inside(&written));
        }
        true
    }

    /// The value under `path`, as it was written. `false` where that is no path.
    pub(super) fn value(&mut self, key: u64, path: &str, raw: &str, out: &mut Assembler) -> bool {
        let Some(steps) = parse(path) else { return false };
        self.leaf(key, path, steps, Leaf::Raw(raw.into()), out);
        true
    }

    /// Whole members, beside those that come by path.
    pub(super) fn members(&mut self, key: u64, object: &RawValue, out: &mut Assembler) {
        let Ok(object) = Object::from_raw(object) else { return };
        for (name, raw) in object.others(&[]) {
            self.leaf(key, "", vec![Step::Key(name.into())], Leaf::Raw(raw.get().into()), out);
        }
    }

    /// All have come: the rest of the text, or the whole where it could not go out in order.
    pub(super) fn end(&mut self, key: u64, out: &mut Assembler) {
        if self.disordered {
            out.arguments_whole(key, &self.whole());
            return;
        }
        let mut text = String::new();
        self.close_to(0, &mut text);
        text.push('}');
        out.arguments(key, &text);
    }

    fn leaf(&mut self, key: u64, path: &str, steps: Vec<Step>, leaf: Leaf, out: &mut Assembler) {
        if let (false, Some(text)) = (self.disordered, self.step_to(&steps)) {
            let text = match &leaf {
                Leaf::Text(_) => text + "\"",
                Leaf::Raw(raw) => text + raw,
            };
            self.in_string = matches!(leaf, Leaf::Text(_));
            out.arguments(key, &text);
        } else {
            self.disordered = true;
        }
        self.last = Some((path.into(), self.leaves.len()));
        self.by_path.insert(steps.clone(), self.leaves.len());
        self.leaves.push((steps, leaf));
    }

    /// The text between the last leaf and one at `steps`; `None` where the document has passed it.
    fn step_to(&mut self, steps: &[Step]) -> Option<String> {
        if self.open.is_empty() {
            self.open.push((Step::Key("".into()), HashSet::new()));
        }
        // The containers that stay open: those whose way leads on to the new leaf.
        let way = self.open.iter().skip(1).zip(steps).take_while(|((on, _), step)| on == *step).count();
        let (step, (_, been)) = (steps.get(way)?, self.open.get(way)?);
        let same_kind = been.iter().next().is_none_or(|other| matches!(other, Step::Key(_)) == matches!(step, Step::Key(_)));
        let later = match step {
            Step::Key(_) => !been.contains(step),
            // Of a list only the last index is kept.
            Step::Index(_) => been.iter().next().is_none_or(|last| last < step),
        };
        if !same_kind || !later || matches!((way, step), (0, Step::Index(_))) {
            return None;
        }
        let mut text = String::new();
        self.close_to(way, &mut text);
        for (depth, step) in steps.iter().enumerate().skip(way) {
            let (_, been) = &mut self.open[depth];
            if !been.is_empty() {
                text.push(',');
            }
            if let Step::Key(name) = step {
                let mut written = Vec::with_capacity(name.len() + 3);
                write_str(&mut written, name);
                text.push_str(&String::from_utf8_lossy(&written));
                text.push(':');
            } else {
                been.clear();
            }
            been.insert(step.clone());
            if let Some(next) = steps.get(depth + 1) {
                text.push(if matches!(next, Step::Key(_)) { '{' } else { '[' });
                self.open.push((step.clone(), HashSet::new()));
            }
        }
        Some(text)
    }

    /// Closes the string and all containers below the one at `depth`.
    fn close_to(&mut self, depth: usize, text: &mut String) {
        if std::mem::take(&mut self.in_string) {
            text.push('"');
        }
        while self.open.len() > depth + 1 {
            let list = self.open.pop().is_some_and(|(_, been)| been.iter().next().is_some_and(|it| matches!(it, Step::Index(_))));
            text.push(if list { ']' } else { '}' });
        }
    }

    fn whole(&self) -> String {
        let mut root = Node::default();
        for (steps, leaf) in &self.leaves {
            let mut node = &mut root;
            for step in steps {
                node = node.member(step);
            }
            *node = match leaf {
                Leaf::Text(text) => {
                    let mut written = Vec::with_capacity(text.len() + 16);
                    write_str(&mut written, text);
                    Node::Leaf(String::from_utf8_lossy(&written).into())
                }
                Leaf::Raw(raw) => Node::Leaf(raw.clone()),
            };
        }
        let mut text = String::new();
        root.write(&mut text);
        text
    }
}

/// A value of the whole.
enum Node {
    Object(BTreeMap<Step, Node>),
    List(BTreeMap<Step, Node>),
    Leaf(Box<str>),
}

impl Default for Node {
    fn default() -> Self {
        Self::Object(BTreeMap::new())
    }
}

impl Node {
    /// The member at `step`; whatever of another kind stood here gives way.
    fn member(&mut self, step: &Step) -> &mut Self {
        let fits = matches!((&*self, step), (Self::Object(_), Step::Key(_)) | (Self::List(_), Step::Index(_)));
        if !fits {
            *self = if matches!(step, Step::Key(_)) { Self::default() } else { Self::List(BTreeMap::new()) };
        }
        match self {
            Self::Object(members) | Self::List(members) => members.entry(step.clone()).or_default(),
            Self::Leaf(_) => unreachable!("it has just given way"),
        }
    }

    fn write(&self, text: &mut String) {
        let (members, ends) = match self {
            Self::Leaf(raw) => return text.push_str(raw),
            Self::Object(members) => (members, ['{', '}']),
            Self::List(members) => (members, ['[', ']']),
        };
        text.push(ends[0]);
        for (at, (step, node)) in members.iter().enumerate() {
            if at > 0 {
                text.push(',');
            }
            if let Step::Key(name) = step {
                let mut written = Vec::new();
                write_str(&mut written, name);
                text.push_str(&String::from_utf8_lossy(&written));
                text.push(':');
            }
            node.write(text);
        }
        text.push(ends[1]);
    }
}

/// What stands between the quotes.
fn inside(written: &[u8]) -> &str {
    std::str::from_utf8(&written[1..written.len() - 1]).unwrap_or_default()
}

/// `$.a.b[0]['c d']`, RFC 9535's paths without choices. At least one step.
fn parse(path: &str) -> Option<Vec<Step>> {
    let mut rest = path.strip_prefix('$')?;
    let mut steps = Vec::new();
    while !rest.is_empty() {
        if let Some(name) = rest.strip_prefix('.') {
            let end = name.find(['.', '[']).unwrap_or(name.len());
            if end == 0 {
                return None;
            }
            steps.push(Step::Key(name[..end].into()));
            rest = &name[end..];
        } else {
            let inner = rest.strip_prefix('[')?;
            if let quote @ ('\'' | '"') = inner.chars().next()? {
                let (name, after) = quoted(&inner[1..], quote)?;
                steps.push(Step::Key(name.into()));
                rest = after.strip_prefix(']')?;
            } else {
                let (index, after) = inner.split_once(']')?;
                steps.push(Step::Index(index.trim().parse().ok()?));
                rest = after;
            }
        }
        if steps.len() > MAX_DEPTH {
            return None;
        }
    }
    (!steps.is_empty()).then_some(steps)
}

/// The text up to an unescaped `quote`, and what follows it.
fn quoted(text: &str, quote: char) -> Option<(String, &str)> {
    let mut name = String::new();
    let mut chars = text.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '\\' => name.push(chars.next()?.1),
            char if char == quote => return Some((name, &text[at + 1..])),
            char => name.push(char),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Kind, Payload};

    /// What comes of leaves: the pieces, in a row, where all came in order, and the whole. A value that starts with a quote comes as a string.
    fn put(leaves: &[(String, &str)]) -> (Option<String>, String) {
        let mut out = Assembler::new("gemini", "");
        out.call(0, 0, "c", "f", Kind::Client);
        let mut arguments = Arguments::begin(0, &mut out);
        for (path, value) in leaves {
            let taken = match value.strip_prefix('"') {
                Some(text) => arguments.text(0, path, text, &mut out),
                None => arguments.value(0, path, value, &mut out),
            };
            assert!(taken, "{path}");
        }
        arguments.end(0, &mut out);
        let in_order = !arguments.disordered;
        out.call_end(0);
        let (mut pieces, mut whole) = (String::new(), String::new());
        for payload in out.drain() {
            match payload {
                Payload::ToolCallDelta(delta) => pieces.push_str(&delta.text),
                Payload::ToolCall(call) => {
                    assert!(call.arguments.is_some(), "{}", call.arguments_raw);
                    whole.push_str(&call.arguments_raw);
                }
                _ => {}
            }
        }
        (in_order.then_some(pieces), whole)
    }

    fn leaves<'a>(leaves: &[(&str, &'a str)]) -> Vec<(String, &'a str)> {
        leaves.iter().map(|(path, value)| ((*path).to_owned(), *value)).collect()
    }

    #[test]
    fn leaves_in_order_go_out_as_they_come() {
        let (pieces, whole) = put(&leaves(&[("$.a.b[0][0]", "1"), ("$.a.b[0][1]", "2"), ("$.a.b[1].c", "\"x"), ("$.d", "null")]));
        assert_eq!(whole, r#"{"a":{"b":[[1,2],{"c":"x"}]},"d":null}"#);
        assert_eq!(pieces, Some(whole));
    }

    #[test]
    fn pieces_of_a_string_append_wherever_they_come() {
        assert_eq!(put(&leaves(&[("$.a", "\"x"), ("$.a", "\"y"), ("$.b", "1"), ("$.a", "\"z")])).1, r#"{"a":"xyz","b":1}"#);
        assert_eq!(put(&leaves(&[("$.a", "1"), ("$.a", "\"x"), ("$.a", "\"y")])).1, r#"{"a":"xy"}"#);
    }

    #[test]
    fn what_takes_anothers_place_wins() {
        assert_eq!(put(&leaves(&[("$.a", "1"), ("$.a.b", "2")])).1, r#"{"a":{"b":2}}"#);
        assert_eq!(put(&leaves(&[("$.a.b", "1"), ("$.a[0]", "2")])).1, r#"{"a":[2]}"#);
        assert_eq!(put(&leaves(&[("$.a[0]", "1"), ("$.a", "2")])).1, r#"{"a":2}"#);
        assert_eq!(put(&leaves(&[("$[0]", "1"), ("$[1]", "2")])).1, "[1,2]");
    }

    #[test]
    fn names_may_be_quoted() {
        assert_eq!(put(&leaves(&[("$['a.b'][\"c'd\"]", "1"), ("$['\\'']", "2")])).1, r#"{"a.b":{"c'd":1},"'":2}"#);
    }

    proptest::proptest! {
            /// The text that went out piece by piece says what all leaves together say.
            #[test]
            fn any_order_says_the_same(
                steps in proptest::collection::vec(
                    (proptest::collection::vec(proptest::sample::select(&[".a", ".b", "['c d']", "[0]", "[1]"][..]), 1..4),
                     proptest::sample::select(&["1", "true", "null", "\"x", "\"\\\""][..])),
                    0..8,
                ),
            ) {
                let leaves: Vec<(String, &str)> = steps.iter().map(|(path, value)| (format!("${}", path.concat()), *value)).collect();
                let (pieces, whole) = put(&leaves);
                // The same leaves, all of them out of order.
                let mut model = Arguments { disordered: true, ..Arguments::default() };
                let mut nowhere = Assembler::new("gemini", "");
                for (path, value) in &leaves {
                    match value.strip_prefix('"') {
                        Some(text) => model.text(0, path, text, &mut nowhere),
                        None => model.value(0, path, value, &mut nowhere),
                    };
                }
                let parse = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
                proptest::prop_assert_eq!(parse(&whole), parse(&model.whole()));
    proptest::prop_assert!(pieces.is_none_or(|pieces| pieces == whole));
            }
        }
}
