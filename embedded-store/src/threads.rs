//! The threads of a store. Each does one thing until the store stops.

use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use tokio::sync::{mpsc, watch};

use crate::settings::StartError;

/// Most serving threads. A small site needs no more.
const MOST_SERVING: usize = 4;

/// Number of threads that serve clients.
pub(crate) fn count_to_serve() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get).min(MOST_SERVING)
}

#[derive(Debug)]
pub(crate) struct Threads {
    /// Closed when the store stops.
    pub(crate) stopped: watch::Receiver<()>,
    /// Receives the reason when a thread ends. Nobody reads it after a stop.
    pub(crate) failed: mpsc::Sender<String>,
}

impl Threads {
    /// Starts a thread for `work` and the tasks that it spawns. A thread that ends before the store stops gives a
    /// reason.
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
        // The thread creates its own runtime: a failure here could not drop it.
        self.spawn_blocking(name, || {
            match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime.block_on(until_stopped),
                Err(reason) => format!("cannot serve: {reason}"),
            }
        })
    }

    /// Starts a thread for blocking work.
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
