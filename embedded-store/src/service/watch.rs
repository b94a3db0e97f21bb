//! `service Watch`. A watch is a position in the history. When a change reaches the disk, each watch continues from its
//! position. So a slow client delays nobody and takes little memory: its events stay in the store's records.

mod cursor;

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::time::Duration;

use etcd_client::proto::{PbWatchRequest, PbWatchRequestUnion, PbWatchResponse, PbWatchService};
use futures::{FutureExt, stream};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use self::cursor::{Cursor, NO_DELETE, NO_PUT, Next, Wish};
use super::{Service, body};
use crate::in_flight::{Client, Turn};
use crate::message::Message;
use crate::refusal::Refusal;

/// How often an idle watch that asked for progress gets a report.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(600);
/// Watches that are handled in one go. The writer waits for that.
const MOST_AT_ONCE: usize = 1024;
/// Bytes of queued responses, plus one response. A client that reads nothing holds no more.
const READY_BYTES: usize = 16 << 10;
/// Most memory of a response besides its bytes.
const RESPONSE: usize = 512;
/// Field number of the events in `WatchResponse`.
const EVENTS: u32 = 11;
/// The watch id of a response that concerns no watch.
const NO_WATCH: i64 = -1;

#[tonic::async_trait]
impl PbWatchService for Service {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<PbWatchResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<Streaming<PbWatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let client = super::client(&request).unwrap_or_default();
        let place = client.watch_stream()?;
        // Boxed, because each response moves it twice.
        let session = Box::new(Session::new(self.clone(), client, place, request.into_inner()));
        // The session works when the client reads. There is no task, and no queue that grows.
        let responses = stream::unfold(session, |mut session| async move {
            let response = session.next().await?.framed();
            Some((session.service.in_flight.admit(Turn::default(), response).await, session))
        });
        let none: Self::WatchStream = Box::pin(stream::empty());
        Ok(body::responses(none, Box::pin(responses)))
    }
}

/// The watches of one stream.
struct Session {
    service: Service,
    client: Client,
    _place: OwnedSemaphorePermit,
    requests: Streaming<PbWatchRequest>,
    cursors: BTreeMap<i64, Cursor>,
    next_id: i64,
    /// Responses to send, in order.
    ready: VecDeque<Message>,
    /// Whether some watch may have more events.
    is_behind: bool,
    round: Round,
    /// All watches have received everything up to this revision, if none is behind.
    told: i64,
    stored: watch::Receiver<i64>,
    progress: Interval,
    /// Unanswered progress requests of the client.
    asked_for_progress: usize,
    /// Whether to report progress to the watches that asked for it.
    is_progress_due: bool,
}

/// A round over all watches, which gives each its events.
#[derive(Debug, Default)]
struct Round {
    /// The next watch, if the round is not finished.
    next: Option<i64>,
    /// The last revision on disk when the round began.
    stored: i64,
    /// Whether some watch has more events than fit into one response.
    is_behind: bool,
}

impl Session {
    fn new(
        service: Service,
        client: Client,
        place: OwnedSemaphorePermit,
        requests: Streaming<PbWatchRequest>,
    ) -> Self {
        let mut progress = tokio::time::interval_at(Instant::now() + PROGRESS_INTERVAL, PROGRESS_INTERVAL);
        progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            stored: service.store.subscribe(),
            service,
            client,
            _place: place,
            requests,
            cursors: BTreeMap::new(),
            next_id: 0,
            ready: VecDeque::new(),
            is_behind: false,
            round: Round::default(),
            told: 0,
            progress,
            asked_for_progress: 0,
            is_progress_due: false,
        }
    }

    /// Returns the next response; `None` when the client or the store is gone.
    async fn next(&mut self) -> Option<Message> {
        loop {
            if let Some(response) = self.ready.pop_front() {
                return Some(response);
            }
            if self.is_behind {
                // A client that is slower than the writes can still cancel.
                if let Some(Some(Ok(request))) = self.requests.next().now_or_never() {
                    self.answer(request);
                }
                self.is_behind = self.go_on();
                continue;
            }
            if self.asked_for_progress > 0 {
                self.asked_for_progress -= 1;
                // This response says that the client has received everything up to its revision.
                let header = self.service.header_at(self.told);
                let response = PbWatchResponse { header, watch_id: NO_WATCH, ..PbWatchResponse::default() };
                return Some(Message::default().fields(&response));
            }
            if std::mem::take(&mut self.is_progress_due) {
                self.tell_progress();
                continue;
            }
            tokio::select! {
                biased;
                changed = self.stored.changed() => {
                    changed.ok()?;
                    self.is_behind = self.go_on();
                }
                request = self.requests.next() => match request {
                    Some(Ok(request)) => self.answer(request),
                    _ => return None,
                },
                _ = self.progress.tick() => {
                    self.is_progress_due = true;
                    self.is_behind = true;
                }
            }
        }
    }

    fn answer(&mut self, request: PbWatchRequest) {
        match request.request_union {
            Some(PbWatchRequestUnion::CreateRequest(create)) => {
                let asked = create.watch_id;
                let wish = Wish {
                    room: self.client.watch(size_of::<Cursor>() + create.key.len() + create.range_end.len()),
                    key: create.key,
                    range_end: create.range_end,
                    start_revision: create.start_revision,
                    no_puts: create.filters.contains(&NO_PUT),
                    no_deletions: create.filters.contains(&NO_DELETE),
                    prev_kv: create.prev_kv,
                    progress_notify: create.progress_notify,
                    fragment: create.fragment,
                };
                self.create(asked, wish);
            }
            Some(PbWatchRequestUnion::CancelRequest(cancel)) => self.cancel(cancel.watch_id),
            Some(PbWatchRequestUnion::ProgressRequest(_)) => {
                self.asked_for_progress += 1;
                self.is_behind = true;
            }
            None => {}
        }
    }

    /// Creates a watch with the requested id, or any id for 0.
    fn create(&mut self, asked: i64, wish: Wish) {
        let (has_room, no_room) = (wish.room.is_some(), Refusal::TooManyRequests);
        let refusal = match Cursor::new(wish, self.service.store.revision()) {
            Ok(_) if !has_room => no_room.reason(),
            Ok(_) if self.cursors.contains_key(&asked) && asked != 0 => {
                "mvcc: duplicate watch ID provided on the WatchStream"
            }
            Ok(cursor) => {
                let number = if asked == 0 { self.free_id() } else { asked };
                let is_behind = cursor.is_behind(&self.service.store.contents());
                self.is_behind |= is_behind;
                // The current round may have passed its id.
                self.round.is_behind |= is_behind;
                self.cursors.insert(number, cursor);
                self.tell(&PbWatchResponse { watch_id: number, created: true, ..self.response() });
                return;
            }
            Err(refusal) => refusal,
        };
        self.tell(&PbWatchResponse {
            watch_id: NO_WATCH,
            created: true,
            canceled: true,
            cancel_reason: refusal.to_owned(),
            ..self.response()
        });
    }

    /// Ends a watch. Says nothing about an unknown one.
    fn cancel(&mut self, watch_id: i64) {
        if self.cursors.remove(&watch_id).is_some() {
            self.tell(&PbWatchResponse { watch_id, canceled: true, ..self.response() });
        }
    }

    fn free_id(&mut self) -> i64 {
        while self.cursors.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        self.next_id - 1
    }

    /// Gives each watch its next events, as many as fit into one response. Stops when many bytes are ready or many
    /// watches were handled, and continues later. Returns whether some watch may have more.
    fn go_on(&mut self) -> bool {
        let contents = self.service.store.contents();
        let round = &mut self.round;
        let first = round.next.take().unwrap_or_else(|| {
            *round = Round { stored: contents.stored, ..Round::default() };
            i64::MIN
        });
        let (mut bytes, mut ended) = (0, Vec::new());
        for (looked_at, (number, cursor)) in self.cursors.range_mut(first..).enumerate() {
            if bytes >= READY_BYTES || looked_at == MOST_AT_ONCE {
                round.next = Some(*number);
                break;
            }
            let response = PbWatchResponse { watch_id: *number, ..PbWatchResponse::default() };
            let response = match cursor.next(&contents) {
                Next::Nothing => continue,
                Next::Events { revision, events, fragment } => {
                    round.is_behind |= cursor.is_behind(&contents);
                    let header = self.service.header_at(revision);
                    Message::default()
                        .fields(&PbWatchResponse { header, fragment, ..response })
                        .events(EVENTS, events)
                }
                Next::Compacted(compact_revision) => {
                    ended.push(*number);
                    let header = self.service.header_at(0);
                    Message::default().fields(&PbWatchResponse {
                        header,
                        canceled: true,
                        compact_revision,
                        ..response
                    })
                }
            };
            bytes += RESPONSE + response.length();
            self.ready.push_back(response);
        }
        drop(contents);
        for number in ended {
            self.cursors.remove(&number);
        }
        let is_behind = self.round.next.is_some() || self.round.is_behind;
        if !is_behind {
            self.told = self.round.stored;
        }
        is_behind
    }

    fn tell_progress(&mut self) {
        let header = self.service.header_at(self.told);
        for (number, cursor) in &mut self.cursors {
            if cursor.is_to_be_told() {
                let response = PbWatchResponse { header, watch_id: *number, ..PbWatchResponse::default() };
                self.ready.push_back(Message::default().fields(&response));
            }
        }
    }

    fn tell(&mut self, response: &PbWatchResponse) {
        self.ready.push_back(Message::default().fields(response));
    }

    fn response(&self) -> PbWatchResponse {
        PbWatchResponse { header: self.service.header(), ..PbWatchResponse::default() }
    }
}
