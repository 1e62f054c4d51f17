//! What the Redis store does with a real cluster: three primaries and a replica, slots that move, a primary that is killed.

use std::collections::HashSet;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use turnstream_core::event::Payload;
use turnstream_core::reader::{Follow, Poll, ReadOptions, Reader};
use turnstream_core::session::{Ending, Hub, Limits, StoreOptions, TurnOptions};
use turnstream_core::store::{Append, Keys, RedisOptions, RedisStore, StoreError};

use crate::server::{PATIENCE, Server};
use crate::suite::{LEASE, Store, append, block, claim, read_all, sure, text};

const SLOTS: u32 = 16_384;

/// Three primaries, each with a third of the slots, and a replica of the first.
struct Nodes(Vec<Server>);

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5)); // between two questions to a server
    }
}

impl Nodes {
    fn start() -> Option<Self> {
        // Nobody is given up for being slow: failovers are ordered.
        let arguments = ["--cluster-enabled", "yes", "--cluster-node-timeout", "15000"];
        let servers: Vec<_> = (0..4).map_while(|_| Server::start(&arguments)).collect();
        if servers.len() < 4 {
            return None;
        }
        let nodes = Self(servers);
        for (at, server) in (0..3).zip(&nodes.0) {
            let slots: Vec<_> = (at * SLOTS / 3..(at + 1) * SLOTS / 3).map(|slot| slot.to_string()).collect();
            nodes.order(at as usize, &format!("CLUSTER ADDSLOTS {}", slots.join(" ")));
            nodes.order(at as usize, &format!("CLUSTER SET-CONFIG-EPOCH {}", at + 1));
            nodes.order(3, &format!("CLUSTER MEET 127.0.0.1 {}", server.port()));
        }
        until("the cluster is whole", || {
            nodes.0.iter().all(|server| {
                let said = server.say("CLUSTER INFO");
                said.contains("cluster_state:ok") && said.contains("cluster_known_nodes:4")
            })
        });
        nodes.order(3, &format!("CLUSTER REPLICATE {}", nodes.id(0)));
        until("the replica has its primary", || nodes.0[3].say("INFO replication").contains("master_link_status:up"));
        Some(nodes)
    }

    fn order(&self, at: usize, line: &str) {
        let said = self.0[at].say(line);
        assert!(said.starts_with("+OK"), "{}: {said}", &line[..line.len().min(80)]);
    }

    fn id(&self, at: usize) -> String {
        self.0[at].say("CLUSTER MYID").lines().nth(1).unwrap().to_owned()
    }

    fn slot_of(&self, session: &str) -> u32 {
        let said = self.0[0].say(&format!("CLUSTER KEYSLOT {}", Keys::of(session).session()));
        said.trim().trim_start_matches(':').parse().unwrap()
    }

    /// Names of sessions that the server `at` has, of `count` different slots.
    fn sessions_on(&self, at: u32, count: usize) -> Vec<String> {
        let mut slots = HashSet::new();
        let here = |name: &String| {
            let slot = self.slot_of(name);
            slot * 3 / SLOTS == at && slots.insert(slot)
        };
        (0..).map(|number| format!("session-{number}")).filter(here).take(count).collect()
    }

    fn open(&self, at: usize) -> Store {
        Arc::new(RedisStore::open(&self.0[at].url(), &RedisOptions::default()).unwrap())
    }

    /// As `redis-cli --cluster reshard` moves a slot; `between` runs while some of its keys are here and some there.
    fn move_slot(&self, session: &str, from: usize, to: usize, mut between: impl FnMut()) {
        let slot = self.slot_of(session);
        self.order(to, &format!("CLUSTER SETSLOT {slot} IMPORTING {}", self.id(from)));
        self.order(from, &format!("CLUSTER SETSLOT {slot} MIGRATING {}", self.id(to)));
        loop {
            let said = self.0[from].say(&format!("CLUSTER GETKEYSINSLOT {slot} 1"));
            let Some(key) = said.lines().nth(2) else { break };
            let moved = self.0[from].say(&format!("MIGRATE 127.0.0.1 {} {key} 0 5000", self.0[to].port()));
            assert!(moved.starts_with("+OK") || moved.starts_with("+NOKEY"), "{moved}");
            between();
        }
        for at in [to, from] {
            self.order(at, &format!("CLUSTER SETSLOT {slot} NODE {}", self.id(to)));
        }
    }
}

fn one(store: &Store, session: &str, fence: u64, first: u64, last: u64) -> Result<u64, StoreError> {
    let data = block(first, last);
    store.append(&[Append { session, fence, first, last, ended: None, data: &data }]).remove(0)
}

macro_rules! all {
    ($run:expr; $($case:ident),*) => {
        $( $run(stringify!($case), crate::suite::$case); )*
    };
}

/// The behaviour of every store, on a cluster that is empty each time.
#[test]
fn a_cluster_is_a_store() {
    let Some(nodes) = Nodes::start() else { return };
    let run = |case: &str, check: fn(&Store)| {
        eprintln!("{case}"); // shown where it fails
        (0..3).for_each(|at| nodes.order(at, "FLUSHALL"));
        // By the replica's name too: any server tells of all.
        check(&nodes.open(case.len() % 4));
    };
    crate::cases!(all!(run));
    all!(run; a_life_is_renamed_by_its_writer);
    let store = nodes.open(0);
    assert_eq!(store.warnings(), Vec::<String>::new());
    // One batch, sessions of all servers: each block is where it belongs, and the answers are in order.
    let sessions: Vec<_> = (0..3).flat_map(|at| nodes.sessions_on(at, 3)).collect();
    let fences: Vec<_> = sessions.iter().map(|session| claim(&store, session, "a").unwrap().fence).collect();
    let data = block(1, 2);
    let appends: Vec<_> = sessions
        .iter()
        .zip(&fences)
        .map(|(session, fence)| Append { session, fence: *fence, first: 1, last: 2, ended: None, data: &data })
        .collect();
    assert_eq!(store.append(&appends), vec![Ok(2); 9]);
    let mut wrong = appends.clone();
    wrong[4].first = 7;
    wrong[4].last = 7;
    let answers = store.append(&wrong);
    assert_eq!(answers[4], Err(StoreError::NotNext { head: 2 }));
    assert_eq!(answers.iter().filter(|answer| **answer == Ok(2)).count(), 8, "one refusal stops no other server's either");
    (0..3).for_each(|at| assert!(!nodes.0[at].say("DBSIZE").starts_with(":0"), "server {at} has its part"));
}

/// A slot that moves while it is written and listened to: what is told no is told so for a while, and nothing is lost.
#[test]
fn a_slot_moves_under_its_writer() {
    let Some(nodes) = Nodes::start() else { return };
    let session = &*nodes.sessions_on(0, 1)[0];
    let (writer, reader) = (nodes.open(1), nodes.open(2));
    let (send, hints) = mpsc::channel();
    reader.listen(Arc::new(move |session: Option<&str>| {
        let _ = send.send(session.map(str::to_owned));
    }));
    (0..3).for_each(|_| assert_eq!(hints.recv_timeout(PATIENCE).unwrap(), None, "each server is listened to"));
    let epoch = claim(&writer, session, "a").unwrap().standing.epoch;
    let fence = claim(&writer, session, "a").unwrap().fence;
    let mut head = append(&writer, session, fence, 1, 5).unwrap();
    let mut answers = Vec::new();
    nodes.move_slot(session, 0, 1, || {
        answers.push(one(&writer, session, fence, head + 1, head + 1));
        head = *answers.last().unwrap().as_ref().unwrap_or(&head);
    });
    let unavailable = |answer: &Result<u64, StoreError>| matches!(answer, Err(StoreError::Unavailable(_)));
    assert!(matches!(&*answers, [first, second, Ok(6)] if unavailable(first) && unavailable(second)), "{answers:?}");
    while hints.try_recv().is_ok() {}
    // Both find it where it is, the one that listens within its look, and it is the same life.
    let deadline = Instant::now() + PATIENCE;
    loop {
        head = append(&writer, session, fence, head + 1, head + 1).unwrap();
        match hints.recv_timeout(Duration::from_millis(100)) {
            Ok(Some(hinted)) if hinted == session => break,
            _ => assert!(Instant::now() < deadline, "nobody is told"),
        }
    }
    assert_eq!(read_all(&reader, session, 0, 1 << 20), text(1, head));
    assert!(nodes.0[0].say(&format!("EXISTS {}", Keys::of(session).log())).starts_with("-MOVED"));
    sure(|| writer.release(session, fence)).unwrap();
    assert_eq!(claim(&writer, session, "a").unwrap().standing.epoch, epoch);
}

/// A turn's events go on while its slot moves to another server, and while its server is killed and a replica takes over.
#[test]
fn a_turn_outlives_its_server() {
    let Some(mut nodes) = Nodes::start() else { return };
    let names = nodes.sessions_on(0, 2);
    let hub = |at: usize| {
        let options = StoreOptions { lease: LEASE, ..StoreOptions::default() };
        Hub::with_store(Limits::default(), nodes.open(at), options, None).unwrap()
    };
    let (writing, following) = (hub(1), hub(2));
    let sessions: Vec<_> = names.iter().map(|name| writing.session(Some(name)).unwrap()).collect();
    let turns: Vec<_> = sessions.iter().map(|session| session.start_turn(TurnOptions::default()).unwrap().turn).collect();
    let mut said = 0;
    let mut say = |count: usize| {
        for _ in 0..count {
            said += 1;
            for (session, turn) in sessions.iter().zip(&turns) {
                let delta = Payload::from_json("text_delta", &format!("{{\"text\":\"{said} \"}}")).unwrap().0;
                session.emit(Some(*turn), delta, None).unwrap();
            }
        }
    };
    let mut readers: Vec<_> = names
        .iter()
        .map(|name| {
            let session = following.session(Some(name)).unwrap();
            Reader::open(&session, &ReadOptions { follow: Follow::Turn, ..ReadOptions::default() }).unwrap()
        })
        .collect();
    say(50);
    nodes.move_slot(&names[0], 0, 2, || say(20));
    say(50);
    assert!(writing.flush(), "the slot has arrived");
    nodes.0[0].kill();
    say(50);
    assert!(!writing.flush(), "nobody has the slot");
    nodes.order(3, "CLUSTER FAILOVER TAKEOVER");
    say(50);
    until("everything is stored", || writing.flush());
    for (session, turn) in sessions.iter().zip(&turns) {
        assert!(session.end_turn(*turn, Ending::default()));
    }
    let whole: Vec<_> = (1..=said).map(|number| format!("{number} ")).collect();
    for reader in &mut readers {
        let (mut items, mut seqs, mut told) = (Vec::new(), Vec::new(), Vec::new());
        until("the follower has all", || {
            let poll = reader.poll(256, &mut items);
            for item in items.drain(..) {
                let event = item.event();
                seqs.push(event.seq);
                if let Payload::TextDelta(delta) = &event.payload {
                    told.push(delta.text.to_string());
                }
            }
            poll == Poll::End
        });
        assert_eq!(told, whole, "each piece once, in order");
        assert!(seqs.windows(2).all(|pair| pair[1] == pair[0] + 1), "{seqs:?}");
    }
}
