//! The threads of a store: each does one thing, until the store is stopped.

use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use tokio::sync::{mpsc, watch};

use crate::settings::StartError;

/// Threads that serve, at most: a small site needs no more.
const MOST_SERVING: usize = 4;

/// How many threads serve clients.
pub(crate) fn count_to_serve() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get).min(MOST_SERVING)
}

/// Starts threads.
#[derive(Debug)]
pub(crate) struct Threads {
    /// Closed when the store is stopped.
    pub(crate) stopped: watch::Receiver<()>,
    /// Is told why a thread has ended. When the store was stopped nobody wants to know.
    pub(crate) failed: mpsc::Sender<String>,
}

impl Threads {
    /// A thread for `work` and all that this spawns. It gives a reason when it ends before the store is stopped.
    pub(crate) fn spawn(
        &self,
        name: &str,
        work: impl Future<Output = String> + Send + 'static,
    ) -> Result<(), StartError> {
        let mut stopped = self.stopped.clone();
        let until_stopped = async move {
            tokio::select! {
                reason = work => reason,
                _ = stopped.changed() => String::new(),
            }
        };
        // Made by the thread itself: where none can be had, it could not be dropped here.
        self.spawn_blocking(name, || {
            match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime.block_on(until_stopped),
                Err(reason) => format!("cannot serve: {reason}"),
            }
        })
    }

    /// A thread for work that waits for more than sockets.
    pub(crate) fn spawn_blocking(
        &self,
        name: &str,
        work: impl FnOnce() -> String + Send + 'static,
    ) -> Result<(), StartError> {
        let failed = self.failed.clone();
        let panicked = format!("the thread {name} has panicked");
        let run = move || {
            let reason = catch_unwind(AssertUnwindSafe(work)).unwrap_or(panicked);
            let _ = failed.blocking_send(reason);
        };
        thread::Builder::new().name(name.to_owned()).spawn(run).map(drop).map_err(StartError::Thread)
    }
}
