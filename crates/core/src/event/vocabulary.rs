//! The table of event types, version 1: the one place where a type, its class and its fields are written down.
//!
//! Everything else is derived from it: the Rust structs, the JSON form, the Python classes.
//! A field `name: T` is always on the wire (an `Option` is written as null); a field `name? T` is left out when absent.

/// Calls `$callback!` with the whole vocabulary: `Name "wire_name" class { field: Type, … }` a line.
///
/// Classes: `boundary` (never merged, never dropped for a slow reader), `delta` (neighbours of one kind and id may
/// merge; evicted first), `state` (the latest per stage wins), `control` (not in the log, no seq, no cursor).
#[macro_export]
macro_rules! vocabulary {
    ($callback:ident) => {
        $callback! {
            /// A turn begins: one user request and, until its `completion`, the answer to it.
            TurnStart "turn_start" boundary { input? Json, client_id? Text, metadata? Json }
            /// One model call inside a turn begins.
            RoundStart "round_start" boundary { model? Text, provider? Text }
            /// The model call has ended, on an error too.
            RoundEnd "round_end" boundary { finish_reason? FinishReason }
            /// A message opens. `choice` is its index where the provider answers several times at once.
            MessageStart "message_start" boundary { message_id: Id, role: Text, model? Text, choice? u64 }
            /// What was shown of the message is withdrawn; what follows replaces it. Its calls stand where the reason is
            /// `contradicted`, and are withdrawn with it otherwise.
            MessageReset "message_reset" boundary { message_id: Id, reason? Text }
            /// The message, whole: closes it, once, whether or not deltas came.
            AssistantMessage "assistant_message" boundary {
                message_id: Id, text: Text, reasoning: Text, refusal: Option<Text>, tool_calls: Vec<CallRef>,
                finish_reason: FinishReason, finish_reason_raw: Option<Text>, model: Option<Text>, streamed: bool,
                origin: Origin, choice? u64
            }
            /// A tool call opens; its arguments follow as deltas or whole.
            ToolCallStart "tool_call_start" boundary { call_id: Id, name: Text, kind: Kind, message_id? Id }
            /// A tool call, whole. Where the arguments are not JSON, `arguments` is null and the error says why.
            ToolCall "tool_call" boundary {
                call_id: Id, name: Text, arguments: Option<Json>, arguments_raw: Text, arguments_error: Option<Text>,
                kind: Kind, message_id? Id
            }
            /// What a tool call gave: exactly one per call.
            ToolResult "tool_result" boundary { call_id: Id, output: Option<Json>, is_error: bool, status: Text, name? Text }
            /// A stage of the agent's work begins.
            StageStart "stage_start" boundary { stage: Id, agent? Text, index? u64, total? u64, message? Text }
            /// A stage of the agent's work has ended.
            StageEnd "stage_end" boundary { stage: Id, status: Text, message? Text }
            /// A source the answer refers to. `raw` is the provider's own object.
            Citation "citation" boundary {
                message_id? Id, url? Text, title? Text, text? Text, start? u64, end? u64, raw? Json
            }
            /// A file the model made. `data` is base64.
            File "file" boundary { media_type: Text, name? Text, url? Text, file_id? Text, data? Text, message_id? Id }
            /// What one model call consumed: totals that include their cached and reasoning parts. `raw` as sent.
            Usage "usage" boundary {
                input_tokens: Option<u64>, output_tokens: Option<u64>, total_tokens: Option<u64>,
                cache_read_tokens? u64, cache_write_tokens? u64, reasoning_tokens? u64,
                audio_input_tokens? u64, audio_output_tokens? u64, raw? Json
            }
            /// Something was not as it should be, and the stream goes on.
            Warning "warning" boundary { code: Text, message: Text, raw? Json }
            /// Something failed. An error beats a finish, whichever comes first.
            Error "error" boundary { code: Text, message: Text, retryable: bool, fatal: bool, raw? Json }
            /// What a provider sent that the vocabulary has no word for.
            ProviderEvent "provider_event" boundary { name: Text, data: Option<Json> }
            /// A user's own event.
            Custom "custom" boundary { name: Text, data: Option<Json> }
            /// The turn has ended: exactly one per turn.
            Completion "completion" boundary {
                status: Status, reason: Option<Text>, usage: Option<Json>, text: Text, error: Option<Json>, events: u64,
                subscriber_failures? u64
            }
            /// The session takes no more events.
            SessionEnd "session_end" boundary { reason: Option<Text> }
            /// A piece of a message's text.
            TextDelta "text_delta" delta { message_id: Id, text: Text }
            /// A piece of a message's reasoning; `part` counts its separate parts.
            ReasoningDelta "reasoning_delta" delta { message_id: Id, text: Text, part? u64 }
            /// A piece of a message's refusal.
            RefusalDelta "refusal_delta" delta { message_id: Id, text: Text }
            /// A raw piece of a tool call's arguments.
            ToolCallDelta "tool_call_delta" delta { call_id: Id, text: Text }
            /// A piece of what a running tool prints.
            ToolOutputDelta "tool_output_delta" delta { call_id: Id, text: Text }
            /// How far a stage has come; the latest per stage counts.
            Progress "progress" state {
                stage: Id, current? f64, total? f64, message? Text, agent? Text, elapsed_s? f64, estimate_s? f64
            }
            /// The first frame of every stream: where the log stands and how the cursor was taken.
            StreamOpen "stream_open" control {
                status: Text, epoch: Text, earliest: Option<u64>, head: u64, heartbeat_s: f64, requested? Text
            }
            /// The folded state up to and with `head`, where history is missing.
            Snapshot "snapshot" control { head: u64, state: Option<Json> }
            /// Events `first` to `last` will not come.
            Gap "gap" control { first: u64, last: u64, reason: Text }
            /// The last frame of a stream that the server ends early: come back with the last id. `retry_ms`: not sooner.
            StreamClose "stream_close" control { reason: Text, retry_ms? u64 }
        }
    };
}
