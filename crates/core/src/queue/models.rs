//! Every interleaving of a few threads, by loom. Each model names the line that it guards: without that line it fails.

use std::sync::Arc;

use loom::sync::Notify;
use loom::thread;

use super::{Join, Offer, Overflow, Place, Pop, Queue, Sleeper};

#[derive(Debug, PartialEq, Eq)]
struct Number(u32);

/// Stands for any gap.
const GAP: u32 = 99;

impl Join for Number {
    fn join(&mut self, _next: &Self) -> bool {
        false
    }

    fn gap(_first: u64, _last: u64) -> Self {
        Number(GAP)
    }
}

/// One waiter's bell. A waiter that is never called is a deadlock, which loom reports.
#[derive(Clone)]
struct Bell(Arc<Notify>);

impl Bell {
    fn new() -> Self {
        Self(Arc::new(Notify::new()))
    }
}

impl Sleeper for Bell {
    fn wake(self) -> bool {
        self.0.notify();
        true
    }
}

type Shared = Arc<Queue<Number, Bell>>;

fn queue(capacity: usize) -> Shared {
    Arc::new(Queue::new(capacity, Overflow::Block))
}

fn take(queue: &Shared, place: &mut Place, bell: &Bell) -> Option<u32> {
    loop {
        match queue.take(place) {
            Pop::Item(Number(number)) => return Some(number),
            Pop::End => return None,
            Pop::Empty => {
                if queue.wait_take(place, bell.clone()) {
                    bell.0.wait();
                }
            }
        }
    }
}

fn put(queue: &Shared, number: u32) -> bool {
    let (mut place, bell, mut item) = (Place::default(), Bell::new(), Number(number));
    loop {
        match queue.put(item, &mut place) {
            Offer::Full(back) => item = back,
            Offer::Closed(_) => return false,
            _ => return true,
        }
        if queue.wait_put(&mut place, bell.clone()) {
            bell.0.wait();
        }
    }
}

/// Guards: in `wait_take`, looking under the lock that registers (`|| !state.items.is_empty()`).
#[test]
fn a_put_meets_a_consumer_that_lies_down() {
    loom::model(|| {
        let queue = queue(2);
        let consumer = {
            let queue = queue.clone();
            thread::spawn(move || take(&queue, &mut Place::default(), &Bell::new()))
        };
        assert!(put(&queue, 1));
        assert_eq!(consumer.join().unwrap(), Some(1));
    });
}

/// Guards: in `wait_put`, `|| state.items.len() < self.capacity`; in `take`, `self.call(Side::Put, putters)`.
#[test]
fn a_take_meets_a_producer_that_lies_down() {
    loom::model(|| {
        let queue = queue(1);
        assert!(put(&queue, 1));
        let producer = {
            let queue = queue.clone();
            thread::spawn(move || put(&queue, 2))
        };
        let (mut place, bell) = (Place::default(), Bell::new());
        assert_eq!(take(&queue, &mut place, &bell), Some(1));
        assert_eq!(take(&queue, &mut place, &bell), Some(2));
        assert!(producer.join().unwrap());
    });
}

/// Guards: in `close`, both calls; in `wait_put`, `state.closed ||`.
#[test]
fn a_close_meets_a_consumer_and_a_producer() {
    loom::model(|| {
        let (empty, full) = (queue(1), queue(1));
        assert!(put(&full, 1));
        let consumer = {
            let empty = empty.clone();
            thread::spawn(move || take(&empty, &mut Place::default(), &Bell::new()))
        };
        let producer = {
            let full = full.clone();
            thread::spawn(move || put(&full, 2))
        };
        empty.close();
        full.close();
        assert_eq!(consumer.join().unwrap(), None);
        assert!(!producer.join().unwrap());
    });
}

/// Guards: in `put`, `if state.closed` under the lock that appends: what was taken in is handed out, the rest refused.
#[test]
fn a_close_meets_an_append() {
    loom::model(|| {
        let queue = queue(4);
        let producer = {
            let queue = queue.clone();
            thread::spawn(move || [1, 2].map(|number| put(&queue, number)))
        };
        queue.close();
        let mut before = Vec::new();
        let (mut place, bell) = (Place::default(), Bell::new());
        while let Some(number) = take(&queue, &mut place, &bell) {
            before.push(number);
        }
        let put = producer.join().unwrap();
        assert_eq!(before.len(), put.iter().filter(|put| **put).count());
        assert_eq!(take(&queue, &mut place, &bell), None);
    });
}

/// Guards: in `leave`, `self.call(side, due)`: a call to one who leaves goes to the next.
#[test]
fn a_cancel_meets_a_call() {
    loom::model(|| {
        let queue = queue(2);
        let (mut first, mut second) = (Place::default(), Place::default());
        let bell = Bell::new();
        assert!(queue.wait_take(&mut first, Bell::new()));
        assert!(queue.wait_take(&mut second, bell.clone()));
        let leaver = {
            let queue = queue.clone();
            thread::spawn(move || queue.leave_take(&mut first))
        };
        let waiter = {
            let queue = queue.clone();
            thread::spawn(move || {
                bell.0.wait();
                take(&queue, &mut second, &bell)
            })
        };
        assert!(put(&queue, 1));
        leaver.join().unwrap();
        assert_eq!(waiter.join().unwrap(), Some(1));
    });
}

/// Guards: in `call`, `due = state.due(..)`: the end calls everybody.
#[test]
fn a_close_meets_two_consumers() {
    loom::model(|| {
        let queue = queue(2);
        let consumers = [1, 2].map(|_| {
            let queue = queue.clone();
            thread::spawn(move || take(&queue, &mut Place::default(), &Bell::new()))
        });
        queue.close();
        for consumer in consumers {
            assert_eq!(consumer.join().unwrap(), None);
        }
    });
}

/// Guards: in `take_many`, `self.call(Side::Put, putters)`.
#[test]
fn many_taken_at_once_meet_two_producers() {
    loom::model(|| {
        let queue = queue(2);
        assert!(put(&queue, 1) && put(&queue, 2));
        let producers = [3, 4].map(|number| {
            let queue = queue.clone();
            thread::spawn(move || put(&queue, number))
        });
        let mut taken = Vec::new();
        queue.take_many(2, &mut taken, &mut Place::default());
        for producer in producers {
            assert!(producer.join().unwrap());
        }
        queue.close();
        queue.take_many(4, &mut taken, &mut Place::default());
        assert_eq!(taken.len(), 4);
    });
}

/// Guards: in `wait_take`, `|| !state.missing.is_empty()`: the gap that follows the last item is somebody's.
#[test]
fn a_gap_meets_a_consumer_that_lies_down() {
    loom::model(|| {
        let queue = Arc::new(Queue::new(1, Overflow::DropNewest).with_gaps());
        let consumer = {
            let queue = queue.clone();
            thread::spawn(move || take(&queue, &mut Place::default(), &Bell::new()).unwrap())
        };
        for number in [1, 2] {
            queue.put(Number(number), &mut Place::default());
        }
        let mine = take(&queue, &mut Place::default(), &Bell::new()).unwrap();
        let mut taken = [mine, consumer.join().unwrap()];
        taken.sort_unstable();
        assert!(taken == [1, 2] || taken == [1, GAP], "{taken:?}");
    });
}

/// Guards: in `put`, finding it full under the lock that makes room: nothing is dropped where a take made room already.
#[test]
fn a_displacement_meets_a_take() {
    loom::model(|| {
        let queue = Arc::new(Queue::<_, Bell>::new(2, Overflow::DropOldest));
        assert!([1, 2].map(|number| queue.put(Number(number), &mut Place::default())) == [Offer::Queued, Offer::Queued]);
        let taking = {
            let queue = queue.clone();
            thread::spawn(move || queue.take(&mut Place::default()))
        };
        let offer = queue.put(Number(3), &mut Place::default());
        let Pop::Item(Number(taken)) = taking.join().unwrap() else { panic!("an item is there at all times") };
        let mut left = Vec::new();
        queue.take_many(3, &mut left, &mut Place::default());
        let left: Vec<_> = left.into_iter().map(|Number(number)| number).collect();
        match offer {
            Offer::Displaced(Number(1)) => assert_eq!((taken, left), (2, vec![3])),
            offer => assert_eq!((offer, taken, left), (Offer::Queued, 1, vec![2, 3])),
        }
    });
}
