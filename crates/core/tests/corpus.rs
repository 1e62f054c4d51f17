//! Every recorded stream agrees with what its own oracle made of it, whole and in pieces, and cut at every byte.

mod common;

use std::collections::HashSet;
use std::fmt::Write as _;

use common::recordings::{Case, cases, each};
use serde_json::Value;
use turnstream_core::event::{Kind, Payload};
use turnstream_core::fold::{Fold, fold_bytes};
use turnstream_core::provider::{Normalizer, Options, ProtocolError, READER_ERRORS, providers};

/// Streams judged differently from their oracle: which member, and why. At most 3 % of all, and only where the oracle
/// itself cannot see, or mixes up, what the provider said.
const JUDGED_DIFFERENTLY: &[(&str, &str, &str)] = &[
    (
        "others/pydai-test_snowflake_thinking_streaming-0",
        "reasoning",
        "the reasoning comes in reasoning_details alone, which the oracle lists apart; it is text to show, so it counts",
    ),
    (
        "others/rubyllm-thinking_gpustack_qwen3_streams_thinking_content-0",
        "error",
        "the server ends with its error in an unknown field of the event stream; the SDK drops it unseen, we say it",
    ),
    (
        "anthropic/sdk-incomplete_partial_json_response",
        "arguments",
        "the limit cut the arguments in the middle; the accumulator completes half of a JSON text, we never let half a call run",
    ),
    (
        "anthropic/vercel-spliced-message-start",
        "reasoning",
        "a second message begins inside the first; the accumulator mixes them, we withdraw the first",
    ),
    (
        "anthropic/vercel-spliced-message-start",
        "tool_calls",
        "the same: the accumulator puts the second call's arguments into the first call",
    ),
    (
        "codex/v0.98.0-appserver-interrupt",
        "text",
        "the user stopped the answer: the oracle counts completed messages only and lists the rest apart, we keep what was shown",
    ),
    (
        "codex/v0.98.0-appserver-text-reasoning",
        "reasoning",
        "two parts of a summary: the oracle runs them together, we keep the blank line between them as for every provider",
    ),
    ("codex/v0.169.0-appserver-text-reasoning", "reasoning", "the same"),
];

/// Streams in which nothing tells the format: a name has to.
const NOTHING_TO_RECOGNISE: &[&str] = &[
    // Its only frame is an object of nobody's.
    "gemini/firebase-vertexai-streaming-failure-invalid-json",
];

/// The most bytes of a stream that is cut at every byte; a longer one is cut at every byte of its ends and some 128 others.
const CUT_EVERYWHERE: usize = 2 << 10;

fn events(case: &Case, split: usize) -> Vec<Payload> {
    let mut normalizer = Normalizer::new(case.provider, Options::default()).expect("a known provider");
    let mut payloads = Vec::new();
    for piece in case.bytes.chunks(split.max(1)) {
        normalizer.feed(piece).unwrap_or_else(|error| panic!("{}: {error}", case.name));
        payloads.extend(normalizer.drain());
    }
    normalizer.finish().unwrap_or_else(|error| panic!("{}: {error}", case.name));
    payloads.extend(normalizer.drain());
    payloads
}

/// What the oracle says of `member`, a plain merge's word first where the accumulator is known to have lost something.
fn oracle<'a>(expected: &'a Value, member: &str) -> &'a Value {
    let merged = &expected["disagrees_with_plain_merge"][member];
    if merged.is_null() { &expected[member] } else { merged }
}

fn short(value: &impl ToString) -> String {
    let text = value.to_string();
    if text.chars().count() > 300 { text.chars().take(300).chain("…".chars()).collect() } else { text }
}

fn differ(what: &str, got: &Value, wanted: &Value) -> Option<String> {
    (!same(got, wanted)).then(|| format!("{what}: got {}, wanted {}", short(got), short(wanted)))
}

/// Equal as JSON, where 2 and 2.0 are one number.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
        }
        _ => a == b,
    }
}

/// Whether an error says what the oracle says: the message itself, or what an SDK's exception wraps up in its own.
fn same_error(got: &Value, wanted: &Value) -> bool {
    let (got, said) = (got["message"].as_str().unwrap_or_default(), wanted["message"].as_str().unwrap_or_default());
    got == said || (wanted["type"].as_str().is_some_and(|of| of.ends_with("Error")) && !got.is_empty() && said.contains(got))
}

/// An answer's members against an oracle's.
fn answer_faults(got: &Value, wanted: &dyn Fn(&str) -> Value) -> Vec<String> {
    let mut faults = Vec::new();
    for member in ["text", "reasoning"] {
        faults.extend(differ(member, &got[member], &wanted(member)));
    }
    let reason = match wanted("finish_reason") {
        Value::Number(number) => Value::String(number.to_string()),
        word => word,
    };
    faults.extend(differ("finish_reason", &got["finish_reason_raw"], &reason));
    // An empty refusal is none.
    if !matches!(wanted("refusal"), Value::Null) && wanted("refusal") != "" {
        faults.extend(differ("refusal", &got["refusal"], &wanted("refusal")));
    }
    // An agent's tools are its own doing: its oracle lists their ends, and is compared by them.
    let agent = wanted("dialect").as_str().is_some_and(|dialect| dialect.starts_with("codex"));
    if agent {
        faults.extend(agent_faults(&got["tool_calls"], &wanted("tool_calls")));
        return faults;
    }
    let own = |call: &&Value| call["kind"] == "client";
    let calls: Vec<&Value> = got["tool_calls"].as_array().into_iter().flatten().filter(own).collect();
    let wanted = wanted("tool_calls");
    let expected = wanted.as_array().map_or(&[][..], Vec::as_slice);
    if calls.len() != expected.len() {
        faults.push(format!("tool_calls: got {}, wanted {}", short(&got["tool_calls"]), short(&wanted)));
        return faults;
    }
    for (call, expected) in calls.iter().zip(expected) {
        for member in ["id", "name", "arguments", "arguments_raw"] {
            // An id that the provider left out is minted.
            if !(expected[member].is_null() || (member == "id" && expected[member] == "")) {
                faults.extend(differ(member, &call[member], &expected[member]));
            }
        }
    }
    faults
}

/// The tools that an agent ran to their ends: what they were, and what they came to.
fn agent_faults(got: &Value, wanted: &Value) -> Vec<String> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut ended: Vec<Value> = list(got).into_iter().filter(|call| call["result"]["status"] != "incomplete").collect();
    let wanted = list(wanted);
    // The oracle lists them as they ended, we as they began.
    ended.sort_by_key(|call| wanted.iter().position(|wanted| wanted["id"] == call["id"]));
    if ended.len() != wanted.len() {
        return vec![format!("tool_calls: got {}, wanted {}", short(got), wanted.len())];
    }
    let mut faults = Vec::new();
    for (call, wanted) in ended.iter().zip(&wanted) {
        let detail = if wanted["detail"].is_object() { &wanted["detail"] } else { wanted };
        let (result, output) = (&call["result"], &call["result"]["output"]);
        faults.extend(differ("id", &call["id"], &wanted["id"]));
        // The tool of an MCP server has a name of its own.
        let name = if detail["tool"].is_string() { &detail["tool"] } else { &wanted["name"] };
        faults.extend(differ("name", &call["name"], name));
        if !wanted["status"].is_null() {
            faults.extend(differ("status", &result["status"], &wanted["status"]));
            faults.extend(differ("is_error", &result["is_error"], &(wanted["status"] != "completed").into()));
        }
        for (ours, theirs) in
            [("command", "command"), ("changes", "changes"), ("query", "query")].map(|(a, b)| (&call["arguments"][a], &detail[b]))
        {
            if !theirs.is_null() {
                faults.extend(differ("arguments", ours, theirs));
            }
        }
        for (ours, theirs) in [
            (&output["output"], &detail["aggregatedOutput"]),
            (&output["output"], &detail["aggregated_output"]),
            (&output["exit_code"], &detail["exitCode"]),
            (&output["exit_code"], &detail["exit_code"]),
            (output, &detail["result"]),
        ] {
            if !theirs.is_null() {
                faults.extend(differ("output", ours, theirs));
            }
        }
        if detail["arguments"].is_object() {
            faults.extend(differ("arguments", &call["arguments"], &detail["arguments"]));
        }
    }
    faults
}

/// An agent's turns, told apart, and what it asked and was refused.
fn turn_faults(got: &Value, expected: &Value, payloads: &[Payload]) -> Vec<String> {
    let mut faults = Vec::new();
    let turns = expected["turns"].as_array().cloned().unwrap_or_default();
    if !turns.is_empty() && got["turns"].as_array().map_or(0, Vec::len) != turns.len() {
        faults.push(format!("turns: got {}, wanted {}", short(&got["turns"]), turns.len()));
    }
    for (got, turn) in got["turns"].as_array().into_iter().flatten().zip(&turns) {
        faults.extend(differ("turn", &got["finish_reason_raw"], &turn["status"]));
        faults.extend(agent_faults(&got["tool_calls"], &{
            let mut tools = turn["tools"].clone();
            tools.as_array_mut().into_iter().flatten().for_each(|tool| tool["name"] = tool["type"].clone());
            tools
        }));
        let whole: Vec<(&str, &str)> = payloads
            .iter()
            .filter_map(|payload| match payload {
                Payload::AssistantMessage(whole) if !whole.text.is_empty() => Some((&*whole.message_id, &*whole.text)),
                _ => None,
            })
            .collect();
        for message in turn["messages"].as_array().into_iter().flatten() {
            let said = (message["id"].as_str().unwrap_or(""), message["text"].as_str().unwrap_or(""));
            if !whole.contains(&said) {
                faults.push(format!("message: {} is missing", message["id"]));
            }
        }
        let retries = turn["errors"].as_array().into_iter().flatten().filter(|error| error["willRetry"] == true).count();
        let said = payloads.iter().filter(|payload| matches!(payload, Payload::Warning(warning) if warning.code == "retry"));
        faults.extend(differ("retries", &said.count().into(), &retries.into()));
    }
    for request in expected["server_requests"].as_array().into_iter().flatten() {
        let asked = |payload: &&Payload| match payload {
            Payload::ProviderEvent(event) => {
                request["method"] == *event.name && event.data.as_ref().is_some_and(|data| data.to_value()["id"] == request["id"])
            }
            _ => false,
        };
        if payloads.iter().filter(asked).count() != 1 {
            faults.push(format!("server_requests: {request}"));
        }
    }
    let refused = expected["rpc_errors"].as_array().map_or(0, Vec::len);
    let said = payloads.iter().filter(|payload| matches!(payload, Payload::Warning(warning) if warning.code == "rpc_error"));
    faults.extend(differ("rpc_errors", &said.count().into(), &refused.into()));
    faults
}

/// Nulls that the merge keeps or drops make no difference; a null inside the object neither.
fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            Value::Object(members.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.clone(), without_nulls(v))).collect())
        }
        other => other.clone(),
    }
}

/// In what a stream differs from its oracle: `member: got …, wanted …`.
fn oracle_faults(case: &Case) -> Vec<String> {
    let fold = match fold_bytes(&case.bytes, case.provider, 0, Options::default()) {
        Ok(fold) => fold,
        Err(error) => return vec![error.to_string()],
    };
    if case.expected["oracle"].is_null() {
        return vec![];
    }
    let got: Value = serde_json::from_str(&fold.to_json()).expect("the fold is JSON");
    let mut faults = answer_faults(&got, &|member| oracle(&case.expected, member).clone());
    if case.provider == "codex" {
        faults.extend(turn_faults(&got, &case.expected, &events(case, usize::MAX)));
    }
    let usage = oracle(&case.expected, "usage");
    if !usage.is_null() {
        let mut raw = without_nulls(&got["usage_raw"]);
        // The accumulator keeps only the members its types name.
        if let (Value::Object(raw), Value::Object(known), "anthropic" | "bedrock") = (&mut raw, usage, case.provider) {
            raw.retain(|member, _| known.contains_key(member));
        }
        faults.extend(differ("usage", &raw, &without_nulls(usage)));
    }
    let error = oracle(&case.expected, "error");
    if error.is_null() {
        faults.extend(differ("error", &got["error"], &Value::Null));
    } else if !same_error(&got["error"], error) {
        faults.push(format!("error: got {}, wanted {}", short(&got["error"]), short(error)));
    }
    // One for each of several rounds.
    if let Some(usages) = case.expected["usages"].as_array() {
        let said = events(case, usize::MAX).into_iter().filter_map(|payload| match payload {
            Payload::Usage(usage) => usage.raw.map(|raw| raw.to_value()),
            _ => None,
        });
        faults.extend(differ("usages", &said.collect::<Vec<_>>().into(), &usages.clone().into()));
    }
    let choices = ["choices", "candidates"].iter().find_map(|key| case.expected[key].as_array().cloned()).unwrap_or_default();
    if choices.len() != got["choices"].as_array().map_or(0, Vec::len) {
        faults.push(format!("choices: got {}, wanted {}", short(&got["choices"]), choices.len()));
    }
    for (index, choice) in choices.iter().enumerate() {
        let of = answer_faults(&got["choices"][index], &|member| choice[member].clone());
        faults.extend(of.into_iter().map(|fault| format!("choice {index}: {fault}")));
    }
    faults
}

/// The line of the table that a fault falls under.
fn judged(case: &Case, fault: &str) -> Option<&'static (&'static str, &'static str, &'static str)> {
    let same = |(name, member, _): &&(&str, &str, &str)| *name == case.name && fault.starts_with(&format!("{member}: "));
    JUDGED_DIFFERENTLY.iter().find(same)
}

#[test]
fn agrees_with_its_oracle() {
    let Some(cases) = cases() else { return };
    let used = parking_lot::Mutex::new(HashSet::new());
    each(&cases, |case| {
        let mut faults = oracle_faults(case);
        faults.retain(|fault| match judged(case, fault) {
            Some((name, member, _)) => {
                used.lock().insert((*name, *member));
                false
            }
            None => true,
        });
        faults
    });
    assert_eq!(used.lock().len(), JUDGED_DIFFERENTLY.len(), "the table names what is no longer different");
    assert!(JUDGED_DIFFERENTLY.len() * 100 <= cases.len() * 3);
}

/// What a strict reader refuses, and why; everything else that servers really sent it takes.
const REFUSED_BY_STRICT: &[(&str, &str)] = &[
    ("anthropic/pydai-test_pause_turn_web_search_streaming_vcr-1", "result_without_call"),
    ("anthropic/vercel-anthropic-programmatic-tool-calling.1-r15of15", "result_without_call"),
    ("anthropic/vercel-anthropic-tool-search-deferred-regex-r2of3", "result_without_call"),
    ("openai-responses/vercel-programmatic-tool-calling.3", "result_without_call"),
    ("gemini/firebase-vertexai-streaming-failure-invalid-json", "unknown kind"),
];

#[test]
fn strict_reads_what_servers_really_send() {
    let Some(cases) = cases() else { return };
    each(&cases, |case| {
        let read = fold_bytes(&case.bytes, case.provider, 0, Options { strict: true, ..Options::default() });
        match (read, REFUSED_BY_STRICT.iter().find(|(name, _)| *name == case.name)) {
            (Err(error), Some((_, why))) if error.to_string().contains(why) => vec![],
            (Err(error), _) => vec![format!("refused: {error}")],
            (Ok(_), Some(_)) => vec!["not refused any more".to_owned()],
            (Ok(_), None) => vec![],
        }
    });
}

#[test]
fn any_split_gives_equal_events() {
    let Some(cases) = cases() else { return };
    each(&cases, |case| {
        let whole = events(case, usize::MAX);
        let differs = |split: &&usize| events(case, **split) != whole;
        [1, 7, 4096].iter().filter(differs).map(|split| format!("pieces of {split} give other events")).collect()
    });
}

#[test]
fn recognised_without_a_name() {
    let Some(cases) = cases() else { return };
    each(&cases, |case| match fold_bytes(&case.bytes, "auto", 0, Options::default()) {
        Ok(fold) => {
            let mut named = fold_bytes(&case.bytes, case.provider, 0, Options::default()).expect("a stream");
            named.provider.clone_from(&fold.provider);
            let same = fold.provider == case.provider && fold.to_json() == named.to_json();
            if same { vec![] } else { vec![format!("read as {}", fold.provider)] }
        }
        Err(ProtocolError::Unrecognised { .. }) if NOTHING_TO_RECOGNISE.contains(&case.name.as_str()) => vec![],
        Err(error) => vec![error.to_string()],
    });
}

/// Servers that know their model's template leave nothing of it in the text: there is nothing to find, and nothing is lost.
#[test]
fn looking_for_calls_in_the_text_changes_no_answer() {
    let Some(cases) = cases() else { return };
    let fold = |case: &Case, text_tools| {
        let how = Options { text_tools, ..Options::default() };
        let fold = fold_bytes(&case.bytes, case.provider, 0, how).map_err(|error| error.to_string());
        let mut fold: Value = serde_json::from_str(&fold?.to_json()).expect("the fold is JSON");
        fold["events"] = Value::Null; // a piece that could begin a mark goes out with the next one
        Ok::<Value, String>(fold)
    };
    each(&cases, |case| if fold(case, true) == fold(case, false) { vec![] } else { vec!["another answer".to_owned()] });
}

#[test]
fn events_keep_the_rules_of_the_vocabulary() {
    let Some(cases) = cases() else { return };
    each(&cases, |case| common::rule_faults(&events(case, usize::MAX)));
}

#[test]
fn a_cut_anywhere_is_closed_and_makes_no_replacement_characters() {
    let Some(cases) = cases() else { return };
    each(&cases, |case| {
        let clean = !String::from_utf8_lossy(&case.bytes).contains('\u{fffd}')
            && !case.bytes.windows(6).any(|window| window.eq_ignore_ascii_case(b"\\ufffd"));
        let (length, mut faults) = (case.bytes.len(), Vec::new());
        let step = if length <= CUT_EVERYWHERE { 1 } else { length / 128 };
        for cut in (1..length).filter(|cut| cut % step == 0 || *cut < 96 || length - cut < 96) {
            let mut normalizer = Normalizer::new(case.provider, Options::default()).expect("a known provider");
            let _ = normalizer.feed(&case.bytes[..cut]).and_then(|()| normalizer.finish());
            let payloads: Vec<Payload> = normalizer.drain().collect();
            let mut fold = Fold::new(case.provider);
            for payload in &payloads {
                fold.push(payload);
            }
            if clean && fold.to_json().contains('\u{fffd}') {
                faults.push(format!("cut at {cut}: a replacement character"));
            }
            faults.extend(common::rule_faults(&payloads).into_iter().map(|fault| format!("cut at {cut}: {fault}")));
        }
        faults
    });
}

/// Lines dropped, doubled and swapped, as broken proxies do: nothing panics, and the rules hold all the same.
#[test]
fn lines_lost_doubled_or_swapped_break_no_rule() {
    let Some(cases) = cases() else { return };
    each(&cases, |case| {
        let frames: Vec<&[u8]> = if case.bytes.starts_with(b"{") {
            case.bytes.split_inclusive(|byte| *byte == b'\n').collect()
        } else if case.bytes.starts_with(&[0]) {
            split_messages(&case.bytes)
        } else {
            split_after_blank_lines(&case.bytes)
        };
        let mut faults = Vec::new();
        // A xorshift: every run sees the same damage.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ case.bytes.len() as u64;
        let mut random = |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from(state % below.max(1) as u64).expect("small")
        };
        for round in 0..16 {
            let mut damaged = frames.clone();
            for _ in 0..=random(4) {
                let (a, b) = (random(damaged.len()), random(damaged.len()));
                match random(3) {
                    0 => drop(damaged.remove(a)),
                    1 => damaged.insert(b, damaged[a]),
                    _ => damaged.swap(a, b),
                }
                if damaged.is_empty() {
                    break;
                }
            }
            let mut normalizer = Normalizer::new(case.provider, Options::default()).expect("a known provider");
            let _ = normalizer.feed(&damaged.concat()).and_then(|()| normalizer.finish());
            let payloads: Vec<Payload> = normalizer.drain().collect();
            faults.extend(common::rule_faults(&payloads).into_iter().map(|fault| format!("round {round}: {fault}")));
        }
        faults
    });
}

/// A stream under another format's name, as a wrong setting makes it: an error at most, and the rules hold all the same.
#[test]
fn a_stream_under_another_formats_name_breaks_no_rule() {
    let Some(cases) = cases() else { return };
    each(&cases, |case| {
        // Most of a long stream is more of the same.
        let bytes = &case.bytes[..case.bytes.len().min(32 << 10)];
        let mut faults = Vec::new();
        for provider in providers().filter(|provider| *provider != case.provider) {
            let mut normalizer = Normalizer::new(provider, Options::default()).expect("a known provider");
            let _ = normalizer.feed(bytes).and_then(|()| normalizer.finish());
            let payloads: Vec<Payload> = normalizer.drain().collect();
            faults.extend(common::rule_faults(&payloads).into_iter().map(|fault| format!("as {provider}: {fault}")));
        }
        faults
    });
}

/// AWS messages: each begins with its length.
fn split_messages(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut messages = Vec::new();
    while let Some(length) = bytes.first_chunk() {
        let (message, rest) = bytes.split_at(u32::from_be_bytes(*length).try_into().expect("small"));
        messages.push(message);
        bytes = rest;
    }
    messages
}

fn split_after_blank_lines(bytes: &[u8]) -> Vec<&[u8]> {
    let mut frames = Vec::new();
    let mut start = 0;
    for at in 1..bytes.len() {
        if bytes[at] == b'\n' && (bytes[at - 1] == b'\n' || bytes[..at].ends_with(b"\n\r")) {
            frames.push(&bytes[start..=at]);
            start = at + 1;
        }
    }
    frames.push(&bytes[start..]);
    frames
}

/// What a recording's events hold, in the order of the page's columns.
const FEATURES: [&str; 10] =
    ["text", "reasoning", "calls", "server tools", "results", "sources", "files", "usage", "errors", "several answers"];

fn features(case: &Case) -> [bool; FEATURES.len()] {
    let mut has = [false; FEATURES.len()];
    for payload in events(case, usize::MAX) {
        match payload {
            Payload::TextDelta(_) => has[0] = true,
            Payload::ReasoningDelta(_) => has[1] = true,
            Payload::ToolCall(call) if call.kind == Kind::Client => has[2] = true,
            Payload::ToolCall(_) => has[3] = true,
            Payload::ToolResult(_) => has[4] = true,
            Payload::Citation(_) => has[5] = true,
            Payload::File(_) => has[6] = true,
            Payload::Usage(_) => has[7] = true,
            Payload::Error(error) => has[8] |= !READER_ERRORS.contains(&error.code.as_str()),
            Payload::MessageStart(start) => has[9] |= start.choice.is_some_and(|choice| choice > 0),
            _ => {}
        }
    }
    has
}

/// The page that says what is read and how well, from this very run. `TURNSTREAM_WRITE=docs` writes it anew.
#[test]
fn the_page_of_providers_is_up_to_date() {
    let Some(cases) = cases() else { return };
    let mut page = String::from(PAGE_START);
    let _ = writeln!(page, "| provider | recordings | agree | judged differently | {} |", FEATURES.join(" | "));
    let _ = writeln!(page, "|---|{}", "--:|".repeat(3 + FEATURES.len()));
    let mut sum = [0; 3 + FEATURES.len()];
    for provider in providers() {
        let mut row = [0; 3 + FEATURES.len()];
        for case in cases.iter().filter(|case| case.provider == provider) {
            let faults = oracle_faults(case);
            row[0] += 1;
            row[1] += usize::from(faults.is_empty());
            let differently = faults.iter().filter(|fault| judged(case, fault).is_some()).count();
            row[2] += usize::from(differently > 0 && differently == faults.len());
            for (cell, has) in row[3..].iter_mut().zip(features(case)) {
                *cell += usize::from(has);
            }
        }
        sum.iter_mut().zip(row).for_each(|(sum, cell)| *sum += cell);
        let _ = writeln!(page, "| `{provider}` | {} |", cells(&row));
    }
    let _ = writeln!(page, "| all | {} |", cells(&sum));
    page.push_str(PAGE_REASONS);
    for (name, member, reason) in JUDGED_DIFFERENTLY {
        let provider = cases.iter().find(|case| case.name == *name).map_or("", |case| case.provider);
        let _ = writeln!(page, "| `{provider}` | {} | {reason} |", member.replace('_', " "));
    }
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/providers.md");
    if std::env::var_os("TURNSTREAM_WRITE").is_some_and(|what| what == "docs") {
        std::fs::write(&path, &page).expect("writable");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == page,
        "docs/providers.md is out of date: TURNSTREAM_WRITE=docs cargo test -p turnstream-core --test corpus page"
    );
}

fn cells(row: &[usize]) -> String {
    row.iter().map(|cell| if *cell == 0 { "·".to_owned() } else { cell.to_string() }).collect::<Vec<_>>().join(" | ")
}

const PAGE_START: &str = "\
# Providers

What `provider=` takes, beside `auto`, which finds out by the first frames. A page made by a test from the recordings: it is
never older than the code.

Each recording is a stream as a model server sent it. Its oracle is what the server's official SDK made of it, or a plain
merge where there is none. A recording agrees when text, reasoning, refusal, tool calls, the raw finish reason, the raw usage,
the provider's error and all answers that came at once are the oracle's, and when its events are equal for the whole and for
pieces of 1, 7 and 4096 bytes. The last columns count the recordings that hold a feature. A provider without recordings
(`·`) is tested by its format's documentation alone; recordings without an oracle count as agreeing when they keep the rules of
the vocabulary.

`openai-chat` and `openai-responses` read their dialects too: Azure, Groq, DeepSeek, OpenRouter, Mistral, Perplexity, xAI,
Moonshot, Cerebras, Snowflake, vLLM, llama.cpp, LM Studio's and Ollama's `/v1`, and the older text completions. `generate` reads
what small servers stream in formats of their own: TGI's `/generate_stream`, llama.cpp's `/completion` and Workers AI.
`conversations` reads Mistral's `/v1/conversations`; `gemini` the Live API's messages too; `realtime` translations and live
sessions too; `transcription` OpenAI's and Mistral's.

## By recording

";
const PAGE_REASONS: &str = "
## Judged differently

Where the oracle cannot see, or mixes up, what the provider said.

| provider | member | why |
|---|---|---|
";
