//! Hints: one channel a partition, one connection and one thread a store.
//!
//! Invariants: 1. whoever listens is told to look everywhere whenever a hint may have been lost: at each subscription;
//! 2. a connection that says nothing for a while is asked whether it is there; 3. the thread ends within about [`LOOK`] of the
//! store's end.

use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use redis::{Client, RedisResult, Value};

use super::connection::{CONNECT, Pause};
use super::{Keys, PARTITIONS};
use crate::store::Hint;

/// How often the thread looks whether it is still wanted.
const LOOK: Duration = Duration::from_secs(1);
/// A connection is asked after so many looks without a hint.
const SILENCE: u32 = 10;

/// Who is to be told.
type Listeners = Mutex<Vec<Hint>>;

/// The listeners of a store.
#[derive(Default)]
pub(super) struct Hints(Arc<Listeners>);

impl Hints {
    pub(super) fn listen(&self, hint: Hint, client: &Client) {
        let mut listeners = self.0.lock();
        listeners.push(hint);
        if listeners.len() == 1 {
            let (client, listeners) = (client.clone(), Arc::downgrade(&self.0));
            // Without a thread: without hints. Timers remain.
            let _ = std::thread::Builder::new().name("turnstream-hints".into()).spawn(move || run(&client, &listeners));
        }
    }
}

/// Tells everybody; false once nobody is left.
fn tell(listeners: &Weak<Listeners>, session: Option<&str>) -> bool {
    let Some(listeners) = listeners.upgrade() else { return false };
    let listeners = listeners.lock().clone(); // called without the lock
    for hint in &listeners {
        hint(session);
    }
    true
}

fn run(client: &Client, listeners: &Weak<Listeners>) {
    let mut pause = Pause::default();
    while listeners.strong_count() > 0 {
        let _ = follow(client, listeners, &mut pause); // whatever it was: again
        std::thread::sleep(pause.next());
    }
}

/// Subscribes, and passes on what comes until the connection ends.
fn follow(client: &Client, listeners: &Weak<Listeners>, pause: &mut Pause) -> RedisResult<()> {
    let mut connection = client.get_connection_with_timeout(CONNECT)?;
    connection.set_read_timeout(Some(CONNECT))?;
    connection.set_write_timeout(Some(CONNECT))?;
    // As the scripts publish: by shard where the server has them, which Redis 6 has not. A command a channel: in a cluster, one
    // command's channels are one slot's.
    for (at, word) in ["SSUBSCRIBE", "SUBSCRIBE"].into_iter().enumerate() {
        let mut commands = redis::pipe();
        (0..PARTITIONS).for_each(|partition| {
            commands.cmd(word).arg(Keys::channel_of(partition));
        });
        connection.send_packed_command(&commands.get_packed_pipeline())?;
        let mut refused = None;
        for _ in 0..PARTITIONS {
            if let Value::ServerError(error) = connection.recv_response()? {
                refused = Some(error);
            }
        }
        match refused {
            None => break,
            Some(_) if at == 0 => {}
            Some(error) => return Err(error.into()),
        }
    }
    *pause = Pause::default();
    if !tell(listeners, None) {
        return Ok(());
    }
    let mut messages = connection.as_pubsub();
    messages.set_read_timeout(Some(LOOK))?;
    let mut silent = 0;
    loop {
        match messages.get_message() {
            Ok(message) => {
                silent = 0;
                if !tell(listeners, std::str::from_utf8(message.get_payload_bytes()).ok()) {
                    return Ok(());
                }
            }
            Err(error) if error.is_timeout() => {
                if listeners.strong_count() == 0 {
                    return Ok(());
                }
                silent += 1;
                if silent % SILENCE == 0 {
                    messages.ping::<Value>()?;
                }
            }
            Err(error) => return Err(error),
        }
    }
}
