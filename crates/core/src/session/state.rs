//! What a session's events add up to: messages, calls, stages, usage, the turn's outcome.
//!
//! A pure fold: [`State::apply`] never fails, never refuses and is linear in the event. Knows nothing of readers.
//! Invariants: 1. applying a log from its start gives the same state everywhere; 2. a state and the events after it
//! give the same state as all events; 3. it weighs no more than its limit, but for what is open and the newest answer: what
//! was finished first goes first, and is counted.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::event::json::{write_f64, write_str, write_u64};
use crate::event::{CallRef, Class, Event, Field, FinishReason, Id, Json, Kind, Origin, Payload, Progress, Status, Text, Usage};

/// A message of the conversation.
#[derive(Debug, Clone)]
pub struct MessageState {
    /// Its turn.
    pub turn: u32,
    /// Its id.
    pub id: Id,
    /// assistant, or user for a turn's input.
    pub role: Text,
    /// The text so far.
    pub text: String,
    /// The reasoning so far.
    pub reasoning: String,
    /// The refusal so far.
    pub refusal: Option<String>,
    /// A user's input, any JSON.
    pub input: Option<Json>,
    /// The calls it makes.
    pub calls: Vec<CallRef>,
    /// Which of several answers it is.
    pub choice: Option<u64>,
    /// The model.
    pub model: Option<Text>,
    /// Whether its `assistant_message` has come.
    pub done: bool,
    /// Why it ended.
    pub finish_reason: Option<FinishReason>,
    /// Where it came from.
    pub origin: Origin,
    /// How many of its deltas have been logged.
    pub deltas: usize,
    /// How often what was shown of it has been withdrawn.
    pub resets: u32,
    /// The seq that opened it.
    seq: u64,
}

/// A tool call.
#[derive(Debug, Clone)]
pub struct CallState {
    /// Its turn.
    pub turn: u32,
    /// Its round, the one in which it was whole: ids may come again in another.
    pub round: u32,
    /// Its id.
    pub id: Id,
    /// The tool.
    pub name: Text,
    /// Who runs it.
    pub kind: Kind,
    /// Its message.
    pub message_id: Option<Id>,
    /// The raw arguments so far.
    pub arguments_raw: String,
    /// The arguments, parsed, once whole.
    pub arguments: Option<Json>,
    /// Whether its `tool_call` has come.
    pub done: bool,
    /// What the running tool printed so far.
    pub output_text: String,
    /// Its result's status, once there.
    pub status: Option<Text>,
    /// Its result.
    pub output: Option<Json>,
    /// Whether the result is an error.
    pub is_error: bool,
    /// How many of its argument deltas have been logged.
    pub deltas: usize,
    /// How many of its output deltas have been logged.
    pub output_deltas: usize,
    /// The seq that opened it.
    seq: u64,
}

/// A citation, a file or a user's own event: what belongs to an answer and is no text of it.
#[derive(Debug, Clone)]
pub struct Attached {
    /// The event, as it was logged.
    pub event: Arc<Event>,
    /// The message that it belongs to: the one it names, or the newest one when it came.
    pub message_id: Option<Id>,
}

/// What has left the state to keep within its limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Dropped {
    /// Messages, the users' among them.
    pub messages: u64,
    /// Tool calls.
    pub calls: u64,
    /// Citations, files, users' own events and stages.
    pub events: u64,
    /// The newest turn that something was dropped of.
    pub turn: u32,
}

/// A stage of the work.
#[derive(Debug, Clone)]
pub struct StageState {
    /// Its name.
    pub stage: Id,
    /// Its turn.
    pub turn: u32,
    /// Whether it runs.
    pub open: bool,
    /// Who works on it.
    pub agent: Option<Text>,
    /// Which of `total` stages it is.
    pub index: Option<u64>,
    /// How many stages there are.
    pub total: Option<u64>,
    /// When it was first spoken of, in Unix milliseconds.
    pub started: u64,
    /// When it ended.
    pub ended: Option<u64>,
    /// Its end's status.
    pub status: Option<Text>,
    /// The latest progress.
    pub progress: Option<Progress>,
}

/// How a turn ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The turn.
    pub turn: u32,
    /// Its status.
    pub status: Status,
    /// The seq of its completion.
    pub seq: u64,
    /// The completion, as JSON.
    pub completion: Json,
}

/// Whether two ids are equal: events of one message mostly share one text, which needs no look.
fn same(one: &str, other: &str) -> bool {
    std::ptr::eq(one, other) || one == other
}

/// The fold.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// The newest turn; 0 before the first.
    pub turn: u32,
    /// The seq of that turn's `turn_start`, and what it says beside the input.
    pub turn_start: u64,
    /// Its request's own id.
    pub client_id: Option<Text>,
    /// Whatever else came with the request.
    pub metadata: Option<Json>,
    /// The newest round of that turn.
    pub round: u32,
    /// Whether the newest turn runs.
    pub running: bool,
    /// Whether a round is open.
    pub round_open: bool,
    /// The conversation.
    pub messages: Vec<MessageState>,
    /// Where each message stands: a turn of thousands would be quadratic without it.
    message_index: HashMap<Id, usize>,
    /// Where the calls of an id stand, oldest first: an id may come again in another round.
    call_index: HashMap<Id, Vec<usize>>,
    /// All calls.
    pub calls: Vec<CallState>,
    /// The stages of the newest turn.
    pub stages: Vec<StageState>,
    /// What the newest turn consumed: sums over its model calls.
    pub usage: Option<Usage>,
    /// A fatal error of the newest turn that no later model call made good: its round and its JSON.
    pub error: Option<(u32, Json)>,
    /// The round whose stream broke off, if no later one made it good.
    pub truncated: Option<u32>,
    /// The round that somebody stopped, if it is the newest.
    pub interrupted: Option<u32>,
    /// How many events of the newest turn have been logged.
    pub events: u64,
    /// The last turn's end.
    pub outcome: Option<Outcome>,
    /// Whether `session_end` has come.
    pub ended: bool,
    /// When the newest turn started, in Unix milliseconds.
    pub started: Option<u64>,
    /// The newest event's time.
    pub updated: Option<u64>,
    /// Citations and files, and the newest turn's users' own events.
    pub attached: Vec<Attached>,
    /// What is not here any more.
    pub dropped: Dropped,
    /// How much it may weigh; none: any.
    max_bytes: Option<usize>,
    /// What it weighed when it was last weighed, and at most what has come since: weighing is linear, so it is done seldom.
    weighed: usize,
    grown: usize,
}

impl State {
    /// Nothing yet, and never much more than `max_bytes`.
    pub fn bounded(max_bytes: usize) -> Self {
        Self { max_bytes: Some(max_bytes), ..Self::default() }
    }

    /// The message `id`, newest first: the one that is being written is the last.
    pub fn message(&self, id: &str) -> Option<usize> {
        match self.messages.last() {
            Some(last) if same(&last.id, id) => Some(self.messages.len() - 1),
            _ => self.message_index.get(id).copied(),
        }
    }

    /// The call `id` of this turn and round, or, where the round has none, the newest one of the turn that has no result yet.
    pub fn call(&self, turn: u32, round: u32, id: &str) -> Option<usize> {
        let known = self.call_index.get(id)?;
        let newest = |fits: &dyn Fn(&CallState) -> bool| {
            known.iter().rev().copied().find(|&at| self.calls[at].turn == turn && fits(&self.calls[at]))
        };
        newest(&|call| call.round == round).or_else(|| newest(&|call| call.status.is_none()))
    }

    /// The call `id` of exactly this turn and round.
    pub fn call_of_round(&self, turn: u32, round: u32, id: &str) -> Option<usize> {
        let known = self.call_index.get(id)?;
        known.iter().rev().copied().find(|&at| self.calls[at].turn == turn && self.calls[at].round == round)
    }

    /// Whether the newest call of that id, of whichever turn, has its result. A call that nobody named does not count.
    pub fn is_answered(&self, id: &str) -> bool {
        let newest = self.call_index.get(id).and_then(|known| known.last()).map(|&at| &self.calls[at]);
        newest.is_some_and(|call| call.status.is_some() && !call.name.is_empty())
    }

    /// The call that a beginning or a whole in this turn and round is of: the round's own, or else the one that is not whole yet.
    /// Where there is none, the id comes anew.
    pub fn call_written(&self, turn: u32, round: u32, id: &str) -> Option<usize> {
        let known = self.call_index.get(id)?;
        let written = |at: &usize| self.calls[*at].turn == turn && !self.calls[*at].done;
        self.call_of_round(turn, round, id).or_else(|| known.iter().rev().copied().find(written))
    }

    /// The call that a result in this turn and round answers: the round's own, or else the newest that waits for one.
    pub fn call_waiting(&self, turn: u32, round: u32, id: &str) -> Option<usize> {
        self.call(turn, round, id).filter(|at| self.calls[*at].status.is_none()).or_else(|| {
            let of_turn = |at: &usize| self.calls[*at].turn == turn && self.calls[*at].status.is_none();
            self.call_index.get(id)?.iter().rev().copied().find(of_turn)
        })
    }

    /// Whether the turn has a call of that id, in whatever round.
    pub fn knows_call(&self, turn: u32, id: &str) -> bool {
        self.call_index.get(id).is_some_and(|known| known.iter().any(|at| self.calls[*at].turn == turn))
    }

    fn add_message(&mut self, message: MessageState) {
        self.message_index.insert(message.id.clone(), self.messages.len());
        self.messages.push(message);
    }

    /// Folds one event in.
    pub fn apply(&mut self, event: &Event) {
        let (turn, round) = (event.context.turn, event.context.round);
        self.updated = Some(event.time);
        if turn == self.turn {
            self.events += 1;
        }
        match &event.payload {
            Payload::TextDelta(delta) => {
                let message = self.open_message(event, &delta.message_id);
                message.text.push_str(&delta.text);
                message.deltas += 1;
                self.grown += delta.text.len();
            }
            Payload::ReasoningDelta(delta) => {
                let message = self.open_message(event, &delta.message_id);
                message.reasoning.push_str(&delta.text);
                message.deltas += 1;
                self.grown += delta.text.len();
            }
            Payload::RefusalDelta(delta) => {
                let message = self.open_message(event, &delta.message_id);
                message.refusal.get_or_insert_default().push_str(&delta.text);
                message.deltas += 1;
                self.grown += delta.text.len();
            }
            Payload::ToolCallDelta(delta) => {
                let call = self.open_call(event, &delta.call_id);
                call.arguments_raw.push_str(&delta.text);
                call.deltas += 1;
                self.grown += delta.text.len();
            }
            Payload::ToolOutputDelta(delta) => {
                let call = self.open_call(event, &delta.call_id);
                call.output_text.push_str(&delta.text);
                call.output_deltas += 1;
                self.grown += delta.text.len();
            }
            Payload::TurnStart(start) => {
                (self.turn, self.round, self.running, self.round_open, self.events) = (turn, 0, true, false, 1);
                (self.usage, self.error, self.truncated, self.interrupted) = (None, None, None, None);
                self.turn_start = event.seq;
                self.client_id.clone_from(&start.client_id);
                self.metadata.clone_from(&start.metadata);
                self.stages.clear();
                self.attached.retain(|attached| !matches!(attached.event.payload, Payload::Custom(_)));
                self.started = Some(event.time);
                if start.input.is_some() {
                    let mut message = Self::new_message(event, format!("input-{turn}").into());
                    message.role = "user".into();
                    message.done = true;
                    message.input.clone_from(&start.input);
                    self.add_message(message);
                }
            }
            Payload::RoundStart(_) => {
                self.round = round;
                self.round_open = true;
            }
            Payload::RoundEnd(end) => {
                self.round_open = false;
                self.interrupted = (end.finish_reason == Some(FinishReason::Cancelled)).then_some(round);
                if end.finish_reason != Some(FinishReason::Error) {
                    self.error = self.error.take().filter(|(failed, _)| *failed >= round);
                    self.truncated = self.truncated.filter(|failed| *failed >= round);
                }
            }
            Payload::MessageStart(start) => {
                let message = self.open_message(event, &start.message_id);
                message.role.clone_from(&start.role);
                message.model.clone_from(&start.model);
                message.choice = start.choice;
            }
            Payload::MessageReset(reset) => {
                let message = self.open_message(event, &reset.message_id);
                message.text.clear();
                message.reasoning.clear();
                message.refusal = None;
                message.resets += 1;
                // What contradicts is said anew and its calls stand; what is withdrawn goes with its calls.
                if reset.reason.as_deref() != Some("contradicted") {
                    message.calls.clear();
                }
            }
            Payload::AssistantMessage(whole) => {
                let message = self.open_message(event, &whole.message_id);
                message.text = whole.text.to_string();
                message.reasoning = whole.reasoning.to_string();
                message.refusal = whole.refusal.as_ref().map(ToString::to_string);
                message.done = true;
                message.finish_reason = Some(whole.finish_reason);
                message.origin = whole.origin;
                message.choice = whole.choice.or(message.choice);
                if whole.model.is_some() {
                    message.model.clone_from(&whole.model);
                }
                for call in &whole.tool_calls {
                    if !message.calls.contains(call) {
                        message.calls.push(call.clone());
                    }
                }
            }
            Payload::ToolCallStart(start) => {
                let at = self.call_written(turn, round, &start.call_id);
                let call = self.call_at(at, event, &start.call_id);
                call.name.clone_from(&start.name);
                call.kind = start.kind;
                call.message_id.clone_from(&start.message_id);
                // A message names the calls that wait for the agent, as its provider does.
                if start.kind == Kind::Client {
                    self.refer(start.message_id.as_ref(), &start.call_id, &start.name);
                }
            }
            Payload::ToolCall(whole) => {
                let at = self.call_written(turn, round, &whole.call_id);
                let call = self.call_at(at, event, &whole.call_id);
                call.round = round;
                call.name.clone_from(&whole.name);
                call.kind = whole.kind;
                call.arguments_raw = whole.arguments_raw.to_string();
                call.arguments.clone_from(&whole.arguments);
                call.done = true;
                if whole.message_id.is_some() {
                    call.message_id.clone_from(&whole.message_id);
                }
            }
            Payload::ToolResult(result) => {
                let at = self.call_waiting(turn, round, &result.call_id);
                let call = self.call_at(at, event, &result.call_id);
                call.status = Some(result.status.clone());
                call.output.clone_from(&result.output);
                call.is_error = result.is_error;
                call.output_text = String::new();
            }
            Payload::StageStart(start) => {
                let stage = self.stage(turn, &start.stage, event.time);
                (stage.open, stage.status) = (true, None);
                (stage.started, stage.ended) = (event.time, None);
                (stage.agent, stage.index, stage.total) = (start.agent.clone(), start.index, start.total);
            }
            Payload::StageEnd(end) => {
                let stage = self.stage(turn, &end.stage, event.time);
                (stage.open, stage.status) = (false, Some(end.status.clone()));
                stage.ended = Some(event.time);
            }
            Payload::Progress(progress) => self.stage(turn, &progress.stage, event.time).progress = Some((**progress).clone()),
            Payload::Usage(usage) => add_usage(self.usage.get_or_insert_with(empty_usage), usage),
            Payload::Error(error) => {
                if error.fatal {
                    self.error = Some((round, error_json(&error.code, &error.message, error.retryable)));
                } else if error.code == "stream_truncated" {
                    self.truncated = Some(round);
                }
            }
            Payload::Completion(completion) => {
                self.running = false;
                self.round_open = false;
                let json = Json::parse(&event.to_json()).unwrap_or_else(|_| Json::string(""));
                self.outcome = Some(Outcome { turn, status: completion.status, seq: event.seq, completion: json });
            }
            Payload::SessionEnd(_) => self.ended = true,
            Payload::Citation(citation) => self.attach(event, citation.message_id.as_ref()),
            Payload::File(file) => self.attach(event, file.message_id.as_ref()),
            Payload::Custom(_) => self.attached.push(Attached { event: Arc::new(event.clone()), message_id: None }),
            _ => {}
        }
        if event.payload.class() != Class::Delta {
            self.grown += ENTRY_BYTES + event.size();
            // Where nobody who applies holds an index into the state.
            if matches!(
                event.payload,
                Payload::TurnStart(_)
                    | Payload::RoundStart(_)
                    | Payload::AssistantMessage(_)
                    | Payload::ToolResult(_)
                    | Payload::Citation(_)
                    | Payload::File(_)
                    | Payload::Custom(_)
                    | Payload::Completion(_)
            ) {
                self.fit();
            }
        }
    }

    fn attach(&mut self, event: &Event, message_id: Option<&Id>) {
        let newest = || self.messages.last().filter(|last| last.turn == event.context.turn && last.role != "user");
        let message_id = message_id.cloned().or_else(|| newest().map(|last| last.id.clone()));
        self.attached.push(Attached { event: Arc::new(event.clone()), message_id });
    }

    // its limit

    /// Drops, oldest first, what is finished, where there is too much: users' own events, then messages with their calls,
    /// citations and files, then stages. Down to three quarters, so that it is seldom done.
    fn fit(&mut self) {
        let Some(max) = self.max_bytes else { return };
        if self.grown <= max.saturating_sub(self.weighed).max(max / 8) {
            return;
        }
        let target = max / 4 * 3;
        self.weighed = self.weigh();
        self.grown = 0;
        if self.weighed > target {
            self.drop_customs(target);
        }
        if self.weighed > target {
            self.drop_oldest(target);
        }
        if self.weighed > target {
            let mut excess = self.weighed - target;
            let before = self.stages.len();
            self.stages.retain(|stage| {
                let keep = stage.open || excess == 0;
                excess = excess.saturating_sub(if keep { 0 } else { ENTRY_BYTES + stage.stage.len() });
                keep
            });
            self.count_dropped(0, 0, before - self.stages.len(), self.turn);
        }
    }

    fn weigh(&self) -> usize {
        let messages = self.messages.iter().map(MessageState::weight).sum::<usize>();
        let calls = self.calls.iter().map(CallState::weight).sum::<usize>();
        let attached = self.attached.iter().map(|attached| attached.event.size()).sum::<usize>();
        messages + calls + attached + self.stages.iter().map(|stage| ENTRY_BYTES + stage.stage.len()).sum::<usize>()
    }

    fn count_dropped(&mut self, messages: usize, calls: usize, events: usize, turn: u32) {
        if messages + calls + events > 0 {
            self.dropped.messages += messages as u64;
            self.dropped.calls += calls as u64;
            self.dropped.events += events as u64;
            self.dropped.turn = self.dropped.turn.max(turn);
        }
    }

    fn drop_customs(&mut self, target: usize) {
        let (mut weight, before) = (self.weighed, self.attached.len());
        self.attached.retain(|attached| {
            let keep = weight <= target || !matches!(attached.event.payload, Payload::Custom(_));
            weight -= if keep { 0 } else { attached.event.size() };
            keep
        });
        self.weighed = weight;
        self.count_dropped(0, 0, before - self.attached.len(), self.turn);
    }

    fn drop_oldest(&mut self, target: usize) {
        let turn = self.turn;
        let waits = |call: &CallState| call.turn == turn && !(call.done && call.status.is_some());
        let waiting: HashSet<&Id> =
            self.calls.iter().filter(|call| waits(call)).filter_map(|call| call.message_id.as_ref()).collect();
        let answer = self.answer_at();
        let stays = |at: usize, message: &MessageState| {
            let newest = at + 1 == self.messages.len() || Some(at) == answer || (message.turn == turn && message.role == "user");
            newest || !message.done || waiting.contains(&message.id)
        };
        let mut finished: Vec<(u64, usize)> = Vec::new();
        let messages = self.messages.iter().enumerate().filter(|(at, message)| !stays(*at, message));
        finished.extend(messages.map(|(_, message)| (message.seq, message.weight())));
        finished.extend(self.calls.iter().filter(|call| !waits(call)).map(|call| (call.seq, call.weight())));
        finished.extend(self.attached.iter().map(|attached| (attached.event.seq, attached.event.size())));
        finished.sort_unstable();
        let mut weight = self.weighed;
        let last = finished.iter().find(|(_, bytes)| {
            weight -= bytes;
            weight <= target
        });
        let Some(last) = last.or(finished.last()).map(|(seq, _)| *seq) else { return };
        let gone: HashSet<Id> = (self.messages.iter().enumerate())
            .filter(|(at, message)| message.seq <= last && !stays(*at, message))
            .map(|(_, message)| message.id.clone())
            .collect();
        let newest = |turns: &mut dyn Iterator<Item = u32>| turns.max().unwrap_or(0);
        let of = newest(&mut self.messages.iter().filter(|message| gone.contains(&message.id)).map(|message| message.turn));
        let owned = |message: Option<&Id>| message.is_some_and(|id| gone.contains(id));
        let (calls, attached) = (self.calls.len(), self.attached.len());
        self.calls.retain(|call| waits(call) || !(call.seq <= last || owned(call.message_id.as_ref())));
        self.attached.retain(|attached| attached.event.seq > last && !owned(attached.message_id.as_ref()));
        self.messages.retain(|message| !gone.contains(&message.id));
        self.message_index = self.messages.iter().enumerate().map(|(at, message)| (message.id.clone(), at)).collect();
        self.call_index.clear();
        for (at, call) in self.calls.iter().enumerate() {
            self.call_index.entry(call.id.clone()).or_default().push(at);
        }
        self.count_dropped(gone.len(), calls - self.calls.len(), attached - self.attached.len(), of);
        self.weighed = self.weigh();
    }

    fn new_message(event: &Event, id: Id) -> MessageState {
        MessageState {
            turn: event.context.turn,
            id,
            role: "assistant".into(),
            text: String::new(),
            reasoning: String::new(),
            refusal: None,
            input: None,
            calls: Vec::new(),
            choice: None,
            model: None,
            done: false,
            finish_reason: None,
            origin: Origin::Provider,
            deltas: 0,
            resets: 0,
            seq: event.seq,
        }
    }

    fn open_message(&mut self, event: &Event, id: &Id) -> &mut MessageState {
        let index = self.message(id).unwrap_or_else(|| {
            self.add_message(Self::new_message(event, id.clone()));
            self.messages.len() - 1
        });
        &mut self.messages[index]
    }

    fn open_call(&mut self, event: &Event, id: &Id) -> &mut CallState {
        self.call_at(self.call(event.context.turn, event.context.round, id), event, id)
    }

    /// That call, or a new one of the event's round.
    fn call_at(&mut self, at: Option<usize>, event: &Event, id: &Id) -> &mut CallState {
        let (turn, round) = (event.context.turn, event.context.round);
        let index = at.unwrap_or_else(|| {
            self.call_index.entry(id.clone()).or_default().push(self.calls.len());
            self.calls.push(CallState {
                turn,
                round,
                id: id.clone(),
                name: Text::default(),
                kind: Kind::Client,
                message_id: None,
                arguments_raw: String::new(),
                arguments: None,
                done: false,
                output_text: String::new(),
                status: None,
                output: None,
                is_error: false,
                deltas: 0,
                output_deltas: 0,
                seq: event.seq,
            });
            self.calls.len() - 1
        });
        &mut self.calls[index]
    }

    fn refer(&mut self, message: Option<&Id>, call_id: &Id, name: &Text) {
        let Some(index) = message.and_then(|id| self.message(id)) else { return };
        let calls = &mut self.messages[index].calls;
        if !calls.iter().any(|call| call.call_id == *call_id) {
            calls.push(CallRef { call_id: call_id.clone(), name: name.clone() });
        }
    }

    fn stage(&mut self, turn: u32, name: &Id, time: u64) -> &mut StageState {
        let index = self.stages.iter().position(|stage| stage.stage == *name).unwrap_or_else(|| {
            self.stages.push(StageState {
                stage: name.clone(),
                turn,
                open: false,
                agent: None,
                index: None,
                total: None,
                started: time,
                ended: None,
                status: None,
                progress: None,
            });
            self.stages.len() - 1
        });
        &mut self.stages[index]
    }

    /// Whether a delta's final event has come, so that the log may let the delta go.
    pub fn covers(&self, event: &Event) -> bool {
        debug_assert_eq!(event.payload.class(), Class::Delta);
        let (turn, round) = (event.context.turn, event.context.round);
        match &event.payload {
            Payload::TextDelta(delta) => self.message(&delta.message_id).is_some_and(|at| self.messages[at].done),
            Payload::ReasoningDelta(delta) => self.message(&delta.message_id).is_some_and(|at| self.messages[at].done),
            Payload::RefusalDelta(delta) => self.message(&delta.message_id).is_some_and(|at| self.messages[at].done),
            Payload::ToolCallDelta(delta) => self.call(turn, round, &delta.call_id).is_some_and(|at| self.calls[at].done),
            Payload::ToolOutputDelta(delta) => {
                self.call(turn, round, &delta.call_id).is_some_and(|at| self.calls[at].status.is_some())
            }
            _ => false,
        }
    }

    /// The text that answers the newest turn: its last message that says something, of the first choice.
    pub fn answer(&self) -> &str {
        self.answer_at().map_or("", |at| self.messages[at].text.as_str())
    }

    fn answer_at(&self) -> Option<usize> {
        self.messages.iter().rposition(|message| {
            let of_turn = message.turn == self.turn && message.role != "user" && message.choice.unwrap_or(0) == 0;
            of_turn && !message.text.is_empty()
        })
    }

    /// The usage of the newest turn, as JSON.
    pub fn usage_json(&self) -> Option<Json> {
        let usage = self.usage.as_ref()?;
        let mut out = Vec::new();
        for (name, count) in [
            ("input_tokens", usage.input_tokens),
            ("output_tokens", usage.output_tokens),
            ("total_tokens", usage.total_tokens),
            ("cache_read_tokens", usage.cache_read_tokens),
            ("cache_write_tokens", usage.cache_write_tokens),
            ("reasoning_tokens", usage.reasoning_tokens),
            ("audio_input_tokens", usage.audio_input_tokens),
            ("audio_output_tokens", usage.audio_output_tokens),
        ] {
            if let Some(count) = count {
                key(&mut out, name);
                write_u64(&mut out, count);
            }
        }
        Some(object(out))
    }

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
    fn calls_of(&self, message: &MessageState, call: &CallRef) -> Vec<usize> {
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
            let known = self.calls_of(message, call);
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
        let named: HashSet<usize> = named.flat_map(|(message, call)| self.calls_of(message, call)).collect();
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

/// What a message, a call or a stage weighs beside its texts, its places in the indexes among it.
const ENTRY_BYTES: usize = 384;

impl MessageState {
    fn weight(&self) -> usize {
        let said = self.text.len() + self.reasoning.len() + self.refusal.as_ref().map_or(0, String::len);
        let input = self.input.as_ref().map_or(0, |input| input.as_str().len());
        let calls = self.calls.iter().map(|call| size_of::<CallRef>() + call.call_id.len() + call.name.len()).sum::<usize>();
        ENTRY_BYTES + said + input + calls + self.id.len()
    }
}

impl CallState {
    fn weight(&self) -> usize {
        let json = |json: &Option<Json>| json.as_ref().map_or(0, |json| json.as_str().len());
        let texts = self.arguments_raw.len() + self.output_text.len() + json(&self.arguments) + json(&self.output);
        ENTRY_BYTES + texts + self.id.len() + self.name.len()
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

/// Nothing said yet.
pub(crate) fn empty_usage() -> Usage {
    Usage {
        input_tokens: None,
        output_tokens: None,
        total_tokens: None,
        cache_read_tokens: None,
        cache_write_tokens: None,
        reasoning_tokens: None,
        audio_input_tokens: None,
        audio_output_tokens: None,
        raw: None,
    }
}

/// Sums across responses; what nobody said stays unsaid.
pub(crate) fn add_usage(sum: &mut Usage, usage: &Usage) {
    for (sum, more) in [
        (&mut sum.input_tokens, usage.input_tokens),
        (&mut sum.output_tokens, usage.output_tokens),
        (&mut sum.total_tokens, usage.total_tokens),
        (&mut sum.cache_read_tokens, usage.cache_read_tokens),
        (&mut sum.cache_write_tokens, usage.cache_write_tokens),
        (&mut sum.reasoning_tokens, usage.reasoning_tokens),
        (&mut sum.audio_input_tokens, usage.audio_input_tokens),
        (&mut sum.audio_output_tokens, usage.audio_output_tokens),
    ] {
        if let Some(more) = more {
            *sum = Some(sum.unwrap_or(0).saturating_add(more));
        }
    }
}
