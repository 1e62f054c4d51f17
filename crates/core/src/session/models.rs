//! Every interleaving of a reader and a producer, by loom. Each model names the line that it guards: without it, it fails.

use std::sync::Arc;
use std::task::{Wake, Waker};

use loom::sync::Notify;
use loom::thread;

use super::{Limits, Session, TurnOptions};
use crate::event::Payload;
use crate::reader::{Follow, Item, Poll, ReadOptions, Reader};

struct Bell(Notify);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.notify();
    }
}

fn session() -> Arc<Session> {
    let session = Session::new("s", Limits::default());
    session.start_turn(TurnOptions::default()).unwrap();
    session
}

fn progress() -> Payload {
    let (payload, _) = Payload::from_json("progress", r#"{"stage":"s"}"#).unwrap();
    payload
}

fn reader(session: &Arc<Session>, pace_window: u64) -> Reader {
    let options = ReadOptions { follow: Follow::Session, pace_window, ..ReadOptions::default() };
    Reader::open(session, &options).unwrap()
}

/// Reads until the end or an event of `last`; the kinds of what came.
fn read(reader: &mut Reader, last: &str) -> Vec<&'static str> {
    let bell = Arc::new(Bell(Notify::new()));
    let waker = Waker::from(bell.clone());
    let mut items = Vec::new();
    loop {
        let poll = reader.poll(8, &mut items);
        let kinds: Vec<_> = items.iter().map(|item: &Item| item.event().payload.kind()).collect();
        if poll == Poll::End || kinds.last() == Some(&last) {
            return kinds;
        }
        if poll == Poll::Pending && reader.park(&waker) {
            bell.0.wait();
        }
    }
}

/// Guards: in `park`, looking under the lock that registers (`inner.log.head > seq ||`); in `change`, waking the waiters.
#[test]
fn a_publish_meets_a_reader_that_parks() {
    loom::model(|| {
        let session = session();
        let mut reader = reader(&session, 0);
        let reading = thread::spawn(move || read(&mut reader, "progress"));
        session.emit(None, progress(), None).unwrap();
        assert_eq!(reading.join().unwrap(), ["turn_start", "progress"]);
    });
}

/// Guards: in `close`, that the end is logged and the flag set in one change.
#[test]
fn a_close_meets_a_reader_that_parks() {
    loom::model(|| {
        let session = session();
        let mut reader = reader(&session, 0);
        let reading = thread::spawn(move || read(&mut reader, ""));
        session.close(None);
        assert_eq!(reading.join().unwrap(), ["turn_start", "completion", "session_end"]);
    });
}

/// Guards: in `close`, `inner.closed = true` under the lock that appends: nothing follows the end.
#[test]
fn a_close_meets_an_append() {
    loom::model(|| {
        let session = session();
        let emitter = {
            let session = session.clone();
            thread::spawn(move || session.emit(None, progress(), None).is_ok())
        };
        session.close(None);
        let emitted = emitter.join().unwrap();
        let kinds = read(&mut reader(&session, 0), "");
        assert_eq!(kinds.contains(&"progress"), emitted);
        assert_eq!(kinds.last(), Some(&"session_end"));
    });
}

fn wait_to_produce(session: &Session) {
    let bell = Arc::new(Bell(Notify::new()));
    let waker = Waker::from(bell.clone());
    while !session.may_produce(Some(&waker)) {
        bell.0.wait();
    }
}

/// Guards: in `advance`, storing the place before the waiters are taken.
#[test]
fn a_pacing_reader_that_advances_meets_a_producer_that_waits() {
    loom::model(|| {
        let session = session();
        let mut pacing = reader(&session, 1);
        let advancing = thread::spawn(move || {
            pacing.poll(8, &mut Vec::new());
            pacing.poll(8, &mut Vec::new()); // says that what the first gave has been consumed
            pacing
        });
        wait_to_produce(&session);
        drop(advancing.join().unwrap());
    });
}

/// Guards: in `leave_pace`, waking the producers: none waits for a reader that is gone.
#[test]
fn a_pacing_reader_that_leaves_meets_a_producer_that_waits() {
    loom::model(|| {
        let session = session();
        let pacing = reader(&session, 1);
        let leaving = thread::spawn(move || drop(pacing));
        wait_to_produce(&session);
        leaving.join().unwrap();
    });
}
