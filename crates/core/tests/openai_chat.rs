//! What dialects of chat completions do, one small stream each. The names carry the ids of the behaviours.

mod common;

use std::fmt::Write as _;

use proptest::prelude::*;
use serde_json::{Value, json};
use turnstream_core::event::Payload;
use turnstream_core::fold::{Fold, fold_bytes};
use turnstream_core::provider::{Normalizer, Options, ProtocolError};

/// Chunks as a server-sent stream with its `[DONE]`.
fn sse(chunks: &[Value]) -> String {
    let mut body = String::new();
    for chunk in chunks {
        let _ = write!(body, "data: {chunk}\n\n");
    }
    body + "data: [DONE]\n\n"
}

/// A chunk with one choice.
fn chunk(delta: &Value) -> Value {
    json!({"id": "m1", "object": "chat.completion.chunk", "model": "x", "choices": [{"index": 0, "delta": delta, "finish_reason": null}]})
}

fn end(reason: &str) -> Value {
    json!({"id": "m1", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
}

fn call(index: u64, id: &Value, name: &Value, arguments: &Value) -> Value {
    chunk(
        &json!({"tool_calls": [{"index": index, "id": id, "type": "function", "function": {"name": name, "arguments": arguments}}]}),
    )
}

fn events(bytes: impl AsRef<[u8]>) -> Vec<Payload> {
    let mut normalizer = Normalizer::new("openai-chat", Options::default()).expect("a known provider");
    normalizer.feed(bytes.as_ref()).expect("lenient");
    normalizer.finish().expect("lenient");
    normalizer.drain().collect()
}

fn fold(bytes: impl AsRef<[u8]>) -> Value {
    let mut fold = Fold::new("openai-chat");
    for payload in events(bytes) {
        fold.push(&payload);
    }
    serde_json::from_str(&fold.to_json()).expect("JSON")
}

fn kinds(payloads: &[Payload]) -> Vec<&'static str> {
    payloads.iter().map(Payload::kind).collect()
}

fn count(payloads: &[Payload], kind: &str) -> usize {
    payloads.iter().filter(|payload| payload.kind() == kind).count()
}

/// One call's `(id, name, raw arguments)`.
fn calls(fold: &Value) -> Vec<(&str, &str, &str)> {
    let list = fold["tool_calls"].as_array().expect("a list");
    list.iter()
        .map(|call| {
            (
                call["id"].as_str().expect("an id"),
                call["name"].as_str().expect("a name"),
                call["arguments_raw"].as_str().expect("raw arguments"),
            )
        })
        .collect()
}

#[test]
fn a_plain_answer_is_one_round_in_order() {
    let payloads =
        events(sse(&[chunk(&json!({"role": "assistant", "content": ""})), chunk(&json!({"content": "Hi"})), end("stop")]));
    assert_eq!(kinds(&payloads), ["round_start", "message_start", "text_delta", "assistant_message", "round_end"]);
    let fold = fold(sse(&[chunk(&json!({"content": "Hi"})), end("stop")]));
    assert_eq!(fold["message_id"], "m1");
    assert_eq!(fold["model"], "x");
    assert_eq!(
        (&fold["text"], &fold["finish_reason"], &fold["finish_reason_raw"]),
        (&json!("Hi"), &json!("stop"), &json!("stop"))
    );
}

#[test]
fn c1_usage_after_the_finish_chunk_counts() {
    let usage = json!({"id": "m1", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 2}, "completion_tokens_details": {"reasoning_tokens": 1}}});
    let fold = fold(sse(&[chunk(&json!({"content": "a"})), end("stop"), usage.clone()]));
    assert_eq!(
        fold["usage"],
        json!({"input_tokens": 3, "output_tokens": 4, "total_tokens": 7, "cache_read_tokens": 2, "reasoning_tokens": 1})
    );
    assert_eq!(fold["usage_raw"], usage["usage"]);
}

#[test]
fn c2_interleaved_choices_stay_apart() {
    let piece = |index: u64, text: &str, end: Value| json!({"id": "m1", "choices": [{"index": index, "delta": {"content": text}, "finish_reason": end}]});
    let body = sse(&[
        piece(1, "B", Value::Null),
        piece(0, "A", Value::Null),
        piece(1, "b", Value::Null),
        piece(0, "a", json!("stop")),
        piece(1, "", json!("length")),
    ]);
    let fold = fold(body);
    assert_eq!(fold["text"], "Aa");
    let texts: Vec<_> =
        fold["choices"].as_array().unwrap().iter().map(|choice| (&choice["text"], &choice["finish_reason"])).collect();
    assert_eq!(texts, [(&json!("Aa"), &json!("stop")), (&json!("Bb"), &json!("length"))]);
    assert_eq!(fold["choices"][1]["message_id"], "m1-1");
}

#[test]
fn c3_a_refusal_is_not_text_and_ends_as_one() {
    let fold =
        fold(sse(&[chunk(&json!({"content": null, "refusal": "I can"})), chunk(&json!({"refusal": "not."})), end("stop")]));
    assert_eq!((&fold["text"], &fold["refusal"]), (&json!(""), &json!("I cannot.")));
    assert_eq!((&fold["finish_reason"], &fold["finish_reason_raw"]), (&json!("refusal"), &json!("stop")));
}

#[test]
fn c4_and_edge_09_parallel_calls_join_by_index() {
    let fold = fold(sse(&[
        call(0, &json!("a"), &json!("f"), &json!("")),
        call(1, &json!(""), &json!("g"), &json!("")),
        call(1, &Value::Null, &Value::Null, &json!("{\"y\"")),
        call(0, &Value::Null, &Value::Null, &json!("{\"x\":")),
        call(1, &Value::Null, &Value::Null, &json!(":2}")),
        call(0, &Value::Null, &Value::Null, &json!("1}")),
        call(2, &json!("nameless"), &Value::Null, &json!("{}")),
        end("tool_calls"),
    ]));
    let calls = calls(&fold);
    assert_eq!(calls[0], ("a", "f", "{\"x\":1}"));
    assert_eq!((calls[1].1, calls[1].2), ("g", "{\"y\":2}"));
    assert!(!calls[1].0.is_empty(), "a blank id is minted");
    assert_eq!(calls.len(), 2, "a call without a name is dropped");
    assert_eq!(fold["warnings"][0]["code"], "nameless_call");
}

#[test]
fn c5_a_forced_call_ends_with_stop_and_still_waits_for_its_tool() {
    let fold = fold(sse(&[call(0, &json!("a"), &json!("f"), &json!("{}")), end("stop")]));
    assert_eq!((&fold["finish_reason"], &fold["finish_reason_raw"]), (&json!("tool_calls"), &json!("stop")));
}

#[test]
fn c6_azure_opens_without_an_id_and_with_a_choice_without_delta() {
    let payloads = events(sse(&[
        json!({"id": "", "model": "", "object": "", "choices": [], "prompt_filter_results": [{"prompt_index": 0, "x": {"filtered": false}}]}),
        json!({"id": "m1", "model": "x", "choices": [{"index": 0, "finish_reason": null, "content_filter_results": {}}]}),
        chunk(&json!({"content": "ok"})),
        json!({"id": "m1", "choices": [{"index": 0, "delta": {}, "finish_reason": "content_filter",
            "content_filter_results": {"hate": {"filtered": true}}}]}),
    ]));
    assert_eq!(count(&payloads, "message_start"), 1);
    assert_eq!(count(&payloads, "provider_event"), 2, "the filtered choice and the prompt's filter");
    assert!(payloads.iter().any(|payload| matches!(payload, Payload::MessageStart(start) if &*start.message_id == "m1")));
    assert!(
        payloads.iter().any(
            |payload| matches!(payload, Payload::AssistantMessage(whole) if whole.finish_reason.as_str() == "content_filter")
        )
    );
}

#[test]
fn c7_moderation_after_the_usage_chunk_loses_nothing() {
    let payloads = events(sse(&[
        chunk(&json!({"content": "a"})),
        end("stop"),
        json!({"id": "m1", "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}),
        json!({"id": "m1", "choices": [], "moderation": {"output": {"flagged": false}}, "usage": null}),
    ]));
    assert_eq!(count(&payloads, "usage"), 1);
    assert!(payloads.iter().any(|payload| matches!(payload, Payload::ProviderEvent(event) if event.name == "moderation")));
}

#[test]
fn c8_repeated_tool_start_is_one_call() {
    let fold =
        fold(sse(&[call(0, &json!("0"), &json!("version"), &json!("")), call(0, &json!("0"), &json!("version"), &json!("{}"))]));
    assert_eq!(calls(&fold), [("0", "version", "{}")]);
    assert_eq!(fold["finish_reason_raw"], Value::Null);
    assert_eq!(fold["warnings"], json!([]));
}

#[test]
fn c9_null_arguments_are_an_empty_object() {
    let fold = fold(sse(&[call(0, &json!("a"), &json!("f"), &Value::Null), end("tool_calls")]));
    assert_eq!(fold["tool_calls"][0]["arguments"], json!({}));
    assert_eq!(fold["tool_calls"][0]["arguments_raw"], "");
}

#[test]
fn c10_length_is_no_error() {
    let fold = fold(sse(&[chunk(&json!({"content": "On"})), end("length")]));
    assert_eq!((&fold["finish_reason"], &fold["error"]), (&json!("length"), &Value::Null));
}

#[test]
fn c11_logprobs_are_not_content() {
    let mut with = chunk(&json!({"content": "a"}));
    with["choices"][0]["logprobs"] = json!({"content": [{"token": "a", "logprob": -0.1, "bytes": [97], "top_logprobs": []}]});
    let mut told = kinds(&events(sse(&[with, end("stop")])));
    told.retain(|kind| *kind != "provider_event"); // they have no word of their own
    assert_eq!(told, kinds(&events(sse(&[chunk(&json!({"content": "a"})), end("stop")]))));
}

#[test]
fn o1_an_error_beside_a_choice_beats_its_finish() {
    let mut with = chunk(&json!({"content": "par"}));
    with["error"] = json!({"code": 429, "message": "slow down"});
    let fold = fold(sse(&[with, end("length")]));
    assert_eq!(
        (&fold["text"], &fold["finish_reason"], &fold["finish_reason_raw"]),
        (&json!("par"), &json!("error"), &json!("length"))
    );
    assert_eq!(
        (&fold["error"]["message"], &fold["error"]["retryable"], &fold["error"]["code"]),
        (&json!("slow down"), &json!(true), &json!("429"))
    );
}

#[test]
fn o2_a_repeated_finish_ends_once() {
    let mut again = end("stop");
    again["usage"] = json!({"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3});
    let payloads = events(sse(&[chunk(&json!({"content": "a"})), end("stop"), again]));
    assert_eq!((count(&payloads, "assistant_message"), count(&payloads, "round_end"), count(&payloads, "usage")), (1, 1, 1));
}

#[test]
fn o3_reasoning_is_never_doubled() {
    let both = |text: &str| {
        chunk(&json!({"reasoning": text, "reasoning_details": [{"type": "reasoning.text", "text": text, "index": 0}]}))
    };
    let signed = chunk(&json!({"reasoning_details": [{"type": "reasoning.text", "text": "th", "signature": "s"}]}));
    let body = sse(&[both("t"), both("h"), signed, chunk(&json!({"content": "a"})), end("stop")]);
    assert_eq!(fold(&body)["reasoning"], "th");
    assert_eq!(count(&events(&body), "provider_event"), 1, "the signature has to be sent back");
    let twice = chunk(&json!({"reasoning": "x", "reasoning_content": "x"}));
    assert_eq!(fold(sse(&[twice, end("stop")]))["reasoning"], "x");
    let alone = chunk(&json!({"reasoning_details": [{"type": "reasoning.summary", "summary": "s"}]}));
    assert_eq!(fold(sse(&[alone, end("stop")]))["reasoning"], "s");
}

#[test]
fn o4_annotations_without_an_index_are_citations() {
    let cited = chunk(&json!({"content": "a", "annotations": [{"type": "url_citation", "url_citation":
        {"url": "https://e.example", "title": "E", "content": "c", "start_index": 1, "end_index": 2}}]}));
    let payloads = events(sse(&[cited, end("stop")]));
    let found = payloads.iter().find_map(|payload| if let Payload::Citation(it) = payload { Some(it) } else { None }).unwrap();
    assert_eq!(
        (found.url.as_deref(), found.title.as_deref(), found.start, found.end),
        (Some("https://e.example"), Some("E"), Some(1), Some(2))
    );
    assert_eq!(found.message_id.as_deref(), Some("m1"));
}

#[test]
fn o5_and_f13_ids_are_kept_as_they_come() {
    for id in ["functions.add:0", "abcDEF123", "0", "call_0"] {
        let fold = fold(sse(&[call(0, &json!(id), &json!("f"), &json!("{}")), end("tool_calls")]));
        assert_eq!(calls(&fold)[0].0, id);
    }
}

#[test]
fn q1_an_error_event_ends_the_answer() {
    let body = format!(
        "data: {}\n\nevent: error\ndata: {}\n\n",
        chunk(&json!({"reasoning": "hm"})),
        json!({"error": {"message": "no such tool", "type": "invalid_request_error", "code": "tool_use_failed", "status_code": 400}})
    );
    let fold = fold(body);
    assert_eq!(
        (&fold["reasoning"], &fold["error"]["code"], &fold["error"]["retryable"]),
        (&json!("hm"), &json!("tool_use_failed"), &json!(false))
    );
    assert_eq!(fold["finish_reason"], "error");
    assert_eq!(fold["warnings"], json!([]), "an error is an end: nothing was cut");
}

#[test]
fn q2_usage_in_all_its_places_is_one_usage() {
    let usage = json!({"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11});
    let places = [
        json!({"id": "m1", "choices": [], "x_groq": {"id": "r", "usage": usage}}),
        json!({"id": "m1", "choices": [], "usage": usage}),
        json!({"id": "m1", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "usage": usage}]}),
    ];
    for place in &places {
        assert_eq!(fold(sse(&[chunk(&json!({"content": "a"})), place.clone(), end("stop")]))["usage"]["total_tokens"], 11);
    }
    let payloads = events(sse(&[chunk(&json!({"content": "a"})), places[0].clone(), places[1].clone(), places[2].clone()]));
    assert_eq!(count(&payloads, "usage"), 1);
}

#[test]
fn q3_an_executed_tool_is_a_server_call_with_a_result() {
    let tool = |output: Value| {
        let mut tool = json!({"index": 0, "type": "search", "arguments": "{\"query\":\"q\"}"});
        if !output.is_null() {
            tool["output"] = output;
        }
        let mut chunk = chunk(&json!({"executed_tools": [tool]}));
        chunk["id"] = json!("other");
        chunk
    };
    let payloads = events(sse(&[tool(Value::Null), tool(json!("found")), chunk(&json!({"content": "a"})), end("stop")]));
    assert_eq!((count(&payloads, "tool_call_start"), count(&payloads, "tool_call"), count(&payloads, "tool_result")), (1, 1, 1));
    assert_eq!(count(&payloads, "message_start"), 1, "another id on a chunk is no other message");
    let whole =
        payloads.iter().find_map(|payload| if let Payload::AssistantMessage(it) = payload { Some(it) } else { None }).unwrap();
    assert!(whole.tool_calls.is_empty() && whole.finish_reason.as_str() == "stop", "the agent has nothing to run");
}

#[test]
fn m1_content_may_be_a_list_and_later_a_string() {
    let fold = fold(sse(&[
        chunk(&json!({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "Ok"}]}]})),
        chunk(&json!({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "ay"}], "closed": true}]})),
        chunk(&json!({"content": [{"type": "text", "text": "4"}]})),
        chunk(&json!({"content": "2"})),
        end("stop"),
    ]));
    assert_eq!((&fold["reasoning"], &fold["text"]), (&json!("Okay"), &json!("42")));
}

#[test]
fn m2_whole_calls_without_index_or_type() {
    let fold = fold(sse(&[json!({"id": "m1", "choices": [{"index": 0, "finish_reason": "tool_calls", "delta": {"tool_calls": [
        {"id": "abcdefghi", "function": {"name": "f", "arguments": "{\"a\":1}"}},
        {"id": "123456789", "function": {"name": "f", "arguments": "{\"a\":2}"}},
    ]}}], "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}})]));
    assert_eq!(calls(&fold), [("abcdefghi", "f", "{\"a\":1}"), ("123456789", "f", "{\"a\":2}")]);
    let later = fold_of_later_names();
    assert_eq!(calls(&later), [("x", "f", "{\"a\":1}")]);
}

/// Mistral's pieces: the name is blank on all but the first.
fn fold_of_later_names() -> Value {
    fold(sse(&[
        call(0, &json!("x"), &json!("f"), &json!("")),
        call(0, &json!("x"), &json!(""), &json!("{\"a\"")),
        call(0, &json!("x"), &json!(""), &json!(":1}")),
        end("tool_calls"),
    ]))
}

#[test]
fn d1_blank_reasoning_beside_content_and_cumulative_usage() {
    let mut first = chunk(&json!({"content": null, "reasoning_content": "t"}));
    first["usage"] = json!({"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10, "prompt_cache_hit_tokens": 8});
    let mut second = chunk(&json!({"content": "a", "reasoning_content": null}));
    second["usage"] = json!({"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11, "prompt_cache_hit_tokens": 8});
    let fold = fold(sse(&[first, chunk(&json!({"content": "", "reasoning_content": ""})), second, end("stop")]));
    assert_eq!((&fold["reasoning"], &fold["text"]), (&json!("t"), &json!("a")));
    assert_eq!(fold["usage"], json!({"input_tokens": 9, "output_tokens": 2, "total_tokens": 11, "cache_read_tokens": 8}));
}

#[test]
fn l2_a_whole_call_in_one_delta() {
    let fold = fold(sse(&[call(0, &json!("c"), &json!("f"), &json!("{\"a\":[1]}")), end("tool_calls")]));
    assert_eq!(fold["tool_calls"][0]["arguments"], json!({"a": [1]}));
}

#[test]
fn x1_the_first_call_may_have_index_one() {
    let fold = fold(sse(&[
        chunk(&json!({"content": "Reading."})),
        call(1, &json!("c"), &json!("f"), &json!("{")),
        call(1, &Value::Null, &Value::Null, &json!("}")),
        end("tool_calls"),
    ]));
    assert_eq!((calls(&fold), &fold["text"]), (vec![("c", "f", "{}")], &json!("Reading.")));
}

#[test]
fn x2_the_object_member_does_not_matter() {
    for object in [json!(null), json!("chat.completion"), json!("chat.completion.done"), json!("")] {
        let (mut first, mut last) = (chunk(&json!({"content": "Hi"})), end("stop"));
        first["object"] = object.clone();
        last["object"] = object;
        let fold = fold(sse(&[first, last]));
        assert_eq!((&fold["text"], &fold["finish_reason"]), (&json!("Hi"), &json!("stop")));
    }
}

#[test]
fn x3_a_cumulative_message_beside_the_delta_is_a_copy() {
    let piece = |so_far: &str, delta: &str, finish: Value| {
        json!({"id": "m1", "citations": ["https://a.example", "https://b.example"],
            "search_results": [{"title": "A", "url": "https://a.example"}],
            "choices": [{"index": 0, "message": {"role": "assistant", "content": so_far}, "delta": {"content": delta}, "finish_reason": finish}]})
    };
    let body = sse(&[piece("Hel", "Hel", Value::Null), piece("Hello", "lo", Value::Null), piece("Hello!", "", json!("stop"))]);
    assert_eq!(fold(&body)["text"], "Hello!", "what the deltas left out comes from the whole");
    assert_eq!(count(&events(&body), "citation"), 2, "each address once, though every chunk repeats them");
}

#[test]
fn x4_no_finish_reason_and_no_id() {
    let body = sse(&[json!({"id": "", "created": 0, "choices": [{"delta": {"content": "Hi"}}]})]);
    let fold = fold(body);
    assert_eq!(
        (&fold["text"], &fold["finish_reason"], &fold["finish_reason_raw"]),
        (&json!("Hi"), &json!("unknown"), &Value::Null)
    );
    assert!(fold["message_id"].as_str().is_some_and(|id| id.starts_with("msg-")));
    assert_eq!(fold["warnings"], json!([]), "[DONE] is an end");
}

#[test]
fn x5_what_has_no_word_passes_once() {
    let mut last = end("stop");
    last["timings"] = json!({"prompt_n": 1, "predicted_ms": 2.5});
    let payloads = events(sse(&[chunk(&json!({"content": "a"})), last]));
    let names: Vec<_> =
        payloads.iter().filter_map(|p| if let Payload::ProviderEvent(it) = p { Some(it.name.as_str()) } else { None }).collect();
    assert_eq!(names, ["timings"]);
}

#[test]
fn x6_the_id_may_change_after_the_first_chunk() {
    let mut first = chunk(&json!({"role": "assistant", "content": "a"}));
    first["id"] = json!("first");
    let payloads =
        events(format!("\n\n\n{}", sse(&[first, chunk(&json!({"content": "b"})), end("stop")]).replace("\n\n", "\n\n\n")));
    assert_eq!((count(&payloads, "message_start"), count(&payloads, "text_delta")), (1, 2));
}

#[test]
fn f8_no_done_after_a_finish_is_complete_and_a_second_done_does_nothing() {
    let whole = sse(&[chunk(&json!({"content": "a"})), end("stop")]);
    let cut = whole.strip_suffix("data: [DONE]\n\n").unwrap();
    assert_eq!(events(cut), events(&whole));
    assert_eq!(events(format!("{whole}data: [DONE]\n\n")), events(&whole));
}

#[test]
fn f12_large_integers_stop_nothing() {
    let mut with = chunk(&json!({"content": "a"}));
    with["choices"][0]["seed"] = json!(1_395_002_666_759_424_000_u64);
    let body = sse(&[with]).replace("1395002666759424000", "139500266675942400000000000000");
    assert_eq!(fold(body)["text"], "a");
}

#[test]
fn xai_counts_reasoning_beside_the_completion() {
    let usage = json!({"id": "m1", "choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 115,
        "completion_tokens_details": {"reasoning_tokens": 100}}});
    let fold = fold(sse(&[chunk(&json!({"content": "a"})), end("stop"), usage]));
    assert_eq!((&fold["usage"]["output_tokens"], &fold["usage"]["total_tokens"]), (&json!(105), &json!(115)));
}

#[test]
fn legacy_function_calls_are_calls() {
    let fold = fold(sse(&[
        chunk(&json!({"function_call": {"name": "f", "arguments": ""}})),
        chunk(&json!({"function_call": {"arguments": "{\"a\":"}})),
        chunk(&json!({"function_call": {"arguments": "1}"}})),
        end("function_call"),
    ]));
    assert_eq!((calls(&fold)[0].1, calls(&fold)[0].2), ("f", "{\"a\":1}"));
    assert_eq!(fold["finish_reason"], "tool_calls");
}

#[test]
fn whole_calls_that_share_an_index_are_several() {
    let fold = fold(sse(&[
        call(0, &json!("a"), &json!("f"), &json!("{\"x\":1}")),
        call(0, &json!("b"), &json!("f"), &json!("{\"x\":2}")),
        end("stop"),
    ]));
    assert_eq!(calls(&fold), [("a", "f", "{\"x\":1}"), ("b", "f", "{\"x\":2}")]);
}

#[test]
fn two_calls_under_one_id_stay_two() {
    let fold = fold(sse(&[
        call(0, &json!("same"), &json!("f"), &json!("{}")),
        call(1, &json!("same"), &json!("g"), &json!("{}")),
        end("tool_calls"),
    ]));
    let calls = calls(&fold);
    assert_eq!((calls[0].0, calls[0].1, calls[1].1), ("same", "f", "g"));
    assert_ne!(calls[1].0, "same");
}

#[test]
fn arguments_may_be_an_object() {
    let fold = fold(sse(&[call(0, &json!("a"), &json!("f"), &json!({"x": 1})), end("tool_calls")]));
    assert_eq!(fold["tool_calls"][0]["arguments"], json!({"x": 1}));
}

#[test]
fn images_are_files() {
    let payloads = events(sse(&[
        chunk(&json!({"images": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}]})),
        chunk(&json!({"images": [{"type": "image_url", "image_url": {"url": "https://i.example/1"}}]})),
        end("stop"),
    ]));
    let files: Vec<_> =
        payloads.iter().filter_map(|payload| if let Payload::File(it) = payload { Some(it) } else { None }).collect();
    assert_eq!(
        (files[0].media_type.as_str(), files[0].data.as_deref(), files[0].url.as_deref()),
        ("image/png", Some("QUJD"), None)
    );
    assert_eq!(files[1].url.as_deref(), Some("https://i.example/1"));
}

#[test]
fn a_whole_body_folds_as_its_stream() {
    let usage = json!({"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3});
    let body = json!({"id": "m1", "object": "chat.completion", "model": "x", "usage": usage, "choices": [{"index": 0, "finish_reason": "tool_calls",
        "message": {"role": "assistant", "content": "Hi", "reasoning_content": "hm", "refusal": null,
            "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}}]});
    let stream = sse(&[
        chunk(&json!({"reasoning_content": "hm"})),
        chunk(&json!({"content": "Hi"})),
        call(0, &json!("c"), &json!("f"), &json!("{}")),
        end("tool_calls"),
        json!({"id": "m1", "choices": [], "usage": usage}),
    ]);
    let mut wanted = events(&stream);
    for payload in &mut wanted {
        if let Payload::AssistantMessage(whole) = payload {
            whole.streamed = false;
        }
    }
    assert_eq!(events(body.to_string()), wanted);
    assert_eq!(events(serde_json::to_string_pretty(&body).unwrap()), wanted);
}

#[test]
fn layouts_that_servers_get_wrong_or_choose() {
    let chunks = [chunk(&json!({"content": "a"})), chunk(&json!({"content": "b"})), end("stop")];
    let right = events(sse(&chunks));
    let lines: Vec<String> = chunks.iter().map(ToString::to_string).collect();
    let single_breaks = format!("data: {}\ndata: [DONE]\n", lines.join("\ndata: "));
    assert_eq!(events(single_breaks), right, "one line break between events");
    assert_eq!(events(lines.join("\n")), right, "one JSON value a line");
    assert_eq!(events(format!("[{}]", lines.join(",\n"))), right, "an array of chunks");
    assert_eq!(events(format!("{}\r\n\r\n", sse(&chunks).replace("data: ", "data:").replace('\n', "\r\n"))), right);
}

#[test]
fn chunks_that_share_an_event_are_all_read_though_the_next_event_begins_alike() {
    let [a, b, c] = ["a", "b", "c"].map(|text| chunk(&json!({"content": text})));
    let shared = |second: &Value| format!("data: {a}\ndata: {second}\n\n");
    let stream = shared(&b) + &shared(&c) + &sse(&[end("stop")]);
    assert_eq!(events(stream), events(sse(&[a.clone(), b.clone(), a.clone(), c.clone(), end("stop")])));
}

#[test]
fn errors_in_all_their_forms() {
    let forms = [
        (json!({"error": {"message": "m", "type": "server_error", "code": null}}), "server_error", true),
        (json!({"error": "m"}), "error", false),
        (json!({"error": {"message": "m", "code": "insufficient_quota"}}), "insufficient_quota", false),
        (json!({"object": "error", "message": "m", "type": "BadRequestError", "code": 400}), "400", false),
        (json!({"type": "error", "error": {"type": "overloaded_error", "message": "m"}}), "overloaded_error", true),
        (json!({"detail": "m"}), "error", false),
        (json!({"code": "InvalidParameter", "message": "m", "request_id": "r"}), "InvalidParameter", false),
        (json!({"errors": [{"code": 7, "message": "m"}]}), "7", false),
        (
            json!({"id": "m1", "choices": [{"index": 0, "delta": {}, "finish_reason": "error", "error": {"code": 502, "message": "m"}}]}),
            "502",
            true,
        ),
        (json!({"id": "m1", "choices": [], "x_groq": {"error": "m"}}), "error", false),
    ];
    for (form, code, retryable) in forms {
        let fold = fold(format!("data: {}\n\ndata: {form}\n\n", chunk(&json!({"content": "a"}))));
        let error = &fold["error"];
        assert_eq!(
            (&error["message"], &error["code"], &error["retryable"]),
            (&json!("m"), &json!(code), &json!(retryable)),
            "{form}"
        );
        assert_eq!(fold["finish_reason"], "error", "{form}");
    }
    for nothing in [json!(null), json!(false), json!({}), json!("")] {
        let mut with = chunk(&json!({"content": "a"}));
        with["error"] = nothing;
        assert_eq!(fold(sse(&[with]))["error"], Value::Null);
    }
}

#[test]
fn edge_08_arguments_in_three_pieces_are_one_call() {
    let body = sse(&[
        call(0, &json!("c"), &json!("f"), &json!("{\"ci")),
        call(0, &Value::Null, &Value::Null, &json!("ty\":\"Bo")),
        call(0, &Value::Null, &Value::Null, &json!("nn\"}")),
        end("tool_calls"),
        json!({"id": "m1", "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}),
    ]);
    let fold = fold(&body);
    assert_eq!(fold["tool_calls"][0]["arguments"], json!({"city": "Bonn"}));
    assert_eq!(fold["usage"]["total_tokens"], 2);
    assert_eq!(count(&events(&body), "tool_call_delta"), 3);
}

#[test]
fn edge_10_bad_arguments_are_kept_and_flagged() {
    let fold = fold(sse(&[call(0, &json!("c"), &json!("f"), &json!("{\"a\": tru")), end("tool_calls")]));
    let call = &fold["tool_calls"][0];
    assert_eq!((&call["arguments"], &call["arguments_raw"]), (&Value::Null, &json!("{\"a\": tru")));
    assert!(call["arguments_error"].is_string());
}

#[test]
fn edge_11_one_end_whatever_the_provider_says() {
    let without = events(format!("data: {}\n\ndata: [DONE]\n\n", chunk(&json!({"content": "a"}))));
    assert_eq!((count(&without, "assistant_message"), count(&without, "round_end")), (1, 1));
    assert_eq!(kinds(&events("")), ["error"], "an empty stream is a truncated one");
}

#[test]
fn edge_13_a_stream_that_just_stops_is_truncated() {
    let fold = fold(format!("data: {}\n\n", chunk(&json!({"content": "On"}))));
    assert_eq!(
        (&fold["text"], &fold["error"], &fold["warnings"][0]["code"]),
        (&json!("On"), &Value::Null, &json!("stream_truncated"))
    );
    let payloads = events(format!("data: {}\n\n", chunk(&json!({"content": "On"}))));
    assert_eq!(kinds(&payloads)[3..], ["error", "assistant_message", "round_end"]);
    let one_of_two = json!({"id": "m1", "choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}, {"index": 1, "delta": {"content": "b"}}]});
    assert_eq!(count(&events(format!("data: {one_of_two}\n\n")), "error"), 1);
}

#[test]
fn cases_1_and_2_a_final_message_gives_the_missing_suffix() {
    let last = |text: &str| json!({"id": "m1", "object": "chat.completion", "choices": [{"index": 0, "message": {"content": text}, "finish_reason": "stop"}]});
    for (deltas, pieces) in [(&[][..], 1), (&[chunk(&json!({"content": "Hel"}))][..], 2)] {
        let body = sse(&[deltas, &[last("Hello")]].concat());
        assert_eq!(fold(&body)["text"], "Hello");
        assert_eq!(count(&events(&body), "text_delta"), pieces);
    }
}

#[test]
fn a_broken_frame_is_a_warning_or_an_error() {
    let body = format!("data: {}\n\ndata: {{\"choices\": [\n\ndata: {}\n\n", chunk(&json!({"content": "a"})), end("stop"));
    let offset = body.find("data: {\"choices\": [\n").unwrap();
    let fold = fold(&body);
    assert_eq!((&fold["text"], &fold["finish_reason"]), (&json!("a"), &json!("stop")));
    assert_eq!(fold["warnings"][0]["code"], "malformed_frame");
    assert!(fold["warnings"][0]["message"].as_str().unwrap().contains(&format!("byte {offset}:")), "{}", fold["warnings"][0]);

    let mut strict = Normalizer::new("openai-chat", Options { strict: true, ..Options::default() }).unwrap();
    let error = strict.feed(body.as_bytes()).unwrap_err();
    assert!(matches!(error, ProtocolError::Malformed { offset: at, .. } if at == offset as u64), "{error}");
    assert_eq!(strict.feed(b"more").unwrap_err(), error);
    assert_eq!(strict.finish().unwrap_err(), error);
    let payloads: Vec<_> = strict.drain().collect();
    assert_eq!(kinds(&payloads), ["round_start", "message_start", "text_delta", "error", "assistant_message", "round_end"]);
}

#[test]
fn a_number_that_json_has_not_costs_nothing_but_itself() {
    let piece = |text: &str| json!({"id": "m1", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": text}, "logprobs": {"content": [{"token": "NaN", "logprob": "#"}]}}]});
    let body = sse(&[piece("a"), piece("NaN "), piece("c"), end("stop")]).replace("\"#\"", "-Infinity");
    for provider in ["openai-chat", "auto"] {
        let fold = fold_bytes(body.as_bytes(), provider, 0, Options::default()).unwrap();
        let fold: serde_json::Value = serde_json::from_str(&fold.to_json()).unwrap();
        assert_eq!((&fold["text"], fold["warnings"].as_array().unwrap().len()), (&json!("aNaN c"), 1));
        assert_eq!(fold["warnings"][0]["code"], "not_a_number");
        assert!(fold_bytes(body.as_bytes(), provider, 0, Options { strict: true, ..Options::default() }).is_err());
    }
}

#[test]
fn bytes_after_the_end_are_an_error() {
    let body = sse(&[chunk(&json!({"content": "a"})), end("stop")]);
    let mut normalizer = Normalizer::new("openai-chat", Options::default()).unwrap();
    normalizer.feed(body.as_bytes()).unwrap();
    normalizer.finish().unwrap();
    assert_eq!(normalizer.feed(b"data: {}\n\n").unwrap_err(), ProtocolError::Ended { provider: "openai-chat" });
    normalizer.feed(b"").unwrap();
    normalizer.finish().unwrap();
}

#[test]
fn unknown_frames_pass_and_are_refused_when_strict() {
    let body = sse(&[json!({"type": "surprise", "x": 1}), chunk(&json!({"content": "a"})), end("stop")]);
    let payloads = events(&body);
    assert!(matches!(&payloads[0], Payload::ProviderEvent(event) if event.name == "surprise"));
    assert!(fold_bytes(body.as_bytes(), "openai-chat", 0, Options { strict: true, ..Options::default() }).is_err());
    assert!(
        fold_bytes(
            sse(&[chunk(&json!({"content": "a"})), end("stop")]).as_bytes(),
            "openai-chat",
            0,
            Options { strict: true, ..Options::default() }
        )
        .is_ok()
    );
}

#[test]
fn bytes_that_are_no_stream_are_refused() {
    assert!(matches!(fold_bytes(b"data: hello\n\n", "openai-chat", 0, Options::default()), Err(ProtocolError::NoStream { .. })));
    assert!(matches!(
        fold_bytes(b"data: {\"hello\":1}\n\n", "auto", 0, Options::default()),
        Err(ProtocolError::Unrecognised { .. })
    ));
    assert!(matches!(fold_bytes(b"", "auto", 0, Options::default()), Err(ProtocolError::Unrecognised { .. })));
    assert!(matches!(Normalizer::new("nobody", Options::default()), Err(ProtocolError::UnknownProvider { .. })));
}

#[test]
fn auto_waits_for_a_frame_that_tells() {
    let body = format!(": hello\n\ndata: {{\"ping\":1}}\n\n{}", sse(&[chunk(&json!({"content": "a"})), end("stop")]));
    let mut normalizer = Normalizer::new("auto", Options::default()).unwrap();
    normalizer.feed(b": hello\n\ndata: {\"ping\":1}\n\n").unwrap();
    assert_eq!((normalizer.provider(), normalizer.drain().count()), ("auto", 0));
    normalizer.feed(&body.as_bytes()[b": hello\n\ndata: {\"ping\":1}\n\n".len()..]).unwrap();
    normalizer.finish().unwrap();
    assert_eq!(normalizer.provider(), "openai-chat");
    assert_eq!(normalizer.drain().collect::<Vec<_>>(), events(&body));
    let alone = fold_bytes(b"data: {\"error\":{\"message\":\"m\"}}\n\n", "auto", 0, Options::default()).unwrap();
    assert_eq!(alone.error.unwrap().message, "m");
}

#[test]
fn minted_ids_carry_the_prefix() {
    let mut normalizer = Normalizer::new("openai-chat", Options { id_prefix: "s7-".into(), ..Options::default() }).unwrap();
    normalizer.feed(sse(&[json!({"choices": [{"delta": {"content": "a"}}]})]).as_bytes()).unwrap();
    assert!(
        normalizer.drain().any(|payload| matches!(payload, Payload::MessageStart(start) if &*start.message_id == "msg-s7-1"))
    );
}

// --- hostile input and cost -------------------------------------------------------------------------------------------

#[test]
fn a_million_brackets_are_a_warning() {
    let good = format!("data: {}\n\n", chunk(&json!({"content": "a"})));
    for hole in [
        "[HERE]",
        "{\"choices\":HERE}",
        "{\"choices\":[{\"delta\":HERE}]}",
        "{\"choices\":[{\"delta\":{\"content\":HERE}}]}",
        "{\"choices\":[],\"usage\":HERE}",
        "{\"choices\":[],\"x\":HERE}",
        "{\"error\":HERE}",
    ] {
        let bad = hole.replace("HERE", &"[".repeat(1_000_000));
        let closed = hole.replace("HERE", &("[".repeat(1_000_000) + &"]".repeat(1_000_000)));
        for body in [bad, closed] {
            let fold = fold(format!("{good}data: {body}\n\n{good}"));
            assert_eq!(fold["text"], "aa", "{hole}");
        }
    }
}

#[test]
fn ten_thousand_parallel_calls_cost_little() {
    let mut body = String::new();
    for index in 0..10_000 {
        let _ = write!(body, "data: {}\n\n", call(index, &json!(format!("c{index}")), &json!("f"), &json!("{")));
    }
    for index in 0..10_000 {
        let _ = write!(body, "data: {}\n\n", call(index, &Value::Null, &Value::Null, &json!("}")));
    }
    let started = common::cpu_time();
    let payloads = events(&body);
    assert_eq!(count(&payloads, "tool_call"), 10_000);
    let took = common::cpu_time().saturating_sub(started);
    assert!(took.as_secs() < 5, "{took:?}");
}

#[test]
fn out_of_range_numbers_and_duplicate_keys_are_bounded() {
    let good = format!("data: {}\n\n", chunk(&json!({"content": "a"})));
    for odd in [
        "{\"choices\":[{\"index\":1e999,\"delta\":{\"content\":\"x\"}}]}",
        "{\"choices\":[{\"index\":99999999999999999999,\"delta\":{}}]}",
        "{\"choices\":[{\"index\":1048576,\"delta\":{\"content\":\"x\"}}]}",
        "{\"choices\":[{\"index\":-1,\"delta\":{}}]}",
        "{\"choices\":[],\"usage\":{\"prompt_tokens\":1e999,\"completion_tokens\":-5,\"total_tokens\":18446744073709551616}}",
        "{\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":18446744073709551615,\"function\":{}}]}}]}",
        "{\"choices\":{},\"choices\":7,\"id\":{},\"model\":[],\"usage\":\"x\"}",
        "[]",
        "7",
        "null",
        "\"text\"",
        "tru",
    ] {
        let fold = fold(format!("{good}data: {odd}\n\n{good}"));
        assert!(fold["text"].as_str().unwrap().starts_with('a') && fold["text"].as_str().unwrap().ends_with('a'), "{odd}");
    }
    let twice =
        "data: {\"id\":\"m1\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\",\"content\":\"b\"}}],\"choices\":null}\n\n";
    assert_eq!(fold(twice)["text"], "b", "of a repeated key the last value counts");
}

#[test]
fn cost_is_linear_in_the_deltas() {
    let body = |deltas: usize| format!("data: {}\n\n", chunk(&json!({"content": "word "}))).repeat(deltas);
    let cost = |bytes: &str| {
        // The best of five: whatever else the machine does only adds.
        (0..5)
            .map(|_| {
                let started = common::cpu_time();
                let mut normalizer = Normalizer::new("openai-chat", Options::default()).unwrap();
                for piece in bytes.as_bytes().chunks(4096) {
                    normalizer.feed(piece).unwrap();
                    normalizer.drain().for_each(drop);
                }
                common::cpu_time().saturating_sub(started)
            })
            .min()
            .unwrap()
    };
    let (few, many) = (cost(&body(10_000)), cost(&body(100_000)));
    assert!(many < few * 20, "10,000 deltas {few:?}, 100,000 {many:?}");
}

// --- streams that nobody wrote ----------------------------------------------------------------------------------------

/// What a member of a chunk may hold, right or wrong.
fn values() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        Just(json!("")),
        "[a-zé\\n\"{}]{1,8}".prop_map(Value::from),
        (0..4_u64).prop_map(Value::from),
        Just(json!(true)),
        Just(json!([])),
        Just(json!({})),
        Just(json!([{"type": "text", "text": "t"}, {"type": "thinking", "thinking": "h"}, "s", 7])),
        Just(json!({"message": "m", "code": 500})),
        Just(json!("{\"a\":1}")),
        Just(json!({"prompt_tokens": 1, "completion_tokens": 2})),
    ]
}

/// A chunk with some of the members that dialects have, each holding anything.
fn chunks() -> impl Strategy<Value = Value> {
    let delta = prop_oneof![
        Just("content"),
        Just("refusal"),
        Just("reasoning"),
        Just("reasoning_content"),
        Just("reasoning_details"),
        Just("function_call"),
        Just("annotations"),
        Just("images"),
        Just("executed_tools"),
        Just("audio"),
    ];
    let word = |word: &'static str| prop_oneof![2 => Just(json!(word)), 1 => Just(json!("b")), 1 => values()];
    let piece = (0..3_u64, word("a"), word("f"), values()).prop_map(
        |(index, id, name, arguments)| json!([{"index": index, "id": id, "function": {"name": name, "arguments": arguments}}]),
    );
    let choice = (0..3_u64, proptest::collection::vec((delta, values()), 0..3), proptest::option::of(piece), values(), values())
        .prop_map(|(index, members, calls, finish, message)| {
            let mut delta: serde_json::Map<String, Value> =
                members.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
            if let Some(calls) = calls {
                delta.insert("tool_calls".to_owned(), calls);
            }
            json!({"index": index, "delta": delta, "finish_reason": finish, "message": {"content": message}})
        });
    let top = prop_oneof![
        Just("usage"),
        Just("error"),
        Just("citations"),
        Just("search_results"),
        Just("x_groq"),
        Just("id"),
        Just("z")
    ];
    (proptest::collection::vec(choice, 0..3), proptest::option::of((top, values()))).prop_map(|(choices, member)| {
        let mut chunk = json!({"id": "m", "choices": choices});
        if let Some((key, value)) = member {
            chunk[key] = value;
        }
        chunk
    })
}

proptest! {
    #[test]
    fn whatever_comes_the_rules_hold_in_any_split(
        chunks in proptest::collection::vec(chunks(), 0..12),
        done in any::<bool>(),
        split in 1..40_usize,
        drop in 0..60_usize,
    ) {
        let mut body = sse(&chunks);
        body = if done { body } else { body.replace("data: [DONE]\n\n", "") };
        let bytes = &body.as_bytes()[..body.len().saturating_sub(if done { 0 } else { drop })];
        let read = |split: usize| {
            let mut normalizer = Normalizer::new("openai-chat", Options::default()).expect("a known provider");
            let mut payloads = Vec::new();
            for piece in bytes.chunks(split) {
                normalizer.feed(piece).expect("lenient");
                payloads.extend(normalizer.drain());
            }
            let end = normalizer.finish();
            payloads.extend(normalizer.drain());
            (payloads, end)
        };
        let whole = read(usize::MAX);
        prop_assert_eq!(common::rule_faults(&whole.0), Vec::<String>::new());
        prop_assert_eq!(read(split), whole);
    }
}
