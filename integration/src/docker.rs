//! A real dockerd on a host of the lab, and containers made of busybox.
//!
//! Each dockerd is the only one in its own process and mount namespace: whoever kills the first process there kills
//! dockerd, its containerd, the shims and the containers in one stroke, and none of their mounts is left.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::command::{self, Outcome, Place};
use crate::process::{Lifetime, Process};
use crate::subnet_env::SubnetEnv;
use crate::tools;
use crate::traffic::{self, SOURCE_PAGE};
use crate::wait;

/// The image of all containers.
pub const IMAGE: &str = "flan-busybox";

/// The page that answers with the container's name.
pub const NAME_PAGE: &str = "/cgi-bin/name";

const START_LIMIT: Duration = Duration::from_secs(30);

/// Which part of the host's subnet docker0 gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bridge {
    /// All of it, as `subnet.env` says.
    WholeSubnet,
    /// The lower half; the upper half is left for a user-defined network.
    LowerHalf,
}

/// A dockerd that answers. Dropping it kills it with all its containers, unless the lab is kept.
#[derive(Debug)]
pub(crate) struct Docker {
    client: Client,
    /// The parent of the process that dockerd's process namespace hangs on: its end is dockerd's.
    process: Process,
    /// Enters the process and mount namespaces that dockerd lives in.
    inside: Place,
}

/// What a dockerd is started with.
#[derive(Debug)]
pub(crate) struct DockerSpec<'a> {
    pub(crate) host: &'a str,
    pub(crate) place: &'a Place,
    /// Directory of this dockerd's state and log.
    pub(crate) dir: &'a Path,
    /// The socket as seen from the machine; inside the host it is `/run/docker.sock`.
    pub(crate) socket: PathBuf,
    pub(crate) cgroup: &'a str,
    pub(crate) image: &'a Path,
    pub(crate) lifetime: Lifetime,
}

/// A running container.
#[derive(Debug, Clone)]
pub struct Container {
    name: String,
    client: Client,
    dockerd: Place,
}

#[derive(Debug, Clone)]
struct Client {
    /// The host, whose command line is of the same Docker.
    place: Place,
    socket: PathBuf,
    config: PathBuf,
}

impl Docker {
    /// Starts dockerd with these options, waits until it answers, and gives it the image.
    pub(crate) fn start(spec: DockerSpec<'_>, options: &[String]) -> Result<Docker> {
        fs::create_dir_all(spec.dir).with_context(|| format!("cannot make {}", spec.dir.display()))?;
        // The machine's own configuration of dockerd is none of ours.
        let config = spec.dir.join("daemon.json");
        fs::write(&config, "{}\n").with_context(|| format!("cannot write {}", config.display()))?;
        let command = dockerd_command(&spec, &config, options);
        let name = format!("dockerd on {}", spec.host);
        let mut process = Process::spawn(&name, &command, &spec.dir.join("dockerd.log"), spec.lifetime)?;

        let (place, config) = (spec.place.clone(), spec.dir.join("client"));
        let client = Client { place, socket: spec.socket, config };
        wait::until(&format!("{name} to answer"), START_LIMIT, || {
            process.ensure_running()?;
            client.ping().with_context(|| process.last_lines())
        })?;
        let init = process.only_child()?;
        let inside =
            Place::entered_by(["nsenter", "--target", &init.to_string(), "--mount", "--pid", "--net"]);
        let docker = Docker { client, process, inside };
        docker.run(&["import", &spec.image.to_string_lossy(), IMAGE])?;
        Ok(docker)
    }

    /// The docker command line with these arguments.
    pub(crate) fn run(&self, args: &[&str]) -> Result<String> {
        self.client.run(args)
    }

    /// Starts a container that serves [`NAME_PAGE`] and [`SOURCE_PAGE`] on `port`; `options` go to `docker run`.
    pub(crate) fn run_container(&self, name: &str, port: u16, options: &[&str]) -> Result<Container> {
        let label = format!("FLAN_NAME={name}");
        let port = port.to_string();
        let mut args = vec!["run", "--detach", "--name", name, "--env", &label];
        args.extend(options);
        args.extend([IMAGE, "/bin/httpd", "-f", "-p", &port, "-h", "/www"]);
        self.run(&args).with_context(|| format!("container {name}\n{}", self.process.last_lines()))?;
        Ok(Container { name: name.to_owned(), client: self.client.clone(), dockerd: self.inside.clone() })
    }

    /// Where dockerd lives: its processes, and the files that stand for its containers' networks.
    pub(crate) fn inside(&self) -> &Place {
        &self.inside
    }

    /// The end of dockerd's log.
    pub(crate) fn last_lines(&self) -> String {
        self.process.last_lines()
    }
}

impl Container {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address; an error where it has none of its own.
    pub fn address(&self) -> Result<Ipv4Addr> {
        let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        let text = self.client.run(&["inspect", "--format", format, &self.name])?;
        text.trim().parse().with_context(|| format!("container {} has no address: {text:?}", self.name))
    }

    /// Runs a program of busybox in the container and returns its output.
    pub fn exec(&self, args: &[&str]) -> Result<String> {
        let outcome = self.exec_outcome(args)?;
        outcome.succeeded(&format!("in container {}: {}", self.name, args.join(" ")))?;
        Ok(outcome.stdout)
    }

    /// As [`Container::exec`]; any exit code is fine.
    pub fn exec_outcome(&self, args: &[&str]) -> Result<Outcome> {
        let mut all = vec!["exec", &self.name];
        all.extend(args);
        command::run(&self.client.command(&all))
    }

    /// Three pings; an error unless all are answered.
    pub fn ping(&self, target: impl Into<IpAddr>) -> Result<()> {
        let target = target.into().to_string();
        let output = self.exec(&["ping", "-c", "3", "-i", "0.2", "-W", "2", &target])?;
        ensure!(output.contains(" 0% packet loss"), "from container {}: {output}", self.name);
        Ok(())
    }

    /// The page at `url`, fetched from inside the container.
    pub fn fetch(&self, url: &str) -> Result<String> {
        // Not wget's own -T: with it the wget of Debian's busybox-static 1.35 crashes.
        let limit = wait::scaled(Duration::from_secs(5)).as_secs().to_string();
        self.exec(&["timeout", &limit, "wget", "-q", "-O", "-", url])
    }

    /// The name that a container at `address` (or with that DNS name) answers by HTTP.
    pub fn fetch_name(&self, address: impl std::fmt::Display) -> Result<String> {
        Ok(self.fetch(&format!("http://{address}{NAME_PAGE}"))?.trim().to_owned())
    }

    /// Writes a page of random bytes, served as `/body`, and returns its SHA-256.
    pub fn write_body(&self, mebibytes: u32) -> Result<String> {
        let write = format!("busybox dd if=/dev/urandom of=/www/body bs=1M count={mebibytes}");
        self.exec(&["sh", "-c", &format!("{write} && busybox sha256sum < /www/body")])
    }

    /// The SHA-256 of what [`Container::write_body`] has written at `server`, fetched from inside this container.
    pub fn fetch_body(&self, server: Ipv4Addr) -> Result<String> {
        let limit = wait::scaled(Duration::from_secs(30)).as_secs();
        let fetch = format!("timeout {limit} wget -q -O - http://{server}/body");
        self.exec(&["sh", "-c", &format!("{fetch} | busybox sha256sum")])
    }

    /// The address from which the web server at `server` sees this container's requests come.
    pub fn source_seen_by(&self, server: impl Into<IpAddr>) -> Result<IpAddr> {
        traffic::parse_source(&self.fetch(&format!("http://{}{SOURCE_PAGE}", server.into()))?)
    }

    /// Commands here see the container's network and the host's programs.
    pub fn network_place(&self) -> Result<Place> {
        let pid = self.client.run(&["inspect", "--format", "{{.State.Pid}}", &self.name])?;
        Ok(self.dockerd.then(["nsenter", "--target", pid.trim(), "--net"]))
    }
}

impl Client {
    fn command(&self, args: &[&str]) -> Command {
        let mut docker = self.place.command("docker");
        docker.env("DOCKER_HOST", format!("unix://{}", self.socket.display()));
        docker
            .env("DOCKER_CONFIG", &self.config)
            .env_remove("DOCKER_CONTEXT")
            .env_remove("DOCKER_TLS_VERIFY");
        docker.args(args);
        docker
    }

    fn run(&self, args: &[&str]) -> Result<String> {
        command::stdout(&self.command(args))
    }

    /// Asks dockerd's API whether it is there: quicker than the command line.
    fn ping(&self) -> Result<()> {
        let mut stream = UnixStream::connect(&self.socket)
            .with_context(|| format!("nobody listens on {}", self.socket.display()))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(b"GET /_ping HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(answer.ends_with("OK"), "dockerd answered {answer:?}");
        Ok(())
    }
}

/// Writes the archive that `docker import` makes the image of: busybox, its links, and two CGI pages.
pub(crate) fn build_image(dir: &Path, archive: &Path) -> Result<()> {
    const LINKS: [&str; 12] =
        ["sh", "httpd", "ping", "wget", "timeout", "nslookup", "hostname", "ip", "cat", "ls", "sleep", "ps"];
    let busybox = tools::find("busybox").context("no busybox")?;
    let pages = dir.join("www/cgi-bin");
    fs::create_dir_all(dir.join("bin"))?;
    fs::create_dir_all(&pages)?;
    fs::copy(&busybox, dir.join("bin/busybox"))
        .with_context(|| format!("cannot copy {}", busybox.display()))?;
    for link in LINKS {
        symlink("busybox", dir.join("bin").join(link))?;
    }
    fs::write(dir.join("www/index.html"), "flan\n")?;
    write_page(&pages.join("name"), "$FLAN_NAME")?;
    write_page(&pages.join("source"), "$REMOTE_ADDR")?;
    Place::default().run("tar", ["-C", &dir.to_string_lossy(), "-cf", &archive.to_string_lossy(), "."])?;
    Ok(())
}

/// Writes a CGI page that answers with the value of a shell expression.
pub(crate) fn write_page(path: &Path, expression: &str) -> Result<()> {
    let script = format!(
        "#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n'\nprintf '%s\\n' \"{expression}\"\n"
    );
    fs::write(path, script).with_context(|| format!("cannot write {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

fn dockerd_command(spec: &DockerSpec<'_>, config: &Path, options: &[String]) -> Command {
    let isolated = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];
    let mut command = spec.place.then(isolated).command("sh");
    // The shell is the first process of the namespace: it takes in the orphans, which dockerd would not.
    command.args(["-c", "dockerd \"$@\" & wait $!", "sh"]);
    command.arg("--config-file").arg(config);
    command.arg("--data-root").arg(spec.dir.join("data"));
    command.args([
        "--exec-root",
        "/run/docker",
        "--pidfile",
        "/run/docker.pid",
        "--host",
        "unix:///run/docker.sock",
    ]);
    // Work on every machine: no driver that its file system may not have, no cgroups by way of its systemd.
    command.args(["--storage-driver", "vfs", "--exec-opt", "native.cgroupdriver=cgroupfs"]);
    command.arg(format!("--cgroup-parent=/{}", spec.cgroup));
    command.args(options);
    command
}

/// What dockerd is told on a host with this subnet.
pub(crate) fn options_of(place: &Place, env: &SubnetEnv, bridge: Bridge) -> Result<Vec<String>> {
    let bip = match bridge {
        Bridge::WholeSubnet => env.subnet.to_string(),
        Bridge::LowerHalf => env.lower_half(),
    };
    let mut options =
        vec![format!("--bip={bip}"), format!("--mtu={}", env.mtu), format!("--ip-masq={}", !env.ip_masq)];
    if drops_direct_routing(place)? {
        options.push("--allow-direct-routing".to_owned());
    }
    Ok(options)
}

/// True where dockerd drops packets from other hosts to its containers unless told otherwise (28.2 and later have the
/// option).
fn drops_direct_routing(place: &Place) -> Result<bool> {
    let text = place.run("dockerd", ["--version"])?;
    let version = text.split_whitespace().nth(2).with_context(|| format!("no version in {text:?}"))?;
    let mut numbers = version.split('.').map_while(|part| part.parse::<u32>().ok());
    Ok((numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (28, 2))
}
