//! Frames to events: one file per wire format, each a state machine behind [`Provider`].
//!
//! Owns what the providers' own words mean. Knows nothing of sessions, readers or clients; nobody else knows a
//! provider's name. Invariants: 1. any split of the bytes gives equal events; 2. every message that opens is closed by
//! one `assistant_message`, every call by one `tool_call`, every round by one `round_end`, on errors and truncation
//! too; 3. the deltas' text is a prefix of the message's, unless a `message_reset` stands between; 4. what the
//! vocabulary has no word for passes as `provider_event`; 5. memory is a small multiple of the input.

mod anthropic;
mod arguments;
mod assemble;
mod assistants;
mod bedrock;
mod bytes;
mod codex;
mod cohere;
mod conversations;
mod echo;
mod fault;
mod gemini;
mod generate;
mod halves;
mod interactions;
mod lax;
mod lmstudio;
mod mcp;
mod normalizer;
mod numbers;
mod ollama;
mod openai_chat;
mod openai_responses;
mod realtime;
mod replicate;
#[cfg(test)]
mod testing;
mod text_tools;
mod transcription;
mod watsonx;
mod wire;

use crate::frame::{Frame, FrameError};

pub use assemble::{Assembler, DISORDER, UsageCounts};
pub use echo::Piece;
pub use normalizer::{Normalizer, Options};

/// The codes of errors that the reader finds by itself; every other is the provider's own.
pub const READER_ERRORS: [&str; 3] = ["stream_truncated", "frame_too_long", "protocol_error"];

/// One wire format's state machine. Frames in, calls on the [`Assembler`] out.
pub trait Provider: Send + Sync {
    /// Takes one frame.
    ///
    /// # Errors
    /// The frame is not what the format says. The driver makes it a `warning` (lenient) or raises it (strict); the
    /// state machine must be able to go on with the next frame.
    fn frame(&mut self, frame: &Frame<'_>, out: &mut Assembler) -> Result<(), Malformed>;

    /// Members whose values mean nothing, where a frame holds one piece and nothing else ([`Assembler::echo`]).
    fn noise(&self) -> &'static [&'static str] {
        &[]
    }

    /// The bytes have ended: says what only the end can tell. The driver then closes everything that is still open.
    fn finish(&mut self, out: &mut Assembler);
}

/// How surely a frame is of a format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Likeness {
    /// It is not.
    No,
    /// It may be; taken when nothing better comes.
    Maybe,
    /// It is.
    Yes,
}

/// One line of the catalog.
struct Entry {
    name: &'static str,
    make: fn() -> Box<dyn Provider>,
    recognise: fn(&Frame<'_>) -> Likeness,
}

/// Every wire format that can be read, sorted by name: a new one is one line here.
const CATALOG: &[Entry] = &[
    Entry { name: "anthropic", make: || Box::<anthropic::Anthropic>::default(), recognise: anthropic::recognise },
    Entry { name: "assistants", make: || Box::<assistants::Assistants>::default(), recognise: assistants::recognise },
    Entry { name: "bedrock", make: || Box::<bedrock::Bedrock>::default(), recognise: bedrock::recognise },
    Entry { name: "codex", make: || Box::<codex::Codex>::default(), recognise: codex::recognise },
    Entry { name: "cohere", make: || Box::<cohere::Cohere>::default(), recognise: cohere::recognise },
    Entry { name: "conversations", make: || Box::<conversations::Conversations>::default(), recognise: conversations::recognise },
    Entry { name: "gemini", make: || Box::<gemini::Gemini>::default(), recognise: gemini::recognise },
    Entry { name: "generate", make: || Box::<generate::Generate>::default(), recognise: generate::recognise },
    Entry { name: "interactions", make: || Box::<interactions::Interactions>::default(), recognise: interactions::recognise },
    Entry { name: "lmstudio", make: || Box::<lmstudio::LmStudio>::default(), recognise: lmstudio::recognise },
    Entry { name: "mcp", make: || Box::<mcp::Mcp>::default(), recognise: mcp::recognise },
    Entry { name: "ollama", make: || Box::<ollama::Ollama>::default(), recognise: ollama::recognise },
    Entry { name: "openai-chat", make: || Box::new(openai_chat::OpenAiChat::new()), recognise: openai_chat::recognise },
    Entry {
        name: "openai-responses",
        make: || Box::<openai_responses::OpenAiResponses>::default(),
        recognise: openai_responses::recognise,
    },
    Entry { name: "realtime", make: || Box::<realtime::Realtime>::default(), recognise: realtime::recognise },
    Entry { name: "replicate", make: || Box::<replicate::Replicate>::default(), recognise: replicate::recognise },
    Entry { name: "transcription", make: || Box::<transcription::Transcription>::default(), recognise: transcription::recognise },
    Entry { name: "watsonx", make: || Box::<watsonx::Watsonx>::default(), recognise: watsonx::recognise },
];

/// The names of all wire formats, sorted.
pub fn providers() -> impl Iterator<Item = &'static str> {
    CATALOG.iter().map(|entry| entry.name)
}

/// A fresh state machine for `name`, and the name with the lifetime of the catalog.
pub fn make(name: &str) -> Option<(&'static str, Box<dyn Provider>)> {
    CATALOG.iter().find(|entry| entry.name == name).map(|entry| (entry.name, (entry.make)()))
}

/// The format that a frame is surest of.
pub fn recognise(frame: &Frame<'_>) -> Option<(&'static str, Likeness)> {
    let best = CATALOG.iter().map(|entry| (entry.name, (entry.recognise)(frame))).max_by_key(|(_, likeness)| *likeness);
    best.filter(|(_, likeness)| *likeness != Likeness::No)
}

/// Who reads a body that is an error and nothing else, in words that are no provider's own: gateways write such.
fn recognise_error(frame: &Frame<'_>) -> Option<&'static str> {
    let object = wire::Object::parse(frame.data).ok()?;
    let says = ["message", "Message", "detail"].iter().any(|key| object.raw(key).is_some());
    (says || !object.list("errors").is_empty()).then_some("openai-chat")
}

/// What is wrong with one frame: lower case, what was seen, never the payload's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed(pub String);

impl<E: std::error::Error> From<E> for Malformed {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

/// Why a stream cannot be normalised.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// No such provider.
    #[error("unknown provider {name:?}; known: {known}")]
    UnknownProvider {
        /// What was asked for.
        name: String,
        /// All there are.
        known: String,
    },
    /// `auto` knows no provider that speaks like this.
    #[error("no known provider's stream in {frames} frames")]
    Unrecognised {
        /// How many frames were looked at.
        frames: usize,
    },
    /// There were bytes, and not one frame of the provider's among them.
    #[error("{provider}: not one frame of its format")]
    NoStream {
        /// The provider.
        provider: &'static str,
    },
    /// The bytes are not frames.
    #[error("{provider}: {error}")]
    Frame {
        /// The provider.
        provider: &'static str,
        /// What was seen, and where.
        error: FrameError,
    },
    /// A frame is not what the provider's format says, and the reader is strict.
    #[error("{provider}: frame at byte {offset}: {message}")]
    Malformed {
        /// The provider.
        provider: &'static str,
        /// Where the frame begins.
        offset: u64,
        /// What was seen.
        message: String,
    },
    /// There were bytes after the end that somebody said.
    #[error("{provider}: bytes after the end; a normalizer reads one stream")]
    Ended {
        /// The provider.
        provider: &'static str,
    },
}
