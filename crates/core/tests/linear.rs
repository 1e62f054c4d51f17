//! Cost is linear in whatever a session has many of: ten times as many events cost about ten times as much, to log, to fold and to
//! tell in every format. What is not linear costs a hundred times as much.

mod common;

use std::sync::Arc;
use std::time::Duration;

use turnstream_core::encode::{Format, FrameStream, StreamOptions};
use turnstream_core::event::Payload;
use turnstream_core::reader::{Follow, Poll, ReadOptions};
use turnstream_core::session::{Ending, Limits, Session, TurnOptions};

const FEW: usize = 500;
const MANY: usize = 10 * FEW;

/// Room for what else a tenfold work costs: misses of the processor's caches above all.
const AT_MOST: u32 = 30;

/// A kind of work: what it has many of, and one of them, as `type {fields}`, a line each; `#` is its number.
const WORKS: &[(&str, &str)] = &[
    ("deltas of a message", r#"text_delta {"message_id":"m","text":"word "}"#),
    ("deltas of reasoning", r#"reasoning_delta {"message_id":"m","text":"word "}"#),
    ("deltas of a refusal", r#"refusal_delta {"message_id":"m","text":"word "}"#),
    ("deltas of arguments", r#"tool_call_delta {"call_id":"c","text":"word "}"#),
    ("deltas of an output", r#"tool_output_delta {"call_id":"c","text":"word "}"#),
    (
        "parts of a message",
        "text_delta {\"message_id\":\"m\",\"text\":\"word \"}\nreasoning_delta {\"message_id\":\"m\",\"text\":\"word \",\"part\":#}",
    ),
    ("messages", r#"assistant_message {"message_id":"m#","text":"word"}"#),
    ("messages without an id", "text_delta {\"text\":\"word\"}\nassistant_message {\"text\":\"word\"}"),
    ("messages that stay open", r#"text_delta {"message_id":"m#","text":"word"}"#),
    ("choices", r#"message_start {"message_id":"m#","choice":#}"#),
    (
        "messages that are withdrawn",
        "text_delta {\"message_id\":\"m#\",\"text\":\"word\"}\nmessage_reset {\"message_id\":\"m#\"}",
    ),
    ("resets of a message", "text_delta {\"message_id\":\"m\",\"text\":\"word\"}\nmessage_reset {\"message_id\":\"m\"}"),
    ("calls", r##"tool_call {"call_id":"c#","name":"f","arguments":{"a":"#"}}"##),
    ("calls of a message", r#"tool_call {"call_id":"c#","name":"f","arguments":{},"message_id":"m"}"#),
    ("calls without an id", r#"tool_call {"name":"f","arguments":{}}"#),
    ("calls that stay open", r#"tool_call_delta {"call_id":"c#","text":"{"}"#),
    (
        "calls with results",
        "tool_call {\"call_id\":\"c#\",\"name\":\"f\",\"arguments\":{}}\ntool_result {\"call_id\":\"c#\",\"output\":\"o\"}",
    ),
    ("results without a call", r#"tool_result {"call_id":"c#","output":"o"}"#),
    (
        "rounds",
        "round_start {}\nassistant_message {\"message_id\":\"m#\",\"text\":\"word\",\"tool_calls\":[{\"call_id\":\"c#\",\"name\":\"f\"}]}\n\
         tool_call {\"call_id\":\"c#\",\"name\":\"f\",\"arguments\":{},\"message_id\":\"m#\"}\nround_end {}\n\
         tool_result {\"call_id\":\"c#\",\"output\":\"o\"}",
    ),
    (
        "stages",
        "stage_start {\"stage\":\"s#\"}\nprogress {\"stage\":\"s#\",\"current\":1}\nstage_end {\"stage\":\"s#\",\"status\":\"completed\"}",
    ),
    ("stages that stay open", r#"stage_start {"stage":"s#"}"#),
    ("citations", r#"citation {"message_id":"m","url":"https://example.org/#"}"#),
    ("events of a user's own", r#"custom {"name":"tick","data":#}"#),
    ("counts of usage", r#"usage {"input_tokens":1,"output_tokens":2}"#),
    (
        "turns",
        "turn\nassistant_message {\"message_id\":\"m#\",\"text\":\"word\"}\ntool_call {\"call_id\":\"c\",\"name\":\"f\",\"arguments\":{}}",
    ),
    ("turns that say nothing", "turn"),
];

/// Rounds whose calls all have one id.
const SAME_ID: &str = r#"round_start {}
tool_call {"call_id":"c","name":"f","arguments":{}}
round_end {}
tool_result {"call_id":"c"}"#;

fn session() -> Arc<Session> {
    Session::new("s", Limits { max_state_bytes: 1 << 30, max_bytes: 1 << 30, ..Limits::default() })
}

/// What it costs to log `count` of a work, to tell it in each format, and to say the state.
fn costs(line: &str, count: usize) -> Vec<(String, Duration)> {
    let events = |number: usize| -> Vec<Option<Payload>> {
        let read = |event: &str| {
            let (kind, fields) = event.split_once(' ')?;
            Some(Payload::from_json(kind, &fields.replace('#', &number.to_string())).expect("a payload").0)
        };
        line.lines().map(read).collect()
    };
    let events: Vec<_> = (0..count).flat_map(events).collect();
    let mut costs = Vec::new();
    let mut measure = |what: &str, work: &mut dyn FnMut()| {
        let started = common::cpu_time();
        work();
        costs.push((what.to_owned(), common::cpu_time().saturating_sub(started)));
    };
    let session = session();
    let turns = events.iter().any(Option::is_none);
    measure("log", &mut || {
        let mut turn = (!turns).then(|| session.start_turn(TurnOptions::default()).expect("started").turn);
        for event in &events {
            let Some(event) = event else {
                if let Some(turn) = turn {
                    session.end_turn(turn, Ending::default());
                }
                turn = Some(session.start_turn(TurnOptions::default()).expect("started").turn);
                continue;
            };
            session.emit(turn, event.clone(), None).expect("taken");
        }
        session.end_turn(turn.expect("a turn"), Ending::default());
    });
    measure("state", &mut || drop(session.head_snapshot()));
    for (name, format) in Format::ALL {
        measure(name, &mut || {
            let follow = if turns { Follow::None } else { Follow::Turn };
            let read = ReadOptions { follow, ..ReadOptions::default() };
            let options = StreamOptions { heartbeat_s: 0.0, max_bytes: 65_536, limit: None, retry_ms: None };
            let mut stream = FrameStream::open(&session, &read, options, format.encoder()).expect("opened");
            let mut out = Vec::new();
            while stream.poll(&mut out) == Poll::Ready {
                out.clear();
            }
        });
    }
    costs
}

fn check(works: &[(&str, &str)], at_most: u32) {
    let mut faults = Vec::new();
    for (work, line) in works {
        let (mut few, mut many) = (costs(line, FEW), costs(line, MANY));
        // Whatever else the machine does only adds: the least of some tries.
        for _ in 0..4 {
            if few.iter().zip(&many).all(|(few, many)| many.1 <= few.1 * at_most) {
                break;
            }
            for (costs, count) in [(&mut few, FEW), (&mut many, MANY)] {
                self::costs(line, count).into_iter().zip(costs.iter_mut()).for_each(|(new, old)| old.1 = old.1.min(new.1));
            }
        }
        let wrong = few.iter().zip(&many).filter(|(few, many)| many.1 > few.1 * at_most);
        faults.extend(wrong.map(|(few, many)| format!("{work}, {}: {FEW} {:?}, {MANY} {:?}", few.0, few.1, many.1)));
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn ten_times_as_many_of_anything_cost_ten_times_as_much() {
    check(WORKS, AT_MOST);
}

/// A call is looked for among those of its id: 8,000 rounds that all say `call_0` cost 20 µs each to log, and 60 to tell as responses.
#[test]
fn rounds_whose_calls_have_one_id_cost_no_more_than_a_search_among_them() {
    check(&[("rounds", SAME_ID)], 10 * 10 * 2);
}
