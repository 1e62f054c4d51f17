//! One event folded in.

use std::sync::Arc;

use super::json::error_json;
use super::limit::ENTRY_BYTES;
use super::{Attached, CallState, MessageState, Named, Outcome, StageState, State};
use crate::event::{Class, Event, FinishReason, Id, Json, Kind, Origin, Payload, Text};

impl State {
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
                self.stage_index.clear();
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
                let open = !std::mem::replace(&mut message.done, true);
                message.finish_reason = Some(whole.finish_reason);
                message.origin = whole.origin;
                message.choice = whole.choice.or(message.choice);
                if whole.model.is_some() {
                    message.model.clone_from(&whole.model);
                }
                message.calls.merge(&whole.tool_calls);
                self.open_messages -= usize::from(open);
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
            Payload::Usage(usage) => self.usage.get_or_insert_default().add(usage),
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

    fn new_message(event: &Event, id: Id) -> MessageState {
        MessageState {
            turn: event.context.turn,
            id,
            role: "assistant".into(),
            text: String::new(),
            reasoning: String::new(),
            refusal: None,
            input: None,
            calls: Named::default(),
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
        self.messages[index].calls.refer(call_id, name);
    }

    fn stage(&mut self, turn: u32, name: &Id, time: u64) -> &mut StageState {
        let index = *self.stage_index.entry(name.clone()).or_insert_with(|| {
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

    fn add_message(&mut self, message: MessageState) {
        self.message_index.insert(message.id.clone(), self.messages.len());
        self.open_messages += usize::from(!message.done);
        self.messages.push(message);
    }
}
