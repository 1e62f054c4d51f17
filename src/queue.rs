//! `EventQueue` as Python sees it. Order, bound, overflow and who is called when are the core's; what waits here is a task on
//! a loop's bell or a blocked thread.
//!
//! Invariants: 1. the core is used attached only, so its lock is never contended and no object of Python's is dropped without
//! the interpreter; 2. an object is made or dropped outside the core's lock; 3. a wait that is thrown into, closed or dropped
//! leaves its place, and a call that it had goes to the next; 4. a thread that runs an event loop is never blocked.

use std::ffi::CStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Waker;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pyo3::exceptions::{PyBaseException, PyRuntimeError, PyRuntimeWarning, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyList, PyTraceback, PyType};
use pyo3::{PyTraverseError, PyVisit};
use turnstream_core::event as core_event;
use turnstream_core::queue::{self as core, Offer, Overflow, Place, Pop};
use turnstream_core::reader;
use turnstream_core::session::{Entry, now_ms};

use crate::bell::{self, check_fork};
use crate::slots::{self, Awaited, Sent};
use crate::wait::{Source, Taken, Waiter, block, deadline, done};
use crate::{errors, event};

/// What stands in the queue.
enum Slot {
    /// An item.
    Item {
        object: Py<PyAny>,
        /// Only where deltas may be joined.
        delta: Option<Box<Delta>>,
    },
    /// What stands where items were dropped. It holds no object until somebody takes it.
    Gap(Box<(u64, u64)>),
}

struct Delta {
    first: Arc<Entry>,
    joined: Option<core_event::Event>,
}

impl Delta {
    fn event(&self) -> &core_event::Event {
        self.joined.as_ref().unwrap_or(&self.first.event)
    }
}

impl Slot {
    /// Makes the object where there is none yet: deltas that were joined are one event, and a gap is one.
    fn settle(&mut self, py: Python<'_>) -> PyResult<()> {
        let object = match self {
            Self::Item { delta, .. } => match delta.take().and_then(|delta| delta.joined) {
                Some(event) => event::wrap(py, Arc::new(Entry { event, frame: std::sync::OnceLock::new() }))?,
                None => return Ok(()),
            },
            Self::Gap(range) => {
                let gap = core_event::Gap { first: range.0, last: range.1, reason: "overflow".into() };
                event::wrap_loose(py, gap.into(), 0, &Arc::default(), now_ms())?
            }
        };
        *self = Self::Item { object, delta: None };
        Ok(())
    }

    /// The object of a slot that is settled.
    #[inline]
    fn settled(self, py: Python<'_>) -> Py<PyAny> {
        match self {
            Self::Item { object, .. } => object,
            Self::Gap(_) => py.None(),
        }
    }

    /// What the consumer gets.
    fn into_object(mut self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.settle(py)?;
        Ok(self.settled(py))
    }

    fn object(&self) -> Option<&Py<PyAny>> {
        match self {
            Self::Item { object, .. } => Some(object),
            Self::Gap(_) => None,
        }
    }
}

impl core::Join for Slot {
    fn join(&mut self, next: &Self) -> bool {
        let (Self::Item { delta: Some(delta), .. }, Self::Item { delta: Some(next), .. }) = (self, next) else { return false };
        if !reader::belong_together(delta.event(), next.event()) {
            return false;
        }
        let first = &delta.first.event;
        reader::extend(delta.joined.get_or_insert_with(|| first.clone()), next.event())
    }

    fn gap(first: u64, last: u64) -> Self {
        Self::Gap(Box::new((first, last)))
    }
}

/// A task or a thread that waits.
struct Sleeper {
    waker: Waker,
    event_loop: Option<Py<PyAny>>,
}

impl Sleeper {
    fn new(waker: &Waker) -> Self {
        let event_loop = Python::attach(|py| bell::running_loop_if_any(py).ok().flatten().map(Bound::unbind));
        Self { waker: waker.clone(), event_loop }
    }
}

impl core::Sleeper for Sleeper {
    fn wake(self) -> bool {
        let closed = self.event_loop.is_some_and(|event_loop| {
            let ask = |py: Python<'_>| event_loop.bind(py).call_method0(pyo3::intern!(py, "is_closed"))?.is_truthy();
            bell::before_exit(|| Python::attach(ask)).is_some_and(|closed| closed.unwrap_or(false))
        });
        if !closed {
            self.waker.wake();
        }
        !closed
    }
}

fn overflow(name: &str) -> PyResult<Overflow> {
    Ok(match name {
        "block" => Overflow::Block,
        "drop_oldest" => Overflow::DropOldest,
        "drop_newest" => Overflow::DropNewest,
        "merge" => Overflow::Merge,
        "fail" => Overflow::Fail,
        _ => return Err(PyValueError::new_err("overflow: expected block, drop_oldest, drop_newest, merge or fail")),
    })
}

fn overflow_name(overflow: Overflow) -> &'static str {
    match overflow {
        Overflow::Block => "block",
        Overflow::DropOldest => "drop_oldest",
        Overflow::DropNewest => "drop_newest",
        Overflow::Merge => "merge",
        Overflow::Fail => "fail",
    }
}

/// What the queue was closed with.
struct Failure {
    error: Py<PyBaseException>,
    /// As it was then: raised as it is, the error would keep the frames of everybody who got it.
    traceback: Option<Py<PyTraceback>>,
}

/// A bounded queue of any objects, between any mix of threads and event loops.
#[pyclass(frozen, weakref, module = "turnstream")]
pub struct EventQueue {
    core: core::Queue<Slot, Sleeper>,
    /// Whether every slot has its object from the start: no deltas are joined, no gaps left.
    plain: bool,
    error: Mutex<Option<Failure>>,
    warned: Mutex<Option<Instant>>,
    warn_interval: Duration,
    /// Ready items of `aget` and `aput` since another task could run.
    spent: AtomicU32,
    made: u32,
}

impl EventQueue {
    fn slot(&self, object: Bound<'_, PyAny>) -> Slot {
        let merges = self.core.overflow() == Overflow::Merge;
        let event = if merges { object.cast::<event::Event>().ok() } else { None };
        let delta = event
            .map(|event| event.get().entry())
            .filter(|entry| entry.event.payload.class() == core_event::Class::Delta)
            .map(|entry| Box::new(Delta { first: entry.clone(), joined: None }));
        Slot::Item { object: object.unbind(), delta }
    }

    /// True: the item is in the queue; false: it is not, and never will be; the slot comes back where there is no room yet.
    fn offer(&self, py: Python<'_>, slot: Slot, place: &mut Place) -> PyResult<Result<bool, Slot>> {
        match self.core.put(slot, place) {
            Offer::Queued | Offer::Merged(_) => Ok(Ok(true)),
            Offer::Closed(_) => Ok(Ok(false)),
            Offer::Displaced(oldest) => {
                drop(oldest);
                self.warn(py)?;
                Ok(Ok(true))
            }
            Offer::Dropped(newest) => {
                drop(newest);
                self.warn(py)?;
                Ok(Ok(false))
            }
            Offer::Full(_) if self.core.overflow() == Overflow::Fail => Err(self.full("")),
            Offer::Full(slot) => Ok(Err(slot)),
        }
    }

    fn full(&self, advice: &str) -> PyErr {
        self.core.refuse();
        errors::raise("QueueFull", format!("the queue holds {} items already{advice}", self.core.capacity()))
    }

    /// At most one warning in an interval; it says how many items were dropped in all.
    fn warn(&self, py: Python<'_>) -> PyResult<()> {
        let now = Instant::now();
        let mut warned = self.warned.lock();
        if warned.is_some_and(|last| now.duration_since(last) < self.warn_interval) {
            return Ok(());
        }
        *warned = Some(now);
        drop(warned);
        let (dropped, maxsize, overflow) =
            (self.core.counts().dropped, self.core.capacity(), overflow_name(self.core.overflow()));
        let text = format!("EventQueue dropped {dropped} items so far (maxsize={maxsize}, overflow={overflow})\0");
        let text = CStr::from_bytes_until_nul(text.as_bytes()).unwrap_or(c"EventQueue dropped items");
        PyErr::warn(py, &py.get_type::<PyRuntimeWarning>(), text, 1)
    }

    /// What a consumer learns at the end, apart from the end.
    fn failure(&self, py: Python<'_>) -> PyResult<()> {
        let failure = self.error.lock().as_ref().map(|failure| {
            let traceback = failure.traceback.as_ref().map(|traceback| traceback.clone_ref(py));
            (failure.error.clone_ref(py), traceback)
        });
        let Some((error, traceback)) = failure else { return Ok(()) };
        let error = PyErr::from_value(error.into_bound(py).into_any());
        error.set_traceback(py, traceback.map(|traceback| traceback.into_bound(py)));
        Err(error)
    }
}

#[derive(Clone, Copy)]
enum Form {
    /// One item; None at the end.
    One,
    /// Items.
    Each,
    /// Lists of up to so many items.
    Many(usize),
}

/// The consumer's side of a wait.
struct Taking<'a> {
    queue: &'a EventQueue,
    place: &'a mut Place,
    form: Form,
    /// Where a batch is on its way from the core's lock to its list; empty but then.
    passing: &'a mut Vec<Slot>,
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
struct Putting<'a> {
    queue: &'a EventQueue,
    place: &'a mut Place,
    slot: &'a mut Option<Slot>,
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

#[pymethods]
impl EventQueue {
    #[new]
    #[pyo3(signature = (maxsize = 1000, overflow = "block", *, gaps = false, warn_interval_s = 10.0))]
    fn new(maxsize: usize, overflow: &str, gaps: bool, warn_interval_s: f64) -> PyResult<Self> {
        if maxsize == 0 {
            return Err(PyValueError::new_err("maxsize: expected at least 1"));
        }
        let warn_interval = Duration::try_from_secs_f64(warn_interval_s)
            .map_err(|_| PyValueError::new_err("warn_interval_s: expected seconds, 0 or more"))?;
        let overflow = self::overflow(overflow)?;
        let core = core::Queue::new(maxsize, overflow);
        Ok(Self {
            core: if gaps { core.with_gaps() } else { core },
            plain: !gaps && overflow != Overflow::Merge,
            error: Mutex::new(None),
            warned: Mutex::new(None),
            warn_interval,
            spent: AtomicU32::new(0),
            made: bell::generation(),
        })
    }

    #[classmethod]
    fn __class_getitem__<'py>(cls: &Bound<'py, PyType>, item: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        cls.py().import("types")?.getattr("GenericAlias")?.call1((cls, item))
    }

    /// Puts `item`; blocks while the queue is full, if it is to wait, `timeout` seconds at most.
    #[pyo3(signature = (item, timeout = None))]
    fn put(&self, item: Bound<'_, PyAny>, timeout: Option<f64>) -> PyResult<bool> {
        check_fork(self.made)?;
        let until = deadline(timeout)?;
        if item.is_none() {
            return Ok(self.core.close());
        }
        let py = item.py();
        let mut place = Place::default();
        let slot = match self.offer(py, self.slot(item), &mut place)? {
            Ok(queued) => return Ok(queued),
            Err(slot) => slot,
        };
        if bell::running_loop_if_any(py)?.is_some() {
            return Err(self.full(", and this thread runs an event loop: await aput() instead"));
        }
        let mut slot = Some(slot);
        let mut source = Putting { queue: self, place: &mut place, slot: &mut slot };
        match block(py, until, |act| act(&mut source))? {
            Taken::Item(queued) => queued.extract(py),
            Taken::End => Ok(false),
            Taken::Pending => Err(self.full(", and no room was made in time")),
        }
    }

    /// Puts `item` at once, or raises `QueueFull`.
    fn put_nowait(&self, item: Bound<'_, PyAny>) -> PyResult<bool> {
        check_fork(self.made)?;
        if item.is_none() {
            return Ok(self.core.close());
        }
        let py = item.py();
        match self.offer(py, self.slot(item), &mut Place::default())? {
            Ok(queued) => Ok(queued),
            Err(_) => Err(self.full("")),
        }
    }

    /// Awaits to what `put` returns.
    fn aput(slf: &Bound<'_, Self>, item: Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        let this = slf.get();
        check_fork(this.made)?;
        let waiting = PutWait { place: Place::default(), waiter: Waiter::default(), slot: Some(this.slot(item)), begun: false };
        slots::make(slf.py(), QueuePut { queue: slf.clone().unbind(), waiting: Mutex::new(waiting) })
    }

    /// Takes the oldest item; blocks while there is none, `timeout` seconds at most. None at the end.
    #[pyo3(signature = (timeout = None))]
    fn get(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Py<PyAny>> {
        let item = self.take_blocking(py, Form::One, deadline(timeout)?, ": await aget() instead")?;
        Ok(item.unwrap_or_else(|| py.None()))
    }

    /// Takes the oldest item, or raises `QueueEmpty`. None at the end.
    fn get_nowait(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        check_fork(self.made)?;
        match (Taking { queue: self, place: &mut Place::default(), form: Form::One, passing: &mut Vec::new() }).take(py)? {
            Taken::Item(item) => Ok(item),
            Taken::Pending => Err(errors::raise("QueueEmpty", "the queue holds nothing yet")),
            Taken::End => Ok(py.None()),
        }
    }

    /// Awaits to the oldest item; to None at the end.
    fn aget(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        taker(slf, Form::One)
    }

    fn __aiter__(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        taker(slf, Form::Each)
    }

    fn __iter__(slf: Bound<'_, Self>) -> PyResult<QueueIterator> {
        check_fork(slf.get().made)?;
        Ok(QueueIterator { queue: slf.unbind(), form: Form::Each })
    }

    /// Lists of up to `max_items` items, all that are ready, at least one.
    #[pyo3(signature = (max_items = 64))]
    fn batches(slf: &Bound<'_, Self>, max_items: usize) -> PyResult<Py<PyAny>> {
        if max_items == 0 {
            return Err(PyValueError::new_err("max_items: expected at least 1"));
        }
        taker(slf, Form::Many(max_items))
    }

    /// Ends the queue: what it holds is still taken, then comes the end, or `error`.
    #[pyo3(signature = (error = None, *, discard = false))]
    fn close(&self, error: Option<Bound<'_, PyAny>>, discard: bool) -> PyResult<()> {
        check_fork(self.made)?;
        if let Some(error) = error {
            let error = error.cast_into::<PyBaseException>()?;
            let traceback = PyErr::from_value(error.clone().into_any()).traceback(error.py()).map(Bound::unbind);
            if !self.core.is_closed() {
                *self.error.lock() = Some(Failure { error: error.unbind(), traceback });
            }
        }
        self.core.close();
        if discard {
            let items = self.core.clear();
            drop(items);
        }
        Ok(())
    }

    /// How many items it holds.
    fn qsize(&self) -> PyResult<usize> {
        check_fork(self.made)?;
        Ok(self.core.sizes().0)
    }

    /// How many items it holds at most.
    #[getter]
    fn maxsize(&self) -> usize {
        self.core.capacity()
    }

    /// What happens on full.
    #[getter]
    fn overflow(&self) -> &'static str {
        overflow_name(self.core.overflow())
    }

    /// Whether it has been closed; there may still be items.
    #[getter]
    fn closed(&self) -> PyResult<bool> {
        check_fork(self.made)?;
        Ok(self.core.is_closed())
    }

    /// Exact counts of what the queue did.
    fn statistics<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        check_fork(self.made)?;
        let counts = self.core.counts();
        let (size, putters, takers) = self.core.sizes();
        let dict = PyDict::new(py);
        for (name, count) in [
            ("put", counts.put),
            ("taken", counts.taken),
            ("dropped", counts.dropped),
            ("merged", counts.merged),
            ("discarded", counts.discarded),
            ("refused", counts.refused),
            ("size", size as u64),
            ("peak", counts.peak as u64),
            ("gaps", counts.gaps),
            ("waiting_putters", putters as u64),
            ("waiting_getters", takers as u64),
        ] {
            dict.set_item(name, count)?;
        }
        Ok(dict)
    }

    fn __repr__(&self) -> String {
        let (size, ..) = self.core.sizes();
        let state = if self.core.is_closed() { ", closed" } else { "" };
        let overflow = overflow_name(self.core.overflow());
        format!("<EventQueue {size}/{} overflow={overflow}{state}>", self.core.capacity())
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        if let Some(failure) = self.error.try_lock().as_deref().and_then(Option::as_ref) {
            visit.call(&failure.error)?;
            failure.traceback.as_ref().map_or(Ok(()), |traceback| visit.call(traceback))?;
        }
        self.core.visit(
            |slot| slot.object().map_or(Ok(()), |object| visit.call(object)),
            |sleeper| sleeper.event_loop.as_ref().map_or(Ok(()), |event_loop| visit.call(event_loop)),
        )
    }

    fn __clear__(&self) {
        let items = self.core.clear();
        drop(items);
        let failure = self.error.lock().take();
        drop(failure);
    }
}

impl EventQueue {
    fn take_blocking(&self, py: Python<'_>, form: Form, until: Option<Instant>, advice: &str) -> PyResult<Option<Py<PyAny>>> {
        check_fork(self.made)?;
        let mut place = Place::default();
        match (Taking { queue: self, place: &mut place, form, passing: &mut Vec::new() }).take(py)? {
            Taken::Item(item) => return Ok(Some(item)),
            Taken::End => return Ok(None),
            Taken::Pending => {}
        }
        if bell::running_loop_if_any(py)?.is_some() {
            let text = format!("the queue holds nothing yet, and this thread runs an event loop{advice}");
            return Err(errors::raise("QueueEmpty", text));
        }
        let mut passing = Vec::new();
        let mut source = Taking { queue: self, place: &mut place, form, passing: &mut passing };
        match block(py, until, |act| act(&mut source))? {
            Taken::Item(item) => Ok(Some(item)),
            Taken::End => Ok(None),
            Taken::Pending => Err(errors::raise("QueueEmpty", "the queue holds nothing, and nothing came in time")),
        }
    }
}

fn taker(queue: &Bound<'_, EventQueue>, form: Form) -> PyResult<Py<PyAny>> {
    check_fork(queue.get().made)?;
    let waiting = TakeWait::default();
    slots::make(queue.py(), QueueTake { queue: queue.clone().unbind(), form, waiting: Mutex::new(waiting) })
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

    fn subtype() -> &'static PyOnceLock<Py<PyType>> {
        static SUBTYPE: PyOnceLock<Py<PyType>> = PyOnceLock::new();
        &SUBTYPE
    }

    const FULL_NAME: &'static CStr = c"turnstream._native.QueueTake";
}

/// A wait for one item would never come to its 128th: those of one queue share a count.
fn sharing_budget<T>(queue: &EventQueue, waiter: &mut Waiter, step: impl FnOnce(&mut Waiter) -> T) -> T {
    // Relaxed: a count that orders nothing; two loops may share a turn.
    *waiter.spent() = queue.spent.load(Ordering::Relaxed);
    let stepped = step(waiter);
    queue.spent.store(*waiter.spent(), Ordering::Relaxed);
    stepped
}

#[pymethods]
impl QueueTake {
    #[new]
    fn made() -> PyResult<Self> {
        slots::pending()
    }

    fn __aiter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __anext__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(slf: &Bound<'_, Self>) -> PyResult<Option<Py<PyAny>>> {
        match Self::send(slf)? {
            Sent::Return(item) => Err(done(slf.py(), item)),
            Sent::Yield(future) => Ok(Some(future)),
        }
    }

    #[pyo3(name = "send")]
    fn send_value(slf: &Bound<'_, Self>, _value: &Bound<'_, PyAny>) -> PyResult<Option<Py<PyAny>>> {
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

    fn __iter__(&self, py: Python<'_>) -> QueueIterator {
        QueueIterator { queue: self.queue.clone_ref(py), form: self.form }
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

    fn subtype() -> &'static PyOnceLock<Py<PyType>> {
        static SUBTYPE: PyOnceLock<Py<PyType>> = PyOnceLock::new();
        &SUBTYPE
    }

    const FULL_NAME: &'static CStr = c"turnstream._native.QueuePut";
}

#[pymethods]
impl QueuePut {
    #[new]
    fn made() -> PyResult<Self> {
        slots::pending()
    }

    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(slf: &Bound<'_, Self>) -> PyResult<Option<Py<PyAny>>> {
        match Self::send(slf)? {
            Sent::Return(item) => Err(done(slf.py(), item)),
            Sent::Yield(future) => Ok(Some(future)),
        }
    }

    #[pyo3(name = "send")]
    fn send_value(slf: &Bound<'_, Self>, _value: &Bound<'_, PyAny>) -> PyResult<Option<Py<PyAny>>> {
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

/// The blocking face of a queue's items or batches.
#[pyclass(frozen, module = "turnstream._native")]
pub struct QueueIterator {
    queue: Py<EventQueue>,
    form: Form,
}

#[pymethods]
impl QueueIterator {
    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        self.queue.get().take_blocking(py, self.form, None, ": iterate with `async for` instead")
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.queue)
    }
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<EventQueue>()?;
    module.add_class::<QueueIterator>()?;
    slots::register::<QueueTake>(module)
}
