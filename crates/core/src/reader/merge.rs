//! Merging: neighbouring deltas of one kind, id, turn and round become one, with the last one's seq and time.

use std::mem::discriminant;
use std::sync::Arc;

use super::Item;
use crate::event::{Event, Payload, Text};

/// Puts `event` into the last item of `out[from..]` if the two are deltas that may merge; else leaves `out` alone.
pub fn merge(out: &mut [Item], from: usize, event: &Event) -> bool {
    let Some(last) = out[from..].last_mut() else { return false };
    if last.event().seq + 1 != event.seq || !belong_together(last.event(), event) {
        return false;
    }
    if let Item::Logged(entry) = last {
        *last = Item::Made(Box::new(entry.event.clone()));
    }
    let Item::Made(merged) = last else { return false };
    extend(merged, event)
}

/// Puts the text of `event` behind that of `whole`, which takes its seq and time; false where they are not deltas of one
/// kind.
pub fn extend(whole: &mut Event, event: &Event) -> bool {
    if discriminant(&whole.payload) != discriminant(&event.payload) {
        return false;
    }
    let (Some(text), Some(piece)) = (text_mut(&mut whole.payload), text(&event.payload)) else { return false };
    text.push_str(piece);
    (whole.seq, whole.time) = (event.seq, event.time);
    true
}

macro_rules! delta_text {
    ($payload:ident, $ref:tt $($mut:tt)?) => {
        match $payload {
            Payload::TextDelta(delta) => Some($ref $($mut)? delta.text),
            Payload::ReasoningDelta(delta) => Some($ref $($mut)? delta.text),
            Payload::RefusalDelta(delta) => Some($ref $($mut)? delta.text),
            Payload::ToolCallDelta(delta) => Some($ref $($mut)? delta.text),
            Payload::ToolOutputDelta(delta) => Some($ref $($mut)? delta.text),
            _ => None,
        }
    };
}

/// A delta's text.
pub(super) fn text(payload: &Payload) -> Option<&Text> {
    delta_text!(payload, &)
}

pub(super) fn text_mut(payload: &mut Payload) -> Option<&mut Text> {
    delta_text!(payload, &mut)
}

/// Whether both are deltas of one kind and id, in one round of one session.
pub fn belong_together(a: &Event, b: &Event) -> bool {
    let same_round = Arc::ptr_eq(&a.context, &b.context)
        || (a.context.turn, a.context.round, &a.context.session) == (b.context.turn, b.context.round, &b.context.session);
    // Deltas with a user's own fields stay apart: nobody knows how those add up.
    if !same_round || a.extra.is_some() || b.extra.is_some() {
        return false;
    }
    match (&a.payload, &b.payload) {
        (Payload::TextDelta(a), Payload::TextDelta(b)) => a.message_id == b.message_id,
        (Payload::ReasoningDelta(a), Payload::ReasoningDelta(b)) => a.message_id == b.message_id && a.part == b.part,
        (Payload::RefusalDelta(a), Payload::RefusalDelta(b)) => a.message_id == b.message_id,
        (Payload::ToolCallDelta(a), Payload::ToolCallDelta(b)) => a.call_id == b.call_id,
        (Payload::ToolOutputDelta(a), Payload::ToolOutputDelta(b)) => a.call_id == b.call_id,
        _ => false,
    }
}
