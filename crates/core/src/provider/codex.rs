//! Codex: the notifications of `codex app-server` (JSON-RPC without its version) and the lines of `codex exec --json`.
//!
//! Owns what threads, turns and items are, and the life of an item from its start to its completion. Codex does not say
//! where one model call ends and the next begins: its turn is one stage and one round.
//! Invariants: 1. one thread is followed, the first that runs a turn; what others say is ignored, and counted; 2. an item
//! starts once and completes once: a start that was left out is made up, a completion that never came is made up at the
//! end; 3. an item's completion beats its deltas; 4. an announced retry takes back the messages that were under way; a
//! turn that failed does so too, an interrupted one keeps what was shown; 5. usage is what the thread's total has grown
//! by, since notices of single calls are repeated; 6. `codex/event/*` says the same once more and is counted only;
//! 7. names in snake case mean what they mean in camel case.
//!
//! Format: <https://github.com/openai/codex/tree/main/codex-rs/app-server>

use std::borrow::Cow;
use std::collections::HashMap;

use serde_json::value::RawValue;

use super::assemble::NO_MESSAGE;
use super::bytes::{Joiner, decode};
use super::lax::text_of;
use super::wire::{Object, pass, unknown};
use super::{Assembler, Likeness, Malformed, Provider, UsageCounts, fault};
use crate::event::json::{write_str, write_u64};
use crate::event::{File, FinishReason, Id, Json, Kind, Text, ToolResult, Warning};
use crate::frame::Frame;

/// Notifications and requests that have no word of their own and pass under their names. Any other is unknown.
const PASSED: &[&str] = &[
    "account/",
    "app/list/updated",
    "command/exec/outputDelta",
    "configWarning",
    "deprecationNotice",
    "externalAgentConfig/",
    "fs/changed",
    "fuzzyFileSearch/",
    "guardianWarning",
    "hook/",
    "item/autoApprovalReview/",
    "item/commandExecution/terminalInteraction",
    "item/fileChange/patchUpdated",
    "item/mcpToolCall/progress",
    "item/plan/delta",
    "mcpServer/",
    "model/safetyBuffering/updated",
    "model/verification",
    "process/",
    "rawResponseItem/",
    "remoteControl/",
    "serverRequest/resolved",
    "skills/changed",
    "thread/",
    "turn/diff/updated",
    "turn/plan/updated",
    "warning",
    "windows/",
    "windowsSandbox/",
];

/// What a server asks of its client: it waits for an answer that somebody else gives.
const REQUESTS: &[&str] = &[
    "account/",
    "applyPatchApproval",
    "attestation/",
    "execCommandApproval",
    "item/commandExecution/requestApproval",
    "item/fileChange/requestApproval",
    "item/permissions/requestApproval",
    "item/tool/",
    "mcpServer/elicitation/request",
];

/// Whether a frame is of this format.
pub(super) fn recognise(frame: &Frame<'_>) -> Likeness {
    let Ok(object) = Object::parse(frame.data) else { return Likeness::No };
    let method = object.text("method");
    if !method.is_empty() {
        let namespace = method.split('/').next().unwrap_or_default();
        let own = ["account", "codex", "item", "mcpServer", "remoteControl", "serverRequest", "thread", "turn"];
        let known = (method.contains('/') && own.contains(&namespace))
            || (method == "error" && Fields(object.object("params")).raw("willRetry").is_some())
            || PASSED.iter().any(|name| *name == method);
        return if known { Likeness::Yes } else { Likeness::No };
    }
    match &*object.text("type") {
        "thread.started" | "turn.started" | "turn.completed" | "turn.failed" => return Likeness::Yes,
        "item.started" | "item.updated" | "item.completed" if object.raw("item").is_some() => return Likeness::Yes,
        "" => {}
        _ => return Likeness::No,
    }
    if object.raw("id").is_none() {
        return Likeness::No;
    }
    // JSON-RPC keeps these numbers for itself.
    let rpc_error = object.object("error").raw("code").is_some_and(|code| code.get().starts_with("-32"));
    let result = object.object("result");
    if rpc_error || ["userAgent", "thread", "turn"].iter().any(|key| result.raw(key).is_some()) {
        return Likeness::Yes;
    }
    if object.raw("result").is_some() { Likeness::Maybe } else { Likeness::No }
}

/// An object whose members are named in camel case, or in snake case.
#[derive(Default)]
struct Fields<'a>(Object<'a>);

impl<'a> Fields<'a> {
    fn of(raw: &'a RawValue) -> Result<Self, Malformed> {
        Object::from_raw(raw).map(Self)
    }

    /// The member's name as it stands here.
    fn key<'k>(&self, camel: &'k str) -> Cow<'k, str> {
        if self.0.raw(camel).is_some() { Cow::Borrowed(camel) } else { Cow::Owned(snake(camel)) }
    }

    fn raw(&self, camel: &str) -> Option<&'a RawValue> {
        self.0.raw(&self.key(camel))
    }

    fn text(&self, camel: &str) -> Cow<'a, str> {
        self.0.text(&self.key(camel))
    }

    fn count(&self, camel: &str) -> Option<u64> {
        self.0.count(&self.key(camel))
    }

    fn fields(&self, camel: &str) -> Self {
        Self(self.0.object(&self.key(camel)))
    }

    fn list(&self, camel: &str) -> Vec<&'a RawValue> {
        self.0.list(&self.key(camel))
    }

    fn is_true(&self, camel: &str) -> bool {
        self.0.is_true(&self.key(camel))
    }
}

fn snake(camel: &str) -> String {
    camel.chars().fold(String::with_capacity(camel.len() + 2), |mut out, letter| {
        if letter.is_ascii_uppercase() {
            out.push('_');
        }
        out.push(letter.to_ascii_lowercase());
        out
    })
}

/// What an item is, as far as it has a word.
#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Message,
    Reasoning,
    /// A tool, whoever runs it.
    Tool(Kind),
    Image,
    /// Said by the user: passed on once.
    User,
    /// A plan, a review, a compaction: passed on as it comes.
    Other,
    /// `codex exec` reports what is not fatal as an item.
    Error,
    Unknown,
}

impl What {
    fn of(kind: &str) -> Self {
        match kind {
            "agentMessage" | "agent_message" | "assistant_message" => Self::Message,
            "reasoning" => Self::Reasoning,
            "commandExecution" | "command_execution" => Self::Tool(Kind::Command),
            "fileChange" | "file_change" => Self::Tool(Kind::FileChange),
            "mcpToolCall" | "mcp_tool_call" => Self::Tool(Kind::Mcp),
            // The client that registered the tool runs it.
            "dynamicToolCall" | "dynamic_tool_call" => Self::Tool(Kind::Client),
            "webSearch" | "web_search" | "imageView" | "image_view" | "sleep" | "collabAgentToolCall" | "collabToolCall"
            | "collab_tool_call" => Self::Tool(Kind::Server),
            "imageGeneration" | "image_generation" => Self::Image,
            "userMessage" | "user_message" => Self::User,
            "error" => Self::Error,
            "plan" | "hookPrompt" | "todoList" | "todo_list" | "enteredReviewMode" | "exitedReviewMode" | "contextCompaction"
            | "subAgentActivity" => Self::Other,
            _ => Self::Unknown,
        }
    }
}

/// An item that has started.
struct Item {
    what: What,
    /// The assembler's key of its message or call.
    key: u64,
    /// A call's own id: another where the provider's was taken.
    call_id: Id,
    done: bool,
    /// What a tool has printed, its last character perhaps still cut, and whether more was held back.
    output: String,
    joiner: Joiner,
    capped: bool,
    /// Whether reasoning has come as a summary.
    summarised: bool,
}

/// What was heard and left out.
#[derive(Default)]
struct Ignored {
    legacy: u64,
    others: u64,
    late: u64,
}

/// The state machine.
#[derive(Default)]
pub(super) struct Codex {
    /// The thread that is followed.
    thread: Option<Box<str>>,
    /// The turn that runs, and how many there were.
    turn: Option<Box<str>>,
    turns: u64,
    /// Every item of the turn that runs, and the tools that outlived theirs.
    items: HashMap<Box<str>, Item>,
    keys: u64,
    /// The thread's usage before the turn, and the newest notice of it.
    before: Option<UsageCounts>,
    total: UsageCounts,
    /// `codex exec` says errors before it says whether they were the end.
    pending: Option<String>,
    ignored: Ignored,
}

impl Provider for Codex {
    fn frame(&mut self, frame: &Frame<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        let object = Object::parse(frame.data)?;
        let method = object.text("method");
        if !method.is_empty() {
            let params = object.raw("params").map(Fields::of).transpose()?.unwrap_or_default();
            let asked = object.raw("id").is_some();
            return if asked { self.request(&method, &params, frame, out) } else { self.notified(&method, &params, frame, out) };
        }
        if object.raw("type").is_some() {
            return self.line(&object, frame, out);
        }
        match (object.raw("error"), object.raw("result")) {
            // Somebody's request was refused: not the turn's failure.
            (Some(error), _) => {
                let message = Object::from_raw(error)?.text("message");
                let raw = Json::from_raw(serde_json::from_slice(frame.data)?)?;
                out.emit(Warning { code: "rpc_error".into(), message: (*message).into(), raw: Some(raw) });
                Ok(())
            }
            (None, Some(_)) => {
                let result = Fields(object.object("result"));
                out.model(&result.fields("thread").text("model"));
                out.model(&result.text("model"));
                pass("response", serde_json::from_slice(frame.data)?, out)
            }
            (None, None) => unknown("untyped", serde_json::from_slice(frame.data)?, out),
        }
    }

    fn finish(&mut self, out: &mut Assembler) {
        if let Some(message) = self.pending.take() {
            out.error("error", &message, false, None);
        }
        let running = self.turn.is_some();
        let mut open: Vec<&mut Item> = self.items.values_mut().filter(|item| !item.done).collect();
        open.sort_unstable_by_key(|item| item.key);
        for item in open {
            if let What::Tool(_) = item.what {
                out.call_cut(item.key);
                item.done = true;
                let output = command_output(&item.output, None, item.capped, false);
                let output = (!item.output.is_empty()).then_some(output);
                result(item, output, running, "incomplete", out);
            }
        }
        if self.turns == 0 {
            // Nobody began a turn that could be cut: the log of a connection.
            out.mark_ended();
        }
        if self.ignored.legacy > 0 {
            let mut data = b"{\"count\":".to_vec();
            write_u64(&mut data, self.ignored.legacy);
            data.push(b'}');
            out.provider_event("codex/event", Some(Json::from_written(data)));
        }
        for (count, code, what) in [
            (self.ignored.others, "other_thread", "notifications of other threads or turns were ignored"),
            (self.ignored.late, "late_event", "notifications came after what they belong to was done, and were ignored"),
        ] {
            if count > 0 {
                out.warning(code, &format!("{count} {what}"));
            }
        }
    }
}

impl Codex {
    // --- app-server -----------------------------------------------------------------------------------------------

    fn request(&mut self, method: &str, params: &Fields<'_>, frame: &Frame<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        if self.is_foreign(method, params) {
            return Ok(());
        }
        let raw = serde_json::from_slice(frame.data)?;
        if listed(REQUESTS, method) { pass(method, raw, out) } else { unknown(method, raw, out) }
    }

    fn notified(&mut self, method: &str, params: &Fields<'_>, frame: &Frame<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        if method.starts_with("codex/event") {
            self.ignored.legacy += 1;
            return Ok(());
        }
        if self.is_foreign(method, params) {
            return Ok(());
        }
        let id = params.text("itemId");
        match method {
            "thread/started" => {
                out.model(&params.fields("thread").text("model"));
                pass_params(method, frame, out)
            }
            "turn/started" => {
                let turn = params.fields("turn");
                self.turn_start(&turn.text("id"), out);
                Ok(())
            }
            "turn/completed" => self.turn_end(&params.fields("turn"), out),
            "item/started" => self.item(params, Self::started, out),
            "item/updated" => self.item(params, Self::updated, out),
            "item/completed" => self.item(params, Self::completed, out),
            "item/agentMessage/delta" => {
                if let Some(key) = self.open_item(&id, What::Message, out) {
                    out.text(key, &params.text("delta"));
                }
                Ok(())
            }
            "item/reasoning/summaryTextDelta" => {
                let part = params.count("summaryIndex").unwrap_or(0);
                self.think(&id, part, true, &params.text("delta"), out);
                Ok(())
            }
            "item/reasoning/textDelta" => {
                let part = params.count("contentIndex").unwrap_or(0);
                self.think(&id, part, false, &params.text("delta"), out);
                Ok(())
            }
            // The delta that follows carries its index.
            "item/reasoning/summaryPartAdded" => Ok(()),
            "item/commandExecution/outputDelta" | "item/fileChange/outputDelta" => self.output(&id, params, out),
            "thread/tokenUsage/updated" => self.usage(&params.fields("tokenUsage"), out),
            "error" => self.error(params, out),
            "model/rerouted" => {
                out.model(&params.text("toModel"));
                pass_params(method, frame, out)
            }
            _ if listed(PASSED, method) => pass_params(method, frame, out),
            _ => unknown(method, serde_json::from_slice(frame.data)?, out),
        }
    }

    /// Whether this is about another thread than the one that is followed, or about a turn that does not run.
    fn is_foreign(&mut self, method: &str, params: &Fields<'_>) -> bool {
        let thread = params.text("threadId");
        let own = match &self.thread {
            _ if thread.is_empty() => true,
            Some(own) => **own == *thread,
            // What stands at a thread's head does not say yet that it is the one.
            None => {
                if method.starts_with("turn/") || method.starts_with("item/") {
                    self.thread = Some((*thread).into());
                }
                true
            }
        };
        let turn = params.text("turnId");
        // A tool may outlive its turn.
        let known = || self.items.contains_key(&*params.text("itemId")) || self.items.contains_key(&*params.fields("item").text("id"));
        let of_running = match &self.turn {
            _ if turn.is_empty() || method == "error" || method.starts_with("thread/") => true,
            Some(running) => **running == *turn || known(),
            None => self.turns == 0 || known(),
        };
        let foreign = !own || !of_running;
        self.ignored.others += u64::from(foreign);
        foreign
    }

    fn turn_start(&mut self, id: &str, out: &mut Assembler) {
        if self.turn.as_deref().is_some_and(|running| running == id) {
            return;
        }
        self.turns += 1;
        self.items.retain(|_, item| !item.done && matches!(item.what, What::Tool(_)));
        self.before = (self.turns > 1).then_some(self.total);
        let id = if id.is_empty() { format!("turn-{}", self.turns) } else { id.to_owned() };
        out.stage_start(&id, "codex");
        out.round_start();
        self.turn = Some(id.into());
    }

    /// Something of a turn whose start was not seen.
    fn within_turn(&mut self, turn: &str, out: &mut Assembler) {
        if self.turn.is_none() && self.turns == 0 {
            self.turn_start(turn, out);
        }
    }

    fn turn_end(&mut self, turn: &Fields<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        let id = turn.text("id");
        if self.turn.is_none() && self.turns > 0 {
            self.ignored.late += 1;
            return Ok(());
        }
        self.within_turn(&id, out);
        // The turn's list names what it came to; usually nothing of it is new.
        for raw in turn.list("items") {
            let item = Fields::of(raw)?;
            if What::of(&item.text("type")) == What::Message {
                self.completed(&item, raw, out)?;
            }
        }
        let status = turn.text("status");
        if let Some(raw) = turn.raw("error")
            && status == "failed"
            && !out.has_error()
        {
            fail(&Fields::of(raw)?, raw, out);
        }
        self.close_turn(&status, out);
        Ok(())
    }

    fn close_turn(&mut self, status: &str, out: &mut Assembler) {
        let reason = match status {
            "interrupted" => FinishReason::Cancelled,
            "failed" => FinishReason::Error,
            _ => FinishReason::Stop,
        };
        if reason == FinishReason::Error && !out.has_error() {
            out.error("error", "the turn failed, and did not say why", false, None);
        }
        if reason == FinishReason::Error {
            self.abandon("failed", out);
        }
        for item in self.items.values_mut().filter(|item| !item.done) {
            if matches!(item.what, What::Message | What::Reasoning) {
                item.done = true;
                out.end_message(item.key, reason);
            }
        }
        out.mark_ended();
        out.round_end_as(Some(reason));
        out.stage_end(if status.is_empty() { "completed" } else { status });
        self.turn = None;
    }

    /// Takes back the messages under way: the model is asked again, or nothing more comes.
    fn abandon(&mut self, why: &str, out: &mut Assembler) {
        let mut open: Vec<&mut Item> = self.items.values_mut().filter(|item| !item.done).collect();
        open.sort_unstable_by_key(|item| item.key);
        for item in open {
            if matches!(item.what, What::Message | What::Reasoning) {
                item.done = true;
                out.withdraw(item.key, why);
            }
        }
    }

    /// What the turn has consumed: the growth of the thread's total. A thread that was resumed has a past.
    fn usage(&mut self, usage: &Fields<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        let Some(raw) = usage.raw("total") else { return Ok(()) };
        self.total = counts(&Fields::of(raw)?);
        let last = counts(&usage.fields("last"));
        let total = self.total;
        let before = *self.before.get_or_insert_with(|| minus(total, last));
        if self.turn.is_some() {
            out.usage(minus(total, before), raw);
        }
        Ok(())
    }

    fn error(&mut self, params: &Fields<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        let Some(raw) = params.raw("error") else { return Err(Malformed("error without an error".into())) };
        let error = Fields::of(raw)?;
        if params.is_true("willRetry") {
            self.abandon("retry", out);
            let message = Text::from(&*error.text("message"));
            out.emit(Warning { code: "retry".into(), message, raw: Some(Json::from_raw(raw)?) });
        } else if !out.has_error() {
            fail(&error, raw, out);
        }
        Ok(())
    }

    // --- items ----------------------------------------------------------------------------------------------------

    fn item(
        &mut self,
        params: &Fields<'_>,
        step: fn(&mut Self, &Fields<'_>, &RawValue, &mut Assembler) -> Result<(), Malformed>,
        out: &mut Assembler,
    ) -> Result<(), Malformed> {
        let Some(raw) = params.raw("item") else { return Err(Malformed("an item's notification without an item".into())) };
        self.within_turn(&params.text("turnId"), out);
        step(self, &Fields::of(raw)?, raw, out)
    }

    fn started(&mut self, item: &Fields<'_>, raw: &RawValue, out: &mut Assembler) -> Result<(), Malformed> {
        let id = item.text("id");
        if self.items.contains_key(&*id) {
            return Ok(());
        }
        let what = kind_of(item);
        match what {
            What::Tool(kind) => self.tool_start(&id, kind, item, out),
            What::Message => {
                let key = self.add(&id, what).key;
                out.open(key, &id, None);
                Ok(())
            }
            What::User => {
                self.add(&id, what).done = true;
                pass("userMessage", raw, out)
            }
            What::Other => {
                self.add(&id, what);
                pass("item/started", raw, out)
            }
            What::Reasoning | What::Image => {
                self.add(&id, what);
                Ok(())
            }
            What::Error => Ok(()),
            What::Unknown => {
                self.add(&id, what);
                unknown("item/started", raw, out)
            }
        }
    }

    fn updated(&mut self, item: &Fields<'_>, raw: &RawValue, out: &mut Assembler) -> Result<(), Malformed> {
        match kind_of(item) {
            What::Tool(_) => {
                self.started(item, raw, out)?;
                let id = item.text("id");
                match self.items.get_mut(&*id) {
                    Some(known) if !known.done => {
                        catch_up(known, &item.text("aggregatedOutput"), out);
                        Ok(())
                    }
                    _ => Ok(()),
                }
            }
            What::Message => {
                let id = item.text("id");
                if let Some(key) = self.open_item(&id, What::Message, out) {
                    out.text_whole(key, &item.text("text"));
                }
                Ok(())
            }
            _ => pass("item/updated", raw, out),
        }
    }

    fn completed(&mut self, item: &Fields<'_>, raw: &RawValue, out: &mut Assembler) -> Result<(), Malformed> {
        let id = item.text("id");
        let what = kind_of(item);
        if self.items.get(&*id).is_some_and(|known| known.done) {
            return Ok(());
        }
        match what {
            What::Message => {
                let Some(key) = self.open_item(&id, what, out) else { return Ok(()) };
                out.text_whole(key, &item.text("text"));
                if let (Some(phase), Some(message)) = (item.raw("phase"), out.message_id(key)) {
                    pass_of("phase", &message, phase, out)?;
                }
                self.done(&id);
                out.end_message(key, FinishReason::Stop);
                Ok(())
            }
            What::Reasoning => {
                self.reasoning_whole(&id, item, out);
                Ok(())
            }
            What::Tool(kind) => {
                if !self.items.contains_key(&*id) {
                    self.tool_start(&id, kind, item, out)?;
                }
                self.tool_end(&id, kind, item, out)
            }
            What::Image => {
                self.add(&id, what).done = true;
                image(item, out);
                Ok(())
            }
            What::User => self.started(item, raw, out),
            What::Error => {
                self.add(&id, what).done = true;
                let message = Text::from(&*item.text("message"));
                out.emit(Warning { code: "item_error".into(), message, raw: Some(Json::from_raw(raw)?) });
                Ok(())
            }
            What::Other => {
                self.add(&id, what).done = true;
                pass("item/completed", raw, out)
            }
            What::Unknown => {
                self.add(&id, what).done = true;
                unknown("item/completed", raw, out)
            }
        }
    }

    /// A new item, or the one that is known under this id.
    fn add(&mut self, id: &str, what: What) -> &mut Item {
        let keys = &mut self.keys;
        self.items.entry(id.into()).or_insert_with(|| {
            *keys += 1;
            Item {
                what,
                key: *keys,
                call_id: Id::from(id),
                done: false,
                output: String::new(),
                joiner: Joiner::default(),
                capped: false,
                summarised: false,
            }
        })
    }

    fn done(&mut self, id: &str) {
        if let Some(item) = self.items.get_mut(id) {
            item.done = true;
        }
    }

    /// The key of a message or of reasoning that may still grow, opened if its start was left out.
    fn open_item(&mut self, id: &str, what: What, out: &mut Assembler) -> Option<u64> {
        self.within_turn("", out);
        let item = self.add(id, what);
        if item.done || item.what != what {
            self.ignored.late += 1;
            return None;
        }
        let key = item.key;
        out.open(key, id, None);
        Some(key)
    }

    // --- reasoning ------------------------------------------------------------------------------------------------

    fn think(&mut self, id: &str, part: u64, summary: bool, piece: &str, out: &mut Assembler) {
        let Some(key) = self.open_item(id, What::Reasoning, out) else { return };
        let item = self.add(id, What::Reasoning);
        item.summarised |= summary;
        // The raw thoughts behind a summary are the same once more, at length.
        if summary || !item.summarised {
            out.reasoning(key, Some(part), piece);
        }
    }

    fn reasoning_whole(&mut self, id: &str, item: &Fields<'_>, out: &mut Assembler) {
        let parts = |list: Vec<&RawValue>| -> Vec<String> {
            let text = |raw: &RawValue| match raw.get().as_bytes()[0] {
                b'{' => Object::from_raw(raw).map(|part| part.text("text").into_owned()).unwrap_or_default(),
                _ => text_of(raw).into_owned(),
            };
            list.into_iter().map(text).filter(|text| !text.is_empty()).collect()
        };
        let mut whole = parts(item.list("summary"));
        if whole.is_empty() {
            whole = parts(item.list("content"));
        }
        if whole.is_empty() && !item.text("text").is_empty() {
            whole.push(item.text("text").into_owned()); // `codex exec` has one text
        }
        let known = self.items.get(id).is_some();
        if whole.is_empty() && !known {
            return;
        }
        let Some(key) = self.open_item(id, What::Reasoning, out) else { return };
        if out.reasoning_so_far(key).is_empty() {
            for (part, text) in whole.iter().enumerate() {
                out.reasoning(key, Some(part as u64), text);
            }
        } else if let Some(suffix) = whole.join("\n\n").strip_prefix(out.reasoning_so_far(key)) {
            out.reasoning(key, None, &suffix.to_owned());
        }
        self.done(id);
        out.end_message(key, FinishReason::Stop);
    }

    // --- tools ----------------------------------------------------------------------------------------------------

    fn tool_start(&mut self, id: &str, kind: Kind, item: &Fields<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        let known = self.add(id, What::Tool(kind));
        let key = known.key;
        // An MCP server's tools and the client's have names; the rest are named by what they are.
        let tool = item.text("tool");
        let name = if tool.is_empty() { item.text("type") } else { tool };
        out.call(key, NO_MESSAGE, id, if name.is_empty() { "tool" } else { &name }, kind);
        known.call_id = out.call_id(key).unwrap_or_else(|| Id::from(id));
        let call_id = known.call_id.clone();
        if let Some(server) = item.raw("server") {
            pass_of("server_name", &call_id, server, out)?;
        }
        // A search says what it looked for when it is done.
        if kind != Kind::Server {
            tool_arguments(key, kind, item, out);
        }
        Ok(())
    }

    fn output(&mut self, id: &str, params: &Fields<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        self.within_turn(&params.text("turnId"), out);
        let Some(item) = self.items.get_mut(id).filter(|item| !item.done) else {
            self.ignored.late += 1;
            return Ok(());
        };
        item.capped |= params.is_true("capReached");
        let piece = match params.raw("deltaBase64") {
            Some(raw) => item.joiner.push(&decode(&text_of(raw))?),
            None => item.joiner.finish() + &params.text("delta"),
        };
        item.output.push_str(&piece);
        out.tool_output(&item.call_id, &piece);
        Ok(())
    }

    fn tool_end(&mut self, id: &str, kind: Kind, item: &Fields<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        let Some(known) = self.items.get_mut(id) else { return Ok(()) };
        known.done = true;
        tool_arguments(known.key, kind, item, out);
        let rest = known.joiner.finish();
        known.output.push_str(&rest);
        out.tool_output(&known.call_id, &rest);
        let status = item.text("status");
        let failure = item.raw("error");
        let refused = item.raw("success").is_some_and(|raw| raw.get() == "false");
        let failed = failure.is_some() || refused || is_failure(&status);
        let output = match kind {
            Kind::Command => {
                let whole = item.text("aggregatedOutput");
                let contradicted = catch_up(known, &whole, out);
                let whole = if whole.is_empty() { known.output.as_str() } else { &whole };
                let code = item.raw("exitCode");
                Some(command_output(whole, code, known.capped || item.is_true("capReached"), contradicted))
            }
            _ => None,
        };
        let said = ["result", "contentItems", "agentsStates"].iter().find_map(|key| item.raw(key)).or(failure);
        let output = match (output, said) {
            (Some(output), None) => Some(output),
            (_, Some(raw)) => Some(Json::from_raw(raw)?),
            (None, None) => (!known.output.is_empty()).then(|| Json::string(&known.output)),
        };
        let status = if status.is_empty() { if failed { "failed" } else { "completed" } } else { &status };
        result(known, output, failed, status, out);
        Ok(())
    }

    // --- exec -----------------------------------------------------------------------------------------------------

    fn line(&mut self, line: &Object<'_>, frame: &Frame<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        let kind = line.text("type");
        // What was said before a failure is the failure; before anything else it was a retry.
        if let Some(message) = self.pending.take_if(|_| kind != "turn.failed") {
            self.abandon("retry", out);
            out.warning("retry", &message);
        }
        match &*kind {
            "thread.started" => pass("thread.started", serde_json::from_slice(frame.data)?, out),
            "turn.started" => {
                self.turn_start("", out);
                Ok(())
            }
            "turn.completed" => {
                self.within_turn("", out);
                if let Some(raw) = line.raw("usage") {
                    out.usage(counts(&Fields::of(raw)?), raw);
                }
                self.close_turn("completed", out);
                Ok(())
            }
            "turn.failed" => {
                self.pending = None;
                self.within_turn("", out);
                if let (Some(raw), false) = (line.raw("error"), out.has_error()) {
                    fail(&Fields::of(raw)?, raw, out);
                }
                self.close_turn("failed", out);
                Ok(())
            }
            "error" => {
                self.within_turn("", out);
                self.pending = Some(line.text("message").into_owned());
                Ok(())
            }
            "item.started" => self.item(&Fields(Object::parse(frame.data)?), Self::started, out),
            "item.updated" => self.item(&Fields(Object::parse(frame.data)?), Self::updated, out),
            "item.completed" => self.item(&Fields(Object::parse(frame.data)?), Self::completed, out),
            name => unknown(name, serde_json::from_slice(frame.data)?, out),
        }
    }
}

/// Whether `name` is in a list whose entries may end in a slash and then stand for all below.
fn listed(list: &[&str], name: &str) -> bool {
    list.iter().any(|entry| *entry == name || (entry.ends_with('/') && name.starts_with(entry)))
}

fn kind_of(item: &Fields<'_>) -> What {
    let kind = item.text("type");
    What::of(if kind.is_empty() { item.text("item_type") } else { kind }.as_ref())
}

/// Passes on a notification's params under its name.
fn pass_params(method: &str, frame: &Frame<'_>, out: &mut Assembler) -> Result<(), Malformed> {
    match Object::parse(frame.data)?.raw("params") {
        Some(params) => pass(method, params, out),
        None => pass(method, serde_json::from_slice(frame.data)?, out),
    }
}

/// Passes on what belongs to a message or a call, beside its id.
fn pass_of(name: &str, id: &Id, raw: &RawValue, out: &mut Assembler) -> Result<(), Malformed> {
    let value = Json::from_raw(raw)?;
    let mut data = b"{\"id\":".to_vec();
    write_str(&mut data, id);
    data.push(b',');
    write_str(&mut data, name);
    data.push(b':');
    data.extend_from_slice(value.as_str().as_bytes());
    data.push(b'}');
    out.provider_event(name, Some(Json::from_written(data)));
    Ok(())
}

/// Says an error of the model's or of codex's own.
fn fail(error: &Fields<'_>, raw: &RawValue, out: &mut Assembler) {
    // A word, or an object whose one member has the details.
    let info = error.raw("codexErrorInfo");
    let object = info.and_then(|raw| Object::from_raw(raw).ok());
    let code = match (&object, info) {
        (Some(object), _) => object.first_key().unwrap_or("error").to_owned(),
        (None, Some(word)) => text_of(word).into_owned(),
        (None, None) => "error".to_owned(),
    };
    let status = object.map(|object| Fields(object.object(&code)).text("httpStatusCode").into_owned()).unwrap_or_default();
    let message = error.text("message");
    let message = if message.is_empty() { "codex reported an error without a message" } else { &message };
    out.error(&code, message, is_retryable(&code, &status), Json::from_raw(raw).ok());
}

fn is_retryable(code: &str, status: &str) -> bool {
    if !status.is_empty() {
        return fault::is_retryable(status);
    }
    let code = code.replace('_', "").to_ascii_lowercase();
    let signs = ["internalservererror", "overloaded", "connectionfailed", "streamdisconnected", "toomanyfailedattempts"];
    signs.iter().any(|sign| code.contains(sign))
}

fn is_failure(status: &str) -> bool {
    matches!(status, "failed" | "declined" | "denied" | "canceled" | "cancelled" | "error" | "errored" | "interrupted" | "timedOut")
}

/// What a tool was asked, once.
fn tool_arguments(key: u64, kind: Kind, item: &Fields<'_>, out: &mut Assembler) {
    let members: &[&str] = match kind {
        Kind::Command => &["command", "cwd"],
        Kind::FileChange => &["changes"],
        Kind::Mcp | Kind::Client => &[],
        Kind::Server => &["query", "action", "path", "prompt", "receiverThreadIds", "durationMs"],
    };
    if !out.call_is_open(key) {
        return;
    }
    if members.is_empty() {
        if let Some(raw) = item.raw("arguments") {
            out.arguments_whole(key, &text_of(raw));
        }
    } else {
        let mut object = vec![b'{'];
        for (name, raw) in members.iter().filter_map(|name| Some((name, item.raw(name)?))) {
            if object.len() > 1 {
                object.push(b',');
            }
            write_str(&mut object, &snake(name));
            object.push(b':');
            object.extend_from_slice(raw.get().as_bytes());
        }
        object.push(b'}');
        out.arguments_whole(key, std::str::from_utf8(&object).unwrap_or("{}"));
    }
    out.call_end(key);
}

/// The whole of what a command printed against the pieces: a missing suffix goes out as a piece. True where the pieces
/// are no prefix of it: the result has the whole, and says so.
fn catch_up(item: &mut Item, whole: &str, out: &mut Assembler) -> bool {
    match whole.strip_prefix(item.output.as_str()) {
        Some(suffix) => {
            out.tool_output(&item.call_id, suffix);
            whole.clone_into(&mut item.output);
            false
        }
        None => !whole.is_empty(),
    }
}

/// A command's result: `replaces` where the pieces that were shown are not how the whole begins.
fn command_output(whole: &str, exit_code: Option<&RawValue>, truncated: bool, replaces: bool) -> Json {
    let mut output = b"{\"output\":".to_vec();
    write_str(&mut output, whole);
    output.extend_from_slice(b",\"exit_code\":");
    output.extend_from_slice(exit_code.map_or("null", RawValue::get).as_bytes());
    for (name, said) in [("truncated", truncated), ("replaces", replaces)] {
        if said {
            output.push(b',');
            write_str(&mut output, name);
            output.extend_from_slice(b":true");
        }
    }
    output.push(b'}');
    Json::from_written(output)
}

/// The end of a tool that may have outlived its turn: no round begins for it.
fn result(item: &Item, output: Option<Json>, is_error: bool, status: &str, out: &mut Assembler) {
    out.emit(ToolResult { call_id: item.call_id.clone(), output, is_error, status: status.into(), name: None });
}

fn image(item: &Fields<'_>, out: &mut Assembler) {
    let some = |text: Cow<'_, str>| (!text.is_empty()).then(|| Text::from(&*text));
    let (name, data) = (some(item.text("savedPath")), some(item.text("result")));
    out.emit(File { media_type: "image/png".into(), name, url: None, file_id: some(item.text("id")), data, message_id: None });
}

/// Counts in both dialects. The input includes what was cached, the output what was reasoned.
fn counts(usage: &Fields<'_>) -> UsageCounts {
    UsageCounts {
        input: usage.count("inputTokens"),
        output: usage.count("outputTokens"),
        total: usage.count("totalTokens"),
        cache_read: usage.count("cachedInputTokens"),
        cache_write: usage.count("cacheWriteInputTokens"),
        reasoning: usage.count("reasoningOutputTokens"),
        ..UsageCounts::default()
    }
}

/// Count by count; never below zero.
fn minus(total: UsageCounts, before: UsageCounts) -> UsageCounts {
    let less = |total: Option<u64>, before: Option<u64>| Some(total?.saturating_sub(before.unwrap_or(0)));
    UsageCounts {
        input: less(total.input, before.input),
        output: less(total.output, before.output),
        total: less(total.total, before.total),
        cache_read: less(total.cache_read, before.cache_read),
        cache_write: less(total.cache_write, before.cache_write),
        reasoning: less(total.reasoning, before.reasoning),
        ..UsageCounts::default()
    }
}
