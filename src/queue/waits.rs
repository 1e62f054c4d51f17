//! The waits of an `EventQueue`: its two sides as sources, and the objects that Python awaits or iterates.
//!
//! Owns the places in the core's lines. Refuses to know what is put and what a full queue does. Invariant: 1. a wait that is thrown
//! into, closed or dropped leaves its place, and a call that it had goes to the next.

use std::sync::atomic::Ordering;
use std::task::Waker;

use parking_lot::Mutex;
use pyo3::exceptions::{PyBaseException, PyRuntimeError, PyRuntimeWarning};
use pyo3::prelude::*;
use pyo3::types::PyList;
use pyo3::{PyTraverseError, PyVisit};
use turnstream_core::queue::{Place, Pop};

use super::EventQueue;
use super::slot::{Sleeper, Slot};
use crate::bell::check_fork;
use crate::blocking::{Blocking, Blocks};
use crate::errors;
use crate::slots::{self, Awaited, Sent, Subtype};
use crate::wait::{Source, Taken, Waiter};

#[derive(Clone, Copy)]
pub(super) enum Form {
    /// One item; None at the end.
    One,
    /// Items.
    Each,
    /// Lists of up to so many items.
    Many(usize),
}

/// The consumer's side of a wait.
pub(super) struct Taking<'a> {
    pub queue: &'a EventQueue,
    pub place: &'a mut Place,
    pub form: Form,
    /// Where a batch is on its way from the core's lock to its list; empty but then.
    pub passing: &'a mut Vec<Slot>,
}

impl Source for Taking<'_> {
    fn take(&mut self, py: Python<'_>) -> PyResult<Taken> {
        let ended = match self.form {
            Form::One | Form::Each => match self.queue.core.take(self.place) {
                Pop::Item(slot) => return Ok(Taken::Item(slot.into_object(py)?)),
                Pop::Empty => false,
                Pop::End => true,
            },
            Form::Many(max) => {
                let ended = self.queue.core.take_many(max, self.passing, self.place);
                if !self.passing.is_empty() {
                    if !self.queue.plain {
                        self.passing.iter_mut().try_for_each(|slot| slot.settle(py))?;
                    }
                    let list = PyList::new(py, self.passing.drain(..).map(|slot| slot.settled(py)))?;
                    return Ok(Taken::Item(list.into_any().unbind()));
                }
                *self.passing = Vec::new(); // who waits holds nothing
                ended
            }
        };
        if !ended {
            return Ok(Taken::Pending);
        }
        self.queue.failure(py)?;
        Ok(if matches!(self.form, Form::One) { Taken::Item(py.None()) } else { Taken::End })
    }

    fn park(&mut self, waker: &Waker) -> bool {
        self.queue.core.wait_take(self.place, Sleeper::new(waker))
    }

    fn unpark(&mut self) {
        self.queue.core.leave_take(self.place);
    }

    fn busy() -> PyErr {
        errors::raise("ReaderBusy", "two tasks wait on one iterator; let each iterate over the queue itself")
    }
}

/// The producer's side of a wait.
pub(super) struct Putting<'a> {
    pub queue: &'a EventQueue,
    pub place: &'a mut Place,
    pub slot: &'a mut Option<Slot>,
}

impl Source for Putting<'_> {
    fn take(&mut self, py: Python<'_>) -> PyResult<Taken> {
        let slot = self.slot.take().ok_or_else(|| PyRuntimeError::new_err("cannot await the same put twice"))?;
        let queued = if slot.object().is_some_and(|object| object.is_none(py)) {
            self.queue.core.close()
        } else {
            match self.queue.offer(py, slot, self.place)? {
                Ok(queued) => queued,
                Err(slot) => {
                    *self.slot = Some(slot);
                    return Ok(Taken::Pending);
                }
            }
        };
        Ok(Taken::Item(queued.into_pyobject(py)?.to_owned().into_any().unbind()))
    }

    fn park(&mut self, waker: &Waker) -> bool {
        self.queue.core.wait_put(self.place, Sleeper::new(waker))
    }

    fn unpark(&mut self) {
        self.queue.core.leave_put(self.place);
    }

    fn busy() -> PyErr {
        PyRuntimeError::new_err("two tasks await the same put")
    }
}

pub(super) fn taker(queue: &Bound<'_, EventQueue>, form: Form) -> PyResult<Py<PyAny>> {
    check_fork(queue.get().made)?;
    let waiting = TakeWait::default();
    slots::make(queue.py(), QueueTake { queue: queue.clone().unbind(), form, waiting: Mutex::new(waiting) })
}

pub(super) fn putter(queue: &Bound<'_, EventQueue>, slot: Slot) -> PyResult<Py<PyAny>> {
    let waiting = PutWait { place: Place::default(), waiter: Waiter::default(), slot: Some(slot), begun: false };
    slots::make(queue.py(), QueuePut { queue: queue.clone().unbind(), waiting: Mutex::new(waiting) })
}

fn reentered() -> PyErr {
    PyRuntimeError::new_err("another thread is in this wait")
}

/// What is thrown into a wait comes out of it.
fn thrown(error: Bound<'_, PyAny>, value: Option<Bound<'_, PyAny>>) -> PyErr {
    match value.filter(|value| !value.is_none()) {
        Some(value) if value.is_instance_of::<PyBaseException>() => PyErr::from_value(value),
        _ => PyErr::from_value(error), // a TypeError, if it is no exception
    }
}

#[derive(Default)]
struct TakeWait {
    place: Place,
    waiter: Waiter,
    passing: Vec<Slot>,
}

/// An iterator over a queue, single items or lists, or one `aget`. Awaited, it gives the next.
#[pyclass(frozen, subclass, weakref, name = "_QueueTake", module = "turnstream._native")]
pub struct QueueTake {
    queue: Py<EventQueue>,
    form: Form,
    waiting: Mutex<TakeWait>,
}

impl QueueTake {
    fn leave(&self) {
        if let Some(mut waiting) = self.waiting.try_lock() {
            self.queue.get().core.leave_take(&mut waiting.place);
        }
    }
}

impl Drop for QueueTake {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Awaited for QueueTake {
    fn send(slf: &Bound<'_, Self>) -> PyResult<Sent> {
        let (this, queue) = (slf.get(), slf.get().queue.get());
        check_fork(queue.made)?;
        let mut waiting = this.waiting.try_lock().ok_or_else(reentered)?;
        let TakeWait { place, waiter, passing } = &mut *waiting;
        let mut source = Taking { queue, place, form: this.form, passing };
        if !matches!(this.form, Form::One) {
            return waiter.send(slf.py(), &mut source);
        }
        sharing_budget(queue, waiter, |waiter| waiter.send(slf.py(), &mut source))
    }

    fn subtype() -> &'static Subtype {
        static SUBTYPE: Subtype = Subtype::new(c"turnstream._native.QueueTake");
        &SUBTYPE
    }
}

/// A wait for one item would never come to its 128th: those of one queue share a count.
fn sharing_budget<T>(queue: &EventQueue, waiter: &mut Waiter, step: impl FnOnce(&mut Waiter) -> T) -> T {
    // Relaxed: a count that orders nothing; two loops may share a turn.
    *waiter.spent() = queue.spent.load(Ordering::Relaxed);
    let stepped = step(waiter);
    queue.spent.store(*waiter.spent(), Ordering::Relaxed);
    stepped
}

impl Blocks for QueueTake {
    fn next_blocking(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        self.queue.get().next_blocking_as(py, self.form)
    }
}

#[pymethods]
impl QueueTake {
    #[new]
    fn made() -> PyResult<Self> {
        slots::pending()
    }

    fn __next__(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        Self::send(slf)?.into_next(slf.py())
    }

    #[pyo3(name = "send")]
    fn send_value(slf: &Bound<'_, Self>, _value: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        Self::__next__(slf)
    }

    #[pyo3(signature = (error, value = None, _traceback = None))]
    fn throw(
        &self,
        error: Bound<'_, PyAny>,
        value: Option<Bound<'_, PyAny>>,
        _traceback: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        self.leave();
        Err(thrown(error, value))
    }

    fn close(&self) {
        self.leave();
    }

    fn __iter__(slf: Py<Self>) -> Blocking {
        Blocking::of(slf)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.queue)?;
        self.waiting.try_lock().map_or(Ok(()), |waiting| waiting.waiter.traverse(&visit))
    }

    fn __clear__(&self) {
        if let Some(mut waiting) = self.waiting.try_lock() {
            waiting.waiter.clear();
        }
    }
}

struct PutWait {
    place: Place,
    waiter: Waiter,
    slot: Option<Slot>,
    begun: bool,
}

/// One `aput`.
#[pyclass(frozen, subclass, weakref, name = "_QueuePut", module = "turnstream._native")]
pub struct QueuePut {
    queue: Py<EventQueue>,
    waiting: Mutex<PutWait>,
}

impl QueuePut {
    fn leave(&self) {
        if let Some(mut waiting) = self.waiting.try_lock() {
            waiting.begun = true;
            self.queue.get().core.leave_put(&mut waiting.place);
        }
    }
}

impl Drop for QueuePut {
    fn drop(&mut self) {
        let waiting = self.waiting.get_mut();
        if waiting.begun || waiting.slot.is_none() {
            return self.leave();
        }
        // As for a coroutine: an item that went nowhere is said.
        Python::attach(|py| {
            let text = c"EventQueue.aput was never awaited: its item is not in the queue";
            if let Err(error) = PyErr::warn(py, &py.get_type::<PyRuntimeWarning>(), text, 1) {
                error.write_unraisable(py, None);
            }
        });
    }
}

impl Awaited for QueuePut {
    fn send(slf: &Bound<'_, Self>) -> PyResult<Sent> {
        let queue = slf.get().queue.get();
        check_fork(queue.made)?;
        let mut waiting = slf.get().waiting.try_lock().ok_or_else(reentered)?;
        let PutWait { place, waiter, slot, begun } = &mut *waiting;
        *begun = true;
        let mut source = Putting { queue, place, slot };
        sharing_budget(queue, waiter, |waiter| waiter.send(slf.py(), &mut source))
    }

    fn subtype() -> &'static Subtype {
        static SUBTYPE: Subtype = Subtype::new(c"turnstream._native.QueuePut");
        &SUBTYPE
    }
}

#[pymethods]
impl QueuePut {
    #[new]
    fn made() -> PyResult<Self> {
        slots::pending()
    }

    fn __next__(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        Self::send(slf)?.into_next(slf.py())
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(name = "send")]
    fn send_value(slf: &Bound<'_, Self>, _value: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        Self::__next__(slf)
    }

    #[pyo3(signature = (error, value = None, _traceback = None))]
    fn throw(
        &self,
        error: Bound<'_, PyAny>,
        value: Option<Bound<'_, PyAny>>,
        _traceback: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        self.leave();
        Err(thrown(error, value))
    }

    fn close(&self) {
        self.leave();
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.queue)?;
        let Some(waiting) = self.waiting.try_lock() else { return Ok(()) };
        if let Some(object) = waiting.slot.as_ref().and_then(Slot::object) {
            visit.call(object)?;
        }
        waiting.waiter.traverse(&visit)
    }

    fn __clear__(&self) {
        if let Some(mut waiting) = self.waiting.try_lock() {
            waiting.waiter.clear();
            let slot = waiting.slot.take();
            drop(waiting);
            drop(slot);
        }
    }
}
