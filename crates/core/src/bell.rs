//! Who is to be woken on one event loop, and whether its bell has been rung: a list that any thread adds to and the loop takes.
//!
//! Owns the order that loses no wake-up. Refuses to know what a bell is: a descriptor, a call, a model's flag.
//! Invariants: 1. a list with somebody on it has been rung for, and the answer is yet to come; 2. at most one ring for each
//! answer, however many are called.

use std::sync::atomic::Ordering;

use crate::sync::{AtomicBool, Mutex};

/// See the module.
#[derive(Debug)]
pub struct Calls {
    rung: AtomicBool,
    ready: Mutex<Vec<u64>>,
}

impl Default for Calls {
    fn default() -> Self {
        Self { rung: AtomicBool::new(false), ready: Mutex::new(Vec::new()) }
    }
}

impl Calls {
    /// Puts `number` on the list. True: nobody has rung since the last answer, so the caller is to ring.
    #[must_use = "a bell that is not rung is not answered"]
    pub fn call(&self, number: u64) -> bool {
        self.ready.lock().push(number);
        // AcqRel, here and below: whoever finds the bell rung knows that the answer has yet to take the list.
        !self.rung.swap(true, Ordering::AcqRel)
    }

    /// Takes the list. A call that comes after the first line rings again, so that no number stays behind.
    pub fn answer(&self) -> Vec<u64> {
        self.rung.swap(false, Ordering::AcqRel);
        std::mem::take(&mut *self.ready.lock())
    }
}

#[cfg(all(test, loom))]
mod models {
    //! Every interleaving, by loom. The model names the line that it guards: without it, it fails.

    use std::sync::Arc;

    use loom::sync::Notify;
    use loom::thread;

    use super::Calls;

    /// Guards: in `answer`, clearing `rung` before the list is taken; in `call`, pushing before the swap.
    #[test]
    fn a_ring_meets_an_answer() {
        loom::model(|| {
            let (calls, bell) = (Arc::new(Calls::default()), Arc::new(Notify::new()));
            let callers = [1, 2].map(|number| {
                let (calls, bell) = (calls.clone(), bell.clone());
                thread::spawn(move || {
                    if calls.call(number) {
                        bell.notify();
                    }
                })
            });
            let mut woken = Vec::new();
            while woken.len() < 2 {
                bell.wait();
                woken.extend(calls.answer());
            }
            callers.into_iter().for_each(|caller| caller.join().unwrap());
            woken.sort_unstable();
            assert_eq!(woken, [1, 2]);
        });
    }
}
