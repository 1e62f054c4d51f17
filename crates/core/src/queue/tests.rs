use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex as StdMutex};
use std::thread::{self, Thread};

use proptest::prelude::*;

use super::{Join, Offer, Overflow, Place, Pop, Queue, Sleeper};

/// From here on a number stands for a gap: 1000 times the first that is missing, and the last.
const GAP: u32 = 1_000_000;

/// Joins what has the same tens.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Number(u32);

impl Join for Number {
    fn join(&mut self, next: &Self) -> bool {
        let joins = self.0 / 10 == next.0 / 10;
        if joins {
            self.0 = self.0.max(next.0);
        }
        joins
    }

    fn gap(first: u64, last: u64) -> Self {
        Self(GAP + 1000 * first as u32 + last as u32)
    }
}

/// Writes down that it was called.
struct Called {
    who: usize,
    calls: Arc<StdMutex<Vec<usize>>>,
    alive: bool,
}

impl Sleeper for Called {
    fn wake(self) -> bool {
        self.calls.lock().unwrap().push(self.who);
        self.alive
    }
}

impl Sleeper for Thread {
    fn wake(self) -> bool {
        self.unpark();
        true
    }
}

fn numbers(numbers: impl IntoIterator<Item = u32>) -> Vec<Number> {
    numbers.into_iter().map(Number).collect()
}

fn drain(queue: &Queue<Number, Called>) -> Vec<Number> {
    let mut all = Vec::new();
    queue.take_many(usize::MAX, &mut all, &mut Place::default());
    all
}

struct Waiting {
    queue: Queue<Number, Called>,
    calls: Arc<StdMutex<Vec<usize>>>,
}

impl Waiting {
    fn new(capacity: usize) -> Self {
        Self { queue: Queue::new(capacity, Overflow::Block), calls: Arc::default() }
    }

    fn who(&self, who: usize, alive: bool) -> Called {
        Called { who, calls: self.calls.clone(), alive }
    }

    fn called(&self) -> Vec<usize> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }
}

#[test]
fn merging_joins_the_last_or_makes_room() {
    let queue = Queue::<_, Called>::new(4, Overflow::Merge);
    let put = |number| queue.put(Number(number), &mut Place::default());
    for number in [11, 12, 21, 31] {
        assert_eq!(put(number), Offer::Queued);
    }
    assert_eq!(put(32), Offer::Merged(numbers([32])));
    assert_eq!(put(41), Offer::Merged(numbers([12])));
    assert_eq!(put(51), Offer::Full(Number(51)));
    assert_eq!(drain(&queue), numbers([12, 21, 32, 41]));
    assert_eq!(queue.counts().merged, 2);
}

#[test]
fn invariant_3_and_4_as_many_are_called_as_can_be_served_in_their_order() {
    let here = Waiting::new(10);
    let mut places: Vec<_> = (0..4).map(|_| Place::default()).collect();
    for (who, place) in places.iter_mut().enumerate() {
        assert!(here.queue.wait_take(place, here.who(who, true)));
    }
    for number in 0..2 {
        here.queue.put(Number(number), &mut Place::default());
    }
    assert_eq!(here.called(), [0, 1]);
    here.queue.leave_take(&mut places[0]); // had been called: the call goes on
    assert_eq!(here.called(), [2]);
    here.queue.leave_take(&mut places[3]); // asleep
    assert!(here.called().is_empty());
    assert_eq!(here.queue.take(&mut places[2]), Pop::Item(Number(0)));
    assert_eq!(here.queue.take(&mut Place::default()), Pop::Item(Number(1))); // a newcomer was quicker
    assert!(here.queue.wait_take(&mut places[1], here.who(1, true))); // keeps its place
    let mut later = Place::default();
    assert!(here.queue.wait_take(&mut later, here.who(9, true)));
    here.queue.put(Number(2), &mut Place::default());
    assert_eq!(here.called(), [1]);
    here.queue.close();
    assert_eq!(here.called(), [9]);
}

#[test]
fn invariant_3_a_call_that_nobody_hears_goes_to_the_next() {
    let here = Waiting::new(1);
    let mut places: Vec<_> = (0..3).map(|_| Place::default()).collect();
    for (who, place) in places.iter_mut().enumerate() {
        assert!(here.queue.wait_take(place, here.who(who, who == 2)));
    }
    here.queue.put(Number(0), &mut Place::default());
    assert_eq!(here.called(), [0, 1, 2]);
    assert_eq!(here.queue.sizes(), (1, 0, 1));
    here.queue.leave_take(&mut places[0]); // out of line already
    assert_eq!(here.queue.sizes(), (1, 0, 1));
}

#[test]
fn many_taken_at_once_call_as_many_producers() {
    let here = Waiting::new(3);
    for number in 0..3 {
        here.queue.put(Number(number), &mut Place::default());
    }
    let mut places: Vec<_> = (0..4).map(|_| Place::default()).collect();
    for (who, place) in places.iter_mut().enumerate() {
        assert!(here.queue.wait_put(place, here.who(who, true)));
    }
    assert_eq!(drain(&here.queue).len(), 3);
    assert_eq!(here.called(), [0, 1, 2]);
}

#[test]
fn threads_hand_over_each_item_once() {
    const EACH: u32 = 5_000;
    let queue = Queue::<Number, Thread>::new(7, Overflow::Block);
    let sum = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut place = Place::default();
                loop {
                    match queue.take(&mut place) {
                        Pop::Item(number) => {
                            sum.fetch_add(number.0 as usize, Ordering::Relaxed);
                        }
                        Pop::Empty if queue.wait_take(&mut place, thread::current()) => thread::park(),
                        Pop::Empty => {}
                        Pop::End => break,
                    }
                }
            });
        }
        let producers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut place = Place::default();
                    for number in 0..EACH {
                        let mut item = Number(number);
                        while let Offer::Full(back) = queue.put(item, &mut place) {
                            item = back;
                            if queue.wait_put(&mut place, thread::current()) {
                                thread::park();
                            }
                        }
                    }
                })
            })
            .collect();
        for producer in producers {
            producer.join().unwrap();
        }
        queue.close();
    });
    assert_eq!(sum.into_inner(), (EACH * (EACH - 1)) as usize);
}

#[derive(Debug, Clone)]
enum Step {
    Put(u32),
    Take,
    TakeMany(usize),
    Clear,
    Close,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..40_u32).prop_map(Step::Put),
        3 => Just(Step::Take),
        1 => (1..5_usize).prop_map(Step::TakeMany),
        1 => Just(Step::Clear),
        1 => Just(Step::Close),
    ]
}

/// The queue as one would write it without a thought for speed.
fn modelled(items: &mut VecDeque<Number>, capacity: usize, overflow: Overflow, item: Number) -> Offer<Number> {
    if items.len() < capacity {
        items.push_back(item);
        return Offer::Queued;
    }
    match overflow {
        Overflow::DropNewest => Offer::Dropped(item),
        Overflow::DropOldest => {
            items.push_back(item);
            items.pop_front().map_or(Offer::Queued, Offer::Displaced)
        }
        Overflow::Merge => {
            if items.back_mut().is_some_and(|last| last.join(&item)) {
                return Offer::Merged(vec![item]);
            }
            let mut left = Vec::new();
            let mut at = 1;
            while at < items.len() {
                let next = items[at].clone();
                if items[at - 1].join(&next) {
                    left.extend(items.remove(at));
                } else {
                    at += 1;
                }
            }
            if left.is_empty() {
                return Offer::Full(item);
            }
            items.push_back(item);
            Offer::Merged(left)
        }
        Overflow::Block | Overflow::Fail => Offer::Full(item),
    }
}

proptest! {
    #[test]
    fn it_is_a_list_and_invariant_7_holds(
        capacity in 1..6_usize,
        overflow in prop::sample::select(vec![
            Overflow::Block, Overflow::DropOldest, Overflow::DropNewest, Overflow::Merge, Overflow::Fail,
        ]),
        steps in prop::collection::vec(step(), 0..60),
    ) {
        let queue = Queue::<Number, Called>::new(capacity, overflow);
        let (mut items, mut closed) = (VecDeque::new(), false);
        for step in steps {
            match step {
                Step::Put(number) => {
                    let offer = queue.put(Number(number), &mut Place::default());
                    if closed {
                        prop_assert_eq!(offer, Offer::Closed(Number(number)));
                    } else {
                        prop_assert_eq!(offer, modelled(&mut items, capacity, overflow, Number(number)));
                    }
                }
                Step::Take => {
                    let nothing = if closed { Pop::End } else { Pop::Empty };
                    prop_assert_eq!(queue.take(&mut Place::default()), items.pop_front().map_or(nothing, Pop::Item));
                }
                Step::TakeMany(max) => {
                    let mut taken = Vec::new();
                    let ended = queue.take_many(max, &mut taken, &mut Place::default());
                    prop_assert_eq!(ended, closed && items.is_empty());
                    prop_assert_eq!(taken, items.drain(..max.min(items.len())).collect::<Vec<_>>());
                }
                Step::Clear => prop_assert_eq!(queue.clear(), std::mem::take(&mut items)),
                Step::Close => {
                    prop_assert_eq!(queue.close(), !closed);
                    closed = true;
                }
            }
            let counts = queue.counts();
            prop_assert_eq!(queue.sizes().0, items.len());
            prop_assert_eq!(counts.put, counts.taken + counts.dropped + counts.merged + counts.discarded + items.len() as u64);
            prop_assert!(counts.peak <= capacity);
        }
    }
}

proptest! {
    #[test]
    fn invariant_8_items_and_gaps_are_every_number(
        capacity in 1..5_usize,
        oldest in any::<bool>(),
        steps in prop::collection::vec(step(), 0..80),
    ) {
        let overflow = if oldest { Overflow::DropOldest } else { Overflow::DropNewest };
        let queue = Queue::<Number, Called>::new(capacity, overflow).with_gaps();
        let (mut offered, mut out, mut missing) = (0_u32, Vec::new(), 0_u64);
        for step in steps {
            match step {
                Step::Put(_) => {
                    offered += 1;
                    queue.put(Number(offered), &mut Place::default());
                }
                Step::Take => {
                    if let Pop::Item(number) = queue.take(&mut Place::default()) {
                        out.push(number);
                    }
                }
                Step::TakeMany(max) => {
                    let before = out.len();
                    queue.take_many(max, &mut out, &mut Place::default());
                    prop_assert!(out.len() - before <= max);
                }
                Step::Clear | Step::Close => {}
            }
        }
        queue.close();
        queue.take_many(usize::MAX, &mut out, &mut Place::default());
        let mut next = 1;
        for Number(number) in out {
            if number < GAP {
                prop_assert_eq!(number, next);
                next += 1;
            } else {
                let (first, last) = ((number - GAP) / 1000, (number - GAP) % 1000);
                prop_assert!(first == next && last >= first, "{first} to {last} where {next} is due");
                missing += u64::from(last - first + 1);
                next = last + 1;
            }
        }
        prop_assert_eq!(next, offered + 1);
        prop_assert_eq!(queue.counts().dropped, missing);
        prop_assert_eq!(queue.counts().taken + missing, u64::from(offered));
    }
}

/// Guards: in `put`, `state.due` after `miss`: a gap that follows the last item calls one more consumer.
#[test]
fn invariant_3_a_gap_calls_a_consumer_too() {
    let calls = Arc::new(StdMutex::new(Vec::new()));
    let queue = Queue::new(1, Overflow::DropNewest).with_gaps();
    let mut places: Vec<_> = (0..2).map(|_| Place::default()).collect();
    for (who, place) in places.iter_mut().enumerate() {
        assert!(queue.wait_take(place, Called { who, calls: calls.clone(), alive: true }));
    }
    queue.put(Number(1), &mut Place::default());
    queue.put(Number(2), &mut Place::default());
    assert_eq!(*calls.lock().unwrap(), [0, 1]);
    assert_eq!(queue.take(&mut places[0]), Pop::Item(Number(1)));
    assert_eq!(queue.take(&mut places[1]), Pop::Item(Number(GAP + 2002)));
}
