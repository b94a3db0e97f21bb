//! Docker's containers, and their network namespaces.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use bollard::errors::Error;
use bollard::models::ContainerInspectResponse;
use bollard::query_parameters::{
    EventsOptionsBuilder, InspectContainerOptions, ListContainersOptionsBuilder,
};
use bollard::{API_DEFAULT_VERSION, Docker as Client};
use flan_kernel::lan::Netns;
use futures::{Stream, StreamExt};

use super::label;
use crate::failure::{Failure, Kind};

/// Seconds that Docker may take to answer.
const PATIENCE: u64 = 20;
/// The events after which a container may have to be attached, or was.
const EVENTS: [&str; 2] = ["start", "die"];

/// A Docker that answers.
pub(super) struct Docker {
    client: Client,
    socket: PathBuf,
}

/// A container that runs.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) id: String,
    pub(super) name: String,
    /// Files that stand for its network namespace (`namespaces(7)`). Docker's own may be hidden by mount namespaces, and
    /// that of its process is for those alone who may trace it.
    pub(super) netns: [PathBuf; 2],
    /// Those about the LAN, by name.
    pub(super) labels: Vec<(String, String)>,
}

impl Container {
    /// Opens its network namespace, and says by which file.
    pub(super) fn netns(&self) -> Result<(&Path, Netns), Failure> {
        let [docker, process] = &self.netns;
        if let Ok(netns) = Netns::open(docker) {
            return Ok((docker, netns));
        }
        match Netns::open(process) {
            Ok(netns) => Ok((process, netns)),
            Err(reason) => {
                let files = format!("{} and {}", docker.display(), process.display());
                let message =
                    format!("cannot open the network namespace of {}, {files}: {reason}", self.name);
                Err(Failure::new(Kind::Other, message))
            }
        }
    }

    /// Says why it cannot be attached.
    pub(super) fn is_of_the_host(&self) -> Failure {
        let message =
            format!("container {} uses the host's own network, which is on the LAN as it is", self.name);
        Failure::new(Kind::Refused, message)
    }
}

impl Docker {
    /// Connects to the API at a unix socket.
    pub(super) async fn connect(socket: &Path) -> Result<Self, Failure> {
        let failed = |reason: Error| {
            let message =
                format!("Docker does not answer at {}: {reason}; see --docker-api", socket.display());
            Failure::new(Kind::Other, message)
        };
        let client = Client::connect_with_unix(&socket.to_string_lossy(), PATIENCE, API_DEFAULT_VERSION)
            .map_err(failed)?;
        let client = client.negotiate_version().await.map_err(failed)?;
        Ok(Self { client, socket: socket.to_owned() })
    }

    /// Finds a container that runs, by its name or id.
    pub(super) async fn find(&self, name: &str) -> Result<Container, Failure> {
        let found = self.inspect(name).await?;
        if !found.state.as_ref().and_then(|state| state.running).unwrap_or_default() {
            let message =
                format!("container {name} does not run; start it first, or give it a label flan.attach");
            return Err(Failure::new(Kind::Refused, message));
        }
        let mut container = Container {
            id: found.id.clone().unwrap_or_default(),
            name: found.name.as_deref().unwrap_or(name).trim_start_matches('/').to_owned(),
            netns: netns(&found),
            labels: labels(found.config.as_ref().and_then(|config| config.labels.as_ref())),
        };
        match mode(&found) {
            "host" => return Err(container.is_of_the_host()),
            mode => {
                if let Some(other) = mode.strip_prefix("container:") {
                    container.netns = netns(&self.inspect(other).await?);
                }
            }
        }
        Ok(container)
    }

    /// Returns the ids of the running containers that have a label about the LAN.
    pub(super) async fn labelled(&self) -> Result<Vec<String>, Failure> {
        let options = ListContainersOptionsBuilder::new().build();
        let running =
            self.client.list_containers(Some(options)).await.map_err(|error| self.failed(&error))?;
        let ours = running.into_iter().filter(|container| !labels(container.labels.as_ref()).is_empty());
        Ok(ours.filter_map(|container| container.id).collect())
    }

    /// Returns the starts and ends of containers, each without its content, from the first time that it is polled.
    pub(super) fn events(&self) -> impl Stream<Item = Result<(), String>> + use<> {
        let filters = HashMap::from([("type", vec!["container"]), ("event", EVENTS.into())]);
        let options = EventsOptionsBuilder::new().filters(&filters).build();
        self.client.events(Some(options)).map(|event| event.map(drop).map_err(|error| error.to_string()))
    }

    async fn inspect(&self, name: &str) -> Result<ContainerInspectResponse, Failure> {
        self.client.inspect_container(name, None::<InspectContainerOptions>).await.map_err(
            |error| match error {
                Error::DockerResponseServerError { status_code: 404, .. } => {
                    Failure::new(Kind::NotFound, format!("Docker has no container {name}"))
                }
                error => self.failed(&error),
            },
        )
    }

    fn failed(&self, error: &Error) -> Failure {
        Failure::new(Kind::Other, format!("Docker at {}: {error}", self.socket.display()))
    }
}

fn mode(found: &ContainerInspectResponse) -> &str {
    found.host_config.as_ref().and_then(|config| config.network_mode.as_deref()).unwrap_or_default()
}

fn netns(found: &ContainerInspectResponse) -> [PathBuf; 2] {
    let key = found.network_settings.as_ref().and_then(|settings| settings.sandbox_key.as_deref());
    let process = found.state.as_ref().and_then(|state| state.pid).unwrap_or_default();
    [key.unwrap_or_default().into(), format!("/proc/{process}/ns/net").into()]
}

fn labels(all: Option<&HashMap<String, String>>) -> Vec<(String, String)> {
    let mut ours: Vec<(String, String)> = all
        .into_iter()
        .flatten()
        .filter(|(key, _)| label::is_ours(key))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    ours.sort();
    ours
}
