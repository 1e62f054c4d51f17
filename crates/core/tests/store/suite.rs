//! What every store does: `suite!` runs all of it on one, and again behind [`crate::chaos::Chaos`].

use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use turnstream_core::store::{Append, Claim, LogStore, Retention, StoreError};

pub type Store = Arc<dyn LogStore>;

pub const LEASE: Duration = Duration::from_secs(60);

/// Repeats what a store could not say for sure.
pub fn sure<T>(mut call: impl FnMut() -> Result<T, StoreError>) -> Result<T, StoreError> {
    for _ in 0..1000 {
        match call() {
            Err(error) if error.is_transient() => {}
            answer => return answer,
        }
    }
    panic!("a store that never answers");
}

pub fn claim(store: &Store, session: &str, owner: &str) -> Result<Claim, StoreError> {
    sure(|| store.claim(session, owner, "epoch", LEASE))
}

/// `first..=last` as a block; each line says its seq and is as long as a short event.
pub fn block(first: u64, last: u64) -> Vec<u8> {
    (first..=last)
        .flat_map(|seq| format!("{{\"type\":\"text_delta\",\"seq\":{seq},\"text\":\"piece {seq}\"}}\n").into_bytes())
        .collect()
}

pub fn append(store: &Store, session: &str, fence: u64, first: u64, last: u64) -> Result<u64, StoreError> {
    let data = block(first, last);
    sure(|| store.append(&[Append { session, fence, first, last, ended: None, data: &data }]).remove(0))
}

/// Everything after `after`, a page at a time, as one text.
pub fn read_all(store: &Store, session: &str, mut after: u64, page: usize) -> String {
    let mut all = Vec::new();
    loop {
        let tail = sure(|| store.read(session, after, page)).unwrap();
        if tail.blocks.is_empty() {
            return String::from_utf8(all).unwrap();
        }
        all.extend(tail.blocks.iter().flat_map(|block| block.iter().copied()));
        assert!(tail.last > after, "a page goes on");
        after = tail.last;
    }
}

pub fn text(first: u64, last: u64) -> String {
    String::from_utf8(block(first, last)).unwrap()
}

/// Invariant 1.
pub fn appends_follow_the_head(store: &Store) {
    let fence = claim(store, "s", "a").unwrap().fence;
    assert_eq!(append(store, "s", fence, 2, 2), Err(StoreError::NotNext { head: 0 }));
    assert_eq!(append(store, "s", fence, 1, 3), Ok(3));
    assert_eq!(append(store, "s", fence, 3, 5), Err(StoreError::NotNext { head: 3 }), "half known, half new");
    assert_eq!(append(store, "s", fence, 5, 5), Err(StoreError::NotNext { head: 3 }));
    assert_eq!(append(store, "s", fence, 4, 4), Ok(4));
    assert_eq!(append(store, "nobody", fence, 1, 1), Err(StoreError::Unknown));
    assert_eq!(read_all(store, "s", 0, 1 << 20), text(1, 4));
}

/// Invariant 4.
pub fn repeated_appends_add_nothing(store: &Store) {
    let fence = claim(store, "s", "a").unwrap().fence;
    for (first, last) in [(1, 2), (1, 2), (3, 3), (1, 2), (3, 3)] {
        append(store, "s", fence, first, last).unwrap();
    }
    assert_eq!(read_all(store, "s", 0, 1 << 20), text(1, 3));
}

/// Invariant 2.
pub fn only_the_newest_claim_writes(store: &Store) {
    let old = claim(store, "s", "a").unwrap();
    append(store, "s", old.fence, 1, 1).unwrap();
    assert!(matches!(claim(store, "s", "b"), Err(StoreError::Held { remaining_ms: 1.. })));
    let new = claim(store, "s", "a").unwrap();
    assert!(new.fence > old.fence, "the same owner claims again");
    assert_eq!((new.standing.head, &*new.standing.epoch), (1, "epoch"));
    assert_eq!(append(store, "s", old.fence, 2, 2), Err(StoreError::Fenced));
    assert_eq!(sure(|| store.renew("s", old.fence, LEASE)), Err(StoreError::Fenced));
    sure(|| store.release("s", old.fence)).unwrap(); // not its to give back
    assert_eq!(append(store, "s", new.fence, 2, 2), Ok(2));
    sure(|| store.release("s", new.fence)).unwrap();
    assert_eq!(append(store, "s", new.fence, 3, 3), Err(StoreError::Fenced), "given back is given back");
    let other = claim(store, "s", "b").unwrap();
    assert!(other.fence > new.fence);
    assert_eq!(append(store, "s", other.fence, 3, 3), Ok(3));
    assert_eq!(read_all(store, "s", 0, 1 << 20), text(1, 3));
}

/// A lease that is not renewed runs out; whoever claims first is the writer, and the old one is told.
pub fn a_lease_runs_out(store: &Store) {
    let short = Duration::from_millis(30);
    let old = sure(|| store.claim("s", "a", "epoch", short)).unwrap();
    append(store, "s", old.fence, 1, 1).unwrap();
    let until = Instant::now() + Duration::from_secs(10);
    let new = loop {
        match claim(store, "s", "b") {
            Ok(claim) => break claim,
            Err(StoreError::Held { remaining_ms }) => {
                assert!(remaining_ms <= 30 && Instant::now() < until);
                std::thread::yield_now();
            }
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(append(store, "s", old.fence, 2, 2), Err(StoreError::Fenced));
    assert_eq!(append(store, "s", new.fence, 2, 2), Ok(2));
    assert!(store.standing("s").unwrap().leased_ms > 30);
}

/// Pages begin right after any cursor, whatever the blocks are, and say where the history stands.
pub fn pages_follow_any_cursor(store: &Store) {
    let fence = claim(store, "s", "a").unwrap().fence;
    for (first, last) in [(1, 1), (2, 5), (6, 6), (7, 12)] {
        append(store, "s", fence, first, last).unwrap();
    }
    for page in [1, 100, 1 << 20] {
        assert_eq!(read_all(store, "s", 0, page), text(1, 12));
        assert_eq!(read_all(store, "s", 5, page), text(6, 12));
        assert_eq!(read_all(store, "s", 3, page), text(2, 12), "the block that the cursor is in comes whole");
        assert_eq!(read_all(store, "s", 12, page), "");
    }
    let tail = store.read("s", 12, 100).unwrap();
    assert_eq!((tail.standing.head, tail.last), (12, 12));
    assert_eq!(store.read("nobody", 0, 1).unwrap_err(), StoreError::Unknown);
}

/// Invariant 5.
pub fn a_history_is_sealed_once(store: &Store) {
    let fence = claim(store, "s", "a").unwrap().fence;
    append(store, "s", fence, 1, 2).unwrap();
    assert_eq!(store.seal("s", fence, 1), Err(StoreError::NotNext { head: 2 }));
    assert_eq!(store.seal("s", fence, 2), Ok(true));
    assert_eq!(store.seal("s", fence, 2), Ok(false));
    assert_eq!(append(store, "s", fence, 3, 3), Err(StoreError::Sealed));
    assert_eq!(append(store, "s", fence, 1, 2), Ok(2), "a repetition is none the less known");
    assert!(store.standing("s").unwrap().sealed);
}

/// A batch is many sessions' at once: one refusal stops nobody else.
pub fn one_refusal_does_not_stop_a_batch(store: &Store) {
    let [a, b, c] = ["a", "b", "c"].map(|session| claim(store, session, "me").unwrap().fence);
    let data = block(1, 1);
    let one = |session, fence, first| Append { session, fence, first, last: first, ended: Some(first), data: &data };
    let mut left = vec![one("a", a, 1), one("b", b - 1, 1), one("c", c, 2), one("gone", c, 1), one("c", c, 1)];
    let mut answers = Vec::new();
    while !left.is_empty() {
        let said = store.append(&left);
        assert_eq!(said.len(), left.len());
        let (mut again, mut clear) = (Vec::new(), Vec::new());
        for (append, answer) in left.iter().zip(said) {
            match answer {
                Err(error) if error.is_transient() => again.push(*append),
                answer => clear.push((append.session, append.first, answer)),
            }
        }
        answers.extend(clear);
        left = again;
    }
    answers.sort_by_key(|answer| (answer.0, std::cmp::Reverse(answer.1)));
    assert_eq!(answers[0], ("a", 1, Ok(1)));
    assert_eq!(answers[1], ("b", 1, Err(StoreError::Fenced)));
    assert_eq!(answers[3], ("c", 1, Ok(1)));
    assert_eq!(answers[4], ("gone", 1, Err(StoreError::Unknown)));
    assert_eq!(store.standing("a").unwrap().ended, 1);
}

/// Invariant 6: every change is hinted, unless hints are lost, and reading on a timer alone sees it anyway.
pub fn hints_wake_and_reading_is_enough(store: &Store) {
    let (send, receive) = mpsc::channel();
    store.listen(Arc::new(move |session: Option<&str>| {
        let _ = send.send(session.map(str::to_owned));
    }));
    let fence = claim(store, "s", "a").unwrap().fence;
    for seq in 1..=20 {
        append(store, "s", fence, seq, seq).unwrap();
    }
    let hint = receive.recv_timeout(Duration::from_secs(10)).expect("of twenty, one comes");
    assert!(hint.is_none_or(|session| session == "s"));
    assert_eq!(read_all(store, "s", 0, 64), text(1, 20));
}

/// Somebody else asks, the writer hears of it when it renews, once claimed anew no more.
pub fn a_cancel_reaches_the_writer(store: &Store) {
    let fence = claim(store, "s", "a").unwrap().fence;
    assert_eq!(sure(|| store.renew("s", fence, LEASE)), Ok(None));
    sure(|| store.ask_cancel("s", "user")).unwrap();
    sure(|| store.ask_cancel("s", "too late")).unwrap();
    assert_eq!(sure(|| store.renew("s", fence, LEASE)), Ok(Some("user".into())));
    let fence = claim(store, "s", "a").unwrap().fence;
    assert_eq!(sure(|| store.renew("s", fence, LEASE)), Ok(None));
    assert_eq!(sure(|| store.ask_cancel("nobody", "x")), Err(StoreError::Unknown));
}

/// What is deleted is unknown, its writer is fenced, and a new history of that id is another one.
pub fn a_deleted_history_begins_anew(store: &Store) {
    let old = claim(store, "s", "a").unwrap().fence;
    append(store, "s", old, 1, 9).unwrap();
    assert_eq!(store.delete("s"), Ok(true));
    assert_eq!(store.delete("s"), Ok(false));
    assert_eq!(store.standing("s").unwrap_err(), StoreError::Unknown);
    // Of a server that forgets, "unknown" would have the writer send everything again.
    let told = if store.forgets() { StoreError::Fenced } else { StoreError::Unknown };
    assert_eq!(append(store, "s", old, 10, 10), Err(told));
    let new = sure(|| store.claim("s", "b", "second", LEASE)).unwrap();
    assert_eq!((new.standing.head, &*new.standing.epoch), (0, "second"));
    assert!(new.fence > old);
    assert_eq!(append(store, "s", old, 1, 1), Err(StoreError::Fenced));
    append(store, "s", new.fence, 1, 1).unwrap();
    assert_eq!(read_all(store, "s", 0, 1 << 20), text(1, 1));
}

/// Retention takes what is still and free, never what somebody writes; in steps, until nothing is left to do.
pub fn retention_spares_whoever_writes(store: &Store) {
    for session in ["old", "done", "running"] {
        let fence = claim(store, session, "a").unwrap().fence;
        append(store, session, fence, 1, 3).unwrap();
        if session != "running" {
            sure(|| store.release(session, fence)).unwrap();
        }
    }
    let keep = Retention { max_age_ms: 3_600_000, max_bytes: None };
    assert_eq!(store.expire(&keep, 1), Ok(0));
    let now = Instant::now();
    while now.elapsed() < Duration::from_millis(3) {
        std::thread::yield_now(); // ages are counted in milliseconds
    }
    let none = Retention { max_age_ms: 0, max_bytes: None };
    let mut steps = 0;
    while store.expire(&none, 1).unwrap() > 0 {
        steps += 1;
        assert!(steps < 100);
    }
    assert!(steps >= 2);
    assert_eq!(store.standing("old").unwrap_err(), StoreError::Unknown);
    assert_eq!(store.standing("done").unwrap_err(), StoreError::Unknown);
    assert_eq!(read_all(store, "running", 0, 1 << 20), text(1, 3));
}

/// Two owners fight for one session, each giving way after a few blocks: the history is one, dense, and whole.
pub fn two_writers_take_turns(store: &Store) {
    std::thread::scope(|scope| {
        for owner in ["a", "b"] {
            scope.spawn(move || {
                let mut blocks = 0;
                while blocks < 20 {
                    let Ok(claim) = claim(store, "s", owner) else {
                        std::thread::yield_now();
                        continue;
                    };
                    let mut head = claim.standing.head;
                    for _ in 0..4 {
                        head = append(store, "s", claim.fence, head + 1, head + 3).unwrap();
                        blocks += 1;
                    }
                    sure(|| store.release("s", claim.fence)).unwrap();
                }
            });
        }
    });
    let head = store.standing("s").unwrap().head;
    assert_eq!(head, 120);
    assert_eq!(read_all(store, "s", 0, 500), text(1, head));
}

/// Only the writer gives a history another life, and only where the store can lose one.
pub fn a_life_is_renamed_by_its_writer(store: &Store) {
    let old = claim(store, "s", "a").unwrap();
    append(store, "s", old.fence, 1, 3).unwrap();
    let new = claim(store, "s", "a").unwrap();
    if !store.forgets() {
        return;
    }
    assert!(matches!(sure(|| store.rename("s", old.fence, "stale")), Err(StoreError::Fenced)));
    let at = sure(|| store.rename("s", new.fence, "another")).unwrap();
    assert_eq!((at.epoch.as_str(), at.head), ("another", 3));
    assert_eq!(append(store, "s", new.fence, 4, 4).unwrap(), 4, "the fence stays");
    assert_eq!(sure(|| store.standing("s")).unwrap().epoch, "another");
}

/// A writer that sends again what a failover lost ends with the whole history.
pub fn a_failover_is_answered_by_sending_again(store: &Store) {
    let fence = claim(store, "s", "a").unwrap().fence;
    let mut next = 1;
    let mut losses = 0;
    while next <= 500 {
        match append(store, "s", fence, next, next + 1) {
            Ok(head) => next = head + 1,
            Err(StoreError::NotNext { head }) => {
                assert!(head + 1 < next);
                losses += 1;
                next = head + 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(losses > 0, "the test is of a store that forgets");
    sure(|| store.release("s", fence)).unwrap();
    let head = store.standing("s").unwrap().head;
    assert_eq!(read_all(store, "s", 0, 1000), text(1, head));
}

/// Gives `$then` what it was given, and the cases that hold on every store, plain and behind chaos.
#[macro_export]
macro_rules! cases {
    ($then:ident!($($given:tt)*)) => {
        $then!($($given)*;
            appends_follow_the_head, repeated_appends_add_nothing, only_the_newest_claim_writes, a_lease_runs_out,
            pages_follow_any_cursor, a_history_is_sealed_once, one_refusal_does_not_stop_a_batch,
            hints_wake_and_reading_is_enough, a_cancel_reaches_the_writer, a_deleted_history_begins_anew,
            retention_spares_whoever_writes, two_writers_take_turns);
    };
}

/// A test for each case, on a store of its own.
#[macro_export]
macro_rules! each {
    ($module:ident, $make:expr, $wrap:expr; $($case:ident),*) => {
        mod $module {
            use super::*;
            $(
                #[test]
                fn $case() {
                    let (store, _keep) = $make;
                    let wrap: fn($crate::suite::Store) -> $crate::suite::Store = $wrap;
                    $crate::suite::$case(&wrap(store));
                }
            )*
        }
    };
}

/// All of it on the store that `$make` gives, plain and behind chaos.
#[macro_export]
macro_rules! suite {
    ($name:ident, $make:expr) => {
        mod $name {
            use super::*;
            use $crate::each;
            $crate::cases!(each!(plain, $make, |store| store));
            $crate::cases!(each!(chaos, $make, |store| std::sync::Arc::new($crate::chaos::Chaos::new(store, 7, false))));
            each!(lives, $make, |store| store; a_life_is_renamed_by_its_writer);
            each!(forgetful, $make, |store| std::sync::Arc::new($crate::chaos::Chaos::new(store, 11, true));
                a_failover_is_answered_by_sending_again);
        }
    };
}
