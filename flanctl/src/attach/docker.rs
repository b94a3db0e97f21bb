//! Docker's containers, and their network namespaces.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

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
}

/// A running container with labels about the LAN.
#[derive(Debug)]
pub(super) struct Labelled {
    pub(super) id: String,
    pub(super) name: String,
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

    /// Finds a container by its name or id; `None` if it does not run.
    pub(super) async fn find(&self, name: &str) -> Result<Option<Container>, Failure> {
        let found = self.inspect(name).await?;
        let state = found.state.as_ref();
        if !state.is_some_and(|state| state.running == Some(true) && state.pid.is_some_and(|pid| pid > 0)) {
            return Ok(None);
        }
        let mut container = Container {
            id: found.id.clone().unwrap_or_default(),
            name: found.name.as_deref().unwrap_or(name).trim_start_matches('/').to_owned(),
            netns: netns(&found),
        };
        match mode(&found) {
            "host" => return Err(container.is_of_the_host()),
            mode => {
                if let Some(other) = mode.strip_prefix("container:") {
                    container.netns = netns(&self.inspect(other).await?);
                }
            }
        }
        Ok(Some(container))
    }

    /// Returns whether the container's image has this label with this value: who built the image does not decide what its
    /// containers are attached to.
    pub(super) async fn is_of_image(&self, id: &str, label: &str, text: &str) -> Result<bool, Failure> {
        let Some(image) = self.inspect(id).await?.image else { return Ok(false) };
        let image = self.client.inspect_image(&image).await.map_err(|error| match error {
            Error::DockerResponseServerError { status_code: 404, .. } => {
                let message = "its image is gone, so nobody knows whether the label is the image's; make the container anew";
                Failure::new(Kind::Refused, message)
            }
            error => self.failed(&error),
        })?;
        let labels = image.config.and_then(|config| config.labels).unwrap_or_default();
        Ok(labels.get(label).is_some_and(|of_image| of_image == text))
    }

    /// Returns the running containers that have a label about the LAN.
    pub(super) async fn labelled(&self) -> Result<Vec<Labelled>, Failure> {
        let options = ListContainersOptionsBuilder::new().build();
        let running =
            self.client.list_containers(Some(options)).await.map_err(|error| self.failed(&error))?;
        let all = running.into_iter().map(|container| {
            let name = container.names.unwrap_or_default().into_iter().next().unwrap_or_default();
            Labelled {
                id: container.id.unwrap_or_default(),
                name: name.trim_start_matches('/').to_owned(),
                labels: labels(container.labels.as_ref()),
            }
        });
        Ok(all.filter(|container| !container.labels.is_empty()).collect())
    }

    /// Returns the starts and ends of containers from now on, each by the container's id.
    pub(super) fn events(&self) -> impl Stream<Item = Result<String, String>> + use<> {
        let filters = HashMap::from([("type", vec!["container"]), ("event", EVENTS.into())]);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let options = EventsOptionsBuilder::new().filters(&filters).since(&now.to_string()).build();
        self.client.events(Some(options)).map(|event| match event {
            Ok(event) => Ok(event.actor.and_then(|actor| actor.id).unwrap_or_default()),
            Err(error) => Err(error.to_string()),
        })
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
