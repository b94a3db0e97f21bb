//! What the threads that serve share with the one that writes.
//!
//! Each that serves is told at once what has come of its requests, and wakes those who wait for it by itself: to wake them
//! from another thread takes a system call each, which is more than all the rest.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tokio::sync::{mpsc, oneshot, watch};

use crate::refusal::Refusal;
use crate::state::State;
use crate::writer::{Answer, Request};

/// What becomes of a request.
pub(crate) type Answered = Result<Answer, Refusal>;

/// What the store holds.
#[derive(Debug)]
pub(crate) struct Held {
    state: RwLock<State>,
    /// Why the last write failed, if it did.
    failure: RwLock<Option<Refusal>>,
}

/// One thread that serves.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) notifier: Notifier,
}

/// What the store holds, for those who read, and the way to the writer. The writer ends with the last of these.
#[derive(Debug)]
pub(crate) struct Shared {
    held: Arc<Held>,
    queue: mpsc::Sender<(Request, Reply)>,
    worker: usize,
    /// The last revision on disk that its thread was told of.
    stored: watch::Sender<i64>,
}

/// Who waits for an answer, and in which thread.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) worker: usize,
    pub(crate) sender: oneshot::Sender<Answered>,
}

/// What has come of requests that were carried out together.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The last revision on disk.
    pub(crate) stored: i64,
    pub(crate) answers: Vec<(Answered, oneshot::Sender<Answered>)>,
}

/// Tells everybody in a thread what has come of their requests, and who watches that something has happened.
#[derive(Debug)]
pub(crate) struct Notifier {
    stored: watch::Sender<i64>,
    outcomes: mpsc::UnboundedReceiver<Outcome>,
}

/// One that serves, and the way on which it is told of outcomes.
pub(crate) fn worker(
    held: &Arc<Held>,
    queue: &mpsc::Sender<(Request, Reply)>,
    number: usize,
) -> (Worker, mpsc::UnboundedSender<Outcome>) {
    let stored = watch::Sender::new(held.state().stored);
    let (sender, outcomes) = mpsc::unbounded_channel();
    let notifier = Notifier { stored: stored.clone(), outcomes };
    let shared = Shared { held: held.clone(), queue: queue.clone(), worker: number, stored };
    (Worker { shared: Arc::new(shared), notifier }, sender)
}

impl Held {
    pub(crate) fn new(state: State) -> Self {
        Self { state: RwLock::new(state), failure: RwLock::new(None) }
    }

    pub(crate) fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what came of the last write.
    pub(crate) fn note_failure(&self, failure: Option<Refusal>) {
        *self.failure.write().unwrap_or_else(PoisonError::into_inner) = failure;
    }
}

impl Shared {
    /// The store as it is; nobody may be shown more than `stored` of it.
    pub(crate) fn state(&self) -> RwLockReadGuard<'_, State> {
        self.held.state()
    }

    /// To renew a lease, which alone is done beside the writer.
    pub(crate) fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.held.state_mut()
    }

    /// Hears of each revision that has come on disk.
    pub(crate) fn subscribe(&self) -> watch::Receiver<i64> {
        self.stored.subscribe()
    }

    /// The last revision on disk.
    pub(crate) fn revision(&self) -> i64 {
        self.state().stored
    }

    /// Whether the disk is full, as far as the last write has shown.
    pub(crate) fn is_full(&self) -> bool {
        self.failure() == Some(Refusal::NoSpace)
    }

    /// Why the last write failed, if it did.
    pub(crate) fn failure(&self) -> Option<Refusal> {
        self.held.failure.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Carries a request out, and waits until that is on disk.
    pub(crate) async fn write(&self, request: Request) -> Answered {
        let (sender, answer) = oneshot::channel();
        let reply = Reply { worker: self.worker, sender };
        self.queue.send((request, reply)).await.map_err(|_| Refusal::Stopped)?;
        answer.await.map_err(|_| Refusal::Stopped)?
    }
}

impl Notifier {
    /// Until the writer has ended.
    pub(crate) async fn run(mut self) {
        while let Some(Outcome { stored, answers }) = self.outcomes.recv().await {
            self.stored.send_if_modified(|before| std::mem::replace(before, stored) != stored);
            for (answer, reply) in answers {
                // Who has gone meanwhile does not need it.
                let _ = reply.send(answer);
            }
        }
    }
}
