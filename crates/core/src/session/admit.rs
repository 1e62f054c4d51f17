//! What may enter the log, and in which form: dedupe, repair and refusal, one event at a time, under the session's lock.
//!
//! The rules, in the order of the match below: deltas open what they belong to and are ignored, counted, once it is
//! done; a whole message says its missing suffix as a delta first, or withdraws what was shown where it contradicts;
//! second copies by id add only what is new; pieces under an id that an earlier turn or round has used up are another
//! message's, under an id of its own; what only the session may say (turn life, control frames) is refused.

use std::sync::Arc;

use super::{Entry, Inner, Named, SessionError};
use crate::event::{
    AssistantMessage, Class, Context, Event, Id, Json, Kind, MessageReset, MessageStart, Origin, Payload, PayloadError,
    ReasoningDelta, RefusalDelta, Text, TextDelta, ToolCall, ToolCallStart, ToolResult, Warning,
};

/// The text's beginning of at most `max` bytes, whole characters; none if all of it fits.
fn cut(text: &str, max: usize) -> Option<Text> {
    if text.len() <= max {
        return None;
    }
    let end = (0..=max).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    Some(text[..end].into())
}

fn no_call() -> ToolCall {
    ToolCall {
        call_id: "".into(),
        name: Text::default(),
        arguments: None,
        arguments_raw: Text::default(),
        arguments_error: None,
        kind: Kind::Client,
        message_id: None,
    }
}

/// Whether the pieces of a call's arguments have said what its whole says, if in other words: then theirs stand, so that the
/// whole is what was shown.
fn said_already(whole: &ToolCall, pieces: &str) -> bool {
    if pieces.is_empty() || whole.arguments_raw.starts_with(pieces) {
        return false;
    }
    match &whole.arguments {
        Some(arguments) => Json::parse(pieces).is_ok_and(|said| said.to_value() == arguments.to_value()),
        None if whole.arguments_raw.is_empty() => true,
        None => match (Json::parse(pieces), Json::parse(&whole.arguments_raw)) {
            (Ok(said), Ok(raw)) => said.to_value() == raw.to_value(),
            _ => false,
        },
    }
}

impl Inner {
    /// Which turn an emit means, or why there is none.
    pub(super) fn enter(&mut self, session: &Arc<str>, turn: Option<u32>) -> Result<u32, SessionError> {
        let meant = turn.unwrap_or(if self.state.running { self.state.turn } else { 0 });
        // The reason comes first: a turn whose events the store refuses has neither ended nor another writer.
        let checked = if let Some(error) = self.refusal_of(meant) {
            Err(SessionError::Store(error.clone()))
        } else if self.closed {
            Err(SessionError::Closed(session.clone()))
        } else if !self.writes() {
            Err(SessionError::NotWriter { remaining_ms: 0 })
        } else if meant == 0 || (meant == self.state.turn && self.state.running) {
            Ok(meant)
        } else if meant <= self.state.turn {
            Err(SessionError::TurnEnded { session: session.clone(), turn: meant })
        } else {
            Err(SessionError::NoTurn { session: session.clone(), turn: meant })
        };
        self.statistics.refused += u64::from(checked.is_err());
        checked
    }

    /// Appends as it is.
    pub(super) fn push(&mut self, payload: Payload, extra: Option<Json>, turn: u32) -> u64 {
        let round = match &payload {
            Payload::RoundStart(_) => self.state.round + 1,
            _ if turn == self.state.turn => self.state.round,
            _ => 0,
        };
        let entry = self.place(payload, extra, turn, round);
        match &entry.event.payload {
            Payload::TurnStart(_) | Payload::RoundStart(_) => {
                self.began = entry.event.seq;
                self.renamed.clear();
            }
            Payload::AssistantMessage(whole) => {
                let deltas = self.state.message(&whole.message_id).map_or(0, |at| self.state.messages[at].deltas);
                self.log.spend(deltas);
            }
            Payload::ToolCall(whole) => {
                let deltas = self.state.call(turn, round, &whole.call_id).map_or(0, |at| self.state.calls[at].deltas);
                self.log.spend(deltas);
            }
            Payload::ToolResult(result) => {
                let deltas = self.state.call(turn, round, &result.call_id).map_or(0, |at| self.state.calls[at].output_deltas);
                self.log.spend(deltas);
            }
            _ => {}
        }
        self.log.append(entry)
    }

    /// Makes the entry and folds it. Inlined, so that a delta is written straight to where it stays: each copy on the way
    /// is read while it is still being written, in other widths, and waits for that (20 ns of a delta's 240).
    #[inline]
    fn place(&mut self, payload: Payload, extra: Option<Json>, turn: u32, round: u32) -> Arc<Entry> {
        if self.context.turn != turn || self.context.round != round {
            let backend = if turn == 0 { None } else { self.context.backend.clone() };
            self.context = Arc::new(Context::new(self.context.session.clone(), turn, round, backend));
        }
        let (seq, time, context) = (self.log.head + 1, self.now, self.context.clone());
        let entry = Entry::new(Event { seq, time, context, payload, extra: extra.map(Box::new) });
        self.state.apply(&entry.event);
        (self.progressed, self.stalled) = (self.now, false);
        entry
    }

    /// Sets the backend that the events from now on name.
    pub(super) fn set_backend(&mut self, backend: Option<Arc<str>>) {
        self.context = Arc::new(Context::new(self.context.session.clone(), 0, 0, backend));
    }

    /// A copy of what the log already has.
    fn duplicate(&mut self) -> u64 {
        self.statistics.duplicates += 1;
        self.log.head
    }

    /// A delta, or a result, after its end.
    fn late(&mut self) -> u64 {
        self.statistics.late += 1;
        self.log.head
    }

    fn mint(&mut self, kind: &str, turn: u32) -> Id {
        self.minted += 1;
        Arc::from(format!("{kind}-{turn}-{}", self.minted))
    }

    /// Appends one event of `turn`, with what must come before it. Returns its seq.
    pub(super) fn admit(
        &mut self,
        session: &Arc<str>,
        turn: u32,
        mut payload: Payload,
        extra: Option<Json>,
    ) -> Result<u64, SessionError> {
        let refuse = |inner: &mut Self, error: SessionError| {
            inner.statistics.refused += 1;
            Err(error)
        };
        match payload.class() {
            Class::Control => return refuse(self, PayloadError::Control(payload.kind()).into()),
            Class::Delta if self.takes_delta(turn, &mut payload) => return Ok(self.push_delta(turn, payload, extra)),
            Class::Delta => return Ok(self.log.head),
            Class::Boundary | Class::State => {}
        }
        if !self.renamed.is_empty() {
            self.rename_message_of(&mut payload);
        }
        Ok(match payload {
            Payload::MessageStart(mut start) => {
                if start.message_id.is_empty() {
                    start.message_id = self.mint("msg", turn);
                }
                if start.role.is_empty() {
                    start.role = "assistant".into();
                }
                match self.state.message(&start.message_id) {
                    Some(at) if self.is_used_up(turn, at) => self.rename(&mut start.message_id),
                    Some(_) => return Ok(self.duplicate()),
                    None => {}
                }
                self.push(Payload::MessageStart(start), extra, turn)
            }
            Payload::MessageReset(reset)
                if self.state.message(&reset.message_id).is_some_and(|at| self.state.messages[at].done) =>
            {
                self.late()
            }
            Payload::MessageReset(mut reset) => match self.open_message(turn, &mut reset.message_id) {
                Some(_) => self.push(Payload::MessageReset(reset), extra, turn),
                None => self.late(),
            },
            Payload::AssistantMessage(whole) => self.admit_message(turn, *whole, extra),
            Payload::ToolCallStart(mut start) => {
                if start.call_id.is_empty() {
                    start.call_id = self.mint("call", turn);
                }
                if self.written_call(turn, &start.call_id).is_some() {
                    self.duplicate()
                } else {
                    self.push(Payload::ToolCallStart(start), extra, turn)
                }
            }
            Payload::ToolCall(whole) => self.admit_call(turn, *whole, extra),
            Payload::ToolResult(result) => self.admit_result(turn, *result, extra),
            Payload::RoundStart(_) if self.state.round_open => self.duplicate(),
            Payload::RoundEnd(_) if !self.state.round_open => self.duplicate(),
            Payload::StageEnd(mut end) => {
                if end.status.is_empty() {
                    end.status = "completed".into();
                }
                self.push(Payload::StageEnd(end), extra, turn)
            }
            // The session itself says these, through `start_turn`, `end_turn` and `close`.
            Payload::TurnStart(_) | Payload::SessionEnd(_) => {
                let (kind, expected) = (payload.kind(), "a call of the session's, not an emit");
                return refuse(self, PayloadError::Field { kind, field: "type", expected }.into());
            }
            Payload::Completion(_) if turn == 0 => {
                return refuse(self, SessionError::NoTurn { session: session.clone(), turn });
            }
            Payload::Completion(completion) => {
                let error = completion.error.clone();
                let (status, reason) = (completion.status, completion.reason.clone());
                let fallback = Some(completion.text.clone()).filter(|text| !text.is_empty());
                self.finish_turn(turn, super::Ending { status: Some(status), reason, error, fallback })
            }
            other => self.push(other, extra, turn),
        })
    }

    /// Whether a delta goes into the log, once what it belongs to is open: not where that is done, nor an empty one.
    #[inline]
    pub(super) fn takes_delta(&mut self, turn: u32, delta: &mut Payload) -> bool {
        let open = match delta {
            Payload::TextDelta(TextDelta { message_id, text }) => {
                if let Some(at) = self.open_message(turn, message_id) {
                    return self.takes_text(turn, message_id, self.state.messages[at].text.len(), text);
                }
                false
            }
            Payload::ReasoningDelta(ReasoningDelta { message_id, text, .. }) => {
                if let Some(at) = self.open_message(turn, message_id) {
                    return self.takes_text(turn, message_id, self.state.messages[at].reasoning.len(), text);
                }
                false
            }
            Payload::RefusalDelta(RefusalDelta { message_id, text }) => {
                if let Some(at) = self.open_message(turn, message_id) {
                    let said = self.state.messages[at].refusal.as_ref().map_or(0, String::len);
                    return self.takes_text(turn, message_id, said, text);
                }
                false
            }
            Payload::ToolCallDelta(delta) => {
                let at = self.open_call(turn, &mut delta.call_id);
                !self.state.calls[at].done
            }
            Payload::ToolOutputDelta(delta) if self.is_late(turn, &delta.call_id) => false,
            Payload::ToolOutputDelta(delta) => {
                let at = self.open_call(turn, &mut delta.call_id);
                self.state.calls[at].status.is_none()
            }
            _ => true,
        };
        self.statistics.late += u64::from(!open);
        open
    }

    /// Appends a delta that [`Self::takes_delta`].
    #[inline]
    pub(super) fn push_delta(&mut self, turn: u32, delta: Payload, extra: Option<Json>) -> u64 {
        let round = if turn == self.state.turn { self.state.round } else { 0 };
        let entry = self.place(delta, extra, turn, round);
        self.log.append(entry)
    }

    /// Finds or opens the message a delta belongs to and fills in its id; none when that message is done.
    fn open_message(&mut self, turn: u32, id: &mut Id) -> Option<usize> {
        if id.is_empty() {
            let open = self.state.open_messages_of(turn).next().map(|message| message.id.clone());
            *id = match open {
                Some(open) => open,
                None => self.mint("msg", turn),
            };
        } else if !self.renamed.is_empty() {
            self.own_id(id);
        }
        if let Some(at) = self.state.message(id) {
            if !self.state.messages[at].done {
                return Some(at);
            }
            if !self.is_used_up(turn, at) {
                return None;
            }
            self.rename(id);
        }
        let start = MessageStart { message_id: id.clone(), role: "assistant".into(), model: None, choice: None };
        self.push(start.into(), None, turn);
        self.state.message(id)
    }

    /// Whether the message is of an earlier turn or round, and done: what comes under its id now is another one's.
    ///
    /// Some servers draw a response's id from a thousand numbers, others always give the same one.
    fn is_used_up(&self, turn: u32, at: usize) -> bool {
        let message = &self.state.messages[at];
        message.done && message.seq < self.began && turn == self.state.turn && self.state.running
    }

    /// Gives the message that an id now means an id of its own.
    #[cold]
    fn rename(&mut self, id: &mut Id) {
        let count = self.reused.entry(id.clone()).or_insert(1);
        let own = loop {
            *count += 1;
            let own = Id::from(format!("{id}#{count}"));
            if self.state.message(&own).is_none() {
                break own;
            }
        };
        let said = std::mem::replace(id, own.clone());
        self.renamed.push((said, own));
    }

    /// What a message is called whose id came again.
    fn own_id(&self, id: &mut Id) {
        if let Some((_, own)) = self.renamed.iter().find(|(said, _)| said == id) {
            id.clone_from(own);
        }
    }

    #[cold]
    fn rename_message_of(&self, payload: &mut Payload) {
        match payload {
            Payload::MessageStart(it) => self.own_id(&mut it.message_id),
            Payload::MessageReset(it) => self.own_id(&mut it.message_id),
            Payload::AssistantMessage(it) => self.own_id(&mut it.message_id),
            Payload::ToolCallStart(it) => it.message_id.iter_mut().for_each(|id| self.own_id(id)),
            Payload::ToolCall(it) => it.message_id.iter_mut().for_each(|id| self.own_id(id)),
            Payload::Citation(it) => it.message_id.iter_mut().for_each(|id| self.own_id(id)),
            Payload::File(it) => it.message_id.iter_mut().for_each(|id| self.own_id(id)),
            _ => {}
        }
    }

    /// The call of that id that is being written: ids may come again in the next round.
    fn written_call(&self, turn: u32, id: &str) -> Option<usize> {
        let round = if turn == self.state.turn { self.state.round } else { 0 };
        self.state.call_written(turn, round, id)
    }

    /// Whether what comes for this call comes after its result: an earlier turn's cancel has answered it, for one.
    fn is_late(&self, turn: u32, id: &str) -> bool {
        let round = if turn == self.state.turn { self.state.round } else { 0 };
        self.state.call(turn, round, id).is_none() && self.state.is_answered(id)
    }

    fn open_call(&mut self, turn: u32, id: &mut Id) -> usize {
        if id.is_empty() {
            let open = self.state.calls_of(turn).map(|(_, call)| call).find(|call| !call.done);
            *id = match open {
                Some(call) => call.id.clone(),
                None => self.mint("call", turn),
            };
        }
        let round = if turn == self.state.turn { self.state.round } else { 0 };
        if let Some(at) = self.state.call(turn, round, id) {
            return at;
        }
        let start = ToolCallStart { call_id: id.clone(), name: Text::default(), kind: Kind::Client, message_id: None };
        self.push(start.into(), None, turn);
        self.state.call(turn, round, id).expect("just started")
    }

    /// A whole message: the only end a message has.
    pub(super) fn admit_message(&mut self, turn: u32, mut whole: AssistantMessage, extra: Option<Json>) -> u64 {
        if whole.message_id.is_empty() {
            let of_turn = || self.state.messages_of(turn).map(|(_, message)| message).filter(|message| message.role != "user");
            let open = self.state.open_messages_of(turn).find(|message| message.role != "user");
            // A transcript's copy without an id is known by its text, beside a message that came from elsewhere.
            let copy = || of_turn().next().filter(|message| message.origin != whole.origin && message.text == *whole.text);
            whole.message_id = match open.or_else(copy) {
                Some(message) => message.id.clone(),
                None => self.mint("msg", turn),
            };
        }
        if let Some(at) = self.state.message(&whole.message_id)
            && self.state.messages[at].done
        {
            // A transcript's copy may come much later. What a provider says anew, it says otherwise.
            let anew = whole.origin == Origin::Provider && !whole.text.is_empty() && whole.text != self.state.messages[at].text;
            if !(anew && self.is_used_up(turn, at)) {
                return self.merge_copy(turn, &whole);
            }
            self.rename(&mut whole.message_id);
        }
        let id = whole.message_id.clone();
        if self.state.message(&id).is_none() {
            let start = MessageStart {
                message_id: id.clone(),
                role: "assistant".into(),
                model: whole.model.clone(),
                choice: whole.choice,
            };
            self.push(start.into(), None, turn);
        }
        for text in [Some(&mut whole.text), Some(&mut whole.reasoning), whole.refusal.as_mut()].into_iter().flatten() {
            if let Some(cut) = cut(text, self.limits.max_message_bytes) {
                *text = cut;
                self.say_capped(turn, &id);
            }
        }
        let at = self.state.message(&id).expect("opened above");
        let shown = &self.state.messages[at];
        whole.streamed = whole.streamed || shown.deltas > 0;
        // What the end leaves unsaid, the deltas have said.
        if whole.text.is_empty() {
            whole.text = shown.text.as_str().into();
        }
        if whole.reasoning.is_empty() {
            whole.reasoning = shown.reasoning.as_str().into();
        }
        if whole.refusal.is_none() {
            whole.refusal = shown.refusal.as_deref().map(Text::from);
        }
        if whole.tool_calls != *shown.calls {
            let mut calls = Named::from(std::mem::take(&mut whole.tool_calls));
            calls.merge(&shown.calls);
            whole.tool_calls = calls.into_calls();
        }
        let text = whole.text.strip_prefix(shown.text.as_str()).map(Text::from);
        let reasoning = whole.reasoning.strip_prefix(shown.reasoning.as_str()).map(Text::from);
        let (text, reasoning) = if let (Some(text), Some(reasoning)) = (text, reasoning) {
            (text, reasoning)
        } else {
            self.push(MessageReset { message_id: id.clone(), reason: Some("contradicted".into()) }.into(), None, turn);
            (whole.text.clone(), whole.reasoning.clone())
        };
        if !reasoning.is_empty() {
            self.push(ReasoningDelta { message_id: id.clone(), text: reasoning, part: None }.into(), None, turn);
        }
        if !text.is_empty() {
            self.push(TextDelta { message_id: id, text }.into(), None, turn);
        }
        self.push(whole.into(), extra, turn)
    }

    /// Whether there is something to append to what the message has `said`. What is beyond its limit is cut off here.
    #[inline]
    fn takes_text(&mut self, turn: u32, id: &Id, said: usize, text: &mut Text) -> bool {
        if said + text.len() > self.limits.max_message_bytes {
            self.cut_delta(turn, id, said, text);
        }
        !text.is_empty()
    }

    #[cold]
    fn cut_delta(&mut self, turn: u32, id: &Id, said: usize, text: &mut Text) {
        let room = if self.capped.contains(id) { 0 } else { self.limits.max_message_bytes.saturating_sub(said) };
        *text = cut(text, room).unwrap_or_default();
        self.say_capped(turn, id);
    }

    /// Says, once per message, that it was cut.
    fn say_capped(&mut self, turn: u32, id: &Id) -> u64 {
        if self.capped.contains(id) {
            return self.log.head;
        }
        self.capped.push(id.clone());
        self.statistics.capped += 1;
        let message = format!("message {id} is cut at {} bytes", self.limits.max_message_bytes);
        self.push(Warning { code: "message_truncated".into(), message: message.into(), raw: None }.into(), None, turn)
    }

    /// A second copy of a message that is done: only calls it names that nobody named yet are new.
    fn merge_copy(&mut self, turn: u32, copy: &AssistantMessage) -> u64 {
        let known = self.state.message(&copy.message_id).map(|at| self.state.messages[at].calls.clone()).unwrap_or_default();
        let mut seq = None;
        for call in copy.tool_calls.iter().filter(|call| known.find(&call.call_id).is_none()) {
            let start = ToolCallStart {
                call_id: call.call_id.clone(),
                name: call.name.clone(),
                kind: Kind::Client,
                message_id: Some(copy.message_id.clone()),
            };
            seq = Some(self.push(start.into(), None, turn));
        }
        seq.unwrap_or_else(|| self.duplicate())
    }

    fn admit_call(&mut self, turn: u32, mut whole: ToolCall, extra: Option<Json>) -> u64 {
        if whole.call_id.is_empty() {
            whole.call_id = self.mint("call", turn);
        }
        let known = self.written_call(turn, &whole.call_id);
        if let Some(at) = known {
            let call = &self.state.calls[at];
            if call.done {
                return self.duplicate();
            }
            if whole.name.is_empty() {
                whole.name.clone_from(&call.name);
            }
            if whole.message_id.is_none() {
                whole.message_id.clone_from(&call.message_id);
            }
            if said_already(&whole, &call.arguments_raw) {
                whole.arguments_raw = call.arguments_raw.as_str().into();
            }
        }
        // Whoever gives only one form of the arguments gets the other.
        match (&whole.arguments, whole.arguments_raw.is_empty()) {
            (Some(arguments), true) => whole.arguments_raw = arguments.as_str().into(),
            (None, _) if whole.arguments_error.is_none() => {
                let raw = if whole.arguments_raw.trim().is_empty() { "{}" } else { whole.arguments_raw.as_str() };
                match Json::parse(raw) {
                    Ok(json) => whole.arguments = Some(json),
                    Err(error) => whole.arguments_error = Some(error.to_string().into()),
                }
            }
            _ => {}
        }
        if known.is_none() {
            let start = ToolCallStart {
                call_id: whole.call_id.clone(),
                name: whole.name.clone(),
                kind: whole.kind,
                message_id: whole.message_id.clone(),
            };
            self.push(start.into(), None, turn);
        }
        self.push(whole.into(), extra, turn)
    }

    /// The call's arguments as far as they came, as its `tool_call`.
    pub(super) fn close_call(&mut self, turn: u32, at: usize) {
        let call = &self.state.calls[at];
        if call.done {
            return;
        }
        let raw = call.arguments_raw.clone();
        let (arguments, arguments_error) = match Json::parse(if raw.trim().is_empty() { "{}" } else { &raw }) {
            Ok(json) => (Some(json), None),
            Err(error) => (None, Some(Text::from(error.to_string()))),
        };
        let whole = ToolCall {
            call_id: call.id.clone(),
            name: call.name.clone(),
            arguments,
            arguments_raw: raw.into(),
            arguments_error,
            kind: call.kind,
            message_id: call.message_id.clone(),
        };
        self.push(whole.into(), None, turn);
    }

    fn admit_result(&mut self, turn: u32, mut result: ToolResult, extra: Option<Json>) -> u64 {
        if result.status.is_empty() {
            result.status = if result.is_error { "error" } else { "completed" }.into();
        }
        if matches!(&*result.status, "denied" | "declined" | "canceled" | "cancelled") {
            result.is_error = true;
        }
        let round = if turn == self.state.turn { self.state.round } else { 0 };
        match self.state.call(turn, round, &result.call_id) {
            Some(at) if self.state.calls[at].status.is_some() => return self.duplicate(),
            Some(at) => self.close_call(turn, at),
            // All of that id have theirs.
            None if self.state.knows_call(turn, &result.call_id) => return self.duplicate(),
            None if self.is_late(turn, &result.call_id) => return self.late(),
            None => {
                // Nobody made it: it is made here, so that no result stands alone.
                let (call_id, name) = (result.call_id.clone(), result.name.clone().unwrap_or_default());
                self.admit_call(turn, ToolCall { call_id, name, ..no_call() }, None);
            }
        }
        self.push(result.into(), extra, turn)
    }

    /// The run's own result, where no message said anything.
    pub(super) fn admit_fallback(&mut self, turn: u32, text: Text) {
        let spoke = self.state.messages_of(turn).any(|(_, message)| message.role != "user" && !message.text.is_empty());
        if spoke || text.trim().is_empty() {
            return;
        }
        let whole = AssistantMessage {
            message_id: self.mint("msg", turn),
            text,
            reasoning: Text::default(),
            refusal: None,
            tool_calls: Vec::new(),
            finish_reason: crate::event::FinishReason::Stop,
            finish_reason_raw: None,
            model: None,
            streamed: false,
            origin: Origin::Fallback,
            choice: None,
        };
        self.admit_message(turn, whole, None);
    }
}
