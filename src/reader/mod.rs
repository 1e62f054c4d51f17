//! Readers as Python sees them: a source of a session's log and the one waiter on it, for one thread at a time.
//!
//! Owns who may use it, closing and fork; what is handed out is of [`events`] and [`frames`]. Invariants: 1. nobody waits for the
//! lock: its holder may be in Python code, and wait for the interpreter that the other has; 2. a close that finds it taken is done
//! by its holder; 3. in the child of a fork the session is let go of without a word.

mod events;
mod frames;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use pyo3::prelude::*;
use pyo3::{PyTraverseError, PyVisit};
use turnstream_core::reader as core;

pub use self::events::Reader;
pub use self::frames::FrameReader;
use crate::bell::{check_fork, generation};
use crate::errors;
use crate::slots::{self, Sent};
use crate::wait::{Source, Taken, Waiter, block};

/// A source that reads a session.
trait Reads: Source {
    fn reader(&mut self) -> &mut core::Reader;
    /// Ends it early.
    fn close(&mut self);
}

struct Both<S> {
    source: S,
    waiter: Waiter,
}

/// A source and its waiter, for one thread at a time.
struct Shared<S: Reads> {
    both: Mutex<Both<S>>,
    closing: AtomicBool,
    /// Whether a thread waits in it.
    blocked: AtomicBool,
    made: u32,
}

impl<S: Reads> Shared<S> {
    fn new(source: S) -> Self {
        let both = Mutex::new(Both { source, waiter: Waiter::default() });
        let (closing, blocked) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { both, closing, blocked, made: generation() }
    }

    fn act<T>(&self, act: impl FnOnce(&mut Both<S>) -> PyResult<T>) -> PyResult<T> {
        check_fork(self.made)?;
        let mut both = self.both.try_lock().ok_or_else(busy)?;
        let result = act(&mut both);
        drop(both);
        self.close_if_asked();
        result
    }

    fn send(&self, py: Python<'_>) -> PyResult<Sent> {
        self.unblocked()?;
        self.act(|both| both.waiter.send(py, &mut both.source))
    }

    /// The waker of a blocked thread would be lost to a task that parks, and it the other way round.
    fn unblocked(&self) -> PyResult<()> {
        if self.blocked.load(Ordering::SeqCst) { Err(busy()) } else { Ok(()) }
    }

    fn wait(&self, py: Python<'_>, until: Option<Instant>) -> PyResult<Taken> {
        check_fork(self.made)?;
        // SeqCst: nothing hangs on it but who is told.
        if self.blocked.swap(true, Ordering::SeqCst) {
            return Err(busy());
        }
        let free = self.act(|both| if both.waiter.is_waiting(py)? { Err(S::busy()) } else { Ok(()) });
        let taken = free.and_then(|()| block::<S>(py, until, |act| self.act(|both| act(&mut both.source))));
        self.blocked.store(false, Ordering::SeqCst);
        taken
    }

    fn next_blocking(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        Ok(match self.wait(py, None)? {
            Taken::Item(item) => Some(item),
            Taken::Pending | Taken::End => None,
        })
    }

    fn close(&self) {
        // SeqCst, here and below: of the closer, which asks and then tries the lock, and its holder, which lets it go and then
        // looks, one sees the other.
        self.closing.store(true, Ordering::SeqCst);
        self.close_if_asked();
    }

    fn close_if_asked(&self) {
        if self.closing.load(Ordering::SeqCst) {
            self.change(|source| {
                self.closing.store(false, Ordering::SeqCst);
                source.close();
            });
        }
    }

    /// Changes the source and wakes whoever is parked; not while somebody is in it.
    fn change(&self, change: impl FnOnce(&mut S)) {
        let Some(mut both) = self.both.try_lock() else { return };
        change(&mut both.source);
        let waker = both.waiter.parked_waker();
        drop(both);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.both.try_lock().map_or(Ok(()), |both| both.waiter.traverse(visit))
    }

    fn clear(&self) {
        if let Some(mut both) = self.both.try_lock() {
            both.waiter.clear();
        }
    }
}

impl<S: Reads> Drop for Shared<S> {
    fn drop(&mut self) {
        if self.made != generation() {
            self.both.get_mut().source.reader().abandon();
        }
    }
}

fn busy() -> PyErr {
    errors::raise("ReaderBusy", "another thread is reading; open a second reader instead")
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    slots::register::<Reader>(module)?;
    slots::register::<events::Batches>(module)?;
    slots::register::<FrameReader>(module)
}
