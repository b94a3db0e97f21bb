//! The store as the targets in `fuzz/` call it: its services over a state in memory, without sockets, threads and file; and
//! what it mends of a client's bytes. What comes out is judged there. Compiled with `--cfg fuzzing` alone.

use std::convert::Infallible;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request};
use futures::FutureExt;
use http_body::Body as _;
use prost::bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::codegen::Service as _;

use crate::file::Identity;
use crate::in_flight::{Client, InFlight};
use crate::keys::{Keys, NEVER};
use crate::leases::Leases;
use crate::refusal::Refusal;
pub use crate::serve::mended;
use crate::service::Service;
use crate::shared::{self, Held, Outcome, Reply, Shared, Worker};
use crate::state::State;
use crate::writer::{self, Answer};

/// A store and one connection to it. It lives in the runtime, of one thread, in which it was made.
pub struct Store {
    routes: Router,
    shared: Arc<Shared>,
    in_flight: Arc<InFlight>,
    client: Client,
    next_write_fails: Arc<AtomicBool>,
}

/// What came of a call.
#[derive(Debug, Default)]
pub struct Answered {
    /// gRPC's code; `None` where none was sent.
    pub status: Option<i32>,
    /// What was sent: messages, each with the five bytes before it that gRPC has there.
    pub body: Vec<u8>,
    /// Bytes of the largest piece of it.
    pub largest_piece: usize,
    /// Bytes of memory that it kept before any of it was taken, where that is counted.
    pub kept: usize,
}

/// A call of `Watch/Watch` that goes on.
pub struct Watch {
    requests: mpsc::UnboundedSender<Result<Bytes, Infallible>>,
    answers: Body,
}

impl Store {
    /// A new one.
    pub fn empty() -> Self {
        let keys = Keys::load(Vec::new(), 1, NEVER).0;
        let held = Arc::new(Held::new(State::new(keys, Leases::default())));
        let (sender, queue) = mpsc::channel(16);
        let (Worker { shared, notifier }, outcomes) = shared::worker(&held, &sender, 0);
        let next_write_fails = Arc::new(AtomicBool::new(false));
        tokio::spawn(notifier.run());
        tokio::spawn(write(held, queue, outcomes, next_write_fails.clone()));
        let in_flight = InFlight::of_a_store();
        let service = Service {
            shared: shared.clone(),
            identity: Identity { cluster: 1, member: 2, starts: 3 },
            client_urls: Arc::default(),
            file: Arc::new(PathBuf::new()),
            in_flight: in_flight.clone(),
        };
        let routes = crate::serve::routes(service).prepare().into_axum_router();
        Self { routes, shared, in_flight, client: Client::default(), next_write_fails }
    }

    /// The last revision that anybody is shown.
    pub fn revision(&self) -> i64 {
        self.shared.revision()
    }

    /// Bytes of memory that answers keep which nobody has taken.
    pub fn kept(&self) -> usize {
        self.in_flight.held()
    }

    /// Calls a method, as in `KV/Range`, with everything that the client sends.
    pub async fn call(&self, method: &str, body: Vec<u8>) -> Answered {
        let mut answered = Answered::default();
        let (status, body) = self.start(method, Body::from(body)).await;
        (answered.status, answered.kept) = (status, self.kept());
        let mut body = pin!(body);
        while let Some(Ok(frame)) = std::future::poll_fn(|context| body.as_mut().poll_frame(context)).await {
            if let Some(trailers) = frame.trailers_ref() {
                // The last, as HTTP/2 has it. Some bodies would go on.
                answered.status = status_in(trailers);
                break;
            }
            if let Ok(piece) = frame.into_data() {
                answered.largest_piece = answered.largest_piece.max(piece.len());
                answered.body.extend_from_slice(&piece);
            }
        }
        answered
    }

    /// Begins a call of `Watch/Watch`.
    pub async fn watch(&self) -> Watch {
        let (requests, stream) = mpsc::unbounded_channel();
        let body = Body::from_stream(UnboundedReceiverStream::new(stream));
        Watch { requests, answers: self.start("Watch/Watch", body).await.1 }
    }

    /// The next request to the writer fails, as on a full disk.
    pub fn let_next_write_fail(&self) {
        self.next_write_fails.store(true, Ordering::Relaxed);
    }

    /// Ends the leases whose time is over.
    pub async fn expire(&self) {
        let expired = self.shared.state().leases.expired(Instant::now());
        let _ = self.shared.write(writer::Request::Expire(expired)).await;
    }

    async fn start(&self, method: &str, body: Body) -> (Option<i32>, Body) {
        let request = Request::post(format!("/etcdserverpb.{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .extension(self.client.clone());
        let Ok(request) = request.body(body) else { return (None, Body::empty()) };
        let Ok(response) = self.routes.clone().call(request).await;
        (status_in(response.headers()), response.into_body())
    }
}

impl Watch {
    /// Sends bytes of the client.
    pub fn send(&self, bytes: Vec<u8>) {
        // Who has sent what is no request is not listened to any more.
        let _ = self.requests.send(Ok(bytes.into()));
    }

    /// What the client is told without waiting for more to happen.
    pub fn told(&mut self) -> Vec<u8> {
        let mut told = Vec::new();
        let answers = &mut self.answers;
        let mut next = || {
            let frame = std::future::poll_fn(|context| pin!(&mut *answers).poll_frame(context));
            tokio::task::coop::unconstrained(frame).now_or_never()
        };
        while let Some(Some(Ok(frame))) = next() {
            let Ok(data) = frame.into_data() else { break };
            told.extend(data);
        }
        told
    }

    /// Sends no more, and waits for the end of what the client is told.
    pub async fn end(self) -> Vec<u8> {
        let Self { requests, mut answers } = self;
        drop(requests);
        let mut told = Vec::new();
        while let Some(Ok(frame)) =
            std::future::poll_fn(|context| pin!(&mut answers).poll_frame(context)).await
        {
            let Ok(data) = frame.into_data() else { break };
            told.extend(data);
        }
        told
    }
}

fn status_in(headers: &HeaderMap) -> Option<i32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

/// Stands for [`writer::Writer`], as far as that is about the file.
async fn write(
    held: Arc<Held>,
    mut queue: mpsc::Receiver<(writer::Request, Reply)>,
    outcomes: mpsc::UnboundedSender<Outcome>,
    next_fails: Arc<AtomicBool>,
) {
    while let Some((request, Reply { sender, .. })) = queue.recv().await {
        let fails = next_fails.swap(false, Ordering::Relaxed);
        let mut state = held.state_mut();
        let answer = match request {
            writer::Request::Compact(revision) => state.compact(revision).map(|_| Answer::Done(state.stored)),
            request => {
                let answer = writer::carry_out(&mut state, request, Instant::now());
                if fails {
                    state.take_back();
                }
                state.stored = state.keys.revision();
                state.leases.stored();
                if fails { Err(Refusal::NoSpace) } else { answer }
            }
        };
        let stored = state.stored;
        drop(state);
        // The store may be gone.
        let _ = outcomes.send(Outcome { stored, answers: vec![(answer, sender)] });
    }
}
