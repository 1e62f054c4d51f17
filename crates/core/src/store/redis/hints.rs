//! Hints: one channel a partition; one connection and one thread for each server that has any.
//!
//! Invariants: 1. whoever listens is told to look everywhere whenever a hint may have been lost: at each subscription;
//! 2. a connection that says nothing for a while is asked whether it is there; 3. a thread ends within about [`LOOK`] of the
//! store's end, or of its server's last partition; 4. a partition that has moved is listened to where it is within about [`LOOK`].

use std::collections::HashSet;
use std::sync::{Arc, Weak, mpsc};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use redis::{PushInfo, PushKind, RedisResult, Value};

use super::Keys;
use super::cluster::{Cluster, Server};
use super::connection::{CONNECT, Pause};
use super::script;
use crate::store::Hint;

/// How often a thread looks whether it is still wanted, and where.
const LOOK: Duration = Duration::from_secs(1);
/// A connection is asked after so many looks without a hint.
const SILENCE: u32 = 10;

/// The listeners of a store, and the threads that tell them.
#[derive(Default)]
pub(super) struct Hints(Arc<Crew>);

#[derive(Default)]
struct Crew {
    listeners: Mutex<Vec<Hint>>,
    /// The servers that have a thread, by their addresses in memory, which the threads hold.
    heard: Mutex<HashSet<usize>>,
}

impl Hints {
    pub(super) fn listen(&self, hint: Hint, cluster: &Arc<Cluster>) {
        self.0.listeners.lock().push(hint);
        cover(&Arc::downgrade(&self.0), cluster);
    }
}

/// Gives each server that has partitions a thread. Without one: without hints. Timers remain.
fn cover(crew: &Weak<Crew>, cluster: &Arc<Cluster>) {
    let Some(known) = crew.upgrade() else { return };
    let mut heard = known.heard.lock();
    for (server, _) in cluster.shares() {
        if heard.insert(Arc::as_ptr(&server).addr()) {
            let (crew, cluster, place) = (crew.clone(), Arc::downgrade(cluster), Arc::as_ptr(&server).addr());
            let thread = std::thread::Builder::new().name("turnstream-hints".into());
            if thread.spawn(move || run(&server, &crew, &cluster)).is_err() {
                heard.remove(&place);
            }
        }
    }
}

/// Tells everybody; false once nobody is left.
fn tell(crew: &Weak<Crew>, session: Option<&str>) -> bool {
    let Some(crew) = crew.upgrade() else { return false };
    let listeners = crew.listeners.lock().clone(); // called without the lock
    for hint in &listeners {
        hint(session);
    }
    true
}

/// The thread of one server.
fn run(server: &Arc<Server>, crew: &Weak<Crew>, cluster: &Weak<Cluster>) {
    let mut pause = Pause::default();
    loop {
        let Some(cluster) = cluster.upgrade() else { return };
        cluster.look_again(Instant::now() + LOOK);
        cover(crew, &cluster);
        let Some(known) = crew.upgrade() else { return };
        let mut heard = known.heard.lock();
        let changes = cluster.changes();
        let share = cluster.shares().into_iter().find(|(other, _)| Arc::ptr_eq(other, server));
        let Some((_, partitions)) = share else {
            heard.remove(&Arc::as_ptr(server).addr());
            return;
        };
        drop(heard);
        drop(known);
        let weak = Arc::downgrade(&cluster);
        drop(cluster);
        let moved = || weak.upgrade().is_none_or(|cluster| cluster.changes() != changes);
        match follow(server, &partitions, crew, &mut pause, moved) {
            Ok(End::Unwanted) => return,
            Ok(End::Moved) => {}
            Err(_) => {
                // Whatever it was: again, and elsewhere if others know better.
                if let Some(cluster) = weak.upgrade() {
                    cluster.doubt();
                }
                drop(weak);
                std::thread::sleep(pause.next());
            }
        }
    }
}

/// Why a subscription is given up that works.
enum End {
    Unwanted,
    Moved,
}

/// Subscribes, and passes on what comes until the connection ends, or a partition has `moved`.
fn follow(
    server: &Server,
    partitions: &[u32],
    crew: &Weak<Crew>,
    pause: &mut Pause,
    moved: impl Fn() -> bool,
) -> RedisResult<End> {
    let mut connection = server.client.get_connection_with_timeout(CONNECT)?;
    connection.set_read_timeout(Some(CONNECT))?;
    connection.set_write_timeout(Some(CONNECT))?;
    let (sender, pushes) = mpsc::channel();
    // As the scripts publish: by shard where the server has them, which Redis 6 has not. A command a channel: in a cluster, one
    // command's channels are one slot's.
    for (at, word) in ["SSUBSCRIBE", "SUBSCRIBE"].into_iter().enumerate() {
        let mut commands = redis::pipe();
        for partition in partitions {
            commands.cmd(word).arg(Keys::channel_of(*partition));
        }
        connection.send_packed_command(&commands.get_packed_pipeline())?;
        let mut refused = None;
        for _ in partitions {
            if let Value::ServerError(error) = connection.recv_response()? {
                refused = Some(error);
            }
        }
        match refused {
            None => break,
            Some(error) if at == 0 && !["MOVED", "CLUSTERDOWN"].contains(&script::code(&error)) => {}
            Some(error) => return Err(error.into()),
        }
    }
    connection.set_push_sender(sender);
    *pause = Pause::default();
    if !tell(crew, None) {
        return Ok(End::Unwanted);
    }
    let mut messages = connection.as_pubsub();
    messages.set_read_timeout(Some(LOOK))?;
    let mut silent = 0;
    loop {
        match messages.get_message() {
            Ok(message) => {
                silent = 0;
                if !tell(crew, std::str::from_utf8(message.get_payload_bytes()).ok()) {
                    return Ok(End::Unwanted);
                }
            }
            Err(error) if error.is_timeout() => {
                if crew.strong_count() == 0 {
                    return Ok(End::Unwanted);
                }
                silent += 1;
                if silent % SILENCE == 0 {
                    messages.ping::<Value>()?;
                }
            }
            Err(error) => return Err(error),
        }
        // A server that gives a slot away ends its subscriptions.
        if pushes.try_iter().any(|push: PushInfo| push.kind == PushKind::SUnsubscribe) {
            return Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset).into());
        }
        if moved() {
            return Ok(End::Moved);
        }
    }
}
