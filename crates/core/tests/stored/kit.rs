//! What tests of sessions in a store lean on: hubs, turns, a reader that waits, and a store that can be switched off.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::task::{Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use turnstream_core::event::Payload;
use turnstream_core::reader::{Cursor, Follow, Item, Poll, ReadOptions, Reader};
use turnstream_core::session::{Ending, Hub, Limits, Session, SessionError, StoreOptions, TurnOptions};
use turnstream_core::store::{Append, Claim, Durability, Hint, LogStore, MemoryStore, Retention, Standing, StoreError, Tail};

pub const LIMIT: Duration = Duration::from_secs(20);

pub struct Unpark(pub Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Reads until the end of what is followed, or `enough` says so.
pub fn read_until(
    session: &Arc<Session>,
    after: Option<&str>,
    follow: Follow,
    enough: impl Fn(&[String]) -> bool,
) -> Vec<String> {
    let after = after.map(|cursor| Cursor::parse(cursor).unwrap());
    let mut reader = Reader::open(session, &ReadOptions { after, follow, ..ReadOptions::default() }).unwrap();
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let deadline = Instant::now() + LIMIT;
    let (mut items, mut lines) = (Vec::new(), Vec::new());
    loop {
        let poll = reader.poll(64, &mut items);
        lines.extend(items.drain(..).map(|item: Item| item.event().to_json()));
        if poll == Poll::End || enough(&lines) {
            return lines;
        }
        if poll == Poll::Pending && reader.park(&waker) {
            assert!(Instant::now() < deadline, "nothing more came after {:?}", lines.last());
            std::thread::park_timeout(Duration::from_secs(1));
        }
    }
}

pub fn read_turn(session: &Arc<Session>) -> Vec<String> {
    read_until(session, None, Follow::Turn, |_| false)
}

pub fn kinds(lines: &[String]) -> Vec<String> {
    lines.iter().map(|line| line.split('"').nth(3).unwrap().to_owned()).collect()
}

pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

/// Tells threads that go on until then to stop, also where the test fails: they would be waited for for ever.
#[derive(Default)]
pub struct Stop(AtomicBool);

impl Stop {
    pub fn is_told(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    pub fn at_the_end(&self) -> AtTheEnd<'_> {
        AtTheEnd(self)
    }
}

pub struct AtTheEnd<'a>(&'a Stop);

impl Drop for AtTheEnd<'_> {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::SeqCst);
    }
}

pub fn hub(store: &Arc<dyn LogStore>, lease: Duration, durability: Durability) -> Hub {
    let options = StoreOptions { durability, lease, ..StoreOptions::default() };
    Hub::with_store(Limits::default(), store.clone(), options, None).unwrap()
}

pub fn two_hubs(store: &Arc<dyn LogStore>) -> (Hub, Hub) {
    let make = || hub(store, Duration::from_secs(10), Durability::Process);
    (make(), make())
}

pub fn memory() -> Arc<dyn LogStore> {
    Arc::new(MemoryStore::new())
}

pub fn start(session: &Session) -> u32 {
    session.start_turn(TurnOptions::default()).unwrap().turn
}

pub fn say(session: &Session, text: &str) -> Result<u64, SessionError> {
    session.emit(None, delta(text), None)
}

pub fn say_in(session: &Session, turn: u32, text: &str) -> Result<u64, SessionError> {
    session.emit(Some(turn), delta(text), None)
}

fn delta(text: &str) -> Payload {
    Payload::from_json("text_delta", &format!("{{\"text\":\"{text}\"}}")).unwrap().0
}

pub fn end(session: &Session, turn: u32) {
    assert!(session.end_turn(turn, Ending::default()));
}

/// There is no room.
pub const FULL: u8 = 2;
/// Reads wait until the store works.
pub const WAITING: u8 = 3;
/// Reads find damage.
pub const DAMAGED: u8 = 4;
/// The device fails.
pub const FAILING: u8 = 5;
/// A claim and a write take a while, and let others run.
pub const YIELDING: u8 = 6;

/// A store that can be made to refuse, and to take its time, for one of several hubs.
pub struct Switch {
    inner: Arc<dyn LogStore>,
    /// 0: works; 1: away; 2: full; or one of the words above. Of reads, only of [`WAITING`] and [`DAMAGED`].
    mode: AtomicU8,
    /// Reads from a history's beginning.
    pub reads: AtomicUsize,
    /// How long each call takes, in milliseconds.
    delay: AtomicU64,
}

impl Switch {
    pub fn new(inner: &Arc<dyn LogStore>) -> Arc<Self> {
        Arc::new(Self { inner: inner.clone(), mode: AtomicU8::new(0), reads: AtomicUsize::new(0), delay: AtomicU64::new(0) })
    }

    pub fn set(&self, mode: u8) {
        self.mode.store(mode, Ordering::SeqCst);
    }

    pub fn slow(&self, delay: Duration) {
        self.delay.store(u64::try_from(delay.as_millis()).unwrap(), Ordering::SeqCst);
    }

    fn take_time(&self) {
        std::thread::sleep(Duration::from_millis(self.delay.load(Ordering::SeqCst)));
    }

    fn check(&self) -> Result<(), StoreError> {
        self.take_time();
        match self.mode.load(Ordering::SeqCst) {
            0 | WAITING | DAMAGED => Ok(()),
            YIELDING => {
                std::thread::sleep(Duration::from_millis(1));
                Ok(())
            }
            1 => Err(StoreError::Unavailable("switched off".into())),
            FAILING => Err(StoreError::Io("switched to failing".into())),
            _ => Err(StoreError::Full("switched to full".into())),
        }
    }
}

impl LogStore for Switch {
    fn claim(&self, session: &str, owner: &str, epoch: &str, lease: Duration) -> Result<Claim, StoreError> {
        self.check().and_then(|()| self.inner.claim(session, owner, epoch, lease))
    }
    fn renew(&self, session: &str, fence: u64, lease: Duration) -> Result<Option<String>, StoreError> {
        self.check().and_then(|()| self.inner.renew(session, fence, lease))
    }
    fn release(&self, session: &str, fence: u64) -> Result<(), StoreError> {
        self.check().and_then(|()| self.inner.release(session, fence))
    }
    fn append(&self, batch: &[Append<'_>]) -> Vec<Result<u64, StoreError>> {
        match self.check() {
            Ok(()) => self.inner.append(batch),
            Err(error) => vec![Err(error); batch.len()],
        }
    }
    fn standing(&self, session: &str) -> Result<Standing, StoreError> {
        self.take_time();
        self.inner.standing(session)
    }
    fn read(&self, session: &str, after: u64, max_bytes: usize) -> Result<Tail, StoreError> {
        self.take_time();
        self.reads.fetch_add(usize::from(after == 0), Ordering::SeqCst);
        match self.mode.load(Ordering::SeqCst) {
            WAITING => until("reads go on", || self.mode.load(Ordering::SeqCst) != WAITING),
            DAMAGED => return Err(StoreError::Corrupt("switched to damaged".into())),
            _ => {}
        }
        self.inner.read(session, after, max_bytes)
    }
    fn seal(&self, session: &str, fence: u64, head: u64) -> Result<bool, StoreError> {
        self.take_time();
        self.inner.seal(session, fence, head)
    }
    fn ask_cancel(&self, session: &str, reason: &str) -> Result<(), StoreError> {
        self.take_time();
        self.inner.ask_cancel(session, reason)
    }
    fn listen(&self, hint: Hint) {
        self.inner.listen(hint);
    }
    fn forgets(&self) -> bool {
        self.inner.forgets()
    }
    fn rename(&self, session: &str, fence: u64, epoch: &str) -> Result<Standing, StoreError> {
        self.check().and_then(|()| self.inner.rename(session, fence, epoch))
    }
    fn expire(&self, retention: &Retention, step: usize) -> Result<usize, StoreError> {
        self.inner.expire(retention, step)
    }
    fn delete(&self, session: &str) -> Result<bool, StoreError> {
        self.take_time();
        self.inner.delete(session)
    }
}
