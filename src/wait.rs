//! The one way in which Python waits for the core: on an event loop through its bell, on a plain thread by blocking.
//!
//! An awaitable of ours is its own iterator: `__anext__` and `__await__` return it, and a step either returns an item
//! that is ready or yields a future to park on. A ready item costs about 0.1 µs so, a coroutine and a future per item
//! 50–100. The slots of `slots.rs` are the quick way in; `__next__` with `StopIteration` is the one that always works.
//!
//! Invariants: 1. the future resolves to None, never to an item: wake, then take, so that a cancelled wait loses
//! nothing; 2. arm, look again, then yield; 3. a bare None is yielded once per [`BUDGET`] ready items so that other
//! tasks run; 4. a second waiter is told so (`ReaderBusy`), never queued; 5. no lock is held while Python code runs
//! that could come back here.

use std::sync::Arc;
use std::task::{Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyBaseException, PyStopAsyncIteration, PyStopIteration};
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use pyo3::{PyTraverseError, PyVisit};

use crate::bell::{Bell, Parking, before_exit, running_loop_if_any, waker};
use crate::errors;
use crate::slots::Sent;

/// Ready items between two bare yields: tokio's own cooperative budget.
const BUDGET: u32 = 128;

/// What a source has.
pub enum Taken {
    /// One item.
    Item(Py<PyAny>),
    /// Nothing now.
    Pending,
    /// Nothing any more.
    End,
}

/// What can be waited for.
pub trait Source {
    /// Takes one item if there is one.
    fn take(&mut self, py: Python<'_>) -> PyResult<Taken>;
    /// After `Pending`: has the waker called when there is more; false: look again.
    fn park(&mut self, waker: &Waker) -> bool;
    /// Takes `park` back.
    fn unpark(&mut self);
    /// What a second waiter on the same source is told.
    fn busy() -> PyErr {
        errors::raise("ReaderBusy", "two tasks wait on one reader; open a second reader instead")
    }
    /// What a thread is told that would have to wait, and may not, for it runs an event loop.
    fn would_block() -> PyErr {
        errors::raise("WouldBlock", "nothing is ready, and this thread runs an event loop: iterate with `async for` instead")
    }
    /// Called when a wait begins on `event_loop`.
    fn parked(&mut self, _py: Python<'_>) -> PyResult<()> {
        Ok(())
    }
}

/// The waiting side of one source.
#[derive(Default)]
pub struct Waiter {
    place: Option<Place>,
    future: Option<Py<PyAny>>,
    taken: u32,
}

struct Place {
    bell: Py<Bell>,
    parking: Arc<Parking>,
    waker: Waker,
}

impl Waiter {
    /// One step: an item, a future to park on, or a bare None to let others run.
    pub fn send<S: Source>(&mut self, py: Python<'_>, source: &mut S) -> PyResult<Sent> {
        if self.is_waiting(py)? {
            return Err(S::busy());
        }
        self.future = None;
        if self.taken >= BUDGET {
            self.taken = 0;
            return Ok(Sent::Yield(py.None()));
        }
        loop {
            match source.take(py)? {
                Taken::Item(item) => {
                    self.taken += 1;
                    return Ok(Sent::Return(item));
                }
                Taken::End => {
                    self.leave();
                    return Err(PyStopAsyncIteration::new_err(()));
                }
                Taken::Pending => {
                    // A loop that still runs while the interpreter goes looks again and again, for those few milliseconds.
                    let Some(armed) = before_exit(|| self.arm(py, source)) else { return Ok(Sent::Yield(py.None())) };
                    if let Some(future) = armed? {
                        self.taken = 0;
                        return Ok(Sent::Yield(future));
                    }
                }
            }
        }
    }

    /// Parks; none if there was news meanwhile.
    fn arm(&mut self, py: Python<'_>, source: &mut impl Source) -> PyResult<Option<Py<PyAny>>> {
        let bell = Bell::of_running_loop(py)?;
        if self.place.as_ref().is_none_or(|place| !bell.get().owns(&place.parking)) {
            // Another loop than last time, or the first: a waiting place belongs to one bell.
            if let Some(old) = self.place.take() {
                source.unpark();
                old.bell.get().leave(&old.parking);
            }
            let parking = bell.get().parking();
            self.place = Some(Place { waker: waker(&parking), parking, bell });
        }
        let Some(place) = &self.place else { return Ok(None) };
        let future = place.bell.get().wait(py, &place.parking)?;
        if !source.park(&place.waker) {
            place.bell.get().leave(&place.parking);
            return Ok(None);
        }
        source.parked(py)?;
        // What `Future.__await__` does: a task takes only a future that says it is being waited for.
        future.bind(py).setattr(pyo3::intern!(py, "_asyncio_future_blocking"), true)?;
        self.future = Some(future.clone_ref(py));
        Ok(Some(future))
    }

    /// Whether a task is parked.
    pub fn is_waiting(&self, py: Python<'_>) -> PyResult<bool> {
        let Some(future) = &self.future else { return Ok(false) };
        Ok(!future.bind(py).call_method0(pyo3::intern!(py, "done"))?.is_truthy()?)
    }

    /// The waker of whoever is parked.
    pub fn parked_waker(&self) -> Option<Waker> {
        self.future.as_ref()?;
        self.place.as_ref().map(|place| place.waker.clone())
    }

    /// Ready items since somebody else could run. Waits that last for one item share the count of their source.
    pub fn spent(&mut self) -> &mut u32 {
        &mut self.taken
    }

    fn leave(&mut self) {
        if let Some(place) = &self.place {
            place.bell.get().leave(&place.parking);
        }
    }

    /// For the garbage collector.
    pub fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        if let Some(future) = &self.future {
            visit.call(future)?;
        }
        Ok(())
    }

    /// For the garbage collector.
    pub fn clear(&mut self) {
        self.leave();
        self.future = None;
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        // The bell would hold the future for as long as its loop lives.
        self.leave();
    }
}

impl Sent {
    /// What `__next__` gives in its place: what to wait for, or an item in a `StopIteration`.
    pub fn into_next(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        match self {
            Self::Return(item) => Err(done(py, item)),
            Self::Yield(future) => Ok(future),
        }
    }
}

/// `StopIteration` with `item` as its value. Set bare, the interpreter takes the item out again without ever making an
/// exception object; a tuple would be unpacked as arguments and an exception raised as itself, so those are wrapped.
fn done(py: Python<'_>, item: Py<PyAny>) -> PyErr {
    let bound = item.bind(py);
    if bound.is_instance_of::<PyTuple>() || bound.is_instance_of::<PyBaseException>() {
        return PyStopIteration::new_err((item,));
    }
    PyStopIteration::new_err(item)
}

/// Wakes a blocked thread.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// The end of a wait of `timeout` seconds, none for one without end.
pub fn deadline(timeout: Option<f64>) -> PyResult<Option<Instant>> {
    let Some(seconds) = timeout else { return Ok(None) };
    let wait = Duration::try_from_secs_f64(if seconds < 0.0 { 0.0 } else { seconds })
        .map_err(|_| pyo3::exceptions::PyValueError::new_err("timeout: expected seconds, or None"))?;
    Ok(Instant::now().checked_add(wait))
}

/// One step of a blocking iteration: waits with the interpreter released, and lets signal handlers run; `Pending` is said once
/// the `until` has passed. It looks again before it leaves its place, so that a call that came meanwhile is used and the place
/// is kept. On the thread of an event loop it never waits.
pub fn block<S: Source>(
    py: Python<'_>,
    until: Option<Instant>,
    mut with: impl FnMut(&mut dyn FnMut(&mut S) -> PyResult<Taken>) -> PyResult<Taken>,
) -> PyResult<Taken> {
    match with(&mut |source| source.take(py))? {
        Taken::Pending if running_loop_if_any(py)?.is_some() => return Err(S::would_block()),
        Taken::Pending => {}
        taken => return Ok(taken),
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    loop {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let mut parked = false;
        let taken = with(&mut |source| {
            let taken = source.take(py)?;
            match taken {
                Taken::Pending if left != Some(Duration::ZERO) => parked = source.park(&waker),
                Taken::Pending | Taken::Item(_) | Taken::End => source.unpark(),
            }
            Ok(taken)
        })?;
        match taken {
            Taken::Item(_) | Taken::End => return Ok(taken),
            Taken::Pending if left == Some(Duration::ZERO) => return Ok(taken),
            Taken::Pending if parked => {
                // Wakes at least ten times a second, so that Ctrl-C is seen.
                let pause = Duration::from_millis(100).min(left.unwrap_or(Duration::MAX));
                py.detach(|| std::thread::park_timeout(pause));
                if let Err(error) = py.check_signals() {
                    with(&mut |source| {
                        source.unpark();
                        Ok(Taken::Pending)
                    })?;
                    return Err(error);
                }
            }
            Taken::Pending => {}
        }
    }
}
