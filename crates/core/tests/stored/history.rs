//! What has left the memory of a session, read from its store.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Waker;
use std::time::Duration;

use turnstream_core::reader::{Cursor, Follow, Poll, ReadOptions, Reader, Status as Taken};
use turnstream_core::session::{Hub, Limits, Session, SessionError, StoreOptions};
use turnstream_core::store::{Append, Durability, LogStore, StoreError};

use crate::kit::{DAMAGED, LIMIT, Switch, Unpark, WAITING, end, hub, kinds, memory, read_until, say, start, until};

/// A session of `turns` turns, 21 events each, of which its process keeps 50 in memory.
fn long(store: &Arc<dyn LogStore>, turns: u32) -> (Hub, Arc<Session>) {
    let small = Limits { max_events: 50, ..Limits::default() };
    let hub = Hub::with_store(small, store.clone(), StoreOptions::default(), None).unwrap();
    let session = hub.session(Some("s")).unwrap();
    for turn in 0..turns {
        let number = start(&session);
        for piece in 0..18 {
            say(&session, &format!("{turn}.{piece} ")).unwrap();
        }
        end(&session, number);
    }
    assert!(session.flush());
    assert!(session.statistics().retained <= 50);
    (hub, session)
}

/// The events `first..=last`, each once and in order, and nothing else.
fn assert_all(lines: &[String], first: u64, last: u64) {
    assert_eq!(lines.len() as u64, last + 1 - first);
    for (line, seq) in lines.iter().zip(first..) {
        assert!(line.contains(&format!("\"seq\":{seq},")), "{line} instead of {seq}");
    }
}

#[test]
fn what_has_left_the_memory_is_read_from_the_store() {
    let store = memory();
    let (_hub, session) = long(&store, 200);
    let head = session.position().head;
    assert!(head > 4000 && session.earliest() == Some(1));
    assert!(session.status_json().as_str().contains(&format!("\"earliest_cursor\":\"{}.0\"", session.epoch())));
    let open = |options| Reader::open(&session, &options).unwrap();
    let at = |seq| Some(Cursor::new(session.epoch(), seq));
    for (after, taken) in [(0, Taken::Resumed), (1500, Taken::Resumed), (head - 3, Taken::Resumed), (head, Taken::Finished)] {
        let options = ReadOptions { after: at(after), follow: Follow::None, fail_on_trim: true, ..ReadOptions::default() };
        assert_eq!(open(options).status(), taken);
        let cursor = format!("{}.{after}", session.epoch());
        let lines = read_until(&session, Some(&cursor), Follow::None, |_| false);
        assert_all(&lines, after + 1, head);
    }
    // Where it is to wait for nothing, and where the state comes first, the fold stands for it.
    for options in [
        ReadOptions { history: false, ..ReadOptions::default() },
        ReadOptions { after: at(5), state_first: true, ..ReadOptions::default() },
    ] {
        let mut reader = open(options);
        let mut items = Vec::new();
        assert_eq!(reader.poll(1, &mut items), Poll::Ready);
        assert_eq!(items[0].event().payload.kind(), "snapshot");
    }
    // A session that is followed has the same, and so has one that goes on meanwhile.
    let there = hub(&store, Duration::from_secs(10), Durability::Process);
    let other = there.session(Some("s")).unwrap();
    let last = head + 22;
    let reading = std::thread::spawn(move || read_until(&other, Some("0"), Follow::Session, |lines| lines.len() as u64 >= last));
    let turn = start(&session);
    (0..18).for_each(|_| assert!(say(&session, "more").is_ok()));
    end(&session, turn);
    assert_eq!(session.position().head, last);
    assert_all(&reading.join().unwrap(), 1, last);
}

/// Neither the reader's thread nor the session waits while the store is read.
#[test]
fn a_page_that_is_long_in_coming_holds_nobody_up() {
    let store = memory();
    let switch = Switch::new(&store);
    let (_hub, session) = long(&(switch.clone() as Arc<dyn LogStore>), 20);
    let turn = start(&session);
    switch.set(WAITING);
    let before = switch.reads.load(Ordering::SeqCst);
    let mut items = Vec::new();
    let options = ReadOptions { follow: Follow::Session, ..ReadOptions::default() };
    let mut readers: Vec<_> = (0..50).map(|_| Reader::open(&session, &options).unwrap()).collect();
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    for reader in &mut readers {
        assert_eq!(reader.poll(64, &mut items), Poll::Pending);
        assert!(reader.park(&waker));
    }
    until("the store is asked", || switch.reads.load(Ordering::SeqCst) == before + 1);
    // Others read and write.
    say(&session, "live").unwrap();
    end(&session, turn);
    let last = format!("{}.{}", session.epoch(), session.position().head - 1);
    assert_eq!(kinds(&read_until(&session, Some(&last), Follow::None, |_| false)), ["completion"]);
    for reader in &mut readers {
        assert_eq!(reader.poll(64, &mut items), Poll::Pending);
        assert!(reader.park(&waker), "news is no page");
    }
    readers.truncate(40); // ten leave meanwhile
    switch.set(0);
    for reader in &mut readers {
        while reader.poll(64, &mut items) == Poll::Pending {
            assert!(
                !reader.park(&waker) || {
                    std::thread::park_timeout(LIMIT);
                    true
                }
            );
        }
        assert_eq!(items.drain(..).next().unwrap().event().seq, 1);
    }
    assert_eq!(switch.reads.load(Ordering::SeqCst), before + 1, "one page serves all who are there");
}

/// What the store will not give is announced, with its reason, and the fold stands for it.
#[test]
fn a_page_that_does_not_come_is_told() {
    let store = memory();
    let switch = Switch::new(&store);
    let (_hub, session) = long(&(switch.clone() as Arc<dyn LogStore>), 20);
    switch.set(DAMAGED);
    let lines = read_until(&session, None, Follow::None, |_| false);
    assert_eq!(kinds(&lines)[..2], ["gap", "snapshot"]);
    assert!(lines[0].contains(r#""first":1,"#) && lines[0].contains(r#""reason":"store_corrupt""#), "{}", lines[0]);
    switch.set(0);
    assert_all(&read_until(&session, None, Follow::None, |_| false), 1, session.position().head);
    let store = memory();
    let (_hub, session) = long(&store, 20);
    store.delete("s").unwrap();
    let lines = read_until(&session, None, Follow::None, |_| false);
    assert!(lines[0].contains(r#""reason":"trimmed""#), "{}", lines[0]);
}

/// Readers that come anywhere and step as they like, while what they read leaves the memory under them.
#[test]
fn readers_of_any_pace_see_one_history() {
    let store = memory();
    let (_hub, session) = long(&store, 3);
    let last = session.position().head + 60 * 22;
    std::thread::scope(|scope| {
        for number in 1..=6_u64 {
            let session = &session;
            scope.spawn(move || {
                let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
                let mut dice = number;
                let mut roll = |sides: u64| {
                    dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(number);
                    (dice >> 33) % sides
                };
                let (mut items, mut seq) = (Vec::new(), 0);
                while seq < last {
                    // Comes anew, somewhere before where it was, and reads a while.
                    seq -= roll(seq.min(70) + 1);
                    let after = Some(Cursor::new(session.epoch(), seq));
                    let options = ReadOptions { after, follow: Follow::Session, ..ReadOptions::default() };
                    let mut reader = Reader::open(session, &options).unwrap();
                    for _ in 0..=roll(12) {
                        let poll = reader.poll(1 + roll(40) as usize, &mut items);
                        for item in items.drain(..) {
                            seq += 1;
                            assert_eq!(item.event().seq, seq, "{}", item.event().to_json());
                        }
                        if poll == Poll::Pending && seq < last && reader.park(&waker) {
                            std::thread::park_timeout(LIMIT);
                        }
                    }
                }
            });
        }
        for _ in 0..60 {
            let turn = start(&session);
            (0..18).for_each(|_| assert!(say(&session, "more").is_ok()));
            end(&session, turn);
        }
    });
    assert_eq!(session.position().head, last);
}

/// What a newer program may have written.
#[test]
fn a_session_with_an_event_of_an_unknown_type_is_refused() {
    let store = memory();
    let fence = store.claim("s", "newer", "epoch", Duration::ZERO).unwrap().fence;
    let data = b"{\"type\":\"from_the_future\",\"seq\":1,\"session\":\"s\",\"turn\":0,\"round\":0,\"time\":1}\n";
    assert_eq!(store.append(&[Append { session: "s", fence, first: 1, last: 1, ended: None, data }]), [Ok(1)]);
    let hub = hub(&store, Duration::from_secs(10), Durability::Process);
    for _ in 0..2 {
        assert!(matches!(hub.session(Some("s")), Err(SessionError::Store(StoreError::Corrupt(_)))));
    }
    assert_eq!(store.read("s", 0, 1 << 20).unwrap().blocks.concat(), data);
}
