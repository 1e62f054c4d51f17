//! Streams and bodies written after the providers' documentation, where no recording has them: what a correct reader makes
//! of each, the format found out by itself.

use std::fmt::Write as _;

use turnstream_core::event::{AssistantMessage, Payload};
use turnstream_core::provider::{Normalizer, Options};

/// Reads a body; its provider's name too.
fn read(body: &str) -> (&'static str, Vec<Payload>) {
    let mut normalizer = Normalizer::new("auto", Options::default()).expect("a known provider");
    normalizer.feed(body.as_bytes()).and_then(|()| normalizer.finish()).unwrap_or_else(|error| panic!("{error}: {body}"));
    (normalizer.provider(), normalizer.drain().collect())
}

/// Frames as server-sent events.
fn sse<S: AsRef<str>>(frames: &[S]) -> String {
    frames.iter().fold(String::new(), |mut body, frame| {
        write!(body, "data: {}\n\n", frame.as_ref()).expect("a string");
        body
    })
}

/// A chat chunk.
fn chat(delta: &str, finish: &str) -> String {
    let finish = if finish.is_empty() { "null".to_owned() } else { format!("{finish:?}") };
    format!(r#"{{"id":"c","object":"chat.completion.chunk","choices":[{{"index":0,"delta":{delta},"finish_reason":{finish}}}]}}"#)
}

fn response(kind: &str, rest: &str) -> String {
    format!(r#"{{"type":"response.{kind}",{rest}}}"#)
}

macro_rules! all {
    ($events:expr, $kind:ident) => {
        $events.iter().filter_map(|event| if let Payload::$kind(it) = event { Some(it) } else { None }).collect::<Vec<_>>()
    };
}

fn message(events: &[Payload]) -> &AssistantMessage {
    let messages = all!(events, AssistantMessage);
    assert_eq!(messages.len(), 1, "{events:?}");
    messages[0]
}

/// What passed under `name`, in order.
fn passed(events: &[Payload], name: &str) -> Vec<String> {
    let named = all!(events, ProviderEvent).into_iter().filter(|event| event.name == name);
    named.map(|event| event.data.as_ref().map_or("", |data| data.as_str()).to_owned()).collect()
}

// --- all -----------------------------------------------------------------------------------------------------------------

/// A server that counts in UTF-16 ends a piece in the middle of a character, and writes its halves as escapes.
#[test]
fn a_character_that_a_server_cut_in_two_is_whole() {
    let frames: [(&str, &[&str]); 5] = [
        (
            "openai-chat",
            &[
                r#"{"id":"c","choices":[{"index":0,"delta":{"content":"a@1"}}]}"#,
                r#"{"id":"c","choices":[{"index":0,"delta":{"content":""}}]}"#,
                r#"{"id":"c","choices":[{"index":0,"delta":{"content":"@2b"}}]}"#,
                r#"{"id":"c","choices":[{"index":0,"delta":{"reasoning":"a@1"}}]}"#,
                r#"{"id":"c","choices":[{"index":0,"delta":{"reasoning":"@2b@1"}}]}"#,
                r#"{"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#,
            ],
        ),
        (
            "anthropic",
            &[
                r#"{"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"a@1"}}"#,
                r#"{"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"@2b@1"}}"#,
                r#"{"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":"a@1"}}"#,
                r#"{"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":"@2b"}}"#,
                r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"}}"#,
            ],
        ),
        (
            "openai-responses",
            &[
                r#"{"type":"response.reasoning_text.delta","output_index":0,"delta":"a@1"}"#,
                r#"{"type":"response.reasoning_text.delta","output_index":0,"delta":"@2b@1"}"#,
                r#"{"type":"response.output_text.delta","output_index":0,"delta":"a@1"}"#,
                r#"{"type":"response.output_text.delta","output_index":0,"delta":"@2b"}"#,
                r#"{"type":"response.completed","response":{"id":"r","status":"completed","output":[]}}"#,
            ],
        ),
        (
            "gemini",
            &[
                r#"{"candidates":[{"content":{"parts":[{"text":"a@1","thought":true}]}}]}"#,
                r#"{"candidates":[{"content":{"parts":[{"text":"@2b@1","thought":true},{"text":"a@1"}]}}]}"#,
                r#"{"candidates":[{"content":{"parts":[{"text":"@2b"}]},"finishReason":"STOP"}]}"#,
            ],
        ),
        (
            "ollama",
            &[
                r#"{"model":"m","message":{"content":"","thinking":"a@1"},"done":false}"#,
                r#"{"model":"m","message":{"content":"","thinking":"@2b@1"},"done":false}"#,
                r#"{"model":"m","message":{"content":"a@1"},"done":false}"#,
                r#"{"model":"m","message":{"content":"@2b"},"done":true,"done_reason":"stop"}"#,
            ],
        ),
    ];
    for (provider, frames) in frames {
        let (name, events) = read(&sse(frames).replace("@1", "\\ud83d").replace("@2", "\\uDE00"));
        assert_eq!((name, &*message(&events).text, &*message(&events).reasoning), (provider, "a😀b", "a😀b\u{fffd}"));
        assert!(all!(events, Warning).is_empty(), "{provider}");
        let pieces: String = all!(events, TextDelta).iter().map(|delta| &*delta.text).collect();
        assert_eq!(pieces, "a😀b", "{provider}");
    }
    let (_, events) = read(&sse(&[
        chat(r#"{"tool_calls":[{"index":0,"id":"t","function":{"name":"f","arguments":"{\"a\":\"\ud83d"}}]}"#, ""),
        chat(r#"{"tool_calls":[{"index":0,"function":{"arguments":"\ude00\"}"}}]}"#, "tool_calls"),
    ]));
    assert_eq!(&*all!(events, ToolCall)[0].arguments_raw, r#"{"a":"😀"}"#);
}

// --- openai-chat ---------------------------------------------------------------------------------------------------------

#[test]
fn log_probabilities_pass_with_each_piece() {
    let piece = |text: &str| {
        chat(&format!(r#"{{"content":"{text}"}}"#), "")
            .replace(r#""finish_reason""#, &format!(r#""logprobs":{{"content":[{{"token":"{text}"}}]}},"finish_reason""#))
    };
    let (_, events) = read(&sse(&[piece("a"), piece("a"), piece("b"), chat("{}", "stop")]));
    assert_eq!(message(&events).text, "aab");
    let token = |text: &str| format!(r#"{{"content":[{{"token":"{text}"}}]}}"#);
    assert_eq!(passed(&events, "logprobs"), [token("a"), token("a"), token("b")]);
}

#[test]
fn what_is_said_of_the_stream_passes_once_its_newest_value() {
    let about =
        |chunk: String, tier: &str| chunk.replacen('{', &format!(r#"{{"service_tier":"{tier}","system_fingerprint":"fp","#), 1);
    let (_, events) = read(&sse(&[
        about(chat(r#"{"content":"a"}"#, ""), "auto"),
        about(chat(r#"{"content":"b"}"#, ""), "default"),
        about(chat(r#"{"content":"c"}"#, ""), "default"),
        about(chat("{}", "stop"), "default"),
    ]));
    assert_eq!((&*message(&events).text, passed(&events, "service_tier")), ("abc", vec![r#""default""#.to_owned()]));
    assert_eq!(passed(&events, "system_fingerprint"), [r#""fp""#]);
}

#[test]
fn two_pieces_of_sound_that_are_alike_are_two() {
    let sound = chat(r#"{"audio":{"data":"AAAA"}}"#, "");
    let (_, events) = read(&sse(&[&sound, &sound, &chat(r#"{"audio":{"transcript":"Hi"}}"#, ""), &chat("{}", "stop")]));
    assert_eq!(passed(&events, "audio"), [r#"{"data":"AAAA"}"#, r#"{"data":"AAAA"}"#, r#"{"transcript":"Hi"}"#]);
}

#[test]
fn the_input_of_a_custom_tool_is_text_in_chat_too() {
    let (_, events) = read(&sse(&[
        chat(r#"{"tool_calls":[{"index":0,"id":"t","type":"custom","custom":{"name":"sql","input":""}}]}"#, ""),
        chat(r#"{"tool_calls":[{"index":0,"custom":{"input":"SELECT "}}]}"#, ""),
        chat(r#"{"tool_calls":[{"index":0,"custom":{"input":"1"}}]}"#, ""),
        chat("{}", "tool_calls"),
    ]));
    let call = all!(events, ToolCall)[0];
    assert_eq!(
        (&*call.arguments_raw, call.arguments.as_ref().map(turnstream_core::event::Json::as_str)),
        ("SELECT 1", Some(r#""SELECT 1""#))
    );
    assert_eq!(call.arguments_error, None);
}

#[test]
fn two_whole_calls_of_one_name_under_one_number_are_two() {
    let call = |arguments: &str| {
        chat(&format!(r#"{{"tool_calls":[{{"index":0,"id":"","function":{{"name":"f","arguments":"{arguments}"}}}}]}}"#), "")
    };
    let (_, events) = read(&sse(&[call(r#"{\"a\":1}"#), call(r#"{\"a\":2}"#), chat("{}", "stop")]));
    let calls: Vec<_> = all!(events, ToolCall).iter().map(|call| call.arguments_raw.to_string()).collect();
    assert_eq!(calls, [r#"{"a":1}"#, r#"{"a":2}"#]);
    // A name that is said with every piece is one call's.
    let (_, events) = read(&sse(&[call(r#"{\"a\":"#), call(r#"{\"b\":2}"#), call("}"), chat("{}", "stop")]));
    assert_eq!(&*all!(events, ToolCall)[0].arguments_raw, r#"{"a":{"b":2}}"#);
}

#[test]
fn a_name_may_come_in_pieces_again_or_longer() {
    let piece = |index: u64, function: &str| {
        chat(&format!(r#"{{"tool_calls":[{{"index":{index},"id":"t{index}","function":{{{function}}}}}]}}"#), "")
    };
    let more =
        |index: u64, function: &str| chat(&format!(r#"{{"tool_calls":[{{"index":{index},"function":{{{function}}}}}]}}"#), "");
    let (_, events) = read(&sse(&[
        piece(0, r#""name":"get_","arguments":"""#),
        more(0, r#""name":"weather","arguments":"""#),
        more(0, r#""arguments":"{}""#),
        piece(1, r#""name":"get_time""#),
        piece(1, r#""name":"get_time","arguments":"""#),
        piece(2, r#""name":"get""#),
        more(2, r#""name":"get_date""#),
        chat("{}", "tool_calls"),
    ]));
    let names = ["get_weather", "get_time", "get_date"];
    assert_eq!(all!(events, ToolCall).iter().map(|call| &*call.name).collect::<Vec<_>>(), names);
    // A start never says half a name.
    assert_eq!(all!(events, ToolCallStart).iter().map(|call| &*call.name).collect::<Vec<_>>(), names);
    assert_eq!(message(&events).tool_calls.iter().map(|call| &*call.name).collect::<Vec<_>>(), names);
}

#[test]
fn one_part_that_stands_in_no_list_is_text_too() {
    let (_, events) = read(&sse(&[chat(r#"{"content":{"type":"text","text":"Hi"}}"#, "stop")]));
    assert_eq!(message(&events).text, "Hi");
}

#[test]
fn what_stands_beside_the_text_of_a_thought_passes() {
    let (_, events) = read(&sse(&[
        chat(
            r#"{"content":[{"type":"thinking","thinking":[{"type":"text","text":"Hm"},{"type":"reference","reference_ids":[1]}]}]}"#,
            "",
        ),
        chat(r#"{"content":[{"type":"reasoning","summary":[{"type":"summary_text","text":"m","signature":"S"}]}]}"#, ""),
        chat(r#"{"content":"Hi"}"#, "stop"),
    ]));
    assert_eq!((&*message(&events).reasoning, &*message(&events).text), ("Hmm", "Hi"));
    assert_eq!(passed(&events, "content.reference"), [r#"{"type":"reference","reference_ids":[1]}"#]);
    assert_eq!(passed(&events, "content.signature"), [r#""S""#]);
}

#[test]
fn a_filter_that_found_nothing_is_said_once() {
    let filter =
        |hit: bool| format!(r#""content_filter_results":{{"hate":{{"filtered":{hit},"severity":"safe"}}}},"finish_reason""#);
    let piece = |hit| chat(r#"{"content":"a"}"#, "").replace(r#""finish_reason""#, &filter(hit));
    let (_, events) = read(&sse(&[piece(false), piece(false), chat("{}", "stop")]));
    assert_eq!(passed(&events, "content_filter_results").len(), 1);
    let (_, events) = read(&sse(&[piece(true), chat("{}", "content_filter")]));
    assert!(passed(&events, "content_filter_results")[0].contains("true"));
}

/// What Azure's asynchronous filter finds comes when the text is out, and the end said.
#[test]
fn a_filter_may_change_the_end_afterwards() {
    let found = r#"{"id":"","choices":[{"index":0,"finish_reason":"content_filter","content_filter_results":{"violence":{"filtered":true}},"content_filter_offsets":{"check_offset":6}}]}"#;
    let body = sse(&[&chat(r#"{"content":"a"}"#, ""), &chat("{}", "stop"), found, "[DONE]"]);
    let mut normalizer = Normalizer::new("auto", Options { strict: true, ..Options::default() }).expect("a known provider");
    normalizer.feed(body.as_bytes()).and_then(|()| normalizer.finish()).expect("a stream in order");
    let events: Vec<_> = normalizer.drain().collect();
    assert_eq!((&*message(&events).text, message(&events).finish_reason.as_str()), ("a", "content_filter"));
    assert!(all!(events, Warning).is_empty());
}

#[test]
fn members_of_several_answers_are_told_apart() {
    let choice = |index: u64| {
        format!(
            r#"{{"id":"c","choices":[{{"index":{index},"delta":{{"content":"a"}},"finish_reason":"stop","stop_reason":"s{index}"}}]}}"#
        )
    };
    let (_, events) = read(&sse(&[choice(0), choice(1)]));
    assert_eq!(
        (passed(&events, "choice.stop_reason"), passed(&events, "choice[1].stop_reason")),
        (vec![r#""s0""#.into()], vec![r#""s1""#.into()])
    );
}

// --- openai-responses ----------------------------------------------------------------------------------------------------

const CREATED: &str =
    r#"{"type":"response.created","response":{"id":"r","object":"response","model":"m","instructions":"secret"}}"#;

fn completed(output: &str) -> String {
    response(
        "completed",
        &format!(
            r#""response":{{"id":"r","status":"completed","instructions":"secret","service_tier":"default","output":[{output}]}}"#
        ),
    )
}

#[test]
fn a_response_passes_its_own_members_and_not_the_request() {
    let (_, events) = read(&sse(&[
        CREATED,
        &response("output_text.delta", r#""output_index":0,"delta":"Hi","logprobs":[{"token":"Hi"}]"#),
        &completed(""),
    ]));
    assert_eq!((passed(&events, "service_tier"), passed(&events, "instructions")), (vec![r#""default""#.into()], vec![]));
    assert_eq!(passed(&events, "logprobs"), [r#"[{"token":"Hi"}]"#]);
}

#[test]
fn a_part_that_ends_longer_than_its_pieces_is_made_whole() {
    let text = |part: u64, kind: &str, said: &str| {
        let member = if kind == "delta" { "delta" } else { "text" };
        response(&format!("output_text.{kind}"), &format!(r#""output_index":0,"content_index":{part},"{member}":"{said}""#))
    };
    let (_, events) = read(&sse(&[
        CREATED.to_owned(),
        text(0, "delta", "Hel"),
        text(0, "done", "Hello"),
        text(1, "delta", " w"),
        text(1, "done", " world"),
        completed(""),
    ]));
    assert_eq!(message(&events).text, "Hello world");
    let thought = |part: u64, kind: &str, said: &str| {
        let member = if kind == "delta" { "delta" } else { "text" };
        response(
            &format!("reasoning_summary_text.{kind}"),
            &format!(r#""output_index":0,"summary_index":{part},"{member}":"{said}""#),
        )
    };
    let (_, events) = read(&sse(&[
        CREATED.to_owned(),
        thought(0, "delta", "A"),
        thought(0, "done", "AB"),
        thought(1, "delta", "C"),
        thought(0, "done", "AB"),
        thought(1, "done", "C"),
        completed(""),
    ]));
    assert_eq!(message(&events).reasoning, "AB\n\nC");
}

#[test]
fn items_that_all_have_one_number_are_told_apart_by_their_ends() {
    let added = |item: &str| response("output_item.added", &format!(r#""item":{item}"#));
    let done = |item: &str| response("output_item.done", &format!(r#""item":{item}"#));
    let (text, call) = (
        r#"{"id":"m1","type":"message","content":[{"type":"output_text","text":"Hi"}]}"#,
        r#"{"id":"f1","type":"function_call","call_id":"c1","name":"f","arguments":"{}"}"#,
    );
    let (_, events) = read(&sse(&[
        CREATED.to_owned(),
        added(r#"{"id":"m1","type":"message","content":[]}"#),
        response("output_text.delta", r#""delta":"Hi""#),
        done(text),
        added(r#"{"id":"f1","type":"function_call","call_id":"c1","name":"f","arguments":""}"#),
        response("function_call_arguments.delta", r#""delta":"{}""#),
        done(call),
        completed(&format!("{text},{call}")),
    ]));
    assert_eq!((&*message(&events).text, all!(events, ToolCall).len()), ("Hi", 1));
    assert!(all!(events, Warning).is_empty());
}

#[test]
fn a_command_that_the_agent_has_to_run_is_a_reason_to_stop() {
    let call =
        r#"{"id":"l","type":"local_shell_call","call_id":"c","status":"completed","action":{"type":"exec","command":["ls"]}}"#;
    let done = |index: u64, item: &str| response("output_item.done", &format!(r#""output_index":{index},"item":{item}"#));
    let (_, events) = read(&sse(&[CREATED.to_owned(), done(0, call), completed("")]));
    assert_eq!(message(&events).finish_reason.as_str(), "tool_calls");
    let output = r#"{"id":"o","type":"local_shell_call_output","call_id":"c","output":"a"}"#;
    let (_, events) = read(&sse(&[CREATED.to_owned(), done(0, call), done(1, output), completed("")]));
    assert_eq!(message(&events).finish_reason.as_str(), "stop");
}

#[test]
fn a_type_may_stand_in_the_name_of_the_event_alone() {
    let event = |name: &str, data: &str| format!("event: response.{name}\ndata: {data}\n\n");
    let (provider, events) = read(
        &[
            event("created", r#"{"response":{"id":"r","model":"m"}}"#),
            event("output_text.delta", r#"{"output_index":0,"delta":"Hi"}"#),
            event("completed", r#"{"response":{"id":"r","status":"completed","output":[]}}"#),
        ]
        .concat(),
    );
    assert_eq!((provider, &*message(&events).text, message(&events).finish_reason.as_str()), ("openai-responses", "Hi", "stop"));
    let event = |name: &str, data: &str| format!("event: {name}\ndata: {data}\n\n");
    let (provider, events) = read(
        &[
            event("message_start", r#"{"message":{"id":"m","content":[]}}"#),
            event("content_block_delta", r#"{"index":0,"delta":{"type":"text_delta","text":"Hi"}}"#),
            event("message_delta", r#"{"delta":{"stop_reason":"end_turn"}}"#),
            event("message_stop", "{}"),
        ]
        .concat(),
    );
    assert_eq!((provider, &*message(&events).text, message(&events).finish_reason.as_str()), ("anthropic", "Hi", "stop"));
}

// --- the others ----------------------------------------------------------------------------------------------------------

#[test]
fn anthropic_reads_an_event_of_a_new_kind_whatever_its_members_are() {
    let start = r#"{"type":"message_start","message":{"id":"m","content":[],"model":"c"}}"#;
    let (_, events) = read(&sse(&[
        start,
        r#"{"type":"ping","cost":"0.1"}"#,
        r#"{"type":"brand_new","index":"x","delta":"a text"}"#,
        r#"{"type":"content_block_delta","index":0.0,"delta":{"type":"text_delta","text":"Hi","text":"Hi"}}"#,
        r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"}}"#,
        r#"{"type":"message_stop"}"#,
    ]));
    assert_eq!((&*message(&events).text, passed(&events, "cost")), ("Hi", vec![r#""0.1""#.into()]));
    assert_eq!(passed(&events, "brand_new").len(), 1);
    assert!(all!(events, Warning).is_empty());
}

#[test]
fn anthropic_before_messages() {
    let (provider, events) = read(&sse(&[
        r#"{"type":"completion","id":"c","completion":" Hi","stop_reason":null,"model":"claude-2"}"#,
        r#"{"type":"completion","id":"c","completion":"!","stop_reason":"stop_sequence","model":"claude-2"}"#,
    ]));
    assert_eq!((provider, &*message(&events).text, message(&events).finish_reason.as_str()), ("anthropic", " Hi!", "stop"));
}

#[test]
fn gemini_passes_numbers_and_the_sources_that_a_passage_rests_on() {
    let chunk = |index: u64, score: &str| {
        format!(
            r#"{{"index":{index},"content":{{"parts":[{{"text":"Hi"}}]}},"finishReason":"STOP","avgLogprobs":{score},
            "groundingMetadata":{{"groundingChunks":[{{"maps":{{"uri":"http://m","title":"M","placeId":"p"}}}}],
            "groundingSupports":[{{"segment":{{"endIndex":2,"text":"Hi"}},"groundingChunkIndices":[0.0]}}]}}}}"#
        )
        .replace('\n', "")
    };
    let (_, events) = read(&sse(&[format!(r#"{{"candidates":[{},{}]}}"#, chunk(0, "-0.5"), chunk(1, "-0.25"))]));
    assert_eq!((passed(&events, "avgLogprobs"), passed(&events, "avgLogprobs[1]")), (vec!["-0.5".into()], vec!["-0.25".into()]));
    assert!(passed(&events, "groundingChunks")[0].contains("placeId"));
    assert_eq!(all!(events, Citation)[0].url.as_deref(), Some("http://m"));
}

#[test]
fn cohere_says_its_errors_its_missing_text_and_its_probabilities() {
    let event = |kind: &str, rest: &str| format!(r#"{{"is_finished":false,"event_type":"{kind}",{rest}}}"#);
    let (_, events) = read(
        &[
            event("text-generation", r#""text":"Hi""#),
            event("tool-calls-chunk", r#""tool_call_delta":{"index":0,"name":"f","parameters":"{\"a\""}"#),
            event("tool-calls-chunk", r#""tool_call_delta":{"index":0,"parameters":":1}"}"#),
            event("tool-calls-generation", r#""tool_calls":[{"name":"f","parameters":{"a": 1}}]"#),
            event("stream-end", r#""finish_reason":"ERROR","error":"broke","response":{"text":"Hi there"}"#),
        ]
        .join("\n"),
    );
    assert_eq!((&*message(&events).text, &*all!(events, Error)[0].message), ("Hi there", "broke"));
    assert_eq!((all!(events, ToolCallDelta).len(), &*all!(events, ToolCall)[0].arguments_raw), (2, r#"{"a":1}"#));
    let (_, events) = read(&sse(&[
        r#"{"type":"message-start","id":"m"}"#,
        r#"{"type":"content-delta","index":0,"delta":{"message":{"content":{"text":"Hi"}}},"logprobs":{"token_ids":[1]}}"#,
        r#"{"type":"message-end","delta":{"finish_reason":"COMPLETE"}}"#,
    ]));
    assert_eq!(passed(&events, "logprobs"), [r#"{"token_ids":[1]}"#]);
    let body = r#"{"text":"Hi","generation_id":"g","finish_reason":"COMPLETE","tool_calls":[{"name":"f","parameters":{}}]}"#;
    let (provider, events) = read(body);
    assert_eq!((provider, &*message(&events).text, all!(events, ToolCall).len()), ("cohere", "Hi", 1));
}

#[test]
fn ollama_counts_once() {
    let (_, events) = read(
        r#"{"model":"m","message":{"content":"Hi"},"remote_host":"h","done":false}
{"model":"m","message":{"content":"!"},"remote_host":"h","done":false}
{"model":"m","message":{"content":""},"remote_host":"h","done":true,"done_reason":"stop","eval_count":1,"total_duration":5,"logprobs":[{"token":"a"}]}"#,
    );
    let names: Vec<_> = all!(events, ProviderEvent).iter().map(|event| &*event.name).collect();
    assert_eq!((&*message(&events).text, names), ("Hi!", vec!["logprobs", "remote_host"]));
}

#[test]
fn lm_studio_says_at_the_end_what_its_pieces_left_out() {
    let end = r#"{"type":"chat.end","result":{"output":[{"type":"message","content":"Let me see."},{"type":"tool_call","tool":"f","output":"o"},{"type":"message","content":"Hello"}],"stats":{}}}"#;
    let (_, events) = read(&sse(&[
        r#"{"type":"chat.start"}"#,
        r#"{"type":"message.delta","content":"Let me see."}"#,
        r#"{"type":"tool_call.start","tool":"f"}"#,
        r#"{"type":"tool_call.success","tool":"f","arguments":{},"output":"o"}"#,
        r#"{"type":"message.delta","content":"Hel"}"#,
        end,
    ]));
    let texts: Vec<_> = all!(events, AssistantMessage).iter().map(|message| message.text.to_string()).collect();
    assert_eq!(texts, ["Let me see.", "Hello"]);
    assert!(all!(events, MessageReset).is_empty());
}

#[test]
fn bedrocks_families_in_whole_bodies() {
    for (body, text, reason) in [
        (r#"{"outputs":[{"text":"Hi","stop_reason":"stop"}]}"#, "Hi", "stop"),
        (r#"{"generations":[{"id":"g","text":"Hi","finish_reason":"MAX_TOKENS"}],"prompt":"p"}"#, "Hi", "length"),
        (r#"{"completions":[{"data":{"text":"Hi"},"finishReason":{"reason":"endoftext"}}],"prompt":{"text":"p"}}"#, "Hi", "stop"),
        (r#"{"completion":" Hi","stop_reason":"stop_sequence","stop":"x"}"#, " Hi", "stop"),
    ] {
        let (provider, events) = read(body);
        assert_eq!(
            (provider, &*message(&events).text, message(&events).finish_reason.as_str()),
            ("bedrock", text, reason),
            "{body}"
        );
    }
    let image =
        r#"{"output":{"message":{"content":[{"image":{"format":"png","source":{"bytes":"AAAA"}}}]}},"stopReason":"end_turn"}"#;
    let (_, events) = read(image);
    assert_eq!((&*all!(events, File)[0].media_type, all!(events, File)[0].data.as_deref()), ("image/png", Some("AAAA")));
}

/// What servers, and gateways before them, answer with instead of a stream.
#[test]
fn a_body_that_is_an_error_is_one() {
    for (body, code, message, retryable) in [
        (
            r#"{"error":{"message":"x","type":"invalid_request_error","param":null,"code":"invalid_api_key"}}"#,
            "invalid_api_key",
            "x",
            false,
        ),
        (r#"{"error":{"code":503,"message":"x","status":"UNAVAILABLE"}}"#, "503", "x", true),
        (r#"{"type":"error","error":{"type":"overloaded_error","message":"x"}}"#, "overloaded_error", "x", true),
        (r#"{"message":"x"}"#, "error", "x", false),
        (r#"{"Message":"x"}"#, "error", "x", false),
        (r#"{"message":"x","__type":"ThrottlingException"}"#, "ThrottlingException", "x", true),
        (r#"{"error":"x"}"#, "error", "x", false),
        (r#"{"code":"not_found","error":"x"}"#, "not_found", "x", false),
        (r#"{"error":"x","error_type":"overloaded"}"#, "overloaded", "x", true),
        (r#"{"object":"error","message":"x","type":"BadRequestError","param":null,"code":400}"#, "400", "x", false),
        (r#"{"statusCode":429,"message":"x"}"#, "429", "x", true),
        (r#"{"title":"Unauthenticated","detail":"x","status":401}"#, "401", "x", false),
        (
            r#"{"errors":[{"code":"model_not_supported","message":"x"}],"trace":"t","status_code":404}"#,
            "model_not_supported",
            "x",
            false,
        ),
        (r#"{"success":false,"errors":[{"code":7003,"message":"x"}],"result":null,"messages":[]}"#, "7003", "x", false),
        (r#"{"error_code":"BAD_REQUEST","message":"x"}"#, "BAD_REQUEST", "x", false),
        (r#"{"error":"x","estimated_time":20.0}"#, "error", "x", false),
    ] {
        for body in [body.to_owned(), format!("\u{feff}\r\n {body}\n"), body.replace(',', ",\n  ")] {
            let (_, events) = read(&body);
            let errors = all!(events, Error);
            assert_eq!(errors.len(), 1, "{body}");
            assert_eq!((&*errors[0].code, &*errors[0].message, errors[0].retryable), (code, message, retryable), "{body}");
        }
    }
}

/// What small servers stream in a format of their own, and what sessions without an end do.
#[test]
fn formats_of_their_own_are_recognised() {
    let said = |body: &str| {
        let (provider, events) = read(body);
        assert!(all!(events, Error).is_empty(), "{body}");
        (provider, message(&events).text.to_string())
    };
    let tgi = [
        r#"{"index":1,"token":{"id":5,"text":"Hi","special":false},"generated_text":null,"details":null}"#,
        r#"{"index":2,"token":{"id":2,"text":"</s>","special":true},"generated_text":"Hi","details":{"finish_reason":"length"}}"#,
    ];
    let llama = [r#"{"content":"Hi","stop":false}"#, r#"{"content":"","stop":true,"stop_type":"eos"}"#];
    let workers = [r#"{"response":"Hi","p":"x"}"#, "[DONE]"];
    for body in [sse(&tgi), sse(&llama), sse(&workers), r#"[{"generated_text":"Hi"}]"#.to_owned()] {
        assert_eq!(said(&body), ("generate", "Hi".into()), "{body}");
    }
    let conversation = "event: message.output.delta\ndata: {\"type\":\"message.output.delta\",\"content\":\"Hi\"}\n\n\
                        event: conversation.response.done\ndata: {\"type\":\"conversation.response.done\"}\n\n";
    assert_eq!(said(conversation), ("conversations", "Hi".into()));
    let live = [r#"{"setupComplete":{}}"#, r#"{"serverContent":{"outputTranscription":{"text":"Hi"}}}"#];
    assert_eq!(said(&[&live[..], &[r#"{"serverContent":{"turnComplete":true}}"#]].concat().join("\n")), ("gemini", "Hi".into()));
    let translation = [
        r#"{"type":"session.started","event_id":"e","session":{"model":"m"}}"#,
        r#"{"type":"session.output_transcript.delta","event_id":"e","delta":"Hi","start_ms":1}"#,
        r#"{"type":"session.closed","event_id":"e","reason":"close_requested"}"#,
    ];
    assert_eq!(said(&translation.join("\n")), ("realtime", "Hi".into()));
}

/// Another protocol whose events have names like those of one that is known.
#[test]
fn what_is_nobodys_is_refused_before_any_event() {
    let mut normalizer = Normalizer::new("auto", Options::default()).expect("a known provider");
    let body = sse(&[r#"{"type":"message.beginning"}"#, r#"{"type":"message.piece","content":"Hi"}"#]);
    assert!(normalizer.feed(body.as_bytes()).and_then(|()| normalizer.finish()).is_err());
    assert_eq!(normalizer.drain().count(), 0);
}

#[test]
fn realtime_says_at_the_end_what_its_pieces_left_out() {
    let event = |kind: &str, rest: &str| format!(r#"{{"type":"response.{kind}","event_id":"e",{rest}}}"#);
    let created = event("created", r#""response":{"object":"realtime.response","id":"r"}"#);
    let done = |output: &str| {
        event(
            "done",
            &format!(r#""response":{{"object":"realtime.response","id":"r","status":"completed","output":[{output}]}}"#),
        )
    };
    let text = r#"{"id":"i","type":"message","content":[{"type":"text","text":"Hello"}]}"#;
    let call = r#"{"id":"j","type":"function_call","call_id":"c","name":"f","arguments":"{}"}"#;
    let (provider, events) = read(&sse(&[
        created.clone(),
        event("output_text.delta", r#""output_index":0,"content_index":0,"delta":"Hel""#),
        event("output_text.done", r#""output_index":0,"content_index":0,"text":"Hello""#),
        done(text),
    ]));
    assert_eq!((provider, &*message(&events).text), ("realtime", "Hello"));
    let (_, events) = read(&sse(&[created, done(&format!("{text},{call}"))]));
    assert_eq!((&*message(&events).text, &*all!(events, ToolCall)[0].call_id), ("Hello", "c"));
}

#[test]
fn smaller_formats_lose_nothing_and_pass_over_what_is_empty() {
    let (provider, events) = read(&sse(&[
        "{}",
        r#"{"model_id":"m","results":[{"generated_text":"Hi","generated_token_count":1,"input_token_count":5,"stop_reason":"max_tokens"}]}"#,
    ]));
    assert_eq!((provider, &*message(&events).text, all!(events, ProviderEvent).len()), ("watsonx", "Hi", 0));
    let (_, events) = read(&sse(&[
        r#"{"type":"transcript.text.delta","delta":"Hi","logprobs":[{"token":"Hi"}]}"#,
        r#"{"type":"transcript.text.done","text":"Hi"}"#,
    ]));
    assert_eq!(passed(&events, "logprobs"), [r#"[{"token":"Hi"}]"#]);
    let (_, events) = read(
        "event: output\ndata: Hi\n\nevent: error\ndata: {\"detail\":\"broke\"}\n\nevent: done\ndata: {\"reason\":\"error\"}\n\n",
    );
    assert_eq!((&*message(&events).text, &*all!(events, Error)[0].message, all!(events, Error).len()), ("Hi", "broke", 1));
}
