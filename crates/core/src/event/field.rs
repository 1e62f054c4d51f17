//! What a field of an event can be: how it is written as JSON, read from JSON, and looked at by a binding.

use std::sync::Arc;

use compact_str::CompactString;
use serde_json::value::RawValue;

use super::json::{Json, write_f64, write_str, write_u64};

/// An identifier, shared by all events that carry it.
pub type Id = Arc<str>;
/// Text of an event. Up to 24 bytes, most deltas, live inline.
pub type Text = CompactString;

/// A field's value, borrowed, for code that does not know its event's type.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    /// Absent or null.
    Null,
    /// A truth value.
    Bool(bool),
    /// A whole number.
    U64(u64),
    /// A float.
    F64(f64),
    /// Text, an id, or the name of an enum's variant.
    Str(&'a str),
    /// A JSON value, as text.
    Json(&'a Json),
    /// The calls of a message.
    Calls(&'a [CallRef]),
}

/// One field of one event.
pub trait Field: Sized {
    /// Writes the value as JSON.
    fn write(&self, out: &mut Vec<u8>);
    /// Reads it; the error names what was expected.
    fn read(raw: &RawValue) -> Result<Self, &'static str>;
    /// What it is when a payload leaves it out; `None` where it must be there.
    fn missing() -> Option<Self>;
    /// Borrows the value.
    fn value(&self) -> Value<'_>;
    /// Whether an optional field is left out.
    fn is_absent(&self) -> bool {
        false
    }
    /// Bytes on the heap, about.
    fn heap(&self) -> usize {
        0
    }
}

fn read_string(raw: &RawValue) -> Result<std::borrow::Cow<'_, str>, &'static str> {
    #[derive(serde::Deserialize)]
    struct Wrapped<'a>(#[serde(borrow)] std::borrow::Cow<'a, str>);
    serde_json::from_str::<Wrapped<'_>>(raw.get()).map(|text| text.0).map_err(|_| "a string")
}

impl Field for Id {
    fn write(&self, out: &mut Vec<u8>) {
        write_str(out, self);
    }
    fn read(raw: &RawValue) -> Result<Self, &'static str> {
        read_string(raw).map(|text| Arc::from(&*text))
    }
    fn missing() -> Option<Self> {
        Some(Arc::from("")) // the session fills in the open message or a new id
    }
    fn value(&self) -> Value<'_> {
        Value::Str(self)
    }
}

impl Field for Text {
    fn write(&self, out: &mut Vec<u8>) {
        write_str(out, self);
    }
    fn read(raw: &RawValue) -> Result<Self, &'static str> {
        read_string(raw).map(Text::from)
    }
    fn missing() -> Option<Self> {
        Some(Text::default())
    }
    fn value(&self) -> Value<'_> {
        Value::Str(self)
    }
    fn heap(&self) -> usize {
        if self.is_heap_allocated() { self.capacity() } else { 0 }
    }
}

impl Field for u64 {
    fn write(&self, out: &mut Vec<u8>) {
        write_u64(out, *self);
    }
    fn read(raw: &RawValue) -> Result<Self, &'static str> {
        serde_json::from_str(raw.get()).map_err(|_| "a whole number")
    }
    fn missing() -> Option<Self> {
        Some(0)
    }
    fn value(&self) -> Value<'_> {
        Value::U64(*self)
    }
}

impl Field for f64 {
    fn write(&self, out: &mut Vec<u8>) {
        write_f64(out, *self);
    }
    fn read(raw: &RawValue) -> Result<Self, &'static str> {
        serde_json::from_str(raw.get()).map_err(|_| "a number")
    }
    fn missing() -> Option<Self> {
        Some(0.0)
    }
    fn value(&self) -> Value<'_> {
        Value::F64(*self)
    }
}

impl Field for bool {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(if *self { b"true" } else { b"false" });
    }
    fn read(raw: &RawValue) -> Result<Self, &'static str> {
        serde_json::from_str(raw.get()).map_err(|_| "true or false")
    }
    fn missing() -> Option<Self> {
        Some(false)
    }
    fn value(&self) -> Value<'_> {
        Value::Bool(*self)
    }
}

impl Field for Json {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.as_str().as_bytes());
    }
    fn read(raw: &RawValue) -> Result<Self, &'static str> {
        Json::from_raw(raw).map_err(|_| "JSON nested at most 128 levels deep")
    }
    fn missing() -> Option<Self> {
        None
    }
    fn value(&self) -> Value<'_> {
        Value::Json(self)
    }
    fn heap(&self) -> usize {
        self.as_str().len()
    }
}

impl<T: Field> Field for Option<T> {
    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Some(value) => value.write(out),
            None => out.extend_from_slice(b"null"),
        }
    }
    fn read(raw: &RawValue) -> Result<Self, &'static str> {
        if raw.get() == "null" { Ok(None) } else { T::read(raw).map(Some) }
    }
    fn missing() -> Option<Self> {
        Some(None)
    }
    fn value(&self) -> Value<'_> {
        self.as_ref().map_or(Value::Null, Field::value)
    }
    fn is_absent(&self) -> bool {
        self.is_none()
    }
    fn heap(&self) -> usize {
        self.as_ref().map_or(0, Field::heap)
    }
}

/// A call as its message names it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
pub struct CallRef {
    /// The call's id.
    pub call_id: Id,
    /// The tool's name.
    pub name: Text,
}

impl Field for Vec<CallRef> {
    fn write(&self, out: &mut Vec<u8>) {
        out.push(b'[');
        for (i, call) in self.iter().enumerate() {
            out.extend_from_slice(if i == 0 { b"{\"call_id\":" } else { b",{\"call_id\":" });
            write_str(out, &call.call_id);
            out.extend_from_slice(b",\"name\":");
            write_str(out, &call.name);
            out.push(b'}');
        }
        out.push(b']');
    }
    fn read(raw: &RawValue) -> Result<Self, &'static str> {
        serde_json::from_str(raw.get()).map_err(|_| "a list of {call_id, name}")
    }
    fn missing() -> Option<Self> {
        Some(Vec::new())
    }
    fn value(&self) -> Value<'_> {
        Value::Calls(self)
    }
    fn heap(&self) -> usize {
        self.iter().map(|call| size_of::<CallRef>() + call.call_id.len() + call.name.heap()).sum()
    }
}

macro_rules! word {
    ($(#[$meta:meta])* $name:ident = $default:ident { $($(#[$vmeta:meta])* $variant:ident $text:literal)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$vmeta])* $variant),* }

        impl $name {
            /// The word on the wire.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }
            /// The variant a word names.
            pub fn parse(word: &str) -> Option<Self> {
                match word { $($text => Some(Self::$variant),)* _ => None }
            }
        }

        impl Field for $name {
            fn write(&self, out: &mut Vec<u8>) {
                write_str(out, self.as_str());
            }
            fn read(raw: &RawValue) -> Result<Self, &'static str> {
                read_string(raw).ok().and_then(|word| Self::parse(&word)).ok_or(concat!("one of:", $(" ", $text),*))
            }
            fn missing() -> Option<Self> {
                Some(Self::$default)
            }
            fn value(&self) -> Value<'_> {
                Value::Str(self.as_str())
            }
        }
    };
}

word! {
    /// Why a message ended, in one set of words; the provider's own stands beside it.
    FinishReason = Unknown {
        /// It was done.
        Stop "stop"
        /// A limit on length cut it.
        Length "length"
        /// It waits for its tools.
        ToolCalls "tool_calls"
        /// A filter cut it.
        ContentFilter "content_filter"
        /// The model declined.
        Refusal "refusal"
        /// The provider paused; the same call goes on later.
        Pause "pause"
        /// It failed.
        Error "error"
        /// It was cancelled.
        Cancelled "cancelled"
        /// Nobody said.
        Unknown "unknown"
    }
}

word! {
    /// Where a whole message came from.
    Origin = Provider {
        /// The provider's stream.
        Provider "provider"
        /// The agent's own transcript.
        Transcript "transcript"
        /// The run's result, because nothing else spoke.
        Fallback "fallback"
    }
}

word! {
    /// Who runs a tool call.
    Kind = Client {
        /// The agent.
        Client "client"
        /// The provider.
        Server "server"
        /// A shell command.
        Command "command"
        /// A change to files.
        FileChange "file_change"
        /// A tool of an MCP server.
        Mcp "mcp"
    }
}

word! {
    /// How a turn ended.
    Status = Completed {
        /// Well.
        Completed "completed"
        /// With an error.
        Failed "failed"
        /// Because somebody stopped it.
        Cancelled "cancelled"
        /// Without its end.
        Incomplete "incomplete"
    }
}
