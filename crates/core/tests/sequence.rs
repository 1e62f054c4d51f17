//! What comes out of order is repaired with a warning, or refused where the reader is strict: in every format the same.

mod common;

use turnstream_core::event::Payload;
use turnstream_core::provider::{DISORDER, Normalizer, Options, ProtocolError};

const ANTHROPIC_START: &str = r#"{"type":"message_start","message":{"id":"m","model":"x","content":[]}}"#;
const ANTHROPIC_END: &str = r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"}}"#;
const ANTHROPIC_STOP: &str = r#"{"type":"message_stop"}"#;
const ANTHROPIC_TEXT: &str = r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"a"}}"#;
const ANTHROPIC_LATE: &str = r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"b"}}"#;
const RESPONSES_CREATED: &str = r#"{"type":"response.created","response":{"id":"r","model":"x"}}"#;
const RESPONSES_TEXT: &str = r#"{"type":"response.output_text.delta","output_index":0,"delta":"a"}"#;
const RESPONSES_LATE: &str = r#"{"type":"response.output_text.delta","output_index":0,"delta":"b"}"#;
const RESPONSES_DONE: &str = r#"{"type":"response.output_item.done","output_index":0,"item":{"id":"i","type":"message","content":[{"type":"output_text","text":"a"}]}}"#;
const RESPONSES_END: &str = r#"{"type":"response.completed","response":{"id":"r","status":"completed","output":[]}}"#;
const COHERE_START: &str = r#"{"type":"message-start","id":"m"}"#;
const COHERE_TEXT: &str = r#"{"type":"content-delta","index":0,"delta":{"message":{"content":{"text":"a"}}}}"#;
const COHERE_LATE: &str = r#"{"type":"content-delta","index":0,"delta":{"message":{"content":{"text":"b"}}}}"#;
const COHERE_END: &str = r#"{"type":"message-end","delta":{"finish_reason":"COMPLETE"}}"#;

fn chat(delta: &str, finish: &str) -> String {
    format!(r#"{{"id":"m","choices":[{{"index":0,"delta":{delta},"finish_reason":{finish}}}]}}"#)
}

/// The frames one a line, and where each begins.
fn lines<S: AsRef<str>>(frames: &[S]) -> (String, Vec<u64>) {
    let (mut stream, mut offsets) = (String::new(), Vec::new());
    for frame in frames {
        offsets.push(stream.len() as u64);
        stream.push_str(frame.as_ref());
        stream.push('\n');
    }
    (stream, offsets)
}

fn lenient(provider: &str, stream: &str) -> Vec<Payload> {
    let mut normalizer = Normalizer::new(provider, Options::default()).expect("a known provider");
    normalizer.feed(stream.as_bytes()).expect("lenient");
    normalizer.finish().expect("lenient");
    let events: Vec<Payload> = normalizer.drain().collect();
    assert_eq!(common::rule_faults(&events), Vec::<String>::new(), "{events:?}");
    events
}

fn text(events: &[Payload]) -> String {
    let texts = events.iter().filter_map(|event| if let Payload::AssistantMessage(it) = event { Some(&*it.text) } else { None });
    texts.collect()
}

/// The stream is repaired with this one warning, and a strict reader refuses the frame at `bad`. Gives the events.
fn out_of_order<S: AsRef<str>>(provider: &'static str, code: &str, bad: usize, frames: &[S]) -> Vec<Payload> {
    assert!(DISORDER.contains(&code), "{code} is a stable code");
    let (stream, offsets) = lines(frames);
    let events = lenient(provider, &stream);
    let codes: Vec<&str> =
        events.iter().filter_map(|event| if let Payload::Warning(it) = event { Some(&*it.code) } else { None }).collect();
    assert_eq!(codes, [code], "{provider}: {events:?}");
    let faults = events.iter().filter(|event| matches!(event, Payload::Error(_))).count();
    assert_eq!(faults, 0, "{provider}: {events:?}");

    let mut strict = Normalizer::new(provider, Options { strict: true, ..Options::default() }).expect("a known provider");
    let error = strict.feed(stream.as_bytes()).and_then(|()| strict.finish()).expect_err("strict");
    let message = format!("out of order: {code}");
    assert_eq!(error, ProtocolError::Malformed { provider, offset: offsets[bad], message });
    assert!(error.to_string().starts_with(&format!("{provider}: frame at byte {}", offsets[bad])));
    events
}

#[test]
fn a_delta_after_the_finish_counts_as_long_as_the_message_is_open() {
    let frames = [chat(r#"{"content":"a"}"#, "null"), chat("{}", r#""stop""#), chat(r#"{"content":"b"}"#, "null")];
    assert_eq!(text(&out_of_order("openai-chat", "late_delta", 2, &frames)), "ab");
    let frames = [ANTHROPIC_START, ANTHROPIC_TEXT, ANTHROPIC_END, ANTHROPIC_LATE, ANTHROPIC_LATE, ANTHROPIC_STOP];
    assert_eq!(text(&out_of_order("anthropic", "late_delta", 3, &frames)), "abb");
    let frames = [RESPONSES_CREATED, RESPONSES_TEXT, RESPONSES_DONE, RESPONSES_LATE, RESPONSES_END];
    assert_eq!(text(&out_of_order("openai-responses", "late_delta", 3, &frames)), "ab");
}

#[test]
fn a_delta_after_the_end_is_dropped_and_said_once() {
    let frames = [ANTHROPIC_START, ANTHROPIC_TEXT, ANTHROPIC_END, ANTHROPIC_STOP, ANTHROPIC_LATE, ANTHROPIC_LATE];
    assert_eq!(text(&out_of_order("anthropic", "late_delta", 4, &frames)), "a");
    let frames = [RESPONSES_CREATED, RESPONSES_TEXT, RESPONSES_END, RESPONSES_LATE, RESPONSES_LATE];
    assert_eq!(text(&out_of_order("openai-responses", "late_delta", 3, &frames)), "a");
    let frames = [COHERE_START, COHERE_TEXT, COHERE_END, COHERE_LATE, COHERE_LATE];
    assert_eq!(text(&out_of_order("cohere", "late_delta", 3, &frames)), "a");
    let late = chat(r#"{"content":"b"}"#, "null");
    let frames = [chat(r#"{"content":"a"}"#, r#""stop""#), "[DONE]".into(), late.clone(), late];
    let stream: Vec<String> = frames.iter().map(|frame| format!("data: {frame}\n")).collect();
    assert_eq!(text(&out_of_order("openai-chat", "late_delta", 2, &stream)), "a");
}

#[test]
fn another_answer_after_the_end_is_another_round() {
    let mut frames = vec![chat(r#"{"content":"a"}"#, r#""stop""#), "[DONE]".to_owned()];
    frames.push(chat(r#"{"content":"b"}"#, r#""stop""#).replace("\"m\"", "\"n\""));
    let stream = format!("data: {}\n\n", frames.join("\n\ndata: "));
    let events = lenient("openai-chat", &stream);
    assert_eq!(text(&events), "ab");
    assert_eq!(events.iter().filter(|event| matches!(event, Payload::RoundEnd(_))).count(), 2);
    assert!(!events.iter().any(|event| matches!(event, Payload::Warning(_))), "{events:?}");
}

#[test]
fn arguments_after_the_end_of_their_call_are_dropped() {
    let piece = r#"{"type":"content_block_delta","index":0,"delta":{"type":"input_json_delta","partial_json":"{}"}}"#;
    let frames = [
        ANTHROPIC_START,
        r#"{"type":"content_block_start","index":0,"content_block":{"type":"tool_use","id":"c","name":"f","input":{}}}"#,
        piece,
        r#"{"type":"content_block_stop","index":0}"#,
        piece,
        r#"{"type":"message_delta","delta":{"stop_reason":"tool_use"}}"#,
        ANTHROPIC_STOP,
    ];
    out_of_order("anthropic", "stray_arguments", 4, &frames);
    let item = r#"{"id":"i","type":"function_call","call_id":"c","name":"f","arguments":"{}"}"#;
    let frames = [
        RESPONSES_CREATED.to_owned(),
        format!(r#"{{"type":"response.output_item.done","output_index":0,"item":{item}}}"#),
        r#"{"type":"response.function_call_arguments.delta","output_index":0,"delta":"{}"}"#.to_owned(),
        RESPONSES_END.to_owned(),
    ];
    out_of_order("openai-responses", "stray_arguments", 2, &frames);
    let call = r#"{"message":{"tool_calls":{"id":"c","type":"function","function":{"name":"f","arguments":"{}"}}}}"#;
    let frames = [
        COHERE_START.to_owned(),
        format!(r#"{{"type":"tool-call-start","index":0,"delta":{call}}}"#),
        r#"{"type":"tool-call-end","index":0}"#.to_owned(),
        r#"{"type":"tool-call-delta","index":0,"delta":{"message":{"tool_calls":{"function":{"arguments":"{}"}}}}}"#.to_owned(),
        r#"{"type":"message-end","delta":{"finish_reason":"TOOL_CALL"}}"#.to_owned(),
    ];
    out_of_order("cohere", "stray_arguments", 3, &frames);
}

#[test]
fn edge_07_pieces_that_go_on_from_the_input_of_the_start_are_flagged() {
    for (input, pieces) in [(r#""{\"a\":1""#, r#",\"b\":2}"#), (r#"{"a":1}"#, r#",\"b\":2}"#), (r#""{\"a\"""#, ":1}")] {
        let start =
            r#"{"type":"content_block_start","index":0,"content_block":{"type":"tool_use","id":"c","name":"f","input":@}}"#;
        let piece = r#"{"type":"content_block_delta","index":0,"delta":{"type":"input_json_delta","partial_json":"@"}}"#;
        let end = ANTHROPIC_END.replace("end_turn", "tool_use");
        let frames = [
            ANTHROPIC_START,
            &start.replace('@', input),
            &piece.replace('@', pieces),
            r#"{"type":"content_block_stop","index":0}"#,
            &end,
            ANTHROPIC_STOP,
        ];
        let events = out_of_order("anthropic", "continued_input", 3, &frames);
        let call = events.iter().find_map(|event| if let Payload::ToolCall(it) = event { Some(it) } else { None }).unwrap();
        assert!(call.arguments.is_none(), "what they are is a guess");
        assert_eq!(call.arguments_error.as_deref(), Some("the arguments go on from the input of the call's start"));
        assert_eq!(call.arguments_raw, pieces.replace('\\', ""));
    }
}

#[test]
fn a_result_without_a_call_gets_one_and_a_second_result_is_dropped() {
    let block = r#"{"type":"content_block_start","index":0,"content_block":{"type":"web_search_tool_result","tool_use_id":"c","content":[]}}"#;
    let again = block.replace("\"index\":0", "\"index\":1");
    let output = r#"{"type":"response.output_item.done","output_index":0,"item":{"id":"i","type":"shell_call_output","call_id":"c","output":"x"}}"#;
    let twice = output.replace("\"output_index\":0", "\"output_index\":1");
    let gemini = r#"{"responseId":"r","candidates":[{"index":0,"content":{"parts":[{"codeExecutionResult":{"id":"c","outcome":"OUTCOME_OK","output":"x"}}]}}]}"#;
    let gemini_end = r#"{"responseId":"r","candidates":[{"index":0,"content":{"parts":[]},"finishReason":"STOP"}]}"#;
    let alone: [(&str, Vec<&str>, usize); 3] = [
        ("anthropic", vec![ANTHROPIC_START, block, ANTHROPIC_END, ANTHROPIC_STOP], 1),
        ("openai-responses", vec![RESPONSES_CREATED, output, RESPONSES_END], 1),
        ("gemini", vec![gemini, gemini_end], 0),
    ];
    for (provider, frames, bad) in alone {
        let events = out_of_order(provider, "result_without_call", bad, &frames);
        let call = events.iter().find_map(|event| if let Payload::ToolCall(it) = event { Some(it) } else { None }).unwrap();
        assert!(call.arguments.is_none() && call.arguments_error.is_some(), "{provider}: nobody knows its arguments");
    }
    let called = r#"{"type":"content_block_start","index":2,"content_block":{"type":"server_tool_use","id":"c","name":"web_search","input":{"q":1}}}"#;
    let frames =
        [ANTHROPIC_START, called, r#"{"type":"content_block_stop","index":2}"#, block, &again, ANTHROPIC_END, ANTHROPIC_STOP];
    out_of_order("anthropic", "second_result", 4, &frames);
    let called = r#"{"type":"response.output_item.done","output_index":2,"item":{"id":"j","type":"shell_call","call_id":"c","action":{}}}"#;
    out_of_order("openai-responses", "second_result", 3, &[RESPONSES_CREATED, called, output, &twice, RESPONSES_END]);
}

#[test]
fn a_result_closes_its_call() {
    let called = r#"{"type":"content_block_start","index":0,"content_block":{"type":"server_tool_use","id":"c","name":"web_search","input":{"q":1}}}"#;
    let block = r#"{"type":"content_block_start","index":1,"content_block":{"type":"web_search_tool_result","tool_use_id":"c","content":[]}}"#;
    let (stream, _) = lines(&[ANTHROPIC_START, called, block, ANTHROPIC_END, ANTHROPIC_STOP]);
    let kinds: Vec<&str> =
        lenient("anthropic", &stream).iter().map(Payload::kind).filter(|kind| kind.starts_with("tool_")).collect();
    assert_eq!(kinds, ["tool_call_start", "tool_call", "tool_result"]);
}

#[test]
fn of_two_finish_reasons_the_last_counts() {
    let frames = [chat(r#"{"content":"a"}"#, r#""stop""#), chat("{}", r#""length""#)];
    let reason = |events: &[Payload]| {
        events
            .iter()
            .find_map(|event| if let Payload::AssistantMessage(it) = event { it.finish_reason_raw.clone() } else { None })
    };
    assert_eq!(reason(&out_of_order("openai-chat", "second_finish", 1, &frames)).as_deref(), Some("length"));
    let other = ANTHROPIC_END.replace("end_turn", "max_tokens");
    let frames = [ANTHROPIC_START, ANTHROPIC_TEXT, ANTHROPIC_END, &other, ANTHROPIC_STOP];
    assert_eq!(reason(&out_of_order("anthropic", "second_finish", 3, &frames)).as_deref(), Some("max_tokens"));
    // After the end there is no message that it could be the end of.
    let frames = [ANTHROPIC_START, ANTHROPIC_TEXT, ANTHROPIC_END, ANTHROPIC_STOP, ANTHROPIC_END];
    assert_eq!(reason(&out_of_order("anthropic", "second_finish", 4, &frames)).as_deref(), Some("end_turn"));
    let again = r#"{"responseId":"r","candidates":[{"index":0,"content":{"parts":[{"text":"a"}]},"finishReason":"STOP"}]}"#;
    let (stream, _) = lines(&[again, again]);
    assert_eq!(text(&lenient("gemini", &stream)), "aa", "where a finish comes with every piece, it is no end");
}

#[test]
fn a_second_round_end_is_ignored() {
    let frames = [ANTHROPIC_START, ANTHROPIC_TEXT, ANTHROPIC_END, ANTHROPIC_STOP, ANTHROPIC_STOP];
    out_of_order("anthropic", "second_round_end", 4, &frames);
    let end =
        r#"{"type":"response.failed","response":{"id":"r","status":"failed","output":[],"error":{"code":"x","message":"y"}}}"#;
    let (stream, _) = lines(&[RESPONSES_CREATED, RESPONSES_TEXT, end, end]);
    let ends = lenient("openai-responses", &stream);
    assert_eq!(ends.iter().filter(|event| matches!(event, Payload::RoundEnd(_))).count(), 1);
    out_of_order(
        "cohere",
        "second_round_end",
        3,
        &[COHERE_START, COHERE_TEXT, COHERE_END, r#"{"type":"message-end","delta":{}}"#],
    );
}

/// The kinds of round events, in order.
fn rounds(events: &[Payload]) -> Vec<&'static str> {
    events.iter().map(Payload::kind).filter(|kind| kind.starts_with("round_")).collect()
}

#[test]
fn edge_12_a_providers_own_rounds_are_not_doubled_and_end_on_an_error_too() {
    let start = r#"{"type":"chat.start","model_instance_id":"x"}"#;
    let piece = r#"{"type":"message.delta","content":"a"}"#;
    let prompt = r#"{"type":"prompt_processing.start"}"#;
    let end = r#"{"type":"chat.end","result":{"output":[],"stats":{}}}"#;
    let error = r#"{"type":"error","error":{"message":"gpu lost"}}"#;
    let (stream, _) = lines(&[start, start, prompt, piece, prompt, piece, end]);
    assert_eq!(rounds(&lenient("lmstudio", &stream)), ["round_start", "round_end"].repeat(2));
    for last in [vec![error], vec![error, end], vec![]] {
        let (stream, _) = lines(&[&[start, prompt, piece, prompt, piece][..], &last].concat());
        let events = lenient("lmstudio", &stream);
        assert_eq!(rounds(&events), ["round_start", "round_end"].repeat(2), "{last:?}");
        assert!(events.iter().any(|event| matches!(event, Payload::Error(_))), "{last:?}");
    }
    // Two responses in one stream; the second breaks off, or fails.
    let failed = r#"{"type":"response.failed","response":{"id":"r","status":"failed","error":{"code":"x","message":"y"}}}"#;
    for last in [failed, "{}"] {
        let (stream, _) = lines(&[RESPONSES_CREATED, RESPONSES_TEXT, RESPONSES_END, RESPONSES_CREATED, RESPONSES_TEXT, last]);
        assert_eq!(rounds(&lenient("openai-responses", &stream)), ["round_start", "round_end"].repeat(2), "{last}");
    }
}

#[test]
fn edge_26_the_end_mark_ends_the_stream_is_never_text_and_stays_in_arguments() {
    let call = r#"{"tool_calls":[{"index":0,"id":"c","function":{"name":"f","arguments":"{\"q\":\"[DONE]\"}"}}]}"#;
    let frames = [chat(r#"{"content":"a"}"#, "null"), chat(call, r#""tool_calls""#), "[DONE]".to_owned()];
    let stream = format!("data: {}\n\n", frames.join("\n\ndata: "));
    for split in 1..=stream.len() {
        let mut normalizer = Normalizer::new("openai-chat", Options::default()).expect("a known provider");
        for piece in stream.as_bytes().chunks(split) {
            normalizer.feed(piece).expect("a stream");
        }
        normalizer.finish().expect("a stream");
        let events: Vec<Payload> = normalizer.drain().collect();
        assert_eq!(text(&events), "a");
        let call =
            events.iter().find_map(|event| if let Payload::ToolCall(it) = event { Some(it) } else { None }).expect("a call");
        assert_eq!(call.arguments_raw, r#"{"q":"[DONE]"}"#);
    }
}
