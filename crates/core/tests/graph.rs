//! One session, many who write and many who read, in any order: what each reader gets is held against the whole history.
//!
//! Steps are taken one at a time, at the grain of the session's lock, by a scheduler that proptest drives and shrinks. A reader
//! that parked is not looked at again before its waker was called, as on an event loop: a lost wake-up is a reader that never
//! ends. What no step shows (two threads inside) is for the models and for the last test.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Wake, Waker};
use std::thread;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::Value;
use turnstream_core::event::{Class, Event, Payload};
use turnstream_core::reader::{Cursor, Follow, Item, Poll, ReadOptions, Reader, Status, belong_together};
use turnstream_core::session::{Ending, Limits, Session, State, Ticket, TurnOptions};

#[derive(Default)]
struct Called(AtomicBool);

impl Wake for Called {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Everything that was ever logged, from seq 1. Times are 0: they come from the clock.
type History = Vec<Event>;

fn timeless(event: &Event) -> Event {
    Event { time: 0, ..event.clone() }
}

fn text_of(event: &Event) -> &str {
    match &event.payload {
        Payload::TextDelta(delta) => &delta.text,
        Payload::ReasoningDelta(delta) => &delta.text,
        _ => panic!("not a text: {}", event.payload.kind()),
    }
}

/// A snapshot is the fold of all that came before it, but that an open message may lack an end of its text: deltas that have
/// left the log because its whole is there, and yet to come.
fn snapshot_agrees(snapshot: &str, history: &[Event]) {
    let mut state = State::default();
    for event in history {
        state.apply(event);
    }
    let mut folded: Value = serde_json::from_str(state.snapshot_json().as_str()).expect("JSON");
    let mut snapshot: Value = serde_json::from_str(snapshot).expect("JSON");
    let [Some(said), Some(all)] = [&mut snapshot, &mut folded].map(|state| state["messages"].as_array_mut()) else {
        panic!("no messages")
    };
    for (said, all) in said.iter_mut().zip(all).filter(|(said, _)| said["done"] == false) {
        for field in ["text", "reasoning"] {
            let [said, all] = [&mut *said, &mut *all].map(|message| message[field].take());
            assert!(all.as_str().unwrap_or_default().starts_with(said.as_str().unwrap_or_default()), "{said} of {all}");
        }
    }
    if let Some(completion) = snapshot["completion"].as_object_mut() {
        completion["time"] = 0.into();
    }
    for stage in snapshot["progress"].as_object_mut().into_iter().flat_map(serde_json::Map::values_mut) {
        stage["elapsed_s"] = 0.0.into();
    }
    for event in snapshot.get_mut("other_events").and_then(Value::as_array_mut).into_iter().flatten() {
        event["time"] = 0.into();
    }
    assert_eq!(snapshot, folded);
}

/// Holds what one reader is handed against the history.
struct Check {
    next: u64,
    trimmed: Option<u64>,
    last: Option<Event>,
}

impl Check {
    fn new(reader: &Reader) -> Self {
        Self { next: reader.cursor().seq() + 1, trimmed: None, last: None }
    }

    fn item(&mut self, history: &History, item: &Item) {
        let event = item.event();
        if let Some(head) = self.trimmed.take() {
            assert_eq!(event.payload.kind(), "snapshot", "history that left is told by a snapshot, at {head}");
        }
        match &event.payload {
            Payload::Gap(gap) => {
                assert_eq!(gap.first, self.next);
                assert!(gap.last >= gap.first);
                let missing = &history[gap.first as usize - 1..gap.last as usize];
                match &*gap.reason {
                    "trimmed" => self.trimmed = Some(gap.last),
                    "evicted" => assert!(missing.iter().all(|event| event.payload.class() == Class::Delta)),
                    other => panic!("{other}"),
                }
                self.next = gap.last + 1;
            }
            Payload::Snapshot(snapshot) => {
                let state = snapshot.state.as_ref().expect("a state");
                snapshot_agrees(state.as_str(), &history[..snapshot.head as usize]);
                self.next = snapshot.head + 1;
            }
            _ => {
                assert!(event.seq >= self.next, "strictly rising");
                let covered = &history[self.next as usize - 1..event.seq as usize];
                if let [one] = covered {
                    assert_eq!(one, &timeless(event));
                } else {
                    assert!(covered.windows(2).all(|two| belong_together(&two[0], &two[1])), "only neighbours become one");
                    assert_eq!(text_of(event), covered.iter().map(text_of).collect::<String>());
                }
                self.next = event.seq + 1;
            }
        }
        self.last = Some(event.clone());
    }
}

struct Reading {
    reader: Reader,
    check: Check,
    follow: Follow,
    head: u64,
    called: Arc<Called>,
    parked: bool,
    ended: bool,
}

impl Reading {
    fn new(session: &Arc<Session>, history: &History, options: &ReadOptions) -> Self {
        let reader = Reader::open(session, options).expect("opened");
        let head = history.len() as u64;
        let check = Check::new(&reader);
        Self { reader, check, follow: options.follow, head, called: Arc::default(), parked: false, ended: false }
    }

    /// Whether it did anything.
    fn step(&mut self, history: &History, max: usize) -> bool {
        if self.ended || (self.parked && !self.called.0.swap(false, Ordering::SeqCst)) {
            return false;
        }
        self.parked = false;
        let mut items = Vec::new();
        let poll = self.reader.poll(max, &mut items);
        assert_eq!(poll == Poll::Ready, !items.is_empty());
        for item in &items {
            self.check.item(history, item);
        }
        match poll {
            Poll::Ready => {}
            Poll::Pending => self.parked = self.reader.park(&Waker::from(self.called.clone())),
            Poll::End => {
                self.ended = true;
                self.may_end(history);
            }
        }
        true
    }

    fn may_end(&self, history: &History) {
        assert_eq!(self.check.trimmed, None);
        let read = self.check.next - 1;
        let all = history.last().is_some_and(|event| event.payload.kind() == "session_end") && read == history.len() as u64;
        let fair = match self.follow {
            Follow::None => read >= self.head,
            Follow::Session => false,
            Follow::Turn => {
                let completion = |event: &Event| event.payload.kind() == "completion";
                self.reader.status() == Status::Finished
                    || self.check.last.as_ref().is_some_and(completion)
                    || history[..read as usize].iter().rev().any(completion)
            }
        };
        assert!(fair || all, "{:?} ended at {read} of {}", self.follow, history.len());
    }
}

#[derive(Debug, Clone)]
enum Step {
    Start,
    End,
    Fail,
    Cancel,
    Delta { message: u8, text: String, reasoning: bool },
    Whole { message: u8 },
    Custom,
    Progress,
    Open { follow: Follow, merge: bool, window: u64, after: Option<u64> },
    Read { who: usize, max: usize },
    Leave { who: usize },
    Resume { who: usize },
    Produce,
    GiveUp,
}

fn step() -> impl Strategy<Value = Step> {
    let who = 0..8_usize;
    let follow = prop::sample::select(vec![Follow::Turn, Follow::Session, Follow::None]);
    let open = (follow, any::<bool>(), prop::sample::select(vec![0, 0, 1, 4]), prop::option::of(0..90_u64));
    prop_oneof![
        3 => Just(Step::Start),
        1 => Just(Step::End),
        1 => Just(Step::Fail),
        1 => Just(Step::Cancel),
        10 => (0..3_u8, "[a-zé]{0,3}", any::<bool>()).prop_map(|(message, text, reasoning)| Step::Delta { message, text, reasoning }),
        2 => (0..3_u8).prop_map(|message| Step::Whole { message }),
        3 => Just(Step::Custom),
        2 => Just(Step::Progress),
        3 => open.prop_map(|(follow, merge, window, after)| Step::Open { follow, merge, window, after }),
        10 => (who.clone(), 1..9_usize).prop_map(|(who, max)| Step::Read { who, max }),
        1 => who.clone().prop_map(|who| Step::Leave { who }),
        1 => who.prop_map(|who| Step::Resume { who }),
        3 => Just(Step::Produce),
        1 => Just(Step::GiveUp),
    ]
}

struct Graph {
    session: Arc<Session>,
    /// The same steps without limits: the whole history. That both log the same is half of what is to be shown.
    unlimited: Arc<Session>,
    history: History,
    readers: Vec<Reading>,
    /// A producer that is held back by pacing readers: it emits one event each time it may.
    ticket: Ticket,
    called: Arc<Called>,
    waiting: bool,
    turn: u32,
}

impl Graph {
    fn new(max_events: usize) -> Self {
        let session = Session::new("s", Limits { max_events, ..Limits::default() });
        let unlimited = Session::new("s", Limits::default());
        let (readers, ticket, called) = (Vec::new(), Ticket::default(), Arc::default());
        Self { session, unlimited, history: History::new(), readers, ticket, called, waiting: false, turn: 0 }
    }

    /// Does the same to both sessions.
    fn act<T: PartialEq + std::fmt::Debug>(&self, act: impl Fn(&Session) -> T) -> T {
        let done = act(&self.session);
        assert_eq!(done, act(&self.unlimited));
        done
    }

    fn emit(&self, turn: Option<u32>, kind: &str, json: &str) -> bool {
        let (payload, _) = Payload::from_json(kind, json).expect("a payload");
        self.act(|session| session.emit(turn, payload.clone(), None)).is_ok()
    }

    fn look(&mut self) {
        let mut entries = Vec::new();
        self.unlimited.page(self.history.len() as u64, usize::MAX, usize::MAX, true, &mut entries);
        for entry in entries {
            assert_eq!(entry.event.seq, self.history.len() as u64 + 1, "dense");
            self.history.push(timeless(&entry.event));
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Start => {
                let running = self.session.is_running(self.turn);
                let started = self.act(|session| session.start_turn(TurnOptions::default()));
                assert_eq!(started.is_err(), running);
                self.turn = started.map_or(self.turn, |started| started.turn);
            }
            Step::End => {
                let running = self.session.is_running(self.turn);
                assert_eq!(self.act(|session| session.end_turn(self.turn, Ending::default())), running);
                let late = self.turn > 0 && self.emit(Some(self.turn), "custom", r#"{"name":"late"}"#);
                assert!(!late, "nothing follows a completion");
            }
            Step::Fail => drop(self.act(|session| session.fail_turn(self.turn, "code", "message"))),
            Step::Cancel => drop(self.act(|session| session.cancel("cancelled"))),
            Step::Delta { message, text, reasoning } => {
                let kind = if reasoning { "reasoning_delta" } else { "text_delta" };
                self.emit(None, kind, &format!(r#"{{"message_id":"m{}-{message}","text":"{text}"}}"#, self.turn));
            }
            Step::Whole { message } => {
                let id = format!("m{}-{message}", self.turn);
                let said = self.session.look(|state| state.message(&id).map(|at| state.messages[at].text.clone()));
                let text = said.unwrap_or_default() + "!";
                self.emit(None, "assistant_message", &format!(r#"{{"message_id":"{id}","text":"{text}"}}"#));
            }
            Step::Custom => drop(self.emit(None, "custom", &format!(r#"{{"name":"n","data":{}}}"#, self.history.len()))),
            Step::Progress => drop(self.emit(None, "progress", r#"{"stage":"s","current":1}"#)),
            Step::Open { follow, merge, window, after } => {
                let after = after.map(|seq| Cursor::new(self.session.epoch(), seq));
                let options = ReadOptions {
                    after,
                    follow,
                    merge,
                    pace_window: window,
                    fail_on_trim: false,
                    state_first: false,
                    history: true,
                };
                self.readers.push(Reading::new(&self.session, &self.history, &options));
            }
            Step::Read { who, max } => {
                if let Some(reading) = self.readers.get_mut(who) {
                    reading.step(&self.history, max);
                }
            }
            Step::Leave { who } => {
                if who < self.readers.len() {
                    self.readers.remove(who);
                }
            }
            Step::Resume { who } => {
                if let Some(reading) = self.readers.get_mut(who) {
                    let after = Some(reading.reader.cursor());
                    let options = ReadOptions { after, follow: Follow::Session, ..ReadOptions::default() };
                    *reading = Reading::new(&self.session, &self.history, &options);
                }
            }
            Step::Produce => self.produce(),
            Step::GiveUp => {
                self.session.leave_producing(&mut self.ticket);
                self.waiting = false;
            }
        }
        self.look();
    }

    fn produce(&mut self) {
        if self.waiting && !self.called.0.swap(false, Ordering::SeqCst) {
            return;
        }
        self.waiting = self.session.wait_to_produce(&Waker::from(self.called.clone()), &mut self.ticket);
        if !self.waiting {
            self.emit(None, "custom", r#"{"name":"paced"}"#);
        }
    }

    /// Lets everybody go on until nobody can: then all must have ended.
    fn finish(mut self) {
        self.act(|session| session.close(None));
        self.look();
        while self.readers.iter_mut().any(|reading| reading.step(&self.history, 5)) {}
        for (who, reading) in self.readers.iter().enumerate() {
            assert!(reading.ended, "reader {who} is stuck before {}", reading.check.next);
        }
        assert!(!self.waiting || self.called.0.load(Ordering::SeqCst), "the producer is stuck");
        self.readers.clear();
        self.session.leave_producing(&mut self.ticket);
        assert_eq!((self.session.readers(), self.session.waiting()), (0, (0, 0)));
        self.ends();
        self.texts();
    }

    fn ends(&self) {
        for turn in 1..=self.turn {
            let its: Vec<_> = self.history.iter().filter(|event| event.context.turn == turn).collect();
            let completions = its.iter().filter(|event| event.payload.kind() == "completion").count();
            assert_eq!((completions, its.last().map(|event| event.payload.kind())), (1, Some("completion")), "turn {turn}");
        }
    }

    fn texts(&self) {
        let mut said = BTreeMap::<&str, String>::new();
        for event in &self.history {
            match &event.payload {
                Payload::TextDelta(delta) => said.entry(&delta.message_id).or_default().push_str(&delta.text),
                Payload::MessageReset(reset) => drop(said.remove(&*reset.message_id)),
                Payload::AssistantMessage(whole) => {
                    assert_eq!(said.get(&*whole.message_id).map_or("", String::as_str), &*whole.text, "{}", whole.message_id);
                }
                _ => {}
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn every_reader_sees_one_history(max_events in 16..60_usize, steps in prop::collection::vec(step(), 1..160)) {
        let mut graph = Graph::new(max_events);
        for step in steps {
            graph.step(step);
        }
        graph.finish();
    }
}

struct Unpark(thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Reads to the end on this thread. Returns, of each emitter, how many of its events came, and how often some were announced as
/// missing.
fn read_to_the_end(mut reader: Reader, merges: bool) -> ([u64; 3], usize) {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let (mut next, mut missing, mut items) = (reader.cursor().seq() + 1, 0, Vec::new());
    let (mut came, mut last, mut merged_from) = ([0; 3], [None; 3], 0);
    loop {
        let poll = reader.poll(16, &mut items);
        for item in items.drain(..) {
            let event = item.event();
            match &event.payload {
                Payload::Gap(gap) => {
                    assert_eq!(gap.first, next);
                    next = gap.last + 1;
                    missing += usize::from(&*gap.reason != "evicted"); // those are deltas, and their whole comes
                }
                Payload::Snapshot(snapshot) => {
                    next = snapshot.head + 1;
                    missing += 1;
                }
                Payload::Custom(custom) => {
                    assert_eq!(event.seq, next);
                    next += 1;
                    let who: usize = custom.name.parse().expect("an emitter");
                    let number: u64 = custom.data.as_ref().expect("a number").as_str().parse().expect("a number");
                    let expected = last[who].map_or(0, |last: u64| last + 1);
                    assert!(number == expected || missing > 0 && number > expected, "{number} of {who} after {:?}", last[who]);
                    last[who] = Some(number);
                    came[who] += 1;
                }
                _ => {
                    let whole = event.payload.class() == Class::Delta && merges;
                    assert!(event.seq == next || (whole && event.seq > next), "{} at {next}", event.seq);
                    merged_from += event.seq - next;
                    next = event.seq + 1;
                }
            }
        }
        match poll {
            Poll::End => break,
            Poll::Pending if reader.park(&waker) => thread::park(),
            _ => {}
        }
    }
    assert!(merges || merged_from == 0);
    (came, missing)
}

#[test]
fn threads_that_write_and_threads_that_read() {
    const EACH: u64 = 3_000;
    let session = Session::new("s", Limits { max_events: 256, ..Limits::default() });
    let (tell, told) = std::sync::mpsc::channel();
    let mut readings = Vec::new();
    for number in 0..8_u64 {
        let (session, tell, merge) = (session.clone(), tell.clone(), number % 2 == 1);
        // Those that pace are never further behind than the log is long: they miss nothing.
        let options = ReadOptions { follow: Follow::Session, merge, pace_window: 64, ..ReadOptions::default() };
        let paces = (number < 2).then(|| Reader::open(&session, &options).expect("opened"));
        let reading = thread::spawn(move || {
            while session.position().head < number.saturating_sub(3) * 1000 {
                thread::yield_now(); // the late ones
            }
            let options = ReadOptions { pace_window: 0, ..options };
            let reader = paces.unwrap_or_else(|| Reader::open(&session, &options).expect("opened"));
            let read = read_to_the_end(reader, merge);
            tell.send("reader").expect("heard");
            read
        });
        readings.push((number < 2, reading));
    }
    let emit = |session: &Session, turn, kind, json: String| {
        let (payload, _) = Payload::from_json(kind, &json).expect("a payload");
        session.emit(turn, payload, None)
    };
    for who in 0..3 {
        let (session, tell) = (session.clone(), tell.clone());
        thread::spawn(move || {
            for number in 0..EACH {
                wait_to_produce(&session);
                emit(&session, None, "custom", format!(r#"{{"name":"{who}","data":{number}}}"#)).expect("taken");
            }
            tell.send("emitter").expect("heard");
        });
    }
    let turns = session.clone();
    thread::spawn(move || {
        for number in 0..200_u32 {
            wait_to_produce(&turns);
            let turn = turns.start_turn(TurnOptions::default()).expect("started").turn;
            for _ in 0..8 {
                let _ = emit(&turns, Some(turn), "text_delta", format!(r#"{{"message_id":"m{number}","text":"x"}}"#));
            }
            if number % 3 == 0 {
                turns.cancel("cancelled")
            } else {
                turns.end_turn(turn, Ending::default())
            };
        }
        tell.send("turns").expect("heard");
    });
    let hear = |what: &str| told.recv_timeout(Duration::from_secs(30)).unwrap_or_else(|_| panic!("stuck: {what}"));
    for _ in 0..4 {
        assert_ne!(hear("a producer"), "reader");
    }
    session.close(None);
    for _ in 0..8 {
        assert_eq!(hear("a reader"), "reader");
    }
    for (paces, reading) in readings {
        let (came, missing) = reading.join().expect("read");
        assert!(!paces || (came, missing) == ([EACH; 3], 0), "{came:?}, {missing} times some were missing");
    }
    assert_eq!((session.readers(), session.waiting()), (0, (0, 0)));
}

fn wait_to_produce(session: &Session) {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut ticket = Ticket::default();
    while session.wait_to_produce(&waker, &mut ticket) {
        thread::park();
    }
}
