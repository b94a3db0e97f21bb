//! The dockerd of a host, or its podman.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use super::Host;
use crate::command::Outcome;
use crate::docker::{self, Bridge, Container, Docker, DockerSpec};
use crate::flanctl;
use crate::podman::{Podman, PodmanSpec};
use crate::process::Process;
use crate::subnet_env::SubnetEnv;

/// Where the drop-in of Docker's unit has `flanctl wait` write dockerd's options, and by which name.
const DOCKER_OPTIONS: &str = "/run/flannel/docker_opts.env";
const DOCKER_KEY: &str = "FLAN_DOCKER_OPTS";

impl Host {
    /// Starts dockerd with `--bip`, `--mtu` and `--ip-masq` from subnet.env.
    pub fn start_docker(&mut self, bridge: Bridge) -> Result<()> {
        let env = self.subnet_env()?;
        self.start_docker_on(&env, bridge)
    }

    /// Starts dockerd with values that no agent has written.
    pub fn start_docker_on(&mut self, env: &SubnetEnv, bridge: Bridge) -> Result<()> {
        let options = docker::options_of(&self.place, env, bridge)?;
        self.start_docker_with(&options)
    }

    /// What dockerd is started with by the drop-in of its unit: what `flanctl wait`, run on this host, makes of
    /// subnet.env and of the dockerd that it finds.
    pub fn docker_options(&self) -> Result<Vec<String>> {
        let args =
            ["wait", "--timeout", "20s", "--docker-opts", DOCKER_OPTIONS, "--docker-opts-key", DOCKER_KEY];
        self.flanctl(&args)?.succeeded("flanctl wait --docker-opts")?;
        let text = fs::read_to_string(self.spec.dir.join(DOCKER_OPTIONS.trim_start_matches('/')))?;
        let line = text.lines().find_map(|line| line.strip_prefix(DOCKER_KEY)?.strip_prefix("=\""));
        let options = line.with_context(|| format!("no {DOCKER_KEY} in {text:?}"))?.trim_end_matches('"');
        Ok(options.split_whitespace().map(str::to_owned).collect())
    }

    /// Starts dockerd with these options beside those that place it in the lab.
    pub fn start_docker_with(&mut self, options: &[String]) -> Result<()> {
        ensure!(self.docker.is_none(), "dockerd runs on {} already", self.spec.name);
        let spec = DockerSpec {
            host: &self.spec.name,
            place: &self.place,
            dir: &self.spec.dir.join("docker"),
            socket: self.docker_socket(),
            cgroup: &self.spec.cgroup,
            image: &self.spec.image,
            lifetime: self.spec.lifetime,
        };
        self.docker = Some(Docker::start(spec, options)?);
        Ok(())
    }

    /// Kills dockerd with all its containers. What it has made of devices and rules stays, as after a crash.
    pub fn stop_docker(&mut self) -> Result<()> {
        self.running_docker()?;
        self.docker = None;
        // The next one would take any process of these numbers for this one and its containerd.
        for file in ["run/docker.pid", "run/docker/containerd/containerd.pid"] {
            fs::remove_file(self.spec.dir.join(file)).with_context(|| format!("cannot remove {file}"))?;
        }
        Ok(())
    }

    /// dockerd's socket, by its path on the machine.
    pub fn docker_socket(&self) -> PathBuf {
        self.spec.dir.join("run/docker.sock")
    }

    /// The docker command line with these arguments, on this host's dockerd.
    pub fn docker(&self, args: &[&str]) -> Result<String> {
        self.running_docker()?.run(args).with_context(|| format!("on {}", self.spec.name))
    }

    /// A bridge network of dockerd's own, in a part of the overlay. The agent masquerades what leaves the overlay, so Docker
    /// must not.
    pub fn docker_network(&self, name: &str, subnet: &str, mtu: u32) -> Result<()> {
        let mtu = format!("com.docker.network.driver.mtu={mtu}");
        let no_masquerade = "com.docker.network.bridge.enable_ip_masquerade=false";
        self.docker(&["network", "create", "--subnet", subnet, "-o", &mtu, "-o", no_masquerade, name])
            .map(drop)
    }

    /// Starts a container that serves two pages on port 80; `options` go to `docker run`.
    pub fn run_container(&self, name: &str, options: &[&str]) -> Result<Container> {
        self.run_container_at(80, name, options)
    }

    /// As [`Host::run_container`], on another port.
    pub fn run_container_at(&self, port: u16, name: &str, options: &[&str]) -> Result<Container> {
        self.running_docker()?
            .run_container(name, port, options)
            .with_context(|| format!("on {}", self.spec.name))
    }

    /// The end of dockerd's log.
    pub fn docker_log(&self) -> Result<String> {
        Ok(self.running_docker()?.last_lines())
    }

    /// podman, whose containers are in this network: the `plugins` of a CNI configuration, as JSON.
    pub fn podman(&self, plugins: &str) -> Result<Podman> {
        let spec = PodmanSpec {
            host: &self.spec.name,
            place: &self.place,
            dir: &self.spec.dir.join("podman"),
            cgroup: &self.spec.cgroup,
            image: &self.spec.image,
            lifetime: self.spec.lifetime,
        };
        Podman::start(&spec, plugins)
    }

    /// `flanctl` where podman is; any exit code is fine.
    pub fn flanctl_beside_podman(&self, podman: &Podman, args: &[&str]) -> Result<Outcome> {
        flanctl::run(podman.inside(), self.etcd(), args, "")
    }

    /// `flanctl` where dockerd is, as on a host that is a whole machine; any exit code is fine.
    pub fn flanctl_beside_docker(&self, args: &[&str]) -> Result<Outcome> {
        flanctl::run(self.running_docker()?.inside(), self.etcd(), args, "")
    }

    /// The same, as a service that goes on until it is dropped.
    pub fn flanctl_service(&mut self, args: &[&str]) -> Result<Process> {
        let command = flanctl::command(self.running_docker()?.inside(), self.etcd(), args)?;
        let name = format!("flanctl {} on {}", args.join(" "), self.spec.name);
        let log = self.recording("flanctl");
        Process::spawn(&name, &command, &log, self.spec.lifetime)
    }

    fn running_docker(&self) -> Result<&Docker> {
        self.docker.as_ref().with_context(|| format!("no dockerd runs on {}", self.spec.name))
    }
}
