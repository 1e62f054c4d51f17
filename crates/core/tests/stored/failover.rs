//! A store that fails over, comes back empty, is slow or away: what is kept, what is told, and how long a call waits.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use turnstream_core::reader::{Cursor, Follow, ReadOptions, Reader, Status as Taken};
use turnstream_core::session::{Hub, Limits, Session, SessionError, StoreOptions, TurnOptions};
use turnstream_core::store::{Append, Claim, Durability, Hint, LogStore, MemoryStore, Retention, Standing, StoreError, Tail};

use crate::kit::{Switch, end, hub, kinds, memory, read_turn, read_until, say, start, until};

const LEASE: Duration = Duration::from_secs(10);
/// What a store takes for a call, several times as long as anybody waits for it.
const SLOW: Duration = Duration::from_millis(2500);

/// A server that acknowledges before its replica knows: [`Server::fail_over`] goes on with what the replica has.
struct Server {
    life: Mutex<(Arc<MemoryStore>, usize)>,
    /// Those of this life.
    fences: Mutex<Vec<u64>>,
    /// Of a session: who wrote it last, and in which life.
    last: Mutex<Option<(String, usize)>>,
    hints: Mutex<Vec<Hint>>,
}

impl Server {
    fn new() -> Arc<Self> {
        Arc::new(Self { life: Mutex::default(), fences: Mutex::default(), last: Mutex::default(), hints: Mutex::default() })
    }

    fn now(&self) -> Arc<MemoryStore> {
        self.life.lock().0.clone()
    }

    /// A replica takes over, which knows the events up to `keep`, who writes, and no fence of it.
    fn fail_over(&self, session: &str, keep: u64) {
        let mut life = self.life.lock();
        let replica = MemoryStore::new();
        if keep > 0 {
            let known = life.0.read(session, 0, usize::MAX).unwrap();
            let text: Vec<u8> = known.blocks.iter().flat_map(|block| block.iter().copied()).collect();
            let data: Vec<u8> = text.split_inclusive(|byte| *byte == b'\n').take(keep as usize).flatten().copied().collect();
            let fence = replica.claim(session, "replica", &known.standing.epoch, LEASE).unwrap().fence;
            let block = Append { session, fence, first: 1, last: keep, ended: None, data: &data };
            assert_eq!(replica.append(&[block]), [Ok(keep)]);
            replica.release(session, fence).unwrap();
            if let (Some((writer, _)), true) = (&*self.last.lock(), known.standing.leased_ms > 0) {
                replica.claim(session, writer, &known.standing.epoch, LEASE).unwrap();
            }
        }
        for hint in &*self.hints.lock() {
            replica.listen(hint.clone());
        }
        *life = (Arc::new(replica), life.1 + 1);
        self.fences.lock().clear();
        drop(life);
        self.hints.lock().iter().for_each(|hint| hint(None));
    }
}

impl LogStore for Server {
    fn claim(&self, session: &str, owner: &str, epoch: &str, lease: Duration) -> Result<Claim, StoreError> {
        let life = self.life.lock();
        let mut last = self.last.lock();
        let claim = life.0.claim(session, owner, epoch, lease)?;
        // What the contract asks of a server that forgets.
        let promoted = last.as_ref().is_some_and(|(writer, then)| writer != owner && *then != life.1);
        let claim = if promoted {
            Claim { standing: life.0.rename(session, claim.fence, &format!("life-{}-{}", life.1, claim.fence))?, ..claim }
        } else {
            claim
        };
        *last = Some((owner.to_owned(), life.1));
        self.fences.lock().push(claim.fence);
        Ok(claim)
    }
    fn renew(&self, session: &str, fence: u64, lease: Duration) -> Result<Option<String>, StoreError> {
        self.now().renew(session, fence, lease).map_err(|error| match error {
            StoreError::Fenced if !self.fences.lock().contains(&fence) => StoreError::Unknown,
            error => error,
        })
    }
    fn release(&self, session: &str, fence: u64) -> Result<(), StoreError> {
        self.now().release(session, fence)
    }
    fn append(&self, batch: &[Append<'_>]) -> Vec<Result<u64, StoreError>> {
        let lost = |fence| !self.fences.lock().contains(&fence);
        let answers = self.now().append(batch);
        let told = |(append, answer): (&Append<'_>, _)| match answer {
            Err(StoreError::Fenced) if lost(append.fence) => Err(StoreError::Unknown),
            answer => answer,
        };
        batch.iter().zip(answers).map(told).collect()
    }
    fn standing(&self, session: &str) -> Result<Standing, StoreError> {
        self.now().standing(session)
    }
    fn read(&self, session: &str, after: u64, max_bytes: usize) -> Result<Tail, StoreError> {
        self.now().read(session, after, max_bytes)
    }
    fn seal(&self, session: &str, fence: u64, head: u64) -> Result<bool, StoreError> {
        self.now().seal(session, fence, head)
    }
    fn ask_cancel(&self, session: &str, reason: &str) -> Result<(), StoreError> {
        self.now().ask_cancel(session, reason)
    }
    fn listen(&self, hint: Hint) {
        self.now().listen(hint.clone());
        self.hints.lock().push(hint);
    }
    fn expire(&self, retention: &Retention, step: usize) -> Result<usize, StoreError> {
        self.now().expire(retention, step)
    }
    fn forgets(&self) -> bool {
        true
    }
    fn rename(&self, session: &str, fence: u64, epoch: &str) -> Result<Standing, StoreError> {
        self.now().rename(session, fence, epoch)
    }
    fn delete(&self, session: &str) -> Result<bool, StoreError> {
        self.now().delete(session)
    }
}

fn server() -> (Arc<Server>, Arc<dyn LogStore>) {
    let server = Server::new();
    let store = server.clone();
    (server, store)
}

fn small(store: &Arc<dyn LogStore>, max_events: usize) -> Hub {
    let limits = Limits { max_events, ..Limits::default() };
    Hub::with_store(limits, store.clone(), StoreOptions::default(), None).unwrap()
}

fn open(hub: &Hub) -> Arc<Session> {
    let mut found = hub.session(Some("s"));
    until("the session is there", || {
        found = hub.session(Some("s"));
        found.is_ok()
    });
    found.unwrap()
}

fn say_all(session: &Session, numbers: std::ops::Range<u32>) {
    for number in numbers {
        say(session, &format!("{number},")).unwrap();
    }
    until("it is stored", || session.flush());
}

/// Invariant 5: readers here and elsewhere see each event once, in order, whatever the server has lost.
#[test]
fn what_a_failover_loses_is_sent_again() {
    for keep in [0, 1, 7, 20] {
        let (server, store) = server();
        let [here, there] = [0, 1].map(|_| hub(&store, LEASE, Durability::Process));
        let session = open(&here);
        let turn = start(&session);
        say_all(&session, 0..10);
        let other = open(&there);
        let reading = std::thread::spawn(move || read_turn(&other));
        say_all(&session, 10..20);
        server.fail_over("s", keep);
        say_all(&session, 20..30);
        end(&session, turn);
        let lines = read_turn(&session);
        assert_eq!(reading.join().unwrap(), lines);
        assert_eq!(store.standing("s").unwrap().head, lines.len() as u64);
        assert_eq!(read_turn(&open(&hub(&store, LEASE, Durability::Process))), lines, "{keep}");
    }
}

/// The writer's log may be small: what was acknowledged a moment ago is there to be sent again.
#[test]
fn the_recent_tail_outlives_the_log() {
    let (server, store) = server();
    let here = small(&store, 10);
    let session = open(&here);
    let turn = start(&session);
    (0..10).for_each(|ten| say_all(&session, ten * 10..ten * 10 + 10));
    assert!(session.statistics().retained <= 20);
    server.fail_over("s", 40);
    say_all(&session, 100..110);
    end(&session, turn);
    let lines = read_turn(&open(&hub(&store, LEASE, Durability::Process)));
    let texts: Vec<_> = (0..110).map(|number| format!("\"text\":\"{number},\"")).collect();
    assert!(texts.iter().all(|text| lines.iter().filter(|line| line.contains("delta") && line.contains(text)).count() == 1));
}

/// A writer between two turns: nobody has told it, and its events are there when somebody asks.
#[test]
fn an_idle_writer_gives_the_store_its_end_again() {
    for keep in [0, 3] {
        let (server, store) = server();
        let here = hub(&store, LEASE, Durability::Process);
        let session = open(&here);
        let turn = start(&session);
        say_all(&session, 0..5);
        end(&session, turn);
        let lines = read_turn(&session);
        server.fail_over("s", keep);
        until("it is sent again", || store.standing("s").is_ok_and(|standing| standing.head == lines.len() as u64));
        // Of a history that is gone, somebody else may have known a later end: its cursors are told so.
        until("it is known", || here.find("s").is_ok_and(|found| (found.epoch() == session.epoch()) == (keep > 0)));
        assert_eq!(read_turn(&open(&here)), lines);
        assert_eq!(start(&open(&here)), 2);
    }
}

/// Nobody has what is lost: the history goes on under another epoch, and no cursor means another event than it did.
#[test]
fn a_lost_end_is_told_by_another_epoch() {
    let (server, store) = server();
    let switch = Switch::new(&store);
    let gone = hub(&(switch.clone() as Arc<dyn LogStore>), LEASE, Durability::Process);
    let session = open(&gone);
    let turn = start(&session);
    say_all(&session, 0..5);
    end(&session, turn);
    let cursor = format!("{}.{}", session.epoch(), session.position().head);
    let watching = hub(&store, LEASE, Durability::Process);
    let view = open(&watching);
    let reader = std::thread::spawn({
        let view = view.clone();
        move || read_until(&view, None, Follow::Session, |_| false)
    });
    let lost = kinds(&read_turn(&view)).len() - 2;
    switch.set(1); // whoever wrote it is gone
    drop((session, gone));
    server.fail_over("s", 2);
    let next = hub(&store, LEASE, Durability::Process);
    until("the lost turn is ended", || next.find("s").is_ok_and(|session| session.result().is_some()));
    let session = open(&next);
    let turn = start(&session);
    say_all(&session, 0..10);
    end(&session, turn);
    assert!(session.position().head > (lost + 2) as u64, "a seq that is lost has been given again");
    reader.join().unwrap(); // a reader of the lost events ends
    for hub in [&next, &watching] {
        let after = Some(Cursor::parse(&cursor).unwrap());
        until("it is known", || hub.find("s").is_ok());
        let session = hub.find("s").unwrap();
        let reader = Reader::open(&session, &ReadOptions { after, ..ReadOptions::default() }).unwrap();
        assert_eq!(reader.status(), Taken::OtherEpoch);
        let completions = read_until(&session, Some(&cursor), Follow::Turn, |_| false);
        assert_eq!(kinds(&completions).iter().filter(|kind| *kind == "completion").count(), 2);
    }
}

/// What was lost is beyond what the writer keeps: its turn is stopped, and the rest is another life.
#[test]
fn a_gap_that_nobody_can_fill_is_told() {
    let (server, store) = server();
    let here = small(&store, 10);
    let session = open(&here);
    let turn = start(&session);
    let before = session.epoch().clone();
    for _ in 0..6 {
        say_all(&session, 0..1000);
    }
    server.fail_over("s", 100);
    let _ = say(&session, "more");
    until("the turn is refused", || say(&session, "more").is_err());
    assert!(!session.end_turn(turn, turnstream_core::session::Ending::default()));
    read_until(&session, None, Follow::Session, |_| false); // its readers end
    let session = open(&here);
    assert_ne!(*session.epoch(), before);
    until("the turn is ended", || here.find("s").unwrap().result().is_some());
    assert!(session.result().unwrap().as_str().contains("\"failed\""));
}

/// Invariant 5 of the keeper: whatever a store takes, a call ends, and what it asked for comes in the end.
#[test]
fn no_call_waits_longer_than_its_limit() {
    let store = memory();
    let switch = Switch::new(&store);
    let slow = hub(&(switch.clone() as Arc<dyn LogStore>), LEASE, Durability::Process);
    let elsewhere = hub(&store, LEASE, Durability::Process);
    let bounded = |what: &str, act: &mut dyn FnMut()| {
        let before = Instant::now();
        act();
        // A busy machine adds to it, and the store would take all of its time.
        assert!(before.elapsed() < SLOW, "{what} took {:?}", before.elapsed());
    };
    let away = |error: Option<SessionError>| {
        assert!(matches!(error, Some(SessionError::Store(StoreError::Unavailable(_)))), "{error:?}");
    };
    let known = open(&slow);
    let foreign = elsewhere.session(Some("foreign")).unwrap();
    let foreign_turn = start(&foreign);
    let seen = slow.session(Some("foreign")).unwrap();
    let running = slow.session(Some("running")).unwrap();
    let turn = start(&running);
    let mut unknown = None;
    switch.slow(SLOW);
    bounded("a new session", &mut || away(slow.session(Some("new")).err()));
    bounded("a lookup", &mut || unknown = slow.find("nobody").err());
    away(unknown);
    bounded("a known session", &mut || drop(slow.find("s").unwrap()));
    bounded("a turn's start", &mut || away(known.start_turn(TurnOptions::default()).err()));
    bounded("an emit outside of turns", &mut || away(say(&known, "x").err()));
    bounded("an emit", &mut || assert!(say(&running, "x").is_ok()));
    bounded("a cancel elsewhere", &mut || assert!(seen.cancel("user")));
    bounded("a turn's end", &mut || end(&running, turn));
    bounded("a flush", &mut || assert!(!slow.flush()));
    bounded("a close", &mut || slow.session(Some("running")).unwrap().close(None));
    bounded("a deletion", &mut || drop(slow.remove("running")));
    switch.slow(Duration::ZERO);
    until("the session is made", || slow.session(Some("new")).is_ok());
    until("the other turn is cancelled", || foreign.is_cancelled(foreign_turn));
    until("the deleted one is gone", || matches!(elsewhere.find("running"), Err(SessionError::Unknown)));
    until("a turn starts", || known.start_turn(TurnOptions::default()).is_ok());
}

/// A store that takes longer than a call waits is none that is away: who asks again finds what it was asked before.
#[test]
fn what_is_asked_again_of_a_slow_store_is_answered() {
    let store = memory();
    let switch = Switch::new(&store);
    let slow = hub(&(switch.clone() as Arc<dyn LogStore>), LEASE, Durability::Process);
    let other = hub(&store, LEASE, Durability::Process);
    end(&open(&other), start(&open(&other)));
    switch.slow(Duration::from_millis(400));
    let session = open(&slow);
    let mut started = session.start_turn(TurnOptions::default());
    until("the turn starts", || {
        if started.is_err() {
            started = session.start_turn(TurnOptions::default());
        }
        started.is_ok()
    });
    let turn = started.unwrap().turn;
    assert_eq!(turn, 2);
    say(&session, "slow but sure").unwrap();
    end(&session, turn);
    until("it is stored", || store.standing("s").unwrap().ended == session.position().head && session.flush());
    until("the claim is given back", || store.standing("s").unwrap().leased_ms == 0);
    assert_eq!(read_turn(&open(&other)), read_turn(&session));
}

/// Nobody came for a claim: it is given back, and another process writes.
#[test]
fn a_claim_that_nobody_waits_for_is_given_back() {
    let store = memory();
    let switch = Switch::new(&store);
    let slow = hub(&(switch.clone() as Arc<dyn LogStore>), Duration::from_secs(60), Durability::Process);
    let session = open(&slow);
    switch.slow(Duration::from_millis(700));
    assert!(session.start_turn(TurnOptions::default()).is_err());
    until("it is claimed", || store.standing("s").unwrap().leased_ms > 0);
    let other = open(&hub(&store, LEASE, Durability::Process));
    until("another may write", || other.start_turn(TurnOptions::default()).is_ok());
}

/// Who ends a turn gives its claim back a moment later: a call that comes in between waits for it.
#[test]
fn a_claim_on_its_way_back_refuses_nobody() {
    let store = memory();
    let switch = Switch::new(&store);
    let here = hub(&(switch.clone() as Arc<dyn LogStore>), LEASE, Durability::Process);
    let there = hub(&store, LEASE, Durability::Process);
    let (session, other) = (open(&here), open(&there));
    let turn = start(&session);
    switch.slow(Duration::from_millis(50));
    let ending = std::thread::spawn(move || end(&session, turn));
    until("the end is stored", || store.standing("s").unwrap().ended > 0);
    assert_eq!(start(&other), 2);
    ending.join().unwrap();
}

/// Whatever a server does, in whatever order: a history is dense, each of its turns ends once, and no reader gets another event under
/// a cursor that it has.
#[test]
fn a_server_that_fails_over_again_and_again() {
    let (server, store) = server();
    let hubs: Vec<_> = (0..3).map(|_| hub(&store, Duration::from_millis(150), Durability::Process)).collect();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let over = || stop.load(std::sync::atomic::Ordering::SeqCst);
    let seen: Mutex<std::collections::HashMap<(String, u64), String>> = Mutex::default();
    std::thread::scope(|scope| {
        for hub in &hubs {
            scope.spawn(|| {
                while !over() {
                    let Ok(session) = hub.session(Some("s")) else { continue };
                    let Ok(started) = session.start_turn(TurnOptions::default()) else { continue };
                    for number in 0..20 {
                        if say(&session, &format!("{number},")).is_err() {
                            break;
                        }
                        session.flush();
                    }
                    session.end_turn(started.turn, turnstream_core::session::Ending::default());
                }
            });
            scope.spawn(|| {
                while !over() {
                    let Ok(session) = hub.find("s") else { continue };
                    let mut after = session.position().head.saturating_sub(5);
                    let mut page = Vec::new();
                    session.page(after, 64, usize::MAX, false, &mut page);
                    for entry in page {
                        after += 1;
                        assert_eq!(entry.event.seq, after, "dense");
                        let key = (session.epoch().to_string(), after);
                        let line = entry.event.to_json();
                        assert_eq!(*seen.lock().entry(key).or_insert_with(|| line.clone()), line, "a cursor means one event");
                    }
                }
            });
        }
        for round in 0..30_u64 {
            std::thread::sleep(Duration::from_millis(20 + round * 7 % 40)); // the time between two accidents
            let head = store.standing("s").map_or(0, |standing| standing.head);
            server.fail_over("s", if round % 7 == 6 { 0 } else { head.saturating_sub(round * 5 % 23) });
        }
        std::thread::sleep(Duration::from_millis(300));
        stop.store(true, std::sync::atomic::Ordering::SeqCst);
    });
    drop(hubs);
    let last = hub(&store, LEASE, Durability::Process);
    until("the last turn is ended", || last.find("s").is_ok_and(|session| session.result().is_some()));
    let session = last.find("s").unwrap();
    let lines = read_until(&session, None, Follow::None, |_| false);
    let ends: Vec<_> = kinds(&lines).into_iter().filter(|kind| kind == "turn_start" || kind == "completion").collect();
    assert!(ends.chunks(2).all(|pair| pair == ["turn_start", "completion"]), "{ends:?}");
}
