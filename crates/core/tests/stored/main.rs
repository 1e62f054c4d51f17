//! Sessions in a store: several hubs over one, as several processes have them.

#[path = "../store/chaos.rs"]
mod chaos;
mod failover;
mod history;
mod kit;

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use kit::{
    FAILING, FULL, LIMIT, Stop, Switch, YIELDING, end, hub, kinds, memory, read_turn, read_until, say, say_in, start, two_hubs,
    until,
};
use turnstream_core::event::{Payload, Status};
use turnstream_core::reader::{Cursor, Follow, ReadOptions, Reader, Status as Taken};
use turnstream_core::session::{BACKLOG_EVENTS, Ending, Hub, Limits, PATIENCE, Session, SessionError, StoreOptions, TurnOptions};
use turnstream_core::store::{Durability, LogStore, SqliteOptions, SqliteStore, StoreError};

#[test]
fn one_writes_and_another_reads_the_same() {
    let (here, there) = two_hubs(&memory());
    let session = here.session(Some("s")).unwrap();
    let turn = start(&session);
    let other = there.session(Some("s")).unwrap();
    let reading = std::thread::spawn({
        let other = other.clone();
        move || read_turn(&other)
    });
    for piece in ["a", "b", "c"] {
        say(&session, piece).unwrap();
    }
    end(&session, turn);
    let seen = reading.join().unwrap();
    assert_eq!(seen, read_turn(&session));
    assert_eq!(seen.len() as u64, session.position().head);
    assert_eq!(other.result(), session.result());
    assert_eq!(
        other.see(turnstream_core::session::State::messages_json),
        session.look(turnstream_core::session::State::messages_json)
    );
    assert_eq!(other.epoch(), session.epoch());
    let middle = format!("{}.3", session.epoch());
    assert_eq!(read_until(&other, Some(&middle), Follow::Turn, |_| false), seen[3..]);
}

#[test]
fn one_writes_at_a_time() {
    let (here, there) = two_hubs(&memory());
    let session = here.session(Some("s")).unwrap();
    let turn = start(&session);
    say(&session, "a").unwrap();
    let other = there.session(Some("s")).unwrap();
    assert!(matches!(say(&other, "b"), Err(SessionError::NotWriter { .. })));
    until("the turn is seen", || other.position().running);
    assert!(matches!(other.start_turn(TurnOptions::default()), Err(SessionError::TurnActive { turn: 1, .. })));
    assert!(!other.end_turn(turn, Ending::default()));
    end(&session, turn);
    // The claim is given back with the end: the next turn may run anywhere.
    let next = start(&other);
    assert_eq!(next, 2);
    assert!(matches!(say(&session, "late"), Err(SessionError::NotWriter { .. })));
    end(&other, next);
    assert_eq!(start(&here.session(Some("s")).unwrap()), 3);
}

/// Edge case 55, and invariant 3: whoever of several notices ends the turn, once.
#[test]
fn a_lost_producer_is_ended_once() {
    for _ in 0..5 {
        let store = memory();
        let switch = Switch::new(&store);
        let lease = Duration::from_millis(100);
        let lost = hub(&(switch.clone() as Arc<dyn LogStore>), lease, Durability::Process);
        let session = lost.session(Some("s")).unwrap();
        let turn = start(&session);
        say(&session, "half").unwrap();
        assert!(session.flush());
        switch.set(1);
        let others: Vec<_> = (0..3).map(|_| hub(&store, lease, Durability::Process)).collect();
        let barrier = Barrier::new(3);
        let read: Vec<_> = std::thread::scope(|scope| {
            let reading = |hub: &Hub| {
                barrier.wait();
                read_turn(&hub.session(Some("s")).unwrap())
            };
            let threads: Vec<_> = others.iter().map(|hub| scope.spawn(move || reading(hub))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(read.iter().all(|lines| *lines == read[0]));
        assert_eq!(kinds(&read[0]).iter().filter(|kind| *kind == "completion").count(), 1);
        let end = read[0].last().unwrap();
        assert!(end.contains(r#""status":"failed","reason":"producer_lost""#) && end.contains(r#""text":"half""#), "{end}");
        // The writer that was away hears of it: what it says is refused, and its log is the others'.
        let more = || {
            let (payload, _) = Payload::from_json("text_delta", r#"{"text":"more"}"#).unwrap();
            session.emit(Some(turn), payload, None)
        };
        let _ = more(); // while it is away it cannot know
        switch.set(0);
        until("the old writer follows", || !session.writes());
        let refused = more().unwrap_err();
        assert!(matches!(refused, SessionError::Store(StoreError::Fenced) | SessionError::TurnEnded { .. }), "{refused}");
        until("the histories are one", || read_turn(&session) == read[0]);
    }
}

/// Edge case 55: a cursor outlives the process, finished turns answer, a request that comes again starts nothing.
#[test]
fn a_restart_goes_on_where_the_process_ended() {
    let folder = std::env::temp_dir().join(format!("turnstream-restart-{}", std::process::id()));
    let open =
        || -> Arc<dyn LogStore> { Arc::new(SqliteStore::open(&folder.join("runs.db"), &SqliteOptions::default()).unwrap()) };
    let lease = Duration::from_millis(200);
    let asked = || TurnOptions { client_id: Some("request".into()), ..TurnOptions::default() };
    let (cursor, finished) = {
        let hub = hub(&open(), lease, Durability::Process);
        let session = hub.session(Some("s")).unwrap();
        let turn = session.start_turn(asked()).unwrap().turn;
        say(&session, "whole").unwrap();
        end(&session, turn);
        let finished = session.result().unwrap();
        start(&session);
        say(&session, "half").unwrap();
        assert!(session.flush());
        (format!("{}.{}", session.epoch(), 2), finished)
    };
    let hub = hub(&open(), lease, Durability::Process);
    let session = hub.session(Some("s")).unwrap();
    until("the interrupted turn ends", || hub.find("s").is_ok_and(|session| session.result().is_some()));
    let lines = read_until(&session, Some(&cursor), Follow::Session, |lines| {
        kinds(lines).iter().filter(|kind| *kind == "completion").count() == 2
    });
    assert!(lines[0].contains("\"seq\":3,"), "{}", lines[0]);
    assert_eq!(lines.iter().find(|line| line.contains("completion")).unwrap(), finished.as_str());
    assert!(lines.last().unwrap().contains("producer_lost"));
    assert!(!session.start_turn(asked()).unwrap().new);
    assert_eq!(start(&session), 3, "what was finished is not resurrected");
    assert!(matches!(hub.find("nobody"), Err(SessionError::Unknown)));
    let reader = Reader::open(&session, &ReadOptions { after: Some(Cursor::parse(&cursor).unwrap()), ..ReadOptions::default() });
    assert_eq!(reader.unwrap().status(), Taken::Resumed);
    drop((session, hub));
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn edge_58_what_the_store_refuses_has_not_happened() {
    refused_by(FULL, "store_full", |error| matches!(error, StoreError::Full(_)));
    refused_by(FAILING, "store_io", |error| matches!(error, StoreError::Io(_)));
}

fn refused_by(mode: u8, reason: &str, says: fn(&StoreError) -> bool) {
    let told = |error: &SessionError| matches!(error, SessionError::Store(error) if says(error));
    let store = memory();
    let switch = Switch::new(&store);
    let hub = hub(&(switch.clone() as Arc<dyn LogStore>), Duration::from_millis(500), Durability::Process);
    let session = hub.session(Some("s")).unwrap();
    let turn = start(&session);
    say(&session, "kept").unwrap();
    assert!(session.flush());
    let head = session.position().head;
    let stopped = Arc::new(AtomicU8::new(0));
    session.on_cancel(
        turn,
        Box::new({
            let stopped = stopped.clone();
            move || stopped.store(1, Ordering::SeqCst)
        }),
    );
    switch.set(mode);
    let lost = say(&session, "lost").unwrap();
    assert_eq!(lost, head + 1);
    assert!(!session.flush());
    assert_eq!(session.position().head, head, "nobody sees it");
    until("the work is told to stop", || stopped.load(Ordering::SeqCst) == 1);
    let (payload, _) = Payload::from_json("text_delta", r#"{"text":"more"}"#).unwrap();
    assert!(told(&session.emit(Some(turn), payload, None).unwrap_err()));
    switch.set(0);
    let lines = read_turn(&session);
    assert!(lines[head as usize].contains(&format!("\"seq\":{lost},")), "its seq is given anew");
    assert!(lines.last().unwrap().contains(&format!(r#""status":"failed","reason":"{reason}""#)));
    assert!(!lines.concat().contains(r#""text":"lost""#));
    let head = session.position().head;
    switch.set(mode);
    let refused = session.start_turn(TurnOptions::default()).unwrap_err();
    assert!(told(&refused), "{refused}");
    assert_eq!(
        (session.position().head, session.is_running(turn + 1)),
        (head, false),
        "what could not be stored has not started"
    );
    switch.set(0);
    assert_eq!(start(&session), turn + 1);
    assert_eq!(say(&session, "again").unwrap(), head + 3);
    end(&session, turn + 1);
}

/// Invariant 1: an event waits for the store before any reader, also one of the same process, sees it.
#[test]
fn nobody_sees_what_is_not_stored() {
    for (durability, sees) in [(Durability::Memory, true), (Durability::Process, false)] {
        let store = memory();
        let switch = Switch::new(&store);
        let hub = hub(&(switch.clone() as Arc<dyn LogStore>), Duration::from_secs(10), durability);
        let session = hub.session(Some("s")).unwrap();
        let turn = start(&session);
        assert!(session.flush());
        switch.set(1);
        say(&session, "soon").unwrap();
        let lines = read_until(&session, None, Follow::None, |_| false);
        assert_eq!(lines.concat().contains("soon"), sees);
        assert_eq!(session.status_json().as_str().contains("\"head\":1,"), !sees);
        switch.set(0);
        end(&session, turn);
        assert!(read_turn(&session).concat().contains("soon"));
    }
}

/// Whoever looks at a session while it becomes this process's to write does not take for stored what is only logged.
#[test]
fn a_look_acknowledges_nothing() {
    let store = memory();
    let switch = Switch::new(&store);
    let here = hub(&(switch.clone() as Arc<dyn LogStore>), Duration::from_secs(10), Durability::Process);
    let there = hub(&store, Duration::from_secs(10), Durability::Process);
    let session = here.session(Some("s")).unwrap();
    switch.set(YIELDING);
    let stop = Stop::default();
    let mut turns = 0;
    std::thread::scope(|scope| {
        let _over = stop.at_the_end();
        let looking = scope.spawn(|| {
            while !stop.is_told() {
                here.find("s").unwrap();
            }
        });
        let begun = Instant::now();
        while turns < 300 && begun.elapsed() < Duration::from_secs(5) {
            let turn = start(&session);
            turns += 1;
            let (stored, seen) = (store.standing("s").unwrap().head, session.position().head);
            let logged = session.logged();
            assert!(
                !looking.is_finished() && stored == logged && seen == stored,
                "{stored} stored, {seen} seen, {logged} logged"
            );
            end(&session, turn);
        }
    });
    assert_eq!(there.find("s").unwrap().position().last_turn, turns);
}

#[test]
fn a_look_that_a_turn_overtakes_ends_no_session() {
    let here = hub(&memory(), Duration::from_secs(10), Durability::Memory);
    let session = here.session(Some("s")).unwrap();
    let stop = Stop::default();
    let said = std::thread::scope(|scope| {
        let _over = stop.at_the_end();
        for _ in 0..4 {
            scope.spawn(|| {
                while !stop.is_told() {
                    let _ = here.find("s");
                }
            });
        }
        let begun = Instant::now();
        let turn = || {
            let turn = session.start_turn(TurnOptions::default())?.turn;
            say(&session, "a")?;
            session.end_turn(turn, Ending::default());
            Ok::<_, SessionError>(())
        };
        let mut said = Ok(());
        while said.is_ok() && begun.elapsed() < Duration::from_secs(2) {
            said = turn();
        }
        said
    });
    assert_eq!(said, Ok(()));
    assert!(Arc::ptr_eq(&here.find("s").unwrap(), &session), "it is the one that it was");
}

#[test]
fn an_emit_that_a_turn_s_end_overtakes_is_taken() {
    let here = hub(&memory(), Duration::from_secs(10), Durability::Process);
    let session = here.session(Some("s")).unwrap();
    let stop = Stop::default();
    std::thread::scope(|scope| {
        let over = stop.at_the_end();
        let aside = scope.spawn(|| {
            let mut said = Ok(0);
            while said.is_ok() && !stop.is_told() {
                said = say(&session, "a");
            }
            said
        });
        let begun = Instant::now();
        let mut started = Ok(());
        while started.is_ok() && begun.elapsed() < Duration::from_secs(2) {
            let turn = session.start_turn(TurnOptions::default()).map(|started| started.turn);
            started = turn.map(|turn| assert!(session.end_turn(turn, Ending::default())));
        }
        drop(over);
        assert_eq!((started, aside.join().unwrap().err()), (Ok(()), None));
    });
}

#[test]
fn a_refusal_names_the_store_s_reason_whenever_it_comes() {
    let store = memory();
    for round in 0..200 {
        let switch = Switch::new(&store);
        let here = hub(&(switch.clone() as Arc<dyn LogStore>), Duration::from_secs(10), Durability::Process);
        let session = here.session(Some(&format!("s{round}"))).unwrap();
        let turn = start(&session);
        std::thread::scope(|scope| {
            scope.spawn(|| switch.set(FAILING));
            let begun = Instant::now();
            let refused = loop {
                if let Err(error) = say_in(&session, turn, "a") {
                    break error;
                }
                assert!(begun.elapsed() < LIMIT, "the store's failure is never told");
            };
            assert!(matches!(refused, SessionError::Store(StoreError::Io(_))), "round {round}: {refused:?}");
        });
    }
}

#[test]
fn a_store_that_is_away_costs_memory_and_time_within_bounds() {
    let store = memory();
    let switch = Switch::new(&store);
    let hub = hub(&(switch.clone() as Arc<dyn LogStore>), Duration::from_secs(10), Durability::Process);
    let session = hub.session(Some("s")).unwrap();
    let turn = start(&session);
    switch.set(1);
    let mut emitted = 1_u64;
    let refused = loop {
        let before = Instant::now();
        let said = say(&session, "x");
        assert!(before.elapsed() < PATIENCE * 20, "an emit has its limit"); // without one it waits for the store
        match said {
            Ok(seq) => emitted = seq,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, SessionError::Store(StoreError::Unavailable(_))), "{refused}");
    assert!((BACKLOG_EVENTS as u64..BACKLOG_EVENTS as u64 + 10).contains(&emitted), "{emitted}");
    switch.set(0);
    until("all of it is sent", || session.position().head == emitted);
    end(&session, turn);
    assert_eq!(store.standing("s").unwrap().head, session.position().head);
}

#[test]
fn a_failover_that_forgets_is_answered_by_sending_again() {
    for seed in [3, 5, 8] {
        let store: Arc<dyn LogStore> = Arc::new(chaos::Chaos::new(memory(), seed, true));
        let here = hub(&store, Duration::from_secs(60), Durability::Process);
        let session = loop {
            if let Ok(session) = here.session(Some("s")) {
                break session;
            }
        };
        let turn = loop {
            if let Ok(started) = session.start_turn(TurnOptions::default()) {
                break started.turn;
            }
        };
        for i in 0..500 {
            say(&session, &format!("{i},")).unwrap();
            if i % 20 == 0 {
                until("it is stored", || session.flush());
            }
        }
        until("it is stored", || session.flush());
        session.end_turn(turn, Ending::default());
        let lines = read_turn(&session);
        let there = hub(&store, Duration::from_secs(60), Durability::Process);
        until("the end is stored", || {
            there.session(Some("s")).is_ok_and(|other| other.position().head == session.position().head)
        });
        assert_eq!(read_turn(&there.session(Some("s")).unwrap()), lines);
    }
}

#[test]
fn a_cancel_finds_the_process_that_writes() {
    let (here, there) = two_hubs(&memory());
    let session = here.session(Some("s")).unwrap();
    let turn = start(&session);
    assert!(session.flush());
    assert!(there.session(Some("s")).unwrap().cancel("user"));
    until("the turn is cancelled", || session.is_cancelled(turn));
    let other = there.session(Some("s")).unwrap();
    let lines = read_turn(&other);
    assert!(lines.last().unwrap().contains(r#""status":"cancelled","reason":"user""#));
    assert!(!other.cancel("again"));
    assert_eq!(other.look(|state| state.outcome.as_ref().map(|end| end.status)), Some(Status::Cancelled));
}

#[test]
fn a_deleted_session_ends_everywhere() {
    let (here, there) = two_hubs(&memory());
    let session = here.session(Some("s")).unwrap();
    start(&session);
    assert!(session.flush());
    let other = there.session(Some("s")).unwrap();
    let epoch = other.epoch().clone();
    let reading = std::thread::spawn(move || read_until(&other, None, Follow::Session, |_| false));
    let beside = session.clone();
    let beside = std::thread::spawn(move || kinds(&read_until(&beside, None, Follow::Session, |_| false)));
    until("a reader waits", || session.readers() == 1);
    assert_eq!(here.remove("s"), Ok(true));
    assert_eq!(beside.join().unwrap(), ["turn_start", "completion", "session_end"], "who reads where it is deleted is told");
    reading.join().unwrap();
    assert!(matches!(there.find("s"), Err(SessionError::Unknown)));
    assert_eq!(here.remove("s"), Ok(false));
    assert_ne!(*there.session(Some("s")).unwrap().epoch(), epoch, "a new life");
    for bad in ["", "a b", "a/../b", "é", "{x}", &"x".repeat(129)] {
        assert!(matches!(here.session(Some(bad)), Err(SessionError::BadId)), "{bad}");
    }
}

#[test]
fn a_session_that_has_ended_stays_so() {
    let store = memory();
    let (here, there) = two_hubs(&store);
    let session = here.session(Some("s")).unwrap();
    end(&session, start(&session));
    session.close(Some("done"));
    assert!(session.flush());
    until("it is sealed", || store.standing("s").unwrap().sealed);
    let other = there.session(Some("s")).unwrap();
    assert_eq!(other.state_word(), "ended");
    assert!(matches!(other.start_turn(TurnOptions::default()), Err(SessionError::Closed(_))));
    assert_eq!(read_until(&other, None, Follow::Session, |_| false), read_until(&session, None, Follow::Session, |_| false));
}

/// What is beyond a session's limits is read back into its fold, deltas of ended turns unread: the state is the same.
#[test]
fn a_long_history_is_read_back_within_the_limits() {
    let store = memory();
    let small = Limits { max_events: 50, ..Limits::default() };
    let make = |limits| Hub::with_store(limits, store.clone(), StoreOptions::default(), None).unwrap();
    let whole = make(Limits::default());
    let session = whole.session(Some("s")).unwrap();
    for turn in 0..20 {
        let number = start(&session);
        for piece in 0..10 {
            say(&session, &format!("{turn}.{piece} ")).unwrap();
        }
        end(&session, number);
    }
    let short = make(small).session(Some("s")).unwrap();
    let messages = |session: &Session| session.see(turnstream_core::session::State::messages_json);
    assert_eq!(messages(&short), messages(&session));
    assert_eq!(short.result(), session.result());
    assert!(short.statistics().retained <= 50);
    assert_eq!(short.position().head, session.position().head);
    let lines = read_until(&session, None, Follow::None, |_| false);
    assert_eq!(lines.len() as u64, session.position().head);
    assert_eq!(read_until(&short, None, Follow::None, |_| false), lines, "and a reader gets all of it");
}
