//! What every provider's state machine builds on: messages, tool calls, usage and the end, put together piece by piece.
//!
//! Owns the order of events inside one model call and their closing. Knows no wire format.
//! Invariants: 1. nothing is emitted for a message before its `message_start`, for a call before its
//! `tool_call_start`; 2. a name that never came means no call, and a warning; 3. `finish` leaves nothing open;
//! 4. an error beats a finish, whichever came first; 5. each step costs its own size, however much is open; 6. nothing
//! follows its own end: what a provider says out of order is repaired and said ([`DISORDER`]).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write as _;
use std::sync::Arc;

use serde_json::value::RawValue;

use super::echo::{Heard, Piece};
use super::halves::{Halves, Of};
use super::text_tools::{Said, TextTools};
use crate::event::json::write_str;
use crate::event::{
    AssistantMessage, CallRef, Citation, Error, File, FinishReason, Id, Json, Kind, MessageReset, MessageStart, Origin, Payload,
    Progress, ProviderEvent, ReasoningDelta, RefusalDelta, RoundEnd, RoundStart, StageEnd, StageStart, Text, TextDelta, ToolCall,
    ToolCallDelta, ToolCallStart, ToolOutputDelta, ToolResult, Usage, Warning,
};

/// Token counts in our words: totals include their cached and reasoning parts. `None` = not said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UsageCounts {
    /// All input tokens, cached ones included.
    pub input: Option<u64>,
    /// All output tokens, reasoning included.
    pub output: Option<u64>,
    /// The provider's own total; input + output where it says none.
    pub total: Option<u64>,
    /// Input read from a cache.
    pub cache_read: Option<u64>,
    /// Input written to a cache.
    pub cache_write: Option<u64>,
    /// Output spent on reasoning.
    pub reasoning: Option<u64>,
    /// Input that was audio.
    pub audio_input: Option<u64>,
    /// Output that was audio.
    pub audio_output: Option<u64>,
}

impl UsageCounts {
    /// Last value wins, field by field.
    fn merge(&mut self, newer: Self) {
        for (mine, newer) in [
            (&mut self.input, newer.input),
            (&mut self.output, newer.output),
            (&mut self.total, newer.total),
            (&mut self.cache_read, newer.cache_read),
            (&mut self.cache_write, newer.cache_write),
            (&mut self.reasoning, newer.reasoning),
            (&mut self.audio_input, newer.audio_input),
            (&mut self.audio_output, newer.audio_output),
        ] {
            *mine = newer.or(*mine);
        }
    }
}

/// The codes of warnings about the order of what came, each an error to a strict driver.
///
/// - `late_delta`: a piece of a message after its end. Before the message went out whole it still counts; after, it is
///   dropped. One warning a message.
/// - `stray_arguments`: a piece of a call's arguments that is not open, dropped.
/// - `continued_input`: pieces of a call's arguments go on from the input of its start, so that neither is whole. The call is
///   flagged.
/// - `result_without_call`: a call with the result's id is put before it.
/// - `second_result`: a call answered twice; the first result stands.
/// - `second_finish`: another finish reason for a message that had one; the last stands until the message has gone out.
/// - `second_round_end`: an end after the end, ignored.
pub const DISORDER: [&str; 7] = [
    "late_delta",
    "stray_arguments",
    "continued_input",
    "result_without_call",
    "second_result",
    "second_finish",
    "second_round_end",
];

/// Stands for the message of a call that no message makes.
pub(super) const NO_MESSAGE: u64 = u64::MAX;

/// The key of a call that stood in the text: it ends where it begins, so one is enough.
const TEXT_CALL: u64 = u64::MAX;

/// A message under way. `key` is what the provider's format tells messages apart by: a choice or an item index.
struct Message {
    key: u64,
    id: Id,
    choice: Option<u64>,
    text: String,
    reasoning: String,
    reasoning_part: Option<u64>,
    refusal: Option<String>,
    calls: Vec<CallRef>,
    finish: Option<(FinishReason, Text)>,
    streamed: bool,
    life: Life,
    /// Looks for calls in the text, where that is wanted: `text` is then what is left of it.
    tools: Option<Box<TextTools>>,
}

impl Message {
    /// The text as the provider has said it so far.
    fn said(&self) -> &str {
        self.tools.as_ref().map_or(&self.text, |tools| tools.raw())
    }

    fn is_closed(&self) -> bool {
        matches!(self.life, Life::Closed | Life::Gone)
    }
}

/// How far a message has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    /// Pieces are welcome.
    Open,
    /// The provider has said that there are no more.
    Finished,
    /// A piece came all the same, and that was said.
    Late,
    /// It has gone out whole.
    Closed,
    /// A piece came even so, and that was said.
    Gone,
}

/// A tool call under way.
struct Call {
    key: u64,
    message: u64,
    /// Blank until the provider gives one; minted at the start event where it never does.
    id: Id,
    name: String,
    kind: Kind,
    arguments: String,
    /// How much of `arguments` has gone out as deltas.
    sent: usize,
    started: bool,
    closed: bool,
    /// The arguments are text, not JSON.
    free_text: bool,
}

/// How much of a call has gone out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// Its start; where it stands in `calls`.
    Start(usize),
    /// Its `tool_call`.
    Whole,
    /// Its `tool_result`.
    Result,
}

/// What has been said of the stream's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    /// Nothing.
    Open,
    /// A finish reason or an error.
    Said,
    /// That there is no more.
    Done,
}

/// What marks of a chat template in the text are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Marks {
    Text,
    Calls,
}

/// How a call's arguments ended.
#[derive(Clone, Copy)]
enum CallEnd {
    /// As the provider meant them.
    Whole,
    /// With the stream, in the middle.
    Cut,
    /// Without their beginning, which the start said in another way.
    Continued,
    /// Taken back.
    Withdrawn,
}

/// Puts events together. Made by the driver, handed to a provider with each frame.
pub struct Assembler {
    out: Vec<Payload>,
    id_prefix: Box<str>,
    minted: u64,
    provider: &'static str,
    marks: Marks,
    model: Option<Text>,
    round_open: bool,
    /// The provider's own turn, where it has turns.
    stage: Option<Id>,
    messages: Vec<Message>,
    /// Where each key's message stands.
    message_index: HashMap<u64, usize>,
    /// The ids of all messages there have been.
    message_ids: HashSet<Id>,
    calls: Vec<Call>,
    /// The ids of the round's calls.
    call_ids: HashSet<Id>,
    /// Where each key's open call stands.
    open_calls: HashMap<u64, usize>,
    /// How far every call has come, also those of earlier rounds.
    progress: HashMap<Id, Told>,
    /// The newest code of [`DISORDER`].
    disorder: Option<&'static str>,
    /// Something came after the last round's end, and that was said.
    late: bool,
    usage: UsageCounts,
    usage_raw: Option<BTreeMap<String, Json>>,
    /// The last whole count, not yet merged into `usage_raw`: some providers send one with every chunk.
    usage_snapshot: Option<Box<RawValue>>,
    error: bool,
    end: End,
    unknown: Option<String>,
    heard: Option<Heard>,
    /// The provider cuts characters in two.
    halves: Option<Box<Halves>>,
}

impl Assembler {
    /// `id_prefix` makes minted ids unique where several streams meet in one log.
    pub fn new(provider: &'static str, id_prefix: &str) -> Self {
        Self {
            out: Vec::new(),
            id_prefix: id_prefix.into(),
            minted: 0,
            provider,
            marks: Marks::Text,
            model: None,
            round_open: false,
            stage: None,
            messages: Vec::new(),
            message_index: HashMap::new(),
            message_ids: HashSet::new(),
            calls: Vec::new(),
            call_ids: HashSet::new(),
            open_calls: HashMap::new(),
            progress: HashMap::new(),
            disorder: None,
            late: false,
            usage: UsageCounts::default(),
            usage_raw: None,
            usage_snapshot: None,
            error: false,
            end: End::Open,
            unknown: None,
            heard: None,
            halves: None,
        }
    }

    /// Names the provider, where it was not known from the start.
    pub fn set_provider(&mut self, provider: &'static str) {
        self.provider = provider;
    }

    /// From now on, calls that stand in the text of new messages are calls.
    pub(super) fn read_text_tools(&mut self) {
        self.marks = Marks::Calls;
    }

    /// Says that the frame being read held `text`, borrowed from it, as one `piece` and nothing else: another frame that
    /// differs in that string alone may be taken without being read. Said after the piece itself.
    pub fn echo(&mut self, piece: Piece, text: &str) {
        // An empty piece proves nothing: where a longer one may not stand, it passes.
        if !text.is_empty() {
            self.heard = Some(Heard { piece, address: text.as_ptr() as usize, length: text.len() });
        }
    }

    pub(super) fn take_heard(&mut self) -> Option<Heard> {
        self.heard.take()
    }

    /// Says one piece again.
    pub(super) fn say(&mut self, piece: Piece, text: &str) {
        match piece {
            Piece::Text(key) => self.text(key, text),
            Piece::Reasoning(key, part) => self.reasoning(key, part, text),
            Piece::Arguments(key) => self.arguments(key, text),
        }
    }

    /// From now on, pieces may begin and end inside a character.
    pub(super) fn expect_halves(&mut self) {
        self.halves.get_or_insert_default();
    }

    /// The piece with its characters whole; `joined` keeps it where it had to be made.
    #[inline] // a delta's way: the borrow that a `Cow` was cost 3 % of it
    fn whole<'a>(&mut self, of: Of, piece: &'a str, joined: &'a mut String) -> &'a str {
        match &mut self.halves {
            None => piece,
            Some(halves) => {
                *joined = halves.join(of, piece).into_owned();
                joined
            }
        }
    }

    /// No more of these texts will come that could bring a second half: a first one that waits is a character nobody knows.
    #[cold]
    fn end_halves(&mut self, message: usize) {
        let Some(halves) = &mut self.halves else { return };
        let Message { key, id, text, reasoning, refusal, .. } = &mut self.messages[message];
        let (message_id, lost) = (id.clone(), Text::from("\u{fffd}"));
        if halves.end(Of::Text(*key)) {
            text.push('\u{fffd}');
            self.out.push(TextDelta { message_id: message_id.clone(), text: lost.clone() }.into());
        }
        if halves.end(Of::Reasoning(*key)) {
            reasoning.push('\u{fffd}');
            self.out.push(ReasoningDelta { message_id: message_id.clone(), text: lost.clone(), part: None }.into());
        }
        if halves.end(Of::Refusal(*key)) {
            refusal.get_or_insert_default().push('\u{fffd}');
            self.out.push(RefusalDelta { message_id, text: lost }.into());
        }
    }

    /// Takes what has been put together since the last call.
    pub fn drain(&mut self) -> std::vec::Drain<'_, Payload> {
        self.out.drain(..)
    }

    /// What waits to be drained.
    pub fn pending(&mut self) -> &mut Vec<Payload> {
        &mut self.out
    }

    fn mint(&mut self, kind: &str) -> Id {
        self.minted += 1;
        Arc::from(format!("{kind}-{}{}", self.id_prefix, self.minted))
    }

    // --- rounds ---------------------------------------------------------------------------------------------------

    /// The model that answers. Said before the first content, it stands in `round_start` too; said again (a provider that
    /// changes models on the way), it stands in the messages that end after it.
    pub fn model(&mut self, model: &str) {
        if !model.is_empty() && self.model.as_deref() != Some(model) {
            self.model = Some(model.into());
        }
    }

    /// A model call begins. Called by [`Self::open`] and friends where the provider has no such event of its own;
    /// a second call while one is open does nothing.
    pub fn round_start(&mut self) {
        if !self.round_open {
            self.round_open = true;
            // The end of the round before is not this one's.
            self.end = if self.error { End::Said } else { End::Open };
            self.late = false;
            self.out.push(RoundStart { model: self.model.clone(), provider: Some(self.provider.into()) }.into());
        }
    }

    /// The model call has ended: closes its messages and calls, says its usage, ends the round.
    pub fn round_end(&mut self) {
        self.round_end_as(None);
    }

    /// The same, where the provider says why the call as a whole ended, whatever its messages said.
    pub fn round_end_as(&mut self, whole: Option<FinishReason>) {
        if self.is_over() {
            self.disorder("second_round_end", "the end was said again after the end");
        }
        self.close_round(whole);
    }

    /// Whether the provider has said that there is no more, and nothing has begun since.
    pub fn is_over(&self) -> bool {
        self.end == End::Done && !self.round_open
    }

    fn close_round(&mut self, whole: Option<FinishReason>) {
        self.close_calls();
        self.flush_usage();
        let mut reason = None;
        for index in 0..self.messages.len() {
            self.close_at(index);
            reason = reason.or(self.messages[index].finish.as_ref().map(|finish| finish.0));
        }
        self.messages.clear();
        self.message_index.clear();
        self.calls.clear();
        self.call_ids.clear();
        self.open_calls.clear();
        if std::mem::take(&mut self.round_open) {
            let finish_reason = if self.error { Some(FinishReason::Error) } else { whole.or(reason) };
            self.out.push(RoundEnd { finish_reason }.into());
        }
    }

    /// A turn of the provider's own begins, of one or more model calls: a stage of the work. What failed before it is over.
    pub fn stage_start(&mut self, stage: &str, agent: &str) {
        self.stage_end("incomplete");
        self.error = false;
        let stage: Id = Arc::from(stage);
        self.stage = Some(stage.clone());
        self.out.push(StageStart { stage, agent: Some(agent.into()), index: None, total: None, message: None }.into());
    }

    /// The provider's own turn has ended: so does its round.
    pub fn stage_end(&mut self, status: &str) {
        if let Some(stage) = self.stage.take() {
            self.close_round(None);
            self.out.push(StageEnd { stage, status: status.into(), message: None }.into());
        }
    }

    // --- messages -------------------------------------------------------------------------------------------------

    /// Where the message `key` stands in `messages`, opened if it is new; none after the end.
    fn at(&mut self, key: u64) -> Option<usize> {
        if let Some(index) = self.find(key) {
            return Some(index);
        }
        self.open(key, "", None);
        self.find(key)
    }

    /// The same, for a piece of it: none where it may have no more.
    fn at_piece(&mut self, key: u64) -> Option<usize> {
        let Some(index) = self.at(key) else {
            if !std::mem::replace(&mut self.late, true) {
                self.disorder("late_delta", "a piece of a message after the end; it is dropped");
            }
            return None;
        };
        (self.messages[index].life == Life::Open || self.takes_late(index)).then_some(index)
    }

    #[cold]
    fn takes_late(&mut self, index: usize) -> bool {
        let life = &mut self.messages[index].life;
        match *life {
            Life::Finished => {
                *life = Life::Late;
                self.disorder("late_delta", "a piece of a message after its end");
            }
            Life::Closed => {
                *life = Life::Gone;
                self.disorder("late_delta", "a piece of a message that is closed; it is dropped");
                return false;
            }
            Life::Gone => return false,
            Life::Open | Life::Late => {}
        }
        true
    }

    /// The text of message `key` is whole, though its end is not said yet: a piece after this is late.
    pub fn seal(&mut self, key: u64) {
        if let Some(index) = self.find(key)
            && self.messages[index].life == Life::Open
        {
            self.messages[index].life = Life::Finished;
        }
    }

    fn find(&self, key: u64) -> Option<usize> {
        // The current message is almost always the last.
        match self.messages.last() {
            Some(last) if last.key == key => Some(self.messages.len() - 1),
            _ => self.message_index.get(&key).copied(),
        }
    }

    /// Opens message `key` under the provider's `id` (minted when blank, or when another message has had it: what is said
    /// twice is two messages). Opening an open message does nothing; nor does one after the end, where neither
    /// [`Self::round_start`] nor an id of its own tells it from a piece that came too late.
    pub fn open(&mut self, key: u64, id: &str, choice: Option<u64>) {
        if self.is_open(key) || (self.is_over() && (id.is_empty() || self.message_ids.contains(id))) {
            return;
        }
        self.round_start();
        let id: Id = if id.is_empty() || self.message_ids.contains(id) { self.mint("msg") } else { Arc::from(id) };
        self.message_ids.insert(id.clone());
        let model = self.model.clone();
        self.out.push(MessageStart { message_id: id.clone(), role: "assistant".into(), model, choice }.into());
        self.message_index.insert(key, self.messages.len());
        self.messages.push(Message {
            key,
            id,
            choice,
            text: String::new(),
            reasoning: String::new(),
            reasoning_part: None,
            refusal: None,
            calls: Vec::new(),
            finish: None,
            streamed: false,
            life: Life::Open,
            tools: (self.marks == Marks::Calls).then(|| Box::new(TextTools::new())),
        });
    }

    /// Whether message `key` has been opened.
    pub fn is_open(&self, key: u64) -> bool {
        self.find(key).is_some()
    }

    /// The id under which message `key` goes out, if it is open.
    pub fn message_id(&self, key: u64) -> Option<Id> {
        self.find(key).map(|index| self.messages[index].id.clone())
    }

    /// The text of message `key` so far, as the provider has said it.
    pub fn text_so_far(&self, key: u64) -> &str {
        self.find(key).map_or("", |index| self.messages[index].said())
    }

    /// A piece of text.
    pub fn text(&mut self, key: u64, piece: &str) {
        self.text_piece(key, piece, true);
    }

    /// A piece of text that comes whole, out of a body that is not a stream: the message does not count as streamed.
    pub fn text_block(&mut self, key: u64, piece: &str) {
        self.text_piece(key, piece, false);
    }

    fn text_piece(&mut self, key: u64, piece: &str, streamed: bool) {
        if piece.is_empty() {
            return;
        }
        let Some(index) = self.at_piece(key) else { return };
        let mut joined = String::new();
        let piece = self.whole(Of::Text(key), piece, &mut joined);
        if piece.is_empty() {
            return;
        }
        let message = &mut self.messages[index];
        message.streamed |= streamed;
        if let Some(tools) = &mut message.tools {
            let said = tools.feed(piece);
            return self.say_text(index, said);
        }
        message.text.push_str(piece);
        self.out.push(TextDelta { message_id: message.id.clone(), text: piece.into() }.into());
    }

    /// What the text of a message turned out to say: text, and calls.
    #[cold]
    fn say_text(&mut self, index: usize, said: Vec<Said>) {
        for said in said {
            match said {
                Said::Text(text) => {
                    let message = &mut self.messages[index];
                    message.text.push_str(&text);
                    self.out.push(TextDelta { message_id: message.id.clone(), text: text.into() }.into());
                }
                Said::Call(call) => {
                    self.call(TEXT_CALL, self.messages[index].key, &call.id, &call.name, Kind::Client);
                    self.arguments(TEXT_CALL, &call.arguments);
                    self.call_end(TEXT_CALL);
                }
                Said::NoCall => {
                    self.warning("no_text_call", "the text has what begins like a tool call and is none; it stays text");
                }
            }
        }
    }

    /// The whole text, said at the end: its missing suffix goes out as a delta; where it contradicts what was shown,
    /// the message is reset and said anew.
    pub fn text_whole(&mut self, key: u64, whole: &str) {
        // A copy of the whole may follow the end.
        let Some(index) = self.at(key).filter(|&index| !self.messages[index].is_closed()) else { return };
        if let Some(halves) = &mut self.halves {
            halves.end(Of::Text(key));
        }
        let message = &mut self.messages[index];
        if let Some(suffix) = whole.strip_prefix(message.said()) {
            if let Some(tools) = &mut message.tools {
                let said = tools.feed(suffix);
                self.say_text(index, said);
            } else if !suffix.is_empty() {
                message.text.push_str(suffix);
                self.out.push(TextDelta { message_id: message.id.clone(), text: suffix.into() }.into());
            }
            return;
        }
        let message_id = message.id.clone();
        message.text.clear();
        let reasoning = message.reasoning.clone();
        self.out.push(MessageReset { message_id: message_id.clone(), reason: Some("contradicted".into()) }.into());
        if !reasoning.is_empty() {
            self.out.push(ReasoningDelta { message_id: message_id.clone(), text: reasoning.into(), part: None }.into());
        }
        let message = &mut self.messages[index];
        if let Some(tools) = &mut message.tools {
            tools.restart();
            let said = tools.feed(whole);
            self.say_text(index, said);
        } else if !whole.is_empty() {
            whole.clone_into(&mut message.text);
            self.out.push(TextDelta { message_id, text: whole.into() }.into());
        }
    }

    /// A piece of reasoning. `part` tells separate parts apart; a blank line stands between two of them in the whole.
    pub fn reasoning(&mut self, key: u64, part: Option<u64>, piece: &str) {
        if piece.is_empty() {
            return;
        }
        let Some(index) = self.at_piece(key) else { return };
        let mut joined = String::new();
        let piece = self.whole(Of::Reasoning(key), piece, &mut joined);
        if piece.is_empty() {
            return;
        }
        if let Some(part) = part
            && self.messages[index].reasoning_part != Some(part)
        {
            self.reasoning_part(key, part);
        }
        let message = &mut self.messages[index];
        message.reasoning_part = part;
        message.reasoning.push_str(piece);
        self.out.push(ReasoningDelta { message_id: message.id.clone(), text: piece.into(), part }.into());
    }

    /// Reasoning of this part follows: what tells it from the part before it goes out now.
    pub fn reasoning_part(&mut self, key: u64, part: u64) {
        let Some(index) = self.find(key).filter(|index| !self.messages[*index].is_closed()) else { return };
        let message = &mut self.messages[index];
        if message.reasoning_part != Some(part) && !message.reasoning.is_empty() {
            message.reasoning.push_str("\n\n");
            self.out.push(ReasoningDelta { message_id: message.id.clone(), text: "\n\n".into(), part: Some(part) }.into());
        }
        message.reasoning_part = Some(part);
    }

    /// The reasoning of message `key` so far.
    pub fn reasoning_so_far(&self, key: u64) -> &str {
        self.find(key).map_or("", |index| &self.messages[index].reasoning)
    }

    /// A piece of a refusal.
    pub fn refusal(&mut self, key: u64, piece: &str) {
        if piece.is_empty() {
            return;
        }
        let Some(index) = self.at_piece(key) else { return };
        let mut joined = String::new();
        let piece = self.whole(Of::Refusal(key), piece, &mut joined);
        if piece.is_empty() {
            return;
        }
        let message = &mut self.messages[index];
        message.refusal.get_or_insert_default().push_str(piece);
        self.out.push(RefusalDelta { message_id: message.id.clone(), text: piece.into() }.into());
    }

    /// Why the message ended, in our word and in the provider's, blank where it has none. The last one said wins; nothing is
    /// emitted yet.
    pub fn finish_reason(&mut self, key: u64, reason: FinishReason, raw: &str) {
        let Some(index) = self.at(key).filter(|&index| !self.messages[index].is_closed()) else {
            return self.disorder("second_finish", "a finish reason after the end");
        };
        self.end = self.end.max(End::Said);
        let message = &mut self.messages[index];
        let again = message.finish.as_ref().is_some_and(|(word, said)| (*word, &**said) != (reason, raw));
        message.finish = Some((reason, raw.into()));
        if message.life == Life::Open {
            message.life = Life::Finished;
        }
        if again {
            self.disorder("second_finish", "another finish reason for a message that had one");
        }
    }

    /// The same, where a provider may say it with every piece: pieces may follow, and another reason too.
    pub fn finish_reason_so_far(&mut self, key: u64, reason: FinishReason, raw: &str) {
        if let Some(index) = self.at(key) {
            self.end = self.end.max(End::Said);
            self.messages[index].finish = Some((reason, raw.into()));
        }
    }

    /// Closes message `key` for this reason, where a provider ends its messages long before the call they belong to.
    pub fn end_message(&mut self, key: u64, reason: FinishReason) {
        if let Some(index) = self.find(key) {
            self.messages[index].finish.get_or_insert((reason, Text::default()));
            self.close_at(index);
        }
    }

    /// The provider begins anew instead of ending message `key`: withdraws what was shown, its open calls too, and closes
    /// it, empty.
    pub fn withdraw(&mut self, key: u64, reason: &str) {
        let Some(index) = self.messages.iter().rposition(|message| message.key == key && !message.is_closed()) else { return };
        for call in 0..self.calls.len() {
            if self.calls[call].message == key {
                self.close_call(call, CallEnd::Withdrawn);
                self.call_ids.remove(&self.calls[call].id);
            }
        }
        let message = &mut self.messages[index];
        message.text.clear();
        message.tools = None;
        message.reasoning.clear();
        message.refusal = None;
        message.calls.clear();
        message.finish = None;
        self.out.push(MessageReset { message_id: message.id.clone(), reason: Some(reason.into()) }.into());
        self.close_at(index);
    }

    fn close_at(&mut self, index: usize) {
        if self.messages[index].is_closed() {
            return;
        }
        if let Some(mut tools) = self.messages[index].tools.take() {
            self.say_text(index, tools.finish());
        }
        self.end_halves(index);
        let error = self.error;
        let message = &mut self.messages[index];
        message.life = Life::Closed;
        let (mut finish_reason, raw) = match &message.finish {
            Some((reason, raw)) => (*reason, (!raw.is_empty()).then(|| raw.clone())),
            None => (FinishReason::Unknown, None),
        };
        if error {
            finish_reason = FinishReason::Error;
        } else if finish_reason == FinishReason::Stop {
            // Several providers say a plain stop where the answer is a call (a forced tool) or a refusal.
            if !message.calls.is_empty() {
                finish_reason = FinishReason::ToolCalls;
            } else if message.refusal.is_some() {
                finish_reason = FinishReason::Refusal;
            }
        }
        if let Some(finish) = &mut message.finish {
            finish.0 = finish_reason;
        }
        let whole = AssistantMessage {
            message_id: message.id.clone(),
            text: std::mem::take(&mut message.text).into(),
            reasoning: std::mem::take(&mut message.reasoning).into(),
            refusal: message.refusal.take().map(Text::from),
            tool_calls: std::mem::take(&mut message.calls),
            finish_reason,
            finish_reason_raw: raw,
            model: self.model.clone(),
            streamed: message.streamed,
            origin: Origin::Provider,
            choice: message.choice,
        };
        self.out.push(whole.into());
    }

    // --- tool calls -----------------------------------------------------------------------------------------------

    fn call_at(&self, key: u64) -> Option<usize> {
        match self.calls.last() {
            Some(last) if last.key == key && !last.closed => Some(self.calls.len() - 1),
            _ => self.open_calls.get(&key).copied(),
        }
    }

    /// A call under `key`, of message `message`. Id and name may come in any order and repeat; the start event goes out once
    /// both are known, with the first arguments or at the end. A blank id is minted then.
    pub fn call(&mut self, key: u64, message: u64, id: &str, name: &str, kind: Kind) {
        let Some(index) = self.called(key, message, id, kind) else { return };
        let call = &mut self.calls[index];
        if call.name.is_empty() && !name.is_empty() {
            name.clone_into(&mut call.name);
        }
        if !call.id.is_empty() {
            self.start_call(index);
        }
    }

    /// The same, where a name may come in several pieces, or again, or longer: the start event waits for the first arguments,
    /// for the next call or for the end, whatever is known.
    pub fn call_in_pieces(&mut self, key: u64, message: u64, id: &str, name: &str, kind: Kind) {
        if self.call_at(key).is_none()
            && let Some(last) = self.calls.len().checked_sub(1)
            && !self.calls[last].closed
        {
            self.start_call(last);
        }
        let Some(index) = self.called(key, message, id, kind) else { return };
        let call = &mut self.calls[index];
        if !call.started {
            match name.strip_prefix(call.name.as_str()) {
                Some(rest) => call.name.push_str(rest),
                None => call.name.push_str(name),
            }
        }
    }

    /// Where the call under `key` stands, which begins unless it is open; none where its message may have no more.
    fn called(&mut self, key: u64, message: u64, id: &str, kind: Kind) -> Option<usize> {
        let index = if let Some(index) = self.call_at(key) {
            index
        } else {
            if message == NO_MESSAGE {
                self.round_start();
            } else {
                // A message's text may be whole long before its calls begin; its end is another thing.
                match self.at(message) {
                    Some(index) if self.messages[index].finish.is_none() || self.messages[index].is_closed() => {}
                    _ if self.at_piece(message).is_some() => {}
                    _ => return None,
                }
            }
            self.open_calls.insert(key, self.calls.len());
            self.calls.push(Call {
                key,
                message,
                id: Arc::from(""),
                name: String::new(),
                kind,
                arguments: String::new(),
                sent: 0,
                started: false,
                closed: false,
                free_text: false,
            });
            self.calls.len() - 1
        };
        let call = &mut self.calls[index];
        if call.id.is_empty() && !id.is_empty() {
            call.id = Arc::from(id);
        }
        Some(index)
    }

    /// Whether a call is open under `key`.
    pub fn call_is_open(&self, key: u64) -> bool {
        self.call_at(key).is_some()
    }

    /// The id of the call open under `key`; blank until it is known or minted.
    pub fn call_id(&self, key: u64) -> Option<Id> {
        self.call_at(key).map(|index| self.calls[index].id.clone())
    }

    /// The raw arguments so far of the call open under `key`.
    pub fn arguments_so_far(&self, key: u64) -> &str {
        self.call_at(key).map_or("", |index| &self.calls[index].arguments)
    }

    fn start_call(&mut self, index: usize) {
        if self.calls[index].started || self.calls[index].name.is_empty() {
            return;
        }
        // Two calls under one id would be one call to everybody behind.
        if self.calls[index].id.is_empty() || self.call_ids.contains(&self.calls[index].id) {
            self.calls[index].id = self.mint("call");
        }
        self.call_ids.insert(self.calls[index].id.clone());
        self.progress.insert(self.calls[index].id.clone(), Told::Start(index));
        let message = self.calls[index].message;
        let message = (message != NO_MESSAGE).then(|| self.at(message)).flatten();
        let call = &mut self.calls[index];
        call.started = true;
        let reference = CallRef { call_id: call.id.clone(), name: call.name.as_str().into() };
        let message_id = message.map(|message| self.messages[message].id.clone());
        self.out
            .push(ToolCallStart { call_id: call.id.clone(), name: reference.name.clone(), kind: call.kind, message_id }.into());
        if let (Some(message), Kind::Client) = (message, call.kind) {
            self.messages[message].calls.push(reference);
        }
        self.flush_arguments(index);
    }

    fn flush_arguments(&mut self, index: usize) {
        let call = &mut self.calls[index];
        if call.started && call.sent < call.arguments.len() {
            let text = call.arguments[call.sent..].into();
            call.sent = call.arguments.len();
            self.out.push(ToolCallDelta { call_id: call.id.clone(), text }.into());
        }
    }

    /// A raw piece of the arguments of the call open under `key`; a piece for no call is a warning.
    pub fn arguments(&mut self, key: u64, piece: &str) {
        let Some(index) = self.call_at(key) else {
            if !piece.is_empty() {
                self.disorder("stray_arguments", "arguments for a call that is not open");
            }
            return;
        };
        let mut joined = String::new();
        let piece = self.whole(Of::Arguments(key), piece, &mut joined);
        self.calls[index].arguments.push_str(piece);
        self.start_call(index);
        self.flush_arguments(index);
    }

    /// The whole arguments, said at the end: what is missing goes out as a delta; where they contradict the pieces, the
    /// whole wins and the `tool_call` carries it.
    pub fn arguments_whole(&mut self, key: u64, whole: &str) {
        let Some(index) = self.call_at(key) else { return };
        let call = &mut self.calls[index];
        if whole.starts_with(call.arguments.as_str()) {
            whole.clone_into(&mut call.arguments);
            self.start_call(index);
            self.flush_arguments(index);
        } else if whole != call.arguments {
            whole.clone_into(&mut call.arguments);
            call.sent = whole.len();
        }
    }

    /// The arguments of the call open under `key` are free text, not JSON: its `tool_call` carries them as a string.
    pub fn arguments_are_text(&mut self, key: u64) {
        if let Some(index) = self.call_at(key) {
            self.calls[index].free_text = true;
        }
    }

    /// The call open under `key` is whole: emits its `tool_call`, and gives its id unless it was dropped.
    pub fn call_end(&mut self, key: u64) -> Option<Id> {
        let index = self.call_at(key)?;
        self.close_call(index, CallEnd::Whole);
        let call = &self.calls[index];
        call.started.then(|| call.id.clone())
    }

    /// The provider broke off inside the call open under `key`: that no arguments came does not mean that it takes none.
    pub fn call_cut(&mut self, key: u64) {
        if let Some(index) = self.call_at(key) {
            self.close_call(index, CallEnd::Cut);
        }
    }

    /// The pieces of the call open under `key` go on from an input that its start said: what the arguments are is a guess.
    pub fn call_continued(&mut self, key: u64) {
        if let Some(index) = self.call_at(key) {
            self.disorder("continued_input", "pieces of arguments that go on from the input of the call's start");
            self.close_call(index, CallEnd::Continued);
        }
    }

    fn close_call(&mut self, index: usize, end: CallEnd) {
        if self.calls[index].closed {
            return;
        }
        self.start_call(index);
        if let Some(halves) = &mut self.halves {
            halves.end(Of::Arguments(self.calls[index].key));
        }
        let call = &mut self.calls[index];
        call.closed = true;
        self.open_calls.remove(&call.key);
        if !call.started {
            let mut message = String::from("a tool call without a name was dropped");
            if !call.id.is_empty() {
                let _ = write!(message, " (id of {} bytes)", call.id.len());
            }
            self.warning("nameless_call", &message);
            return;
        }
        let raw = std::mem::take(&mut call.arguments);
        let (arguments, arguments_error) = match (end, raw.trim().is_empty()) {
            (CallEnd::Withdrawn, _) => (None, Some(Text::from("the provider withdrew the call"))),
            (CallEnd::Continued, _) => (None, Some(Text::from("the arguments go on from the input of the call's start"))),
            (CallEnd::Whole | CallEnd::Cut, _) if call.free_text => (Some(Json::string(&raw)), None),
            (CallEnd::Cut, true) => (None, Some(Text::from("the stream broke off before the arguments"))),
            // No arguments at all is the way most providers call a tool that takes none.
            (CallEnd::Whole, true) => (Some(Json::trusted("{}")), None),
            (CallEnd::Whole | CallEnd::Cut, false) => match Json::parse(&raw) {
                Ok(json) => (Some(json), None),
                Err(error) => (None, Some(Text::from(error.to_string()))),
            },
        };
        let message_id = self.message_id(self.calls[index].message);
        let call = &self.calls[index];
        self.progress.insert(call.id.clone(), Told::Whole);
        let whole = ToolCall {
            call_id: call.id.clone(),
            name: call.name.as_str().into(),
            arguments,
            arguments_raw: raw.into(),
            arguments_error,
            kind: call.kind,
            message_id,
        };
        self.out.push(whole.into());
    }

    fn close_calls(&mut self) {
        let end = if self.error { CallEnd::Cut } else { CallEnd::Whole };
        for index in 0..self.calls.len() {
            self.close_call(index, end);
        }
    }

    /// What a tool that the provider ran gave back: closes its call where that is still open.
    pub fn tool_result(&mut self, call_id: &str, name: Option<&str>, output: Option<Json>, is_error: bool, status: &str) {
        if !self.is_over() {
            self.round_start();
        }
        let call_id = match self.progress.get_key_value(call_id).map(|(id, told)| (id.clone(), *told)) {
            Some((_, Told::Result)) => return self.disorder("second_result", "a second result for one call; it is dropped"),
            Some((id, Told::Start(index))) => {
                self.close_call(index, CallEnd::Whole);
                id
            }
            Some((id, Told::Whole)) => id,
            None => self.unsaid_call(call_id, name.unwrap_or_default()),
        };
        self.progress.insert(call_id.clone(), Told::Result);
        self.out.push(ToolResult { call_id, output, is_error, status: status.into(), name: name.map(Text::from) }.into());
    }

    /// Says the call that a result answers and that the provider never made: only it can have made it, and nobody knows with what.
    fn unsaid_call(&mut self, call_id: &str, name: &str) -> Id {
        self.disorder("result_without_call", "a result for a call that never began; the call is put before it");
        let call_id: Id = if call_id.is_empty() { self.mint("call") } else { Arc::from(call_id) };
        let (kind, name) = (Kind::Server, Text::from(if name.is_empty() { "unknown" } else { name }));
        self.out.push(ToolCallStart { call_id: call_id.clone(), name: name.clone(), kind, message_id: None }.into());
        let call = ToolCall {
            call_id: call_id.clone(),
            name,
            arguments: None,
            arguments_raw: Text::default(),
            arguments_error: Some("the call never came".into()),
            kind,
            message_id: None,
        };
        self.out.push(call.into());
        call_id
    }

    /// A piece of what a running tool prints.
    pub fn tool_output(&mut self, call_id: &Id, piece: &str) {
        if self.progress.get(call_id) == Some(&Told::Result) {
            self.disorder("late_delta", "output of a tool after its result; it is dropped");
        } else if !piece.is_empty() {
            self.out.push(ToolOutputDelta { call_id: call_id.clone(), text: piece.into() }.into());
        }
    }

    // --- everything else ------------------------------------------------------------------------------------------

    /// What the call consumed, so far or in all: the last value wins per field, and one `usage` goes out with the
    /// round's end. `raw` is the provider's object, merged field by field; its nulls never erase a value.
    pub fn usage(&mut self, counts: UsageCounts, raw: &RawValue) {
        self.merge_snapshot();
        self.usage.merge(counts);
        self.merge_usage(raw);
    }

    /// The whole count so far: takes the place of what was said of this call before, and costs one copy.
    pub fn usage_whole(&mut self, counts: UsageCounts, raw: &RawValue) {
        self.usage = counts;
        self.usage_raw = None;
        self.usage_snapshot = Some(raw.to_owned());
    }

    fn merge_snapshot(&mut self) {
        if let Some(raw) = self.usage_snapshot.take() {
            self.merge_usage(&raw);
        }
    }

    fn merge_usage(&mut self, raw: &RawValue) {
        let Ok(fields) = serde_json::from_str::<HashMap<String, &RawValue>>(raw.get()) else { return };
        let merged = self.usage_raw.get_or_insert_default();
        for (key, value) in fields {
            let Ok(value) = Json::from_raw(value) else { continue };
            if !value.is_null() || !merged.contains_key(&key) {
                merged.insert(key, value);
            }
        }
    }

    fn flush_usage(&mut self) {
        self.merge_snapshot();
        let counts = std::mem::take(&mut self.usage);
        let Some(fields) = self.usage_raw.take() else { return };
        let mut raw = Vec::with_capacity(256);
        raw.push(b'{');
        for (key, value) in &fields {
            if raw.len() > 1 {
                raw.push(b',');
            }
            write_str(&mut raw, key);
            raw.push(b':');
            raw.extend_from_slice(value.as_str().as_bytes());
        }
        raw.push(b'}');
        let total = counts.total.or_else(|| Some(counts.input? + counts.output?));
        let usage = Usage {
            input_tokens: counts.input,
            output_tokens: counts.output,
            total_tokens: total,
            cache_read_tokens: counts.cache_read,
            cache_write_tokens: counts.cache_write,
            reasoning_tokens: counts.reasoning,
            audio_input_tokens: counts.audio_input,
            audio_output_tokens: counts.audio_output,
            raw: Some(Json::from_written(raw)),
        };
        self.out.push(usage.into());
    }

    /// The provider's own error, in the stream. `raw` is its object.
    pub fn error(&mut self, code: &str, message: &str, retryable: bool, raw: Option<Json>) {
        self.error = true;
        self.end = self.end.max(End::Said);
        self.out.push(Error { code: code.into(), message: message.into(), retryable, fatal: true, raw }.into());
    }

    /// Something was not as it should be, and the stream goes on.
    pub fn warning(&mut self, code: &str, message: &str) {
        self.out.push(Warning { code: code.into(), message: message.into(), raw: None }.into());
    }

    /// What came was not in order, and has been repaired: a warning under a code of [`DISORDER`]; a strict driver refuses it.
    pub fn disorder(&mut self, code: &'static str, message: &str) {
        debug_assert!(DISORDER.contains(&code), "{code} is on the list");
        self.disorder = Some(code);
        self.warning(code, message);
    }

    /// What was out of order since the last call, if anything was.
    pub fn take_disorder(&mut self) -> Option<&'static str> {
        self.disorder.take()
    }

    /// An event that changes nothing of what is being put together.
    pub(super) fn emit(&mut self, event: impl Into<Payload>) {
        self.out.push(event.into());
    }

    /// What the vocabulary has no word for.
    pub fn provider_event(&mut self, name: &str, data: Option<Json>) {
        self.out.push(ProviderEvent { name: name.into(), data }.into());
    }

    /// A frame of a kind the provider's format does not name: passes as a `provider_event`; a strict driver refuses it.
    pub fn unknown(&mut self, name: &str, data: Option<Json>) {
        self.unknown = Some(name.chars().take(64).collect());
        self.provider_event(name, data);
    }

    /// The kind of the unknown frame since the last call, if one came.
    pub fn take_unknown(&mut self) -> Option<String> {
        self.unknown.take()
    }

    /// How far `stage` has come.
    pub fn progress(&mut self, stage: &str, current: Option<f64>, total: Option<f64>, message: Option<&str>) {
        let (stage, message) = (Arc::from(stage), message.map(Text::from));
        self.out.push(Progress { stage, current, total, message, agent: None, elapsed_s: None, estimate_s: None }.into());
    }

    /// A source the answer refers to.
    pub fn citation(&mut self, citation: Citation) {
        self.out.push(citation.into());
    }

    /// A file the model made.
    pub fn file(&mut self, file: File) {
        self.out.push(file.into());
    }

    /// The provider has said that the stream is over (`[DONE]`, `message_stop`): its end is not a truncation.
    pub fn mark_ended(&mut self) {
        self.end = End::Done;
    }

    /// Whether an end, a finish reason or an error has been said.
    pub fn has_ended(&self) -> bool {
        self.end != End::Open
    }

    /// Whether an error has been said.
    pub fn has_error(&self) -> bool {
        self.error
    }

    /// The bytes have ended: says so when they ended too early, and closes what is open.
    pub fn finish(&mut self) {
        let unfinished = || self.messages.iter().any(|message| message.finish.is_none() && !message.is_closed());
        // Several answers at once: the end of one is not the end of all.
        if self.end == End::Open || (self.end == End::Said && !self.error && unfinished()) {
            let message = "the stream ended before the provider said that it was done";
            self.error = true;
            self.out.push(
                Error { code: "stream_truncated".into(), message: message.into(), retryable: true, fatal: false, raw: None }
                    .into(),
            );
        }
        self.close_round(None);
        self.stage_end("incomplete");
    }
}
