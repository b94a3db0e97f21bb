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

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::mpsc;
use tracing::info;

use crate::service::Service;
pub use settings::{InvalidListenUrl, ListenUrl, Settings, StartError, TlsFiles};

/// The name of the file in its directory.
const FILE: &str = "store.redb";

/// A store that is served.
#[derive(Debug)]
pub struct Running {
    client_urls: Vec<String>,
    file: PathBuf,
    failures: mpsc::Receiver<String>,
}

/// Opens the file and serves it. Needs a tokio runtime, in which it goes on in the background until the runtime ends.
///
/// # Errors
/// [`StartError`], before anything is served.
pub async fn start(settings: Settings) -> Result<Running, StartError> {
    settings.check()?;
    let tls = settings.tls.as_ref().map(serve::tls).transpose()?;
    let server = serve::server(tls)?;
    let listening =
        settings.listen.iter().map(|url| serve::listen(*url)).collect::<Result<Vec<_>, StartError>>()?;
    let client_urls: Vec<String> = listening.iter().map(|listening| listening.url.to_string()).collect();

    let path = settings.data_dir.join(FILE);
    let (writer, shared, identity) = open(&settings, path.clone()).await?;
    let (failed, failures) = mpsc::channel(1);
    spawn_writer(writer, failed.clone())
        .map_err(|reason| StartError::File { path: path.clone(), reason: reason.to_string() })?;
    tokio::spawn(upkeep::run(shared.clone(), settings.retention));
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
    Ok(Running { client_urls, file: path, failures })
}

impl Running {
    /// Where it listens, with the port that was chosen where port 0 was asked for: `http://127.0.0.1:2379`.
    pub fn client_urls(&self) -> &[String] {
        &self.client_urls
    }

    /// The file.
    pub fn file(&self) -> &std::path::Path {
        &self.file
    }

    /// Waits until it can serve no longer, and says why. Cancel-safe.
    pub async fn failed(&mut self) -> String {
        self.failures.recv().await.unwrap_or_else(|| "the store has ended".to_owned())
    }
}

type Opened = (writer::Writer, Arc<writer::Shared>, file::Identity);

async fn open(settings: &Settings, path: PathBuf) -> Result<Opened, StartError> {
    let dir = settings.data_dir.clone();
    let at = path.clone();
    let opened = tokio::task::spawn_blocking(move || {
        std::fs::create_dir_all(&dir).map_err(redb::Error::Io)?;
        writer::open(&at)
    });
    let refused = |reason: String| StartError::File { path: path.clone(), reason };
    opened.await.map_err(|reason| refused(reason.to_string()))?.map_err(|reason| {
        refused(match reason {
            redb::Error::DatabaseAlreadyOpen => {
                "another process has it open; only one may serve it".to_owned()
            }
            reason => reason.to_string(),
        })
    })
}

/// A thread of its own: it waits for the disk most of its time.
fn spawn_writer(writer: writer::Writer, failed: mpsc::Sender<String>) -> std::io::Result<()> {
    let run = move || {
        writer.run();
        let _ = failed.blocking_send("the store's writer has ended".to_owned());
    };
    std::thread::Builder::new().name("store-writer".to_owned()).spawn(run).map(drop)
}
