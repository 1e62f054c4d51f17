//! What the providers send, as structs: the fields that the wire has in a text answer. Events of several kinds are one
//! struct of optional fields, which costs less than an enum with its tag inside.
#![allow(dead_code)] // the fields are there to be parsed

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::IgnoredAny;

/// A string that stays in the input where it has no escapes.
#[derive(Deserialize)]
#[serde(transparent)]
pub struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// `OpenAI`'s chat, and Mistral's.
#[derive(Deserialize)]
pub struct Chat<S> {
    id: S,
    object: S,
    created: u64,
    model: S,
    service_tier: Option<S>,
    system_fingerprint: Option<S>,
    choices: Vec<Choice<S>>,
    usage: Option<ChatUsage>,
}

#[derive(Deserialize)]
struct Choice<S> {
    index: u32,
    delta: ChatDelta<S>,
    finish_reason: Option<S>,
}

#[derive(Deserialize)]
struct ChatDelta<S> {
    role: Option<S>,
    content: Option<S>,
    refusal: Option<S>,
    tool_calls: Option<Vec<ToolCall<S>>>,
}

#[derive(Deserialize)]
struct ToolCall<S> {
    index: u32,
    id: Option<S>,
    r#type: Option<S>,
    function: Option<Function<S>>,
}

#[derive(Deserialize)]
struct Function<S> {
    name: Option<S>,
    arguments: Option<S>,
}

#[derive(Deserialize)]
#[allow(clippy::struct_field_names)] // the wire's names
struct ChatUsage {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
}

#[derive(Deserialize)]
pub struct Anthropic {
    r#type: String,
    index: Option<u32>,
    delta: Option<AnthropicDelta>,
    content_block: Option<Block>,
    message: Option<AnthropicMessage>,
    usage: Option<AnthropicUsage>,
}

#[derive(Deserialize)]
struct AnthropicDelta {
    r#type: Option<String>,
    text: Option<String>,
    partial_json: Option<String>,
    stop_reason: Option<String>,
    stop_sequence: Option<String>,
}

#[derive(Deserialize)]
struct Block {
    r#type: String,
    text: Option<String>,
}

#[derive(Deserialize)]
struct AnthropicMessage {
    id: String,
    role: String,
    model: String,
    usage: AnthropicUsage,
}

#[derive(Deserialize)]
#[allow(clippy::struct_field_names)] // the wire's names
struct AnthropicUsage {
    input_tokens: Option<u64>,
    cache_read_input_tokens: Option<u64>,
    output_tokens: Option<u64>,
}

/// `OpenAI`'s responses.
#[derive(Deserialize)]
pub struct Responses {
    r#type: String,
    sequence_number: u64,
    item_id: Option<String>,
    output_index: Option<u32>,
    content_index: Option<u32>,
    delta: Option<String>,
    text: Option<String>,
    logprobs: Option<Vec<IgnoredAny>>,
    obfuscation: Option<String>,
    part: Option<Part>,
    item: Option<Item>,
    response: Option<Response>,
}

#[derive(Deserialize)]
struct Part {
    r#type: String,
    text: Option<String>,
}

#[derive(Deserialize)]
struct Item {
    id: String,
    r#type: String,
    status: Option<String>,
    role: Option<String>,
    content: Option<Vec<Part>>,
}

#[derive(Deserialize)]
struct Response {
    id: String,
    status: String,
    model: String,
    output: Vec<Item>,
    usage: Option<Counts>,
}

#[derive(Deserialize)]
#[allow(clippy::struct_field_names)] // the wire's names
struct Counts {
    input_tokens: u64,
    output_tokens: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Gemini {
    candidates: Vec<Candidate>,
    usage_metadata: Option<GeminiUsage>,
    model_version: String,
    response_id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Candidate {
    index: Option<u32>,
    content: GeminiContent,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct GeminiContent {
    role: Option<String>,
    parts: Vec<GeminiPart>,
}

#[derive(Deserialize)]
struct GeminiPart {
    text: Option<String>,
    thought: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(clippy::struct_field_names)] // the wire's names
struct GeminiUsage {
    prompt_token_count: u64,
    candidates_token_count: Option<u64>,
    total_token_count: u64,
    prompt_tokens_details: Option<Vec<Modality>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Modality {
    modality: String,
    token_count: u64,
}

#[derive(Deserialize)]
pub struct Ollama {
    model: String,
    created_at: String,
    message: OllamaMessage,
    done: bool,
    done_reason: Option<String>,
    total_duration: Option<u64>,
    prompt_eval_count: Option<u64>,
    eval_count: Option<u64>,
}

#[derive(Deserialize)]
struct OllamaMessage {
    role: String,
    content: String,
    thinking: Option<String>,
}

#[derive(Deserialize)]
pub struct Cohere {
    id: Option<String>,
    r#type: String,
    index: Option<u32>,
    delta: Option<CohereDelta>,
}

#[derive(Deserialize)]
struct CohereDelta {
    message: Option<CohereMessage>,
    finish_reason: Option<String>,
    usage: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct CohereMessage {
    role: Option<String>,
    content: Option<CohereContent>,
}

/// An empty list where the message begins, which serde takes for a struct without its fields.
#[derive(Deserialize)]
struct CohereContent {
    #[serde(default)]
    r#type: Option<String>,
    #[serde(default)]
    text: Option<String>,
}

/// Bedrock's Converse, the payload of an AWS message.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Converse {
    content_block_index: Option<u32>,
    delta: Option<ConverseDelta>,
    p: Option<String>,
    role: Option<String>,
    stop_reason: Option<String>,
    usage: Option<ConverseUsage>,
}

#[derive(Deserialize)]
struct ConverseDelta {
    text: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(clippy::struct_field_names)] // the wire's names
struct ConverseUsage {
    input_tokens: u64,
    output_tokens: u64,
    total_tokens: u64,
}

#[derive(Deserialize)]
pub struct LmStudio {
    r#type: String,
    content: Option<String>,
    model_instance_id: Option<String>,
    progress: Option<f64>,
    result: Option<IgnoredAny>,
}

/// A notification of codex's app server, or a line of `codex exec --json`.
#[derive(Deserialize)]
pub struct Codex {
    method: Option<String>,
    params: Option<CodexParams>,
    r#type: Option<String>,
    thread_id: Option<String>,
    item: Option<CodexItem>,
    usage: Option<Counts>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CodexParams {
    thread_id: String,
    turn_id: Option<String>,
    item_id: Option<String>,
    delta: Option<String>,
    item: Option<CodexItem>,
}

#[derive(Deserialize)]
struct CodexItem {
    id: String,
    r#type: String,
    text: Option<String>,
    command: Option<String>,
    aggregated_output: Option<String>,
    exit_code: Option<i32>,
    status: Option<String>,
}
