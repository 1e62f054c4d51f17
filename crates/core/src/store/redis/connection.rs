//! One connection for commands, and what happens while there is none.
//!
//! Invariants: 1. a call ends within its limit, also where a name is not resolved, a handshake hangs or a server is stopped:
//! connections are made on a thread of their own; 2. while none can be made, only the first call waits, later ones are refused at
//! once, and it is tried again after a pause that grows to [`LONGEST_PAUSE`], with jitter; 3. a connection whose answer did not come is closed: no later call
//! can take that answer for its own; 4. no error text holds a password or what was sent.

use std::io;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use redis::{Client, Cmd, Connection, ErrorKind, RedisError, Value};

use super::script::refusal;
use super::server::too_old;
use crate::store::StoreError;

/// How long a connection may take to be made; the call that asked for it does not wait as long.
pub(super) const CONNECT: Duration = Duration::from_secs(5);
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// So much is sent before its answers are read: neither side's buffers fill while both write.
const PIECE: usize = 1 << 20;

/// A connection to one server, made anew when it breaks. One call at a time.
pub(super) struct Line {
    client: Client,
    state: Mutex<State>,
    changed: Condvar,
    pause: Mutex<Pause>,
    /// Itself, for the thread that connects.
    this: Weak<Self>,
}

enum State {
    Ready(Connection),
    Busy,
    Connecting { since: Instant },
    Down { until: Instant, why: StoreError },
}

/// Tries that failed, for the pause before the next one.
#[derive(Default)]
pub(super) struct Pause(u32);

impl Pause {
    /// Between a half and the whole of a time that doubles with each failure.
    pub(super) fn next(&mut self) -> Duration {
        let longest = LONGEST_PAUSE.min(SHORTEST_PAUSE * 2_u32.pow(self.0.min(8)));
        self.0 = self.0.saturating_add(1);
        let mut random = [0];
        let _ = getrandom::fill(&mut random); // without randomness: without jitter
        longest / 2 + longest / 2 * u32::from(random[0]) / 255
    }
}

impl Line {
    pub(super) fn new(client: Client) -> Arc<Self> {
        let state = State::Down { until: Instant::now(), why: StoreError::Unavailable("not connected yet".into()) };
        Arc::new_cyclic(|this| Self {
            client,
            state: Mutex::new(state),
            changed: Condvar::new(),
            pause: Mutex::default(),
            this: this.clone(),
        })
    }

    /// Sends `commands`, and gives an answer to each, in order; of those without one, why. A connection that turns out to have
    /// been closed while nobody used it is replaced once.
    pub(super) fn exchange<C>(
        &self,
        commands: &[C],
        pack: impl Fn(&C) -> Cmd,
        limit: Duration,
    ) -> Vec<Result<Value, StoreError>> {
        let deadline = Instant::now() + limit;
        let mut answers = Vec::with_capacity(commands.len());
        for last_try in [false, true] {
            let failure = match self.take(limit, deadline) {
                Err(error) => error,
                Ok(mut connection) => match talk(&mut connection, &commands[answers.len()..], &pack, deadline, &mut answers) {
                    Ok(()) => {
                        self.set(State::Ready(connection));
                        return answers;
                    }
                    Err(error) => {
                        let (why, stale) = (broken(&error, &self.client), error.is_connection_dropped() && !error.is_timeout());
                        self.set(State::Down { until: Instant::now(), why: why.clone() });
                        if stale && !last_try {
                            continue;
                        }
                        why
                    }
                },
            };
            answers.resize_with(commands.len(), || Err(failure.clone()));
            break;
        }
        answers
    }

    /// Has the next call make a new connection: this one leads to a server that does not do.
    pub(super) fn leave(&self) {
        let mut state = self.state.lock();
        if matches!(*state, State::Ready(_)) {
            let until = Instant::now() + SHORTEST_PAUSE;
            *state = State::Down { until, why: StoreError::Unavailable("the server is a replica".into()) };
        }
    }

    fn take(&self, limit: Duration, deadline: Instant) -> Result<Connection, StoreError> {
        let mut state = self.state.lock();
        loop {
            match std::mem::replace(&mut *state, State::Busy) {
                State::Ready(connection) => return Ok(connection),
                State::Down { until, why } if Instant::now() < until => {
                    *state = State::Down { until, why: why.clone() };
                    return Err(why);
                }
                State::Down { .. } => {
                    *state = State::Connecting { since: Instant::now() };
                    let this = self.this.clone();
                    let client = self.client.clone();
                    let spawned =
                        std::thread::Builder::new().name("turnstream-connect".into()).spawn(move || connect(&this, &client));
                    if let Err(error) = spawned {
                        let why = StoreError::Unavailable(format!("no thread to connect: {error}"));
                        *state = State::Down { until: Instant::now() + SHORTEST_PAUSE, why: why.clone() };
                        return Err(why);
                    }
                }
                other => *state = other,
            }
            let (patience, doing) = match *state {
                // Others have waited for it already.
                State::Connecting { since } => (deadline.min(since + limit), "cannot be reached"),
                _ => (deadline, "is busy"),
            };
            if self.changed.wait_until(&mut state, patience).timed_out() {
                return Err(StoreError::Unavailable(format!("{} {doing}", place(&self.client))));
            }
        }
    }

    fn set(&self, state: State) {
        *self.state.lock() = state;
        self.changed.notify_all();
    }
}

/// The connecting thread.
fn connect(line: &Weak<Line>, client: &Client) {
    let made = client.get_connection_with_timeout(CONNECT);
    let Some(line) = line.upgrade() else { return };
    match made {
        Ok(connection) => {
            *line.pause.lock() = Pause::default();
            line.set(State::Ready(connection));
        }
        Err(error) => {
            let rest = line.pause.lock().next();
            line.set(State::Down { until: Instant::now() + rest, why: broken(&error, client) });
        }
    }
}

/// Sends and receives piece by piece; what was answered is in `answers` whatever follows.
fn talk<C>(
    connection: &mut Connection,
    commands: &[C],
    pack: impl Fn(&C) -> Cmd,
    deadline: Instant,
    answers: &mut Vec<Result<Value, StoreError>>,
) -> Result<(), RedisError> {
    let remaining = || match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(RedisError::from(io::Error::from(io::ErrorKind::TimedOut))),
        remaining => Ok(Some(remaining)),
    };
    let mut packed = Vec::new();
    let mut unanswered = 0;
    for (index, command) in commands.iter().enumerate() {
        pack(command).write_packed_command(&mut packed);
        unanswered += 1;
        if packed.len() < PIECE && index + 1 < commands.len() {
            continue;
        }
        connection.set_write_timeout(remaining()?)?;
        connection.send_packed_command(&packed)?;
        packed.clear();
        for _ in 0..std::mem::take(&mut unanswered) {
            connection.set_read_timeout(remaining()?)?;
            answers.push(Ok(connection.recv_response()?));
        }
    }
    Ok(())
}

/// Host and port, or the socket's path.
pub(super) fn place(client: &Client) -> String {
    client.get_connection_info().addr().to_string()
}

/// Why there is no connection, or why it is of no use any more.
pub(super) fn broken(error: &RedisError, client: &Client) -> StoreError {
    let place = place(client);
    if let Some(code) = error.code()
        && let Ok(Value::ServerError(server)) =
            redis::parse_redis_value(format!("-{code} {}\r\n", error.detail().unwrap_or_default()).as_bytes())
    {
        return refusal(&server);
    }
    match error.kind() {
        ErrorKind::AuthenticationFailed => StoreError::Unusable("the server refuses the user name or the password".into()),
        ErrorKind::RESP3NotSupported => too_old("the server"),
        ErrorKind::InvalidClientConfig => StoreError::Unusable(format!("{place}: {error}")),
        _ if error.is_timeout() => StoreError::Unavailable(format!("{place} does not answer in time")),
        _ => {
            let text = error.to_string();
            // What rustls objects to does not pass with time.
            if text.contains("certificate") || text.contains("InvalidMessage") {
                return StoreError::Unusable(format!("{place}: no TLS: {text}"));
            }
            StoreError::Unavailable(format!("{place}: {text}"))
        }
    }
}
