//! A host of the lab: a namespace on the underlay with an agent and, if wanted, a dockerd.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::Value;

use crate::command::{self, Outcome, Place};
use crate::docker::{self, Bridge, Container, Docker, DockerSpec};
use crate::end::End;
use crate::forky;
use crate::monitor::Monitor;
use crate::netns::Netns;
use crate::notify::Notifications;
use crate::overlay::{self, DEVICE, Overlay};
use crate::process::{Lifetime, Process};
use crate::subnet_env::{SubnetEnv, SubnetValues};
use crate::tools;
use crate::traffic::{self, Ping};
use crate::vitals::Vitals;
use crate::wait;

/// How long an agent may take to be ready. Thirty of them start at once on two cores.
const AGENT_LIMIT: Duration = Duration::from_secs(30);

/// Where agents answer `GET /status` if they are started with [`STATUS_FLAGS`].
pub const STATUS_PORT: &str = "8299";

/// For [`Host::start_agent_with`]: the agent can be asked for its status.
pub const STATUS_FLAGS: [&str; 5] = ["--ip-masq", "--healthz-ip", "127.0.0.1", "--healthz-port", STATUS_PORT];

/// Where the drop-in of Docker's unit has `flanctl wait` write dockerd's options, and by which name.
const DOCKER_OPTIONS: &str = "/run/flannel/docker_opts.env";
const DOCKER_KEY: &str = "FLAN_DOCKER_OPTS";

/// How long a peer may take to appear or to go.
const PEERS_LIMIT: Duration = Duration::from_secs(15);

/// Prepares a host's own view of the machine, says so, and stays. Arguments: name, directory.
///
/// Its /run and its machine-id are its own, so that paths such as /run/flannel/subnet.env are what they are on a real
/// host. Where resolv.conf points into the machine's /run, it gets a target again.
const INIT: &str = r#"
set -e
printf %s "$1" > /proc/sys/kernel/hostname
mount --bind "$2/run" /run
if [ -e /etc/machine-id ]; then mount --bind "$2/machine-id" /etc/machine-id; fi
if [ -L /etc/resolv.conf ] && [ ! -e /etc/resolv.conf ]; then
    target=$(readlink -m /etc/resolv.conf)
    mkdir -p "$(dirname "$target")"
    echo nameserver 192.0.2.53 > "$target"
fi
: > /run/host-is-up
exec sleep infinity
"#;

/// A host. Dropping it kills everything on it, unless the lab is kept.
#[derive(Debug)]
pub struct Host {
    name: String,
    address: Ipv4Addr,
    address6: Option<Ipv6Addr>,
    netns: Netns,
    dir: PathBuf,
    place: Place,
    etcd_endpoints: String,
    etcd_prefix: String,
    /// Where the agent keeps the store itself, if it does.
    own_store: Option<PathBuf>,
    /// Whether its external interface is named to the agent.
    names_interface: bool,
    cgroup: String,
    image: PathBuf,
    lifetime: Lifetime,
    notifications: Notifications,
    // In this order: the agent and dockerd go before the process that holds the host's namespaces.
    agent: Option<Process>,
    docker: Option<Docker>,
    init: Process,
    recordings: usize,
}

/// What a lab gives a new host.
#[derive(Debug)]
pub(crate) struct HostSpec {
    pub(crate) name: String,
    pub(crate) address: Ipv4Addr,
    pub(crate) address6: Option<Ipv6Addr>,
    pub(crate) netns: Netns,
    pub(crate) dir: PathBuf,
    pub(crate) etcd_endpoints: String,
    pub(crate) etcd_prefix: String,
    pub(crate) cgroup: String,
    pub(crate) image: PathBuf,
    /// The root of Debian forky whose programs it has; `None` for those of the machine.
    pub(crate) forky_root: Option<&'static Path>,
    pub(crate) lifetime: Lifetime,
}

impl Host {
    pub(crate) fn start(spec: HostSpec) -> Result<Host> {
        let HostSpec {
            name,
            address,
            address6,
            netns,
            dir,
            etcd_endpoints,
            etcd_prefix,
            cgroup,
            image,
            forky_root,
            lifetime,
        } = spec;
        let run = dir.join("run");
        fs::create_dir_all(&run).with_context(|| format!("cannot make {}", run.display()))?;
        fs::write(dir.join("machine-id"), format!("{:032x}\n", u32::from(address)))?;
        let notifications = Notifications::listen(&run.join("notify"))?;

        let mut command = netns.place().then(["unshare", "--mount", "--uts"]).command("sh");
        if let Some(root) = forky_root {
            let binaries = tools::flan_binary("fland")?;
            let (binaries, lab) = (binaries.parent(), dir.parent());
            command.args(["-c", forky::ENTER, "sh", INIT]).arg(root);
            command.args(binaries).args(lab).arg(&name).arg(&dir);
        } else {
            command.args(["-c", INIT, "sh", &name]).arg(&dir);
        }
        let mut init = Process::spawn(&format!("host {name}"), &command, &dir.join("init.log"), lifetime)?;
        wait::until(&format!("host {name}"), Duration::from_secs(10), || {
            init.ensure_running()?;
            ensure!(run.join("host-is-up").exists(), "its /run is not mounted yet");
            Ok(())
        })?;
        let place =
            Place::entered_by(["nsenter", "--target", &init.pid().to_string(), "--net", "--mount", "--uts"]);
        Ok(Host {
            name,
            address,
            address6,
            netns,
            dir,
            place,
            etcd_endpoints,
            etcd_prefix,
            own_store: None,
            names_interface: true,
            cgroup,
            image,
            lifetime,
            notifications,
            agent: None,
            docker: None,
            init,
            recordings: 0,
        })
    }

    /// Its name, which is also its host name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address on the underlay.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Its IPv6 address on the underlay, in a lab that has IPv6.
    pub fn address6(&self) -> Result<Ipv6Addr> {
        self.address6.context("this lab's underlay has no IPv6")
    }

    /// Its network namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// What belongs to this host on the machine; below it `run`, the host's own /run.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The cgroup of the lab.
    pub(crate) fn cgroup(&self) -> &str {
        &self.cgroup
    }

    /// The client URLs of the store that this host uses, separated by commas, and the prefix of its keys.
    pub fn etcd(&self) -> (&str, &str) {
        (&self.etcd_endpoints, &self.etcd_prefix)
    }

    /// Commands here run on this host.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The process that holds the host's namespaces: `nsenter --target PID --net --mount --uts` enters it.
    pub fn init_pid(&self) -> u32 {
        self.init.pid()
    }

    /// Runs a program on this host to its end; a failure is an error.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        self.place.run(program, args).with_context(|| format!("on {}", self.name))
    }

    /// `ip` with these words as arguments.
    pub fn ip(&self, words: &str) -> Result<String> {
        self.netns.ip(words).with_context(|| format!("on {}", self.name))
    }

    /// From now on agents and command line of this host use the store at these client URLs.
    pub fn use_store(&mut self, endpoints: &str) {
        endpoints.clone_into(&mut self.etcd_endpoints);
        self.own_store = None;
    }

    /// From now on the agent of this host keeps the store itself, for everybody on the underlay. Returns the URL that
    /// the others find it at.
    pub fn keep_store(&mut self) -> String {
        self.etcd_endpoints = format!("http://{}:2379", self.address);
        self.own_store = Some(self.dir.join("store"));
        self.etcd_endpoints.clone()
    }

    /// From now on agents of this host find their external interface by themselves, or by flags of the story.
    pub fn name_no_interface(&mut self) {
        self.names_interface = false;
    }

    /// `flanctl` with the store's address and these arguments, run on this host; any exit code is fine.
    pub fn flanctl(&self, args: &[&str]) -> Result<Outcome> {
        self.flanctl_with_input(args, "")
    }

    /// As [`Host::flanctl`], with `input` on its standard input.
    pub fn flanctl_with_input(&self, args: &[&str], input: &str) -> Result<Outcome> {
        let mut command = self.place.command(tools::flan_binary("flanctl")?);
        command
            // Not that of the machine.
            .env("FLAND_ENV_FILE", "/dev/null")
            .args(["--etcd-endpoints", &self.etcd_endpoints, "--etcd-prefix", &self.etcd_prefix])
            .args(args);
        command::run_with_input(&command, input)
    }

    /// Starts the agent with `--ip-masq` and waits until it says that it is ready.
    pub fn start_agent(&mut self) -> Result<()> {
        self.start_agent_with(&["--ip-masq"])
    }

    /// Starts the agent with these flags beside those that place it in the lab, and waits until it is ready.
    pub fn start_agent_with(&mut self, flags: &[&str]) -> Result<()> {
        self.spawn_agent(flags)?;
        self.wait_for_agent()
    }

    /// Starts the agent and does not wait for it.
    pub fn spawn_agent(&mut self, flags: &[&str]) -> Result<()> {
        self.spawn_agent_under(&[], flags)
    }

    /// As [`Host::spawn_agent`], started by a program that gets its command line, such as `strace`.
    pub fn spawn_agent_under(&mut self, starter: &[&str], flags: &[&str]) -> Result<()> {
        ensure!(self.agent.is_none(), "the agent of {} runs already", self.name);
        self.notifications.forget();
        let mut fland = self.place.then(starter.iter().copied()).command(tools::flan_binary("fland")?);
        match &self.own_store {
            None => fland.args(["--etcd-endpoints", &self.etcd_endpoints]),
            Some(dir) => fland.arg("--embedded-store").arg(dir).args([
                "--store-listen",
                "http://0.0.0.0:2379",
                "--store-insecure",
            ]),
        };
        fland.args(["--etcd-prefix", &self.etcd_prefix]);
        if self.names_interface {
            fland.args(["--iface", "eth0"]);
        }
        fland.args(["--subnet-file", "/run/flannel/subnet.env", "--log-format", "text"]);
        fland.args(flags);
        fland.env("NOTIFY_SOCKET", "/run/notify");
        let name = format!("fland on {}", self.name);
        self.agent = Some(Process::spawn(&name, &fland, &self.agent_log(), self.lifetime)?);
        Ok(())
    }

    /// Waits until the agent says by `sd_notify` that it is ready. By then subnet.env must be there, unless the agent
    /// carries the store: then it says that this is served, and subnet.env is waited for.
    pub fn wait_for_agent(&mut self) -> Result<()> {
        self.wait_for_agent_within(AGENT_LIMIT).map(drop)
    }

    /// As [`Host::wait_for_agent`] with a limit of one's own; returns when the agent has said it.
    pub fn wait_for_agent_within(&mut self, limit: Duration) -> Result<Instant> {
        let agent = self.agent.as_mut().with_context(|| format!("no agent runs on {}", self.name))?;
        let said = wait::until(&format!("{} to be ready", agent.name()), limit, || {
            agent.ensure_running()?;
            let said = self.notifications.heard_at("READY=1");
            said.with_context(|| format!("it has not said so\n{}", agent.last_lines()))
        })?;
        match &self.own_store {
            None => self.subnet_values().context("the agent is ready")?,
            Some(_) => wait::until("subnet.env beside the store", limit, || self.subnet_values())?,
        };
        Ok(said)
    }

    /// `kill -9` on the agent.
    pub fn kill_agent(&mut self) -> Result<()> {
        self.running_agent()?.kill()
    }

    /// SIGTERM to the agent, which must end with status 0.
    pub fn stop_agent(&mut self) -> Result<()> {
        let agent = self.running_agent()?;
        let log = agent.log().to_owned();
        let status = agent.terminate()?;
        ensure!(
            status.success(),
            "fland ended with {status} after SIGTERM\n{}",
            crate::process::last_lines(&log)
        );
        Ok(())
    }

    /// Waits until the agent has ended without being told to; how it did.
    pub fn wait_for_agent_end(&mut self, limit: Duration) -> Result<ExitStatus> {
        let mut agent = self.agent.take().with_context(|| format!("no agent runs on {}", self.name))?;
        agent.wait_for_end(limit)
    }

    /// An error, with the end of its log, unless the agent runs.
    pub fn ensure_agent_runs(&mut self) -> Result<()> {
        self.agent.as_mut().with_context(|| format!("no agent runs on {}", self.name))?.ensure_running()
    }

    /// The agent's process id.
    pub fn agent_pid(&self) -> Option<u32> {
        self.agent.as_ref().map(Process::pid)
    }

    /// What the agent's process holds now.
    pub fn agent_vitals(&self) -> Result<Vitals> {
        let pid = self.agent_pid().with_context(|| format!("no agent runs on {}", self.name))?;
        Vitals::of(pid).with_context(|| format!("the agent of {}", self.name))
    }

    /// The file that all agents of this host log to, one after the other.
    pub fn agent_log(&self) -> PathBuf {
        self.dir.join("fland.log")
    }

    /// The host's subnet.env, by its path on the machine.
    pub fn subnet_file(&self) -> PathBuf {
        self.dir.join("run/flannel/subnet.env")
    }

    /// What subnet.env says.
    pub fn subnet_env(&self) -> Result<SubnetEnv> {
        SubnetEnv::read(&self.subnet_file())
    }

    /// What subnet.env says of both families.
    pub fn subnet_values(&self) -> Result<SubnetValues> {
        SubnetValues::read(&self.subnet_file())
    }

    /// What an agent that was started with [`STATUS_FLAGS`] answers to `GET /status`.
    pub fn status(&self) -> Result<Value> {
        let text = traffic::fetch(&self.place, &format!("http://127.0.0.1:{STATUS_PORT}/status"))
            .with_context(|| format!("the status of fland on {}", self.name))?;
        serde_json::from_str(&text).with_context(|| format!("not JSON: {text:?}"))
    }

    /// The lines of the agent's log that contain all of these.
    pub fn log_lines(&self, parts: &[&str]) -> Result<Vec<String>> {
        let log = fs::read_to_string(self.agent_log()).context("cannot read the agent's log")?;
        let lines = log.lines().filter(|line| parts.iter().all(|part| line.contains(part)));
        Ok(lines.map(str::to_owned).collect())
    }

    /// One ping from the host itself, answered within a second.
    pub fn ping_once(&self, target: impl Into<IpAddr>) -> Result<()> {
        self.run("ping", &["-n", "-c", "1", "-W", "1", &target.into().to_string()]).map(drop)
    }

    /// What the kernel holds for this host's peers.
    pub fn overlay(&self) -> Result<Overlay> {
        Overlay::of(&self.netns)
    }

    /// The MAC of the VXLAN device.
    pub fn vtep_mac(&self) -> Result<String> {
        overlay::mac_of(&self.netns, DEVICE)
    }

    /// Waits until the kernel holds exactly these peers, by their subnets, and nothing else on the VXLAN device.
    pub fn wait_for_peers(&self, subnets: &[&SubnetEnv]) -> Result<()> {
        let mut wanted: Vec<String> = subnets.iter().map(|env| env.base()).collect();
        wanted.sort();
        wait::until(&format!("{} to know the peers {wanted:?}", self.name), PEERS_LIMIT, || {
            let overlay = self.overlay()?;
            let mut complete: Vec<String> = overlay.complete_peers().into_iter().collect();
            complete.sort();
            ensure!(complete == wanted && overlay.has_no_remains(), "{overlay:?}");
            Ok(())
        })
        .with_context(|| crate::process::last_lines(&self.agent_log()))
    }

    /// Records every change in this host's kernel from now on.
    pub fn monitor(&mut self) -> Result<Monitor> {
        let log = self.recording("monitor");
        Monitor::start(&self.name, &self.netns.place(), &log)
    }

    /// A steady ping from this host itself.
    pub fn ping(&mut self, target: Ipv4Addr) -> Result<Ping> {
        let log = self.recording("ping");
        Ping::start(&format!("from {} to {target}", self.name), &self.netns.place(), target, &log)
    }

    /// A steady ping from a container of this host.
    pub fn ping_from(&mut self, container: &Container, target: Ipv4Addr) -> Result<Ping> {
        let log = self.recording("ping");
        let name = format!("from container {} to {target}", container.name());
        Ping::start(&name, &container.network_place()?, target, &log)
    }

    /// A steady ping from a namespace that stands for a container of this host.
    pub fn ping_from_end(&mut self, end: &End, target: Ipv4Addr) -> Result<Ping> {
        let log = self.recording("ping");
        Ping::start(&format!("from {} on {} to {target}", end.address, self.name), &end.place, target, &log)
    }

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
        let text = fs::read_to_string(self.dir.join(DOCKER_OPTIONS.trim_start_matches('/')))?;
        let line = text.lines().find_map(|line| line.strip_prefix(DOCKER_KEY)?.strip_prefix("=\""));
        let options = line.with_context(|| format!("no {DOCKER_KEY} in {text:?}"))?.trim_end_matches('"');
        Ok(options.split_whitespace().map(str::to_owned).collect())
    }

    /// Starts dockerd with these options beside those that place it in the lab.
    pub fn start_docker_with(&mut self, options: &[String]) -> Result<()> {
        ensure!(self.docker.is_none(), "dockerd runs on {} already", self.name);
        let spec = DockerSpec {
            host: &self.name,
            place: &self.place,
            dir: &self.dir.join("docker"),
            socket: self.docker_socket(),
            cgroup: &self.cgroup,
            image: &self.image,
            lifetime: self.lifetime,
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
            fs::remove_file(self.dir.join(file)).with_context(|| format!("cannot remove {file}"))?;
        }
        Ok(())
    }

    /// dockerd's socket, by its path on the machine.
    pub fn docker_socket(&self) -> PathBuf {
        self.dir.join("run/docker.sock")
    }

    /// The docker command line with these arguments, on this host's dockerd.
    pub fn docker(&self, args: &[&str]) -> Result<String> {
        self.running_docker()?.run(args).with_context(|| format!("on {}", self.name))
    }

    /// Starts a container that serves two pages on port 80; `options` go to `docker run`.
    pub fn run_container(&self, name: &str, options: &[&str]) -> Result<Container> {
        self.run_container_at(80, name, options)
    }

    /// As [`Host::run_container`], on another port.
    pub fn run_container_at(&self, port: u16, name: &str, options: &[&str]) -> Result<Container> {
        self.running_docker()?.run_container(name, port, options).with_context(|| format!("on {}", self.name))
    }

    /// The end of dockerd's log.
    pub fn docker_log(&self) -> Result<String> {
        Ok(self.running_docker()?.last_lines())
    }

    /// A command for this host that has yet to get its arguments.
    pub fn command(&self, program: &str) -> Command {
        self.place.command(program)
    }

    fn running_agent(&mut self) -> Result<Process> {
        let mut agent = self.agent.take().with_context(|| format!("no agent runs on {}", self.name))?;
        agent.ensure_running()?;
        Ok(agent)
    }

    fn running_docker(&self) -> Result<&Docker> {
        self.docker.as_ref().with_context(|| format!("no dockerd runs on {}", self.name))
    }

    fn recording(&mut self, what: &str) -> PathBuf {
        self.recordings += 1;
        self.dir.join(format!("{what}{}.txt", self.recordings))
    }
}

/// Does `work` on all hosts at once, and returns the first error.
pub fn on_all(hosts: &mut [Host], work: impl Fn(&mut Host) -> Result<()> + Sync) -> Result<()> {
    let work = &work;
    let started = Instant::now();
    let errors: Vec<anyhow::Error> = std::thread::scope(|scope| {
        let threads: Vec<_> = hosts.iter_mut().map(|host| scope.spawn(move || work(host))).collect();
        threads
            .into_iter()
            .filter_map(|thread| thread.join().unwrap_or_else(|_| Err(anyhow!("a thread panicked"))).err())
            .collect()
    });
    let count = errors.len();
    match errors.into_iter().next() {
        None => Ok(()),
        Some(first) if count == 1 => Err(first),
        Some(first) => bail!("{count} hosts failed after {:?}; the first: {first:#}", started.elapsed()),
    }
}
