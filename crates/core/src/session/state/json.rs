//! A state as JSON: the conversation, the progress, the whole of it as a `snapshot` carries it.

use std::collections::{HashMap, HashSet};

use super::{Attached, CallState, Dropped, MessageState, StageState, State};
use crate::event::json::{list, member, object, write_f64, write_str, write_u64};
use crate::event::{CallRef, Event, Field, Id, Json, Payload, Text};

/// Writes a member.
fn field(out: &mut Vec<u8>, name: &str, value: &impl Field) {
    member(out, name, |out| value.write(out));
}

/// Writes a member, if there is one.
fn known(out: &mut Vec<u8>, name: &str, value: Option<&impl Field>) {
    if let Some(value) = value {
        field(out, name, value);
    }
}

fn text(out: &mut Vec<u8>, name: &str, text: &str) {
    member(out, name, |out| write_str(out, text));
}

fn number(out: &mut Vec<u8>, name: &str, number: impl Into<u64>) {
    member(out, name, |out| write_u64(out, number.into()));
}

impl State {
    /// The usage of the newest turn, as JSON: what is known of it.
    pub fn usage_json(&self) -> Option<Json> {
        let usage = self.usage.as_ref()?;
        Some(Json::object(|out| usage.counts().iter().for_each(|(name, count)| known(out, name, count.as_ref()))))
    }

    /// The latest progress per stage of the newest turn, as JSON. `elapsed_s` and `estimate_s`, the seconds that are left,
    /// are those that the progress says, or else reckoned from its start and its share, as of `now`.
    pub fn progress_json(&self, now: u64) -> Json {
        let now = if self.running { now } else { self.updated.unwrap_or(now) };
        let write = |out: &mut Vec<u8>, stage: &StageState| object(out, |out| stage.write_members(now, out));
        Json::object(|out| self.stages.iter().for_each(|stage| member(out, &stage.stage, |out| write(out, stage))))
    }

    /// The conversation as JSON: user inputs, answers and the calls they make, partial ones included.
    pub fn messages_json(&self) -> Json {
        let mut out = Vec::new();
        self.write_messages(&mut out);
        Json::from_written(out)
    }

    fn write_messages(&self, out: &mut Vec<u8>) {
        let mut attached: HashMap<&Id, Vec<&Event>> = HashMap::new();
        for one in &self.attached {
            if let Some(id) = &one.message_id {
                attached.entry(id).or_default().push(&one.event);
            }
        }
        list(out, &self.messages, |out, message| {
            let attached = attached.get(&message.id).map_or(&[][..], Vec::as_slice);
            object(out, |out| self.write_message(message, attached, out));
        });
    }

    fn write_message(&self, message: &MessageState, attached: &[&Event], out: &mut Vec<u8>) {
        field(out, "role", &message.role);
        number(out, "turn", message.turn);
        field(out, "message_id", &message.id);
        if let Some(input) = &message.input {
            return field(out, "input", input);
        }
        text(out, "text", &message.text);
        text(out, "reasoning", &message.reasoning);
        if let Some(refusal) = &message.refusal {
            text(out, "refusal", refusal);
        }
        let calls = message.calls.iter().flat_map(|call| {
            let known = self.named_calls(message, call);
            // One that nobody began is a name.
            let unknown = known.is_empty().then_some(None);
            known.into_iter().map(Some).chain(unknown).map(move |at| (at, call))
        });
        member(out, "tool_calls", |out| {
            list(out, calls, |out, (at, call)| write_call(at.map(|at| &self.calls[at]), &call.call_id, &call.name, out));
        });
        let of_kind = |citation: bool| attached.iter().filter(move |one| matches!(one.payload, Payload::Citation(_)) == citation);
        for (name, citation) in [("citations", true), ("files", false)] {
            if of_kind(citation).next().is_some() {
                member(out, name, |out| list(out, of_kind(citation), |out, one| one.write_json(out)));
            }
        }
        known(out, "model", message.model.as_ref());
        known(out, "choice", message.choice.as_ref());
        known(out, "finish_reason", message.finish_reason.as_ref());
        if message.resets > 0 {
            number(out, "resets", message.resets);
        }
        field(out, "done", &message.done);
    }

    /// What is not here any more, as JSON; none where all is.
    pub fn dropped_json(&self) -> Option<Json> {
        let Dropped { messages, calls, events, turn } = self.dropped;
        let counts = [("messages", messages), ("calls", calls), ("events", events), ("turn", turn.into())];
        let write = || Json::object(|out| counts.iter().for_each(|(name, count)| number(out, name, *count)));
        (self.dropped != Dropped::default()).then(write)
    }

    /// Where the calls stand that the message names so: its own, of several rounds, or else the newest that is of no message.
    fn named_calls(&self, message: &MessageState, call: &CallRef) -> Vec<usize> {
        let Some(known) = self.call_index.get(&call.call_id) else { return Vec::new() };
        let of = |owner: Option<&Id>| {
            let same = |at: &usize| (self.calls[*at].turn, self.calls[*at].message_id.as_ref()) == (message.turn, owner);
            known.iter().copied().filter(same).collect::<Vec<_>>()
        };
        let own = of(Some(&message.id));
        if own.is_empty() { of(None).pop().into_iter().collect() } else { own }
    }

    /// The whole state as a `snapshot` carries it.
    pub fn snapshot_json(&self) -> Json {
        Json::object(|out| self.write_members(out))
    }

    fn write_members(&self, out: &mut Vec<u8>) {
        number(out, "turn", self.turn);
        field(out, "running", &self.running);
        known(out, "client_id", self.client_id.as_ref());
        known(out, "metadata", self.metadata.as_ref());
        known(out, "dropped", self.dropped_json().as_ref());
        member(out, "messages", |out| self.write_messages(out));
        // Those of the newest turn that wait for their result, and of all others those that no message names.
        let waits = |call: &CallState| call.turn == self.turn && call.status.is_none();
        let named = self.messages.iter().flat_map(|message| message.calls.iter().map(move |call| (message, call)));
        let named: HashSet<usize> = named.flat_map(|(message, call)| self.named_calls(message, call)).collect();
        for (name, open) in [("open_calls", true), ("other_calls", false)] {
            let calls = self.calls.iter().enumerate();
            let calls = calls.filter(|(at, call)| waits(call) == open && (open || !named.contains(at)));
            member(out, name, |out| list(out, calls, |out, (_, call)| write_call(Some(call), &call.id, &call.name, out)));
        }
        // Of the newest turn, what no message shows.
        let of_no_message = |one: &&Attached| {
            one.event.seq > self.turn_start && one.message_id.as_ref().is_none_or(|id| self.message(id).is_none())
        };
        if self.attached.iter().any(|one| of_no_message(&one)) {
            let others = self.attached.iter().filter(of_no_message);
            member(out, "other_events", |out| list(out, others, |out, one| one.event.write_json(out)));
        }
        field(out, "progress", &self.progress_json(self.updated.unwrap_or(0)));
        field(out, "usage", &self.usage_json());
        field(out, "completion", &self.outcome.as_ref().map(|outcome| outcome.completion.clone()));
    }
}

impl StageState {
    fn write_members(&self, now: u64, out: &mut Vec<u8>) {
        field(out, "open", &self.open);
        known(out, "status", self.status.as_ref());
        known(out, "index", self.index.as_ref());
        known(out, "stages", self.total.as_ref());
        let (elapsed, estimate) = self.clock(now);
        member(out, "elapsed_s", |out| write_f64(out, elapsed));
        known(out, "estimate_s", estimate.as_ref());
        let progress = self.progress.as_ref();
        if progress.is_none_or(|progress| progress.agent.is_none()) {
            known(out, "agent", self.agent.as_ref());
        }
        if let Some(progress) = progress {
            known(out, "current", progress.current.as_ref());
            known(out, "total", progress.total.as_ref());
            known(out, "message", progress.message.as_ref());
            known(out, "agent", progress.agent.as_ref());
        }
    }

    /// Seconds that it has taken, and seconds that are left, as of `now`.
    fn clock(&self, now: u64) -> (f64, Option<f64>) {
        #[allow(clippy::cast_precision_loss, reason = "below 2^53")]
        let reckoned = self.ended.unwrap_or(now).saturating_sub(self.started) as f64 / 1000.0;
        let Some(progress) = &self.progress else { return (reckoned, None) };
        let left = match (progress.current, progress.total) {
            _ if self.ended.is_some() => None,
            (Some(current), Some(total)) if current > 0.0 && total >= current => Some(reckoned * (total - current) / current),
            _ => None,
        };
        (progress.elapsed_s.unwrap_or(reckoned), progress.estimate_s.or(left))
    }
}

fn write_call(call: Option<&CallState>, id: &Id, name: &Text, out: &mut Vec<u8>) {
    object(out, |out| {
        field(out, "call_id", id);
        field(out, "name", name);
        let Some(call) = call else { return };
        number(out, "seq", call.seq);
        number(out, "turn", call.turn);
        number(out, "round", call.round);
        field(out, "kind", &call.kind);
        field(out, "arguments", &call.arguments);
        text(out, "arguments_raw", &call.arguments_raw);
        field(out, "done", &call.done);
        if call.status.is_some() {
            known(out, "status", call.status.as_ref());
            field(out, "output", &call.output);
            field(out, "is_error", &call.is_error);
        } else if !call.output_text.is_empty() {
            text(out, "output_text", &call.output_text);
        }
    });
}

/// `error` as status and completion carry it.
pub(crate) fn error_json(code: &str, message: &str, retryable: bool) -> Json {
    Json::object(|out| {
        text(out, "code", code);
        text(out, "message", message);
        field(out, "retryable", &retryable);
    })
}
