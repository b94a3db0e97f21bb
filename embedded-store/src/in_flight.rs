//! The answers that clients have not taken yet. Their memory is limited for each client and in total. An answer from
//! which the client takes nothing gives way to others.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prost::bytes::Bytes;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::message::{Message, PIECE};
use crate::refusal::Refusal;

/// Bytes of memory of all waiting answers together. A single larger answer is sent by itself.
const MOST: usize = 64 << 20;
/// Ranges that one connection reads until it has taken the answers. Further ones wait.
const OF_A_CONNECTION: u32 = 16;
/// Ranges that are read at once for all connections, until there is room for the answers.
const READ_AT_ONCE: u32 = 16;
/// Watch streams of one connection. Clients have one or a few, each with any number of watches; an agent has some for each
/// of its networks.
const WATCH_STREAMS: usize = 512;
/// Bytes for the watches of one connection, and the bytes of the smallest watch.
const WATCH_ROOM: usize = 4 << 20;
const WATCH_UNIT: usize = 512;
/// How long a request waits for its turn and for room before it is refused. Agents wait longer for an answer: 30 s.
const WAIT: Duration = Duration::from_secs(20);
/// An answer from which the client takes nothing for this long gives way when others need the room.
const SLOW: Duration = Duration::from_secs(1);
/// After this long it goes in any case: its records may be deleted and compacted, and only this answer keeps them.
const STUCK: Duration = Duration::from_secs(60);

/// All waiting answers.
#[derive(Debug)]
pub(crate) struct InFlight {
    most: usize,
    reading: Arc<Semaphore>,
    table: Mutex<AnswerTable>,
    left: Notify,
}

#[derive(Debug, Default)]
struct AnswerTable {
    next: u64,
    held: usize,
    answers: BTreeMap<u64, Arc<Untaken>>,
}

/// One connection's share. Clones are the same connection.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    reading: Arc<Semaphore>,
    watching: Arc<Semaphore>,
    /// In units of [`WATCH_UNIT`].
    watched: Arc<Semaphore>,
}

/// Permission to read ranges. The default is for requests about one key, which need no permission.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    own: Option<OwnedSemaphorePermit>,
    reading: Option<OwnedSemaphorePermit>,
    /// When the request began to wait.
    since: Option<Instant>,
}

/// An answer that its client takes piece by piece.
#[derive(Debug)]
pub(crate) struct Flight {
    _registered: Option<Registered>,
    untaken: Arc<Untaken>,
    _own: Option<OwnedSemaphorePermit>,
}

#[derive(Debug)]
struct Registered {
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
    /// `None` after the answer gave way.
    message: Option<Message>,
    /// When the client last took a piece.
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
    /// Opens one more watch stream, if this connection may have one.
    pub(crate) fn watch_stream(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        self.watching.clone().try_acquire_owned().map_err(|_| Refusal::TooManyRequests)
    }

    /// Reserves room for a watch that takes this many bytes, if this connection has some left.
    pub(crate) fn watch(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let units = u32::try_from(1 + bytes / WATCH_UNIT).ok()?;
        self.watched.clone().try_acquire_many_owned(units).ok()
    }
}

impl InFlight {
    /// Creates the limits of one store.
    pub(crate) fn of_a_store() -> Arc<Self> {
        Self::new(MOST)
    }

    fn new(most: usize) -> Arc<Self> {
        let reading = Arc::new(Semaphore::new(READ_AT_ONCE as usize));
        Arc::new(Self { most, reading, table: Mutex::default(), left: Notify::new() })
    }

    /// Waits until this client may read this many more ranges. A number above the limits waits for the whole limit.
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

    /// Waits for room and admits an answer.
    pub(crate) async fn admit(self: &Arc<Self>, turn: Turn, message: Message) -> Result<Flight, Refusal> {
        let Turn { own, reading, since } = turn;
        let now = Instant::now();
        let since = since.unwrap_or(now);
        let is_small = message.length() <= PIECE;
        let cost = message.cost();
        let rest = Mutex::new(Rest { message: Some(message), taken: now });
        let untaken = Arc::new(Untaken { cost, rest });
        if is_small {
            return Ok(Flight { _registered: None, untaken, _own: None });
        }
        let number = loop {
            if let Some(number) = self.register(&untaken, Instant::now()) {
                break number;
            }
            if since.elapsed() >= WAIT {
                return Err(Refusal::TooManyRequests);
            }
            // Woken when a client took its answer. The timeout finds clients that have taken nothing for long enough.
            let _ = tokio::time::timeout(SLOW / 4, self.left.notified()).await;
        };
        drop(reading);
        untaken.rest().taken = Instant::now();
        Ok(Flight { _registered: Some(Registered { all: self.clone(), number }), untaken, _own: own })
    }

    /// Ends the answers that no client takes any more.
    pub(crate) fn end_stuck(&self) {
        let (mut table, now) = (self.table(), Instant::now());
        while table.end_slowest(now, STUCK) {}
    }

    fn register(&self, untaken: &Arc<Untaken>, now: Instant) -> Option<u64> {
        let mut table = self.table();
        while table.held + untaken.cost > self.most && !table.answers.is_empty() {
            if !table.end_slowest(now, SLOW) {
                return None;
            }
        }
        table.next += 1;
        table.held += untaken.cost;
        let number = table.next;
        table.answers.insert(number, untaken.clone());
        Some(number)
    }

    /// Bytes of memory of all waiting answers.
    #[cfg(fuzzing)]
    pub(crate) fn held(&self) -> usize {
        self.table().held
    }

    fn table(&self) -> MutexGuard<'_, AnswerTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AnswerTable {
    /// Ends the answer that stalled longest, if it stalled for at least `time`.
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
    /// Returns the next piece; `None` at the end. An error if the answer gave way to another.
    pub(crate) fn next(&self) -> Result<Option<Bytes>, Refusal> {
        let mut rest = self.untaken.rest();
        rest.taken = Instant::now();
        Ok(rest.message.as_mut().ok_or(Refusal::TooManyRequests)?.next())
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let removed = self.all.table().remove(self.number);
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
        // There is no room until one of them finishes.
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
        assert_eq!(all.table().held, 0);
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
