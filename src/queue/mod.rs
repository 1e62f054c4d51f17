//! `EventQueue` as Python sees it. Order, bound, overflow and who is called when are the core's; what waits here is a task on
//! a loop's bell or a blocked thread.
//!
//! Invariants: 1. the core is used attached only, so its lock is never contended and no object of Python's is dropped without
//! the interpreter; 2. an object is made or dropped outside the core's lock; 3. a thread that runs an event loop is never blocked.

mod slot;
mod waits;

use std::ffi::CStr;
use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pyo3::exceptions::{PyBaseException, PyRuntimeError, PyRuntimeWarning, PyStopAsyncIteration, PyStopIteration, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTraceback, PyType};
use pyo3::{PyTraverseError, PyVisit};
use turnstream_core::event as core_event;
use turnstream_core::queue::{self as core, Offer, Overflow, Place};

use self::slot::{Delta, Sleeper, Slot};
use self::waits::{Form, Putting, QueueTake, Taking, taker};
use crate::bell::{self, check_fork};
use crate::blocking::{Blocking, Blocks};
use crate::convert::count;
use crate::wait::{Source, Taken, block, deadline};
use crate::{errors, event, slots};

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
            .map(|entry| Box::new(Delta::new(entry.clone())));
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
        if error.is_instance_of::<PyStopIteration>(py) || error.is_instance_of::<PyStopAsyncIteration>(py) {
            // Raised as it is, it would pass for the end of whatever iterates. Generators do the same.
            let said = PyRuntimeError::new_err(format!("the queue was closed with {}", error.get_type(py).name()?));
            said.set_cause(py, Some(error));
            return Err(said);
        }
        Err(error)
    }
}

#[pymethods]
impl EventQueue {
    #[new]
    #[pyo3(signature = (maxsize = 1000, overflow = "block", *, gaps = false, warn_interval_s = 10.0))]
    fn new(#[pyo3(from_py_with = count)] maxsize: usize, overflow: &str, gaps: bool, warn_interval_s: f64) -> PyResult<Self> {
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
        waits::putter(slf, this.slot(item))
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

    fn __iter__(slf: Bound<'_, Self>) -> PyResult<Blocking> {
        check_fork(slf.get().made)?;
        Ok(Blocking::of(slf.unbind()))
    }

    /// Lists of up to `max_items` items, all that are ready, at least one.
    #[pyo3(signature = (max_items = 64))]
    fn batches(slf: &Bound<'_, Self>, #[pyo3(from_py_with = count)] max_items: usize) -> PyResult<Py<PyAny>> {
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
    fn next_blocking_as(&self, py: Python<'_>, form: Form) -> PyResult<Option<Py<PyAny>>> {
        self.take_blocking(py, form, None, ": iterate with `async for` instead")
    }

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

impl Blocks for EventQueue {
    fn next_blocking(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        self.next_blocking_as(py, Form::Each)
    }
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<EventQueue>()?;
    slots::register::<QueueTake>(module)
}
