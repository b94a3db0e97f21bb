//! A host of the lab: a namespace on the underlay with an agent and, if wanted, a dockerd.

mod agent;
mod dockerd;
mod init;
mod recordings;
mod spec;
mod wiretap;

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::command::{Outcome, Place};
use crate::docker::Docker;
use crate::flanctl;
use crate::netns::Netns;
use crate::notify::Notifications;
use crate::overlay::{self, DEVICE, Overlay};
use crate::process::{self, Process};
use crate::subnet_env::{SubnetEnv, SubnetValues};
use crate::wait;

pub use self::agent::{STATUS_FLAGS, STATUS_PORT, WIREGUARD_KEY};
pub(crate) use self::spec::HostSpec;
pub use self::wiretap::{Wiretap, contains};

/// How long a peer may take to appear or to go.
const PEERS_LIMIT: Duration = Duration::from_secs(15);

/// A host. Dropping it kills everything on it, unless the lab is kept.
#[derive(Debug)]
pub struct Host {
    spec: HostSpec,
    place: Place,
    /// Where the agent keeps the store itself, if it does.
    own_store: Option<PathBuf>,
    /// Whether its external interface is named to the agent.
    names_interface: bool,
    notifications: Notifications,
    // In this order: the agent and dockerd go before the process that holds the host's namespaces.
    agent: Option<Process>,
    docker: Option<Docker>,
    init: Process,
    recordings: usize,
}

impl Host {
    pub(crate) fn start(spec: HostSpec) -> Result<Host> {
        let run = spec.dir.join("run");
        fs::create_dir_all(&run).with_context(|| format!("cannot make {}", run.display()))?;
        fs::write(spec.dir.join("machine-id"), format!("{:032x}\n", u32::from(spec.address)))?;
        let notifications = Notifications::listen(&run.join("notify"))?;
        let init = init::start(&spec)?;
        let place =
            Place::entered_by(["nsenter", "--target", &init.pid().to_string(), "--net", "--mount", "--uts"]);
        Ok(Host {
            spec,
            place,
            own_store: None,
            names_interface: true,
            notifications,
            agent: None,
            docker: None,
            init,
            recordings: 0,
        })
    }

    /// Its name, which is also its host name.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// Its address on the underlay.
    pub fn address(&self) -> Ipv4Addr {
        self.spec.address
    }

    /// Its IPv6 address on the underlay, in a lab that has IPv6.
    pub fn address6(&self) -> Result<Ipv6Addr> {
        self.spec.address6.context("this lab's underlay has no IPv6")
    }

    /// Its network namespace.
    pub fn netns(&self) -> &Netns {
        &self.spec.netns
    }

    /// What belongs to this host on the machine; below it `run`, the host's own /run.
    pub fn dir(&self) -> &Path {
        &self.spec.dir
    }

    /// The cgroup of the lab.
    pub(crate) fn cgroup(&self) -> &str {
        &self.spec.cgroup
    }

    /// The client URLs of the store that this host uses, separated by commas, and the prefix of its keys.
    pub fn etcd(&self) -> (&str, &str) {
        (&self.spec.etcd_endpoints, &self.spec.etcd_prefix)
    }

    /// Commands here run on this host.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// A command for this host that has yet to get its arguments.
    pub fn command(&self, program: &str) -> Command {
        self.place.command(program)
    }

    /// The process that holds the host's namespaces: `nsenter --target PID --net --mount --uts` enters it.
    pub fn init_pid(&self) -> u32 {
        self.init.pid()
    }

    /// Runs a program on this host to its end; a failure is an error.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        self.place.run(program, args).with_context(|| format!("on {}", self.spec.name))
    }

    /// `ip` with these words as arguments.
    pub fn ip(&self, words: &str) -> Result<String> {
        self.spec.netns.ip(words).with_context(|| format!("on {}", self.spec.name))
    }

    /// From now on agents and command line of this host use the store at these client URLs.
    pub fn use_store(&mut self, endpoints: &str) {
        endpoints.clone_into(&mut self.spec.etcd_endpoints);
        self.own_store = None;
    }

    /// From now on the agent of this host keeps the store itself, for everybody on the underlay. Returns the URL that
    /// the others find it at.
    pub fn keep_store(&mut self) -> String {
        self.spec.etcd_endpoints = format!("http://{}:2379", self.spec.address);
        self.own_store = Some(self.spec.dir.join("store"));
        self.spec.etcd_endpoints.clone()
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
        flanctl::run(&self.place, self.etcd(), args, input)
    }

    /// The file that all agents of this host log to, one after the other.
    pub fn agent_log(&self) -> PathBuf {
        self.spec.dir.join("fland.log")
    }

    /// The host's subnet.env, by its path on the machine.
    pub fn subnet_file(&self) -> PathBuf {
        self.spec.dir.join("run/flannel/subnet.env")
    }

    /// What subnet.env says.
    pub fn subnet_env(&self) -> Result<SubnetEnv> {
        SubnetEnv::read(&self.subnet_file())
    }

    /// What the subnet file of a network beside the default one says.
    pub fn subnet_env_of(&self, network: &str) -> Result<SubnetEnv> {
        SubnetEnv::read(&self.subnet_file().with_file_name(format!("networks/{network}.env")))
    }

    /// What subnet.env says of both families.
    pub fn subnet_values(&self) -> Result<SubnetValues> {
        SubnetValues::read(&self.subnet_file())
    }

    /// One ping from the host itself, answered within a second.
    pub fn ping_once(&self, target: impl Into<IpAddr>) -> Result<()> {
        self.run("ping", &["-n", "-c", "1", "-W", "1", &target.into().to_string()]).map(drop)
    }

    /// What the kernel holds for this host's peers.
    pub fn overlay(&self) -> Result<Overlay> {
        Overlay::of(&self.spec.netns)
    }

    /// The MAC of the VXLAN device.
    pub fn vtep_mac(&self) -> Result<String> {
        overlay::mac_of(&self.spec.netns, DEVICE)
    }

    /// Waits until the kernel holds exactly these peers, by their subnets, and nothing else on the VXLAN device.
    pub fn wait_for_peers(&self, subnets: &[&SubnetEnv]) -> Result<()> {
        let mut wanted: Vec<String> = subnets.iter().map(|env| env.base()).collect();
        wanted.sort();
        wait::until(&format!("{} to know the peers {wanted:?}", self.spec.name), PEERS_LIMIT, || {
            let overlay = self.overlay()?;
            let mut complete: Vec<String> = overlay.complete_peers().into_iter().collect();
            complete.sort();
            ensure!(complete == wanted && overlay.has_no_remains(), "{overlay:?}");
            Ok(())
        })
        .with_context(|| process::last_lines(&self.agent_log()))
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
