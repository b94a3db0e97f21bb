//! Between what is measured: the hosts themselves, or containers on them.

use std::net::Ipv4Addr;

use anyhow::Result;
use clap::ValueEnum;
use flan_integration::Host;
use flan_integration::command::Place;
use flan_integration::netns::Netns;
use flan_integration::subnet_env::SubnetEnv;
use serde::Serialize;

/// The kind of both ends of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Ends {
    /// The hosts' own addresses on the overlay.
    Hosts,
    /// On each host a namespace behind a bridge `docker0`, as Docker makes it, without dockerd.
    Containers,
}

/// One end of a path.
#[derive(Debug)]
pub(crate) struct End {
    /// Where programs run.
    pub(crate) place: Place,
    /// Its address.
    pub(crate) address: Ipv4Addr,
    /// Of the device that its packets leave by, in bytes.
    pub(crate) mtu: u32,
}

/// A namespace behind `docker0`, which has the subnet's address; the container has the one after it.
pub(crate) fn container(host: &Host, subnet: &SubnetEnv) -> Result<End> {
    let mtu = subnet.mtu;
    let bridge = subnet.subnet.ip();
    let address = Ipv4Addr::from(u32::from(bridge) + 1);
    // Named as the lab's other namespaces, so that the lab removes it.
    let netns = Netns::create(&format!("{}-c", host.netns().name()))?;

    host.ip("link add docker0 type bridge")?;
    host.ip(&format!("address add {bridge}/{} dev docker0", subnet.subnet.prefix()))?;
    host.ip(&format!("link add container type veth peer name eth0 netns {}", netns.name()))?;
    host.ip(&format!("link set container master docker0 mtu {mtu} up"))?;
    host.ip(&format!("link set docker0 mtu {mtu} up"))?;
    host.run("sh", &["-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"])?;

    netns.ip(&format!("address add {address}/{} dev eth0", subnet.subnet.prefix()))?;
    netns.ip(&format!("link set eth0 mtu {mtu} up"))?;
    netns.ip(&format!("route add default via {bridge}"))?;
    Ok(End { place: netns.place(), address, mtu })
}
