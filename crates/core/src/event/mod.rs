//! The vocabulary: what an event is, how it is written and read as JSON.
//!
//! Owns the table of types ([`vocabulary!`]), the fields, the wire form. Knows nothing of providers, sessions or
//! readers. Invariants: 1. the wire form is one flat JSON object without a line break; 2. reading what was written
//! gives an equal event; 3. fields that the table does not name are kept in `extra`, never dropped.

mod field;
pub mod json;
mod partial;
mod usage;
#[macro_use]
mod vocabulary;

use std::borrow::Cow;
use std::sync::Arc;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

pub use field::{CallRef, Field, FinishReason, Id, Kind, Origin, Status, Text, Value};
pub use json::{Json, JsonError};
pub use partial::partial_json;

use json::{write_str, write_u64};

/// What may happen to an event for a slow reader or a full log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Never merged, never dropped for a slow reader.
    Boundary,
    /// Neighbours of one kind and one id may be merged; evicted first once their final event is in the log.
    Delta,
    /// The latest per stage wins.
    State,
    /// Not in the log, no seq, no cursor.
    Control,
}

/// Why a payload is not an event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PayloadError {
    /// No such type.
    #[error("unknown event type {0:?}: users' own events are custom{{name, data}}")]
    UnknownType(String),
    /// Control frames are made by readers alone.
    #[error("{0} is a control frame, made by readers and never emitted")]
    Control(&'static str),
    /// A field is missing or is not what the vocabulary says.
    #[error("{kind}.{field}: expected {expected}")]
    Field {
        /// The event's type.
        kind: &'static str,
        /// The field.
        field: &'static str,
        /// What it should have been.
        expected: &'static str,
    },
    /// The payload is not a JSON object.
    #[error("payload: {0}")]
    Json(String),
}

/// A delta stands inline and everything else is boxed, so that a log of deltas stays small.
macro_rules! slot {
    (delta $name:ident) => { $name };
    ($class:ident $name:ident) => { Box<$name> };
}
macro_rules! into_slot {
    (delta $value:expr) => {
        $value
    };
    ($class:ident $value:expr) => {
        Box::new($value)
    };
}
macro_rules! class {
    (boundary) => {
        Class::Boundary
    };
    (delta) => {
        Class::Delta
    };
    (state) => {
        Class::State
    };
    (control) => {
        Class::Control
    };
}
/// `name: T` is a `T`, always written; `name? T` is an `Option<T>`, left out when absent.
macro_rules! field_type {
    (: $type:ty) => { $type };
    (? $type:ty) => { Option<$type> };
}
macro_rules! left_out {
    (: $value:expr) => {
        false
    };
    (? $value:expr) => {
        $value.is_absent()
    };
}

macro_rules! define {
    ($( $(#[$meta:meta])* $name:ident $wire:literal $class:ident { $($field:ident $mark:tt $type:ty),* $(,)? } )*) => {
        $(
            $(#[$meta])*
            #[derive(Debug, Clone, PartialEq)]
            #[allow(missing_docs, reason = "the type's line says what its fields are; the table is the reference")]
            pub struct $name { $(pub $field: field_type!($mark $type)),* }

            impl From<$name> for Payload {
                fn from(value: $name) -> Self {
                    Self::$name(into_slot!($class value))
                }
            }
        )*

        /// One event's type and its own fields.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Payload { $( $(#[$meta])* $name(slot!($class $name)) ),* }

        /// The wire names of all types, in the order of the table.
        pub const TYPES: &[&str] = &[$($wire),*];

        impl Payload {
            /// The type's name on the wire.
            pub fn kind(&self) -> &'static str {
                match self { $(Self::$name(_) => $wire),* }
            }

            /// The type's place in [`TYPES`].
            pub fn index(&self) -> usize {
                #[allow(clippy::enum_variant_names, non_camel_case_types, reason = "counts the table's lines")]
                enum Index { $($name),* }
                match self { $(Self::$name(_) => Index::$name as usize),* }
            }

            /// The type's class.
            pub fn class(&self) -> Class {
                match self { $(Self::$name(_) => class!($class)),* }
            }

            /// Looks at each own field in order; absent ones are [`Value::Null`].
            #[allow(unused_variables, reason = "a type may have no fields")]
            pub fn each_field<'a>(&'a self, see: &mut dyn FnMut(&'static str, Value<'a>)) {
                match self { $(Self::$name(it) => { $(see(stringify!($field), it.$field.value());)* }),* }
            }

            /// Bytes on the heap, about.
            pub fn heap(&self) -> usize {
                match self {
                    $(Self::$name(it) => {
                        let boxed = if matches!(class!($class), Class::Delta) { 0 } else { size_of::<$name>() };
                        boxed $(+ it.$field.heap())*
                    }),*
                }
            }

            /// Writes `,"field":value` for each own field.
            pub(crate) fn write_fields(&self, out: &mut Vec<u8>) {
                match self {
                    $(Self::$name(it) => {
                        $(if !left_out!($mark it.$field) {
                            out.extend_from_slice(concat!(",\"", stringify!($field), "\":").as_bytes());
                            it.$field.write(out);
                        })*
                    }),*
                }
            }

            /// Writes the own fields as an object.
            pub(crate) fn write_object(&self, out: &mut Vec<u8>) {
                json::object(out, |out| self.write_fields(out));
            }

            /// Builds a payload of type `kind` from the members of a JSON object; those that the type does not name
            /// come back as `,"key":value` text.
            fn from_members(kind: &str, members: &[(Cow<'_, str>, &RawValue)]) -> Result<(Self, Option<Json>), PayloadError> {
                match kind {
                    $($wire => {
                        $(let mut $field: Option<field_type!($mark $type)> = None;)*
                        let mut extra = Vec::new();
                        for (key, raw) in members {
                            match &**key {
                                $(stringify!($field) => $field = Some(Field::read(raw).map_err(|expected| PayloadError::Field {
                                    kind: $wire, field: stringify!($field), expected,
                                })?),)*
                                "type" | "seq" | "session" | "turn" | "round" | "time" | "backend" => {}
                                other => {
                                    let value = Json::from_raw(raw).map_err(|error| PayloadError::Json(error.to_string()))?;
                                    extra.push(if extra.is_empty() { b'{' } else { b',' });
                                    write_str(&mut extra, other);
                                    extra.push(b':');
                                    value.write(&mut extra);
                                }
                            }
                        }
                        let extra = (!extra.is_empty()).then(|| { extra.push(b'}'); Json::from_written(extra) });
                        let payload = $name { $($field: match $field.or_else(Field::missing) {
                            Some(value) => value,
                            None => return Err(PayloadError::Field { kind: $wire, field: stringify!($field), expected: "a value" }),
                        }),* };
                        Ok((payload.into(), extra))
                    })*
                    _ => Err(PayloadError::UnknownType(kind.chars().take(64).collect())),
                }
            }
        }
    };
}
crate::vocabulary!(define);

/// What the events of one turn and round share; made once per round, not per event.
#[derive(Debug, PartialEq, Eq)]
pub struct Context {
    /// The session's id; none for events that belong to no session.
    pub session: Option<Arc<str>>,
    /// Counts from 1; 0 outside every turn.
    pub turn: u32,
    /// Counts from 1 within the turn; 0 before the first.
    pub round: u32,
    /// Which backend the turn runs on, if somebody said.
    pub backend: Option<Arc<str>>,
    /// `,"session":…,"turn":…,"round":…,"time":`, written once for all events that share it.
    head: Box<[u8]>,
}

impl Context {
    /// The context of a session's turn and round.
    pub fn new(session: Option<Arc<str>>, turn: u32, round: u32, backend: Option<Arc<str>>) -> Self {
        let mut head = Vec::with_capacity(80);
        if let Some(session) = &session {
            head.extend_from_slice(b",\"session\":");
            write_str(&mut head, session);
        }
        head.extend_from_slice(b",\"turn\":");
        write_u64(&mut head, turn.into());
        head.extend_from_slice(b",\"round\":");
        write_u64(&mut head, round.into());
        head.extend_from_slice(b",\"time\":");
        Self { session, turn, round, backend, head: head.into() }
    }

    /// The context of what belongs to a session and to no turn.
    pub fn of_session(session: &Arc<str>) -> Self {
        Self::new(Some(session.clone()), 0, 0, None)
    }
}

impl Default for Context {
    fn default() -> Self {
        Self::new(None, 0, 0, None)
    }
}

/// One immutable fact.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Its place in the session's log, from 1, without holes.
    pub seq: u64,
    /// Unix milliseconds.
    pub time: u64,
    /// Session, turn, round, backend.
    pub context: Arc<Context>,
    /// Type and own fields.
    pub payload: Payload,
    /// Fields that the table does not name: a JSON object, never empty.
    pub extra: Option<Box<Json>>,
}

impl Event {
    /// Writes the wire form: `{"type","seq","session","turn","round","time",…fields}`. A control frame has no seq.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"type\":\"");
        out.extend_from_slice(self.payload.kind().as_bytes());
        if self.payload.class() == Class::Control {
            out.push(b'"');
            if let Some(session) = &self.context.session {
                out.extend_from_slice(b",\"session\":");
                write_str(out, session);
            }
            out.extend_from_slice(b",\"time\":");
            self.write_from_time(out);
        } else {
            out.extend_from_slice(b"\",\"seq\":");
            write_u64(out, self.seq);
            self.write_after_seq(out);
        }
    }

    /// What follows the seq in the wire form of an event of the log, for whoever has written the part before it.
    pub fn write_after_seq(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.context.head);
        self.write_from_time(out);
    }

    fn write_from_time(&self, out: &mut Vec<u8>) {
        write_u64(out, self.time);
        if let Some(backend) = &self.context.backend {
            out.extend_from_slice(b",\"backend\":");
            write_str(out, backend);
        }
        self.payload.write_fields(out);
        if let Some(extra) = &self.extra {
            out.push(b',');
            out.extend_from_slice(&extra.as_str().as_bytes()[1..extra.as_str().len() - 1]);
        }
        out.push(b'}');
    }

    /// The wire form.
    pub fn to_json(&self) -> String {
        let mut out = Vec::with_capacity(192);
        self.write_json(&mut out);
        String::from_utf8(out).expect("the writers copy whole strings")
    }

    /// Reads the wire form.
    pub fn from_json(text: &str) -> Result<Self, PayloadError> {
        let members = members(text)?;
        let find = |name: &str| members.iter().rev().find(|(key, _)| key == name).map(|(_, raw)| *raw);
        let header = |name: &'static str, expected| PayloadError::Field { kind: "event", field: name, expected };
        let number = |name| find(name).map_or(Ok(0), |raw| u64::read(raw).map_err(|expected| header(name, expected)));
        let shared = |name| match find(name) {
            Some(raw) => Option::<Id>::read(raw).map_err(|expected| header(name, expected)),
            None => Ok(None),
        };
        let kind = find("type").ok_or(header("type", "a string"))?;
        let kind = Text::read(kind).map_err(|expected| header("type", expected))?;
        let small = |name| number(name).and_then(|n| u32::try_from(n).map_err(|_| header(name, "a number below 2^32")));
        let context = Context::new(shared("session")?, small("turn")?, small("round")?, shared("backend")?);
        let (payload, extra) = Payload::from_members(&kind, &members)?;
        Ok(Self { seq: number("seq")?, time: number("time")?, context: Arc::new(context), payload, extra: extra.map(Box::new) })
    }

    /// Bytes this event takes in memory, about.
    pub fn size(&self) -> usize {
        size_of::<Self>() + self.payload.heap() + self.extra.as_ref().map_or(0, |extra| extra.as_str().len())
    }
}

impl Payload {
    /// Reads the fields of a `kind` from a JSON object. Fields that the type does not name come back beside it.
    pub fn from_json(kind: &str, object: &str) -> Result<(Self, Option<Json>), PayloadError> {
        Self::from_members(kind, &members(object)?)
    }
}

type Members<'a> = Vec<(Cow<'a, str>, &'a RawValue)>;

fn members(object: &str) -> Result<Members<'_>, PayloadError> {
    struct Object;
    impl<'de> Visitor<'de> for Object {
        type Value = Members<'de>;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a JSON object")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            #[derive(serde::Deserialize)]
            struct Key<'a>(#[serde(borrow)] Cow<'a, str>);
            let mut members = Vec::with_capacity(8);
            while let Some((key, raw)) = map.next_entry::<Key<'de>, &'de RawValue>()? {
                members.push((key.0, raw));
            }
            Ok(members)
        }
    }
    let mut reader = serde_json::Deserializer::from_str(object);
    let members = reader.deserialize_map(Object).map_err(|error| PayloadError::Json(error.to_string()))?;
    reader.end().map_err(|error| PayloadError::Json(error.to_string()))?;
    Ok(members)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_reads_what_it_writes() {
        for kind in TYPES {
            let object = match *kind {
                "custom" | "provider_event" => r#"{"name":"x","data":{"a":[1,null]},"more":1}"#,
                "assistant_message" => {
                    r#"{"message_id":"m","tool_calls":[{"call_id":"c","name":"n"}],"finish_reason":"stop","x":"y"}"#
                }
                _ => r#"{"more":{"k":"v"}}"#,
            };
            let (payload, extra) = Payload::from_json(kind, object).unwrap();
            let event = Event {
                seq: 7,
                time: 9,
                context: Arc::new(Context::new(Some("s".into()), 1, 2, Some("api".into()))),
                payload,
                extra: extra.map(Box::new),
            };
            let mut again = Event::from_json(&event.to_json()).unwrap();
            if event.payload.class() == Class::Control {
                again.seq = event.seq;
                again.context = event.context.clone();
            }
            assert_eq!(again, event, "{kind}");
        }
    }

    #[test]
    fn errors_say_which_field() {
        let error = Payload::from_json("text_delta", r#"{"text":5}"#).unwrap_err();
        assert_eq!(error.to_string(), "text_delta.text: expected a string");
        assert!(matches!(Payload::from_json("nope", "{}"), Err(PayloadError::UnknownType(_))));
        assert!(matches!(Payload::from_json("usage", "[]"), Err(PayloadError::Json(_))));
    }

    #[test]
    fn a_delta_in_the_log_is_small() {
        assert!(size_of::<Payload>() <= 64, "{}", size_of::<Payload>());
    }
}
