//! Every interleaving of a reader and a producer, by loom. Each model names the line that it guards: without it, it fails.

use std::sync::Arc;
use std::task::{Wake, Waker};

use loom::sync::Notify;
use loom::thread;

use super::{Ending, Limits, Session, Ticket, TurnOptions};
use crate::event::Payload;
use crate::reader::{Follow, Item, Poll, ReadOptions, Reader};

struct Bell(Notify);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.notify();
    }
}

fn session() -> Arc<Session> {
    session_of(Limits::default())
}

fn session_of(limits: Limits) -> Arc<Session> {
    let session = Session::new("s", limits);
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

/// Guards: in `park`, looking under the lock that registers (`inner.seen_head() > seq ||`); in `change`, waking the waiters.
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

/// Guards: in `close`, that the flag is set in the change that logs the end: before it, a reader would leave without the end.
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
    let mut ticket = Ticket::default();
    while session.wait_to_produce(&waker, &mut ticket) {
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

/// Guards: in `Reader::close`, `self.unpark()`: a reader that leaves while parked leaves nothing, also where a publish has called
/// it meanwhile; and the producer that it held back goes on.
#[test]
fn the_last_reader_leaves_while_a_publish_wakes_it() {
    loom::model(|| {
        let session = session();
        let mut last = reader(&session, 1);
        let bell = Arc::new(Bell(Notify::new()));
        let leaving = {
            let waker = Waker::from(bell.clone());
            thread::spawn(move || {
                while last.poll(8, &mut Vec::new()) == Poll::Ready {}
                last.park(&waker);
            })
        };
        wait_to_produce(&session);
        session.emit(None, progress(), None).unwrap();
        wait_to_produce(&session);
        leaving.join().unwrap();
        assert_eq!((session.readers(), session.waiting()), (0, (0, 0)));
        assert_eq!(Arc::strong_count(&bell), 1);
    });
}

/// Guards: in `Session::page`, that the fold of what left is taken under the lock that copies what is left: nothing leaves
/// between the two.
#[test]
fn an_eviction_meets_a_read() {
    loom::model(|| {
        let session = session_of(Limits { max_events: 1, ..Limits::default() });
        let mut reader = reader(&session, 0);
        let evicting = {
            let session = session.clone();
            thread::spawn(move || (0..2).for_each(|_| assert!(session.emit(None, progress(), None).is_ok())))
        };
        let (mut items, mut next) = (Vec::new(), 1);
        reader.poll(8, &mut items);
        evicting.join().unwrap();
        reader.poll(8, &mut items);
        let mut items = items.iter().map(Item::event);
        while let Some(event) = items.next() {
            if let Payload::Gap(gap) = &event.payload {
                assert_eq!((gap.first, &*gap.reason), (next, "trimmed"));
                let Some(Payload::Snapshot(snapshot)) = items.next().map(|event| &event.payload) else { panic!("no snapshot") };
                assert_eq!(snapshot.head, gap.last);
                next = gap.last + 1;
            } else {
                assert_eq!(event.seq, next);
                next += 1;
            }
        }
        assert_eq!(next, 4);
    });
}

/// Guards: in `Waiters::leave`, that it takes out its own: who leaves takes nobody else's call along, and comes back to news.
#[test]
fn a_cancelled_wait_meets_a_wake() {
    loom::model(|| {
        let session = session();
        let mut waits = reader(&session, 0);
        let mut leaves = reader(&session, 0);
        let bell = Arc::new(Bell(Notify::new()));
        let waker = Waker::from(bell.clone());
        while waits.poll(8, &mut Vec::new()) == Poll::Ready {}
        while leaves.poll(8, &mut Vec::new()) == Poll::Ready {}
        assert!(waits.park(&waker) && leaves.park(Waker::noop()));
        let leaving = thread::spawn(move || {
            leaves.unpark();
            read(&mut leaves, "progress")
        });
        let emitting = {
            let session = session.clone();
            thread::spawn(move || assert!(session.emit(None, progress(), None).is_ok()))
        };
        while waits.poll(8, &mut Vec::new()) != Poll::Ready {
            bell.0.wait();
        }
        emitting.join().unwrap();
        assert_eq!(leaving.join().unwrap(), ["progress"]);
    });
}

/// Guards: in `cancel` and in `end_with`, asking whether the turn runs under the lock that ends it; in `enter`, the same.
#[test]
fn a_cancel_meets_an_end_and_an_append() {
    loom::model(|| {
        let session = session();
        let ending = {
            let session = session.clone();
            thread::spawn(move || session.end_turn(1, Ending::default()))
        };
        let emitting = {
            let session = session.clone();
            thread::spawn(move || session.emit(Some(1), progress(), None).is_ok())
        };
        let cancelled = session.cancel("cancelled");
        assert_ne!(ending.join().unwrap(), cancelled);
        let said = emitting.join().unwrap();
        session.close(None);
        let kinds = read(&mut reader(&session, 0), "session_end");
        let expected: &[_] = if said {
            &["turn_start", "progress", "completion", "session_end"]
        } else {
            &["turn_start", "completion", "session_end"]
        };
        assert_eq!(kinds, expected);
    });
}

/// Guards: in `on_cancel`, `if self.is_cancelled(turn)` after the look under the lock: the hook is called, once.
#[test]
fn a_cancel_meets_its_hook() {
    loom::model(|| {
        let session = session();
        let called = Arc::new(loom::sync::atomic::AtomicUsize::new(0));
        let binding = {
            let (session, called) = (session.clone(), called.clone());
            thread::spawn(move || {
                session.on_cancel(
                    1,
                    Box::new(move || {
                        called.fetch_add(1, loom::sync::atomic::Ordering::SeqCst);
                    }),
                );
            })
        };
        session.cancel("cancelled");
        binding.join().unwrap();
        assert_eq!(called.load(loom::sync::atomic::Ordering::SeqCst), 1);
    });
}
