//! Asynchronous work inside a network namespace, such as that of a client of the store.

use std::future::Future;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::runtime::{Builder, Runtime};

use crate::netns::Netns;
use crate::wait;

/// A runtime whose one thread is in a namespace.
#[derive(Debug)]
pub struct Inside {
    runtime: Runtime,
}

impl Inside {
    /// Starts it.
    pub fn of(netns: &Netns) -> Result<Inside> {
        let netns = netns.clone();
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            // Sockets belong to the namespace of the thread that opens them; without it nothing of the lab is reached.
            .on_thread_start(move || {
                if let Err(error) = netns.enter() {
                    eprintln!("{error:#}");
                }
            })
            .build()
            .context("cannot start a runtime")?;
        Ok(Inside { runtime })
    }

    /// Starts `work`, which goes on in the background until it ends, or the runtime does.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(work);
    }

    /// Does `work` on the thread in the namespace, for at most `limit`.
    pub fn run<T: Send + 'static>(
        &self,
        limit: Duration,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let limit = wait::scaled(limit);
        self.runtime.block_on(async {
            let bounded = self.runtime.spawn(tokio::time::timeout(limit, work));
            bounded.await?.with_context(|| format!("no answer in {limit:?}"))?
        })
    }
}
