//! A state as JSON: the conversation, the progress, the whole of it as a `snapshot` carries it.

use std::collections::{HashMap, HashSet};

use super::{Attached, CallState, Dropped, MessageState, StageState, State};
use crate::event::json::{write_f64, write_str, write_u64};
use crate::event::{CallRef, Event, Field, Id, Json, Payload};

impl State {
    /// The latest progress per stage of the newest turn, as JSON. `elapsed_s` and `estimate_s`, the seconds that are left,
    /// are those that the progress says, or else reckoned from its start and its share, as of `now`.
    pub fn progress_json(&self, now: u64) -> Json {
        let mut out = Vec::new();
        for stage in &self.stages {
            key(&mut out, &stage.stage);
            let mut inner = Vec::new();
            key(&mut inner, "open");
            stage.open.write(&mut inner);
            if let Some(status) = &stage.status {
                key(&mut inner, "status");
                status.write(&mut inner);
            }
            for (name, number) in [("index", stage.index), ("stages", stage.total)] {
                if let Some(number) = number {
                    key(&mut inner, name);
                    write_u64(&mut inner, number);
                }
            }
            let (elapsed, estimate) = stage.clock(if self.running { now } else { self.updated.unwrap_or(now) });
            for (name, number) in [("elapsed_s", Some(elapsed)), ("estimate_s", estimate)] {
                if let Some(number) = number {
                    key(&mut inner, name);
                    write_f64(&mut inner, number);
                }
            }
            if let (Some(agent), None) = (&stage.agent, stage.progress.as_ref().and_then(|progress| progress.agent.as_ref())) {
                key(&mut inner, "agent");
                agent.write(&mut inner);
            }
            if let Some(progress) = &stage.progress {
                for (name, number) in [("current", progress.current), ("total", progress.total)] {
                    if let Some(number) = number {
                        key(&mut inner, name);
                        write_f64(&mut inner, number);
                    }
                }
                for (name, text) in [("message", &progress.message), ("agent", &progress.agent)] {
                    if let Some(text) = text {
                        key(&mut inner, name);
                        text.write(&mut inner);
                    }
                }
            }
            object(inner).write(&mut out);
        }
        object(out)
    }

    /// The conversation as JSON: user inputs, answers and the calls they make, partial ones included.
    pub fn messages_json(&self) -> Json {
        let mut attached: HashMap<&Id, Vec<&Event>> = HashMap::new();
        for one in &self.attached {
            if let Some(id) = &one.message_id {
                attached.entry(id).or_default().push(&one.event);
            }
        }
        let mut out = Vec::new();
        list(&mut out, self.messages.iter(), |out, message| {
            self.message_json(message, attached.get(&message.id).map_or(&[], Vec::as_slice)).write(out);
        });
        Json::from_written(out)
    }

    /// What is not here any more, as JSON; none where all is.
    pub fn dropped_json(&self) -> Option<Json> {
        if self.dropped == Dropped::default() {
            return None;
        }
        let Dropped { messages, calls, events, turn } = self.dropped;
        let mut out = Vec::new();
        for (name, count) in [("messages", messages), ("calls", calls), ("events", events), ("turn", turn.into())] {
            key(&mut out, name);
            write_u64(&mut out, count);
        }
        Some(object(out))
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

    fn message_json(&self, message: &MessageState, attached: &[&Event]) -> Json {
        let mut out = Vec::new();
        key(&mut out, "role");
        message.role.write(&mut out);
        key(&mut out, "turn");
        write_u64(&mut out, message.turn.into());
        key(&mut out, "message_id");
        message.id.write(&mut out);
        if let Some(input) = &message.input {
            key(&mut out, "input");
            input.write(&mut out);
            return object(out);
        }
        for (name, text) in [("text", &message.text), ("reasoning", &message.reasoning)] {
            key(&mut out, name);
            write_str(&mut out, text);
        }
        if let Some(refusal) = &message.refusal {
            key(&mut out, "refusal");
            write_str(&mut out, refusal);
        }
        key(&mut out, "tool_calls");
        let calls = message.calls.iter().flat_map(|call| {
            let known = self.named_calls(message, call);
            // One that nobody began is a name.
            let unknown = known.is_empty().then_some(None);
            known.into_iter().map(Some).chain(unknown).map(move |at| (at, call))
        });
        list(&mut out, calls, |out, (at, call)| call_json(at.map(|at| &self.calls[at]), call).write(out));
        let of_kind = |citation: bool| attached.iter().filter(move |one| matches!(one.payload, Payload::Citation(_)) == citation);
        for (name, citation) in [("citations", true), ("files", false)] {
            if of_kind(citation).next().is_some() {
                key(&mut out, name);
                list(&mut out, of_kind(citation), |out, one| one.write_json(out));
            }
        }
        if let Some(model) = &message.model {
            key(&mut out, "model");
            model.write(&mut out);
        }
        if let Some(choice) = message.choice {
            key(&mut out, "choice");
            write_u64(&mut out, choice);
        }
        if let Some(reason) = message.finish_reason {
            key(&mut out, "finish_reason");
            reason.write(&mut out);
        }
        if message.resets > 0 {
            key(&mut out, "resets");
            write_u64(&mut out, message.resets.into());
        }
        key(&mut out, "done");
        message.done.write(&mut out);
        object(out)
    }

    /// The whole state as a `snapshot` carries it.
    pub fn snapshot_json(&self) -> Json {
        let mut out = Vec::new();
        key(&mut out, "turn");
        write_u64(&mut out, self.turn.into());
        key(&mut out, "running");
        self.running.write(&mut out);
        if let Some(client_id) = &self.client_id {
            key(&mut out, "client_id");
            client_id.write(&mut out);
        }
        if let Some(metadata) = &self.metadata {
            key(&mut out, "metadata");
            metadata.write(&mut out);
        }
        if let Some(dropped) = self.dropped_json() {
            key(&mut out, "dropped");
            dropped.write(&mut out);
        }
        key(&mut out, "messages");
        self.messages_json().write(&mut out);
        // Those of the newest turn that wait for their result, and of all others those that no message names.
        let waits = |call: &CallState| call.turn == self.turn && call.status.is_none();
        let named = self.messages.iter().flat_map(|message| message.calls.iter().map(move |call| (message, call)));
        let named: HashSet<usize> = named.flat_map(|(message, call)| self.named_calls(message, call)).collect();
        for (name, open) in [("open_calls", true), ("other_calls", false)] {
            key(&mut out, name);
            let calls = self.calls.iter().enumerate();
            let calls = calls.filter(|(at, call)| waits(call) == open && (open || !named.contains(at)));
            list(&mut out, calls, |out, (_, call)| {
                call_json(Some(call), &CallRef { call_id: call.id.clone(), name: call.name.clone() }).write(out);
            });
        }
        // Of the newest turn, what no message shows.
        let of_no_message = |one: &&Attached| {
            one.event.seq > self.turn_start && one.message_id.as_ref().is_none_or(|id| self.message(id).is_none())
        };
        if self.attached.iter().any(|one| of_no_message(&one)) {
            key(&mut out, "other_events");
            list(&mut out, self.attached.iter().filter(of_no_message), |out, one| one.event.write_json(out));
        }
        key(&mut out, "progress");
        self.progress_json(self.updated.unwrap_or(0)).write(&mut out);
        key(&mut out, "usage");
        self.usage_json().write(&mut out);
        key(&mut out, "completion");
        self.outcome.as_ref().map(|outcome| outcome.completion.clone()).write(&mut out);
        object(out)
    }
}

impl StageState {
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

fn call_json(known: Option<&CallState>, call: &CallRef) -> Json {
    let mut out = Vec::new();
    key(&mut out, "call_id");
    call.call_id.write(&mut out);
    key(&mut out, "name");
    call.name.write(&mut out);
    if let Some(known) = known {
        for (name, number) in [("seq", known.seq), ("turn", known.turn.into()), ("round", known.round.into())] {
            key(&mut out, name);
            write_u64(&mut out, number);
        }
        key(&mut out, "kind");
        known.kind.write(&mut out);
        key(&mut out, "arguments");
        known.arguments.write(&mut out);
        key(&mut out, "arguments_raw");
        write_str(&mut out, &known.arguments_raw);
        key(&mut out, "done");
        known.done.write(&mut out);
        if let Some(status) = &known.status {
            key(&mut out, "status");
            status.write(&mut out);
            key(&mut out, "output");
            known.output.write(&mut out);
            key(&mut out, "is_error");
            known.is_error.write(&mut out);
        } else if !known.output_text.is_empty() {
            key(&mut out, "output_text");
            write_str(&mut out, &known.output_text);
        }
    }
    object(out)
}

/// `error` as status and completion carry it.
pub(crate) fn error_json(code: &str, message: &str, retryable: bool) -> Json {
    let mut out = Vec::new();
    key(&mut out, "code");
    write_str(&mut out, code);
    key(&mut out, "message");
    write_str(&mut out, message);
    key(&mut out, "retryable");
    retryable.write(&mut out);
    object(out)
}

/// Writes the next key of an object that [`object`] closes.
pub(crate) fn key(out: &mut Vec<u8>, name: &str) {
    out.push(if out.is_empty() { b'{' } else { b',' });
    write_str(out, name);
    out.push(b':');
}

/// Writes a list.
fn list<T>(out: &mut Vec<u8>, items: impl Iterator<Item = T>, mut write: impl FnMut(&mut Vec<u8>, T)) {
    out.push(b'[');
    for (i, item) in items.enumerate() {
        if i > 0 {
            out.push(b',');
        }
        write(out, item);
    }
    out.push(b']');
}

/// Closes what [`key`] began.
pub(crate) fn object(mut out: Vec<u8>) -> Json {
    if out.is_empty() {
        out.push(b'{');
    }
    out.push(b'}');
    Json::from_written(out)
}
