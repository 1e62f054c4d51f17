//! Frames that are compared with the last one say what they say when each is read: whatever came between them.

mod common;

use proptest::prelude::*;
use turnstream_core::event::Payload;
use turnstream_core::provider::{Normalizer, Options};

/// Frames with a piece where `@` stands, and some that change what is going on around them.
const FORMATS: [(&str, &[&str]); 5] = [
    (
        "openai-chat",
        &[
            r#"{"id":"m","choices":[{"index":0,"delta":{"content":"@"},"finish_reason":null}],"usage":null}"#,
            r#"{"id":"m","choices":[{"index":1,"delta":{"content":"@"},"finish_reason":null}],"usage":null}"#,
            r#"{"id":"m","choices":[{"index":0,"delta":{"reasoning":"@"}}]}"#,
            r#"{"id":"m","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"@"}}]}}]}"#,
            r#"{"id":"m","choices":[{"index":0,"delta":{"tool_calls":[{"index":1,"function":{"arguments":"@"}}]}}]}"#,
            r#"{"id":"m","choices":[{"index":0,"delta":{"tool_calls":[{"function":{"arguments":"@"}}]}}]}"#,
            r#"{"id":"m","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"c","function":{"name":"f","arguments":"@"}}]}}]}"#,
            r#"{"id":"m","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"d","function":{"name":"g","arguments":""}}]}}]}"#,
            r#"{"id":"m","choices":[{"index":0,"delta":{"tool_calls":[{"index":1,"id":"e","function":{"name":"f","arguments":""}}]}}]}"#,
            r#"{"id":"m","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#,
            r#"{"id":"m","choices":[],"usage":{"prompt_tokens":1}}"#,
            "[DONE]",
        ],
    ),
    (
        "anthropic",
        &[
            r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"@"}}"#,
            r#"{"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"@"}}"#,
            r#"{"type":"content_block_delta","index":1,"delta":{"type":"input_json_delta","partial_json":"@"}}"#,
            r#"{"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":"@"}}"#,
            r#"{"type":"content_block_start","index":1,"content_block":{"type":"tool_use","id":"c","name":"f","input":{}}}"#,
            r#"{"type":"content_block_start","index":2,"content_block":{"type":"tool_use","id":"d","name":"f","input":{"a":1}}}"#,
            r#"{"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":""}}"#,
            r#"{"type":"content_block_stop","index":1}"#,
            r#"{"type":"content_block_stop","index":2}"#,
            r#"{"type":"message_delta","delta":{"stop_reason":"tool_use"},"usage":{"output_tokens":4}}"#,
            r#"{"type":"message_stop"}"#,
            r#"{"type":"message_start","message":{"id":"m","content":[]}}"#,
            r#"{"type":"message_start","message":{"id":"n","content":[]}}"#,
        ],
    ),
    (
        "openai-responses",
        &[
            r#"{"type":"response.output_text.delta","output_index":0,"delta":"@","sequence_number":7}"#,
            r#"{"type":"response.reasoning_summary_text.delta","output_index":1,"summary_index":0,"delta":"@"}"#,
            r#"{"type":"response.function_call_arguments.delta","output_index":2,"delta":"@","obfuscation":"x"}"#,
            r#"{"type":"response.function_call_arguments.delta","output_index":3,"delta":"@"}"#,
            r#"{"type":"response.function_call_arguments.delta","delta":"@"}"#,
            r#"{"type":"response.output_item.added","output_index":2,"item":{"id":"i","type":"function_call","call_id":"c","name":"f","arguments":""}}"#,
            r#"{"type":"response.output_item.added","output_index":3,"item":{"id":"j","type":"custom_tool_call","call_id":"d","name":"f","input":""}}"#,
            r#"{"type":"response.function_call_arguments.done","output_index":2,"arguments":"@"}"#,
            r#"{"type":"response.output_item.done","output_index":2,"item":{"id":"i","type":"function_call","call_id":"c","name":"f","arguments":"@"}}"#,
            r#"{"type":"response.completed","response":{"id":"r","status":"completed","output":[]}}"#,
        ],
    ),
    (
        "bedrock",
        &[
            r#"{"contentBlockDelta":{"contentBlockIndex":0,"delta":{"text":"@"}}}"#,
            r#"{"contentBlockDelta":{"contentBlockIndex":1,"delta":{"toolUse":{"input":"@"}}}}"#,
            r#"{"contentBlockStart":{"contentBlockIndex":1,"start":{"toolUse":{"toolUseId":"c","name":"f"}}}}"#,
            r#"{"contentBlockStop":{"contentBlockIndex":1}}"#,
            r#"{"messageStop":{"stopReason":"tool_use"}}"#,
        ],
    ),
    (
        "ollama",
        &[
            r#"{"model":"m","created_at":"t","message":{"role":"assistant","content":"@"},"done":false}"#,
            r#"{"model":"m","created_at":"t","message":{"role":"assistant","content":"","thinking":"@"},"done":false}"#,
            r#"{"model":"m","message":{"tool_calls":[{"function":{"name":"f","arguments":{"a":"@"}}}]},"done":false}"#,
            r#"{"model":"m","message":{"content":""},"done":true,"done_reason":"stop"}"#,
        ],
    ),
];

/// The events, and the error that ended them; without the places of frames in the stream.
fn read(provider: &str, strict: bool, split: usize, frames: &[String]) -> (Vec<Payload>, bool) {
    let mut normalizer = Normalizer::new(provider, Options { strict, ..Options::default() }).expect("a known provider");
    let stream: String = frames.iter().flat_map(|frame| ["data: ", frame, "\n\n"]).collect();
    let failed = stream.as_bytes().chunks(split).any(|piece| normalizer.feed(piece).is_err()) | normalizer.finish().is_err();
    let placeless = |mut event| {
        match &mut event {
            Payload::Warning(warning) if warning.code == "malformed_frame" => warning.message = "".into(),
            Payload::Error(error) if error.code == "protocol_error" => error.message = "".into(),
            // A frame that passes whole passes with its blanks.
            Payload::ProviderEvent(passed) => passed.data = None,
            _ => {}
        }
        event
    };
    (normalizer.drain().map(placeless).collect(), failed)
}

/// Blanks that mean nothing and differ from frame to frame: no frame is like the last one.
fn unlike(frames: &[String]) -> Vec<String> {
    let spread = |(number, frame): (usize, &String)| frame.replacen('{', &format!("{{{}", " ".repeat(number % 7 + 1)), 1);
    frames.iter().enumerate().map(spread).collect()
}

proptest! {
    #[test]
    fn frames_that_are_compared_say_what_they_say_when_read(
        format in 0..FORMATS.len(),
        // Runs of one frame, as streams have them.
        runs in proptest::collection::vec((0..16_usize, proptest::collection::vec("[a-z{}\":,\\\\é]{0,4}", 1..4)), 1..14),
        strict in any::<bool>(),
        split in 1..400_usize,
    ) {
        let (provider, palette) = FORMATS[format];
        let frames: Vec<String> = runs.iter().flat_map(|(frame, pieces)| {
            let frame = palette[frame % palette.len()];
            pieces.iter().map(move |piece| {
                let quoted = serde_json::to_string(piece).expect("a string");
                frame.replace('@', &quoted[1..quoted.len() - 1])
            })
        }).collect();
        let compared = read(provider, strict, split, &frames);
        prop_assert_eq!(&compared, &read(provider, strict, usize::MAX, &unlike(&frames)));
        prop_assert_eq!(common::rule_faults(&compared.0), Vec::<String>::new());
    }
}
