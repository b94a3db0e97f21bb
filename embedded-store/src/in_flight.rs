//! The answers that clients have not taken yet. What they keep in memory is bounded, for each client and for all, and who
//! takes nothing makes room for those who do.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prost::bytes::Bytes;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::message::{Message, PIECE};
use crate::refusal::Refusal;

/// Bytes of memory that all of them may keep together; one that is larger goes by itself.
const MOST: usize = 64 << 20;
/// Ranges that are read for one connection until it has taken what came of them; more of them wait.
const OF_A_CONNECTION: u32 = 16;
/// Ranges that are read at once for all, until there is room for what came of them.
const READ_AT_ONCE: u32 = 16;
/// Streams of watches of one connection. Clients have one, or a few, and any number of watches on each.
const WATCH_STREAMS: usize = 16;
/// Bytes that one connection's watches may take, and what the smallest of them takes.
const WATCH_ROOM: usize = 4 << 20;
const WATCH_UNIT: usize = 512;
/// How long a request waits for all of that, before it is refused: shorter than agents wait for an answer (30 s).
const WAIT: Duration = Duration::from_secs(20);
/// An answer of which nothing was taken for so long goes when others need its room.
const SLOW: Duration = Duration::from_secs(1);
/// And after so long it goes anyway: what it tells of may be deleted and compacted, and is held for it alone.
const STUCK: Duration = Duration::from_secs(60);

/// All of them.
#[derive(Debug)]
pub(crate) struct InFlight {
    most: usize,
    reading: Arc<Semaphore>,
    open: Mutex<Open>,
    left: Notify,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    held: usize,
    answers: BTreeMap<u64, Arc<Untaken>>,
}

/// One connection's part in them. Clones are the same connection.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    reading: Arc<Semaphore>,
    watching: Arc<Semaphore>,
    /// In units of [`WATCH_UNIT`].
    watched: Arc<Semaphore>,
}

/// That ranges may be read now. By default for what tells of one key alone, which may be read at any time.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    own: Option<OwnedSemaphorePermit>,
    reading: Option<OwnedSemaphorePermit>,
    /// Since when the request has waited.
    since: Option<Instant>,
}

/// An answer that its client takes, piece by piece.
#[derive(Debug)]
pub(crate) struct Flight {
    _seat: Option<Seat>,
    untaken: Arc<Untaken>,
    _own: Option<OwnedSemaphorePermit>,
}

#[derive(Debug)]
struct Seat {
    all: Arc<InFlight>,
    number: u64,
}

#[derive(Debug)]
struct Untaken {
    cost: usize,
    rest: Mutex<Rest>,
}

#[derive(Debug)]
struct Rest {
    /// `None` when it made room.
    message: Option<Message>,
    /// When a piece was taken last.
    taken: Instant,
}

impl Default for Client {
    fn default() -> Self {
        let semaphore = |permits| Arc::new(Semaphore::new(permits));
        Self {
            reading: semaphore(OF_A_CONNECTION as usize),
            watching: semaphore(WATCH_STREAMS),
            watched: semaphore(WATCH_ROOM / WATCH_UNIT),
        }
    }
}

impl Client {
    /// One more stream of watches, if this connection may have one.
    pub(crate) fn watch_stream(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        self.watching.clone().try_acquire_owned().map_err(|_| Refusal::TooManyRequests)
    }

    /// Room for a watch of which so many bytes are remembered, if this connection has some left.
    pub(crate) fn watch(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let units = u32::try_from(1 + bytes / WATCH_UNIT).ok()?;
        self.watched.clone().try_acquire_many_owned(units).ok()
    }
}

impl InFlight {
    /// As many as a store may have.
    pub(crate) fn of_a_store() -> Arc<Self> {
        Self::new(MOST)
    }

    fn new(most: usize) -> Arc<Self> {
        let reading = Arc::new(Semaphore::new(READ_AT_ONCE as usize));
        Arc::new(Self { most, reading, open: Mutex::default(), left: Notify::new() })
    }

    /// Waits until this client may have so many more ranges read, as far as there are ever that many.
    pub(crate) async fn turn(&self, client: Option<Client>, ranges: usize) -> Result<Turn, Refusal> {
        let ranges = u32::try_from(ranges).unwrap_or(u32::MAX);
        let since = Some(Instant::now());
        let waited = tokio::time::timeout(WAIT, async {
            let own = match client {
                Some(Client { reading: own, .. }) => {
                    own.acquire_many_owned(ranges.min(OF_A_CONNECTION)).await.ok()
                }
                None => None,
            };
            let reading = self.reading.clone().acquire_many_owned(ranges.min(READ_AT_ONCE)).await.ok();
            Turn { own, reading, since }
        });
        waited.await.map_err(|_| Refusal::TooManyRequests)
    }

    /// The way of an answer to its client, as soon as there is room for it.
    pub(crate) async fn admit(self: &Arc<Self>, turn: Turn, message: Message) -> Result<Flight, Refusal> {
        let Turn { own, reading, since } = turn;
        let now = Instant::now();
        let since = since.unwrap_or(now);
        let is_small = message.length() <= PIECE;
        let cost = message.cost();
        let rest = Mutex::new(Rest { message: Some(message), taken: now });
        let untaken = Arc::new(Untaken { cost, rest });
        if is_small {
            return Ok(Flight { _seat: None, untaken, _own: None });
        }
        let number = loop {
            if let Some(number) = self.seat(&untaken, Instant::now()) {
                break number;
            }
            if since.elapsed() >= WAIT {
                return Err(Refusal::TooManyRequests);
            }
            // Somebody has taken what he asked for, or has taken nothing for long enough.
            let _ = tokio::time::timeout(SLOW / 4, self.left.notified()).await;
        };
        drop(reading);
        untaken.rest().taken = Instant::now();
        Ok(Flight { _seat: Some(Seat { all: self.clone(), number }), untaken, _own: own })
    }

    /// Ends those of which nothing is taken any more.
    pub(crate) fn end_stuck(&self) {
        let (mut open, now) = (self.open(), Instant::now());
        while open.end_slowest(now, STUCK) {}
    }

    fn seat(&self, untaken: &Arc<Untaken>, now: Instant) -> Option<u64> {
        let mut open = self.open();
        while open.held + untaken.cost > self.most && !open.answers.is_empty() {
            if !open.end_slowest(now, SLOW) {
                return None;
            }
        }
        open.next += 1;
        open.held += untaken.cost;
        let number = open.next;
        open.answers.insert(number, untaken.clone());
        Some(number)
    }

    /// Bytes of memory that they keep.
    #[cfg(fuzzing)]
    pub(crate) fn held(&self) -> usize {
        self.open().held
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    /// Ends the one of which nothing was taken for longest, if that is as long as `time`.
    fn end_slowest(&mut self, now: Instant, time: Duration) -> bool {
        let slowest = self.answers.iter().map(|(number, untaken)| (untaken.rest().taken, *number)).min();
        let Some((_, number)) = slowest.filter(|(taken, _)| now.duration_since(*taken) >= time) else {
            return false;
        };
        if let Some(untaken) = self.remove(number) {
            untaken.rest().message = None;
        }
        true
    }

    fn remove(&mut self, number: u64) -> Option<Arc<Untaken>> {
        let untaken = self.answers.remove(&number)?;
        self.held -= untaken.cost;
        Some(untaken)
    }
}

impl Untaken {
    fn rest(&self) -> MutexGuard<'_, Rest> {
        self.rest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Flight {
    /// The next piece, `None` when there is no more; refused where it made room for another one.
    pub(crate) fn next(&self) -> Result<Option<Bytes>, Refusal> {
        let mut rest = self.untaken.rest();
        rest.taken = Instant::now();
        Ok(rest.message.as_mut().ok_or(Refusal::TooManyRequests)?.next())
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let removed = self.all.open().remove(self.number);
        if removed.is_some() {
            self.all.left.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use etcd_client::proto::PbRangeResponse;

    use super::*;

    fn message(length: usize) -> Message {
        let kv = etcd_client::proto::PbKeyValue { key: vec![b'k'; length], ..Default::default() };
        Message::default().fields(&PbRangeResponse { kvs: vec![kv], ..PbRangeResponse::default() })
    }

    fn rest_of(flight: &Flight) -> usize {
        let mut length = 0;
        while let Some(piece) = flight.next().unwrap() {
            length += piece.len();
        }
        length
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_makes_room_for_the_next_one_and_who_takes_something_does_not() {
        let all = InFlight::new(200_000);
        let slow = all.admit(Turn::default(), message(50_000)).await.unwrap();
        let taking = all.admit(Turn::default(), message(100_000)).await.unwrap();
        tokio::time::sleep(SLOW).await;
        assert!(taking.next().unwrap().is_some());
        let started = Instant::now();
        let third = all.admit(Turn::default(), message(50_000)).await.unwrap();
        assert_eq!(slow.next().unwrap_err(), Refusal::TooManyRequests);
        assert_eq!(started.elapsed(), Duration::ZERO);
        // No more is there to be had, until one of them is through.
        let waiting = tokio::spawn({
            let all = all.clone();
            async move { all.admit(Turn::default(), message(50_000)).await.map(drop) }
        });
        tokio::time::sleep(SLOW / 2).await;
        assert!(!waiting.is_finished() && rest_of(&taking) > 80_000);
        drop(taking);
        waiting.await.unwrap().unwrap();
        assert!(rest_of(&third) > 50_000);
        drop((slow, third));
        assert_eq!(all.open().held, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_larger_than_all_may_be_goes_by_itself() {
        let all = InFlight::new(50_000);
        let before = all.admit(Turn::default(), message(20_000)).await.unwrap();
        let large = all.admit(Turn::default(), message(1 << 20)).await.unwrap();
        assert!(before.next().is_err() && rest_of(&large) > 1 << 20);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_takes_nothing_keeps_only_itself_waiting() {
        let all = InFlight::new(1 << 30);
        let (one, other) = (Client::default(), Client::default());
        let mut untaken = Vec::new();
        for _ in 0..OF_A_CONNECTION {
            let turn = all.turn(Some(one.clone()), 1).await.unwrap();
            untaken.push(all.admit(turn, message(50_000)).await.unwrap());
        }
        let started = Instant::now();
        assert!(all.turn(Some(other), 1000).await.is_ok());
        assert_eq!(started.elapsed(), Duration::ZERO);
        assert_eq!(all.turn(Some(one.clone()), 1).await.unwrap_err(), Refusal::TooManyRequests);
        assert_eq!(started.elapsed(), WAIT);
        untaken.pop();
        assert!(all.turn(Some(one), 1).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_waits_once_for_its_turn_and_for_room() {
        let all = InFlight::new(200_000);
        let turn = all.turn(Some(Client::default()), 1).await.unwrap();
        let started = Instant::now();
        let taking = all.admit(Turn::default(), message(150_000)).await.unwrap();
        tokio::spawn(async move {
            while taking.next().is_ok() {
                tokio::time::sleep(SLOW / 2).await;
            }
        });
        tokio::time::sleep(WAIT / 2).await;
        assert_eq!(all.admit(turn, message(100_000)).await.unwrap_err(), Refusal::TooManyRequests);
        assert!(started.elapsed() < WAIT + SLOW, "{:?}", started.elapsed());
    }

    #[test]
    fn a_connection_has_so_many_streams_of_watches_and_so_much_room_for_them() {
        let client = Client::default();
        let streams: Vec<_> = std::iter::from_fn(|| client.watch_stream().ok()).collect();
        assert_eq!(streams.len(), WATCH_STREAMS);
        let small = std::iter::from_fn(|| client.watch(300)).take(4000).collect::<Vec<_>>();
        assert_eq!(small.len(), 4000);
        assert!(client.watch(WATCH_ROOM / 2 + 300_000).is_none());
        drop((streams, small));
        assert!(client.watch(WATCH_ROOM - WATCH_UNIT).is_some() && client.watch_stream().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_stuck_is_not_held_for_ever() {
        let all = InFlight::new(1 << 30);
        let stuck = all.admit(Turn::default(), message(50_000)).await.unwrap();
        tokio::time::sleep(STUCK / 2).await;
        all.end_stuck();
        assert!(stuck.next().is_ok());
        tokio::time::sleep(STUCK).await;
        all.end_stuck();
        assert!(stuck.next().is_err());
    }
}
