//! The agent of a host.

use std::fs;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Host;
use crate::process::{self, Process};
use crate::tools;
use crate::traffic;
use crate::vitals::Vitals;
use crate::wait;

/// How long an agent may take to be ready. Thirty of them start at once on two cores.
const AGENT_LIMIT: Duration = Duration::from_secs(30);

/// Where agents answer `GET /status` if they are started with [`STATUS_FLAGS`].
pub const STATUS_PORT: &str = "8299";

/// Where agents keep their WireGuard key. Each host has a /run of its own.
pub const WIREGUARD_KEY: &str = "/run/flan/wireguard.key";

/// What agents keep over restarts; a real host has it in /var/lib.
const STATE_DIR: &str = "/run/flan/state";

/// For [`Host::start_agent_with`]: the agent can be asked for its status.
pub const STATUS_FLAGS: [&str; 5] = ["--ip-masq", "--healthz-ip", "127.0.0.1", "--healthz-port", STATUS_PORT];

impl Host {
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
        ensure!(self.agent.is_none(), "the agent of {} runs already", self.spec.name);
        self.notifications.forget();
        let mut fland = self.place.then(starter.iter().copied()).command(tools::flan_binary("fland")?);
        match &self.own_store {
            None => fland.args(["--etcd-endpoints", &self.spec.etcd_endpoints]),
            Some(dir) => fland.arg("--embedded-store").arg(dir).args([
                "--store-listen",
                "http://0.0.0.0:2379",
                "--store-insecure",
            ]),
        };
        fland.args(["--etcd-prefix", &self.spec.etcd_prefix]);
        if self.names_interface {
            fland.args(["--iface", "eth0"]);
        }
        fland.args(["--subnet-file", "/run/flannel/subnet.env", "--log-format", "text"]);
        fland.args(["--wireguard-key-file", WIREGUARD_KEY, "--state-dir", STATE_DIR]);
        fland.args(flags);
        fland.env("NOTIFY_SOCKET", "/run/notify");
        let name = format!("fland on {}", self.spec.name);
        self.agent = Some(Process::spawn(&name, &fland, &self.agent_log(), self.spec.lifetime)?);
        Ok(())
    }

    /// Waits until the agent says by `sd_notify` that it is ready. By then subnet.env must be there, unless the agent
    /// carries the store: then it says that this is served, and subnet.env is waited for.
    pub fn wait_for_agent(&mut self) -> Result<()> {
        self.wait_for_agent_within(AGENT_LIMIT).map(drop)
    }

    /// As [`Host::wait_for_agent`] with a limit of one's own; returns when the agent has said it.
    pub fn wait_for_agent_within(&mut self, limit: Duration) -> Result<Instant> {
        let agent = self.agent.as_mut().with_context(|| format!("no agent runs on {}", self.spec.name))?;
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
        ensure!(status.success(), "fland ended with {status} after SIGTERM\n{}", process::last_lines(&log));
        Ok(())
    }

    /// Waits until the agent has ended without being told to; how it did.
    pub fn wait_for_agent_end(&mut self, limit: Duration) -> Result<ExitStatus> {
        let mut agent = self.agent.take().with_context(|| format!("no agent runs on {}", self.spec.name))?;
        agent.wait_for_end(limit)
    }

    /// An error, with the end of its log, unless the agent runs.
    pub fn ensure_agent_runs(&mut self) -> Result<()> {
        self.agent.as_mut().with_context(|| format!("no agent runs on {}", self.spec.name))?.ensure_running()
    }

    /// The agent's process id.
    pub fn agent_pid(&self) -> Option<u32> {
        self.agent.as_ref().map(Process::pid)
    }

    /// What the agent's process holds now.
    pub fn agent_vitals(&self) -> Result<Vitals> {
        let pid = self.agent_pid().with_context(|| format!("no agent runs on {}", self.spec.name))?;
        Vitals::of(pid).with_context(|| format!("the agent of {}", self.spec.name))
    }

    /// What an agent that was started with [`STATUS_FLAGS`] answers to `GET /status`.
    pub fn status(&self) -> Result<Value> {
        // A root of its own may have no program for that.
        let text = traffic::fetch(&self.netns().place(), &format!("http://127.0.0.1:{STATUS_PORT}/status"))
            .with_context(|| format!("the status of fland on {}", self.spec.name))?;
        serde_json::from_str(&text).with_context(|| format!("not JSON: {text:?}"))
    }

    /// The lines of the agent's log that contain all of these.
    pub fn log_lines(&self, parts: &[&str]) -> Result<Vec<String>> {
        let log = fs::read_to_string(self.agent_log()).context("cannot read the agent's log")?;
        let lines = log.lines().filter(|line| parts.iter().all(|part| line.contains(part)));
        Ok(lines.map(str::to_owned).collect())
    }

    fn running_agent(&mut self) -> Result<Process> {
        let mut agent = self.agent.take().with_context(|| format!("no agent runs on {}", self.spec.name))?;
        agent.ensure_running()?;
        Ok(agent)
    }
}
