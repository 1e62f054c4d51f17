//! One stream folded to what it came to: the answer, its calls, its usage, its end.
//!
//! Owns the object that `turnstream fold` prints. Knows no provider: it reads the vocabulary alone.
//! Invariants: 1. a message is what its end says, its deltas are not looked at; 2. where several answers came at once, the
//! first stands on top and all are in `choices`; 3. `error` is the provider's own, what the reader itself found missing is
//! a warning.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::event::json::{list, member, object, write_str, write_u64};
use crate::event::{Error, Field, FinishReason, Id, Json, Kind, Payload, Text, ToolCall, ToolResult, Usage, Warning};
use crate::provider::{Normalizer, Options, ProtocolError, READER_ERRORS};

/// What one message, or all messages of one answer, came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The message's id; of several, the first one's.
    pub message_id: Id,
    /// Its index where the provider answered several times at once.
    pub choice: u64,
    /// The model that spoke.
    pub model: Option<Text>,
    /// What it said.
    pub text: String,
    /// What it thought.
    pub reasoning: String,
    /// How it declined, if it did.
    pub refusal: Option<String>,
    /// Its tool calls, in the order in which they were whole.
    pub tool_calls: Vec<ToolCall>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// The same in the provider's word.
    pub finish_reason_raw: Option<Text>,
}

impl Answer {
    fn new(message_id: Id, choice: u64, model: Option<Text>) -> Self {
        let (text, reasoning) = (String::new(), String::new());
        let finish_reason = FinishReason::Unknown;
        Self {
            message_id,
            choice,
            model,
            text,
            reasoning,
            refusal: None,
            tool_calls: Vec::new(),
            finish_reason,
            finish_reason_raw: None,
        }
    }

    /// Adds a later message of the same answer.
    fn join(&mut self, later: &Self) {
        self.text.push_str(&later.text);
        self.reasoning.push_str(&later.reasoning);
        if let Some(refusal) = &later.refusal {
            self.refusal.get_or_insert_default().push_str(refusal);
        }
        self.tool_calls.extend_from_slice(&later.tool_calls);
        self.finish_reason = later.finish_reason;
        self.finish_reason_raw = later.finish_reason_raw.clone().or(self.finish_reason_raw.take());
        self.model = later.model.clone().or(self.model.take());
    }

    fn write_members(&self, out: &mut Vec<u8>, results: &HashMap<Id, ToolResult>) {
        member(out, "message_id", |out| if self.message_id.is_empty() { null(out) } else { write_str(out, &self.message_id) });
        member(out, "model", |out| self.model.write(out));
        member(out, "text", |out| write_str(out, &self.text));
        member(out, "reasoning", |out| write_str(out, &self.reasoning));
        member(out, "refusal", |out| match &self.refusal {
            Some(text) => write_str(out, text),
            None => null(out),
        });
        member(out, "tool_calls", |out| {
            list(out, &self.tool_calls, |out, call| write_call(out, call, results.get(&call.call_id)));
        });
        member(out, "finish_reason", |out| self.finish_reason.write(out));
        member(out, "finish_reason_raw", |out| self.finish_reason_raw.write(out));
    }
}

/// Folds the payloads of one stream.
#[derive(Debug, Clone, Default)]
pub struct Fold {
    /// The wire format that was read.
    pub provider: String,
    /// The provider's own error, the first one that was said.
    pub error: Option<Error>,
    /// What was not as it should be, the reader's own findings among it.
    pub warnings: Vec<Warning>,
    /// What all model calls consumed.
    pub usage: Option<Usage>,
    /// How many events there were.
    pub events: u64,
    messages: Vec<(usize, Answer)>,
    by_id: HashMap<Id, usize>,
    /// Calls of no message.
    loose_calls: Vec<(usize, ToolCall)>,
    /// What the calls that somebody else ran gave back.
    results: HashMap<Id, ToolResult>,
    turns: usize,
    /// Turns are the session's own: a provider's are stages of them.
    own_turns: bool,
    /// How each turn of a provider's own ended.
    ends: HashMap<usize, (FinishReason, Text)>,
    round_end: Option<FinishReason>,
}

impl Fold {
    /// Nothing yet.
    pub fn new(provider: &str) -> Self {
        Self { provider: provider.to_owned(), ..Self::default() }
    }

    /// Takes the next payload.
    pub fn push(&mut self, payload: &Payload) {
        self.events += 1;
        match payload {
            Payload::TurnStart(_) => {
                self.turns += 1;
                self.own_turns = true;
            }
            Payload::StageStart(_) if !self.own_turns => self.turns += 1,
            Payload::RoundEnd(end) => self.round_end = end.finish_reason,
            // A turn that broke off has no end to speak of.
            Payload::StageEnd(end) if !self.own_turns && end.status != "incomplete" => {
                self.ends.insert(self.turns, (self.round_end.unwrap_or(FinishReason::Unknown), end.status.clone()));
            }
            Payload::ToolResult(result) => {
                self.results.insert(result.call_id.clone(), (**result).clone());
            }
            Payload::MessageStart(start) => {
                let answer = Answer::new(start.message_id.clone(), start.choice.unwrap_or(0), start.model.clone());
                self.by_id.insert(start.message_id.clone(), self.messages.len());
                self.messages.push((self.turns, answer));
            }
            Payload::AssistantMessage(whole) => {
                if !self.by_id.contains_key(&whole.message_id) {
                    let answer = Answer::new(whole.message_id.clone(), whole.choice.unwrap_or(0), None);
                    self.by_id.insert(whole.message_id.clone(), self.messages.len());
                    self.messages.push((self.turns, answer));
                }
                let Some(answer) = self.message(&whole.message_id) else { return };
                whole.text.as_str().clone_into(&mut answer.text);
                whole.reasoning.as_str().clone_into(&mut answer.reasoning);
                answer.refusal = whole.refusal.as_ref().map(ToString::to_string);
                answer.finish_reason = whole.finish_reason;
                answer.finish_reason_raw.clone_from(&whole.finish_reason_raw);
                answer.model = whole.model.clone().or(answer.model.take());
                // Calls that a provider withdrew are none.
                let named: HashSet<&Id> = whole.tool_calls.iter().map(|call| &call.call_id).collect();
                answer.tool_calls.retain(|call| call.kind != Kind::Client || named.contains(&call.call_id));
            }
            Payload::ToolCall(call) => {
                let turn = self.turns;
                match call.message_id.as_ref().and_then(|id| self.message(id)) {
                    Some(answer) => answer.tool_calls.push((**call).clone()),
                    None => self.loose_calls.push((turn, (**call).clone())),
                }
            }
            Payload::Usage(usage) => match &mut self.usage {
                Some(sum) => {
                    sum.add(usage);
                    sum.raw.clone_from(&usage.raw); // the last one's
                }
                None => self.usage = Some((**usage).clone()),
            },
            Payload::Warning(warning) => self.warnings.push((**warning).clone()),
            Payload::Error(error) if READER_ERRORS.contains(&error.code.as_str()) => {
                self.warnings.push(Warning { code: error.code.clone(), message: error.message.clone(), raw: error.raw.clone() });
            }
            Payload::Error(error) => {
                self.error.get_or_insert_with(|| (**error).clone());
            }
            // Deltas among them: every message is closed by its whole, also where a stream breaks off.
            _ => {}
        }
    }

    fn message(&mut self, id: &Id) -> Option<&mut Answer> {
        // The message that is being said is the last, and its deltas share its id.
        if self.messages.last().is_some_and(|(_, last)| Arc::ptr_eq(&last.message_id, id)) {
            return self.messages.last_mut().map(|(_, last)| last);
        }
        self.by_id.get(id).map(|&index| &mut self.messages[index].1)
    }

    /// All answers that came at once, in the order of their indexes; one, in most streams. Messages that came one after
    /// the other make one answer.
    pub fn answers(&self) -> Vec<Answer> {
        self.answers_of(|_| true)
    }

    /// The first answer; an empty one where nothing was said.
    pub fn answer(&self) -> Answer {
        self.answers().swap_remove(0)
    }

    fn answers_of(&self, turn: impl Fn(usize) -> bool) -> Vec<Answer> {
        let mut answers: Vec<Answer> = Vec::new();
        for (_, message) in self.messages.iter().filter(|message| turn(message.0)) {
            match answers.binary_search_by_key(&message.choice, |answer| answer.choice) {
                Ok(index) => answers[index].join(message),
                Err(index) => answers.insert(index, message.clone()),
            }
        }
        if answers.is_empty() {
            let mut nothing = Answer::new("".into(), 0, None);
            if self.error.is_some() {
                nothing.finish_reason = FinishReason::Error;
            }
            answers.push(nothing);
        }
        if let Some((_, (reason, raw))) = self.ends.iter().filter(|(of, _)| turn(**of)).max_by_key(|(of, _)| **of) {
            for answer in answers.iter_mut().filter(|answer| answer.finish_reason_raw.is_none()) {
                (answer.finish_reason, answer.finish_reason_raw) = (*reason, Some(raw.clone()));
            }
        }
        answers[0].tool_calls.extend(self.loose_calls.iter().filter(|call| turn(call.0)).map(|call| call.1.clone()));
        answers
    }

    fn write_members(&self, out: &mut Vec<u8>) {
        let answers = self.answers();
        member(out, "provider", |out| write_str(out, &self.provider));
        answers[0].write_members(out, &self.results);
        let usage = self.usage.as_ref();
        member(out, "usage", |out| match usage {
            Some(usage) => Payload::from(Usage { raw: None, ..usage.clone() }).write_object(out),
            None => null(out),
        });
        member(out, "usage_raw", |out| usage.and_then(|usage| usage.raw.clone()).write(out));
        member(out, "error", |out| match &self.error {
            Some(error) => Payload::from(error.clone()).write_object(out),
            None => null(out),
        });
        member(out, "warnings", |out| {
            list(out, &self.warnings, |out, warning| Payload::from(warning.clone()).write_object(out));
        });
        member(out, "events", |out| write_u64(out, self.events));
        let turns: Vec<usize> = if self.turns == 0 { vec![0] } else { (1..=self.turns).collect() };
        member(out, "turns", |out| {
            list(out, &turns, |out, turn| {
                object(out, |out| {
                    self.answers_of(|of| of == *turn)[0].write_members(out, &self.results);
                });
            });
        });
        let several = if answers.len() > 1 { answers.as_slice() } else { &[] };
        member(out, "choices", |out| {
            list(out, several, |out, answer| {
                object(out, |out| {
                    member(out, "index", |out| write_u64(out, answer.choice));
                    answer.write_members(out, &self.results);
                });
            });
        });
    }

    /// The object that `turnstream fold` prints, on one line.
    pub fn to_json(&self) -> String {
        let mut out = Vec::with_capacity(1024);
        object(&mut out, |out| self.write_members(out));
        String::from_utf8(out).expect("the writers copy whole strings")
    }
}

/// Folds a whole stream's bytes, fed `split` bytes at a time (0: at once).
///
/// # Errors
/// The provider is unknown or not recognised, the bytes are no stream, or the reader is strict and they break the format.
pub fn fold_bytes(data: &[u8], provider: &str, split: usize, options: Options) -> Result<Fold, ProtocolError> {
    let mut normalizer = Normalizer::new(provider, options)?;
    let mut fold = Fold::new(provider);
    for piece in data.chunks(if split == 0 { data.len().max(1) } else { split }) {
        normalizer.feed(piece)?;
        normalizer.drain().for_each(|payload| fold.push(&payload));
    }
    normalizer.finish()?;
    normalizer.drain().for_each(|payload| fold.push(&payload));
    normalizer.provider().clone_into(&mut fold.provider);
    Ok(fold)
}

fn write_call(out: &mut Vec<u8>, call: &ToolCall, result: Option<&ToolResult>) {
    object(out, |out| {
        member(out, "id", |out| write_str(out, &call.call_id));
        member(out, "name", |out| write_str(out, &call.name));
        member(out, "arguments", |out| call.arguments.write(out));
        member(out, "arguments_raw", |out| write_str(out, &call.arguments_raw));
        member(out, "arguments_error", |out| call.arguments_error.write(out));
        member(out, "kind", |out| call.kind.write(out));
        if let Some(result) = result {
            member(out, "result", |out| Payload::from(result.clone()).write_object(out));
        }
    });
}

fn null(out: &mut Vec<u8>) {
    Option::<Json>::None.write(out);
}
