//! A lease store on one local file that speaks the etcd v3 API: what leases need of it, with etcd's meaning.
//!
//! For labs and small sites, and for tests. There is one copy of the data, and who moves to a real etcd copies the keys
//! and changes one flag.

mod check;
mod file;
mod keys;
mod leases;
mod refusal;
mod serve;
mod service;
mod settings;
mod state;
mod upkeep;
mod writer;

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tracing::info;

use crate::service::Service;
pub use settings::{InvalidListenUrl, ListenUrl, Settings, StartError, TlsFiles};

/// The name of the file in its directory.
const FILE: &str = "store.redb";

/// A store that is served, until this is dropped.
#[derive(Debug)]
pub struct Running {
    client_urls: Vec<String>,
    file: PathBuf,
    failures: mpsc::Receiver<String>,
    /// Its thread ends when this is gone.
    _stop: oneshot::Sender<()>,
}

/// Opens the file and serves it, by a thread of its own.
///
/// # Errors
/// [`StartError`], before anything is served.
pub async fn start(settings: Settings) -> Result<Running, StartError> {
    settings.check()?;
    let path = settings.data_dir.join(FILE);
    let cannot = |reason: String| StartError::File { path: path.clone(), reason };
    let (started, outcome) = oneshot::channel();
    // A thread of its own: many clients do not hold up the agent in the same process, and it ends with what it serves.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|reason| cannot(reason.to_string()))?;
    std::thread::Builder::new()
        .name("store".to_owned())
        .spawn(move || runtime.block_on(run(settings, started)))
        .map_err(|reason| cannot(reason.to_string()))?;
    outcome.await.map_err(|reason| cannot(reason.to_string()))?
}

/// Serves until what `started` was told of is dropped.
async fn run(settings: Settings, started: oneshot::Sender<Result<Running, StartError>>) {
    let (stop, stopped) = oneshot::channel();
    let running = serve(settings, stop).await;
    if started.send(running).is_ok() {
        // Nothing is sent; it is dropped.
        let _ = stopped.await;
    }
}

async fn serve(settings: Settings, stop: oneshot::Sender<()>) -> Result<Running, StartError> {
    let tls = settings.tls.as_ref().map(serve::tls).transpose()?;
    let server = serve::server(tls)?;
    let listening =
        settings.listen.iter().map(|url| serve::listen(*url)).collect::<Result<Vec<_>, StartError>>()?;
    let client_urls: Vec<String> = listening.iter().map(|listening| listening.url.to_string()).collect();

    let path = settings.data_dir.join(FILE);
    let (writer, shared, identity) = open(&settings, &path)?;
    let (failed, failures) = mpsc::channel(1);
    spawn_writer(writer, failed.clone())
        .map_err(|reason| StartError::File { path: path.clone(), reason: reason.to_string() })?;
    let upkeep = tokio::spawn(upkeep::run(shared.clone(), settings.retention));
    let told = failed.clone();
    tokio::spawn(async move {
        let _ = upkeep.await;
        let _ = told.send("the store's upkeep has ended".to_owned()).await;
    });
    let service = Service {
        shared: shared.clone(),
        identity,
        client_urls: Arc::new(client_urls.clone()),
        file: Arc::new(path.clone()),
    };
    let routes = serve::routes(service);
    for listening in listening {
        let served = serve::serve(server.clone(), routes.clone(), listening);
        let failed = failed.clone();
        tokio::spawn(async move {
            let reason = served.await;
            // Who does not want to know needs no word.
            let _ = failed.send(reason).await;
        });
    }
    let (keys, leases) = {
        let state = shared.state();
        (state.key_count(), state.leases.ids().len())
    };
    info!(file = %path.display(), keys, leases, revision = shared.revision(), "opened the store");
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

type Opened = (writer::Writer, Arc<writer::Shared>, file::Identity);

fn open(settings: &Settings, path: &Path) -> Result<Opened, StartError> {
    let make_dir = || DirBuilder::new().recursive(true).mode(0o700).create(&settings.data_dir);
    let opened = make_dir().map_err(redb::Error::Io).and_then(|()| writer::open(path));
    opened.map_err(|reason| StartError::File {
        path: path.to_owned(),
        reason: match reason {
            redb::Error::DatabaseAlreadyOpen => {
                "another process has it open; only one may serve it".to_owned()
            }
            reason => reason.to_string(),
        },
    })
}

/// A thread of its own: it waits for the disk most of its time.
fn spawn_writer(writer: writer::Writer, failed: mpsc::Sender<String>) -> std::io::Result<()> {
    let run = move || {
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| writer.run()));
        let how = if ended.is_ok() { "has ended" } else { "has panicked" };
        // Who has stopped the store does not want to know.
        let _ = failed.blocking_send(format!("the store's writer {how}"));
    };
    std::thread::Builder::new().name("store-writer".to_owned()).spawn(run).map(drop)
}
