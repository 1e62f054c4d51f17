//! Events as a store has them: native JSON, one a line.
//!
//! Refuses to know sessions. Invariant: what cannot be read, or has no place in a log, is said as [`StoreError::Corrupt`].

use std::sync::Arc;

use crate::event::{Class, Context, Event};
use crate::store::{StoreError, Tail};

pub(in crate::session) fn lines(tail: &Tail) -> impl Iterator<Item = &[u8]> {
    tail.blocks.iter().flat_map(|block| block.split(|byte| *byte == b'\n')).filter(|line| !line.is_empty())
}

/// Whether a store's line says what ours does, however its writer's version put it.
pub(super) fn same(ours: &[u8], theirs: &[u8]) -> bool {
    let read = |line: &[u8]| decode(line, &mut Arc::default()).map(|event| event.to_json());
    ours == theirs || matches!((read(ours), read(theirs)), (Ok(ours), Ok(theirs)) if ours == theirs)
}

/// A delta that the final event of its message or call covers, once its turn has ended; told by the wire form's beginning.
pub(super) fn is_covered_delta(line: &[u8]) -> bool {
    line.strip_prefix(b"{\"type\":\"").is_some_and(|kind| {
        ["text_delta\"", "reasoning_delta\"", "refusal_delta\"", "tool_call_delta\""]
            .iter()
            .any(|name| kind.starts_with(name.as_bytes()))
    })
}

/// Reads one line; neighbours of one turn and round share their context.
pub(in crate::session) fn decode(line: &[u8], context: &mut Arc<Context>) -> Result<Event, StoreError> {
    let corrupt = |what: &dyn std::fmt::Display| StoreError::Corrupt(format!("an event cannot be read: {what}"));
    let text = std::str::from_utf8(line).map_err(|error| corrupt(&error))?;
    let mut event = Event::from_json(text).map_err(|error| corrupt(&error))?;
    if event.payload.class() == Class::Control {
        return Err(corrupt(&"a control frame"));
    }
    if **context == *event.context {
        event.context = context.clone();
    } else {
        *context = event.context.clone();
    }
    Ok(event)
}
