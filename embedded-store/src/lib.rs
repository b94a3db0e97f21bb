//! A lease store on one local file. It serves the part of the etcd v3 API that leases need, with etcd's meaning.
//!
//! For labs, small sites and tests. It keeps one copy of the data. To move to a real etcd, copy the keys and change one
//! flag.

mod answer;
mod check;
mod contents;
mod figures;
mod file;
#[cfg(fuzzing)]
pub mod fuzz;
mod handle;
mod in_flight;
mod keys;
mod leases;
mod message;
mod place;
mod refusal;
mod request;
mod reserve;
mod serve;
mod service;
mod settings;
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

pub use crate::figures::Figures;
use crate::handle::Worker;
use crate::in_flight::InFlight;
use crate::serve::{Admitted, Listening};
use crate::service::Service;
pub use crate::settings::{InvalidListenUrl, ListenUrl, Settings, StartError, TlsFiles};
use crate::threads::Threads;
use crate::writer::Opened;

/// Name of the file in the data directory.
const FILE: &str = "store.redb";

/// A running store. Dropping it stops the store.
#[derive(Debug)]
pub struct Running {
    client_urls: Vec<String>,
    file: PathBuf,
    failures: mpsc::Receiver<String>,
    /// Dropping this ends the threads.
    _stop: watch::Sender<()>,
    figures: Figures,
    /// Without these, the serving threads would end, and report that, before the thread that ended first reports why.
    _serving: Vec<mpsc::Sender<Admitted>>,
}

/// Opens the file and serves it on its own threads, so that many clients do not slow the agent in the same process.
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
    let figures =
        Figures { store: workers[0].store.clone(), file: path.clone(), counted: writer.counted().clone() };
    threads.spawn_blocking("store-writer", || writer.run())?;
    let in_flight = InFlight::of_a_store();
    let upkeep = upkeep::run(workers[0].store.clone(), in_flight.clone(), place, settings.retention);
    {
        let contents = workers[0].store.contents();
        let (keys, leases) = (contents.key_count(), contents.leases.ids().len());
        info!(file = %path.display(), keys, leases, revision = contents.stored, "opened the store");
    }
    let mut serving = Vec::new();
    for Worker { store, notifier } in workers {
        let service = Service {
            store,
            identity,
            client_urls: Arc::new(client_urls.clone()),
            file: Arc::new(path.clone()),
            in_flight: in_flight.clone(),
        };
        let (server, routes) = (server.clone(), serve::routes(service, figures.clone()));
        let (sender, connections) = mpsc::channel(serve::CONNECTIONS_WAITING);
        serving.push(sender);
        threads.spawn("store-serve", async {
            // The writer reports why it ended.
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
    let senders = serving.clone();
    threads.spawn("store", async move {
        let mut work = JoinSet::new();
        for listening in listening {
            work.spawn(listening.accept(senders.clone(), limit.clone()));
        }
        work.spawn(upkeep);
        match work.join_next().await {
            Some(Ok(reason)) => reason,
            _ => "the store's thread has panicked".to_owned(),
        }
    })?;
    Ok(Running { client_urls, file: path, failures, figures, _stop: stop, _serving: serving })
}

impl Running {
    /// Returns the URLs that the store listens on, such as `http://127.0.0.1:2379`. Port 0 is replaced by the real one.
    pub fn client_urls(&self) -> &[String] {
        &self.client_urls
    }

    /// Returns the path of the file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Returns what to ask for its figures.
    pub fn figures(&self) -> &Figures {
        &self.figures
    }

    /// Waits until the store cannot continue, and returns the reason. Cancel-safe.
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
