//! Two hosts with one of the data paths between them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flan_integration::end::End;
use flan_integration::flannel;
use flan_integration::host::on_all;
use flan_integration::process::Process;
use flan_integration::subnet_env::SubnetEnv;
use flan_integration::wireguard::{self, By};
use flan_integration::{Host, Lab, wait};
use serde_json::Value;

use crate::ends::Ends;
use crate::rows::Row;
use crate::underlay::Underlay;

/// The network of each row; the rows know nothing of each other.
const NETWORK: &str = "10.5.0.0/16";

/// Bytes that VXLAN over IPv4 adds to a packet.
const VXLAN_BYTES: u32 = 50;
/// Bytes that flannel reserves for WireGuard.
const WIREGUARD_BYTES: u32 = 80;

/// How long a new path may take to carry its first packet.
const PATH_LIMIT: Duration = Duration::from_secs(15);

/// Two hosts that reach each other. They stay as long as this value does.
#[derive(Debug)]
pub(crate) struct Pair {
    row: Row,
    ends: [End; 2],
    hosts: [Host; 2],
    // They run as long as this lives.
    _programs: Vec<Process>,
}

impl Pair {
    /// Makes the hosts, sets their underlay, makes the data path, and waits until a packet comes back.
    pub(crate) fn make(lab: &Lab, row: Row, ends: Ends, underlay: Underlay) -> Result<Pair> {
        let prefix = format!("/flan-bench/{}", row.host_name());
        let host = |number: u8| lab.host_at(&prefix, &format!("{}{number}", row.host_name()));
        let mut hosts = [host(1)?, host(2)?];
        for host in &hosts {
            underlay.apply(lab, host)?;
        }
        let mut programs = Vec::new();
        let subnets = match row.backend() {
            Some(backend) => with_agents(lab, &prefix, backend, &mut hosts)?,
            None if row == Row::VxlanControl => by_hand(lab, &hosts)?,
            None if row == Row::WireguardControl || row == Row::WireguardGo => {
                let subnets = subnets_of_mtu(mtu_of_eth0(&hosts[0])? - WIREGUARD_BYTES)?;
                let by = if row == Row::WireguardGo { By::Program } else { By::Kernel };
                programs = wireguard::connect(lab.dir(), &hosts, &subnets, by)?;
                subnets
            }
            None => subnets_of_mtu(mtu_of_eth0(&hosts[0])?)?,
        };
        let end = |number: usize| match ends {
            Ends::Containers => End::behind_bridge(hosts[number].netns(), &subnets[number]),
            Ends::Hosts => Ok(End {
                netns: hosts[number].netns().clone(),
                place: hosts[number].netns().place(),
                address: match row {
                    Row::Underlay => hosts[number].address(),
                    _ => subnets[number].base_address(),
                },
                mtu: subnets[number].mtu,
            }),
        };
        let pair = Pair { row, ends: [end(0)?, end(1)?], hosts, _programs: programs };
        if row == Row::Underlay && ends == Ends::Containers {
            pair.route_over_the_underlay(&subnets)?;
        }
        pair.wait_for_path()?;
        Ok(pair)
    }

    /// Its data path.
    pub(crate) fn row(&self) -> Row {
        self.row
    }

    /// Where clients run.
    pub(crate) fn client(&self) -> &End {
        &self.ends[0]
    }

    /// Where servers run.
    pub(crate) fn server(&self) -> &End {
        &self.ends[1]
    }

    /// The client's host.
    pub(crate) fn host(&self) -> &Host {
        &self.hosts[0]
    }

    fn route_over_the_underlay(&self, subnets: &[SubnetEnv; 2]) -> Result<()> {
        for (from, to) in [(0, 1), (1, 0)] {
            let (subnet, via) = (subnets[to].base(), self.hosts[to].address());
            self.hosts[from].ip(&format!("route add {subnet} via {via} dev eth0"))?;
        }
        Ok(())
    }

    fn wait_for_path(&self) -> Result<()> {
        let target = self.server().address.to_string();
        wait::until(&format!("the path of {} to carry a packet", self.row), PATH_LIMIT, || {
            self.client().place.run("ping", ["-n", "-c", "1", "-W", "1", &target]).map(drop)
        })
    }
}

/// `fland` on both hosts. Without `--ip-masq`: the control masquerades nothing either.
fn with_agents(lab: &Lab, prefix: &str, backend: &str, hosts: &mut [Host; 2]) -> Result<[SubnetEnv; 2]> {
    lab.set_network_at(prefix, &format!(r#"{{"Network":"{NETWORK}","Backend":{backend}}}"#))?;
    on_all(hosts, |host| host.start_agent_with(&[]))?;
    Ok([hosts[0].subnet_env()?, hosts[1].subnet_env()?])
}

/// The kernel's VXLAN as flannel sets it up: device, forwarding entry, neighbour and onlink route.
fn by_hand(lab: &Lab, hosts: &[Host; 2]) -> Result<[SubnetEnv; 2]> {
    let subnets = subnets_of_mtu(mtu_of_eth0(&hosts[0])? - VXLAN_BYTES)?;
    let macs = [
        flannel::set_up(&hosts[0], lab.store(), &subnets[0])?,
        flannel::set_up(&hosts[1], lab.store(), &subnets[1])?,
    ];
    for (from, to) in [(0, 1), (1, 0)] {
        flannel::add_peer(&hosts[from], &subnets[to], &macs[to], hosts[to].address())?;
    }
    Ok(subnets)
}

/// The subnets of two hosts where no agent leases them.
fn subnets_of_mtu(mtu: u32) -> Result<[SubnetEnv; 2]> {
    let network = NETWORK.parse().context("the network")?;
    let subnet = |text: &str| -> Result<SubnetEnv> {
        Ok(SubnetEnv { network, subnet: text.parse().context("a subnet")?, mtu, ip_masq: false })
    };
    Ok([subnet("10.5.1.1/24")?, subnet("10.5.2.1/24")?])
}

/// In bytes.
fn mtu_of_eth0(host: &Host) -> Result<u32> {
    let text = host.ip("-json link show dev eth0")?;
    let links: Value = serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))?;
    let mtu = links[0]["mtu"].as_u64().with_context(|| format!("eth0 has no MTU: {text}"))?;
    ensure!((576..=65_535).contains(&mtu), "the MTU of eth0 is {mtu}");
    Ok(u32::try_from(mtu)?)
}
