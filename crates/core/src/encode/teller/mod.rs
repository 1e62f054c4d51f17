//! Turns told to a client whose protocol has messages, tool calls and runs of its own.
//!
//! Owns what such protocols have in common: what has been shown of each message and call, which part is open, what a
//! snapshot adds to it, and that all is closed before a turn's end is said. Knows no wire format: a [`Voice`] has the
//! words. Invariants: 1. a part's or call's beginning comes before its pieces, its end after them, each once; 2. what is
//! shown of a message is its text, whole, whatever was evicted: what deltas left out is said when the whole comes;
//! 3. nothing of a turn comes before its beginning or after its end; 4. two calls of one turn never share an id.

mod past;
mod wire;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

pub(super) use past::{Past, PastCall};
pub(super) use wire::{Frame, failure, result_text, write_usage};

use super::index::Places;
use super::{Encoder, Opening};
use crate::event::{
    AssistantMessage, Completion, Event, FinishReason, Id, Json, Kind, Payload, RoundStart, Text, ToolCall, ToolCallStart,
    ToolResult, TurnStart, Usage,
};
use crate::reader::{self, Item};
use crate::session::Session;

/// The words of one protocol. Each method appends whole frames.
pub(super) trait Voice: fmt::Debug + Send {
    /// Whether a body holds one turn; see [`Encoder::one_turn`].
    const ONE_TURN: bool;

    fn turn_start(&mut self, turn: &Turn, out: &mut Vec<u8>);
    /// All parts and calls are closed.
    fn turn_end(&mut self, turn: &Turn, completion: &Completion, out: &mut Vec<u8>);
    /// The beginning was not seen: states the conversation up to here. True: what is finished has been said by it, and is
    /// not told again.
    fn restate(&mut self, _turn: &Turn, _past: &Past<'_>, _out: &mut Vec<u8>) -> bool {
        false
    }
    fn round_start(&mut self, turn: &Turn, round: &RoundStart, out: &mut Vec<u8>);
    /// A part's id on the wire.
    fn part_id(part: &Part) -> Text;
    fn part_start(&mut self, part: &Part, out: &mut Vec<u8>);
    fn part_delta(&mut self, part: &Part, text: &str, out: &mut Vec<u8>);
    fn part_end(&mut self, part: &Part, out: &mut Vec<u8>);
    /// All parts of the message that have been shown are withdrawn.
    fn reset(&mut self, message_id: &Id, reason: Option<&str>, out: &mut Vec<u8>);
    fn call_start(&mut self, call: &Call, out: &mut Vec<u8>);
    fn call_delta(&mut self, call: &Call, text: &str, out: &mut Vec<u8>);
    /// The call's arguments are whole, and all of them have been shown where the protocol shows pieces; or others have.
    fn call_end(&mut self, call: &Call, whole: &ToolCall, contradicted: bool, out: &mut Vec<u8>);
    fn call_output(&mut self, call: &Call, text: &str, out: &mut Vec<u8>);
    fn call_result(&mut self, call: &Call, result: &ToolResult, out: &mut Vec<u8>);
    /// Another answer to the same question, whole.
    fn choice(&mut self, message: &AssistantMessage, out: &mut Vec<u8>);
    /// What the turn consumed so far has changed.
    fn usage(&mut self, turn: &Turn, out: &mut Vec<u8>);
    /// Stages, progress, citations, files, warnings, errors, the provider's and users' own events, gaps.
    fn other(&mut self, turn: &Turn, event: &Event, out: &mut Vec<u8>);
}

/// The turn that is told.
#[derive(Debug)]
pub(super) struct Turn {
    /// The session.
    pub(super) session: Id,
    /// Its number; 0 before the first.
    pub(super) number: u32,
    /// The request's own id.
    pub(super) client_id: Option<Text>,
    /// What came with the request beside its input.
    pub(super) metadata: Option<Json>,
    /// Sums over its model calls so far.
    pub(super) usage: Option<Usage>,
    /// Why its last message ended.
    pub(super) finish_reason: Option<FinishReason>,
    /// The calls that wait for the client.
    pub(super) pending: Vec<Text>,
}

impl Turn {
    fn new(session: Id, number: u32, client_id: Option<Text>, metadata: Option<Json>) -> Self {
        Self { session, number, client_id, metadata, usage: None, finish_reason: None, pending: Vec::new() }
    }
}

/// What a part of a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Speech {
    Text,
    Reasoning,
    Refusal,
}

/// A stretch of one kind within a message.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub(super) message_id: Id,
    pub(super) speech: Speech,
    /// Which of the provider's own parts.
    index: u64,
    /// Counts the message's parts of this kind, from 0.
    pub(super) number: u32,
    /// How often the message had been reset.
    pub(super) resets: u32,
    /// Its id on the wire: made once, not per piece.
    pub(super) wire_id: Text,
}

/// A call as it was told.
#[derive(Debug)]
pub(super) struct Call {
    id: Id,
    /// The seq that began it.
    seq: u64,
    /// Its round, the one in which it was whole: ids may come again in another.
    round: u32,
    /// Its id on the wire: its own, unless an earlier call of the turn has that.
    pub(super) wire_id: Text,
    pub(super) name: Text,
    pub(super) kind: Kind,
    pub(super) message_id: Option<Id>,
    /// The arguments that were shown.
    shown: String,
    started: bool,
    ended: bool,
    resulted: bool,
}

/// How much of a message has been shown.
#[derive(Debug)]
struct Message {
    id: Id,
    /// Bytes of text, reasoning, refusal.
    shown: [usize; 3],
    /// Parts of each.
    parts: [u32; 3],
    resets: u32,
    open: Option<Part>,
    done: bool,
    /// One of several answers and not the first: told whole, at its end.
    aside: bool,
}

/// A call's own id, or, where `earlier` calls of the turn have it too, one beside it.
fn wire_id(id: &str, earlier: usize) -> Text {
    if earlier == 0 { Text::from(id) } else { Text::from(format!("{id}.{earlier}")) }
}

/// An encoder that tells turns in a protocol's own words.
#[derive(Debug)]
pub(super) struct Teller<V> {
    voice: V,
    turn: Turn,
    running: bool,
    finished: bool,
    /// The round of the event that is told.
    round: u32,
    /// The seq of the newest event that was told.
    seq: u64,
    /// Whether what came before the stream's first event has left the log.
    trimmed: bool,
    messages: Vec<Message>,
    /// Where each message stands.
    message_index: HashMap<Id, usize>,
    /// Messages of which a part is open.
    open_parts: BTreeSet<usize>,
    calls: Vec<Call>,
    call_index: Places,
}

impl<V: Voice> Teller<V> {
    pub(super) fn new(voice: V) -> Self {
        Self {
            voice,
            turn: Turn::new(Arc::from(""), 0, None, None),
            running: false,
            finished: false,
            round: 0,
            seq: 0,
            trimmed: false,
            messages: Vec::new(),
            message_index: HashMap::new(),
            open_parts: BTreeSet::new(),
            calls: Vec::new(),
            call_index: Places::default(),
        }
    }

    fn begin(&mut self, turn: Turn, out: &mut Vec<u8>) {
        (self.turn, self.running) = (turn, true);
        self.messages.clear();
        self.message_index.clear();
        self.open_parts.clear();
        self.calls.clear();
        self.call_index.clear();
        self.voice.turn_start(&self.turn, out);
    }

    fn end(&mut self, completion: &Completion, out: &mut Vec<u8>) {
        self.close_parts(out);
        for at in 0..self.calls.len() {
            if self.calls[at].started && !self.calls[at].ended {
                self.give_up(at, out);
            }
        }
        if let Some(usage) = &completion.usage
            && let Ok((Payload::Usage(usage), _)) = Payload::from_json("usage", usage.as_str())
        {
            self.turn.usage = Some(*usage);
        }
        let pending = self.calls.iter().filter(|call| call.ended && !call.resulted && call.kind == Kind::Client);
        self.turn.pending = pending.map(|call| call.wire_id.clone()).collect();
        self.voice.turn_end(&self.turn, completion, out);
        self.running = false;
        self.finished = V::ONE_TURN;
    }

    fn event(&mut self, event: &Event, out: &mut Vec<u8>) {
        let turn = event.context.turn;
        self.seq = self.seq.max(event.seq);
        if let Payload::TurnStart(start) = &event.payload {
            let TurnStart { client_id, metadata, .. } = &**start;
            let session = event.context.session.clone().unwrap_or_else(|| "".into());
            let (client_id, metadata) = (client_id.clone(), metadata.clone());
            self.begin(Turn::new(session, turn, client_id, metadata), out);
            return;
        }
        if !self.running || (turn != 0 && turn != self.turn.number) {
            return; // of no turn, or of one that was told to its end
        }
        self.round = event.context.round;
        match &event.payload {
            Payload::TextDelta(delta) => self.piece(&delta.message_id, Speech::Text, 0, &delta.text, out),
            Payload::ReasoningDelta(delta) => {
                self.piece(&delta.message_id, Speech::Reasoning, delta.part.unwrap_or(0), &delta.text, out);
            }
            Payload::RefusalDelta(delta) => self.piece(&delta.message_id, Speech::Refusal, 0, &delta.text, out),
            Payload::ToolCallDelta(delta) => {
                let at = self.call(&delta.call_id, |call| !call.ended);
                self.arguments(at, &delta.text, out);
            }
            Payload::ToolOutputDelta(delta) => {
                let at = self.call(&delta.call_id, |call| !call.resulted);
                self.start_call(at, out);
                self.voice.call_output(&self.calls[at], &delta.text, out);
            }
            Payload::MessageStart(start) => {
                let at = self.message(&start.message_id);
                self.messages[at].aside = start.choice.unwrap_or(0) > 0;
            }
            Payload::MessageReset(reset) => {
                let at = self.message(&reset.message_id);
                self.reset(at, reset.reason.as_deref(), out);
            }
            Payload::AssistantMessage(whole) => self.whole(whole, out),
            Payload::ToolCallStart(start) => self.open_call(start, out),
            Payload::ToolCall(whole) => {
                let at = self.written_call(&whole.call_id);
                self.calls[at].round = self.round;
                self.whole_call(at, whole, out);
            }
            Payload::ToolResult(result) => self.result(result, out),
            Payload::RoundStart(round) => {
                // A part of the last round's that is open still cannot go on in this one.
                self.close_parts(out);
                self.voice.round_start(&self.turn, round, out);
            }
            Payload::Usage(usage) => {
                self.turn.usage.get_or_insert_default().add(usage);
                self.voice.usage(&self.turn, out);
            }
            Payload::Completion(completion) => self.end(completion, out),
            Payload::RoundEnd(_) | Payload::SessionEnd(_) | Payload::Snapshot(_) | Payload::StreamOpen(_) => {}
            _ => self.voice.other(&self.turn, event, out),
        }
    }

    // messages

    fn message(&mut self, id: &Id) -> usize {
        // The current message is almost always the last.
        let last = self.messages.last().filter(|message| message.id == *id).map(|_| self.messages.len() - 1);
        if let Some(at) = last.or_else(|| self.message_index.get(id).copied()) {
            return at;
        }
        self.message_index.insert(id.clone(), self.messages.len());
        let (shown, parts) = ([0; 3], [0; 3]);
        self.messages.push(Message { id: id.clone(), shown, parts, resets: 0, open: None, done: false, aside: false });
        self.messages.len() - 1
    }

    fn piece(&mut self, id: &Id, speech: Speech, index: u64, text: &str, out: &mut Vec<u8>) {
        let at = self.message(id);
        self.say(at, speech, index, text, out);
    }

    fn say(&mut self, at: usize, speech: Speech, index: u64, text: &str, out: &mut Vec<u8>) {
        let message = &self.messages[at];
        if message.aside || message.done || text.is_empty() {
            return;
        }
        let goes_on = message.open.as_ref().is_some_and(|part| part.speech == speech && part.index == index);
        if !goes_on {
            self.close_part(at, out);
            let message = &mut self.messages[at];
            let number = message.parts[speech as usize];
            message.parts[speech as usize] += 1;
            let (message_id, resets) = (message.id.clone(), message.resets);
            let mut part = Part { message_id, speech, index, number, resets, wire_id: Text::default() };
            part.wire_id = V::part_id(&part);
            self.voice.part_start(&part, out);
            message.open = Some(part);
            self.open_parts.insert(at);
        }
        let message = &mut self.messages[at];
        message.shown[speech as usize] += text.len();
        if let Some(part) = &message.open {
            self.voice.part_delta(part, text, out);
        }
    }

    fn close_part(&mut self, at: usize, out: &mut Vec<u8>) {
        if let Some(part) = self.messages[at].open.take() {
            self.open_parts.remove(&at);
            self.voice.part_end(&part, out);
        }
    }

    fn close_parts(&mut self, out: &mut Vec<u8>) {
        while let Some(at) = self.open_parts.first().copied() {
            self.close_part(at, out);
        }
    }

    fn reset(&mut self, at: usize, reason: Option<&str>, out: &mut Vec<u8>) {
        self.close_part(at, out);
        let message = &mut self.messages[at];
        message.resets += 1;
        if message.shown != [0; 3] {
            (message.shown, message.parts) = ([0; 3], [0; 3]);
            self.voice.reset(&message.id, reason, out);
        }
    }

    /// Says of each kind what is not shown yet.
    fn say_rest(&mut self, at: usize, reasoning: &str, text: &str, refusal: &str, out: &mut Vec<u8>) {
        for (speech, whole) in [(Speech::Reasoning, reasoning), (Speech::Text, text), (Speech::Refusal, refusal)] {
            let message = &self.messages[at];
            let index = message.open.as_ref().filter(|part| part.speech == speech).map_or(0, |part| part.index);
            if let Some(rest) = whole.get(message.shown[speech as usize]..) {
                self.say(at, speech, index, rest, out);
            }
        }
    }

    fn whole(&mut self, whole: &AssistantMessage, out: &mut Vec<u8>) {
        let at = self.message(&whole.message_id);
        if whole.choice.unwrap_or(0) > 0 || self.messages[at].aside {
            self.voice.choice(whole, out);
        } else {
            self.say_rest(at, &whole.reasoning, &whole.text, whole.refusal.as_deref().unwrap_or(""), out);
            self.close_part(at, out);
            self.turn.finish_reason = Some(whole.finish_reason);
        }
        self.messages[at].done = true;
    }

    // calls

    /// The newest call of that id that is meant; a new one where there is none.
    fn call(&mut self, id: &Id, meant: impl Fn(&Call) -> bool) -> usize {
        let known = self.newest(id, meant).or_else(|| self.newest(id, |_| true));
        known.unwrap_or_else(|| self.new_call(id))
    }

    /// The newest call of that id that is meant, wherever a snapshot told it.
    fn newest(&self, id: &Id, meant: impl Fn(&Call) -> bool) -> Option<usize> {
        let known = self.call_index.of(id).iter().copied().filter(|at| meant(&self.calls[*at]));
        known.max_by_key(|at| self.calls[*at].round)
    }

    /// The call of that id that is being written: ids may come again in another round.
    fn written_call(&mut self, id: &Id) -> usize {
        let known = self.newest(id, |call| call.round == self.round).or_else(|| self.newest(id, |call| !call.ended));
        known.unwrap_or_else(|| self.new_call(id))
    }

    fn new_call(&mut self, id: &Id) -> usize {
        let earlier = self.call_index.of(id).len();
        self.call_index.put(id, self.calls.len());
        self.calls.push(Call {
            id: id.clone(),
            seq: self.seq,
            round: self.round,
            wire_id: wire_id(id, earlier),
            name: Text::default(),
            kind: Kind::Client,
            message_id: None,
            shown: String::new(),
            started: false,
            ended: false,
            resulted: false,
        });
        self.calls.len() - 1
    }

    fn open_call(&mut self, start: &ToolCallStart, out: &mut Vec<u8>) {
        let at = self.written_call(&start.call_id);
        let call = &mut self.calls[at];
        if !call.started {
            (call.name, call.kind, call.message_id) = (start.name.clone(), start.kind, start.message_id.clone());
            // Without a name it cannot be announced: it waits for its whole.
            if !start.name.is_empty() {
                self.start_call(at, out);
            }
        }
    }

    fn start_call(&mut self, at: usize, out: &mut Vec<u8>) {
        let call = &mut self.calls[at];
        if call.started {
            return;
        }
        call.started = true;
        if call.name.is_empty() {
            call.name = Text::const_new("tool");
        }
        // What its message says after it stands after it.
        if let Some(id) = call.message_id.clone() {
            let message = self.message(&id);
            self.close_part(message, out);
        }
        self.voice.call_start(&self.calls[at], out);
    }

    fn arguments(&mut self, at: usize, text: &str, out: &mut Vec<u8>) {
        let call = &mut self.calls[at];
        if call.ended || text.is_empty() || (!call.started && call.name.is_empty()) {
            return;
        }
        self.start_call(at, out);
        self.calls[at].shown.push_str(text);
        self.voice.call_delta(&self.calls[at], text, out);
    }

    fn whole_call(&mut self, at: usize, whole: &ToolCall, out: &mut Vec<u8>) {
        let call = &mut self.calls[at];
        if call.ended {
            return;
        }
        if !call.started {
            (call.name, call.kind) = (whole.name.clone(), whole.kind);
            call.message_id = whole.message_id.clone().or(call.message_id.take());
        }
        self.start_call(at, out);
        let rest = whole.arguments_raw.strip_prefix(self.calls[at].shown.as_str());
        self.arguments(at, rest.unwrap_or(""), out);
        let call = &mut self.calls[at];
        (call.ended, call.shown) = (true, String::new());
        self.voice.call_end(&self.calls[at], whole, rest.is_none(), out);
    }

    /// Ends a call whose whole is not going to come.
    fn give_up(&mut self, at: usize, out: &mut Vec<u8>) {
        let call = &self.calls[at];
        let whole = ToolCall {
            call_id: call.id.clone(),
            name: call.name.clone(),
            arguments: None,
            arguments_raw: call.shown.as_str().into(),
            arguments_error: Some(Text::const_new("the arguments were cut off")),
            kind: call.kind,
            message_id: call.message_id.clone(),
        };
        self.whole_call(at, &whole, out);
    }

    fn result(&mut self, result: &ToolResult, out: &mut Vec<u8>) {
        // Ids may come again: the result is that of the newest call that has none.
        let waiting = self.newest(&result.call_id, |call| !call.resulted);
        let at = waiting.unwrap_or_else(|| self.new_call(&result.call_id));
        self.give_result(at, result, out);
    }

    fn give_result(&mut self, at: usize, result: &ToolResult, out: &mut Vec<u8>) {
        if !self.calls[at].ended {
            // A result of what nobody called: the protocols want a call.
            let whole = ToolCall {
                call_id: result.call_id.clone(),
                name: result.name.clone().unwrap_or_default(),
                arguments: Some(Json::trusted("{}")),
                arguments_raw: Text::default(),
                arguments_error: None,
                kind: Kind::Client,
                message_id: None,
            };
            self.whole_call(at, &whole, out);
        }
        self.calls[at].resulted = true;
        self.voice.call_result(&self.calls[at], result, out);
    }
}

impl<V: Voice> Encoder for Teller<V> {
    fn wants_state(&self) -> bool {
        true
    }

    fn one_turn(&self) -> bool {
        V::ONE_TURN
    }

    fn finished(&self) -> bool {
        self.finished
    }

    fn open(&mut self, opening: &Opening<'_>, _: &mut Vec<u8>) {
        use reader::Status::{Live, OtherEpoch, Trimmed};
        self.trimmed = matches!(opening.status, Trimmed | OtherEpoch | Live);
    }

    fn item(&mut self, session: &Session, item: &Item, out: &mut Vec<u8>) {
        let event = item.event();
        match &event.payload {
            Payload::Snapshot(snapshot) => {
                if let Some(state) = &snapshot.state {
                    self.snapshot(session, snapshot.head, state, out);
                }
            }
            _ => self.event(event, out),
        }
    }
}
