//! Starts the driver of Docker.

use std::collections::BTreeSet;
use std::os::unix::net::UnixListener as StdListener;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use flan_agent_api::Code;
use flan_backends::bridge;
use flan_docker::{Demand, Driver};
use flan_kernel::netlink;
use flan_subnet_lease::{NetworkName, Store};
use listenfd::ListenFd;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tracing::{error, info};

use crate::args::Args;
use crate::refused::refused;
use crate::root_socket;
use crate::status::SharedStatus;

/// The driver that serves Docker, and the socket on which it will.
pub(super) struct Docker {
    pub(super) driver: Arc<Driver>,
    listener: UnixListener,
    file: Option<SocketFile>,
}

/// The socket's file, which is removed with this: Docker waits for a file without a listener.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
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
        let settings = args.docker.settings(&args.state_dir, args.identity(), args.names.names);
        let driver = Driver::new(store.clone(), settings, standing(args), demands).map_err(refused)?;
        let path = &args.docker.docker_plugin;
        let file = passed.is_none().then(|| SocketFile(path.clone()));
        let listener = match passed {
            Some(listener) => adopted(listener),
            None => root_socket::listen(path),
        };
        let listener = listener.with_context(|| format!("cannot listen on {}", path.display()))?;
        Ok(Some(Self { driver: driver.into(), listener, file }))
    }

    /// Serves Docker until the process ends.
    pub(super) fn start(self, status: SharedStatus) {
        info!("Docker can use the network driver and the IPAM driver flan");
        let report = move |wrong| status.report(Code::DockerNetworks, wrong);
        tokio::spawn(flan_docker::follow(self.driver.clone(), report));
        let driver = self.driver.clone();
        tokio::spawn(async move { driver.leave_unused().await });
        tokio::spawn(async move {
            let _file = self.file;
            if let Err(reason) = flan_docker::serve(self.listener, self.driver).await {
                error!(%reason, "Docker can no longer call the driver");
            }
        });
    }
}

/// Returns the networks that this host was in with a bridge for containers, as the kernel still has it.
fn standing(args: &Args) -> BTreeSet<NetworkName> {
    let bridges = netlink::bridges().unwrap_or_default();
    let names = args.subnet_dir.files().unwrap_or_default().into_iter().map(|(name, _)| name);
    let has_bridge =
        |name: &NetworkName| bridges.iter().any(|found| Some(found.name) == bridge::device_of(name));
    names.filter(has_bridge).collect()
}

fn adopted(listener: StdListener) -> std::io::Result<UnixListener> {
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}
