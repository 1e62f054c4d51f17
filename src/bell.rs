//! One doorbell per event loop: how a Rust thread wakes coroutines without touching Python.
//!
//! A thread that has news pushes the parking's number and writes to the loop's descriptor, once, however many wait; the
//! loop's own callback then completes the futures of all that are ready. `call_soon_threadsafe` from a foreign thread
//! would need the interpreter at the worst of times; it serves only the loops that have no `add_reader`.
//!
//! Invariants: 1. futures are made, held, completed and dropped on the loop's thread only; 2. a ring that comes while
//! the callback runs is not lost (the core's `bell` has the order, and its proof); 3. after a fork nothing is rung; 4. no ring
//! needs the interpreter once it is going.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Wake, Waker};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pyo3::exceptions::{PyAttributeError, PyNotImplementedError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::{PyTraverseError, PyVisit};
use rustix::fd::{AsRawFd, OwnedFd};
use turnstream_core::bell::Calls;

/// Rises in the child of each fork: what was made before it must not be used there.
static GENERATION: AtomicU32 = AtomicU32::new(0);

/// Set when the interpreter begins to go.
static EXITING: AtomicBool = AtomicBool::new(false);

/// Threads that are in [`before_exit`].
static INSIDE: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Whether this thread may run Python code whatever happens: it is in [`before_exit`], or it is the one that ends the interpreter.
    static MAY: Cell<bool> = const { Cell::new(false) };
}

/// Runs Python code from Rust, unless the interpreter is going. It ends a daemon thread wherever that next waits for it: with
/// frames of Rust below, the process would abort. So the exit waits for those inside, and lets nobody else in.
pub fn before_exit<T>(run: impl FnOnce() -> T) -> Option<T> {
    if MAY.get() {
        return Some(run());
    }
    // SeqCst, here and in `_at_exit`: of a thread that enters and then looks, and the exit, which says so and then counts, one
    // sees the other.
    INSIDE.fetch_add(1, Ordering::SeqCst);
    let result = if EXITING.load(Ordering::SeqCst) {
        None
    } else {
        MAY.set(true);
        let result = run();
        MAY.set(false);
        Some(result)
    };
    INSIDE.fetch_sub(1, Ordering::SeqCst);
    result
}

/// The same for a call from Python, which has no answer once the interpreter goes: the thread stays here until the process ends.
pub fn before_exit_or_never<T>(py: Python<'_>, run: impl FnOnce() -> T) -> T {
    if let Some(result) = before_exit(run) {
        return result;
    }
    py.detach(forever);
    unreachable!("forever is over")
}

fn forever() {
    loop {
        std::thread::park();
    }
}

/// The process generation that an object is made in.
pub fn generation() -> u32 {
    // Relaxed: written only in a fresh child, which has one thread.
    GENERATION.load(Ordering::Relaxed)
}

/// Refuses an object that was made before a fork.
pub fn check_fork(made: u32) -> PyResult<()> {
    if made == generation() {
        return Ok(());
    }
    Err(crate::errors::raise(
        "ForkedProcess",
        "made before a fork: its locks and threads are the parent's; make a new one in the child",
    ))
}

/// What other threads may hold of a doorbell.
struct Rope {
    #[cfg(target_os = "linux")]
    descriptor: OwnedFd,
    #[cfg(not(target_os = "linux"))]
    descriptor: OwnedFd,
    #[cfg(not(target_os = "linux"))]
    write: OwnedFd,
    /// A weak reference to the bell, where the loop watches no descriptors.
    bell: OnceLock<Py<PyAny>>,
    calls: Calls,
    made: u32,
}

impl Rope {
    #[cfg(target_os = "linux")]
    fn new() -> std::io::Result<Self> {
        use rustix::event::{EventfdFlags, eventfd};
        let descriptor = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let (bell, calls) = (OnceLock::new(), Calls::default());
        Ok(Self { descriptor, bell, calls, made: generation() })
    }

    #[cfg(not(target_os = "linux"))]
    fn new() -> std::io::Result<Self> {
        let (descriptor, write) = rustix::pipe::pipe()?;
        for end in [&descriptor, &write] {
            rustix::io::fcntl_setfd(end, rustix::io::FdFlags::CLOEXEC)?;
            rustix::io::ioctl_fionbio(end, true)?;
        }
        let (bell, calls) = (OnceLock::new(), Calls::default());
        Ok(Self { descriptor, write, bell, calls, made: generation() })
    }

    /// The way to a loop that watches no descriptors. A loop that was closed meanwhile has nobody to wake.
    fn call_soon(bell: &Py<PyAny>) {
        let call = |py: Python<'_>| {
            let bell = bell.bind(py).call0()?;
            let Ok(this) = bell.cast::<Bell>() else { return Ok(()) };
            let answer = bell.getattr(pyo3::intern!(py, "answer"))?;
            this.get().event_loop.call_method1(py, pyo3::intern!(py, "call_soon_threadsafe"), (answer,)).map(drop)
        };
        let _: Option<Option<PyResult<()>>> = before_exit(|| Python::try_attach(call));
    }

    fn call(&self, number: u64) {
        if self.made != generation() || !self.calls.call(number) {
            return;
        }
        if let Some(bell) = self.bell.get() {
            return Self::call_soon(bell);
        }
        #[cfg(target_os = "linux")]
        let end = &self.descriptor;
        #[cfg(not(target_os = "linux"))]
        let end = &self.write;
        // A full descriptor is a rung one; a closed loop has nobody to wake.
        let _ = rustix::io::write(end, &1_u64.to_ne_bytes());
    }
}

/// The loop's side of its doorbell. Lives in the loop's selector.
#[pyclass(frozen, weakref, module = "turnstream._native")]
pub struct Bell {
    rope: Arc<Rope>,
    /// Futures by parking. The mutex is never contended: invariant 1.
    parked: Mutex<HashMap<u64, Py<PyAny>>>,
    event_loop: Py<PyAny>,
}

/// One waiting place: a reader has one for its life.
pub struct Parking {
    number: u64,
    rope: Arc<Rope>,
}

impl Wake for Parking {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rope.call(self.number);
    }
}

static NUMBERS: AtomicU64 = AtomicU64::new(1);

thread_local! {
    /// The bell of the loop that parked last on this thread: a thread runs one loop, so this nearly always fits.
    static LAST: RefCell<Option<Py<Bell>>> = const { RefCell::new(None) };
}

/// The running loop of this thread.
pub fn running_loop(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    static RUNNING: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let function = RUNNING.get_or_try_init(py, || Ok::<_, PyErr>(py.import("asyncio")?.getattr("get_running_loop")?.unbind()))?;
    function.bind(py).call0()
}

/// The running loop of this thread, if there is one; asyncio is not imported to find out.
pub fn running_loop_if_any(py: Python<'_>) -> PyResult<Option<Bound<'_, PyAny>>> {
    static RUNNING: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    if RUNNING.get(py).is_none() {
        let loaded = py.import("sys")?.getattr("modules")?.call_method1("get", ("asyncio",))?;
        if loaded.is_none() {
            return Ok(None);
        }
        let _ = RUNNING.set(py, loaded.getattr("_get_running_loop")?.unbind());
    }
    let Some(function) = RUNNING.get(py) else { return Ok(None) };
    let running = function.bind(py).call0()?;
    Ok((!running.is_none()).then_some(running))
}

impl Bell {
    /// The bell of the running loop, hung on first use.
    pub fn of_running_loop(py: Python<'_>) -> PyResult<Py<Self>> {
        let event_loop = running_loop(py)?;
        let last = LAST.with_borrow(|last| {
            let last = last.as_ref()?;
            let fits = last.get().event_loop.is(&event_loop) && last.get().rope.made == generation();
            fits.then(|| last.clone_ref(py))
        });
        if let Some(bell) = last {
            return Ok(bell);
        }
        let bells = registry(py)?;
        let known = bells.call_method1("get", (&event_loop,))?;
        let bell = match known.cast_into::<Self>() {
            Ok(bell) if bell.get().rope.made == generation() => bell.unbind(),
            _ => Self::hang(py, &event_loop, &bells)?,
        };
        let old = LAST.replace(Some(bell.clone_ref(py)));
        drop(old);
        Ok(bell)
    }

    fn hang(py: Python<'_>, event_loop: &Bound<'_, PyAny>, bells: &Bound<'_, PyAny>) -> PyResult<Py<Self>> {
        let rope = Arc::new(Rope::new()?);
        let descriptor = rope.descriptor.as_raw_fd();
        let bell = Bound::new(py, Self { rope, parked: Mutex::default(), event_loop: event_loop.clone().unbind() })?;
        if let Err(error) = event_loop.call_method1("add_reader", (descriptor, bell.getattr("answer")?)) {
            if !error.is_instance_of::<PyNotImplementedError>(py) && !error.is_instance_of::<PyAttributeError>(py) {
                return Err(error);
            }
            let _ = bell.get().rope.bell.set(py.import("weakref")?.getattr("ref")?.call1((&bell,))?.unbind());
        }
        let bell = bell.unbind();
        bells.set_item(event_loop, &bell)?;
        Ok(bell)
    }

    /// A new waiting place.
    pub fn parking(&self) -> Arc<Parking> {
        // Relaxed: only uniqueness matters.
        Arc::new(Parking { number: NUMBERS.fetch_add(1, Ordering::Relaxed), rope: self.rope.clone() })
    }

    /// Whether `parking` is of this bell.
    pub fn owns(&self, parking: &Parking) -> bool {
        Arc::ptr_eq(&self.rope, &parking.rope)
    }

    /// Makes the future that `parking`'s next ring completes.
    pub fn wait(&self, py: Python<'_>, parking: &Parking) -> PyResult<Py<PyAny>> {
        let future = self.event_loop.call_method0(py, pyo3::intern!(py, "create_future"))?;
        let old = self.parked.lock().insert(parking.number, future.clone_ref(py));
        drop(old);
        Ok(future)
    }

    /// Forgets the future of `parking`.
    pub fn leave(&self, parking: &Parking) {
        let old = self.parked.lock().remove(&parking.number);
        drop(old);
    }
}

#[pymethods]
impl Bell {
    /// The loop's callback: completes the futures of all that have been rung for. A future tells its loop, which is Python code:
    /// once the interpreter goes, nobody is woken any more.
    fn answer(&self, py: Python<'_>) -> PyResult<()> {
        before_exit(|| self.wake(py)).unwrap_or(Ok(()))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.event_loop)?;
        if let Some(parked) = self.parked.try_lock() {
            for future in parked.values() {
                visit.call(future)?;
            }
        }
        Ok(())
    }
}

impl Bell {
    fn wake(&self, py: Python<'_>) -> PyResult<()> {
        let mut count = [0_u8; 64];
        let _ = rustix::io::read(&self.rope.descriptor, &mut count);
        for number in self.rope.calls.answer() {
            let future = self.parked.lock().remove(&number);
            if let Some(future) = future
                && !future.call_method0(py, pyo3::intern!(py, "done"))?.is_truthy(py)?
            {
                future.call_method1(py, pyo3::intern!(py, "set_result"), (py.None(),))?;
            }
        }
        Ok(())
    }
}

/// Loops to bells, without keeping either alive past the loop.
fn registry(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    static BELLS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let bells =
        BELLS.get_or_try_init(py, || Ok::<_, PyErr>(py.import("weakref")?.getattr("WeakValueDictionary")?.call0()?.unbind()))?;
    Ok(bells.bind(py).clone())
}

/// A waker of `parking`.
pub fn waker(parking: &Arc<Parking>) -> Waker {
    Waker::from(parking.clone())
}

#[pyfunction]
fn _after_fork() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
    LAST.with_borrow_mut(|last| {
        if let Some(bell) = last.take() {
            std::mem::forget(bell); // the parent's: dropping it here would run its loop's finalizers
        }
    });
}

#[pyfunction]
fn _at_exit(py: Python<'_>) {
    MAY.set(true);
    EXITING.store(true, Ordering::SeqCst);
    py.detach(crate::hub::flush_all);
    let begun = Instant::now();
    while INSIDE.load(Ordering::SeqCst) > 0 && begun.elapsed() < Duration::from_secs(1) {
        py.detach(|| std::thread::sleep(Duration::from_millis(1)));
    }
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    py.import("atexit")?.call_method1("register", (wrap_pyfunction!(_at_exit, module)?,))?;
    let hook = wrap_pyfunction!(_after_fork, module)?;
    let os = py.import("os")?;
    if os.hasattr("register_at_fork")? {
        let keywords = pyo3::types::PyDict::new(py);
        keywords.set_item("after_in_child", hook)?;
        os.call_method("register_at_fork", (), Some(&keywords))?;
    }
    Ok(())
}
