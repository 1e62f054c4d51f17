//! The life of a turn: its start, and its one end, in order: open messages and calls closed, open stages and the round
//! ended, the fallback message if nothing was said, the completion.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use super::keeper::{Asked, patience};
use super::state::{CallState, error_json};
use super::{Inner, Session, SessionError};
use crate::event::{
    AssistantMessage, Completion, Error, FinishReason, Json, Kind, Origin, Payload, RoundEnd, StageEnd, Status, Text, ToolResult,
    TurnStart,
};

/// How a turn begins.
#[derive(Debug, Default, Clone)]
pub struct TurnOptions {
    /// What the request brought, untouched.
    pub input: Option<Json>,
    /// The client's own id of the request: the same one again with the same input starts nothing.
    pub client_id: Option<Text>,
    /// The backend that runs it.
    pub backend: Option<Text>,
    /// Whatever else belongs to it.
    pub metadata: Option<Json>,
}

/// A turn that was started, now or by an earlier request of the same client id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    /// The turn.
    pub turn: u32,
    /// The seq before its `turn_start`: a reader from there sees all of it.
    pub before: u64,
    /// Whether this call started it.
    pub new: bool,
}

/// How a turn ends.
#[derive(Debug, Default, Clone)]
pub struct Ending {
    /// `None`: completed, unless its events say failed or incomplete.
    pub status: Option<Status>,
    /// Why, in a word.
    pub reason: Option<Text>,
    /// The error it failed with, as JSON `{code, message, …}`.
    pub error: Option<Json>,
    /// The run's result: the message, where no other said anything.
    pub fallback: Option<Text>,
}

/// How many requests a session knows again; a retry comes long before so many others have.
const MAX_REQUESTS: usize = 10_000;

/// How many cancelled turns a session knows: work that has not asked for so many others will not ask.
const MAX_CANCELLED: usize = 1000;

/// A request that had an id of its own, and the turn it started.
#[derive(Debug)]
pub(super) struct Request {
    client_id: Box<str>,
    /// Of its input, which may be a whole conversation: 64 bits tell one from another.
    input: u64,
    turn: u32,
    pub(super) before: u64,
}

fn fingerprint(input: Option<&Json>) -> u64 {
    let mut hasher = DefaultHasher::new();
    input.hash(&mut hasher);
    hasher.finish()
}

/// A cancel that has been told to whoever runs the turn.
pub struct Cancelling {
    /// Whether a turn ran here.
    ran: bool,
    /// Whether one runs elsewhere: the answer is on its way.
    elsewhere: Option<Arc<Asked<bool>>>,
}

impl Cancelling {
    /// Whether a turn ran, once the store knows of its end; waits at most [`super::PATIENCE`].
    pub fn wait(self, session: &Session) -> bool {
        match self.elsewhere {
            None => {
                if self.ran {
                    session.flush();
                }
                self.ran
            }
            Some(asked) => asked.take(patience()).unwrap_or_else(|| session.look(|state| state.running)),
        }
    }
}

impl Session {
    /// Starts a turn. While one runs: [`SessionError::TurnActive`]; where its start cannot be stored, nothing has started:
    /// [`SessionError::Store`].
    pub fn start_turn(&self, options: TurnOptions) -> Result<Started, SessionError> {
        let TurnOptions { input, client_id, backend, metadata } = options;
        // What is not stored is not kept to compare with either: equal requests are redacted equally.
        let start = self.redacted_start(TurnStart { input, client_id, metadata });
        let deadline = patience();
        let _hold = match self.hold_until(deadline) {
            // Another process writes: what is known answers, and where a turn runs, that is why.
            Err(error @ SessionError::NotWriter { .. }) => {
                let inner = self.inner.lock();
                let active = SessionError::TurnActive { session: self.id.clone(), turn: inner.state.turn };
                let error = if inner.state.running { active } else { error };
                return inner.known_turn(&self.id, &start).unwrap_or(Err(error));
            }
            hold => hold?,
        };
        let started = self.change(|inner| {
            if inner.closed {
                return Err(SessionError::Closed(self.id.clone()));
            }
            if !inner.writes() {
                return Err(SessionError::NotWriter { remaining_ms: 0 });
            }
            if let Some(known) = inner.known_turn(&self.id, &start) {
                return known;
            }
            if inner.state.running {
                return Err(SessionError::TurnActive { session: self.id.clone(), turn: inner.state.turn });
            }
            let turn = inner.state.turn + 1;
            let before = inner.log.head;
            if let Some(client_id) = &start.client_id {
                inner.remember(client_id, start.input.as_ref(), turn, before);
            }
            inner.forget_refusal();
            inner.failures_before = inner.statistics.subscriber_failures;
            inner.set_backend(backend.as_deref().map(Into::into));
            inner.push(start.into(), None, turn);
            inner.settle();
            Ok(Started { turn, before, new: true })
        });
        if let Ok(Started { turn, new: true, .. }) = started {
            self.flush_until(deadline); // its cursor is handed out: readers find it, here and elsewhere
            if let Some(error) = self.refusal_of(turn) {
                return Err(SessionError::Store(error));
            }
        }
        started
    }

    /// Ends a turn, once: true if this call did.
    pub fn end_turn(&self, turn: u32, mut ending: Ending) -> bool {
        ending.fallback = ending.fallback.and_then(|text| self.redacted_text(text));
        self.end_with(turn, |inner| {
            inner.finish_turn(turn, ending);
        })
    }

    /// Logs a fatal error and ends the turn as failed, once: true if this call did.
    pub fn fail_turn(&self, turn: u32, code: &str, message: &str) -> bool {
        let message = &*self.redacted_error(code, message);
        self.end_with(turn, |inner| inner.fail(turn, code, message))
    }

    fn end_with(&self, turn: u32, end: impl FnOnce(&mut Inner)) -> bool {
        let (runs, hook) = self.change(|inner| {
            let runs = inner.state.running && inner.state.turn == turn && inner.writes();
            if !runs {
                return (false, None);
            }
            end(inner);
            inner.settle();
            (true, inner.cancelling.take())
        });
        drop(hook); // as in `on_cancel`
        if runs {
            self.flush(); // whoever is told that a turn has ended finds its end
        }
        runs
    }

    /// What [`Self::cancel`] calls, once, to stop the running turn's work; at once if the turn was cancelled already.
    pub fn on_cancel(&self, turn: u32, cancel: Box<dyn FnOnce() + Send>) {
        let mut inner = self.inner.lock();
        if inner.state.running && inner.state.turn == turn {
            let old = inner.cancelling.replace(cancel);
            drop(inner);
            drop(old); // may hold foreign objects: never dropped under the lock
            return;
        }
        drop(inner);
        if self.is_cancelled(turn) {
            cancel();
        }
    }

    /// Stops the running turn: ends it as cancelled with what it has so far, then calls its hook. False if none runs. Where
    /// another process writes the session, asks it to do so, which takes it a moment.
    pub fn cancel(&self, reason: &str) -> bool {
        self.begin_cancel(reason).wait(self)
    }

    /// [`Self::cancel`] that waits for no store: what there is to wait for is the caller's.
    pub fn begin_cancel(&self, reason: &str) -> Cancelling {
        let here = self.writes();
        Cancelling { ran: here && self.cancel_here(reason), elsewhere: if here { None } else { self.cancel_elsewhere(reason) } }
    }

    /// [`Self::cancel`] of a turn that runs here.
    pub(super) fn cancel_here(&self, reason: &str) -> bool {
        let (ran, hook) = self.change(|inner| inner.cancel_turn(inner.state.turn, reason));
        if let Some(hook) = hook {
            hook();
        }
        ran
    }

    /// Ends `turn` as cancelled by the work itself, which was told so already: its hook is not called. True if this call did.
    pub fn leave_turn(&self, turn: u32, reason: &str) -> bool {
        let (ran, hook) = self.change(|inner| inner.cancel_turn(turn, reason));
        drop(hook); // as in `on_cancel`
        if ran {
            self.flush(); // as in `end_with`
        }
        ran
    }

    /// Whether `turn` was cancelled, however many came after it.
    pub fn is_cancelled(&self, turn: u32) -> bool {
        self.inner.lock().cancelled.contains(&turn)
    }

    /// Whether `turn` runs.
    pub fn is_running(&self, turn: u32) -> bool {
        self.look(|state| state.running && state.turn == turn)
    }
}

impl Inner {
    /// Ends `turn` as cancelled if it runs here: whether it did, and its hook.
    fn cancel_turn(&mut self, turn: u32, reason: &str) -> (bool, Option<Box<dyn FnOnce() + Send>>) {
        if !self.state.running || self.state.turn != turn || !self.writes() {
            return (false, None);
        }
        if self.cancelled.len() == MAX_CANCELLED {
            self.cancelled.pop_front();
        }
        self.cancelled.push_back(turn);
        let ending = Ending { status: Some(Status::Cancelled), reason: Some(reason.into()), error: None, fallback: None };
        self.finish_turn(turn, ending);
        self.settle();
        (true, self.cancelling.take())
    }

    /// The turn that an earlier request of the same client id started.
    fn known_turn(&self, session: &Arc<str>, start: &TurnStart) -> Option<Result<Started, SessionError>> {
        let client_id = start.client_id.as_ref()?;
        let &Request { input, turn, before, .. } = self.requests.iter().find(|known| *known.client_id == **client_id)?;
        if input != fingerprint(start.input.as_ref()) {
            return Some(Err(SessionError::Conflict { session: session.clone(), turn }));
        }
        Some(Ok(Started { turn, before, new: false }))
    }

    /// Keeps what an equal request is known by. Of endless many, the oldest is forgotten.
    pub(super) fn remember(&mut self, client_id: &str, input: Option<&Json>, turn: u32, before: u64) {
        if self.requests.len() == MAX_REQUESTS {
            self.requests.pop_front();
        }
        self.requests.push_back(Request { client_id: client_id.into(), input: fingerprint(input), turn, before });
    }

    /// Logs a fatal error and ends the turn as failed.
    pub(super) fn fail(&mut self, turn: u32, code: &str, message: &str) {
        // The error that the stream itself said on its way out is the one: it is not said twice.
        let said = self.state.error.as_ref().map(|(_, error)| error.clone());
        let said = said.filter(|error| error.to_value().get("code").is_some_and(|said| said == code));
        let error = said.unwrap_or_else(|| {
            let error = Error { code: code.into(), message: message.into(), retryable: false, fatal: true, raw: None };
            self.push(error.into(), None, turn);
            error_json(code, message, false)
        });
        let ending = Ending { status: Some(Status::Failed), reason: Some(code.into()), error: Some(error), fallback: None };
        self.finish_turn(turn, ending);
    }

    /// How the newest turn ended, by its events alone.
    fn status_of(&self) -> Status {
        if self.state.error.is_some() {
            Status::Failed
        } else if self.state.truncated.is_some() {
            Status::Incomplete
        } else if self.state.interrupted.is_some() {
            Status::Cancelled
        } else {
            Status::Completed
        }
    }

    pub(super) fn finish_turn(&mut self, turn: u32, ending: Ending) -> u64 {
        let status = match ending.status {
            // What failed did not complete, whatever the code that left the turn believes.
            None | Some(Status::Completed) => self.status_of(),
            Some(status) => status,
        };
        self.close_messages(turn, status);
        self.close_calls(turn, status);
        if self.state.round_open {
            let finish_reason = Some(finish_reason(status));
            self.push(RoundEnd { finish_reason }.into(), None, turn);
        }
        let open: Vec<_> = self.state.stages.iter().filter(|stage| stage.open).map(|stage| stage.stage.clone()).collect();
        for stage in open {
            self.push(StageEnd { stage, status: status.as_str().into(), message: None }.into(), None, turn);
        }
        if let Some(text) = ending.fallback {
            self.admit_fallback(turn, text);
        }
        let error = ending.error.or_else(|| self.state.error.as_ref().map(|(_, error)| error.clone()));
        let reason = ending.reason.or_else(|| match status {
            Status::Incomplete => Some("stream_truncated".into()),
            Status::Failed => Some("error".into()),
            Status::Cancelled => Some("interrupted".into()),
            Status::Completed => None,
        });
        let failures = self.statistics.subscriber_failures - self.failures_before;
        let completion = Completion {
            status,
            reason,
            usage: self.state.usage_json(),
            text: self.state.answer().into(),
            error: if matches!(status, Status::Failed | Status::Incomplete) { error } else { None },
            events: self.state.events + 1,
            subscriber_failures: (failures > 0).then_some(failures),
        };
        self.push(Payload::from(completion), None, turn)
    }

    fn close_messages(&mut self, turn: u32, status: Status) {
        let open: Vec<_> = self.state.open_messages_of(turn).map(|message| message.id.clone()).collect();
        for message_id in open.into_iter().rev() {
            let Some(at) = self.state.message(&message_id) else { continue };
            let message = &self.state.messages[at];
            let whole = AssistantMessage {
                message_id,
                text: Text::default(),
                reasoning: Text::default(),
                refusal: None,
                tool_calls: Vec::new(),
                finish_reason: finish_reason(status),
                finish_reason_raw: None,
                model: message.model.clone(),
                streamed: message.deltas > 0,
                origin: Origin::Provider,
                choice: message.choice,
            };
            self.admit_message(turn, whole, None);
        }
    }

    /// A call that waits for its result gets one when the work is stopped; a completed turn may leave its calls to the
    /// client.
    fn close_calls(&mut self, turn: u32, status: Status) {
        // All are whole before any has its result. None leaves the state before it has both.
        let calls: Vec<_> = self.state.calls_of(turn).map(|(at, _)| at).collect();
        for at in calls.into_iter().rev() {
            self.close_call(turn, at);
        }
        let waits = |call: &CallState| call.status.is_none() && call.kind == Kind::Client;
        let waiting = self.state.calls_of(turn).filter(|(_, call)| waits(call));
        let waiting: Vec<_> = waiting.map(|(_, call)| (call.id.clone(), call.name.clone())).collect();
        let word = match status {
            Status::Completed => return,
            Status::Cancelled => "cancelled",
            Status::Failed | Status::Incomplete => "failed",
        };
        for (call_id, name) in waiting.into_iter().rev() {
            let result = ToolResult { call_id, output: None, is_error: true, status: word.into(), name: Some(name) };
            self.push(result.into(), None, turn);
        }
    }
}

fn finish_reason(status: Status) -> FinishReason {
    match status {
        Status::Completed => FinishReason::Unknown,
        Status::Failed | Status::Incomplete => FinishReason::Error,
        Status::Cancelled => FinishReason::Cancelled,
    }
}
