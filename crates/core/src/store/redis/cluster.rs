//! Which server has which partition: the one that the URL names, or those of its cluster.
//!
//! Owns the lines to all of them, and a call's way: grouped by server, all servers at the same time, sent on where a server says
//! that another one has the slot. Refuses to know what a call asks for.
//!
//! Invariants: 1. a call ends within its limit, however many servers it needs and however often it is sent on; 2. a call that a
//! server has answered is not sent again because another server did not; 3. after a redirection or a failure the cluster is asked
//! for its slots anew, at most every [`LOOK`], by one caller, of any server that is known, which the URL's always is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use redis::{Client, ConnectionAddr, RedisError, Value};

use super::PARTITIONS;
use super::connection::Line;
use super::script::{self, Call, answer, strange, text};
use crate::store::StoreError;

/// So long a call waits before it is sent on once more: slots that move, servers that do not agree yet.
const PAUSE: Duration = Duration::from_millis(20);
/// The cluster's slots are asked for this often at most.
const LOOK: Duration = Duration::from_millis(100);

/// One server, and the lines to it.
pub(super) struct Server {
    pub(super) client: Client,
    host: String,
    port: u16,
    /// For appends alone: they may be large, and who claims does not wait behind them.
    appends: Arc<Line>,
    calls: Arc<Line>,
}

/// Which line a call takes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    Appends,
    Calls,
}

impl Server {
    fn new(client: Client) -> Arc<Self> {
        let (host, port) = match client.get_connection_info().addr() {
            ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => (host.clone(), *port),
            _ => ("127.0.0.1".to_owned(), 0), // a socket's server is here
        };
        let line = || Line::new(client.clone());
        Arc::new(Self { host, port, appends: line(), calls: line(), client })
    }

    /// Another server of its cluster: the same user, the same trust.
    fn neighbour(&self, host: &str, port: u16) -> Option<Arc<Self>> {
        let info = self.client.get_connection_info().clone();
        let host = host.to_owned();
        let addr = match info.addr() {
            ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
                ConnectionAddr::TcpTls { host, port, insecure: *insecure, tls_params: tls_params.clone() }
            }
            _ => ConnectionAddr::Tcp(host, port),
        };
        Client::open(info.set_addr(addr)).ok().map(Self::new)
    }

    pub(super) fn line(&self, lane: Lane) -> &Line {
        match lane {
            Lane::Appends => &self.appends,
            Lane::Calls => &self.calls,
        }
    }
}

/// The server of the URL, and those that it has told of.
pub(super) struct Cluster {
    seed: Arc<Server>,
    view: RwLock<View>,
    /// Rises when a partition has moved.
    changes: AtomicU64,
    /// When the slots were last asked for, and who is asked next.
    looked: Mutex<(Option<Instant>, usize)>,
}

struct View {
    /// The server of each partition.
    places: Vec<Arc<Server>>,
    /// All that have been told of, replicas too; the URL's first.
    known: Vec<Arc<Server>>,
    /// Something was not where it was looked for.
    stale: bool,
}

impl View {
    /// The server at `host` and `port`, which may be new.
    fn server(&mut self, host: &str, port: u16) -> Option<Arc<Server>> {
        let found = self.known.iter().skip(1).find(|server| server.host == host && server.port == port).cloned();
        found.or_else(|| {
            let server = self.known[0].neighbour(host, port)?;
            self.known.push(server.clone());
            Some(server)
        })
    }
}

/// A call on its way.
struct Job {
    at: usize,
    server: Arc<Server>,
    /// With the script's text: the server does not know it yet.
    text: bool,
    /// The slot is on its way to this server, which takes only those that say they know.
    asking: bool,
}

/// One command.
enum Sent<'a> {
    /// Says of the next one that its slot is on its way.
    Asking,
    Call(&'a Job),
}

impl Cluster {
    /// Everything is at `client`'s server, until it says otherwise.
    pub(super) fn new(client: Client) -> Self {
        let seed = Server::new(client);
        let view = View { places: vec![seed.clone(); PARTITIONS as usize], known: vec![seed.clone()], stale: false };
        Self { seed, view: RwLock::new(view), changes: AtomicU64::new(0), looked: Mutex::default() }
    }

    /// The server that the URL names.
    pub(super) fn seed(&self) -> &Server {
        &self.seed
    }

    /// Counts what has moved.
    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// Every server that has partitions, with those.
    pub(super) fn shares(&self) -> Vec<(Arc<Server>, Vec<u32>)> {
        let mut shares: Vec<(Arc<Server>, Vec<u32>)> = Vec::new();
        for (partition, server) in (0..).zip(&self.view.read().places) {
            match shares.iter_mut().find(|(known, _)| Arc::ptr_eq(known, server)) {
                Some((_, partitions)) => partitions.push(partition),
                None => shares.push((server.clone(), vec![partition])),
            }
        }
        shares
    }

    /// Has the scripts decide: one round trip to each server that is needed, where all is as it was.
    pub(super) fn run(&self, calls: &[Call<'_>], lane: Lane, limit: Duration) -> Vec<Result<Vec<Value>, StoreError>> {
        let deadline = Instant::now() + limit;
        self.look_again(deadline);
        let mut answers: Vec<Result<Vec<Value>, StoreError>> = Vec::with_capacity(calls.len());
        answers.resize_with(calls.len(), || {
            Err(StoreError::Unavailable("no answer in time: slots are being moved, or scripts loaded".into()))
        });
        let job = |(at, call): (usize, &Call<'_>)| {
            let server = self.view.read().places[call.partition() as usize].clone();
            Job { at, server, text: false, asking: false }
        };
        let mut jobs: Vec<_> = calls.iter().enumerate().map(job).collect();
        for hop in 0.. {
            let mut again = Vec::new();
            for (job, answered) in round(calls, jobs, lane, deadline) {
                match self.next(job, calls, lane, answered) {
                    Ok(job) => again.push(job),
                    Err((at, answer)) => answers[at] = answer,
                }
            }
            let pause = if hop == 0 { Duration::ZERO } else { PAUSE };
            if again.is_empty() || Instant::now() + pause >= deadline {
                break;
            }
            std::thread::sleep(pause);
            jobs = again;
        }
        answers
    }

    /// Where a call goes on, or what came of it.
    fn next(
        &self,
        job: Job,
        calls: &[Call<'_>],
        lane: Lane,
        answered: Result<Value, StoreError>,
    ) -> Result<Job, (usize, Result<Vec<Value>, StoreError>)> {
        let error = match answered {
            Ok(Value::ServerError(error)) => error,
            Ok(value) => return Err((job.at, answer(value))),
            Err(error) => {
                self.doubt();
                return Err((job.at, Err(error)));
            }
        };
        let refused = || Err((job.at, Err(script::refusal(&error))));
        match script::code(&error) {
            // A server that has just started, or whose scripts were flushed.
            "NOSCRIPT" if !job.text => return Ok(Job { text: true, ..job }),
            "TRYAGAIN" => return Ok(job), // of a slot that moves, some keys are here and some there
            "MOVED" | "ASK" => {}
            "CLUSTERDOWN" => {
                self.doubt();
                return refused();
            }
            "READONLY" => {
                job.server.line(lane).leave(); // the name may lead elsewhere by now
                return refused();
            }
            _ => return refused(),
        }
        let asking = script::code(&error) == "ASK";
        let told = RedisError::from(error.clone());
        let place = told.redirect_node().and_then(|(place, _)| place.rsplit_once(':'));
        let Some((host, port)) = place.and_then(|(host, port)| Some((host, port.parse().ok()?))) else { return refused() };
        let host = if host.is_empty() { &job.server.host } else { host.trim_matches(['[', ']']) };
        let mut view = self.view.write();
        let Some(server) = view.server(host, port) else { return refused() };
        if !asking {
            view.stale = true; // where one slot has moved, others may have
            self.put(&mut view, calls[job.at].partition(), &server);
        }
        Ok(Job { server, text: false, asking, ..job })
    }

    fn put(&self, view: &mut View, partition: u32, server: &Arc<Server>) {
        let place = &mut view.places[partition as usize];
        if !Arc::ptr_eq(place, server) {
            *place = server.clone();
            self.changes.fetch_add(1, Ordering::Release);
        }
    }

    /// Something may have moved.
    pub(super) fn doubt(&self) {
        let mut view = self.view.write();
        view.stale = view.known.len() > 1; // a server that has told of no other is alone
    }

    /// Asks for the slots of the cluster, where something was not where it was looked for, and nobody else asks.
    pub(super) fn look_again(&self, deadline: Instant) {
        if !self.view.read().stale {
            return;
        }
        let Some(mut looked) = self.looked.try_lock() else { return };
        let (last, turn) = *looked;
        if last.is_some_and(|last| last.elapsed() < LOOK) {
            return;
        }
        let known = self.view.read().known.clone();
        for next in 0..known.len() {
            // A server that stands still has its part of the time, and is asked last the next time.
            let server = &known[(turn + next) % known.len()];
            let left = deadline.saturating_duration_since(Instant::now()) / 3;
            if left < Duration::from_millis(1) {
                break;
            }
            *looked = (Some(Instant::now()), turn + next);
            if self.ask(server, left).is_ok() {
                return;
            }
        }
        *looked = (Some(Instant::now()), turn + 1);
    }

    /// Has `server` say who has which slots. One that may not be asked leaves it to redirections.
    pub(super) fn ask(&self, server: &Server, limit: Duration) -> Result<(), StoreError> {
        let mut slots = redis::cmd("CLUSTER");
        slots.arg("SLOTS");
        let answer = server.calls.exchange(&[slots], Clone::clone, limit).remove(0)?;
        let mut view = self.view.write();
        view.stale = false;
        let ranges = match answer {
            Value::Array(ranges) => ranges,
            Value::ServerError(error) => return Err(script::refusal(&error)),
            _ => return Err(strange()),
        };
        for range in ranges {
            let Value::Array(range) = range else { return Err(strange()) };
            let [Value::Int(first), Value::Int(last), servers @ ..] = &*range else { return Err(strange()) };
            let mut servers = servers.iter().filter_map(|told| view.server_of(told, &server.host));
            let (primary, _replicas) = (servers.next(), servers.count());
            let Some(primary) = primary else { continue };
            for partition in (0..PARTITIONS).filter(|partition| (*first..=*last).contains(&i64::from(slot(*partition)))) {
                self.put(&mut view, partition, &primary);
            }
        }
        Ok(())
    }
}

impl View {
    /// A server as CLUSTER SLOTS tells of it; without a host, it is where whoever tells is.
    fn server_of(&mut self, told: &Value, teller: &str) -> Option<Arc<Server>> {
        let Value::Array(told) = told else { return None };
        let [host, Value::Int(port), ..] = &**told else { return None };
        let host = match text(host) {
            Ok("") | Err(_) => teller,
            Ok("?") => return None,
            Ok(host) => host,
        };
        self.server(host, u16::try_from(*port).ok()?)
    }
}

/// Sends each call to its server, to all servers at the same time.
fn round(
    calls: &[Call<'_>],
    jobs: Vec<Job>,
    lane: Lane,
    deadline: Instant,
) -> impl Iterator<Item = (Job, Result<Value, StoreError>)> {
    let mut groups: Vec<Vec<Job>> = Vec::new();
    for job in jobs {
        match groups.iter_mut().find(|group| Arc::ptr_eq(&group[0].server, &job.server)) {
            Some(group) => group.push(job),
            None => groups.push(vec![job]),
        }
    }
    let talk = |group: &[Job]| {
        let mut sent = Vec::with_capacity(group.len());
        for job in group {
            sent.extend(job.asking.then_some(Sent::Asking));
            sent.push(Sent::Call(job));
        }
        let pack = |sent: &Sent<'_>| match sent {
            Sent::Asking => redis::cmd("ASKING"),
            Sent::Call(job) => calls[job.at].command(job.text),
        };
        let answers = group[0].server.line(lane).exchange(&sent, pack, deadline.saturating_duration_since(Instant::now()));
        let answers = sent.iter().zip(answers).filter(|(sent, _)| matches!(sent, Sent::Call(_)));
        answers.map(|(_, answer)| answer).collect::<Vec<_>>()
    };
    let talk = &talk;
    let answers = std::thread::scope(|scope| {
        let thread = |group| std::thread::Builder::new().name("turnstream-call".into()).spawn_scoped(scope, move || talk(group));
        let others: Vec<_> = groups.iter().skip(1).map(|group: &Vec<Job>| thread(group)).collect();
        let mut answers: Vec<_> = groups.first().map(|group| talk(group)).into_iter().collect();
        answers.extend(others.into_iter().map(|other| other.ok().and_then(|other| other.join().ok()).unwrap_or_default()));
        answers
    });
    let none = || Err(StoreError::Unavailable("no thread to call the server".into()));
    groups
        .into_iter()
        .zip(answers)
        .flat_map(move |(group, answers)| group.into_iter().zip(answers.into_iter().chain(std::iter::repeat_with(none))))
}

/// A partition's slot in a cluster: CRC-16/XMODEM of what its keys have in braces.
/// Rule: <https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#hash-tags>.
fn slot(partition: u32) -> u16 {
    let shifted = |crc: u16| if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
    let add = |crc: u16, byte: u8| (0..8).fold(crc ^ (u16::from(byte) << 8), |crc, _| shifted(crc));
    partition.to_string().bytes().fold(0, add) % 16_384
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partitions_slot_is_the_clusters() {
        // As CLUSTER KEYSLOT says.
        assert_eq!([0, 7, 42, 63].map(slot), [13_907, 1_716, 8_000, 10_499]);
    }
}
