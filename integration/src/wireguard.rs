//! WireGuard between two hosts without an agent, set up by hand.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Result;

use crate::forky;
use crate::host::Host;
use crate::process::{Lifetime, Process};
use crate::subnet_env::SubnetEnv;
use crate::wait;

const DEVICE: &str = "wg0";
const LIMIT: Duration = Duration::from_secs(10);

/// Who encrypts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// The kernel.
    Kernel,
    /// wireguard-go of Debian forky.
    Program,
}

/// Whether this kernel has WireGuard.
pub fn is_there() -> bool {
    let mut trial = Command::new("unshare");
    trial.args(["--net", "ip", "link", "add", DEVICE, "type", "wireguard"]);
    trial.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    trial.status().is_ok_and(|status| status.success())
}

/// Connects two hosts with these subnets. Returns the programs that encrypt, if any.
pub fn connect(dir: &Path, hosts: &[Host; 2], subnets: &[SubnetEnv; 2], by: By) -> Result<Vec<Process>> {
    let mut programs = Vec::new();
    for (host, subnet) in hosts.iter().zip(subnets) {
        match by {
            By::Kernel => drop(host.ip(&format!("link add {DEVICE} type wireguard"))?),
            By::Program => {
                let mut command = forky::command(host.place(), "wireguard-go")?;
                command.args(["-f", DEVICE]);
                let log = dir.join(format!("wireguard-go-{}.log", host.name()));
                programs.push(Process::spawn("wireguard-go", &command, &log, Lifetime::Bound)?);
                wait::until("wireguard-go to make its device", LIMIT, || {
                    host.ip(&format!("link show {DEVICE}")).map(drop)
                })?;
            }
        }
        host.run("sh", &["-c", "umask 077; wg genkey > /run/key"])?;
        host.run("wg", &["set", DEVICE, "private-key", "/run/key", "listen-port", "51820"])?;
        host.ip(&format!("address add {}/32 dev {DEVICE}", subnet.base_address()))?;
        host.ip(&format!("link set {DEVICE} mtu {} up", subnet.mtu))?;
        host.ip(&format!("route add {} dev {DEVICE}", subnet.network))?;
    }
    for (from, to) in [(0, 1), (1, 0)] {
        let key = hosts[to].run("sh", &["-c", "wg pubkey < /run/key"])?;
        let (endpoint, allowed) = (format!("{}:51820", hosts[to].address()), subnets[to].base());
        hosts[from].run(
            "wg",
            &["set", DEVICE, "peer", key.trim(), "endpoint", &endpoint, "allowed-ips", &allowed],
        )?;
    }
    Ok(programs)
}
