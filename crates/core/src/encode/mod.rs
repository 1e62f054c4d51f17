//! Events to what one kind of client reads.
//!
//! Owns the bytes that go out. Knows the vocabulary and readers, nothing of providers. Each format is an [`Encoder`], a
//! state machine over the one log; [`FrameStream`] drives it for one client. Invariants: 1. LF only; 2. no frame is
//! ever split over two chunks; 3. what a frame writer has written, the decoder of the same format reads back equal.

pub mod ag_ui;
pub mod ai_sdk;
mod index;
pub mod native;
pub mod openai;
mod openai_chat;
mod openai_responses;
mod sse;
mod stream;
mod teller;

use std::fmt;
use std::time::Duration;

pub use stream::{FrameStream, StreamOptions};

use crate::reader::{Item, Status};
use crate::session::Session;

/// What an encoder is told when its stream opens.
#[derive(Debug, Clone, Copy)]
pub struct Opening<'a> {
    /// The session.
    pub session: &'a Session,
    /// How the cursor was taken.
    pub status: Status,
    /// A heartbeat comes after so much silence.
    pub heartbeat_s: f64,
    /// What `retry:` the client is told, where the format has such a word.
    pub retry_ms: Option<u64>,
}

/// One format, as one client reads it: a state machine that items go into and frames come out of.
///
/// Called in this order: `open`, then `item` and `heartbeat` in any number, then `end` if the reader came to its end.
/// Whatever is appended to `out` in one call is whole frames.
pub trait Encoder: fmt::Debug + Send {
    /// Whether the format must know what came before its first event. It is then told by a `snapshot` as the first item,
    /// wherever but at the log's beginning the stream starts: the state there, from which it re-opens what is open.
    fn wants_state(&self) -> bool {
        false
    }

    /// Whether one body holds one turn: without a cursor the stream then begins with the newest turn, not with the first.
    fn one_turn(&self) -> bool {
        false
    }

    /// Whether the frames are numbered from the turn's beginning: it is then read from there, whatever the cursor, and
    /// event by event, so that every reader counts alike.
    fn numbered(&self) -> bool {
        false
    }

    /// Whether the format's last frame has been written: no item is taken after that.
    fn finished(&self) -> bool {
        false
    }

    /// Before the first item.
    fn open(&mut self, _opening: &Opening<'_>, _out: &mut Vec<u8>) {}

    /// An event of the log, merged deltas, or a `snapshot` or `gap`.
    fn item(&mut self, session: &Session, item: &Item, out: &mut Vec<u8>);

    /// Says that the stream lives: a comment without a blank line, for some clients take a blank line after an id for an
    /// empty event, and the OpenAI SDK one after a comment, which it fails to parse; in NDJSON a line.
    fn heartbeat(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(b": heartbeat\n");
    }

    /// The same where a turn runs that has said nothing for `silent`, which it says too.
    fn heartbeat_of_turn(&mut self, silent: Duration, out: &mut Vec<u8>) {
        sse::write_heartbeat(out, silent);
    }

    /// The server ends the stream before its end: says so, and why, in the formats that have a word for it.
    fn close(&mut self, _session: &Session, _reason: &str, _retry_ms: Option<u64>, _out: &mut Vec<u8>) {}

    /// Nothing comes any more from what was followed.
    fn end(&mut self, _session: &Session, _out: &mut Vec<u8>) {}
}

/// The formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The native stream as server-sent events.
    Sse,
    /// The native stream, one JSON object a line.
    Ndjson,
    /// The Vercel AI SDK's UI message stream.
    AiSdk,
    /// AG-UI events.
    AgUi,
    /// OpenAI Chat Completions.
    OpenAiChat,
    /// OpenAI Responses.
    OpenAiResponses,
}

impl Format {
    /// Every format, by the name that a client asks for.
    pub const ALL: &[(&str, Self)] = &[
        ("sse", Self::Sse),
        ("ndjson", Self::Ndjson),
        ("ai-sdk", Self::AiSdk),
        ("ag-ui", Self::AgUi),
        ("openai-chat", Self::OpenAiChat),
        ("openai-responses", Self::OpenAiResponses),
    ];

    /// The format of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, format)| *format)
    }

    /// An encoder that has said nothing.
    pub fn encoder(self) -> Box<dyn Encoder> {
        match self {
            Self::Sse => Box::new(native::Native::new(native::Framing::Sse)),
            Self::Ndjson => Box::new(native::Native::new(native::Framing::Ndjson)),
            Self::AiSdk => ai_sdk::encoder(),
            Self::AgUi => ag_ui::encoder(),
            Self::OpenAiChat => Box::new(openai_chat::Chat::new()),
            Self::OpenAiResponses => Box::new(openai_responses::Responses::new()),
        }
    }
}
