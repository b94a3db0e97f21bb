//! What stands for a container without dockerd: a namespace behind a bridge `docker0`, as Docker makes it.

use std::net::Ipv4Addr;

use anyhow::Result;

use crate::command::Place;
use crate::netns::Netns;
use crate::subnet_env::SubnetEnv;

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
        let bridge = subnet.subnet.ip();
        let length = subnet.subnet.prefix();
        let end = End {
            address: Ipv4Addr::from(u32::from(bridge) + 1),
            ..End::behind_bare_bridge(host, subnet.mtu)?
        };
        host.ip(&format!("address add {bridge}/{length} dev docker0"))?;
        host.place().run("sh", ["-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"])?;
        end.place.run("ip", ["address", "add", &format!("{}/{length}", end.address), "dev", "eth0"])?;
        end.place.run("ip", ["route", "add", "default", "via", &bridge.to_string()])?;
        Ok(end)
    }

    /// As [`End::behind_bridge`], without any address yet.
    pub fn behind_bare_bridge(host: &Netns, mtu: u32) -> Result<End> {
        // Named as the lab's other namespaces, so that the lab removes it.
        let netns = Netns::create(&format!("{}-c", host.name()))?;
        host.ip("link add docker0 type bridge")?;
        host.ip(&format!("link add container type veth peer name eth0 netns {}", netns.name()))?;
        host.ip(&format!("link set container master docker0 mtu {mtu} up"))?;
        host.ip(&format!("link set docker0 mtu {mtu} up"))?;
        netns.ip(&format!("link set eth0 mtu {mtu} up"))?;
        Ok(End { place: netns.place(), netns, address: Ipv4Addr::UNSPECIFIED, mtu })
    }
}
