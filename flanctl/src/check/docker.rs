//! Docker, if this host has one.

use std::path::Path;
use std::time::Duration;

use bollard::{API_DEFAULT_VERSION, Docker as Client};
use flan_agent_api::Code;
use flan_host::bridge;
use flan_host::docker::{Docker, OURS};
use flan_kernel::netlink;
use flan_kernel::process::Process;
use ipnetwork::IpNetwork;
use tokio::time::timeout;

use super::report::Report;
use super::this_host::ThisHost;
use crate::args::CheckedHost;
use crate::host::Host;

const DOCKER: &str = "Docker";
/// Where packages of Docker and of Debian put it.
const DAEMONS: [&str; 2] = ["/usr/bin/dockerd", "/usr/sbin/dockerd"];
const LIMIT: Duration = Duration::from_secs(5);

/// Compares what its file, its options and its version say with what this host needs.
pub(super) async fn look(args: &CheckedHost, host: &ThisHost, overlays: &[IpNetwork], report: &mut Report) {
    let process = Process::called_here("dockerd");
    let version = version(&args.docker_api).await;
    if process.is_none() && version.is_none() && DAEMONS.iter().all(|file| !Path::new(file).exists()) {
        return report.fine(DOCKER, "is not here");
    }
    let bridges = netlink::bridges().unwrap_or_default();
    let ours = host.env.as_ref().map(|env| bridge::in_our_subnets(&bridges, env)).unwrap_or_default();
    let options = process.as_ref().map(Process::arguments).unwrap_or_default();
    let docker = Docker {
        version,
        settings: std::fs::read_to_string(&args.docker_settings).ok(),
        settings_file: args.docker_settings.display().to_string(),
        options,
        given: given(),
        uses_docker0: host.running.as_ref().is_none_or(|status| status.networks.is_empty()),
        bridges: ours.into_iter().map(|(name, _)| name.to_string()).collect(),
    };
    let fine = match (&docker.version, &process) {
        (Some(version), _) => format!("{version}, its settings fit"),
        (None, Some(process)) => {
            format!("{process} does not answer at {}; its settings fit", args.docker_api.display())
        }
        (None, None) => "does not run".to_owned(),
    };
    report.judge(DOCKER, Code::DockerSettings, docker.misfits(host.env.as_ref(), overlays), fine);
}

/// The options that the drop-in of Docker's unit gives it.
fn given() -> Vec<&'static str> {
    let Some(drop_in) = Host::drop_in() else { return Vec::new() };
    let text = std::fs::read_to_string(drop_in).unwrap_or_default();
    let dns = text.contains("--docker-dns").then_some("dns");
    OURS.into_iter().chain(dns).collect()
}

async fn version(socket: &Path) -> Option<String> {
    let path = socket.to_str()?;
    let client = Client::connect_with_unix(path, LIMIT.as_secs(), API_DEFAULT_VERSION).ok()?;
    timeout(LIMIT, client.version()).await.ok()?.ok()?.version
}
