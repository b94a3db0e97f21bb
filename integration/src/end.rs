//! What stands for a container without dockerd: a namespace behind a bridge `docker0`, as Docker makes it.

use std::net::Ipv4Addr;

use anyhow::Result;

use crate::command::Place;
use crate::netns::Netns;
use crate::subnet_env::SubnetEnv;

/// The bridge of most ends.
const DOCKER0: &str = "docker0";

/// One end of a path.
#[derive(Debug)]
pub struct End {
    /// Where it is.
    pub netns: Netns,
    /// Where programs run.
    pub place: Place,
    /// Its IPv4 address; unspecified without one.
    pub address: Ipv4Addr,
    /// Of the device that its packets leave by, in bytes.
    pub mtu: u32,
}

impl End {
    /// A namespace behind `docker0` in that of a host. The bridge has the subnet's address, the end the one after it.
    pub fn behind_bridge(host: &Netns, subnet: &SubnetEnv) -> Result<End> {
        End::behind_bare_bridge(host, subnet.mtu)?.addressed(host, DOCKER0, subnet)
    }

    /// As [`End::behind_bridge`], behind another bridge of the host.
    pub fn behind_another_bridge(host: &Netns, bridge: &str, subnet: &SubnetEnv) -> Result<End> {
        End::bare(host, bridge, subnet.mtu)?.addressed(host, bridge, subnet)
    }

    fn addressed(self, host: &Netns, device: &str, subnet: &SubnetEnv) -> Result<End> {
        let bridge = subnet.subnet.ip();
        let length = subnet.subnet.prefix();
        let end = End { address: Ipv4Addr::from(u32::from(bridge) + 1), ..self };
        host.ip(&format!("address add {bridge}/{length} dev {device}"))?;
        host.place().run("sh", ["-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"])?;
        end.place.run("ip", ["address", "add", &format!("{}/{length}", end.address), "dev", "eth0"])?;
        end.place.run("ip", ["route", "add", "default", "via", &bridge.to_string()])?;
        Ok(end)
    }

    /// As [`End::behind_bridge`], without any address yet.
    pub fn behind_bare_bridge(host: &Netns, mtu: u32) -> Result<End> {
        End::bare(host, DOCKER0, mtu)
    }

    fn bare(host: &Netns, bridge: &str, mtu: u32) -> Result<End> {
        // Named as the lab's other namespaces, so that the lab removes it.
        let netns = Netns::create(&format!("{}-{bridge}", host.name()))?;
        let port = format!("to-{bridge}");
        host.ip(&format!("link add {bridge} type bridge"))?;
        host.ip(&format!("link add {port} type veth peer name eth0 netns {}", netns.name()))?;
        host.ip(&format!("link set {port} master {bridge} mtu {mtu} up"))?;
        host.ip(&format!("link set {bridge} mtu {mtu} up"))?;
        netns.ip(&format!("link set eth0 mtu {mtu} up"))?;
        Ok(End { place: netns.place(), netns, address: Ipv4Addr::UNSPECIFIED, mtu })
    }
}
