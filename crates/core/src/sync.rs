//! What the core's threads meet at: a mutex and an atomic, or loom's under `--cfg loom`, so that models run the real code.

#[cfg(loom)]
pub use loom::sync::atomic::{AtomicBool, AtomicU64};
#[cfg(loom)]
pub use model::Mutex;
#[cfg(not(loom))]
pub use parking_lot::Mutex;
#[cfg(not(loom))]
pub use std::sync::atomic::{AtomicBool, AtomicU64};

#[cfg(loom)]
mod model {
    use loom::sync::MutexGuard;

    /// `loom::sync::Mutex` with the manners of `parking_lot`: a lock is not poisoned.
    #[derive(Debug)]
    pub struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        /// A mutex around `value`.
        pub fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }

        /// Waits for the lock.
        #[expect(clippy::unwrap_used, reason = "a model that panics has failed already")]
        pub fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap()
        }
    }
}
