//! What stands in an `EventQueue`, and who waits for it.
//!
//! Owns how deltas are joined, what a gap is to Python, and whether a waiter can still be called. Refuses to know when: that is
//! the core's. Invariant: 1. an object of Python's is made where a slot is settled, outside the core's lock, never in a join.

use std::sync::Arc;
use std::task::Waker;

use pyo3::prelude::*;
use turnstream_core::clock::now_ms;
use turnstream_core::event as core_event;
use turnstream_core::queue as core;
use turnstream_core::reader;
use turnstream_core::session::Entry;

use crate::{bell, event};

/// What stands in the queue.
pub(super) enum Slot {
    /// An item.
    Item {
        object: Py<PyAny>,
        /// Only where deltas may be joined.
        delta: Option<Box<Delta>>,
    },
    /// What stands where items were dropped. It holds no object until somebody takes it.
    Gap(Box<(u64, u64)>),
}

pub(super) struct Delta {
    first: Arc<Entry>,
    joined: Option<core_event::Event>,
}

impl Delta {
    pub fn new(first: Arc<Entry>) -> Self {
        Self { first, joined: None }
    }

    fn event(&self) -> &core_event::Event {
        self.joined.as_ref().unwrap_or(&self.first.event)
    }
}

impl Slot {
    /// Makes the object where there is none yet: deltas that were joined are one event, and a gap is one.
    pub fn settle(&mut self, py: Python<'_>) -> PyResult<()> {
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
    pub fn settled(self, py: Python<'_>) -> Py<PyAny> {
        match self {
            Self::Item { object, .. } => object,
            Self::Gap(_) => py.None(),
        }
    }

    /// What the consumer gets.
    pub fn into_object(mut self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.settle(py)?;
        Ok(self.settled(py))
    }

    pub fn object(&self) -> Option<&Py<PyAny>> {
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
pub(super) struct Sleeper {
    waker: Waker,
    pub event_loop: Option<Py<PyAny>>,
}

impl Sleeper {
    pub fn new(waker: &Waker) -> Self {
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
