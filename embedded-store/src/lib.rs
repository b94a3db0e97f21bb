//! A lease store on one local file that speaks the etcd v3 API: what leases need of it, with etcd's meaning.
//!
//! For labs and small sites, and for tests. There is one copy of the data, and who moves to a real etcd copies the keys
//! and changes one flag.

mod answer;
mod check;
mod file;
#[cfg(fuzzing)]
pub mod fuzz;
mod in_flight;
mod keys;
mod leases;
mod message;
mod place;
mod refusal;
mod reserve;
mod serve;
mod service;
mod settings;
mod shared;
mod state;
mod threads;
mod upkeep;
mod writer;

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flan_connections::ConnectionLimit;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::info;

use crate::in_flight::InFlight;
use crate::serve::Listening;
use crate::service::Service;
pub use crate::settings::{InvalidListenUrl, ListenUrl, Settings, StartError, TlsFiles};
use crate::shared::Worker;
use crate::threads::Threads;
use crate::writer::Opened;

/// The name of the file in its directory.
const FILE: &str = "store.redb";

/// A store that is served, until this is dropped.
#[derive(Debug)]
pub struct Running {
    client_urls: Vec<String>,
    file: PathBuf,
    failures: mpsc::Receiver<String>,
    /// Its threads end when this is gone.
    _stop: watch::Sender<()>,
}

/// Opens the file and serves it, by threads of its own: many clients do not hold up the agent in the same process.
///
/// # Errors
/// [`StartError`], before anything is served.
pub async fn start(settings: Settings) -> Result<Running, StartError> {
    settings.check()?;
    let server = serve::server(settings.tls.as_ref())?;
    let listening =
        settings.listen.iter().map(|url| Listening::open(*url)).collect::<Result<Vec<_>, StartError>>()?;
    let client_urls: Vec<String> = listening.iter().map(|listening| listening.url.to_string()).collect();

    let path = settings.data_dir.join(FILE);
    let cannot = |reason: String| StartError::File { path: path.clone(), reason };
    let (data_dir, count) = (settings.data_dir, threads::count_to_serve());
    let opened = tokio::task::spawn_blocking(move || open(&data_dir, count)).await;
    let Opened { writer, workers, identity, place } = opened.map_err(|panic| cannot(panic.to_string()))??;

    let (stop, stopped) = watch::channel(());
    let (failed, failures) = mpsc::channel(1);
    let threads = Threads { stopped, failed };
    threads.spawn_blocking("store-writer", || writer.run())?;
    let in_flight = InFlight::of_a_store();
    let upkeep = upkeep::run(workers[0].shared.clone(), in_flight.clone(), place, settings.retention);
    {
        let state = workers[0].shared.state();
        let (keys, leases) = (state.key_count(), state.leases.ids().len());
        info!(file = %path.display(), keys, leases, revision = state.stored, "opened the store");
    }
    let mut serving = Vec::new();
    for Worker { shared, notifier } in workers {
        let service = Service {
            shared,
            identity,
            client_urls: Arc::new(client_urls.clone()),
            file: Arc::new(path.clone()),
            in_flight: in_flight.clone(),
        };
        let (server, routes) = (server.clone(), serve::routes(service));
        let (sender, connections) = mpsc::channel(serve::CONNECTIONS_WAITING);
        serving.push(sender);
        threads.spawn("store-serve", async {
            // Why there is nothing more to tell, the writer says itself.
            let telling = async {
                notifier.run().await;
                std::future::pending::<String>().await
            };
            tokio::select! {
                reason = telling => reason,
                reason = serve::serve(server, routes, connections) => reason,
            }
        })?;
    }
    let limit = ConnectionLimit::of_clients();
    threads.spawn("store", async move {
        let mut work = JoinSet::new();
        for listening in listening {
            work.spawn(listening.accept(serving.clone(), limit.clone()));
        }
        work.spawn(upkeep);
        match work.join_next().await {
            Some(Ok(reason)) => reason,
            _ => "the store's thread has panicked".to_owned(),
        }
    })?;
    Ok(Running { client_urls, file: path, failures, _stop: stop })
}

impl Running {
    /// Where it listens, with the port that was chosen where port 0 was asked for: `http://127.0.0.1:2379`.
    pub fn client_urls(&self) -> &[String] {
        &self.client_urls
    }

    /// The file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Waits until it can serve no longer, and says why. Cancel-safe.
    pub async fn failed(&mut self) -> String {
        self.failures.recv().await.unwrap_or_else(|| "the store has ended".to_owned())
    }
}

fn open(data_dir: &Path, workers: usize) -> Result<Opened, StartError> {
    let path = data_dir.join(FILE);
    let make_dir = || DirBuilder::new().recursive(true).mode(0o700).create(data_dir);
    let opened = make_dir().map_err(redb::Error::Io).and_then(|()| writer::open(&path, workers));
    opened.map_err(|reason| StartError::File {
        path,
        reason: match reason {
            redb::Error::DatabaseAlreadyOpen => {
                "another process has it open; only one may serve it".to_owned()
            }
            reason => reason.to_string(),
        },
    })
}
