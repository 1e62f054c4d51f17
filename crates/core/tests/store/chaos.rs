//! A store that behaves as badly as a network and a failover allow, around one that behaves.
//!
//! Drops and repeats hints; loses answers before and after the call was carried out; repeats appends; and, where `back` is
//! set, forgets the newest blocks that it had acknowledged.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use turnstream_core::store::{Append, Claim, Hint, LogStore, Retention, Standing, StoreError, Tail};

pub struct Chaos {
    inner: Arc<dyn LogStore>,
    random: Mutex<u64>,
    back: bool,
    /// Acknowledged and not yet handed on: what a failover loses.
    held: Mutex<HashMap<String, Vec<Held>>>,
}

struct Held {
    fence: u64,
    first: u64,
    last: u64,
    ended: Option<u64>,
    data: Vec<u8>,
}

impl Held {
    fn append<'a>(&'a self, session: &'a str) -> Append<'a> {
        Append { session, fence: self.fence, first: self.first, last: self.last, ended: self.ended, data: &self.data }
    }
}

impl Chaos {
    pub fn new(inner: Arc<dyn LogStore>, seed: u64, back: bool) -> Self {
        Self { inner, random: Mutex::new(seed | 1), back, held: Mutex::default() }
    }

    /// True once in `n` calls, about.
    fn once_in(&self, n: u64) -> bool {
        let mut state = self.random.lock().unwrap();
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33 < (1 << 31) / n
    }

    /// A call whose answer may be lost, before or after it was carried out.
    fn lossy<T>(&self, act: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
        if self.once_in(8) {
            return Err(StoreError::Unavailable("lost before".into()));
        }
        let answer = act();
        if self.once_in(8) { Err(StoreError::Unavailable("lost after".into())) } else { answer }
    }

    /// Hands on what is held: nothing of it can be lost any more.
    fn settle(&self, session: &str) {
        for held in self.held.lock().unwrap().remove(session).unwrap_or_default() {
            let _ = self.inner.append(&[held.append(session)]);
        }
    }

    fn append_one(&self, append: &Append<'_>) -> Result<u64, StoreError> {
        if !self.back {
            if self.once_in(4) {
                let _ = self.inner.append(&[*append]);
            }
            return self.inner.append(&[*append]).remove(0);
        }
        let mut held = self.held.lock().unwrap();
        let blocks = held.entry(append.session.to_owned()).or_default();
        if self.once_in(10) {
            let keep = blocks.len() / 2;
            blocks.truncate(keep);
        }
        let standing = self.inner.standing(append.session)?;
        let newest = blocks.last().map_or(standing.head, |block| block.last);
        if append.last <= newest {
            return Ok(newest);
        }
        if append.first != newest + 1 {
            return Err(StoreError::NotNext { head: newest });
        }
        // The inner store decides about the fence: a renewal is refused to whoever may not write.
        self.inner.renew(append.session, append.fence, Duration::from_secs(60))?;
        let Append { fence, first, last, ended, data, .. } = *append;
        blocks.push(Held { fence, first, last, ended, data: data.to_vec() });
        if blocks.len() > 6 {
            let oldest = blocks.remove(0);
            self.inner.append(&[oldest.append(append.session)]).remove(0)?;
        }
        Ok(last)
    }
}

impl LogStore for Chaos {
    fn claim(&self, session: &str, owner: &str, epoch: &str, lease: Duration) -> Result<Claim, StoreError> {
        self.settle(session);
        self.lossy(|| self.inner.claim(session, owner, epoch, lease))
    }

    fn renew(&self, session: &str, fence: u64, lease: Duration) -> Result<Option<String>, StoreError> {
        self.lossy(|| self.inner.renew(session, fence, lease))
    }

    fn release(&self, session: &str, fence: u64) -> Result<(), StoreError> {
        self.settle(session);
        self.lossy(|| self.inner.release(session, fence))
    }

    fn append(&self, batch: &[Append<'_>]) -> Vec<Result<u64, StoreError>> {
        batch.iter().map(|append| self.lossy(|| self.append_one(append))).collect()
    }

    fn standing(&self, session: &str) -> Result<Standing, StoreError> {
        let held = self.held.lock().unwrap();
        let mut standing = self.inner.standing(session)?;
        for block in held.get(session).into_iter().flatten() {
            standing.head = block.last;
            standing.ended = block.ended.unwrap_or(standing.ended);
        }
        Ok(standing)
    }

    fn read(&self, session: &str, after: u64, max_bytes: usize) -> Result<Tail, StoreError> {
        let standing = self.standing(session)?;
        let held = self.held.lock().unwrap();
        let mut tail = self.inner.read(session, after, max_bytes)?;
        if tail.last == tail.standing.head || tail.blocks.is_empty() {
            for block in held.get(session).into_iter().flatten().filter(|block| block.last > after) {
                tail.blocks.push(block.data.as_slice().into());
                tail.last = block.last;
            }
        }
        tail.standing = standing;
        Ok(tail)
    }

    fn seal(&self, session: &str, fence: u64, head: u64) -> Result<bool, StoreError> {
        self.settle(session);
        self.inner.seal(session, fence, head)
    }

    fn ask_cancel(&self, session: &str, reason: &str) -> Result<(), StoreError> {
        self.lossy(|| self.inner.ask_cancel(session, reason))
    }

    fn listen(&self, hint: Hint) {
        let random = Mutex::new(0_u64);
        self.inner.listen(Arc::new(move |session| {
            let mut count = random.lock().unwrap();
            *count += 1;
            // One of three is lost, one comes twice.
            for _ in 0..*count % 3 {
                hint(session);
            }
        }));
    }

    fn expire(&self, retention: &Retention, step: usize) -> Result<usize, StoreError> {
        self.inner.expire(retention, step)
    }

    fn forgets(&self) -> bool {
        self.back || self.inner.forgets()
    }

    fn rename(&self, session: &str, fence: u64, epoch: &str) -> Result<Standing, StoreError> {
        self.settle(session);
        self.inner.rename(session, fence, epoch)
    }

    fn delete(&self, session: &str) -> Result<bool, StoreError> {
        self.held.lock().unwrap().remove(session);
        self.inner.delete(session)
    }
}
