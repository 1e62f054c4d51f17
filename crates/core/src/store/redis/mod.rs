//! Histories in a Redis or Valkey server, for all processes that reach it.
//!
//! A session is three keys, all of one cluster slot: `turnstream:{P}:session:ID`, a hash of where it stands;
//! `turnstream:{P}:log:ID`, a stream; and `turnstream:{P}:lease:ID`, which lives as long as the writer's lease. `P` is the session's
//! partition, 0 to 63 ([`Keys`]). Every call is one script, which decides in one step on the server and hints on the channel
//! `turnstream:{P}:hints`, of the same slot, by shard where the server has shards.
//!
//! A stream's entry is one block: `XRANGE` shows `<seq>-0`, the seq of its last event, with the fields `first`, `sum` (CRC-32) and
//! `events`, one a line. By its last seq, and not by its first, for then the entries after `<cursor>-0` are those that a reader at that
//! cursor needs, the one that it stands in the middle of too: one XRANGE, and no look backwards.
//!
//! Invariants: 1. a call ends within its limit ([`RedisOptions::limit`]; four of it for appends, which no agent waits for);
//! 2. a session ends by its time to live, which claims, renewals and appends set anew: never while it is leased; 3. a page is
//! counted by the session's largest block, so that no answer is larger than was asked for, and has 4000 blocks at most;
//! 4. what a failover takes back is found by fence and head, and said as [`StoreError::Unknown`] or [`StoreError::NotNext`];
//! 5. no password is in an error or in the `Debug` form.
//!
//! Of a cluster, each call goes to the server that has the session's slot ([`cluster`]); any server may be named in the URL.

mod cluster;
mod connection;
mod hints;
mod script;
mod server;

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use redis::{Client, Cmd, ConnectionAddr, IntoConnectionInfo, ProtocolVersion, TlsCertificates, Value};

use self::cluster::{Cluster, Lane, Server};
use self::connection::CONNECT;
use self::hints::Hints;
use self::script::{Call, number, other_version, strange, text};
use self::server::Facts;
use super::{Append, Claim, Durability, Hint, LogStore, Retention, Standing, StoreError, Tail, first_fence};
use crate::session::hub::random_word;

/// The form of a session's keys.
const VERSION: &str = "1";
/// Channels, and hash tags.
const PARTITIONS: u32 = 64;
/// How long the fence of a deleted session stays, for its writer to learn of it.
const DELETED: Duration = Duration::from_secs(3600);

/// How a server is used.
#[derive(Debug, Clone)]
pub struct RedisOptions {
    /// What the caller expects of an acknowledgement: the server decides, so this only warns.
    pub durability: Durability,
    /// A session that nobody writes or renews for so long is gone.
    pub retention: Duration,
    /// The longest that a call waits for the server.
    pub limit: Duration,
    /// The certificates that sign the server's, in PEM; without: the system's.
    pub ca_file: Option<PathBuf>,
    /// The client's own certificate and its key, in PEM.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl Default for RedisOptions {
    fn default() -> Self {
        Self {
            durability: Durability::Process,
            retention: Duration::from_secs(30 * 24 * 3600),
            limit: Duration::from_millis(500),
            ca_file: None,
            identity: None,
        }
    }
}

/// The names of a session's keys.
#[derive(Debug, Clone)]
pub struct Keys {
    partition: u32,
    id: Box<str>,
}

impl Keys {
    /// Of the session `id`.
    pub fn of(id: &str) -> Self {
        Self { partition: crc32fast::hash(id.as_bytes()) % PARTITIONS, id: id.into() }
    }

    fn key(&self, kind: &str) -> String {
        format!("turnstream:{{{}}}:{kind}:{}", self.partition, self.id)
    }

    /// The hash: epoch, head, ended, sealed, fence, owner, touched, and a cancel's reason.
    pub fn session(&self) -> String {
        self.key("session")
    }

    /// The stream.
    pub fn log(&self) -> String {
        self.key("log")
    }

    /// The lease: its owner.
    pub fn lease(&self) -> String {
        self.key("lease")
    }

    /// The channel of its hints.
    pub fn channel(&self) -> String {
        Self::channel_of(self.partition)
    }

    fn channel_of(partition: u32) -> String {
        format!("turnstream:{{{partition}}}:hints")
    }
}

/// A store in a Redis or Valkey server.
pub struct RedisStore {
    options: RedisOptions,
    cluster: Arc<Cluster>,
    hints: Hints,
    warnings: Vec<String>,
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore").field("server", &connection::place(&self.cluster.seed().client)).finish_non_exhaustive()
    }
}

impl RedisStore {
    /// Connects to the server of `url`: `redis://[user:password@]host[:port][/db]`, `rediss://…` for TLS, or
    /// `redis+unix:///path[?db=…&user=…&pass=…]`.
    pub fn open(url: &str, options: &RedisOptions) -> Result<Self, StoreError> {
        let cluster = Arc::new(Cluster::new(client(url, options)?));
        let seed = cluster.seed();
        let ask = |command: Cmd| seed.line(Lane::Calls).exchange(&[command], Clone::clone, CONNECT).remove(0);
        let mut warnings = Vec::new();
        match ask(redis::cmd("INFO"))? {
            Value::ServerError(error) if error.code() == "NOPERM" => {
                warnings.push("the server's ACL forbids INFO: its version and its maxmemory-policy are not known".into());
                let _ = cluster.ask(seed, CONNECT); // refused by one that is in no cluster
            }
            Value::ServerError(error) => return Err(script::refusal(&error)),
            value => {
                let info: String = redis::from_redis_value(value).map_err(|_| strange())?;
                let facts = Facts::read(&info);
                facts.check()?;
                warnings.extend(facts.warnings());
                if facts.is_clustered()
                    && let Err(error) = cluster.ask(seed, CONNECT)
                {
                    warnings.push(format!("the slots of the cluster are found one by one: {error}"));
                }
            }
        }
        if options.durability == Durability::Disk {
            let says = |name: &str, wanted: &str| {
                let answer = ask(redis::cmd("CONFIG").arg("GET").arg(name).take());
                let pairs: Result<Vec<(String, String)>, _> = redis::from_redis_value(answer.unwrap_or(Value::Nil));
                pairs.is_ok_and(|pairs| pairs.iter().any(|(_, value)| value == wanted))
            };
            if !says("appendonly", "yes") || !says("appendfsync", "always") {
                warnings.push(
                    "durability \"disk\": the Redis server acknowledges before its disk has it; that takes appendonly yes \
                     and appendfsync always"
                        .into(),
                );
            }
        }
        Ok(Self { options: options.clone(), cluster, hints: Hints::default(), warnings })
    }

    fn call(&self, call: Call<'_>) -> Result<Vec<Value>, StoreError> {
        self.cluster.run(&[call], Lane::Calls, self.options.limit).remove(0)
    }

    /// What of one server's sessions is older than `retention`, until `step` are gone.
    fn expire_on(&self, server: &Server, retention: &Retention, step: usize) -> Result<usize, StoreError> {
        let (mut cursor, mut gone) = (0_u64, 0);
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg("turnstream:{*}:session:*").arg("COUNT").arg(256);
            let page = match server.line(Lane::Calls).exchange(&[scan], Clone::clone, self.options.limit).remove(0)? {
                Value::ServerError(error) => return Err(script::refusal(&error)),
                page => page,
            };
            let (next, keys): (u64, Vec<String>) = redis::from_redis_value(page).map_err(|_| strange())?;
            let ids: Vec<_> = keys.iter().filter_map(|key| key.splitn(4, ':').nth(3)).collect();
            for ids in ids.chunks(step.max(1)) {
                let expire = |id: &&str| Call::new(&script::EXPIRE, Keys::of(id)).number(retention.max_age_ms);
                let calls: Vec<_> = ids.iter().map(expire).collect();
                for rest in self.cluster.run(&calls, Lane::Calls, self.options.limit) {
                    gone += rest?.first().map_or_else(|| Err(strange()), number)? as usize;
                }
                if gone >= step {
                    return Ok(gone);
                }
            }
            if next == 0 {
                return Ok(gone);
            }
            cursor = next;
        }
    }

    /// In milliseconds.
    fn retention(&self) -> u64 {
        self.options.retention.as_millis() as u64
    }
}

fn client(url: &str, options: &RedisOptions) -> Result<Client, StoreError> {
    let unusable = |what: &str| StoreError::Unusable(what.into());
    let parsed = redis::parse_redis_url(url)
        .and_then(|url| url.into_connection_info().ok())
        .ok_or_else(|| unusable("the URL is not one of a Redis server; expected redis://[user:password@]host[:port][/db]"))?;
    let tls = matches!(parsed.addr(), ConnectionAddr::TcpTls { .. });
    if matches!(parsed.addr(), ConnectionAddr::TcpTls { insecure: true, .. }) {
        return Err(unusable("#insecure is not supported: name the server's certificate with ca_file"));
    }
    let settings = parsed.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
    let settings = settings.set_lib_name("turnstream", env!("CARGO_PKG_VERSION"));
    let tcp = parsed.tcp_settings().clone().set_nodelay(true);
    let info = parsed.set_redis_settings(settings).set_tcp_settings(tcp);
    let pem = |path: &PathBuf| fs::read(path).map_err(|error| unusable(&format!("{}: {error}", path.display())));
    let root_cert = options.ca_file.as_ref().map(pem).transpose()?;
    let identity = options.identity.as_ref().map(|(cert, key)| Ok::<_, StoreError>((pem(cert)?, pem(key)?))).transpose()?;
    if !tls {
        return match (root_cert, identity) {
            (None, None) => Client::open(info).map_err(|_| strange()),
            _ => Err(unusable("a certificate is of use with rediss:// alone")),
        };
    }
    let client_tls = identity.map(|(client_cert, client_key)| redis::ClientTlsConfig { client_cert, client_key });
    Client::build_with_tls(info, TlsCertificates { client_tls, root_cert })
        .map_err(|_| unusable("a certificate or its key is not PEM that can be read"))
}

fn append_call(append: Append<'_>, retention: u64) -> Call<'_> {
    Call::new(&script::APPEND, Keys::of(append.session))
        .number(append.fence)
        .number(append.first)
        .number(append.last)
        .owned(append.ended.map(|seq| seq.to_string()).unwrap_or_default())
        .number(u64::from(crc32fast::hash(append.data)))
        .arg(append.data)
        .number(retention)
        .hint(append.session)
}

fn standing(value: &Value) -> Result<Standing, StoreError> {
    let Value::Array(items) = value else { return Err(strange()) };
    let [epoch, head, ended, touched, sealed, version, leased] = items.as_slice() else { return Err(strange()) };
    if text(version)? != VERSION {
        return Err(other_version());
    }
    Ok(Standing {
        epoch: text(epoch)?.to_owned(),
        head: number(head)?,
        trimmed: 0,
        ended: number(ended)?,
        sealed: number(sealed)? == 1,
        leased_ms: number(leased)?,
        touched: number(touched)?,
    })
}

/// First and last seq and the checksum of a block, from a line that the script says: "first last-0 checksum".
fn place(line: &str) -> Option<(u64, u64, u64)> {
    let mut words = line.split(' ');
    let mut number = |ending: &str| words.next()?.strip_suffix(ending)?.parse().ok();
    Some((number("")?, number("-0")?, number("")?))
}

impl LogStore for RedisStore {
    fn claim(&self, session: &str, owner: &str, epoch: &str, lease: Duration) -> Result<Claim, StoreError> {
        let call = Call::new(&script::CLAIM, Keys::of(session)).arg(owner).arg(epoch).number(lease.as_millis() as u64);
        let call = call.number(first_fence()).number(self.retention()).arg(VERSION).owned(random_word(8));
        let rest = self.call(call)?;
        let [fence, at] = rest.as_slice() else { return Err(strange()) };
        Ok(Claim { fence: number(fence)?, standing: standing(at)? })
    }

    fn renew(&self, session: &str, fence: u64, lease: Duration) -> Result<Option<String>, StoreError> {
        let call = Call::new(&script::RENEW, Keys::of(session)).number(fence).number(lease.as_millis() as u64);
        match self.call(call.number(self.retention()))?.first() {
            None | Some(Value::Nil) => Ok(None),
            Some(reason) => Ok(Some(text(reason)?.to_owned())),
        }
    }

    fn release(&self, session: &str, fence: u64) -> Result<(), StoreError> {
        self.call(Call::new(&script::RELEASE, Keys::of(session)).number(fence).hint(session).number(self.retention())).map(|_| ())
    }

    fn append(&self, batch: &[Append<'_>]) -> Vec<Result<u64, StoreError>> {
        let calls: Vec<_> = batch.iter().map(|append| append_call(*append, self.retention())).collect();
        let answers = self.cluster.run(&calls, Lane::Appends, self.options.limit * 4);
        answers.into_iter().map(|rest| rest.and_then(|rest| rest.first().map_or_else(|| Err(strange()), number))).collect()
    }

    fn standing(&self, session: &str) -> Result<Standing, StoreError> {
        self.call(Call::new(&script::STANDING, Keys::of(session)))?.first().map_or_else(|| Err(strange()), standing)
    }

    fn read(&self, session: &str, after: u64, max_bytes: usize) -> Result<Tail, StoreError> {
        let rest = self.call(Call::new(&script::READ, Keys::of(session)).number(after).number(max_bytes as u64))?;
        let mut rest = rest.into_iter();
        let (Some(at), Some(places), Some(Value::Array(blocks))) = (rest.next(), rest.next(), rest.next()) else {
            return Err(strange());
        };
        let mut tail = Tail { standing: standing(&at)?, blocks: Vec::with_capacity(blocks.len()), last: after };
        for (line, block) in text(&places)?.lines().zip(blocks) {
            let (Some((first, last, sum)), Value::BulkString(data)) = (place(line), block) else { return Err(strange()) };
            // The first block may reach back behind the cursor.
            let follows = if tail.blocks.is_empty() { first <= after + 1 } else { first == tail.last + 1 };
            if !follows || u64::from(crc32fast::hash(&data)) != sum {
                // What is whole is read; the next page begins with what is not.
                if tail.blocks.is_empty() {
                    return Err(StoreError::Corrupt(format!("the block of events {first} to {last} is not as it was written")));
                }
                return Ok(tail);
            }
            tail.last = last;
            tail.blocks.push(Arc::from(data));
        }
        if tail.blocks.is_empty() && after < tail.standing.head {
            return Err(StoreError::Corrupt(format!("events {} to {} are missing", after + 1, tail.standing.head)));
        }
        Ok(tail)
    }

    fn seal(&self, session: &str, fence: u64, head: u64) -> Result<bool, StoreError> {
        let rest = self.call(Call::new(&script::SEAL, Keys::of(session)).number(fence).number(head).hint(session))?;
        rest.first().map_or_else(|| Err(strange()), number).map(|sealed| sealed == 1)
    }

    fn rename(&self, session: &str, fence: u64, epoch: &str) -> Result<Standing, StoreError> {
        let rest = self.call(Call::new(&script::RENAME, Keys::of(session)).number(fence).arg(epoch).hint(session))?;
        rest.first().map_or_else(|| Err(strange()), standing)
    }

    fn ask_cancel(&self, session: &str, reason: &str) -> Result<(), StoreError> {
        self.call(Call::new(&script::CANCEL, Keys::of(session)).arg(reason).hint(session)).map(|_| ())
    }

    fn listen(&self, hint: Hint) {
        self.hints.listen(hint, &self.cluster);
    }

    /// The server does it by time to live; only a shorter age than the store was opened with is looked for. The server's memory
    /// is bounded by its own `maxmemory`.
    fn expire(&self, retention: &Retention, step: usize) -> Result<usize, StoreError> {
        if u128::from(retention.max_age_ms) >= self.options.retention.as_millis() {
            return Ok(0);
        }
        let mut gone = 0;
        for (server, _) in self.cluster.shares() {
            gone += self.expire_on(&server, retention, step.saturating_sub(gone))?;
            if gone >= step {
                break;
            }
        }
        Ok(gone)
    }

    fn forgets(&self) -> bool {
        true
    }

    fn warnings(&self) -> Vec<String> {
        self.warnings.clone()
    }

    fn delete(&self, session: &str) -> Result<bool, StoreError> {
        let call = Call::new(&script::DELETE, Keys::of(session)).hint(session).number(DELETED.as_millis() as u64);
        self.call(call)?.first().map_or_else(|| Err(strange()), number).map(|known| known == 1)
    }
}
