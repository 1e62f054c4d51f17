//! An answer that was not streamed gives the events of its streamed twin, in every format that has both: neighbouring
//! pieces aside, which a body has no reason to cut, and `streamed`, which says which of both it was.

mod common;

use turnstream_core::event::{Payload, Text};
use turnstream_core::provider::{Normalizer, Options};

fn read(provider: &str, bytes: &str) -> Vec<Payload> {
    let mut normalizer = Normalizer::new(provider, Options::default()).expect("a known provider");
    normalizer.feed(bytes.as_bytes()).expect("a stream");
    normalizer.finish().expect("a stream");
    let events: Vec<Payload> = normalizer.drain().collect();
    assert_eq!(common::rule_faults(&events), [""; 0], "{provider}");
    let faults = events.iter().filter(|event| matches!(event, Payload::Error(_) | Payload::Warning(_))).count();
    assert_eq!(faults, 0, "{provider}: {events:?}");
    events
}

/// Without what only says how the answer was cut.
fn whole(events: Vec<Payload>) -> Vec<Payload> {
    fn join(last: &mut Text, next: &str) {
        *last = Text::from([&**last, next].concat());
    }
    let mut merged: Vec<Payload> = Vec::new();
    for mut event in events {
        if let Payload::AssistantMessage(message) = &mut event {
            message.streamed = false;
        }
        match (merged.last_mut(), &event) {
            (Some(Payload::TextDelta(last)), Payload::TextDelta(next)) => join(&mut last.text, &next.text),
            (Some(Payload::ReasoningDelta(last)), Payload::ReasoningDelta(next)) => join(&mut last.text, &next.text),
            (Some(Payload::ToolCallDelta(last)), Payload::ToolCallDelta(next)) => join(&mut last.text, &next.text),
            _ => merged.push(event),
        }
    }
    merged
}

const TWINS: &[(&str, &str, &[&str])] = &[
    (
        "anthropic",
        r#"{"id":"m","type":"message","role":"assistant","model":"x","content":[{"type":"thinking","thinking":"Hm, so.","signature":"c2ln"},
            {"type":"text","text":"It is so."},{"type":"tool_use","id":"t","name":"add","input":{"a":1}}],
            "stop_reason":"tool_use","usage":{"input_tokens":3,"output_tokens":4}}"#,
        &[
            r#"{"type":"message_start","message":{"id":"m","type":"message","role":"assistant","model":"x","content":[],"usage":{"input_tokens":3,"output_tokens":1}}}"#,
            r#"{"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":""}}"#,
            r#"{"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"Hm, "}}"#,
            r#"{"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"so."}}"#,
            r#"{"type":"content_block_delta","index":0,"delta":{"type":"signature_delta","signature":"c2ln"}}"#,
            r#"{"type":"content_block_stop","index":0}"#,
            r#"{"type":"content_block_start","index":1,"content_block":{"type":"text","text":""}}"#,
            r#"{"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":"It is "}}"#,
            r#"{"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":"so."}}"#,
            r#"{"type":"content_block_stop","index":1}"#,
            r#"{"type":"content_block_start","index":2,"content_block":{"type":"tool_use","id":"t","name":"add","input":{}}}"#,
            r#"{"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":"{\"a\""}}"#,
            r#"{"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":":1}"}}"#,
            r#"{"type":"content_block_stop","index":2}"#,
            r#"{"type":"message_delta","delta":{"stop_reason":"tool_use"},"usage":{"output_tokens":4}}"#,
            r#"{"type":"message_stop"}"#,
        ],
    ),
    (
        "openai-responses",
        r#"{"id":"r","object":"response","status":"completed","model":"x","output":[
            {"id":"i","type":"reasoning","summary":[{"type":"summary_text","text":"Hm, so."}]},
            {"id":"j","type":"message","role":"assistant","content":[{"type":"output_text","text":"It is so."}]},
            {"id":"k","type":"function_call","call_id":"t","name":"add","arguments":"{\"a\":1}"}],
            "usage":{"input_tokens":3,"output_tokens":4,"total_tokens":7}}"#,
        &[
            r#"{"type":"response.created","response":{"id":"r","object":"response","model":"x","status":"in_progress","output":[]}}"#,
            r#"{"type":"response.output_item.added","output_index":0,"item":{"id":"i","type":"reasoning","summary":[]}}"#,
            r#"{"type":"response.reasoning_summary_text.delta","output_index":0,"summary_index":0,"delta":"Hm, "}"#,
            r#"{"type":"response.reasoning_summary_text.delta","output_index":0,"summary_index":0,"delta":"so."}"#,
            r#"{"type":"response.output_item.done","output_index":0,"item":{"id":"i","type":"reasoning","summary":[{"type":"summary_text","text":"Hm, so."}]}}"#,
            r#"{"type":"response.output_item.added","output_index":1,"item":{"id":"j","type":"message","role":"assistant","content":[]}}"#,
            r#"{"type":"response.output_text.delta","output_index":1,"content_index":0,"delta":"It is "}"#,
            r#"{"type":"response.output_text.delta","output_index":1,"content_index":0,"delta":"so."}"#,
            r#"{"type":"response.output_item.done","output_index":1,"item":{"id":"j","type":"message","role":"assistant","content":[{"type":"output_text","text":"It is so."}]}}"#,
            r#"{"type":"response.output_item.added","output_index":2,"item":{"id":"k","type":"function_call","call_id":"t","name":"add","arguments":""}}"#,
            r#"{"type":"response.function_call_arguments.delta","output_index":2,"delta":"{\"a\""}"#,
            r#"{"type":"response.function_call_arguments.delta","output_index":2,"delta":":1}"}"#,
            r#"{"type":"response.output_item.done","output_index":2,"item":{"id":"k","type":"function_call","call_id":"t","name":"add","arguments":"{\"a\":1}"}}"#,
            r#"{"type":"response.completed","response":{"id":"r","object":"response","model":"x","status":"completed","output":[
                {"id":"i","type":"reasoning","summary":[{"type":"summary_text","text":"Hm, so."}]},
                {"id":"j","type":"message","role":"assistant","content":[{"type":"output_text","text":"It is so."}]},
                {"id":"k","type":"function_call","call_id":"t","name":"add","arguments":"{\"a\":1}"}],
                "usage":{"input_tokens":3,"output_tokens":4,"total_tokens":7}}}"#,
        ],
    ),
    (
        "gemini",
        r#"{"responseId":"m","modelVersion":"x","candidates":[{"index":0,"content":{"role":"model","parts":[{"text":"Hm, so.","thought":true},
            {"text":"It is so."},{"functionCall":{"id":"t","name":"add","args":{"a":1}}}]},"finishReason":"STOP"}],
            "usageMetadata":{"promptTokenCount":3,"candidatesTokenCount":4,"totalTokenCount":7}}"#,
        &[
            r#"{"responseId":"m","modelVersion":"x","candidates":[{"index":0,"content":{"role":"model","parts":[{"text":"Hm, ","thought":true}]}}],
                "usageMetadata":{"promptTokenCount":3,"candidatesTokenCount":1,"totalTokenCount":4}}"#,
            r#"{"responseId":"m","modelVersion":"x","candidates":[{"index":0,"content":{"role":"model","parts":[{"text":"so.","thought":true},{"text":"It is "}]}}]}"#,
            r#"{"responseId":"m","modelVersion":"x","candidates":[{"index":0,"content":{"role":"model","parts":[{"text":"so."}]}}]}"#,
            r#"{"responseId":"m","modelVersion":"x","candidates":[{"index":0,"content":{"role":"model","parts":[{"functionCall":{"id":"t","name":"add","args":{"a":1}}}]},
                "finishReason":"STOP"}],"usageMetadata":{"promptTokenCount":3,"candidatesTokenCount":4,"totalTokenCount":7}}"#,
        ],
    ),
    (
        "ollama",
        r#"{"model":"x","created_at":"t","message":{"role":"assistant","thinking":"Hm, so.","content":"It is so.","tool_calls":[
            {"function":{"name":"add","arguments":{"a":1}}}]},"done":true,"done_reason":"stop","prompt_eval_count":3,"eval_count":4}"#,
        &[
            r#"{"model":"x","created_at":"t","message":{"role":"assistant","thinking":"Hm, ","content":""},"done":false}"#,
            r#"{"model":"x","created_at":"t","message":{"role":"assistant","thinking":"so.","content":""},"done":false}"#,
            r#"{"model":"x","created_at":"t","message":{"role":"assistant","content":"It is "},"done":false}"#,
            r#"{"model":"x","created_at":"t","message":{"role":"assistant","content":"so."},"done":false}"#,
            r#"{"model":"x","created_at":"t","message":{"role":"assistant","content":"","tool_calls":[{"function":{"name":"add","arguments":{"a":1}}}]},"done":false}"#,
            r#"{"model":"x","created_at":"t","message":{"role":"assistant","content":""},"done":true,"done_reason":"stop","prompt_eval_count":3,"eval_count":4}"#,
        ],
    ),
    (
        "cohere",
        r#"{"id":"m","finish_reason":"TOOL_CALL","message":{"role":"assistant","content":[{"type":"text","text":"It is so."}],
            "tool_calls":[{"id":"t","type":"function","function":{"name":"add","arguments":"{\"a\":1}"}}]},
            "usage":{"tokens":{"input_tokens":3,"output_tokens":4}}}"#,
        &[
            r#"{"type":"message-start","id":"m","delta":{"message":{"role":"assistant"}}}"#,
            r#"{"type":"content-start","index":0,"delta":{"message":{"content":{"type":"text","text":""}}}}"#,
            r#"{"type":"content-delta","index":0,"delta":{"message":{"content":{"text":"It is "}}}}"#,
            r#"{"type":"content-delta","index":0,"delta":{"message":{"content":{"text":"so."}}}}"#,
            r#"{"type":"content-end","index":0}"#,
            r#"{"type":"tool-call-start","index":0,"delta":{"message":{"tool_calls":{"id":"t","type":"function","function":{"name":"add","arguments":""}}}}}"#,
            r#"{"type":"tool-call-delta","index":0,"delta":{"message":{"tool_calls":{"function":{"arguments":"{\"a\":1}"}}}}}"#,
            r#"{"type":"tool-call-end","index":0}"#,
            r#"{"type":"message-end","delta":{"finish_reason":"TOOL_CALL","usage":{"tokens":{"input_tokens":3,"output_tokens":4}}}}"#,
        ],
    ),
    (
        "bedrock",
        r#"{"output":{"message":{"role":"assistant","content":[{"text":"It is so."},{"toolUse":{"toolUseId":"t","name":"add","input":{"a":1}}}]}},
            "stopReason":"tool_use","usage":{"inputTokens":3,"outputTokens":4,"totalTokens":7},"metrics":{"latencyMs":5}}"#,
        &[
            r#"{"messageStart":{"role":"assistant"}}"#,
            r#"{"contentBlockDelta":{"contentBlockIndex":0,"delta":{"text":"It is "}}}"#,
            r#"{"contentBlockDelta":{"contentBlockIndex":0,"delta":{"text":"so."}}}"#,
            r#"{"contentBlockStop":{"contentBlockIndex":0}}"#,
            r#"{"contentBlockStart":{"contentBlockIndex":1,"start":{"toolUse":{"toolUseId":"t","name":"add"}}}}"#,
            r#"{"contentBlockDelta":{"contentBlockIndex":1,"delta":{"toolUse":{"input":"{\"a\":1}"}}}}"#,
            r#"{"contentBlockStop":{"contentBlockIndex":1}}"#,
            r#"{"messageStop":{"stopReason":"tool_use"}}"#,
            r#"{"metadata":{"usage":{"inputTokens":3,"outputTokens":4,"totalTokens":7},"metrics":{"latencyMs":5}}}"#,
        ],
    ),
    (
        "interactions",
        r#"{"id":"i","object":"interaction","model":"x","status":"requires_action","outputs":[{"type":"text","text":"It is so."},
            {"type":"function_call","id":"t","name":"add","arguments":{"a":1}}],"usage":{"total_input_tokens":3,"total_output_tokens":4,"total_tokens":7}}"#,
        &[
            r#"{"event_type":"interaction.start","interaction":{"id":"i","object":"interaction","model":"x","status":"in_progress"}}"#,
            r#"{"event_type":"content.start","index":0,"content":{"type":"text"}}"#,
            r#"{"event_type":"content.delta","index":0,"delta":{"type":"text","text":"It is "}}"#,
            r#"{"event_type":"content.delta","index":0,"delta":{"type":"text","text":"so."}}"#,
            r#"{"event_type":"content.stop","index":0}"#,
            r#"{"event_type":"content.start","index":1,"content":{"type":"function_call"}}"#,
            r#"{"event_type":"content.delta","index":1,"delta":{"type":"function_call","id":"t","name":"add","arguments":{"a":1}}}"#,
            r#"{"event_type":"content.stop","index":1}"#,
            r#"{"event_type":"interaction.complete","interaction":{"id":"i","object":"interaction","model":"x","status":"requires_action",
                "usage":{"total_input_tokens":3,"total_output_tokens":4,"total_tokens":7}}}"#,
        ],
    ),
    (
        "lmstudio",
        r#"{"model_instance_id":"x","output":[{"type":"reasoning","content":"Hm, so."},{"type":"message","content":"It is so."}],
            "stats":{"input_tokens":3,"total_output_tokens":4}}"#,
        &[
            r#"{"type":"chat.start","model_instance_id":"x"}"#,
            r#"{"type":"reasoning.start"}"#,
            r#"{"type":"reasoning.delta","content":"Hm, "}"#,
            r#"{"type":"reasoning.delta","content":"so."}"#,
            r#"{"type":"reasoning.end"}"#,
            r#"{"type":"message.start"}"#,
            r#"{"type":"message.delta","content":"It is "}"#,
            r#"{"type":"message.delta","content":"so."}"#,
            r#"{"type":"message.end"}"#,
            r#"{"type":"chat.end","result":{"model_instance_id":"x","output":[{"type":"reasoning","content":"Hm, so."},{"type":"message","content":"It is so."}],
                "stats":{"input_tokens":3,"total_output_tokens":4}}}"#,
        ],
    ),
];

#[test]
fn a_body_gives_the_events_of_its_stream() {
    for (provider, body, frames) in TWINS {
        let lines: String = frames.iter().flat_map(|frame| [&*frame.replace('\n', " "), "\n"].map(String::from)).collect();
        let streamed = whole(read(provider, &lines));
        assert!(streamed.iter().any(|event| matches!(event, Payload::Usage(_))), "{provider}");
        assert_eq!(whole(read(provider, body)), streamed, "{provider}");
        assert_eq!(whole(read("auto", &body.replace('\n', " "))), streamed, "{provider}, recognised");
    }
}
