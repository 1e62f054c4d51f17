//! What a stream's client has missed, told from a `snapshot`'s state.
//!
//! Owns the reading of that state. Invariant: what it tells is what the events would have told, as far as it still matters.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Teller, Turn, Voice, wire_id};
use crate::clock::now_ms;
use crate::event::{
    AssistantMessage, CallRef, Completion, Context, Event, FinishReason, Id, Json, Kind, Origin, Payload, Progress, StageEnd,
    StageStart, Status, Text, ToolCall, ToolResult, Warning,
};
use crate::session::{Session, error_json};

/// A `snapshot`'s state, as far as it is needed here.
#[derive(Debug, Deserialize)]
pub(in crate::encode) struct Past<'a> {
    pub(in crate::encode) turn: u32,
    running: bool,
    client_id: Option<Text>,
    #[serde(borrow)]
    metadata: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(in crate::encode) messages: Vec<PastMessage<'a>>,
    #[serde(borrow)]
    pub(in crate::encode) open_calls: Vec<PastCall<'a>>,
    #[serde(borrow)]
    pub(in crate::encode) other_calls: Vec<PastCall<'a>>,
    #[serde(borrow, default)]
    other_events: Vec<&'a RawValue>,
    progress: BTreeMap<Text, PastStage>,
    dropped: Option<PastDropped>,
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
    #[serde(borrow)]
    completion: Option<&'a RawValue>,
}

/// One message of a snapshot.
#[derive(Debug, Deserialize)]
pub(in crate::encode) struct PastMessage<'a> {
    pub(in crate::encode) role: Text,
    pub(in crate::encode) turn: u32,
    message_id: Text,
    #[serde(borrow)]
    pub(in crate::encode) input: Option<&'a RawValue>,
    #[serde(default)]
    pub(in crate::encode) text: Text,
    #[serde(default)]
    pub(in crate::encode) reasoning: Text,
    #[serde(default)]
    pub(in crate::encode) refusal: Option<Text>,
    #[serde(borrow, default)]
    pub(in crate::encode) tool_calls: Vec<PastCall<'a>>,
    #[serde(borrow, default)]
    citations: Vec<&'a RawValue>,
    #[serde(borrow, default)]
    files: Vec<&'a RawValue>,
    #[serde(default)]
    pub(in crate::encode) choice: Option<u64>,
    #[serde(default)]
    finish_reason: Option<Text>,
    #[serde(default)]
    pub(in crate::encode) resets: u32,
    #[serde(default)]
    pub(in crate::encode) done: bool,
}

impl PastMessage<'_> {
    pub(in crate::encode) fn id(&self) -> Id {
        Arc::from(self.message_id.as_str())
    }
}

/// One call of a snapshot.
#[derive(Debug, Deserialize)]
pub(in crate::encode) struct PastCall<'a> {
    call_id: Text,
    /// Its id on the wire; see [`Call::wire_id`].
    #[serde(skip)]
    pub(in crate::encode) wire_id: Text,
    pub(in crate::encode) name: Text,
    /// The seq that began it: what tells it from others of its id.
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    pub(in crate::encode) turn: u32,
    #[serde(default)]
    round: u32,
    #[serde(default)]
    kind: Option<Text>,
    #[serde(borrow, default)]
    arguments: Option<&'a RawValue>,
    #[serde(default)]
    pub(in crate::encode) arguments_raw: Text,
    #[serde(default)]
    pub(in crate::encode) done: bool,
    #[serde(default)]
    pub(in crate::encode) status: Option<Text>,
    #[serde(borrow, default)]
    output: Option<&'a RawValue>,
    #[serde(default)]
    is_error: bool,
    #[serde(default)]
    output_text: Text,
}

/// A stage of a snapshot, and how far it has come.
#[derive(Debug, Deserialize)]
struct PastStage {
    open: bool,
    status: Option<Text>,
    index: Option<u64>,
    stages: Option<u64>,
    agent: Option<Text>,
    current: Option<f64>,
    total: Option<f64>,
    message: Option<Text>,
    elapsed_s: Option<f64>,
    estimate_s: Option<f64>,
}

/// What a snapshot lacks.
#[derive(Debug, Clone, Copy, Deserialize)]
struct PastDropped {
    messages: u64,
    calls: u64,
    events: u64,
    turn: u32,
}

impl PastStage {
    /// What its events said, as far as it still matters.
    fn payloads(&self, stage: &Text) -> impl Iterator<Item = Payload> {
        let stage: Id = Arc::from(stage.as_str());
        let start = self.open.then(|| StageStart {
            stage: stage.clone(),
            agent: self.agent.clone(),
            index: self.index,
            total: self.stages,
            message: None,
        });
        let progressed = self.current.is_some() || self.total.is_some() || self.message.is_some();
        let progress = progressed.then(|| Progress {
            stage: stage.clone(),
            current: self.current,
            total: self.total,
            message: self.message.clone(),
            agent: self.agent.clone(),
            elapsed_s: self.elapsed_s,
            estimate_s: self.estimate_s,
        });
        let end = self.status.clone().filter(|_| !self.open).map(|status| StageEnd { stage, status, message: None });
        let (start, progress, end) = (start.map(Payload::from), progress.map(Payload::from), end.map(Payload::from));
        start.into_iter().chain(progress).chain(end)
    }
}

impl<'a> Past<'a> {
    /// The newest turn's citations, files and users' own events.
    fn attached(&self) -> Vec<Event> {
        let of_turn = self.messages.iter().filter(|message| message.turn == self.turn);
        let shown = of_turn.flat_map(|message| message.citations.iter().chain(&message.files));
        let mut events: Vec<Event> = shown.chain(&self.other_events).filter_map(|raw| Event::from_json(raw.get()).ok()).collect();
        events.sort_by_key(|event| event.seq);
        events
    }

    fn read(state: &'a Json) -> Option<Self> {
        let mut past: Self = serde_json::from_str(state.as_str()).ok()?;
        let mut seen: Vec<(u32, Text, u64)> = Vec::new();
        past.calls(|call| seen.push((call.turn, call.call_id.clone(), call.seq)));
        seen.sort_unstable();
        seen.dedup();
        past.calls(|call| {
            let same = |(turn, id, seq): &&(u32, Text, u64)| (*turn, id) == (call.turn, &call.call_id) && *seq < call.seq;
            let first = seen.partition_point(|(turn, id, _)| (*turn, id) < (call.turn, &call.call_id));
            call.wire_id = wire_id(&call.call_id, seen[first..].iter().take_while(same).count());
        });
        Some(past)
    }

    fn calls(&mut self, see: impl FnMut(&mut PastCall<'a>)) {
        let named = self.messages.iter_mut().flat_map(|message| &mut message.tool_calls);
        named.chain(&mut self.other_calls).chain(&mut self.open_calls).for_each(see);
    }
}

impl PastCall<'_> {
    fn whole(&self, message_id: Option<&Id>) -> ToolCall {
        let arguments = self.arguments.and_then(|raw| Json::from_raw(raw).ok()).filter(|json| !json.is_null());
        let arguments_error = arguments.is_none().then(|| Text::const_new("not JSON"));
        ToolCall {
            call_id: Arc::from(self.call_id.as_str()),
            name: self.name.clone(),
            arguments,
            arguments_raw: self.arguments_raw.clone(),
            arguments_error,
            kind: self.kind.as_deref().and_then(Kind::parse).unwrap_or(Kind::Client),
            message_id: message_id.cloned(),
        }
    }

    pub(in crate::encode) fn result(&self) -> Option<ToolResult> {
        let status = self.status.clone()?;
        let output = self.output.and_then(|raw| Json::from_raw(raw).ok()).filter(|json| !json.is_null());
        let call_id = Arc::from(self.call_id.as_str());
        Some(ToolResult { call_id, output, is_error: self.is_error, status, name: Some(self.name.clone()) })
    }
}

impl<V: Voice> Teller<V> {
    pub(super) fn snapshot(&mut self, session: &Session, head: u64, state: &Json, out: &mut Vec<u8>) {
        let Some(past) = Past::read(state) else { return };
        if self.running && past.turn > self.turn.number {
            // Its end is not in the log any more.
            let error = error_json("trimmed", "the turn's end has left the log", false);
            let completion = Completion {
                status: Status::Incomplete,
                reason: Some("trimmed".into()),
                usage: None,
                text: Text::default(),
                error: Some(error),
                events: 0,
                subscriber_failures: None,
            };
            self.end(&completion, out);
        }
        if self.finished {
            return;
        }
        let mut told = false;
        // A turn that has ended is told to those who cannot have seen it.
        let missed = self.trimmed && past.turn > self.turn.number && past.completion.is_some();
        if !self.running && (past.running || missed) {
            let metadata = past.metadata.and_then(|raw| Json::from_raw(raw).ok());
            let client_id = past.client_id.clone();
            self.begin(Turn::new(session.id().clone(), past.turn, client_id, metadata), out);
            told = self.voice.restate(&self.turn, &past, out);
        }
        if !self.running {
            return;
        }
        let context = Arc::new(Context::new(Some(session.id().clone()), past.turn, 0, None));
        let made = |payload| Event { seq: 0, time: now_ms(), context: context.clone(), payload, extra: None };
        // Of an earlier turn, only where the conversation is stated is something missing.
        if let Some(PastDropped { messages, calls, events, turn }) = past.dropped
            && (told || turn == past.turn)
        {
            let message = format!("{messages} messages, {calls} tool calls and {events} other events are not kept any more");
            let warning = Warning { code: "history_dropped".into(), message: message.into(), raw: None };
            self.voice.other(&self.turn, &made(warning.into()), out);
        }
        for payload in past.progress.iter().flat_map(|(name, stage)| stage.payloads(name)) {
            self.voice.other(&self.turn, &made(payload), out);
        }
        for message in past.messages.iter().filter(|message| message.turn == past.turn && message.role != "user") {
            self.past_message(message, told && message.done, out);
        }
        for call in past.other_calls.iter().filter(|call| call.turn == past.turn).chain(&past.open_calls) {
            self.past_call(call, None, told && call.status.is_some(), out);
        }
        let seen = self.seq;
        for event in past.attached().iter().filter(|event| event.seq > seen) {
            self.voice.other(&self.turn, event, out);
        }
        self.seq = seen.max(head);
        if let Some(usage) = past.usage
            && let Ok((Payload::Usage(usage), _)) = Payload::from_json("usage", usage.get())
        {
            self.turn.usage = Some(*usage);
            self.voice.usage(&self.turn, out);
        }
        if !past.running
            && let Some(completion) = past.completion
            && let Ok(Event { payload: Payload::Completion(completion), .. }) = Event::from_json(completion.get())
        {
            self.end(&completion, out);
        }
    }

    fn past_message(&mut self, past: &PastMessage<'_>, told: bool, out: &mut Vec<u8>) {
        let at = self.message(&past.id());
        self.messages[at].aside |= past.choice.unwrap_or(0) > 0;
        if self.messages[at].aside && past.done && !self.messages[at].done {
            self.messages[at].done = true;
            self.voice.choice(&past_whole(past), out);
            return;
        }
        if told {
            self.messages[at].done = true;
        } else {
            if past.resets != self.messages[at].resets {
                self.reset(at, None, out);
                self.messages[at].resets = past.resets;
            }
            self.say_rest(at, &past.reasoning, &past.text, past.refusal.as_deref().unwrap_or(""), out);
        }
        let id = past.id();
        for call in &past.tool_calls {
            self.past_call(call, Some(&id), told && call.done, out);
        }
        if past.done && !self.messages[at].done {
            self.close_part(at, out);
            self.messages[at].done = true;
        }
        if past.done {
            self.turn.finish_reason = past.finish_reason.as_deref().and_then(FinishReason::parse);
        }
    }

    fn past_call(&mut self, past: &PastCall<'_>, message_id: Option<&Id>, told: bool, out: &mut Vec<u8>) {
        let whole = past.whole(message_id);
        let known = self.call_index.of(&whole.call_id).iter().copied().find(|at| self.calls[*at].seq == past.seq);
        let at = known.unwrap_or_else(|| self.new_call(&whole.call_id));
        let call = &mut self.calls[at];
        (call.seq, call.round) = (past.seq, past.round);
        if !call.started {
            (call.name, call.kind, call.message_id) = (whole.name.clone(), whole.kind, message_id.cloned());
            call.wire_id.clone_from(&past.wire_id);
        }
        if told {
            (call.started, call.ended, call.resulted) = (true, true, past.status.is_some());
            return;
        }
        if past.done {
            self.whole_call(at, &whole, out);
        } else if let Some(rest) = past.arguments_raw.strip_prefix(call.shown.as_str()) {
            if !past.name.is_empty() {
                self.start_call(at, out);
            }
            self.arguments(at, rest, out);
        }
        if !past.output_text.is_empty() {
            self.voice.call_output(&self.calls[at], &past.output_text, out);
        }
        if let Some(result) = past.result()
            && !self.calls[at].resulted
        {
            self.give_result(at, &result, out);
        }
    }
}

fn past_whole(past: &PastMessage<'_>) -> AssistantMessage {
    let calls = past.tool_calls.iter();
    AssistantMessage {
        message_id: past.id(),
        text: past.text.clone(),
        reasoning: past.reasoning.clone(),
        refusal: past.refusal.clone(),
        tool_calls: calls.map(|call| CallRef { call_id: Arc::from(call.call_id.as_str()), name: call.name.clone() }).collect(),
        finish_reason: past.finish_reason.as_deref().and_then(FinishReason::parse).unwrap_or(FinishReason::Unknown),
        finish_reason_raw: None,
        model: None,
        streamed: false,
        origin: Origin::Provider,
        choice: past.choice,
    }
}
