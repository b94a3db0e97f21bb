//! Starts the driver of Docker.

use std::os::unix::net::UnixListener as StdListener;
use std::sync::Arc;

use anyhow::Context;
use flan_docker::{Demand, Driver};
use flan_subnet_lease::Store;
use listenfd::ListenFd;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tracing::{error, info};

use crate::args::Args;
use crate::refused::refused;

/// The driver that serves Docker, and the socket on which it will.
pub(super) struct Docker {
    pub(super) driver: Arc<Driver>,
    listener: UnixListener,
}

impl Docker {
    /// Prepares the driver; `None` if Docker is not to be served.
    ///
    /// # Errors
    /// If the socket cannot be made or the records of an earlier agent cannot be read.
    pub(super) fn prepare(
        args: &Args,
        store: &Store,
        demands: mpsc::UnboundedSender<Demand>,
    ) -> anyhow::Result<Option<Self>> {
        let passed = ListenFd::from_env().take_unix_listener(0).map_err(refused)?;
        if passed.is_none() && !args.docker.docker {
            return Ok(None);
        }
        let settings = args.docker.settings(&args.state_dir, args.identity());
        let driver = Driver::new(store.clone(), settings, demands).map_err(refused)?;
        let path = &args.docker.docker_plugin;
        let listener = match passed {
            Some(listener) => adopted(listener),
            None => flan_docker::listen(path),
        };
        let listener = listener.with_context(|| format!("cannot listen on {}", path.display()))?;
        Ok(Some(Self { driver: driver.into(), listener }))
    }

    /// Serves Docker until the process ends.
    pub(super) fn start(self) {
        info!("Docker can use the network driver and the IPAM driver flan");
        tokio::spawn(flan_docker::follow(self.driver.clone()));
        tokio::spawn(async move {
            if let Err(reason) = flan_docker::serve(self.listener, self.driver).await {
                error!(%reason, "Docker can no longer call the driver");
            }
        });
    }
}

fn adopted(listener: StdListener) -> std::io::Result<UnixListener> {
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}
