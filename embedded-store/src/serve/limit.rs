//! How many connections there may be. Whoever connects and says nothing makes room for those who do.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::Context;

use futures::task::AtomicWaker;
use rustix::process::{Resource, getrlimit};

/// Descriptors that are left for everything else in this process: the file, sockets of the kernel, programs that are run.
const KEPT_FREE: u64 = 48;
/// Connections that there may be however few descriptors there are.
const LEAST: usize = 8;
/// Connections that there may be however many descriptors there are. Each takes memory, too.
const MOST: usize = 16_384;

/// The connections of a store.
#[derive(Debug)]
pub(crate) struct ConnectionLimit {
    most: usize,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    count: usize,
    /// Those that had said nothing when they were last looked at, the oldest first.
    silent: VecDeque<Weak<Seat>>,
}

/// The place of one connection, given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    limit: Arc<ConnectionLimit>,
    seat: Arc<Seat>,
}

#[derive(Debug, Default)]
struct Seat {
    has_spoken: AtomicBool,
    must_go: AtomicBool,
    waker: AtomicWaker,
}

impl ConnectionLimit {
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, open: Mutex::default() })
    }

    /// As many as this process may have descriptors for.
    pub(crate) fn of_this_process() -> Arc<Self> {
        // None: as many as one likes.
        let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let most = usize::try_from(descriptors.saturating_sub(KEPT_FREE)).unwrap_or(MOST);
        Self::new(most.clamp(LEAST, MOST))
    }

    /// How many there may be.
    pub(crate) fn most(&self) -> usize {
        self.most
    }

    /// A place for one more connection. Where there is none, the one that has said nothing for longest must go; `None` where
    /// all have said something.
    pub(crate) fn admit(self: &Arc<Self>) -> Option<Slot> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let is_silent = |seat: &Arc<Seat>| !seat.has_spoken.load(Ordering::Relaxed);
        if open.count >= self.most {
            loop {
                let oldest = open.silent.pop_front()?;
                if let Some(seat) = oldest.upgrade().filter(is_silent) {
                    seat.send_away();
                    break;
                }
            }
        }
        // Those before the first one that is silent need not be kept.
        while open.silent.front().is_some_and(|seat| seat.upgrade().filter(is_silent).is_none()) {
            open.silent.pop_front();
        }
        let seat = Arc::new(Seat::default());
        open.silent.push_back(Arc::downgrade(&seat));
        open.count += 1;
        Some(Slot { limit: self.clone(), seat })
    }
}

impl Slot {
    /// The connection is that of a client which listens and answers.
    pub(crate) fn has_spoken(&self) {
        self.seat.has_spoken.store(true, Ordering::Relaxed);
    }

    /// Whether it has made room for another one. Wakes the task of `context` when it must.
    pub(crate) fn must_go(&self, context: &Context<'_>) -> bool {
        self.seat.waker.register(context.waker());
        self.seat.must_go.load(Ordering::Acquire)
    }
}

impl Seat {
    fn send_away(&self) {
        self.must_go.store(true, Ordering::Release);
        self.waker.wake();
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.limit.open.lock().unwrap_or_else(PoisonError::into_inner).count -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn must_go(slot: &Slot) -> bool {
        slot.must_go(&Context::from_waker(futures::task::noop_waker_ref()))
    }

    #[test]
    fn the_one_that_was_silent_for_longest_makes_room() {
        let limit = ConnectionLimit::new(3);
        let slots: Vec<Slot> = std::iter::repeat_with(|| limit.admit()).flatten().take(3).collect();
        slots[0].has_spoken();
        let _fourth = limit.admit().unwrap();
        let gone: Vec<bool> = slots.iter().map(must_go).collect();
        assert_eq!(gone, [false, true, false]);
    }

    #[test]
    fn nobody_who_speaks_must_go_for_one_who_may_not() {
        let limit = ConnectionLimit::new(2);
        let slots = [limit.admit().unwrap(), limit.admit().unwrap()];
        slots.iter().for_each(Slot::has_spoken);
        assert!(limit.admit().is_none());
        assert!(!slots.iter().any(must_go));
        drop(slots);
        assert!(limit.admit().is_some());
    }

    #[test]
    fn what_is_remembered_does_not_grow_with_those_who_came_and_went() {
        let limit = ConnectionLimit::new(4);
        for _ in 0..1000 {
            drop(limit.admit());
        }
        assert!(limit.open.lock().unwrap().silent.len() <= 2);
        assert_eq!(limit.open.lock().unwrap().count, 0);
    }
}
