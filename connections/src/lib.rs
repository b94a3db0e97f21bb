//! How many connections a server has. Whoever connects and says nothing makes room for those who do.

mod door;

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::task::AtomicWaker;
use rustix::process::{Resource, getrlimit};
use tokio::sync::Notify;

pub use door::Door;

/// Descriptors that are left for everything else in this process: the file, sockets of the kernel, programs that are run.
const KEPT_FREE: usize = 48;
/// Connections that each server may have however few descriptors there are.
const LEAST: usize = 8;
/// Connections of a store however many descriptors there are. Each takes memory, too.
const MOST_CLIENTS: usize = 16_384;
/// Connections of those who ask how the agent is, likewise.
const MOST_MONITORS: usize = 32;
/// How long the next connection waits for one that makes room to be closed.
const LEAVING: Duration = Duration::from_secs(1);

/// The connections of one server.
#[derive(Debug)]
pub struct ConnectionLimit {
    most: usize,
    open: Mutex<Open>,
    left: Notify,
}

#[derive(Debug, Default)]
struct Open {
    count: usize,
    /// Those that had said nothing when they were last looked at, the oldest first.
    silent: VecDeque<Weak<Seat>>,
}

/// The place of one connection, given back when this is dropped.
#[derive(Debug)]
pub struct Slot {
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
    /// At most so many.
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, open: Mutex::default(), left: Notify::new() })
    }

    /// As many clients of a store as this process may have descriptors for; those of its monitors are not among them.
    pub fn of_clients() -> Arc<Self> {
        Self::new(shares(descriptors()).1)
    }

    /// Those who ask how the agent is. They are few, and take nothing from the clients of a store in the same process.
    pub fn of_monitors() -> Arc<Self> {
        Self::new(shares(descriptors()).0)
    }

    /// How many there may be.
    pub fn most(&self) -> usize {
        self.most
    }

    /// A place for one more connection. Where there is none, the one that has said nothing for longest must go, and is
    /// waited for; `None` where all have said something.
    pub async fn admit(self: &Arc<Self>) -> Option<Slot> {
        let slot = self.seat()?;
        // Otherwise many that come at once would take the descriptors that are kept free.
        let _ = tokio::time::timeout(LEAVING, async {
            loop {
                // Before the look, so that it hears of one that leaves after it.
                let mut left = pin!(self.left.notified());
                left.as_mut().enable();
                if self.open().count <= self.most {
                    break;
                }
                left.await;
            }
        })
        .await;
        Some(slot)
    }

    fn seat(self: &Arc<Self>) -> Option<Slot> {
        let mut open = self.open();
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
        if open.silent.len() > 2 * self.most {
            open.silent.retain(|seat| seat.upgrade().filter(is_silent).is_some());
        }
        let seat = Arc::new(Seat::default());
        open.silent.push_back(Arc::downgrade(&seat));
        open.count += 1;
        Some(Slot { limit: self.clone(), seat })
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn descriptors() -> usize {
    // None: as many as one likes.
    let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(descriptors).unwrap_or(usize::MAX)
}

/// How many monitors and how many clients there may be with so many descriptors.
fn shares(descriptors: usize) -> (usize, usize) {
    let free = descriptors.saturating_sub(KEPT_FREE);
    let monitors = (free / 8).clamp(LEAST, MOST_MONITORS);
    (monitors, free.saturating_sub(monitors).clamp(LEAST, MOST_CLIENTS))
}

impl Slot {
    /// The connection is that of a client which listens and answers: it makes room for nobody.
    pub fn has_spoken(&self) {
        self.seat.has_spoken.store(true, Ordering::Relaxed);
    }

    /// Ready once it must make room for another one.
    pub fn poll_must_go(&self, context: &Context<'_>) -> Poll<()> {
        self.seat.waker.register(context.waker());
        if self.seat.must_go.load(Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending }
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
        self.limit.open().count -= 1;
        // Several may wait, each in a loop of its own that takes connections.
        self.limit.left.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn must_go(slot: &Slot) -> bool {
        slot.poll_must_go(&Context::from_waker(futures::task::noop_waker_ref())).is_ready()
    }

    #[test]
    fn the_one_that_was_silent_for_longest_makes_room() {
        let limit = ConnectionLimit::new(3);
        let slots: Vec<Slot> = std::iter::repeat_with(|| limit.seat()).flatten().take(3).collect();
        slots[0].has_spoken();
        let _fourth = limit.seat().unwrap();
        let gone: Vec<bool> = slots.iter().map(must_go).collect();
        assert_eq!(gone, [false, true, false]);
    }

    #[test]
    fn nobody_who_speaks_must_go_for_one_who_may_not() {
        let limit = ConnectionLimit::new(2);
        let slots = [limit.seat().unwrap(), limit.seat().unwrap()];
        slots.iter().for_each(Slot::has_spoken);
        assert!(limit.seat().is_none());
        assert!(!slots.iter().any(must_go));
        drop(slots);
        assert!(limit.seat().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_one_comes_when_the_one_that_makes_room_has_left() {
        let limit = ConnectionLimit::new(1);
        let first = limit.admit().await.unwrap();
        let started = tokio::time::Instant::now();
        let leaving = tokio::spawn(async move {
            std::future::poll_fn(|context| first.poll_must_go(context)).await;
            tokio::time::sleep(LEAVING / 2).await;
        });
        let _second = limit.admit().await.unwrap();
        assert!(leaving.is_finished());
        // One that does not leave keeps nobody out.
        let _third = limit.admit().await.unwrap();
        assert_eq!(started.elapsed(), LEAVING / 2 + LEAVING);
    }

    #[tokio::test(start_paused = true)]
    async fn all_who_wait_hear_of_one_that_has_left() {
        let limit = ConnectionLimit::new(2);
        let (first, second) = (limit.admit().await.unwrap(), limit.admit().await.unwrap());
        let started = tokio::time::Instant::now();
        let wait = || {
            tokio::spawn({
                let limit = limit.clone();
                async move { limit.admit().await }
            })
        };
        let waiting = [wait(), wait()];
        // One that leaves is not enough, but those who wait look, each in its turn.
        for slot in [first, second] {
            tokio::time::sleep(LEAVING / 4).await;
            drop(slot);
        }
        for waiting in waiting {
            assert!(waiting.await.unwrap().is_some());
        }
        assert_eq!(started.elapsed(), LEAVING / 2);
    }

    #[test]
    fn what_is_remembered_does_not_grow_with_those_who_came_and_went() {
        let limit = ConnectionLimit::new(4);
        let _stays = limit.seat();
        for _ in 0..1000 {
            drop(limit.seat());
        }
        assert!(limit.open().silent.len() <= 10);
        assert_eq!(limit.open().count, 1);
    }

    #[test]
    fn both_servers_leave_the_rest_of_the_process_its_descriptors() {
        for descriptors in [64, 100, 256, 1024, 20_000] {
            let (monitors, clients) = shares(descriptors);
            assert!(monitors + clients + KEPT_FREE <= descriptors, "{descriptors}");
        }
        assert_eq!(shares(1024), (32, 944));
        assert_eq!(shares(usize::MAX), (MOST_MONITORS, MOST_CLIENTS));
        assert_eq!(shares(0), (LEAST, LEAST));
    }
}
