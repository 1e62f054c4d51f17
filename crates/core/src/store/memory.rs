//! The store in memory: the model of what a store promises, shared by hubs of one process.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{Append, Claim, Hint, LogStore, Retention, Standing, StoreError, Tail, first_fence};
use crate::clock::now_ms;

/// Histories in memory. They end with it.
#[derive(Default)]
pub struct MemoryStore {
    histories: Mutex<HashMap<String, History>>,
    hints: Mutex<Vec<Hint>>,
}

struct Block {
    first: u64,
    last: u64,
    data: Arc<[u8]>,
}

struct History {
    epoch: String,
    blocks: Vec<Block>,
    ended: u64,
    sealed: bool,
    fence: u64,
    lease: Option<(String, Instant)>,
    cancel: Option<String>,
    touched: u64,
}

impl History {
    fn head(&self) -> u64 {
        self.blocks.last().map_or(0, |block| block.last)
    }

    fn leased(&self) -> Duration {
        self.lease.as_ref().map_or(Duration::ZERO, |(_, until)| until.saturating_duration_since(Instant::now()))
    }

    fn standing(&self) -> Standing {
        Standing {
            epoch: self.epoch.clone(),
            head: self.head(),
            trimmed: self.blocks.first().map_or(0, |block| block.first - 1),
            ended: self.ended,
            sealed: self.sealed,
            leased_ms: self.leased().as_millis() as u64,
            touched: self.touched,
        }
    }

    fn fenced(&mut self, fence: u64) -> Result<&mut Self, StoreError> {
        if self.fence == fence && self.lease.is_some() { Ok(self) } else { Err(StoreError::Fenced) }
    }
}

impl MemoryStore {
    /// A store that holds nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    fn with<T>(&self, session: &str, act: impl FnOnce(&mut History) -> Result<T, StoreError>) -> Result<T, StoreError> {
        self.histories.lock().get_mut(session).ok_or(StoreError::Unknown).and_then(act)
    }

    fn hint(&self, session: &str) {
        let hints = self.hints.lock().clone(); // called without the lock
        for hint in &hints {
            hint(Some(session));
        }
    }

    fn append_one(&self, append: &Append<'_>) -> Result<u64, StoreError> {
        self.with(append.session, |history| {
            let history = history.fenced(append.fence)?;
            let head = history.head();
            if append.last <= head {
                return Ok(head);
            }
            if history.sealed {
                return Err(StoreError::Sealed);
            }
            if append.first != head + 1 {
                return Err(StoreError::NotNext { head });
            }
            history.blocks.push(Block { first: append.first, last: append.last, data: append.data.into() });
            history.ended = append.ended.unwrap_or(history.ended);
            history.touched = now_ms();
            Ok(append.last)
        })
    }
}

impl LogStore for MemoryStore {
    fn claim(&self, session: &str, owner: &str, epoch: &str, lease: Duration) -> Result<Claim, StoreError> {
        let mut histories = self.histories.lock();
        let history = histories.entry(session.to_owned()).or_insert_with(|| History {
            epoch: epoch.to_owned(),
            blocks: Vec::new(),
            ended: 0,
            sealed: false,
            fence: first_fence(),
            lease: None,
            cancel: None,
            touched: 0,
        });
        let remaining = history.leased();
        if history.lease.as_ref().is_some_and(|(holder, _)| holder != owner) && !remaining.is_zero() {
            return Err(StoreError::Held { remaining_ms: remaining.as_millis() as u64 });
        }
        history.fence += 1;
        history.lease = Some((owner.to_owned(), Instant::now() + lease));
        history.cancel = None;
        history.touched = now_ms();
        Ok(Claim { fence: history.fence, standing: history.standing() })
    }

    fn renew(&self, session: &str, fence: u64, lease: Duration) -> Result<Option<String>, StoreError> {
        self.with(session, |history| {
            let history = history.fenced(fence)?;
            if let Some((_, until)) = &mut history.lease {
                *until = Instant::now() + lease;
            }
            Ok(history.cancel.clone())
        })
    }

    fn release(&self, session: &str, fence: u64) -> Result<(), StoreError> {
        let released = self.with(session, |history| {
            history.fenced(fence)?.lease = None;
            Ok(())
        });
        match released {
            Ok(()) => {
                self.hint(session);
                Ok(())
            }
            Err(StoreError::Fenced | StoreError::Unknown) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn append(&self, batch: &[Append<'_>]) -> Vec<Result<u64, StoreError>> {
        let answers: Vec<_> = batch.iter().map(|append| self.append_one(append)).collect();
        batch.iter().zip(&answers).filter(|(_, answer)| answer.is_ok()).for_each(|(append, _)| self.hint(append.session));
        answers
    }

    fn standing(&self, session: &str) -> Result<Standing, StoreError> {
        self.with(session, |history| Ok(history.standing()))
    }

    fn read(&self, session: &str, after: u64, max_bytes: usize) -> Result<Tail, StoreError> {
        self.with(session, |history| {
            let start = history.blocks.partition_point(|block| block.last <= after);
            let mut tail = Tail { standing: history.standing(), blocks: Vec::new(), last: after };
            let mut bytes = 0;
            for block in &history.blocks[start..] {
                if bytes > 0 && bytes + block.data.len() > max_bytes {
                    break;
                }
                bytes += block.data.len();
                tail.last = block.last;
                tail.blocks.push(block.data.clone());
            }
            Ok(tail)
        })
    }

    fn seal(&self, session: &str, fence: u64, head: u64) -> Result<bool, StoreError> {
        let sealed = self.with(session, |history| {
            let history = history.fenced(fence)?;
            if history.head() != head {
                return Err(StoreError::NotNext { head: history.head() });
            }
            Ok(!std::mem::replace(&mut history.sealed, true))
        })?;
        self.hint(session);
        Ok(sealed)
    }

    fn ask_cancel(&self, session: &str, reason: &str) -> Result<(), StoreError> {
        self.with(session, |history| {
            history.cancel.get_or_insert_with(|| reason.to_owned());
            Ok(())
        })?;
        self.hint(session);
        Ok(())
    }

    fn listen(&self, hint: Hint) {
        self.hints.lock().push(hint);
    }

    fn expire(&self, retention: &Retention, step: usize) -> Result<usize, StoreError> {
        let mut histories = self.histories.lock();
        let oldest = now_ms().saturating_sub(retention.max_age_ms);
        let bytes = |history: &History| history.blocks.iter().map(|block| block.data.len() as u64).sum::<u64>();
        let mut total: u64 = histories.values().map(bytes).sum();
        let mut idle: Vec<_> = histories
            .iter()
            .filter(|(_, history)| history.leased().is_zero())
            .map(|(id, history)| (history.touched, id.clone(), bytes(history)))
            .collect();
        idle.sort_unstable();
        let mut gone = 0;
        for (touched, id, size) in idle.into_iter().take(step) {
            if touched >= oldest && retention.max_bytes.is_none_or(|max| total <= max) {
                break;
            }
            histories.remove(&id);
            total -= size;
            gone += 1;
        }
        Ok(gone)
    }

    fn rename(&self, session: &str, fence: u64, epoch: &str) -> Result<Standing, StoreError> {
        self.with(session, |history| {
            let history = history.fenced(fence)?;
            epoch.clone_into(&mut history.epoch);
            Ok(history.standing())
        })
    }

    fn delete(&self, session: &str) -> Result<bool, StoreError> {
        let gone = self.histories.lock().remove(session).is_some();
        self.hint(session);
        Ok(gone)
    }
}
