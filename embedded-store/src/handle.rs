//! What the serving threads share with the writer.
//!
//! The writer tells each serving thread at once about the outcomes of its requests. That thread wakes its own waiting
//! clients. Waking them from another thread would take a system call each, which costs more than everything else.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tokio::sync::{mpsc, oneshot, watch};

use crate::contents::Contents;
use crate::refusal::Refusal;
use crate::request::{WriteRequest, WriteResult};

/// The contents, shared by all threads.
#[derive(Debug)]
pub(crate) struct Held {
    contents: RwLock<Contents>,
    /// The error of the last write, if it failed.
    failure: RwLock<Option<Refusal>>,
}

/// One serving thread.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) store: Arc<StoreHandle>,
    pub(crate) notifier: Notifier,
}

/// Read access to the contents, and the queue of the writer. The writer ends with the last handle.
#[derive(Debug)]
pub(crate) struct StoreHandle {
    held: Arc<Held>,
    queue: mpsc::Sender<(WriteRequest, Reply)>,
    worker: usize,
    /// The last revision on disk that this thread knows of.
    stored: watch::Sender<i64>,
}

/// Where to send an answer, and which thread waits for it.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) worker: usize,
    pub(crate) sender: oneshot::Sender<WriteResult>,
}

/// The outcomes of requests that the writer carried out together.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The last revision on disk.
    pub(crate) stored: i64,
    pub(crate) answers: Vec<(WriteResult, oneshot::Sender<WriteResult>)>,
}

/// Delivers the outcomes to the waiting clients of one thread, and wakes its watches.
#[derive(Debug)]
pub(crate) struct Notifier {
    stored: watch::Sender<i64>,
    outcomes: mpsc::UnboundedReceiver<Outcome>,
}

/// Creates a serving thread's handle, and the channel for its outcomes.
pub(crate) fn worker(
    held: &Arc<Held>,
    queue: &mpsc::Sender<(WriteRequest, Reply)>,
    number: usize,
) -> (Worker, mpsc::UnboundedSender<Outcome>) {
    let stored = watch::Sender::new(held.contents().stored);
    let (sender, outcomes) = mpsc::unbounded_channel();
    let notifier = Notifier { stored: stored.clone(), outcomes };
    let store = StoreHandle { held: held.clone(), queue: queue.clone(), worker: number, stored };
    (Worker { store: Arc::new(store), notifier }, sender)
}

impl Held {
    pub(crate) fn new(contents: Contents) -> Self {
        Self { contents: RwLock::new(contents), failure: RwLock::new(None) }
    }

    pub(crate) fn contents(&self) -> RwLockReadGuard<'_, Contents> {
        self.contents.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn contents_mut(&self) -> RwLockWriteGuard<'_, Contents> {
        self.contents.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records the outcome of the last write.
    pub(crate) fn note_failure(&self, failure: Option<Refusal>) {
        *self.failure.write().unwrap_or_else(PoisonError::into_inner) = failure;
    }
}

impl StoreHandle {
    /// Returns the contents. Clients may see them only up to `stored`.
    pub(crate) fn contents(&self) -> RwLockReadGuard<'_, Contents> {
        self.held.contents()
    }

    /// Gives write access for renewing leases, the only change outside the writer.
    pub(crate) fn contents_mut(&self) -> RwLockWriteGuard<'_, Contents> {
        self.held.contents_mut()
    }

    /// Reports each revision that reached the disk.
    pub(crate) fn subscribe(&self) -> watch::Receiver<i64> {
        self.stored.subscribe()
    }

    /// Returns the last revision on disk.
    pub(crate) fn revision(&self) -> i64 {
        self.contents().stored
    }

    /// Returns whether the last write found the disk full.
    pub(crate) fn is_full(&self) -> bool {
        self.failure() == Some(Refusal::NoSpace)
    }

    /// Returns the error of the last write, if it failed.
    pub(crate) fn failure(&self) -> Option<Refusal> {
        self.held.failure.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sends a request to the writer, and waits until the result is on disk.
    pub(crate) async fn write(&self, request: WriteRequest) -> WriteResult {
        let (sender, answer) = oneshot::channel();
        let reply = Reply { worker: self.worker, sender };
        self.queue.send((request, reply)).await.map_err(|_| Refusal::Stopped)?;
        answer.await.map_err(|_| Refusal::Stopped)?
    }
}

impl Notifier {
    /// Runs until the writer ends.
    pub(crate) async fn run(mut self) {
        while let Some(Outcome { stored, answers }) = self.outcomes.recv().await {
            self.stored.send_if_modified(|before| std::mem::replace(before, stored) != stored);
            for (answer, reply) in answers {
                // The client may be gone.
                let _ = reply.send(answer);
            }
        }
    }
}
