//! `service Watch`. A watch is a place in the history: whenever something has come on disk, each goes on from where it is.
//! So a client that reads slowly holds up nobody, and costs no memory.

mod cursor;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::time::Duration;

use etcd_client::proto::{PbWatchRequest, PbWatchRequestUnion, PbWatchResponse, PbWatchService};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use self::cursor::{Cursor, Next};
use super::Service;

/// Responses that may wait for a client.
const WAITING: usize = 8;
/// How often a watch that asked for it is told that nothing has happened.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(600);
/// What stands in for the number of a watch where none is meant.
const NO_WATCH: i64 = -1;

#[tonic::async_trait]
impl PbWatchService for Service {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<PbWatchResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<Streaming<PbWatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (responses, stream) = mpsc::channel(WAITING);
        let session = Session { service: self.clone(), cursors: BTreeMap::new(), next_id: 0, responses };
        tokio::spawn(session.run(request.into_inner()));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

/// The watches of one stream.
struct Session {
    service: Service,
    cursors: BTreeMap<i64, Cursor>,
    next_id: i64,
    responses: mpsc::Sender<Result<PbWatchResponse, Status>>,
}

/// The client has gone.
struct Gone;

impl Session {
    async fn run(mut self, mut requests: Streaming<PbWatchRequest>) {
        let mut stored = self.service.shared.subscribe();
        let mut progress = tokio::time::interval_at(Instant::now() + PROGRESS_INTERVAL, PROGRESS_INTERVAL);
        progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let outcome = tokio::select! {
                request = requests.next() => match request {
                    Some(Ok(request)) => self.answer(request).await,
                    _ => return,
                },
                changed = stored.changed() => match changed {
                    Ok(()) => self.go_on().await,
                    Err(_) => return,
                },
                _ = progress.tick() => self.tell_progress().await,
                () = self.responses.closed() => return,
            };
            if outcome.is_err() {
                return;
            }
        }
    }

    async fn answer(&mut self, request: PbWatchRequest) -> Result<(), Gone> {
        match request.request_union {
            Some(PbWatchRequestUnion::CreateRequest(create)) => {
                let (asked, number) = (create.watch_id, create.watch_id);
                let cursor = Cursor::new(
                    cursor::Wish {
                        key: create.key,
                        range_end: create.range_end,
                        start_revision: create.start_revision,
                        filters: create.filters,
                        prev_kv: create.prev_kv,
                        progress_notify: create.progress_notify,
                        fragment: create.fragment,
                    },
                    self.service.shared.revision(),
                );
                let number = if asked == 0 { self.free_id() } else { number };
                self.create(number, cursor).await
            }
            Some(PbWatchRequestUnion::CancelRequest(cancel)) => {
                if self.cursors.remove(&cancel.watch_id).is_none() {
                    return Ok(());
                }
                self.send(PbWatchResponse { watch_id: cancel.watch_id, canceled: true, ..self.response() })
                    .await
            }
            Some(PbWatchRequestUnion::ProgressRequest(_)) => {
                // It says that everything up to its revision was told.
                self.go_on().await?;
                self.send(PbWatchResponse { watch_id: NO_WATCH, ..self.response() }).await
            }
            None => Ok(()),
        }
    }

    async fn create(&mut self, number: i64, cursor: Result<Cursor, &'static str>) -> Result<(), Gone> {
        let refusal = match cursor {
            Ok(_) if self.cursors.contains_key(&number) => {
                "mvcc: duplicate watch ID provided on the WatchStream"
            }
            Ok(cursor) => {
                self.send(PbWatchResponse { watch_id: number, created: true, ..self.response() }).await?;
                self.cursors.insert(number, cursor);
                return self.go_on_with(number).await;
            }
            Err(refusal) => refusal,
        };
        self.send(PbWatchResponse {
            watch_id: NO_WATCH,
            created: true,
            canceled: true,
            cancel_reason: refusal.to_owned(),
            ..self.response()
        })
        .await
    }

    fn free_id(&mut self) -> i64 {
        while self.cursors.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        self.next_id - 1
    }

    /// Tells each watch what has happened since it was told last.
    async fn go_on(&mut self) -> Result<(), Gone> {
        let numbers: Vec<i64> = {
            let state = self.service.shared.state();
            let has_news = |cursor: &mut Cursor| cursor.skip(&state);
            self.cursors
                .iter_mut()
                .filter_map(|(number, cursor)| has_news(cursor).then_some(*number))
                .collect()
        };
        for number in numbers {
            self.go_on_with(number).await?;
        }
        Ok(())
    }

    async fn go_on_with(&mut self, number: i64) -> Result<(), Gone> {
        loop {
            let Some(cursor) = self.cursors.get_mut(&number) else { return Ok(()) };
            let next = cursor.next(&self.service.shared.state());
            match next {
                Next::Nothing => return Ok(()),
                Next::Events { revision, events, fragment } => {
                    let header = self.service.header_at(revision);
                    self.send(PbWatchResponse {
                        header,
                        watch_id: number,
                        events,
                        fragment,
                        ..PbWatchResponse::default()
                    })
                    .await?;
                }
                Next::Compacted(compact_revision) => {
                    self.cursors.remove(&number);
                    return self
                        .send(PbWatchResponse {
                            watch_id: number,
                            canceled: true,
                            compact_revision,
                            ..self.response()
                        })
                        .await;
                }
            }
        }
    }

    async fn tell_progress(&mut self) -> Result<(), Gone> {
        self.go_on().await?;
        let quiet =
            self.cursors.iter_mut().filter_map(|(number, cursor)| cursor.is_to_be_told().then_some(*number));
        for number in quiet.collect::<Vec<_>>() {
            self.send(PbWatchResponse { watch_id: number, ..self.response() }).await?;
        }
        Ok(())
    }

    fn response(&self) -> PbWatchResponse {
        PbWatchResponse { header: self.service.header(), ..PbWatchResponse::default() }
    }

    async fn send(&self, response: PbWatchResponse) -> Result<(), Gone> {
        self.responses.send(Ok(response)).await.map_err(|_| Gone)
    }
}
