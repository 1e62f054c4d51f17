//! What the two OpenAI formats share: the request that a turn answers, as its `turn_start` holds it, and counts.
//!
//! Knows the vocabulary and OpenAI's names for it. Writes no frame.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::Format;
use super::openai_chat::Chat;
use super::openai_responses::Responses;
use crate::event::{Json, Kind, Text};
use crate::reader::{Cursor, Follow, Poll, ReadError, ReadOptions, Reader};
use crate::session::Session;

/// What an encoder needs of the request that began the turn. Anything may stand in a turn's input; what is no request
/// of OpenAI's is an empty one.
#[derive(Debug, Default)]
pub(super) struct Request {
    /// The model that was asked for.
    pub(super) model: Option<String>,
    /// The tools that the client runs itself; none where the input does not say.
    tools: Option<Vec<String>>,
    /// Whether a chat stream ends with its usage.
    pub(super) include_usage: bool,
    /// The settings that a response repeats.
    pub(super) settings: Map<String, Value>,
}

/// How far an encoder has come with its turn.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nothing of the turn has come.
    #[default]
    Before,
    /// Something before the next event is missing.
    Hole,
    /// In the turn.
    Inside,
    /// The last frame has been written.
    Over,
}

/// The request's settings that a `Response` repeats, with what stands there when the request is silent.
const SETTINGS: &[(&str, &str)] = &[
    ("background", "false"),
    ("instructions", "null"),
    ("max_output_tokens", "null"),
    ("metadata", "{}"),
    ("parallel_tool_calls", "true"),
    ("previous_response_id", "null"),
    ("store", "true"),
    ("temperature", "null"),
    ("tool_choice", "\"auto\""),
    ("tools", "[]"),
    ("top_p", "null"),
    ("user", "null"),
];

impl Request {
    /// Reads a turn's input.
    pub(super) fn of(input: Option<&Json>) -> Self {
        // Only what is asked for is parsed: the conversation in it may be long.
        let members: Option<BTreeMap<Cow<'_, str>, &RawValue>> =
            input.and_then(|input| serde_json::from_str(input.as_str()).ok());
        let read = |name: &str| members.as_ref()?.get(name).and_then(|raw| serde_json::from_str::<Value>(raw.get()).ok());
        let mut settings = Map::new();
        let Some(Value::String(model)) = read("model") else {
            settings.extend(SETTINGS.iter().map(|(key, default)| ((*key).to_owned(), parsed(default))));
            return Self { include_usage: true, settings, ..Self::default() };
        };
        let name = |tool: &Value| {
            let function = tool.get("function").unwrap_or(tool);
            function.get("name").and_then(Value::as_str).map(str::to_owned)
        };
        for (key, default) in SETTINGS {
            let said = read(key).filter(|said| !said.is_null());
            settings.insert((*key).to_owned(), said.unwrap_or_else(|| parsed(default)));
        }
        let tools = settings["tools"].as_array().map(|tools| tools.iter().filter_map(name).collect());
        let include_usage = read("stream_options").is_some_and(|options| options["include_usage"] == true);
        Self { model: Some(model), tools: Some(tools.unwrap_or_default()), include_usage, settings }
    }

    /// Whether a call waits for the client: one of the tools that it brought. A turn that no OpenAI request began says
    /// nothing of tools, and its calls for a client are all the client's.
    pub(super) fn is_the_clients(&self, kind: Kind, name: &str) -> bool {
        kind == Kind::Client && self.tools.as_ref().is_none_or(|tools| tools.iter().any(|tool| tool == name))
    }
}

fn parsed(json: &str) -> Value {
    serde_json::from_str(json).expect("the table holds JSON")
}

/// A call's name: one that nobody named must have one too.
pub(super) fn whole_name(name: &Text) -> Text {
    if name.is_empty() { Text::const_new("tool") } else { name.clone() }
}

/// A call's arguments as a client may parse them: some providers send nothing where there are none.
pub(super) fn whole_arguments(raw: &str) -> &str {
    if raw.is_empty() { "{}" } else { raw }
}

/// A turn's usage by the names of one API: (input, its details, output, its details).
pub(super) fn usage(usage: Option<&Json>, names: [&str; 4], write_tokens: bool) -> Option<Value> {
    let usage = usage?.to_value();
    let count = |name: &str| usage.get(name).and_then(Value::as_u64);
    let (input, output) = (count("input_tokens"), count("output_tokens"));
    if input.is_none() && output.is_none() {
        return None;
    }
    let (input, output) = (input.unwrap_or(0), output.unwrap_or(0));
    let mut input_details = json!({ "cached_tokens": count("cache_read_tokens").unwrap_or(0) });
    if write_tokens {
        input_details["cache_write_tokens"] = count("cache_write_tokens").unwrap_or(0).into();
    }
    let output_details = json!({ "reasoning_tokens": count("reasoning_tokens").unwrap_or(0) });
    Some(json!({
        names[0]: input,
        names[1]: input_details,
        names[2]: output,
        names[3]: output_details,
        "total_tokens": count("total_tokens").unwrap_or(input + output),
    }))
}

/// The answer to a request that does not stream, of the turn that begins after `cursor`: what is there now. None before
/// the turn has begun, and for other formats.
pub fn body(session: &Arc<Session>, cursor: Cursor, format: Format) -> Result<Option<Json>, ReadError> {
    // This cannot wait for a store: what has left the log is missing here.
    let history = false;
    let read = ReadOptions { after: Some(cursor), follow: Follow::None, merge: true, history, ..ReadOptions::default() };
    let mut reader = Reader::open(session, &read)?;
    let (mut chat, mut responses) = (Chat::body(), Responses::body());
    let mut items = Vec::new();
    while reader.poll(256, &mut items) == Poll::Ready {
        for item in items.drain(..) {
            match format {
                Format::OpenAiChat => chat.event(session, item.event(), &mut Vec::new()),
                _ => responses.event(session, item.event(), &mut Vec::new()),
            }
        }
    }
    Ok(match format {
        Format::OpenAiChat => chat.answer(),
        Format::OpenAiResponses => responses.answer(),
        _ => None,
    })
}
