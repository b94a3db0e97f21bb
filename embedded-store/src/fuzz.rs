//! The store for the targets in `fuzz/`: its services over contents in memory, without sockets, threads and file. Also
//! the fix for etcdctl's bytes. The targets judge the results. Compiled only with `--cfg fuzzing`.

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

use crate::contents::Contents;
use crate::figures::{Counted, Figures};
use crate::file::MemberIdentity;
use crate::handle::{self, Held, Outcome, Reply, StoreHandle, Worker};
use crate::in_flight::{Client, InFlight};
use crate::keys::{Keys, NEVER};
use crate::leases::Leases;
use crate::refusal::Refusal;
use crate::request::{WriteAnswer, WriteRequest};
pub use crate::serve::fixed;
use crate::service::Service;

/// A store and one connection to it. It lives in the single-threaded runtime that created it.
pub struct Store {
    routes: Router,
    store: Arc<StoreHandle>,
    in_flight: Arc<InFlight>,
    client: Client,
    next_write_fails: Arc<AtomicBool>,
}

/// The outcome of a call.
#[derive(Debug, Default)]
pub struct Answered {
    /// gRPC's code; `None` if the store sent none.
    pub status: Option<i32>,
    /// The messages, each with gRPC's prefix of five bytes.
    pub body: Vec<u8>,
    /// Size of the largest piece in bytes.
    pub largest_piece: usize,
    /// Bytes of memory that the answer kept before the client took any of it, where the store counts them.
    pub kept: usize,
}

/// An open call of `Watch/Watch`.
pub struct Watch {
    requests: mpsc::UnboundedSender<Result<Bytes, Infallible>>,
    answers: Body,
}

impl Store {
    /// Creates an empty store.
    pub fn empty() -> Self {
        let keys = Keys::load(Vec::new(), 1, NEVER).0;
        let held = Arc::new(Held::new(Contents::new(keys, Leases::default())));
        let (sender, queue) = mpsc::channel(16);
        let (Worker { store, notifier }, outcomes) = handle::worker(&held, &sender, 0);
        let next_write_fails = Arc::new(AtomicBool::new(false));
        tokio::spawn(notifier.run());
        tokio::spawn(write(held, queue, outcomes, next_write_fails.clone()));
        let in_flight = InFlight::of_a_store();
        let service = Service {
            store: store.clone(),
            identity: MemberIdentity { cluster: 1, member: 2, starts: 3 },
            client_urls: Arc::default(),
            file: Arc::new(PathBuf::new()),
            in_flight: in_flight.clone(),
        };
        let figures = Figures { store: store.clone(), file: PathBuf::new(), counted: Counted::default() };
        let routes = crate::serve::routes(service, figures).prepare().into_axum_router();
        Self { routes, store, in_flight, client: Client::default(), next_write_fails }
    }

    /// Returns the last revision that clients see.
    pub fn revision(&self) -> i64 {
        self.store.revision()
    }

    /// Bytes of memory of answers that no client has taken.
    pub fn kept(&self) -> usize {
        self.in_flight.held()
    }

    /// Calls a method such as `KV/Range` with all bytes of the client.
    pub async fn call(&self, method: &str, body: Vec<u8>) -> Answered {
        let mut answered = Answered::default();
        let (status, body) = self.start(method, Body::from(body)).await;
        (answered.status, answered.kept) = (status, self.kept());
        let mut body = pin!(body);
        while let Some(Ok(frame)) = std::future::poll_fn(|context| body.as_mut().poll_frame(context)).await {
            if let Some(trailers) = frame.trailers_ref() {
                // HTTP/2 ends with the trailers. Some bodies would go on.
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

    /// Opens a call of `Watch/Watch`.
    pub async fn watch(&self) -> Watch {
        let (requests, stream) = mpsc::unbounded_channel();
        let body = Body::from_stream(UnboundedReceiverStream::new(stream));
        Watch { requests, answers: self.start("Watch/Watch", body).await.1 }
    }

    /// Makes the next request to the writer fail, as on a full disk.
    pub fn let_next_write_fail(&self) {
        self.next_write_fails.store(true, Ordering::Relaxed);
    }

    /// Ends expired leases.
    pub async fn expire(&self) {
        let expired = self.store.contents().leases.expired(Instant::now());
        let _ = self.store.write(WriteRequest::Expire(expired)).await;
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
    /// Sends bytes from the client.
    pub fn send(&self, bytes: Vec<u8>) {
        // The store stops listening after an invalid request.
        let _ = self.requests.send(Ok(bytes.into()));
    }

    /// Returns everything that the store sends without further events.
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

    /// Ends the client's side, and collects everything that the store still sends.
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

/// Stands in for [`crate::writer::Writer`] without the file.
async fn write(
    held: Arc<Held>,
    mut queue: mpsc::Receiver<(WriteRequest, Reply)>,
    outcomes: mpsc::UnboundedSender<Outcome>,
    next_fails: Arc<AtomicBool>,
) {
    while let Some((request, Reply { sender, .. })) = queue.recv().await {
        let fails = next_fails.swap(false, Ordering::Relaxed);
        let mut contents = held.contents_mut();
        let answer = match request {
            WriteRequest::Compact(revision) => {
                contents.compact(revision).map(|_| WriteAnswer::Done(contents.stored))
            }
            request => {
                let answer = request.carry_out(&mut contents, Instant::now());
                if fails {
                    contents.take_back();
                }
                contents.stored = contents.keys.revision();
                contents.leases.stored();
                if fails { Err(Refusal::NoSpace) } else { answer }
            }
        };
        let stored = contents.stored;
        drop(contents);
        // The store may be gone.
        let _ = outcomes.send(Outcome { stored, answers: vec![(answer, sender)] });
    }
}
