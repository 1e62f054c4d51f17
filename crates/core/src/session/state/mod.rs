//! What a session's events add up to: messages, calls, stages, usage, the turn's outcome.
//!
//! A pure fold: [`State::apply`] never fails, never refuses and is linear in the event. Knows nothing of readers.
//! Invariants: 1. applying a log from its start gives the same state everywhere; 2. a state and the events after it
//! give the same state as all events; 3. it weighs no more than its limit, but for what is open and the newest answer: what
//! was finished first goes first, and is counted.

mod apply;
mod json;
mod limit;
mod named;

use std::collections::HashMap;
use std::sync::Arc;

pub(crate) use json::error_json;
pub use named::Named;

use crate::event::{Class, Event, FinishReason, Id, Json, Kind, Origin, Payload, Progress, Status, Text, Usage};

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
    pub calls: Named,
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
    pub(super) seq: u64,
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
    /// The seq of that turn's `turn_start`.
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
    /// How many of them are not done.
    open_messages: usize,
    /// Where the calls of an id stand, oldest first: an id may come again in another round.
    call_index: HashMap<Id, Vec<usize>>,
    /// All calls.
    pub calls: Vec<CallState>,
    /// The stages of the newest turn.
    pub stages: Vec<StageState>,
    stage_index: HashMap<Id, usize>,
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
        let newest = |fits: &dyn Fn(&CallState) -> bool| self.of_turn(known, turn).find(|&at| fits(&self.calls[at]));
        newest(&|call| call.round == round).or_else(|| newest(&|call| call.status.is_none()))
    }

    /// The call `id` of exactly this turn and round.
    fn call_of_round(&self, turn: u32, round: u32, id: &str) -> Option<usize> {
        let known = self.call_index.get(id)?;
        self.of_turn(known, turn).find(|&at| self.calls[at].round == round)
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
        self.call_of_round(turn, round, id).or_else(|| self.of_turn(known, turn).find(|at| !self.calls[*at].done))
    }

    /// The call that a result in this turn and round answers: the round's own, or else the newest that waits for one.
    pub fn call_waiting(&self, turn: u32, round: u32, id: &str) -> Option<usize> {
        self.call(turn, round, id)
            .filter(|at| self.calls[*at].status.is_none())
            .or_else(|| self.of_turn(self.call_index.get(id)?, turn).find(|at| self.calls[*at].status.is_none()))
    }

    /// Whether the turn has a call of that id, in whatever round.
    pub fn knows_call(&self, turn: u32, id: &str) -> bool {
        self.call_index.get(id).is_some_and(|known| self.of_turn(known, turn).next().is_some())
    }

    /// The calls of a turn among these, newest first. Turns come one after the other, but for 0, which is of none: those before it
    /// are not looked at, however many there are.
    fn of_turn<'a>(&'a self, known: &'a [usize], turn: u32) -> impl Iterator<Item = usize> + 'a {
        let of = |at: usize| self.calls[at].turn;
        known.iter().rev().copied().take_while(move |&at| of(at) >= turn || of(at) == 0).filter(move |&at| of(at) == turn)
    }

    /// The messages of a turn that are not done, newest first.
    pub(crate) fn open_messages_of(&self, turn: u32) -> impl Iterator<Item = &MessageState> {
        let open = self.messages_of(turn).map(|(_, message)| message).filter(|message| !message.done);
        open.take(self.open_messages) // and no further than the last of them
    }

    /// Where the messages of a turn stand, newest first, the user's among them.
    pub(crate) fn messages_of(&self, turn: u32) -> impl Iterator<Item = (usize, &MessageState)> {
        let messages = self.messages.iter().enumerate().rev();
        messages.take_while(move |(_, it)| it.turn >= turn || it.turn == 0).filter(move |(_, it)| it.turn == turn)
    }

    /// Where the calls of a turn stand, newest first.
    pub(crate) fn calls_of(&self, turn: u32) -> impl Iterator<Item = (usize, &CallState)> {
        let calls = self.calls.iter().enumerate().rev();
        calls.take_while(move |(_, it)| it.turn >= turn || it.turn == 0).filter(move |(_, it)| it.turn == turn)
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

    /// idle, running, completed, failed, cancelled, incomplete or ended.
    pub fn word(&self) -> &'static str {
        match &self.outcome {
            _ if self.running => "running",
            _ if self.ended => "ended",
            Some(outcome) => outcome.status.as_str(),
            None => "idle",
        }
    }

    fn answer_at(&self) -> Option<usize> {
        let answers = |message: &MessageState| message.role != "user" && message.choice.unwrap_or(0) == 0;
        self.messages_of(self.turn).find(|(_, message)| answers(message) && !message.text.is_empty()).map(|(at, _)| at)
    }
}
