//! Sessions from outside: what is emitted, what the log makes of it, what readers get.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::task::{Wake, Waker};

use proptest::prelude::*;
use turnstream_core::encode::{Format, FrameStream, StreamOptions};
use turnstream_core::event::{Class, Event, Json, Payload};
use turnstream_core::provider::{Normalizer, Options};
use turnstream_core::reader::{Cursor, Follow, Poll, ReadError, ReadOptions, Reader, Status};
use turnstream_core::session::redact::{Redact, Redacted};
use turnstream_core::session::{Ending, Hub, Limits, Session, SessionError, State, Ticket, TurnOptions};

fn session() -> Arc<Session> {
    Session::new("s", Limits::default())
}

fn small(max_events: usize) -> Arc<Session> {
    Session::new("s", Limits { max_events, ..Limits::default() })
}

fn payload(kind: &str, json: &str) -> Payload {
    Payload::from_json(kind, json).expect("a payload").0
}

fn emit(session: &Session, kind: &str, json: &str) -> u64 {
    session.emit(None, payload(kind, json), None).expect("taken")
}

fn start(session: &Session) -> u32 {
    session.start_turn(TurnOptions::default()).expect("started").turn
}

fn end(session: &Session, turn: u32) {
    assert!(session.end_turn(turn, Ending::default()));
}

/// Everything a reader hands out until it has to wait or ends.
fn drain(reader: &mut Reader) -> (Vec<Event>, Poll) {
    let (mut items, mut events) = (Vec::new(), Vec::new());
    loop {
        let poll = reader.poll(7, &mut items);
        events.extend(items.drain(..).map(|item| item.event().clone()));
        if poll != Poll::Ready {
            return (events, poll);
        }
    }
}

fn read(session: &Arc<Session>, options: &ReadOptions) -> Vec<Event> {
    let mut reader = Reader::open(session, options).expect("opened");
    drain(&mut reader).0
}

fn all(session: &Arc<Session>) -> Vec<Event> {
    read(session, &ReadOptions { follow: Follow::None, ..ReadOptions::default() })
}

fn kinds(events: &[Event]) -> Vec<&'static str> {
    events.iter().map(|event| event.payload.kind()).collect()
}

fn after(session: &Session, seq: u64) -> ReadOptions {
    ReadOptions { after: Some(Cursor::new(session.epoch(), seq)), ..ReadOptions::default() }
}

// --- a hub: what its sessions keep together ------------------------------------------------------------------------

/// A session whose one turn has said `events` things of about 1 KB.
fn said(hub: &Hub, id: &str, events: usize, ended: bool) -> Arc<Session> {
    let session = hub.session(Some(id)).unwrap();
    let turn = start(&session);
    for _ in 0..events {
        emit(&session, "custom", &format!(r#"{{"name":"part","data":"{}"}}"#, "x".repeat(1000)));
    }
    if ended {
        end(&session, turn);
    }
    session
}

#[test]
fn edge_63_room_is_made_of_finished_sessions_the_longest_still_first_and_never_of_running_or_read_ones() {
    let hub = Hub::new(Limits { hub_max_events: 100, ..Limits::default() });
    let running = said(&hub, "running", 30, false);
    let read = said(&hub, "read", 20, true);
    let reader = Reader::open(&read, &after(&read, 0)).unwrap();
    let old = said(&hub, "old", 20, true);
    std::thread::sleep(std::time::Duration::from_millis(3)); // their age is what tells them apart
    said(&hub, "young", 20, true);
    assert_eq!(hub.statistics().events, 31 + 22 + 22 + 22);
    emit(&running, "custom", r#"{"name":"a"}"#);
    emit(&running, "custom", r#"{"name":"b"}"#);
    emit(&running, "custom", r#"{"name":"c"}"#);
    assert!(hub.find("old").is_ok(), "exactly at the limit nothing leaves");
    emit(&running, "custom", r#"{"name":"one past"}"#);
    assert_eq!(hub.find("old").unwrap_err(), SessionError::Unknown);
    assert!(hub.find("young").is_ok() && hub.find("read").is_ok());
    assert_eq!((hub.statistics().events, hub.statistics().forgotten), (35 + 22 + 22, 1));
    emit(&old, "custom", r#"{"name":"whoever holds it still can use it, and it weighs nothing"}"#);
    assert_eq!(hub.statistics().events, 35 + 22 + 22);
    // What is in use is not let go, however much it is.
    for _ in 0..100 {
        emit(&running, "custom", r#"{"name":"more"}"#);
    }
    assert!(hub.find("young").is_err() && hub.find("read").is_ok());
    assert_eq!(kinds(&all(&running)).len(), 135);
    drop(reader);
    assert_eq!(all(&read).len(), 22);
    assert!(hub.delete("running") && hub.delete("read"));
    assert_eq!((hub.statistics().events, hub.statistics().bytes), (0, 0));
}

#[test]
fn a_hubs_bytes_are_bounded_and_the_deltas_of_finished_messages_leave_first() {
    let hub = Hub::new(Limits { hub_max_bytes: 200_000, ..Limits::default() });
    let session = hub.session(Some("wordy")).unwrap();
    let turn = start(&session);
    for _ in 0..500 {
        emit(&session, "text_delta", &format!(r#"{{"message_id":"m","text":"{}"}}"#, "x".repeat(100)));
    }
    end(&session, turn);
    let before = hub.statistics();
    said(&hub, "other", 40, false);
    assert!(before.bytes > 100_000 && hub.statistics().bytes <= 200_000, "{:?}", hub.statistics());
    let kept = kinds(&read(&hub.find("wordy").unwrap(), &ReadOptions::default()));
    assert_eq!(kept, ["turn_start", "message_start", "gap", "assistant_message", "completion"]);
    assert_eq!(hub.statistics().forgotten, 0);
}

#[test]
fn a_full_hub_forgets_who_is_idle_and_refuses_where_all_are_in_use() {
    let hub = Hub::new(Limits { max_sessions: 2, ..Limits::default() });
    let running = said(&hub, "running", 1, false);
    said(&hub, "finished", 1, true);
    hub.session(Some("fresh")).expect("the finished one makes room");
    assert!(hub.find("finished").is_err());
    assert_eq!(hub.session(Some("one more")).unwrap_err(), SessionError::Full(2), "a fresh one is about to be used");
    assert!(hub.session(Some("running")).is_ok_and(|known| Arc::ptr_eq(&known, &running)));
    assert!(hub.delete("fresh"));
    assert!(hub.session(None).is_ok());
}

#[test]
fn edge_47_a_message_is_cut_at_its_limit_and_so_is_its_whole() {
    let session = Session::new("s", Limits { max_message_bytes: 10, ..Limits::default() });
    let turn = start(&session);
    for text in ["12345", "67890", "x", "y"] {
        emit(&session, "text_delta", &format!(r#"{{"message_id":"at","text":"{text}"}}"#));
    }
    emit(&session, "assistant_message", r#"{"message_id":"at","text":"1234567890xy"}"#);
    emit(&session, "assistant_message", r#"{"message_id":"fits","text":"1234567890","reasoning":"abc"}"#);
    emit(&session, "assistant_message", r#"{"message_id":"umlaut","text":"123456789\u00fcx"}"#);
    end(&session, turn);
    let events = all(&session);
    let texts: Vec<_> = events
        .iter()
        .filter_map(|event| match &event.payload {
            Payload::AssistantMessage(whole) => Some(whole.text.to_string()),
            _ => None,
        })
        .collect();
    assert_eq!(texts, ["1234567890", "1234567890", "123456789"], "whole characters");
    let warnings = events.iter().filter(|event| matches!(&event.payload, Payload::Warning(w) if w.code == "message_truncated"));
    assert_eq!((warnings.count(), session.statistics().capped), (2, 2), "once per message");
    assert!(!kinds(&events).contains(&"message_reset"));
    let head = session.position().head;
    assert!(session.look(State::messages_json).as_str().len() < 1000);
    assert_eq!(session.position().head, head, "looking takes no seq");
}

struct Hook;

impl Redact for Hook {
    fn redact(&self, payload: Payload, extra: Option<Json>) -> Redacted {
        match payload {
            Payload::TextDelta(_) => Redacted::Withheld,
            Payload::Custom(_) => Redacted::Failed,
            Payload::AssistantMessage(mut whole) => {
                whole.text = whole.text.replace("secret", "[removed]").as_str().into();
                Redacted::Kept((*whole).into(), extra)
            }
            Payload::TurnStart(mut start) => {
                start.input = None;
                Redacted::Kept((*start).into(), extra)
            }
            other => Redacted::Kept(other, extra),
        }
    }
}

#[test]
fn what_is_redacted_is_never_stored_and_a_failing_hook_leaves_a_placeholder() {
    let hub = Hub::with_redaction(Limits::default(), Some(Arc::new(Hook)));
    let session = hub.session(None).unwrap();
    let options = TurnOptions { input: Some(Json::string("my secret")), ..TurnOptions::default() };
    let turn = session.start_turn(options).unwrap().turn;
    emit(&session, "text_delta", r#"{"message_id":"m","text":"my sec"}"#);
    emit(&session, "assistant_message", r#"{"message_id":"m","text":"my secret"}"#);
    emit(&session, "custom", r#"{"name":"secret","data":"secret"}"#);
    let mut many = ["secret", "secret"].map(|text| payload("custom", &format!(r#"{{"name":"{text}"}}"#))).to_vec();
    session.emit_all(turn, &mut many).unwrap();
    session.end_turn(turn, Ending { fallback: Some("the secret".into()), ..Ending::default() });
    let log: String = all(&session).iter().map(Event::to_json).collect();
    assert!(!log.contains("secret"), "{log}");
    assert!(log.contains("my [removed]") && log.matches("redaction_failed").count() == 3);
    assert_eq!(session.statistics().redaction_failures, 3);
    assert!(!session.look(State::snapshot_json).as_str().contains("secret"));
}

#[test]
fn edge_57_a_stall_is_said_once_and_its_warning_is_no_progress() {
    let hub = Hub::new(Limits::default());
    let session = hub.session(None).unwrap();
    assert!(!session.check_stall(0), "no turn runs");
    let turn = start(&session);
    assert!(!session.check_stall(60_000));
    assert_eq!(hub.check_stalls(0).len(), 1);
    assert!(hub.check_stalls(0).is_empty() && !session.check_stall(0), "once per stall");
    let tick = std::time::Duration::from_millis(2); // ages are counted in milliseconds
    std::thread::sleep(tick * 50);
    assert!(session.progress_age().unwrap() >= tick * 49);
    let before = std::time::Instant::now();
    emit(&session, "custom", r#"{"name":"goes on"}"#);
    assert!(session.progress_age().unwrap() <= before.elapsed() + tick);
    assert!(session.check_stall(0), "a new one");
    end(&session, turn);
    assert!(session.progress_age().is_none() && !session.check_stall(0));
    let said = kinds(&all(&session));
    assert_eq!(said, ["turn_start", "warning", "custom", "warning", "completion"]);
}

#[test]
fn progress_says_what_has_passed_and_reckons_what_is_left() {
    let session = session();
    let turn = start(&session);
    emit(&session, "stage_start", r#"{"stage":"plan","agent":"planner","index":1,"total":3}"#);
    std::thread::sleep(std::time::Duration::from_millis(30));
    emit(&session, "progress", r#"{"stage":"plan","current":1,"total":4}"#);
    let stage = session.status_json().to_value()["progress"]["plan"].clone();
    assert_eq!((&stage["agent"], &stage["index"], &stage["stages"]), (&"planner".into(), &1.into(), &3.into()));
    let (elapsed, left) = (stage["elapsed_s"].as_f64().unwrap(), stage["estimate_s"].as_f64().unwrap());
    assert!(elapsed >= 0.03 && (left - 3.0 * elapsed).abs() < 1e-9, "{stage}");
    emit(&session, "progress", r#"{"stage":"plan","current":2,"total":4,"elapsed_s":7,"estimate_s":9}"#);
    let stage = session.status_json().to_value()["progress"]["plan"].clone();
    assert_eq!((stage["elapsed_s"].as_f64(), stage["estimate_s"].as_f64()), (Some(7.0), Some(9.0)), "what it says itself");
    end(&session, turn);
    let stage = session.status_json().to_value()["progress"]["plan"].clone();
    assert_eq!((&stage["open"], &stage["status"]), (&false.into(), &"completed".into()));
}

// --- messages and calls: what the log makes of what is said twice, too late or in part ------------------------------

#[test]
fn edge_01_a_whole_text_without_deltas_is_said_as_one_delta_first() {
    let session = session();
    let turn = start(&session);
    emit(&session, "assistant_message", r#"{"message_id":"m","text":"Hello"}"#);
    end(&session, turn);
    assert_eq!(kinds(&all(&session)), ["turn_start", "message_start", "text_delta", "assistant_message", "completion"]);
}

#[test]
fn edge_02_the_suffix_that_the_deltas_left_out_is_said_before_the_whole() {
    let session = session();
    let turn = start(&session);
    emit(&session, "text_delta", r#"{"message_id":"m","text":"Hel"}"#);
    emit(&session, "assistant_message", r#"{"message_id":"m","text":"Hello","origin":"transcript"}"#);
    end(&session, turn);
    let events = all(&session);
    let text: String = events
        .iter()
        .filter_map(|event| if let Payload::TextDelta(delta) = &event.payload { Some(&*delta.text) } else { None })
        .collect();
    assert_eq!(text, "Hello");
    let Some(Payload::AssistantMessage(whole)) =
        events.iter().map(|event| &event.payload).find(|it| it.kind() == "assistant_message")
    else {
        panic!()
    };
    assert_eq!((&*whole.text, whole.streamed, whole.origin.as_str()), ("Hello", true, "transcript"));
}

#[test]
fn edge_03_a_whole_that_contradicts_withdraws_what_was_shown() {
    let session = session();
    let turn = start(&session);
    emit(&session, "text_delta", r#"{"message_id":"m","text":"Hallo"}"#);
    emit(&session, "assistant_message", r#"{"message_id":"m","text":"Hello"}"#);
    end(&session, turn);
    let events = all(&session);
    assert_eq!(
        kinds(&events),
        ["turn_start", "message_start", "text_delta", "message_reset", "text_delta", "assistant_message", "completion"]
    );
    assert!(session.look(|state| state.answer() == "Hello"));
}

#[test]
fn edge_04_the_runs_result_is_the_message_where_no_other_spoke() {
    let session = session();
    let turn = start(&session);
    session.end_turn(turn, Ending { fallback: Some("Done.".into()), ..Ending::default() });
    let events = all(&session);
    assert_eq!(kinds(&events), ["turn_start", "message_start", "text_delta", "assistant_message", "completion"]);
    let Payload::AssistantMessage(whole) = &events[3].payload else { panic!() };
    assert_eq!(whole.origin.as_str(), "fallback");
    for nothing in [None, Some("  ")] {
        let turn = start(&session);
        session.end_turn(turn, Ending { fallback: nothing.map(Into::into), ..Ending::default() });
    }
    assert_eq!(kinds(&all(&session)[5..]), ["turn_start", "completion", "turn_start", "completion"]);
}

#[test]
fn edge_05_two_copies_of_a_message_are_one_in_either_order_and_their_calls_are_merged() {
    let provider = r#"{"message_id":"m","text":"Hi","tool_calls":[{"call_id":"a","name":"f"}]}"#;
    let transcript = r#"{"message_id":"m","text":"Hi","origin":"transcript","tool_calls":[{"call_id":"b","name":"g"}]}"#;
    for (first, second) in [(provider, transcript), (transcript, provider)] {
        let session = session();
        let turn = start(&session);
        emit(&session, "text_delta", r#"{"message_id":"m","text":"Hi"}"#);
        emit(&session, "assistant_message", first);
        emit(&session, "text_delta", r#"{"message_id":"m","text":"Hi"}"#);
        emit(&session, "assistant_message", second);
        end(&session, turn);
        let events = all(&session);
        assert_eq!(kinds(&events).iter().filter(|kind| **kind == "assistant_message").count(), 1);
        let calls = session.look(|state| state.messages[0].calls.iter().map(|call| call.call_id.to_string()).collect::<Vec<_>>());
        let mut calls = calls;
        calls.sort();
        assert_eq!(calls, ["a", "b"]);
        assert_eq!(session.statistics().late, 1);
    }
}

#[test]
fn edge_06_two_messages_stay_two() {
    let session = session();
    let turn = start(&session);
    emit(&session, "assistant_message", r#"{"message_id":"m1","text":"One"}"#);
    emit(&session, "assistant_message", r#"{"message_id":"m2","text":"Two"}"#);
    end(&session, turn);
    assert_eq!(kinds(&all(&session)).iter().filter(|kind| **kind == "assistant_message").count(), 2);
}

/// Servers of open models give each response one id, or one of a thousand.
#[test]
fn an_id_that_comes_again_in_a_later_round_or_turn_is_another_message() {
    let session = session();
    let said = |text: &str| {
        emit(&session, "round_start", "{}");
        emit(&session, "text_delta", &format!(r#"{{"message_id":"m","text":"{text}"}}"#));
        emit(&session, "text_delta", r#"{"message_id":"m","text":"!"}"#);
        emit(&session, "tool_call", &format!(r#"{{"call_id":"c-{text}","name":"f","message_id":"m"}}"#));
        emit(&session, "assistant_message", r#"{"message_id":"m"}"#);
        emit(&session, "text_delta", r#"{"message_id":"m","text":"late"}"#);
        emit(&session, "message_reset", r#"{"message_id":"m"}"#);
        emit(&session, "round_end", "{}");
    };
    for _ in 0..2 {
        let turn = start(&session);
        said("Hi");
        said("Ho");
        end(&session, turn);
    }
    let turn = start(&session);
    emit(&session, "assistant_message", r#"{"message_id":"m","text":"Hi!","origin":"transcript"}"#);
    emit(&session, "assistant_message", r#"{"message_id":"m","text":"Hi!"}"#);
    emit(&session, "assistant_message", r#"{"message_id":"m","text":"Another"}"#);
    end(&session, turn);
    let told = session.look(|state| {
        let said = state.messages.iter().filter(|message| message.role != "user");
        said.map(|message| (message.id.to_string(), message.text.clone(), message.calls.len())).collect::<Vec<_>>()
    });
    let told: Vec<_> = told.iter().map(|(id, text, calls)| (id.as_str(), text.as_str(), *calls)).collect();
    let expected = [("m", "Hi!", 1), ("m#2", "Ho!", 1), ("m#3", "Hi!", 1), ("m#4", "Ho!", 1), ("m#5", "Another", 0)];
    assert_eq!(told, expected);
    assert_eq!((session.statistics().late, session.statistics().duplicates), (8, 2));
}

#[test]
fn a_transcripts_copy_without_an_id_is_known_by_its_text() {
    let session = session();
    let turn = start(&session);
    emit(&session, "assistant_message", r#"{"message_id":"m1","text":"One"}"#);
    emit(&session, "assistant_message", r#"{"text":"One","origin":"transcript"}"#);
    end(&session, turn);
    assert_eq!(kinds(&all(&session)).iter().filter(|kind| **kind == "assistant_message").count(), 1);
}

#[test]
fn edge_16_a_call_is_started_once_closed_once_and_answered_once() {
    let session = session();
    let turn = start(&session);
    emit(&session, "tool_call", r#"{"call_id":"c","name":"f","arguments":{"a":1}}"#);
    emit(&session, "tool_call", r#"{"call_id":"c","name":"f","arguments":{"a":1}}"#);
    emit(&session, "tool_call_start", r#"{"call_id":"c","name":"f"}"#);
    emit(&session, "tool_call_delta", r#"{"call_id":"c","text":"late"}"#);
    emit(&session, "tool_result", r#"{"call_id":"c","output":1}"#);
    emit(&session, "tool_result", r#"{"call_id":"c","output":2}"#);
    end(&session, turn);
    let events = all(&session);
    assert_eq!(kinds(&events), ["turn_start", "tool_call_start", "tool_call", "tool_result", "completion"]);
    let Payload::ToolCall(call) = &events[2].payload else { panic!() };
    assert_eq!(&*call.arguments_raw, r#"{"a":1}"#);
}

#[test]
fn call_ids_may_come_again_in_another_round() {
    let session = session();
    let turn = start(&session);
    for round in 0..2 {
        emit(&session, "round_start", "{}");
        emit(&session, "tool_call", &format!(r#"{{"call_id":"call_0","name":"f","arguments":{round}}}"#));
        emit(&session, "round_end", "{}");
        emit(&session, "tool_result", r#"{"call_id":"call_0"}"#);
    }
    end(&session, turn);
    let count = |kind: &str| kinds(&all(&session)).iter().filter(|it| **it == kind).count();
    assert_eq!((count("tool_call"), count("tool_result"), count("round_start"), count("round_end")), (2, 2, 2, 2));
}

#[test]
fn a_result_that_comes_again_in_another_round_makes_no_second_call() {
    let session = session();
    let turn = start(&session);
    emit(&session, "round_start", "{}");
    emit(&session, "tool_result", r#"{"call_id":"nobody's","output":1,"name":"look"}"#);
    emit(&session, "tool_call", r#"{"call_id":"c","name":"f"}"#);
    emit(&session, "tool_result", r#"{"call_id":"c","output":1}"#);
    emit(&session, "round_end", "{}");
    emit(&session, "round_start", "{}");
    emit(&session, "tool_result", r#"{"call_id":"nobody's","output":1}"#);
    emit(&session, "tool_result", r#"{"call_id":"c","output":1}"#);
    end(&session, turn);
    let events = all(&session);
    let count = |kind: &str| kinds(&events).iter().filter(|it| **it == kind).count();
    assert_eq!((count("tool_call_start"), count("tool_call"), count("tool_result")), (2, 2, 2));
    assert_eq!(session.look(|state| state.calls.len()), 2);
    assert_eq!(session.statistics().duplicates, 2);
    let Payload::ToolCall(made) = &events[3].payload else { panic!("a result follows its call: {:?}", kinds(&events)) };
    assert_eq!((&*made.call_id, &*made.name), ("nobody's", "look"));
}

#[test]
fn results_of_calls_that_share_an_id_find_their_own() {
    let session = session();
    let turn = start(&session);
    for text in ["one", "two"] {
        emit(&session, "round_start", "{}");
        emit(&session, "tool_call", &format!(r#"{{"call_id":"c","name":"{text}","message_id":"m"}}"#));
        emit(&session, "round_end", "{}");
    }
    emit(&session, "tool_call_start", r#"{"call_id":"late","name":"f"}"#);
    session.cancel("enough");
    session.look(|state| {
        let calls: Vec<_> = state.calls.iter().map(|call| (&*call.name, call.done, call.status.as_deref())).collect();
        let cancelled = Some("cancelled");
        assert_eq!(calls, [("one", true, cancelled), ("two", true, cancelled), ("f", true, cancelled)]);
        assert_eq!(state.messages_json().to_value(), serde_json::json!([]));
    });
    assert!(session.running().is_none() && turn == 1);
}

#[test]
fn a_whole_call_without_arguments_has_those_of_its_pieces() {
    let session = session();
    let turn = start(&session);
    for (id, pieces, whole) in [
        ("unsaid", r#"{\"a\":1}"#, ""),
        ("parsed", r#"{ \"a\": 1 }"#, r#","arguments":{"a":1}"#),
        ("rewritten", r#"{ \"a\": 1 }"#, r#","arguments_raw":"{\"a\":1}""#),
        ("other", r#"{\"a\":2}"#, r#","arguments_raw":"{\"a\":1}""#),
        ("cut", r#"{\"a\""#, ""),
    ] {
        emit(&session, "tool_call_delta", &format!(r#"{{"call_id":"{id}","text":"{pieces}"}}"#));
        emit(&session, "tool_call", &format!(r#"{{"call_id":"{id}","name":"f"{whole}}}"#));
    }
    end(&session, turn);
    session.look(|state| {
        let calls: Vec<_> =
            state.calls.iter().map(|call| (&*call.arguments_raw, call.arguments.as_ref().map(Json::as_str))).collect();
        assert_eq!(
            calls,
            [
                (r#"{"a":1}"#, Some(r#"{"a":1}"#)),
                (r#"{ "a": 1 }"#, Some(r#"{"a":1}"#)),
                (r#"{ "a": 1 }"#, Some(r#"{ "a": 1 }"#)),
                (r#"{"a":1}"#, Some(r#"{"a":1}"#)),
                (r#"{"a""#, None),
            ]
        );
    });
}

#[test]
fn edge_10_arguments_that_are_not_json_are_kept_and_flagged() {
    let session = session();
    let turn = start(&session);
    emit(&session, "tool_call", r#"{"call_id":"c","name":"f","arguments_raw":"{\"a\":"}"#);
    end(&session, turn);
    let events = all(&session);
    let Payload::ToolCall(call) = &events[2].payload else { panic!() };
    assert!(call.arguments.is_none() && call.arguments_error.is_some());
    assert_eq!(&*call.arguments_raw, "{\"a\":");
}

// --- the turn's life --------------------------------------------------------------------------------------------------

#[test]
fn edge_13_an_error_beats_a_finish_whichever_comes_first() {
    for order in [["error", "assistant_message"], ["assistant_message", "error"]] {
        let session = session();
        let turn = start(&session);
        emit(&session, "round_start", "{}");
        for kind in order {
            let json = if kind == "error" {
                r#"{"code":"x","message":"no","fatal":true}"#
            } else {
                r#"{"text":"Hi","finish_reason":"stop"}"#
            };
            emit(&session, kind, json);
        }
        emit(&session, "round_end", "{\"finish_reason\":\"error\"}");
        end(&session, turn);
        assert_eq!(session.state_word(), "failed");
        assert_eq!(session.result().unwrap().to_value()["error"]["code"], "x");
    }
}

#[test]
fn a_later_model_call_makes_an_error_good() {
    let session = session();
    let turn = start(&session);
    emit(&session, "round_start", "{}");
    emit(&session, "error", r#"{"code":"overloaded","message":"busy","fatal":true}"#);
    emit(&session, "round_end", r#"{"finish_reason":"error"}"#);
    emit(&session, "round_start", "{}");
    emit(&session, "assistant_message", r#"{"text":"Hi","finish_reason":"stop"}"#);
    emit(&session, "round_end", r#"{"finish_reason":"stop"}"#);
    end(&session, turn);
    assert_eq!(session.state_word(), "completed");
}

#[test]
fn a_broken_off_stream_leaves_the_turn_incomplete() {
    let session = session();
    let turn = start(&session);
    emit(&session, "text_delta", r#"{"text":"Hal"}"#);
    emit(&session, "error", r#"{"code":"stream_truncated","message":"broke off"}"#);
    end(&session, turn);
    let result = session.result().unwrap().to_value();
    assert_eq!(
        (&result["status"], &result["reason"], &result["text"]),
        (&"incomplete".into(), &"stream_truncated".into(), &"Hal".into())
    );
}

#[test]
fn edge_15_a_model_call_that_somebody_stopped_leaves_the_turn_cancelled() {
    let session = session();
    let turn = start(&session);
    emit(&session, "round_start", "{}");
    emit(&session, "text_delta", r#"{"message_id":"m","text":"Hal"}"#);
    emit(&session, "round_end", r#"{"finish_reason":"cancelled"}"#);
    end(&session, turn);
    let events = all(&session);
    let Payload::Completion(done) = &events.last().unwrap().payload else { panic!("no completion") };
    assert_eq!(
        (done.status, done.reason.as_deref(), &*done.text),
        (turnstream_core::event::Status::Cancelled, Some("interrupted"), "Hal")
    );
}

#[test]
fn edge_14_15_a_codex_turn_ends_the_sessions_turn_as_it_ended_itself() {
    let turn = |status: &str, error: &str| {
        let retry =
            r#"{"method":"error","params":{"threadId":"T","turnId":"1","willRetry":true,"error":{"message":"Reconnecting..."}}}"#;
        let delta = r#"{"method":"item/agentMessage/delta","params":{"threadId":"T","turnId":"1","itemId":"m2","delta":"Hi"}}"#;
        let end = format!(
            r#"{{"method":"turn/completed","params":{{"threadId":"T","turn":{{"id":"1","status":"{status}","error":{error}}}}}}}"#
        );
        format!("{}\n{retry}\n{delta}\n{end}\n", delta.replace("m2", "m1"))
    };
    for (status, error, ended, text) in [
        ("completed", "null", "completed", "Hi"),
        ("interrupted", "null", "cancelled", "Hi"),
        ("failed", r#"{"message":"no more"}"#, "failed", ""),
    ] {
        let session = session();
        let own = start(&session);
        let mut normalizer = Normalizer::new("codex", Options::default()).expect("known");
        normalizer.feed(turn(status, error).as_bytes()).and_then(|()| normalizer.finish()).expect("a stream");
        for payload in normalizer.drain() {
            session.emit(Some(own), payload, None).expect("taken");
        }
        end(&session, own);
        let events = all(&session);
        let Payload::Completion(done) = &events.last().unwrap().payload else { panic!("no completion") };
        assert_eq!((done.status.as_str(), &*done.text), (ended, text));
        assert_eq!(kinds(&events).iter().filter(|kind| **kind == "completion").count(), 1);
        assert!(kinds(&events).contains(&"warning"));
    }
}

#[test]
fn edge_36_a_second_end_is_refused_and_so_is_whatever_follows() {
    let session = session();
    let turn = start(&session);
    end(&session, turn);
    assert!(!session.end_turn(turn, Ending::default()));
    assert!(!session.fail_turn(turn, "x", "y"));
    let late = session.emit(Some(turn), payload("text_delta", r#"{"text":"x"}"#), None);
    assert!(matches!(late, Err(SessionError::TurnEnded { .. })));
    assert!(matches!(session.emit(Some(9), payload("usage", "{}"), None), Err(SessionError::NoTurn { .. })));
    assert_eq!(kinds(&all(&session)), ["turn_start", "completion"]);
}

#[test]
fn an_error_that_the_stream_said_on_its_way_out_is_not_said_twice() {
    let session = session();
    let turn = start(&session);
    emit(&session, "error", r#"{"code":"source_error","message":"connection reset","retryable":true,"fatal":true}"#);
    assert!(session.fail_turn(turn, "source_error", "SourceError: connection reset"));
    assert_eq!(kinds(&all(&session)), ["turn_start", "error", "completion"]);
    assert_eq!(session.result().unwrap().to_value()["error"]["message"], "connection reset");
    let turn = start(&session);
    emit(&session, "error", r#"{"code":"source_error","message":"connection reset","fatal":true}"#);
    assert!(session.fail_turn(turn, "agent_error", "KeyError: x"));
    assert_eq!(kinds(&all(&session)[3..]), ["turn_start", "error", "error", "completion"]);
}

#[test]
fn a_withdrawn_message_takes_its_calls_along_and_a_contradicted_one_keeps_them() {
    for (reason, calls) in [("restarted", 0), ("contradicted", 1)] {
        let session = session();
        let turn = start(&session);
        emit(&session, "text_delta", r#"{"message_id":"m","text":"x"}"#);
        emit(&session, "tool_call_start", r#"{"call_id":"c","name":"f","message_id":"m"}"#);
        emit(&session, "message_reset", &format!(r#"{{"message_id":"m","reason":"{reason}"}}"#));
        emit(&session, "assistant_message", r#"{"message_id":"m"}"#);
        end(&session, turn);
        assert_eq!(session.look(|state| state.messages[0].calls.len()), calls);
        assert!(session.look(|state| state.messages[0].text.is_empty()));
    }
}

#[test]
fn edge_39_a_second_start_while_one_runs_is_a_conflict() {
    let session = session();
    start(&session);
    assert!(matches!(session.start_turn(TurnOptions::default()), Err(SessionError::TurnActive { turn: 1, .. })));
}

#[test]
fn edge_40_the_same_client_id_starts_nothing_twice_and_another_body_is_a_conflict() {
    let session = session();
    let options = |input: &str| TurnOptions {
        client_id: Some("k".into()),
        input: Some(turnstream_core::event::Json::string(input)),
        ..TurnOptions::default()
    };
    let first = session.start_turn(options("a")).unwrap();
    let again = session.start_turn(options("a")).unwrap();
    assert_eq!((again.turn, again.before, again.new), (first.turn, first.before, false));
    assert!(matches!(session.start_turn(options("b")), Err(SessionError::Conflict { turn: 1, .. })));
    end(&session, first.turn);
    assert!(!session.start_turn(options("a")).unwrap().new);
}

#[test]
fn edge_41_a_cancel_closes_everything_once_and_answers_the_open_calls() {
    let session = session();
    let turn = start(&session);
    emit(&session, "round_start", "{}");
    emit(&session, "stage_start", r#"{"stage":"plan"}"#);
    emit(&session, "text_delta", r#"{"text":"par"}"#);
    for call in ["a", "b", "c"] {
        emit(&session, "tool_call_start", &format!(r#"{{"call_id":"{call}","name":"f"}}"#));
    }
    let called = Arc::new(AtomicUsize::new(0));
    let counter = called.clone();
    session.on_cancel(turn, Box::new(move || _ = counter.fetch_add(1, Ordering::SeqCst)));
    assert!(session.cancel("cancelled"));
    assert!(!session.cancel("cancelled"), "idempotent");
    assert_eq!(called.load(Ordering::SeqCst), 1);
    let events = all(&session);
    let cancelled = events
        .iter()
        .filter(|event| matches!(&event.payload, Payload::ToolResult(result) if result.status == "cancelled"))
        .count();
    assert_eq!(cancelled, 3);
    for kind in ["assistant_message", "round_end", "stage_end", "completion"] {
        assert_eq!(kinds(&events).iter().filter(|it| **it == kind).count(), 1, "{kind}");
    }
    assert_eq!(events.last().unwrap().payload.kind(), "completion");
    let result = session.result().unwrap().to_value();
    assert_eq!((&result["status"], &result["text"]), (&"cancelled".into(), &"par".into()));
    assert!(matches!(
        session.emit(Some(turn), payload("tool_result", r#"{"call_id":"a"}"#), None),
        Err(SessionError::TurnEnded { .. })
    ));
    let hook = called.clone();
    session.on_cancel(turn, Box::new(move || _ = hook.fetch_add(1, Ordering::SeqCst)));
    assert_eq!(called.load(Ordering::SeqCst), 2, "a hook that comes after the cancel is called at once");

    let turn = start(&session);
    let head = session.logged();
    let late = |kind: &str, fields: &str| session.emit(Some(turn), payload(kind, fields), None).unwrap();
    assert_eq!(late("tool_result", r#"{"call_id":"a","output":"late"}"#), head);
    assert_eq!(late("tool_output_delta", r#"{"call_id":"a","text":"late"}"#), head);
    assert_eq!(session.statistics().late, 2, "what an earlier turn's work still says is counted, and changes nothing");
    late("tool_call", r#"{"call_id":"a","name":"f"}"#);
    assert!(late("tool_result", r#"{"call_id":"a","output":"new"}"#) > head + 2, "an id may come again with its call");
}

#[test]
fn edge_46_the_completion_counts_the_turns_events() {
    let session = session();
    for _ in 0..2 {
        let turn = start(&session);
        emit(&session, "text_delta", r#"{"text":"x"}"#);
        end(&session, turn);
        let events = all(&session);
        let of_turn = events.iter().filter(|event| event.context.turn == turn).count();
        let Payload::Completion(completion) = &events.last().unwrap().payload else { panic!() };
        assert_eq!(completion.events, of_turn as u64);
    }
}

#[test]
fn usage_sums_across_model_calls() {
    let session = session();
    let turn = start(&session);
    emit(&session, "usage", r#"{"input_tokens":3,"output_tokens":5,"total_tokens":8}"#);
    emit(&session, "usage", r#"{"input_tokens":10,"output_tokens":1,"cache_read_tokens":2}"#);
    end(&session, turn);
    let usage = &session.result().unwrap().to_value()["usage"];
    assert_eq!(
        (&usage["input_tokens"], &usage["output_tokens"], &usage["cache_read_tokens"]),
        (&13.into(), &6.into(), &2.into())
    );
}

#[test]
fn what_only_the_session_says_cannot_be_emitted() {
    let session = session();
    start(&session);
    for (kind, json) in [("turn_start", "{}"), ("session_end", "{}"), ("gap", "{}"), ("snapshot", "{}"), ("stream_open", "{}")] {
        assert!(session.emit(None, payload(kind, json), None).is_err(), "{kind}");
    }
    emit(&session, "completion", r#"{"status":"completed"}"#);
    assert_eq!(kinds(&all(&session)), ["turn_start", "completion"]);
}

#[test]
fn outside_every_turn_the_session_itself_speaks() {
    let session = session();
    emit(&session, "custom", r#"{"name":"hello","data":{"a":1}}"#);
    let events = all(&session);
    assert_eq!((events[0].context.turn, events[0].seq), (0, 1));
    session.close(None);
    assert!(matches!(session.emit(None, payload("custom", r#"{"name":"x"}"#), None), Err(SessionError::Closed(_))));
    assert_eq!(kinds(&all(&session)), ["custom", "session_end"]);
}

// --- order ------------------------------------------------------------------------------------------------------------

#[test]
fn edge_35_many_emitters_make_one_sequence_without_holes() {
    let session = session();
    let turn = start(&session);
    let barrier = Arc::new(Barrier::new(4));
    let threads: Vec<_> = (0..4)
        .map(|n| {
            let (session, barrier) = (session.clone(), barrier.clone());
            std::thread::spawn(move || {
                barrier.wait();
                for i in 0..500 {
                    emit(&session, "custom", &format!(r#"{{"name":"{n}","data":{i}}}"#));
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    end(&session, turn);
    let events = all(&session);
    assert!(events.iter().map(|event| event.seq).eq(1..=2002));
    for n in 0..4 {
        let of_one = events.iter().filter_map(|event| match &event.payload {
            Payload::Custom(custom) if *custom.name == *n.to_string() => custom.data.as_ref()?.as_str().parse::<u32>().ok(),
            _ => None,
        });
        assert!(of_one.eq(0..500), "each emitter's own order is kept");
    }
}

// --- readers ----------------------------------------------------------------------------------------------------------

#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn edge_48_late_early_and_repeated_readers_get_every_event_and_then_the_end() {
    let session = session();
    let mut early = Reader::open(&session, &ReadOptions::default()).unwrap();
    assert_eq!(drain(&mut early), (vec![], Poll::Pending));
    let turn = start(&session);
    emit(&session, "text_delta", r#"{"text":"a"}"#);
    let mut middle = Reader::open(&session, &ReadOptions::default()).unwrap();
    emit(&session, "text_delta", r#"{"text":"b"}"#);
    end(&session, turn);
    let (from_start, poll) = drain(&mut early);
    assert_eq!(poll, Poll::End);
    assert_eq!(from_start.last().unwrap().payload.kind(), "completion");
    assert_eq!(drain(&mut middle).0, from_start);
    for _ in 0..2 {
        let mut late = Reader::open(&session, &ReadOptions::default()).unwrap();
        assert_eq!(drain(&mut late), (from_start.clone(), Poll::End));
    }
}

#[test]
fn edge_51_a_resumed_reader_goes_on_right_after_its_cursor() {
    let session = session();
    let turn = start(&session);
    for _ in 0..20 {
        emit(&session, "text_delta", r#"{"text":"x"}"#);
    }
    end(&session, turn);
    let whole = all(&session);
    for seq in 0..whole.len() as u64 {
        let mut reader = Reader::open(&session, &after(&session, seq)).unwrap();
        assert_eq!(reader.status(), if seq == whole.len() as u64 { Status::Finished } else { Status::Resumed });
        assert_eq!(drain(&mut reader).0, whole[seq as usize..]);
    }
    let mut finished = Reader::open(&session, &after(&session, whole.len() as u64)).unwrap();
    assert_eq!(finished.status(), Status::Finished);
    assert_eq!(drain(&mut finished), (vec![], Poll::End));
}

#[test]
fn edge_52_every_cursor_gets_an_honest_answer() {
    let session = small(4);
    let turn = start(&session);
    let status = |options: &ReadOptions| Reader::open(&session, options).unwrap().status();
    assert_eq!(status(&ReadOptions::default()), Status::Live);
    assert_eq!(status(&after(&session, 1)), Status::CaughtUp);
    assert_eq!(status(&after(&session, 99)), Status::Ahead);
    let zero = ReadOptions { after: Some(Cursor::parse("0").unwrap()), ..ReadOptions::default() };
    assert_eq!(status(&zero), Status::Resumed);
    let other = ReadOptions { after: Some(Cursor::parse("another.1").unwrap()), ..ReadOptions::default() };
    assert_eq!(status(&other), Status::OtherEpoch);
    for i in 0..10 {
        emit(&session, "custom", &format!(r#"{{"name":"{i}"}}"#));
    }
    assert_eq!(status(&after(&session, 1)), Status::Trimmed);
    assert_eq!(status(&zero), Status::Trimmed);
    assert_eq!(status(&ReadOptions::default()), Status::Live, "who has seen nothing has lost nothing");
    let mut first = Reader::open(&session, &ReadOptions::default()).unwrap();
    assert_eq!(drain(&mut first).0[0].payload.kind(), "snapshot");
    drop(first);
    let refused = Reader::open(&session, &ReadOptions { fail_on_trim: true, ..ReadOptions::default() });
    assert!(matches!(refused, Err(ReadError::Expired { earliest: 8, after: 0, .. })), "all or nothing");
    let refused = Reader::open(&session, &ReadOptions { fail_on_trim: true, ..after(&session, 1) });
    assert!(matches!(refused, Err(ReadError::Expired { earliest: 8, after: 1, .. })));
    assert_eq!(session.readers(), 0, "a refused reader is not kept");
    end(&session, turn);
    let head = session.position().head;
    assert_eq!(status(&after(&session, head)), Status::Finished);
    session.close(None);
}

#[test]
fn edge_53_exactly_at_the_limit_nothing_is_lost_and_one_past_it_is_a_snapshot_and_the_tail() {
    let session = small(5);
    start(&session);
    for i in 0..4 {
        emit(&session, "custom", &format!(r#"{{"name":"{i}"}}"#));
    }
    assert_eq!(kinds(&all(&session)), ["turn_start", "custom", "custom", "custom", "custom"]);
    emit(&session, "custom", r#"{"name":"4"}"#);
    let events = all(&session);
    assert_eq!(kinds(&events), ["snapshot", "custom", "custom", "custom", "custom", "custom"]);
    let Payload::Snapshot(snapshot) = &events[0].payload else { panic!() };
    assert_eq!((snapshot.head, events[1].seq), (1, 2));
    assert_eq!(snapshot.state.as_ref().unwrap().to_value()["turn"], 1);
}

#[test]
fn a_reader_that_falls_behind_the_front_is_told_what_it_missed() {
    let session = small(8);
    start(&session);
    let mut reader = Reader::open(&session, &ReadOptions::default()).unwrap();
    assert_eq!(kinds(&drain(&mut reader).0), ["turn_start"]);
    emit(&session, "text_delta", r#"{"message_id":"m","text":"Hel"}"#);
    for i in 0..20 {
        emit(&session, "custom", &format!(r#"{{"name":"{i}"}}"#));
    }
    let (events, _) = drain(&mut reader);
    assert_eq!(kinds(&events[..2]), ["gap", "snapshot"]);
    let Payload::Gap(gap) = &events[0].payload else { panic!() };
    assert_eq!((gap.first, gap.last + 1), (2, events[2].seq));
    let Payload::Snapshot(snapshot) = &events[1].payload else { panic!() };
    assert_eq!(snapshot.state.as_ref().unwrap().to_value()["messages"][0]["text"], "Hel", "partial text included");
    assert_eq!(events.len(), 2 + 8);
}

#[test]
fn deltas_of_finished_messages_leave_first_and_the_hole_is_announced() {
    let session = small(40);
    let turn = start(&session);
    for _ in 0..30 {
        emit(&session, "text_delta", r#"{"message_id":"m","text":"x"}"#);
    }
    emit(&session, "assistant_message", r#"{"message_id":"m"}"#);
    for i in 0..20 {
        emit(&session, "custom", &format!(r#"{{"name":"{i}"}}"#));
    }
    end(&session, turn);
    let events = all(&session);
    assert_eq!(kinds(&events[..4]), ["turn_start", "message_start", "gap", "assistant_message"]);
    let Payload::AssistantMessage(whole) = &events[3].payload else { panic!() };
    assert_eq!(whole.text.len(), 30, "the whole text is still there");
    assert_eq!(kinds(&events).iter().filter(|kind| **kind == "custom").count(), 20);
}

#[test]
fn a_reader_of_what_is_there_is_told_of_what_left_before_its_end() {
    let session = small(8);
    start(&session);
    for _ in 0..6 {
        emit(&session, "text_delta", r#"{"message_id":"m","text":"x"}"#);
    }
    let mut reader = Reader::open(&session, &ReadOptions { follow: Follow::None, ..ReadOptions::default() }).unwrap();
    reader.poll(3, &mut Vec::new());
    emit(&session, "assistant_message", r#"{"message_id":"m","text":"xxxxxx"}"#); // its deltas leave, up to where the reader ends
    let (events, poll) = drain(&mut reader);
    let [Payload::Gap(gap)] = [&events[0].payload] else { panic!("{events:?}") };
    assert_eq!((gap.first, gap.last, &*gap.reason, events.len(), poll), (4, 8, "evicted", 1, Poll::End));
}

#[test]
fn a_parked_reader_is_woken_by_an_append_and_by_the_end_and_never_parks_on_news() {
    let session = session();
    let turn = start(&session);
    let mut reader = Reader::open(&session, &ReadOptions::default()).unwrap();
    drain(&mut reader);
    let count = Arc::new(Count::default());
    let waker = Waker::from(count.clone());
    assert!(reader.park(&waker));
    assert!(reader.park(&waker), "parking twice registers once");
    emit(&session, "custom", r#"{"name":"x"}"#);
    assert_eq!(count.0.load(Ordering::SeqCst), 1);
    assert!(!reader.park(&waker), "there is news: look first");
    drain(&mut reader);
    assert!(reader.park(&waker));
    reader.unpark();
    emit(&session, "custom", r#"{"name":"y"}"#);
    assert_eq!(count.0.load(Ordering::SeqCst), 1, "taken back");
    drain(&mut reader);
    assert!(reader.park(&waker));
    end(&session, turn);
    assert_eq!(count.0.load(Ordering::SeqCst), 2);
}

#[test]
fn edge_34_a_reader_that_leaves_while_parked_leaves_nothing_behind() {
    for leave in [drop as fn(Reader), |mut reader| reader.close(), |mut reader| reader.unpark()] {
        let session = session();
        start(&session);
        let mut reader = Reader::open(&session, &ReadOptions { pace_window: 1, ..ReadOptions::default() }).unwrap();
        let count = Arc::new(Count::default());
        let waker = Waker::from(count.clone());
        let mut ticket = Ticket::default();
        assert!(session.wait_to_produce(&waker, &mut ticket));
        drain(&mut reader);
        assert!(reader.park(&waker));
        drop(waker);
        assert_eq!(session.waiting(), (1, 0));
        let before = count.0.load(Ordering::SeqCst);
        leave(reader);
        assert_eq!((session.waiting(), session.may_produce()), ((0, 0), true));
        emit(&session, "custom", r#"{"name":"x"}"#);
        assert_eq!(count.0.load(Ordering::SeqCst), before, "nobody is there to be called");
        assert_eq!(Arc::strong_count(&count), 1, "and nothing is kept of it");
    }
}

#[test]
fn edge_34_a_producer_that_gives_up_waiting_leaves_nothing_behind() {
    let session = session();
    start(&session);
    let reader = Reader::open(&session, &ReadOptions { pace_window: 1, ..ReadOptions::default() }).unwrap();
    let count = Arc::new(Count::default());
    for _ in 0..100 {
        let mut ticket = Ticket::default();
        assert!(session.wait_to_produce(&Waker::from(count.clone()), &mut ticket));
        session.leave_producing(&mut ticket);
    }
    assert_eq!((session.waiting(), Arc::strong_count(&count)), ((0, 0), 1));
    drop(reader);
}

#[test]
fn of_a_reader_that_parks_twice_the_last_waker_is_called() {
    let session = session();
    start(&session);
    let mut reader = Reader::open(&session, &ReadOptions::default()).unwrap();
    drain(&mut reader);
    let [first, second] = [(); 2].map(|()| Arc::new(Count::default()));
    assert!(reader.park(&Waker::from(first.clone())) && reader.park(&Waker::from(second.clone())));
    emit(&session, "custom", r#"{"name":"x"}"#);
    assert_eq!([&first, &second].map(|count| count.0.load(Ordering::SeqCst)), [0, 1]);
    assert_eq!(Arc::strong_count(&first), 1);
}

#[test]
fn a_pacing_reader_holds_the_producer_and_its_going_frees_it() {
    let session = session();
    start(&session);
    let options = ReadOptions { pace_window: 3, ..ReadOptions::default() };
    let mut reader = Reader::open(&session, &options).unwrap();
    assert!(session.may_produce());
    for _ in 0..4 {
        emit(&session, "custom", r#"{"name":"x"}"#);
    }
    let count = Arc::new(Count::default());
    let waker = Waker::from(count.clone());
    assert!(session.wait_to_produce(&waker, &mut Ticket::default()));
    drain(&mut reader);
    assert!(session.may_produce());
    assert!(count.0.load(Ordering::SeqCst) > 0);
    for _ in 0..4 {
        emit(&session, "custom", r#"{"name":"x"}"#);
    }
    assert!(!session.may_produce());
    drop(reader);
    assert!(session.may_produce());
}

#[test]
fn edge_55_a_deleted_session_ends_its_readers_and_its_turn() {
    let hub = Hub::new(Limits::default());
    let session = hub.session(Some("s")).unwrap();
    start(&session);
    let mut reader = Reader::open(&session, &ReadOptions { follow: Follow::Session, ..ReadOptions::default() }).unwrap();
    assert!(hub.delete("s"));
    assert!(!hub.delete("s"));
    assert!(matches!(hub.find("s"), Err(SessionError::Unknown)));
    let (events, poll) = drain(&mut reader);
    assert_eq!((kinds(&events), poll), (vec!["turn_start", "completion", "session_end"], Poll::End));
}

#[test]
fn edge_42_sessions_share_nothing() {
    let hub = Hub::new(Limits::default());
    let (a, b) = (hub.session(None).unwrap(), hub.session(None).unwrap());
    assert_ne!(a.id(), b.id());
    assert_ne!(a.epoch(), b.epoch());
    start(&a);
    assert!(all(&b).is_empty());
    let foreign = ReadOptions { after: Some(Cursor::new(a.epoch(), 1)), ..ReadOptions::default() };
    assert_eq!(Reader::open(&b, &foreign).unwrap().status(), Status::OtherEpoch);
}

// --- frames -----------------------------------------------------------------------------------------------------------

fn stream_options() -> StreamOptions {
    StreamOptions { heartbeat_s: 10.0, max_bytes: 65_536, limit: None, retry_ms: None }
}

#[test]
fn edge_56_only_events_of_the_log_carry_an_id() {
    let session = small(3);
    start(&session);
    for i in 0..6 {
        emit(&session, "custom", &format!(r#"{{"name":"{i}"}}"#));
    }
    session.end_turn(1, Ending::default());
    let mut stream = FrameStream::open(&session, &ReadOptions::default(), stream_options(), Format::Sse.encoder()).unwrap();
    let mut out = Vec::new();
    assert_eq!(stream.poll(&mut out), Poll::Ready);
    stream.write_heartbeat(&mut out);
    let text = String::from_utf8(out).unwrap();
    assert!(!text.contains('\r'));
    for block in text.split("\n\n").filter(|block| block.contains("data: ")) {
        let control = block.contains("event: stream_open") || block.contains("event: snapshot");
        assert_eq!(block.contains("id: "), !control, "{block}");
    }
}

#[test]
fn a_snapshot_that_nothing_follows_still_moves_the_cursor() {
    let session = session();
    let turn = start(&session);
    end(&session, turn);
    let mut stream = FrameStream::open(&session, &after(&session, 99), stream_options(), Format::Sse.encoder()).unwrap();
    let mut out = Vec::new();
    while stream.poll(&mut out) == Poll::Ready {}
    assert!(String::from_utf8(out).unwrap().ends_with(&format!("\n\nid: {}.2\n\n", session.epoch())));
}

/// A client that takes nothing costs one chunk: 500 of them once cost 8 MB each, as a page was counted in events alone.
#[test]
fn a_chunk_of_large_events_is_as_large_as_one_of_small_ones() {
    let session = session();
    let turn = start(&session);
    for _ in 0..100 {
        emit(&session, "custom", &format!(r#"{{"name":"part","data":"{}"}}"#, "x".repeat(30_000)));
    }
    end(&session, turn);
    let options = StreamOptions { max_bytes: 65_536, ..stream_options() };
    let mut stream = FrameStream::open(&session, &ReadOptions::default(), options, Format::Sse.encoder()).unwrap();
    let (mut out, mut chunks) = (Vec::new(), 0);
    while stream.poll(&mut out) == Poll::Ready {
        assert!(out.len() < 65_536 + 31_000, "{}", out.len());
        out.clear();
        chunks += 1;
    }
    assert!(chunks > 30);
}

#[test]
fn a_limited_page_goes_on_where_it_stopped() {
    let session = session();
    let turn = start(&session);
    for _ in 0..10 {
        emit(&session, "custom", r#"{"name":"x"}"#);
    }
    end(&session, turn);
    let (mut seen, mut cursor) = (0, 0);
    while seen < 12 {
        let options = StreamOptions { limit: Some(5), ..stream_options() };
        let mut stream = FrameStream::open(&session, &after(&session, cursor), options, Format::Ndjson.encoder()).unwrap();
        let mut out = Vec::new();
        while stream.poll(&mut out) == Poll::Ready {}
        let page: Vec<_> = out.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).skip(1).collect();
        assert!(page.len() <= 5);
        for line in page {
            let event = Event::from_json(std::str::from_utf8(line).unwrap()).unwrap();
            assert_eq!(event.seq, cursor + 1);
            cursor = event.seq;
            seen += 1;
        }
    }
}

// --- models -----------------------------------------------------------------------------------------------------------

#[derive(Debug, Clone)]
enum Act {
    Text(u8, String),
    Custom(u8),
    Whole(u8),
    Turn,
    End,
    Poll(u8),
    Open,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => (0..3_u8, "[a-zé]{0,4}").prop_map(|(id, text)| Act::Text(id, text)),
        2 => any::<u8>().prop_map(Act::Custom),
        1 => (0..3_u8).prop_map(Act::Whole),
        1 => Just(Act::Turn),
        1 => Just(Act::End),
        3 => (0..4_u8).prop_map(Act::Poll),
        1 => Just(Act::Open),
    ];
    prop::collection::vec(act, 0..120)
}

proptest! {
    /// Whatever happens in whatever order: every reader sees the log's events in order, once, or a gap that says which
    /// are missing; merged text is whole; each turn has at most one completion, and exactly one once it has ended.
    #[test]
    fn readers_agree_with_the_log(acts in acts(), max_events in 4..60_usize, merge: bool) {
        let session = small(max_events);
        let mut log: Vec<Event> = Vec::new();
        let mut mirror = Reader::open(&session, &ReadOptions { follow: Follow::Session, ..ReadOptions::default() }).unwrap();
        let mut readers: Vec<(u64, Reader)> = Vec::new();
        let options = |after: u64| ReadOptions { after: Some(Cursor::new(session.epoch(), after)), follow: Follow::Session, merge, ..ReadOptions::default() };
        for act in acts {
            match act {
                Act::Text(id, text) => { emit(&session, "text_delta", &format!(r#"{{"message_id":"m{id}-{}","text":"{text}"}}"#, session.position().turn)); }
                Act::Custom(n) => { emit(&session, "custom", &format!(r#"{{"name":"{n}"}}"#)); }
                Act::Whole(id) => { emit(&session, "assistant_message", &format!(r#"{{"message_id":"m{id}-{}"}}"#, session.position().turn)); }
                Act::Turn => { let _ = session.start_turn(TurnOptions::default()); }
                Act::End => { session.end_turn(session.position().turn, Ending::default()); }
                Act::Open => { let at = session.position().head; readers.push((at, Reader::open(&session, &options(at)).unwrap())); }
                Act::Poll(n) => {
                    let count = readers.len().max(1);
                    if let Some((at, reader)) = readers.get_mut(usize::from(n) % count) { check(reader, at, &log, merge)?; }
                }
            }
            for event in drain(&mut mirror).0 { if event.payload.class() != Class::Control { log.push(event); } }
            prop_assert!(session.statistics().retained as usize <= max_events);
        }
        session.close(None);
        log.extend(drain(&mut mirror).0.into_iter().filter(|event| event.payload.class() != Class::Control));
        prop_assert!(log.iter().map(|event| event.seq).eq(1..=log.len() as u64));
        for (mut at, mut reader) in readers { check(&mut reader, &mut at, &log, merge)?; prop_assert_eq!(at, log.len() as u64); }
        for turn in 1..=session.position().turn {
            let ends = log.iter().filter(|event| event.context.turn == turn && event.payload.kind() == "completion").count();
            prop_assert_eq!(ends, 1);
        }
    }
}

/// What `reader` hands out now continues `log` after `at`.
fn check(reader: &mut Reader, at: &mut u64, log: &[Event], merge: bool) -> Result<(), TestCaseError> {
    for event in drain(reader).0 {
        match &event.payload {
            Payload::Gap(gap) => {
                prop_assert_eq!(gap.first, *at + 1);
                *at = gap.last;
            }
            Payload::Snapshot(snapshot) => prop_assert_eq!(snapshot.head, *at),
            Payload::TextDelta(delta) if merge => {
                let pieces = &log[*at as usize..event.seq as usize];
                let text: String = pieces
                    .iter()
                    .map(|piece| match &piece.payload {
                        Payload::TextDelta(piece) => &*piece.text,
                        _ => "!",
                    })
                    .collect();
                prop_assert_eq!(&*delta.text, text);
                *at = event.seq;
            }
            _ => {
                prop_assert_eq!(event.seq, *at + 1);
                prop_assert_eq!(&event, &log[*at as usize]);
                *at = event.seq;
            }
        }
    }
    Ok(())
}

/// What the state holds that grows with what is said.
fn said_bytes(state: &State) -> usize {
    let messages =
        state.messages.iter().map(|message| message.text.len() + message.input.as_ref().map_or(0, |it| it.as_str().len()));
    let calls = state.calls.iter().map(|call| call.arguments_raw.len() + call.output.as_ref().map_or(0, |it| it.as_str().len()));
    let attached = state.attached.iter().map(|attached| attached.event.size());
    messages.sum::<usize>() + calls.sum::<usize>() + attached.sum::<usize>()
}

#[test]
fn a_session_of_endless_turns_keeps_what_is_newest_and_counts_the_rest() {
    let limits = Limits { max_state_bytes: 100_000, max_events: 50, ..Limits::default() };
    let session = Session::new("s", limits);
    let mut said = 0;
    for turn in 1..=500_u32 {
        let input = Some(Json::string(&"q".repeat(100)));
        assert_eq!(session.start_turn(TurnOptions { input, ..TurnOptions::default() }).unwrap().turn, turn);
        emit(&session, "text_delta", &format!(r#"{{"message_id":"m{turn}","text":"{}"}}"#, "a".repeat(500)));
        emit(&session, "citation", r#"{"url":"https://a.example"}"#);
        emit(&session, "tool_call", &format!(r#"{{"call_id":"c","name":"look","message_id":"m{turn}"}}"#));
        emit(&session, "tool_result", &format!(r#"{{"call_id":"c","output":"{}"}}"#, "b".repeat(500)));
        emit(&session, "assistant_message", &format!(r#"{{"message_id":"m{turn}"}}"#));
        end(&session, turn);
        said += 2;
        session.look(|state| {
            assert!(said_bytes(state) <= limits.max_state_bytes, "turn {turn}: {}", said_bytes(state));
            assert_eq!(state.messages.len() as u64 + state.dropped.messages, said);
            assert_eq!(state.answer().len(), 500);
            for (at, message) in state.messages.iter().enumerate() {
                assert_eq!(state.message(&message.id), Some(at), "the index stands");
            }
            for (at, call) in state.calls.iter().enumerate() {
                assert_eq!(state.call(call.turn, call.round, &call.id), Some(at), "the index stands");
                assert!(state.message(call.message_id.as_ref().unwrap()).is_some(), "a call goes with its message");
            }
        });
    }
    let (state, base) = (session.head_snapshot().1.to_value(), session.base_snapshot().1.to_value());
    for snapshot in [&state, &base] {
        assert!(snapshot["dropped"]["messages"].as_u64() > Some(800), "{}", snapshot["dropped"]);
        assert!(snapshot["dropped"]["turn"].as_u64() < Some(500), "nothing of the newest turn is missing");
    }
    let (_, messages, dropped) = session.messages_snapshot();
    let (messages, dropped) = (messages.to_value(), dropped.unwrap().to_value());
    assert_eq!(dropped, state["dropped"]);
    let newest = messages.as_array().unwrap().last().unwrap();
    assert_eq!((&newest["message_id"], &newest["citations"][0]["url"]), (&"m500".into(), &"https://a.example".into()));
}

#[test]
fn an_endless_turn_keeps_what_is_open_its_question_and_its_newest_message() {
    let limits = Limits { max_state_bytes: 50_000, max_events: 50, ..Limits::default() };
    let session = Session::new("s", limits);
    let turn = session.start_turn(TurnOptions { input: Some(Json::string("why")), ..TurnOptions::default() }).unwrap().turn;
    emit(&session, "text_delta", r#"{"message_id":"open","text":"Well"}"#);
    emit(&session, "tool_call", r#"{"call_id":"waits","name":"look"}"#);
    for at in 0..300 {
        emit(&session, "round_start", "{}");
        emit(&session, "custom", &format!(r#"{{"name":"tick","data":"{}"}}"#, "t".repeat(200)));
        emit(&session, "assistant_message", &format!(r#"{{"message_id":"m{at}","text":"{}"}}"#, "a".repeat(1000)));
        emit(&session, "stage_start", &format!(r#"{{"stage":"{at}"}}"#));
        emit(&session, "stage_end", &format!(r#"{{"stage":"{at}"}}"#));
        session.look(|state| assert!(said_bytes(state) <= limits.max_state_bytes, "{at}: {}", said_bytes(state)));
    }
    emit(&session, "tool_result", r#"{"call_id":"waits","output":"there"}"#);
    emit(&session, "text_delta", r#"{"message_id":"open","text":", so it is"}"#);
    end(&session, turn);
    session.look(|state| {
        let ids: Vec<_> = state.messages.iter().map(|message| message.id.to_string()).collect();
        assert_eq!((&*ids[0], &*ids[1], &**ids.last().unwrap()), ("input-1", "open", "m299"));
        assert_eq!(state.messages[1].text, "Well, so it is");
        assert_eq!(state.calls[0].output.as_ref().map(Json::as_str), Some(r#""there""#));
        assert_eq!((state.messages.len() as u64 + state.dropped.messages, state.dropped.turn), (302, 1));
        assert!(state.stages.len() < 300, "{} stages", state.stages.len());
    });
}

/// The state that was folded as the events came is the one that the log folds to.
#[test]
fn what_is_dropped_is_the_same_wherever_the_log_is_folded() {
    let session = Session::new("s", Limits { max_state_bytes: 20_000, ..Limits::default() });
    for turn in 1..=60 {
        start(&session);
        emit(&session, "assistant_message", &format!(r#"{{"message_id":"m{turn}","text":"{}"}}"#, "a".repeat(700)));
        emit(&session, "file", r#"{"media_type":"text/plain","data":"AAAA"}"#);
        end(&session, turn);
    }
    let mut state = State::bounded(20_000);
    for event in all(&session) {
        state.apply(&event);
    }
    assert_eq!(session.head_snapshot().1, state.snapshot_json());
    assert!(state.dropped.messages > 0 && state.dropped.events > 0);
}
