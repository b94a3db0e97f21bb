//! podman on a host of the lab, whose containers are connected by CNI plugins.
//!
//! As dockerd, it lives in a process and mount namespace of its own: whoever kills the first process there kills the
//! containers. What podman and the plugins keep below /var/lib and /dev/shm is that namespace's, too.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

use crate::command::{self, Place};
use crate::docker::IMAGE;
use crate::forky;
use crate::process::{Lifetime, Process};
use crate::tools;
use crate::traffic::{self, SOURCE_PAGE};
use crate::wait;

/// The network of all containers.
const NETWORK: &str = "flan";
/// Where Debian has the plugins.
const PLUGINS: &str = "/usr/lib/cni";
/// Where podman answers as Docker does, inside its namespaces.
pub const API: &str = "/run/podman.sock";

const START_LIMIT: Duration = Duration::from_secs(30);

/// Mounts what is to be podman's own, and takes in the orphans. Argument: the directory.
const ENTER: &str = r#"
set -e
mount --bind "$1/var-lib" /var/lib
mount -t tmpfs shm /dev/shm
: > "$1/is-up"
sleep infinity & wait $!
"#;

/// A podman. Dropping it kills it with all its containers.
#[derive(Debug)]
pub struct Podman {
    dir: PathBuf,
    cgroup: String,
    /// Enters the process and mount namespaces that it lives in.
    inside: Place,
    _process: Process,
}

/// A running container.
#[derive(Debug)]
pub struct PodmanContainer<'a> {
    name: String,
    podman: &'a Podman,
}

/// What a podman is started with.
pub(crate) struct PodmanSpec<'a> {
    pub(crate) host: &'a str,
    pub(crate) place: &'a Place,
    /// Directory of its state.
    pub(crate) dir: &'a Path,
    pub(crate) cgroup: &'a str,
    pub(crate) image: &'a Path,
    pub(crate) lifetime: Lifetime,
}

impl Podman {
    /// Makes one, whose containers are in this network: the `plugins` of a CNI configuration, as JSON.
    pub(crate) fn start(spec: &PodmanSpec<'_>, plugins: &str) -> Result<Podman> {
        tools::check_for_podman()?;
        let dir = spec.dir;
        for part in ["var-lib/containers", "var-lib/cni", "cni"] {
            fs::create_dir_all(dir.join(part)).with_context(|| format!("cannot make {part}"))?;
        }
        let isolated = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];
        let mut command = spec.place.then(isolated).command("sh");
        command.args(["-c", ENTER, "sh"]).arg(dir);
        let name = format!("podman on {}", spec.host);
        let mut process = Process::spawn(&name, &command, &dir.join("log"), spec.lifetime)?;
        wait::until(&format!("the namespaces of {name}"), START_LIMIT, || {
            process.ensure_running()?;
            ensure!(dir.join("is-up").exists());
            Ok(())
        })?;
        let init = process.only_child()?.to_string();
        let inside = Place::entered_by(["nsenter", "--target", &init, "--net", "--mount", "--uts", "--pid"]);
        fs::write(
            dir.join("cni/flan.conflist"),
            format!(r#"{{"cniVersion":"0.4.0","name":"{NETWORK}","plugins":{plugins}}}"#),
        )?;
        fs::write(dir.join("containers.conf"), settings(dir)?)?;
        fs::write(
            dir.join("storage.conf"),
            "[storage]\ndriver = \"vfs\"\ngraphroot = \"/var/lib/containers/storage\"\n\
             runroot = \"/run/containers/storage\"\n",
        )?;
        let podman =
            Podman { dir: dir.to_owned(), cgroup: spec.cgroup.to_owned(), inside, _process: process };
        podman.run(&["import", &spec.image.to_string_lossy(), IMAGE])?;
        Ok(podman)
    }

    /// podman's command line with these arguments.
    pub fn run(&self, args: &[&str]) -> Result<String> {
        command::stdout(&self.command(args))
    }

    /// Starts a container that serves [`SOURCE_PAGE`] on port 80.
    pub fn run_container(&self, name: &str) -> Result<PodmanContainer<'_>> {
        let cgroup = format!("--cgroup-parent=/{}", self.cgroup);
        let image = format!("localhost/{IMAGE}");
        let options = ["run", "--detach", "--name", name, "--network", NETWORK, &cgroup, &image];
        self.run(&[&options[..], &["/bin/httpd", "-f", "-p", "80", "-h", "/www"]].concat())?;
        Ok(PodmanContainer { name: name.to_owned(), podman: self })
    }

    /// Answers as Docker does at [`API`], until it is dropped.
    pub fn serve(&self) -> Result<Process> {
        let command = self.command(&["system", "service", "--time=0", &format!("unix://{API}")]);
        let service =
            Process::spawn("podman's service", &command, &self.dir.join("service.log"), Lifetime::Bound)?;
        wait::until("podman's service", START_LIMIT, || self.inside.run("ls", [API]).map(drop))?;
        Ok(service)
    }

    /// Where podman lives.
    pub(crate) fn inside(&self) -> &Place {
        &self.inside
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut podman = self.inside.command("podman");
        podman.env("CONTAINERS_CONF", self.dir.join("containers.conf"));
        podman.env("CONTAINERS_STORAGE_CONF", self.dir.join("storage.conf")).args(args);
        podman
    }
}

impl PodmanContainer<'_> {
    /// Its address in the network of all.
    pub fn address(&self) -> Result<Ipv4Addr> {
        let format = format!("{{{{.NetworkSettings.Networks.{NETWORK}.IPAddress}}}}");
        let text = self.podman.run(&["inspect", "--format", &format, &self.name])?;
        text.trim().parse().with_context(|| format!("container {} has no address: {text:?}", self.name))
    }

    /// Runs a program of busybox in the container and returns its output.
    pub fn exec(&self, args: &[&str]) -> Result<String> {
        self.podman.run(&[&["exec", &self.name], args].concat())
    }

    /// The address from which the web server at `server` sees this container's requests come.
    pub fn source_seen_by(&self, server: Ipv4Addr) -> Result<std::net::IpAddr> {
        let limit = wait::scaled(Duration::from_secs(5)).as_secs().to_string();
        let url = format!("http://{server}{SOURCE_PAGE}");
        traffic::parse_source(&self.exec(&["timeout", &limit, "wget", "-q", "-O", "-", &url])?)
    }
}

fn settings(dir: &Path) -> Result<String> {
    Ok(format!(
        "[network]\nnetwork_backend = \"cni\"\ncni_plugin_dirs = [{:?}, \"{PLUGINS}\"]\nnetwork_config_dir = {:?}\n\
         [engine]\nruntime = \"runc\"\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\n",
        flannel_plugin()?,
        dir.join("cni")
    ))
}

/// The directory of the plugin `flannel`, which is fetched where it is missing.
fn flannel_plugin() -> Result<&'static Path> {
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("flannel-plugin.sh");
    let found =
        FOUND.get_or_init(|| forky::ask(&mut Command::new(script)).map_err(|error| format!("{error:#}")));
    found.as_deref().map_err(|error| anyhow!("no CNI plugin flannel: {error}"))
}
