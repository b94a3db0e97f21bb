//! The limit on a server's connections. When it is reached, a client that has not answered yet makes room.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::task::AtomicWaker;
use rustix::process::{Resource, getrlimit};
use tokio::sync::Notify;

/// Descriptors for everything else in this process: the file, kernel sockets, child processes.
const KEPT_FREE: usize = 48;
/// Connections that each server may have, however few descriptors there are.
const LEAST: usize = 8;
/// Most connections of a store. Each also takes memory.
const MOST_CLIENTS: usize = 16_384;
/// Most connections of a health port.
const MOST_MONITORS: usize = 32;
/// How long a new connection waits for the one that makes room to close.
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
    /// Connections among them that were sent away and have not closed yet.
    leaving: usize,
    /// Connections that had not answered when last checked, the oldest first.
    silent: VecDeque<Weak<Seat>>,
}

/// One connection's slot. Dropping it frees the slot.
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
    /// A limit of `most` connections.
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, open: Mutex::default(), left: Notify::new() })
    }

    /// The limit for a store's clients: this process's descriptors, less those for the health port.
    pub fn of_clients() -> Arc<Self> {
        Self::new(shares(descriptors()).1)
    }

    /// The limit for a health port. It is small, and separate from a store's clients in the same process.
    pub fn of_monitors() -> Arc<Self> {
        Self::new(shares(descriptors()).0)
    }

    /// The number of connections that the limit allows.
    pub fn most(&self) -> usize {
        self.most
    }

    /// Takes a slot for one more connection. If there is none, the oldest connection that has not answered must go, and
    /// this call waits for it. `None` if all connections have answered.
    pub async fn admit(self: &Arc<Self>) -> Option<Slot> {
        let slot = self.seat()?;
        // Without this wait, many connections at once would use the reserved descriptors.
        let _ = tokio::time::timeout(LEAVING, async {
            loop {
                // Registered before the check, to notice a connection that closes after it.
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
        // A connection that has closed or is about to close makes room only once.
        let is_silent = |seat: &Arc<Seat>| {
            !seat.has_spoken.load(Ordering::Relaxed) && !seat.must_go.load(Ordering::Relaxed)
        };
        while open.count - open.leaving >= self.most {
            let oldest = open.silent.pop_front()?;
            if let Some(seat) = oldest.upgrade().filter(is_silent) {
                seat.send_away();
                open.leaving += 1;
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
    // `None` means unlimited.
    let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(descriptors).unwrap_or(usize::MAX)
}

/// The numbers of monitors and of clients for this many descriptors.
fn shares(descriptors: usize) -> (usize, usize) {
    let free = descriptors.saturating_sub(KEPT_FREE);
    let monitors = (free / 8).clamp(LEAST, MOST_MONITORS);
    (monitors, free.saturating_sub(monitors).clamp(LEAST, MOST_CLIENTS))
}

impl Slot {
    /// The client answers. Its connection makes room for no other.
    pub fn has_spoken(&self) {
        self.seat.has_spoken.store(true, Ordering::Relaxed);
    }

    /// Ready when this connection must make room.
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
        let mut open = self.limit.open();
        open.count -= 1;
        // Another thread may see the seat until its last reference is dropped.
        if self.seat.must_go.swap(true, Ordering::Relaxed) {
            open.leaving -= 1;
        }
        drop(open);
        // Several accept loops may wait.
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

    #[test]
    fn a_connection_that_has_just_closed_is_not_sent_away_in_place_of_another() {
        let limit = ConnectionLimit::new(2);
        let mut slots: Vec<Slot> = std::iter::repeat_with(|| limit.seat()).flatten().take(2).collect();
        // A thread that looks while another one drops the slot sees the seat.
        let _still_seen = slots[0].seat.clone();
        drop(slots.remove(0));
        let _third = limit.seat().unwrap();
        let _fourth = limit.seat().unwrap();
        assert!(must_go(&slots[0]));
        drop(slots);
        let open = limit.open();
        assert_eq!((open.count, open.leaving), (2, 0));
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
        // A connection that does not close keeps nobody out.
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
        // One free slot is not enough, but each waiting caller checks in turn.
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
