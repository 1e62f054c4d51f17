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
use super::lax::{is_nothing, text_of};
use super::wire::{Object, pass, unknown};
use super::{Assembler, Likeness, Malformed, Provider, UsageCounts, fault};
use crate::event::json::{write_str, write_u64};
use crate::event::{File, FinishReason, Id, Json, Kind, Text, Warning};
use crate::frame::Frame;

/// Notifications and requests that have no word of their own and pass under their names. Any other is unknown.
const PASSED: &[&str] = &[
    "account/",
    "app/list/updated",
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
            "webSearch"
            | "web_search"
            | "imageView"
            | "image_view"
            | "sleep"
            | "collabAgentToolCall"
            | "collabToolCall"
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

/// The items under way, in the order in which they began.
fn open(items: &mut HashMap<Box<str>, Item>) -> Vec<&mut Item> {
    let mut open: Vec<&mut Item> = items.values_mut().filter(|item| !item.done).collect();
    open.sort_unstable_by_key(|item| item.key);
    open
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
        for item in open(&mut self.items) {
            if let What::Tool(_) = item.what {
                out.call_cut(item.key);
                item.done = true;
                let output = command_output(&item.output, None, item.capped, false);
                let output = (!item.output.is_empty()).then_some(output);
                result(item, output, running, "incomplete", out);
            }
        }
        if self.turn.is_none() {
            // No turn runs that could be cut.
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
        if method.starts_with("item/") {
            self.within_turn(&params.text("turnId"), out);
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
            "item/commandExecution/outputDelta" => self.output(&id, Kind::Command, "commandExecution", params, out),
            "item/fileChange/outputDelta" => self.output(&id, Kind::FileChange, "fileChange", params, out),
            // A process that a client runs beside the thread: it has no item, and prints all the same.
            "command/exec/outputDelta" | "process/outputDelta" => {
                let id = process(params);
                self.output(&id, Kind::Command, "command/exec", params, out)
            }
            "process/exited" if self.items.contains_key(&*process(params)) => {
                self.tool_end(&process(params), Kind::Command, params, out)
            }
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
        let known =
            || self.items.contains_key(&*params.text("itemId")) || self.items.contains_key(&*params.fields("item").text("id"));
        let of_running = match &self.turn {
            _ if turn.is_empty() || method == "error" || method.starts_with("thread/") => true,
            // A turn whose start was not seen may have no name.
            Some(running) => running.is_empty() || **running == *turn || known(),
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
        let stage = if id.is_empty() { format!("turn-{}", self.turns) } else { id.to_owned() };
        out.stage_start(&stage, "codex");
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
        if self.turn.as_deref().is_some_and(|running| !running.is_empty() && !id.is_empty() && *running != *id) {
            self.ignored.others += 1;
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
        for item in open(&mut self.items) {
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
        for item in open(&mut self.items) {
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
        let total = self.total;
        let before = *self.before.get_or_insert_with(|| match usage.raw("last") {
            Some(_) => minus(total, counts(&usage.fields("last"))),
            None => UsageCounts::default(),
        });
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
        self.within_turn("", out);
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
                beside(item, what, out)?;
                self.done(&id);
                out.end_message(key, FinishReason::Stop);
                Ok(())
            }
            What::Reasoning => {
                self.reasoning_whole(&id, item, out);
                beside(item, what, out)
            }
            What::Tool(kind) => {
                // Known as something else: its start was of a kind that nobody knows.
                if !self.items.get(&*id).is_some_and(|known| matches!(known.what, What::Tool(_))) {
                    self.tool_start(&id, kind, item, out)?;
                }
                self.tool_end(&id, kind, item, out)?;
                beside(item, what, out)
            }
            What::Image => {
                self.add(&id, what).done = true;
                image(item, out);
                beside(item, what, out)
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
        // Nothing but what is encrypted: no message opens for it.
        if whole.is_empty() && !self.items.get(id).is_some_and(|item| out.is_open(item.key)) {
            self.add(id, What::Reasoning).done = true;
            return;
        }
        let Some(key) = self.open_item(id, What::Reasoning, out) else { return };
        let said = out.reasoning_so_far(key);
        if said.is_empty() {
            for (part, text) in whole.iter().enumerate() {
                out.reasoning(key, Some(part as u64), text);
            }
        } else if let Some(suffix) = whole.join("\n\n").strip_prefix(said) {
            out.reasoning(key, None, suffix);
        }
        self.done(id);
        out.end_message(key, FinishReason::Stop);
    }

    // --- tools ----------------------------------------------------------------------------------------------------

    fn tool_start(&mut self, id: &str, kind: Kind, item: &Fields<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        // An MCP server's tools and the client's have names; the rest are named by what they are.
        let tool = item.text("tool");
        let name = if tool.is_empty() { item.text("type") } else { tool };
        let (key, call_id) = self.tool_open(id, kind, &name, out);
        if let Some(server) = item.raw("server") {
            pass_of("server_name", &call_id, server, out)?;
        }
        // A search says what it looked for when it is done.
        if kind != Kind::Server {
            tool_arguments(key, kind, item, out);
        }
        Ok(())
    }

    fn tool_open(&mut self, id: &str, kind: Kind, name: &str, out: &mut Assembler) -> (u64, Id) {
        let known = self.add(id, What::Tool(kind));
        known.what = What::Tool(kind);
        let key = known.key;
        out.call(key, NO_MESSAGE, id, if name.is_empty() { "tool" } else { name }, kind);
        known.call_id = out.call_id(key).unwrap_or_else(|| Id::from(id));
        (key, known.call_id.clone())
    }

    fn output(&mut self, id: &str, kind: Kind, name: &str, params: &Fields<'_>, out: &mut Assembler) -> Result<(), Malformed> {
        if !self.items.contains_key(id) {
            // What it was asked comes with its completion.
            self.tool_open(id, kind, name, out);
        }
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
        known.output = String::new();
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

/// What a completed item says besides what its events hold: how long it took, who asked for it, thoughts behind a summary.
fn beside(item: &Fields<'_>, what: What, out: &mut Assembler) -> Result<(), Malformed> {
    let known: &[&str] = match what {
        What::Message => &["text", "phase"],
        // The thoughts themselves were shown where there is no summary.
        What::Reasoning if item.list("summary").is_empty() => &["summary", "content", "text"],
        What::Reasoning => &["summary", "text"],
        What::Image => &["savedPath", "result"],
        What::Tool(Kind::Command) => &["command", "cwd", "aggregatedOutput", "exitCode", "capReached"],
        What::Tool(Kind::FileChange) => &["changes"],
        What::Tool(Kind::Server) => &["query", "action", "path", "prompt", "receiverThreadIds", "agentsStates", "tool"],
        _ => &["server", "tool", "arguments", "success", "contentItems"],
    };
    let always = ["type", "itemType", "id", "status", "result", "error"];
    let is_known = |name: &str| always.iter().chain(known).any(|known| *known == name || snake(known) == name);
    let mut data = b"{\"id\":".to_vec();
    write_str(&mut data, &item.text("id"));
    let empty = data.len();
    for (name, raw) in item.0.members().filter(|(name, raw)| !is_nothing(raw) && !is_known(name)) {
        data.push(b',');
        write_str(&mut data, name);
        data.push(b':');
        data.extend_from_slice(Json::from_raw(raw)?.as_str().as_bytes());
    }
    if data.len() > empty {
        data.push(b'}');
        out.provider_event("item/completed", Some(Json::from_written(data)));
    }
    Ok(())
}

/// The name of a process that has no item.
fn process<'a>(params: &Fields<'a>) -> Cow<'a, str> {
    ["itemId", "processId", "processHandle"].iter().map(|key| params.text(key)).find(|id| !id.is_empty()).unwrap_or_default()
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
        (Some(object), _) => {
            let named = object.members().find(|(_, raw)| raw.get().starts_with('{')).or(object.members().next());
            named.map_or("error", |(key, _)| key).to_owned()
        }
        (None, Some(word)) => text_of(word).into_owned(),
        (None, None) => "error".to_owned(),
    };
    let status = object.map(|object| Fields(object.object(&code)).text("httpStatusCode").into_owned()).unwrap_or_default();
    let message = error.text("message");
    let message = if message.is_empty() { "codex reported an error without a message" } else { &message };
    out.error(&snake(&code), message, is_retryable(&code, &status), Json::from_raw(raw).ok());
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
    matches!(
        status,
        "failed" | "declined" | "denied" | "canceled" | "cancelled" | "error" | "errored" | "interrupted" | "timedOut"
    )
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
    out.tool_result(&item.call_id, None, output, is_error, status);
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

#[cfg(test)]
mod tests {
    use base64::Engine as _;

    use super::*;
    use crate::event::{AssistantMessage, Payload, ToolCall};
    use crate::provider::testing::all;
    use crate::provider::{Normalizer, Options, ProtocolError};

    fn try_read(lines: &[String], strict: bool) -> Result<Vec<Payload>, ProtocolError> {
        let mut normalizer = Normalizer::new("codex", Options { strict, ..Options::default() })?;
        normalizer.feed(lines.join("\n").as_bytes()).and_then(|()| normalizer.finish())?;
        Ok(normalizer.drain().collect())
    }

    /// Reads the lines, and the same lines with every name in snake case: both must come to the same.
    fn read(lines: &[String]) -> Vec<Payload> {
        let payloads = try_read(lines, false).unwrap();
        let snaked: Vec<String> = lines.iter().map(|line| snake_members(line)).collect();
        let others = try_read(&snaked, false).unwrap();
        let plain = |payloads: &[Payload]| -> Vec<Payload> {
            payloads.iter().filter(|payload| !matches!(payload, Payload::ProviderEvent(_))).cloned().map(without_raw).collect()
        };
        assert_eq!(plain(&others), plain(&payloads));
        payloads
    }

    fn without_raw(payload: Payload) -> Payload {
        match payload {
            Payload::Usage(mut usage) => {
                usage.raw = None;
                Payload::Usage(usage)
            }
            Payload::Warning(mut warning) => {
                warning.raw = None;
                Payload::Warning(warning)
            }
            Payload::Error(mut error) => {
                error.raw = None;
                Payload::Error(error)
            }
            other => other,
        }
    }

    /// Members' names in snake case; methods, types and other values stay.
    fn snake_members(line: &str) -> String {
        let mut parts = line.split('"').peekable();
        let mut out = parts.next().unwrap_or_default().to_owned();
        while let Some(part) = parts.next() {
            out.push('"');
            // What stands before a colon, in quotes, is a name.
            match parts.peek() {
                Some(next) if next.starts_with(':') => out.push_str(&snake(part)),
                _ => out.push_str(part),
            }
        }
        out
    }

    fn notice(method: &str, params: &str) -> String {
        of("T", "1", method, params)
    }

    /// A notification of a thread and a turn; `params` are its other members.
    fn of(thread: &str, turn: &str, method: &str, params: &str) -> String {
        let comma = if params.is_empty() { "" } else { "," };
        format!(r#"{{"method":"{method}","params":{{"threadId":"{thread}","turnId":"{turn}"{comma}{params}}}}}"#)
    }

    fn turn_of(thread: &str, id: &str, status: &str, error: &str) -> String {
        let method = if status == "inProgress" { "turn/started" } else { "turn/completed" };
        let turn = format!(r#"{{"id":"{id}","items":[],"status":"{status}","error":{error}}}"#);
        format!(r#"{{"method":"{method}","params":{{"threadId":"{thread}","turn":{turn}}}}}"#)
    }

    fn begin() -> String {
        turn_of("T", "1", "inProgress", "null")
    }

    fn done(status: &str) -> String {
        turn_of("T", "1", status, "null")
    }

    fn started(item: &str) -> String {
        notice("item/started", &format!(r#""item":{item}"#))
    }

    fn completed(item: &str) -> String {
        notice("item/completed", &format!(r#""item":{item}"#))
    }

    fn text(id: &str, delta: &str) -> String {
        notice("item/agentMessage/delta", &format!(r#""itemId":"{id}","delta":"{delta}""#))
    }

    fn message(id: &str, text: &str) -> String {
        completed(&format!(r#"{{"type":"agentMessage","id":"{id}","text":"{text}"}}"#))
    }

    fn printed(delta: &str) -> String {
        notice("item/commandExecution/outputDelta", &format!(r#""itemId":"c1","delta":"{delta}""#))
    }

    fn error(message: &str, retry: bool) -> String {
        let info = r#""codexErrorInfo":{"responseStreamDisconnected":{"httpStatusCode":null}}"#;
        notice("error", &format!(r#""error":{{"message":"{message}",{info}}},"willRetry":{retry}"#))
    }

    const COMMAND: &str = r#"{"type":"commandExecution","id":"c1","command":"ls","cwd":"/w","status":"inProgress","aggregatedOutput":null,"exitCode":null}"#;

    fn command_done(output: &str, status: &str) -> String {
        completed(&format!(
            r#"{{"type":"commandExecution","id":"c1","command":"ls","cwd":"/w","status":"{status}","aggregatedOutput":{output},"exitCode":0}}"#
        ))
    }

    fn texts(events: &[Payload]) -> Vec<(&str, &str)> {
        let said = |message: &&std::boxed::Box<AssistantMessage>| !message.text.is_empty();
        let messages = all!(events, AssistantMessage).into_iter().filter(said);
        messages.map(|message| (&*message.message_id, &*message.text)).collect()
    }

    fn output(events: &[Payload]) -> &str {
        let results = all!(events, ToolResult);
        assert_eq!(results.len(), 1);
        results[0].output.as_ref().map_or("", Json::as_str)
    }

    fn printed_text(events: &[Payload]) -> String {
        all!(events, ToolOutputDelta).iter().map(|delta| &*delta.text).collect()
    }

    fn passed<'a>(events: &'a [Payload], name: &str) -> Vec<&'a str> {
        let found = all!(events, ProviderEvent).into_iter().filter(|event| event.name == name);
        found.map(|event| event.data.as_ref().unwrap().as_str()).collect()
    }

    fn codes(events: &[Payload]) -> Vec<&str> {
        all!(events, Warning).iter().map(|warning| &*warning.code).collect()
    }

    fn end(events: &[Payload]) -> (Option<FinishReason>, &str) {
        (all!(events, RoundEnd).last().unwrap().finish_reason, &all!(events, StageEnd).last().unwrap().status)
    }

    #[test]
    fn a_turn_is_a_stage_and_a_round() {
        let events = read(&[begin(), text("m1", "Hel"), text("m1", "lo"), message("m1", "Hello"), done("completed")]);
        assert_eq!(
            events.iter().map(Payload::kind).collect::<Vec<_>>(),
            [
                "stage_start",
                "round_start",
                "message_start",
                "text_delta",
                "text_delta",
                "assistant_message",
                "round_end",
                "stage_end"
            ]
        );
        assert_eq!(end(&events), (Some(FinishReason::Stop), "completed"));
    }

    #[test]
    fn k1_the_copies_of_older_versions_are_counted_and_not_said() {
        let copy = |name: &str| {
            format!(
                r#"{{"method":"codex/event/{name}","params":{{"id":"1","msg":{{"type":"{name}","delta":"Hi"}},"conversationId":"T"}}}}"#
            )
        };
        let events = read(&[
            begin(),
            copy("agent_message_delta"),
            copy("agent_message_content_delta"),
            text("m1", "Hi"),
            message("m1", "Hi"),
            done("completed"),
        ]);
        assert_eq!(texts(&events), [("m1", "Hi")]);
        assert_eq!(passed(&events, "codex/event"), [r#"{"count":2}"#]);
    }

    #[test]
    fn k2_a_first_piece_that_was_left_out_is_in_the_whole() {
        let whole = command_done(r#""line 1\nline 2\n""#, "completed");
        let events = read(&[begin(), started(COMMAND), printed("line 2\\n"), whole, done("completed")]);
        assert_eq!(printed_text(&events), "line 2\n");
        assert_eq!(output(&events), r#"{"output":"line 1\nline 2\n","exit_code":0,"replaces":true}"#);
    }

    #[test]
    fn k2_output_that_comes_at_once_comes_as_a_piece_too() {
        let events = read(&[begin(), started(COMMAND), command_done(r#""all""#, "completed"), done("completed")]);
        assert_eq!((&*printed_text(&events), output(&events)), ("all", r#"{"output":"all","exit_code":0}"#));
    }

    #[test]
    fn edge_17_output_equal_longer_and_different() {
        for (whole, pieces, replaces) in [("ab", "ab", false), ("abc", "abc", false), ("xy", "ab", true), ("", "ab", false)] {
            let done_with = command_done(&format!("\"{whole}\""), "completed");
            let events = read(&[begin(), started(COMMAND), printed("a"), printed("b"), done_with, done("completed")]);
            assert_eq!(printed_text(&events), pieces);
            assert_eq!(output(&events).contains("replaces"), replaces, "{whole}");
            let kept = if whole.is_empty() { "ab" } else { whole };
            assert!(output(&events).starts_with(&format!(r#"{{"output":"{kept}""#)));
        }
    }

    #[test]
    fn k3_edge_14_a_retry_takes_back_the_message_and_is_a_warning() {
        let events = read(&[
            begin(),
            started(r#"{"type":"agentMessage","id":"m1","text":""}"#),
            text("m1", "Lost"),
            error("Reconnecting... 1/2", true),
            text("m2", "Found"),
            message("m2", "Found"),
            done("completed"),
        ]);
        assert_eq!((texts(&events), codes(&events)), (vec![("m2", "Found")], vec!["retry"]));
        assert_eq!(&*all!(events, MessageReset)[0].message_id, "m1");
        assert!(all!(events, Error).is_empty());
        assert_eq!(end(&events), (Some(FinishReason::Stop), "completed"));
    }

    #[test]
    fn k3_edge_15_a_fatal_error_and_the_failed_turn_are_one_error() {
        for with_notice in [true, false] {
            let mut lines = vec![begin(), text("m1", "Lost"), error("gone", true), text("m2", "Lost")];
            if with_notice {
                lines.push(error("disconnected", false));
            }
            let info = r#"{"message":"disconnected","codexErrorInfo":{"responseStreamDisconnected":{"httpStatusCode":null}}}"#;
            lines.push(turn_of("T", "1", "failed", info));
            let events = read(&lines);
            let errors = all!(events, Error);
            assert_eq!(errors.len(), 1);
            assert_eq!((&*errors[0].message, errors[0].retryable, errors[0].fatal), ("disconnected", true, true));
            assert_eq!(all!(events, MessageReset).len(), 2);
            assert_eq!((texts(&events), end(&events)), (vec![], (Some(FinishReason::Error), "failed")));
        }
    }

    #[test]
    fn what_fails_for_good_is_not_worth_a_retry() {
        for (info, code, retryable) in [
            (r#""contextWindowExceeded""#, "context_window_exceeded", false),
            (r#""usageLimitExceeded""#, "usage_limit_exceeded", false),
            (r#""internalServerError""#, "internal_server_error", true),
            (r#""serverOverloaded""#, "server_overloaded", true),
            (r#"{"httpConnectionFailed":{"httpStatusCode":401}}"#, "http_connection_failed", false),
            (r#"{"httpConnectionFailed":{"httpStatusCode":503}}"#, "http_connection_failed", true),
        ] {
            let failed = turn_of("T", "1", "failed", &format!(r#"{{"message":"why","codexErrorInfo":{info}}}"#));
            let events = try_read(&[begin(), failed], false).unwrap();
            let error = all!(events, Error)[0];
            assert_eq!((&*error.code, error.retryable), (code, retryable));
        }
        let events = read(&[begin(), done("failed")]);
        assert_eq!(all!(events, Error).len(), 1, "a failure without a reason is one all the same");
    }

    fn tokens(total: (u64, u64), last: (u64, u64)) -> String {
        let count = |(input, output): (u64, u64)| {
            let sum = input + output;
            format!(
                r#"{{"totalTokens":{sum},"inputTokens":{input},"cachedInputTokens":1,"outputTokens":{output},"reasoningOutputTokens":2}}"#
            )
        };
        notice("thread/tokenUsage/updated", &format!(r#""tokenUsage":{{"total":{},"last":{}}}"#, count(total), count(last)))
    }

    #[test]
    fn k4_usage_is_what_the_total_has_grown_by() {
        let events = read(&[
            begin(),
            tokens((110, 15), (10, 5)), // resumed: 100 and 10 were before
            tokens((110, 15), (10, 5)), // said again
            tokens((120, 20), (10, 5)),
            done("completed"),
            turn_of("T", "2", "inProgress", "null"),
            of(
                "T",
                "2",
                "thread/tokenUsage/updated",
                r#""tokenUsage":{"total":{"inputTokens":150,"outputTokens":21},"last":{}}"#,
            ),
            turn_of("T", "2", "completed", "null"),
        ]);
        let usage = all!(events, Usage);
        assert_eq!(
            usage.iter().map(|usage| (usage.input_tokens, usage.output_tokens)).collect::<Vec<_>>(),
            [(Some(20), Some(10)), (Some(30), Some(1))]
        );
        assert_eq!(usage[0].raw.as_ref().unwrap().to_value()["inputTokens"], 120, "as it was sent");
        assert_eq!(all!(events, StageEnd).len(), 2);
    }

    #[test]
    fn k5_a_command_may_outlive_its_turn() {
        let turn = [begin(), started(COMMAND), printed("a"), message("m1", "Bye"), done("completed")];
        let events = read(&turn);
        let left = all!(events, ToolResult)[0];
        assert_eq!((&*left.status, left.is_error), ("incomplete", false));
        assert_eq!(end(&events), (Some(FinishReason::Stop), "completed"));
        let late = [&turn[..], &[printed("b"), command_done(r#""ab""#, "completed")]].concat();
        let events = read(&late);
        assert_eq!(output(&events), r#"{"output":"ab","exit_code":0}"#);
        assert_eq!(printed_text(&events), "ab");
        assert_eq!((all!(events, RoundStart).len(), all!(events, Error).len()), (1, 0), "no round begins for it");
    }

    #[test]
    fn k5_edge_16_a_completion_without_a_start_makes_the_start_up() {
        let events = read(&[begin(), command_done("null", "declined"), message("m1", "No"), done("completed")]);
        assert_eq!((all!(events, ToolCallStart).len(), all!(events, ToolCall).len()), (1, 1));
        let result = all!(events, ToolResult)[0];
        assert_eq!((&*result.status, result.is_error), ("declined", true));
    }

    #[test]
    fn a_call_that_began_as_something_else_begins_before_its_result() {
        let odd = r#"{"type":"hologram","id":"c1","command":"ls"}"#;
        let end = command_done(r#""a""#, "completed");
        let id = end.split(r#""id":""#).nth(1).and_then(|rest| rest.split('"').next()).unwrap();
        let events = read(&[begin(), started(&odd.replace("c1", id)), end.clone(), done("completed")]);
        let kinds: Vec<&str> =
            events.iter().map(Payload::kind).filter(|kind| matches!(*kind, "tool_call" | "tool_result")).collect();
        assert_eq!(kinds, ["tool_call", "tool_result"]);
        assert!(codes(&events).is_empty());
    }

    #[test]
    fn edge_16_twice_is_once() {
        let lines = [
            begin(),
            started(COMMAND),
            started(COMMAND),
            command_done(r#""a""#, "completed"),
            command_done(r#""a""#, "completed"),
            message("m1", "Hi"),
            message("m1", "Hi"),
            done("completed"),
            done("completed"),
        ];
        let events = read(&lines);
        assert_eq!(
            (all!(events, ToolCallStart).len(), all!(events, ToolResult).len(), all!(events, AssistantMessage).len()),
            (1, 1, 1)
        );
        assert_eq!(all!(events, RoundEnd).len(), 1);
    }

    #[test]
    fn k6_commands_complete_in_any_order() {
        let other = COMMAND.replace("c1", "c2");
        let ends = other.replace("inProgress", "completed").replace(r#""aggregatedOutput":null"#, r#""aggregatedOutput":"2""#);
        let events = read(&[
            begin(),
            started(COMMAND),
            started(&other),
            completed(&ends),
            command_done(r#""1""#, "completed"),
            done("completed"),
        ]);
        let results: Vec<_> =
            all!(events, ToolResult).iter().map(|result| (&*result.call_id, result.output.as_ref().unwrap().as_str())).collect();
        assert_eq!(results, [("c2", r#"{"output":"2","exit_code":null}"#), ("c1", r#"{"output":"1","exit_code":0}"#)]);
    }

    #[test]
    fn k6_edge_20_other_threads_and_turns_are_ignored_and_counted() {
        let events = read(&[
            begin(),
            turn_of("U", "1", "inProgress", "null"),
            text("m1", "A"),
            of("U", "1", "item/agentMessage/delta", r#""itemId":"u1","delta":"B""#),
            of("T", "9", "item/agentMessage/delta", r#""itemId":"m9","delta":"C""#),
            of("U", "1", "error", r#""error":{"message":"not ours"},"willRetry":false"#),
            message("m1", "A"),
            turn_of("U", "1", "failed", "null"),
            turn_of("T", "8", "failed", "null"),
            done("completed"),
        ]);
        assert_eq!(texts(&events), [("m1", "A")]);
        assert!(all!(events, Error).is_empty());
        let warning = all!(events, Warning)[0];
        assert_eq!(
            (&*warning.code, &*warning.message),
            ("other_thread", "6 notifications of other threads or turns were ignored")
        );
    }

    #[test]
    fn edge_20_a_malformed_line_is_said_and_the_next_one_works() {
        let events = try_read(&[begin(), r#"{"method":"#.to_owned(), message("m1", "Hi"), done("completed")], false).unwrap();
        assert_eq!((texts(&events), codes(&events)), (vec![("m1", "Hi")], vec!["malformed_frame"]));
    }

    #[test]
    fn k7_what_the_server_asks_passes_with_its_id() {
        let ask = r#"{"method":"item/commandExecution/requestApproval","id":0,"params":{"threadId":"T","turnId":"1","itemId":"c1","command":"ls"}}"#;
        let tool = r#"{"method":"item/tool/call","id":1,"params":{"threadId":"T","turnId":"1","callId":"d1","tool":"now","arguments":{}}}"#;
        let answer = r#"{"id":0,"result":{"decision":"accept"}}"#;
        let events = read(&[begin(), started(COMMAND), ask.to_owned(), answer.to_owned(), tool.to_owned(), done("completed")]);
        assert_eq!(passed(&events, "item/commandExecution/requestApproval"), [ask]);
        assert_eq!(passed(&events, "item/tool/call"), [tool]);
        assert_eq!(passed(&events, "response"), [answer]);
    }

    #[test]
    fn a_tool_of_the_clients_own_is_the_clients() {
        let item = |status: &str, rest: &str| {
            format!(
                r#"{{"type":"dynamicToolCall","id":"d1","tool":"now","arguments":{{"zone":"UTC"}},"status":"{status}"{rest}}}"#
            )
        };
        let ends = item("completed", r#","success":false,"contentItems":[{"type":"inputText","text":"12:00"}]"#);
        let events = read(&[begin(), started(&item("inProgress", "")), completed(&ends), done("completed")]);
        let call = all!(events, ToolCall)[0];
        assert_eq!(
            (&*call.name, call.kind, call.arguments.as_ref().unwrap().as_str()),
            ("now", Kind::Client, r#"{"zone":"UTC"}"#)
        );
        assert!(all!(events, ToolResult)[0].is_error);
        assert_eq!(output(&events), r#"[{"type":"inputText","text":"12:00"}]"#);
    }

    #[test]
    fn k8_refused_requests_are_warnings_and_fail_no_turn() {
        let refused = r#"{"error":{"code":-32600,"message":"Not initialized"},"id":1}"#;
        let events = read(&[refused.to_owned()]);
        assert_eq!((codes(&events), all!(events, Error).len()), (vec!["rpc_error"], 0));
        let zero = |line: String| line.replace("\"turnId\":\"1\"", "\"turnId\":\"0\"").replace("\"id\":\"1\"", "\"id\":\"0\"");
        let events = read(&[refused.to_owned(), zero(begin()), zero(message("m1", "Hi")), zero(done("completed"))]);
        assert_eq!((texts(&events), end(&events)), (vec![("m1", "Hi")], (Some(FinishReason::Stop), "completed")));
    }

    #[test]
    fn k9_edge_15_an_interrupted_turn_keeps_what_was_shown_and_is_no_failure() {
        let events = read(&[begin(), text("m1", "This will be "), done("interrupted")]);
        assert_eq!(texts(&events), [("m1", "This will be ")]);
        assert_eq!(all!(events, AssistantMessage)[0].finish_reason, FinishReason::Cancelled);
        assert_eq!((end(&events), all!(events, Error).len()), ((Some(FinishReason::Cancelled), "interrupted"), 0));
    }

    #[test]
    fn messages_that_the_turn_leaves_open_close_in_the_order_in_which_they_began() {
        let ids: Vec<String> = (0..20).map(|number| format!("m{number}")).collect();
        let said = ids.iter().map(|id| text(id, "x"));
        let lines: Vec<String> = std::iter::once(begin()).chain(said).chain([done("completed")]).collect();
        assert_eq!(texts(&read(&lines)), ids.iter().map(|id| (id.as_str(), "x")).collect::<Vec<_>>());
    }

    #[test]
    fn k10_what_the_user_adds_in_the_middle_passes_once() {
        let user = r#"{"type":"userMessage","id":"u1","content":[{"type":"text","text":"no, this"}]}"#;
        let events = read(&[begin(), message("m1", "A"), started(user), completed(user), message("m2", "B"), done("completed")]);
        assert_eq!((texts(&events), passed(&events, "userMessage")), (vec![("m1", "A"), ("m2", "B")], vec![user]));
    }

    #[test]
    fn k10_a_turn_without_messages_is_one() {
        let compaction = r#"{"type":"contextCompaction","id":"x1"}"#;
        let events = read(&[begin(), started(compaction), completed(compaction), done("completed")]);
        assert_eq!((all!(events, AssistantMessage).len(), passed(&events, "item/completed")), (0, vec![compaction]));
        assert!(codes(&events).is_empty() && all!(events, Error).is_empty());
    }

    fn exec(lines: &[&str]) -> Vec<Payload> {
        let lines: Vec<String> = [r#"{"type":"thread.started","thread_id":"T"}"#, r#"{"type":"turn.started"}"#]
            .iter()
            .chain(lines)
            .map(|line| (*line).to_owned())
            .collect();
        try_read(&lines, false).unwrap()
    }

    const EXEC_DONE: &str = r#"{"type":"turn.completed","usage":{"input_tokens":9,"cached_input_tokens":4,"output_tokens":2}}"#;

    #[test]
    fn k11_exec_says_messages_and_commands_whole() {
        let events = exec(&[
            r#"{"type":"item.completed","item":{"id":"item_0","type":"reasoning","text":"**Look**"}}"#,
            r#"{"type":"item.started","item":{"id":"item_1","type":"command_execution","command":"ls","aggregated_output":"","status":"in_progress"}}"#,
            r#"{"type":"item.completed","item":{"id":"item_1","type":"command_execution","command":"ls","aggregated_output":"a\n","exit_code":1,"status":"failed"}}"#,
            r#"{"type":"item.completed","item":{"id":"item_2","type":"agent_message","text":"Done."}}"#,
            EXEC_DONE,
        ]);
        assert_eq!(
            (texts(&events), all!(events, AssistantMessage)[0].reasoning.as_str()),
            (vec![("item_2", "Done.")], "**Look**")
        );
        let call = all!(events, ToolCall)[0];
        assert_eq!((call.kind, call.arguments.as_ref().unwrap().as_str()), (Kind::Command, r#"{"command":"ls"}"#));
        assert_eq!((output(&events), all!(events, ToolResult)[0].is_error), (r#"{"output":"a\n","exit_code":1}"#, true));
        let usage = all!(events, Usage)[0];
        assert_eq!((usage.input_tokens, usage.cache_read_tokens, usage.output_tokens), (Some(9), Some(4), Some(2)));
    }

    #[test]
    fn k11_an_error_line_is_a_retry_until_the_turn_fails() {
        let error = r#"{"type":"error","message":"Reconnecting... 1/2"}"#;
        let failed = r#"{"type":"turn.failed","error":{"message":"Quota exceeded."}}"#;
        let answer = r#"{"type":"item.completed","item":{"id":"item_0","type":"agent_message","text":"Hi"}}"#;
        let events = exec(&[error, answer, EXEC_DONE]);
        assert_eq!((codes(&events), texts(&events), all!(events, Error).len()), (vec!["retry"], vec![("item_0", "Hi")], 0));
        let events = exec(&[r#"{"type":"error","message":"Quota exceeded."}"#, failed]);
        assert_eq!((codes(&events), &*all!(events, Error)[0].message), (vec![], "Quota exceeded."));
        assert_eq!((all!(events, Error).len(), end(&events)), (1, (Some(FinishReason::Error), "failed")));
        let events = exec(&[error]);
        assert_eq!(all!(events, Error)[0].message, "Reconnecting... 1/2", "nothing came after it");
    }

    #[test]
    fn k11_a_run_that_broke_off_says_so() {
        let events = exec(&[r#"{"type":"item.started","item":{"id":"item_0","type":"todo_list","items":[]}}"#]);
        assert_eq!((&*all!(events, Error)[0].code, &*all!(events, StageEnd)[0].status), ("stream_truncated", "incomplete"));
        assert_eq!(passed(&events, "item/started").len(), 1);
        let events = exec(&[r#"{"type":"item.started","item":{"id":"item_0","type":"command_execution","command":"ls"}}"#]);
        assert_eq!((&*all!(events, ToolResult)[0].status, all!(events, ToolResult)[0].is_error), ("incomplete", true));
    }

    #[test]
    fn f11_of_an_id_said_twice_the_last_counts() {
        let search = |query: &str, kind: &str| {
            format!(
                r#"{{"type":"{kind}","item":{{"id":"item_0","type":"web_search","id":"ws_1","query":"{query}","action":{{"type":"search"}}}}}}"#
            )
        };
        let events = exec(&[&search("", "item.started"), &search("rain", "item.completed"), EXEC_DONE]);
        let call = all!(events, ToolCall)[0];
        assert_eq!((&*call.call_id, call.kind), ("ws_1", Kind::Server));
        assert_eq!(call.arguments.as_ref().unwrap().as_str(), r#"{"query":"rain","action":{"type":"search"}}"#);
        assert_eq!((&*all!(events, ToolResult)[0].status, all!(events, ToolResult)[0].is_error), ("completed", false));
    }

    #[test]
    fn an_mcp_tool_has_its_own_name_and_result() {
        let item = |rest: &str| {
            format!(r#"{{"type":"mcpToolCall","id":"p1","server":"demo","tool":"echo","arguments":{{"x":"hi"}},{rest}}}"#)
        };
        let ends = item(r#""result":{"content":[{"type":"text","text":"hi"}]},"error":null,"status":"completed""#);
        let events = read(&[
            begin(),
            started(&item(r#""result":null,"error":null,"status":"inProgress""#)),
            completed(&ends),
            done("completed"),
        ]);
        let call: &ToolCall = all!(events, ToolCall)[0];
        assert_eq!((&*call.name, call.kind, &*call.arguments_raw), ("echo", Kind::Mcp, r#"{"x":"hi"}"#));
        assert_eq!(output(&events), r#"{"content":[{"type":"text","text":"hi"}]}"#);
        assert_eq!(passed(&events, "server_name"), [r#"{"id":"p1","server_name":"demo"}"#]);
    }

    #[test]
    fn edge_22_whatever_says_no_is_an_error_and_the_error_is_the_output() {
        for status in ["denied", "declined", "canceled", "cancelled", "failed"] {
            let events = read(&[begin(), started(COMMAND), command_done("null", status), done("completed")]);
            let result = all!(events, ToolResult)[0];
            assert_eq!((&*result.status, result.is_error), (status, true));
        }
        let ends = r#"{"type":"mcpToolCall","id":"p1","server":"demo","tool":"echo","arguments":{},"result":null,"error":{"message":"no such tool"}}"#;
        let events = read(&[begin(), completed(ends), done("completed")]);
        assert_eq!((output(&events), &*all!(events, ToolResult)[0].status), (r#"{"message":"no such tool"}"#, "failed"));
    }

    #[test]
    fn a_change_of_files_says_its_changes() {
        let item =
            r#"{"type":"fileChange","id":"f1","changes":[{"path":"a","kind":{"type":"add"},"diff":"x"}],"status":"STATUS"}"#;
        let said = notice("item/fileChange/outputDelta", r#""itemId":"f1","delta":"ok""#);
        let events = read(&[
            begin(),
            started(&item.replace("STATUS", "inProgress")),
            said,
            completed(&item.replace("STATUS", "completed")),
            done("completed"),
        ]);
        let call = all!(events, ToolCall)[0];
        assert_eq!((call.kind, call.arguments_error.is_none()), (Kind::FileChange, true));
        assert!(call.arguments.as_ref().unwrap().as_str().contains(r#""path":"a""#));
        assert_eq!(output(&events), r#""ok""#);
    }

    #[test]
    fn edge_18_base64_pieces_may_cut_a_character() {
        let whole = "é 日本 🌍";
        let engine = base64::engine::general_purpose::STANDARD;
        for cut in 0..=whole.len() {
            let piece = |bytes: &[u8]| {
                let data = engine.encode(bytes);
                notice("item/commandExecution/outputDelta", &format!(r#""itemId":"c1","deltaBase64":"{data}""#))
            };
            let (first, second) = whole.as_bytes().split_at(cut);
            let ends = command_done(&format!("\"{whole}\""), "completed");
            let events = read(&[begin(), started(COMMAND), piece(first), piece(second), ends, done("completed")]);
            assert_eq!(printed_text(&events), whole, "{cut}");
            assert!(!output(&events).contains("replaces"));
        }
    }

    #[test]
    fn edge_19_output_that_was_held_back_is_flagged() {
        let capped = notice("item/commandExecution/outputDelta", r#""itemId":"c1","delta":"a","capReached":true"#);
        let events = read(&[begin(), started(COMMAND), capped, command_done(r#""a""#, "completed"), done("completed")]);
        assert_eq!(output(&events), r#"{"output":"a","exit_code":0,"truncated":true}"#);
    }

    #[test]
    fn output_without_a_start_is_kept() {
        let events = read(&[begin(), printed("a"), printed("b"), command_done(r#""abc""#, "completed"), done("completed")]);
        assert_eq!((&*printed_text(&events), output(&events)), ("abc", r#"{"output":"abc","exit_code":0}"#));
        let call = all!(events, ToolCall)[0];
        assert_eq!(
            (&*call.name, call.arguments.as_ref().unwrap().as_str()),
            ("commandExecution", r#"{"command":"ls","cwd":"/w"}"#)
        );
    }

    #[test]
    fn edge_18_19_a_process_beside_the_thread_prints_too() {
        let piece = |data: &str, capped: bool| {
            format!(
                r#"{{"method":"command/exec/outputDelta","params":{{"processId":"p1","stream":"stdout","deltaBase64":"{data}","capReached":{capped}}}}}"#
            )
        };
        let events = read(&[piece("w6k=", false), piece("YQ==", true)]);
        assert_eq!((&*printed_text(&events), output(&events)), ("éa", r#"{"output":"éa","exit_code":null,"truncated":true}"#));
        let events = read(&[begin(), done("completed"), piece("w6k=", false)]);
        assert!(all!(events, Error).is_empty(), "no turn was cut");
        let exited = r#"{"method":"process/exited","params":{"processHandle":"p1","exitCode":3}}"#;
        let events = read(&[piece("w6k=", false), exited.to_owned()]);
        assert_eq!(output(&events), r#"{"output":"é","exit_code":3}"#);
    }

    #[test]
    fn edge_21_what_is_not_known_passes_and_strict_refuses_it() {
        for line in [
            notice("weather/changed", r#""sky":"blue""#),
            started(r#"{"type":"hologram","id":"h1"}"#),
            r#"{"method":"weather/ask","id":7,"params":{}}"#.to_owned(),
            r#"{"type":"weather.changed"}"#.to_owned(),
        ] {
            let lines = [begin(), line.clone(), message("m1", "Hi"), done("completed")];
            let events = read(&lines);
            assert_eq!((texts(&events), all!(events, ProviderEvent).len()), (vec![("m1", "Hi")], 1), "{line}");
            assert!(try_read(&lines, true).is_err(), "{line}");
        }
        let known = [begin(), notice("turn/plan/updated", r#""plan":[]"#), message("m1", "Hi"), done("completed")];
        assert_eq!(passed(&try_read(&known, true).unwrap(), "turn/plan/updated").len(), 1);
    }

    #[test]
    fn edge_23_after_a_reroute_the_other_model_speaks() {
        let thread = r#"{"id":2,"result":{"thread":{"id":"T"},"model":"m-1"}}"#;
        let reroute = notice("model/rerouted", r#""fromModel":"m-1","toModel":"m-2","reason":"capacity""#);
        let events = read(&[thread.to_owned(), begin(), message("a", "A"), reroute, message("b", "B"), done("completed")]);
        let models: Vec<_> = all!(events, AssistantMessage).iter().map(|message| message.model.as_deref()).collect();
        assert_eq!((models, passed(&events, "model/rerouted").len()), (vec![Some("m-1"), Some("m-2")], 1));
        assert_eq!(all!(events, RoundStart)[0].model.as_deref(), Some("m-1"));
    }

    #[test]
    fn edge_24_parts_of_reasoning_stay_apart() {
        let think = |part: u64, delta: &str| {
            notice("item/reasoning/summaryTextDelta", &format!(r#""itemId":"r1","summaryIndex":{part},"delta":"{delta}""#))
        };
        let added = notice("item/reasoning/summaryPartAdded", r#""itemId":"r1","summaryIndex":1"#);
        let whole = completed(r#"{"type":"reasoning","id":"r1","summary":["One.","Two."],"content":[]}"#);
        let events =
            read(&[begin(), think(0, "One."), added, think(1, "Two."), whole.clone(), message("m1", "Hi"), done("completed")]);
        let reasoning = |events: &[Payload]| all!(events, AssistantMessage)[0].reasoning.to_string();
        assert_eq!(reasoning(&events), "One.\n\nTwo.");
        let parts: Vec<_> = all!(events, ReasoningDelta).iter().map(|delta| delta.part).collect();
        assert_eq!(parts, [Some(0), Some(1), Some(1)]);
        for pieces in [vec![], vec![think(0, "On")], vec![think(0, "One.")], vec![think(0, "One."), think(1, "Tw")]] {
            let lines = [vec![begin()], pieces, vec![whole.clone(), message("m1", "Hi"), done("completed")]].concat();
            assert_eq!(reasoning(&read(&lines)), "One.\n\nTwo.");
        }
    }

    #[test]
    fn encrypted_reasoning_opens_no_message() {
        let item = r#"{"type":"reasoning","id":"r1","summary":[],"content":[]}"#;
        let events = read(&[begin(), started(item), completed(item), message("m1", "Hi"), done("completed")]);
        assert_eq!(all!(events, MessageStart).len(), 1);
    }

    #[test]
    fn a_start_that_was_missed_is_made_up() {
        let events = read(&[text("m1", "Hel"), message("m1", "Hello"), text("m2", "!"), message("m2", "!"), done("completed")]);
        let said = vec![("m1", "Hello"), ("m2", "!")];
        assert_eq!((texts(&events), end(&events)), (said, (Some(FinishReason::Stop), "completed")));
        assert_eq!((all!(events, StageStart).len(), &*all!(events, StageStart)[0].stage), (1, "1"));
        let listed = r#"{"method":"turn/completed","params":{"threadId":"T","turn":{"id":"1","items":[{"type":"agentMessage","id":"m1","text":"Hi"}],"status":"completed"}}}"#;
        assert_eq!(texts(&read(&[begin(), listed.to_owned()])), [("m1", "Hi")]);
    }

    #[test]
    fn edge_13_a_stream_that_ends_in_a_turn_was_cut() {
        let events = read(&[begin(), message("m1", "A"), text("m2", "Half")]);
        assert_eq!(all!(events, Error)[0].code, "stream_truncated");
        assert_eq!((texts(&events), &*all!(events, StageEnd)[0].status), (vec![("m1", "A"), ("m2", "Half")], "incomplete"));
    }

    #[test]
    fn a_turn_after_a_failed_one_is_its_own() {
        let events = read(&[
            begin(),
            error("gone", false),
            done("failed"),
            turn_of("T", "2", "inProgress", "null"),
            of("T", "2", "item/completed", r#""item":{"type":"agentMessage","id":"m1","text":"Hi"}"#),
            turn_of("T", "2", "completed", "null"),
        ]);
        assert_eq!(all!(events, AssistantMessage)[0].finish_reason, FinishReason::Stop);
        assert_eq!(
            all!(events, RoundEnd).iter().map(|end| end.finish_reason).collect::<Vec<_>>(),
            [Some(FinishReason::Error), Some(FinishReason::Stop)]
        );
    }

    #[test]
    fn recognised_by_its_words_and_taken_for_no_others() {
        let likeness = |line: &str| recognise(&Frame { event: "", data: line.as_bytes(), offset: 0 });
        for line in
            [&begin(), &error("x", true), r#"{"type":"turn.started"}"#, r#"{"error":{"code":-32600,"message":"x"},"id":1}"#]
        {
            assert_eq!(likeness(line), Likeness::Yes, "{line}");
            assert_eq!(likeness(&snake_members(line)), Likeness::Yes, "{line}");
        }
        assert_eq!(likeness(r#"{"id":1,"result":{}}"#), Likeness::Maybe);
        for line in [
            r#"{"error":{"code":429,"message":"x"}}"#,
            r#"{"id":"chatcmpl-1","choices":[]}"#,
            r#"{"type":"message_start"}"#,
            r#"{"jsonrpc":"2.0","method":"tools/list","id":1}"#,
            "7",
        ] {
            assert_eq!(likeness(line), Likeness::No, "{line}");
        }
    }
}
