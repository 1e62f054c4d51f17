//! OpenAI Responses: one turn as numbered `response.*` events, or as one `response`.
//!
//! A message's text, its reasoning and each call are output items, one after the other; calls may overlap. Calls of the
//! client's own tools are `function_call` items; those that the agent runs itself are `mcp_call` items, which no client
//! runs, and close with their result. What the protocol has no word for (progress, files, warnings) is left out, and of
//! several choices the first is shown.
//!
//! Invariants: 1. `sequence_number` is 0, 1, 2 … over the events of the turn as they were logged, the same for every
//! reader; 2. an item is added, filled and done, a part inside it likewise, and all are done before the one terminal
//! event; 3. the terminal event holds what stands: items that were withdrawn are done as incomplete and are not in it;
//! 4. where history is missing, numbers would differ, and the stream ends with an `error`.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::Encoder;
use super::index::{Places, WireIds};
use super::openai::{Phase, Request, usage, whole_arguments, whole_name};
use crate::event::json::{write_str, write_u64};
use crate::event::{Citation, Completion, Event, FinishReason, Id, Json, Kind, Payload, Status, Text};
use crate::reader::Item as ReadItem;
use crate::session::Session;

/// What a part of a message or of a reasoning item holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PartKind {
    Text,
    Refusal,
    Summary,
}

#[derive(Debug)]
struct Part {
    kind: PartKind,
    text: String,
    annotations: Vec<Value>,
}

#[derive(Debug)]
enum Content {
    /// Of a message: its text and refusal.
    Message(Vec<Part>),
    /// Of a message: its reasoning, and which of the event's own parts came last.
    Reasoning(Vec<Part>, Option<u64>),
    Call(Call),
}

#[derive(Debug)]
struct Call {
    round: u32,
    id: Id,
    wire_id: Text,
    name: Text,
    arguments: String,
    whole: bool,
    /// Whose tool it is, where it is not the client's.
    server: Option<&'static str>,
    output: Option<(String, bool)>,
}

#[derive(Debug)]
struct Item {
    id: String,
    message_id: Option<Id>,
    content: Content,
    /// `in_progress`, completed or incomplete.
    status: &'static str,
    withdrawn: bool,
}

/// Encodes one turn.
#[derive(Debug, Default)]
pub struct Responses {
    /// Whether one answer is wanted, not events.
    whole: bool,
    request: Request,
    phase: Phase,
    /// Whether `response.created` has been written.
    created: bool,
    id: String,
    /// What makes item ids unlike those of other responses.
    tail: String,
    created_at: u64,
    completed_at: Option<u64>,
    model: String,
    sequence: u64,
    items: Vec<Item>,
    /// Where the items of each message stand, its calls among them; and where the calls of each id do.
    of_message: Places,
    of_call: Places,
    wire_ids: WireIds,
    /// The message or reasoning item that is being filled.
    open: Option<usize>,
    others: HashSet<Id>,
    finish: Option<FinishReason>,
    status: &'static str,
    error: Value,
    usage: Value,
}

impl Responses {
    /// An encoder that has said nothing.
    pub fn new() -> Self {
        Self { status: "in_progress", ..Self::default() }
    }

    /// One that makes a whole answer.
    pub(super) fn body() -> Self {
        Self { whole: true, ..Self::new() }
    }

    /// The response as it stands; none before the turn has begun.
    pub(super) fn answer(&self) -> Option<Json> {
        (!self.id.is_empty()).then(|| Json::from_value(&self.response()))
    }

    /// Takes one event of the log, or a control frame.
    pub(super) fn event(&mut self, session: &Session, event: &Event, out: &mut Vec<u8>) {
        match &event.payload {
            _ if self.phase == Phase::Over => return,
            Payload::Snapshot(_) | Payload::Gap(_) => {
                if !self.whole || self.phase == Phase::Before {
                    self.phase = Phase::Hole;
                }
                return;
            }
            Payload::TurnStart(start) => {
                self.phase = Phase::Inside;
                self.request = Request::of(start.input.as_ref());
                self.tail = format!("{}{}", session.epoch(), event.seq - 1);
                self.id = format!("resp_{}_{}_{}", session.id(), session.epoch(), event.seq - 1);
                self.created_at = event.time / 1000;
                if let Some(model) = &self.request.model {
                    self.model.clone_from(model);
                    self.create(out);
                }
                return;
            }
            _ if event.context.turn == 0 => return,
            _ => {}
        }
        if self.phase != Phase::Inside {
            self.lose(out);
            return;
        }
        let round = event.context.round;
        match &event.payload {
            Payload::RoundStart(start) => self.learn_model(start.model.as_deref(), out),
            Payload::MessageStart(start) => {
                self.learn_model(start.model.as_deref(), out);
                if start.choice.unwrap_or(0) > 0 {
                    self.others.insert(start.message_id.clone());
                }
            }
            Payload::TextDelta(delta) => self.say(&delta.message_id, PartKind::Text, &delta.text, out),
            Payload::RefusalDelta(delta) => self.say(&delta.message_id, PartKind::Refusal, &delta.text, out),
            Payload::ReasoningDelta(delta) => self.reason(&delta.message_id, delta.part, &delta.text, out),
            Payload::MessageReset(reset) => {
                let with_calls = reset.reason.as_deref() != Some("contradicted");
                for at in self.of_message.take(&reset.message_id) {
                    if !with_calls && matches!(self.items[at].content, Content::Call(_)) {
                        self.of_message.put(&reset.message_id, at);
                    } else {
                        self.close(at, "incomplete", out);
                        self.items[at].withdrawn = true;
                    }
                }
            }
            Payload::AssistantMessage(message) if !self.others.contains(&message.message_id) => {
                self.finish = Some(message.finish_reason);
                // Deltas that have left the log are made good by the whole text.
                let missing = |kind, whole: &str| {
                    let shown = self.shown(&message.message_id, kind);
                    whole.strip_prefix(&shown).map(str::to_owned).unwrap_or_default()
                };
                let reasoning = missing(PartKind::Summary, &message.reasoning);
                let text = missing(PartKind::Text, &message.text);
                let refusal = missing(PartKind::Refusal, message.refusal.as_deref().unwrap_or(""));
                self.reason(&message.message_id, None, &reasoning, out);
                self.say(&message.message_id, PartKind::Text, &text, out);
                self.say(&message.message_id, PartKind::Refusal, &refusal, out);
                if self.open.is_some_and(|at| self.items[at].message_id.as_ref() == Some(&message.message_id)) {
                    self.close_open(out);
                }
            }
            Payload::Citation(citation) => self.annotate(citation, out),
            Payload::ToolCallStart(start) => {
                if let Some(at) = self.known(round, &start.call_id).filter(|at| self.items[*at].withdrawn)
                    && let Content::Call(call) = &mut self.items[at].content
                {
                    call.id = "".into(); // said anew under the same id
                }
                // Without a name it cannot be announced: it waits for its whole.
                if !start.name.is_empty() {
                    self.call(round, &start.call_id, &start.name, start.kind, start.message_id.as_ref(), out);
                }
            }
            Payload::ToolCallDelta(delta) => {
                if let Some(at) = self.known(round, &delta.call_id) {
                    self.arguments(at, &delta.text, out);
                }
            }
            Payload::ToolCall(whole) => {
                let message = whole.message_id.as_ref();
                let mut at = self.call(round, &whole.call_id, &whole.name, whole.kind, message, out);
                let arguments = whole_arguments(&whole.arguments_raw);
                if let Content::Call(call) = &mut self.items[at].content
                    && !call.whole
                    && !arguments.starts_with(call.arguments.as_str())
                {
                    call.id = "".into(); // what was shown is withdrawn, and said anew under the same id
                    self.close(at, "incomplete", out);
                    self.items[at].withdrawn = true;
                    at = self.call(round, &whole.call_id, &whole.name, whole.kind, message, out);
                }
                if let Content::Call(call) = &mut self.items[at].content {
                    call.round = round;
                }
                self.end_arguments(at, arguments, out);
            }
            Payload::ToolResult(result) => {
                let text = result.output.as_ref().map(|output| match output.to_value() {
                    Value::String(text) => text,
                    _ => output.as_str().to_owned(),
                });
                let waits = |call: &Call| call.server.is_some() && call.output.is_none();
                if let Some(at) = self.newest(&result.call_id, waits).filter(|at| self.items[*at].status == "in_progress")
                    && let Content::Call(call) = &mut self.items[at].content
                {
                    call.output = Some((text.unwrap_or_default(), result.is_error));
                    self.close(at, "completed", out);
                }
            }
            Payload::Completion(completion) => {
                self.completed_at = Some(event.time / 1000);
                self.complete(completion, out);
            }
            _ => {}
        }
    }

    /// The request's word, or else the first that is said.
    fn learn_model(&mut self, model: Option<&str>, out: &mut Vec<u8>) {
        if let Some(model) = model
            && !self.created
        {
            model.clone_into(&mut self.model);
            self.create(out);
        }
    }

    fn create(&mut self, out: &mut Vec<u8>) {
        if !std::mem::replace(&mut self.created, true) {
            if self.model.is_empty() {
                "unknown".clone_into(&mut self.model);
            }
            self.emit_response("response.created", out);
            self.emit_response("response.in_progress", out);
        }
    }

    // items

    fn add(&mut self, prefix: &str, message_id: Option<&Id>, content: Content, out: &mut Vec<u8>) -> usize {
        self.create(out);
        self.close_open(out);
        let at = self.items.len();
        if let Some(message) = message_id {
            self.of_message.put(message, at);
        }
        let id = format!("{prefix}_{}_{at}", self.tail);
        self.items.push(Item { id, message_id: message_id.cloned(), content, status: "in_progress", withdrawn: false });
        self.emit("response.output_item.added", out, |this, out| this.write_item(at, out));
        at
    }

    /// The open item of the message, if it is of the kind that is to be filled, or a new one.
    fn filling(&mut self, message: &Id, reasoning: bool, out: &mut Vec<u8>) -> usize {
        if let Some(at) = self.open {
            let item = &self.items[at];
            if item.message_id.as_ref() == Some(message) && matches!(item.content, Content::Reasoning(..)) == reasoning {
                return at;
            }
        }
        let (prefix, content) =
            if reasoning { ("rs", Content::Reasoning(Vec::new(), None)) } else { ("msg", Content::Message(Vec::new())) };
        let at = self.add(prefix, Some(message), content, out);
        self.open = Some(at);
        at
    }

    fn say(&mut self, message: &Id, kind: PartKind, text: &str, out: &mut Vec<u8>) {
        if text.is_empty() || self.others.contains(message) {
            return;
        }
        let at = self.filling(message, false, out);
        let Content::Message(parts) = &self.items[at].content else { return };
        if parts.last().is_none_or(|part| part.kind != kind) {
            self.end_part(at, out);
            self.begin_part(at, kind, out);
        }
        self.fill_part(at, text, out);
    }

    fn reason(&mut self, message: &Id, part: Option<u64>, text: &str, out: &mut Vec<u8>) {
        if text.is_empty() || self.others.contains(message) {
            return;
        }
        let at = self.filling(message, true, out);
        let Content::Reasoning(parts, last) = &mut self.items[at].content else { return };
        let (first, before) = (parts.is_empty(), std::mem::replace(last, part));
        if first || (part.is_some() && part != before) {
            self.end_part(at, out);
            self.begin_part(at, PartKind::Summary, out);
        }
        self.fill_part(at, text, out);
    }

    fn begin_part(&mut self, at: usize, kind: PartKind, out: &mut Vec<u8>) {
        self.parts(at).push(Part { kind, text: String::new(), annotations: Vec::new() });
        let event = kind.event("response.content_part.added", "", "response.reasoning_summary_part.added");
        self.emit(event, out, |this, out| {
            this.write_place(at, out);
            out.extend_from_slice(b",\"part\":");
            let part = this.items[at].part().map(Part::json).unwrap_or_default();
            out.extend_from_slice(part.to_string().as_bytes());
        });
    }

    fn fill_part(&mut self, at: usize, text: &str, out: &mut Vec<u8>) {
        let Some(part) = self.parts(at).last_mut() else { return };
        part.text.push_str(text);
        let kind = part.kind;
        let event = kind.event("response.output_text.delta", "response.refusal.delta", "response.reasoning_summary_text.delta");
        self.emit(event, out, |this, out| {
            this.write_place(at, out);
            out.extend_from_slice(b",\"delta\":");
            write_str(out, text);
            if kind == PartKind::Text {
                out.extend_from_slice(b",\"logprobs\":[]");
            }
        });
    }

    fn end_part(&mut self, at: usize, out: &mut Vec<u8>) {
        let Some(part) = self.items[at].part() else { return };
        let kind = part.kind;
        let event = kind.event("response.output_text.done", "response.refusal.done", "response.reasoning_summary_text.done");
        self.emit(event, out, |this, out| {
            this.write_place(at, out);
            out.extend_from_slice(if kind == PartKind::Refusal { b",\"refusal\":" } else { b",\"text\":" });
            write_str(out, this.items[at].part().map_or("", |part| &part.text));
            if kind == PartKind::Text {
                out.extend_from_slice(b",\"logprobs\":[]");
            }
        });
        let event = kind.event("response.content_part.done", "", "response.reasoning_summary_part.done");
        self.emit(event, out, |this, out| {
            this.write_place(at, out);
            out.extend_from_slice(b",\"part\":");
            let part = this.items[at].part().map(Part::json).unwrap_or_default();
            out.extend_from_slice(part.to_string().as_bytes());
        });
    }

    fn annotate(&mut self, citation: &Citation, out: &mut Vec<u8>) {
        let (Some(at), Some(url)) = (self.open, &citation.url) else { return };
        let Content::Message(parts) = &mut self.items[at].content else { return };
        let Some(part) = parts.last_mut().filter(|part| part.kind == PartKind::Text) else { return };
        let annotation = json!({
            "type": "url_citation",
            "url": url.as_str(),
            "title": citation.title.as_deref().unwrap_or(""),
            "start_index": citation.start.unwrap_or(0),
            "end_index": citation.end.unwrap_or(part.text.chars().count() as u64),
        });
        part.annotations.push(annotation.clone());
        let index = part.annotations.len() as u64 - 1;
        self.emit("response.output_text.annotation.added", out, |this, out| {
            this.write_place(at, out);
            out.extend_from_slice(b",\"annotation_index\":");
            write_u64(out, index);
            out.extend_from_slice(format!(",\"annotation\":{annotation}").as_bytes());
        });
    }

    /// The newest call of that id that is meant: ids may come again in another round.
    fn newest(&self, call_id: &Id, meant: impl Fn(&Call) -> bool) -> Option<usize> {
        self.of_call.of(call_id).iter().rev().copied().find(|at| match &self.items[*at].content {
            Content::Call(call) => call.id == *call_id && meant(call),
            _ => false,
        })
    }

    /// The call that is being written under that id: the round's own, or else the one that is not whole.
    fn known(&self, round: u32, call_id: &Id) -> Option<usize> {
        self.newest(call_id, |call| call.round == round).or_else(|| self.newest(call_id, |call| !call.whole))
    }

    fn call(&mut self, round: u32, call_id: &Id, name: &Text, kind: Kind, message: Option<&Id>, out: &mut Vec<u8>) -> usize {
        if let Some(at) = self.known(round, call_id) {
            return at;
        }
        let clients = self.request.is_the_clients(kind, name);
        let server = (!clients).then(|| if kind == Kind::Client { "agent" } else { kind.as_str() });
        let (id, name) = (call_id.clone(), whole_name(name));
        let wire_id = self.wire_ids.take(&id);
        let call = Call { round, id, wire_id, name, arguments: String::new(), whole: false, server, output: None };
        let at = self.add(if clients { "fc" } else { "mcp" }, message, Content::Call(call), out);
        self.of_call.put(call_id, at);
        if !clients {
            self.emit("response.mcp_call.in_progress", out, |this, out| this.write_place(at, out));
        }
        at
    }

    fn arguments(&mut self, at: usize, text: &str, out: &mut Vec<u8>) {
        let open = self.items[at].status == "in_progress";
        let Content::Call(call) = &mut self.items[at].content else { return };
        if text.is_empty() || call.whole || !open {
            return;
        }
        call.arguments.push_str(text);
        let clients = call.server.is_none();
        let event = if clients { "response.function_call_arguments.delta" } else { "response.mcp_call_arguments.delta" };
        self.emit(event, out, |this, out| {
            this.write_place(at, out);
            out.extend_from_slice(b",\"delta\":");
            write_str(out, text);
        });
    }

    fn end_arguments(&mut self, at: usize, raw: &str, out: &mut Vec<u8>) {
        let Content::Call(call) = &self.items[at].content else { return };
        if call.whole || self.items[at].status != "in_progress" {
            return;
        }
        let rest = raw.strip_prefix(call.arguments.as_str()).unwrap_or("").to_owned();
        self.arguments(at, &rest, out);
        let Content::Call(call) = &mut self.items[at].content else { return };
        call.whole = true;
        let (clients, arguments, name) = (call.server.is_none(), call.arguments.clone(), call.name.clone());
        let event = if clients { "response.function_call_arguments.done" } else { "response.mcp_call_arguments.done" };
        self.emit(event, out, |this, out| {
            this.write_place(at, out);
            out.extend_from_slice(b",\"arguments\":");
            write_str(out, &arguments);
            if clients {
                out.extend_from_slice(b",\"name\":");
                write_str(out, &name);
            }
        });
        if clients {
            self.close(at, "completed", out);
        }
    }

    fn close_open(&mut self, out: &mut Vec<u8>) {
        if let Some(at) = self.open {
            self.close(at, "completed", out);
        }
    }

    /// Ends an item, once.
    fn close(&mut self, at: usize, status: &'static str, out: &mut Vec<u8>) {
        if self.items[at].status != "in_progress" {
            return;
        }
        match &self.items[at].content {
            Content::Call(call) if call.server.is_some() => {
                let failed = status != "completed" || call.output.as_ref().is_some_and(|(_, is_error)| *is_error);
                let event = if failed { "response.mcp_call.failed" } else { "response.mcp_call.completed" };
                self.emit(event, out, |this, out| this.write_place(at, out));
            }
            Content::Call(_) => {}
            _ => self.end_part(at, out),
        }
        if self.open == Some(at) {
            self.open = None;
        }
        self.items[at].status = status;
        self.emit("response.output_item.done", out, |this, out| this.write_item(at, out));
    }

    // the end

    fn complete(&mut self, completion: &Completion, out: &mut Vec<u8>) {
        self.create(out);
        let completed = completion.status == Status::Completed;
        for at in 0..self.items.len() {
            // A call of the agent's own that nobody answered, or text that broke off.
            let answered = completed && !matches!(self.items[at].content, Content::Call(_));
            self.close(at, if answered { "completed" } else { "incomplete" }, out);
        }
        let names = ["input_tokens", "input_tokens_details", "output_tokens", "output_tokens_details"];
        self.usage = usage(completion.usage.as_ref(), names, true).unwrap_or_default();
        self.status = match (completion.status, self.finish) {
            (Status::Completed, Some(FinishReason::Length | FinishReason::ContentFilter)) => "incomplete",
            (Status::Completed, _) => "completed",
            (Status::Cancelled, _) => "cancelled",
            (Status::Failed | Status::Incomplete, _) => "failed",
        };
        if self.status == "failed" {
            let error = completion.error.as_ref().map(Json::to_value).unwrap_or_default();
            let word = |name: &str| error.get(name).and_then(Value::as_str);
            let code = word("code").or(completion.reason.as_deref()).unwrap_or("error");
            let message = word("message").unwrap_or("the run failed");
            // The codes of the API are a closed set; ours stands in the message.
            let known = ["rate_limit_exceeded", "invalid_prompt", "server_error"].into_iter().find(|known| *known == code);
            let message = if known.is_some() { message.to_owned() } else { format!("{code}: {message}") };
            self.error = json!({ "code": known.unwrap_or("server_error"), "message": message });
        }
        let event = match self.status {
            "completed" => "response.completed",
            "failed" => "response.failed",
            _ => "response.incomplete", // the protocol has no event of its own for a cancelled one
        };
        self.emit_response(event, out);
        self.phase = Phase::Over;
    }

    /// Numbers after missing events would be other numbers: the client is told, and asks for the whole response.
    fn lose(&mut self, out: &mut Vec<u8>) {
        self.emit("error", out, |_, out| {
            let message = "the server no longer holds all events of this response; retrieve it without stream";
            out.extend_from_slice(b",\"code\":\"history_trimmed\",\"message\":");
            write_str(out, message);
            out.extend_from_slice(b",\"param\":null");
        });
        self.phase = Phase::Over;
    }

    // writing

    fn emit(&mut self, event: &str, out: &mut Vec<u8>, members: impl FnOnce(&Self, &mut Vec<u8>)) {
        if !self.whole {
            out.extend_from_slice(b"event: ");
            out.extend_from_slice(event.as_bytes());
            out.extend_from_slice(b"\ndata: {\"type\":");
            write_str(out, event);
            out.extend_from_slice(b",\"sequence_number\":");
            write_u64(out, self.sequence);
            members(self, out);
            out.extend_from_slice(b"}\n\n");
            self.sequence += 1;
        }
    }

    fn emit_response(&mut self, event: &str, out: &mut Vec<u8>) {
        self.emit(event, out, |this, out| {
            out.extend_from_slice(b",\"response\":");
            out.extend_from_slice(this.response().to_string().as_bytes());
        });
    }

    fn write_item(&self, at: usize, out: &mut Vec<u8>) {
        out.extend_from_slice(b",\"output_index\":");
        write_u64(out, at as u64);
        out.extend_from_slice(format!(",\"item\":{}", self.items[at].json()).as_bytes());
    }

    /// Which item, and which part of it.
    fn write_place(&self, at: usize, out: &mut Vec<u8>) {
        let item = &self.items[at];
        out.extend_from_slice(b",\"item_id\":");
        write_str(out, &item.id);
        out.extend_from_slice(b",\"output_index\":");
        write_u64(out, at as u64);
        let (name, parts) = match &item.content {
            Content::Message(parts) => (",\"content_index\":", parts),
            Content::Reasoning(parts, _) => (",\"summary_index\":", parts),
            Content::Call(_) => return,
        };
        out.extend_from_slice(name.as_bytes());
        write_u64(out, parts.len().saturating_sub(1) as u64);
    }

    fn response(&self) -> Value {
        let output: Vec<_> = self.items.iter().filter(|item| !item.withdrawn).map(Item::json).collect();
        let incomplete = match self.finish {
            _ if self.status != "incomplete" => Value::Null,
            Some(FinishReason::ContentFilter) => json!({ "reason": "content_filter" }),
            _ => json!({ "reason": "max_output_tokens" }),
        };
        let mut response = self.request.settings.clone();
        for (name, value) in [
            ("id", self.id.as_str().into()),
            ("object", "response".into()),
            ("created_at", self.created_at.into()),
            ("completed_at", if self.status == "completed" { self.completed_at.into() } else { Value::Null }),
            ("status", self.status.into()),
            ("model", if self.model.is_empty() { "unknown" } else { self.model.as_str() }.into()),
            ("output", output.into()),
            ("error", self.error.clone()),
            ("incomplete_details", incomplete),
            ("usage", self.usage.clone()),
        ] {
            response.insert(name.to_owned(), value);
        }
        response.into()
    }

    fn parts(&mut self, at: usize) -> &mut Vec<Part> {
        match &mut self.items[at].content {
            Content::Message(parts) | Content::Reasoning(parts, _) => parts,
            Content::Call(_) => unreachable!("a call has no parts"),
        }
    }

    /// What has been shown of a message.
    fn shown(&self, message: &Id, kind: PartKind) -> String {
        let items = self.of_message.of(message).iter().map(|at| &self.items[*at]).filter(|item| !item.withdrawn);
        let parts = items.flat_map(|item| match &item.content {
            Content::Message(parts) | Content::Reasoning(parts, _) => parts.as_slice(),
            Content::Call(_) => &[],
        });
        parts.filter(|part| part.kind == kind).map(|part| part.text.as_str()).collect()
    }
}

impl PartKind {
    /// The event's name for a part of a message, and for one of a reasoning item.
    fn event(self, text: &'static str, refusal: &'static str, summary: &'static str) -> &'static str {
        match self {
            Self::Refusal if !refusal.is_empty() => refusal,
            Self::Text | Self::Refusal => text,
            Self::Summary => summary,
        }
    }
}

impl Part {
    fn json(&self) -> Value {
        match self.kind {
            PartKind::Text => {
                json!({ "type": "output_text", "text": self.text, "annotations": self.annotations, "logprobs": [] })
            }
            PartKind::Refusal => json!({ "type": "refusal", "refusal": self.text }),
            PartKind::Summary => json!({ "type": "summary_text", "text": self.text }),
        }
    }
}

impl Item {
    fn part(&self) -> Option<&Part> {
        match &self.content {
            Content::Message(parts) | Content::Reasoning(parts, _) => parts.last(),
            Content::Call(_) => None,
        }
    }

    fn json(&self) -> Value {
        let parts = |parts: &[Part]| parts.iter().map(Part::json).collect::<Vec<_>>();
        match &self.content {
            Content::Message(content) => json!({
                "type": "message", "id": self.id, "role": "assistant", "status": self.status, "content": parts(content),
            }),
            Content::Reasoning(summary, _) => json!({
                "type": "reasoning", "id": self.id, "status": self.status, "summary": parts(summary),
            }),
            Content::Call(call) => {
                let mut json = json!({
                    "id": self.id, "status": self.status, "name": call.name.as_str(), "arguments": call.arguments,
                });
                let Some(server) = call.server else {
                    json["type"] = "function_call".into();
                    json["call_id"] = call.wire_id.as_str().into();
                    return json;
                };
                json["type"] = "mcp_call".into();
                json["server_label"] = server.into();
                match &call.output {
                    Some((output, true)) => {
                        json["status"] = "failed".into();
                        json["error"] = json!({ "type": "mcp_tool_execution_error", "content": output });
                    }
                    Some((output, false)) => json["output"] = output.as_str().into(),
                    None => {}
                }
                json
            }
        }
    }
}

impl Encoder for Responses {
    fn one_turn(&self) -> bool {
        true
    }

    fn numbered(&self) -> bool {
        true
    }

    fn finished(&self) -> bool {
        self.phase == Phase::Over
    }

    fn item(&mut self, session: &Session, item: &ReadItem, out: &mut Vec<u8>) {
        self.event(session, item.event(), out);
    }
}
