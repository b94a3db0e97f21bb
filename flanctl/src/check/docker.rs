//! Docker, if this host has one.

use std::path::Path;
use std::time::Duration;

use bollard::{API_DEFAULT_VERSION, Docker as Client};
use flan_agent_api::{Code, SubnetEnv};
use flan_host::docker::Docker;
use flan_kernel::process::Process;
use ipnetwork::IpNetwork;
use tokio::time::timeout;

use super::report::Report;
use crate::args::CheckArgs;
use crate::host::Host;

const DOCKER: &str = "Docker";
const LIMIT: Duration = Duration::from_secs(5);

/// Compares what its file, its options and its version say with what this host needs.
pub(super) async fn look(
    args: &CheckArgs,
    env: Option<&SubnetEnv>,
    overlays: &[IpNetwork],
    report: &mut Report,
) {
    let process = Process::called_here("dockerd");
    let docker = Docker {
        version: version(&args.docker_api).await,
        settings: std::fs::read_to_string(&args.docker_settings).ok(),
        options: process.as_ref().map(Process::arguments).unwrap_or_default(),
        is_given_options: Host::drop_in().is_some(),
    };
    let fine = match (&docker.version, &process) {
        (Some(version), _) => format!("{version}, its settings fit"),
        (None, Some(process)) => {
            format!("{process} does not answer at {}; its settings fit", args.docker_api.display())
        }
        (None, None) => "does not run".to_owned(),
    };
    report.judge(DOCKER, Code::DockerSettings, docker.misfits(env, overlays), fine);
}

async fn version(socket: &Path) -> Option<String> {
    let path = socket.to_str()?;
    let client = Client::connect_with_unix(path, LIMIT.as_secs(), API_DEFAULT_VERSION).ok()?;
    timeout(LIMIT, client.version()).await.ok()?.ok()?.version
}
