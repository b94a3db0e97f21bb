//! The two that are compared, each a process on loopback with a directory of its own.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use etcd_client::Client;
use flan_integration::process::{Lifetime, Process};
use flan_integration::tools;
use flan_integration::vitals::Vitals;
use serde::Serialize;

/// How long one may take to answer after its start.
const START_LIMIT: Duration = Duration::from_secs(20);

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Program {
    /// etcd, one member.
    Etcd,
    /// `fland store`.
    Embedded,
}

impl Program {
    pub(crate) const BOTH: [Program; 2] = [Program::Etcd, Program::Embedded];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Program::Etcd => "etcd",
            Program::Embedded => "embedded",
        }
    }
}

/// One that runs, on an empty directory. Dropping it kills it and removes its data.
pub(crate) struct Server {
    url: String,
    process: Process,
    dir: PathBuf,
}

impl Server {
    /// Starts one, and waits until it answers.
    pub(crate) async fn start(program: Program, data_dir: &Path) -> Result<Server> {
        let dir = data_dir.join(program.name());
        if dir.exists() {
            fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
        }
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let url = format!("http://{}", free_place()?);
        let mut command;
        match program {
            Program::Etcd => {
                let peer_url = format!("http://{}", free_place()?);
                command = Command::new("etcd");
                command.arg("--name=etcd").arg("--data-dir").arg(dir.join("data"));
                command.arg(format!("--listen-client-urls={url}"));
                command.arg(format!("--advertise-client-urls={url}"));
                command.arg(format!("--listen-peer-urls={peer_url}"));
                command.arg(format!("--initial-advertise-peer-urls={peer_url}"));
                command.arg(format!("--initial-cluster=etcd={peer_url}"));
            }
            Program::Embedded => {
                command = Command::new(tools::flan_binary("fland")?);
                command.arg("store").arg("--data-dir").arg(dir.join("data"));
                command.arg("--listen-client-urls").arg(&url);
            }
        }
        let process = Process::spawn(program.name(), &command, &dir.join("log"), Lifetime::Bound)?;
        let mut server = Server { url, process, dir };
        server.wait().await?;
        Ok(server)
    }

    /// A connection of its own.
    pub(crate) async fn client(&self) -> Result<Client> {
        Client::connect([&self.url], None).await.with_context(|| format!("cannot connect to {}", self.url))
    }

    /// As many connections.
    pub(crate) async fn clients(&self, count: u32) -> Result<Vec<Client>> {
        let mut clients = Vec::new();
        for _ in 0..count {
            clients.push(self.client().await?);
        }
        Ok(clients)
    }

    /// Memory in RAM, in MB.
    pub(crate) fn memory(&self) -> Result<f64> {
        Ok(Vitals::of(self.process.pid())?.resident_kib as f64 * 1024.0 / 1e6)
    }

    async fn wait(&mut self) -> Result<()> {
        let deadline = tokio::time::Instant::now() + START_LIMIT;
        loop {
            self.process.ensure_running()?;
            let asked = tokio::time::timeout(Duration::from_secs(1), async {
                self.client().await?.get("health", None).await.map_err(anyhow::Error::from)
            });
            match asked.await {
                Ok(Ok(_)) => return Ok(()),
                _ if tokio::time::Instant::now() > deadline => {
                    anyhow::bail!("{} does not answer\n{}", self.url, self.process.last_lines())
                }
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It is gone with the bench in any case.
        let _ = self.process.signal_group(rustix::process::Signal::KILL);
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn free_place() -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").context("cannot find a free port")?;
    Ok(listener.local_addr().context("a socket without an address")?.to_string())
}
