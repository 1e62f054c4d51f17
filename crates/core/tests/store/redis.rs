//! What the Redis store does with real servers: stopped, empty, behind, full, locked, behind TLS.

use std::fs;
use std::process::Command;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use turnstream_core::store::{Append, Keys, LogStore, RedisOptions, RedisStore, StoreError};

use crate::server::{PATIENCE, Server, installed};
use crate::suite::{LEASE, Store, append, block, claim, read_all, sure, text};

fn options() -> RedisOptions {
    RedisOptions::default()
}

fn open(server: &Server) -> Store {
    Arc::new(RedisStore::open(&server.url(), &options()).unwrap())
}

fn refused(url: &str, options: &RedisOptions) -> StoreError {
    let error = RedisStore::open(url, options).expect_err("refused");
    assert!(!format!("{error} {error:?}").contains("secret"), "{error}");
    error
}

fn one(store: &Store, fence: u64, first: u64, last: u64) -> Result<u64, StoreError> {
    let data = block(first, last);
    store.append(&[Append { session: "s", fence, first, last, ended: None, data: &data }]).remove(0)
}

/// Repeats `call` until it gives something, as a keeper does, and no longer than anybody's patience.
fn until<T>(mut call: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = call() {
            return value;
        }
        assert!(Instant::now() < deadline, "it never comes");
        std::thread::sleep(Duration::from_millis(5)); // between tries, as the keeper's
    }
}

/// What anybody sees with XRANGE: an entry per block, named by its last seq.
#[test]
fn a_log_is_a_stream_that_anybody_can_read() {
    let Some(server) = Server::start(&[]) else { return };
    let store = open(&server);
    let fence = claim(&store, "s", "a").unwrap().fence;
    append(&store, "s", fence, 1, 1).unwrap();
    append(&store, "s", fence, 2, 5).unwrap();
    let said = server.say(&format!("XRANGE {} - +", Keys::of("s").log()));
    assert!(said.contains("\r\n1-0\r\n") && said.contains("\r\n5-0\r\n"), "{said}");
    assert!(said.contains(&text(2, 5)), "{said}");
    for key in [Keys::of("s").session(), Keys::of("s").log(), Keys::of("s").lease()] {
        let left: i64 = server.say(&format!("PTTL {key}")).trim_start_matches(':').trim().parse().unwrap();
        assert!(left > 50_000, "{key} has no time to live: {left}");
    }
}

#[test]
fn scripts_that_are_flushed_come_back() {
    let Some(server) = Server::start(&[]) else { return };
    let store = open(&server);
    let fence = claim(&store, "s", "a").unwrap().fence;
    for seq in 1..=20 {
        if seq % 5 == 0 {
            server.say("SCRIPT FLUSH");
        }
        assert_eq!(one(&store, fence, seq, seq), Ok(seq));
    }
    assert_eq!(read_all(&store, "s", 0, 1 << 20), text(1, 20));
}

#[test]
fn a_second_process_is_hinted() {
    let Some(server) = Server::start(&[]) else { return };
    let (writer, reader) = (open(&server), open(&server));
    let (send, receive) = mpsc::channel();
    reader.listen(Arc::new(move |session: Option<&str>| {
        let _ = send.send(session.map(str::to_owned));
    }));
    assert_eq!(receive.recv_timeout(PATIENCE).unwrap(), None, "subscribed: what came before is not known");
    append(&writer, "s", claim(&writer, "s", "a").unwrap().fence, 1, 1).unwrap();
    assert_eq!(receive.recv_timeout(PATIENCE).unwrap().as_deref(), Some("s"));
    // The connection breaks: whoever listens is told to look everywhere.
    server.say("CLIENT KILL TYPE pubsub");
    assert_eq!(receive.recv_timeout(PATIENCE).unwrap(), None);
}

/// Killed, and there again with nothing in it: the writer claims under its own epoch and sends from the start.
#[test]
fn an_empty_server_is_filled_again() {
    let Some(mut server) = Server::start(&[]) else { return };
    let store = open(&server);
    let fence = claim(&store, "s", "a").unwrap().fence;
    append(&store, "s", fence, 1, 5).unwrap();
    server.kill();
    assert!(matches!(one(&store, fence, 6, 6), Err(StoreError::Unavailable(_))));
    server.start_again();
    let answer = until(|| match one(&store, fence, 6, 6) {
        Err(StoreError::Unavailable(_)) => None,
        answer => Some(answer),
    });
    assert_eq!(answer, Err(StoreError::Unknown));
    assert!(store.forgets());
    let again = claim(&store, "s", "a").unwrap();
    assert_eq!((again.standing.head, &*again.standing.epoch), (0, "epoch"));
    assert!(again.fence > fence);
    assert_eq!(one(&store, again.fence, 6, 6), Err(StoreError::NotNext { head: 0 }));
    append(&store, "s", again.fence, 1, 5).unwrap();
    append(&store, "s", again.fence, 6, 6).unwrap();
    assert_eq!(read_all(&store, "s", 0, 1 << 20), text(1, 6));
}

/// A server that stands still is given up within the limit; what it does take later is taken once.
#[test]
fn a_stopped_server_is_waited_for_within_the_limit() {
    let Some(server) = Server::start(&[]) else { return };
    let limit = Duration::from_millis(100);
    let store: Store = Arc::new(RedisStore::open(&server.url(), &RedisOptions { limit, ..options() }).unwrap());
    let fence = claim(&store, "s", "a").unwrap().fence;
    append(&store, "s", fence, 1, 1).unwrap();
    server.signal("STOP");
    let slack = Duration::from_millis(1500); // of a busy machine; a connection is given up after five seconds
    let within = |limit: Duration, call: &dyn Fn() -> Option<StoreError>| {
        let asked = Instant::now();
        assert!(matches!(call(), Some(StoreError::Unavailable(_))));
        assert!(asked.elapsed() < limit + slack, "{:?}", asked.elapsed());
    };
    for _ in 0..5 {
        within(limit * 4, &|| one(&store, fence, 2, 3).err());
        within(limit, &|| store.renew("s", fence, LEASE).err());
    }
    // Nobody waits for a connection that others have waited for already.
    let asked = Instant::now();
    for _ in 0..100 {
        assert!(matches!(store.renew("s", fence, LEASE), Err(StoreError::Unavailable(_))));
    }
    assert!(asked.elapsed() < limit * 30, "{:?}", asked.elapsed());
    server.signal("CONT");
    assert_eq!(append_soon(&store, fence, 2, 3), Ok(3));
    assert_eq!(read_all(&store, "s", 0, 1 << 20), text(1, 3));
}

fn append_soon(store: &Store, fence: u64, first: u64, last: u64) -> Result<u64, StoreError> {
    until(|| match one(store, fence, first, last) {
        Err(StoreError::Unavailable(_)) => None,
        answer => Some(answer),
    })
}

/// A replica that is promoted before it has heard of the last events, or of the last claim.
#[test]
fn a_replica_that_missed_the_end_is_sent_it() {
    let (Some(master), Some(replica)) = (Server::start(&[]), Server::start(&[])) else { return };
    let writer = open(&master);
    let fence = claim(&writer, "s", "a").unwrap().fence;
    append(&writer, "s", fence, 1, 4).unwrap();
    replica.say(&format!("REPLICAOF 127.0.0.1 {}", master.port()));
    let behind = open(&replica);
    until(|| behind.standing("s").ok().filter(|standing| standing.head == 4));
    assert!(matches!(one(&behind, fence, 5, 5), Err(StoreError::Unavailable(_))), "a replica takes nothing");
    // Cut off first, promoted later.
    replica.say("REPLICAOF NO ONE");
    append(&writer, "s", fence, 5, 6).unwrap();
    let newer = claim(&writer, "t", "a").unwrap().fence;
    drop(writer);
    assert_eq!(append_soon(&behind, fence, 7, 7), Err(StoreError::NotNext { head: 4 }));
    assert_eq!(append_soon(&behind, fence, 5, 6), Ok(6));
    assert_eq!(append_soon(&behind, fence, 7, 7), Ok(7));
    assert_eq!(read_all(&behind, "s", 0, 1 << 20), text(1, 7));
    let data = block(1, 1);
    let lost = behind.append(&[Append { session: "t", fence: newer, first: 1, last: 1, ended: None, data: &data }]).remove(0);
    assert_eq!(lost, Err(StoreError::Unknown), "a claim that it has not heard of is claimed anew");
}

/// A claim of a known session that the promoted replica has missed: no other's, so not "fenced".
#[test]
fn a_claim_that_a_failover_lost_is_not_somebody_elses() {
    let Some(server) = Server::start(&[]) else { return };
    let store = open(&server);
    let old = claim(&store, "s", "a").unwrap().fence;
    let newest = claim(&store, "s", "a").unwrap().fence;
    server.say(&format!("HSET {} fence {old}", Keys::of("s").session())); // as a replica has it that missed the second
    assert_eq!(one(&store, newest, 1, 1), Err(StoreError::Unknown));
    let again = claim(&store, "s", "a").unwrap().fence;
    assert!(again > newest, "fences are given by the clock: no claim has the lost one's");
    assert_eq!(one(&store, newest, 1, 1), Err(StoreError::Fenced));
    assert_eq!(one(&store, again, 1, 1), Ok(1));
}

/// Out of memory: appends are refused whole, what is there stays, and the lease holds.
#[test]
fn a_full_server_refuses_and_keeps_what_it_has() {
    let Some(server) = Server::start(&["--maxmemory", "4mb"]) else { return };
    let store = open(&server);
    let fence = claim(&store, "s", "a").unwrap().fence;
    let mut head = 0;
    let error = loop {
        match append(&store, "s", fence, head + 1, head + 500) {
            Ok(new) => head = new,
            Err(error) => break error,
        }
        assert!(head < 1_000_000, "the limit is never reached");
    };
    assert!(matches!(error, StoreError::Full(_)), "{error}");
    assert_eq!(store.standing("s").unwrap().head, head);
    assert_eq!(read_all(&store, "s", 0, 1 << 16), text(1, head));
    assert_eq!(sure(|| store.renew("s", fence, Duration::from_secs(100))), Ok(None));
    assert!(store.standing("s").unwrap().leased_ms > 60_000, "renewed with no memory left");
    assert_eq!(store.delete("s"), Ok(true), "deleting makes room");
    // Which the server gives back on a thread of its own.
    let fence = until(|| sure(|| store.claim("s", "a", "a new life", LEASE)).ok()).fence;
    assert_eq!(until(|| append(&store, "s", fence, 1, 500).ok()), 500);
}

/// A page is about what was asked for, whatever the blocks.
#[test]
fn a_page_is_bounded_by_bytes() {
    let Some(server) = Server::start(&[]) else { return };
    let store = open(&server);
    let fence = claim(&store, "s", "a").unwrap().fence;
    let mut head = 0;
    for events in [1, 1, 2000, 1, 2000, 2000, 1, 1, 1] {
        head = append(&store, "s", fence, head + 1, head + events).unwrap();
    }
    let limit = 200_000;
    let mut after = 0;
    while after < head {
        let tail = store.read("s", after, limit).unwrap();
        let bytes: usize = tail.blocks.iter().map(|block| block.len()).sum();
        assert!(bytes <= limit, "{bytes}");
        after = tail.last;
    }
    assert_eq!(read_all(&store, "s", 0, limit), text(1, head));
}

/// By its socket, to a process on the same machine.
#[test]
fn a_socket_is_as_good_as_a_port() {
    let folder = crate::files::Folder::new();
    fs::create_dir(folder.path()).unwrap();
    let socket = folder.path().join("redis.sock").to_string_lossy().into_owned();
    let Some(_server) = Server::start(&["--unixsocket", &socket, "--requirepass", "secret"]) else { return };
    let store: Store = Arc::new(RedisStore::open(&format!("redis+unix://{socket}?db=3&pass=secret"), &options()).unwrap());
    append(&store, "s", claim(&store, "s", "a").unwrap().fence, 1, 2).unwrap();
    assert_eq!(read_all(&store, "s", 0, 1), text(1, 2));
    refused(&format!("redis+unix://{socket}?pass=secretly"), &options());
}

#[test]
fn what_is_not_as_it_was_written_is_said() {
    let Some(server) = Server::start(&[]) else { return };
    let store = open(&server);
    let fence = claim(&store, "s", "a").unwrap().fence;
    append(&store, "s", fence, 1, 3).unwrap();
    append(&store, "s", fence, 4, 6).unwrap();
    server.say(&format!("XDEL {} 3-0", Keys::of("s").log()));
    assert!(matches!(store.read("s", 0, 1), Err(StoreError::Corrupt(_))), "what is missing is missed");
    assert_eq!(store.read("s", 3, 1).unwrap().last, 6);
    server.say(&format!("XADD {} 9-0 first 7 sum 1 events x", Keys::of("s").log()));
    assert!(matches!(store.read("s", 6, 1), Err(StoreError::Corrupt(_))), "a sum that is wrong");
    server.say(&format!("DEL {}", Keys::of("s").log()));
    assert!(matches!(store.read("s", 0, 1), Err(StoreError::Corrupt(_))), "an eviction");
    server.say(&format!("SET {} x", Keys::of("t").session()));
    assert!(matches!(store.standing("t"), Err(StoreError::Corrupt(_))), "somebody else's key");
    server.say(&format!("HSET {} version 99", Keys::of("s").session()));
    assert!(matches!(store.standing("s"), Err(StoreError::Unusable(_))), "a later version's");
    assert!(matches!(claim(&store, "s", "a"), Err(StoreError::Unusable(_))), "and left alone");
}

#[test]
fn a_session_lives_as_long_as_its_retention_unless_it_is_leased() {
    let Some(server) = Server::start(&[]) else { return };
    let retention = Duration::from_millis(50);
    let store: Store = Arc::new(RedisStore::open(&server.url(), &RedisOptions { retention, ..options() }).unwrap());
    let fence = claim(&store, "s", "a").unwrap().fence;
    append(&store, "s", fence, 1, 3).unwrap();
    sure(|| store.renew("s", fence, LEASE)).unwrap();
    let left = |key: String| server.say(&format!("PTTL {key}")).trim_start_matches(':').trim().parse::<i64>().unwrap();
    assert!(left(Keys::of("s").session()) > 60_000 && left(Keys::of("s").log()) > 60_000, "while it is leased");
    sure(|| store.release("s", fence)).unwrap();
    until(|| (store.standing("s") == Err(StoreError::Unknown)).then_some(()));
    assert_eq!(left(Keys::of("s").log()), -2, "the log with it");
}

#[test]
fn who_may_not_is_told_so_without_a_secret() {
    let acl = "user agent on >secret-of-agent ~turnstream:* resetchannels &turnstream:* +@read +@write +@scripting +@pubsub +@connection +info +time +cluster|slots +asking";
    let reader =
        "user reader on >secret-of-reader ~turnstream:* resetchannels &turnstream:* +@read +@scripting +@connection +info +time";
    let Some(server) = Server::start(&["--requirepass", "secret-of-all"]) else { return };
    let at = format!("127.0.0.1:{}", server.port());
    let mut admin = redis::Client::open(format!("redis://:secret-of-all@{at}")).unwrap().get_connection().unwrap();
    for line in [acl, reader] {
        let mut command = redis::cmd("ACL");
        command.arg("SETUSER");
        line.split(' ').skip(1).for_each(|word| {
            command.arg(word);
        });
        command.exec(&mut admin).unwrap();
    }
    for url in [format!("redis://:secret-of-all@{at}"), format!("redis://agent:secret-of-agent@{at}/0")] {
        let opened = RedisStore::open(&url, &options()).unwrap();
        assert!(!format!("{opened:?}").contains("secret"));
        let store: Store = Arc::new(opened);
        assert_eq!(store.warnings(), Vec::<String>::new());
        let fence = claim(&store, "s", "a").unwrap().fence;
        let head = store.standing("s").unwrap().head;
        append(&store, "s", fence, head + 1, head + 1).unwrap();
        sure(|| store.release("s", fence)).unwrap();
    }
    for url in [format!("redis://{at}"), format!("redis://:secret@{at}"), format!("redis://agent:secret@{at}")] {
        assert!(matches!(refused(&url, &options()), StoreError::Unusable(_)), "{}", refused(&url, &options()));
    }
    let reader: Store = Arc::new(RedisStore::open(&format!("redis://reader:secret-of-reader@{at}"), &options()).unwrap());
    let error = claim(&reader, "s", "a").unwrap_err();
    assert!(
        matches!(&error, StoreError::Unusable(text) if text.contains("ACL")) && !error.to_string().contains("secret"),
        "{error}"
    );
}

#[test]
fn nobody_there_is_said_at_once() {
    let Some(mut server) = Server::start(&[]) else { return };
    let url = server.url().replace("redis://", "redis://user:secret@");
    server.kill();
    let error = refused(&url, &options());
    assert!(matches!(&error, StoreError::Unavailable(text) if text.contains("127.0.0.1")), "{error}");
}

#[test]
fn a_policy_that_evicts_is_warned_of() {
    let Some(server) = Server::start(&["--maxmemory-policy", "allkeys-lru"]) else { return };
    let warnings = RedisStore::open(&server.url(), &options()).unwrap().warnings();
    assert!(matches!(&*warnings, [only] if only.contains("allkeys-lru") && only.contains("noeviction")), "{warnings:?}");
}

#[test]
fn tls_by_url_trusts_whom_it_is_told_to() {
    if !installed("openssl", "openssl") {
        return;
    }
    let folder = crate::files::Folder::new();
    fs::create_dir(folder.path()).unwrap();
    let file = |name: &str| folder.path().join(name);
    let path = |name: &str| file(name).to_string_lossy().into_owned();
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"])
        .args(["-addext", "basicConstraints=critical,CA:false", "-keyout", &path("key.pem"), "-out", &path("cert.pem")])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    // The server asks for a certificate too, and trusts its own alone.
    let Some(server) = Server::start_tls(&file("cert.pem"), &file("key.pem")) else { return };
    let identity = Some((file("cert.pem"), file("key.pem")));
    let trusting = RedisOptions { ca_file: Some(file("cert.pem")), identity, ..options() };
    let store: Store = Arc::new(RedisStore::open(&server.tls_url(), &trusting).unwrap());
    let (send, receive) = mpsc::channel();
    store.listen(Arc::new(move |_: Option<&str>| {
        let _ = send.send(());
    }));
    append(&store, "s", claim(&store, "s", "a").unwrap().fence, 1, 2).unwrap();
    assert_eq!(read_all(&store, "s", 0, 1), text(1, 2));
    receive.recv_timeout(PATIENCE).unwrap();
    let error = refused(&server.tls_url().replace("rediss://", "rediss://user:secret@"), &options());
    assert!(matches!(&error, StoreError::Unusable(text) if text.contains("certificate")), "{error}");
    let nobody = RedisOptions { identity: None, ..trusting };
    refused(&server.tls_url().replace("rediss://", "rediss://user:secret@"), &nobody);
}
